//! Append-and-truncate column builders: what the decoder writes rows into.
//!
//! Arrow's own builders cannot take a row back. These can: a request that turns out to be
//! malformed in its last byte is undone by `truncate`, and its neighbours in the batch never
//! notice. They are not general: only the column kinds that [`crate::schema`] uses are here.
//!
//! What is the same for nearly every row costs nothing per row: nulls are remembered by row, and
//! lists and numbers that are mostly empty or zero are filled up when something comes, or at the
//! end.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Int32Array,
    PrimitiveArray, StringArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{Run, WireError};

/// Why an offset always fits 31 bits: the decoder cuts a batch long before it holds 2 GiB.
const BATCH_BOUNDED: &str = "a batch is cut long before a column holds 2 GiB";

#[inline(always)]
fn offset(length: usize) -> i32 {
    i32::try_from(length).expect(BATCH_BOUNDED)
}

/// Whether two short values are the same. A call to compare a few bytes costs more than comparing
/// them, and with masked loads at the end of a page a hundred times as much.
#[inline]
pub(crate) fn same(left: &[u8], right: &[u8]) -> bool {
    fn ends<const N: usize>(left: &[u8], right: &[u8]) -> bool {
        left.first_chunk::<N>() == right.first_chunk() && left.last_chunk::<N>() == right.last_chunk()
    }
    left.len() == right.len()
        && match left.len() {
            0..4 => left.iter().zip(right).all(|(left, right)| left == right),
            4..8 => ends::<4>(left, right),
            8..16 => ends::<8>(left, right),
            16..=32 => ends::<16>(left, right),
            _ => left == right,
        }
}

/// Gives the values of a batch away; the next one begins with as much room, so that under steady
/// load none has to grow.
fn take<T>(values: &mut Vec<T>) -> Vec<T> {
    let mut taken = std::mem::take(values);
    // The batch before was larger. What is given away is kept for long, at its full size.
    if taken.capacity() / 2 > taken.len() {
        taken.shrink_to_fit();
    }
    values.reserve_exact(taken.len());
    taken
}

/// The rows of a column that are null, in order.
#[derive(Debug, Default)]
struct Nulls(Vec<u32>);

impl Nulls {
    /// Row `row`, past all earlier ones, is null.
    #[inline]
    fn push(&mut self, row: usize) {
        self.0.push(u32::try_from(row).expect(BATCH_BOUNDED));
    }

    fn truncate(&mut self, rows: usize) {
        while self.0.last().is_some_and(|last| *last as usize >= rows) {
            self.0.pop();
        }
    }

    /// The Arrow nulls of a column of `rows` rows; none are left afterwards.
    fn finish(&mut self, rows: usize) -> Option<NullBuffer> {
        if self.0.is_empty() {
            return None;
        }
        let mut valid = vec![u64::MAX; rows.div_ceil(64)];
        for row in self.0.drain(..) {
            valid[row as usize / 64] &= !(1 << (row % 64));
        }
        Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(valid), 0, rows)))
    }
}

/// List offsets: where each row's items end in the child column.
///
/// Either every row is pushed as it ends, or [`Offsets::fill`] is called before the items of a row
/// are added and at the end: rows without items then cost nothing.
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

    /// Ends every row before row `rows` that has not ended yet at `child_length` items.
    #[inline]
    pub fn fill(&mut self, rows: usize, child_length: usize) {
        if self.len() < rows {
            self.0.resize(rows + 1, offset(child_length));
        }
    }

    /// Rows that have ended so far.
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

    /// Keeps the first `rows` rows; returns how long the child may be at most.
    pub fn truncate(&mut self, rows: usize) -> usize {
        self.0.truncate(rows.saturating_add(1));
        // Of rows that were not filled in yet, the last one kept may own all the items there are.
        if self.len() == rows { self.items() } else { usize::MAX }
    }

    /// The Arrow offsets; the column is empty afterwards.
    pub fn finish(&mut self) -> OffsetBuffer<i32> {
        let ends = take(&mut self.0);
        self.0.push(0);
        if ends[ends.len() - 1] == 0 {
            return OffsetBuffer::new_zeroed(ends.len() - 1);
        }
        OffsetBuffer::new(ScalarBuffer::from(ends))
    }
}

