//! What counts mean: burn rates, budgets, forecasts, and that no data is none of them.
//!
//! Pure functions of counts and now (I5). Every decision is made on integers (I9): a burn rate is
//! compared by cross-multiplication, and a ratio is only ever shown. The table and its words are those of
//! Google's SRE Workbook, chapter 5. Not here: keeping counts, and the life of an alert.

use model::time::Timestamp;
use serde::Serialize;

use crate::counts::{BUCKET_MS, Events, bucket_of};
use crate::openslo::{Condition, Method, Share};
use crate::sli::RATIO_SCALE;
use crate::window::{NANOS_PER_MS, Period, Window};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// The window whose burn rate the forecast continues.
pub const FORECAST_WINDOW_MS: i64 = HOUR_MS;

/// One line of a burn-rate table: alert when the budget burns so fast over a long window, and still does
/// in a short one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Its name, unique in its table; a label of the alert.
    pub name: String,
    /// The severity of the alert.
    pub severity: String,
    /// The burn rate to exceed, in thousandths.
    pub threshold_milli: u64,
    /// Whether the very threshold is enough.
    pub or_equal: bool,
    /// The long window, milliseconds.
    pub long_ms: i64,
    /// The short window, milliseconds: it ends the alert soon after the burning ends.
    pub short_ms: Option<i64>,
    /// For how long it must be so, milliseconds.
    pub after_ms: i64,
    /// How many bad events in the long window are worth an alert; the guard's number when `None`.
    pub min_bad_events: Option<u64>,
}

/// The SRE Workbook's table for a period of 30 days: 2 % of the budget in an hour and 5 % in six hours
/// page, 10 % in a day and 10 % in three days open a ticket. Each short window is a twelfth.
#[must_use]
pub fn workbook() -> Vec<Rung> {
    [
        ("fast", "critical", 14_400, HOUR_MS, 5 * MINUTE_MS),
        ("slow", "critical", 6_000, 6 * HOUR_MS, 30 * MINUTE_MS),
        ("day", "warning", 3_000, DAY_MS, 2 * HOUR_MS),
        ("three days", "warning", 1_000, 3 * DAY_MS, 6 * HOUR_MS),
    ]
    .map(|(name, severity, threshold_milli, long_ms, short_ms)| Rung {
        name: name.to_owned(),
        severity: severity.to_owned(),
        threshold_milli,
        or_equal: false,
        long_ms,
        short_ms: Some(short_ms),
        after_ms: 0,
        min_bad_events: None,
    })
    .into()
}

impl From<&Condition> for Rung {
    fn from(condition: &Condition) -> Self {
        Self {
            name: condition.name.clone(),
            severity: condition.severity.clone(),
            threshold_milli: condition.threshold_milli,
            or_equal: condition.or_equal,
            long_ms: condition.long_ms,
            short_ms: condition.short_ms,
            after_ms: condition.after_ms,
            min_bad_events: condition.min_bad_events,
        }
    }
}

/// Keeps a few failures of a service that is hardly used from waking somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Bad events in the long window without which there is no alert.
    pub min_bad_events: u64,
    /// Ask, beyond the ratio, that the long window cost as much of the whole period's budget as it would
    /// at even traffic: a quiet hour's ratio says little of a month's budget.
    pub traffic_aware: bool,
}

impl Default for Guard {
    fn default() -> Self {
        // Two failures may be one person's retry; a third is a pattern.
        Self { min_bad_events: 3, traffic_aware: true }
    }
}

/// Counts to decide on. Buckets are those of [`crate::counts`].
pub trait Reading {
    /// What happened from a bucket up to, and without, another.
    fn between(&self, from: i64, to: i64) -> Events;
    /// What happened in so many buckets, and the one that now is in.
    fn recent(&self, buckets: i64, now: i64) -> Events {
        self.between(now - buckets, now + 1)
    }
    /// The last bucket something happened in.
    fn last(&self) -> Option<i64>;
}

/// What a rung says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// One of its windows is empty: nothing can be said, and nothing that was said is taken back (I10).
    NoData,
    /// It does not burn too fast.
    Calm,
    /// It would, if the guard did not find it too little.
    Guarded,
    /// It burns too fast.
    Burning,
}

