//! Metrics: `ExportMetricsServiceRequest` to the columns of `metric_points` and
//! `metric_histograms`. Source: opentelemetry/proto/metrics/v1/metrics.proto and the metrics data
//! model (opentelemetry.io/docs/specs/otel/metrics/data-model).

use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{Array, ArrayRef, ListArray, RecordBatch, StructArray};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type,
};
use model::attributes::AttributesColumn;
use model::columns::{BoolColumn, DictionaryColumn, EnumColumn, FixedColumn, Offsets, PrimitiveColumn};
use model::context::ContextKind;
use model::ledger::{LedgerDelta, RejectReason};
use model::limits::{BUCKETS_MAX, EXPONENTIAL_SCALE_ABS_MAX, ITEM_BYTES_MAX};
use model::schema::{bucket_fields, exemplar_fields, quantile_fields, schema};
use model::signal::Table;
use model::value::{ItemError, check_key_values};
use model::wire::{BYTES, FIXED64, Field as WireField, Reader, Run, VARINT, WireError, key, put_bytes};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::envelope::{ContextColumns, ContextKeys, Envelope, Order, Stop, repeated};
use super::spans::item_of;
use super::{
    Allowance, ItemResult, SeriesGate, TEMPORALITIES, count, fixed64s, optional_id, optional_time, refusal, time,
};

/// `DataPointFlags.NO_RECORDED_VALUE_MASK`: the point says only that the series ended.
const NO_RECORDED_VALUE: u32 = 1;

/// The members of `Metric.data`, by field number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DataKind {
    Gauge = 5,
    Sum = 7,
    Histogram = 9,
    ExponentialHistogram = 10,
    Summary = 11,
}

impl DataKind {
    const fn from_field(number: u32) -> Option<Self> {
        Some(match number {
            5 => Self::Gauge,
            7 => Self::Sum,
            9 => Self::Histogram,
            10 => Self::ExponentialHistogram,
            11 => Self::Summary,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "GAUGE",
            Self::Sum => "SUM",
            Self::Histogram => "HISTOGRAM",
            Self::ExponentialHistogram => "EXPONENTIAL_HISTOGRAM",
            Self::Summary => "SUMMARY",
        }
    }

    const fn has_temporality(self) -> bool {
        matches!(self, Self::Sum | Self::Histogram | Self::ExponentialHistogram)
    }
}

/// A metric without its points.
struct Metric<'a> {
    name: &'a str,
    description: &'a str,
    unit: &'a str,
    /// What is stored for `metadata`; empty when there is none.
    metadata: Vec<u8>,
    kind: DataKind,
    /// The message of the data field, and more of them, which merge.
    data: &'a [u8],
    more_data: Vec<&'a [u8]>,
    temporality: i32,
    is_monotonic: bool,
    refused: Option<RejectReason>,
}

