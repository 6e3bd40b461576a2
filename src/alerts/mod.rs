//! Alerting, rules and SLOs in one process: their parts put together around the store, the pipeline and the engine.
//!
//! ```text
//! log thread ── published batches ─▶ SLOs ──┐
//! query engine ◀── SQL ── rules ────────────┼─▶ notices ─▶ alerting ─▶ Slack, email, PagerDuty, webhooks
//!      pipeline ◀── recorded series ┘       │       POST /alertmanager/api/v2/alerts ┘
//! store ── recount ─▶ SLOs                  └ alerting.sqlite, slo.sqlite
//! ```
//!
//! One tenant's telemetry is judged and its alerts are kept (`alerting.tenant`). Not here: what an alert is and who is
//! told (`alerting`), and what a rule or an SLO means (`slo`).

pub mod backtest;
pub mod files;
pub mod tables;
pub mod unit;

mod api;
mod ask;
mod evaluation;
mod local;
mod record;
mod sink;
mod slack;
mod telemetry;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alerting::notify::http::NetworkPolicy;
use alerting::repository::Repository;
use alerting::service::{Alerting, AlertingHandle, Dependencies, Settings};
use ingest::pipeline::PipelineHandle;
use model::time::Clock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use slo::archive::Archive;
use slo::engine::{Board, Engine, Feed, Reloader};
use slo::error::SloError;
use slo::rules::file::Group;
use slo::rules::group::{GroupBoard, Tools};
use store::Store;
use tokio::sync::mpsc;
use tokio::task::JoinHandle as Task;
use tokio_util::sync::CancellationToken;

use self::ask::Asker;
use self::files::{Files, Routing};
use self::sink::Notices;
use crate::config;

/// How often the numbers for `/metrics` are looked at: more often than anybody scrapes them.
const METRICS_INTERVAL: Duration = Duration::from_secs(5);

/// Reloads of rules that wait for evaluations to end.
const RELOADS_MAX: usize = 4;

/// Where alerts, groups, silences and messages are kept, in the data directory.
const ALERTING_FILE: &str = "alerting.sqlite";

/// Where the state of rules and the counts of SLOs are kept.
const SLO_FILE: &str = "slo.sqlite";

/// A configuration that tells nobody: alerts are kept and shown.
const NOBODY: &str = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n";

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum AlertsError {
    /// The alerts' database, or a template.
    #[error(transparent)]
    Alerting(#[from] alerting::error::AlertingError),
    /// The database of rules and SLOs.
    #[error(transparent)]
    Slo(#[from] SloError),
    /// The thread that opens them ended.
    #[error("the databases were not opened: {0}")]
    Opening(String),
}

/// What the parts are built around.
pub struct Around {
    /// Where telemetry lies.
    pub store: Arc<Store>,
    /// What answers SQL.
    pub engine: Arc<query::Engine>,
    /// Limits of one query.
    pub limits: query::Limits,
    /// Where recorded series go.
    pub pipeline: PipelineHandle,
    /// Where people reach the API, unless the configuration says otherwise.
    pub http: std::net::SocketAddr,
    /// The SQL tables that get rows from now on.
    pub watched: tables::Watched,
}

/// Takes other files while everything runs: Alertmanager's configuration, rules and SLOs.
#[derive(Clone, Debug)]
pub struct Rerouter {
    handle: AlertingHandle,
    config: config::Alerting,
    external_url: String,
    runtime: tokio::runtime::Handle,
    rules: mpsc::Sender<Vec<Group>>,
    slos: Reloader,
    counted: Arc<Mutex<Vec<tables::Counted>>>,
}

impl Rerouter {
    /// Reads every file again and takes what they say: all of it or, with an error in one, nothing.
    ///
    /// # Errors
    /// Every error in them, a line each, or that reloads wait already; what runs stays then.
    pub fn reroute(&self) -> Result<(), String> {
        let (Files { routing, groups, slos }, problems) = files::read(&self.config);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if files::has_errors(&problems) {
            return Err(lines.join("\n"));
        }
        for line in lines {
            tracing::warn!("{line}");
        }
        let (count, counted) = (groups.iter().map(|group| group.rules.len()).sum::<usize>(), tables::counted(&slos));
        self.rules.try_send(groups).map_err(|error| format!("rules cannot be reloaded now: {error}"))?;
        self.slos.reload(slos)?;
        *lock(&self.counted) = counted;
        tracing::info!(rules = count, "rules reloaded");
        let Some(routing) = routing else { return Ok(()) };
        let handle = self.handle.clone();
        let settings = settings(&self.config, &self.external_url, routing.templates);
        self.runtime.spawn(async move {
            match handle.reconfigure(routing.config, &settings).await {
                Ok(()) => tracing::info!("Alertmanager's configuration reloaded"),
                Err(error) => {
                    tracing::error!(%error, "Alertmanager's configuration was not taken; the running one stays")
                }
            }
        });
        Ok(())
    }
}

fn settings(config: &config::Alerting, external_url: &str, templates: Vec<(String, String)>) -> Settings {
    let network = NetworkPolicy { allow_private: config.allow_private_targets };
    let slack_buttons = config.slack_signing_secret.is_some();
    Settings { external_url: external_url.to_owned(), templates, network, slack_buttons }
}

/// The running parts.
pub struct Alerts {
    routes: axum::Router,
    rerouter: Rerouter,
    alerting: Task<()>,
    alerting_stop: CancellationToken,
    poster: Task<()>,
    rules: Task<()>,
    rules_stop: CancellationToken,
    slos: Task<()>,
    slos_stop: CancellationToken,
    watcher: Task<()>,
    health: Health,
}

/// How rules and SLOs are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    groups: GroupBoard,
    board: Board,
}

impl Health {
    /// What somebody should look at, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let now = Clock::System.now();
        let groups = self.groups.groups();
        groups.iter().flat_map(|group| group.problems(now)).chain(self.board.rounds().problems(now)).collect()
    }
}

