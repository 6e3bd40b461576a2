//! OTLP/protobuf to OTLP/JSON: the wire bytes of a request become the text of the same request.
//!
//! The way back of `transcode`, guided by the same tables. What is absent on the wire is absent in the text, and what a
//! later release of OTLP adds is left out, as JSON has no place for fields without a name. Fields stand in the order in
//! which each came last, so that of a oneof that is set twice the same member wins. It is NOT for messages of which nobody
//! has looked whether they are the signal's: it says [`WireError`] then, and `out` is half written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::signal::Signal;
use model::wire::{self, Reader, WireError};

use super::MAX_JSON_VALUE_DEPTH;
use super::descriptor::{self, Field, Kind, Message};

/// Appends the OTLP/JSON of a request to `out`.
///
/// # Errors
/// [`WireError`] when the bytes are not the signal's request.
pub fn render(signal: Signal, request: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    // Keys and quotes weigh more than tags and lengths.
    out.reserve(request.len() * 2);
    Renderer { out, value_depth: 0 }.message(descriptor::request(signal), request)
}

/// One occurrence of a field.
type Occurrence<'a> = (&'static Field, wire::Field<'a>);

struct Renderer<'o> {
    out: &'o mut Vec<u8>,
    /// How many `AnyValue` messages are open.
    value_depth: u32,
}

