//! Groups in time: when a group is looked at, whom it then tells what, and what it forgets.
//!
//! All of it is pure: (state, input, now) → decision (I5). The engine keeps the state and carries the
//! decisions out in one transaction (I7). Not here: which group an alert belongs to (`routing.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::time::Timestamp;

use crate::alert::Alert;
use crate::instant::nanos;
use crate::labels::Fingerprint;
use crate::notification::{Reason, Status, ToldAlert};

/// What one receiver's channel was last told about a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEntry {
    /// Alerts that fired then.
    pub firing: BTreeSet<Fingerprint>,
    /// Alerts that were over then.
    pub resolved: BTreeSet<Fingerprint>,
    /// When.
    pub at: Timestamp,
}

/// Whether a channel is to be told, and why: Alertmanager's rules, in its order.
#[must_use]
pub fn needs_update(
    entry: Option<&LogEntry>,
    firing: &BTreeSet<Fingerprint>,
    resolved: &BTreeSet<Fingerprint>,
    send_resolved: bool,
    repeat_interval: Duration,
    now: Timestamp,
) -> Option<Reason> {
    let Some(entry) = entry else {
        // Who was never told of an alert need not hear that it is over.
        return (!firing.is_empty()).then_some(Reason::First);
    };
    if !firing.is_subset(&entry.firing) {
        return Some(if entry.firing.is_empty() { Reason::First } else { Reason::NewAlerts });
    }
    if firing.is_empty() {
        // Whether or not ends are told: the log must say that nothing fires any more.
        return (!entry.firing.is_empty()).then_some(Reason::AllResolved);
    }
    if send_resolved && !resolved.is_subset(&entry.resolved) {
        return Some(Reason::NewResolved);
    }
    (entry.at < now.plus_nanos(-nanos(repeat_interval))).then_some(Reason::Repeat)
}

/// A group's place in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its alerts, and when each was last heard of when it joined.
    pub members: BTreeSet<Fingerprint>,
    /// When it is looked at next.
    pub next_flush_at: Timestamp,
    /// Whether it was looked at before.
    pub flushed: bool,
}

impl Group {
    /// A group that begins now.
    #[must_use]
    pub fn new(now: Timestamp, group_wait: Duration) -> Self {
        Self { members: BTreeSet::new(), next_flush_at: now.plus_nanos(nanos(group_wait)), flushed: false }
    }

    /// Takes an alert in. One that began longer ago than a new group waits has waited enough.
    pub fn join(&mut self, fingerprint: Fingerprint, starts_at: Timestamp, group_wait: Duration, now: Timestamp) {
        self.members.insert(fingerprint);
        if !self.flushed && starts_at.plus_nanos(nanos(group_wait)) < now {
            self.next_flush_at = self.next_flush_at.min(now);
        }
    }
}

/// One of a group's alerts when the group is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// The alert.
    pub alert: &'a Alert,
    /// Whether a silence or another alert keeps it from being told.
    pub muted: bool,
}

/// One of the receiver's channels when the group is looked at.
#[derive(Clone, Copy, Debug)]
pub struct ChannelState<'a> {
    /// Whether it is told of ends.
    pub send_resolved: bool,
    /// What it was last told.
    pub entry: Option<&'a LogEntry>,
}

/// What is told to one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which of the channels.
    pub channel: usize,
    /// Why.
    pub reason: Reason,
    /// The alerts in order. Empty: nothing is sent, and only the log changes.
    pub alerts: Vec<ToldAlert>,
    /// The channel's new entry in the log.
    pub entry: LogEntry,
}

