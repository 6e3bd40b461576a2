//! Unit tests of rules: files in the format of `promtool test rules`, and what came of running one.
//!
//! `rule_files`, `evaluation_interval`, `group_eval_order` and `tests` with `interval`, `input_series`,
//! `alert_rule_test`, `name`, `external_url` and `start_timestamp` mean what they mean there. Beside series there are
//! rows of spans, logs and metric points, and `sql_expr_test` in the place of `promql_expr_test`, which is refused until
//! PromQL is evaluated. A test is evaluated as promtool does it: every group at every `evaluation_interval` from the
//! start on, with what was there by then. Not here: where rows are kept and who answers SQL, which are traits.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use model::tenant::TenantId;
use model::time::Timestamp;

use super::file::{DEFAULT_INTERVAL_MS, Group, Kind};
use super::group::{Row, Running, Tools};
use super::state::{Labels, State};
use crate::document::{Fields, Node, Value, parse, text_of};
use crate::duration::{display_ms, prometheus_ms};
use crate::engine::sql_time;
use crate::report::{Findings, Place, Problems, quote};
use crate::window::NANOS_PER_MS;

/// Rows of one test, all sources together. More is a benchmark.
const ROWS_MAX: usize = 100_000;

/// Evaluations of one test: a week, once a minute.
const EVALUATIONS_MAX: i64 = 10_080;

/// When a test begins that does not say it: OTLP has no time 0, with which promtool begins. 2000-01-01T00:00:00Z.
const START: Timestamp = Timestamp(946_684_800 * Timestamp::NANOS_PER_SECOND);

/// Pairs of lines that are compared to show what differs.
const COMPARED_MAX: usize = 1_000_000;

/// How far apart values may be with `fuzzy_compare`, of the larger one.
const FUZZY: f64 = 1e-6;

/// An attribute's value, typed as YAML writes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
    /// True or false.
    Bool(bool),
}

/// A row that is there from some time on.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// When, milliseconds from the test's start. Of a span, when it ended.
    pub at_ms: i64,
    /// The service.
    pub service: String,
    /// Its attributes.
    pub attributes: Vec<(String, Scalar)>,
    /// What it is.
    pub row: InputRow,
}

/// What a row is.
#[derive(Clone, Debug, PartialEq)]
pub enum InputRow {
    /// A span.
    Span {
        /// Its name.
        name: String,
        /// One of [`KINDS`].
        kind: &'static str,
        /// Whether its status is an error.
        is_error: bool,
        /// How long it took, milliseconds.
        duration_ms: i64,
    },
    /// A log record.
    Log {
        /// One of [`SEVERITIES`].
        severity: &'static str,
        /// Its body.
        body: String,
    },
    /// A point of a metric.
    Point {
        /// The metric.
        metric: String,
        /// Its value.
        value: f64,
        /// Whether it is a counter's, which only grows, else a gauge's.
        is_counter: bool,
    },
}

/// The kinds of spans, in OTLP's order from 1 on.
pub const KINDS: [&str; 5] = ["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];

/// The severities of log records; each is four of OTLP's numbers, from 1 on.
pub const SEVERITIES: [&str; 6] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];

/// Alerts that should fire.
#[derive(Clone, Debug, PartialEq)]
struct AlertTest {
    eval_ms: i64,
    alertname: String,
    /// Labels, `alertname` included, and annotations.
    expected: Vec<(Labels, Labels)>,
}

/// Rows that a query should have.
#[derive(Clone, Debug, PartialEq)]
struct SqlTest {
    eval_ms: i64,
    sql: String,
    expected: Vec<(Labels, f64)>,
}

/// One test.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// Its name, or its number in the file.
    pub name: String,
    /// What links in annotations begin with.
    pub external_url: String,
    /// When it begins.
    pub start: Timestamp,
    inputs: Vec<Input>,
    alerts: Vec<AlertTest>,
    queries: Vec<SqlTest>,
}

