//! Alertmanager's API v2: what Prometheus, amtool and Grafana call.
//!
//! A router to be nested where the server wants it. Bodies are bounded; every refusal is JSON text as
//! Alertmanager's is. Not here: who may call (the server's middleware) and what calls mean (`engine.rs`).

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use model::time::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::alert::PostedAlert;
use crate::engine::{AlertFilter, AlertView};
use crate::error::AlertingError;
use crate::instant;
use crate::labels::LabelSet;
use crate::matcher::{self, Matcher, MatcherJson};
use crate::service::AlertingHandle;
use crate::silence::Silence;

/// Bytes of one request: ten thousand alerts of a kilobyte and a half.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Parameters of one request.
const PARAMETERS_MAX: usize = 128;

/// The routes below `/api/v2`.
pub fn router(handle: AlertingHandle) -> Router {
    let v2 = Router::new()
        .route("/status", get(status))
        .route("/receivers", get(receivers))
        .route("/alerts", get(alerts).post(post_alerts))
        .route("/alerts/groups", get(groups))
        .route("/silences", get(silences).post(post_silence))
        .route("/silence/{id}", get(silence).delete(delete_silence));
    Router::new()
        .nest("/api/v2", v2)
        .route("/-/healthy", get(async || "OK"))
        .route("/-/ready", get(async || "OK"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(handle)
}

/// A refusal.
struct Refusal(StatusCode, String);

impl From<AlertingError> for Refusal {
    fn from(error: AlertingError) -> Self {
        let status = match error {
            AlertingError::Invalid { .. } => StatusCode::BAD_REQUEST,
            AlertingError::NotFound { .. } => StatusCode::NOT_FOUND,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, answer(&Value::String(self.1))).into_response()
    }
}

fn bad(reason: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, reason.into())
}

fn answer(value: &Value) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "application/json")], value.to_string())
}

type Answer = Result<Response, Refusal>;

fn ok(value: &Value) -> Answer {
    Ok(answer(value).into_response())
}

fn parameters(query: Option<&str>) -> Result<Vec<(String, String)>, Refusal> {
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .into_owned()
        .take(PARAMETERS_MAX + 1)
        .collect();
    if pairs.len() > PARAMETERS_MAX {
        return Err(bad(format!("at most {PARAMETERS_MAX} parameters are read")));
    }
    Ok(pairs)
}

fn matchers(text: &str) -> Result<Vec<Matcher>, Refusal> {
    matcher::parse_all(text).map_err(|error| bad(format!("bad matcher format: {error}")))
}

fn alert_filter(query: Option<&str>) -> Result<AlertFilter, Refusal> {
    let mut filter = AlertFilter::default();
    for (name, value) in parameters(query)? {
        let flag = || value.parse().map_err(|_| bad(format!("{name} must be true or false")));
        match name.as_str() {
            "active" => filter.active = flag()?,
            "silenced" => filter.silenced = flag()?,
            "inhibited" => filter.inhibited = flag()?,
            "muted" => filter.muted = flag()?,
            // Alerts are placed when they are taken: there are no unprocessed ones to leave out.
            "unprocessed" => _ = flag()?,
            "filter" => filter.matchers.extend(matchers(&value)?),
            "receiver" => {
                let regex = regex::RegexBuilder::new(&format!("^(?:{value})$")).size_limit(1 << 20).build();
                filter.receiver =
                    Some(regex.map_err(|_| bad("failed to parse receiver param: no regular expression"))?);
            }
            _ => {}
        }
    }
    Ok(filter)
}

fn alert_json(view: &AlertView) -> Value {
    let alert = &view.alert;
    let suppressed = view.is_suppressed();
    let inhibited_by: Vec<String> = view.inhibited_by.iter().map(ToString::to_string).collect();
    let receivers: Vec<Value> = view.receivers.iter().map(|name| json!({"name": name})).collect();
    json!({
        "annotations": alert.annotations,
        "endsAt": instant::format_millis(alert.ends_at),
        "fingerprint": alert.fingerprint().to_string(),
        "receivers": receivers,
        "startsAt": instant::format_millis(alert.starts_at),
        "status": {
            "inhibitedBy": inhibited_by,
            "mutedBy": view.muted_by,
            "silencedBy": view.silenced_by,
            "state": if suppressed { "suppressed" } else { "active" },
        },
        "updatedAt": instant::format_millis(alert.updated_at),
        "generatorURL": alert.generator_url,
        "labels": alert.labels,
    })
}

async fn alerts(State(handle): State<AlertingHandle>, RawQuery(query): RawQuery) -> Answer {
    let views = handle.alerts(alert_filter(query.as_deref())?).await?;
    ok(&views.iter().map(alert_json).collect())
}

