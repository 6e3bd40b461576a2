//! From the bytes of an OTLP Export request straight to Arrow columns.
//!
//! No prost struct is built on the way: the wire reader walks the request and every field goes
//! into its column. Rows of many requests (of one tenant) share a batch; a request that turns out
//! to be malformed is taken back whole, an item that breaks a rule is taken back alone (I2).
//!
//! Two kinds of trouble are kept apart everywhere: bytes that are not protobuf refuse the request
//! ([`DecodeError`], HTTP 400); items that break a documented rule are counted in the
//! [`LedgerDelta`] and reported as `partial_success`.
//!
//! Not here: JSON (it becomes protobuf first, see [`crate::json`]), compression, and what happens
//! to a batch afterwards.

mod envelope;
mod logs;
mod metrics;
mod profiles;
mod spans;

use arrow::array::RecordBatch;
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::{ITEMS_PER_REQUEST_MAX, NESTED_ITEMS_MAX, NESTED_ITEMS_PER_REQUEST_MAX};
use model::signal::{Signal, Table};
use model::time::Timestamp;
use model::value::ItemError;
use model::wire::{Field, Reader, WireError};

use envelope::{Order, Stop};
use logs::LogColumns;
use metrics::{HistogramColumns, PointColumns};
use profiles::ProfileColumns;
use spans::SpanColumns;

/// The request is not a valid message of its signal; nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct DecodeError(#[from] pub WireError);

/// Who decides whether a metric series may be stored: a limit on active series per tenant.
pub trait SeriesGate {
    /// Whether a point of this series is admitted; known series always are.
    fn admit(&mut self, series_id: u64) -> bool;
}

/// Admits every series.
#[derive(Debug, Default)]
pub struct OpenGate;

impl SeriesGate for OpenGate {
    fn admit(&mut self, _series_id: u64) -> bool {
        true
    }
}

/// Decodes requests of one tenant into growing batches, one per table. Once finished it is as new,
/// but remembers shapes and sizes: reuse makes it faster.
#[derive(Debug, Default)]
pub struct Decoder {
    spans: SpanColumns,
    logs: LogColumns,
    points: PointColumns,
    histograms: HistogramColumns,
    profiles: ProfileColumns,
    bytes: usize,
    /// Tables of the signals decoded since the last [`Decoder::finish`]: their dictionaries may
    /// hold values even if no row was kept.
    touched: [bool; Table::COUNT],
}

/// How many rows each table's columns held: what to return to when a request is taken back.
type Mark = [usize; Table::COUNT];

impl Decoder {
    /// Decodes one request and appends its rows.
    ///
    /// # Errors
    /// [`DecodeError`] when the body is not the message it should be; nothing is appended then.
    pub fn decode(
        &mut self,
        signal: Signal,
        body: &[u8],
        now: Timestamp,
        gate: &mut dyn SeriesGate,
    ) -> Result<LedgerDelta, DecodeError> {
        for table in Table::ALL {
            self.touched[table.index()] |= table.signal() == signal;
        }
        let mark = self.mark();
        let mut decoded = self.pass(signal, body, Order::Usual, now, gate);
        if decoded.is_err() && matches!(signal, Signal::Traces | Signal::Logs) {
            // Whatever it was, the thorough pass says exactly.
            self.rewind(mark);
            decoded = self.pass(signal, body, Order::Any, now, gate);
        }
        match decoded {
            Ok(delta) => {
                self.bytes += body.len();
                Ok(delta)
            }
            Err(Stop::Wire(error)) => {
                self.rewind(mark);
                Err(DecodeError(error))
            }
            Err(Stop::Unusual) => unreachable!("fields may come in any order in the thorough pass"),
        }
    }

    fn pass(
        &mut self,
        signal: Signal,
        body: &[u8],
        order: Order,
        now: Timestamp,
        gate: &mut dyn SeriesGate,
    ) -> Result<LedgerDelta, Stop> {
        match signal {
            Signal::Traces => self.spans.decode_request(body, order),
            Signal::Logs => self.logs.decode_request(body, order, now),
            Signal::Metrics => metrics::decode_request(body, &mut self.points, &mut self.histograms, gate),
            Signal::Profiles => self.profiles.decode_request(body),
        }
    }

    fn mark(&self) -> Mark {
        Table::ALL.map(|table| self.rows(table))
    }

    fn rewind(&mut self, mark: Mark) {
        for (table, rows) in Table::ALL.into_iter().zip(mark) {
            match table {
                Table::Spans => self.spans.truncate(rows),
                Table::Logs => self.logs.truncate(rows),
                Table::MetricPoints => self.points.truncate(rows),
                Table::MetricHistograms => self.histograms.truncate(rows),
                Table::Profiles => self.profiles.truncate(rows),
            }
        }
    }

