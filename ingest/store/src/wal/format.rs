//! Bytes of the write-ahead log: segment headers and record headers, encoded and checked.
//!
//! Pure functions over slices: no I/O, no state, no policy. What to do about a header that does not
//! check out is the business of recovery. Everything is little endian.

use std::ops::Range;

/// First bytes of a segment and of the identity file. They and the 64-byte header layout below stay
/// the same in every later version, so that any release can name the version it cannot read.
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"GODSWAL\0";

/// Version of the format this code writes; it reads every version from 1 to this one.
pub(super) const VERSION: u32 = 1;

/// Length of one copy of a segment header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;

/// Where the second copy of a segment header lies: in another sector than the first, so that one
/// bad sector never takes both.
pub(super) const SEGMENT_HEADER_COPY_AT: usize = 512;

/// Offset of the first record in a segment: two sectors of header and padding.
pub(super) const RECORDS_AT: u64 = 1024;

/// Starts every record, so that a scan can find the next one after damage ("\xf5REC").
pub(super) const RECORD_MAGIC: [u8; 4] = [0xf5, b'R', b'E', b'C'];

/// Length of a record header.
pub(super) const RECORD_HEADER_BYTES: usize = 40;

/// No sequence number reaches this; a larger one on disk is damage. It leaves room for every skip
/// a start can make, so that sums of sequence numbers never overflow.
pub(super) const SEQ_LIMIT: u64 = 1 << 62;

/// Identity of a log: random, the same in all its segments.
pub(super) type LogId = [u8; 16];

/// The part of the identity that every record carries: a record that lies in a file of another log,
/// or in bytes a client sent, does not pass for one of ours.
pub(super) fn log_tag(id: &LogId) -> u32 {
    read_u32(id, 0)
}

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: LogId,
    /// No record of this segment has a lower sequence number.
    pub(super) first_seq: u64,
    /// The last sequence number that counts in the segments before: it was given to a record that
    /// was kept, or that was reported as lost. Numbers between it and `first_seq` hold no record.
    pub(super) prev_last_seq: u64,
    /// Everything up to here was known durable when the segment was created.
    pub(super) prev_durable_seq: u64,
    /// The segment is the first of a process; otherwise it follows a full one of the same process.
    pub(super) after_recovery: bool,
}

/// A header that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// No copy has the magic and a good checksum.
    Damaged,
    /// Checked out, and was written by a later release.
    NewerVersion(u32),
}

impl SegmentHeader {
    /// The first `RECORDS_AT` bytes of a segment: both copies and the padding.
    pub(super) fn encode(&self) -> [u8; RECORDS_AT as usize] {
        let mut one = [0_u8; SEGMENT_HEADER_BYTES];
        one[0..8].copy_from_slice(&SEGMENT_MAGIC);
        one[8..12].copy_from_slice(&VERSION.to_le_bytes());
        one[12..16].copy_from_slice(&u32::from(self.after_recovery).to_le_bytes());
        one[16..32].copy_from_slice(&self.log_id);
        one[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        one[40..48].copy_from_slice(&self.prev_last_seq.to_le_bytes());
        one[48..56].copy_from_slice(&self.prev_durable_seq.to_le_bytes());
        let crc = crc32c::crc32c(&one[..60]);
        one[60..64].copy_from_slice(&crc.to_le_bytes());
        let mut all = [0_u8; RECORDS_AT as usize];
        all[..SEGMENT_HEADER_BYTES].copy_from_slice(&one);
        all[SEGMENT_HEADER_COPY_AT..SEGMENT_HEADER_COPY_AT + SEGMENT_HEADER_BYTES].copy_from_slice(&one);
        all
    }

    /// Reads the header from the first bytes of a file (fewer than `RECORDS_AT` if the file is
    /// shorter). The flag says that both copies were whole and alike.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, bool), HeaderFault> {
        let first = Self::decode_copy(bytes, 0);
        let second = Self::decode_copy(bytes, SEGMENT_HEADER_COPY_AT);
        match (first, second) {
            (Ok(a), Ok(b)) => Ok((a, a == b)),
            (Ok(a), Err(_)) => Ok((a, false)),
            (Err(HeaderFault::NewerVersion(v)), _) => Err(HeaderFault::NewerVersion(v)),
            (Err(HeaderFault::Damaged), Ok(b)) => Ok((b, false)),
            (Err(HeaderFault::Damaged), Err(fault)) => Err(fault),
        }
    }

