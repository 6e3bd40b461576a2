//! The request bodies that the conformance table names: `build("mixed_20_1", …)` and so on.
//!
//! Every body is first a protobuf message with one good item whose `service.name` is the row's id, so that what
//! was stored can be told apart afterwards; the case then changes the item, the JSON text or the bytes. Not here:
//! compression and headers (the runner), and expectations (the table).
#![allow(unreachable_pub, reason = "a module of a test binary has no public interface")]

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_proto::tonic::profiles::v1development::{
    Function, Line, Location, Mapping, Profile, ProfilesDictionary, ResourceProfiles, Sample, ScopeProfiles, Stack,
    ValueType,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use serde_json::{Value, json};

use super::{Encoding, Signal};

/// Stands in JSON or protobuf where bytes are put that the typed structs cannot hold.
const PLACEHOLDER: &str = "@@HOSTILE@@";

/// What a bomb inflates to: sixteen times what the test server takes.
const BOMB_BYTES: usize = 64 << 20;

/// More than the test server takes, sent plainly.
const OVER_LIMIT_BYTES: usize = 5 << 20;

const TRACE_ID: [u8; 16] = [0x5b, 0x8e, 0xff, 0xf7, 0x98, 3, 0x81, 3, 0xd2, 0x69, 0xb6, 0x33, 0x81, 0x3f, 0xc6, 0x0c];
const SPAN_ID: [u8; 8] = [0xee, 0xe1, 0x9b, 0x7e, 0xc3, 0xc1, 0xb1, 0x74];

/// A request of one of the four services.
#[derive(Debug, Clone, PartialEq)]
pub enum Export {
    Traces(ExportTraceServiceRequest),
    Metrics(ExportMetricsServiceRequest),
    Logs(ExportLogsServiceRequest),
    Profiles(ExportProfilesServiceRequest),
}

/// Nanoseconds since 1970: stored times are recent, or retention would take the rows away during the test.
fn now() -> u64 {
    model::time::Clock::System.now().0.cast_unsigned()
}

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Any::StringValue(text.to_owned())) }
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), key_strindex: 0 }
}

fn resource(service: &str) -> Option<Resource> {
    Some(Resource { attributes: vec![attribute("service.name", text(service))], ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: "conformance".into(), ..InstrumentationScope::default() })
}

fn span() -> Span {
    Span {
        trace_id: TRACE_ID.to_vec(),
        span_id: SPAN_ID.to_vec(),
        name: "GET /cart".into(),
        kind: 2,
        start_time_unix_nano: now(),
        end_time_unix_nano: now() + 1_000_000,
        attributes: vec![attribute("http.route", text("/cart"))],
        ..Span::default()
    }
}

fn log_record() -> LogRecord {
    LogRecord {
        time_unix_nano: now(),
        observed_time_unix_nano: now(),
        severity_number: 9,
        severity_text: "INFO".into(),
        body: Some(text("cart opened")),
        attributes: vec![attribute("http.route", text("/cart"))],
        trace_id: TRACE_ID.to_vec(),
        span_id: SPAN_ID.to_vec(),
        ..LogRecord::default()
    }
}

fn number_point(value: number_data_point::Value) -> NumberDataPoint {
    NumberDataPoint {
        attributes: vec![attribute("http.route", text("/cart"))],
        time_unix_nano: now(),
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn metric(data: Data) -> Metric {
    Metric { name: "cart.size".into(), unit: "1".into(), data: Some(data), ..Metric::default() }
}

fn gauge(points: Vec<NumberDataPoint>) -> Metric {
    metric(Data::Gauge(Gauge { data_points: points }))
}

fn histogram(change: impl FnOnce(&mut HistogramDataPoint)) -> Metric {
    let mut point = HistogramDataPoint {
        time_unix_nano: now(),
        count: 6,
        sum: Some(12.0),
        bucket_counts: vec![1, 2, 3],
        explicit_bounds: vec![1.0, 2.0],
        ..HistogramDataPoint::default()
    };
    change(&mut point);
    metric(Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality: 2 }))
}

