//! Profiles: `ExportProfilesServiceRequest` to the columns of `profiles`, one row per sample.
//! Source: opentelemetry/proto/profiles/v1development/profiles.proto (alpha).
//!
//! A profile points into tables that its request shares. The columns hold what people ask for
//! (stacks, values, links, attributes), resolved; the first row of a profile also carries the
//! whole profile with those tables as one message, so that nothing is lost while the format is
//! still moving. An item of the ledger is a profile, as `rejected_profiles` counts them.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampNanosecondType, UInt64Type};
use model::attributes::AttributesColumn;
use model::columns::{BytesColumn, DictionaryColumn, FixedColumn, Offsets, OptionalBytesColumn, PrimitiveColumn};
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::{ITEM_BYTES_MAX, ITEMS_PER_REQUEST_MAX, PROFILE_BYTES_PER_REQUEST_MAX, STACK_FRAMES_MAX};
use model::schema::{schema, time_type};
use model::signal::Table;
use model::value::{ItemError, Value};
use model::wire::{Field as WireField, Reader, WireError, put_bytes};

use super::envelope::{ContextColumns, Envelope, Order, Stop, repeated};
use super::{ItemResult, count, fixed64s, optional_id, refusal, time};

const DANGLING: RejectReason = RejectReason::InvalidProfileReference;

/// What a field must look like. Entries of the shared tables that no sample refers to are never
/// resolved, so they are checked by this instead.
enum Shape {
    Varint,
    Varints,
    Fixed64,
    Fixed64s,
    Text,
    Bytes,
    AnyValue,
    Message(&'static [(u32, Shape)]),
}

const VALUE_TYPE: &[(u32, Shape)] = &[(1, Shape::Varint), (2, Shape::Varint)];
const LINE: &[(u32, Shape)] = &[(1, Shape::Varint), (2, Shape::Varint), (3, Shape::Varint)];
const DICTIONARY: &[(u32, Shape)] = &[
    (
        1,
        Shape::Message(&[
            (1, Shape::Varint),
            (2, Shape::Varint),
            (3, Shape::Varint),
            (4, Shape::Varint),
            (5, Shape::Varints),
        ]),
    ),
    (2, Shape::Message(&[(1, Shape::Varint), (2, Shape::Varint), (3, Shape::Message(LINE)), (4, Shape::Varints)])),
    (3, Shape::Message(&[(1, Shape::Varint), (2, Shape::Varint), (3, Shape::Varint), (4, Shape::Varint)])),
    (4, Shape::Message(&[(1, Shape::Bytes), (2, Shape::Bytes)])),
    (5, Shape::Text),
    (6, Shape::Message(&[(1, Shape::Varint), (2, Shape::AnyValue), (3, Shape::Varint)])),
    (7, Shape::Message(&[(1, Shape::Varints)])),
];
const SAMPLE: &[(u32, Shape)] =
    &[(1, Shape::Varint), (2, Shape::Varints), (3, Shape::Varint), (4, Shape::Varints), (5, Shape::Fixed64s)];
const PROFILE: &[(u32, Shape)] = &[
    (1, Shape::Message(VALUE_TYPE)),
    (2, Shape::Message(SAMPLE)),
    (3, Shape::Fixed64),
    (4, Shape::Varint),
    (5, Shape::Message(VALUE_TYPE)),
    (6, Shape::Varint),
    (7, Shape::Bytes),
    (8, Shape::Varint),
    (9, Shape::Text),
    (10, Shape::Bytes),
    (11, Shape::Varints),
];

/// Checks a message against its shape. The shapes nest three deep, so the recursion is bounded.
fn check(message: &[u8], shape: &[(u32, Shape)]) -> Result<(), ItemError> {
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        let Some((_, shape)) = shape.iter().find(|(known, _)| *known == number) else { continue };
        match shape {
            Shape::Varint => {
                field.varint(number)?;
            }
            Shape::Varints => varints(field, number, &mut Vec::new())?,
            Shape::Fixed64 => {
                field.fixed64(number)?;
            }
            Shape::Fixed64s => fixed64s(field, number, |_nanos| Ok(()))?,
            Shape::Text => {
                field.string(number)?;
            }
            Shape::Bytes => {
                field.bytes(number)?;
            }
            Shape::AnyValue => {
                Value::parse(field.bytes(number)?)?;
            }
            Shape::Message(shape) => check(field.bytes(number)?, shape)?,
        }
    }
    Ok(())
}

