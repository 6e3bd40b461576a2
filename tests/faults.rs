//! Faults around a running server, and what must happen: the disk is full or broken, files are damaged, the
//! configuration is wrong, clients are hostile.
//!
//! A real process is driven from outside, as an operator and a client would. Not here: `kill -9` (`crash.rs`),
//! requests that break the rules of OTLP (`conformance.rs`), hostile SQL (the query engine's own tests).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test that cannot run here must say so")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::grpc;
use common::http::Request;
use common::oracle::{SIGNALS, Sending, Sent, check_ledger, now_ns, post};
use common::{Server, Setup, until};
use fixtures::batches::Batch;
use fixtures::load::{Protocol, Verdict};
use fixtures::otlp::{ExportReply, Signal, any, kv, scope};
use fixtures::rng::Rng;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

/// How long something that the server does by itself may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Rows stay in the log: nothing is flushed while the test looks.
const NO_FLUSH: &str = "
storage:
  wal: { segment_bytes: 1MiB, min_free_bytes: 16MiB }
  memtable: { flush_bytes: 1GiB, flush_interval: 1h }
";

const MIB: u64 = 1 << 20;

fn is_ready(server: &Server) -> bool {
    server.get("/readyz").status == 200
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// The disk is full

/// A small file system of its own, with a ballast file in it. Unmounted when dropped.
struct SmallDisk {
    mount: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with a loud message, where mounting is not permitted.
    fn new(bytes: u64) -> Option<Self> {
        let mount = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "godseye-test"])
            .arg(mount.path())
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self { mount }),
            Ok(output) => {
                eprintln!(
                    "SKIPPED: a full disk needs a tmpfs, and mounting is refused: {}",
                    text(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: a full disk needs a tmpfs, and mount(8) cannot be run: {error}");
                None
            }
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.mount.path().join("data")
    }

    /// Fills the disk with a file of this size, or until it is full.
    fn ballast(&self, bytes: u64) {
        let mut file = std::fs::File::create(self.mount.path().join("ballast")).unwrap();
        let block = vec![0; 64 << 10];
        for _ in 0..bytes / block.len() as u64 {
            if file.write_all(&block).is_err() {
                return;
            }
        }
    }

    fn drop_ballast(&self) {
        std::fs::remove_file(self.mount.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: after a failed test the server may still be there for a moment.
        Command::new("umount").arg("-l").arg(self.mount.path()).status().ok();
    }
}

/// Logs that no compression makes smaller, with the marks of a counted batch.
fn bulky(sent: &Sent, bytes: usize) -> Batch {
    let id = sent.outcomes.len() as u64;
    let mut rng = Rng::of(&[id, 77]);
    let rows = sent.rows as usize;
    let log_records = (0..rows)
        .map(|row| {
            let noise: Vec<u8> = std::iter::repeat_with(|| rng.id::<32>()).take(bytes / rows / 32).flatten().collect();
            LogRecord {
                time_unix_nano: now_ns(),
                attributes: vec![
                    kv("load.run", sent.run.as_str()),
                    kv("load.batch", id as i64),
                    kv("load.row", row as i64),
                    kv("noise", noise),
                ],
                ..LogRecord::default()
            }
        })
        .collect();
    logs(id, log_records)
}

fn logs(id: u64, log_records: Vec<LogRecord>) -> Batch {
    let items = log_records.len() as u64;
    let scope_logs = vec![ScopeLogs { scope: Some(scope("faults", "1")), log_records, ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { resource: Some(service()), scope_logs, ..ResourceLogs::default() }];
    let body = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
    Batch { signal: Signal::Logs, id, items, body }
}

fn service() -> Resource {
    Resource { attributes: vec![kv("service.name", "faults")], ..Resource::default() }
}

/// Sends bulky batches until one is refused, and checks the refusal.
fn fill(server: &Server, sent: &mut Sent, within_batches: usize) {
    for _ in 0..within_batches {
        let batch = bulky(sent, 256 << 10);
        let response = post(server, &batch).unwrap();
        match response.status {
            200 => sent.note(&batch, Verdict::Acked { rejected: 0 }),
            503 => {
                sent.note(&batch, Verdict::Refused { code: "503".to_owned() });
                let retry_after = response.header("retry-after").unwrap_or_default();
                assert!(retry_after.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "Retry-After: {retry_after:?}");
                return;
            }
            status => panic!("a full disk answers {status}: {}", text(&response.body)),
        }
    }
    panic!("{within_batches} batches of 256 KiB do not fill the disk");
}

#[test]
fn a_full_disk_is_a_retryable_refusal_that_heals_by_itself() {
    let Some(disk) = SmallDisk::new(64 * MIB) else { return };
    // 8 MiB for the log, 16 MiB that are kept free, the rest ballast.
    disk.ballast(40 * MIB);
    let mut server = Setup::new().config(NO_FLUSH).data_dir(&disk.data_dir()).start();
    let mut sent = Sent::nothing("full", 8);
    fill(&server, &mut sent, 100);
    assert!(sent.acked() > 4, "some batches fitted: {}", sent.acked());

    let batch = bulky(&sent, 256 << 10);
    let reply = grpc::call(server.otlp_grpc, Signal::Logs.grpc_path(), None, &batch.body).unwrap();
    assert_eq!(reply.status, 14, "UNAVAILABLE: {reply:?}");
    assert!(reply.has_retry_info(), "{reply:?}");
    sent.note(&batch, Verdict::Refused { code: "14".to_owned() });
    sent.check(&server, "while the disk is full");

    disk.drop_ballast();
    let pid = server.pid();
    for _ in 0..4 {
        let batch = bulky(&sent, 256 << 10);
        let response = post(&server, &batch).unwrap();
        assert_eq!(response.status, 200, "there is room again: {}", text(&response.body));
        sent.note(&batch, Verdict::Acked { rejected: 0 });
    }
    assert!(server.is_running() && server.pid() == pid, "it healed without a restart");
    sent.check(&server, "after there was room again");
    check_ledger(&server, "after there was room again");
    server.kill();
    server.restart();
    sent.check(&server, "after a restart");
    check_ledger(&server, "after a restart");
    drop(server);
}

#[test]
fn flushing_on_a_full_disk_fails_and_heals_by_itself() {
    let Some(disk) = SmallDisk::new(64 * MIB) else { return };
    let mut server = Setup::new()
        .config("storage: { wal: { min_free_bytes: 16MiB }, memtable: { flush_interval: 1s } }")
        .data_dir(&disk.data_dir())
        .start();
    let mut sent = Sent::nothing("flush", 8);
    let batch = bulky(&sent, 4 << 20);
    // Not one byte is free: neither a segment nor the manifest can be written.
    disk.ballast(u64::MAX);
    let refused = post(&server, &batch).unwrap();
    assert_eq!(refused.status, 503, "{}", text(&refused.body));
    sent.note(&batch, Verdict::Refused { code: "503".to_owned() });
    disk.drop_ballast();

    let batch = bulky(&sent, 4 << 20);
    assert_eq!(post(&server, &batch).unwrap().status, 200);
    sent.note(&batch, Verdict::Acked { rejected: 0 });
    disk.ballast(u64::MAX);
    until("a flush that fails", SOON, || {
        (server.metric("godseye_store_flush_failures_total") > Some(0.0)).then_some(())
    });
    sent.check(&server, "while a flush cannot be written");
    disk.drop_ballast();
    until("a flush that succeeds", SOON, || (server.metric("godseye_store_memtable_rows") == Some(0.0)).then_some(()));
    sent.check(&server, "after the flush");
    server.kill();
    server.restart();
    sent.check(&server, "after a restart");
    check_ledger(&server, "after a restart");
    drop(server);
}

/// The same without a file system to mount: the log's writes find the disk full, and later do not.
#[cfg(feature = "failpoints")]
#[test]
fn writes_that_find_the_disk_full_are_retryable_refusals() {
    let mut server = Setup::new().config(NO_FLUSH).env("FAILPOINTS", "wal_append_enospc=3*off->2*return").start();
    let mut sent = Sent::nothing("enospc", 10);
    let statuses: Vec<u16> = (0..8).map(|n| sent.post(&server, SIGNALS[n % 4]).status).collect();
    // Creating the log's first files writes too, so where the two refusals fall is the log's business.
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 2, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert_eq!((statuses[0], statuses[7]), (200, 200), "it took telemetry before, and does again: {statuses:?}");
    sent.check(&server, "after the disk was full twice");
    server.kill();
    server.setup().set_env("FAILPOINTS", None);
    server.restart();
    sent.check(&server, "after a restart");
    check_ledger(&server, "after a restart");
}

/// A refusal is for certain: a client that does as it is told, and comes back, has every row stored once.
#[cfg(feature = "failpoints")]
#[test]
fn requests_that_are_sent_again_after_a_refusal_are_stored_once() {
    for (protocol, run) in [(Protocol::Grpc, "grpc"), (Protocol::HttpProtobuf, "http")] {
        // The first write for certain: chance alone may spare a run whose requests share few groups.
        let mut server =
            Setup::new().config(NO_FLUSH).env("FAILPOINTS", "wal_append_enospc=1*return->30%return").start();
        let sending = Sending { protocol, max_attempts: 50, requests: 24, ..Sending::new(run) };
        let sent = sending.start(&server).finish();
        assert_eq!((sent.outcomes.len(), sent.acked()), (24, 24), "{run}: {:?}", sent.outcomes);
        let again = sent.outcomes.iter().filter(|outcome| outcome.attempts > 1).count();
        assert!(again > 0, "{run}: some were refused at first");
        sent.check(&server, run);
        check_ledger(&server, run);
        server.kill();
        server.setup().set_env("FAILPOINTS", None);
        server.restart();
        sent.check(&server, run);
        check_ledger(&server, run);
    }
}

// The disk is broken

#[cfg(feature = "failpoints")]
#[test]
fn a_failed_sync_ends_the_process_without_an_acknowledgement() {
    let mut server = Setup::new().config(NO_FLUSH).env("FAILPOINTS", "wal_sync_error=40*off->return").start();
    let load = Sending::new("eio").start(&server);
    let status = server.wait();
    let sent = load.stop();
    assert_eq!(status.code(), Some(70), "the log failed");
    let log = server.log().join("\n");
    assert!(log.contains("sync") && log.contains("os error 5"), "the log names the sync and its error: {log}");
    assert!(sent.acked() > 0, "some syncs succeeded before");
    server.setup().set_env("FAILPOINTS", None);
    server.restart();
    sent.check(&server, "after the failed sync");
    check_ledger(&server, "after the failed sync");
}

// Starting and stopping

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let first = Server::start();
    let refused = Setup::new().data_dir(&first.data_dir()).try_start().expect_err("the directory is taken");
    let ended = &refused.0;
    assert_eq!(ended.status.code(), Some(1), "{ended}");
    let log = ended.log.join("\n");
    let dir = first.data_dir();
    for part in ["in use", &first.pid().to_string(), dir.to_str().unwrap()] {
        assert!(log.contains(part), "the message has `{part}`: {log}");
    }
    assert!(is_ready(&first), "the first one goes on");
    assert_eq!(Sent::nothing("first", 5).post(&first, Signal::Traces).status, 200);
}

#[test]
fn sigterm_under_load_answers_what_it_took_and_loses_nothing() {
    for (protocol, run) in [(Protocol::Grpc, "grpc"), (Protocol::HttpProtobuf, "http")] {
        let mut server = Setup::new().start();
        let load = Sending { protocol, connections: 4, ..Sending::new(run) }.start(&server);
        until("a load", SOON, || (load.acked() >= 50).then_some(()));
        let status = server.terminate();
        let sent = load.stop();
        assert_eq!(status.code(), Some(0), "{run}: a drain is a clean end");
        server.restart();
        sent.check(&server, &format!("{run}: after SIGTERM"));
        check_ledger(&server, &format!("{run}: after SIGTERM"));
        // What it kept, it told: no batch is there whose sender does not know.
        for signal in SIGNALS {
            let acked: BTreeSet<u64> = sent
                .outcomes
                .iter()
                .filter(|outcome| outcome.signal == signal && matches!(outcome.verdict, Verdict::Acked { .. }))
                .map(|outcome| outcome.batch)
                .collect();
            assert_eq!(sent.stored(&server, signal), acked, "{run}: {signal:?}: stored and acknowledged");
        }
    }
}

#[test]
fn sighup_applies_a_good_configuration_and_keeps_the_old_one_when_it_is_bad() {
    let mut server = Setup::new().config("log: { level: error, format: json }").start();
    let last_reload = |server: &Server| server.metric("godseye_config_last_reload_successful");
    let has_info = |server: &Server| server.log().iter().any(|line| line.contains("\"level\":\"INFO\""));
    assert_eq!(last_reload(&server), Some(1.0));

    std::fs::write(server.config_path(), "log: { levle: debug }").unwrap();
    server.signal("HUP");
    until("a failed reload", SOON, || (last_reload(&server) == Some(0.0)).then_some(()));
    let log = server.log().join("\n");
    assert!(log.contains("\"level\":\"ERROR\"") && log.contains("levle"), "the error names the key: {log}");
    assert!(!has_info(&server), "the old level still holds: {log}");
    assert!(is_ready(&server), "it goes on");
    let mut sent = Sent::nothing("reload", 5);
    assert_eq!(sent.post(&server, Signal::Logs).status, 200);

    std::fs::write(server.config_path(), "log: { level: info, format: json }").unwrap();
    server.signal("HUP");
    until("a good reload", SOON, || (last_reload(&server) == Some(1.0)).then_some(()));
    until("a line at the new level", SOON, || has_info(&server).then_some(()));
    assert_eq!(sent.post(&server, Signal::Logs).status, 200);
    sent.check(&server, "after two reloads");
    assert_eq!(server.terminate().code(), Some(0));
}

/// Runs another command of the binary: whether it succeeded, its standard output and error.
fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_godseye")).args(arguments).output().unwrap();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn tokens_are_wanted_at_every_door_and_change_while_the_server_runs() {
    let config = |tokens: &[(&str, &str)]| {
        let token =
            |(secret, scopes): &(&str, &str)| format!("{{ token: {secret}, tenant: shop, scopes: [{scopes}] }}");
        let tokens: Vec<String> = tokens.iter().map(token).collect();
        format!("log: {{ level: trace }}\nauth: {{ tokens: [{}] }}\n", tokens.join(", "))
    };
    let both = "ingest, query";
    let mut server = Setup::new().config(&config(&[("first-S3cret", both), ("writer-S3cret", "ingest")])).start();
    let ask = |server: &Server, method: &str, path: &str, token: &str| {
        let mut request = Request::new(method, path).body(b"SELECT count(*) FROM logs");
        if !token.is_empty() {
            request = request.header("authorization", &format!("Bearer {token}"));
        }
        request.send(server.http).unwrap().status
    };
    for (method, path, token, status) in [
        ("POST", "/api/v1/sql", "", 401),
        ("POST", "/api/v1/sql", "writer-S3cret", 403),
        ("POST", "/api/v1/sql", "first-S3cret", 200),
        ("GET", "/metrics", "", 401),
        ("GET", "/metrics", "writer-S3cret", 403),
        ("GET", "/metrics", "first-S3cret", 200),
        ("POST", "/-/reload", "", 401),
        ("POST", "/-/reload", "first-S3cret", 200),
        ("GET", "/healthz", "", 200),
        ("GET", "/readyz", "", 200),
    ] {
        assert_eq!(ask(&server, method, path, token), status, "{method} {path} {token:?}");
    }
    // The clients that come with it.
    let (grpc, http, api) =
        (format!("http://{}", server.otlp_grpc), format!("http://{}", server.otlp_http), server.http.to_string());
    let load = |protocol: &str, endpoint: &str, token: &str| {
        let mut arguments = vec!["loadgen", "--endpoint", endpoint, "--protocol", protocol];
        arguments.extend(["--source", "logs", "--items", "1000", "--distinct-batches", "2", "--output", "json"]);
        if !token.is_empty() {
            arguments.extend(["--token", token]);
        }
        run(&arguments)
    };
    for (protocol, endpoint, refused) in [("grpc", &grpc, "grpc 16"), ("http-protobuf", &http, "http 401")] {
        let (succeeded, out, error) = load(protocol, endpoint, "writer-S3cret");
        assert!(succeeded, "{protocol}: {out} {error}");
        for token in ["", "another-S3cret"] {
            let (succeeded, out, error) = load(protocol, endpoint, token);
            assert!(!succeeded && error.contains(refused), "{protocol} {token:?}: {out} {error}");
            assert!(!out.contains("S3cret") && !error.contains("S3cret"), "{protocol}: {out} {error}");
        }
    }
    let count =
        |token: &str| run(&["query", "--server", &api, "--token", token, "SELECT count(*) > 0 AS some FROM logs"]);
    let (succeeded, out, error) = count("first-S3cret");
    assert!(succeeded && out.contains("true"), "{out} {error}");
    let (succeeded, _, error) = count("writer-S3cret");
    assert!(!succeeded && error.contains("does not allow this"), "{error}");

    // A token that has leaked is replaced, for connections that are open too.
    let reload = |server: &Server, tokens: &[(&str, &str)]| {
        std::fs::write(server.config_path(), config(tokens)).unwrap();
        server.signal("HUP");
    };
    reload(&server, &[("second-S3cret", both)]);
    until("the new token", SOON, || (ask(&server, "GET", "/metrics", "second-S3cret") == 200).then_some(()));
    assert_eq!(ask(&server, "GET", "/metrics", "first-S3cret"), 401);
    let (succeeded, _, error) = load("grpc", &grpc, "writer-S3cret");
    assert!(!succeeded && error.contains("grpc 16"), "{error}");
    let (succeeded, out, error) = load("grpc", &grpc, "second-S3cret");
    assert!(succeeded, "{out} {error}");
    // A configuration without any token is a valid one for this address, and does not open the server.
    reload(&server, &[]);
    until("a word about the last token", SOON, || {
        server.log().iter().any(|line| line.contains("last token")).then_some(())
    });
    assert_eq!((ask(&server, "GET", "/metrics", ""), ask(&server, "GET", "/metrics", "second-S3cret")), (401, 200));
    assert_eq!(server.terminate().code(), Some(0));
    let log = server.log().join("\n");
    assert!(!log.contains("S3cret"), "a token in the log: {log}");
}

