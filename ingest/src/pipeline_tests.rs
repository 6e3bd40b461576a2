//! The pipeline against a log that does what a test wants: outcomes, and the bounds on groups.
//!
//! Not here: decoding, and the real log (the store's and the whole process's tests).

use std::time::Instant;

use bytes::Bytes;
use model::tenant::TenantId;
use store::wal::WalError;

use super::*;

/// A test that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(60);

/// Answers with what the test has put in, and notes the rows of every entry; with `gate`, only once it is opened.
#[derive(Default)]
struct FakeLog {
    error: Mutex<Option<fn() -> StoreError>>,
    rows: Mutex<Vec<usize>>,
    gate: Option<Receiver<()>>,
}

impl Log for FakeLog {
    fn append_group(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        if let Some(gate) = &self.gate {
            gate.recv_timeout(HANG).ok();
        }
        let rows = |entry: &Entry| entry.batch.as_ref().map_or(0, RecordBatch::num_rows);
        self.rows.lock().unwrap().extend(entries.iter().map(rows));
        self.error.lock().unwrap().map_or(Ok(()), |error| Err(error()))
    }
}

fn start(config: &PipelineConfig, log: &Arc<FakeLog>) -> Pipeline {
    let log: Arc<dyn Log> = Arc::<FakeLog>::clone(log);
    let config = PipelineConfig { decode_threads: 1, ..config.clone() };
    Pipeline::start(&config, log, &Clock::System, &mut Registry::default(), |_error| {}).unwrap()
}

/// A request of so many log records with nothing in them.
fn empty_logs(records: usize) -> Bytes {
    let record = [0x12, 0];
    let mut scope = Vec::new();
    model::wire::put_bytes(&mut scope, 2, &record.repeat(records));
    let mut body = Vec::new();
    model::wire::put_bytes(&mut body, 1, &scope);
    body.into()
}

type Outcome = Result<Accepted, ExportError>;

/// Hands a request on; its outcome comes through the channel.
fn send(handle: &PipelineHandle, body: Bytes) -> std::sync::mpsc::Receiver<Outcome> {
    let (tell, told) = std::sync::mpsc::channel();
    let (handle, tenant) = (handle.clone(), TenantId::default_tenant());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = runtime.block_on(handle.export(ExportRequest { signal: Signal::Logs, tenant, body }));
        drop(handle);
        tell.send(outcome).ok();
    });
    told
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "{what} hangs");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn only_a_request_that_is_at_fault_itself_is_refused_for_good() {
    let log = Arc::new(FakeLog::default());
    let pipeline = start(&PipelineConfig::default(), &log);
    let cases: [(fn() -> StoreError, bool); 6] = [
        (|| WalError::Full { path: "x".into(), reason: "no room".to_owned() }.into(), true),
        (|| StoreError::MemoryFull { bytes: 2, max: 1 }, true),
        // EIO and EMFILE: the disk or the process is in trouble, and the telemetry stays with its sender.
        (|| unwritable(5), true),
        (|| unwritable(24), true),
        (|| WalError::RecordTooLarge { bytes: 2, max: 1 }.into(), false),
        (|| StoreError::SchemaMismatch { table: "logs" }, false),
    ];
    for (error, retryable) in cases {
        *log.error.lock().unwrap() = Some(error);
        let refused = send(&pipeline.handle(), empty_logs(3)).recv_timeout(HANG).unwrap().unwrap_err();
        assert_eq!(refused.is_retryable(), retryable, "{}: {refused}", error());
        assert_eq!(matches!(refused, ExportError::Internal { .. }), !retryable, "{}: {refused}", error());
    }
    *log.error.lock().unwrap() = None;
    let accepted = send(&pipeline.handle(), empty_logs(3)).recv_timeout(HANG).unwrap().unwrap();
    assert_eq!((accepted.stored, accepted.rejected_total()), (3, 0), "it goes on");
    let refused = send(&pipeline.handle(), Bytes::from_static(b"\x0f")).recv_timeout(HANG).unwrap().unwrap_err();
    assert!(matches!(refused, ExportError::Malformed { .. }) && !refused.is_retryable(), "{refused}");
    pipeline.drain();
}

