//! Tests of the derived tables in the store: at any moment they are what a full scan over the
//! acknowledged spans gives, through flushes, restarts, crashes between any two steps, folds, merges
//! and rebuilds.

use model::derived::{DerivedTable, RESOLUTIONS_S};
use model::ledger::LedgerDelta;
use proptest::prelude::*;
use rusqlite::Connection;

use super::tests::{Bench, DAY, entry, tenant};
use super::*;
use crate::derived::testing::{
    Derived, TestSpan, batch, collect, random_spans, scan_edges, scan_metrics, span, without_exemplars,
};
use crate::testing::{EPOCH, HOUR};

fn append(store: &Store, owner: &str, spans: &[TestSpan]) {
    let ledger = LedgerDelta { stored: spans.len() as u64, ..LedgerDelta::default() };
    store.append_group(vec![entry(owner, Table::Spans, Some(batch(spans)), ledger)]).unwrap();
}

/// A derived table as a snapshot has it, at one resolution: rows of longer intervals are in
/// segments only.
fn derived(snapshot: &Snapshot, table: DerivedTable, resolution: i32) -> Derived {
    let tables = snapshot.derived().unwrap();
    let table_snapshot = tables.table(table);
    let mut batches: Vec<RecordBatch> = Vec::new();
    for segment in &table_snapshot.segments {
        batches.extend(segment.read().unwrap().map(|batch| batch.unwrap()));
    }
    if resolution == RESOLUTIONS_S[0] {
        batches.extend(table_snapshot.memory.iter().cloned());
    }
    collect(table, &batches, resolution)
}

/// Asserts that a tenant's derived tables are a full scan over these spans.
fn check(store: &Store, owner: &str, spans: &[TestSpan]) {
    let snapshot = store.snapshot_with_derived(&tenant(owner));
    let stored: usize = snapshot.table(Table::Spans).memory.iter().map(RecordBatch::num_rows).sum();
    let segments = &snapshot.table(Table::Spans).segments;
    let stored = stored as u64 + segments.iter().map(|segment| segment.meta().rows).sum::<u64>();
    assert_eq!(stored, spans.len() as u64, "{owner}");
    let metrics = derived(&snapshot, DerivedTable::SpanMetrics, RESOLUTIONS_S[0]);
    assert_eq!(metrics, scan_metrics(spans), "{owner}");
    let edges = derived(&snapshot, DerivedTable::ServiceEdges, RESOLUTIONS_S[0]);
    assert_eq!(without_exemplars(edges), without_exemplars(scan_edges(spans)), "{owner}");
}

fn count(rows: &Derived) -> i64 {
    rows.values().map(|row| row["count"]).sum()
}

/// Work on the derived tables until there is none.
fn tend(store: &Store) {
    while store.tend_derived().unwrap() {}
}

/// The halves of a call to `pay` and one to a database.
fn calls(trace: u8) -> Vec<TestSpan> {
    vec![
        span((trace, 1), None, "web", "CLIENT", &[("http.request.method", "GET"), ("server.address", "pay.svc")]),
        span((trace, 2), Some(1), "pay", "SERVER", &[("http.request.method", "GET")]),
        span((trace, 3), Some(2), "pay", "CLIENT", &[("db.system.name", "redis")]),
    ]
}