/// Everything that is opened before anything runs.
struct Opened {
    alerting: Alerting,
    handle: AlertingHandle,
    rules: slo::rules::group::Service,
    slos: (slo::engine::Service, Feed, Board),
    reader: Archive,
}

impl Alerts {
    /// Opens the databases and starts everything that the files ask for.
    ///
    /// # Errors
    /// [`AlertsError`].
    pub async fn start(
        config: &config::Config,
        files: Files,
        around: Around,
        registry: &mut Registry,
    ) -> Result<Self, AlertsError> {
        let metrics = Metrics::register(registry);
        let Around { store, engine, limits, pipeline, http, watched } = around;
        let counted = tables::counted(&files.slos);
        let external_url = config.alerting.external_url.clone().unwrap_or_else(|| format!("http://{http}"));
        let (notices, posts) = Notices::new(external_url.clone());
        let asker = Asker::new(engine, limits);
        let runtime = tokio::runtime::Handle::current();
        let [alerting_stop, rules_stop, slos_stop] = [(); 3].map(|()| CancellationToken::new());
        let opening = {
            let stored = telemetry::Stored {
                store: Arc::clone(&store),
                asker: asker.clone(),
                is_elsewhere: config.storage.engine == config::Engine::ClickHouse,
                runtime: runtime.clone(),
                stop: slos_stop.clone(),
            };
            let (config, notices) = (config.clone(), notices.clone());
            let external_url = external_url.clone();
            move || open(&config, files, stored, asker, pipeline, notices, &external_url)
        };
        let opened = tokio::task::spawn_blocking(opening).await;
        let opened = opened.map_err(|error| AlertsError::Opening(error.to_string()))??;

        let Opened { alerting, handle, rules, slos: (slos, feed, board), reader } = opened;
        let (reload_rules, rules_reloads) = mpsc::channel(RELOADS_MAX);
        let counted = Arc::new(Mutex::new(counted));
        let rerouter = Rerouter {
            handle: handle.clone(),
            config: config.alerting.clone(),
            external_url,
            runtime,
            rules: reload_rules,
            slos: slos.reloader(),
            counted: Arc::clone(&counted),
        };
        store.observe(Arc::new(telemetry::Published(feed.clone())));
        let reader = Arc::new(Mutex::new(reader));
        let tenant = config.alerting.tenant.clone();
        let health = Health { groups: rules.board(), board: board.clone() };
        watched.runs(tables::Parts {
            handle: handle.clone(),
            board: board.clone(),
            archive: Arc::clone(&reader),
            counted,
            tenant: tenant.clone(),
        });
        let mut routes = api::routes(handle.clone(), board, reader, tenant);
        if let Some(secret) = &config.alerting.slack_signing_secret {
            let policy = NetworkPolicy { allow_private: config.alerting.allow_private_targets };
            routes = routes.merge(slack::routes(handle.clone(), secret.clone(), policy)?);
        }
        let slos = {
            let stop = slos_stop.clone();
            tokio::spawn(async move {
                if let Err(error) = slos.run(stop).await {
                    tracing::error!(%error, "the counts of SLOs were not written at the end: they are recounted");
                }
            })
        };
        let rules = {
            let stop = rules_stop.clone();
            tokio::spawn(rules.run(stop, rules_reloads))
        };
        Ok(Self {
            routes,
            rerouter,
            alerting: tokio::spawn(alerting.run(alerting_stop.clone())),
            alerting_stop,
            poster: tokio::spawn(sink::post(posts, handle.clone())),
            rules,
            rules_stop,
            slos,
            slos_stop,
            watcher: tokio::spawn(metrics.watch(handle, notices, feed, health.clone())),
            health,
        })
    }

    /// What is answered below `/alertmanager` and `/api/v1`.
    pub fn routes(&self) -> axum::Router {
        self.routes.clone()
    }

    /// How rules and SLOs are.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// For a reload.
    #[must_use]
    pub fn rerouter(&self) -> Rerouter {
        self.rerouter.clone()
    }

    /// Ends what records through the pipeline; after this nothing holds it any more.
    pub async fn stop_rules(&mut self) {
        self.rules_stop.cancel();
        if let Err(error) = (&mut self.rules).await {
            tracing::error!(%error, "rules ended badly");
        }
    }