/// A file of tests.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Its name as given.
    pub name: String,
    /// The rule files, relative to it; patterns.
    pub rule_files: Vec<String>,
    /// How often everything is evaluated, milliseconds.
    pub interval_ms: i64,
    group_order: Vec<String>,
    fuzzy: bool,
    /// The tests.
    pub tests: Vec<Test>,
}

/// Reads a file of tests.
///
/// # Errors
/// Everything that is wrong, with line and what to do.
pub fn read(name: &str, text: &str) -> Result<File, Problems> {
    let mut findings = Findings::default();
    let mut found = None;
    for node in &parse(0, text, &mut findings) {
        let Some(mut fields) = Fields::new("the file of tests", node, &mut findings) else { continue };
        fields.required("rule_files", "write a list of rule files", &mut findings);
        let rule_files = words(&mut fields, "rule_files", &mut findings);
        let group_order = words(&mut fields, "group_eval_order", &mut findings);
        let interval_ms = duration(&mut fields, "evaluation_interval", &mut findings).unwrap_or(DEFAULT_INTERVAL_MS);
        let fuzzy = fields.flag("fuzzy_compare", &mut findings).unwrap_or(false);
        fields.required("tests", "write a list of tests", &mut findings);
        let nodes = fields.list("tests", &mut findings).map(|(_, nodes)| nodes).unwrap_or_default();
        fields.finish(&mut findings);
        if interval_ms < 1 {
            findings.add(node.at, "`evaluation_interval` is too short", "write 1ms or longer");
        }
        let tests = nodes.iter().enumerate();
        let tests = tests.filter_map(|(index, node)| test(index, node, interval_ms.max(1), &mut findings)).collect();
        found = Some(File { name: name.to_owned(), rule_files, interval_ms, group_order, fuzzy, tests });
    }
    if found.is_none() {
        let at = Place { file: 0, line: 1, column: 1 };
        findings.add(at, "there is no file of tests in it", "write `rule_files:` and `tests:`");
    }
    findings.finish(&[name], found).map(|file| file.expect("without a finding there is a file"))
}

