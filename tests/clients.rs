//! Clients we did not write: OpenTelemetry's Python SDK exports every shape of telemetry it can make, straight
//! and through the agent `rotel`, and SQL finds exactly what was sent.
//!
//! The SDK's side is `clients/sdk.py`; the tables below are what must come out of it. Not here: requests that
//! break the rules (see `conformance.rs`), and speed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Server;
use fixtures::load::{self, LoadConfig, Source};
use fixtures::otlp::Signal;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// How long an agent may take to listen, and to pass on what it has taken.
const AGENT_WITHIN: Duration = Duration::from_secs(60);

/// What one run of `sdk.py` exports: spans, logs, number points and histogram points.
const SDK_ROWS: [(&str, u64); 4] = [("spans", 6), ("logs", 9), ("metric_points", 9), ("metric_histograms", 2)];

/// The attributes that `sdk.py` puts on its first span and its first log record: one of every kind.
const EVERY_KIND: &str = r#"{"text": "caffè ☕ 😀 \"quoted\" \\ \n", "text.empty": "", "int": 42,
    "int.min": -9223372036854775808, "int.max": 9223372036854775807, "double": 0.1, "double.whole": 3.0,
    "double.tiny": 5e-324, "bool.true": true, "bool.false": false, "bytes": "AAH+/w==", "array.text": ["a", "", "ü"],
    "array.int": [1, -2, 3], "array.double": [0.5, 1.0], "array.bool": [true, false], "array.empty": [],
    "map": {"inner": {"deep": [1, "two", {"three": 3.5}]}, "none": null}, "none": null}"#;

