//! Which parts run in this process, and what the client of Kafka is told.
//!
//! Not here: the keys (`config::kafka`), and how parts are started ([`crate::server`], [`crate::gateway`]).

use std::sync::{Arc, Mutex, PoisonError};

use ingest::series::SeriesLimiter;
use kafka_log::{KafkaConfig, Writer};
use model::time::Clock;
use prometheus_client::registry::Registry;
use store::{Store, StoreError};
use tokio::sync::oneshot;

use crate::config::{Compression, Config, Encoding, Engine, MessageKey, Role};
use crate::server::ServeError;

/// What is wrong between the role and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The keys it is about; the one that was set last is shown.
    pub keys: &'static [&'static str],
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub expected: String,
}

/// Whether the role can be played with the rest of the configuration.
#[must_use]
pub fn problem(config: &Config) -> Option<Problem> {
    let problem =
        |keys, message: String, expected: &str| Some(Problem { keys, message, expected: expected.to_owned() });
    let role = config.role.name();
    match config.role {
        Role::Query | Role::Control if config.storage.engine != Engine::ClickHouse => {
            let message = format!(
                "`role: {role}` needs a store that several processes share, and the data directory is one process's"
            );
            let expected = "expected `storage.engine: clickhouse`; one process alone (`all`, or `writer` behind Kafka) \
                            answers queries and evaluates rules, too";
            return problem(&["role", "storage.engine"], message, expected);
        }
        Role::Query if config.alerting.is_on() => {
            let keys = &["alerting.rules", "alerting.slos", "alerting.alertmanager_config"];
            return problem(
                keys,
                "`role: query` judges nothing".to_owned(),
                "expected rules at a process of role `control`, and SLOs where telemetry is stored",
            );
        }
        // SLOs count each batch as it is stored, once, by its place in this process's log. What other processes store
        // has no such place here.
        Role::Control if !config.alerting.slos.is_empty() => {
            return problem(
                &["alerting.slos"],
                "`role: control` sees no telemetry come in, and SLOs count it as it is stored".to_owned(),
                "expected SLOs at the process that stores it (`all` or `writer`), or a rule that asks SQL",
            );
        }
        Role::Gateway | Role::Writer if config.kafka.brokers.is_none() => {
            let message = format!("`role: {role}` without brokers of Kafka");
            return problem(&["role"], message, "expected `kafka.brokers`, as host:port");
        }
        Role::Gateway if config.alerting.is_on() => {
            let keys = &["alerting.rules", "alerting.slos", "alerting.alertmanager_config"];
            return problem(
                keys,
                "a gateway has no store to judge".to_owned(),
                "expected rules and SLOs at the writer",
            );
        }
        Role::All | Role::Gateway | Role::Writer | Role::Query | Role::Control => {}
    }
    let kafka = &config.kafka;
    if kafka.sasl.name().is_some() && (kafka.user.is_none() || kafka.password.is_none()) {
        let message = "`kafka.sasl` without a user and a password".to_owned();
        return problem(&["kafka.sasl"], message, "expected `kafka.user` and `kafka.password`");
    }
    // What only shows once the file of certificates is read is told at the start.
    let wrong = kafka_config(config, None)?.check().err()?.to_string();
    let keys = if wrong.contains("no broker") { &["kafka.brokers"] } else { &["kafka"] };
    // What is wrong, and behind the colon what to do.
    let (message, expected) = wrong.rsplit_once(": ").unwrap_or((&wrong, "expected settings that can work"));
    problem(keys, message.to_owned(), expected)
}

/// What the client of Kafka is told; `None` where no brokers are named.
fn kafka_config(config: &Config, ca_pem: Option<String>) -> Option<KafkaConfig> {
    let kafka = &config.kafka;
    let mut told = KafkaConfig::new(kafka.brokers.clone()?);
    told.security.tls = kafka.tls;
    told.security.ca_pem = ca_pem;
    told.security.sasl = kafka.sasl.name().map(|mechanism| kafka_log::Sasl {
        mechanism,
        user: kafka.user.clone().unwrap_or_default(),
        password: kafka_log::Secret(
            kafka.password.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default(),
        ),
    });
    told.topics.clone_from(&kafka.topics);
    told.encoding = match kafka.encoding {
        Encoding::OtlpProto => kafka_log::Encoding::OtlpProto,
        Encoding::OtlpJson => kafka_log::Encoding::OtlpJson,
    };
    told.key = match kafka.key {
        MessageKey::None => kafka_log::Key::None,
        MessageKey::Resource => kafka_log::Key::Resource,
        MessageKey::Trace => kafka_log::Key::Trace,
    };
    told.compression = match kafka.compression {
        Compression::None => kafka_log::Compression::None,
        Compression::Gzip => kafka_log::Compression::Gzip,
        Compression::Snappy => kafka_log::Compression::Snappy,
        Compression::Lz4 => kafka_log::Compression::Lz4,
    };
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let milliseconds = |interval: std::time::Duration| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    told.message_bytes_max = size(kafka.message_bytes.0);
    told.queue_bytes_max = size(kafka.queue_bytes.0);
    told.delivery_timeout_ms = milliseconds(kafka.delivery_timeout.get());
    told.group.clone_from(&kafka.group);
    told.dead_letters.clone_from(&kafka.dead_letters);
    told.tenant = kafka.tenant.clone();
    told.session_timeout_ms = milliseconds(kafka.session_timeout.get());
    Some(told)
}

