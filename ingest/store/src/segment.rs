//! A segment: one immutable Parquet file with sorted rows of one tenant and table.
//!
//! Here are its encodings, its writer, its reader, the checks of its footer and checksum, and the
//! handle that deletes the file once nobody reads it. Not here: which segments exist
//! ([`crate::manifest`]) and which are merged ([`crate::compaction`]).

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimestampNanosecondType};
use model::attributes::Kind;
use model::schema::schema;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{ColumnChunkMetaData, KeyValue, ParquetMetaDataReader, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use xxhash_rust::xxh3::Xxh3;

use crate::catalog::AttributeKinds;
use crate::error::{StoreError, is_damage};
use crate::filter::{BLOCK_ROWS, FilterBuilder, METADATA_FILTERS};
#[cfg(test)]
use crate::gather::as_table;
use crate::gather::assemble_attributes;
use crate::layout::{ATTRIBUTES, Layout, Promoted, filler_of};

/// The version of a segment's layout. Version 1 is the table's schema as it is; since version 2
/// columns are promoted and left out ([`crate::layout`]); since version 3 segments have
/// block filters ([`crate::filter`]).
pub const SEGMENT_FORMAT_VERSION: u32 = 3;

/// The first version with block filters.
const FILTERS_SINCE: u32 = 3;

/// The extension of a segment's file.
pub const SEGMENT_EXTENSION: &str = "parquet";

/// The extension of a segment that is being written.
pub const TEMPORARY_EXTENSION: &str = "tmp";

/// The key of the format version in a file's metadata; the tables' schemas go by it.
pub const METADATA_VERSION: &str = "godseye.format_version";
/// The key of the table's name in a file's metadata.
pub const METADATA_TABLE: &str = "godseye.table";
/// The key of the tenant's name in a file's metadata.
pub const METADATA_TENANT: &str = "godseye.tenant";

/// Rows of a page: a page is the smallest unit that the page index can skip, and a block of the
/// filters is one.
const PAGE_ROWS_MAX: usize = BLOCK_ROWS;

/// The dictionary of stack frames, of which there are many distinct ones that still repeat, bytes:
/// the default of 1 MiB would fall back to plain halfway through a row group.
const LARGE_DICTIONARY_BYTES: usize = 4 << 20;

/// Values of a sample below which it says nothing of how they repeat.
const VARIED_VALUES_MIN: usize = 64;

/// Values hardly repeat when more than this part of a sample is distinct.
const VARIED_PART: (usize, usize) = (1, 3);

/// Bytes that are read at once to compute a checksum.
const CHECKSUM_CHUNK_BYTES: usize = 1 << 20;

/// How hard a segment is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packing {
    zstd_level: i32,
    row_group_rows_max: usize,
    row_group_bytes_max: usize,
}

impl Packing {
    /// A flush: quick, since the acknowledgement path shares the machine with it.
    pub(crate) const FLUSH: Self =
        Self { zstd_level: 1, row_group_rows_max: 128 * 1024, row_group_bytes_max: 32 << 20 };
    /// A merge: it happens a few times in a row's life and is read for the rest of it.
    pub(crate) const MERGE: Self =
        Self { zstd_level: 3, row_group_rows_max: 512 * 1024, row_group_bytes_max: 32 << 20 };
}

/// What is known of a segment without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its number; never used again for another.
    pub id: u64,
    /// The owner of its rows.
    pub tenant: TenantId,
    /// The table of its rows.
    pub table: Table,
    /// [`SEGMENT_FORMAT_VERSION`] when it was written.
    pub format_version: u32,
    /// Rows.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// The earliest of its rows, by the table's time column.
    pub min_time: Timestamp,
    /// The latest of its rows.
    pub max_time: Timestamp,
    /// The first log record that its rows may come from.
    pub seq_min: u64,
    /// The last log record that its rows may come from.
    pub seq_max: u64,
    /// 0 from a memtable, else one more than the highest level merged into it.
    pub level: u32,
    /// When the newest of its rows left the memtable; a merge keeps the latest of its inputs.
    pub created_at: Timestamp,
    /// XXH3-64 of the file.
    pub checksum: u64,
}

