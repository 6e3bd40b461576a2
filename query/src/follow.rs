//! Following a table: rows as they are acknowledged, those that a predicate holds for.
//!
//! The predicate is one of SQL's and means what it means in a query: it passes the same guard, and is planned over
//! the same view of the table, once. The plan then runs over whatever batches have come, on the query threads. It is
//! made anew only when an attribute that it reads is seen with another kind, since that decides its type; so
//! `now()` is the moment at which following began. Not here: where rows come from ([`crate::source::Source::follow`]), and how they
//! are sent.
//!
//! A follower costs memory and threads for as long as it is there, so all of it is bounded: how many there are, what
//! waits for each (the store's queue), how many rows a second each gets, and how many run at once. What a bound cuts
//! off is counted and told, in the place where it is missing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, collect};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::attributes::Kinds;
use model::signal::Table;
use model::tenant::TenantId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bounds;
use crate::engine::{AbortOnDrop, Engine, Inner, ended_badly, stopping};
use crate::error::{ErrorKind, QueryError, external};
use crate::guard;
use crate::provider::ScanCounters;
use crate::source::{Container, Fresh, ObservedKinds, Snapshot};

/// Followers at once. With the queue of each they hold 128 MiB at most, when nobody of them reads.
pub const FOLLOWERS_MAX: usize = 32;

/// Followers of one tenant, so that one cannot keep the others out.
pub const FOLLOWERS_OF_TENANT_MAX: usize = 16;

/// Rows a follower gets within a second. Nobody reads a hundred; this is for programs, and an export is a better way
/// to have more.
pub const ROWS_PER_SECOND_MAX: u64 = 10_000;

/// Predicates that run at the same time. One thread's worth: following must not slow queries down.
const RUNNING_MAX: usize = 1;

/// How long a predicate may take over what came at once. Milliseconds are usual; one that needs longer will never
/// keep up.
const RUN_TIMEOUT: Duration = Duration::from_secs(10);

/// News between the query's thread and whoever sends them on. What comes meanwhile waits in the store's queue, which
/// counts.
const NEWS_IN_FLIGHT: usize = 2;

/// What a follower learns.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Rows that the predicate holds for, in the order of their acknowledgement.
    Rows(RecordBatch),
    /// So many rows came here and are missing: the reader is too slow, or there are more than
    /// [`ROWS_PER_SECOND_MAX`]. The predicate may or may not hold for those the reader was too slow for.
    Dropped(u64),
}

/// Who follows now.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Mutex<BTreeMap<TenantId, usize>>,
    running: Semaphore,
    followers: Gauge,
    rows_dropped: Counter,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            taken: Mutex::default(),
            running: Semaphore::new(RUNNING_MAX),
            followers: Gauge::default(),
            rows_dropped: Counter::default(),
        }
    }
}

impl Places {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("followers", "Followers of tables", self.followers.clone());
        let help = "Rows that followers were too slow for, or that were too many";
        registry.register("follow_rows_dropped", help, self.rows_dropped.clone());
    }

    fn take(self: &Arc<Self>, tenant: &TenantId) -> Result<Place, QueryError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |why: String| QueryError::new(ErrorKind::Busy, why).hint("try again when one of them has ended");
        if taken.values().sum::<usize>() >= FOLLOWERS_MAX {
            return Err(busy(format!("{FOLLOWERS_MAX} followers are there already, the limit")));
        }
        let of_tenant = taken.entry(tenant.clone()).or_default();
        if *of_tenant >= FOLLOWERS_OF_TENANT_MAX {
            return Err(busy(format!(
                "{FOLLOWERS_OF_TENANT_MAX} followers of this tenant are there already, the limit"
            )));
        }
        *of_tenant += 1;
        drop(taken);
        self.followers.inc();
        Ok(Place { places: Arc::clone(self), tenant: tenant.clone() })
    }
}

/// One follower's place, for as long as it lives.
struct Place {
    places: Arc<Places>,
    tenant: TenantId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.followers.dec();
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_tenant) = taken.get_mut(&self.tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

/// Rows that are still allowed within this second.
#[derive(Clone, Copy, Debug)]
struct Pace {
    since: Instant,
    rows: u64,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { since: now, rows: 0 }
    }

    /// How many of these rows may go on.
    fn take(&mut self, now: Instant, rows: u64) -> u64 {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let allowed = rows.min(ROWS_PER_SECOND_MAX - self.rows);
        self.rows += allowed;
        allowed
    }
}

