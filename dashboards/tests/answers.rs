//! `POST /api/v1/sql` through the router, over a real engine: formats, statuses, headers.
//!
//! Not here: what SQL means (the query crate's tests) and probes (the unit tests).
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use axum::body::Body;
use dashboards::auth::Authenticator;
use dashboards::{Deps, Doors, Readiness, ReadyState};
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use model::attributes::Kinds;
use model::ledger::{LedgerLine, RejectReason};
use model::signal::{Signal, Table};
use model::tenant::TenantId;
use query::source::{Container, ObservedKinds, SegmentFile, Snapshot, Source};
use tower::ServiceExt as _;

/// No telemetry, and a ledger of two lines.
struct Ledger;

impl ObservedKinds for Ledger {
    fn kinds(&self, _table: Table, _container: Container, _key: &str) -> Kinds {
        Kinds::default()
    }
}

impl Source for Ledger {
    fn snapshot(&self, _tenant: &TenantId) -> Snapshot {
        Snapshot::new(Arc::new(Self))
    }

    fn ledger(&self, _tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
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
    let doors = Doors::new(Deps {
        readiness: Arc::new(Ready),
        authenticator: Arc::new(Authenticator::default()),
        limits,
        reload: Arc::new(|| Ok(())),
    });
    let config = query::EngineConfig { threads: 2, ..query::EngineConfig::default() };
    let engine = query::Engine::new(config, Arc::new(Ledger)).unwrap();
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
    let (status, headers, body) = post(&doors, "?format=arrow", "*/*", SQL).await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/vnd.apache.arrow.stream".parse().unwrap()));
    let rows: usize =
        StreamReader::try_new(body.as_slice(), None).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 2);
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
