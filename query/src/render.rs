//! Answers as JSON, NDJSON, CSV, Arrow and Parquet: ids as hex, attributes as objects, times as RFC 3339.
//!
//! One walk (`Cell`) decides how a value is shown; the formats differ only in how they quote and
//! join. Not here: HTTP, the JSON envelope around the rows, and the files of Arrow and Parquet.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, DictionaryArray, FixedSizeBinaryArray, ListArray, RecordBatch, StringArray,
    StringBuilder, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema,
    SchemaRef, TimeUnit, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;
use model::attributes::{AttributesView, attributes_type};
use model::context::{Context, context_type};
use model::value::write_json_string;

/// The type of a column in SQL's words: `text`, `bigint`, `double`, `boolean`, `timestamp`,
/// `json`, `hex`, `bytes`, `integer`, `interval`, or Arrow's name for what is rarer than these.
#[must_use]
pub fn type_name(data_type: &DataType) -> String {
    if *data_type == attributes_type() || *data_type == context_type() {
        return "json".to_owned();
    }
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Int64 | DataType::UInt64 => "bigint".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => {
            "integer".to_owned()
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "double".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Interval(_) | DataType::Duration(_) => "interval".to_owned(),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            "decimal".to_owned()
        }
        DataType::FixedSizeBinary(_) => "hex".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytes".to_owned(),
        DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::Map(..) => "json".to_owned(),
        DataType::Dictionary(_, value) => type_name(value),
        DataType::Null => "null".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// A column of one batch, ready to write any of its rows.
enum Cell<'a> {
    Null,
    Bool(&'a arrow::array::BooleanArray),
    Text(&'a StringArray),
    Integer(&'a ArrayRef, fn(&ArrayRef, usize, &mut String)),
    Double(arrow::array::Float64Array),
    Time(arrow::array::TimestampNanosecondArray),
    Hex(&'a FixedSizeBinaryArray),
    Bytes(BinaryArray),
    Attributes(AttributesView<'a>),
    /// The JSON of each distinct context.
    Context(&'a DictionaryArray<Int32Type>, Vec<Option<String>>),
    Dictionary(&'a dyn Array, Vec<usize>, Box<Cell<'a>>),
    List(&'a ListArray, Box<Cell<'a>>),
    Struct(&'a StructArray, Vec<(String, Cell<'a>)>),
    Other(&'a ArrayRef, ArrayFormatter<'a>),
    OwnedText(StringArray),
}

fn write_integer<T: ArrowPrimitiveType>(array: &ArrayRef, row: usize, out: &mut String)
where
    T::Native: std::fmt::Display,
{
    write!(out, "{}", array.as_primitive::<T>().value(row)).expect("a String takes everything");
}

impl<'a> Cell<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self, ArrowError> {
        if let Some(view) = AttributesView::new(array.as_ref()) {
            return Ok(Self::Attributes(view));
        }
        let data_type = array.data_type();
        if *data_type == context_type() {
            let dictionary = array.as_dictionary::<Int32Type>();
            let values: &BinaryArray = dictionary.values().as_binary();
            let texts = values.iter().map(|bytes| {
                let context = Context::parse(bytes?)?;
                let mut text = String::new();
                context.write_json(&mut text);
                Some(text)
            });
            return Ok(Self::Context(dictionary, texts.collect()));
        }
        Ok(match data_type {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::LargeUtf8 | DataType::Utf8View => {
                Self::OwnedText(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
            }
            DataType::Int8 => Self::Integer(array, write_integer::<Int8Type>),
            DataType::Int16 => Self::Integer(array, write_integer::<Int16Type>),
            DataType::Int32 => Self::Integer(array, write_integer::<Int32Type>),
            DataType::Int64 => Self::Integer(array, write_integer::<Int64Type>),
            DataType::UInt8 => Self::Integer(array, write_integer::<UInt8Type>),
            DataType::UInt16 => Self::Integer(array, write_integer::<UInt16Type>),
            DataType::UInt32 => Self::Integer(array, write_integer::<UInt32Type>),
            DataType::UInt64 => Self::Integer(array, write_integer::<UInt64Type>),
            DataType::Float64 => Self::Double(array.as_primitive::<Float64Type>().clone()),
            DataType::Float16 | DataType::Float32 => {
                let wide = cast(&cast(array, &DataType::Float32)?, &DataType::Float64)?;
                debug_assert!(Float32Type::DATA_TYPE == DataType::Float32);
                Self::Double(wide.as_primitive::<Float64Type>().clone())
            }
            DataType::Timestamp(_, zone) => {
                let nanos = DataType::Timestamp(TimeUnit::Nanosecond, zone.clone());
                Self::Time(cast(array, &nanos)?.as_primitive().clone())
            }
            DataType::FixedSizeBinary(_) => Self::Hex(array.as_fixed_size_binary()),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                Self::Bytes(cast(array, &DataType::Binary)?.as_binary::<i32>().clone())
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                let keys =
                    if dictionary.values().is_empty() { vec![0; array.len()] } else { dictionary.normalized_keys() };
                Self::Dictionary(array.as_ref(), keys, Box::new(Self::new(dictionary.values())?))
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Self::List(list, Box::new(Self::new(list.values())?))
            }
            DataType::Struct(fields) => {
                let rows = array.as_struct();
                let columns = fields.iter().zip(rows.columns());
                let columns = columns.map(|(field, column)| Ok((field.name().clone(), Self::new(column)?)));
                Self::Struct(rows, columns.collect::<Result<_, ArrowError>>()?)
            }
            _ => Self::Other(array, ArrayFormatter::try_new(array.as_ref(), &FormatOptions::default())?),
        })
    }

    /// Appends the value as JSON.
    fn json(&self, row: usize, out: &mut String) {
        let before = out.len();
        let present = match self {
            Self::Null => false,
            Self::Bool(array) => {
                array.is_valid(row).then(|| out.push_str(if array.value(row) { "true" } else { "false" })).is_some()
            }
            Self::Text(array) => array.is_valid(row).then(|| write_json_string(array.value(row), out)).is_some(),
            Self::OwnedText(array) => array.is_valid(row).then(|| write_json_string(array.value(row), out)).is_some(),
            Self::Integer(array, write) => array.is_valid(row).then(|| write(array, row, out)).is_some(),
            Self::Double(array) => array.is_valid(row).then(|| write_double(array.value(row), true, out)).is_some(),
            Self::Time(array) => array
                .is_valid(row)
                .then(|| {
                    out.push('"');
                    write_time(array.value(row), out);
                    out.push('"');
                })
                .is_some(),
            Self::Hex(array) => array
                .is_valid(row)
                .then(|| {
                    out.push('"');
                    write_hex(array.value(row), out);
                    out.push('"');
                })
                .is_some(),
            Self::Bytes(array) => array
                .is_valid(row)
                .then(|| {
                    out.push('"');
                    base64::engine::general_purpose::STANDARD.encode_string(array.value(row), out);
                    out.push('"');
                })
                .is_some(),
            Self::Attributes(view) => view.write_json(row, out),
            Self::Context(dictionary, texts) => match dictionary.key(row).and_then(|key| texts[key].as_ref()) {
                Some(text) => {
                    out.push_str(text);
                    true
                }
                None => false,
            },
            Self::Dictionary(array, keys, values) => array.is_valid(row).then(|| values.json(keys[row], out)).is_some(),
            Self::List(list, items) => list
                .is_valid(row)
                .then(|| {
                    let ends = list.value_offsets();
                    out.push('[');
                    for item in ends[row]..ends[row + 1] {
                        if item > ends[row] {
                            out.push(',');
                        }
                        items.json(item.unsigned_abs() as usize, out);
                    }
                    out.push(']');
                })
                .is_some(),
            Self::Struct(array, columns) => array
                .is_valid(row)
                .then(|| {
                    out.push('{');
                    for (index, (name, column)) in columns.iter().enumerate() {
                        if index > 0 {
                            out.push(',');
                        }
                        write_json_string(name, out);
                        out.push(':');
                        column.json(row, out);
                    }
                    out.push('}');
                })
                .is_some(),
            Self::Other(array, formatter) => array
                .is_valid(row)
                .then(|| {
                    write_json_string(&formatter.value(row).to_string(), out);
                })
                .is_some(),
        };
        if !present {
            out.truncate(before);
            out.push_str("null");
        }
    }

    /// Appends the value as plain text; `false`, and nothing appended, when it is null.
    fn text(&self, row: usize, out: &mut String) -> bool {
        match self {
            Self::Text(array) if array.is_valid(row) => out.push_str(array.value(row)),
            Self::OwnedText(array) if array.is_valid(row) => out.push_str(array.value(row)),
            Self::Time(array) if array.is_valid(row) => write_time(array.value(row), out),
            Self::Hex(array) if array.is_valid(row) => write_hex(array.value(row), out),
            Self::Double(array) if array.is_valid(row) => write_double(array.value(row), false, out),
            Self::Bytes(array) if array.is_valid(row) => {
                base64::engine::general_purpose::STANDARD.encode_string(array.value(row), out);
            }
            Self::Other(array, formatter) if array.is_valid(row) => {
                write!(out, "{}", formatter.value(row)).expect("a String takes everything");
            }
            Self::Dictionary(array, keys, values) if array.is_valid(row) => return values.text(keys[row], out),
            Self::Text(_)
            | Self::OwnedText(_)
            | Self::Time(_)
            | Self::Hex(_)
            | Self::Double(_)
            | Self::Bytes(_)
            | Self::Other(..)
            | Self::Dictionary(..)
            | Self::Null => return false,
            Self::Bool(_)
            | Self::Integer(..)
            | Self::Attributes(_)
            | Self::Context(..)
            | Self::List(..)
            | Self::Struct(..) => {
                let before = out.len();
                self.json(row, out);
                if &out[before..] == "null" {
                    out.truncate(before);
                    return false;
                }
            }
        }
        true
    }

    /// Whether the value is somebody's text, which a spreadsheet might take for a formula.
    fn is_text(&self) -> bool {
        match self {
            Self::Text(_) | Self::OwnedText(_) => true,
            Self::Dictionary(_, _, values) => values.is_text(),
            _ => false,
        }
    }
}

fn write_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a String takes everything");
    }
}

fn write_double(value: f64, quote: bool, out: &mut String) {
    if value.is_finite() {
        write!(out, "{value:?}").expect("a String takes everything");
        return;
    }
    let name = if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    };
    let quote = if quote { "\"" } else { "" };
    write!(out, "{quote}{name}{quote}").expect("a String takes everything");
}

