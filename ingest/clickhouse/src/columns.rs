//! What our Arrow tables are in ClickHouse: types of columns, and rows in the layout of these columns.
//!
//! Columns keep their names and types: text dictionaries become `LowCardinality(String)`, ids `FixedString`, times
//! `DateTime64(9, 'UTC')`, lists of structs arrays of named tuples. Three things differ:
//!
//! - **Attributes** become one map per type, and keep their shape, which alone has the order of keys of different types,
//!   duplicates and empty values. With it nothing is lost; without it the maps answer `attributes.strings['http.route']`.
//!   A `JSON` column would merge `a.b` with `{a: {b}}` and change types; one map of text would lose them.
//! - **Resource and scope** stay whole as bytes, and are also there to ask: `resource_attributes` and `scope_attributes` as
//!   text, `scope_name`, `scope_version` and both schema URLs.
//! - **Exponential buckets** that are absent have a null `offset`, since ClickHouse has no null tuples before 26.
//!
//! Not here: statements and connections. Everything is a pure function.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Int32Array, Int64Array, ListArray, MapArray, RecordBatch,
    StringArray, StructArray, TimestampSecondArray, UInt32Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use hashbrown::HashMap;
use model::attributes::{AttributesView, Kind, attributes_type};
use model::context::{Context, context_type};
use model::schema::{schema, text_dictionary_type};
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;
use model::value::Value;

/// The type of attributes in ClickHouse.
pub(crate) const ATTRIBUTES: &str = "Tuple(shape LowCardinality(String), \
    strings Map(LowCardinality(String), String), \
    ints Map(LowCardinality(String), Int64), \
    bools Map(LowCardinality(String), Bool), \
    doubles Map(LowCardinality(String), Float64), \
    others Map(LowCardinality(String), String))";

/// The columns of a table in ClickHouse, by name and type, in the order of [`layout`].
#[must_use]
pub fn columns(table: Table) -> Vec<(String, String)> {
    let head = [("tenant", "LowCardinality(String)"), ("received_at", "DateTime('UTC')")];
    let tail = [
        ("resource_attributes", "Map(LowCardinality(String), String)"),
        ("scope_name", "LowCardinality(String)"),
        ("scope_version", "LowCardinality(String)"),
        ("scope_attributes", "Map(LowCardinality(String), String)"),
        ("resource_schema_url", "LowCardinality(String)"),
        ("scope_schema_url", "LowCardinality(String)"),
    ];
    let owned = |(name, kind): (&str, &str)| (name.to_owned(), kind.to_owned());
    let own = schema(table);
    let own = own.fields().iter().map(|field| (field.name().clone(), type_of(field)));
    head.into_iter().map(owned).chain(own).chain(tail.into_iter().map(owned)).collect()
}

fn type_of(field: &Field) -> String {
    let nullable = |name: &str| if field.is_nullable() { format!("Nullable({name})") } else { name.to_owned() };
    match field.data_type() {
        kind if *kind == attributes_type() => ATTRIBUTES.to_owned(),
        DataType::Dictionary(_, _) => format!("LowCardinality({})", nullable("String")),
        DataType::Utf8 | DataType::Binary => nullable("String"),
        DataType::FixedSizeBinary(bytes) => nullable(&format!("FixedString({bytes})")),
        DataType::Timestamp(_, _) => nullable("DateTime64(9, 'UTC')"),
        DataType::Boolean => nullable("Bool"),
        DataType::Int32 => nullable("Int32"),
        DataType::Int64 => nullable("Int64"),
        DataType::UInt32 => nullable("UInt32"),
        DataType::UInt64 => nullable("UInt64"),
        DataType::Float64 => nullable("Float64"),
        DataType::List(item) => format!("Array({})", type_of(item)),
        DataType::Struct(fields) => {
            let absent = field.is_nullable();
            let items = fields.iter().map(|item| format!("{} {}", item.name(), type_of(&part(item, absent))));
            format!("Tuple({})", items.collect::<Vec<_>>().join(", "))
        }
        other => unreachable!("no table has a column of type {other}"),
    }
}

