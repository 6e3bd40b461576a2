//! Values in PostgreSQL's two formats: columns of an answer on their way out, parameters on their way in.
//!
//! Text is what `psql` shows; binary is what most drivers ask for. Times have microseconds, as PostgreSQL's do:
//! `CAST(start_time AS BIGINT)` keeps the nanoseconds. A parameter becomes a literal of SQL (`query::script::bind`).
//! Not here: which type a column has (`query::catalog::types`).

use std::fmt::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal256Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, RecordBatch, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit, i256};
use arrow::error::ArrowError;
use bytes::{BufMut as _, BytesMut};
use query::catalog::types::{self, ColumnType, PgType};
use query::render::{Values, write_date};
use query::script::{array_items, text_literal};
use query::{ErrorKind, QueryError};

/// Microseconds from 1970 to 2000, where PostgreSQL's times begin.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Days from 1970 to 2000.
const EPOCH_DAYS: i32 = 10_957;

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// Binary, of the two formats; text is 0.
pub(super) const BINARY: i16 = 1;

/// A column of one batch, ready to write any of its rows.
enum Column<'a> {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    Numeric(Decimal256Array, i8),
    Timestamp(TimestampMicrosecondArray, bool),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    Bytes(BinaryArray),
    Array(ArrayRef, Box<Column<'a>>, u32),
    /// Whatever is text, or shown as text: ids, JSON.
    Text(Values<'a>),
}

/// Columns of one batch and their formats.
pub(super) struct Columns<'a>(Vec<(Column<'a>, i16)>);

impl<'a> Columns<'a> {
    /// The columns of a batch, as they were announced.
    ///
    /// # Errors
    /// When a value does not fit the type that was announced.
    pub(super) fn new(batch: &'a RecordBatch, announced: &[(ColumnType, i16)]) -> Result<Self, QueryError> {
        let columns = batch.columns().iter().zip(batch.schema_ref().fields()).zip(announced);
        let columns = columns.map(|((column, field), (column_type, format))| {
            let made = Column::new(column, *column_type).map_err(|error| {
                QueryError::new(ErrorKind::BadQuery, format!("column {} cannot be sent: {error}", field.name()))
                    .hint("cast it, for example to text")
            })?;
            Ok((made, *format))
        });
        Ok(Self(columns.collect::<Result<_, QueryError>>()?))
    }

    /// Appends a row's fields as the body of a DataRow.
    pub(super) fn row(&self, row: usize, out: &mut BytesMut, text: &mut String) {
        out.put_u16(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        for (column, format) in &self.0 {
            column.field(row, *format, out, text);
        }
    }
}

/// Casts, and fails where a value does not fit rather than making it null.
fn exactly(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let options = arrow::compute::CastOptions { safe: false, ..arrow::compute::CastOptions::default() };
    arrow::compute::cast_with_options(column, to, &options)
}

impl<'a> Column<'a> {
    fn new(column: &'a ArrayRef, announced: ColumnType) -> Result<Self, ArrowError> {
        if announced.is_array {
            let list = match column.data_type() {
                DataType::List(_) => column.as_list::<i32>().clone(),
                other => {
                    let item = match other {
                        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => std::sync::Arc::clone(item),
                        _ => return Err(ArrowError::CastError(format!("it is no list but {other}"))),
                    };
                    cast(column, &DataType::List(item))?.as_list::<i32>().clone()
                }
            };
            let items = ColumnType { is_array: false, ..announced };
            let inner = Self::owned(list.values(), items)?;
            return Ok(Self::Array(std::sync::Arc::new(list), Box::new(inner), announced.item.oid));
        }
        match Self::plain(column, announced.item)? {
            Some(plain) => Ok(plain),
            None => Values::new(column).map(Self::Text),
        }
    }

    /// The items of a list, which outlive no batch of their own.
    fn owned(items: &ArrayRef, announced: ColumnType) -> Result<Self, ArrowError> {
        match Self::plain(items, announced.item)? {
            Some(plain) => Ok(plain),
            None => {
                // Shown as text once, so that nothing is borrowed.
                let values = Values::new(items)?;
                let mut shown = arrow::array::StringBuilder::new();
                let mut text = String::new();
                for row in 0..items.len() {
                    text.clear();
                    let present = values.text(row, &mut text);
                    shown.append_option(present.then_some(&text));
                }
                Values::owned(std::sync::Arc::new(shown.finish())).map(Self::Text)
            }
        }
    }