/// A table that is being followed. Dropping it ends that.
pub struct Following {
    /// The columns of the rows.
    pub schema: SchemaRef,
    news: mpsc::Receiver<Result<News, QueryError>>,
    task: Option<JoinHandle<()>>,
    _abort: AbortOnDrop,
    _place: Place,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").finish_non_exhaustive()
    }
}

impl Following {
    /// What comes next; `None` when the storage is closed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the predicate fails over a row, or takes too long. Nothing comes after that.
    pub async fn next(&mut self) -> Option<Result<News, QueryError>> {
        if let Some(news) = self.news.recv().await {
            return Some(news);
        }
        let task = self.task.as_mut()?;
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(()) => None,
            Err(error) if error.is_panic() => {
                Some(Err(QueryError::new(ErrorKind::Internal, "the predicate hit a defect and was stopped")))
            }
            Err(_cancelled) => Some(Err(stopping())),
        }
    }
}

impl Engine {
    /// Follows a table: the rows acknowledged from now on for which a predicate holds.
    ///
    /// # Errors
    /// [`QueryError`]: the predicate is wrong or refused, there are too many followers, or nothing comes in here.
    pub async fn follow(
        &self,
        tenant: &TenantId,
        table: Table,
        predicate: Option<&str>,
    ) -> Result<Following, QueryError> {
        if let Some(why) = self.inner.source.unfollowed() {
            return Err(QueryError::refused(why));
        }
        let place = self.places.take(tenant)?;
        let runtime = self.runtime.as_ref().ok_or_else(stopping)?;
        let (head_sender, head) = oneshot::channel();
        let (news_sender, news) = mpsc::channel(NEWS_IN_FLIGHT);
        let run = Run {
            engine: Arc::clone(&self.inner),
            places: Arc::clone(&self.places),
            tenant: tenant.clone(),
            table,
            predicate: predicate.map(str::to_owned),
        };
        // From here on nothing is missed, however long the planning takes.
        let fresh = self.inner.source.follow(tenant, table);
        let task = runtime.spawn(Box::pin(run.run(fresh, head_sender, news_sender)));
        let abort = AbortOnDrop(task.abort_handle());
        match head.await {
            Ok(schema) => Ok(Following { schema: schema?, news, task: Some(task), _abort: abort, _place: place }),
            Err(_dropped) => Err(ended_badly(task).await),
        }
    }
}

/// A follower on the query runtime.
struct Run {
    engine: Arc<Inner>,
    places: Arc<Places>,
    tenant: TenantId,
    table: Table,
    predicate: Option<String>,
}

type HeadSender = oneshot::Sender<Result<SchemaRef, QueryError>>;
type NewsSender = mpsc::Sender<Result<News, QueryError>>;

impl Run {
    async fn run(self, mut fresh: BoxStream<'static, Fresh>, head: HeadSender, news: NewsSender) {
        let mut planned = match self.plan().await {
            Ok(planned) => planned,
            Err(error) => {
                // The reader has gone away when this fails; then nobody waits for the error.
                drop(head.send(Err(error)));
                return;
            }
        };
        if head.send(Ok(planned.plan.schema())).is_err() {
            return;
        }
        let mut pace = Pace::new(Instant::now());
        while let Some(came) = fresh.next().await {
            let told = match came {
                Fresh::Dropped(rows) => self.dropped(rows, &news).await,
                Fresh::Rows(batches) => match self.matching(&mut planned, batches).await {
                    Ok(batches) => self.rows(batches, &mut pace, &news).await,
                    Err(error) => {
                        drop(news.send(Err(error)).await);
                        return;
                    }
                },
            };
            if !told {
                return;
            }
        }
    }

    /// Sends rows on as far as the pace allows; whether anybody reads.
    async fn rows(&self, batches: Vec<RecordBatch>, pace: &mut Pace, news: &NewsSender) -> bool {
        let mut too_many = 0;
        for batch in batches {
            let rows = batch.num_rows() as u64;
            let allowed = pace.take(Instant::now(), rows);
            too_many += rows - allowed;
            let first = batch.slice(0, usize::try_from(allowed).unwrap_or(usize::MAX));
            if allowed > 0 && news.send(Ok(News::Rows(first))).await.is_err() {
                return false;
            }
        }
        too_many == 0 || self.dropped(too_many, news).await
    }

    async fn dropped(&self, rows: u64, news: &NewsSender) -> bool {
        self.places.rows_dropped.inc_by(rows);
        news.send(Ok(News::Dropped(rows))).await.is_ok()
    }

