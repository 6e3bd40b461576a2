//! The write-ahead log: what was acknowledged is in here, durable, until it is in a segment of the store.
//!
//! It is a plain append-only log of opaque records. It knows neither signals nor tenants, starts no
//! thread, reads no clock and never retries a failed sync. One thread owns it and calls it
//! synchronously; it does not lock its directory (the data directory has one lock for all).
//!
//! # Quick start
//!
//! ```
//! use store::wal::{ReplayProgress, Wal, WalOptions};
//!
//! # fn main() -> Result<(), store::wal::WalError> {
//! # let temporary = tempfile::tempdir().unwrap();
//! # let dir = temporary.path().join("wal");
//! let mut options = WalOptions::new(dir);
//! options.min_free_bytes = 0;
//! let progress = ReplayProgress::default();
//! let (mut wal, recovery) = Wal::open(options, &progress, &mut |record| {
//!     assert!(record.seq > 0); // Rebuild the memtable from record.kind and record.payload.
//!     Ok(())
//! })?;
//! assert!(recovery.is_clean());
//!
//! let seq = wal.append(1, &[b"tenant header", b"payload"])?; // Not durable yet.
//! let durable = wal.sync()?; // One fdatasync for the whole group.
//! assert!(seq <= durable.seq_hi); // Now answer the clients.
//! wal.truncate_below(seq + 1)?; // The rows are in the store: whole segments may go.
//! # Ok(())
//! # }
//! ```
//!
//! # Files
//!
//! | file | purpose |
//! | --- | --- |
//! | `mod.rs` | options, errors, report of a recovery; this page |
//! | `format.rs` | bytes of segment and record headers |
//! | `disk.rs` | file operations behind a trait, so that tests can break them |
//! | `recovery.rs` | scan, salvage, quarantine, counting of what is lost |
//! | `ledger.rs` | arithmetic of lost sequence numbers |
//! | `writer.rs` | append, sync, roll, truncate |
//!
//! # On disk
//!
//! ```text
//! wal/
//!   log.id                      identity of this log: a segment header with first_seq 0
//!   00000000000000000001.wal    segment: named by the lowest sequence number it may hold
//!   00000000000000004711.wal
//!   quarantine/                 copies of damaged ranges, and files that are no part of the log
//!     00000000000000000001.wal.at-2048
//!
//! segment   0        64       512       576      1024
//!           ├ header ┤ zeros  ├ header ─┤ zeros  ├ record │ record │ …
//!                               (copy)
//! header    magic 8 │ version u32 │ flags u32 │ log id 16 │ first_seq u64 │ prev_last_seq u64
//!           │ prev_durable_seq u64 │ zeros 4 │ crc32c u32 of the 60 bytes before
//!           flags: 1 = first segment of a process
//!
//! record    magic 4 │ len u32 │ seq u64 │ durable_seq u64 │ log tag u32 │ kind u8 │ zeros 3
//!           │ crc32c u32 of the payload │ crc32c u32 of the 36 bytes before │ payload of len bytes
//! ```
//!
//! Little endian. The layout of the 64-byte header stays for ever, so every release can name a
//! version it does not know ([`WalError::NewerVersion`]) and reads all older ones (I12). A header
//! checksum of its own means that a length is believed only when it is right: a damaged payload
//! costs one record, a damaged header is stepped over by looking for the next valid one, and no
//! length on disk makes the reader allocate more than the file holds.
//!
//! # Key concepts
//!
//! - **Sequence number.** Every record has one; within a process they follow each other by one.
//!   They are never reused: a start skips [`SEQ_SKIP`] numbers beyond the highest it saw, and no
//!   more than that are ever handed out between two syncs. A segment header says which numbers
//!   before it count (`prev_last_seq`), so a skip is never taken for a loss.
//! - **Group commit.** `append` any number of records, `sync` once, acknowledge them all.
//! - **Active segment.** The one that is written. A start never appends to a file that it found; the
//!   first append creates a new one, so that a start needs no disk space. A full segment is synced
//!   before the next one is created; a new one is written under a temporary name, synced, renamed,
//!   and its directory synced, before it takes a record.
//!
//! # What durable means
//!
//! When `sync` returns `seq_hi`, every record up to it has been handed to the disk with `fdatasync`,
//! in a file whose directory entry is synced too. It survives the end of the process and a power
//! cut, if the disk honours a flush. A record that was appended and not synced may or may not
//! survive; if it does, it is whole and in its order.
//!
//! # Failures
//!
//! | what | answer |
//! | --- | --- |
//! | write error, short write | the file is cut back to its last whole record; [`WalError::Full`] for a full disk, quota or file size limit (retryable: heals when there is room), [`WalError::Io`] otherwise |
//! | free space below `min_free_bytes` | [`WalError::Full`] before anything is written |
//! | the cut itself fails | [`WalError::RollbackFailed`], for ever: the end of the file is unknown |
//! | any sync fails | [`WalError::SyncFailed`], for ever: the kernel may have dropped the pages and would report success next time. Acknowledge nothing, end the process |
//!
//! # What recovery can know, and what it cannot
//!
//! Recovery always ends with a log that can be written; what it found is in [`Recovery`].
//!
//! - A damaged range that is followed by a valid record, or that lies in a segment that is not the
//!   last: its bytes are copied to `quarantine/`, the records after it are kept, and the records in
//!   it are counted exactly, because sequence numbers have no gaps. The damaged segment stays until
//!   it is truncated as usual, so each start until then reports it again.
//! - The end of the last segment, incomplete: a write that power or a signal cut short. It was never
//!   acknowledged, since a sync would have completed it. Cut off and counted in `torn_bytes`.
//! - The last record of the log, complete in length but damaged: it may have been acknowledged. It
//!   counts as lost (one record), whether its payload or its header is hit.
//! - The end of the last segment, several records in a row with no valid header: how many they were
//!   cannot be known. They count as `torn_bytes`, after a copy to `quarantine/`.
//! - The last segment cut exactly between two records, or removed whole: cannot be told from a log
//!   that was never longer. Only the caller's `covered_seq` can contradict it.
//! - After a power cut the disk may hold a later unsynced record without an earlier one. That gap
//!   counts in `records_lost`, though nobody was told that it was stored. `records_lost_durable` is
//!   the part that is proven to have been durable: records and headers carry the durable position
//!   of their time, and a power cut alone never makes it more than zero.

