//! How Kafka is reached and used: plain data, every default with its reason.
//!
//! Not here: reading a configuration file or the environment; that is the program's rim.

use std::fmt;

use model::signal::Signal;
use model::tenant::TenantId;

use crate::error::KafkaError;

/// Default of [`KafkaConfig::topics`]: those of the Collector's Kafka exporter and receiver, by [`Signal::ALL`].
pub const TOPICS_DEFAULT: [&str; Signal::ALL.len()] = ["otlp_spans", "otlp_metrics", "otlp_logs", "otlp_profiles"];

/// Default of [`KafkaConfig::dead_letters`].
pub const DEAD_LETTERS_DEFAULT: &str = "otlp_dead_letters";

/// Default of [`KafkaConfig::group`].
pub const GROUP_DEFAULT: &str = "godseye";

/// Default of [`KafkaConfig::message_bytes_max`]: with key, headers and the batch around it, below the 1,048,588 bytes that
/// a broker takes unless it is told otherwise.
pub const MESSAGE_BYTES_DEFAULT: usize = 1_000_000;

/// Default of [`KafkaConfig::queue_bytes_max`]: a second of some ten thousand usual requests, and one of the largest.
pub const QUEUE_BYTES_DEFAULT: usize = 64 << 20;

/// Default of [`KafkaConfig::delivery_timeout_ms`]: less than the ten seconds after which an SDK gives up and sends again, so
/// that it is told, and long enough for another broker to become leader.
pub const DELIVERY_TIMEOUT_MS_DEFAULT: u64 = 8_000;

/// Default of [`KafkaConfig::session_timeout_ms`]: Kafka's own. A writer that comes back within it has its partitions at
/// once; after it others get them.
pub const SESSION_TIMEOUT_MS_DEFAULT: u64 = 45_000;

/// Default of [`KafkaConfig::group_bytes_max`]: what one sync of the log acknowledges, as behind the receivers, but larger,
/// since nobody waits for an answer.
pub const GROUP_BYTES_DEFAULT: usize = 4 << 20;

/// Default of [`KafkaConfig::group_rows_max`].
pub const GROUP_ROWS_DEFAULT: usize = 1 << 17;

/// Default of [`KafkaConfig::prefetch_bytes_max`]: what is read while the log syncs.
pub const PREFETCH_BYTES_DEFAULT: usize = 32 << 20;

/// Default of [`KafkaConfig::commit_interval_ms`]: offsets are in the store anyway; Kafka's are for whoever reads on
/// elsewhere, and for those who look.
pub const COMMIT_INTERVAL_MS_DEFAULT: u64 = 1_000;

/// How messages are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf: an `Export<Signal>ServiceRequest`.
    #[default]
    OtlpProto,
    /// OTLP/JSON: the same, as text.
    OtlpJson,
}

impl Encoding {
    /// Every one, by the name it has in a configuration, which is the Collector's.
    pub const ALL: [(&'static str, Self); 2] = [("otlp_proto", Self::OtlpProto), ("otlp_json", Self::OtlpJson)];
}

/// What decides a message's partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    /// Nothing: a request is a message, in whatever partition has room.
    None,
    /// The resource: requests of several resources are taken apart.
    #[default]
    Resource,
    /// The trace, so that all spans of one are in one partition; other signals go by resource.
    Trace,
}

impl Key {
    /// Every one, by the name it has in a configuration.
    pub const ALL: [(&'static str, Self); 3] =
        [("none", Self::None), ("resource", Self::Resource), ("trace", Self::Trace)];
}

/// How batches are compressed on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Small and slow.
    Gzip,
    /// Fast.
    Snappy,
    /// Fast, and a little smaller.
    #[default]
    Lz4,
}

impl Compression {
    /// Every one, by the name it has in a configuration, which is Kafka's.
    pub const ALL: [(&'static str, Self); 4] =
        [("none", Self::None), ("gzip", Self::Gzip), ("snappy", Self::Snappy), ("lz4", Self::Lz4)];

    /// Kafka's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, value)| *value == self).map_or("none", |(name, _)| name)
    }
}

/// A secret that shows itself to nobody by accident.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a client shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: &'static str,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Secret,
}

/// The mechanisms of [`Sasl`], by their names.
pub const SASL_MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// How connections are secured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether connections are TLS.
    pub tls: bool,
    /// Certificates in PEM that sign the brokers' ones; without, the usual authorities do.
    pub ca_pem: Option<String>,
    /// Who this is, to the brokers.
    pub sasl: Option<Sasl>,
}

/// Whether this build can do TLS and SASL.
pub const CAN_TLS: bool = cfg!(feature = "tls");

/// How Kafka is reached and used.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// Some of the brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// How connections are secured.
    pub security: Security,
    /// The topic of each signal, by [`Signal::ALL`].
    pub topics: [String; Signal::ALL.len()],
    /// How messages are encoded.
    pub encoding: Encoding,

    /// Gateway: what decides a message's partition.
    pub key: Key,
    /// Gateway: how batches are compressed.
    pub compression: Compression,
    /// Gateway: a message's largest payload; larger requests are taken apart.
    pub message_bytes_max: usize,
    /// Gateway: what may wait for brokers; more is refused, retryably.
    pub queue_bytes_max: usize,
    /// Gateway: how long brokers may take before a request is refused, retryably.
    pub delivery_timeout_ms: u64,

