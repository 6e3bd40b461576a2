//! Spans that are easy to write down, and the derived tables as a full scan over them: the oracle of
//! the tests, which shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampNanosecondArray, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int16Type, Int32Type, Int64Type, TimestampNanosecondType};
use model::attributes::AttributesColumn;
use model::columns::{DictionaryColumn, FixedColumn};
use model::context::{ContextKind, encode};
use model::derived::{BUCKET_NS, DerivedTable};
use model::durations::bucket;
use model::schema::{link_fields, schema};
use model::signal::Table;
use model::value::Value;
use model::wire::put_bytes;
use proptest::prelude::*;

use crate::testing::EPOCH;

/// A span as a test writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestSpan {
    pub(crate) trace: u8,
    pub(crate) span: u8,
    pub(crate) parent: Option<u8>,
    pub(crate) service: &'static str,
    pub(crate) environment: Option<&'static str>,
    pub(crate) version: Option<&'static str>,
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) status: &'static str,
    pub(crate) start: i64,
    pub(crate) duration: Option<i64>,
    pub(crate) attributes: Vec<(&'static str, &'static str)>,
    /// Trace and span each.
    pub(crate) links: Vec<(u8, u8)>,
}

/// A span of a service, everything else as usual.
pub(crate) fn span(
    (trace, span): (u8, u8),
    parent: Option<u8>,
    service: &'static str,
    kind: &'static str,
    attributes: &[(&'static str, &'static str)],
) -> TestSpan {
    TestSpan {
        trace,
        span,
        parent,
        service,
        environment: None,
        version: None,
        name: "op",
        kind,
        status: "UNSET",
        start: EPOCH,
        duration: Some(1000),
        attributes: attributes.to_vec(),
        links: Vec::new(),
    }
}

fn trace_id(number: u8) -> [u8; 16] {
    let mut id = [7; 16];
    id[15] = number;
    id
}

fn span_id(number: u8) -> [u8; 8] {
    [0, 0, 0, 0, 0, 0, 1, number]
}

fn resource(span: &TestSpan) -> Vec<u8> {
    let mut message = Vec::new();
    for (key, text) in [
        ("service.name", Some(span.service)),
        ("deployment.environment.name", span.environment),
        ("service.version", span.version),
    ] {
        let Some(text) = text else { continue };
        let (mut value, mut entry) = (Vec::new(), Vec::new());
        put_bytes(&mut value, 1, text.as_bytes());
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &value);
        put_bytes(&mut message, 1, &entry);
    }
    encode(ContextKind::Resource, &message, "")
}

/// Spans as a batch of `spans`.
pub(crate) fn batch(spans: &[TestSpan]) -> RecordBatch {
    let rows = spans.len();
    let texts = |of: &dyn Fn(&TestSpan) -> &str| {
        let mut column = DictionaryColumn::default();
        spans.iter().for_each(|span| column.push(of(span).as_bytes()));
        column.finish_utf8()
    };
    let (mut traces, mut ids, mut parents) =
        (FixedColumn::<16>::default(), FixedColumn::<8>::default(), FixedColumn::<8>::default());
    let (mut attributes, mut resources) = (AttributesColumn::default(), DictionaryColumn::default());
    for span in spans {
        traces.push(Some(&trace_id(span.trace)));
        ids.push(Some(&span_id(span.span)));
        parents.push(span.parent.map(span_id).as_ref());
        for (key, value) in &span.attributes {
            attributes.push(key, Some(Value::String(value))).unwrap();
        }
        attributes.end_row();
        resources.push(&resource(span));
    }
    let schema = schema(Table::Spans);
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "trace_id" => traces.finish(),
            "span_id" => ids.finish(),
            "parent_span_id" => parents.finish(),
            "service_name" => texts(&|span| span.service),
            "name" => texts(&|span| span.name),
            "kind" => texts(&|span| span.kind),
            "status_code" => texts(&|span| span.status),
            "start_time" => Arc::new(
                TimestampNanosecondArray::from_iter_values(spans.iter().map(|span| span.start)).with_timezone("UTC"),
            ),
            "duration_ns" => Arc::new(spans.iter().map(|span| span.duration).collect::<Int64Array>()),
            "attributes" => attributes.finish(),
            "resource" => resources.finish_binary(),
            "links" => links(spans),
            "events" => empty_list(field.data_type(), rows),
            "scope" => {
                let mut scopes = DictionaryColumn::default();
                spans.iter().for_each(|_| scopes.push(&encode(ContextKind::Scope, &[], "")));
                scopes.finish_binary()
            }
            _ if field.data_type() == &DataType::Utf8 => Arc::new(StringArray::from(vec![""; rows])),
            _ => Arc::new(UInt32Array::from(vec![0; rows])),
        }
    });
    let columns = columns.collect();
    RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
}