/// The tables of `ProfilesDictionary`, as slices into the request.
#[derive(Default)]
struct Dictionary<'a> {
    message: Vec<&'a [u8]>,
    /// Set when a table entry breaks a rule: every profile of the request is refused for it.
    refused: Option<RejectReason>,
    mappings: Vec<&'a [u8]>,
    locations: Vec<&'a [u8]>,
    functions: Vec<&'a [u8]>,
    links: Vec<&'a [u8]>,
    strings: Vec<&'a str>,
    attributes: Vec<&'a [u8]>,
    stacks: Vec<&'a [u8]>,
}

impl<'a> Dictionary<'a> {
    fn scan(body: &'a [u8]) -> Result<Self, WireError> {
        let mut found = Self::default();
        for message in repeated(body, 2) {
            let message = message?;
            found.message.push(message);
            match check(message, DICTIONARY) {
                Ok(()) => {}
                Err(ItemError::Reject(reason)) => found.refused = Some(reason),
                Err(ItemError::Wire(error)) => return Err(error),
            }
            let mut reader = Reader::new(message);
            while let Some((number, field)) = reader.next()? {
                match number {
                    1 => found.mappings.push(field.bytes(1)?),
                    2 => found.locations.push(field.bytes(2)?),
                    3 => found.functions.push(field.bytes(3)?),
                    4 => found.links.push(field.bytes(4)?),
                    5 => found.strings.push(field.string(5)?),
                    6 => found.attributes.push(field.bytes(6)?),
                    7 => found.stacks.push(field.bytes(7)?),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn string(&self, index: i32) -> Result<&'a str, ItemError> {
        Ok(entry(&self.strings, index)?.unwrap_or(""))
    }

    /// One frame as people read it: `function (file:line)`, or the mapping and address when there
    /// are no symbols.
    fn push_frames(&self, location: &[u8], frames: &mut Frames) -> Result<(), ItemError> {
        let (mut mapping, mut address) = (0, 0);
        let mut symbolised = false;
        let mut reader = Reader::new(location);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => mapping = field.uint32(1)?.cast_signed(),
                2 => address = field.varint(2)?,
                3 => {
                    symbolised = true;
                    let (function, line) = two_numbers(field.bytes(3)?)?;
                    let [name, _, file, _] = match entry(&self.functions, index(function)?)? {
                        Some(function) => four_numbers(function)?,
                        None => [0; 4],
                    };
                    let name = self.string(index(name)?)?;
                    let file = self.string(index(file)?)?;
                    frames.push(&match (file, line) {
                        ("", _) => name.to_owned(),
                        (file, 0) => format!("{name} ({file})"),
                        (file, line) => format!("{name} ({file}:{line})"),
                    })?;
                }
                _ => {}
            }
        }
        if !symbolised {
            let file = match entry(&self.mappings, mapping)? {
                Some(mapping) => self.string(index(four_numbers(mapping)?[3])?)?,
                None => "",
            };
            frames.push(&format!("{file}+0x{address:x}"))?;
        }
        Ok(())
    }
}

/// The entry at an index; index 0 of an empty table means "none", any other dangling one refuses
/// the profile.
fn entry<T: Copy>(table: &[T], index: i32) -> Result<Option<T>, ItemError> {
    match usize::try_from(index).ok().and_then(|index| table.get(index)) {
        Some(found) => Ok(Some(*found)),
        None if index == 0 && table.is_empty() => Ok(None),
        None => Err(DANGLING.into()),
    }
}

fn index(number: u64) -> Result<i32, ItemError> {
    i32::try_from(number).map_err(|_wide| DANGLING.into())
}

/// Fields 1 to 4 of a message of numbers.
fn four_numbers(message: &[u8]) -> Result<[u64; 4], ItemError> {
    let mut numbers = [0; 4];
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if let 1..=4 = number {
            numbers[number as usize - 1] = field.varint(number)?;
        }
    }
    Ok(numbers)
}

fn two_numbers(message: &[u8]) -> Result<(u64, u64), ItemError> {
    let [first, second, ..] = four_numbers(message)?;
    Ok((first, second))
}

