//! Death at any moment: no notification is lost, and one that comes twice comes under its key.
//!
//! In one test the disk of a process that dies is what SQLite had written of its step by then, cut at any byte;
//! the scripts go on from there. In the other a process that sends for real is killed. Not here: what the
//! scripts say (`scripts.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alerting::alert::PostedAlert;
use alerting::config;
use alerting::engine::Engine;
use alerting::labels::LabelSet;
use alerting::matcher;
use alerting::notify::webhook;
use alerting::outbox::SendFailure;
use alerting::repository::{Delivery, Repository};
use alerting::silence::Silence;
use common::running::{Running, until};
use common::{Action, Script};
use fixtures::parts::{Received, Webhook};
use fixtures::rng::Rng;
use model::time::Timestamp;

const SECOND: i64 = Timestamp::NANOS_PER_SECOND;

/// The database's files as they are in one moment. The third one, `-shm`, is made anew from these by whoever opens
/// them after a death.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    pages: Vec<u8>,
    log: Vec<u8>,
}

/// A folder in memory where there is one: what a death leaves is made here byte by byte, so nothing waits for a disk.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("sqlite-wal")
}

impl Disk {
    fn read(path: &Path) -> Self {
        Self { pages: std::fs::read(path).unwrap(), log: std::fs::read(log_of(path)).unwrap_or_default() }
    }

    fn write(&self, path: &Path) {
        std::fs::write(path, &self.pages).unwrap();
        std::fs::write(log_of(path), &self.log).unwrap();
    }

    /// What is there if the process dies between `before` and `after`, after a part of the bytes it writes. SQLite
    /// writes its log from front to back, and pages of the database only when the log has all of them.
    fn cut(before: &Self, after: &Self, part: f64) -> Self {
        let torn = |old: &[u8], new: &[u8]| {
            let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
            let written = first + ((new.len() - first.min(new.len())) as f64 * part).round() as usize;
            let mut bytes = new[..written.min(new.len())].to_vec();
            bytes.extend_from_slice(old.get(bytes.len()..).unwrap_or_default());
            bytes
        };
        if before.pages == after.pages {
            return Self { pages: before.pages.clone(), log: torn(&before.log, &after.log) };
        }
        Self { pages: torn(&before.pages, &after.pages), log: after.log.clone() }
    }
}

/// What a step of the process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Takes what a client says.
    Report,
    /// Decides who is told what.
    Decision,
    /// Notes that a message was taken.
    Mark,
    /// Notes that it was not.
    Failure,
}

/// A process, its disk, and the world outside, which remembers what it got.
struct World {
    folder: tempfile::TempDir,
    config: config::Config,
    max_alerts: HashMap<String, u64>,
    engine: Option<Engine>,
    /// Databases so far: the one of a process that died is left as it is.
    lives: usize,
    now: Timestamp,
    started: HashMap<LabelSet, Timestamp>,
    /// Key and content of what receivers got.
    got: Vec<(String, String)>,
    /// Whether receivers take no message at the first attempt.
    failing: bool,
    /// The steps so far that wrote.
    steps: Vec<Kind>,
    /// In which step it dies, and after which part of its bytes.
    death: Option<(usize, f64)>,
}

impl World {
    fn new(script: &Script, failing: bool, death: Option<(usize, f64)>) -> Self {
        let config = config::parse(&script.full_config("http://127.0.0.1:1")).config.unwrap();
        let max_alerts = script
            .receivers
            .iter()
            .filter_map(|(name, options)| Some((name.clone(), options.strip_prefix("max_alerts: ")?.parse().ok()?)))
            .collect();
        let mut world = Self {
            folder: memory(),
            config,
            max_alerts,
            engine: None,
            lives: 0,
            now: Timestamp(1_700_000_000 * SECOND),
            started: HashMap::new(),
            got: Vec::new(),
            failing,
            steps: Vec::new(),
            death,
        };
        world.start();
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.sqlite", self.lives))
    }

    fn start(&mut self) {
        let repository = Repository::open(&self.path(), "default").unwrap();
        self.engine = Some(Engine::open(self.config.clone(), repository, self.now).unwrap());
    }

    /// Whether the process lives on after a step that began with `before`. If not, the disk is as the death left it.
    fn survives(&mut self, kind: Kind, before: &Disk) -> bool {
        let after = Disk::read(&self.path());
        if *before == after {
            return true;
        }
        self.steps.push(kind);
        let Some((_, part)) = self.death.filter(|(step, _)| *step + 1 == self.steps.len()) else { return true };
        let left = Disk::cut(before, &after, part);
        self.lives += 1;
        left.write(&self.path());
        false
    }

    /// One step of the process. `None`: it died, and nobody heard an answer; another one has started.
    fn step<T>(&mut self, kind: Kind, act: impl FnOnce(&mut Engine, Timestamp) -> T) -> Option<T> {
        let before = Disk::read(&self.path());
        let now = self.now;
        let answer = act(self.engine.as_mut().unwrap(), now);
        if self.survives(kind, &before) {
            return Some(answer);
        }
        self.engine = None;
        self.start();
        None
    }

