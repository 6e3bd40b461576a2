//! How a store is kept: plain data, every default with its reason.
//!
//! Not here: reading a configuration file or the environment; that is the program's rim.

use std::path::PathBuf;

use model::signal::Signal;
use model::time::{Clock, Timestamp};

const MIB: u64 = 1 << 20;

/// Default of [`StoreConfig::memtable_flush_bytes`]: large enough that a segment compresses and
/// prunes well, small enough that sorting and writing it stays well below a second.
pub const MEMTABLE_FLUSH_BYTES_DEFAULT: u64 = 48 * MIB;

/// Default of [`StoreConfig::memtable_flush_interval_ms`]: bounds what a restart replays when
/// little arrives; shorter would litter small files.
pub const MEMTABLE_FLUSH_INTERVAL_MS_DEFAULT: u64 = 30_000;

/// Default of [`StoreConfig::memtable_bytes_max`]: four memtables' worth, so that one table may be
/// flushed while the others fill, within the process's budget of 512 MiB.
pub const MEMTABLE_BYTES_MAX_DEFAULT: u64 = 192 * MIB;

/// Default of [`StoreConfig::memtable_wait_ms`]: a flush takes less, and a client that waits a second
/// for its answer is better off than one that is told to come back in two.
pub const MEMTABLE_WAIT_MS_DEFAULT: u64 = 1_000;

/// Default of [`StoreConfig::wal_bytes_max`]: twice what must be replayed within the restart goal.
pub const WAL_BYTES_MAX_DEFAULT: u64 = 512 * MIB;

/// Default of [`StoreConfig::retention_ns`]: a week, in which most incidents are looked into.
pub const RETENTION_NS_DEFAULT: i64 = 7 * 86_400 * Timestamp::NANOS_PER_SECOND;

/// Default of [`StoreConfig::ledger_retention_ns`]: a quarter, so that counts outlive the rows.
/// A minute of a busy tenant takes about five lines, so a quarter stays below a million.
pub const LEDGER_RETENTION_NS_DEFAULT: i64 = 90 * 86_400 * Timestamp::NANOS_PER_SECOND;

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory; created when missing.
    pub data_dir: PathBuf,
    /// A segment of the write-ahead log that would grow beyond this is closed first, bytes.
    pub wal_segment_bytes_max: u64,
    /// Appends are refused, retryably, when less than this would stay free on the disk, bytes.
    pub wal_min_free_bytes: u64,
    /// The oldest table is flushed when the write-ahead log is larger than this, bytes.
    pub wal_bytes_max: u64,
    /// A table is flushed when its unflushed rows take more memory than this, bytes.
    pub memtable_flush_bytes: u64,
    /// A table is flushed when its first unflushed row is older than this.
    pub memtable_flush_interval_ms: u64,
    /// Appends are refused, retryably, when the unflushed rows of all tables take more, bytes.
    pub memtable_bytes_max: u64,
    /// How long an append waits for a flush to make room before it is refused.
    pub memtable_wait_ms: u64,
    /// When segments are merged.
    pub compaction: CompactionConfig,
    /// Whether `span_metrics` and `service_edges` are derived. Turned off, they are marked as missing spans; turned on
    /// again, they are derived anew.
    pub derived: bool,
    /// How long rows of each signal are kept, nanoseconds; indexed by [`retention_of`].
    ///
    /// [`retention_of`]: StoreConfig::retention_of
    pub retention_ns: [i64; Signal::ALL.len()],
    /// How long lines of the ledger are kept, nanoseconds.
    pub ledger_retention_ns: i64,
    /// Where `now` comes from.
    pub clock: Clock,
}

impl StoreConfig {
    /// The defaults, for a directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            wal_segment_bytes_max: crate::wal::SEGMENT_BYTES_MAX_DEFAULT,
            wal_min_free_bytes: crate::wal::MIN_FREE_BYTES_DEFAULT,
            wal_bytes_max: WAL_BYTES_MAX_DEFAULT,
            memtable_flush_bytes: MEMTABLE_FLUSH_BYTES_DEFAULT,
            memtable_flush_interval_ms: MEMTABLE_FLUSH_INTERVAL_MS_DEFAULT,
            memtable_bytes_max: MEMTABLE_BYTES_MAX_DEFAULT,
            memtable_wait_ms: MEMTABLE_WAIT_MS_DEFAULT,
            compaction: CompactionConfig::default(),
            derived: true,
            retention_ns: [RETENTION_NS_DEFAULT; Signal::ALL.len()],
            ledger_retention_ns: LEDGER_RETENTION_NS_DEFAULT,
            clock: Clock::System,
        }
    }

    /// How long rows of a signal are kept, nanoseconds.
    #[must_use]
    pub const fn retention_of(&self, signal: Signal) -> i64 {
        self.retention_ns[signal as usize - 1]
    }

    /// Sets how long rows of a signal are kept, nanoseconds.
    pub const fn set_retention(&mut self, signal: Signal, nanos: i64) {
        self.retention_ns[signal as usize - 1] = nanos;
    }
}

/// When segments are merged. A merge takes segments of one tenant, table, day and size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionConfig {
    /// The fewest segments worth a merge while their day is still open. So many inputs of one class
    /// make one output of the next, so each row is rewritten once a class: twice from a flush to
    /// the largest segments.
    pub inputs_min: usize,
    /// The fewest segments worth a merge once their day is closed: no more will come, and fewer,
    /// larger files read better for the rest of the retention.
    pub inputs_closed_day_min: usize,
    /// The most segments of one merge: bounds open files and memory.
    pub inputs_max: usize,
    /// A merge's inputs stay below this together, bytes: bounds the time of one merge and the disk
    /// space it needs, and lets a query prune by file.
    pub output_bytes_max: u64,
    /// Segments smaller than this are all of one size class, bytes.
    pub small_bytes: u64,
    /// Each size class is this many times the one before.
    pub class_factor: u64,
    /// A day is closed so long after its end, nanoseconds: late data is usual for minutes.
    pub day_closed_after_ns: i64,
    /// How often segments are looked at, when there was nothing to merge.
    pub interval_ms: u64,
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self {
            inputs_min: 8,
            inputs_closed_day_min: 2,
            inputs_max: 16,
            output_bytes_max: 256 * MIB,
            small_bytes: 2 * MIB,
            class_factor: 8,
            day_closed_after_ns: 3600 * Timestamp::NANOS_PER_SECOND,
            // A plan is a pass over the list of segments: cheap enough for every ten seconds.
            interval_ms: 10_000,
        }
    }
}
