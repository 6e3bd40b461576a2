//! The oracle of crash tests: what was sent, what became of it, and what must therefore be in the store.
//!
//! Every row carries the run, batch and row number it was sent as. Each batch is sent once. So a batch that was
//! acknowledged is there, whole and once; one that was refused for certain is not there; one without an answer is
//! there whole and once, or not at all. Not here: when a process is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use fixtures::batches::{Batch, counted};
use fixtures::load::{Hooks, LoadConfig, Outcome, Pace, Protocol, Source, Verdict, run_with};
use fixtures::otlp::Signal;
use model::time::Clock;
use tokio_util::sync::CancellationToken;

use super::Server;
use super::http::{Request, Response};

/// The signals a counted source can send.
pub const SIGNALS: [Signal; 4] = Signal::ALL;

/// How long one answer may take. A server that is killed breaks the connection, so this ends only a hang.
const ANSWER_WITHIN_MS: u64 = 60_000;

/// What a load sends.
#[derive(Debug, Clone)]
pub struct Sending {
    /// Its name, on every row.
    pub run: String,
    /// How requests travel.
    pub protocol: Protocol,
    /// Signals, in turn.
    pub signals: Vec<Signal>,
    /// Rows in a request.
    pub rows: u32,
    /// Connections, with four requests in flight on each.
    pub connections: usize,
    /// How fast.
    pub pace: Pace,
    /// Attempts for one request. With more than one, a request may be stored twice if an answer is lost.
    pub max_attempts: u32,
    /// Requests after which it ends by itself; 0 for never.
    pub requests: u64,
}

impl Sending {
    /// All signals over gRPC, as fast as acknowledgements come.
    pub fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            protocol: Protocol::Grpc,
            signals: SIGNALS.to_vec(),
            rows: 20,
            connections: 2,
            pace: Pace::Max,
            max_attempts: 1,
            requests: 0,
        }
    }

    /// Starts sending, on a thread of its own.
    pub fn start(self, server: &Server) -> Load {
        let to = if self.protocol == Protocol::Grpc { server.otlp_grpc } else { server.otlp_http };
        self.start_at(to)
    }

    /// As [`Sending::start`], to anybody who takes OTLP.
    pub fn start_at(self, to: std::net::SocketAddr) -> Load {
        let config = LoadConfig {
            endpoints: vec![format!("http://{to}")],
            protocol: self.protocol,
            connections: self.connections,
            in_flight: 4,
            pace: self.pace,
            signals: self.signals,
            source: Source::Counted { run: self.run.clone(), rows_per_batch: self.rows, first_batch: 0 },
            start_ns: now_ns(),
            timeout_ms: ANSWER_WITHIN_MS,
            max_attempts: self.max_attempts,
            total_items: self.requests * u64::from(self.rows),
            ..LoadConfig::default()
        };
        let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
        let cancel = CancellationToken::new();
        let hooks = {
            let (outcomes, cancel) = (Arc::clone(&outcomes), cancel.clone());
            Hooks {
                on_progress: None,
                on_outcome: Some(Arc::new(move |outcome| {
                    // A server that is gone answers nothing: there is no use in trying on.
                    if matches!(outcome.verdict, Verdict::Unknown { .. }) {
                        cancel.cancel();
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome.clone());
                })),
            }
        };
        let token = cancel.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime can be built");
            runtime.block_on(run_with(config, token, hooks)).expect("the load's configuration is right");
        });
        Load { run: self.run, rows: self.rows, outcomes, cancel, thread }
    }
}

/// A load that is being sent.
#[derive(Debug)]
pub struct Load {
    run: String,
    rows: u32,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

impl Load {
    /// Requests acknowledged so far.
    pub fn acked(&self) -> usize {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Acked { .. })).count()
    }

    /// Whether a request ended without an answer: the server is gone.
    pub fn is_broken(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Stops sending, waits for what is in flight, and says what became of every request.
    pub fn stop(self) -> Sent {
        self.cancel.cancel();
        self.finish()
    }

    /// Waits for the end of a load that has one, and says what became of every request.
    pub fn finish(self) -> Sent {
        self.thread.join().expect("the load does not panic");
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        Sent { run: self.run, rows: u64::from(self.rows), outcomes }
    }
}

/// What was sent, and what became of it.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The run's name.
    pub run: String,
    /// Rows in each request.
    pub rows: u64,
    /// The end of every request.
    pub outcomes: Vec<Outcome>,
}

impl Sent {
    /// Nothing, yet, of a run.
    pub fn nothing(run: &str, rows: u32) -> Self {
        Self { run: run.to_owned(), rows: u64::from(rows), outcomes: Vec::new() }
    }

    /// Sends the next batch over HTTP and notes what became of it.
    pub fn post(&mut self, server: &Server, signal: Signal) -> Response {
        let batch = self.next_batch(signal);
        let response = post(server, &batch).unwrap_or_else(|error| panic!("batch {}: {error}", batch.id));
        let verdict = match response.status {
            200 => Verdict::Acked { rejected: 0 },
            code => Verdict::Refused { code: code.to_string() },
        };
        self.note(&batch, verdict);
        response
    }

    /// The batch that would be sent next.
    pub fn next_batch(&self, signal: Signal) -> Batch {
        let rows = u32::try_from(self.rows).expect("a few rows");
        counted(&self.run, signal, self.outcomes.len() as u64, rows, now_ns())
    }

    /// Notes what became of a batch.
    pub fn note(&mut self, batch: &Batch, verdict: Verdict) {
        self.outcomes.push(Outcome {
            signal: batch.signal,
            batch: batch.id,
            items: batch.items,
            attempts: 1,
            ambiguous: false,
            verdict,
        });
    }

