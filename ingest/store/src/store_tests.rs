//! Tests of the store as a whole: restarts, crashes between any two steps, full disks, damage.
//!
//! The oracle is the same everywhere: spans are numbered, every acknowledged number must be found
//! exactly once, and the ledger must say how many there are.

use super::*;
use crate::filter::BlockFilters;
use crate::record::encode;
use crate::testing::{EPOCH, HOUR, at_time, numbered_spans, random_batch, rejected, row_multiset, span_numbers};
use model::ledger::RejectReason;
use model::signal::Signal;
use model::time::Clock;
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

const MINUTE: i64 = 60_000_000_000;
pub(super) const DAY: i64 = 24 * HOUR;

/// A data directory with a clock that a test moves.
pub(super) struct Bench {
    pub(super) dir: TempDir,
    clock: Arc<AtomicI64>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Arc::new(AtomicI64::new(EPOCH)) }
    }

    pub(super) fn config(&self) -> StoreConfig {
        let mut config = StoreConfig::new(self.dir.path());
        config.clock = Clock::Manual(Arc::clone(&self.clock));
        config.wal_min_free_bytes = 0;
        config.wal_segment_bytes_max = 64 << 10;
        config.compaction.inputs_min = 4;
        config.memtable_wait_ms = 0;
        config
    }

    pub(super) fn open(&self) -> Arc<Store> {
        Store::open(self.config(), &ReplayProgress::default(), Metrics::default()).unwrap()
    }

    pub(super) fn advance(&self, nanos: i64) {
        self.clock.fetch_add(nanos, Ordering::SeqCst);
    }

    pub(super) fn files(&self, part: &str) -> Vec<PathBuf> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { walk(&entry, out) } else { out.push(entry) }
            }
        }
        let mut out = Vec::new();
        walk(&self.dir.path().join(part), &mut out);
        out.sort();
        out
    }
}

pub(super) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub(super) fn entry(owner: &str, table: Table, batch: Option<RecordBatch>, ledger: LedgerDelta) -> Entry {
    let meta = LogEntryMeta { tenant: tenant(owner), table, minute: EPOCH, ledger };
    let encoded = encode(&meta, batch.as_ref()).unwrap();
    Entry { meta, batch, encoded }
}

/// Spans numbered from `first`, one of them rejected by name.
fn spans(owner: &str, first: u64, rows: usize) -> Entry {
    let ledger = rejected(rows as u64, &[(RejectReason::InvalidSpanId, 1)]);
    entry(owner, Table::Spans, Some(numbered_spans(rows, first)), ledger)
}

fn read_all(snapshot: &Snapshot, table: Table) -> Vec<RecordBatch> {
    let rows = snapshot.table(table);
    let mut batches = rows.memory.clone();
    for segment in rows.segments.iter() {
        batches.extend(crate::segment::read(segment.path(), table, 1000).unwrap().map(|batch| batch.unwrap()));
    }
    batches
}

/// Asserts that a tenant has exactly the spans 0 to `count`, each once, and that the ledger says so.
fn check(store: &Store, owner: &str, count: u64, groups: u64) {
    let snapshot = store.snapshot(&tenant(owner));
    let found = span_numbers(&read_all(&snapshot, Table::Spans));
    assert_eq!(found, (0..count).collect::<Vec<_>>(), "{owner}");
    let expected =
        if groups > 0 { rejected(count, &[(RejectReason::InvalidSpanId, groups)]) } else { LedgerDelta::default() };
    assert_eq!(ledger_total(&store.ledger(&tenant(owner)).unwrap()), expected, "{owner}");
}

#[test]
fn acknowledged_rows_are_visible_at_once_and_after_each_kind_of_restart() {
    let bench = Bench::new();
    let progress = ReplayProgress::default();
    let store = Store::open(bench.config(), &progress, Metrics::default()).unwrap();
    assert!(progress.done());
    check(&store, "a", 0, 0);
    store.append_group(vec![spans("a", 0, 20), spans("b", 0, 5)]).unwrap();
    check(&store, "a", 20, 1);
    drop(store);

    // From the log alone.
    let store = bench.open();
    check(&store, "a", 20, 1);
    check(&store, "b", 5, 1);
    store.append_group(vec![spans("a", 20, 10)]).unwrap();
    store.flush_all().unwrap();
    assert_eq!(store.stats().memtable_rows, 0);
    assert_eq!(store.stats().segments, 2);
    check(&store, "a", 30, 2);
    drop(store);

    // From segments alone, then from both.
    let store = bench.open();
    assert_eq!((store.stats().segments, store.stats().memtable_rows), (2, 0));
    check(&store, "a", 30, 2);
    store.append_group(vec![spans("a", 30, 7)]).unwrap();
    drop(store);
    let store = bench.open();
    check(&store, "a", 37, 3);
    check(&store, "b", 5, 1);
    check(&store, "c", 0, 0);
    assert_eq!(store.tenants().unwrap(), [tenant("a"), tenant("b")]);
}

