//! Templates of rules: labels and annotations as Prometheus expands them.
//!
//! `$labels`, `$value`, `$externalURL` and Prometheus' functions over those of messages. What asks for data (`query`,
//! `first`, `sortByLabel` …) is not there: a rule's own query selects what its texts show. Not here: messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::{FuncMap, MissingKey, TemplateError, Value, ValueFunc};

use super::functions::{all, duration_seconds, failed, string};
use super::time::GoTime;
use super::value::text;
use super::{Bounded, RANGE_STEPS_MAX, TEXT_NAME, finish, parse};
use crate::error::AlertingError;

/// What Prometheus puts before every template.
const PRELUDE: &str =
    "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}";

/// Expands a text of a rule about one sample.
///
/// # Errors
/// When it is no template, fails, or prints too much.
pub fn expand(
    source: &str,
    labels: &BTreeMap<String, String>,
    value: f64,
    external_url: &str,
) -> Result<String, AlertingError> {
    // Most labels are plain.
    if !source.contains("{{") {
        return Ok(source.to_owned());
    }
    let (body, defines) = parse("text", &format!("{PRELUDE}{source}"))?;
    let mut template =
        gotmpl::Template::new("").missing_key(MissingKey::Invalid).max_range_iters(RANGE_STEPS_MAX).funcs(functions());
    for (name, tree) in defines {
        template = template.add_parse_tree(&name, tree);
    }
    let map = |entries: Vec<(Arc<str>, Value)>| Value::Map(Arc::new(entries.into_iter().collect()));
    let data = map(vec![
        (
            Arc::from("Labels"),
            map(labels.iter().map(|(name, value)| (Arc::from(name.as_str()), text(value))).collect()),
        ),
        (Arc::from("ExternalLabels"), map(Vec::new())),
        (Arc::from("ExternalURL"), text(external_url)),
        (Arc::from("Value"), Value::Float(value)),
    ]);
    let mut out = Bounded::default();
    let done = template.add_parse_tree(TEXT_NAME, body).execute_template_fmt(&mut out, TEXT_NAME, &data);
    finish(done, out)
}

/// Whether a text is a template of a rule.
///
/// # Errors
/// When it is none.
pub fn check(source: &str) -> Result<(), AlertingError> {
    parse("text", &format!("{PRELUDE}{source}")).map(|_| ())
}

fn number(args: &[Value]) -> Result<f64, TemplateError> {
    match args.first().and_then(duration_seconds) {
        Some(number) => Ok(number),
        None => failed("a number is needed"),
    }
}

/// Four significant digits, as C's `%.4g`.
fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return plain(value);
    }
    let exponent = format!("{value:.3e}").rsplit('e').next().and_then(|text| text.parse::<i32>().ok()).unwrap_or(0);
    if !(-4..4).contains(&exponent) {
        let written = format!("{value:.3e}");
        let (mantissa, _) = written.split_once('e').unwrap_or((&written, ""));
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let digits = usize::try_from(3 - exponent).unwrap_or(0);
    trimmed(&format!("{value:.digits$}")).to_owned()
}

