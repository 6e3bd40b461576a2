//! The functions over time and metrics, and `trace()`, through SQL: over memory, over segments and
//! over both, grouped and not. What they compute is tested beside them; here is what people type.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, UInt32Array};
use model::signal::Table;

use crate::engine::{Engine, EngineConfig};
use crate::error::ErrorKind;
use crate::histogram::{Buckets, Explicit, Exponential, Histogram, Side, from_histograms};
use crate::source::Source;
use crate::testing::{SECOND, T0, TestSource, batch, events, ids, texts, times};
use crate::tests::{TRACE_A, Where, ask, engine, put, span_id, spans};
use crate::trace::TRACE_SPANS_MAX;

/// Seconds after the start, and value, of two cumulative series and one of deltas; out of order and
/// with a point sent twice.
const POINTS: [(&str, u8, &str, i64, f64); 9] = [
    ("requests", 1, "CUMULATIVE", 30, 13.0),
    ("requests", 1, "CUMULATIVE", 0, 5.0),
    ("requests", 2, "CUMULATIVE", 0, 0.0),
    ("bytes", 3, "DELTA", 10, 100.0),
    ("requests", 1, "CUMULATIVE", 10, 25.0),
    ("requests", 1, "CUMULATIVE", 20, 3.0),
    ("requests", 2, "CUMULATIVE", 30, 60.0),
    ("requests", 1, "CUMULATIVE", 10, 25.0),
    ("bytes", 3, "DELTA", 20, 50.0),
];

fn points() -> RecordBatch {
    batch(
        Table::MetricPoints,
        POINTS.len(),
        &[
            ("metric_name", texts(&POINTS.map(|point| point.0))),
            ("series_id", ids(&POINTS.map(|point| Some(span_id(point.1))))),
            ("temporality", texts(&POINTS.map(|point| point.2))),
            ("time", times(&POINTS.map(|point| T0 + point.3 * SECOND))),
            ("value_double", Arc::new(Float64Array::from(POINTS.map(|point| point.4).to_vec()))),
        ],
    )
}

fn explicit(bounds: &[f64], counts: &[u64]) -> Histogram {
    let buckets = Buckets::Explicit(Explicit { bounds: bounds.to_vec(), counts: counts.to_vec() });
    Histogram { count: counts.iter().sum(), sum: Some(8.0), min: None, max: None, buckets }
}

fn exponential(scale: i32, counts: &[u64]) -> Histogram {
    let positive = Side { offset: 0, counts: counts.to_vec() };
    let buckets = Buckets::Exponential(Exponential { scale, positive, ..Exponential::default() });
    Histogram { count: counts.iter().sum(), sum: None, min: None, max: None, buckets }
}

/// Two series of deltas with the same bounds, one with others, and a cumulative one that goes to a
/// coarser scale, ends without a value, and starts again; and a summary.
fn histograms() -> RecordBatch {
    let rows: [(&str, &str, u8, i64, u32, Histogram); 9] = [
        ("latency", "HISTOGRAM", 1, 0, 0, explicit(&[1.0, 2.0, 4.0], &[1, 1, 2, 0])),
        ("size", "EXPONENTIAL_HISTOGRAM", 3, 10, 0, exponential(0, &[4, 2])),
        ("size", "EXPONENTIAL_HISTOGRAM", 3, 15, 1, exponential(0, &[])),
        ("latency", "HISTOGRAM", 2, 10, 0, explicit(&[1.0, 2.0, 4.0], &[0, 3, 1, 0])),
        ("size", "EXPONENTIAL_HISTOGRAM", 3, 20, 0, exponential(0, &[1])),
        ("size", "EXPONENTIAL_HISTOGRAM", 3, 0, 0, exponential(1, &[1, 1])),
        ("odd", "HISTOGRAM", 4, 0, 0, explicit(&[3.0], &[1, 1])),
        ("empty", "EXPONENTIAL_HISTOGRAM", 5, 0, 0, exponential(4, &[])),
        ("gone", "SUMMARY", 6, 0, 0, explicit(&[], &[9])),
    ];
    let column = from_histograms(rows.iter().map(|row| Some(&row.5))).unwrap();
    let fields = column.as_struct();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("metric_name", texts(&rows.each_ref().map(|row| row.0))),
        ("metric_type", texts(&rows.each_ref().map(|row| row.1))),
        ("series_id", ids(&rows.each_ref().map(|row| Some(span_id(row.2))))),
        ("time", times(&rows.each_ref().map(|row| T0 + row.3 * SECOND))),
        ("flags", Arc::new(UInt32Array::from(rows.each_ref().map(|row| row.4).to_vec()))),
    ];
    columns.extend(
        fields.fields().iter().zip(fields.columns()).map(|(field, column)| (field.name().as_str(), Arc::clone(column))),
    );
    batch(Table::MetricHistograms, rows.len(), &columns)
}

