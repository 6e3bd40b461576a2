//! Runs queries: on threads of its own, under permits, memory, time and row limits, each over one
//! snapshot of one tenant.
//!
//! A query gets a fresh session that knows nothing but its tenant's tables. Planning and running
//! happen on a dedicated runtime whose threads have large stacks, so that a heavy query can take
//! neither the receivers' threads nor their stack. Not here: what is allowed ([`crate::guard`],
//! [`crate::bounds`]) and how answers are written ([`crate::render`]).

use std::any::Any;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::MemoryCatalogProvider;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::context::{QueryPlanner, SQLOptions};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{
    FairSpillPool, GreedyMemoryPool, MemoryConsumer, MemoryPool, MemoryReservation,
};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{AggregateUDF, LogicalPlan, ScalarUDF, WindowUDF};
use datafusion::optimizer::Analyzer;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::resolve::resolve_table_references;
use futures::StreamExt as _;
use model::derived::DerivedTable;
use model::signal::Table;
use model::tenant::TenantId;
use object_store::local::LocalFileSystem;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::bounds;
use crate::catalog::{self, Catalog};
use crate::collapse::CollapsePartials;
use crate::error::{ErrorKind, QueryError, external, is_storage};
use crate::follow::Places;
use crate::functions::{Allowance, Functions, guarded};
use crate::guard::{self, Checked, DENIED_FUNCTIONS};
use crate::layout::AttributesIntoScans;
use crate::memory::{Account, Peak};
use crate::needles::FilterCache;
use crate::offered::{self, Offered, OfferedTable};
use crate::portions::{COPIED_BYTES_MAX, portioned};
use crate::provider::{SEGMENT_STORE, ScanCounters};
use crate::queue::{Client, Permit, Queue, QueueConfig};
use crate::remote::{self, Reaching};
use crate::rewrite::{TelemetryPlanner, TelemetryRewrite};
use crate::source::{Snapshot, Source};
use crate::tables::{TABLE_NAMES, Tables};

/// Stack of each query thread, bytes. The longest chain the guard lets through takes about 4 MiB
/// in a debug build; the rest is margin for plans, which nest as well.
pub const STACK_BYTES: usize = 32 << 20;

/// Bytes of an answer held back before its first row is handed out. Up to here a damaged segment
/// can be set aside and the query run again unseen.
pub const HOLD_BACK_BYTES: usize = 1 << 20;

/// Batches between the query's thread and whoever reads the answer.
const BATCHES_IN_FLIGHT: usize = 2;

/// How long planning and looking things up may take where nobody set a limit.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// How much less of the processor query threads ask for than everything else: a decode or a log thread that wakes up
/// goes first, however many queries run. Merges ask for less still, and pause (`store::courtesy`).
const NICE: i32 = 10;

/// Segments a query may set aside before it gives up: with more than this damaged, the disk is.
const QUARANTINES_MAX: usize = 16;

/// How queries run, the same for every query.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Threads of the query runtime, and partitions a query is split into.
    pub threads: usize,
    /// Queries running at once.
    pub concurrency_max: usize,
    /// Queries of one client running at once.
    pub per_client_max: usize,
    /// Queries waiting for one of them to end; the next one is refused.
    pub queue_max: usize,
    /// How long one waits before it is refused.
    pub queue_wait: Duration,
    /// Memory of one query for sorts, joins and aggregates.
    pub memory_bytes_max: usize,
    /// Where sorts and aggregates may spill, and how much; `None` never spills.
    pub spill: Option<(PathBuf, u64)>,
    /// Memory for Parquet footers and page indexes, shared by all queries.
    pub metadata_cache_bytes_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(2, |threads| threads.get().max(2)),
            // Eight heavy queries on two cores still leave the receivers their share.
            concurrency_max: 8,
            // The slowest queries of one client leave two permits to everybody else.
            per_client_max: 6,
            queue_max: 32,
            queue_wait: Duration::from_secs(5),
            memory_bytes_max: 256 << 20,
            spill: None,
            metadata_cache_bytes_max: 32 << 20,
        }
    }
}

/// Limits of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From admission to the last row.
    pub timeout: Duration,
    /// Rows handed out; more are cut off, and the answer says so.
    pub rows_max: u64,
    /// Arrow bytes handed out; more are cut off, and the answer says so.
    pub output_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), rows_max: 100_000, output_bytes_max: 256 << 20 }
    }
}

