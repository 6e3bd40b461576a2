//! The layout of a segment's columns, which is not quite the table's schema.
//!
//! Two things make a segment's file smaller, and quicker to write and to read, and neither changes
//! a row:
//!
//! - A frequent (key, kind) pair of `attributes` is *promoted* to a typed column of its own, named
//!   `attributes:<kind>:<key>`. It holds the value of a row whose last attribute of that key is of
//!   that kind, and null elsewhere. All other values stay in the lists of `attributes`, whose
//!   shape still names every attribute in order, so that the row can be put together again,
//!   duplicates and order included.
//! - A column in which every row has the default of its type (null, zero, empty) is *left out*, and
//!   so are lists of `attributes` that hold nothing. Most telemetry has no links, no trace state and
//!   no dropped counts.
//!
//! The file's Arrow schema says all of it; nothing else has to be stored. The layout without
//! promotions that leaves nothing out is the table's schema itself: that of memtables, of the log
//! and of segments of format version 1.
//!
//! Not here: moving rows from one layout to another ([`crate::gather`]), and reading SQL over
//! layouts, which is the query crate's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, RecordBatch, make_array, new_null_array};
use arrow::datatypes::{
    DataType, Field, Fields, Float64Type, Int32Type, Int64Type, Schema, SchemaRef, UInt32Type, UInt64Type,
};
use model::attributes::{AttributesView, Kind, Kinds, ShapeEntry, attributes_type};
use model::schema::schema;
use model::signal::Table;

use crate::catalog::{AttributeKinds, Container};
use crate::error::StoreError;

/// The column that promoted ones are taken out of.
pub const ATTRIBUTES: &str = "attributes";

/// What the names of promoted columns begin with.
const PROMOTED_PREFIX: &str = "attributes:";

/// The metadata of a promoted column's field that says it is whole.
const WHOLE: &str = "godseye.whole";

/// A pair is promoted when at least one row in so many has it: then its column costs less than
/// what it saves in the lists.
const PROMOTED_ROWS_MIN: u64 = 64;

/// The most promoted columns of a segment: each costs a column chunk in every row group. The most
/// frequent pairs win.
pub const PROMOTED_MAX: usize = 96;

/// A longer key stays in the lists: names of columns are in every footer, bytes.
const PROMOTED_KEY_BYTES_MAX: usize = 256;

/// A (key, kind) pair of `attributes` with a column of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Promoted {
    /// The attribute's key.
    pub key: String,
    /// The kind of its values: text, number or boolean.
    pub kind: Kind,
}

impl Promoted {
    const KINDS: [(Kind, &'static str); 4] =
        [(Kind::String, "string"), (Kind::Int, "int"), (Kind::Double, "double"), (Kind::Bool, "bool")];

    /// The name of its column.
    #[must_use]
    pub fn column_name(&self) -> String {
        let kind = Self::KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        format!("{PROMOTED_PREFIX}{kind}:{}", self.key)
    }

    /// The inverse of [`Promoted::column_name`]; `None` for any other column.
    #[must_use]
    pub fn of_column(name: &str) -> Option<Self> {
        let (kind, key) = name.strip_prefix(PROMOTED_PREFIX)?.split_once(':')?;
        let (kind, _) = Self::KINDS.into_iter().find(|(_, name)| *name == kind)?;
        Some(Self { key: key.to_owned(), kind })
    }

    /// The type of its column.
    #[must_use]
    pub const fn data_type(&self) -> DataType {
        match self.kind {
            Kind::Int => DataType::Int64,
            Kind::Double => DataType::Float64,
            Kind::Bool => DataType::Boolean,
            _ => DataType::Utf8,
        }
    }
}

/// Where the value of a shape's entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it has no value.
    Nothing,
    /// In this promoted column.
    Column(usize),
    /// In this list (0 to 3: strings, ints, doubles, others), at this slot of the row.
    List(usize, usize),
}

/// Which list of `attributes` holds values of a kind.
#[must_use]
pub const fn list_of(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Absent | Kind::Empty => None,
        Kind::String => Some(0),
        Kind::Bool | Kind::Int => Some(1),
        Kind::Double => Some(2),
        Kind::Bytes | Kind::Array | Kind::KvList => Some(3),
    }
}

