//! Append-and-truncate column builders: what the decoder writes rows into.
//!
//! Arrow's own builders cannot take a row back. These can: a request that turns out to be
//! malformed in its last byte is undone by `truncate`, and its neighbours in the batch never
//! notice. They are not general: only the column kinds that [`crate::schema`] uses are here.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Int32Array,
    NullBufferBuilder, PrimitiveArray, StringArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Why an offset always fits 31 bits: the decoder cuts a batch long before it holds 2 GiB.
const BATCH_BOUNDED: &str = "a batch is cut long before a column holds 2 GiB";

fn offset(length: usize) -> i32 {
    i32::try_from(length).expect(BATCH_BOUNDED)
}

/// List offsets: where each row's items end in the child column.
#[derive(Debug)]
pub struct Offsets(Vec<i32>);

impl Default for Offsets {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Offsets {
    /// Ends the current row at `child_length` items.
    #[inline]
    pub fn push(&mut self, child_length: usize) {
        self.0.push(offset(child_length));
    }

    /// Rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items that belong to finished rows: a child longer than this holds an unfinished row.
    #[must_use]
    pub fn items(&self) -> usize {
        self.0[self.0.len() - 1] as usize
    }

    /// Keeps the first `rows` rows; returns how long the child must be.
    pub fn truncate(&mut self, rows: usize) -> usize {
        self.0.truncate(rows + 1);
        self.items()
    }

    /// The Arrow offsets; the column is empty afterwards.
    pub fn finish(&mut self) -> OffsetBuffer<i32> {
        OffsetBuffer::new(ScalarBuffer::from(std::mem::take(self).0))
    }
}

/// Variable-length bytes without nulls.
#[derive(Debug, Default)]
pub struct BytesColumn {
    offsets: Offsets,
    data: Vec<u8>,
}

impl BytesColumn {
    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.offsets.push(self.data.len());
    }

    /// Values so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at `index`.
    #[must_use]
    pub fn value(&self, index: usize) -> &[u8] {
        &self.data[self.offsets.0[index] as usize..self.offsets.0[index + 1] as usize]
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        let bytes = self.offsets.truncate(len);
        self.data.truncate(bytes);
    }

    /// As text. The column is empty afterwards.
    ///
    /// # Panics
    /// When a value is not UTF-8: whoever pushes into a text column checks first.
    pub fn finish_utf8(&mut self) -> StringArray {
        let data = Buffer::from_vec(std::mem::take(&mut self.data));
        StringArray::try_new(self.offsets.finish(), data, None).expect("text was checked before it was pushed")
    }

    /// As bytes. The column is empty afterwards.
    pub fn finish_binary(&mut self) -> BinaryArray {
        let data = Buffer::from_vec(std::mem::take(&mut self.data));
        BinaryArray::new(self.offsets.finish(), data, None)
    }
}

/// Variable-length bytes with nulls.
#[derive(Debug)]
pub struct OptionalBytesColumn {
    values: BytesColumn,
    nulls: NullBufferBuilder,
}

impl Default for OptionalBytesColumn {
    fn default() -> Self {
        Self { values: BytesColumn::default(), nulls: NullBufferBuilder::new(0) }
    }
}

impl OptionalBytesColumn {
    /// Appends a value or null.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8]>) {
        self.values.push(value.unwrap_or_default());
        self.nulls.append(value.is_some());
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// As nullable text. The column is empty afterwards.
    ///
    /// # Panics
    /// When a value is not UTF-8.
    pub fn finish_utf8(&mut self) -> ArrayRef {
        let (offsets, data, _none) = self.values.finish_utf8().into_parts();
        let nulls = self.nulls.finish();
        Arc::new(StringArray::try_new(offsets, data, nulls).expect("text was checked before it was pushed"))
    }

    /// As nullable bytes. The column is empty afterwards.
    pub fn finish_binary(&mut self) -> ArrayRef {
        let (offsets, data, _none) = self.values.finish_binary().into_parts();
        Arc::new(BinaryArray::new(offsets, data, self.nulls.finish()))
    }
}

