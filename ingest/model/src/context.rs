//! Resource, scope and metric metadata: what many rows share, dictionary-encoded whole.
//!
//! A context is kept as the bytes it came in, behind one byte that says what it is. That makes
//! it exact (schema URLs, dropped counts, entity references and all) and cheap: the decoder
//! copies it once a request, and a query looks into each distinct one once.
//!
//! ```text
//! 1 | ResourceSpans-like message: 1 = Resource, 3 = schema_url
//! 2 | ScopeSpans-like message:    1 = InstrumentationScope, 3 = schema_url
//! 3 | Metric-like message:        12 = metadata
//! ```

use arrow::datatypes::DataType;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::value::{ItemError, KeyValue, Value, check_key_values, write_json_object};
use crate::wire::{Field, Reader, WireError, put_bytes};

/// What a context describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ContextKind {
    /// The entity that produced the telemetry.
    Resource = 1,
    /// The instrumentation scope.
    Scope = 2,
    /// `Metric.metadata`.
    MetricMetadata = 3,
}

/// The Arrow type of a context column.
#[must_use]
pub fn context_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Binary))
}

/// The bytes stored for a resource (or a scope) and its schema URL. An absent message and an
/// empty one are the same.
#[must_use]
pub fn encode(kind: ContextKind, message: &[u8], schema_url: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + schema_url.len() + 12);
    encode_into(kind, message, schema_url, &mut out);
    out
}

/// As [`encode`], appended to `out`.
pub fn encode_into(kind: ContextKind, message: &[u8], schema_url: &str, out: &mut Vec<u8>) {
    out.push(kind as u8);
    if !message.is_empty() {
        put_bytes(out, 1, message);
    }
    if !schema_url.is_empty() {
        put_bytes(out, 3, schema_url.as_bytes());
    }
}

/// A hash of everything a resource or a scope says. The order of its attributes does not matter,
/// since two exporters, or two runs of one, may order them differently; everything else does,
/// the order inside an attribute's list included.
///
/// # Errors
/// [`WireError`] when the message is not protobuf.
pub fn identity(kind: ContextKind, message: &[u8], schema_url: &str) -> Result<u64, WireError> {
    // No field has the number 0.
    let mut sum = xxh3_64_with_seed(schema_url.as_bytes(), 0);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        let seed = u64::from(number);
        sum = sum.wrapping_add(match field {
            Field::Bytes(bytes) => xxh3_64_with_seed(bytes, seed),
            Field::Varint(value) | Field::Fixed64(value) => xxh3_64_with_seed(&value.to_le_bytes(), seed),
            Field::Fixed32(value) => xxh3_64_with_seed(&value.to_le_bytes(), seed),
            Field::Group => seed,
        });
    }
    Ok(xxh3_64_with_seed(&sum.to_le_bytes(), kind as u64))
}

/// Checks a resource or scope message as it came in: UTF-8, wire format, depth, counts.
///
/// # Errors
/// [`ItemError`]: everything below the context is refused with it.
pub fn check(kind: ContextKind, message: &[u8]) -> Result<(), ItemError> {
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match (kind, number) {
            (ContextKind::Scope, 1 | 2) => {
                field.string(number)?;
            }
            (ContextKind::Scope, 4) | (ContextKind::Resource, 2) => {
                field.varint(number)?;
            }
            (ContextKind::Resource, 3) => check_entity_ref(field.bytes(3)?)?,
            _ => {}
        }
    }
    check_key_values(message, attributes_field(kind))
}

fn check_entity_ref(message: &[u8]) -> Result<(), ItemError> {
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if let 1..=4 = number {
            field.string(number)?;
        }
    }
    Ok(())
}

const fn attributes_field(kind: ContextKind) -> u32 {
    match kind {
        ContextKind::Resource => 1,
        ContextKind::Scope => 3,
        ContextKind::MetricMetadata => 12,
    }
}

/// A context, read back. Damage reads as absent.
#[derive(Clone, Debug, PartialEq)]
pub struct Context<'a> {
    /// What it describes.
    pub kind: ContextKind,
    /// The `Resource`, `InstrumentationScope` or `Metric` message.
    pub message: &'a [u8],
    /// The schema URL; empty when there is none.
    pub schema_url: &'a str,
}

