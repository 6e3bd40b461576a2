//! When a waiting message may be sent, and what a failure means for it.
//!
//! Pure: rows, results and `now` in, decisions out. Order is kept per channel: messages leave as they
//! were decided. A message that keeps failing lets those of other groups pass after some attempts, so
//! that one bad message does not close a channel; those of its own group never pass it. Not here: the
//! rows' storage (`repository.rs`) and the sending.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use model::time::Timestamp;

use crate::instant::nanos;

/// After so many failures a message no longer holds back those of other groups.
pub const HOLDING_ATTEMPTS: u32 = 5;

/// First pause after a failure; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Longest pause. Somebody who repairs a channel should not wait longer for what it missed.
const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);

/// Longest pause a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// How long a message is tried. Later it would tell of another day.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A waiting message, as far as its turn is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number; messages are sent in this order.
    pub id: i64,
    /// Its channel.
    pub channel: String,
    /// Its group.
    pub group_key: String,
    /// How often sending it failed.
    pub attempts: u32,
    /// Not before this time.
    pub next_attempt_at: Timestamp,
}

/// The messages that may be sent now: at most one a channel, none of a busy channel. `waiting` is in
/// the order of ids.
#[must_use]
pub fn ready(waiting: &[Waiting], busy: &HashSet<String>, now: Timestamp) -> Vec<i64> {
    let mut chosen = Vec::new();
    let mut closed: HashSet<&str> = busy.iter().map(String::as_str).collect();
    let mut held_groups: HashMap<&str, HashSet<&str>> = HashMap::new();
    for message in waiting {
        let channel = message.channel.as_str();
        if closed.contains(channel) {
            continue;
        }
        let groups = held_groups.entry(channel).or_default();
        if groups.contains(message.group_key.as_str()) {
            continue;
        }
        if message.next_attempt_at <= now {
            chosen.push(message.id);
            closed.insert(channel);
        } else if message.attempts < HOLDING_ATTEMPTS {
            closed.insert(channel);
        } else {
            groups.insert(&message.group_key);
        }
    }
    chosen
}

/// The soonest time to come at which a waiting message may be tried again.
#[must_use]
pub fn next_attempt(waiting: &[Waiting], now: Timestamp) -> Option<Timestamp> {
    waiting.iter().map(|message| message.next_attempt_at).filter(|at| *at > now).min()
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendFailure {
    /// What happened, without secrets.
    pub message: String,
    /// Whether another attempt may do better.
    pub retryable: bool,
    /// How long the receiver asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl SendFailure {
    /// A failure that time may heal.
    #[must_use]
    pub fn retryable(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true, retry_after: None }
    }

    /// A failure that no further attempt heals.
    #[must_use]
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false, retry_after: None }
    }
}

/// What becomes of a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// It is tried again at this time.
    Retry(Timestamp),
    /// It is given up and kept as a dead letter.
    Dead,
}

