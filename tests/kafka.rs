//! A gateway, Apache Kafka and a writer: real processes, killed at any moment, and clients we did not write at either end.
//!
//! Not here: partitions that come and go, dead letters and other faults of the writer alone (`ingest/kafka/tests`). Without
//! Java or Kafka's jars these tests say so and pass; `KAFKA_BROKERS` points them at another cluster.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what is left out is told")]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use common::oracle::{Sending, Sent, check_ledger};
use common::{Server, Setup};
use fixtures::otlp::Signal;
use fixtures::parts::PartError;
use fixtures::parts::kafka::Kafka;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use tempfile::TempDir;

/// How long what is in Kafka may take to be stored: a member that was killed may have to be missed first.
const STORED_WITHIN: Duration = Duration::from_secs(120);

const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

static KAFKA: OnceLock<Option<(TempDir, Kafka)>> = OnceLock::new();

/// The brokers; `None`, and said so, where they cannot be started.
fn brokers() -> Option<&'static str> {
    let started = KAFKA.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        match runtime.block_on(Kafka::start(folder.path())) {
            Err(error @ PartError::Missing { .. }) => {
                eprintln!("left out: {error}");
                None
            }
            kafka => Some((folder, kafka.unwrap())),
        }
    });
    started.as_ref().map(|(_, kafka)| kafka.brokers())
}

/// Topics and a group of one test's own, in YAML.
fn keys(test: &str, more: &str) -> Option<String> {
    let (brokers, run) = (brokers()?, std::process::id());
    Some(format!(
        "kafka:\n  brokers: \"{brokers}\"\n  group: {test}-{run}\n  dead_letters: {test}-{run}-dead\n  session_timeout: 6s\n  \
         topics: {{ traces: {test}-{run}-spans, metrics: {test}-{run}-metrics, logs: {test}-{run}-logs, profiles: {test}-{run}-profiles }}\n{more}"
    ))
}

/// A writer that flushes and merges all the time.
fn writer(keys: &str) -> Server {
    let restless = "storage:\n  wal: { segment_bytes: 1MiB, min_free_bytes: 16MiB }\n  memtable: { flush_bytes: 1MiB, flush_interval: 1s }\n  \
                    compaction: { interval: 1s, min_segments: 2, target_bytes: 8MiB }\n  retention: { traces: 3650d, metrics: 3650d, logs: 3650d }\n";
    Setup::new().config(&format!("role: writer\n{keys}{restless}")).start()
}

fn gateway(keys: &str) -> Server {
    Setup::new().config(&format!("role: gateway\n{keys}")).start()
}

/// Waits until everything that was acknowledged is stored.
fn until_stored(writer: &Server, sent: &Sent) {
    common::came(STORED_WITHIN, || sent.faults(writer).is_empty().then_some(()));
}

#[test]
fn a_gateway_and_a_writer_do_what_one_process_does() {
    let Some(keys) = keys("roles", "") else { return };
    let mut gateway = gateway(&keys);
    let mut writer = writer(&keys);
    let sent = Sending { requests: 200, ..Sending::new("through") }.start(&gateway).finish();
    assert_eq!(sent.acked(), 200);
    until_stored(&writer, &sent);
    sent.check(&writer, "through Kafka");
    check_ledger(&writer, "through Kafka");

    // A gateway has neither store nor data directory, and says so; a writer takes no OTLP.
    let refused = gateway.query("SELECT 1", "json");
    assert_eq!(refused.status, 501);
    assert!(String::from_utf8_lossy(&refused.body).contains("ask a writer"), "{:?}", refused.body);
    assert_eq!((gateway.get("/readyz").status, gateway.get("/healthz").status), (200, 200));
    assert!(gateway.metric("godseye_kafka_produced_messages_total").unwrap() >= 200.0);
    assert!(!gateway.data_dir().exists());
    assert_eq!((gateway.pg.port(), writer.otlp_grpc.port(), writer.otlp_http.port()), (0, 0, 0));
    assert_eq!(writer.metric("godseye_kafka_dead_letters_total").unwrap_or(0.0), 0.0);
    assert_eq!(writer.metric("godseye_kafka_assigned_partitions"), Some(4.0));

    // Both end well, and nothing is stored again.
    assert!(gateway.terminate().success());
    assert!(writer.terminate().success());
    writer.restart();
    gateway.restart();
    let more = Sending { requests: 20, ..Sending::new("after") }.start(&gateway).finish();
    until_stored(&writer, &more);
    more.check(&writer, "after a restart");
    sent.check(&writer, "after a restart");
    check_ledger(&writer, "after a restart");
}