/// The columns of a segment's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    table: Table,
    schema: SchemaRef,
    promoted: Vec<Promoted>,
    /// Which of them are whole.
    whole: Vec<bool>,
    /// For each column of the table's schema, where the file has it.
    base: Vec<Option<usize>>,
}

impl Layout {
    /// The table's own schema: nothing promoted, nothing left out.
    #[must_use]
    pub fn of_table(table: Table) -> Self {
        let schema = schema(table);
        let base = (0..schema.fields().len()).map(Some).collect();
        Self { table, schema, promoted: Vec::new(), whole: Vec::new(), base }
    }

    /// The layout that a file's schema says.
    ///
    /// # Errors
    /// [`StoreError::SchemaMismatch`] when a column is neither of the table nor promoted.
    pub fn of_schema(table: Table, file: &Schema) -> Result<Self, StoreError> {
        let columns = schema(table);
        let mismatch = || StoreError::SchemaMismatch { table: table.name() };
        let mut base = vec![None; columns.fields().len()];
        let (mut promoted, mut whole) = (Vec::new(), Vec::new());
        let mut fields = Vec::with_capacity(file.fields().len());
        for (index, field) in file.fields().iter().enumerate() {
            if let Some(pair) = Promoted::of_column(field.name()) {
                if *field.data_type() != pair.data_type() {
                    return Err(mismatch());
                }
                whole.push(field.metadata().contains_key(WHOLE));
                fields.push(promoted_field(&pair, whole[whole.len() - 1]));
                promoted.push(pair);
                continue;
            }
            let (at, column) = columns.column_with_name(field.name()).ok_or_else(mismatch)?;
            let known = if field.name() == ATTRIBUTES {
                is_part_of_attributes(field.data_type())
            } else {
                field.data_type() == column.data_type()
            };
            // Promoted columns come last, so that their places are those of their fields.
            if !known || !promoted.is_empty() || base[at].replace(index).is_some() {
                return Err(mismatch());
            }
            fields.push(Arc::new(Field::new(field.name(), field.data_type().clone(), column.is_nullable())));
        }
        let required = |at: usize| base[at].is_some() || filler_of(table, columns.field(at)).is_some();
        if !(0..base.len()).all(required) {
            return Err(mismatch());
        }
        Ok(Self { table, schema: Arc::new(Schema::new(fields)), promoted, whole, base })
    }

