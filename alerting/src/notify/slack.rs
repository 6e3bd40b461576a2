//! Slack: incoming webhooks, and the Web API where there is a token: one message for a group, updated in
//! place, with its timeline in the thread.
//!
//! What comes from telemetry is escaped before templates see it, so no label mentions a channel or
//! disguises a link; what a template itself says is the configuration's and stays. Not here: retries.

use serde_json::{Value, json};

use super::http::{Answer, HttpClient};
use super::{Context, Sent, cut, headers, secret};
use crate::config::SlackConfig;
use crate::notification::{Reason, Status};
use crate::outbox::SendFailure;
use crate::secret::Secret;
use crate::slack_action;
use crate::template::Data;

/// Slack's limits, in characters, and counts.
const SECTION_CHARS_MAX: usize = 3_000;
const FIELD_CHARS_MAX: usize = 2_000;
const TEXT_CHARS_MAX: usize = 4_000;
const CONTEXT_CHARS_MAX: usize = 2_000;
const URL_CHARS_MAX: usize = 3_000;
const SECTION_FIELDS_MAX: usize = 10;

/// Errors of the Web API after which another attempt may do better.
const RETRYABLE: [&str; 7] = [
    "ratelimited",
    "rate_limited",
    "internal_error",
    "fatal_error",
    "request_timeout",
    "service_unavailable",
    "team_added_to_org",
];

/// Makes a text inert in Slack's markup: exactly these three characters mean something.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// An address as the target of a link: nothing in it may end the link.
fn link_target(url: &str) -> Option<String> {
    let url = url::Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let url = url.to_string().replace('<', "%3C").replace('>', "%3E").replace('|', "%7C");
    (url.chars().count() <= URL_CHARS_MAX).then_some(url)
}