impl<'a> Metric<'a> {
    /// Reads a metric; `None` when it holds no data.
    fn parse(metric: &'a [u8]) -> Result<Option<Self>, WireError> {
        const POINT: u64 = key(1, BYTES);
        const TEMPORALITY: u64 = key(2, VARINT);
        const IS_MONOTONIC: u64 = key(3, VARINT);
        let (mut name, mut description, mut unit) = ("", "", "");
        let mut metadata = Vec::new();
        let mut data: Option<(DataKind, &[u8])> = None;
        let mut more_data = Vec::new();
        let mut reader = Reader::new(metric);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => name = field.string(1)?,
                2 => description = field.string(2)?,
                3 => unit = field.string(3)?,
                12 => {
                    if metadata.is_empty() {
                        metadata.push(ContextKind::MetricMetadata as u8);
                    }
                    put_bytes(&mut metadata, 12, field.bytes(12)?);
                }
                _ => {
                    if let Some(kind) = DataKind::from_field(number) {
                        let part = field.bytes(number)?;
                        match data {
                            // The same member again merges, another one replaces (protobuf oneof).
                            Some((before, _)) if before == kind => more_data.push(part),
                            _ => {
                                data = Some((kind, part));
                                more_data.clear();
                            }
                        }
                    }
                }
            }
        }
        let mut refused = match check_key_values(metadata.get(1..).unwrap_or_default(), 12) {
            Ok(()) => None,
            Err(ItemError::Reject(reason)) => Some(reason),
            Err(ItemError::Wire(error)) => return Err(error),
        };
        let Some((kind, data)) = data else { return Ok(None) };
        let (mut temporality, mut is_monotonic) = (0, false);
        for part in std::iter::once(&data).chain(&more_data) {
            let mut reader = Reader::new(part);
            while let Some(key) = reader.key()? {
                match key {
                    POINT => {
                        reader.bytes()?;
                    }
                    TEMPORALITY if kind.has_temporality() => temporality = (reader.varint()? as u32).cast_signed(),
                    IS_MONOTONIC if kind == DataKind::Sum => is_monotonic = reader.varint()? != 0,
                    other => reader.other(other, |number| match number {
                        1 => true,
                        2 => kind.has_temporality(),
                        3 => kind == DataKind::Sum,
                        _ => false,
                    })?,
                }
            }
        }
        if name.is_empty() {
            refused = refused.or(Some(RejectReason::MissingMetricName));
        }
        if kind.has_temporality() && !matches!(temporality, 1 | 2) {
            refused = refused.or(Some(RejectReason::MissingTemporality));
        }
        Ok(Some(Self { name, description, unit, metadata, kind, data, more_data, temporality, is_monotonic, refused }))
    }

    /// The data points.
    fn points(&self) -> impl Iterator<Item = Result<&'a [u8], WireError>> {
        std::iter::once(&self.data).chain(&self.more_data).flat_map(|data| repeated(data, 1))
    }

    /// The part of a series' identity that all points of the metric share.
    fn series_seed(&self, contexts: u64) -> u64 {
        let mut seed = contexts;
        for part in [self.name.as_bytes(), self.unit.as_bytes(), self.kind.name().as_bytes()] {
            seed = xxh3_64_with_seed(part, seed);
        }
        seed ^ (u64::from(self.is_monotonic) << 8 | u64::from(self.temporality.unsigned_abs()))
    }
}

pub(super) fn decode_request(
    body: &[u8],
    points: &mut PointColumns,
    histograms: &mut HistogramColumns,
    gate: &mut dyn SeriesGate,
) -> Result<LedgerDelta, Stop> {
    let mut delta = LedgerDelta::default();
    points.head.exemplars.allowance.renew();
    histograms.head.exemplars.allowance.renew();
    for resource_metrics in repeated(body, 1) {
        // A series is identified before its point is stored, so the contexts come first.
        let mut resource = Envelope::open(resource_metrics?, Order::Any)?;
        let resource_key = points.head.context.find_resource(&resource)?;
        while let Some(scope_metrics) = resource.next_item()? {
            let mut scope = Envelope::open(scope_metrics, Order::Any)?;
            let point_keys = points.head.context.find(resource_key, &scope)?;
            let mut histogram_keys = None;
            while let Some(metric) = scope.next_item()? {
                let Some(mut metric) = Metric::parse(metric)? else { continue };
                metric.refused = point_keys.refused().or(metric.refused);
                let seed = metric.series_seed(point_keys.identity());
                match metric.kind {
                    DataKind::Gauge | DataKind::Sum => {
                        points.push_metric(&metric, point_keys, seed, gate, &mut delta)?;
                    }
                    DataKind::Histogram | DataKind::ExponentialHistogram | DataKind::Summary => {
                        let keys = match histogram_keys {
                            Some(keys) => keys,
                            None => {
                                let context = &mut histograms.head.context;
                                let resource_key = context.find_resource(&resource)?;
                                *histogram_keys.insert(context.find(resource_key, &scope)?)
                            }
                        };
                        histograms.push_metric(&metric, keys, seed, gate, &mut delta)?;
                    }
                }
            }
        }
    }
    points.head.check_text()?;
    histograms.head.check_text()?;
    Ok(delta)
}

/// Dictionary keys of one metric, for each of its points.
#[derive(Clone, Copy)]
struct MetricKeys {
    name: i32,
    description: i32,
    unit: i32,
    metric_type: i32,
    metadata: i32,
    temporality: Option<i32>,
    context: ContextKeys,
}

