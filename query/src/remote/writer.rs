//! Expressions as ClickHouse's SQL: a pure translation that says why it does not translate something.
//!
//! What is written has the value that the engine would compute, bit for bit, or it is refused: NULL in comparisons and
//! lists, NaN (greater than every number here, unordered there), bytes of ids, keys without a value, divisions, widths of
//! integers. What is refused runs here, over what was not. Not here: plans ([`super::plan`]).

use std::cell::Cell;
use std::fmt::Write as _;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, InList, Like, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Case, Expr, ExprSchemable as _, Operator};
use model::attributes::{Kind, Kinds, attributes_type};
use model::context::context_type;
use model::schema::time_type;
use model::signal::Table;

use super::kinds::RemoteKinds;
use crate::source::Container;
use crate::time::bucket_of;

/// Why something is not written, in words for EXPLAIN.
pub(crate) type Refusal = String;

/// The numbers of a group that a quantile is exact for, as the engine's own ([`crate::quantile`]).
const EXACT_VALUES_MAX: usize = 4_096;

/// From what is left of a number that is cut to eight binary digits to the middle of those that it may have been.
const CUT_OFF: f64 = 1.0 + 1.0 / 256.0;

/// What is greater, as bits of a double read as an integer, is a NaN without a sign.
const INFINITY_BITS: i64 = 0x7ff0_0000_0000_0000;

/// From here to -1 the bits of a double read as an integer are those of a NaN with a sign.
const SIGNED_NAN_BITS: i64 = -0x000f_ffff_ffff_ffff;

/// What a value that is not one column in ClickHouse has beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The attributes of a resource or scope as text, a map.
    Entries,
    /// A scope's name.
    ScopeName,
    /// A scope's version.
    ScopeVersion,
    /// The schema URL of either.
    SchemaUrl,
}

/// A value of each row, as an expression.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) sql: String,
    /// The engine's type of it.
    pub(crate) data_type: DataType,
    /// For attributes: whose they are.
    pub(crate) origin: Option<(Table, Container)>,
    pub(crate) parts: Vec<(Part, String)>,
}

impl Value {
    pub(crate) fn new(sql: impl Into<String>, data_type: DataType) -> Self {
        Self { sql: sql.into(), data_type, origin: None, parts: Vec::new() }
    }

    /// Whether it is a number, text, time, truth value or id: what can be compared, grouped, sorted, null.
    pub(crate) fn is_plain(&self) -> bool {
        is_plain(&self.data_type)
    }

    fn part(&self, wanted: Part) -> Option<&str> {
        self.parts.iter().find(|(part, _)| *part == wanted).map(|(_, sql)| sql.as_str())
    }
}

/// Whether values of a type can be compared, grouped, sorted and null in ClickHouse.
pub(crate) fn is_plain(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => **values == DataType::Utf8,
        DataType::Boolean
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float64
        | DataType::Utf8
        | DataType::FixedSizeBinary(_)
        | DataType::Timestamp(TimeUnit::Nanosecond, _) => true,
        _ => false,
    }
}

/// The columns that expressions are over.
pub(crate) struct Columns<'a> {
    pub(crate) schema: &'a DFSchema,
    pub(crate) values: &'a [Value],
}

impl Columns<'_> {
    fn get(&self, column: &Column) -> Result<&Value, Refusal> {
        let index = self.schema.index_of_column(column).map_err(|error| error.strip_backtrace())?;
        self.values.get(index).ok_or_else(|| format!("there is no column {column}"))
    }

    fn type_of(&self, expr: &Expr) -> Result<DataType, Refusal> {
        expr.get_type(self.schema).map_err(|error| error.strip_backtrace())
    }
}