#[test]
fn every_table_goes_through_log_memtable_and_segment() {
    let bench = Bench::new();
    let batches = Table::ALL.map(|table| random_batch(table, 60, 3));
    let entries =
        || Table::ALL.map(|table| entry("a", table, Some(batches[table.index()].clone()), rejected(60, &[]))).to_vec();
    let store = bench.open();
    store.append_group(entries()).unwrap();
    let check = |store: &Store| {
        let snapshot = store.snapshot(&tenant("a"));
        for table in Table::ALL {
            let expected = row_multiset(table, std::slice::from_ref(&batches[table.index()]));
            assert_eq!(row_multiset(table, &read_all(&snapshot, table)), expected, "{table}");
            let kinds = &snapshot.table(table).kinds;
            assert!(kinds.get(crate::Container::Attributes, "key.0").is_some(), "{table}");
            assert!(kinds.get(crate::Container::Resource, "service.name").is_some(), "{table}");
        }
        let lines = store.ledger(&tenant("a")).unwrap();
        let stored: Vec<_> = lines.iter().map(|line| (line.signal, line.items)).collect();
        assert_eq!(stored, [(Signal::Traces, 60), (Signal::Metrics, 120), (Signal::Logs, 60), (Signal::Profiles, 60)]);
    };
    check(&store);
    drop(store);
    let store = bench.open();
    check(&store);
    store.flush_all().unwrap();
    check(&store);
    drop(store);
    check(&bench.open());
}

#[test]
fn counts_without_rows_are_kept() {
    let bench = Bench::new();
    let store = bench.open();
    let only_counts = rejected(0, &[(RejectReason::KeyTooLong, 4)]);
    store.append_group(vec![entry("a", Table::Logs, None, only_counts.clone())]).unwrap();
    for _ in 0..2 {
        assert_eq!(ledger_total(&store.ledger(&tenant("a")).unwrap()), only_counts);
        store.flush_all().unwrap();
    }
    assert_eq!(store.stats().segments, 0);
    drop(store);
    assert_eq!(ledger_total(&bench.open().ledger(&tenant("a")).unwrap()), only_counts);
}

#[test]
fn a_crash_between_any_two_steps_of_a_flush_loses_and_doubles_nothing() {
    for step in [
        Step::AfterParquetWriteBeforeRename,
        Step::AfterRenameBeforeManifest,
        Step::AfterManifestBeforePublish,
        Step::AfterPublishBeforeWalTruncate,
    ] {
        let bench = Bench::new();
        let store = bench.open();
        store.append_group(vec![spans("a", 0, 10), spans("b", 0, 3)]).unwrap();
        store.flush_all().unwrap();
        store
            .append_group(vec![
                spans("a", 10, 10),
                entry("a", Table::Logs, Some(random_batch(Table::Logs, 4, 1)), LedgerDelta::default()),
            ])
            .unwrap();
        *lock(&store.fault) = Some(Fault::Stop(step));
        assert!(matches!(store.flush(Table::Spans), Err(StoreError::Stopped { .. })), "{step:?}");
        // Acknowledged after the flush began, so not covered by it.
        store.append_group(vec![spans("a", 20, 5)]).unwrap();
        drop(store);

        for _ in 0..2 {
            let store = bench.open();
            check(&store, "a", 25, 3);
            check(&store, "b", 3, 1);
            assert_eq!(store.snapshot(&tenant("a")).table(Table::Logs).memory.len(), 1, "{step:?}");
            let listed: Vec<PathBuf> = lock(&store.state).segments().map(|segment| segment.path().to_owned()).collect();
            let mut listed = listed;
            listed.sort();
            assert_eq!(bench.files("segments"), listed, "{step:?}");
        }
        let store = bench.open();
        store.flush_all().unwrap();
        check(&store, "a", 25, 3);
        drop(store);
        check(&bench.open(), "a", 25, 3);
    }
}

#[test]
fn a_crash_between_any_two_steps_of_a_merge_loses_and_doubles_nothing() {
    for step in [Step::CompactionBeforeCommit, Step::CompactionAfterCommit] {
        let bench = Bench::new();
        let store = bench.open();
        for group in 0..4 {
            store.append_group(vec![spans("a", group * 10, 10)]).unwrap();
            store.flush_all().unwrap();
        }
        *lock(&store.fault) = Some(Fault::Stop(step));
        assert!(matches!(store.compact_once(), Err(StoreError::Stopped { .. })), "{step:?}");
        drop(store);
        let store = bench.open();
        check(&store, "a", 40, 4);
        let merged = step == Step::CompactionAfterCommit;
        assert_eq!(store.stats().segments, if merged { 1 } else { 4 }, "{step:?}");
        assert_eq!(bench.files("segments").len(), store.stats().segments as usize);
        assert_eq!(store.compact_once().unwrap(), !merged);
        check(&store, "a", 40, 4);
    }
}