    fn plain(column: &ArrayRef, announced: PgType) -> Result<Option<Self>, ArrowError> {
        let micros = |zone| DataType::Timestamp(TimeUnit::Microsecond, zone);
        Ok(Some(match announced {
            types::BOOL => Self::Bool(exactly(column, &DataType::Boolean)?.as_boolean().clone()),
            types::INT2 => Self::Int2(exactly(column, &DataType::Int16)?.as_primitive().clone()),
            types::INT4 => Self::Int4(exactly(column, &DataType::Int32)?.as_primitive().clone()),
            types::INT8 => Self::Int8(exactly(column, &DataType::Int64)?.as_primitive().clone()),
            types::FLOAT4 => Self::Float4(cast(column, &DataType::Float32)?.as_primitive().clone()),
            types::FLOAT8 => Self::Float8(cast(column, &DataType::Float64)?.as_primitive().clone()),
            types::NUMERIC => {
                let scale = match column.data_type() {
                    DataType::Decimal32(_, scale)
                    | DataType::Decimal64(_, scale)
                    | DataType::Decimal128(_, scale)
                    | DataType::Decimal256(_, scale) => (*scale).max(0),
                    _ => 0,
                };
                Self::Numeric(exactly(column, &DataType::Decimal256(76, scale))?.as_primitive().clone(), scale)
            }
            types::TIMESTAMPTZ => {
                Self::Timestamp(floor_micros(column, &micros(Some("UTC".into())))?.as_primitive().clone(), true)
            }
            types::TIMESTAMP => Self::Timestamp(floor_micros(column, &micros(None))?.as_primitive().clone(), false),
            types::DATE => Self::Date(cast(column, &DataType::Date32)?.as_primitive().clone()),
            types::TIME => Self::Time(cast(column, &DataType::Time64(TimeUnit::Microsecond))?.as_primitive().clone()),
            types::INTERVAL => {
                let to = DataType::Interval(IntervalUnit::MonthDayNano);
                Self::Interval(exactly(column, &to)?.as_primitive().clone())
            }
            types::BYTEA => Self::Bytes(cast(column, &DataType::Binary)?.as_binary().clone()),
            _ => return Ok(None),
        }))
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(array) => array.is_null(row),
            Self::Int2(array) => array.is_null(row),
            Self::Int4(array) => array.is_null(row),
            Self::Int8(array) => array.is_null(row),
            Self::Float4(array) => array.is_null(row),
            Self::Float8(array) => array.is_null(row),
            Self::Numeric(array, _) => array.is_null(row),
            Self::Timestamp(array, _) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Interval(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Array(array, ..) => array.is_null(row),
            Self::Text(_) => false,
        }
    }

