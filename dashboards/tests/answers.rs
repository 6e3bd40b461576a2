//! The HTTP API through the router, over a real engine: formats, statuses, headers, limits, what there is to ask.
//!
//! Not here: what SQL means (the query crate's tests), probes (the unit tests), and ten million rows (`exports.rs`).
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use axum::body::Body;
use dashboards::auth::Authenticator;
use dashboards::{Deps, Doors, Export, Readiness, ReadyState};
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use model::attributes::Kinds;
use model::ledger::{LedgerLine, RejectReason};
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use query::source::{Container, ObservedKinds, SegmentFile, Snapshot, Source};
use tower::ServiceExt as _;

/// No telemetry, and a ledger of two lines, or of many that are all alike.
struct Ledger {
    minutes: u64,
}

impl ObservedKinds for Ledger {
    fn kinds(&self, _table: Table, _container: Container, _key: &str) -> Kinds {
        Kinds::default()
    }
}

impl Source for Ledger {
    fn snapshot(&self, _tenant: &TenantId) -> Snapshot {
        Snapshot::new(Arc::new(Self { minutes: self.minutes }))
    }

    fn ledger(&self, _tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        if self.minutes > 0 {
            let line = |items| LedgerLine { minute: 0, signal: Signal::Traces, reason: None, items };
            return Ok((0..self.minutes).map(line).collect());
        }
        let line = |reason, items| LedgerLine { minute: 0, signal: Signal::Logs, reason, items };
        Ok(vec![line(None, 5), line(Some(RejectReason::KeyTooLong), 1)])
    }

    fn verify(&self, _segment: &SegmentFile) -> Result<(), String> {
        Ok(())
    }

    fn quarantine(&self, _segment: &SegmentFile, _why: &str) -> Result<(), String> {
        Ok(())
    }
}

struct Ready;

impl Readiness for Ready {
    fn state(&self) -> ReadyState {
        ReadyState::Ready
    }
}

fn doors(limits: query::Limits) -> Doors {
    doors_over(Ledger { minutes: 0 }, limits)
}

/// A ledger of 500 lines: joined with itself it gives a quarter of a million rows.
fn many_rows(limits: query::Limits) -> Doors {
    doors_over(Ledger { minutes: 500 }, limits)
}

fn doors_over(ledger: Ledger, limits: query::Limits) -> Doors {
    let doors = Doors::new(Deps {
        readiness: Arc::new(Ready),
        authenticator: Arc::new(Authenticator::default()),
        limits,
        export: Export { rows_max: 1_000_000, ..Export::default() },
        send_timeout: Duration::from_secs(60),
        reload: Arc::new(|| Ok(())),
    });
    let config = query::EngineConfig { threads: 2, ..query::EngineConfig::default() };
    let engine = query::Engine::new(config, Arc::new(ledger)).unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    engine.register(&mut registry);
    doors.open(Arc::new(engine), Arc::new(registry));
    doors
}

