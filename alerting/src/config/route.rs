//! Routes, inhibition rules and time intervals as they stand in the file.
//!
//! Inheritance between routes is not resolved here but in `routing.rs`.

use std::time::Duration;

use super::reader::{Fields, Reader};
use super::yaml::{Node, Value};
use crate::interval::{self, TimeInterval, TimeRange};
use crate::matcher::{self, Matcher, Op};

/// Levels of routes. Each level is two levels of YAML, whose nesting is bounded too.
const ROUTE_DEPTH_MAX: usize = 24;

/// One node of the tree. What is `None` is inherited from the parent.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Route {
    /// The receiver's name.
    pub receiver: Option<String>,
    /// Labels whose values make a group; `None` is inherited.
    pub group_by: Option<Vec<String>>,
    /// `group_by: ['...']`: every label, so that no two alerts share a group.
    pub group_by_all: bool,
    /// Conditions, sorted as in group keys.
    pub matchers: Vec<Matcher>,
    /// Whether siblings after this one are tried too.
    pub continues: bool,
    /// How long a new group waits before its first message.
    pub group_wait: Option<Duration>,
    /// How long a group waits between messages about changes.
    pub group_interval: Option<Duration>,
    /// After how long an unchanged group is told again.
    pub repeat_interval: Option<Duration>,
    /// Times in which the route tells nothing.
    pub mute_time_intervals: Vec<String>,
    /// Times in which alone it tells something, if there are any.
    pub active_time_intervals: Vec<String>,
    /// Children, tried in order.
    pub routes: Vec<Route>,
}

/// While a source is active, targets with the same values of `equal` are not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InhibitRule {
    /// Name, for people.
    pub name: String,
    /// What the inhibiting alert must match.
    pub source_matchers: Vec<Matcher>,
    /// What the inhibited alert must match.
    pub target_matchers: Vec<Matcher>,
    /// Labels whose values must be the same on both.
    pub equal: Vec<String>,
}

/// Names that routes may refer to.
pub(super) struct Known<'a> {
    pub(super) receivers: &'a [String],
    pub(super) intervals: &'a [String],
}

fn one(reader: &mut Reader, node: &Node, path: &str, name: &str, op: Op, value: &str) -> Option<Matcher> {
    Matcher::new(name, op, value).map_err(|error| reader.error(path, &node.at, error.reason)).ok()
}