/// What SQL must find after one run of `sdk.py`: what it shows, the statement, and its rows as JSON.
///
/// `$service` is the service's name and `$t0` the run's first instant. In ids, `$run8` and `$run4` are the run's
/// number in hex. `$every_kind` is [`EVERY_KIND`]. The times of exemplars are the SDK's own and are not compared.
const FOUND: [(&str, &str, &str); 19] = [
    (
        "spans, with their tree, times and status",
        "SELECT trace_id, span_id, parent_span_id, name, kind, CAST(start_time AS BIGINT) - $t0, CAST(end_time AS BIGINT) - $t0,
             duration_ns, status_code, status_message
         FROM spans WHERE service_name = '$service' ORDER BY span_id",
        r#"[
        ["0af7651916cd43dd$run800000001", "b7ad$run400000001", "000000000000cafe", "POST /cart/{id}", "SERVER", 0, 50000000, 50000000, "OK", ""],
        ["0af7651916cd43dd$run800000001", "b7ad$run400000002", "b7ad$run400000001", "SELECT cart", "CLIENT", 10000000, 15000000, 5000000, "UNSET", ""],
        ["0af7651916cd43dd$run800000001", "b7ad$run400000003", "b7ad$run400000001", "charge", "INTERNAL", 20000000, 25000000, 5000000, "ERROR", "card declined"],
        ["0af7651916cd43dd$run800000001", "b7ad$run400000004", "b7ad$run400000001", "publish orders", "PRODUCER", 30000000, 31000007, 1000007, "UNSET", ""],
        ["0af7651916cd43dd$run800000002", "b7ad$run400000005", null, "process orders", "CONSUMER", 40000000, 45000000, 5000000, "UNSET", ""],
        ["0af7651916cd43dd$run800000064", "b7ad$run400000064", null, "cut", "INTERNAL", 0, 1000000, 1000000, "UNSET", ""]]"#,
    ),
    (
        "trace state and flags: bit 8 says that bit 9, a remote parent, is known",
        "SELECT trace_state, flags FROM spans WHERE service_name = '$service' AND span_id IN ('b7ad$run400000001', 'b7ad$run400000002', 'b7ad$run400000005') ORDER BY span_id",
        r#"[["vendor=abc,b=2", 768], ["vendor=abc,b=2", 256], ["", 256]]"#,
    ),
    (
        "a span by its trace id",
        "SELECT count(*) FROM spans WHERE trace_id = '0af7651916cd43dd$run800000001'",
        "[[4]]",
    ),
    (
        "attributes of every kind, in the order sent",
        "SELECT attributes, attribute_keys(attributes)[1], attribute_keys(attributes)[18] FROM spans WHERE service_name = '$service' AND kind = 'SERVER'",
        r#"[[$every_kind, "text", "none"]]"#,
    ),
    (
        "attributes compare in their own types",
        "SELECT name FROM spans WHERE service_name = '$service' AND attributes['int'] = 42 AND attributes['int.min'] < -9223372036854775807
             AND attributes['int.max'] = 9223372036854775807 AND attributes['double'] = 0.1 AND attributes['double.whole'] = 3
             AND attributes['bool.true'] AND NOT attributes['bool.false'] AND attributes['text'] LIKE 'caffè ☕%'
             AND attributes['text.empty'] = '' AND attributes['none'] IS NULL AND attributes['absent'] IS NULL",
        r#"[["POST /cart/{id}"]]"#,
    ),
    (
        "attributes without a type of their own in SQL are text",
        "SELECT attributes['bytes'], attributes['array.int'], attributes['array.empty'], attributes['map'] FROM spans WHERE service_name = '$service' AND kind = 'SERVER'",
        r#"[["AAH+/w==", "[1,-2,3]", "[]", "{\"inner\":{\"deep\":[1,\"two\",{\"three\":3.5}]},\"none\":null}"]]"#,
    ),
    (
        "resource and scope",
        "SELECT DISTINCT resource_attributes['service.version'], resource_attributes['host.cpus'], resource_attributes['host.load'], resource_attributes['host.spot'],
             resource_attributes['host.zones'], resource_attributes['telemetry.sdk.language'], resource_schema_url,
             scope_name, scope_version, scope_attributes['scope.team'], scope_schema_url
         FROM spans WHERE service_name = '$service' ORDER BY scope_name",
        r#"[
        ["1.2.3", 8, 0.5, true, "[\"a\",\"b\"]", "python", "https://opentelemetry.io/schemas/1.37.0", "shop.checkout", "2.1.0", "payments", "https://opentelemetry.io/schemas/1.37.0"],
        ["1.2.3", 8, 0.5, true, "[\"a\",\"b\"]", "python", "https://opentelemetry.io/schemas/1.37.0", "shop.limits", null, null, null]]"#,
    ),
    (
        "events",
        "SELECT span_name, CAST(time AS BIGINT) - $t0, name, attributes FROM span_events WHERE service_name = '$service' AND name IN ('rows', 'done') ORDER BY time",
        r#"[["SELECT cart", 11000000, "rows", {"count": 3, "cached": false}], ["SELECT cart", 12000000, "done", {}]]"#,
    ),
    (
        "an exception is an event",
        "SELECT span_id, attributes['exception.type'], attributes['exception.message'], attributes['exception.stacktrace'] LIKE 'Traceback%card declined: 4000-0002%',
             attributes['exception.escaped'], attributes['attempt']
         FROM span_events WHERE service_name = '$service' AND name = 'exception'",
        r#"[["b7ad$run400000003", "ValueError", "card declined: 4000-0002", true, "False", 2]]"#,
    ),
    (
        "links",
        "SELECT span_name, linked_trace_id, linked_span_id, attributes, flags FROM span_links WHERE service_name = '$service' AND span_name = 'process orders' ORDER BY linked_span_id DESC",
        r#"[["process orders", "0af7651916cd43dd$run800000001", "b7ad$run400000004", {"messaging.offset": 17}, 256],
            ["process orders", "00000000000000990000000000000001", "0000000000000002", {}, 256]]"#,
    ),
    (
        "what the SDK's limits cut is counted",
        "SELECT s.attributes, s.dropped_attributes_count, s.dropped_events_count, s.dropped_links_count, e.name, e.attributes, e.dropped_attributes_count
         FROM spans s JOIN span_events e ON e.span_id = s.span_id WHERE s.service_name = '$service' AND s.name = 'cut'",
        r#"[[{"d": 4, "e": 5}, 3, 4, 2, "event 4", {"y": 2}, 1]]"#,
    ),
    (
        "logs, with bodies of every kind",
        "SELECT CAST(time AS BIGINT) - $t0, CAST(observed_time AS BIGINT) - $t0, time_inferred, severity_number, severity_text, body, event_name, trace_id, span_id, flags
         FROM logs WHERE service_name = '$service' ORDER BY time",
        r#"[
        [0, 250, false, 9, "INFO", "cart opened", "", "0af7651916cd43dd$run800000001", "b7ad$run400000001", 1],
        [1000000, 1000250, false, 1, "TRACE", "trace line", "", null, null, 0],
        [2000000, 2000250, false, 6, "DEBUG", "caffè ☕ 😀 \"quoted\" \\ \n", "", null, null, 0],
        [3000000, 3000250, false, 13, "warning", "{\"order\":7,\"items\":[\"tea\",\"cup\"]}", "", null, null, 0],
        [4000000, 4000250, false, 17, "ERROR", "[\"a\",1,true]", "", null, null, 0],
        [5000000, 5000250, false, 24, "FATAL", "AP8=", "", null, null, 0],
        [6000000, 6000250, false, 9, "", "12.5", "shop.order.placed", null, null, 0],
        [7000000, 7000000, true, 0, "", "no time of its own", "", null, null, 0],
        [8000000, 8000250, false, 17, "", "failed", "", "0af7651916cd43dd$run800000001", "b7ad$run400000001", 1]]"#,
    ),
    (
        "attributes of logs, and an exception that was logged",
        "SELECT attributes, scope_name, scope_version, scope_attributes['scope.kind'] FROM logs WHERE service_name = '$service' AND trace_id IS NOT NULL ORDER BY time",
        r#"[[$every_kind, "shop.log", "0.9", "audit"],
            [{"exception.type": "ValueError", "exception.message": "card declined", "exception.stacktrace": "ValueError: card declined\n"}, "shop.log", "0.9", "audit"]]"#,
    ),
    (
        "logs join their span",
        "SELECT l.body, s.name FROM logs l JOIN spans s ON l.span_id = s.span_id AND l.trace_id = s.trace_id WHERE l.service_name = '$service' ORDER BY l.time",
        r#"[["cart opened", "POST /cart/{id}"], ["failed", "POST /cart/{id}"]]"#,
    ),
    (
        "counters, up-down counters and gauges",
        "SELECT metric_name, metric_description, metric_unit, metric_type, temporality, is_monotonic, value, value_int, attributes
         FROM metric_points WHERE service_name = '$service' ORDER BY metric_name, value",
        r#"[
        ["shop.cpu", "", "s", "SUM", "CUMULATIVE", true, 1.5, null, {}],
        ["shop.heap", "", "By", "SUM", "CUMULATIVE", false, -4096.0, -4096, {}],
        ["shop.orders", "orders placed", "{order}", "SUM", "CUMULATIVE", true, 2.0, 2, {"pay": "cash", "vip": false}],
        ["shop.orders", "orders placed", "{order}", "SUM", "CUMULATIVE", true, 12.0, 12, {"pay": "card", "vip": true}],
        ["shop.pool", "", "", "GAUGE", null, null, 2.0, 2, {"state": "used"}],
        ["shop.pool", "", "", "GAUGE", null, null, 8.0, 8, {"state": "idle"}],
        ["shop.queue", "", "{message}", "SUM", "CUMULATIVE", false, -3.0, -3, {"topic": "orders"}],
        ["shop.revenue", "", "EUR", "SUM", "CUMULATIVE", true, 19.99, null, {}],
        ["shop.temperature", "", "Cel", "GAUGE", null, null, -0.5, null, {"room": "server"}]]"#,
    ),
    (
        "series are told apart, and their times make sense",
        "SELECT count(DISTINCT series_id), min(CASE WHEN metric_type = 'GAUGE' THEN start_time IS NULL ELSE start_time <= time END) FROM metric_points WHERE service_name = '$service'",
        "[[9, true]]",
    ),
    (
        "histograms, explicit and exponential",
        "SELECT metric_name, metric_type, temporality, count, sum, min, max, explicit_bounds, bucket_counts, scale, zero_count, positive, negative, attributes
         FROM metric_histograms WHERE service_name = '$service' ORDER BY metric_name",
        r#"[
        ["shop.latency", "HISTOGRAM", "DELTA", 4, 615.5, 5.0, 500.5, [10.0, 100.0], [1, 2, 1], null, null, null, null, {"route": "/cart"}],
        ["shop.wait", "EXPONENTIAL_HISTOGRAM", "DELTA", 4, 7.0, 0.0, 4.0, [], [], 3, 1,
         {"offset": -1, "bucket_counts": [1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]},
         {"offset": 0, "bucket_counts": [0]}, {"route": "/pay"}]]"#,
    ),
    (
        "exemplars point at the span they were recorded in",
        "SELECT exemplars FROM metric_histograms WHERE service_name = '$service' AND metric_name = 'shop.latency'",
        r#"[[[
        {"value_double": null, "value_int": 5, "trace_id": "0af7651916cd43dd$run800000001", "span_id": "b7ad$run400000001", "attributes": {}},
        {"value_double": null, "value_int": 60, "trace_id": "0af7651916cd43dd$run800000001", "span_id": "b7ad$run400000001", "attributes": {}},
        {"value_double": 500.5, "value_int": null, "trace_id": "0af7651916cd43dd$run800000001", "span_id": "b7ad$run400000001", "attributes": {}}]]]"#,
    ),
    (
        "nothing else came",
        "SELECT (SELECT count(*) FROM spans WHERE service_name = '$service') AS spans, (SELECT count(*) FROM logs WHERE service_name = '$service') AS logs,
             (SELECT count(*) FROM metric_points WHERE service_name = '$service') AS points, (SELECT count(*) FROM metric_histograms WHERE service_name = '$service') AS histograms",
        "[[6, 9, 9, 2]]",
    ),
];

