//! The doors that answers leave by: HTTP (SQL, what there is to ask, metrics, health, reload) and PostgreSQL's protocol.
//!
//! The door opens before the store does, so that probes see a replay's progress: until
//! [`Doors::open`] is called, `/readyz` tells how far it is and everything that needs data answers
//! 503 with `Retry-After`.
//!
//! Not here: what a query is (`query`), OTLP (`ingest`), and the web UI, which is not built yet.
//!
//! # Layout
//! - [`auth`]: tokens to tenants, for every door of the process
//! - `sql`: `POST /api/v1/sql`, streamed; one trace by its id
//! - `tail`: `GET /api/v1/tail`: rows as they come
//! - `discover`: `GET /api/v1/tables` and `/api/v1/attributes`: what there is to ask
//! - `formats`, `encoding`, `negotiate`: how an answer is written, compressed, and which way a client wants it
//! - [`pg`]: the PostgreSQL door
//! - `listen`: HTTP connections, and what bounds them
//! - `mounted`: `/alertmanager`, `/api/v1/slos`, `/api/v1/alerts`, `/api/v1/silences`: routes that the binary brings along
//! - `probes`: `/healthz`, `/readyz`, `/metrics`, `/-/reload`, `/-/rebuild-derived`, `/`
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod auth;
mod discover;
mod encoding;
mod formats;
mod listen;
mod mounted;
mod negotiate;
pub mod pg;
mod probes;
mod sql;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

pub use listen::serve;

/// A statement's text, bytes: the guard takes 64 KiB; a little more lets it say so itself.
const STATEMENT_BYTES_MAX: usize = 128 << 10;

/// When a client that came too early should come back.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("2");

/// Whether the server can take telemetry and answer questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyState {
    /// It can.
    Ready,
    /// It is ending.
    Draining,
    /// It is reading its log.
    Replaying {
        /// Bytes read.
        bytes_done: u64,
        /// Bytes there are; 0 until known.
        bytes_total: u64,
    },
}

/// Who knows the state.
pub trait Readiness: Send + Sync {
    /// The state now.
    fn state(&self) -> ReadyState;

    /// What is wrong though it works: telemetry that is lost or set aside, a sentence each.
    fn degraded(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Reads the configuration again; the text says why it could not.
pub type ReloadFn = dyn Fn() -> Result<(), String> + Send + Sync;

/// Has a tenant's derived tables derived anew; the text says why it cannot.
pub type RebuildFn = dyn Fn(&model::tenant::TenantId) -> Result<(), String> + Send + Sync;

/// What the doors need from the start.
pub struct Deps {
    /// For `/readyz`.
    pub readiness: Arc<dyn Readiness>,
    /// For `/api`, `/metrics` and `/-/reload`.
    pub authenticator: Arc<auth::Authenticator>,
    /// Limits of one query.
    pub limits: query::Limits,
    /// Limits of a query whose client asks for more rows than that.
    pub export: Export,
    /// How long a client may read nothing of what is sent to it.
    pub send_timeout: std::time::Duration,
    /// For `/-/reload`.
    pub reload: Arc<ReloadFn>,
}

/// Limits of exports: answers of which a client wants more rows than everybody gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Rows a client may ask for.
    pub rows_max: u64,
    /// From admission to the last row.
    pub timeout: std::time::Duration,
    /// Exports at once. Each holds one of the engine's permits for as long as its client reads, so fewer than those.
    pub at_once: usize,
}

impl Default for Export {
    fn default() -> Self {
        Self { rows_max: 100_000_000, timeout: std::time::Duration::from_secs(600), at_once: 2 }
    }
}

/// What the doors need once the store is open.
struct Opened {
    engine: Arc<query::Engine>,
    registry: Arc<Registry>,
}

/// What a process without a store has.
struct WithoutStore {
    registry: Arc<Registry>,
    why: &'static str,
}

struct Shared {
    deps: Deps,
    opened: OnceLock<Opened>,
    without_store: OnceLock<WithoutStore>,
    exports: Arc<Semaphore>,
    rebuild: OnceLock<Arc<RebuildFn>>,
    alerting: OnceLock<mounted::Mounted>,
}

/// The doors. Cheap to clone.
#[derive(Clone)]
pub struct Doors(Arc<Shared>);

impl Doors {
    /// Doors that are still closed.
    #[must_use]
    pub fn new(deps: Deps) -> Self {
        let exports = Arc::new(Semaphore::new(deps.export.at_once));
        Self(Arc::new(Shared {
            deps,
            opened: OnceLock::new(),
            without_store: OnceLock::new(),
            rebuild: OnceLock::new(),
            alerting: OnceLock::new(),
            exports,
        }))
    }

