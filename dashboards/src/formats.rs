//! The formats of an answer, each written batch by batch into a buffer that the response drains.
//!
//! Whatever the size of an answer, a writer holds at most about [`CHUNK_BYTES`] of text or Arrow, or one row group of
//! Parquet ([`ROW_GROUP_BYTES`]), beside the batch it was given. Not here: which format a client wants
//! (see [`crate::negotiate`]), and how a value looks (`query::render`).

use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use query::{ErrorKind, QueryError, QueryStats, render};

/// A chunk goes out at this size, bytes: large enough to be worth a write, small enough that a slow reader holds
/// little.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// A row group of a Parquet answer ends at about this size, bytes. A row group is held in memory until it ends; 8 MiB
/// still gives readers columns of some hundred KiB.
pub(crate) const ROW_GROUP_BYTES: usize = 8 << 20;

/// What a writer may hold at any time, bytes: the open row group with its dictionaries, or a chunk and the rows that
/// went over its end.
#[cfg(test)]
pub(crate) const BUFFERED_BYTES_MAX: usize = 4 * ROW_GROUP_BYTES;

/// Rows that are written before the buffer is looked at again, at least: each look costs a walk over the batch's
/// dictionaries.
const ROWS_AT_ONCE_MIN: usize = 32;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Ndjson,
    Csv,
    Arrow,
    Parquet,
}

impl Format {
    /// Every format: its name in `format=`, its media type as negotiated, and as sent.
    const ALL: [(Self, &'static str, &'static str, &'static str); 5] = [
        (Self::Json, "json", "application/json", "application/json"),
        (Self::Ndjson, "ndjson", "application/x-ndjson", "application/x-ndjson"),
        (Self::Csv, "csv", "text/csv", "text/csv; charset=utf-8; header=present"),
        (Self::Arrow, "arrow", "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream"),
        (Self::Parquet, "parquet", "application/vnd.apache.parquet", "application/vnd.apache.parquet"),
    ];

    /// By its name in `format=`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, ..)| *known == name).map(|(format, ..)| *format)
    }

    /// By an `Accept` header.
    pub(crate) fn accepted(accept: &str) -> Option<Self> {
        let offered = Self::ALL.map(|(_, _, essence, _)| essence);
        crate::negotiate::media(accept, &offered).map(|index| Self::ALL[index].0)
    }

    /// The names, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(|(_, name, ..)| name).join(", ")
    }

    /// The media types, for messages.
    pub(crate) fn media_types() -> String {
        Self::ALL.map(|(_, _, essence, _)| essence).join(", ")
    }

    /// What `Content-Type` says.
    pub(crate) fn media_type(self) -> &'static str {
        Self::ALL.iter().find(|(format, ..)| *format == self).map_or("", |(.., media)| media)
    }

    /// Whether bytes of this format shrink when they are compressed.
    pub(crate) fn is_compressible(self) -> bool {
        self != Self::Parquet
    }
}

