//! What stands behind the receivers of a gateway: a request goes to Kafka, and its client is told when brokers have it.
//!
//! An acknowledgement follows the delivery report of every message of a request: written by the leader and all replicas in
//! sync (I1 is then the brokers' promise). Requests are looked at before, by the decoder that will store them, so that
//! what is no telemetry and items that break a rule are told to whoever sent them, and not found by a writer later.
//!
//! What may wait is bounded, by the receivers' budget and the producer's queue; when brokers are slow or away, clients are
//! asked to come again. A request that is sent again may be stored twice, as always with OTLP: some of its messages may
//! have been delivered. The producer is idempotent, so nothing that happens between it and the brokers doubles one.
//!
//! Not here: receivers, and taking requests apart ([`crate::split`]).

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use ingest::decode::Decoder;
use ingest::export::{Accepted, ExportError, ExportRequest};
use ingest::json;
use ingest::receiver::Export;
use model::ledger::{LedgerDelta, RejectReason};
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::Clock;
use prometheus_client::registry::Registry;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError as RdKafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::{DeliveryFuture, OwnedDeliveryResult};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::sync::Semaphore;

use crate::client::{self, Context};
use crate::config::{Encoding, KafkaConfig};
use crate::error::KafkaError;
use crate::metrics::GatewayMetrics;
use crate::split::{Part, SplitError, split};

/// The header that says whose telemetry a message is.
pub const TENANT_HEADER: &str = "godseye.tenant";

/// When a client that met a full queue or absent brokers should come back: long enough for another leader, short enough
/// that no exporter gives up.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// From this size on a request is looked at on the blocking pool: it takes milliseconds.
const BLOCKING_BYTES: usize = 256 << 10;

/// Messages that wait for brokers, when they are tiny.
const QUEUE_MESSAGES_MAX: usize = 100_000;

/// What key, headers and the message's own frame take beside its payload, bytes.
const FRAME_BYTES: usize = 4 << 10;

/// Such requests at once: an empty item takes two bytes on the wire and some hundreds in columns.
const LARGE_AT_ONCE: usize = 2;

/// Decoders that are kept for the next small requests: more are not at work at once.
const SPARE_DECODERS_MAX: usize = 16;

type Producer = FutureProducer<Context>;

/// A gateway to Kafka. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    topics: [Arc<str>; Signal::ALL.len()],
    clock: Clock,
    /// With its number, so that of many that see one fail one replaces it.
    producer: RwLock<(u64, Producer)>,
    decoders: Mutex<Vec<Decoder>>,
    large: Semaphore,
    draining: AtomicBool,
    metrics: GatewayMetrics,
}

/// What a request comes to: messages, and what is known of its items.
struct Prepared {
    parts: Vec<Part>,
    delta: LedgerDelta,
}

impl Gateway {
    /// Starts a producer. Brokers need not be there yet.
    ///
    /// # Errors
    /// [`KafkaError`] when the configuration makes no sense.
    pub fn start(config: KafkaConfig, clock: Clock, registry: &mut Registry) -> Result<Self, KafkaError> {
        config.check()?;
        let producer = producer(&config)?;
        Ok(Self(Arc::new(Inner {
            topics: Signal::ALL.map(|signal| Arc::from(config.topic(signal))),
            config,
            clock,
            producer: RwLock::new((0, producer)),
            decoders: Mutex::default(),
            large: Semaphore::new(LARGE_AT_ONCE),
            draining: AtomicBool::new(false),
            metrics: GatewayMetrics::register(registry),
        })))
    }

    /// Whether brokers can be reached: a sentence for an operator if not.
    #[must_use]
    pub fn problem(&self, timeout: Duration) -> Option<String> {
        let (_, producer) = self.0.producer();
        let found = producer.client().fetch_metadata(Some(&self.0.topics[0]), timeout);
        found.err().map(|error| format!("Kafka at {} cannot be reached: {error}", self.0.config.brokers))
    }