#[test]
fn roles_that_cannot_be_played_are_refused_with_a_clear_word() {
    for (arguments, said) in [
        (&["--role", "gateway"][..], "expected `kafka.brokers`"),
        (&["--role", "query", "--kafka-brokers", "a:9092"], "needs a store that several processes share"),
        (&["--role", "writr"], "did you mean `writer`?"),
        (&["--role", "writer", "--kafka-brokers", "a"], "`a` is no broker"),
    ] {
        let ended = Setup::new().run_to_end(arguments);
        assert_eq!(ended.status.code(), Some(78), "{ended}");
        assert!(ended.log.join("\n").contains(said), "{arguments:?}: {ended}");
    }
}

#[test]
fn kill_9_of_the_gateway_or_the_writer_loses_nothing_and_doubles_nothing() {
    let Some(keys) = keys("kill", "") else { return };
    let mut gateway = gateway(&keys);
    let mut writer = writer(&keys);
    let mut runs: Vec<Sent> = Vec::new();
    for cycle in 0..8_u64 {
        let load = Sending::new(&format!("cycle-{cycle}")).start(&gateway);
        common::came(Duration::from_secs(10), || (load.acked() as u64 >= 40 + 60 * cycle).then_some(()));
        // What is acknowledged is in Kafka, whoever dies.
        match cycle % 3 {
            0 => writer.kill(),
            1 => gateway.kill(),
            _ => {
                writer.kill();
                gateway.kill();
            }
        }
        if cycle % 3 == 0 {
            // The gateway goes on alone.
            common::pause(Duration::from_millis(300));
        }
        runs.push(load.stop());
        if cycle % 3 != 0 {
            gateway.restart();
        }
        if cycle % 3 != 1 {
            writer.restart();
        }
    }
    for sent in &runs {
        until_stored(&writer, sent);
        sent.check(&writer, "in the end");
    }
    let acked: usize = runs.iter().map(Sent::acked).sum();
    assert!(acked > 400, "{acked}");
    check_ledger(&writer, "in the end");
}

/// The folder of the Python clients, which `make test` makes.
fn venv() -> PathBuf {
    let folder = std::env::var_os("GODSEYE_CLIENTS_VENV").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/godseye/clients")
    });
    assert!(folder.join("bin/python").exists(), "there are no clients in {}: run `make test`", folder.display());
    folder
}

/// A running `rotel` that exports to Kafka.
struct Agent {
    child: Child,
    grpc: SocketAddr,
}

