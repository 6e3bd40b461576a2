//! Documents that are right, and every way to get one wrong.

use super::*;
use crate::filter::Filter;
use crate::report::Problems;
use crate::sli::{Measure, Part, Term};
use model::signal::Table;

const CHECKOUT: &str = include_str!("../../examples/checkout.yaml");
const REFERENCES: &str = include_str!("../../examples/references.yaml");
const SOURCES: &str = include_str!("../../examples/sources.yaml");

fn rows(term: &Term) -> (Table, String, Measure) {
    let Term::Rows { table, filter, measure } = term else { panic!("rows: {term}") };
    (*table, filter.to_string(), *measure)
}

#[test]
fn a_service_says_who_owns_its_slos() {
    let slo = |metadata: &str| {
        format!(
            "apiVersion: openslo/v1\nkind: SLO\nmetadata: {{name: a{metadata}}}\nspec: {{service: s, indicator: {{metadata: \
             {{name: i}}, spec: {{ratioMetric: {{bad: {{metricSource: {{type: godseye, spec: {{table: logs, where: \
             body = 'x'}}}}}}, total: {{metricSource: {{type: godseye, spec: {{table: logs}}}}}}}}}}}}, timeWindow: \
             [{{duration: 1d, isRolling: true}}], budgetingMethod: Occurrences, objectives: [{{target: 0.9}}]}}\n"
        )
    };
    let service = |metadata: &str| {
        format!("---\napiVersion: openslo/v1\nkind: Service\nmetadata: {{name: s{metadata}}}\nspec: {{}}\n")
    };
    let url = ", annotations: {example.org/runbook_url: 'https://a', owner: ann}";
    for (own, of_service, owner, runbook) in [
        ("", service(""), None, None),
        ("", String::new(), None, None),
        (", labels: {owner: me}", service(", labels: {owner: you}"), Some("me"), None),
        ("", service(", labels: {owner: you}"), Some("you"), None),
        ("", service(url), Some("ann"), Some("https://a")),
        (", labels: {team: t}", service(url), Some("ann"), Some("https://a")),
        (", labels: {team: t}", service(""), Some("t"), None),
        (", annotations: {runbook_url: 'https://b'}", service(url), Some("ann"), Some("https://b")),
    ] {
        let documents = read(&[("f", &(slo(own) + &of_service))]).unwrap();
        let found = &documents.slos[0];
        let of = |pairs: &[(String, String)], wanted: &str| {
            let values = pairs.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone());
            values.collect::<Vec<_>>()
        };
        assert_eq!(
            of(&found.labels, "owner"),
            owner.map(str::to_owned).into_iter().collect::<Vec<_>>(),
            "{own} {of_service}"
        );
        let urls = of(&found.annotations, "runbook_url");
        assert_eq!(urls, runbook.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{own} {of_service}");
    }
}

