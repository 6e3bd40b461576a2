//! ClickHouse as what keeps telemetry: the store's sink and the queries' source, made from the configuration.
//!
//! Not here: how rows get there and back (`clickhouse_store`), and what is asked (`query::remote`).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clickhouse_store::config::Password;
use clickhouse_store::reader::ReadLimits;
use clickhouse_store::{Ack, ClickHouseConfig, ClickHouseError, ClickHouseReader, ClickHouseSink, Metrics};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::signal::Signal;
use prometheus_client::registry::Registry;
use query::{ErrorKind, QueryError, Remote, RemoteLimits};
use tokio::runtime::Handle;

use crate::config::{self, Config, Engine};
use crate::server::ServeError;

/// ClickHouse, as long as this lives.
#[derive(Debug)]
pub struct ClickHouse {
    /// Where the store's rows go.
    pub sink: Arc<ClickHouseSink>,
    /// What answers about them.
    pub reader: Arc<ClickHouseReader>,
    /// The configuration of both.
    pub config: ClickHouseConfig,
    /// Ends the wait for a server that was not there.
    stop: Arc<AtomicBool>,
    /// Why questions cannot be asked, where that is looked at.
    unreachable: Arc<Mutex<Option<String>>>,
}

/// How often a process that stores nothing looks whether ClickHouse can be asked, for `/readyz`.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long that may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

