//! Alertmanager's template types as values, and what their fields and methods give.
//!
//! `Data`, `Alert` and `KV` are maps; a time is the text Go prints for it. Not here: functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::{TemplateError, Value};

use super::time::{GoDuration, GoTime};
use crate::labels::{ALERT_NAME, LabelSet};
use crate::notification::{Notification, ToldAlert};

pub(super) fn text(text: impl AsRef<str>) -> Value {
    Value::String(Arc::from(text.as_ref()))
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(Arc::new(entries.into_iter().map(|(name, value)| (Arc::from(name), value)).collect()))
}

fn kv(labels: &LabelSet, escape: Escape) -> Value {
    Value::Map(Arc::new(labels.iter().map(|(name, value)| (Arc::from(name), text(escape(value)))).collect()))
}

/// Makes a text inert for the channel whose templates see it.
pub(super) type Escape = fn(&str) -> String;

fn alert(alert: &ToldAlert, escape: Escape) -> Value {
    map([
        ("Status", text(alert.status.as_str())),
        ("Labels", kv(&alert.labels, escape)),
        ("Annotations", kv(&alert.annotations, escape)),
        ("StartsAt", text(GoTime::from_nanos(alert.starts_at).to_string())),
        ("EndsAt", text(alert.ends_at.map_or_else(GoTime::zero, GoTime::from_nanos).to_string())),
        ("GeneratorURL", text(escape(&alert.generator_url))),
        ("Fingerprint", text(alert.labels.fingerprint().to_string())),
    ])
}

pub(super) fn data(notification: &Notification, external_url: &str, escape: Escape) -> Value {
    map([
        ("Receiver", text(&notification.receiver)),
        ("Status", text(notification.status().as_str())),
        ("Alerts", Value::List(notification.alerts.iter().map(|one| alert(one, escape)).collect())),
        ("GroupLabels", kv(&notification.group_labels, escape)),
        ("CommonLabels", kv(&notification.common_labels(), escape)),
        ("CommonAnnotations", kv(&notification.common_annotations(), escape)),
        ("ExternalURL", text(external_url)),
        ("GroupKey", text(escape(&notification.group_key))),
        ("NotificationReason", text(notification.reason.as_str())),
        ("TruncatedAlerts", Value::Int(i64::try_from(notification.left_out).unwrap_or(i64::MAX))),
    ])
}

fn failed<T>(reason: String) -> Result<T, TemplateError> {
    Err(TemplateError::Exec(reason))
}

/// Pairs of a map, `alertname` first.
pub(super) fn sorted_pairs(map: &BTreeMap<Arc<str>, Value>) -> Vec<(Arc<str>, Value)> {
    let first = map.iter().filter(|(name, _)| &***name == ALERT_NAME);
    let rest = map.iter().filter(|(name, _)| &***name != ALERT_NAME);
    first.chain(rest).map(|(name, value)| (Arc::clone(name), value.clone())).collect()
}

fn list(items: impl IntoIterator<Item = Value>) -> Value {
    Value::List(items.into_iter().collect())
}

/// What `receiver.NAME args…` is.
pub(super) fn member(receiver: &Value, name: &str, args: &[Value]) -> Result<Value, TemplateError> {
    match receiver {
        Value::Map(fields) => {
            let pairs = || sorted_pairs(fields);
            match name {
                "SortedPairs" => {
                    let pair =
                        |(name, value): (Arc<str>, Value)| map([("Name", Value::String(name)), ("Value", value)]);
                    return Ok(list(pairs().into_iter().map(pair)));
                }
                "Names" => return Ok(list(pairs().into_iter().map(|(name, _)| Value::String(name)))),
                "Values" => return Ok(list(pairs().into_iter().map(|(_, value)| value))),
                "Remove" => {
                    let removed: Vec<String> = match args.first() {
                        Some(Value::List(names)) => names.iter().map(ToString::to_string).collect(),
                        _ => return failed("Remove needs a list of names".to_owned()),
                    };
                    let mut left = BTreeMap::clone(fields);
                    left.retain(|name, _| !removed.iter().any(|removed| **removed == **name));
                    return Ok(Value::Map(Arc::new(left)));
                }
                _ => {}
            }
            match fields.get(name) {
                Some(value) => Ok(value.clone()),
                // A label that is not there is empty; a field that is not there is a mistake.
                None if fields.contains_key("CommonLabels") || fields.contains_key("GeneratorURL") => {
                    failed(format!("there is no field {name:?} in this data"))
                }
                None => Ok(text("")),
            }
        }
        Value::List(items) => match name {
            "Firing" | "Resolved" => {
                let status = name.to_lowercase();
                let of_status = |item: &&Value| item.field("Status").and_then(Value::as_str) == Some(status.as_str());
                Ok(list(items.iter().filter(of_status).cloned()))
            }
            "Names" | "Values" => {
                let part = name.trim_end_matches('s');
                Ok(list(items.iter().map(|pair| pair.field(part).cloned().unwrap_or(Value::Nil))))
            }
            _ => failed(format!("a list has no {name:?}")),
        },
        Value::String(value) => of_text(value, name, args),
        Value::Nil => Ok(text("")),
        other => failed(format!("a {} has no {name:?}", other.type_name())),
    }
}

/// Methods of times and durations, which are texts.
fn of_text(value: &str, name: &str, args: &[Value]) -> Result<Value, TemplateError> {
    if let Some(time) = GoTime::parse(value) {
        let other = || args.first().and_then(Value::as_str).and_then(GoTime::parse);
        return match name {
            "Format" => {
                let layout = args.first().and_then(Value::as_str).unwrap_or_default();
                Ok(text(time.format(layout)))
            }
            "Unix" => Ok(Value::Int(time.unix_seconds())),
            "UnixMilli" => Ok(Value::Int(time.unix_millis())),
            "UTC" | "Local" => Ok(text(time.in_zone("UTC").unwrap_or(time).to_string())),
            "IsZero" => Ok(Value::Bool(time.is_zero())),
            "String" => Ok(text(value)),
            "Year" => Ok(Value::String(time.format("2006").into())),
            "Sub" => match other() {
                Some(other) => Ok(text(time.since(&other).to_string())),
                None => failed("Sub needs a time".to_owned()),
            },
            "Before" | "After" => match other() {
                Some(other) => {
                    Ok(Value::Bool(if name == "Before" { time.is_before(&other) } else { other.is_before(&time) }))
                }
                None => failed(format!("{name} needs a time")),
            },
            _ => failed(format!("a time has no {name:?}")),
        };
    }
    if let Some(duration) = GoDuration::parse(value) {
        return match name {
            "Seconds" => Ok(Value::Float(duration.seconds())),
            "Minutes" => Ok(Value::Float(duration.seconds() / 60.0)),
            "Hours" => Ok(Value::Float(duration.seconds() / 3_600.0)),
            "String" => Ok(text(value)),
            _ => failed(format!("a duration has no {name:?}")),
        };
    }
    failed(format!("a text has no {name:?}"))
}

/// A value as JSON; times as RFC 3339.
pub(super) fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(value) => match GoTime::parse(value) {
            Some(time) => time.format("2006-01-02T15:04:05.999999999Z07:00").into(),
            None => value.to_string().into(),
        },
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(fields) => fields.iter().map(|(name, value)| (name.to_string(), to_json(value))).collect(),
        Value::Safe { s, .. } => s.to_string().into(),
        _ => serde_json::Value::Null,
    }
}
