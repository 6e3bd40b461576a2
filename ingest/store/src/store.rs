//! The store: log, memtables, segments and manifest as one thing that is always consistent.
//!
//! Who may call what: one log thread appends; any thread takes snapshots, asks the ledger, sets
//! segments aside; one thread runs [`Store::maintain`], which flushes and, on a second thread of
//! its own, merges and expires. Not here: decoding, admission, SQL.
//!
//! Locks, in the order they are taken: `flushing` → `wal` → `ledger_gate` → `manifest` → `derived` →
//! `state`. Nobody holds `state` across I/O, so that a query never waits for a disk.
//!
//! - [`derived`]: the derived tables' part

mod derived;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use model::ledger::{LedgerDelta, LedgerLine};
use model::schema::schema;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;

use crate::catalog::AttributeKinds;
use crate::compaction::{self, MergeError};
use crate::config::StoreConfig;
use crate::courtesy::{Asking, Courtesy, Pauses};
use crate::derived::deriver::Deriver;
use crate::derived::manifest::Delta;
use crate::derived::rebuild::Rebuild;
use crate::error::{StoreError, is_damage};
use crate::follow::{Follower, Followers, Observer};
use crate::gather::{Gatherer, Pick};
use crate::layout::{self, Layout};
use crate::lock::{DataDir, create_dir_durably, sync_dir};
use crate::manifest::{FlushCommit, Manifest};
use crate::memtable::{Memtable, TenantRows, batch_bytes};
use crate::metrics::{Metrics, gauge};
use crate::record::{
    GROUP_KIND, LogEntryMeta, POSITIONED_GROUP_KIND, Position, RecordError, decode_if, group_entries, group_head,
    positions_head, split_positions,
};
use crate::retention;
use crate::segment::{
    Packing, SEGMENT_EXTENSION, SEGMENT_FORMAT_VERSION, Segment, SegmentMeta, SegmentWriter, TEMPORARY_EXTENSION,
    Varied, Written, check_footer, checksum, file_name,
};
use crate::sink::{Cut, Sink};
use crate::sort;
use crate::wal::{self, Record, Recovery, Wal, WalOptions};

use self::derived::DerivedLive;
pub use self::derived::{DerivedSnapshot, DerivedTables};

/// How often the flusher looks at ages when nothing wakes it: half a second is below what anybody
/// notices of a flush interval of seconds, and costs nothing.
const FLUSH_TICK: Duration = Duration::from_millis(500);

/// After a failure the next attempt waits this long, then twice as long each time…
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
/// …up to this: a disk that has room again is found within it.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// At this part of `memtable_bytes_max` the largest table is flushed, whatever its size, so that
/// appends are refused only when flushing cannot keep up.
const MEMTABLE_PRESSURE: (u64, u64) = (3, 4);

/// Rows that a flush puts in order and writes at a time: enough for columns to pay off, few enough
/// to stay in a cache.
const FLUSH_PIECE_ROWS: usize = 8192;

/// Rows by which it is judged how a column's values repeat.
const SAMPLE_ROWS: usize = 1024;

/// Damages that [`Store::problems`] names one by one: what fits a probe's answer. The log has all.
const PROBLEMS_LISTED_MAX: usize = 10;

/// How much nicer the flusher is: while it writes, requests are decoded with three quarters of a core that both want
/// and not with half of it. When memory is full nobody else has work, and it has the core for itself.
const FLUSHER_NICE: i32 = 5;

/// How much nicer than the rest of the process the compactor is. It must hold no lock that the log
/// thread wants for longer than a few instructions: on a busy core it may not run again for long.
const COMPACTOR_NICE: i32 = 15;

/// How long a merge may pause for questions, all its pauses together: under questions without end merges still keep up with
/// one segment every other second.
const MERGE_PAUSES_MAX: Duration = Duration::from_secs(10);

/// Where a crash is simulated. The names are those of the fail points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AfterParquetWriteBeforeRename,
    AfterRenameBeforeManifest,
    AfterManifestBeforePublish,
    AfterPublishBeforeWalTruncate,
    AfterCutBeforeSink,
    CompactionBeforeCommit,
    CompactionAfterCommit,
    DerivedBeforeCommit,
    DerivedAfterCommit,
}

/// What a test wants to happen at a step.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Stop there, as a crash would.
    Stop(Step),
    /// Find the disk full there.
    DiskFull(Step),
}

/// How far the start is; read it from another thread for the readiness probe.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    log: wal::ReplayProgress,
    done: AtomicBool,
}

impl ReplayProgress {
    /// Bytes of the log to read; 0 until they are known.
    pub fn bytes_total(&self) -> u64 {
        self.log.bytes_total()
    }

    /// Bytes of the log read so far.
    pub fn bytes_done(&self) -> u64 {
        self.log.bytes_done()
    }

    /// Whether the store is open.
    pub fn done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// One entry of a group to append.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whose rows, which table, what is counted.
    pub meta: LogEntryMeta,
    /// The rows; `None` when everything was rejected.
    pub batch: Option<RecordBatch>,
    /// The bytes of both, from [`crate::record::encode`]; made by whoever decoded, off the log
    /// thread.
    pub encoded: Vec<u8>,
}

/// What one tenant's queries see: every acknowledged row exactly once, unchanged for as long as it
/// is held.
#[derive(Clone, Debug)]
pub struct Snapshot {
    tenant: TenantId,
    tables: [TableSnapshot; Table::COUNT],
    derived: Option<Arc<DerivedTables>>,
    published_seq: u64,
}

impl Snapshot {
    /// Whose rows.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// One table.
    #[must_use]
    pub const fn table(&self, table: Table) -> &TableSnapshot {
        &self.tables[table.index()]
    }

    /// The number of the last log record whose rows are in it.
    #[must_use]
    pub const fn published_seq(&self) -> u64 {
        self.published_seq
    }

    /// The derived tables; `None` unless they were asked for.
    #[must_use]
    pub const fn derived(&self) -> Option<&Arc<DerivedTables>> {
        self.derived.as_ref()
    }
}

/// One table of a [`Snapshot`].
#[derive(Clone, Debug, Default)]
pub struct TableSnapshot {
    /// Segments, oldest first. Their files stay while this is held, unless one is set aside.
    pub segments: Arc<[Arc<Segment>]>,
    /// Rows that are not in a segment yet, in the order they were acknowledged.
    pub memory: Vec<RecordBatch>,
    /// The attribute keys of all these rows.
    pub kinds: Arc<AttributeKinds>,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory of unflushed rows, bytes.
    pub memtable_bytes: u64,
    /// Unflushed rows.
    pub memtable_rows: u64,
    /// Segments that queries read.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Their rows.
    pub segment_rows: u64,
    /// Segments that are set aside.
    pub quarantined: u64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
}

/// The segments of one tenant and table.
#[derive(Clone, Debug, Default)]
struct Live {
    segments: Arc<[Arc<Segment>]>,
    kinds: Arc<AttributeKinds>,
}

impl Live {
    fn of(mut segments: Vec<Arc<Segment>>) -> Self {
        segments.sort_unstable_by_key(|segment| (segment.meta().seq_min, segment.meta().id));
        let mut kinds = AttributeKinds::default();
        for segment in &segments {
            kinds.merge(segment.kinds());
        }
        Self { segments: segments.into(), kinds: Arc::new(kinds) }
    }

    /// Without some segments and with another one; and those that went.
    fn replaced(&self, remove: &[u64], add: Option<Arc<Segment>>) -> (Self, Vec<Arc<Segment>>) {
        let (removed, mut kept): (Vec<_>, Vec<_>) =
            self.segments.iter().map(Arc::clone).partition(|segment| remove.contains(&segment.meta().id));
        kept.extend(add);
        (Self::of(kept), removed)
    }
}

/// One table of a tenant at an instant: segments, and batches of each memtable with their kinds.
type Captured = (Live, Vec<(Vec<Arc<RecordBatch>>, Arc<AttributeKinds>)>);

/// A memtable on its way into segments.
#[derive(Debug)]
struct Frozen {
    memtable: Memtable,
    /// Every entry of the table up to this log record is in here or in a segment.
    high_water: u64,
}