/// A number without an exponent that says nothing, and infinities as Go writes them.
fn plain(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// A number with a prefix, by steps of 1000 or 1024.
fn prefixed(value: f64, step: f64, large: &[&str], small: &[&str]) -> String {
    if value == 0.0 || !value.is_finite() {
        return significant(value);
    }
    let (mut shown, mut prefix) = (value, "");
    if shown.abs() >= 1.0 {
        for next in large {
            if shown.abs() < step {
                break;
            }
            (shown, prefix) = (shown / step, next);
        }
    } else {
        for next in small {
            if shown.abs() >= 1.0 {
                break;
            }
            (shown, prefix) = (shown * step, next);
        }
    }
    format!("{}{prefix}", significant(shown))
}

const LARGE: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
const LARGE_BINARY: [&str; 8] = ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"];
const SMALL: [&str; 8] = ["m", "u", "n", "p", "f", "a", "z", "y"];

fn functions() -> FuncMap {
    type Function = fn(&[Value]) -> Result<Value, TemplateError>;
    let own: [(&str, Function); 8] = [
        ("humanize", |args| Ok(text(prefixed(number(args)?, 1_000.0, &LARGE, &SMALL)))),
        ("humanize1024", |args| Ok(text(prefixed(number(args)?, 1_024.0, &LARGE_BINARY, &[])))),
        ("humanizePercentage", |args| Ok(text(format!("{}%", significant(number(args)? * 100.0))))),
        ("humanizeTimestamp", |args| {
            let seconds = number(args)?;
            if !seconds.is_finite() {
                return Ok(text(plain(seconds)));
            }
            #[expect(clippy::cast_possible_truncation, reason = "a time out of range saturates")]
            let nanos = (seconds * 1e9) as i64;
            Ok(text(GoTime::from_nanos(nanos).to_string()))
        }),
        ("parseDuration", |args| {
            let written = string(args, 0)?;
            match crate::config::parse_duration(&written) {
                Some(duration) => Ok(Value::Float(duration.as_secs_f64())),
                None => failed(format!("{written:?} is not a duration")),
            }
        }),
        ("stripPort", |args| {
            let host = string(args, 0)?;
            let without = host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']'));
            Ok(text(without.map_or(host.as_str(), |(name, _)| name).trim_matches(['[', ']'])))
        }),
        ("stripDomain", |args| {
            let host = string(args, 0)?;
            let (name, port) = host.split_once(':').map_or((host.as_str(), ""), |(name, port)| (name, port));
            // An address has no domain.
            if name.parse::<std::net::IpAddr>().is_ok() {
                return Ok(text(host));
            }
            let first = name.split('.').next().unwrap_or(name);
            Ok(text(if port.is_empty() { first.to_owned() } else { format!("{first}:{port}") }))
        }),
        ("args", |args| {
            let named = args.iter().enumerate().map(|(at, value)| (Arc::from(format!("arg{at}")), value.clone()));
            Ok(Value::Map(Arc::new(named.collect())))
        }),
    ];
    let mut functions = all();
    functions.extend(own.into_iter().map(|(name, function)| (name.to_owned(), Arc::new(function) as ValueFunc)));
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_expand_as_in_prometheus() {
        let labels =
            BTreeMap::from([("name".to_owned(), "cart".to_owned()), ("host".to_owned(), "a.b.c:80".to_owned())]);
        for (source, value, want) in [
            ("plain", 1.0, "plain"),
            ("{{ $labels.name }} had {{ $value }} errors", 12.0, "cart had 12 errors"),
            ("{{ .Labels.name }} {{ .Value }}", 0.5, "cart 0.5"),
            ("[{{ $labels.nothing }}]", 0.0, "[]"),
            ("{{ $value | humanize }}", 1_234_567.0, "1.235M"),
            ("{{ $value | humanize }}", 0.001_5, "1.5m"),
            ("{{ $value | humanize }}", 0.0, "0"),
            ("{{ $value | humanize }}", f64::NAN, "NaN"),
            ("{{ humanize1024 $value }}", 1_048_576.0, "1Mi"),
            ("{{ $value | humanizePercentage }}", 0.123_456, "12.35%"),
            ("{{ $value | humanizePercentage }}", 0.000_000_1, "1e-05%"),
            ("{{ $value | humanizeDuration }}", 3_725.0, "1h 2m 5s"),
            ("{{ $value | humanizeDuration }}", 0.25, "250ms"),
            ("{{ $value | humanizeTimestamp }}", 1_435_065_584.0, "2015-06-23 13:19:44 +0000 UTC"),
            ("{{ $value | printf \"%.1f\" }}", 2.25, "2.2"),
            ("{{ if gt $value 1.0 }}high{{ else }}low{{ end }}", 2.0, "high"),
            ("{{ stripPort $labels.host }} {{ stripDomain $labels.host }}", 0.0, "a.b.c a:80"),
            ("{{ parseDuration \"1h30m\" }}", 0.0, "5400"),
            ("{{ $externalURL }}/x", 0.0, "http://g/x"),
            ("{{ $labels.name | toUpper }}", 0.0, "CART"),
        ] {
            assert_eq!(expand(source, &labels, value, "http://g").unwrap(), want, "{source} {value}");
        }
        for source in ["{{ $labels.name", "{{ nothing }}", "{{ query \"up\" }}"] {
            assert!(expand(source, &labels, 1.0, "").is_err(), "{source}");
        }
        assert!(check("{{ $labels.name }}").is_ok() && check("{{ if }}").is_err());
    }
}