    fn new(table: Table, pairs: Pairs, left_out: &BTreeSet<usize>, lists: [bool; 4]) -> Self {
        let Pairs { promoted, whole } = pairs;
        let columns = schema(table);
        let mut base = vec![None; columns.fields().len()];
        let mut fields = Vec::with_capacity(columns.fields().len() + promoted.len());
        for (at, column) in columns.fields().iter().enumerate() {
            if left_out.contains(&at) {
                continue;
            }
            base[at] = Some(fields.len());
            if column.name() == ATTRIBUTES {
                let DataType::Struct(children) = attributes_type() else { unreachable!("it is a struct") };
                let kept: Fields = children
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index == 0 || lists[index - 1])
                    .map(|(_, child)| Arc::clone(child))
                    .collect();
                fields.push(Arc::new(Field::new(ATTRIBUTES, DataType::Struct(kept), false)));
            } else {
                fields.push(Arc::clone(column));
            }
        }
        fields.extend(promoted.iter().zip(&whole).map(|(pair, whole)| promoted_field(pair, *whole)));
        Self { table, schema: Arc::new(Schema::new(fields)), promoted, whole, base }
    }

    /// The table.
    #[must_use]
    pub const fn table(&self) -> Table {
        self.table
    }

    /// The file's schema: the table's columns that are not left out, in their order, then the
    /// promoted ones.
    #[must_use]
    pub const fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The promoted pairs, in the order of their columns.
    #[must_use]
    pub fn promoted(&self) -> &[Promoted] {
        &self.promoted
    }

    /// Whether a promoted column is whole: no row has a value of its key of another kind, so that
    /// the column is all there is to know of the key.
    #[must_use]
    pub fn is_whole(&self, index: usize) -> bool {
        self.whole[index]
    }

    /// Where the file has a promoted column.
    #[must_use]
    pub fn promoted_column(&self, index: usize) -> usize {
        self.schema.fields().len() - self.promoted.len() + index
    }

    /// Where the file has a column of the table; `None` when it is left out.
    #[must_use]
    pub fn base_column(&self, at: usize) -> Option<usize> {
        self.base[at]
    }

    /// Whether a column of the table is there in every layout.
    #[must_use]
    pub fn is_always_there(table: Table, at: usize) -> bool {
        filler_of(table, schema(table).field(at)).is_none()
    }

    /// Which lists of `attributes` (strings, ints, doubles, others) the file has.
    #[must_use]
    pub fn lists(&self) -> [bool; 4] {
        let at = self.schema.column_with_name(ATTRIBUTES).map(|(_, field)| field.data_type());
        match at {
            Some(DataType::Struct(children)) => {
                ["strings", "ints", "doubles", "others"].map(|name| children.find(name).is_some())
            }
            _ => [false; 4],
        }
    }

    /// Where the value of each entry of a shape is.
    #[must_use]
    pub fn places(&self, entries: &[ShapeEntry]) -> Vec<Place> {
        let mut slots = [0_usize; 4];
        let mut places = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let Some(list) = list_of(entry.kind) else {
                places.push(Place::Nothing);
                continue;
            };
            let column = self.promoted.iter().position(|pair| pair.kind == entry.kind && pair.key == entry.key);
            places.push(match column {
                Some(column) if is_last(entries, index) => Place::Column(column),
                _ => {
                    slots[list] += 1;
                    Place::List(list, slots[list] - 1)
                }
            });
        }
        places
    }

    /// The columns of a batch of this layout as the table has them, each made up when it is left
    /// out. `None` for `attributes`, which takes more than that.
    pub(crate) fn base_array(&self, batch: &RecordBatch, at: usize) -> Option<ArrayRef> {
        let columns = schema(self.table);
        let field = columns.field(at);
        if field.name() == ATTRIBUTES {
            return None;
        }
        match self.base[at] {
            Some(index) => Some(Arc::clone(batch.column(index))),
            None => filler_of(self.table, field).map(|filler| filler.array(field, batch.num_rows())),
        }
    }
}

fn promoted_field(pair: &Promoted, whole: bool) -> Arc<Field> {
    let field = Field::new(pair.column_name(), pair.data_type(), true);
    Arc::new(if whole { field.with_metadata([(WHOLE.to_owned(), "true".to_owned())].into()) } else { field })
}

/// What is promoted, and which of it is whole.
struct Pairs {
    promoted: Vec<Promoted>,
    whole: Vec<bool>,
}

impl Pairs {
    /// `kinds` are those of all rows.
    fn new(promoted: Vec<Promoted>, kinds: &AttributeKinds) -> Self {
        let nothing = Kinds::default().with(Kind::Absent).with(Kind::Empty);
        let whole = promoted.iter().map(|pair| {
            let seen = kinds.get(Container::Attributes, &pair.key).unwrap_or_default();
            !kinds.is_truncated() && Kinds(seen.0 & !nothing.0) == Kinds::default().with(pair.kind)
        });
        Self { whole: whole.collect(), promoted }
    }
}

/// Whether the entry is the last one of its key: the one that SQL shows.
fn is_last(entries: &[ShapeEntry], index: usize) -> bool {
    !entries[index + 1..].iter().any(|later| later.key == entries[index].key)
}

/// Whether a type is that of `attributes` with some of its lists.
fn is_part_of_attributes(data_type: &DataType) -> bool {
    let (DataType::Struct(found), DataType::Struct(known)) = (data_type, attributes_type()) else { return false };
    let mut rest = known.iter();
    found.first().is_some_and(|first| *first == known[0]) && found.iter().all(|child| rest.any(|other| other == child))
}

/// What every row of a left-out column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filler {
    /// Null.
    Null,
    /// Zero, false, no text, no items: what Arrow makes of zeroed buffers.
    Zero,
}