/// Everything that readers and writers must see change at once.
#[derive(Debug)]
struct State {
    active: [Memtable; Table::COUNT],
    frozen: [Option<Arc<Frozen>>; Table::COUNT],
    live: BTreeMap<(TenantId, Table), Live>,
    derived: BTreeMap<TenantId, DerivedLive>,
    /// How many memtables of spans were frozen: the number of the active one.
    spans_frozen: u64,
    published_seq: u64,
    /// How far sources are read, as of `published_seq`.
    positions: Positions,
}

/// By source and partition, what is to be read next.
#[derive(Clone, Debug, Default)]
struct Positions(BTreeMap<Arc<str>, BTreeMap<i32, i64>>);

impl Positions {
    fn set(&mut self, position: &Position) {
        let Position { source, partition, next } = position;
        match self.0.get_mut(source) {
            Some(partitions) => drop(partitions.insert(*partition, *next)),
            None => drop(self.0.insert(Arc::clone(source), BTreeMap::from([(*partition, *next)]))),
        }
    }

    fn all(&self) -> Vec<Position> {
        let of = |(source, partitions): (&Arc<str>, &BTreeMap<i32, i64>)| -> Vec<Position> {
            let each = partitions.iter();
            each.map(|(partition, next)| Position { source: Arc::clone(source), partition: *partition, next: *next })
                .collect()
        };
        self.0.iter().flat_map(of).collect()
    }
}

impl State {
    fn memory_bytes(&self) -> u64 {
        let frozen = self.frozen.iter().flatten().map(|frozen| frozen.memtable.bytes());
        self.active.iter().map(Memtable::bytes).chain(frozen).sum()
    }

    fn memory_rows(&self) -> u64 {
        let frozen = self.frozen.iter().flatten().map(|frozen| frozen.memtable.rows());
        self.active.iter().map(Memtable::rows).chain(frozen).sum()
    }

    /// The first log record that something unflushed came from, not counting one frozen table.
    fn first_unflushed(&self, except_frozen: Option<Table>) -> u64 {
        let frozen = self
            .frozen
            .iter()
            .flatten()
            .map(|frozen| &frozen.memtable)
            .filter(|memtable| Some(memtable.table()) != except_frozen);
        self.active
            .iter()
            .chain(frozen)
            .filter_map(|memtable| memtable.seqs().map(|seqs| seqs.0))
            .min()
            .unwrap_or(self.published_seq + 1)
    }

    /// Freezes what a process before this one had cut, so that the same is cut again.
    fn restore(&mut self, cut: [Memtable; Table::COUNT], ends: [Option<u64>; Table::COUNT]) {
        for (memtable, end) in cut.into_iter().zip(ends) {
            if let Some(high_water) = end.filter(|_| !memtable.is_empty()) {
                let table = memtable.table();
                self.spans_frozen += u64::from(table == Table::Spans);
                self.frozen[table.index()] = Some(Arc::new(Frozen { memtable, high_water }));
            }
        }
    }

    fn add(&mut self, key: &(TenantId, Table), segment: Arc<Segment>) {
        let live = self.live.entry(key.clone()).or_default();
        *live = live.replaced(&[], Some(segment)).0;
    }

    fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.live.values().flat_map(|live| live.segments.iter())
    }

    fn find(&self, id: u64) -> Option<Arc<Segment>> {
        self.segments().find(|segment| segment.meta().id == id).map(Arc::clone)
    }
}

/// Wakes a thread before its tick.
#[derive(Debug, Default)]
struct Waker {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Waker {
    fn wake(&self) {
        *lock(&self.woken) = true;
        self.condvar.notify_all();
    }

    /// Waits for a wake, at most so long.
    fn wait(&self, tick: Duration) {
        let guard = lock(&self.woken);
        let (mut woken, _) =
            self.condvar.wait_timeout_while(guard, tick, |woken| !*woken).unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }

    /// Waits so long, whoever wakes it, unless it is to stop.
    fn pause(&self, delay: Duration, stop: &AtomicBool) {
        let guard = lock(&self.woken);
        drop(
            self.condvar
                .wait_timeout_while(guard, delay, |_| !stop.load(Ordering::Acquire))
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

/// A lock whose holder panicked is taken all the same: what it guards is changed in steps that
/// cannot fail.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds keys to others, without a copy where nothing is new.
fn merge_kinds(kinds: &mut Arc<AttributeKinds>, more: &Arc<AttributeKinds>) {
    if kinds.is_empty() {
        *kinds = Arc::clone(more);
    } else if !kinds.covers(more) {
        Arc::make_mut(kinds).merge(more);
    }
}

/// What decides whether a table is flushed now.
#[derive(Clone, Copy, Debug)]
struct FlushFacts {
    table: Table,
    /// A flush failed and is to be tried again.
    frozen: bool,
    bytes: u64,
    first_seq: Option<u64>,
    since: Option<Timestamp>,
}

/// The tables to flush now, most urgent first.
fn due(facts: &[FlushFacts], memory_bytes: u64, wal_bytes: u64, now: Timestamp, config: &StoreConfig) -> Vec<Table> {
    let interval = i64::try_from(config.memtable_flush_interval_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let mut due: Vec<Table> = facts
        .iter()
        .filter(|fact| {
            // A clock that was set back must not put a flush off: then the first row seems to
            // come from the future.
            let old = fact.since.is_some_and(|since| since > now || since.plus_nanos(interval) <= now);
            fact.frozen || fact.bytes >= config.memtable_flush_bytes || old
        })
        .map(|fact| fact.table)
        .collect();
    let filled = facts.iter().filter(|fact| fact.since.is_some());
    if memory_bytes >= config.memtable_bytes_max / MEMTABLE_PRESSURE.1 * MEMTABLE_PRESSURE.0
        && let Some(largest) = filled.clone().max_by_key(|fact| fact.bytes)
        && !due.contains(&largest.table)
    {
        due.push(largest.table);
    }
    if wal_bytes > config.wal_bytes_max
        && let Some(oldest) = filled.min_by_key(|fact| fact.first_seq)
        && !due.contains(&oldest.table)
    {
        due.push(oldest.table);
    }
    due
}

/// A store that is open. Dropping it loses nothing: the log has every acknowledged row.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    metrics: Metrics,
    recovery: Recovery,
    flushing: Mutex<Flushing>,
    wal: Mutex<Wal>,
    /// Written by a flush around its commit and publication, read by [`Store::ledger`], which adds
    /// what is persisted to what is in memory.
    ledger_gate: RwLock<()>,
    manifest: Mutex<Manifest>,
    derived: Mutex<Deriver>,
    state: Mutex<State>,
    followers: Followers,
    observer: OnceLock<Arc<dyn Observer>>,
    /// Where flushed rows go instead of segments.
    sink: Option<Arc<dyn Sink>>,
    /// Why the last attempt of each table failed, if it did.
    sink_troubles: Mutex<[Option<String>; Table::COUNT]>,
    log_id: [u8; 16],
    /// Told when a flush has made room in memory.
    room: Condvar,
    /// The one under way; between its steps the compactor does other work.
    rebuild: Mutex<Option<Rebuild>>,
    /// What ids are hashed with.
    seed: u64,
    next_segment_id: AtomicU64,
    wal_bytes: AtomicU64,
    quarantined: AtomicU64,
    ledger_expired_day: AtomicI64,
    flusher: Waker,
    compactor: Waker,
    courtesy: Arc<Courtesy>,
    #[cfg(test)]
    fault: Mutex<Option<Fault>>,
    /// Last, so that the lock goes after everything that uses the directory.
    dir: DataDir,
}

/// What a flush that failed halfway leaves for the next attempt.
#[derive(Debug, Default)]
struct Flushing {
    /// Segments of a frozen memtable that are under their final names. When the answer of the
    /// commit was lost, the same commit is tried again with the same segments.
    prepared: [Option<Prepared>; Table::COUNT],
}

/// What a commit adds.
#[derive(Debug)]
struct Prepared {
    segments: Vec<Arc<Segment>>,
    deltas: Vec<Arc<Delta>>,
}

impl Store {
    /// Opens or creates the store of a data directory: takes its lock, checks the manifest and
    /// every segment's size and footer, removes files that no manifest lists, replays the log.
    ///
    /// # Errors
    /// [`StoreError`] when the directory is in use, of a later release, or cannot be read. Damage
    /// in the log or in segments is no error: it is logged, counted, and set aside.
    pub fn open(config: StoreConfig, progress: &ReplayProgress, metrics: Metrics) -> Result<Arc<Self>, StoreError> {
        Self::open_with(config, None, progress, metrics)
    }

    /// As [`Store::open`], but flushed rows go to a sink. Segments that are there already stay and are read.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        config: StoreConfig,
        sink: Option<Arc<dyn Sink>>,
        progress: &ReplayProgress,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StoreError> {
        let dir = DataDir::open(&config.data_dir)?;
        refuse_orphaned_segments(&dir)?;
        let mut manifest = Manifest::open(&dir.manifest())?;
        let mut loaded = manifest.load()?;

        let mut live: BTreeMap<(TenantId, Table), Vec<Arc<Segment>>> = BTreeMap::new();
        for (meta, kinds) in std::mem::take(&mut loaded.live) {
            let path = dir.segment_dir(&meta.tenant, meta.table).join(meta.file_name());
            if let Err(reason) = check_footer(&path, &meta)? {
                tracing::error!(segment = meta.id, path = %path.display(), reason, rows = meta.rows, "segment is damaged and set aside");
                manifest.quarantine(meta.id, &reason)?;
                loaded.quarantined.push(meta);
                continue;
            }
            live.entry((meta.tenant.clone(), meta.table)).or_default().push(Segment::new(meta, kinds, path));
        }
        // A crash between the manifest and the move leaves some of these where they were.
        for meta in &loaded.quarantined {
            set_aside(&dir, meta);
        }
        let (derived, derived_files) = derived::open(&dir, &mut manifest)?;
        // One that could not be moved stays: only what nobody lists is removed.
        let set_aside = loaded.quarantined.iter();
        let listed: HashSet<PathBuf> = live
            .values()
            .flatten()
            .map(|segment| segment.path().to_owned())
            .chain(set_aside.map(|meta| dir.segment_dir(&meta.tenant, meta.table).join(meta.file_name())))
            .chain(derived_files)
            .collect();
        metrics.orphans_removed.inc_by(remove_orphans(&dir, &listed)?);

        let mut state = State {
            active: Table::ALL.map(Memtable::new),
            frozen: [const { None }; Table::COUNT],
            live: live.into_iter().map(|(key, segments)| (key, Live::of(segments))).collect(),
            derived,
            spans_frozen: 0,
            published_seq: 0,
            positions: Positions::default(),
        };
        loaded.positions.iter().for_each(|position| state.positions.set(position));
        let mut replay = Replay {
            state: &mut state,
            high_water: loaded.high_water,
            positions_seq: loaded.positions_seq,
            cuts: loaded.cuts,
            cut: Table::ALL.map(Memtable::new),
            now: config.clock.now(),
            quarantine: dir.quarantine(),
            undecodable: 0,
        };
        let mut options = WalOptions::new(dir.wal());
        options.segment_bytes_max = config.wal_segment_bytes_max;
        options.min_free_bytes = config.wal_min_free_bytes;
        // Also when it is 0: then a log that does not begin with its first record has lost it.
        options.covered_seq = Some(loaded.covered_seq);
        let (mut wal, mut recovery) = Wal::open(options.clone(), &progress.log, &mut |record| replay.visit(record))?;
        let highest = loaded.high_water.into_iter().max().unwrap_or(0);
        if wal.next_seq() <= highest {
            // The log is gone, or is another's: numbers up to a high-water mark would be taken for
            // rows that are in segments.
            tracing::error!(next_seq = wal.next_seq(), highest, "the write-ahead log is behind the manifest");
            drop(wal);
            options.covered_seq = Some(highest);
            (wal, recovery) = Wal::open(options, &progress.log, &mut |_| Ok(()))?;
        }
        metrics.wal_records_undecodable.inc_by(replay.undecodable);
        let cut = replay.cut;
        state.published_seq = wal.next_seq() - 1;
        state.restore(cut, loaded.cuts);
        report(&recovery, &metrics);

        let seed = RandomState::new().hash_one(loaded.next_segment_id);
        let store = Arc::new(Self {
            flushing: Mutex::default(),
            wal_bytes: AtomicU64::new(wal.bytes()),
            log_id: wal.id(),
            sink,
            sink_troubles: Mutex::default(),
            wal: Mutex::new(wal),
            ledger_gate: RwLock::new(()),
            manifest: Mutex::new(manifest),
            derived: Mutex::new(Deriver::new(seed)),
            state: Mutex::new(state),
            followers: Followers::default(),
            observer: OnceLock::new(),
            room: Condvar::new(),
            rebuild: Mutex::default(),
            seed,
            next_segment_id: AtomicU64::new(loaded.next_segment_id),
            quarantined: AtomicU64::new(loaded.quarantined.len() as u64),
            ledger_expired_day: AtomicI64::new(i64::MIN),
            flusher: Waker::default(),
            compactor: Waker::default(),
            courtesy: Arc::default(),
            #[cfg(test)]
            fault: Mutex::new(None),
            config,
            metrics,
            recovery,
            dir,
        });
        store.show(&store.stats());
        store.show_wal(&lock(&store.wal));
        progress.done.store(true, Ordering::Release);
        Ok(store)
    }

    /// What the start found in the log. Health is degraded unless it is clean.
    #[must_use]
    pub const fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Who this data directory is: the identity of its log, the same as long as the log is.
    #[must_use]
    pub const fn log_id(&self) -> [u8; 16] {
        self.log_id
    }

    /// What was lost, set aside, or waits for a sink that fails, in sentences for an operator; empty when all is well.
    /// Damage of the log is told until a start finds none, segments as long as they are set aside.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let Recovery { records_lost, damages, damages_total, .. } = &self.recovery;
        let mut problems = Vec::new();
        if *records_lost > 0 {
            problems.push(format!("{records_lost} records of the write-ahead log are lost"));
        }
        problems.extend(damages.iter().take(PROBLEMS_LISTED_MAX).map(|damage| format!("write-ahead log: {damage}")));
        if *damages_total > PROBLEMS_LISTED_MAX as u64 {
            problems.push(format!("write-ahead log: {damages_total} damages in all"));
        }
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        if quarantined > 0 {
            problems.push(format!("{quarantined} damaged segments are set aside in quarantine/"));
        }
        problems.extend(lock(&self.sink_troubles).iter().flatten().cloned());
        problems
    }

    /// Appends a group, syncs it, and makes it visible: all of it or nothing. One thread calls this.
    ///
    /// # Errors
    /// Retryable ones leave no trace of the group, neither in memory nor in a later replay. A fatal
    /// one means that nothing may be acknowledged any more.
    pub fn append_group(&self, mut entries: Vec<Entry>) -> Result<(), StoreError> {
        self.append(&mut entries, &[])
    }

    /// As [`Store::append_group`], of rows that were read from somewhere: how far is durable in the same record of the
    /// log, and later in the transaction that lists their segments, so that whoever goes on from
    /// [`Store::position`] after a crash appends no row twice and leaves none out. The entries are left where they are on
    /// an error, to be tried again. Without entries nothing is kept, positions neither.
    ///
    /// # Errors
    /// As [`Store::append_group`].
    pub fn append_group_at(&self, entries: &mut Vec<Entry>, positions: &[Position]) -> Result<(), StoreError> {
        self.append(entries, positions)
    }

    /// What is to be read next from a partition of a source; `None` when nothing was.
    #[must_use]
    pub fn position(&self, source: &str, partition: i32) -> Option<i64> {
        lock(&self.state).positions.0.get(source)?.get(&partition).copied()
    }

    fn append(&self, entries: &mut Vec<Entry>, positions: &[Position]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut sizes = Vec::with_capacity(entries.len());
        for entry in &*entries {
            let table = entry.meta.table;
            if entry.batch.as_ref().is_some_and(|batch| batch.schema_ref() != &schema(table)) {
                return Err(StoreError::SchemaMismatch { table: table.name() });
            }
            sizes.push(entry.batch.as_ref().map_or(0, batch_bytes));
        }
        let group_bytes: u64 = sizes.iter().sum();
        let max = self.config.memtable_bytes_max;
        // A group larger than what is left must not wait for an empty store, which under traffic never
        // comes: it counts as at most a quarter, and the flush it forces makes up for it.
        let counted = group_bytes.min(max / 4);
        let is_full = |bytes: u64| bytes > 0 && bytes.saturating_add(counted) > max;
        let mut memory_bytes = lock(&self.state).memory_bytes();
        if is_full(memory_bytes) {
            self.flusher.wake();
            // Whoever waits here holds up those behind it: that is the back-pressure which lets the
            // flusher, the only one with work then, catch up.
            let wait = Duration::from_millis(self.config.memtable_wait_ms);
            let state = lock(&self.state);
            let (state, _) = self
                .room
                .wait_timeout_while(state, wait, |state| is_full(state.memory_bytes()))
                .unwrap_or_else(PoisonError::into_inner);
            memory_bytes = state.memory_bytes();
        }
        if is_full(memory_bytes) {
            self.metrics.refused.get_or_create(&[("reason", "memory_full")]).inc();
            return Err(StoreError::MemoryFull { bytes: memory_bytes, max });
        }

        let (kind, mut head) = match positions {
            [] => (GROUP_KIND, Vec::new()),
            positions => (POSITIONED_GROUP_KIND, positions_head(positions)),
        };
        head.extend(group_head(entries.iter().map(|entry| entry.encoded.len())));
        let mut parts: Vec<&[u8]> = Vec::with_capacity(entries.len() + 1);
        parts.push(&head);
        parts.extend(entries.iter().map(|entry| entry.encoded.as_slice()));
        let encoded_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let started = Instant::now();
        // Held until the group is published, so that groups are published in their order.
        let mut wal = lock(&self.wal);
        let committed = wal.append(kind, &parts).and_then(|seq| wal.sync().map(|_| seq));
        let seq = committed.inspect_err(|error| {
            let reason = if error.is_retryable() { "disk_full" } else { "log_failed" };
            self.metrics.refused.get_or_create(&[("reason", reason)]).inc();
        })?;
        self.metrics.wal_commit_seconds.observe(started.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a histogram's buckets are coarse")]
        {
            self.metrics.wal_group_entries.observe(entries.len() as f64);
            self.metrics.wal_group_bytes.observe(encoded_bytes as f64);
        }

        let followers = self.followers.now();
        let observer = self.observer.get();
        let wanted = |entry: &Entry| observer.is_some() || followers.want(&entry.meta.tenant, entry.meta.table);
        let followed: Vec<_> = entries
            .iter()
            .zip(&sizes)
            .filter(|(entry, _)| wanted(entry))
            .filter_map(|(entry, bytes)| {
                Some((entry.meta.tenant.clone(), entry.meta.table, entry.batch.clone()?, *bytes))
            })
            .collect();
        let now = self.config.clock.now();
        let mut state = lock(&self.state);
        state.published_seq = seq;
        positions.iter().for_each(|position| state.positions.set(position));
        for (entry, bytes) in entries.drain(..).zip(sizes) {
            let batch = entry.batch.map(|batch| (batch, bytes));
            state.active[entry.meta.table.index()].add(seq, entry.meta, batch, now);
        }
        let full = state.active.iter().any(|memtable| memtable.bytes() >= self.config.memtable_flush_bytes);
        let memory_bytes = state.memory_bytes();
        self.metrics.memtable_bytes.set(gauge(memory_bytes));
        self.metrics.memtable_rows.set(gauge(state.memory_rows()));
        drop(state);
        for (tenant, table, batch, bytes) in &followed {
            followers.offer(tenant, *table, batch, *bytes);
            if let Some(observer) = observer {
                observer.published(seq, tenant, *table, batch);
            }
        }
        self.show_wal(&wal);
        let wal_full = wal.bytes() > self.config.wal_bytes_max;
        drop(wal);
        if full || wal_full || memory_bytes >= max / MEMTABLE_PRESSURE.1 * MEMTABLE_PRESSURE.0 {
            self.flusher.wake();
        }
        Ok(())
    }

    /// Follows a table of a tenant: every batch that is acknowledged from now on, as far as its reader keeps up.
    #[must_use]
    pub fn follow(&self, tenant: &TenantId, table: Table) -> Follower {
        self.followers.follow(tenant, table)
    }

    /// Tells an observer of every batch that is published from now on. A second one is not taken.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        drop(self.observer.set(observer));
    }

    /// The attribute keys of everything a tenant has in a table, without a snapshot of it.
    #[must_use]
    pub fn kinds(&self, tenant: &TenantId, table: Table) -> Arc<AttributeKinds> {
        let of_segments_and_memory: Vec<Arc<AttributeKinds>> = {
            let state = lock(&self.state);
            let live = state.live.get(&(tenant.clone(), table)).map(|live| Arc::clone(&live.kinds));
            let frozen = state.frozen[table.index()].as_ref().map(|frozen| &frozen.memtable);
            let memory = frozen.into_iter().chain([&state.active[table.index()]]);
            let of_memory = memory.filter_map(|memtable| memtable.tenants().get(tenant));
            live.into_iter().chain(of_memory.map(|rows| Arc::clone(rows.kinds()))).collect()
        };
        let mut kinds = Arc::<AttributeKinds>::default();
        for part in &of_segments_and_memory {
            merge_kinds(&mut kinds, part);
        }
        kinds
    }

    /// What a tenant's queries see now.
    #[must_use]
    pub fn snapshot(&self, tenant: &TenantId) -> Snapshot {
        let (captured, published_seq) = {
            let state = lock(&self.state);
            (Self::capture(&state, tenant), state.published_seq)
        };
        Self::assemble(tenant, captured, published_seq)
    }

    /// Everything of a tenant at this instant.
    fn capture(state: &State, tenant: &TenantId) -> [Captured; Table::COUNT] {
        Table::ALL.map(|table| {
            let live = state.live.get(&(tenant.clone(), table)).cloned().unwrap_or_default();
            let frozen = state.frozen[table.index()].as_ref().map(|frozen| &frozen.memtable);
            let memory = frozen
                .into_iter()
                .chain([&state.active[table.index()]])
                .filter_map(|memtable| memtable.tenants().get(tenant))
                .map(|rows| (rows.batches().to_vec(), Arc::clone(rows.kinds())))
                .collect();
            (live, memory)
        })
    }

    fn assemble(tenant: &TenantId, captured: [Captured; Table::COUNT], published_seq: u64) -> Snapshot {
        let tables = captured.map(|(live, memory)| {
            let mut kinds = live.kinds;
            for (_, of_memory) in &memory {
                merge_kinds(&mut kinds, of_memory);
            }
            let memory = memory.iter().flat_map(|(batches, _)| batches).map(|batch| (**batch).clone()).collect();
            TableSnapshot { segments: live.segments, memory, kinds }
        });
        Snapshot { tenant: tenant.clone(), tables, derived: None, published_seq }
    }

    /// Tenants that have rows or counts, in order.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut tenants: BTreeSet<TenantId> = {
            let state = lock(&self.state);
            let frozen = state.frozen.iter().flatten().map(|frozen| &frozen.memtable);
            let memory = state.active.iter().chain(frozen);
            let counted = memory.flat_map(|memtable| memtable.ledger().map(|(tenant, _)| tenant.clone()));
            counted.chain(state.live.keys().map(|(tenant, _)| tenant.clone())).collect()
        };
        let persisted = lock(&self.manifest).ledger_tenants()?;
        tenants.extend(persisted.iter().filter_map(|name| TenantId::new(name).ok()));
        Ok(tenants.into_iter().collect())
    }

