//! The server: the one place where its parts are put together and where they are taken apart.
//!
//! ```text
//! start:  bind sockets → API (not ready) → open store, replay → pipeline → alerting → Kafka, receivers → ready
//! drain:  not ready → receivers, Kafka → rules → pipeline → SLOs → alerting → store → API
//! ```
//!
//! Sockets are bound before anything else, so that a taken port is an error at once and every
//! address is known. The API answers while the log is replayed, so that probes see progress. The
//! drain runs from the edge inwards: nothing is stopped while something may still send to it.
//!
//! Not here: what any of the parts does.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dashboards::auth::Authenticator;
use ingest::admission::ByteBudget;
use ingest::pipeline::{Log, Pipeline, PipelineConfig};
use ingest::receiver::{self, Authenticate, Receiver};
use kafka_log::Writer;
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::Clock;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use store::{Entry, ReplayProgress, Store, StoreConfig, StoreError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle as Task;
use tokio_util::sync::CancellationToken;

use crate::alerts::files::Files;
use crate::alerts::tables::Watched;
use crate::alerts::{Alerts, Around, Health, Rerouter};
use crate::cli::ProcessEnv;
use crate::clickhouse::{self, ClickHouse};
use crate::config::{self, Config, Engine, Overrides, Role, Scope};
use crate::gateway::GatewayServer;
use crate::logging::LevelHandle;
use crate::roles::{self, Fatal};

/// How long the drain waits for a merge to end: most take less.
const MERGE_PATIENCE: Duration = Duration::from_secs(5);

/// What whoever follows a table is told where nothing comes in.
const NOT_FED: &str = "no telemetry comes into this process, so there is nothing to follow: follow at a process that stores it (role all or writer)";

/// What there is to derive anew where ClickHouse has the spans.
const NOTHING_KEPT: &str = "span_metrics and service_edges are counted from spans in ClickHouse as they are asked for: nothing is kept to be derived anew";

/// How often it looks.
const MERGE_POLL: Duration = Duration::from_millis(20);

/// Where the configuration came from, to read it again on SIGHUP.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    /// The file, if one was named.
    pub path: Option<PathBuf>,
    /// What was set on the command line.
    pub overrides: Overrides,
}