/// Values up to this long are copied as this many bytes where there are as many in view: most are
/// shorter, and a copy of a fixed length needs no call.
const SHORT: usize = 32;

/// Variable-length bytes without nulls.
#[derive(Debug, Default)]
pub struct BytesColumn {
    offsets: Offsets,
    data: Vec<u8>,
    /// Values that [`BytesColumn::check_text`] has seen.
    checked: usize,
}

impl BytesColumn {
    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.offsets.push(self.data.len());
    }

    /// Appends a value.
    #[inline(always)]
    pub fn push_run(&mut self, value: Run<'_>) {
        match value.chunk::<SHORT>() {
            Some(chunk) if value.len() <= SHORT => {
                let end = self.data.len() + value.len();
                self.data.extend_from_slice(chunk);
                self.data.truncate(end);
            }
            _ => self.data.extend_from_slice(value.bytes()),
        }
        self.offsets.push(self.data.len());
    }

    /// Appends empty values until there are `len`.
    #[inline]
    pub fn fill(&mut self, len: usize) {
        self.offsets.fill(len, self.data.len());
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

    /// Checks that the values since the last call are UTF-8, all in one pass: together they are,
    /// and none of them begins inside a character.
    ///
    /// # Errors
    /// [`WireError::Utf8`].
    pub fn check_text(&mut self) -> Result<(), WireError> {
        let offsets = &self.offsets.0[self.checked..];
        let text = &self.data[offsets[0] as usize..];
        if !text.is_ascii() {
            let text = simdutf8::basic::from_utf8(text).map_err(|_utf8| WireError::Utf8)?;
            let first = offsets[0];
            if offsets.iter().any(|offset| !text.is_char_boundary((offset - first) as usize)) {
                return Err(WireError::Utf8);
            }
        }
        self.checked = self.len();
        Ok(())
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        let bytes = self.offsets.truncate(len);
        self.data.truncate(bytes);
        self.checked = self.checked.min(len);
    }

    fn finish_parts(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        self.checked = 0;
        (self.offsets.finish(), Buffer::from_vec(take(&mut self.data)))
    }

    fn finish_nullable_utf8(&mut self, nulls: Option<NullBuffer>) -> StringArray {
        let (offsets, data) = self.finish_parts();
        StringArray::try_new(offsets, data, nulls).expect("text was checked before it was kept")
    }

    /// As text. The column is empty afterwards.
    ///
    /// # Panics
    /// When a value is not UTF-8: whoever pushes into a text column checks first, or calls
    /// [`BytesColumn::check_text`].
    pub fn finish_utf8(&mut self) -> StringArray {
        self.finish_nullable_utf8(None)
    }

    /// As bytes. The column is empty afterwards.
    pub fn finish_binary(&mut self) -> BinaryArray {
        let (offsets, data) = self.finish_parts();
        BinaryArray::new(offsets, data, None)
    }
}

/// Variable-length bytes with nulls.
#[derive(Debug, Default)]
pub struct OptionalBytesColumn {
    values: BytesColumn,
    nulls: Nulls,
}

impl OptionalBytesColumn {
    /// Appends a value or null.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8]>) {
        if value.is_none() {
            self.nulls.push(self.values.len());
        }
        self.values.push(value.unwrap_or_default());
    }

    /// As [`BytesColumn::check_text`].
    ///
    /// # Errors
    /// [`WireError::Utf8`].
    pub fn check_text(&mut self) -> Result<(), WireError> {
        self.values.check_text()
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
        let nulls = self.nulls.finish(self.values.len());
        Arc::new(self.values.finish_nullable_utf8(nulls))
    }

    /// As nullable bytes. The column is empty afterwards.
    pub fn finish_binary(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish(self.values.len());
        let (offsets, data) = self.values.finish_parts();
        Arc::new(BinaryArray::new(offsets, data, nulls))
    }
}

