//! Rule files in Prometheus' format, read with every error at once.
//!
//! Fields and their meaning are Prometheus 3's; a rule's query is `expr_sql`, a SELECT whose column
//! `value` is the value and whose other columns are labels, with `$now` for the time of the evaluation.
//! `expr` (PromQL) is refused with what to write instead. Not here: evaluating anything.

use sqlparser::ast::Statement;
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;

use super::state::{Hold, Labels};
use crate::document::{Fields, Key, Node, parse};
use crate::duration::prometheus_ms;
use crate::report::{Findings, Place, Problems, quote};

/// The interval of a group that has none (Prometheus' `evaluation_interval`).
pub const DEFAULT_INTERVAL_MS: i64 = 60_000;

/// The shortest interval, milliseconds: a query a second is enough for one group.
const INTERVAL_MS_MIN: i64 = 1_000;

/// Nesting of a query.
const QUERY_DEPTH_MAX: usize = 64;

/// What a rule makes of its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Alerts.
    Alert {
        /// How long they wait and last.
        hold: Hold,
        /// Their annotations, as templates, in the file's order.
        annotations: Vec<(String, String)>,
    },
    /// A series of that name.
    Record,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The alert's or the series' name.
    pub name: String,
    /// What it makes.
    pub kind: Kind,
    /// The query.
    pub sql: String,
    /// The labels it puts on; templates, of alerts. Those of the group are among them.
    pub labels: Vec<(String, String)>,
    /// Where it is defined, as `file:line`.
    pub defined_at: String,
}

/// A group of rules, which are evaluated one after the other at the same times.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The file's name as given.
    pub file: String,
    /// Its name, unique in its file.
    pub name: String,
    /// How often it is evaluated, milliseconds.
    pub interval_ms: i64,
    /// How long before an evaluation its `$now` is, milliseconds: for telemetry that comes late.
    pub query_offset_ms: i64,
    /// Alerts or series that a rule may make; 0 for any number.
    pub limit: usize,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// Reads rule files, given as name and text.
