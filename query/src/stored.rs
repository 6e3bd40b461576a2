//! The store as a query's [`Source`].
//!
//! Not here: anything but the hand-over. The snapshot, its pins and its kinds are the store's; this
//! names them in the query's words.

use std::sync::Arc;

use model::attributes::{Kind, Kinds};
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;
use store::{AttributeKinds, Segment, Store};

use crate::source::{Container, ObservedKinds, SegmentFile, Snapshot, Source};

/// A [`Store`] to ask questions of.
pub struct StoreSource(Arc<Store>);

impl StoreSource {
    /// Over an open store.
    #[must_use]
    pub const fn new(store: Arc<Store>) -> Self {
        Self(store)
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

impl Source for StoreSource {
    fn snapshot(&self, tenant: &TenantId) -> Snapshot {
        let stored = self.0.snapshot(tenant);
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
                        pin: Some(Arc::clone(segment) as _),
                    }
                })
                .collect();
        }
        snapshot
    }

    fn ledger(&self, tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        self.0.ledger(tenant).map_err(|error| error.to_string())
    }

    fn verify(&self, segment: &SegmentFile) -> Result<(), String> {
        let pinned = segment.pin.as_ref().and_then(|pin| pin.downcast_ref::<Segment>());
        match pinned {
            Some(stored) if self.0.verify(stored) => Ok(()),
            Some(_) => Err("its checksum is not what was written".to_owned()),
            None => Err("it is not a segment of this store".to_owned()),
        }
    }

    fn quarantine(&self, segment: &SegmentFile, why: &str) -> Result<(), String> {
        self.0.quarantine(segment.id, why).map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use model::ledger::{LedgerDelta, RejectReason};
    use model::time::{Clock, Timestamp};
    use store::{Entry, LogEntryMeta, Metrics, ReplayProgress, StoreConfig};

    use super::*;
    use crate::engine::{Engine, EngineConfig};
    use crate::testing::{T0, batch};
    use crate::tests::{ANSWERS, ask, logs, points, spans};

    fn append(store: &Store, table: Table, rows: RecordBatch, rejected: u64) {
        let mut ledger = LedgerDelta { stored: rows.num_rows() as u64, ..LedgerDelta::default() };
        (0..rejected).for_each(|_| ledger.reject(RejectReason::InvalidTraceId));
        let meta = LogEntryMeta { tenant: TenantId::default_tenant(), table, minute: T0, ledger };
        let encoded = store::record::encode(&meta, Some(&rows)).unwrap();
        store.append_group(vec![Entry { meta, batch: Some(rows), encoded }]).unwrap();
    }

    fn open(folder: &std::path::Path) -> (Arc<Store>, Engine) {
        let mut registry = prometheus_client::registry::Registry::default();
        let config = StoreConfig {
            clock: Clock::manual(Timestamp(T0)),
            wal_min_free_bytes: 0,
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
