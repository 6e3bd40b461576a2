//! A derived segment: one immutable Parquet file of added-up partial rows of one tenant and table.
//!
//! Rows are in the order of their keys, resolution first, a row group never holds two resolutions,
//! and pages are small, so that a question about some hours of a day reads little of it. Not here:
//! which segments exist ([`super::manifest`]), and what the base tables' files look like
//! ([`crate::segment`]).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::{DataType, Int32Type, TimestampNanosecondType};
use model::derived::{DerivedTable, RULES_VERSION, schema};
use model::tenant::TenantId;
use model::time::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::error::{StoreError, is_damage};
use crate::segment::{METADATA_TABLE, METADATA_TENANT, checksum, file_name};

/// The key of the rules' version in a file's metadata.
const METADATA_RULES: &str = "godseye.rules_version";

/// Rows of a page: of one key, which is in order of time, about six hours of a day.
const PAGE_ROWS_MAX: usize = 2048;

/// Rows of a row group. A day of a few hundred keys is some million rows.
const ROW_GROUP_ROWS_MAX: usize = 512 * 1024;

/// How hard rows are packed: they are few beside the spans they come from.
const ZSTD_LEVEL: i32 = 3;

/// Rows of a batch that is read.
const READ_ROWS: usize = 8192;

/// What is known of a derived segment without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedMeta {
    /// Its number, unique among all segments; never used again.
    pub id: u64,
    /// The owner of its rows.
    pub tenant: TenantId,
    /// The table of its rows.
    pub table: DerivedTable,
    /// [`RULES_VERSION`] when it was written.
    pub rules_version: u32,
    /// Rows, those of longer intervals included.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// The earliest `time` of its rows.
    pub min_time: Timestamp,
    /// The latest.
    pub max_time: Timestamp,
    /// When the newest of its rows was committed.
    pub created_at: Timestamp,
    /// XXH3-64 of the file.
    pub checksum: u64,
}

impl DerivedMeta {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(self.id)
    }

    /// The time its age is reckoned from, as [`crate::SegmentMeta::age_time`].
    pub(crate) fn age_time(&self) -> Timestamp {
        self.max_time.min(self.created_at)
    }
}

/// A derived segment that can be read. Its file stays as long as a handle does.
#[derive(Debug)]
pub struct DerivedSegment {
    meta: DerivedMeta,
    path: PathBuf,
    obsolete: AtomicBool,
}

impl DerivedSegment {
    pub(crate) fn new(meta: DerivedMeta, path: PathBuf) -> Arc<Self> {
        Arc::new(Self { meta, path, obsolete: AtomicBool::new(false) })
    }

    /// What is known of it.
    #[must_use]
    pub const fn meta(&self) -> &DerivedMeta {
        &self.meta
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

    /// Whether its file is what was written. One that cannot be looked at has not been shown to be
    /// anything else.
    #[must_use]
    pub fn verify(&self) -> bool {
        match checksum(&self.path) {
            Ok(found) => found == self.meta.checksum,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read a derived segment to verify it");
                !is_damage(&error)
            }
        }
    }

    /// Its rows in order, in batches.
    pub(crate) fn read(&self) -> Result<ParquetRecordBatchReader, StoreError> {
        let file = File::open(&self.path).map_err(StoreError::io("open", &self.path))?;
        ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(READ_ROWS).build())
            .map_err(StoreError::parquet("read", &self.path))
    }
}

impl Drop for DerivedSegment {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            // The next start removes it: the manifest does not list it.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a derived segment that was replaced");
        }
    }
}

fn properties(table: DerivedTable, tenant: &TenantId) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("the level is a constant that zstd has");
    let metadata = [
        (METADATA_RULES, RULES_VERSION.to_string()),
        (METADATA_TABLE, table.name().to_owned()),
        (METADATA_TENANT, tenant.as_str().to_owned()),
    ];
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_write_batch_size(PAGE_ROWS_MAX)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(
            metadata.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect(),
        ));
    for field in schema(table).fields() {
        let path = || ColumnPath::new(vec![field.name().clone()]);
        if table.keys().contains(&field.name().as_str()) {
            // Queries prune by keys, and by nothing else.
            builder = builder.set_column_statistics_enabled(path(), EnabledStatistics::Page);
        }
        match field.data_type() {
            DataType::Timestamp(_, _) => {
                builder = builder
                    .set_column_dictionary_enabled(path(), false)
                    .set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
            }
            DataType::FixedSizeBinary(_) => {
                builder =
                    builder.set_column_dictionary_enabled(path(), false).set_column_encoding(path(), Encoding::PLAIN);
            }
            // Sums and extremes of durations hardly repeat; packing them to the bits they need beats
            // zstd on whole numbers. The least ones have most of their upper bytes in common.
            DataType::Int64 if field.name().ends_with("_min_ns") => {
                builder = builder
                    .set_column_dictionary_enabled(path(), false)
                    .set_column_encoding(path(), Encoding::BYTE_STREAM_SPLIT);
            }
            DataType::Int64 if field.name().ends_with("_ns") => {
                builder = builder
                    .set_column_dictionary_enabled(path(), false)
                    .set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
            }
            // Buckets ascend within a row.
            DataType::List(item) if *item.data_type() == DataType::Int16 => {
                let path = || ColumnPath::new(vec![field.name().clone(), "list".to_owned(), item.name().clone()]);
                builder = builder
                    .set_column_dictionary_enabled(path(), false)
                    .set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
            }
            _ => {}
        }
    }
    builder.build()
}