/// A field of a struct. In one that may be absent, what can be null is.
fn part(field: &FieldRef, absent: bool) -> FieldRef {
    if absent && !field.data_type().is_nested() {
        Arc::new(field.as_ref().clone().with_nullable(true))
    } else {
        Arc::clone(field)
    }
}

fn map_field(name: &str, value: DataType) -> FieldRef {
    let entries =
        Fields::from(vec![Field::new("key", text_dictionary_type(), false), Field::new("value", value, false)]);
    let entries = Field::new("entries", DataType::Struct(entries), false);
    Arc::new(Field::new(name, DataType::Map(Arc::new(entries), false), false))
}

static MAPS: LazyLock<Fields> = LazyLock::new(|| {
    let shape = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary));
    Fields::from(vec![
        Arc::new(Field::new("shape", shape, false)),
        map_field("strings", DataType::Utf8),
        map_field("ints", DataType::Int64),
        map_field("bools", DataType::Boolean),
        map_field("doubles", DataType::Float64),
        map_field("others", DataType::Binary),
    ])
});

/// The Arrow type of a column of ours in the stream that ClickHouse gets.
fn laid_out(field: &FieldRef) -> FieldRef {
    let kind = match field.data_type() {
        kind if *kind == attributes_type() => DataType::Struct(MAPS.clone()),
        DataType::List(item) => DataType::List(laid_out(item)),
        DataType::Struct(fields) => {
            let absent = field.is_nullable();
            DataType::Struct(fields.iter().map(|item| laid_out(&part(item, absent))).collect())
        }
        kind => kind.clone(),
    };
    let nullable = field.is_nullable() && !matches!(kind, DataType::Struct(_));
    Arc::new(Field::new(field.name(), kind, nullable))
}

static LAYOUTS: LazyLock<[SchemaRef; Table::COUNT]> = LazyLock::new(|| {
    Table::ALL.map(|table| {
        let dictionary = |name: &str| Arc::new(Field::new(name, text_dictionary_type(), false));
        let received = DataType::Timestamp(arrow::datatypes::TimeUnit::Second, Some("UTC".into()));
        let mut fields = vec![dictionary("tenant"), Arc::new(Field::new("received_at", received, false))];
        fields.extend(schema(table).fields().iter().map(laid_out));
        fields.push(map_field("resource_attributes", text_dictionary_type()));
        fields.extend([dictionary("scope_name"), dictionary("scope_version")]);
        fields.push(map_field("scope_attributes", text_dictionary_type()));
        fields.extend([dictionary("resource_schema_url"), dictionary("scope_schema_url")]);
        Arc::new(Schema::new(fields))
    })
});

/// The schema of the batches that [`lay_out`] makes.
#[must_use]
pub fn layout(table: Table) -> SchemaRef {
    Arc::clone(&LAYOUTS[table.index()])
}

/// Rows of several tenants as one batch in the layout of the table in ClickHouse.
///
/// # Errors
/// When a batch is not of the table's schema, or they do not fit into one.
pub fn lay_out(table: Table, parts: &[(&TenantId, RecordBatch)], at: Timestamp) -> Result<RecordBatch, ArrowError> {
    let own = schema(table);
    let batch = concat_batches(&own, parts.iter().map(|(_, batch)| batch))?;
    let rows = batch.num_rows();
    let mut tenants = Texts::default();
    for (tenant, batch) in parts {
        let key = tenants.intern(tenant.as_str());
        tenants.keys.extend(std::iter::repeat_n(key, batch.num_rows()));
    }
    let seconds = at.0.div_euclid(Timestamp::NANOS_PER_SECOND);
    let received = TimestampSecondArray::from_value(seconds, rows).with_timezone("UTC");
    let mut columns: Vec<ArrayRef> = vec![tenants.finish(), Arc::new(received)];
    for (field, column) in own.fields().iter().zip(batch.columns()) {
        columns.push(convert(field, column)?);
    }
    let context = |name: &str| batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(name.to_owned()));
    let (resource, scope) = (context("resource")?, context("scope")?);
    columns.push(context_attributes(resource, "resource_attributes")?);
    columns.push(of_contexts(scope, |context| context.scope_name().to_owned())?);
    columns.push(of_contexts(scope, |context| context.scope_version().to_owned())?);
    columns.push(context_attributes(scope, "scope_attributes")?);
    columns.push(of_contexts(resource, |context| context.schema_url.to_owned())?);
    columns.push(of_contexts(scope, |context| context.schema_url.to_owned())?);
    RecordBatch::try_new(layout(table), columns)
}