#[test]
fn what_cannot_start_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let file = tempfile::NamedTempFile::new().unwrap();
    let in_a_file = file.path().join("data");
    let any_port =
        ["--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--http", "127.0.0.1:0", "--pg", "127.0.0.1:0"];
    let with = |more: &[&'static str]| more.to_vec();
    let ten_megabytes = "# nothing\n".repeat(1 << 20);
    struct Case<'a> {
        what: &'a str,
        config: &'a str,
        data_dir: Option<&'a Path>,
        arguments: Vec<&'a str>,
        code: i32,
        says: Vec<&'a str>,
    }
    let cases = [
        Case {
            what: "a key that is not one",
            config: "log:\n  levle: debug\n",
            data_dir: None,
            arguments: with(&any_port),
            code: 78,
            says: vec!["levle", "godseye.yaml:2:3", "^^^^^", "level"],
        },
        Case {
            what: "two wrong values, both told",
            config: "log: { level: loud }\nquery: { timeout: 5 parsecs }\n",
            data_dir: None,
            arguments: with(&any_port),
            code: 78,
            says: vec!["loud", "godseye.yaml:1:15", "parsecs", "godseye.yaml:2:19", "^"],
        },
        Case {
            what: "a secret that is not set",
            config: "auth: { tokens: [{ token: '${env:GODSEYE_TEST_NOT_SET}', tenant: a, scopes: [ingest] }] }\n",
            data_dir: None,
            arguments: with(&any_port),
            code: 78,
            says: vec!["GODSEYE_TEST_NOT_SET", "godseye.yaml:1:"],
        },
        Case {
            what: "a file of a secret that is not there, beside one that is written out",
            config: "auth:\n  tokens:\n    - { token: '${file:/no/such/file}', tenant: a, scopes: [ingest] }\n    - { token: S3cretS3cret, tenat: b }\n",
            data_dir: None,
            arguments: with(&any_port),
            code: 78,
            says: vec!["/no/such/file", "godseye.yaml:3:", "tenat", "godseye.yaml:4:"],
        },
        Case {
            what: "ten megabytes",
            config: &ten_megabytes,
            data_dir: None,
            arguments: with(&any_port),
            code: 78,
            says: vec!["godseye.yaml", "too large", "1 MiB"],
        },
        Case {
            what: "open to the network without a token",
            config: "",
            data_dir: None,
            arguments: vec!["--otlp-grpc", "0.0.0.0:0", "--otlp-http", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            code: 78,
            says: vec!["--otlp-grpc", "without any token", "auth.tokens"],
        },
        Case {
            what: "an unknown flag",
            config: "",
            data_dir: None,
            arguments: vec!["--otlp-grcp", "127.0.0.1:0"],
            code: 2,
            says: vec!["--otlp-grcp", "--otlp-grpc"],
        },
        Case {
            what: "a bad value of a flag",
            config: "",
            data_dir: None,
            arguments: vec!["--http", "localhost"],
            code: 78,
            says: vec!["--http", "localhost"],
        },
        Case {
            what: "a taken port",
            config: "",
            data_dir: None,
            arguments: vec!["--otlp-grpc", &taken, "--otlp-http", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            code: 1,
            says: vec![&taken, "--otlp-grpc", "in use"],
        },
        Case {
            what: "a taken port of PostgreSQL",
            config: "",
            data_dir: None,
            arguments: [&any_port[..6], &["--pg", &taken]].concat(),
            code: 1,
            says: vec![&taken, "--pg", "in use"],
        },
        Case {
            what: "a data directory that cannot be made",
            config: "",
            data_dir: Some(&in_a_file),
            arguments: with(&any_port),
            code: 1,
            says: vec![in_a_file.to_str().unwrap(), "Not a directory"],
        },
        Case {
            what: "a data directory that cannot be written",
            config: "",
            data_dir: Some(Path::new("/proc/godseye")),
            arguments: with(&any_port),
            code: 1,
            says: vec!["/proc/godseye"],
        },
    ];
    let mut wrong = Vec::new();
    for case in cases {
        let mut setup = Setup::new().config(case.config);
        if let Some(dir) = case.data_dir {
            setup = setup.data_dir(dir);
        }
        let ended = setup.run_to_end(&case.arguments);
        let log = ended.log.join("\n");
        let missing: Vec<&str> = case.says.iter().copied().filter(|part| !log.contains(part)).collect();
        let tells = log.contains("S3cret") || log.len() > 10_000;
        if ended.status.code() != Some(case.code) || !missing.is_empty() || tells {
            wrong.push(format!("{}: expected code {}, missing {missing:?}, found {ended}", case.what, case.code));
        }
    }
    drop(listener);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

// Damaged files

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_with(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("names of our files are text")
}

#[test]
fn a_flipped_bit_in_the_log_costs_what_is_counted_and_nothing_else() {
    const BATCHES: usize = 12;
    const PLACES: u64 = 20;
    // One request at a time, so that each is a record of its own; the log stays small.
    let mut server = Setup::new().config(NO_FLUSH).start();
    let mut sent = Sent::nothing("bits", 2);
    for n in 0..BATCHES {
        assert_eq!(sent.post(&server, SIGNALS[n % 4]).status, 200);
    }
    server.kill();
    let whole = files_with(&server.data_dir().join("wal"), "wal");
    assert_eq!(whole.len(), 1, "{whole:?}");
    let bytes = std::fs::metadata(&whole[0]).unwrap().len();

    let mut rng = Rng::of(&[22]);
    let mut places: Vec<u64> = (0..PLACES - 4).map(|part| (part * bytes + rng.below(bytes)) / (PLACES - 4)).collect();
    // The file's magic, its header's checksum, the first record's length, and the very last byte.
    places.extend([0, 60, 1024 + 4, bytes - 1]);
    let mut losses = 0;
    for at in places {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        copy_folder(&server.data_dir(), &data_dir);
        let file = data_dir.join("wal").join(name_of(&whole[0]));
        let mut content = std::fs::read(&file).unwrap();
        content[at as usize] ^= 1 << rng.below(8);
        std::fs::write(&file, content).unwrap();

        let damaged = Setup::new().config(NO_FLUSH).data_dir(&data_dir).start();
        assert!(is_ready(&damaged), "a bit at {at} of {bytes} never stops a start");
        let lost = damaged.metric("godseye_wal_records_lost_total").expect("losses are counted") as usize;
        let stored: usize = SIGNALS.iter().map(|signal| sent.stored(&damaged, *signal).len()).sum();
        assert_eq!(stored, BATCHES - lost, "a bit at {at} of {bytes}: {lost} records are counted as lost");
        assert!(lost <= 1, "a bit at {at} of {bytes}: {lost} records are lost");
        losses += lost;
        if lost > 0 {
            let named = damaged.log().iter().any(|line| line.contains(name_of(&whole[0])));
            assert!(named, "a bit at {at} of {bytes}: the log names the file");
        }
        assert_eq!(Sent::nothing("after", 2).post(&damaged, Signal::Logs).status, 200, "it takes new telemetry");
    }
    assert!(losses >= 5, "most places are in records: {losses} losses");
}

#[test]
fn log_files_that_are_missing_cut_empty_renamed_or_foreign_are_named_and_never_stop_a_start() {
    const BATCHES: u64 = 12;
    const RECORDS_IN_A_FILE: u64 = 3;
    let fill = |run: &str| {
        let mut server = Setup::new().config(NO_FLUSH).start();
        let mut sent = Sent::nothing(run, 8);
        for _ in 0..BATCHES {
            let batch = bulky(&sent, 256 << 10);
            assert_eq!(post(&server, &batch).unwrap().status, 200);
            sent.note(&batch, Verdict::Acked { rejected: 0 });
        }
        server.kill();
        let files = files_with(&server.data_dir().join("wal"), "wal");
        assert_eq!(files.len() as u64, BATCHES / RECORDS_IN_A_FILE, "{files:?}");
        (server, sent, files)
    };
    let (ours, sent, _) = fill("ours");
    let (_other, others, foreign) = fill("others");

    fn cut(file: &Path, new_len: fn(u64) -> u64) {
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(new_len(file.metadata().unwrap().len())).unwrap();
    }
    fn copy(from: &Path, to: &Path) {
        std::fs::copy(from, to).unwrap();
    }
    /// The folder, the files in it, and those of the other log.
    type Change = fn(&Path, &[PathBuf], &[PathBuf]);
    struct Case<'c> {
        what: &'c str,
        change: Change,
        /// Batches that are not there afterwards, and how many of them are counted as lost.
        gone: u64,
        lost: u64,
        /// What `/readyz` says.
        says: &'c str,
    }
    let case = |what, change: Change, gone, lost, says| Case { what, change, gone, lost, says };
    let missing = format!("{RECORDS_IN_A_FILE} records missing before a segment");
    let cases = [
        case("first missing", |_, files, _| std::fs::remove_file(&files[0]).unwrap(), 3, 3, missing.as_str()),
        case("middle missing", |_, files, _| std::fs::remove_file(&files[1]).unwrap(), 3, 3, &missing),
        case("middle empty", |_, files, _| cut(&files[1], |_| 0), 3, 3, "zero_length"),
        case("middle cut in its second record", |_, files, _| cut(&files[1], |len| len / 2), 2, 2, "bytes in"),
        case(
            "both headers of the middle overwritten",
            |_, files, _| {
                let mut bytes = std::fs::read(&files[1]).unwrap();
                bytes[..1024].fill(0xaa);
                std::fs::write(&files[1], bytes).unwrap();
            },
            0,
            0,
            "header in",
        ),
        case(
            "middle renamed",
            |dir, files, _| std::fs::rename(&files[1], dir.join("copy of a log.bak")).unwrap(),
            0,
            0,
            "renamed in copy of a log.bak",
        ),
        case(
            "a file of another log beside ours",
            |dir, _, foreign| copy(&foreign[1], &dir.join("00000000000000000500.wal")),
            0,
            0,
            "foreign in 00000000000000000500.wal",
        ),
        case(
            "a file of another log in place of ours",
            |_, files, foreign| copy(&foreign[1], &files[1]),
            3,
            3,
            "foreign in",
        ),
        case(
            "a file that is no log at all",
            |dir, _, _| std::fs::write(dir.join("notes.wal"), "shopping list").unwrap(),
            0,
            0,
            "not_a_segment in notes.wal",
        ),
        case("no identity", |dir, _, _| std::fs::remove_file(dir.join("log.id")).unwrap(), 0, 0, "identity in log.id"),
        // What a crash in the middle of a write leaves too: no acknowledgement had been sent for that one.
        case("last cut in its last record", |_, files, _| cut(&files[3], |len| len - 1_000), 1, 0, ""),
    ];
    for Case { what, change, gone, lost, says } in cases {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        copy_folder(&ours.data_dir(), &data_dir);
        let wal = data_dir.join("wal");
        change(&wal, &files_with(&wal, "wal"), &foreign);

        let mut server = Setup::new().config(NO_FLUSH).data_dir(&data_dir).start();
        let ready = server.get("/readyz");
        assert_eq!(ready.status, 200, "{what}: {}", text(&ready.body));
        let body: serde_json::Value = serde_json::from_slice(&ready.body).unwrap();
        assert_eq!(body["degraded"].is_null(), says.is_empty(), "{what}: {body}");
        assert!(body["degraded"].to_string().contains(says), "{what}: {body}");
        let named = says.is_empty() || server.log().iter().any(|line| line.contains(says));
        assert!(named, "{what}: the log names the file: {:#?}", server.log());
        let counted = |server: &Server| server.metric("godseye_wal_records_lost_total");
        assert_eq!(counted(&server), Some(lost as f64), "{what}");
        assert_eq!(server.metric("godseye_wal_torn_bytes_total") > Some(0.0), gone > lost, "{what}");
        let mut after = Sent::nothing("after", 2);
        for when in ["", "after another start"] {
            let stored = sent.stored(&server, Signal::Logs).len() as u64;
            assert_eq!(stored, BATCHES - gone, "{what} {when}");
            assert_eq!(others.stored(&server, Signal::Logs).len(), 0, "{what} {when}: rows of another log");
            assert_eq!(after.post(&server, Signal::Logs).status, 200, "{what} {when}: it takes new telemetry");
            after.check(&server, &format!("{what} {when}"));
            check_ledger(&server, &format!("{what} {when}"));
            assert_eq!(server.terminate().code(), Some(0));
            server.restart();
        }
        after.check(&server, what);
    }
}

#[test]
fn a_damaged_segment_is_named_and_set_aside() {
    const SEGMENTS: usize = 4;
    let config = "
storage:
  memtable: { flush_interval: 1s }
  compaction: { min_segments: 64 }
";
    let mut server = Setup::new().config(config).start();
    let folder = server.data_dir().join("segments");
    let mut sent = Sent::nothing("damaged", 50);
    for n in 0..SEGMENTS {
        assert_eq!(sent.post(&server, Signal::Traces).status, 200);
        until("a flush", SOON, || (files_with(&folder, "parquet").len() > n).then_some(()));
        until("its end", SOON, || (server.metric("godseye_store_memtable_rows") == Some(0.0)).then_some(()));
    }
    sent.check(&server, "before the damage");
    server.kill();
    server.restart();
    let files = files_with(&folder, "parquet");
    assert_eq!(files.len(), SEGMENTS, "{files:?}");
    let smash = |file: &Path, from_end: bool| {
        let mut content = std::fs::read(file).unwrap();
        let len = content.len();
        let range = if from_end { len - 64..len } else { 4..len / 2 };
        content[range].fill(0xff);
        std::fs::write(file, content).unwrap();
    };
    let rows = |server: &Server| sent.stored(server, Signal::Traces).len();
    let in_quarantine = |server: &Server, file: &Path| {
        let kept = files_with(&server.data_dir().join("quarantine"), "parquet");
        kept.iter().any(|kept| name_of(kept).ends_with(name_of(file)))
    };

    // Data pages, while the server runs; nothing has read them since its start.
    smash(&files[0], false);
    let answer = server.sql("SELECT attributes['load.batch'], attributes['load.row'] FROM spans");
    let warnings = answer["stats"]["warnings"].to_string();
    assert!(warnings.contains(name_of(&files[0])), "the answer names the file: {}", answer["stats"]);
    assert_eq!(rows(&server), SEGMENTS - 1, "the other segments still answer");
    assert!(in_quarantine(&server, &files[0]) && !files[0].exists(), "the file is set aside");

    // A footer, while the server runs: noticed by a query, or by the next start where it was read before.
    smash(&files[1], true);
    let _before_the_start = rows(&server);
    assert!(is_ready(&server), "it goes on");
    server.kill();
    // A footer, and a whole file, while it does not run.
    smash(&files[2], true);
    server.restart();
    for file in &files[..3] {
        assert!(in_quarantine(&server, file), "{file:?} is set aside");
    }
    let log = server.log().join("\n");
    assert!(log.contains(name_of(&files[2])), "the log names the file: {log}");
    assert_eq!(rows(&server), SEGMENTS - 3);
    assert_eq!(server.metric("godseye_store_segments_quarantined"), Some(3.0));
    let ready = text(&server.get("/readyz").body);
    assert!(ready.contains("3 damaged segments are set aside"), "{ready}");
    let mut more = Sent::nothing("more", 5);
    assert_eq!(more.post(&server, Signal::Traces).status, 200);
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    assert_eq!(rows(&server), SEGMENTS - 3, "the next start is the same");
    more.check(&server, "after the damage");
}

#[test]
fn a_wrong_computation_over_segments_is_the_querys_fault_and_not_theirs() {
    let mut server = Setup::new().config("storage: { memtable: { flush_interval: 1s } }").start();
    let mut sent = Sent::nothing("sums", 5);
    for signal in SIGNALS {
        assert_eq!(sent.post(&server, signal).status, 200);
    }
    let wrong = |server: &Server, when: &str| {
        for table in ["spans", "metric_points", "profiles"] {
            for condition in [
                "1 / (attributes['load.row'] - 2) > 0",
                "attributes['load.row'] % (attributes['load.row'] - 2) = 0",
                "CAST(attributes['load.row'] + 200 AS TINYINT) + 1 > 0",
                "CAST(attributes['load.run'] AS BIGINT) = 1",
            ] {
                // In the filter, which the scan of a segment evaluates, and in the answer.
                for sql in [
                    format!("SELECT count(*) FROM {table} WHERE {condition}"),
                    format!("SELECT {condition} FROM {table}"),
                ] {
                    let response = server.query(&sql, "json");
                    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
                    let found = (response.status, body["error"]["code"].as_str());
                    assert_eq!(found, (400, Some("bad_query")), "{when} {sql}: {body}");
                }
            }
        }
        assert_eq!(server.metric("godseye_store_segments_quarantined"), Some(0.0), "{when}: no segment is suspected");
        sent.check(server, when);
    };
    wrong(&server, "from memory");
    until("a flush", SOON, || (server.metric("godseye_store_memtable_rows") == Some(0.0)).then_some(()));
    wrong(&server, "from segments");
    server.kill();
    server.restart();
    wrong(&server, "after a restart");
}

// Hostile clients

#[test]
fn text_from_telemetry_stays_text() {
    let bodies = [
        "\u{1b}[2J\u{1b}[31mred\u{1b}[0m",
        "first\r\n2026-01-01T00:00:00Z ERROR forged: line",
        "with a \0 zero",
        "right-to-left \u{202e}gnp.exe",
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@SUM(1)",
        "\tleading tab",
        "quoted \"text\", with a comma",
    ];
    for format in ["json", "text"] {
        let mut server = Setup::new().config(&format!("log: {{ level: trace, format: {format} }}")).start();
        let records = bodies.iter().enumerate().map(|(row, body)| LogRecord {
            time_unix_nano: now_ns() + row as u64,
            severity_text: (*body).to_owned(),
            event_name: (*body).to_owned(),
            body: Some(any(*body)),
            attributes: vec![kv("row", row as i64)],
            ..LogRecord::default()
        });
        let response = post(&server, &logs(0, records.collect())).unwrap();
        assert_eq!(response.status, 200, "{}", text(&response.body));

        let sql = "SELECT body FROM logs ORDER BY attributes['row']";
        let answer = server.sql(sql);
        let found: Vec<&str> = answer["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
        assert_eq!(found, bodies, "JSON gives back every character");
        // A terminal shows no character that moves it or turns the line around.
        let api = server.http.to_string();
        let (succeeded, table, error) = run(&["query", "--server", &api, sql]);
        assert!(succeeded, "{error}");
        let plain = |c: char| c == '\n' || (!c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c));
        assert!(table.contains("red") && table.chars().all(plain), "{table:?}");
        assert_eq!(table.lines().count(), bodies.len() + 5, "a line for each record: {table}");
        let csv = text(&server.query(sql, "csv").body);
        for body in bodies {
            let cell = body.replace('"', "\"\"");
            if body.starts_with(['=', '+', '-', '@', '\t', '\r']) {
                assert!(csv.contains(&format!("'{cell}")), "CSV has {body:?} behind an apostrophe: {csv:?}");
            } else {
                assert!(
                    csv.contains(&cell) && !csv.contains(&format!("'{cell}")),
                    "CSV has {body:?} as it is: {csv:?}"
                );
            }
        }

        // The same text wherever a client can put it and the server may log it.
        for body in bodies {
            drop(server.query(&format!("SELECT '{}' FROM nowhere", body.replace('\'', "''")), "json"));
            drop(server.query(body, "json"));
            let garbage = Batch { signal: Signal::Logs, id: 0, items: 0, body: body.as_bytes().to_vec().into() };
            drop(post(&server, &garbage));
            drop(
                Request::new("POST", "/v1/logs")
                    .header("content-type", "application/json")
                    .body(body.as_bytes())
                    .send(server.otlp_http),
            );
        }
        for path in ["/%1b%5b2J%0d%0aforged", "/api/v1/%00%0a", "/v1/logs%0aforged"] {
            drop(Request::new("GET", path).send(server.http));
            drop(Request::new("POST", path).send(server.otlp_http));
        }
        assert_eq!(server.terminate().code(), Some(0));
        let log = server.log();
        assert!(!log.is_empty(), "at level trace it says something");
        for line in &log {
            assert!(!line.contains(['\u{1b}', '\0', '\r', '\u{202e}']), "a raw control character in {line:?}");
            let whole = if format == "json" {
                serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["level"].is_string())
            } else {
                line.get(..4).is_some_and(|year| year.bytes().all(|byte| byte.is_ascii_digit()))
                    && !line.starts_with("2026-01-01T00:00:00Z")
            };
            assert!(whole, "not a line of our own: {line:?}");
        }
    }
}

