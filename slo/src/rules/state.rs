//! The life of an alert: inactive, pending, firing, and resolved for a while.
//!
//! The rules are Prometheus' own (`rules/alerting.go`, `rules/group.go` of 3.x): an alert is pending from
//! its first sample, fires when it was there for `for`, may keep firing without a sample for
//! `keep_firing_for`, and is remembered for 15 minutes after it resolved, so that the end is told. After a
//! restart, [`restored_active_at`] gives a pending alert the time it had. One thing is added: an alert may
//! be held, because there is no data to say it ended (I10).
//!
//! Pure: now is an argument (I5). Not here: disks, and where samples come from.

use std::collections::BTreeMap;

use model::time::Timestamp;
use serde::Serialize;

use crate::window::NANOS_PER_MS;

/// For how long a resolved alert is remembered, and its end told again (Prometheus' `resolvedRetention`).
pub const RESOLVED_RETENTION_MS: i64 = 15 * 60_000;

/// Prometheus' defaults: how old the state of before a restart may be (`--rules.alert.for-outage-tolerance`),
/// how long after a restart an alert waits at least (`--rules.alert.for-grace-period`), and how often a
/// firing alert is told again (`--rules.alert.resend-delay`).
pub const OUTAGE_TOLERANCE_MS: i64 = 3_600_000;
/// See [`OUTAGE_TOLERANCE_MS`].
pub const FOR_GRACE_MS: i64 = 600_000;
/// See [`OUTAGE_TOLERANCE_MS`].
pub const RESEND_DELAY_MS: i64 = 60_000;

/// Names and values, in order.
pub type Labels = BTreeMap<String, String>;

/// The state of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Resolved, or never fired.
    Inactive,
    /// There, but not for long enough.
    Pending,
    /// Firing.
    Firing,
}

impl State {
    /// As Prometheus writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Firing => "firing",
        }
    }

    /// The inverse of [`State::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Inactive, Self::Pending, Self::Firing].into_iter().find(|state| state.name() == name)
    }
}

/// One alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Where it is in its life.
    pub state: State,
    /// What it says, expanded.
    pub annotations: Labels,
    /// The value of its last sample.
    pub value: f64,
    /// Since when it is there.
    pub active_at: Timestamp,
    /// Since when it fires or fired.
    pub fired_at: Option<Timestamp>,
    /// When it resolved.
    pub resolved_at: Option<Timestamp>,
    /// Since when it fires without a sample.
    pub keep_firing_since: Option<Timestamp>,
    /// When it was last told.
    pub sent_at: Option<Timestamp>,
}

/// An answer's row that makes or keeps an alert.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The alert's labels, which are its identity.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Its value.
    pub value: f64,
}

/// How long a rule's alerts wait and last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// `for`, milliseconds.
    pub for_ms: i64,
    /// `keep_firing_for`, milliseconds.
    pub keep_firing_for_ms: i64,
}

/// An answer that cannot be alerts; the rule is unhealthy until the next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Two rows have the same labels after the rule's were put on.
    #[error(
        "two rows have the same labels {labels:?} after the rule's labels were put on: select a column that tells them apart"
    )]
    SameLabels {
        /// The labels.
        labels: Labels,
    },
    /// More alerts than the group's `limit`.
    #[error(
        "{alerts} alerts are more than the group's limit of {limit}: all were dropped; make the query more selective or raise `limit`"
    )]
    TooMany {
        /// How many.
        alerts: usize,
        /// The limit.
        limit: usize,
    },
}

/// An alert to be told: plain data for whoever routes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Since when it fires, nanoseconds since the epoch.
    pub starts_at: i64,
    /// When it resolved, or until when it counts as firing unless it is told again.
    pub ends_at: i64,
    /// Whether it resolved.
    pub resolved: bool,
    /// Its last value.
    pub value: f64,
}

/// The alerts of one rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alerts {
    active: BTreeMap<Labels, Alert>,
}

