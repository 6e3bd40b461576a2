//! The engine through its doors: documents and batches in, alerts and statuses out, restarts between.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use slo::archive::Archive;
use slo::burn::{Data, Verdict};
use slo::engine::{Config, Engine, Health, Service, Sink, Telemetry};
use slo::rules::state::Notice;
use slo::testing::{Attribute, Span, spans};
use tokio_util::sync::CancellationToken;

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
/// 2026-11-24T00:00:00Z.
const START: i64 = 1_795_478_400 * SECOND;

const DOCUMENTS: &str = include_str!("../examples/checkout.yaml");

fn at(nanos: i64) -> Timestamp {
    Timestamp(START + nanos)
}

fn span(time: i64, is_bad: bool) -> Span {
    Span {
        time: START + time,
        service: "checkout".into(),
        name: "POST /checkout".into(),
        kind: "SERVER",
        status: if is_bad { "ERROR" } else { "UNSET" },
        duration_ns: Some(if is_bad { 2 * SECOND } else { SECOND / 10 }),
        attributes: vec![("http.route".into(), Attribute::Text("/checkout".into()))],
    }
}

/// A batch of requests of the ten seconds before a time, some of them bad.
fn requests(end: i64, bad: usize, total: usize) -> RecordBatch {
    let rows: Vec<Span> = (0..total).map(|number| span(end - 5 * SECOND, number < bad)).collect();
    spans(&rows)
}

/// Telemetry that is stored, with the number of its last record.
#[derive(Default)]
struct Stored {
    batches: Mutex<Vec<RecordBatch>>,
    sql: Mutex<BTreeMap<String, Vec<(Timestamp, f64)>>>,
    asked: Mutex<Vec<String>>,
}

impl Telemetry for Stored {
    fn scan(
        &self,
        _: &TenantId,
        table: Table,
        _: &[&str],
        _: Timestamp,
        _: Timestamp,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<u64, String> {
        let batches = self.batches.lock().unwrap();
        if table == Table::Spans {
            batches.iter().for_each(each);
        }
        Ok(batches.len() as u64)
    }

    fn query(&self, _: &TenantId, sql: &str) -> Result<Vec<(Timestamp, f64)>, String> {
        self.asked.lock().unwrap().push(sql.to_owned());
        let answers = self.sql.lock().unwrap();
        Ok(answers.iter().rev().find(|(part, _)| sql.contains(*part)).map(|(_, rows)| rows.clone()).unwrap_or_default())
    }
}

fn engine(path: &Path, documents: &str, now: Timestamp) -> Engine {
    let slos = slo::openslo::read(&[("slo.yaml", documents)]).unwrap().slos;
    Engine::build(Config::default(), TenantId::default_tenant(), slos, Archive::open(path).unwrap(), now).unwrap()
}

/// Feeds ten seconds at a time and evaluates after each; the notices with their second.
fn play(engine: &mut Engine, seconds: std::ops::Range<i64>, bad: usize, total: usize) -> Vec<(i64, Notice)> {
    let mut told = Vec::new();
    for second in seconds.step_by(10) {
        let now = at(second * SECOND);
        if total > 0 {
            engine.observe(Table::Spans, &requests(second * SECOND, bad, total), now);
        }
        told.extend(engine.evaluate(now).notices.into_iter().map(|notice| (second, notice)));
    }
    told
}

fn brief(told: &[(i64, Notice)]) -> Vec<(i64, &str, bool)> {
    told.iter().map(|(second, notice)| (*second, notice.labels["burn"].as_str(), notice.resolved)).collect()
}

#[test]
fn an_outage_fires_holds_through_silence_and_resolves() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(&dir.path().join("slo.sqlite"), DOCUMENTS, at(0));
    assert_eq!(play(&mut engine, 10..3_600, 0, 100), []);
    // Errors step to 12 %.
    let told = play(&mut engine, 3_600..4_100, 12, 100);
    let first = brief(&told);
    // 14.4 × 0.1 % of the hour's 36,000 requests are 518 bad ones: 44 buckets of 12.
    let fast = told.iter().find(|(_, notice)| notice.labels["burn"] == "fast").unwrap();
    assert!((3_600..=3_600 + 440).contains(&fast.0), "{first:?}");
    let notice = &fast.1;
    assert_eq!(notice.labels["severity"], "critical");
    assert_eq!(notice.labels["team"], "shop");
    assert_eq!(notice.annotations["runbook_url"], "https://runbooks.example.com/checkout");
    let said = |name: &str| notice.annotations[name].as_str();
    assert!(said("query").starts_with("SELECT * FROM spans WHERE"));
    assert!(said("query").ends_with("AND start_time > now() - INTERVAL '60 minutes'"), "{}", said("query"));
    assert_eq!(notice.labels["owner"], "shop", "its team, where nothing names an owner");
    // 36,000 requests in the hour, and as many in the period so far.
    let bad: u64 = said("bad_events").parse().unwrap();
    assert_eq!(said("requests_affected"), format!("{bad} of 36000 in the last 1h"));
    let burned = said("budget_burned");
    assert!(burned.ends_with(" % in the last 1h") && burned.contains(" % of the budget of "), "{burned}");
    // The trace of the newest bad request: the last of twelve of its batch.
    let id = said("trace_id");
    let (time, place) = (i64::from_str_radix(&id[..16], 16).unwrap(), &id[16..]);
    assert_eq!((time, place), (START + (fast.0 - 5) * SECOND, "000000000000000b"));

