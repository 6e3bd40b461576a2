//! Reading the write-ahead log at start: replay, salvage, quarantine and the account of losses.
//!
//! It decides what every byte in the directory is, and leaves a state the writer can go on from.
//! It never appends a record, never deletes a segment and never stops at damage; it stops at a
//! format from a later release, at an error of the visitor, at a failed sync, and where the
//! directory itself cannot be read.

use std::collections::HashMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::disk::{Disk, LogFile, read_all, write_all};
use super::format::{
    HeaderFault, LogId, RECORD_HEADER_BYTES, RECORDS_AT, RecordHeader, SEGMENT_EXTENSION, SegmentHeader, VERSION,
    find_record, log_tag, parse_segment_name, was_whole_record,
};
use super::ledger::Ledger;
use super::{
    DAMAGES_LISTED_MAX, Damage, DamageKind, Record, Recovery, ReplayProgress, SEQ_SKIP, Visitor, WalError, WalOptions,
};

/// Name of the file that says which log this directory holds.
pub(super) const IDENTITY_NAME: &str = "log.id";

/// Ending of files that are being created.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Directory, inside that of the log, for what is set aside.
pub(super) const QUARANTINE_NAME: &str = "quarantine";

/// How much is read at once. A record that is larger is read as a whole.
const WINDOW_BYTES: usize = 1 << 20;

const HEADER_BYTES: u64 = RECORD_HEADER_BYTES as u64;

/// A segment that is part of the log and is not written any more.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    pub(super) name: String,
    /// No record in it, lost ones included, has a higher number.
    pub(super) last_seq: u64,
    pub(super) bytes: u64,
}

/// Where the writer goes on.
#[derive(Debug)]
pub(super) struct Resume {
    /// Nothing if the identity file has to be written (again) with this id; it is settled either way.
    pub(super) log_id: Option<LogId>,
    pub(super) identity_on_disk: bool,
    pub(super) sealed: Vec<Sealed>,
    pub(super) last_seq: u64,
    pub(super) durable_seq: u64,
    pub(super) next_seq: u64,
}

/// A file before it is scanned.
struct Candidate {
    name: String,
    len: u64,
    header: Option<SegmentHeader>,
    both_copies: bool,
    named_seq: Option<u64>,
}

impl Candidate {
    fn first_seq(&self) -> u64 {
        self.header.map(|h| h.first_seq).or(self.named_seq).unwrap_or(0)
    }
}

