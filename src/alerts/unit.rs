//! `godseye test rules`: tests of rules, as `promtool test rules` runs them.
//!
//! Each test has a store of its own in a temporary folder. Its rows go in through the ingest pipeline, its rules are
//! evaluated by the code that evaluates them in a server, over the SQL engine, at times that the test says. Not here: the
//! format of the files and what is compared, which `slo::rules::unit` knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use clap::{Args, Subcommand};
use ingest::export::ExportRequest;
use ingest::pipeline::PipelineHandle;
use ingest::receiver::Export as _;
use model::signal::Signal;
use model::tenant::TenantId;
use model::time::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, status};
use prost::Message;
use slo::report::Problems;
use slo::rules::file::Group;
use slo::rules::group::Tools;
use slo::rules::unit::{self, File, Input, InputRow, KINDS, Keep, SEVERITIES, Scalar, Test};

use super::local::Local;
use super::{Expander, files, record};
use crate::client;

const NANOS_PER_MS: i64 = 1_000_000;

/// Bytes of a file of tests.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// OTLP's severity numbers of one severity.
const SEVERITY_STEP: usize = 4;

/// `godseye test`.
#[derive(Debug, Subcommand)]
pub enum TestCommand {
    /// Rules, against tests in the format of `promtool test rules`
    Rules(RulesArgs),
}

/// `godseye test rules`.
#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Files of tests
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Run only the tests whose name has this text
    #[arg(long, value_name = "TEXT")]
    run: Option<String>,
}

/// Why not everything is well.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// A file is not what it should be; nothing was run. A line for each error, with its place.
    #[error("{0}")]
    Invalid(String),
    /// The runtime, or a test's own store.
    #[error("cannot run the tests: {0}")]
    Start(String),
    /// Tests failed; they have been printed.
    #[error("{failed} of {tests} tests failed")]
    Failed {
        /// How many.
        failed: usize,
        /// Of how many.
        tests: usize,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] client::ClientError),
}

/// Runs the command to its end.
///
/// # Errors
/// [`TestError`].
pub fn run(command: &TestCommand) -> Result<(), TestError> {
    let TestCommand::Rules(args) = command;
    let loaded: Vec<(File, Vec<Group>)> = load(&args.files)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| TestError::Start(error.to_string()))?;
    let (mut tests, mut failed) = (0, 0);
    for (file, groups) in &loaded {
        let mut lines = Vec::new();
        let wanted = |test: &&Test| args.run.as_ref().is_none_or(|text| test.name.contains(text));
        for test in file.tests.iter().filter(wanted) {
            tests += 1;
            let failures = runtime.block_on(one(file, test, groups))?;
            failed += usize::from(!failures.is_empty());
            lines.extend(failures.iter().map(|failure| format!("  {failure}")));
        }
        let verdict = if lines.is_empty() { "SUCCESS" } else { "FAILED" };
        lines.insert(0, format!("{}: {verdict}", file.name));
        client::print(format!("{}\n", lines.join("\n")).as_bytes())?;
    }
    if failed > 0 { Err(TestError::Failed { failed, tests }) } else { Ok(()) }
}

