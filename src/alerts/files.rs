//! The files that say what is watched and who is told: read and checked with every error at once.
//!
//! Alertmanager's configuration with its templates, rule files, OpenSLO documents. `godseye check` prints what is
//! wrong, and a server does not start with an error in one. Not here: what they mean, which their crates know.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use alerting::template::Templates;
use slo::openslo::Slo;
use slo::report::Problems;
use slo::rules::file::{Group, Kind};

use crate::config::{self, Severity};

/// Bytes of one file. Ten thousand SLOs in one file are some MiB.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Files of one folder, or of one pattern of templates.
const FILES_MAX: usize = 10_000;

/// One thing that is wrong, as `file:line:column: error: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The line, without a line break.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whom to tell.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Alertmanager's configuration.
    pub config: alerting::config::Config,
    /// Name and text of each file of templates.
    pub templates: Vec<(String, String)>,
}

/// Everything the files say, without an error.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Whom to tell; `None` when nobody is named.
    pub routing: Option<Routing>,
    /// The rules.
    pub groups: Vec<Group>,
    /// The SLOs.
    pub slos: Vec<Slo>,
}

/// Reads the files that a configuration names. What is wrong comes beside; with an error among it nothing may start.
#[must_use]
pub fn read(config: &config::Alerting) -> (Files, Vec<Problem>) {
    let mut found = Findings::default();
    let routing = config.alertmanager_config.as_deref().and_then(|path| routing(path, &mut found));
    let groups = found.rules(&config.rules);
    let slos = found.slos(&config.slos);
    if routing.is_none() && config.alertmanager_config.is_none() && config.is_on() {
        found.warning(
            "warning: nobody is told about alerts: they are evaluated, shown and kept; name receivers with \
             --alertmanager-config FILE"
                .to_owned(),
        );
    }
    (Files { routing, groups, slos }, found.0)
}

/// Reads rule files alone. What is wrong comes beside; with an error among it nothing may be made of them.
#[must_use]
pub fn read_rules(paths: &[PathBuf]) -> (Vec<Group>, Vec<Problem>) {
    let mut found = Findings::default();
    (found.rules(paths), found.0)
}

/// Reads OpenSLO documents alone, as [`read_rules`] reads rules.
#[must_use]
pub fn read_slos(paths: &[PathBuf]) -> (Vec<Slo>, Vec<Problem>) {
    let mut found = Findings::default();
    (found.slos(paths), found.0)
}

/// Whether a query asks for the clock's time: where evaluations are not of now, that is not theirs.
#[must_use]
pub fn asks_the_clock(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    sql.contains("now()") || sql.contains("current_timestamp")
}

/// Whether anything is an error.
#[must_use]
pub fn has_errors(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.severity == Severity::Error)
}

/// Reads Alertmanager's configuration and its templates, to take it while the server runs.
#[must_use]
pub fn read_routing(path: &Path) -> (Option<Routing>, Vec<Problem>) {
    let mut found = Findings::default();
    let routing = routing(path, &mut found);
    (routing, found.0)
}

fn routing(path: &Path, found: &mut Findings) -> Option<Routing> {
    let (name, text) = found.text(path)?;
    let parsed = alerting::config::parse(&text);
    for problem in &parsed.problems {
        let text = format!("{name}:{problem}");
        match problem.severity {
            alerting::config::Severity::Error => found.error(text),
            alerting::config::Severity::Warning => found.warning(text),
        }
    }
    let config = parsed.config?;
    let mut templates = Vec::new();
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    for pattern in &config.templates {
        let whole = folder.join(pattern);
        let paths = match glob::glob(&whole.to_string_lossy()) {
            Ok(paths) => paths.flatten().take(FILES_MAX).collect::<Vec<_>>(),
            Err(error) => {
                found.error(format!("{name}: error: templates: `{pattern}` is no pattern: {error}"));
                continue;
            }
        };
        if paths.is_empty() {
            found.warning(format!("{name}: warning: templates: no file is there for `{pattern}`"));
        }
        templates.extend(paths.iter().filter_map(|path| found.text(path)));
    }
    if let Err(error) = Templates::new(&templates) {
        found.error(format!("{name}: error: templates: {error}"));
        return None;
    }
    Some(Routing { config, templates })
}