fn convert(field: &FieldRef, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match field.data_type() {
        kind if *kind == attributes_type() => attributes(column),
        DataType::List(item) if item.data_type().is_nested() => {
            let list = column.as_list::<i32>();
            let items = convert(item, list.values())?;
            let list = ListArray::try_new(laid_out(item), list.offsets().clone(), items, list.nulls().cloned())?;
            Ok(Arc::new(list))
        }
        DataType::Struct(fields) => {
            let parts = column.as_struct();
            let DataType::Struct(laid_out) = laid_out(field).data_type().clone() else {
                unreachable!("it is a struct")
            };
            let columns = fields.iter().zip(parts.columns()).map(|(item, column)| {
                let column = convert(item, column)?;
                Ok(if item.data_type().is_nested() { column } else { absent_with(&column, parts.nulls())? })
            });
            let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(laid_out, columns, None, parts.len())?))
        }
        DataType::Dictionary(_, _) => distinct(column),
        _ => Ok(Arc::clone(column)),
    }
}

/// A dictionary without values that are there twice, as they are when batches were put together: ClickHouse refuses them.
fn distinct(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let dictionary = column.as_dictionary::<Int32Type>();
    let values = dictionary.values();
    let bytes = |index: usize| match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().value(index).as_bytes(),
        _ => values.as_binary::<i32>().value(index),
    };
    let mut known: HashMap<&[u8], i32> = HashMap::with_capacity(values.len());
    let mut kept: Vec<u32> = Vec::with_capacity(values.len());
    let mut renamed: Vec<i32> = Vec::with_capacity(values.len());
    for index in 0..values.len() {
        let next = i32::try_from(kept.len()).expect("a dictionary has no more values than keys");
        let key = *known.entry(bytes(index)).or_insert(next);
        if key == next {
            kept.push(u32::try_from(index).expect("a dictionary has no more values than keys"));
        }
        renamed.push(key);
    }
    if kept.len() == values.len() {
        return Ok(Arc::clone(column));
    }
    let rename = |key: i32| renamed.get(key.unsigned_abs() as usize).copied().unwrap_or(0);
    let keys: Int32Array = dictionary.keys().unary(rename);
    let values = take(values, &UInt32Array::from(kept), None)?;
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values)?))
}

/// A column that is null where the struct around it is.
fn absent_with(column: &ArrayRef, around: Option<&NullBuffer>) -> Result<ArrayRef, ArrowError> {
    if around.is_none() {
        return Ok(Arc::clone(column));
    }
    let nulls = NullBuffer::union(column.nulls(), around);
    let data = column.to_data().into_builder().nulls(nulls).build()?;
    Ok(arrow::array::make_array(data))
}

/// A column of text as a dictionary.
#[derive(Default)]
struct Texts {
    known: HashMap<String, i32>,
    values: Vec<String>,
    keys: Vec<i32>,
}

impl Texts {
    fn intern(&mut self, text: &str) -> i32 {
        if let Some(key) = self.known.get(text) {
            return *key;
        }
        let key = i32::try_from(self.values.len()).expect("a batch has fewer distinct texts than Arrow has keys");
        self.known.insert(text.to_owned(), key);
        self.values.push(text.to_owned());
        key
    }

    fn finish(self) -> ArrayRef {
        let values = StringArray::from_iter_values(self.values);
        Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(self.keys), Arc::new(values)))
    }
}