/// What a query did. Complete once its last batch is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueryStats {
    /// Rows handed out.
    pub rows: u64,
    /// Rows read from segments and memory, before any filter but pruning.
    pub rows_scanned: u64,
    /// Bytes read from segments.
    pub bytes_scanned: u64,
    /// Segments of the tables the query names.
    pub segments_total: u64,
    /// Segments left out by their time range or their block filters.
    pub segments_pruned: u64,
    /// Segments opened.
    pub segments_scanned: u64,
    /// Blocks of 8192 rows that were looked for in block filters.
    pub blocks_total: u64,
    /// Blocks left out by their filters.
    pub blocks_pruned: u64,
    /// The most memory that was reserved at once, bytes: sorts, joins, groups, and rows not yet handed out.
    pub memory_peak_bytes: u64,
    /// From admission to the end, milliseconds.
    pub elapsed_ms: u64,
    /// Whether rows were cut off by a limit.
    pub truncated: bool,
    /// What the reader of the answer has to know.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
struct Metrics {
    queries: Family<[(&'static str, &'static str); 1], Counter>,
    running: Gauge,
    waiting: Gauge,
    seconds: Histogram,
    quarantined: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            queries: Family::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            quarantined: Counter::default(),
        }
    }
}

/// Counts a running query, for as long as it lives.
struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The query engine. Cheap to share in an `Arc`; dropping it stops its threads.
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
    pub(crate) runtime: Option<tokio::runtime::Runtime>,
    queue: Arc<Queue>,
    pub(crate) places: Arc<Places>,
}

