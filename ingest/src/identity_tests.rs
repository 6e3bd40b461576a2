//! OTLP → columns → OTLP is the identity, and prost is the oracle of what a valid request is.
//!
//! What is compared: the multiset of items, each in envelopes of its own (see [`crate::encode`]).

use model::signal::{Signal, Table};
use model::time::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics, metric};
use opentelemetry_proto::tonic::profiles::v1development::{ProfilesData, ResourceProfiles, ScopeProfiles};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message;

use crate::decode::{DecodeError, Decoder, OpenGate};
use crate::encode;
use crate::json::testing::{self, Rng};

/// Generated requests per signal; a seed that fails is printed by the assertion.
const SEEDS: u64 = 300;

/// Damaged requests per signal: `GODSEYE_FUZZ_SEEDS`, which `make soak` raises.
fn damage_seeds() -> u64 {
    std::env::var("GODSEYE_FUZZ_SEEDS").map_or(SEEDS * 4, |seeds| seeds.parse().unwrap())
}

fn decode(decoder: &mut Decoder, signal: Signal, body: &[u8]) -> Result<model::ledger::LedgerDelta, DecodeError> {
    decoder.decode(signal, body, Timestamp(1), &mut OpenGate)
}

fn single_spans(resources: &[ResourceSpans]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for resource in resources {
        for scope in &resource.scope_spans {
            for span in &scope.spans {
                let mut span = span.clone();
                span.status.get_or_insert_default();
                let scope = ScopeSpans {
                    scope: Some(scope.scope.clone().unwrap_or_default()),
                    spans: vec![span],
                    schema_url: scope.schema_url.clone(),
                };
                let single = ResourceSpans {
                    resource: Some(resource.resource.clone().unwrap_or_default()),
                    scope_spans: vec![scope],
                    schema_url: resource.schema_url.clone(),
                };
                out.push(single.encode_to_vec());
            }
        }
    }
    out.sort();
    out
}

fn single_logs(resources: &[ResourceLogs]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for resource in resources {
        for scope in &resource.scope_logs {
            for record in &scope.log_records {
                let mut record = record.clone();
                // Invalid ids do not associate the record with a trace (logs.proto).
                record.trace_id.truncate(if record.trace_id.len() == 16 { 16 } else { 0 });
                record.span_id.truncate(if record.span_id.len() == 8 { 8 } else { 0 });
                let scope = ScopeLogs {
                    scope: Some(scope.scope.clone().unwrap_or_default()),
                    log_records: vec![record],
                    schema_url: scope.schema_url.clone(),
                };
                let single = ResourceLogs {
                    resource: Some(resource.resource.clone().unwrap_or_default()),
                    scope_logs: vec![scope],
                    schema_url: resource.schema_url.clone(),
                };
                out.push(single.encode_to_vec());
            }
        }
    }
    out.sort();
    out
}

fn single_points(metric: &Metric) -> Vec<Metric> {
    use metric::Data;
    let datas: Vec<Data> = match metric.data.clone() {
        None => vec![],
        Some(Data::Gauge(data)) => data
            .data_points
            .iter()
            .map(|p| {
                let mut d = data.clone();
                d.data_points = vec![p.clone()];
                Data::Gauge(d)
            })
            .collect(),
        Some(Data::Sum(data)) => data
            .data_points
            .iter()
            .map(|p| {
                let mut d = data.clone();
                d.data_points = vec![p.clone()];
                Data::Sum(d)
            })
            .collect(),
        Some(Data::Histogram(data)) => data
            .data_points
            .iter()
            .map(|p| {
                let mut d = data.clone();
                d.data_points = vec![p.clone()];
                Data::Histogram(d)
            })
            .collect(),
        Some(Data::ExponentialHistogram(data)) => data
            .data_points
            .iter()
            .map(|p| {
                let mut d = data.clone();
                d.data_points = vec![p.clone()];
                Data::ExponentialHistogram(d)
            })
            .collect(),
        Some(Data::Summary(data)) => data
            .data_points
            .iter()
            .map(|p| {
                let mut d = data.clone();
                d.data_points = vec![p.clone()];
                Data::Summary(d)
            })
            .collect(),
    };
    datas.into_iter().map(|data| Metric { data: Some(data), ..metric.clone() }).collect()
}

