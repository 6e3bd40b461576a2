//! How attributes are laid out in columns: exactly, compactly, and quick to look up.
//!
//! The attributes of a row are split into their *shape* (the ordered keys and kinds) and their
//! values. Instrumentation emits few distinct shapes, so the shape is dictionary-encoded; the
//! values go into one list per physical type. `attributes['http.route']` is then: find the slot
//! of the key once per shape, and read that slot of each row. Order, duplicates, empty values and
//! types all survive, which OTLP → store → OTLP needs.
//!
//! ```text
//! attributes: struct
//!   shape    dictionary(int32, binary)   (kind, key) (kind, key) …
//!   strings  list(utf8)                  values of kind String, in shape order
//!   ints     list(int64)                 Int; Bool as 0 and 1
//!   doubles  list(float64)               Double, bit for bit
//!   others   list(binary)                Bytes as they are; Array and KvList as AnyValue bytes
//! ```
//!
//! Not here: promoting frequent keys of a segment to columns of their own; that is the segment's
//! business and leaves the shape untouched.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, DictionaryArray, Float64Array, Int64Array, ListArray, StringArray,
    StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Float64Type, Int32Type, Int64Type};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::columns::{BytesColumn, DictionaryColumn, Offsets, PrimitiveColumn};
use crate::ledger::RejectReason;
use crate::limits::ATTRIBUTES_MAX;
use crate::shapes::{At, OUTSIDE, Plain, ROOT, Shapes, Usual, hash_key, write_entry};
use crate::value::{ItemError, KeyValue, Value, write_json_object};
use crate::wire::{Reader, Run, WireError};

/// The kind of an attribute's value, as stored in a shape. The numbers are stored and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The value field is absent.
    Absent = 0,
    /// A value without a kind.
    Empty = 1,
    /// Text.
    String = 2,
    /// True or false.
    Bool = 3,
    /// A signed integer.
    Int = 4,
    /// A double.
    Double = 5,
    /// Raw bytes.
    Bytes = 6,
    /// An array.
    Array = 7,
    /// A key-value list.
    KvList = 8,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Absent,
        Self::Empty,
        Self::String,
        Self::Bool,
        Self::Int,
        Self::Double,
        Self::Bytes,
        Self::Array,
        Self::KvList,
    ];

    /// The inverse of `self as u8`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The kind of a value.
    #[must_use]
    pub const fn of(value: &Value<'_>) -> Self {
        match value {
            Value::Empty => Self::Empty,
            Value::String(_) => Self::String,
            Value::Bool(_) => Self::Bool,
            Value::Int(_) => Self::Int,
            Value::Double(_) => Self::Double,
            Value::Bytes(_) => Self::Bytes,
            Value::Array(_) => Self::Array,
            Value::KvList(_) => Self::KvList,
        }
    }
}

/// A set of kinds: which ones a key has been seen with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(pub u16);

impl Kinds {
    /// This set with one more kind.
    #[must_use]
    pub const fn with(self, kind: Kind) -> Self {
        Self(self.0 | 1 << kind as u16)
    }

    /// Both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the kind is in the set.
    #[must_use]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    /// The SQL type that holds every value of these kinds: the kind's own when there is one,
    /// double for integers and doubles, text otherwise. Empty values are null in any of them.
    #[must_use]
    pub fn sql_type(self) -> DataType {
        const fn bit(kind: Kind) -> u16 {
            1 << kind as u16
        }
        const INT: u16 = bit(Kind::Int);
        const DOUBLE: u16 = bit(Kind::Double);
        const BOOL: u16 = bit(Kind::Bool);
        match self.0 & !(bit(Kind::Absent) | bit(Kind::Empty)) {
            INT => DataType::Int64,
            DOUBLE => DataType::Float64,
            BOOL => DataType::Boolean,
            both if both == INT | DOUBLE => DataType::Float64,
            _ => DataType::Utf8,
        }
    }
}

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let list =
        |name: &str, item: DataType| Field::new(name, DataType::List(Arc::new(Field::new("item", item, false))), false);
    Fields::from(vec![
        Field::new("shape", DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary)), false),
        list("strings", DataType::Utf8),
        list("ints", DataType::Int64),
        list("doubles", DataType::Float64),
        list("others", DataType::Binary),
    ])
});

