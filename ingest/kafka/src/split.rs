//! A request taken apart: by key, so that what belongs together is in one partition, and by size, so that every part fits a
//! message.
//!
//! A pure function on protobuf bytes. Items are copied as they are, each with its resource and scope, so the parts
//! together mean what the whole did; only resources, scopes and metrics without any item are left out. A request that
//! needs no taking apart is not touched. Not here: JSON, and what becomes of a part.
//!
//! Profiles cannot be taken apart, since all of a request point into one dictionary.

use std::collections::HashMap;

use bytes::Bytes;
use model::limits::ITEMS_PER_REQUEST_MAX;
use model::signal::Signal;
use model::wire::{Field, Reader, WireError, put_bytes};
use xxhash_rust::xxh3::xxh3_128;

use crate::config::Key;

/// The field number of what a request holds (`resource_spans` and so on).
const ENVELOPES: u32 = 1;

/// The field number of the resource in those.
const RESOURCE: u32 = 1;

/// The field number of a span's trace id.
const TRACE_ID: u32 = 1;

/// A nested message has a key of one byte, since its field's number is below 16, and a length of five at most.
const HEADER_BYTES: usize = 6;

/// How deep items can be: request → resource → scope → metric → data.
const DEPTH_MAX: usize = 5;

/// Which fields of each level hold the next one. The last level's hold the items.
type Levels = &'static [&'static [u32]];

/// Spans and log records.
const FLAT: Levels = &[&[ENVELOPES], &[2], &[2]];

/// Points: a metric's are in one of `gauge`, `sum`, `histogram`, `exponential_histogram` and `summary`.
const POINTS: Levels = &[&[ENVELOPES], &[2], &[2], &[5, 7, 9, 10, 11], &[1]];

/// One message's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What decides the partition: a trace id or the hash of a resource, in hexadecimal.
    pub key: Option<String>,
    /// The protobuf bytes.
    pub body: Bytes,
}

/// A request's parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// In the order in which their first items came.
    pub parts: Vec<Part>,
    /// Items that are larger than a message may be, with their resource and scope alone.
    pub too_large: u64,
}

/// Why a request has no parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// It is not the signal's message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Profiles that do not fit one message.
    #[error("profiles cannot be taken apart: they share a dictionary")]
    Profiles,
}

/// Takes a request apart into payloads of at most `bytes_max`.
///
/// # Errors
/// [`SplitError`]; nothing of the request may be sent then.
pub fn split(signal: Signal, body: &Bytes, key: Key, bytes_max: usize) -> Result<Split, SplitError> {
    let fits = body.len() <= bytes_max;
    if signal == Signal::Profiles {
        let key = if key == Key::None { None } else { only(first_resources(body, 1)?) };
        return if fits { Ok(whole(body, key)) } else { Err(SplitError::Profiles) };
    }
    let by_trace = key == Key::Trace && signal == Signal::Traces;
    if fits && key == Key::None {
        return Ok(whole(body, None));
    }
    if fits && !by_trace {
        let resources = first_resources(body, 2)?;
        if resources.len() <= 1 {
            return Ok(whole(body, only(resources)));
        }
    }
    let levels = if signal == Signal::Metrics { POINTS } else { FLAT };
    let mut tree =
        Tree { levels, key, by_trace, resource: None, nodes: Vec::new(), keys: Keys::default(), items: Vec::new() };
    tree.walk(body, 0, &mut [0; DEPTH_MAX])?;
    Ok(tree.parts(body, fits, bytes_max))
}

fn whole(body: &Bytes, key: Option<String>) -> Split {
    // An empty request has nothing that anybody would read.
    let parts = if body.is_empty() { Vec::new() } else { vec![Part { key, body: body.clone() }] };
    Split { parts, too_large: 0 }
}

fn only(resources: Vec<u128>) -> Option<String> {
    resources.first().map(|hash| hex::encode(hash.to_be_bytes()))
}

/// The hashes of a request's different resources, until there are `enough`.
fn first_resources(body: &[u8], enough: usize) -> Result<Vec<u128>, WireError> {
    let mut found: Vec<u128> = Vec::new();
    let mut reader = Reader::new(body);
    while let Some((number, field)) = reader.next()? {
        if number == ENVELOPES {
            let hash = resource_of(field.bytes(number)?)?;
            if !found.contains(&hash) {
                found.push(hash);
                if found.len() >= enough {
                    break;
                }
            }
        }
    }
    Ok(found)
}

/// The hash of the resource of what a request holds.
fn resource_of(envelope: &[u8]) -> Result<u128, WireError> {
    let mut reader = Reader::new(envelope);
    let mut resource: &[u8] = &[];
    while let Some((number, field)) = reader.next()? {
        if number == RESOURCE {
            resource = field.bytes(number)?;
        }
    }
    Ok(xxh3_128(resource))
}

