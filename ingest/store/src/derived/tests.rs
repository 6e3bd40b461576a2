//! The folds against the oracle: whatever the order of spans and wherever batches are cut.

use std::sync::Arc;

use arrow::array::RecordBatch;
use model::derived::{BUCKET_NS, DerivedTable, RESOLUTIONS_S};
use model::tenant::TenantId;
use model::time::Timestamp;
use proptest::prelude::*;

use super::deriver::{Deriver, Uncounted};
use super::edges::{EdgeIndex, ServiceEdges};
use super::metrics::SpanMetrics;
use super::rows::{combine, with_roll_ups};
use super::spans::{Facts, Spans};
use super::testing::{TestSpan, batch, collect, random_spans, scan_edges, scan_metrics, span, without_exemplars};

const SECONDS: i32 = RESOLUTIONS_S[0];

/// Partial rows of both tables, one pair for each batch, with one index.
fn derive(index: &mut EdgeIndex, batches: &[&[TestSpan]]) -> (Vec<RecordBatch>, Vec<RecordBatch>) {
    let mut facts = Facts::of_memtables();
    let of_each = batches.iter().map(|spans| {
        let batch = batch(spans);
        let spans = Spans::new(&batch, &mut facts).unwrap();
        let (mut metrics, mut edges) = (SpanMetrics::default(), ServiceEdges::default());
        metrics.add(&spans);
        index.add(&spans, &mut edges);
        (metrics.batch(), edges.batch())
    });
    of_each.unzip()
}

#[test]
fn calls_are_found_by_these_rules() {
    let http: &[(&str, &str)] = &[("http.request.method", "GET"), ("server.address", "pay.svc")];
    let query: &[(&str, &str)] =
        &[("db.system.name", "postgresql"), ("db.namespace", "orders"), ("server.address", "h")];
    let publish: &[(&str, &str)] = &[("messaging.system", "kafka"), ("messaging.destination.name", "orders")];
    let mut linked = span((2, 1), None, "mail", "CONSUMER", publish);
    linked.links = vec![(1, 5), (1, 9)];
    for (what, spans, expected) in [
        ("nothing calls nobody", vec![span((1, 1), None, "web", "SERVER", http)], vec![]),
        (
            "a client and a server",
            vec![span((1, 1), None, "web", "CLIENT", http), span((1, 2), Some(1), "pay", "SERVER", http)],
            vec!["web pay http"],
        ),
        (
            "whatever kind the parent is",
            vec![span((1, 1), None, "web", "INTERNAL", &[]), span((1, 2), Some(1), "pay", "SERVER", &[])],
            vec!["web pay other"],
        ),
        (
            "the client knows what carried it",
            vec![
                span((1, 1), None, "web", "CLIENT", &[("rpc.system", "grpc")]),
                span((1, 2), Some(1), "pay", "SERVER", &[]),
            ],
            vec!["web pay rpc"],
        ),
        (
            "another trace's span is no parent",
            vec![span((1, 1), None, "web", "INTERNAL", &[]), span((2, 2), Some(1), "pay", "SERVER", &[])],
            vec![],
        ),
        (
            "a call within a service is none",
            vec![span((1, 1), None, "web", "CLIENT", http), span((1, 2), Some(1), "web", "SERVER", http)],
            vec![],
        ),
        (
            "a child that is not called is none",
            vec![span((1, 1), None, "web", "INTERNAL", http), span((1, 2), Some(1), "pay", "CLIENT", &[])],
            vec![],
        ),
        ("who names its peer", vec![span((1, 1), None, "web", "CLIENT", http)], vec!["web pay.svc http inferred"]),
        (
            "by the peer's name rather than its address",
            vec![span((1, 1), None, "web", "CLIENT", &[("server.address", "x"), ("peer.service", "bank")])],
            vec!["web bank other inferred"],
        ),
        ("a database", vec![span((1, 1), None, "pay", "CLIENT", query)], vec!["pay postgresql/orders db inferred"]),
        (
            "a database without a name",
            vec![span((1, 1), None, "pay", "CLIENT", &[("db.system", "redis")])],
            vec!["pay redis db inferred"],
        ),
        ("a broker", vec![span((1, 5), None, "web", "PRODUCER", publish)], vec!["web kafka/orders messaging inferred"]),
        (
            "a consumer by its link, and once by link and parent",
            vec![span((1, 5), None, "web", "PRODUCER", publish), linked.clone()],
            vec!["web mail messaging"],
        ),
        (
            "a server's links say nothing",
            vec![span((1, 5), None, "web", "PRODUCER", &[]), TestSpan { kind: "SERVER", ..linked }],
            vec![],
        ),
        ("a client that says nothing", vec![span((1, 1), None, "web", "CLIENT", &[])], vec![]),
        ("an internal span calls nobody", vec![span((1, 1), None, "web", "INTERNAL", http)], vec![]),
    ] {
        for backwards in [false, true] {
            let mut spans = spans.clone();
            if backwards {
                spans.reverse();
            }
            let batches: Vec<&[TestSpan]> = spans.chunks(1).collect();
            for batches in [&batches[..], &[&spans[..]]] {
                let (_, edges) = derive(&mut EdgeIndex::new(1), batches);
                let found: Vec<String> = collect(DerivedTable::ServiceEdges, &edges, SECONDS)
                    .keys()
                    .map(|key| key[..3].join(" ") + if key[3] == "true" { " inferred" } else { "" })
                    .collect();
                assert_eq!(found, expected, "{what}, backwards {backwards}");
            }
        }
    }
}