/// The fields every data point has.
#[derive(Default)]
struct PointHead {
    start: u64,
    time: u64,
    flags: u32,
    series_hash: u64,
}

/// The columns both metric tables begin with.
#[derive(Debug, Default)]
struct HeadColumns {
    metric_name: DictionaryColumn,
    metric_description: DictionaryColumn,
    metric_unit: DictionaryColumn,
    metric_type: DictionaryColumn,
    metric_metadata: DictionaryColumn,
    series_id: FixedColumn<8>,
    temporality: EnumColumn,
    start_time: PrimitiveColumn<TimestampNanosecondType>,
    time: PrimitiveColumn<TimestampNanosecondType>,
    flags: PrimitiveColumn<UInt32Type>,
    attributes: AttributesColumn,
    exemplars: ExemplarColumns,
    context: ContextColumns,
}

impl HeadColumns {
    fn metric(&mut self, metric: &Metric<'_>, context: ContextKeys) -> MetricKeys {
        MetricKeys {
            name: self.metric_name.intern(metric.name.as_bytes()),
            description: self.metric_description.intern(metric.description.as_bytes()),
            unit: self.metric_unit.intern(metric.unit.as_bytes()),
            metric_type: self.metric_type.intern(metric.kind.name().as_bytes()),
            metadata: self.metric_metadata.intern(match &metric.metadata[..] {
                [] => &[ContextKind::MetricMetadata as u8],
                metadata => metadata,
            }),
            temporality: metric
                .kind
                .has_temporality()
                .then(|| self.temporality.intern(metric.temporality, &TEMPORALITIES)),
            context,
        }
    }

    /// Adds one attribute of the unfinished point; its hash does not depend on the order in which
    /// attributes come, since two exporters may order one series' attributes differently.
    #[inline]
    fn push_attribute(&mut self, key_value: Run<'_>, head: &mut PointHead) -> Result<(), ItemError> {
        let hash = self.attributes.push_key_value_hashed(key_value)?;
        head.series_hash = head.series_hash.wrapping_add(hash);
        Ok(())
    }

    fn push_exemplar(&mut self, exemplar: &[u8]) -> Result<(), ItemError> {
        self.exemplars.push(self.len(), exemplar)
    }

    /// Everything that can refuse a point for its head, and then the columns of the head that
    /// differ from point to point.
    fn push(&mut self, head: &PointHead, seed: u64, gate: &mut dyn SeriesGate) -> ItemResult {
        let start = optional_time(head.start)?;
        let at = time(head.time)?;
        let series_id = xxh3_64_with_seed(&head.series_hash.to_le_bytes(), seed);
        if !gate.admit(series_id) {
            return Err(RejectReason::SeriesLimit.into());
        }
        self.series_id.push(Some(&series_id.to_be_bytes()));
        self.start_time.push_option(start);
        self.time.push(at);
        self.flags.push(head.flags);
        self.attributes.end_row();
        Ok(())
    }

    /// Gives what a metric says of all its points to those that have it not yet.
    fn fill(&mut self, keys: MetricKeys) {
        let rows = self.len();
        self.metric_name.fill_key(rows, keys.name);
        self.metric_description.fill_key(rows, keys.description);
        self.metric_unit.fill_key(rows, keys.unit);
        self.metric_type.fill_key(rows, keys.metric_type);
        self.metric_metadata.fill_key(rows, keys.metadata);
        self.temporality.fill(rows, keys.temporality);
        self.context.fill(rows, keys.context);
    }

    fn len(&self) -> usize {
        self.time.len()
    }

    /// Checks text that was pushed unchecked, also that of an item about to be taken back: a
    /// request that is malformed before the item breaks a rule is malformed.
    fn check_text(&mut self) -> Result<(), WireError> {
        self.attributes.check_text()?;
        self.exemplars.attributes.check_text()
    }

    fn truncate(&mut self, rows: usize) {
        self.metric_name.truncate(rows);
        self.metric_description.truncate(rows);
        self.metric_unit.truncate(rows);
        self.metric_type.truncate(rows);
        self.metric_metadata.truncate(rows);
        self.series_id.truncate(rows);
        self.temporality.truncate(rows);
        self.start_time.truncate(rows);
        self.time.truncate(rows);
        self.flags.truncate(rows);
        self.attributes.truncate(rows);
        self.exemplars.truncate(rows);
        self.context.truncate(rows);
    }

