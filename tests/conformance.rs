//! The OTLP conformance table, run against a real server.
//!
//! `conformance/otlp.tsv` is the table: one row is one request and what must come back. This file sends each row
//! over its own connection and judges the answer; `conformance/bodies.rs` makes the bodies that rows name. Every
//! failing row is reported, not only the first. `OTLP_CONFORMANCE_HTTP` and `OTLP_CONFORMANCE_GRPC` (addresses)
//! run the same table against another server; what it stored is then not asked.
//!
//! Not here: overload (`Retry-After`, RetryInfo) and crashes, which need a server with faults switched on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/bodies.rs"]
mod bodies;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;

use common::http::{Request, Response};

const TABLE: &str = include_str!("conformance/otlp.tsv");

const COLUMNS: &str = "id\tsignal\ttransport\tencoding\tcompression\tcase\tstatus\trejected\textras\tspec";

/// How long one gRPC call may take before the test calls the server hung.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// An error text longer than this echoes the request.
const MAX_MESSAGE_BYTES: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    Traces,
    Metrics,
    Logs,
    Profiles,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Http,
    Grpc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Encoding {
    Protobuf,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One row of the table.
#[derive(Debug, Clone)]
struct Case {
    id: String,
    signal: Signal,
    transport: Transport,
    encoding: Encoding,
    compression: Compression,
    /// The name of a body, or of one of `ENVELOPES` around a good body.
    case: String,
    /// HTTP status, or gRPC status code.
    status: u16,
    /// `Some` where `partial_success` must tell so many rejected items; `None` where it must be unset.
    rejected: Option<i64>,
    extras: Vec<Extra>,
}

/// What a row expects beyond status and rejected count.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Extra {
    /// The error body is a `google.rpc.Status` with a message, in the request's encoding.
    StatusBody,
    /// The response has the request's content type.
    ContentTypeSame,
    /// A gRPC error carries no `google.rpc.RetryInfo`: the client must not send again.
    NoRetryInfo,
    /// An HTTP error carries no `Retry-After`.
    NoRetryAfter,
    /// A 405 names the allowed method.
    AllowPost,
    /// `partial_success` may hold a warning with nothing rejected.
    WarningAllowed,
    /// The error message names this ledger reason.
    Reason(String),
    /// So many rows bear this row's `service.name` afterwards.
    Stored(u64),
}

/// Cases that are about the envelope: their body is the good one.
const ENVELOPES: &[&str] = &[
    "unknown_content_encoding",
    "identity_content_encoding",
    "wrong_content_type",
    "missing_content_type",
    "charset_content_type",
    "upper_case_content_type",
    "get",
    "put",
    "unknown_path",
    "unknown_method",
    "unknown_service",
    "gzip_truncated",
    "gzip_bad_crc",
    "gzip_header_on_plain_body",
    "zstd_truncated",
    "accept_gzip",
];

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Profiles => "profiles",
        }
    }

    fn http_path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
            Self::Profiles => "/v1development/profiles",
        }
    }

    fn grpc_service(self) -> &'static str {
        match self {
            Self::Traces => "opentelemetry.proto.collector.trace.v1.TraceService",
            Self::Metrics => "opentelemetry.proto.collector.metrics.v1.MetricsService",
            Self::Logs => "opentelemetry.proto.collector.logs.v1.LogsService",
            Self::Profiles => "opentelemetry.proto.collector.profiles.v1development.ProfilesService",
        }
    }

    fn rejected_key(self) -> &'static str {
        match self {
            Self::Traces => "rejectedSpans",
            Self::Metrics => "rejectedDataPoints",
            Self::Logs => "rejectedLogRecords",
            Self::Profiles => "rejectedProfiles",
        }
    }

    /// Where items are stored; profiles have one row per sample, and the test's profiles one sample.
    fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Traces => &["spans"],
            Self::Metrics => &["metric_points", "metric_histograms"],
            Self::Logs => &["logs"],
            Self::Profiles => &["profiles"],
        }
    }
}

impl Encoding {
    fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

// The table

fn table() -> Vec<Case> {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some(COLUMNS), "the first line names the columns");
    lines.map(|line| Case::parse(line).unwrap_or_else(|what| panic!("{what}: {line}"))).collect()
}