impl Filler {
    /// A column of it.
    #[must_use]
    pub fn array(self, field: &Field, rows: usize) -> ArrayRef {
        match self {
            Self::Null => new_null_array(field.data_type(), rows),
            Self::Zero => zeros(field.data_type(), rows),
        }
    }
}

/// The default that a column of the table may be left out for; `None` when it is always there.
#[must_use]
pub fn filler_of(table: Table, field: &Field) -> Option<Filler> {
    let name = field.name().as_str();
    let always =
        [ATTRIBUTES, "trace_id", "span_id", "resource", "scope", "service_name", "time", "start_time", "series_id"];
    if always.contains(&name) && !field.is_nullable() || table.sort_columns().contains(&name) {
        return None;
    }
    if field.is_nullable() {
        return Some(Filler::Null);
    }
    match field.data_type() {
        DataType::Boolean
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::List(_) => Some(Filler::Zero),
        DataType::Dictionary(_, values) if **values == DataType::Utf8 => Some(Filler::Zero),
        _ => None,
    }
}

/// A column of zeros or empty values.
fn zeros(data_type: &DataType, rows: usize) -> ArrayRef {
    match data_type {
        DataType::Dictionary(_, values) => {
            let keys = Int32Array::from_value(0, rows);
            let values = zeros(values, 1);
            Arc::new(DictionaryArray::try_new(keys, values).expect("zero is a key of one value"))
        }
        other => {
            let mut data = new_null_array(other, rows).to_data().into_builder().nulls(None);
            if other == &DataType::Boolean {
                data = data.null_bit_buffer(None);
            }
            make_array(data.build().expect("zeroed buffers are values of these types"))
        }
    }
}

/// Whether every row of a column has the filler.
fn holds_only(array: &ArrayRef, filler: Filler) -> bool {
    if filler == Filler::Null {
        return array.logical_null_count() == array.len();
    }
    let zero = |values: &[u8]| values.iter().all(|byte| *byte == 0);
    match array.data_type() {
        DataType::Boolean => array.as_boolean().true_count() == 0,
        DataType::Int32 => zero_slice(array.as_primitive::<Int32Type>().values()),
        DataType::Int64 => zero_slice(array.as_primitive::<Int64Type>().values()),
        DataType::UInt32 => zero_slice(array.as_primitive::<UInt32Type>().values()),
        DataType::UInt64 => zero_slice(array.as_primitive::<UInt64Type>().values()),
        DataType::Float64 => {
            // By its bits: a negative zero is not the default.
            array.as_primitive::<Float64Type>().values().iter().all(|value| zero(&value.to_bits().to_le_bytes()))
        }
        DataType::Utf8 => same_ends(array.as_string::<i32>().value_offsets()),
        DataType::Binary => same_ends(array.as_binary::<i32>().value_offsets()),
        DataType::List(_) => same_ends(array.as_list::<i32>().value_offsets()),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_dictionary::<Int32Type>();
            let texts = dictionary.values().as_string::<i32>();
            let empty: Vec<bool> = texts.iter().map(|text| text.is_some_and(str::is_empty)).collect();
            dictionary
                .keys()
                .values()
                .iter()
                .all(|key| empty.get(key.unsigned_abs() as usize).copied().unwrap_or(false))
        }
        _ => false,
    }
}

fn zero_slice<T: Default + PartialEq>(values: &[T]) -> bool {
    let zero = T::default();
    values.iter().all(|value| *value == zero)
}

fn same_ends(offsets: &[i32]) -> bool {
    offsets.first() == offsets.last()
}

