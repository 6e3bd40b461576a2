//! The writing side: append, sync, roll, truncate.
//!
//! `Wal` is owned by one thread. Its state is always that of the file: after a failed append the
//! file is cut back, and when that or a sync fails the log is poisoned and every later call says so.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _};
use std::path::{Path, PathBuf};

use super::disk::{Disk, LogFile, StdDisk, write_all};
use super::format::{LogId, RECORDS_AT, RecordHeader, SEQ_LIMIT, SegmentHeader, log_tag, segment_name};
use super::recovery::{IDENTITY_NAME, Sealed, TEMPORARY_SUFFIX, recover};
use super::{Durable, RECORD_BYTES_LIMIT, Recovery, ReplayProgress, SEQ_SKIP, Visitor, WalError, WalOptions};

/// Bytes that may be appended before the free space is looked at again: a `statvfs` per append
/// would cost more than it tells, and others fill a disk faster than this only by accident.
const FREE_CHECK_BYTES: u64 = 8 << 20;

/// A fully covered active segment is closed for truncation when it holds at least this part of
/// `segment_bytes_max`: below, two syncs for a new segment cost more than a replay of this one.
const ROLL_WORTH_PART: u64 = 8;

/// Why a log accepts nothing more.
#[derive(Debug, Clone)]
enum Poison {
    Sync { path: PathBuf, reason: String },
    Rollback { path: PathBuf, reason: String },
}

impl Poison {
    fn error(&self) -> WalError {
        match self.clone() {
            Self::Sync { path, reason } => WalError::SyncFailed { path, reason },
            Self::Rollback { path, reason } => WalError::RollbackFailed { path, reason },
        }
    }
}

/// The segment that is written.
struct Active {
    name: String,
    file: Box<dyn LogFile>,
    /// Length of the file: header and whole records.
    bytes: u64,
    records: u64,
}

/// A write-ahead log that is open.
pub struct Wal {
    disk: Box<dyn Disk>,
    options: WalOptions,
    log_id: LogId,
    identity_on_disk: bool,
    sealed: VecDeque<Sealed>,
    active: Option<Active>,
    /// No segment was created by this process yet.
    first_of_process: bool,
    next_seq: u64,
    last_seq: u64,
    durable_seq: u64,
    /// Records since the last sync.
    pub(super) unsynced: u64,
    /// Bytes that may be appended before the free space is looked at.
    free_credit: u64,
    poison: Option<Poison>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("dir", &self.options.dir)
            .field("segments", &self.segments())
            .field("next_seq", &self.next_seq)
            .field("durable_seq", &self.durable_seq)
            .field("poison", &self.poison)
            .finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens a log, creating its directory if needed, and replays it: `visitor` is called for every
    /// good record, in order, also for those up to `covered_seq`. Damage never fails an open; see
    /// the module page for what does, and [`Recovery`] for what was found.
    pub fn open(
        options: WalOptions,
        progress: &ReplayProgress,
        visitor: &mut Visitor<'_>,
    ) -> Result<(Self, Recovery), WalError> {
        Self::open_on(Box::new(StdDisk), options, progress, visitor)
    }

    pub(super) fn open_on(
        disk: Box<dyn Disk>,
        options: WalOptions,
        progress: &ReplayProgress,
        visitor: &mut Visitor<'_>,
    ) -> Result<(Self, Recovery), WalError> {
        if options.record_bytes_max > RECORD_BYTES_LIMIT {
            let reason = format!("record_bytes_max is {}, the limit is {RECORD_BYTES_LIMIT}", options.record_bytes_max);
            return Err(WalError::Unusable { reason });
        }
        if options.covered_seq.is_some_and(|seq| seq >= SEQ_LIMIT) {
            let reason = format!("covered_seq is {:?}, the limit is {SEQ_LIMIT}", options.covered_seq);
            return Err(WalError::Unusable { reason });
        }
        let (resume, recovery) = recover(&*disk, &options, progress, visitor)?;
        let log_id = match resume.log_id {
            Some(id) => id,
            None => random_id()?,
        };
        let wal = Self {
            disk,
            options,
            log_id,
            identity_on_disk: resume.identity_on_disk,
            sealed: resume.sealed.into(),
            active: None,
            first_of_process: true,
            next_seq: resume.next_seq,
            last_seq: resume.last_seq,
            durable_seq: resume.durable_seq,
            unsynced: 0,
            free_credit: 0,
            poison: None,
        };
        Ok((wal, recovery))
    }

    /// What tells this log from every other one, for as long as its directory lives.
    #[must_use]
    pub const fn id(&self) -> [u8; 16] {
        self.log_id
    }

