//! What channels get: payloads of hostile and of ordinary messages, and servers that fail on purpose.

use super::*;
use crate::config;
use crate::notification::{Reason, Status, ToldAlert};

fn config_of(receiver: &str) -> Config {
    let text = format!("route: {{receiver: r}}\nreceivers:\n  - name: r\n{receiver}");
    let parsed = config::parse(&text);
    parsed.config.unwrap_or_else(|| panic!("{:#?}", parsed.problems))
}

fn notification(status: Status) -> Notification {
    let hostile = "<!channel> & <https://evil|ok>\r\nBcc: evil@example.com";
    Notification {
        key: "0123456789abcdef".to_owned(),
        channel: "r/slack/0".to_owned(),
        receiver: "r".to_owned(),
        group_key: "{}:{alertname=\"Burn\"}".to_owned(),
        group_labels: [("alertname", "Burn"), ("who", hostile)].into_iter().collect(),
        alerts: vec![ToldAlert {
            status,
            labels: [("alertname", "Burn"), ("who", hostile), ("severity", "critical")].into_iter().collect(),
            annotations: [("summary", hostile)].into_iter().collect(),
            starts_at: 1_772_694_489_000_000_000,
            ends_at: (status == Status::Resolved).then_some(1_772_694_549_000_000_000),
            generator_url: String::new(),
        }],
        reason: Reason::First,
        left_out: 0,
        at: 1_772_694_489_000_000_000,
    }
}