/// A repeated int32 or int64 field, packed or not.
fn varints(field: WireField<'_>, number: u32, out: &mut Vec<u64>) -> Result<(), ItemError> {
    match field {
        WireField::Varint(value) => out.push(value),
        packed => {
            let mut packed = Reader::new(packed.bytes(number)?);
            while !packed.is_empty() {
                out.push(packed.varint()?);
            }
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Frames {
    text: BytesColumn,
    ends: Offsets,
    /// What the request's profiles may still take, written out.
    bytes_left: usize,
}

impl Frames {
    fn push(&mut self, frame: &str) -> Result<(), ItemError> {
        if self.text.len() - self.ends.items() == STACK_FRAMES_MAX {
            return Err(RejectReason::TooManyNestedItems.into());
        }
        self.charge(frame.len() + size_of::<i32>())?;
        self.text.push(frame.as_bytes());
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), ItemError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(RejectReason::ProfileTooLarge)?;
        Ok(())
    }
}

/// The fields of a profile that every row of it repeats.
#[derive(Default)]
struct Profile<'a> {
    sample_type: (u64, u64),
    period_type: (u64, u64),
    period: i64,
    time: u64,
    duration_ns: u64,
    id: &'a [u8],
    samples: Vec<&'a [u8]>,
}

#[derive(Debug, Default)]
pub(super) struct ProfileColumns {
    time: PrimitiveColumn<TimestampNanosecondType>,
    profile_id: OptionalBytesColumn,
    duration_ns: PrimitiveColumn<UInt64Type>,
    sample_type: DictionaryColumn,
    sample_unit: DictionaryColumn,
    period_type: DictionaryColumn,
    period_unit: DictionaryColumn,
    period: PrimitiveColumn<Int64Type>,
    frames: Frames,
    values: PrimitiveColumn<Int64Type>,
    values_ends: Offsets,
    timestamps: PrimitiveColumn<TimestampNanosecondType>,
    timestamps_ends: Offsets,
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    attributes: AttributesColumn,
    otlp: OptionalBytesColumn,
    context: ContextColumns,
}

impl ProfileColumns {
    pub(super) fn decode_request(&mut self, body: &[u8]) -> Result<LedgerDelta, Stop> {
        let mut delta = LedgerDelta::default();
        let dictionary = Dictionary::scan(body)?;
        let first = self.len();
        self.frames.bytes_left = PROFILE_BYTES_PER_REQUEST_MAX;
        for resource_profiles in repeated(body, 1) {
            let mut resource = Envelope::open(resource_profiles?, Order::Any)?;
            let resource_key = self.context.find_resource(&resource)?;
            while let Some(scope_profiles) = resource.next_item()? {
                let mut scope = Envelope::open(scope_profiles, Order::Any)?;
                let keys = self.context.find(resource_key, &scope)?;
                while let Some(profile) = scope.next_item()? {
                    let before = self.len();
                    let outcome = match refusal(&delta, dictionary.refused.or(keys.refused())) {
                        Some(reason) => Err(reason.into()),
                        None => {
                            let otlp = || self_contained(&dictionary, &resource, &scope, profile);
                            self.push_profile(profile, &dictionary, before - first, otlp)
                        }
                    };
                    if !count(&mut delta, outcome)? {
                        self.truncate(before);
                    }
                }
                self.context.fill(self.len(), keys);
            }
        }
        Ok(delta)
    }

    fn push_profile(
        &mut self,
        message: &[u8],
        dictionary: &Dictionary<'_>,
        rows_before: usize,
        otlp: impl FnOnce() -> Vec<u8>,
    ) -> ItemResult {
        if message.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        check(message, PROFILE)?;
        let mut profile = Profile::default();
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => profile.sample_type = two_numbers(field.bytes(1)?)?,
                2 => profile.samples.push(field.bytes(2)?),
                3 => profile.time = field.fixed64(3)?,
                4 => profile.duration_ns = field.varint(4)?,
                5 => profile.period_type = two_numbers(field.bytes(5)?)?,
                6 => profile.period = field.varint(6)?.cast_signed(),
                7 => profile.id = field.bytes(7)?,
                _ => {}
            }
        }
        if rows_before + profile.samples.len() > ITEMS_PER_REQUEST_MAX {
            return Err(RejectReason::TooManyItems.into());
        }
        let shared: usize = dictionary.message.iter().map(|tables| tables.len()).sum();
        self.frames.charge(shared + message.len())?;
        let otlp = otlp();
        if profile.samples.is_empty() {
            return self.push_sample(&[], &profile, dictionary, Some(&otlp));
        }
        for (row, sample) in profile.samples.iter().enumerate() {
            self.push_sample(sample, &profile, dictionary, (row == 0).then_some(&otlp))?;
        }
        Ok(())
    }

    fn push_sample(
        &mut self,
        sample: &[u8],
        profile: &Profile<'_>,
        dictionary: &Dictionary<'_>,
        otlp: Option<&Vec<u8>>,
    ) -> ItemResult {
        let (mut stack, mut link) = (None, 0);
        let (mut attributes, mut values) = (Vec::new(), Vec::new());
        let mut first_timestamp = None;
        let mut reader = Reader::new(sample);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => stack = Some(field.uint32(1)?.cast_signed()),
                2 => varints(field, 2, &mut attributes)?,
                3 => link = field.uint32(3)?.cast_signed(),
                4 => varints(field, 4, &mut values)?,
                5 => {
                    fixed64s(field, 5, |nanos| {
                        let nanos = time(nanos)?;
                        first_timestamp.get_or_insert(nanos);
                        self.timestamps.push(nanos);
                        Ok(())
                    })?;
                }
                _ => {}
            }
        }
        self.push_stack(stack.unwrap_or(0), dictionary)?;
        for value in values {
            self.values.push(value.cast_signed());
        }
        for attribute in attributes {
            self.push_attribute(index(attribute)?, dictionary)?;
        }
        let (trace_id, span_id) = match entry(&dictionary.links, link)? {
            Some(link) => link_ids(link)?,
            None => (None, None),
        };
        let texts = [profile.sample_type.0, profile.sample_type.1, profile.period_type.0, profile.period_type.1];
        let mut resolved = [""; 4];
        for (text, strindex) in resolved.iter_mut().zip(texts) {
            *text = dictionary.string(index(strindex)?)?;
        }
        let at = match first_timestamp {
            Some(nanos) => nanos,
            None => time(profile.time)?,
        };

        self.time.push(at);
        self.profile_id.push((!profile.id.is_empty()).then_some(profile.id));
        self.duration_ns.push(profile.duration_ns);
        self.sample_type.push(resolved[0].as_bytes());
        self.sample_unit.push(resolved[1].as_bytes());
        self.period_type.push(resolved[2].as_bytes());
        self.period_unit.push(resolved[3].as_bytes());
        self.period.push(profile.period);
        self.frames.ends.push(self.frames.text.len());
        self.values_ends.push(self.values.len());
        self.timestamps_ends.push(self.timestamps.len());
        self.trace_id.push(trace_id.as_ref());
        self.span_id.push(span_id.as_ref());
        self.attributes.end_row();
        self.otlp.push(otlp.map(Vec::as_slice));
        Ok(())
    }

    fn push_stack(&mut self, stack: i32, dictionary: &Dictionary<'_>) -> Result<(), ItemError> {
        let Some(stack) = entry(&dictionary.stacks, stack)? else { return Ok(()) };
        let mut locations = Vec::new();
        let mut reader = Reader::new(stack);
        while let Some((number, field)) = reader.next()? {
            if number == 1 {
                varints(field, 1, &mut locations)?;
            }
        }
        for location in locations {
            if let Some(location) = entry(&dictionary.locations, index(location)?)? {
                dictionary.push_frames(location, &mut self.frames)?;
            }
        }
        Ok(())
    }

    /// A `KeyValueAndUnit`: the key, and possibly a string value, are indices into the strings.
    fn push_attribute(&mut self, attribute: i32, dictionary: &Dictionary<'_>) -> Result<(), ItemError> {
        let Some(attribute) = entry(&dictionary.attributes, attribute)? else { return Ok(()) };
        let (mut key, mut value) = (0, None);
        let mut reader = Reader::new(attribute);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => key = field.uint32(1)?.cast_signed(),
                2 => value = Some(field.bytes(2)?),
                _ => {}
            }
        }
        let key = dictionary.string(key)?;
        self.frames.charge(key.len() + value.map_or(0, <[u8]>::len))?;
        let Some(raw) = value else { return self.attributes.push(key, None) };
        let mut parsed = Value::parse(raw)?;
        if parsed == Value::Empty {
            let mut reader = Reader::new(raw);
            while let Some((number, field)) = reader.next()? {
                if number == 8 {
                    let text = dictionary.string(field.uint32(8)?.cast_signed())?;
                    self.frames.charge(text.len())?;
                    parsed = Value::String(text);
                }
            }
        }
        self.attributes.push(key, Some(parsed))
    }

    pub(super) fn len(&self) -> usize {
        self.time.len()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.time.truncate(rows);
        self.profile_id.truncate(rows);
        self.duration_ns.truncate(rows);
        self.sample_type.truncate(rows);
        self.sample_unit.truncate(rows);
        self.period_type.truncate(rows);
        self.period_unit.truncate(rows);
        self.period.truncate(rows);
        self.frames.text.truncate(self.frames.ends.truncate(rows));
        self.values.truncate(self.values_ends.truncate(rows));
        self.timestamps.truncate(self.timestamps_ends.truncate(rows));
        self.trace_id.truncate(rows);
        self.span_id.truncate(rows);
        self.attributes.truncate(rows);
        self.otlp.truncate(rows);
        self.context.truncate(rows);
    }

    pub(super) fn finish(&mut self) -> RecordBatch {
        use arrow::array::ListArray;
        use arrow::datatypes::{DataType, Field};
        let list = |ends: &mut Offsets, item: DataType, items: ArrayRef| -> ArrayRef {
            Arc::new(ListArray::new(Arc::new(Field::new("item", item, false)), ends.finish(), items, None))
        };
        let [service_name, resource, scope] = self.context.finish();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            service_name,
            self.profile_id.finish_binary(),
            Arc::new(self.duration_ns.finish()),
            self.sample_type.finish_utf8(),
            self.sample_unit.finish_utf8(),
            self.period_type.finish_utf8(),
            self.period_unit.finish_utf8(),
            Arc::new(self.period.finish()),
            list(&mut self.frames.ends, DataType::Utf8, Arc::new(self.frames.text.finish_utf8())),
            list(&mut self.values_ends, DataType::Int64, Arc::new(self.values.finish())),
            list(&mut self.timestamps_ends, time_type(), Arc::new(self.timestamps.finish().with_timezone("UTC"))),
            self.trace_id.finish(),
            self.span_id.finish(),
            self.attributes.finish(),
            self.otlp.finish_binary(),
            resource,
            scope,
        ];
        RecordBatch::try_new(schema(Table::Profiles), columns).expect("the columns are those of the schema")
    }
}