impl SegmentMeta {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(self.id)
    }

    /// Whether it may have block filters ([`crate::filter`]). All of its version have but flushed ones of its first days.
    #[must_use]
    pub const fn has_filters(&self) -> bool {
        self.format_version >= FILTERS_SINCE
    }

    /// The time its age is reckoned from: its latest row, but never after it was stored, so that a
    /// row from the far future cannot keep a segment for ever.
    #[must_use]
    pub fn age_time(&self) -> Timestamp {
        self.max_time.min(self.created_at)
    }
}

/// The name of a segment's file.
pub(crate) fn file_name(id: u64) -> String {
    format!("{id:016x}.{SEGMENT_EXTENSION}")
}

/// A segment that can be read. Its file stays as long as a handle does.
#[derive(Debug)]
pub struct Segment {
    meta: SegmentMeta,
    kinds: AttributeKinds,
    path: PathBuf,
    obsolete: AtomicBool,
}

impl Segment {
    pub(crate) fn new(meta: SegmentMeta, kinds: AttributeKinds, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { meta, kinds, path, obsolete: AtomicBool::new(false) })
    }

    /// What is known of it.
    #[must_use]
    pub const fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// The attribute keys of its rows.
    #[must_use]
    pub const fn kinds(&self) -> &AttributeKinds {
        &self.kinds
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest does not list it any more: the last handle deletes the file.
    pub(crate) fn make_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start removes it: the manifest does not list it.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a segment that was replaced");
        }
    }
}

/// One physical column of a table's file.
struct Leaf {
    path: Vec<String>,
    data_type: DataType,
    /// The column it is in stands for itself: it is not inside a struct or list.
    top_level: bool,
}

fn leaves(schema: &Schema) -> Vec<Leaf> {
    fn walk(field: &Field, prefix: &[String], out: &mut Vec<Leaf>) {
        let mut path = prefix.to_vec();
        path.push(field.name().clone());
        match field.data_type() {
            DataType::List(item) => {
                path.push("list".to_owned());
                walk(item, &path, out);
            }
            DataType::Struct(fields) => fields.iter().for_each(|child| walk(child, &path, out)),
            data_type => out.push(Leaf { top_level: path.len() == 1, path, data_type: data_type.clone() }),
        }
    }
    let mut out = Vec::new();
    for field in schema.fields() {
        walk(field, &[], &mut out);
    }
    out
}

/// The encodings of a layout's columns.
fn properties(layout: &Layout, tenant: &TenantId, packing: Packing, varied: &Varied) -> WriterProperties {
    let table = layout.table();
    let level = ZstdLevel::try_new(packing.zstd_level).expect("the levels are constants that zstd has");
    let metadata = [
        (METADATA_VERSION, SEGMENT_FORMAT_VERSION.to_string()),
        (METADATA_TABLE, table.name().to_owned()),
        (METADATA_TENANT, tenant.as_str().to_owned()),
    ];
    let leaves = leaves(layout.schema());
    let sorting = table.sort_columns().iter().map(|column| SortingColumn {
        column_idx: leaves
            .iter()
            .position(|leaf| leaf.top_level && leaf.path[0] == *column)
            .and_then(|index| i32::try_from(index).ok())
            .expect("sort columns are top-level columns"),
        descending: false,
        nulls_first: false,
    });
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(packing.row_group_rows_max))
        .set_max_row_group_bytes(Some(packing.row_group_bytes_max))
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_sorting_columns(Some(sorting.collect()))
        .set_key_value_metadata(Some(
            metadata.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect(),
        ));
    for leaf in &leaves {
        builder = match Promoted::of_column(&leaf.path[0]) {
            Some(pair) => promoted_properties(builder, leaf, &pair, varied),
            None => leaf_properties(builder, leaf),
        };
    }
    builder.build()
}

/// A promoted column is pruned by; what hardly repeats needs no dictionary.
fn promoted_properties(
    builder: WriterPropertiesBuilder,
    leaf: &Leaf,
    pair: &Promoted,
    varied: &Varied,
) -> WriterPropertiesBuilder {
    let path = || ColumnPath::new(leaf.path.clone());
    let builder = builder.set_column_statistics_enabled(path(), EnabledStatistics::Page);
    let encoding = if leaf.data_type == DataType::Utf8 { Encoding::DELTA_LENGTH_BYTE_ARRAY } else { Encoding::PLAIN };
    let builder = if pair.kind == Kind::Bool { builder } else { builder.set_column_encoding(path(), encoding) };
    if !varied.0.contains(pair) {
        return builder;
    }
    // The higher levels of zstd look for longer repetitions, and in random text find worse ones: 15.2 B a row for
    // addresses, paths and users against 14.3 B.
    builder
        .set_column_dictionary_enabled(path(), false)
        .set_column_compression(path(), Compression::ZSTD(ZstdLevel::default()))
}