/// Every file with its rules; all errors at once.
fn load(paths: &[PathBuf]) -> Result<Vec<(File, Vec<Group>)>, TestError> {
    let mut errors = Vec::new();
    let mut found = Vec::new();
    for path in paths {
        match load_one(path) {
            Ok(loaded) => found.push(loaded),
            Err(lines) => errors.extend(lines),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(TestError::Invalid(errors.join("\n"))) }
}

fn load_one(path: &Path) -> Result<(File, Vec<Group>), Vec<String>> {
    let name = path.display().to_string();
    let length = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or(0);
    if length > FILE_BYTES_MAX {
        return Err(vec![format!("{name}: error: the file is too large: expected at most {FILE_BYTES_MAX} bytes")]);
    }
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| vec![format!("{name}: error: the file cannot be read: {error}")])?;
    let file = unit::read(&name, &text).map_err(|Problems(problems)| {
        let line = |found: &slo::report::Problem| {
            format!("{}:{}:{}: error: {}: {}", found.file, found.line, found.column, found.message, found.help)
        };
        problems.iter().map(line).collect::<Vec<_>>()
    })?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut rules = Vec::new();
    for pattern in &file.rule_files {
        let whole = folder.join(pattern);
        let paths: Vec<PathBuf> = match glob::glob(&whole.to_string_lossy()) {
            Ok(paths) => paths.flatten().collect(),
            Err(error) => return Err(vec![format!("{name}: error: `{pattern}` is no pattern: {error}")]),
        };
        if paths.is_empty() {
            return Err(vec![format!("{name}: error: no rule file is there for `{pattern}`")]);
        }
        rules.extend(paths);
    }
    let (groups, problems) = files::read_rules(&rules);
    if files::has_errors(&problems) {
        return Err(problems.iter().map(ToString::to_string).collect());
    }
    for rule in groups.iter().flat_map(|group| &group.rules) {
        if files::asks_the_clock(&rule.sql) {
            return Err(vec![format!(
                "{}: {} asks for the time of the clock, which is not the evaluation's: write $now",
                rule.defined_at, rule.name
            )]);
        }
    }
    Ok((file, groups))
}

/// One test on a store of its own.
async fn one(file: &File, test: &Test, groups: &[Group]) -> Result<Vec<unit::Failure>, TestError> {
    let start = |error: String| TestError::Start(error);
    let folder = tempfile::tempdir().map_err(|error| start(error.to_string()))?;
    let mut local = Local::open(folder.path()).map_err(start)?;
    let pipeline = local.pipeline().map_err(start)?;
    let tools = Tools {
        ask: Arc::new(local.asker.clone()),
        record: Arc::new(record::Recorder(pipeline.handle())),
        expand: Arc::new(Expander { external_url: test.external_url.clone() }),
    };
    let intake = Intake { pipeline: pipeline.handle(), spans: AtomicU64::new(1) };
    let failures = unit::run(file, test, groups, &intake, &tools).await;
    drop((tools, intake));
    let drained = tokio::task::spawn_blocking(move || pipeline.drain()).await;
    drained.map_err(|error| start(error.to_string()))?;
    Ok(failures)
}

/// Where rows of a test go in: the ingest pipeline, with requests as a client would send them.
struct Intake {
    pipeline: PipelineHandle,
    /// The number of the next span, which is its id.
    spans: AtomicU64,
}

impl Intake {
    async fn send(&self, signal: Signal, message: &impl Message) -> Result<(), String> {
        let tenant = TenantId::default_tenant();
        let request = ExportRequest { signal, tenant, body: Bytes::from(message.encode_to_vec()) };
        let accepted = self.pipeline.export(request).await.map_err(|error| error.to_string())?;
        if accepted.rejected_total() > 0 { Err(accepted.error_message()) } else { Ok(()) }
    }

    fn span(&self, at: u64, attributes: Vec<KeyValue>, row: &InputRow) -> Option<Span> {
        let InputRow::Span { name, kind, is_error, duration_ms } = row else { return None };
        let number = self.spans.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(duration_ms.saturating_mul(NANOS_PER_MS)).unwrap_or(0);
        let code = if *is_error { status::StatusCode::Error } else { status::StatusCode::Unset };
        Some(Span {
            trace_id: u128::from(number).to_be_bytes().to_vec(),
            span_id: number.to_be_bytes().to_vec(),
            name: name.clone(),
            kind: i32::try_from(KINDS.iter().position(|known| known == kind).unwrap_or(0) + 1).unwrap_or(0),
            start_time_unix_nano: at.saturating_sub(took),
            end_time_unix_nano: at,
            attributes,
            status: Some(Status { code: code.into(), ..Status::default() }),
            ..Span::default()
        })
    }
}

fn value(scalar: &Scalar) -> any_value::Value {
    match scalar {
        Scalar::Text(text) => any_value::Value::StringValue(text.clone()),
        Scalar::Int(number) => any_value::Value::IntValue(*number),
        Scalar::Double(number) => any_value::Value::DoubleValue(*number),
        Scalar::Bool(value) => any_value::Value::BoolValue(*value),
    }
}