///
/// # Errors
/// Everything that is wrong, with file, line and what to do.
pub fn read(files: &[(&str, &str)]) -> Result<Vec<Group>, Problems> {
    let mut findings = Findings::default();
    let mut groups: Vec<Group> = Vec::new();
    for (index, (name, text)) in files.iter().enumerate() {
        let before = groups.len();
        for node in &parse(index, text, &mut findings) {
            let Some(mut fields) = Fields::new("the rule file", node, &mut findings) else { continue };
            fields.required("groups", "write `groups:` with a list of groups", &mut findings);
            let nodes = fields.list("groups", &mut findings).map(|(_, nodes)| nodes).unwrap_or_default();
            fields.finish(&mut findings);
            for node in nodes {
                let Some(group) = group(name, node, &mut findings) else { continue };
                if groups[before..].iter().any(|known| known.name == group.name) {
                    findings.add(
                        node.at,
                        format!("a second group {}", quote(&group.name)),
                        "rename one of them: names are unique in a file",
                    );
                }
                groups.push(group);
            }
        }
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    findings.finish(&names, groups)
}

fn group(file: &str, node: &Node, findings: &mut Findings) -> Option<Group> {
    let mut fields = Fields::new("the group", node, findings)?;
    let name = fields.required_text("name", "write a name that is unique in the file", findings);
    if let Some((_, name)) = name {
        fields.owner = format!("group {}", quote(name));
    }
    let interval_ms = duration(&mut fields, "interval", findings);
    if let Some((at, ms)) = interval_ms
        && ms < INTERVAL_MS_MIN
    {
        findings.add(at, "`interval` is too short", "write 1s or longer");
    }
    let query_offset = duration(&mut fields, "query_offset", findings);
    let limit = fields.text("limit", findings).and_then(|(at, text)| {
        text.parse()
            .map_err(|_| findings.add(at, format!("`limit` is {}", quote(text)), "write a whole number; 0 is no limit"))
            .ok()
    });
    let shared = labels(&mut fields, findings);
    fields.required("rules", "write a list of rules", findings);
    let nodes = fields.list("rules", findings).map(|(_, nodes)| nodes).unwrap_or_default();
    fields.finish(findings);
    let rules = nodes.iter().filter_map(|node| rule(file, node, &shared, findings)).collect();
    Some(Group {
        file: file.to_owned(),
        name: name?.1.to_owned(),
        interval_ms: interval_ms.map_or(DEFAULT_INTERVAL_MS, |(_, ms)| ms.max(INTERVAL_MS_MIN)),
        query_offset_ms: query_offset.map_or(0, |(_, ms)| ms),
        limit: limit.unwrap_or(0),
        rules,
    })
}

fn rule(file: &str, node: &Node, shared: &[(String, String)], findings: &mut Findings) -> Option<Rule> {
    let before = findings.len();
    let mut fields = Fields::new("the rule", node, findings)?;
    let alert = fields.text("alert", findings);
    let record = fields.text("record", findings);
    let name = match (alert, record) {
        (Some(alert), None) => {
            fields.owner = format!("alert {}", quote(alert.1));
            Some(alert)
        }
        (None, Some((at, name))) => {
            fields.owner = format!("record {}", quote(name));
            if !is_metric_name(name) {
                findings.add(
                    at,
                    format!("{} is no name of a series", quote(name)),
                    "write letters, digits, _ and :, such as job:errors:rate5m",
                );
            }
            Some((at, name))
        }
        (Some(_), Some((at, _))) => {
            findings.add(at, "a rule with `alert` and `record`", "remove one of them");
            None
        }
        (None, None) => {
            findings.add(node.at, "a rule with neither `alert` nor `record`", "write one of them with a name");
            None
        }
    };
    if let Some((at, "")) = name {
        findings.add(at, "a rule without a name", "write one");
    }
    if let Some(node) = fields.node("expr") {
        let help = "write it as `expr_sql: SELECT ..., value FROM ...` for now: PromQL is not evaluated yet";
        findings.add(node.at, format!("{} has a PromQL `expr`", fields.owner), help);
    } else {
        fields.required("expr_sql", "write a SELECT with a column `value`", findings);
    }
    let sql = fields.text("expr_sql", findings);
    if let Some((at, text)) = sql {
        check_query(at, text, findings);
    }
    let for_at = duration(&mut fields, "for", findings);
    let keep_at = duration(&mut fields, "keep_firing_for", findings);
    let own = labels(&mut fields, findings);
    let notes = fields.texts("annotations", findings);
    fields.finish(findings);
    for (key, _) in &notes {
        check_label(key, findings);
    }
    let kind = if record.is_some() {
        for (at, what) in [
            (for_at.map(|(at, _)| at), "for"),
            (keep_at.map(|(at, _)| at), "keep_firing_for"),
            (notes.first().map(|(key, _)| key.at), "annotations"),
        ] {
            if let Some(at) = at {
                findings.add(at, format!("a recording rule with `{what}`"), "remove it: only alerts have it");
            }
        }
        Kind::Record
    } else {
        let hold = Hold { for_ms: for_at.map_or(0, |(_, ms)| ms), keep_firing_for_ms: keep_at.map_or(0, |(_, ms)| ms) };
        let annotations = notes.iter().map(|(key, text)| (key.text.clone(), (*text).to_owned())).collect();
        Kind::Alert { hold, annotations }
    };
    let mut labels: Vec<(String, String)> =
        shared.iter().filter(|(name, _)| own.iter().all(|(other, _)| other != name)).cloned().collect();
    labels.extend(own);
    (findings.len() == before).then_some(())?;
    Some(Rule {
        name: name?.1.to_owned(),
        kind,
        sql: sql?.1.to_owned(),
        labels,
        defined_at: format!("{file}:{}", node.at.line),
    })
}

fn duration(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Option<(Place, i64)> {
    let (at, text) = fields.text(name, findings)?;
    let ms = prometheus_ms(text);
    if ms.is_none() {
        findings.add(at, format!("`{name}` is {}", quote(text)), "write a duration such as 5m or 1h30m");
    }
    Some((at, ms?))
}

fn labels(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<(String, String)> {
    let found = fields.texts("labels", findings);
    for (key, _) in &found {
        check_label(key, findings);
    }
    found.into_iter().map(|(key, text)| (key.text.clone(), text.to_owned())).collect()
}

fn check_label(key: &Key, findings: &mut Findings) {
    let valid = key
        .text
        .chars()
        .enumerate()
        .all(|(at, c)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit()));
    if key.text.is_empty() || !valid || key.text == "__name__" || key.text == "alertname" {
        let help = "write letters, digits and _, not a digit first, and neither __name__ nor alertname";
        findings.add(key.at, format!("{} is no name of a label here", quote(&key.text)), help);
    }
}

fn is_metric_name(name: &str) -> bool {
    let first = |c: char| c == '_' || c == ':' || c.is_ascii_alphabetic();
    name.chars().next().is_some_and(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn check_query(at: Place, text: &str, findings: &mut Findings) {
    let dialect = GenericDialect {};
    let parsed = Parser::new(&dialect)
        .with_recursion_limit(QUERY_DEPTH_MAX)
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_statements());
    match parsed.as_deref() {
        Ok([Statement::Query(_)]) => {}
        Ok(_) => findings.add(at, "`expr_sql` is not one query", "write one SELECT"),
        Err(error) => findings.add(at, "`expr_sql` is not SQL", error.to_string()),
    }
}

/// The labels of an alert from a row's, with the rule's put on.
#[must_use]
pub fn with_labels(mut row: Labels, name: &str, labels: impl IntoIterator<Item = (String, String)>) -> Labels {
    row.remove("__name__");
    for (key, value) in labels {
        // As in Prometheus, an empty label is one that is not there.
        if value.is_empty() {
            row.remove(&key);
        } else {
            row.insert(key, value);
        }
    }
    row.insert("alertname".to_owned(), name.to_owned());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_as_prometheus_would() {
        let text = "
groups:
- name: shop
  interval: 30s
  query_offset: 10s
  limit: 5
  labels: {team: web, severity: info}
  rules:
  - alert: ManyErrors
    expr_sql: >
      SELECT service_name, count(*) AS value FROM logs
      WHERE time >= $now - INTERVAL '5 minutes' GROUP BY service_name HAVING count(*) > 10
    for: 1h30m
    keep_firing_for: 5m
    labels: {severity: critical}
    annotations:
      summary: '{{ $labels.service_name }} has {{ $value }} errors'
  - record: service:errors:count5m
    expr_sql: SELECT service_name, count(*) AS value FROM logs GROUP BY 1
- name: empty
  rules: []
";
        let groups = read(&[("rules.yaml", text)]).unwrap();
        let shop = &groups[0];
        assert_eq!((shop.interval_ms, shop.query_offset_ms, shop.limit), (30_000, 10_000, 5));
        assert_eq!((groups[1].interval_ms, groups[1].rules.len()), (DEFAULT_INTERVAL_MS, 0));
        let Kind::Alert { hold, annotations } = &shop.rules[0].kind else { panic!("an alert") };
        assert_eq!(*hold, Hold { for_ms: 5_400_000, keep_firing_for_ms: 300_000 });
        assert_eq!(annotations.len(), 1);
        let labels: Vec<_> = shop.rules[0].labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(labels, ["team=web", "severity=critical"]);
        assert_eq!((shop.rules[1].kind.clone(), shop.rules[1].defined_at.as_str()), (Kind::Record, "rules.yaml:18"));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let text = "
groups:
- name: a
  interval: 5
  rules:
  - alert: P
    expr: up == 0
  - record: 9x
    expr_sql: SELECT 1 AS value
    for: 5m
  - alert: Q
    expr_sql: SELEC 1
    labels: {alertname: x, 0a: y}
  - alert: R
    record: s
    expr_sql: DELETE FROM logs
  - expr_sql: SELECT 1
    annotation: {}
- name: a
  limit: many
";
        let problems = read(&[("r.yaml", text)]).unwrap_err();
        let found: Vec<String> =
            problems.0.iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect();
        assert_eq!(
            found,
            [
                "4: `interval` is `5`",
                "7: alert `P` has a PromQL `expr`",
                "8: `9x` is no name of a series",
                "10: a recording rule with `for`",
                "12: `expr_sql` is not SQL",
                "13: `alertname` is no name of a label here",
                "13: `0a` is no name of a label here",
                "15: a rule with `alert` and `record`",
                "16: `expr_sql` is not one query",
                "17: a rule with neither `alert` nor `record`",
                "18: the rule has no field `annotation`",
                "19: a second group `a`",
                "19: group `a` has no `rules`",
                "20: `limit` is `many`",
            ]
        );
        assert!(problems.0[1].help.contains("PromQL is not evaluated yet"));
    }

    #[test]
    fn the_example_is_right() {
        let groups = read(&[("rules.yaml", include_str!("../../examples/rules.yaml"))]).unwrap();
        assert_eq!(
            groups[0].rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(),
            ["CheckoutErrors", "checkout:spans:count1m"]
        );
    }

    proptest::proptest! {
        #[test]
        fn damaged_files_are_refused_and_nothing_panics(at in 0_usize..860, with in "[ \\n:{}\\[\\]a-z0-9-]{0,3}", cut in 0_usize..8) {
            let text = include_str!("../../examples/rules.yaml");
            let damaged = format!("{}{with}{}", &text[..at], &text[at + cut..]);
            drop(read(&[("f", &damaged)]));
        }
    }

    #[test]
    fn an_empty_label_takes_one_away() {
        let row =
            Labels::from([("__name__".into(), "up".into()), ("pod".into(), "a".into()), ("job".into(), "b".into())]);
        let labels = with_labels(row, "Down", [("pod".to_owned(), String::new()), ("team".to_owned(), "x".to_owned())]);
        let want = [("alertname", "Down"), ("job", "b"), ("team", "x")];
        assert!(labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(want));
    }
}
