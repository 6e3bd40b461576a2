//! Alertmanager's configuration file, as it is.
//!
//! [`parse`] reads YAML into plain data and reports everything that is wrong at once, each problem with
//! its path, line and column. What Alertmanager knows and this crate does not do (other kinds of
//! receivers, proxies) is a warning, and sending to such a receiver fails visibly: nothing is ignored in
//! silence. Not here: reading files, the meaning of routes (`routing.rs`) and of times (`interval.rs`).

mod reader;
mod receivers;
mod route;
#[cfg(test)]
mod tests;
mod yaml;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

pub use receivers::{
    Authentication, EmailConfig, Field, HttpConfig, Integration, PagerDutyConfig, Receiver, SlackConfig, TlsConfig,
    WebhookConfig,
};
pub use route::{InhibitRule, Route};

use crate::interval::TimeInterval;
use yaml::Place;

/// Problems reported at once; a file with more is some other file.
const PROBLEMS_MAX: usize = 100;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and part of it has no effect here.
    Warning,
}

/// One thing that is wrong, with its place. It quotes no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Keys from the top, as in `route.routes[2].receiver`; empty for the whole file.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    fn error(path: &str, at: &Place, message: String) -> Self {
        Self { severity: Severity::Error, path: path.to_owned(), line: at.line, column: at.column, message }
    }

    fn warning(path: &str, at: &Place, message: String) -> Self {
        Self { severity: Severity::Warning, ..Self::error(path, at, message) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{}:{}: {severity}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// What holds for all receivers unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// After how long an alert without an end is over, unless it is sent again. 5 minutes.
    pub resolve_timeout: Duration,
}

/// A configuration without errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Defaults.
    pub global: Global,
    /// The root of the tree.
    pub route: Route,
    /// Which alerts keep which others from being told.
    pub inhibit_rules: Vec<InhibitRule>,
    /// Named times.
    pub time_intervals: Vec<TimeInterval>,
    /// Named destinations.
    pub receivers: Vec<Receiver>,
    /// Files of templates, as patterns relative to the configuration's folder.
    pub templates: Vec<String>,
    /// The text with every secret masked, for `/api/v2/status`.
    pub masked: String,
}

/// What came of reading a text.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The configuration, if there is no error.
    pub config: Option<Config>,
    /// Errors and warnings in the order of lines.
    pub problems: Vec<Problem>,
}

/// Durations are kept in nanoseconds of an `i64`; longer ones than this many years are a mistake.
const DURATION_YEARS_MAX: u64 = 100;

/// Reads a duration as Prometheus writes it: `1w2d`, `1h30m`, `500ms`, units from large to small, each
/// once; or `0`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 7] = [
        ("y", 31_536_000_000),
        ("w", 604_800_000),
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut units, mut total) = (text, UNITS.as_slice(), 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let at = units.iter().position(|(unit, _)| *unit == &rest[..end])?;
        total = total.checked_add(number.checked_mul(units[at].1)?)?;
        units = &units[at + 1..];
        rest = &rest[end..];
    }
    let known = !text.is_empty() && total <= DURATION_YEARS_MAX * UNITS[0].1;
    known.then_some(Duration::from_millis(total))
}

/// Reads a configuration.
#[must_use]
pub fn parse(text: &str) -> Parsed {
    let mut reader = reader::Reader::default();
    let config = match yaml::parse(text) {
        Err(problem) => {
            reader.problems.push(problem);
            None
        }
        Ok(None) => {
            let start = Place { line: 1, column: 1, bytes: 0..0 };
            reader.error("", &start, "the file is empty: expected at least `route` and `receivers`");
            None
        }
        Ok(Some(root)) => read(&mut reader, &root, text),
    };
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| (problem.line, problem.column, problem.severity));
    problems.dedup();
    let config = config.filter(|_| problems.iter().all(|problem| problem.severity != Severity::Error));
    problems.truncate(PROBLEMS_MAX);
    Parsed { config, problems }
}