fn map(field: &FieldRef, ends: OffsetBuffer<i32>, keys: Texts, values: ArrayRef) -> Result<ArrayRef, ArrowError> {
    let DataType::Map(entries, _) = field.data_type() else { unreachable!("it is a map") };
    let DataType::Struct(fields) = entries.data_type() else { unreachable!("entries are a struct") };
    let entries_array = StructArray::try_new(fields.clone(), vec![keys.finish(), values], None)?;
    Ok(Arc::new(MapArray::try_new(Arc::clone(entries), ends, entries_array, None, false)?))
}

/// The keys of one shape, as keys of the dictionaries of the maps.
#[derive(Default)]
struct Slots {
    strings: Vec<i32>,
    /// Integers and truth values share a list; the second is whether it is one of the latter.
    ints: Vec<(i32, bool)>,
    doubles: Vec<i32>,
    others: Vec<i32>,
}

/// The values of a row of a list, which are counted by its shape.
fn checked(list: &ListArray, row: usize, expected: usize) -> Result<std::ops::Range<usize>, ArrowError> {
    let ends = list.value_offsets();
    let (start, end) = (ends[row].unsigned_abs() as usize, ends[row + 1].unsigned_abs() as usize);
    if end - start == expected {
        Ok(start..end)
    } else {
        let reason = format!("row {row} has {} attribute values where its shape has {expected}", end - start);
        Err(ArrowError::InvalidArgumentError(reason))
    }
}

fn attributes(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let wrong = || ArrowError::SchemaError("attributes are not of their type".to_owned());
    let view = AttributesView::new(column).ok_or_else(wrong)?;
    let parts = column.as_struct();
    let [strings, ints, doubles, others] = [1, 2, 3, 4].map(|index| parts.column(index).as_list::<i32>());
    let (mut string_keys, mut int_keys, mut bool_keys) = (Texts::default(), Texts::default(), Texts::default());
    let (mut double_keys, mut other_keys) = (Texts::default(), Texts::default());
    let slots: Vec<Slots> = view
        .shapes()
        .iter()
        .map(|shape| {
            let mut slots = Slots::default();
            for entry in shape {
                match entry.kind {
                    Kind::Absent | Kind::Empty => {}
                    Kind::String => slots.strings.push(string_keys.intern(&entry.key)),
                    Kind::Int => slots.ints.push((int_keys.intern(&entry.key), false)),
                    Kind::Bool => slots.ints.push((bool_keys.intern(&entry.key), true)),
                    Kind::Double => slots.doubles.push(double_keys.intern(&entry.key)),
                    Kind::Bytes | Kind::Array | Kind::KvList => slots.others.push(other_keys.intern(&entry.key)),
                }
            }
            slots
        })
        .collect();

    let int_values = ints.values().as_primitive::<arrow::datatypes::Int64Type>();
    let (mut int_column, mut bool_column) = (Vec::with_capacity(int_values.len()), Vec::new());
    let (mut int_ends, mut bool_ends) = (vec![0], vec![0]);
    let end = |length: usize| i32::try_from(length).expect("a part of a column is not longer than the column");
    let none = Slots::default();
    for row in 0..view.len() {
        let slots = view.shape_of(row).and_then(|shape| slots.get(shape)).unwrap_or(&none);
        checked(strings, row, slots.strings.len())?;
        string_keys.keys.extend_from_slice(&slots.strings);
        let range = checked(ints, row, slots.ints.len())?;
        for (at, (key, is_bool)) in range.zip(&slots.ints) {
            if *is_bool {
                bool_keys.keys.push(*key);
                bool_column.push(int_values.value(at) != 0);
            } else {
                int_keys.keys.push(*key);
                int_column.push(int_values.value(at));
            }
        }
        int_ends.push(end(int_column.len()));
        bool_ends.push(end(bool_column.len()));
        checked(doubles, row, slots.doubles.len())?;
        double_keys.keys.extend_from_slice(&slots.doubles);
        checked(others, row, slots.others.len())?;
        other_keys.keys.extend_from_slice(&slots.others);
    }
    let (string_ends, string_values) = whole(strings);
    let (double_ends, double_values) = whole(doubles);
    let (other_ends, other_values) = whole(others);
    let ends = |ends: Vec<i32>| OffsetBuffer::new(ends.into());
    let columns = vec![
        distinct(parts.column(0))?,
        map(&MAPS[1], string_ends, string_keys, string_values)?,
        map(&MAPS[2], ends(int_ends), int_keys, Arc::new(Int64Array::from(int_column)))?,
        map(&MAPS[3], ends(bool_ends), bool_keys, Arc::new(BooleanArray::from(bool_column)))?,
        map(&MAPS[4], double_ends, double_keys, double_values)?,
        map(&MAPS[5], other_ends, other_keys, other_values)?,
    ];
    Ok(Arc::new(StructArray::try_new_with_length(MAPS.clone(), columns, None, view.len())?))
}

