//! Spans: `ExportTraceServiceRequest` to the columns of `spans`.
//! Source: opentelemetry/proto/trace/v1/trace.proto.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Int64Type, TimestampNanosecondType, UInt32Type};
use model::attributes::AttributesColumn;
use model::columns::{BytesColumn, DictionaryColumn, EnumColumn, FixedColumn, Offsets, PrimitiveColumn};
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::ITEM_BYTES_MAX;
use model::schema::{event_fields, link_fields, schema};
use model::signal::Table;
use model::value::ItemError;
use model::wire::{BYTES, FIXED32, FIXED64, Reader, Run, VARINT, WireError, key};

use super::envelope::{ContextColumns, Envelope, Order, Stop, repeated};
use super::{
    Allowance, ItemResult, SPAN_KINDS, STATUS_CODES, count, optional_id, optional_time, refusal, required_id, time,
};

#[derive(Debug, Default)]
pub(super) struct SpanColumns {
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    parent_span_id: FixedColumn<8>,
    trace_state: BytesColumn,
    flags: PrimitiveColumn<UInt32Type>,
    name: DictionaryColumn,
    kind: EnumColumn,
    start_time: PrimitiveColumn<TimestampNanosecondType>,
    duration_ns: PrimitiveColumn<Int64Type>,
    status_code: EnumColumn,
    status_message: BytesColumn,
    attributes: AttributesColumn,
    dropped_attributes_count: PrimitiveColumn<UInt32Type>,
    events: EventColumns,
    dropped_events_count: PrimitiveColumn<UInt32Type>,
    links: LinkColumns,
    dropped_links_count: PrimitiveColumn<UInt32Type>,
    context: ContextColumns,
}

/// The scalar fields of a span, gathered before they are checked and pushed.
#[derive(Default)]
struct Scalars<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a str,
    /// Its key in the column of names.
    name: Option<i32>,
    kind: i32,
    start: u64,
    end: u64,
    dropped_attributes: u32,
    dropped_events: u32,
    dropped_links: u32,
    status_message: &'a str,
    status_code: i32,
    flags: u32,
}

impl SpanColumns {
    pub(super) fn decode_request(&mut self, body: &[u8], order: Order) -> Result<LedgerDelta, Stop> {
        let mut delta = LedgerDelta::default();
        self.events.allowance.renew();
        self.links.allowance.renew();
        for resource_spans in repeated(body, 1) {
            let mut resource = Envelope::open(resource_spans?, order)?;
            while let Some(scope_spans) = resource.next_item()? {
                let mut scope = Envelope::open(scope_spans, order)?;
                let refused = self.context.refused(&resource, &scope)?;
                while let Some(span) = scope.next_item()? {
                    let outcome = match refusal(&delta, refused) {
                        Some(reason) => Err(reason.into()),
                        None => self.push_span(span),
                    };
                    if !count(&mut delta, outcome)? {
                        self.check_text()?;
                        self.truncate(self.len());
                    }
                }
                self.context.end_scope(&scope, self.len())?;
            }
            self.context.end_resource(&resource, self.len())?;
        }
        self.check_text()?;
        Ok(delta)
    }

    /// Checks text that was pushed unchecked, also that of an item about to be taken back: a
    /// request that is malformed before the item breaks a rule is malformed.
    fn check_text(&mut self) -> Result<(), WireError> {
        self.attributes.check_text()?;
        self.events.attributes.check_text()?;
        self.links.attributes.check_text()
    }