    /// Appends a value with its length before it, or the length of nothing.
    fn field(&self, row: usize, format: i16, out: &mut BytesMut, text: &mut String) {
        let at = out.len();
        out.put_i32(-1);
        let present = if self.is_null(row) {
            false
        } else if format == BINARY {
            self.binary(row, out, text)
        } else {
            text.clear();
            let present = self.text(row, text);
            out.put_slice(text.as_bytes());
            present
        };
        if present {
            let length = i32::try_from(out.len() - at - 4).unwrap_or(i32::MAX);
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Appends a value that is not null as text; `false`, and nothing appended, when it is null all the same.
    fn text(&self, row: usize, out: &mut String) -> bool {
        let written = match self {
            Self::Bool(array) => out.write_str(if array.value(row) { "t" } else { "f" }),
            Self::Int2(array) => write!(out, "{}", array.value(row)),
            Self::Int4(array) => write!(out, "{}", array.value(row)),
            Self::Int8(array) => write!(out, "{}", array.value(row)),
            Self::Float4(array) => write_float(f64::from(array.value(row)), &format!("{:?}", array.value(row)), out),
            Self::Float8(array) => write_float(array.value(row), &format!("{:?}", array.value(row)), out),
            Self::Numeric(array, _) => write!(out, "{}", array.value_as_string(row)),
            Self::Timestamp(array, zoned) => {
                write_timestamp(array.value(row), out);
                out.write_str(if *zoned { "+00" } else { "" })
            }
            Self::Date(array) => {
                write_date(i64::from(array.value(row)), out);
                Ok(())
            }
            Self::Time(array) => {
                write_time_of_day(array.value(row), out);
                Ok(())
            }
            Self::Interval(array) => {
                let value = array.value(row);
                write_interval(value.months, value.days, value.nanoseconds.div_euclid(1_000), out);
                Ok(())
            }
            Self::Bytes(array) => {
                out.push_str("\\x");
                array.value(row).iter().try_for_each(|byte| write!(out, "{byte:02x}"))
            }
            Self::Array(array, items, _) => {
                write_array(array.as_list(), items, row, out);
                Ok(())
            }
            Self::Text(values) => return values.text(row, out),
        };
        written.expect("a String takes everything");
        true
    }

    /// Appends a value that is not null in binary; `false`, and nothing appended, when it is null all the same.
    fn binary(&self, row: usize, out: &mut BytesMut, text: &mut String) -> bool {
        match self {
            Self::Bool(array) => out.put_u8(u8::from(array.value(row))),
            Self::Int2(array) => out.put_i16(array.value(row)),
            Self::Int4(array) => out.put_i32(array.value(row)),
            Self::Int8(array) => out.put_i64(array.value(row)),
            Self::Float4(array) => out.put_f32(array.value(row)),
            Self::Float8(array) => out.put_f64(array.value(row)),
            Self::Numeric(array, scale) => put_numeric(array.value(row), *scale, out),
            Self::Timestamp(array, _) => out.put_i64(array.value(row).saturating_sub(EPOCH_MICROS)),
            Self::Date(array) => out.put_i32(array.value(row).saturating_sub(EPOCH_DAYS)),
            Self::Time(array) => out.put_i64(array.value(row)),
            Self::Interval(array) => {
                let value = array.value(row);
                out.put_i64(value.nanoseconds.div_euclid(1_000));
                out.put_i32(value.days);
                out.put_i32(value.months);
            }
            Self::Bytes(array) => out.put_slice(array.value(row)),
            Self::Array(array, items, oid) => {
                let ends = array.as_list::<i32>().value_offsets();
                let (from, until) = (ends[row].unsigned_abs() as usize, ends[row + 1].unsigned_abs() as usize);
                let has_nulls = (from..until).any(|item| items.is_null(item));
                // An empty array has no dimension.
                out.put_i32(i32::from(until > from));
                out.put_i32(i32::from(has_nulls));
                out.put_u32(*oid);
                if until > from {
                    out.put_i32(i32::try_from(until - from).unwrap_or(i32::MAX));
                    out.put_i32(1);
                }
                for item in from..until {
                    items.field(item, BINARY, out, text);
                }
            }
            Self::Text(values) => {
                text.clear();
                let present = values.text(row, text);
                out.put_slice(text.as_bytes());
                return present;
            }
        }
        true
    }
}

/// Times in whole microseconds, rounded down as clocks count, also before 1970.
fn floor_micros(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if let DataType::Timestamp(TimeUnit::Nanosecond, _) = column.data_type() {
        let nanos: &arrow::array::TimestampNanosecondArray = column.as_primitive();
        let micros: TimestampMicrosecondArray = nanos.unary(|nanos| nanos.div_euclid(1_000));
        return cast(&micros.with_data_type(to.clone()), to);
    }
    cast(column, to)
}

fn write_float(value: f64, shown: &str, out: &mut String) -> std::fmt::Result {
    if value.is_nan() {
        out.write_str("NaN")
    } else if value.is_infinite() {
        out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        // PostgreSQL writes whole numbers without a point.
        out.write_str(shown.strip_suffix(".0").unwrap_or(shown))
    }
}

fn write_time_of_day(micros: i64, out: &mut String) {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    write!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
        .expect("a String takes everything");
    if micros != 0 {
        let digits = format!("{micros:06}");
        write!(out, ".{}", digits.trim_end_matches('0')).expect("a String takes everything");
    }
}

fn write_timestamp(micros: i64, out: &mut String) {
    write_date(micros.div_euclid(DAY_MICROS), out);
    out.push(' ');
    write_time_of_day(micros.rem_euclid(DAY_MICROS), out);
}

/// In PostgreSQL's own style: `1 year 2 mons 3 days 04:05:06.5`.
fn write_interval(months: i32, days: i32, micros: i64, out: &mut String) {
    let mut gap = "";
    for (count, one, many) in [(months / 12, "year", "years"), (months % 12, "mon", "mons"), (days, "day", "days")] {
        if count != 0 {
            let unit = if count == 1 { one } else { many };
            write!(out, "{gap}{count} {unit}").expect("a String takes everything");
            gap = " ";
        }
    }
    if micros != 0 || gap.is_empty() {
        out.push_str(gap);
        out.push_str(if micros < 0 { "-" } else { "" });
        write_time_of_day(i64::try_from(micros.unsigned_abs()).unwrap_or(i64::MAX), out);
    }
}

/// As text: `{1,NULL,"a b"}`.
fn write_array(list: &arrow::array::ListArray, items: &Column<'_>, row: usize, out: &mut String) {
    let ends = list.value_offsets();
    out.push('{');
    let mut item_text = String::new();
    for item in ends[row]..ends[row + 1] {
        if item > ends[row] {
            out.push(',');
        }
        let index = item.unsigned_abs() as usize;
        item_text.clear();
        if items.is_null(index) || !items.text(index, &mut item_text) {
            out.push_str("NULL");
            continue;
        }
        let plain = !item_text.is_empty()
            && !item_text.eq_ignore_ascii_case("null")
            && !item_text.contains(|c: char| c.is_whitespace() || "{},\"\\".contains(c));
        if plain {
            out.push_str(&item_text);
        } else {
            out.push('"');
            for character in item_text.chars() {
                if matches!(character, '"' | '\\') {
                    out.push('\\');
                }
                out.push(character);
            }
            out.push('"');
        }
    }
    out.push('}');
}

/// A decimal number: groups of four digits, and where the point is.
fn put_numeric(value: i256, scale: i8, out: &mut BytesMut) {
    let scale = usize::from(scale.unsigned_abs());
    let text = value.to_string();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, &*text),
    };
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let fraction = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let group = |chunk: &[u8]| chunk.iter().fold(0_i16, |group, digit| group * 10 + i16::from(digit - b'0'));
    let mut groups: Vec<i16> = whole.as_bytes().chunks(4).chain(fraction.as_bytes().chunks(4)).map(group).collect();
    let mut weight = i16::try_from(whole.len() / 4).unwrap_or(i16::MAX) - 1;
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    out.put_i16(i16::try_from(groups.len()).unwrap_or(i16::MAX));
    out.put_i16(weight);
    out.put_u16(if negative && !groups.is_empty() { 0x4000 } else { 0 });
    out.put_u16(u16::try_from(scale).unwrap_or(0));
    groups.iter().for_each(|group| out.put_i16(*group));
}

/// Items of an array parameter at most; the statement it becomes part of has 10,000 words.
const ARRAY_ITEMS_MAX: usize = 10_000;

fn bad(oid: u32, why: &str) -> QueryError {
    let name = types::sql_name(oid).unwrap_or_else(|| format!("type {oid}"));
    QueryError::new(ErrorKind::BadQuery, format!("Cannot cast a parameter to {name}: {why}"))
}

/// A parameter as a literal of SQL. A type of 0 is unknown, and then the value is text.
///
/// # Errors
/// When the bytes are no value of the type, or the type is not known.
pub(super) fn literal(value: Option<&[u8]>, oid: u32, format: i16) -> Result<String, QueryError> {
    let array = types::ALL.into_iter().find(|known| known.array == oid && oid != 0);
    let Some(value) = value else {
        let name = types::ALL.into_iter().find(|known| known.oid == oid).and_then(cast_name);
        return Ok(name.map_or_else(|| "NULL".to_owned(), |name| format!("CAST(NULL AS {name})")));
    };
    if let Some(item) = array {
        let items = if format == BINARY {
            binary_items(value, oid)?
        } else {
            let items = array_items(text_of(value, oid)?).map_err(|why| bad(oid, why))?;
            items.into_iter().map(|item| item.map(String::into_bytes)).collect()
        };
        if items.len() > ARRAY_ITEMS_MAX {
            return Err(bad(oid, &format!("it has more than {ARRAY_ITEMS_MAX} items")));
        }
        let items = items.iter().map(|item_value| literal(item_value.as_deref(), item.oid, format));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        return Ok(match (items.is_empty(), cast_name(item)) {
            (true, Some(name)) => format!("CAST(ARRAY[] AS {name}[])"),
            _ => format!("ARRAY[{}]", items.join(", ")),
        });
    }
    let text = if format == BINARY { text_of_binary(value, oid)? } else { text_of(value, oid)?.to_owned() };
    text_as_literal(&text, oid)
}

fn text_of(value: &[u8], oid: u32) -> Result<&str, QueryError> {
    std::str::from_utf8(value).map_err(|_not_utf8| bad(oid, "it is not UTF-8"))
}

/// What SQL calls a type in a cast; `None` for types that a literal has by itself.
fn cast_name(known: PgType) -> Option<&'static str> {
    Some(match known {
        types::BOOL => "BOOLEAN",
        types::INT2 => "SMALLINT",
        types::INT4 => "INTEGER",
        types::INT8 => "BIGINT",
        types::FLOAT4 => "REAL",
        types::FLOAT8 => "DOUBLE PRECISION",
        types::TIMESTAMPTZ => "TIMESTAMP WITH TIME ZONE",
        types::TIMESTAMP => "TIMESTAMP",
        types::DATE => "DATE",
        types::TIME => "TIME",
        types::TEXT => "TEXT",
        _ => return None,
    })
}

