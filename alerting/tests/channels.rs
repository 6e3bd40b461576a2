//! Channels that fail on purpose: what is sent again, in which order, and what becomes of the rest.
//!
//! The receivers are those of `fixtures webhook`, in this process. Not here: email (`email.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::time::Duration;

use alerting::engine::META_ALERT;
use common::running::{Running, until};
use fixtures::parts::{Answer, Received, Webhook};
use http::StatusCode;
use rusqlite::OptionalExtension as _;

/// The name of the alert a request tells of, and its status.
fn tells(request: &Received) -> String {
    let alert = &request.json.as_ref().unwrap()["alerts"][0];
    format!("{} {}", alert["labels"]["alertname"].as_str().unwrap(), alert["status"].as_str().unwrap())
}

fn told(webhook: &Webhook) -> Vec<String> {
    webhook.requests().unwrap().iter().map(tells).collect()
}

fn key(request: &Received) -> &str {
    request.header("idempotency-key").unwrap()
}

fn later(status: StatusCode, retry_after_s: Option<u32>) -> Answer {
    Answer::Status { status, retry_after_s, delay: Duration::ZERO }
}

/// What the outbox says of the message that failed once: nanoseconds from its decision to the next attempt, error.
fn failed_once(folder: &Path) -> Option<(i64, String)> {
    let database = rusqlite::Connection::open(folder.join("alerting.sqlite")).unwrap();
    let sql = "SELECT next_attempt_at - created_at, last_error FROM outbox WHERE attempts = 1";
    database.query_row(sql, [], |row| row.try_into()).optional().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_comes_again_under_its_key_and_later_ones_wait_for_it() {
    let slow = Answer::Status { status: StatusCode::OK, retry_after_s: None, delay: Duration::from_millis(900) };
    for (failure, times) in [
        (later(StatusCode::TOO_MANY_REQUESTS, Some(1)), 2),
        (later(StatusCode::INTERNAL_SERVER_ERROR, None), 2),
        (later(StatusCode::SERVICE_UNAVAILABLE, Some(0)), 1),
        (Answer::Reset, 2),
        (Answer::Hang, 1),
        // It takes the message, and says so when nobody listens any more.
        (slow, 1),
    ] {
        let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let webhook = Webhook::start(kept.path()).await.unwrap();
        webhook.answer(failure, Some(times));
        let url = webhook.url("/hook");
        let running = Running::start(
            folder.path(),
            &format!(
                "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1h}}
receivers: [{{name: r, webhook_configs: [{{url: '{url}', timeout: 300ms}}]}}]"
            ),
        );
        for name in ["A", "B", "C"] {
            running.fire(name).await;
        }
        until("all are taken", async || running.handle.counts().await.unwrap().outbox.sent == 3).await;
        running.stop().await;
        let times = usize::try_from(times).unwrap();
        let mut want = vec!["A firing"; times + 1];
        want.extend(["B firing", "C firing"]);
        assert_eq!(told(&webhook), want, "{failure:?}");
        let requests = webhook.requests().unwrap();
        for request in &requests[..=times] {
            assert_eq!((key(request), &request.body), (key(&requests[0]), &requests[0].body), "{failure:?}");
        }
        let mut keys: Vec<&str> = requests[times..].iter().map(key).collect();
        keys.dedup();
        assert_eq!(keys.len(), 3, "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_is_left_alone_as_long_as_it_asks() {
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(kept.path()).await.unwrap();
    webhook.answer(later(StatusCode::TOO_MANY_REQUESTS, Some(600)), None);
    let url = webhook.url("/");
    let text = format!(
        "route: {{receiver: r, group_by: [alertname], group_wait: 0s}}
receivers: [{{name: r, webhook_configs: [{{url: '{url}'}}]}}]"
    );
    let running = Running::start(folder.path(), &text);
    running.fire("A").await;
    until("the refusal is noted", async || failed_once(folder.path()).is_some()).await;
    let (pause, error) = failed_once(folder.path()).unwrap();
    assert!(pause >= 600_000_000_000 && error.contains("429"), "{pause} {error}");
    running.stop().await;
    // A restart is no reason to come earlier.
    let running = Running::start(folder.path(), &text);
    running.fire("B").await;
    until("the next one waits behind it", async || running.handle.counts().await.unwrap().outbox.waiting == 2).await;
    assert_eq!(told(&webhook), ["A firing"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_good_is_told_elsewhere_until_the_channel_is_well() {
    let (folder, bad, ops) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (broken, ops) = (Webhook::start(bad.path()).await.unwrap(), Webhook::start(ops.path()).await.unwrap());
    broken.answer(later(StatusCode::NOT_FOUND, None), Some(1));
    let (broken_url, ops_url) = (broken.url("/"), ops.url("/"));
    let running = Running::start(
        folder.path(),
        &format!(
            "route:
  receiver: team
  group_by: [alertname]
  group_wait: 0s
  group_interval: 500ms
  routes: [{{matchers: ['alertname={META_ALERT}'], receiver: ops}}]
receivers:
- {{name: team, webhook_configs: [{{url: '{broken_url}'}}]}}
- {{name: ops, webhook_configs: [{{url: '{ops_url}'}}]}}"
        ),
    );
    running.fire("A").await;
    let said = running.dead_letter().await;
    assert!(said.contains("404"), "{said}");
    until("both are told in the end", async || told(&broken).len() == 2 && told(&ops).len() == 2).await;
    assert_eq!(told(&ops), [format!("{META_ALERT} firing"), format!("{META_ALERT} resolved")]);
    let requests = broken.requests().unwrap();
    assert_eq!(told(&broken), ["A firing", "A firing"], "the group is told anew");
    assert_ne!(key(&requests[0]), key(&requests[1]), "by a message of its own");
    let counts = running.handle.counts().await.unwrap().outbox;
    assert_eq!((counts.dead, counts.waiting), (1, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_that_are_slow_hang_or_break_hold_no_other_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut webhooks = Vec::new();
    for (index, answer) in [
        Answer::Hang,
        Answer::Reset,
        Answer::Status { status: StatusCode::OK, retry_after_s: None, delay: Duration::from_secs(3_600) },
        later(StatusCode::BAD_GATEWAY, None),
        Answer::status(StatusCode::OK),
    ]
    .into_iter()
    .enumerate()
    {
        let webhook = Webhook::start(&folder.path().join(index.to_string())).await.unwrap();
        webhook.answer(answer, None);
        webhooks.push(webhook);
    }
    let configs: Vec<String> =
        webhooks.iter().map(|webhook| format!("{{url: '{}', timeout: 1m}}", webhook.url("/"))).collect();
    let running = Running::start(
        folder.path(),
        &format!(
            "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1h}}
receivers: [{{name: r, webhook_configs: [{}]}}]",
            configs.join(", ")
        ),
    );
    let names: Vec<String> = (0..20).map(|number| format!("A{number:02}")).collect();
    for name in &names {
        running.fire(name).await;
    }
    let good = &webhooks[4];
    until("the good channel has all", async || told(good).len() == names.len()).await;
    let want: Vec<String> = names.iter().map(|name| format!("{name} firing")).collect();
    assert_eq!(told(good), want);
    for webhook in &webhooks[..4] {
        assert!(told(webhook).iter().all(|line| line == "A00 firing"), "{:?}", told(webhook));
    }
    running.stop().await;
}
