//! The scripts in real time against Debian's Alertmanager and against ours: both are posted the same at
//! the same moments, and their receivers must get the same.
//!
//! Where the package cannot be had the test says so and passes. Not here: anything Alertmanager does not do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alerting::labels::LabelSet;
use alerting::matcher::{self, MatcherJson};
use alerting::repository::Repository;
use alerting::service::{Alerting, Dependencies, Settings};
use alerting::{api, config, instant};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::routing::post;
use common::debian::{self, Process, request};
use common::{Action, Script};
use model::time::{Clock, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PACKAGE: &str = "prometheus-alertmanager";

/// Scripts that run at the same time: they sleep most of it.
const AT_ONCE: usize = 12;

/// The binary that finds its files where the package was unpacked, not below `/usr`.
const RELOCATED: &str = "usr/bin/relocated-alertmanager";

/// Writes the binary with the folder of its templates, which Debian has compiled in, made relative to
/// the working directory. Both spellings have the same length, so nothing else moves.
fn relocate(unpacked: &Path) -> std::io::Result<()> {
    let (absolute, relative) = (b"/usr/share/prometheus/alertmanager", b"usr/share/prometheus//alertmanager");
    let original = unpacked.join("usr/bin/prometheus-alertmanager");
    let mut bytes = std::fs::read(&original)?;
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(absolute.len()).position(|window| window == absolute) {
        at += found;
        bytes[at..at + absolute.len()].copy_from_slice(relative);
    }
    let relocated = unpacked.join(RELOCATED);
    std::fs::write(&relocated, bytes)?;
    std::fs::set_permissions(&relocated, std::fs::metadata(&original)?.permissions())
}

/// Alertmanager's binary, fetched if it is not there yet.
fn binary() -> Result<PathBuf, String> {
    debian::unpacked(PACKAGE, RELOCATED, relocate)
}

type Got = Arc<Mutex<Vec<(String, Value)>>>;

/// A receiver of webhooks that keeps what it gets.
async fn receiver() -> (SocketAddr, Got) {
    let got: Got = Arc::default();
    let keep = async |State(got): State<Got>, UrlPath(receiver): UrlPath<String>, body: Bytes| {
        got.lock().unwrap().push((receiver, serde_json::from_slice(&body).unwrap()));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/{receiver}", post(keep)).with_state(Arc::clone(&got));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, got)
}

/// Starts of Alertmanager before one counts as impossible.
const STARTS_MAX: usize = 5;

async fn real(binary: &Path, folder: &Path, script: &Script, base: &str) -> (Process, SocketAddr) {
    let file = folder.join("alertmanager.yml");
    std::fs::write(&file, script.full_config(base)).unwrap();
    for attempt in 0..STARTS_MAX {
        // Taken and given back: where somebody else gets it in between, another one is tried.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let child = Command::new(binary)
            .current_dir(binary.ancestors().nth(3).unwrap())
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.join(format!("data-{attempt}")).display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--cluster.listen-address=", "--log.level=error"])
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        for _ in 0..600 {
            if matches!(request(address, "GET", "/-/ready", "").await, Ok((200, _))) {
                return (process, address);
            }
            if process.0.try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    panic!("{}: Alertmanager does not start", script.name);
}

async fn ours(folder: &Path, script: &Script, base: &str, end: CancellationToken) -> SocketAddr {
    let config = config::parse(&script.full_config(base)).config.unwrap();
    let repository = Repository::open(&folder.join("alerting.sqlite"), "default").unwrap();
    let dependencies = Dependencies { repository, clock: Clock::System, sender: None };
    let (service, handle) = Alerting::build(config, &Settings::default(), dependencies).unwrap();
    tokio::spawn(service.run(end));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, api::router(handle)).await });
    address
}

/// Does what a script says to both at the same moments.
async fn play(script: &Script, addresses: [SocketAddr; 2]) {
    let start = tokio::time::Instant::now();
    let mut started: HashMap<LabelSet, Timestamp> = HashMap::new();
    let mut silences: HashMap<String, Vec<String>> = HashMap::new();
    for step in &script.steps {
        tokio::time::sleep_until(start + Duration::from_secs_f64(step.at)).await;
        let now = Clock::System.now();
        let later = |seconds: f64| now.plus_nanos((seconds * 1e9) as i64);
        let post = |labels: &LabelSet, starts_at: Timestamp, ends_at: Option<Timestamp>| {
            let mut alert = json!({"labels": labels, "startsAt": instant::format(starts_at)});
            if let Some(ends_at) = ends_at {
                alert["endsAt"] = instant::format(ends_at).into();
            }
            ("POST", "/api/v2/alerts".to_owned(), json!([alert]).to_string())
        };
        for (index, address) in addresses.iter().enumerate() {
            let (method, path, body) = match &step.action {
                Action::Fire(labels, since) => {
                    let starts_at = later(-since);
                    started.insert(labels.clone(), starts_at);
                    post(labels, starts_at, None)
                }
                Action::Resolve(labels) => post(labels, started[labels], Some(now)),
                Action::Silence(_, matchers, seconds) => {
                    let matchers: Vec<MatcherJson> =
                        matcher::parse_all(matchers).unwrap().iter().map(MatcherJson::from).collect();
                    let body = json!({
                        "matchers": matchers, "startsAt": instant::format(now),
                        "endsAt": instant::format(later(*seconds)), "createdBy": "test", "comment": "test",
                    });
                    ("POST", "/api/v2/silences".to_owned(), body.to_string())
                }
                Action::Expire(name) => ("DELETE", format!("/api/v2/silence/{}", silences[name][index]), String::new()),
            };
            let (status, answer) = request(*address, method, &path, &body).await.unwrap();
            assert_eq!(status, 200, "{}: {method} {path} {body}: {answer}", script.name);
            if let Action::Silence(name, ..) = &step.action {
                // Alertmanager answers in chunks: the JSON is what stands between the braces.
                let text = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
                let id: Value = serde_json::from_str(text).unwrap();
                silences.entry(name.clone()).or_default().push(id["silenceID"].as_str().unwrap().to_owned());
            }
        }
    }
    tokio::time::sleep_until(start + Duration::from_secs_f64(script.end)).await;
}

/// What was got, without what must differ: times and addresses. Sorted by receiver and group, in each of
/// which the order is kept.
fn comparable(got: &Got) -> (Vec<String>, Vec<Value>) {
    let mut messages: Vec<(String, Value)> = got.lock().unwrap().clone();
    messages.sort_by_key(|(receiver, payload)| (receiver.clone(), payload["groupKey"].to_string()));
    let lines = messages.iter().map(|(receiver, payload)| common::line(receiver, payload)).collect();
    let payloads = messages
        .into_iter()
        .map(|(_, mut payload)| {
            payload["externalURL"] = Value::Null;
            for alert in payload["alerts"].as_array_mut().unwrap() {
                // To the millisecond: this is what both were posted.
                let started = alert["startsAt"].as_str().map(|at| instant::parse(at).unwrap());
                alert["startsAt"] = started.flatten().map_or(Value::Null, |at| (at.0 / 1_000_000).into());
                let ended = alert["endsAt"] != instant::ZERO;
                alert["endsAt"] = ended.into();
            }
            payload
        })
        .collect();
    (lines, payloads)
}

async fn compare(binary: &Path, script: &Script) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let end = CancellationToken::new();
    let (their_receiver, theirs) = receiver().await;
    let (our_receiver, mine) = receiver().await;
    let (process, their_address) = real(binary, folder.path(), script, &format!("http://{their_receiver}")).await;
    let our_address = ours(folder.path(), script, &format!("http://{our_receiver}"), end.clone()).await;
    play(script, [their_address, our_address]).await;
    end.cancel();
    drop(process);
    let (their_lines, their_payloads) = comparable(&theirs);
    let (our_lines, our_payloads) = comparable(&mine);
    if their_lines != our_lines {
        return Err(format!("{}:\n  Alertmanager {their_lines:#?}\n  GodsEye {our_lines:#?}", script.name));
    }
    if their_payloads != our_payloads {
        return Err(format!("{}:\n  Alertmanager {their_payloads:#?}\n  GodsEye {our_payloads:#?}", script.name));
    }
    let mut want = script.want.clone();
    let mut got = our_lines;
    want.sort();
    got.sort();
    // Both agree: then the script's own expectation must be what they agree on.
    if want == got { Ok(()) } else { Err(format!("{}:\n  script {want:#?}\n  both {got:#?}", script.name)) }
}