pub(crate) struct Inner {
    config: EngineConfig,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) offered: Offered,
    disk: Arc<LocalFileSystem>,
    // Footers outlive a query; everything else of a session does not.
    metadata_cache: Arc<RuntimeEnv>,
    filter_cache: Arc<FilterCache>,
    scalar_functions: Vec<Arc<ScalarUDF>>,
    aggregate_functions: Vec<Arc<AggregateUDF>>,
    window_functions: Vec<Arc<WindowUDF>>,
    physical_rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>,
    metrics: Metrics,
    pub(crate) reaching: Reaching,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A query in an operator that does not yield must not hold up the process's end.
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// Starts the engine's threads.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when threads or the spill folder cannot be had.
    pub fn new(config: EngineConfig, source: Arc<dyn Source>) -> Result<Self, QueryError> {
        Self::offering(config, source, Vec::new())
    }

    /// As [`Engine::new`], with tables that other parts of the program offer.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn offering(
        config: EngineConfig,
        source: Arc<dyn Source>,
        tables: Vec<Arc<dyn OfferedTable>>,
    ) -> Result<Self, QueryError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads)
            .thread_stack_size(STACK_BYTES)
            .thread_name("query")
            .on_thread_start(|| {
                // On Linux this is about the calling thread alone. Where it is not allowed, queries run as they did.
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "query threads keep their priority");
                }
            })
            .enable_time()
            .build()
            .map_err(|error| {
                QueryError::new(ErrorKind::Internal, format!("cannot start the query threads: {error}"))
            })?;
        let denied = |name: &str| DENIED_FUNCTIONS.iter().any(|(denied, _)| *denied == name);
        let scalar_functions = SessionStateDefaults::default_scalar_functions()
            .into_iter()
            .filter(|function| !denied(function.name()))
            .chain(crate::time::functions())
            .chain(crate::text::functions())
            .chain(crate::histogram::scalar_functions())
            .collect();
        let mut aggregate_functions = crate::collected::counted(SessionStateDefaults::default_aggregate_functions());
        aggregate_functions.extend(crate::aggregate::functions());
        let metadata_cache = RuntimeEnvBuilder::new()
            .with_metadata_cache_limit(config.metadata_cache_bytes_max)
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let metrics = Metrics::default();
        let queue = QueueConfig {
            running_max: config.concurrency_max,
            per_client_max: config.per_client_max,
            waiting_max: config.queue_max,
            wait_max: config.queue_wait,
        };
        let queue = Queue::new(queue, metrics.waiting.clone());
        let inner = Inner {
            source,
            offered: Offered::new(tables),
            disk: Arc::new(LocalFileSystem::new()),
            metadata_cache,
            filter_cache: Arc::default(),
            scalar_functions,
            aggregate_functions,
            window_functions: SessionStateDefaults::default_window_functions(),
            physical_rules: std::iter::once(Arc::new(AttributesIntoScans) as _)
                .chain(PhysicalOptimizer::new().rules)
                .collect(),
            metrics,
            reaching: Reaching::default(),
            config,
        };
        Ok(Self { inner: Arc::new(inner), runtime: Some(runtime), queue, places: Arc::default() })
    }

    /// Adds the engine's metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = &self.inner.metrics;
        let registry = registry.sub_registry_with_prefix("godseye_query");
        registry.register("queries", "Queries ended, by outcome", metrics.queries.clone());
        registry.register("running", "Queries running", metrics.running.clone());
        registry.register("waiting", "Queries waiting for a permit", metrics.waiting.clone());
        registry.register_with_unit(
            "duration",
            "Time from admission to the end",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register("segments_quarantined", "Damaged segments set aside", metrics.quarantined.clone());
        self.inner.filter_cache.register(registry);
        self.places.register(registry);
    }

    /// Runs a statement over one snapshot of a tenant's data. Returns once the first rows (or all
    /// of a small answer) are there; dropping the output stops the query.
    ///
    /// # Errors
    /// [`QueryError`]; the output itself can end with one as well.
    pub async fn query(&self, tenant: &TenantId, sql: &str, limits: Limits) -> Result<QueryOutput, QueryError> {
        self.query_of(&Client::new(tenant.clone(), None), sql, limits).await
    }

    /// As [`Engine::query`], for one of a tenant's clients: its queries wait for their turn among those of the others.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub async fn query_of(&self, client: &Client, sql: &str, limits: Limits) -> Result<QueryOutput, QueryError> {
        let outcome = self.start(client, sql, limits).await;
        if let Err(error) = &outcome {
            self.inner.metrics.queries.get_or_create(&[("outcome", error.kind.code())]).inc();
        }
        outcome
    }

    async fn start(&self, client: &Client, sql: &str, limits: Limits) -> Result<QueryOutput, QueryError> {
        let sql_bytes = sql.len();
        if sql_bytes > guard::SQL_BYTES_MAX {
            return Err(guard::check(sql).err().unwrap_or_else(stopping));
        }
        let permit = Arc::new(self.queue.admit(client).await?);
        let runtime = self.runtime.as_ref().ok_or_else(stopping)?;
        let started = Instant::now();
        let deadline = started + limits.timeout;
        if Instant::now() >= deadline {
            return Err(timed_out(limits));
        }
        let (head_sender, head) = oneshot::channel();
        let (batch_sender, batches) = mpsc::channel(BATCHES_IN_FLIGHT);
        let stats = Arc::new(StatsCell::new(started, self.inner.metrics.clone(), &*self.inner.source));
        let run = Run {
            engine: Arc::clone(&self.inner),
            tenant: client.tenant.clone(),
            sql: sql.to_owned(),
            limits,
            stats: Arc::clone(&stats),
            permit,
        };
        // Parsing is work on untrusted input as well: it happens on the large stack, too.
        let task = runtime.spawn(Box::pin(run.run(head_sender, batch_sender)));
        let abort = AbortOnDrop(task.abort_handle());
        let schema = match tokio::time::timeout_at(deadline, head).await {
            Ok(Ok(schema)) => schema?,
            Ok(Err(_dropped)) => return Err(ended_badly(task).await),
            Err(_elapsed) => return Err(timed_out(limits)),
        };
        Ok(QueryOutput { schema, batches, stats, deadline, limits, task: Some(task), _abort: abort, ended: false })
    }

    /// Runs the rest of an answer's way to its client where queries run, behind everything else that needs the processor.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the engine is stopping.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), QueryError> {
        self.runtime.as_ref().ok_or_else(stopping)?.spawn(work);
        Ok(())
    }

    /// Runs work that plans or looks things up where queries run, with a permit as a query has.
    pub(crate) async fn on_query_thread<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let permit = self.queue.admit(&Client::new(tenant.clone(), None)).await?;
        let runtime = self.runtime.as_ref().ok_or_else(stopping)?;
        let mut task = runtime.spawn(async move {
            let done = work.await;
            drop(permit);
            done
        });
        let _abort = AbortOnDrop(task.abort_handle());
        match tokio::time::timeout(LOOKUP_TIMEOUT, &mut task).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) if error.is_panic() => {
                Err(QueryError::new(ErrorKind::Internal, "the query hit a defect and was stopped"))
            }
            Ok(Err(_cancelled)) => Err(stopping()),
            Err(_elapsed) => Err(timed_out(Limits { timeout: LOOKUP_TIMEOUT, ..Limits::default() })),
        }
    }
}

pub(crate) fn stopping() -> QueryError {
    QueryError::new(ErrorKind::Unavailable, "the query engine is stopping")
}

fn timed_out(limits: Limits) -> QueryError {
    QueryError::new(
        ErrorKind::Timeout,
        format!("the query took longer than its limit of {} ms", limits.timeout.as_millis()),
    )
    .hint("narrow the time range, for example WHERE start_time > now() - INTERVAL '1 hour'")
}

pub(crate) async fn ended_badly(task: tokio::task::JoinHandle<()>) -> QueryError {
    match task.await {
        Err(error) if error.is_panic() => {
            QueryError::new(ErrorKind::Internal, "the query hit a defect and was stopped")
        }
        _ => stopping(),
    }
}

pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A plan that runs, and what its scans have touched.
type RunningPlan = (Arc<dyn ExecutionPlan>, Arc<ScanCounters>);

/// Statistics that the running query and the reader of its answer share.
struct StatsCell {
    started: Instant,
    stats: Mutex<QueryStats>,
    // The plan and what its scans touched, read when statistics are asked for.
    plan: Mutex<Option<RunningPlan>>,
    peak: Peak,
    metrics: Metrics,
    _running: Running,
    _asking: Option<Box<dyn Any + Send + Sync>>,
}