/// Looks at a group: what is told to whom. `muted_by_time`: the route is silent at this time.
#[must_use]
pub fn flush(
    members: &[Member<'_>],
    muted_by_time: bool,
    channels: &[ChannelState<'_>],
    repeat_interval: Duration,
    now: Timestamp,
) -> Vec<Decision> {
    if muted_by_time {
        return Vec::new();
    }
    let heard: Vec<&Member<'_>> = members.iter().filter(|member| !member.muted).collect();
    if heard.is_empty() {
        return Vec::new();
    }
    let (resolved, firing): (BTreeMap<_, _>, BTreeMap<_, _>) =
        heard.iter().map(|member| (member.fingerprint, member.alert)).partition(|(_, alert)| alert.is_resolved(now));
    let firing: BTreeSet<Fingerprint> = firing.into_keys().collect();
    let resolved: BTreeSet<Fingerprint> = resolved.into_keys().collect();
    let mut told: Vec<ToldAlert> = heard.iter().map(|member| ToldAlert::new(member.alert, now)).collect();
    told.sort_by(|a, b| a.labels.alert_order(&b.labels));

    let mut decisions = Vec::new();
    for (index, channel) in channels.iter().enumerate() {
        let send_resolved = channel.send_resolved;
        let reason = needs_update(channel.entry, &firing, &resolved, send_resolved, repeat_interval, now);
        let Some(reason) = reason else { continue };
        let alerts = told.iter().filter(|alert| send_resolved || alert.status == Status::Firing).cloned().collect();
        let entry = LogEntry { firing: firing.clone(), resolved: resolved.clone(), at: now };
        decisions.push(Decision { channel: index, reason, alerts, entry });
    }
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::LabelSet;
    use proptest::prelude::*;

    fn set(text: &str) -> BTreeSet<Fingerprint> {
        text.bytes().map(|byte| Fingerprint(u64::from(byte))).collect()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * Timestamp::NANOS_PER_SECOND)
    }

    #[test]
    fn channels_are_told_by_the_rules_of_the_log() {
        use Reason::{AllResolved, First, NewAlerts, NewResolved, Repeat};
        // Entry (firing, resolved, at) or none; firing, resolved now; send_resolved; at 100, repeat 10.
        let rows = [
            (None, "a", "", true, Some(First)),
            (None, "", "a", true, None),
            (None, "a", "b", true, Some(First)),
            (Some(("", "", 99)), "a", "", true, Some(First)),
            (Some(("", "a", 99)), "a", "", true, Some(First)),
            (Some(("a", "", 99)), "ab", "", true, Some(NewAlerts)),
            (Some(("a", "", 99)), "b", "", true, Some(NewAlerts)),
            (Some(("ab", "", 99)), "a", "", true, None),
            (Some(("ab", "", 99)), "a", "b", true, Some(NewResolved)),
            (Some(("ab", "", 99)), "a", "b", false, None),
            (Some(("ab", "b", 99)), "a", "b", true, None),
            (Some(("a", "", 99)), "", "a", true, Some(AllResolved)),
            (Some(("a", "", 99)), "", "a", false, Some(AllResolved)),
            (Some(("", "a", 0)), "", "a", true, None),
            (Some(("a", "", 90)), "a", "", true, None),
            (Some(("a", "", 89)), "a", "", true, Some(Repeat)),
            (Some(("a", "", 89)), "a", "", false, Some(Repeat)),
        ];
        for (entry, firing, resolved, send_resolved, want) in rows {
            let entry = entry.map(|(f, r, when)| LogEntry { firing: set(f), resolved: set(r), at: at(when) });
            let repeat = Duration::from_secs(10);
            let got = needs_update(entry.as_ref(), &set(firing), &set(resolved), send_resolved, repeat, at(100));
            assert_eq!(got, want, "{entry:?} {firing:?} {resolved:?} {send_resolved}");
        }
    }

    fn alert(name: &str, ends: i64) -> Alert {
        Alert {
            labels: [("alertname", name)].into_iter().collect(),
            annotations: LabelSet::default(),
            starts_at: at(0),
            ends_at: at(ends),
            updated_at: at(0),
            timeout: false,
            generator_url: String::new(),
        }
    }

    #[test]
    fn a_group_tells_what_is_not_muted() {
        let (a, b, c) = (alert("a", 200), alert("b", 50), alert("c", 200));
        let member = |alert, muted| Member { fingerprint: Alert::fingerprint(alert), alert, muted };
        let channel = |send_resolved| ChannelState { send_resolved, entry: None };
        let told = |members: &[Member<'_>], time, channels: &[ChannelState<'_>]| -> Vec<String> {
            let decisions = flush(members, time, channels, Duration::from_secs(10), at(100));
            let names = |decision: &Decision| -> String {
                let parts: Vec<String> = decision
                    .alerts
                    .iter()
                    .map(|alert| format!("{}:{}", alert.labels.get("alertname"), alert.status.as_str()))
                    .collect();
                format!("{} {}", decision.channel, parts.join(" "))
            };
            decisions.iter().map(names).collect()
        };
        let all = [member(&c, false), member(&b, false), member(&a, false)];
        let both = [channel(true), channel(false)];
        assert_eq!(told(&all, false, &both), ["0 a:firing b:resolved c:firing", "1 a:firing c:firing"]);
        assert!(told(&all, true, &both).is_empty(), "the route is silent");
        assert_eq!(told(&[member(&a, true), member(&c, false)], false, &both), ["0 c:firing", "1 c:firing"]);
        assert!(told(&[member(&a, true)], false, &both).is_empty());
        assert!(told(&[member(&b, false)], false, &both).is_empty(), "who never knew need not hear of the end");
    }

    #[test]
    fn a_channel_without_ends_forgets_them_in_the_log_alone() {
        let b = alert("b", 50);
        let entry = LogEntry { firing: [b.fingerprint()].into(), resolved: BTreeSet::new(), at: at(10) };
        let members = [Member { fingerprint: b.fingerprint(), alert: &b, muted: false }];
        let channels = [ChannelState { send_resolved: false, entry: Some(&entry) }];
        let decisions = flush(&members, false, &channels, Duration::from_secs(10), at(100));
        assert_eq!(decisions.len(), 1);
        assert!(decisions[0].alerts.is_empty() && decisions[0].entry.firing.is_empty());
    }

    #[test]
    fn a_new_group_waits_unless_its_alert_has_waited() {
        let wait = Duration::from_secs(30);
        let mut group = Group::new(at(100), wait);
        group.join(Fingerprint(1), at(95), wait, at(100));
        assert_eq!(group.next_flush_at, at(130));
        group.join(Fingerprint(2), at(10), wait, at(101));
        assert_eq!(group.next_flush_at, at(101));
        let mut flushed = Group { flushed: true, next_flush_at: at(400), ..Group::default() };
        flushed.join(Fingerprint(3), at(10), wait, at(101));
        assert_eq!(flushed.next_flush_at, at(400), "a group that has spoken keeps its pace");
    }

    proptest! {
        /// However alerts come and go, a channel that is told by these rules ends up knowing what fires
        /// and is never told the same twice within the repeat interval.
        #[test]
        fn a_channel_knows_what_fires(steps in proptest::collection::vec(("[abc]{0,3}", "[abc]{0,3}", any::<bool>()), 1..30)) {
            let repeat = Duration::from_secs(1_000);
            let mut entry: Option<LogEntry> = None;
            let mut now = 0;
            for (firing, resolved, send_resolved) in steps {
                now += 10;
                let firing = set(&firing);
                let resolved: BTreeSet<Fingerprint> = set(&resolved).difference(&firing).copied().collect();
                let decide = |entry: &Option<LogEntry>| needs_update(entry.as_ref(), &firing, &resolved, send_resolved, repeat, at(now));
                if decide(&entry).is_some() {
                    entry = Some(LogEntry { firing: firing.clone(), resolved: resolved.clone(), at: at(now) });
                    prop_assert_eq!(decide(&entry), None, "told twice");
                }
                let known = entry.clone().unwrap_or_default();
                prop_assert!(firing.is_subset(&known.firing), "an alert that fires and is not known");
                prop_assert!(!firing.is_empty() || known.firing.is_empty(), "nothing fires, and the channel believes so");
            }
        }
    }
}