#[test]
fn halves_that_come_apart_meet_whatever_happens_between() {
    type Between = fn(&Bench, Arc<Store>) -> Arc<Store>;
    let nothing: Between = |_, store| store;
    let flush: Between = |_, store| {
        store.flush_all().unwrap();
        store
    };
    let restart: Between = |bench, store| {
        drop(store);
        bench.open()
    };
    let flush_restart: Between = |bench, store| {
        store.flush_all().unwrap();
        drop(store);
        bench.open()
    };
    let seen: Between = |_, store| {
        drop(store.snapshot_with_derived(&tenant("a")));
        store
    };
    for (what, between) in [
        ("nothing", nothing),
        ("a query", seen),
        ("a flush", flush),
        ("a restart", restart),
        ("a flush and a restart", flush_restart),
    ] {
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
            let bench = Bench::new();
            let mut store = bench.open();
            let spans = calls(1);
            for (came, place) in order.into_iter().enumerate() {
                append(&store, "a", &spans[place..=place]);
                let so_far: Vec<_> = order[..=came].iter().map(|place| spans[*place].clone()).collect();
                check(&store, "a", &so_far);
                store = between(&bench, store);
                check(&store, "a", &so_far);
            }
            let found = derived(&store.snapshot_with_derived(&tenant("a")), DerivedTable::ServiceEdges, 10);
            let edges: Vec<_> = found.keys().map(|key| key[..4].join(" ")).collect();
            assert_eq!(edges, ["pay redis db true", "web pay http false"], "{what}, {order:?}");
            check(&store, "b", &[]);
        }
    }
}

#[test]
fn a_late_span_is_counted_when_it_comes_and_in_the_interval_it_began_in() {
    let bench = Bench::new();
    let store = bench.open();
    let mut spans = calls(1);
    append(&store, "a", &spans);
    store.flush_all().unwrap();
    bench.advance(2 * HOUR);
    let late = TestSpan { start: EPOCH - 3 * DAY, ..span((9, 9), None, "web", "SERVER", &[]) };
    append(&store, "a", std::slice::from_ref(&late));
    spans.push(late);
    check(&store, "a", &spans);
    store.flush_all().unwrap();
    check(&store, "a", &spans);
}

#[test]
fn tenants_do_not_see_each_other() {
    let bench = Bench::new();
    let store = bench.open();
    let spans = calls(1);
    // The same ids, the halves of a call at two tenants.
    append(&store, "a", &spans[..1]);
    append(&store, "b", &spans[1..]);
    for flushed in [false, true] {
        check(&store, "a", &spans[..1]);
        check(&store, "b", &spans[1..]);
        check(&store, "c", &[]);
        let found = derived(&store.snapshot_with_derived(&tenant("a")), DerivedTable::ServiceEdges, 10);
        assert!(found.keys().all(|key| key[1] == "pay.svc"), "flushed {flushed}: {found:?}");
        store.flush_all().unwrap();
    }
}

#[test]
fn folds_and_merges_keep_the_sums_at_every_resolution() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.compaction.inputs_min = 2;
    let open = || Store::open(config.clone(), &ReplayProgress::default(), Metrics::default()).unwrap();
    let store = open();
    let mut spans = Vec::new();
    for flush in 0..40_u8 {
        let mut more = calls(flush);
        more.iter_mut().for_each(|span| span.start += i64::from(flush % 7) * 600_000_000_000);
        append(&store, "a", &more);
        spans.extend(more);
        store.flush(Table::Spans).unwrap();
        tend(&store);
    }
    let check_all = |store: &Store| {
        check(store, "a", &spans);
        let snapshot = store.snapshot_with_derived(&tenant("a"));
        for table in DerivedTable::ALL {
            let expected = count(&derived(&snapshot, table, RESOLUTIONS_S[0]));
            let memory = collect(table, &snapshot.derived().unwrap().table(table).memory, RESOLUTIONS_S[0]);
            for resolution in &RESOLUTIONS_S[1..] {
                let longer = derived(&snapshot, table, *resolution);
                assert_eq!(count(&longer) + count(&memory), expected, "{table} {resolution}");
                assert!(longer.len() < 60, "{table} {resolution}: {}", longer.len());
            }
            let live = snapshot.derived().unwrap().table(table);
            assert!(live.segments.len() <= 2, "{table}: {} segments", live.segments.len());
            assert!(live.memory.len() < 8, "{table}: {} batches", live.memory.len());
            for segment in &live.segments {
                assert!(segment.verify());
                let rows: usize = segment.read().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
                assert_eq!(rows as u64, segment.meta().rows);
            }
        }
    };
    check_all(&store);
    drop(store);
    check_all(&open());
    let files = bench.files("segments").iter().filter(|path| !path.to_string_lossy().contains("spans")).count();
    assert!((2..=4).contains(&files), "{files} files");
}