fn with_context<T>(notification: &Notification, test: impl FnOnce(&Context<'_>) -> T) -> T {
    let templates = Templates::new(&[]).unwrap();
    test(&Context { notification, templates: &templates, external_url: "http://godseye", slack_buttons: false })
}

#[test]
fn hostile_labels_are_inert_in_slack() {
    let config = config_of(
        "    slack_configs: [{api_url: 'http://x/y', channel: '#c', pretext: '<!here> go', fields: [{title: who, value: '{{ .GroupLabels.who }}'}]}]",
    );
    let Integration::Slack(slack) = &config.receivers[0].integrations[0] else { panic!() };
    let message = with_context(&notification(Status::Firing), |context| slack::message(context, slack));
    let text = message.to_string();
    assert!(!text.contains("<!channel>") && !text.contains("<https://evil"), "{text}");
    assert!(text.contains("&lt;!channel&gt; &amp; &lt;https://evil|ok&gt;"), "{text}");
    assert!(text.contains("<!here> go"), "what the configuration says itself stays: {text}");
    assert_eq!(message["channel"], "#c");
    assert_eq!(message["attachments"][0]["color"], "#c5221f");
    let title = message["attachments"][0]["blocks"][1]["text"]["text"].as_str().unwrap();
    assert!(title.starts_with("*<http://godseye/api/v1/alerts|[FIRING:1] Burn"), "{title}");
}

#[test]
fn hostile_labels_are_inert_in_email() {
    let config = config_of(
        "    email_configs: [{to: 'A <a@example.com>, b@example.com', from: 'g@example.org', smarthost: 'localhost:25', headers: {X-Who: '{{ .GroupLabels.who }}'}}]",
    );
    let Integration::Email(email) = &config.receivers[0].integrations[0] else { panic!() };
    let render = |status| {
        let message = with_context(&notification(status), |context| email::message(context, email)).unwrap();
        String::from_utf8(message.formatted()).unwrap()
    };
    let text = render(Status::Firing);
    let head = text.split("\r\n\r\n").next().unwrap();
    assert!(!head.lines().any(|line| line.to_lowercase().starts_with("bcc")), "{head}");
    assert!(head.contains("Message-ID: <0123456789abcdef@example.org>"), "{head}");
    assert!(
        head.contains("To: A <a@example.com>, b@example.com") || head.contains("To: \"A\" <a@example.com>"),
        "{head}"
    );
    let header = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .map(ToOwned::to_owned)
            .unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert_eq!(header(&text, "In-Reply-To:"), header(&render(Status::Resolved), "In-Reply-To:"));
    assert!(
        text.contains("multipart/alternative") && text.contains("text/html") && text.contains("text/plain"),
        "{text}"
    );
    let html = text.split("text/html").nth(1).unwrap();
    assert!(html.contains("&lt;!channel&gt;") && !html.contains("<!channel>"), "{html}");
}

#[test]
fn a_digest_is_a_short_list_with_hostile_labels_inert() {
    let config = config_of(
        "    email_configs: [{to: 'a@example.com', from: 'g@example.org', smarthost: 'localhost:25', digest: '08:00'}]",
    );
    let Integration::Email(email) = &config.receivers[0].integrations[0] else { panic!() };
    let mut digest = notification(Status::Firing);
    digest.alerts.push(notification(Status::Resolved).alerts.remove(0));
    digest.reason = Reason::Digest;
    let render = |digest: &Notification| {
        let message = with_context(digest, |context| email::message(context, email)).unwrap();
        String::from_utf8(message.formatted()).unwrap().replace("=\r\n", "").replace("=3D", "=")
    };
    let text = render(&digest);
    assert!(text.contains("Subject: [DIGEST] 1 firing, 1 resolved\r\n"), "{text}");
    assert!(text.contains("- Burn: <!channel>") && text.contains("severity=critical, who=<!channel>"), "{text}");
    assert!(text.contains("until 2026-03-05 07:09 UTC, 1m 0s"), "{text}");
    let html = text.split("text/html").nth(1).unwrap();
    assert!(html.contains("&lt;!channel&gt;") && !html.contains("<!channel>"), "{html}");
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    assert!(!text.contains("not shown") && !head.to_lowercase().contains("\r\nbcc"), "{text}");
    digest.left_out = 7;
    let text = render(&digest);
    assert!(text.contains("1 firing, 1 resolved, 7 more\r\n") && text.contains("7 more are not shown"), "{text}");
}

#[test]
fn a_group_is_one_incident_of_pagerduty() {
    let config = config_of(
        "    pagerduty_configs: [{routing_key: k, links: [{href: 'javascript:x', text: t}, {href: 'http://y/', text: t}]}]",
    );
    let Integration::PagerDuty(pagerduty) = &config.receivers[0].integrations[0] else { panic!() };
    let event = |status| with_context(&notification(status), |context| pagerduty::event(context, pagerduty));
    let (trigger, resolve) = (event(Status::Firing), event(Status::Resolved));
    assert_eq!((&trigger["event_action"], &resolve["event_action"]), (&"trigger".into(), &"resolve".into()));
    assert_eq!(trigger["dedup_key"], resolve["dedup_key"]);
    // sha256 of the group key, as Alertmanager has it.
    assert_eq!(trigger["dedup_key"], pagerduty::dedup_key("{}:{alertname=\"Burn\"}"));
    assert_eq!(trigger["payload"]["severity"], "critical");
    assert_eq!(trigger["payload"]["custom_details"]["num_firing"], "1");
    assert_eq!(trigger["links"], serde_json::json!([{"href": "http://y/", "text": "t"}]));
}

#[test]
fn a_template_that_fails_does_not_keep_a_message_back() {
    let config = config_of("    slack_configs: [{api_url: 'http://x/y', title: '{{ .Nonsense }}'}]");
    let Integration::Slack(slack) = &config.receivers[0].integrations[0] else { panic!() };
    let message = with_context(&notification(Status::Firing), |context| slack::message(context, slack));
    assert!(message.to_string().contains("[FIRING:1]") && message.to_string().contains("Nonsense"), "{message}");
}

/// A server that answers each request with the next of the given answers, and keeps what it got.
async fn server(answers: Vec<String>) -> (std::net::SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut got = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let text = String::from_utf8_lossy(&request).to_lowercase();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length =
                        head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                    if body.len() >= length.unwrap_or(0) {
                        break;
                    }
                }
                let read = socket.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                request.extend_from_slice(&buffer[..read]);
            }
            got.push(String::from_utf8_lossy(&request).into_owned());
            if answer == "reset" {
                drop(socket);
                continue;
            }
            let (status, body) = answer.split_once('|').unwrap_or((answer.as_str(), ""));
            let length = body.len();
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            socket.write_all(text.as_bytes()).await.unwrap();
        }
        got
    });
    (address, task)
}

fn delivery(reference: Option<&str>, channel: &str, status: Status) -> Delivery {
    let notification = Notification { channel: channel.to_owned(), ..notification(status) };
    let reference = reference.map(ToOwned::to_owned);
    Delivery { id: 1, notification, attempts: 0, created_at: Timestamp(0), reference }
}