mod disk;
mod format;
mod ledger;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use writer::Wal;

/// Default of [`WalOptions::segment_bytes_max`]: large enough that creating one (two syncs) costs
/// nothing, small enough that disk space comes back soon after a flush.
pub const SEGMENT_BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Default of [`WalOptions::record_bytes_max`]: twice the largest decompressed request.
pub const RECORD_BYTES_MAX_DEFAULT: u32 = 128 << 20;

/// Highest value of [`WalOptions::record_bytes_max`].
pub const RECORD_BYTES_LIMIT: u32 = 1 << 30;

/// Default of [`WalOptions::min_free_bytes`]: what the store needs to flush the log into segments
/// and to commit their manifest, which is what makes room again.
pub const MIN_FREE_BYTES_DEFAULT: u64 = 256 << 20;

/// Sequence numbers a start skips, so that a number from a lost tail is never given out again. An
/// append syncs by itself before this many records are unsynced, which makes the skip a proof.
pub const SEQ_SKIP: u64 = 1 << 20;

/// How many damages a report lists; the rest is counted only.
pub const DAMAGES_LISTED_MAX: usize = 1000;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// Directory of the log; created if missing. Nothing else may live in it.
    pub dir: PathBuf,
    /// A segment that would grow beyond this is closed first. One record may be larger.
    pub segment_bytes_max: u64,
    /// Largest payload of a record, at most [`RECORD_BYTES_LIMIT`].
    pub record_bytes_max: u32,
    /// Appends are refused as [`WalError::Full`] when less than this would stay free.
    pub min_free_bytes: u64,
    /// The highest sequence number up to which the caller has everything elsewhere, if it knows.
    /// Records up to it are still replayed, but never counted as lost, and no number up to it is
    /// given out again, even if the directory of the log was emptied. It also tells a first
    /// segment that is missing from one that was truncated.
    pub covered_seq: Option<u64>,
}

impl WalOptions {
    /// The defaults, for a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes_max: SEGMENT_BYTES_MAX_DEFAULT,
            record_bytes_max: RECORD_BYTES_MAX_DEFAULT,
            min_free_bytes: MIN_FREE_BYTES_DEFAULT,
            covered_seq: None,
        }
    }
}

/// A record, as replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its sequence number; each is larger than the one before.
    pub seq: u64,
    /// The caller's tag.
    pub kind: u8,
    /// The caller's bytes, checked against their checksum.
    pub payload: &'a [u8],
}

/// Error of a replay visitor; it ends [`Wal::open`].
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// Called for every good record during [`Wal::open`], in order.
pub type Visitor<'v> = dyn FnMut(Record<'_>) -> Result<(), VisitError> + 'v;

/// How far a replay is; read it from another thread for the readiness probe.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    records: AtomicU64,
}

impl ReplayProgress {
    /// Bytes of all segments to read; 0 until they are listed.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }

    /// Bytes read so far.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Records replayed so far.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

/// What a start found. Log it, count it, and degrade health unless it [is clean](Self::is_clean).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records given to the visitor.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Records that were written and cannot be read, above `covered_seq`: exact wherever a later
    /// record or segment shows the gap (the module page says what cannot be known).
    pub records_lost: u64,
    /// The part of `records_lost` that is proven to have been durable once.
    pub records_lost_durable: u64,
    /// Bytes of incomplete writes at the end of the log, cut off.
    pub torn_bytes: u64,
    /// What is wrong with which file; at most [`DAMAGES_LISTED_MAX`].
    pub damages: Vec<Damage>,
    /// How many damages there are, listed or not.
    pub damages_total: u64,
    /// Segments that are part of the log.
    pub segments: u64,
    /// The sequence number the next append will get.
    pub next_seq: u64,
}

