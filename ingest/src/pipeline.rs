//! The pipeline between the receivers and the store, and the only file that wires its queues.
//!
//! ```text
//! receivers ──▶ [decode queue] ──▶ decode threads ──▶ [log queue] ──▶ log thread ──▶ acknowledge
//!               requests_max                          groups_max        append + fdatasync
//! ```
//!
//! Group commit needs no timer: while the log thread waits for the disk, decode threads gather the
//! requests that arrive into one group. At low load a request is logged at once; at high load the
//! groups grow until the disk is no longer the bottleneck.
//!
//! Every request gets exactly one outcome, and success only after `fdatasync` (I1). Request
//! bytes in flight are bounded before this point, by [`crate::admission`]; the queues bound their
//! number (I6). What requests take once decoded is bounded by limits on the items of one
//! ([`model::limits`]), on the rows of a group, and on the memory of all groups together.
//!
//! Not here: sockets, wire formats, and what the store does with a group.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use model::ledger::LedgerDelta;
use model::signal::Signal;
use model::time::{Clock, Timestamp};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use store::{Entry, Store, StoreError};
use tokio::sync::oneshot;

use crate::decode::OpenGate;
use crate::export::{Accepted, ExportError, ExportRequest};
use crate::group::Gather;
use crate::receiver::Export;
use crate::series::{RequestSeries, SeriesLimiter};

/// When a client that met a full queue or disk should come back: long enough for a flush, short
/// enough that no exporter gives up (their first retry is after about 5 s).
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Groups share a sync up to this many bytes, so that together with one more, of a request at its
/// size limit, they stay below what one record of the log may hold.
const SHARED_SYNC_BYTES_MAX: usize = 16 << 20;

/// How the pipeline is built. Plain data.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// Threads that decode. Half the cores, since receivers and the store need the others.
    pub decode_threads: usize,
    /// Requests that may wait to be decoded. Their bytes are bounded by admission; this bounds
    /// their number when they are tiny.
    pub decode_queue_requests_max: usize,
    /// A group is cut at this many bytes of requests. All of a group waits for its last request to be
    /// decoded, so that on a busy core a large group is what a slow acknowledgement waits for; smaller
    /// ones save nothing more, since the log thread puts what is ready under one sync.
    pub group_bytes_max: usize,
    /// A group is cut at this many rows too, plus those of one request: an empty item takes two
    /// bytes on the wire and some hundreds in columns.
    pub group_rows_max: usize,
    /// Memory of decoded groups, from decoding until they are in the memtable, bytes. Above it no
    /// thread begins another group, so each may pass it by the one it is at.
    pub decoded_bytes_max: usize,
    /// Groups that may wait for the log thread. Two: one being synced, one ready, so that the disk
    /// never waits for decoding.
    pub log_queue_groups_max: usize,
    /// Active metric series per tenant.
    pub series_max: usize,
    /// Whether groups are encoded for the log. A log that keeps nothing needs no bytes.
    pub encode: bool,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            decode_threads: (cores / 2).clamp(1, 16),
            decode_queue_requests_max: 4096,
            group_bytes_max: 512 << 10,
            group_rows_max: 1 << 17,
            decoded_bytes_max: 256 << 20,
            log_queue_groups_max: 2,
            series_max: 1_000_000,
            encode: true,
        }
    }
}

/// Where groups become durable. The store, and in tests whatever stands in for it.
pub trait Log: Send + Sync + 'static {
    /// Makes a group durable and visible, all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError`]; a fatal one means that no later group may be acknowledged.
    fn append_group(&self, entries: Vec<Entry>) -> Result<(), StoreError>;
}

impl Log for Store {
    fn append_group(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        Self::append_group(self, entries)
    }
}

/// A request and where its outcome goes.
struct Job {
    request: ExportRequest,
    reply: oneshot::Sender<Result<Accepted, ExportError>>,
}

/// Requests decoded together: rows to log, and whom to tell.
struct Group {
    entries: Vec<Entry>,
    replies: Vec<Reply>,
    memory: Held,
}

/// Whom to tell, and what happens to be true once the group is durable.
struct Reply {
    to: oneshot::Sender<Result<Accepted, ExportError>>,
    signal: Signal,
    delta: LedgerDelta,
    /// The series of a metrics request.
    series: Option<RequestSeries>,
}