#[test]
fn environment_and_version_are_found_under_new_and_old_names() {
    let (mut new, old) = (span((1, 1), None, "web", "SERVER", &[]), span((1, 2), None, "web", "SERVER", &[]));
    (new.environment, new.version) = (Some("prod"), Some("1.2"));
    let (metrics, _) = derive(&mut EdgeIndex::new(1), &[&[new, old]]);
    let keys: Vec<_> = collect(DerivedTable::SpanMetrics, &metrics, SECONDS).into_keys().collect();
    let found: Vec<_> = keys.iter().map(|key| (key[4].as_str(), key[5].as_str())).collect();
    assert_eq!(found, [("-", "-"), ("prod", "1.2")]);
}

#[test]
fn what_is_older_than_two_generations_is_forgotten_and_counted() {
    let http: &[(&str, &str)] = &[("http.request.method", "GET"), ("server.address", "pay.svc")];
    let caller = [span((1, 1), None, "web", "CLIENT", http)];
    let callee = [span((1, 2), Some(1), "pay", "SERVER", http)];
    for (first, second) in [(&caller, &callee), (&callee, &caller)] {
        for (turns, expected) in [(0, 1), (1, 1), (2, 0)] {
            let mut index = EdgeIndex::new(1);
            let (_, mut edges) = derive(&mut index, &[first]);
            let unpaired: u64 = (0..turns).map(|_| index.turn()).sum();
            assert_eq!(unpaired, u64::from(turns == 2 && first == &callee));
            assert_eq!(index.is_empty(), turns == 2);
            edges.extend(derive(&mut index, &[second]).1);
            let found = collect(DerivedTable::ServiceEdges, &edges, SECONDS);
            let paired = found.keys().filter(|key| key[3] == "false").count();
            assert_eq!(paired, expected, "{turns} turns");
        }
    }
}

#[test]
fn an_index_that_is_full_forgets_half_and_joins_across_the_turn() {
    let tenant = TenantId::default_tenant();
    let bound = 32 << 10;
    let mut deriver = Deriver::with_index_bytes_max(7, bound);
    deriver.remember(&tenant, Timestamp(0), &[]);
    let (mut partials, mut calls) = (Vec::new(), 0);
    for memtable in 0..200_u8 {
        // Each call's halves come in batches that follow each other.
        let half = |batch: u8| {
            let ids = (0..20).map(move |number| (batch, number));
            let callers = ids.clone().map(|id| span(id, None, "web", "CLIENT", &[]));
            let callees = ids.filter(|_| batch > 0).map(|(batch, number)| {
                let (trace, parent) = (batch - 1, Some(number));
                span((trace, 100 + number), parent, "pay", "SERVER", &[])
            });
            callers.chain(callees).collect::<Vec<_>>()
        };
        let spans = half(memtable);
        calls += spans.iter().filter(|span| span.kind == "SERVER").count();
        let batches = vec![Arc::new(batch(&spans))];
        deriver.count(Uncounted { tenant: tenant.clone(), memtable: memtable.into(), batches }, Timestamp(0));
        partials.extend(deriver.partials(&tenant, memtable.into()).and_then(|of| of.batch(DerivedTable::ServiceEdges)));
        deriver.forget(memtable.into(), Timestamp(0));
        assert!(deriver.knows(&tenant), "it is never made again from segments");
        assert!(deriver.index_bytes() <= bound + (8 << 10), "{} bytes", deriver.index_bytes());
    }
    let found = collect(DerivedTable::ServiceEdges, &partials, SECONDS);
    assert_eq!(found.values().map(|row| row["count"]).sum::<i64>(), calls as i64);
    assert_eq!(deriver.take_unpaired(), 0);
}

