//! From what rules and SLOs notice to alerts that are routed: a bounded queue and one task that posts.
//!
//! What finds the queue full is refused, and whoever noticed it tells it again. Not here: who is told.

use alerting::alert::PostedAlert;
use alerting::error::AlertingError;
use alerting::service::AlertingHandle;
use model::time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use slo::engine::Sink;
use slo::rules::state::{Labels, Notice};
use tokio::sync::mpsc;

/// Deliveries that wait to be posted; each is what one group or one round of SLOs noticed.
const QUEUE_MAX: usize = 64;

/// Pause before a post is tried again, such as on a full disk.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

type Queue = mpsc::Sender<Vec<PostedAlert>>;

/// Where rules and SLOs put what they notice. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    queue: Queue,
    external_url: String,
}

impl Notices {
    pub(super) fn new(external_url: String) -> (Self, mpsc::Receiver<Vec<PostedAlert>>) {
        let (queue, posts) = mpsc::channel(QUEUE_MAX);
        (Self { queue, external_url }, posts)
    }

    /// Deliveries that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

/// The page that shows what an alert comes from: its SLO, or all alerts of its rule.
fn generator_url(external_url: &str, labels: &Labels) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    if let (Some(slo), true) = (labels.get("slo"), labels.contains_key("burn")) {
        return format!("{external_url}/api/v1/slos/{}", encoded(slo));
    }
    let name = labels.get("alertname").map_or("", String::as_str);
    let filter = format!("alertname={}", alerting::labels::quoted(name));
    format!("{external_url}/api/v1/alerts?filter={}", encoded(&filter))
}

fn posted(mut notice: Notice, external_url: &str) -> PostedAlert {
    if let Some(id) = notice.annotations.get("trace_id") {
        let url = format!("{external_url}/api/v1/traces/{}", utf8_percent_encode(id, NON_ALPHANUMERIC));
        notice.annotations.entry("trace_url".to_owned()).or_insert(url);
    }
    PostedAlert {
        generator_url: generator_url(external_url, &notice.labels),
        labels: notice.labels.into_iter().collect(),
        annotations: notice.annotations.into_iter().collect(),
        starts_at: Some(Timestamp(notice.starts_at)),
        ends_at: Some(Timestamp(notice.ends_at)),
    }
}

impl Sink for Notices {
    fn take(&mut self, notices: Vec<Notice>, _now: Timestamp) -> Result<(), String> {
        let alerts = notices.into_iter().map(|notice| posted(notice, &self.external_url)).collect();
        self.queue.try_send(alerts).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => format!("{QUEUE_MAX} deliveries wait already"),
            mpsc::error::TrySendError::Closed(_) => "alerting has ended".to_owned(),
        })
    }
}