/// What a finished file is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) min_time: Timestamp,
    pub(crate) max_time: Timestamp,
    pub(crate) checksum: u64,
}

/// Writes a derived segment under a temporary name.
pub(crate) struct Writer {
    writer: ArrowWriter<File>,
    path: PathBuf,
    resolution: Option<i32>,
    rows: u64,
    min_time: i64,
    max_time: i64,
}

impl Writer {
    /// Creates the file; one of this name that a crash left is overwritten.
    pub(crate) fn create(path: &Path, table: DerivedTable, tenant: &TenantId) -> Result<Self, StoreError> {
        let file = File::create(path).map_err(StoreError::io("create", path))?;
        let writer = ArrowWriter::try_new(file, schema(table), Some(properties(table, tenant)))
            .map_err(StoreError::parquet("create", path))?;
        Ok(Self { writer, path: path.to_owned(), resolution: None, rows: 0, min_time: i64::MAX, max_time: i64::MIN })
    }

    /// Appends rows, which must continue the order of keys.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let column = |name| batch.column_by_name(name);
        let mismatch = || StoreError::SchemaMismatch { table: "derived" };
        let times = column("time").and_then(|column| column.as_primitive_opt::<TimestampNanosecondType>());
        let times = times.ok_or_else(mismatch)?;
        self.min_time = min(times).map_or(self.min_time, |time| time.min(self.min_time));
        self.max_time = max(times).map_or(self.max_time, |time| time.max(self.max_time));
        self.rows += batch.num_rows() as u64;
        let resolutions = column("resolution").and_then(|column| column.as_primitive_opt::<Int32Type>());
        let mut start = 0;
        for same in resolutions.ok_or_else(mismatch)?.values().chunk_by(|left, right| left == right) {
            if self.resolution.replace(same[0]).is_some_and(|last| last != same[0]) {
                self.writer.flush().map_err(StoreError::parquet("write", &self.path))?;
            }
            let rows = batch.slice(start, same.len());
            self.writer.write(&rows).map_err(StoreError::parquet("write", &self.path))?;
            start += same.len();
        }
        Ok(())
    }

    /// Writes the footer and makes the file durable. Its name is not, yet.
    pub(crate) fn finish(mut self) -> Result<Written, StoreError> {
        self.writer.finish().map_err(StoreError::parquet("finish", &self.path))?;
        let file = self.writer.inner();
        file.sync_all().map_err(StoreError::io("sync", &self.path))?;
        let bytes = file.metadata().map_err(StoreError::io("look at", &self.path))?.len();
        Ok(Written {
            rows: self.rows,
            bytes,
            min_time: Timestamp(self.min_time),
            max_time: Timestamp(self.max_time),
            checksum: checksum(&self.path).map_err(StoreError::io("read", &self.path))?,
        })
    }
}

/// Checks that a file is there, has its size, and ends with a footer for its rows. The inner error
/// is what is wrong with it.
///
/// # Errors
/// When the file cannot be looked at, which says nothing about it.
pub(crate) fn check_footer(path: &Path, meta: &DerivedMeta) -> Result<Result<(), String>, StoreError> {
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
    let (file, bytes) = match opened {
        Ok(opened) => opened,
        Err(error) if is_damage(&error) => return Ok(Err(format!("cannot be opened: {error}"))),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if bytes != meta.bytes {
        return Ok(Err(format!("has {bytes} bytes, expected {}", meta.bytes)));
    }
    match ParquetMetaDataReader::new().parse_and_finish(&file) {
        Ok(footer) if u64::try_from(footer.file_metadata().num_rows()) == Ok(meta.rows) => Ok(Ok(())),
        Ok(footer) => Ok(Err(format!("has {} rows, expected {}", footer.file_metadata().num_rows(), meta.rows))),
        Err(error) => Ok(Err(format!("has no readable footer: {error}"))),
    }
}