fn words(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Vec<String> {
    let nodes = fields.list(name, findings).map(|(_, nodes)| nodes).unwrap_or_default();
    nodes.iter().filter_map(|node| text_of(name, node, findings).map(|(_, text)| text.to_owned())).collect()
}

fn duration(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Option<i64> {
    let (at, text) = fields.text(name, findings)?;
    let ms = prometheus_ms(text);
    if ms.is_none() {
        findings.add(at, format!("`{name}` is {}", quote(text)), "write a duration such as 5m or 1h30m");
    }
    ms
}

fn labels(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Labels {
    let found = fields.texts(name, findings);
    found.into_iter().map(|(key, text)| (key.text.clone(), text.to_owned())).collect()
}

fn test(index: usize, node: &Node, interval_ms: i64, findings: &mut Findings) -> Option<Test> {
    let mut fields = Fields::new("the test", node, findings)?;
    let name = fields.text("name", findings).map_or_else(|| format!("{}", index + 1), |(_, name)| name.to_owned());
    fields.owner = format!("test {}", quote(&name));
    let step_ms = duration(&mut fields, "interval", findings).unwrap_or(DEFAULT_INTERVAL_MS);
    let external_url = fields.text("external_url", findings).map(|(_, url)| url.to_owned()).unwrap_or_default();
    let start = fields.text("start_timestamp", findings).and_then(|(at, text)| {
        let found = start(text);
        if found.is_none() {
            let help = "write 2026-11-24T09:00:00Z or seconds since the epoch, later than that";
            findings.add(at, format!("`start_timestamp` is {}", quote(text)), help);
        }
        found
    });
    if let Some(node) = fields.node("external_labels") {
        findings.add(node.at, format!("{} has `external_labels`", fields.owner), "remove it: this server has none");
    }
    if let Some(node) = fields.node("promql_expr_test") {
        let help =
            "write it as `sql_expr_test` with `expr_sql`, `eval_time` and `exp_samples`: PromQL is not evaluated yet";
        findings.add(node.at, format!("{} has a `promql_expr_test`", fields.owner), help);
    }
    let mut inputs = Vec::new();
    for node in list(&mut fields, "input_series", findings) {
        series(node, step_ms, &mut inputs, findings);
    }
    for (name, read) in [
        ("input_spans", span as fn(&mut Fields<'_>, &mut Findings) -> Option<InputRow>),
        ("input_logs", log),
        ("input_points", point),
    ] {
        for node in list(&mut fields, name, findings) {
            rows(name, node, read, &mut inputs, findings);
        }
    }
    let alerts = list(&mut fields, "alert_rule_test", findings);
    let alerts: Vec<AlertTest> = alerts.iter().filter_map(|node| alert_test(node, findings)).collect();
    let queries = list(&mut fields, "sql_expr_test", findings);
    let queries: Vec<SqlTest> = queries.iter().filter_map(|node| sql_test(node, findings)).collect();
    if alerts.is_empty() && queries.is_empty() {
        let help = "write `alert_rule_test` or `sql_expr_test`: without one it cannot fail";
        findings.add(node.at, format!("{} tests nothing", fields.owner), help);
    }
    if inputs.len() > ROWS_MAX {
        let help = format!("write at most {ROWS_MAX}");
        findings.add(node.at, format!("{} has {} rows", fields.owner, inputs.len()), help);
    }
    inputs.sort_by_key(|input| input.at_ms);
    fields.finish(findings);
    let test = Test { name, external_url, start: start.unwrap_or(START), inputs, alerts, queries };
    if test.last_ms() / interval_ms > EVALUATIONS_MAX {
        findings.add(
            node.at,
            format!("the last `eval_time` is more than {EVALUATIONS_MAX} evaluations away"),
            "test a shorter time, or evaluate less often",
        );
    }
    Some(test)
}

fn list<'a>(fields: &mut Fields<'a>, name: &'static str, findings: &mut Findings) -> &'a [Node] {
    fields.list(name, findings).map(|(_, nodes)| nodes).unwrap_or_default()
}

/// A start as promtool reads it. OTLP has no time 0.
fn start(text: &str) -> Option<Timestamp> {
    let nanos = match text.parse::<i64>() {
        Ok(seconds) => seconds.checked_mul(Timestamp::NANOS_PER_SECOND)?,
        Err(_) => i64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()?,
    };
    (nanos > 0).then_some(Timestamp(nanos))
}

/// A series of promtool: each value is a point of a metric.
fn series(node: &Node, step_ms: i64, inputs: &mut Vec<Input>, findings: &mut Findings) {
    let Some(mut fields) = Fields::new("the series", node, findings) else { return };
    let name = fields.required_text("series", "write a name with labels, such as up{job=\"a\"}", findings);
    let values = fields.required_text("values", "write values such as 0+1x10", findings);
    fields.finish(findings);
    let (Some((name_at, name)), Some((values_at, values))) = (name, values) else { return };
    let Some((metric, labels)) = series_name(name) else {
        let help = "write a name with labels in braces and quotes, such as up{job=\"a\"}";
        findings.add(name_at, format!("{} is no series", quote(name)), help);
        return;
    };
    let Some(values) = series_values(values) else {
        let help = "write numbers, `_`, `a+bxn`, `a-bxn` or `axn` between spaces; histograms are not read";
        findings.add(values_at, format!("{} are no values", quote(values)), help);
        return;
    };
    // So many are an error already.
    if inputs.len() > ROWS_MAX {
        return;
    }
    // By Prometheus' convention a counter is told by its name.
    let is_counter = metric.ends_with("_total");
    let service = labels.get("service_name").or_else(|| labels.get("job")).cloned().unwrap_or_default();
    let attributes: Vec<_> = labels.into_iter().map(|(name, value)| (name, Scalar::Text(value))).collect();
    let known = (0_i64..).zip(values).filter_map(|(number, value)| Some((number, value?)));
    inputs.extend(known.map(|(number, value)| Input {
        at_ms: number.saturating_mul(step_ms),
        service: service.clone(),
        attributes: attributes.clone(),
        row: InputRow::Point { metric: metric.clone(), value, is_counter },
    }));
}

/// `name{a="b",c="d"}`.
fn series_name(text: &str) -> Option<(String, Labels)> {
    let (name, rest) = text.split_once('{').unwrap_or((text, "}"));
    let name = name.trim();
    let mut rest = rest.trim_end().strip_suffix('}')?.trim_start();
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start().strip_prefix('"')?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.trim().to_owned(), value);
        rest = after[end..].trim_start();
        rest = match rest.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    let name = if name.is_empty() { labels.remove("__name__")? } else { name.to_owned() };
    Some((name, labels))
}

/// Values in promtool's notation; `None` is one that is missing. A stale marker is missing, too: what is not there is
/// no row.
fn series_values(text: &str) -> Option<Vec<Option<f64>>> {
    let mut found = Vec::new();
    for token in text.split_whitespace() {
        let (what, times) = match token.rsplit_once('x') {
            Some((what, times)) => (what, times.parse::<usize>().ok()?),
            None if matches!(token, "_" | "stale") => (token, 1),
            None => (token, 0),
        };
        if found.len() + times > ROWS_MAX {
            return None;
        }
        if matches!(what, "_" | "stale") {
            found.extend(std::iter::repeat_n(None, times));
            continue;
        }
        // The sign of the step, not that of the number or its exponent.
        let step_at =
            what.char_indices().skip(1).find(|(at, c)| matches!(c, '+' | '-') && !what[..*at].ends_with(['e', 'E']));
        let (first, step) = match step_at {
            Some((at, _)) => (what[..at].parse::<f64>().ok()?, what[at..].parse::<f64>().ok()?),
            None => (what.parse::<f64>().ok()?, 0.0),
        };
        #[expect(clippy::cast_precision_loss, reason = "there are far fewer")]
        found.extend((0..=times).map(|number| Some(first + step * number as f64)));
    }
    Some(found)
}

/// Rows of one kind: one, or `count` of them, one `every` so often.
fn rows(
    what: &'static str,
    node: &Node,
    read: fn(&mut Fields<'_>, &mut Findings) -> Option<InputRow>,
    inputs: &mut Vec<Input>,
    findings: &mut Findings,
) {
    let Some(mut fields) = Fields::new(&format!("the row of {what}"), node, findings) else { return };
    let at_ms = duration(&mut fields, "at", findings).unwrap_or(0);
    let every_ms = duration(&mut fields, "every", findings).unwrap_or(0);
    let count = match fields.text("count", findings) {
        None => 1,
        Some((at, text)) => text.parse::<usize>().ok().filter(|count| *count <= ROWS_MAX).unwrap_or_else(|| {
            findings.add(at, format!("`count` is {}", quote(text)), format!("write a number up to {ROWS_MAX}"));
            0
        }),
    };
    let service = fields.text("service", findings).map(|(_, text)| text.to_owned()).unwrap_or_default();
    let attributes = attributes(&mut fields, findings);
    let row = read(&mut fields, findings);
    fields.finish(findings);
    let Some(row) = row else { return };
    // So many are an error already.
    if inputs.len() > ROWS_MAX {
        return;
    }
    inputs.extend((0_i64..).take(count).map(|number| Input {
        at_ms: at_ms.saturating_add(number.saturating_mul(every_ms)),
        service: service.clone(),
        attributes: attributes.clone(),
        row: row.clone(),
    }));
}

fn attributes(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<(String, Scalar)> {
    let Some(node) = fields.node("attributes") else { return Vec::new() };
    let Value::Map(entries) = &node.value else {
        findings.add(node.at, format!("`attributes` is {}", node.noun()), "write a mapping of keys to values");
        return Vec::new();
    };
    let value = |node: &Node, findings: &mut Findings| match &node.value {
        Value::Scalar(scalar) if scalar.plain => Some(typed(&scalar.text)),
        Value::Scalar(scalar) => Some(Scalar::Text(scalar.text.clone())),
        _ => {
            findings.add(node.at, format!("the attribute is {}", node.noun()), "write a single value");
            None
        }
    };
    entries.iter().filter_map(|(key, node)| Some((key.text.clone(), value(node, findings)?))).collect()
}

/// A value without quotes, as YAML 1.2 means it.
fn typed(text: &str) -> Scalar {
    match text {
        "true" => return Scalar::Bool(true),
        "false" => return Scalar::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return Scalar::Int(number);
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match text.parse::<f64>() {
        Ok(number) if is_number => Scalar::Double(number),
        _ => Scalar::Text(text.to_owned()),
    }
}

fn span(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<InputRow> {
    let name = fields.text("name", findings).map(|(_, name)| name.to_owned()).unwrap_or_default();
    let kind = fields.choice("kind", &KINDS, findings).map_or("SERVER", |index| KINDS[index]);
    let is_error = fields.choice("status", &["OK", "UNSET", "ERROR"], findings) == Some(2);
    let duration_ms = duration(fields, "duration", findings).unwrap_or(0);
    Some(InputRow::Span { name, kind, is_error, duration_ms })
}

fn log(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<InputRow> {
    let severity = fields.choice("severity", &SEVERITIES, findings).map_or("INFO", |index| SEVERITIES[index]);
    let body = fields.text("body", findings).map(|(_, body)| body.to_owned()).unwrap_or_default();
    Some(InputRow::Log { severity, body })
}

fn point(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<InputRow> {
    let metric = fields.required_text("metric", "write the metric's name", findings).map(|(_, name)| name.to_owned());
    fields.required("value", "write a number", findings);
    let value = fields.number("value", findings).map(|(_, value)| value);
    let is_counter = fields.choice("type", &["gauge", "counter"], findings) == Some(1);
    Some(InputRow::Point { metric: metric?, value: value?, is_counter })
}

fn alert_test(node: &Node, findings: &mut Findings) -> Option<AlertTest> {
    let mut fields = Fields::new("the alert test", node, findings)?;
    let eval_ms = duration(&mut fields, "eval_time", findings).unwrap_or(0);
    let alertname =
        fields.required_text("alertname", "write the alert's name", findings).map(|(_, name)| name.to_owned());
    let nodes = list(&mut fields, "exp_alerts", findings);
    fields.finish(findings);
    let alertname = alertname?;
    let mut expected = Vec::new();
    for node in nodes {
        let Some(mut fields) = Fields::new("the expected alert", node, findings) else { continue };
        let mut wanted = labels(&mut fields, "exp_labels", findings);
        wanted.insert("alertname".to_owned(), alertname.clone());
        expected.push((wanted, labels(&mut fields, "exp_annotations", findings)));
        fields.finish(findings);
    }
    expected.sort();
    Some(AlertTest { eval_ms, alertname, expected })
}

fn sql_test(node: &Node, findings: &mut Findings) -> Option<SqlTest> {
    let mut fields = Fields::new("the SQL test", node, findings)?;
    let eval_ms = duration(&mut fields, "eval_time", findings).unwrap_or(0);
    let sql = fields.required_text("expr_sql", "write a SELECT with a column `value`", findings);
    let nodes = list(&mut fields, "exp_samples", findings);
    fields.finish(findings);
    let mut expected = Vec::new();
    for node in nodes {
        let Some(mut fields) = Fields::new("the expected sample", node, findings) else { continue };
        let wanted = labels(&mut fields, "labels", findings);
        fields.required("value", "write a number", findings);
        let value = fields.number("value", findings);
        fields.finish(findings);
        expected.extend(value.map(|(_, value)| (wanted, value)));
    }
    Some(SqlTest { eval_ms, sql: sql?.1.to_owned(), expected })
}

impl Test {
    fn last_ms(&self) -> i64 {
        let times = self.alerts.iter().map(|test| test.eval_ms).chain(self.queries.iter().map(|test| test.eval_ms));
        times.max().unwrap_or(0)
    }
}

/// Takes the rows of a test as if they had just arrived.
#[async_trait]
pub trait Keep: Send + Sync {
    /// Keeps rows; when it returns, queries see them. Times are milliseconds from `start` on.
    ///
    /// # Errors
    /// Why they were not kept, in words.
    async fn keep(&self, start: Timestamp, rows: &[Input]) -> Result<(), String>;
}

/// What was expected and not found, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The test.
    pub test: String,
    /// What was compared, and when.
    pub what: String,
    /// Lines that begin with `-` for what is missing, `+` for what is too much, and a space for what is right.
    pub lines: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "test {}, {}", quote(&self.test), self.what)?;
        for line in &self.lines {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// Runs one test over its rules. The rows and the state are the test's own: nothing is left of another.
pub async fn run(file: &File, test: &Test, groups: &[Group], keep: &dyn Keep, tools: &Tools) -> Vec<Failure> {
    let tenant = TenantId::default_tenant();
    let mut groups: Vec<Group> = groups.to_vec();
    let place = |group: &Group| file.group_order.iter().position(|name| *name == group.name).unwrap_or(usize::MAX);
    groups.sort_by_key(|group| (place(group), group.name.clone()));
    let running = groups.into_iter().map(|group| Running::new(group, tenant.clone(), BTreeMap::new(), None));
    let mut running: Vec<Running> = running.collect();
    let mut failures = Vec::new();
    let failed = |what: String, lines: Vec<String>| Failure { test: test.name.clone(), what, lines };
    let mut kept = 0;
    let mut evaluated_ms = 0;
    while evaluated_ms <= test.last_ms() {
        if let Err(reason) = keep_until(test, evaluated_ms, &mut kept, keep).await {
            failures.push(failed(format!("rows until {}", display_ms(evaluated_ms)), vec![reason]));
            return failures;
        }
        let slot = test.start.plus_nanos(evaluated_ms * NANOS_PER_MS);
        for group in &mut running {
            group.evaluate_at(slot, tools).await;
            for (rule, _, health) in group.rules() {
                if let Some(reason) = &health.error {
                    let what = format!("{} at {}", rule.name, display_ms(evaluated_ms));
                    failures.push(failed(what, vec![format!("{}: {reason}", rule.defined_at)]));
                    // What follows from it is no news, and every evaluation would fail again.
                    return failures;
                }
            }
        }
        let is_now = |eval_ms: i64| (evaluated_ms..evaluated_ms + file.interval_ms).contains(&eval_ms);
        for wanted in test.alerts.iter().filter(|wanted| is_now(wanted.eval_ms)) {
            let lines = difference(&alert_texts(&wanted.expected), &alert_texts(&firing(&running, &wanted.alertname)));
            let what = format!("alert {} at {}", quote(&wanted.alertname), display_ms(wanted.eval_ms));
            failures.extend(lines.map(|lines| failed(what, lines)));
        }
        let mut queries: Vec<&SqlTest> = test.queries.iter().filter(|wanted| is_now(wanted.eval_ms)).collect();
        queries.sort_by_key(|wanted| wanted.eval_ms);
        for wanted in queries {
            let what = format!("`{}` at {}", wanted.sql.trim(), display_ms(wanted.eval_ms));
            let lines = match keep_until(test, wanted.eval_ms, &mut kept, keep).await {
                Err(reason) => Some(vec![reason]),
                Ok(()) => {
                    let now = test.start.plus_nanos(wanted.eval_ms * NANOS_PER_MS);
                    match tools.ask.ask(&tenant, &wanted.sql.replace("$now", &sql_time(now))).await {
                        Err(reason) => Some(vec![reason]),
                        Ok(rows) => samples_differ(&wanted.expected, &rows, file.fuzzy),
                    }
                }
            };
            failures.extend(lines.map(|lines| failed(what, lines)));
        }
        evaluated_ms += file.interval_ms;
    }
    failures
}

/// Keeps the rows up to a time that are not kept yet.
async fn keep_until(test: &Test, until_ms: i64, kept: &mut usize, keep: &dyn Keep) -> Result<(), String> {
    let end = test.inputs.partition_point(|input| input.at_ms <= until_ms);
    if end > *kept {
        keep.keep(test.start, &test.inputs[*kept..end]).await?;
        *kept = end;
    }
    Ok(())
}

/// The alerts of a name that fire.
fn firing(groups: &[Running], alertname: &str) -> Vec<(Labels, Labels)> {
    let rules = groups.iter().flat_map(Running::rules);
    let rules = rules.filter(|(rule, ..)| rule.name == alertname && matches!(rule.kind, Kind::Alert { .. }));
    let alerts = rules.flat_map(|(_, alerts, _)| alerts.iter());
    let firing = alerts.filter(|(_, alert)| alert.state == State::Firing);
    let mut found: Vec<_> = firing.map(|(labels, alert)| (labels.clone(), alert.annotations.clone())).collect();
    found.sort();
    found
}

fn alert_texts(alerts: &[(Labels, Labels)]) -> Vec<String> {
    alerts.iter().flat_map(|(labels, annotations)| [shown(labels), format!("  {}", shown(annotations))]).collect()
}

fn shown(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn samples_differ(expected: &[(Labels, f64)], rows: &[Row], fuzzy: bool) -> Option<Vec<String>> {
    let near = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (fuzzy && (a - b).abs() <= FUZZY * a.abs().max(b.abs()))
    };
    let mut left: Vec<&Row> = rows.iter().collect();
    let mut missing = 0;
    for (labels, value) in expected {
        match left.iter().position(|row| row.labels == *labels && near(row.value, *value)) {
            Some(at) => drop(left.remove(at)),
            None => missing += 1,
        }
    }
    if missing == 0 && left.is_empty() {
        return None;
    }
    let mut wanted: Vec<String> = expected.iter().map(|(labels, value)| format!("{} {value}", shown(labels))).collect();
    let mut found: Vec<String> = rows.iter().map(|row| format!("{} {}", shown(&row.labels), row.value)).collect();
    wanted.sort();
    found.sort();
    difference(&wanted, &found)
}

/// The lines of two texts with what only one of them has marked; `None` when they are equal. The longest common
/// subsequence stays unmarked, so that one wrong label is one line.
fn difference(expected: &[String], found: &[String]) -> Option<Vec<String>> {
    if expected == found {
        return None;
    }
    let (rows, columns) = (expected.len(), found.len());
    if rows.saturating_mul(columns) > COMPARED_MAX {
        return Some(vec![format!(
            "{rows} lines were expected and {columns} are there: too many to show what differs"
        )]);
    }
    let mut common = vec![vec![0_usize; columns + 1]; rows + 1];
    for row in (0..rows).rev() {
        for column in (0..columns).rev() {
            common[row][column] = if expected[row] == found[column] {
                common[row + 1][column + 1] + 1
            } else {
                common[row + 1][column].max(common[row][column + 1])
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    let mut lines = vec!["- expected, + got".to_owned()];
    while row < rows || column < columns {
        if row < rows && column < columns && expected[row] == found[column] {
            lines.push(format!("  {}", expected[row]));
            row += 1;
            column += 1;
        } else if row < rows && (column == columns || common[row + 1][column] >= common[row][column + 1]) {
            lines.push(format!("- {}", expected[row]));
            row += 1;
        } else {
            lines.push(format!("+ {}", found[column]));
            column += 1;
        }
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_as_in_promtool() {
        let some = |values: &[f64]| Some(values.iter().map(|value| Some(*value)).collect::<Vec<_>>());
        for (text, want) in [
            ("1 2 3", some(&[1.0, 2.0, 3.0])),
            ("0+10x3", some(&[0.0, 10.0, 20.0, 30.0])),
            ("-2+4x3", some(&[-2.0, 2.0, 6.0, 10.0])),
            ("1-2x4", some(&[1.0, -1.0, -3.0, -5.0, -7.0])),
            ("5x2", some(&[5.0, 5.0, 5.0])),
            ("1e-2+1x1", some(&[0.01, 1.01])),
            ("1 _x3 2", Some(vec![Some(1.0), None, None, None, Some(2.0)])),
            ("1 stale _", Some(vec![Some(1.0), None, None])),
            ("{{schema:1}}", None),
            ("1+x3", None),
            ("1x999999999", None),
        ] {
            assert_eq!(series_values(text), want, "{text}");
        }
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        for (text, want) in [
            ("up", Some(("up", labels(&[])))),
            ("up{}", Some(("up", labels(&[])))),
            (r#"up{job="a", pod="b\"c",}"#, Some(("up", labels(&[("job", "a"), ("pod", "b\"c")])))),
            (r#"{__name__="up", job="a"}"#, Some(("up", labels(&[("job", "a")])))),
            (r#"up{job="a"#, None),
            ("{job=\"a\"}", None),
        ] {
            let want: Option<(&str, Labels)> = want;
            assert_eq!(series_name(text), want.map(|(name, labels)| (name.to_owned(), labels)), "{text}");
        }
    }

    #[test]
    fn everything_wrong_in_a_file_is_told_at_once() {
        let text = "
rule_files: [a.yml]
evaluation_interval: often
tests:
- name: one
  interval: 1m
  external_labels: {a: b}
  input_series:
  - {series: 'up{', values: '1'}
  - {series: up, values: '{{schema:1}}'}
  input_spans:
  - {at: 1m, kind: server, count: many}
  promql_expr_test: []
  alert_rule_test:
  - {eval_time: 5m, exp_alerts: [{labels: {}}]}
- name: two
  start_timestamp: yesterday
";
        let problems = read("t.yml", text).unwrap_err();
        let found: Vec<String> = problems.0.iter().map(|found| format!("{}: {}", found.line, found.message)).collect();
        let want = [
            "3: `evaluation_interval` is `often`",
            "7: test `one` has `external_labels`",
            "9: `up{` is no series",
            "10: `{{schema:1}}` are no values",
            "12: `count` is `many`",
            "12: `kind` is `server`",
            "13: test `one` has a `promql_expr_test`",
            "15: the alert test has no `alertname`",
            "16: test `two` tests nothing",
            "17: `start_timestamp` is `yesterday`",
        ];
        for line in want {
            assert!(found.iter().any(|found| found.starts_with(line)), "{line}: {found:#?}");
        }
    }

    #[test]
    fn a_difference_marks_what_only_one_side_has() {
        let lines = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (expected, found, want) in [
            ("a b", "a b", None),
            ("a b", "a c", Some("  a|- b|+ c")),
            ("", "a", Some("+ a")),
            ("a b c", "b c d", Some("- a|  b|  c|+ d")),
        ] {
            let marked = difference(&lines(expected), &lines(found)).map(|lines| lines[1..].join("|"));
            assert_eq!(marked.as_deref(), want, "{expected} / {found}");
        }
    }
}
