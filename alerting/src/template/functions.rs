//! The functions Alertmanager adds to Go's templates.
//!
//! Not here: fields and methods (`value.rs`), and what the engine brings along (`printf`, `len`, `eq`).

use std::sync::Arc;

use gotmpl::{FuncMap, TemplateError, Value, ValueFunc};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::time::{GoDuration, GoTime};
use super::value::{self, text};

type Outcome = Result<Value, TemplateError>;

type Function = fn(&[Value]) -> Outcome;

/// Memory one expression of a template may take.
const REGEX_BYTES_MAX: usize = 1 << 20;

pub(super) fn failed<T>(reason: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError::Exec(reason.into()))
}

pub(super) fn string(args: &[Value], index: usize) -> Result<String, TemplateError> {
    match args.get(index) {
        Some(value) => Ok(value.to_string()),
        None => failed(format!("argument {} is missing", index + 1)),
    }
}

fn regex(pattern: &str) -> Result<regex::Regex, TemplateError> {
    let built = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
    built.map_err(|_| TemplateError::Exec(format!("{pattern:?} is not a regular expression")))
}

/// A capital at the start of each word, as Go's `strings.Title`.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for character in text.chars() {
        if start {
            out.extend(character.to_uppercase());
        } else {
            out.push(character);
        }
        start = !(character.is_alphanumeric() || character == '_' || character == '\'');
    }
    out
}

/// Seconds as people read them.
fn humanize(seconds: f64) -> String {
    if !seconds.is_finite() {
        return format!("{seconds}");
    }
    let short = |value: f64| {
        // Four significant digits.
        let digits = if value == 0.0 { 0 } else { (3 - value.abs().log10().floor() as i32).clamp(0, 9) };
        let text = format!("{value:.*}", usize::try_from(digits).unwrap_or(0));
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    if seconds == 0.0 {
        return "0s".to_owned();
    }
    if seconds.abs() >= 1.0 {
        let sign = if seconds < 0.0 { "-" } else { "" };
        let whole = seconds.abs() as i64;
        let (days, hours, minutes, rest) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
        return match (days, hours, minutes) {
            (0, 0, 0) => format!("{}s", short(seconds)),
            (0, 0, _) => format!("{sign}{minutes}m {rest}s"),
            (0, ..) => format!("{sign}{hours}h {minutes}m {rest}s"),
            _ => format!("{sign}{days}d {hours}h {minutes}m {rest}s"),
        };
    }
    let mut value = seconds;
    for prefix in ["m", "u", "n", "p"] {
        value *= 1_000.0;
        if value.abs() >= 1.0 {
            return format!("{}{prefix}s", short(value));
        }
    }
    format!("{}s", short(seconds))
}

pub(super) fn duration_seconds(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => GoDuration::parse(text).map(GoDuration::seconds).or_else(|| text.parse().ok()),
        _ => None,
    }
}

/// Only a web address may become a link; anything else is empty.
fn web_url(text: &str) -> String {
    match url::Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url.to_string(),
        _ => String::new(),
    }
}

/// The page on which a silence for these labels is made.
fn silence_url(args: &[Value]) -> Outcome {
    let data = args.first().unwrap_or(&Value::Nil);
    let base = data.field("ExternalURL").map(ToString::to_string).unwrap_or_default();
    let Some(Value::Map(labels)) = data.field("CommonLabels") else {
        return failed("silenceURL needs the whole data");
    };
    let matchers: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", crate::labels::quoted(&value.to_string()))).collect();
    let filter = format!("{{{}}}", matchers.join(","));
    Ok(text(format!("{base}/#/silences/new?filter={}", utf8_percent_encode(&filter, NON_ALPHANUMERIC))))
}

/// The command that silences these labels, for a shell: whatever a label says stays one argument.
fn silence_command(args: &[Value]) -> Outcome {
    let data = args.first().unwrap_or(&Value::Nil);
    let base = data.field("ExternalURL").map(ToString::to_string).unwrap_or_default();
    let Some(Value::Map(labels)) = data.field("CommonLabels") else {
        return failed("silenceCommand needs the whole data");
    };
    let argument = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let matchers =
        labels.iter().map(|(name, value)| argument(&format!("{name}={}", crate::labels::quoted(&value.to_string()))));
    let matchers: Vec<String> = matchers.collect();
    Ok(text(format!(
        "godseye silence add --server {} --duration 2h --comment WHY {}",
        argument(&base),
        matchers.join(" ")
    )))
}