    // Ten minutes without any telemetry: nothing resolves (I10).
    let silent = play(&mut engine, 4_100..4_800, 0, 0);
    assert!(silent.iter().all(|(_, notice)| !notice.resolved), "{:?}", brief(&silent));
    let round = engine.evaluate(at(4_799 * SECOND));
    let status = round.statuses.iter().find(|status| status.slo.name == "checkout-availability").unwrap();
    assert_eq!(status.health, Health::NoData);
    assert!(matches!(status.objectives[0].data, Data::Stale { .. }));
    assert!(status.objectives[0].firing, "what fired fires on");
    assert_eq!(status.objectives[0].judged[0].verdict, Verdict::NoData);

    // Good requests again: the fast rung's short window is five minutes, and then it resolves.
    let told = play(&mut engine, 4_800..6_000, 0, 100);
    let resolved = brief(&told).into_iter().find(|(_, burn, resolved)| *burn == "fast" && *resolved).unwrap();
    assert_eq!(resolved.0, 4_800, "all that is in the short window is good");
}

#[test]
fn a_clock_that_is_set_ends_nothing() {
    for jump in [HOUR, -HOUR, 40 * 24 * HOUR, -40 * 24 * HOUR] {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(&dir.path().join("slo.sqlite"), DOCUMENTS, at(0));
        play(&mut engine, 10..3_600, 0, 100);
        let told = play(&mut engine, 3_600..4_200, 50, 100);
        assert!(told.iter().any(|(_, notice)| notice.labels["burn"] == "fast" && !notice.resolved), "{jump}");
        // Telemetry comes with its senders' clocks, which nobody has set.
        for second in (4_200..4_500).step_by(10) {
            let now = at(second * SECOND + jump);
            engine.observe(Table::Spans, &requests(second * SECOND, 50, 100), now);
            let notices = engine.evaluate(now).notices;
            assert!(notices.iter().all(|notice| !notice.resolved), "{jump} {second}: {notices:?}");
        }
        // It is set right again: what burned burns.
        let told = play(&mut engine, 4_500..4_700, 50, 100);
        assert!(told.iter().all(|(_, notice)| !notice.resolved), "{jump}: {:?}", brief(&told));
        let status = engine.evaluate(at(4_700 * SECOND)).statuses;
        let status = status.iter().find(|status| status.slo.name == "checkout-availability").unwrap();
        assert!(status.objectives[0].firing, "{jump}");
    }
}