impl StatsCell {
    fn new(started: Instant, metrics: Metrics, source: &dyn Source) -> Self {
        metrics.running.inc();
        let running = Running(metrics.running.clone());
        let peak = Peak::default();
        let asking = source.ask();
        let (stats, plan) = (Mutex::default(), Mutex::default());
        Self { started, stats, plan, peak, metrics, _running: running, _asking: asking }
    }

    fn update(&self, change: impl FnOnce(&mut QueryStats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self) -> QueryStats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((plan, counters)) = self.plan.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let mut scanned = Scanned::default();
            scanned.add(plan);
            // Scans of memory do not count their rows.
            stats.rows_scanned = scanned.rows + counters.memory_rows.load(Ordering::Relaxed);
            stats.bytes_scanned = scanned.bytes;
            stats.segments_total = counters.segments_total.load(Ordering::Relaxed);
            stats.segments_pruned = counters.segments_pruned.load(Ordering::Relaxed);
            stats.segments_scanned = stats.segments_total - stats.segments_pruned;
            stats.blocks_total = counters.blocks_total.load(Ordering::Relaxed);
            stats.blocks_pruned = counters.blocks_pruned.load(Ordering::Relaxed);
        }
        stats.memory_peak_bytes = self.peak.load(Ordering::Relaxed) as u64;
        stats.elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        stats
    }

    fn end(&self, outcome: &'static str) {
        // A plan holds the build sides of its joins, and through them the query's memory and permit.
        let last = self.read();
        self.update(|stats| *stats = last);
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.metrics.queries.get_or_create(&[("outcome", outcome)]).inc();
        self.metrics.seconds.observe(self.started.elapsed().as_secs_f64());
    }
}

#[derive(Default)]
struct Scanned {
    rows: u64,
    bytes: u64,
}

impl Scanned {
    fn add(&mut self, plan: &Arc<dyn ExecutionPlan>) {
        if matches!(plan.name(), "DataSourceExec" | "RemoteExec")
            && let Some(metrics) = plan.metrics()
        {
            let sum = |name: &str| metrics.sum_by_name(name).map_or(0, |value| value.as_usize() as u64);
            self.rows += metrics.output_rows().unwrap_or(0) as u64 + sum("pushdown_rows_pruned");
            self.bytes += sum("bytes_scanned");
        }
        for child in plan.children() {
            self.add(child);
        }
    }
}

/// The answer of a query: a schema, then batches, then final statistics.
pub struct QueryOutput {
    /// Columns as Arrow types; [`crate::render`] knows how to show them.
    pub schema: SchemaRef,
    batches: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    stats: Arc<StatsCell>,
    deadline: Instant,
    limits: Limits,
    task: Option<tokio::task::JoinHandle<()>>,
    _abort: AbortOnDrop,
    ended: bool,
}

impl std::fmt::Debug for QueryOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryOutput").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl QueryOutput {
    /// The next batch; `None` after the last one or after an error.
    ///
    /// # Errors
    /// When the query fails in its middle, or its time is up.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        if self.ended {
            return None;
        }
        let item = match tokio::time::timeout_at(self.deadline, self.batches.recv()).await {
            Ok(Some(item)) => Some(item),
            Ok(None) => match self.task.take() {
                Some(task) => match task.await {
                    Ok(()) => None,
                    Err(error) if error.is_panic() => {
                        Some(Err(QueryError::new(ErrorKind::Internal, "the query hit a defect and was stopped")))
                    }
                    Err(_cancelled) => Some(Err(stopping())),
                },
                None => None,
            },
            Err(_elapsed) => Some(Err(timed_out(self.limits))),
        };
        match &item {
            None => {
                self.ended = true;
                self.stats.end("ok");
            }
            Some(Err(error)) => {
                self.ended = true;
                self.stats.end(error.kind.code());
                self._abort.0.abort();
            }
            Some(Ok(_)) => {}
        }
        item
    }

    /// Statistics so far; final once [`QueryOutput::next`] has returned `None`.
    #[must_use]
    pub fn stats(&self) -> QueryStats {
        self.stats.read()
    }

    /// The whole answer, for callers who know it is small.
    ///
    /// # Errors
    /// As [`QueryOutput::next`].
    pub async fn collect(mut self) -> Result<(SchemaRef, Vec<RecordBatch>, QueryStats), QueryError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok((Arc::clone(&self.schema), batches, self.stats()))
    }
}

type HeadSender = oneshot::Sender<Result<SchemaRef, QueryError>>;
type BatchSender = mpsc::Sender<Result<RecordBatch, QueryError>>;