async fn send(doors: &Doors, request: Request<Body>) -> (u16, HeaderMap, Vec<u8>) {
    let response = doors.router().oneshot(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

async fn post(doors: &Doors, query: &str, accept: &str, sql: impl Into<Body>) -> (u16, HeaderMap, Vec<u8>) {
    let request = Request::post(format!("/api/v1/sql{query}")).header("accept", accept).body(sql.into()).unwrap();
    send(doors, request).await
}

fn limits() -> query::Limits {
    query::Limits { timeout: Duration::from_secs(60), ..query::Limits::default() }
}

const SQL: &str = "SELECT signal, reason, received FROM ingest_ledger ORDER BY received DESC";

#[tokio::test]
async fn an_answer_in_every_format() {
    let doors = doors(limits());
    let ndjson = "{\"signal\":\"logs\",\"reason\":null,\"received\":5}\n\
                  {\"signal\":\"logs\",\"reason\":\"key_too_long\",\"received\":1}\n";
    let csv = "signal,reason,received\r\nlogs,,5\r\nlogs,key_too_long,1\r\n";
    for (query, accept, content_type, expected) in [
        ("?format=ndjson", "*/*", "application/x-ndjson", ndjson),
        ("", "application/x-ndjson", "application/x-ndjson", ndjson),
        ("?format=csv", "application/json", "text/csv; charset=utf-8; header=present", csv),
        ("", "text/html, text/csv;q=0.9", "text/csv; charset=utf-8; header=present", csv),
    ] {
        let (status, headers, body) = post(&doors, query, accept, SQL).await;
        assert_eq!((status, String::from_utf8(body).unwrap().as_str()), (200, expected), "{query} {accept}");
        assert_eq!(headers["content-type"], content_type, "{query} {accept}");
    }
    for (query, accept) in [("", "*/*"), ("?format=json", "text/csv")] {
        let (status, headers, body) = post(&doors, query, accept, SQL).await;
        assert_eq!((status, &headers["content-type"]), (200, &"application/json".parse().unwrap()));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let columns =
            r#"[{"name":"signal","type":"text"},{"name":"reason","type":"text"},{"name":"received","type":"bigint"}]"#;
        assert_eq!(body["columns"], serde_json::from_str::<serde_json::Value>(columns).unwrap());
        assert_eq!(body["rows"], serde_json::json!([["logs", null, 5], ["logs", "key_too_long", 1]]));
        assert_eq!((&body["stats"]["rows"], &body["stats"]["truncated"]), (&2.into(), &false.into()));
    }
    let expected = "[logs,,5][logs,key_too_long,1]";
    let (status, headers, body) = post(&doors, "?format=arrow", "*/*", SQL).await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/vnd.apache.arrow.stream".parse().unwrap()));
    assert_eq!(shown(StreamReader::try_new(body.as_slice(), None).unwrap()), expected);
    for (query, accept) in [("?format=parquet", "*/*"), ("", "application/vnd.apache.parquet")] {
        let (status, headers, body) = post(&doors, query, accept, SQL).await;
        assert_eq!((status, &headers["content-type"]), (200, &"application/vnd.apache.parquet".parse().unwrap()));
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(body)).unwrap().build().unwrap();
        assert_eq!(shown(reader), expected);
    }
}

/// The rows of some batches, as text.
fn shown(batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>) -> String {
    let mut out = String::new();
    for batch in batches {
        let batch = batch.unwrap();
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &FormatOptions::default()).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            out.push_str(&format!("[{}]", cells.join(",")));
        }
    }
    out
}

#[tokio::test]
async fn every_type_of_column_leaves_in_every_format() {
    let doors = doors(limits());
    let sql = "SELECT NULL AS nothing, true AS flag, 1 AS int, 1.5 AS double, 'x' AS text, X'01ff' AS bytes,
                   CAST(1.25 AS DECIMAL(9,2)) AS decimal, DATE '2026-01-02' AS day, TIMESTAMP '2026-01-02T03:04:05' AS at,
                   INTERVAL '1 month 2 days' AS span, [1, NULL] AS list, [['a']] AS lists, {'a': 1} AS struct, now() AS now,
                   TIME '03:04:05' AS time";
    for format in ["json", "ndjson", "csv", "arrow", "parquet"] {
        let (status, _, body) = post(&doors, &format!("?format={format}"), "*/*", sql).await;
        assert_eq!(status, 200, "{format}: {}", String::from_utf8_lossy(&body));
        match format {
            "arrow" => assert_eq!(StreamReader::try_new(body.as_slice(), None).unwrap().count(), 1),
            "parquet" => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(body)).unwrap();
                assert_eq!(reader.build().unwrap().map(|batch| batch.unwrap().num_columns()).sum::<usize>(), 15);
            }
            _ => assert!(String::from_utf8(body).unwrap().contains("2026-01-02"), "{format}"),
        }
    }
}

#[tokio::test]
async fn a_format_that_is_not_there_is_refused_with_those_that_are() {
    let doors = doors(limits());
    for (query, accept, status) in [
        ("", "text/html", 406),
        ("", "application/json;q=0", 406),
        ("", "image/png, text/html;q=0.5", 406),
        ("?format=json", "text/html", 200),
        ("", "text/html, */*;q=0.1", 200),
        ("", "text/html, application/*", 200),
    ] {
        let (found, _, body) = post(&doors, query, accept, SQL).await;
        assert_eq!(found, status, "{query} {accept}");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if status == 406 {
            assert_eq!(body["error"]["code"], "not_acceptable", "{accept}");
            let message = body["error"]["message"].as_str().unwrap();
            for media in ["application/json", "text/csv", "application/vnd.apache.parquet"] {
                assert!(message.contains(media), "{accept}: {message}");
            }
        }
    }
}

