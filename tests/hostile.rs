//! Hostile and heavy questions to a running server: what a statement may cost, and who waits for whom.
//!
//! The statements are those of the query engine's own test; here the whole process answers them, and what it holds and
//! what still runs are looked at from outside. Not here: what they are answered (the engine's test checks that too).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../query/src/hostile.rs"]
mod hostile;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::http::{Request, Response};
use common::oracle::Sent;
use common::{Server, Setup, until};
use fixtures::otlp::Signal;

/// How long something that the server does by itself may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// What one query may reserve here.
const QUERY_MEMORY: u64 = 128 * MIB;

/// Runs until its time is up: each row of a side meets thousands of the other.
const SLOW: &str = "SELECT sum(a.duration_ns * b.duration_ns % 7) FROM spans a JOIN spans b ON a.service_name = b.service_name \
                    JOIN spans c ON b.service_name = c.service_name";

/// More rows than any buffer on the way to a client takes.
const LONG: &str =
    "SELECT a.name, b.span_id, a.attributes FROM spans a JOIN spans b ON a.service_name = b.service_name";

fn filled(query: &str) -> Server {
    filled_with(&format!("query: {{ {query} }}\nstorage: {{ memtable: {{ flush_interval: 1s }} }}\n"), None)
}

/// A server with some thousand spans and logs, most of them in segments.
fn filled_with(config: &str, token: Option<&str>) -> Server {
    let server = Setup::new().config(config).start();
    let mut sent = Sent::nothing("hostile", 500);
    for n in 0..24 {
        let signal = [Signal::Traces, Signal::Logs][n % 2];
        let batch = sent.next_batch(signal);
        let mut request =
            Request::new("POST", signal.http_path()).header("content-type", "application/x-protobuf").body(&batch.body);
        if let Some(token) = token {
            request = request.header("authorization", &format!("Bearer {token}"));
        }
        assert_eq!(request.send(server.otlp_http).unwrap().status, 200);
        sent.note(&batch, fixtures::load::Verdict::Acked { rejected: 0 });
    }
    server
}

fn running(server: &Server) -> f64 {
    server.metric("godseye_query_running").expect("running queries are counted")
}

fn until_idle(server: &Server, what: &str) {
    until(what, SOON, || (running(server) == 0.0).then_some(()));
}

/// Peak resident memory of a process, bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The outcome of an answer, by its code, and its message.
fn outcome(response: &Response) -> (String, String) {
    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
    match body["error"]["code"].as_str() {
        Some(code) => (code.to_owned(), body["error"]["message"].as_str().unwrap_or_default().to_owned()),
        None if body["stats"]["truncated"] == true => ("cut".to_owned(), String::new()),
        None if response.status == 200 => ("answered".to_owned(), String::new()),
        None => (response.status.to_string(), String::from_utf8_lossy(&response.body).into_owned()),
    }
}

