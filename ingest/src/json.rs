//! OTLP/JSON to OTLP/protobuf: one request body becomes the wire bytes of the same request.
//!
//! The receiver has one decoder, for protobuf; this module lets JSON bodies reach it. It walks the JSON text
//! once, guided by the static tables in `descriptor`, and writes wire bytes as it goes: no JSON tree and no
//! message structs are built. It judges syntax and types only. Identifiers of a wrong length, values nested
//! too deeply, times out of range and the like are judged per item by the decoder, so that both encodings
//! reject the same items for the same reasons. It is NOT a general proto3 JSON parser: OTLP writes
//! identifiers as hexadecimal, enums as integers and keys in lowerCamelCase only.

mod descriptor;
mod render;
#[cfg(test)]
pub mod testing;

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use model::limits::VALUE_DEPTH_MAX;
use model::signal::Signal;
use model::wire::put_varint;

use descriptor::{Field, Kind, Message};
pub use render::render;

/// How many `AnyValue` messages may be nested, the outermost counted as 1, before the rest is skipped.
///
/// The decoder rejects the item whose value has more than [`VALUE_DEPTH_MAX`] containers around it, which is
/// one value fewer than this. One level of excess is enough for it to see; whatever is deeper could only cost
/// stack and bytes.
pub const MAX_JSON_VALUE_DEPTH: u32 = VALUE_DEPTH_MAX as u32 + 2;

/// How many times larger than the JSON text the protobuf bytes can be.
///
/// The worst case is an array of zeros for a packed `fixed64` field: `0,` becomes 8 bytes. The caller's
/// memory budget for one request has to allow for it.
pub const MAX_EXPANSION: usize = 4;

/// How long the text of a [`JsonError`] can be, in bytes: it is echoed to the client and to the log.
pub const MAX_ERROR_BYTES: usize = 200;

/// Bytes reserved for the length of a nested message before it is known: 5 varint bytes hold 35 bits, more
/// than any request that fits in memory limits.
const LENGTH_BYTES: usize = 5;

/// Lengths below this fit in one varint byte; such messages are moved down over their reserved bytes.
const SHORT_LENGTH: usize = 0x80;

const BASE64_CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64_STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, BASE64_CONFIG);
const BASE64_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, BASE64_CONFIG);

/// What was accepted although the sender may want to know about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warnings {
    /// Keys that the schema does not have (snake_case spellings among them), ignored as OTLP demands.
    pub unknown_fields: u64,
    /// Values cut at [`MAX_JSON_VALUE_DEPTH`]; the decoder rejects the items that hold them.
    pub cut_values: u64,
}

/// Why a body is not an OTLP/JSON request. The whole request is refused; retrying it cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// JSON text is UTF-8 by definition.
    #[error("request body is not utf-8: invalid byte at offset {offset}")]
    NotUtf8 {
        /// How many bytes before the first invalid one are valid.
        offset: usize,
    },
    /// The text is not JSON, or a value is not what its field takes.
    #[error("invalid otlp json at line {line} column {column}: {reason}")]
    Invalid {
        /// Line of the offending text, from 1.
        line: usize,
        /// Byte column of the offending text, from 1; it may point one byte behind the value.
        column: usize,
        /// What was expected and found; never a value of the sender's, at most [`MAX_ERROR_BYTES`] in all.
        reason: String,
    },
}

/// Appends the protobuf wire bytes of the request in `json` to `out`.
///
/// Every JSON value that is present and not null is written, defaults too, so a repeated key behaves as
/// protobuf has it: the last scalar wins, messages merge, arrays concatenate. Integers written as numbers
/// with a fraction or exponent (`1e3`) pass through `f64` like any JSON number; strings are read exactly.
///
/// # Errors
/// [`JsonError`] when the body is not UTF-8, not one JSON object, or holds a value of a wrong type or range.
/// `out` then has the length it had before.
pub fn transcode(signal: Signal, json: &[u8], out: &mut Vec<u8>) -> Result<Warnings, JsonError> {
    let text = match simdutf8::basic::from_utf8(json) {
        Ok(text) => text,
        Err(_) => {
            let offset = std::str::from_utf8(json).err().map_or(0, |error| error.valid_up_to());
            return Err(JsonError::NotUtf8 { offset });
        }
    };
    let start = out.len();
    // Keys and quotes weigh more than tags and lengths: usual bodies shrink to less than half.
    out.reserve(json.len() / 2);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // The schema bounds the recursion of messages and `MAX_JSON_VALUE_DEPTH` that of values; ignored values
    // are skipped without recursion. The parser's own limit would refuse whole requests for one deep item.
    deserializer.disable_recursion_limit();
    let mut writer = Writer { out, value_depth: 0, warnings: Warnings::default() };
    let result = serde::Deserializer::deserialize_any(
        &mut deserializer,
        Request { writer: &mut writer, message: descriptor::request(signal) },
    )
    .and_then(|()| deserializer.end());
    let warnings = writer.warnings;
    result.map(|()| warnings).map_err(|error| {
        out.truncate(start);
        invalid(&error)
    })
}

/// Turns the parser's error into ours: its position kept, its text shortened to the limit.
fn invalid(error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let mut reason = error.to_string();
    let position = format!(" at line {line} column {column}");
    if let Some(stripped) = reason.strip_suffix(&position) {
        reason.truncate(stripped.len());
    }
    // Two 20-digit numbers and the fixed words take less than 80 bytes of the limit.
    let mut end = reason.len().min(MAX_ERROR_BYTES - 80);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    JsonError::Invalid { line, column, reason }
}

/// The output and what is counted on the way.
struct Writer<'o> {
    out: &'o mut Vec<u8>,
    /// How many `AnyValue` messages are open.
    value_depth: u32,
    warnings: Warnings,
}

/// Where a reserved length stands in the output.
struct Reserved(usize);