fn path(args: &[Value]) -> Outcome {
    let count = args.first().and_then(Value::as_int).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let mut at = args.get(1).cloned().unwrap_or(Value::Nil);
    let rest = args.get(2 + count..).unwrap_or_default();
    for (index, name) in args.iter().skip(2).take(count).enumerate() {
        let last = index + 1 == count;
        let name = name.as_str().unwrap_or_default();
        at = value::member(&at, name, if last { rest } else { &[] })?;
    }
    Ok(at)
}

pub(super) fn all() -> FuncMap {
    let functions: [(&str, Function); 28] = [
        (super::PATH, path),
        ("toUpper", |args| Ok(text(string(args, 0)?.to_uppercase()))),
        ("toLower", |args| Ok(text(string(args, 0)?.to_lowercase()))),
        ("title", |args| Ok(text(title(&string(args, 0)?)))),
        ("trimSpace", |args| Ok(text(string(args, 0)?.trim()))),
        ("join", |args| match args.get(1) {
            Some(Value::List(items)) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                Ok(text(items.join(&string(args, 0)?)))
            }
            _ => failed("join needs a separator and a list"),
        }),
        ("match", |args| Ok(Value::Bool(regex(&string(args, 0)?)?.is_match(&string(args, 1)?)))),
        ("reReplaceAll", |args| {
            let (pattern, with, on) = (string(args, 0)?, string(args, 1)?, string(args, 2)?);
            Ok(text(regex(&pattern)?.replace_all(&on, with.as_str())))
        }),
        ("safeHtml", |args| Ok(gotmpl::html::HTML::from(string(args, 0)?).into())),
        ("safeUrl", |args| Ok(gotmpl::html::URL::from(string(args, 0)?).into())),
        ("urlUnescape", |args| {
            let plus = string(args, 0)?.replace('+', " ");
            match percent_decode_str(&plus).decode_utf8() {
                Ok(decoded) => Ok(text(decoded)),
                Err(_) => failed("urlUnescape: not UTF-8"),
            }
        }),
        ("webURL", |args| Ok(text(web_url(&string(args, 0)?)))),
        ("silenceCommand", silence_command),
        ("silenceURL", silence_url),
        ("stringSlice", |args| Ok(Value::List(args.iter().cloned().collect()))),
        ("list", |args| Ok(Value::List(args.iter().cloned().collect()))),
        ("append", |args| match args.first() {
            Some(Value::List(items)) => Ok(Value::List(items.iter().chain(&args[1..]).cloned().collect())),
            _ => failed("append needs a list"),
        }),
        ("dict", |args| {
            let mut map = std::collections::BTreeMap::new();
            for pair in args.chunks(2) {
                let [name, value] = pair else { return failed("dict needs pairs") };
                map.insert(Arc::from(name.to_string()), value.clone());
            }
            Ok(Value::Map(Arc::new(map)))
        }),
        ("sortedPairs", |args| value::member(args.first().unwrap_or(&Value::Nil), "SortedPairs", &[])),
        ("date", |args| match GoTime::parse(&string(args, 1)?) {
            Some(time) => Ok(text(time.format(&string(args, 0)?))),
            None => failed("date needs a layout and a time"),
        }),
        ("tz", |args| {
            let name = string(args, 0)?;
            let time = GoTime::parse(&string(args, 1)?).and_then(|time| time.in_zone(&name));
            time.map_or_else(|| failed(format!("tz: no time, or no zone {name:?}")), |time| Ok(text(time.to_string())))
        }),
        ("since", |args| match GoTime::parse(&string(args, 0)?) {
            Some(time) => {
                let now = GoTime::from_nanos(model::time::Clock::System.now().0);
                Ok(text(now.since(&time).to_string()))
            }
            None => failed("since needs a time"),
        }),
        ("now", |_| Ok(text(GoTime::from_nanos(model::time::Clock::System.now().0).to_string()))),
        ("humanizeDuration", |args| match args.first().and_then(duration_seconds) {
            Some(seconds) => Ok(text(humanize(seconds))),
            None => failed("humanizeDuration needs seconds or a duration"),
        }),
        ("toJson", |args| Ok(text(value::to_json(args.first().unwrap_or(&Value::Nil)).to_string()))),
        ("contains", |args| Ok(Value::Bool(string(args, 1)?.contains(&string(args, 0)?)))),
        ("quote", |args| Ok(text(crate::labels::quoted(&string(args, 0)?)))),
        ("urlEncode", |args| Ok(text(utf8_percent_encode(&string(args, 0)?, NON_ALPHANUMERIC).to_string()))),
    ];
    functions.into_iter().map(|(name, function)| (name.to_owned(), Arc::new(function) as ValueFunc)).collect()
}
