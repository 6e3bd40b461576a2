//! The receivers on real sockets, against a fake export: every rule of the README's table as rows.
//!
//! HTTP/1 is written byte by byte so that it can be wrong; gRPC frames are built by hand on hyper's
//! HTTP/2 client, and tonic's client proves that an ordinary one gets along. Not here: what a
//! decoder makes of a message.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::ledger::RejectReason;
use model::signal::Signal;
use model::tenant::TenantId;
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    profiles::v1development::ExportProfilesServiceResponse, trace::v1::ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::status::MESSAGE_BYTES_MAX;
use super::{AuthError, Authenticate, Config, Export, Metrics, Receiver, serve_grpc, serve_http};
use crate::admission::ByteBudget;
use crate::export::{Accepted, ExportError, ExportRequest};

/// A test that waits longer than this hangs.
const HANG: Duration = Duration::from_secs(60);

const LIMIT: usize = 1 << 20;

#[derive(Clone, Debug)]
enum Outcome {
    Full,
    Rejected(u64),
    Malformed(String),
    Overloaded(Duration),
    ShuttingDown,
    Panic,
    /// Accepted once the fake's gate has a permit.
    Gate,
}

#[derive(Clone)]
struct Fake {
    outcome: Arc<Mutex<Outcome>>,
    seen: Arc<Mutex<Vec<ExportRequest>>>,
    gate: Arc<Semaphore>,
    arrived: Arc<Semaphore>,
}

impl Export for Fake {
    async fn export(&self, request: ExportRequest) -> Result<Accepted, ExportError> {
        let signal = request.signal;
        self.seen.lock().unwrap().push(request);
        self.arrived.add_permits(1);
        let outcome = self.outcome.lock().unwrap().clone();
        match outcome {
            Outcome::Full => Ok(Accepted { stored: 1, rejected: BTreeMap::new() }),
            Outcome::Rejected(items) => {
                Ok(Accepted { stored: 1, rejected: BTreeMap::from([(RejectReason::InvalidTraceId, items)]) })
            }
            Outcome::Malformed(detail) => Err(ExportError::Malformed { signal, detail }),
            Outcome::Overloaded(retry_after) => Err(ExportError::Overloaded { what: "the disk is full", retry_after }),
            Outcome::ShuttingDown => Err(ExportError::ShuttingDown),
            Outcome::Panic => panic!("a bug behind the seam"),
            Outcome::Gate => {
                self.gate.acquire().await.unwrap().forget();
                Ok(Accepted { stored: 1, rejected: BTreeMap::new() })
            }
        }
    }
}

/// No header: `default`. `Bearer team-1`: that tenant. `Bearer reader`: may not write.
#[derive(Clone)]
struct TestAuth;

impl Authenticate for TestAuth {
    fn tenant(&self, authorization: Option<&str>) -> Result<TenantId, AuthError> {
        match authorization {
            None => Ok(TenantId::default_tenant()),
            Some("Bearer team-1") => Ok(TenantId::new("team-1").unwrap()),
            Some("Bearer reader") => Err(AuthError::PermissionDenied),
            Some(_) => Err(AuthError::Unauthenticated),
        }
    }
}

struct Server {
    address: SocketAddr,
    fake: Fake,
    budget: ByteBudget,
    registry: prometheus_client::registry::Registry,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Http,
    Grpc,
}

fn small() -> Config {
    Config { request_bytes_max: LIMIT, ..Config::default() }
}

async fn start(kind: Kind, config: Config, budget_bytes: u64) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = Fake {
        outcome: Arc::new(Mutex::new(Outcome::Full)),
        seen: Arc::default(),
        gate: Arc::new(Semaphore::new(0)),
        arrived: Arc::new(Semaphore::new(0)),
    };
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let budget = ByteBudget::new(budget_bytes);
    budget.register(&mut registry);
    let shutdown = CancellationToken::new();
    let receiver = Receiver::new(config, fake.clone(), TestAuth, budget.clone(), metrics);
    let token = shutdown.clone();
    let task = match kind {
        Kind::Http => tokio::spawn(serve_http(listener, receiver, token)),
        Kind::Grpc => tokio::spawn(serve_grpc(listener, receiver, token)),
    };
    Server { address, fake, budget, registry, shutdown, task }
}

impl Server {
    fn outcome(&self, outcome: Outcome) {
        *self.fake.outcome.lock().unwrap() = outcome;
    }

    fn take_seen(&self) -> Vec<ExportRequest> {
        std::mem::take(&mut *self.fake.seen.lock().unwrap())
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.unwrap_or_else(|_elapsed| panic!("{what} hangs"))
}

/// Waits for a state that other tasks bring about.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// A body that the fake takes; it is no message of any signal, which is not its concern.
fn protobuf(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * n % 251) as u8).collect()
}

// ---- google.rpc, as a client reads it -------------------------------------------------------

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<ProtoDuration>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

impl Status {
    fn detail<M: prost::Message + Default>(&self, name: &str) -> Option<M> {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        self.details.iter().find(|any| any.type_url == url).map(|any| M::decode(&any.value[..]).unwrap())
    }

    fn retry_s(&self) -> Option<i64> {
        self.detail::<RetryInfo>("RetryInfo").map(|info| info.retry_delay.unwrap().seconds)
    }

    fn has_bad_request(&self) -> bool {
        self.detail::<BadRequest>("BadRequest").is_some_and(|bad| !bad.field_violations[0].description.is_empty())
    }
}