    /// Appends one record, whose payload is the parts one after the other, and returns its sequence
    /// number. It is not durable until [`sync`](Self::sync) says so.
    pub fn append(&mut self, kind: u8, payload_parts: &[&[u8]]) -> Result<u64, WalError> {
        self.check_poison()?;
        fail::fail_point!("wal_before_append");
        let payload_bytes: u64 = payload_parts.iter().map(|p| p.len() as u64).sum();
        let len = match u32::try_from(payload_bytes) {
            Ok(len) if len <= self.options.record_bytes_max => len,
            _ => {
                return Err(WalError::RecordTooLarge { bytes: payload_bytes, max: self.options.record_bytes_max });
            }
        };
        let header = RecordHeader {
            seq: self.next_seq,
            durable_seq: self.durable_seq,
            log_tag: log_tag(&self.log_id),
            kind,
            len,
            payload_crc: payload_parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)),
        };
        if header.seq >= SEQ_LIMIT {
            return Err(WalError::Unusable { reason: "sequence numbers are used up".to_owned() });
        }
        let record_bytes = header.record_bytes();
        self.check_free(record_bytes)?;
        if self.unsynced >= SEQ_SKIP {
            self.sync()?;
        }
        self.make_active(record_bytes)?;

        let dir = self.options.dir.clone();
        let active = self.active.as_mut().expect("make_active leaves one");
        let header = header.encode();
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(1 + payload_parts.len());
        slices.push(IoSlice::new(&header));
        slices.extend(payload_parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)));
        let written = injected_write_error().and_then(|()| write_all(&*active.file, &mut slices, active.bytes));
        if let Err(source) = written {
            let path = dir.join(&active.name);
            self.free_credit = 0;
            if let Err(error) = active.file.set_len(active.bytes) {
                let poison = Poison::Rollback { path, reason: error.to_string() };
                return Err(self.poison(poison));
            }
            return Err(WalError::from_io("append to", &path, source));
        }
        active.bytes += record_bytes;
        active.records += 1;
        self.free_credit = self.free_credit.saturating_sub(record_bytes);
        self.unsynced += 1;
        self.last_seq = self.next_seq;
        self.next_seq += 1;
        fail::fail_point!("wal_after_append");
        Ok(self.last_seq)
    }

    /// Makes everything that was appended durable. One call serves a whole group of appends; with
    /// nothing to do it costs nothing. After an error, which is fatal, end the process.
    pub fn sync(&mut self) -> Result<Durable, WalError> {
        self.check_poison()?;
        if self.unsynced > 0 {
            fail::fail_point!("wal_before_sync");
            let active = self.active.as_ref().expect("unsynced records are in the active segment");
            if let Err(error) = injected_sync_error().and_then(|()| active.file.sync()) {
                let path = self.options.dir.join(&active.name);
                return Err(self.sync_failed(path, &error));
            }
            self.unsynced = 0;
            self.durable_seq = self.last_seq;
            fail::fail_point!("wal_after_sync");
        }
        Ok(Durable { seq_hi: self.durable_seq })
    }

    /// Deletes the segments whose records are all below `seq`: the caller has them elsewhere, durably.
    /// The active segment goes too once it is fully covered and large enough to be worth a new one.
    /// At least one segment stays, for the sequence numbers it remembers.
    pub fn truncate_below(&mut self, seq: u64) -> Result<(), WalError> {
        let files = self.detach_below(seq)?;
        for path in &files {
            match self.disk.remove(path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(WalError::from_io("remove", path, e)),
            }
        }
        if files.is_empty() { Ok(()) } else { self.sync_dir() }
    }

    /// As [`truncate_below`](Self::truncate_below), but leaves the deleting to the caller, who can do
    /// it while others append: a file system takes its time to delete a large file. A file that is
    /// not deleted is read again by the next start, which is no harm.
    pub fn detach_below(&mut self, seq: u64) -> Result<Vec<PathBuf>, WalError> {
        self.check_poison()?;
        fail::fail_point!("wal_before_truncate");
        let all_sealed = self.sealed.iter().all(|s| s.last_seq < seq);
        let worth = self.options.segment_bytes_max / ROLL_WORTH_PART;
        let close = match &self.active {
            Some(active) => all_sealed && self.last_seq < seq && active.records > 0 && active.bytes >= worth,
            None => all_sealed && self.sealed.iter().map(|s| s.bytes).sum::<u64>() >= worth.max(1),
        };
        if close {
            // Without room for a new segment the old ones still go, except the newest.
            match self.roll() {
                Err(e) if !e.is_retryable() => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        let mut files = Vec::new();
        while let Some(oldest) = self.sealed.front() {
            if oldest.last_seq >= seq || (self.active.is_none() && self.sealed.len() == 1) {
                break;
            }
            files.push(self.options.dir.join(&oldest.name));
            self.sealed.pop_front();
        }
        if !files.is_empty() {
            self.free_credit = 0;
        }
        Ok(files)
    }

    /// Bytes of all segments, headers included.
    pub fn bytes(&self) -> u64 {
        self.sealed.iter().map(|s| s.bytes).sum::<u64>() + self.active.as_ref().map_or(0, |a| a.bytes)
    }

    /// How many segments there are.
    pub fn segments(&self) -> u64 {
        self.sealed.len() as u64 + u64::from(self.active.is_some())
    }

    /// The sequence number the next append will get.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The highest sequence number that is durable; what the last [`sync`](Self::sync) said.
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    fn check_poison(&self) -> Result<(), WalError> {
        self.poison.as_ref().map_or(Ok(()), |poison| Err(poison.error()))
    }

    fn poison(&mut self, poison: Poison) -> WalError {
        let error = poison.error();
        tracing::error!(%error, "write-ahead log is poisoned");
        self.poison = Some(poison);
        error
    }

    fn sync_failed(&mut self, path: PathBuf, error: &io::Error) -> WalError {
        self.poison(Poison::Sync { path, reason: error.to_string() })
    }

    fn sync_dir(&mut self) -> Result<(), WalError> {
        let dir = self.options.dir.clone();
        injected_sync_error().and_then(|()| self.disk.sync_dir(&dir)).map_err(|e| self.sync_failed(dir, &e))
    }

    fn check_free(&mut self, record_bytes: u64) -> Result<(), WalError> {
        if self.free_credit >= record_bytes {
            return Ok(());
        }
        let dir = &self.options.dir;
        // A file system that cannot tell is not full: the write itself will say.
        let free = self.disk.free_bytes(dir).unwrap_or(u64::MAX);
        let usable = free.saturating_sub(self.options.min_free_bytes);
        if usable < record_bytes {
            let min_free = self.options.min_free_bytes;
            let reason = format!("{free} bytes are free, a record of {record_bytes} must leave {min_free}");
            return Err(WalError::Full { path: dir.clone(), reason });
        }
        self.free_credit = usable.min(FREE_CHECK_BYTES.max(record_bytes));
        Ok(())
    }

    /// Sees to an active segment that has room for a record.
    fn make_active(&mut self, record_bytes: u64) -> Result<(), WalError> {
        match &self.active {
            Some(a) if a.records == 0 || a.bytes + record_bytes <= self.options.segment_bytes_max => Ok(()),
            _ => self.roll(),
        }
    }

    /// Closes the active segment, if any, and creates the next. On a retryable error nothing has changed.
    fn roll(&mut self) -> Result<(), WalError> {
        // Before the first record of the new segment can be acknowledged, the old one is durable.
        self.sync()?;
        let name = segment_name(self.next_seq);
        let header = SegmentHeader {
            log_id: self.log_id,
            first_seq: self.next_seq,
            prev_last_seq: self.last_seq,
            prev_durable_seq: self.durable_seq,
            after_recovery: self.first_of_process,
        };
        if !self.identity_on_disk {
            let identity = SegmentHeader { first_seq: 0, prev_last_seq: 0, prev_durable_seq: 0, ..header };
            self.create_file(IDENTITY_NAME, &identity)?;
            self.identity_on_disk = true;
        }
        let file = self.create_file(&name, &header)?;
        fail::fail_point!("wal_after_segment_create");
        self.first_of_process = false;
        let next = Active { name, file, bytes: RECORDS_AT, records: 0 };
        if let Some(full) = self.active.replace(next) {
            self.sealed.push_back(Sealed { name: full.name, last_seq: self.last_seq, bytes: full.bytes });
        }
        Ok(())
    }

    /// Creates a file that is a header, so that under its name it is whole or not there at all.
    fn create_file(&mut self, name: &str, header: &SegmentHeader) -> Result<Box<dyn LogFile>, WalError> {
        let path = self.options.dir.join(name);
        let temporary = self.options.dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
        let bytes = header.encode();
        let written = self.disk.create(&temporary).and_then(|file| {
            injected_write_error()?;
            write_all(&*file, &mut [IoSlice::new(&bytes)], 0)?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(e) => {
                self.discard(&temporary);
                return Err(WalError::from_io("create", &path, e));
            }
        };
        if let Err(e) = injected_sync_error().and_then(|()| file.sync()) {
            return Err(self.sync_failed(temporary, &e));
        }
        if let Err(e) = self.disk.rename(&temporary, &path) {
            self.discard(&temporary);
            return Err(WalError::from_io("create", &path, e));
        }
        self.sync_dir()?;
        self.free_credit = self.free_credit.saturating_sub(RECORDS_AT);
        Ok(file)
    }

    /// Removes a file that was not finished; if it stays, the next start removes it.
    fn discard(&self, path: &Path) {
        if let Err(error) = self.disk.remove(path) {
            tracing::debug!(file = %path.display(), %error, "cannot remove an unfinished file");
        }
    }
}

/// Identity of a new log. It keeps files of other logs apart; it is no secret.
fn random_id() -> Result<LogId, WalError> {
    let path = Path::new("/dev/urandom");
    let mut id = LogId::default();
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut id))
        .map_err(|e| WalError::from_io("read", path, e))?;
    Ok(id)
}

/// Fail point: a sync that fails as a broken disk makes it fail.
fn injected_sync_error() -> io::Result<()> {
    fail::fail_point!("wal_sync_error", |_| Err(rustix::io::Errno::IO.into()));
    Ok(())
}

/// Fail point: a write that finds the disk full.
fn injected_write_error() -> io::Result<()> {
    fail::fail_point!("wal_append_enospc", |_| Err(rustix::io::Errno::NOSPC.into()));
    Ok(())
}