async fn groups(State(handle): State<AlertingHandle>, RawQuery(query): RawQuery) -> Answer {
    let groups = handle.groups(alert_filter(query.as_deref())?).await?;
    let groups = groups.iter().map(|group| {
        let alerts: Vec<Value> = group.alerts.iter().map(alert_json).collect();
        json!({"alerts": alerts, "labels": group.labels, "receiver": {"name": group.receiver}})
    });
    ok(&groups.collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AlertJson {
    labels: LabelSet,
    #[serde(default)]
    annotations: LabelSet,
    starts_at: Option<String>,
    ends_at: Option<String>,
    #[serde(rename = "generatorURL", default)]
    generator_url: String,
}

fn time(text: Option<&str>) -> Result<Option<Timestamp>, Refusal> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => instant::parse(text).map_err(bad),
    }
}

async fn post_alerts(State(handle): State<AlertingHandle>, body: Bytes) -> Answer {
    let posted: Vec<AlertJson> =
        serde_json::from_slice(&body).map_err(|error| bad(format!("parsing alerts body failed: {error}")))?;
    let alerts = posted.into_iter().map(|alert| {
        Ok(PostedAlert {
            starts_at: time(alert.starts_at.as_deref())?,
            ends_at: time(alert.ends_at.as_deref())?,
            labels: alert.labels,
            annotations: alert.annotations,
            generator_url: alert.generator_url,
        })
    });
    let alerts: Vec<PostedAlert> = alerts.collect::<Result<_, Refusal>>()?;
    let posted = handle.post_alerts(alerts).await?;
    if posted.refused.is_empty() {
        return Ok(StatusCode::OK.into_response());
    }
    Err(bad(posted.refused.join("; ")))
}

fn silence_json(silence: &Silence, now: Timestamp) -> Value {
    let matchers: Vec<MatcherJson> = silence.matchers.iter().map(MatcherJson::from).collect();
    json!({
        "id": silence.id,
        "status": {"state": silence.state(now).as_str()},
        "updatedAt": instant::format_millis(silence.updated_at),
        "comment": silence.comment,
        "createdBy": silence.created_by,
        "endsAt": instant::format_millis(silence.ends_at),
        "matchers": matchers,
        "startsAt": instant::format_millis(silence.starts_at),
    })
}

async fn silences(State(handle): State<AlertingHandle>, RawQuery(query): RawQuery) -> Answer {
    let mut filter = Vec::new();
    for (name, value) in parameters(query.as_deref())? {
        if name == "filter" {
            filter.extend(matchers(&value)?);
        }
    }
    let (silences, now) = handle.silences(filter).await?;
    ok(&silences.iter().map(|silence| silence_json(silence, now)).collect())
}

async fn silence(State(handle): State<AlertingHandle>, Path(id): Path<String>) -> Answer {
    let (silence, now) = handle.silence(id).await?;
    ok(&silence_json(&silence, now))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostedSilence {
    #[serde(default)]
    id: Option<String>,
    matchers: Vec<MatcherJson>,
    starts_at: String,
    ends_at: String,
    created_by: String,
    comment: String,
}

async fn post_silence(State(handle): State<AlertingHandle>, body: Bytes) -> Answer {
    let posted: PostedSilence =
        serde_json::from_slice(&body).map_err(|error| bad(format!("parsing silence body failed: {error}")))?;
    let matchers: Result<Vec<Matcher>, _> = posted.matchers.iter().map(Matcher::try_from).collect();
    let silence = Silence {
        id: posted.id.unwrap_or_default(),
        matchers: matchers.map_err(|error| bad(error.to_string()))?,
        starts_at: time(Some(&posted.starts_at))?.unwrap_or_default(),
        ends_at: time(Some(&posted.ends_at))?.unwrap_or_default(),
        updated_at: Timestamp(0),
        created_by: posted.created_by,
        comment: posted.comment,
    };
    let id = handle.put_silence(silence).await?;
    ok(&json!({"silenceID": id}))
}

async fn delete_silence(State(handle): State<AlertingHandle>, Path(id): Path<String>) -> Answer {
    match handle.expire_silence(id).await {
        Ok(()) => Ok(StatusCode::OK.into_response()),
        // What Alertmanager answers about one that is over.
        Err(AlertingError::Invalid { reason }) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason)),
        Err(error) => Err(error.into()),
    }
}

async fn receivers(State(handle): State<AlertingHandle>) -> Answer {
    let config = handle.config().await?;
    ok(&config.receivers.iter().map(|receiver| json!({"name": receiver.name})).collect())
}

async fn status(State(handle): State<AlertingHandle>) -> Answer {
    let config = handle.config().await?;
    ok(&json!({
        "cluster": {"status": "disabled", "peers": []},
        "config": {"original": config.masked},
        "uptime": instant::format_millis(handle.started_at()),
        "versionInfo": {
            "branch": "",
            "buildDate": "",
            "buildUser": "",
            "goVersion": "",
            "revision": "",
            "version": concat!("godseye-", env!("CARGO_PKG_VERSION")),
        },
    }))
}