impl Recovery {
    /// Nothing is lost and nothing is damaged. A torn end is normal after a crash, and clean.
    pub fn is_clean(&self) -> bool {
        self.records_lost == 0 && self.damages_total == 0
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Name of the file in the directory of the log.
    pub file: String,
    /// Where in the file it starts.
    pub offset: u64,
    /// How many bytes it takes; 0 if it is not about bytes.
    pub bytes: u64,
    /// What it is.
    pub what: DamageKind,
    /// Whether the bytes (or the file) are now in `quarantine/`.
    pub quarantined: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} at offset {}, {} bytes", self.what, self.file, self.offset, self.bytes)
    }
}

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageKind {
    /// Bytes that hold no valid record where one is due; the records around them are kept.
    Bytes,
    /// Bytes at the end of the log with the size of at least a record header, and no valid record
    /// in them: a torn write, or damaged records that cannot be counted.
    TornEnd,
    /// One of the two copies of a segment header; nothing is lost.
    HeaderCopy,
    /// Both copies of a segment header; its records are salvaged.
    Header,
    /// A segment without a byte.
    ZeroLength,
    /// A file of another log, set aside.
    Foreign,
    /// A file with the name of a segment and nothing of a segment in it, set aside.
    NotASegment,
    /// A segment whose records are all in an earlier segment, set aside.
    Duplicate,
    /// A segment under a name that is not its own; its records are kept.
    Renamed,
    /// Records due before this segment are missing, in number as given.
    MissingBefore {
        /// How many.
        records: u64,
    },
    /// The identity file of the log is missing or damaged; it is rebuilt from the segments.
    Identity,
}

impl DamageKind {
    /// A stable short name, for a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::TornEnd => "torn_end",
            Self::HeaderCopy => "header_copy",
            Self::Header => "header",
            Self::ZeroLength => "zero_length",
            Self::Foreign => "foreign",
            Self::NotASegment => "not_a_segment",
            Self::Duplicate => "duplicate",
            Self::Renamed => "renamed",
            Self::MissingBefore { .. } => "missing_before",
            Self::Identity => "identity",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingBefore { records } => {
                write!(f, "{records} records missing before a segment")
            }
            other => f.write_str(other.as_str()),
        }
    }
}

/// The answer of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Every record up to this sequence number is durable; 0 if there never was one.
    pub seq_hi: u64,
}

/// What can go wrong. [`is_retryable`](Self::is_retryable) and [`is_fatal`](Self::is_fatal) say what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// No room on the disk. Nothing was written; the same call works once there is room.
    #[error("no room for the write-ahead log in {}: {reason}", path.display())]
    Full {
        /// The directory or file.
        path: PathBuf,
        /// Free and required bytes, or the error of the operating system.
        reason: String,
    },
    /// A file operation failed. After a failed append the log is as it was before it.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A sync failed, now or earlier. Whether the last appends are on disk can not be found out.
    #[error("sync of {} failed, the write-ahead log accepts nothing more: {reason}", path.display())]
    SyncFailed {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// A failed append could not be undone, now or earlier.
    #[error("cannot cut {} back after a failed write, the write-ahead log accepts nothing more: {reason}", path.display())]
    RollbackFailed {
        /// The segment.
        path: PathBuf,
        /// The error of the operating system.
        reason: String,
    },
    /// The record is larger than `record_bytes_max`.
    #[error("record of {bytes} bytes is larger than the limit of {max} bytes")]
    RecordTooLarge {
        /// Its payload.
        bytes: u64,
        /// The limit.
        max: u32,
    },
    /// A file was written by a later release.
    #[error("{} has version {found} of the write-ahead log format, this release reads up to {supported}", path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// The visitor of a replay failed.
    #[error("replay of record {seq} failed")]
    Visitor {
        /// The record.
        seq: u64,
        /// What the visitor said.
        source: VisitError,
    },
    /// The options contradict themselves, or the sequence numbers are used up.
    #[error("write-ahead log cannot be opened: {reason}")]
    Unusable {
        /// Why.
        reason: String,
    },
}

impl WalError {
    /// The same call may work later, without a restart.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// The log accepts nothing more: acknowledge nothing and end the process.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::SyncFailed { .. } | Self::RollbackFailed { .. })
    }

    /// Sorts an error of the operating system: out of room, or something else.
    fn from_io(op: &'static str, path: &Path, source: io::Error) -> Self {
        use rustix::io::Errno;
        let room = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].map(|e| Some(e.raw_os_error()));
        if room.contains(&source.raw_os_error()) {
            return Self::Full { path: path.to_owned(), reason: source.to_string() };
        }
        Self::Io { op, path: path.to_owned(), source }
    }

    fn sync_failed(path: &Path, source: &io::Error) -> Self {
        Self::SyncFailed { path: path.to_owned(), reason: source.to_string() }
    }
}
