//! The writer against ClickHouse's own engine: types, tables, retention, and exact counts whatever breaks.
//!
//! `CLICKHOUSE_URL` points the tests that stop nothing at a real server; those that do use a process of their own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use clickhouse_store::columns::{columns, lay_out};
use clickhouse_store::{ClickHouseConfig, ClickHouseError, ClickHouseSink, Metrics};
use common::proxy::{Mode, Proxy};
use common::rows::{numbered, rows, show};
use common::{ask, ask_bytes};
use fixtures::parts::clickhouse::{ClickHouse, ClickHouseConfig as Part};
use model::ledger::{LedgerDelta, RejectReason};
use model::signal::Table;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use store::record::encode;
use store::sink::{Cut, Sink, SinkError};
use store::{Entry, LogEntryMeta, ReplayProgress, Store, StoreConfig};
use tokio::runtime::Runtime;

/// A database of its own for each test, so that a real server can be shared.
fn config(url: &str, database: &str) -> ClickHouseConfig {
    let mut config = ClickHouseConfig::new(url);
    config.database = format!("godseye_test_{database}_{}", std::process::id());
    config.retention_ns = [20 * 365 * 86_400_000_000_000; 4];
    // Tests wait for nobody.
    config.timeout_ms = 3_000;
    config.retry_for_ms = 200;
    config
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn now() -> i64 {
    Clock::System.now().0
}

fn open(config: &ClickHouseConfig, runtime: &Runtime) -> Result<Arc<ClickHouseSink>, ClickHouseError> {
    ClickHouseSink::open(config.clone(), runtime.handle().clone(), Metrics::default())
}

fn store_at(dir: &Path, sink: Arc<dyn Sink>) -> Arc<Store> {
    let mut config = StoreConfig::new(dir);
    config.wal_min_free_bytes = 0;
    config.derived = false;
    Store::open_with(config, Some(sink), &ReplayProgress::default(), store::Metrics::default()).unwrap()
}

fn entry(tenant: &str, table: Table, batch: RecordBatch, rejected: u64) -> Entry {
    let mut ledger = LedgerDelta { stored: batch.num_rows() as u64, ..LedgerDelta::default() };
    if rejected > 0 {
        ledger.rejected.insert(RejectReason::KeyTooLong, rejected);
    }
    let minute = Timestamp(now()).floor_minute().0;
    let meta = LogEntryMeta { tenant: TenantId::new(tenant).unwrap(), table, minute, ledger };
    let encoded = encode(&meta, Some(&batch)).unwrap();
    Entry { meta, batch: Some(batch), encoded }
}

/// Rows as sorted texts.
fn shown(batches: &[RecordBatch]) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let mut text = String::new();
            for (column, field) in batch.columns().iter().zip(batch.schema().fields()) {
                text.push_str(field.name());
                text.push('=');
                show(column, row, &mut text);
                text.push('\n');
            }
            rows.push(text);
        }
    }
    rows.sort_unstable();
    rows
}

#[test]
fn every_type_survives_with_its_ends_and_hostile_text() {
    let folder = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(folder.path()).unwrap();
    let config = config(server.url(), "types");
    let runtime = runtime();
    let sink = open(&config, &runtime).unwrap();
    let tenants = [TenantId::new("a").unwrap(), TenantId::new("b").unwrap()];
    for table in Table::ALL {
        // Rows of 1970 are older than any retention.
        ask(server.url(), &format!("ALTER TABLE {}.{table} REMOVE TTL", config.database));
        let batches: Vec<Arc<RecordBatch>> = (0..5).map(|seed| Arc::new(rows(table, 200, seed, now()))).collect();
        let cut = Cut {
            log_id: [7; 16],
            table,
            seq: 1,
            at: Timestamp(now()),
            rows: vec![(&tenants[0], &batches[..2]), (&tenants[1], &batches[2..])],
            ledger: Vec::new(),
        };
        sink.store(&cut, &AtomicBool::new(false)).unwrap();

        let names: Vec<String> = columns(table).iter().map(|(name, _)| format!("`{name}`")).collect();
        let query = format!("SELECT {} FROM {}.{table} FORMAT ArrowStream", names.join(", "), config.database);
        let (status, body) = ask_bytes(server.url(), &query, "output_format_arrow_string_as_string=0");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let found: Vec<RecordBatch> = StreamReader::try_new(&body[..], None).unwrap().map(Result::unwrap).collect();
        let parts: Vec<(&TenantId, RecordBatch)> =
            batches.iter().enumerate().map(|(at, batch)| (&tenants[usize::from(at >= 2)], (**batch).clone())).collect();
        let expected = shown(&[lay_out(table, &parts, cut.at).unwrap()]);
        let found = shown(&found);
        assert_eq!(found.len(), expected.len(), "{table}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{table}");
        }
        let parts =
            format!("SELECT count() FROM system.parts WHERE database = '{}' AND table = '{table}'", config.database);
        assert_eq!(ask(server.url(), &parts), "1", "an insert is one part, so it is taken whole or not at all");
    }
    let query =
        "SELECT attributes.strings['key.a.b.c'] <> '' AS found, resource_attributes['service.name'] = service_name";
    ask(server.url(), &format!("{query} FROM {}.spans LIMIT 1", config.database));
    ask(server.url(), &format!("DROP DATABASE {}", config.database));
}