/// One query on the query runtime.
struct Run {
    engine: Arc<Inner>,
    tenant: TenantId,
    sql: String,
    limits: Limits,
    stats: Arc<StatsCell>,
    permit: Arc<Permit>,
}

/// A started query: its first batches, and the stream the rest comes from.
struct Started {
    schema: SchemaRef,
    held: Vec<RecordBatch>,
    rest: Option<datafusion::physical_plan::SendableRecordBatchStream>,
    /// The memory of `held`.
    reserved: Option<MemoryReservation>,
    counters: Arc<ScanCounters>,
}

impl Run {
    async fn run(self, head: HeadSender, batches: BatchSender) {
        let started = match self.start_or_retry().await {
            Ok(started) => started,
            Err(error) => {
                // The reader has gone away when this fails; then nobody waits for the error.
                drop(head.send(Err(error)));
                return;
            }
        };
        if head.send(Ok(Arc::clone(&started.schema))).is_err() {
            return;
        }
        let Started { schema, held, rest, reserved, counters } = started;
        let mut cut = Cut { rows: self.limits.rows_max, bytes: self.limits.output_bytes_max, schema };
        for batch in held {
            match self.send(batch, &mut cut, &batches).await {
                Next::More => {}
                Next::End => return,
            }
        }
        drop(reserved);
        let Some(mut rest) = rest else { return };
        while let Some(batch) = rest.next().await {
            match batch {
                Ok(batch) => match self.send(batch, &mut cut, &batches).await {
                    Next::More => {}
                    Next::End => return,
                },
                Err(error) => {
                    let error = self.late_error(error, &counters);
                    drop(batches.send(Err(error)).await);
                    return;
                }
            }
        }
    }

    async fn send(&self, batch: RecordBatch, cut: &mut Cut, batches: &BatchSender) -> Next {
        let (batch, why) = cut.take(batch);
        if let Some(batch) = batch {
            let batch = cut.named(batch);
            self.stats.update(|stats| stats.rows += batch.num_rows() as u64);
            if batches.send(Ok(batch)).await.is_err() {
                return Next::End;
            }
        }
        match why {
            None => Next::More,
            Some(why) => {
                let limit = match why {
                    CutBy::Rows => format!("rows after the first {} were cut off", self.limits.rows_max),
                    CutBy::Bytes => {
                        format!("rows after the first {} MiB were cut off", self.limits.output_bytes_max >> 20)
                    }
                };
                self.stats.update(|stats| {
                    stats.truncated = true;
                    stats.warnings.push(limit);
                });
                Next::End
            }
        }
    }