/// What is not configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print one line of JSON with the bound addresses on standard output when ready.
    pub announce: bool,
    /// Acknowledge without keeping anything: for measuring the receivers alone.
    pub discard: bool,
}

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be bound.
    #[error("cannot listen on {address} for {what}: {source}; choose another address with {flag}")]
    Bind {
        /// What it is for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory cannot be opened.
    #[error("cannot open data directory {}: {source}", .path.display())]
    Store {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The log can no longer promise durability.
    #[error("the log failed: {source}; nothing was acknowledged since, and a restart replays it")]
    Log {
        /// Why.
        source: StoreError,
    },
    /// A thread, runtime or signal handler was refused by the operating system, or a part did not
    /// start.
    #[error("cannot start {what}: {detail}")]
    Start {
        /// Which.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// A thread that the server cannot do without is gone: a defect, told so that the supervisor
    /// restarts the process.
    #[error("{what} ended unexpectedly; acknowledged telemetry is in the log, a restart replays it")]
    Ended {
        /// Which.
        what: &'static str,
    },
    /// The drain took longer than it may.
    #[error("drain did not end within {0:?}; unacknowledged requests will be sent again by their clients")]
    DrainTimeout(Duration),
}

/// The addresses that were bound.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// OTLP/gRPC; absent where telemetry comes from Kafka alone.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP/HTTP; likewise.
    pub otlp_http: Option<SocketAddr>,
    /// API, metrics and health.
    pub http: SocketAddr,
    /// PostgreSQL's protocol; absent at a gateway.
    pub pg: Option<SocketAddr>,
}

/// Who may send: tokens from the configuration, or everyone when there are none.
#[derive(Clone, Debug)]
pub(crate) struct Credentials(pub(crate) Arc<Authenticator>);

impl Authenticate for Credentials {
    fn tenant(&self, authorization: Option<&str>) -> Result<TenantId, receiver::AuthError> {
        use dashboards::auth::{AuthError, Scope};
        self.0.authorize(authorization, Scope::Ingest).map_err(|error| match error {
            AuthError::Unauthenticated => receiver::AuthError::Unauthenticated,
            AuthError::PermissionDenied => receiver::AuthError::PermissionDenied,
        })
    }
}

/// Keeps nothing: what is measured then is receiving and decoding alone.
struct Discard;

impl Log for Discard {
    fn append_group(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        drop(entries);
        Ok(())
    }
}

/// A running server.
pub struct Server {
    addresses: Addresses,
    store: Arc<Store>,
    pipeline: Pipeline,
    kafka: Option<Writer>,
    alerts: Option<Alerts>,
    receivers: Vec<Task<()>>,
    receivers_stop: CancellationToken,
    api: Task<()>,
    pg: Task<()>,
    api_stop: CancellationToken,
    draining: Arc<AtomicBool>,
    maintenance: Maintenance,
    fatal: oneshot::Receiver<StoreError>,
    drain_timeout: Duration,
}

impl Server {
    /// Binds, opens and starts everything; returns when requests are answered.
    ///
    /// # Errors
    /// [`ServeError`]; what had been started ends with the runtime then.
    pub async fn start(
        config: &Config,
        files: Files,
        options: Options,
        reload: Arc<Reload>,
    ) -> Result<Self, ServeError> {
        let otlp = &config.receivers.otlp.protocols;
        let (mut grpc, mut otlp_http) = (None, None);
        if config.role.receives() {
            grpc = Some(bind("OTLP/gRPC", "--otlp-grpc", otlp.grpc.endpoint).await?);
            otlp_http = Some(bind("OTLP/HTTP", "--otlp-http", otlp.http.endpoint).await?);
        }
        let http = bind("HTTP", "--http", config.http.endpoint).await?;
        let pg = bind("PostgreSQL", "--pg", config.pg.endpoint).await?;
        let addresses = Addresses {
            otlp_grpc: grpc.as_ref().map(local).transpose()?,
            otlp_http: otlp_http.as_ref().map(local).transpose()?,
            http: local(&http)?,
            pg: Some(local(&pg)?),
        };

        let mut registry = Registry::default();
        let store_metrics = store::Metrics::new(&mut registry);
        let receiver_metrics = receiver::Metrics::register(&mut registry);
        let budget = ByteBudget::new(config.limits.in_flight_bytes.0);
        budget.register(&mut registry);
        reload.register(&mut registry);

        // The API first: probes see the replay's progress.
        let draining = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(ReplayProgress::default());
        let opened_store = Arc::new(OnceLock::new());
        let evaluated = Arc::new(OnceLock::new());
        let opened_clickhouse = Arc::new(OnceLock::new());
        let authenticator = Arc::new(Authenticator::new(tokens(config)));
        reload.apply_to(Arc::clone(&authenticator));
        let doors = dashboards::Doors::new(dashboards::Deps {
            readiness: Arc::new(Readiness {
                progress: Arc::clone(&progress),
                draining: Arc::clone(&draining),
                store: Arc::clone(&opened_store),
                alerts: Arc::clone(&evaluated),
                clickhouse: Arc::clone(&opened_clickhouse),
            }),
            authenticator: Arc::clone(&authenticator),
            limits: limits(config),
            export: export(config),
            send_timeout: config.query.send_timeout.get(),
            reload: {
                let reload = Arc::clone(&reload);
                Arc::new(move || reload.reload())
            },
        });
        let api_stop = CancellationToken::new();
        let api = tokio::spawn(dashboards::serve(http, doors.router(), api_stop.clone()));
        let pg = tokio::spawn(dashboards::pg::serve(pg, doors.clone(), api_stop.clone()));

        let clickhouse = ClickHouse::open(config, &mut registry).await?.map(Arc::new);
        let sink = clickhouse.as_ref().map(|clickhouse| Arc::clone(&clickhouse.sink) as Arc<dyn store::sink::Sink>);
        if let Some(clickhouse) = &clickhouse {
            if !config.role.is_fed() {
                clickhouse.watch(config);
            }
            drop(opened_clickhouse.set(Arc::clone(clickhouse)));
        }

        // Opening replays the log: minutes of work at worst, and none of it is async.
        let (store_config, opening) = (store_config(config), Arc::clone(&progress));
        let path = store_config.data_dir.clone();
        let opened =
            tokio::task::spawn_blocking(move || Store::open_with(store_config, sink, &opening, store_metrics)).await;
        let store = opened
            .map_err(|error| ServeError::Start { what: "the store", detail: error.to_string() })?
            .map_err(|source| ServeError::Store { path, source })?;
        drop(opened_store.set(Arc::clone(&store)));
        clickhouse::mark(&config.data_dir, config.storage.engine)
            .map_err(|error| ServeError::Start { what: "the data directory", detail: error.to_string() })?;

        let watched = Watched::default();
        let source = Arc::new(match &clickhouse {
            None => query::StoreSource::new(Arc::clone(&store)),
            Some(clickhouse) => {
                let segments = store.segments().len();
                if segments > 0 {
                    tracing::warn!(
                        segments,
                        "the data directory has telemetry from before ClickHouse; queries do not see it"
                    );
                }
                let source = query::StoreSource::remote(Arc::clone(&store), clickhouse.remote(config));
                if config.role.is_fed() { source } else { source.without_followers(NOT_FED) }
            }
        });
        let engine = query::Engine::offering(engine_config(config), source, watched.tables())
            .map_err(|error| ServeError::Start { what: "the query engine", detail: error.to_string() })?;
        engine.register(&mut registry);

        let (report_fatal, fatal) = oneshot::channel();
        let report_fatal = Fatal::new(report_fatal);
        let log: Arc<dyn Log> = if options.discard {
            tracing::warn!("telemetry is acknowledged and thrown away: this process only measures its receivers");
            Arc::new(Discard)
        } else {
            Arc::<Store>::clone(&store)
        };
        let pipeline_config = PipelineConfig { encode: !options.discard, ..pipeline_config(config) };
        let pipeline_fatal = report_fatal.clone();
        let pipeline = Pipeline::start(&pipeline_config, log, &Clock::System, &mut registry, move |error| {
            pipeline_fatal.tell(error);
        })
        .map_err(|error| ServeError::Start { what: "the pipeline", detail: error.to_string() })?;
        let engine = Arc::new(engine);
        let mut alerts = None;
        if config.alerting.is_on() {
            let around = Around {
                store: Arc::clone(&store),
                engine: Arc::clone(&engine),
                limits: limits(config),
                pipeline: pipeline.handle(),
                http: addresses.http,
                watched,
            };
            let started = Alerts::start(config, files, around, &mut registry).await;
            let started = started.map_err(|error| ServeError::Start { what: "alerting", detail: error.to_string() })?;
            reload.reroutes(started.rerouter());
            drop(evaluated.set(started.health()));
            doors.offer_alerting(config.alerting.tenant.clone(), started.routes());
            alerts = Some(started);
        }
        let kafka = roles::start_writer(config, &store, pipeline.series(), &mut registry, report_fatal)?;
        doors.open(engine, Arc::new(registry));
        let (derived, is_elsewhere) = (Arc::clone(&store), clickhouse.is_some());
        doors.offer_rebuild(Arc::new(move |tenant| {
            if is_elsewhere {
                return Err(NOTHING_KEPT.to_owned());
            }
            derived.rebuild_derived(tenant).map_err(|error| error.to_string())
        }));

        let maintenance = Maintenance::start(Arc::clone(&store))?;
        let receivers_stop = CancellationToken::new();
        let credentials = Credentials(authenticator);
        let receiver = |limits: receiver::Config| {
            Receiver::new(limits, pipeline.handle(), credentials.clone(), budget.clone(), receiver_metrics.clone())
        };
        let [grpc_limits, http_limits] = receiver_limits(config);
        let mut receivers = Vec::new();
        if let Some(grpc) = grpc {
            receivers.push(tokio::spawn(receiver::serve_grpc(grpc, receiver(grpc_limits), receivers_stop.clone())));
        }
        if let Some(http) = otlp_http {
            receivers.push(tokio::spawn(receiver::serve_http(http, receiver(http_limits), receivers_stop.clone())));
        }
        Ok(Self {
            addresses,
            store,
            pipeline,
            kafka,
            alerts,
            receivers,
            receivers_stop,
            api,
            pg,
            api_stop,
            draining,
            maintenance,
            fatal,
            drain_timeout: config.shutdown.timeout.get(),
        })
    }

    /// The addresses that were bound.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Acknowledged rows that are in the log and in memory only.
    #[must_use]
    pub fn waiting_rows(&self) -> u64 {
        self.store.stats().memtable_rows
    }

    /// Ends the server from the edge inwards, within the configured bound.
    ///
    /// # Errors
    /// [`ServeError::DrainTimeout`], or [`ServeError::Log`] when the log failed meanwhile.
    pub async fn drain(self) -> Result<(), ServeError> {
        let timeout = self.drain_timeout;
        tokio::time::timeout(timeout, self.drain_in_order())
            .await
            .map_err(|_elapsed| ServeError::DrainTimeout(timeout))?
    }

    async fn drain_in_order(mut self) -> Result<(), ServeError> {
        self.draining.store(true, Ordering::Release);
        self.receivers_stop.cancel();
        // A client that sends slowly may hold its request, but not the whole drain: after half of
        // the time its connection is closed, unanswered, and it will send again.
        let patience = tokio::time::Instant::now() + self.drain_timeout / 2;
        end_receivers(self.receivers, patience).await;
        if let Some(kafka) = self.kafka {
            let stopped = tokio::task::spawn_blocking(move || kafka.stop()).await;
            stopped.map_err(|error| ServeError::Start { what: "the drain", detail: error.to_string() })?;
        }
        if let Some(alerts) = &mut self.alerts {
            alerts.stop_rules().await;
        }
        let (pipeline, store, maintenance) = (self.pipeline, self.store, self.maintenance);
        let drained = tokio::task::spawn_blocking(move || pipeline.drain()).await;
        drained.map_err(|error| ServeError::Start { what: "the drain", detail: error.to_string() })?;
        // What was stored last is counted before SLOs end, and what they notice is kept before alerting does.
        if let Some(alerts) = self.alerts {
            alerts.stop().await;
        }
        let closed = tokio::task::spawn_blocking(move || {
            maintenance.stop();
            store.close()
        })
        .await
        .map_err(|error| ServeError::Start { what: "the drain", detail: error.to_string() })?;
        self.api_stop.cancel();
        // An export may take longer than the drain: it is cut off, which its client sees.
        let patience = patience + self.drain_timeout / 4;
        for (what, mut door) in [("the API", self.api), ("the PostgreSQL door", self.pg)] {
            match tokio::time::timeout_at(patience, &mut door).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "{what} ended badly"),
                Err(_elapsed) => {
                    tracing::warn!("{what} was still sending answers: they are cut off");
                    door.abort();
                }
            }
        }
        if let Ok(source) = self.fatal.try_recv() {
            return Err(ServeError::Log { source });
        }
        closed.map_err(|source| ServeError::Log { source })
    }
}

