//! `AnyValue`, OTLP's dynamic value, straight from the wire: kinds, limits and its JSON form.
//!
//! Not here: how values are laid out in columns ([`crate::attributes`]). Nested values stay in
//! their wire form for ever, which is what keeps them exact; this module walks them.
//! Source: opentelemetry/proto/common/v1/common.proto.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;

use crate::ledger::RejectReason;
use crate::limits::{ATTRIBUTES_MAX, KEY_BYTES_MAX, VALUE_DEPTH_MAX};
use crate::wire::{BYTES, Field, Reader, WireError, key};

/// What can be wrong with an item: it is not protobuf (the request is refused), or it breaks a
/// rule (the item is refused, its neighbours are stored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// The bytes are not protobuf of the expected schema.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The item breaks a documented rule.
    #[error("{}", .0.explanation())]
    Reject(RejectReason),
}

impl From<RejectReason> for ItemError {
    fn from(reason: RejectReason) -> Self {
        Self::Reject(reason)
    }
}

/// One value. Arrays and key-value lists keep the bytes of their `AnyValue`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A value without a kind: present, but empty.
    Empty,
    /// Text.
    String(&'a str),
    /// True or false.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// Raw bytes.
    Bytes(&'a [u8]),
    /// An array; the bytes are those of the whole `AnyValue`.
    Array(&'a [u8]),
    /// A key-value list; the bytes are those of the whole `AnyValue`.
    KvList(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Reads one `AnyValue`, checking everything inside it: UTF-8, wire format, depth, counts.
    ///
    /// # Errors
    /// [`ItemError`] when it is not protobuf or breaks a limit.
    #[inline]
    pub fn parse(any_value: &'a [u8]) -> Result<Self, ItemError> {
        Self::parse_at(any_value, 0)
    }

    /// The text of an `AnyValue` that holds text and no other field; the text is not checked.
    #[inline]
    #[must_use]
    pub fn plain_text(any_value: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Reader::new(any_value);
        if reader.key() != Ok(Some(key(1, BYTES))) {
            return None;
        }
        reader.bytes().ok().filter(|_text| reader.is_empty())
    }

    fn parse_at(any_value: &'a [u8], depth: usize) -> Result<Self, ItemError> {
        let mut value = Value::Empty;
        let mut reader = Reader::new(any_value);
        // A oneof: the last field wins, as protobuf says.
        while let Some((number, field)) = reader.next()? {
            value = match number {
                1 => Value::String(field.string(1)?),
                2 => Value::Bool(field.varint(2)? != 0),
                3 => Value::Int(field.varint(3)?.cast_signed()),
                4 => Value::Double(f64::from_bits(field.fixed64(4)?)),
                5 => {
                    check_array(field.bytes(5)?, depth + 1)?;
                    Value::Array(any_value)
                }
                6 => {
                    check_kv_list(field.bytes(6)?, depth + 1)?;
                    Value::KvList(any_value)
                }
                7 => Value::Bytes(field.bytes(7)?),
                // string_value_strindex belongs to profiles; elsewhere it is treated as absent
                // (OTLP 1.10, common.proto).
                8 => {
                    field.varint(8)?;
                    Value::Empty
                }
                _ => value,
            };
        }
        Ok(value)
    }

    /// Appends the value's JSON: numbers as numbers, bytes as base64 text, NaN and the infinities
    /// as the texts that OTLP/JSON uses.
    pub fn write_json(&self, out: &mut String) {
        match self {
            Self::Empty => out.push_str("null"),
            Self::String(text) => write_json_string(text, out),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => {
                write!(out, "{value}").expect("a String takes everything");
            }
            Self::Double(value) => write_json_double(*value, out),
            Self::Bytes(bytes) => {
                out.push('"');
                base64::engine::general_purpose::STANDARD.encode_string(bytes, out);
                out.push('"');
            }
            Self::Array(any_value) => {
                out.push('[');
                for (index, element) in elements(any_value, 5).enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    parse_lenient(element).write_json(out);
                }
                out.push(']');
            }
            Self::KvList(any_value) => {
                let entries = elements(any_value, 6).filter_map(|raw| KeyValue::parse(raw).ok());
                let entries: Vec<KeyValue<'_>> = entries.collect();
                write_json_object(entries.iter().map(|entry| (entry.key, entry.parsed())), out);
            }
        }
    }

    /// The value as text: strings as they are, everything else as JSON. `None` when empty.
    #[must_use]
    pub fn to_text(&self) -> Option<Cow<'a, str>> {
        match self {
            Self::Empty => None,
            Self::String(text) => Some(Cow::Borrowed(text)),
            Self::Bytes(bytes) => Some(Cow::Owned(base64::engine::general_purpose::STANDARD.encode(bytes))),
            other => {
                let mut out = String::new();
                other.write_json(&mut out);
                // A double that is not finite is quoted in JSON; as text it stands bare.
                Some(Cow::Owned(out.trim_matches('"').to_owned()))
            }
        }
    }
}

/// Parses what was checked when it came in; damage that slipped past reads as empty.
fn parse_lenient(any_value: &[u8]) -> Value<'_> {
    Value::parse_at(any_value, 1).unwrap_or(Value::Empty)
}