/// A text as a literal.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\\' | '\'' => {
                out.push('\\');
                out.push(c);
            }
            '\0' => out.push_str("\\0"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// A name as an identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A time, nanoseconds since the epoch.
pub(crate) fn time(nanos: i64) -> String {
    /// What is written as a date is within these, so that people can read it; ClickHouse's own range is wider.
    const READABLE: std::ops::Range<i64> = 0..7_258_118_400_000_000_000;
    if !READABLE.contains(&nanos) {
        return format!("fromUnixTimestamp64Nano(toInt64('{nanos}'), 'UTC')");
    }
    let (days, of_day) = (nanos.div_euclid(86_400_000_000_000), nanos.rem_euclid(86_400_000_000_000));
    let (year, month, day) = civil(days);
    let (seconds, fraction) = (of_day / 1_000_000_000, of_day % 1_000_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("toDateTime64('{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{fraction:09}', 9, 'UTC')")
}

/// The date of a day since the epoch, in the Gregorian calendar.
const fn civil(days: i64) -> (i64, i64, i64) {
    // Years are counted from March, so that the odd day is the last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

fn double(value: f64) -> String {
    if value.is_finite() && value.is_normal() {
        format!("{value:?}")
    } else if value == 0.0 && value.is_sign_positive() {
        "0.0".to_owned()
    } else {
        format!("reinterpretAsFloat64(toUInt64('{}'))", value.to_bits())
    }
}

fn bytes(value: &[u8], width: Option<i32>) -> String {
    let text = format!("unhex('{}')", hex::encode(value));
    match width {
        Some(width) => format!("toFixedString({text}, {width})"),
        None => text,
    }
}

/// The name of a type in ClickHouse.
fn type_name(data_type: &DataType) -> Result<String, Refusal> {
    Ok(match data_type {
        DataType::Boolean => "Bool".to_owned(),
        DataType::Int32 => "Int32".to_owned(),
        DataType::Int64 => "Int64".to_owned(),
        DataType::UInt32 => "UInt32".to_owned(),
        DataType::UInt64 => "UInt64".to_owned(),
        DataType::Float64 => "Float64".to_owned(),
        DataType::Utf8 => "String".to_owned(),
        DataType::Dictionary(_, values) if **values == DataType::Utf8 => "String".to_owned(),
        DataType::FixedSizeBinary(width) => format!("FixedString({width})"),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => "DateTime64(9, 'UTC')".to_owned(),
        other => return Err(format!("ClickHouse has no type like {other}")),
    })
}

fn cast_to(sql: &str, data_type: &DataType) -> Result<String, Refusal> {
    Ok(format!("CAST({sql}, 'Nullable({})')", type_name(data_type)?.replace('\'', "\\'")))
}

fn literal(value: &ScalarValue) -> Result<Value, Refusal> {
    let data_type = value.data_type();
    let sql = match value {
        ScalarValue::Dictionary(_, inner) => literal(inner)?.sql,
        ScalarValue::Null => "NULL".to_owned(),
        _ if value.is_null() => cast_to("NULL", &data_type)?,
        ScalarValue::Boolean(Some(value)) => value.to_string(),
        ScalarValue::Int8(Some(value)) => negative(i64::from(*value)),
        ScalarValue::Int16(Some(value)) => negative(i64::from(*value)),
        ScalarValue::Int32(Some(value)) => negative(i64::from(*value)),
        ScalarValue::Int64(Some(value)) => negative(*value),
        ScalarValue::UInt32(Some(value)) => value.to_string(),
        ScalarValue::UInt64(Some(value)) => value.to_string(),
        ScalarValue::Float64(Some(value)) => double(*value),
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
            quoted(text)
        }
        ScalarValue::FixedSizeBinary(width, Some(value)) => bytes(value, Some(*width)),
        ScalarValue::TimestampNanosecond(Some(nanos), _) => time(*nanos),
        _ => return Err(format!("a constant of type {data_type}")),
    };
    Ok(Value::new(sql, data_type))
}

fn negative(value: i64) -> String {
    match value {
        i64::MIN => "toInt64('-9223372036854775808')".to_owned(),
        value if value < 0 => format!("({value})"),
        value => value.to_string(),
    }
}

fn text_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(ScalarValue::Dictionary(_, inner), _) => inner.try_as_str().flatten(),
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        Expr::Alias(alias) => text_of(&alias.expr),
        _ => None,
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 => true,
        DataType::Dictionary(_, values) => **values == DataType::Utf8,
        _ => false,
    }
}

/// An integer that is ordered as the engine orders doubles: by total order, NaN with the ends.
fn order_of(sql: &str) -> String {
    let bits = format!("reinterpretAsInt64({sql})");
    format!("if({bits} < 0, toInt64(bitXor({bits}, toInt64(9223372036854775807))), {bits})")
}

/// The same where zero has no sign, as in comparisons.
fn unsigned_order_of(sql: &str) -> String {
    order_of(&format!("({sql} + 0.0)"))
}

/// The same of a constant.
const fn order_of_constant(value: f64) -> i64 {
    let bits = value.to_bits().cast_signed();
    bits ^ (((bits >> 63).cast_unsigned()) >> 1).cast_signed()
}

/// What a value is sorted by.
pub(crate) fn sort_key(value: &Value) -> Result<String, Refusal> {
    match value.data_type {
        DataType::Float64 => Ok(order_of(&value.sql)),
        _ if value.is_plain() => Ok(value.sql.clone()),
        _ => Err(format!("values of type {} are not sorted there", value.data_type)),
    }
}