impl<'a> Context<'a> {
    /// Reads the bytes that [`encode`] wrote.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (kind, envelope) = bytes.split_first()?;
        let kind = match kind {
            1 => ContextKind::Resource,
            2 => ContextKind::Scope,
            3 => return Some(Self { kind: ContextKind::MetricMetadata, message: envelope, schema_url: "" }),
            _ => return None,
        };
        let mut context = Self { kind, message: &[], schema_url: "" };
        let mut reader = Reader::new(envelope);
        while let Ok(Some((number, field))) = reader.next() {
            match number {
                1 => context.message = field.bytes(1).ok()?,
                3 => context.schema_url = field.string(3).ok()?,
                _ => {}
            }
        }
        Some(context)
    }

    /// The attributes in order.
    pub fn attributes(&self) -> impl Iterator<Item = KeyValue<'a>> + use<'a> {
        let wanted = attributes_field(self.kind);
        let mut reader = Reader::new(self.message);
        std::iter::from_fn(move || {
            loop {
                match reader.next() {
                    Ok(Some((number, Field::Bytes(entry)))) if number == wanted => {
                        if let Ok(entry) = KeyValue::parse(entry) {
                            return Some(entry);
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return None,
                }
            }
        })
    }

    /// Calls `use_value` with the value of a key: the last one, the rule for duplicate keys.
    pub fn with_attribute<T>(&self, key: &str, use_value: impl FnOnce(Value<'_>) -> T) -> Option<T> {
        self.attributes().filter(|entry| entry.key == key).last().map(|entry| use_value(entry.parsed()))
    }

    fn string_field(&self, wanted: u32) -> &'a str {
        let mut found = "";
        let mut reader = Reader::new(self.message);
        while let Ok(Some((number, field))) = reader.next() {
            if number == wanted {
                found = field.string(wanted).unwrap_or("");
            }
        }
        found
    }

    /// The scope's name; empty for anything but a scope.
    #[must_use]
    pub fn scope_name(&self) -> &'a str {
        if self.kind == ContextKind::Scope { self.string_field(1) } else { "" }
    }

    /// The scope's version; empty for anything but a scope.
    #[must_use]
    pub fn scope_version(&self) -> &'a str {
        if self.kind == ContextKind::Scope { self.string_field(2) } else { "" }
    }

    /// The attributes as a JSON object.
    pub fn write_json(&self, out: &mut String) {
        let entries: Vec<KeyValue<'_>> = self.attributes().collect();
        write_json_object(entries.iter().map(|entry| (entry.key, entry.parsed())), out);
    }
}

/// The value of `service.name` in a `Resource` message, as text; OpenTelemetry's fallback
/// `unknown_service` when it is absent or empty (resource semantic conventions).
#[must_use]
pub fn service_name(resource: &[u8]) -> String {
    let context = Context { kind: ContextKind::Resource, message: resource, schema_url: "" };
    context
        .with_attribute("service.name", |value| value.to_text().map(std::borrow::Cow::into_owned))
        .flatten()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown_service".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_value(key: &str, text: &str) -> Vec<u8> {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, text.as_bytes());
        let mut out = Vec::new();
        put_bytes(&mut out, 1, key.as_bytes());
        put_bytes(&mut out, 2, &value);
        out
    }

    #[test]
    fn a_context_reads_back_as_it_was() {
        let mut resource = Vec::new();
        put_bytes(&mut resource, 1, &key_value("service.name", "cart"));
        put_bytes(&mut resource, 1, &key_value("k8s.pod.name", "cart-0"));
        assert_eq!(check(ContextKind::Resource, &resource), Ok(()));
        let bytes = encode(ContextKind::Resource, &resource, "https://x/1");
        let context = Context::parse(&bytes).unwrap();
        assert_eq!(context.schema_url, "https://x/1");
        assert_eq!(context.message, resource);
        assert_eq!(context.attributes().map(|entry| entry.key).collect::<Vec<_>>(), ["service.name", "k8s.pod.name"]);
        let mut json = String::new();
        context.write_json(&mut json);
        assert_eq!(json, r#"{"service.name":"cart","k8s.pod.name":"cart-0"}"#);
        assert_eq!(service_name(&resource), "cart");
        assert_eq!(service_name(&[]), "unknown_service");

        let mut scope = Vec::new();
        put_bytes(&mut scope, 1, b"lib");
        put_bytes(&mut scope, 2, b"1.0");
        put_bytes(&mut scope, 3, &key_value("a", "b"));
        let bytes = encode(ContextKind::Scope, &scope, "");
        let context = Context::parse(&bytes).unwrap();
        assert_eq!((context.scope_name(), context.scope_version()), ("lib", "1.0"));
        assert_eq!(
            context.with_attribute("a", |value| value.to_text().map(|t| t.into_owned())),
            Some(Some("b".to_owned()))
        );
        assert!(Context::parse(&encode(ContextKind::Scope, &[], "")).is_some());
        assert_eq!(Context::parse(&[9]), None);
    }
}
