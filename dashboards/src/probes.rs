//! What operators and their machines ask: is it alive, is it ready, how is it doing.
//!
//! The health probes need no token: orchestrators have none, and they tell a state and nothing else.
//! Metrics, reloading and rebuilding need one where there are any: metrics tell how much of what everyone sends,
//! and scrapers can carry a credential.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::auth::Scope;
use crate::{Doors, RETRY_AFTER_SECONDS, ReadyState, error};

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: telemetry is taken and questions are answered.
pub(crate) async fn readyz(State(doors): State<Doors>) -> Response {
    let (status, body) = match doors.0.deps.readiness.state() {
        // The log is read a moment before the doors open.
        ReadyState::Ready if doors.0.opened.get().is_some() || doors.0.without_store.get().is_some() => {
            let mut body = serde_json::json!({ "status": "ready" });
            // It works, so it is ready; but somebody should look.
            let degraded = doors.0.deps.readiness.degraded();
            if !degraded.is_empty() {
                body["degraded"] = degraded.into();
            }
            (StatusCode::OK, body)
        }
        ReadyState::Ready => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({ "status": "starting" })),
        ReadyState::Draining => (StatusCode::SERVICE_UNAVAILABLE, serde_json::json!({ "status": "draining" })),
        ReadyState::Replaying { bytes_done, bytes_total } => (
            StatusCode::SERVICE_UNAVAILABLE,
            serde_json::json!({ "status": "replaying", "replayed_bytes": bytes_done, "total_bytes": bytes_total }),
        ),
    };
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    response
}

/// `GET /metrics`: Prometheus and OpenMetrics text.
pub(crate) async fn metrics(State(doors): State<Doors>, headers: HeaderMap) -> Response {
    if let Err(response) = doors.tenant(&headers, Scope::Query) {
        return *response;
    }
    let registry = match doors.registry() {
        Ok(registry) => registry,
        Err(response) => return *response,
    };
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => {
            const OPEN_METRICS: HeaderValue =
                HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
        }
        Err(_format) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "metrics cannot be written", None),
    }
}

/// `POST /-/reload`: read the configuration again.
pub(crate) async fn reload(State(doors): State<Doors>, headers: HeaderMap) -> Response {
    if let Err(response) = doors.tenant(&headers, Scope::Query) {
        return *response;
    }
    match (doors.0.deps.reload)() {
        Ok(()) => "reloaded\n".into_response(),
        Err(report) => {
            let hint = Some("the running configuration stays in force");
            error(StatusCode::UNPROCESSABLE_ENTITY, "bad_configuration", &report, hint)
        }
    }
}

/// `POST /-/rebuild-derived`: derive `span_metrics` and `service_edges` of the token's tenant anew
/// from its spans. That goes on in the background; answers carry a warning until it is done.
pub(crate) async fn rebuild_derived(State(doors): State<Doors>, headers: HeaderMap) -> Response {
    let tenant = match doors.tenant(&headers, Scope::Query) {
        Ok(tenant) => tenant,
        Err(response) => return *response,
    };
    if let Err(response) = doors.opened() {
        return *response;
    }
    match doors.0.rebuild.get().map(|rebuild| rebuild(&tenant)) {
        Some(Ok(())) => (StatusCode::ACCEPTED, "deriving span_metrics and service_edges anew\n").into_response(),
        Some(Err(why)) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &format!("cannot derive anew: {why}"), None)
        }
        None => error(StatusCode::NOT_FOUND, "not_found", "this server derives nothing", None),
    }
}

/// `GET /`: which doors there are.
pub(crate) async fn index() -> &'static str {
    "\
GodsEye

  POST /api/v1/sql?format=json|ndjson|csv|arrow|parquet    SQL in the body
  GET  /api/v1/traces/ID    one trace, in the order of its tree
  GET  /api/v1/tables                                      what there is to ask
  GET  /api/v1/attributes?table=spans&prefix=http.         which attributes there are
  GET  /api/v1/slos  /api/v1/alerts  /api/v1/silences      what is promised, what breaks, what is silenced
       /alertmanager/api/v2                                Alertmanager's API
  GET  /metrics                                            about this process
  GET  /healthz  /readyz                                   probes
  POST /-/reload                                           read the configuration again
  POST /-/rebuild-derived                                  derive span_metrics and service_edges anew

  curl -d 'SELECT count(*) FROM spans' http://HOST/api/v1/sql
"
}