enum Kind {
    Json { first_row: bool },
    Ndjson,
    Csv,
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

/// Writes one answer.
pub(crate) struct Writer {
    /// The columns of what is written: the answer's own for text, and what `render` makes of them otherwise.
    schema: SchemaRef,
    kind: Kind,
    text: String,
    /// The rest of a batch that is being written, and how many of its rows about make a chunk.
    rest: Option<(RecordBatch, usize)>,
}

impl Writer {
    /// Writes the head of an answer with these columns.
    pub(crate) fn new(format: Format, schema: &SchemaRef) -> Result<Self, QueryError> {
        let mut text = String::new();
        let mut written = Arc::clone(schema);
        let kind = match format {
            Format::Json => {
                text.push_str("{\"columns\":");
                text.push_str(&render::columns_json(schema));
                text.push_str(",\"rows\":[");
                Kind::Json { first_row: true }
            }
            Format::Ndjson => Kind::Ndjson,
            Format::Csv => {
                render::header_csv(schema, &mut text);
                Kind::Csv
            }
            Format::Arrow => {
                written = render::arrow_schema(schema);
                Kind::Arrow(Box::new(StreamWriter::try_new(Vec::new(), &written).map_err(unwritable)?))
            }
            Format::Parquet => {
                written = render::parquet_schema(schema);
                let properties =
                    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
                let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&written), Some(properties));
                Kind::Parquet(Box::new(writer.map_err(unwritable_parquet)?))
            }
        };
        Ok(Self { schema: written, kind, text, rest: None })
    }

    /// Takes the next batch. The one before must have been written.
    pub(crate) fn add(&mut self, batch: RecordBatch) {
        debug_assert!(self.rest.is_none(), "a batch is added when the one before is written");
        if batch.num_rows() > 0 {
            // Text and Arrow differ in size by a small factor, so the Arrow bytes say where to cut.
            let rows_at_once = CHUNK_BYTES / (shown_bytes(&batch) / batch.num_rows()).max(1);
            self.rest = Some((batch, rows_at_once.max(ROWS_AT_ONCE_MIN)));
        }
    }

    /// Writes the rows of the batch until a chunk is full; whether some are left.
    pub(crate) fn write(&mut self) -> Result<bool, QueryError> {
        while let Some((batch, rows_at_once)) = self.rest.take() {
            let rows = rows_at_once.min(batch.num_rows());
            self.rows(&batch.slice(0, rows))?;
            let left = batch.num_rows() - rows;
            self.rest = (left > 0).then(|| (batch.slice(rows, left), rows_at_once));
            if self.is_full() {
                break;
            }
        }
        Ok(self.rest.is_some())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        match &mut self.kind {
            Kind::Json { first_row } => render::rows_json(batch, first_row, &mut self.text),
            Kind::Ndjson => render::rows_ndjson(batch, &mut self.text),
            Kind::Csv => render::rows_csv(batch, &mut self.text),
            Kind::Arrow(writer) => render::arrow_batch(batch, &self.schema).and_then(|batch| writer.write(&batch)),
            Kind::Parquet(writer) => {
                let batch = render::arrow_batch(batch, &self.schema).map_err(unwritable)?;
                let mut written = writer.write(&batch);
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    written = written.and_then(|()| writer.flush());
                }
                return written.map_err(unwritable_parquet);
            }
        }
        .map_err(unwritable)
    }

    /// Writes the end of a whole answer.
    pub(crate) fn finish(&mut self, stats: &QueryStats) -> Result<(), QueryError> {
        match &mut self.kind {
            Kind::Json { .. } => {
                self.text.push_str("\n],\"stats\":");
                self.text.push_str(&serde_json::to_string(stats).unwrap_or_default());
                self.text.push_str("}\n");
                Ok(())
            }
            Kind::Ndjson | Kind::Csv => Ok(()),
            Kind::Arrow(writer) => writer.finish().map_err(unwritable),
            Kind::Parquet(writer) => writer.finish().map(drop).map_err(unwritable_parquet),
        }
    }

    /// Writes an error behind rows that were already written; `false` when the format has no place for one.
    pub(crate) fn broke_off(&mut self, failed: &QueryError) -> bool {
        let error = serde_json::json!({ "code": failed.kind.code(), "message": failed.message, "hint": failed.hint });
        match self.kind {
            Kind::Json { .. } => self.text.push_str(&format!("\n],\"error\":{error}}}\n")),
            Kind::Ndjson => self.text.push_str(&format!("{{\"error\":{error}}}\n")),
            Kind::Csv | Kind::Arrow(_) | Kind::Parquet(_) => return false,
        }
        true
    }

    /// Whether a chunk is ready to go out.
    pub(crate) fn is_full(&self) -> bool {
        let ready = match &self.kind {
            Kind::Json { .. } | Kind::Ndjson | Kind::Csv => self.text.len(),
            Kind::Arrow(writer) => writer.get_ref().len(),
            Kind::Parquet(writer) => writer.inner().len(),
        };
        ready >= CHUNK_BYTES
    }

    /// What is ready to go out.
    pub(crate) fn take(&mut self) -> Result<Vec<u8>, QueryError> {
        Ok(match &mut self.kind {
            Kind::Json { .. } | Kind::Ndjson | Kind::Csv => std::mem::take(&mut self.text).into_bytes(),
            Kind::Arrow(writer) => std::mem::take(writer.get_mut()),
            Kind::Parquet(writer) => {
                writer.sync().map_err(|error| unwritable_parquet(error.into()))?;
                std::mem::take(writer.inner_mut())
            }
        })
    }

    /// What is held beside the batch that is being written, bytes.
    #[cfg(test)]
    pub(crate) fn buffered_bytes(&self) -> usize {
        match &self.kind {
            Kind::Json { .. } | Kind::Ndjson | Kind::Csv => self.text.capacity(),
            Kind::Arrow(writer) => writer.get_ref().capacity(),
            Kind::Parquet(writer) => writer.inner().capacity() + writer.memory_size(),
        }
    }
}

/// Bytes of a batch's own rows: a slice of a large batch counts as what it shows.
fn shown_bytes(batch: &RecordBatch) -> usize {
    let bytes = batch
        .columns()
        .iter()
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()));
    bytes.sum()
}

fn unwritable(error: arrow::error::ArrowError) -> QueryError {
    QueryError::new(ErrorKind::Internal, format!("the answer cannot be written: {error}"))
}

fn unwritable_parquet(error: ParquetError) -> QueryError {
    QueryError::new(ErrorKind::Internal, format!("the answer cannot be written as Parquet: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    #[test]
    fn a_writer_holds_little_however_long_the_answer() {
        const BATCHES: usize = 300;
        let schema = Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, false),
            Field::new("text", DataType::Utf8, false),
        ]));
        for format in Format::ALL.map(|(format, ..)| format) {
            let (mut written, mut peak) = (0, 0);
            let mut writer = Writer::new(format, &schema).unwrap();
            for batch in 0..BATCHES {
                let numbers: Vec<i64> = (0..8192).map(|row| (batch * 8192 + row) as i64 * 7_919).collect();
                // As incompressible as text gets, so that nothing vanishes in an encoding.
                let texts = numbers
                    .iter()
                    .map(|number| format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.cast_signed())));
                let texts = StringArray::from_iter_values(texts);
                let columns: Vec<arrow::array::ArrayRef> = vec![Arc::new(Int64Array::from(numbers)), Arc::new(texts)];
                writer.add(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap());
                loop {
                    let more = writer.write().unwrap();
                    peak = peak.max(writer.buffered_bytes());
                    if writer.is_full() {
                        written += writer.take().unwrap().len();
                    }
                    if !more {
                        break;
                    }
                }
            }
            writer.finish(&QueryStats::default()).unwrap();
            written += writer.take().unwrap().len();
            assert!(written > 20 << 20, "{format:?} wrote {written} bytes");
            assert!(peak <= BUFFERED_BYTES_MAX, "{format:?} held {peak} bytes");
            if format != Format::Parquet {
                assert!(peak <= 8 * CHUNK_BYTES, "{format:?} held {peak} bytes");
            }
        }
    }
}