fn pairs(files: &[(String, String)]) -> Vec<(&str, &str)> {
    files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
}

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn error(&mut self, text: String) {
        self.0.push(Problem { severity: Severity::Error, text });
    }

    fn warning(&mut self, text: String) {
        self.0.push(Problem { severity: Severity::Warning, text });
    }

    fn of<T>(&mut self, result: Result<T, Problems>) -> Option<T> {
        result
            .map_err(|Problems(problems)| {
                for slo::report::Problem { file, line, column, message, help } in problems {
                    self.error(format!("{file}:{line}:{column}: error: {message}: {help}"));
                }
            })
            .ok()
    }

    /// A file's name as given, and its text.
    fn text(&mut self, path: &Path) -> Option<(String, String)> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            self.error(format!("{name}: error: the file cannot be read: {error}"));
            return None;
        }
        if bytes.len() as u64 > FILE_BYTES_MAX {
            self.error(format!("{name}: error: the file is too large: expected at most {FILE_BYTES_MAX} bytes"));
            return None;
        }
        match String::from_utf8(bytes) {
            Ok(text) => Some((name, text)),
            Err(_) => {
                self.error(format!("{name}: error: the file is not UTF-8 text"));
                None
            }
        }
    }

    fn rules(&mut self, paths: &[PathBuf]) -> Vec<Group> {
        let rules = self.texts(paths);
        let groups = self.of(slo::rules::file::read(&pairs(&rules))).unwrap_or_default();
        for group in &groups {
            for rule in &group.rules {
                let Kind::Alert { annotations, .. } = &rule.kind else { continue };
                for (name, template) in rule.labels.iter().chain(annotations) {
                    if let Err(error) = alerting::template::rule::check(template) {
                        self.error(format!("{}: alert `{}`: `{name}`: {error}", rule.defined_at, rule.name));
                    }
                }
            }
        }
        groups
    }

    fn slos(&mut self, paths: &[PathBuf]) -> Vec<Slo> {
        let paths: Vec<PathBuf> = paths.iter().flat_map(|path| self.documents(path)).collect();
        let documents = self.texts(&paths);
        self.of(slo::openslo::read(&pairs(&documents))).map(|documents| documents.slos).unwrap_or_default()
    }

    fn texts(&mut self, paths: &[PathBuf]) -> Vec<(String, String)> {
        paths.iter().filter_map(|path| self.text(path)).collect()
    }

    /// A file as it is; of a folder the files with documents, in the order of their names.
    fn documents(&mut self, path: &Path) -> Vec<PathBuf> {
        if !path.is_dir() {
            return vec![path.to_owned()];
        }
        let name = path.display();
        let listed = std::fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut paths: Vec<PathBuf> = match listed {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
            Err(error) => {
                self.error(format!("{name}: error: the folder cannot be read: {error}"));
                return Vec::new();
            }
        };
        let is_yaml = |path: &PathBuf| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        paths.retain(|path| is_yaml(path) && path.is_file());
        paths.sort();
        if paths.is_empty() {
            self.warning(format!("{name}: warning: no .yaml or .yml file is in this folder"));
        }
        if paths.len() > FILES_MAX {
            self.error(format!("{name}: error: more than {FILES_MAX} files are in this folder"));
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_problem_has_its_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let good = "route: {receiver: a}\nreceivers: [{name: a}]\ntemplates: ['*.tmpl']\n";
        let rule = |expr: &str, summary: &str| {
            format!(
                "groups:\n- name: g\n  rules:\n  - alert: A\n    {expr}\n    annotations: {{summary: '{summary}'}}\n"
            )
        };
        let sql = "expr_sql: SELECT 1 AS value";
        type Row<'a> = (&'a str, Option<&'a str>, Option<String>, &'a [&'a str]);
        let rows: [Row<'_>; 5] = [
            ("good", Some(good), Some(rule(sql, "{{ $value }}")), &["no file is there for `*.tmpl`"]),
            ("no receiver", Some("route: {receiver: b}\nreceivers: [{name: a}]\n"), None, &["am.yml:1:"]),
            ("PromQL", Some(good), Some(rule("expr: up", "x")), &["r.yml:5:", "PromQL"]),
            ("template", Some(good), Some(rule(sql, "{{ $value")), &["r.yml:4", "`summary`"]),
            ("nobody", None, Some(rule(sql, "x")), &["nobody is told"]),
        ];
        for (what, routing, rules, want) in rows {
            let mut config = Config::default().alerting;
            config.alertmanager_config = routing.map(|text| write("am.yml", text));
            config.rules = rules.iter().map(|text| write("r.yml", text)).collect();
            let (_, problems) = read(&config);
            let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let text = text.join("\n");
            assert!(want.iter().all(|part| text.contains(part)), "{what}: {text}");
            assert_eq!(has_errors(&problems), !matches!(what, "good" | "nobody"), "{what}: {text}");
        }
        let mut config = Config::default().alerting;
        config.slos = vec![folder.path().join("missing.yaml"), folder.path().to_owned()];
        let (files, problems) = read(&config);
        assert!(files.slos.is_empty() && problems[0].text.contains("missing.yaml: error: the file cannot be read"));
    }
}