const fn since(now: Timestamp, then: Timestamp) -> i64 {
    now.0.saturating_sub(then.0)
}

const fn nanos(ms: i64) -> i64 {
    ms.saturating_mul(NANOS_PER_MS)
}

impl Alerts {
    /// Every alert, resolved ones included.
    pub fn iter(&self) -> impl Iterator<Item = (&Labels, &Alert)> {
        self.active.iter()
    }

    /// Puts an alert back as it was.
    pub fn insert(&mut self, labels: Labels, alert: Alert) {
        self.active.insert(labels, alert);
    }

    /// How many alerts are pending or firing.
    #[must_use]
    pub fn count_active(&self) -> usize {
        self.active.values().filter(|alert| alert.state != State::Inactive).count()
    }

    /// Moves every alert on by one evaluation. `held` tells the alerts of which nothing is known: they
    /// stay what they are.
    ///
    /// # Errors
    /// [`StepError`]; after [`StepError::TooMany`] no alert is left, as Prometheus has it.
    pub fn step(
        &mut self,
        now: Timestamp,
        samples: Vec<Sample>,
        held: &dyn Fn(&Labels) -> bool,
        hold: Hold,
        limit: usize,
    ) -> Result<(), StepError> {
        let mut fresh: BTreeMap<Labels, (Labels, f64)> = BTreeMap::new();
        for Sample { labels, annotations, value } in samples {
            if fresh.contains_key(&labels) {
                return Err(StepError::SameLabels { labels });
            }
            fresh.insert(labels, (annotations, value));
        }
        let mut count = 0;
        self.active.retain(|labels, alert| {
            match fresh.remove(labels) {
                // A resolved alert that comes back is a new one.
                Some((annotations, value)) if alert.state == State::Inactive => {
                    *alert = Alert::pending(now, annotations, value);
                }
                Some((annotations, value)) => {
                    alert.annotations = annotations;
                    alert.value = value;
                    alert.keep_firing_since = None;
                }
                None if alert.state != State::Inactive && held(labels) => {}
                None => {
                    let mut keeps = false;
                    if alert.state == State::Firing && hold.keep_firing_for_ms > 0 {
                        let kept_since = *alert.keep_firing_since.get_or_insert(now);
                        keeps = since(now, kept_since) < nanos(hold.keep_firing_for_ms);
                    }
                    let forgotten = alert.state == State::Pending
                        || alert.resolved_at.is_some_and(|at| since(now, at) > nanos(RESOLVED_RETENTION_MS));
                    if forgotten {
                        return false;
                    }
                    if !keeps {
                        if alert.state != State::Inactive {
                            alert.state = State::Inactive;
                            alert.resolved_at = Some(now);
                        }
                        return true;
                    }
                }
            }
            count += 1;
            alert.mature(now, hold);
            true
        });
        for (labels, (annotations, value)) in fresh {
            let mut alert = Alert::pending(now, annotations, value);
            alert.mature(now, hold);
            self.active.insert(labels, alert);
            count += 1;
        }
        if limit > 0 && count > limit {
            self.active.clear();
            return Err(StepError::TooMany { alerts: count, limit });
        }
        Ok(())
    }

    /// What has to be told now: alerts that resolved since they were last told, and those not told for
    /// longer than the delay. Marks them as told.
    pub fn notices(&mut self, now: Timestamp, resend_delay_ms: i64, interval_ms: i64) -> Vec<Notice> {
        let valid = nanos(4 * interval_ms.max(resend_delay_ms));
        let mut notices = Vec::new();
        for (labels, alert) in &mut self.active {
            let due = alert.sent_at.is_none_or(|sent| sent.plus_nanos(nanos(resend_delay_ms)) < now);
            let ended = alert.resolved_at.is_some_and(|at| alert.sent_at.is_none_or(|sent| at > sent));
            if alert.state == State::Pending || !(due || ended) {
                continue;
            }
            alert.sent_at = Some(now);
            notices.push(Notice {
                labels: labels.clone(),
                annotations: alert.annotations.clone(),
                starts_at: alert.fired_at.unwrap_or(alert.active_at).0,
                ends_at: alert.resolved_at.unwrap_or(now.plus_nanos(valid)).0,
                resolved: alert.resolved_at.is_some(),
                value: alert.value,
            });
        }
        notices
    }