/// An expression of SQL as a value of a type, as EXECUTE passes it.
pub(super) fn typed(expression: &str, oid: u32) -> String {
    let name = types::ALL.into_iter().find(|known| known.oid == oid).filter(|known| *known != types::TEXT);
    match name.and_then(cast_name) {
        Some(name) => format!("CAST({expression} AS {name})"),
        None => expression.to_owned(),
    }
}

/// A value in its text format as a literal.
fn text_as_literal(text: &str, oid: u32) -> Result<String, QueryError> {
    let trimmed = text.trim();
    let known = types::ALL.into_iter().find(|known| known.oid == oid);
    let number = |shown: String| if shown.starts_with('-') { format!("({shown})") } else { shown };
    Ok(match known {
        Some(types::INT2 | types::INT4 | types::INT8) => {
            let value: i64 = trimmed.parse().map_err(|_| bad(oid, "it is no whole number of 64 bits"))?;
            // Its absolute value is no number of 64 bits, so the minus cannot stand before it.
            if value == i64::MIN { format!("CAST('{value}' AS BIGINT)") } else { number(value.to_string()) }
        }
        Some(types::FLOAT4 | types::FLOAT8) => {
            let value: f64 = trimmed.parse().map_err(|_| bad(oid, "it is no number"))?;
            format!("CAST('{value:?}' AS DOUBLE PRECISION)")
        }
        Some(types::NUMERIC) => {
            let plain = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
            if plain.is_empty()
                || !plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
                || plain.matches('.').count() > 1
            {
                return Err(bad(oid, "it is no decimal number"));
            }
            number(trimmed.trim_start_matches('+').to_owned())
        }
        Some(types::BOOL) => match trimmed.to_ascii_lowercase().as_str() {
            "t" | "true" | "yes" | "on" | "1" | "y" => "TRUE".to_owned(),
            "f" | "false" | "no" | "off" | "0" | "n" => "FALSE".to_owned(),
            _ => return Err(bad(oid, "it is neither true nor false")),
        },
        Some(types::BYTEA) => {
            let hex = trimmed.strip_prefix("\\x").filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
            format!("X'{}'", hex.ok_or_else(|| bad(oid, "expected \\x and hexadecimal digits"))?)
        }
        Some(known @ (types::TIMESTAMPTZ | types::TIMESTAMP | types::DATE | types::TIME)) => {
            format!("CAST({} AS {})", text_literal(trimmed), cast_name(known).unwrap_or("TEXT"))
        }
        Some(types::INTERVAL) => format!("INTERVAL {}", text_literal(trimmed)),
        Some(known) if known.name == "oid" => {
            let value: u32 = trimmed.parse().map_err(|_| bad(oid, "it is no number"))?;
            value.to_string()
        }
        // Text, its kin, and what is not known: the text as it is.
        Some(_) => text_literal(text),
        None if oid == 0 => text_literal(text),
        None => return Err(bad(oid, "the type is not known")),
    })
}