type LinkIds = (Option<[u8; 16]>, Option<[u8; 8]>);

fn link_ids(link: &[u8]) -> Result<LinkIds, ItemError> {
    let (mut trace_id, mut span_id) = (&[][..], &[][..]);
    let mut reader = Reader::new(link);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => trace_id = field.bytes(1)?,
            2 => span_id = field.bytes(2)?,
            _ => {}
        }
    }
    let trace_id = optional_id::<16>(trace_id, RejectReason::InvalidTraceId)?;
    let span_id = optional_id::<8>(span_id, RejectReason::InvalidSpanId)?;
    // The table's first entry is the null link: all zeros.
    Ok((trace_id.copied().filter(|id| *id != [0; 16]), span_id.copied().filter(|id| *id != [0; 8])))
}

/// One profile as a `ProfilesData` message of its own: nested 1-2-2, with the tables it points into.
fn self_contained(
    dictionary: &Dictionary<'_>,
    resource: &Envelope<'_>,
    scope: &Envelope<'_>,
    profile: &[u8],
) -> Vec<u8> {
    let envelope = |context: &Envelope<'_>, item: &[u8]| {
        let mut out = Vec::new();
        if !context.message.is_empty() {
            put_bytes(&mut out, 1, &context.message);
        }
        put_bytes(&mut out, 2, item);
        if !context.schema_url.is_empty() {
            put_bytes(&mut out, 3, context.schema_url.as_bytes());
        }
        out
    };
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &envelope(resource, &envelope(scope, profile)));
    for message in &dictionary.message {
        put_bytes(&mut out, 2, message);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::limits::NESTED_ITEMS_MAX;

    #[test]
    fn limits_are_those_of_the_model() {
        // A stack's frames and a span's events share one reason, so they share one limit.
        assert_eq!(STACK_FRAMES_MAX, NESTED_ITEMS_MAX);
    }
}
