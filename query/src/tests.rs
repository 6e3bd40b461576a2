//! Questions and answers: the same rows in memory, in segments and in both give the same answers;
//! hostile statements are refused or bounded; a damaged segment is set aside.
//!
//! Each test is a table of rows. Not here: HTTP (the dashboards crate tests that).

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use model::context::ContextKind;
use model::ledger::{LedgerLine, RejectReason};
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use model::value::Value;

use crate::engine::{Engine, EngineConfig, Limits, QueryStats};
use crate::error::{ErrorKind, QueryError};
use crate::render;
use crate::source::Source;
use crate::testing::{SECOND, T0, TestSource, attributes, batch, contexts, events, ids, texts, times};

pub(crate) const TRACE_A: [u8; 16] =
    [0x5b, 0x8e, 0xff, 0xf7, 0x98, 0x03, 0x81, 0x03, 0xd2, 0x69, 0xb6, 0x33, 0x81, 0x3f, 0xc6, 0x0c];
const TRACE_B: [u8; 16] = [0xee; 16];

pub(crate) fn span_id(last: u8) -> [u8; 8] {
    [0, 0, 0, 0, 0, 0, 0, last]
}

/// Six spans of two traces, a second apart.
pub(crate) fn spans() -> RecordBatch {
    let minutes: Vec<i64> = (0..6).map(|row| T0 + row * SECOND).collect();
    let carts: (&str, &[(&str, &str)]) = ("lib", &[("service.name", "cart"), ("k8s.pod.name", "cart-0")]);
    let pays: (&str, &[(&str, &str)]) = ("lib", &[("service.name", "pay"), ("k8s.pod.name", "pay-7")]);
    batch(
        Table::Spans,
        6,
        &[
            (
                "trace_id",
                ids(&[Some(TRACE_A), Some(TRACE_A), Some(TRACE_A), Some(TRACE_B), Some(TRACE_B), Some(TRACE_B)]),
            ),
            ("span_id", ids(&[1, 2, 3, 4, 5, 6].map(|last| Some(span_id(last))))),
            (
                "parent_span_id",
                ids(&[None, Some(span_id(1)), Some(span_id(2)), None, Some(span_id(4)), Some(span_id(4))]),
            ),
            ("service_name", texts(&["cart", "cart", "pay", "cart", "pay", "pay"])),
            ("name", texts(&["GET /cart", "query", "POST /pay", "GET /cart", "POST /pay", "query"])),
            ("kind", texts(&["SERVER", "CLIENT", "SERVER", "SERVER", "SERVER", "CLIENT"])),
            ("start_time", times(&minutes)),
            ("duration_ns", Arc::new(Int64Array::from(vec![Some(10), Some(20), Some(30), Some(40), None, Some(-5)]))),
            ("status_code", texts(&["UNSET", "UNSET", "ERROR", "OK", "UNSET", "ERROR"])),
            ("status_message", Arc::new(StringArray::from(vec!["", "", "card declined", "", "", "=cmd|x"]))),
            (
                "attributes",
                attributes(&[
                    &[
                        ("http.route", Value::String("/cart")),
                        ("http.response.status_code", Value::Int(200)),
                        ("ratio", Value::Double(0.5)),
                        ("cached", Value::Bool(true)),
                        ("mixed", Value::Int(7)),
                    ],
                    &[("db.rows", Value::Int(3)), ("mixed", Value::String("seven"))],
                    &[
                        ("http.route", Value::String("/pay")),
                        ("http.response.status_code", Value::Int(500)),
                        ("ratio", Value::Int(2)),
                    ],
                    &[
                        ("http.route", Value::String("/cart")),
                        ("http.response.status_code", Value::Int(503)),
                        ("cached", Value::Bool(false)),
                        ("mixed", Value::Int(1000)),
                    ],
                    &[],
                    &[
                        ("http.route", Value::String("first")),
                        ("http.route", Value::String("last")),
                        ("ratio", Value::Double(f64::NAN)),
                    ],
                ]),
            ),
            (
                "events",
                events(&[
                    &[],
                    &[],
                    &[(T0 + 9, "exception", "boom"), (T0 + 10, "retry", "again")],
                    &[],
                    &[(T0 + 11, "exception", "bang")],
                    &[],
                ]),
            ),
            ("resource", contexts(ContextKind::Resource, &[carts, carts, pays, carts, pays, pays], "https://schema/1")),
            (
                "scope",
                contexts(
                    ContextKind::Scope,
                    &[
                        ("lib", &[("x", "1")][..]),
                        ("lib", &[]),
                        ("lib", &[]),
                        ("other", &[]),
                        ("other", &[]),
                        ("other", &[]),
                    ],
                    "",
                ),
            ),
        ],
    )
}

pub(crate) fn logs() -> RecordBatch {
    batch(
        Table::Logs,
        3,
        &[
            ("time", times(&[T0, T0 + SECOND, T0 + 2 * SECOND])),
            ("service_name", texts(&["cart", "pay", "pay"])),
            ("severity_number", Arc::new(arrow::array::Int32Array::from(vec![9, 17, 17]))),
            ("severity_text", texts(&["INFO", "ERROR", "ERROR"])),
            ("body", Arc::new(StringArray::from(vec![Some("hello \"you\""), Some("card, declined\nagain"), None]))),
            ("trace_id", ids(&[Some(TRACE_A), None, None])),
            ("attributes", attributes(&[&[("code", Value::String("E1"))], &[("code", Value::Int(4))], &[]])),
        ],
    )
}