fn unwritable(errno: i32) -> StoreError {
    let source = std::io::Error::from_raw_os_error(errno);
    WalError::Io { op: "append to", path: "x".into(), source }.into()
}

#[test]
fn a_group_is_cut_at_its_rows_and_memory_is_given_back() {
    const ROWS: usize = 1_000;
    let (open, gate) = bounded(0);
    let log = Arc::new(FakeLog { gate: Some(gate), ..FakeLog::default() });
    let config = PipelineConfig { group_rows_max: 1_500, log_queue_groups_max: 1, ..PipelineConfig::default() };
    let pipeline = start(&config, &log);
    let handle = pipeline.handle();
    // One group at the log, one in its queue, one that waits to get in; then requests gather.
    let decoded = || handle.metrics.decoded.gauge.get();
    let mut told = Vec::new();
    for _ in 0..3 {
        let before = decoded();
        told.push(send(&handle, empty_logs(ROWS)));
        until("a group is formed", || decoded() > before);
    }
    told.extend((0..5).map(|_| send(&handle, empty_logs(ROWS))));
    until("requests wait", || handle.jobs.len() == 5);
    drop(open);
    for told in told {
        assert_eq!(told.recv_timeout(HANG).unwrap().unwrap().stored, ROWS as u64);
    }
    let rows = log.rows.lock().unwrap().clone();
    assert_eq!(rows.iter().sum::<usize>(), 8 * ROWS);
    assert!(rows.iter().all(|rows| *rows <= 2 * ROWS), "no group has more than the limit and one request: {rows:?}");
    assert!(rows.contains(&(2 * ROWS)), "requests did share groups: {rows:?}");
    until("memory is given back", || decoded() == 0);
    drop(handle);
    pipeline.drain();
}

#[test]
fn no_group_is_begun_while_decoded_ones_hold_too_much() {
    let memory = DecodedMemory::default();
    let (first, second) = (memory.hold(60), memory.hold(60));
    let (tell, begun) = std::sync::mpsc::channel();
    let waiting = {
        let memory = memory.clone();
        std::thread::spawn(move || {
            memory.wait_below(100);
            tell.send(()).ok();
        })
    };
    assert!(begun.recv_timeout(Duration::from_millis(50)).is_err(), "120 are held");
    drop(first);
    begun.recv_timeout(HANG).unwrap();
    waiting.join().unwrap();
    drop(second);
    assert_eq!(*memory.held.0.lock().unwrap(), 0);
}

#[test]
fn a_log_that_fails_for_good_is_told_once_and_nobody_is_acknowledged() {
    let log = Arc::new(FakeLog::default());
    *log.error.lock().unwrap() = Some(|| WalError::SyncFailed { path: "x".into(), reason: "EIO".to_owned() }.into());
    let (tell, fatal) = std::sync::mpsc::channel();
    let config = PipelineConfig { decode_threads: 1, ..PipelineConfig::default() };
    let dynamic: Arc<dyn Log> = Arc::<FakeLog>::clone(&log);
    let pipeline = Pipeline::start(&config, dynamic, &Clock::System, &mut Registry::default(), move |error| {
        tell.send(error.is_fatal()).ok();
    });
    let pipeline = pipeline.unwrap();
    for _ in 0..3 {
        let refused = send(&pipeline.handle(), empty_logs(1)).recv_timeout(HANG).unwrap().unwrap_err();
        assert!(matches!(refused, ExportError::ShuttingDown), "{refused}");
    }
    assert_eq!(fatal.recv_timeout(HANG), Ok(true));
    assert!(fatal.recv_timeout(HANG).is_err(), "told once");
    assert_eq!(log.rows.lock().unwrap().len(), 1, "a failed sync is not tried again");
    pipeline.drain();
}
