//! The bytes of an entry in the write-ahead log: whose rows, which table, the counts, the rows.
//!
//! The rows travel as Arrow IPC messages *without* a schema: the table's number and
//! [`model::schema::FORMAT_VERSION`] say it. A batch of a few kilobytes has some sixty buffers, so
//! the body is compressed as one LZ4 block and not buffer by buffer. Not here: framing, checksums
//! and sequence numbers; those are the log's.
//!
//! ```text
//! entry  version u8 = 1 │ body u8: 0 none, 1 plain, 2 lz4 │ table u8 │ tenant length u8
//!        │ schema version u32 │ minute i64 │ stored u64 │ rows u32 │ plain body bytes u32
//!        │ reasons u8 │ tenant │ reasons × (reason u8, items u64) │ body
//! body   (metadata length u32 │ data length u32 │ metadata │ data) …   each padded to 8 bytes
//! group  entries u32 │ (length u32) … │ entry …
//! positions  bytes u32 │ (source length u16 │ source │ partition i32 │ next i64) …
//! ```
//!
//! Little endian. A group is what one sync acknowledges: one record of the log, so that it is
//! there whole or not at all. A group that was read from somewhere else has positions in front of it, in the same
//! record: so rows and how far they were read are durable together.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::writer::{DictionaryTracker, EncodedData, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use model::ledger::{LedgerDelta, RejectReason};
use model::schema::{FORMAT_VERSION, schema};
use model::signal::Table;
use model::tenant::TenantId;

/// The version of an entry's bytes.
pub const ENTRY_VERSION: u8 = 1;

/// The kind of the log's records that hold a group of entries.
pub const GROUP_KIND: u8 = 1;

/// The kind of the log's records that hold positions, then a group of entries.
pub const POSITIONED_GROUP_KIND: u8 = 2;

/// The most a group may take, bytes: whoever forms groups cuts them well before.
pub const GROUP_BYTES_MAX: u64 = crate::wal::RECORD_BYTES_MAX_DEFAULT as u64;

/// A body that says it is larger than this is damaged, bytes: ten times the largest request.
const BODY_BYTES_MAX: usize = 1 << 30;

/// Below this, compression saves less than its call costs, bytes.
const COMPRESS_BYTES_MIN: usize = 256;

const BODY_NONE: u8 = 0;
const BODY_PLAIN: u8 = 1;
const BODY_LZ4: u8 = 2;

const HEADER_BYTES: usize = 33;
const REASON_BYTES: usize = 9;
const ALIGNMENT: usize = 8;

/// Whose rows, which table, and what is counted with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntryMeta {
    /// The owner.
    pub tenant: TenantId,
    /// The table the rows are of; its signal is the ledger's.
    pub table: Table,
    /// Start of the minute in which the items were received, nanoseconds since the epoch.
    pub minute: i64,
    /// Items stored and rejected.
    pub ledger: LedgerDelta,
}

/// Why an entry cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The bytes end early, or a length or number is impossible.
    #[error("log entry is damaged at {what}")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// The entry was written by a later release.
    #[error("log entry has {what} version {found}, this release reads up to {supported}")]
    NewerVersion {
        /// Entry or schema.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// The rows are too many for one entry.
    #[error("log entry of {bytes} bytes is larger than the limit of {max} bytes")]
    TooLarge {
        /// Bytes of the rows.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The block does not decompress.
    #[error("log entry does not decompress: {source}")]
    Lz4 {
        /// Why.
        source: lz4_flex::block::DecompressError,
    },
    /// The IPC messages do not give the table's rows.
    #[error("rows of a log entry are not readable: {source}")]
    Arrow {
        /// Why.
        source: ArrowError,
    },
}

const fn damaged(what: &'static str) -> RecordError {
    RecordError::Damaged { what }
}

fn arrow(source: ArrowError) -> RecordError {
    RecordError::Arrow { source }
}

fn write_options() -> IpcWriteOptions {
    IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5).expect("8 is a legal alignment")
}