impl Drop for ClickHouse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl ClickHouse {
    /// Makes and checks the tables; `None` when another engine keeps telemetry. A server that is down is no error: the
    /// log takes rows, and this comes back to it. One that refuses (a password, a table with another column) is one,
    /// since telling the operator at the start is better than filling the log until it is full.
    ///
    /// # Errors
    /// [`ServeError::Start`].
    pub async fn open(config: &Config, registry: &mut Registry) -> Result<Option<Self>, ServeError> {
        if config.storage.engine != Engine::ClickHouse {
            return Ok(None);
        }
        let failed = |error: ClickHouseError| ServeError::Start { what: "ClickHouse", detail: error.to_string() };
        let clickhouse = settings(config)?;
        let (metrics, runtime) = (Metrics::new(registry), Handle::current());
        let reader = ClickHouseReader::new(&clickhouse, runtime.clone()).map_err(failed)?;
        let opening = clickhouse.clone();
        let sink = tokio::task::spawn_blocking(move || ClickHouseSink::open(opening, runtime, metrics)).await;
        let sink = sink.map_err(|error| ServeError::Start { what: "ClickHouse", detail: error.to_string() })?;
        let sink = sink.map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        if sink.trouble().is_some() {
            let (settling, stopped) = (Arc::clone(&sink), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("clickhouse-tables".to_owned())
                .spawn(move || settling.settle(&stopped))
                .map_err(|error| ServeError::Start { what: "ClickHouse", detail: error.to_string() })?;
        }
        Ok(Some(Self { sink, reader, config: clickhouse, stop, unreachable: Arc::default() }))
    }

    /// Looks from time to time whether ClickHouse can be asked: for a process that stores nothing, which would not notice
    /// between questions that it is gone. Ends with this.
    pub fn watch(&self, config: &Config) {
        let (reader, unreachable) = (Arc::clone(&self.reader), Arc::clone(&self.unreachable));
        let memory_bytes_max = config.storage.clickhouse.query_memory_bytes.0;
        let stop = Arc::clone(&self.stop);
        tokio::spawn(async move {
            while !stop.load(Ordering::Acquire) {
                let limits = ReadLimits { timeout: LOOK_TIMEOUT, memory_bytes_max, rows_max: None };
                let found = tokio::time::timeout(LOOK_TIMEOUT, look(&reader, limits)).await;
                let late = || Some(format!("ClickHouse does not answer within {} s", LOOK_TIMEOUT.as_secs()));
                let found = found.unwrap_or_else(|_elapsed| late());
                *unreachable.lock().unwrap_or_else(PoisonError::into_inner) = found;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// What is wrong with it, as far as is known, in a sentence.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let unreachable = || self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.sink.trouble().or_else(unreachable)
    }

    /// Where queries go.
    #[must_use]
    pub fn remote(&self, config: &Config) -> Arc<dyn Remote> {
        Arc::new(Asking {
            reader: Arc::clone(&self.reader),
            database: self.config.database.clone(),
            memory_bytes_max: config.storage.clickhouse.query_memory_bytes.0,
        })
    }
}

/// Why a question has no answer.
async fn look(reader: &Arc<ClickHouseReader>, limits: ReadLimits) -> Option<String> {
    let mut pieces = reader.ask("SELECT 1".to_owned(), limits);
    while let Some(piece) = pieces.recv().await {
        if let Err(error) = piece {
            return Some(error.to_string());
        }
    }
    None
}

/// Queries' way to ClickHouse.
#[derive(Debug)]
struct Asking {
    reader: Arc<ClickHouseReader>,
    database: String,
    memory_bytes_max: u64,
}

impl Remote for Asking {
    fn database(&self) -> &str {
        &self.database
    }

    fn ask(&self, sql: String, limits: RemoteLimits) -> BoxStream<'static, Result<Bytes, QueryError>> {
        let RemoteLimits { timeout, rows_max } = limits;
        let limits = ReadLimits { timeout, memory_bytes_max: self.memory_bytes_max, rows_max };
        let mut pieces = self.reader.ask(sql, limits);
        futures::stream::poll_fn(move |context| pieces.poll_recv(context))
            .map(move |piece| piece.map_err(|error| told(&error, timeout)))
            .boxed()
    }
}

/// What went wrong, in a query's words.
fn told(error: &ClickHouseError, timeout: Duration) -> QueryError {
    /// Numbers from `src/Common/ErrorCodes.cpp`.
    const TIMEOUT_EXCEEDED: u32 = 159;
    const TOO_MANY_SIMULTANEOUS_QUERIES: u32 = 202;
    const MEMORY_LIMIT_EXCEEDED: u32 = 241;
    match error {
        ClickHouseError::Server { code: TIMEOUT_EXCEEDED, .. } => QueryError::new(
            ErrorKind::Timeout,
            format!("the query took longer than its limit of {} ms", timeout.as_millis()),
        )
        .hint("narrow the time range, for example WHERE start_time > now() - INTERVAL '1 hour'"),
        ClickHouseError::Server { code: MEMORY_LIMIT_EXCEEDED, message, .. } => {
            QueryError::new(ErrorKind::Memory, format!("ClickHouse needs more memory for it: {message}"))
                .hint("narrow the time range, group by less, or raise storage.clickhouse.query_memory_bytes")
        }
        ClickHouseError::Server { code: TOO_MANY_SIMULTANEOUS_QUERIES, .. } => {
            QueryError::new(ErrorKind::Busy, error.to_string())
        }
        error if error.is_retryable() => QueryError::new(ErrorKind::Unavailable, error.to_string()),
        error => QueryError::new(ErrorKind::Internal, error.to_string()),
    }
}

/// The file that says of a data directory that its telemetry went to ClickHouse. It stays once it is there: what went
/// there does not come back.
const MARK: &str = "in-clickhouse";

/// Notes in a data directory that its telemetry goes to ClickHouse; warns of one whose telemetry went there before.
///
/// # Errors
/// When it cannot be written.
pub fn mark(data_dir: &Path, engine: Engine) -> std::io::Result<()> {
    let path = data_dir.join(MARK);
    if engine != Engine::ClickHouse {
        if path.exists() {
            tracing::warn!("telemetry of this data directory went to ClickHouse before; queries do not see it");
        }
        return Ok(());
    }
    if path.exists() {
        return Ok(());
    }
    // Whether the directory's name for it is on disk does not matter: the next start writes it again.
    std::fs::write(path, "telemetry of this data directory is in ClickHouse\n")
}

/// Whether telemetry of a data directory went to ClickHouse.
#[must_use]
pub fn is_marked(data_dir: &Path) -> bool {
    data_dir.join(MARK).exists()
}

/// What the configuration says, in the writer's words.
fn settings(config: &Config) -> Result<ClickHouseConfig, ServeError> {
    let (keys, retention) = (&config.storage.clickhouse, &config.storage.retention);
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let milliseconds = |interval: config::Interval| u64::try_from(interval.get().as_millis()).unwrap_or(u64::MAX);
    let ca_pem = match &keys.ca_file {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| ServeError::Start {
            what: "ClickHouse",
            detail: format!("cannot read `storage.clickhouse.ca_file` {}: {error}", path.display()),
        })?),
    };
    let mut settings = ClickHouseConfig::new("");
    settings.urls.clone_from(&keys.urls);
    settings.user.clone_from(&keys.user);
    settings.password = Password(keys.password.as_ref().map_or_else(String::new, |secret| secret.expose().to_owned()));
    settings.ca_pem = ca_pem;
    settings.database.clone_from(&keys.database);
    settings.cluster.clone_from(&keys.cluster);
    settings.ack = match keys.ack {
        config::Ack::Fsync => Ack::Fsync,
        config::Ack::Replica => Ack::Replica,
        config::Ack::Memory => Ack::Memory,
    };
    settings.insert_rows = count(keys.insert_rows);
    settings.in_flight = count(keys.inserts_at_once);
    settings.deduplication_window = u32::try_from(keys.deduplication_window).unwrap_or(u32::MAX);
    settings.otel_tables = keys.otel_tables;
    settings.timeout_ms = milliseconds(keys.timeout);
    settings.connect_timeout_ms = milliseconds(keys.connect_timeout);
    for (signal, kept) in [
        (Signal::Traces, &retention.traces),
        (Signal::Metrics, &retention.metrics),
        (Signal::Logs, &retention.logs),
        (Signal::Profiles, &retention.profiles),
    ] {
        settings.set_retention(signal, i64::try_from(kept.get().as_nanos()).unwrap_or(i64::MAX));
    }
    Ok(settings)
}