#[test]
fn a_full_disk_stops_no_reader_and_heals_by_itself() {
    for step in [Step::AfterParquetWriteBeforeRename, Step::AfterRenameBeforeManifest, Step::AfterManifestBeforePublish]
    {
        let bench = Bench::new();
        let store = bench.open();
        store.append_group(vec![spans("a", 0, 10), spans("b", 0, 2)]).unwrap();
        *lock(&store.fault) = Some(Fault::DiskFull(step));
        for _ in 0..3 {
            let error = store.flush_all().unwrap_err();
            assert!(error.is_retryable() && !error.is_fatal(), "{error}");
        }
        assert!(store.metrics.flush_failures.get() >= 3);
        store.append_group(vec![spans("a", 10, 10)]).unwrap();
        let seen = span_numbers(&read_all(&store.snapshot(&tenant("a")), Table::Spans));
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
        *lock(&store.fault) = None;
        store.flush_all().unwrap();
        check(&store, "a", 20, 2);
        check(&store, "b", 2, 1);
        assert_eq!(store.stats().memtable_rows, 0);
        drop(store);
        let store = bench.open();
        check(&store, "a", 20, 2);
        assert_eq!(store.metrics.orphans_removed.get(), 0, "a failed attempt tidied up after itself");
    }
}

#[test]
fn full_memory_refuses_whole_groups_until_a_flush() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.memtable_bytes_max = 60_000;
    let store = Store::open(config, &ReplayProgress::default(), Metrics::default()).unwrap();
    let mut groups = 0;
    let error = loop {
        match store.append_group(vec![spans("a", groups * 10, 10)]) {
            Ok(()) => groups += 1,
            Err(error) => break error,
        }
        assert!(groups < 1000, "memory has no bound");
    };
    assert!(matches!(error, StoreError::MemoryFull { .. }) && error.is_retryable());
    assert!(groups > 0);
    check(&store, "a", groups * 10, groups);
    store.flush_all().unwrap();
    store.append_group(vec![spans("a", groups * 10, 10)]).unwrap();
    check(&store, "a", (groups + 1) * 10, groups + 1);
    drop(store);
    check(&bench.open(), "a", (groups + 1) * 10, groups + 1);
}

#[test]
fn a_group_that_the_log_has_no_room_for_leaves_no_trace() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.wal_min_free_bytes = u64::MAX;
    let store = Store::open(config, &ReplayProgress::default(), Metrics::default()).unwrap();
    let error = store.append_group(vec![spans("a", 0, 10), spans("b", 0, 10)]).unwrap_err();
    assert!(error.is_retryable() && !error.is_fatal(), "{error}");
    check(&store, "a", 0, 0);
    assert_eq!(store.metrics.refused.get_or_create(&[("reason", "disk_full")]).get(), 1);
    drop(store);
    let store = bench.open();
    check(&store, "a", 0, 0);
    store.append_group(vec![spans("a", 0, 10)]).unwrap();
    drop(store);
    check(&bench.open(), "a", 10, 1);
}

/// What a random run does next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Append { owner: usize, rows: usize },
    Flush,
    FlushLogs,
    Compact,
    Reopen,
    Crash(Step),
    DiskFull(Step),
}

fn act() -> impl Strategy<Value = Act> {
    let step = || {
        prop::sample::select(vec![
            Step::AfterParquetWriteBeforeRename,
            Step::AfterRenameBeforeManifest,
            Step::AfterManifestBeforePublish,
            Step::AfterPublishBeforeWalTruncate,
            Step::CompactionBeforeCommit,
            Step::CompactionAfterCommit,
        ])
    };
    prop_oneof![
        6 => (0_usize..2, 1_usize..20).prop_map(|(owner, rows)| Act::Append { owner, rows }),
        3 => Just(Act::Flush),
        1 => Just(Act::FlushLogs),
        2 => Just(Act::Compact),
        1 => Just(Act::Reopen),
        2 => step().prop_map(Act::Crash),
        2 => step().prop_map(Act::DiskFull),
    ]
}