/// Reads the three ways to write conditions: a list of matchers, and the two older mappings.
fn read_matchers(
    reader: &mut Reader,
    fields: &mut Fields<'_>,
    (matchers_key, match_key, match_re_key): (&'static str, &'static str, &'static str),
) -> Vec<Matcher> {
    let mut matchers = Vec::new();
    // Taken before the pairs are read, for the place of their problems.
    for (key, op) in [(match_key, Op::Equal), (match_re_key, Op::Regex)] {
        let Some(node) = fields.take(key) else { continue };
        let path = fields.path_of(key);
        for (name, value) in fields.pairs(reader, key) {
            // What Alertmanager makes of `match_re`, group keys included: the anchored form.
            let value = if op == Op::Regex { format!("^(?:{value})$") } else { value };
            matchers.extend(one(reader, node, &path, &name, op, &value));
        }
    }
    if let Some(node) = fields.take(matchers_key) {
        let path = fields.path_of(matchers_key);
        let lines = match &node.value {
            Value::Scalar(..) => vec![(node, path)],
            _ => reader.items(node, &path),
        };
        for (line, path) in lines {
            let Some(text) = reader.text(line, &path) else { continue };
            match matcher::parse_all(&text) {
                Ok(parsed) => matchers.extend(parsed),
                Err(error) => reader.error(&path, &line.at, error.reason),
            }
        }
    }
    matcher::sort(&mut matchers);
    matchers
}

pub(super) fn read(reader: &mut Reader, node: &Node, path: &str, known: &Known<'_>, depth: usize) -> Option<Route> {
    if depth > ROUTE_DEPTH_MAX {
        reader.error(path, &node.at, format!("routes nest too deeply: expected at most {ROUTE_DEPTH_MAX} levels"));
        return None;
    }
    let mut fields = reader.fields(node, path);
    let receiver_at = fields.take("receiver");
    let receiver = fields.text(reader, "receiver").filter(|name| !name.is_empty());
    if let (Some(name), Some(at)) = (&receiver, receiver_at)
        && !known.receivers.contains(name)
    {
        reader.error(&fields.path_of("receiver"), &at.at, format!("there is no receiver of the name `{name}`"));
    }
    let group_by_at = fields.take("group_by");
    let labels = fields.texts(reader, "group_by");
    let group_by_all = labels.iter().any(|label| label == "...");
    if let Some(at) = group_by_at {
        let path = fields.path_of("group_by");
        if group_by_all && labels.len() > 1 {
            reader.error(&path, &at.at, "`...` means every label, so it must stand alone");
        }
        for (index, label) in labels.iter().enumerate() {
            if labels[..index].contains(label) {
                reader.error(&path, &at.at, format!("label `{label}` stands here twice"));
            }
            if label.is_empty() {
                reader.error(&path, &at.at, "a label has an empty name");
            }
        }
    }
    let matchers = read_matchers(reader, &mut fields, ("matchers", "match", "match_re"));
    let intervals = |reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str| {
        let at = fields.take(key);
        let names = fields.texts(reader, key);
        if let Some(at) = at {
            for name in names.iter().filter(|name| !known.intervals.contains(name)) {
                reader.error(&fields.path_of(key), &at.at, format!("there is no time interval of the name `{name}`"));
            }
        }
        names
    };
    let mute_time_intervals = intervals(reader, &mut fields, "mute_time_intervals");
    let active_time_intervals = intervals(reader, &mut fields, "active_time_intervals");
    let positive = |reader: &mut Reader, fields: &mut Fields<'_>, key: &'static str| {
        let duration = fields.duration(reader, key);
        if duration == Some(Duration::ZERO)
            && let Some(at) = fields.take(key)
        {
            reader.error(&fields.path_of(key), &at.at, "must be longer than zero");
        }
        duration
    };
    let group_wait = fields.duration(reader, "group_wait");
    let group_interval = positive(reader, &mut fields, "group_interval");
    let repeat_interval = positive(reader, &mut fields, "repeat_interval");
    let continues = fields.flag(reader, "continue").unwrap_or(false);
    let routes = fields.list(reader, "routes", |reader, node, path| read(reader, node, path, known, depth + 1));
    if depth == 0 {
        let at = fields.at;
        let mut refuse = |message: &str| reader.error(path, at, message);
        if receiver.is_none() {
            refuse("the root route needs a `receiver`");
        }
        if !matchers.is_empty() {
            refuse("the root route must match every alert: it has no matchers");
        }
        if !mute_time_intervals.is_empty() || !active_time_intervals.is_empty() {
            refuse("the root route has no mute or active times");
        }
        if continues {
            refuse("the root route has no siblings: `continue` means nothing here");
        }
    }
    fields.finish(reader);
    Some(Route {
        receiver,
        group_by: group_by_at.map(|_| labels.into_iter().filter(|label| label != "...").collect()),
        group_by_all,
        matchers,
        continues,
        group_wait,
        group_interval,
        repeat_interval,
        mute_time_intervals,
        active_time_intervals,
        routes,
    })
}

pub(super) fn read_inhibit_rule(reader: &mut Reader, node: &Node, path: &str) -> Option<InhibitRule> {
    let mut fields = reader.fields(node, path);
    let name = fields.text(reader, "name").unwrap_or_default();
    let source = read_matchers(reader, &mut fields, ("source_matchers", "source_match", "source_match_re"));
    let target = read_matchers(reader, &mut fields, ("target_matchers", "target_match", "target_match_re"));
    let equal = fields.texts(reader, "equal");
    fields.finish(reader);
    Some(InhibitRule { name, source_matchers: source, target_matchers: target, equal })
}

/// One of a receiver's or interval's name, its node and its path.
type Named<'n> = (TimeInterval, &'n Node, String);

pub(super) fn read_time_interval<'n>(reader: &mut Reader, node: &'n Node, path: &str) -> Option<Named<'n>> {
    let mut fields = reader.fields(node, path);
    let name = fields.required(reader, "name");
    let ranges = fields.list(reader, "time_intervals", read_time_range);
    fields.finish(reader);
    Some((TimeInterval { name: name?, ranges }, node, path.to_owned()))
}

fn read_time_range(reader: &mut Reader, node: &Node, path: &str) -> Option<TimeRange> {
    let mut fields = reader.fields(node, path);
    let mut range = TimeRange::default();
    if fields.take("times").is_some() {
        range.minutes = Some(fields.list(reader, "times", |reader, node, path| {
            let mut fields = reader.fields(node, path);
            let start = fields.required(reader, "start_time");
            let end = fields.required(reader, "end_time");
            fields.finish(reader);
            match interval::parse_minutes(&start?, &end?) {
                Ok(minutes) => Some(minutes),
                Err(message) => {
                    reader.error(path, &node.at, message);
                    None
                }
            }
        }));
    }
    let mut ranges = |reader: &mut Reader, key: &'static str, parse: fn(&str) -> Result<(i32, i32), String>| {
        fields.take(key)?;
        Some(fields.list(reader, key, |reader, node, path| {
            let text = reader.text(node, path)?;
            parse(&text).map_err(|message| reader.error(path, &node.at, message)).ok()
        }))
    };
    range.weekdays = ranges(reader, "weekdays", interval::parse_weekdays);
    range.days_of_month = ranges(reader, "days_of_month", interval::parse_days_of_month);
    range.months = ranges(reader, "months", interval::parse_months);
    range.years = ranges(reader, "years", interval::parse_years);
    if let Some(at) = fields.take("location") {
        let text = fields.text(reader, "location").unwrap_or_default();
        match interval::parse_location(&text) {
            Ok(zone) => range.zone = zone,
            Err(message) => reader.error(&fields.path_of("location"), &at.at, message),
        }
    }
    fields.finish(reader);
    Some(range)
}
