//! `godseye query` on a real terminal: Python's `pty` types, and reads what a person would see.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits for processes")]

mod common;

use std::process::{Command, Stdio};

use common::Server;
use common::http::Request;

/// A span of now, since one of another year is past its retention.
fn span() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().to_string();
    SPAN.replace("NOW", &now)
}

const SPAN: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
"scopeSpans":[{"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"GET /",
"startTimeUnixNano":"NOW","endTimeUnixNano":"NOW",
"attributes":[{"key":"http.route","value":{"stringValue":"/checkout"}}]}]}]}]}"#;

#[test]
fn a_person_types_tabs_interrupts_and_finds_it_again() {
    let server = Server::start();
    let request = Request::new("POST", "/v1/traces").header("content-type", "application/json");
    assert_eq!(request.body(span().as_bytes()).send(server.otlp_http).unwrap().status, 200);
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("state/history");
    let done = Command::new("python3")
        .args(["tests/clients/prompt.py", env!("CARGO_BIN_EXE_godseye"), &server.http.to_string()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("GODSEYE_HISTORY", &history)
        .env("TERM", "xterm")
        .output()
        .expect("python3 can be started: see make test");
    assert!(
        done.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&history.metadata().unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "what was asked is its owner's alone");
}

/// Whatever comes from a pipe is one statement, asked without a word.
#[test]
fn a_pipe_is_asked_as_it_is() {
    let server = Server::start();
    let ask = |arguments: &[&str], sql: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_godseye"))
            .args(["query", "--output", "csv", "--server", &server.http.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), sql.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap(), done.status.success())
    };
    for (arguments, sql, stdout, stderr) in [
        ([].as_slice(), "SELECT 1 AS a", "a\n1\n", ""),
        (&["-"], "SELECT 2 AS a;\n", "a\n2\n", ""),
        (&["--limit", "2"], "SELECT * FROM (VALUES (1), (2), (3)) AS t (a) ORDER BY 1", "a\n1\n2\n", ""),
        (&["--limit", "0"], "", "", "0 is not in 1.."),
        (&["--limit", "99999999999"], "SELECT 1", "", "limit `99999999999` is not possible"),
    ] {
        let (said, complained, is_success) = ask(arguments, sql);
        let said = said.replace("\r\n", "\n");
        assert_eq!(said, stdout, "{sql}: {complained}");
        assert!(complained.contains(stderr), "{sql}: {complained}");
        assert_eq!(is_success, stderr.is_empty(), "{sql}: {complained}");
    }
}