fn leaf_properties(builder: WriterPropertiesBuilder, leaf: &Leaf) -> WriterPropertiesBuilder {
    let path = || ColumnPath::new(leaf.path.clone());
    // Nobody prunes by what is inside lists and structs, by whole contexts, or by random ids.
    let pruned_by = leaf.top_level
        && !matches!(leaf.path[0].as_str(), "resource" | "scope" | "metric_metadata" | "span_id" | "parent_span_id")
        && !matches!(leaf.path[0].as_str(), "body" | "body_value" | "otlp");
    let statistics = if pruned_by { EnabledStatistics::Page } else { EnabledStatistics::None };
    let builder = builder.set_column_statistics_enabled(path(), statistics);
    let name = leaf.path.last().map_or("", String::as_str);
    let plain = |builder: WriterPropertiesBuilder, encoding: Encoding| {
        builder.set_column_dictionary_enabled(path(), false).set_column_encoding(path(), encoding)
    };
    match (name, &leaf.data_type) {
        // Times and durations are near their neighbours once sorted.
        (_, DataType::Timestamp(_, _)) | ("duration_ns", _) => plain(builder, Encoding::DELTA_BINARY_PACKED),
        // The version of Parquet that is written has no dictionaries for ids, but zstd finds the
        // neighbours of one trace. A span's own id never repeats, so there is nothing to gain. Block
        // filters say all that a Bloom filter of a row group could.
        ("trace_id", _) if leaf.top_level => plain(builder, Encoding::PLAIN),
        ("span_id", _) => plain(builder, Encoding::PLAIN).set_column_compression(path(), Compression::UNCOMPRESSED),
        ("parent_span_id" | "otlp" | "profile_id", _) => plain(builder, Encoding::PLAIN),
        ("body" | "body_value", _) => plain(builder, Encoding::DELTA_LENGTH_BYTE_ARRAY),
        _ if leaf.path.iter().any(|part| part == "others") => plain(builder, Encoding::DELTA_LENGTH_BYTE_ARRAY),
        _ if leaf.path[0] == "stack" => builder.set_column_dictionary_page_size_limit(path(), LARGE_DICTIONARY_BYTES),
        // Neighbours of a series share their upper bytes: with those side by side zstd makes a quarter less of counters.
        // Delta encoding does less, since each series begins anew; doubles are best as they are.
        ("value_int", _) => plain(builder, Encoding::BYTE_STREAM_SPLIT),
        ("value_double", _) => plain(builder, Encoding::PLAIN),
        // What overflows its dictionary.
        (_, DataType::Utf8) => builder.set_column_encoding(path(), Encoding::DELTA_LENGTH_BYTE_ARRAY),
        _ => builder,
    }
}

/// A file that hashes what is written to it. Parquet is written from front to back.
struct HashingFile {
    file: File,
    hash: Xxh3,
    bytes: u64,
}

impl Write for HashingFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buf)?;
        self.hash.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What a finished file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) min_time: Timestamp,
    pub(crate) max_time: Timestamp,
    pub(crate) checksum: u64,
}

/// Promoted pairs whose values hardly repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Varied(BTreeSet<Promoted>);

impl Varied {
    /// These.
    #[cfg(test)]
    pub(crate) fn of_pairs(pairs: impl IntoIterator<Item = Promoted>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// Whether the values of a pair hardly repeat.
    pub(crate) fn contains(&self, pair: &Promoted) -> bool {
        self.0.contains(pair)
    }

    /// Finds them in a sample of the rows, a batch of the layout.
    pub(crate) fn in_sample(layout: &Layout, sample: &RecordBatch) -> Self {
        let varied = |index: &usize| {
            let column = sample.column(layout.promoted_column(*index));
            let values = column.len() - column.null_count();
            let distinct = distinct_values(column);
            values > VARIED_VALUES_MIN && distinct * VARIED_PART.1 > values * VARIED_PART.0
        };
        Self((0..layout.promoted().len()).filter(varied).map(|index| layout.promoted()[index].clone()).collect())
    }

    /// What was varied in any input stays so.
    pub(crate) fn of_files<'a>(files: impl Iterator<Item = &'a SegmentFile>) -> Self {
        let mut varied = BTreeSet::new();
        for file in files {
            for (index, pair) in file.layout.promoted().iter().enumerate() {
                let plain = file.promoted_chunks(index).any(|chunk| chunk.dictionary_page_offset().is_none());
                if plain && pair.kind != Kind::Bool {
                    varied.insert(pair.clone());
                }
            }
        }
        Self(varied)
    }
}

