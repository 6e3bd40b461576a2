//! Email to a mail server that others wrote: aiosmtpd, with TLS, logins and refusals.
//!
//! Its side is `tests/clients/smtp.py`, which takes messages apart with Python's own parser. Not here: what a
//! message says line by line (`src/notify/tests.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use alerting::alert::PostedAlert;
use common::running::{Running, until};
use model::time::Clock;
use serde::Deserialize;

/// A running `smtp.py`. It ends when its standard input is closed, which the death of this process does too.
struct Mail {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    ca: PathBuf,
}

#[derive(Deserialize)]
struct Ready {
    port: u16,
    ca: PathBuf,
}

/// A message as Python reads it.
#[derive(Debug, Deserialize)]
struct Kept {
    from: String,
    to: Vec<String>,
    tls: bool,
    login: Option<String>,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// Content by media type.
    parts: BTreeMap<String, String>,
}

impl Kept {
    /// The value of a header that is there once.
    fn header(&self, name: &str) -> &str {
        let values: Vec<&String> =
            self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect();
        assert_eq!(values.len(), 1, "{name}: {:?}", self.headers);
        values[0]
    }
}

impl Mail {
    fn start(arguments: &[&str]) -> Self {
        let venv = std::env::var_os("GODSEYE_CLIENTS_VENV").map(PathBuf::from).unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/godseye/clients")
        });
        let python = venv.join("bin/python");
        assert!(python.exists(), "there is no aiosmtpd in {}: run `make test`", venv.display());
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/smtp.py"))
            .arg("--dir")
            .arg(folder.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, folder, port: ready.port, ca: ready.ca }
    }

    fn messages(&self) -> Vec<Kept> {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<PathBuf> =
            files.filter(|file| file.extension().is_some_and(|extension| extension == "json")).collect();
        files.sort();
        files.iter().map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).collect()
    }

    /// A configuration that sends everything to this server, with more keys of its `email_configs`.
    fn config(&self, keys: &str) -> String {
        let (port, ca) = (self.port, self.ca.display());
        let keys = keys.replace("$ca", &ca.to_string());
        format!(
            "global: {{smtp_smarthost: 'localhost:{port}', smtp_from: 'GodsEye <g@example.org>'}}
route: {{receiver: team, group_by: ['...'], group_wait: 0s, group_interval: 100ms}}
receivers: [{{name: team, email_configs: [{{to: 'Team <team@example.com>, second@example.com', send_resolved: true{keys}}}]}}]"
        )
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const TRUSTED: &str = ", tls_config: {ca_file: '$ca'}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_one_thread_of_mails_in_which_hostile_labels_are_inert() {
    let mail = Mail::start(&["--tls", "starttls", "--auth"]);
    let folder = tempfile::tempdir().unwrap();
    let keys = format!(
        "{TRUSTED}, auth_username: me, auth_password: secret, headers: {{X-Who: '{{{{ .CommonLabels.who }}}}', Bcc: '{{{{ .CommonLabels.none }}}}'}}"
    );
    let running = Running::start(folder.path(), &mail.config(&keys));
    let hostile = "<script>alert(1)</script>\r\nBcc: evil@example.com\r\n\r\n.\r\nMAIL FROM:<evil@example.com>";
    let alert = PostedAlert {
        labels: [("alertname", "Burn"), ("who", hostile)].into_iter().collect(),
        annotations: [("summary", "5 % < 10 % & rising"), ("runbook_url", "javascript:alert(1)")].into_iter().collect(),
        ..PostedAlert::default()
    };
    running.post(alert.clone()).await;
    until("the beginning is told", async || mail.messages().len() == 1).await;
    running.post(PostedAlert { ends_at: Some(Clock::System.now()), ..alert.clone() }).await;
    until("the end is told", async || mail.messages().len() == 2).await;
    let other = [("alertname", "Burn"), ("who", "b")].into_iter().collect();
    running.post(PostedAlert { labels: other, ..alert }).await;
    until("the other group is told", async || mail.messages().len() == 3).await;
    running.stop().await;

    let [first, second, other] = &mail.messages()[..] else { panic!("three messages") };
    assert_eq!(
        (first.from.as_str(), &first.to[..]),
        ("g@example.org", &["team@example.com", "second@example.com"].map(String::from)[..])
    );
    assert!(first.tls && first.login.as_deref() == Some("me"), "{first:?}");
    for message in [first, second, other] {
        // A header each, and none that a label made.
        for name in ["from", "to", "subject", "date", "message-id", "in-reply-to", "references", "x-who"] {
            assert!(!message.header(name).contains(['\r', '\n']), "{name}: {message:?}");
        }
        assert!(message.headers.iter().all(|(name, value)| name != "bcc" || value.is_empty()), "{message:?}");
        assert_eq!(message.parts.keys().collect::<Vec<_>>(), ["text/html", "text/plain"]);
    }
    assert!(first.header("subject").starts_with("[FIRING:1] Burn <script>"), "{first:?}");
    assert!(second.header("subject").starts_with("[RESOLVED] Burn"), "{second:?}");
    let (html, text) = (&first.parts["text/html"], &first.parts["text/plain"]);
    assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
    assert!(html.contains("5 % &lt; 10 % &amp; rising") && text.contains("5 % < 10 % & rising"), "{html}{text}");
    assert!(!html.contains("javascript:") && !text.contains("javascript:"), "{html}{text}");

    let ids: BTreeSet<&str> = [first, second, other].iter().map(|message| message.header("message-id")).collect();
    assert_eq!(ids.len(), 3);
    let thread = |message: &Kept| message.header("references").to_owned();
    assert_eq!(first.header("in-reply-to"), thread(first));
    assert_eq!(thread(first), thread(second), "the end is in the thread of the beginning");
    assert_ne!(thread(first), thread(other), "another group has its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_goes_out_as_the_configuration_says() {
    // The server, keys of the configuration, whether it goes through TLS and who is logged in, messages kept.
    for (server, keys, tls, login, kept) in [
        (&["--tls", "none"][..], ", require_tls: false", false, None, 1),
        (
            &["--tls", "none", "--auth"],
            ", require_tls: false, auth_username: me, auth_password: secret",
            false,
            Some("me"),
            1,
        ),
        (&["--tls", "starttls"], ", tls_config: {insecure_skip_verify: true}", true, None, 1),
        (
            &["--tls", "starttls"],
            ", require_tls: false, tls_config: {ca_file: '$ca', server_name: 127.0.0.1}",
            true,
            None,
            1,
        ),
        (&["--tls", "implicit"], ", force_implicit_tls: true, tls_config: {ca_file: '$ca'}", true, None, 1),
        // Refused for a moment: it comes all the same.
        (&["--tls", "none", "--later", "1"], ", require_tls: false", false, None, 1),
        // Kept, and never said so: it comes once more, as the same message.
        (&["--tls", "none", "--lost", "1"], ", require_tls: false", false, None, 2),
    ] {
        let mail = Mail::start(server);
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(folder.path(), &mail.config(keys));
        running.fire("A").await;
        until("it is noted as sent", async || running.handle.counts().await.unwrap().outbox.sent == 1).await;
        running.stop().await;
        let messages = mail.messages();
        assert_eq!(messages.len(), kept, "{server:?} {keys}");
        for message in &messages {
            assert_eq!((message.tls, message.login.as_deref()), (tls, login), "{server:?} {keys}");
            assert_eq!(message.header("message-id"), messages[0].header("message-id"), "{server:?} {keys}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_person_can_mend_is_reported_at_once_and_says_how() {
    // The server, keys of the configuration, what the alert about the dead letter says.
    for (server, keys, says) in [
        (&["--tls", "none"][..], "", &["STARTTLS", "`require_tls: false`"][..]),
        (&["--tls", "starttls"], "", &["certificate", "UnknownIssuer", "`tls_config`"]),
        (
            &["--tls", "starttls"],
            ", tls_config: {ca_file: '$ca', server_name: other.example.com}",
            &["certificate", "other.example.com"],
        ),
        (
            &["--tls", "starttls"],
            ", tls_config: {ca: 'no certificate'}",
            &["TLS for localhost", "no certificate in PEM"],
        ),
        (&["--tls", "implicit"], ", force_implicit_tls: true", &["certificate", "UnknownIssuer"]),
        (
            &["--tls", "starttls", "--auth"],
            ", tls_config: {ca_file: '$ca'}, auth_username: me, auth_password: guess",
            &["535"],
        ),
        (&["--tls", "starttls", "--auth"], ", tls_config: {ca_file: '$ca'}", &["530"]),
        (&["--tls", "none"], ", require_tls: false, to: nobody@example.com", &["550", "no such user"]),
    ] {
        let mail = Mail::start(server);
        let folder = tempfile::tempdir().unwrap();
        let mut config = mail.config(keys);
        if keys.contains("to: nobody") {
            config = config.replace("to: 'Team <team@example.com>, second@example.com', ", "");
        }
        let running = Running::start(folder.path(), &config);
        running.fire("A").await;
        let said = running.dead_letter().await;
        assert!(says.iter().all(|part| said.contains(part)), "{server:?} {keys}: {said}");
        assert!(!said.contains("guess"), "{said}");
        assert!(mail.messages().is_empty());
        running.stop().await;
    }
}
