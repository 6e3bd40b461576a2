//! What `span_metrics` and `service_edges` cost: counting spans as they come in, what a day of the
//! shop takes on disk, and deriving it anew.
//!
//! CPU time of one thread: `cargo bench -p ingest --bench derive [-- SPANS]`, SPANS being how much of
//! the day is played (a day at the shop's density is 10 million). The whole process is measured by
//! `benches/pipeline.py`.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::sync::Arc;

use fixtures::batches;
use fixtures::shop::{Shop, ShopConfig};
use ingest::decode::{Decoder, OpenGate};
use model::derived::{DerivedTable, RESOLUTIONS_S};
use model::ledger::LedgerDelta;
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use model::time::Timestamp;
use prost::Message as _;
use store::{Entry, LogEntryMeta, ReplayProgress, Store, StoreConfig};

/// Spans of a memtable that is flushed for its size.
const SPANS_PER_FLUSH: usize = 96 * 1024;

/// Spans of the busy hour that counting is measured with: more than the index holds.
const SPANS_COUNTED: usize = 15 * SPANS_PER_FLUSH;

/// Requests of a group.
const GROUP_REQUESTS: usize = 16;

/// Event time of the first item: 2026-11-01.
const START_NS: u64 = 1_793_491_200_000_000_000;

/// One minute of the shop.
const MINUTE_NS: u64 = 60_000_000_000;

/// Requests a second that make ten million spans of a day.
const REQUESTS_PER_SECOND: f64 = 8.9;

/// The shop's spans, minute by minute, as request bodies.
fn shop(requests_per_second: f64) -> impl Iterator<Item = Vec<Vec<u8>>> {
    let config = ShopConfig { requests_per_second, daily_rhythm: false, ..ShopConfig::default() };
    let mut shop = Shop::new(config);
    (0..).map(move |minute| {
        let from = START_NS + minute * MINUTE_NS;
        let played = shop.tick(from, from + MINUTE_NS);
        played.traces.iter().map(|request| request.encode_to_vec()).collect()
    })
}

/// CPU time of this thread, nanoseconds: what others do on the machine is not in it.
fn cpu_ns() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells a thread's CPU time");
    times.split(' ').next().and_then(|time| time.parse().ok()).expect("its first number is nanoseconds")
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = cpu_ns();
    let done = work();
    (done, cpu_ns() - before)
}

/// A store in a folder that goes with it.
struct Bench {
    store: Arc<Store>,
    tenant: TenantId,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut config = StoreConfig::new(dir.path());
        config.memtable_bytes_max = u64::MAX;
        config.compaction.inputs_min = 2;
        let store = Store::open(config, &ReplayProgress::default(), store::Metrics::default()).expect("it is new");
        Self { store, tenant: TenantId::default_tenant(), _dir: dir }
    }

    /// Appends requests as one group; how many spans they were.
    fn append<B: AsRef<[u8]>>(&self, bodies: &[B]) -> usize {
        let mut decoder = Decoder::default();
        for body in bodies {
            decoder.decode(Signal::Traces, body.as_ref(), Timestamp(0), &mut OpenGate).expect("the fixture is valid");
        }
        let mut spans = 0;
        let entries = decoder.finish().into_iter().map(|(table, batch)| {
            spans += batch.num_rows();
            let ledger = LedgerDelta { stored: batch.num_rows() as u64, ..LedgerDelta::default() };
            let meta = LogEntryMeta { tenant: self.tenant.clone(), table, minute: 0, ledger };
            let encoded = store::record::encode(&meta, Some(&batch)).expect("the batch is small");
            Entry { meta, batch: Some(batch), encoded }
        });
        self.store.append_group(entries.collect()).expect("there is room");
        spans
    }
}