#[tokio::test]
async fn servers_that_fail_on_purpose() {
    let rows = [
        ("200 OK", None),
        ("204 No Content", None),
        ("500 Oops", Some((true, None))),
        ("429 Slow\r\nretry-after: 30", Some((true, Some(30)))),
        ("400 Bad|no such hook", Some((false, None))),
        ("302 Found\r\nlocation: http://169.254.169.254/", Some((false, None))),
        ("reset", Some((true, None))),
    ];
    for (answer, want) in rows {
        let (address, task) = server(vec![answer.to_owned()]).await;
        let config = config_of(&format!(
            "    webhook_configs: [{{url: 'http://{address}/hook?token=pa55', signing_secret: s, http_config: {{authorization: {{credentials: c}}}}}}]"
        ));
        let notifier = Notifier::new(&config, &[], "http://godseye/", NetworkPolicy::default()).unwrap();
        let outcome = notifier.send(&delivery(None, "r/webhook/0", Status::Firing), Timestamp(7_000_000_000)).await;
        let got = outcome.err();
        let shown = got.as_ref().map(|failure| (failure.retryable, failure.retry_after.map(|wait| wait.as_secs())));
        assert_eq!(shown, want, "{answer}: {got:?}");
        assert!(!format!("{got:?}{notifier:?}").contains("pa55"), "{got:?}");
        let requests = task.await.unwrap();
        for part in [
            "POST /hook?token=pa55",
            "idempotency-key: 0123456789abcdef",
            "x-godseye-signature: t=7,v1=",
            "authorization: Bearer c",
            "\"version\":\"4\"",
        ] {
            assert!(requests[0].contains(part), "{part}: {}", requests[0]);
        }
    }
}

#[tokio::test]
async fn a_group_is_one_message_of_slack() {
    let ok = "200 OK|{\"ok\":true,\"channel\":\"C1\",\"ts\":\"12.34\"}".to_owned();
    let answers = vec![
        ok.clone(),
        ok.clone(),
        ok.clone(),
        ok.clone(),
        ok.clone(),
        "200 OK|{\"ok\":false,\"error\":\"channel_not_found\"}".to_owned(),
        "200 OK\r\nretry-after: 3|{\"ok\":false,\"error\":\"ratelimited\"}".to_owned(),
    ];
    let (address, task) = server(answers).await;
    let config = config_of(&format!(
        "    slack_configs: [{{api_url: 'http://{address}/api/chat.postMessage', app_token: xoxb, channel: '#c', send_resolved: true}}]"
    ));
    let notifier = Notifier::new(&config, &[], "http://godseye", NetworkPolicy::default()).unwrap();
    let send = async |reference: Option<&str>, status| {
        notifier.send(&delivery(reference, "r/slack/0", status), Timestamp(0)).await
    };
    assert_eq!(send(None, Status::Firing).await.unwrap().reference.as_deref(), Some("C1:12.34"));
    assert_eq!(send(Some("C1:12.34"), Status::Firing).await.unwrap().reference.as_deref(), Some("C1:12.34"));
    assert_eq!(send(Some("C1:12.34"), Status::Resolved).await.unwrap().reference, None, "the story is over");
    let failure = send(None, Status::Firing).await.unwrap_err();
    assert!(!failure.retryable && failure.message.contains("channel_not_found"), "{failure:?}");
    let failure = send(None, Status::Firing).await.unwrap_err();
    assert_eq!((failure.retryable, failure.retry_after), (true, Some(Duration::from_secs(3))));
    let paths: Vec<String> =
        task.await.unwrap().iter().map(|request| request.split(' ').nth(1).unwrap_or_default().to_owned()).collect();
    assert_eq!(
        paths[..5],
        [
            "/api/chat.postMessage",
            "/api/chat.update",
            "/api/chat.postMessage",
            "/api/chat.update",
            "/api/chat.postMessage"
        ]
    );
}

#[tokio::test]
async fn kinds_that_are_not_sent_to_fail_for_good() {
    let config = config_of("    opsgenie_configs: [{api_key: k}]");
    let notifier = Notifier::new(&config, &[], "", NetworkPolicy::default()).unwrap();
    for channel in ["r/opsgenie/0", "gone/webhook/0"] {
        let failure = notifier.send(&delivery(None, channel, Status::Firing), Timestamp(0)).await.unwrap_err();
        assert!(!failure.retryable, "{failure:?}");
    }
}
