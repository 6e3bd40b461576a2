//! The writer: a thread that reads topics into a store, every message's rows once.
//!
//! ```text
//! poll ─▶ decode ─▶ group ─▶ log: rows and positions in one record, synced ─▶ offsets to Kafka, once a second
//!   │        └ no telemetry ─▶ dead letters, delivered first
//!   └ rebalance: what is gathered is stored, or dropped and read again
//! ```
//!
//! One thread does all of it, so that nothing is under way when partitions come and go: they do so within a poll. A
//! group is whatever the client has fetched meanwhile, up to bytes and rows; while the log syncs, the client fetches
//! the next. When the store takes nothing the partitions are paused and the group waits: that is the back-pressure, and
//! Kafka is the buffer.
//!
//! Not here: which messages are read and stored ([`crate::progress`]), and what the store does with a group.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ingest::decode::OpenGate;
use ingest::group::Gather;
use ingest::json;
use ingest::series::{RequestSeries, SeriesLimiter};
use model::ledger::LedgerDelta;
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use prometheus_client::registry::Registry;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError as RdKafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use store::{Entry, Position, Store, StoreError};
use tokio::sync::oneshot;

use crate::client;
use crate::config::{Encoding, KafkaConfig};
use crate::dead::{DeadLetter, DeadLetters, DeadReason};
use crate::error::KafkaError;
use crate::gateway::TENANT_HEADER;
use crate::metrics::WriterMetrics;
use crate::progress::{Place, Progress, Start, start};

/// How long a poll waits when nothing is gathered: how soon a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// How long a question to a broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is asked in vain, when partitions are assigned, before the client is made anew.
const ASKS_MAX: u32 = 6;

/// After a refusal the same group is tried again this much later, then twice as long each time…
const RETRY_DELAY_MIN: Duration = Duration::from_millis(50);
/// …up to this: room is found within it.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// Before a client is made anew.
const RENEW_DELAY: Duration = Duration::from_secs(1);

/// How often the client tells its numbers, of which the lag is made.
const STATISTICS_INTERVAL_MS: &str = "2000";

/// How often the same trouble is told.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Where groups become durable together with how far they were read: the store, and in tests whatever stands in for it.
pub trait PositionedLog: Send + Sync + 'static {
    /// As [`Store::append_group_at`].
    ///
    /// # Errors
    /// As [`Store::append_group_at`].
    fn append_group_at(&self, entries: &mut Vec<Entry>, positions: &[Position]) -> Result<(), StoreError>;

    /// As [`Store::position`].
    fn position(&self, source: &str, partition: i32) -> Option<i64>;

    /// As [`Store::log_id`].
    fn log_id(&self) -> [u8; 16];
}

impl PositionedLog for Store {
    fn append_group_at(&self, entries: &mut Vec<Entry>, positions: &[Position]) -> Result<(), StoreError> {
        Self::append_group_at(self, entries, positions)
    }

    fn position(&self, source: &str, partition: i32) -> Option<i64> {
        Self::position(self, source, partition)
    }

    fn log_id(&self) -> [u8; 16] {
        Self::log_id(self)
    }
}

/// A running writer.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl Writer {
    /// Starts the thread. Brokers need not be there yet. `on_fatal` is called once when the log can no longer promise
    /// durability; the process must end then.
    ///
    /// # Errors
    /// [`KafkaError`] when the configuration makes no sense, or the operating system refuses a thread.
    pub fn start(
        config: KafkaConfig,
        log: Arc<dyn PositionedLog>,
        series: SeriesLimiter,
        clock: Clock,
        registry: &mut Registry,
        on_fatal: impl FnOnce(StoreError) + Send + 'static,
    ) -> Result<Self, KafkaError> {
        config.check()?;
        let dead = DeadLetters::new(&config)?;
        let shared = Arc::new(Shared {
            topics: Signal::ALL.map(|signal| Arc::from(config.topic(signal))),
            sources: OnceLock::new(),
            dead,
            log,
            series,
            clock,
            metrics: WriterMetrics::register(registry),
            work: Mutex::default(),
            must_renew: AtomicBool::new(false),
            stop: Arc::default(),
            config,
        });
        // Settings that the client refuses are told now.
        drop(shared.consumer()?);
        let stop = Arc::clone(&shared.stop);
        let (alive, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("kafka-writer".to_owned())
            .spawn(move || {
                let _alive = alive;
                if let Err(fatal) = shared.run() {
                    on_fatal(fatal);
                }
            })
            .map_err(|source| KafkaError::Thread { source })?;
        Ok(Self { stop, thread, ended })
    }

    /// Returns when the thread has ended by itself: by a fatal error, which was told, or by a defect.
    pub async fn ended(&mut self) {
        drop((&mut self.ended).await);
    }

    /// Stores what is gathered, tells Kafka how far that is, and ends.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the thread that reads Kafka panicked");
        }
    }
}