fn item_of(list: &DataType) -> Arc<arrow::datatypes::Field> {
    match list {
        DataType::List(item) => Arc::clone(item),
        other => panic!("{other} is no list"),
    }
}

fn empty_list(list: &DataType, rows: usize) -> ArrayRef {
    let item = item_of(list);
    let items = arrow::array::new_empty_array(item.data_type());
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(vec![0; rows]), items, None))
}

fn links(spans: &[TestSpan]) -> ArrayRef {
    let (mut traces, mut ids, mut attributes) =
        (FixedColumn::<16>::default(), FixedColumn::<8>::default(), AttributesColumn::default());
    let mut count = 0;
    for (trace, span) in spans.iter().flat_map(|span| &span.links) {
        traces.push(Some(&trace_id(*trace)));
        ids.push(Some(&span_id(*span)));
        attributes.end_row();
        count += 1;
    }
    let zeros = || Arc::new(UInt32Array::from(vec![0; count])) as ArrayRef;
    let columns = vec![
        traces.finish(),
        ids.finish(),
        Arc::new(StringArray::from(vec![""; count])),
        attributes.finish(),
        zeros(),
        zeros(),
    ];
    let items = StructArray::new(link_fields(), columns, None);
    let list = schema(Table::Spans).field_with_name("links").unwrap().data_type().clone();
    let ends = OffsetBuffer::from_lengths(spans.iter().map(|span| span.links.len()));
    Arc::new(ListArray::new(item_of(&list), ends, Arc::new(items), None))
}

/// The key columns of a row as text, `time` in intervals of ten seconds.
type Key = Vec<String>;

/// Sums by name; of a histogram, counts by bucket, as `name:bucket`; an extreme as itself; an
/// exemplar as the number of its trace.
type Row = BTreeMap<String, i64>;

/// A derived table as a map.
pub(crate) type Derived = BTreeMap<Key, Row>;

fn add(row: &mut Row, name: &str, number: i64) {
    let sum = row.entry(name.to_owned()).or_default();
    *sum = sum.wrapping_add(number);
}

fn add_duration(row: &mut Row, name: &str, duration: Option<i64>) {
    add(row, &format!("{name}_sum_ns"), duration.unwrap_or_default());
    if let Some(nanos) = duration {
        add(row, &format!("{name}:{}", bucket(nanos)), 1);
    }
}

fn time(start: i64) -> String {
    start.div_euclid(BUCKET_NS).to_string()
}

fn text(optional: Option<&str>) -> String {
    optional.map_or_else(|| "-".to_owned(), str::to_owned)
}

/// Keeps the greatest of a name, and the least trace among those that had it.
fn offer(row: &mut Row, greatest: &str, trace_name: &str, duration: Option<i64>, trace: u8) {
    let Some(nanos) = duration else { return };
    let trace = i64::from(trace);
    match row.get(greatest).copied() {
        Some(known) if known > nanos => return,
        Some(known) if known == nanos && row[trace_name] <= trace => return,
        _ => {}
    }
    row.insert(greatest.to_owned(), nanos);
    row.insert(trace_name.to_owned(), trace);
}

fn offer_both(row: &mut Row, span: &TestSpan) {
    offer(row, "duration_max_ns", "slowest_trace_id", span.duration, span.trace);
    if span.status == "ERROR" {
        offer(row, "error_max_ns", "error_trace_id", span.duration, span.trace);
    }
}

/// `span_metrics` of all spans.
pub(crate) fn scan_metrics(spans: &[TestSpan]) -> Derived {
    let mut rows = Derived::new();
    for span in spans {
        let key = vec![
            span.kind.to_owned(),
            span.service.to_owned(),
            span.name.to_owned(),
            span.status.to_owned(),
            text(span.environment),
            text(span.version),
            time(span.start),
        ];
        let row = rows.entry(key).or_default();
        add(row, "count", 1);
        add(row, "errors", i64::from(span.status == "ERROR"));
        add_duration(row, "duration", span.duration);
        if let Some(nanos) = span.duration {
            row.entry("duration_min_ns".to_owned()).and_modify(|min| *min = nanos.min(*min)).or_insert(nanos);
        }
        offer_both(row, span);
    }
    rows
}

fn attribute(span: &TestSpan, keys: &[&str]) -> Option<&'static str> {
    keys.iter().find_map(|key| span.attributes.iter().rev().find(|(other, _)| other == key).map(|(_, value)| *value))
}

fn connection(span: &TestSpan) -> &'static str {
    let has = |keys: &[&str]| attribute(span, keys).is_some();
    if matches!(span.kind, "PRODUCER" | "CONSUMER") || has(&["messaging.system"]) {
        "messaging"
    } else if has(&["db.system.name"]) {
        "db"
    } else if has(&["rpc.system"]) {
        "rpc"
    } else if has(&["http.request.method"]) {
        "http"
    } else {
        "other"
    }
}

