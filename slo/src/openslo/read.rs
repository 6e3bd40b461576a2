//! OpenSLO documents from YAML to [`Documents`]: first every document by kind and name, then every SLO
//! with what it refers to.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Alerts, Condition, Documents, Method, NotificationTarget, Objective, Policy, Service, Share, Slice, Slo};
use crate::counts::{BUCKET_MS, SLICES_MAX};
use crate::document::{Fields, Node, Value, parse, text_of};
use crate::duration::Shorthand;
use crate::filter::Op;
use crate::report::{Findings, Place, Problems, one_of, quote, suggestion};
use crate::sli::{Indicator, Part, Source, Term, ratio};
use crate::window::Window;

/// The version that is read.
const API_VERSION: &str = "openslo/v1";

/// The type of our own metric sources and data sources.
const SOURCE_TYPE: &str = "godseye";

/// Characters of a description, by the specification.
const DESCRIPTION_CHARS_MAX: usize = 1050;

/// Characters of a name that implementations are encouraged to take.
const NAME_CHARS_MAX: usize = 255;

/// Objectives of one SLO.
const OBJECTIVES_MAX: usize = 64;

/// Annotations of ours begin so.
const PREFIX: &str = "godseye/";

/// What an SLO without `timeWindow` has: the period of the SRE Workbook's examples.
const DEFAULT_WINDOW: &str = "30d";

const KINDS: [&str; 7] =
    ["SLO", "SLI", "Service", "DataSource", "AlertPolicy", "AlertCondition", "AlertNotificationTarget"];

/// Reads OpenSLO documents from files, given as name and text. References may cross files.
///
/// # Errors
/// Everything that is wrong, with file, line and what to do.
pub fn read(files: &[(&str, &str)]) -> Result<Documents, Problems> {
    let mut findings = Findings::default();
    let parsed: Vec<Vec<Node>> =
        files.iter().enumerate().map(|(index, (_, text))| parse(index, text, &mut findings)).collect();
    let mut set = Set::default();
    for node in parsed.iter().flatten() {
        set.add(node, &mut findings);
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let documents = set.resolve(&names, &mut findings);
    findings.finish(&names, documents)
}

/// A document's head, and its body unread.
struct Head<'a> {
    at: Place,
    metadata: Metadata,
    spec: &'a Node,
}

#[derive(Default)]
struct Metadata {
    name: String,
    title: String,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String, Place)>,
}

impl Metadata {
    fn plain_annotations(&self) -> Vec<(String, String)> {
        self.annotations.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect()
    }

    /// The value of one of our annotations, and findings for any of ours that is not known here.
    fn own(&self, known: &[&str], findings: &mut Findings) -> BTreeMap<String, (String, Place)> {
        let mut found = BTreeMap::new();
        for (key, value, at) in &self.annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if known.contains(&name) {
                found.insert(name.to_owned(), (value.clone(), *at));
            } else {
                let keys: Vec<String> = known.iter().map(|name| format!("{PREFIX}{name}")).collect();
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                let help = match &keys[..] {
                    [] => "remove it: there are none for this kind".to_owned(),
                    keys => format!("write {}{}", one_of(keys), suggestion(key, keys)),
                };
                findings.add(*at, format!("the annotation {} means nothing here", quote(key)), help);
            }
        }
        found
    }
}

/// What people have to know about an SLO's alerts and its service says: who owns it, and where to read on. The label
/// `owner` is the SLO's own, or else its annotation, or the service's label or annotation, or the same of `team`.
fn inherit(slo: &mut Slo, service: Option<&Service>) {
    let named = |pairs: &[(String, String)], wanted: &str| {
        // Annotations may have a prefix, such as example.com/owner.
        let found = pairs.iter().find(|(name, _)| name.rsplit('/').next() == Some(wanted));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let nothing: &[(String, String)] = &[];
    let (labels, annotations) =
        service.map_or((nothing, nothing), |service| (&service.labels[..], &service.annotations[..]));
    if named(&slo.labels, "owner").is_none() {
        let owner = ["owner", "team"].into_iter().find_map(|wanted| {
            [&slo.labels[..], &slo.annotations, labels, annotations].iter().find_map(|pairs| named(pairs, wanted))
        });
        slo.labels.extend(owner.map(|owner| ("owner".to_owned(), owner)));
    }
    for wanted in ["runbook_url", "dashboard_url"] {
        if named(&slo.annotations, wanted).is_none() {
            slo.annotations.extend(named(annotations, wanted).map(|url| (wanted.to_owned(), url)));
        }
    }
}

#[derive(Default)]
struct Set<'a> {
    by_kind: BTreeMap<&'static str, BTreeMap<String, Head<'a>>>,
}

/// An SLI's metric, before objectives give it thresholds.
enum Metric {
    Ready(Indicator),
    Threshold(Source),
}