/// Appends nanoseconds since the epoch as RFC 3339 with nanoseconds, in UTC.
pub fn write_time(nanos: i64, out: &mut String) {
    const DAY: i64 = 86_400 * 1_000_000_000;
    let (day, rest) = (nanos.div_euclid(DAY), nanos.rem_euclid(DAY));
    write_date(day, out);
    let (seconds, nanos) = (rest / 1_000_000_000, rest % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    write!(out, "T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z").expect("a String takes everything");
}

/// Appends days since the epoch as a date of the proleptic Gregorian calendar, year-month-day.
pub fn write_date(day: i64, out: &mut String) {
    // Eras of 400 years that start in March, so that the leap day comes last.
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    write!(out, "{year:04}-{month:02}-{day_of_month:02}").expect("a String takes everything");
}

fn cells(batch: &RecordBatch) -> Result<Vec<Cell<'_>>, ArrowError> {
    batch.columns().iter().map(Cell::new).collect()
}

/// The columns as `[{"name":…,"type":…},…]`.
#[must_use]
pub fn columns_json(schema: &Schema) -> String {
    let mut out = String::from("[");
    for (index, field) in schema.fields().iter().enumerate() {
        out.push_str(if index > 0 { ",{\"name\":" } else { "{\"name\":" });
        write_json_string(field.name(), &mut out);
        out.push_str(",\"type\":");
        write_json_string(&type_name(field.data_type()), &mut out);
        out.push('}');
    }
    out.push(']');
    out
}