fn peer(span: &TestSpan) -> Option<String> {
    let within = |system: &str, part: Option<&str>| part.map_or(system.to_owned(), |part| format!("{system}/{part}"));
    attribute(span, &["peer.service"])
        .map(str::to_owned)
        .or_else(|| {
            attribute(span, &["messaging.system"])
                .map(|system| within(system, attribute(span, &["messaging.destination.name"])))
        })
        .or_else(|| {
            attribute(span, &["db.system.name"]).map(|system| within(system, attribute(span, &["db.namespace"])))
        })
        .or_else(|| attribute(span, &["server.address"]).map(str::to_owned))
}

/// `service_edges` of all spans: every callee joined with every caller.
pub(crate) fn scan_edges(spans: &[TestSpan]) -> Derived {
    let mut rows = Derived::new();
    let mut called: BTreeSet<(u8, u8)> = BTreeSet::new();
    for callee in spans.iter().filter(|span| matches!(span.kind, "SERVER" | "CONSUMER")) {
        let parent = callee.parent.map(|parent| (callee.trace, parent));
        let links = callee.links.iter().copied().filter(|link| callee.kind == "CONSUMER" && Some(*link) != parent);
        for reference in parent.into_iter().chain(links) {
            called.insert(reference);
            let Some(caller) = spans.iter().find(|span| (span.trace, span.span) == reference) else { continue };
            if caller.service == callee.service {
                continue;
            }
            let calls = matches!(caller.kind, "CLIENT" | "PRODUCER");
            let carried = match connection(callee) {
                "other" if calls => connection(caller),
                carried => carried,
            };
            let key = vec![
                caller.service.to_owned(),
                callee.service.to_owned(),
                carried.to_owned(),
                "false".to_owned(),
                text(callee.environment),
                time(callee.start),
            ];
            let row = rows.entry(key).or_default();
            add(row, "count", 1);
            add(row, "errors", i64::from(callee.status == "ERROR"));
            add(row, "client_errors", i64::from(calls && caller.status == "ERROR"));
            add_duration(row, "duration", callee.duration);
            add_duration(row, "client_duration", caller.duration.filter(|_| calls));
            offer_both(row, callee);
        }
    }
    for caller in spans.iter().filter(|span| matches!(span.kind, "CLIENT" | "PRODUCER")) {
        let Some(peer) = peer(caller).filter(|_| !called.contains(&(caller.trace, caller.span))) else { continue };
        let key = vec![
            caller.service.to_owned(),
            peer,
            connection(caller).to_owned(),
            "true".to_owned(),
            text(caller.environment),
            time(caller.start),
        ];
        let row = rows.entry(key).or_default();
        add(row, "count", 1);
        add(row, "errors", i64::from(caller.status == "ERROR"));
        add(row, "client_errors", i64::from(caller.status == "ERROR"));
        add_duration(row, "duration", caller.duration);
        add_duration(row, "client_duration", caller.duration);
        offer_both(row, caller);
    }
    rows
}

/// Adds up the partial rows of one resolution that are in some batches.
pub(crate) fn collect<'a>(
    table: DerivedTable,
    batches: impl IntoIterator<Item = &'a RecordBatch>,
    resolution: i32,
) -> Derived {
    let mut rows = Derived::new();
    for batch in batches {
        assert_eq!(batch.schema().fields(), model::derived::schema(table).fields());
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let numbers = |name: &str| column(name).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            if column("resolution").as_primitive::<Int32Type>().value(row) != resolution {
                continue;
            }
            let key = table.keys()[1..].iter().map(|key| match *key {
                "time" => {
                    let start = column(key).as_primitive::<TimestampNanosecondType>().value(row);
                    assert_eq!(start % (i64::from(resolution) * 1_000_000_000), 0);
                    time(start)
                }
                "server_inferred" => column(key).as_boolean().value(row).to_string(),
                _ => {
                    let texts = cast(column(key), &DataType::Utf8).unwrap();
                    let texts = texts.as_string::<i32>();
                    text(texts.is_valid(row).then(|| texts.value(row)))
                }
            });
            let into = rows.entry(key.collect()).or_default();
            let names: &[&str] = match table {
                DerivedTable::SpanMetrics => &["count", "errors", "duration_sum_ns"],
                DerivedTable::ServiceEdges => {
                    &["count", "errors", "client_errors", "duration_sum_ns", "client_duration_sum_ns"]
                }
            };
            names.iter().for_each(|name| add(into, name, numbers(name).value(row)));
            let histograms: &[&str] = match table {
                DerivedTable::SpanMetrics => &["duration"],
                DerivedTable::ServiceEdges => &["duration", "client_duration"],
            };
            for name in histograms {
                let buckets = column(&format!("{name}_buckets")).as_list::<i32>().value(row);
                let counts = column(&format!("{name}_counts")).as_list::<i32>().value(row);
                let buckets = buckets.as_primitive::<Int16Type>().values();
                assert!(buckets.is_sorted_by(|left, right| left < right));
                for (bucket, count) in buckets.iter().zip(counts.as_primitive::<Int64Type>().values()) {
                    assert_ne!(*count, 0);
                    add(into, &format!("{name}:{bucket}"), *count);
                }
            }
            if table == DerivedTable::SpanMetrics && numbers("duration_min_ns").is_valid(row) {
                let nanos = numbers("duration_min_ns").value(row);
                into.entry("duration_min_ns".to_owned()).and_modify(|min| *min = nanos.min(*min)).or_insert(nanos);
            }
            for (greatest, trace) in [("duration_max_ns", "slowest_trace_id"), ("error_max_ns", "error_trace_id")] {
                let ids: &FixedSizeBinaryArray = column(trace).as_fixed_size_binary();
                if numbers(greatest).is_valid(row) && ids.is_valid(row) {
                    offer(into, greatest, trace, Some(numbers(greatest).value(row)), ids.value(row)[15]);
                }
            }
        }
    }
    // What was taken back whole is not there, and a bucket that came to nothing neither.
    for row in rows.values_mut() {
        row.retain(|name, number| !name.contains(':') || *number != 0);
    }
    rows.retain(|_, row| row["count"] != 0);
    rows
}

