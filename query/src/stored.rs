//! The store as a query's [`Source`].
//!
//! Not here: anything but the hand-over. The snapshot, its pins and its kinds are the store's; this
//! names them in the query's words.

use std::any::Any;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use model::attributes::{Kind, Kinds};
use model::derived::DerivedTable;
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;
use store::{AttributeKinds, DerivedSegment, Followed, Segment, Store};

use crate::remote::Remote;
use crate::source::{Container, Derived, Fresh, ObservedKinds, SegmentFile, Snapshot, Source};

/// A [`Store`] to ask questions of.
pub struct StoreSource {
    store: Arc<Store>,
    remote: Option<Arc<dyn Remote>>,
    unfollowed: Option<&'static str>,
}

impl StoreSource {
    /// Over an open store.
    #[must_use]
    pub const fn new(store: Arc<Store>) -> Self {
        Self { store, remote: None, unfollowed: None }
    }

    /// Over a store whose rows go elsewhere, where they are asked for: the store has only those that are on their way.
    #[must_use]
    pub const fn remote(store: Arc<Store>, remote: Arc<dyn Remote>) -> Self {
        Self { store, remote: Some(remote), unfollowed: None }
    }

    /// Nothing comes into the store, so nobody can follow a table: they are told why.
    #[must_use]
    pub const fn without_followers(mut self, why: &'static str) -> Self {
        self.unfollowed = Some(why);
        self
    }
}

/// A set of kinds whose SQL type, text, holds every value: what to say of a key that the store
/// does not keep track of.
const UNKNOWN: Kinds = Kinds(Kinds(0).with(Kind::String).0 | Kinds(0).with(Kind::Int).0);

struct StoredKinds([Arc<AttributeKinds>; Table::COUNT]);

impl ObservedKinds for StoredKinds {
    fn kinds(&self, table: Table, container: Container, key: &str) -> Kinds {
        let kinds = &self.0[table.index()];
        let container = match container {
            Container::Attributes => store::Container::Attributes,
            Container::Resource => store::Container::Resource,
            Container::Scope => store::Container::Scope,
            Container::Events => store::Container::Events,
            Container::Links => store::Container::Links,
            Container::Exemplars => store::Container::Exemplars,
            Container::MetricMetadata => return UNKNOWN,
        };
        match kinds.get(container, key) {
            Some(known) => known,
            None if kinds.is_truncated() => UNKNOWN,
            None => Kinds::default(),
        }
    }
}

impl StoreSource {
    fn handed_over(stored: &store::Snapshot) -> Snapshot {
        let kinds = Table::ALL.map(|table| Arc::clone(&stored.table(table).kinds));
        let mut snapshot = Snapshot::new(Arc::new(StoredKinds(kinds)));
        for table in Table::ALL {
            let (from, into) = (stored.table(table), snapshot.table_mut(table));
            into.memory.clone_from(&from.memory);
            into.segments = from
                .segments
                .iter()
                .map(|segment| {
                    let meta = segment.meta();
                    SegmentFile {
                        id: meta.id,
                        path: segment.path().to_path_buf(),
                        rows: meta.rows,
                        bytes: meta.bytes,
                        min_time: meta.min_time.0,
                        max_time: meta.max_time.0,
                        filters: meta.has_filters(),
                        pin: Some(Arc::clone(segment) as _),
                    }
                })
                .collect();
        }
        snapshot
    }
}

fn derived_file(segment: &Arc<DerivedSegment>) -> SegmentFile {
    let meta = segment.meta();
    SegmentFile {
        id: meta.id,
        path: segment.path().to_path_buf(),
        rows: meta.rows,
        bytes: meta.bytes,
        min_time: meta.min_time.0,
        max_time: meta.max_time.0,
        filters: false,
        pin: Some(Arc::clone(segment) as _),
    }
}