impl<'a> Set<'a> {
    fn add(&mut self, node: &'a Node, findings: &mut Findings) {
        let Some(mut fields) = Fields::new("the document", node, findings) else { return };
        let version = fields.required_text("apiVersion", "write `apiVersion: openslo/v1`", findings);
        if let Some((at, version)) = version
            && version != API_VERSION
        {
            findings.add(
                at,
                format!("`apiVersion` is {}", quote(version)),
                "write openslo/v1: this is the version that is read",
            );
        }
        let help = format!("write `kind:` and {}", one_of(&KINDS));
        let kind = fields.required("kind", &help, findings).and_then(|_| fields.choice("kind", &KINDS, findings));
        let owner = kind.map_or("the document", |kind| KINDS[kind]);
        owner.clone_into(&mut fields.owner);
        let metadata = fields
            .required("metadata", "write `metadata:` with a `name`", findings)
            .and_then(|node| metadata(owner, node, findings));
        let spec = fields.required("spec", "write what it says under `spec:`", findings);
        fields.finish(findings);
        let (Some(kind), Some(metadata), Some(spec)) = (kind, metadata, spec) else { return };
        let documents = self.by_kind.entry(KINDS[kind]).or_default();
        if let Some(first) = documents.get(&metadata.name) {
            let help = format!("rename one of them: the first is on line {}", first.at.line);
            findings.add(node.at, format!("a second {} {}", KINDS[kind], quote(&metadata.name)), help);
            return;
        }
        documents.insert(metadata.name.clone(), Head { at: node.at, metadata, spec });
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Head<'a>> {
        self.by_kind.get(kind).into_iter().flat_map(BTreeMap::values)
    }