/// The schemas as an IPC reader wants them: with an id at each dictionary. The ids are those a
/// writer gives when it walks the schema, and the second value says how many there are.
static READ_SCHEMAS: LazyLock<[(SchemaRef, usize); Table::COUNT]> = LazyLock::new(|| {
    Table::ALL.map(|table| {
        let mut tracker = DictionaryTracker::new(false);
        let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
            &schema(table),
            &mut tracker,
            &write_options(),
        );
        let message = arrow_ipc::root_as_message(&encoded.ipc_message).expect("the writer writes messages");
        let with_ids = arrow_ipc::convert::fb_to_schema(message.header_as_schema().expect("it is a schema"));
        (Arc::new(with_ids), tracker.dict_id().len())
    })
});

/// Writes an entry: the header and, if there are any, the rows.
///
/// # Errors
/// [`RecordError`] when the rows do not have the table's schema or are too many.
pub fn encode(meta: &LogEntryMeta, batch: Option<&RecordBatch>) -> Result<Vec<u8>, RecordError> {
    let (plain, rows) = match batch {
        Some(batch) => (encode_rows(meta.table, batch)?, batch.num_rows()),
        None => (Vec::new(), 0),
    };
    if plain.len() > BODY_BYTES_MAX {
        return Err(RecordError::TooLarge { bytes: plain.len(), max: BODY_BYTES_MAX });
    }
    let head_bytes = HEADER_BYTES + meta.tenant.as_str().len() + meta.ledger.rejected.len() * REASON_BYTES;
    let compress = plain.len() >= COMPRESS_BYTES_MIN;
    let room = if compress { lz4_flex::block::get_maximum_output_size(plain.len()) } else { plain.len() };
    let mut out = Vec::with_capacity(head_bytes + room);
    out.push(ENTRY_VERSION);
    out.push(match (batch, compress) {
        (None, _) => BODY_NONE,
        (Some(_), false) => BODY_PLAIN,
        (Some(_), true) => BODY_LZ4,
    });
    out.push(meta.table as u8);
    out.push(u8::try_from(meta.tenant.as_str().len()).expect("a tenant's name has at most 64 bytes"));
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&meta.minute.to_le_bytes());
    out.extend_from_slice(&meta.ledger.stored.to_le_bytes());
    let rows = u32::try_from(rows).map_err(|_| RecordError::TooLarge { bytes: plain.len(), max: BODY_BYTES_MAX })?;
    out.extend_from_slice(&rows.to_le_bytes());
    out.extend_from_slice(&u32::try_from(plain.len()).expect("checked against BODY_BYTES_MAX").to_le_bytes());
    out.push(u8::try_from(meta.ledger.rejected.len()).expect("there are fewer reasons than 256"));
    out.extend_from_slice(meta.tenant.as_str().as_bytes());
    for (reason, items) in &meta.ledger.rejected {
        out.push(*reason as u8);
        out.extend_from_slice(&items.to_le_bytes());
    }
    if compress {
        out.resize(head_bytes + room, 0);
        let written = lz4_flex::block::compress_into(&plain, &mut out[head_bytes..])
            .expect("the buffer has the maximum output size");
        out.truncate(head_bytes + written);
        // The room for the worst case is as large as the rows; what waits for the log is the block.
        out.shrink_to_fit();
    } else {
        out.extend_from_slice(&plain);
    }
    Ok(out)
}

fn encode_rows(table: Table, batch: &RecordBatch) -> Result<Vec<u8>, RecordError> {
    if batch.schema_ref() != &schema(table) {
        let reason = format!("the batch does not have the schema of table {table}");
        return Err(arrow(ArrowError::SchemaError(reason)));
    }
    let mut tracker = DictionaryTracker::new(false);
    for _ in 0..READ_SCHEMAS[table.index()].1 {
        tracker.next_dict_id();
    }
    let (dictionaries, rows) = IpcDataGenerator::default()
        .encode(batch, &mut tracker, &write_options(), &mut IpcWriteContext::default())
        .map_err(arrow)?;
    let message_bytes = |message: &EncodedData| message.ipc_message.len() + message.arrow_data.len() + 3 * ALIGNMENT;
    let mut out = Vec::with_capacity(dictionaries.iter().map(message_bytes).sum::<usize>() + message_bytes(&rows));
    for message in dictionaries.iter().chain(std::iter::once(&rows)) {
        for part in [&message.ipc_message, &message.arrow_data] {
            let length = u32::try_from(part.len())
                .map_err(|_| RecordError::TooLarge { bytes: part.len(), max: BODY_BYTES_MAX })?;
            out.extend_from_slice(&length.to_le_bytes());
        }
        for part in [&message.ipc_message, &message.arrow_data] {
            out.extend_from_slice(part);
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        }
    }
    Ok(out)
}