/// What is gathered, and how far.
#[derive(Default)]
struct Work {
    progress: Progress,
    gather: Gather,
    /// The gathered rows, once they are encoded.
    entries: Option<Vec<Entry>>,
    series: Vec<RequestSeries>,
    items: BTreeMap<Signal, LedgerDelta>,
    /// Messages and their bytes, by topic.
    counts: [(u64, u64); Signal::ALL.len()],
    dead: Vec<DeadLetter>,
    bytes: usize,
    /// So many messages are stored one by one: one of them is at fault for the failure of a whole group.
    alone: u64,
    /// What becomes of the one that is.
    suspect: Option<DeadLetter>,
    text: Vec<u8>,
}

impl Work {
    fn messages(&self) -> u64 {
        self.counts.iter().map(|(messages, _)| messages).sum()
    }

    fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Forgets what is gathered, but not how far that is.
    fn forget(&mut self) {
        self.gather.clear();
        self.entries = None;
        // Dropped, they take back the series that were new.
        self.series.clear();
        self.items.clear();
        self.counts = Default::default();
        self.dead.clear();
        self.bytes = 0;
        self.suspect = None;
    }

    /// Drops what is gathered; it is read again.
    fn drop_group(&mut self) {
        self.forget();
        self.progress.dropped();
    }
}

/// Why a group is not stored.
#[derive(Debug)]
enum Refused {
    /// It is tried again as it is.
    Later { reason: &'static str, detail: String },
    /// It was dropped: its messages come again one by one.
    Apart,
    /// The log can no longer promise durability.
    Fatal(StoreError),
}

struct Shared {
    config: KafkaConfig,
    topics: [Arc<str>; Signal::ALL.len()],
    /// The topics' names with the cluster's before them, once that is known: what positions are kept by.
    sources: OnceLock<[Arc<str>; Signal::ALL.len()]>,
    dead: DeadLetters,
    log: Arc<dyn PositionedLog>,
    series: SeriesLimiter,
    clock: Clock,
    metrics: WriterMetrics,
    work: Mutex<Work>,
    /// The client cannot go on as it is.
    must_renew: AtomicBool,
    stop: Arc<AtomicBool>,
}

type Consumer = BaseConsumer<Context>;

/// What the client calls, from within polls.
struct Context(Arc<Shared>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: RdKafkaError, reason: &str) {
        client::trouble(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.show_lag(&statistics);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &Consumer, what: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let is_assigned = matches!(what, RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS);
        let none = TopicPartitionList::new();
        let is_known = if is_assigned {
            self.0.assigned(consumer, partitions)
        } else {
            self.0.revoked(consumer, partitions);
            true
        };
        // Nothing is read of what nobody knows how far it was read.
        let partitions = if is_known { &*partitions } else { &none };
        let done = match (consumer.rebalance_protocol(), is_assigned) {
            (RebalanceProtocol::Cooperative, true) => consumer.incremental_assign(partitions),
            (RebalanceProtocol::Cooperative, false) => consumer.incremental_unassign(partitions),
            (_, true) => consumer.assign(partitions),
            (_, false) => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::error!(%error, "the client of Kafka does not take a rebalance and is made anew");
            self.0.must_renew.store(true, Ordering::Release);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) => {}
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NoOffset) => {}
            Err(error) => {
                self.0.metrics.commit_failures.inc();
                tracing::warn!(%error, "Kafka does not take offsets; the store has them, and the next commit has newer ones");
            }
        }
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn consumer(self: &Arc<Self>) -> Result<Consumer, RdKafkaError> {
        let config = &self.config;
        let mut settings: ClientConfig = client::settings(config);
        settings
            .set("group.id", &config.group)
            // A member by name gets its partitions back when it comes again within the session, without a rebalance; and
            // a copy of a data directory cannot run beside it.
            .set("group.instance.id", hex::encode(self.log.log_id()))
            .set("session.timeout.ms", config.session_timeout_ms.to_string())
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", config.commit_interval_ms.to_string())
            // Only what is durable is committed.
            .set("enable.auto.offset.store", "false")
            // Where to go on is decided here, and so is what it means that an offset is gone.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("queued.max.messages.kbytes", (config.prefetch_bytes_max >> 10).max(1).to_string())
            .set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
        settings.create_with_context(Context(Arc::clone(self)))
    }