    /// Says something until there is an answer, as clients do.
    fn say(&mut self, what: impl Fn(&mut Engine, Timestamp)) {
        while self.step(Kind::Report, &what).is_none() {}
    }

    fn tick(&mut self) {
        while self.step(Kind::Decision, |engine, now| engine.tick(now).unwrap()).is_none() {}
    }

    fn receive(&mut self, delivery: &Delivery) {
        let notification = &delivery.notification;
        let max = self.max_alerts.get(&notification.receiver).copied().unwrap_or(0);
        let payload = serde_json::from_slice(&webhook::payload(notification, "", max)).unwrap();
        self.got.push((notification.key.clone(), common::line(&notification.receiver, &payload)));
    }

    fn deliver(&mut self) {
        loop {
            let now = self.now;
            let engine = self.engine.as_mut().unwrap();
            let (ready, _) = engine.ready_deliveries(&HashSet::new(), 64, now).unwrap();
            if ready.is_empty() {
                return;
            }
            for delivery in ready {
                let noted = if self.failing && delivery.attempts == 0 {
                    let failure = SendFailure::retryable("down");
                    self.step(Kind::Failure, |engine, now| {
                        engine.failed(&delivery, &failure, 0, now).map(drop).unwrap()
                    })
                } else {
                    self.receive(&delivery);
                    self.step(Kind::Mark, |engine, now| engine.delivered(&delivery, None, now).unwrap())
                };
                if noted.is_none() {
                    // What was to be sent with it is known to nobody any more.
                    break;
                }
            }
        }
    }

    fn advance_to(&mut self, at: Timestamp) {
        while self.now < at {
            let next = self.engine.as_ref().unwrap().next_step_at().0.max(self.now.0 + 1);
            self.now = Timestamp(next.min(at.0));
            self.tick();
            self.deliver();
        }
    }

    fn act(&mut self, action: &Action) {
        let now = self.now;
        let post = |alert: PostedAlert| {
            move |engine: &mut Engine, now| {
                assert_eq!(engine.post_alerts(vec![alert.clone()], now).unwrap().accepted, 1);
            }
        };
        match action {
            Action::Fire(labels, since) => {
                let starts_at = now.plus_nanos(-(*since * SECOND as f64) as i64);
                self.started.insert(labels.clone(), starts_at);
                let starts_at = Some(starts_at);
                self.say(post(PostedAlert { labels: labels.clone(), starts_at, ..PostedAlert::default() }));
            }
            Action::Resolve(labels) => {
                let starts_at = self.started.get(labels).copied();
                let ends_at = Some(now);
                self.say(post(PostedAlert { labels: labels.clone(), starts_at, ends_at, ..PostedAlert::default() }));
            }
            Action::Silence(name, matchers, seconds) => {
                let silence = Silence {
                    id: String::new(),
                    matchers: matcher::parse_all(matchers).unwrap(),
                    starts_at: now,
                    ends_at: now.plus_nanos((*seconds * SECOND as f64) as i64),
                    updated_at: now,
                    created_by: "test".to_owned(),
                    comment: "test".to_owned(),
                };
                self.say(|engine, now| drop(engine.put_silence(silence.clone(), name.clone(), now).unwrap()));
            }
            // It may have been done by the process that died.
            Action::Expire(name) => self.say(|engine, now| drop(engine.expire_silence(name, now))),
        }
    }

    /// Runs a script to its end, and on until everything decided by then has been taken.
    fn run(&mut self, script: &Script) {
        let start = self.now;
        let at = |seconds: f64| start.plus_nanos((seconds * SECOND as f64) as i64);
        for step in &script.steps {
            self.advance_to(at(step.at));
            self.act(&step.action);
        }
        self.advance_to(at(script.end));
        for _ in 0..100 {
            self.now = self.now.plus_nanos(SECOND);
            self.deliver();
        }
    }

    /// What receivers got, each key once, and how often one came again.
    fn told(&self) -> (Vec<String>, usize) {
        let mut by_key: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut once = Vec::new();
        for (key, line) in &self.got {
            let lines = by_key.entry(key).or_default();
            if lines.is_empty() {
                once.push(line.clone());
            }
            lines.push(line);
        }
        for (key, lines) in &by_key {
            assert!(lines.len() <= 2, "{key} came more than twice: {lines:?}");
            assert!(lines.iter().all(|line| *line == lines[0]), "{key} said different things: {lines:?}");
        }
        once.sort();
        (once, self.got.len() - by_key.len())
    }
}

/// Parts of a step's bytes after which it dies: none, all, and some between.
fn part(rng: &mut Rng) -> f64 {
    match rng.below(4) {
        0 => 0.0,
        1 => 1.0,
        _ => rng.unit(),
    }
}