    /// The ledger of a tenant: every acknowledged item exactly once, by minute, signal and reason.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub fn ledger(&self, tenant: &TenantId) -> Result<Vec<LedgerLine>, StoreError> {
        let mut sums: BTreeMap<_, u64> = BTreeMap::new();
        let mut add = |line: LedgerLine| {
            *sums.entry((line.minute, line.signal, line.reason)).or_default() += line.items;
        };
        // Between the commit of a flush and its publication its counts are in both places.
        let gate = self.ledger_gate.read().unwrap_or_else(PoisonError::into_inner);
        lock(&self.manifest).ledger(tenant)?.into_iter().for_each(&mut add);
        let state = lock(&self.state);
        let frozen = state.frozen.iter().flatten().map(|frozen| &frozen.memtable);
        for memtable in state.active.iter().chain(frozen) {
            memtable.ledger().filter(|(owner, _)| *owner == tenant).for_each(|(_, line)| add(line));
        }
        drop(state);
        drop(gate);
        Ok(sums
            .into_iter()
            .map(|((minute, signal, reason), items)| LedgerLine { minute, signal, reason, items })
            .collect())
    }

    /// Whether a segment's file is what was written. Reads all of it. One that cannot be looked at
    /// (no permission, no file handle) has not been shown to be anything else.
    #[must_use]
    pub fn verify(&self, segment: &Segment) -> bool {
        match checksum(segment.path()) {
            Ok(found) => found == segment.meta().checksum,
            Err(error) => {
                tracing::warn!(path = %segment.path().display(), %error, "cannot read a segment to verify it");
                !is_damage(&error)
            }
        }
    }