    /// The columns, and `resource` and `scope`, which come last in both tables.
    fn finish(&mut self) -> (Vec<ArrayRef>, [ArrayRef; 2]) {
        let rows = self.len();
        let [service_name, resource, scope] = self.context.finish();
        let columns = vec![
            self.metric_name.finish_utf8(),
            self.metric_description.finish_utf8(),
            self.metric_unit.finish_utf8(),
            self.metric_type.finish_utf8(),
            self.metric_metadata.finish_binary(),
            self.series_id.finish(),
            service_name,
            self.temporality.finish(),
            Arc::new(self.start_time.finish().with_timezone("UTC")),
            Arc::new(self.time.finish().with_timezone("UTC")),
            Arc::new(self.flags.finish()),
            self.attributes.finish(),
            self.exemplars.finish(rows),
        ];
        (columns, [resource, scope])
    }
}

#[derive(Debug, Default)]
pub(super) struct PointColumns {
    head: HeadColumns,
    is_monotonic: BoolColumn,
    value_double: PrimitiveColumn<Float64Type>,
    value_int: PrimitiveColumn<Int64Type>,
}

impl PointColumns {
    fn push_metric(
        &mut self,
        metric: &Metric<'_>,
        context: ContextKeys,
        seed: u64,
        gate: &mut dyn SeriesGate,
        delta: &mut LedgerDelta,
    ) -> Result<(), WireError> {
        let keys = self.head.metric(metric, context);
        for point in metric.points() {
            let point = point?;
            let outcome = match refusal(delta, metric.refused) {
                Some(reason) => Err(reason.into()),
                None => self.push_point(point, seed, gate),
            };
            if !count(delta, outcome)? {
                self.head.check_text()?;
                self.truncate(self.len());
            }
        }
        self.head.fill(keys);
        let is_monotonic = (metric.kind == DataKind::Sum).then_some(metric.is_monotonic);
        self.is_monotonic.fill(self.head.len(), is_monotonic);
        Ok(())
    }

    #[inline(never)]
    fn push_point(&mut self, point: &[u8], seed: u64, gate: &mut dyn SeriesGate) -> ItemResult {
        const START: u64 = key(2, FIXED64);
        const TIME: u64 = key(3, FIXED64);
        const AS_DOUBLE: u64 = key(4, FIXED64);
        const EXEMPLAR: u64 = key(5, BYTES);
        const AS_INT: u64 = key(6, FIXED64);
        const ATTRIBUTE: u64 = key(7, BYTES);
        const FLAGS: u64 = key(8, VARINT);
        if point.len() > ITEM_BYTES_MAX {
            return Err(RejectReason::ItemTooLarge.into());
        }
        let mut head = PointHead::default();
        let (mut double, mut int) = (None, None);
        let mut reader = Reader::new(point);
        while let Some(key) = reader.key()? {
            match key {
                ATTRIBUTE => self.head.push_attribute(reader.run()?, &mut head)?,
                START => head.start = reader.fixed64()?,
                TIME => head.time = reader.fixed64()?,
                AS_DOUBLE => (double, int) = (Some(f64::from_bits(reader.fixed64()?)), None),
                EXEMPLAR => self.head.push_exemplar(reader.bytes()?)?,
                AS_INT => (double, int) = (None, Some(reader.fixed64()?.cast_signed())),
                FLAGS => head.flags = reader.varint()? as u32,
                other => reader.other(other, |number| matches!(number, 2..=8))?,
            }
        }
        self.head.push(&head, seed, gate)?;
        self.value_double.push_option(double);
        self.value_int.push_option(int);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.head.len()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.head.truncate(rows);
        self.is_monotonic.truncate(rows);
        self.value_double.truncate(rows);
        self.value_int.truncate(rows);
    }

    pub(super) fn finish(&mut self) -> RecordBatch {
        let (mut columns, contexts) = self.head.finish();
        columns.push(self.is_monotonic.finish());
        columns.push(Arc::new(self.value_double.finish()));
        columns.push(Arc::new(self.value_int.finish()));
        columns.extend(contexts);
        RecordBatch::try_new(schema(Table::MetricPoints), columns).expect("the columns are those of the schema")
    }
}

