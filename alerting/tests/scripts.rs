//! The scripts on a virtual clock: what the engine decides, with a restart anywhere changing nothing.
//!
//! Not here: the comparison with Alertmanager itself (`alertmanager.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use alerting::alert::PostedAlert;
use alerting::config;
use alerting::engine::{AlertFilter, Engine, META_ALERT};
use alerting::labels::LabelSet;
use alerting::matcher;
use alerting::notify::webhook;
use alerting::outbox::SendFailure;
use alerting::repository::{HistoryEvent, Repository};
use alerting::silence::Silence;
use common::{Action, Script};
use model::time::Timestamp;
use proptest::prelude::*;

const SECOND: i64 = Timestamp::NANOS_PER_SECOND;

/// An engine, its disk, and what its receivers got.
struct World {
    folder: tempfile::TempDir,
    config: config::Config,
    max_alerts: HashMap<String, u64>,
    engine: Option<Engine>,
    now: Timestamp,
    started: HashMap<LabelSet, Timestamp>,
    silences: HashMap<String, String>,
    told: Vec<String>,
    keys: Vec<String>,
    /// Whether receivers take messages.
    failure: Option<SendFailure>,
    /// Messages to come until the process dies, having sent one and noted nothing.
    dies_after: Option<usize>,
}

impl World {
    fn new(script: &Script) -> Self {
        let parsed = config::parse(&script.full_config("http://127.0.0.1:1"));
        let config = parsed.config.unwrap_or_else(|| panic!("{}: {:?}", script.name, parsed.problems));
        let max_alerts = script
            .receivers
            .iter()
            .filter_map(|(name, options)| Some((name.clone(), options.strip_prefix("max_alerts: ")?.parse().ok()?)))
            .collect();
        Self::of(config, max_alerts)
    }

    fn of(config: config::Config, max_alerts: HashMap<String, u64>) -> Self {
        let mut world = Self {
            folder: tempfile::tempdir().unwrap(),
            config,
            max_alerts,
            engine: None,
            now: Timestamp(1_700_000_000 * SECOND),
            started: HashMap::new(),
            silences: HashMap::new(),
            told: Vec::new(),
            keys: Vec::new(),
            failure: None,
            dies_after: None,
        };
        world.start();
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("alerting.sqlite")
    }

    fn start(&mut self) {
        self.engine = None;
        let repository = Repository::open(&self.path(), "default").unwrap();
        self.engine = Some(Engine::open(self.config.clone(), repository, self.now).unwrap());
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    /// Sends what is to be sent, as the service would.
    fn deliver(&mut self) {
        loop {
            let now = self.now;
            let (ready, _) = self.engine().ready_deliveries(&HashSet::new(), 64, now).unwrap();
            if ready.is_empty() {
                return;
            }
            for delivery in ready {
                if let Some(failure) = self.failure.clone() {
                    self.engine().failed(&delivery, &failure, 0, now).unwrap();
                    continue;
                }
                let notification = &delivery.notification;
                let max = self.max_alerts.get(&notification.receiver).copied().unwrap_or(0);
                let payload = serde_json::from_slice(&webhook::payload(notification, "", max)).unwrap();
                self.told.push(common::line(&notification.receiver, &payload));
                self.keys.push(notification.key.clone());
                if self.dies_after == Some(0) {
                    self.dies_after = None;
                    self.start();
                    break;
                }
                self.dies_after = self.dies_after.map(|left| left - 1);
                self.engine().delivered(&delivery, None, now).unwrap();
            }
        }
    }

    fn advance_to(&mut self, at: Timestamp) {
        while self.now < at {
            let next = self.engine().next_step_at().0.max(self.now.0 + 1);
            self.now = Timestamp(next.min(at.0));
            let now = self.now;
            self.engine().tick(now).unwrap();
            self.deliver();
        }
    }

    fn advance(&mut self, seconds: f64) {
        self.advance_to(self.now.plus_nanos((seconds * SECOND as f64) as i64));
    }

    fn act(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::Fire(labels, since) => {
                let starts_at = now.plus_nanos(-(*since * SECOND as f64) as i64);
                self.started.insert(labels.clone(), starts_at);
                let alert =
                    PostedAlert { labels: labels.clone(), starts_at: Some(starts_at), ..PostedAlert::default() };
                assert_eq!(self.engine().post_alerts(vec![alert], now).unwrap().accepted, 1);
            }
            Action::Resolve(labels) => {
                let starts_at = self.started.get(labels).copied();
                let alert =
                    PostedAlert { labels: labels.clone(), starts_at, ends_at: Some(now), ..PostedAlert::default() };
                assert_eq!(self.engine().post_alerts(vec![alert], now).unwrap().accepted, 1);
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
                let id = self.engine().put_silence(silence, format!("id-{name}"), now).unwrap();
                self.silences.insert(name.clone(), id);
            }
            Action::Expire(name) => {
                let id = self.silences[name].clone();
                self.engine().expire_silence(&id, now).unwrap();
            }
        }
    }