/// What a window of a rung holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burn {
    /// Its events.
    pub events: Events,
    /// Its burn rate in thousandths, rounded down, for display; `None` without events.
    pub rate_milli: Option<u64>,
}

/// A rung, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// The long window.
    pub long: Burn,
    /// The short window.
    pub short: Option<Burn>,
}

/// How fast events burn the budget of a target, in thousandths; 1000 uses it up exactly at the period's end.
#[must_use]
pub fn rate_milli(events: Events, target: Share) -> Option<u64> {
    if events.total == 0 {
        return None;
    }
    let allowed = u128::from(events.total) * u128::from(target.rest());
    let rate = u128::from(events.bad()) * u128::from(Share::WHOLE) * 1_000 / allowed.max(1);
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Whether events burn faster than a threshold.
fn exceeds(events: Events, target: Share, rung: &Rung) -> bool {
    let burnt = u128::from(events.bad()) * u128::from(Share::WHOLE) * 1_000;
    let allowed =
        (u128::from(events.total) * u128::from(target.rest())).saturating_mul(u128::from(rung.threshold_milli));
    if rung.or_equal { burnt >= allowed } else { burnt > allowed }
}

/// Judges a rung. `period` is the SLO's period with what happened in it; `unit` how many counts one event
/// is, which is more than one for ratios only.
#[must_use]
pub fn judge(
    rung: &Rung,
    target: Share,
    reading: &(impl Reading + ?Sized),
    (period, in_period): (Period, Events),
    unit: u64,
    guard: Guard,
    now: Timestamp,
) -> Judged {
    let burn = |window_ms: i64| {
        let events = reading.recent(window_ms / BUCKET_MS, bucket_of(now.0));
        Burn { events, rate_milli: rate_milli(events, target) }
    };
    let long = burn(rung.long_ms);
    let short = rung.short_ms.map(burn);
    let verdict = if long.events.total == 0 || short.is_some_and(|short| short.events.total == 0) {
        Verdict::NoData
    } else if !exceeds(long.events, target, rung) || short.is_some_and(|short| !exceeds(short.events, target, rung)) {
        Verdict::Calm
    } else {
        let few = rung.min_bad_events.unwrap_or(guard.min_bad_events).saturating_mul(unit);
        // threshold × long / period of the whole period's budget, as counts:
        // bad ≥ threshold/1000 × long/length × rest/WHOLE × total.
        let length_ms = u128::try_from(period.length_ms().max(1)).unwrap_or(1);
        let long_ms = u128::try_from(rung.long_ms.max(0)).unwrap_or(0);
        let budget = u128::from(in_period.total) * u128::from(target.rest()) / 1_000;
        let cost = budget.saturating_mul(u128::from(rung.threshold_milli)).saturating_mul(long_ms) / length_ms;
        let cheap = guard.traffic_aware && u128::from(long.events.bad()) * u128::from(Share::WHOLE) < cost;
        if long.events.bad() < few || cheap { Verdict::Guarded } else { Verdict::Burning }
    };
    Judged { verdict, long, short }
}

/// The error budget of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Whole bad events that the period may have.
    pub allowed: u64,
    /// Bad events that it had.
    pub spent: u64,
    /// Bad events that it may have, in parts of [`Share::WHOLE`]: a hundred requests at 99.9 % may have a tenth of one.
    exact: u128,
}

impl Budget {
    /// A budget of which so much was spent.
    #[must_use]
    pub fn new(allowed: u64, spent: u64) -> Self {
        Self { allowed, spent, exact: u128::from(allowed) * u128::from(Share::WHOLE) }
    }

    /// What is left, in parts of [`Share::WHOLE`]; negative when more was spent than allowed.
    fn remaining(self) -> i128 {
        let exact = i128::try_from(self.exact).unwrap_or(i128::MAX);
        exact - i128::from(self.spent) * i128::from(Share::WHOLE)
    }

    /// The same budget, if this much of it were spent.
    #[must_use]
    pub fn with_spent(self, spent: u64) -> Self {
        Self { spent, ..self }
    }

    /// Whether something was spent, and nothing is left.
    #[must_use]
    pub fn is_used_up(self) -> bool {
        self.spent > 0 && self.remaining() <= 0
    }

