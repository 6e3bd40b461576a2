//! Debian's Prometheus with our API as its Alertmanager: what its rules raise is kept, told, and ends.
//!
//! Where the package cannot be had the test says so and passes. Not here: our own rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alerting::api;
use alerting::engine::{AlertFilter, AlertView};
use alerting::repository::HistoryEvent;
use axum::Router;
use common::debian::{self, Process, request};
use common::running::{Running, until};
use fixtures::parts::Webhook;
use model::time::Timestamp;
use tokio::net::TcpListener;

/// Where `godseye serve` has the API.
const PREFIX: &str = "/alertmanager";

/// Rules that fire, or the same without any that does.
fn rules(fires: bool) -> String {
    let value = if fires { 42 } else { 0 };
    format!(
        "groups:
- name: g
  rules:
  - alert: Burning
    expr: vector({value}) > 1
    labels: {{severity: critical, owner: payments}}
    annotations: {{summary: 'The value is {{{{ $value }}}}', runbook_url: 'https://example.com/run'}}
"
    )
}

/// Starts Prometheus with its files in a folder; it posts to `ours`.
async fn prometheus(binary: &Path, folder: &Path, ours: SocketAddr) -> (Process, SocketAddr) {
    std::fs::write(folder.join("rules.yml"), rules(true)).unwrap();
    let config = format!(
        "global: {{evaluation_interval: 1s, external_labels: {{cluster: test}}}}
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{path_prefix: {PREFIX}, static_configs: [{{targets: ['{ours}']}}]}}]}}
"
    );
    std::fs::write(folder.join("prometheus.yml"), config).unwrap();
    // Taken and given back: nobody else is likely to get it in between.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let child = Command::new(binary)
        .current_dir(folder)
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.enable-lifecycle"])
        .arg(format!("--web.listen-address={address}"))
        .args(["--rules.alert.resend-delay=1s", "--log.level=error"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    until("Prometheus is ready", async || matches!(request(address, "GET", "/-/ready", "").await, Ok((200, _)))).await;
    (process, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_prometheus_raises_is_kept_told_and_ends() {
    let binary: PathBuf = match debian::unpacked("prometheus", "usr/bin/prometheus", |_| Ok(())) {
        Ok(binary) => binary,
        Err(reason) => {
            eprintln!("left out: Debian's prometheus cannot be had here: {reason}");
            return;
        }
    };
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(kept.path()).await.unwrap();
    let url = webhook.url("/");
    let text = format!(
        "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 4h}}
receivers: [{{name: r, webhook_configs: [{{url: '{url}'}}]}}]"
    );
    let serve = async |running: &Running, address: SocketAddr| {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().nest(PREFIX, api::router(running.handle.clone()));
        (address, tokio::spawn(async move { axum::serve(listener, router).await }))
    };
    let alerts =
        async |running: &Running| -> Vec<AlertView> { running.handle.alerts(AlertFilter::default()).await.unwrap() };

    let running = Running::start(folder.path(), &text);
    let (ours, serving) = serve(&running, ([127, 0, 0, 1], 0).into()).await;
    let (process, theirs) = prometheus(&binary, folder.path(), ours).await;
    until("it fires here", async || alerts(&running).await.len() == 1).await;
    until("it is told", async || webhook.requests().unwrap().len() == 1).await;
    let alert = alerts(&running).await.remove(0).alert;
    let labels: Vec<(&str, &str)> = alert.labels.iter().collect();
    let want = [("alertname", "Burning"), ("cluster", "test"), ("owner", "payments"), ("severity", "critical")];
    assert_eq!(labels, want);
    assert_eq!(alert.annotations.get("summary"), "The value is 42");
    assert!(alert.generator_url.starts_with("http://"), "{alert:?}");
    let first = webhook.requests().unwrap().remove(0).json.unwrap();
    assert_eq!(first["commonLabels"]["alertname"], "Burning");
    assert_eq!(first["alerts"][0]["generatorURL"], alert.generator_url);

    // We are restarted while it fires on: it goes on here as the same alert, and nobody is told again.
    running.stop().await;
    serving.abort();
    drop(serving.await);
    let running = Running::start(folder.path(), &text);
    let (_, serving) = serve(&running, ours).await;
    let seen_at = alerts(&running).await.remove(0).alert.updated_at;
    until("it reports to the new process", async || alerts(&running).await[0].alert.updated_at > seen_at).await;
    assert_eq!(alerts(&running).await[0].alert.starts_at, alert.starts_at);
    assert_eq!(webhook.requests().unwrap().len(), 1);

    std::fs::write(folder.path().join("rules.yml"), rules(false)).unwrap();
    assert!(matches!(request(theirs, "POST", "/-/reload", "").await, Ok((200, _))));
    until("its end is told", async || webhook.requests().unwrap().len() == 2).await;
    let last = webhook.requests().unwrap().remove(1).json.unwrap();
    assert_eq!(
        (&last["status"], &last["alerts"][0]["startsAt"]),
        (&"resolved".into(), &first["alerts"][0]["startsAt"])
    );
    until("nothing fires", async || alerts(&running).await.is_empty()).await;
    let history = running.handle.history(Timestamp(0), 9).await.unwrap();
    let events: Vec<HistoryEvent> = history.into_iter().map(|(_, event, _)| event).collect();
    assert_eq!(events, [HistoryEvent::Firing, HistoryEvent::Resolved]);
    drop(process);
    serving.abort();
    running.stop().await;
}