#[derive(Debug, Default)]
pub(super) struct HistogramColumns {
    head: HeadColumns,
    count: PrimitiveColumn<UInt64Type>,
    sum: PrimitiveColumn<Float64Type>,
    min: PrimitiveColumn<Float64Type>,
    max: PrimitiveColumn<Float64Type>,
    explicit_bounds: PrimitiveColumn<Float64Type>,
    explicit_bounds_ends: Offsets,
    bucket_counts: PrimitiveColumn<UInt64Type>,
    bucket_counts_ends: Offsets,
    scale: PrimitiveColumn<Int32Type>,
    zero_count: PrimitiveColumn<UInt64Type>,
    zero_threshold: PrimitiveColumn<Float64Type>,
    positive: BucketColumns,
    negative: BucketColumns,
    quantile: PrimitiveColumn<Float64Type>,
    quantile_value: PrimitiveColumn<Float64Type>,
    quantile_ends: Offsets,
}

/// What one histogram or summary point says, besides its head and lists.
#[derive(Default)]
struct Distribution {
    count: u64,
    sum: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    scale: Option<i32>,
    zero_count: Option<u64>,
    zero_threshold: Option<f64>,
}

impl HistogramColumns {
    fn push_metric(
        &mut self,
        metric: &Metric<'_>,
        context: ContextKeys,
        seed: u64,
        gate: &mut dyn SeriesGate,
        delta: &mut LedgerDelta,
    ) -> Result<(), WireError> {
        let keys = self.head.metric(metric, context);
        for point in metric.points() {
            let point = point?;
            let outcome = match refusal(delta, metric.refused) {
                Some(reason) => Err(reason.into()),
                None if point.len() > ITEM_BYTES_MAX => Err(RejectReason::ItemTooLarge.into()),
                None => self.push_point(metric.kind, point, seed, gate),
            };
            if !count(delta, outcome)? {
                self.head.check_text()?;
                self.truncate(self.len());
            }
        }
        self.head.fill(keys);
        Ok(())
    }

    #[inline(never)]
    fn push_point(&mut self, kind: DataKind, point: &[u8], seed: u64, gate: &mut dyn SeriesGate) -> ItemResult {
        let mut head = PointHead::default();
        let distribution = match kind {
            DataKind::Histogram => self.explicit(point, &mut head)?,
            DataKind::ExponentialHistogram => self.exponential(point, &mut head)?,
            _ => self.summary(point, &mut head)?,
        };
        self.head.push(&head, seed, gate)?;
        self.count.push(distribution.count);
        self.sum.push_option(distribution.sum);
        self.min.push_option(distribution.min);
        self.max.push_option(distribution.max);
        self.explicit_bounds_ends.push(self.explicit_bounds.len());
        self.bucket_counts_ends.push(self.bucket_counts.len());
        self.scale.push_option(distribution.scale);
        self.zero_count.push_option(distribution.zero_count);
        self.zero_threshold.push_option(distribution.zero_threshold);
        self.positive.end_row();
        self.negative.end_row();
        self.quantile_ends.push(self.quantile.len());
        Ok(())
    }

