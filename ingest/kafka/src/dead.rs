//! Messages that are no telemetry: they go to a topic of their own, as they are, with the reason in their headers.
//!
//! One is delivered before the writer goes on behind it, so none is lost, and one that was under way when a process died
//! may be there twice. What that topic refuses for good (too large, no right to write) is named in the log and counted:
//! it is still in the topic that it came from. Not here: who decides that a message is dead.

use std::sync::Arc;

use futures::executor::block_on;
use futures::future::join_all;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::client::{self, Context};
use crate::config::KafkaConfig;
use crate::metrics::WriterMetrics;

/// How long brokers may take for a dead letter before it is tried again: short, since its partition waits.
const DELIVERY_TIMEOUT_MS: &str = "5000";

/// Bytes of the detail of a reason: what fits a log line.
const DETAIL_BYTES_MAX: usize = 500;

/// Why a message is no telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// Its bytes are not what the topic's encoding says.
    Malformed,
    /// Its header names somebody who cannot be a tenant.
    Tenant,
    /// Its rows are more than a record of the log may hold.
    TooLarge,
    /// Decoding it panicked: a defect of ours, please report it.
    Panic,
}

impl DeadReason {
    /// The stable name: a header, a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Tenant => "tenant",
            Self::TooLarge => "too_large",
            Self::Panic => "panic",
        }
    }
}

/// A dead message with where it came from.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    topic: Arc<str>,
    partition: i32,
    offset: i64,
    key: Option<Vec<u8>>,
    payload: Vec<u8>,
    headers: OwnedHeaders,
    pub(crate) reason: DeadReason,
    pub(crate) detail: String,
}

impl DeadLetter {
    pub(crate) fn of(topic: &Arc<str>, message: &BorrowedMessage<'_>, reason: DeadReason, detail: &str) -> Self {
        Self {
            topic: Arc::clone(topic),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().unwrap_or_default().to_vec(),
            headers: message.headers().map(rdkafka::message::BorrowedHeaders::detach).unwrap_or_default(),
            reason,
            detail: detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)].to_owned(),
        }
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// The headers that it came with, and where and why it died.
    fn headers(&self) -> OwnedHeaders {
        let (partition, offset) = (self.partition.to_string(), self.offset.to_string());
        let ours = [
            ("godseye.reason", self.reason.name()),
            ("godseye.detail", &self.detail),
            ("godseye.topic", &self.topic),
            ("godseye.partition", &partition),
            ("godseye.offset", &offset),
        ];
        ours.into_iter()
            .fold(self.headers.clone(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
    }
}

/// The producer of dead letters.
pub(crate) struct DeadLetters {
    producer: FutureProducer<Context>,
    topic: String,
}

impl DeadLetters {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let mut settings = client::settings(config);
        settings
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS)
            // A dead letter is as large as what it was, with its headers; whether it is too large, brokers say.
            .set("message.max.bytes", "1000000000")
            .set("linger.ms", "0");
        Ok(Self { producer: settings.create_with_context(Context)?, topic: config.dead_letters.clone() })
    }

    /// Delivers dead letters, and takes those out that need not be tried again.
    pub(crate) fn deliver(&self, letters: &mut Vec<DeadLetter>, metrics: &WriterMetrics) -> Result<(), KafkaError> {
        let send = |letter: &DeadLetter| {
            let record: FutureRecord<'_, [u8], [u8]> =
                FutureRecord::to(&self.topic).payload(&letter.payload[..]).headers(letter.headers());
            let record = match &letter.key {
                Some(key) => record.key(&key[..]),
                None => record,
            };
            let sent = self.producer.send_result(record).map_err(|(error, _record)| error);
            async move {
                match sent?.await {
                    Ok(outcome) => outcome.map(drop).map_err(|(error, _message)| error),
                    Err(_canceled) => Err(KafkaError::Canceled),
                }
            }
        };
        let outcomes = block_on(join_all(letters.iter().map(send)));
        let mut failed = None;
        let mut outcomes = outcomes.into_iter();
        letters.retain(|letter| {
            let DeadLetter { topic, partition, offset, reason, detail, .. } = letter;
            match outcomes.next() {
                Some(Err(error)) if !is_for_good(&error) => {
                    failed = Some(error);
                    return true;
                }
                Some(Err(error)) => {
                    metrics.dead_undelivered.inc();
                    tracing::error!(
                        %topic, partition, offset, reason = reason.name(), detail, %error, to = self.topic,
                        "a message is no telemetry, and cannot be kept as a dead letter; it is in its topic only"
                    );
                }
                _ => tracing::warn!(
                    %topic, partition, offset, reason = reason.name(), detail, to = self.topic,
                    "a message is no telemetry; it is kept as a dead letter"
                ),
            }
            metrics.dead(topic, reason.name());
            false
        });
        failed.map_or(Ok(()), Err)
    }
}

/// Whether the same would fail whenever it were tried.
fn is_for_good(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::PolicyViolation
                | RDKafkaErrorCode::InvalidRecord
        )
    )
}
