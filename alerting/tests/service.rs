//! The service from outside: real sockets, channels that hang or refuse, an end and a new start.
//!
//! Not here: which messages there are (`scripts.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alerting::alert::PostedAlert;
use alerting::config;
use alerting::labels::LabelSet;
use alerting::repository::Repository;
use alerting::service::{Alerting, AlertingHandle, Dependencies, Settings};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use model::time::Clock;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes so long; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    handle: AlertingHandle,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(folder: &Path, text: &str) -> Self {
        let parsed = config::parse(text);
        let config = parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.problems));
        let repository = Repository::open(&folder.join("alerting.sqlite"), "default").unwrap();
        let dependencies = Dependencies { repository, clock: Clock::System, sender: None };
        let (service, handle) = Alerting::build(config, &Settings::default(), dependencies).unwrap();
        let end = CancellationToken::new();
        let task = tokio::spawn(service.run(end.clone()));
        Self { handle, end, task }
    }

    async fn fire(&self, name: &str) {
        let labels: LabelSet = [("alertname", name)].into_iter().collect();
        let posted = self.handle.post_alerts(vec![PostedAlert { labels, ..PostedAlert::default() }]).await.unwrap();
        assert_eq!(posted.accepted, 1);
    }

    async fn stop(self) {
        self.end.cancel();
        self.task.await.unwrap();
        assert!(self.handle.counts().await.is_err(), "an ended service answers so");
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

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

/// An SMTP server without TLS: refuses the first message for a moment and recipients of `nobody` for good.
async fn smtp() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let mail: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let kept = Arc::clone(&mail);
    tokio::spawn(async move {
        let mut connections = 0;
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            connections += 1;
            let (first, kept) = (connections == 1, Arc::clone(&kept));
            tokio::spawn(async move {
                let (read, mut write) = socket.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut message: Option<String> = None;
                write.write_all(b"220 test\r\n").await?;
                while let Some(line) = lines.next_line().await? {
                    if let Some(text) = &mut message {
                        if line == "." {
                            kept.lock().unwrap().push(message.take().unwrap());
                            write.write_all(b"250 kept\r\n").await?;
                        } else {
                            text.push_str(&format!("{line}\n"));
                        }
                        continue;
                    }
                    let answer = match line.split([' ', ':']).next().unwrap_or_default() {
                        "EHLO" => "250-test\r\n250 8BITMIME\r\n",
                        "MAIL" if first => "451 later\r\n",
                        "RCPT" if line.contains("nobody@") => "550 no such user\r\n",
                        "DATA" => {
                            message = Some(String::new());
                            "354 go on\r\n"
                        }
                        "QUIT" => "221 bye\r\n",
                        _ => "250 ok\r\n",
                    };
                    write.write_all(answer.as_bytes()).await?;
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
    (address, mail)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn email_is_tried_again_or_becomes_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let (address, mail) = smtp().await;
    let text = format!(
        "global: {{smtp_smarthost: '{address}', smtp_from: 'g@example.org', smtp_require_tls: false}}
route:
  receiver: team
  group_by: [alertname]
  group_wait: 0s
  group_interval: 1h
  routes: [{{matchers: [alertname=B], receiver: gone}}]
receivers:
- {{name: team, email_configs: [{{to: 'team@example.com'}}]}}
- {{name: gone, email_configs: [{{to: 'nobody@example.com'}}]}}"
    );
    let running = Running::start(folder.path(), &text);
    running.fire("A").await;
    until("the message is taken at the second attempt", async || mail.lock().unwrap().len() == 1).await;
    let message = mail.lock().unwrap()[0].clone();
    for part in
        ["To: team@example.com", "Subject: [FIRING:1] A", "Message-ID: <", "In-Reply-To: <", "text/html", "text/plain"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    running.fire("B").await;
    // The dead letter's own alert goes to the team.
    until("the dead letter is reported", async || mail.lock().unwrap().len() == 2).await;
    let message = mail.lock().unwrap()[1].clone();
    assert!(message.contains("GodsEyeNotificationFailed") && message.contains("550"), "{message}");
    assert_eq!(running.handle.counts().await.unwrap().outbox.dead, 1);
    running.stop().await;
}