    /// Reads until it is told to stop; a client that fails for good is made anew.
    fn run(self: &Arc<Self>) -> Result<(), StoreError> {
        while !self.stops() {
            self.must_renew.store(false, Ordering::Release);
            match self.consumer() {
                Ok(consumer) => {
                    let outcome = self.read(&consumer);
                    // Closing revokes what is assigned; nothing is gathered any more then.
                    drop(consumer);
                    *self.work() = Work::default();
                    self.show();
                    outcome?;
                }
                Err(error) => tracing::error!(%error, "cannot make a client of Kafka; it is tried again"),
            }
            self.pause_unless_stopped(RENEW_DELAY);
        }
        Ok(())
    }

    fn pause_unless_stopped(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.stops() && Instant::now() < until {
            std::thread::park_timeout(POLL);
        }
    }

    /// Reads with one client until it must be made anew, or it is told to stop.
    fn read(self: &Arc<Self>, consumer: &Consumer) -> Result<(), StoreError> {
        if !self.learn_cluster(consumer) {
            return Ok(());
        }
        let topics: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
        if let Err(error) = consumer.subscribe(&topics) {
            tracing::error!(%error, "cannot subscribe to topics of Kafka; it is tried again");
            return Ok(());
        }
        let mut told: Option<Instant> = None;
        while !self.stops() && !self.must_renew.load(Ordering::Acquire) {
            let wait = if self.work().is_empty() { POLL } else { Duration::ZERO };
            let is_due = match consumer.poll(wait) {
                Some(Ok(message)) => self.take(&message),
                Some(Err(error)) => {
                    self.told(consumer, &error, &mut told);
                    false
                }
                // Nothing is ready: what there is need not wait for more.
                None => true,
            };
            self.seek(consumer);
            if is_due && !self.work().is_empty() {
                self.store_until_done(consumer)?;
            }
        }
        self.finish(consumer)
    }

