//! What storing costs once it is acknowledged: a memtable into a segment, and segments into one.
//!
//! CPU time of one thread, the least of some runs: `cargo bench -p ingest --bench store [-- spans logs metrics]`.
//! The whole process is measured by `benches/pipeline.py`.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::sync::Arc;

use fixtures::batches;
use ingest::decode::{Decoder, OpenGate};
use model::ledger::LedgerDelta;
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::Timestamp;
use store::{Entry, LogEntryMeta, ReplayProgress, Store, StoreConfig};
use tempfile::TempDir;

/// Requests that share a batch, as under load.
const REQUESTS_PER_GROUP: usize = 16;

/// Requests of one segment: what a memtable holds when it is flushed for its size.
const REQUESTS_PER_SEGMENT: usize = 192;

/// Segments of one merge.
const SEGMENTS: usize = 4;

/// Runs of each measurement.
const RUNS: usize = 3;

/// Event time of the first item: 2026-11-01.
const START_NS: u64 = 1_793_491_200_000_000_000;

/// Requests of fixture M that are one sample of each series; its amount is in samples.
const METRIC_REQUESTS_PER_SAMPLE: u64 = batches::SERIES / 500;

/// A fixture: seed, amount, time of the first item.
type Generate = fn(u64, u64, u64) -> Vec<batches::Batch>;

/// A store with the requests appended, flushed every so often.
fn store(signal: Signal, bodies: &[bytes::Bytes], flush_every: Option<usize>) -> (TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut config = StoreConfig::new(dir.path());
    config.memtable_bytes_max = u64::MAX;
    config.compaction.inputs_min = 2;
    config.compaction.day_closed_after_ns = i64::MAX / 2;
    let store = Store::open(config, &ReplayProgress::default(), store::Metrics::default()).expect("it is new");
    let tenant = TenantId::default_tenant();
    for (index, group) in bodies.chunks(REQUESTS_PER_GROUP).enumerate() {
        let mut decoder = Decoder::default();
        for body in group {
            decoder.decode(signal, body, Timestamp(0), &mut OpenGate).expect("the fixture is valid");
        }
        let entries = decoder.finish().into_iter().map(|(table, batch)| {
            let ledger = LedgerDelta { stored: batch.num_rows() as u64, ..LedgerDelta::default() };
            let meta = LogEntryMeta { tenant: tenant.clone(), table, minute: 0, ledger };
            let encoded = store::record::encode(&meta, Some(&batch)).expect("the batch is small");
            Entry { meta, batch: Some(batch), encoded }
        });
        store.append_group(entries.collect()).expect("there is room");
        if flush_every.is_some_and(|every| (index + 1) % every == 0) {
            store.flush_all().expect("there is room");
        }
    }
    (dir, store)
}

/// CPU time of this thread, nanoseconds: what others do on the machine is not in it.
fn cpu_ns() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells a thread's CPU time");
    times.split(' ').next().and_then(|time| time.parse().ok()).expect("its first number is nanoseconds")
}

/// The least of some runs, nanoseconds a row.
fn least(rows: u64, mut run: impl FnMut() -> u64) -> f64 {
    (0..RUNS).map(|_| run()).min().unwrap_or(0) as f64 / rows as f64
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let requests = (REQUESTS_PER_SEGMENT * SEGMENTS) as u64;
    let fixtures: [(&str, Signal, Generate, u64); 3] = [
        ("spans", Signal::Traces, batches::spans_s, requests),
        ("logs", Signal::Logs, batches::logs_l, requests),
        ("metrics", Signal::Metrics, batches::metrics_m, requests.div_ceil(METRIC_REQUESTS_PER_SAMPLE)),
    ];
    for (name, signal, generate, amount) in fixtures {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let bodies = batches::bodies(&generate(1, amount, START_NS));
        let one = &bodies[..bodies.len() / SEGMENTS];
        let rows = store(signal, one, None).1.stats().memtable_rows;
        let flush = least(rows, || {
            let (_dir, store) = store(signal, one, None);
            let before = cpu_ns();
            store.flush_all().expect("there is room");
            cpu_ns() - before
        });
        let (mut rows, mut bytes) = (0, 0);
        let mut merge = || {
            let (_dir, store) = store(signal, &bodies, Some(bodies.len() / REQUESTS_PER_GROUP / SEGMENTS));
            let before = cpu_ns();
            while store.compact_once().expect("there is room") {}
            let used = cpu_ns() - before;
            let stats = store.stats();
            (rows, bytes) = (stats.segment_rows, stats.segment_bytes);
            used
        };
        let used = (0..RUNS).map(|_| merge()).min().unwrap_or(0);
        println!(
            "{name}: flush {flush:.0} ns a row, merge {:.0} ns a row, {:.1} B a row merged",
            used as f64 / rows as f64,
            bytes as f64 / rows as f64
        );
    }
}