/// Replays the log of a directory and says how to go on.
pub(super) fn recover(
    disk: &dyn Disk,
    options: &WalOptions,
    progress: &ReplayProgress,
    visitor: &mut Visitor<'_>,
) -> Result<(Resume, Recovery), WalError> {
    let dir = &options.dir;
    disk.create_dir(dir).map_err(|e| WalError::from_io("create directory", dir, e))?;
    let mut run = Run {
        disk,
        dir,
        progress,
        report: Recovery::default(),
        ledger: Ledger::new(options.covered_seq),
        log_tag: None,
        highest_name: 0,
        bytes_before: 0,
    };

    let files = disk.list(dir).map_err(|e| WalError::from_io("list", dir, e))?;
    let identity_there = files.iter().any(|(name, _)| name == IDENTITY_NAME);
    let identity = if identity_there { run.read_identity()? } else { None };
    let mut candidates = run.read_headers(files)?;

    // The identity file decides which segments are ours; without it, most segments do.
    let log_id = identity.map(|(id, _)| id).or_else(|| most_frequent_id(&candidates));
    let identity_on_disk = identity.is_some_and(|(_, both_copies)| both_copies);
    run.log_tag = log_id.as_ref().map(log_tag);
    if !identity_on_disk && (identity_there || !candidates.is_empty()) {
        run.damage(IDENTITY_NAME, 0, 0, DamageKind::Identity, false);
    }
    candidates.retain(|c| run.belongs(c, log_id));
    candidates.sort_by(|a, b| {
        let key = |c: &Candidate| (c.first_seq(), c.named_seq != Some(c.first_seq()));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    progress.bytes_total.store(candidates.iter().map(|c| c.len).sum(), Ordering::Relaxed);

    let mut sealed = Vec::new();
    for (i, candidate) in candidates.iter().enumerate() {
        let next = candidates.get(i + 1);
        if let Some(segment) = run.segment(candidate, next, i == 0, options.covered_seq, visitor)? {
            sealed.push(segment);
        }
    }
    // Removed temporary files and files set aside must not come back after a power cut that follows
    // the first acknowledgement.
    disk.sync_dir(dir).map_err(|e| WalError::sync_failed(dir, &e))?;

    let highest = run.ledger.last().max(run.highest_name).max(options.covered_seq.unwrap_or(0));
    let fresh = highest == 0 && candidates.is_empty();
    let next_seq = if fresh { 1 } else { highest + SEQ_SKIP + 1 };
    let Run { mut report, ledger, log_tag: tag, .. } = run;
    report.records_lost = ledger.lost();
    report.records_lost_durable = ledger.lost_durable();
    report.segments = sealed.len() as u64;
    report.next_seq = next_seq;
    // A log whose every header is gone keeps the tag its records carry, so that they stay readable.
    let log_id = log_id.or_else(|| tag.map(id_with_tag));
    let resume = Resume {
        log_id,
        identity_on_disk,
        sealed,
        last_seq: ledger.counted().max(options.covered_seq.unwrap_or(0)),
        durable_seq: ledger.last_good().max(options.covered_seq.unwrap_or(0)),
        next_seq,
    };
    Ok((resume, report))
}

fn id_with_tag(tag: u32) -> LogId {
    let mut id = LogId::default();
    id[..4].copy_from_slice(&tag.to_le_bytes());
    id
}

fn most_frequent_id(candidates: &[Candidate]) -> Option<LogId> {
    let mut votes: HashMap<LogId, (usize, u64)> = HashMap::new();
    for header in candidates.iter().filter_map(|c| c.header) {
        let vote = votes.entry(header.log_id).or_default();
        vote.0 += 1;
        vote.1 = vote.1.max(header.first_seq);
    }
    votes.into_iter().max_by_key(|(id, vote)| (*vote, *id)).map(|(id, _)| id)
}

/// State of one recovery.
struct Run<'r> {
    disk: &'r dyn Disk,
    dir: &'r Path,
    progress: &'r ReplayProgress,
    report: Recovery,
    ledger: Ledger,
    /// Tag of our records. Unknown only if no header is left: then the first valid record tells.
    log_tag: Option<u32>,
    /// Highest number in the name of a segment that is ours or unreadable.
    highest_name: u64,
    /// Bytes of the segments that are done.
    bytes_before: u64,
}

impl Run<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn damage(&mut self, file: &str, offset: u64, bytes: u64, what: DamageKind, quarantined: bool) {
        let damage = Damage { file: file.to_owned(), offset, bytes, what, quarantined };
        tracing::warn!(%damage, quarantined, "write-ahead log is damaged");
        self.report.damages_total += 1;
        if self.report.damages.len() < DAMAGES_LISTED_MAX {
            self.report.damages.push(damage);
        }
    }

    fn read_identity(&self) -> Result<Option<(LogId, bool)>, WalError> {
        let path = self.path(IDENTITY_NAME);
        let (bytes, _) = self.read_start(&path)?;
        match SegmentHeader::decode(&bytes) {
            Ok((header, both_copies)) => Ok(Some((header.log_id, both_copies))),
            Err(HeaderFault::Damaged) => Ok(None),
            Err(HeaderFault::NewerVersion(found)) => Err(newer_version(path, found)),
        }
    }

    fn read_start(&self, path: &Path) -> Result<(Vec<u8>, u64), WalError> {
        let file = self.disk.open(path).map_err(|e| WalError::from_io("open", path, e))?;
        let len = file.len().map_err(|e| WalError::from_io("measure", path, e))?;
        let mut bytes = vec![0; len.min(RECORDS_AT) as usize];
        read_all(&*file, &mut bytes, 0).map_err(|e| WalError::from_io("read", path, e))?;
        Ok((bytes, len))
    }

    /// Looks at every file of the directory; what could be a segment is a candidate.
    fn read_headers(&mut self, files: Vec<(String, u64)>) -> Result<Vec<Candidate>, WalError> {
        let mut candidates = Vec::new();
        for (name, _) in files {
            if name == IDENTITY_NAME {
                continue;
            }
            let path = self.path(&name);
            if name.ends_with(TEMPORARY_SUFFIX) {
                // Left by a creation that was cut short: it never held a record.
                self.disk.remove(&path).map_err(|e| WalError::from_io("remove", &path, e))?;
                continue;
            }
            let (bytes, len) = self.read_start(&path)?;
            let decoded = match SegmentHeader::decode(&bytes) {
                Ok((header, both)) => Some((header, both)),
                Err(HeaderFault::Damaged) => None,
                Err(HeaderFault::NewerVersion(found)) => return Err(newer_version(path, found)),
            };
            let is_wal = Path::new(&name).extension().is_some_and(|e| e == SEGMENT_EXTENSION);
            if decoded.is_none() && !is_wal {
                tracing::warn!(file = %path.display(), "unknown file in the write-ahead log directory, left alone");
                continue;
            }
            candidates.push(Candidate {
                named_seq: parse_segment_name(&name),
                name,
                len,
                header: decoded.map(|(header, _)| header),
                // A file that ends inside its header was cut: a segment appears under its name whole.
                both_copies: decoded.is_some_and(|(_, both)| both) && len >= RECORDS_AT,
            });
        }
        Ok(candidates)
    }

    /// Whether a candidate is to be scanned; if not, it is set aside here.
    fn belongs(&mut self, c: &Candidate, log_id: Option<LogId>) -> bool {
        let what = match c.header {
            Some(header) if Some(header.log_id) != log_id => DamageKind::Foreign,
            Some(_) => return true,
            None if c.len == 0 => DamageKind::ZeroLength,
            None if c.named_seq.is_none() => DamageKind::NotASegment,
            None => return true,
        };
        if what == DamageKind::ZeroLength {
            self.highest_name = self.highest_name.max(c.named_seq.unwrap_or(0));
        }
        self.set_aside(c, what);
        false
    }

    /// Moves a whole file to quarantine. A file that cannot be moved stays and is ignored.
    fn set_aside(&mut self, c: &Candidate, what: DamageKind) {
        let quarantine = self.dir.join(QUARANTINE_NAME);
        let target = quarantine.join(format!("{}.{}", c.name, what.as_str()));
        let moved = self
            .disk
            .create_dir(&quarantine)
            .and_then(|()| self.disk.rename(&self.path(&c.name), &target))
            .and_then(|()| self.disk.sync_dir(&quarantine));
        if let Err(error) = &moved {
            tracing::warn!(file = %c.name, %error, "cannot move file to quarantine, left in place");
        }
        self.damage(&c.name, 0, c.len, what, moved.is_ok());
    }

    /// Copies a range of a segment to quarantine, durably. It never fails a start: where there is
    /// no room for the copy, the range stays where it is.
    fn copy_aside(&self, name: &str, file: &dyn LogFile, at: u64, end: u64) -> bool {
        let quarantine = self.dir.join(QUARANTINE_NAME);
        let target = quarantine.join(format!("{name}.at-{at}"));
        let copied = (|| {
            self.disk.create_dir(&quarantine)?;
            if self.disk.open(&target).and_then(|copy| copy.len()).is_ok_and(|len| len == end - at) {
                return Ok(()); // An earlier start made the copy.
            }
            let copy = self.disk.create(&target)?;
            let mut buf = vec![0; WINDOW_BYTES.min((end - at) as usize)];
            let mut done = 0;
            while at + done < end {
                let n = buf.len().min((end - at - done) as usize);
                read_all(file, &mut buf[..n], at + done)?;
                write_all(&*copy, &mut [IoSlice::new(&buf[..n])], done)?;
                done += n as u64;
            }
            copy.sync()?;
            self.disk.sync_dir(&quarantine)
        })();
        if let Err(error) = &copied {
            tracing::warn!(file = %name, offset = at, %error, "cannot copy damaged bytes to quarantine");
        }
        copied.is_ok()
    }

    /// Accounts for what the start of a segment says about the numbers before it.
    fn enter(&mut self, c: &Candidate, is_first: bool, covered: Option<u64>) {
        let Some(header) = c.header else {
            // Only the name is left. A gap below a skip is a loss, since a start leaves at least
            // that; whether a larger one hides a loss cannot be known.
            let before = c.first_seq().saturating_sub(1);
            let baseline_known = !is_first || covered.is_some();
            if baseline_known && before.saturating_sub(self.ledger.last().max(covered.unwrap_or(0))) < SEQ_SKIP {
                self.lose_before(c, before);
            }
            self.ledger.skip_to(before);
            return;
        };
        if header.after_recovery {
            self.ledger.end_of_process();
        }
        if is_first && covered.is_none() {
            // What was before the first segment was truncated, as far as anyone can tell.
            self.ledger.begin_after(header.prev_last_seq);
        }
        self.lose_before(c, header.prev_last_seq);
        self.ledger.prove(header.prev_durable_seq);
        if header.after_recovery {
            self.ledger.end_of_process();
        }
        self.ledger.skip_to(header.first_seq.saturating_sub(1));
    }

    fn lose_before(&mut self, c: &Candidate, seq: u64) {
        let records = self.ledger.lose_to(seq);
        if records > 0 {
            self.damage(&c.name, 0, 0, DamageKind::MissingBefore { records }, false);
        }
    }

    /// Scans one segment. Nothing is returned if it turns out to be none and was set aside.
    fn segment(
        &mut self,
        c: &Candidate,
        next: Option<&Candidate>,
        is_first: bool,
        covered: Option<u64>,
        visitor: &mut Visitor<'_>,
    ) -> Result<Option<Sealed>, WalError> {
        let path = self.path(&c.name);
        let file = self.disk.open(&path).map_err(|e| WalError::from_io("open", &path, e))?;
        let mut window = Window { file: &*file, len: c.len, at: 0, bytes: Vec::new(), unreadable: false };
        let read_error = |e| WalError::from_io("read", &path, e);
        if c.header.is_none() {
            self.highest_name = self.highest_name.max(c.first_seq());
        }
        self.enter(c, is_first, covered);
        if c.header.is_some() && !c.both_copies {
            self.damage(&c.name, 0, c.len.min(RECORDS_AT), DamageKind::HeaderCopy, false);
        }
        if c.header.is_some() && c.named_seq != Some(c.first_seq()) {
            self.damage(&c.name, 0, 0, DamageKind::Renamed, false);
        }

        let mut at = RECORDS_AT.min(c.len);
        let mut accepted = 0_u64;
        let mut stale = 0_u64;
        // Start of the damaged range that ends at `at`, if there is one.
        let mut damaged_from: Option<u64> = None;
        let mut cut = None;
        while at < c.len {
            let header = match self.header_at(&mut window, at).map_err(read_error)? {
                Some(header) => header,
                None => {
                    if let Some(found) = self.resync(&mut window, at + 1).map_err(read_error)? {
                        damaged_from.get_or_insert(at);
                        at = found;
                        continue;
                    }
                    cut = self.end(c, next, &mut window, at, &mut damaged_from).map_err(read_error)?;
                    at = c.len;
                    break;
                }
            };
            let end = at + header.record_bytes();
            if end > c.len {
                cut = self.end(c, next, &mut window, at, &mut damaged_from).map_err(read_error)?;
                at = c.len;
                break;
            }
            let payload = window.get(at + HEADER_BYTES, header.len as usize).map_err(read_error)?;
            if crc32c::crc32c(payload) != header.payload_crc {
                damaged_from.get_or_insert(at);
                if header.seq > self.ledger.last() {
                    self.ledger.lose_to(header.seq);
                    self.ledger.prove(header.durable_seq);
                }
            } else if header.seq <= self.ledger.last() {
                // Seen before, or below what the segment may hold: a copy, never a new record.
                stale += 1;
                damaged_from.get_or_insert(at);
            } else {
                if let Some(from) = damaged_from.take() {
                    self.damaged_range(c, &*file, from, at);
                }
                self.ledger.good(header.seq, header.durable_seq);
                accepted += 1;
                visitor(Record { seq: header.seq, kind: header.kind, payload })
                    .map_err(|source| WalError::Visitor { seq: header.seq, source })?;
                self.report.records += 1;
                self.report.bytes += u64::from(header.len);
                self.progress.records.fetch_add(1, Ordering::Relaxed);
            }
            at = end;
            self.progress.bytes_done.store(self.bytes_before + at, Ordering::Relaxed);
        }
        self.bytes_before += c.len;
        self.progress.bytes_done.store(self.bytes_before, Ordering::Relaxed);

        if accepted == 0 && (stale > 0 || c.header.is_none()) {
            let what = if stale > 0 { DamageKind::Duplicate } else { DamageKind::Header };
            self.set_aside(c, what);
            return Ok(None);
        }
        if let Some(from) = damaged_from {
            self.damaged_range(c, &*file, from, at);
        }
        if c.header.is_none() {
            let end = c.len.min(RECORDS_AT);
            let copied = self.copy_aside(&c.name, &*file, 0, end);
            self.damage(&c.name, 0, end, DamageKind::Header, copied);
        }
        let mut bytes = c.len;
        if let Some(len) = cut {
            match file.set_len(len) {
                Ok(()) => bytes = len,
                // The next segment will say that nothing after this point counts.
                Err(error) => {
                    tracing::warn!(file = %c.name, %error, "cannot cut the torn end off, left in place")
                }
            }
        }
        if next.is_none() {
            // What was replayed may still be in the page cache only, from a process that was killed
            // before its sync. It counts from now on, so it has to be durable from now on.
            file.sync().map_err(|e| WalError::sync_failed(&path, &e))?;
        }
        Ok(Some(Sealed { name: c.name.clone(), last_seq: self.ledger.counted(), bytes }))
    }

    fn header_at(&mut self, window: &mut Window<'_>, at: u64) -> std::io::Result<Option<RecordHeader>> {
        if window.len - at < HEADER_BYTES {
            return Ok(None);
        }
        let bytes = window.get(at, RECORD_HEADER_BYTES)?;
        if let Some(tag) = self.log_tag {
            return Ok(RecordHeader::decode(bytes, tag));
        }
        let named = u32::from_le_bytes(bytes[24..28].try_into().expect("four bytes of a header"));
        let header = RecordHeader::decode(bytes, named);
        self.log_tag = header.map(|h| h.log_tag);
        Ok(header)
    }

    /// Looks for the next valid header from an offset on.
    fn resync(&mut self, window: &mut Window<'_>, from: u64) -> std::io::Result<Option<u64>> {
        let mut at = from;
        while window.len.saturating_sub(at) >= HEADER_BYTES {
            let n = WINDOW_BYTES.min((window.len - at) as usize);
            let bytes = window.get(at, n)?;
            let found = match self.log_tag {
                Some(tag) => find_record(bytes, tag),
                // Without a tag there is no telling a record from bytes that look like one.
                None => None,
            };
            if let Some(step) = found {
                return Ok(Some(at + step as u64));
            }
            at += (n - RECORD_HEADER_BYTES + 1) as u64;
        }
        Ok(None)
    }

    /// The bytes from `at` to the end of the segment hold no whole, valid record. Says where to cut
    /// the file, if it is to be cut.
    fn end(
        &mut self,
        c: &Candidate,
        next: Option<&Candidate>,
        window: &mut Window<'_>,
        at: u64,
        damaged_from: &mut Option<u64>,
    ) -> std::io::Result<Option<u64>> {
        let rest = c.len - at;
        let window_file = window.file;
        let close_range = |run: &mut Self, damaged_from: &mut Option<u64>| {
            if let Some(from) = damaged_from.take() {
                run.damaged_range(c, window_file, from, at);
            }
        };
        if let Some(next) = next {
            // A later segment says whether records are missing here. If none is, this is the torn
            // end of an earlier process, which could not be cut.
            if next.header.is_some_and(|h| h.prev_last_seq <= self.ledger.last()) {
                close_range(self, damaged_from);
                self.report.torn_bytes += rest;
            } else {
                damaged_from.get_or_insert(at);
            }
            return Ok(None);
        }
        let header = window.get(at, rest.min(HEADER_BYTES) as usize)?.to_vec();
        let tag = self.log_tag.unwrap_or(0);
        let cut_short = RecordHeader::decode(&header, tag).is_some();
        let (zeros, payload_crc) = summarize(window, at + header.len() as u64, header.iter().all(|b| *b == 0))?;
        let payload_len = rest - header.len() as u64;
        let seq = self.ledger.last() + 1;
        if !cut_short && !zeros && was_whole_record(&header, payload_crc, payload_len, tag, seq) {
            damaged_from.get_or_insert(at);
            self.ledger.lose_to(seq);
            return Ok(None);
        }
        close_range(self, damaged_from);
        self.report.torn_bytes += rest;
        if zeros && !window.unreadable {
            return Ok(Some(at));
        }
        let copied = self.copy_aside(&c.name, window.file, at, c.len);
        if !cut_short && rest >= HEADER_BYTES {
            self.damage(&c.name, at, rest, DamageKind::TornEnd, copied);
        }
        Ok((copied && !window.unreadable).then_some(at))
    }

    fn damaged_range(&mut self, c: &Candidate, file: &dyn LogFile, from: u64, end: u64) {
        let copied = self.report.damages.len() < DAMAGES_LISTED_MAX && self.copy_aside(&c.name, file, from, end);
        self.damage(&c.name, from, end - from, DamageKind::Bytes, copied);
    }
}