/// Chooses the layout for rows of a memtable, which are in the table's own layout.
///
/// `kinds` are those of all these rows.
pub(crate) fn choose<'a>(
    table: Table,
    batches: impl IntoIterator<Item = &'a RecordBatch> + Clone,
    kinds: &AttributeKinds,
) -> Layout {
    let columns = schema(table);
    let mut left_out: BTreeSet<usize> = BTreeSet::new();
    for (at, field) in columns.fields().iter().enumerate() {
        let Some(filler) = filler_of(table, field) else { continue };
        if batches.clone().into_iter().all(|batch| holds_only(batch.column(at), filler)) {
            left_out.insert(at);
        }
    }
    let mut counts: HashMap<Promoted, u64> = HashMap::new();
    let mut shapes: Vec<Vec<ShapeEntry>> = Vec::new();
    let mut rows = 0_u64;
    for batch in batches {
        rows += batch.num_rows() as u64;
        let Some(view) = batch.column_by_name(ATTRIBUTES).and_then(|column| AttributesView::new(&**column)) else {
            continue;
        };
        let mut of_shape = vec![0_u64; view.shapes().len()];
        for row in 0..view.len() {
            if let Some(shape) = view.shape_of(row) {
                of_shape[shape] += 1;
            }
        }
        for (entries, rows) in view.shapes().iter().zip(of_shape) {
            if rows == 0 {
                continue;
            }
            for (index, entry) in entries.iter().enumerate() {
                let kinds = Promoted::KINDS.iter().any(|(kind, _)| *kind == entry.kind);
                if kinds && entry.key.len() <= PROMOTED_KEY_BYTES_MAX && is_last(entries, index) {
                    *counts.entry(Promoted { key: entry.key.clone(), kind: entry.kind }).or_default() += rows;
                }
            }
            shapes.push(entries.clone());
        }
    }
    let pairs = Pairs::new(most_frequent(counts, rows), kinds);
    with_needed_lists(table, pairs, &left_out, shapes.iter().map(Vec::as_slice))
}

/// The frequent ones of the pairs, in the order of their keys.
pub(crate) fn most_frequent(counts: impl IntoIterator<Item = (Promoted, u64)>, rows: u64) -> Vec<Promoted> {
    let mut frequent: Vec<(Promoted, u64)> =
        counts.into_iter().filter(|(_, count)| count.saturating_mul(PROMOTED_ROWS_MIN) >= rows).collect();
    frequent.sort_unstable_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    frequent.truncate(PROMOTED_MAX);
    let mut promoted: Vec<Promoted> = frequent.into_iter().map(|(pair, _)| pair).collect();
    promoted.sort_unstable();
    promoted
}

/// A layout with the lists that these shapes need.
fn with_needed_lists<'a>(
    table: Table,
    pairs: Pairs,
    left_out: &BTreeSet<usize>,
    shapes: impl Iterator<Item = &'a [ShapeEntry]>,
) -> Layout {
    let all = Layout::new(table, pairs, left_out, [true; 4]);
    let mut lists = [false; 4];
    for entries in shapes {
        for place in all.places(entries) {
            if let Place::List(list, _) = place {
                lists[list] = true;
            }
        }
    }
    Layout::new(table, Pairs { promoted: all.promoted, whole: all.whole }, left_out, lists)
}

/// The layout of a merge: what any input has as a column, it has too; pairs that are no longer
/// frequent over all rows go back to the lists.
///
/// Each input comes with how many rows have a value in each promoted column, and its rows; `kinds`
/// are those of all of them.
#[must_use]
pub(crate) fn merged<'a>(
    table: Table,
    inputs: impl Iterator<Item = (&'a Layout, &'a [u64], u64)> + Clone,
    kinds: &AttributeKinds,
) -> Layout {
    let mut counts: HashMap<Promoted, u64> = HashMap::new();
    let mut rows = 0;
    for (layout, of_column, of_input) in inputs.clone() {
        rows += of_input;
        for (pair, count) in layout.promoted.iter().zip(of_column) {
            *counts.entry(pair.clone()).or_default() += count;
        }
    }
    let promoted = most_frequent(counts, rows);
    let mut left_out: BTreeSet<usize> = (0..schema(table).fields().len()).collect();
    let mut lists = [false; 4];
    for (layout, _, _) in inputs {
        for (at, index) in layout.base.iter().enumerate() {
            if index.is_some() {
                left_out.remove(&at);
            }
        }
        for (needed, has) in lists.iter_mut().zip(layout.lists()) {
            *needed |= has;
        }
        // What is demoted needs its list.
        for pair in layout.promoted.iter().filter(|pair| !promoted.contains(pair)) {
            if let Some(list) = list_of(pair.kind) {
                lists[list] = true;
            }
        }
    }
    Layout::new(table, Pairs::new(promoted, kinds), &left_out, lists)
}