/// Reads an entry that [`encode`] wrote, in this or an earlier release.
///
/// # Errors
/// [`RecordError`]; no bytes make it panic or allocate more than the limit of a body.
pub fn decode(bytes: &[u8]) -> Result<(LogEntryMeta, Option<RecordBatch>), RecordError> {
    let entry = decode_if(bytes, |_| true)?;
    Ok(entry.expect("every table is wanted"))
}

/// As [`decode`], but only for a table that is `wanted`: a replay passes over the rest quickly.
pub(crate) fn decode_if(
    bytes: &[u8],
    wanted: impl FnOnce(Table) -> bool,
) -> Result<Option<(LogEntryMeta, Option<RecordBatch>)>, RecordError> {
    let mut input = Input(bytes);
    let version = input.u8("version")?;
    if version > ENTRY_VERSION {
        return Err(RecordError::NewerVersion {
            what: "entry",
            found: u32::from(version),
            supported: u32::from(ENTRY_VERSION),
        });
    }
    let body_kind = input.u8("body kind")?;
    let table = Table::from_u8(input.u8("table")?).ok_or(damaged("table"))?;
    let tenant_bytes = usize::from(input.u8("tenant length")?);
    let schema_version = input.u32("schema version")?;
    if schema_version > FORMAT_VERSION {
        return Err(RecordError::NewerVersion { what: "schema", found: schema_version, supported: FORMAT_VERSION });
    }
    if !wanted(table) {
        return Ok(None);
    }
    let minute = input.u64("minute")?.cast_signed();
    let stored = input.u64("stored")?;
    let rows = input.u32("rows")? as usize;
    let plain_bytes = input.u32("body length")? as usize;
    let reasons = input.u8("reasons")?;
    let tenant = std::str::from_utf8(input.take(tenant_bytes, "tenant")?).map_err(|_| damaged("tenant"))?;
    let tenant = TenantId::new(tenant).map_err(|_| damaged("tenant"))?;
    let mut rejected = BTreeMap::new();
    for _ in 0..reasons {
        let reason = RejectReason::from_u8(input.u8("reason")?).ok_or(damaged("reason"))?;
        rejected.insert(reason, input.u64("reason")?);
    }
    let meta = LogEntryMeta { tenant, table, minute, ledger: LedgerDelta { stored, rejected } };
    let body = input.0;
    let plain = match body_kind {
        BODY_NONE => return if body.is_empty() { Ok(Some((meta, None))) } else { Err(damaged("body")) },
        BODY_PLAIN if body.len() == plain_bytes => Buffer::from(body),
        // An LZ4 block never grows more than 255 times; a length beyond that is no reason to allocate.
        BODY_LZ4 if plain_bytes <= BODY_BYTES_MAX && plain_bytes / 256 <= body.len() => {
            let mut plain = MutableBuffer::from_len_zeroed(plain_bytes);
            let written =
                lz4_flex::block::decompress_into(body, &mut plain).map_err(|source| RecordError::Lz4 { source })?;
            if written != plain_bytes {
                return Err(damaged("body length"));
            }
            plain.into()
        }
        _ => return Err(damaged("body kind or length")),
    };
    let batch = decode_rows(table, &plain)?;
    if batch.num_rows() != rows {
        return Err(damaged("rows"));
    }
    Ok(Some((meta, Some(batch))))
}

