//! From a span with an error to a person, through the doors that users use: the real binary with Alertmanager's
//! configuration, rules and an SLO; a webhook receiver that writes down what it gets.
//!
//! Which alerts a route tells whom, and what burns too fast, is tested beside the crates. Nothing here depends on how
//! long anything takes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits for processes and makes telemetry of now")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::http::Request;
use common::{Server, Setup, pause, until};
use serde_json::{Value, json};

/// A test that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(120);

/// Long enough for a second page to come, if one were to: several evaluations, group and flush intervals.
const QUIET: Duration = Duration::from_secs(8);

/// Writes down every body that is posted to it.
struct Receiver {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let written = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let written = Arc::clone(&written);
                // Its client may keep the connection for the next message.
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(body) = body(&mut stream) {
                        written.lock().unwrap().push(body);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if stream.get_mut().write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, bodies }
    }

    /// The alerts that it was told of in a status, by one label, in the order of the messages.
    fn told(&self, status: &str, label: &str) -> Vec<String> {
        let bodies = self.bodies.lock().unwrap();
        let alerts = bodies.iter().flat_map(|body| body["alerts"].as_array().unwrap().clone());
        let of_status = alerts.filter(|alert| alert["status"] == status);
        of_status.filter_map(|alert| alert["labels"][label].as_str().map(str::to_owned)).collect()
    }

    fn last(&self, alertname: &str) -> Value {
        let bodies = self.bodies.lock().unwrap();
        let mut alerts = bodies.iter().rev().flat_map(|body| body["alerts"].as_array().unwrap().clone());
        alerts.find(|alert| alert["labels"]["alertname"] == alertname).unwrap()
    }
}

/// The body of the next request on a connection; `None` at its end.
fn body(stream: &mut BufReader<std::net::TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if line == "\r\n" {
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).ok()?;
            return Some(serde_json::from_slice(&bytes).unwrap());
        }
    }
}

/// The files of a server that watches a shop.
struct Watched {
    _folder: tempfile::TempDir,
    alertmanager: PathBuf,
    rules: PathBuf,
    slos: PathBuf,
}

fn alertmanager(receiver: SocketAddr, repeat: &str) -> String {
    format!(
        "route: {{receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: {repeat}}}\n\
         receivers: [{{name: hook, webhook_configs: [{{url: 'http://{receiver}/', send_resolved: true}}]}}]\n"
    )
}

const RULES: &str = "
groups:
- name: shop
  interval: 1s
  rules:
  - alert: CheckoutErrors
    expr_sql: >
      SELECT service_name, count(*) AS value FROM spans
      WHERE status_code = 'ERROR' AND attributes['about'] = 'rules' GROUP BY service_name
    labels: {severity: warning}
    annotations: {summary: '{{ $labels.service_name }} failed {{ $value | humanize }} times'}
  - record: checkout:spans:count
    expr_sql: SELECT service_name, count(*) AS value FROM spans WHERE service_name = 'rules' GROUP BY 1
";

const SLO: &str = "
apiVersion: openslo/v1
kind: SLO
metadata: {name: checkout-availability, displayName: Checkout availability}
spec:
  service: checkout
  indicator:
    metadata: {name: errors}
    spec:
      ratioMetric:
        bad: {metricSource: {type: godseye, spec: {table: spans, where: status_code = 'ERROR'}}}
        total: {metricSource: {type: godseye, spec: {table: spans, service: checkout}}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{displayName: answered, target: 0.99}]
  alertPolicies:
  - kind: AlertPolicy
    metadata: {name: fast}
    spec:
      notificationTargets: []
      conditions:
      - kind: AlertCondition
        metadata: {name: fast, annotations: {godseye/short-window: 5m}}
        spec:
          severity: critical
          condition: {kind: burnrate, op: gt, threshold: 14.4, lookbackWindow: 1h, alertAfter: 0m}
";

fn watched(receiver: SocketAddr, repeat: &str) -> Watched {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let alertmanager = write("alertmanager.yml", &alertmanager(receiver, repeat));
    let (rules, slos) = (write("rules.yml", RULES), write("slo.yaml", SLO));
    Watched { alertmanager, rules, slos, _folder: folder }
}