impl Case {
    fn parse(line: &str) -> Result<Self, String> {
        let columns: Vec<&str> = line.split('\t').collect();
        let [id, signal, transport, encoding, compression, case, status, rejected, extras, spec] = columns[..] else {
            return Err(format!("{} columns", columns.len()));
        };
        if spec.is_empty() {
            return Err("no specification section".into());
        }
        let pick = |what: &str| format!("unknown value {what}");
        Ok(Self {
            id: id.to_owned(),
            signal: match signal {
                "traces" => Signal::Traces,
                "metrics" => Signal::Metrics,
                "logs" => Signal::Logs,
                "profiles" => Signal::Profiles,
                other => return Err(pick(other)),
            },
            transport: match transport {
                "http" => Transport::Http,
                "grpc" => Transport::Grpc,
                other => return Err(pick(other)),
            },
            encoding: match encoding {
                "protobuf" => Encoding::Protobuf,
                "json" => Encoding::Json,
                other => return Err(pick(other)),
            },
            compression: match compression {
                "none" => Compression::None,
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                other => return Err(pick(other)),
            },
            case: case.to_owned(),
            status: status.parse().map_err(|_| pick(status))?,
            rejected: match rejected {
                "-" => None,
                count => Some(count.parse().map_err(|_| pick(count))?),
            },
            extras: match extras {
                "-" => Vec::new(),
                list => list.split(';').map(Extra::parse).collect::<Result<_, _>>()?,
            },
        })
    }

    fn has(&self, extra: &Extra) -> bool {
        self.extras.contains(extra)
    }

    /// Whether the request as a whole is accepted.
    fn succeeds(&self) -> bool {
        self.status == if self.transport == Transport::Http { 200 } else { 0 }
    }

    /// The uncompressed message.
    fn message(&self) -> Option<Vec<u8>> {
        let name = match self.case.as_str() {
            // A rejected item makes the response long enough to be worth compressing.
            "accept_gzip" => "mixed_20_1",
            name if ENVELOPES.contains(&name) => "one_good",
            name => name,
        };
        bodies::build(name, self.signal, self.encoding, &self.id)
    }

    /// The bytes that are sent: the message, compressed as the row says and damaged as its case says.
    fn body(&self) -> Vec<u8> {
        type Bombs = BTreeMap<(Encoding, Compression), Vec<u8>>;
        static BOMBS: LazyLock<Mutex<Bombs>> = LazyLock::new(Mutex::default);

        if self.case == "bomb" {
            let mut bombs = BOMBS.lock().unwrap();
            let bomb = bombs.entry((self.encoding, self.compression));
            return bomb.or_insert_with(|| compress(self.compression, &self.message().unwrap())).clone();
        }
        let message = self.message().unwrap();
        if self.case == "gzip_header_on_plain_body" {
            return message;
        }
        let mut body = compress(self.compression, &message);
        let length = body.len();
        match self.case.as_str() {
            "gzip_truncated" | "zstd_truncated" => body.truncate(length / 2),
            // The last eight bytes of gzip are the checksum and the length of what was compressed.
            "gzip_bad_crc" => body[length - 8] ^= 0xff,
            _ => {}
        }
        body
    }
}

impl Extra {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.split_once('=') {
            None => match text {
                "status_body" => Self::StatusBody,
                "content_type_same" => Self::ContentTypeSame,
                "no_retry_info" => Self::NoRetryInfo,
                "no_retry_after" => Self::NoRetryAfter,
                "allow_post" => Self::AllowPost,
                "warning_allowed" => Self::WarningAllowed,
                other => return Err(format!("unknown expectation {other}")),
            },
            Some(("reason", reason)) => Self::Reason(reason.to_owned()),
            Some(("stored", count)) => Self::Stored(count.parse().map_err(|_| format!("bad count {count}"))?),
            Some((other, _)) => return Err(format!("unknown expectation {other}")),
        })
    }
}

fn compress(compression: Compression, message: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => message.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(message, 3).unwrap(),
    }
}

fn gunzip(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    decoder.write_all(body).and_then(|()| decoder.finish()).map_err(|error| format!("response is not gzip: {error}"))
}

// Messages of the protocol that the responses are

