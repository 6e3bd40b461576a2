//! What is answered about alerts and SLOs over HTTP: Alertmanager's API as it is, and three views of our own.
//!
//! The doors decide who may ask. Times are milliseconds since the epoch, as the names say. Not here: SQL tables of the
//! same (`tables.rs`), and changes, which Alertmanager's API takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use alerting::engine::{AlertFilter, AlertView};
use alerting::error::AlertingError;
use alerting::matcher::{self, Matcher, MatcherJson};
use alerting::service::AlertingHandle;
use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{StatusCode, header};
use model::tenant::TenantId;
use model::time::Timestamp;
use serde_json::{Value, json};
use slo::archive::{Archive, StoredAlert};
use slo::engine::{Board, Status};

use super::lock;

/// Entries of the history that one answer has.
const HISTORY_MAX: u32 = 10_000;

const NANOS_PER_MS: i64 = 1_000_000;

struct Views {
    handle: AlertingHandle,
    board: Board,
    archive: Arc<Mutex<Archive>>,
    tenant: TenantId,
}

/// Every route, with its whole path.
pub(super) fn routes(handle: AlertingHandle, board: Board, archive: Arc<Mutex<Archive>>, tenant: TenantId) -> Router {
    let views = Arc::new(Views { handle: handle.clone(), board, archive, tenant });
    let alertmanager = Router::new().nest("/alertmanager", alerting::api::router(handle));
    Router::new()
        .route("/api/v1/slos", get(slos))
        .route("/api/v1/slos/{name}", get(slo))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/alerts/history", get(history))
        .route("/api/v1/silences", get(silences))
        .with_state(views)
        .merge(alertmanager)
}

fn answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

pub(super) fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    (status, answer(&json!({ "error": { "code": code, "message": message } }))).into_response()
}

fn failed(error: &AlertingError) -> Response {
    let (status, code) = match error {
        AlertingError::Invalid { .. } => (StatusCode::BAD_REQUEST, "bad_parameter"),
        AlertingError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
        error if error.is_retryable() => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    refuse(status, code, &error.to_string())
}

/// One SLO with everything that is known of it.
fn status_json(status: &Status) -> Value {
    let mut report = json!(status.report());
    report["at_ms"] = (status.at.0 / NANOS_PER_MS).into();
    report["firing"] = status.objectives.iter().any(|objective| objective.firing).into();
    let objectives = status.slo.objectives.iter().zip(&status.objectives).enumerate();
    for (index, (objective, of)) in objectives {
        report["objectives"][index]["firing"] = of.firing.into();
        report["objectives"][index]["bad_rows_sql"] = json!(objective.indicator.bad_rows_sql());
    }
    report
}

async fn slos(State(views): State<Arc<Views>>) -> Response {
    let slos: Vec<Value> = views.board.statuses().iter().map(status_json).collect();
    answer(&json!({ "slos": slos }))
}

async fn slo(State(views): State<Arc<Views>>, Path(name): Path<String>) -> Response {
    match views.board.statuses().iter().find(|status| status.slo.name == name) {
        Some(status) => answer(&status_json(status)),
        None => refuse(StatusCode::NOT_FOUND, "not_found", "there is no SLO of this name, or none was judged yet"),
    }
}

/// The conditions of `filter=`, each once or more.
fn filters(query: Option<&str>) -> Result<Vec<Matcher>, Box<Response>> {
    let bad = |message: String| Box::new(refuse(StatusCode::BAD_REQUEST, "bad_parameter", &message));
    let mut matchers = Vec::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != "filter" {
            return Err(bad("expected filter=CONDITION, for example filter=alertname%3D\"Down\"".to_owned()));
        }
        let spaced = value.replace('+', " ");
        let value = percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy();
        matchers.extend(matcher::parse_all(&value).map_err(|error| bad(format!("filter: {error}")))?);
    }
    Ok(matchers)
}

/// Where an alert comes from, by the name of what makes it.
pub(super) fn source(rule: Option<&str>) -> &'static str {
    match rule {
        Some(rule) if rule.starts_with("slo/") => "slo",
        Some(_) => "rule",
        None => "posted",
    }
}

/// What an alert that fires is, as one word.
pub(super) fn state_of(view: &AlertView) -> &'static str {
    if !view.silenced_by.is_empty() {
        "silenced"
    } else if !view.inhibited_by.is_empty() {
        "inhibited"
    } else if !view.muted_by.is_empty() {
        "muted"
    } else {
        "firing"
    }
}