/// The memory of all groups that are decoded and not yet in the memtable.
#[derive(Clone, Debug, Default)]
struct DecodedMemory {
    held: Arc<(Mutex<usize>, Condvar)>,
    gauge: Gauge,
}

impl DecodedMemory {
    /// Waits until less than `max` bytes are held. The log thread gives back what it has done, and,
    /// when it ends, everything.
    fn wait_below(&self, max: usize) {
        let (held, freed) = &*self.held;
        let guard = held.lock().unwrap_or_else(PoisonError::into_inner);
        drop(freed.wait_while(guard, |held| *held >= max).unwrap_or_else(PoisonError::into_inner));
    }

    fn hold(&self, bytes: usize) -> Held {
        self.change(|held| held.saturating_add(bytes));
        Held { bytes, memory: self.clone() }
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let (held, freed) = &*self.held;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = change(*held);
        self.gauge.set(i64::try_from(*held).unwrap_or(i64::MAX));
        freed.notify_all();
    }
}

/// One group's share of [`DecodedMemory`], given back when dropped.
struct Held {
    bytes: usize,
    memory: DecodedMemory,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.change(|held| held.saturating_sub(self.bytes));
    }
}

impl Group {
    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.encoded.len()).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ItemLabels {
    signal: &'static str,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    items: Family<ItemLabels, Counter>,
    malformed: Counter,
    queue_depth: Family<QueueLabel, Gauge>,
    groups: Counter,
    panics: Counter,
    decoded: DecodedMemory,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "godseye_ingest_items",
            "Items received, by outcome: stored, or rejected for a reason",
            self.items.clone(),
        );
        registry.register(
            "godseye_ingest_malformed_requests",
            "Requests refused because they are not valid OTLP",
            self.malformed.clone(),
        );
        registry.register("godseye_ingest_queue_depth", "Entries waiting in a queue", self.queue_depth.clone());
        registry.register("godseye_ingest_groups", "Groups of requests handed to the log", self.groups.clone());
        registry.register(
            "godseye_ingest_decoded_bytes",
            "Memory of decoded groups that are not in the memtable yet",
            self.decoded.gauge.clone(),
        );
        registry.register(
            "godseye_ingest_decode_panics",
            "Requests whose decoding panicked: a defect, please report it",
            self.panics.clone(),
        );
    }

    fn count(&self, signal: Signal, delta: &LedgerDelta) {
        let add = |outcome, reason, items| {
            self.items.get_or_create(&ItemLabels { signal: signal.name(), outcome, reason }).inc_by(items);
        };
        if delta.stored > 0 {
            add("stored", "", delta.stored);
        }
        for (reason, items) in &delta.rejected {
            add("rejected", reason.name(), *items);
        }
    }

    fn depth(&self, queue: &'static str, depth: usize) {
        self.queue_depth.get_or_create(&QueueLabel { queue }).set(i64::try_from(depth).unwrap_or(i64::MAX));
    }
}

/// The receivers' end of the pipeline. Cheap to clone.
#[derive(Clone)]
pub struct PipelineHandle {
    jobs: Sender<Job>,
    draining: Arc<AtomicBool>,
    metrics: Metrics,
}

impl Export for PipelineHandle {
    fn export(&self, request: ExportRequest) -> impl Future<Output = Result<Accepted, ExportError>> + Send {
        let (reply, outcome) = oneshot::channel();
        let sent = if self.draining.load(Ordering::Acquire) {
            Err(ExportError::ShuttingDown)
        } else {
            self.jobs.try_send(Job { request, reply }).map_err(|refused| match refused {
                TrySendError::Full(_) => {
                    ExportError::Overloaded { what: "the decode queue is full", retry_after: RETRY_AFTER }
                }
                TrySendError::Disconnected(_) => ExportError::ShuttingDown,
            })
        };
        self.metrics.depth("decode", self.jobs.len());
        async move {
            sent?;
            // A dropped reply means that the log failed for good: nothing was acknowledged, the
            // process is ending, and the client shall send again.
            outcome.await.unwrap_or(Err(ExportError::ShuttingDown))
        }
    }
}