/// Appends the rows of a batch as JSON arrays, joined by commas; `first` says whether any row was
/// written before.
///
/// # Errors
/// When a column cannot be shown (a type no query makes).
pub fn rows_json(batch: &RecordBatch, first: &mut bool, out: &mut String) -> Result<(), ArrowError> {
    let cells = cells(batch)?;
    for row in 0..batch.num_rows() {
        out.push_str(if std::mem::take(first) { "\n[" } else { ",\n[" });
        for (index, cell) in cells.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            cell.json(row, out);
        }
        out.push(']');
    }
    Ok(())
}

/// Appends the rows of a batch as JSON objects, a line each.
///
/// # Errors
/// As [`rows_json`].
pub fn rows_ndjson(batch: &RecordBatch, out: &mut String) -> Result<(), ArrowError> {
    let cells = cells(batch)?;
    let schema = batch.schema();
    for row in 0..batch.num_rows() {
        for (index, (cell, field)) in cells.iter().zip(schema.fields()).enumerate() {
            out.push(if index > 0 { ',' } else { '{' });
            write_json_string(field.name(), out);
            out.push(':');
            cell.json(row, out);
        }
        out.push_str(if cells.is_empty() { "{}\n" } else { "}\n" });
    }
    Ok(())
}

/// Appends a CSV header line.
pub fn header_csv(schema: &Schema, out: &mut String) {
    for (index, field) in schema.fields().iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_csv_field(field.name(), true, out);
    }
    out.push_str("\r\n");
}

