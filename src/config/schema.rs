//! The keys of the configuration, once: their names, types and limits, in the order they are
//! written. Reading, rendering and "did you mean" all walk this one list.
//!
//! Defaults are not here (see `defaults`), nor are rules between two keys (see `read`).

use super::units::{ByteSize, Interval};
use super::{Config, Engine, LogFormat, LogLevel, Role, Secret, Token, clickhouse, kafka};
use model::tenant::TenantId;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY: u64 = 24 * 3600;

/// Something that walks the keys: a reader fills the values in, a renderer writes them out.
pub(super) trait Visitor {
    /// A mapping of further keys.
    fn section(&mut self, key: &'static str, body: &mut dyn FnMut(&mut dyn Visitor));
    /// A number of bytes.
    fn bytes(&mut self, key: &'static str, value: &mut ByteSize, allowed: RangeInclusive<u64>);
    /// A duration; the limits are in seconds.
    fn interval(&mut self, key: &'static str, value: &mut Interval, allowed_s: RangeInclusive<u64>);
    /// A whole number.
    fn count(&mut self, key: &'static str, value: &mut u64, allowed: RangeInclusive<u64>);
    /// True or false.
    fn flag(&mut self, key: &'static str, value: &mut bool);
    /// An address to listen on.
    fn address(&mut self, key: &'static str, value: &mut SocketAddr);
    /// A directory, not necessarily there yet.
    fn directory(&mut self, key: &'static str, value: &mut PathBuf);
    /// A file that may be left out.
    fn file(&mut self, key: &'static str, value: &mut Option<PathBuf>);
    /// A list of files and folders.
    fn files(&mut self, key: &'static str, value: &mut Vec<PathBuf>);
    /// A web address that may be left out.
    fn url(&mut self, key: &'static str, value: &mut Option<String>);
    /// A list of web addresses, not empty.
    fn urls(&mut self, key: &'static str, value: &mut Vec<String>);
    /// A text, not empty.
    fn text(&mut self, key: &'static str, value: &mut String);
    /// A text that may be left out.
    fn name(&mut self, key: &'static str, value: &mut Option<String>);
    /// What must not be shown, and may be left out.
    fn secret(&mut self, key: &'static str, value: &mut Option<Secret>);
    /// A tenant's name.
    fn tenant(&mut self, key: &'static str, value: &mut TenantId);
    /// One of a few words, as an index.
    fn choice(&mut self, key: &'static str, names: &'static [&'static str], chosen: &mut usize);
    /// The list of credentials.
    fn tokens(&mut self, key: &'static str, value: &mut Vec<Token>);
}

/// Walks every key of `config`.
pub(super) fn visit(config: &mut Config, v: &mut dyn Visitor) {
    let c = config;
    choose(v, "role", Role::NAMES, &Role::ALL, &mut c.role);
    v.directory("data_dir", &mut c.data_dir);
    v.section("receivers", &mut |v| {
        v.section("otlp", &mut |v| {
            v.section("protocols", &mut |v| {
                v.section("grpc", &mut |v| {
                    let grpc = &mut c.receivers.otlp.protocols.grpc;
                    v.address("endpoint", &mut grpc.endpoint);
                    v.bytes("max_request_bytes", &mut grpc.max_request_bytes, REQUEST_BYTES);
                    // A stream is one request in flight; the upper limit keeps header state small.
                    v.count("max_concurrent_streams", &mut grpc.max_concurrent_streams, 1..=10_000);
                });
                v.section("http", &mut |v| {
                    let http = &mut c.receivers.otlp.protocols.http;
                    v.address("endpoint", &mut http.endpoint);
                    v.bytes("max_request_bytes", &mut http.max_request_bytes, REQUEST_BYTES);
                    v.interval("read_timeout", &mut http.read_timeout, 1..=600);
                });
            });
        });
    });
    v.section("http", &mut |v| v.address("endpoint", &mut c.http.endpoint));
    v.section("pg", &mut |v| v.address("endpoint", &mut c.pg.endpoint));
    v.section("auth", &mut |v| {
        v.flag("allow_unauthenticated", &mut c.auth.allow_unauthenticated);
        v.tokens("tokens", &mut c.auth.tokens);
    });
    v.section("storage", &mut |v| {
        let storage = &mut c.storage;
        choose(v, "engine", Engine::NAMES, &Engine::ALL, &mut storage.engine);
        v.section("wal", &mut |v| {
            // Below 1 MiB a file system spends its time on metadata; past 1 GiB replay has no steps.
            v.bytes("segment_bytes", &mut storage.wal.segment_bytes, MIB..=GIB);
            v.bytes("min_free_bytes", &mut storage.wal.min_free_bytes, 16 * MIB..=1024 * GIB);
        });
        v.section("memtable", &mut |v| {
            v.bytes("flush_bytes", &mut storage.memtable.flush_bytes, MIB..=GIB);
            v.interval("flush_interval", &mut storage.memtable.flush_interval, 1..=3600);
            v.bytes("max_bytes", &mut storage.memtable.max_bytes, 16 * MIB..=64 * GIB);
        });
        v.section("compaction", &mut |v| {
            v.interval("interval", &mut storage.compaction.interval, 1..=3600);
            // One input is no merge; past 64 a merge holds too many files and row groups open.
            v.count("min_segments", &mut storage.compaction.min_segments, 2..=64);
            v.bytes("target_bytes", &mut storage.compaction.target_bytes, 8 * MIB..=8 * GIB);
        });
        v.flag("derived", &mut storage.derived);
        v.section("retention", &mut |v| {
            let retention = &mut storage.retention;
            v.interval("traces", &mut retention.traces, RETENTION_S);
            v.interval("metrics", &mut retention.metrics, RETENTION_S);
            v.interval("logs", &mut retention.logs, RETENTION_S);
            v.interval("profiles", &mut retention.profiles, RETENTION_S);
        });
        v.section("clickhouse", &mut |v| clickhouse::visit(&mut storage.clickhouse, v));
    });
    v.section("alerting", &mut |v| {
        let alerting = &mut c.alerting;
        v.file("alertmanager_config", &mut alerting.alertmanager_config);
        v.files("rules", &mut alerting.rules);
        v.files("slos", &mut alerting.slos);
        v.tenant("tenant", &mut alerting.tenant);
        v.url("external_url", &mut alerting.external_url);
        v.flag("allow_private_targets", &mut alerting.allow_private_targets);
        v.secret("slack_signing_secret", &mut alerting.slack_signing_secret);
    });
    v.section("kafka", &mut |v| kafka::visit(&mut c.kafka, v));
    v.section("limits", &mut |v| {
        v.bytes("in_flight_bytes", &mut c.limits.in_flight_bytes, MIB..=64 * GIB);
        v.count("series_max", &mut c.limits.series_max, 1_000..=100_000_000);
    });
    v.section("query", &mut |v| {
        v.interval("timeout", &mut c.query.timeout, 1..=3600);
        v.bytes("memory_bytes", &mut c.query.memory_bytes, 16 * MIB..=1024 * GIB);
        v.count("rows_max", &mut c.query.rows_max, 1..=100_000_000);
        v.bytes("output_bytes", &mut c.query.output_bytes, MIB..=1024 * GIB);
        v.count("export_rows_max", &mut c.query.export_rows_max, 1..=1_000_000_000_000);
        v.interval("export_timeout", &mut c.query.export_timeout, 1..=24 * 3600);
        v.interval("send_timeout", &mut c.query.send_timeout, 1..=3600);
        v.count("concurrency", &mut c.query.concurrency, 1..=256);
        v.count("concurrency_per_client", &mut c.query.concurrency_per_client, 1..=256);
        v.count("queue", &mut c.query.queue, 0..=10_000);
        v.interval("queue_wait", &mut c.query.queue_wait, 1..=3600);
    });
    v.section("log", &mut |v| {
        choose(v, "level", LogLevel::NAMES, &LogLevel::ALL, &mut c.log.level);
        choose(v, "format", LogFormat::NAMES, &LogFormat::ALL, &mut c.log.format);
    });
    // Zero would cut off every request; past an hour a supervisor has long killed the process.
    v.section("shutdown", &mut |v| v.interval("timeout", &mut c.shutdown.timeout, 1..=3600));
}

/// One request: 1 KiB holds the smallest export, and past 1 GiB nothing is a request any more.
const REQUEST_BYTES: RangeInclusive<u64> = KIB..=GIB;

/// Retention works by whole segments, which reach back up to an hour; ten years is "for ever".
const RETENTION_S: RangeInclusive<u64> = 3600..=3650 * DAY;

/// Lets a visitor choose among the values of an enum by name.
pub(super) fn choose<T: Copy + PartialEq>(
    v: &mut dyn Visitor,
    key: &'static str,
    names: &'static [&'static str],
    all: &[T],
    value: &mut T,
) {
    let mut chosen = all.iter().position(|candidate| candidate == value).unwrap_or(0);
    v.choice(key, names, &mut chosen);
    if let Some(picked) = all.get(chosen) {
        *value = *picked;
    }
}

/// The dotted path of every key, for "it belongs under …".
pub(super) fn paths() -> Vec<String> {
    let mut collector = Paths::default();
    visit(&mut Config::default(), &mut collector);
    collector.found
}

#[derive(Default)]
struct Paths {
    prefix: String,
    found: Vec<String>,
}

impl Paths {
    fn add(&mut self, key: &str) {
        self.found.push(join(&self.prefix, key));
    }
}

/// `a.b` from `a` and `b`; the root's path is empty.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

impl Visitor for Paths {
    fn section(&mut self, key: &'static str, body: &mut dyn FnMut(&mut dyn Visitor)) {
        self.add(key);
        let inner = join(&self.prefix, key);
        let outer = std::mem::replace(&mut self.prefix, inner);
        body(self);
        self.prefix = outer;
    }
    fn bytes(&mut self, key: &'static str, _: &mut ByteSize, _: RangeInclusive<u64>) {
        self.add(key);
    }
    fn interval(&mut self, key: &'static str, _: &mut Interval, _: RangeInclusive<u64>) {
        self.add(key);
    }
    fn count(&mut self, key: &'static str, _: &mut u64, _: RangeInclusive<u64>) {
        self.add(key);
    }
    fn flag(&mut self, key: &'static str, _: &mut bool) {
        self.add(key);
    }
    fn address(&mut self, key: &'static str, _: &mut SocketAddr) {
        self.add(key);
    }
    fn directory(&mut self, key: &'static str, _: &mut PathBuf) {
        self.add(key);
    }
    fn file(&mut self, key: &'static str, _: &mut Option<PathBuf>) {
        self.add(key);
    }
    fn files(&mut self, key: &'static str, _: &mut Vec<PathBuf>) {
        self.add(key);
    }
    fn url(&mut self, key: &'static str, _: &mut Option<String>) {
        self.add(key);
    }
    fn urls(&mut self, key: &'static str, _: &mut Vec<String>) {
        self.add(key);
    }
    fn text(&mut self, key: &'static str, _: &mut String) {
        self.add(key);
    }
    fn name(&mut self, key: &'static str, _: &mut Option<String>) {
        self.add(key);
    }
    fn secret(&mut self, key: &'static str, _: &mut Option<Secret>) {
        self.add(key);
    }
    fn tenant(&mut self, key: &'static str, _: &mut TenantId) {
        self.add(key);
    }
    fn choice(&mut self, key: &'static str, _: &'static [&'static str], _: &mut usize) {
        self.add(key);
    }
    fn tokens(&mut self, key: &'static str, _: &mut Vec<Token>) {
        self.add(key);
    }
}