fn exponential(scale: i32) -> Metric {
    let point = ExponentialHistogramDataPoint {
        time_unix_nano: now(),
        count: 3,
        scale,
        zero_count: 1,
        positive: Some(Buckets { offset: -1, bucket_counts: vec![1, 1] }),
        ..ExponentialHistogramDataPoint::default()
    };
    metric(Data::ExponentialHistogram(ExponentialHistogram { data_points: vec![point], aggregation_temporality: 1 }))
}

fn profile() -> Profile {
    Profile {
        sample_type: Some(ValueType { type_strindex: 1, unit_strindex: 2 }),
        samples: vec![Sample { stack_index: 1, values: vec![10], ..Sample::default() }],
        time_unix_nano: now(),
        duration_nano: 1_000_000_000,
        period_type: Some(ValueType { type_strindex: 1, unit_strindex: 2 }),
        period: 10_000_000,
        profile_id: TRACE_ID.to_vec(),
        ..Profile::default()
    }
}

fn dictionary() -> ProfilesDictionary {
    ProfilesDictionary {
        mapping_table: vec![Mapping::default()],
        location_table: vec![
            Location::default(),
            Location { lines: vec![Line { function_index: 1, line: 7, column: 0 }], ..Location::default() },
        ],
        function_table: vec![Function::default(), Function { name_strindex: 3, ..Function::default() }],
        // Left empty where nothing refers to it: the reference serialiser writes link ids as number arrays.
        link_table: Vec::new(),
        string_table: ["", "cpu", "nanoseconds", "main"].map(str::to_owned).to_vec(),
        attribute_table: vec![Default::default()],
        stack_table: vec![Stack::default(), Stack { location_indices: vec![1] }],
    }
}