/// The elements of the array (field 5) or list (field 6) that an `AnyValue` holds. When the field
/// occurs more than once in a row the messages merge, as protobuf says.
fn elements(any_value: &[u8], oneof_field: u32) -> impl Iterator<Item = &[u8]> {
    let mut parts = Vec::new();
    let mut reader = Reader::new(any_value);
    while let Ok(Some((number, field))) = reader.next() {
        match (number, field) {
            (number, Field::Bytes(part)) if number == oneof_field => parts.push(part),
            (1..=8, _) => parts.clear(),
            _ => {}
        }
    }
    parts.into_iter().flat_map(|part| {
        let mut reader = Reader::new(part);
        std::iter::from_fn(move || {
            loop {
                match reader.next() {
                    Ok(Some((1, Field::Bytes(element)))) => return Some(element),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return None,
                }
            }
        })
    })
}

fn check_array(array: &[u8], depth: usize) -> Result<(), ItemError> {
    if depth > VALUE_DEPTH_MAX {
        return Err(RejectReason::ValueTooDeep.into());
    }
    let mut reader = Reader::new(array);
    while let Some((number, field)) = reader.next()? {
        if number == 1 {
            Value::parse_at(field.bytes(1)?, depth)?;
        }
    }
    Ok(())
}

fn check_kv_list(list: &[u8], depth: usize) -> Result<(), ItemError> {
    if depth > VALUE_DEPTH_MAX {
        return Err(RejectReason::ValueTooDeep.into());
    }
    let mut reader = Reader::new(list);
    while let Some((number, field)) = reader.next()? {
        if number == 1 {
            let entry = KeyValue::parse(field.bytes(1)?)?;
            if let Some(value) = &entry.value {
                Value::parse_at(value, depth)?;
            }
        }
    }
    Ok(())
}

/// One attribute on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyValue<'a> {
    /// The key; OTLP allows it to be empty.
    pub key: &'a str,
    /// The bytes of the `AnyValue`; `None` when the field is absent.
    pub value: Option<Cow<'a, [u8]>>,
}

impl<'a> KeyValue<'a> {
    /// Reads the key and finds the value; the value itself is not looked into.
    ///
    /// # Errors
    /// [`ItemError`] when it is not protobuf, or the key is too long.
    #[inline]
    pub fn parse(key_value: &'a [u8]) -> Result<Self, ItemError> {
        let mut key = "";
        let mut value: Option<Cow<'a, [u8]>> = None;
        let mut reader = Reader::new(key_value);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => key = field.string(1)?,
                2 => {
                    let bytes = field.bytes(2)?;
                    value = Some(match value {
                        None => Cow::Borrowed(bytes),
                        // A message field that occurs twice merges; merging is concatenation.
                        Some(before) => Cow::Owned([&before, bytes].concat()),
                    });
                }
                // key_strindex belongs to profiles; elsewhere it is treated as absent.
                3 => {
                    field.varint(3)?;
                }
                _ => {}
            }
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(RejectReason::KeyTooLong.into());
        }
        Ok(Self { key, value })
    }

    /// The value, parsed; empty when it is absent.
    #[must_use]
    pub fn parsed(&self) -> Value<'_> {
        self.value.as_deref().map_or(Value::Empty, parse_lenient)
    }
}

/// Checks a whole repeated `KeyValue` field of a message: every entry, their number and depth.
///
/// # Errors
/// [`ItemError`] for the first entry that is wrong.
pub fn check_key_values(message: &[u8], field_number: u32) -> Result<(), ItemError> {
    let mut count = 0;
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if number == field_number {
            let entry = KeyValue::parse(field.bytes(field_number)?)?;
            if let Some(value) = &entry.value {
                Value::parse(value)?;
            }
            count += 1;
            if count > ATTRIBUTES_MAX {
                return Err(RejectReason::TooManyAttributes.into());
            }
        }
    }
    Ok(())
}