fn decode_rows(table: Table, body: &Buffer) -> Result<RecordBatch, RecordError> {
    let (with_ids, _) = &READ_SCHEMAS[table.index()];
    let mut dictionaries = HashMap::new();
    let mut at = 0_usize;
    let mut part = |length: usize| {
        let end = at.checked_add(length).filter(|end| *end <= body.len()).ok_or(damaged("message"))?;
        let part = body.slice_with_length(at, length);
        at = end.next_multiple_of(ALIGNMENT);
        Ok::<_, RecordError>(part)
    };
    loop {
        let lengths = part(8)?;
        let mut lengths = Input(&lengths);
        let metadata = part(lengths.u32("message")? as usize)?;
        let data = part(lengths.u32("message")? as usize)?;
        let message =
            arrow_ipc::root_as_message(&metadata).map_err(|error| arrow(ArrowError::ParseError(error.to_string())))?;
        if let Some(dictionary) = message.header_as_dictionary_batch() {
            // The reader unwraps the batch of a dictionary.
            dictionary.data().ok_or(damaged("dictionary"))?;
            read_dictionary(&data, dictionary, with_ids, &mut dictionaries, &message.version()).map_err(arrow)?;
            continue;
        }
        let rows = message.header_as_record_batch().ok_or(damaged("message kind"))?;
        let read = read_record_batch(&data, rows, Arc::clone(with_ids), &dictionaries, None, &message.version())
            .map_err(arrow)?;
        return with_schema(schema(table), &read).map_err(arrow);
    }
}

/// The same columns under another, equal schema.
fn with_schema(schema: Arc<Schema>, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options)
}

/// The head of a group: how many entries and how long each is. The entries follow as they are.
#[must_use]
pub fn group_head(lengths: impl ExactSizeIterator<Item = usize>) -> Vec<u8> {
    let length = |n: usize| u32::try_from(n).expect("a record of the log is far below 4 GiB").to_le_bytes();
    let mut head = Vec::with_capacity(4 + 4 * lengths.len());
    head.extend_from_slice(&length(lengths.len()));
    for bytes in lengths {
        head.extend_from_slice(&length(bytes));
    }
    head
}

/// The entries of a group.
///
/// # Errors
/// [`RecordError::Damaged`] when the lengths do not add up to the record.
pub fn group_entries(record: &[u8]) -> Result<Vec<&[u8]>, RecordError> {
    let mut input = Input(record);
    let count = input.u32("group")? as usize;
    let mut lengths = Input(input.take(count.checked_mul(4).ok_or(damaged("group"))?, "group")?);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(input.take(lengths.u32("group")? as usize, "group")?);
    }
    if input.0.is_empty() { Ok(entries) } else { Err(damaged("group")) }
}

/// How far one partition of a source was read: everything before `next` is in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Which source. It is named so that no other one has the same name: a topic with its cluster, say.
    pub source: Arc<str>,
    /// Which partition of it.
    pub partition: i32,
    /// What is to be read next.
    pub next: i64,
}

/// The longest name of a source, bytes: a topic of Kafka has up to 249, its cluster some twenty.
pub const SOURCE_BYTES_MAX: usize = 1024;

/// What stands in front of a group that was read from somewhere.
///
/// # Panics
/// When a source's name is longer than [`SOURCE_BYTES_MAX`].
#[must_use]
pub fn positions_head(positions: &[Position]) -> Vec<u8> {
    let mut head = vec![0; 4];
    for Position { source, partition, next } in positions {
        assert!(source.len() <= SOURCE_BYTES_MAX, "the name of a source is too long");
        head.extend_from_slice(&u16::try_from(source.len()).expect("just compared").to_le_bytes());
        head.extend_from_slice(source.as_bytes());
        head.extend_from_slice(&partition.to_le_bytes());
        head.extend_from_slice(&next.to_le_bytes());
    }
    let bytes = u32::try_from(head.len() - 4).expect("a record of the log is far below 4 GiB");
    head[..4].copy_from_slice(&bytes.to_le_bytes());
    head
}

/// The positions in front of a group, and the group.
///
/// # Errors
/// [`RecordError::Damaged`] when lengths do not add up.
pub fn split_positions(record: &[u8]) -> Result<(Vec<Position>, &[u8]), RecordError> {
    let mut input = Input(record);
    let bytes = input.u32("positions")? as usize;
    let mut head = Input(input.take(bytes, "positions")?);
    let mut positions = Vec::new();
    while !head.0.is_empty() {
        let length = usize::from(u16::from_le_bytes(head.array("positions")?));
        let source = std::str::from_utf8(head.take(length, "positions")?).map_err(|_| damaged("positions"))?;
        let partition = i32::from_le_bytes(head.array("positions")?);
        let next = i64::from_le_bytes(head.array("positions")?);
        positions.push(Position { source: source.into(), partition, next });
    }
    Ok((positions, input.0))
}

