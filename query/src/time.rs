//! Time in SQL: `time_bucket(interval, time [, origin])` and `duration(…)`.
//!
//! Both work on fixed lengths only: a day is 24 hours of UTC, and a calendar month has no length.
//! A constant call is folded when the query is planned, so that `duration_ns > duration('500ms')`
//! and `time_bucket('1m', time) = '…'` reach statistics as plain comparisons. Not here: what
//! DataFusion offers already (`date_trunc`, `date_part`, `now`).

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, IntervalUnit, TimeUnit, TimestampNanosecondType};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use model::schema::time_type;

use crate::error::{ErrorKind, QueryError, external};
use crate::render::type_name;

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Units of a length of time with their nanoseconds, the largest first, as they must be written.
const UNITS: [(&[&str], i64); 8] = [
    (&["w", "week", "weeks"], 7 * DAY),
    (&["d", "day", "days"], DAY),
    (&["h", "hour", "hours"], HOUR),
    (&["m", "min", "minute", "minutes"], MINUTE),
    (&["s", "sec", "second", "seconds"], SECOND),
    (&["ms", "millisecond", "milliseconds"], 1_000_000),
    // The micro sign and the Greek letter look the same and are both typed.
    (&["us", "µs", "μs", "microsecond", "microseconds"], 1_000),
    (&["ns", "nanosecond", "nanoseconds"], 1),
];

/// Units without a fixed length, which people try.
const CALENDAR_UNITS: [&str; 6] = ["mo", "month", "months", "y", "year", "years"];

const CALENDAR_HINT: &str = "use weeks or days, or date_trunc('month', time) for calendar months";

/// The functions of this file.
pub(crate) fn functions() -> [Arc<ScalarUDF>; 2] {
    let signature = || Signature::user_defined(Volatility::Immutable);
    [
        Arc::new(ScalarUDF::new_from_impl(TimeBucket { signature: signature() })),
        Arc::new(ScalarUDF::new_from_impl(DurationText { signature: signature() })),
    ]
}

fn bad(message: String) -> QueryError {
    QueryError::new(ErrorKind::BadQuery, message)
}

fn calendar() -> QueryError {
    bad("a calendar month or year has no fixed length".to_owned()).hint(CALENDAR_HINT)
}

/// Reads a length of time, `500ms`, `1.5 s`, `1h 30m`, `-2 days`, as nanoseconds: each unit at most
/// once, the largest first. A fraction below a nanosecond is rounded.
///
/// # Errors
/// [`ErrorKind::BadQuery`] that says what is expected.
pub(crate) fn parse_duration(text: &str) -> std::result::Result<i64, QueryError> {
    let refuse = |why: &str| {
        let shown: String = text.chars().take(64).collect();
        Err(bad(format!("`{shown}` is not a duration: {why}")).hint("write '500ms', '1.5s', '5m', '1h30m' or '7d'"))
    };
    let (negative, mut rest) = match text.trim().strip_prefix('-') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text.trim()),
    };
    if rest.is_empty() {
        return refuse("it is empty");
    }
    let mut total: i128 = 0;
    let mut next_unit = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // Nineteen digits of each keep every product below within 128 bits.
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.len() > 19 {
            return refuse("expected a number of at most 19 digits");
        }
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_alphabetic() && c != 'µ').unwrap_or(after.len());
        let (unit, tail) = after.split_at(end);
        if unit.is_empty() {
            return refuse("a number needs a unit: ns, us, ms, s, m (minutes), h, d or w");
        }
        let lower = unit.to_lowercase();
        let Some(index) = UNITS.iter().position(|(names, _)| names.contains(&lower.as_str())) else {
            return if CALENDAR_UNITS.contains(&lower.as_str()) {
                Err(calendar())
            } else {
                refuse("the units are ns, us, ms, s, m (minutes), h, d and w")
            };
        };
        if index < next_unit {
            return refuse("write each unit once, the largest first, as in 1h30m");
        }
        next_unit = index + 1;
        let unit_ns = i128::from(UNITS[index].1);
        let digits = |digits: &str| digits.parse::<i128>().ok().or_else(|| digits.is_empty().then_some(0));
        let (Some(whole), Some(fraction_digits)) = (digits(whole), digits(fraction)) else {
            return refuse("expected a number before the unit");
        };
        let scale = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or_default());
        total += whole * unit_ns + (fraction_digits * unit_ns + scale / 2) / scale;
        rest = tail.trim_start();
    }
    match i64::try_from(if negative { -total } else { total }) {
        Ok(nanos) => Ok(nanos),
        Err(_overflow) => refuse("it is longer than 64 bits of nanoseconds can count (292 years)"),
    }
}

