//! How ClickHouse is reached and used: plain data, every default with its reason.
//!
//! Not here: reading a configuration file or the environment; that is the program's rim.

use std::fmt;

use model::signal::Signal;
use model::time::Timestamp;

use crate::error::ClickHouseError;

/// Default of [`ClickHouseConfig::insert_rows`]: parts large enough that the server merges little.
pub const INSERT_ROWS_DEFAULT: usize = 100_000;

/// Default of [`ClickHouseConfig::in_flight`]: the server takes so many at once before one writer saturates it, and as
/// many encoded bodies are in memory.
pub const IN_FLIGHT_DEFAULT: usize = 4;

/// Default of [`ClickHouseConfig::deduplication_window`]: a repetition is recognised although so many other inserts
/// into the table came between. One writer has [`ClickHouseConfig::in_flight`] between; a hundred writers with one insert
/// a second, cut off for a minute, six thousand.
pub const DEDUPLICATION_WINDOW_DEFAULT: u32 = 10_000;

/// Default of [`ClickHouseConfig::timeout_ms`]: as long as the server may take before it counts as lost; longer than a
/// merge or a quorum holds an insert up.
pub const TIMEOUT_MS_DEFAULT: u64 = 30_000;

/// Default of [`ClickHouseConfig::connect_timeout_ms`]: a host that does not answer in this time is gone.
pub const CONNECT_TIMEOUT_MS_DEFAULT: u64 = 2_000;

/// Default of [`ClickHouseConfig::retry_for_ms`]: short, since the store comes again, and other tables want their turn.
pub const RETRY_FOR_MS_DEFAULT: u64 = 2_000;

/// The longest retention, seconds: fifty years. ClickHouse's `DateTime`, in which rows expire, ends in 2106.
const RETENTION_SECONDS_MAX: i64 = 50 * 365 * 86_400;

/// When an insert is safe, so that its rows may leave the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// On two replicas. Needs a cluster.
    Replica,
    /// On the server's disk: it syncs files and folder of the part before it answers.
    Fsync,
    /// In the server's page cache: survives the end of its process, not a power cut.
    Memory,
}

impl Ack {
    /// Every one, by the name it has in a configuration.
    pub const ALL: [(&'static str, Self); 3] =
        [("replica", Self::Replica), ("fsync", Self::Fsync), ("memory", Self::Memory)];
}

/// A secret that shows itself to nobody by accident.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How ClickHouse is reached and used.
#[derive(Clone, Debug)]
pub struct ClickHouseConfig {
    /// `http://host:8123` or `https://host:8443`, one for each replica. More than one need [`Self::cluster`].
    pub urls: Vec<String>,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Password,
    /// Certificates in PEM that sign the servers' ones; without, the usual authorities do.
    pub ca_pem: Option<String>,
    /// The database; made if it is not there and the user may.
    pub database: String,
    /// The cluster that has the tables: then they are replicated ones, made on all of its hosts.
    pub cluster: Option<String>,
    /// When an insert is safe.
    pub ack: Ack,
    /// The most rows of one insert. A cut that has begun keeps the number it began with only if this does: change it
    /// when nothing waits (`godseye_store_memtable_rows` is 0), else a repetition may not be recognised.
    pub insert_rows: usize,
    /// The most inserts at once.
    pub in_flight: usize,
    /// How many inserts into a table the server remembers, to recognise a repetition.
    pub deduplication_window: u32,
    /// How long one statement may take.
    pub timeout_ms: u64,
    /// How long a connection may take.
    pub connect_timeout_ms: u64,
    /// How long a cut is tried before the store is told that it failed. It comes again.
    pub retry_for_ms: u64,
    /// How long rows of each signal are kept, nanoseconds; indexed by [`Self::retention_of`].
    pub retention_ns: [i64; Signal::ALL.len()],
    /// How long lines of the ledger are kept, nanoseconds.
    pub ledger_retention_ns: i64,
    /// Whether the tables of the OpenTelemetry Collector's exporter are filled too.
    pub otel_tables: bool,
}

impl ClickHouseConfig {
    /// The defaults, for one server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            user: "default".to_owned(),
            password: Password::default(),
            ca_pem: None,
            database: "godseye".to_owned(),
            cluster: None,
            ack: Ack::Fsync,
            insert_rows: INSERT_ROWS_DEFAULT,
            in_flight: IN_FLIGHT_DEFAULT,
            deduplication_window: DEDUPLICATION_WINDOW_DEFAULT,
            timeout_ms: TIMEOUT_MS_DEFAULT,
            connect_timeout_ms: CONNECT_TIMEOUT_MS_DEFAULT,
            retry_for_ms: RETRY_FOR_MS_DEFAULT,
            retention_ns: [store::config::RETENTION_NS_DEFAULT; Signal::ALL.len()],
            ledger_retention_ns: store::config::LEDGER_RETENTION_NS_DEFAULT,
            otel_tables: false,
        }
    }