pub(crate) fn points() -> RecordBatch {
    batch(
        Table::MetricPoints,
        3,
        &[
            ("metric_name", texts(&["requests", "load", "load"])),
            ("time", times(&[T0, T0 + SECOND, T0 + 2 * SECOND])),
            ("value_int", Arc::new(Int64Array::from(vec![Some(41), None, None]))),
            ("value_double", Arc::new(Float64Array::from(vec![None, Some(1.5), Some(f64::INFINITY)]))),
            ("is_monotonic", Arc::new(BooleanArray::from(vec![Some(true), None, None]))),
            ("series_id", ids(&[1, 2, 2].map(|last| Some(span_id(last))))),
        ],
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Where {
    Memory,
    Segments,
    Both,
}

pub(crate) fn source(place: Where) -> Arc<TestSource> {
    let source = TestSource::new();
    for (table, rows) in [(Table::Spans, spans()), (Table::Logs, logs()), (Table::MetricPoints, points())] {
        put(&source, place, table, rows);
    }
    source.memory(Table::MetricHistograms, batch(Table::MetricHistograms, 1, &[]));
    source.memory(Table::Profiles, batch(Table::Profiles, 1, &[]));
    let line = |reason, items| LedgerLine { minute: T0, signal: Signal::Traces, reason, items };
    source.ledger(vec![line(None, 6), line(Some(RejectReason::InvalidTraceId), 2)]);
    Arc::new(source)
}

pub(crate) fn put(source: &TestSource, place: Where, table: Table, rows: RecordBatch) {
    let half = rows.num_rows() / 2;
    match place {
        Where::Memory => source.memory(table, rows),
        Where::Segments => {
            source.segment(table, &rows.slice(0, half));
            source.segment(table, &rows.slice(half, rows.num_rows() - half));
        }
        Where::Both => {
            source.segment(table, &rows.slice(half, rows.num_rows() - half));
            source.memory(table, rows.slice(0, half));
        }
    }
}

pub(crate) fn engine(source: &Arc<TestSource>) -> Engine {
    let config = EngineConfig { threads: 2, memory_bytes_max: 64 << 20, ..EngineConfig::default() };
    Engine::new(config, Arc::clone(source) as Arc<dyn Source>).unwrap()
}

pub(crate) fn limits() -> Limits {
    Limits { timeout: Duration::from_secs(60), ..Limits::default() }
}

pub(crate) struct Answer {
    pub(crate) columns: String,
    pub(crate) rows: String,
    pub(crate) stats: QueryStats,
}

fn ask_with(engine: &Engine, sql: &str, limits: Limits) -> Result<Answer, QueryError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (schema, batches, stats) = engine.query(&TenantId::default_tenant(), sql, limits).await?.collect().await?;
        let (mut rows, mut first) = (String::new(), true);
        for batch in &batches {
            render::rows_json(batch, &mut first, &mut rows).unwrap();
        }
        Ok(Answer { columns: render::columns_json(&schema), rows: rows.trim_start().replace(",\n", "\n"), stats })
    })
}

pub(crate) fn ask(engine: &Engine, sql: &str) -> Result<Answer, QueryError> {
    ask_with(engine, sql, limits())
}