    /// The last group, and the last commit.
    fn finish(&self, consumer: &Consumer) -> Result<(), StoreError> {
        let mut work = self.work();
        match self.store(consumer, &mut work) {
            Ok(()) => {}
            Err(Refused::Fatal(error)) => return Err(error),
            // It is read again by the next start.
            Err(Refused::Later { .. } | Refused::Apart) => work.drop_group(),
        }
        drop(work);
        if let Err(error) = consumer.commit_consumer_state(CommitMode::Sync)
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::NoOffset)
        {
            tracing::warn!(%error, "Kafka was not told how far it was read; the store knows it");
        }
        Ok(())
    }

    /// The cluster's name is part of what positions are kept by: another cluster's topics are other topics.
    fn learn_cluster(&self, consumer: &Consumer) -> bool {
        if self.sources.get().is_some() {
            return true;
        }
        while !self.stops() {
            if let Some(cluster) = client::cluster_of(consumer.client(), RENEW_DELAY) {
                let of = |topic: &Arc<str>| Arc::from(format!("kafka/{cluster}/{topic}"));
                drop(self.sources.set(self.topics.each_ref().map(of)));
                return true;
            }
            // Serves the client's log and errors.
            drop(consumer.poll(Duration::ZERO));
        }
        false
    }

    fn place_of(&self, topic: &str, partition: i32) -> Option<Place> {
        self.topics.iter().position(|known| **known == *topic).map(|index| (index, partition))
    }

    fn own_position(&self, (topic, partition): Place) -> Option<i64> {
        self.log.position(self.sources.get()?.get(topic)?, partition)
    }

    /// Gathers a message; whether the group is to be stored now.
    fn take(&self, message: &BorrowedMessage<'_>) -> bool {
        let mut work = self.work();
        let work = &mut *work;
        let Some(place) = self.place_of(message.topic(), message.partition()) else { return false };
        if work.entries.is_some() {
            // A group that waits for the store takes nothing more: what it has is read again.
            work.drop_group();
        }
        if !work.progress.take(place, message.offset()) {
            return false;
        }
        let (index, _) = place;
        let payload = message.payload().unwrap_or_default();
        work.counts[index].0 += 1;
        work.counts[index].1 += payload.len() as u64;
        work.bytes += payload.len();
        let topic = &self.topics[index];
        if work.alone > 0 {
            work.suspect =
                Some(DeadLetter::of(topic, message, DeadReason::TooLarge, "its rows fit no record of the log"));
        }
        let decoded = match self.tenant(message) {
            Ok(tenant) => self.decode(work, Signal::ALL[index], &tenant, payload, message),
            Err(dead) => Err(dead),
        };
        if let Err((reason, detail)) = decoded {
            let letter = DeadLetter::of(topic, message, reason, &detail);
            work.bytes += letter.bytes();
            if reason == DeadReason::Panic && work.messages() > 1 {
                // What else was gathered went with it.
                work.alone = work.messages();
                work.drop_group();
                return false;
            }
            work.dead.push(letter);
        }
        self.metrics.in_flight.set(i64::try_from(work.messages()).unwrap_or(i64::MAX));
        work.alone > 0 || work.bytes >= self.config.group_bytes_max || work.gather.rows() >= self.config.group_rows_max
    }

    fn tenant(&self, message: &BorrowedMessage<'_>) -> Result<TenantId, (DeadReason, String)> {
        let named = message.headers().and_then(|headers| headers.iter().find(|header| header.key == TENANT_HEADER));
        let Some(header) = named else { return Ok(self.config.tenant.clone()) };
        let name = String::from_utf8_lossy(header.value.unwrap_or_default());
        TenantId::new(&name).map_err(|error| (DeadReason::Tenant, error.to_string()))
    }

    fn decode(
        &self,
        work: &mut Work,
        signal: Signal,
        tenant: &TenantId,
        payload: &[u8],
        message: &BorrowedMessage<'_>,
    ) -> Result<(), (DeadReason, String)> {
        let malformed = |error: &dyn std::fmt::Display| (DeadReason::Malformed, error.to_string());
        let Work { gather, text, .. } = work;
        // A log record without a time has that of its message: so it is the same whenever it is read.
        let sent = message.timestamp().to_millis().and_then(|millis| millis.checked_mul(1_000_000)).map(Timestamp);
        let now = sent.filter(|sent| sent.0 > 0).unwrap_or_else(|| self.clock.now());
        let mut series = (signal == Signal::Metrics).then(|| self.series.request(tenant, self.clock.now()));
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            let body = match self.config.encoding {
                Encoding::OtlpProto => payload,
                Encoding::OtlpJson if payload.is_empty() => payload,
                Encoding::OtlpJson => {
                    text.clear();
                    json::transcode(signal, payload, text).map_err(|error| malformed(&error))?;
                    &text[..]
                }
            };
            let decoded = match &mut series {
                Some(series) => gather.decode(signal, tenant, body, now, series),
                None => gather.decode(signal, tenant, body, now, &mut OpenGate),
            };
            decoded.map_err(|error| malformed(&error))
        }));
        match decoded {
            Ok(Ok(delta)) => {
                work.items.entry(signal).or_default().merge(&delta);
                work.series.extend(series);
                Ok(())
            }
            Ok(Err(dead)) => Err(dead),
            Err(_panic) => {
                work.gather.clear();
                Err((DeadReason::Panic, "decoding it panicked: a defect of godseye, please report it".to_owned()))
            }
        }
    }

    /// Stores what is gathered.
    fn store(&self, consumer: &Consumer, work: &mut Work) -> Result<(), Refused> {
        if work.is_empty() {
            return Ok(());
        }
        // First: what is stored is not read again.
        self.dead.deliver(&mut work.dead, &self.metrics).map_err(|error| Refused::Later {
            reason: "dead_letters",
            detail: format!("topic `{}` takes no dead letter: {error}", self.config.dead_letters),
        })?;
        if work.entries.is_none() {
            let now = self.clock.now();
            let finished = catch_unwind(AssertUnwindSafe(|| work.gather.finish(now, true)));
            match finished {
                Ok(Ok(entries)) => work.entries = Some(entries),
                Ok(Err(error)) => return self.apart(consumer, work, &error.to_string()),
                Err(_panic) => return self.apart(consumer, work, "encoding it panicked"),
            }
        }
        let sources = self.sources.get().expect("topics are subscribed to once the cluster is known");
        let position = |((topic, partition), next): (Place, i64)| Position {
            source: Arc::clone(&sources[topic]),
            partition,
            next,
        };
        let positions: Vec<Position> = work.progress.gathered().map(position).collect();
        let entries = work.entries.as_mut().expect("they were made above");
        match self.log.append_group_at(entries, &positions) {
            Ok(()) => {}
            Err(error) if error.is_fatal() => return Err(Refused::Fatal(error)),
            Err(error) if error.is_for_good() => return self.apart(consumer, work, &error.to_string()),
            Err(error) => {
                let reason = if error.is_retryable() { "no_room" } else { "failed" };
                return Err(Refused::Later { reason, detail: error.to_string() });
            }
        }
        for (index, (messages, bytes)) in work.counts.iter().enumerate().filter(|(_, counts)| counts.0 > 0) {
            self.metrics.consumed(&self.topics[index], *messages, *bytes);
        }
        for (signal, delta) in &work.items {
            self.metrics.items(*signal, delta);
        }
        work.series.drain(..).for_each(RequestSeries::keep);
        work.alone = work.alone.saturating_sub(work.messages());
        self.metrics.groups.inc();
        self.stored(consumer, work);
        Ok(())
    }

    /// What is gathered is where it belongs: Kafka may be told.
    fn stored(&self, consumer: &Consumer, work: &mut Work) {
        let mut offsets = TopicPartitionList::new();
        for ((topic, partition), next) in work.progress.gathered() {
            if let Err(error) = offsets.add_partition_offset(&self.topics[topic], partition, Offset::Offset(next)) {
                tracing::error!(%error, partition, next, "an offset that is none");
            }
        }
        work.progress.stored();
        work.forget();
        if let Err(error) = consumer.store_offsets(&offsets) {
            // Its partitions have just gone elsewhere; those who have them find out by what was committed before.
            tracing::debug!(%error, "the client of Kafka does not keep offsets");
        }
        self.metrics.in_flight.set(0);
    }

    /// A group is at fault: of several messages one is, so they are read again one by one; one alone is dead.
    fn apart(&self, consumer: &Consumer, work: &mut Work, why: &str) -> Result<(), Refused> {
        match work.suspect.take().filter(|_| work.messages() == 1) {
            Some(mut letter) => {
                letter.detail = why.to_owned();
                work.dead.clear();
                work.dead.push(letter);
                work.gather.clear();
                work.series.clear();
                work.items.clear();
                work.entries = Some(Vec::new());
                self.store(consumer, work)
            }
            None => {
                tracing::warn!(
                    messages = work.messages(),
                    why,
                    "a group cannot be stored; its messages are, one by one"
                );
                work.alone = work.messages();
                work.drop_group();
                Err(Refused::Apart)
            }
        }
    }

    /// Stores the group, however long it takes; meanwhile nothing more is read, and the client keeps its membership.
    fn store_until_done(&self, consumer: &Consumer) -> Result<(), StoreError> {
        let mut delay = RETRY_DELAY_MIN;
        let mut told: Option<Instant> = None;
        let mut paused = false;
        loop {
            let outcome = {
                let mut work = self.work();
                self.store(consumer, &mut work)
            };
            match outcome {
                Ok(()) | Err(Refused::Apart) => break,
                Err(Refused::Fatal(error)) => return Err(error),
                Err(Refused::Later { reason, detail }) => {
                    self.metrics.refused(reason);
                    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                        tracing::warn!(reason, detail, "a group is not stored yet; Kafka keeps what comes meanwhile");
                        told = Some(Instant::now());
                    }
                }
            }
            // Again each time: a rebalance may have brought more.
            paused = self.pause(consumer, true) || paused;
            let until = Instant::now() + delay;
            while !self.stops() && Instant::now() < until && !self.work().is_empty() {
                if let Some(Ok(message)) = consumer.poll(until.saturating_duration_since(Instant::now()).min(POLL)) {
                    self.go_back_to(&message);
                }
            }
            if self.stops() || self.must_renew.load(Ordering::Acquire) {
                break;
            }
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
        if paused {
            self.pause(consumer, false);
            tracing::info!("the store takes telemetry again; Kafka is read on");
        }
        Ok(())
    }

    /// A message came that had been fetched before its partition was paused: it has to come again.
    fn go_back_to(&self, message: &BorrowedMessage<'_>) {
        let mut work = self.work();
        work.drop_group();
        let Some(place) = self.place_of(message.topic(), message.partition()) else { return };
        if let Some(durable) = work.progress.durable(place) {
            work.progress.move_to(place, durable);
        }
    }

    fn pause(&self, consumer: &Consumer, pause: bool) -> bool {
        let Ok(assigned) = consumer.assignment() else { return false };
        let done = if pause { consumer.pause(&assigned) } else { consumer.resume(&assigned) };
        self.metrics.paused.set(i64::from(pause));
        if let Err(error) = done {
            tracing::warn!(%error, pause, "the client of Kafka cannot be paused or resumed");
        }
        true
    }

    /// Goes back to where what was dropped begins.
    fn seek(&self, consumer: &Consumer) {
        let mut work = self.work();
        for (place, offset) in work.progress.to_seek() {
            match consumer.seek(&self.topics[place.0], place.1, Offset::Offset(offset), ASK_TIMEOUT) {
                Ok(()) => work.progress.sought(place),
                Err(error) => {
                    tracing::warn!(%error, topic = %self.topics[place.0], partition = place.1, offset, "cannot go back; it is tried again");
                }
            }
        }
    }

    /// What a poll tells instead of a message.
    fn told(&self, consumer: &Consumer, error: &RdKafkaError, told: &mut Option<Instant>) {
        let mut once_in_a_while = |what: &str| {
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                tracing::warn!(%error, "{what}");
                *told = Some(Instant::now());
            }
        };
        match (error, error.rdkafka_error_code()) {
            (_, Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => {
                self.find_places(consumer);
            }
            (_, Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
                once_in_a_while("a topic is not there yet; it is looked for again");
            }
            // Whatever stood there would be passed over.
            (_, Some(RDKafkaErrorCode::NotImplemented)) => {
                self.metrics.unreadable_batches.inc();
                tracing::error!(
                    %error,
                    "a topic has messages that are compressed as this build cannot read; nothing is read until it can: build \
                     it with `--features kafka-zstd`, or have producers use gzip, snappy or lz4"
                );
                self.must_renew.store(true, Ordering::Release);
            }
            (_, Some(RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::BadMessage)) => {
                self.metrics.unreadable_batches.inc();
                tracing::error!(%error, "a batch of messages in a topic of Kafka is damaged and is lost");
            }
            (RdKafkaError::MessageConsumptionFatal(_), _) => {
                tracing::error!(%error, "the client of Kafka failed for good and is made anew; does another writer run on a copy of this data directory?");
                self.must_renew.store(true, Ordering::Release);
            }
            _ => once_in_a_while("Kafka has trouble; the client tries again"),
        }
    }

    /// Some partition's offset is gone: looks which, and goes on where there is something.
    fn find_places(&self, consumer: &Consumer) {
        let mut work = self.work();
        let places: Vec<Place> = work.progress.places().collect();
        work.drop_group();
        for place in places {
            let Some(range) = self.range(consumer, place) else { continue };
            let durable = work.progress.durable(place);
            let found = start(durable, None, Some(range));
            self.tell_start(place, durable, found);
            if let Some(offset) = found.offset.filter(|offset| Some(*offset) != durable) {
                work.progress.move_to(place, offset);
            }
        }
    }

    fn range(&self, consumer: &Consumer, (topic, partition): Place) -> Option<(i64, i64)> {
        consumer.fetch_watermarks(&self.topics[topic], partition, ASK_TIMEOUT).ok()
    }

    /// What it means that a partition does not go on where it was.
    fn tell_start(&self, (index, partition): Place, known: Option<i64>, found: Start) {
        let topic = &self.topics[index];
        if found.lost > 0 {
            self.metrics.lost(topic, found.lost);
            tracing::error!(
                %topic, partition, messages = found.lost, from = known, to = found.offset,
                "Kafka deleted messages before they were read: they are lost; give the topic a longer retention, or add writers"
            );
        }
        if found.restarted {
            self.metrics.restarted_partitions.inc();
            tracing::error!(
                %topic, partition, from = known, to = found.offset,
                "a partition ends before what was read of it: it was made anew, or lost its end; it is read from its start"
            );
        }
    }

    /// Partitions come: each is read from where its rows end.
    /// Whether it is known where that is.
    fn assigned(&self, consumer: &Consumer, partitions: &mut TopicPartitionList) -> bool {
        if partitions.count() == 0 {
            return true;
        }
        self.metrics.rebalanced("assigned");
        let Some(committed) = self.committed(consumer, partitions) else {
            // From the start would be twice, and from the end would be a loss.
            self.must_renew.store(true, Ordering::Release);
            return false;
        };
        let mut work = self.work();
        for ((topic, partition), offset) in committed.to_topic_map() {
            let Some(place) = self.place_of(&topic, partition) else { continue };
            let own = self.own_position(place);
            let committed = match offset {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            let found = start(own, committed, self.range(consumer, place));
            self.tell_start(place, own.max(committed), found);
            tracing::info!(topic, partition, own, committed, from = found.offset, "reading a partition of Kafka");
            let from = found.offset.map_or(Offset::Beginning, Offset::Offset);
            if let Err(error) = partitions.set_partition_offset(&topic, partition, from) {
                tracing::error!(%error, topic, partition, "an offset that is none");
                self.must_renew.store(true, Ordering::Release);
            }
            work.progress.assign(place, found.offset.unwrap_or(0));
        }
        drop(work);
        self.show();
        true
    }

    /// What the group has committed; `None` if nobody tells.
    fn committed(&self, consumer: &Consumer, partitions: &TopicPartitionList) -> Option<TopicPartitionList> {
        for _ in 0..ASKS_MAX {
            match consumer.committed_offsets(partitions.clone(), ASK_TIMEOUT) {
                Ok(committed) => return Some(committed),
                Err(error) => tracing::warn!(%error, "Kafka does not tell what is committed; it is asked again"),
            }
            if self.stops() {
                break;
            }
        }
        None
    }

    /// Partitions go: what is gathered is stored first, if they are still ours, or dropped.
    fn revoked(&self, consumer: &Consumer, partitions: &TopicPartitionList) {
        if partitions.count() == 0 {
            return;
        }
        let is_lost = consumer.assignment_lost();
        self.metrics.rebalanced(if is_lost { "lost" } else { "revoked" });
        let mut work = self.work();
        // A group that is lost is read by others, from what was committed: stored here it would be there twice.
        let stored = !is_lost && self.store(consumer, &mut work).is_ok();
        if !stored {
            work.drop_group();
        }
        let mut offsets = TopicPartitionList::new();
        for (topic, partition) in partitions.to_topic_map().into_keys() {
            let Some(place) = self.place_of(&topic, partition) else { continue };
            if let Some(durable) = work.progress.durable(place) {
                drop(offsets.add_partition_offset(&topic, partition, Offset::Offset(durable)));
            }
            work.progress.revoke(place);
            self.metrics.forget_lag(&self.topics[place.0], partition);
        }
        drop(work);
        tracing::info!(partitions = partitions.count(), is_lost, "partitions of Kafka go to other writers");
        // So that whoever gets them begins where their rows end.
        if !is_lost
            && offsets.count() > 0
            && let Err(error) = consumer.commit(&offsets, CommitMode::Sync)
        {
            self.metrics.commit_failures.inc();
            tracing::warn!(%error, "Kafka was not told how far partitions were read that go elsewhere: some rows may be there twice");
        }
        self.show();
    }

    fn show(&self) {
        let work = self.work();
        self.metrics.assigned.set(i64::try_from(work.progress.len()).unwrap_or(i64::MAX));
        self.metrics.in_flight.set(i64::try_from(work.messages()).unwrap_or(i64::MAX));
    }

    /// The lag of each partition: what there is, without what is durable.
    fn show_lag(&self, statistics: &Statistics) {
        let work = self.work();
        for place in work.progress.places() {
            let topic = &self.topics[place.0];
            let known = statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(&place.1));
            if let (Some(known), Some(durable)) = (known, work.progress.durable(place))
                && known.hi_offset >= 0
            {
                self.metrics.lag(topic, place.1, known.hi_offset.saturating_sub(durable).max(0));
            }
        }
    }
}
