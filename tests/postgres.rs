//! SQL in PostgreSQL's protocol, asked by clients we did not write: `psycopg`, and `psql` where it is installed.
//!
//! `clients/pg.py` holds what psycopg asks and must get; the tables below are what `psql` prints. Not here: the
//! protocol's bytes and values (the dashboards crate), and what the catalog answers (the query crate).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Server, Setup};

/// A server that has what `sdk.py` exports.
fn filled() -> Server {
    let server = Server::start_keeping();
    let endpoint = server.otlp_http.to_string();
    let arguments =
        ["--endpoint", &endpoint, "--protocol", "http", "--compression", "none", "--service", "shop", "--run", "1"];
    run_python("sdk.py", &arguments);
    server
}

fn run_python(script: &str, arguments: &[&str]) {
    let venv = std::env::var_os("GODSEYE_CLIENTS_VENV").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/godseye/clients")
    });
    let python = venv.join("bin/python");
    assert!(python.exists(), "there are no Python clients in {}: run `make test`", venv.display());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output().expect("Python can be started");
    assert!(
        output.status.success(),
        "{} failed:\n{}{}",
        script.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn psycopg_gets_what_it_asks_for() {
    let server = filled();
    run_python("pg.py", &["--dsn", &format!("host={} port={} user=anybody", server.pg.ip(), server.pg.port())]);
}

/// Whether there is a `psql`; `make test` says what to install.
fn has_psql() -> bool {
    let found = Command::new("psql").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// What `psql` prints for some commands, each given as a line.
fn psql(address: SocketAddr, password: Option<&str>, commands: &str) -> (bool, String) {
    let mut child = Command::new("psql")
        .args([
            "-X",
            "-w",
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "-U",
            "anybody",
            "-d",
            "godseye",
        ])
        .env("PGPASSWORD", password.unwrap_or_default())
        .env("PSQL_PAGER", "")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql can be started");
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().expect("psql ends");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

/// What is typed into `psql`, and what its answer must contain, line by line.
const TYPED: [(&str, &[&str]); 20] = [
    (
        r"\d spans",
        &[
            "Table \"public.spans\"",
            " trace_id                 | text                     |           | not null | ",
            " start_time               | timestamp with time zone |           | not null | ",
            " duration_ns              | bigint                   |           |          | ",
            " attributes               | json                     |           | not null | ",
        ],
    ),
    (
        r"\d metric_histograms",
        &[" explicit_bounds     | double precision[]       |", " bucket_counts       | bigint[]                 |"],
    ),
    (r"\d+ logs", &["The message; a structured body as JSON"]),
    (r"\d", &[" public | ingest_ledger     | table | godseye", " public | spans             | table | godseye"]),
    (r"\dt", &[" public | spans             | table | godseye"]),
    (r"\dt+ spans", &["A span: one operation of one service in a trace"]),
    (r"\dt nothing", &["Did not find any relation named \"nothing\"."]),
    (r"\l", &[" godseye | godseye | UTF8     | C       | C     |", "(1 row)"]),
    (r"\dn", &[" public | godseye"]),
    (r"\du", &[" godseye   |"]),
    (r"\di", &["Did not find any relations."]),
    (r"\df", &["(0 rows)"]),
    ("BEGIN; SELECT 1 AS one; COMMIT;", &["BEGIN", " one ", "   1", "(1 row)", "COMMIT"]),
    (
        "PREPARE slow(bigint, int) AS SELECT name FROM spans WHERE duration_ns >= $1 ORDER BY duration_ns DESC LIMIT $2; EXECUTE slow(15000000, 1); DEALLOCATE slow;",
        &["PREPARE", " POST /cart/{id}", "(1 row)", "DEALLOCATE"],
    ),
    ("SET application_name = 'me'; SHOW application_name; SHOW server_version;", &["SET", " me", " 15.0 (GodsEye "]),
    (
        "SELECT bucket_counts, NULL AS nothing, true AS yes FROM metric_histograms WHERE metric_name = 'shop.latency';",
        &[" {1,2,1}       |         | t"],
    ),
    ("SELECT start_time, attributes FROM spans WHERE name = 'cut';", &[" 2026-11-21 09:59:30+00 | {\"d\":4,\"e\":5}"]),
    (r"SELECT 1 / 0 \gdesc", &["| bigint"]),
    ("SELECT nothing FROM spans;", &["ERROR:  No field named nothing."]),
    ("DELETE FROM spans;", &["ERROR:  DELETE FROM is not allowed: this door only reads", "HINT:  allowed are SELECT"]),
];

#[test]
fn psql_prints_what_people_expect() {
    if !has_psql() {
        return; // `make test` has said so.
    }
    let server = filled();
    let mut wrong = Vec::new();
    for (typed, lines) in TYPED {
        let (_, printed) = psql(server.pg, None, &format!("{typed}\n"));
        let missing: Vec<&&str> = lines.iter().filter(|line| !printed.contains(**line)).collect();
        if !missing.is_empty() {
            wrong.push(format!("{typed}\nlacks {missing:?}:\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_token_is_the_password_and_decides_the_tenant() {
    if !has_psql() {
        return;
    }
    let config = "auth:\n  tokens:\n    - { token: reader-0123456789, tenant: shop, scopes: [query] }\n    \
                  - { token: writer-0123456789, tenant: shop, scopes: [ingest] }\n";
    let server = Setup::new().config(config).start();
    for (password, is_in, says) in [
        (Some("reader-0123456789"), true, " 0"),
        (Some("writer-0123456789"), false, "the token does not allow this"),
        (Some("guessed-0123456789"), false, "a valid token is required"),
        (None, false, "no password supplied"),
    ] {
        let (succeeded, printed) = psql(server.pg, password, "SELECT count(*) FROM spans;\n");
        assert_eq!((succeeded, printed.contains(says)), (is_in, true), "{password:?}: {printed}");
    }
}

#[test]
fn a_session_ends_when_its_token_is_taken_away() {
    let config = |token: &str| format!("auth: {{ tokens: [{{ token: {token}, tenant: shop, scopes: [query] }}] }}\n");
    let server = Setup::new().config(&config("first-0123456789")).start();
    let mut socket = connected_with(server.pg, Some("first-0123456789"));
    let mut ask = || {
        socket.write_all(&query("SELECT 1")).unwrap();
        let mut answer = [0; 4096];
        let length = socket.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    // The same configuration again is no reason.
    let reload = |token: &str| {
        std::fs::write(server.config_path(), config(token)).unwrap();
        let reloaded = || server.log().iter().filter(|line| line.contains("configuration reloaded")).count();
        let before = reloaded();
        server.signal("HUP");
        common::until("a reload", Duration::from_secs(30), || (reloaded() > before).then_some(()));
    };
    assert!(ask().contains("SELECT 1"));
    reload("first-0123456789");
    assert!(ask().contains("SELECT 1"));
    reload("second-0123456789");
    let answer = ask();
    assert!(answer.contains("57P01") && answer.contains("the tokens have changed"), "{answer}");
    drop(connected_with(server.pg, Some("second-0123456789")));
}

/// A connection that has said who it is: everything up to ReadyForQuery is read.
fn connected(address: SocketAddr) -> TcpStream {
    connected_with(address, None)
}

/// The same, with a password.
fn connected_with(address: SocketAddr, password: Option<&str>) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    startup.extend_from_slice(b"user\0anybody\0\0");
    let length = u32::try_from(startup.len()).unwrap();
    startup[..4].copy_from_slice(&length.to_be_bytes());
    socket.write_all(&startup).unwrap();
    if let Some(password) = password {
        let mut asked = [0; 9];
        socket.read_exact(&mut asked).unwrap();
        assert_eq!(asked, *b"R\0\0\0\x08\0\0\0\x03", "a password is asked for");
        let mut frame = vec![b'p'];
        frame.extend_from_slice(&u32::try_from(password.len() + 5).unwrap().to_be_bytes());
        frame.extend_from_slice(password.as_bytes());
        frame.push(0);
        socket.write_all(&frame).unwrap();
    }
    let mut seen = Vec::new();
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    socket
}

fn query(sql: &str) -> Vec<u8> {
    let mut frame = vec![b'Q'];
    frame.extend_from_slice(&u32::try_from(sql.len() + 5).unwrap().to_be_bytes());
    frame.extend_from_slice(sql.as_bytes());
    frame.push(0);
    frame
}

/// A query that does not end by itself.
fn for_ever() -> String {
    let list = (0..100).map(|number| format!("({number})")).collect::<Vec<_>>().join(", ");
    let joins = ["b", "c", "d", "e", "f", "g"].map(|name| format!(" JOIN t {name} ON a.x % 2 = {name}.x % 2")).concat();
    format!("WITH t AS (SELECT column1 AS x FROM (VALUES {list})) SELECT count(*) FROM t a{joins}")
}

#[test]
fn a_client_that_goes_away_takes_its_query_with_it() {
    let server = Server::start();
    let running = || server.metric("godseye_query_running").unwrap_or_default() as u64;
    let mut socket = connected(server.pg);
    socket.write_all(&query(&for_ever())).unwrap();
    common::until("the query runs", Duration::from_secs(60), || (running() == 1).then_some(()));
    drop(socket);
    common::until("the query is gone", Duration::from_secs(20), || (running() == 0).then_some(()));
}

#[test]
fn bytes_that_make_no_sense_end_their_connection_and_nothing_else() {
    let server = Server::start();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\x08\0\x02\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"",
    ] {
        let mut socket = TcpStream::connect(server.pg).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        drop(socket.read_to_end(&mut answer));
        assert!(answer.is_empty() || answer[0] == b'E', "{bytes:?}: {answer:?}");
    }
    for bytes in [&b"Q\xff\xff\xff\xff"[..], b"Q\0\0\0\x03", b"B\0\0\0\x08\0\0\xff\xff", b"!\0\0\0\x04"] {
        let mut socket = connected(server.pg);
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        drop(socket.read_to_end(&mut answer));
        assert!(answer.starts_with(b"E") && answer.windows(5).any(|part| part == b"08P01"), "{bytes:?}: {answer:?}");
    }
    let mut socket = connected(server.pg);
    socket.write_all(&query("SELECT 1")).unwrap();
    let mut answer = [0; 1];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"T", "others are served");
}

#[test]
fn an_error_is_sent_before_the_client_says_that_it_knows() {
    let server = Server::start();
    let mut socket = connected(server.pg);
    // Parse, and Flush where most drivers send Sync.
    socket.write_all(b"P\0\0\0\x10\0nonsense\0\0\0H\0\0\0\x04").unwrap();
    let mut answer = [0; 1];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"E");
}

#[test]
fn a_drain_ends_sessions_and_exits() {
    let mut server = Server::start();
    let mut idle = connected(server.pg);
    assert_eq!(server.terminate().code(), Some(0));
    let mut answer = Vec::new();
    idle.read_to_end(&mut answer).unwrap();
    assert!(answer.windows(5).any(|part| part == b"57P01"), "{answer:?}");
}

#[test]
fn what_there_is_to_ask_is_listed_over_http() {
    let server = filled();
    let tables: serde_json::Value = serde_json::from_slice(&server.get("/api/v1/tables").body).unwrap();
    let spans = &tables["tables"][0];
    assert_eq!((&spans["name"], &spans["rows"]), (&"spans".into(), &6.into()));
    assert_eq!(spans["oldest"], "2026-11-21T09:59:30.000000000Z");
    let path = "/api/v1/attributes?table=spans&prefix=double";
    let found: serde_json::Value = serde_json::from_slice(&server.get(path).body).unwrap();
    assert_eq!(found["sample"], serde_json::json!({ "rows": 6, "of_rows": 6, "since": null, "is_complete": true }));
    let double = |key: &str, value: f64| serde_json::json!({ "key": key, "type": "double", "rows": 1, "distinct": 1, "distinct_is_exact": true, "values": [{ "value": value, "rows": 1 }] });
    let expected = [double("double", 0.1), double("double.tiny", 5e-324), double("double.whole", 3.0)];
    assert_eq!(found["keys"], serde_json::Value::from(expected.to_vec()));
}