/// All four `Export…ServiceResponse` messages have this shape.
#[derive(Clone, PartialEq, prost::Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status` without its details.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// Reads an export response in JSON, strictly as the proto3 mapping writes it.
fn json_response(body: &[u8], signal: Signal) -> Result<ExportResponse, String> {
    let shown = String::from_utf8_lossy(body);
    let tree: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| format!("response is not JSON: {error}: {shown}"))?;
    let members = tree.as_object().ok_or_else(|| format!("response is not an object: {shown}"))?;
    if members.is_empty() {
        return Ok(ExportResponse::default());
    }
    let partial = members.get("partialSuccess").and_then(serde_json::Value::as_object);
    let partial = partial.ok_or_else(|| format!("response has no object partialSuccess: {shown}"))?;
    let rejected = match partial.get(signal.rejected_key()) {
        None => 0,
        // 64-bit integers are strings when encoded.
        Some(serde_json::Value::String(text)) => text.parse().map_err(|_| format!("bad count: {shown}"))?,
        Some(_) => {
            return Err(format!("{} is not a string: {shown}", signal.rejected_key()));
        }
    };
    let error_message = partial.get("errorMessage").and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    Ok(ExportResponse { partial_success: Some(PartialSuccess { rejected, error_message }) })
}

// Sending and judging

/// Where the servers under test listen.
#[derive(Debug, Clone, Copy)]
struct Target {
    http: SocketAddr,
    grpc: SocketAddr,
}

/// What a gRPC call came back with.
#[derive(Debug, Default)]
struct GrpcResponse {
    /// HTTP status of the response; gRPC wants 200 even for errors.
    http_status: u16,
    /// `grpc-status`, wherever it stood.
    status: Option<u16>,
    message: String,
    /// `grpc-status-details-bin`, decoded.
    details: Vec<u8>,
    /// Frames: compressed flag and bytes.
    frames: Vec<(bool, Vec<u8>)>,
}

/// Sends a row and returns what is wrong with the answer.
async fn check(case: &Case, target: Target) -> Result<(), String> {
    match case.transport {
        Transport::Http => {
            let request = http_request(case);
            let to = target.http;
            let response = tokio::task::spawn_blocking(move || request.send(to)).await.unwrap();
            judge_http(case, &response.map_err(|error| format!("no response: {error}"))?)
        }
        Transport::Grpc => {
            let call = tokio::time::timeout(CALL_WITHIN, call_grpc(case, target.grpc)).await;
            judge_grpc(case, &call.map_err(|_| format!("no response within {CALL_WITHIN:?}"))??)
        }
    }
}

fn http_request(case: &Case) -> Request {
    let method = match case.case.as_str() {
        "get" => "GET",
        "put" => "PUT",
        _ => "POST",
    };
    let path = if case.case == "unknown_path" { "/v1/unknown" } else { case.signal.http_path() };
    let mut request = Request::new(method, path);
    let content_type = case.encoding.content_type();
    request = match case.case.as_str() {
        "missing_content_type" => request,
        "wrong_content_type" => request.header("content-type", "text/plain"),
        "charset_content_type" => request.header("content-type", &format!("{content_type}; charset=utf-8")),
        "upper_case_content_type" => request.header("content-type", &content_type.to_uppercase()),
        _ => request.header("content-type", content_type),
    };
    request = match (case.case.as_str(), case.compression) {
        ("unknown_content_encoding", _) => request.header("content-encoding", "br"),
        ("identity_content_encoding", _) => request.header("content-encoding", "identity"),
        (_, Compression::None) => request,
        (_, compression) => request.header("content-encoding", compression.name()),
    };
    if case.case == "accept_gzip" {
        request = request.header("accept-encoding", "gzip");
    }
    if method == "GET" { request } else { request.body(&case.body()) }
}

fn judge_http(case: &Case, response: &Response) -> Result<(), String> {
    let shown = String::from_utf8_lossy(&response.body[..response.body.len().min(300)]).into_owned();
    if response.status != case.status {
        return Err(format!("status {} instead of {}: {shown:?}", response.status, case.status));
    }
    let body = match response.header("content-encoding") {
        None | Some("identity") => response.body.clone(),
        Some("gzip") if case.case == "accept_gzip" => gunzip(&response.body)?,
        Some(other) => return Err(format!("response is {other}, which was not asked for")),
    };
    if case.has(&Extra::ContentTypeSame) {
        let found = response.header("content-type").unwrap_or_default();
        let media_type = found.split(';').next().unwrap_or_default().trim();
        if media_type != case.encoding.content_type() {
            return Err(format!("response content type {found:?} is not that of the request"));
        }
    }
    if case.has(&Extra::NoRetryAfter) && response.header("retry-after").is_some() {
        return Err("a permanent error carries Retry-After".into());
    }
    if case.has(&Extra::AllowPost)
        && !response.header("allow").is_some_and(|allow| allow.split(',').any(|method| method.trim() == "POST"))
    {
        return Err(format!("405 without Allow: POST, but {:?}", response.header("allow")));
    }
    if case.has(&Extra::StatusBody) {
        let message = match case.encoding {
            Encoding::Protobuf => {
                RpcStatus::decode(&*body)
                    .map_err(|error| format!("error body is no Status: {error}: {shown:?}"))?
                    .message
            }
            Encoding::Json => {
                let tree: serde_json::Value = serde_json::from_slice(&body)
                    .map_err(|error| format!("error body is no JSON: {error}: {shown:?}"))?;
                tree["message"].as_str().ok_or_else(|| format!("error body is no Status: {shown:?}"))?.to_owned()
            }
        };
        judge_message(&message)?;
    }
    if case.succeeds() {
        let export = match case.encoding {
            Encoding::Json => json_response(&body, case.signal)?,
            Encoding::Protobuf => {
                ExportResponse::decode(&*body).map_err(|error| format!("response does not decode: {error}"))?
            }
        };
        judge_export(case, &export)?;
    }
    Ok(())
}