    async fn matching(&self, planned: &mut Planned, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, QueryError> {
        let _turn = self.places.running.acquire().await.map_err(|_closed| stopping())?;
        let kinds = self.engine.source.kinds(&self.tenant, self.table);
        if !planned.kinds.are_those_of(kinds.as_ref()) {
            *planned = self.plan().await?;
        }
        match tokio::time::timeout(RUN_TIMEOUT, planned.run(batches)).await {
            Ok(rows) => Ok(rows?),
            Err(_elapsed) => Err(QueryError::new(
                ErrorKind::Timeout,
                format!(
                    "the predicate took longer than its limit of {} s over what came at once",
                    RUN_TIMEOUT.as_secs()
                ),
            )
            .hint("compare columns and attributes; patterns over long texts cost the most")),
        }
    }

    async fn plan(&self) -> Result<Planned, QueryError> {
        let statement = guard::check_predicate(self.table, self.predicate.as_deref())?;
        let known = self.engine.source.kinds(&self.tenant, self.table);
        let kinds = Arc::new(AskedKinds { known, asked: Mutex::default() });
        let snapshot = Snapshot::new(Arc::clone(&kinds) as Arc<dyn ObservedKinds>);
        let mut state =
            self.engine.session(&self.tenant, snapshot, &Arc::new(ScanCounters::default()), self.engine.memory())?;
        // One partition keeps the order, and these are small batches.
        state.config_mut().options_mut().execution.target_partitions = 1;
        let plan = state.statement_to_plan(statement).await.map_err(in_our_words)?;
        looks_at_one_row(&plan)?;
        bounds::before_optimizing(&plan)?;
        let plan = state.optimize(&plan)?;
        bounds::before_running(&plan)?;
        let plan = state.query_planner().create_physical_plan(&plan, &state).await?;
        Ok(Planned { plan, context: Arc::new(TaskContext::from(&state)), kinds })
    }
}

/// The planner speaks of WHERE and HAVING, of which a predicate has neither.
fn in_our_words(error: DataFusionError) -> QueryError {
    let error = QueryError::from(error);
    if error.message.starts_with("Aggregate functions are not allowed") {
        return QueryError::refused("a predicate looks at one row at a time: it cannot have an aggregate");
    }
    error
}

/// Refuses what compares rows with each other.
fn looks_at_one_row(plan: &LogicalPlan) -> Result<(), DataFusionError> {
    let refused = |what: &str| {
        external(QueryError::refused(format!("a predicate looks at one row at a time: it cannot have {what}")))
    };
    plan.apply(|node| {
        if matches!(node, LogicalPlan::Aggregate(_) | LogicalPlan::Window(_)) {
            return Err(refused("an aggregate"));
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| match expr {
                Expr::AggregateFunction(_) => Err(refused("an aggregate")),
                Expr::WindowFunction(_) => Err(refused("a window function")),
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })
    .map(drop)
}

/// The predicate as a plan over a table that has no rows yet.
struct Planned {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    kinds: Arc<AskedKinds>,
}

impl Planned {
    /// Runs over batches.
    async fn run(&self, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, DataFusionError> {
        let batches = [batches];
        let over_rows = Arc::clone(&self.plan).transform_up(|node| {
            let memory = node.downcast_ref::<DataSourceExec>().map(|scan| {
                scan.data_source().downcast_ref::<MemorySourceConfig>().ok_or_else(|| {
                    DataFusionError::Internal("a followed table is read from elsewhere than memory".to_owned())
                })
            });
            Ok(match memory.transpose()? {
                Some(memory) => Transformed::yes(MemorySourceConfig::try_new_exec(
                    &batches,
                    memory.original_schema(),
                    memory.projection().clone(),
                )? as Arc<dyn ExecutionPlan>),
                None => Transformed::no(node),
            })
        })?;
        collect(over_rows.data, Arc::clone(&self.context)).await
    }
}

/// Kinds of attributes, and which of them were asked for: what a plan depends on.
struct AskedKinds {
    known: Arc<dyn ObservedKinds>,
    asked: Mutex<HashMap<(Table, Container, String), Kinds>>,
}

impl AskedKinds {
    fn are_those_of(&self, now: &dyn ObservedKinds) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().all(|((table, container, key), kinds)| now.kinds(*table, *container, key) == *kinds)
    }
}

impl ObservedKinds for AskedKinds {
    fn kinds(&self, table: Table, container: Container, key: &str) -> Kinds {
        let kinds = self.known.kinds(table, container, key);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert((table, container, key.to_owned()), kinds);
        kinds
    }
}

#[cfg(test)]
mod tests;
