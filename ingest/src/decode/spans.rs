//! Spans: `ExportTraceServiceRequest` to the columns of `spans`.
//! Source: opentelemetry/proto/trace/v1/trace.proto.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Int64Type, TimestampNanosecondType, UInt32Type};
use model::attributes::AttributesColumn;
use model::columns::{BytesColumn, DictionaryColumn, FixedColumn, Offsets, PrimitiveColumn};
use model::context::ContextKind;
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::ITEM_BYTES_MAX;
use model::schema::{event_fields, link_fields, schema};
use model::signal::Table;
use model::value::ItemError;
use model::wire::{Reader, WireError};

use super::envelope::{ContextColumns, ContextKeys, Envelope, items, repeated};
use super::{
    Allowance, ItemResult, SPAN_KINDS, STATUS_CODES, count, enum_text, optional_id, optional_time, refusal,
    required_id, time,
};

#[derive(Debug, Default)]
pub(super) struct SpanColumns {
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    parent_span_id: FixedColumn<8>,
    trace_state: BytesColumn,
    flags: PrimitiveColumn<UInt32Type>,
    name: DictionaryColumn,
    kind: DictionaryColumn,
    start_time: PrimitiveColumn<TimestampNanosecondType>,
    duration_ns: PrimitiveColumn<Int64Type>,
    status_code: DictionaryColumn,
    status_message: BytesColumn,
    attributes: AttributesColumn,
    dropped_attributes_count: PrimitiveColumn<UInt32Type>,
    events: EventColumns,
    dropped_events_count: PrimitiveColumn<UInt32Type>,
    links: LinkColumns,
    dropped_links_count: PrimitiveColumn<UInt32Type>,
    context: ContextColumns,
    scratch: String,
}

/// The scalar fields of a span, gathered before they are checked and pushed.
#[derive(Default)]
struct Scalars<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a str,
    name: &'a str,
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
    pub(super) fn decode_request(&mut self, body: &[u8]) -> Result<LedgerDelta, WireError> {
        let mut delta = LedgerDelta::default();
        self.events.allowance.renew();
        self.links.allowance.renew();
        for resource_spans in repeated(body, 1) {
            let resource_spans = resource_spans?;
            let resource = Envelope::scan(ContextKind::Resource, resource_spans)?;
            let keys = self.context.resource(&resource);
            for scope_spans in items(resource_spans) {
                let scope_spans = scope_spans?;
                let scope = Envelope::scan(ContextKind::Scope, scope_spans)?;
                let keys = self.context.scope(keys, &scope);
                for span in items(scope_spans) {
                    let span = span?;
                    let outcome = match refusal(&delta, resource.refused.or(scope.refused)) {
                        Some(reason) => Err(reason.into()),
                        None => self.push_span(span, keys),
                    };
                    if !count(&mut delta, outcome)? {
                        self.truncate(self.len());
                    }
                }
            }
        }
        Ok(delta)
    }

    fn push_span(&mut self, span: &[u8], keys: ContextKeys) -> ItemResult {
        if span.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        let mut scalars = Scalars::default();
        let mut reader = Reader::new(span);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => scalars.trace_id = field.bytes(1)?,
                2 => scalars.span_id = field.bytes(2)?,
                3 => scalars.trace_state = field.string(3)?,
                4 => scalars.parent_span_id = field.bytes(4)?,
                5 => scalars.name = field.string(5)?,
                6 => scalars.kind = field.uint32(6)?.cast_signed(),
                7 => scalars.start = field.fixed64(7)?,
                8 => scalars.end = field.fixed64(8)?,
                9 => self.attributes.push_key_value(field.bytes(9)?)?,
                10 => scalars.dropped_attributes = field.uint32(10)?,
                11 => self.events.push(field.bytes(11)?)?,
                12 => scalars.dropped_events = field.uint32(12)?,
                13 => self.links.push(field.bytes(13)?)?,
                14 => scalars.dropped_links = field.uint32(14)?,
                15 => {
                    let mut status = Reader::new(field.bytes(15)?);
                    while let Some((number, field)) = status.next()? {
                        match number {
                            2 => scalars.status_message = field.string(2)?,
                            3 => scalars.status_code = field.uint32(3)?.cast_signed(),
                            _ => {}
                        }
                    }
                }
                16 => scalars.flags = field.fixed32(16)?,
                _ => {}
            }
        }
        self.push_scalars(&scalars, keys)
    }

    fn push_scalars(&mut self, scalars: &Scalars<'_>, keys: ContextKeys) -> ItemResult {
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
        self.name.push(scalars.name.as_bytes());
        self.kind.push(enum_text(&SPAN_KINDS, scalars.kind, &mut self.scratch).as_bytes());
        self.start_time.push(start);
        self.duration_ns.push_option(duration);
        self.status_code.push(enum_text(&STATUS_CODES, scalars.status_code, &mut self.scratch).as_bytes());
        self.status_message.push(scalars.status_message.as_bytes());
        self.attributes.end_row();
        self.dropped_attributes_count.push(scalars.dropped_attributes);
        self.events.end_row();
        self.dropped_events_count.push(scalars.dropped_events);
        self.links.end_row();
        self.dropped_links_count.push(scalars.dropped_links);
        self.context.push(keys);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.context.len()
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
        let columns: Vec<ArrayRef> = vec![
            self.trace_id.finish(),
            self.span_id.finish(),
            self.parent_span_id.finish(),
            Arc::new(self.trace_state.finish_utf8()),
            Arc::new(self.flags.finish()),
            self.context.service_name.finish_utf8(),
            self.name.finish_utf8(),
            self.kind.finish_utf8(),
            Arc::new(self.start_time.finish().with_timezone("UTC")),
            Arc::new(self.duration_ns.finish()),
            self.status_code.finish_utf8(),
            Arc::new(self.status_message.finish_utf8()),
            self.attributes.finish(),
            Arc::new(self.dropped_attributes_count.finish()),
            self.events.finish(),
            Arc::new(self.dropped_events_count.finish()),
            self.links.finish(),
            Arc::new(self.dropped_links_count.finish()),
            self.context.resource.finish_binary(),
            self.context.scope.finish_binary(),
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
    fn push(&mut self, event: &[u8]) -> Result<(), ItemError> {
        self.allowance.take(self.time.len() - self.ends.items())?;
        let (mut nanos, mut name, mut dropped) = (0, "", 0);
        let mut reader = Reader::new(event);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => nanos = field.fixed64(1)?,
                2 => name = field.string(2)?,
                3 => self.attributes.push_key_value(field.bytes(3)?)?,
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

    fn end_row(&mut self) {
        self.ends.push(self.time.len());
    }

    fn truncate(&mut self, rows: usize) {
        let events = self.ends.truncate(rows);
        self.time.truncate(events);
        self.name.truncate(events);
        self.attributes.truncate(events);
        self.dropped_attributes_count.truncate(events);
    }

    fn finish(&mut self) -> ArrayRef {
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
    fn push(&mut self, link: &[u8]) -> Result<(), ItemError> {
        self.allowance.take(self.flags.len() - self.ends.items())?;
        let (mut trace_id, mut span_id, mut trace_state) = (&[][..], &[][..], "");
        let (mut dropped, mut flags) = (0, 0);
        let mut reader = Reader::new(link);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => trace_id = field.bytes(1)?,
                2 => span_id = field.bytes(2)?,
                3 => trace_state = field.string(3)?,
                4 => self.attributes.push_key_value(field.bytes(4)?)?,
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

    fn end_row(&mut self) {
        self.ends.push(self.flags.len());
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

    fn finish(&mut self) -> ArrayRef {
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
