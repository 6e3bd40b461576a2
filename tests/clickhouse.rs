//! The whole process on ClickHouse's own engine: the same questions have the same answers on either storage, and what was
//! acknowledged is there once, whoever is killed.
//!
//! The engine is `fixtures`' ClickHouse; nothing is mocked. Questions are in `clickhouse/queries.sql`, the awkward telemetry
//! in `clickhouse/edges.json`. Not here: how rows are written (`ingest/clickhouse/tests`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::http::Request;
use common::oracle::{SIGNALS, Sending, check_ledger, now_ns};
use common::{Server, Setup, came};
use fixtures::otlp::Signal;
use fixtures::parts::clickhouse::{ClickHouse, ClickHouseConfig};
use fixtures::shop::{Shop, ShopConfig};
use prost::Message as _;
use serde_json::Value;

/// How long rows may take into ClickHouse on a busy machine: they go every second.
const STORED_WITHIN: Duration = Duration::from_secs(60);

/// How far sums of the same doubles in another order may be apart.
const SUM_TOLERANCE: f64 = 1e-12;

/// Both are within 0.6 % of the number.
const SKETCH_TOLERANCE: f64 = 0.012;

fn on(clickhouse: &str) -> Setup {
    Setup::new().flag("--storage").flag("clickhouse").flag("--clickhouse-url").flag(clickhouse)
}

/// Waits until ClickHouse has every acknowledged row.
fn stored(server: &Server) {
    let waiting = || server.metric("godseye_store_memtable_rows").unwrap_or(1.0);
    let done = came(STORED_WITHIN, || (waiting() == 0.0).then_some(()));
    assert!(done.is_some(), "{} rows wait still: {:#?}", waiting(), server.log());
    // Kinds of keys are asked for anew after a second.
    common::pause(Duration::from_millis(1_100));
}

/// What ClickHouse itself answers, without anything of ours between.
fn ask(url: &str, sql: &str) -> String {
    let to = url.strip_prefix("http://").unwrap().parse().unwrap();
    let answer = Request::new("POST", "/").body(sql.as_bytes()).send(to).unwrap();
    let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
    assert_eq!(answer.status, 200, "{sql}: {text}");
    text
}

fn post(server: &Server, path: &str, kind: &str, body: &[u8]) {
    let answer = Request::new("POST", path).header("content-type", kind).body(body).send(server.otlp_http).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status == 200 && !text.contains("rejected"), "{path}: {} {text}", answer.status);
}

/// A minute of the shop, and the awkward cases, to every server alike.
fn send_telemetry(servers: &[&Server]) {
    const SECOND: u64 = 1_000_000_000;
    let end = now_ns() / SECOND * SECOND - 60 * SECOND;
    let start = end - 65 * SECOND;
    let config = ShopConfig { seed: 7, requests_per_second: 3.0, daily_rhythm: false, ..ShopConfig::default() };
    let mut shop = Shop::new(config.with_leaking_deploy(start + 20 * SECOND));
    for tick in 0..65 {
        let from = start + tick * SECOND;
        let told = shop.tick(from, from + SECOND);
        let protobuf = "application/x-protobuf";
        for server in servers {
            told.traces.iter().for_each(|m| post(server, Signal::Traces.http_path(), protobuf, &m.encode_to_vec()));
            told.logs.iter().for_each(|m| post(server, Signal::Logs.http_path(), protobuf, &m.encode_to_vec()));
            told.metrics.iter().for_each(|m| post(server, Signal::Metrics.http_path(), protobuf, &m.encode_to_vec()));
            told.profiles.iter().for_each(|m| post(server, Signal::Profiles.http_path(), protobuf, &m.encode_to_vec()));
        }
    }
    let mut text = include_str!("clickhouse/edges.json").to_owned();
    for second in 0..10 {
        text = text.replace(&format!("\"@{second}\""), &format!("\"{}\"", start + second * SECOND + 123_456_789));
    }
    let edges: Value = serde_json::from_str(&text).unwrap();
    for (path, message) in edges.as_object().unwrap() {
        for server in servers {
            post(server, path, "application/json", message.to_string().as_bytes());
        }
    }
}

