//! What decoding costs: request bytes to Arrow, and on to a log record, against prost alone.
//!
//! One thread, no sockets, no disk; the whole process is measured by `benches/pipeline.py`.
#![allow(missing_docs, reason = "criterion's macros make public items without documentation")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fixtures::batches;
use ingest::decode::{Decoder, OpenGate};
use model::ledger::LedgerDelta;
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::Timestamp;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use store::record::{self, LogEntryMeta};

/// Requests that share a batch, as under load.
const REQUESTS_PER_GROUP: u64 = 32;

/// Event time of the first item: 2026-11-01.
const START_NS: u64 = 1_793_491_200_000_000_000;

fn decode_group(decoder: &mut Decoder, signal: Signal, bodies: &[bytes::Bytes]) -> u64 {
    let mut items = 0;
    for body in bodies {
        let delta = decoder.decode(signal, body, Timestamp(0), &mut OpenGate).expect("the fixture is valid");
        items += delta.stored;
    }
    items
}

fn decode(c: &mut Criterion) {
    for (name, signal, bodies) in [
        ("spans", Signal::Traces, batches::bodies(&batches::spans_s(1, REQUESTS_PER_GROUP, START_NS))),
        ("logs", Signal::Logs, batches::bodies(&batches::logs_l(1, REQUESTS_PER_GROUP, START_NS))),
        ("metrics", Signal::Metrics, batches::bodies(&batches::metrics_m(1, 1, START_NS))),
    ] {
        let items = decode_group(&mut Decoder::default(), signal, &bodies);
        let mut group = c.benchmark_group(format!("decode/{name}"));
        group.throughput(Throughput::Elements(items));
        group.bench_function("to arrow", |b| {
            b.iter(|| {
                let mut decoder = Decoder::default();
                decode_group(&mut decoder, signal, &bodies);
                black_box(decoder.finish())
            });
        });
        group.bench_function("to log record", |b| {
            b.iter_batched(
                || {
                    let mut decoder = Decoder::default();
                    decode_group(&mut decoder, signal, &bodies);
                    decoder.finish()
                },
                |batches| {
                    for (table, batch) in &batches {
                        let ledger = LedgerDelta::default();
                        let meta =
                            LogEntryMeta { tenant: TenantId::default_tenant(), table: *table, minute: 0, ledger };
                        black_box(record::encode(&meta, Some(batch)).expect("the batch is small"));
                    }
                    batches
                },
                BatchSize::LargeInput,
            );
        });
        if signal == Signal::Traces {
            group.bench_function("prost alone", |b| {
                b.iter(|| {
                    for body in &bodies {
                        black_box(ExportTraceServiceRequest::decode(&body[..]).expect("the fixture is valid"));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