    #[inline(never)]
    fn push_span(&mut self, span: &[u8]) -> ItemResult {
        const TRACE_ID: u64 = key(1, BYTES);
        const SPAN_ID: u64 = key(2, BYTES);
        const TRACE_STATE: u64 = key(3, BYTES);
        const PARENT_SPAN_ID: u64 = key(4, BYTES);
        const NAME: u64 = key(5, BYTES);
        const KIND: u64 = key(6, VARINT);
        const START: u64 = key(7, FIXED64);
        const END: u64 = key(8, FIXED64);
        const ATTRIBUTE: u64 = key(9, BYTES);
        const DROPPED_ATTRIBUTES: u64 = key(10, VARINT);
        const EVENT: u64 = key(11, BYTES);
        const DROPPED_EVENTS: u64 = key(12, VARINT);
        const LINK: u64 = key(13, BYTES);
        const DROPPED_LINKS: u64 = key(14, VARINT);
        const STATUS: u64 = key(15, BYTES);
        const FLAGS: u64 = key(16, FIXED32);
        if span.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        let mut scalars = Scalars::default();
        let mut reader = Reader::new(span);
        while let Some(key) = reader.key()? {
            match key {
                ATTRIBUTE => self.attributes.push_key_value(reader.run()?)?,
                TRACE_ID => scalars.trace_id = reader.bytes()?,
                SPAN_ID => scalars.span_id = reader.bytes()?,
                TRACE_STATE => scalars.trace_state = reader.string()?,
                PARENT_SPAN_ID => scalars.parent_span_id = reader.bytes()?,
                NAME => scalars.name = Some(self.name.intern_text(reader.bytes()?)?),
                KIND => scalars.kind = (reader.varint()? as u32).cast_signed(),
                START => scalars.start = reader.fixed64()?,
                END => scalars.end = reader.fixed64()?,
                DROPPED_ATTRIBUTES => scalars.dropped_attributes = reader.varint()? as u32,
                EVENT => self.events.push(self.start_time.len(), reader.bytes()?)?,
                DROPPED_EVENTS => scalars.dropped_events = reader.varint()? as u32,
                LINK => self.links.push(self.start_time.len(), reader.bytes()?)?,
                DROPPED_LINKS => scalars.dropped_links = reader.varint()? as u32,
                STATUS => {
                    let mut status = Reader::new(reader.bytes()?);
                    while let Some((number, field)) = status.next()? {
                        match number {
                            2 => scalars.status_message = field.string(2)?,
                            3 => scalars.status_code = field.uint32(3)?.cast_signed(),
                            _ => {}
                        }
                    }
                }
                FLAGS => scalars.flags = reader.fixed32()?,
                other => reader.other(other, |number| number <= 16)?,
            }
        }
        self.push_scalars(&scalars)
    }

    fn push_scalars(&mut self, scalars: &Scalars<'_>) -> ItemResult {
        // Everything that can refuse the span comes before the first push.
        let trace_id = required_id::<16>(scalars.trace_id, RejectReason::InvalidTraceId)?;
        let span_id = required_id::<8>(scalars.span_id, RejectReason::InvalidSpanId)?;
        let parent_span_id = optional_id::<8>(scalars.parent_span_id, RejectReason::InvalidSpanId)?;
        let start = time(scalars.start)?;
        // Both lie in 0..=i64::MAX, so the difference cannot overflow.
        let duration = optional_time(scalars.end)?.map(|end| end - start);

        self.trace_id.push(Some(trace_id));
        self.span_id.push(Some(span_id));
        self.parent_span_id.push(parent_span_id);
        self.trace_state.push(scalars.trace_state.as_bytes());
        self.flags.push(scalars.flags);
        let name = scalars.name.unwrap_or_else(|| self.name.intern(b""));
        self.name.push_key(name);
        self.kind.push(scalars.kind, &SPAN_KINDS);
        self.start_time.push(start);
        self.duration_ns.push_option(duration);
        self.status_code.push(scalars.status_code, &STATUS_CODES);
        self.status_message.push(scalars.status_message.as_bytes());
        self.attributes.end_row();
        self.dropped_attributes_count.push(scalars.dropped_attributes);
        self.dropped_events_count.push(scalars.dropped_events);
        self.dropped_links_count.push(scalars.dropped_links);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.start_time.len()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.trace_id.truncate(rows);
        self.span_id.truncate(rows);
        self.parent_span_id.truncate(rows);
        self.trace_state.truncate(rows);
        self.flags.truncate(rows);
        self.name.truncate(rows);
        self.kind.truncate(rows);
        self.start_time.truncate(rows);
        self.duration_ns.truncate(rows);
        self.status_code.truncate(rows);
        self.status_message.truncate(rows);
        self.attributes.truncate(rows);
        self.dropped_attributes_count.truncate(rows);
        self.events.truncate(rows);
        self.dropped_events_count.truncate(rows);
        self.links.truncate(rows);
        self.dropped_links_count.truncate(rows);
        self.context.truncate(rows);
    }

    pub(super) fn finish(&mut self) -> RecordBatch {
        let rows = self.len();
        let [service_name, resource, scope] = self.context.finish();
        let columns: Vec<ArrayRef> = vec![
            self.trace_id.finish(),
            self.span_id.finish(),
            self.parent_span_id.finish(),
            Arc::new(self.trace_state.finish_utf8()),
            Arc::new(self.flags.finish()),
            service_name,
            self.name.finish_utf8(),
            self.kind.finish(),
            Arc::new(self.start_time.finish().with_timezone("UTC")),
            Arc::new(self.duration_ns.finish()),
            self.status_code.finish(),
            Arc::new(self.status_message.finish_utf8()),
            self.attributes.finish(),
            Arc::new(self.dropped_attributes_count.finish()),
            self.events.finish(rows),
            Arc::new(self.dropped_events_count.finish()),
            self.links.finish(rows),
            Arc::new(self.dropped_links_count.finish()),
            resource,
            scope,
        ];
        RecordBatch::try_new(schema(Table::Spans), columns).expect("the columns are those of the schema")
    }
}

