//! Webhooks: Alertmanager's payload of version 4, with a key that makes repetitions harmless and, where
//! a secret is configured, a signature.
//!
//! Not here: retries.

use hmac::{Hmac, Mac as _};
use model::time::Timestamp;
use serde::Serialize;
use sha2::Sha256;

use super::http::HttpClient;
use super::{Context, Sent, headers, secret};
use crate::config::WebhookConfig;
use crate::instant;
use crate::labels::LabelSet;
use crate::notification::{Notification, Status};
use crate::outbox::SendFailure;
use crate::secret::Secret;

/// The header that is the same in every attempt to send one message.
pub const KEY_HEADER: &str = "idempotency-key";

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 over the seconds, a dot and the body.
pub const SIGNATURE_HEADER: &str = "x-godseye-signature";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    receiver: &'a str,
    status: Status,
    alerts: Vec<PayloadAlert<'a>>,
    group_labels: &'a LabelSet,
    common_labels: LabelSet,
    common_annotations: LabelSet,
    #[serde(rename = "externalURL")]
    external_url: &'a str,
    version: &'static str,
    group_key: &'a str,
    truncated_alerts: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PayloadAlert<'a> {
    status: Status,
    labels: &'a LabelSet,
    annotations: &'a LabelSet,
    starts_at: String,
    ends_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: &'a str,
    fingerprint: String,
}

/// The body. `max_alerts` of 0 is no limit; those left out are counted, and still make the common labels.
#[must_use]
pub fn payload(notification: &Notification, external_url: &str, max_alerts: u64) -> Vec<u8> {
    let count = notification.alerts.len();
    let kept = if max_alerts == 0 { count } else { count.min(usize::try_from(max_alerts).unwrap_or(count)) };
    let alerts = notification.alerts[..kept].iter().map(|alert| PayloadAlert {
        status: alert.status,
        labels: &alert.labels,
        annotations: &alert.annotations,
        starts_at: instant::format(Timestamp(alert.starts_at)),
        ends_at: alert.ends_at.map_or_else(|| instant::ZERO.to_owned(), |at| instant::format(Timestamp(at))),
        generator_url: &alert.generator_url,
        fingerprint: alert.labels.fingerprint().to_string(),
    });
    let payload = Payload {
        receiver: &notification.receiver,
        status: notification.status(),
        alerts: alerts.collect(),
        group_labels: &notification.group_labels,
        common_labels: notification.common_labels(),
        common_annotations: notification.common_annotations(),
        external_url,
        version: "4",
        group_key: &notification.group_key,
        truncated_alerts: (count - kept) as u64 + notification.left_out,
    };
    serde_json::to_vec(&payload).expect("texts and numbers have a JSON form")
}

/// The signature header's value.
#[must_use]
pub fn signature(secret: &[u8], seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    format!("t={seconds},v1={}", hex::encode(mac.finalize().into_bytes()))
}

pub(super) async fn send(
    context: &Context<'_>,
    config: &WebhookConfig,
    client: &HttpClient,
    now: Timestamp,
) -> Result<Sent, SendFailure> {
    let url = secret(&config.url).await?;
    let body = payload(context.notification, context.external_url, config.max_alerts);
    let mut headers = headers(&config.http).await?;
    headers.push((KEY_HEADER.to_owned(), Secret::new(context.notification.key.clone())));
    if let Some(source) = &config.signing_secret {
        let key = secret(source).await?;
        let seconds = now.0.div_euclid(Timestamp::NANOS_PER_SECOND);
        let value = signature(key.expose().as_bytes(), seconds, &body);
        headers.push((SIGNATURE_HEADER.to_owned(), Secret::new(value)));
    }
    client.post(url.expose(), "application/json", &headers, body).await?.success()?;
    Ok(Sent::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notification::{Reason, ToldAlert};

    #[test]
    fn the_payload_is_alertmanagers() {
        let alert = |job: &str, ends_at: Option<i64>| ToldAlert {
            status: if ends_at.is_none() { Status::Firing } else { Status::Resolved },
            labels: [("alertname", "x"), ("job", job)].into_iter().collect(),
            annotations: [("summary", "s")].into_iter().collect(),
            starts_at: 1_500_000_000,
            ends_at,
            generator_url: "http://p".to_owned(),
        };
        let notification = Notification {
            key: "k".to_owned(),
            channel: "r/webhook/0".to_owned(),
            receiver: "r".to_owned(),
            group_key: "{}:{}".to_owned(),
            group_labels: LabelSet::default(),
            alerts: vec![alert("a", None), alert("b", Some(2_000_000_000)), alert("c", None)],
            reason: Reason::First,
            left_out: 0,
            at: 0,
        };
        let body: serde_json::Value = serde_json::from_slice(&payload(&notification, "http://g", 2)).unwrap();
        let fingerprint = |index: usize| notification.alerts[index].labels.fingerprint().to_string();
        assert_eq!(
            body,
            serde_json::json!({
                "receiver": "r", "status": "firing", "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 1,
                "groupLabels": {}, "commonLabels": {"alertname": "x"}, "commonAnnotations": {"summary": "s"},
                "externalURL": "http://g",
                "alerts": [
                    {"status": "firing", "labels": {"alertname": "x", "job": "a"}, "annotations": {"summary": "s"},
                     "startsAt": "1970-01-01T00:00:01.5Z", "endsAt": "0001-01-01T00:00:00Z",
                     "generatorURL": "http://p", "fingerprint": fingerprint(0)},
                    {"status": "resolved", "labels": {"alertname": "x", "job": "b"}, "annotations": {"summary": "s"},
                     "startsAt": "1970-01-01T00:00:01.5Z", "endsAt": "1970-01-01T00:00:02Z",
                     "generatorURL": "http://p", "fingerprint": fingerprint(1)},
                ],
            })
        );
    }

    #[test]
    fn a_signature_covers_time_and_body() {
        // Computed with Python's hmac module.
        let signed = signature(b"secret", 1_700_000_000, b"{}");
        assert_eq!(signed, "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163");
        assert_ne!(signed, signature(b"secret", 1_700_000_000, b"{ }"));
        let seal = |signature: &str| signature.split_once("v1=").map(|(_, seal)| seal.to_owned());
        assert_ne!(seal(&signed), seal(&signature(b"secret", 1_700_000_001, b"{}")));
        assert_ne!(signed, signature(b"other", 1_700_000_000, b"{}"));
    }
}