    fn explicit(&mut self, point: &[u8], head: &mut PointHead) -> Result<Distribution, ItemError> {
        let mut found = Distribution::default();
        let (first_bound, first_count) = (self.explicit_bounds_ends.items(), self.bucket_counts_ends.items());
        let mut total = Some(0_u64);
        let mut ordered = true;
        let mut last_bound = f64::NEG_INFINITY;
        let mut first = true;
        let mut reader = Reader::new(point);
        while let Some((number, field)) = reader.next()? {
            match number {
                2 => head.start = field.fixed64(2)?,
                3 => head.time = field.fixed64(3)?,
                4 => found.count = field.fixed64(4)?,
                5 => found.sum = Some(f64::from_bits(field.fixed64(5)?)),
                6 => fixed64s(field, 6, |count| {
                    total = total.and_then(|total| total.checked_add(count));
                    self.bucket_counts.push(count);
                    bounded(self.bucket_counts.len() - first_count)
                })?,
                7 => fixed64s(field, 7, |bits| {
                    let bound = f64::from_bits(bits);
                    // The first bound may be -Inf; NaN compares false and refuses the point.
                    ordered &= bound > last_bound || (std::mem::take(&mut first) && bound == last_bound);
                    first = false;
                    last_bound = bound;
                    self.explicit_bounds.push(bound);
                    bounded(self.explicit_bounds.len() - first_bound)
                })?,
                8 => self.head.push_exemplar(field.bytes(8)?)?,
                9 => self.head.push_attribute(Run::new(field.bytes(9)?), head)?,
                10 => head.flags = field.uint32(10)?,
                11 => found.min = Some(f64::from_bits(field.fixed64(11)?)),
                12 => found.max = Some(f64::from_bits(field.fixed64(12)?)),
                _ => {}
            }
        }
        let (bounds, counts) = (self.explicit_bounds.len() - first_bound, self.bucket_counts.len() - first_count);
        if !(counts == bounds + 1 || counts == 0 && bounds == 0) {
            return Err(RejectReason::BucketCountMismatch.into());
        }
        if !ordered {
            return Err(RejectReason::BoundsNotIncreasing.into());
        }
        if counts > 0 && total != Some(found.count) && head.flags & NO_RECORDED_VALUE == 0 {
            return Err(RejectReason::CountMismatch.into());
        }
        Ok(found)
    }

    fn exponential(&mut self, point: &[u8], head: &mut PointHead) -> Result<Distribution, ItemError> {
        let mut found = Distribution::default();
        let (mut scale, mut zero_count, mut zero_threshold) = (0, 0, 0.0);
        let mut reader = Reader::new(point);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => self.head.push_attribute(Run::new(field.bytes(1)?), head)?,
                2 => head.start = field.fixed64(2)?,
                3 => head.time = field.fixed64(3)?,
                4 => found.count = field.fixed64(4)?,
                5 => found.sum = Some(f64::from_bits(field.fixed64(5)?)),
                6 => scale = field.sint32(6)?,
                7 => zero_count = field.fixed64(7)?,
                8 => self.positive.push(field.bytes(8)?)?,
                9 => self.negative.push(field.bytes(9)?)?,
                10 => head.flags = field.uint32(10)?,
                11 => self.head.push_exemplar(field.bytes(11)?)?,
                12 => found.min = Some(f64::from_bits(field.fixed64(12)?)),
                13 => found.max = Some(f64::from_bits(field.fixed64(13)?)),
                14 => zero_threshold = f64::from_bits(field.fixed64(14)?),
                _ => {}
            }
        }
        if scale.unsigned_abs() > EXPONENTIAL_SCALE_ABS_MAX.unsigned_abs()
            || !self.positive.offset_fits()
            || !self.negative.offset_fits()
        {
            return Err(RejectReason::ScaleOutOfRange.into());
        }
        let total = self
            .positive
            .row_total()
            .zip(self.negative.row_total())
            .and_then(|(positive, negative)| positive.checked_add(negative)?.checked_add(zero_count));
        if total != Some(found.count) && head.flags & NO_RECORDED_VALUE == 0 {
            return Err(RejectReason::CountMismatch.into());
        }
        found.scale = Some(scale);
        found.zero_count = Some(zero_count);
        found.zero_threshold = Some(zero_threshold);
        Ok(found)
    }

    fn summary(&mut self, point: &[u8], head: &mut PointHead) -> Result<Distribution, ItemError> {
        let mut found = Distribution { sum: Some(0.0), ..Distribution::default() };
        let first = self.quantile_ends.items();
        let mut reader = Reader::new(point);
        while let Some((number, field)) = reader.next()? {
            match number {
                2 => head.start = field.fixed64(2)?,
                3 => head.time = field.fixed64(3)?,
                4 => found.count = field.fixed64(4)?,
                5 => found.sum = Some(f64::from_bits(field.fixed64(5)?)),
                6 => {
                    let (mut quantile, mut value) = (0.0, 0.0);
                    let mut reader = Reader::new(field.bytes(6)?);
                    while let Some((number, field)) = reader.next()? {
                        match number {
                            1 => quantile = f64::from_bits(field.fixed64(1)?),
                            2 => value = f64::from_bits(field.fixed64(2)?),
                            _ => {}
                        }
                    }
                    self.quantile.push(quantile);
                    self.quantile_value.push(value);
                    bounded(self.quantile.len() - first)?;
                }
                7 => self.head.push_attribute(Run::new(field.bytes(7)?), head)?,
                8 => head.flags = field.uint32(8)?,
                _ => {}
            }
        }
        Ok(found)
    }

    pub(super) fn len(&self) -> usize {
        self.head.len()
    }

    /// Whether no histogram came since the last batch, stored or not.
    pub(super) fn is_untouched(&self) -> bool {
        self.head.context.is_untouched()
    }

    /// Keeps the first `rows` rows, and no unfinished one.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.head.truncate(rows);
        self.count.truncate(rows);
        self.sum.truncate(rows);
        self.min.truncate(rows);
        self.max.truncate(rows);
        self.explicit_bounds.truncate(self.explicit_bounds_ends.truncate(rows));
        self.bucket_counts.truncate(self.bucket_counts_ends.truncate(rows));
        self.scale.truncate(rows);
        self.zero_count.truncate(rows);
        self.zero_threshold.truncate(rows);
        self.positive.truncate(rows);
        self.negative.truncate(rows);
        let quantiles = self.quantile_ends.truncate(rows);
        self.quantile.truncate(quantiles);
        self.quantile_value.truncate(quantiles);
    }

    pub(super) fn finish(&mut self) -> RecordBatch {
        let quantiles: Vec<ArrayRef> = vec![Arc::new(self.quantile.finish()), Arc::new(self.quantile_value.finish())];
        let quantiles = StructArray::new(quantile_fields(), quantiles, None);
        let (mut columns, contexts) = self.head.finish();
        columns.extend([
            Arc::new(self.count.finish()) as ArrayRef,
            Arc::new(self.sum.finish()),
            Arc::new(self.min.finish()),
            Arc::new(self.max.finish()),
            list(&mut self.explicit_bounds_ends, Arc::new(self.explicit_bounds.finish())),
            list(&mut self.bucket_counts_ends, Arc::new(self.bucket_counts.finish())),
            Arc::new(self.scale.finish()),
            Arc::new(self.zero_count.finish()),
            Arc::new(self.zero_threshold.finish()),
            self.positive.finish(),
            self.negative.finish(),
            Arc::new(ListArray::new(
                item_of(quantile_fields()),
                self.quantile_ends.finish(),
                Arc::new(quantiles),
                None,
            )),
        ]);
        columns.extend(contexts);
        RecordBatch::try_new(schema(Table::MetricHistograms), columns).expect("the columns are those of the schema")
    }
}