/// So many rows were read from the one partition of an owner's source.
fn position(owner: &str, count: u64) -> Position {
    Position { source: owner.into(), partition: 7, next: i64::try_from(count).unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_sequence_of_work_and_faults_loses_or_doubles_a_row(acts in prop::collection::vec(act(), 1..25)) {
        const OWNERS: [&str; 2] = ["a", "b"];
        let bench = Bench::new();
        let mut config = bench.config();
        config.compaction.inputs_min = 2;
        let open = || Store::open(config.clone(), &ReplayProgress::default(), Metrics::default()).unwrap();
        let mut store = open();
        let mut spans_of = [(0, 0); 2];
        let mut logs = 0;
        for act in acts {
            match act {
                Act::Append { owner, rows } => {
                    let (count, groups) = &mut spans_of[owner];
                    let log = entry(OWNERS[owner], Table::Logs, Some(random_batch(Table::Logs, 1, 1)), LedgerDelta::default());
                    let mut entries = vec![spans(OWNERS[owner], *count, rows), log];
                    *count += rows as u64;
                    store.append_group_at(&mut entries, &[position(OWNERS[owner], *count)]).unwrap();
                    prop_assert!(entries.is_empty());
                    *groups += 1;
                    logs += 1;
                }
                Act::Flush => store.flush(Table::Spans).unwrap(),
                Act::FlushLogs => store.flush(Table::Logs).unwrap(),
                Act::Compact => drop(store.compact_once().unwrap()),
                Act::Reopen => {
                    drop(store);
                    store = open();
                }
                Act::Crash(step) => {
                    *lock(&store.fault) = Some(Fault::Stop(step));
                    drop(store.flush(Table::Spans).and_then(|()| store.compact_once()));
                    drop(store);
                    store = open();
                }
                Act::DiskFull(step) => {
                    *lock(&store.fault) = Some(Fault::DiskFull(step));
                    drop(store.flush(Table::Spans));
                    if step != Step::CompactionAfterCommit {
                        drop(store.compact_once());
                    }
                    *lock(&store.fault) = None;
                    // The ledger is exact again once the flush was repeated.
                    store.flush(Table::Spans).unwrap();
                }
            }
            for (owner, (count, groups)) in OWNERS.iter().zip(spans_of) {
                check(&store, owner, count, groups);
                let next = (groups > 0).then(|| position(owner, count).next);
                prop_assert_eq!(store.position(owner, 7), next);
            }
            let found: usize = OWNERS.iter().map(|owner| {
                let batches = read_all(&store.snapshot(&tenant(owner)), Table::Logs);
                batches.iter().map(RecordBatch::num_rows).sum::<usize>()
            }).sum();
            prop_assert_eq!(found, logs);
        }
    }
}

#[test]
fn a_batch_of_another_schema_is_refused_before_the_log() {
    let bench = Bench::new();
    let store = bench.open();
    let mut wrong = spans("a", 0, 3);
    wrong.batch = Some(random_batch(Table::Logs, 3, 1));
    assert!(matches!(store.append_group(vec![spans("a", 0, 3), wrong]), Err(StoreError::SchemaMismatch { .. })));
    check(&store, "a", 0, 0);
    drop(store);
    check(&bench.open(), "a", 0, 0);
}

#[test]
fn the_log_shrinks_once_its_rows_are_in_segments() {
    let bench = Bench::new();
    let store = bench.open();
    store
        .append_group(vec![entry("a", Table::Logs, Some(random_batch(Table::Logs, 10, 1)), LedgerDelta::default())])
        .unwrap();
    for group in 0..40 {
        store.append_group(vec![spans("a", group * 100, 100)]).unwrap();
    }
    let before = store.stats().wal_bytes;
    store.flush(Table::Spans).unwrap();
    assert_eq!(store.stats().wal_bytes, before, "the logs at its front are unflushed");
    store.flush(Table::Logs).unwrap();
    let after = store.stats().wal_bytes;
    assert!(after * 2 < before, "{after} of {before}");
    drop(store);
    check(&bench.open(), "a", 4000, 40);
}

#[test]
fn a_log_that_vanished_hands_out_no_old_numbers() {
    let bench = Bench::new();
    let store = bench.open();
    store
        .append_group(vec![entry("a", Table::Logs, Some(random_batch(Table::Logs, 1, 1)), LedgerDelta::default())])
        .unwrap();
    for group in 0..5 {
        store.append_group(vec![spans("a", group * 10, 10)]).unwrap();
    }
    store.flush(Table::Spans).unwrap();
    drop(store);
    std::fs::remove_dir_all(bench.dir.path().join("wal")).unwrap();
    let store = bench.open();
    check(&store, "a", 50, 5);
    store.append_group(vec![spans("a", 50, 10)]).unwrap();
    drop(store);
    check(&bench.open(), "a", 60, 6);
}

#[test]
fn damaged_segments_are_named_and_set_aside() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("cannot be opened", |path| std::fs::remove_file(path).unwrap()),
        ("has 100 bytes", |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap()),
        ("has no readable footer", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let end = bytes.len();
            bytes[end - 4..].fill(0);
            std::fs::write(path, bytes).unwrap();
        }),
        ("has 0 bytes", |path| std::fs::write(path, b"").unwrap()),
    ];
    for (what, damage) in damages {
        let bench = Bench::new();
        let store = bench.open();
        store.append_group(vec![spans("a", 0, 10)]).unwrap();
        store.flush_all().unwrap();
        store.append_group(vec![spans("a", 10, 10)]).unwrap();
        store.flush_all().unwrap();
        drop(store);
        let first = bench.files("segments")[0].clone();
        damage(&first);
        for _ in 0..2 {
            let store = bench.open();
            assert_eq!((store.stats().segments, store.stats().quarantined), (1, 1), "{what}");
            let found = span_numbers(&read_all(&store.snapshot(&tenant("a")), Table::Spans));
            assert_eq!(found, (10..20).collect::<Vec<_>>(), "{what}");
            assert!(!first.exists());
            assert_eq!(bench.files("quarantine").len(), usize::from(what != "cannot be opened"), "{what}");
        }
        let manifest = Connection::open(bench.dir.path().join("manifest.sqlite")).unwrap();
        let reason: String = manifest
            .query_row("SELECT reason FROM segments WHERE state = 'quarantined'", [], |row| row.get(0))
            .unwrap();
        assert!(reason.contains(what), "{reason}");
    }
}