#[derive(Debug, Default)]
struct EventColumns {
    allowance: Allowance,
    ends: Offsets,
    time: PrimitiveColumn<TimestampNanosecondType>,
    name: DictionaryColumn,
    attributes: AttributesColumn,
    dropped_attributes_count: PrimitiveColumn<UInt32Type>,
}

impl EventColumns {
    /// Adds an event to row `row`, the unfinished one.
    fn push(&mut self, row: usize, event: &[u8]) -> Result<(), ItemError> {
        self.ends.fill(row, self.time.len());
        self.allowance.take(self.time.len() - self.ends.items())?;
        let (mut nanos, mut name, mut dropped) = (0, "", 0);
        let mut reader = Reader::new(event);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => nanos = field.fixed64(1)?,
                2 => name = field.string(2)?,
                3 => self.attributes.push_key_value(Run::new(field.bytes(3)?))?,
                4 => dropped = field.uint32(4)?,
                _ => {}
            }
        }
        let nanos = time(nanos)?;
        self.time.push(nanos);
        self.name.push(name.as_bytes());
        self.attributes.end_row();
        self.dropped_attributes_count.push(dropped);
        Ok(())
    }

    fn truncate(&mut self, rows: usize) {
        let events = self.ends.truncate(rows);
        self.time.truncate(events);
        self.name.truncate(events);
        self.attributes.truncate(events);
        self.dropped_attributes_count.truncate(events);
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.ends.fill(rows, self.time.len());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            self.name.finish_utf8(),
            self.attributes.finish(),
            Arc::new(self.dropped_attributes_count.finish()),
        ];
        let events = StructArray::new(event_fields(), columns, None);
        Arc::new(ListArray::new(item_of(event_fields()), self.ends.finish(), Arc::new(events), None))
    }
}

#[derive(Debug, Default)]
struct LinkColumns {
    allowance: Allowance,
    ends: Offsets,
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    trace_state: BytesColumn,
    attributes: AttributesColumn,
    dropped_attributes_count: PrimitiveColumn<UInt32Type>,
    flags: PrimitiveColumn<UInt32Type>,
}

impl LinkColumns {
    /// Adds a link to row `row`, the unfinished one.
    fn push(&mut self, row: usize, link: &[u8]) -> Result<(), ItemError> {
        self.ends.fill(row, self.flags.len());
        self.allowance.take(self.flags.len() - self.ends.items())?;
        let (mut trace_id, mut span_id, mut trace_state) = (&[][..], &[][..], "");
        let (mut dropped, mut flags) = (0, 0);
        let mut reader = Reader::new(link);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => trace_id = field.bytes(1)?,
                2 => span_id = field.bytes(2)?,
                3 => trace_state = field.string(3)?,
                4 => self.attributes.push_key_value(Run::new(field.bytes(4)?))?,
                5 => dropped = field.uint32(5)?,
                6 => flags = field.fixed32(6)?,
                _ => {}
            }
        }
        let trace_id = optional_id::<16>(trace_id, RejectReason::InvalidTraceId)?;
        let span_id = optional_id::<8>(span_id, RejectReason::InvalidSpanId)?;
        self.trace_id.push(trace_id);
        self.span_id.push(span_id);
        self.trace_state.push(trace_state.as_bytes());
        self.attributes.end_row();
        self.dropped_attributes_count.push(dropped);
        self.flags.push(flags);
        Ok(())
    }

    fn truncate(&mut self, rows: usize) {
        let links = self.ends.truncate(rows);
        self.trace_id.truncate(links);
        self.span_id.truncate(links);
        self.trace_state.truncate(links);
        self.attributes.truncate(links);
        self.dropped_attributes_count.truncate(links);
        self.flags.truncate(links);
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.ends.fill(rows, self.flags.len());
        let columns: Vec<ArrayRef> = vec![
            self.trace_id.finish(),
            self.span_id.finish(),
            Arc::new(self.trace_state.finish_utf8()),
            self.attributes.finish(),
            Arc::new(self.dropped_attributes_count.finish()),
            Arc::new(self.flags.finish()),
        ];
        let links = StructArray::new(link_fields(), columns, None);
        Arc::new(ListArray::new(item_of(link_fields()), self.ends.finish(), Arc::new(links), None))
    }
}

/// The item field of a list of structs, as the schema names it.
pub(super) fn item_of(fields: arrow::datatypes::Fields) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(fields), false))
}