    /// Plans and starts the query; sets damaged segments aside and tries again without them.
    async fn start_or_retry(&self) -> Result<Started, QueryError> {
        let statement = match guard::check(&self.sql)? {
            Checked::Query(statement) => *statement,
            Checked::ShowTables => return show_tables(&self.engine.offered),
            Checked::Describe(table) => return self.describe(&table).await,
        };
        let mut excluded = BTreeSet::new();
        let mut rows_at_once = bounds::ROWS_AT_ONCE_MAX;
        loop {
            let counters = Arc::new(ScanCounters::default());
            let widest = Arc::new(AtomicU64::new(0));
            let outcome = self.start(statement.clone(), &excluded, Arc::clone(&counters), rows_at_once, &widest).await;
            let error = match outcome {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            // A row was too wide for batches of this size: smaller ones may do.
            let widest = widest.load(Ordering::Relaxed);
            if widest > 0 && rows_at_once > bounds::ROWS_AT_ONCE_MIN {
                let fitting = usize::try_from(COPIED_BYTES_MAX / widest).unwrap_or(usize::MAX);
                rows_at_once = fitting.min(rows_at_once / 2).max(bounds::ROWS_AT_ONCE_MIN);
                continue;
            }
            if !is_storage(&error) || excluded.len() >= QUARANTINES_MAX {
                return Err(error.into());
            }
            let found = self.set_damaged_aside(&counters);
            if found.is_empty() {
                tracing::error!(%error, "reading segments failed, and each of them verifies");
                return Err(QueryError::new(
                    ErrorKind::Corrupt,
                    format!("reading segments failed: {}", error.strip_backtrace()),
                ));
            }
            excluded.extend(found);
        }
    }

    /// Verifies what the query opened; the ids of the segments that were found damaged.
    fn set_damaged_aside(&self, counters: &ScanCounters) -> Vec<u64> {
        let source = &self.engine.source;
        let mut found = Vec::new();
        for segment in counters.scanned() {
            let Err(why) = source.verify(&segment) else { continue };
            let name = segment.name();
            tracing::error!(segment = name, why, "a damaged segment is set aside");
            if let Err(failed) = source.quarantine(&segment, &why) {
                // This query leaves it out all the same; the next one will find it again.
                tracing::error!(segment = name, failed, "a damaged segment could not be set aside");
            }
            self.engine.metrics.quarantined.inc();
            self.stats.update(|stats| {
                stats.warnings.push(format!(
                    "segment {name} is damaged ({why}) and was set aside; its {} rows are missing from this answer",
                    segment.rows
                ));
            });
            found.push(segment.id);
        }
        found
    }

    /// An error after rows were handed out: it cannot be mended unseen any more.
    fn late_error(&self, error: DataFusionError, counters: &ScanCounters) -> QueryError {
        if !is_storage(&error) {
            return error.into();
        }
        let _found = self.set_damaged_aside(counters);
        let warnings = self.stats.read().warnings.join("; ");
        QueryError::new(ErrorKind::Corrupt, format!("reading segments failed in the middle of the answer: {warnings}"))
            .hint("ask again: damaged segments are left out of the next answer")
    }

    async fn start(
        &self,
        statement: Statement,
        excluded: &BTreeSet<u64>,
        counters: Arc<ScanCounters>,
        rows_at_once: usize,
        widest: &Arc<AtomicU64>,
    ) -> Result<Started, DataFusionError> {
        let with_derived = names_derived_table(&statement)?;
        let mut snapshot = self.engine.snapshot(&self.tenant, with_derived, self.limits).await.map_err(external)?;
        let reach = snapshot.reach.clone();
        if !excluded.is_empty() {
            for table in Table::ALL {
                snapshot.table_mut(table).segments.retain(|segment| !excluded.contains(&segment.id));
            }
            for table in snapshot.derived.iter_mut().flat_map(|derived| &mut derived.tables) {
                table.segments.retain(|segment| !excluded.contains(&segment.id));
            }
        }
        if snapshot.derived.as_ref().is_some_and(|derived| !derived.complete) {
            self.stats.update(|stats| {
                let warning =
                    "span_metrics and service_edges miss spans: they are being derived anew, or storage.derived is off";
                stats.warnings.push(warning.to_owned());
            });
        }
        let (peak, permit) = (Arc::clone(&self.stats.peak), Arc::clone(&self.permit));
        let account = Arc::new(Account::new(self.engine.memory(), peak, permit));
        let mut state = self.engine.session(&self.tenant, snapshot, &counters, account)?;
        let plan = state.statement_to_plan(statement).await?;
        for table in counters.cut_tables() {
            let offered::Bounds { rows, text_bytes } = offered::BOUNDS;
            let warning =
                format!("{table} has more than {rows} rows or {text_bytes} bytes of text: the rest was not read");
            self.stats.update(|stats| stats.warnings.push(warning));
        }
        // A second wall behind the guard's allow-list: it looks at plans, not at text.
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        bounds::before_optimizing(&plan)?;
        let plan: LogicalPlan = state.optimize(&plan)?;
        let cost = bounds::before_running(&plan)?;
        let plan = match &reach {
            Some(reach) => remote::push_down(plan, reach)?,
            None => plan,
        };
        if let Some(allowance) = state.config().get_extension::<Allowance>() {
            allowance.share(cost.growing);
        }
        let sized = state.config().clone().with_batch_size(cost.rows_at_once().min(rows_at_once));
        *state.config_mut() = sized;
        let planner: &Arc<dyn QueryPlanner + Send + Sync> = state.query_planner();
        let physical = portioned(planner.create_physical_plan(&plan, &state).await?, widest)?;
        *self.stats.plan.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Arc::clone(&physical), Arc::clone(&counters)));

        let context = Arc::new(datafusion::execution::TaskContext::from(&state));
        let reserved = MemoryConsumer::new("answer").register(context.memory_pool());
        let mut stream = execute_stream(physical, context)?;
        let schema = as_typed(&stream.schema());
        let mut held = Vec::new();
        let mut bytes = 0;
        while bytes < HOLD_BACK_BYTES {
            match stream.next().await {
                Some(batch) => {
                    let batch = batch?;
                    bytes += batch.get_array_memory_size();
                    reserved.try_grow(batch.get_array_memory_size())?;
                    held.push(batch);
                }
                None => return Ok(Started { schema, held, rest: None, reserved: Some(reserved), counters }),
            }
        }
        Ok(Started { schema, held, rest: Some(stream), reserved: Some(reserved), counters })
    }

    async fn describe(&self, table: &str) -> Result<Started, QueryError> {
        let snapshot = self.engine.snapshot(&self.tenant, false, self.limits).await?;
        let functions = Functions::new(&snapshot.kinds);
        let tables = Tables::new(
            self.tenant.clone(),
            snapshot,
            Arc::clone(&self.engine.source),
            functions,
            Arc::new(ScanCounters::default()),
            self.engine.offered.clone(),
        );
        let Some(schema) = tables.schema_of(table)? else {
            return Err(QueryError::new(ErrorKind::BadQuery, format!("there is no table `{table}`"))
                .hint(format!("tables are {}", tables.names().join(", "))));
        };
        let fields = schema.fields();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(fields.iter().map(|field| Some(field.name().as_str())).collect::<StringArray>()),
            Arc::new(
                fields.iter().map(|field| Some(crate::render::type_name(field.data_type()))).collect::<StringArray>(),
            ),
            Arc::new(fields.iter().map(|field| Some(field.is_nullable())).collect::<BooleanArray>()),
        ];
        listing(columns_schema(), columns)
    }
}