/// The buckets of one side of exponential histograms; a row without them is null.
#[derive(Debug)]
struct BucketColumns {
    present: bool,
    offset_now: i32,
    offset: PrimitiveColumn<Int32Type>,
    counts: PrimitiveColumn<UInt64Type>,
    ends: Offsets,
    total_now: Option<u64>,
    nulls: NullBufferBuilder,
}

impl Default for BucketColumns {
    fn default() -> Self {
        Self {
            present: false,
            offset_now: 0,
            offset: PrimitiveColumn::default(),
            counts: PrimitiveColumn::default(),
            ends: Offsets::default(),
            total_now: Some(0),
            nulls: NullBufferBuilder::new(0),
        }
    }
}

impl BucketColumns {
    fn push(&mut self, buckets: &[u8]) -> Result<(), ItemError> {
        self.present = true;
        let first = self.ends.items();
        let mut reader = Reader::new(buckets);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => self.offset_now = field.sint32(1)?,
                2 => {
                    let mut push = |count: u64| {
                        self.total_now = self.total_now.and_then(|total| total.checked_add(count));
                        self.counts.push(count);
                        bounded(self.counts.len() - first)
                    };
                    match field {
                        WireField::Varint(count) => push(count)?,
                        packed => {
                            let mut packed = Reader::new(packed.bytes(2)?);
                            while !packed.is_empty() {
                                push(packed.varint()?)?;
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the index of the last bucket still fits the type of an offset.
    fn offset_fits(&self) -> bool {
        let buckets = self.counts.len() - self.ends.items();
        i32::try_from(buckets).is_ok_and(|buckets| self.offset_now.checked_add(buckets).is_some())
    }

    /// The sum of the unfinished row's counts; `None` when it does not fit 64 bits.
    const fn row_total(&self) -> Option<u64> {
        self.total_now
    }

    fn reset_row(&mut self) {
        self.present = false;
        self.offset_now = 0;
        self.total_now = Some(0);
    }

    fn end_row(&mut self) {
        self.offset.push(self.offset_now);
        self.ends.push(self.counts.len());
        self.nulls.append(self.present);
        self.reset_row();
    }

    fn truncate(&mut self, rows: usize) {
        self.reset_row();
        self.offset.truncate(rows);
        self.counts.truncate(self.ends.truncate(rows));
        self.nulls.truncate(rows);
    }

    fn finish(&mut self) -> ArrayRef {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(self.offset.finish()), list(&mut self.ends, Arc::new(self.counts.finish()))];
        Arc::new(StructArray::new(bucket_fields(), columns, self.nulls.finish()))
    }
}

#[derive(Debug, Default)]
struct ExemplarColumns {
    allowance: Allowance,
    ends: Offsets,
    time: PrimitiveColumn<TimestampNanosecondType>,
    value_double: PrimitiveColumn<Float64Type>,
    value_int: PrimitiveColumn<Int64Type>,
    trace_id: FixedColumn<16>,
    span_id: FixedColumn<8>,
    attributes: AttributesColumn,
}

impl ExemplarColumns {
    /// Adds an exemplar to row `row`, the unfinished one.
    fn push(&mut self, row: usize, exemplar: &[u8]) -> Result<(), ItemError> {
        self.ends.fill(row, self.time.len());
        self.allowance.take(self.time.len() - self.ends.items())?;
        let (mut nanos, mut double, mut int) = (0, None, None);
        let (mut trace_id, mut span_id) = (&[][..], &[][..]);
        let mut reader = Reader::new(exemplar);
        while let Some((number, field)) = reader.next()? {
            match number {
                2 => nanos = field.fixed64(2)?,
                3 => (double, int) = (Some(f64::from_bits(field.fixed64(3)?)), None),
                4 => span_id = field.bytes(4)?,
                5 => trace_id = field.bytes(5)?,
                6 => (double, int) = (None, Some(field.fixed64(6)?.cast_signed())),
                7 => self.attributes.push_key_value(Run::new(field.bytes(7)?))?,
                _ => {}
            }
        }
        let nanos = time(nanos)?;
        let trace_id = optional_id::<16>(trace_id, RejectReason::InvalidTraceId)?;
        let span_id = optional_id::<8>(span_id, RejectReason::InvalidSpanId)?;
        self.time.push(nanos);
        self.value_double.push_option(double);
        self.value_int.push_option(int);
        self.trace_id.push(trace_id);
        self.span_id.push(span_id);
        self.attributes.end_row();
        Ok(())
    }

    fn truncate(&mut self, rows: usize) {
        let exemplars = self.ends.truncate(rows);
        self.time.truncate(exemplars);
        self.value_double.truncate(exemplars);
        self.value_int.truncate(exemplars);
        self.trace_id.truncate(exemplars);
        self.span_id.truncate(exemplars);
        self.attributes.truncate(exemplars);
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.ends.fill(rows, self.time.len());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.time.finish().with_timezone("UTC")),
            Arc::new(self.value_double.finish()),
            Arc::new(self.value_int.finish()),
            self.trace_id.finish(),
            self.span_id.finish(),
            self.attributes.finish(),
        ];
        let exemplars = StructArray::new(exemplar_fields(), columns, None);
        Arc::new(ListArray::new(item_of(exemplar_fields()), self.ends.finish(), Arc::new(exemplars), None))
    }
}

fn bounded(buckets: usize) -> Result<(), ItemError> {
    if buckets > BUCKETS_MAX { Err(RejectReason::TooManyBuckets.into()) } else { Ok(()) }
}

fn list(ends: &mut Offsets, items: ArrayRef) -> ArrayRef {
    let item = Arc::new(Field::new("item", DataType::clone(items.data_type()), false));
    Arc::new(ListArray::new(item, ends.finish(), items, None))
}