/// Bytes of one length: ids.
#[derive(Debug)]
pub struct FixedColumn<const N: usize> {
    data: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl<const N: usize> Default for FixedColumn<N> {
    fn default() -> Self {
        Self { data: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl<const N: usize> FixedColumn<N> {
    /// Appends an id or null.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8; N]>) {
        self.data.extend_from_slice(value.unwrap_or(&[0; N]));
        self.nulls.append(value.is_some());
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.data.truncate(len * N);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let data = Buffer::from_vec(std::mem::take(&mut self.data));
        let width = i32::try_from(N).expect("ids are short");
        Arc::new(FixedSizeBinaryArray::new(width, data, self.nulls.finish()))
    }
}

/// Numbers of one type, nullable.
#[derive(Debug)]
pub struct PrimitiveColumn<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
}

impl<T: ArrowPrimitiveType> Default for PrimitiveColumn<T> {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl<T: ArrowPrimitiveType> PrimitiveColumn<T> {
    /// Appends a number.
    #[inline]
    pub fn push(&mut self, value: T::Native) {
        self.values.push(value);
        self.nulls.append_non_null();
    }

    /// Appends a number or null.
    #[inline]
    pub fn push_option(&mut self, value: Option<T::Native>) {
        self.values.push(value.unwrap_or_default());
        self.nulls.append(value.is_some());
    }

    /// Values so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> PrimitiveArray<T> {
        PrimitiveArray::new(ScalarBuffer::from(std::mem::take(&mut self.values)), self.nulls.finish())
    }
}

/// True, false or null.
#[derive(Debug)]
pub struct BoolColumn {
    values: Vec<bool>,
    nulls: NullBufferBuilder,
}

impl Default for BoolColumn {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl BoolColumn {
    /// Appends a value or null.
    #[inline]
    pub fn push(&mut self, value: Option<bool>) {
        self.values.push(value.unwrap_or_default());
        self.nulls.append(value.is_some());
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let values = BooleanBuffer::from(std::mem::take(&mut self.values));
        Arc::new(BooleanArray::new(values, self.nulls.finish()))
    }
}

/// Distinct values and, for each row, which one: names, resources, attribute shapes.
///
/// `truncate` takes rows back but keeps values they introduced; an unused value in a dictionary
/// is legal and rare.
#[derive(Debug, Default)]
pub struct DictionaryColumn {
    keys: Vec<i32>,
    nullable: bool,
    values: BytesColumn,
    lookup: HashTable<(u64, i32)>,
}

const NULL_KEY: i32 = -1;

impl DictionaryColumn {
    /// The key of `value`, which is added to the dictionary when it is new.
    ///
    /// Runs of one value are common (a service, a scope): `hint`, the key of the row before,
    /// is tried first.
    #[inline]
    pub fn intern(&mut self, value: &[u8]) -> i32 {
        if let Some(last) = self.keys.last()
            && *last != NULL_KEY
            && self.values.value(*last as usize) == value
        {
            return *last;
        }
        self.intern_hashed(value)
    }

    fn intern_hashed(&mut self, value: &[u8]) -> i32 {
        let hash = xxh3_64(value);
        let values = &self.values;
        if let Some((_, key)) =
            self.lookup.find(hash, |(other, key)| *other == hash && values.value(*key as usize) == value)
        {
            return *key;
        }
        let key = offset(self.values.len());
        self.values.push(value);
        self.lookup.insert_unique(hash, (hash, key), |(other, _)| *other);
        key
    }

    /// Appends a row that holds `value`.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        let key = self.intern(value);
        self.keys.push(key);
    }

    /// Appends a row that holds the value of a key from [`DictionaryColumn::intern`].
    #[inline]
    pub fn push_key(&mut self, key: i32) {
        self.keys.push(key);
    }

    /// Appends a null row.
    #[inline]
    pub fn push_null(&mut self) {
        self.nullable = true;
        self.keys.push(NULL_KEY);
    }

    /// Rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keeps the first `len` rows.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
    }

    fn finish_keys(&mut self) -> Int32Array {
        self.lookup.clear();
        let mut keys = std::mem::take(&mut self.keys);
        if !std::mem::take(&mut self.nullable) {
            return Int32Array::new(ScalarBuffer::from(keys), None);
        }
        let mut nulls = NullBufferBuilder::new(keys.len());
        for key in &mut keys {
            nulls.append(*key != NULL_KEY);
            *key = (*key).max(0);
        }
        Int32Array::new(ScalarBuffer::from(keys), nulls.finish())
    }

    /// As dictionary-encoded text. The column is empty afterwards.
    ///
    /// # Panics
    /// When a value is not UTF-8.
    pub fn finish_utf8(&mut self) -> ArrayRef {
        let keys = self.finish_keys();
        let values = Arc::new(self.values.finish_utf8());
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).expect("keys point into the values"))
    }

    /// As dictionary-encoded bytes. The column is empty afterwards.
    pub fn finish_binary(&mut self) -> ArrayRef {
        let keys = self.finish_keys();
        let values = Arc::new(self.values.finish_binary());
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).expect("keys point into the values"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Int64Type;

    #[test]
    fn a_truncated_column_is_as_if_the_rows_had_never_been() {
        let mut text = OptionalBytesColumn::default();
        let mut names = DictionaryColumn::default();
        let mut ids = FixedColumn::<2>::default();
        let mut numbers = PrimitiveColumn::<Int64Type>::default();
        let mut flags = BoolColumn::default();
        for row in 0..4_i64 {
            text.push((row != 1).then_some(b"ab".as_slice()));
            if row == 2 {
                names.push_null()
            } else {
                names.push(format!("n{}", row % 2).as_bytes())
            }
            ids.push((row != 0).then_some(&[row as u8; 2]));
            numbers.push_option((row != 1).then_some(row));
            flags.push((row != 1).then_some(true));
        }
        text.truncate(3);
        names.truncate(3);
        ids.truncate(3);
        numbers.truncate(3);
        flags.truncate(3);
        let text = text.finish_utf8();
        assert_eq!(text.as_string::<i32>().iter().collect::<Vec<_>>(), [Some("ab"), None, Some("ab")]);
        let names = names.finish_utf8();
        let names = names.as_dictionary::<Int32Type>().downcast_dict::<StringArray>().unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [Some("n0"), Some("n1"), None]);
        let ids = ids.finish();
        assert_eq!(ids.as_fixed_size_binary().iter().collect::<Vec<_>>(), [None, Some(&[1, 1][..]), Some(&[2, 2][..])]);
        assert_eq!(numbers.finish().iter().collect::<Vec<_>>(), [Some(0), None, Some(2)]);
        assert_eq!(flags.finish().as_boolean().iter().collect::<Vec<_>>(), [Some(true), None, Some(true)]);
        assert_eq!(names_empty(), 0);
    }

    fn names_empty() -> usize {
        DictionaryColumn::default().finish_utf8().len()
    }
}