/// Waits for receivers to end. One that has not until then is cut off.
pub(crate) async fn end_receivers(receivers: Vec<Task<()>>, patience: tokio::time::Instant) {
    for mut receiver in receivers {
        match tokio::time::timeout_at(patience, &mut receiver).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a receiver ended badly"),
            Err(_elapsed) => {
                receiver.abort();
                drop(receiver.await);
            }
        }
    }
}

/// The thread that flushes, compacts and expires.
struct Maintenance {
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// Closed when the thread ends, however: without it nothing is flushed, and in time every
    /// write would be refused.
    ended: oneshot::Receiver<()>,
}

impl Maintenance {
    fn start(store: Arc<Store>) -> Result<Self, ServeError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (maintained, stopped) = (Arc::clone(&store), Arc::clone(&stop));
        let (alive, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("store-maintenance".to_owned())
            .spawn(move || {
                let _alive = alive;
                maintained.maintain(&stopped);
            })
            .map_err(|error| ServeError::Start { what: "store maintenance", detail: error.to_string() })?;
        Ok(Self { store, stop, thread, ended })
    }

    /// Ends the thread. A merge that takes longer is left behind: its output is not committed, so
    /// the next start removes it.
    fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.store.wake();
        let patience = std::time::Instant::now() + MERGE_PATIENCE;
        while !matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Closed)) {
            if std::time::Instant::now() >= patience {
                tracing::info!("a merge is still running; it is left to the next start");
                return;
            }
            std::thread::park_timeout(MERGE_POLL);
        }
        if self.thread.join().is_err() {
            tracing::error!("store maintenance panicked");
        }
    }
}