/// Bytes of one length: ids.
#[derive(Debug)]
pub struct FixedColumn<const N: usize> {
    values: Vec<[u8; N]>,
    nulls: Nulls,
}

impl<const N: usize> Default for FixedColumn<N> {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: Nulls::default() }
    }
}

impl<const N: usize> FixedColumn<N> {
    /// Appends an id or null.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8; N]>) {
        if value.is_none() {
            self.nulls.push(self.values.len());
        }
        self.values.push(*value.unwrap_or(&[0; N]));
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish(self.values.len());
        let data = Buffer::from_vec(take(&mut self.values).into_flattened());
        let width = i32::try_from(N).expect("ids are short");
        Arc::new(FixedSizeBinaryArray::new(width, data, nulls))
    }
}

/// Numbers of one type, nullable.
#[derive(Debug)]
pub struct PrimitiveColumn<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    nulls: Nulls,
}

impl<T: ArrowPrimitiveType> Default for PrimitiveColumn<T> {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: Nulls::default() }
    }
}

impl<T: ArrowPrimitiveType> PrimitiveColumn<T> {
    /// Appends a number.
    #[inline]
    pub fn push(&mut self, value: T::Native) {
        self.values.push(value);
    }

    /// Appends a number or null.
    #[inline]
    pub fn push_option(&mut self, value: Option<T::Native>) {
        if value.is_none() {
            self.nulls.push(self.values.len());
        }
        self.values.push(value.unwrap_or_default());
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

    /// The values so far; zero where null.
    #[must_use]
    pub fn values(&self) -> &[T::Native] {
        &self.values
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> PrimitiveArray<T> {
        let nulls = self.nulls.finish(self.values.len());
        PrimitiveArray::new(ScalarBuffer::from(take(&mut self.values)), nulls)
    }
}

/// True, false or null.
#[derive(Debug, Default)]
pub struct BoolColumn {
    values: Vec<bool>,
    nulls: Nulls,
}

impl BoolColumn {
    /// Appends a value or null.
    #[inline]
    pub fn push(&mut self, value: Option<bool>) {
        if value.is_none() {
            self.nulls.push(self.values.len());
        }
        self.values.push(value.unwrap_or_default());
    }

    /// Appends a value or null until there are `len`.
    pub fn fill(&mut self, len: usize, value: Option<bool>) {
        if value.is_none() {
            (self.values.len()..len).for_each(|row| self.nulls.push(row));
        }
        self.values.resize(len, value.unwrap_or_default());
    }

    /// Keeps the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    /// The Arrow column; this one is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let nulls = self.nulls.finish(self.values.len());
        let values = BooleanBuffer::collect_bool(self.values.len(), |row| self.values[row]);
        self.values.clear();
        Arc::new(BooleanArray::new(values, nulls))
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

/// The room of a lookup table of more values than these is given back with the batch.
const LOOKUP_KEPT_MAX: usize = 4096;

impl DictionaryColumn {
    /// The key of `value`, which is added to the dictionary when it is new.
    #[inline]
    pub fn intern(&mut self, value: &[u8]) -> i32 {
        self.find(value).unwrap_or_else(|hash| self.insert(hash, value))
    }

    /// The key of a text, which is checked and added to the dictionary when it is new.
    ///
    /// # Errors
    /// [`WireError::Utf8`].
    #[inline]
    pub fn intern_text(&mut self, text: &[u8]) -> Result<i32, WireError> {
        match self.find(text) {
            Ok(key) => Ok(key),
            Err(hash) => {
                simdutf8::basic::from_utf8(text).map_err(|_utf8| WireError::Utf8)?;
                Ok(self.insert(hash, text))
            }
        }
    }

    /// The key of a value that the dictionary holds, else its hash for [`DictionaryColumn::insert`].
    ///
    /// # Errors
    /// The hash.
    #[inline]
    pub fn find(&self, value: &[u8]) -> Result<i32, u64> {
        // Runs of one value are common: that of the row before is tried first.
        if let Some(last) = self.keys.last()
            && *last != NULL_KEY
            && same(self.values.value(*last as usize), value)
        {
            return Ok(*last);
        }
        let hash = xxh3_64(value);
        let same = |(other, key): &(u64, i32)| *other == hash && same(self.values.value(*key as usize), value);
        self.lookup.find(hash, same).map(|(_, key)| *key).ok_or(hash)
    }

    /// Adds a value that [`DictionaryColumn::find`] did not find; returns its key.
    pub fn insert(&mut self, hash: u64, value: &[u8]) -> i32 {
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

    /// Appends such rows until there are `len`.
    pub fn fill_key(&mut self, len: usize, key: i32) {
        self.keys.resize(len, key);
    }

    /// Appends null rows until there are `len`.
    pub fn fill_null(&mut self, len: usize) {
        self.nullable |= len > self.keys.len();
        self.keys.resize(len, NULL_KEY);
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
        if self.lookup.len() > LOOKUP_KEPT_MAX {
            self.lookup = HashTable::new();
        }
        self.lookup.clear();
        let mut keys = take(&mut self.keys);
        if !std::mem::take(&mut self.nullable) {
            return Int32Array::new(ScalarBuffer::from(keys), None);
        }
        let valid = BooleanBuffer::collect_bool(keys.len(), |row| keys[row] != NULL_KEY);
        keys.iter_mut().for_each(|key| *key = (*key).max(0));
        Int32Array::new(ScalarBuffer::from(keys), Some(NullBuffer::new(valid)))
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

/// An open enum: the text of each number is looked up once, and then only its key.
#[derive(Debug)]
pub struct EnumColumn {
    texts: DictionaryColumn,
    /// Keys of the small numbers that were seen.
    known: [i32; 8],
}

impl Default for EnumColumn {
    fn default() -> Self {
        Self { texts: DictionaryColumn::default(), known: [NULL_KEY; 8] }
    }
}

impl EnumColumn {
    /// The key of a number: of its name, or of itself as text when it has no name.
    #[inline]
    pub fn intern(&mut self, number: i32, names: &[&str]) -> i32 {
        match usize::try_from(number).ok().and_then(|number| self.known.get(number)) {
            Some(key) if *key != NULL_KEY => *key,
            _ => self.intern_new(number, names),
        }
    }

    #[cold]
    fn intern_new(&mut self, number: i32, names: &[&str]) -> i32 {
        let index = usize::try_from(number).ok();
        let key = match index.and_then(|index| names.get(index)) {
            Some(name) => self.texts.intern(name.as_bytes()),
            None => self.texts.intern(number.to_string().as_bytes()),
        };
        if let Some(known) = index.and_then(|index| self.known.get_mut(index)) {
            *known = key;
        }
        key
    }

    /// Appends a row that holds a number.
    #[inline]
    pub fn push(&mut self, number: i32, names: &[&str]) {
        let key = self.intern(number, names);
        self.texts.push_key(key);
    }

    /// Appends rows that hold the number of a key, or null, until there are `len`.
    pub fn fill(&mut self, len: usize, key: Option<i32>) {
        match key {
            Some(key) => self.texts.fill_key(len, key),
            None => self.texts.fill_null(len),
        }
    }

    /// Keeps the first `len` rows.
    pub fn truncate(&mut self, len: usize) {
        self.texts.truncate(len);
    }

    /// As dictionary-encoded text. The column is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        self.known = [NULL_KEY; 8];
        self.texts.finish_utf8()
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