/// The Arrow type of an attributes column.
#[must_use]
pub fn attributes_type() -> DataType {
    DataType::Struct(FIELDS.clone())
}

fn item_field(index: usize) -> Arc<Field> {
    match FIELDS[index].data_type() {
        DataType::List(item) => Arc::clone(item),
        _ => unreachable!("fields 1 to 4 are lists"),
    }
}

/// Builds an attributes column. Push the attributes of a row, then end or abort the row.
#[derive(Debug)]
pub struct AttributesColumn {
    tree: Shapes,
    /// The shape of the unfinished row as far as it has come.
    at: At,
    /// Its bytes and the number of its attributes, once it has left the tree.
    shape: Vec<u8>,
    count: usize,
    shapes: DictionaryColumn,
    strings: BytesColumn,
    string_ends: Offsets,
    ints: PrimitiveColumn<Int64Type>,
    int_ends: Offsets,
    doubles: PrimitiveColumn<Float64Type>,
    double_ends: Offsets,
    others: BytesColumn,
    other_ends: Offsets,
}

impl Default for AttributesColumn {
    fn default() -> Self {
        Self {
            tree: Shapes::default(),
            at: ROOT,
            shape: Vec::new(),
            count: 0,
            shapes: DictionaryColumn::default(),
            strings: BytesColumn::default(),
            string_ends: Offsets::default(),
            ints: PrimitiveColumn::default(),
            int_ends: Offsets::default(),
            doubles: PrimitiveColumn::default(),
            double_ends: Offsets::default(),
            others: BytesColumn::default(),
            other_ends: Offsets::default(),
        }
    }
}

impl AttributesColumn {
    /// Adds one attribute to the row, from the bytes of its `KeyValue`. Its text is checked by
    /// [`AttributesColumn::check_text`], which must be called before the row is relied on, or
    /// given up for another reason.
    ///
    /// # Errors
    /// [`ItemError`] when it is malformed or breaks a limit; abort the row then.
    #[inline(always)]
    pub fn push_key_value(&mut self, key_value: Run<'_>) -> Result<(), ItemError> {
        if let Some((at, value)) = self.tree.follow_usual(self.at, key_value) {
            self.at = at;
            match value {
                Usual::Text(text) => self.strings.push_run(text),
                Usual::Int(value) => self.ints.push(value),
            }
            return Ok(());
        }
        self.push_other(key_value.bytes())
    }

    fn push_other(&mut self, key_value: &[u8]) -> Result<(), ItemError> {
        match self.tree.follow(self.at, Run::new(key_value)) {
            Some((at, value)) => {
                self.at = at;
                self.push_plain(value);
                Ok(())
            }
            None => self.push_unusual(key_value),
        }
    }

    fn push_unusual(&mut self, key_value: &[u8]) -> Result<(), ItemError> {
        let entry = KeyValue::parse(key_value)?;
        let value = entry.value.as_deref().map(Value::parse).transpose()?;
        self.push(entry.key, value)
    }

    #[inline(always)]
    fn push_plain(&mut self, value: Plain<'_>) {
        match value {
            Plain::String(text) => self.strings.push(text),
            Plain::Bool(value) => self.ints.push(i64::from(value)),
            Plain::Int(value) => self.ints.push(value),
            Plain::Double(value) => self.push_double(value),
        }
    }

    fn push_double(&mut self, value: f64) {
        self.double_ends.fill(self.shapes.len(), self.doubles.len());
        self.doubles.push(value);
    }