/// The columns of DESCRIBE.
pub(crate) fn columns_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("column_name", DataType::Utf8, false),
        Field::new("data_type", DataType::Utf8, false),
        Field::new("is_nullable", DataType::Boolean, false),
    ]))
}

/// The columns of SHOW TABLES.
pub(crate) fn tables_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("table_name", DataType::Utf8, false)]))
}

/// Whether a statement reads a derived table, whose rows take some work to have at hand.
fn names_derived_table(statement: &Statement) -> Result<bool, DataFusionError> {
    let (tables, _) = resolve_table_references(statement, true)?;
    Ok(tables.iter().any(|table| DerivedTable::from_name(table.table()).is_some()))
}

fn show_tables(offered: &Offered) -> Result<Started, QueryError> {
    let names = TABLE_NAMES.into_iter().chain(offered.names());
    let names: ArrayRef = Arc::new(names.map(Some).collect::<StringArray>());
    listing(tables_schema(), vec![names])
}

fn listing(schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<Started, QueryError> {
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(DataFusionError::from)?;
    let counters = Arc::new(ScanCounters::default());
    Ok(Started { schema, held: vec![batch], rest: None, reserved: None, counters })
}

enum Next {
    More,
    End,
}

enum CutBy {
    Rows,
    Bytes,
}

/// What may still be handed out.
struct Cut {
    rows: u64,
    bytes: u64,
    /// The schema of the answer: the batches' own, with the columns' names as people typed them.
    schema: SchemaRef,
}

impl Cut {
    /// The part of a batch that fits, and the limit when it is not all of it.
    fn take(&mut self, batch: RecordBatch) -> (Option<RecordBatch>, Option<CutBy>) {
        if batch.num_rows() == 0 {
            return (None, None);
        }
        if self.bytes == 0 {
            return (None, Some(CutBy::Bytes));
        }
        if batch.num_rows() as u64 > self.rows {
            let rows = usize::try_from(self.rows).unwrap_or(usize::MAX);
            let first = (rows > 0).then(|| batch.slice(0, rows));
            return (first, Some(CutBy::Rows));
        }
        self.rows -= batch.num_rows() as u64;
        self.bytes = self.bytes.saturating_sub(handed_out_bytes(&batch));
        (Some(batch), None)
    }

    fn named(&self, batch: RecordBatch) -> RecordBatch {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options).unwrap_or(batch)
    }
}

/// Bytes of a batch's own rows: a slice of a large batch counts as what it shows.
fn handed_out_bytes(batch: &RecordBatch) -> u64 {
    let bytes = batch.columns().iter().map(|column| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()) as u64
    });
    bytes.sum()
}

/// A result schema with `spans.attributes['x']` called `attributes['x']`, as it was typed, where
/// that is not ambiguous. Inside a plan the table's name keeps two sides of a join apart.
pub(crate) fn as_typed(schema: &SchemaRef) -> SchemaRef {
    let short = |name: &str| -> Option<String> {
        let (table, rest) = name.split_once('.')?;
        let is_name = table.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        (is_name && rest.contains("['") && rest.ends_with("']")).then(|| rest.to_owned())
    };
    let names: Vec<String> =
        schema.fields().iter().map(|field| short(field.name()).unwrap_or_else(|| field.name().clone())).collect();
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(&names)
        .map(|(field, name)| {
            let unique = names.iter().filter(|other| *other == name).count() == 1;
            if unique { field.as_ref().clone().with_name(name) } else { field.as_ref().clone() }
        })
        .collect();
    Arc::new(Schema::new(fields))
}

impl Inner {
    /// The tenant's data at this instant, and where it is.
    pub(crate) async fn snapshot(
        &self,
        tenant: &TenantId,
        with_derived: bool,
        limits: Limits,
    ) -> Result<Snapshot, QueryError> {
        let Some(remote) = self.source.remote() else {
            let source = &self.source;
            return Ok(if with_derived { source.snapshot_with_derived(tenant) } else { source.snapshot(tenant) });
        };
        let reach = self.reaching.reach(remote, tenant, limits).await?;
        let mut snapshot = Snapshot::new(reach.observed());
        snapshot.reach = Some(reach);
        Ok(snapshot)
    }