fn gauge_points(series: std::ops::Range<u64>) -> ExportMetricsServiceRequest {
    let data_points = series
        .map(|series| NumberDataPoint {
            attributes: vec![kv("series", series as i64)],
            time_unix_nano: now_ns(),
            value: Some(Value::AsInt(series as i64)),
            ..NumberDataPoint::default()
        })
        .collect();
    let metric =
        Metric { name: "limited".to_owned(), data: Some(Data::Gauge(Gauge { data_points })), ..Metric::default() };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(service()),
            scope_metrics,
            ..ResourceMetrics::default()
        }],
    }
}

#[test]
fn series_beyond_the_limit_are_rejected_and_known_ones_flow() {
    let mut server = Setup::new().config("limits: { series_max: 1000 }").start();
    let send = |server: &Server, series: std::ops::Range<u64>| {
        let body = gauge_points(series.clone()).encode_to_vec();
        let batch = Batch { signal: Signal::Metrics, id: 0, items: 0, body: body.into() };
        let response = post(server, &batch).unwrap();
        assert_eq!(response.status, 200, "{series:?}: {}", text(&response.body));
        ExportReply::decode(&response.body[..]).unwrap().partial_success
    };
    // Which series, and how many of their points are rejected.
    let mut received = 0;
    let mut rejected = 0;
    for (series, expected) in
        [(0..900, 0), (800..1_100, 100), (0..1_000, 0), (5_000..7_500, 2_500), (990..1_010, 10), (0..1_000, 0)]
    {
        let partial = send(&server, series.clone());
        received += series.end - series.start;
        rejected += expected;
        match partial {
            None => assert_eq!(expected, 0, "{series:?}"),
            Some(partial) => {
                assert_eq!(partial.rejected, expected as i64, "{series:?}: {}", partial.error_message);
                assert!(expected > 0, "{series:?}: nothing rejected leaves partial_success unset");
                assert!(partial.error_message.contains("series_limit"), "{series:?}: {}", partial.error_message);
            }
        }
    }
    for when in ["before", "after"] {
        let answer =
            server.sql("SELECT sum(received), sum(stored), sum(rejected) FROM ingest_ledger WHERE signal = 'metrics'");
        let counts: Vec<u64> = (0..3).map(|column| common::oracle::number(&answer["rows"][0][column])).collect();
        assert_eq!(counts, [received, received - rejected, rejected], "{when} a restart");
        assert_eq!(
            server.number("SELECT sum(rejected) FROM ingest_ledger WHERE reason = 'series_limit'"),
            rejected,
            "{when} a restart"
        );
        assert_eq!(server.number("SELECT count(*) FROM metric_points"), received - rejected, "{when} a restart");
        server.kill();
        server.restart();
    }
}