    /// How long rows of a signal are kept, seconds, at least one.
    #[must_use]
    pub fn retention_of(&self, signal: Signal) -> i64 {
        (self.retention_ns[signal as usize - 1] / Timestamp::NANOS_PER_SECOND).max(1)
    }

    /// Keeps rows of a signal so long, nanoseconds.
    pub const fn set_retention(&mut self, signal: Signal, nanoseconds: i64) {
        self.retention_ns[signal as usize - 1] = nanoseconds;
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] with what is wrong and what to do.
    pub fn check(&self) -> Result<(), ClickHouseError> {
        let wrong = |reason: &str| Err(ClickHouseError::Config { reason: reason.to_owned() });
        if self.urls.is_empty() {
            return wrong("no URL of a server");
        }
        if self.urls.len() > 1 && self.cluster.is_none() {
            return wrong(
                "several servers without a cluster: only replicas of one table recognise an insert that another has; \
                 name the cluster, or one server",
            );
        }
        if self.ack == Ack::Replica && self.cluster.is_none() {
            return wrong("`ack: replica` needs the name of a cluster");
        }
        if self.database.is_empty() || self.cluster.as_ref().is_some_and(String::is_empty) {
            return wrong("the database or the cluster has no name");
        }
        let retentions = self.retention_ns.iter().chain([&self.ledger_retention_ns]);
        if retentions.into_iter().any(|nanos| nanos / Timestamp::NANOS_PER_SECOND > RETENTION_SECONDS_MAX) {
            return wrong("a retention is longer than fifty years");
        }
        if self.insert_rows == 0 || self.in_flight == 0 || self.deduplication_window == 0 {
            return wrong("the rows of an insert, inserts at once and the deduplication window are at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_lose_or_double_rows_are_refused() {
        type Case = (&'static str, fn(&mut ClickHouseConfig), Option<&'static str>);
        let cases: [Case; 7] = [
            ("for ever", |c| c.retention_ns[0] = i64::MAX, Some("longer than fifty years")),
            ("defaults", |_| {}, None),
            ("two servers", |c| c.urls.push("http://b".to_owned()), Some("several servers without a cluster")),
            (
                "two replicas",
                |c| {
                    c.urls.push("http://b".to_owned());
                    c.cluster = Some("main".to_owned());
                },
                None,
            ),
            ("replica alone", |c| c.ack = Ack::Replica, Some("needs the name of a cluster")),
            ("nobody", |c| c.urls.clear(), Some("no URL")),
            ("no window", |c| c.deduplication_window = 0, Some("at least 1")),
        ];
        for (what, change, expected) in cases {
            let mut config = ClickHouseConfig::new("http://a");
            change(&mut config);
            let found = config.check().err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(found, None, "{what}"),
                Some(part) => assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{what}: {found:?}"),
            }
        }
        let mut config = ClickHouseConfig::new("http://a");
        config.password = Password("s3cret".to_owned());
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