#[test]
fn a_flood_of_spans_under_one_id_stays_linear_and_is_counted() {
    let http: &[(&str, &str)] = &[("server.address", "pay.svc")];
    let mut flood = Vec::new();
    for number in 0..50_000_i64 {
        // Copies, and spans that differ under one id; callees of one parent that never comes.
        flood.push(span((1, 1), None, "web", "CLIENT", http));
        flood.push(TestSpan { duration: Some(number), ..span((1, 2), None, "web", "CLIENT", http) });
        flood.push(span((1, 3), Some(4), "pay", "SERVER", &[]));
    }
    let mut index = EdgeIndex::new(1);
    let (metrics, mut edges) = derive(&mut index, &[&flood]);
    edges.extend(derive(&mut index, &[&[span((1, 4), None, "web", "CLIENT", &[])]]).1);
    let found = collect(DerivedTable::ServiceEdges, &edges, SECONDS);
    let counts: Vec<_> = found.iter().map(|(key, row)| (key[1].as_str(), row["count"])).collect();
    // Of those that differ only so many are told apart.
    assert_eq!(counts, [("pay", 50_000), ("pay.svc", 50_000 + 8)]);
    let metrics = collect(DerivedTable::SpanMetrics, &metrics, SECONDS);
    assert_eq!(metrics.values().map(|row| row["count"]).sum::<i64>(), 150_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_folds_equal_a_full_scan_wherever_batches_are_cut(
        spans in random_spans(40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        turn in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(spans.len())).collect();
        cuts.extend([0, spans.len()]);
        cuts.sort_unstable();
        let batches: Vec<&[TestSpan]> = cuts.windows(2).map(|cut| &spans[cut[0]..cut[1]]).collect();
        let mut index = EdgeIndex::new(99);
        let (first, rest) = batches.split_at(batches.len() / 2);
        let (mut metrics, mut edges) = derive(&mut index, first);
        if turn {
            // One generation more changes nothing.
            index.turn();
        }
        let (more_metrics, more_edges) = derive(&mut index, rest);
        metrics.extend(more_metrics);
        edges.extend(more_edges);
        prop_assert_eq!(collect(DerivedTable::SpanMetrics, &metrics, SECONDS), scan_metrics(&spans));
        let expected = without_exemplars(scan_edges(&spans));
        prop_assert_eq!(without_exemplars(collect(DerivedTable::ServiceEdges, &edges, SECONDS)), expected);
        // At once, nothing is taken back, so that even the exemplars are those of the scan.
        let (_, at_once) = derive(&mut EdgeIndex::new(99), &[&spans]);
        prop_assert_eq!(collect(DerivedTable::ServiceEdges, &at_once, SECONDS), scan_edges(&spans));

        // Adding up changes nothing, in whichever order and grouping; longer intervals are sums.
        for (table, partials) in [(DerivedTable::SpanMetrics, &metrics), (DerivedTable::ServiceEdges, &edges)] {
            let before = collect(table, partials, SECONDS);
            let (left, right) = partials.split_at(partials.len() / 3);
            let parts = [combine(table, right).unwrap(), combine(table, left).unwrap()];
            let once = combine(table, &parts).unwrap();
            prop_assert_eq!(once.num_rows(), collect(table, [&once], SECONDS).len());
            prop_assert_eq!(&collect(table, [&once], SECONDS), &before);
            let levels = with_roll_ups(table, partials).unwrap();
            prop_assert_eq!(levels.len(), RESOLUTIONS_S.len());
            for (level, seconds) in levels.iter().zip(RESOLUTIONS_S) {
                let found = collect(table, [level], seconds);
                let ratio = i64::from(seconds / SECONDS);
                let mut expected: std::collections::BTreeMap<Vec<String>, i64> = Default::default();
                for (key, row) in &before {
                    let mut key = key.clone();
                    let last = key.last_mut().unwrap();
                    *last = (last.parse::<i64>().unwrap().div_euclid(ratio) * ratio).to_string();
                    *expected.entry(key).or_default() += row["count"];
                }
                prop_assert_eq!(found.into_iter().map(|(key, row)| (key, row["count"])).collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn intervals_begin_where_they_should() {
    for (start, expected) in
        [(0, 0), (BUCKET_NS - 1, 0), (BUCKET_NS, 1), (-1, -1), (i64::MAX, 922_337_203), (i64::MIN, -922_337_204)]
    {
        let spans = [TestSpan { start, ..span((1, 1), None, "web", "SERVER", &[]) }];
        let (metrics, _) = derive(&mut EdgeIndex::new(1), &[&spans]);
        let times = metrics[0].column_by_name("time").unwrap();
        let time = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampNanosecondType>(times).value(0);
        assert_eq!(time, i64::from(expected).saturating_mul(BUCKET_NS), "{start}");
    }
}