    /// As [`AttributesColumn::push_key_value`]; returns a hash of the attribute. The sum of a row's
    /// hashes does not depend on the order of its attributes.
    ///
    /// # Errors
    /// [`ItemError`] when it is malformed or breaks a limit; abort the row then.
    #[inline(always)]
    pub fn push_key_value_hashed(&mut self, key_value: Run<'_>) -> Result<u64, ItemError> {
        if let Some((at, value)) = self.tree.follow_usual(self.at, key_value) {
            self.at = at;
            let seed = self.tree.hash(at);
            return Ok(match value {
                Usual::Text(text) => {
                    self.strings.push_run(text);
                    xxh3_64_with_seed(text.bytes(), seed)
                }
                Usual::Int(value) => {
                    self.ints.push(value);
                    hash_plain(Plain::Int(value), seed)
                }
            });
        }
        self.push_other_hashed(key_value.bytes())
    }

    fn push_other_hashed(&mut self, key_value: &[u8]) -> Result<u64, ItemError> {
        match self.tree.follow(self.at, Run::new(key_value)) {
            Some((at, value)) => {
                self.at = at;
                self.push_plain(value);
                Ok(hash_plain(value, self.tree.hash(at)))
            }
            None => self.push_unusual_hashed(key_value),
        }
    }

    fn push_unusual_hashed(&mut self, key_value: &[u8]) -> Result<u64, ItemError> {
        let entry = KeyValue::parse(key_value)?;
        let value = entry.value.as_deref().map(Value::parse).transpose()?;
        self.push(entry.key, value)?;
        Ok(hash_value(value, hash_key(entry.key, value.as_ref().map_or(Kind::Absent, Kind::of))))
    }

    /// Adds one attribute to the row.
    ///
    /// # Errors
    /// When the row has too many attributes; abort the row then.
    pub fn push(&mut self, key: &str, value: Option<Value<'_>>) -> Result<(), ItemError> {
        let kind = value.as_ref().map_or(Kind::Absent, Kind::of);
        match self.tree.step(self.at, key, kind) {
            Some(at) => self.at = at,
            None => self.push_outside(key, kind)?,
        }
        match value {
            None | Some(Value::Empty) => {}
            Some(Value::String(text)) => self.strings.push(text.as_bytes()),
            Some(Value::Bool(value)) => self.ints.push(i64::from(value)),
            Some(Value::Int(value)) => self.ints.push(value),
            Some(Value::Double(value)) => self.push_double(value),
            Some(Value::Bytes(bytes) | Value::Array(bytes) | Value::KvList(bytes)) => {
                self.other_ends.fill(self.shapes.len(), self.others.len());
                self.others.push(bytes);
            }
        }
        Ok(())
    }

    /// The shape has left the tree, so it is written out.
    fn push_outside(&mut self, key: &str, kind: Kind) -> Result<(), ItemError> {
        if let Some(depth) = self.tree.depth(self.at) {
            self.tree.write(self.at, &mut self.shape);
            self.count = depth;
            self.at = OUTSIDE;
        }
        if self.count == ATTRIBUTES_MAX {
            return Err(RejectReason::TooManyAttributes.into());
        }
        self.count += 1;
        write_entry(key.as_bytes(), kind, &mut self.shape);
        Ok(())
    }

    /// Ends the row.
    #[inline]
    pub fn end_row(&mut self) {
        match self.tree.dictionary_key(self.at) {
            Some(key) => self.shapes.push_key(key),
            None => self.push_shape(),
        }
        self.at = ROOT;
        self.string_ends.push(self.strings.len());
        self.int_ends.push(self.ints.len());
    }

    fn push_shape(&mut self) {
        self.tree.write(self.at, &mut self.shape);
        let key = self.shapes.intern(&self.shape);
        self.tree.set_dictionary_key(self.at, key);
        self.shapes.push_key(key);
        self.shape.clear();
    }