/// Appends a length of time for people: three significant digits up to a minute (`12.3 ms`,
/// `1.24 s`), then the two largest units (`2m 5s`, `3d 4h`). [`parse_duration`] reads it back.
pub fn write_duration(nanos: i64, out: &mut String) {
    if nanos < 0 {
        out.push('-');
    }
    let nanos = nanos.unsigned_abs();
    let [second, minute, hour, day] = [SECOND, MINUTE, HOUR, DAY].map(i64::unsigned_abs);
    // Rounded before the unit is chosen, so that 999.9 ms is `1 s` and not `1000 ms`.
    let digits = nanos.checked_ilog10().unwrap_or(0) + 1;
    let step = 10_u64.pow(digits.saturating_sub(3));
    let rounded = (nanos + step / 2) / step * step;
    if rounded < minute {
        let (unit, name) = match rounded {
            0 => (1, "s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (second, "s"),
        };
        write!(out, "{}", rounded / unit).expect("a String takes everything");
        let fraction = format!("{:03}", rounded % unit * 1_000 / unit);
        let fraction = fraction.trim_end_matches('0');
        if !fraction.is_empty() {
            write!(out, ".{fraction}").expect("a String takes everything");
        }
        write!(out, " {name}").expect("a String takes everything");
        return;
    }
    let pairs =
        [((minute, "m"), (second, "s"), hour), ((hour, "h"), (minute, "m"), day), ((day, "d"), (hour, "h"), u64::MAX)];
    for ((large, large_name), (small, small_name), below) in pairs {
        let rounded = (nanos + small / 2) / small * small;
        if rounded < below {
            write!(out, "{}{large_name}", rounded / large).expect("a String takes everything");
            let rest = rounded % large / small;
            if rest > 0 {
                write!(out, " {rest}{small_name}").expect("a String takes everything");
            }
            return;
        }
    }
}

/// The width of a bucket from the first argument, nanoseconds; `None` when it is null.
fn bucket_width(value: &ScalarValue) -> std::result::Result<Option<i64>, QueryError> {
    let days = |days: i32, nanos: i128| i64::try_from(i128::from(days) * i128::from(DAY) + nanos).ok();
    let width = match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months != 0 => return Err(calendar()),
        ScalarValue::IntervalMonthDayNano(Some(interval)) => days(interval.days, i128::from(interval.nanoseconds)),
        ScalarValue::DurationNanosecond(Some(nanos)) => Some(*nanos),
        other => match other.try_as_str() {
            Some(Some(text)) => Some(parse_duration(text)?),
            _ if other.is_null() => return Ok(None),
            _ => {
                return Err(bad(format!("time_bucket() expects an interval, found {}", type_name(&other.data_type()))));
            }
        },
    };
    match width {
        Some(width) if width > 0 => Ok(Some(width)),
        Some(_) => Err(bad("the interval of time_bucket() must be longer than zero".to_owned())),
        None => Err(bad("the interval of time_bucket() is longer than 292 years".to_owned())),
    }
}

/// The start of the bucket a time is in; `None` when that is before the first representable time.
fn bucket_start(time: i64, width: i64, origin: i64) -> Option<i64> {
    // Each remainder is below the width, so nothing overflows but a start that cannot be told.
    let into = time.rem_euclid(width) - origin.rem_euclid(width);
    time.checked_sub(if into < 0 { into + width } else { into })
}

/// Width and origin of a call of `time_bucket` whose interval and origin are constants, nanoseconds.
pub(crate) fn bucket_of(args: &[Expr]) -> Option<(i64, i64)> {
    TimeBucket::constants(args)
}

/// `time_bucket(interval, time [, origin])`
#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
}

