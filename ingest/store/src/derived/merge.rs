//! Merging derived segments: which ones (a pure plan), and the streaming merge itself.
//!
//! A merge keeps the sums, not the rows: partial rows with one key become one. It reads some
//! thousand rows of each input at a time. Not here: the commit and the swap.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use model::derived::DerivedTable;
use model::time::Timestamp;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

use super::rows::{Keys, combine};
use super::segment::{DerivedMeta, DerivedSegment, Writer};
use crate::compaction::size_class;
use crate::config::CompactionConfig;
use crate::error::StoreError;

/// The segments to merge first, if any are worth it: of one tenant, table, UTC day and size class,
/// by the rules of the base tables ([`crate::compaction::plan`]).
pub(crate) fn plan<'a>(
    segments: impl IntoIterator<Item = &'a DerivedMeta>,
    now: Timestamp,
    config: &CompactionConfig,
) -> Option<Vec<u64>> {
    let mut groups: BTreeMap<_, Vec<&DerivedMeta>> = BTreeMap::new();
    for segment in segments {
        let (class, day) = (size_class(segment.bytes, config), segment.age_time().day());
        groups.entry((class, &segment.tenant, segment.table, day)).or_default().push(segment);
    }
    let today = now.plus_nanos(-config.day_closed_after_ns).day();
    groups.into_iter().find_map(|((_, _, _, day), mut group)| {
        let inputs_min = if day < today { config.inputs_closed_day_min } else { config.inputs_min }.max(2);
        group.sort_unstable_by_key(|segment| segment.id);
        let mut bytes = 0;
        let fitting = group.iter().take(config.inputs_max).take_while(|segment| {
            bytes += segment.bytes;
            bytes <= config.output_bytes_max
        });
        let inputs: Vec<u64> = fitting.map(|segment| segment.id).collect();
        (inputs.len() >= inputs_min).then_some(inputs)
    })
}

/// Why a merge failed.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// This input (by its place) cannot be read.
    Input(usize, StoreError),
    /// The output cannot be written.
    Output(StoreError),
}

/// One input: its reader and the rows at hand, which are in order.
struct Cursor {
    input: usize,
    reader: ParquetRecordBatchReader,
    rows: RecordBatch,
    keys: arrow::row::Rows,
}

impl Cursor {
    /// Reads on when no rows are at hand; `false` at the end.
    fn fill(&mut self, keys: &Keys) -> Result<bool, ArrowError> {
        while self.rows.num_rows() == 0 {
            let Some(rows) = self.reader.next() else { return Ok(false) };
            self.rows = rows?;
            self.keys = keys.of(&self.rows)?;
        }
        Ok(true)
    }
}

/// Merges segments of one tenant and table into a file.
pub(crate) fn merge(
    inputs: &[Arc<DerivedSegment>],
    table: DerivedTable,
    writer: &mut Writer,
) -> Result<(), MergeError> {
    let output = |error: ArrowError| MergeError::Output(StoreError::arrow("merge derived rows")(error));
    let unreadable = |input: usize| {
        move |error: ArrowError| MergeError::Input(input, StoreError::arrow("read a derived segment")(error))
    };
    let keys = Keys::new(table).map_err(output)?;
    let mut cursors = Vec::with_capacity(inputs.len());
    for (input, segment) in inputs.iter().enumerate() {
        let reader = segment.read().map_err(|error| MergeError::Input(input, error))?;
        let rows = RecordBatch::new_empty(model::derived::schema(table));
        let empty = keys.of(&rows).map_err(output)?;
        cursors.push(Cursor { input, reader, rows, keys: empty });
    }
    loop {
        let mut left = Vec::with_capacity(cursors.len());
        for mut cursor in cursors {
            if cursor.fill(&keys).map_err(unreadable(cursor.input))? {
                left.push(cursor);
            }
        }
        cursors = left;
        // Up to the least last key at hand nothing is missing: the keys of each input are unique
        // and in order.
        let last = |cursor: &Cursor| cursor.keys.row(cursor.keys.num_rows() - 1).owned();
        let Some(cut) = cursors.iter().map(last).min() else { return Ok(()) };
        let mut whole = Vec::with_capacity(cursors.len());
        for cursor in &mut cursors {
            let rows = cursor.rows.num_rows();
            let first = cursor.keys.num_rows() - rows;
            let end = partition_point(rows, |row| cursor.keys.row(first + row) <= cut.row());
            whole.push(cursor.rows.slice(0, end));
            cursor.rows = cursor.rows.slice(end, rows - end);
        }
        let merged = combine(table, &whole).map_err(output)?;
        writer.write(&merged).map_err(MergeError::Output)?;
    }
}

/// How many of the first rows satisfy what is true of the first ones only.
fn partition_point(rows: usize, satisfies: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, rows);
    while low < high {
        let middle = low.midpoint(high);
        if satisfies(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