    /// Runs a script; `restart_at`: the process is replaced at that second.
    fn run(&mut self, script: &Script, restart_at: Option<f64>) {
        let start = self.now;
        let at = |seconds: f64| start.plus_nanos((seconds * SECOND as f64) as i64);
        let mut restart_at = restart_at;
        for step in &script.steps {
            if let Some(restart) = restart_at.filter(|restart| *restart <= step.at) {
                self.advance_to(at(restart));
                self.start();
                restart_at = None;
            }
            self.advance_to(at(step.at));
            self.act(&step.action);
        }
        if let Some(restart) = restart_at {
            self.advance_to(at(restart));
            self.start();
        }
        self.advance_to(at(script.end));
    }
}

/// Messages of different receivers and groups have no order among each other.
fn by_group(lines: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = lines.to_vec();
    let key = |line: &String| {
        let mut words = line.splitn(3, ' ');
        let (receiver, _, rest) = (words.next().unwrap(), words.next(), words.next().unwrap());
        format!("{receiver} {}", rest.split_once("} ").map_or(rest, |(key, _)| key))
    };
    lines.sort_by_key(key);
    lines
}

#[test]
fn receivers_are_told_what_the_scripts_say() {
    let scripts = common::all();
    assert!(scripts.len() >= 30, "the folder of scripts is there");
    let mut wrong = Vec::new();
    for script in &scripts {
        let mut world = World::new(script);
        world.run(script, None);
        if by_group(&world.told) != by_group(&script.want) {
            wrong.push(format!("{}:\n  want {:#?}\n  told {:#?}", script.name, script.want, world.told));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_restart_at_any_time_loses_nothing_and_doubles_nothing() {
    for script in common::all() {
        // Whoever relies on time-outs of seconds is told later: time without a process does not count.
        if script.config.contains("resolve_timeout") {
            continue;
        }
        for tenth in (1..(script.end * 10.0) as i32).step_by(7) {
            let mut world = World::new(&script);
            world.run(&script, Some(f64::from(tenth) / 10.0));
            assert_eq!(by_group(&world.told), by_group(&script.want), "{} restarted at {tenth}/10 s", script.name);
        }
    }
}

#[test]
fn a_death_between_sending_and_noting_repeats_one_message_under_its_key() {
    let mut deaths = 0;
    for script in common::all().into_iter().filter(|script| !script.config.contains("resolve_timeout")) {
        for death in 0..script.want.len() {
            let mut world = World::new(&script);
            world.dies_after = Some(death);
            world.run(&script, None);
            assert_eq!(world.told.len(), script.want.len() + 1, "{}: one message is repeated", script.name);
            let mut seen = HashSet::new();
            let once: Vec<String> = world
                .keys
                .iter()
                .zip(&world.told)
                .filter(|(key, _)| seen.insert((*key).clone()))
                .map(|(_, line)| line.clone())
                .collect();
            assert_eq!(by_group(&once), by_group(&script.want), "{} died at {death}", script.name);
            deaths += 1;
        }
    }
    assert!(deaths > 50, "{deaths}");
}

#[test]
fn what_cannot_be_committed_did_not_happen() {
    let mut world = World::new(&simple(ONE_GROUP));
    let other = rusqlite::Connection::open(world.path()).unwrap();
    let refuse = |table: &str| {
        let sql = format!("CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'disk full'); END");
        other.execute_batch(&sql).unwrap();
    };
    let now = world.now;
    let post = |world: &mut World| {
        let labels = [("alertname", "A")].into_iter().collect();
        world.engine().post_alerts(vec![PostedAlert { labels, ..PostedAlert::default() }], now)
    };
    refuse("groups");
    assert!(post(&mut world).unwrap_err().is_retryable());
    assert!(world.engine().alerts(&AlertFilter::default(), now).is_empty(), "a refused alert is not there");
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    post(&mut world).unwrap();

    refuse("outbox");
    let later = now.plus_nanos(2 * SECOND);
    assert!(world.engine().tick(later).is_err());
    assert!(world.engine().ready_deliveries(&HashSet::new(), 9, later).unwrap().0.is_empty());
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    world.advance(5.0);
    assert_eq!(world.told, ["r firing {}:{alertname=\"A\"} A:firing"]);

    // A disk that takes nothing for half an hour: no report could be taken, so no alert has ended.
    other
        .execute_batch("CREATE TRIGGER refuse BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        .unwrap();
    for _ in 0..180 {
        world.now = world.now.plus_nanos(10 * SECOND);
        let now = world.now;
        drop(world.engine().tick(now));
    }
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    world.advance(60.0);
    assert_eq!(world.told.len(), 1, "{:?}", world.told);
    world.advance(600.0);
    assert_eq!(world.told[1..], ["r resolved {}:{alertname=\"A\"} A:resolved"]);
}

fn simple(config: &str) -> Script {
    Script {
        name: "simple".to_owned(),
        config: format!("{config}\n"),
        receivers: vec![("r".to_owned(), String::new())],
        ..Script::default()
    }
}

fn fire(name: &str) -> Action {
    Action::Fire([("alertname", name)].into_iter().collect(), 0.0)
}

const ONE_GROUP: &str =
    "route: {receiver: r, group_by: [alertname], group_wait: 1s, group_interval: 10s, repeat_interval: 4h}";

#[test]
fn nobody_is_told_that_an_alert_ended_because_we_were_down() {
    // Without an end, as most clients send; and with one to come, as Prometheus does.
    for ends_after in [None, Some(240)] {
        let mut world = World::new(&simple(ONE_GROUP));
        let now = world.now;
        let alert = PostedAlert {
            labels: [("alertname", "A")].into_iter().collect(),
            ends_at: ends_after.map(|seconds| now.plus_nanos(seconds * SECOND)),
            starts_at: Some(now),
            ..PostedAlert::default()
        };
        world.engine().post_alerts(vec![alert], now).unwrap();
        world.advance(5.0);
        world.engine = None;
        // An hour without a process, in which nobody could send the alert again.
        world.now = world.now.plus_nanos(3_600 * SECOND);
        world.start();
        world.advance(60.0);
        assert_eq!(world.told, ["r firing {}:{alertname=\"A\"} A:firing"], "{ends_after:?}");
        // Its client is still silent: now it is over.
        world.advance(600.0);
        assert_eq!(world.told[1..], ["r resolved {}:{alertname=\"A\"} A:resolved"], "{ends_after:?}");
        let history: Vec<HistoryEvent> =
            world.engine().history(now, 9).unwrap().into_iter().map(|(_, event, _)| event).collect();
        assert_eq!(history, [HistoryEvent::Firing, HistoryEvent::Resolved]);
    }
}

#[test]
fn a_clock_that_is_set_ends_no_alert_and_stops_no_group() {
    for jump in [3_600, -3_600] {
        let mut world = World::new(&simple(ONE_GROUP));
        world.act(&fire("A"));
        world.advance(5.0);
        world.now = world.now.plus_nanos(jump * SECOND);
        let now = world.now;
        world.engine().tick(now).unwrap();
        world.deliver();
        world.act(&Action::Fire([("alertname", "A"), ("job", "b")].into_iter().collect(), 0.0));
        world.advance(30.0);
        assert_eq!(
            world.told,
            ["r firing {}:{alertname=\"A\"} A:firing", "r firing {}:{alertname=\"A\"} A/b:firing A:firing"],
            "{jump}"
        );
    }
}

#[test]
fn an_inhibited_alert_does_not_page_after_a_restart() {
    let config =
        format!("{ONE_GROUP}\ninhibit_rules: [{{source_matchers: [alertname=S], target_matchers: [alertname=T]}}]");
    let mut world = World::new(&simple(&config));
    world.act(&fire("S"));
    world.act(&fire("T"));
    world.advance(5.0);
    world.start();
    world.act(&fire("T"));
    world.advance(60.0);
    assert_eq!(world.told, ["r firing {}:{alertname=\"S\"} S:firing"]);
}

#[test]
fn what_a_receiver_cannot_take_waits_in_order_and_is_sent_once() {
    let mut world = World::new(&simple(ONE_GROUP));
    world.failure = Some(SendFailure::retryable("down"));
    world.act(&fire("A"));
    world.advance(5.0);
    world.act(&Action::Resolve([("alertname", "A")].into_iter().collect()));
    world.advance(20.0);
    world.start();
    assert!(world.told.is_empty());
    world.failure = None;
    world.advance(600.0);
    assert_eq!(world.told, ["r firing {}:{alertname=\"A\"} A:firing", "r resolved {}:{alertname=\"A\"} A:resolved"]);
    let distinct: HashSet<&String> = world.keys.iter().collect();
    assert_eq!(distinct.len(), world.keys.len());
}

#[test]
fn a_dead_letter_becomes_an_alert_and_the_group_is_told_again() {
    let mut world = World::new(&simple(
        "route: {receiver: r, group_by: [alertname], group_wait: 1s, group_interval: 10s, repeat_interval: 1h}",
    ));
    world.failure = Some(SendFailure::permanent("no such hook"));
    world.act(&fire("A"));
    world.advance(1.5);
    let now = world.now;
    let alerts = world.engine().alerts(&AlertFilter::default(), now);
    assert!(alerts.iter().any(|view| view.alert.labels.get("alertname") == META_ALERT), "{alerts:?}");
    assert_eq!(world.engine().counts(now).unwrap().outbox.dead, 1);
    world.failure = None;
    world.advance(30.0);
    assert!(world.told.contains(&"r firing {}:{alertname=\"A\"} A:firing".to_owned()), "{:?}", world.told);
    let meta: Vec<&String> = world.told.iter().filter(|line| line.contains(META_ALERT)).collect();
    assert!(meta.len() <= 2 && world.engine().alerts(&AlertFilter::default(), now).len() <= 2, "{:?}", world.told);
}

#[test]
fn another_configuration_keeps_what_was_told() {
    let mut world = World::new(&simple(ONE_GROUP));
    world.act(&fire("A"));
    world.advance(5.0);
    let now = world.now;
    let mut config = world.config.clone();
    config.route.group_interval = Some(std::time::Duration::from_secs(20));
    world.engine().reconfigure(config, now).unwrap();
    world.advance(100.0);
    assert_eq!(world.told.len(), 1, "{:?}", world.told);
    let text = "route: {receiver: other, group_by: [alertname], group_wait: 1s}\nreceivers: [{name: other, webhook_configs: [{url: 'http://x/'}]}]";
    let now = world.now;
    world.engine().reconfigure(config::parse(text).config.unwrap(), now).unwrap();
    world.advance(100.0);
    assert_eq!(world.told[1..], ["other firing {}:{alertname=\"A\"} A:firing"], "who was never told is told");
}

const DEFAULT_ROUTES: &str = "
global: {resolve_timeout: 1y, smtp_from: g@example.org, smtp_smarthost: 'localhost:25'}
receivers:
- {name: page, webhook_configs: [{url: 'http://127.0.0.1:1/'}]}
- {name: team, webhook_configs: [{url: 'http://127.0.0.1:1/'}]}
- {name: digest, email_configs: [{to: a@example.com, digest: '08:00'}]}
";

#[test]
fn information_waits_for_the_digest_of_the_day() {
    for restarts in [false, true] {
        let mut world = World::of(config::parse(DEFAULT_ROUTES).config.unwrap(), HashMap::new());
        let labels = |name: &str, severity: &str| -> LabelSet {
            [("alertname", name), ("severity", severity)].into_iter().collect()
        };
        // It is 22:13 in UTC.
        for (name, severity) in [("A", "info"), ("B", "warning"), ("C", "critical"), ("D", "info"), ("E", "")] {
            world.act(&Action::Fire(labels(name, severity), 0.0));
        }
        world.advance(40.0);
        let at_once = [
            "page firing {}/{severity=\"critical\"}:{alertname=\"C\"} C/critical:firing",
            "team firing {}:{alertname=\"B\"} B/warning:firing",
            "team firing {}:{alertname=\"E\"} E:firing",
        ];
        world.told.sort();
        assert_eq!(world.told, at_once);
        world.act(&Action::Resolve(labels("A", "info")));
        world.advance(400.0);
        let leap_to = |world: &mut World, at: Timestamp| {
            if restarts {
                world.engine = None;
            }
            world.now = at;
            if restarts {
                world.start();
            }
            world.advance(30.0);
        };
        let eight = Timestamp(1_700_035_200 * SECOND);
        leap_to(&mut world, eight.plus_nanos(-60 * SECOND));
        let digests = |world: &World| -> Vec<String> {
            world.told.iter().filter(|line| line.starts_with("digest ")).cloned().collect()
        };
        assert!(digests(&world).is_empty(), "{:?}", world.told);
        world.advance(60.0);
        let first = "digest firing digest:digest/email/0 D/info:firing A/info:resolved";
        assert_eq!(digests(&world), [first]);
        // Nothing new came: what fires on is told once more on the next day, and what was over is not.
        for hours in [5, 10, 15, 20] {
            leap_to(&mut world, eight.plus_nanos(hours * 3_600 * SECOND));
            world.advance(600.0);
        }
        leap_to(&mut world, eight.plus_nanos(24 * 3_600 * SECOND));
        assert_eq!(digests(&world), [first, "digest firing digest:digest/email/0 D/info:firing"]);
        let distinct: HashSet<&String> = world.keys.iter().collect();
        assert_eq!(distinct.len(), world.keys.len());
    }
}

#[test]
fn a_clock_that_is_set_back_holds_no_digest_up() {
    for restart in [false, true] {
        let mut world = World::of(config::parse(DEFAULT_ROUTES).config.unwrap(), HashMap::new());
        world.act(&Action::Fire([("alertname", "A"), ("severity", "info")].into_iter().collect(), 0.0));
        world.advance(60.0);
        world.now = world.now.plus_nanos(-365 * 86_400 * SECOND);
        if restart {
            world.start();
        }
        world.advance(1.0);
        assert!(world.told.is_empty());
        world.now = world.now.plus_nanos(86_400 * SECOND);
        world.advance(1.0);
        assert_eq!(world.told, ["digest firing digest:digest/email/0 A/info:firing"], "{restart}");
    }
}

#[test]
fn a_digest_that_is_taken_out_of_the_configuration_is_sent() {
    let mut world = World::of(config::parse(DEFAULT_ROUTES).config.unwrap(), HashMap::new());
    world.act(&Action::Fire([("alertname", "A"), ("severity", "info")].into_iter().collect(), 0.0));
    world.advance(60.0);
    assert!(world.told.is_empty());
    let now = world.now;
    let config = config::parse(&DEFAULT_ROUTES.replace(", digest: '08:00'", "")).config.unwrap();
    world.engine().reconfigure(config, now).unwrap();
    world.advance(1.0);
    assert_eq!(world.told, ["digest firing digest:digest/email/0 A/info:firing"]);
}

#[test]
fn what_is_old_is_forgotten_and_what_fires_is_not() {
    let mut world = World::new(&simple(
        "global: {resolve_timeout: 1y}\nroute: {receiver: r, group_by: [alertname], group_wait: 1s, group_interval: 1h, repeat_interval: 1y}",
    ));
    world.act(&fire("A"));
    world.act(&Action::Silence("s".to_owned(), "alertname=B".to_owned(), 60.0));
    world.advance(10.0);
    // In leaps, which the engine takes for a process that stood still; a step a second would take an hour.
    for _ in 0..130 {
        world.now = world.now.plus_nanos(3_600 * SECOND);
        let now = world.now;
        world.engine().tick(now).unwrap();
        world.deliver();
    }
    let now = world.now;
    assert!(world.engine().silences(&[], now).is_empty(), "an expired silence is forgotten after the retention");
    world.start();
    world.advance(20.0);
    assert_eq!(world.told.len(), 1, "the log of an alert that fires is never forgotten: {:?}", world.told);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever fires, ends and is restarted: in the end every receiver believes what is true, and no
    /// message has the key of another.
    #[test]
    fn receivers_believe_what_is_true(
        steps in proptest::collection::vec((0_u8..6, 0_usize..3, 0.0_f64..8.0), 1..25),
    ) {
        let names = ["A", "B", "C"];
        let mut world = World::new(&simple("route: {receiver: r, group_by: [group], group_wait: 1s, group_interval: 3s, repeat_interval: 1h}"));
        let mut firing: HashSet<usize> = HashSet::new();
        for (kind, which, pause) in steps {
            let labels: LabelSet = [("alertname", names[which])].into_iter().collect();
            match kind {
                0..=2 => {
                    world.act(&Action::Fire(labels, 0.0));
                    firing.insert(which);
                }
                3 => {
                    if firing.remove(&which) {
                        world.act(&Action::Resolve(labels));
                    }
                }
                4 => world.start(),
                _ => world.failure = if world.failure.is_some() { None } else { Some(SendFailure::retryable("down")) },
            }
            world.advance(pause);
        }
        world.failure = None;
        // Long enough for every retry, short enough that nothing times out.
        world.advance(200.0);
        let mut believed: HashSet<String> = HashSet::new();
        for line in &world.told {
            let (_, alerts) = line.split_once(":{} ").unwrap();
            believed = alerts
                .split(' ')
                .filter_map(|alert| alert.strip_suffix(":firing"))
                .map(ToOwned::to_owned)
                .collect();
        }
        let real: HashSet<String> = firing.iter().map(|which| names[*which].to_owned()).collect();
        // A receiver that heard of nothing at all believes that nothing fires.
        prop_assert_eq!(believed, real, "{:#?}", world.told);
        let distinct: HashSet<&String> = world.keys.iter().collect();
        prop_assert_eq!(distinct.len(), world.keys.len());
    }
}