impl Export {
    /// A request with `count` good items.
    pub fn good(signal: Signal, service: &str, count: usize) -> Self {
        let resource = resource(service);
        let scope = scope();
        let schema_url = String::new();
        match signal {
            Signal::Traces => {
                let scope_spans = vec![ScopeSpans { scope, spans: vec![span(); count], schema_url: String::new() }];
                Self::Traces(ExportTraceServiceRequest {
                    resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url }],
                })
            }
            Signal::Metrics => {
                let points = vec![number_point(number_data_point::Value::AsInt(3)); count];
                let scope_metrics =
                    vec![ScopeMetrics { scope, metrics: vec![gauge(points)], schema_url: String::new() }];
                Self::Metrics(ExportMetricsServiceRequest {
                    resource_metrics: vec![ResourceMetrics { resource, scope_metrics, schema_url }],
                })
            }
            Signal::Logs => {
                let scope_logs =
                    vec![ScopeLogs { scope, log_records: vec![log_record(); count], schema_url: String::new() }];
                Self::Logs(ExportLogsServiceRequest {
                    resource_logs: vec![ResourceLogs { resource, scope_logs, schema_url }],
                })
            }
            Signal::Profiles => {
                let scope_profiles =
                    vec![ScopeProfiles { scope, profiles: vec![profile(); count], schema_url: String::new() }];
                Self::Profiles(ExportProfilesServiceRequest {
                    resource_profiles: vec![ResourceProfiles { resource, scope_profiles, schema_url }],
                    dictionary: Some(dictionary()),
                })
            }
        }
    }

    fn spans(&mut self) -> &mut Vec<Span> {
        match self {
            Self::Traces(request) => &mut request.resource_spans[0].scope_spans[0].spans,
            other => panic!("no spans in {other:?}"),
        }
    }

    fn log_records(&mut self) -> &mut Vec<LogRecord> {
        match self {
            Self::Logs(request) => &mut request.resource_logs[0].scope_logs[0].log_records,
            other => panic!("no log records in {other:?}"),
        }
    }

    fn metrics(&mut self) -> &mut Vec<Metric> {
        match self {
            Self::Metrics(request) => &mut request.resource_metrics[0].scope_metrics[0].metrics,
            other => panic!("no metrics in {other:?}"),
        }
    }

    fn points(&mut self) -> &mut Vec<NumberDataPoint> {
        match &mut self.metrics()[0].data {
            Some(Data::Gauge(gauge)) => &mut gauge.data_points,
            other => panic!("no gauge in {other:?}"),
        }
    }

    /// The positive buckets of the first metric, an exponential histogram.
    fn buckets(&mut self) -> &mut Buckets {
        match &mut self.metrics()[0].data {
            Some(Data::ExponentialHistogram(histogram)) => {
                histogram.data_points[0].positive.as_mut().expect("it has positive buckets")
            }
            other => panic!("no exponential histogram in {other:?}"),
        }
    }

    fn profiles(&mut self) -> &mut Vec<Profile> {
        match self {
            Self::Profiles(request) => &mut request.resource_profiles[0].scope_profiles[0].profiles,
            other => panic!("no profiles in {other:?}"),
        }
    }

    /// The attributes of the first item.
    fn attributes(&mut self) -> &mut Vec<KeyValue> {
        match self {
            Self::Traces(_) => &mut self.spans()[0].attributes,
            Self::Metrics(_) => &mut self.points()[0].attributes,
            Self::Logs(_) => &mut self.log_records()[0].attributes,
            Self::Profiles(_) => panic!("the attributes of a profile are in its dictionary"),
        }
    }

    /// The trace and span id of the first item.
    fn ids(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        match self {
            Self::Logs(_) => {
                let record = &mut self.log_records()[0];
                (&mut record.trace_id, &mut record.span_id)
            }
            _ => {
                let span = &mut self.spans()[0];
                (&mut span.trace_id, &mut span.span_id)
            }
        }
    }

    /// The time that decides where the item at `index` is stored.
    fn set_time(&mut self, index: usize, time: u64) {
        match self {
            Self::Traces(_) => self.spans()[index].start_time_unix_nano = time,
            Self::Metrics(_) => self.points()[index].time_unix_nano = time,
            Self::Logs(_) => self.log_records()[index].time_unix_nano = time,
            Self::Profiles(_) => self.profiles()[index].time_unix_nano = time,
        }
    }

    /// A string of the first item, of whichever field the signal has.
    fn string(&mut self) -> &mut String {
        match self {
            Self::Traces(_) => &mut self.spans()[0].name,
            Self::Metrics(_) => &mut self.metrics()[0].unit,
            Self::Logs(_) => &mut self.log_records()[0].severity_text,
            Self::Profiles(_) => &mut self.profiles()[0].original_payload_format,
        }
    }

    /// The protobuf bytes.
    pub fn protobuf(&self) -> Vec<u8> {
        match self {
            Self::Traces(request) => request.encode_to_vec(),
            Self::Metrics(request) => request.encode_to_vec(),
            Self::Logs(request) => request.encode_to_vec(),
            Self::Profiles(request) => request.encode_to_vec(),
        }
    }

    /// The same as a JSON tree.
    fn json(&self) -> Value {
        let tree = match self {
            Self::Traces(request) => serde_json::to_value(request),
            Self::Metrics(request) => serde_json::to_value(request),
            Self::Logs(request) => serde_json::to_value(request),
            Self::Profiles(request) => serde_json::to_value(request),
        };
        let mut tree = tree.expect("OTLP messages have string keys only");
        drop_empty_payloads(&mut tree);
        tree
    }

    fn encode(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Protobuf => self.protobuf(),
            Encoding::Json => self.json().to_string().into_bytes(),
        }
    }
}

/// The reference serialiser writes this bytes field as an array of numbers, which is not OTLP/JSON.
fn drop_empty_payloads(tree: &mut Value) {
    match tree {
        Value::Object(members) => {
            members.remove("originalPayload");
            members.values_mut().for_each(drop_empty_payloads);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty_payloads),
        _ => {}
    }
}

/// The first item in a JSON tree: a span, data point, log record or profile.
fn item(tree: &mut Value, signal: Signal) -> &mut Value {
    let path = match signal {
        Signal::Traces => "/resourceSpans/0/scopeSpans/0/spans/0",
        Signal::Metrics => "/resourceMetrics/0/scopeMetrics/0/metrics/0/gauge/dataPoints/0",
        Signal::Logs => "/resourceLogs/0/scopeLogs/0/logRecords/0",
        Signal::Profiles => "/resourceProfiles/0/scopeProfiles/0/profiles/0",
    };
    tree.pointer_mut(path).unwrap_or_else(|| panic!("a {signal:?} request has {path}"))
}

