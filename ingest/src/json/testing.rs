//! Generated OTLP requests for tests: from a seed, one request with every kind of field somewhere in it.
//!
//! The requests are valid: identifiers have their length, histograms add up, times lie in this century,
//! dictionary indices exist. Tests of refusals break them on purpose. Doubles are finite, because the reference
//! JSON serialiser writes other ones as null. It is NOT realistic telemetry; the `fixtures` crate has that.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::profiles::v1development::{
    Function, KeyValueAndUnit, Line, Link as ProfileLink, Location, Mapping, Profile, ProfilesDictionary,
    ResourceProfiles, Sample, ScopeProfiles, Stack, ValueType,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

/// How deep generated values nest, the outermost counted as 1: well inside the documented limit.
const MAX_VALUE_DEPTH: u32 = 5;

/// Strings that break careless code: empty, escapes, controls, astral characters, dots, long.
const STRINGS: &[&str] = &[
    "",
    "a",
    "http.route",
    "Grüße \u{1F600}",
    "line\nbreak\ttab",
    "quote\"back\\slash/",
    "nul\0bell\u{7}",
    "\u{202E}rtl",
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\
     0123456789012345678901234567890123456789012345678901234567890123456789",
];

/// A SplitMix64 generator: the same seed gives the same request for ever.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Zero to `max` items.
    pub fn list<T>(&mut self, max: u64, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(max + 1);
        (0..count).map(|_| item(self)).collect()
    }

    /// An item, or none once in four.
    pub fn maybe<T>(&mut self, item: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (!self.one_in(4)).then(|| item(self))
    }

    fn string(&mut self) -> String {
        match self.below(3) {
            0 => format!("s{}", self.below(1000)),
            _ => STRINGS[self.below(STRINGS.len() as u64) as usize].to_owned(),
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        // The first byte keeps identifiers from being all zero.
        (0..len).map(|index| if index == 0 { self.below(255) as u8 + 1 } else { self.bits() as u8 }).collect()
    }

    fn id(&mut self, len: usize) -> Vec<u8> {
        if self.one_in(4) { Vec::new() } else { self.bytes(len) }
    }

    fn u32(&mut self) -> u32 {
        [0, 1, 127, 128, 300, u32::MAX][self.below(6) as usize]
    }

    fn int(&mut self) -> i64 {
        [0, 1, -1, i64::MIN, i64::MAX, 1 << 53, -(1 << 53) - 1, self.bits() as i64][self.below(8) as usize]
    }

    fn double(&mut self) -> f64 {
        [0.0, -0.0, 1.5, -2.5e-300, f64::MAX, f64::MIN_POSITIVE, 0.1, self.bits() as f64 / 1e9][self.below(8) as usize]
    }

    fn time(&mut self) -> u64 {
        1_700_000_000_000_000_000 + self.below(1 << 56)
    }

    fn value(&mut self, depth: u32) -> AnyValue {
        let kinds = if depth >= MAX_VALUE_DEPTH { 6 } else { 8 };
        let value = match self.below(kinds) {
            0 => None,
            1 => Some(Value::StringValue(self.string())),
            2 => Some(Value::BoolValue(self.one_in(2))),
            3 => Some(Value::IntValue(self.int())),
            4 => Some(Value::DoubleValue(self.double())),
            5 => {
                let len = self.below(40) as usize;
                Some(Value::BytesValue(self.bytes(len)))
            }
            6 => Some(Value::ArrayValue(ArrayValue { values: self.list(4, |rng| rng.value(depth + 1)) })),
            _ => Some(Value::KvlistValue(KeyValueList { values: self.list(4, |rng| rng.key_value(depth + 1)) })),
        };
        AnyValue { value }
    }

    fn key_value(&mut self, depth: u32) -> KeyValue {
        KeyValue { key: self.string(), value: self.maybe(|rng| rng.value(depth)), key_strindex: 0 }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        self.list(4, |rng| rng.key_value(1))
    }

    fn resource(&mut self) -> Resource {
        Resource {
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            entity_refs: self.list(2, |rng| EntityRef {
                schema_url: rng.string(),
                r#type: rng.string(),
                id_keys: rng.list(2, Self::string),
                description_keys: rng.list(2, Self::string),
            }),
        }
    }

    fn scope(&mut self) -> InstrumentationScope {
        InstrumentationScope {
            name: self.string(),
            version: self.string(),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
        }
    }

    fn span(&mut self) -> Span {
        let start = self.time();
        Span {
            trace_id: self.bytes(16),
            span_id: self.bytes(8),
            trace_state: self.string(),
            parent_span_id: self.id(8),
            flags: self.u32(),
            name: self.string(),
            kind: self.below(6) as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: start + self.below(1 << 40),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            events: self.list(3, |rng| Event {
                time_unix_nano: rng.time(),
                name: rng.string(),
                attributes: rng.attributes(),
                dropped_attributes_count: rng.u32(),
            }),
            dropped_events_count: self.u32(),
            links: self.list(3, |rng| Link {
                trace_id: rng.bytes(16),
                span_id: rng.bytes(8),
                trace_state: rng.string(),
                attributes: rng.attributes(),
                dropped_attributes_count: rng.u32(),
                flags: rng.u32(),
            }),
            dropped_links_count: self.u32(),
            status: self.maybe(|rng| Status { message: rng.string(), code: rng.below(3) as i32 }),
        }
    }

    fn log_record(&mut self) -> LogRecord {
        LogRecord {
            time_unix_nano: self.time(),
            observed_time_unix_nano: self.time(),
            severity_number: self.below(25) as i32,
            severity_text: self.string(),
            body: self.maybe(|rng| rng.value(1)),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            flags: self.u32(),
            trace_id: self.id(16),
            span_id: self.id(8),
            event_name: self.string(),
        }
    }

    fn exemplar(&mut self) -> Exemplar {
        Exemplar {
            filtered_attributes: self.attributes(),
            time_unix_nano: self.time(),
            span_id: self.id(8),
            trace_id: self.id(16),
            value: Some(match self.one_in(2) {
                true => exemplar::Value::AsDouble(self.double()),
                false => exemplar::Value::AsInt(self.int()),
            }),
        }
    }

    fn number_point(&mut self) -> NumberDataPoint {
        let start = self.time();
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: start,
            time_unix_nano: start + self.below(1 << 40),
            exemplars: self.list(2, Self::exemplar),
            flags: self.below(2) as u32,
            value: Some(match self.one_in(2) {
                true => number_data_point::Value::AsDouble(self.double()),
                false => number_data_point::Value::AsInt(self.int()),
            }),
        }
    }

    fn histogram_point(&mut self) -> HistogramDataPoint {
        let start = self.time();
        let buckets = self.below(6);
        let bucket_counts: Vec<u64> = (0..buckets).map(|_| self.below(1 << 40)).collect();
        HistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: start,
            time_unix_nano: start + self.below(1 << 40),
            count: bucket_counts.iter().sum(),
            sum: self.maybe(Self::double),
            explicit_bounds: (1..buckets).map(|bound| bound as f64 * 0.25).collect(),
            bucket_counts,
            exemplars: self.list(2, Self::exemplar),
            flags: self.below(2) as u32,
            min: self.maybe(Self::double),
            max: self.maybe(Self::double),
        }
    }

    fn buckets(&mut self) -> Buckets {
        Buckets { offset: self.below(2000) as i32 - 1000, bucket_counts: self.list(6, |rng| rng.below(1 << 40)) }
    }

    fn exponential_point(&mut self) -> ExponentialHistogramDataPoint {
        let start = self.time();
        let positive = self.maybe(Self::buckets);
        let negative = self.maybe(Self::buckets);
        let zero_count = self.below(100);
        let in_buckets: u64 = [&positive, &negative].into_iter().flatten().flat_map(|b| &b.bucket_counts).sum();
        ExponentialHistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: start,
            time_unix_nano: start + self.below(1 << 40),
            count: zero_count + in_buckets,
            sum: self.maybe(Self::double),
            scale: self.below(31) as i32 - 10,
            zero_count,
            positive,
            negative,
            flags: self.below(2) as u32,
            exemplars: self.list(2, Self::exemplar),
            min: self.maybe(Self::double),
            max: self.maybe(Self::double),
            zero_threshold: self.below(4) as f64 * 1e-9,
        }
    }

    fn summary_point(&mut self) -> SummaryDataPoint {
        let start = self.time();
        SummaryDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: start,
            time_unix_nano: start + self.below(1 << 40),
            count: self.below(1 << 40),
            sum: self.double(),
            quantile_values: self
                .list(3, |rng| ValueAtQuantile { quantile: rng.below(101) as f64 / 100.0, value: rng.double().abs() }),
            flags: self.below(2) as u32,
        }
    }

    fn metric(&mut self) -> Metric {
        let aggregation_temporality = self.below(2) as i32 + 1;
        let data = match self.below(5) {
            0 => metric::Data::Gauge(Gauge { data_points: self.list(3, Self::number_point) }),
            1 => metric::Data::Sum(Sum {
                data_points: self.list(3, Self::number_point),
                aggregation_temporality,
                is_monotonic: self.one_in(2),
            }),
            2 => metric::Data::Histogram(Histogram {
                data_points: self.list(3, Self::histogram_point),
                aggregation_temporality,
            }),
            3 => metric::Data::ExponentialHistogram(ExponentialHistogram {
                data_points: self.list(3, Self::exponential_point),
                aggregation_temporality,
            }),
            _ => metric::Data::Summary(Summary { data_points: self.list(3, Self::summary_point) }),
        };
        Metric {
            // A metric has a name; every other string may be empty.
            name: format!("m{}", self.below(1000)),
            description: self.string(),
            unit: self.string(),
            metadata: self.attributes(),
            data: Some(data),
        }
    }

    fn strindex(&mut self) -> i32 {
        self.below(STRINGS.len() as u64) as i32
    }

    /// Indices into a table of `TABLE_ROWS` rows.
    fn indices(&mut self) -> Vec<i32> {
        self.list(3, Self::index)
    }

    fn index(&mut self) -> i32 {
        self.below(TABLE_ROWS as u64) as i32
    }

    fn value_type(&mut self) -> ValueType {
        ValueType { type_strindex: self.strindex(), unit_strindex: self.strindex() }
    }

    fn profile(&mut self) -> Profile {
        Profile {
            sample_type: self.maybe(Self::value_type),
            samples: self.list(3, |rng| Sample {
                stack_index: rng.index(),
                attribute_indices: rng.indices(),
                link_index: rng.index(),
                values: rng.list(3, Self::int),
                timestamps_unix_nano: rng.list(3, Self::time),
            }),
            time_unix_nano: self.time(),
            duration_nano: self.below(1 << 40),
            period_type: self.maybe(Self::value_type),
            period: self.int(),
            profile_id: self.id(16),
            dropped_attributes_count: self.u32(),
            original_payload_format: self.string(),
            original_payload: self.list(40, |rng| rng.bits() as u8),
            attribute_indices: self.indices(),
        }
    }

    fn dictionary(&mut self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: self.table(|rng| Mapping {
                memory_start: rng.bits(),
                memory_limit: rng.bits(),
                file_offset: rng.below(1 << 40),
                filename_strindex: rng.strindex(),
                attribute_indices: rng.indices(),
            }),
            location_table: self.table(|rng| Location {
                mapping_index: rng.index(),
                address: rng.bits(),
                lines: rng.list(3, |rng| Line { function_index: rng.index(), line: rng.int(), column: rng.int() }),
                attribute_indices: rng.indices(),
            }),
            function_table: self.table(|rng| Function {
                name_strindex: rng.strindex(),
                system_name_strindex: rng.strindex(),
                filename_strindex: rng.strindex(),
                start_line: rng.int(),
            }),
            link_table: self.table(|rng| ProfileLink { trace_id: rng.bytes(16), span_id: rng.bytes(8) }),
            string_table: STRINGS.iter().map(|&string| string.to_owned()).collect(),
            attribute_table: self.table(|rng| {
                let value = match rng.one_in(4) {
                    true => AnyValue { value: Some(Value::StringValueStrindex(rng.strindex())) },
                    false => rng.value(1),
                };
                KeyValueAndUnit { key_strindex: rng.strindex(), value: Some(value), unit_strindex: rng.strindex() }
            }),
            stack_table: self.table(|rng| Stack { location_indices: rng.indices() }),
        }
    }

    /// A dictionary table: its first row is the zero value, as the data model wants.
    fn table<T: Default>(&mut self, mut row: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..TABLE_ROWS).map(|index| if index == 0 { T::default() } else { row(self) }).collect()
    }
}