    /// Gives alerts that are there again the time they had before a restart. To be called once, after the
    /// second evaluation, as Prometheus does; `stored` is what was known at the last evaluation before it.
    pub fn restore(&mut self, stored: &BTreeMap<Labels, Stored>, now: Timestamp, for_ms: i64, restore: Restore) {
        for (labels, alert) in &mut self.active {
            if let Some(stored) = stored.get(labels)
                && let Some(active_at) = restored_active_at(*stored, now, for_ms, restore)
            {
                alert.active_at = active_at;
            }
        }
    }
}

impl Alert {
    /// A new alert.
    fn pending(now: Timestamp, annotations: Labels, value: f64) -> Self {
        Self {
            state: State::Pending,
            annotations,
            value,
            active_at: now,
            fired_at: None,
            resolved_at: None,
            keep_firing_since: None,
            sent_at: None,
        }
    }

    fn mature(&mut self, now: Timestamp, hold: Hold) {
        if self.state == State::Pending && since(now, self.active_at) >= nanos(hold.for_ms) {
            self.state = State::Firing;
            self.fired_at = Some(now);
        }
    }
}

/// What of an alert is on disk from before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Since when it was there.
    pub active_at: Timestamp,
    /// The last evaluation at which it was; `None` when the last evaluation found it gone.
    pub seen_at: Option<Timestamp>,
}

/// How a restart is bridged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// State older than this is forgotten.
    pub tolerance_ms: i64,
    /// An alert that was close to firing waits at least so long after a restart.
    pub grace_ms: i64,
}

impl Default for Restore {
    fn default() -> Self {
        Self { tolerance_ms: OUTAGE_TOLERANCE_MS, grace_ms: FOR_GRACE_MS }
    }
}