    /// The document a reference names, and a finding when there is none.
    fn refer(&self, kind: &'static str, at: Place, name: &str, findings: &mut Findings) -> Option<&Head<'a>> {
        let documents = self.by_kind.get(kind);
        let found = documents.and_then(|documents| documents.get(name));
        if found.is_none() {
            let names: Vec<&str> = documents.into_iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
            let help = format!("add a document of kind {kind} with this name{}", suggestion(name, &names));
            findings.add(at, format!("there is no {kind} {}", quote(name)), help);
        }
        found
    }

    fn resolve(&self, files: &[&str], findings: &mut Findings) -> Documents {
        let mut documents = Documents::default();
        for head in self.of("Service") {
            let owner = format!("Service {}", quote(&head.metadata.name));
            let Some(mut fields) = Fields::new(&owner, head.spec, findings) else { continue };
            let description = description(&mut fields, findings);
            fields.finish(findings);
            head.metadata.own(&[], findings);
            let Metadata { name, title, labels, .. } = &head.metadata;
            documents.services.push(Service {
                name: name.clone(),
                title: title.clone(),
                description,
                labels: labels.clone(),
                annotations: head.metadata.plain_annotations(),
            });
        }
        for head in self.of("DataSource") {
            let owner = format!("DataSource {}", quote(&head.metadata.name));
            let Some(mut fields) = Fields::new(&owner, head.spec, findings) else { continue };
            description(&mut fields, findings);
            fields.required_text("type", "write `type: godseye`, or the type of another system", findings);
            // Anything that is YAML.
            fields.node("connectionDetails");
            fields.finish(findings);
        }
        for head in self.of("AlertNotificationTarget") {
            let owner = format!("AlertNotificationTarget {}", quote(&head.metadata.name));
            documents.targets.extend(target(&owner, &head.metadata.name, head.spec, findings));
        }
        for head in self.of("AlertCondition") {
            self.condition(head.spec, &head.metadata, findings);
        }
        for head in self.of("AlertPolicy") {
            self.policy(head.spec, &head.metadata, findings);
        }
        for head in self.of("SLI") {
            self.metric(&format!("SLI {}", quote(&head.metadata.name)), head.spec, findings);
            head.metadata.own(&[], findings);
        }
        for head in self.of("SLO") {
            let at = format!("{}:{}", files.get(head.at.file).copied().unwrap_or_default(), head.at.line);
            if let Some(mut slo) = self.slo(head, at, findings) {
                let service = documents.services.iter().find(|service| service.name == slo.service);
                inherit(&mut slo, service);
                documents.slos.push(slo);
            }
        }
        documents
    }

    fn slo(&self, head: &Head<'a>, defined_at: String, findings: &mut Findings) -> Option<Slo> {
        let owner = format!("SLO {}", quote(&head.metadata.name));
        let before = findings.len();
        let mut fields = Fields::new(&owner, head.spec, findings)?;
        let description = description(&mut fields, findings);
        let service = fields.required_text("service", "write the service that it belongs to", findings);
        let indicator = self.indicator(&owner, &mut fields, findings);
        let window = window(&owner, &mut fields, findings);
        let methods = ["Occurrences", "Timeslices", "RatioTimeslices"];
        let method = fields
            .required("budgetingMethod", &format!("write {}", one_of(&methods)), findings)
            .and_then(|_| fields.choice("budgetingMethod", &methods, findings))
            .map(|index| [Method::Occurrences, Method::Timeslices, Method::RatioTimeslices][index]);
        fields.required("objectives", "write a list with at least one `target`", findings);
        let (objectives_at, nodes) = fields.list("objectives", findings).unwrap_or((head.at, &[]));
        let policies = fields.list("alertPolicies", findings);
        fields.finish(findings);
        if nodes.len() > OBJECTIVES_MAX {
            findings.add(
                objectives_at,
                format!("{} objectives", nodes.len()),
                format!("write at most {OBJECTIVES_MAX}"),
            );
            return None;
        }
        if nodes.is_empty() && findings.len() == before {
            findings.add(objectives_at, format!("{owner} has no objective"), "write at least one `target`");
        }
        let mut objectives = Vec::new();
        let mut own_indicators = 0;
        for (index, node) in nodes.iter().enumerate() {
            let owner = format!("objective {} of {owner}", index + 1);
            let Some(mut fields) = Fields::new(&owner, node, findings) else { continue };
            let own = self.indicator(&owner, &mut fields, findings);
            own_indicators += usize::from(own.is_some());
            let metric = match (&own, &indicator) {
                (Some(Ok(own)), None) => Some(own),
                (Some(Ok(_)), Some(_)) => {
                    findings.add(
                        node.at,
                        format!("{owner} has an indicator, and the SLO has one, too"),
                        "write either one indicator for all objectives or one for each",
                    );
                    None
                }
                (None, Some(Ok(shared))) => Some(shared),
                (None, None) => {
                    findings.add(
                        node.at,
                        format!("{owner} has no indicator"),
                        "write `indicator` or `indicatorRef`, in the SLO's spec or in each objective",
                    );
                    None
                }
                // What is wrong with it has been said.
                (Some(Err(())), _) | (None, Some(Err(()))) => None,
            };
            objectives.extend(objective(&owner, index, fields, metric, method, window.as_ref(), findings));
        }
        let alerts = self.alerts(&head.metadata, policies, findings);
        let (Some((_, service)), Some(window), Some(method), Some(alerts)) = (service, window, method, alerts) else {
            return None;
        };
        let Metadata { name, title, labels, .. } = &head.metadata;
        (findings.len() == before).then(|| Slo {
            name: name.clone(),
            title: title.clone(),
            description,
            service: service.to_owned(),
            labels: labels.clone(),
            annotations: head.metadata.plain_annotations(),
            window,
            method,
            objectives,
            composite: own_indicators > 0,
            alerts,
            defined_at,
        })
    }

    fn alerts(
        &self,
        metadata: &Metadata,
        policies: Option<(Place, &'a [Node])>,
        findings: &mut Findings,
    ) -> Option<Alerts> {
        let own = metadata.own(&["alerts"], findings);
        let policies = policies.map(|(_, nodes)| nodes).unwrap_or_default();
        if let Some((value, at)) = own.get("alerts") {
            match (value.as_str(), policies.is_empty()) {
                ("none", true) => return Some(Alerts::None),
                ("table", true) => return Some(Alerts::Table),
                ("none" | "table", false) => {
                    findings.add(*at, format!("`{PREFIX}alerts` beside `alertPolicies`"), "remove one of them");
                }
                _ => findings.add(*at, format!("`{PREFIX}alerts` is {}", quote(value)), "write table or none"),
            }
            return None;
        }
        if policies.is_empty() {
            return Some(Alerts::Table);
        }
        let mut found = Vec::new();
        for node in policies {
            let Some(mut fields) = Fields::new("the alert policy", node, findings) else { continue };
            if let Some((at, name)) = fields.text("alertPolicyRef", findings) {
                fields.finish(findings);
                if let Some(head) = self.refer("AlertPolicy", at, name, findings) {
                    found.extend(self.policy(head.spec, &head.metadata, findings));
                }
                continue;
            }
            if let Some((metadata, spec)) = inline(&mut fields, "AlertPolicy", findings) {
                found.extend(self.policy(spec, &metadata, findings));
            }
            fields.finish(findings);
        }
        Some(Alerts::Policies(found))
    }

    fn policy(&self, spec: &'a Node, metadata: &Metadata, findings: &mut Findings) -> Option<Policy> {
        let owner = format!("AlertPolicy {}", quote(&metadata.name));
        let mut fields = Fields::new(&owner, spec, findings)?;
        metadata.own(&[], findings);
        description(&mut fields, findings);
        let when_no_data = fields.flag("alertWhenNoData", findings).unwrap_or(false);
        let when_resolved = fields.flag("alertWhenResolved", findings).unwrap_or(true);
        let when_breaching = fields.flag("alertWhenBreaching", findings).unwrap_or(true);
        if !when_no_data && !when_breaching {
            findings.add(
                fields.at,
                format!("{owner} never alerts"),
                "set alertWhenBreaching or alertWhenNoData to true",
            );
        }
        fields.required("conditions", "write a list of one condition", findings);
        let conditions = fields.list("conditions", findings);
        fields.required("notificationTargets", "write a list of targets; it may be empty: []", findings);
        let targets = fields.list("notificationTargets", findings);
        fields.finish(findings);
        let condition = match conditions {
            Some((_, [node])) => {
                let mut fields = Fields::new("the alert condition", node, findings)?;
                let found = if let Some((at, name)) = fields.text("conditionRef", findings) {
                    self.refer("AlertCondition", at, name, findings)
                        .and_then(|head| self.condition(head.spec, &head.metadata, findings))
                } else {
                    inline(&mut fields, "AlertCondition", findings)
                        .and_then(|(metadata, spec)| self.condition(spec, &metadata, findings))
                };
                fields.finish(findings);
                found
            }
            Some((at, nodes)) => {
                let help = "write exactly one; a second window is the annotation godseye/short-window of its condition";
                findings.add(at, format!("{owner} has {} conditions", nodes.len()), help);
                None
            }
            None => None,
        };
        let mut found = Vec::new();
        for node in targets.map(|(_, nodes)| nodes).unwrap_or_default() {
            let Some(mut fields) = Fields::new("the notification target", node, findings) else { continue };
            if let Some((at, name)) = fields.text("targetRef", findings) {
                let head = self.refer("AlertNotificationTarget", at, name, findings);
                found.extend(head.and_then(|head| target(name, &head.metadata.name, head.spec, findings)));
            } else if let Some((metadata, spec)) = inline(&mut fields, "AlertNotificationTarget", findings) {
                found.extend(target(&metadata.name, &metadata.name, spec, findings));
            }
            fields.finish(findings);
        }
        let Metadata { name, title, .. } = metadata;
        Some(Policy {
            name: name.clone(),
            title: title.clone(),
            when_breaching,
            when_resolved,
            when_no_data,
            condition: condition?,
            targets: found,
        })
    }

    fn condition(&self, spec: &Node, metadata: &Metadata, findings: &mut Findings) -> Option<Condition> {
        let owner = format!("AlertCondition {}", quote(&metadata.name));
        let before = findings.len();
        let mut fields = Fields::new(&owner, spec, findings)?;
        description(&mut fields, findings);
        let severity = fields.required_text("severity", "write a severity such as critical", findings);
        let condition = fields.required("condition", "write `kind: burnrate` and its windows", findings);
        fields.finish(findings);
        let own = metadata.own(&["short-window", "min-bad-events"], findings);
        let condition_owner = format!("the condition of {owner}");
        let mut fields = Fields::new(&condition_owner, condition?, findings)?;
        fields.choice("kind", &["burnrate"], findings);
        let op = fields.choice("op", &["gt", "gte"], findings);
        fields.required("threshold", "write the burn rate to alert on, such as 14.4", findings);
        let threshold = fields.number("threshold", findings);
        fields.required("lookbackWindow", "write a duration such as 1h", findings);
        let long = fixed(&mut fields, "lookbackWindow", findings);
        let after = fixed(&mut fields, "alertAfter", findings);
        fields.finish(findings);
        let threshold_milli = threshold.and_then(|(at, threshold)| {
            let milli = (threshold * 1e3).round();
            if !(1.0..=1e9).contains(&milli) {
                findings.add(at, format!("`threshold` is {threshold}"), "write a burn rate from 0.001 to 1000000");
                return None;
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
            Some(milli as u64)
        });
        if let Some((at, 0)) = long {
            findings.add(at, "`lookbackWindow` is empty", "write a duration such as 1h");
        }
        let short_ms = own.get("short-window").and_then(|(text, at)| {
            let short = Shorthand::parse(text).and_then(Shorthand::fixed_ms).filter(|ms| *ms > 0);
            match (short, long) {
                (None, _) => findings.add(
                    *at,
                    format!("`{PREFIX}short-window` is {}", quote(text)),
                    "write a duration such as 5m",
                ),
                (Some(short), Some((_, long))) if short >= long => {
                    findings.add(
                        *at,
                        format!("`{PREFIX}short-window` is not shorter than the lookbackWindow"),
                        "write about a twelfth of the lookbackWindow",
                    );
                }
                _ => {}
            }
            short
        });
        let min_bad_events = own.get("min-bad-events").and_then(|(text, at)| {
            text.parse()
                .map_err(|_| {
                    findings.add(*at, format!("`{PREFIX}min-bad-events` is {}", quote(text)), "write a whole number")
                })
                .ok()
        });
        (findings.len() == before).then_some(())?;
        Some(Condition {
            name: metadata.name.clone(),
            severity: severity?.1.to_owned(),
            threshold_milli: threshold_milli?,
            or_equal: op == Some(1),
            long_ms: long?.1,
            short_ms,
            after_ms: after.map_or(0, |(_, ms)| ms),
            min_bad_events,
        })
    }

    /// `indicator` or `indicatorRef` of an SLO or an objective; `None` when there is neither, `Err` when
    /// it is wrong, which has been said.
    fn indicator(&self, owner: &str, fields: &mut Fields<'a>, findings: &mut Findings) -> Option<Result<Metric, ()>> {
        let inline = fields.node("indicator");
        let by_name = fields.text("indicatorRef", findings);
        match (inline, by_name) {
            (None, None) => None,
            (Some(node), Some(_)) => {
                findings.add(node.at, format!("{owner} has `indicator` and `indicatorRef`"), "remove one of them");
                Some(Err(()))
            }
            (Some(node), None) => {
                let found = Fields::new("the indicator", node, findings).and_then(|mut fields| {
                    let metadata = fields.node("metadata").and_then(|node| metadata("SLI", node, findings));
                    let spec = fields.required("spec", "write the metric under `spec:`", findings);
                    fields.finish(findings);
                    let name = metadata.map(|metadata| metadata.name).unwrap_or_default();
                    self.metric(&format!("SLI {}", quote(&name)), spec?, findings)
                });
                Some(found.ok_or(()))
            }
            (None, Some((at, name))) => {
                let head = self.refer("SLI", at, name, findings);
                let owner = format!("SLI {}", quote(name));
                Some(head.and_then(|head| self.metric(&owner, head.spec, findings)).ok_or(()))
            }
        }
    }

    fn metric(&self, owner: &str, spec: &'a Node, findings: &mut Findings) -> Option<Metric> {
        let mut fields = Fields::new(owner, spec, findings)?;
        description(&mut fields, findings);
        let threshold = fields.node("thresholdMetric");
        let ratio_node = fields.node("ratioMetric");
        fields.finish(findings);
        match (threshold, ratio_node) {
            (Some(node), None) => {
                self.source(&format!("thresholdMetric of {owner}"), node, findings).map(Metric::Threshold)
            }
            (None, Some(node)) => self.ratio(owner, node, findings).map(Metric::Ready),
            (Some(_), Some(node)) => {
                findings.add(node.at, format!("{owner} has `thresholdMetric` and `ratioMetric`"), "remove one of them");
                None
            }
            (None, None) => {
                findings.add(spec.at, format!("{owner} has no metric"), "write `ratioMetric` or `thresholdMetric`");
                None
            }
        }
    }

    fn ratio(&self, owner: &str, node: &'a Node, findings: &mut Findings) -> Option<Indicator> {
        let owner = format!("ratioMetric of {owner}");
        let mut fields = Fields::new(&owner, node, findings)?;
        let counter = fields.flag("counter", findings).unwrap_or(false);
        let raw = fields.node("raw");
        let raw_type = fields.choice("rawType", &["success", "failure"], findings);
        let [good, bad, total] = ["good", "bad", "total"].map(|name| {
            let node = fields.node(name)?;
            Some((node.at, self.source(&format!("`{name}` of {owner}"), node, findings)))
        });
        fields.finish(findings);
        if let Some(node) = raw {
            if good.is_some() || bad.is_some() || total.is_some() {
                findings.add(node.at, format!("{owner} has `raw` beside good, bad or total"), "remove one of them");
                return None;
            }
            let source = self.source(&format!("`raw` of {owner}"), node, findings);
            let Some(raw_type) = raw_type else {
                findings.add(
                    node.at,
                    format!("{owner} has no `rawType`"),
                    "write success (good/total) or failure (bad/total)",
                );
                return None;
            };
            return source?.raw(if raw_type == 0 { Part::Good } else { Part::Bad }, findings);
        }
        let (part, numerator) = match (good, bad) {
            (Some(good), None) => (Part::Good, good),
            (None, Some(bad)) => (Part::Bad, bad),
            (Some(_), Some((at, _))) => {
                findings.add(
                    at,
                    format!("{owner} has `good` and `bad`"),
                    "remove one of them: the total tells the other",
                );
                return None;
            }
            (None, None) => {
                findings.add(
                    node.at,
                    format!("{owner} has neither `good` nor `bad` nor `raw`"),
                    "write `good` or `bad`, and `total`",
                );
                return None;
            }
        };
        let Some((_, total)) = total else {
            findings.add(node.at, format!("{owner} has no `total`"), "write which rows are all events");
            return None;
        };
        let (numerator, total) = (numerator.1?.counted(counter), total?.counted(counter));
        if matches!(numerator, Term::Sql { .. }) != matches!(total, Term::Sql { .. }) {
            findings.add(
                node.at,
                format!("{owner} is half a SQL query and half a table"),
                "write both as queries or both as tables",
            );
            return None;
        }
        Some(ratio(part, numerator, total))
    }

    /// Reads `metricSource`.
    fn source(&self, owner: &str, node: &'a Node, findings: &mut Findings) -> Option<Source> {
        let mut fields = Fields::new(owner, node, findings)?;
        let source =
            fields.required("metricSource", "write `metricSource:` with `type: godseye` and a `spec`", findings);
        fields.finish(findings);
        let owner = format!("the metricSource of {owner}");
        let mut fields = Fields::new(&owner, source?, findings)?;
        let by_name = fields.text("metricSourceRef", findings);
        let own_type = fields.text("type", findings);
        let spec = fields.required("spec", "write which rows are counted", findings);
        fields.finish(findings);
        let mut source_type = own_type.map(|(at, name)| (at, name.to_owned()));
        if let Some((at, name)) = by_name {
            let head = self.refer("DataSource", at, name, findings)?;
            let found = match &head.spec.value {
                Value::Map(entries) => entries.iter().find(|(key, _)| key.text == "type"),
                _ => None,
            };
            let referred = found.and_then(|(_, node)| match &node.value {
                Value::Scalar(scalar) => Some(scalar.text.clone()),
                _ => None,
            });
            match (&source_type, referred) {
                (Some((at, own)), Some(referred)) if !own.eq_ignore_ascii_case(&referred) => {
                    let help = format!("write {referred}, or leave `type` out");
                    findings.add(*at, format!("`type` is not that of DataSource {}", quote(name)), help);
                    return None;
                }
                (None, Some(referred)) => source_type = Some((at, referred)),
                _ => {}
            }
        }
        if let Some((at, name)) = &source_type
            && !name.eq_ignore_ascii_case(SOURCE_TYPE)
        {
            let help = "this server counts its own telemetry: write `type: godseye` and a `spec` with table and where";
            findings.add(*at, format!("the source type {} is not read", quote(name)), help);
            return None;
        }
        Source::read(&format!("the spec of {owner}"), spec?, findings)
    }
}

/// A document inside another: `kind` (which may be left out), `metadata` and `spec`.
fn inline<'a>(fields: &mut Fields<'a>, kind: &'static str, findings: &mut Findings) -> Option<(Metadata, &'a Node)> {
    fields.choice("kind", &[kind], findings);
    fields.text("apiVersion", findings);
    let metadata = fields
        .required("metadata", "write `metadata:` with a `name`", findings)
        .and_then(|node| metadata(kind, node, findings));
    let spec = fields.required("spec", "write what it says under `spec:`", findings);
    Some((metadata?, spec?))
}

fn metadata(kind: &str, node: &Node, findings: &mut Findings) -> Option<Metadata> {
    let mut fields = Fields::new(&format!("the metadata of {kind}"), node, findings)?;
    let name = fields.required_text("name", "write a name of a-z, 0-9 and -", findings);
    let title = fields.text("displayName", findings);
    let mut found = Metadata::default();
    if let Some(node) = fields.node("labels") {
        match &node.value {
            Value::Map(entries) => {
                for (key, value) in entries {
                    check_key(&key.text, key.at, false, findings);
                    let values = match &value.value {
                        Value::List(items) => &items[..],
                        _ => std::slice::from_ref(value),
                    };
                    for value in values {
                        if let Some((_, text)) = text_of(&key.text, value, findings) {
                            found.labels.push((key.text.clone(), text.to_owned()));
                        }
                    }
                }
            }
            _ => findings.add(node.at, format!("`labels` is {}", node.noun()), "write a mapping of names to texts"),
        }
    }
    for (key, value) in fields.texts("annotations", findings) {
        check_key(&key.text, key.at, true, findings);
        found.annotations.push((key.text.clone(), value.to_owned(), key.at));
    }
    fields.finish(findings);
    let (at, name) = name?;
    let valid = |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '|' | '/' | '\\');
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(valid) {
        let help = format!("write 1 to {NAME_CHARS_MAX} of a-z, 0-9, - _ . | / and \\");
        findings.add(at, format!("the name {} is not valid", quote(name)), help);
        return None;
    }
    name.clone_into(&mut found.name);
    found.title = title.map_or(name, |(_, title)| title).to_owned();
    Some(found)
}

/// Checks the key of a label or annotation by the specification's rule.
fn check_key(key: &str, at: Place, is_annotation: bool, findings: &mut Findings) {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) if is_annotation => (Some(prefix), name),
        _ => (None, key),
    };
    let word = |text: &str, max: usize| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= max && text.chars().all(inner) && ends(text.chars().next()) && ends(text.chars().last())
    };
    if !word(name, 63) || prefix.is_some_and(|prefix| !word(prefix, 253)) {
        let help = "write at most 63 of a-z, A-Z, 0-9, - _ and ., beginning and ending with a letter or digit";
        findings.add(at, format!("the key {} is not valid", quote(key)), help);
    }
}