/// `tag, length, bytes` of a length-delimited field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 12);
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut out);
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// What values are nested in.
#[derive(Clone, Copy, PartialEq)]
enum Nest {
    Arrays,
    Lists,
}

/// Where in a request a nested value stands.
#[derive(Clone, Copy, PartialEq)]
enum Spot {
    Item,
    Resource,
    Body,
    Event,
}

impl Nest {
    /// An `AnyValue` with `depth` arrays or lists around a string, as bytes. Written from the inside out and back to
    /// front, so that neither the stack nor the time grows with more than the depth.
    fn protobuf(self, depth: usize) -> Vec<u8> {
        let mut reversed: Vec<u8> = field(1, b"leaf").into_iter().rev().collect();
        // The fields from a value to the one around it.
        let path: &[u8] = if self == Self::Arrays { &[1, 5] } else { &[2, 1, 6] };
        for _ in 0..depth {
            for number in path {
                let mut head = vec![number << 3 | 2];
                prost::encoding::encode_varint(reversed.len() as u64, &mut head);
                reversed.extend(head.into_iter().rev());
            }
        }
        reversed.reverse();
        reversed
    }

    /// The same as JSON text.
    fn json(self, depth: usize) -> String {
        let (before, after) = match self {
            Self::Arrays => (r#"{"arrayValue":{"values":["#, "]}}"),
            Self::Lists => (r#"{"kvlistValue":{"values":[{"key":"k","value":"#, "}]}}"),
        };
        before.repeat(depth) + r#"{"stringValue":"leaf"}"# + &after.repeat(depth)
    }
}

/// A good request that holds one value more: `depth` arrays or lists around a string.
fn deep(signal: Signal, encoding: Encoding, service: &str, (spot, nest, depth): (Spot, Nest, usize)) -> Vec<u8> {
    let mut good = Export::good(signal, service, 1);
    if encoding == Encoding::Json {
        let mut tree = good.json();
        let value = json!({"stringValue": PLACEHOLDER});
        let pair = json!({"key": "deep", "value": value});
        let pairs = |node: &mut Value| node["attributes"].as_array_mut().unwrap().push(pair.clone());
        match spot {
            Spot::Item => pairs(item(&mut tree, signal)),
            Spot::Resource => {
                let envelopes = tree.as_object_mut().unwrap().values_mut().find(|node| node.is_array()).unwrap();
                pairs(&mut envelopes[0]["resource"]);
            }
            Spot::Body => item(&mut tree, signal)["body"] = value,
            Spot::Event => item(&mut tree, signal)["events"] = json!([{"name": "e", "attributes": [pair]}]),
        }
        let text = tree.to_string();
        return text.replace(&format!(r#"{{"stringValue":"{PLACEHOLDER}"}}"#), &nest.json(depth)).into_bytes();
    }
    // Protobuf messages are concatenations of their fields, and a message that occurs twice merges, so each level is
    // its struct's bytes and one field more.
    let value = nest.protobuf(depth);
    let pair = [field(1, b"deep"), field(2, &value)].concat();
    let in_resource = if spot == Spot::Resource { field(1, &field(1, &pair)) } else { Vec::new() };
    let in_item = match (spot, signal) {
        (Spot::Resource, _) => Vec::new(),
        (Spot::Body, _) => field(5, &value),
        (Spot::Event, _) => field(11, &field(3, &pair)),
        (Spot::Item, Signal::Traces) => field(9, &pair),
        (Spot::Item, Signal::Logs) => field(6, &pair),
        (Spot::Item, _) => field(7, &pair),
    };
    let (resource, item) = match &mut good {
        Export::Traces(request) => {
            let mut spans = request.resource_spans.remove(0);
            let span = spans.scope_spans.remove(0).spans.remove(0).encode_to_vec();
            (spans.encode_to_vec(), field(2, &[span, in_item].concat()))
        }
        Export::Logs(request) => {
            let mut logs = request.resource_logs.remove(0);
            let record = logs.scope_logs.remove(0).log_records.remove(0).encode_to_vec();
            (logs.encode_to_vec(), field(2, &[record, in_item].concat()))
        }
        Export::Metrics(request) => {
            let mut metrics = request.resource_metrics.remove(0);
            let metric = metrics.scope_metrics.remove(0).metrics.remove(0);
            let Some(Data::Gauge(gauge)) = &metric.data else { panic!("a good metric is a gauge") };
            let point = [gauge.data_points[0].encode_to_vec(), in_item].concat();
            let head = Metric { data: None, ..metric.clone() }.encode_to_vec();
            (metrics.encode_to_vec(), field(2, &[head, field(5, &field(1, &point))].concat()))
        }
        Export::Profiles(_) => panic!("the attributes of a profile are in its dictionary"),
    };
    field(1, &[resource, field(2, &item), in_resource].concat())
}

/// The uncompressed message of a case; `None` when no body of this name exists for the signal and encoding.
pub fn build(name: &str, signal: Signal, encoding: Encoding, service: &str) -> Option<Vec<u8>> {
    let json_only = encoding == Encoding::Json;
    let mut good = Export::good(signal, service, 1);
    // Cases that change typed fields fall through to the encoding at the end.
    match (name, signal) {
        ("one_good", _) => {}
        ("empty_body", _) => return Some(Vec::new()),
        ("empty_object", _) if json_only => return Some(b"{}".to_vec()),
        ("empty_envelopes", _) => match &mut good {
            Export::Traces(request) => {
                request.resource_spans = vec![
                    ResourceSpans::default(),
                    ResourceSpans { scope_spans: vec![ScopeSpans::default()], ..ResourceSpans::default() },
                ];
            }
            Export::Metrics(request) => {
                request.resource_metrics = vec![
                    ResourceMetrics::default(),
                    ResourceMetrics { scope_metrics: vec![ScopeMetrics::default()], ..ResourceMetrics::default() },
                ];
            }
            Export::Logs(request) => {
                request.resource_logs = vec![
                    ResourceLogs::default(),
                    ResourceLogs { scope_logs: vec![ScopeLogs::default()], ..ResourceLogs::default() },
                ];
            }
            Export::Profiles(request) => {
                request.dictionary = None;
                request.resource_profiles = vec![
                    ResourceProfiles::default(),
                    ResourceProfiles { scope_profiles: vec![ScopeProfiles::default()], ..ResourceProfiles::default() },
                ];
            }
        },
        ("mixed_20_1", _) => {
            good = Export::good(signal, service, 21);
            good.set_time(7, u64::MAX);
        }

        ("mixed_999_1", _) => {
            good = Export::good(signal, service, 1_000);
            good.set_time(998, u64::MAX);
        }

        // Identifiers.
        ("trace_id_8_bytes", Signal::Traces | Signal::Logs) => good.ids().0.truncate(8),
        ("span_id_4_bytes", Signal::Traces | Signal::Logs) => good.ids().1.truncate(4),
        ("trace_id_zero", Signal::Traces | Signal::Logs) => good.ids().0.fill(0),
        ("span_id_zero", Signal::Traces | Signal::Logs) => good.ids().1.fill(0),
        ("ids_empty", Signal::Traces | Signal::Logs) => {
            good.ids().0.clear();
            good.ids().1.clear();
        }
        ("hex_upper_case" | "hex_odd" | "hex_not" | "id_base64", Signal::Traces | Signal::Logs) if json_only => {
            let mut tree = good.json();
            item(&mut tree, signal)["traceId"] = json!(match name {
                "hex_upper_case" => "5B8EFFF798038103D269B633813FC60C",
                "hex_odd" => "5b8efff798038103d269b633813fc60",
                "hex_not" => "5b8efff798038103d269b633813fc6zz",
                _ => "W47/95gDgQPSabYzgT/GDA==",
            });
            return Some(tree.to_string().into_bytes());
        }

        // JSON.
        ("enum_as_string", Signal::Traces | Signal::Logs | Signal::Metrics) if json_only => {
            let mut tree = good.json();
            match signal {
                Signal::Traces => item(&mut tree, signal)["kind"] = json!("SPAN_KIND_SERVER"),
                Signal::Logs => item(&mut tree, signal)["severityNumber"] = json!("SEVERITY_NUMBER_INFO"),
                _ => {
                    let metric = &mut tree["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0];
                    let points = metric["gauge"]["dataPoints"].take();
                    metric.as_object_mut()?.remove("gauge");
                    metric["sum"] = json!({
                        "dataPoints": points,
                        "aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE",
                    });
                }
            }
            return Some(tree.to_string().into_bytes());
        }
        ("null_everywhere", _) if json_only => {
            let mut tree = good.json();
            let members = item(&mut tree, signal).as_object_mut()?;
            for key in
                ["attributes", "events", "links", "exemplars", "status", "traceState", "flags", "attributeIndices"]
            {
                members.insert(key.to_owned(), Value::Null);
            }
            tree["dictionaryOfTheFuture"] = Value::Null;
            return Some(tree.to_string().into_bytes());
        }
        ("snake_case", _) if json_only => {
            let tree = good.json();
            let (key, value) = tree.as_object()?.iter().find(|(key, _)| key.starts_with("resource"))?;
            let snake = key.replace('S', "_s").replace('M', "_m").replace('L', "_l").replace('P', "_p");
            return Some(json!({ snake: value }).to_string().into_bytes());
        }
        ("unknown_field", _) if json_only => {
            let mut tree = good.json();
            item(&mut tree, signal)["aFieldOfTheFuture"] = json!({"a": [1, {"b": null}], "c": "d"});
            tree["anotherOne"] = json!([[[]]]);
            return Some(tree.to_string().into_bytes());
        }
        ("unknown_field", _) => {
            // Field 999 as varint, 64-bit, length-delimited, group and 32-bit.
            let mut body = good.protobuf();
            body.extend([0xb8, 0x3e, 1, 0xb9, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8, 0xba, 0x3e, 2, 9, 9]);
            body.extend([0xbb, 0x3e, 0x08, 1, 0xbc, 0x3e, 0xbd, 0x3e, 1, 2, 3, 4]);
            return Some(body);
        }
        ("unknown_field_deep", _) if json_only => {
            let mut tree = good.json();
            item(&mut tree, signal)["aFieldOfTheFuture"] = json!(PLACEHOLDER);
            let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
            return Some(tree.to_string().replace(&format!(r#""{PLACEHOLDER}""#), &deep).into_bytes());
        }
        ("double_words", Signal::Metrics) if json_only => {
            let mut tree = good.json();
            let mut points = Vec::new();
            for word in ["NaN", "Infinity", "-Infinity", "1.5e3", "-0"] {
                let mut point = item(&mut tree, signal).clone();
                point.as_object_mut()?.remove("asInt");
                point["asDouble"] = json!(word);
                points.push(point);
            }
            *tree.pointer_mut("/resourceMetrics/0/scopeMetrics/0/metrics/0/gauge/dataPoints")? = json!(points);
            return Some(tree.to_string().into_bytes());
        }
        ("integers_any_style", _) if json_only => {
            let mut tree = good.json();
            let item = item(&mut tree, signal);
            let time = if signal == Signal::Traces { "startTimeUnixNano" } else { "timeUnixNano" };
            item[time] = json!(item[time].as_str().map_or_else(|| item[time].as_u64(), |text| text.parse().ok())?);
            match signal {
                Signal::Traces => item["flags"] = json!("2.57e2"),
                Signal::Metrics => item["asInt"] = json!(1e3),
                Signal::Logs => item["severityNumber"] = json!(9.0),
                Signal::Profiles => item["period"] = json!("1e7"),
            }
            return Some(tree.to_string().into_bytes());
        }
        ("empty_array_value", Signal::Traces | Signal::Logs | Signal::Metrics) if json_only => {
            let mut tree = good.json();
            item(&mut tree, signal)["attributes"] = json!([
                {"key": "empty.array", "value": {"arrayValue": {}}},
                {"key": "empty.list", "value": {"kvlistValue": {}}},
                {"key": "empty.value", "value": {}},
                {"key": "no.value"},
            ]);
            return Some(tree.to_string().into_bytes());
        }
        ("duplicate_members", _) if json_only => {
            // The one that comes last counts, as a field does that occurs twice in protobuf.
            let text = good.json().to_string();
            let name = match signal {
                Signal::Traces | Signal::Metrics => r#""name":"#,
                Signal::Logs => r#""severityText":"#,
                Signal::Profiles => r#""originalPayloadFormat":"#,
            };
            return Some(text.replacen(name, &format!(r#"{name}"before",{name}"#), 1).into_bytes());
        }
        ("top_level_array", _) if json_only => return Some(b"[]".to_vec()),
        ("top_level_null", _) if json_only => return Some(b"null".to_vec()),
        ("trailing_garbage", _) if json_only => {
            return Some([good.encode(encoding), b"{}".to_vec()].concat());
        }

        // Bytes that are no message.
        ("truncated", _) => {
            let mut body = good.encode(encoding);
            body.truncate(body.len() - 3);
            return Some(body);
        }
        ("random_bytes", _) => {
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            let body = (0..512).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            });
            // Wire type 7 does not exist, so the first byte alone is wrong.
            return Some(std::iter::once(0x0f).chain(body).collect());
        }
        ("other_encoding", _) => {
            return Some(match encoding {
                Encoding::Protobuf => good.encode(Encoding::Json),
                Encoding::Json => good.encode(Encoding::Protobuf),
            });
        }
        ("invalid_utf8", _) => {
            *good.string() = PLACEHOLDER.to_owned();
            let mut body = good.encode(encoding);
            let at = body.windows(PLACEHOLDER.len()).position(|window| window == PLACEHOLDER.as_bytes())?;
            body[at..at + PLACEHOLDER.len()].fill(0xff);
            return Some(body);
        }
        ("lone_surrogate", _) if json_only => {
            *good.string() = PLACEHOLDER.to_owned();
            let body = good.json().to_string().replace(PLACEHOLDER, "\\ud800");
            return Some(body.into_bytes());
        }

        // Size and depth.
        ("bomb", _) => return Some(vec![if json_only { b' ' } else { 0 }; BOMB_BYTES]),
        ("over_limit", _) => {
            *good.string() = "x".repeat(OVER_LIMIT_BYTES);
        }
        // `depth_33`, `list_depth_33`, `resource_depth_33` and so on.
        (name, Signal::Traces | Signal::Logs | Signal::Metrics) if name.contains("depth_") => {
            let (place, depth) = name.split_once("depth_")?;
            let (spot, nest) = match (place, signal) {
                ("", _) => (Spot::Item, Nest::Arrays),
                ("list_", _) => (Spot::Item, Nest::Lists),
                ("resource_", _) => (Spot::Resource, Nest::Arrays),
                ("body_", Signal::Logs) => (Spot::Body, Nest::Arrays),
                ("event_", Signal::Traces) => (Spot::Event, Nest::Arrays),
                _ => return None,
            };
            return Some(deep(signal, encoding, service, (spot, nest, depth.parse().ok()?)));
        }
        ("unknown_group_deep", _) if !json_only => {
            // Field 999 as group within group: read by a loop or not at all.
            let mut body = good.protobuf();
            body.extend([0xbb, 0x3e].repeat(100_000));
            body.extend([0xbc, 0x3e].repeat(100_000));
            return Some(body);
        }

        // Times.
        ("time_max", _) => good.set_time(0, u64::MAX),
        ("time_2262", _) => good.set_time(0, i64::MAX as u64 + 1),
        ("time_zero", Signal::Logs) => {
            good.set_time(0, 0);
            good.log_records()[0].observed_time_unix_nano = 0;
        }
        ("end_before_start", Signal::Traces) => {
            let span = &mut good.spans()[0];
            span.end_time_unix_nano = span.start_time_unix_nano - 1_000;
        }

        // Attributes.
        ("attribute_kinds", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            let values = [
                Any::StringValue(String::new()),
                Any::BoolValue(true),
                Any::IntValue(i64::MIN),
                Any::DoubleValue(-0.5),
                Any::BytesValue(vec![0, 255]),
                Any::ArrayValue(ArrayValue { values: vec![text("a"), AnyValue { value: Some(Any::IntValue(1)) }] }),
                Any::KvlistValue(KeyValueList { values: vec![attribute("k", text("v")), attribute("k", text("w"))] }),
            ];
            let values = values.into_iter().map(Some).chain([None]).enumerate();
            good.attributes()
                .extend(values.map(|(kind, value)| attribute(&format!("kind.{kind}"), AnyValue { value })));
        }
        ("duplicate_keys", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            good.attributes().extend([attribute("twice", text("first")), attribute("twice", text("second"))]);
        }
        ("empty_key", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            good.attributes().push(attribute("", text("nameless")));
        }
        ("long_key", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            good.attributes().push(attribute(&"k".repeat(1025), text("v")));
        }
        ("attribute_1mib", Signal::Traces | Signal::Logs) => {
            good.attributes().push(attribute("large", text(&"x".repeat(1 << 20))));
        }
        ("attributes_1024" | "attributes_10000", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            let count = if name == "attributes_1024" { 1024 } else { 10_000 };
            *good.attributes() = (0..count).map(|index| attribute(&format!("key.{index}"), text("v"))).collect();
        }
        ("strindex", Signal::Traces | Signal::Logs | Signal::Metrics) => {
            let value = AnyValue { value: Some(Any::StringValueStrindex(3)) };
            good.attributes().push(KeyValue { key: "by.index".into(), value: Some(value), key_strindex: 2 });
        }

        // Metrics.
        ("histogram", Signal::Metrics) => good.metrics()[0] = histogram(|_| {}),
        ("histogram_without_buckets", Signal::Metrics) => {
            good.metrics()[0] = histogram(|point| {
                point.bucket_counts.clear();
                point.explicit_bounds.clear();
            });
        }
        ("bucket_count_mismatch", Signal::Metrics) => {
            good.metrics()[0] = histogram(|point| point.explicit_bounds.push(3.0));
        }
        ("bounds_unsorted", Signal::Metrics) => {
            good.metrics()[0] = histogram(|point| point.explicit_bounds.reverse());
        }
        ("count_mismatch", Signal::Metrics) => good.metrics()[0] = histogram(|point| point.count = 7),
        ("exponential_histogram", Signal::Metrics) => good.metrics()[0] = exponential(3),
        ("scale_out_of_range", Signal::Metrics) => good.metrics()[0] = exponential(1_000_000_000),
        ("scale_far_negative", Signal::Metrics) => good.metrics()[0] = exponential(-1_000_000_000),
        ("offset_overflow", Signal::Metrics) => {
            good.metrics()[0] = exponential(3);
            good.buckets().offset = i32::MAX;
        }
        ("exponential_count_mismatch", Signal::Metrics) => {
            good.metrics()[0] = exponential(3);
            good.buckets().bucket_counts.push(1);
        }
        ("exponential_count_overflow", Signal::Metrics) => {
            good.metrics()[0] = exponential(3);
            good.buckets().bucket_counts = vec![u64::MAX, 3];
        }
        ("bounds_nan", Signal::Metrics) => {
            good.metrics()[0] = histogram(|point| point.explicit_bounds[1] = f64::NAN);
            if json_only {
                // The reference serialiser writes what is no number as null.
                return Some(good.json().to_string().replace("[1.0,null]", r#"[1.0,"NaN"]"#).into_bytes());
            }
        }
        ("delta_and_cumulative", Signal::Metrics) => {
            good.metrics()[0] = histogram(|_| {});
            let mut delta = good.metrics()[0].clone();
            if let Some(Data::Histogram(histogram)) = &mut delta.data {
                histogram.aggregation_temporality = 1;
            }
            good.metrics().push(delta);
        }
        ("point_without_value", Signal::Metrics) => good.points()[0].value = None,
        ("sum_without_temporality", Signal::Metrics) => {
            let points = std::mem::take(good.points());
            good.metrics()[0] = metric(Data::Sum(Sum { data_points: points, ..Sum::default() }));
        }
        ("histogram_without_temporality", Signal::Metrics) => {
            good.metrics()[0] = histogram(|_| {});
            let Some(Data::Histogram(histogram)) = &mut good.metrics()[0].data else {
                return None;
            };
            histogram.aggregation_temporality = 0;
        }
        ("metric_without_name", Signal::Metrics) => good.metrics()[0].name.clear(),
        ("special_doubles", Signal::Metrics) if encoding == Encoding::Protobuf => {
            let doubles = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE / 2.0];
            *good.points() = doubles.map(|double| number_point(number_data_point::Value::AsDouble(double))).to_vec();
        }

        // Profiles.
        ("profile_reference", Signal::Profiles) => good.profiles()[0].samples[0].stack_index = 99,
        _ => return None,
    }
    Some(good.encode(encoding))
}