#[test]
fn a_flipped_bit_is_found_by_the_checksum_and_set_aside_at_work() {
    let bench = Bench::new();
    let store = bench.open();
    for group in 0..4 {
        store.append_group(vec![spans("a", group * 100, 100)]).unwrap();
        store.flush_all().unwrap();
    }
    let snapshot = store.snapshot(&tenant("a"));
    let segments = &snapshot.table(Table::Spans).segments;
    assert!(segments.iter().all(|segment| store.verify(segment)));
    let damaged = &segments[1];
    let mut bytes = std::fs::read(damaged.path()).unwrap();
    bytes[4..400].fill(0xA5);
    std::fs::write(damaged.path(), bytes).unwrap();
    assert!(!store.verify(damaged));

    // A merge that trips over it sets it aside and goes on without it.
    assert!(store.compact_once().is_err());
    assert_eq!((store.stats().segments, store.stats().quarantined), (3, 1));
    assert!(!store.quarantine(damaged.meta().id, "again").unwrap());
    bench.advance(DAY);
    assert!(store.compact_once().unwrap());
    let found = span_numbers(&read_all(&store.snapshot(&tenant("a")), Table::Spans));
    assert_eq!(found, (0..100).chain(200..400).collect::<Vec<_>>());
    assert_eq!(bench.files("quarantine").len(), 1);
    drop(snapshot);
    drop(store);
    assert_eq!(bench.open().stats().quarantined, 1);
}

#[test]
fn a_record_that_makes_no_sense_is_set_aside_and_counted() {
    let bench = Bench::new();
    let store = bench.open();
    store.append_group(vec![spans("a", 0, 10)]).unwrap();
    let mut senseless = spans("a", 10, 10);
    senseless.encoded.truncate(60);
    store.append_group(vec![spans("a", 10, 5), senseless]).unwrap();
    drop(store);
    let store = bench.open();
    let found = span_numbers(&read_all(&store.snapshot(&tenant("a")), Table::Spans));
    assert_eq!(found, (0..15).collect::<Vec<_>>());
    assert_eq!(store.metrics.wal_records_undecodable.get(), 1);
    assert_eq!(bench.files("quarantine").len(), 1);
}

#[test]
fn files_that_nobody_lists_go_and_files_that_are_not_ours_stay() {
    let bench = Bench::new();
    let store = bench.open();
    store.append_group(vec![spans("a", 0, 10)]).unwrap();
    store.flush_all().unwrap();
    drop(store);
    let dir = bench.dir.path().join("segments/a/spans");
    for name in ["00000000000000aa.parquet", "00000000000000ab.tmp", "notes.txt"] {
        std::fs::write(dir.join(name), b"x").unwrap();
    }
    let store = bench.open();
    assert_eq!(store.metrics.orphans_removed.get(), 2);
    let names: Vec<_> = bench.files("segments").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"notes.txt".into()));
    check(&store, "a", 10, 1);
    drop(store);
    for name in ["manifest.sqlite", "manifest.sqlite-wal", "manifest.sqlite-shm"] {
        remove_quietly(&bench.dir.path().join(name));
    }
    let error = Store::open(bench.config(), &ReplayProgress::default(), Metrics::default()).unwrap_err();
    assert!(matches!(error, StoreError::ManifestMissing { .. }), "{error}");
    assert_eq!(bench.files("segments").len(), 2);
}

#[test]
fn a_second_store_on_the_directory_is_refused() {
    let bench = Bench::new();
    let store = bench.open();
    let error = Store::open(bench.config(), &ReplayProgress::default(), Metrics::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { holder: Some(_), .. }), "{error}");
    drop(store);
    bench.open();
}

