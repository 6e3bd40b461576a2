//! Log records: `ExportLogsServiceRequest` to the columns of `logs`.
//! Source: opentelemetry/proto/logs/v1/logs.proto.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Int32Type, TimestampNanosecondType, UInt32Type};
use model::attributes::AttributesColumn;
use model::columns::{BoolColumn, DictionaryColumn, FixedColumn, OptionalBytesColumn, PrimitiveColumn};
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::ITEM_BYTES_MAX;
use model::schema::schema;
use model::signal::Table;
use model::time::Timestamp;
use model::value::Value;
use model::wire::{BYTES, FIXED32, FIXED64, Reader, VARINT, WireError, key};

use super::envelope::{ContextColumns, Envelope, Order, Stop, repeated};
use super::{ItemResult, count, optional_time, refusal};

#[derive(Debug, Default)]
pub(super) struct LogColumns {
    time: PrimitiveColumn<TimestampNanosecondType>,
    time_inferred: BoolColumn,
    observed_time: PrimitiveColumn<TimestampNanosecondType>,
    severity_number: PrimitiveColumn<Int32Type>,
    severity_text: DictionaryColumn,
    body: OptionalBytesColumn,
    body_value: OptionalBytesColumn,
    event_name: DictionaryColumn,
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    flags: PrimitiveColumn<UInt32Type>,
    attributes: AttributesColumn,
    dropped_attributes_count: PrimitiveColumn<UInt32Type>,
    context: ContextColumns,
}