fn single_metrics(resources: &[ResourceMetrics]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for resource in resources {
        for scope in &resource.scope_metrics {
            for metric in scope.metrics.iter().flat_map(single_points) {
                let scope = ScopeMetrics {
                    scope: Some(scope.scope.clone().unwrap_or_default()),
                    metrics: vec![metric],
                    schema_url: scope.schema_url.clone(),
                };
                let single = ResourceMetrics {
                    resource: Some(resource.resource.clone().unwrap_or_default()),
                    scope_metrics: vec![scope],
                    schema_url: resource.schema_url.clone(),
                };
                out.push(single.encode_to_vec());
            }
        }
    }
    out.sort();
    out
}

fn single_profiles(datas: &[ProfilesData]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for data in datas {
        for resource in &data.resource_profiles {
            for scope in &resource.scope_profiles {
                for profile in &scope.profiles {
                    let scope = ScopeProfiles {
                        scope: Some(scope.scope.clone().unwrap_or_default()),
                        profiles: vec![profile.clone()],
                        schema_url: scope.schema_url.clone(),
                    };
                    let resource = ResourceProfiles {
                        resource: Some(resource.resource.clone().unwrap_or_default()),
                        scope_profiles: vec![scope],
                        schema_url: resource.schema_url.clone(),
                    };
                    let single = ProfilesData {
                        resource_profiles: vec![resource],
                        dictionary: Some(data.dictionary.clone().unwrap_or_default()),
                    };
                    out.push(single.encode_to_vec());
                }
            }
        }
    }
    out.sort();
    out
}

/// The single-item messages of everything a decoder holds.
fn stored(decoder: &mut Decoder) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (table, batch) in decoder.finish() {
        out.extend(match table {
            Table::Spans => single_spans(&encode::spans(&batch)),
            Table::Logs => single_logs(&encode::logs(&batch)),
            Table::MetricPoints | Table::MetricHistograms => single_metrics(&encode::metrics(&batch)),
            Table::Profiles => single_profiles(&encode::profiles(&batch)),
        });
    }
    out.sort();
    out
}

fn generate(signal: Signal, seed: u64) -> Vec<u8> {
    match signal {
        Signal::Traces => testing::traces(seed).encode_to_vec(),
        Signal::Logs => testing::logs(seed).encode_to_vec(),
        Signal::Metrics => testing::metrics(seed).encode_to_vec(),
        Signal::Profiles => testing::profiles(seed).encode_to_vec(),
    }
}

/// The single-item messages of a request as prost reads it; `None` when it refuses it.
fn expected(signal: Signal, body: &[u8]) -> Option<Vec<Vec<u8>>> {
    Some(match signal {
        Signal::Traces => single_spans(&ExportTraceServiceRequest::decode(body).ok()?.resource_spans),
        Signal::Logs => single_logs(&ExportLogsServiceRequest::decode(body).ok()?.resource_logs),
        Signal::Metrics => single_metrics(&ExportMetricsServiceRequest::decode(body).ok()?.resource_metrics),
        Signal::Profiles => {
            let request = ExportProfilesServiceRequest::decode(body).ok()?;
            single_profiles(&[ProfilesData {
                resource_profiles: request.resource_profiles,
                dictionary: request.dictionary,
            }])
        }
    })
}