fn view_json(view: &AlertView, known: &BTreeMap<&slo::rules::state::Labels, &StoredAlert>) -> Value {
    let alert = &view.alert;
    let labels: slo::rules::state::Labels =
        alert.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let stored = known.get(&labels);
    json!({
        "fingerprint": alert.fingerprint().to_string(),
        "state": state_of(view),
        "source": source(stored.map(|stored| stored.rule.as_str())),
        "labels": labels,
        "annotations": alert.annotations,
        "value": stored.map(|stored| stored.alert.value).filter(|value| value.is_finite()),
        "since_ms": alert.starts_at.0 / NANOS_PER_MS,
        "updated_at_ms": alert.updated_at.0 / NANOS_PER_MS,
        "receivers": view.receivers,
        "silenced_by": view.silenced_by,
        "inhibited_by": view.inhibited_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "muted_by": view.muted_by,
        "generator_url": alert.generator_url,
    })
}

fn pending_json(stored: &StoredAlert) -> Value {
    let labels: alerting::labels::LabelSet =
        stored.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    json!({
        "fingerprint": labels.fingerprint().to_string(),
        "state": "pending",
        "source": source(Some(&stored.rule)),
        "labels": labels,
        "annotations": stored.alert.annotations,
        "value": Some(stored.alert.value).filter(|value| value.is_finite()),
        "since_ms": stored.alert.active_at.0 / NANOS_PER_MS,
        "updated_at_ms": stored.seen_at.0 / NANOS_PER_MS,
    })
}

/// `GET /api/v1/alerts`: what fires, and what is pending in rules and SLOs as of their last write.
async fn alerts(State(views): State<Arc<Views>>, RawQuery(query): RawQuery) -> Response {
    let matchers = match filters(query.as_deref()) {
        Ok(matchers) => matchers,
        Err(response) => return *response,
    };
    let filter = AlertFilter { matchers: matchers.clone(), ..AlertFilter::default() };
    let shown = match views.handle.alerts(filter).await {
        Ok(shown) => shown,
        Err(error) => return failed(&error),
    };
    let loading = Arc::clone(&views);
    let stored = tokio::task::spawn_blocking(move || lock(&loading.archive).load_alerts(&loading.tenant)).await;
    let stored = match stored {
        Ok(Ok(stored)) => stored,
        Ok(Err(error)) => return refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &error.to_string()),
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal", &error.to_string()),
    };
    let known: BTreeMap<&slo::rules::state::Labels, &StoredAlert> =
        stored.iter().map(|stored| (&stored.labels, stored)).collect();
    let mut alerts: Vec<Value> = shown.iter().map(|view| view_json(view, &known)).collect();
    let pending = stored.iter().filter(|stored| stored.alert.state == slo::rules::state::State::Pending);
    alerts.extend(pending.map(pending_json).filter(|alert| {
        let labels: alerting::labels::LabelSet = serde_json::from_value(alert["labels"].clone()).unwrap_or_default();
        matcher::all_match(&matchers, &labels)
    }));
    answer(&json!({ "alerts": alerts }))
}

/// `GET /api/v1/alerts/history`: what began and ended, oldest first; `since_ms=` begins later.
async fn history(State(views): State<Arc<Views>>, RawQuery(query): RawQuery) -> Response {
    let since = query.as_deref().unwrap_or_default().strip_prefix("since_ms=").map_or(Ok(0), str::parse::<i64>);
    let Ok(since_ms) = since else {
        return refuse(StatusCode::BAD_REQUEST, "bad_parameter", "since_ms is not a whole number of milliseconds");
    };
    match views.handle.history(Timestamp(since_ms.saturating_mul(NANOS_PER_MS)), HISTORY_MAX).await {
        Ok(events) => {
            let events = events.iter().map(|(at, event, labels)| {
                let event = match event {
                    alerting::repository::HistoryEvent::Firing => "firing",
                    alerting::repository::HistoryEvent::Resolved => "resolved",
                };
                json!({ "at_ms": at.0 / NANOS_PER_MS, "event": event, "labels": labels })
            });
            answer(&json!({ "events": events.collect::<Vec<_>>() }))
        }
        Err(error) => failed(&error),
    }
}

async fn silences(State(views): State<Arc<Views>>, RawQuery(query): RawQuery) -> Response {
    let matchers = match filters(query.as_deref()) {
        Ok(matchers) => matchers,
        Err(response) => return *response,
    };
    match views.handle.silences(matchers).await {
        Ok((silences, now)) => {
            let silences = silences.iter().map(|silence| {
                json!({
                    "id": silence.id,
                    "state": silence.state(now).as_str(),
                    "matchers": silence.matchers.iter().map(MatcherJson::from).collect::<Vec<_>>(),
                    "starts_at_ms": silence.starts_at.0 / NANOS_PER_MS,
                    "ends_at_ms": silence.ends_at.0 / NANOS_PER_MS,
                    "updated_at_ms": silence.updated_at.0 / NANOS_PER_MS,
                    "created_by": silence.created_by,
                    "comment": silence.comment,
                })
            });
            answer(&json!({ "silences": silences.collect::<Vec<_>>() }))
        }
        Err(error) => failed(&error),
    }
}