/// A quarter of a million rows, each another number.
const MANY: &str =
    "SELECT a.received * 500 + b.received AS n FROM ingest_ledger a JOIN ingest_ledger b ON a.signal = b.signal";

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    let doors = many_rows(limits());
    let sql = format!("{MANY} LIMIT 50000");
    for format in ["json", "ndjson", "csv", "arrow"] {
        let mut bodies = Vec::new();
        for (accept, encoding) in
            [("identity", None), ("gzip, br", Some("gzip")), ("gzip, zstd", Some("zstd")), ("br", None)]
        {
            let request = Request::post(format!("/api/v1/sql?format={format}"))
                .header("accept-encoding", accept)
                .body(Body::from(sql.clone()))
                .unwrap();
            let (status, headers, body) = send(&doors, request).await;
            assert_eq!(status, 200, "{format} {accept}");
            assert_eq!(headers.get("content-encoding").map(|value| value.to_str().unwrap()), encoding, "{format}");
            assert!(headers["vary"].to_str().unwrap().contains("accept-encoding"), "{format}");
            let mut plain = Vec::new();
            match encoding {
                Some("gzip") => drop(flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut plain).unwrap()),
                Some(_) => plain = zstd::stream::decode_all(body.as_slice()).unwrap(),
                None => plain.clone_from(&body),
            }
            assert!(encoding.is_none() || body.len() * 3 < plain.len() * 2, "{format} {accept}: {}", body.len());
            // The statistics of two answers differ, and so may the order of rows.
            bodies.push(plain.len() / 2_000);
        }
        assert!(bodies.iter().all(|length| *length == bodies[0]), "{format}: {bodies:?}");
    }
    let small = Request::post("/api/v1/sql").header("accept-encoding", "gzip").body(Body::from("SELECT 1")).unwrap();
    assert!(!send(&doors, small).await.1.contains_key("content-encoding"), "a small answer goes out as it is");
}

#[tokio::test]
async fn a_limit_that_nobody_asked_for_is_never_silent() {
    let doors = many_rows(query::Limits { rows_max: 100_000, ..limits() });
    // Asked for: as many as wanted, and the answer is whole.
    for (format, limit, lines) in [
        ("csv", 7, 8),
        ("ndjson", 7, 7),
        ("csv", 150_000, 150_001),
        ("csv", 250_000, 250_001),
        ("csv", 1_000_000, 250_001),
    ] {
        let (status, headers, body) = post(&doors, &format!("?format={format}&limit={limit}"), "*/*", MANY).await;
        assert_eq!((status, &headers["godseye-rows-max"]), (200, &limit.to_string().parse().unwrap()), "{format}");
        assert_eq!(body.iter().filter(|byte| **byte == b'\n').count(), lines, "{format} {limit}");
    }
    for (query, rows, truncated) in [("", 100_000, true), ("?limit=5", 5, true), ("?limit=250000", 250_000, false)] {
        let body: serde_json::Value = serde_json::from_slice(&post(&doors, query, "*/*", MANY).await.2).unwrap();
        assert_eq!((&body["stats"]["rows"], &body["stats"]["truncated"]), (&rows.into(), &truncated.into()), "{query}");
    }
    // Not asked for: the body ends in an error, or in the middle.
    let (status, _, body) = post(&doors, "?format=ndjson", "*/*", MANY).await;
    let last: serde_json::Value =
        serde_json::from_slice(body.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((status, &last["error"]["code"]), (200, &"row_limit".into()));
    for format in ["csv", "arrow"] {
        let request = Request::post(format!("/api/v1/sql?format={format}")).body(Body::from(MANY)).unwrap();
        let response = doors.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{format}");
        assert!(response.into_body().collect().await.is_err(), "{format}: the transfer is broken");
    }
    // Known before the first byte: a status. Parquet writes its first one after a row group.
    let (status, _, body) = post(&doors, "?format=parquet", "*/*", MANY).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["error"]["code"]), (422, &"row_limit".into()));
    let few = doors_over(Ledger { minutes: 0 }, query::Limits { rows_max: 1, ..limits() });
    for format in ["ndjson", "csv", "arrow", "parquet"] {
        let (status, _, body) = post(&few, &format!("?format={format}"), "*/*", SQL).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &body["error"]["code"]), (422, &"row_limit".into()), "{format}");
        assert!(body["error"]["hint"].as_str().unwrap().contains("limit"), "{format}");
    }
}

