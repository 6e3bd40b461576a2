//! One evaluation round of 10,000 SLOs on one core, and the write of what changed in ten seconds.
#![allow(missing_docs, reason = "criterion's macros make public items without documentation")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use model::tenant::TenantId;
use model::time::Timestamp;
use slo::archive::Archive;
use slo::counts::{BUCKET_MS, Counts};
use slo::engine::{Config, Engine};
use slo::testing::documents;

const SLOS: usize = 10_000;
const START: i64 = 1_793_491_200_000_000_000;

fn at(bucket: i64) -> Timestamp {
    Timestamp(START + bucket * BUCKET_MS * 1_000_000)
}

fn evaluate(c: &mut Criterion) {
    let text = documents(SLOS);
    let read = slo::openslo::read(&[("bench.yaml", &text)]).expect("the documents are valid");
    let indicators: Vec<_> = read.slos.iter().map(|slo| slo.objectives[0].indicator.clone()).collect();
    let dir = tempfile::tempdir().expect("there is room for a folder");
    let archive = Archive::open(&dir.path().join("slo.sqlite")).expect("the database opens");
    let mut engine = Engine::build(Config::default(), TenantId::default_tenant(), read.slos, archive, at(0))
        .expect("the database is empty");
    // Six hours, and every tenth SLO burns.
    let first = START / 1_000_000 / BUCKET_MS;
    for bucket in 0..2_160 {
        for (number, indicator) in
            indicators.iter().enumerate().filter(|(number, _)| bucket > 1_800 || number % 10 == 0)
        {
            let numerator = if number % 10 == 0 { 80 } else { 100 };
            engine.add_at(number, first + bucket, Counts { numerator, total: 100 }, at(bucket));
            black_box(indicator);
        }
    }
    let mut now = 2_160;
    // What six hours left behind is not what ten seconds do.
    engine.persist(at(now), at(now)).expect("there is room");
    let mut group = c.benchmark_group("engine");
    group.sample_size(20);
    group.bench_function("evaluate 10,000 SLOs, 1,000 burning", |b| {
        b.iter(|| black_box(engine.evaluate(at(now))));
    });
    group.bench_function("persist 10 s of 10,000 SLOs", |b| {
        b.iter_batched(
            || {
                now += 1;
                now
            },
            |now| {
                for number in 0..SLOS {
                    engine.add_at(number, first + now, Counts { numerator: 100, total: 100 }, at(now));
                }
                engine.persist(at(now), at(now)).expect("there is room");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, evaluate);
criterion_main!(benches);