impl LogColumns {
    pub(super) fn decode_request(&mut self, body: &[u8], order: Order, now: Timestamp) -> Result<LedgerDelta, Stop> {
        let mut delta = LedgerDelta::default();
        for resource_logs in repeated(body, 1) {
            let mut resource = Envelope::open(resource_logs?, order)?;
            while let Some(scope_logs) = resource.next_item()? {
                let mut scope = Envelope::open(scope_logs, order)?;
                let refused = self.context.refused(&resource, &scope)?;
                while let Some(record) = scope.next_item()? {
                    let outcome = match refusal(&delta, refused) {
                        Some(reason) => Err(reason.into()),
                        None => self.push_record(record, now),
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
        self.body.check_text()?;
        self.attributes.check_text()
    }

    #[inline(never)]
    fn push_record(&mut self, record: &[u8], now: Timestamp) -> ItemResult {
        const TIME: u64 = key(1, FIXED64);
        const SEVERITY_NUMBER: u64 = key(2, VARINT);
        const SEVERITY_TEXT: u64 = key(3, BYTES);
        const BODY: u64 = key(5, BYTES);
        const ATTRIBUTE: u64 = key(6, BYTES);
        const DROPPED_ATTRIBUTES: u64 = key(7, VARINT);
        const FLAGS: u64 = key(8, FIXED32);
        const TRACE_ID: u64 = key(9, BYTES);
        const SPAN_ID: u64 = key(10, BYTES);
        const OBSERVED_TIME: u64 = key(11, FIXED64);
        const EVENT_NAME: u64 = key(12, BYTES);
        if record.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        let (mut nanos, mut observed, mut severity_number, mut severity_text) = (0, 0, 0, None);
        let (mut event_name, mut trace_id, mut span_id) = (None, &[][..], &[][..]);
        let (mut dropped, mut flags) = (0, 0);
        let mut body: Option<Cow<'_, [u8]>> = None;
        let mut reader = Reader::new(record);
        while let Some(key) = reader.key()? {
            match key {
                TIME => nanos = reader.fixed64()?,
                SEVERITY_NUMBER => severity_number = (reader.varint()? as u32).cast_signed(),
                SEVERITY_TEXT => severity_text = Some(self.severity_text.intern_text(reader.bytes()?)?),
                BODY => {
                    let bytes = reader.bytes()?;
                    body = Some(match body {
                        None => Cow::Borrowed(bytes),
                        // A message field that occurs twice merges; merging is concatenation.
                        Some(before) => Cow::Owned([&before, bytes].concat()),
                    });
                }
                ATTRIBUTE => self.attributes.push_key_value(reader.run()?)?,
                DROPPED_ATTRIBUTES => dropped = reader.varint()? as u32,
                FLAGS => flags = reader.fixed32()?,
                TRACE_ID => trace_id = reader.bytes()?,
                SPAN_ID => span_id = reader.bytes()?,
                OBSERVED_TIME => observed = reader.fixed64()?,
                EVENT_NAME => event_name = Some(self.event_name.intern_text(reader.bytes()?)?),
                // Field 4 was the name once; it is no longer known.
                other => reader.other(other, |number| matches!(number, 1..=3 | 5..=12))?,
            }
        }
        match body.as_deref() {
            None => {
                self.body.push(None);
                self.body_value.push(None);
            }
            Some(any_value) => match Value::plain_text(any_value) {
                Some(text) => {
                    self.body.push(Some(text));
                    self.body_value.push(None);
                }
                None => self.push_body(any_value)?,
            },
        }
        // Everything else that can refuse the record comes before the next push.
        let event_time = optional_time(nanos)?;
        let observed_time = optional_time(observed)?;
        // logs.proto: a record whose ids are invalid is not associated with a trace; it is no reason
        // to lose the record.
        let trace_id = <&[u8; 16]>::try_from(trace_id).ok();
        let span_id = <&[u8; 8]>::try_from(span_id).ok();

        // logs.proto: use Timestamp if it is present, otherwise ObservedTimestamp.
        self.time.push(event_time.or(observed_time).unwrap_or(now.0));
        self.time_inferred.push(Some(event_time.is_none()));
        self.observed_time.push_option(observed_time);
        self.severity_number.push(severity_number);
        let severity_text = severity_text.unwrap_or_else(|| self.severity_text.intern(b""));
        self.severity_text.push_key(severity_text);
        let event_name = event_name.unwrap_or_else(|| self.event_name.intern(b""));
        self.event_name.push_key(event_name);
        self.trace_id.push(trace_id);
        self.span_id.push(span_id);
        self.flags.push(flags);
        self.attributes.end_row();
        self.dropped_attributes_count.push(dropped);
        Ok(())
    }

    fn push_body(&mut self, any_value: &[u8]) -> ItemResult {
        match Value::parse(any_value)? {
            Value::String(text) => {
                self.body.push(Some(text.as_bytes()));
                self.body_value.push(None);
            }
            other => {
                self.body.push(other.to_text().as_deref().map(str::as_bytes));
                self.body_value.push(Some(any_value));
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.time.len()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.time.truncate(rows);
        self.time_inferred.truncate(rows);
        self.observed_time.truncate(rows);
        self.severity_number.truncate(rows);
        self.severity_text.truncate(rows);
        self.body.truncate(rows);
        self.body_value.truncate(rows);
        self.event_name.truncate(rows);
        self.trace_id.truncate(rows);
        self.span_id.truncate(rows);
        self.flags.truncate(rows);
        self.attributes.truncate(rows);
        self.dropped_attributes_count.truncate(rows);
        self.context.truncate(rows);
    }

    pub(super) fn finish(&mut self) -> RecordBatch {
        let [service_name, resource, scope] = self.context.finish();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            self.time_inferred.finish(),
            Arc::new(self.observed_time.finish().with_timezone("UTC")),
            service_name,
            Arc::new(self.severity_number.finish()),
            self.severity_text.finish_utf8(),
            self.body.finish_utf8(),
            self.body_value.finish_binary(),
            self.event_name.finish_utf8(),
            self.trace_id.finish(),
            self.span_id.finish(),
            Arc::new(self.flags.finish()),
            self.attributes.finish(),
            Arc::new(self.dropped_attributes_count.finish()),
            resource,
            scope,
        ];
        RecordBatch::try_new(schema(Table::Logs), columns).expect("the columns are those of the schema")
    }
}