/// Writes expressions of one query.
pub(crate) struct Writer<'a> {
    pub(crate) kinds: &'a RemoteKinds,
    names: Cell<usize>,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(kinds: &'a RemoteKinds) -> Self {
        Self { kinds, names: Cell::new(0) }
    }

    /// A name that the query has not used: ClickHouse would take an alias for the column below of the same name.
    pub(crate) fn fresh(&self) -> String {
        self.names.set(self.names.get() + 1);
        format!("c{}", self.names.get())
    }

    /// A condition at the top of WHERE, where NULL and false are one: there a key's value can be compared without asking
    /// whether the key is there, which is what skip indexes understand.
    pub(crate) fn condition(&self, expr: &Expr, columns: &Columns<'_>) -> Result<String, Refusal> {
        if let Some(sql) = self.indexed(expr, columns) {
            return Ok(sql);
        }
        let value = self.expr(expr, columns)?;
        match value.data_type {
            DataType::Boolean => Ok(value.sql),
            other => Err(format!("a condition of type {other}")),
        }
    }

    fn indexed(&self, expr: &Expr, columns: &Columns<'_>) -> Option<String> {
        match expr {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                let (access, constant) = match (&**left, &**right) {
                    (access, Expr::Literal(constant, _)) | (Expr::Literal(constant, _), access) => (access, constant),
                    _ => return None,
                };
                let (container, key) = attribute_call(access)?;
                let value = self.expr(container, columns).ok()?;
                let (map, kind) = self.only_map(&value, key)?;
                let constant = match (constant, kind) {
                    // A key that is not there reads as the default.
                    (ScalarValue::Utf8(Some(text)), Kind::String) if !text.is_empty() => quoted(text),
                    (ScalarValue::Int64(Some(number)), Kind::Int) if *number != 0 => negative(*number),
                    (ScalarValue::Boolean(Some(true)), Kind::Bool) => "true".to_owned(),
                    _ => return None,
                };
                Some(format!("{map}[{}] = {constant}", quoted(key)))
            }
            Expr::ScalarFunction(call) if call.name() == "has_token" => {
                let text = self.expr(call.args.first()?, columns).ok()?;
                let token = text_of(call.args.get(1)?)?;
                is_token(token).then(|| format!("hasToken(ifNull({}, ''), {})", text.sql, quoted(token)))
            }
            Expr::Like(like) if !like.negated && !like.case_insensitive && like.escape_char.is_none() => {
                let text = self.expr(&like.expr, columns).ok()?;
                let pattern = text_of(&like.pattern)?;
                // The index over words is one of this expression; what finds empty texts would find absent ones.
                let is_found = text.sql == "`body`" && !pattern.contains('\\') && !pattern.chars().all(|c| c == '%');
                is_found.then(|| format!("ifNull({}, '') LIKE {}", text.sql, quoted(pattern)))
            }
            _ => None,
        }
    }

    /// An expression over the columns.
    pub(crate) fn expr(&self, expr: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        match expr {
            Expr::Column(column) => columns.get(column).cloned(),
            Expr::Alias(alias) => self.expr(&alias.expr, columns),
            Expr::Literal(value, _) => literal(value),
            Expr::BinaryExpr(binary) => self.binary(binary, columns),
            Expr::Not(inner) => Ok(Value::new(format!("(NOT {})", self.truth(inner, columns)?), DataType::Boolean)),
            Expr::IsNull(inner) => {
                Ok(Value::new(format!("isNull({})", self.plain(inner, columns)?.sql), DataType::Boolean))
            }
            Expr::IsNotNull(inner) => {
                Ok(Value::new(format!("isNotNull({})", self.plain(inner, columns)?.sql), DataType::Boolean))
            }
            Expr::IsTrue(inner) => self.known(inner, columns, "ifNull({}, false)"),
            Expr::IsNotTrue(inner) => self.known(inner, columns, "(NOT ifNull({}, false))"),
            Expr::IsFalse(inner) => self.known(inner, columns, "(NOT ifNull({}, true))"),
            Expr::IsNotFalse(inner) => self.known(inner, columns, "ifNull({}, true)"),
            Expr::IsUnknown(inner) => self.known(inner, columns, "isNull({})"),
            Expr::IsNotUnknown(inner) => self.known(inner, columns, "isNotNull({})"),
            Expr::Negative(inner) => {
                let value = self.plain(inner, columns)?;
                match value.data_type {
                    DataType::Int64 | DataType::Float64 => {
                        Ok(Value::new(format!("negate({})", value.sql), value.data_type))
                    }
                    other => Err(format!("the negative of {other}")),
                }
            }
            Expr::Between(between) => {
                let low = self.compare(&between.expr, Operator::GtEq, &between.low, columns)?;
                let high = self.compare(&between.expr, Operator::LtEq, &between.high, columns)?;
                let not = if between.negated { "NOT " } else { "" };
                Ok(Value::new(format!("({not}({low} AND {high}))"), DataType::Boolean))
            }
            Expr::InList(list) => self.in_list(list, columns),
            Expr::Like(like) => self.like(like, columns),
            Expr::Case(case) => self.case(case, expr, columns),
            Expr::Cast(cast) => self.cast(&cast.expr, cast.field.data_type(), columns),
            Expr::ScalarFunction(call) => self.function(call, expr, columns),
            other => Err(format!("{} is not written in ClickHouse's SQL", other.variant_name())),
        }
    }

    fn plain(&self, expr: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let value = self.expr(expr, columns)?;
        if value.is_plain() { Ok(value) } else { Err(format!("a value of type {}", value.data_type)) }
    }

    fn truth(&self, expr: &Expr, columns: &Columns<'_>) -> Result<String, Refusal> {
        let value = self.expr(expr, columns)?;
        match value.data_type {
            DataType::Boolean => Ok(value.sql),
            other => Err(format!("a condition of type {other}")),
        }
    }

    fn known(&self, expr: &Expr, columns: &Columns<'_>, form: &str) -> Result<Value, Refusal> {
        Ok(Value::new(form.replace("{}", &self.truth(expr, columns)?), DataType::Boolean))
    }

    fn binary(&self, binary: &BinaryExpr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let BinaryExpr { left, op, right } = binary;
        match op {
            Operator::And | Operator::Or => {
                let (left, right) = (self.truth(left, columns)?, self.truth(right, columns)?);
                Ok(Value::new(format!("({left} {op} {right})"), DataType::Boolean))
            }
            Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                Ok(Value::new(self.compare(left, *op, right, columns)?, DataType::Boolean))
            }
            Operator::StringConcat => {
                let (left, right) = (self.plain(left, columns)?, self.plain(right, columns)?);
                if is_text(&left.data_type) && is_text(&right.data_type) {
                    Ok(Value::new(format!("concat({}, {})", left.sql, right.sql), DataType::Utf8))
                } else {
                    Err("|| of what is not text".to_owned())
                }
            }
            Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo => {
                self.arithmetic(left, *op, right, columns)
            }
            other => Err(format!("the operator {other}")),
        }
    }

    fn compare(&self, left: &Expr, op: Operator, right: &Expr, columns: &Columns<'_>) -> Result<String, Refusal> {
        let (a, b) = (self.plain(left, columns)?, self.plain(right, columns)?);
        let is_same = match (&a.data_type, &b.data_type) {
            (a, b) if is_text(a) && is_text(b) => true,
            (DataType::Timestamp(..), DataType::Timestamp(..)) => true,
            (a, b) => a == b,
        };
        if !is_same {
            return Err(format!("{} compared with {}", a.data_type, b.data_type));
        }
        if a.data_type != DataType::Float64 {
            return Ok(format!("({} {op} {})", a.sql, b.sql));
        }
        // A constant on the right, the usual case, in a form that people can read.
        let (value, op, constant) = match (left, right) {
            (_, Expr::Literal(ScalarValue::Float64(Some(constant)), _)) => (&a, op, *constant),
            (Expr::Literal(ScalarValue::Float64(Some(constant)), _), _) => {
                (&b, op.swap().ok_or_else(|| format!("the operator {op}"))?, *constant)
            }
            _ => return Ok(format!("({} {op} {})", unsigned_order_of(&a.sql), unsigned_order_of(&b.sql))),
        };
        let sql = &value.sql;
        if !constant.is_finite() {
            return Ok(format!("({} {op} {})", unsigned_order_of(sql), negative(order_of_constant(constant))));
        }
        // Zero has no sign in a comparison.
        let plain = format!("{sql} {op} {}", double(constant + 0.0));
        Ok(match op {
            Operator::Gt | Operator::GtEq => format!("({plain} OR reinterpretAsInt64({sql}) > {INFINITY_BITS})"),
            Operator::Lt | Operator::LtEq => {
                format!("({plain} OR reinterpretAsInt64({sql}) BETWEEN ({SIGNED_NAN_BITS}) AND (-1))")
            }
            _ => format!("({plain})"),
        })
    }

    fn arithmetic(&self, left: &Expr, op: Operator, right: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let (a, b) = (self.plain(left, columns)?, self.plain(right, columns)?);
        if a.data_type != b.data_type {
            return Err(format!("{} {op} {}", a.data_type, b.data_type));
        }
        let data_type = a.data_type.clone();
        let sql = match (&data_type, op) {
            (DataType::Float64, Operator::Modulo) => return Err("the remainder of doubles".to_owned()),
            (DataType::Float64, _) => format!("({} {op} {})", a.sql, b.sql),
            (
                DataType::Int64 | DataType::UInt64 | DataType::Int32 | DataType::UInt32,
                Operator::Divide | Operator::Modulo,
            ) => {
                // By zero, and by -1 of the least number, both fail, and differently.
                let by = match right {
                    Expr::Literal(ScalarValue::Int64(Some(by)), _) if *by > 0 => by.to_string(),
                    Expr::Literal(ScalarValue::UInt64(Some(by)), _) if *by > 0 => by.to_string(),
                    _ => return Err("a division of integers by what is no positive constant".to_owned()),
                };
                let function = if op == Operator::Divide { "intDiv" } else { "modulo" };
                cast_to(&format!("{function}({}, {by})", a.sql), &data_type)?
            }
            // Written so that a wider result is brought back to the engine's, which wraps around.
            (DataType::Int64, _) => format!("toInt64({} {op} {})", a.sql, b.sql),
            (DataType::UInt64, _) => format!("toUInt64({} {op} {})", a.sql, b.sql),
            (DataType::Int32, _) => format!("toInt32({} {op} {})", a.sql, b.sql),
            (DataType::UInt32, _) => format!("toUInt32({} {op} {})", a.sql, b.sql),
            (other, _) => return Err(format!("{op} of {other}")),
        };
        Ok(Value::new(sql, data_type))
    }

    fn in_list(&self, list: &InList, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let value = self.plain(&list.expr, columns)?;
        if value.data_type == DataType::Float64 {
            return Err("IN of doubles, of which NaN is equal to itself".to_owned());
        }
        let mut items = Vec::with_capacity(list.list.len());
        for item in &list.list {
            match item {
                Expr::Literal(constant, _) if !constant.is_null() => {
                    let item = literal(constant)?;
                    let is_same =
                        item.data_type == value.data_type || is_text(&item.data_type) && is_text(&value.data_type);
                    if !is_same {
                        return Err(format!("{} in a list of {}", value.data_type, item.data_type));
                    }
                    items.push(item.sql);
                }
                _ => return Err("IN with what is no constant or NULL".to_owned()),
            }
        }
        let not = if list.negated { "NOT " } else { "" };
        Ok(Value::new(format!("({} {not}IN ({}))", value.sql, items.join(", ")), DataType::Boolean))
    }

    fn like(&self, like: &Like, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let value = self.plain(&like.expr, columns)?;
        let Some(pattern) = text_of(&like.pattern) else { return Err("LIKE with what is no constant".to_owned()) };
        if !is_text(&value.data_type) || like.escape_char.is_some() || pattern.contains('\\') {
            return Err("LIKE with an escape".to_owned());
        }
        if like.case_insensitive && !pattern.is_ascii() {
            return Err("ILIKE with characters beyond ASCII".to_owned());
        }
        let operator = if like.case_insensitive { "ILIKE" } else { "LIKE" };
        let not = if like.negated { "NOT " } else { "" };
        Ok(Value::new(format!("({} {not}{operator} {})", value.sql, quoted(pattern)), DataType::Boolean))
    }

    fn case(&self, case: &Case, whole: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let data_type = columns.type_of(whole)?;
        let mut sql = "CASE".to_owned();
        let mut branch = |prefix: String, then: &Expr| -> Result<(), Refusal> {
            let then = self.expr(then, columns)?;
            write!(sql, "{prefix} {}", then.sql).map_err(|error| error.to_string())
        };
        for (when, then) in &case.when_then_expr {
            let when = match &case.expr {
                None => self.truth(when, columns)?,
                Some(of) => self.compare(of, Operator::Eq, when, columns)?,
            };
            branch(format!(" WHEN {when} THEN"), then)?;
        }
        match &case.else_expr {
            Some(other) => branch(" ELSE".to_owned(), other)?,
            None => sql.push_str(" ELSE NULL"),
        }
        sql.push_str(" END");
        Ok(Value::new(cast_to(&sql, &data_type)?, data_type))
    }

    fn cast(&self, inner: &Expr, to: &DataType, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let value = self.plain(inner, columns)?;
        let sql = match (&value.data_type, to) {
            (from, to) if from == to => value.sql,
            (from, to) if is_text(from) && is_text(to) => value.sql,
            (DataType::Timestamp(..), DataType::Timestamp(TimeUnit::Nanosecond, _)) => value.sql,
            (DataType::Timestamp(..), DataType::Int64) => format!("toUnixTimestamp64Nano({})", value.sql),
            (DataType::Int32 | DataType::UInt32, DataType::Int64) => format!("toInt64({})", value.sql),
            (DataType::UInt32, DataType::UInt64) => format!("toUInt64({})", value.sql),
            (DataType::Int32 | DataType::UInt32 | DataType::Int64 | DataType::UInt64, DataType::Float64) => {
                format!("toFloat64({})", value.sql)
            }
            (
                DataType::Int32 | DataType::UInt32 | DataType::Int64 | DataType::UInt64 | DataType::Boolean,
                DataType::Utf8,
            ) => format!("toString({})", value.sql),
            (from, to) => return Err(format!("a cast from {from} to {to}")),
        };
        Ok(Value::new(sql, to.clone()))
    }

    fn function(&self, call: &ScalarFunction, whole: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let name = call.name();
        let args = call.args.as_slice();
        let text_argument = |index: usize| -> Result<Value, Refusal> {
            let value = self.plain(&args[index], columns)?;
            if is_text(&value.data_type) { Ok(value) } else { Err(format!("{name}() of {}", value.data_type)) }
        };
        match (name, args) {
            ("attribute", _) => {
                let (container, key) = attribute_call(whole).ok_or("a key that is no constant")?;
                self.attribute(&self.expr(container, columns)?, key, &columns.type_of(whole)?)
            }
            ("attributes_of", [inner, Expr::Literal(origin, _)]) => {
                let mut value = self.expr(inner, columns)?;
                let origin = origin.try_as_str().flatten().and_then(crate::functions::parse_origin);
                value.origin = origin.or(value.origin);
                Ok(value)
            }
            ("context_text", [inner, Expr::Literal(field, _)]) => {
                let value = self.expr(inner, columns)?;
                let part = match field.try_as_str().flatten() {
                    Some("scope_name") => value.part(Part::ScopeName),
                    Some("scope_version") => value.part(Part::ScopeVersion),
                    Some("schema_url") => value.part(Part::SchemaUrl),
                    _ => None,
                };
                let part = part.ok_or("what is only in the bytes of a resource or scope")?;
                Ok(Value::new(format!("nullIf({part}, '')"), DataType::Utf8))
            }
            ("bounded", [inner]) => self.expr(inner, columns),
            ("hex", [inner]) => {
                let value = self.plain(inner, columns)?;
                match value.data_type {
                    DataType::FixedSizeBinary(_) => {
                        Ok(Value::new(format!("lower(hex({}))", value.sql), DataType::Utf8))
                    }
                    other => Err(format!("hex() of {other}")),
                }
            }
            ("time_plus", [at, nanos]) => {
                let (at, nanos) = (self.plain(at, columns)?, self.plain(nanos, columns)?);
                let sum = format!("toInt64(toUnixTimestamp64Nano({}) + {})", at.sql, nanos.sql);
                Ok(Value::new(format!("fromUnixTimestamp64Nano({sum}, 'UTC')"), time_type()))
            }
            ("time_bucket", [_, at, ..]) => {
                let (width, origin) = bucket_of(args).ok_or("time_bucket() of an interval that is no constant")?;
                Ok(Value::new(bucket(&self.plain(at, columns)?.sql, width, origin.rem_euclid(width)), time_type()))
            }
            ("date_trunc", [Expr::Literal(unit, _), at]) => {
                let width = match unit.try_as_str().flatten().map(str::to_ascii_lowercase).as_deref() {
                    Some("millisecond") => 1_000_000,
                    Some("second") => 1_000_000_000,
                    Some("minute") => 60_000_000_000,
                    Some("hour") => 3_600_000_000_000,
                    Some("day") => 86_400_000_000_000,
                    _ => return Err("date_trunc() of what has no fixed length".to_owned()),
                };
                let at = self.plain(at, columns)?;
                match at.data_type {
                    DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                        Ok(Value::new(bucket(&at.sql, width, 0), columns.type_of(whole)?))
                    }
                    other => Err(format!("date_trunc() of {other}")),
                }
            }
            ("has_token", [_, token]) => {
                let token = text_of(token).filter(|token| is_token(token)).ok_or("a token that is no constant")?;
                let text = text_argument(0)?.sql;
                let found = format!("hasToken(ifNull({text}, ''), {})", quoted(token));
                Ok(Value::new(format!("if(isNull({text}), NULL, {found})"), DataType::Boolean))
            }
            ("starts_with", [_, _]) => Ok(Value::new(
                format!("startsWith({}, {})", text_argument(0)?.sql, text_argument(1)?.sql),
                DataType::Boolean,
            )),
            ("ends_with", [_, _]) => Ok(Value::new(
                format!("endsWith({}, {})", text_argument(0)?.sql, text_argument(1)?.sql),
                DataType::Boolean,
            )),
            ("contains", [_, part]) => {
                let part = text_of(part).filter(|part| !part.is_empty()).ok_or("a text to find that is no constant")?;
                let text = text_argument(0)?.sql;
                Ok(Value::new(format!("(position({text}, {}) > 0)", quoted(part)), DataType::Boolean))
            }
            ("octet_length", [_]) => Ok(Value::new(
                cast_to(&format!("length({})", text_argument(0)?.sql), &columns.type_of(whole)?)?,
                columns.type_of(whole)?,
            )),
            ("character_length", [_]) => Ok(Value::new(
                cast_to(&format!("lengthUTF8({})", text_argument(0)?.sql), &columns.type_of(whole)?)?,
                columns.type_of(whole)?,
            )),
            ("coalesce", _) => {
                let data_type = columns.type_of(whole)?;
                let values =
                    args.iter().map(|arg| Ok(self.plain(arg, columns)?.sql)).collect::<Result<Vec<_>, Refusal>>()?;
                Ok(Value::new(cast_to(&format!("coalesce({})", values.join(", ")), &data_type)?, data_type))
            }
            ("nullif", [left, right]) => {
                let (value, equal) = (self.plain(left, columns)?, self.compare(left, Operator::Eq, right, columns)?);
                Ok(Value::new(format!("if(ifNull({equal}, false), NULL, {})", value.sql), value.data_type))
            }
            ("floor" | "ceil" | "abs", [inner]) => {
                let value = self.plain(inner, columns)?;
                match value.data_type {
                    DataType::Float64 => Ok(Value::new(format!("{name}({})", value.sql), DataType::Float64)),
                    other => Err(format!("{name}() of {other}")),
                }
            }
            ("get_field", [inner, Expr::Literal(field, _)]) => {
                let value = self.expr(inner, columns)?;
                let DataType::Struct(fields) = &value.data_type else {
                    return Err("a field of what is no struct".to_owned());
                };
                let field = field.try_as_str().flatten().ok_or("a field that is no constant")?;
                if value.data_type == attributes_type() || fields.iter().any(|field| field.name() == "bucket_counts") {
                    return Err(format!("the field {field} of {}", value.data_type));
                }
                let Some((_, found)) = fields.find(field) else { return Err(format!("there is no field {field}")) };
                Ok(Value::new(format!("tupleElement({}, {})", value.sql, quoted(field)), found.data_type().clone()))
            }
            _ => Err(format!("{name}() runs here")),
        }
    }

    /// The one map that has all values of a key, and their kind.
    fn only_map(&self, container: &Value, key: &str) -> Option<(String, Kind)> {
        let (table, which) = container.origin?;
        let kinds = self.kinds_of(table, which, key).ok()?;
        let kind =
            [Kind::String, Kind::Int, Kind::Bool].into_iter().find(|kind| kinds == Kinds::default().with(*kind))?;
        if container.data_type == context_type() {
            return Some((container.part(Part::Entries)?.to_owned(), kind)).filter(|_| kind == Kind::String);
        }
        let map = match kind {
            Kind::String => "strings",
            Kind::Int => "ints",
            _ => "bools",
        };
        Some((format!("tupleElement({}, '{map}')", container.sql), kind))
    }

    /// The kinds that a key has values of.
    fn kinds_of(&self, table: Table, container: Container, key: &str) -> Result<Kinds, Refusal> {
        if self.kinds.is_repeated(table, container, key) {
            return Err(format!("'{key}', which is there twice in some row"));
        }
        Ok(self.kinds.with_values(table, container, key))
    }

    /// `container['key']`.
    fn attribute(&self, container: &Value, key: &str, data_type: &DataType) -> Result<Value, Refusal> {
        let Some((table, which)) = container.origin else { return Err(format!("'{key}' of nobody knows what")) };
        let kinds = self.kinds_of(table, which, key)?;
        let quoted_key = quoted(key);
        let has = |kind: Kind| kinds.contains(kind);
        if kinds == Kinds::default() {
            return Ok(Value::new(cast_to("NULL", data_type)?, data_type.clone()));
        }
        if container.data_type == context_type() {
            let entries = container.part(Part::Entries).ok_or_else(|| format!("'{key}', which is only in bytes"))?;
            if self.kinds.has_empty(table, which, key) {
                return Err(format!("'{key}', which has no value in some resource"));
            }
            let text = format!("{entries}[{quoted_key}]");
            let typed = match data_type {
                DataType::Utf8 if !has(Kind::Double) => text,
                DataType::Int64 => format!("toInt64OrNull({text})"),
                DataType::Boolean => format!("({text} = 'true')"),
                other => return Err(format!("'{key}' of a resource as {other}")),
            };
            return Ok(Value::new(
                format!("if(mapContains({entries}, {quoted_key}), {typed}, NULL)"),
                data_type.clone(),
            ));
        }
        let mut branches = String::new();
        let mut branch = |map: &str, form: &str| {
            let map = format!("tupleElement({}, '{map}')", container.sql);
            let value = form.replace("{}", &format!("{map}[{quoted_key}]"));
            write!(branches, "mapContains({map}, {quoted_key}), {value}, ").map_err(|error| error.to_string())
        };
        match data_type {
            DataType::Int64 => branch("ints", "{}")?,
            DataType::Boolean => branch("bools", "{}")?,
            DataType::Float64 => {
                branch("doubles", "{}")?;
                if has(Kind::Int) {
                    branch("ints", "toFloat64({})")?;
                }
            }
            DataType::Utf8 => {
                let others = [Kind::Double, Kind::Bytes, Kind::Array, Kind::KvList];
                if let Some(kind) = others.into_iter().find(|kind| has(*kind)) {
                    return Err(format!("'{key}' as text, which is also a {kind:?}"));
                }
                for (kind, map, form) in [
                    (Kind::String, "strings", "{}"),
                    (Kind::Int, "ints", "toString({})"),
                    (Kind::Bool, "bools", "toString({})"),
                ] {
                    if has(kind) {
                        branch(map, form)?;
                    }
                }
            }
            other => return Err(format!("'{key}' as {other}")),
        }
        Ok(Value::new(format!("multiIf({branches}NULL)"), data_type.clone()))
    }

    /// An aggregate over the columns.
    pub(crate) fn aggregate(&self, expr: &Expr, columns: &Columns<'_>) -> Result<Value, Refusal> {
        let call = match expr {
            Expr::Alias(alias) => return self.aggregate(&alias.expr, columns),
            Expr::AggregateFunction(call) => call,
            other => return Err(format!("{} as an aggregate", other.variant_name())),
        };
        let AggregateFunction { func, params } = call;
        let name = func.name();
        if !params.order_by.is_empty() || params.null_treatment.is_some() {
            return Err(format!("{name}() in an order"));
        }
        let filter = match &params.filter {
            None => None,
            Some(filter) => Some(self.truth(filter, columns)?),
        };
        let filtered = |aggregate: String, more: Option<String>| {
            let conditions: Vec<String> = filter.iter().cloned().chain(more).collect();
            if conditions.is_empty() {
                aggregate
            } else {
                format!("{aggregate} FILTER (WHERE {})", conditions.join(" AND "))
            }
        };
        let data_type = columns.type_of(expr)?;
        let argument = |index: usize| self.plain(&params.args[index], columns);
        let sql = match (name, params.args.as_slice(), params.distinct) {
            ("count", [Expr::Literal(value, _)], false) if !value.is_null() => filtered("count()".to_owned(), None),
            ("count", [_], false) => filtered(format!("count({})", argument(0)?.sql), None),
            ("count", [_], true) => {
                let value = argument(0)?;
                if value.data_type == DataType::Float64 {
                    return Err("distinct doubles".to_owned());
                }
                filtered(format!("uniqExact({})", value.sql), None)
            }
            ("sum", [_], false) => filtered(format!("sumOrNull({})", argument(0)?.sql), None),
            ("avg", [_], false) => {
                let value = argument(0)?;
                if value.data_type != DataType::Float64 {
                    return Err(format!("avg() of {}", value.data_type));
                }
                filtered(format!("avgOrNull({})", value.sql), None)
            }
            ("min" | "max", [_], _) => {
                let value = argument(0)?;
                if value.data_type == DataType::Float64 {
                    let function = if name == "min" { "argMinOrNull" } else { "argMaxOrNull" };
                    filtered(format!("{function}({}, {})", value.sql, order_of(&value.sql)), None)
                } else {
                    filtered(format!("{name}OrNull({})", value.sql), None)
                }
            }
            ("quantile", [Expr::Literal(q, _), _], false) => {
                let q = match q.cast_to(&DataType::Float64) {
                    Ok(ScalarValue::Float64(Some(q))) if (0.0..=1.0).contains(&q) => q,
                    _ => return Err("a quantile that is not within 0 and 1".to_owned()),
                };
                let value = argument(1)?;
                if value.data_type != DataType::Float64 {
                    return Err(format!("quantile() of {}", value.data_type));
                }
                quantile(q, &value.sql, &filtered)
            }
            _ => return Err(format!("{name}() runs here")),
        };
        Ok(Value::new(sql, data_type))
    }
}