#[test]
fn the_examples_say_what_they_mean() {
    let documents =
        read(&[("checkout.yaml", CHECKOUT), ("references.yaml", REFERENCES), ("sources.yaml", SOURCES)]).unwrap();
    let names: Vec<&str> = documents.slos.iter().map(|slo| slo.name.as_str()).collect();
    assert_eq!(
        names,
        ["cache-hits", "checkout-availability", "checkout-latency", "orders-by-sql", "payment-journey", "queue-depth"]
    );
    assert_eq!(
        documents.services.iter().map(|service| service.title.as_str()).collect::<Vec<_>>(),
        ["Checkout", "payment"]
    );
    assert_eq!(documents.targets[0].target, "pagerduty");
    let slo = |name: &str| documents.slos.iter().find(|slo| slo.name == name).unwrap();

    let availability = slo("checkout-availability");
    let objective = &availability.objectives[0];
    assert_eq!((objective.target, objective.target.rest()), (Share(999_000_000), 1_000_000));
    assert_eq!(objective.indicator.part, Part::Bad);
    let base = "(service_name = 'checkout') AND (kind = 'SERVER')";
    assert_eq!(rows(&objective.indicator.total), (Table::Spans, base.to_owned(), Measure::One));
    let bad = format!("{base} AND (status_code = 'ERROR')");
    assert_eq!(rows(&objective.indicator.numerator), (Table::Spans, bad, Measure::One), "only of the total");
    assert_eq!(availability.alerts, Alerts::Table);
    assert_eq!(availability.labels[0], ("tier".to_owned(), "1".to_owned()));
    assert_eq!(availability.defined_at, "checkout.yaml:10");

    let latency = slo("checkout-latency");
    assert_eq!(latency.window.written(), "1M (Europe/Berlin)");
    assert_eq!(latency.objectives[0].slice, Some(Slice { width_ms: 300_000, target: Share(950_000_000) }));
    assert!(rows(&latency.objectives[0].indicator.numerator).1.ends_with("(duration_ns <= 300000000.0)"));
    assert!(rows(&latency.objectives[0].indicator.total).1.ends_with("(NOT (duration_ns IS NULL))"));

    let journey = slo("payment-journey");
    assert!(journey.composite);
    let weights: Vec<u64> = journey.objectives.iter().map(|objective| objective.weight_milli).collect();
    assert_eq!(weights, [3_000, 1_000, 500]);
    assert_eq!(rows(&journey.objectives[0].indicator.total).2, Measure::Sum { counter: true });
    assert_eq!(rows(&journey.objectives[1].indicator.numerator).2, Measure::ObservationsAtMost(0.5));
    let Alerts::Policies(policies) = &journey.alerts else { panic!("policies") };
    let fast = &policies[0].condition;
    assert_eq!(
        (fast.threshold_milli, fast.long_ms, fast.short_ms, fast.after_ms),
        (14_400, 3_600_000, Some(300_000), 0)
    );
    assert_eq!((fast.min_bad_events, fast.or_equal, policies[0].when_no_data), (Some(10), false, true));
    assert_eq!(policies[0].targets[0].name, "on-call");
    assert_eq!((policies[1].when_resolved, policies[1].condition.after_ms), (false, 3_600_000));

    let cache = slo("cache-hits");
    assert_eq!((cache.alerts.clone(), cache.method), (Alerts::None, Method::RatioTimeslices));
    assert_eq!(cache.objectives[0].slice.unwrap().width_ms, 600_000, "a number alone is minutes");
    assert_eq!(rows(&cache.objectives[0].indicator.numerator).2, Measure::Ratio);
    assert!(matches!(slo("orders-by-sql").objectives[0].indicator.total, Term::Sql { .. }));
    assert!(rows(&slo("queue-depth").objectives[0].indicator.numerator).1.contains("value < 1000"));
}

#[test]
fn the_default_window_and_thresholds_that_share_a_total() {
    let documents = read(&[("f", &slo("", "    - target: 0.9\n", RATIO))]).unwrap();
    assert_eq!(documents.slos[0].window.written(), "30d");
    assert_eq!(documents.slos[0].objectives[0].name, "1");
}

const RATIO: &str = "ratioMetric: {good: {metricSource: {type: godseye, spec: {table: spans, latency: 300ms}}}, \
                     total: {metricSource: {type: godseye, spec: {table: spans, service: a}}}}";

/// An SLO with some fields, objectives and a metric.
fn slo(fields: &str, objectives: &str, metric: &str) -> String {
    format!(
        "apiVersion: openslo/v1
kind: SLO
metadata: {{name: a}}
spec:
  service: a
  indicator:
    metadata: {{name: i}}
    spec:
      {metric}
  budgetingMethod: Occurrences
{fields}  objectives:
{objectives}"
    )
}

fn lines(problems: &Problems) -> Vec<String> {
    problems.0.iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect()
}