/// The rows of an answer, in the order they must have, or sorted where they have none.
fn rows(server: &Server, sql: &str) -> Vec<Vec<Value>> {
    let answer = server.sql(sql);
    let rows = answer["rows"].as_array().unwrap().iter();
    let mut rows: Vec<Vec<Value>> = rows.map(|row| row.as_array().unwrap().clone()).collect();
    if !sql.contains("ORDER BY") {
        rows.sort_by_key(|row| format!("{row:?}"));
    }
    rows
}

fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) if tolerance > 0.0 => (x - y).abs() <= tolerance * x.abs().max(y.abs()),
        _ => a == b,
    }
}

#[test]
fn the_same_questions_have_the_same_answers() {
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start_own(&ClickHouseConfig::new(folder.path())).unwrap();
    let embedded = Server::start();
    let remote = on(clickhouse.url()).start();
    send_telemetry(&[&embedded, &remote]);
    // Another tenant's rows, which no question may see.
    let other = "INSERT INTO godseye.spans SELECT * REPLACE ('other' AS tenant) FROM godseye.spans";
    stored(&remote);
    ask(clickhouse.url(), other);

    let (mut asked, mut wrong) = (0, Vec::new());
    let only = std::env::var("GODSEYE_ONLY").unwrap_or_default();
    for line in include_str!("clickhouse/queries.sql").lines().filter(|line| !line.starts_with("--")) {
        let (place, sql) = line.split_once('|').unwrap();
        let (place, sql) = (place.trim(), sql.trim());
        if !sql.contains(&only) {
            continue;
        }
        asked += 1;
        let tolerance = match place.chars().last() {
            Some('~') => SUM_TOLERANCE,
            Some('%') => SKETCH_TOLERANCE,
            _ => 0.0,
        };
        let expected = rows(&embedded, sql);
        let answer = remote.query(sql, "json");
        if answer.status != 200 {
            wrong.push(format!("{sql}\n  {}", String::from_utf8_lossy(&answer.body)));
            continue;
        }
        let found = rows(&remote, sql);
        let plan = rows(&remote, &format!("EXPLAIN {sql}"));
        let plan: String = plan.iter().map(|row| format!("{}\n", row[1].as_str().unwrap())).collect();
        let is_same = expected.len() == found.len()
            && expected.iter().zip(&found).all(|(a, b)| a.iter().zip(b).all(|(a, b)| same(a, b, tolerance)));
        if !is_same {
            let first = expected.iter().zip(&found).find(|(a, b)| a != b);
            wrong.push(format!(
                "{sql}\n  {} rows, expected {}; the first that differs: {first:#?}\n{plan}",
                found.len(),
                expected.len()
            ));
        }
        let is_there = !plan.contains("not in ClickHouse") && !plan.contains("TraceExec");
        if is_there != place.starts_with("there") {
            wrong.push(format!("{sql}\n  should run {place}:\n{plan}"));
        }
        if !plan.contains("clickhouse=SELECT")
            || plan.matches("FROM `godseye`").count() != plan.matches("tenant = 'default'").count()
        {
            wrong.push(format!("{sql}\n  asks ClickHouse without its tenant, or not at all:\n{plan}"));
        }
        if expected.is_empty() {
            wrong.push(format!("{sql}\n  finds nothing, so it proves nothing"));
        }
    }
    assert!(wrong.is_empty(), "{} of {asked} questions:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(asked >= 60 || !only.is_empty(), "{asked} questions");
    limits_hold_there(clickhouse.url());
}

/// Time and memory of a query are bounded in ClickHouse, and what it ran is gone with it.
fn limits_hold_there(url: &str) {
    let many =
        "FROM spans a JOIN spans b ON a.kind = b.kind JOIN spans c ON a.kind = c.kind JOIN spans d ON a.kind = d.kind";
    let hasty = on(url).config("query: { timeout: 1s }").start();
    let answer = hasty.query(&format!("SELECT count(*) {many}"), "json");
    assert_eq!(answer.status, 504, "{}", String::from_utf8_lossy(&answer.body));
    let poor = on(url).config("storage: { clickhouse: { query_memory_bytes: 64MiB } }").start();
    let answer = poor.query(&format!("SELECT count(DISTINCT a.span_id || b.span_id || c.span_id) {many}"), "json");
    assert_eq!(answer.status, 507, "{}", String::from_utf8_lossy(&answer.body));
    let gone = came(STORED_WITHIN, || {
        (ask(url, "SELECT count() FROM system.processes WHERE query LIKE '%JOIN%' AND query NOT LIKE '%system%'")
            == "0")
            .then_some(())
    });
    assert!(gone.is_some(), "a query that nobody waits for still runs");
}

/// A port that is free now, for a server that comes later.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn every_acknowledged_row_is_there_once_whoever_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let part = ClickHouseConfig { port: free_port(), ..ClickHouseConfig::new(folder.path()) };
    let mut clickhouse = ClickHouse::start_own(&part).unwrap();
    let mut server = on(clickhouse.url()).start();
    let mut runs = Vec::new();
    for cycle in 0..3 {
        let load = Sending::new(&format!("we-{cycle}")).start(&server);
        assert!(
            came(STORED_WITHIN, || (load.acked() >= 150 + cycle * 100).then_some(())).is_some(),
            "nothing is taken"
        );
        server.kill();
        runs.push(load.finish());
        server.restart();
    }
    for cycle in 0..2 {
        let load = Sending::new(&format!("it-{cycle}")).start(&server);
        assert!(came(STORED_WITHIN, || (load.acked() >= 150).then_some(())).is_some(), "nothing is taken");
        clickhouse.kill();
        let before = load.acked();
        assert!(
            came(STORED_WITHIN, || (load.acked() >= before + 50).then_some(())).is_some(),
            "the log takes rows meanwhile"
        );
        let told = came(STORED_WITHIN, || {
            let answer = server.get("/readyz");
            String::from_utf8_lossy(&answer.body).contains("ClickHouse").then_some(())
        });
        assert!(told.is_some(), "/readyz says what is wrong");
        // Questions fail at once, and may be asked again.
        assert_eq!(server.query("SELECT count(*) FROM spans", "json").status, 503);
        clickhouse = ClickHouse::start_own(&part).unwrap();
        runs.push(load.stop());
    }
    stored(&server);
    for sent in &runs {
        sent.check(&server, "at the end");
    }
    check_ledger(&server, "at the end");
    // And ClickHouse says so itself.
    for signal in SIGNALS {
        let table = common::oracle::table(signal);
        let counted = ask(clickhouse.url(), &format!("SELECT count() FROM godseye.{table}"));
        assert_eq!(counted, server.number(&format!("SELECT count(*) FROM {table}")).to_string(), "{table}");
    }
    assert!(!String::from_utf8_lossy(&server.get("/readyz").body).contains("ClickHouse"), "all is well again");
    assert!(server.metric("godseye_clickhouse_failures_total").unwrap() > 0.0);
    assert!(server.terminate().success());
}

