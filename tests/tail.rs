//! `GET /api/v1/tail` and `godseye tail` against a running server: rows come as they are acknowledged, in order and
//! through a predicate; what is missing is counted; followers are bounded; a server that stops or goes away is
//! noticed.
//!
//! Which predicates there are and what they mean is tested beside `query/src/follow.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits for processes")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::http::Request;
use common::{Server, Setup, until};
use serde_json::{Value, json};

/// A test that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(60);

const SECOND_NS: u64 = 1_000_000_000;
const START_NS: u64 = 1_772_323_200 * SECOND_NS;

fn send(server: SocketAddr, token: Option<&str>, path: &str, message: &Value) {
    let mut request = Request::new("POST", path).header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", &format!("Bearer {token}"));
    }
    let response = request.body(message.to_string().as_bytes()).send(server).unwrap();
    assert_eq!(response.status, 200, "{path}: {}", String::from_utf8_lossy(&response.body));
}

/// Log records of one service, with consecutive numbers as `n` and in the body.
fn logs(service: &str, numbers: std::ops::Range<u64>, padding: usize) -> Value {
    let records: Vec<Value> = numbers
        .map(|n| {
            json!({
                "timeUnixNano": (START_NS + n * SECOND_NS).to_string(), "severityNumber": 9 + 8 * (n % 2),
                "body": { "stringValue": format!("record {n}{}", "x".repeat(padding)) },
                "attributes": [{ "key": "n", "value": { "intValue": n.to_string() } }],
            })
        })
        .collect();
    json!({ "resourceLogs": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": service } }] },
        "scopeLogs": [{ "logRecords": records }],
    }]})
}

/// One connection that follows.
struct Follower {
    lines: BufReader<TcpStream>,
    status: u16,
}

impl Follower {
    fn start(server: SocketAddr, token: Option<&str>, query: &str) -> Self {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        write!(stream, "GET /api/v1/tail?{query} HTTP/1.1\r\nhost: a\r\n{authorization}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        let mut follower = Self { lines, status };
        if status == 200 {
            assert!(follower.next().unwrap()["following"].is_string(), "the first line");
        }
        follower
    }

    /// The next line of JSON; `None` at the end. A chunk is whole lines, so what ends with a carriage return is its size
    /// or its end.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 || line == "0\r\n" {
                return None;
            }
            if !line.ends_with("\r\n") {
                return Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:.300}")));
            }
        }
    }

    /// The next line that is no heartbeat.
    fn news(&mut self) -> Option<Value> {
        std::iter::from_fn(|| self.next()).find(|line| line.get("heartbeat").is_none())
    }
}