/// A list's values and ends, as if it began at its first value.
fn whole(list: &ListArray) -> (OffsetBuffer<i32>, ArrayRef) {
    let ends = list.value_offsets();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    let values = list.values().slice(first.unsigned_abs() as usize, (last - first).unsigned_abs() as usize);
    let ends: Vec<i32> = ends.iter().map(|end| end - first).collect();
    (OffsetBuffer::new(ends.into()), values)
}

/// The contexts of a column, each distinct one once, and which of them each row has.
fn contexts(column: &ArrayRef) -> Result<(&Int32Array, Vec<Option<Context<'_>>>), ArrowError> {
    if *column.data_type() != context_type() {
        return Err(ArrowError::SchemaError("a context is not of its type".to_owned()));
    }
    let dictionary = column.as_dictionary::<Int32Type>();
    let values = dictionary.values().as_binary::<i32>();
    Ok((dictionary.keys(), values.iter().map(|bytes| Context::parse(bytes?)).collect()))
}

/// A text of each row's context; empty when it has none.
fn of_contexts(column: &ArrayRef, text: impl Fn(&Context<'_>) -> String) -> Result<ArrayRef, ArrowError> {
    let (keys, contexts) = contexts(column)?;
    let mut texts = Texts::default();
    let empty = texts.intern("");
    let known: Vec<i32> =
        contexts.iter().map(|context| context.as_ref().map_or(empty, |context| texts.intern(&text(context)))).collect();
    for key in keys {
        texts.keys.push(key.and_then(|key| known.get(key.unsigned_abs() as usize).copied()).unwrap_or(empty));
    }
    Ok(texts.finish())
}

fn context_attributes(column: &ArrayRef, name: &str) -> Result<ArrayRef, ArrowError> {
    let (rows, contexts) = contexts(column)?;
    let (mut keys, mut values) = (Texts::default(), Texts::default());
    let known: Vec<Vec<(i32, i32)>> = contexts
        .iter()
        .map(|context| {
            let Some(context) = context else { return Vec::new() };
            let mut entries: Vec<(i32, i32)> = Vec::new();
            for entry in context.attributes() {
                let value = entry.parsed();
                let text = Value::to_text(&value).unwrap_or_default();
                entries.push((keys.intern(entry.key), values.intern(&text)));
            }
            entries
        })
        .collect();
    let mut ends = vec![0];
    for row in rows {
        let entries = row.and_then(|row| known.get(row.unsigned_abs() as usize)).map_or(&[][..], Vec::as_slice);
        keys.keys.extend(entries.iter().map(|entry| entry.0));
        values.keys.extend(entries.iter().map(|entry| entry.1));
        let end = i32::try_from(keys.keys.len());
        ends.push(end.map_err(|_| ArrowError::InvalidArgumentError(format!("too many {name}")))?);
    }
    let field = map_field(name, text_dictionary_type());
    map(&field, OffsetBuffer::new(ends.into()), keys, values.finish())
}

#[cfg(test)]
mod tests {
    use model::attributes::AttributesColumn;
    use proptest::prelude::*;

    use super::*;

    /// A value that owns what it has.
    #[derive(Clone, Debug)]
    enum Owned {
        Absent,
        Empty,
        Text(String),
        Bool(bool),
        Int(i64),
        Double(f64),
        Bytes(Vec<u8>),
    }

    impl Owned {
        fn value(&self) -> Option<Value<'_>> {
            Some(match self {
                Self::Absent => return None,
                Self::Empty => Value::Empty,
                Self::Text(text) => Value::String(text),
                Self::Bool(value) => Value::Bool(*value),
                Self::Int(value) => Value::Int(*value),
                Self::Double(value) => Value::Double(*value),
                Self::Bytes(bytes) => Value::Bytes(bytes),
            })
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        prop_oneof![
            Just(Owned::Absent),
            Just(Owned::Empty),
            ".{0,4}".prop_map(Owned::Text),
            any::<bool>().prop_map(Owned::Bool),
            any::<i64>().prop_map(Owned::Int),
            any::<f64>().prop_map(Owned::Double),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Owned::Bytes),
        ]
    }

    /// The entries of a map of a row, in order: key, and which value.
    fn entries(maps: &StructArray, index: usize, row: usize) -> Vec<(String, ArrayRef)> {
        let map = maps.column(index).as_map();
        let entry = map.value(row);
        let keys = entry.column(0).as_dictionary::<Int32Type>();
        let texts = keys.values().as_string::<i32>();
        let key = |at: usize| texts.value(keys.keys().value(at).unsigned_abs() as usize).to_owned();
        (0..entry.len()).map(|at| (key(at), entry.column(1).slice(at, 1))).collect()
    }

    proptest! {
        #[test]
        fn shape_and_maps_have_the_attributes_exactly(
            rows in prop::collection::vec(prop::collection::vec(("[ab]{1,2}", owned()), 0..6), 0..8),
            skipped in 0..3_usize,
        ) {
            let mut column = AttributesColumn::default();
            for row in &rows {
                for (key, value) in row {
                    column.push(key, value.value()).unwrap();
                }
                column.end_row();
            }
            let skipped = skipped.min(rows.len());
            // A part of a column has ends that do not begin at zero.
            let converted = attributes(&column.finish().slice(skipped, rows.len() - skipped)).unwrap();
            let maps = converted.as_struct();
            let shapes = maps.column(0).as_dictionary::<Int32Type>();
            for (row, expected) in rows[skipped..].iter().enumerate() {
                let shape = shapes.values().as_binary::<i32>().value(shapes.keys().value(row).unsigned_abs() as usize);
                let mut of_kind: Vec<std::vec::IntoIter<(String, ArrayRef)>> =
                    (0..6).map(|index| if index == 0 { Vec::new() } else { entries(maps, index, row) }.into_iter()).collect();
                let mut next = |index: usize| of_kind[index].next().unwrap();
                let entries = model::attributes::shape_entries(shape);
                prop_assert_eq!(entries.len(), expected.len());
                for (entry, (key, value)) in entries.iter().zip(expected) {
                    prop_assert_eq!(&entry.key, key);
                    let index = match entry.kind {
                        Kind::Absent | Kind::Empty => {
                            prop_assert!(matches!(value, Owned::Absent | Owned::Empty));
                            continue;
                        }
                        Kind::String => 1,
                        Kind::Int => 2,
                        Kind::Bool => 3,
                        Kind::Double => 4,
                        Kind::Bytes | Kind::Array | Kind::KvList => 5,
                    };
                    let (found, array) = next(index);
                    prop_assert_eq!(&found, key);
                    let same = match value {
                        Owned::Text(text) => array.as_string::<i32>().value(0) == text,
                        Owned::Int(value) => array.as_primitive::<arrow::datatypes::Int64Type>().value(0) == *value,
                        Owned::Bool(value) => array.as_boolean().value(0) == *value,
                        Owned::Double(value) => {
                            array.as_primitive::<arrow::datatypes::Float64Type>().value(0).to_bits() == value.to_bits()
                        }
                        Owned::Bytes(bytes) => array.as_binary::<i32>().value(0) == bytes,
                        Owned::Absent | Owned::Empty => false,
                    };
                    prop_assert!(same, "{value:?} is {array:?}");
                }
                prop_assert!(of_kind.iter_mut().all(|rest| rest.next().is_none()), "nothing is left over");
            }
        }
    }
}
