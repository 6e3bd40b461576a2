//! `POST /api/v1/slack/interactions`: somebody pressed a button of a message in Slack.
//!
//! The request is known by its signature instead of a token. Slack waits three seconds, so the silence is made first, and the
//! message is drawn anew afterwards, at the address that came with the press. Not here: what a good signature is and what a
//! press asks for (`alerting::slack_action`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alerting::notify::http::{HttpClient, NetworkPolicy};
use alerting::service::AlertingHandle;
use alerting::slack_action::{self, BODY_BYTES_MAX, Press, Refused, Seen};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use model::time::{Clock, Timestamp};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::lock;
use crate::config::Secret;

/// How long the message may take to be drawn anew; Slack takes it for half an hour, nobody looks at it for that long.
const UPDATE_WITHIN: Duration = Duration::from_secs(10);

/// Messages that are drawn anew at the same time. One more stays as it is: its silence holds all the same.
const UPDATES_MAX: usize = 16;

/// How long a request may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(3);

struct Listener {
    handle: AlertingHandle,
    secret: Secret,
    seen: Mutex<Seen>,
    client: HttpClient,
    clock: Clock,
    updates: Arc<Semaphore>,
}

/// The route.
///
/// # Errors
/// When the HTTP client cannot be built.
pub(super) fn routes(
    handle: AlertingHandle,
    secret: Secret,
    policy: NetworkPolicy,
) -> Result<Router, alerting::error::AlertingError> {
    let clock = Clock::System;
    let seen = Mutex::new(Seen::new(clock.now()));
    let updates = Arc::new(Semaphore::new(UPDATES_MAX));
    let listener = Listener { handle, secret, seen, client: HttpClient::new(policy)?, clock, updates };
    Ok(Router::new().route("/api/v1/slack/interactions", post(pressed)).with_state(Arc::new(listener)))
}

async fn pressed(State(listener): State<Arc<Listener>>, headers: HeaderMap, body: Body) -> Response {
    let Ok(Ok(body)) = tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_BYTES_MAX)).await else {
        return super::api::refuse(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the body is too large, too slow or broken off",
        );
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (timestamp, signature) = (header("x-slack-request-timestamp"), header("x-slack-signature"));
    let now = listener.clock.now();
    let secret = listener.secret.expose().as_bytes();
    let verified = lock(&listener.seen).verify(secret, timestamp, signature, &body, now);
    match verified.and_then(|()| slack_action::press(&body)) {
        Ok(press) => silence(&listener, press).await,
        Err(refused) => {
            tracing::warn!(reason = %refused, "a request of Slack was refused");
            let (status, code) = match refused {
                Refused::Unsigned(_) => (StatusCode::UNAUTHORIZED, "unauthenticated"),
                Refused::Full => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
                Refused::Strange(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            };
            super::api::refuse(status, code, &refused.to_string())
        }
    }
}

async fn silence(listener: &Listener, press: Press) -> Response {
    let said = match listener.handle.silence_group(press.clone()).await {
        Ok(Some(ends_at)) => {
            tracing::info!(user = press.user, group = press.group, "alerts were silenced by a button in Slack");
            press.update(&silenced(&press.user_id, ends_at))
        }
        Ok(None) => Press::refusal("Nothing was silenced: these alerts are over, or have no label in common."),
        Err(error) => {
            tracing::error!(%error, "a button in Slack could not silence its alerts");
            Press::refusal(&format!("Nothing was silenced: {error}. Press it again, or use `godseye silence add`."))
        }
    };
    tell(listener, press.response_url, said);
    // Slack shows an error to the person for anything but an empty success.
    StatusCode::OK.into_response()
}

/// What the message says instead of its buttons. Slack shows the time in each reader's time zone.
fn silenced(user_id: &str, ends_at: Timestamp) -> String {
    let seconds = ends_at.0.div_euclid(Timestamp::NANOS_PER_SECOND);
    let mut utc = String::new();
    query::render::write_time(seconds * Timestamp::NANOS_PER_SECOND, &mut utc);
    format!(":mute: Silenced by <@{user_id}> until <!date^{seconds}^{{date_short_pretty}} {{time}}|{utc}>")
}

/// Sends another form of the message, in the background.
fn tell(listener: &Listener, url: String, message: Value) {
    let Ok(turn) = Arc::clone(&listener.updates).try_acquire_owned() else {
        tracing::warn!("a message in Slack keeps its buttons: too many are drawn anew already");
        return;
    };
    let client = listener.client.clone();
    tokio::spawn(async move {
        let body = message.to_string().into_bytes();
        let sent = tokio::time::timeout(UPDATE_WITHIN, client.post(&url, "application/json; charset=utf-8", &[], body));
        let failed = match sent.await {
            Ok(answer) => answer.and_then(alerting::notify::http::Answer::success).err().map(|failure| failure.message),
            Err(_) => Some("it takes too long".to_owned()),
        };
        if let Some(reason) = failed {
            tracing::warn!(reason, "a message in Slack keeps its buttons; what they asked for is done");
        }
        drop(turn);
    });
}
