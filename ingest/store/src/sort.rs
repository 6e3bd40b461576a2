//! The order of a segment's rows: sorting a memtable, and merging sorted inputs.
//!
//! Every table is sorted by one dictionary-encoded text, perhaps an eight-byte id, and a time
//! ([`Table::sort_columns`]), so a key is three integers once the texts are ranked. Not here:
//! files.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, TimestampNanosecondType};
use model::signal::Table;

use crate::error::StoreError;
use crate::gather::{Gatherer, Pick};

/// The sort columns of a batch.
struct Columns<'a> {
    text_keys: &'a [i32],
    texts: &'a arrow::array::StringArray,
    ids: Option<&'a arrow::array::FixedSizeBinaryArray>,
    times: &'a [i64],
}

impl<'a> Columns<'a> {
    fn of(table: Table, batch: &'a RecordBatch) -> Result<Self, StoreError> {
        let mismatch = || StoreError::SchemaMismatch { table: table.name() };
        let column = |name: &str| batch.column_by_name(name).ok_or_else(mismatch);
        let [text, rest @ ..] = table.sort_columns() else { return Err(mismatch()) };
        let (ids, time) = match rest {
            [time] => (None, time),
            [id, time] => (Some(column(id)?.as_fixed_size_binary_opt().ok_or_else(mismatch)?), time),
            _ => return Err(mismatch()),
        };
        let text = column(text)?.as_dictionary_opt::<Int32Type>().ok_or_else(mismatch)?;
        Ok(Self {
            text_keys: text.keys().values(),
            texts: text.values().as_string_opt().ok_or_else(mismatch)?,
            ids,
            times: column(time)?.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(mismatch)?.values(),
        })
    }

    /// The id of a row as a number of the same order.
    fn id(&self, row: usize) -> u64 {
        self.ids.map_or(0, |ids| ids.value(row).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }
}

/// The rows of all batches, which are in the table's own layout, in order. Rows with equal keys
/// stay in theirs.
///
/// # Errors
/// [`StoreError::SchemaMismatch`] when a sort column is missing or of another type.
pub(crate) fn order(table: Table, batches: &[&RecordBatch], gatherer: &Gatherer) -> Result<Vec<Pick>, StoreError> {
    let mismatch = || StoreError::SchemaMismatch { table: table.name() };
    let texts = gatherer.dictionary(table, table.sort_columns()[0]).ok_or_else(mismatch)?;
    let ranks = ranks(texts.values().as_string_opt().ok_or_else(mismatch)?);
    let rows = batches.iter().map(|batch| batch.num_rows()).sum();
    let mut keys: Vec<(u32, u64, i64, Pick)> = Vec::with_capacity(rows);
    for (source, batch) in batches.iter().enumerate() {
        let columns = Columns::of(table, batch)?;
        for row in 0..batch.num_rows() {
            let pick = (source, row);
            let rank = texts.key(pick).and_then(|key| ranks.get(key)).copied().unwrap_or(0);
            keys.push((rank, columns.id(row), columns.times[row], pick));
        }
    }
    if !keys.is_sorted() {
        keys.sort_unstable();
    }
    Ok(keys.into_iter().map(|key| key.3).collect())
}

/// For each value of a dictionary its place in byte order; equal values have equal ranks.
fn ranks(texts: &arrow::array::StringArray) -> Vec<u32> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_unstable_by_key(|index| texts.value(*index));
    let mut ranks = vec![0; texts.len()];
    let mut rank = 0;
    for (place, index) in order.iter().enumerate() {
        if place > 0 && texts.value(order[place - 1]) != texts.value(*index) {
            rank += 1;
        }
        ranks[*index] = rank;
    }
    ranks
}

/// A key that compares across batches: texts have numbers that [`TextNumbers`] gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MergeKey {
    text: u32,
    id: u64,
    time: i64,
}

/// Texts seen by a merge and their numbers, in order of appearance.
#[derive(Debug, Default)]
pub(crate) struct TextNumbers {
    numbers: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl TextNumbers {
    /// The keys of a batch's rows.
    pub(crate) fn keys(&mut self, table: Table, batch: &RecordBatch) -> Result<Vec<MergeKey>, StoreError> {
        let columns = Columns::of(table, batch)?;
        let numbers: Vec<u32> = (0..columns.texts.len()).map(|index| self.number(columns.texts.value(index))).collect();
        Ok((0..batch.num_rows())
            .map(|row| MergeKey {
                text: numbers[columns.text_keys[row].unsigned_abs() as usize],
                id: columns.id(row),
                time: columns.times[row],
            })
            .collect())
    }

    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).expect("a merge has fewer distinct texts than 2^32");
        let text: Arc<str> = Arc::from(text);
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, number);
        number
    }

    /// The order of two keys.
    pub(crate) fn compare(&self, left: MergeKey, right: MergeKey) -> Ordering {
        let texts = if left.text == right.text {
            Ordering::Equal
        } else {
            self.texts[left.text as usize].cmp(&self.texts[right.text as usize])
        };
        texts.then(left.id.cmp(&right.id)).then(left.time.cmp(&right.time))
    }
}

/// The rows of all batches in order, in one batch.
#[cfg(test)]
pub(crate) fn sorted_batch<'a>(table: Table, batches: impl IntoIterator<Item = &'a RecordBatch>) -> RecordBatch {
    let layout = crate::layout::Layout::of_table(table);
    let batches: Vec<&RecordBatch> = batches.into_iter().collect();
    let sources: Vec<_> = batches.iter().map(|batch| (&layout, *batch)).collect();
    let gatherer = Gatherer::new(&sources, &layout).unwrap();
    gatherer.gather(&order(table, &batches, &gatherer).unwrap()).unwrap()
}

/// Whether a batch is in its table's order.
#[cfg(test)]
pub(crate) fn is_sorted(table: Table, batch: &RecordBatch) -> bool {
    let mut numbers = TextNumbers::default();
    let keys = numbers.keys(table, batch).unwrap();
    keys.is_sorted_by(|left, right| numbers.compare(*left, *right).is_le())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random_batch, row_multiset};
    use arrow::compute::concat_batches;
    use model::schema::schema;

    #[test]
    fn sorting_orders_rows_and_keeps_them() {
        for table in Table::ALL {
            let batches: Vec<RecordBatch> = (0..5).map(|seed| random_batch(table, 40, seed)).collect();
            let sorted = sorted_batch(table, &batches);
            assert!(!is_sorted(table, &concat_batches(&schema(table), &batches).unwrap()), "{table}");
            assert!(is_sorted(table, &sorted), "{table}");
            assert_eq!(row_multiset(table, &[sorted]), row_multiset(table, &batches), "{table}");
        }
    }
}