/// Bytes that are left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(damaged(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(damaged(what))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, RecordError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, RecordError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, RecordError> {
        self.array(what).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random_batch, rejected};

    fn meta(table: Table) -> LogEntryMeta {
        LogEntryMeta {
            tenant: TenantId::new("team-1").unwrap(),
            table,
            minute: 60_000_000_000,
            ledger: rejected(7, &[(RejectReason::KeyTooLong, 3), (RejectReason::InvalidSpanId, u64::MAX)]),
        }
    }

    #[test]
    fn entries_of_every_table_round_trip() {
        for table in Table::ALL {
            for (seed, rows) in [(1, 0), (2, 1), (3, 7), (4, 300)] {
                let batch = random_batch(table, rows, seed);
                let meta = meta(table);
                let bytes = encode(&meta, Some(&batch)).unwrap();
                let (read_meta, read) = decode(&bytes).unwrap();
                assert_eq!(read_meta, meta);
                assert_eq!(read.unwrap(), batch, "{table} {rows}");

                // A slice of a batch carries its own rows only.
                let slice = batch.slice(rows / 3, rows - rows / 3);
                let bytes = encode(&meta, Some(&slice)).unwrap();
                assert_eq!(decode(&bytes).unwrap().1.unwrap(), slice, "{table} {rows}");
            }
            let bytes = encode(&meta(table), None).unwrap();
            assert_eq!(decode(&bytes).unwrap(), (meta(table), None));
        }
    }

    #[test]
    fn plain_bodies_stay_readable() {
        let batch = random_batch(Table::Logs, 50, 5);
        let meta = meta(Table::Logs);
        let plain = encode_rows(Table::Logs, &batch).unwrap();
        let mut bytes = encode(&meta, Some(&batch)).unwrap();
        assert_eq!(bytes[1], BODY_LZ4);
        let head = HEADER_BYTES + "team-1".len() + 2 * REASON_BYTES;
        bytes.truncate(head);
        bytes[1] = BODY_PLAIN;
        bytes.extend_from_slice(&plain);
        assert_eq!(decode(&bytes).unwrap().1.unwrap(), batch);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let batch = random_batch(Table::Spans, 5, 9);
        let bytes = encode(&meta(Table::Spans), Some(&batch)).unwrap();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        let mut later = bytes.clone();
        later[0] = ENTRY_VERSION + 1;
        assert!(matches!(decode(&later), Err(RecordError::NewerVersion { what: "entry", .. })));
        let mut later = bytes;
        later[4] += 1;
        assert!(matches!(decode(&later), Err(RecordError::NewerVersion { what: "schema", .. })));
        let wrong = random_batch(Table::Logs, 1, 1);
        assert!(encode(&meta(Table::Spans), Some(&wrong)).is_err());
    }

    #[test]
    fn groups_round_trip() {
        let entries: [&[u8]; 3] = [b"one", b"", b"three"];
        let mut record = group_head(entries.iter().map(|entry| entry.len()));
        record.extend(entries.concat());
        assert_eq!(group_entries(&record).unwrap(), entries);
        for length in 0..record.len() {
            assert!(group_entries(&record[..length]).is_err(), "cut at {length}");
        }
        record.push(0);
        assert!(group_entries(&record).is_err());
    }

    #[test]
    fn positions_round_trip() {
        let position = |source: &str, partition, next| Position { source: source.into(), partition, next };
        let positions = [position("cluster/otlp_spans", 0, 7), position("", i32::MAX, i64::MAX), position("é", -1, -1)];
        for known in [&positions[..], &[]] {
            let mut record = positions_head(known);
            let head = record.len();
            record.extend_from_slice(b"group");
            assert_eq!(split_positions(&record).unwrap(), (known.to_vec(), &b"group"[..]));
            for length in 0..head {
                assert!(split_positions(&record[..length]).is_err(), "cut at {length}");
            }
        }
    }
}