    /// Writer: the consumer group. Writers of one share the partitions.
    pub group: String,
    /// Writer: where messages go that are no telemetry.
    pub dead_letters: String,
    /// Writer: whose telemetry it is when a message does not say so.
    pub tenant: TenantId,
    /// Writer: how long it may be silent before its partitions go to others.
    pub session_timeout_ms: u64,
    /// Writer: bytes of messages that are stored together at most, plus one message.
    pub group_bytes_max: usize,
    /// Writer: rows that are stored together at most, plus those of one message.
    pub group_rows_max: usize,
    /// Writer: messages that are fetched ahead, bytes.
    pub prefetch_bytes_max: usize,
    /// Writer: how often Kafka is told how far it is, of what is durable.
    pub commit_interval_ms: u64,
}

impl KafkaConfig {
    /// The defaults.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            security: Security::default(),
            topics: TOPICS_DEFAULT.map(str::to_owned),
            encoding: Encoding::default(),
            key: Key::default(),
            compression: Compression::default(),
            message_bytes_max: MESSAGE_BYTES_DEFAULT,
            queue_bytes_max: QUEUE_BYTES_DEFAULT,
            delivery_timeout_ms: DELIVERY_TIMEOUT_MS_DEFAULT,
            group: GROUP_DEFAULT.to_owned(),
            dead_letters: DEAD_LETTERS_DEFAULT.to_owned(),
            tenant: TenantId::default_tenant(),
            session_timeout_ms: SESSION_TIMEOUT_MS_DEFAULT,
            group_bytes_max: GROUP_BYTES_DEFAULT,
            group_rows_max: GROUP_ROWS_DEFAULT,
            prefetch_bytes_max: PREFETCH_BYTES_DEFAULT,
            commit_interval_ms: COMMIT_INTERVAL_MS_DEFAULT,
        }
    }

    /// The topic of a signal.
    #[must_use]
    pub fn topic(&self, signal: Signal) -> &str {
        &self.topics[signal as usize - 1]
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`KafkaError::Config`] with what is wrong and what to do.
    pub fn check(&self) -> Result<(), KafkaError> {
        let wrong = |reason: String| Err(KafkaError::Config { reason });
        for part in self.brokers.split(',') {
            let is_address = part.trim().rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains("://") && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !is_address {
                return wrong(format!("`{}` is no broker: expected host:port", part.trim()));
            }
        }
        let mut topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        topics.push(&self.dead_letters);
        for (at, topic) in topics.iter().enumerate() {
            if let Some(reason) = topic_problem(topic) {
                return wrong(format!("`{topic}` is no topic: {reason}"));
            }
            if topics[..at].contains(topic) {
                return wrong(format!("topic `{topic}` is named twice: each signal, and dead letters, have one alone"));
            }
        }
        if self.group.is_empty() {
            return wrong("the consumer group has no name".to_owned());
        }
        if !CAN_TLS && (self.security.tls || self.security.sasl.is_some()) {
            return wrong(
                "this build has no TLS and no SASL for Kafka: build it with `--features kafka-tls`".to_owned(),
            );
        }
        Ok(())
    }
}

/// Why a text cannot be a topic's name, by Kafka's rules.
#[must_use]
pub fn topic_problem(topic: &str) -> Option<&'static str> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match topic {
        "" | "." | ".." => Some("expected a name"),
        _ if topic.len() > 249 => Some("expected at most 249 characters"),
        _ if !topic.bytes().all(is_legal) => Some("expected letters, digits, dots, dashes and underscores"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_told() {
        type Case = (&'static str, fn(&mut KafkaConfig), Option<&'static str>);
        let cases: [Case; 9] = [
            ("defaults", |_| {}, None),
            ("several brokers", |c| c.brokers = "a:9092, b.example:9093,[::1]:9092".to_owned(), None),
            ("no port", |c| c.brokers = "a:9092,b".to_owned(), Some("`b` is no broker")),
            ("a web address", |c| c.brokers = "http://a:9092".to_owned(), Some("is no broker")),
            ("nothing", |c| c.brokers.clear(), Some("is no broker")),
            ("one topic for two", |c| c.topics[1] = "otlp_logs".to_owned(), Some("`otlp_logs` is named twice")),
            ("dead among the living", |c| c.dead_letters = "otlp_logs".to_owned(), Some("named twice")),
            ("a strange topic", |c| c.topics[0] = "a b".to_owned(), Some("`a b` is no topic")),
            ("nobody", |c| c.group.clear(), Some("has no name")),
        ];
        for (what, change, expected) in cases {
            let mut config = KafkaConfig::new("localhost:9092");
            change(&mut config);
            let found = config.check().err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(found, None, "{what}"),
                Some(part) => assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{what}: {found:?}"),
            }
        }
        let mut config = KafkaConfig::new("localhost:9092");
        config.security.tls = true;
        assert_eq!(config.check().is_ok(), CAN_TLS);
        let sasl = Sasl { mechanism: "PLAIN", user: "u".to_owned(), password: Secret("s3cret".to_owned()) };
        assert!(!format!("{sasl:?}").contains("s3cret"));
    }
}