/// Peak resident memory of a process, bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells the peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// So many bytes, compressed to a thousandth.
fn bomb(encoding: &str, bytes: u64) -> Vec<u8> {
    let block = vec![0; 1 << 20];
    let blocks = bytes / block.len() as u64;
    if encoding == "gzip" {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        (0..blocks).for_each(|_| encoder.write_all(&block).unwrap());
        encoder.finish().unwrap()
    } else {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        (0..blocks).for_each(|_| encoder.write_all(&block).unwrap());
        encoder.finish().unwrap()
    }
}

#[test]
fn bombs_are_refused_one_by_one_in_bounded_memory() {
    const BOMBS: usize = 64;
    const MEMORY_MAX: u64 = 512 << 20;
    // A tiny request limit would hide what is tested, and the default makes a slow test: half a minute of unpacking.
    let config = "
receivers: { otlp: { protocols: { grpc: { max_request_bytes: 16MiB }, http: { max_request_bytes: 16MiB } } } }
";
    let mut server = Setup::new().config(config).start();
    let gzip = bomb("gzip", 1 << 30);
    let zstd = bomb("zstd", 1 << 30);
    assert!(gzip.len() < 8 << 20 && zstd.len() < 1 << 20, "{} and {} bytes", gzip.len(), zstd.len());
    let (grpc_to, http_to) = (server.otlp_grpc, server.otlp_http);
    let wrong: Vec<String> = std::thread::scope(|threads| {
        let throw = |n: usize| {
            let (encoding, body) = if n % 4 == 3 { ("zstd", &zstd) } else { ("gzip", &gzip) };
            // All at once they are more than the budget for requests in flight: then the answer is a retryable
            // refusal, as often as it takes, and never anything else.
            for _ in 0..1_000 {
                let (done, busy) = if n.is_multiple_of(2) {
                    let response = Request::new("POST", "/v1/traces")
                        .header("content-type", "application/x-protobuf")
                        .header("content-encoding", encoding)
                        .body(body)
                        .send(http_to)
                        .map_err(|error| format!("{n}: {error}"))?;
                    (response.status == 413, response.status == 503 && response.header("retry-after").is_some())
                } else {
                    let reply = grpc::call(grpc_to, Signal::Traces.grpc_path(), Some(encoding), body)
                        .map_err(|error| format!("{n}: {error}"))?;
                    let retry = reply.has_retry_info();
                    (reply.status == 8 && !retry, reply.status == 14 && retry)
                };
                match (done, busy) {
                    (true, _) => return Ok(()),
                    (_, true) => common::pause(Duration::from_millis(100)),
                    _ => {
                        return Err(format!("bomb {n} ({encoding}) got another answer than 413 or RESOURCE_EXHAUSTED"));
                    }
                }
            }
            Err(format!("bomb {n} ({encoding}) never got its turn"))
        };
        let thrown: Vec<_> = (0..BOMBS).map(|n| threads.spawn(move || throw(n))).collect();
        thrown.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    let peak = peak_memory(server.pid());
    assert!(peak < MEMORY_MAX, "peak memory is {} MiB", peak >> 20);
    let mut sent = Sent::nothing("after-bombs", 20);
    for signal in SIGNALS {
        assert_eq!(sent.post(&server, signal).status, 200);
    }
    sent.check(&server, "after the bombs");
    assert!(server.is_running());
}

/// `tag, length, bytes` of a length-delimited field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    [out, bytes.to_vec()].concat()
}

#[test]
fn a_million_items_of_two_bytes_each_are_bounded_together() {
    const ITEMS: u64 = 1 << 20;
    const REQUESTS: usize = 6;
    /// Three times the columns of one such request, and what may wait and be unflushed beside it.
    const MEMORY_MAX: u64 = 1_536 << 20;
    // Histogram points with nothing in them: two bytes on the wire, two hundred in columns.
    let points = field(1, b"").repeat(ITEMS as usize + 3);
    let delta = [0x10, 1];
    let metric = [field(1, b"dense"), field(9, &[&points[..], &delta].concat())].concat();
    let body: bytes::Bytes = field(1, &field(2, &field(2, &metric))).into();
    assert!(body.len() < 3 << 20, "{} bytes", body.len());
    let server = Setup::new().start();
    let acked = std::thread::scope(|threads| {
        let send = || {
            let batch = Batch { signal: Signal::Metrics, id: 0, items: ITEMS, body: body.clone() };
            let response = post(&server, &batch).unwrap();
            if response.status == 503 {
                assert!(response.header("retry-after").is_some(), "a full memory is a retryable refusal");
                return 0;
            }
            assert_eq!(response.status, 200, "{}", text(&response.body));
            let partial = ExportReply::decode(&response.body[..]).unwrap().partial_success.unwrap();
            assert_eq!(partial.rejected, 3, "{}", partial.error_message);
            assert!(partial.error_message.contains("too_many_items"), "{}", partial.error_message);
            1
        };
        let sent: Vec<_> = (0..REQUESTS).map(|_| threads.spawn(send)).collect();
        sent.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    let peak = peak_memory(server.pid());
    assert!(peak < MEMORY_MAX, "peak memory is {} MiB", peak >> 20);
    assert!(acked > 0, "one fits in any case");
    let counts = server.sql("SELECT sum(stored), sum(rejected) FROM ingest_ledger WHERE signal = 'metrics'");
    assert_eq!(counts["rows"], serde_json::json!([[acked * ITEMS, acked * 3]]));
    let mut sent = Sent::nothing("after-dense", 5);
    until("room again", SOON, || (sent.post(&server, Signal::Traces).status == 200).then_some(()));
    sent.check(&server, "after the dense requests");
}

#[test]
fn idle_and_slow_connections_hold_nobody_up() {
    const IDLE: usize = 1_000;
    let config = "receivers: { otlp: { protocols: { http: { read_timeout: 2s } } } }";
    let server = Setup::new().config(config).start();
    let open = |to: SocketAddr| {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    let listeners = [server.otlp_grpc, server.otlp_http, server.http];
    let idle: Vec<TcpStream> = (0..IDLE).map(|n| open(listeners[n % 3])).collect();
    // One that promises a body and sends a byte at a time, one that never ends its head.
    let mut slow_body = open(server.otlp_http);
    slow_body
        .write_all(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000\r\n\r\n")
        .unwrap();
    let mut slow_head = open(server.otlp_http);
    slow_head.write_all(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n").unwrap();

    let mut sent = Sent::nothing("among-idle", 10);
    let mut answer = Vec::new();
    let answered = until("the end of the slow request", SOON, || {
        // Others are served while it trickles.
        for signal in SIGNALS {
            assert_eq!(sent.post(&server, signal).status, 200);
        }
        let batch = sent.next_batch(Signal::Traces);
        let reply = grpc::call(server.otlp_grpc, batch.signal.grpc_path(), None, &batch.body).unwrap();
        assert_eq!(reply.status, 0, "{reply:?}");
        sent.note(&batch, Verdict::Acked { rejected: 0 });
        let trickled = slow_body.write_all(b"x");
        drop(slow_head.write_all(b"x"));
        slow_body.set_nonblocking(true).unwrap();
        let mut bytes = [0; 1024];
        let read = slow_body.read(&mut bytes);
        slow_body.set_nonblocking(false).unwrap();
        match read {
            Ok(0) => Some(text(&answer)),
            Ok(read) => {
                answer.extend_from_slice(&bytes[..read]);
                answer.starts_with(b"HTTP/1.1 ").then(|| text(&answer))
            }
            Err(_) if trickled.is_err() => Some(text(&answer)),
            Err(_) => None,
        }
    });
    assert!(answered.is_empty() || answered.starts_with("HTTP/1.1 503"), "a body that is too slow: {answered}");
    assert!(is_ready(&server));
    sent.check(&server, "among idle connections");
    drop(idle);
}

#[test]
fn times_far_from_now_are_stored_or_rejected_by_rule() {
    /// The last nanosecond that fits, in the year 2262.
    const LAST: u64 = i64::MAX as u64;
    let span = |row: i64, start: u64, end: u64| Span {
        trace_id: vec![7; 16],
        span_id: row.to_be_bytes().iter().map(|byte| byte | 1).collect(),
        name: "far".to_owned(),
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes: vec![kv("row", row)],
        ..Span::default()
    };
    // Start, end, and whether it is stored. A clock that was set back within a span is the sender's: what it
    // measured is kept, and shows as a negative duration.
    let cases = [
        (0, 0, true),
        (1, 2, true),
        (1_000_000_000, 2_000_000_000, true),
        (LAST - 1, LAST, true),
        (LAST, LAST + 1, false),
        (u64::MAX - 1, u64::MAX, false),
        (now_ns(), now_ns() - 5_000, true),
        (now_ns(), now_ns() + 1, true),
    ];
    let spans: Vec<Span> = cases.iter().zip(1..).map(|((start, end, _), row)| span(row, *start, *end)).collect();
    let expected_rejected = cases.iter().filter(|(_, _, stored)| !stored).count();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(service()), scope_spans, ..ResourceSpans::default() }];
    let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
    let mut server = Setup::new().config("storage: { memtable: { flush_interval: 1s } }").start();
    let response = post(&server, &Batch { signal: Signal::Traces, id: 0, items: 0, body }).unwrap();
    assert_eq!(response.status, 200, "{}", text(&response.body));
    let rejected =
        ExportReply::decode(&response.body[..]).unwrap().partial_success.map_or(0, |partial| partial.rejected);
    assert_eq!(rejected, expected_rejected as i64);

    let stored = |server: &Server| -> Vec<u64> {
        let answer = server
            .sql("SELECT attributes['row'], start_time, end_time, duration_ns FROM spans ORDER BY attributes['row']");
        answer["rows"].as_array().unwrap().iter().map(|row| common::oracle::number(&row[0])).collect()
    };
    let backwards = |server: &Server| {
        server.sql("SELECT start_time > end_time, duration_ns < 0 FROM spans WHERE attributes['row'] = 7")
    };
    let expected: Vec<u64> = (1..).zip(&cases).filter(|(_, (_, _, stored))| *stored).map(|(row, _)| row).collect();
    assert_eq!(stored(&server), expected, "from memory");
    server.kill();
    server.restart();
    assert_eq!(stored(&server), expected, "from the log");
    assert_eq!(backwards(&server)["rows"], serde_json::json!([[true, true]]));
    // Retention goes by event time, so what is from 1970 may go once it is in a segment; what is from the future
    // counts as just stored, and stays.
    until("a flush", SOON, || (server.metric("godseye_store_memtable_rows") == Some(0.0)).then_some(()));
    let kept = stored(&server);
    assert!(kept.ends_with(&expected[expected.len() - 3..]), "from segments: {kept:?}");
    assert_eq!(backwards(&server)["rows"], serde_json::json!([[true, true]]), "from segments");
}
