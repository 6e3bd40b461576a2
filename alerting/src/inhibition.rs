//! Inhibition: while a source alert is active, its targets are not told.
//!
//! An index keeps, for each rule, the sources by the values of the rule's `equal` labels, so that a
//! question costs one look-up a rule however many alerts there are. Not here: whether alerts are
//! routed at all; an inhibited one still is, and shows as suppressed.

use std::collections::{BTreeMap, HashMap};

use model::time::Timestamp;

use crate::alert::Alert;
use crate::config::InhibitRule;
use crate::labels::{Fingerprint, LabelSet};
use crate::matcher;

/// A source: when it ends, and whether the rule's target side matches it too.
#[derive(Clone, Copy, Debug)]
struct Source {
    ends_at: Timestamp,
    two_sided: bool,
}

/// A rule's sources by the values of its `equal` labels.
type Sources = HashMap<Vec<String>, BTreeMap<Fingerprint, Source>>;

/// Rules with their sources.
#[derive(Debug, Default)]
pub struct Inhibitor {
    rules: Vec<(InhibitRule, Sources)>,
}

fn values(rule: &InhibitRule, labels: &LabelSet) -> Vec<String> {
    // A missing label is an empty one, so alerts that both lack one are equal in it.
    rule.equal.iter().map(|name| labels.get(name).to_owned()).collect()
}

impl Inhibitor {
    /// Rules without sources.
    #[must_use]
    pub fn new(rules: &[InhibitRule]) -> Self {
        Self { rules: rules.iter().map(|rule| (rule.clone(), HashMap::new())).collect() }
    }

    /// Takes an alert in, or its new end.
    pub fn put(&mut self, fingerprint: Fingerprint, alert: &Alert) {
        for (rule, sources) in &mut self.rules {
            if matcher::all_match(&rule.source_matchers, &alert.labels) {
                let two_sided = matcher::all_match(&rule.target_matchers, &alert.labels);
                let source = Source { ends_at: alert.ends_at, two_sided };
                sources.entry(values(rule, &alert.labels)).or_default().insert(fingerprint, source);
            }
        }
    }

    /// Forgets an alert.
    pub fn remove(&mut self, fingerprint: Fingerprint, labels: &LabelSet) {
        for (rule, sources) in &mut self.rules {
            let key = values(rule, labels);
            if let Some(same) = sources.get_mut(&key) {
                same.remove(&fingerprint);
                if same.is_empty() {
                    sources.remove(&key);
                }
            }
        }
    }

    /// The alert that inhibits these labels, if one does. What matches both sides of a rule is not
    /// inhibited by what matches both sides, itself included.
    #[must_use]
    pub fn inhibited_by(&self, labels: &LabelSet, now: Timestamp) -> Option<Fingerprint> {
        self.rules.iter().find_map(|(rule, sources)| {
            if !matcher::all_match(&rule.target_matchers, labels) {
                return None;
            }
            let same = sources.get(&values(rule, labels))?;
            let two_sided = matcher::all_match(&rule.source_matchers, labels);
            let active = |source: &Source| source.ends_at > now && !(two_sided && source.two_sided);
            same.iter().find(|(_, source)| active(source)).map(|(fingerprint, _)| *fingerprint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(source: &str, target: &str, equal: &[&str]) -> InhibitRule {
        InhibitRule {
            name: String::new(),
            source_matchers: matcher::parse_all(source).unwrap(),
            target_matchers: matcher::parse_all(target).unwrap(),
            equal: equal.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn alert(text: &str, ends: i64) -> Alert {
        let labels: LabelSet = text.split(',').filter_map(|pair| pair.split_once('=')).collect();
        Alert {
            labels,
            annotations: LabelSet::default(),
            starts_at: Timestamp(0),
            ends_at: Timestamp(ends),
            updated_at: Timestamp(0),
            timeout: false,
            generator_url: String::new(),
        }
    }

    #[test]
    fn sources_inhibit_targets_of_equal_labels() {
        // Source side, target side, equal; source alert, its end; target; whether inhibited at 10.
        type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a str, i64, &'a str, bool);
        let rows: [Row<'_>; 12] = [
            ("s=1", "t=1", &["e"], "s=1,e=x", 20, "t=1,e=x", true),
            ("s=1", "t=1", &["e"], "s=1,e=x", 20, "t=1,e=y", false),
            ("s=1", "t=1", &["e"], "s=1,e=x", 10, "t=1,e=x", false),
            ("s=1", "t=1", &["e"], "s=1", 20, "t=1", true),
            ("s=1", "t=1", &["e"], "s=1,e=x", 20, "t=1", false),
            ("s=1", "t=1", &[], "s=1,e=x", 20, "t=1,e=y", true),
            ("s=1", "t=1", &["e"], "s=2,e=x", 20, "t=1,e=x", false),
            ("s=1", "t=1", &["e"], "s=1,e=x", 20, "t=2,e=x", false),
            // Both sides match both alerts: not inhibited; only the source does: inhibited.
            ("s=1", "t=1", &[], "s=1,t=1", 20, "s=1,t=1,z=1", false),
            ("s=1", "t=1", &[], "s=1", 20, "s=1,t=1", true),
            ("s=1", "t=1", &[], "s=1,t=1", 20, "t=1", true),
            // Itself.
            ("s=1", "s=1", &[], "s=1", 20, "s=1", false),
        ];
        for (source, target, equal, active, ends, asked, want) in rows {
            let mut inhibitor = Inhibitor::new(&[rule(source, target, equal)]);
            let active = alert(active, ends);
            inhibitor.put(active.fingerprint(), &active);
            let asked = alert(asked, 100);
            let got = inhibitor.inhibited_by(&asked.labels, Timestamp(10));
            assert_eq!(got, want.then(|| active.fingerprint()), "{source} {target} {equal:?} {active:?} {asked:?}");
            inhibitor.remove(active.fingerprint(), &active.labels);
            assert_eq!(inhibitor.inhibited_by(&asked.labels, Timestamp(10)), None);
        }
    }

    proptest! {
        /// The index answers as a walk over every alert would.
        #[test]
        fn the_index_is_a_walk(
            alerts in proptest::collection::vec(("[01]", "[01]", "[01]", 0_i64..20), 0..12),
            asked in ("[01]", "[01]", "[01]"),
        ) {
            let rules = [rule("s=1", "t=1", &["e"]), rule("s=0,t=~\"0|1\"", "t=~\".+\"", &["e", "missing"])];
            let mut inhibitor = Inhibitor::new(&rules);
            let mut known: BTreeMap<Fingerprint, Alert> = BTreeMap::new();
            for (s, t, e, ends) in alerts {
                let alert = alert(&format!("s={s},t={t},e={e}"), ends);
                inhibitor.put(alert.fingerprint(), &alert);
                known.insert(alert.fingerprint(), alert);
            }
            let asked = alert(&format!("s={},t={},e={}", asked.0, asked.1, asked.2), 99).labels;
            let now = Timestamp(10);
            let walk = rules.iter().any(|rule| {
                let matches = |matchers: &[matcher::Matcher], labels: &LabelSet| matcher::all_match(matchers, labels);
                matches(&rule.target_matchers, &asked) && known.values().any(|source| {
                    matches(&rule.source_matchers, &source.labels)
                        && !source.is_resolved(now)
                        && rule.equal.iter().all(|name| source.labels.get(name) == asked.get(name))
                        && !(matches(&rule.source_matchers, &asked) && matches(&rule.target_matchers, &source.labels))
                })
            });
            prop_assert_eq!(inhibitor.inhibited_by(&asked, now).is_some(), walk);
        }
    }
}