// ---- HTTP, byte by byte ----------------------------------------------------------------------

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The `google.rpc.Status` in the answer's own content type.
    fn rpc_status(&self) -> Status {
        if self.header("content-type") == "application/x-protobuf" {
            return Status::decode(&self.body[..]).unwrap();
        }
        assert_eq!(self.header("content-type"), "application/json");
        let json = self.json();
        let empty = Vec::new();
        let details = json["details"].as_array().unwrap_or(&empty).iter().map(|detail| {
            let value = if let Some(delay) = detail["retryDelay"].as_str() {
                let seconds = delay.strip_suffix('s').unwrap().parse().unwrap();
                RetryInfo { retry_delay: Some(ProtoDuration { seconds, nanos: 0 }) }.encode_to_vec()
            } else {
                let description = detail["fieldViolations"][0]["description"].as_str().unwrap().to_owned();
                let violation = FieldViolation { field: String::new(), description };
                BadRequest { field_violations: vec![violation] }.encode_to_vec()
            };
            Any { type_url: detail["@type"].as_str().unwrap().to_owned(), value }
        });
        Status {
            code: json["code"].as_i64().unwrap() as i32,
            message: json["message"].as_str().unwrap().to_owned(),
            details: details.collect(),
        }
    }
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut raw = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n").into_bytes();
    raw.extend(headers.as_bytes());
    raw.extend(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    raw.extend(body);
    raw
}

async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Answer> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            let headers: BTreeMap<String, String> = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return Some(Answer { status, headers, body: bytes[end + 4..end + 4 + length].to_vec() });
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// Sends all, then reads, as simple clients do.
async fn exchange(server: &Server, raw: &[u8]) -> Answer {
    within("exchange", async {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(raw).await.unwrap();
        read_answer(&mut stream).await.expect("an answer before the end")
    })
    .await
}

const PROTO: &str = "content-type: application/x-protobuf\r\n";
const JSON: &str = "content-type: application/json\r\n";

const PATHS: [(Signal, &str); 4] = [
    (Signal::Traces, "/v1/traces"),
    (Signal::Metrics, "/v1/metrics"),
    (Signal::Logs, "/v1/logs"),
    (Signal::Profiles, "/v1development/profiles"),
];

struct HttpRow {
    what: &'static str,
    raw: Vec<u8>,
    status: u16,
    /// The answer's content type and the `google.rpc.Status.code` in it, 0 for success.
    content_type: &'static str,
    code: i32,
    /// A header the answer must have.
    header: (&'static str, &'static str),
}

fn post(what: &'static str, headers: &str, body: &[u8], status: u16, content_type: &'static str, code: i32) -> HttpRow {
    HttpRow { what, raw: request("POST", "/v1/logs", headers, body), status, content_type, code, header: ("", "") }
}