    /// A session that knows one tenant's tables and nothing else.
    pub(crate) fn session(
        &self,
        tenant: &TenantId,
        snapshot: Snapshot,
        counters: &Arc<ScanCounters>,
        memory: Arc<dyn MemoryPool>,
    ) -> Result<SessionState, DataFusionError> {
        let mut config = SessionConfig::new()
            .with_information_schema(false)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(catalog::DATABASE, catalog::SCHEMA)
            .with_target_partitions(self.config.threads)
            .with_parquet_bloom_filter_pruning(true)
            .with_parquet_page_index_pruning(true);
        let options = config.options_mut();
        options.execution.parquet.pushdown_filters = true;
        options.execution.parquet.reorder_filters = true;
        options.execution.parquet.schema_force_view_types = false;
        options.execution.enable_recursive_ctes = false;
        // As a join its value is copied under a bound ([`crate::portions`]); as an expression it is not.
        options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
        options.execution.time_zone = Some("UTC".to_owned());
        options.sql_parser.map_string_types_to_utf8view = false;
        options.explain.show_sizes = false;

        let functions = Functions::new(&snapshot.kinds);
        let allowance = functions.allowance();
        config = config.with_extension(Arc::new(allowance.clone())).with_extension(Arc::clone(&self.filter_cache));
        let mut scalar_functions: Vec<Arc<ScalarUDF>> =
            self.scalar_functions.iter().map(|function| guarded(function, allowance)).collect();
        scalar_functions.extend(functions.public());
        let kinds = functions.clone();
        let (source, offered) = (Arc::clone(&self.source), self.offered.clone());
        let tables = Tables::new(tenant.clone(), snapshot, source, kinds, Arc::clone(counters), offered);
        let tables = Arc::new(tables);
        let described = Catalog::new(Arc::clone(&tables));
        scalar_functions.extend(described.functions());
        let histogram_quantile =
            scalar_functions.iter().find(|function| function.name() == "histogram_quantile").map(Arc::clone);
        let mut planners: Vec<Arc<dyn datafusion::logical_expr::planner::ExprPlanner>> =
            vec![Arc::new(TelemetryPlanner(functions.clone()))];
        planners.extend(SessionStateDefaults::default_expr_planners());
        let rewrite = Arc::new(TelemetryRewrite(functions.clone()));
        let mut rules: Vec<Arc<dyn datafusion::optimizer::AnalyzerRule + Send + Sync>> =
            vec![Arc::clone(&rewrite) as _];
        rules.extend(Analyzer::new().rules);
        rules.push(rewrite);

        let catalog = Arc::new(MemoryCatalogProvider::new());
        described.register(&catalog)?;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(self.environment(memory)?)
            .with_scalar_functions(scalar_functions)
            .with_aggregate_functions(self.aggregate_functions.clone())
            .with_window_functions(self.window_functions.clone())
            .with_table_function_list(crate::trace::table_functions(&tables))
            .with_expr_planners(planners)
            .with_analyzer_rules(rules)
            .with_optimizer_rule(Arc::new(CollapsePartials { histogram_quantile }))
            .with_physical_optimizer_rules(self.physical_rules.clone())
            .build();
        state.catalog_list().register_catalog(catalog::DATABASE.to_owned(), catalog);
        let mut state = SessionContext::new_with_state(state).state();
        state.mark_start_execution();
        Ok(state)
    }

    /// Memory of one query.
    pub(crate) fn memory(&self) -> Arc<dyn MemoryPool> {
        match &self.config.spill {
            Some(_) => Arc::new(FairSpillPool::new(self.config.memory_bytes_max)),
            None => Arc::new(GreedyMemoryPool::new(self.config.memory_bytes_max)),
        }
    }

    /// Memory, spill space and the disk of one query.
    fn environment(&self, memory: Arc<dyn MemoryPool>) -> Result<Arc<RuntimeEnv>, DataFusionError> {
        let disk = match &self.config.spill {
            Some((folder, bytes)) => DiskManagerBuilder::default()
                .with_mode(DiskManagerMode::Directories(vec![folder.clone()]))
                .with_max_temp_directory_size(*bytes),
            None => DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled),
        };
        let cache = datafusion::execution::cache::cache_manager::CacheManagerConfig::default()
            .with_file_metadata_cache(Some(self.metadata_cache.cache_manager.get_file_metadata_cache()))
            .with_metadata_cache_limit(self.config.metadata_cache_bytes_max);
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(memory)
            .with_disk_manager_builder(disk)
            .with_cache_manager(cache)
            .build_arc()?;
        // DataFusion offers the whole disk under file:// by default; only our provider may read.
        environment.deregister_object_store(ObjectStoreUrl::local_filesystem().as_ref())?;
        let url = ObjectStoreUrl::parse(SEGMENT_STORE)?;
        environment.register_object_store(url.as_ref(), Arc::clone(&self.disk) as _);
        Ok(environment)
    }
}