#[test]
fn without_clickhouse_it_takes_what_fits_refuses_the_rest_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let part = ClickHouseConfig { port: free_port(), ..ClickHouseConfig::new(folder.path()) };
    let url = format!("http://127.0.0.1:{}", part.port);
    let server = on(&url).config("storage: { memtable: { max_bytes: 16MiB, flush_bytes: 4MiB } }").start();
    let ready = String::from_utf8_lossy(&server.get("/readyz").body).into_owned();
    assert!(ready.contains("cannot talk to ClickHouse"), "{ready}");

    let mut sent = common::oracle::Sent::nothing("kept", 2_000);
    let refused = (0..500).find_map(|_| Some(sent.post(&server, Signal::Logs)).filter(|answer| answer.status != 200));
    let refused = refused.expect("memory has a bound");
    assert!([429, 503].contains(&refused.status), "a refusal that may be sent again: {}", refused.status);
    assert!(sent.acked() > 3, "{} requests were taken", sent.acked());

    let clickhouse = ClickHouse::start_own(&part).unwrap();
    let taken = came(STORED_WITHIN, || (sent.post(&server, Signal::Logs).status == 200).then_some(()));
    assert!(taken.is_some(), "it goes on: {:#?}", server.log());
    stored(&server);
    sent.check(&server, "at the end");
    let counted = ask(clickhouse.url(), "SELECT count() FROM godseye.logs");
    assert_eq!(counted, (sent.acked() * 2_000).to_string());
}