#[tokio::test]
async fn other_documents_take_over_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slo.sqlite");
    let read = |documents: &str| slo::openslo::read(&[("slo.yaml", documents)]).unwrap().slos;
    let one = |name: &str, target: &str, table: &str| {
        format!(
            "apiVersion: openslo/v1\nkind: SLO\nmetadata: {{name: {name}}}\nspec:\n  service: checkout\n  indicator:\n    \
             metadata: {{name: a}}\n    spec: {{ratioMetric: {{bad: {{metricSource: {{type: godseye, spec: {{table: {table}, \
             where: \"attributes['a'] = 1 OR service_name = 'checkout'\"}}}}}}, total: {{metricSource: {{type: godseye, \
             spec: {{table: {table}}}}}}}}}}}\n  timeWindow: [{{duration: 30d, isRolling: true}}]\n  budgetingMethod: \
             Occurrences\n  objectives: [{{target: {target}}}]\n"
        )
    };
    let clock = Clock::manual(at(HOUR));
    let config = Config { evaluate_interval_ms: 5, ..Config::default() };
    let tenant = TenantId::default_tenant();
    let archive = Archive::open(&path).unwrap();
    let engine =
        Engine::build(config, tenant.clone(), read(&one("logs-only", "0.9", "logs")), archive, at(HOUR)).unwrap();
    let stored = Arc::new(Stored::default());
    stored.batches.lock().unwrap().push(requests(HOUR - MINUTE, 100, 100));
    let told = Told::default();
    let (service, feed, board) =
        Service::build(engine, Arc::clone(&stored) as Arc<dyn Telemetry>, Box::new(told.clone()), clock.clone());
    let reloader = service.reloader();
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(stop.clone()));
    // Nobody watches spans yet.
    feed.offer(1, &tenant, Table::Spans, &requests(HOUR, 100, 100));
    assert_eq!(feed.waiting(), 0);
    // Another target keeps what was counted, and a new SLO is counted from what is stored.
    for (documents, wanted, bad) in [
        (one("availability", "0.999", "spans"), "availability", 100),
        (one("availability", "0.99", "spans"), "availability", 200),
    ] {
        reloader.reload(read(&documents)).unwrap();
        let target = read(&documents)[0].objectives[0].target;
        loop {
            let Clock::Manual(time) = &clock else { panic!("it is moved by hand") };
            time.fetch_add(SECOND, std::sync::atomic::Ordering::Relaxed);
            let statuses = board.statuses();
            let found = statuses.iter().find(|status| status.slo.name == wanted);
            if found.is_some_and(|status| {
                status.slo.objectives[0].target == target && status.objectives[0].events.bad() == bad
            }) {
                break;
            }
            tokio::task::yield_now().await;
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        // Watched from now on.
        let batch = requests(HOUR, 100, 100);
        let record = {
            let mut batches = stored.batches.lock().unwrap();
            batches.push(batch.clone());
            batches.len() as u64
        };
        feed.offer(record, &tenant, Table::Spans, &batch);
    }
    assert!(told.0.lock().unwrap().iter().any(|notice| notice.labels["slo"] == "availability"));
    let rounds = board.rounds();
    assert!(rounds.iterations > 0 && rounds.errors.is_empty(), "{rounds:?}");
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[test]
fn a_restart_forgets_nothing_and_recounts_what_was_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slo.sqlite");
    let stored = Stored::default();
    let mut first = engine(&path, DOCUMENTS, at(0));
    for second in (10..3_600).step_by(10) {
        let batch = requests(second * SECOND, usize::from(second > 3_000) * 20, 100);
        first.observe(Table::Spans, &batch, at(second * SECOND));
        stored.batches.lock().unwrap().push(batch);
        first.evaluate(at(second * SECOND));
        if second == 3_200 {
            first.persist(at(second * SECOND), at((second - 60) * SECOND)).unwrap();
        }
    }
    let now = at(3_600 * SECOND);
    let before = first.evaluate(now);
    drop(first);

    let mut again = engine(&path, DOCUMENTS, now);
    assert_eq!(again.catch_up(&stored, now).unwrap()[Table::Spans.index()], 359);
    let after = again.evaluate(now);
    for (before, after) in before.statuses.iter().zip(&after.statuses) {
        let events = |status: &slo::engine::Status| status.objectives.iter().map(|of| of.events).collect::<Vec<_>>();
        assert_eq!(events(before), events(after), "{}", before.slo.name);
        assert_eq!(before.health, after.health);
        assert!(events(after)[0].total > 0);
    }
    assert_eq!(again.evaluate(now.plus_nanos(SECOND)).notices, [], "what was told is not told again at once");
}