/// What `/readyz` tells.
struct Readiness {
    progress: Arc<ReplayProgress>,
    draining: Arc<AtomicBool>,
    /// Once it is open.
    store: Arc<OnceLock<Arc<Store>>>,
    /// Once rules and SLOs are evaluated.
    alerts: Arc<OnceLock<Health>>,
    /// Once it was looked for, if it keeps telemetry.
    clickhouse: Arc<OnceLock<Arc<ClickHouse>>>,
}

impl dashboards::Readiness for Readiness {
    fn degraded(&self) -> Vec<String> {
        let mut problems = self.store.get().map_or_else(Vec::new, |store| store.problems());
        problems.extend(self.alerts.get().map_or_else(Vec::new, Health::problems));
        problems.extend(self.clickhouse.get().and_then(|clickhouse| clickhouse.trouble()));
        problems
    }

    fn state(&self) -> dashboards::ReadyState {
        if self.draining.load(Ordering::Acquire) {
            dashboards::ReadyState::Draining
        } else if self.progress.done() {
            dashboards::ReadyState::Ready
        } else {
            dashboards::ReadyState::Replaying {
                bytes_done: self.progress.bytes_done(),
                bytes_total: self.progress.bytes_total(),
            }
        }
    }
}

pub(crate) async fn bind(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { what, address, flag, source })
}

