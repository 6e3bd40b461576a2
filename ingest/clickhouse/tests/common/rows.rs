//! Rows of any table from a seed: random within their types, with the ends of every type and text that breaks parsers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StructArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, TimeUnit};
use model::attributes::{AttributesColumn, attributes_type};
use model::columns::{DictionaryColumn, OptionalBytesColumn};
use model::context::{ContextKind, context_type, encode};
use model::schema::schema;
use model::signal::Table;
use model::value::Value;
use model::wire::put_bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const TEXTS: [&str; 12] = [
    "",
    "GET /cart",
    "\0",
    "tab\tline\nreturn\r",
    "quote ' double \" back \\ tick `",
    "{\"a\": [1, null]}",
    "'); DROP TABLE spans; --",
    "\\N",
    "é 漢字 🦀 \u{202e}",
    "NULL",
    "a.b.c",
    "%00 ${x} {ttl:spans} ?",
];

/// Random rows of a table; `numbered` ones can be told apart.
pub(crate) fn rows(table: Table, count: usize, seed: u64, around: i64) -> RecordBatch {
    let mut rng = SmallRng::seed_from_u64(seed);
    let schema = schema(table);
    let columns = schema.fields().iter().map(|field| array(field, count, &mut rng, around)).collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

/// Rows whose `span_id`, or `series_id`, counts up from `first`; their time is `at`.
pub(crate) fn numbered(table: Table, count: usize, first: u64, at: i64) -> RecordBatch {
    let batch = rows(table, count, first, at);
    let schema = batch.schema();
    let mut columns = batch.columns().to_vec();
    let name = if table == Table::MetricPoints { "series_id" } else { "span_id" };
    let ids: Vec<u8> = (first..first + count as u64).flat_map(u64::to_be_bytes).collect();
    columns[schema.index_of(name).unwrap()] = Arc::new(FixedSizeBinaryArray::new(8, Buffer::from_vec(ids), None));
    let times = TimestampNanosecondArray::from_value(at, count).with_timezone("UTC");
    columns[schema.index_of(table.time_column()).unwrap()] = Arc::new(times);
    RecordBatch::try_new(schema, columns).unwrap()
}

fn text(rng: &mut SmallRng) -> String {
    TEXTS[rng.random_range(0..TEXTS.len())].repeat(rng.random_range(1..3))
}

fn nulls(field: &Field, count: usize, rng: &mut SmallRng) -> Option<NullBuffer> {
    field.is_nullable().then(|| NullBuffer::from_iter((0..count).map(|_| rng.random_bool(0.7))))
}

fn some<T: Copy>(ends: &[T], rng: &mut SmallRng, random: impl Fn(&mut SmallRng) -> T) -> T {
    if rng.random_bool(0.5) { ends[rng.random_range(0..ends.len())] } else { random(rng) }
}

fn resource(rng: &mut SmallRng) -> Vec<u8> {
    let mut message = Vec::new();
    for key in ["service.name", "k8s.pod.name"] {
        let (mut value, mut entry) = (Vec::new(), Vec::new());
        put_bytes(&mut value, 1, text(rng).as_bytes());
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &value);
        put_bytes(&mut message, 1, &entry);
    }
    encode(ContextKind::Resource, &message, "https://x/1")
}

fn array(field: &Field, count: usize, rng: &mut SmallRng, around: i64) -> ArrayRef {
    if field.data_type() == &attributes_type() {
        return attributes(count, rng);
    }
    let nulls = nulls(field, count, rng);
    let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    match field.data_type() {
        dictionary @ DataType::Dictionary(_, values) => {
            let mut column = DictionaryColumn::default();
            for row in 0..count {
                if !valid(row) {
                    column.push_null();
                } else if dictionary == &context_type() {
                    column.push(&resource(rng));
                } else {
                    column.push(text(rng).as_bytes());
                }
            }
            if **values == DataType::Utf8 { column.finish_utf8() } else { column.finish_binary() }
        }
        kind @ (DataType::Utf8 | DataType::Binary) => {
            let mut column = OptionalBytesColumn::default();
            for row in 0..count {
                let value = if kind == &DataType::Utf8 { text(rng).into_bytes() } else { vec![0xff, 0, rng.random()] };
                column.push(valid(row).then_some(&value[..]));
            }
            if kind == &DataType::Utf8 { column.finish_utf8() } else { column.finish_binary() }
        }
        DataType::FixedSizeBinary(width) => {
            let data = (0..count).flat_map(|row| vec![if valid(row) { rng.random() } else { 0_u8 }; *width as usize]);
            Arc::new(FixedSizeBinaryArray::new(*width, Buffer::from_vec(data.collect()), nulls))
        }
        DataType::Timestamp(_, _) => {
            let ends = [0, 1, around, i64::MAX];
            let values: Vec<i64> = (0..count).map(|_| some(&ends, rng, |rng| rng.random_range(0..i64::MAX))).collect();
            Arc::new(TimestampNanosecondArray::new(values.into(), nulls).with_timezone("UTC"))
        }
        DataType::Int64 => {
            let values = (0..count).map(|_| some(&[i64::MIN, -1, 0, i64::MAX], rng, SmallRng::random));
            Arc::new(Int64Array::new(values.collect(), nulls))
        }
        DataType::UInt64 => {
            let values = (0..count).map(|_| some(&[0, 1 << 63, u64::MAX], rng, SmallRng::random));
            Arc::new(UInt64Array::new(values.collect(), nulls))
        }
        DataType::Int32 => {
            let values = (0..count).map(|_| some(&[i32::MIN, 0, i32::MAX], rng, SmallRng::random));
            Arc::new(Int32Array::new(values.collect(), nulls))
        }
        DataType::UInt32 => {
            let values = (0..count).map(|_| some(&[0, u32::MAX], rng, SmallRng::random));
            Arc::new(UInt32Array::new(values.collect(), nulls))
        }
        DataType::Float64 => {
            let ends = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE / 2.0, f64::MAX];
            let values = (0..count).map(|_| some(&ends, rng, SmallRng::random));
            Arc::new(Float64Array::new(values.collect(), nulls))
        }
        DataType::Boolean => {
            let values: Vec<bool> = (0..count).map(|_| rng.random()).collect();
            Arc::new(BooleanArray::new(values.into(), nulls))
        }
        DataType::List(item) => {
            let lengths: Vec<usize> = (0..count).map(|_| rng.random_range(0..4)).collect();
            let items = array(item, lengths.iter().sum(), rng, around);
            Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::from_lengths(lengths), items, nulls))
        }
        DataType::Struct(fields) => {
            let children = fields.iter().map(|child| array(child, count, rng, around)).collect();
            Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls, count).unwrap())
        }
        other => panic!("no table has a column of type {other}"),
    }
}

