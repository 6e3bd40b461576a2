//! PagerDuty Events v2: one incident a group, triggered and resolved by the same key.
//!
//! Not here: retries.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::http::HttpClient;
use super::{Context, Sent, cut, headers, secret};
use crate::config::PagerDutyConfig;
use crate::notification::Status;
use crate::outbox::SendFailure;
use crate::template::Data;

/// Characters of a summary that PagerDuty takes.
const SUMMARY_CHARS_MAX: usize = 1_024;

/// Bytes of an event that PagerDuty takes; above it the details are left out.
const EVENT_BYTES_MAX: usize = 512 * 1_000;

/// The incident's key: the same for all messages of a group, as Alertmanager makes it.
#[must_use]
pub fn dedup_key(group_key: &str) -> String {
    hex::encode(Sha256::digest(group_key))
}

/// The event, with the key of the service put in by the caller.
pub(crate) fn event(context: &Context<'_>, config: &PagerDutyConfig) -> Value {
    let data = Data::new(context.notification, context.external_url);
    let expand = |source: &str| context.expand(source, &data);
    let resolved = context.notification.status() == Status::Resolved;
    let severity = match expand(&config.severity).trim() {
        known @ ("critical" | "error" | "warning" | "info") => known.to_owned(),
        _ => "error".to_owned(),
    };
    let mut payload = json!({
        "summary": cut(&expand(&config.description), SUMMARY_CHARS_MAX),
        "source": expand(&config.source),
        "severity": severity,
        "timestamp": crate::instant::format(model::time::Timestamp(context.notification.at)),
    });
    for (key, source) in [("component", &config.component), ("group", &config.group), ("class", &config.class)] {
        let value = expand(source);
        if !value.is_empty() {
            payload[key] = value.into();
        }
    }
    let details: Map<String, Value> =
        config.details.iter().map(|(name, source)| (name.clone(), expand(source).into())).collect();
    payload["custom_details"] = Value::Object(details);
    let web =
        |text: String| url::Url::parse(text.trim()).is_ok_and(|url| url.scheme().starts_with("http")).then_some(text);
    let links: Vec<Value> = config
        .links
        .iter()
        .filter_map(|(href, text)| Some(json!({"href": web(expand(href))?, "text": expand(text)})))
        .collect();
    let images: Vec<Value> = config
        .images
        .iter()
        .filter_map(|(src, href, alt)| {
            Some(json!({"src": web(expand(src))?, "href": expand(href), "alt": expand(alt)}))
        })
        .collect();
    json!({
        "event_action": if resolved { "resolve" } else { "trigger" },
        "dedup_key": dedup_key(&context.notification.group_key),
        "client": expand(&config.client),
        "client_url": expand(&config.client_url),
        "links": links,
        "images": images,
        "payload": payload,
    })
}

pub(super) async fn send(
    context: &Context<'_>,
    config: &PagerDutyConfig,
    client: &HttpClient,
) -> Result<Sent, SendFailure> {
    let mut event = event(context, config);
    event["routing_key"] = secret(&config.routing_key).await?.expose().into();
    let mut body = event.to_string().into_bytes();
    if body.len() > EVENT_BYTES_MAX {
        event["payload"]["custom_details"] = json!({"error": "the details were too large for PagerDuty"});
        body = event.to_string().into_bytes();
    }
    let headers = headers(&config.http).await?;
    client.post(&config.url, "application/json", &headers, body).await?.success()?;
    Ok(Sent::default())
}