/// Counts memtable after memtable; prints the first, when the index is empty, and the last.
fn counting(name: &str, groups: impl Iterator<Item = Vec<Vec<u8>>>) {
    let bench = Bench::new();
    let (mut spans, mut total, mut costs) = (0, 0, Vec::new());
    for group in groups {
        spans += bench.append(&group);
        if spans < SPANS_PER_FLUSH {
            continue;
        }
        let (snapshot, counted) = timed(|| bench.store.snapshot_with_derived(&bench.tenant));
        let derived = snapshot.derived().expect("they were asked for");
        let rows = DerivedTable::ALL.map(|table| {
            let memory = &derived.table(table).memory;
            memory.iter().map(|batch| batch.num_rows()).sum::<usize>()
        });
        drop(snapshot);
        let ((), flushed) = timed(|| bench.store.flush_all().expect("there is room"));
        while bench.store.tend_derived().expect("there is room") {}
        let of_span = |cost: u64| cost as f64 / spans as f64;
        costs.push((of_span(counted), of_span(flushed), rows));
        total += spans;
        spans = 0;
        if total >= SPANS_COUNTED {
            break;
        }
    }
    let mean = costs.iter().map(|(counted, ..)| counted).sum::<f64>() / costs.len() as f64;
    println!("{name}: {mean:.0} ns a span counted, the mean of {} memtables", costs.len());
    for (when, (counted, flushed, rows)) in [("first", costs[0]), ("last", costs[costs.len() - 1])] {
        println!(
            "{name}, {when} memtable: {counted:.0} ns a span counted into {} + {} rows; the flush after it {flushed:.0} ns a span",
            rows[0], rows[1]
        );
    }
}

/// Plays some of a day; prints what is on disk, and what deriving it anew costs.
fn day(spans_max: usize) {
    let bench = Bench::new();
    let (mut spans, mut unflushed, mut tended) = (0, 0, 0);
    for group in shop(REQUESTS_PER_SECOND) {
        let appended = bench.append(&group);
        spans += appended;
        unflushed += appended;
        if unflushed >= SPANS_PER_FLUSH || spans >= spans_max {
            bench.store.flush_all().expect("there is room");
            tended += timed(|| while bench.store.tend_derived().expect("there is room") {}).1;
            unflushed = 0;
        }
        if spans >= spans_max {
            break;
        }
    }
    let show = |what: &str| {
        let snapshot = bench.store.snapshot_with_derived(&bench.tenant);
        let derived = snapshot.derived().expect("they were asked for");
        for table in DerivedTable::ALL {
            let table_snapshot = derived.table(table);
            let segments = table_snapshot.segments.iter().map(|segment| segment.meta());
            let (rows, bytes) = segments.fold((0, 0), |(rows, bytes), meta| (rows + meta.rows, bytes + meta.bytes));
            let memory: usize = table_snapshot.memory.iter().map(|batch| batch.num_rows()).sum();
            println!(
                "{what}: {table}: {rows} rows of {} resolutions in {} segments, {:.2} B a span, {memory} rows in memory",
                RESOLUTIONS_S.len(),
                table_snapshot.segments.len(),
                bytes as f64 / spans as f64
            );
        }
    };
    println!("{spans} spans of the shop, folded and merged in {:.0} ns a span", tended as f64 / spans as f64);
    show("as they came");
    while bench.store.compact_once().expect("there is room") {}
    bench.store.rebuild_derived(&bench.tenant).expect("there is room");
    let ((), rebuilt) = timed(|| while bench.store.tend_derived().expect("there is room") {});
    let segments = bench.store.segments();
    let stored: u64 = segments.iter().filter(|meta| meta.table == Table::Spans).map(|meta| meta.rows).sum();
    assert_eq!(stored, spans as u64);
    println!("derived anew in {:.0} ns a span", rebuilt as f64 / spans as f64);
    show("derived anew");
}

fn main() {
    let spans = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    // In groups as a busy server commits them, not a minute at once.
    let busy = shop(100.0 * REQUESTS_PER_SECOND);
    counting("shop", busy.flat_map(|minute| minute.chunks(GROUP_REQUESTS).map(<[_]>::to_vec).collect::<Vec<_>>()));
    let fixture = batches::bodies(&batches::spans_s(1, (SPANS_COUNTED / batches::BATCH_ITEMS) as u64 + 1, START_NS));
    let groups: Vec<Vec<Vec<u8>>> =
        fixture.chunks(GROUP_REQUESTS).map(|group| group.iter().map(|body| body.to_vec()).collect()).collect();
    counting("fixture S", groups.into_iter());
    day(spans);
}