fn judge_message(message: &str) -> Result<(), String> {
    if message.is_empty() {
        return Err("the error has no message".into());
    }
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(format!("the error message is {} bytes long", message.len()));
    }
    Ok(())
}

fn judge_export(case: &Case, export: &ExportResponse) -> Result<(), String> {
    match (&export.partial_success, case.rejected) {
        (None, None) => Ok(()),
        (None, Some(rejected)) => Err(format!("partial_success is unset instead of {rejected} rejected")),
        (Some(partial), None) if case.has(&Extra::WarningAllowed) && partial.rejected == 0 => {
            judge_message(&partial.error_message)
        }
        (Some(partial), None) => Err(format!("partial_success is set: {partial:?}")),
        (Some(partial), Some(rejected)) => {
            if partial.rejected != rejected {
                return Err(format!("{} rejected instead of {rejected}: {}", partial.rejected, partial.error_message));
            }
            judge_message(&partial.error_message)?;
            let reason = case.extras.iter().find_map(|extra| match extra {
                Extra::Reason(reason) => Some(reason),
                _ => None,
            });
            match reason {
                Some(reason) if !partial.error_message.contains(reason) => {
                    Err(format!("the message does not name {reason}: {}", partial.error_message))
                }
                _ => Ok(()),
            }
        }
    }
}

async fn call_grpc(case: &Case, to: SocketAddr) -> Result<GrpcResponse, String> {
    let body = case.body();
    let encoding = match (case.case.as_str(), case.compression) {
        ("unknown_content_encoding", _) => Some("br"),
        ("identity_content_encoding", _) => Some("identity"),
        (_, Compression::None) => None,
        (_, compression) => Some(compression.name()),
    };
    let compressed = encoding.is_some_and(|encoding| encoding != "identity");
    let mut frame = vec![u8::from(compressed)];
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(&body);

    let service = if case.case == "unknown_service" { "no.such.Service" } else { case.signal.grpc_service() };
    let method = if case.case == "unknown_method" { "NoSuchMethod" } else { "Export" };
    let mut request = http::Request::post(format!("http://{to}/{service}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    if case.case == "accept_gzip" {
        request = request.header("grpc-accept-encoding", "gzip");
    }
    let request = request.body(Full::new(Bytes::from(frame))).unwrap();

    let stream = tokio::net::TcpStream::connect(to).await.map_err(|error| format!("no connection: {error}"))?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| format!("no HTTP/2: {error}"))?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| format!("no response: {error}"))?;
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|error| format!("response broke off: {error}"))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    connection.abort();

    let value = |name: &str| head.headers.get(name).or(trailers.get(name)).and_then(|value| value.to_str().ok());
    let mut found = GrpcResponse {
        http_status: head.status.as_u16(),
        status: value("grpc-status").and_then(|text| text.parse().ok()),
        message: value("grpc-message").unwrap_or_default().to_owned(),
        ..GrpcResponse::default()
    };
    if let Some(details) = value("grpc-status-details-bin") {
        let padding = base64::engine::DecodePaddingMode::Indifferent;
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(padding);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
        found.details = engine.decode(details).map_err(|error| format!("grpc-status-details-bin: {error}"))?;
    }
    let bytes = collected.to_bytes();
    let mut rest = &bytes[..];
    while let Some((head, tail)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let message = tail.get(..length).ok_or("response frame is cut short")?;
        found.frames.push((head[0] == 1, message.to_vec()));
        rest = &tail[length..];
    }
    Ok(found)
}