#[test]
fn tables_are_made_once_follow_the_configuration_and_say_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let server = ClickHouse::start(folder.path()).unwrap();
    let mut config = config(server.url(), "tables");
    let runtime = runtime();
    drop(open(&config, &runtime).unwrap());
    let database = config.database.clone();
    let tables = format!("SELECT name, engine_full FROM system.tables WHERE database = '{database}' ORDER BY name");
    let first = ask(server.url(), &tables);
    drop(open(&config, &runtime).unwrap());
    assert_eq!(ask(server.url(), &tables), first, "a second start changes nothing");
    assert_eq!(ask(server.url(), &format!("SELECT max(version) FROM {database}.godseye_schema")), "2");

    config.retention_ns = [3600 * 1_000_000_000; 4];
    config.deduplication_window = 77;
    drop(open(&config, &runtime).unwrap());
    let spans = format!("SELECT engine_full FROM system.tables WHERE database = '{database}' AND name = 'spans'");
    let spans = ask(server.url(), &spans);
    assert!(spans.contains("toIntervalSecond(3600)"), "{spans}");
    assert!(spans.contains("non_replicated_deduplication_window = 77"), "{spans}");

    // Rows that are past their retention go; a row of the future goes with those it came with.
    let sink = open(&config, &runtime).unwrap();
    let tenant = TenantId::default_tenant();
    let hour = 3_600_000_000_000;
    for (seq, time, kept) in [(1, now() - 2 * hour, 0), (2, now(), 10), (3, i64::MAX, 20)] {
        let batch = [Arc::new(numbered(Table::Spans, 10, seq * 100, time))];
        let rows = vec![(&tenant, &batch[..])];
        let cut = Cut { log_id: [1; 16], table: Table::Spans, seq, at: Timestamp(now()), rows, ledger: Vec::new() };
        sink.store(&cut, &AtomicBool::new(false)).unwrap();
        ask(server.url(), &format!("OPTIMIZE TABLE {database}.spans FINAL"));
        assert_eq!(ask(server.url(), &format!("SELECT count() FROM {database}.spans")), kept.to_string());
    }

    type Case = (&'static str, &'static str);
    let cases: [Case; 3] = [
        ("ALTER TABLE {}.logs DROP COLUMN flags", "`logs` has no column `flags` of type UInt32"),
        (
            "ALTER TABLE {}.spans MODIFY COLUMN dropped_links_count UInt64",
            "column `dropped_links_count` of `spans` is UInt64 and should be UInt32",
        ),
        ("DROP TABLE {}.profiles", "table `profiles` is missing"),
    ];
    for (statement, difference) in cases {
        ask(server.url(), &statement.replace("{}", &database));
        let error = open(&config, &runtime).unwrap_err().to_string();
        assert!(error.contains(difference) && error.contains(&database), "{error}");
    }
    ask(server.url(), &format!("INSERT INTO {database}.godseye_schema (version) VALUES (9)"));
    let error = open(&config, &runtime).unwrap_err();
    assert!(matches!(error, ClickHouseError::NewerSchema { found: 9, supported: 2, .. }), "{error}");
    ask(server.url(), &format!("DROP DATABASE {database}"));
}