/// Appends the rows of a batch as CSV (RFC 4180). Null is an empty field, empty text is `""`.
///
/// # Errors
/// As [`rows_json`].
pub fn rows_csv(batch: &RecordBatch, out: &mut String) -> Result<(), ArrowError> {
    let cells = cells(batch)?;
    let mut text = String::new();
    for row in 0..batch.num_rows() {
        for (index, cell) in cells.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            text.clear();
            if cell.text(row, &mut text) {
                write_csv_field(&text, cell.is_text(), out);
            }
        }
        out.push_str("\r\n");
    }
    Ok(())
}

fn write_csv_field(text: &str, is_text: bool, out: &mut String) {
    // A spreadsheet runs what starts like a formula; an apostrophe makes it text again.
    let formula = is_text && text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let quote =
        text.is_empty() || text.contains(['"', ',', '\n', '\r']) || text.starts_with(' ') || text.ends_with(' ');
    if quote {
        out.push('"');
    }
    if formula {
        out.push('\'');
    }
    if quote {
        for part in text.split_inclusive('"') {
            out.push_str(part);
            if part.ends_with('"') {
                out.push('"');
            }
        }
        out.push('"');
    } else {
        out.push_str(text);
    }
}

fn is_plain(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeBinary(_) | DataType::Struct(_) | DataType::Map(..) => false,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_plain(item.data_type())
        }
        other => *other != context_type(),
    }
}

/// The schema of an answer in Arrow: as it is, but ids are hex text, and attributes, contexts and
/// anything nested that holds structs are JSON text.
#[must_use]
pub fn arrow_schema(schema: &Schema) -> SchemaRef {
    with_text_for(schema, |data_type| !is_plain(data_type))
}