/// SQL and its rows as JSON lines.
pub(crate) const ANSWERS: &[(&str, &str)] = &[
    // Plain columns, order, limits, aggregates.
    ("SELECT count(*) FROM spans", "[6]"),
    ("SELECT service_name, count(*) AS n FROM spans GROUP BY service_name ORDER BY 1", "[\"cart\",3]\n[\"pay\",3]"),
    ("SELECT name FROM spans WHERE service_name = 'pay' ORDER BY start_time LIMIT 1", "[\"POST /pay\"]"),
    (
        "SELECT name, duration_ns FROM spans WHERE status_code = 'ERROR' ORDER BY start_time",
        "[\"POST /pay\",30]\n[\"query\",-5]",
    ),
    ("SELECT sum(duration_ns), max(duration_ns) FROM spans WHERE kind = 'SERVER'", "[80,40]"),
    ("SELECT name FROM spans WHERE name LIKE 'GET%' AND status_code <> 'OK'", "[\"GET /cart\"]"),
    (
        "SELECT approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ns) FROM spans WHERE duration_ns > 0 AND duration_ns < 31",
        "[20.0]",
    ),
    // Times: as text out, compared in, computed.
    (
        "SELECT start_time, end_time FROM spans ORDER BY start_time LIMIT 1",
        "[\"2026-03-01T00:00:00.000000000Z\",\"2026-03-01T00:00:00.000000010Z\"]",
    ),
    ("SELECT end_time FROM spans ORDER BY start_time OFFSET 4 LIMIT 2", "[null]\n[\"2026-03-01T00:00:04.999999995Z\"]"),
    (
        "SELECT count(*) FROM spans WHERE start_time >= '2026-03-01T00:00:02Z' AND start_time < '2026-03-01T00:00:04Z'",
        "[2]",
    ),
    ("SELECT count(*) FROM spans WHERE start_time > TIMESTAMP '2026-03-01 00:00:03'", "[2]"),
    ("SELECT count(*) FROM spans WHERE start_time BETWEEN '2026-03-01T00:00:01Z' AND '2026-03-01T00:00:02Z'", "[2]"),
    (
        "SELECT date_trunc('minute', start_time) AS m, count(*) FROM spans GROUP BY m",
        "[\"2026-03-01T00:00:00.000000000Z\",6]",
    ),
    (
        "SELECT date_bin(INTERVAL '2 seconds', start_time) AS b, count(*) FROM spans GROUP BY b ORDER BY b LIMIT 1",
        "[\"2026-03-01T00:00:00.000000000Z\",2]",
    ),
    ("SELECT count(*) FROM spans WHERE start_time < now() - INTERVAL '1 hour'", "[6]"),
    // Ids: hex in and out.
    (
        "SELECT span_id FROM spans WHERE trace_id = '5b8efff798038103d269b633813fc60c' ORDER BY span_id",
        "[\"0000000000000001\"]\n[\"0000000000000002\"]\n[\"0000000000000003\"]",
    ),
    ("SELECT count(*) FROM spans WHERE trace_id = '5B8EFFF798038103D269B633813FC60C'", "[3]"),
    ("SELECT count(*) FROM spans WHERE '5b8efff798038103d269b633813fc60c' = trace_id", "[3]"),
    ("SELECT count(*) FROM spans WHERE trace_id != '5b8efff798038103d269b633813fc60c'", "[3]"),
    ("SELECT count(*) FROM spans WHERE trace_id <> '00000000000000000000000000000000'", "[6]"),
    (
        "SELECT count(*) FROM spans WHERE trace_id IN ('5b8efff798038103d269b633813fc60c', 'EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE')",
        "[6]",
    ),
    ("SELECT count(*) FROM spans WHERE span_id NOT IN ('0000000000000001', '0000000000000002')", "[4]"),
    ("SELECT count(*) FROM spans WHERE span_id BETWEEN '0000000000000002' AND '0000000000000004'", "[3]"),
    ("SELECT count(*) FROM spans WHERE trace_id LIKE '5B8e%'", "[3]"),
    ("SELECT count(*) FROM spans WHERE parent_span_id IS NULL", "[2]"),
    (
        "SELECT DISTINCT trace_id FROM spans ORDER BY trace_id",
        "[\"5b8efff798038103d269b633813fc60c\"]\n[\"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee\"]",
    ),
    (
        "SELECT hex(trace_id), upper(hex(span_id)) FROM spans ORDER BY start_time LIMIT 1",
        "[\"5b8efff798038103d269b633813fc60c\",\"0000000000000001\"]",
    ),
    (
        "SELECT 'trace ' || trace_id AS t FROM spans ORDER BY start_time LIMIT 1",
        "[\"trace 5b8efff798038103d269b633813fc60c\"]",
    ),
    ("SELECT CAST(span_id AS VARCHAR) FROM spans ORDER BY start_time LIMIT 1", "[\"0000000000000001\"]"),
    ("SELECT substr(hex(trace_id), 1, 4) FROM spans ORDER BY start_time LIMIT 1", "[\"5b8e\"]"),
    ("SELECT trace_id = '5b8efff798038103d269b633813fc60c' AS yes FROM spans ORDER BY start_time LIMIT 1", "[true]"),
    (
        "SELECT c.name FROM spans c JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id WHERE p.name = 'GET /cart' ORDER BY c.start_time",
        "[\"query\"]\n[\"POST /pay\"]\n[\"query\"]",
    ),
    ("SELECT count(*) FROM spans WHERE trace_id IN (SELECT trace_id FROM logs)", "[3]"),
    // Attributes: types kept.
    (
        "SELECT attributes['http.route'] FROM spans ORDER BY start_time",
        "[\"/cart\"]\n[null]\n[\"/pay\"]\n[\"/cart\"]\n[null]\n[\"last\"]",
    ),
    (
        "SELECT name FROM spans WHERE attributes['http.response.status_code'] >= 500 ORDER BY start_time",
        "[\"POST /pay\"]\n[\"GET /cart\"]",
    ),
    ("SELECT name FROM spans WHERE attributes['http.response.status_code'] = '500'", "[\"POST /pay\"]"),
    ("SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] = 'abc'", "[0]"),
    ("SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] IN (200, 503)", "[2]"),
    ("SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] IN ('200', '503')", "[2]"),
    ("SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] NOT IN ('200', 'x')", "[2]"),
    ("SELECT count(*) FROM spans WHERE attributes['http.response.status_code'] BETWEEN '200' AND '500'", "[2]"),
    ("SELECT max(attributes['http.response.status_code']) + 1 FROM spans", "[504]"),
    (
        "SELECT attributes['ratio'] FROM spans WHERE attributes['ratio'] IS NOT NULL ORDER BY start_time",
        "[0.5]\n[2.0]\n[\"NaN\"]",
    ),
    ("SELECT attributes['cached'] FROM spans WHERE attributes['cached'] = 'true'", "[true]"),
    ("SELECT count(*) FROM spans WHERE NOT attributes['cached']", "[1]"),
    (
        "SELECT attributes['mixed'] FROM spans WHERE attributes['mixed'] IS NOT NULL ORDER BY start_time",
        "[\"7\"]\n[\"seven\"]\n[\"1000\"]",
    ),
    ("SELECT count(*) FROM spans WHERE attributes['mixed'] >= 500", "[1]"),
    ("SELECT count(*) FROM spans WHERE attributes['mixed'] = '7'", "[1]"),
    ("SELECT count(*) FROM spans WHERE attributes['mixed'] IN (7, 1000)", "[2]"),
    ("SELECT attributes['no.such.key'] IS NULL AS absent, count(*) FROM spans GROUP BY 1", "[true,6]"),
    ("SELECT count(*) FROM spans WHERE attributes['rpc.grpc.status_code'] > 2", "[0]"),
    ("SELECT count(*) FROM spans WHERE \"attributes\"['http.route'] LIKE '/c%'", "[2]"),
    (
        "SELECT s.attributes['http.route'] AS r, count(*) FROM spans AS s GROUP BY r ORDER BY r NULLS LAST",
        "[\"/cart\",2]\n[\"/pay\",1]\n[\"last\",1]\n[null,2]",
    ),
    (
        "SELECT a['http.response.status_code'] + 0 FROM (SELECT attributes AS a, start_time FROM spans) ORDER BY start_time LIMIT 1",
        "[200]",
    ),
    (
        "WITH e AS (SELECT * FROM spans WHERE status_code = 'ERROR') SELECT attributes['http.route'] FROM e ORDER BY start_time",
        "[\"/pay\"]\n[\"last\"]",
    ),
    ("SELECT attribute(attributes, 'db.rows') FROM spans WHERE name = 'query' ORDER BY start_time", "[3]\n[null]"),
    (
        "SELECT attributes FROM spans ORDER BY start_time LIMIT 1 OFFSET 2",
        "[{\"http.route\":\"/pay\",\"http.response.status_code\":500,\"ratio\":2}]",
    ),
    (
        "SELECT attributes_json(attributes) FROM spans ORDER BY start_time LIMIT 1 OFFSET 1",
        "[\"{\\\"db.rows\\\":3,\\\"mixed\\\":\\\"seven\\\"}\"]",
    ),
    ("SELECT attribute_keys(attributes) FROM spans ORDER BY start_time LIMIT 1 OFFSET 1", "[[\"db.rows\",\"mixed\"]]"),
    (
        "SELECT k, count(*) FROM (SELECT unnest(attribute_keys(attributes)) AS k FROM spans) GROUP BY k ORDER BY 2 DESC, 1 LIMIT 1",
        "[\"http.route\",5]",
    ),
    // Contexts.
    (
        "SELECT resource_attributes['k8s.pod.name'] AS pod, count(*) FROM spans GROUP BY pod ORDER BY pod",
        "[\"cart-0\",3]\n[\"pay-7\",3]",
    ),
    ("SELECT count(*) FROM spans WHERE resource_attributes['k8s.pod.name'] = 'pay-7' AND service_name = 'pay'", "[3]"),
    (
        "SELECT scope_name, scope_version, scope_attributes['x'], resource_schema_url, scope_schema_url FROM spans ORDER BY start_time LIMIT 1",
        "[\"lib\",\"1.2\",\"1\",\"https://schema/1\",null]",
    ),
    (
        "SELECT resource_attributes, scope_attributes FROM spans ORDER BY start_time LIMIT 1",
        "[{\"service.name\":\"cart\",\"k8s.pod.name\":\"cart-0\"},{\"x\":\"1\"}]",
    ),
    ("SELECT attribute_keys(resource_attributes) FROM spans LIMIT 1", "[[\"service.name\",\"k8s.pod.name\"]]"),
    // Events.
    (
        "SELECT events FROM spans WHERE span_id = '0000000000000005'",
        "[[{\"time\":\"2026-03-01T00:00:00.000000011Z\",\"name\":\"exception\",\"attributes\":{\"exception.message\":\"bang\",\"retries\":2},\"dropped_attributes_count\":0}]]",
    ),
    (
        "SELECT span_name, name, time, attributes['exception.message'] FROM span_events ORDER BY time",
        "[\"POST /pay\",\"exception\",\"2026-03-01T00:00:00.000000009Z\",\"boom\"]\n[\"POST /pay\",\"retry\",\"2026-03-01T00:00:00.000000010Z\",\"again\"]\n[\"POST /pay\",\"exception\",\"2026-03-01T00:00:00.000000011Z\",\"bang\"]",
    ),
    (
        "SELECT sum(attributes['retries']), min(trace_id) FROM span_events WHERE service_name = 'pay' AND name = 'exception'",
        "[4,\"5b8efff798038103d269b633813fc60c\"]",
    ),
    (
        "SELECT events[1]['name'], events[1]['attributes']['exception.message'] FROM spans WHERE span_id = '0000000000000003'",
        "[\"exception\",\"boom\"]",
    ),
    ("SELECT count(*) FROM span_links", "[0]"),
    // The other tables.
    (
        "SELECT time, severity_text, body FROM logs WHERE service_name = 'pay' ORDER BY time",
        "[\"2026-03-01T00:00:01.000000000Z\",\"ERROR\",\"card, declined\\nagain\"]\n[\"2026-03-01T00:00:02.000000000Z\",\"ERROR\",null]",
    ),
    ("SELECT attributes['code'] FROM logs WHERE attributes['code'] IS NOT NULL ORDER BY time", "[\"E1\"]\n[\"4\"]"),
    ("SELECT count(*) FROM logs WHERE severity_number >= 17 AND body ILIKE '%DECLINED%'", "[1]"),
    (
        "SELECT metric_name, value, value_int FROM metric_points ORDER BY time",
        "[\"requests\",41.0,41]\n[\"load\",1.5,null]\n[\"load\",\"Infinity\",null]",
    ),
    ("SELECT count(*), sum(count) FROM metric_histograms", "[1,0]"),
    ("SELECT count(*) FROM profiles", "[1]"),
    (
        "SELECT signal, reason, received, stored, rejected FROM ingest_ledger ORDER BY reason NULLS FIRST",
        "[\"traces\",null,6,6,0]\n[\"traces\",\"invalid_trace_id\",2,0,2]",
    ),
    ("SELECT sum(received) = sum(stored) + sum(rejected) FROM ingest_ledger", "[true]"),
    ("SELECT time FROM ingest_ledger LIMIT 1", "[\"2026-03-01T00:00:00.000000000Z\"]"),
    (
        "SHOW TABLES",
        "[\"spans\"]\n[\"span_events\"]\n[\"span_links\"]\n[\"logs\"]\n[\"metric_points\"]\n[\"metric_histograms\"]\n[\"profiles\"]\n[\"span_metrics\"]\n[\"service_edges\"]\n[\"ingest_ledger\"]",
    ),
    (
        "DESCRIBE ingest_ledger",
        "[\"time\",\"timestamp\",false]\n[\"signal\",\"text\",false]\n[\"reason\",\"text\",true]\n[\"received\",\"bigint\",false]\n[\"stored\",\"bigint\",false]\n[\"rejected\",\"bigint\",false]",
    ),
    ("VALUES (1, 'a'), (2, NULL)", "[1,\"a\"]\n[2,null]"),
    (
        "SELECT s.name, t.n FROM spans s CROSS JOIN (SELECT count(*) AS n FROM spans) t ORDER BY s.start_time LIMIT 1",
        "[\"GET /cart\",6]",
    ),
    ("SELECT replace('a-b', '-', '+'), concat('x', 'y'), 'x' || 'y'", "[\"a+b\",\"xy\",\"xy\"]"),
];