#[test]
fn a_snapshot_stays_as_it_was_through_flush_merge_and_retention() {
    let bench = Bench::new();
    let store = bench.open();
    for group in 0..4 {
        store.append_group(vec![spans("a", group * 10, 10)]).unwrap();
        if group < 3 {
            store.flush_all().unwrap();
        }
    }
    let snapshot = store.snapshot(&tenant("a"));
    let before = row_multiset(Table::Spans, &read_all(&snapshot, Table::Spans));
    store.append_group(vec![spans("a", 40, 10)]).unwrap();
    store.flush_all().unwrap();
    assert!(store.compact_once().unwrap());
    assert!(!store.compact_once().unwrap());
    assert_eq!(store.stats().segments, 1);
    assert_eq!(bench.files("segments").len(), 4, "three of the snapshot, one new");
    check(&store, "a", 50, 5);
    assert_eq!(store.segments()[0].level, 1);

    bench.advance(8 * DAY);
    assert_eq!(store.expire().unwrap(), 1);
    assert_eq!(store.snapshot(&tenant("a")).table(Table::Spans).segments.len(), 0);
    assert_eq!(row_multiset(Table::Spans, &read_all(&snapshot, Table::Spans)), before);
    drop(snapshot);
    assert_eq!(bench.files("segments"), Vec::<PathBuf>::new());
    // The ledger outlives the rows.
    assert_eq!(ledger_total(&store.ledger(&tenant("a")).unwrap()).stored, 50);
    bench.advance(90 * DAY);
    assert_eq!(store.expire().unwrap(), 0);
    assert_eq!(store.ledger(&tenant("a")).unwrap(), []);
}

#[test]
fn a_row_from_the_far_future_goes_with_its_neighbours() {
    let bench = Bench::new();
    let store = bench.open();
    let batch = at_time(Table::Logs, &random_batch(Table::Logs, 3, 1), i64::MAX);
    store.append_group(vec![entry("a", Table::Logs, Some(batch), LedgerDelta::default())]).unwrap();
    store.flush_all().unwrap();
    bench.advance(7 * DAY);
    assert_eq!(store.expire().unwrap(), 0);
    bench.advance(1);
    assert_eq!(store.expire().unwrap(), 1);
}

#[test]
fn what_is_due_is_flushed_and_nothing_else() {
    let now = Timestamp(EPOCH);
    let mut config = StoreConfig::new("/nowhere");
    config.memtable_flush_interval_ms = 1000;
    config.memtable_flush_bytes = 100;
    config.memtable_bytes_max = 400;
    config.wal_bytes_max = 1000;
    let fact = |table, bytes, age_ms: i64| FlushFacts {
        table,
        frozen: false,
        bytes,
        first_seq: Some(1_000_000 - age_ms.unsigned_abs()),
        since: Some(now.plus_nanos(-age_ms * 1_000_000)),
    };
    let empty = FlushFacts { table: Table::Profiles, frozen: false, bytes: 0, first_seq: None, since: None };
    let frozen = FlushFacts { frozen: true, ..empty };
    let (logs, spans) = (Table::Logs, Table::Spans);
    for (what, facts, memory, wal, expected) in [
        ("nothing", vec![empty], 0, 0, vec![]),
        ("young and small", vec![fact(spans, 10, 500)], 10, 0, vec![]),
        ("old", vec![fact(spans, 10, 1000), fact(logs, 1, 999)], 10, 0, vec![spans]),
        ("large", vec![fact(spans, 100, 1)], 100, 0, vec![spans]),
        ("from the future", vec![fact(spans, 10, -1)], 10, 0, vec![spans]),
        ("failed before", vec![frozen], 0, 0, vec![Table::Profiles]),
        ("memory is short", vec![fact(spans, 10, 1), fact(logs, 20, 1)], 300, 0, vec![logs]),
        ("memory is not short", vec![fact(spans, 10, 1), fact(logs, 20, 1)], 299, 0, vec![]),
        ("memory is short of what is frozen", vec![empty], 400, 0, vec![]),
        ("the log is long", vec![fact(spans, 10, 5), fact(logs, 20, 9)], 30, 1001, vec![logs]),
        ("the log is not long", vec![fact(spans, 10, 5), fact(logs, 20, 9)], 30, 1000, vec![]),
        ("no table twice", vec![fact(spans, 100, 1000)], 400, 1001, vec![spans]),
    ] {
        assert_eq!(due(&facts, memory, wal, now, &config), expected, "{what}");
    }
}

#[test]
fn maintenance_flushes_by_age_merges_and_ends_when_told() {
    let bench = Bench::new();
    let store = bench.open();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| store.maintain(&stop));
        for group in 0..8 {
            store.append_group(vec![spans("a", group * 10, 10)]).unwrap();
            bench.advance(31 * 1_000_000_000);
            while store.stats().memtable_rows > 0 {
                store.wake();
                std::thread::yield_now();
            }
        }
        while store.metrics.compactions.get() < 2 {
            store.wake();
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Release);
        store.wake();
    });
    assert!(store.stats().segments <= 2);
    check(&store, "a", 80, 8);
}