impl Agent {
    fn start(brokers: &str, test: &str, format: &str, compression: &str) -> Self {
        let found = Command::new(venv().join("bin/python"))
            .args(["-c", "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))"])
            .output()
            .expect("Python can be started");
        let binary = String::from_utf8(found.stdout).expect("a path is text");
        let topic = |signal: &str| format!("{test}-{}-{signal}", std::process::id());
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        // The agent cannot pick its ports, so the kernel picks them here, and another process may be faster.
        for _attempt in 0..5 {
            let [grpc, http] = [free(), free()];
            let child = Command::new(binary.trim())
                .args(["start", "--exporter", "kafka", "--batch-timeout", "50ms"])
                .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
                .args(["--kafka-exporter-brokers", brokers, "--kafka-exporter-format", format])
                .args(["--kafka-exporter-compression", compression])
                .args(["--kafka-exporter-traces-topic", &topic("spans")])
                .args(["--kafka-exporter-metrics-topic", &topic("metrics")])
                .args(["--kafka-exporter-logs-topic", &topic("logs")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("rotel at {binary}: {error}"));
            let mut agent = Self { child, grpc };
            let listens = common::came(Duration::from_secs(60), || {
                if agent.child.try_wait().expect("a child can be waited for").is_some() {
                    return Some(false);
                }
                TcpStream::connect(grpc).is_ok().then_some(true)
            });
            if listens == Some(true) {
                return agent;
            }
        }
        panic!("rotel did not listen");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn what_rotel_sends_to_kafka_a_writer_stores() {
    for compression in ["none", "gzip", "snappy", "lz4"] {
        let test = format!("rotel-{compression}");
        let Some(keys) = keys(&test, "") else { return };
        let writer = writer(&keys);
        let agent = Agent::start(brokers().unwrap(), &test, "protobuf", compression);
        let sending = Sending { requests: 30, rows: 100, signals: SIGNALS.to_vec(), ..Sending::new(&test) };
        let sent = sending.start_at(agent.grpc).finish();
        assert_eq!(sent.acked(), 30);
        until_stored(&writer, &sent);
        sent.check(&writer, &test);
        check_ledger(&writer, &test);
    }
}

#[test]
fn what_a_writer_cannot_read_is_told_and_not_passed_over() {
    // The agent's own JSON is a list, and so no OTLP/JSON: each message is a dead letter.
    let Some(keys_of_json) = keys("rotel-json", "  encoding: otlp_json\n") else { return };
    let reader = writer(&keys_of_json);
    let agent = Agent::start(brokers().unwrap(), "rotel-json", "json", "none");
    let send = |run: &str, agent: &Agent| Sending { requests: 3, ..Sending::new(run) }.start_at(agent.grpc).finish();
    send("rotel-json", &agent);
    let dead = || (reader.metric("godseye_kafka_dead_letters_total")? >= 1.0).then_some(());
    common::until("a dead letter", STORED_WITHIN, dead);
    assert!(reader.log().iter().any(|line| line.contains("a message is no telemetry")));
    drop((agent, reader));

    // This build has no zstd: nothing is read past such messages, and nothing is committed.
    let Some(keys) = keys("rotel-zstd", "") else { return };
    let mut reader = writer(&keys);
    let agent = Agent::start(brokers().unwrap(), "rotel-zstd", "protobuf", "zstd");
    let sending = Sending { requests: 3, signals: vec![Signal::Traces], ..Sending::new("rotel-zstd") };
    let sent = sending.start_at(agent.grpc).finish();
    if cfg!(feature = "kafka-zstd") {
        until_stored(&reader, &sent);
        return sent.check(&reader, "zstd");
    }
    let told = || (reader.metric("godseye_kafka_unreadable_batches_total")? >= 1.0).then_some(());
    common::until("word of it", STORED_WITHIN, told);
    assert!(reader.log().iter().any(|line| line.contains("kafka-zstd")));
    assert_eq!(reader.number("SELECT count(*) FROM spans"), 0);
    assert!(reader.terminate().success());
}

#[test]
fn what_a_gateway_sends_opentelemetrys_own_classes_read() {
    let Some(keys) = keys("python", "  key: trace\n") else { return };
    let gateway = gateway(&keys);
    let sent = Sending { requests: 9, signals: SIGNALS.to_vec(), ..Sending::new("python") }.start(&gateway).finish();
    assert_eq!(sent.acked(), 9);
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers().unwrap())
        .set("group.id", "python")
        .set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = settings.create().unwrap();
    let topic = |signal: &str| format!("python-{}-{signal}", std::process::id());
    let topics = [("traces", topic("spans")), ("logs", topic("logs")), ("metrics", topic("metrics"))];
    consumer.subscribe(&topics.each_ref().map(|(_, topic)| topic.as_str())).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/otlp.py");
    let mut read: BTreeSet<String> = BTreeSet::new();
    let mut messages = String::new();
    let all = 9 * 20;
    common::until("every item", STORED_WITHIN, || {
        while let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            let (signal, _) = topics.iter().find(|(_, topic)| topic == message.topic()).unwrap();
            let hex: String = message.payload().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            messages.push_str(&format!("{signal} {hex}\n"));
        }
        let mut python = Command::new(venv().join("bin/python"))
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python can be started");
        python.stdin.take().unwrap().write_all(messages.as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        let lines = String::from_utf8(output.stdout).unwrap();
        read = lines.lines().map(str::to_owned).collect();
        assert_eq!(read.len(), lines.lines().count(), "each item is there once");
        (read.len() >= all).then_some(())
    });
    assert_eq!(read.len(), all);
}