#[test]
fn hostile_statements_stay_within_memory_and_the_server_goes_on() {
    let mut server =
        filled(&format!("timeout: 2s, memory_bytes: {}MiB, output_bytes: 32MiB, rows_max: 10000", QUERY_MEMORY / MIB));
    let count = |server: &Server| server.number("SELECT count(*) FROM spans");
    let spans = count(&server);
    server.sql("SELECT service_name, name, count(*) FROM spans GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 10");
    // What is there before, what a query may reserve, and what functions may make of one batch. A list or a text that an
    // aggregate collects is there up to three times: DataFusion counts it once, not while it is moved and copied.
    let cap = peak_memory(server.pid()) + 3 * QUERY_MEMORY + 64 * MIB;
    let (mut wrong, mut peak) = (Vec::new(), 0);
    let rows = hostile::rows();
    for row in &rows {
        let response = server.query(&row.sql, "json");
        let (code, message) = outcome(&response);
        wrong.extend(row.fault(&code, &message));
        assert!(server.is_running(), "the server is gone after {}", row.template);
        until_idle(&server, row.template);
        let found = peak_memory(server.pid());
        if found > cap / 100 * 115 && found > peak {
            wrong.push(format!("{}\n  holds {} MiB, over {} MiB", row.template, found >> 20, cap >> 20));
        }
        peak = peak.max(found);
    }
    assert!(wrong.is_empty(), "{} of {} wrong\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert_eq!(count(&server), spans);
    let mut sent = Sent::nothing("after", 20);
    assert_eq!(sent.post(&server, Signal::Traces).status, 200);
    sent.check(&server, "after the hostile statements");
    assert_eq!(server.terminate().code(), Some(0));
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Asks over HTTP without waiting for the answer.
fn ask_http(server: &Server, parameters: &str, sql: &str) -> TcpStream {
    let mut stream = connect(server.http);
    let length = sql.len();
    write!(stream, "POST /api/v1/sql{parameters} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{sql}")
        .unwrap();
    stream
}

/// Asks in PostgreSQL's protocol without waiting for the answer.
fn ask_pg(server: &Server, sql: &str) -> TcpStream {
    let mut stream = connect(server.pg);
    let startup = b"\0\x03\0\0user\0anybody\0\0";
    stream.write_all(&(startup.len() as u32 + 4).to_be_bytes()).unwrap();
    stream.write_all(startup).unwrap();
    // It is ready for a question when it has said so.
    let (mut greeting, mut byte) = (Vec::new(), [0]);
    while !greeting.ends_with(b"Z\0\0\0\x05I") {
        stream.read_exact(&mut byte).unwrap();
        greeting.push(byte[0]);
    }
    stream.write_all(b"Q").unwrap();
    stream.write_all(&(sql.len() as u32 + 5).to_be_bytes()).unwrap();
    stream.write_all(sql.as_bytes()).unwrap();
    stream.write_all(b"\0").unwrap();
    stream
}

#[test]
fn a_query_ends_with_its_client() {
    let server = filled("timeout: 1h, export_timeout: 1h, send_timeout: 1h, concurrency: 2, concurrency_per_client: 2");
    for (what, ask) in [
        ("HTTP, while it runs", (|server| ask_http(server, "", SLOW)) as fn(&Server) -> TcpStream),
        ("HTTP, while it is sent", |server| ask_http(server, "?format=ndjson&limit=90000000", LONG)),
        ("PostgreSQL, while it runs", |server| ask_pg(server, SLOW)),
        ("PostgreSQL, while it is sent", |server| ask_pg(server, LONG)),
    ] {
        let client = ask(&server);
        until(what, SOON, || (running(&server) == 1.0).then_some(()));
        drop(client);
        until_idle(&server, what);
        assert_eq!(server.number("SELECT 1"), 1, "{what}");
    }
    // Those that wait for their turn leave the queue as well.
    let clients: Vec<TcpStream> = (0..6).map(|_| ask_http(&server, "", SLOW)).collect();
    until("a queue", SOON, || (server.metric("godseye_query_waiting") == Some(4.0)).then_some(()));
    drop(clients);
    until("an empty queue", SOON, || (server.metric("godseye_query_waiting") == Some(0.0)).then_some(()));
    until_idle(&server, "those that ran");
}

#[test]
fn a_client_that_reads_nothing_keeps_no_permit() {
    let server = filled("timeout: 1h, export_timeout: 1h, send_timeout: 1s, concurrency: 2, concurrency_per_client: 2");
    for (what, ask) in [
        ("HTTP", (|server| ask_http(server, "?format=ndjson&limit=90000000", LONG)) as fn(&Server) -> TcpStream),
        ("PostgreSQL", |server| ask_pg(server, LONG)),
    ] {
        let mut stalled = ask(&server);
        until(what, SOON, || (running(&server) == 1.0).then_some(()));
        until_idle(&server, what);
        // What was sent before is there to be read, and then the connection breaks rather than end an answer.
        let mut answer = Vec::new();
        let ended = stalled.read_to_end(&mut answer);
        assert!(ended.is_err() || !answer.ends_with(b"0\r\n\r\n"), "{what}: it looks like a whole answer");
    }
    let log = server.log().join("\n");
    assert!(log.contains("read nothing of its answer"), "{log}");
}

#[test]
fn a_heavy_client_leaves_room_for_others() {
    let tokens = ["heavy", "light"]
        .map(|name| format!("{{ token: {name}-0123456789abcdef, tenant: default, scopes: [ingest, query] }}"));
    let config = format!(
        "auth: {{ tokens: [{}] }}\nquery: {{ timeout: 1h, concurrency: 2, concurrency_per_client: 1, queue: 4, queue_wait: 1h }}\n",
        tokens.join(", ")
    );
    let server = filled_with(&config, Some("heavy-0123456789abcdef"));
    let ask = |name: &str, sql: &str| {
        let mut stream = connect(server.http);
        let length = sql.len();
        write!(
            stream,
            "POST /api/v1/sql HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {name}-0123456789abcdef\r\n\
             content-length: {length}\r\n\r\n{sql}"
        )
        .unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let heavy: Vec<TcpStream> = (0..5).map(|_| ask("heavy", SLOW)).collect();
    until("a full queue", SOON, || {
        let metrics = Request::new("GET", "/metrics").header("authorization", "Bearer heavy-0123456789abcdef");
        let metrics = metrics.send(server.http).unwrap().body;
        String::from_utf8_lossy(&metrics).lines().any(|line| line == "godseye_query_waiting 4").then_some(())
    });
    assert!(answer(ask("heavy", "SELECT 1")).starts_with("HTTP/1.1 429"));
    for _ in 0..10 {
        let answer = answer(ask("light", "SELECT 41 + 1"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[42]"), "{answer}");
    }
    drop(heavy);
}