#[test]
fn what_is_stored_is_what_was_sent() {
    for signal in Signal::ALL {
        let mut items = 0;
        for seed in 0..SEEDS {
            let body = generate(signal, seed);
            let expected = expected(signal, &body).unwrap();
            let mut decoder = Decoder::default();
            let delta = decode(&mut decoder, signal, &body).unwrap();
            if signal == Signal::Profiles
                && ExportProfilesServiceRequest::decode(&body[..]).unwrap().dictionary.is_none()
            {
                // The generator leaves the dictionary out at times; its indices then point nowhere.
                assert_eq!(delta.received(), expected.len() as u64, "{signal} seed {seed}");
                continue;
            }
            assert_eq!(delta.rejected_total(), 0, "{signal} seed {seed}: {delta:?}");
            assert_eq!(delta.stored, expected.len() as u64, "{signal} seed {seed}");
            assert!(stored(&mut decoder) == expected, "{signal} seed {seed}: stored items differ from those sent");
            items += expected.len();
        }
        assert!(items > 100, "{signal}: the generator made {items} items");
    }
}

/// A single-item message for people, without what only means something in profiles: an index into their table of
/// strings beside a key, which the other signals are to ignore (`KeyValue.key_strindex`).
fn shown(signal: Signal, item: &[u8]) -> String {
    let text = match signal {
        Signal::Traces => format!("{:?}", ResourceSpans::decode(item)),
        Signal::Logs => format!("{:?}", ResourceLogs::decode(item)),
        Signal::Metrics => format!("{:?}", ResourceMetrics::decode(item)),
        Signal::Profiles => return format!("{:?}", ProfilesData::decode(item)),
    };
    let mut pieces = text.split(", key_strindex: ");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |all, piece| all + piece.trim_start_matches(|c: char| c == '-' || c.is_ascii_digit()))
}

/// Damage one to four bytes of a valid request: whatever prost then says, we say, and neighbours
/// that share the batch never notice.
#[test]
fn damaged_requests_are_taken_back_whole_and_agree_with_prost() {
    let mut refused = 0;
    let mut accepted = 0;
    for signal in Signal::ALL {
        let neighbour = generate(signal, 7);
        let mut alone = Decoder::default();
        decode(&mut alone, signal, &neighbour).unwrap();
        let neighbour_items = stored(&mut alone);
        for seed in 0..damage_seeds() {
            let mut rng = Rng::new(seed ^ 0xdead_beef);
            let mut body = generate(signal, seed);
            if body.is_empty() {
                continue;
            }
            for _ in 0..=rng.bits() % 4 {
                let at = (rng.bits() % body.len() as u64) as usize;
                body[at] = rng.bits() as u8;
            }
            if rng.bits().is_multiple_of(8) {
                body.truncate((rng.bits() % body.len() as u64) as usize);
            }
            let mut decoder = Decoder::default();
            decode(&mut decoder, signal, &neighbour).unwrap();
            let ours = decode(&mut decoder, signal, &body);
            let oracle = expected(signal, &body);
            let mut now = stored(&mut decoder);
            match (ours, oracle) {
                (Err(_), None) => {
                    assert!(now == neighbour_items, "{signal} seed {seed}: a refused request left rows behind");
                    refused += 1;
                }
                (Ok(delta), Some(mut oracle)) if delta.rejected_total() == 0 => {
                    oracle.extend(neighbour_items.iter().cloned());
                    oracle.sort();
                    now.sort();
                    assert_eq!(now.len(), oracle.len(), "{signal} seed {seed}");
                    let ours = now.iter().find(|item| !oracle.contains(item)).map(|item| shown(signal, item));
                    let theirs = oracle.iter().find(|item| !now.contains(item)).map(|item| shown(signal, item));
                    assert!(ours == theirs, "{signal} seed {seed}: stored {ours:#?}, prost reads {theirs:#?}");
                    accepted += 1;
                }
                // An item that breaks a rule is not read to its end, so damage behind it goes unseen.
                (Ok(delta), _) if delta.rejected_total() > 0 => {
                    assert_eq!(now.len() as u64, neighbour_items.len() as u64 + delta.stored, "{signal} seed {seed}");
                }
                (ours, oracle) => {
                    panic!("{signal} seed {seed}: we say {ours:?}, prost accepts: {}", oracle.is_some())
                }
            }
        }
    }
    assert!(refused > 200 && accepted > 200, "refused {refused}, accepted {accepted}");
}

