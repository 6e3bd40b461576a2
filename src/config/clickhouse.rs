//! The keys below `storage.clickhouse`: where telemetry goes when ClickHouse keeps it.
//!
//! Not here: what ClickHouse is told (`crate::clickhouse`), and rules that its writer checks by itself.

use super::schema::{Visitor, choose};
use super::units::{ByteSize, Interval};
use super::{Secret, defaults};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What keeps telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Segments in the data directory.
    Embedded,
    /// ClickHouse; the data directory has the write-ahead log.
    ClickHouse,
}

impl Engine {
    pub(super) const ALL: [Self; 2] = [Self::Embedded, Self::ClickHouse];
    pub(super) const NAMES: &'static [&'static str] = &["embedded", "clickhouse"];
}

/// When an insert is safe, so that its rows may leave the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// On the server's disk.
    Fsync,
    /// On two replicas; needs a cluster.
    Replica,
    /// In the server's memory.
    Memory,
}

impl Ack {
    pub(super) const ALL: [Self; 3] = [Self::Fsync, Self::Replica, Self::Memory];
    pub(super) const NAMES: &'static [&'static str] = &["fsync", "replica", "memory"];
}

/// How ClickHouse is reached and used. Nothing of it matters while the engine is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouse {
    /// One for each replica.
    pub urls: Vec<String>,
    /// Who we are.
    pub user: String,
    /// The user's password.
    pub password: Option<Secret>,
    /// Certificates in PEM that sign the servers' own; the usual authorities when absent.
    pub ca_file: Option<PathBuf>,
    /// The database; made if it is not there.
    pub database: String,
    /// The cluster that has the tables.
    pub cluster: Option<String>,
    /// When an insert is safe.
    pub ack: Ack,
    /// The most rows of one insert.
    pub insert_rows: u64,
    /// How long rows wait for an insert, however few.
    pub insert_interval: Interval,
    /// The most inserts at once.
    pub inserts_at_once: u64,
    /// How many inserts into a table the server remembers, to know a repetition.
    pub deduplication_window: u64,
    /// How long one insert may take.
    pub timeout: Interval,
    /// How long a connection may take.
    pub connect_timeout: Interval,
    /// Memory that one query may take in ClickHouse.
    pub query_memory_bytes: ByteSize,
    /// Whether the tables of the OpenTelemetry Collector's exporter are written too.
    pub otel_tables: bool,
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            urls: vec![defaults::CLICKHOUSE_URL.to_owned()],
            user: defaults::CLICKHOUSE_USER.to_owned(),
            password: None,
            ca_file: None,
            database: defaults::CLICKHOUSE_DATABASE.to_owned(),
            cluster: None,
            ack: Ack::Fsync,
            insert_rows: defaults::CLICKHOUSE_INSERT_ROWS,
            insert_interval: defaults::CLICKHOUSE_INSERT_INTERVAL,
            inserts_at_once: defaults::CLICKHOUSE_INSERTS_AT_ONCE,
            deduplication_window: defaults::CLICKHOUSE_DEDUPLICATION_WINDOW,
            timeout: defaults::CLICKHOUSE_TIMEOUT,
            connect_timeout: defaults::CLICKHOUSE_CONNECT_TIMEOUT,
            query_memory_bytes: defaults::CLICKHOUSE_QUERY_MEMORY_BYTES,
            otel_tables: false,
        }
    }
}

/// Walks the keys.
pub(super) fn visit(c: &mut ClickHouse, v: &mut dyn Visitor) {
    v.urls("urls", &mut c.urls);
    v.text("user", &mut c.user);
    v.secret("password", &mut c.password);
    v.file("ca_file", &mut c.ca_file);
    v.text("database", &mut c.database);
    v.name("cluster", &mut c.cluster);
    choose(v, "ack", Ack::NAMES, &Ack::ALL, &mut c.ack);
    // Fewer make parts faster than they can be merged; past a million one insert is hundreds of MiB.
    v.count("insert_rows", &mut c.insert_rows, 1_000..=1_000_000);
    v.interval("insert_interval", &mut c.insert_interval, 1..=60);
    v.count("inserts_at_once", &mut c.inserts_at_once, 1..=64);
    v.count("deduplication_window", &mut c.deduplication_window, 100..=1_000_000);
    v.interval("timeout", &mut c.timeout, 1..=600);
    v.interval("connect_timeout", &mut c.connect_timeout, 1..=60);
    v.bytes("query_memory_bytes", &mut c.query_memory_bytes, 64 * MIB..=1024 * GIB);
    v.flag("otel_tables", &mut c.otel_tables);
}