#[test]
fn death_at_any_byte_of_any_step_loses_no_message_and_doubles_at_most_one() {
    let points: usize = std::env::var("GODSEYE_KILL_POINTS").map_or(500, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("GODSEYE_SEED").map_or(1, |text| text.parse().unwrap());
    // Whoever relies on time-outs of seconds is told later: time without a process does not count.
    let scripts: Vec<Script> =
        common::all().into_iter().filter(|script| !script.config.contains("resolve_timeout")).collect();
    // Every step of every script in which something is written, with receivers that take everything, and with some
    // that take nothing at first.
    let mut steps: BTreeMap<Kind, Vec<(usize, bool, usize)>> = BTreeMap::new();
    for (index, script) in scripts.iter().enumerate() {
        for failing in [false, true] {
            let mut world = World::new(script, failing, None);
            world.run(script);
            let (told, doubled) = world.told();
            let mut want = script.want.clone();
            want.sort();
            assert_eq!((told, doubled), (want, 0), "{} without a death", script.name);
            for (step, kind) in world.steps.iter().enumerate() {
                steps.entry(*kind).or_default().push((index, failing, step));
            }
        }
    }
    let mut rng = Rng::of(&[seed]);
    let (mut killed, mut doubles) = (BTreeMap::<Kind, usize>::new(), 0);
    let kinds: Vec<Kind> = steps.keys().copied().collect();
    assert_eq!(kinds, [Kind::Report, Kind::Decision, Kind::Mark, Kind::Failure]);
    for point in 0..points {
        let kind = kinds[point % kinds.len()];
        let (index, failing, step) = *rng.pick(&steps[&kind]);
        let (script, part) = (&scripts[index], part(&mut rng));
        let mut world = World::new(script, failing, Some((step, part)));
        world.run(script);
        assert!(world.lives > 0, "{}: there is no step {step}", script.name);
        let (told, doubled) = world.told();
        let mut want = script.want.clone();
        want.sort();
        let place = format!("{}: point {point} of seed {seed}: step {step} ({kind:?}) at {part}", script.name);
        assert_eq!(told, want, "{place}");
        assert!(doubled <= usize::from(kind == Kind::Mark), "{place}: {doubled} came again");
        *killed.entry(kind).or_default() += 1;
        doubles += doubled;
    }
    println!(
        "{points} deaths: {killed:?} of {:?} steps; {doubles} messages came twice",
        steps.values().map(Vec::len).collect::<Vec<_>>()
    );
    assert!(points < 100 || doubles > 0, "a death between taking and noting brings a message again");
}

/// Where the process that is to be killed has its files; set by the test that starts it.
const FOLDER: &str = "GODSEYE_CRASH_FOLDER";

/// Alerts the killed process tells of, one a message.
const ALERTS: usize = 60;

/// How often it is killed.
const KILLS: u64 = 8;

/// The process to be killed: posts alerts one after the other, and notes each that was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is started by the test below"]
async fn process_to_be_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let running = Running::start(&folder, &std::fs::read_to_string(folder.join("config.yml")).unwrap());
    let taken = folder.join("taken");
    let mut lines = std::fs::read_to_string(&taken).unwrap_or_default();
    for number in lines.lines().count()..ALERTS {
        running.fire(&format!("A{number:03}")).await;
        writeln!(lines, "{number}").unwrap();
        std::fs::write(folder.join("taken.part"), &lines).unwrap();
        std::fs::rename(folder.join("taken.part"), &taken).unwrap();
    }
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_loses_no_message_and_repeats_at_most_the_last() {
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let webhook = Webhook::start(kept.path()).await.unwrap();
    let url = webhook.url("/");
    let config = format!(
        "route: {{receiver: r, group_by: [alertname], group_wait: 0s, group_interval: 1h}}
receivers: [{{name: r, webhook_configs: [{{url: '{url}'}}]}}]"
    );
    std::fs::write(folder.path().join("config.yml"), config).unwrap();
    let key = |request: &Received| request.header("idempotency-key").unwrap().to_owned();
    let distinct = || webhook.requests().unwrap().iter().map(key).collect::<HashSet<String>>().len();
    let mut rng = Rng::of(&[7]);
    for kill in 0..=KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_to_be_killed", "--ignored"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The next message of a channel is sent when the last one is noted: once there is a new one, none comes a
        // third time.
        let goal = if kill == KILLS { ALERTS } else { (distinct() + 1 + rng.below(4) as usize).min(ALERTS) };
        until("new messages come", async || distinct() >= goal).await;
        tokio::time::sleep(std::time::Duration::from_millis(rng.below(15))).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in webhook.requests().unwrap() {
        by_key.entry(key(&request)).or_default().push(request.body);
    }
    assert_eq!(by_key.len(), ALERTS, "one message an alert");
    let mut names = HashSet::new();
    for (key, bodies) in &by_key {
        assert!(bodies.len() <= 2 && bodies.iter().all(|body| *body == bodies[0]), "{key}: {bodies:?}");
        let payload: serde_json::Value = serde_json::from_str(&bodies[0]).unwrap();
        names.insert(payload["alerts"][0]["labels"]["alertname"].as_str().unwrap().to_owned());
    }
    assert_eq!(names.len(), ALERTS, "every alert is told");
}