/// How many rows every generated dictionary table has.
const TABLE_ROWS: usize = 4;

/// A generated trace request.
pub fn traces(seed: u64) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: Rng::new(seed).list(3, |rng| ResourceSpans {
            resource: rng.maybe(Rng::resource),
            scope_spans: rng.list(3, |rng| ScopeSpans {
                scope: rng.maybe(Rng::scope),
                spans: rng.list(5, Rng::span),
                schema_url: rng.string(),
            }),
            schema_url: rng.string(),
        }),
    }
}

/// A generated metrics request.
pub fn metrics(seed: u64) -> ExportMetricsServiceRequest {
    ExportMetricsServiceRequest {
        resource_metrics: Rng::new(seed).list(3, |rng| ResourceMetrics {
            resource: rng.maybe(Rng::resource),
            scope_metrics: rng.list(3, |rng| ScopeMetrics {
                scope: rng.maybe(Rng::scope),
                metrics: rng.list(5, Rng::metric),
                schema_url: rng.string(),
            }),
            schema_url: rng.string(),
        }),
    }
}

/// A generated logs request.
pub fn logs(seed: u64) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: Rng::new(seed).list(3, |rng| ResourceLogs {
            resource: rng.maybe(Rng::resource),
            scope_logs: rng.list(3, |rng| ScopeLogs {
                scope: rng.maybe(Rng::scope),
                log_records: rng.list(5, Rng::log_record),
                schema_url: rng.string(),
            }),
            schema_url: rng.string(),
        }),
    }
}

/// A generated profiles request.
pub fn profiles(seed: u64) -> ExportProfilesServiceRequest {
    let mut rng = Rng::new(seed);
    ExportProfilesServiceRequest {
        resource_profiles: rng.list(3, |rng| ResourceProfiles {
            resource: rng.maybe(Rng::resource),
            scope_profiles: rng.list(3, |rng| ScopeProfiles {
                scope: rng.maybe(Rng::scope),
                profiles: rng.list(4, Rng::profile),
                schema_url: rng.string(),
            }),
            schema_url: rng.string(),
        }),
        dictionary: rng.maybe(Rng::dictionary),
    }
}