fn distinct_values(column: &ArrayRef) -> usize {
    let valid = (0..column.len()).filter(|row| column.is_valid(*row));
    match column.data_type() {
        DataType::Utf8 => {
            let texts = column.as_string::<i32>();
            valid.map(|row| texts.value(row)).collect::<HashSet<&str>>().len()
        }
        DataType::Int64 => {
            let ints = column.as_primitive::<Int64Type>();
            valid.map(|row| ints.value(row)).collect::<HashSet<i64>>().len()
        }
        DataType::Float64 => {
            let doubles = column.as_primitive::<Float64Type>();
            valid.map(|row| doubles.value(row).to_bits()).collect::<HashSet<u64>>().len()
        }
        _ => 0,
    }
}

/// Writes a segment under a temporary name.
pub(crate) struct SegmentWriter {
    writer: ArrowWriter<HashingFile>,
    filters: Option<FilterBuilder>,
    packing: Packing,
    table: Table,
    path: PathBuf,
    rows: u64,
    min_time: i64,
    max_time: i64,
}

impl SegmentWriter {
    /// Creates the file; one of this name that a crash left is overwritten.
    pub(crate) fn create(
        path: &Path,
        layout: &Layout,
        tenant: &TenantId,
        packing: Packing,
        varied: &Varied,
    ) -> Result<Self, StoreError> {
        let table = layout.table();
        let file = File::create(path).map_err(StoreError::io("create", path))?;
        let file = HashingFile { file, hash: Xxh3::new(), bytes: 0 };
        let properties = properties(layout, tenant, packing, varied);
        let writer = ArrowWriter::try_new(file, Arc::clone(layout.schema()), Some(properties))
            .map_err(StoreError::parquet("create", path))?;
        let filters = Some(FilterBuilder::new(layout, varied)).filter(|filters| !filters.is_empty());
        let path = path.to_owned();
        Ok(Self { writer, filters, packing, table, path, rows: 0, min_time: i64::MAX, max_time: i64::MIN })
    }

    /// Appends rows of the layout, which must continue the table's order.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let times = batch
            .column_by_name(self.table.time_column())
            .and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>())
            .ok_or(StoreError::SchemaMismatch { table: self.table.name() })?;
        self.min_time = min(times).map_or(self.min_time, |time| time.min(self.min_time));
        self.max_time = max(times).map_or(self.max_time, |time| time.max(self.max_time));
        self.rows += batch.num_rows() as u64;
        let Some(filters) = &mut self.filters else {
            return self.writer.write(batch).map_err(StoreError::parquet("write", &self.path));
        };
        let mut at = 0;
        while at < batch.num_rows() {
            let part = batch.slice(at, filters.room().min(batch.num_rows() - at));
            at += part.num_rows();
            self.writer.write(&part).map_err(StoreError::parquet("write", &self.path))?;
            filters.add(&part, |bytes| write_between(&mut self.writer, bytes, &self.path))?;
            // Row groups end where blocks do, so that a block is one page of each column. The
            // writer's own limit is for rows so wide that one block is too much.
            let soon_full = self.writer.in_progress_size() > self.packing.row_group_bytes_max / 16 * 15;
            if filters.is_between_blocks() && soon_full {
                self.writer.flush().map_err(StoreError::parquet("write", &self.path))?;
            }
        }
        Ok(())
    }

    /// Writes the footer and makes the file durable. Its name is not, yet.
    pub(crate) fn finish(mut self) -> Result<Written, StoreError> {
        if let Some(filters) = self.filters.take() {
            let directory = filters.finish(|bytes| write_between(&mut self.writer, bytes, &self.path))?;
            let entry = KeyValue::new(METADATA_FILTERS.to_owned(), directory.to_json());
            self.writer.append_key_value_metadata(entry);
        }
        self.writer.finish().map_err(StoreError::parquet("finish", &self.path))?;
        let file = self.writer.inner();
        file.file.sync_all().map_err(StoreError::io("sync", &self.path))?;
        Ok(Written {
            rows: self.rows,
            bytes: file.bytes,
            min_time: Timestamp(self.min_time),
            max_time: Timestamp(self.max_time),
            checksum: file.hash.digest(),
        })
    }
}