#[test]
fn readers_see_each_row_once_while_everything_moves() {
    let bench = Bench::new();
    let store = bench.open();
    const GROUPS: u64 = 60;
    let acknowledged = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for group in 0..GROUPS {
                store.append_group(vec![spans("a", group * 5, 5)]).unwrap();
                acknowledged.store((group + 1) * 5, Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                store.flush_all().unwrap();
                store.compact_once().unwrap();
            }
        });
        while !done.load(Ordering::SeqCst) {
            let least = acknowledged.load(Ordering::SeqCst);
            let found = span_numbers(&read_all(&store.snapshot(&tenant("a")), Table::Spans));
            assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
            assert!(found.len() as u64 >= least, "an acknowledged row is missing");
            let total = ledger_total(&store.ledger(&tenant("a")).unwrap());
            assert!(total.stored >= least && total.stored <= GROUPS * 5, "{total:?}");
            assert_eq!(total.stored, total.rejected_total() * 5, "half a flush was counted");
        }
    });
    check(&store, "a", GROUPS * 5, GROUPS);
    drop(store);
    check(&bench.open(), "a", GROUPS * 5, GROUPS);
}

#[test]
fn metrics_have_their_names() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::new(&mut registry);
    let bench = Bench::new();
    let store = Store::open(bench.config(), &ReplayProgress::default(), metrics).unwrap();
    store.append_group(vec![spans("a", 0, 3)]).unwrap();
    store.flush_all().unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "godseye_store_flushes_total{table=\"spans\"} 1",
        "godseye_store_segments{table=\"spans\"} 1",
        "godseye_store_memtable_rows 0",
        "godseye_wal_commit_seconds_count 1",
        "godseye_wal_group_entries_sum 1.0",
        "godseye_wal_segments 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[test]
fn minutes_of_the_ledger_stay_apart() {
    let bench = Bench::new();
    let store = bench.open();
    for minute in [0, MINUTE, 0] {
        let mut entry = entry("a", Table::Logs, None, rejected(2, &[]));
        entry.meta.minute = minute;
        entry.encoded = encode(&entry.meta, None).unwrap();
        store.append_group(vec![entry]).unwrap();
        store.flush_all().unwrap();
    }
    let lines: Vec<_> = store.ledger(&tenant("a")).unwrap().iter().map(|line| (line.minute, line.items)).collect();
    assert_eq!(lines, [(0, 4), (MINUTE, 2)]);
}

/// A data directory as the code of each format version wrote it: every table has sixty rows in a
/// segment (since version 3 a merged one) and sixty in the log, and its rows are in a file of their
/// own beside it (I12).
/// `GODSEYE_WRITE_GOLDEN=DIR` writes that of the newest version.
#[test]
fn every_format_version_stays_readable() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    if let Some(new) = std::env::var_os("GODSEYE_WRITE_GOLDEN") {
        write_golden(Path::new(&new));
    }
    for version in 1..=SEGMENT_FORMAT_VERSION {
        check_golden(&golden.join(format!("v{version}")), version);
    }
}