#[test]
fn a_crash_at_any_step_of_the_work_on_derived_rows_changes_nothing() {
    for step in [Step::DerivedBeforeCommit, Step::DerivedAfterCommit] {
        for work in ["fold", "merge", "rebuild"] {
            let bench = Bench::new();
            let mut config = bench.config();
            config.compaction.inputs_min = 2;
            let open = || Store::open(config.clone(), &ReplayProgress::default(), Metrics::default()).unwrap();
            let mut store = open();
            let mut spans = Vec::new();
            for flush in 0..16_u8 {
                append(&store, "a", &calls(flush));
                spans.extend(calls(flush));
                store.flush(Table::Spans).unwrap();
                if (work != "fold" && flush == 7) || (work == "rebuild" && flush == 15) {
                    tend(&store);
                }
                if work == "merge" && flush == 15 {
                    // Both tables are folded, none is merged.
                    assert!(store.tend_derived().unwrap() && store.tend_derived().unwrap());
                }
            }
            if work == "rebuild" {
                store.rebuild_derived(&tenant("a")).unwrap();
            }
            let before = bench.files("segments");
            *lock(&store.fault) = Some(Fault::Stop(step));
            let stopped = loop {
                match store.tend_derived() {
                    Ok(true) => {}
                    Ok(false) => panic!("{work} never came to {step:?}"),
                    Err(error) => break error,
                }
            };
            assert!(stopped.is_stop(), "{stopped}");
            drop(store);
            for _ in 0..2 {
                store = open();
                check(&store, "a", &spans);
                drop(store);
            }
            store = open();
            if step == Step::DerivedBeforeCommit {
                assert_eq!(bench.files("segments"), before, "{work}: what was not committed is gone");
            }
            tend(&store);
            check(&store, "a", &spans);
            assert!(store.snapshot_with_derived(&tenant("a")).derived().unwrap().is_complete());
        }
    }
}

#[test]
fn a_full_disk_puts_work_off_and_loses_nothing() {
    for step in [Step::AfterParquetWriteBeforeRename, Step::AfterManifestBeforePublish, Step::DerivedBeforeCommit] {
        let bench = Bench::new();
        let store = bench.open();
        let mut spans = Vec::new();
        for flush in 0..8_u8 {
            append(&store, "a", &calls(flush));
            spans.extend(calls(flush));
            *lock(&store.fault) = Some(Fault::DiskFull(step));
            if step != Step::DerivedBeforeCommit {
                assert!(store.flush(Table::Spans).unwrap_err().is_retryable());
                check(&store, "a", &spans);
            }
            *lock(&store.fault) = None;
            store.flush(Table::Spans).unwrap();
            check(&store, "a", &spans);
        }
        *lock(&store.fault) = Some(Fault::DiskFull(step));
        if step == Step::DerivedBeforeCommit {
            assert!(store.tend_derived().unwrap_err().is_retryable());
        }
        *lock(&store.fault) = None;
        tend(&store);
        check(&store, "a", &spans);
        drop(store);
        let store = bench.open();
        check(&store, "a", &spans);
        assert_eq!(store.metrics.orphans_removed.get(), 0, "a failed attempt tidied up after itself");
    }
}

/// Forgets in the manifest that anything was derived, as a release before the derived tables or one
/// with other rules leaves it.
fn make_outdated(bench: &Bench, statement: &str) {
    let manifest = Connection::open(bench.dir.path().join("manifest.sqlite")).unwrap();
    manifest.execute_batch(statement).unwrap();
}