    /// Ends the rest, alerting last: what rules and SLOs have noticed is posted before.
    pub async fn stop(self) {
        self.slos_stop.cancel();
        if let Err(error) = self.slos.await {
            tracing::error!(%error, "SLOs ended badly");
        }
        self.watcher.abort();
        // The last sender goes with the watcher.
        drop(self.watcher.await);
        if let Err(error) = self.poster.await {
            tracing::error!(%error, "posting alerts ended badly");
        }
        self.alerting_stop.cancel();
        if let Err(error) = self.alerting.await {
            tracing::error!(%error, "alerting ended badly");
        }
    }
}

fn open(
    config: &config::Config,
    files: Files,
    stored: telemetry::Stored,
    asker: Asker,
    pipeline: PipelineHandle,
    notices: Notices,
    external_url: &str,
) -> Result<Opened, AlertsError> {
    let (clock, tenant) = (Clock::System, &config.alerting.tenant);
    let Files { routing, groups, slos } = files;
    let Routing { config: routing, templates } = routing.unwrap_or_else(nobody);
    let repository = Repository::open(&config.data_dir.join(ALERTING_FILE), tenant.as_str())?;
    let dependencies = Dependencies { repository, clock: clock.clone(), sender: None };
    let settings = settings(&config.alerting, external_url, templates);
    let (alerting, handle) = Alerting::build(routing, &settings, dependencies)?;

    let path = config.data_dir.join(SLO_FILE);
    // Both run without anything to do, too: a reload may bring it.
    let tools = Tools {
        ask: Arc::new(asker),
        record: Arc::new(record::Recorder(pipeline)),
        expand: Arc::new(Expander { external_url: external_url.to_owned() }),
    };
    let (archive, sink) = (Archive::open(&path)?, Box::new(notices.clone()));
    let rules = slo::rules::group::Service::build(groups, tenant, archive, tools, sink, clock.clone())?;
    let archive = Archive::open(&path)?;
    let engine = Engine::build(slo::engine::Config::default(), tenant.clone(), slos, archive, clock.now())?;
    let slos = slo::engine::Service::build(engine, Arc::new(stored), Box::new(notices), clock);
    Ok(Opened { alerting, handle, rules, slos, reader: Archive::open(&path)? })
}

fn nobody() -> Routing {
    let config = alerting::config::parse(NOBODY).config.expect("the built-in configuration is one");
    Routing { config, templates: Vec::new() }
}

/// Go templates of rules.
struct Expander {
    external_url: String,
}

impl slo::rules::group::Expand for Expander {
    fn expand(&self, template: &str, labels: &slo::rules::state::Labels, value: f64) -> Result<String, String> {
        alerting::template::rule::expand(template, labels, value, &self.external_url).map_err(|error| error.to_string())
    }
}

type Labelled = [(&'static str, &'static str); 1];

/// What `/metrics` tells of it.
#[derive(Clone, Debug, Default)]
struct Metrics {
    alerts: Family<Labelled, Gauge>,
    silences: Gauge,
    queues: Family<Labelled, Gauge>,
    notifications: Family<Labelled, Counter>,
    evaluation: evaluation::Metrics,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        metrics.evaluation.register(registry);
        let registry = registry.sub_registry_with_prefix("godseye_alerting");
        registry.register("alerts", "Alerts that fire, by state", metrics.alerts.clone());
        registry.register("silences", "Silences that hold", metrics.silences.clone());
        registry.register("queue_depth", "Entries waiting in a queue", metrics.queues.clone());
        registry.register("notifications", "Messages that left the outbox, by outcome", metrics.notifications.clone());
        metrics
    }

    /// Looks at the numbers from time to time, for as long as alerting runs.
    async fn watch(mut self, handle: AlertingHandle, notices: Notices, feed: Feed, health: Health) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        // The outbox forgets old messages, so its counts go down, too; a counter adds what they went up by.
        let mut before = alerting::repository::OutboxCounts::default();
        let mut ticks = tokio::time::interval(METRICS_INTERVAL);
        loop {
            ticks.tick().await;
            let Ok(counts) = handle.counts().await else { return };
            let alerts = |state, number| self.alerts.get_or_create(&[("state", state)]).set(gauge(number));
            alerts("active", counts.active);
            alerts("suppressed", counts.suppressed);
            self.silences.set(gauge(counts.silences_active));
            let queue = |name, depth| self.queues.get_or_create(&[("queue", name)]).set(gauge(depth));
            queue("calls", handle.waiting());
            queue("notices", notices.waiting());
            queue("slo_batches", feed.waiting());
            self.evaluation.show(&health.groups.groups(), &health.board.rounds());
            queue("outbox", usize::try_from(counts.outbox.waiting).unwrap_or(usize::MAX));
            let ended = |outcome, now: u64, then: u64| {
                self.notifications.get_or_create(&[("outcome", outcome)]).inc_by(now.saturating_sub(then));
            };
            ended("sent", counts.outbox.sent, before.sent);
            ended("failed", counts.outbox.dead, before.dead);
            before = counts.outbox;
        }
    }
}

/// A lock that a panic elsewhere does not take away.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