    /// How many requests were acknowledged.
    pub fn acked(&self) -> usize {
        self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Acked { .. })).count()
    }

    /// How many requests ended without a certain answer.
    pub fn unknown(&self) -> usize {
        self.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Unknown { .. })).count()
    }

    /// The batches of a signal that are there, each with its rows; duplicated and incomplete ones are errors.
    pub fn stored(&self, server: &Server, signal: Signal) -> BTreeSet<u64> {
        let (whole, wrong) = self.found(server, signal);
        assert!(wrong.is_empty(), "{}: {wrong:#?}", self.run);
        whole
    }

    fn found(&self, server: &Server, signal: Signal) -> (BTreeSet<u64>, Vec<String>) {
        let answer = server.sql(&format!(
            "SELECT attributes['load.batch'] AS batch, count(*) AS n, count(DISTINCT attributes['load.row']) AS d, \
             min(attributes['load.row']) AS first, max(attributes['load.row']) AS last \
             FROM {} WHERE attributes['load.run'] = '{}' GROUP BY attributes['load.batch']",
            table(signal),
            self.run
        ));
        let mut whole = BTreeSet::new();
        let mut wrong = Vec::new();
        for row in answer["rows"].as_array().expect("rows are a list") {
            let [batch, rows, distinct, first, last] = [0, 1, 2, 3, 4].map(|cell: usize| number(&row[cell]));
            if (rows, distinct, first, last) != (self.rows, self.rows, 0, self.rows - 1) {
                wrong.push(format!(
                    "{signal:?} batch {batch}: {rows} rows, {distinct} of them different, {first} to {last}, instead of {}",
                    self.rows
                ));
            } else if !whole.insert(batch) {
                wrong.push(format!("{signal:?} batch {batch} is there twice"));
            }
        }
        (whole, wrong)
    }

    /// Everything that is not as it must be, in sentences; empty if all is well.
    pub fn faults(&self, server: &Server) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut sent: BTreeMap<Signal, BTreeMap<u64, &Verdict>> = BTreeMap::new();
        for outcome in &self.outcomes {
            if let Verdict::Acked { rejected: rejected @ 1.. } = outcome.verdict {
                wrong.push(format!("{:?} batch {}: {rejected} rows rejected", outcome.signal, outcome.batch));
            }
            sent.entry(outcome.signal).or_default().insert(outcome.batch, &outcome.verdict);
        }
        for (signal, sent) in sent {
            let (stored, not_whole) = self.found(server, signal);
            wrong.extend(not_whole);
            for (batch, verdict) in &sent {
                match (verdict, stored.contains(batch)) {
                    (Verdict::Acked { .. }, false) => {
                        wrong.push(format!("{signal:?} batch {batch} was acknowledged and is lost or not whole"));
                    }
                    (Verdict::Refused { code }, true) => {
                        wrong.push(format!("{signal:?} batch {batch} was refused ({code}) and is there"));
                    }
                    _ => {}
                }
            }
            for batch in stored.iter().filter(|batch| !sent.contains_key(batch)) {
                wrong.push(format!("{signal:?} batch {batch} is there and was never sent"));
            }
        }
        wrong
    }

    /// Checks the run against the store.
    pub fn check(&self, server: &Server, when: &str) {
        let wrong = self.faults(server);
        assert!(
            wrong.is_empty(),
            "{when}, run {}: {} faults: {:#?}",
            self.run,
            wrong.len(),
            &wrong[..wrong.len().min(20)]
        );
    }
}

/// Checks that the ledger adds up, and that what it counts as stored is what is there.
pub fn check_ledger(server: &Server, when: &str) {
    let answer = server.sql(
        "SELECT signal, sum(received), sum(stored), sum(rejected) FROM ingest_ledger GROUP BY signal ORDER BY signal",
    );
    let mut stored_by_signal = BTreeMap::new();
    for row in answer["rows"].as_array().expect("rows are a list") {
        let signal = row[0].as_str().expect("a signal has a name").to_owned();
        let [received, stored, rejected] = [number(&row[1]), number(&row[2]), number(&row[3])];
        assert_eq!(received, stored + rejected, "{when}: {signal}: received = stored + rejected");
        stored_by_signal.insert(signal, stored);
    }
    // A profile counts once and has a row for each sample: those of a counted source have one.
    for (signal, tables) in [
        ("traces", &["spans"][..]),
        ("logs", &["logs"]),
        ("metrics", &["metric_points", "metric_histograms"]),
        ("profiles", &["profiles"]),
    ] {
        let rows: u64 = tables.iter().map(|table| server.number(&format!("SELECT count(*) FROM {table}"))).sum();
        let stored = stored_by_signal.get(signal).copied().unwrap_or(0);
        assert_eq!(stored, rows, "{when}: the ledger's count of stored {signal}, and the rows");
    }
}

/// Sends one request over HTTP as protobuf.
pub fn post(server: &Server, batch: &Batch) -> Result<Response, std::io::Error> {
    Request::new("POST", batch.signal.http_path())
        .header("content-type", "application/x-protobuf")
        .body(&batch.body)
        .send(server.otlp_http)
}

/// The table of a counted source's rows.
pub fn table(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "spans",
        Signal::Logs => "logs",
        Signal::Metrics => "metric_points",
        Signal::Profiles => "profiles",
    }
}

/// A whole number of an answer in JSON, where large ones may be text.
pub fn number(cell: &serde_json::Value) -> u64 {
    cell.as_u64()
        .or_else(|| cell.as_str()?.parse().ok())
        .unwrap_or_else(|| panic!("expected a whole number, found {cell}"))
}

/// Event time of what a test sends: now, since retention goes by it.
pub fn now_ns() -> u64 {
    u64::try_from(Clock::System.now().0).expect("now is after 1970")
}