#[test]
fn other_rules_and_older_spans_are_derived_anew() {
    for (what, statement, complete) in [
        ("nothing", "", true),
        (
            "other rules",
            "UPDATE derived_tenants SET rules_version = 77; UPDATE derived_deltas SET rules_version = 77;
             UPDATE derived_segments SET rules_version = 77",
            false,
        ),
        ("on demand, before a restart", "UPDATE derived_tenants SET rules_version = 0", false),
        (
            "spans of a release before",
            "DELETE FROM derived_deltas; DELETE FROM derived_segments; UPDATE derived_tenants SET rules_version = 0",
            false,
        ),
    ] {
        let bench = Bench::new();
        let store = bench.open();
        let mut spans = Vec::new();
        for flush in 0..20_u8 {
            append(&store, "a", &calls(flush));
            spans.extend(calls(flush));
            store.flush(Table::Spans).unwrap();
            if flush == 10 {
                tend(&store);
            }
        }
        append(&store, "a", &calls(77));
        spans.extend(calls(77));
        drop(store);
        make_outdated(&bench, statement);
        let store = bench.open();
        let is_complete = |store: &Store| store.snapshot_with_derived(&tenant("a")).derived().unwrap().is_complete();
        assert_eq!(is_complete(&store), complete, "{what}");
        // Spans that come while it runs are not lost, and not doubled.
        let mut steps = 0;
        while store.tend_derived().unwrap() {
            let late = vec![TestSpan { start: EPOCH - DAY, ..span((200, steps), None, "web", "SERVER", &[]) }];
            append(&store, "a", &late);
            spans.extend(late);
            if steps % 2 == 0 {
                store.flush(Table::Spans).unwrap();
            }
            steps += 1;
        }
        assert!(is_complete(&store), "{what}");
        check(&store, "a", &spans);
        assert_eq!(store.metrics.derived_rebuilds.get(), u64::from(!complete), "{what}");
        drop(store);
        let store = bench.open();
        check(&store, "a", &spans);
        assert!(is_complete(&store), "{what}: it is remembered");
    }
}

#[test]
fn a_rebuild_on_demand_finds_calls_whose_halves_came_too_far_apart() {
    let bench = Bench::new();
    let store = bench.open();
    let spans = calls(1);
    append(&store, "a", &spans[..1]);
    store.flush_all().unwrap();
    for part in 1..3 {
        // Two horizons: both generations have turned.
        bench.advance(11 * 60 * 1_000_000_000);
        append(&store, "a", &[span((100 + part, 1), None, "web", "SERVER", &[])]);
        store.flush_all().unwrap();
    }
    bench.advance(11 * 60 * 1_000_000_000);
    append(&store, "a", &spans[1..]);
    store.flush_all().unwrap();
    let paired = |store: &Store| {
        let found = derived(&store.snapshot_with_derived(&tenant("a")), DerivedTable::ServiceEdges, 10);
        found.keys().filter(|key| key[3] == "false").count()
    };
    assert_eq!(paired(&store), 0);
    store.rebuild_derived(&tenant("a")).unwrap();
    assert!(!store.snapshot_with_derived(&tenant("a")).derived().unwrap().is_complete());
    tend(&store);
    assert_eq!(paired(&store), 1);
    let all: Vec<_> =
        spans.into_iter().chain((1..3).map(|part| span((100 + part, 1), None, "web", "SERVER", &[]))).collect();
    check(&store, "a", &all);
    // A tenant without spans has nothing to derive.
    store.rebuild_derived(&tenant("nobody")).unwrap();
    tend(&store);
    check(&store, "nobody", &[]);
}

