//! Log records: `ExportLogsServiceRequest` to the columns of `logs`.
//! Source: opentelemetry/proto/logs/v1/logs.proto.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Int32Type, TimestampNanosecondType, UInt32Type};
use model::attributes::AttributesColumn;
use model::columns::{BoolColumn, DictionaryColumn, FixedColumn, OptionalBytesColumn, PrimitiveColumn};
use model::context::ContextKind;
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::ITEM_BYTES_MAX;
use model::schema::schema;
use model::signal::Table;
use model::time::Timestamp;
use model::value::Value;
use model::wire::{Reader, WireError};

use super::envelope::{ContextColumns, ContextKeys, Envelope, items, repeated};
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
    pub(super) fn decode_request(&mut self, body: &[u8], now: Timestamp) -> Result<LedgerDelta, WireError> {
        let mut delta = LedgerDelta::default();
        for resource_logs in repeated(body, 1) {
            let resource_logs = resource_logs?;
            let resource = Envelope::scan(ContextKind::Resource, resource_logs)?;
            let keys = self.context.resource(&resource);
            for scope_logs in items(resource_logs) {
                let scope_logs = scope_logs?;
                let scope = Envelope::scan(ContextKind::Scope, scope_logs)?;
                let keys = self.context.scope(keys, &scope);
                for record in items(scope_logs) {
                    let record = record?;
                    let outcome = match refusal(&delta, resource.refused.or(scope.refused)) {
                        Some(reason) => Err(reason.into()),
                        None => self.push_record(record, keys, now),
                    };
                    if !count(&mut delta, outcome)? {
                        self.truncate(self.len());
                    }
                }
            }
        }
        Ok(delta)
    }

    fn push_record(&mut self, record: &[u8], keys: ContextKeys, now: Timestamp) -> ItemResult {
        if record.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        let (mut nanos, mut observed, mut severity_number, mut severity_text) = (0, 0, 0, "");
        let (mut event_name, mut trace_id, mut span_id) = ("", &[][..], &[][..]);
        let (mut dropped, mut flags) = (0, 0);
        let mut body: Option<Cow<'_, [u8]>> = None;
        let mut reader = Reader::new(record);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => nanos = field.fixed64(1)?,
                2 => severity_number = field.uint32(2)?.cast_signed(),
                3 => severity_text = field.string(3)?,
                5 => {
                    let bytes = field.bytes(5)?;
                    body = Some(match body {
                        None => Cow::Borrowed(bytes),
                        // A message field that occurs twice merges; merging is concatenation.
                        Some(before) => Cow::Owned([&before, bytes].concat()),
                    });
                }
                6 => self.attributes.push_key_value(field.bytes(6)?)?,
                7 => dropped = field.uint32(7)?,
                8 => flags = field.fixed32(8)?,
                9 => trace_id = field.bytes(9)?,
                10 => span_id = field.bytes(10)?,
                11 => observed = field.fixed64(11)?,
                12 => event_name = field.string(12)?,
                _ => {}
            }
        }
        // Everything that can refuse the record comes before the first push.
        let value = body.as_deref().map(Value::parse).transpose()?;
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
        self.severity_text.push(severity_text.as_bytes());
        match value {
            Some(Value::String(text)) => {
                self.body.push(Some(text.as_bytes()));
                self.body_value.push(None);
            }
            Some(other) => {
                self.body.push(other.to_text().as_deref().map(str::as_bytes));
                self.body_value.push(body.as_deref());
            }
            None => {
                self.body.push(None);
                self.body_value.push(None);
            }
        }
        self.event_name.push(event_name.as_bytes());
        self.trace_id.push(trace_id);
        self.span_id.push(span_id);
        self.flags.push(flags);
        self.attributes.end_row();
        self.dropped_attributes_count.push(dropped);
        self.context.push(keys);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.context.len()
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
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            self.time_inferred.finish(),
            Arc::new(self.observed_time.finish().with_timezone("UTC")),
            self.context.service_name.finish_utf8(),
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
            self.context.resource.finish_binary(),
            self.context.scope.finish_binary(),
        ];
        RecordBatch::try_new(schema(Table::Logs), columns).expect("the columns are those of the schema")
    }
}