/// One run of `sdk.py`.
#[derive(Clone, Copy)]
struct Run {
    protocol: &'static str,
    compression: &'static str,
    number: u64,
}

impl Run {
    fn service(&self) -> String {
        format!("{}-{}", self.protocol, self.compression)
    }

    /// Exports everything to an OTLP endpoint and waits for the SDK's shutdown.
    fn export(&self, to: SocketAddr) {
        let python = venv().join("bin/python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/sdk.py");
        let output = Command::new(python)
            .arg(script)
            .args(["--endpoint", &to.to_string(), "--protocol", self.protocol, "--compression", self.compression])
            .args(["--service", &self.service(), "--run", &self.number.to_string()])
            .output()
            .expect("Python can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the SDK over {} failed: {said}", self.service());
    }

    /// Puts this run's numbers into a statement or its rows.
    fn fill(&self, template: &str) -> String {
        template
            .replace("$every_kind", EVERY_KIND)
            .replace("$service", &self.service())
            .replace("$t0", "1795255170000000000")
            .replace("$run8", &format!("{:08x}", self.number))
            .replace("$run4", &format!("{:04x}", self.number))
    }

    /// Compares every row of [`FOUND`] and reports all that differ.
    fn check(&self, server: &Server) {
        let mut wrong = Vec::new();
        for (shows, sql, rows) in FOUND {
            let expected: Value =
                serde_json::from_str(&self.fill(rows)).unwrap_or_else(|error| panic!("{shows}: {error}"));
            let mut found = server.sql(&self.fill(sql))["rows"].take();
            forget_exemplar_times(&mut found);
            if found != expected {
                wrong.push(format!("{shows}\n  expected {expected}\n  found    {found}"));
            }
        }
        assert!(wrong.is_empty(), "{} over {}:\n{}", wrong.len(), self.service(), wrong.join("\n"));
    }
}

