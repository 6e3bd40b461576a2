//! The end of the demo: an SLO that burns, and the page about it, as Slack and a mail program would show it.
//!
//! Nothing is staged here either: OpenSLO and Alertmanager's configuration are files as users write them, alerting sends
//! to a receiver of webhooks and a mail server over the loopback, and what is shown is what those two got. Not here: how
//! a message looks; alerting's templates say that.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixtures::parts::{Email, Received, Smtp, SmtpConfig, Webhook};
use serde_json::Value;

use super::{DemoError, say};
use crate::config::Alerting;

/// How long the page may take. It is there before the questions are answered, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked for.
const POLL: Duration = Duration::from_millis(200);

/// Lines of a message that are shown.
const LINES_MAX: usize = 40;

const SLO: &str = "\
apiVersion: openslo/v1
kind: SLO
metadata:
  name: payment-availability
  displayName: Payments go through
  annotations:
    runbook_url: https://runbooks.example.org/payment
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

/// Alertmanager's configuration for two channels.
fn routing(webhook: &str, smtp: SocketAddr) -> String {
    format!(
        "\
route:
  receiver: nobody
  routes:
  - {{receiver: payment-on-call, matchers: ['severity=\"critical\"'], group_by: [alertname, service], group_wait: 0s}}
receivers:
- name: nobody
- name: payment-on-call
  slack_configs: [{{api_url: '{webhook}', channel: '#payment-on-call', send_resolved: true}}]
  email_configs:
  - {{to: on-call@example.org, from: godseye@example.org, smarthost: '{smtp}', require_tls: false, send_resolved: true}}
"
    )
}

/// Whoever is told: a Slack-shaped webhook and a mail server.
pub(super) struct OnCall {
    slack: Webhook,
    mail: Smtp,
    slo: PathBuf,
    routing: PathBuf,
}

impl OnCall {
    /// Starts both and writes the files that name them into a folder.
    pub(super) async fn start(folder: &Path) -> Result<Self, DemoError> {
        let slack = Webhook::start(&folder.join("slack")).await?;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mail = Smtp::start(SmtpConfig { address, folder: folder.join("mail"), login: None }).await?;
        let (slo, routing_path) = (folder.join("slo.yaml"), folder.join("alertmanager.yml"));
        std::fs::write(&slo, SLO)?;
        std::fs::write(&routing_path, routing(&slack.url("/services/T0/B0/demo"), mail.address()))?;
        Ok(Self { slack, mail, slo, routing: routing_path })
    }

    /// The settings that `--slos` and `--alertmanager-config` would be.
    pub(super) fn watch(&self, alerting: &mut Alerting) {
        alerting.slos = vec![self.slo.clone()];
        alerting.alertmanager_config = Some(self.routing.clone());
    }

    /// Waits for the page and shows it.
    pub(super) async fn show(&self) -> Result<(), DemoError> {
        let until = tokio::time::Instant::now() + PATIENCE;
        let (message, email) = loop {
            if let (Some(message), Some(email)) = (self.slack.requests()?.pop(), self.mail.messages()?.pop()) {
                break (message, email);
            }
            if tokio::time::Instant::now() >= until {
                return Err(DemoError::NoPage { waited_s: PATIENCE.as_secs() });
            }
            tokio::time::sleep(POLL).await;
        };
        say("   Slack, #payment-on-call\n");
        say(&framed(&slack_text(&message)));
        say("   the mailbox of on-call@example.org\n");
        say(&framed(&email_text(&email)));
        Ok(())
    }
}

/// The text of a message's blocks, in their order.
pub(crate) fn slack_text(message: &Received) -> String {
    let mut lines = Vec::new();
    texts(message.json.as_ref().map_or(&Value::Null, |json| &json["attachments"][0]["blocks"]), &mut lines);
    lines.join("\n").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) if object.get("type").is_some_and(|kind| kind == "mrkdwn") => {
            found.extend(object.get("text").and_then(Value::as_str).map(str::to_owned));
        }
        Value::Object(object) => object.values().for_each(|value| texts(value, found)),
        Value::Array(items) => items.iter().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// The headers that a mail program shows, and the part that is plain text.
pub(crate) fn email_text(email: &Email) -> String {
    let (head, body) = email.message.split_once("\r\n\r\n").unwrap_or((&email.message, ""));
    let shown = head.lines().filter(|line| ["From:", "To:", "Subject:"].iter().any(|name| line.starts_with(name)));
    let mut lines: Vec<&str> = shown.collect();
    lines.push("");
    let plain = body.split_once("Content-Type: text/plain").map_or(body, |(_, part)| part);
    let plain = plain.split_once("\r\n\r\n").map_or(plain, |(_, text)| text);
    let plain = readable(plain);
    // The boundary that ends the part.
    lines.extend(plain.lines().take_while(|line| !line.starts_with("--")));
    lines.join("\n")
}

/// Quoted-printable (RFC 2045, 6.7) as it is meant; what is not it stays as it is.
fn readable(quoted: &str) -> String {
    let joined = quoted.replace("=\r\n", "");
    let mut bytes = Vec::with_capacity(joined.len());
    let mut rest = joined.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = (*first == b'=').then(|| after.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn framed(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let mut out = String::new();
    for line in lines.iter().take(LINES_MAX) {
        out.push_str("   │ ");
        out.push_str(line);
        out.push('\n');
    }
    if lines.len() > LINES_MAX {
        out.push_str("   │ …\n");
    }
    out
}