/// The tree of a file that has none, by the names of its receivers: what is critical pages (`page`), what is for
/// information waits for the digest (`digest`), and everything else is told to the team (`team`, which must be there).
/// Alertmanager refuses such a file, so no file of Alertmanager's means anything else here.
#[must_use]
pub fn default_route(receivers: &[String]) -> Option<String> {
    let has = |name: &str| receivers.iter().any(|receiver| receiver == name);
    if !has("team") {
        return None;
    }
    let mut text = "# There is no `route`: this is the default one.\nroute:\n  receiver: team\n  group_by: [alertname, service]\n  routes:\n".to_owned();
    for (severity, receiver) in [("critical", "page"), ("info", "digest")] {
        if has(receiver) {
            text.push_str(&format!("  - matchers: ['severity=\"{severity}\"']\n    receiver: {receiver}\n"));
        }
    }
    Some(text)
}

/// Everything to be said about a configuration's text, `godseye check`'s part of it.
#[must_use]
pub fn check(text: &str) -> Vec<Problem> {
    parse(text).problems
}

fn read(reader: &mut reader::Reader, root: &yaml::Node, text: &str) -> Option<Config> {
    let mut top = reader.fields(root, "");
    let defaults = receivers::Defaults::read(reader, top.take("global"));
    let templates = top.texts(reader, "templates");
    let mut receivers = top.list(reader, "receivers", |reader, node, path| {
        receivers::read(reader, node, path, &defaults).map(|receiver| (receiver, node, path.to_owned()))
    });
    let mut names = Vec::new();
    for (receiver, node, path) in &receivers {
        if names.contains(&receiver.name) {
            reader.error(path, &node.at, format!("there are two receivers of the name `{}`", receiver.name));
        }
        names.push(receiver.name.clone());
    }
    let mut time_intervals = top.list(reader, "time_intervals", route::read_time_interval);
    time_intervals.extend(top.list(reader, "mute_time_intervals", route::read_time_interval));
    let mut interval_names = Vec::new();
    for (interval, node, path) in &time_intervals {
        if interval_names.contains(&interval.name) {
            reader.error(path, &node.at, format!("there are two time intervals of the name `{}`", interval.name));
        }
        interval_names.push(interval.name.clone());
    }
    let known = route::Known { receivers: &names, intervals: &interval_names };
    let route_node = top.take("route");
    let default_text = if route_node.is_none() { default_route(&names) } else { None };
    let default_root = default_text.as_deref().and_then(|text| yaml::parse(text).ok().flatten());
    let route = match (route_node, &default_root) {
        (Some(node), _) => route::read(reader, node, "route", &known, 0),
        (None, Some(root)) => {
            let mut fields = reader.fields(root, "");
            fields.take("route").and_then(|node| route::read(reader, node, "route", &known, 0))
        }
        (None, None) => {
            let message = "`route` is missing: expected a tree of routes with a receiver at its root, or a receiver of the name `team` for the default one";
            reader.error("", &root.at, message);
            None
        }
    };
    let inhibit_rules = top.list(reader, "inhibit_rules", route::read_inhibit_rule);
    top.ignored(&["tracing", "event_recorder"]);
    top.finish(reader);
    Some(Config {
        global: Global { resolve_timeout: defaults.resolve_timeout },
        route: route?,
        inhibit_rules,
        time_intervals: time_intervals.into_iter().map(|(interval, ..)| interval).collect(),
        receivers: receivers.drain(..).map(|(receiver, ..)| receiver).collect(),
        templates,
        masked: mask(text, &reader.secrets) + &default_text.map_or(String::new(), |text| format!("\n{text}")),
    })
}

/// The text with `<secret>` for each of the ranges. An anchored secret is masked where it stands.
fn mask(text: &str, secrets: &[Range<usize>]) -> String {
    let mut secrets = secrets.to_vec();
    secrets.sort_by_key(|range| range.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in secrets {
        if range.start < at {
            continue;
        }
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str("<secret>");
        // Blocks end with the blanks before what follows them, which must stay where it is.
        let secret = text.get(range.clone()).unwrap_or_default();
        at = range.start + secret.trim_end().len();
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}