/// A quantile as [`crate::quantile`] computes it: between the two nearest of up to so many numbers, from a sketch of more.
fn quantile(q: f64, value: &str, filtered: &dyn Fn(String, Option<String>) -> String) -> String {
    let number = Some(format!("NOT isNaN({value})"));
    let count = filtered(format!("count({value})"), number.clone());
    let some = filtered(format!("groupArray({EXACT_VALUES_MAX})({value})"), number.clone());
    // It counts numbers by their first eight binary digits, which is within 0.4 % of them from the middle of what is cut
    // off, in memory that is bounded whatever they are.
    let cut = filtered(format!("quantileBFloat16({q:?})({value})"), number.clone());
    let (least, greatest) =
        (filtered(format!("min({value})"), number.clone()), filtered(format!("max({value})"), number));
    let sketch = format!("least(greatest({cut} * {CUT_OFF:?}, {least}), {greatest})");
    let rank = format!("({q:?} * (length(v) - 1))");
    let lower = format!("v[toUInt64(floor({rank})) + 1]");
    let upper = format!("v[least(toUInt64(floor({rank})) + 2, length(v))]");
    let weight = format!("({rank} - floor({rank}))");
    let between = format!("{lower} * (1.0 - {weight}) + {upper} * {weight}");
    let exact = format!(
        "arrayMap(v -> multiIf(empty(v), NULL, {weight} = 0.0 OR {lower} = {upper}, {lower}, {between}), [arraySort({some})])[1]"
    );
    format!("if({count} > {EXACT_VALUES_MAX}, {sketch}, {exact})")
}

/// The start of the bucket a time is in; buckets begin at `origin` nanoseconds after a multiple of their width.
fn bucket(time: &str, width: i64, origin: i64) -> String {
    let nanos = format!("toUnixTimestamp64Nano({time})");
    let shifted = if origin == 0 { nanos.clone() } else { format!("{nanos} - {origin}") };
    format!("fromUnixTimestamp64Nano(toInt64({nanos} - positiveModulo({shifted}, {width})), 'UTC')")
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(store::filter::keys::is_token_byte)
}

/// Container and key of `attribute(container, 'key')`.
fn attribute_call(expr: &Expr) -> Option<(&Expr, &str)> {
    match expr {
        Expr::Alias(alias) => attribute_call(&alias.expr),
        Expr::ScalarFunction(call) if call.name() == "attribute" => match call.args.as_slice() {
            [container, key] => Some((container, text_of(key)?)),
            _ => None,
        },
        _ => None,
    }
}
