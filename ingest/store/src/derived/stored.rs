//! Spans that are in a segment, read for derivation: a few columns, and only those of a slice of
//! time where that is wanted.
//!
//! Whatever the segment's layout, nothing is put together: columns that were left out are made up,
//! and promoted attributes are read where they are. Not here: which segments.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Field, Schema, TimestampNanosecondType};
use arrow::error::ArrowError;
use model::schema::schema;
use model::signal::Table;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, ParquetRecordBatchReader, RowFilter};

use super::spans::{COLUMNS, Facts, Spans};
use crate::error::StoreError;
use crate::layout::filler_of;
use crate::segment::{Segment, SegmentFile};

/// Rows of a batch that is read.
const READ_ROWS: usize = 8192;

/// The column that says when a span started.
const START: &str = Table::Spans.time_column();

/// A stretch of time, both ends included, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(super) from: i64,
    pub(super) to: i64,
}

/// A segment of spans, open.
pub(super) struct StoredSpans<'a> {
    segment: &'a Segment,
    file: SegmentFile,
    facts: Facts,
}

impl<'a> StoredSpans<'a> {
    pub(super) fn open(segment: &'a Segment) -> Result<Self, StoreError> {
        let file = SegmentFile::open(segment.path(), Table::Spans)?;
        let facts = Facts::new(file.layout().clone());
        Ok(Self { segment, file, facts })
    }

    /// Shows when each span started, in pieces.
    pub(super) fn starts(&self, mut show: impl FnMut(&[i64])) -> Result<(), StoreError> {
        for batch in self.read(|name| name == START, None)? {
            let batch = batch.map_err(StoreError::arrow("read spans"))?;
            show(starts(&batch).map_err(StoreError::arrow("read spans"))?);
        }
        Ok(())
    }

    /// Shows the spans, those that started in a slice of time when one is given, in pieces.
    pub(super) fn each(&mut self, slice: Option<Slice>, mut show: impl FnMut(&Spans<'_>)) -> Result<(), StoreError> {
        let texts = self.facts.promoted().map(str::to_owned).collect::<Vec<_>>();
        let wanted = |name: &str| COLUMNS.contains(&name) || texts.iter().any(|text| text == name);
        for batch in self.read(wanted, slice)? {
            let batch = batch.and_then(|batch| filled(&batch)).map_err(StoreError::arrow("read spans"))?;
            let spans = Spans::new(&batch, &mut self.facts);
            show(&spans.ok_or(StoreError::SchemaMismatch { table: Table::Spans.name() })?);
        }
        Ok(())
    }

    fn read(
        &self,
        wanted: impl Fn(&str) -> bool,
        slice: Option<Slice>,
    ) -> Result<ParquetRecordBatchReader, StoreError> {
        let mut reader = self.file.reader(READ_ROWS)?;
        let mask = |wanted: &dyn Fn(&str) -> bool| {
            let fields = self.file.layout().schema().fields().iter().enumerate();
            let places = fields.filter(|(_, field)| wanted(field.name())).map(|(place, _)| place);
            ProjectionMask::roots(reader.parquet_schema(), places)
        };
        let (columns, start) = (mask(&wanted), mask(&|name| name == START));
        reader = reader.with_projection(columns);
        if let Some(slice) = slice {
            let within = ArrowPredicateFn::new(start, move |batch| {
                let within = starts(&batch)?.iter().map(|start| Some((slice.from..=slice.to).contains(start)));
                Ok(within.collect::<BooleanArray>())
            });
            reader = reader.with_row_filter(RowFilter::new(vec![Box::new(within)]));
        }
        reader.build().map_err(StoreError::parquet("read", self.segment.path()))
    }
}

fn starts(batch: &RecordBatch) -> Result<&[i64], ArrowError> {
    let starts = batch.column_by_name(START).and_then(|starts| starts.as_primitive_opt::<TimestampNanosecondType>());
    Ok(starts.ok_or_else(|| ArrowError::SchemaError(START.to_owned()))?.values())
}

/// A batch with the columns that its file left out.
fn filled(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let table = schema(Table::Spans);
    let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().map(Arc::clone).collect();
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    for name in COLUMNS.into_iter().filter(|name| batch.column_by_name(name).is_none()) {
        let field = table.field_with_name(name)?;
        let filler = filler_of(Table::Spans, field).ok_or_else(|| ArrowError::SchemaError(name.to_owned()))?;
        columns.push(filler.array(field, batch.num_rows()));
        fields.push(Arc::new(field.clone()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