impl TimeBucket {
    /// Width and origin when both are literals.
    fn constants(args: &[Expr]) -> Option<(i64, i64)> {
        let Some(Expr::Literal(width, _)) = args.first() else { return None };
        let width = bucket_width(width).ok()??;
        match args.get(2) {
            None => Some((width, 0)),
            Some(Expr::Literal(ScalarValue::TimestampNanosecond(Some(origin), _), _)) => Some((width, *origin)),
            Some(_) => None,
        }
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        if !(2..=3).contains(&arg_types.len()) {
            return plan_err!("time_bucket() expects (interval, time [, origin]), found {} arguments", arg_types.len());
        }
        let mut types = Vec::with_capacity(arg_types.len());
        types.push(match &arg_types[0] {
            DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
            DataType::Duration(_) => DataType::Duration(TimeUnit::Nanosecond),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
            other => {
                return plan_err!(
                    "time_bucket() expects an interval such as '10s' or INTERVAL '5 minutes', found {}",
                    type_name(other)
                );
            }
        });
        for data_type in &arg_types[1..] {
            match data_type {
                DataType::Timestamp(..)
                | DataType::Date32
                | DataType::Date64
                | DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Null => types.push(time_type()),
                other => return plan_err!("time_bucket() expects a timestamp, found {}", type_name(other)),
            }
        }
        Ok(types)
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(time_type())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<arrow::datatypes::FieldRef> {
        // A wrong interval is an error of the text, whether there are rows or not.
        if let Some(Some(width)) = args.scalar_arguments.first() {
            bucket_width(width).map_err(external)?;
        }
        Ok(Arc::new(arrow::datatypes::Field::new(self.name(), time_type(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ColumnarValue::Scalar(width) = &args.args[0] else {
            return exec_err!("the interval of time_bucket() must be a constant");
        };
        let origin = match args.args.get(2) {
            None => Some(0),
            Some(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(origin, _))) => *origin,
            Some(_) => return exec_err!("the origin of time_bucket() must be a constant"),
        };
        let (Some(width), Some(origin)) = (bucket_width(width).map_err(external)?, origin) else {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(time_type())?));
        };
        match &args.args[1] {
            ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(time, zone)) => {
                let start = time.and_then(|time| bucket_start(time, width, origin));
                Ok(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(start, zone.clone())))
            }
            times => {
                let times = times.to_array(args.number_rows)?;
                let times: &TimestampNanosecondArray = times.as_primitive::<TimestampNanosecondType>();
                let starts = times.unary_opt::<_, TimestampNanosecondType>(|time| bucket_start(time, width, origin));
                Ok(ColumnarValue::Array(Arc::new(starts.with_timezone("UTC"))))
            }
        }
    }

    /// `time_bucket(w, t) >= b` is `t >= b` when a bucket starts at `b`, and so on.
    fn preimage(&self, args: &[Expr], lit_expr: &Expr, _info: &SimplifyContext) -> Result<PreimageResult> {
        let Some((width, origin)) = Self::constants(args) else { return Ok(PreimageResult::None) };
        let Expr::Literal(ScalarValue::TimestampNanosecond(Some(start), zone), _) = lit_expr else {
            return Ok(PreimageResult::None);
        };
        if bucket_start(*start, width, origin) != Some(*start) {
            return Ok(PreimageResult::None);
        }
        let Some(end) = start.checked_add(width) else { return Ok(PreimageResult::None) };
        let bound = |time| ScalarValue::TimestampNanosecond(Some(time), zone.clone());
        let interval = Box::new(Interval::try_new(bound(*start), bound(end))?);
        Ok(PreimageResult::Range { expr: args[1].clone(), interval })
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        let constant = |index: usize| {
            inputs.get(index).is_none_or(|input: &ExprProperties| input.sort_properties == SortProperties::Singleton)
        };
        Ok(if constant(0) && constant(2) { inputs[1].sort_properties } else { SortProperties::Unordered })
    }
}

/// `duration(nanoseconds)`, text for people, and `duration(text)`, nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct DurationText {
    signature: Signature,
}