    /// Checks the text that came since the last call, of finished rows and the unfinished one.
    ///
    /// # Errors
    /// [`WireError::Utf8`].
    pub fn check_text(&mut self) -> Result<(), WireError> {
        self.strings.check_text()
    }

    /// Forgets the attributes of the unfinished row.
    pub fn abort_row(&mut self) {
        self.truncate(self.len());
    }

    /// Rows so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub fn truncate(&mut self, rows: usize) {
        self.at = ROOT;
        self.shape.clear();
        self.shapes.truncate(rows);
        self.strings.truncate(self.string_ends.truncate(rows));
        self.ints.truncate(self.int_ends.truncate(rows));
        self.doubles.truncate(self.double_ends.truncate(rows));
        self.others.truncate(self.other_ends.truncate(rows));
    }

    /// The Arrow column; this one is empty afterwards.
    ///
    /// # Panics
    /// When text that was not checked is not UTF-8.
    pub fn finish(&mut self) -> ArrayRef {
        self.tree.end_batch();
        self.double_ends.fill(self.shapes.len(), self.doubles.len());
        self.other_ends.fill(self.shapes.len(), self.others.len());
        let list = |index: usize, ends: &mut Offsets, items: ArrayRef| -> ArrayRef {
            Arc::new(ListArray::new(item_field(index), ends.finish(), items, None))
        };
        let columns = vec![
            self.shapes.finish_binary(),
            list(1, &mut self.string_ends, Arc::new(self.strings.finish_utf8())),
            list(2, &mut self.int_ends, Arc::new(self.ints.finish())),
            list(3, &mut self.double_ends, Arc::new(self.doubles.finish())),
            list(4, &mut self.other_ends, Arc::new(self.others.finish_binary())),
        ];
        Arc::new(StructArray::new(FIELDS.clone(), columns, None))
    }
}

#[inline]
fn hash_plain(value: Plain<'_>, seed: u64) -> u64 {
    match value {
        Plain::String(text) => xxh3_64_with_seed(text, seed),
        Plain::Bool(value) => xxh3_64_with_seed(&[u8::from(value)], seed),
        Plain::Int(value) => xxh3_64_with_seed(&value.to_le_bytes(), seed),
        Plain::Double(value) => xxh3_64_with_seed(&value.to_bits().to_le_bytes(), seed),
    }
}

fn hash_value(value: Option<Value<'_>>, seed: u64) -> u64 {
    match value {
        None | Some(Value::Empty) => seed,
        Some(Value::String(text)) => xxh3_64_with_seed(text.as_bytes(), seed),
        Some(Value::Bool(value)) => hash_plain(Plain::Bool(value), seed),
        Some(Value::Int(value)) => hash_plain(Plain::Int(value), seed),
        Some(Value::Double(value)) => hash_plain(Plain::Double(value), seed),
        Some(Value::Bytes(bytes) | Value::Array(bytes) | Value::KvList(bytes)) => xxh3_64_with_seed(bytes, seed),
    }
}

/// One entry of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeEntry {
    /// The key.
    pub key: String,
    /// The kind of its value.
    pub kind: Kind,
    /// Which of the row's values of that physical type it is.
    pub slot: usize,
}

/// Reads the entries of a shape, in order. Damage ends the walk.
#[must_use]
pub fn shape_entries(shape: &[u8]) -> Vec<ShapeEntry> {
    let mut entries = Vec::new();
    let mut slots = [0_usize; 4];
    let mut rest = shape;
    while let [kind, after @ ..] = rest {
        let Some(kind) = Kind::from_u8(*kind) else { break };
        let mut reader = Reader::new(after);
        let Ok(length) = reader.varint() else { break };
        let body = &after[after.len() - reader.remaining()..];
        let Some((key, after)) = usize::try_from(length).ok().and_then(|length| body.split_at_checked(length)) else {
            break;
        };
        let slot = match kind {
            Kind::Absent | Kind::Empty => 0,
            Kind::String => next(&mut slots[0]),
            Kind::Bool | Kind::Int => next(&mut slots[1]),
            Kind::Double => next(&mut slots[2]),
            Kind::Bytes | Kind::Array | Kind::KvList => next(&mut slots[3]),
        };
        entries.push(ShapeEntry { key: String::from_utf8_lossy(key).into_owned(), kind, slot });
        rest = after;
    }
    entries
}