fn judge_grpc(case: &Case, response: &GrpcResponse) -> Result<(), String> {
    if response.http_status != 200 {
        return Err(format!("HTTP status {} on a gRPC call", response.http_status));
    }
    if response.status != Some(case.status) {
        return Err(format!("grpc-status {:?} instead of {}: {:?}", response.status, case.status, response.message));
    }
    let retry_info = b"google.rpc.RetryInfo";
    if case.has(&Extra::NoRetryInfo) && response.details.windows(retry_info.len()).any(|window| window == retry_info) {
        return Err("a permanent error carries RetryInfo".into());
    }
    if !case.succeeds() {
        // A method that does not exist needs no words; everything else is told.
        return if case.status == 12 { Ok(()) } else { judge_message(&response.message) };
    }
    let [(compressed, message)] = &response.frames[..] else {
        return Err(format!("{} response messages instead of one", response.frames.len()));
    };
    let message = match compressed {
        false => message.clone(),
        true if case.case == "accept_gzip" => gunzip(message)?,
        true => return Err("response is compressed, which was not asked for".into()),
    };
    let export = ExportResponse::decode(&*message).map_err(|error| format!("response does not decode: {error}"))?;
    judge_export(case, &export)
}

/// Compares what is stored with the rows that say how much must be.
fn judge_stored(server: &common::Server, cases: &[Case]) -> Vec<String> {
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    let tables: BTreeSet<&str> = cases.iter().flat_map(|case| case.signal.tables()).copied().collect();
    for table in tables {
        let answer = server.sql(&format!("SELECT service_name, count(*) FROM {table} GROUP BY service_name"));
        for row in answer["rows"].as_array().expect("an answer has rows") {
            // Counts may come as numbers or, like other 64-bit integers, as strings.
            let count = row[1].as_u64().or_else(|| row[1].as_str()?.parse().ok()).expect("a count is an integer");
            *stored.entry(row[0].as_str().unwrap_or_default().to_owned()).or_default() += count;
        }
    }
    let expected = cases.iter().filter_map(|case| {
        let count = case.extras.iter().find_map(|extra| match extra {
            Extra::Stored(count) => Some(*count),
            _ => None,
        });
        Some((case, count?))
    });
    expected
        .filter_map(|(case, expected)| {
            let found = stored.get(&case.id).copied().unwrap_or_default();
            (found != expected).then(|| format!("{}: {found} rows stored instead of {expected}", case.id))
        })
        .collect()
}

#[test]
fn every_row_of_the_table_holds() {
    let other = |name: &str| std::env::var(name).ok().map(|text| text.parse::<SocketAddr>().unwrap());
    let (server, target) = match (other("OTLP_CONFORMANCE_HTTP"), other("OTLP_CONFORMANCE_GRPC")) {
        (Some(http), Some(grpc)) => (None, Target { http, grpc }),
        _ => {
            let server = common::Server::start();
            let target = Target { http: server.otlp_http, grpc: server.otlp_grpc };
            (Some(server), target)
        }
    };
    let cases = table();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(what) = runtime.block_on(check(case, target)) {
            failures.push(format!("{}: {what}", case.id));
        }
    }
    // After everything hostile, the server still answers.
    for case in cases.iter().filter(|case| case.case == "one_good" && case.compression == Compression::None) {
        let again = Case { id: format!("{}.again", case.id), ..case.clone() };
        if let Err(what) = runtime.block_on(check(&again, target)) {
            failures.push(format!("{}: {what}", again.id));
        }
    }
    if let Some(server) = &server {
        failures.extend(judge_stored(server, &cases));
    }
    assert!(failures.is_empty(), "{} failures in {} rows:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

// The table and the bodies themselves, without a server

#[test]
fn the_table_is_well_formed() {
    let cases = table();
    assert!(cases.len() >= 200, "{} rows", cases.len());
    let ids: BTreeSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(ids.len(), cases.len(), "ids are unique");
    let mut seen = BTreeSet::new();
    for case in &cases {
        let Case { id, signal, transport, encoding, compression, status, .. } = case;
        let encoding_name = if *encoding == Encoding::Json { "json" } else { "protobuf" };
        let transport_name = if *transport == Transport::Http { "http" } else { "grpc" };
        let compression_name = compression.name();
        let name = &case.case;
        let expected = format!("{}-{transport_name}-{encoding_name}-{compression_name}-{name}", signal.name());
        assert_eq!(*id, expected, "an id is made of its row's columns");
        seen.insert((*signal, *transport, *encoding, *compression));

        let is_http = *transport == Transport::Http;
        assert!(is_http || *encoding == Encoding::Protobuf, "{id}: gRPC is protobuf");
        assert_eq!(is_http, *status >= 100, "{id}: status {status}");
        assert!(case.message().is_some(), "{id}: no body {name} for this signal and encoding");
        assert!(case.rejected.is_none() || case.succeeds(), "{id}: only a success can be partial");
        assert!(!case.has(&Extra::StatusBody) || (is_http && !case.succeeds()), "{id}: status_body");
        assert!(!case.has(&Extra::NoRetryInfo) || (!is_http && !case.succeeds()), "{id}: no_retry_info");
        assert!(!case.has(&Extra::NoRetryAfter) || (is_http && !case.succeeds()), "{id}: no_retry_after");
        let stores = case.extras.iter().any(|extra| matches!(extra, Extra::Stored(1..)));
        assert!(!stores || case.succeeds(), "{id}: a refused request stores nothing");
        let names_reason = case.extras.iter().any(|extra| matches!(extra, Extra::Reason(_)));
        assert!(!names_reason || case.rejected.is_some_and(|count| count > 0), "{id}: reason of nothing");
        let damaged = name.starts_with("gzip_") || name.starts_with("zstd_");
        assert!(!damaged || name.starts_with(compression_name), "{id}: compression");
    }
    for signal in [Signal::Traces, Signal::Metrics, Signal::Logs, Signal::Profiles] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for (transport, encoding) in [
                (Transport::Http, Encoding::Protobuf),
                (Transport::Http, Encoding::Json),
                (Transport::Grpc, Encoding::Protobuf),
            ] {
                assert!(
                    seen.contains(&(signal, transport, encoding, compression)),
                    "no row for {signal:?} {transport:?} {encoding:?} {compression:?}"
                );
            }
        }
    }
}