pub(crate) fn local(listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|error| ServeError::Start { what: "a listener", detail: error.to_string() })
}

pub(crate) fn tokens(config: &Config) -> impl Iterator<Item = dashboards::auth::Token> {
    config.auth.tokens.iter().map(|token| dashboards::auth::Token {
        secret: token.secret.expose().to_owned(),
        tenant: token.tenant.clone(),
        ingest: token.scopes.contains(&Scope::Ingest),
        query: token.scopes.contains(&Scope::Query),
    })
}

fn store_config(config: &Config) -> StoreConfig {
    let storage = &config.storage;
    // What reads segments names them by their whole path.
    let data_dir = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let mut store = StoreConfig::new(data_dir);
    store.wal_segment_bytes_max = storage.wal.segment_bytes.0;
    store.wal_min_free_bytes = storage.wal.min_free_bytes.0;
    store.memtable_flush_bytes = storage.memtable.flush_bytes.0;
    store.memtable_flush_interval_ms = milliseconds(storage.memtable.flush_interval.get());
    store.memtable_bytes_max = storage.memtable.max_bytes.0;
    store.compaction.inputs_min = usize::try_from(storage.compaction.min_segments).unwrap_or(usize::MAX);
    store.compaction.output_bytes_max = storage.compaction.target_bytes.0;
    store.compaction.interval_ms = milliseconds(storage.compaction.interval.get());
    store.derived = storage.derived;
    if storage.engine == Engine::ClickHouse {
        // Queries see what was inserted, and ask for what is derived when they need it.
        store.memtable_flush_interval_ms = milliseconds(storage.clickhouse.insert_interval.get());
        store.derived = false;
    }
    for (signal, kept) in [
        (Signal::Traces, &storage.retention.traces),
        (Signal::Metrics, &storage.retention.metrics),
        (Signal::Logs, &storage.retention.logs),
        (Signal::Profiles, &storage.retention.profiles),
    ] {
        store.set_retention(signal, i64::try_from(kept.get().as_nanos()).unwrap_or(i64::MAX));
    }
    store
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pipeline_config(config: &Config) -> PipelineConfig {
    PipelineConfig {
        series_max: usize::try_from(config.limits.series_max).unwrap_or(usize::MAX),
        ..PipelineConfig::default()
    }
}

/// Limits of the receivers of OTLP/gRPC and OTLP/HTTP.
pub(crate) fn receiver_limits(config: &Config) -> [receiver::Config; 2] {
    let otlp = &config.receivers.otlp.protocols;
    [otlp.grpc.max_request_bytes, otlp.http.max_request_bytes].map(|request_bytes_max| receiver::Config {
        request_bytes_max: usize::try_from(request_bytes_max.0).unwrap_or(usize::MAX),
        streams_per_connection_max: u32::try_from(otlp.grpc.max_concurrent_streams).unwrap_or(u32::MAX),
        read_timeout: otlp.http.read_timeout.get(),
        ..receiver::Config::default()
    })
}

fn engine_config(config: &Config) -> query::EngineConfig {
    query::EngineConfig {
        concurrency_max: usize::try_from(config.query.concurrency).unwrap_or(usize::MAX),
        per_client_max: usize::try_from(config.query.concurrency_per_client).unwrap_or(usize::MAX),
        queue_max: usize::try_from(config.query.queue).unwrap_or(usize::MAX),
        queue_wait: config.query.queue_wait.get(),
        memory_bytes_max: usize::try_from(config.query.memory_bytes.0).unwrap_or(usize::MAX),
        ..query::EngineConfig::default()
    }
}

/// Exports leave half of the permits to everybody else.
pub(crate) fn export(config: &Config) -> dashboards::Export {
    dashboards::Export {
        rows_max: config.query.export_rows_max,
        timeout: config.query.export_timeout.get(),
        at_once: usize::try_from(config.query.concurrency / 2).unwrap_or(usize::MAX).max(1),
    }
}

pub(crate) fn limits(config: &Config) -> query::Limits {
    query::Limits {
        timeout: config.query.timeout.get(),
        rows_max: config.query.rows_max,
        output_bytes_max: config.query.output_bytes.0,
    }
}

/// Reading the configuration again while the server runs.
///
/// The log level, the tokens, Alertmanager's configuration, rules and SLOs change at once: a leaked token must not need
/// a restart, nor must another person on call. Everything
/// else is bound to sockets, files or memory that are in use, so it is checked now and takes effect
/// with the next start; the log says so.
#[derive(Debug)]
pub struct Reload {
    source: Option<ConfigSource>,
    level: LevelHandle,
    authenticator: OnceLock<Arc<Authenticator>>,
    rerouter: OnceLock<Rerouter>,
    successful: Gauge,
    running: Mutex<Option<Config>>,
}

impl Reload {
    /// Reloads from where the configuration came from.
    #[must_use]
    pub fn new(source: ConfigSource, level: LevelHandle, running: Config) -> Self {
        let successful = Gauge::default();
        successful.set(1);
        let (authenticator, running) = (OnceLock::new(), Mutex::new(Some(running)));
        Self { source: Some(source), level, authenticator, rerouter: OnceLock::new(), successful, running }
    }

    /// For a server without a configuration file: reloading does nothing.
    #[must_use]
    pub fn disabled(level: LevelHandle) -> Self {
        let (authenticator, running) = (OnceLock::new(), Mutex::new(None));
        let (rerouter, successful) = (OnceLock::new(), Gauge::default());
        Self { source: None, level, authenticator, rerouter, successful, running }
    }

    /// Whose tokens a reload replaces: the server's, once it has started.
    pub(crate) fn apply_to(&self, authenticator: Arc<Authenticator>) {
        drop(self.authenticator.set(authenticator));
    }

    /// Whose Alertmanager configuration a reload reads again, once it has started.
    fn reroutes(&self, rerouter: Rerouter) {
        drop(self.rerouter.set(rerouter));
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "godseye_config_last_reload_successful",
            "Whether the configuration was valid when it was last read",
            self.successful.clone(),
        );
    }

    /// Reads and checks the configuration; a bad one changes nothing.
    ///
    /// # Errors
    /// Every error of the configuration, with its place.
    pub fn reload(&self) -> Result<(), String> {
        let Some(source) = &self.source else { return Ok(()) };
        match config::load(source.path.as_deref(), &source.overrides, &ProcessEnv) {
            Ok((loaded, _warnings)) => {
                if let Some(Err(report)) = self.rerouter.get().map(Rerouter::reroute) {
                    self.successful.set(0);
                    tracing::error!(%report, "Alertmanager's configuration, rules or SLOs are not valid; the running ones stay");
                    return Err(report);
                }
                self.successful.set(1);
                self.level.set(loaded.log.level);
                let authenticator = self.authenticator.get();
                let replaced = authenticator.is_none_or(|authenticator| authenticator.replace(tokens(&loaded)));
                if !replaced {
                    tracing::warn!("the last token stays until the next start: without any, everyone could come in");
                }
                let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(running) = running.as_mut() {
                    running.log.level = loaded.log.level;
                    if replaced {
                        running.auth.tokens.clone_from(&loaded.auth.tokens);
                    }
                }
                if running.as_ref().is_some_and(|running| *running != loaded) {
                    tracing::warn!(
                        "configuration reloaded; changes other than log.level, auth.tokens and what alerting's files say take effect with the next start"
                    );
                } else {
                    tracing::info!(
                        level = loaded.log.level.name(),
                        tokens = loaded.auth.tokens.len(),
                        "configuration reloaded"
                    );
                }
                Ok(())
            }
            Err(report) => {
                self.successful.set(0);
                tracing::error!(%report, "configuration is not valid; the running one stays");
                Err(report.to_string())
            }
        }
    }
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    config: Config,
    files: Files,
    source: ConfigSource,
    level: LevelHandle,
    options: Options,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("godseye")
        .build()
        .map_err(|error| ServeError::Start { what: "the runtime", detail: error.to_string() })?;
    let reload = Arc::new(Reload::new(source, level, config.clone()));
    let served = runtime.block_on(serve_until_told(&config, files, options, reload));
    // A blocking task that does not end (a query, a replay) must not hold the exit.
    runtime.shutdown_background();
    served
}

