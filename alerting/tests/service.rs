//! The service from outside: real sockets, channels that hang or refuse, an end and a new start.
//!
//! Not here: which messages there are (`scripts.rs`), and how channels fail (`channels.rs`, `email.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::routing::post;
use common::running::{Running, until};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;

/// Path, key and body of a request.
type Got = Arc<Mutex<Vec<(String, String, String)>>>;

/// Answers by path: `/hang` never, `/busy` twice with 503, everything else with 200.
async fn hooks() -> (SocketAddr, Got) {
    let got: Got = Arc::default();
    let take = async |State(got): State<Got>, UrlPath(path): UrlPath<String>, headers: HeaderMap, body: Bytes| {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        let before = {
            let mut got = got.lock().unwrap();
            got.push((path.clone(), key, String::from_utf8_lossy(&body).into_owned()));
            got.iter().filter(|(other, ..)| *other == path).count()
        };
        match path.as_str() {
            "hang" => std::future::pending().await,
            "busy" if before <= 2 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/{path}", post(take)).with_state(Arc::clone(&got));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_hangs_holds_no_other_up_and_is_tried_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (address, got) = hooks().await;
    let text = format!(
        "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1h}}
receivers:
- name: r
  webhook_configs: [{{url: 'http://{address}/hang', timeout: 1m}}, {{url: 'http://{address}/good'}}, {{url: 'http://{address}/busy'}}]"
    );
    let of = |path: &str| -> Vec<(String, String)> {
        let got = got.lock().unwrap();
        got.iter().filter(|(other, ..)| other == path).map(|(_, key, body)| (key.clone(), body.clone())).collect()
    };
    let running = Running::start(folder.path(), &text);
    running.fire("A").await;
    running.fire("B").await;
    until("the good channel has both", async || of("good").len() == 2).await;
    until("the busy one is tried until it takes both", async || of("busy").len() == 4).await;
    assert_eq!(of("hang").len(), 1, "the hanging one has one message under way");
    let busy = of("busy");
    assert_eq!(busy[0].0, busy[2].0, "the same message under the same key");
    assert!(busy[0].1.contains("\"alertname\":\"A\"") && busy[3].1.contains("\"alertname\":\"B\""), "in order");
    running.stop().await;

    let running = Running::start(folder.path(), &text);
    until("what was under way is sent again", async || of("hang").len() == 2).await;
    let hang = of("hang");
    assert_eq!(hang[0].0, hang[1].0, "under its key");
    assert_eq!((of("good").len(), of("busy").len()), (2, 4), "what was taken is not");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_result_cannot_be_noted_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let (address, got) = hooks().await;
    let text = format!(
        "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1h}}
receivers: [{{name: r, webhook_configs: [{{url: 'http://{address}/good'}}]}}]"
    );
    let running = Running::start(folder.path(), &text);
    let other = rusqlite::Connection::open(folder.path().join("alerting.sqlite")).unwrap();
    let trigger = "CREATE TRIGGER refuse BEFORE UPDATE ON outbox BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    other.execute_batch(trigger).unwrap();
    running.fire("A").await;
    until("it is sent", async || got.lock().unwrap().len() == 1).await;
    running.fire("B").await;
    // Each of these calls is a turn of the engine, in which a message to be sent would be.
    for _ in 0..50 {
        assert_eq!(running.handle.counts().await.unwrap().outbox.sent, 0);
    }
    assert_eq!(got.lock().unwrap().len(), 1, "neither again nor the next one");
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    until("both are noted", async || running.handle.counts().await.unwrap().outbox.sent == 2).await;
    assert_eq!(got.lock().unwrap().len(), 2);
    running.stop().await;
}
