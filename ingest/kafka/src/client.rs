//! What every client of a broker has: its settings, where its log goes, and topics that are made where they are missing.
//!
//! Not here: what is produced or consumed.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaConfig;

/// Topics that are not there when a client starts are looked for this often; librdkafka's five minutes are long for
/// somebody who waits.
const METADATA_REFRESH_MS: &str = "10000";

/// How long making topics may take. Without them brokers make them when the first message comes, or do not.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The log lines of librdkafka, in the program's own log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        trouble(&error, reason);
    }
}

/// A line of librdkafka's log. It repeats itself while a broker is away, so what is no error is told to the curious.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "kafka", facility, "{message}");
        }
        // Brokers that cannot be reached come as errors, too, several a second: they are told by `trouble`.
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::debug!(target: "kafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::trace!(target: "kafka", facility, "{message}");
        }
    }
}

/// Something that librdkafka could not do, and will try again.
pub(crate) fn trouble(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // One broker of several: when it is the last, the next line says so.
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
            tracing::debug!(target: "kafka", %error, "{reason}");
        }
        Some(RDKafkaErrorCode::AllBrokersDown) => {
            tracing::warn!(target: "kafka", "no broker of Kafka can be reached; it is tried again: {reason}");
        }
        _ => tracing::warn!(target: "kafka", %error, "{reason}"),
    }
}

/// Settings of any client.
#[must_use]
pub fn settings(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "godseye")
        .set("socket.keepalive.enable", "true")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS)
        // A broker that was restarted is found within a second or two.
        .set("reconnect.backoff.max.ms", "1000");
    let security = &config.security;
    let protocol = match (security.tls, security.sasl.is_some()) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    if let Some(pem) = &security.ca_pem {
        client.set("ssl.ca.pem", pem);
    }
    if let Some(sasl) = &security.sasl {
        client
            .set("sasl.mechanism", sasl.mechanism)
            .set("sasl.username", &sasl.user)
            .set("sasl.password", &sasl.password.0);
    }
    client
}

/// Makes topics that are not there, with as many partitions and replicas as brokers give to new ones. It is a courtesy: who
/// may not, or finds no broker, is told, and goes on.
pub async fn make_topics(config: &KafkaConfig, topics: &[&str]) {
    let admin: AdminClient<Context> = match settings(config).create_with_context(Context) {
        Ok(admin) => admin,
        Err(error) => {
            tracing::warn!(%error, "cannot look for topics of Kafka");
            return;
        }
    };
    let new: Vec<NewTopic<'_>> =
        topics.iter().map(|topic| NewTopic::new(topic, -1, TopicReplication::Fixed(-1))).collect();
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    match admin.create_topics(&new, &options).await {
        Ok(outcomes) => {
            for outcome in outcomes {
                match outcome {
                    Ok(topic) => tracing::info!(topic, "made a topic of Kafka"),
                    Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                    Err((topic, error)) => tracing::warn!(topic, %error, "cannot make a topic of Kafka; is it there?"),
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for topics of Kafka; is there a broker?"),
    }
}

/// The cluster's own name, once a broker has told it.
pub(crate) fn cluster_of<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Option<String> {
    client.fetch_cluster_id(timeout).filter(|name| !name.is_empty())
}