impl Writer<'_> {
    fn varint(&mut self, value: u64) {
        put_varint(self.out, value);
    }

    fn tag(&mut self, number: u32, wire_type: u32) {
        self.varint(u64::from(number << 3 | wire_type));
    }

    /// Reserves room for a length. [`Writer::close`] fills it in.
    fn open(&mut self) -> Reserved {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        Reserved(at)
    }

    /// Writes the length of everything since `open`.
    ///
    /// Short messages, nearly all of them, move down to a one-byte length: at most 127 bytes are copied per
    /// message, so the work stays linear in the output. Long ones keep the padded five-byte varint, which
    /// protobuf allows and which spares moving megabytes once per level.
    fn close(&mut self, reserved: Reserved) {
        let Reserved(at) = reserved;
        let body = at + LENGTH_BYTES;
        let length = self.out.len() - body;
        if length < SHORT_LENGTH {
            self.out[at] = length as u8;
            self.out.copy_within(body.., at + 1);
            self.out.truncate(at + 1 + length);
        } else {
            for (index, byte) in self.out[at..body].iter_mut().enumerate() {
                let more = if index + 1 < LENGTH_BYTES { 0x80 } else { 0 };
                *byte = (length >> (7 * index)) as u8 & 0x7f | more;
            }
        }
    }

    /// Writes the members of an object as the fields of `message`.
    fn members<'de, A: MapAccess<'de>>(&mut self, message: &'static Message, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Key { message })? {
            match key {
                Some(field) => {
                    let place = if field.repeated { Place::Array } else { Place::Single };
                    map.next_value_seed(Slot { writer: self, field, place })?;
                }
                None => {
                    self.warnings.unknown_fields += 1;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    /// Writes an object as one nested message, or as an empty one where values are nested too deeply.
    fn nested<'de, A: MapAccess<'de>>(
        &mut self,
        field: &Field,
        message: &'static Message,
        mut map: A,
    ) -> Result<(), A::Error> {
        self.tag(field.number, field.kind.wire_type());
        if message.is_value && self.value_depth + 1 >= MAX_JSON_VALUE_DEPTH {
            self.warnings.cut_values += 1;
            self.varint(0);
            while map.next_key::<IgnoredAny>()?.is_some() {
                map.next_value::<IgnoredAny>()?;
            }
            return Ok(());
        }
        self.value_depth += u32::from(message.is_value);
        let reserved = self.open();
        self.members(message, map)?;
        self.close(reserved);
        self.value_depth -= u32::from(message.is_value);
        Ok(())
    }
}

/// The top level of the body: an object, nothing else.
struct Request<'w, 'o> {
    writer: &'w mut Writer<'o>,
    message: &'static Message,
}

impl<'de> Visitor<'de> for Request<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an export request object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.writer.members(self.message, map)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        // The default would echo the sender's text.
        Err(E::custom("expected an export request object, found a string"))
    }
}

/// Looks a key up; `None` is a key that the schema does not have.
struct Key {
    message: &'static Message,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static Field>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static Field>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.message.field(name))
    }
}

/// In which position of its field a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The value of a field that is not repeated. Null leaves it unset.
    Single,
    /// The array of a repeated field. Null leaves it empty.
    Array,
    /// An element of a repeated field, with a tag of its own. Null is an error.
    Element,
    /// An element of a packed block, without a tag. Null is an error.
    Packed,
}

/// One value on its way to the wire.
struct Slot<'w, 'o> {
    writer: &'w mut Writer<'o>,
    field: &'static Field,
    place: Place,
}

impl Slot<'_, '_> {
    /// The error for a value of a wrong type; it names types, never the value.
    fn mismatch<E: serde::de::Error>(&self, found: &str) -> E {
        let name = self.field.name;
        let expected = self.field.kind.expected();
        match self.place {
            Place::Array => E::custom(format_args!("{name}: expected an array, found {found}")),
            Place::Element | Place::Packed => {
                E::custom(format_args!("{name}: expected an array of which each element is {expected}, found {found}"))
            }
            Place::Single => E::custom(format_args!("{name}: expected {expected}, found {found}")),
        }
    }

    /// Writes the tag, except inside a packed block, where elements have none.
    fn tag(&mut self) {
        if self.place != Place::Packed {
            self.writer.tag(self.field.number, self.field.kind.wire_type());
        }
    }

    /// Writes an integer that is exact in an `i128`.
    fn integer<E: serde::de::Error>(mut self, value: i128, found: &str) -> Result<(), E> {
        if self.place == Place::Array {
            return Err(self.mismatch(found));
        }
        let (min, max) = match self.field.kind {
            Kind::Int32 | Kind::Sint32 | Kind::Enum => (i128::from(i32::MIN), i128::from(i32::MAX)),
            Kind::Uint32 | Kind::Fixed32 => (0, i128::from(u32::MAX)),
            Kind::Uint64 | Kind::Fixed64 => (0, i128::from(u64::MAX)),
            Kind::Int64 | Kind::Sfixed64 => (i128::from(i64::MIN), i128::from(i64::MAX)),
            _ => return Err(self.mismatch(found)),
        };
        if value < min || value > max {
            return Err(self.mismatch("an integer out of range"));
        }
        self.tag();
        // Within the range just checked, the low 64 (or 32) bits are the two's complement the wire wants.
        let bits = value as u64;
        match self.field.kind {
            Kind::Sint32 => self.writer.varint(u64::from(((value as i32) << 1 ^ (value as i32) >> 31) as u32)),
            Kind::Fixed32 => self.writer.out.extend_from_slice(&(value as u32).to_le_bytes()),
            Kind::Fixed64 | Kind::Sfixed64 => self.writer.out.extend_from_slice(&bits.to_le_bytes()),
            _ => self.writer.varint(bits),
        }
        Ok(())
    }