/// The schema of an answer in Parquet: as in Arrow, but intervals, which Parquet cannot hold, are text.
#[must_use]
pub fn parquet_schema(schema: &Schema) -> SchemaRef {
    fn has_interval(data_type: &DataType) -> bool {
        match data_type {
            DataType::Interval(_) | DataType::Duration(_) => true,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                has_interval(item.data_type())
            }
            _ => false,
        }
    }
    with_text_for(schema, |data_type| !is_plain(data_type) || has_interval(data_type))
}

fn with_text_for(schema: &Schema, is_text: impl Fn(&DataType) -> bool) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = if is_text(field.data_type()) { DataType::Utf8 } else { field.data_type().clone() };
            // Metadata is the planner's business; a computed column may be null where a stored one is not.
            Field::new(field.name(), data_type, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A batch of an answer, of [`arrow_schema`] or [`parquet_schema`].
///
/// # Errors
/// As [`rows_json`].
pub fn arrow_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        let cell = Cell::new(column)?;
        let mut builder = StringBuilder::new();
        let mut text = String::new();
        for row in 0..column.len() {
            text.clear();
            let present = cell.text(row, &mut text);
            builder.append_option(present.then_some(&text));
        }
        Ok(Arc::new(builder.finish()) as ArrayRef)
    });
    let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A column of a batch that shows its values one by one, for formats that frame each of them.
pub struct Values<'a>(Cell<'a>);

impl<'a> Values<'a> {
    /// The values of a column.
    ///
    /// # Errors
    /// As [`rows_json`].
    pub fn new(column: &'a ArrayRef) -> Result<Self, ArrowError> {
        Cell::new(column).map(Self)
    }

    /// Text that is shown as it is, owned.
    ///
    /// # Errors
    /// When the column is not text.
    pub fn owned(column: ArrayRef) -> Result<Self, ArrowError> {
        let column = cast(&column, &DataType::Utf8)?;
        Ok(Self(Cell::OwnedText(column.as_string::<i32>().clone())))
    }

    /// Appends a value as CSV shows it, before quoting; `false`, and nothing appended, when it is null.
    pub fn text(&self, row: usize, out: &mut String) -> bool {
        self.0.text(row, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::TimestampNanosecondArray;
    use model::schema::time_type;

    #[test]
    fn times_read_as_arrow_reads_them() {
        // Arrow parses RFC 3339; what is written must read back as the same nanosecond.
        let day = 86_400_000_000_000_i64;
        let mut times = vec![0, 1, -1, i64::MAX, i64::MIN + 1, 951_782_400 * 1_000_000_000, day - 1];
        times.extend((-4_000..4_000).map(|step| step * 26 * day + step * 977));
        let texts: Vec<String> = times
            .iter()
            .map(|time| {
                let mut text = String::new();
                write_time(*time, &mut text);
                text
            })
            .collect();
        assert_eq!(texts[0], "1970-01-01T00:00:00.000000000Z");
        assert_eq!(texts[2], "1969-12-31T23:59:59.999999999Z");
        assert_eq!(texts[3], "2262-04-11T23:47:16.854775807Z");
        assert_eq!(texts[5], "2000-02-29T00:00:00.000000000Z");
        let texts: ArrayRef = Arc::new(StringArray::from(texts));
        let read = cast(&texts, &time_type()).unwrap();
        let expected: ArrayRef = Arc::new(TimestampNanosecondArray::from(times).with_timezone("UTC"));
        assert_eq!(&read, &expected);
    }

    #[test]
    fn types_have_the_names_people_know() {
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        for (data_type, name) in [
            (text, "text"),
            (DataType::Int64, "bigint"),
            (DataType::UInt32, "integer"),
            (DataType::Float64, "double"),
            (DataType::FixedSizeBinary(16), "hex"),
            (time_type(), "timestamp"),
            (attributes_type(), "json"),
            (context_type(), "json"),
            (DataType::Binary, "bytes"),
            (DataType::Null, "null"),
        ] {
            assert_eq!(type_name(&data_type), name);
        }
    }
}
