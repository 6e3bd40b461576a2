//! A server that only receives: what it takes goes to Kafka. It has no data directory and no store.
//!
//! ```text
//! start:  bind sockets → producer → API → receivers → ready
//! drain:  not ready → receivers → producer → API
//! ```
//!
//! Brokers need not be there when it starts: clients are asked to come again until they are. Not here: what is sent
//! ([`kafka_log::gateway`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashboards::auth::Authenticator;
use ingest::admission::ByteBudget;
use ingest::receiver::{self, Receiver};
use kafka_log::Gateway;
use model::time::Clock;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle as Task;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::roles;
use crate::server::{self, Addresses, Credentials, Reload, ServeError};

/// How often it is looked whether brokers can be reached, for `/readyz`.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long that may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// What the API says instead of an answer.
const NO_STORE: &str = "this process is a gateway: it hands telemetry on to Kafka and has no store; ask a writer";

/// A running gateway.
pub(crate) struct GatewayServer {
    addresses: Addresses,
    gateway: Gateway,
    receivers: Vec<Task<()>>,
    receivers_stop: CancellationToken,
    api: Task<()>,
    stop: CancellationToken,
    draining: Arc<AtomicBool>,
    drain_timeout: Duration,
}

/// What `/readyz` tells.
struct Readiness {
    draining: Arc<AtomicBool>,
    problem: Arc<Mutex<Option<String>>>,
}

impl dashboards::Readiness for Readiness {
    fn state(&self) -> dashboards::ReadyState {
        if self.draining.load(Ordering::Acquire) {
            dashboards::ReadyState::Draining
        } else {
            dashboards::ReadyState::Ready
        }
    }

    fn degraded(&self) -> Vec<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl GatewayServer {
    /// Binds and starts everything; returns when requests are answered.
    pub(crate) async fn start(config: &Config, reload: Arc<Reload>) -> Result<Self, ServeError> {
        let otlp = &config.receivers.otlp.protocols;
        let grpc = server::bind("OTLP/gRPC", "--otlp-grpc", otlp.grpc.endpoint).await?;
        let otlp_http = server::bind("OTLP/HTTP", "--otlp-http", otlp.http.endpoint).await?;
        let http = server::bind("HTTP", "--http", config.http.endpoint).await?;
        let addresses = Addresses {
            otlp_grpc: Some(server::local(&grpc)?),
            otlp_http: Some(server::local(&otlp_http)?),
            http: server::local(&http)?,
            pg: None,
        };
        let mut registry = Registry::default();
        let receiver_metrics = receiver::Metrics::register(&mut registry);
        let budget = ByteBudget::new(config.limits.in_flight_bytes.0);
        budget.register(&mut registry);
        reload.register(&mut registry);

        let cannot = |detail: String| ServeError::Start { what: "the gateway to Kafka", detail };
        let kafka = roles::kafka(config)?.ok_or_else(|| cannot("no brokers are named".to_owned()))?;
        roles::make_topics(&kafka, false);
        let gateway = Gateway::start(kafka, Clock::System, &mut registry).map_err(|error| cannot(error.to_string()))?;

        let draining = Arc::new(AtomicBool::new(false));
        let authenticator = Arc::new(Authenticator::new(server::tokens(config)));
        reload.apply_to(Arc::clone(&authenticator));
        let stop = CancellationToken::new();
        let problem = Arc::default();
        tokio::spawn(watch(gateway.clone(), Arc::clone(&problem), stop.clone()));
        let doors = dashboards::Doors::new(dashboards::Deps {
            readiness: Arc::new(Readiness { draining: Arc::clone(&draining), problem }),
            authenticator: Arc::clone(&authenticator),
            limits: server::limits(config),
            export: server::export(config),
            send_timeout: config.query.send_timeout.get(),
            reload: Arc::new(move || reload.reload()),
        });
        doors.open_without_store(Arc::new(registry), NO_STORE);
        let api = tokio::spawn(dashboards::serve(http, doors.router(), stop.clone()));

        let receivers_stop = CancellationToken::new();
        let receiver = |limits: receiver::Config| {
            let (gateway, credentials) = (gateway.clone(), Credentials(Arc::clone(&authenticator)));
            Receiver::new(limits, gateway, credentials, budget.clone(), receiver_metrics.clone())
        };
        let [grpc_limits, http_limits] = server::receiver_limits(config);
        let receivers = vec![
            tokio::spawn(receiver::serve_grpc(grpc, receiver(grpc_limits), receivers_stop.clone())),
            tokio::spawn(receiver::serve_http(otlp_http, receiver(http_limits), receivers_stop.clone())),
        ];
        let drain_timeout = config.shutdown.timeout.get();
        Ok(Self { addresses, gateway, receivers, receivers_stop, api, stop, draining, drain_timeout })
    }

    /// The addresses that were bound.
    pub(crate) const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Ends it from the edge inwards, within the configured bound.
    pub(crate) async fn drain(self) -> Result<(), ServeError> {
        let timeout = self.drain_timeout;
        let drained = tokio::time::timeout(timeout, async move {
            self.draining.store(true, Ordering::Release);
            self.receivers_stop.cancel();
            server::end_receivers(self.receivers, tokio::time::Instant::now() + timeout / 2).await;
            let gateway = self.gateway;
            let flushed = tokio::task::spawn_blocking(move || gateway.drain()).await;
            flushed.map_err(|error| ServeError::Start { what: "the drain", detail: error.to_string() })?;
            self.stop.cancel();
            if let Err(error) = self.api.await {
                tracing::error!(%error, "the API ended badly");
            }
            Ok(())
        });
        drained.await.map_err(|_elapsed| ServeError::DrainTimeout(timeout))?
    }
}

/// Looks whether brokers can be reached until it is stopped.
async fn watch(gateway: Gateway, problem: Arc<Mutex<Option<String>>>, stop: CancellationToken) {
    loop {
        let asked = gateway.clone();
        let found = tokio::task::spawn_blocking(move || asked.problem(LOOK_TIMEOUT)).await.ok().flatten();
        *problem.lock().unwrap_or_else(PoisonError::into_inner) = found;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