/// Decides about a failed message. `attempts` counts this failure; `dice` is a random number, so that
/// channels that failed together do not come back together.
#[must_use]
pub fn after_failure(
    failure: &SendFailure,
    attempts: u32,
    created_at: Timestamp,
    dice: u32,
    now: Timestamp,
) -> AfterFailure {
    if !failure.retryable || created_at.plus_nanos(nanos(GIVE_UP_AFTER)) <= now {
        return AfterFailure::Dead;
    }
    let doublings = attempts.saturating_sub(1).min(16);
    let full = BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    // Between half and all of it.
    let pause = full / 2 + (full / 2).mul_f64(f64::from(dice) / f64::from(u32::MAX));
    let asked = failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    AfterFailure::Retry(now.plus_nanos(nanos(pause.max(asked))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * Timestamp::NANOS_PER_SECOND)
    }

    fn row(id: i64, channel: &str, group: &str, attempts: u32, next: i64) -> Waiting {
        let (channel, group_key) = (channel.to_owned(), group.to_owned());
        Waiting { id, channel, group_key, attempts, next_attempt_at: at(next) }
    }

    #[test]
    fn a_channel_sends_in_order_and_one_at_a_time() {
        let rows = [
            // Two channels do not wait for each other.
            (vec![row(1, "a", "g", 0, 0), row(2, "a", "g", 0, 0), row(3, "b", "g", 0, 0)], "", vec![1, 3]),
            (vec![row(1, "a", "g", 0, 0), row(3, "b", "g", 0, 0)], "a", vec![3]),
            // The first is being backed off: nothing of its channel passes.
            (vec![row(1, "a", "g", 1, 99), row(2, "a", "h", 0, 0), row(3, "b", "g", 0, 0)], "", vec![3]),
            // It failed too often: other groups pass, its own does not.
            (vec![row(1, "a", "g", 5, 99), row(2, "a", "g", 0, 0), row(3, "a", "h", 0, 0)], "", vec![3]),
            (vec![row(1, "a", "g", 5, 9), row(2, "a", "h", 0, 0)], "", vec![1]),
        ];
        for (waiting, busy, want) in rows {
            let busy = if busy.is_empty() { HashSet::new() } else { HashSet::from([busy.to_owned()]) };
            assert_eq!(ready(&waiting, &busy, at(10)), want, "{waiting:?}");
        }
    }

    #[test]
    fn failures_back_off_and_end() {
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        let fail = |retryable, retry_after| SendFailure { message: String::new(), retryable, retry_after };
        let retry = |seconds: f64| AfterFailure::Retry(at(1_000).plus_nanos((seconds * 1e9) as i64));
        let rows = [
            (fail(true, None), 1, 1_000, u32::MAX, retry(1.0)),
            (fail(true, None), 1, 1_000, 0, retry(0.5)),
            (fail(true, None), 2, 1_000, u32::MAX, retry(2.0)),
            (fail(true, None), 9, 1_000, u32::MAX, retry(256.0)),
            (fail(true, None), 10, 1_000, u32::MAX, retry(300.0)),
            (fail(true, None), 4_000_000, 1_000, u32::MAX, retry(300.0)),
            (fail(true, minutes(10)), 1, 1_000, 0, retry(600.0)),
            (fail(true, minutes(600)), 1, 1_000, 0, retry(3_600.0)),
            (fail(false, None), 1, 1_000, 0, AfterFailure::Dead),
            (fail(true, None), 1, 1_000 - 86_400, 0, AfterFailure::Dead),
        ];
        for (failure, attempts, created, dice, want) in rows {
            let got = after_failure(&failure, attempts, at(created), dice, at(1_000));
            assert_eq!(got, want, "{failure:?} {attempts}");
        }
    }

    proptest! {
        /// Whatever fails, messages of one group reach a channel in order.
        #[test]
        fn groups_stay_in_order(
            messages in proptest::collection::vec(("[ab]", "[gh]"), 1..12),
            luck in proptest::collection::vec(0_u32..4, 200),
        ) {
            let mut waiting: Vec<Waiting> =
                messages.iter().enumerate().map(|(id, (c, g))| row(id as i64, c, g, 0, 0)).collect();
            let mut sent: Vec<Waiting> = Vec::new();
            let mut now = at(0);
            for luck in luck.into_iter().chain(std::iter::repeat_n(0, 400)) {
                let chosen = ready(&waiting, &HashSet::new(), now);
                if chosen.is_empty() {
                    let Some(next) = next_attempt(&waiting, now) else { break };
                    now = next;
                }
                for id in chosen {
                    let index = waiting.iter().position(|row| row.id == id).unwrap();
                    if luck == 0 {
                        sent.push(waiting.remove(index));
                    } else {
                        waiting[index].attempts += 1;
                        let failure = SendFailure::retryable("");
                        match after_failure(&failure, waiting[index].attempts, now, luck, now) {
                            AfterFailure::Retry(next) => waiting[index].next_attempt_at = next,
                            AfterFailure::Dead => unreachable!(),
                        }
                    }
                }
            }
            prop_assert!(waiting.is_empty(), "everything is sent in the end: {waiting:?}");
            for (index, first) in sent.iter().enumerate() {
                for later in &sent[index + 1..] {
                    let same = first.channel == later.channel && first.group_key == later.group_key;
                    prop_assert!(!same || first.id < later.id);
                }
            }
        }
    }
}