impl Watched {
    fn start(&self) -> Server {
        [("--alertmanager-config", &self.alertmanager), ("--rules", &self.rules), ("--slos", &self.slos)]
            .into_iter()
            .fold(Setup::new(), |setup, (flag, path)| setup.flag(flag).flag(path.to_str().unwrap()))
            .start()
    }
}

/// Sends spans of now; `about` names the service and is an attribute.
fn send(server: &Server, about: &str, count: usize, is_error: bool) {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let spans: Vec<Value> = (0..count as u128)
        .map(|n| {
            json!({
                "traceId": format!("{:032x}", now_ns + n), "spanId": format!("{:016x}", (now_ns + n) as u64 | 1),
                "name": "POST /pay", "kind": 2,
                "startTimeUnixNano": (now_ns - 1_000_000).to_string(), "endTimeUnixNano": now_ns.to_string(),
                "status": {"code": if is_error { 2 } else { 1 }},
                "attributes": [{"key": "about", "value": {"stringValue": about}}],
            })
        })
        .collect();
    let service = json!([{"key": "service.name", "value": {"stringValue": about}}]);
    let message = json!({"resourceSpans": [{"resource": {"attributes": service}, "scopeSpans": [{"spans": spans}]}]});
    let response = Request::new("POST", "/v1/traces")
        .header("content-type", "application/json")
        .body(message.to_string().as_bytes())
        .send(server.otlp_http)
        .unwrap();
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
}

fn get(server: &Server, path: &str) -> Value {
    let response = server.get(path);
    assert_eq!(response.status, 200, "{path}: {}", String::from_utf8_lossy(&response.body));
    serde_json::from_slice(&response.body).unwrap()
}

fn post(server: &Server, alerts: &Value) {
    let request = Request::new("POST", "/alertmanager/api/v2/alerts").header("content-type", "application/json");
    assert_eq!(request.body(alerts.to_string().as_bytes()).send(server.http).unwrap().status, 200);
}