#[test]
fn a_password_that_is_wrong_ends_the_start_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let part = ClickHouseConfig { password: "right".to_owned(), ..ClickHouseConfig::new(folder.path()) };
    let clickhouse = ClickHouse::start_own(&part).unwrap();
    let ended = on(clickhouse.url()).env("GODSEYE_CLICKHOUSE_PASSWORD", "wrong-wrong").try_start().unwrap_err().0;
    let log = ended.log.join("\n");
    assert_eq!(ended.status.code(), Some(1), "{log}");
    assert!(log.contains("Authentication failed") && !log.contains("wrong-wrong"), "{log}");
    let server = on(clickhouse.url()).env("GODSEYE_CLICKHOUSE_PASSWORD", "right").start();
    assert_eq!(server.number("SELECT count(*) FROM spans"), 0);
}

/// What the Collector's exporter would have written, for a few rows of each table.
#[test]
fn the_collectors_tables_are_filled_when_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start_own(&ClickHouseConfig::new(folder.path())).unwrap();
    let mut server = on(clickhouse.url()).config("storage: { clickhouse: { otel_tables: true } }").start();
    send_telemetry(&[&server]);
    stored(&server);
    let url = clickhouse.url();
    for (sql, expected) in [
        ("SELECT count() = (SELECT count() FROM godseye.spans) FROM godseye.otel_traces", "1"),
        ("SELECT count() = (SELECT count() FROM godseye.logs) FROM godseye.otel_logs", "1"),
        (
            "SELECT (SELECT count() FROM godseye.otel_metrics_gauge) + (SELECT count() FROM godseye.otel_metrics_sum) \
             = (SELECT count() FROM godseye.metric_points)",
            "1",
        ),
        (
            "SELECT TraceId, SpanId, ParentSpanId, SpanKind, StatusCode, StatusMessage, Duration FROM godseye.otel_traces \
             WHERE ServiceName = 'edge' ORDER BY SpanId LIMIT 2",
            "5b8efff798038103d269b633813fc60c\teee19b7ec3c1b174\t\tServer\tError\tboom\t7000000000\n\
             5b8efff798038103d269b633813fc60c\teee19b7ec3c1b175\teee19b7ec3c1b174\tClient\tUnset\t\t0",
        ),
        (
            "SELECT SpanAttributes['ratio'], SpanAttributes['flag'], SpanAttributes['number'], ResourceAttributes['replicas'], \
             ScopeName, Events.Name, Events.Attributes[1]['exception.message'], Links.TraceId, Links.Attributes[1]['why'] \
             FROM godseye.otel_traces WHERE SpanId = 'eee19b7ec3c1b174'",
            "0.25\tfalse\t-9223372036854775808\t3\tscope-a\t['exception','log']\tno 50% left_\t\
             ['0af7651916cd43dd8448eb211c80319c']\tretry",
        ),
        (
            "SELECT SeverityText, SeverityNumber, Body, LogAttributes['user.id'], ScopeName, TraceId = '' FROM godseye.otel_logs \
             WHERE ServiceName = 'edge' ORDER BY Timestamp LIMIT 1",
            "ERROR\t17\tpayment declined: insufficient_funds 50%\t42\tlogger\t1",
        ),
        (
            "SELECT Value, Attributes['case'] FROM godseye.otel_metrics_gauge WHERE MetricName = 'edge.gauge' AND Value = -3",
            "-3\tint",
        ),
        (
            "SELECT Count, Sum, Min, Max, ExplicitBounds, BucketCounts, AggregationTemporality, Exemplars.Value, Exemplars.SpanId \
             FROM godseye.otel_metrics_histogram WHERE MetricName = 'edge.histogram' AND Count > 0",
            "10\t55.5\t0.5\t9.5\t[1,5,10]\t[1,4,5,0]\t1\t[4.5]\t['eee19b7ec3c1b174']",
        ),
        (
            "SELECT Count, Scale, ZeroCount, PositiveOffset, PositiveBucketCounts, NegativeOffset, NegativeBucketCounts \
             FROM godseye.otel_metrics_exponential_histogram WHERE MetricName = 'edge.exponential' ORDER BY TimeUnix",
            "7\t2\t1\t-2\t[1,0,3]\t1\t[2]\n3\t0\t3\t0\t[]\t0\t[]",
        ),
        (
            "SELECT Count, Sum, ValueAtQuantiles.Quantile, ValueAtQuantiles.Value FROM godseye.otel_metrics_summary \
             WHERE MetricName = 'edge.summary'",
            "4\t10\t[0.5,1]\t[2,4]",
        ),
        ("SELECT count() FROM godseye.otel_traces_trace_id_ts WHERE TraceId = '5b8efff798038103d269b633813fc60d'", "1"),
    ] {
        assert_eq!(ask(url, sql), expected, "{sql}");
    }
    // Off again, nothing more comes, and what is there stays.
    assert!(server.terminate().success());
    server.setup().set_config("");
    server.restart();
    let before = ask(url, "SELECT count() FROM godseye.otel_logs");
    let mut sent = common::oracle::Sent::nothing("later", 5);
    assert_eq!(sent.post(&server, Signal::Logs).status, 200);
    stored(&server);
    assert_eq!(ask(url, "SELECT count() FROM godseye.otel_logs"), before);
    assert_eq!(server.number("SELECT count(*) FROM logs WHERE attributes['load.run'] = 'later'"), 5);
}