/// Removes the times of exemplars, which are the SDK's own clock.
fn forget_exemplar_times(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(forget_exemplar_times),
        Value::Object(object) if object.contains_key("value_double") => {
            let time = object.remove("time");
            assert!(time.is_some_and(|time| time.is_string()), "an exemplar has no time");
        }
        _ => {}
    }
}

/// The folder of the Python clients, which `make test` makes.
fn venv() -> PathBuf {
    let folder = std::env::var_os("GODSEYE_CLIENTS_VENV").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").expect("HOME is set");
        PathBuf::from(home).join(".cache/godseye/clients")
    });
    assert!(
        folder.join("bin/python").exists(),
        "there are no OpenTelemetry clients in {}: run `make test`",
        folder.display()
    );
    folder
}

/// A running `rotel` that forwards to an OTLP endpoint.
struct Agent {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Agent {
    /// Starts the agent; `protocol` is how it forwards.
    fn start(protocol: &str, compression: &str, to: SocketAddr) -> Self {
        let found = Command::new(venv().join("bin/python"))
            .args(["-c", "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))"])
            .output()
            .expect("Python can be started");
        let binary = String::from_utf8(found.stdout).expect("a path is text");
        // The agent cannot pick its ports, so the kernel picks them here, and another process may be faster.
        for _attempt in 0..5 {
            let [grpc, http] = [free_address(), free_address()];
            let child = Command::new(binary.trim())
                .args(["start", "--exporter", "otlp", "--batch-timeout", "50ms"])
                .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
                .args(["--otlp-exporter-endpoint", &format!("http://{to}")])
                .args(["--otlp-exporter-protocol", protocol, "--otlp-exporter-compression", compression])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("rotel at {binary}: {error}"));
            let mut agent = Self { child, grpc, http };
            if agent.listens() {
                return agent;
            }
        }
        panic!("rotel did not listen");
    }