/// What the command line prints about a server.
fn cli(server: &Server, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
    let output = command.args(arguments).args(["--server", &server.http.to_string()]).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn errors_page_once_and_their_end_is_told() {
    let receiver = Receiver::start();
    let mut server = watched(receiver.address, "1h").start_keeping_files();
    send(&server.server, "checkout", 60, true);
    let burn = || receiver.told("firing", "alertname").into_iter().find(|name| name == "SloBurnRate");
    until("a page about the burn rate", HANG, burn);
    let alert = receiver.last("SloBurnRate");
    assert_eq!(alert["labels"]["severity"], "critical");
    assert_eq!(alert["annotations"]["bad_events"], "60", "{alert}");
    assert_eq!(alert["annotations"]["requests_affected"], "60 of 60 in the last 1h", "{alert}");
    // The link of the example trace is answered, with the trace.
    let trace = alert["annotations"]["trace_url"].as_str().unwrap();
    let path = trace.strip_prefix(&format!("http://{}", server.server.http)).unwrap();
    let spans = get(&server.server, path);
    let names = spans["columns"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap());
    let name = names.clone().position(|name| name == "name").unwrap();
    assert_eq!(spans["rows"][0][name], "POST /pay", "{spans}");
    for path in ["/api/v1/traces/x", "/api/v1/traces/'%20OR%20TRUE%20--%20'"] {
        assert_eq!(server.server.get(path).status, 400, "{path}");
    }
    // Whoever is told can see at once what made it.
    let shown = get(&server.server, "/api/v1/alerts");
    assert_eq!(
        (&shown["alerts"][0]["source"], &shown["alerts"][0]["value"]),
        (&json!("slo"), &json!(100.0)),
        "{shown}"
    );
    let link = alert["generatorURL"].as_str().unwrap();
    assert!(link.ends_with("/api/v1/slos/checkout%2Davailability"), "{link}");

    let status = get(&server.server, "/api/v1/slos/checkout-availability");
    assert_eq!((&status["health"], &status["firing"]), (&json!("burning"), &json!(true)), "{status}");
    let objective = &status["objectives"][0];
    assert!(objective["budget_remaining"].as_f64().unwrap() < 0.0, "{objective}");
    assert_eq!(objective["burn"][0]["long_rate"], 100.0, "all of it bad is a hundred times 1 %: {objective}");

    let shown: Value = serde_json::from_str(&cli(&server.server, &["slo", "status", "--output", "json"])).unwrap();
    assert_eq!(shown["slos"][0]["objectives"][0]["burn"][0]["verdict"], "burning", "{shown}");
    let explained = cli(&server.server, &["slo", "explain", "checkout-availability"]);
    assert!(explained.contains("POST /pay") && explained.contains("100.0 %"), "{explained}");
    let listed = cli(&server.server, &["alert", "list"]);
    assert!(listed.contains("SloBurnRate") && listed.contains("firing"), "{listed}");

    // The same as data.
    let rows = |sql: &str| server.server.sql(sql)["rows"].to_string();
    for (sql, want) in [
        (
            "SELECT state, labels['severity'], annotations['bad_events'], receivers FROM alerts
             WHERE labels['alertname'] = 'SloBurnRate' AND start_time <= now()",
            r#"[["firing","critical","60",["hook"]]]"#,
        ),
        (
            "SELECT h.event, a.fingerprint = h.fingerprint FROM alert_history h JOIN alerts a USING (fingerprint)
             WHERE h.labels['alertname'] = 'SloBurnRate'",
            r#"[["firing",true]]"#,
        ),
        (
            "SELECT slo, objective, health, firing, target, sli, good, total, budget_remaining < 0 FROM slo_status",
            r#"[["checkout-availability","answered","burning",true,0.99,0.0,0,60,true]]"#,
        ),
    ] {
        assert_eq!(rows(sql), want, "{sql}");
    }
    let counted = "SELECT CAST(coalesce(sum(bad), 0) AS bigint) FROM slo_counts WHERE slo = 'checkout-availability' AND width_ms = 10000";
    until("counts on disk", HANG, || (server.server.number(counted) == 60).then_some(()));
    let made = "SELECT count(*) FROM alerts WHERE source = 'slo' AND rule LIKE 'slo/%' AND value IS NOT NULL";
    until("what made the alert", HANG, || (server.server.number(made) == 1).then_some(()));
    let sent = "SELECT count(*) FROM notifications WHERE state = 'sent' AND status = 'firing' AND reason = 'first'
                AND receiver = 'hook' AND group_labels['alertname'] = 'SloBurnRate' AND done_time >= time";
    until("the message as data", HANG, || (server.server.number(sent) == 1).then_some(()));

    // kill -9: what fires is known, and nobody is told twice.
    server.server.kill();
    server.server.restart();
    until("the SLO is judged again", HANG, || {
        let judged = get(&server.server, "/api/v1/slos")["slos"].as_array().unwrap().clone();
        judged.into_iter().find(|slo| slo["health"] == "burning")
    });
    pause(QUIET);
    let pages = receiver.told("firing", "alertname").into_iter().filter(|name| name == "SloBurnRate").count();
    assert_eq!(pages, 1, "no second page after kill -9");

    // Enough that goes well, and the rate is below the threshold in both windows.
    for _ in 0..6 {
        send(&server.server, "checkout", 1_000, false);
    }
    let over = || receiver.told("resolved", "alertname").into_iter().find(|name| name == "SloBurnRate");
    until("the end of the burn", HANG, over);
    assert_eq!(server.server.terminate().code(), Some(0));
}

#[test]
fn rules_alert_and_record_and_a_silence_silences() {
    let receiver = Receiver::start();
    let server = watched(receiver.address, "1s").start_keeping_files();
    let server = &server.server;
    let id = cli(server, &["silence", "add", "service_name=quiet", "--comment", "known", "--duration", "2h"]);
    let listed = cli(server, &["silence", "list"]);
    assert!(listed.contains(id.trim()) && listed.contains("service_name=quiet"), "{listed}");
    let silenced = "SELECT state, matchers, comment, end_time > now() FROM silences";
    assert_eq!(server.sql(silenced)["rows"].to_string(), r#"[["active",["service_name=\"quiet\""],"known",true]]"#);
    send(server, "rules", 3, true);
    until("an alert of the rule", HANG, || receiver.told("firing", "alertname").into_iter().next());
    let alert = receiver.last("CheckoutErrors");
    assert_eq!(alert["annotations"]["summary"], "rules failed 3 times");
    assert!(alert["generatorURL"].as_str().unwrap().contains("/api/v1/alerts?filter="), "{alert}");
    // The backtest of the same rule, asking for a time, tells the same alert; and the same again.
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.yml");
    let in_time = "'rules' AND start_time > $now - INTERVAL '1 hour' AND start_time <= $now GROUP";
    std::fs::write(&rules, RULES.replace("'rules' GROUP", in_time)).unwrap();
    let instant = |sql: &str| server.sql(sql)["rows"][0][0].as_str().unwrap().to_owned();
    let from = instant("SELECT min(start_time) - INTERVAL '5 seconds' FROM spans WHERE service_name = 'rules'");
    let to = instant("SELECT max(start_time) + INTERVAL '5 seconds' FROM spans WHERE service_name = 'rules'");
    let arguments = ["backtest", "--rules", rules.to_str().unwrap(), "--from", &from, "--to", &to];
    let told = cli(server, &[&arguments[..], &["--output", "json"]].concat());
    let document: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&document["queries"], &document["pages"]), (&json!(10), &json!(0)), "{document}");
    let [found] = &document["alerts"].as_array().unwrap()[..] else { panic!("{document}") };
    assert_eq!((&found["labels"], &found["annotations"]), (&alert["labels"], &alert["annotations"]), "{document}");
    let began_ms = found["starts_at_ms"].as_u64().unwrap() - document["from_ms"].as_u64().unwrap();
    assert!((4_999..=6_001).contains(&began_ms) && found["ends_at_ms"].is_null(), "{document}");
    assert_eq!(cli(server, &[&arguments[..], &["--output", "json"]].concat()), told, "the same again");
    let shown = cli(server, &arguments);
    assert!(shown.contains("CheckoutErrors") && shown.contains("0 pages"), "{shown}");

    until("a recorded series", HANG, || {
        let sql = "SELECT count(*) FROM metric_points WHERE metric_name = 'checkout:spans:count' AND value = 3";
        (server.number(sql) > 0).then_some(())
    });

    // The same alert again and again, and one that is silenced.
    let alerts = json!([
        {"labels": {"alertname": "Posted", "service_name": "quiet"}},
        {"labels": {"alertname": "Posted", "service_name": "loud"}},
    ]);
    post(server, &alerts);
    until("the loud one", HANG, || receiver.told("firing", "service_name").into_iter().find(|name| name == "loud"));
    assert!(!receiver.told("firing", "service_name").contains(&"quiet".to_owned()));
    let shown = get(server, "/api/v1/alerts");
    let state = |name: &str| {
        let alerts = shown["alerts"].as_array().unwrap();
        alerts.iter().find(|alert| alert["labels"]["service_name"] == name).unwrap()["state"].clone()
    };
    assert_eq!((state("quiet"), state("loud"), state("rules")), (json!("silenced"), json!("firing"), json!("firing")));
    assert_eq!(get(server, "/api/v1/silences")["silences"][0]["state"], "active");
    let filtered = get(server, "/api/v1/alerts?filter=service_name%3D%22loud%22");
    assert_eq!(filtered["alerts"].as_array().unwrap().len(), 1, "{filtered}");
    cli(server, &["silence", "expire", id.trim()]);
    until("what is silenced no longer", HANG, || {
        receiver.told("firing", "service_name").into_iter().find(|name| name == "quiet")
    });
    let history = cli(server, &["alert", "history"]);
    assert!(history.contains("CheckoutErrors") && history.contains("Posted"), "{history}");
    until("metrics", HANG, || server.metric("godseye_alerting_notifications_total").filter(|sent| *sent > 0.0));
}