/// A resource, scope, metric or its data: everything of it but what it holds.
struct Node {
    field: u32,
    envelope: Vec<u8>,
}

/// One item, where it is, and with whom it goes.
struct Item<'a> {
    /// The nodes above it, outermost first.
    path: [u32; DEPTH_MAX],
    field: u32,
    bytes: &'a [u8],
    key: u32,
}

/// Keys in the order in which they came.
#[derive(Default)]
struct Keys {
    numbers: HashMap<[u8; 16], u32>,
    names: Vec<Option<String>>,
}

impl Keys {
    fn number(&mut self, key: Option<[u8; 16]>) -> u32 {
        // What has no key is by itself: no id is all zero.
        let names = &mut self.names;
        *self.numbers.entry(key.unwrap_or_default()).or_insert_with(|| {
            names.push(key.map(hex::encode));
            u32::try_from(names.len() - 1).expect("there are fewer keys than items")
        })
    }
}

struct Tree<'a> {
    levels: Levels,
    key: Key,
    by_trace: bool,
    /// The key of the resource that is being walked.
    resource: Option<[u8; 16]>,
    nodes: Vec<Node>,
    keys: Keys,
    items: Vec<Item<'a>>,
}

impl<'a> Tree<'a> {
    /// Adds the items of a message at a level, whose own nodes are `path[..level]`.
    fn walk(&mut self, message: &'a [u8], level: usize, path: &mut [u32; DEPTH_MAX]) -> Result<(), WireError> {
        let children = self.levels[level];
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            if !children.contains(&number) {
                continue;
            }
            let bytes = field.bytes(number)?;
            if level + 1 == self.levels.len() {
                // What is past the limit was refused already.
                if self.items.len() < ITEMS_PER_REQUEST_MAX {
                    let key = if self.by_trace { trace_of(bytes)? } else { self.resource };
                    let key = self.keys.number(key);
                    self.items.push(Item { path: *path, field: number, bytes, key });
                }
                continue;
            }
            let (nodes, items) = (self.nodes.len(), self.items.len());
            path[level] = u32::try_from(nodes).expect("there are fewer nodes than items");
            let envelope = envelope_of(bytes, self.levels[level + 1])?;
            if level == 0 && self.key != Key::None {
                self.resource = Some(resource_of(&envelope)?.to_be_bytes());
            }
            self.nodes.push(Node { field: number, envelope });
            self.walk(bytes, level + 1, path)?;
            if self.items.len() == items {
                self.nodes.truncate(nodes);
            }
        }
        Ok(())
    }

    fn parts(self, body: &Bytes, fits: bool, bytes_max: usize) -> Split {
        if fits && self.keys.names.len() <= 1 {
            return whole(body, self.keys.names.into_iter().next().flatten());
        }
        let mut of_key: Vec<Vec<&Item<'a>>> = self.keys.names.iter().map(|_| Vec::new()).collect();
        for item in &self.items {
            of_key[item.key as usize].push(item);
        }
        let mut split = Split::default();
        for (key, items) in self.keys.names.iter().zip(of_key) {
            let mut rest: &[&Item<'a>] = &items;
            while !rest.is_empty() {
                let count = self.fitting(rest, bytes_max);
                if count == 0 {
                    split.too_large += 1;
                    rest = &rest[1..];
                    continue;
                }
                let mut part = Vec::new();
                self.write(&rest[..count], 0, &mut part);
                split.parts.push(Part { key: key.clone(), body: part.into() });
                rest = &rest[count..];
            }
        }
        split
    }

    /// How many items, from the first on, fit one message.
    fn fitting(&self, items: &[&Item<'a>], bytes_max: usize) -> usize {
        let depth = self.levels.len() - 1;
        let mut bytes = 0;
        let mut open: Option<&[u32]> = None;
        for (count, item) in items.iter().enumerate() {
            let path = &item.path[..depth];
            let shared = open.map_or(0, |open| open.iter().zip(path).take_while(|(a, b)| a == b).count());
            let opened = path[shared..].iter().map(|node| HEADER_BYTES + self.nodes[*node as usize].envelope.len());
            bytes += opened.sum::<usize>() + HEADER_BYTES + item.bytes.len();
            if bytes > bytes_max {
                return count;
            }
            open = Some(path);
        }
        items.len()
    }

    /// Writes items below their nodes from a level on.
    fn write(&self, items: &[&Item<'a>], level: usize, out: &mut Vec<u8>) {
        if level + 1 == self.levels.len() {
            items.iter().for_each(|item| put_bytes(out, item.field, item.bytes));
            return;
        }
        for below in items.chunk_by(|a, b| a.path[level] == b.path[level]) {
            let node = &self.nodes[below[0].path[level] as usize];
            let mut message = node.envelope.clone();
            self.write(below, level + 1, &mut message);
            put_bytes(out, node.field, &message);
        }
    }
}

/// The bytes of a message without what it holds.
fn envelope_of(message: &[u8], children: &[u32]) -> Result<Vec<u8>, WireError> {
    let mut envelope = Vec::new();
    let mut reader = Reader::new(message);
    loop {
        let before = reader.rest();
        let Some((number, _)) = reader.next()? else { return Ok(envelope) };
        if !children.contains(&number) {
            envelope.extend_from_slice(&before[..before.len() - reader.rest().len()]);
        }
    }
}

/// The trace id of a span, if it is one.
fn trace_of(span: &[u8]) -> Result<Option<[u8; 16]>, WireError> {
    let mut reader = Reader::new(span);
    let mut trace = None;
    while let Some((number, field)) = reader.next()? {
        if number == TRACE_ID
            && let Field::Bytes(bytes) = field
        {
            trace = bytes.try_into().ok();
        }
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fixtures::batches;
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use opentelemetry_proto::tonic::metrics::v1::{
        Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric,
    };
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn resource(name: &str) -> Option<Resource> {
        let value = Some(AnyValue { value: Some(Value::StringValue(name.to_owned())) });
        let attribute = KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() };
        Some(Resource { attributes: vec![attribute], ..Resource::default() })
    }

    /// What each request is made of: per resource and scope, the trace and the size of every item.
    type Shape = Vec<(u8, Vec<Vec<(u8, usize)>>)>;

    fn shape() -> impl Strategy<Value = Shape> {
        let items = prop::collection::vec((0..5_u8, 0..300_usize), 0..6);
        prop::collection::vec((0..3_u8, prop::collection::vec(items, 0..4)), 0..5)
    }

    fn spans(shape: &Shape) -> ExportTraceServiceRequest {
        let scope = |items: &Vec<(u8, usize)>| ScopeSpans {
            spans: items
                .iter()
                .map(|(trace, size)| Span { trace_id: vec![*trace; 16], name: "x".repeat(*size), ..Span::default() })
                .collect(),
            schema_url: "scope".to_owned(),
            ..ScopeSpans::default()
        };
        let resource_spans = |(name, scopes): &(u8, Vec<_>)| ResourceSpans {
            resource: resource(&name.to_string()),
            scope_spans: scopes.iter().map(scope).collect(),
            schema_url: "resource".to_owned(),
        };
        ExportTraceServiceRequest { resource_spans: shape.iter().map(resource_spans).collect() }
    }

    fn points(shape: &Shape) -> ExportMetricsServiceRequest {
        let metric = |items: &Vec<(u8, usize)>| Metric {
            name: "m".to_owned(),
            data: Some(metric::Data::Gauge(Gauge {
                data_points: items
                    .iter()
                    .map(|(_, size)| NumberDataPoint {
                        time_unix_nano: *size as u64,
                        attributes: vec![KeyValue { key: "k".repeat(*size), ..KeyValue::default() }],
                        ..NumberDataPoint::default()
                    })
                    .collect(),
            })),
            ..Metric::default()
        };
        let of = |(name, metrics): &(u8, Vec<_>)| ResourceMetrics {
            resource: resource(&name.to_string()),
            scope_metrics: vec![ScopeMetrics {
                metrics: metrics.iter().map(metric).collect(),
                ..ScopeMetrics::default()
            }],
            schema_url: String::new(),
        };
        ExportMetricsServiceRequest { resource_metrics: shape.iter().map(of).collect() }
    }

    /// Every span with all that is around it, counted.
    fn span_items(request: &ExportTraceServiceRequest, items: &mut BTreeMap<Vec<u8>, usize>) {
        for envelope in &request.resource_spans {
            for scope in &envelope.scope_spans {
                for span in &scope.spans {
                    let alone = ResourceSpans {
                        scope_spans: vec![ScopeSpans { spans: vec![span.clone()], ..scope.clone() }],
                        ..envelope.clone()
                    };
                    *items.entry(alone.encode_to_vec()).or_default() += 1;
                }
            }
        }
    }

    /// The same of points.
    fn point_items(request: &ExportMetricsServiceRequest, items: &mut BTreeMap<Vec<u8>, usize>) {
        for envelope in &request.resource_metrics {
            for metric in envelope.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
                let Some(metric::Data::Gauge(gauge)) = &metric.data else { continue };
                for point in &gauge.data_points {
                    let mut item = envelope.resource.clone().unwrap_or_default().encode_to_vec();
                    item.extend(metric.name.bytes().chain(point.encode_to_vec()));
                    *items.entry(item).or_default() += 1;
                }
            }
        }
    }

    fn total(items: &BTreeMap<Vec<u8>, usize>) -> u64 {
        items.values().sum::<usize>() as u64
    }

    proptest! {
        #[test]
        fn parts_hold_every_item_once_with_its_context_and_fit(shape in shape(), key in 0..3_usize, bytes_max in 60..900_usize) {
            let (_, key) = Key::ALL[key];
            let request = spans(&shape);
            let body = Bytes::from(request.encode_to_vec());
            let Split { parts, too_large } = split(Signal::Traces, &body, key, bytes_max).unwrap();
            let (mut want, mut found) = (BTreeMap::new(), BTreeMap::new());
            span_items(&request, &mut want);
            let mut of_trace: BTreeMap<Vec<u8>, Option<String>> = BTreeMap::new();
            for part in &parts {
                prop_assert!(part.body.len() <= bytes_max && !part.body.is_empty());
                prop_assert!(part.key.is_some() == (key != Key::None) || total(&want) == 0);
                let part_request = ExportTraceServiceRequest::decode(&*part.body).unwrap();
                span_items(&part_request, &mut found);
                for envelope in &part_request.resource_spans {
                    for span in envelope.scope_spans.iter().flat_map(|scope| &scope.spans) {
                        let together = match key {
                            Key::None => continue,
                            Key::Trace => span.trace_id.clone(),
                            Key::Resource => envelope.resource.clone().unwrap_or_default().encode_to_vec(),
                        };
                        let known = of_trace.entry(together).or_insert_with(|| part.key.clone());
                        prop_assert_eq!(&*known, &part.key, "what belongs together has one key");
                    }
                }
            }
            prop_assert_eq!(total(&found) + too_large, total(&want));
            prop_assert!(found.iter().all(|(item, count)| want.get(item).is_some_and(|wanted| wanted >= count)));
            // Nothing is called too large that would fit alone.
            let alone_max = want.keys().map(|item| item.len() + 4 * HEADER_BYTES).max().unwrap_or(0);
            prop_assert!(too_large == 0 || alone_max > bytes_max);

            let request = points(&shape);
            let body = Bytes::from(request.encode_to_vec());
            let Split { parts, too_large } = split(Signal::Metrics, &body, key, bytes_max).unwrap();
            let (mut want, mut found) = (BTreeMap::new(), BTreeMap::new());
            point_items(&request, &mut want);
            for part in &parts {
                prop_assert!(part.body.len() <= bytes_max);
                point_items(&ExportMetricsServiceRequest::decode(&*part.body).unwrap(), &mut found);
            }
            prop_assert_eq!(total(&found) + too_large, total(&want));
            prop_assert!(found.iter().all(|(item, count)| want.get(item).is_some_and(|wanted| wanted >= count)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), bytes_max in 1..100_usize) {
            for signal in Signal::ALL {
                for (_, key) in Key::ALL {
                    drop(split(signal, &Bytes::from(bytes.clone()), key, bytes_max));
                }
            }
        }
    }

    #[test]
    fn what_needs_no_taking_apart_is_not_touched() {
        let one = batches::spans_s(1, 1, 1_795_255_200_000_000_000).remove(0);
        let body = one.body;
        let untouched = split(Signal::Traces, &body, Key::None, 1 << 20).unwrap();
        assert_eq!(untouched.parts, [Part { key: None, body: body.clone() }]);
        assert_eq!(untouched.parts[0].body.as_ptr(), body.as_ptr());

        let log = |name: &str| ResourceLogs {
            resource: resource(name),
            scope_logs: vec![ScopeLogs { log_records: vec![LogRecord::default()], ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        };
        let logs = |names: &[&str]| {
            let request = ExportLogsServiceRequest { resource_logs: names.iter().map(|name| log(name)).collect() };
            Bytes::from(request.encode_to_vec())
        };
        for (names, parts) in [(&["a"][..], 1), (&["a", "a"], 1), (&["a", "b"], 2), (&["a", "b", "a"], 2), (&[], 0)] {
            let found = split(Signal::Logs, &logs(names), Key::Resource, 1 << 20).unwrap();
            assert_eq!(found.parts.len(), parts, "{names:?}");
        }
        let keys = |names: &[&str]| split(Signal::Logs, &logs(names), Key::Resource, 1 << 20).unwrap().parts;
        assert_eq!(keys(&["a"])[0].key, keys(&["b", "a"])[1].key, "a resource has one key, whatever it comes with");

        let profiles = Bytes::from_static(&[0x0a, 0, 0x12, 0]);
        assert_eq!(split(Signal::Profiles, &profiles, Key::None, 4).unwrap().parts.len(), 1);
        assert_eq!(split(Signal::Profiles, &profiles, Key::None, 3), Err(SplitError::Profiles));
        assert!(matches!(split(Signal::Logs, &Bytes::from_static(b"\xff"), Key::Trace, 9), Err(SplitError::Wire(_))));
    }
}