fn description(fields: &mut Fields<'_>, findings: &mut Findings) -> String {
    let Some((at, text)) = fields.text("description", findings) else { return String::new() };
    let characters = text.chars().count();
    if characters > DESCRIPTION_CHARS_MAX {
        let help = format!("write at most {DESCRIPTION_CHARS_MAX}");
        findings.add(at, format!("the description has {characters} characters"), help);
    }
    text.to_owned()
}

fn target(owner: &str, name: &str, spec: &Node, findings: &mut Findings) -> Option<NotificationTarget> {
    let mut fields = Fields::new(owner, spec, findings)?;
    let description = description(&mut fields, findings);
    let target = fields.required_text("target", "write where it goes, such as slack or email", findings);
    fields.finish(findings);
    Some(NotificationTarget { name: name.to_owned(), target: target?.1.to_owned(), description })
}

/// A duration that does not depend on a calendar, in milliseconds.
fn fixed(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Option<(Place, i64)> {
    let (at, text) = fields.text(name, findings)?;
    let ms = Shorthand::parse(text).and_then(Shorthand::fixed_ms);
    if ms.is_none() {
        findings.add(at, format!("`{name}` is {}", quote(text)), "write a number and m, h, d or w, such as 5m");
    }
    Some((at, ms?))
}

fn window(owner: &str, fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Window> {
    let Some((at, nodes)) = fields.list("timeWindow", findings) else {
        return Shorthand::parse(DEFAULT_WINDOW).and_then(Window::rolling);
    };
    let [node] = nodes else {
        findings.add(at, format!("`timeWindow` of {owner} has {} items", nodes.len()), "write exactly one");
        return None;
    };
    let window_owner = format!("the timeWindow of {owner}");
    let mut fields = Fields::new(&window_owner, node, findings)?;
    let duration = fields.required_text("duration", "write a duration such as 28d or 1M", findings);
    let rolling = fields.flag("isRolling", findings);
    let calendar = fields.node("calendar");
    fields.finish(findings);
    let (duration_at, text) = duration?;
    let Some(duration) = Shorthand::parse(text) else {
        findings.add(
            duration_at,
            format!("`duration` is {}", quote(text)),
            "write a number and m, h, d, w, M, Q or Y, such as 28d",
        );
        return None;
    };
    let window = match (rolling, calendar) {
        (Some(true), None) => Window::rolling(duration),
        (Some(true), Some(calendar)) => {
            findings.add(calendar.at, "a `calendar` in a window that rolls", "remove it, or write `isRolling: false`");
            return None;
        }
        (_, None) => {
            findings.add(
                node.at,
                format!("{window_owner} neither rolls nor has a calendar"),
                "write `isRolling: true`, or a `calendar` with startTime and timeZone",
            );
            return None;
        }
        (_, Some(calendar)) => {
            let mut fields = Fields::new("the calendar", calendar, findings)?;
            let start = fields.required_text("startTime", "write one as 2026-01-01 00:00:00", findings);
            let zone = fields.required_text("timeZone", "write an IANA name such as Europe/Berlin", findings);
            fields.finish(findings);
            let start = start.and_then(|(at, text)| {
                let parsed = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).ok();
                if parsed.is_none() {
                    findings.add(
                        at,
                        format!("`startTime` is {}", quote(text)),
                        "write one as 2026-01-01 00:00:00, without a time zone",
                    );
                }
                parsed
            });
            let zone = zone.and_then(|(at, name)| {
                let found = TimeZone::get(name).ok();
                if found.is_none() {
                    findings.add(
                        at,
                        format!("there is no time zone {}", quote(name)),
                        "write an IANA name such as Europe/Berlin",
                    );
                }
                found
            });
            Window::calendar(duration, start?, zone?)
        }
    };
    if window.is_none() {
        findings.add(
            duration_at,
            format!("`duration` is {}", quote(text)),
            "write one of more than nothing and at most five years",
        );
    }
    window
}

fn objective(
    owner: &str,
    index: usize,
    mut fields: Fields<'_>,
    metric: Option<&Metric>,
    method: Option<Method>,
    window: Option<&Window>,
    findings: &mut Findings,
) -> Option<Objective> {
    let at = fields.at;
    let name =
        fields.text("displayName", findings).map_or_else(|| (index + 1).to_string(), |(_, name)| name.to_owned());
    let op = fields.choice("op", &["lt", "lte", "gt", "gte"], findings);
    let op = op.map(|index| [Op::Less, Op::AtMost, Op::Greater, Op::AtLeast][index]);
    let value = fields.number("value", findings);
    let target = fields.number("target", findings);
    let percent = fields.number("targetPercent", findings);
    let slice_target = fields.number("timeSliceTarget", findings);
    let slice_window = fields.text("timeSliceWindow", findings);
    let weight = fields.number("compositeWeight", findings);
    fields.finish(findings);

    let target = match (target, percent) {
        (Some(target), None) => share(target, 1.0, false, "target", findings),
        (None, Some(percent)) => share(percent, 100.0, false, "targetPercent", findings),
        (Some(_), Some((at, _))) => {
            findings.add(at, format!("{owner} has `target` and `targetPercent`"), "remove one of them");
            None
        }
        (None, None) => {
            findings.add(at, format!("{owner} has no target"), "write `target: 0.999` or `targetPercent: 99.9`");
            None
        }
    };
    let indicator = match (metric, op, value) {
        (Some(Metric::Ready(indicator)), ..) => {
            if op.is_some() || value.is_some() {
                let at = value.map_or(at, |(at, _)| at);
                findings.add(at, format!("{owner} has a threshold, and its SLI is a ratio"), "remove `op` and `value`");
            }
            Some(indicator.clone())
        }
        (Some(Metric::Threshold(source)), Some(op), Some((_, value))) => source.threshold(op, value, findings),
        (Some(Metric::Threshold(_)), ..) => {
            findings.add(
                at,
                format!("{owner} has no threshold"),
                "write `op` (lt, lte, gt, gte) and `value`: its SLI is a thresholdMetric",
            );
            None
        }
        (None, ..) => None,
    };
    let slice = match method {
        Some(Method::Occurrences) | None => {
            if let (Some(Method::Occurrences), Some((at, _))) = (method, slice_window) {
                findings.add(
                    at,
                    format!("{owner} has slices, and the budgetingMethod is Occurrences"),
                    "remove them, or write Timeslices",
                );
            }
            None
        }
        Some(method) => {
            let target = match (method, slice_target) {
                (Method::Timeslices, None) => {
                    findings.add(
                        at,
                        format!("{owner} has no `timeSliceTarget`"),
                        "write the share of good events that makes a slice good",
                    );
                    None
                }
                (Method::Timeslices, Some(target)) => share(target, 1.0, true, "timeSliceTarget", findings),
                _ => Some(Share(1_000_000_000)),
            };
            let width = slice_width(owner, at, slice_window, window, findings);
            target.zip(width).map(|(target, width_ms)| Slice { width_ms, target })
        }
    };
    let weight_milli = match weight {
        None => 1_000,
        Some((at, weight)) => {
            if !(0.001..=1e9).contains(&weight) {
                findings.add(at, format!("`compositeWeight` is {weight}"), "write a number from 0.001 to 1000000000");
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
            let milli = (weight * 1e3).round() as u64;
            milli
        }
    };
    Some(Objective { name, target: target?, indicator: indicator?, slice, weight_milli })
}

/// A target in billionths: 0 to 1, without or with 1.
fn share(
    (at, number): (Place, f64),
    whole: f64,
    may_be_whole: bool,
    name: &str,
    findings: &mut Findings,
) -> Option<Share> {
    let billionths = (number / whole * 1e9).round();
    let fits = if may_be_whole { billionths > 0.0 && billionths <= 1e9 } else { (0.0..1e9).contains(&billionths) };
    if !fits || number < 0.0 {
        let range =
            if may_be_whole { format!("above 0 and at most {whole}") } else { format!("from 0 to below {whole}") };
        findings.add(at, format!("`{name}` is {number}"), format!("write a number {range}"));
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
    Some(Share(billionths as u32))
}

fn slice_width(
    owner: &str,
    at: Place,
    written: Option<(Place, &str)>,
    window: Option<&Window>,
    findings: &mut Findings,
) -> Option<i64> {
    let Some((at, text)) = written else {
        findings.add(at, format!("{owner} has no `timeSliceWindow`"), "write the length of a slice, such as 1m");
        return None;
    };
    // A number alone is minutes.
    let ms = match text.parse::<u32>() {
        Ok(minutes) => Some(i64::from(minutes) * 60_000),
        Err(_) => Shorthand::parse(text).and_then(Shorthand::fixed_ms),
    };
    let Some(ms) = ms.filter(|ms| *ms > 0 && ms % BUCKET_MS == 0) else {
        findings.add(
            at,
            format!("`timeSliceWindow` is {}", quote(text)),
            "write minutes, or a number and m, h, d or w, such as 1m",
        );
        return None;
    };
    if let Some(window) = window
        && window.longest_ms() / ms > SLICES_MAX
    {
        findings.add(
            at,
            "the timeWindow has too many slices",
            format!("write a longer `timeSliceWindow`: at most {SLICES_MAX} fit"),
        );
        return None;
    }
    Some(ms)
}