#[test]
fn a_new_slo_is_counted_from_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let stored = Stored::default();
    for hour in 0..60 {
        stored.batches.lock().unwrap().push(requests(-hour * HOUR, 1, 10));
    }
    let mut engine = engine(&dir.path().join("slo.sqlite"), DOCUMENTS, at(0));
    engine.catch_up(&stored, at(0)).unwrap();
    let status = &engine.evaluate(at(0)).statuses[0];
    assert_eq!((status.slo.name.as_str(), status.objectives[0].events.total), ("checkout-availability", 600));
    assert_eq!(status.objectives[0].events.bad(), 60);
    let report = serde_json::to_value(status.report()).unwrap();
    assert_eq!(report["objectives"][0]["sli"], 0.9);
    assert_eq!(report["objectives"][0]["data"], "fresh");
    assert_eq!(
        (report["health"].as_str(), report["objectives"][0]["budget_allowed"].as_u64()),
        (Some("burning"), Some(0))
    );
}

#[test]
fn late_telemetry_revises_and_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(&dir.path().join("slo.sqlite"), DOCUMENTS, at(0));
    play(&mut engine, 10..7_200, 0, 10);
    let now = at(7_200 * SECOND);
    engine.observe(Table::Spans, &requests(600 * SECOND, 7, 7), now);
    let status = &engine.evaluate(now).statuses[0];
    assert_eq!(status.objectives[0].events.bad(), 7);
    engine.persist(now, now).unwrap();
    let key = status.slo.objectives[0].indicator.key();
    let revisions = engine.archive().revisions(engine.tenant(), key).unwrap();
    assert_eq!(revisions.len(), 1);
    assert_eq!((revisions[0].0, revisions[0].1.added.total), (now.0 / 1_000_000, 7));
    assert_eq!(revisions[0].1.bucket * 10, (START / SECOND) + 300, "the five minutes that changed");
    let history = engine.archive().history(engine.tenant(), "checkout-availability", 0, i64::MAX).unwrap();
    assert_eq!(history.len(), 24, "a point every five minutes");
    assert!(history.iter().all(|point| point.health == "ok"));
}

#[test]
fn sql_sources_are_asked_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let stored = Stored::default();
    let mut engine = engine(&dir.path().join("slo.sqlite"), include_str!("../examples/sources.yaml"), at(0));
    let row = |second: i64| (at(second * SECOND), 1.0);
    for good in [1, 2] {
        let rows: Vec<_> = (0..10).map(row).collect();
        stored.sql.lock().unwrap().insert("status_code".into(), rows[..good * 4].to_vec());
        stored.sql.lock().unwrap().insert(String::new(), rows);
        engine.ask_sql(&stored, at(MINUTE)).unwrap();
    }
    let round = engine.evaluate(at(MINUTE));
    let status = round.statuses.iter().find(|status| status.slo.name == "orders-by-sql").unwrap();
    assert_eq!((status.objectives[0].events.good, status.objectives[0].events.total), (8, 10));
    let asked = stored.asked.lock().unwrap();
    assert!(asked[0].contains("start_time >= TIMESTAMP '2026-11-23T23:00:00Z'"), "{}", asked[0]);
}

