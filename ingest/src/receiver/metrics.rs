//! The receivers' own metrics, for the `/metrics` page.
//!
//! Not here: items stored and rejected; those are the ledger's. One [`Observation`] follows one
//! request and records it however it ends, also when the client leaves and its future is dropped.

use std::time::Duration;

use model::signal::Signal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// The label `code` of a request whose client left before its answer: nginx's 499 and gRPC's CANCELLED.
const CODE_CLIENT_LEFT: [u16; 2] = [1, 499];

/// Which listener a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Grpc,
    Http,
}

impl Transport {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    transport: &'static str,
    signal: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    transport: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EncodingLabels {
    encoding: &'static str,
}

/// The metrics of all receivers of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<TransportLabels, Histogram>,
    refused: Family<RefusedLabels, Counter>,
    message_bytes: Family<EncodingLabels, Counter>,
    connections: Family<TransportLabels, Gauge>,
}

impl Metrics {
    /// Creates the metrics and registers them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            // An acknowledgement takes an fdatasync: from half a millisecond to, on a sick disk, 16 s.
            durations: Family::new_with_constructor(|| {
                Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.0005, 2.0, 16))
            }),
            refused: Family::default(),
            message_bytes: Family::default(),
            connections: Family::default(),
        };
        registry.register(
            "godseye_receiver_requests",
            "Requests by outcome; code is the HTTP status or the gRPC code",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "godseye_receiver_request_duration",
            "From a request's headers to its outcome",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("godseye_receiver_refused", "Requests not exported, by reason", metrics.refused.clone());
        registry.register(
            "godseye_receiver_decompressed_bytes",
            "Bytes of received messages after decompression, by content encoding",
            metrics.message_bytes.clone(),
        );
        registry.register("godseye_receiver_connections", "Open connections", metrics.connections.clone());
        metrics
    }

    pub(super) fn message(&self, encoding: &'static str, bytes: usize) {
        self.message_bytes.get_or_create(&EncodingLabels { encoding }).inc_by(bytes as u64);
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self, transport: Transport) -> ConnectionGuard {
        let gauge = self.connections.get_or_create_owned(&TransportLabels { transport: transport.name() });
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// Starts to observe a request.
    pub(super) fn observe(&self, transport: Transport, signal: Option<Signal>) -> Observation {
        Observation {
            metrics: self.clone(),
            transport,
            signal: signal.map_or("none", Signal::name),
            code: CODE_CLIENT_LEFT[usize::from(transport == Transport::Http)],
            refused: None,
            started: Instant::now(),
        }
    }
}

/// See [`Metrics::connection`].
pub(super) struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One request's entry in the metrics, made when dropped.
pub(super) struct Observation {
    metrics: Metrics,
    transport: Transport,
    signal: &'static str,
    code: u16,
    refused: Option<&'static str>,
    started: Instant,
}

impl Observation {
    /// The request has its answer.
    pub(super) fn outcome(&mut self, code: u16, refused: Option<&'static str>) {
        self.code = code;
        self.refused = refused;
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let transport = self.transport.name();
        let labels = RequestLabels { transport, signal: self.signal, code: self.code };
        self.metrics.requests.get_or_create(&labels).inc();
        let elapsed: Duration = self.started.elapsed();
        self.metrics.durations.get_or_create(&TransportLabels { transport }).observe(elapsed.as_secs_f64());
        if let Some(reason) = self.refused {
            self.metrics.refused.get_or_create(&RefusedLabels { transport, reason }).inc();
        }
    }
}