#[test]
fn each_mistake_has_its_place_and_what_to_do() {
    let one = "    - target: 0.9\n";
    let window = |text: &str| slo(&format!("  timeWindow:\n    - {text}\n"), one, RATIO);
    let objective = |text: &str| slo("", &format!("    - {text}\n"), RATIO);
    let source = |text: &str| {
        slo(
            "",
            one,
            &format!(
                "ratioMetric:\n        good: {{metricSource: {text}}}\n        total: {{metricSource: {{spec: {{table: spans}}}}}}"
            ),
        )
    };
    let policy = |text: &str| {
        slo(
            &format!("  alertPolicies:\n    - kind: AlertPolicy\n      metadata: {{name: p}}\n      spec: {text}\n"),
            one,
            RATIO,
        )
    };
    let condition = |text: &str, annotations: &str| {
        policy(&format!(
            "{{notificationTargets: [], conditions: [{{kind: AlertCondition, metadata: {{name: c, annotations: {{{annotations}}}}}, spec: {{severity: x, condition: {{{text}}}}}}}]}}"
        ))
    };
    let mut wrong = Vec::new();
    for (text, want) in [
        (
            "apiVersion: openslo/v2\nkind: Service\nmetadata: {name: a}\nspec: {}".to_owned(),
            "1: `apiVersion` is `openslo/v2`",
        ),
        ("apiVersion: openslo/v1\nkind: Slo\nmetadata: {name: a}\nspec: {}".to_owned(), "2: `kind` is `Slo`"),
        (
            "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: 'a b'}\nspec: {}".to_owned(),
            "3: the name `a b` is not valid",
        ),
        (
            "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: a, labels: {'-x': y}}\nspec: {}".to_owned(),
            "3: the key `-x` is not valid",
        ),
        (
            "apiVersion: openslo/v1\nkind: Service\nmetadata: {name: a}\nspec: {}\nmore: 1".to_owned(),
            "5: Service has no field `more`",
        ),
        (
            format!(
                "apiVersion: openslo/v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{description: {}}}",
                "x".repeat(1051)
            ),
            "4: the description has 1051 characters",
        ),
        ("just text".to_owned(), "1: the document is a single value"),
        (window("duration: 28"), "12: `duration` is `28`"),
        (window("duration: 28d"), "12: the timeWindow of SLO `a` neither rolls nor has a calendar"),
        (window("{duration: 1M, isRolling: true, calendar: {}}"), "12: a `calendar` in a window that rolls"),
        (
            window("{duration: 1M, calendar: {startTime: 2026-13-01 00:00:00, timeZone: UTC}}"),
            "12: `startTime` is `2026-13-01 00:00:00`",
        ),
        (
            window("{duration: 1M, calendar: {startTime: 2026-01-01 00:00:00, timeZone: Mars/Base}}"),
            "12: there is no time zone `Mars/Base`",
        ),
        (window("{duration: 9Y, isRolling: true}"), "12: `duration` is `9Y`"),
        (slo("  timeWindow: []\n", one, RATIO), "11: `timeWindow` of SLO `a` has 0 items"),
        (objective("target: 1"), "12: `target` is 1"),
        (objective("targetPercent: 100"), "12: `targetPercent` is 100"),
        (objective("target: -0.1"), "12: `target` is -0.1"),
        (objective("{target: 0.9, targetPercent: 90}"), "12: objective 1 of SLO `a` has `target` and `targetPercent`"),
        (objective("displayName: x"), "12: objective 1 of SLO `a` has no target"),
        (
            objective("{target: 0.9, op: lt, value: 3}"),
            "12: objective 1 of SLO `a` has a threshold, and its SLI is a ratio",
        ),
        (
            objective("{target: 0.9, timeSliceWindow: 1m}"),
            "12: objective 1 of SLO `a` has slices, and the budgetingMethod is Occurrences",
        ),
        (objective("{target: 0.9, compositeWeight: 0}"), "12: `compositeWeight` is 0"),
        (objective("{target: 0.9, indicatorRef: b}"), "12: there is no SLI `b`"),
        (slo("", "    []\n", RATIO), "12: SLO `a` has no objective"),
        (slo("  indicatorRef: b\n", one, RATIO), "7: SLO `a` has `indicator` and `indicatorRef`"),
        (slo("", one, "{}"), "9: SLI `i` has no metric"),
        (
            slo("", one, "thresholdMetric: {metricSource: {spec: {table: spans}}}"),
            "12: objective 1 of SLO `a` has no threshold",
        ),
        (
            slo("", one, "ratioMetric: {total: {metricSource: {spec: {table: spans}}}}"),
            "9: ratioMetric of SLI `i` has neither `good` nor `bad` nor `raw`",
        ),
        (
            slo("", one, "ratioMetric: {raw: {metricSource: {spec: {table: metric_points}}}}"),
            "9: ratioMetric of SLI `i` has no `rawType`",
        ),
        (
            slo("", one, "ratioMetric: {rawType: success, raw: {metricSource: {spec: {table: spans}}}}"),
            "9: rows of spans hold no ratio",
        ),
        (source("{type: Prometheus, spec: {query: up}}"), "10: the source type `Prometheus` is not read"),
        (source("{metricSourceRef: x, spec: {table: spans}}"), "10: there is no DataSource `x`"),
        (
            source("{spec: {where: name = 'x'}}"),
            "10: the spec of the metricSource of `good` of ratioMetric of SLI `i` has no `table`",
        ),
        (source("{spec: {table: span}}"), "10: `table` is `span`"),
        (source("{spec: {table: spans, where: nam = 'x'}}"), "10: spans has no column `nam` that an SLI can compare"),
        (source("{spec: {table: logs, latency: 3s}}"), "10: logs has no latency"),
        (source("{spec: {table: spans, latency: soon}}"), "10: `latency` is `soon`"),
        (source("{spec: {table: spans, metric: x}}"), "10: spans has no metrics"),
        (source("{spec: {table: spans, atMost: 3}}"), "10: spans has no histogram"),
        (source("{spec: {query: SELECT 1}}"), "10: the query reads everything every time"),
        (
            source("{spec: {query: 'SELECT $from, $to'}}"),
            "10: ratioMetric of SLI `i` is half a SQL query and half a table",
        ),
        (policy("{conditions: [], notificationTargets: []}"), "14: AlertPolicy `p` has 0 conditions"),
        (policy("{conditions: [{conditionRef: c}], notificationTargets: []}"), "14: there is no AlertCondition `c`"),
        (condition("threshold: 1, lookbackWindow: 1M", ""), "14: `lookbackWindow` is `1M`"),
        (condition("threshold: 0, lookbackWindow: 1h", ""), "14: `threshold` is 0"),
        (condition("threshold: 1, lookbackWindow: 1h, op: lt", ""), "14: `op` is `lt`"),
        (
            condition("threshold: 1, lookbackWindow: 1h", "godseye/short-window: 2h"),
            "14: `godseye/short-window` is not shorter than the lookbackWindow",
        ),
        (
            condition("threshold: 1, lookbackWindow: 1h", "godseye/shortwindow: 5m"),
            "14: the annotation `godseye/shortwindow` means nothing here",
        ),
        (
            condition("threshold: 1, lookbackWindow: 1h", "godseye/min-bad-events: few"),
            "14: `godseye/min-bad-events` is `few`",
        ),
    ] {
        let problems = read(&[("f", &text)]).expect_err(&text);
        if !lines(&problems).iter().any(|line| line.starts_with(want)) {
            wrong.push(format!("want {want:?}, found {problems}"));
        }
        assert!(problems.0.iter().all(|problem| !problem.help.is_empty()), "{problems}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn everything_wrong_in_every_file_is_told_at_once() {
    let bad = slo("  budgeting: x\n", "    - target: 2\n    - op: eq\n", RATIO);
    let problems =
        read(&[("one.yaml", &bad), ("two.yaml", &format!("{bad}---\na: [")), ("three.yaml", CHECKOUT)]).unwrap_err();
    let shown = problems.to_string();
    for want in [
        "one.yaml:11:3: SLO `a` has no field `budgeting`",
        "one.yaml:13:15: `target` is 2",
        "one.yaml:14",
        "two.yaml:1:1: a second SLO `a`",
        "this is not valid YAML",
    ] {
        assert!(shown.contains(want), "{want}: {shown}");
    }
}

#[test]
fn equal_indicators_have_one_key() {
    let one = "    - target: 0.9\n    - target: 0.99\n";
    let keys = |text: &str| -> Vec<u64> {
        let documents = read(&[("f", text)]).unwrap();
        documents.slos.iter().flat_map(|slo| &slo.objectives).map(|objective| objective.indicator.key()).collect()
    };
    let same = keys(&slo("", one, RATIO));
    assert_eq!(same[0], same[1]);
    assert_ne!(same[0], keys(&slo("", one, &RATIO.replace("300ms", "301ms")))[0]);
    // The key is stored: a release that computed another one would lose every count.
    assert_eq!(
        read(&[("f", &slo("", one, RATIO))]).unwrap().slos[0].objectives[0].indicator.to_string(),
        "good: rows of spans where (service_name = 'a') AND (duration_ns <= 300000000); \
         total: rows of spans where service_name = 'a'"
    );
    assert_eq!(Filter::parse(Table::Spans, "name = 'x'").unwrap().to_string(), "name = 'x'");
}

proptest::proptest! {
    #[test]
    fn damaged_documents_are_refused_and_nothing_panics(at in 0_usize..3_000, with in "[ \\n:{}\\[\\]a-z0-9-]{0,3}", cut in 0_usize..8) {
        let text = REFERENCES;
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let end = (at + cut..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let damaged = format!("{}{with}{}", &text[..at], &text[end..]);
        drop(read(&[("f", &damaged)]));
    }
}
