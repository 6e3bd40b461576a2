//! What counting SLIs costs per span, by the number of SLOs: the share of ingest that 1,000 SLOs take is
//! this over the cost of a span in `ingest/benches/decode.rs` and the log.
#![allow(missing_docs, reason = "criterion's macros make public items without documentation")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use model::signal::Table;
use model::time::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use slo::matcher::{Matcher, Tally};
use slo::sli::Indicator;
use slo::testing::{Attribute, Span, documents, spans};

/// Spans in a batch, as under load.
const ROWS: usize = 4_096;

fn batch(seed: u64) -> arrow::array::RecordBatch {
    let mut random = SmallRng::seed_from_u64(seed);
    let rows: Vec<Span> = (0..ROWS)
        .map(|row| {
            let route = random.random_range(0..20);
            let status = if random.random_bool(0.01) { 503 } else { 200 };
            Span {
                time: 1_793_491_200_000_000_000 + i64::try_from(row).unwrap_or(0) * 1_000_000,
                service: format!("service-{}", random.random_range(0..100)),
                name: format!("GET /r{route}"),
                kind: if random.random_bool(0.5) { "SERVER" } else { "CLIENT" },
                status: if status == 503 { "ERROR" } else { "UNSET" },
                duration_ns: Some(random.random_range(1_000_000..2_000_000_000)),
                attributes: vec![
                    ("http.request.method".into(), Attribute::Text("GET".into())),
                    ("http.route".into(), Attribute::Text(format!("/r{route}"))),
                    ("http.response.status_code".into(), Attribute::Int(status)),
                    ("user.id".into(), Attribute::Text(format!("user-{}", random.random::<u32>()))),
                ],
            }
        })
        .collect();
    spans(&rows)
}

fn count(c: &mut Criterion) {
    let batches: Vec<_> = (0..8).map(batch).collect();
    let mut group = c.benchmark_group("count spans");
    group.throughput(Throughput::Elements(ROWS as u64));
    for slos in [1, 10, 100, 1_000, 10_000] {
        let text = documents(slos);
        let read = slo::openslo::read(&[("bench.yaml", &text)]).expect("the documents are valid");
        let indicators: Vec<Indicator> = read.slos.iter().map(|slo| slo.objectives[0].indicator.clone()).collect();
        let mut matcher = Matcher::new(&indicators, Timestamp(0));
        let mut tally = Tally::default();
        let mut at = 0;
        group.bench_function(format!("{slos} SLOs"), |b| {
            b.iter(|| {
                at = (at + 1) % batches.len();
                matcher.count(Table::Spans, &batches[at], &mut tally);
                // As under load: a server gives out once a second what some hundred batches were.
                if at == 0 {
                    matcher.flush(&mut tally);
                }
                black_box(tally.drain().count())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, count);
criterion_main!(benches);