/// As the start wants it: with the certificates read.
///
/// # Errors
/// [`ServeError::Start`] when they cannot be.
pub(crate) fn kafka(config: &Config) -> Result<Option<KafkaConfig>, ServeError> {
    let pem = config.kafka.ca_file.as_ref().map(std::fs::read_to_string).transpose();
    let pem = pem.map_err(|error| ServeError::Start { what: "Kafka", detail: format!("`kafka.ca_file`: {error}") })?;
    Ok(kafka_config(config, pem))
}

/// Who is told that the log failed: once, by whoever finds out first.
#[derive(Clone, Debug)]
pub(crate) struct Fatal(Arc<Mutex<Option<oneshot::Sender<StoreError>>>>);

impl Fatal {
    pub(crate) fn new(sender: oneshot::Sender<StoreError>) -> Self {
        Self(Arc::new(Mutex::new(Some(sender))))
    }

    pub(crate) fn tell(&self, error: StoreError) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The receiver is gone only when the process is ending anyway.
            drop(sender.send(error));
        }
    }
}

/// Starts to read topics into a store, where brokers are named and the role reads them.
pub(crate) fn start_writer(
    config: &Config,
    store: &Arc<Store>,
    series: SeriesLimiter,
    registry: &mut Registry,
    fatal: Fatal,
) -> Result<Option<Writer>, ServeError> {
    if !config.role.reads_topics() {
        return Ok(None);
    }
    let Some(kafka) = kafka(config)? else { return Ok(None) };
    make_topics(&kafka, true);
    let log: Arc<Store> = Arc::clone(store);
    let started = Writer::start(kafka, log, series, Clock::System, registry, move |error| fatal.tell(error));
    started.map(Some).map_err(|error| ServeError::Start { what: "reading Kafka", detail: error.to_string() })
}

/// Makes topics that are missing, meanwhile: nothing waits for it.
pub(crate) fn make_topics(kafka: &KafkaConfig, reads: bool) {
    let kafka = kafka.clone();
    tokio::spawn(async move {
        let mut topics: Vec<&str> = kafka.topics.iter().map(String::as_str).collect();
        if reads {
            topics.push(&kafka.dead_letters);
        }
        kafka_log::client::make_topics(&kafka, &topics).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_cannot_be_played_are_told_why() {
        type Case = (&'static str, fn(&mut Config), Option<&'static str>);
        let cases: [Case; 14] = [
            ("defaults", |_| {}, None),
            ("all with Kafka", |c| c.kafka.brokers = Some("a:9092".to_owned()), None),
            ("a gateway to nowhere", |c| c.role = Role::Gateway, Some("without brokers")),
            ("a writer from nowhere", |c| c.role = Role::Writer, Some("without brokers")),
            ("queries alone", |c| c.role = Role::Query, Some("`role: query` needs a store")),
            ("alerting alone", |c| c.role = Role::Control, Some("`role: control` needs a store")),
            ("queries of ClickHouse", |c| (c.role, c.storage.engine) = (Role::Query, Engine::ClickHouse), None),
            (
                "queries that judge",
                |c| {
                    (c.role, c.storage.engine) = (Role::Query, Engine::ClickHouse);
                    c.alerting.rules.push("rules.yml".into());
                },
                Some("`role: query` judges nothing"),
            ),
            (
                "rules over ClickHouse",
                |c| {
                    (c.role, c.storage.engine) = (Role::Control, Engine::ClickHouse);
                    c.alerting.rules.push("rules.yml".into());
                },
                None,
            ),
            (
                "SLOs of what others store",
                |c| {
                    (c.role, c.storage.engine) = (Role::Control, Engine::ClickHouse);
                    c.alerting.slos.push("slos".into());
                },
                Some("SLOs count it as it is stored"),
            ),
            (
                "queries beside the topics",
                |c| {
                    (c.role, c.storage.engine) = (Role::Query, Engine::ClickHouse);
                    c.kafka.brokers = Some("a:9092".to_owned());
                },
                None,
            ),
            (
                "a gateway that judges",
                |c| {
                    c.role = Role::Gateway;
                    c.kafka.brokers = Some("a:9092".to_owned());
                    c.alerting.rules.push("rules.yml".into());
                },
                Some("no store to judge"),
            ),
            ("no port", |c| c.kafka.brokers = Some("a".to_owned()), Some("`a` is no broker")),
            (
                "nobody",
                |c| {
                    c.kafka.brokers = Some("a:9092".to_owned());
                    c.kafka.sasl = crate::config::Mechanism::Plain;
                },
                Some("without a user"),
            ),
        ];
        for (what, change, expected) in cases {
            let mut config = Config::default();
            change(&mut config);
            let found = problem(&config).map(|problem| problem.message);
            match expected {
                None => assert_eq!(found, None, "{what}"),
                Some(part) => assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{what}: {found:?}"),
            }
        }
    }
}