    fn decode_copy(bytes: &[u8], at: usize) -> Result<Self, HeaderFault> {
        let one = bytes.get(at..at + SEGMENT_HEADER_BYTES).ok_or(HeaderFault::Damaged)?;
        if one[..8] != SEGMENT_MAGIC || crc32c::crc32c(&one[..60]) != read_u32(one, 60) {
            return Err(HeaderFault::Damaged);
        }
        // The checksum is looked at first: a flipped bit in the version is damage, not a release
        // from the future, and damage never stops a start.
        let version = read_u32(one, 8);
        if version > VERSION {
            return Err(HeaderFault::NewerVersion(version));
        }
        let mut log_id = LogId::default();
        log_id.copy_from_slice(&one[16..32]);
        let header = Self {
            log_id,
            first_seq: read_u64(one, 32),
            prev_last_seq: read_u64(one, 40),
            prev_durable_seq: read_u64(one, 48),
            after_recovery: read_u32(one, 12) & 1 == 1,
        };
        if header.first_seq >= SEQ_LIMIT || header.prev_last_seq >= SEQ_LIMIT {
            return Err(HeaderFault::Damaged);
        }
        Ok(header)
    }
}

/// What the header of a record says. Its checksum covers the payload's checksum too, so a header
/// that checks out vouches for the length: the next record is found even if the payload is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) seq: u64,
    /// Everything up to here was durable when the record was written.
    pub(super) durable_seq: u64,
    pub(super) log_tag: u32,
    pub(super) kind: u8,
    pub(super) len: u32,
    pub(super) payload_crc: u32,
}

impl RecordHeader {
    pub(super) fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0_u8; RECORD_HEADER_BYTES];
        out[0..4].copy_from_slice(&RECORD_MAGIC);
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable_seq.to_le_bytes());
        out[24..28].copy_from_slice(&self.log_tag.to_le_bytes());
        out[28] = self.kind;
        out[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..36]);
        out[36..40].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, if its magic and checksum hold and it belongs to the log.
    pub(super) fn decode(bytes: &[u8], log_tag: u32) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES)?;
        if bytes[..4] != RECORD_MAGIC || crc32c::crc32c(&bytes[..36]) != read_u32(bytes, 36) {
            return None;
        }
        let header = Self::decode_unchecked(bytes);
        (header.log_tag == log_tag && header.seq < SEQ_LIMIT).then_some(header)
    }

    fn decode_unchecked(bytes: &[u8]) -> Self {
        Self {
            len: read_u32(bytes, 4),
            seq: read_u64(bytes, 8),
            durable_seq: read_u64(bytes, 16),
            log_tag: read_u32(bytes, 24),
            kind: bytes[28],
            payload_crc: read_u32(bytes, 32),
        }
    }

    /// Length of header and payload together.
    pub(super) fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.len)
    }
}

/// Whether the last bytes of a log, whose header does not check out, were one whole record once.
///
/// A write that was cut short leaves an incomplete record; a bit that flipped later leaves a
/// complete one. Either the payload still matches the checksum in the header, or the header still
/// names this log, the expected number and exactly the length that is there.
pub(super) fn was_whole_record(header: &[u8], payload_crc: u32, payload_len: u64, log_tag: u32, seq: u64) -> bool {
    let Some(bytes) = header.get(..RECORD_HEADER_BYTES) else {
        return false;
    };
    let found = RecordHeader::decode_unchecked(bytes);
    let named = bytes[..4] == RECORD_MAGIC
        && found.log_tag == log_tag
        && found.seq == seq
        && u64::from(found.len) == payload_len;
    // An empty payload has the checksum 0, which proves nothing: the header must then agree in
    // something else too.
    let vouched = found.payload_crc == payload_crc && (payload_len > 0 || found.seq == seq || found.log_tag == log_tag);
    named || vouched
}

/// Where in `bytes` the next valid record header of the log starts.
pub(super) fn find_record(bytes: &[u8], log_tag: u32) -> Option<usize> {
    let mut from = 0;
    while let Some(step) = bytes.get(from..)?.iter().position(|b| *b == RECORD_MAGIC[0]) {
        let at = from + step;
        if RecordHeader::decode(&bytes[at..], log_tag).is_some() {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// File name of the segment whose first record may have this sequence number.
pub(super) fn segment_name(first_seq: u64) -> String {
    format!("{first_seq:020}.{SEGMENT_EXTENSION}")
}

/// Extension of segment files.
pub(super) const SEGMENT_EXTENSION: &str = "wal";

/// The sequence number in the name of a segment file; nothing for any other name.
pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|seq| *seq < SEQ_LIMIT)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at..at + 4))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at..at + 8))
}

fn field<const N: usize>(bytes: &[u8], range: Range<usize>) -> [u8; N] {
    bytes[range].try_into().expect("the callers name ranges of N bytes inside fixed layouts")
}