fn write_golden(golden: &Path) {
    let bench = Bench::new();
    let store = bench.open();
    for seed in 0..6 {
        for table in Table::ALL {
            store
                .append_group(vec![entry("golden", table, Some(random_batch(table, 20, seed)), rejected(20, &[]))])
                .unwrap();
        }
        if seed == 1 || seed == 2 {
            store.flush_all().unwrap();
        }
        if seed == 2 {
            bench.advance(2 * DAY);
            while store.compact_once().unwrap() {}
        }
    }
    std::fs::create_dir_all(golden).unwrap();
    let snapshot = store.snapshot(&tenant("golden"));
    for table in Table::ALL {
        let file = std::fs::File::create(golden.join(format!("{table}.arrow"))).unwrap();
        let mut writer = arrow_ipc::writer::FileWriter::try_new(file, &schema(table)).unwrap();
        let rows = arrow::compute::concat_batches(&schema(table), &read_all(&snapshot, table)).unwrap();
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
    }
    drop((snapshot, store));
    copy_dir(bench.dir.path(), &golden.join("data"));
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn check_golden(golden: &Path, version: u32) {
    let bench = Bench::new();
    copy_dir(&golden.join("data"), bench.dir.path());
    let store = bench.open();
    assert!(store.recovery().is_clean());
    let check = |what: &str| {
        let snapshot = store.snapshot(&tenant("golden"));
        for table in Table::ALL {
            let file = std::fs::File::open(golden.join(format!("{table}.arrow"))).unwrap();
            let reader = arrow_ipc::reader::FileReader::try_new(file, None).unwrap();
            let expected: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
            let found = row_multiset(table, &read_all(&snapshot, table));
            assert_eq!(
                (found.len(), found),
                (120, row_multiset(table, &expected)),
                "version {version}, {what}: {table}"
            );
        }
    };
    check("as it was");
    assert!(store.segments().iter().all(|segment| segment.format_version == version));
    let filters = |table: Table| {
        let snapshot = store.snapshot(&tenant("golden"));
        BlockFilters::open(snapshot.table(table).segments[0].path()).unwrap()
    };
    for table in [Table::Spans, Table::Logs] {
        assert_eq!(filters(table).is_some(), version >= 3, "version {version}: {table}");
    }
    store.flush_all().unwrap();
    check("flushed");
    // Old segments are merged with new ones.
    bench.advance(2 * DAY);
    while store.compact_once().unwrap() {}
    check("merged");
    let versions: Vec<u32> = store.segments().iter().map(|segment| segment.format_version).collect();
    assert_eq!(versions, [SEGMENT_FORMAT_VERSION; Table::COUNT]);
}

/// A cut as a sink sees it: its name, when it was cut, and its spans.
type Seen = ((Table, u64), (Timestamp, Vec<u64>));

/// Keeps what it is given under the cut's name, and fails when told to: before it keeps it, or after.
#[derive(Debug, Default)]
struct Keeper {
    kept: Mutex<BTreeMap<(Table, u64), Vec<u64>>>,
    attempts: Mutex<Vec<Seen>>,
    fails: Mutex<Option<bool>>,
}

impl Sink for Keeper {
    fn store(&self, cut: &Cut<'_>, _stop: &AtomicBool) -> Result<(), crate::sink::SinkError> {
        let batches = cut.rows.iter().flat_map(|(_, batches)| batches.iter().map(|batch| &**batch));
        let rows: Vec<u64> = if cut.table == Table::Spans {
            span_numbers(batches)
        } else {
            vec![batches.map(|batch| batch.num_rows() as u64).sum()]
        };
        let name = (cut.table, cut.seq);
        lock(&self.attempts).push((name, (cut.at, rows.clone())));
        let fails = *lock(&self.fails);
        if fails != Some(true) {
            lock(&self.kept).insert(name, rows);
        }
        fails.map_or(Ok(()), |_| Err("told to".into()))
    }
}

#[test]
fn a_sink_gets_every_cut_again_as_it_was_until_it_has_it() {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..8 {
        let bench = Bench::new();
        let mut rng = SmallRng::seed_from_u64(seed);
        let keeper = Arc::new(Keeper::default());
        let open = || {
            let sink = Some(Arc::clone(&keeper) as Arc<dyn Sink>);
            let mut config = bench.config();
            config.derived = false;
            let store = Store::open_with(config, sink, &ReplayProgress::default(), Metrics::default()).unwrap();
            assert!(store.recovery().is_clean(), "seed {seed}: {:?}", store.recovery());
            store
        };
        let mut store = open();
        let (mut spans_next, mut logs_rows) = (0, 0);
        for _ in 0..40 {
            bench.advance(MINUTE);
            match rng.random_range(0..4) {
                0 | 1 => {
                    let rows = rng.random_range(1..30);
                    let mut entries = vec![spans("a", spans_next, rows)];
                    spans_next += rows as u64;
                    if rng.random() {
                        let rows = rng.random_range(1..30);
                        logs_rows += rows as u64;
                        let counts = LedgerDelta { stored: rows as u64, ..LedgerDelta::default() };
                        entries.push(entry("b", Table::Logs, Some(random_batch(Table::Logs, rows, seed)), counts));
                    }
                    store.append_group(entries).unwrap();
                }
                2 => {
                    *lock(&keeper.fails) = [None, Some(true), Some(false)][rng.random_range(0..3)];
                    drop(store.flush_all());
                    *lock(&keeper.fails) = None;
                }
                _ => {
                    let steps = [
                        Step::AfterCutBeforeSink,
                        Step::AfterRenameBeforeManifest,
                        Step::AfterManifestBeforePublish,
                        Step::AfterPublishBeforeWalTruncate,
                    ];
                    *lock(&store.fault) = Some(Fault::Stop(steps[rng.random_range(0..steps.len())]));
                    drop(store.flush_all());
                    drop(store);
                    store = open();
                }
            }
        }
        store.append_group(vec![spans("a", spans_next, 1)]).unwrap();
        spans_next += 1;
        *lock(&keeper.fails) = Some(false);
        assert!(store.flush_all().is_err());
        assert!(
            store.problems().contains(&"cannot store rows of `spans`: told to".to_owned()),
            "{:?}",
            store.problems()
        );
        *lock(&keeper.fails) = None;
        store.flush_all().unwrap();
        assert_eq!((store.stats().memtable_rows, store.problems()), (0, Vec::new()));
        let kept = lock(&keeper.kept);
        let of =
            |table| kept.iter().filter(move |(name, _)| name.0 == table).flat_map(|(_, rows)| rows.iter().copied());
        let mut found: Vec<u64> = of(Table::Spans).collect();
        found.sort_unstable();
        assert_eq!(found, (0..spans_next).collect::<Vec<_>>(), "seed {seed}: each span once");
        assert_eq!(of(Table::Logs).sum::<u64>(), logs_rows, "seed {seed}: logs");
        let attempts = lock(&keeper.attempts);
        for (name, what) in attempts.iter() {
            let first = attempts.iter().find(|(other, _)| other == name).map(|(_, what)| what);
            assert_eq!(first, Some(what), "seed {seed}: {name:?} is what it was at first");
        }
        let names: BTreeSet<_> = attempts.iter().map(|(name, _)| name).collect();
        assert!(names.len() < attempts.len(), "seed {seed}: something was tried again");
    }
}