impl Renderer<'_> {
    fn message(&mut self, message: &'static Message, bytes: &[u8]) -> Result<(), WireError> {
        let mut found: Vec<Occurrence<'_>> = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((number, value)) = reader.next()? {
            if let Some(field) = message.fields.iter().find(|field| field.number == number) {
                found.push((field, value));
            }
        }
        // A value that is cut here is deeper than any that is kept: whoever reads the text refuses its item.
        if message.is_value && self.value_depth + 1 >= MAX_JSON_VALUE_DEPTH {
            self.out.extend_from_slice(b"{}");
            return Ok(());
        }
        self.value_depth += u32::from(message.is_value);
        let mut separator = b'{';
        let of = |field: &Field, found: &Occurrence<'_>| found.0.number == field.number;
        let last = |field: &'static Field| found.iter().rposition(|found| of(field, found)).map(|at| (at, field));
        let mut fields: Vec<(usize, &'static Field)> = message.fields.iter().filter_map(last).collect();
        fields.sort_unstable_by_key(|(at, _)| *at);
        for (_, field) in fields {
            self.out.push(separator);
            separator = b',';
            self.out.push(b'"');
            self.out.extend_from_slice(field.name.as_bytes());
            self.out.extend_from_slice(b"\":");
            let all = found.iter().filter(|found| of(field, found)).map(|(_, value)| *value);
            if field.repeated { self.array(field, all)? } else { self.single(field, all)? }
        }
        if separator == b'{' {
            self.out.push(b'{');
        }
        self.out.push(b'}');
        self.value_depth -= u32::from(message.is_value);
        Ok(())
    }

    fn array<'a>(&mut self, field: &Field, values: impl Iterator<Item = wire::Field<'a>>) -> Result<(), WireError> {
        self.out.push(b'[');
        let start = self.out.len();
        let separate = |renderer: &mut Self| {
            if renderer.out.len() > start {
                renderer.out.push(b',');
            }
        };
        for value in values {
            match value {
                wire::Field::Bytes(packed) if field.kind.packs() => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        let element = match field.kind.wire_type() {
                            0 => wire::Field::Varint(reader.varint()?),
                            1 => wire::Field::Fixed64(reader.fixed64()?),
                            _ => wire::Field::Fixed32(reader.fixed32()?),
                        };
                        separate(self);
                        self.value(field, element)?;
                    }
                }
                value => {
                    separate(self);
                    self.value(field, value)?;
                }
            }
        }
        self.out.push(b']');
        Ok(())
    }

    /// Of a field that is not repeated the last value holds, but messages merge: their bytes one after the other.
    fn single<'a>(&mut self, field: &Field, values: impl Iterator<Item = wire::Field<'a>>) -> Result<(), WireError> {
        let values: Vec<wire::Field<'a>> = values.collect();
        match (field.kind, &values[..]) {
            (Kind::Message(message), [_, _, ..]) => {
                let parts: Result<Vec<&[u8]>, WireError> =
                    values.iter().map(|value| value.bytes(field.number)).collect();
                self.message(message, &parts?.concat())
            }
            (_, values) => {
                let last = values.last().expect("a field that was found has a value");
                self.value(field, *last)
            }
        }
    }

    fn value(&mut self, field: &Field, value: wire::Field<'_>) -> Result<(), WireError> {
        let number = field.number;
        match field.kind {
            Kind::Message(message) => return self.message(message, value.bytes(number)?),
            Kind::String => self.json(value.string(number)?),
            Kind::Bytes => self.json(&STANDARD.encode(value.bytes(number)?)),
            Kind::Hex => self.json(&hex::encode(value.bytes(number)?)),
            Kind::Bool => self.plain(value.varint(number)? != 0),
            Kind::Int32 | Kind::Enum => self.plain(value.uint32(number)?.cast_signed()),
            Kind::Sint32 => self.plain(value.sint32(number)?),
            Kind::Uint32 => self.plain(value.uint32(number)?),
            Kind::Fixed32 => self.plain(value.fixed32(number)?),
            // Numbers of 64 bits are texts, since many a reader of JSON has doubles only.
            Kind::Uint64 => self.json(&value.varint(number)?.to_string()),
            Kind::Int64 => self.json(&value.varint(number)?.cast_signed().to_string()),
            Kind::Fixed64 => self.json(&value.fixed64(number)?.to_string()),
            Kind::Sfixed64 => self.json(&value.fixed64(number)?.cast_signed().to_string()),
            Kind::Double => match f64::from_bits(value.fixed64(number)?) {
                double if double.is_finite() => self.json(&double),
                double if double.is_nan() => self.json("NaN"),
                double => self.json(if double > 0.0 { "Infinity" } else { "-Infinity" }),
            },
        }
        Ok(())
    }

    fn json<T: serde::Serialize + ?Sized>(&mut self, value: &T) {
        serde_json::to_writer(&mut *self.out, value).expect("texts and finite numbers can be written to memory");
    }

    fn plain(&mut self, value: impl std::fmt::Display) {
        self.out.extend_from_slice(value.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::{testing, transcode};
    use super::*;

    /// The text reads back as the same message. Whether the reference implementation reads it, too.
    fn check<M>(signal: Signal, message: &M) -> bool
    where
        M: prost::Message + Default + PartialEq + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let mut text = Vec::new();
        render(signal, &message.encode_to_vec(), &mut text).unwrap();
        let mut back = Vec::new();
        transcode(signal, &text, &mut back).unwrap_or_else(|error| panic!("{error}: {}", text.escape_ascii()));
        assert_eq!(M::decode(&*back).unwrap(), *message);
        // The reference implementation passes over what it does not understand: it wants some fields also where they are
        // empty, which protobuf leaves out, and lists of 64-bit numbers as numbers, where OTLP/JSON has texts.
        serde_json::from_slice::<M>(&text).is_ok_and(|read| read == *message)
    }

    #[test]
    fn generated_requests_of_every_signal_survive_the_way_to_json_and_back() {
        let mut read = [0; Signal::ALL.len()];
        for seed in 0..200 {
            read[0] += usize::from(check(Signal::Traces, &testing::traces(seed)));
            read[1] += usize::from(check(Signal::Metrics, &testing::metrics(seed)));
            read[2] += usize::from(check(Signal::Logs, &testing::logs(seed)));
            read[3] += usize::from(check(Signal::Profiles, &testing::profiles(seed)));
        }
        assert!(read.iter().all(|read| *read > 0), "{read:?}");
    }

    #[test]
    fn odd_wire_forms_have_the_meaning_that_protobuf_gives_them() {
        let field = |number: u32, bytes: &[u8]| {
            let mut out = Vec::new();
            wire::put_bytes(&mut out, number, bytes);
            out
        };
        let record = |fields: &[u8]| field(1, &field(2, &field(2, fields)));
        for (what, request, want) in [
            ("nothing", Vec::new(), "{}"),
            ("an unknown field", field(99, b"x"), "{}"),
            (
                "messages merge",
                record(&[field(5, &field(1, b"a")), field(5, &field(1, b"b"))].concat()),
                r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"b"}}]}]}]}"#,
            ),
            (
                "the last of a oneof wins",
                record(&field(5, &[vec![2 << 3, 1], field(1, b"a"), vec![2 << 3, 0]].concat())),
                r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"a","boolValue":false}}]}]}]}"#,
            ),
            (
                "not a number",
                record(&field(5, &[&[4 << 3 | 1][..], &f64::NAN.to_le_bytes()].concat())),
                r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"doubleValue":"NaN"}}]}]}]}"#,
            ),
        ] {
            let mut text = Vec::new();
            render(Signal::Logs, &request, &mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), want, "{what}");
        }
        // Deeper than anything that is kept: cut, and still too deep for whoever reads it. No stack is at risk.
        let mut body = field(1, b"x");
        for _ in 0..5_000 {
            body = field(5, &field(1, &body));
        }
        let mut text = Vec::new();
        render(Signal::Logs, &record(&field(5, &body)), &mut text).unwrap();
        assert_eq!(text.windows(10).filter(|part| part == b"arrayValue").count(), MAX_JSON_VALUE_DEPTH as usize - 1);
        assert!(render(Signal::Logs, &[0xff], &mut text).is_err());
    }
}