fn source(place: Where) -> Arc<TestSource> {
    let source = TestSource::new();
    put(&source, place, Table::Spans, spans());
    put(&source, place, Table::MetricPoints, points());
    put(&source, place, Table::MetricHistograms, histograms());
    Arc::new(source)
}

fn check(rows: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for place in [Where::Memory, Where::Segments, Where::Both] {
        let source = source(place);
        let engine = engine(&source);
        for (sql, expected) in rows {
            match ask(&engine, sql) {
                Ok(answer) if answer.rows == *expected => {}
                Ok(answer) => {
                    wrong.push(format!("{place:?}: {sql}\n  expected {expected}\n  found    {}", answer.rows))
                }
                Err(error) => wrong.push(format!("{place:?}: {sql}\n  {error:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn times_and_durations() {
    check(&[
        (
            "SELECT time_bucket('2s', start_time) AS b, count(*) FROM spans GROUP BY b ORDER BY b",
            "[\"2026-03-01T00:00:00.000000000Z\",2]\n[\"2026-03-01T00:00:02.000000000Z\",2]\n[\"2026-03-01T00:00:04.000000000Z\",2]",
        ),
        (
            "SELECT time_bucket(INTERVAL '2 seconds', start_time, '2026-03-01T00:00:01Z') AS b, count(*) FROM spans GROUP BY b ORDER BY b LIMIT 1",
            "[\"2026-02-28T23:59:59.000000000Z\",1]",
        ),
        ("SELECT time_bucket('1 day', '1969-12-31T23:30:00Z')", "[\"1969-12-31T00:00:00.000000000Z\"]"),
        ("SELECT time_bucket(INTERVAL '1 week', DATE '2026-03-01')", "[\"2026-02-26T00:00:00.000000000Z\"]"),
        (
            "SELECT time_bucket(INTERVAL '5 minutes', TIMESTAMP '2026-03-01 00:07:00')",
            "[\"2026-03-01T00:05:00.000000000Z\"]",
        ),
        ("SELECT time_bucket('1h', NULL), time_bucket(NULL, now())", "[null,null]"),
        ("SELECT time_bucket('1s', end_time) FROM spans ORDER BY start_time OFFSET 4 LIMIT 1", "[null]"),
        ("SELECT count(*) FROM spans WHERE time_bucket('2s', start_time) = '2026-03-01T00:00:02Z'", "[2]"),
        ("SELECT count(*) FROM spans WHERE time_bucket('2s', start_time) > '2026-03-01T00:00:02Z'", "[2]"),
        ("SELECT count(*) FROM spans WHERE time_bucket('2s', start_time) <= '2026-03-01T00:00:02Z'", "[4]"),
        ("SELECT count(*) FROM spans WHERE time_bucket('2s', start_time) >= '2026-03-01T00:00:01Z'", "[4]"),
        ("SELECT count(*) FROM spans WHERE time_bucket('2s', start_time) = '2026-03-01T00:00:01Z'", "[0]"),
        ("SELECT count(*) FROM spans WHERE duration_ns > duration('15ns')", "[3]"),
        ("SELECT duration('1.5s'), duration('1.5s') + 1, duration(NULL)", "[1500000000,1500000001,null]"),
        (
            "SELECT duration(1240000000), duration(CAST(12345678 AS DOUBLE)), duration(end_time - start_time) FROM spans ORDER BY start_time LIMIT 1",
            "[\"1.24 s\",\"12.3 ms\",\"10 ns\"]",
        ),
        ("SELECT duration(duration_ns) FROM spans ORDER BY start_time OFFSET 3", "[\"40 ns\"]\n[null]\n[\"-5 ns\"]"),
        ("SELECT duration(name || 's') FROM (VALUES ('2'), (NULL)) AS t(name)", "[2000000000]\n[null]"),
    ]);
}

#[test]
fn rates() {
    check(&[
        (
            "SELECT series_id, rate(value, time), increase(value, time) FROM metric_points WHERE metric_name = 'requests' GROUP BY series_id ORDER BY series_id",
            "[\"0000000000000001\",1.1,33.0]\n[\"0000000000000002\",2.0,60.0]",
        ),
        // A service's rate is the sum of its series'.
        (
            "SELECT sum(r) FROM (SELECT rate(value, time) AS r FROM metric_points WHERE metric_name = 'requests' GROUP BY series_id)",
            "[3.1]",
        ),
        ("SELECT rate(value, time) FROM metric_points WHERE series_id = '0000000000000001'", "[1.1]"),
        ("SELECT rate(value, time) FROM metric_points WHERE metric_name = 'no such'", "[null]"),
        (
            "SELECT rate(value, time) FILTER (WHERE time < '2026-03-01T00:00:15Z') FROM metric_points WHERE metric_name = 'requests' GROUP BY series_id ORDER BY series_id",
            "[2.0]\n[null]",
        ),
        (
            "SELECT series_id, increase(value, time) OVER (PARTITION BY series_id) FROM metric_points WHERE series_id = '0000000000000002'",
            "[\"0000000000000002\",60.0]\n[\"0000000000000002\",60.0]",
        ),
        (
            "SELECT increase(value, time) OVER (PARTITION BY series_id ORDER BY time) FROM metric_points WHERE series_id = '0000000000000001' ORDER BY time",
            "[null]\n[20.0]\n[20.0]\n[23.0]\n[33.0]",
        ),
        // Deltas are summed.
        ("SELECT sum(value) / 30 FROM metric_points WHERE temporality = 'DELTA' GROUP BY series_id", "[5.0]"),
    ]);
}

#[test]
fn histograms_merge_and_have_quantiles() {
    check(&[
        ("SELECT quantile(0.5, histogram) FROM metric_histograms WHERE metric_name = 'latency'", "[1.75]"),
        (
            "SELECT histogram_quantile(0.5, histogram_merge(histogram)) FROM metric_histograms WHERE metric_name = 'latency'",
            "[1.75]",
        ),
        (
            "SELECT series_id, quantile(0.5, histogram) FROM metric_histograms WHERE metric_name = 'latency' GROUP BY series_id ORDER BY series_id",
            "[\"0000000000000001\",2.0]\n[\"0000000000000002\",1.6666666666666665]",
        ),
        (
            "SELECT histogram_quantile(0.5, histogram) FROM metric_histograms WHERE metric_name = 'latency' ORDER BY time",
            "[2.0]\n[1.6666666666666665]",
        ),
        (
            "SELECT histogram_merge(histogram) FROM metric_histograms WHERE metric_name = 'latency'",
            "[{\"count\":8,\"sum\":16.0,\"min\":null,\"max\":null,\"explicit_bounds\":[1.0,2.0,4.0],\"bucket_counts\":[1,4,3,0],\"scale\":null,\"zero_count\":null,\"zero_threshold\":null,\"positive\":null,\"negative\":null}]",
        ),
        // What a cumulative series gained, over its change of scale and its restart.
        (
            "SELECT histogram_increase(histogram, time) FROM metric_histograms WHERE metric_name = 'size' GROUP BY series_id",
            "[{\"count\":5,\"sum\":null,\"min\":null,\"max\":null,\"explicit_bounds\":[],\"bucket_counts\":[],\"scale\":0,\"zero_count\":0,\"zero_threshold\":0.0,\"positive\":{\"offset\":0,\"bucket_counts\":[3,2]},\"negative\":{\"offset\":0,\"bucket_counts\":[]}}]",
        ),
        (
            "SELECT quantile(0.5, h) FROM (SELECT histogram_increase(histogram, time) AS h FROM metric_histograms WHERE metric_name = 'size' AND time <= '2026-03-01T00:00:10Z' GROUP BY series_id)",
            "[2.0]",
        ),
        (
            "SELECT histogram_increase(histogram, time) FROM metric_histograms WHERE metric_name = 'latency' AND time < '2026-03-01T00:00:05Z'",
            "[null]",
        ),
        (
            "SELECT m['count'] FROM (SELECT histogram_merge(histogram) AS m FROM metric_histograms WHERE metric_name = 'latency')",
            "[8]",
        ),
        ("SELECT histogram['count'], count FROM metric_histograms WHERE metric_name = 'odd'", "[2,2]"),
        // A summary and a point without a value are no histograms.
        (
            "SELECT metric_name, histogram IS NULL, histogram_quantile(0.5, histogram) FROM metric_histograms WHERE metric_name IN ('gone', 'empty') OR flags = 1 ORDER BY metric_name",
            "[\"empty\",false,null]\n[\"gone\",true,null]\n[\"size\",true,null]",
        ),
        ("SELECT quantile(0.5, histogram) FROM metric_histograms WHERE metric_name = 'gone'", "[null]"),
        (
            "SELECT histogram_quantile(-1, histogram), histogram_quantile(2, histogram), histogram_quantile(NULL, histogram), histogram_quantile(1, histogram) FROM metric_histograms WHERE metric_name = 'odd'",
            "[\"-Infinity\",\"Infinity\",null,3.0]",
        ),
        // Merging what was merged is merging all of it.
        (
            "SELECT quantile(0.5, h) FROM (SELECT histogram_merge(histogram) AS h FROM metric_histograms WHERE metric_name = 'latency' GROUP BY series_id)",
            "[1.75]",
        ),
        (
            "SELECT quantile(0.5, h) FROM (SELECT histogram AS h FROM metric_histograms WHERE series_id = '0000000000000001' UNION ALL SELECT CASE WHEN time IS NULL THEN NULL ELSE histogram END FROM metric_histograms WHERE series_id = '0000000000000002')",
            "[1.75]",
        ),
        (
            "SELECT metric_name, histogram_merge(histogram) FILTER (WHERE time > '2026-03-01T00:00:05Z')['count'] AS n FROM metric_histograms WHERE metric_name = 'latency' GROUP BY metric_name",
            "[\"latency\",4]",
        ),
    ]);
}

#[test]
fn quantiles_of_numbers() {
    check(&[
        (
            "SELECT quantile(0.5, duration_ns), quantile(0, duration_ns), quantile(1, duration_ns) FROM spans",
            "[20.0,-5.0,40.0]",
        ),
        ("SELECT quantile(0.9, duration_ns) FROM spans", "[36.0]"),
        ("SELECT quantile(-0.1, duration_ns), quantile(1.1, duration_ns) FROM spans", "[\"-Infinity\",\"Infinity\"]"),
        (
            "SELECT service_name, quantile(0.5, duration_ns) FROM spans GROUP BY 1 ORDER BY 1",
            "[\"cart\",20.0]\n[\"pay\",12.5]",
        ),
        ("SELECT quantile(0.25 + 0.25, duration_ns) FROM spans WHERE duration_ns > 1000", "[null]"),
        ("SELECT quantile(0.5, attributes['ratio']) FROM spans", "[1.25]"),
        ("SELECT quantile(0.5, duration_ns) FROM spans WHERE duration_ns IS NULL", "[null]"),
        ("SELECT quantile(0.5, duration_ns) FILTER (WHERE duration_ns > 15) FROM spans", "[30.0]"),
    ]);
}

/// Spans whose durations are 1 to `rows`, in an order that is not theirs.
fn many_spans(rows: i64) -> RecordBatch {
    let durations: Vec<i64> = (0..rows).map(|row| row * 7_919 % rows + 1).collect();
    batch(
        Table::Spans,
        durations.len(),
        &[
            ("trace_id", ids(&vec![Some(TRACE_A); durations.len()])),
            (
                "name",
                texts(
                    &durations
                        .iter()
                        .map(|duration| if duration % 2 == 0 { "even" } else { "odd" })
                        .collect::<Vec<_>>(),
                ),
            ),
            ("duration_ns", Arc::new(Int64Array::from(durations))),
        ],
    )
}

#[test]
fn a_quantile_of_many_numbers_is_within_its_error() {
    let source = Arc::new(TestSource::new());
    let rows = many_spans(20_000);
    source.memory(Table::Spans, rows.slice(0, 9_000));
    source.segment(Table::Spans, &rows.slice(9_000, 11_000));
    let engine = engine(&source);
    for q in [0.0_f64, 0.01, 0.5, 0.95, 0.999, 1.0] {
        for (by, n) in [("", 1), (" GROUP BY name ORDER BY name", 2)] {
            let answer = ask(&engine, &format!("SELECT quantile({q}, duration_ns) FROM spans{by}")).unwrap().rows;
            assert_eq!(answer.lines().count(), n);
            for line in answer.lines() {
                let found: f64 = line.trim_matches(['[', ']']).parse().unwrap();
                let exact = (20_000.0 * q).max(1.0);
                // Its error, and one rank.
                assert!((found - exact).abs() <= exact * 0.006 + 2.0, "q {q}{by}: {found}");
            }
        }
    }
    // As many as are kept as they are: the quantile is exact.
    let exact = "SELECT quantile(0.5, duration_ns), quantile(1, duration_ns) FROM spans WHERE duration_ns <= 4095";
    assert_eq!(ask(&engine, exact).unwrap().rows, "[2048.0,4095.0]");
}

#[test]
fn traces_in_the_order_of_their_tree() {
    check(&[
        (
            "SELECT position, depth, tree, offset_ns, self_duration_ns, is_orphan FROM trace('5b8efff798038103d269b633813fc60c')",
            "[1,0,\"GET /cart\",0,10,false]\n[2,1,\"└─ query\",1000000000,20,false]\n[3,2,\"   └─ POST /pay\",2000000000,30,false]",
        ),
        (
            "SELECT tree, self_duration_ns FROM TRACE('EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE')",
            "[\"GET /cart\",40]\n[\"├─ POST /pay\",null]\n[\"└─ query\",0]",
        ),
        // All columns of spans, attributes with their types.
        (
            "SELECT name, attributes['http.response.status_code'] + 1, resource_attributes['k8s.pod.name'], span_id, events FROM trace('5b8efff798038103d269b633813fc60c') WHERE depth = 2",
            "[\"POST /pay\",501,\"pay-7\",\"0000000000000003\",[{\"time\":\"2026-03-01T00:00:00.000000009Z\",\"name\":\"exception\",\"attributes\":{\"exception.message\":\"boom\",\"retries\":2},\"dropped_attributes_count\":0},{\"time\":\"2026-03-01T00:00:00.000000010Z\",\"name\":\"retry\",\"attributes\":{\"exception.message\":\"again\",\"retries\":2},\"dropped_attributes_count\":0}]]",
        ),
        ("SELECT count(*) FROM trace('5b8efff798038103d269b633813fc60c')", "[3]"),
        ("SELECT count(*) FROM trace('00000000000000000000000000000001')", "[0]"),
        ("SELECT tree FROM trace('5b8efff798038103d269b633813fc60c') LIMIT 1", "[\"GET /cart\"]"),
        (
            "SELECT name FROM trace(concat('5b8efff798038103', 'd269b633813fc60c')) ORDER BY position DESC LIMIT 1",
            "[\"POST /pay\"]",
        ),
        (
            "SELECT t.name, s.name FROM trace('5b8efff798038103d269b633813fc60c') t JOIN spans s ON s.span_id = t.parent_span_id ORDER BY t.position",
            "[\"query\",\"GET /cart\"]\n[\"POST /pay\",\"query\"]",
        ),
        (
            "SELECT count(*) FROM trace('5b8efff798038103d269b633813fc60c') a JOIN trace('eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee') b ON a.name = b.name",
            "[3]",
        ),
    ]);
    let source = source(Where::Both);
    let engine = engine(&source);
    let columns = |sql: &str| {
        let columns = ask(&engine, sql).unwrap().columns;
        columns.split("\"name\":\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let own = ["position", "depth", "tree", "offset_ns", "self_duration_ns", "is_orphan"].map(str::to_owned);
    let expected = [own.to_vec(), columns("SELECT * FROM spans LIMIT 1")].concat();
    assert_eq!(columns("SELECT * FROM trace('5b8efff798038103d269b633813fc60c')"), expected);
}

#[test]
fn a_broken_trace_is_shown_whole() {
    let source = Arc::new(TestSource::new());
    let parents = [Some(9), Some(3), Some(2), None, Some(4), Some(4)];
    let rows = batch(
        Table::Spans,
        6,
        &[
            ("trace_id", ids(&[Some(TRACE_A); 6])),
            ("span_id", ids(&[1, 2, 3, 4, 5, 5].map(|last| Some(span_id(last))))),
            ("parent_span_id", ids(&parents.map(|parent| parent.map(span_id)))),
            ("name", texts(&["lost", "hen", "egg", "root", "twin", "twin"])),
            ("start_time", times(&[5, 3, 4, 2, 6, 7].map(|nanos| T0 + nanos))),
            ("duration_ns", Arc::new(Int64Array::from(vec![1; 6]))),
            ("events", events(&[&[] as &[_]; 6])),
        ],
    );
    put(&source, Where::Both, Table::Spans, rows);
    let sql = "SELECT tree, offset_ns, is_orphan FROM trace('5b8efff798038103d269b633813fc60c')";
    assert_eq!(
        ask(&engine(&source), sql).unwrap().rows,
        "[\"root\",0,false]\n[\"├─ twin\",4,false]\n[\"└─ twin\",5,false]\n[\"hen\",1,true]\n[\"└─ egg\",2,false]\n[\"lost\",3,true]"
    );
}

#[test]
fn wrong_calls_say_what_is_expected() {
    use ErrorKind::{BadQuery, Refused};
    let source = source(Where::Both);
    let engine = engine(&source);
    for (sql, kind, message) in [
        ("SELECT time_bucket('1 month', now())", BadQuery, "no fixed length"),
        ("SELECT time_bucket(INTERVAL '1 month', start_time) FROM spans", BadQuery, "no fixed length"),
        ("SELECT time_bucket('0s', now())", BadQuery, "longer than zero"),
        ("SELECT time_bucket(INTERVAL '-5 seconds', start_time) FROM spans", BadQuery, "longer than zero"),
        ("SELECT time_bucket('soon', now())", BadQuery, "`soon` is not a duration"),
        ("SELECT time_bucket(10, now())", BadQuery, "such as '10s'"),
        ("SELECT time_bucket('10s', 5)", BadQuery, "expects a timestamp"),
        ("SELECT time_bucket('10s')", BadQuery, "(interval, time [, origin])"),
        ("SELECT time_bucket(name, start_time) FROM spans", BadQuery, "expects an interval"),
        ("SELECT time_bucket(CAST(name AS TEXT), start_time) FROM spans", BadQuery, "must be a constant"),
        ("SELECT duration('5')", BadQuery, "needs a unit"),
        ("SELECT count(*) FROM spans WHERE duration_ns > duration('500 m s')", BadQuery, "expected a number"),
        ("SELECT duration(true)", BadQuery, "nanoseconds or text"),
        ("SELECT rate(name, start_time) FROM spans", BadQuery, "rate() expects (number, time)"),
        ("SELECT rate(duration_ns) FROM spans", BadQuery, "rate() expects (number, time)"),
        ("SELECT rate(DISTINCT value, time) FROM metric_points", BadQuery, "DISTINCT"),
        ("SELECT quantile(duration_ns, 0.5) FROM spans", BadQuery, "must be a constant number"),
        ("SELECT quantile(NULL, duration_ns) FROM spans", BadQuery, "must be a constant number"),
        ("SELECT quantile(0.5, name) FROM spans", BadQuery, "quantile() expects"),
        ("SELECT histogram_merge(count) FROM metric_histograms", BadQuery, "histogram_merge() expects (histogram)"),
        ("SELECT histogram_quantile(0.5, sum) FROM metric_histograms", BadQuery, "histogram_quantile() expects"),
        (
            "SELECT histogram_merge(histogram) FROM metric_histograms WHERE metric_name IN ('latency', 'odd')",
            BadQuery,
            "no bucket bound in common",
        ),
        (
            "SELECT quantile(0.5, histogram) FROM metric_histograms WHERE metric_name IN ('latency', 'size')",
            BadQuery,
            "explicit and an exponential",
        ),
        ("SELECT * FROM trace('zz')", BadQuery, "32 hexadecimal digits"),
        ("SELECT * FROM trace('')", BadQuery, "32 hexadecimal digits"),
        ("SELECT * FROM trace(5)", BadQuery, "one trace id as text"),
        ("SELECT * FROM trace()", BadQuery, "one trace id as text"),
        ("SELECT * FROM trace('a', 'b')", BadQuery, "one trace id as text"),
        ("SELECT * FROM trace(NULL)", BadQuery, "one trace id as text"),
        ("SELECT * FROM spans s, trace(s.trace_id)", BadQuery, "one trace id as text"),
        ("SELECT * FROM trace", BadQuery, "trace"),
        ("SELECT * FROM other.trace('5b8efff798038103d269b633813fc60c')", Refused, "no such table function"),
        ("SELECT * FROM traces('5b8efff798038103d269b633813fc60c')", Refused, "no such table function"),
        ("SELECT trace('5b8efff798038103d269b633813fc60c')", BadQuery, "trace"),
    ] {
        match ask(&engine, sql) {
            Ok(answer) => panic!("{sql}\n  was answered: {}", answer.rows),
            Err(error) => assert!(error.kind == kind && error.message.contains(message), "{sql}\n  {error:?}"),
        }
    }
}

#[test]
fn calls_fold_into_what_the_scan_can_prune_by() {
    let source = source(Where::Segments);
    let engine = engine(&source);
    for (sql, expected) in [
        ("SELECT name FROM spans WHERE duration_ns > duration('1.5us')", "duration_ns_max@0 > 1500"),
        ("SELECT tree FROM trace('5b8efff798038103d269b633813fc60c')", "required_guarantees=[trace_id in"),
        (
            "SELECT tree FROM trace('5b8efff798038103d269b633813fc60c')",
            "TraceExec: trace_id=5b8efff798038103d269b633813fc60c",
        ),
    ] {
        let plan = ask(&engine, &format!("EXPLAIN {sql}")).unwrap().rows;
        assert!(plan.contains(expected) && plan.contains("file_type=parquet"), "{sql}\n{}", plan.replace("\\n", "\n"));
    }
    for (sql, pruned) in [
        ("SELECT name FROM spans WHERE time_bucket('3s', start_time) = '2026-03-01T00:00:03Z'", 1),
        ("SELECT name FROM spans WHERE time_bucket('3s', start_time) < '2026-03-01T00:00:00Z'", 2),
        ("SELECT name FROM spans WHERE time_bucket('3s', start_time) > '2026-03-01T00:00:00Z'", 1),
    ] {
        assert_eq!(ask(&engine, sql).unwrap().stats.segments_pruned, pruned, "{sql}");
    }
    let stats = ask(&engine, "SELECT tree FROM trace('5b8efff798038103d269b633813fc60c')").unwrap().stats;
    assert_eq!((stats.rows, stats.segments_total), (3, 2));
}

#[test]
fn what_these_hold_in_memory_is_bounded() {
    let source = Arc::new(TestSource::new());
    source.memory(Table::Spans, many_spans(TRACE_SPANS_MAX as i64 + 1));
    // In batches as they come in: of a slice the whole is counted, once for each slice.
    let batches = Arc::new(TestSource::new());
    (0..=TRACE_SPANS_MAX / 5_000).for_each(|_| batches.memory(Table::Spans, many_spans(5_000)));
    let big = engine(&batches);
    let id = "5b8efff798038103d269b633813fc60c";
    let error = ask(&big, &format!("SELECT count(*) FROM trace('{id}')")).map(|answer| answer.rows).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("more than 100000 spans"), "{error:?}");
    let config = EngineConfig { threads: 2, memory_bytes_max: 1 << 20, ..EngineConfig::default() };
    let small = Engine::new(config, Arc::clone(&source) as Arc<dyn Source>).unwrap();
    for sql in [
        format!("SELECT count(*) FROM trace('{id}')"),
        "SELECT rate(duration_ns, start_time) FROM spans".to_owned(),
        "SELECT increase(duration_ns, start_time) FROM spans GROUP BY name".to_owned(),
        "SELECT quantile(0.5, duration_ns) FROM spans GROUP BY duration_ns".to_owned(),
    ] {
        let error = ask(&small, &sql).map(|answer| answer.rows).unwrap_err();
        // The spans are counted as they are collected: whichever limit comes first.
        assert!(matches!(error.kind, ErrorKind::Memory | ErrorKind::Refused), "{sql}: {error:?}");
    }
    // A sketch of a hundred thousand numbers is small.
    let config = EngineConfig { threads: 2, memory_bytes_max: 4 << 20, ..EngineConfig::default() };
    let small = Engine::new(config, batches as Arc<dyn Source>).unwrap();
    ask(&small, "SELECT quantile(0.5, duration_ns) FROM spans GROUP BY name").unwrap();
}

/// The table under `## Functions` in the README: each example is run.
#[test]
fn every_example_of_the_readme_is_answered() {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## Functions\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let examples: Vec<&str> =
        section.split('`').filter(|part| part.starts_with("SELECT ") || part.starts_with("WITH ")).collect();
    assert!(examples.len() >= 12, "{examples:?}");
    let source = source(Where::Both);
    let engine = engine(&source);
    for sql in examples {
        let answer = ask(&engine, sql).unwrap_or_else(|error| panic!("{sql}\n  {error:?}"));
        assert!(!answer.rows.is_empty(), "{sql}");
    }
}