/// Appends a JSON object. Of a key that occurs more than once the last value is shown: the rule
/// for duplicate keys everywhere in GodsEye.
pub fn write_json_object<'a>(entries: impl Iterator<Item = (&'a str, Value<'a>)>, out: &mut String) {
    let entries: Vec<(&str, Value<'_>)> = entries.collect();
    // A list may have hundreds of thousands of keys; looking for later ones must stay linear.
    let last: HashMap<&str, usize> = entries.iter().enumerate().map(|(index, (key, _))| (*key, index)).collect();
    out.push('{');
    let mut first = true;
    for (index, (key, value)) in entries.iter().enumerate() {
        if last.get(key) != Some(&index) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        write_json_string(key, out);
        out.push(':');
        value.write_json(out);
    }
    out.push('}');
}

fn write_json_double(value: f64, out: &mut String) {
    if value.is_finite() {
        // `{:?}` is the shortest text that reads back as the same double, always with a point or
        // an exponent, so that a double never turns into an integer on the way.
        write!(out, "{value:?}").expect("a String takes everything");
    } else {
        out.push_str(if value.is_nan() {
            "\"NaN\""
        } else if value > 0.0 {
            "\"Infinity\""
        } else {
            "\"-Infinity\""
        });
    }
}

/// Appends a JSON string with the escapes that RFC 8259 section 7 asks for.
pub fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (index, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..=0x1f => "",
            _ => continue,
        };
        out.push_str(&text[plain..index]);
        plain = index + 1;
        if escape.is_empty() {
            write!(out, "\\u{byte:04x}").expect("a String takes everything");
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{put_bytes, put_varint};

    fn string(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, text.as_bytes());
        out
    }

    fn array(elements: &[Vec<u8>]) -> Vec<u8> {
        let mut inner = Vec::new();
        for element in elements {
            put_bytes(&mut inner, 1, element);
        }
        let mut out = Vec::new();
        put_bytes(&mut out, 5, &inner);
        out
    }

    fn nested(depth: usize) -> Vec<u8> {
        (0..depth).fold(string("x"), |inner, _| array(&[inner]))
    }

    fn json(value: &[u8]) -> String {
        let mut out = String::new();
        Value::parse(value).unwrap().write_json(&mut out);
        out
    }

    #[test]
    fn json_of_every_kind() {
        let mut int = vec![0x18];
        put_varint(&mut int, (-5_i64).cast_unsigned());
        let double = |value: f64| [&[0x21][..], &value.to_le_bytes()].concat();
        let mut list = Vec::new();
        for (key, value) in [("a", string("1")), ("b", int.clone()), ("a", string("2"))] {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            put_bytes(&mut entry, 2, &value);
            put_bytes(&mut list, 1, &entry);
        }
        let mut kv_list = Vec::new();
        put_bytes(&mut kv_list, 6, &list);
        for (value, expected) in [
            (vec![], "null"),
            (string("a\"\\\n\u{1}é"), "\"a\\\"\\\\\\n\\u0001é\""),
            (vec![0x10, 0x01], "true"),
            (int, "-5"),
            (double(2.0), "2.0"),
            (double(f64::NAN), "\"NaN\""),
            (double(f64::NEG_INFINITY), "\"-Infinity\""),
            (vec![0x3a, 0x02, 0xff, 0x00], "\"/wA=\""),
            (array(&[string("x"), array(&[]), vec![]]), "[\"x\",[],null]"),
            (kv_list, "{\"b\":-5,\"a\":\"2\"}"),
            ([array(&[string("x")]), array(&[string("y")])].concat(), "[\"x\",\"y\"]"),
            ([array(&[string("x")]), string("z")].concat(), "\"z\""),
        ] {
            assert_eq!(json(&value), expected);
        }
    }

    #[test]
    fn depth_is_limited_per_item_and_never_by_the_stack() {
        assert!(Value::parse(&nested(VALUE_DEPTH_MAX)).is_ok());
        for depth in [VALUE_DEPTH_MAX + 1, 100, 5_000] {
            assert_eq!(Value::parse(&nested(depth)), Err(ItemError::Reject(RejectReason::ValueTooDeep)));
        }
    }
}