#[test]
fn json_bodies_are_the_protobuf_bodies() {
    let mut compared = 0;
    let cases = table();
    for case in cases.iter().filter(|case| case.encoding == Encoding::Json) {
        // Two requests for the same case differ in their times only where the case does not set them.
        let signal = match case.signal {
            Signal::Traces => model::signal::Signal::Traces,
            Signal::Metrics => model::signal::Signal::Metrics,
            Signal::Logs => model::signal::Signal::Logs,
            Signal::Profiles => model::signal::Signal::Profiles,
        };
        let mut wire = Vec::new();
        let result = ingest::json::transcode(signal, &case.message().unwrap(), &mut wire);
        // Only these are refused for what the JSON says; other refusals are about the envelope.
        let refused = [
            "empty_body",
            "hex_odd",
            "hex_not",
            "id_base64",
            "enum_as_string",
            "top_level_array",
            "top_level_null",
            "trailing_garbage",
            "truncated",
            "random_bytes",
            "other_encoding",
            "invalid_utf8",
            "lone_surrogate",
            "bomb",
        ];
        assert_eq!(result.is_err(), refused.contains(&case.case.as_str()), "{}: {result:?}", case.id);
        if case.case == "one_good" {
            let twin = bodies::build("one_good", case.signal, Encoding::Protobuf, &case.id).unwrap();
            // Their times differ; those are fixed-width, so nothing else may.
            let (found, expected) = (normalised(case.signal, &wire), normalised(case.signal, &twin));
            assert_eq!(found, expected, "{}", case.id);
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared} compared");
}

/// A good request's text without its times, the only long numbers in it.
fn normalised(signal: Signal, wire: &[u8]) -> String {
    use opentelemetry_proto::tonic::collector;
    let text = match signal {
        Signal::Traces => {
            format!("{:?}", collector::trace::v1::ExportTraceServiceRequest::decode(wire).unwrap())
        }
        Signal::Metrics => {
            format!("{:?}", collector::metrics::v1::ExportMetricsServiceRequest::decode(wire).unwrap())
        }
        Signal::Logs => format!("{:?}", collector::logs::v1::ExportLogsServiceRequest::decode(wire).unwrap()),
        Signal::Profiles => {
            format!("{:?}", collector::profiles::v1development::ExportProfilesServiceRequest::decode(wire).unwrap())
        }
    };
    let words = text.split_inclusive(|c: char| !c.is_ascii_digit());
    words.map(|word| if word.len() > 18 && word.starts_with('1') { "time," } else { word }).collect()
}