/// Since when an alert counts as active after a restart; `None` when it begins anew. Prometheus'
/// algorithm, with its second of resolution: an alert that was firing keeps its time; one that would have
/// waited less than the grace period waits the grace period; any other one waits as long as it would have,
/// the outage not counted.
#[must_use]
pub fn restored_active_at(stored: Stored, now: Timestamp, for_ms: i64, restore: Restore) -> Option<Timestamp> {
    if for_ms < restore.grace_ms {
        return None;
    }
    let down_at = stored.seen_at?;
    if since(now, down_at) > nanos(restore.tolerance_ms) {
        return None;
    }
    let second = Timestamp::NANOS_PER_SECOND;
    let active_at = Timestamp(stored.active_at.0.div_euclid(second) * second);
    let down_at = Timestamp(down_at.0.div_euclid(NANOS_PER_MS) * NANOS_PER_MS);
    let remaining = nanos(for_ms) - since(down_at, active_at);
    Some(if remaining <= 0 {
        active_at
    } else if remaining < nanos(restore.grace_ms) {
        now.plus_nanos(nanos(restore.grace_ms)).plus_nanos(-nanos(for_ms))
    } else {
        active_at.plus_nanos(since(now, down_at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn at(minutes: i64) -> Timestamp {
        Timestamp(nanos(1_000_000_000 + minutes * MINUTE))
    }

    fn labels(name: &str) -> Labels {
        BTreeMap::from([("alertname".to_owned(), name.to_owned())])
    }

    fn sample(name: &str, value: f64) -> Sample {
        Sample { labels: labels(name), annotations: Labels::new(), value }
    }

    const NOTHING_HELD: &dyn Fn(&Labels) -> bool = &|_| false;

    /// Steps once a minute and writes the state after each: `.` gone, `i` inactive, `p` pending, `F` firing.
    fn lives(present: &str, hold: Hold, held: &str) -> String {
        let mut alerts = Alerts::default();
        let mut out = String::new();
        for (minute, there) in present.chars().enumerate() {
            let samples = if there == 'x' { vec![sample("a", 1.0)] } else { vec![] };
            let is_held = held.chars().nth(minute) == Some('h');
            let now = at(i64::try_from(minute).unwrap());
            alerts.step(now, samples, &|_| is_held, hold, 0).unwrap();
            out.push(match alerts.active.get(&labels("a")).map(|alert| alert.state) {
                None => '.',
                Some(State::Inactive) => 'i',
                Some(State::Pending) => 'p',
                Some(State::Firing) => 'F',
            });
        }
        out
    }

    #[test]
    fn alerts_live_as_in_prometheus() {
        for (present, for_minutes, keep_minutes, held, want) in [
            // Without `for`, it fires at once; pending ones that go away are forgotten.
            ("-xx-x", 0, 0, "", ".FFiF"),
            ("xxxx-", 3, 0, "", "pppFi"),
            ("xx-xxxx", 3, 0, "", "pp.pppF"),
            // keep_firing_for counts from the first evaluation without a sample, and a sample ends it.
            ("xx----", 0, 2, "", "FFFFii"),
            ("xx-x---", 0, 2, "", "FFFFFFi"),
            ("xx--", 3, 2, "", "pp.."),
            // Resolved for 15 minutes: at the sixteenth it is more than that.
            ("x-----------------", 0, 0, "", "Fiiiiiiiiiiiiiiii."),
            // One that comes back is a new one.
            ("x-x-", 1, 0, "", "p.p."),
            ("xx-xx-", 1, 0, "", "pFipFi"),
            // No data holds pending and firing alike, and time goes on.
            ("xx---", 0, 0, "--hh-", "FFFFi"),
            ("x-----", 3, 0, "-hhh--", "pppFi" /* then */),
            ("----", 0, 0, "hhhh", "...."),
        ] {
            let hold = Hold { for_ms: for_minutes * MINUTE, keep_firing_for_ms: keep_minutes * MINUTE };
            let found = lives(present, hold, held);
            assert!(
                found.starts_with(want),
                "{present} for {for_minutes} keep {keep_minutes} held {held}: {found}, not {want}"
            );
        }
    }

    #[test]
    fn answers_that_cannot_be_alerts_are_refused() {
        let mut alerts = Alerts::default();
        let twice = vec![sample("a", 1.0), sample("a", 2.0)];
        assert!(matches!(
            alerts.step(at(0), twice, NOTHING_HELD, Hold::default(), 0),
            Err(StepError::SameLabels { .. })
        ));
        let two = || vec![sample("a", 1.0), sample("b", 2.0)];
        alerts.step(at(1), two(), NOTHING_HELD, Hold::default(), 2).unwrap();
        assert_eq!(alerts.count_active(), 2);
        let many = alerts.step(at(2), two(), NOTHING_HELD, Hold::default(), 1);
        assert_eq!(many, Err(StepError::TooMany { alerts: 2, limit: 1 }));
        assert_eq!(alerts.iter().count(), 0);
    }

    #[test]
    fn firing_is_told_again_and_the_end_at_once() {
        let mut alerts = Alerts::default();
        let hold = Hold { for_ms: MINUTE, keep_firing_for_ms: 0 };
        let mut told = Vec::new();
        for minute in 0..9 {
            let samples = if minute < 5 { vec![sample("a", 1.0)] } else { vec![] };
            alerts.step(at(minute), samples, NOTHING_HELD, hold, 0).unwrap();
            for notice in alerts.notices(at(minute), 2 * MINUTE, MINUTE) {
                let ends = (notice.ends_at - at(0).0) / nanos(MINUTE);
                told.push((minute, notice.resolved, ends, (notice.starts_at - at(0).0) / nanos(MINUTE)));
            }
        }
        // Fires at minute 1; again when more than two minutes have passed; resolved at 5, and again at 8.
        assert_eq!(told, [(1, false, 9, 1), (4, false, 12, 1), (5, true, 5, 1), (8, true, 5, 1)]);
    }

    #[test]
    fn a_restart_restores_as_prometheus_does() {
        // Computed by hand from RestoreForState of rules/group.go with tolerance 1 h and grace 10 min: minutes
        // of `for`, active, last seen, now, and the restored active time.
        for (for_minutes, active, seen, now, want) in [
            // Was firing: as it was.
            (15, 0, Some(20), 40, Some(0)),
            (15, 0, Some(15), 40, Some(0)),
            // 5 minutes were left, less than the grace: 10 are left now.
            (15, 0, Some(10), 40, Some(40 + 10 - 15)),
            // One second short of firing counts as that, too.
            (15, 5, Some(19), 25, Some(25 + 10 - 15)),
            // Exactly the grace was left, and more than it: the outage is left out.
            (15, 0, Some(5), 40, Some(35)),
            (30, 0, Some(10), 25, Some(15)),
            (30, 0, Some(0), 60, Some(60)),
            // `for` is below the grace: it begins anew.
            (9, 0, Some(20), 40, None),
            (0, 0, Some(20), 40, None),
            // `for` is the grace.
            (10, 0, Some(9), 12, Some(12)),
            (10, 0, Some(0), 12, Some(12)),
            // Too long down, and just not.
            (15, 0, Some(20), 81, None),
            (15, 0, Some(20), 80, Some(0)),
            // It had ended before.
            (15, 0, None, 40, None),
        ] {
            let stored = Stored { active_at: at(active), seen_at: seen.map(at) };
            let found = restored_active_at(stored, at(now), for_minutes * MINUTE, Restore::default());
            assert_eq!(found, want.map(at), "for {for_minutes} active {active} seen {seen:?} now {now}");
        }
        // ALERTS_FOR_STATE keeps whole seconds.
        let stored = Stored { active_at: at(0).plus_nanos(999_999_999), seen_at: Some(at(20)) };
        assert_eq!(restored_active_at(stored, at(30), 15 * MINUTE, Restore::default()), Some(at(0)));
    }

    #[test]
    fn a_restored_alert_fires_when_its_time_has_come() {
        let hold = Hold { for_ms: 15 * MINUTE, keep_firing_for_ms: 0 };
        for (seen, fires) in [(20, 42), (10, 51), (5, 51)] {
            let mut alerts = Alerts::default();
            let stored = BTreeMap::from([(labels("a"), Stored { active_at: at(0), seen_at: Some(at(seen)) })]);
            let fired = (40..100).find(|minute| {
                alerts.step(at(*minute), vec![sample("a", 1.0)], NOTHING_HELD, hold, 0).unwrap();
                if *minute == 41 {
                    alerts.restore(&stored, at(41), hold.for_ms, Restore::default());
                }
                alerts.active[&labels("a")].state == State::Firing
            });
            assert_eq!(fired, Some(fires), "seen {seen}");
        }
    }

    proptest::proptest! {
        #[test]
        fn an_alert_fires_exactly_after_its_hold(present in proptest::collection::vec(proptest::bool::weighted(0.8), 1..60), for_minutes in 0_i64..6) {
            let text: String = present.iter().map(|there| if *there { 'x' } else { '-' }).collect();
            let found = lives(&text, Hold { for_ms: for_minutes * MINUTE, keep_firing_for_ms: 0 }, "");
            let mut run = 0_i64;
            for (there, state) in present.iter().zip(found.chars()) {
                run = if *there { run + 1 } else { 0 };
                proptest::prop_assert_eq!(state == 'F', run > for_minutes);
                proptest::prop_assert_eq!(state == 'p', run > 0 && run <= for_minutes);
            }
        }
    }
}