#[tokio::test]
async fn exports_leave_permits_to_others() {
    let doors = many_rows(query::Limits { rows_max: 10, ..limits() });
    let export = || Request::post("/api/v1/sql?format=csv&limit=250000").body(Body::from(MANY)).unwrap();
    // Two whose clients do not read on; the third is told to wait, and a question is not.
    let held = [doors.router().oneshot(export()).await.unwrap(), doors.router().oneshot(export()).await.unwrap()];
    let (status, headers, body) = send(&doors, export()).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["error"]["code"], headers.contains_key("retry-after")), (429, &"busy".into(), true));
    assert_eq!(post(&doors, "", "*/*", "SELECT 1").await.0, 200);
    drop(held);
    // An export whose client is gone ends, and gives back its permit with the last of its tasks.
    let mut status = 429;
    for _ in 0..500 {
        status = send(&doors, export()).await.0;
        if status != 429 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(status, 200);
}

async fn get(doors: &Doors, path: &str) -> (u16, serde_json::Value) {
    let (status, headers, body) = send(doors, Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(headers["content-type"], "application/json", "{path}");
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn tables_and_columns_are_listed() {
    let doors = doors(limits());
    let (status, body) = get(&doors, "/api/v1/tables").await;
    assert_eq!(status, 200);
    let tables = body["tables"].as_array().unwrap();
    let (_, _, names) = post(&doors, "?format=csv", "*/*", "SHOW TABLES").await;
    let listed: Vec<&str> = tables.iter().map(|table| table["name"].as_str().unwrap()).collect();
    assert_eq!(format!("table_name\r\n{}\r\n", listed.join("\r\n")).as_bytes(), names);
    let spans = &tables[0];
    assert_eq!((&spans["rows"], &spans["oldest"]), (&0.into(), &serde_json::Value::Null));
    let start = spans["columns"].as_array().unwrap().iter().find(|column| column["name"] == "start_time").unwrap();
    let expected = serde_json::json!({
        "name": "start_time", "type": "timestamp", "nullable": false, "description": start["description"],
    });
    assert_eq!(start, &expected);
    assert!(tables.iter().all(|table| table["description"].as_str().is_some_and(|line| !line.is_empty())));
}

#[tokio::test]
async fn attributes_are_asked_for_with_care() {
    let doors = doors(limits());
    let (status, body) = get(&doors, "/api/v1/attributes?table=spans&prefix=http.&container=resource_attributes").await;
    let expected = serde_json::json!({
        "table": "spans", "container": "resource_attributes",
        "sample": { "rows": 0, "of_rows": 0, "since": null, "is_complete": true },
        "keys_total": 0, "keys_not_told_apart": 0, "keys": [],
    });
    assert_eq!((status, body), (200, expected));
    for (path, code, part) in [
        ("/api/v1/attributes", "bad_parameter", "table is missing"),
        ("/api/v1/attributes?table=nothing", "bad_query", "there is no table `nothing`"),
        ("/api/v1/attributes?table=spans&container=name", "bad_query", "`name` is no container"),
        ("/api/v1/attributes?table=spans&keys=0", "bad_parameter", "keys `0` is not possible"),
        ("/api/v1/attributes?table=spans&values=1000", "bad_parameter", "expected 1 to 100"),
        ("/api/v1/attributes?table=spans&perfix=a", "bad_parameter", "there is no parameter `perfix`"),
        ("/api/v1/tables?name=spans", "bad_parameter", "expected none"),
    ] {
        let (status, body) = get(&doors, path).await;
        assert_eq!((status, &body["error"]["code"]), (400, &code.into()), "{path}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(part), "{path}: {body}");
    }
}

#[tokio::test]
async fn answers_without_rows_are_whole() {
    let doors = doors(limits());
    let none = "SELECT trace_id, name FROM spans";
    let (_, _, body) = post(&doors, "", "*/*", none).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["rows"], &body["columns"][0]["type"]), (&serde_json::json!([]), &"hex".into()));
    assert_eq!(post(&doors, "?format=csv", "*/*", none).await.2, b"trace_id,name\r\n");
    assert_eq!(post(&doors, "?format=ndjson", "*/*", none).await.2, b"");
    let (_, _, body) = post(&doors, "?format=arrow", "*/*", none).await;
    assert_eq!(StreamReader::try_new(body.as_slice(), None).unwrap().count(), 0);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_says_so() {
    let doors = doors(query::Limits { rows_max: 1, ..limits() });
    let (status, _, body) = post(&doors, "", "*/*", SQL).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, body["rows"].as_array().unwrap().len()), (200, 1));
    assert_eq!(body["stats"]["truncated"], true);
    assert_eq!(body["stats"]["warnings"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn errors_have_a_status_a_code_and_a_message() {
    let doors = doors(limits());
    for (query, sql, status, code) in [
        ("", "SELEC 1".as_bytes().to_vec(), 400, "bad_query"),
        ("", b"SELECT nothing FROM spans".to_vec(), 400, "bad_query"),
        ("", b"".to_vec(), 400, "bad_query"),
        ("", b"SELECT '\xff'".to_vec(), 400, "bad_query"),
        ("", b"COPY spans TO '/tmp/x'".to_vec(), 400, "not_allowed"),
        ("", b"SELECT 1; SELECT 2".to_vec(), 400, "not_allowed"),
        ("?limit=0", b"SELECT 1".to_vec(), 400, "bad_parameter"),
        ("?limit=1000001", b"SELECT 1".to_vec(), 400, "bad_parameter"),
        ("?limit=ten", b"SELECT 1".to_vec(), 400, "bad_parameter"),
        ("?limit=-1", b"SELECT 1".to_vec(), 400, "bad_parameter"),
        ("?limt=10", b"SELECT 1".to_vec(), 400, "bad_parameter"),
        ("?format=%zz", b"SELECT 1".to_vec(), 400, "bad_format"),
        ("?format=csv", b"DROP TABLE spans".to_vec(), 400, "not_allowed"),
        ("?format=xml", b"SELECT 1".to_vec(), 400, "bad_format"),
        ("", vec![b' '; 70 << 10], 413, "query_too_large"),
        ("", vec![b' '; 1 << 20], 413, "bad_body"),
    ] {
        let shown = String::from_utf8_lossy(&sql[..sql.len().min(40)]).into_owned();
        let (found, headers, body) = post(&doors, query, "*/*", sql).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((found, body["error"]["code"].as_str().unwrap()), (status, code), "{shown}: {text}");
        assert!(!body["error"]["message"].as_str().unwrap().is_empty(), "{shown}");
        assert_eq!(headers["content-type"], "application/json", "{shown}");
        assert_eq!(headers["cache-control"], "no-store", "{shown}");
    }
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_not_sent_again_by_itself() {
    let doors = doors(query::Limits { timeout: Duration::ZERO, ..limits() });
    let (status, headers, body) = post(&doors, "", "*/*", SQL).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    // Clients repeat a 408 unasked; they do so neither with 504 nor without Retry-After.
    assert_eq!((status, body["error"]["code"].as_str()), (504, Some("timeout")), "{body}");
    assert!(!headers.contains_key("retry-after"), "{headers:?}");
}

#[tokio::test]
async fn deriving_anew_is_asked_of_whoever_can() {
    let rebuild = || Request::post("/-/rebuild-derived").body(Body::empty()).unwrap();
    for (answer, status, part) in [
        (None, 404, "derives nothing"),
        (Some(Ok(())), 202, "anew"),
        (Some(Err("the disk is full".to_owned())), 503, "the disk is full"),
    ] {
        let doors = doors(limits());
        if let Some(answer) = answer {
            doors.offer_rebuild(Arc::new(move |tenant| {
                assert_eq!(*tenant, TenantId::default_tenant());
                answer.clone()
            }));
        }
        let (found, _, body) = send(&doors, rebuild()).await;
        let body = String::from_utf8(body).unwrap();
        assert!(found == status && body.contains(part), "{found} {body}");
    }
}

#[tokio::test]
async fn metrics_count_queries_by_outcome() {
    let doors = doors(limits());
    post(&doors, "", "*/*", SQL).await;
    post(&doors, "", "*/*", "SELEC 1").await;
    let mut text = String::new();
    // A query's own thread counts it as ended, a moment after its answer is there.
    for _ in 0..500 {
        let (status, _, body) = send(&doors, Request::get("/metrics").body(Body::empty()).unwrap()).await;
        assert_eq!(status, 200);
        text = String::from_utf8(body).unwrap();
        if text.contains("godseye_query_running 0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for line in [
        "godseye_query_queries_total{outcome=\"ok\"} 1",
        "godseye_query_queries_total{outcome=\"bad_query\"} 1",
        "godseye_query_running 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(send(&doors, Request::get("/readyz").body(Body::empty()).unwrap()).await.0, 200);
}