    /// Opens them. A second call changes nothing.
    pub fn open(&self, engine: Arc<query::Engine>, registry: Arc<Registry>) {
        drop(self.0.opened.set(Opened { engine, registry }));
    }

    /// Opens probes and metrics alone: there is no store in this process, and what needs one says why. A second call
    /// changes nothing.
    pub fn open_without_store(&self, registry: Arc<Registry>, why: &'static str) {
        drop(self.0.without_store.set(WithoutStore { registry, why }));
    }

    /// The metrics, once the doors are open.
    fn registry(&self) -> Result<&Registry, Box<Response>> {
        match self.0.without_store.get() {
            Some(without) => Ok(&without.registry),
            None => self.opened().map(|opened| &*opened.registry),
        }
    }

    /// Lets people have derived tables derived anew. A second call changes nothing.
    pub fn offer_rebuild(&self, rebuild: Arc<RebuildFn>) {
        drop(self.0.rebuild.set(rebuild));
    }

    /// Lets a tenant reach alerting's routes, which have their whole paths. A second call changes nothing.
    pub fn offer_alerting(&self, tenant: model::tenant::TenantId, router: Router) {
        drop(self.0.alerting.set(mounted::Mounted { router, tenant }));
    }

    /// Every route.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/api/v1/sql", post(sql::sql))
            .route("/api/v1/traces/{id}", get(sql::trace))
            .route("/api/v1/tail", get(tail::tail))
            .route("/api/v1/tables", get(discover::tables))
            .route("/api/v1/attributes", get(discover::attributes))
            .route("/alertmanager/{*path}", any(mounted::alerting))
            .route("/api/v1/slos", any(mounted::alerting))
            .route("/api/v1/slos/{name}", any(mounted::alerting))
            .route("/api/v1/alerts", any(mounted::alerting))
            .route("/api/v1/alerts/history", any(mounted::alerting))
            .route("/api/v1/silences", any(mounted::alerting))
            .route(mounted::SLACK, any(mounted::alerting))
            .route("/metrics", get(probes::metrics))
            .route("/healthz", get(probes::healthz))
            .route("/readyz", get(probes::readyz))
            .route("/-/reload", post(probes::reload))
            .route("/-/rebuild-derived", post(probes::rebuild_derived))
            .route("/", get(probes::index))
            .fallback(|| async { error(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path", None) })
            .layer(DefaultBodyLimit::max(STATEMENT_BYTES_MAX))
            .layer(middleware::map_response(secure))
            .with_state(self.clone())
    }

    fn opened(&self) -> Result<&Opened, Box<Response>> {
        if let Some(without) = self.0.without_store.get() {
            return Err(Box::new(error(StatusCode::NOT_IMPLEMENTED, "no_store", without.why, None)));
        }
        self.0.opened.get().ok_or_else(|| {
            let message = "the server is still reading its log; GET /readyz tells how far it is";
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "replaying", message, None);
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            Box::new(response)
        })
    }

    fn tenant(&self, headers: &HeaderMap, scope: auth::Scope) -> Result<model::tenant::TenantId, Box<Response>> {
        let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
        self.0.deps.authenticator.authorize(authorization, scope).map_err(|refused| {
            let (status, code) = match refused {
                auth::AuthError::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
                auth::AuthError::PermissionDenied => (StatusCode::FORBIDDEN, "permission_denied"),
            };
            let mut response = error(status, code, &refused.to_string(), None);
            if status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Box::new(response)
        })
    }
}

/// Who a request is from, for the engine's queue: a token is a client. Where none is wanted nobody is kept apart, and
/// programs are told from each other by the name that they give.
fn client(doors: &Doors, tenant: model::tenant::TenantId, headers: &HeaderMap) -> query::Client {
    let shown = if doors.0.deps.authenticator.is_open() { header::USER_AGENT } else { header::AUTHORIZATION };
    query::Client::new(tenant, headers.get(shown).and_then(|value| value.to_str().ok()))
}

/// An error as every client of the API gets it.
fn error(status: StatusCode, code: &str, message: &str, hint: Option<&str>) -> Response {
    let mut body = serde_json::json!({ "error": { "code": code, "message": message } });
    if let Some(hint) = hint {
        body["error"]["hint"] = hint.into();
    }
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, format!("{body}\n")).into_response()
}

/// Headers every answer has: nothing here is to be framed, sniffed, cached or scripted.
async fn secure(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, HeaderValue); 5] = [
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}