/// A running pipeline.
pub struct Pipeline {
    handle: PipelineHandle,
    series: SeriesLimiter,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts the threads. `on_fatal` is called once when the log can no longer promise
    /// durability; the process must end then.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(
        config: &PipelineConfig,
        log: Arc<dyn Log>,
        clock: &Clock,
        registry: &mut Registry,
        on_fatal: impl FnOnce(StoreError) + Send + 'static,
    ) -> std::io::Result<Self> {
        let metrics = Metrics::default();
        metrics.register(registry);
        let series = SeriesLimiter::new(config.series_max);
        series.register(registry);
        let (jobs, job_queue) = bounded(config.decode_queue_requests_max);
        let (groups, group_queue) = bounded(config.log_queue_groups_max);
        let mut threads = Vec::new();
        for index in 0..config.decode_threads {
            let worker = DecodeThread {
                jobs: job_queue.clone(),
                groups: groups.clone(),
                group_bytes_max: config.group_bytes_max,
                group_rows_max: config.group_rows_max,
                decoded_bytes_max: config.decoded_bytes_max,
                encode: config.encode,
                clock: clock.clone(),
                series: series.clone(),
                metrics: metrics.clone(),
            };
            threads.push(std::thread::Builder::new().name(format!("decode-{index}")).spawn(move || worker.run())?);
        }
        let log_metrics = metrics.clone();
        threads.push(
            std::thread::Builder::new()
                .name("log".to_owned())
                .spawn(move || run_log(&*log, &group_queue, &log_metrics, on_fatal))?,
        );
        let handle = PipelineHandle { jobs, draining: Arc::default(), metrics };
        Ok(Self { handle, series, threads })
    }

    /// Which series are active: for others that feed the same log, since the limit is a tenant's.
    #[must_use]
    pub fn series(&self) -> SeriesLimiter {
        self.series.clone()
    }

    /// The receivers' end.
    #[must_use]
    pub fn handle(&self) -> PipelineHandle {
        self.handle.clone()
    }

    /// Refuses new requests, finishes those in flight and ends the threads. Every handle must be
    /// dropped, or its receivers stopped, before this returns.
    pub fn drain(self) {
        self.handle.draining.store(true, Ordering::Release);
        drop(self.handle);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a pipeline thread panicked");
            }
        }
    }
}

struct DecodeThread {
    jobs: Receiver<Job>,
    groups: Sender<Group>,
    group_bytes_max: usize,
    group_rows_max: usize,
    decoded_bytes_max: usize,
    encode: bool,
    clock: Clock,
    series: SeriesLimiter,
    metrics: Metrics,
}

/// Memory of an entry, bytes.
fn memory_of(entry: &Entry) -> usize {
    entry.encoded.len() + entry.batch.as_ref().map_or(0, RecordBatch::get_array_memory_size)
}

impl DecodeThread {
    fn run(self) {
        let mut gather = Gather::default();
        while let Ok(first) = self.jobs.recv() {
            self.metrics.decoded.wait_below(self.decoded_bytes_max);
            let now = self.clock.now();
            let mut replies: Vec<Reply> = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(job) = next {
                bytes += job.request.body.len();
                self.decode(job, now, &mut gather, &mut replies);
                let cut = bytes >= self.group_bytes_max || gather.rows() >= self.group_rows_max;
                next = if cut { None } else { self.jobs.try_recv().ok() };
            }
            self.metrics.depth("decode", self.jobs.len());
            if replies.is_empty() {
                gather.clear();
                continue;
            }
            let encoded = catch_unwind(AssertUnwindSafe(|| gather.finish(now, self.encode)));
            let encoded = encoded.map_err(|_panic| "a panic".to_owned());
            match encoded.and_then(|entries| entries.map_err(|error| error.to_string())) {
                Ok(entries) => {
                    self.metrics.depth("log", self.groups.len());
                    let memory = self.metrics.decoded.hold(entries.iter().map(memory_of).sum());
                    if self.groups.send(Group { entries, replies, memory }).is_err() {
                        // The log thread is gone, which only a panic does. Dropped replies say so.
                        return;
                    }
                }
                Err(detail) => {
                    tracing::error!(%detail, requests = replies.len(), "failed to encode a group for the log");
                    self.metrics.panics.inc();
                    refuse_for_good(replies, "a group could not be encoded");
                }
            }
        }
    }