    /// Waits until both ports are open; false when the process has ended.
    fn listens(&mut self) -> bool {
        let came = common::came(AGENT_WITHIN, || {
            if self.child.try_wait().expect("a child can be waited for").is_some() {
                return Some(false);
            }
            [self.grpc, self.http].iter().all(|address| TcpStream::connect(address).is_ok()).then_some(true)
        });
        came.unwrap_or(false)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address")
}

/// Waits until a statement that counts has counted enough.
fn wait_for(server: &Server, sql: &str, at_least: u64) {
    common::until(sql, AGENT_WITHIN, || (server.number(sql) >= at_least).then_some(()));
}

#[test]
fn what_the_python_sdk_exports_is_what_sql_finds() {
    let server = Server::start_keeping();
    let runs = [("grpc", "none"), ("grpc", "gzip"), ("http", "none"), ("http", "gzip")]
        .into_iter()
        .zip(1..)
        .map(|((protocol, compression), number)| Run { protocol, compression, number });
    for run in runs {
        run.export(if run.protocol == "grpc" { server.otlp_grpc } else { server.otlp_http });
        run.check(&server);
    }
    // Four runs, all of it stored and nothing rejected.
    let ledger = server.sql(
        "SELECT signal, sum(received), sum(stored), sum(rejected) FROM ingest_ledger GROUP BY signal ORDER BY signal",
    );
    assert_eq!(ledger["rows"], serde_json::json!([["logs", 36, 36, 0], ["metrics", 44, 44, 0], ["traces", 24, 24, 0]]));
}

/// The SDK's telemetry arrives unchanged through the agent, and so does every row of a load in many batches,
/// which the agent cuts anew.
fn check_forwarding(protocol: &'static str, compression: &'static str, number: u64) {
    const BATCHES: u64 = 30;
    const ROWS_PER_BATCH: u32 = 200;
    let server = Server::start_keeping();
    let agent =
        Agent::start(protocol, compression, if protocol == "grpc" { server.otlp_grpc } else { server.otlp_http });

    let run = Run { protocol, compression, number };
    run.export(if protocol == "grpc" { agent.grpc } else { agent.http });
    for (table, rows) in SDK_ROWS {
        wait_for(&server, &format!("SELECT count(*) FROM {table}"), rows);
    }
    run.check(&server);

    let config = LoadConfig {
        endpoints: vec![format!("http://{}", agent.grpc)],
        source: Source::Counted { run: "through-rotel".to_owned(), rows_per_batch: ROWS_PER_BATCH, first_batch: 0 },
        signals: vec![Signal::Traces, Signal::Logs, Signal::Metrics],
        total_items: BATCHES * u64::from(ROWS_PER_BATCH),
        start_ns: 1_795_255_170_000_000_000,
        ..LoadConfig::default()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let report = runtime.block_on(load::run(config, CancellationToken::new(), |_| {})).expect("the load is valid");
    assert_eq!(report.totals.items_acked, BATCHES * u64::from(ROWS_PER_BATCH), "{report:?}");
    let each = BATCHES / 3 * u64::from(ROWS_PER_BATCH);
    for table in ["spans", "logs", "metric_points"] {
        wait_for(&server, &format!("SELECT count(*) FROM {table} WHERE service_name = 'loadgen'"), each);
        let found = server.sql(&format!(
            "SELECT count(*), count(DISTINCT attributes['load.batch'] * 1000 + attributes['load.row']), count(DISTINCT attributes['load.batch'])
             FROM {table} WHERE service_name = 'loadgen' AND attributes['load.run'] = 'through-rotel'"
        ));
        assert_eq!(found["rows"], serde_json::json!([[each, each, BATCHES / 3]]), "{table}");
    }
}

#[test]
fn rotel_forwards_over_grpc() {
    check_forwarding("grpc", "gzip", 5);
}

#[test]
fn rotel_forwards_over_http() {
    check_forwarding("http", "none", 6);
}