#[test]
fn bad_files_are_refused_and_a_reload_takes_good_ones() {
    let (first, second) = (Receiver::start(), Receiver::start());
    let watching = watched(first.address, "1h");
    let server = watching.start();
    std::fs::write(&watching.alertmanager, "route: {receiver: nobody}\nreceivers: [{name: hook}]\n").unwrap();
    let reload = || Request::new("POST", "/-/reload").send(server.http).unwrap();
    let refused = reload();
    let text = String::from_utf8(refused.body).unwrap();
    assert_eq!(refused.status, 422, "{text}");
    assert!(text.contains("alertmanager.yml:1:"), "{text}");

    let other = alertmanager(second.address, "1h")
        .replace("receiver: hook", "receiver: other")
        .replace("name: hook", "name: other");
    std::fs::write(&watching.alertmanager, other).unwrap();
    assert_eq!(reload().status, 200);
    let config = || get(&server, "/alertmanager/api/v2/status")["config"]["original"].as_str().unwrap().to_owned();
    until("the other receiver", HANG, || config().contains("other").then_some(()));
    post(&server, &json!([{"labels": {"alertname": "Moved"}}]));
    until("a message to it", HANG, || second.told("firing", "alertname").into_iter().next());
    assert!(first.told("firing", "alertname").is_empty());

    // A server does not start with a file that is wrong, and `godseye check` says the same.
    let bad = watching.rules.with_file_name("bad.yml");
    std::fs::write(&bad, "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up == 0\n").unwrap();
    let ended = Setup::new().run_to_end(&["--rules", bad.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(78), "{ended}");
    assert!(ended.log.iter().any(|line| line.contains("bad.yml:5:")), "{ended}");
    let config = watching.rules.with_file_name("godseye.yaml");
    std::fs::write(&config, format!("alerting: {{rules: ['{}']}}\n", bad.display())).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_godseye")).arg("check").arg(&config).output().unwrap();
    let text = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(78), "{text}");
    assert!(text.contains("bad.yml:5:"), "{text}");
}