/// The message: text for notifications, and blocks beside a coloured bar.
pub(crate) fn message(context: &Context<'_>, config: &SlackConfig) -> Value {
    let notification = context.notification;
    let inert = Data::escaped(notification, context.external_url, escape);
    // Addresses are no markup: they are checked instead of escaped.
    let plain = Data::new(notification, context.external_url);
    let expand = |source: &str| context.expand(source, &inert);

    let title = expand(&config.title);
    let title = match link_target(&context.expand(&config.title_link, &plain)) {
        // A line break or a bar would end the link's text.
        Some(url) => format!("*<{url}|{}>*", title.replace(['\n', '\r', '|', '<', '>'], " ")),
        None => format!("*{title}*"),
    };
    let mut blocks = Vec::new();
    let mut section = |text: &str, chars_max: usize| {
        if !text.trim().is_empty() {
            blocks.push(json!({"type": "section", "text": {"type": "mrkdwn", "text": cut(text.trim(), chars_max)}}));
        }
    };
    section(&expand(&config.pretext), SECTION_CHARS_MAX);
    section(&title, SECTION_CHARS_MAX);
    section(&expand(&config.text), SECTION_CHARS_MAX);
    for fields in config.fields.chunks(SECTION_FIELDS_MAX) {
        let fields: Vec<Value> = fields
            .iter()
            .map(|field| {
                let text = format!("*{}*\n{}", expand(&field.title), expand(&field.value));
                json!({"type": "mrkdwn", "text": cut(&text, FIELD_CHARS_MAX)})
            })
            .collect();
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    for (source, alt) in [(&config.image_url, "image"), (&config.thumb_url, "thumbnail")] {
        if let Some(url) = link_target(&context.expand(source, &plain)) {
            blocks.push(json!({"type": "image", "image_url": url, "alt_text": alt}));
        }
    }
    let footer = expand(&config.footer);
    if !footer.trim().is_empty() {
        let element = json!({"type": "mrkdwn", "text": cut(footer.trim(), CONTEXT_CHARS_MAX)});
        blocks.push(json!({"type": "context", "elements": [element]}));
    }
    if context.slack_buttons && notification.status() == Status::Firing && notification.reason != Reason::Digest {
        blocks.push(slack_action::buttons(&notification.group_key));
    }
    let fallback = expand(&config.fallback);
    let color = match expand(&config.color).trim() {
        "danger" => "#c5221f".to_owned(),
        "good" => "#188038".to_owned(),
        "warning" => "#f29900".to_owned(),
        other => other.to_owned(),
    };
    let mut message = json!({
        "text": cut(&fallback, TEXT_CHARS_MAX),
        "attachments": [{"color": color, "fallback": cut(&fallback, TEXT_CHARS_MAX), "blocks": blocks}],
        "link_names": config.link_names,
        "unfurl_links": false,
    });
    let optional = [
        ("channel", &config.channel),
        ("username", &config.username),
        ("icon_emoji", &config.icon_emoji),
        ("icon_url", &config.icon_url),
    ];
    for (key, source) in optional {
        let value = context.expand(source, &plain);
        if !value.trim().is_empty() {
            message[key] = value.trim().into();
        }
    }
    message
}

/// The line of the timeline that says what changed.
fn timeline(context: &Context<'_>) -> String {
    let notification = context.notification;
    let firing = notification.alerts.iter().filter(|alert| alert.status == Status::Firing).count();
    let resolved = notification.alerts.len() - firing;
    let what = match notification.reason {
        Reason::First => "Firing",
        Reason::NewAlerts => "More alerts fire",
        Reason::AllResolved => "All resolved",
        Reason::NewResolved => "Some are resolved",
        Reason::Repeat => "Still firing",
        Reason::Digest => "Digest",
    };
    format!("{what}: {firing} firing, {resolved} resolved")
}

/// What the Web API says: HTTP's status, then `ok`.
fn api_answer(answer: Answer) -> Result<Value, SendFailure> {
    let retry_after = answer.retry_after;
    let answer = answer.success()?;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    if body["ok"] == true {
        return Ok(body);
    }
    let error = body["error"].as_str().unwrap_or("no reason given");
    let error: String = error.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(80).collect();
    Err(SendFailure {
        message: format!("Slack says {error}"),
        retryable: RETRYABLE.contains(&error.as_str()),
        retry_after,
    })
}

pub(super) async fn send(
    context: &Context<'_>,
    config: &SlackConfig,
    client: &HttpClient,
    reference: Option<&str>,
) -> Result<Sent, SendFailure> {
    let url = secret(&config.api_url).await?;
    let mut headers = headers(&config.http).await?;
    let message = message(context, config);
    let Some(token) = &config.app_token else {
        let body = message.to_string().into_bytes();
        client.post(url.expose(), "application/json", &headers, body).await?.success()?;
        return Ok(Sent::default());
    };
    let token = secret(token).await?;
    headers.push(("authorization".to_owned(), Secret::new(format!("Bearer {}", token.expose()))));
    let call = |url: String, body: Value| {
        let headers = &headers;
        async move {
            let body = body.to_string().into_bytes();
            api_answer(client.post(&url, "application/json; charset=utf-8", headers, body).await?)
        }
    };
    // One message for the group's whole story, as long as it is going on.
    let over = context.notification.status() == Status::Resolved;
    let keep = |channel: &str, ts: &str| (!over && config.update_message).then(|| format!("{channel}:{ts}"));
    if let Some((channel, ts)) = reference.and_then(|reference| reference.split_once(':'))
        && config.update_message
    {
        let mut update = message.clone();
        update["channel"] = channel.into();
        update["ts"] = ts.into();
        match call(url.expose().replace("chat.postMessage", "chat.update"), update).await {
            Ok(_) => {
                let reply = json!({"channel": channel, "thread_ts": ts, "text": timeline(context)});
                call(url.expose().to_owned(), reply).await?;
                return Ok(Sent { reference: keep(channel, ts) });
            }
            // Somebody deleted it: a new one is posted.
            Err(failure) if failure.message.contains("message_not_found") => {}
            Err(failure) => return Err(failure),
        }
    }
    let posted = call(url.expose().to_owned(), message).await?;
    let reference = match (posted["channel"].as_str(), posted["ts"].as_str()) {
        (Some(channel), Some(ts)) => keep(channel, ts),
        _ => None,
    };
    Ok(Sent { reference })
}