/// Writes bytes between row groups, where readers of Parquet do not look; returns where they begin.
fn write_between(writer: &mut ArrowWriter<HashingFile>, bytes: &[u8], path: &Path) -> Result<u64, StoreError> {
    let at = writer.bytes_written() as u64;
    writer.write_all(bytes).map_err(StoreError::io("write", path))?;
    Ok(at)
}

/// A segment's file, opened: its footer is read, its rows are not.
#[derive(Debug)]
pub struct SegmentFile {
    path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    layout: Layout,
}

impl SegmentFile {
    /// Opens a segment of a table, of any format version.
    ///
    /// # Errors
    /// When it cannot be read, or its columns are not the table's.
    pub fn open(path: &Path, table: Table) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let metadata =
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(StoreError::parquet("read", path))?;
        let layout = Layout::of_schema(table, metadata.schema())?;
        Ok(Self { path: path.to_owned(), file, metadata, layout })
    }

    /// Its columns.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The chunks of a promoted column, one of each row group.
    fn promoted_chunks(&self, index: usize) -> impl Iterator<Item = &ColumnChunkMetaData> {
        let name = self.layout.promoted()[index].column_name();
        self.metadata.metadata().row_groups().iter().filter_map(move |group| {
            group.columns().iter().find(|chunk| chunk.column_path().parts() == [name.as_str()])
        })
    }

    /// How many rows have a value in each promoted column.
    pub(crate) fn promoted_counts(&self) -> Vec<u64> {
        let of_chunk = |chunk: &ColumnChunkMetaData| {
            let nulls = chunk.statistics().and_then(|statistics| statistics.null_count_opt()).unwrap_or(0);
            u64::try_from(chunk.num_values()).unwrap_or(0).saturating_sub(nulls)
        };
        (0..self.layout.promoted().len()).map(|index| self.promoted_chunks(index).map(of_chunk).sum()).collect()
    }

    /// The rows from front to back, in batches of so many, in the file's layout.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn rows(&self, batch_rows: usize) -> Result<ParquetRecordBatchReader, StoreError> {
        self.reader(batch_rows)?.build().map_err(StoreError::parquet("read", &self.path))
    }

    /// Some of the table's columns from front to back, in batches of so many rows, as the table has them. The others
    /// are not read from the disk; names that the table does not have are passed over.
    ///
    /// # Errors
    /// When it cannot be read; of a later batch, as an item.
    pub fn columns(
        &self,
        batch_rows: usize,
        names: &[&str],
    ) -> Result<impl Iterator<Item = Result<RecordBatch, StoreError>> + '_, StoreError> {
        let columns = schema(self.layout.table());
        let fields: Vec<(usize, Arc<Field>)> = columns
            .fields()
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, field)| names.contains(&field.name().as_str()))
            .collect();
        let promoted = || (0..self.layout.promoted().len()).map(|index| self.layout.promoted_column(index));
        let mut roots: Vec<usize> = fields.iter().filter_map(|(at, _)| self.layout.base_column(*at)).collect();
        if fields.iter().any(|(_, field)| field.name() == ATTRIBUTES) {
            roots.extend(promoted());
        }
        let reader = self.reader(batch_rows)?;
        let mask = ProjectionMask::roots(reader.parquet_schema(), roots);
        let reader = reader.with_projection(mask).build().map_err(StoreError::parquet("read", &self.path))?;
        let projected = Arc::new(Schema::new(fields.iter().map(|(_, field)| Arc::clone(field)).collect::<Vec<_>>()));
        let mismatch = || StoreError::SchemaMismatch { table: self.layout.table().name() };
        let column = move |batch: &RecordBatch, at: usize, field: &Field| {
            let of_file = |index: usize| batch.column_by_name(self.layout.schema().field(index).name()).cloned();
            match self.layout.base_column(at) {
                Some(index) if field.name() == ATTRIBUTES => {
                    let of_file = std::iter::once(index).chain(promoted()).map(of_file).collect::<Option<Vec<_>>>();
                    assemble_attributes(&self.layout, &of_file.ok_or_else(mismatch)?)
                }
                Some(index) => of_file(index).ok_or_else(mismatch),
                None => filler_of(self.layout.table(), field)
                    .map(|filler| filler.array(field, batch.num_rows()))
                    .ok_or_else(mismatch),
            }
        };
        Ok(reader.map(move |batch| {
            let batch = batch.map_err(StoreError::arrow("read a segment"))?;
            let columns = fields.iter().map(|(at, field)| column(&batch, *at, field)).collect::<Result<Vec<_>, _>>()?;
            RecordBatch::try_new(Arc::clone(&projected), columns).map_err(StoreError::arrow("read a segment"))
        }))
    }

    /// A reader that is still to be told which rows and columns.
    pub(crate) fn reader(&self, batch_rows: usize) -> Result<ParquetRecordBatchReaderBuilder<File>, StoreError> {
        let file = self.file.try_clone().map_err(StoreError::io("open", &self.path))?;
        Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone()).with_batch_size(batch_rows))
    }
}