#[test]
fn a_reload_takes_other_rules_and_slos_and_probes_tell_how_they_are() {
    let receiver = Receiver::start();
    let watching = watched(receiver.address, "1h");
    let server = watching.start();
    let reload = || Request::new("POST", "/-/reload").send(server.http).unwrap();
    let readyz = || get(&server, "/readyz");
    until("rules are evaluated", HANG, || server.metric("godseye_rule_evaluations_total").filter(|count| *count > 0.0));
    assert_eq!(readyz()["degraded"], Value::Null, "{}", readyz());

    // One bad file, and nothing of the others is taken.
    std::fs::write(&watching.slos, SLO.replace("0.99}", "0.5}").replace("availability}", "kept}")).unwrap();
    std::fs::write(&watching.rules, "groups: [{name: g, rules: [{alert: A, expr: up}]}]").unwrap();
    let refused = reload();
    let text = String::from_utf8(refused.body).unwrap();
    assert!(refused.status == 422 && text.contains("rules.yml:1:") && text.contains("PromQL"), "{text}");
    assert_eq!(get(&server, "/api/v1/slos")["slos"][0]["objectives"][0]["target"], 0.99);

    // A rule that cannot be evaluated is told by every probe.
    let bad = "groups: [{name: g, interval: 1s, rules: [{alert: A, expr_sql: SELECT 1 AS value FROM nowhere}]}]";
    std::fs::write(&watching.rules, bad).unwrap();
    assert_eq!(reload().status, 200);
    until("the other target", HANG, || {
        let slos = get(&server, "/api/v1/slos");
        (slos["slos"][0]["objectives"][0]["target"] == 0.5).then_some(())
    });
    let degraded = until("the failing rule", HANG, || {
        readyz()["degraded"].as_array().map(|all| all.iter().map(ToString::to_string).collect::<String>())
    });
    assert!(degraded.contains("rules.yml;g: A: ") && degraded.contains("nowhere"), "{degraded}");
    let metrics = || String::from_utf8(server.get("/metrics").body).unwrap();
    let group = format!("{{rule_group=\"{};g\"}}", watching.rules.display());
    until("the failure as a number", HANG, || {
        metrics().contains(&format!("godseye_rule_evaluation_failures_total{group}")).then_some(())
    });
    let shown = metrics();
    for name in [
        "group_interval_seconds",
        "group_rules",
        "group_last_evaluation_timestamp_seconds",
        "group_last_duration_seconds",
        "group_iterations_total",
        "group_iterations_missed_total",
        "evaluations_total",
    ] {
        assert!(shown.contains(&format!("\ngodseye_rule_{name}{group} ")), "{name}: {shown}");
    }
    assert!(!shown.contains(";shop\"}"), "the group that is gone is shown no more");
    for name in ["last_evaluation_timestamp_seconds", "last_duration_seconds", "iterations_total", "failures_total"] {
        assert!(shown.contains(&format!("\ngodseye_slo_{name} ")), "{name}: {shown}");
    }
    // And it is well again when it is mended.
    std::fs::write(&watching.rules, RULES).unwrap();
    server.signal("HUP");
    until("no failing rule", HANG, || readyz()["degraded"].is_null().then_some(()));
    send(&server, "rules", 3, true);
    until("an alert of a reloaded rule", HANG, || receiver.told("firing", "alertname").into_iter().next());
}