    /// Sets a segment aside: queries do not read it any more, its file moves to `quarantine/`.
    /// Returns whether it was read until now; a second call changes nothing.
    ///
    /// # Errors
    /// When the manifest cannot be written; the segment is read further then.
    pub fn quarantine(&self, segment_id: u64, why: &str) -> Result<bool, StoreError> {
        let mut manifest = lock(&self.manifest);
        let Some(segment) = lock(&self.state).find(segment_id) else { return Ok(false) };
        manifest.quarantine(segment_id, why)?;
        let meta = segment.meta();
        self.replace(&(meta.tenant.clone(), meta.table), &[segment_id], None);
        drop(manifest);
        tracing::error!(segment = segment_id, path = %segment.path().display(), reason = why, rows = meta.rows, "segment is set aside");
        set_aside(&self.dir, meta);
        self.quarantined.fetch_add(1, Ordering::Relaxed);
        self.show(&self.stats());
        Ok(true)
    }

    /// Takes segments out of what queries read and puts another one in; those that went. The new list
    /// is made without the lock, and made again when a flush came in between.
    fn replace(&self, key: &(TenantId, Table), remove: &[u64], add: Option<Arc<Segment>>) -> Vec<Arc<Segment>> {
        loop {
            let before = lock(&self.state).live.get(key).cloned().unwrap_or_default();
            let (after, removed) = before.replaced(remove, add.as_ref().map(Arc::clone));
            let mut state = lock(&self.state);
            let unchanged = match state.live.get(key) {
                Some(live) => Arc::ptr_eq(&live.segments, &before.segments),
                None => before.segments.is_empty(),
            };
            if !unchanged {
                continue;
            }
            if after.segments.is_empty() {
                state.live.remove(key);
            } else {
                state.live.insert(key.clone(), after);
            }
            return removed;
        }
    }

    /// Sizes.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = lock(&self.state);
        let mut stats = Stats {
            memtable_bytes: state.memory_bytes(),
            memtable_rows: state.memory_rows(),
            quarantined: self.quarantined.load(Ordering::Relaxed),
            wal_bytes: self.wal_bytes.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for segment in state.segments() {
            stats.segments += 1;
            stats.segment_bytes += segment.meta().bytes;
            stats.segment_rows += segment.meta().rows;
        }
        stats
    }