/// Reads a segment from front to back in batches of so many rows, as the table has them.
///
/// # Errors
/// When it cannot be read.
#[cfg(test)]
pub(crate) fn read(
    path: &Path,
    table: Table,
    batch_rows: usize,
) -> Result<impl Iterator<Item = Result<RecordBatch, StoreError>>, StoreError> {
    let file = SegmentFile::open(path, table)?;
    let rows = file.rows(batch_rows)?;
    Ok(rows.map(move |batch| {
        batch.map_err(StoreError::arrow("read a segment")).and_then(|batch| as_table(file.layout(), &batch))
    }))
}

/// Checks that a file is there, has its size, and ends with a footer for its rows, table and
/// tenant. The inner error is what is wrong with it, for the log and the manifest.
///
/// # Errors
/// When the file cannot be looked at, which says nothing about it.
pub(crate) fn check_footer(path: &Path, meta: &SegmentMeta) -> Result<Result<(), String>, StoreError> {
    if meta.format_version > SEGMENT_FORMAT_VERSION {
        let (found, supported) = (meta.format_version, SEGMENT_FORMAT_VERSION);
        return Err(StoreError::NewerFormat { path: path.to_owned(), found, supported });
    }
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
    let (file, bytes) = match opened {
        Ok(opened) => opened,
        Err(error) if is_damage(&error) => return Ok(Err(format!("cannot be opened: {error}"))),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if bytes != meta.bytes {
        return Ok(Err(format!("has {bytes} bytes, expected {}", meta.bytes)));
    }
    let footer = match ParquetMetaDataReader::new().parse_and_finish(&file) {
        Ok(footer) => footer,
        Err(error) => return Ok(Err(format!("has no readable footer: {error}"))),
    };
    let rows = footer.file_metadata().num_rows();
    if u64::try_from(rows) != Ok(meta.rows) {
        return Ok(Err(format!("has {rows} rows, expected {}", meta.rows)));
    }
    for (key, expected) in [(METADATA_TABLE, meta.table.name()), (METADATA_TENANT, meta.tenant.as_str())] {
        let entries = footer.file_metadata().key_value_metadata();
        let found = entries.and_then(|entries| entries.iter().find(|entry| entry.key == key));
        let found = found.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        if found != expected {
            return Ok(Err(format!("is of {key} `{found}`, expected `{expected}`")));
        }
    }
    Ok(Ok(()))
}

/// The checksum of a file, read from front to back.
pub(crate) fn checksum(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; CHECKSUM_CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&chunk[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;
    use crate::sort::sorted_batch;
    use crate::testing::{kinds_of, laid_out, random_batch, row_multiset, same_rows_in_order};
    use arrow::compute::concat_batches;

    #[test]
    fn segments_of_every_table_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::default_tenant();
        for table in Table::ALL {
            for packing in [Packing::FLUSH, Packing::MERGE] {
                let path = dir.path().join(format!("{table}.parquet"));
                let batches: Vec<RecordBatch> = (0..3).map(|seed| random_batch(table, 700, seed)).collect();
                let sorted = sorted_batch(table, &batches);
                let layout = layout::choose(table, &batches, &kinds_of(&batches));
                assert!(!layout.promoted().is_empty(), "{table}");
                let rows = laid_out(&sorted, &layout);
                let varied = Varied::in_sample(&layout, &rows);
                let mut writer = SegmentWriter::create(&path, &layout, &tenant, packing, &varied).unwrap();
                writer.write(&rows.slice(0, 900)).unwrap();
                writer.write(&rows.slice(900, rows.num_rows() - 900)).unwrap();
                let written = writer.finish().unwrap();
                assert_eq!(written.rows, 2100);
                assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
                assert_eq!(written.checksum, checksum(&path).unwrap());

                let reader = read(&path, table, 512).unwrap();
                let read: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
                for batch in &read {
                    assert_eq!(batch.schema().fields(), schema(table).fields(), "{table}");
                }
                // Any columns alone are those of the whole.
                let file = SegmentFile::open(&path, table).unwrap();
                let columns = schema(table);
                let names: Vec<&str> = columns.fields().iter().map(|field| field.name().as_str()).collect();
                let every_other: Vec<&str> = names.iter().step_by(2).copied().collect();
                for names in [vec![ATTRIBUTES, table.time_column()], every_other, names.clone()] {
                    let some: Vec<RecordBatch> = file
                        .columns(512, &[&names[..], &["no such column"]].concat())
                        .unwrap()
                        .map(|batch| batch.unwrap())
                        .collect();
                    assert_eq!(some.len(), read.len());
                    for (some, whole) in some.iter().zip(&read) {
                        for field in some.schema().fields() {
                            let found = some.column_by_name(field.name()).unwrap();
                            assert_eq!(found, whole.column_by_name(field.name()).unwrap(), "{table} {}", field.name());
                        }
                        assert_eq!(some.num_columns(), names.len(), "{table}");
                    }
                }
                let all = concat_batches(&schema(table), &read).unwrap();
                assert!(same_rows_in_order(&all, &sorted), "{table}");
                assert_eq!(row_multiset(table, &read), row_multiset(table, &batches), "{table}");
            }
        }
    }

    #[test]
    fn a_file_has_what_a_reader_prunes_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let tenant = TenantId::default_tenant();
        let layout = Layout::of_table(Table::Spans);
        let mut writer = SegmentWriter::create(&path, &layout, &tenant, Packing::FLUSH, &Varied::default()).unwrap();
        writer.write(&sorted_batch(Table::Spans, [&random_batch(Table::Spans, 500, 1)])).unwrap();
        writer.finish().unwrap();
        let footer = ParquetMetaDataReader::new()
            .with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required)
            .parse_and_finish(&File::open(&path).unwrap())
            .unwrap();
        assert!(footer.column_index().is_some() && footer.offset_index().is_some());
        let group = footer.row_group(0);
        let column = |name: &str| {
            group
                .columns()
                .iter()
                .find(|column| column.column_path().string() == name)
                .unwrap_or_else(|| panic!("{name}"))
        };
        for (name, statistics, dictionary, encoding, packed) in [
            ("trace_id", true, false, Some(Encoding::PLAIN), true),
            ("span_id", false, false, Some(Encoding::PLAIN), false),
            ("parent_span_id", false, false, Some(Encoding::PLAIN), true),
            ("service_name", true, true, None, true),
            ("start_time", true, false, Some(Encoding::DELTA_BINARY_PACKED), true),
            ("duration_ns", true, false, Some(Encoding::DELTA_BINARY_PACKED), true),
            ("attributes.shape", false, true, None, true),
            ("events.list.item.name", false, true, None, true),
            ("events.list.item.time", false, false, Some(Encoding::DELTA_BINARY_PACKED), true),
            ("links.list.item.span_id", false, false, Some(Encoding::PLAIN), false),
            ("resource", false, true, None, true),
        ] {
            let column = column(name);
            assert_eq!(column.statistics().is_some_and(|found| found.min_bytes_opt().is_some()), statistics, "{name}");
            assert_eq!(column.dictionary_page_offset().is_some(), dictionary, "{name}");
            assert_eq!(column.compression() != Compression::UNCOMPRESSED, packed, "{name}");
            if let Some(encoding) = encoding {
                assert!(column.encodings().any(|found| found == encoding), "{name}");
            }
        }
        let entries = footer.file_metadata().key_value_metadata().unwrap();
        assert!(entries.iter().any(|entry| entry.key == METADATA_FILTERS));
        let sorted: Vec<String> = group
            .sorting_columns()
            .unwrap()
            .iter()
            .map(|sorting| group.column(sorting.column_idx as usize).column_path().string())
            .collect();
        assert_eq!(sorted, Table::Spans.sort_columns());
    }
}