    /// What is left of the whole, in thousandths; negative when more was spent than allowed. A budget of
    /// nothing is whole until something is spent.
    #[must_use]
    pub fn remaining_milli(self) -> i64 {
        if self.exact == 0 {
            return if self.spent == 0 {
                1_000
            } else {
                -1_000 * i64::try_from(self.spent).unwrap_or(i64::MAX / 1_000)
            };
        }
        let exact = i128::try_from(self.exact).unwrap_or(i128::MAX);
        i64::try_from(self.remaining() * 1_000 / exact).unwrap_or(i64::MIN)
    }
}

/// The budget of a period. Of events, it grows with the traffic so far; of slices, it is known from the
/// start, since a period has a number of slices.
#[must_use]
pub fn budget(target: Share, method: Method, period: Period, slice_ms: Option<i64>, events: Events) -> Budget {
    let slices = || u64::try_from(period.length_ms() / slice_ms.unwrap_or(MINUTE_MS).max(1)).unwrap_or(0);
    let whole = match method {
        Method::Occurrences => events.total,
        Method::Timeslices => slices(),
        Method::RatioTimeslices => slices().saturating_mul(RATIO_SCALE),
    };
    let exact = u128::from(whole) * u128::from(target.rest());
    let allowed = u64::try_from(exact / u128::from(Share::WHOLE)).unwrap_or(u64::MAX);
    Budget { allowed, spent: events.bad(), exact }
}

/// When the budget will be used up if it goes on as in the last hour; `None` when it lasts. A rolling
/// window gives back as much as it takes at a burn rate of one.
#[must_use]
pub fn exhaustion(
    budget: Budget,
    window: &Window,
    period: Period,
    rate_milli: Option<u64>,
    now: Timestamp,
) -> Option<Timestamp> {
    if budget.is_used_up() {
        return Some(now);
    }
    let rate = i128::from(rate_milli?);
    if rate == 0 || (!window.is_calendar() && rate <= 1_000) {
        return None;
    }
    let milli = i128::from(budget.remaining_milli());
    let ms = i128::from(period.length_ms()) * milli / rate;
    let at = now.plus_nanos(i64::try_from(ms * i128::from(NANOS_PER_MS)).unwrap_or(i64::MAX));
    (!window.is_calendar() || at < period.end).then_some(at)
}

/// Whether there is telemetry to judge at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "data")]
pub enum Data {
    /// There is.
    Fresh,
    /// There was none for longer than an SLO may be silent.
    Stale {
        /// The end of the last bucket that something happened in, nanoseconds since the epoch.
        since: i64,
    },
    /// There never was any.
    Never,
}

