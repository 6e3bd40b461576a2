//! What recording rules make, stored like any other metric: through the ingest pipeline, durable when it returns.
//!
//! A recorded series is a gauge with its labels as attributes, of the scope `godseye.rules`; a label `service_name`
//! also names the service. Not here: what is recorded when.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use ingest::export::ExportRequest;
use ingest::pipeline::PipelineHandle;
use ingest::receiver::Export as _;
use model::signal::Signal;
use model::tenant::TenantId;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use slo::rules::group::{Record, Recorded};

/// The scope of recorded series.
const SCOPE: &str = "godseye.rules";

/// The label that names the service a series is about.
const SERVICE: &str = "service_name";

/// Stores through the pipeline.
pub(super) struct Recorder(pub(super) PipelineHandle);

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// One request with all samples, a resource for each service.
fn request(samples: Vec<Recorded>) -> ExportMetricsServiceRequest {
    let mut services: BTreeMap<String, BTreeMap<String, Vec<NumberDataPoint>>> = BTreeMap::new();
    for Recorded { name, labels, value, at } in samples {
        let service = labels.get(SERVICE).cloned().unwrap_or_default();
        let point = NumberDataPoint {
            attributes: labels.iter().map(|(key, value)| attribute(key, value)).collect(),
            time_unix_nano: u64::try_from(at.0).unwrap_or(0),
            value: Some(number_data_point::Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        services.entry(service).or_default().entry(name).or_default().push(point);
    }
    let resource_metrics = services.into_iter().map(|(service, metrics)| {
        let metrics = metrics.into_iter().map(|(name, data_points)| Metric {
            name,
            data: Some(metric::Data::Gauge(Gauge { data_points })),
            ..Metric::default()
        });
        let scope = InstrumentationScope { name: SCOPE.to_owned(), ..InstrumentationScope::default() };
        let attributes = if service.is_empty() { Vec::new() } else { vec![attribute("service.name", &service)] };
        ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics: metrics.collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }
    });
    ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }
}

#[async_trait]
impl Record for Recorder {
    async fn record(&self, tenant: &TenantId, samples: Vec<Recorded>) -> Result<(), String> {
        if samples.is_empty() {
            return Ok(());
        }
        let body = Bytes::from(request(samples).encode_to_vec());
        let request = ExportRequest { signal: Signal::Metrics, tenant: tenant.clone(), body };
        let accepted = self.0.export(request).await.map_err(|error| error.to_string())?;
        if accepted.rejected_total() > 0 { Err(accepted.error_message()) } else { Ok(()) }
    }
}
