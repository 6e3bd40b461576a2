//! Sending: from a message of the outbox to a channel's own form and over the wire.
//!
//! Payloads are pure functions beside each sender; the rest is one HTTP client and one SMTP transport.
//! A template that fails never keeps a message back: a plain text takes its place. Not here: when to
//! send and what a failure means (`outbox.rs`).

pub mod email;
pub mod http;
pub mod pagerduty;
pub mod slack;
pub mod webhook;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use model::time::Timestamp;

use crate::config::{Authentication, Config, HttpConfig, Integration};
use crate::error::AlertingError;
use crate::notification::Notification;
use crate::outbox::SendFailure;
use crate::repository::Delivery;
use crate::secret::{Secret, SecretSource};
use crate::template::{Data, Templates};

use self::http::{HttpClient, NetworkPolicy};

/// How long one attempt may take unless the receiver says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time a receiver may say.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A message that was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// What the channel calls it, for later messages about the same group; `None` if there is nothing to
    /// remember.
    pub reference: Option<String>,
}

/// Something that takes messages to their channels.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends one message once.
    ///
    /// # Errors
    ///
    /// When it was not taken, with whether trying again may help.
    async fn send(&self, delivery: &Delivery, now: Timestamp) -> Result<Sent, SendFailure>;
}

/// The name of a receiver's destination: stable as long as the configuration keeps its order.
#[must_use]
pub fn channel_name(receiver: &str, integration: &Integration, index: usize) -> String {
    format!("{receiver}/{}/{index}", integration.kind())
}

/// Sends to the receivers of a configuration.
#[derive(Debug)]
pub struct Notifier {
    channels: HashMap<String, Integration>,
    templates: Templates,
    client: HttpClient,
    external_url: String,
    slack_buttons: bool,
}

/// What the senders of a message share.
pub(crate) struct Context<'a> {
    pub(crate) notification: &'a Notification,
    pub(crate) templates: &'a Templates,
    pub(crate) external_url: &'a str,
    pub(crate) slack_buttons: bool,
}

impl Context<'_> {
    /// A text without any template, for when templates fail.
    pub(crate) fn plain(&self) -> String {
        let notification = self.notification;
        let count = notification.alerts.len();
        format!("[{}:{count}] {}", notification.status().as_str().to_uppercase(), notification.group_labels)
    }

    /// Expands a text; if that fails, `fallback` with the reason.
    pub(crate) fn expand(&self, source: &str, data: &Data) -> String {
        self.templates.expand(source, data).unwrap_or_else(|error| {
            tracing::warn!(channel = %self.notification.channel, %error, "a template failed: a plain text is sent");
            format!("{} ({error})", self.plain())
        })
    }
}

impl Notifier {
    /// Builds the senders of a configuration. `templates` are name and text of the template files;
    /// `external_url` is where people reach this program.
    ///
    /// # Errors
    ///
    /// When a template or the HTTP client cannot be built.
    pub fn new(
        config: &Config,
        templates: &[(String, String)],
        external_url: &str,
        policy: NetworkPolicy,
    ) -> Result<Self, AlertingError> {
        let channels = config.receivers.iter().flat_map(|receiver| {
            receiver
                .integrations
                .iter()
                .enumerate()
                .map(|(index, integration)| (channel_name(&receiver.name, integration, index), integration.clone()))
        });
        Ok(Self {
            channels: channels.collect(),
            templates: Templates::new(templates)?,
            client: HttpClient::new(policy)?,
            external_url: external_url.trim_end_matches('/').to_owned(),
            slack_buttons: false,
        })
    }

    /// Whether messages to Slack get buttons that silence their alerts.
    #[must_use]
    pub fn with_slack_buttons(mut self, slack_buttons: bool) -> Self {
        self.slack_buttons = slack_buttons;
        self
    }
}

#[async_trait]
impl Sender for Notifier {
    async fn send(&self, delivery: &Delivery, now: Timestamp) -> Result<Sent, SendFailure> {
        let notification = &delivery.notification;
        let Some(integration) = self.channels.get(&notification.channel) else {
            return Err(SendFailure::permanent(format!("the configuration has no {} any more", notification.channel)));
        };
        let context = Context {
            notification,
            templates: &self.templates,
            external_url: &self.external_url,
            slack_buttons: self.slack_buttons,
        };
        let timeout = match integration {
            Integration::Slack(slack) => slack.timeout,
            Integration::PagerDuty(pagerduty) => pagerduty.timeout,
            Integration::Webhook(webhook) => webhook.timeout,
            _ => None,
        };
        let timeout = timeout.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
        let sending = async {
            match integration {
                Integration::Webhook(webhook) => webhook::send(&context, webhook, &self.client, now).await,
                Integration::Slack(slack) => {
                    slack::send(&context, slack, &self.client, delivery.reference.as_deref()).await
                }
                Integration::PagerDuty(pagerduty) => pagerduty::send(&context, pagerduty, &self.client).await,
                Integration::Email(email) => email::send(&context, email).await,
                Integration::Unsupported { kind, .. } => {
                    Err(SendFailure::permanent(format!("GodsEye does not send to {kind}")))
                }
            }
        };
        match tokio::time::timeout(timeout, sending).await {
            Ok(outcome) => outcome,
            Err(_) => Err(SendFailure::retryable(format!("no answer within {timeout:?}"))),
        }
    }
}

/// Reads a credential for a message.
pub(crate) async fn secret(source: &SecretSource) -> Result<Secret, SendFailure> {
    source.read().await.map_err(SendFailure::retryable)
}

/// The headers that `http_config` adds.
pub(crate) async fn headers(config: &HttpConfig) -> Result<Vec<(String, Secret)>, SendFailure> {
    use base64::Engine as _;
    let mut headers = config.headers.clone();
    match &config.authentication {
        Authentication::None => {}
        Authentication::Basic { username, password } => {
            let password = match password {
                Some(password) => secret(password).await?,
                None => Secret::new(String::new()),
            };
            let pair = format!("{username}:{}", password.expose());
            let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
            headers.push(("authorization".to_owned(), Secret::new(value)));
        }
        Authentication::Scheme { scheme, credentials } => {
            let credentials = secret(credentials).await?;
            headers.push(("authorization".to_owned(), Secret::new(format!("{scheme} {}", credentials.expose()))));
        }
    }
    Ok(headers)
}

/// A text of at most so many characters, with an ellipsis where it is cut.
pub(crate) fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().nth(chars_max).is_none() {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests;