#[test]
fn a_user_and_a_password_are_needed_and_a_server_that_is_not_there_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut part = Part::new(folder.path());
    "writer".clone_into(&mut part.user);
    "p@ss:w/rd".clone_into(&mut part.password);
    let server = ClickHouse::start_own(&part).unwrap();
    let runtime = runtime();
    let mut config = config(server.url(), "login");
    let error = open(&config, &runtime).unwrap_err().to_string();
    assert!(error.contains("Code: 516"), "{error}");
    "writer".clone_into(&mut config.user);
    "p@ss:w/rd".clone_into(&mut config.password.0);
    open(&config, &runtime).unwrap();

    // The first host is down; the second has the rows at once.
    config.urls = vec!["http://127.0.0.1:9".to_owned(), server.url().to_owned()];
    assert!(matches!(open(&config, &runtime).unwrap_err(), ClickHouseError::Config { .. }), "hosts need a cluster");
    config.urls.truncate(1);
    open(&config, &runtime).expect("it may come later");
}

/// Does to a cut what a crash does: stops before, or after ClickHouse has the rows and before anybody knows.
#[derive(Debug)]
struct Crashing {
    inner: Arc<ClickHouseSink>,
    /// 0: never; 1: before; 2: after.
    at: AtomicU8,
    seen: Mutex<Vec<(Table, u64)>>,
}

impl Sink for Crashing {
    fn store(&self, cut: &Cut<'_>, stop: &AtomicBool) -> Result<(), SinkError> {
        self.seen.lock().unwrap().push((cut.table, cut.seq));
        match self.at.load(Ordering::SeqCst) {
            0 => self.inner.store(cut, stop),
            1 => Err("crashed before the insert".into()),
            _ => {
                self.inner.store(cut, stop)?;
                Err("crashed after the insert".into())
            }
        }
    }
}

/// What was acknowledged.
#[derive(Debug, Default)]
struct Oracle {
    next: u64,
    by_table: [u64; Table::COUNT],
    rejected: u64,
}

const TABLES: [Table; 3] = [Table::Spans, Table::Logs, Table::MetricPoints];

fn append(store: &Store, oracle: &mut Oracle, rng: &mut SmallRng) {
    let entries: Vec<Entry> = (0..rng.random_range(1..4))
        .map(|_| {
            let table = TABLES[rng.random_range(0..TABLES.len())];
            let count = rng.random_range(1..400);
            let tenant = ["a", "b"][rng.random_range(0..2)];
            let rejected = rng.random_range(0..3);
            let batch = numbered(table, count, oracle.next, now());
            oracle.next += count as u64;
            oracle.by_table[table.index()] += count as u64;
            oracle.rejected += rejected;
            entry(tenant, table, batch, rejected)
        })
        .collect();
    store.append_group(entries).unwrap();
}

/// Each row is there once, and the ledger agrees.
fn check(url: &str, database: &str, oracle: &Oracle, what: &str) {
    for table in TABLES {
        let id = if table == Table::MetricPoints { "series_id" } else { "span_id" };
        let found = ask(url, &format!("SELECT count(), uniqExact({id}) FROM {database}.{table}"));
        let expected = oracle.by_table[table.index()];
        assert_eq!(found, format!("{expected}\t{expected}"), "{what}: {table}");
    }
    let found = ask(
        url,
        &format!("SELECT sumIf(items, reason = ''), sumIf(items, reason <> '') FROM {database}.ingest_ledger"),
    );
    let stored: u64 = oracle.by_table.iter().sum();
    assert_eq!(found, format!("{stored}\t{}", oracle.rejected), "{what}: ledger");
}