#[test]
fn rules_are_tested_without_a_server() {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("slo/examples");
    let run = |file: &std::path::Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
        let output = command.args(["test", "rules"]).arg(file).args(more).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run(&examples.join("rules_test.yaml"), &[]);
    assert!(code == 0 && out.ends_with("rules_test.yaml: SUCCESS\n"), "{out}{err}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(examples.join("rules.yaml"), folder.path().join("rules.yaml")).unwrap();
    let file = folder.path().join("t.yaml");
    let text = std::fs::read_to_string(examples.join("rules_test.yaml")).unwrap();
    let wrong = text.replace("severity: warning", "severity: info").replace("value: 12.5}", "value: 13}");
    std::fs::write(&file, wrong).unwrap();
    let (code, out, err) = run(&file, &[]);
    assert!(code == 1 && err.contains("2 of 3 tests failed"), "{out}{err}");
    for line in [
        "t.yaml: FAILED",
        "  test `many errors for two minutes`, alert `CheckoutErrors` at 4m",
        r#"    - {alertname="CheckoutErrors", name="POST /pay", severity="info"}"#,
        r#"    + {alertname="CheckoutErrors", name="POST /pay", severity="warning"}"#,
        r#"        {summary="POST /pay had 79 errors in five minutes"}"#,
        r#"    - {queue="mail"} 13"#,
        r#"    + {queue="mail"} 12.5"#,
    ] {
        assert!(out.lines().any(|found| found == line || found.ends_with(line)), "{line}\n{out}");
    }
    let (code, out, _) = run(&file, &["--run", "it ends"]);
    assert!(code == 0 && out.ends_with("t.yaml: SUCCESS\n"), "{out}");

    for (text, want) in [
        ("rule_files: [none.yaml]\ntests: []\n", "no rule file is there for `none.yaml`"),
        ("rule_files: [rules.yaml]\ntests: [{promql_expr_test: [{expr: up}]}]\n", "PromQL is not evaluated yet"),
        ("rule_files: [rules.yaml]\ntests: [{alert_rule_test: []}]\n", "tests nothing"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, out, err) = run(&file, &[]);
        assert!(code == 78 && out.is_empty() && err.contains(want), "{text}: {out}{err}");
    }
    // A query that fails is a failure of the test, with its reason.
    std::fs::write(
        folder.path().join("rules.yaml"),
        "groups: [{name: g, rules: [{alert: A, expr_sql: SELECT 1 AS value FROM nowhere}]}]",
    )
    .unwrap();
    std::fs::write(&file, "rule_files: [rules.yaml]\ntests: [{alert_rule_test: [{eval_time: 1m, alertname: A}]}]\n")
        .unwrap();
    let (code, out, _) = run(&file, &[]);
    assert!(code == 1 && out.contains("nowhere") && out.contains("A at 0"), "{out}");
}

#[test]
fn slos_are_backtested_over_a_server_and_over_what_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let slos = folder.path().join("slo.yaml");
    std::fs::write(&slos, SLO).unwrap();
    let mut server = Setup::new().start();
    send(&server, "checkout", 40, false);
    send(&server, "checkout", 60, true);
    let instant = |sql: &str| server.sql(sql)["rows"][0][0].as_str().unwrap().to_owned();
    let from = instant("SELECT min(start_time) - INTERVAL '10 minutes' FROM spans");
    let to = instant("SELECT max(start_time) + INTERVAL '20 minutes' FROM spans");
    let arguments = ["backtest", "--slos", slos.to_str().unwrap(), "--from", &from, "--to", &to, "--output", "json"];
    let asked: Value = serde_json::from_str(&cli(&server, &arguments)).unwrap();
    let [found] = &asked["alerts"].as_array().unwrap()[..] else { panic!("{asked}") };
    assert_eq!((&found["labels"]["alertname"], &asked["pages"]), (&json!("SloBurnRate"), &json!(1)), "{asked}");
    assert_eq!(found["annotations"]["requests_affected"], "60 of 100 in the last 1h", "{asked}");
    let minutes = |name: &str| (found[name].as_i64().unwrap() - asked["from_ms"].as_i64().unwrap()) / 60_000;
    // The telemetry is of the tenth minute; in the short window of five minutes it is no longer, and then there is no
    // data, which ends nothing (I10).
    assert_eq!(minutes("starts_at_ms"), 10, "{asked}");
    assert!(found["ends_at_ms"].is_null(), "{asked}");
    let shown = cli(&server, &arguments[..7]);
    assert!(shown.contains("SloBurnRate") && shown.contains("1 pages"), "{shown}");

    let read = |folder: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
        command.args(arguments).arg("--data-dir").arg(folder).output().unwrap()
    };
    let in_use = read(&server.data_dir());
    assert!(!in_use.status.success(), "a running server has it open");
    assert_eq!(server.terminate().code(), Some(0));
    let output = read(&server.data_dir());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Value = serde_json::from_slice(&output.stdout).unwrap();
    // What a trace looked like can only be seen in the rows.
    assert_eq!(left["alerts"], asked["alerts"], "the same, without the server");
    let nothing = read(folder.path());
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is no data directory"));
}

