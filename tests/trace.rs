//! `godseye trace ID` against a running server: the waterfall and the JSON of spans and logs that came in over
//! OTLP, and what it says when there is nothing to show.
//!
//! How a waterfall is drawn, whatever the rows, is tested beside `src/waterfall.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::Server;
use common::http::Request;
use serde_json::{Value, json};

const ID: &str = "5b8efff798038103d269b633813fc60c";

/// The picture at 100 columns, with events and logs.
const WATERFALL: &str = "\
trace 5b8efff798038103d269b633813fc60c: 4 spans of 3 services, 120 ms, 1 error

  span            service  duration      self 0                                               120 ms
  GET /checkout   web        120 ms     10 ms ██████████████████████████████████████████████████████
  ├─ SELECT cart  cart        20 ms     20 ms ██████████
✗ └─ POST /pay    pay         90 ms     90 ms              █████████████████████████████████████████
     ! card declined
     ◆ +110 ms  exception  exception.type=De…                                                  ◆
     ≡ +115 ms  ERROR pay declined: no funds                                                     ≡
? sweep           cart        10 ms     10 ms                            █████
? its parent span is not here
";

/// A span in OTLP's JSON; times are milliseconds after the trace's start.
fn span(id: &str, parent: &str, name: &str, start_ms: u64, end_ms: u64) -> Value {
    let time = |ms: u64| (1_772_323_200_000_000_000 + ms * 1_000_000).to_string();
    json!({
        "traceId": ID, "spanId": id, "parentSpanId": parent, "name": name, "kind": 2,
        "startTimeUnixNano": time(start_ms), "endTimeUnixNano": time(end_ms),
    })
}

fn of_service(service: &str, kind: &str, items: &[Value]) -> Value {
    let (scopes, list) = if kind == "spans" { ("scopeSpans", "spans") } else { ("scopeLogs", "logRecords") };
    json!({
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": service } }] },
        scopes: [{ list: items }],
    })
}

fn send(server: &Server, path: &str, message: &Value) {
    let request = Request::new("POST", path).header("content-type", "application/json");
    let response = request.body(message.to_string().as_bytes()).send(server.otlp_http).unwrap();
    assert_eq!(response.status, 200, "{path}: {}", String::from_utf8_lossy(&response.body));
}

fn send_trace(server: &Server) {
    let mut pay = span("0000000000000003", "0000000000000001", "POST /pay", 30, 120);
    pay["status"] = json!({ "code": 2, "message": "card declined" });
    pay["events"] = json!([{
        "name": "exception", "timeUnixNano": "1772323200110000000",
        "attributes": [{ "key": "exception.type", "value": { "stringValue": "Declined" } }],
    }]);
    let cart = [
        span("0000000000000002", "0000000000000001", "SELECT cart", 2, 22),
        span("0000000000000004", "00000000000000ff", "sweep", 60, 70),
    ];
    let message = json!({ "resourceSpans": [
        of_service("pay", "spans", &[pay]),
        of_service("web", "spans", &[span("0000000000000001", "", "GET /checkout", 0, 120)]),
        of_service("cart", "spans", &cart),
    ]});
    send(server, "/v1/traces", &message);
    let log = json!({
        "traceId": ID, "spanId": "0000000000000003", "timeUnixNano": "1772323200115000000",
        "severityText": "ERROR", "severityNumber": 17, "body": { "stringValue": "declined: no funds" },
    });
    send(server, "/v1/logs", &json!({ "resourceLogs": [of_service("pay", "logs", &[log])] }));
}

/// Runs the command: its exit code, standard output and standard error.
fn trace(server: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
    command.arg("trace").args(arguments).env_remove("GODSEYE_TOKEN").env("GODSEYE_SERVER", server);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_trace_is_found_and_drawn_and_one_that_is_not_there_is_an_error() {
    let server = Server::start();
    send_trace(&server);
    let address = server.http.to_string();
    let upper = ID.to_uppercase();
    let drawn = trace(&address, &[&upper, "--events", "--logs", "--width", "100"]);
    assert_eq!(drawn, (Some(0), WATERFALL.to_owned(), String::new()), "{}", drawn.1);

    let (code, json, _) = trace(&address, &[ID, "--output", "json", "--logs"]);
    let document: Value = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = document["spans"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!((code, names), (Some(0), vec!["GET /checkout", "SELECT cart", "POST /pay", "sweep"]), "{json}");
    assert_eq!(document["trace_id"], ID);
    assert_eq!(document["spans"][2]["events"][0]["attributes"], json!({ "exception.type": "Declined" }));
    assert_eq!(document["spans"][3]["is_orphan"], true);
    assert_eq!(document["logs"][0]["body"], "declined: no funds");
    assert_eq!(document["warnings"], json!([]));

    for (server, id, expected) in [
        (
            address.as_str(),
            "00000000000000000000000000000001",
            "no span of trace 00000000000000000000000000000001 is on",
        ),
        (address.as_str(), "zz", "`zz` is not an id: expected 32 hexadecimal digits, found 2 characters"),
        (address.as_str(), "x') UNION SELECT 1 --", "is not an id"),
        ("127.0.0.1:1", ID, "no answer from 127.0.0.1:1"),
    ] {
        let (code, out, error) = trace(server, &[id]);
        assert!(code == Some(1) && out.is_empty() && error.contains(expected), "{id}: {code:?} {out} {error}");
    }
}