/// A value in binary as its text.
fn text_of_binary(value: &[u8], oid: u32) -> Result<String, QueryError> {
    fn exact<const N: usize>(value: &[u8], oid: u32) -> Result<[u8; N], QueryError> {
        value.try_into().map_err(|_| bad(oid, &format!("expected {N} bytes, found {}", value.len())))
    }
    let known = types::ALL.into_iter().find(|known| known.oid == oid);
    let mut out = String::new();
    match known {
        Some(types::BOOL) => out.push_str(if exact::<1>(value, oid)? == [0] { "f" } else { "t" }),
        Some(types::INT2) => return Ok(i16::from_be_bytes(exact(value, oid)?).to_string()),
        Some(types::INT4) => return Ok(i32::from_be_bytes(exact(value, oid)?).to_string()),
        Some(types::INT8) => return Ok(i64::from_be_bytes(exact(value, oid)?).to_string()),
        Some(types::FLOAT4) => return Ok(format!("{:?}", f32::from_be_bytes(exact(value, oid)?))),
        Some(types::FLOAT8) => return Ok(format!("{:?}", f64::from_be_bytes(exact(value, oid)?))),
        Some(known @ (types::TIMESTAMPTZ | types::TIMESTAMP)) => {
            let micros = i64::from_be_bytes(exact(value, oid)?).checked_add(EPOCH_MICROS);
            let micros = micros.filter(|micros| micros.checked_mul(1_000).is_some());
            write_timestamp(micros.ok_or_else(|| bad(oid, "it is not between the years 1677 and 2262"))?, &mut out);
            out.push_str(if known == types::TIMESTAMPTZ { "+00" } else { "" });
        }
        Some(types::DATE) => {
            write_date(i64::from(i32::from_be_bytes(exact(value, oid)?)) + i64::from(EPOCH_DAYS), &mut out)
        }
        Some(types::TIME) => {
            let micros = i64::from_be_bytes(exact(value, oid)?);
            if !(0..DAY_MICROS).contains(&micros) {
                return Err(bad(oid, "it is no time of day"));
            }
            write_time_of_day(micros, &mut out);
        }
        Some(types::INTERVAL) => {
            let bytes: [u8; 16] = exact(value, oid)?;
            let micros = bytes.first_chunk().map_or(0, |micros| i64::from_be_bytes(*micros));
            let days = bytes[8..].first_chunk().map_or(0, |days| i32::from_be_bytes(*days));
            let months = bytes[12..].first_chunk().map_or(0, |months| i32::from_be_bytes(*months));
            write!(out, "{months} months {days} days {micros} microseconds").expect("a String takes everything");
        }
        Some(types::BYTEA) => {
            out.push_str("\\x");
            value.iter().try_for_each(|byte| write!(out, "{byte:02x}")).expect("a String takes everything");
        }
        Some(types::NUMERIC) => return numeric_text(value).ok_or_else(|| bad(oid, "it is no decimal number")),
        Some(known) if known.name == "oid" => return Ok(u32::from_be_bytes(exact(value, oid)?).to_string()),
        Some(known) if known.name == "uuid" => {
            let bytes: [u8; 16] = exact(value, oid)?;
            for (index, byte) in bytes.iter().enumerate() {
                let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(out, "{dash}{byte:02x}").expect("a String takes everything");
            }
        }
        Some(known) if known.name == "jsonb" => {
            let json = value.strip_prefix(&[1]).ok_or_else(|| bad(oid, "its version is not known"))?;
            out.push_str(text_of(json, oid)?);
        }
        Some(_) => out.push_str(text_of(value, oid)?),
        None if oid == 0 => out.push_str(text_of(value, oid)?),
        None => return Err(bad(oid, "the type is not known")),
    }
    Ok(out)
}