#[test]
fn a_composite_burns_by_weight_and_its_silence_is_an_alert() {
    let dir = tempfile::tempdir().unwrap();
    let documents = "
apiVersion: openslo/v1
kind: SLO
metadata: {name: both}
spec:
  service: checkout
  budgetingMethod: Occurrences
  objectives:
    - {displayName: errors, target: 0.99, compositeWeight: 1, indicatorRef: errors}
    - {displayName: latency, target: 0.9, compositeWeight: 3, indicatorRef: latency}
  alertPolicies:
    - kind: AlertPolicy
      metadata: {name: burn}
      spec:
        alertWhenNoData: true
        notificationTargets: []
        conditions:
          - kind: AlertCondition
            metadata: {name: c}
            spec: {severity: critical, condition: {threshold: 2, lookbackWindow: 1h}}
---
apiVersion: openslo/v1
kind: SLI
metadata: {name: errors}
spec: {ratioMetric: {bad: {metricSource: {spec: {table: spans, where: \"status_code = 'ERROR'\"}}}, total: {metricSource: {spec: {table: spans}}}}}
---
apiVersion: openslo/v1
kind: SLI
metadata: {name: latency}
spec: {thresholdMetric: {metricSource: {spec: {table: spans, unit: s}}}}
";
    // The threshold belongs to the objective.
    let documents = documents.replace("indicatorRef: latency}", "indicatorRef: latency, op: lte, value: 1}");
    let mut engine = engine(&dir.path().join("slo.sqlite"), &documents, at(0));
    // 4 % bad: burn 4 of errors and 0.4 of latency; by weight (4 + 3 × 0.4) / 4 = 1.3.
    assert_eq!(play(&mut engine, 10..3_600, 4, 100), []);
    // 8 % bad in the hour: (8 + 3 × 0.8) / 4 = 2.6.
    let told = play(&mut engine, 3_600..7_300, 8, 100);
    assert_eq!((told[0].1.labels["slo"].as_str(), told[0].1.labels.get("objective")), ("both", None));
    let said = &told[0].1.annotations;
    assert!(said["query"].contains("status_code = 'ERROR'"), "errors burn most: {said:?}");
    let silent = play(&mut engine, 7_300..8_400, 0, 0);
    let silence = silent.iter().find(|(_, notice)| notice.labels["alertname"] == "SloNoData").unwrap();
    assert_eq!(silence.0, 7_900, "ten minutes after the bucket of the last span");
}

/// Remembers what it was given.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Notice>>>);

impl Sink for Told {
    fn take(&mut self, notices: Vec<Notice>, _: Timestamp) -> Result<(), String> {
        self.0.lock().unwrap().extend(notices);
        Ok(())
    }
}

#[tokio::test]
async fn the_service_counts_what_is_offered_and_recounts_what_found_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slo.sqlite");
    let slos = slo::openslo::read(&[("slo.yaml", DOCUMENTS)]).unwrap().slos;
    let now = at(30 * MINUTE);
    let clock = Clock::manual(now);
    let config = Config { queue_batches: 2, evaluate_interval_ms: 5, ..Config::default() };
    let tenant = TenantId::default_tenant();
    let built = Engine::build(config, tenant.clone(), slos, Archive::open(&path).unwrap(), now).unwrap();
    let stored = Arc::new(Stored::default());
    let told = Told::default();
    let telemetry = Arc::clone(&stored) as Arc<dyn Telemetry>;
    let (service, feed, board) = Service::build(built, telemetry, Box::new(told.clone()), clock.clone());
    // Before it runs, two find room and three do not; all are stored. Another tenant's is not ours.
    for record in 1..=5 {
        let batch = requests(29 * MINUTE, 50, 100);
        feed.offer(record, &tenant, Table::Spans, &batch);
        feed.offer(record, &TenantId::new("other").unwrap(), Table::Spans, &batch);
        stored.batches.lock().unwrap().push(batch);
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(service.run(stop.clone()));
    let Clock::Manual(hand) = &clock else { panic!("a manual clock") };
    let events = loop {
        hand.fetch_add(SECOND, std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        if let [status, ..] = &board.statuses()[..] {
            break status.objectives[0].events;
        }
    };
    assert_eq!((events.bad(), events.total), (250, 500), "each exactly once");
    let batch = requests(30 * MINUTE, 0, 7);
    stored.batches.lock().unwrap().push(batch.clone());
    feed.offer(6, &tenant, Table::Spans, &batch);
    while board.statuses()[0].objectives[0].events.total != 507 {
        hand.fetch_add(SECOND, std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(told.0.lock().unwrap().iter().any(|notice| notice.labels["burn"] == "fast"));

    let mut again = engine(&path, DOCUMENTS, now);
    again.catch_up(&*stored, now).unwrap();
    assert_eq!(again.evaluate(now).statuses[0].objectives[0].events.total, 507);
}