fn attribute(key: &str, scalar: &Scalar) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value(scalar)) }), ..KeyValue::default() }
}

fn resource(service: &str) -> Option<Resource> {
    let attributes = if service.is_empty() {
        Vec::new()
    } else {
        vec![attribute("service.name", &Scalar::Text(service.to_owned()))]
    };
    Some(Resource { attributes, ..Resource::default() })
}

fn log(at: u64, attributes: Vec<KeyValue>, row: &InputRow) -> Option<LogRecord> {
    let InputRow::Log { severity, body } = row else { return None };
    let place = SEVERITIES.iter().position(|known| known == severity).unwrap_or(0);
    Some(LogRecord {
        time_unix_nano: at,
        severity_number: i32::try_from(place * SEVERITY_STEP + 1).unwrap_or(0),
        severity_text: (*severity).to_owned(),
        body: Some(AnyValue { value: Some(any_value::Value::StringValue(body.clone())) }),
        attributes,
        ..LogRecord::default()
    })
}

fn point(start: u64, at: u64, attributes: Vec<KeyValue>, row: &InputRow) -> Option<Metric> {
    let InputRow::Point { metric: name, value, is_counter } = row else { return None };
    let point = NumberDataPoint {
        attributes,
        start_time_unix_nano: if *is_counter { start } else { 0 },
        time_unix_nano: at,
        value: Some(number_data_point::Value::AsDouble(*value)),
        ..NumberDataPoint::default()
    };
    let data = if *is_counter {
        metric::Data::Sum(Sum {
            data_points: vec![point],
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        })
    } else {
        metric::Data::Gauge(Gauge { data_points: vec![point] })
    };
    Some(Metric { name: name.clone(), data: Some(data), ..Metric::default() })
}

#[async_trait]
impl Keep for Intake {
    async fn keep(&self, start: Timestamp, rows: &[Input]) -> Result<(), String> {
        let nanos = |at: Timestamp| u64::try_from(at.0).unwrap_or(0);
        let (mut spans, mut logs, mut metrics) = (Vec::new(), Vec::new(), Vec::new());
        for Input { at_ms, service, attributes, row } in rows {
            let at = nanos(start.plus_nanos(at_ms.saturating_mul(NANOS_PER_MS)));
            let resource = resource(service);
            let attributes: Vec<KeyValue> = attributes.iter().map(|(key, value)| attribute(key, value)).collect();
            match row {
                InputRow::Span { .. } => {
                    let scope_spans = ScopeSpans {
                        spans: self.span(at, attributes, row).into_iter().collect(),
                        ..ScopeSpans::default()
                    };
                    spans.push(ResourceSpans { resource, scope_spans: vec![scope_spans], ..ResourceSpans::default() });
                }
                InputRow::Log { .. } => {
                    let scope_logs = ScopeLogs {
                        log_records: log(at, attributes, row).into_iter().collect(),
                        ..ScopeLogs::default()
                    };
                    logs.push(ResourceLogs { resource, scope_logs: vec![scope_logs], ..ResourceLogs::default() });
                }
                InputRow::Point { .. } => {
                    let metric = point(nanos(start), at, attributes, row);
                    let scope_metrics =
                        ScopeMetrics { metrics: metric.into_iter().collect(), ..ScopeMetrics::default() };
                    let scope_metrics = vec![scope_metrics];
                    metrics.push(ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() });
                }
            }
        }
        if !spans.is_empty() {
            self.send(Signal::Traces, &ExportTraceServiceRequest { resource_spans: spans }).await?;
        }
        if !logs.is_empty() {
            self.send(Signal::Logs, &ExportLogsServiceRequest { resource_logs: logs }).await?;
        }
        if !metrics.is_empty() {
            self.send(Signal::Metrics, &ExportMetricsServiceRequest { resource_metrics: metrics }).await?;
        }
        Ok(())
    }
}