fn attributes(count: usize, rng: &mut SmallRng) -> ArrayRef {
    let mut column = AttributesColumn::default();
    for _ in 0..count {
        for _ in 0..rng.random_range(0..5) {
            let owned = text(rng);
            let value = match rng.random_range(0..7) {
                0 => None,
                1 => Some(Value::Empty),
                2 => Some(Value::Bool(rng.random())),
                3 => Some(Value::Int(some(&[i64::MIN, i64::MAX], rng, SmallRng::random))),
                4 => Some(Value::Double(some(&[f64::NAN, -0.0], rng, SmallRng::random))),
                5 => Some(Value::Bytes(&[0xff, 0, 0x80])),
                _ => Some(Value::String(&owned)),
            };
            // Some keys come twice in a row.
            column.push(&format!("key.{}", text(rng)), value).unwrap();
        }
        column.end_row();
    }
    column.finish()
}

/// A value as text that tells any two different ones apart, whether dictionaries and text are what they are or plain bytes.
pub(crate) fn show(array: &dyn Array, row: usize, out: &mut String) {
    use std::fmt::Write as _;
    if array.is_null(row) {
        out.push('~');
        return;
    }
    let bytes = |out: &mut String, bytes: &[u8]| write!(out, "\"{}\"", bytes.escape_ascii()).unwrap();
    match array.data_type() {
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_dictionary::<Int32Type>();
            show(dictionary.values(), dictionary.keys().value(row).unsigned_abs() as usize, out);
        }
        DataType::Utf8 => bytes(out, array.as_string::<i32>().value(row).as_bytes()),
        DataType::Binary => bytes(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(out, array.as_binary::<i64>().value(row)),
        DataType::FixedSizeBinary(_) => bytes(out, array.as_fixed_size_binary().value(row)),
        DataType::Boolean => write!(out, "{}", array.as_boolean().value(row)).unwrap(),
        DataType::Float64 => {
            let value = array.as_primitive::<arrow::datatypes::Float64Type>().value(row);
            write!(out, "{value}:{:x}", value.to_bits()).unwrap();
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let times = array.as_primitive::<arrow::datatypes::TimestampNanosecondType>();
            write!(out, "{}", times.value(row)).unwrap();
        }
        DataType::Timestamp(TimeUnit::Second, _) => {
            write!(out, "{}", array.as_primitive::<arrow::datatypes::TimestampSecondType>().value(row)).unwrap();
        }
        DataType::Int64 => write!(out, "{}", array.as_primitive::<arrow::datatypes::Int64Type>().value(row)).unwrap(),
        DataType::Int32 => write!(out, "{}", array.as_primitive::<Int32Type>().value(row)).unwrap(),
        DataType::UInt64 => write!(out, "{}", array.as_primitive::<arrow::datatypes::UInt64Type>().value(row)).unwrap(),
        DataType::UInt32 => write!(out, "{}", array.as_primitive::<arrow::datatypes::UInt32Type>().value(row)).unwrap(),
        DataType::List(_) => show_all(&*array.as_list::<i32>().value(row), out),
        DataType::Map(_, _) => show_all(&array.as_map().value(row), out),
        DataType::Struct(_) => {
            out.push('(');
            for column in array.as_struct().columns() {
                show(column, row, out);
                out.push(',');
            }
            out.push(')');
        }
        other => panic!("{other} is not expected"),
    }
}

fn show_all(array: &dyn Array, out: &mut String) {
    out.push('[');
    for row in 0..array.len() {
        show(array, row, out);
        out.push(' ');
    }
    out.push(']');
}
