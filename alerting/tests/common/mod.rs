//! Scripts of alerts as data: a configuration, what is posted when, and what receivers are told.
//!
//! The same scripts run on a virtual clock against the expectation they hold (`scripts.rs`), and in real
//! time against Alertmanager itself (`alertmanager.rs`).
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod debian;
pub(crate) mod running;

use std::collections::BTreeMap;
use std::path::Path;

use alerting::labels::LabelSet;

/// One script.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) name: String,
    /// Alertmanager's configuration without `receivers`.
    pub(crate) config: String,
    /// Receivers, and what their webhook says besides the address.
    pub(crate) receivers: Vec<(String, String)>,
    pub(crate) steps: Vec<Step>,
    pub(crate) want: Vec<String>,
    /// Seconds from the start to the end.
    pub(crate) end: f64,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Seconds from the start.
    pub(crate) at: f64,
    pub(crate) action: Action,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Labels, and since how many seconds it fires.
    Fire(LabelSet, f64),
    Resolve(LabelSet),
    /// A name, matchers, and how many seconds it holds.
    Silence(String, String, f64),
    Expire(String),
}

fn labels(words: &[&str]) -> LabelSet {
    words.iter().filter_map(|word| word.split_once('=')).collect()
}

fn step(line: &str) -> Step {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{word:?} is no number: {line}"));
    let since = |words: &[&str]| words.iter().find_map(|word| word.strip_prefix("since:")).map_or(0.0, number);
    let action = match words[1] {
        "fire" => Action::Fire(labels(&words[2..]), since(&words)),
        "resolve" => Action::Resolve(labels(&words[2..])),
        "silence" => Action::Silence(words[2].to_owned(), words[3].to_owned(), number(words[4])),
        "expire" => Action::Expire(words[2].to_owned()),
        other => panic!("{other:?} is no action: {line}"),
    };
    Step { at: number(words[0]), action }
}

/// Reads every script of the folder.
pub(crate) fn all() -> Vec<Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut scripts: Vec<Script> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for part in text.split("\n=== ").skip(1) {
            let (name, body) = part.split_once('\n').unwrap();
            let mut script = Script { name: name.trim().to_owned(), end: 6.0, ..Script::default() };
            let mut section = "";
            for line in body.lines() {
                match line {
                    "config:" | "receivers:" | "steps:" | "want:" => section = line,
                    _ if line.trim().is_empty() => {}
                    _ if section == "config:" => script.config.push_str(&format!("{}\n", &line[2..])),
                    _ if section == "receivers:" => {
                        let (name, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
                        script.receivers.push((name.to_owned(), rest.to_owned()));
                    }
                    _ if section == "steps:" && line.trim().starts_with("end ") => {
                        script.end = line.trim()[4..].trim().parse().unwrap();
                    }
                    _ if section == "steps:" => script.steps.push(step(line)),
                    _ => script.want.push(line.trim().to_owned()),
                }
            }
            if script.receivers.is_empty() {
                script.receivers.push(("r".to_owned(), String::new()));
            }
            scripts.push(script);
        }
    }
    let mut names = BTreeMap::new();
    for script in &scripts {
        assert!(names.insert(script.name.clone(), ()).is_none(), "two scripts of the name {}", script.name);
    }
    scripts
}

impl Script {
    /// The whole configuration, with receivers that post to `base`.
    pub(crate) fn full_config(&self, base: &str) -> String {
        let mut text = self.config.clone();
        text.push_str("receivers:\n");
        for (name, options) in &self.receivers {
            text.push_str(&format!("- name: {name}\n  webhook_configs: [{{url: '{base}/{name}'"));
            if !options.is_empty() {
                text.push_str(&format!(", {options}"));
            }
            text.push_str("}]\n");
        }
        text
    }
}

/// One message in a line: receiver, status, group key, alerts as `alertname` and what else differs.
pub(crate) fn line(receiver: &str, payload: &serde_json::Value) -> String {
    let alerts: Vec<String> = payload["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|alert| {
            let labels: LabelSet = serde_json::from_value(alert["labels"].clone()).unwrap();
            let values: Vec<&str> = labels.iter().map(|(_, value)| value).collect();
            format!("{}:{}", values.join("/"), alert["status"].as_str().unwrap())
        })
        .collect();
    let truncated = match payload["truncatedAlerts"].as_u64() {
        Some(0) | None => String::new(),
        Some(count) => format!(" +{count}"),
    };
    let status = payload["status"].as_str().unwrap();
    format!("{receiver} {status} {} {}{truncated}", payload["groupKey"].as_str().unwrap(), alerts.join(" "))
}