#[test]
fn the_same_answers_from_memory_from_segments_and_from_both() {
    let mut wrong = Vec::new();
    for place in [Where::Memory, Where::Segments, Where::Both] {
        let source = source(place);
        let engine = engine(&source);
        for (sql, expected) in ANSWERS {
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
fn column_names_and_types_are_what_people_typed() {
    let source = source(Where::Both);
    let engine = engine(&source);
    for (sql, expected) in [
        ("SELECT attributes['http.route'] FROM spans", r#"[{"name":"attributes['http.route']","type":"text"}]"#),
        (
            "SELECT trace_id, start_time, duration_ns, attributes, events, resource_attributes FROM spans",
            r#"[{"name":"trace_id","type":"hex"},{"name":"start_time","type":"timestamp"},{"name":"duration_ns","type":"bigint"},{"name":"attributes","type":"json"},{"name":"events","type":"json"},{"name":"resource_attributes","type":"json"}]"#,
        ),
        (
            "SELECT attributes['cached'] AS c, attributes['ratio'] AS r, attributes['http.response.status_code'] AS s, attributes['none'] AS n, attributes['server.port'] AS p FROM spans",
            r#"[{"name":"c","type":"boolean"},{"name":"r","type":"double"},{"name":"s","type":"bigint"},{"name":"n","type":"text"},{"name":"p","type":"bigint"}]"#,
        ),
        ("SELECT attributes['code'] AS log FROM logs", r#"[{"name":"log","type":"text"}]"#),
    ] {
        assert_eq!(ask(&engine, sql).unwrap().columns, expected, "{sql}");
    }
    let described = ask(&engine, "DESCRIBE spans").unwrap().rows;
    let names: Vec<String> = described.lines().map(|line| line.split('"').nth(1).unwrap().to_owned()).collect();
    assert_eq!(
        names.join(" "),
        "trace_id span_id parent_span_id trace_state flags service_name name kind start_time end_time duration_ns status_code \
         status_message attributes dropped_attributes_count events dropped_events_count links dropped_links_count \
         resource_attributes scope_name scope_version scope_attributes resource_schema_url scope_schema_url"
    );
}

#[test]
fn filters_reach_the_parquet_scan_and_time_prunes_segments() {
    let source = source(Where::Segments);
    let engine = engine(&source);
    let explain = |sql: &str| ask(&engine, &format!("EXPLAIN {sql}")).unwrap().rows;
    for (sql, expected) in [
        (
            "SELECT name FROM spans WHERE trace_id = '5b8efff798038103d269b633813fc60c'",
            "required_guarantees=[trace_id in",
        ),
        ("SELECT name FROM spans WHERE service_name = 'cart'", "required_guarantees=[service_name in (cart"),
        ("SELECT name FROM spans WHERE start_time >= '2026-03-01T00:00:02Z'", "start_time_max"),
        ("SELECT span_name FROM span_events WHERE service_name = 'cart'", "required_guarantees=[service_name in (cart"),
        ("SELECT name FROM spans WHERE status_code = 'ERROR' AND duration_ns > 5", "duration_ns_max"),
    ] {
        let plan = explain(sql);
        let plan = plan.replace("\\\"", "\"");
        assert!(plan.contains(expected) && plan.contains("file_type=parquet"), "{sql}\n{}", plan.replace("\\n", "\n"));
    }
    for (sql, pruned, scanned) in [
        ("SELECT name FROM spans", 0, 2),
        ("SELECT name FROM spans WHERE start_time >= '2026-03-01T00:00:03Z'", 1, 1),
        ("SELECT name FROM spans WHERE start_time < '2026-03-01T00:00:03Z' AND service_name = 'cart'", 1, 1),
        ("SELECT name FROM spans WHERE start_time < '2020-01-01T00:00:00Z'", 2, 0),
        ("SELECT name FROM spans WHERE start_time < '2020-01-01T00:00:00Z' OR name = 'query'", 0, 2),
        (
            "SELECT s.name FROM spans s JOIN logs l ON s.trace_id = l.trace_id WHERE l.time < '2026-03-01T00:00:01Z'",
            1,
            3,
        ),
    ] {
        let stats = ask(&engine, sql).unwrap().stats;
        assert_eq!((stats.segments_pruned, stats.segments_scanned), (pruned, scanned), "{sql}");
        assert_eq!(stats.segments_total, pruned + scanned, "{sql}");
        assert_eq!(stats.bytes_scanned > 0, scanned > 0, "{sql}");
    }
    let stats = ask(&engine, "SELECT name FROM spans WHERE service_name = 'cart'").unwrap().stats;
    assert_eq!((stats.rows, stats.rows_scanned), (3, 6));
}

#[test]
fn another_tenant_sees_none_of_it() {
    let source = source(Where::Both);
    let engine = engine(&source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let other = TenantId::new("other").unwrap();
    let (_, batches, _) = runtime
        .block_on(async { engine.query(&other, "SELECT count(*) FROM spans", limits()).await?.collect().await })
        .unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<arrow::datatypes::Int64Type>().value(0), 0);
}

fn chain(operator: &str, terms: usize) -> String {
    vec!["1"; terms].join(operator)
}

/// A source with enough rows for what multiplies or grows, in memory and in segments.
fn many_rows() -> Arc<TestSource> {
    let source = TestSource::new();
    source.segment(Table::Spans, &many_spans(300));
    source.memory(Table::Spans, many_spans(11_700));
    source.memory(Table::Logs, logs());
    Arc::new(source)
}

#[test]
fn hostile_statements_are_refused_or_bounded_and_the_engine_goes_on() {
    let source = many_rows();
    let engine = engine(&source);
    let limits = Limits { timeout: Duration::from_secs(2), rows_max: 10_000, output_bytes_max: 16 << 20 };
    let files =
        || -> Vec<_> { std::fs::read_dir(source.folder()).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let before = files();
    let rows = crate::hostile::rows();
    let mut wrong = Vec::new();
    for row in &rows {
        wrong.extend(match ask_with(&engine, &row.sql, limits) {
            Ok(answer) => row.fault(if answer.stats.truncated { "cut" } else { "answered" }, ""),
            Err(error) => row.fault(error.kind.code(), &error.message),
        });
    }
    assert!(wrong.is_empty(), "{} of {} wrong\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(rows.len() >= 80);
    assert_eq!(ask(&engine, "SELECT count(*) FROM spans").unwrap().rows, "[12000]");
    assert_eq!(before, files(), "no statement writes a file");
}

#[test]
fn what_is_just_within_the_limits_is_answered() {
    let source = source(Where::Both);
    let engine = engine(&source);
    let nested = (0..15).fold("spans".to_owned(), |inner, n| format!("(SELECT * FROM {inner}) t{n}"));
    let unions = vec!["SELECT 1 AS a"; 90].join(" UNION ALL ");
    let list: Vec<String> = (0..4_900).map(|n| n.to_string()).collect();
    for (sql, expected) in [
        (format!("SELECT {}", chain("+", 500)), "[500]"),
        (format!("SELECT count(*) FROM spans WHERE {} > 1", chain("+duration_ns+", 80)), "[4]"),
        (format!("SELECT count(*) FROM spans WHERE {}", vec!["duration_ns = 10"; 500].join(" OR ")), "[1]"),
        (
            format!(
                "SELECT count(*) FROM spans WHERE {}",
                (0..500).map(|n| format!("attributes['k{n}'] = 'x' ")).collect::<Vec<_>>().join("OR ")
            ),
            "[0]",
        ),
        (format!("SELECT {}1{}", "(".repeat(31), ")".repeat(31)), "[1]"),
        (format!("SELECT {}1{}", "abs(".repeat(31), ")".repeat(31)), "[1]"),
        (format!("SELECT count(*) FROM {nested}"), "[6]"),
        (format!("SELECT sum(a) FROM ({unions}) t"), "[90]"),
        (format!("SELECT count(*) FROM spans WHERE duration_ns IN ({})", list.join(",")), "[4]"),
        (format!("SELECT length('{}')", "x".repeat(16_000)), "[16000]"),
    ] {
        let shown: String = sql.chars().take(100).collect();
        match ask(&engine, &sql) {
            Ok(answer) => assert_eq!(answer.rows, expected, "{shown}"),
            Err(error) => panic!("{shown}: {error:?}"),
        }
    }
}

/// Enough spans for joins and sorts to be heavy.
fn many_spans(rows: i64) -> RecordBatch {
    let names: Vec<String> = (0..rows).map(|row| format!("operation {row}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    batch(
        Table::Spans,
        names.len(),
        &[
            ("name", texts(&names)),
            ("start_time", times(&(0..rows).map(|row| T0 + row).collect::<Vec<_>>())),
            ("duration_ns", Arc::new(Int64Array::from((0..rows).collect::<Vec<_>>()))),
        ],
    )
}

#[test]
fn heavy_queries_are_bounded() {
    let source = Arc::new(TestSource::new());
    source.memory(Table::Spans, many_spans(20_000));
    let config = EngineConfig { threads: 2, memory_bytes_max: 1 << 20, ..EngineConfig::default() };
    let engine = Engine::new(config, Arc::clone(&source) as Arc<dyn Source>).unwrap();
    let short = Limits { timeout: Duration::from_millis(400), ..limits() };
    for (sql, limits, kind, message) in [
        ("SELECT count(*) FROM spans a, spans b", limits(), ErrorKind::Refused, "cross join"),
        (
            "SELECT count(*) FROM spans a CROSS JOIN spans b CROSS JOIN spans c",
            limits(),
            ErrorKind::Refused,
            "cross join",
        ),
        (
            "SELECT count(*) FROM spans a JOIN spans b ON a.duration_ns < b.duration_ns",
            limits(),
            ErrorKind::Refused,
            "join without an equality",
        ),
        ("SELECT name FROM spans ORDER BY name, start_time DESC, trace_id", limits(), ErrorKind::Memory, ""),
        ("SELECT name, count(*) FROM spans GROUP BY name, duration_ns, start_time", limits(), ErrorKind::Memory, ""),
        (
            "SELECT sum(a.duration_ns * b.duration_ns) FROM spans a JOIN (SELECT * FROM spans LIMIT 4000) b ON a.service_name = b.service_name",
            short,
            ErrorKind::Timeout,
            "400 ms",
        ),
    ] {
        let error = ask_with(&engine, sql, limits).map(|answer| answer.rows).unwrap_err();
        assert_eq!(error.kind, kind, "{sql}: {error:?}");
        assert!(error.message.contains(message), "{sql}: {error:?}");
    }
    assert_eq!(ask(&engine, "SELECT count(*) FROM spans").unwrap().rows, "[20000]");
}

#[test]
fn long_answers_are_cut_off_and_say_so() {
    let source = Arc::new(TestSource::new());
    source.memory(Table::Spans, many_spans(20_000));
    let engine = engine(&source);
    for (sql, rows_max, rows, truncated) in [
        ("SELECT name FROM spans", 10, 10, true),
        ("SELECT name FROM spans LIMIT 10", 10, 10, false),
        ("SELECT name FROM spans LIMIT 0", 10, 0, false),
        ("SELECT name FROM spans", 20_000, 20_000, false),
        ("SELECT name FROM spans", 0, 0, true),
    ] {
        let stats = ask_with(&engine, sql, Limits { rows_max, ..limits() }).unwrap().stats;
        assert_eq!(
            (stats.rows, stats.truncated, stats.warnings.len()),
            (rows, truncated, usize::from(truncated)),
            "{sql}"
        );
    }
    let stats = ask_with(&engine, "SELECT name, start_time FROM spans", Limits { output_bytes_max: 1, ..limits() })
        .unwrap()
        .stats;
    assert!(stats.truncated && stats.rows < 20_000, "{stats:?}");
}

#[test]
fn a_queue_that_is_full_refuses() {
    let source = source(Where::Memory);
    let config = EngineConfig {
        threads: 2,
        concurrency_max: 1,
        queue_max: 1,
        queue_wait: Duration::from_millis(50),
        ..EngineConfig::default()
    };
    let engine = Engine::new(config, Arc::clone(&source) as Arc<dyn Source>).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let tenant = TenantId::default_tenant();
        // An answer too long for the channel keeps its permit until it is read or dropped.
        let source_rows = "SELECT a.name FROM spans a, spans b, spans c, spans d, spans e, spans f, spans g";
        let held = engine.query(&tenant, source_rows, limits()).await.unwrap();
        let (first, second) =
            tokio::join!(engine.query(&tenant, "SELECT 1", limits()), engine.query(&tenant, "SELECT 2", limits()));
        for refused in [first, second] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Busy);
            assert!(error.is_retryable());
        }
        drop(held);
        let mut answered = false;
        for _ in 0..100 {
            if engine.query(&tenant, "SELECT 1", limits()).await.is_ok() {
                answered = true;
                break;
            }
        }
        assert!(answered, "the permit of a dropped query comes back");
    });
}

#[test]
fn a_damaged_segment_is_named_and_set_aside() {
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 4] = [
        ("footer", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let end = bytes.len() - 12;
            bytes[end..].fill(0xff);
            std::fs::write(path, bytes).unwrap();
        }),
        ("truncated", |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("empty", |path| std::fs::write(path, b"").unwrap()),
        ("deleted", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        let source = Arc::new(TestSource::new());
        let rows = spans();
        source.segment(Table::Spans, &rows.slice(0, 3));
        let bad = source.segment(Table::Spans, &rows.slice(3, 3));
        let engine = engine(&source);
        damage(&bad);
        let sql = "SELECT name FROM spans WHERE service_name IN ('cart', 'pay') ORDER BY start_time";
        let answer = ask(&engine, sql).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(answer.rows, "[\"GET /cart\"]\n[\"query\"]\n[\"POST /pay\"]", "{what}");
        assert_eq!(answer.stats.warnings.len(), 1, "{what}: {:?}", answer.stats);
        let name = bad.file_name().unwrap().to_string_lossy().into_owned();
        assert!(answer.stats.warnings[0].contains(&name), "{what}: {:?}", answer.stats.warnings);
        assert!(answer.stats.warnings[0].contains("3 rows"), "{what}: {:?}", answer.stats.warnings);
        assert_eq!(source.quarantined(), [2], "{what}");
        let again = ask(&engine, sql).unwrap();
        assert!(again.stats.warnings.is_empty(), "{what}: {:?}", again.stats.warnings);
        assert_eq!(again.stats.segments_scanned, 1, "{what}");
    }
}

#[test]
fn a_segment_that_vanishes_under_a_query_is_named_and_the_next_one_does_without() {
    let source = Arc::new(TestSource::new());
    let rows = many_spans(6_000);
    let paths: Vec<_> = (0..4).map(|part| source.segment(Table::Spans, &rows.slice(part * 1_500, 1_500))).collect();
    let config = EngineConfig { threads: 1, ..EngineConfig::default() };
    let engine = Engine::new(config, Arc::clone(&source) as Arc<dyn Source>).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let text = "x".repeat(4_000);
    let error = runtime.block_on(async {
        let sql = format!("SELECT name || '{text}' FROM spans");
        let mut output = engine.query(&TenantId::default_tenant(), &sql, limits()).await.unwrap();
        assert!(output.next().await.unwrap().is_ok(), "rows were handed out before");
        std::fs::remove_file(&paths[3]).unwrap();
        loop {
            match output.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("a segment is missing from an answer that says nothing of it"),
            }
        }
    });
    let name = paths[3].file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains(&name) && error.is_retryable(), "{error:?}");
    assert_eq!(ask(&engine, "SELECT count(*), count(DISTINCT name) FROM spans").unwrap().rows, "[4500,4500]");
}

#[test]
fn statistics_tell_what_a_query_took() {
    let source = many_rows();
    let engine = engine(&source);
    for (sql, peak) in [
        ("SELECT sum(duration_ns) FROM spans", false),
        ("SELECT name, count(*) FROM spans GROUP BY name ORDER BY 2, 1 LIMIT 3", true),
        ("SELECT a.name FROM spans a JOIN spans b ON a.name = b.name WHERE a.duration_ns < 5", true),
    ] {
        let stats = ask(&engine, sql).unwrap().stats;
        assert!(stats.memory_peak_bytes > 0 && stats.memory_peak_bytes < 64 << 20, "{sql}: {stats:?}");
        assert!(!peak || stats.memory_peak_bytes > 100_000, "{sql}: {stats:?}");
        assert!(stats.rows_scanned >= 12_000 && stats.segments_scanned >= 1, "{sql}: {stats:?}");
    }
    let refused = ask_with(&engine, "SELECT name FROM spans ORDER BY name", Limits { rows_max: 5, ..limits() });
    assert!(refused.unwrap().stats.memory_peak_bytes > 0);
}

#[test]
fn explain_analyze_runs_queries() {
    let source = source(Where::Both);
    let engine = engine(&source);
    let plan = ask(&engine, "EXPLAIN ANALYZE SELECT name FROM spans WHERE service_name = 'cart'").unwrap().rows;
    assert!(plan.contains("output_rows"), "{plan}");
}

fn rendered(sql: &str, write: impl Fn(&arrow::datatypes::Schema, &[RecordBatch]) -> String) -> String {
    let source = source(Where::Both);
    let engine = engine(&source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (schema, batches, _) = runtime
        .block_on(async { engine.query(&TenantId::default_tenant(), sql, limits()).await?.collect().await })
        .unwrap();
    write(&schema, &batches)
}

#[test]
fn csv_and_ndjson_and_arrow() {
    let csv = |schema: &arrow::datatypes::Schema, batches: &[RecordBatch]| {
        let mut out = String::new();
        render::header_csv(schema, &mut out);
        batches.iter().for_each(|batch| render::rows_csv(batch, &mut out).unwrap());
        out
    };
    for (sql, expected) in [
        (
            "SELECT body, trace_id, attributes FROM logs ORDER BY time",
            "body,trace_id,attributes\r\n\"hello \"\"you\"\"\",5b8efff798038103d269b633813fc60c,\"{\"\"code\"\":\"\"E1\"\"}\"\r\n\"card, declined\nagain\",,\"{\"\"code\"\":4}\"\r\n,,{}\r\n",
        ),
        (
            "SELECT status_message, duration_ns FROM spans WHERE duration_ns < 0",
            "status_message,duration_ns\r\n'=cmd|x,-5\r\n",
        ),
        (
            "VALUES ('+1'), ('-1'), ('@x'), (chr(9) || 'x'), (chr(13) || 'x'), ('a=b'), (''), (NULL), (' x')",
            "column1\r\n'+1\r\n'-1\r\n'@x\r\n'\tx\r\n\"'\rx\"\r\na=b\r\n\"\"\r\n\r\n\" x\"\r\n",
        ),
        (
            "SELECT value, time FROM metric_points ORDER BY time",
            "value,time\r\n41.0,2026-03-01T00:00:00.000000000Z\r\n1.5,2026-03-01T00:00:01.000000000Z\r\nInfinity,2026-03-01T00:00:02.000000000Z\r\n",
        ),
        ("SELECT 1 AS \"=a\", true AS \"b,c\"", "'=a,\"b,c\"\r\n1,true\r\n"),
    ] {
        assert_eq!(rendered(sql, csv), expected, "{sql}");
    }
    let ndjson = |_: &arrow::datatypes::Schema, batches: &[RecordBatch]| {
        let mut out = String::new();
        batches.iter().for_each(|batch| render::rows_ndjson(batch, &mut out).unwrap());
        out
    };
    for (sql, expected) in [
        (
            "SELECT name, attributes FROM spans WHERE span_id = '0000000000000002'",
            "{\"name\":\"query\",\"attributes\":{\"db.rows\":3,\"mixed\":\"seven\"}}\n",
        ),
        (
            "SELECT 18446744073709551615 AS u, -9223372036854775807 AS i, CAST('NaN' AS DOUBLE) AS n",
            "{\"u\":18446744073709551615,\"i\":-9223372036854775807,\"n\":\"NaN\"}\n",
        ),
        (
            "SELECT [1, 2] AS l, {'a': 1.0, 'b': NULL} AS s, X'00ff' AS b",
            "{\"l\":[1,2],\"s\":{\"a\":1.0,\"b\":null},\"b\":\"AP8=\"}\n",
        ),
    ] {
        assert_eq!(rendered(sql, ndjson), expected, "{sql}");
    }
    let arrow = |schema: &arrow::datatypes::Schema, batches: &[RecordBatch]| {
        let schema = render::arrow_schema(schema);
        let types = schema.fields().iter().map(|field| field.data_type().to_string()).collect::<Vec<_>>().join(" ");
        let batch = render::arrow_batch(&batches[0], &schema).unwrap();
        let row = batch.columns().iter().map(|column| arrow::util::display::array_value_to_string(column, 0).unwrap());
        format!("{types}\n{}", row.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(
        rendered(
            "SELECT trace_id, duration_ns, scope_attributes, attribute_keys(attributes) AS k FROM spans ORDER BY start_time LIMIT 1",
            arrow
        ),
        "Utf8 Int64 Utf8 List(Utf8)\n5b8efff798038103d269b633813fc60c 10 {\"x\":\"1\"} [http.route, http.response.status_code, ratio, cached, mixed]"
    );
}