/// Runs amtool against an address; what it prints, or why it failed.
async fn amtool(binary: &Path, address: SocketAddr, arguments: &[&str]) -> Result<String, String> {
    let (binary, arguments) = (binary.to_owned(), arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    let run =
        move || Command::new(binary).arg(format!("--alertmanager.url=http://{address}/")).args(arguments).output();
    let output = tokio::task::spawn_blocking(run).await.unwrap().map_err(|error| error.to_string())?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{out}{err}")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amtool_works_against_our_api() {
    let binary = match binary() {
        Ok(binary) => binary.with_file_name("amtool"),
        Err(reason) => {
            eprintln!("left out: Debian's {PACKAGE} cannot be had here: {reason}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let script = Script {
        config: "route: {receiver: r, group_by: [alertname], group_wait: 1h}\n".to_owned(),
        receivers: vec![("r".to_owned(), String::new())],
        ..Script::default()
    };
    let end = CancellationToken::new();
    let address = ours(folder.path(), &script, "http://127.0.0.1:1", end.clone()).await;
    let run = async |arguments: &[&str]| amtool(&binary, address, arguments).await;
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")) };

    run(&["alert", "add", "alertname=A", "job=x", "--annotation=summary=It burns"]).await.unwrap();
    run(&["alert", "add", "alertname=B", "job=y"]).await.unwrap();
    let alerts = json(&run(&["alert", "query", "-o", "json"]).await.unwrap());
    assert_eq!(alerts.as_array().unwrap().len(), 2, "{alerts}");
    assert!(alerts.to_string().contains("It burns"), "{alerts}");
    let some = json(&run(&["alert", "query", "-o", "json", "job=~x|z"]).await.unwrap());
    assert_eq!(some[0]["labels"]["alertname"], "A");
    assert_eq!(some[0]["status"]["state"], "active");

    let id = run(&["silence", "add", "alertname=A", "--comment=why", "--author=me", "--duration=1h"]).await.unwrap();
    let id = id.trim();
    let silenced = json(&run(&["alert", "query", "--silenced", "-o", "json"]).await.unwrap());
    assert_eq!(silenced[0]["status"]["silencedBy"][0], id, "{silenced}");
    assert_eq!(json(&run(&["alert", "query", "-o", "json"]).await.unwrap()).as_array().unwrap().len(), 1);
    let silences = json(&run(&["silence", "query", "-o", "json"]).await.unwrap());
    assert_eq!((&silences[0]["id"], &silences[0]["status"]["state"]), (&id.into(), &"active".into()));
    run(&["silence", "update", id, "--comment=because"]).await.unwrap();
    run(&["silence", "expire", id]).await.unwrap();
    assert_eq!(json(&run(&["silence", "query", "-o", "json"]).await.unwrap()), json!([]));
    assert!(run(&["silence", "add", "alertname=~.*", "--comment=why"]).await.is_err(), "a silence of everything");
    assert!(run(&["config", "show"]).await.unwrap().contains("group_wait: 1h"));
    assert!(run(&["cluster", "show"]).await.is_ok());

    for (method, path, body, want) in [
        ("GET", "/api/v2/receivers", "", 200),
        ("GET", "/api/v2/alerts/groups?receiver=r", "", 200),
        ("GET", "/api/v2/alerts?active=maybe", "", 400),
        ("GET", "/api/v2/alerts?filter=%3D", "", 400),
        ("GET", "/api/v2/alerts?receiver=(", "", 400),
        ("GET", "/api/v2/silence/nobody", "", 404),
        ("DELETE", "/api/v2/silence/nobody", "", 404),
        ("POST", "/api/v2/alerts", "[{}]", 400),
        ("POST", "/api/v2/alerts", "[{\"labels\":{}}]", 400),
        ("POST", "/api/v2/alerts", "[{\"labels\":{\"a\":\"b\"},\"startsAt\":\"soon\"}]", 400),
        ("POST", "/api/v2/alerts", "[]", 200),
        ("POST", "/api/v2/silences", "{}", 400),
        ("GET", "/nothing", "", 404),
    ] {
        let (status, answer) = request(address, method, path, body).await.unwrap();
        assert_eq!(status, want, "{method} {path} {body}: {answer}");
    }
    end.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_get_from_us_what_they_get_from_alertmanager() {
    let binary = match binary() {
        Ok(binary) => binary,
        Err(reason) => {
            eprintln!("left out: Debian's {PACKAGE} cannot be had here: {reason}");
            return;
        }
    };
    let only = std::env::var("GODSEYE_SCRIPT").unwrap_or_default();
    let scripts: Vec<Script> = common::all().into_iter().filter(|script| script.name.contains(&only)).collect();
    let mut failures = Vec::new();
    for some in scripts.chunks(AT_ONCE) {
        let mut running = tokio::task::JoinSet::new();
        for script in some {
            let (script, binary) = (script.clone(), binary.clone());
            running.spawn(async move {
                // Both run on the wall clock of a machine that does other things too: a difference
                // counts when it shows twice.
                match compare(&binary, &script).await {
                    Ok(()) => Ok(()),
                    Err(_) => compare(&binary, &script).await,
                }
            });
        }
        while let Some(outcome) = running.join_next().await {
            failures.extend(outcome.unwrap().err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