/// An empty log record takes two bytes: a small request of them must not become a huge batch.
#[test]
fn a_request_of_tiny_items_is_cut_at_its_limit() {
    use model::ledger::RejectReason;
    use model::limits::{ITEMS_PER_REQUEST_MAX, NESTED_ITEMS_MAX, NESTED_ITEMS_PER_REQUEST_MAX};
    use model::wire::put_bytes;

    let wrap = |items: &[u8]| {
        let (mut resource, mut request) = (Vec::new(), Vec::new());
        put_bytes(&mut resource, 2, items);
        put_bytes(&mut request, 1, &resource);
        request
    };
    let mut records = Vec::new();
    for _ in 0..ITEMS_PER_REQUEST_MAX + 5 {
        put_bytes(&mut records, 2, &[]);
    }
    let mut decoder = Decoder::default();
    let delta = decode(&mut decoder, Signal::Logs, &wrap(&records)).unwrap();
    assert_eq!(delta.stored, ITEMS_PER_REQUEST_MAX as u64);
    assert_eq!(delta.rejected.get(&RejectReason::TooManyItems), Some(&5));

    let mut span = Vec::new();
    put_bytes(&mut span, 1, &[1; 16]);
    put_bytes(&mut span, 2, &[1; 8]);
    for _ in 0..NESTED_ITEMS_MAX {
        put_bytes(&mut span, 11, &[]);
    }
    let mut spans = Vec::new();
    for _ in 0..NESTED_ITEMS_PER_REQUEST_MAX / NESTED_ITEMS_MAX + 3 {
        put_bytes(&mut spans, 2, &span);
    }
    let delta = decode(&mut Decoder::default(), Signal::Traces, &wrap(&spans)).unwrap();
    assert_eq!(delta.stored, (NESTED_ITEMS_PER_REQUEST_MAX / NESTED_ITEMS_MAX) as u64);
    assert_eq!(delta.rejected.get(&RejectReason::TooManyNestedItems), Some(&3));
}

/// A few kilobytes of profile may point at megabytes of stacks, a thousand times over.
#[test]
fn profiles_are_cut_by_what_they_take_written_out() {
    use model::ledger::RejectReason;
    use opentelemetry_proto::tonic::profiles::v1development::{
        Function, Line, Location, Profile, ProfilesDictionary, Sample, Stack,
    };
    let dictionary = ProfilesDictionary {
        string_table: vec!["x".repeat(1000)],
        function_table: vec![Function::default()],
        location_table: vec![Location { lines: vec![Line::default()], ..Location::default() }],
        stack_table: vec![Stack { location_indices: vec![0; 4000] }],
        ..ProfilesDictionary::default()
    };
    let profile = |samples: usize| Profile { samples: vec![Sample::default(); samples], ..Profile::default() };
    let request = |profiles: Vec<Profile>| {
        let scope_profiles = vec![ScopeProfiles { profiles, ..ScopeProfiles::default() }];
        ExportProfilesServiceRequest {
            resource_profiles: vec![ResourceProfiles { scope_profiles, ..ResourceProfiles::default() }],
            dictionary: Some(dictionary.clone()),
        }
        .encode_to_vec()
    };
    // Ten samples take 80 MB with their stacks of 4000 frames of 2 KB; one takes 8.
    let body = request(vec![profile(10), profile(1)]);
    assert!(body.len() < 10_000, "{}", body.len());
    let mut decoder = Decoder::default();
    let delta = decode(&mut decoder, Signal::Profiles, &body).unwrap();
    assert_eq!(delta.rejected.get(&RejectReason::ProfileTooLarge), Some(&2));
    let delta = decode(&mut decoder, Signal::Profiles, &request(vec![profile(1)])).unwrap();
    assert_eq!((delta.stored, delta.rejected_total()), (1, 0));
}