fn next(slot: &mut usize) -> usize {
    *slot += 1;
    *slot - 1
}

/// Reads an attributes column.
#[derive(Debug)]
pub struct AttributesView<'a> {
    array: &'a StructArray,
    shape_keys: &'a arrow::array::Int32Array,
    shapes: Vec<Vec<ShapeEntry>>,
    string_ends: &'a [i32],
    strings: &'a StringArray,
    int_ends: &'a [i32],
    ints: &'a Int64Array,
    double_ends: &'a [i32],
    doubles: &'a Float64Array,
    other_ends: &'a [i32],
    others: &'a BinaryArray,
}

impl<'a> AttributesView<'a> {
    /// A view of a column of [`attributes_type`]; `None` when the array is of another type.
    #[must_use]
    pub fn new(array: &'a dyn Array) -> Option<Self> {
        if *array.data_type() != attributes_type() {
            return None;
        }
        let array = array.as_struct_opt()?;
        let shape: &DictionaryArray<Int32Type> = array.column(0).as_dictionary_opt()?;
        let shapes: &BinaryArray = shape.values().as_binary_opt()?;
        let [strings, ints, doubles, others] = [1, 2, 3, 4].map(|index| array.column(index).as_list::<i32>());
        Some(Self {
            array,
            shape_keys: shape.keys(),
            shapes: shapes.iter().map(|shape| shape.map(shape_entries).unwrap_or_default()).collect(),
            string_ends: strings.value_offsets(),
            strings: strings.values().as_string(),
            int_ends: ints.value_offsets(),
            ints: ints.values().as_primitive(),
            double_ends: doubles.value_offsets(),
            doubles: doubles.values().as_primitive(),
            other_ends: others.value_offsets(),
            others: others.values().as_binary(),
        })
    }