    /// What is known of every segment that queries read.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentMeta> {
        lock(&self.state).segments().map(|segment| segment.meta().clone()).collect()
    }

    /// Flushes, merges and expires until `stop` is set and [`Store::wake`] is called. A plain
    /// thread's body; it starts one more thread for merges and ends it.
    pub fn maintain(&self, stop: &AtomicBool) {
        std::thread::scope(|scope| {
            let compactor = std::thread::Builder::new()
                .name("store-compactor".to_owned())
                .spawn_scoped(scope, || self.compact_until(stop));
            if let Err(error) = compactor {
                tracing::error!(%error, "cannot start the compactor; segments are not merged and not expired");
            }
            self.flush_until(stop);
        });
    }

    /// Somebody waits for an answer: background work makes room for it until what this returns is dropped.
    #[must_use]
    pub fn ask(&self) -> Asking {
        self.courtesy.ask()
    }

    /// Makes [`Store::maintain`] look at once, at its `stop` too, and pause for no question any more.
    pub fn wake(&self) {
        self.courtesy.end();
        self.flusher.wake();
        self.compactor.wake();
    }

    fn flush_until(&self, stop: &AtomicBool) {
        be_nice(FLUSHER_NICE);
        let mut delay = RETRY_DELAY_MIN;
        while !stop.load(Ordering::Acquire) {
            let mut failed = false;
            for table in self.due() {
                if let Err(error) = self.flush_unless(table, stop) {
                    tracing::error!(%table, %error, retry_in_ms = delay.as_millis(), "flush failed; its rows stay in memory and in the log");
                    failed = true;
                }
            }
            // Between flushes as well, so that a query that wants derived rows finds little left to count.
            self.count_spans();
            if failed {
                self.flusher.pause(delay, stop);
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            } else {
                delay = RETRY_DELAY_MIN;
                self.flusher.wait(FLUSH_TICK);
            }
        }
    }

    fn compact_until(&self, stop: &AtomicBool) {
        be_nice(COMPACTOR_NICE);
        let mut delay = RETRY_DELAY_MIN;
        while !stop.load(Ordering::Acquire) {
            let merged = self.expire().and_then(|_| self.compact_once());
            let outcome = merged.and_then(|merged| Ok(self.tend_derived()? || merged));
            match outcome {
                Ok(true) => delay = RETRY_DELAY_MIN,
                Ok(false) => {
                    delay = RETRY_DELAY_MIN;
                    self.compactor.wait(Duration::from_millis(self.config.compaction.interval_ms));
                }
                Err(error) => {
                    tracing::error!(%error, retry_in_ms = delay.as_millis(), "compaction or retention failed");
                    self.compactor.pause(delay, stop);
                    delay = (delay * 2).min(RETRY_DELAY_MAX);
                }
            }
        }
    }

    fn due(&self) -> Vec<Table> {
        let state = lock(&self.state);
        let facts = Table::ALL.map(|table| {
            let active = &state.active[table.index()];
            FlushFacts {
                table,
                frozen: state.frozen[table.index()].is_some(),
                bytes: active.bytes(),
                first_seq: active.seqs().map(|seqs| seqs.0),
                since: active.since(),
            }
        });
        let memory_bytes = state.memory_bytes();
        drop(state);
        let wal_bytes = self.wal_bytes.load(Ordering::Relaxed);
        due(&facts, memory_bytes, wal_bytes, self.config.clock.now(), &self.config)
    }

    /// Flushes every table, for a shutdown that wants a quick start afterwards. Tries all, and
    /// returns the first error.
    ///
    /// # Errors
    /// As a flush: the rows stay in memory and in the log.
    pub fn flush_all(&self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for table in Table::ALL {
            // The second round takes what came while a failed attempt was frozen.
            for _ in 0..2 {
                outcome = outcome.and(self.flush(table));
            }
        }
        outcome
    }

    /// Flushes one table: what is unflushed becomes segments, one per tenant, in one transaction.
    fn flush(&self, table: Table) -> Result<(), StoreError> {
        self.flush_unless(table, &AtomicBool::new(false))
    }

    /// Calls a function with a snapshot of a tenant of whose table the sink has nothing, and keeps it so until the function
    /// returns: for whoever adds what the sink has to what is here, each row once. Flushes wait meanwhile, so the function
    /// does no more than begin to read there.
    ///
    /// # Errors
    /// When a cut that was begun, and may be there in part, cannot be ended.
    pub fn beside_sink<T>(
        &self,
        tenant: &TenantId,
        table: Table,
        work: impl FnOnce(Snapshot) -> T,
    ) -> Result<T, StoreError> {
        let mut flushing = lock(&self.flushing);
        let begun = lock(&self.state).frozen[table.index()].clone();
        if let Some(frozen) = begun {
            self.flush_frozen(table, &frozen, &mut flushing.prepared[table.index()], &AtomicBool::new(false))?;
        }
        Ok(work(self.snapshot(tenant)))
    }

    /// As [`Store::flush`], but a sink that waits gives up when `stop` is set.
    fn flush_unless(&self, table: Table, stop: &AtomicBool) -> Result<(), StoreError> {
        let mut flushing = lock(&self.flushing);
        let Some(frozen) = self.freeze(table) else { return Ok(()) };
        let started = Instant::now();
        let prepared = &mut flushing.prepared[table.index()];
        let outcome = self.flush_frozen(table, &frozen, prepared, stop);
        if outcome.is_err() {
            self.metrics.flush_failures.inc();
        } else {
            self.metrics.flushes.get_or_create(&[("table", table.name())]).inc();
            self.metrics.flush_seconds.observe(started.elapsed().as_secs_f64());
        }
        outcome
    }

    fn freeze(&self, table: Table) -> Option<Arc<Frozen>> {
        let mut state = lock(&self.state);
        if let Some(frozen) = &state.frozen[table.index()] {
            return Some(Arc::clone(frozen));
        }
        if state.active[table.index()].is_empty() {
            return None;
        }
        let memtable = std::mem::replace(&mut state.active[table.index()], Memtable::new(table));
        state.spans_frozen += u64::from(table == Table::Spans);
        let high_water = state.published_seq;
        let frozen = Arc::new(Frozen { memtable, high_water });
        state.frozen[table.index()] = Some(Arc::clone(&frozen));
        Some(frozen)
    }

    fn flush_frozen(
        &self,
        table: Table,
        frozen: &Frozen,
        prepared: &mut Option<Prepared>,
        stop: &AtomicBool,
    ) -> Result<(), StoreError> {
        let Prepared { segments, deltas } = match prepared {
            Some(prepared) => prepared,
            None if self.sink.is_some() => {
                self.store_in_sink(table, frozen, stop)?;
                prepared.insert(Prepared { segments: Vec::new(), deltas: Vec::new() })
            }
            None => {
                let deltas = if table == Table::Spans { self.deltas_of(frozen)? } else { Vec::new() };
                prepared.insert(Prepared { segments: self.write_segments(table, &frozen.memtable)?, deltas })
            }
        };
        self.reach(Step::AfterRenameBeforeManifest)?;
        let (positions, positions_seq) = {
            let state = lock(&self.state);
            (state.positions.all(), state.published_seq)
        };
        let commit = FlushCommit {
            table,
            segments: segments.iter().map(|segment| (segment.meta(), segment.kinds())).collect(),
            ledger: frozen.memtable.ledger().collect(),
            deltas,
            high_water: frozen.high_water,
            // Of now, and not of when it was frozen: an attempt may have failed, and other tables been flushed since. The
            // log is cut by what is unflushed, and a start takes what is cut and not covered for lost.
            covered_seq: lock(&self.state).first_unflushed(Some(table)) - 1,
            positions,
            positions_seq,
        };
        {
            let _gate = self.ledger_gate.write().unwrap_or_else(PoisonError::into_inner);
            let mut manifest = lock(&self.manifest);
            manifest.commit_flush(&commit)?;
            self.reach(Step::AfterManifestBeforePublish)?;
            let mut derived = lock(&self.derived);
            let mut state = lock(&self.state);
            for segment in segments.iter() {
                let key = (segment.meta().tenant.clone(), table);
                state.add(&key, Arc::clone(segment));
            }
            state.add_deltas(deltas);
            state.frozen[table.index()] = None;
            let spans_frozen = state.spans_frozen;
            // Acknowledgements wait for `state` but never for `derived`.
            drop(state);
            if table == Table::Spans {
                derived.forget(spans_frozen - 1, self.config.clock.now());
            }
        }
        self.room.notify_all();
        drop(commit);
        *prepared = None;
        self.show(&self.stats());
        self.compactor.wake();
        self.reach(Step::AfterPublishBeforeWalTruncate)?;
        let first_unflushed = lock(&self.state).first_unflushed(None);
        let mut wal = lock(&self.wal);
        let detached = wal.detach_below(first_unflushed);
        self.show_wal(&wal);
        // Deleting does not hold up acknowledgements.
        drop(wal);
        match detached {
            Ok(files) if files.is_empty() => {}
            Ok(files) => {
                // Oldest first, and none after one that stays: a start takes a gap for a loss.
                let _left = files.iter().find(|path| !remove_quietly(path));
                if let Err(error) = sync_dir(&self.dir.wal()) {
                    tracing::warn!(%error, "cannot sync the folder of the write-ahead log; a restart reads more of it");
                }
            }
            // The flush is done all the same; the next one truncates as well.
            Err(error) => tracing::error!(%error, "cannot truncate the write-ahead log"),
        }
        Ok(())
    }

    /// Hands a frozen memtable to the sink, as a cut that a later process would make again.
    fn store_in_sink(&self, table: Table, frozen: &Frozen, stop: &AtomicBool) -> Result<(), StoreError> {
        let Some(sink) = &self.sink else { return Ok(()) };
        let at = lock(&self.manifest).begin_cut(table, frozen.high_water, self.config.clock.now())?;
        self.reach(Step::AfterCutBeforeSink)?;
        let tenants = frozen.memtable.tenants();
        let cut = Cut {
            log_id: self.log_id,
            table,
            seq: frozen.high_water,
            at,
            rows: tenants.iter().map(|(tenant, rows)| (tenant, rows.batches())).collect(),
            ledger: frozen.memtable.ledger().collect(),
        };
        let outcome = sink.store(&cut, stop).map_err(|source| StoreError::Sink { table: table.name(), source });
        lock(&self.sink_troubles)[table.index()] = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// Writes a memtable's rows, one segment per tenant, under their final names and durably.
    fn write_segments(&self, table: Table, memtable: &Memtable) -> Result<Vec<Arc<Segment>>, StoreError> {
        let now = self.config.clock.now();
        let (seq_min, seq_max) = memtable.seqs().expect("an empty memtable is not frozen");
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for (tenant, rows) in memtable.tenants() {
            let place = SegmentPlace { tenant, table, seqs: (seq_min, seq_max), level: 0, created_at: now };
            let outcome = self.write_new(&place, Step::AfterParquetWriteBeforeRename, |path| {
                let written = write_sorted(table, tenant, rows, path)?;
                Ok((written, AttributeKinds::clone(rows.kinds())))
            });
            match outcome {
                Ok(segment) => segments.push(segment),
                Err(error) => {
                    if !error.is_stop() {
                        // Nothing lists them; the next attempt writes new ones.
                        segments.iter().for_each(|segment| segment.make_obsolete());
                    }
                    return Err(error);
                }
            }
        }
        Ok(segments)
    }

    /// Writes one new segment through a temporary name.
    fn write_new(
        &self,
        place: &SegmentPlace<'_>,
        before_rename: Step,
        write: impl FnOnce(&Path) -> Result<(Written, AttributeKinds), StoreError>,
    ) -> Result<Arc<Segment>, StoreError> {
        let dir = self.dir.segment_dir(place.tenant, place.table);
        create_dir_durably(&dir)?;
        let id = self.next_segment_id.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(file_name(id));
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let named = write(&temporary).and_then(|written| {
            self.reach(before_rename)?;
            std::fs::rename(&temporary, &path).map_err(StoreError::io("rename", &temporary))?;
            sync_dir(&dir)?;
            Ok(written)
        });
        let (written, kinds) = match named {
            Ok(written) => written,
            Err(error) => {
                if !error.is_stop() {
                    remove_quietly(&temporary);
                    remove_quietly(&path);
                }
                return Err(error);
            }
        };
        let meta = SegmentMeta {
            id,
            tenant: place.tenant.clone(),
            table: place.table,
            format_version: SEGMENT_FORMAT_VERSION,
            rows: written.rows,
            bytes: written.bytes,
            min_time: written.min_time,
            max_time: written.max_time,
            seq_min: place.seqs.0,
            seq_max: place.seqs.1,
            level: place.level,
            created_at: place.created_at,
            checksum: written.checksum,
        };
        Ok(Segment::new(meta, kinds, path))
    }

    /// Merges the most worthwhile segments, if any are; returns whether it did.
    ///
    /// # Errors
    /// The inputs stay as they are. An input that cannot be read and whose checksum is wrong is
    /// set aside first.
    pub fn compact_once(&self) -> Result<bool, StoreError> {
        let segments = self.segments();
        let plan = compaction::plan(&segments, self.config.clock.now(), &self.config.compaction);
        let Some(merge) = plan.first() else { return Ok(false) };
        let inputs: Vec<Arc<Segment>> = {
            let state = lock(&self.state);
            merge.inputs.iter().filter_map(|id| state.find(*id)).collect()
        };
        if inputs.len() != merge.inputs.len() {
            // One went in the meantime; plan again.
            return Ok(true);
        }
        let bytes: u64 = inputs.iter().map(|segment| segment.meta().bytes).sum();
        let free = self.dir.free_bytes();
        if free.saturating_sub(self.config.wal_min_free_bytes) < bytes {
            // What is free is the log's: a merge can wait.
            tracing::warn!(free, needed = bytes, "no room to merge segments");
            return Ok(false);
        }
        let started = Instant::now();
        let outcome = self.compact(&inputs);
        match outcome {
            // An input went in the meantime; plan again.
            Ok(0) => Ok(true),
            Ok(rows) => {
                self.metrics.compactions.inc();
                self.metrics.compacted_rows.inc_by(rows);
                self.metrics.compaction_seconds.observe(started.elapsed().as_secs_f64());
                Ok(true)
            }
            Err(error) => {
                self.metrics.compaction_failures.inc();
                Err(error)
            }
        }
    }

    fn compact(&self, inputs: &[Arc<Segment>]) -> Result<u64, StoreError> {
        let metas = || inputs.iter().map(|segment| segment.meta());
        let first = inputs[0].meta();
        let key = (first.tenant.clone(), first.table);
        let ids: Vec<u64> = metas().map(|meta| meta.id).collect();
        let place = SegmentPlace {
            tenant: &first.tenant,
            table: first.table,
            seqs: (
                metas().map(|meta| meta.seq_min).min().unwrap_or(first.seq_min),
                metas().map(|meta| meta.seq_max).max().unwrap_or(first.seq_max),
            ),
            level: metas().map(|meta| meta.level).max().unwrap_or(0).saturating_add(1),
            created_at: metas().map(|meta| meta.created_at).max().unwrap_or(first.created_at),
        };
        let mut kinds = AttributeKinds::default();
        for segment in inputs {
            kinds.merge(segment.kinds());
        }
        let mut unreadable = None;
        let output = self.write_new(&place, Step::CompactionBeforeCommit, |path| {
            let mut pauses = Pauses::new(&self.courtesy, MERGE_PAUSES_MAX);
            let merged = compaction::merge(inputs, &kinds, path, || pauses.between_batches());
            let written = merged.map_err(|error| match error {
                MergeError::Input(input, error) => {
                    unreadable = Some(input);
                    error
                }
                MergeError::Output(error) => error,
            })?;
            let rows: u64 = metas().map(|meta| meta.rows).sum();
            if written.rows == rows {
                Ok((written, kinds))
            } else {
                let reason = format!("a merge of {rows} rows gave {}", written.rows);
                Err(StoreError::arrow("merge segments")(arrow::error::ArrowError::ComputeError(reason)))
            }
        });
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                if let Some(segment) = unreadable.map(|input| &inputs[input])
                    && !self.verify(segment)
                {
                    self.quarantine(segment.meta().id, &error.to_string())?;
                }
                return Err(error);
            }
        };

        let mut manifest = lock(&self.manifest);
        let committed = match manifest.commit_merge((output.meta(), output.kinds()), &ids) {
            Ok(committed) => committed,
            // The answer may be lost and the commit done all the same.
            Err(error) => match manifest.lists(output.meta().id) {
                Ok(true) => true,
                Ok(false) => {
                    output.make_obsolete();
                    return Err(error);
                }
                // Unknown: keep both; the next start knows.
                Err(_) => return Err(error),
            },
        };
        if !committed {
            output.make_obsolete();
            return Ok(0);
        }
        self.reach(Step::CompactionAfterCommit)?;
        let rows = output.meta().rows;
        let replaced = self.replace(&key, &ids, Some(output));
        drop(manifest);
        replaced.iter().for_each(|segment| segment.make_obsolete());
        drop(replaced);
        self.show(&self.stats());
        Ok(rows)
    }

    /// Removes segments and ledger lines that are past their retention; returns how many segments.
    ///
    /// # Errors
    /// When the manifest cannot be written; nothing is removed then.
    pub fn expire(&self) -> Result<usize, StoreError> {
        let now = self.config.clock.now();
        let ids = retention::expired(&self.segments(), now, &self.config);
        let mut manifest = lock(&self.manifest);
        if self.ledger_expired_day.load(Ordering::Relaxed) != now.day() {
            // It reads every line, so once a day is enough.
            manifest.expire_ledger(now.plus_nanos(self.config.ledger_retention_ns.saturating_neg()))?;
            self.ledger_expired_day.store(now.day(), Ordering::Relaxed);
        }
        drop(manifest);
        self.expire_derived(now)?;
        if ids.is_empty() {
            return Ok(0);
        }
        let mut manifest = lock(&self.manifest);
        manifest.remove(&ids)?;
        let mut removed = Vec::with_capacity(ids.len());
        let found: Vec<_> = {
            let state = lock(&self.state);
            ids.iter().filter_map(|id| state.find(*id)).collect()
        };
        for segment in found {
            let key = (segment.meta().tenant.clone(), segment.meta().table);
            removed.extend(self.replace(&key, &[segment.meta().id], None));
        }
        drop(manifest);
        removed.iter().for_each(|segment| segment.make_obsolete());
        self.metrics.segments_expired.inc_by(removed.len() as u64);
        tracing::info!(segments = removed.len(), "segments are past their retention");
        let count = removed.len();
        drop(removed);
        self.show(&self.stats());
        Ok(count)
    }

    /// Makes sure that everything appended is durable. It always is; this says so at a shutdown
    /// that does not flush. Followers end, with what they have not seen yet.
    ///
    /// # Errors
    /// As [`Store::append_group`]'s fatal ones.
    pub fn close(&self) -> Result<(), StoreError> {
        self.followers.close();
        lock(&self.wal).sync()?;
        Ok(())
    }

    fn show(&self, stats: &Stats) {
        self.metrics.memtable_bytes.set(gauge(stats.memtable_bytes));
        self.metrics.memtable_rows.set(gauge(stats.memtable_rows));
        self.metrics.segment_bytes.set(gauge(stats.segment_bytes));
        self.metrics.segments_quarantined.set(gauge(stats.quarantined));
        let mut counts = [0; Table::COUNT];
        for segment in lock(&self.state).segments() {
            counts[segment.meta().table.index()] += 1;
        }
        for table in Table::ALL {
            self.metrics.segments.get_or_create(&[("table", table.name())]).set(counts[table.index()]);
        }
    }

    fn show_wal(&self, wal: &Wal) {
        self.wal_bytes.store(wal.bytes(), Ordering::Relaxed);
        self.metrics.wal_bytes.set(gauge(wal.bytes()));
        self.metrics.wal_segments.set(gauge(wal.segments()));
    }

    /// A place where the process may die: what is on disk here must open again.
    fn reach(&self, step: Step) -> Result<(), StoreError> {
        match step {
            Step::AfterParquetWriteBeforeRename => fail::fail_point!("store_after_parquet_write_before_rename"),
            Step::AfterRenameBeforeManifest => fail::fail_point!("store_after_rename_before_manifest"),
            Step::AfterManifestBeforePublish => fail::fail_point!("store_after_manifest_before_publish"),
            Step::AfterPublishBeforeWalTruncate => fail::fail_point!("store_after_publish_before_wal_truncate"),
            Step::AfterCutBeforeSink => fail::fail_point!("store_after_cut_before_sink"),
            Step::CompactionBeforeCommit => fail::fail_point!("store_compaction_before_commit"),
            Step::CompactionAfterCommit => fail::fail_point!("store_compaction_after_commit"),
            Step::DerivedBeforeCommit => fail::fail_point!("store_derived_before_commit"),
            Step::DerivedAfterCommit => fail::fail_point!("store_derived_after_commit"),
        }
        #[cfg(test)]
        match *lock(&self.fault) {
            Some(Fault::Stop(at)) if at == step => return Err(StoreError::Stopped { step: format!("{step:?}") }),
            Some(Fault::DiskFull(at)) if at == step => {
                return Err(StoreError::io("write", self.dir.segments().as_path())(rustix::io::Errno::NOSPC.into()));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes the rows of a memtable in order, in the layout that suits them.
fn write_sorted(table: Table, tenant: &TenantId, rows: &TenantRows, path: &Path) -> Result<Written, StoreError> {
    let batches: Vec<&RecordBatch> = rows.batches().iter().map(|batch| &**batch).collect();
    let own = Layout::of_table(table);
    let layout = layout::choose(table, batches.iter().copied(), rows.kinds());
    let sources: Vec<(&Layout, &RecordBatch)> = batches.iter().map(|batch| (&own, *batch)).collect();
    let gatherer = Gatherer::new(&sources, &layout)?;
    let order = sort::order(table, &batches, &gatherer)?;
    let sample: Vec<Pick> = order.iter().step_by(order.len().div_ceil(SAMPLE_ROWS).max(1)).copied().collect();
    let varied = Varied::in_sample(&layout, &gatherer.gather(&sample)?);
    let mut writer = SegmentWriter::create(path, &layout, tenant, Packing::FLUSH, &varied)?;
    for picks in order.chunks(FLUSH_PIECE_ROWS) {
        writer.write(&gatherer.gather(picks)?)?;
    }
    writer.finish()
}

/// Whose segment is written, and what is known of it before.
struct SegmentPlace<'a> {
    tenant: &'a TenantId,
    table: Table,
    seqs: (u64, u64),
    level: u32,
    created_at: Timestamp,
}

/// Rebuilds memtables from the log.
struct Replay<'a> {
    state: &'a mut State,
    high_water: [u64; Table::COUNT],
    /// The manifest knows how far sources were read up to this log record.
    positions_seq: u64,
    /// Where a sink's cuts end, and their rows.
    cuts: [Option<u64>; Table::COUNT],
    cut: [Memtable; Table::COUNT],
    now: Timestamp,
    quarantine: PathBuf,
    undecodable: u64,
}

impl Replay<'_> {
    /// Takes one record. Only a format of a later release ends the start; a record that makes no
    /// sense though its checksum is right is set aside.
    fn visit(&mut self, record: Record<'_>) -> Result<(), wal::VisitError> {
        let parts = match record.kind {
            GROUP_KIND => group_entries(record.payload).map(|entries| (Vec::new(), entries)),
            POSITIONED_GROUP_KIND => {
                split_positions(record.payload).and_then(|(positions, group)| Ok((positions, group_entries(group)?)))
            }
            kind => {
                return Err(Box::new(RecordError::NewerVersion {
                    what: "record kind",
                    found: u32::from(kind),
                    supported: u32::from(POSITIONED_GROUP_KIND),
                }));
            }
        };
        let (positions, entries) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                self.set_aside(record, &error);
                return Ok(());
            }
        };
        if record.seq > self.positions_seq {
            positions.iter().for_each(|position| self.state.positions.set(position));
        }
        let mut damaged = None;
        for bytes in entries {
            match decode_if(bytes, |table| record.seq > self.high_water[table.index()]) {
                Ok(None) => {}
                Ok(Some((meta, batch))) => {
                    let batch = batch.map(|batch| {
                        let bytes = batch_bytes(&batch);
                        (batch, bytes)
                    });
                    let index = meta.table.index();
                    let cut = self.cuts[index].is_some_and(|seq| record.seq <= seq);
                    let memtable = if cut { &mut self.cut[index] } else { &mut self.state.active[index] };
                    memtable.add(record.seq, meta, batch, self.now);
                }
                Err(error @ RecordError::NewerVersion { .. }) => return Err(Box::new(error)),
                Err(error) => damaged = Some(error),
            }
        }
        if let Some(error) = damaged {
            self.set_aside(record, &error);
        }
        Ok(())
    }

    fn set_aside(&mut self, record: Record<'_>, error: &RecordError) {
        self.undecodable += 1;
        let path = self.quarantine.join(format!("wal-record-{}.bin", record.seq));
        tracing::error!(seq = record.seq, %error, copy = %path.display(), "a log record makes no sense and is set aside");
        if let Err(error) = std::fs::write(&path, record.payload) {
            tracing::error!(path = %path.display(), %error, "cannot keep a copy of the record");
        }
    }
}