#[test]
fn every_acknowledged_row_is_there_once_whatever_breaks() {
    let seed: u64 = std::env::var("GODSEYE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut rng = SmallRng::seed_from_u64(seed);
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut part = Part::new(folder.path());
    let mut server = ClickHouse::start_own(&part).unwrap();
    let proxy = Proxy::start(server.url());
    let runtime = runtime();
    let mut config = config(proxy.url(), "faults");
    config.timeout_ms = 500;
    // So that a cut is several inserts, which may end differently.
    config.insert_rows = 150;
    let database = config.database.clone();
    let mut oracle = Oracle::default();
    let open_all = || {
        let inner = open(&config, &runtime).unwrap();
        let sink = Arc::new(Crashing { inner, at: AtomicU8::new(0), seen: Mutex::default() });
        (store_at(data.path(), Arc::clone(&sink) as Arc<dyn Sink>), sink)
    };
    let (mut store, mut sink) = open_all();
    let (mut failures, mut repetitions) = (0, 0);
    // Each fault once, in a random order, and some again.
    let mut faults: Vec<u8> = (0..9).chain((0..3).map(|_| rng.random_range(0..9))).collect();
    for at in (1..faults.len()).rev() {
        faults.swap(at, rng.random_range(0..=at));
    }
    for (step, fault) in faults.into_iter().enumerate() {
        let what = format!("seed {seed}, step {step}, fault {fault}");
        for _ in 0..rng.random_range(1..5) {
            append(&store, &mut oracle, &mut rng);
        }
        match fault {
            // It is down.
            0 => proxy.set(Mode::Refuse),
            // It answers after we gave up.
            1 => proxy.set(Mode::LoseAnswers),
            // The connection breaks in the middle of a body.
            2 => proxy.set(Mode::CutRequests),
            // It is killed, and comes back.
            3 => server.kill(),
            // It is killed while it takes rows.
            4 => {
                std::thread::scope(|scope| {
                    let flushing = scope.spawn(|| store.flush_all());
                    server.kill();
                    failures += u64::from(flushing.join().unwrap().is_err());
                });
            }
            // It takes no writes.
            5 => {
                server.kill();
                part.readonly = true;
                server = ClickHouse::start_own(&part).unwrap();
                proxy.point_to(server.url());
            }
            // We crash between the cut and the insert, and between the insert and its mark.
            6 | 7 => sink.at.store(fault - 5, Ordering::SeqCst),
            // A column is gone.
            _ => {
                drop(ask(server.url(), &format!("ALTER TABLE {database}.spans RENAME COLUMN flags TO flags_of_others")))
            }
        }
        failures += u64::from(store.flush_all().is_err());
        // More comes while it is broken: acknowledged, since the log takes it.
        append(&store, &mut oracle, &mut rng);
        assert!(store.stats().memtable_rows > 0, "{what}");
        if rng.random_bool(0.5) || matches!(fault, 6 | 7) {
            let before = sink.seen.lock().unwrap().clone();
            drop(store);
            // What heals may also heal later than we start again.
            if matches!(fault, 6 | 7) {
                proxy.set(Mode::Pass);
            } else {
                proxy.set(Mode::Refuse);
            }
            (store, sink) = open_all();
            append(&store, &mut oracle, &mut rng);
            drop(store.flush_all());
            let after = sink.seen.lock().unwrap();
            repetitions += after.iter().filter(|cut| before.contains(cut)).count();
        }
        // It heals, and nobody starts anything again for it.
        proxy.set(Mode::Pass);
        if matches!(fault, 3..=5) {
            server.kill();
            part.readonly = false;
            server = ClickHouse::start_own(&part).unwrap();
            proxy.point_to(server.url());
        }
        if fault == 8 {
            ask(server.url(), &format!("ALTER TABLE {database}.spans RENAME COLUMN flags_of_others TO flags"));
        }
        sink.at.store(0, Ordering::SeqCst);
        let healed = (0..20).any(|_| store.flush_all().is_ok());
        assert!(healed, "{what}: {:?}", store.flush_all());
        assert_eq!(store.stats().memtable_rows, 0, "{what}: memory is empty again");
        check(server.url(), &database, &oracle, &what);
    }
    assert!(failures >= 7, "the faults were felt: {failures}");
    assert!(proxy.lost() > 0, "answers were lost");
    assert!(repetitions > 0, "a start made the same cut again");
    // The log does not keep what ClickHouse has.
    let (records, lost) = (store.stats().wal_bytes, store.recovery().records_lost);
    assert!(records < 200 << 20 && lost == 0, "{records} bytes, {lost} records lost");
}