/// A button of a message silences its alerts; what is not signed, or comes twice, changes nothing.
#[test]
fn a_button_in_slack_silences_and_a_forged_press_does_not() {
    const SECRET: &str = "shhh";
    let slack = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let alertmanager = folder.path().join("alertmanager.yml");
    let text = format!(
        "route: {{receiver: team, group_by: [alertname], group_wait: 0s}}\n\
         receivers: [{{name: team, slack_configs: [{{api_url: 'http://{}/', channel: '#team'}}]}}]\n",
        slack.address
    );
    std::fs::write(&alertmanager, text).unwrap();
    let start = |config: &str| {
        let setup = Setup::new().config(config).flag("--alertmanager-config");
        setup.flag(alertmanager.to_str().unwrap()).start()
    };
    let burn =
        json!([{"labels": {"alertname": "Burn", "who": "<!channel>"}}, {"labels": {"alertname": "Burn", "who": "b"}}]);
    let server = start(&format!("alerting: {{ slack_signing_secret: {SECRET} }}\n"));
    post(&server, &burn);
    let message = until("a message", HANG, || slack.bodies.lock().unwrap().first().cloned());
    let blocks = message["attachments"][0]["blocks"].as_array().unwrap();
    let button = blocks.iter().find(|block| block["type"] == "actions").unwrap()["elements"][0].clone();
    assert_eq!(button["text"]["text"], "Silence 1 h");
    assert!(!button.to_string().contains("channel"), "{button}");

    let payload = json!({
        "type": "block_actions", "user": {"id": "U123", "username": "ada"},
        "response_url": format!("http://{}/", slack.address), "message": message,
        "actions": [{"action_id": button["action_id"], "value": button["value"]}],
    });
    let body = format!("payload={}", percent_encode(&payload.to_string()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let press = |to: &Server, secret: &str, timestamp: u64, body: &str, signed: &str| {
        let timestamp = timestamp.to_string();
        let signature = alerting::slack_action::signature(secret.as_bytes(), &timestamp, signed.as_bytes());
        let request = Request::new("POST", "/api/v1/slack/interactions")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("x-slack-request-timestamp", &timestamp)
            .header("x-slack-signature", &signature);
        request.body(body.as_bytes()).send(to.http).unwrap().status
    };
    let silences = || get(&server, "/api/v1/silences")["silences"].as_array().unwrap().clone();
    for (name, status, want) in [
        ("another secret", press(&server, "guess", now, &body, &body), 401),
        ("301 s old", press(&server, SECRET, now - 301, &body, &body), 401),
        ("another body", press(&server, SECRET, now, &body.replace("ada", "bob"), &body), 401),
        ("signed, but no press", press(&server, SECRET, now, "payload=%7B%7D", "payload=%7B%7D"), 400),
        (
            "no signature",
            Request::new("POST", "/api/v1/slack/interactions").body(body.as_bytes()).send(server.http).unwrap().status,
            401,
        ),
    ] {
        assert_eq!((status, silences()), (want, Vec::new()), "{name}");
    }
    assert_eq!(press(&server, SECRET, now, &body, &body), 200);
    let made = silences();
    assert_eq!(made.len(), 1);
    assert_eq!((&made[0]["state"], &made[0]["created_by"]), (&json!("active"), &json!("ada (U123, Slack)")));
    assert_eq!(made[0]["matchers"].as_array().unwrap().len(), 1, "what both have in common: {}", made[0]);
    assert_eq!(press(&server, SECRET, now, &body, &body), 401, "the same once more");
    assert_eq!(silences().len(), 1);
    let update = until("the message anew", HANG, || {
        slack.bodies.lock().unwrap().iter().find(|body| body["replace_original"] == true).cloned()
    });
    assert!(
        update.to_string().contains("Silenced by <@U123>") && !update.to_string().contains("silence_3600"),
        "{update}"
    );

    // Without a secret there are no buttons, and nobody listens.
    let other = start("");
    let before = slack.bodies.lock().unwrap().len();
    post(&other, &burn);
    let message = until("another message", HANG, || slack.bodies.lock().unwrap().get(before).cloned());
    assert!(!message.to_string().contains("silence_3600"), "{message}");
    assert_eq!(press(&other, SECRET, now, &body, &body), 404);
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[test]
fn tokens_decide_who_posts_and_who_asks() {
    let config = "auth: {tokens: [\
        {token: ingest-token-ingest, tenant: default, scopes: [ingest]},\
        {token: query-token-query-1, tenant: default, scopes: [query]},\
        {token: other-token-other-1, tenant: other, scopes: [ingest, query]}]}\n";
    let watching = watched(Receiver::start().address, "1h");
    let server = Setup::new().config(config).flag("--slos").flag(watching.slos.to_str().unwrap()).start();
    let alert = json!([{"labels": {"alertname": "A"}}]).to_string();
    let rows = [
        ("POST", "/alertmanager/api/v2/alerts", "ingest-token-ingest", 200),
        ("POST", "/alertmanager/api/v2/alerts", "query-token-query-1", 403),
        ("GET", "/alertmanager/api/v2/alerts", "query-token-query-1", 200),
        ("GET", "/api/v1/alerts", "ingest-token-ingest", 403),
        ("GET", "/api/v1/slos", "query-token-query-1", 200),
        ("GET", "/api/v1/slos", "other-token-other-1", 403),
        ("POST", "/alertmanager/api/v2/alerts", "other-token-other-1", 403),
        ("GET", "/api/v1/silences", "nobody", 401),
        ("GET", "/api/v1/traces/00000000000000000000000000000001", "query-token-query-1", 200),
        ("GET", "/api/v1/traces/00000000000000000000000000000001", "ingest-token-ingest", 403),
        ("GET", "/api/v1/traces/x", "nobody", 401),
    ];
    for (method, path, token, want) in rows {
        let response = Request::new(method, path)
            .header("authorization", &format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(if method == "POST" { alert.as_bytes() } else { b"" })
            .send(server.http)
            .unwrap();
        assert_eq!(response.status, want, "{method} {path} {token}: {}", String::from_utf8_lossy(&response.body));
    }
    assert!(server.log().iter().all(|line| !line.contains("panicked")));
}

/// A server and the files it reads.
struct Kept {
    server: Server,
    _files: Watched,
}

impl Watched {
    fn start_keeping_files(self) -> Kept {
        Kept { server: self.start(), _files: self }
    }
}

#[test]
fn without_alerting_its_tables_are_there_and_empty() {
    let server = Setup::new().start();
    let tables = ["alerts", "alert_history", "slo_status", "slo_counts", "silences", "notifications"];
    let listed = get(&server, "/api/v1/tables");
    for table in tables {
        assert_eq!(server.number(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
        let shown = listed["tables"].as_array().unwrap().iter().find(|shown| shown["name"] == table).unwrap();
        assert!(!shown["description"].as_str().unwrap().is_empty(), "{shown}");
        let columns = shown["columns"].as_array().unwrap();
        assert!(columns.iter().all(|column| !column["description"].as_str().unwrap().is_empty()), "{shown}");
        let standard = "SELECT count(*) FROM information_schema.columns WHERE description <> '' AND table_name =";
        assert_eq!(server.number(&format!("{standard} '{table}'")), columns.len() as u64, "{table}");
    }
}