#[test]
fn turned_off_the_tables_say_that_they_miss_spans_and_turned_on_they_have_them_all() {
    let bench = Bench::new();
    let open = |derived: bool| {
        let config = StoreConfig { derived, ..bench.config() };
        Store::open(config, &ReplayProgress::default(), Metrics::default()).unwrap()
    };
    let is_complete = |store: &Store| store.snapshot_with_derived(&tenant("a")).derived().unwrap().is_complete();
    let mut spans = Vec::new();
    for (part, derived) in [(1, true), (2, false), (3, false), (4, true)] {
        let store = open(derived);
        append(&store, "a", &calls(part));
        spans.extend(calls(part));
        if part != 3 {
            // The third part is in memory and in the log only when the tables are turned on.
            store.flush_all().unwrap();
        }
        while store.tend_derived().unwrap() {}
        assert_eq!(is_complete(&store), derived, "part {part}");
        if derived {
            check(&store, "a", &spans);
        }
    }
}

#[test]
fn a_damaged_derived_segment_is_set_aside_and_made_again() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("missing", |path| std::fs::remove_file(path).unwrap()),
        ("short", |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap()),
        ("overwritten", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[4..400].fill(0xA5);
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        for restart in [true, false] {
            let bench = Bench::new();
            let mut store = bench.open();
            let mut spans = Vec::new();
            for flush in 0..8_u8 {
                append(&store, "a", &calls(flush));
                spans.extend(calls(flush));
                store.flush(Table::Spans).unwrap();
            }
            tend(&store);
            let snapshot = store.snapshot_with_derived(&tenant("a"));
            let segment = Arc::clone(&snapshot.derived().unwrap().table(DerivedTable::SpanMetrics).segments[0]);
            drop(snapshot);
            damage(segment.path());
            if restart {
                drop(store);
                store = bench.open();
            }
            assert!(!segment.verify(), "{what}");
            // A whole footer hides the damage from a start; a query finds it.
            let found = store.quarantine_derived(&segment, "a test").unwrap();
            assert_eq!(found, !restart || what == "overwritten", "{what}");
            tend(&store);
            check(&store, "a", &spans);
            assert!(!store.quarantine_derived(&segment, "again").unwrap());
            drop(store);
            check(&bench.open(), "a", &spans);
        }
    }
}

#[test]
fn a_damaged_segment_of_spans_is_left_out_of_a_rebuild() {
    let bench = Bench::new();
    let store = bench.open();
    for trace in 0..2 {
        append(&store, "a", &calls(trace));
        store.flush_all().unwrap();
    }
    let path = store.snapshot(&tenant("a")).table(Table::Spans).segments[0].path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4..2000].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    store.rebuild_derived(&tenant("a")).unwrap();
    let mut failures = 0;
    loop {
        match store.tend_derived() {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => failures += 1,
        }
        assert!(failures <= 1, "it is set aside at once");
    }
    assert_eq!((failures, store.stats().quarantined), (1, 1));
    check(&store, "a", &calls(1));
}

#[test]
fn derived_rows_go_with_the_traces() {
    let bench = Bench::new();
    let store = bench.open();
    for trace in 0..9 {
        append(&store, "a", &calls(trace));
        store.flush_all().unwrap();
        tend(&store);
    }
    let tables = |store: &Store| {
        let snapshot = store.snapshot_with_derived(&tenant("a"));
        let table = snapshot.derived().unwrap().table(DerivedTable::SpanMetrics).clone();
        (table.segments.len(), table.memory.len())
    };
    assert_eq!(tables(&store), (1, 1));
    bench.advance(7 * DAY);
    store.expire().unwrap();
    assert_eq!(tables(&store), (1, 1));
    let held = store.snapshot_with_derived(&tenant("a"));
    bench.advance(HOUR);
    store.expire().unwrap();
    assert_eq!(tables(&store), (0, 0));
    check(&store, "a", &[]);
    assert_eq!(count(&derived(&held, DerivedTable::SpanMetrics, 10)), 27, "a snapshot stays as it was");
    drop(held);
    assert_eq!(bench.files("segments"), Vec::<PathBuf>::new());
    drop(store);
    check(&bench.open(), "a", &[]);
}