fn http_rows() -> Vec<HttpRow> {
    let with = |one: &str, two: &str| format!("{one}{two}");
    let (p, j) = ("application/x-protobuf", "application/json");
    let data = protobuf(5000);
    let enough = protobuf(LIMIT);
    let too_much = protobuf(LIMIT + 1);
    let zeros = vec![0; 2 * LIMIT];
    let mut rows = vec![
        post("plain protobuf", PROTO, &data, 200, p, 0),
        post("empty protobuf is an empty request", PROTO, b"", 200, p, 0),
        post("identity", &with(PROTO, "content-encoding: identity\r\n"), &data, 200, p, 0),
        post("gzip", &with(PROTO, "content-encoding: gzip\r\n"), &gzip(&data), 200, p, 0),
        post("x-gzip, any case", &with(PROTO, "Content-Encoding: X-GZip\r\n"), &gzip(&data), 200, p, 0),
        post("zstd", &with(PROTO, "content-encoding: zstd\r\n"), &zstd(&data), 200, p, 0),
        post("json", JSON, br#"{"resourceLogs":[]}"#, 200, j, 0),
        post("json, gzip", &with(JSON, "content-encoding: gzip\r\n"), &gzip(b"{}"), 200, j, 0),
        post("json, zstd", &with(JSON, "content-encoding: zstd\r\n"), &zstd(b"{}"), 200, j, 0),
        post("parameters", "content-type: application/json; charset=utf-8\r\n", b"{}", 200, j, 0),
        post("upper case", "Content-Type: Application/X-Protobuf ;a=b\r\n", &data, 200, p, 0),
        post("tenant", &with(PROTO, "authorization: Bearer team-1\r\n"), &data, 200, p, 0),
        post("exactly the limit", PROTO, &enough, 200, p, 0),
        post("exactly the limit, gzip", &with(PROTO, "content-encoding: gzip\r\n"), &gzip(&vec![7; LIMIT]), 200, p, 0),
        post("exactly the limit, zstd", &with(PROTO, "content-encoding: zstd\r\n"), &zstd(&enough), 200, p, 0),
        // Content types.
        post("no content type", "", &data, 415, j, 12),
        post("text/plain", "content-type: text/plain\r\n", &data, 415, j, 12),
        post("application/protobuf", "content-type: application/protobuf\r\n", &data, 415, j, 12),
        post("grpc", "content-type: application/grpc\r\n", &data, 415, j, 12),
        post("almost json", "content-type: application/jsonx\r\n", b"{}", 415, j, 12),
        // Content encodings.
        post("deflate", &with(PROTO, "content-encoding: deflate\r\n"), &data, 415, p, 12),
        post("br", &with(JSON, "content-encoding: br\r\n"), b"{}", 415, j, 12),
        post("two codings", &with(PROTO, "content-encoding: gzip, gzip\r\n"), &data, 415, p, 12),
        post("two headers", &with(PROTO, "content-encoding: gzip\r\ncontent-encoding: gzip\r\n"), &data, 415, p, 12),
        // Credentials, before anything is known about the body.
        post("unknown credential", &with(PROTO, "authorization: Bearer nobody\r\n"), &data, 401, p, 16),
        post("empty credential", &with(JSON, "authorization:\r\n"), b"{}", 401, j, 16),
        post("not ascii", &with(JSON, "authorization: Bearer \u{e9}\r\n"), b"{}", 401, j, 16),
        post("may not write", &with(PROTO, "authorization: Bearer reader\r\n"), &data, 403, p, 7),
        post("stranger with too much", &with(PROTO, "authorization: x\r\n"), &too_much, 401, p, 16),
        // Sizes.
        post("over the limit", PROTO, &too_much, 413, p, 8),
        post("over the limit, json", JSON, &too_much, 413, j, 8),
        post("far over the limit", PROTO, &protobuf(32 * LIMIT), 413, p, 8),
        post("over the limit once gunzipped", &with(PROTO, "content-encoding: gzip\r\n"), &gzip(&zeros), 413, p, 8),
        post("over the limit, zstd", &with(JSON, "content-encoding: zstd\r\n"), &zstd(&zeros), 413, j, 8),
        // Bodies.
        post("truncated gzip", &with(PROTO, "content-encoding: gzip\r\n"), &gzip(&data)[..200], 400, p, 3),
        post("empty gzip", &with(PROTO, "content-encoding: gzip\r\n"), b"", 400, p, 3),
        post(
            "gzip and garbage",
            &with(PROTO, "content-encoding: gzip\r\n"),
            &[gzip(&data), data.clone()].concat(),
            400,
            p,
            3,
        ),
        post("plain called gzip", &with(PROTO, "content-encoding: gzip\r\n"), &data, 400, p, 3),
        post("gzip called zstd", &with(PROTO, "content-encoding: zstd\r\n"), &gzip(&data), 400, p, 3),
        post("truncated zstd", &with(JSON, "content-encoding: zstd\r\n"), &zstd(&data)[..50], 400, j, 3),
        post("empty json", JSON, b"", 400, j, 3),
        post("truncated json", JSON, br#"{"resourceLogs":["#, 400, j, 3),
        post("json array", JSON, b"[]", 400, j, 3),
        post("json null", JSON, b"null", 400, j, 3),
        post("json and garbage", JSON, b"{} x", 400, j, 3),
    ];
    for (method, status) in [("GET", 405), ("PUT", 405), ("DELETE", 405), ("OPTIONS", 405)] {
        let raw = request(method, "/v1/traces", PROTO, b"");
        rows.push(HttpRow { what: method, raw, status, content_type: p, code: 12, header: ("allow", "POST") });
    }
    for path in ["/", "/v1/trace", "/v1/traces/", "/v1/profiles", "/V1/traces", "//v1/traces"] {
        let raw = request("POST", path, JSON, b"{}");
        rows.push(HttpRow { what: path, raw, status: 404, content_type: j, code: 12, header: ("", "") });
    }
    let chunked = |body: &str| {
        format!("POST /v1/logs HTTP/1.1\r\nhost: a\r\n{JSON}transfer-encoding: chunked\r\n\r\n{body}").into_bytes()
    };
    let row = |what, raw, status| HttpRow { what, raw, status, content_type: j, code: 0, header: ("", "") };
    rows.push(row("chunked", chunked("1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), 200));
    rows.push(HttpRow { code: 1, ..row("bad chunk", chunked("1\r\n{\r\nzz\r\n"), 400) });
    rows.push(HttpRow {
        code: 8,
        ..row("chunked over the limit", chunked(&format!("{:x}\r\n{}", LIMIT + 1, " ".repeat(LIMIT + 1))), 413)
    });
    rows.push(row("query strings are ignored", request("POST", "/v1/logs?x=1", JSON, b"{}"), 200));
    let accept = ("accept-encoding", "gzip, zstd, identity");
    rows.push(HttpRow {
        header: accept,
        ..post("names what it takes", &with(PROTO, "content-encoding: br\r\n"), b"", 415, p, 12)
    });
    let bearer = ("www-authenticate", "Bearer");
    rows.push(HttpRow { header: bearer, ..post("names its scheme", "authorization: x\r\n", b"", 401, j, 16) });
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_codes() {
    let server = start(Kind::Http, small(), 1 << 30).await;
    for row in http_rows() {
        let answer = exchange(&server, &row.raw).await;
        let what = row.what;
        assert_eq!(answer.status, row.status, "{what}: {answer:?}");
        assert_eq!(answer.header("content-type"), row.content_type, "{what}");
        assert_eq!(answer.header(row.header.0), row.header.1, "{what}");
        let seen = server.take_seen();
        if row.status == 200 {
            assert_eq!(seen.len(), 1, "{what}");
            let tenant = if what == "tenant" { "team-1" } else { "default" };
            assert_eq!((seen[0].signal, seen[0].tenant.as_str()), (Signal::Logs, tenant), "{what}");
            let empty: &[u8] = if row.content_type == "application/json" { b"{}" } else { b"" };
            assert_eq!(answer.body, empty, "{what}");
        } else {
            assert!(seen.is_empty(), "{what}");
            let status = answer.rpc_status();
            assert_eq!(status.code, row.code, "{what}: {status:?}");
            assert!(!status.message.is_empty() && status.message.len() <= MESSAGE_BYTES_MAX, "{what}");
            assert_eq!(status.has_bad_request(), row.code == 3, "{what}: {status:?}");
            assert_eq!(status.retry_s(), None, "{what}");
            assert_eq!(answer.header("retry-after"), "", "{what}");
        }
    }
    eventually("everything is given back", || server.budget.in_flight() == 0).await;
}

#[tokio::test]
async fn http_hands_on_the_exact_message() {
    let server = start(Kind::Http, small(), 1 << 30).await;
    for (signal, path) in PATHS {
        for length in [0, 1, 100, 70_000, LIMIT] {
            let data = protobuf(length);
            for (encoding, body) in [("identity", data.clone()), ("gzip", gzip(&data)), ("zstd", zstd(&data))] {
                let headers = format!("{PROTO}content-encoding: {encoding}\r\n");
                assert_eq!(exchange(&server, &request("POST", path, &headers, &body)).await.status, 200);
                let seen = server.take_seen();
                assert_eq!(seen.len(), 1);
                assert_eq!(seen[0].signal, signal);
                assert!(seen[0].body == data, "{path} {encoding} {length}");
            }
        }
        // JSON arrives as protobuf, small and (on the blocking thread) large.
        for length in [1, 400_000] {
            let text = format!(r#"{{"ignored":"{}"}}"#, "x".repeat(length));
            assert_eq!(exchange(&server, &request("POST", path, JSON, text.as_bytes())).await.status, 200);
            assert_eq!(server.take_seen()[0].body, b""[..]);
        }
    }
    let json = br#"{"resourceLogs":[{"schemaUrl":"u"}]}"#;
    exchange(&server, &request("POST", "/v1/logs", JSON, json)).await;
    assert_eq!(server.take_seen()[0].body, b"\x0a\x03\x1a\x01u"[..]);
}

/// The rejected count and message of a response, decoded with the signal's own type.
fn decoded(signal: Signal, bytes: &[u8]) -> Option<(i64, String)> {
    match signal {
        Signal::Traces => ExportTraceServiceResponse::decode(bytes)
            .unwrap()
            .partial_success
            .map(|partial| (partial.rejected_spans, partial.error_message)),
        Signal::Metrics => ExportMetricsServiceResponse::decode(bytes)
            .unwrap()
            .partial_success
            .map(|partial| (partial.rejected_data_points, partial.error_message)),
        Signal::Logs => ExportLogsServiceResponse::decode(bytes)
            .unwrap()
            .partial_success
            .map(|partial| (partial.rejected_log_records, partial.error_message)),
        Signal::Profiles => ExportProfilesServiceResponse::decode(bytes)
            .unwrap()
            .partial_success
            .map(|partial| (partial.rejected_profiles, partial.error_message)),
    }
}

#[tokio::test]
async fn http_outcomes() {
    let server = start(Kind::Http, small(), 1 << 30).await;
    for (signal, path) in PATHS {
        let proto = request("POST", path, PROTO, b"x");
        let json = request("POST", path, JSON, b"{}");
        server.outcome(Outcome::Rejected(3_000_000_000));
        let answer = exchange(&server, &proto).await;
        let (rejected, message) = decoded(signal, &answer.body).unwrap();
        assert_eq!((answer.status, rejected), (200, 3_000_000_000));
        assert!(message.starts_with("3000000000 rejected as "), "{message}");
        let answer = exchange(&server, &json).await;
        let field = match signal {
            Signal::Traces => "rejectedSpans",
            Signal::Metrics => "rejectedDataPoints",
            Signal::Logs => "rejectedLogRecords",
            Signal::Profiles => "rejectedProfiles",
        };
        let expected = serde_json::json!({ "partialSuccess": { field: "3000000000", "errorMessage": message } });
        assert_eq!((answer.status, answer.json()), (200, expected));

        for (outcome, status, code, retry_s) in [
            (Outcome::Malformed("truncated field".to_owned()), 400, 3, None),
            (Outcome::Overloaded(Duration::from_millis(1500)), 503, 14, Some(2)),
            (Outcome::Overloaded(Duration::ZERO), 503, 14, Some(1)),
            (Outcome::ShuttingDown, 503, 14, None),
            (Outcome::Panic, 500, 13, None),
        ] {
            server.outcome(outcome.clone());
            for raw in [&proto, &json] {
                let answer = exchange(&server, raw).await;
                let rpc = answer.rpc_status();
                assert_eq!((answer.status, rpc.code, rpc.retry_s()), (status, code, retry_s), "{outcome:?}");
                assert_eq!(answer.header("retry-after"), retry_s.map_or(String::new(), |s| s.to_string()));
            }
        }
        // A long explanation is cut, also in the middle of a character.
        server.outcome(Outcome::Malformed("é".repeat(100_000)));
        for raw in [&proto, &json] {
            let rpc = exchange(&server, raw).await.rpc_status();
            assert!((MESSAGE_BYTES_MAX - 1..=MESSAGE_BYTES_MAX).contains(&rpc.message.len()));
        }
    }
    drop(server.take_seen());
    assert_eq!(server.budget.in_flight(), 0);
}

#[tokio::test]
async fn http_connections_are_kept_and_served_by_http2_too() {
    let server = start(Kind::Http, small(), 1 << 30).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let big = protobuf(LIMIT + 1);
    for (body, status) in [(&b"x"[..], 200), (&big, 413), (b"y", 200)] {
        stream.write_all(&request("POST", "/v1/logs", PROTO, body)).await.unwrap();
        assert_eq!(within("answer", read_answer(&mut stream)).await.unwrap().status, status);
    }
    // A client that asks first is not told to go on when its body will not be wanted.
    let asks = format!("POST /v1/logs HTTP/1.1\r\nhost: a\r\n{PROTO}expect: 100-continue\r\ncontent-length: 5");
    for (length, expected) in [("\r\n\r\n", 100), ("000000\r\n\r\n", 413)] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(format!("{asks}{length}").as_bytes()).await.unwrap();
        assert_eq!(within("answer", read_answer(&mut stream)).await.unwrap().status, expected);
    }
    let mut client = http2_client(server.address).await;
    let request = Request::post("http://test/v1/traces").header("content-type", "application/x-protobuf");
    let response = client.send_request(request.body(Full::new(Bytes::from(big))).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn http_slow_and_oversized_clients_are_bounded() {
    let short = Duration::from_millis(100);
    let config = Config { header_timeout: short, read_timeout: short, idle_timeout: short, ..small() };
    let server = start(Kind::Http, config, 1 << 30).await;
    // Neither half a request line, half an HTTP/2 preface nor silence holds a connection.
    for opening in ["", "POST /v1/lo", "PRI * HTTP/2.0\r\n", "POST /v1/logs HTTP/1.1\r\nhost: a\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        within(opening, stream.read_to_end(&mut rest)).await.ok();
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&request("POST", "/v1/logs", PROTO, &protobuf(100))[..120]).await.unwrap();
    let answer = within("too slow", read_answer(&mut stream)).await.unwrap();
    assert_eq!((answer.status, answer.header("connection")), (503, "close"), "the client sends again");
    assert_eq!(answer.rpc_status().code, 4);
    assert_eq!(within("close", stream.read(&mut [0; 8])).await.unwrap_or(0), 0, "closed");

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST /v1/logs HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    stream.write_all(head.as_bytes()).await.ok();
    // The answer may be lost to the reset that follows; what counts is that it ended.
    let answer = within("431", read_answer(&mut stream)).await;
    assert!(answer.is_none_or(|answer| answer.status == 431));
    eventually("all connections closed", || server.metrics().contains("connections{transport=\"http\"} 0")).await;
    assert_eq!(server.take_seen().len(), 0);
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let server = start(Kind::Http, Config { connections_max: 1, ..small() }, 1 << 30).await;
    let first = TcpStream::connect(server.address).await.unwrap();
    eventually("first", || server.metrics().contains("connections{transport=\"http\"} 1")).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.write_all(&request("POST", "/v1/logs", PROTO, b"")).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), read_answer(&mut second)).await;
    assert!(early.is_err(), "served beside the first");
    drop(first);
    assert_eq!(within("second", read_answer(&mut second)).await.unwrap().status, 200);
}

// ---- gRPC ------------------------------------------------------------------------------------

type Client = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2_client(address: SocketAddr) -> Client {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

const SERVICES: [(Signal, &str); 4] = [
    (Signal::Traces, "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
    (Signal::Metrics, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"),
    (Signal::Logs, "/opentelemetry.proto.collector.logs.v1.LogsService/Export"),
    (Signal::Profiles, "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"),
];

const LOGS: &str = SERVICES[2].1;

#[derive(Debug)]
struct Call {
    http: u16,
    headers: HeaderMap,
    message: Bytes,
    trailers: HeaderMap,
}

impl Call {
    fn code(&self) -> Option<u8> {
        let value = self.headers.get("grpc-status").or_else(|| self.trailers.get("grpc-status"))?;
        value.to_str().unwrap().parse().ok()
    }

    fn rpc_status(&self) -> Option<Status> {
        use base64::Engine as _;
        let details = self.headers.get("grpc-status-details-bin")?.as_bytes();
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details).unwrap();
        Some(Status::decode(&bytes[..]).unwrap())
    }
}

async fn call(client: &mut Client, path: &str, headers: &[(&'static str, &str)], body: Vec<u8>) -> Call {
    within("call", async {
        let mut request = Request::post(format!("http://test{path}")).header("te", "trailers");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let (parts, body) = client.send_request(request).await.unwrap().into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Call { http: parts.status.as_u16(), headers: parts.headers, message: collected.to_bytes(), trailers }
    })
    .await
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_codes() {
    let server = start(Kind::Grpc, small(), 1 << 30).await;
    let mut client = http2_client(server.address).await;
    let data = protobuf(5000);
    let zeros = vec![0; 2 * LIMIT];
    let huge_claim = [&[0][..], &u32::MAX.to_be_bytes(), b"x"].concat();
    let (gz, zs) = (("grpc-encoding", "gzip"), ("grpc-encoding", "zstd"));
    type Row<'a> = (&'a str, &'a str, Vec<(&'static str, &'a str)>, Vec<u8>, u8);
    let rows: Vec<Row<'_>> = vec![
        ("plain", LOGS, vec![], framed(0, &data), 0),
        ("empty request", LOGS, vec![], framed(0, b""), 0),
        ("+proto", LOGS, vec![("content-type", "application/grpc+proto")], framed(0, &data), 0),
        ("identity", LOGS, vec![("grpc-encoding", "identity")], framed(0, &data), 0),
        ("gzip", LOGS, vec![gz], framed(1, &gzip(&data)), 0),
        ("gzip, this message not", LOGS, vec![gz], framed(0, &data), 0),
        ("zstd", LOGS, vec![zs], framed(1, &zstd(&data)), 0),
        ("accepts gzip", LOGS, vec![("grpc-accept-encoding", "gzip")], framed(0, &data), 0),
        ("tenant", LOGS, vec![("authorization", "Bearer team-1")], framed(0, &data), 0),
        ("exactly the limit", LOGS, vec![], framed(0, &protobuf(LIMIT)), 0),
        ("exactly the limit, gzip", LOGS, vec![gz], framed(1, &gzip(&vec![1; LIMIT])), 0),
        ("over the limit is not 11", LOGS, vec![], framed(0, &protobuf(LIMIT + 1)), 8),
        ("far over the limit", LOGS, vec![], framed(0, &protobuf(32 * LIMIT)), 8),
        ("4 GiB claimed", LOGS, vec![], huge_claim, 8),
        ("over the limit once gunzipped", LOGS, vec![gz], framed(1, &gzip(&zeros)), 8),
        ("over the limit, zstd", LOGS, vec![zs], framed(1, &zstd(&zeros)), 8),
        ("unknown credential", LOGS, vec![("authorization", "Bearer x")], framed(0, &data), 16),
        ("may not write", LOGS, vec![("authorization", "Bearer reader")], framed(0, &data), 7),
        ("unknown encoding", LOGS, vec![("grpc-encoding", "snappy")], framed(1, &data), 12),
        ("unknown service", "/opentelemetry.proto.collector.trace.v2.TraceService/Export", vec![], framed(0, b""), 12),
        ("unknown method", "/opentelemetry.proto.collector.trace.v1.TraceService/Import", vec![], framed(0, b""), 12),
        ("no method", "/", vec![], framed(0, b""), 12),
        ("plain called gzip", LOGS, vec![gz], framed(1, &data), 3),
        ("truncated gzip", LOGS, vec![gz], framed(1, &gzip(&data)[..200]), 3),
        ("gzip and garbage", LOGS, vec![gz], framed(1, &[gzip(&data), data.clone()].concat()), 3),
        ("empty gzip", LOGS, vec![gz], framed(1, b""), 3),
        ("truncated zstd", LOGS, vec![zs], framed(1, &zstd(&data)[..40]), 3),
        ("compressed with nothing", LOGS, vec![], framed(1, &gzip(&data)), 13),
        ("unknown flag", LOGS, vec![gz], framed(2, &data), 13),
        ("truncated prefix", LOGS, vec![], vec![0, 0, 0], 13),
        ("truncated message", LOGS, vec![], framed(0, &data)[..100].to_vec(), 13),
        ("no message", LOGS, vec![], vec![], 12),
        ("two messages", LOGS, vec![], [framed(0, &data), framed(0, &data)].concat(), 12),
    ];
    for (what, path, headers, body, code) in rows {
        let answer = call(&mut client, path, &headers, body).await;
        assert_eq!((answer.http, answer.code()), (200, Some(code)), "{what}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/grpc", "{what}");
        let seen = server.take_seen();
        if code == 0 {
            assert_eq!(&answer.message[..], &[0; 5], "{what}: the empty message");
            assert_eq!(seen.len(), 1, "{what}");
            let tenant = if what == "tenant" { "team-1" } else { "default" };
            assert_eq!((seen[0].signal, seen[0].tenant.as_str()), (Signal::Logs, tenant), "{what}");
        } else {
            assert!(seen.is_empty() && answer.message.is_empty(), "{what}");
            let status = answer.rpc_status().unwrap();
            assert_eq!((status.code, status.retry_s()), (i32::from(code), None), "{what}");
            let plain = answer.headers["grpc-message"].to_str().unwrap().replace("%20", " ");
            assert_eq!(plain, status.message, "{what}: plain ascii");
            assert_eq!(status.has_bad_request(), code == 3, "{what}");
        }
        let accept = answer.headers.get("grpc-accept-encoding").map_or(&b""[..], |value| value.as_bytes());
        let expected: &[u8] = if what == "unknown encoding" { b"identity,gzip,zstd" } else { b"" };
        assert_eq!(accept, expected, "{what}");
    }
    // What is not gRPC gets an HTTP status.
    for kind in ["application/json", "application/grpc-web", "text/plain", "application/grpc+json"] {
        let answer = call(&mut client, LOGS, &[("content-type", kind)], framed(0, b"")).await;
        assert_eq!((answer.http, answer.code()), (415, None), "{kind}");
    }
    let get = Request::get(format!("http://test{LOGS}")).body(Full::default()).unwrap();
    let response = client.send_request(get).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["allow"].as_bytes()), (405, &&b"POST"[..]));
    eventually("everything is given back", || server.budget.in_flight() == 0).await;
}

#[tokio::test]
async fn grpc_outcomes() {
    let server = start(Kind::Grpc, small(), 1 << 30).await;
    let mut client = http2_client(server.address).await;
    for (signal, path) in SERVICES {
        server.outcome(Outcome::Rejected(7));
        let data = protobuf(70_000);
        let answer = call(&mut client, path, &[], framed(0, &data)).await;
        let (rejected, message) = decoded(signal, &answer.message[5..]).unwrap();
        assert_eq!((answer.code(), rejected), (Some(0), 7));
        assert!(message.starts_with("7 rejected as "), "{message}");
        let seen = server.take_seen();
        assert_eq!(seen[0].signal, signal);
        assert!(seen[0].body == data);
        for (outcome, code, retry_s) in [
            (Outcome::Malformed("100 % é\n".to_owned()), 3, None),
            (Outcome::Overloaded(Duration::from_millis(1500)), 14, Some(2)),
            (Outcome::ShuttingDown, 14, None),
            (Outcome::Panic, 13, None),
        ] {
            server.outcome(outcome.clone());
            let answer = call(&mut client, path, &[], framed(0, b"x")).await;
            let status = answer.rpc_status().unwrap();
            assert_eq!((answer.code(), status.code, status.retry_s()), (Some(code), i32::from(code), retry_s));
            if code == 3 {
                assert!(status.message.ends_with("100 % é\n"), "{status:?}");
                assert!(answer.headers["grpc-message"].as_bytes().ends_with(b"100%20%25%20%C3%A9%0A"), "{answer:?}");
            }
        }
        server.take_seen();
    }
}

#[tokio::test]
async fn grpc_slow_and_hostile_clients_are_bounded() {
    let short = Duration::from_millis(100);
    let server = start(Kind::Grpc, Config { read_timeout: short, idle_timeout: short, ..small() }, 1 << 30).await;
    // Headers over the limit: 431, as HTTP/2 servers answer them.
    let mut client = http2_client(server.address).await;
    let long = "y".repeat(20 << 10);
    let answer = call(&mut client, LOGS, &[("x-long", &long)], framed(0, b"")).await;
    assert_eq!((answer.http, answer.code()), (431, None));
    // A body that never ends: 100 bytes promised, 1 sent.
    let mut client = {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (client, connection) = hyper::client::conn::http2::handshake::<_, _, http_body_util::StreamBody<_>>(
            TokioExecutor::new(),
            TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        client
    };
    use futures::StreamExt as _;
    let start_of = Bytes::from(framed(0, &[0; 100])[..6].to_vec());
    let frames = futures::stream::iter([Ok::<_, std::convert::Infallible>(http_body::Frame::data(start_of))])
        .chain(futures::stream::pending());
    let request = Request::post(format!("http://test{LOGS}")).header("content-type", "application/grpc");
    let request = request.body(http_body_util::StreamBody::new(frames)).unwrap();
    let response = within("timeout", client.send_request(request)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(server.budget.in_flight(), 0);
    // Silence and half a preface do not hold a connection.
    for opening in ["", "PRI * HTT"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        within("close", stream.read_to_end(&mut Vec::new())).await.ok();
    }
    // Rapid reset: streams opened and reset at once, by the thousand.
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1_u32..4001).step_by(2) {
        attack.extend([0, 0, 6, 1, 4]);
        attack.extend(stream.to_be_bytes());
        attack.extend([0x83, 0x86, 0x84, 0x41, 1, b'a']);
        attack.extend([0, 0, 4, 3, 0]);
        attack.extend(stream.to_be_bytes());
        attack.extend(8_u32.to_be_bytes());
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (mut from, mut to) = stream.split();
    let mut received = Vec::new();
    let (_sent, _received) =
        within("goaway", async { tokio::join!(to.write_all(&attack), from.read_to_end(&mut received)) }).await;
    // GOAWAY (7) with ENHANCE_YOUR_CALM (11).
    let mut frames = &received[..];
    let mut calm = false;
    while let [a, b, c, kind, _flags, _, _, _, _, rest @ ..] = frames {
        let (payload, next) = rest.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
        calm |= *kind == 7 && payload[4..8] == 11_u32.to_be_bytes();
        frames = next;
    }
    assert!(calm, "{received:?}");
}

// ---- an ordinary gRPC client --------------------------------------------------------------------

#[derive(Clone, Copy, Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(out, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn decode(&mut self, input: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Vec<u8>>, tonic::Status> {
        let mut message = vec![0; bytes::Buf::remaining(input)];
        bytes::Buf::copy_to_slice(input, &mut message);
        Ok(Some(message))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonics_client_gets_along() {
    use tonic::codec::CompressionEncoding;
    let server = start(Kind::Grpc, small(), 1 << 30).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    for encoding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        if let Some(encoding) = encoding {
            client = client.send_compressed(encoding).accept_compressed(encoding);
        }
        for (length, expected) in [(0, None), (100_000, None), (LIMIT, None), (8 * LIMIT, Some(8)), (10, None)] {
            client.ready().await.unwrap();
            let data = vec![5; length];
            let path = LOGS.parse().unwrap();
            let outcome = within("unary", client.unary(tonic::Request::new(data.clone()), path, RawCodec)).await;
            match outcome {
                Ok(response) => {
                    assert_eq!((response.into_inner(), expected), (Vec::new(), None));
                    assert!(server.take_seen()[0].body == data, "{encoding:?} {length}");
                }
                Err(status) => assert_eq!(Some(status.code() as i32), expected, "{encoding:?} {length}: {status}"),
            }
        }
        server.outcome(Outcome::Overloaded(Duration::from_secs(3)));
        client.ready().await.unwrap();
        let refused = client.unary(tonic::Request::new(Vec::new()), LOGS.parse().unwrap(), RawCodec).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert_eq!(Status::decode(refused.details()).unwrap().retry_s(), Some(3));
        server.outcome(Outcome::Full);
        server.take_seen();
    }
}

// ---- memory and life cycle ---------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_bounded() {
    let member = vec![0; 128 << 20];
    let limit = Config::default().request_bytes_max as u64;
    for (encoding, bomb) in [("gzip", gzip(&member).repeat(8)), ("zstd", zstd(&member).repeat(8))] {
        // A gibibyte each.
        let http = start(Kind::Http, Config::default(), 1 << 40).await;
        let headers = format!("{PROTO}content-encoding: {encoding}\r\n");
        assert_eq!(exchange(&http, &request("POST", "/v1/logs", &headers, &bomb)).await.status, 413, "{encoding}");
        let grpc = start(Kind::Grpc, Config::default(), 1 << 40).await;
        let mut client = http2_client(grpc.address).await;
        let answer = call(&mut client, LOGS, &[("grpc-encoding", encoding)], framed(1, &bomb)).await;
        assert_eq!(answer.code(), Some(8), "{encoding}");
        for server in [&http, &grpc] {
            eventually("freed", || server.budget.in_flight() == 0).await;
            let peak = server.budget.peak();
            assert!(peak > limit, "the peak was measured");
            assert!(peak <= limit + (9 << 20), "{encoding}: the limit and a window: {peak}");
        }
        // Many at once are bounded by the budget, whatever they are told.
        let crowded = start(Kind::Http, Config::default(), limit + (16 << 20)).await;
        let raw = request("POST", "/v1/logs", &headers, &bomb);
        let answers = futures::future::join_all((0..8).map(|_| exchange(&crowded, &raw))).await;
        for answer in answers {
            assert!(matches!(answer.status, 413 | 503), "{answer:?}");
        }
        assert!(crowded.budget.peak() <= limit + (25 << 20), "{}", crowded.budget.peak());
        eventually("freed", || crowded.budget.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_full_budget_is_a_retryable_refusal_until_there_is_room() {
    for kind in [Kind::Http, Kind::Grpc] {
        let server = start(kind, small(), 100_000).await;
        server.outcome(Outcome::Gate);
        let data = protobuf(80_000);
        let send = async || match kind {
            Kind::Http => {
                let answer = exchange(&server, &request("POST", "/v1/logs", PROTO, &data)).await;
                (i32::from(answer.status), answer.status, answer.header("retry-after").to_owned())
            }
            Kind::Grpc => {
                let mut client = http2_client(server.address).await;
                let answer = call(&mut client, LOGS, &[], framed(0, &data)).await;
                let retry = answer.rpc_status().and_then(|status| status.retry_s());
                (i32::from(answer.code().unwrap()), answer.http, retry.map_or(String::new(), |s| s.to_string()))
            }
        };
        let (full, refused) = if kind == Kind::Http { (200, (503, 503)) } else { (0, (14, 200)) };
        let second = async {
            within("first arrives", server.fake.arrived.acquire()).await.unwrap().forget();
            assert_eq!(server.budget.in_flight(), 80_000, "held until the outcome is known");
            let (code, http, retry) = send().await;
            assert_eq!((code, http, retry.as_str()), (refused.0, refused.1, "1"));
            drop(server.take_seen());
            assert_eq!(server.budget.in_flight(), 80_000, "also when the body is gone");
            server.fake.gate.add_permits(2);
        };
        let (first, ()) = tokio::join!(send(), second);
        assert_eq!(first.0, full);
        drop(server.take_seen());
        assert_eq!(server.budget.in_flight(), 0);
        assert_eq!(send().await.0, full);
        let refusals = format!(
            "refused_total{{transport=\"{}\",reason=\"overloaded\"}} 1",
            ["http", "grpc"][usize::from(kind == Kind::Grpc)]
        );
        assert!(server.metrics().contains(&refusals), "{}", server.metrics());
    }
}

#[tokio::test]
async fn memory_stays_counted_when_the_client_leaves() {
    let server = start(Kind::Http, small(), 100_000).await;
    server.outcome(Outcome::Gate);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&request("POST", "/v1/logs", PROTO, &protobuf(80_000))).await.unwrap();
    within("arrives", server.fake.arrived.acquire()).await.unwrap().forget();
    drop(stream);
    let left = "requests_total{transport=\"http\",signal=\"logs\",code=\"499\"} 1";
    eventually("noticed", || server.metrics().contains(left)).await;
    assert_eq!(server.budget.in_flight(), 80_000, "the pipeline still holds the bytes");
    drop(server.take_seen());
    assert_eq!(server.budget.in_flight(), 0);
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight() {
    for kind in [Kind::Http, Kind::Grpc] {
        let mut server = start(kind, small(), 1 << 30).await;
        server.outcome(Outcome::Gate);
        // An idle connection does not hold up the end.
        let _idle = TcpStream::connect(server.address).await.unwrap();
        let end = async {
            within("arrives", server.fake.arrived.acquire()).await.unwrap().forget();
            server.shutdown.cancel();
            eventually("listener closed", || std::net::TcpStream::connect(server.address).is_err()).await;
            assert!(!server.task.is_finished(), "{kind:?}: waits for the one in flight");
            server.fake.gate.add_permits(1);
        };
        let request = async {
            match kind {
                Kind::Http => exchange(&server, &request("POST", "/v1/logs", PROTO, b"x")).await.status == 200,
                Kind::Grpc => {
                    let mut client = http2_client(server.address).await;
                    call(&mut client, LOGS, &[], framed(0, b"x")).await.code() == Some(0)
                }
            }
        };
        let ((), served) = tokio::join!(end, request);
        assert!(served, "{kind:?}");
        within("drained", &mut server.task).await.unwrap();
    }
}

#[tokio::test]
async fn metrics_count_every_request_once() {
    let server = start(Kind::Http, small(), 1 << 30).await;
    let gzipped = format!("{PROTO}content-encoding: gzip\r\n");
    exchange(&server, &request("POST", "/v1/traces", &gzipped, &gzip(&protobuf(5000)))).await;
    exchange(&server, &request("POST", "/v1/metrics", "", b"")).await;
    exchange(&server, &request("POST", "/nowhere", JSON, b"{}")).await;
    drop(server.take_seen());
    let text = server.metrics();
    for line in [
        "godseye_receiver_requests_total{transport=\"http\",signal=\"traces\",code=\"200\"} 1",
        "godseye_receiver_requests_total{transport=\"http\",signal=\"metrics\",code=\"415\"} 1",
        "godseye_receiver_requests_total{transport=\"http\",signal=\"none\",code=\"404\"} 1",
        "godseye_receiver_request_duration_seconds_count{transport=\"http\"} 3",
        "godseye_receiver_refused_total{transport=\"http\",reason=\"unknown_path\"} 1",
        "godseye_receiver_decompressed_bytes_total{encoding=\"gzip\"} 5000",
        "godseye_receiver_in_flight_bytes 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