/// Reads what [`put_numeric`] writes; `None` for what is no finite number.
fn numeric_text(value: &[u8]) -> Option<String> {
    let mut words = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (count, weight, sign, scale) = (words.next()?, words.next()?.cast_signed(), words.next()?, words.next()?);
    let groups: Vec<u16> = words.collect();
    let readable = groups.len() == usize::from(count)
        && groups.iter().all(|group| *group < 10_000)
        && matches!(sign, 0 | 0x4000)
        && weight.unsigned_abs() <= 100
        && scale <= 400;
    if !readable {
        return None;
    }
    let group = |place: i32| {
        let index = i32::from(weight) - place;
        usize::try_from(index).ok().and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    let mut out = String::from(if sign == 0 { "" } else { "-" });
    let whole: String = (0..=i32::from(weight).max(0)).rev().map(|place| format!("{:04}", group(place))).collect();
    let whole = whole.trim_start_matches('0');
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let places = i32::from(scale).div_euclid(4) + 1;
        let fraction: String = (1..=places).map(|place| format!("{:04}", group(-place))).collect();
        out.push('.');
        out.push_str(&fraction[..usize::from(scale)]);
    }
    Some(out)
}

/// The items of an array in binary.
fn binary_items(value: &[u8], oid: u32) -> Result<Vec<Option<Vec<u8>>>, QueryError> {
    let malformed = || bad(oid, "it is malformed");
    let mut rest = value;
    let mut word = || {
        let (word, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        rest = after;
        Ok::<i32, QueryError>(i32::from_be_bytes(*word))
    };
    let (dimensions, _has_nulls, _item) = (word()?, word()?, word()?);
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    let (count, _lower_bound) = (word()?, word()?);
    if dimensions != 1 {
        return Err(bad(oid, "it has more than one dimension"));
    }
    let count = usize::try_from(count).ok().filter(|count| *count <= ARRAY_ITEMS_MAX);
    let count = count.ok_or_else(|| bad(oid, &format!("it has more than {ARRAY_ITEMS_MAX} items")))?;
    let mut items = Vec::new();
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        rest = after;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (item, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
                rest = after;
                items.push(Some(item.to_vec()));
            }
            Err(_null) => items.push(None),
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ListArray, StringArray, TimestampNanosecondArray, UInt64Array};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;
    use query::catalog::types::column_type;

    use super::*;

    #[test]
    fn parameters_become_literals() {
        const INT8_ARRAY: u32 = 1016;
        const TEXT_ARRAY: u32 = 1009;
        for (value, oid, expected) in [
            (Some("42"), types::INT8.oid, Ok("42")),
            (Some("-42"), types::INT4.oid, Ok("(-42)")),
            (Some("-9223372036854775808"), types::INT8.oid, Ok("CAST('-9223372036854775808' AS BIGINT)")),
            (Some("4.5"), types::INT8.oid, Err(())),
            (Some("9223372036854775808"), types::INT8.oid, Err(())),
            (Some("1e3"), types::FLOAT8.oid, Ok("CAST('1000.0' AS DOUBLE PRECISION)")),
            (Some("NaN"), types::FLOAT8.oid, Ok("CAST('NaN' AS DOUBLE PRECISION)")),
            (Some("-1.50"), types::NUMERIC.oid, Ok("(-1.50)")),
            (Some("1; DROP TABLE x"), types::NUMERIC.oid, Err(())),
            (Some("1.2.3"), types::NUMERIC.oid, Err(())),
            (Some("t"), types::BOOL.oid, Ok("TRUE")),
            (Some("maybe"), types::BOOL.oid, Err(())),
            (Some("it's \\ $1"), types::TEXT.oid, Ok("'it''s \\ $1'")),
            (Some("'); --"), 0, Ok("'''); --'")),
            (Some("2026-01-02"), types::DATE.oid, Ok("CAST('2026-01-02' AS DATE)")),
            (Some("x' OR '1"), types::TIMESTAMPTZ.oid, Ok("CAST('x'' OR ''1' AS TIMESTAMP WITH TIME ZONE)")),
            (Some("1 day"), types::INTERVAL.oid, Ok("INTERVAL '1 day'")),
            (Some("\\x00FF"), types::BYTEA.oid, Ok("X'00FF'")),
            (Some("\\x0'"), types::BYTEA.oid, Err(())),
            (Some("{1,NULL,-3}"), INT8_ARRAY, Ok("ARRAY[1, CAST(NULL AS BIGINT), (-3)]")),
            (Some("{}"), INT8_ARRAY, Ok("CAST(ARRAY[] AS BIGINT[])")),
            (Some("{a,\"b'c\"}"), TEXT_ARRAY, Ok("ARRAY['a', 'b''c']")),
            (Some("{{1}}"), INT8_ARRAY, Err(())),
            (None, types::INT8.oid, Ok("CAST(NULL AS BIGINT)")),
            (None, 0, Ok("NULL")),
            (Some("x"), 123_456, Err(())),
        ] {
            let found = literal(value.map(str::as_bytes), oid, 0).map_err(|_| ());
            assert_eq!(found.as_deref().ok(), expected.ok(), "{value:?} {oid}");
        }
        assert!(literal(Some(b"\xff"), 0, 0).is_err(), "text is UTF-8");
        for (value, oid, expected) in [
            (&[0, 0, 0, 5][..], types::INT4.oid, Ok("5")),
            (&[0, 5], types::INT4.oid, Err(())),
            (&[0xff; 8], types::INT8.oid, Ok("(-1)")),
            (&[0; 8], types::TIMESTAMPTZ.oid, Ok("CAST('2000-01-01 00:00:00+00' AS TIMESTAMP WITH TIME ZONE)")),
            (&[0x7f; 8], types::TIMESTAMPTZ.oid, Err(())),
            (&[0xff, 0xff, 0xff, 0xff], types::DATE.oid, Ok("CAST('1999-12-31' AS DATE)")),
            (&[1], types::BOOL.oid, Ok("TRUE")),
            (b"\x01{}", 3802, Ok("'{}'")),
            (b"\x02{}", 3802, Err(())),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20], INT8_ARRAY, Ok("CAST(ARRAY[] AS BIGINT[])")),
            (&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1], INT8_ARRAY, Err(())),
            (&[0, 0, 0, 1, 0, 0], INT8_ARRAY, Err(())),
        ] {
            let found = literal(Some(value), oid, BINARY).map_err(|_| ());
            assert_eq!(found.as_deref().ok(), expected.ok(), "{value:?} {oid}");
        }
    }

    fn written(column: ArrayRef, format: i16) -> Result<Vec<Option<Vec<u8>>>, QueryError> {
        let batch = RecordBatch::try_from_iter([("x", column)]).unwrap();
        let announced = [(column_type(batch.column(0).data_type()), format)];
        let shown = Columns::new(&batch, &announced)?;
        let rows = (0..batch.num_rows()).map(|row| {
            let mut out = BytesMut::new();
            shown.row(row, &mut out, &mut String::new());
            let length = i32::from_be_bytes(out[2..6].try_into().unwrap());
            assert_eq!(out.len() - 6, usize::try_from(length).unwrap_or(0));
            (length >= 0).then(|| out[6..].to_vec())
        });
        Ok(rows.collect())
    }

    fn texts(column: ArrayRef) -> Vec<Option<String>> {
        let bytes = written(column, 0).unwrap();
        bytes.into_iter().map(|value| value.map(|bytes| String::from_utf8(bytes).unwrap())).collect()
    }

    #[test]
    fn values_are_shown_as_postgres_shows_them() {
        let some = |text: &str| Some(text.to_owned());
        let times =
            TimestampNanosecondArray::from(vec![Some(0), Some(-1), Some(1_500_000_999), None]).with_timezone("UTC");
        assert_eq!(
            texts(Arc::new(times)),
            [
                some("1970-01-01 00:00:00+00"),
                some("1969-12-31 23:59:59.999999+00"),
                some("1970-01-01 00:00:01.5+00"),
                None
            ]
        );
        let doubles = Float64Array::from(vec![1.0, 0.1, f64::NAN, f64::NEG_INFINITY, 1e300]);
        assert_eq!(texts(Arc::new(doubles)), [some("1"), some("0.1"), some("NaN"), some("-Infinity"), some("1e300")]);
        assert_eq!(texts(Arc::new(BooleanArray::from(vec![true, false]))), [some("t"), some("f")]);
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        assert_eq!(texts(Arc::new(list)), [some("{1,NULL}"), None, some("{}")]);
        let words = StringArray::from(vec!["plain", "", "null", "a b", "q\"\\", "{,}"]);
        let field = Arc::new(arrow::datatypes::Field::new("item", DataType::Utf8, true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([6]);
        let list = ListArray::new(field, offsets, Arc::new(words), None);
        assert_eq!(texts(Arc::new(list)), [some(r#"{plain,"","null","a b","q\"\\","{,}"}"#)]);
        let decimals = arrow::array::Decimal128Array::from(vec![Some(-5), Some(12_345), None])
            .with_precision_and_scale(9, 2)
            .unwrap();
        assert_eq!(texts(Arc::new(decimals)), [some("-0.05"), some("123.45"), None]);
        let interval = IntervalMonthDayNanoArray::from(vec![
            arrow::datatypes::IntervalMonthDayNano::new(14, -3, 14_706_500_000_000),
            arrow::datatypes::IntervalMonthDayNano::new(0, 0, 0),
            arrow::datatypes::IntervalMonthDayNano::new(0, 1, -1_000_000_000),
        ]);
        assert_eq!(
            texts(Arc::new(interval)),
            [some("1 year 2 mons -3 days 04:05:06.5"), some("00:00:00"), some("1 day -00:00:01")]
        );
    }

    #[test]
    fn a_number_that_does_not_fit_is_an_error_and_not_another_number() {
        let fits: ArrayRef = Arc::new(UInt64Array::from(vec![i64::MAX.unsigned_abs()]));
        assert_eq!(texts(fits), [Some(i64::MAX.to_string())]);
        let error = written(Arc::new(UInt64Array::from(vec![u64::MAX])), 0).unwrap_err();
        assert!(error.message.contains("column x") && error.hint.is_some(), "{error:?}");
    }

    proptest! {
        #[test]
        fn decimals_read_back_as_they_were_written(value in any::<i128>(), scale in 0_i8..30) {
            let mut out = BytesMut::new();
            put_numeric(i256::from_i128(value), scale, &mut out);
            let expected = Decimal256Array::from(vec![i256::from_i128(value)]).with_precision_and_scale(76, scale).unwrap();
            prop_assert_eq!(numeric_text(&out), Some(expected.value_as_string(0)));
        }

        #[test]
        fn no_parameter_makes_the_reader_panic(value in proptest::collection::vec(any::<u8>(), 0..64), which in 0..types::ALL.len(), array: bool, format in 0_i16..2) {
            let oid = if array { types::ALL[which].array } else { types::ALL[which].oid };
            if let Ok(literal) = literal(Some(&value), oid, format) {
                // Whatever comes out is one expression: it brings no statement of its own.
                let sql = format!("SELECT {literal}");
                if let Ok(parts) = query::script::split(&sql) {
                    prop_assert!(parts.len() == 1, "{}", sql);
                }
            }
        }
    }
}