impl Source for StoreSource {
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        self.remote.clone()
    }

    fn ask(&self) -> Option<Box<dyn Any + Send + Sync>> {
        Some(Box::new(self.store.ask()))
    }

    fn snapshot(&self, tenant: &TenantId) -> Snapshot {
        Self::handed_over(&self.store.snapshot(tenant))
    }

    fn snapshot_with_derived(&self, tenant: &TenantId) -> Snapshot {
        let stored = self.store.snapshot_with_derived(tenant);
        let mut snapshot = Self::handed_over(&stored);
        if let Some(from) = stored.derived() {
            let mut derived = Derived { complete: from.is_complete(), ..Derived::default() };
            for table in DerivedTable::ALL {
                let (from, into) = (from.table(table), &mut derived.tables[table.index()]);
                into.memory.clone_from(&from.memory);
                into.segments = from.segments.iter().map(derived_file).collect();
            }
            snapshot.derived = Some(derived);
        }
        snapshot
    }

    fn kinds(&self, tenant: &TenantId, table: Table) -> Arc<dyn ObservedKinds> {
        let of_table = |known: Table| if known == table { self.store.kinds(tenant, table) } else { Arc::default() };
        Arc::new(StoredKinds(Table::ALL.map(of_table)))
    }

    fn unfollowed(&self) -> Option<&'static str> {
        self.unfollowed
    }

    fn follow(&self, tenant: &TenantId, table: Table) -> BoxStream<'static, Fresh> {
        let mut follower = self.store.follow(tenant, table);
        let published = stream::poll_fn(move |context| follower.poll_next(context));
        let fresh = published.map(|followed| match followed {
            Followed::Batches(batches) => Fresh::Rows(batches),
            Followed::Dropped(rows) => Fresh::Dropped(rows),
        });
        fresh.boxed()
    }

    fn ledger(&self, tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        self.store.ledger(tenant).map_err(|error| error.to_string())
    }

    fn verify(&self, segment: &SegmentFile) -> Result<(), String> {
        let pin = segment.pin.as_ref();
        let verified = match pin.and_then(|pin| pin.downcast_ref::<Segment>()) {
            Some(stored) => Some(self.store.verify(stored)),
            None => pin.and_then(|pin| pin.downcast_ref::<DerivedSegment>()).map(DerivedSegment::verify),
        };
        match verified {
            Some(true) => Ok(()),
            Some(false) => Err("its checksum is not what was written".to_owned()),
            None => Err("it is not a segment of this store".to_owned()),
        }
    }

    fn quarantine(&self, segment: &SegmentFile, why: &str) -> Result<(), String> {
        let pin = segment.pin.as_ref().and_then(|pin| pin.downcast_ref::<DerivedSegment>());
        let outcome = match pin {
            Some(derived) => self.store.quarantine_derived(derived, why),
            None => self.store.quarantine(segment.id, why),
        };
        outcome.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use arrow::array::RecordBatch;
    use model::ledger::{LedgerDelta, RejectReason};
    use model::time::{Clock, Timestamp};
    use model::value::Value;
    use store::{CompactionConfig, Entry, LogEntryMeta, Metrics, ReplayProgress, StoreConfig};

    use super::*;
    use crate::engine::{Engine, EngineConfig};
    use crate::testing::{SECOND, T0, attributes, batch, texts, times};
    use crate::tests::{ANSWERS, ask, logs, points, spans};

    pub(crate) fn append(store: &Store, table: Table, rows: RecordBatch, rejected: u64) {
        let mut ledger = LedgerDelta { stored: rows.num_rows() as u64, ..LedgerDelta::default() };
        (0..rejected).for_each(|_| ledger.reject(RejectReason::InvalidTraceId));
        let meta = LogEntryMeta { tenant: TenantId::default_tenant(), table, minute: T0, ledger };
        let encoded = store::record::encode(&meta, Some(&rows)).unwrap();
        store.append_group(vec![Entry { meta, batch: Some(rows), encoded }]).unwrap();
    }

    pub(crate) fn open(folder: &std::path::Path) -> (Arc<Store>, Engine) {
        open_at(folder, Clock::manual(Timestamp(T0)))
    }

    fn open_at(folder: &std::path::Path, clock: Clock) -> (Arc<Store>, Engine) {
        let mut registry = prometheus_client::registry::Registry::default();
        let config = StoreConfig {
            clock,
            wal_min_free_bytes: 0,
            compaction: CompactionConfig { inputs_min: 2, ..CompactionConfig::default() },
            ..StoreConfig::new(folder.join("data"))
        };
        let store = Store::open(config, &ReplayProgress::default(), Metrics::new(&mut registry)).unwrap();
        let config = EngineConfig { threads: 2, ..EngineConfig::default() };
        let engine = Engine::new(config, Arc::new(StoreSource::new(Arc::clone(&store)))).unwrap();
        (store, engine)
    }

    #[test]
    fn a_store_gives_the_same_answers_as_batches() {
        let folder = tempfile::tempdir().unwrap();
        let (store, engine) = open(folder.path());
        let tables = [(Table::Spans, spans()), (Table::Logs, logs()), (Table::MetricPoints, points())];
        for (table, rows) in &tables {
            append(&store, *table, rows.slice(0, rows.num_rows() / 2), 2);
        }
        store.flush_all().unwrap();
        for (table, rows) in &tables {
            let half = rows.num_rows() / 2;
            append(&store, *table, rows.slice(half, rows.num_rows() - half), 0);
        }
        append(&store, Table::MetricHistograms, batch(Table::MetricHistograms, 1, &[]), 0);
        append(&store, Table::Profiles, batch(Table::Profiles, 1, &[]), 0);
        for flushed in [false, true] {
            let mut wrong = Vec::new();
            // The other ledger lines are of a single signal; a store has all four.
            let invariant = |sql: &str| !sql.contains("ingest_ledger") || sql.contains("sum(");
            for (sql, expected) in ANSWERS.iter().filter(|(sql, _)| invariant(sql)) {
                match ask(&engine, sql) {
                    Ok(answer) if answer.rows == *expected => {}
                    Ok(answer) => wrong.push(format!("{sql}\n  expected {expected}\n  found    {}", answer.rows)),
                    Err(error) => wrong.push(format!("{sql}\n  {error:?}")),
                }
            }
            assert!(wrong.is_empty(), "flushed {flushed}: {} wrong\n{}", wrong.len(), wrong.join("\n"));
            let ledger = "SELECT sum(received), sum(stored), sum(rejected) FROM ingest_ledger WHERE signal = 'traces'";
            assert_eq!(ask(&engine, ledger).unwrap().rows, "[8,6,2]");
            store.flush_all().unwrap();
        }
    }

    /// Rows whose attributes end up everywhere: promoted and whole, promoted with other kinds beside
    /// them, in lists, twice in a row, or nowhere.
    fn varied_spans(part: usize) -> RecordBatch {
        const ROWS: usize = 300;
        let routes = ["/cart", "/pay", "/", "", "/ü"];
        let mut array = Vec::new();
        model::wire::put_bytes(&mut array, 5, &[]);
        let rows: Vec<Vec<(&str, Value<'_>)>> = (0..ROWS)
            .map(|row| {
                let n = row as i64;
                let mut attributes = vec![("route", Value::String(routes[(row + part) % routes.len()]))];
                attributes.push(match (part, row % 3) {
                    (0, _) | (2, 0) => ("code", Value::Int(200 + n % 7)),
                    (1, _) => ("code", Value::String(if row % 2 == 0 { "500" } else { "lost" })),
                    (_, 1) => ("code", Value::Double(0.1 + n as f64)),
                    _ => ("code", Value::Empty),
                });
                if row % 200 == 7 {
                    attributes.push(("rare", Value::String("needle")));
                }
                attributes.push(("twice", Value::Int(n)));
                attributes.push((
                    "score",
                    if part == 1 { Value::Int(n - 9) } else { Value::Double(f64::from(row as u32) / 8.0) },
                ));
                attributes.push(("flag", if row % 4 == part { Value::Int(1) } else { Value::Bool(row % 2 == 0) }));
                attributes.push(("twice", if row % 5 == 0 { Value::String("last") } else { Value::Int(-n) }));
                if row % 2 == part % 2 {
                    attributes.push(("list", Value::Array(&array)));
                }
                if part == 2 {
                    attributes.push(("late", Value::Bool(row % 3 == 0)));
                }
                attributes
            })
            .collect();
        let rows: Vec<&[(&str, Value<'_>)]> = rows.iter().map(Vec::as_slice).collect();
        let count = rows.len();
        let start = |row: usize| T0 + ((row * 7919) % ROWS + part * ROWS) as i64 * SECOND;
        let names: Vec<String> = (0..count).map(|row| format!("n{}", row + part * ROWS)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let services: Vec<&str> = (0..count).map(|row| ["cart", "pay", "ads"][row % 3]).collect();
        let starts: Vec<i64> = (0..count).map(start).collect();
        batch(
            Table::Spans,
            count,
            &[
                ("name", texts(&names)),
                ("service_name", texts(&services)),
                ("start_time", times(&starts)),
                ("attributes", attributes(&rows)),
            ],
        )
    }

    const VARIED: &[&str] = &[
        "SELECT name FROM spans WHERE attributes['route'] = '/pay' ORDER BY start_time",
        "SELECT count(*) FROM spans WHERE attributes['route'] <> '/pay'",
        "SELECT attributes['route'] AS r, count(*), min(name) FROM spans GROUP BY 1 ORDER BY 1",
        "SELECT name, attributes['code'] FROM spans ORDER BY start_time LIMIT 50",
        "SELECT count(*) FROM spans WHERE attributes['code'] >= 203",
        "SELECT count(*) FROM spans WHERE attributes['code'] = '500'",
        "SELECT count(*) FROM spans WHERE attributes['code'] IS NULL",
        "SELECT attributes['code'] AS c, count(*) FROM spans GROUP BY 1 ORDER BY 1 NULLS FIRST",
        "SELECT name FROM spans WHERE attributes['rare'] = 'needle' ORDER BY name",
        "SELECT count(*) FROM spans WHERE attributes['rare'] IS NOT NULL OR attributes['late']",
        "SELECT name, attributes['twice'] FROM spans ORDER BY start_time DESC LIMIT 20",
        "SELECT count(*) FROM spans WHERE attributes['twice'] = 'last'",
        "SELECT round(sum(attributes['score']), 3), max(attributes['score']) FROM spans WHERE service_name = 'pay'",
        "SELECT count(*) FROM spans WHERE attributes['score'] BETWEEN 3 AND 30.5",
        "SELECT attributes['flag'] AS f, count(*) FROM spans GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM spans WHERE attributes['list'] = '[]'",
        "SELECT count(*) FROM spans WHERE attributes['late']",
        "SELECT count(*) FROM spans WHERE attributes['never'] = 'x' OR attributes['never'] IS NOT NULL",
        "SELECT name, attributes FROM spans ORDER BY start_time LIMIT 30",
        "SELECT attributes_json(attributes) AS j, count(*) FROM spans WHERE attributes['route'] IN ('/', '') GROUP BY 1 ORDER BY 1",
        "SELECT a.name, b.attributes['code'] FROM spans a JOIN spans b ON a.name = b.name AND b.attributes['route'] = '/cart' WHERE a.attributes['twice'] = 'last' ORDER BY 1",
        "SELECT name FROM (SELECT name, attributes['route'] AS r, attributes FROM spans) WHERE r = '/cart' AND attributes['flag'] = '1' ORDER BY 1",
        "SELECT trace_state, dropped_links_count, links, status_message, end_time FROM spans ORDER BY name LIMIT 2",
        "SELECT count(*) FROM spans WHERE trace_state = '' AND dropped_events_count = 0 AND array_length(events) IS NULL",
    ];

    #[test]
    fn layouts_never_change_an_answer() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (memory, in_memory) = open(folders[0].path());
        let (store, engine) = open(folders[1].path());
        for part in 0..3 {
            append(&memory, Table::Spans, varied_spans(part), 0);
            append(&store, Table::Spans, varied_spans(part), 0);
            if part < 2 {
                store.flush_all().unwrap();
            }
        }
        let expected: Vec<String> = VARIED.iter().map(|sql| ask(&in_memory, sql).unwrap().rows).collect();
        for (sql, expected) in VARIED.iter().zip(&expected) {
            assert!(!expected.is_empty(), "a question without an answer proves nothing: {sql}");
        }
        let check = |what: &str| {
            for (sql, expected) in VARIED.iter().zip(&expected) {
                assert_eq!(ask(&engine, sql).unwrap().rows, *expected, "{what}: {sql}");
            }
        };
        check("two segments and memory");
        store.flush_all().unwrap();
        check("three segments");
        while store.compact_once().unwrap() {}
        assert_eq!(store.segments().len(), 1);
        check("one merged segment");
    }

    /// A predicate on a promoted attribute is one on a column: nothing else is read where it does
    /// not hold.
    #[test]
    fn promoted_attributes_are_pruned_by() {
        let folder = tempfile::tempdir().unwrap();
        let (store, engine) = open(folder.path());
        append(&store, Table::Spans, varied_spans(0), 0);
        store.flush_all().unwrap();
        for (route, evidence) in
            [("/zzz", "pushdown_rows_pruned=300"), ("~", "row_groups_pruned_statistics=1 total → 0 matched")]
        {
            let sql = format!("EXPLAIN ANALYZE SELECT name FROM spans WHERE attributes['route'] = '{route}'");
            let plan = ask(&engine, &sql).unwrap().rows;
            assert!(plan.contains(evidence), "{route}: {plan}");
        }
        for (sql, column) in [
            ("SELECT attributes['route'], count(*) FROM spans GROUP BY 1", false),
            ("SELECT attributes FROM spans", true),
        ] {
            let plan = ask(&engine, &format!("EXPLAIN {sql}")).unwrap().rows;
            let scan = plan.lines().find(|line| line.contains("DataSourceExec")).unwrap_or_default();
            assert_eq!(scan.contains("projection=[attributes"), column, "{plan}");
        }
    }

    /// A query that has begun answers from its snapshot, whatever becomes of the segments meanwhile.
    #[test]
    fn a_query_outlives_flushes_merges_and_retention() {
        const PARTS: usize = 12;
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Timestamp(T0));
        let (store, engine) = open_at(folder.path(), clock.clone());
        for part in 0..PARTS {
            append(&store, Table::Spans, varied_spans(part % 3), 0);
            if part % 4 != 3 {
                store.flush_all().unwrap();
            }
        }
        let files = || store.segments().len();
        let before = files();
        let written: Vec<_> = {
            let snapshot = store.snapshot(&TenantId::default_tenant());
            snapshot.table(Table::Spans).segments.iter().map(|segment| segment.path().to_path_buf()).collect()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let tenant = TenantId::default_tenant();
        let limits = crate::engine::Limits::default();
        let sql = format!("SELECT name || '{}', attributes FROM spans", "x".repeat(2_000));
        let rows = runtime.block_on(async {
            let mut output = engine.query(&tenant, &sql, limits).await.unwrap();
            let mut rows = output.next().await.unwrap().unwrap().num_rows();
            store.flush_all().unwrap();
            while store.compact_once().unwrap() {}
            assert!(files() < before, "segments were merged while the query ran");
            assert!(written.iter().all(|path| path.exists()), "what the query reads is still there");
            let Clock::Manual(time) = &clock else { unreachable!("the clock is manual") };
            time.store(T0 + 365 * 24 * 3600 * SECOND, std::sync::atomic::Ordering::SeqCst);
            assert!(store.expire().unwrap() > 0 && files() == 0, "and then past their retention");
            while let Some(batch) = output.next().await {
                rows += batch.unwrap().num_rows();
            }
            rows
        });
        assert_eq!(rows, PARTS * 300);
        assert_eq!(ask(&engine, "SELECT count(*) FROM spans").unwrap().rows, "[0]");
        assert!(written.iter().all(|path| !path.exists()), "files go when the last query that reads them has ended");
    }

    #[test]
    fn a_damaged_segment_of_a_store_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (store, engine) = open(folder.path());
        for part in [0, 3] {
            append(&store, Table::Spans, spans().slice(part, 3), 0);
            store.flush_all().unwrap();
        }
        let snapshot = store.snapshot(&TenantId::default_tenant());
        let bad = snapshot.table(Table::Spans).segments[1].path().to_path_buf();
        drop(snapshot);
        let mut bytes = std::fs::read(&bad).unwrap();
        let length = bytes.len();
        bytes[length - 12..].fill(0xff);
        std::fs::write(&bad, bytes).unwrap();
        let sql = "SELECT name FROM spans WHERE service_name IN ('cart', 'pay') ORDER BY start_time";
        let answer = ask(&engine, sql).unwrap();
        assert_eq!(answer.rows, "[\"GET /cart\"]\n[\"query\"]\n[\"POST /pay\"]");
        let name = bad.file_name().unwrap().to_string_lossy().into_owned();
        assert!(answer.stats.warnings.len() == 1 && answer.stats.warnings[0].contains(&name), "{:?}", answer.stats);
        let again = ask(&engine, "SELECT count(*) FROM spans").unwrap();
        assert_eq!((again.rows.as_str(), again.stats.warnings.len()), ("[3]", 0));
        assert!(!bad.exists(), "its file has moved");
    }
}