/// Whether all bytes from an offset to the end are zero (given that those before were), and their checksum.
fn summarize(window: &mut Window<'_>, from: u64, zeros_before: bool) -> std::io::Result<(bool, u32)> {
    let (mut at, mut zeros, mut crc) = (from, zeros_before, 0);
    while at < window.len {
        let n = WINDOW_BYTES.min((window.len - at) as usize);
        let bytes = window.get(at, n)?;
        zeros = zeros && bytes.iter().all(|b| *b == 0);
        crc = crc32c::crc32c_append(crc, bytes);
        at += n as u64;
    }
    Ok((zeros, crc))
}

fn newer_version(path: PathBuf, found: u32) -> WalError {
    WalError::NewerVersion { path, found, supported: VERSION }
}

/// A moving view of a file. It holds one window, or one record if that is larger: never more than
/// the file has, whatever a length field says.
struct Window<'f> {
    file: &'f dyn LogFile,
    len: u64,
    at: u64,
    bytes: Vec<u8>,
    /// The disk could not give some bytes: they read as zero, and the file must not be cut.
    unreadable: bool,
}

impl Window<'_> {
    /// The bytes `at..at + n`, which must lie inside the file.
    fn get(&mut self, at: u64, n: usize) -> std::io::Result<&[u8]> {
        let inside = at >= self.at && at + n as u64 <= self.at + self.bytes.len() as u64;
        if !inside {
            let want = (WINDOW_BYTES as u64).max(n as u64).min(self.len - at);
            self.bytes.resize(want as usize, 0);
            self.at = at;
            self.unreadable |= !read_all(self.file, &mut self.bytes, at)?;
        }
        let from = (at - self.at) as usize;
        Ok(&self.bytes[from..from + n])
    }
}