fn report(recovery: &Recovery, metrics: &Metrics) {
    metrics.wal_records_lost.inc_by(recovery.records_lost);
    metrics.wal_torn_bytes.inc_by(recovery.torn_bytes);
    for damage in &recovery.damages {
        metrics.wal_damages.get_or_create(&[("kind", damage.what.as_str())]).inc();
        tracing::error!(%damage, "the write-ahead log is damaged");
    }
    if !recovery.is_clean() {
        tracing::error!(
            records_lost = recovery.records_lost,
            records_lost_durable = recovery.records_lost_durable,
            damages = recovery.damages_total,
            "records of the write-ahead log are lost"
        );
    }
}

/// Files in all `segments/<tenant>/<table>/` folders.
fn segment_files(dir: &DataDir) -> Result<Vec<PathBuf>, StoreError> {
    let mut level = vec![dir.segments()];
    for depth in 0..3 {
        let mut next = Vec::new();
        for folder in level {
            let entries = std::fs::read_dir(&folder).map_err(StoreError::io("list", &folder))?;
            for entry in entries {
                let entry = entry.map_err(StoreError::io("list", &folder))?;
                let kind = entry.file_type().map_err(StoreError::io("list", &folder))?;
                if if depth < 2 { kind.is_dir() } else { kind.is_file() } {
                    next.push(entry.path());
                }
            }
        }
        level = next;
    }
    Ok(level)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// A new manifest beside old segments would remove them all as orphans.
fn refuse_orphaned_segments(dir: &DataDir) -> Result<(), StoreError> {
    let manifest = dir.manifest();
    if manifest.exists() || !segment_files(dir)?.iter().any(|path| has_extension(path, SEGMENT_EXTENSION)) {
        return Ok(());
    }
    Err(StoreError::ManifestMissing { manifest, segments: dir.segments() })
}

/// Removes what a crash left: files that were never committed, and those that were replaced.
fn remove_orphans(dir: &DataDir, listed: &HashSet<PathBuf>) -> Result<u64, StoreError> {
    let mut removed = 0;
    for path in segment_files(dir)? {
        if listed.contains(&path) {
            continue;
        }
        if !has_extension(&path, SEGMENT_EXTENSION) && !has_extension(&path, TEMPORARY_EXTENSION) {
            tracing::warn!(path = %path.display(), "a file among the segments is none of ours and stays");
            continue;
        }
        tracing::info!(path = %path.display(), "removing a segment that was not committed or was replaced");
        std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        removed += 1;
    }
    Ok(removed)
}

/// Moves a segment's file to `quarantine/`, if it is there.
fn set_aside(dir: &DataDir, meta: &SegmentMeta) {
    let from = dir.segment_dir(&meta.tenant, meta.table).join(meta.file_name());
    let to = dir.quarantine().join(format!("{}-{}-{}", meta.tenant, meta.table, meta.file_name()));
    match std::fs::rename(&from, &to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(path = %from.display(), %error, "cannot move a segment to the quarantine"),
    }
}

/// Lowers the priority of this thread: on Linux it is the thread's own, not the process's.
fn be_nice(nice: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, nice, "cannot lower a thread's priority");
    }
}

/// Removes a file that is not needed any more; whether it is gone.
fn remove_quietly(path: &Path) -> bool {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file that is not needed; the next start does");
            false
        }
        _ => true,
    }
}

/// The sum of a ledger's lines: what was stored, and what was rejected by reason.
#[must_use]
pub fn ledger_total(lines: &[LedgerLine]) -> LedgerDelta {
    let mut total = LedgerDelta::default();
    for line in lines {
        match line.reason {
            None => total.stored += line.items,
            Some(reason) => *total.rejected.entry(reason).or_default() += line.items,
        }
    }
    total
}

#[cfg(test)]
mod derived_tests;
#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