    /// Rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.array.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.array.is_empty()
    }

    /// The distinct shapes of the column, some of which may not occur.
    #[must_use]
    pub fn shapes(&self) -> &[Vec<ShapeEntry>] {
        &self.shapes
    }

    /// Which of [`AttributesView::shapes`] a row has; `None` when the row is null.
    #[inline]
    #[must_use]
    pub fn shape_of(&self, row: usize) -> Option<usize> {
        (self.array.is_valid(row) && self.shape_keys.is_valid(row))
            .then(|| self.shape_keys.value(row).unsigned_abs() as usize)
    }

    /// The value at a slot of a row.
    #[inline]
    #[must_use]
    pub fn value(&self, row: usize, kind: Kind, slot: usize) -> Value<'a> {
        let at = |ends: &[i32]| ends[row].unsigned_abs() as usize + slot;
        match kind {
            Kind::Absent | Kind::Empty => Value::Empty,
            Kind::String => Value::String(self.strings.value(at(self.string_ends))),
            Kind::Bool => Value::Bool(self.ints.value(at(self.int_ends)) != 0),
            Kind::Int => Value::Int(self.ints.value(at(self.int_ends))),
            Kind::Double => Value::Double(self.doubles.value(at(self.double_ends))),
            Kind::Bytes => Value::Bytes(self.others.value(at(self.other_ends))),
            Kind::Array => Value::Array(self.others.value(at(self.other_ends))),
            Kind::KvList => Value::KvList(self.others.value(at(self.other_ends))),
        }
    }

    /// Where a key stands in each shape: its last occurrence, the rule for duplicate keys.
    #[must_use]
    pub fn locate(&self, key: &str) -> Vec<Option<(Kind, usize)>> {
        self.shapes
            .iter()
            .map(|entries| entries.iter().rev().find(|entry| entry.key == key).map(|entry| (entry.kind, entry.slot)))
            .collect()
    }

    /// Every attribute of a row in order, duplicates and absent values included.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (&str, Kind, Value<'a>)> {
        let entries = self.shape_of(row).map_or(&[][..], |shape| &self.shapes[shape][..]);
        entries.iter().map(move |entry| (entry.key.as_str(), entry.kind, self.value(row, entry.kind, entry.slot)))
    }

    /// A row as a JSON object; the last of duplicate keys is shown. `false` when the row is null.
    pub fn write_json(&self, row: usize, out: &mut String) -> bool {
        if self.shape_of(row).is_none() {
            return false;
        }
        write_json_object(self.row(row).map(|(key, _, value)| (key, value)), out);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_duplicates_and_kinds_survive() {
        let mut column = AttributesColumn::default();
        let rows: Vec<Vec<(&str, Option<Value<'_>>)>> = vec![
            vec![("a", Some(Value::String("x"))), ("b", Some(Value::Int(1))), ("a", Some(Value::Int(2)))],
            vec![],
            vec![
                ("", None),
                ("e", Some(Value::Empty)),
                ("t", Some(Value::Bool(true))),
                ("d", Some(Value::Double(-0.0))),
            ],
            vec![("a", Some(Value::String("y"))), ("b", Some(Value::Int(3))), ("a", Some(Value::Int(4)))],
            vec![("r", Some(Value::Bytes(&[0, 255])))],
        ];
        for (index, row) in rows.iter().enumerate() {
            column.push("lost", Some(Value::String("lost"))).unwrap();
            column.abort_row();
            for (key, value) in row {
                column.push(key, *value).unwrap();
            }
            column.end_row();
            assert_eq!(column.len(), index + 1);
        }
        column.push("lost", Some(Value::Int(9))).unwrap();
        column.end_row();
        column.truncate(rows.len());
        let array = column.finish();
        let view = AttributesView::new(&array).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let found: Vec<_> =
                view.row(index).map(|(key, kind, value)| (key, (kind != Kind::Absent).then_some(value))).collect();
            assert_eq!(&found, row);
        }
        assert_eq!(view.shape_of(0), view.shape_of(3));
        let (kind, slot) = view.locate("a")[view.shape_of(3).unwrap()].unwrap();
        assert_eq!(view.value(3, kind, slot), Value::Int(4));
        let mut json = String::new();
        assert!(view.write_json(0, &mut json));
        assert_eq!(json, "{\"b\":1,\"a\":2}");
        let sliced = array.slice(3, 2);
        let view = AttributesView::new(&sliced).unwrap();
        assert_eq!(view.row(1).next().unwrap().2, Value::Bytes(&[0, 255]));
    }

    #[test]
    fn sql_types_hold_every_kind() {
        for (kinds, expected) in [
            (&[Kind::Int][..], DataType::Int64),
            (&[Kind::Int, Kind::Empty], DataType::Int64),
            (&[Kind::Int, Kind::Double], DataType::Float64),
            (&[Kind::Bool], DataType::Boolean),
            (&[Kind::Bool, Kind::Int], DataType::Utf8),
            (&[Kind::String, Kind::Int], DataType::Utf8),
            (&[Kind::Array], DataType::Utf8),
            (&[], DataType::Utf8),
        ] {
            let set = kinds.iter().fold(Kinds::default(), |set, kind| set.with(*kind));
            assert_eq!(set.sql_type(), expected, "{kinds:?}");
        }
    }

    #[test]
    fn too_many_attributes_reject_the_row() {
        let mut column = AttributesColumn::default();
        for _ in 0..ATTRIBUTES_MAX {
            column.push("k", None).unwrap();
        }
        assert_eq!(column.push("k", None), Err(RejectReason::TooManyAttributes.into()));
    }
}