/// Whether there is telemetry, given how long an SLO may be silent.
#[must_use]
pub fn data(reading: &(impl Reading + ?Sized), silent_ms: i64, now: Timestamp) -> Data {
    match reading.last() {
        None => Data::Never,
        Some(last) => {
            let end = (last + 1) * BUCKET_MS * NANOS_PER_MS;
            if now.0 - end > silent_ms * NANOS_PER_MS { Data::Stale { since: end } } else { Data::Fresh }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duration::Shorthand;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);

    /// Events per bucket, the newest last; the last bucket is the one now is in.
    struct Past(Vec<Events>);

    impl Reading for Past {
        fn between(&self, from: i64, to: i64) -> Events {
            let end = bucket_of(NOW.0) + 1;
            let len = i64::try_from(self.0.len()).unwrap();
            let at = |bucket: i64| usize::try_from((bucket - end + len).clamp(0, len)).unwrap();
            self.0[at(from)..at(to).max(at(from))].iter().fold(Events::default(), |sum, events| Events {
                good: sum.good + events.good,
                total: sum.total + events.total,
            })
        }
        fn last(&self) -> Option<i64> {
            let back = self.0.iter().rev().position(|events| events.total > 0)?;
            Some(bucket_of(NOW.0) - i64::try_from(back).unwrap())
        }
    }

    fn rolling(text: &str) -> (Window, Period) {
        let window = Window::rolling(Shorthand::parse(text).unwrap()).unwrap();
        let period = window.period(NOW);
        (window, period)
    }

    const THREE_NINES: Share = Share(999_000_000);

    fn verdicts(past: &Past, guard: Guard) -> Vec<Verdict> {
        let (_, period) = rolling("30d");
        let events = past.between(i64::MIN / 2, i64::MAX / 2);
        workbook().iter().map(|rung| judge(rung, THREE_NINES, past, (period, events), 1, guard, NOW).verdict).collect()
    }

    #[test]
    fn the_table_is_budget_share_times_period_over_window() {
        // SRE Workbook, table 5-8 and the text around it: 2 % in 1 h, 5 % in 6 h, 10 % in 3 d; a day's 10 % is 3.
        for (rung, percent) in workbook().iter().zip([2, 5, 10, 10]) {
            let threshold = percent * 30 * DAY_MS * 10 / rung.long_ms;
            assert_eq!(i64::try_from(rung.threshold_milli).unwrap(), threshold, "{}", rung.name);
            assert_eq!(rung.short_ms.unwrap() * 12, rung.long_ms);
        }
    }

    #[test]
    fn time_to_exhaustion_is_that_of_the_workbook() {
        // SRE Workbook, table 5-4: error rate of a 99.9 % SLO, and time to exhaustion of 30 days' budget.
        let (window, period) = rolling("30d");
        for (bad_of_10_000, rate, ms) in [
            (10, 1_000, None),
            (20, 2_000, Some(15 * DAY_MS)),
            (100, 10_000, Some(3 * DAY_MS)),
            (10_000, 1_000_000, Some(2_592_000)), // 43 minutes
        ] {
            let events = Events { good: 10_000 - bad_of_10_000, total: 10_000 };
            assert_eq!(rate_milli(events, THREE_NINES), Some(rate));
            let whole = Budget::new(1_000, 0);
            let at = exhaustion(whole, &window, period, Some(rate), NOW);
            assert_eq!(at, ms.map(|ms| NOW.plus_nanos(ms * NANOS_PER_MS)), "{bad_of_10_000}");
        }
    }

    #[test]
    fn an_outage_is_detected_when_the_workbook_says() {
        // Detection time = (1 - SLO) / error ratio × window × burn rate: 51.84 s for a full outage and the
        // fast rung, 518.4 s at 10 % errors. In buckets of 10 s: 6 and 52.
        for (good, buckets) in [(0, 6), (90, 52)] {
            let detected = (1..400).find(|bad_buckets| {
                let mut past = vec![Events { good: 100, total: 100 }; 30 * 8_640 / 10];
                let len = past.len();
                past[len - bad_buckets..].fill(Events { good, total: 100 });
                let past = Past(past);
                let (_, period) = rolling("30d");
                let guard = Guard { min_bad_events: 1, traffic_aware: false };
                judge(&workbook()[0], THREE_NINES, &past, (period, Events::default()), 1, guard, NOW).verdict
                    == Verdict::Burning
            });
            assert_eq!(detected, Some(buckets));
        }
    }

    #[test]
    fn the_short_window_ends_an_alert_soon() {
        let mut past = vec![Events { good: 100, total: 100 }; 2 * 8_640];
        let len = past.len();
        // Ten minutes of outage, which ended five and a half minutes ago.
        past[len - 93..len - 33].fill(Events { good: 0, total: 100 });
        use Verdict::{Burning, Calm};
        assert_eq!(verdicts(&Past(past.clone()), Guard::default())[..2], [Calm, Burning]);
        past[len - 33..].fill(Events { good: 0, total: 100 });
        assert_eq!(verdicts(&Past(past), Guard::default())[..2], [Burning, Burning]);
    }

    #[test]
    fn no_data_is_its_own_verdict() {
        let mut past = vec![Events { good: 1, total: 100 }; 8_640];
        past.extend(vec![Events::default(); 31]);
        let past = Past(past);
        use Verdict::{Burning, NoData};
        assert_eq!(verdicts(&past, Guard::default())[..2], [NoData, Burning]);
        assert_eq!(
            data(&past, 299_999, NOW),
            Data::Stale { since: (bucket_of(NOW.0) - 30) * BUCKET_MS * NANOS_PER_MS }
        );
        assert_eq!(data(&past, 600_000, NOW), Data::Fresh);
        let never = Past(vec![Events::default(); 10]);
        assert_eq!(verdicts(&never, Guard::default()), [NoData; 4]);
        assert_eq!(data(&never, 600_000, NOW), Data::Never);
    }

    #[test]
    fn a_quiet_service_does_not_page_for_a_few_failures() {
        let mut past = vec![Events { good: 1, total: 1 }; 8_640];
        let len = past.len();
        // Six of 361 burn 16 times too fast in an hour, and 200 times in five minutes.
        past[len - 6..].fill(Events { good: 0, total: 1 });
        use Verdict::{Burning, Guarded};
        let at_least = |min_bad_events| Guard { min_bad_events, traffic_aware: false };
        assert_eq!(verdicts(&Past(past.clone()), at_least(6))[0], Burning);
        assert_eq!(verdicts(&Past(past), at_least(7))[0], Guarded);

        // A night at a hundredth of the day's traffic: ten failures are 2 % of a night's budget for an hour
        // and nothing to a day's.
        let mut past = vec![Events { good: 10_000, total: 10_000 }; 8_640];
        let len = past.len();
        past[len - 400..].fill(Events { good: 1, total: 1 });
        past[len - 10..].fill(Events { good: 0, total: 1 });
        let fixed = Guard { min_bad_events: 3, traffic_aware: false };
        assert_eq!(verdicts(&Past(past.clone()), fixed)[0], Burning);
        assert_eq!(verdicts(&Past(past), Guard::default())[0], Guarded);
    }

    #[test]
    fn budgets_are_exact() {
        let (_, period) = rolling("30d");
        for (target, method, slice, events, allowed, milli) in [
            // SRE Workbook, chapter 2: 3,000,000 requests over four weeks at 97 % allow 90,000 errors; a
            // bug's 15,000 errors cost a sixth of that.
            (970_000_000, Method::Occurrences, None, (2_985_000, 3_000_000), 90_000, 833),
            (999_000_000, Method::Occurrences, None, (999, 1_000), 1, 0),
            (999_000_000, Method::Occurrences, None, (998, 1_000), 1, -1_000),
            (999_000_000, Method::Occurrences, None, (0, 0), 0, 1_000),
            // A hundredth of an event was allowed, and one was bad.
            (999_000_000, Method::Occurrences, None, (9, 10), 0, -99_000),
            (999_000_000, Method::Occurrences, None, (1_998, 1_999), 1, 499),
            // 30 days have 43,200 minutes: 99.9 % allows 43 bad ones.
            (999_000_000, Method::Timeslices, Some(60_000), (100, 110), 43, 768),
            (999_000_000, Method::RatioTimeslices, Some(60_000), (99_500_000, 100_000_000), 43_200_000, 988),
            (0, Method::Occurrences, None, (0, 10), 10, 0),
        ] {
            let events = Events { good: events.0, total: events.1 };
            let budget = budget(Share(target), method, period, slice, events);
            assert_eq!((budget.allowed, budget.remaining_milli()), (allowed, milli), "{target} {events:?}");
        }
    }

    #[test]
    fn a_calendar_window_gives_nothing_back() {
        let zone = jiff::tz::TimeZone::UTC;
        let step = Shorthand::parse("1M").unwrap();
        let window = Window::calendar(step, "2026-01-01 00:00:00".parse().unwrap(), zone).unwrap();
        let period = window.period(NOW);
        let half = Budget::new(100, 50);
        let left = Timestamp(period.end.0).0 - NOW.0;
        let length = period.length_ms() * NANOS_PER_MS;
        // Slow enough to last, and just too fast.
        let lasts = u64::try_from(i128::from(length) * 500 / i128::from(left)).unwrap();
        assert_eq!(exhaustion(half, &window, period, Some(lasts - 1), NOW), None);
        assert!(exhaustion(half, &window, period, Some(lasts + 2), NOW).is_some());
        assert_eq!(exhaustion(Budget::new(1, 2), &window, period, None, NOW), Some(NOW));
    }

    #[test]
    fn a_composite_or_extreme_count_does_not_overflow() {
        let events = Events { good: 0, total: u64::MAX };
        let (_, period) = rolling("1Y");
        assert_eq!(rate_milli(events, THREE_NINES), Some(1_000_000));
        let past = Past(vec![events]);
        let rung = Rung { threshold_milli: 1_000_000_000, ..workbook().remove(0) };
        let judged = judge(&rung, Share(0), &past, (period, events), 1, Guard::default(), NOW);
        assert_eq!((judged.verdict, judged.long.rate_milli), (Verdict::Calm, Some(1_000)));
    }
}