async fn serve_until_told(
    config: &Config,
    files: Files,
    options: Options,
    reload: Arc<Reload>,
) -> Result<(), ServeError> {
    let handler = |kind: SignalKind| {
        signal(kind).map_err(|error| ServeError::Start { what: "a signal handler", detail: error.to_string() })
    };
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut hangup = handler(SignalKind::hangup())?;

    if config.role == Role::Gateway {
        let server = GatewayServer::start(config, Arc::clone(&reload)).await?;
        ready(server.addresses(), options);
        loop {
            tokio::select! {
                _told = terminate.recv() => break,
                _told = interrupt.recv() => break,
                _told = hangup.recv() => drop(reload.reload()),
            }
        }
        tracing::info!("draining");
        server.drain().await?;
        tracing::info!("drained");
        return Ok(());
    }

    // A stop during the replay needs no drain: nothing was acknowledged by this process yet.
    let mut server = tokio::select! {
        started = Server::start(config, files, options, Arc::clone(&reload)) => started?,
        _told = terminate.recv() => return Ok(()),
        _told = interrupt.recv() => return Ok(()),
    };
    tracing::info!(data_dir = %config.data_dir.display(), "the store is open");
    ready(server.addresses(), options);
    loop {
        tokio::select! {
            _told = terminate.recv() => break,
            _told = interrupt.recv() => break,
            _told = hangup.recv() => drop(reload.reload()),
            () = ended(server.kafka.as_mut()) => return Err(ServeError::Ended { what: "the thread that reads Kafka" }),
            _closed = &mut server.maintenance.ended => return Err(ServeError::Ended { what: "store maintenance" }),
            failed = &mut server.fatal => {
                return match failed {
                    Ok(source) => Err(ServeError::Log { source }),
                    Err(_closed) => Err(ServeError::Ended { what: "the log thread" }),
                };
            }
        }
    }
    tracing::info!("draining");
    server.drain().await?;
    tracing::info!("drained");
    Ok(())
}

/// When a writer has ended by itself; never where there is none.
async fn ended(kafka: Option<&mut Writer>) {
    match kafka {
        Some(kafka) => kafka.ended().await,
        None => std::future::pending().await,
    }
}

/// Tells the log, and with one line whoever started us with port 0, that requests are answered.
fn ready(addresses: Addresses, options: Options) {
    let text = |address: Option<SocketAddr>| address.map(|address| address.to_string());
    let Addresses { otlp_grpc, otlp_http, http, pg } = addresses;
    let (otlp_grpc, otlp_http, pg) = (text(otlp_grpc), text(otlp_http), text(pg));
    tracing::info!(otlp_grpc, otlp_http, %http, pg, "ready");
    if options.announce {
        let line = serde_json::json!({
            "event": "ready", "otlp_grpc": otlp_grpc, "otlp_http": otlp_http, "http": http.to_string(), "pg": pg,
        });
        let mut stdout = std::io::stdout().lock();
        drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
    }
}