    fn decode(&self, job: Job, now: Timestamp, gather: &mut Gather, replies: &mut Vec<Reply>) {
        let Job { request: ExportRequest { signal, tenant, body }, reply } = job;
        // A panic in the decoder is a defect, but one request must not take the process along, nor
        // its neighbours' data: what was gathered with it is refused retryably, so it comes again.
        let mut series = (signal == Signal::Metrics).then(|| self.series.request(&tenant, now));
        let decoded = catch_unwind(AssertUnwindSafe(|| match &mut series {
            Some(series) => gather.decode(signal, &tenant, &body, now, series),
            None => gather.decode(signal, &tenant, &body, now, &mut OpenGate),
        }));
        match decoded {
            Ok(Ok(delta)) => {
                replies.push(Reply { to: reply, signal, delta, series });
            }
            Ok(Err(error)) => {
                self.metrics.malformed.inc();
                answer(reply, Err(ExportError::Malformed { signal, detail: error.to_string() }));
            }
            Err(_panic) => {
                self.metrics.panics.inc();
                tracing::error!(%signal, bytes = body.len(), "decoding a request panicked; the request is refused");
                refuse(std::mem::take(replies), "a neighbouring request failed");
                gather.clear();
                answer(reply, Err(ExportError::Internal { detail: "decoding the request panicked" }));
            }
        }
    }
}

fn run_log(log: &dyn Log, groups: &Receiver<Group>, metrics: &Metrics, on_fatal: impl FnOnce(StoreError)) {
    while let Ok(mut group) = groups.recv() {
        // Whatever is ready shares the sync, as far as it fits one record of the log.
        let mut bytes = group.bytes();
        let mut memory = vec![group.memory];
        while bytes < SHARED_SYNC_BYTES_MAX
            && let Ok(more) = groups.try_recv()
        {
            bytes += more.bytes();
            group.entries.extend(more.entries);
            group.replies.extend(more.replies);
            memory.push(more.memory);
        }
        metrics.depth("log", groups.len());
        metrics.groups.inc();
        let Group { entries, replies, .. } = group;
        let outcome = if entries.is_empty() { Ok(()) } else { log.append_group(entries) };
        drop(memory);
        match outcome {
            Ok(()) => {
                for Reply { to, signal, delta, series } in replies {
                    if let Some(series) = series {
                        series.keep();
                    }
                    metrics.count(signal, &delta);
                    answer(to, Ok(Accepted { stored: delta.stored, rejected: delta.rejected }));
                }
            }
            Err(error) if error.is_fatal() => {
                tracing::error!(%error, "the log can no longer promise durability; ending the process");
                drop(replies);
                on_fatal(error);
                // What still comes is dropped unseen, and its senders are told by that. The queue must not be left
                // with groups in it: it keeps them, and their clients waiting, as long as a decode thread can send.
                groups.iter().for_each(drop);
                return;
            }
            Err(error) if error.is_for_good() => {
                tracing::error!(%error, requests = replies.len(), "the log cannot hold a group");
                refuse_for_good(replies, "the log cannot hold the request");
            }
            Err(error) => {
                tracing::warn!(%error, requests = replies.len(), "the log refused a group; clients will send again");
                refuse(replies, "storage refuses writes at the moment");
            }
        }
    }
}

fn refuse(replies: Vec<Reply>, what: &'static str) {
    for reply in replies {
        answer(reply.to, Err(ExportError::Overloaded { what, retry_after: RETRY_AFTER }));
    }
}

/// Refuses what would fail again. Of several requests only one is at fault, so they are asked to
/// come again and are told apart by the groups they then fall into; one alone is the culprit.
fn refuse_for_good(mut replies: Vec<Reply>, detail: &'static str) {
    if replies.len() == 1
        && let Some(culprit) = replies.pop()
    {
        answer(culprit.to, Err(ExportError::Internal { detail }));
    }
    refuse(replies, detail);
}

/// A client that went away no longer wants its outcome.
fn answer(reply: oneshot::Sender<Result<Accepted, ExportError>>, outcome: Result<Accepted, ExportError>) {
    drop(reply.send(outcome));
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