    /// Refuses new requests, and returns when what was handed on has its outcome. It waits as long as brokers may take.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        let (_, producer) = self.0.producer();
        let patience = Duration::from_millis(self.0.config.delivery_timeout_ms);
        if let Err(error) = producer.flush(patience) {
            tracing::warn!(%error, "brokers have not confirmed all messages; their requests were not acknowledged");
        }
    }
}

/// The settings that the promise rests on are not to be configured.
fn producer(config: &KafkaConfig) -> Result<Producer, RdKafkaError> {
    let mut settings: ClientConfig = client::settings(config);
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.max.bytes", (config.message_bytes_max + FRAME_BYTES).to_string())
        .set("message.timeout.ms", config.delivery_timeout_ms.to_string())
        .set("compression.type", config.compression.name())
        // The same key is in the same partition as for the producers of other languages.
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", QUEUE_MESSAGES_MAX.to_string())
        .set("queue.buffering.max.kbytes", (config.queue_bytes_max >> 10).max(1).to_string());
    settings.create_with_context(Context)
}

impl Inner {
    fn producer(&self) -> (u64, Producer) {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces a producer that failed for good, unless somebody else has.
    fn renew(&self, failed: u64) {
        let mut current = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        if current.0 != failed {
            return;
        }
        match producer(&self.config) {
            Ok(producer) => {
                *current = (failed + 1, producer);
                self.metrics.renewals.inc();
            }
            Err(error) => tracing::error!(%error, "cannot make another producer; the next request tries again"),
        }
    }

    /// Looks at a request, takes it apart and writes its messages.
    fn prepare(&self, signal: Signal, body: &Bytes) -> Result<Prepared, ExportError> {
        let now = self.clock.now();
        let mut decoder = lock(&self.decoders).pop().unwrap_or_default();
        let checked = decoder.check(signal, body, now);
        // One that has seen a large request has room for another, which is a lot to keep.
        if body.len() < BLOCKING_BYTES {
            let mut decoders = lock(&self.decoders);
            if decoders.len() < SPARE_DECODERS_MAX {
                decoders.push(decoder);
            }
        }
        let malformed = |detail: String| ExportError::Malformed { signal, detail };
        let mut delta = checked.map_err(|error| malformed(error.to_string()))?;
        let mut prepared = Vec::new();
        let too_large = self.messages(signal, body, self.config.message_bytes_max, &mut prepared).map_err(|error| {
            let limit = self.config.message_bytes_max;
            match error {
                SplitError::Wire(error) => malformed(error.to_string()),
                SplitError::Profiles => ExportError::TooLarge { what: "a request of profiles", limit },
            }
        })?;
        if too_large > 0 {
            delta.stored = delta.stored.saturating_sub(too_large);
            *delta.rejected.entry(RejectReason::MessageTooLarge).or_default() += too_large;
        }
        Ok(Prepared { parts: prepared, delta })
    }

    /// Adds the messages of a request, encoded, and counts items that fit none.
    fn messages(
        &self,
        signal: Signal,
        body: &Bytes,
        bytes_max: usize,
        messages: &mut Vec<Part>,
    ) -> Result<u64, SplitError> {
        let taken_apart = split(signal, body, self.config.key, bytes_max)?;
        let mut too_large = taken_apart.too_large;
        for part in taken_apart.parts {
            match self.config.encoding {
                Encoding::OtlpProto => messages.push(part),
                Encoding::OtlpJson => {
                    let mut text = Vec::new();
                    json::render(signal, &part.body, &mut text)?;
                    if text.len() <= self.config.message_bytes_max {
                        messages.push(Part { key: part.key, body: text.into() });
                    } else {
                        // Text is larger, by how much shows only now: of half as many bytes, or of half of what is there.
                        let less = bytes_max.min(part.body.len()) / 2;
                        too_large += self.messages(signal, &part.body, less, messages)?;
                    }
                }
            }
        }
        Ok(too_large)
    }

    fn send(
        &self,
        producer: &Producer,
        topic: &str,
        tenant: &TenantId,
        part: &Part,
    ) -> Result<DeliveryFuture, RdKafkaError> {
        let tenant = Header { key: TENANT_HEADER, value: Some(tenant.as_str()) };
        let mut record: FutureRecord<'_, str, [u8]> =
            FutureRecord::to(topic).payload(&part.body[..]).headers(OwnedHeaders::new_with_capacity(1).insert(tenant));
        if let Some(key) = &part.key {
            record = record.key(key);
        }
        producer.send_result(record).map_err(|(error, _record)| error)
    }

    async fn export(self: Arc<Self>, request: ExportRequest) -> Result<Accepted, ExportError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ExportError::ShuttingDown);
        }
        let ExportRequest { signal, tenant, body } = request;
        let prepared = if body.len() >= BLOCKING_BYTES {
            let inner = Arc::clone(&self);
            let _permit = self.large.acquire().await.map_err(|_closed| ExportError::ShuttingDown)?;
            let task = tokio::task::spawn_blocking(move || inner.prepare(signal, &body)).await;
            task.map_err(|_panic| ExportError::Internal { detail: "looking at the request panicked" })?
        } else {
            self.prepare(signal, &body)
        };
        let Prepared { parts, delta } = prepared.inspect_err(|_| self.metrics.refused("malformed"))?;
        let topic = &self.topics[signal as usize - 1];
        let (number, producer) = self.producer();
        let started = Instant::now();
        let mut refusal = None;
        let mut deliveries = Vec::with_capacity(parts.len());
        for part in &parts {
            match self.send(&producer, topic, &tenant, part) {
                Ok(delivery) => deliveries.push(delivery),
                // The rest would meet the same; the client sends all of it again.
                Err(error) => {
                    refusal = Some(self.refusal(&error, number));
                    break;
                }
            }
        }
        self.metrics.queue.set(i64::from(producer.in_flight_count()));
        let outcomes: Vec<Result<OwnedDeliveryResult, _>> = join_all(deliveries).await;
        self.metrics.delivery_seconds.observe(started.elapsed().as_secs_f64());
        for (outcome, part) in outcomes.into_iter().zip(&parts) {
            match outcome {
                Ok(Ok(_delivery)) => self.metrics.produced(topic, part.body.len()),
                Ok(Err((error, _message))) => {
                    let found = self.refusal(&error, number);
                    // Of several the one that is for good is told: the others would come again for nothing.
                    if refusal.as_ref().is_none_or(ExportError::is_retryable) {
                        refusal = Some(found);
                    }
                }
                Err(_canceled) => refusal = refusal.or(Some(unavailable("the producer was replaced"))),
            }
        }
        self.metrics.queue.set(i64::from(producer.in_flight_count()));
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.metrics.items(signal, &delta);
        Ok(Accepted { stored: delta.stored, rejected: delta.rejected })
    }

    /// What a client is told when a message cannot be delivered.
    fn refusal(&self, error: &RdKafkaError, number: u64) -> ExportError {
        let code = error.rdkafka_error_code();
        let (reason, refusal) = match code {
            Some(RDKafkaErrorCode::QueueFull) => ("queue_full", unavailable("the queue to Kafka is full")),
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
                let limit = self.config.message_bytes_max;
                tracing::error!(
                    limit,
                    "brokers take smaller messages than `kafka.message_bytes`: lower it, or raise their `max.message.bytes`"
                );
                ("too_large", ExportError::TooLarge { what: "a message", limit })
            }
            Some(RDKafkaErrorCode::Fatal) => {
                tracing::error!(%error, "the producer of Kafka failed for good and is replaced; clients send again");
                self.renew(number);
                ("fatal", unavailable("the producer was replaced"))
            }
            _ => {
                tracing::warn!(%error, "Kafka did not take a request; its client will send again");
                let reason = if code == Some(RDKafkaErrorCode::MessageTimedOut) { "timeout" } else { "broker" };
                (reason, unavailable("Kafka does not confirm at the moment"))
            }
        };
        self.metrics.refused(reason);
        refusal
    }
}

const fn unavailable(what: &'static str) -> ExportError {
    ExportError::Overloaded { what, retry_after: RETRY_AFTER }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Export for Gateway {
    fn export(&self, request: ExportRequest) -> impl Future<Output = Result<Accepted, ExportError>> + Send {
        Arc::clone(&self.0).export(request)
    }
}