/// A table without what a call that was taken back may leave behind: its exemplars.
pub(crate) fn without_exemplars(mut table: Derived) -> Derived {
    for row in table.values_mut() {
        row.retain(|name, _| !name.ends_with("_trace_id") && !name.ends_with("_max_ns"));
    }
    table
}

/// Random spans: each id has one span, which may have been sent several times; parents may be in
/// another service, missing, or come later; consumers link to other traces.
pub(crate) fn random_spans(count_max: usize) -> impl Strategy<Value = Vec<TestSpan>> {
    let one = (
        (0_u8..4, prop::option::weighted(0.8, 0_u8..12)),
        (0_usize..4, 0_usize..2, 0_usize..3, 0_usize..2, 0_usize..5),
        (-40_i64..40, prop::option::weighted(0.9, 0_i64..8)),
        (0_usize..7, prop::bool::weighted(0.2), prop::collection::vec((0_u8..4, 0_u8..12), 0..3)),
    );
    let spans = prop::collection::vec(one, 1..=count_max).prop_map(|spans| {
        let spans = spans.into_iter().enumerate().map(|(number, (place, names, times, rest))| {
            let (trace, parent) = place;
            let (service, environment, version, name, kind) = names;
            let (start, duration) = times;
            let (attributes, error, links) = rest;
            const ATTRIBUTES: [&[(&str, &str)]; 7] = [
                &[],
                &[("server.address", "10.0.0.1"), ("http.request.method", "GET")],
                &[("rpc.system", "grpc"), ("peer.service", "cart"), ("server.address", "x")],
                &[("db.system.name", "postgresql"), ("db.namespace", "orders")],
                &[("db.system.name", "redis"), ("server.address", "cache")],
                &[("messaging.system", "kafka"), ("messaging.destination.name", "orders")],
                &[("server.address", "old"), ("server.address", "new")],
            ];
            TestSpan {
                trace,
                // Twelve spans a trace, some of whose numbers nobody has.
                span: (number % 12) as u8,
                parent,
                service: ["web", "cart", "pay", "stock"][service],
                environment: [None, Some("prod")][environment],
                version: [None, Some("1"), Some("2")][version],
                name: ["GET /", "query"][name],
                kind: ["SERVER", "CLIENT", "INTERNAL", "PRODUCER", "CONSUMER"][kind],
                status: if error { "ERROR" } else { "UNSET" },
                // Over more than an hour, so that every resolution has several rows.
                start: EPOCH + start * 97_000_000_000,
                duration: duration.map(|power| 37_i64.pow(power as u32) - 37),
                attributes: ATTRIBUTES[attributes].to_vec(),
                links: if kind == 4 { links } else { Vec::new() },
            }
        });
        // One span an id: the first one stands.
        let mut ids = BTreeSet::new();
        spans.filter(|span| ids.insert((span.trace, span.span))).collect::<Vec<_>>()
    });
    let copies = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    (spans, copies)
        .prop_map(|(mut spans, copies)| {
            let copied: Vec<TestSpan> = copies.iter().map(|copy| copy.get(&spans).clone()).collect();
            spans.extend(copied);
            spans
        })
        .prop_shuffle()
}