/// An SLO over the requests of the shop's front end.
const SLO: &str = "
apiVersion: openslo/v1
kind: SLO
metadata: { name: frontend }
spec:
  service: frontend
  indicator:
    metadata: { name: frontend-errors }
    spec:
      ratioMetric:
        bad: { metricSource: { type: godseye, spec: { table: spans, where: \"status_code = 'ERROR'\" } } }
        total: { metricSource: { type: godseye, spec: { table: spans, service: frontend, where: \"kind = 'SERVER'\" } } }
  timeWindow: [{ duration: 1d, isRolling: true }]
  budgetingMethod: Occurrences
  objectives: [{ displayName: answers, target: 0.99 }]
";

#[test]
fn an_slo_counts_what_clickhouse_has_once() {
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start_own(&ClickHouseConfig::new(folder.path())).unwrap();
    let mut server = on(clickhouse.url()).start();
    send_telemetry(&[&server]);
    stored(&server);
    let requests = "SELECT count(*) FROM spans WHERE service_name = 'frontend' AND kind = 'SERVER'";
    let expected = server.number(requests);
    assert!(expected > 50, "{expected}");
    // What was stored before anybody watched is counted, and counted once over a restart and a kill.
    let document = folder.path().join("slo.yaml");
    std::fs::write(&document, SLO).unwrap();
    assert!(server.terminate().success());
    for _ in 0..2 {
        server.setup().set_env("GODSEYE_SLOS", document.to_str());
        server.restart();
        let counted = "SELECT coalesce(sum(total), 0) FROM slo_counts WHERE width_ms = 3600000";
        let mut last = 0;
        let is_right = came(STORED_WITHIN, || {
            last = server.number(counted);
            (last == expected).then_some(())
        });
        assert!(is_right.is_some(), "{last} events counted of {expected}: {:#?}", server.log());
        server.kill();
    }
}

#[test]
fn calls_are_found_however_late_their_halves_come() {
    const SECOND: u64 = 1_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let clickhouse = ClickHouse::start_own(&ClickHouseConfig::new(folder.path())).unwrap();
    let mut server = on(clickhouse.url()).start();
    // A span of one service: its number, that of its parent, what it says of its peer, and how many seconds ago.
    let span = |service: &str, kind: u8, number: u8, parent: u8, peer: &str, ago: u64| {
        let start = now_ns() / (10 * SECOND) * 10 * SECOND - ago * SECOND;
        let parent =
            if parent == 0 { String::new() } else { format!(r#""parentSpanId": "00000000000000{parent:02x}","#) };
        format!(
            r#"{{"resourceSpans": [{{"resource": {{"attributes": [
                {{"key": "service.name", "value": {{"stringValue": "{service}"}}}}]}}, "scopeSpans": [{{"spans": [{{
                "traceId": "0102030405060708090a0b0c0d0e0f10", "spanId": "00000000000000{number:02x}", {parent}
                "name": "x", "kind": {kind}, "startTimeUnixNano": "{start}", "endTimeUnixNano": "{}",
                "attributes": [{{"key": "peer.service", "value": {{"stringValue": "{peer}"}}}},
                {{"key": "http.request.method", "value": {{"stringValue": "GET"}}}}]}}]}}]}}]}}"#,
            start + 1_000_000
        )
    };
    let (client, callee) = (3, 2);
    let edges = "SELECT client, server, connection_type, server_inferred, sum(count), sum(client_duration_sum_ns) \
                 FROM service_edges GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4";
    let found = |server: &Server| {
        let rows = rows(server, edges);
        rows.iter().map(|row| row.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let inferred = r#""a" "b" "http" true 1 1000000"#;
    let joined = r#""a" "b" "http" false 1 1000000"#;
    let database = r#""b" "store" "http" true 1 1000000"#;
    for (what, message, expected) in [
        ("a caller that nobody answers", span("a", client, 1, 0, "b", 100), vec![inferred]),
        ("a callee of half an hour before", span("b", callee, 2, 1, "", 1_900), vec![joined]),
        ("the same service is no call", span("b", callee, 3, 2, "", 90), vec![joined]),
        ("a call to what sends nothing", span("b", client, 4, 2, "store", 90), vec![joined, database]),
    ] {
        post(&server, Signal::Traces.http_path(), "application/json", message.as_bytes());
        stored(&server);
        assert_eq!(found(&server), expected, "{what}");
        // Nothing of it is anywhere but in the spans.
        server.kill();
        server.restart();
        assert_eq!(found(&server), expected, "{what}, after a kill");
    }
    // Within bounds of time the other half is found beyond them.
    let bounded =
        "SELECT sum(count) FROM service_edges WHERE NOT server_inferred AND time < now() - INTERVAL '20 minutes'";
    assert_eq!(server.number(bounded), 1);
    let bounded = "SELECT count(*) FROM service_edges WHERE server = 'b' AND time > now() - INTERVAL '20 minutes'";
    assert_eq!(server.number(bounded), 0, "a caller whose callee is older is not a call of its own");
}

/// A rule over the spans of the shop that always holds, and one that is recorded.
const RULES: &str = "
groups:
- name: shop
  interval: 1s
  rules:
  - alert: Carts
    expr_sql: SELECT service_name, count(*) AS value FROM spans WHERE service_name = 'cart' GROUP BY 1
  - record: edge:spans:count
    expr_sql: SELECT sum(count) AS value FROM span_metrics WHERE service_name = 'edge'
";

#[test]
fn queries_and_rules_can_be_processes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let part = ClickHouseConfig { port: free_port(), ..ClickHouseConfig::new(folder.path()) };
    let mut clickhouse = ClickHouse::start_own(&part).unwrap();
    let rules = folder.path().join("rules.yml");
    std::fs::write(&rules, RULES).unwrap();
    let mut feeding = on(clickhouse.url()).start();
    send_telemetry(&[&feeding]);
    stored(&feeding);
    let role = |role: &str| on(clickhouse.url()).flag("--role").flag(role);
    let mut asked = role("query").start();
    let mut judging = role("control").flag("--rules").flag(rules.to_str().unwrap()).start();
    for server in [&asked, &judging] {
        assert_eq!((server.otlp_grpc.port(), server.otlp_http.port()), (0, 0), "no receivers");
        assert_eq!(server.get("/readyz").status, 200);
        assert!(server.metric("godseye_store_memtable_rows").is_some());
        for table in ["spans", "span_metrics", "service_edges", "logs"] {
            let sql = format!("SELECT count(*) FROM {table}");
            assert_eq!(server.number(&sql), feeding.number(&sql), "{table}");
        }
        let followed = server.get("/api/v1/tail?table=spans");
        let text = String::from_utf8_lossy(&followed.body).into_owned();
        assert!(followed.status == 400 && text.contains("no telemetry comes into this process"), "{text}");
    }
    // The rules are evaluated by one, and what it records is there for the other.
    let alerts = came(STORED_WITHIN, || {
        let text = String::from_utf8_lossy(&judging.get("/alertmanager/api/v2/alerts").body).into_owned();
        text.contains("Carts").then_some(text)
    });
    assert!(alerts.is_some(), "{:#?}", judging.log());
    let recorded = "SELECT max(value) FROM metric_points WHERE metric_name = 'edge:spans:count'";
    let edge = feeding.number("SELECT count(*) FROM spans WHERE service_name = 'edge'");
    let mut last = Value::Null;
    let is_there = came(STORED_WITHIN, || {
        last = rows(&asked, recorded)[0][0].clone();
        (last.as_f64() == Some(edge as f64)).then_some(())
    });
    assert!(is_there.is_some(), "{last} recorded, expected {edge}: {:#?}", judging.log());
    assert_eq!(asked.get("/alertmanager/api/v2/alerts").status, 404, "queries judge nothing");
    for server in [&mut judging, &mut feeding] {
        assert!(server.terminate().success());
    }
    // Between questions, too, it is told that there is nobody to ask.
    for is_there in [false, true] {
        if is_there {
            clickhouse = ClickHouse::start_own(&part).unwrap();
        } else {
            clickhouse.kill();
        }
        let told = came(STORED_WITHIN, || {
            let text = String::from_utf8_lossy(&asked.get("/readyz").body).into_owned();
            (text.contains("ClickHouse") != is_there).then_some(())
        });
        assert!(told.is_some(), "there: {is_there}: {}", String::from_utf8_lossy(&asked.get("/readyz").body));
    }
    assert!(asked.terminate().success());

    // A directory whose rows are elsewhere is not opened as if they were in it.
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_godseye"))
        .args(["backtest", "--from", "1h", "--rules", rules.to_str().unwrap(), "--data-dir"])
        .arg(feeding.data_dir())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && text.contains("in ClickHouse") && text.contains("--server"), "{text}");
}

#[test]
fn roles_that_cannot_be_played_end_the_start() {
    let slo = "alerting: { slos: [slo.yaml] }";
    let clickhouse = "--storage clickhouse --clickhouse-url http://127.0.0.1:1";
    for (flags, config, expected) in [
        ("--role query", "", "expected `storage.engine: clickhouse`"),
        ("--role control", "", "expected `storage.engine: clickhouse`"),
        (&format!("--role control {clickhouse}"), slo, "SLOs count it as it is stored"),
        (&format!("--role query {clickhouse}"), slo, "`role: query` judges nothing"),
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let ended = Setup::new().config(config).run_to_end(&flags);
        let log = ended.log.join("\n");
        assert!(ended.status.code() == Some(78) && log.contains(expected), "{flags:?}: {ended}");
    }
}