#[test]
fn rows_come_in_order_through_a_predicate_and_to_their_tenant_only() {
    let token =
        |token: &str, tenant: &str, scopes: &str| format!("{{ token: {token}, tenant: {tenant}, scopes: [{scopes}] }}");
    let tokens = [
        token("alpha-secret", "a", "ingest, query"),
        token("bravo-secret", "b", "ingest"),
        token("charlie-secret", "b", "query"),
    ];
    let mut server = Setup::new().config(&format!("auth: {{ tokens: [{}] }}\n", tokens.join(", "))).start();
    let (a, b, c) = (Some("alpha-secret"), Some("bravo-secret"), Some("charlie-secret"));
    for (token, query, status) in [
        (None, "table=logs", 401),
        (b, "table=logs", 403),
        (a, "table=metric_points", 400),
        (a, "", 400),
        (a, "table=logs&limit=1", 400),
        (a, "table=logs&where=n%20IN%20(SELECT%201)", 400),
    ] {
        assert_eq!(Follower::start(server.http, token, query).status, status, "{query}");
    }
    let mut all = Follower::start(server.http, a, "table=logs");
    let mut odd = Follower::start(
        server.http,
        a,
        "table=logs&where=attributes%5B%27n%27%5D%20%3E%3D%203%20AND%20severity_number%20%3D%2017",
    );
    let mut elsewhere = Follower::start(server.http, c, "table=logs");
    let mut spans = Follower::start(server.http, a, "table=spans");
    for n in 0..8 {
        send(server.otlp_http, a, "/v1/logs", &logs("shop", n..n + 1, 0));
    }
    send(server.otlp_http, b, "/v1/logs", &logs("other", 100..101, 0));
    let bodies = |follower: &mut Follower, count: usize| -> Vec<String> {
        (0..count).map(|_| follower.news().unwrap()["body"].as_str().unwrap().to_owned()).collect()
    };
    let records = |numbers: &[u64]| numbers.iter().map(|n| format!("record {n}")).collect::<Vec<_>>();
    assert_eq!(bodies(&mut all, 8), records(&[0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(bodies(&mut odd, 3), records(&[3, 5, 7]));
    assert_eq!(bodies(&mut elsewhere, 1), records(&[100]));
    // Everything that was acknowledged has come; then the server says that it stops, and does not wait for us.
    let status = server.terminate();
    assert!(status.success(), "{status}");
    for follower in [&mut all, &mut odd, &mut elsewhere, &mut spans] {
        assert_eq!(follower.news(), Some(json!({ "end": "the server is stopping" })));
        assert_eq!(follower.next(), None);
    }
}

#[test]
fn a_reader_that_stalls_is_told_how_much_it_missed_and_holds_nobody_up() {
    let server = Server::start_keeping();
    let mut follower = Follower::start(server.http, None, "table=logs");
    // More than sockets, queues and the pace let through, sent while nobody reads.
    let (groups, rows) = (60, 500);
    for group in 0..groups {
        send(server.otlp_http, None, "/v1/logs", &logs("shop", group * rows..(group + 1) * rows, 2_000));
    }
    assert_eq!(server.number("SELECT count(*) FROM logs"), groups * rows, "the writer is not held up");
    let (mut shown, mut dropped, mut last) = (0, 0, None);
    while shown + dropped < groups * rows {
        let news = follower.news().unwrap();
        if let Some(rows) = news["dropped"].as_u64() {
            dropped += rows;
            continue;
        }
        let n = news["attributes"]["n"].as_u64().unwrap();
        assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
        (shown, last) = (shown + 1, Some(n));
    }
    assert_eq!(shown + dropped, groups * rows, "every row is shown or counted");
    assert!(dropped > 0, "{shown} rows came");
    let counted = server.metric("godseye_query_follow_rows_dropped_total").unwrap();
    assert_eq!(counted as u64, dropped);
}

#[test]
fn followers_are_bounded_and_go_with_their_connection() {
    let server = Server::start();
    let followers = || server.metric("godseye_query_followers").unwrap();
    let mut taken: Vec<Follower> = (0..16).map(|_| Follower::start(server.http, None, "table=spans")).collect();
    assert_eq!(followers(), 16.0);
    let refused = server.get("/api/v1/tail?table=spans");
    let body = String::from_utf8_lossy(&refused.body);
    assert!(refused.status == 429 && body.contains("16 followers of this tenant are there already"), "{body}");
    assert!(refused.header("retry-after").is_some());
    taken.clear();
    until("the server notices that its followers are gone", HANG, || (followers() == 0.0).then_some(()));
    assert_eq!(Follower::start(server.http, None, "table=spans").status, 200);
}

/// `godseye tail`, with its output read line by line.
struct Tail {
    child: Child,
    lines: mpsc::Receiver<String>,
    told: mpsc::Receiver<String>,
}

impl Tail {
    fn start(server: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godseye"));
        command.arg("tail").args(arguments).env_remove("GODSEYE_TOKEN").env("GODSEYE_SERVER", server);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, told) = (reader(child.stdout.take().unwrap()), reader(child.stderr.take().unwrap()));
        Self { child, lines, told }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(HANG).expect("a row comes")
    }

    /// Ctrl-C; the exit code and the last line on standard error.
    fn interrupt(mut self) -> (Option<i32>, String) {
        let kill = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = self.child.wait().unwrap();
        (status.code(), self.told.iter().last().unwrap_or_default())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn reader(from: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
    });
    lines
}

/// An address that stays while the server behind it changes its own.
fn relay(to: SocketAddr) -> (String, Arc<Mutex<SocketAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, target) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(to)));
    let current = Arc::clone(&target);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(*current.lock().unwrap()) else { continue };
            for (mut from, mut into) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    drop(std::io::copy(&mut from, &mut into));
                    drop(into.shutdown(Shutdown::Both));
                    drop(from.shutdown(Shutdown::Both));
                });
            }
        }
    });
    (address, target)
}

fn wait_for_followers(server: &Server, count: f64) {
    until("it follows", HANG, || (server.metric("godseye_query_followers") == Some(count)).then_some(()));
}

#[test]
fn the_command_shows_rows_connects_again_and_sums_up() {
    let mut server = Server::start();
    let (address, target) = relay(server.http);
    let tail = Tail::start(&address, &["logs", "--where", "attributes['n'] <> 1 AND body LIKE 'record%'"]);
    let json = Tail::start(&address, &["--output", "json"]);
    wait_for_followers(&server, 2.0);
    send(server.otlp_http, None, "/v1/logs", &logs("shop", 0..3, 0));
    assert_eq!(tail.line(), "2026-03-01 00:00:00.000 INFO  shop  record 0  n=0");
    assert_eq!(tail.line(), "2026-03-01 00:00:02.000 INFO  shop  record 2  n=2");
    for n in 0..3 {
        let row: Value = serde_json::from_str(&json.line()).unwrap();
        assert_eq!(row["attributes"]["n"], n);
    }
    server.kill();
    server.restart();
    *target.lock().unwrap() = server.http;
    wait_for_followers(&server, 2.0);
    send(server.otlp_http, None, "/v1/logs", &logs("shop", 3..4, 0));
    assert_eq!(tail.line(), "2026-03-01 00:00:03.000 ERROR shop  record 3  n=3");
    let told: Vec<String> = (0..2).map(|_| tail.told.recv_timeout(HANG).unwrap()).collect();
    assert!(told[0].contains("connecting again in 0.5 s"), "{told:?}");
    assert_eq!(tail.interrupt(), (Some(0), "godseye: 3 rows shown, 0 dropped".to_owned()));
    assert!(json.line().contains("record 3"));
    assert_eq!(json.interrupt(), (Some(0), "godseye: 4 rows shown, 0 dropped".to_owned()));
}

#[test]
fn what_cannot_be_followed_is_an_error_at_once() {
    let server = Server::start();
    for (address, arguments, expected) in [
        (server.http.to_string(), vec!["logs", "--where", "nothing = 1"], "nothing"),
        (server.http.to_string(), vec!["spans", "--where", "count(*) > 1"], "cannot have an aggregate"),
        ("127.0.0.1:1".to_owned(), vec!["spans"], "no answer from 127.0.0.1:1"),
    ] {
        let mut tail = Tail::start(&address, &arguments);
        let told = tail.told.recv_timeout(HANG).unwrap();
        assert!(told.contains(expected), "{told}");
        assert_eq!(tail.child.wait().unwrap().code(), Some(1));
    }
}