/// What a random run does next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Append(usize),
    Look,
    Flush,
    Compact,
    Tend,
    Rebuild,
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
            Step::DerivedBeforeCommit,
            Step::DerivedAfterCommit,
        ])
    };
    prop_oneof![
        8 => (1_usize..6).prop_map(Act::Append),
        2 => Just(Act::Look),
        6 => Just(Act::Flush),
        1 => Just(Act::Compact),
        2 => Just(Act::Tend),
        1 => Just(Act::Rebuild),
        1 => Just(Act::Reopen),
        2 => step().prop_map(Act::Crash),
        2 => step().prop_map(Act::DiskFull),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_sequence_of_work_and_faults_makes_derived_rows_differ_from_a_scan(
        spans in random_spans(40),
        acts in prop::collection::vec(act(), 1..30),
    ) {
        const OWNERS: [&str; 2] = ["a", "b"];
        let bench = Bench::new();
        let mut config = bench.config();
        config.compaction.inputs_min = 2;
        let open = || Store::open(config.clone(), &ReplayProgress::default(), Metrics::default()).unwrap();
        let mut store = open();
        let mut left = &spans[..];
        let mut sent: [Vec<TestSpan>; 2] = Default::default();
        for act in acts {
            match act {
                Act::Append(rows) => {
                    let (now, later) = left.split_at(rows.min(left.len()));
                    left = later;
                    // Ids mean nothing across tenants: both get some of each trace.
                    for (owner, sent) in OWNERS.iter().zip(&mut sent) {
                        let part: Vec<_> = now.iter().filter(|span| (span.span % 3 == 0) == (*owner == "b")).cloned().collect();
                        if !part.is_empty() {
                            append(&store, owner, &part);
                            sent.extend(part);
                        }
                    }
                }
                Act::Look => {
                    for (owner, sent) in OWNERS.iter().zip(&sent) {
                        check(&store, owner, sent);
                    }
                }
                Act::Flush => store.flush(Table::Spans).unwrap(),
                Act::Compact => drop(store.compact_once().unwrap()),
                Act::Tend => drop(store.tend_derived().unwrap()),
                Act::Rebuild => store.rebuild_derived(&tenant("a")).unwrap(),
                Act::Reopen => {
                    drop(store);
                    store = open();
                }
                Act::Crash(step) => {
                    *lock(&store.fault) = Some(Fault::Stop(step));
                    drop(store.flush(Table::Spans).and_then(|()| store.compact_once()).and_then(|_| store.tend_derived()));
                    drop(store);
                    store = open();
                }
                Act::DiskFull(step) => {
                    *lock(&store.fault) = Some(Fault::DiskFull(step));
                    drop(store.flush(Table::Spans));
                    if !matches!(step, Step::CompactionAfterCommit | Step::DerivedAfterCommit) {
                        drop(store.compact_once());
                        drop(store.tend_derived());
                    }
                    *lock(&store.fault) = None;
                }
            }
        }
        for _ in 0..2 {
            for (owner, sent) in OWNERS.iter().zip(&sent) {
                check(&store, owner, sent);
            }
            store.flush(Table::Spans).unwrap();
            tend(&store);
        }
    }
}

#[test]
fn readers_see_spans_and_their_derived_rows_at_one_instant() {
    let bench = Bench::new();
    let store = bench.open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for trace in 0..60 {
                append(&store, "a", &calls(trace));
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                store.flush_all().unwrap();
                store.compact_once().unwrap();
                store.tend_derived().unwrap();
            }
        });
        while !done.load(Ordering::SeqCst) {
            let snapshot = store.snapshot_with_derived(&tenant("a"));
            let table = snapshot.table(Table::Spans);
            let spans: usize = table.memory.iter().map(RecordBatch::num_rows).sum();
            let spans = spans as u64 + table.segments.iter().map(|segment| segment.meta().rows).sum::<u64>();
            assert_eq!(count(&derived(&snapshot, DerivedTable::SpanMetrics, 10)).cast_unsigned(), spans);
        }
    });
    let all: Vec<_> = (0..60).flat_map(calls).collect();
    check(&store, "a", &all);
}
