//! Sets of labels, their identity and their order, as Prometheus and Alertmanager define them.
//!
//! Not here: conditions on labels, which are `matcher.rs`'s.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// The label that names an alert.
pub const ALERT_NAME: &str = "alertname";

/// Identity of a label set: FNV-1a over the sorted pairs, byte for byte what Prometheus computes, so
/// that ids agree with those that Alertmanager's clients know. Shown as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Names and values. A label with an empty value is the same as no label; [`LabelSet::without_empty`]
/// drops those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelSet(BTreeMap<String, String>);

impl LabelSet {
    /// The value of a label; empty if it is not there, since the two mean the same.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The value of a label, or `None` if it is not there.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a label.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// Pairs in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many labels there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same set without labels whose value is empty.
    #[must_use]
    pub fn without_empty(mut self) -> Self {
        self.0.retain(|_, value| !value.is_empty());
        self
    }

    /// The set's identity.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        const OFFSET: u64 = 14_695_981_039_346_656_037;
        const PRIME: u64 = 1_099_511_628_211;
        // A byte that UTF-8 never has, so that no pair reads like another.
        const SEPARATOR: u8 = 255;
        let mut hash = OFFSET;
        let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        for (name, value) in &self.0 {
            name.bytes().for_each(&mut add);
            add(SEPARATOR);
            value.bytes().for_each(&mut add);
            add(SEPARATOR);
        }
        Fingerprint(hash)
    }

    /// The pairs that all of the sets have; empty if there are no sets.
    pub fn common<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sets = sets.into_iter();
        let mut common = sets.next().cloned().unwrap_or_default();
        for set in sets {
            common.0.retain(|name, value| set.0.get(name) == Some(value));
        }
        common
    }

    /// The order of alerts within a message: by `job`, then `instance` (those without come last), then
    /// the set with fewer labels, then label by label.
    #[must_use]
    pub fn alert_order(&self, other: &Self) -> Ordering {
        for name in ["job", "instance"] {
            match (self.0.get(name), other.0.get(name)) {
                (None, None) => {}
                (None, Some(_)) => return Ordering::Greater,
                (Some(_), None) => return Ordering::Less,
                (Some(mine), Some(theirs)) if mine != theirs => return mine.cmp(theirs),
                (Some(_), Some(_)) => {}
            }
        }
        if self.len() != other.len() {
            return self.len().cmp(&other.len());
        }
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort();
        for name in names {
            match (self.0.get(name), other.0.get(name)) {
                (None, _) => return Ordering::Less,
                (Some(_), None) => return Ordering::Greater,
                (Some(mine), Some(theirs)) if mine != theirs => return mine.cmp(theirs),
                (Some(_), Some(_)) => {}
            }
        }
        Ordering::Equal
    }

    /// Why the set cannot name an alert, if it cannot: names must not be empty, and nothing may hold NUL.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        for (name, value) in &self.0 {
            if name.is_empty() {
                return Some("a label has an empty name".to_owned());
            }
            if name.contains('\0') || value.contains('\0') {
                return Some(format!("label {name:?} holds a NUL character"));
            }
        }
        None
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for LabelSet {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// `{a="b", c="d"}`: part of group keys, so it is exactly Prometheus's form.
impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={}", quoted(value))?;
        }
        f.write_char('}')
    }
}

/// A text in Go's double quotes.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            // Writing into a string cannot fail.
            c if c < ' ' || c == '\u{7f}' => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> LabelSet {
        pairs.iter().copied().collect()
    }

    #[test]
    fn fingerprints_are_those_of_prometheus() {
        // The second is what Debian's Alertmanager 0.25 shows.
        let rows: [(&[(&str, &str)], &str); 2] =
            [(&[], "cbf29ce484222325"), (&[("job", "x"), ("alertname", "A")], "593b3fc30668dd0a")];
        for (pairs, want) in rows {
            assert_eq!(set(pairs).fingerprint().to_string(), want, "{pairs:?}");
            assert_eq!(want.parse::<Fingerprint>().unwrap(), set(pairs).fingerprint());
        }
        // Where a pair ends is part of the identity.
        assert_ne!(set(&[("a", "bc")]).fingerprint(), set(&[("ab", "c")]).fingerprint());
    }

    #[test]
    fn sets_are_written_as_in_group_keys() {
        let rows: [(&[(&str, &str)], &str); 4] = [
            (&[], "{}"),
            (&[("b", "2"), ("a", "1")], "{a=\"1\", b=\"2\"}"),
            (&[("a", "q\"\\\n\u{1}")], "{a=\"q\\\"\\\\\\n\\x01\"}"),
            (&[("a", "ü\u{2028}")], "{a=\"ü\\u2028\"}"),
        ];
        for (pairs, want) in rows {
            assert_eq!(set(pairs).to_string(), want);
        }
    }

    #[test]
    fn alerts_are_ordered_by_job_then_instance_then_labels() {
        let sorted = [
            set(&[("job", "a"), ("instance", "1"), ("z", "9")]),
            set(&[("job", "a"), ("instance", "2")]),
            set(&[("job", "a")]),
            set(&[("job", "b"), ("instance", "1")]),
            set(&[("instance", "0")]),
            set(&[("x", "1")]),
            set(&[("x", "2")]),
            set(&[("a", "1"), ("x", "1")]),
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(a.alert_order(b), i.cmp(&j), "{a} {b}");
            }
        }
    }

    #[test]
    fn common_labels_are_the_pairs_all_sets_have() {
        let (a, b) = (set(&[("x", "1"), ("y", "1")]), set(&[("x", "1"), ("y", "2")]));
        assert_eq!(LabelSet::common([&a, &b]), set(&[("x", "1")]));
        assert_eq!(LabelSet::common([&a]), a);
        assert_eq!(LabelSet::common([]), LabelSet::default());
    }
}