    /// What [`Decoder::decode`] would make of a request, of which nothing is kept. For a decoder that does nothing else.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn check(&mut self, signal: Signal, body: &[u8], now: Timestamp) -> Result<LedgerDelta, DecodeError> {
        let decoded = self.decode(signal, body, now, &mut OpenGate);
        self.rewind([0; Table::COUNT]);
        // Without rows this only forgets the values that rows pointed at.
        drop(self.finish());
        decoded
    }

    /// Rows waiting for one table.
    #[must_use]
    pub fn rows(&self, table: Table) -> usize {
        match table {
            Table::Spans => self.spans.len(),
            Table::Logs => self.logs.len(),
            Table::MetricPoints => self.points.len(),
            Table::MetricHistograms => self.histograms.len(),
            Table::Profiles => self.profiles.len(),
        }
    }

    /// Request bytes decoded since the last [`Decoder::finish`].
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The batches of all tables that have rows; the decoder is empty afterwards.
    pub fn finish(&mut self) -> Vec<(Table, RecordBatch)> {
        self.bytes = 0;
        let touched = std::mem::take(&mut self.touched);
        let mut batches = Vec::new();
        for table in Table::ALL {
            if !touched[table.index()] {
                continue;
            }
            let batch = match table {
                Table::Spans => self.spans.finish(),
                Table::Logs => self.logs.finish(),
                Table::MetricPoints => self.points.finish(),
                Table::MetricHistograms if self.histograms.is_untouched() => continue,
                Table::MetricHistograms => self.histograms.finish(),
                Table::Profiles => self.profiles.finish(),
            };
            if batch.num_rows() > 0 {
                batches.push((table, batch));
            }
        }
        batches
    }
}

/// Why the next item cannot be stored whatever it holds: its context breaks a rule, or the request
/// has had its items.
fn refusal(delta: &LedgerDelta, context: Option<RejectReason>) -> Option<RejectReason> {
    if delta.stored >= ITEMS_PER_REQUEST_MAX as u64 { Some(RejectReason::TooManyItems) } else { context }
}

/// How many events, links or exemplars a request may still hold.
#[derive(Debug, Default)]
struct Allowance(usize);

impl Allowance {
    fn renew(&mut self) {
        self.0 = NESTED_ITEMS_PER_REQUEST_MAX;
    }

    /// Takes one, of which the item already holds `held`.
    fn take(&mut self, held: usize) -> ItemResult {
        if held == NESTED_ITEMS_MAX || self.0 == 0 {
            return Err(RejectReason::TooManyNestedItems.into());
        }
        self.0 -= 1;
        Ok(())
    }
}

/// What became of one item: stored, or refused with a reason.
type ItemResult = Result<(), ItemError>;

/// Counts an item's outcome. Bytes that are not protobuf end the whole request.
fn count(delta: &mut LedgerDelta, outcome: ItemResult) -> Result<bool, WireError> {
    match outcome {
        Ok(()) => {
            delta.stored += 1;
            Ok(true)
        }
        Err(ItemError::Reject(reason)) => {
            delta.reject(reason);
            Ok(false)
        }
        Err(ItemError::Wire(error)) => Err(error),
    }
}

/// A time on the wire as a column value. Times past 2262 do not fit and refuse the item.
fn time(nanos: u64) -> Result<i64, ItemError> {
    i64::try_from(nanos).map_err(|_beyond| RejectReason::TimeOutOfRange.into())
}

/// A time whose zero means "not set".
fn optional_time(nanos: u64) -> Result<Option<i64>, ItemError> {
    Ok(if nanos == 0 { None } else { Some(time(nanos)?) })
}

/// An id that may be absent. Any other length than `N` refuses the item.
fn optional_id<const N: usize>(id: &[u8], reason: RejectReason) -> Result<Option<&[u8; N]>, ItemError> {
    if id.is_empty() {
        return Ok(None);
    }
    <&[u8; N]>::try_from(id).map(Some).map_err(|_length| reason.into())
}

/// An id that must be there and valid: W3C Trace Context forbids all zeros.
fn required_id<const N: usize>(id: &[u8], reason: RejectReason) -> Result<&[u8; N], ItemError> {
    match optional_id::<N>(id, reason)? {
        Some(id) if id.iter().any(|byte| *byte != 0) => Ok(id),
        _ => Err(reason.into()),
    }
}

/// A repeated fixed64 field, packed or not: readers must take both (protobuf encoding guide).
fn fixed64s(
    field: Field<'_>,
    number: u32,
    mut each: impl FnMut(u64) -> Result<(), ItemError>,
) -> Result<(), ItemError> {
    match field {
        Field::Fixed64(value) => each(value),
        packed => {
            let mut packed = Reader::new(packed.bytes(number)?);
            while !packed.is_empty() {
                each(packed.fixed64()?)?;
            }
            Ok(())
        }
    }
}

/// The number of an open enum's text: of its name in the specification, or of itself.
pub(crate) fn enum_value(names: &[&'static str], text: &str) -> i32 {
    names
        .iter()
        .position(|name| *name == text)
        .and_then(|index| i32::try_from(index).ok())
        .or_else(|| text.parse().ok())
        .unwrap_or_default()
}

/// `Span.SpanKind` (trace.proto).
pub(crate) const SPAN_KINDS: [&str; 6] = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
/// `Status.StatusCode` (trace.proto).
pub(crate) const STATUS_CODES: [&str; 3] = ["UNSET", "OK", "ERROR"];
/// `AggregationTemporality` (metrics.proto).
pub(crate) const TEMPORALITIES: [&str; 3] = ["UNSPECIFIED", "DELTA", "CUMULATIVE"];