/// Posts until every sender is gone, in order: an end must not overtake its beginning.
pub(super) async fn post(mut posts: mpsc::Receiver<Vec<PostedAlert>>, handle: AlertingHandle) {
    while let Some(alerts) = posts.recv().await {
        loop {
            match handle.post_alerts(alerts.clone()).await {
                Ok(posted) => {
                    for reason in posted.refused {
                        tracing::warn!(reason, "an alert of a rule or an SLO was refused");
                    }
                    break;
                }
                Err(AlertingError::Closed) => return,
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "alerts could not be kept: they are posted again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(%error, "alerts could not be posted");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use alerting::alert::Alert;
    use alerting::labels::LabelSet;
    use alerting::notification::{Notification, Reason, ToldAlert};
    use alerting::notify::http::NetworkPolicy;
    use alerting::notify::{Notifier, Sender as _, channel_name};
    use alerting::repository::Delivery;
    use fixtures::parts::{Smtp, SmtpConfig, Webhook};
    use model::signal::Table;
    use model::tenant::TenantId;
    use slo::archive::Archive;
    use slo::engine::{Config, Engine};
    use slo::testing::{Span, spans};

    use super::*;
    use crate::demo::page::{email_text, slack_text};

    const SLO: &str = "
apiVersion: openslo/v1
kind: Service
metadata: {name: payment, labels: {owner: payments-team}, annotations: {runbook_url: https://runbooks.example.org/payment}}
spec: {description: Charges cards.}
---
apiVersion: openslo/v1
kind: SLO
metadata: {name: payment-availability, displayName: Payments go through}
spec:
  service: payment
  indicator:
    metadata: {name: payment-errors}
    spec:
      ratioMetric:
        bad:   {metricSource: {type: godseye, spec: {table: spans, where: \"status_code = 'ERROR'\"}}}
        total: {metricSource: {type: godseye, spec: {table: spans, service: payment, where: \"kind = 'SERVER'\"}}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{displayName: charged, target: 0.999}]
";

    /// 2026-11-24T09:00:00Z.
    const START: i64 = 1_795_510_800 * Timestamp::NANOS_PER_SECOND;

    /// What the fast rung of the SLO says after a minute with errors.
    fn notice(folder: &std::path::Path) -> Notice {
        let slos = slo::openslo::read(&[("slo.yaml", SLO)]).unwrap().slos;
        let archive = Archive::open(&folder.join("slo.sqlite")).unwrap();
        let now = Timestamp(START + 60 * Timestamp::NANOS_PER_SECOND);
        let mut engine =
            Engine::build(Config::default(), TenantId::default_tenant(), slos, archive, Timestamp(START)).unwrap();
        let span = |number: i64| Span {
            time: START + number * 100_000_000,
            service: "payment".into(),
            name: "Charge".into(),
            kind: "SERVER",
            status: if number % 20 == 7 { "ERROR" } else { "UNSET" },
            duration_ns: Some(1_000_000),
            attributes: vec![],
        };
        engine.observe(Table::Spans, &spans(&(0..600).map(span).collect::<Vec<_>>()), now);
        let notices = engine.evaluate(now).notices;
        notices.into_iter().find(|notice| notice.labels["burn"] == "fast").unwrap()
    }

    #[tokio::test]
    async fn a_page_says_everything_that_is_needed_at_night() {
        let folder = tempfile::tempdir().unwrap();
        let slack = Webhook::start(&folder.path().join("slack")).await.unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mail = SmtpConfig { address, folder: folder.path().join("mail"), login: None };
        let mail = Smtp::start(mail).await.unwrap();
        let config = format!(
            "route: {{receiver: a}}\nreceivers:\n- name: a\n  slack_configs: [{{api_url: '{}', channel: '#a'}}]\n  \
             email_configs: [{{to: on-call@example.org, from: godseye@example.org, smarthost: '{}', require_tls: false}}]\n",
            slack.url("/hook"),
            mail.address()
        );
        let config = alerting::config::parse(&config).config.unwrap();
        let url = "https://godseye.example.org";
        let notifier = Notifier::new(&config, &[], url, NetworkPolicy { allow_private: true }).unwrap();

        let notice = notice(folder.path());
        let now = Timestamp(START + 61 * Timestamp::NANOS_PER_SECOND);
        let alert = Alert {
            labels: notice.labels.clone().into_iter().collect(),
            annotations: posted(notice.clone(), url).annotations,
            starts_at: Timestamp(notice.starts_at),
            ends_at: Timestamp(notice.ends_at),
            updated_at: now,
            timeout: false,
            generator_url: generator_url(url, &notice.labels),
        };
        let group_labels: LabelSet = [("alertname", "SloBurnRate"), ("service", "payment")].into_iter().collect();
        for (index, integration) in config.receivers[0].integrations.iter().enumerate() {
            let notification = Notification {
                key: "key".to_owned(),
                channel: channel_name("a", integration, index),
                receiver: "a".to_owned(),
                group_key: "{}:{}".to_owned(),
                group_labels: group_labels.clone(),
                alerts: vec![ToldAlert::new(&alert, now)],
                reason: Reason::First,
                left_out: 0,
                at: now.0,
            };
            let delivery = Delivery { id: 1, notification, attempts: 0, created_at: now, reference: None };
            notifier.send(&delivery, now).await.unwrap();
        }
        let slack = slack_text(&slack.requests().unwrap()[0]);
        let mail = email_text(&mail.messages().unwrap()[0]);
        let found = format!("{slack}\n\n--- mail\n{mail}\n");
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/alerts/golden/page.txt");
        if std::env::var_os("GODSEYE_BLESS").is_some() {
            std::fs::write(golden, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(golden).unwrap(), "GODSEYE_BLESS=1 writes {golden}");
    }
}