impl ScalarUDFImpl for DurationText {
    fn name(&self) -> &str {
        "duration"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [argument] = arg_types else {
            return plan_err!("duration() expects one argument, found {}", arg_types.len());
        };
        Ok(vec![match argument {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::Dictionary(_, value) if value.is_string() => DataType::Utf8,
            // What one time minus another is.
            DataType::Duration(_) => DataType::Duration(TimeUnit::Nanosecond),
            DataType::Null => DataType::Int64,
            number if number.is_numeric() => DataType::Int64,
            other => {
                return plan_err!("duration() expects nanoseconds or text such as '1.5s', found {}", type_name(other));
            }
        }])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(if arg_types[0] == DataType::Utf8 { DataType::Int64 } else { DataType::Utf8 })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = matches!(args.args[0], ColumnarValue::Scalar(_));
        let argument = args.args[0].to_array(if is_scalar { 1 } else { args.number_rows })?;
        let result: ArrayRef = match argument.data_type() {
            DataType::Utf8 => {
                let texts: &StringArray = argument.as_string();
                let nanos = texts.iter().map(|text| text.map(parse_duration).transpose());
                Arc::new(nanos.collect::<std::result::Result<Int64Array, _>>().map_err(external)?)
            }
            _ => {
                let nanos = cast(&argument, &DataType::Int64)?;
                let nanos: &Int64Array = nanos.as_primitive::<Int64Type>();
                let texts = nanos.iter().map(|nanos| {
                    let mut text = String::new();
                    write_duration(nanos?, &mut text);
                    Some(text)
                });
                Arc::new(texts.collect::<StringArray>())
            }
        };
        if is_scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_exactly_or_refused_with_a_correction() {
        let units = "the units are";
        let order = "the largest first";
        let rows: &[(&str, std::result::Result<i64, &str>)] = &[
            ("500ms", Ok(500_000_000)),
            ("1.5s", Ok(1_500_000_000)),
            ("1.5 s", Ok(1_500_000_000)),
            (" 2m 5s ", Ok(125 * SECOND)),
            ("1h30m", Ok(90 * MINUTE)),
            ("10 seconds", Ok(10 * SECOND)),
            ("1 Minute", Ok(MINUTE)),
            ("7d", Ok(7 * DAY)),
            ("1w", Ok(7 * DAY)),
            ("12.3 µs", Ok(12_300)),
            ("12.3μs", Ok(12_300)),
            ("1us", Ok(1_000)),
            ("1ns", Ok(1)),
            ("0.4ns", Ok(0)),
            ("0.5ns", Ok(1)),
            (".5s", Ok(SECOND / 2)),
            ("5.s", Ok(5 * SECOND)),
            ("0s", Ok(0)),
            ("-2s", Ok(-2 * SECOND)),
            ("9223372036854775807ns", Ok(i64::MAX)),
            ("9223372036854775808ns", Err("292 years")),
            ("-9223372036854775808ns", Ok(i64::MIN)),
            ("92233720368547758070ns", Err("19 digits")),
            ("106751d", Ok(106_751 * DAY)),
            ("106752d", Err("292 years")),
            ("", Err("empty")),
            ("-", Err("empty")),
            ("s", Err("number")),
            (".s", Err("number")),
            ("1.2.3s", Err("number before the unit")),
            ("30", Err("needs a unit")),
            ("1h30", Err("needs a unit")),
            ("30 parsec", Err(units)),
            ("30m1h", Err(order)),
            ("1m1m", Err(order)),
            ("1mo", Err("no fixed length")),
            ("2 years", Err("no fixed length")),
            ("1e3s", Err(units)),
            ("1s!", Err("number")),
        ];
        for (text, want) in rows {
            match (parse_duration(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, *want, "{text:?}"),
                (Err(got), Err(want)) => assert!(got.message.contains(want), "{text:?}: {got:?}"),
                (got, want) => panic!("{text:?}: expected {want:?}, found {got:?}"),
            }
        }
    }

    #[test]
    fn durations_are_written_for_people() {
        for (nanos, want) in [
            (0, "0 s"),
            (1, "1 ns"),
            (999, "999 ns"),
            (1_000, "1 µs"),
            (1_234, "1.23 µs"),
            (999_499, "999 µs"),
            (999_500, "1 ms"),
            (12_345_678, "12.3 ms"),
            (123_456_789, "123 ms"),
            (500_000_000, "500 ms"),
            (1_240_000_000, "1.24 s"),
            (59_949_999_999, "59.9 s"),
            (59_950_000_000, "1m"),
            (125 * SECOND, "2m 5s"),
            (HOUR - 1, "1h"),
            (HOUR + 90 * SECOND, "1h 2m"),
            (DAY - SECOND, "1d"),
            (3 * DAY + 4 * HOUR + 29 * MINUTE, "3d 4h"),
            (-1_500_000, "-1.5 ms"),
            (i64::MAX, "106752d"),
            (i64::MIN, "-106752d"),
        ] {
            let mut got = String::new();
            write_duration(nanos, &mut got);
            assert_eq!(got, want, "{nanos}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_to_its_precision(nanos in -100_000 * DAY..100_000 * DAY, shift in 0_u32..50) {
            let nanos = nanos >> shift;
            let mut text = String::new();
            write_duration(nanos, &mut text);
            let read = parse_duration(&text).unwrap();
            // Half an hour of a day is the coarsest it gets.
            let allowed = nanos.unsigned_abs() / 48;
            prop_assert!(read.abs_diff(nanos) <= allowed, "{nanos} as {text} reads as {read}");
        }

        #[test]
        fn a_bucket_holds_its_time_and_starts_a_whole_number_of_widths_from_the_origin(
            time in any::<i64>(),
            width in 1..i64::MAX,
            origin in any::<i64>(),
        ) {
            match bucket_start(time, width, origin) {
                Some(start) => {
                    let (time, start, width) = (i128::from(time), i128::from(start), i128::from(width));
                    prop_assert!(start <= time && time - start < width);
                    prop_assert_eq!((start - i128::from(origin)).rem_euclid(width), 0);
                    prop_assert_eq!(bucket_start(start as i64, width as i64, origin), Some(start as i64));
                }
                // Only the first bucket of all can start before the first representable time.
                None => prop_assert!(i128::from(time) - i128::from(width) < i128::from(i64::MIN)),
            }
        }
    }
}