    /// Writes a `double`.
    fn double<E: serde::de::Error>(mut self, value: f64) -> Result<(), E> {
        if self.place == Place::Array {
            return Err(self.mismatch("a number"));
        }
        self.tag();
        self.writer.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Slot<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Slot<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.field.kind.expected())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        match self.place {
            Place::Single | Place::Array => Ok(()),
            Place::Element | Place::Packed => Err(self.mismatch("null")),
        }
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<(), E> {
        match (self.field.kind, self.place) {
            (Kind::Bool, Place::Single | Place::Element | Place::Packed) => {
                self.tag();
                self.writer.out.push(u8::from(value));
                Ok(())
            }
            _ => Err(self.mismatch("a boolean")),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match self.field.kind {
            Kind::Double => self.double(value as f64),
            _ => self.integer(i128::from(value), "a number"),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        match self.field.kind {
            Kind::Double => self.double(value as f64),
            _ => self.integer(i128::from(value), "a number"),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.field.kind {
            Kind::Double => self.double(value),
            // Rounding brings integers just below the range of `int64` to its very end. The end itself
            // arrives as `i64` when written plainly, so a float that stands there is not trusted.
            _ if value == i64::MIN as f64 => Err(self.mismatch("an integer out of range")),
            // The cast saturates, and no saturated value is in the range of any integer kind.
            _ if value.fract() == 0.0 => self.integer(value as i128, "a number"),
            _ => Err(self.mismatch("a number with a fraction")),
        }
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<(), E> {
        if self.place == Place::Array {
            return Err(self.mismatch("a string"));
        }
        match self.field.kind {
            Kind::String => {
                self.tag();
                self.writer.varint(value.len() as u64);
                self.writer.out.extend_from_slice(value.as_bytes());
                Ok(())
            }
            Kind::Hex => {
                if !value.len().is_multiple_of(2) {
                    return Err(self.mismatch("an odd number of digits"));
                }
                self.tag();
                self.writer.varint(value.len() as u64 / 2);
                let at = self.writer.out.len();
                self.writer.out.resize(at + value.len() / 2, 0);
                hex::decode_to_slice(value, &mut self.writer.out[at..])
                    .map_err(|_| self.mismatch("a character that is no hexadecimal digit"))
            }
            Kind::Bytes => {
                let engine = if value.contains(['-', '_']) { &BASE64_URL_SAFE } else { &BASE64_STANDARD };
                self.tag();
                let reserved = self.writer.open();
                engine.decode_vec(value, self.writer.out).map_err(|_| self.mismatch("a string that is no base64"))?;
                self.writer.close(reserved);
                Ok(())
            }
            Kind::Double => match double_from_str(value) {
                Some(value) => self.double(value),
                None => Err(self.mismatch("a string that is no number in range")),
            },
            Kind::Int32
            | Kind::Sint32
            | Kind::Uint32
            | Kind::Uint64
            | Kind::Int64
            | Kind::Fixed32
            | Kind::Fixed64
            | Kind::Sfixed64 => match integer_from_str(value) {
                Some(value) => self.integer(value, "a string"),
                None => Err(self.mismatch("a string that is no integer in range")),
            },
            Kind::Bool | Kind::Enum | Kind::Message(_) => Err(self.mismatch("a string")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { writer, field, place } = self;
        if place != Place::Array {
            return Err(Slot { writer, field, place }.mismatch("an array"));
        }
        if field.kind.packs() {
            let start = writer.out.len();
            writer.tag(field.number, 2);
            let reserved = writer.open();
            let body = writer.out.len();
            while seq.next_element_seed(Slot { writer, field, place: Place::Packed })?.is_some() {}
            if writer.out.len() == body {
                // An empty repeated field is an absent one.
                writer.out.truncate(start);
            } else {
                writer.close(reserved);
            }
        } else {
            while seq.next_element_seed(Slot { writer, field, place: Place::Element })?.is_some() {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        match (self.field.kind, self.place) {
            (Kind::Message(message), Place::Single | Place::Element) => self.writer.nested(self.field, message, map),
            _ => Err(self.mismatch("an object")),
        }
    }
}

/// A JSON number taken apart: sign, digits before and after the point, exponent.
struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    exponent: i64,
}

/// Splits `text` by JSON's grammar of numbers; `None` when it is not one. No spaces, plus sign or leading zeros.
fn decimal(text: &str) -> Option<Decimal<'_>> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, rest) = rest.split_at(digits(rest));
    if whole.is_empty() || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => match digits(rest) {
            0 => return None,
            count => rest.split_at(count),
        },
        None => ("", rest),
    };
    let exponent = match rest.strip_prefix(['e', 'E']) {
        Some(rest) => {
            let (sign, rest) = match rest.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, rest.strip_prefix('+').unwrap_or(rest)),
            };
            if rest.is_empty() || digits(rest) != rest.len() {
                return None;
            }
            // Only its being huge matters for an exponent that does not fit; half the range leaves room to add.
            sign * rest.parse::<i64>().unwrap_or(i64::MAX).min(i64::MAX / 2)
        }
        None if rest.is_empty() => 0,
        None => return None,
    };
    Some(Decimal { negative, whole, fraction, exponent })
}

/// The exact integer that a decimal string denotes; `None` when it is no number, has a fraction or more than
/// 20 digits, which no 64-bit integer has.
fn integer_from_str(text: &str) -> Option<i128> {
    const MAX_DIGITS: i64 = 20;
    let Decimal { negative, whole, fraction, exponent } = decimal(text)?;
    let trailing = |digits: &str| digits.len() - digits.trim_end_matches('0').len();
    // Trailing zeros of the mantissa move into the exponent, which then says whether the value is whole.
    let mut zeros = trailing(fraction);
    if zeros == fraction.len() {
        zeros += trailing(whole);
    }
    let digits = whole.bytes().chain(fraction.bytes());
    let significant = whole.len() + fraction.len() - zeros;
    let mantissa = || digits.clone().take(significant).skip_while(|digit| *digit == b'0');
    let count = mantissa().count() as i64;
    if count == 0 {
        return Some(0);
    }
    let exponent = exponent - fraction.len() as i64 + zeros as i64;
    if exponent < 0 || count + exponent > MAX_DIGITS {
        return None;
    }
    let value = mantissa().fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    let value = value * 10i128.pow(exponent as u32);
    Some(if negative { -value } else { value })
}

/// The double that a string denotes: a JSON number, or one of the three words of proto3 JSON.
fn double_from_str(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => {
            decimal(text)?;
            text.parse().ok().filter(|value: &f64| value.is_finite())
        }
    }
}

#[cfg(test)]
mod tests {
    use model::ledger::RejectReason;
    use model::value::ItemError;
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValueList};
    use opentelemetry_proto::tonic::metrics::v1::{
        ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, metric, number_data_point,
    };
    use opentelemetry_proto::tonic::profiles::v1development::{Link as ProfileLink, Profile};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use serde_json::{Value, json};

    use super::*;
    use Signal::{Logs, Metrics, Profiles, Traces};

    fn run(signal: Signal, json: impl AsRef<[u8]>) -> Result<(Vec<u8>, Warnings), JsonError> {
        let mut out = b"kept".to_vec();
        let result = transcode(signal, json.as_ref(), &mut out);
        let body = out.split_off(4);
        assert_eq!(out, b"kept", "what stood before is not touched");
        match result {
            Ok(warnings) => Ok((body, warnings)),
            Err(error) => {
                assert!(body.is_empty(), "a refused request leaves nothing behind");
                let text = error.to_string();
                assert!(text.len() <= MAX_ERROR_BYTES, "{} bytes: {text}", text.len());
                Err(error)
            }
        }
    }

    /// Transcodes and decodes with the reference implementation.
    fn decode<M: prost::Message + Default>(signal: Signal, json: &str) -> M {
        let (body, _) = run(signal, json).unwrap_or_else(|error| panic!("{error}: {json}"));
        M::decode(&*body).unwrap_or_else(|error| panic!("{error}: {json}"))
    }

    fn in_body(value: &str) -> String {
        format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{value}}}]}}]}}]}}"#)
    }

    fn in_span(members: &str) -> String {
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{members}}}]}}]}}]}}"#)
    }

    fn in_metric(members: &str) -> String {
        format!(r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{{members}}}]}}]}}]}}"#)
    }

    fn in_histogram(members: &str) -> String {
        in_metric(&format!(r#""histogram":{{"dataPoints":[{{{members}}}]}}"#))
    }

    fn in_exponential(members: &str) -> String {
        in_metric(&format!(r#""exponentialHistogram":{{"dataPoints":[{{{members}}}]}}"#))
    }

    fn in_number(members: &str) -> String {
        in_metric(&format!(r#""gauge":{{"dataPoints":[{{{members}}}]}}"#))
    }

    fn in_profile(members: &str) -> String {
        format!(r#"{{"resourceProfiles":[{{"scopeProfiles":[{{"profiles":[{{{members}}}]}}]}}]}}"#)
    }

    // Generated requests

    fn reference_json<M: serde::Serialize>(message: &M) -> Value {
        let mut value = serde_json::to_value(message).unwrap();
        // The reference serialiser writes these two as arrays of numbers, which is not OTLP/JSON.
        patch(&mut value, &|key, bytes| match key {
            "traceId" | "spanId" => Some(hex::encode(bytes)),
            "originalPayload" => Some(BASE64_STANDARD.encode(bytes)),
            _ => None,
        });
        value
    }

    fn patch(value: &mut Value, string: &dyn Fn(&str, &[u8]) -> Option<String>) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    let bytes = value.as_array().map(|items| {
                        items.iter().filter_map(|item| item.as_u64()?.try_into().ok()).collect::<Vec<u8>>()
                    });
                    match bytes.and_then(|bytes| string(key, &bytes)) {
                        Some(text) => *value = Value::String(text),
                        None => patch(value, string),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| patch(item, string)),
            _ => {}
        }
    }

    /// The same request as another client might write it: unknown keys everywhere, empty arrays and defaults as
    /// null, 64-bit integers the other way round, identifiers in capitals.
    fn restyle(value: &mut Value, rng: &mut testing::Rng) {
        match value {
            Value::Object(members) => {
                for (key, value) in members.iter_mut() {
                    match value {
                        Value::Array(items) if items.is_empty() && rng.one_in(2) => *value = Value::Null,
                        Value::String(text) if key.ends_with("UnixNano") && rng.one_in(2) => {
                            *value = json!(text.parse::<u64>().unwrap());
                        }
                        Value::String(text) if key.ends_with("Id") => *text = text.to_uppercase(),
                        Value::String(text) if key == "bytesValue" && rng.one_in(2) => {
                            *text = text.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned();
                        }
                        Value::Number(number) if number.is_u64() && (key == "count" || key == "asInt") => {
                            *value = json!(number.to_string());
                        }
                        _ => restyle(value, rng),
                    }
                }
                if rng.one_in(3) {
                    members.insert("from_the_future".into(), json!({"a": [[], {"b": null}, "\u{1F600}", 1e99]}));
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| restyle(item, rng)),
            _ => {}
        }
    }

    fn check_generated<M>(signal: Signal, generate: fn(u64) -> M)
    where
        M: prost::Message + Default + PartialEq + serde::Serialize + fmt::Debug,
    {
        let mut total = 0;
        for seed in 0..300 {
            let original = generate(seed);
            let mut value = reference_json(&original);
            let plain = value.to_string();
            restyle(&mut value, &mut testing::Rng::new(seed));
            for json in [plain, value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let (body, warnings) = run(signal, &json).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert!(body.len() <= MAX_EXPANSION * json.len(), "seed {seed}");
                assert_eq!(warnings.cut_values, 0, "seed {seed}");
                assert_eq!(M::decode(&*body).unwrap(), original, "seed {seed}");
                total += body.len();
            }
        }
        assert!(total > 100_000, "the generator makes real requests, not {total} bytes");
    }

    #[test]
    fn generated_traces_survive() {
        check_generated(Traces, testing::traces);
    }

    #[test]
    fn generated_metrics_survive() {
        check_generated(Metrics, testing::metrics);
    }

    #[test]
    fn generated_logs_survive() {
        check_generated(Logs, testing::logs);
    }

    #[test]
    fn generated_profiles_survive() {
        check_generated(Profiles, testing::profiles);
    }

    // Values that are accepted

    fn any(value: Any) -> Option<AnyValue> {
        Some(AnyValue { value: Some(value) })
    }

    #[test]
    fn values_are_read_as_proto3_json_and_otlp_say() {
        let text = |text: &str| any(Any::StringValue(text.into()));
        let int = |int| any(Any::IntValue(int));
        let double = |double| any(Any::DoubleValue(double));
        let bytes = |bytes: &[u8]| any(Any::BytesValue(bytes.into()));
        let empty_array = any(Any::ArrayValue(ArrayValue::default()));
        let empty_list = any(Any::KvlistValue(KeyValueList::default()));
        let rows: Vec<(&str, Option<AnyValue>)> = vec![
            // Presence.
            ("null", None),
            ("{}", Some(AnyValue { value: None })),
            (r#"{"stringValue":null}"#, Some(AnyValue { value: None })),
            (r#"{"futureValue":{"x":[1]}}"#, Some(AnyValue { value: None })),
            (r#"{"string_value":"snake"}"#, Some(AnyValue { value: None })),
            (r#"{"StringValue":"pascal"}"#, Some(AnyValue { value: None })),
            (r#"{"stringValue":""}"#, text("")),
            (r#"{"arrayValue":{}}"#, empty_array.clone()),
            (r#"{"arrayValue":{"values":[]}}"#, empty_array.clone()),
            (r#"{"arrayValue":{"values":null}}"#, empty_array),
            (r#"{"kvlistValue":{}}"#, empty_list.clone()),
            (r#"{"kvlistValue":{"values":null}}"#, empty_list),
            (r#"{"stringValue":"a","intValue":2}"#, int(2)),
            (r#"{"stringValue":"a","intValue":null}"#, text("a")),
            (r#"{"stringValueStrindex":7}"#, any(Any::StringValueStrindex(7))),
            (
                r#"{"arrayValue":{"values":[{},{"boolValue":false}]}}"#,
                any(Any::ArrayValue(ArrayValue {
                    values: vec![AnyValue { value: None }, AnyValue { value: Some(Any::BoolValue(false)) }],
                })),
            ),
            // Strings.
            (r#"{"stringValue":"\ud83d\ude00\u0000\n"}"#, text("\u{1F600}\0\n")),
            (r#"{"string\u0056alue":"escaped key"}"#, text("escaped key")),
            // Integers.
            (r#"{"intValue":1}"#, int(1)),
            (r#"{"intValue":"1"}"#, int(1)),
            (r#"{"intValue":-0}"#, int(0)),
            (r#"{"intValue":"-0"}"#, int(0)),
            (r#"{"intValue":1e3}"#, int(1000)),
            (r#"{"intValue":1.0}"#, int(1)),
            (r#"{"intValue":"1.50e1"}"#, int(15)),
            (r#"{"intValue":"1.5e18"}"#, int(1_500_000_000_000_000_000)),
            (r#"{"intValue":1.5E+18}"#, int(1_500_000_000_000_000_000)),
            (r#"{"intValue":"120e-1"}"#, int(12)),
            (r#"{"intValue":"0e999999999999999999999"}"#, int(0)),
            (r#"{"intValue":"100000000000000000000000e-20"}"#, int(1000)),
            (r#"{"intValue":"9223372036854775807"}"#, int(i64::MAX)),
            (r#"{"intValue":9223372036854775807}"#, int(i64::MAX)),
            (r#"{"intValue":"-9223372036854775808"}"#, int(i64::MIN)),
            (r#"{"intValue":-9223372036854775808}"#, int(i64::MIN)),
            // Doubles.
            (r#"{"doubleValue":1}"#, double(1.0)),
            (r#"{"doubleValue":-1}"#, double(-1.0)),
            (r#"{"doubleValue":0.1}"#, double(0.1)),
            (r#"{"doubleValue":"0.1"}"#, double(0.1)),
            (r#"{"doubleValue":"-1e-7"}"#, double(-1e-7)),
            (r#"{"doubleValue":18446744073709551615}"#, double(18_446_744_073_709_551_615.0)),
            (r#"{"doubleValue":"Infinity"}"#, double(f64::INFINITY)),
            (r#"{"doubleValue":"-Infinity"}"#, double(f64::NEG_INFINITY)),
            // Bytes: both alphabets, with and without padding.
            (r#"{"bytesValue":""}"#, bytes(b"")),
            (r#"{"bytesValue":"+/8="}"#, bytes(&[0xfb, 0xff])),
            (r#"{"bytesValue":"+/8"}"#, bytes(&[0xfb, 0xff])),
            (r#"{"bytesValue":"-_8="}"#, bytes(&[0xfb, 0xff])),
            (r#"{"bytesValue":"-_8"}"#, bytes(&[0xfb, 0xff])),
        ];
        for (json, expected) in rows {
            let request: ExportLogsServiceRequest = decode(Logs, &in_body(json));
            assert_eq!(request.resource_logs[0].scope_logs[0].log_records[0].body, expected, "{json}");
        }
        // NaN and negative zero do not compare, so their bits do.
        for (json, bits) in [
            (r#"{"doubleValue":"NaN"}"#, f64::NAN.to_bits()),
            (r#"{"doubleValue":-0.0}"#, (-0.0f64).to_bits()),
            (r#"{"doubleValue":"-0"}"#, (-0.0f64).to_bits()),
        ] {
            let request: ExportLogsServiceRequest = decode(Logs, &in_body(json));
            let body = request.resource_logs[0].scope_logs[0].log_records[0].body.clone().unwrap();
            assert!(matches!(body.value, Some(Any::DoubleValue(d)) if d.to_bits() == bits), "{json}: {body:?}");
        }
    }

    #[test]
    fn span_fields_are_read_as_otlp_says() {
        let rows: Vec<(&str, Span)> = vec![
            ("", Span::default()),
            (
                r#""traceId":"00Ff","spanId":"AbCdEf","parentSpanId":"""#,
                Span { trace_id: vec![0, 0xff], span_id: vec![0xab, 0xcd, 0xef], ..Span::default() },
            ),
            (r#""traceId":null,"name":null,"kind":null,"status":null,"links":null"#, Span::default()),
            (r#""kind":2"#, Span { kind: 2, ..Span::default() }),
            (r#""kind":99"#, Span { kind: 99, ..Span::default() }),
            (r#""kind":-1"#, Span { kind: -1, ..Span::default() }),
            (r#""flags":4294967295"#, Span { flags: u32::MAX, ..Span::default() }),
            (r#""flags":"257""#, Span { flags: 257, ..Span::default() }),
            (
                r#""startTimeUnixNano":"18446744073709551615","endTimeUnixNano":18446744073709551615"#,
                Span { start_time_unix_nano: u64::MAX, end_time_unix_nano: u64::MAX, ..Span::default() },
            ),
            (r#""start_time_unix_nano":"1","Name":"x","trace_id":"00""#, Span::default()),
            (r#""name":"first","name":"last""#, Span { name: "last".into(), ..Span::default() }),
            (r#""name":"first","name":"""#, Span::default()),
        ];
        for (members, expected) in rows {
            let json = in_span(members);
            let request: ExportTraceServiceRequest = decode(Traces, &json);
            assert_eq!(request.resource_spans[0].scope_spans[0].spans[0], expected, "{members}");
        }
    }

    #[test]
    fn metric_fields_are_read_and_packed() {
        let request: ExportMetricsServiceRequest = decode(
            Metrics,
            &in_histogram(
                r#""count":"6","sum":0,"min":null,"max":"Infinity","bucketCounts":["1",2,3e0],"explicitBounds":[0,"1.5"]"#,
            ),
        );
        let Some(metric::Data::Histogram(histogram)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data
        else {
            panic!("{request:?}")
        };
        assert_eq!(
            histogram.data_points[0],
            HistogramDataPoint {
                count: 6,
                sum: Some(0.0),
                max: Some(f64::INFINITY),
                bucket_counts: vec![1, 2, 3],
                explicit_bounds: vec![0.0, 1.5],
                ..HistogramDataPoint::default()
            }
        );
        for (scale, expected) in [("-2147483648", i32::MIN), ("2147483647", i32::MAX), ("\"-1\"", -1), ("1e1", 10)] {
            let request: ExportMetricsServiceRequest = decode(
                Metrics,
                &in_exponential(&format!(r#""scale":{scale},"positive":{{"offset":{scale},"bucketCounts":[]}}"#)),
            );
            let Some(metric::Data::ExponentialHistogram(histogram)) =
                &request.resource_metrics[0].scope_metrics[0].metrics[0].data
            else {
                panic!("{request:?}")
            };
            let point: &ExponentialHistogramDataPoint = &histogram.data_points[0];
            assert_eq!((point.scale, point.positive.as_ref().unwrap().offset), (expected, expected));
        }
        for (members, expected) in [
            (r#""asInt":"-3""#, number_data_point::Value::AsInt(-3)),
            (r#""asInt":0"#, number_data_point::Value::AsInt(0)),
            (r#""asDouble":0"#, number_data_point::Value::AsDouble(0.0)),
        ] {
            let request: ExportMetricsServiceRequest = decode(Metrics, &in_number(members));
            let Some(metric::Data::Gauge(gauge)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data else {
                panic!("{request:?}")
            };
            assert_eq!(gauge.data_points[0], NumberDataPoint { value: Some(expected), ..NumberDataPoint::default() });
        }
    }

    #[test]
    fn profile_identifiers_are_hexadecimal_and_payload_is_base64() {
        let request: ExportProfilesServiceRequest = decode(
            Profiles,
            r#"{"resourceProfiles":[{"scopeProfiles":[{"profiles":[{"profileId":"ABcd","originalPayload":"AQI="}]}]}],
                "dictionary":{"linkTable":[{"traceId":"0a","spanId":"0B"}]}}"#,
        );
        assert_eq!(
            request.resource_profiles[0].scope_profiles[0].profiles[0],
            Profile { profile_id: vec![0xab, 0xcd], original_payload: vec![1, 2], ..Profile::default() }
        );
        assert_eq!(request.dictionary.unwrap().link_table, [ProfileLink { trace_id: vec![0x0a], span_id: vec![0x0b] }]);
    }

    #[test]
    fn empty_requests_are_empty() {
        for signal in [Traces, Metrics, Logs, Profiles] {
            for json in ["{}", " {} \n", r#"{"x":1}"#, r#"{"resourceSpans":null}"#, r#"{"resourceLogs":[]}"#] {
                assert_eq!(run(signal, json).unwrap().0, b"", "{signal:?} {json}");
            }
        }
        // Empty envelopes stay: whether they mean anything is the decoder's business.
        let request: ExportTraceServiceRequest = decode(Traces, r#"{"resourceSpans":[{},{"scopeSpans":[{}]}]}"#);
        assert_eq!(request.resource_spans.len(), 2);
    }

    // What is refused

    #[test]
    fn malformed_requests_are_refused_with_the_place_and_the_expectation() {
        let rows: Vec<(Signal, String, &str)> = vec![
            // The body as a whole.
            (Traces, "".into(), "EOF"),
            (Traces, " \n".into(), "EOF"),
            (Traces, "[]".into(), "expected an export request object"),
            (Traces, "null".into(), "expected an export request object"),
            (Traces, "7".into(), "expected an export request object"),
            (Traces, "true".into(), "expected an export request object"),
            (Traces, r#""{}""#.into(), "expected an export request object"),
            (Traces, "{} {}".into(), "trailing characters"),
            (Traces, "{}x".into(), "trailing characters"),
            (Traces, "{},".into(), "trailing characters"),
            (Traces, r#"{"resourceSpans":[]"#.into(), "EOF"),
            (Traces, r#"{"resourceSpans":[],}"#.into(), "trailing comma"),
            (Traces, "{resourceSpans:[]}".into(), "key must be a string"),
            (Traces, "\u{feff}{}".into(), "expected value"),
            (Traces, "{'resourceSpans':[]}".into(), "key must be a string"),
            // Shapes.
            (Traces, r#"{"resourceSpans":{}}"#.into(), "resourceSpans: expected an array, found an object"),
            (Traces, r#"{"resourceSpans":"x"}"#.into(), "resourceSpans: expected an array, found a string"),
            (Traces, r#"{"resourceSpans":1}"#.into(), "resourceSpans: expected an array, found a number"),
            (Traces, r#"{"resourceSpans":[null]}"#.into(), "found null"),
            (Traces, r#"{"resourceSpans":[[]]}"#.into(), "found an array"),
            (Traces, r#"{"resourceSpans":[1]}"#.into(), "found a number"),
            (Traces, r#"{"resourceSpans":[{"resource":[]}]}"#.into(), "resource: expected an object, found an array"),
            (Traces, r#"{"resourceSpans":[{"resource":true}]}"#.into(), "expected an object, found a boolean"),
            (Logs, in_body("[]"), "body: expected an object, found an array"),
            (Logs, in_body(r#""text""#), "body: expected an object, found a string"),
            (Logs, in_body(r#"{"arrayValue":[]}"#), "arrayValue: expected an object"),
            (Logs, in_body(r#"{"arrayValue":{"values":[null]}}"#), "values: expected an array of which each element"),
            (Logs, in_body(r#"{"kvlistValue":{"values":{}}}"#), "values: expected an array, found an object"),
            // Strings and booleans.
            (Traces, in_span(r#""name":1"#), "name: expected a string, found a number"),
            (Traces, in_span(r#""name":{}"#), "name: expected a string, found an object"),
            (Traces, in_span(r#""name":"\ud800""#), "hex escape"),
            (Traces, in_span(r#""name":"\udc00x""#), "surrogate"),
            (Traces, in_span(r#""\ud800":1"#), "hex escape"),
            (Traces, in_span("\"name\":\"a\nb\""), "control character"),
            (Traces, in_span(r#""name":"\x""#), "escape"),
            (Logs, in_body(r#"{"boolValue":1}"#), "boolValue: expected true or false, found a number"),
            (Logs, in_body(r#"{"boolValue":"true"}"#), "boolValue: expected true or false, found a string"),
            // Identifiers and bytes.
            (Traces, in_span(r#""traceId":"abc""#), "traceId: expected a hexadecimal string, found an odd number"),
            (Traces, in_span(r#""traceId":"zz""#), "no hexadecimal digit"),
            (Traces, in_span(r#""spanId":"0x00""#), "no hexadecimal digit"),
            (Traces, in_span(r#""spanId":" 00 ""#), "no hexadecimal digit"),
            (Traces, in_span(r#""parentSpanId":"é""#), "no hexadecimal digit"),
            (Traces, in_span(r#""traceId":"W47/95gDgQPSabYzgT/GDA==""#), "no hexadecimal digit"),
            (Traces, in_span(r#""traceId":[1,2]"#), "traceId: expected a hexadecimal string, found an array"),
            (Traces, in_span(r#""links":[{"spanId":"abc"}]"#), "spanId"),
            (Logs, r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"q1"}]}]}]}"#.into(), "traceId"),
            (Metrics, in_number(r#""exemplars":[{"spanId":"0"}]"#), "spanId"),
            (Profiles, in_profile(r#""profileId":"AQI=""#), "profileId"),
            (Profiles, r#"{"dictionary":{"linkTable":[{"traceId":"AQI="}]}}"#.into(), "traceId"),
            (Profiles, in_profile(r#""originalPayload":[1]"#), "originalPayload: expected a base64 string"),
            (Logs, in_body(r#"{"bytesValue":"a"}"#), "no base64"),
            (Logs, in_body(r#"{"bytesValue":"ab c"}"#), "no base64"),
            (Logs, in_body(r#"{"bytesValue":"+_8="}"#), "no base64"),
            // Enums.
            (Traces, in_span(r#""kind":"SPAN_KIND_SERVER""#), "kind: expected an integer enum value, found a string"),
            (Traces, in_span(r#""kind":"2""#), "kind: expected an integer enum value, found a string"),
            (Traces, in_span(r#""kind":2147483648"#), "out of range"),
            (Traces, in_span(r#""kind":2.5"#), "fraction"),
            (Traces, in_span(r#""status":{"code":"STATUS_CODE_OK"}"#), "code: expected an integer enum value"),
            (
                Metrics,
                in_metric(r#""sum":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA"}"#),
                "aggregationTemporality",
            ),
            // Integers.
            (Logs, in_body(r#"{"intValue":9223372036854775808}"#), "out of range"),
            (Logs, in_body(r#"{"intValue":-9223372036854775809}"#), "out of range"),
            (Logs, in_body(r#"{"intValue":"9223372036854775808"}"#), "out of range"),
            (Logs, in_body(r#"{"intValue":"99999999999999999999999"}"#), "no integer in range"),
            (Logs, in_body(r#"{"intValue":1e30}"#), "out of range"),
            (Logs, in_body(r#"{"intValue":"1e19"}"#), "out of range"),
            (Logs, in_body(r#"{"intValue":"1e99999999999999999999"}"#), "no integer in range"),
            (Logs, in_body(r#"{"intValue":1.5}"#), "fraction"),
            (Logs, in_body(r#"{"intValue":"1.5"}"#), "no integer in range"),
            (Logs, in_body(r#"{"intValue":"15e-1"}"#), "no integer in range"),
            (Logs, in_body(r#"{"intValue":""}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":" 1"}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":"+1"}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":"01"}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":"0x1"}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":"NaN"}"#), "no integer"),
            (Logs, in_body(r#"{"intValue":true}"#), "intValue: expected a signed 64-bit integer, found a boolean"),
            (Traces, in_span(r#""startTimeUnixNano":-1"#), "out of range"),
            (Traces, in_span(r#""startTimeUnixNano":"-1""#), "out of range"),
            (Traces, in_span(r#""startTimeUnixNano":18446744073709551616"#), "out of range"),
            (Traces, in_span(r#""startTimeUnixNano":"18446744073709551616""#), "out of range"),
            (Traces, in_span(r#""flags":4294967296"#), "flags: expected an unsigned 32-bit integer"),
            (Traces, in_span(r#""droppedAttributesCount":-1"#), "out of range"),
            (Metrics, in_exponential(r#""scale":2147483648"#), "scale: expected a signed 32-bit integer"),
            (Metrics, in_histogram(r#""bucketCounts":[1,null]"#), "bucketCounts"),
            (Metrics, in_histogram(r#""bucketCounts":[1,-1]"#), "bucketCounts"),
            (Metrics, in_histogram(r#""bucketCounts":"1""#), "bucketCounts: expected an array, found a string"),
            (Metrics, in_histogram(r#""bucketCounts":1"#), "bucketCounts: expected an array, found a number"),
            (Metrics, in_histogram(r#""bucketCounts":[[1]]"#), "found an array"),
            // Doubles.
            (Metrics, in_histogram(r#""explicitBounds":1.5"#), "explicitBounds: expected an array, found a number"),
            (Logs, in_body(r#"{"doubleValue":1e400}"#), "number out of range"),
            (Logs, in_body(r#"{"doubleValue":"1e400"}"#), "no number in range"),
            (Logs, in_body(r#"{"doubleValue":"nan"}"#), "no number"),
            (Logs, in_body(r#"{"doubleValue":"inf"}"#), "no number"),
            (Logs, in_body(r#"{"doubleValue":"+Infinity"}"#), "no number"),
            (Logs, in_body(r#"{"doubleValue":"1."}"#), "no number"),
            (Logs, in_body(r#"{"doubleValue":""}"#), "no number"),
            (Logs, in_body(r#"{"doubleValue":NaN}"#), "expected value"),
            (Logs, in_body(r#"{"doubleValue":true}"#), "doubleValue: expected a number, found a boolean"),
        ];
        for (signal, json, expected) in rows {
            let error = run(signal, &json).expect_err(&json);
            assert!(error.to_string().contains(expected), "{json}: {error}");
            assert!(matches!(error, JsonError::Invalid { line: 1.., .. }), "{json}: {error:?}");
        }
    }

    #[test]
    fn errors_are_bounded_and_keep_the_senders_data_to_themselves() {
        let secret = "hunter2-é".repeat(1000);
        for json in [
            format!(r#""{secret}""#),
            in_span(&format!(r#""traceId":"{secret}""#)),
            in_span(&format!(r#""kind":"{secret}""#)),
            in_span(&format!(r#""flags":"{secret}""#)),
            in_span(&format!(r#""attributes":"{secret}""#)),
            in_span(&format!(r#""attributes":["{secret}"]"#)),
            in_span(&format!(r#""name":"{secret}"#)),
            format!("\n\n{{\"{secret}\":\n nul}}"),
        ] {
            let error = run(Traces, &json).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = run(Traces, "{\n  \"resourceSpans\": 7\n}").unwrap_err();
        assert!(matches!(error, JsonError::Invalid { line: 2, column: 20, .. }), "{error:?}");
    }

    #[test]
    fn invalid_utf8_is_refused_wherever_it_stands() {
        for prefix in ["", r#"{"a":""#, r#"{""#, r#"{"resourceSpans":[{"schemaUrl":""#] {
            for bad in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
                let json = [prefix.as_bytes(), bad, b"\":1}"].concat();
                assert_eq!(run(Traces, &json).unwrap_err(), JsonError::NotUtf8 { offset: prefix.len() }, "{json:?}");
            }
        }
    }

    #[test]
    fn no_prefix_and_no_flipped_bit_of_a_request_does_harm() {
        for (signal, json) in [
            (Traces, reference_json(&testing::traces(7)).to_string()),
            (Metrics, reference_json(&testing::metrics(7)).to_string()),
            (Logs, reference_json(&testing::logs(7)).to_string()),
            (Profiles, reference_json(&testing::profiles(7)).to_string()),
        ] {
            let json = json.into_bytes();
            let step = json.len() / 400 + 1;
            for end in (0..json.len()).step_by(step) {
                run(signal, &json[..end]).expect_err("a proper prefix of an object is not JSON");
            }
            let (mut accepted, mut refused) = (0, 0);
            for at in (0..json.len()).step_by(step) {
                let mut json = json.clone();
                json[at] ^= 1 << (at % 8);
                match run(signal, &json) {
                    Ok(_) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
            assert!(accepted > 0 && refused > 0, "{signal:?}: {accepted} accepted, {refused} refused");
        }
    }

    // Depth

    /// How many `AnyValue` messages nest in wire bytes, walked along the last element of every level.
    fn wire_depth(body: &[u8]) -> (u32, &[u8]) {
        fn last_field(body: &[u8], number: u32) -> Option<&[u8]> {
            let mut rest = body;
            let mut found = None;
            while !rest.is_empty() {
                let tag = prost::encoding::decode_varint(&mut rest).unwrap() as u32;
                assert_eq!(tag & 7, 2, "only messages and strings stand on the way");
                let length = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
                let (field, after) = rest.split_at(length);
                rest = after;
                if tag >> 3 == number {
                    found = Some(field);
                }
            }
            found
        }
        let path = [1, 2, 2, 5].into_iter();
        let outermost = path.into_iter().try_fold(body, last_field).unwrap();
        let mut value = Some(outermost);
        let mut depth = 0;
        while let Some(body) = value {
            depth += 1;
            value = last_field(body, 5).and_then(|array| last_field(array, 1)).or_else(|| {
                last_field(body, 6).and_then(|list| last_field(list, 1)).and_then(|pair| last_field(pair, 2))
            });
        }
        (depth, outermost)
    }

    #[test]
    fn deep_values_are_cut_just_below_what_the_decoder_can_judge() {
        let array = (r#"{"arrayValue":{"values":[{"stringValue":"x"},"#, "]}}");
        let list = (r#"{"kvlistValue":{"values":[{"key":"k","value":"#, "}]}}");
        for depth in [1, 2, 31, 32, 33, 34, 35, 36, 100, 5_000, 100_000u32] {
            for levels in [[array, array], [list, list], [array, list]] {
                let mut json = String::new();
                (1..depth).for_each(|level| json.push_str(levels[level as usize % 2].0));
                json.push_str(r#"{"stringValue":"leaf"}"#);
                (1..depth).rev().for_each(|level| json.push_str(levels[level as usize % 2].1));
                let json = format!(
                    r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"severityText":"before"}},{{"body":{json}}}]}}]}}]}}"#
                );
                let (body, warnings) = run(Logs, &json).unwrap();
                // The values are the second record, whose siblings keep everything of theirs.
                let (found, outermost) = wire_depth(&body);
                assert_eq!(found, depth.min(MAX_JSON_VALUE_DEPTH), "depth {depth}");
                let verdict = model::value::Value::parse(outermost).map(|_| ());
                let too_deep = ItemError::Reject(RejectReason::ValueTooDeep);
                let containers = depth as usize - 1;
                assert_eq!(verdict, if containers > VALUE_DEPTH_MAX { Err(too_deep) } else { Ok(()) }, "depth {depth}");
                assert_eq!(warnings.cut_values > 0, depth >= MAX_JSON_VALUE_DEPTH, "depth {depth}");
            }
        }
    }

    #[test]
    fn deep_unknown_fields_are_skipped_without_recursion() {
        let depth = 1_000_000;
        let arrays = "[".repeat(depth) + &"]".repeat(depth);
        let objects = r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
        for deep in [arrays, objects] {
            for json in [
                format!(r#"{{"unknown":{deep}}}"#),
                in_span(&format!(r#""unknown":{deep},"name":"kept""#)),
                in_body(&format!(r#"{{"unknownValue":{deep}}}"#)),
            ] {
                let signal = if json.contains("logRecords") { Logs } else { Traces };
                let (_, warnings) = run(signal, &json).unwrap();
                assert_eq!(warnings, Warnings { unknown_fields: 1, cut_values: 0 });
                // One bracket too few is still an error, not a crash.
                run(signal, &json[..json.len() - 1]).unwrap_err();
            }
            // Where the schema wants something else, depth does not matter: the first bracket is wrong.
            run(Traces, in_span(&format!(r#""name":{deep}"#))).unwrap_err();
        }
    }

    #[test]
    fn warnings_count_what_was_ignored() {
        let rows = [
            (in_span(r#""name":"x""#), 0),
            (in_span(r#""trace_id":"00","start_time_unix_nano":1"#), 2),
            (in_span(r#""attributes":[{"key":"a","x":1,"value":{"y":2}}]"#), 2),
            (r#"{"resource_spans":[{"scopeSpans":"whatever"}]}"#.to_owned(), 1),
        ];
        for (json, unknown_fields) in rows {
            assert_eq!(run(Traces, &json).unwrap().1, Warnings { unknown_fields, cut_values: 0 }, "{json}");
        }
    }

    #[test]
    fn the_worst_expansion_is_the_documented_one() {
        let zeros = vec!["0"; 10_000].join(",");
        let json = in_histogram(&format!(r#""bucketCounts":[{zeros}]"#));
        let (body, _) = run(Metrics, &json).unwrap();
        assert!(body.len() > (MAX_EXPANSION - 1) * json.len() && body.len() <= MAX_EXPANSION * json.len());
    }

    #[test]
    fn lengths_around_every_varint_boundary_are_right() {
        for length in [0, 1, 100, 120, 126, 127, 128, 129, 16_383, 16_384, 2_097_152] {
            let name = "n".repeat(length);
            let request: ExportTraceServiceRequest = decode(Traces, &in_span(&format!(r#""name":"{name}","kind":1"#)));
            let span = &request.resource_spans[0].scope_spans[0].spans[0];
            assert_eq!((span.name.len(), span.kind), (length, 1));
        }
    }

    /// The examples that the OTLP specification publishes, where a folder holds them.
    #[test]
    #[allow(clippy::print_stderr, reason = "a test that does not run says so")]
    fn the_examples_of_the_specification_are_read() {
        fn check<M>(signal: Signal, json: &str)
        where
            M: prost::Message + Default + PartialEq + serde::de::DeserializeOwned + fmt::Debug,
        {
            let expected: M = serde_json::from_str(json).unwrap();
            assert_ne!(expected, M::default());
            assert_eq!(decode::<M>(signal, json), expected);
        }
        let Some(folder) = std::env::var_os("GODSEYE_OTLP_EXAMPLES").filter(|folder| !folder.is_empty()) else {
            eprintln!("not run: GODSEYE_OTLP_EXAMPLES does not name a folder with the specification's examples");
            return;
        };
        let read = |name: &str| std::fs::read_to_string(std::path::Path::new(&folder).join(name)).unwrap();
        check::<ExportTraceServiceRequest>(Traces, &read("trace.json"));
        check::<ExportMetricsServiceRequest>(Metrics, &read("metrics.json"));
        check::<ExportLogsServiceRequest>(Logs, &read("logs.json"));
        check::<ExportLogsServiceRequest>(Logs, &read("events.json"));
    }
}
