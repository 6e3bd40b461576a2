//! The period of an SLO: rolling, or calendar-aligned in a time zone.
//!
//! Pure: a period is a function of the window and now (I5). Calendar periods step in civil time from
//! their start, so a day is 23, 24 or 25 hours long where clocks change, and a month that starts on the
//! 31st does not wander. Not here: what is counted in a period.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp as Instant};
use model::time::Timestamp;

use crate::duration::{Shorthand, Unit};

/// Nanoseconds in a millisecond.
pub(crate) const NANOS_PER_MS: i64 = 1_000_000;

/// The longest period: five years of hourly counts are as much as one SLO may hold.
pub const PERIOD_DAYS_MAX: i64 = 5 * 366;

/// A stretch of time: from its start up to, and without, its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its first instant.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

impl Period {
    /// How long it is, in milliseconds.
    #[must_use]
    pub const fn length_ms(&self) -> i64 {
        (self.end.0 - self.start.0) / NANOS_PER_MS
    }
}

/// The window of an SLO.
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// The last so many milliseconds. A rolling month is 30 days, a quarter 90, a year 365.
    Rolling {
        /// As written.
        written: Shorthand,
        /// Its length in milliseconds.
        length_ms: i64,
    },
    /// One period after the other from a start, in a time zone.
    Calendar {
        /// The length of each period.
        step: Shorthand,
        /// When one of the periods starts, in civil time.
        start: DateTime,
        /// Where.
        zone: TimeZone,
    },
}

impl Window {
    /// A rolling window; `None` when it is empty or longer than [`PERIOD_DAYS_MAX`].
    #[must_use]
    pub fn rolling(written: Shorthand) -> Option<Self> {
        const DAY_MS: i64 = 86_400_000;
        let number = i64::from(written.number);
        let length_ms = match written.unit {
            Unit::Month => number.checked_mul(30 * DAY_MS)?,
            Unit::Quarter => number.checked_mul(90 * DAY_MS)?,
            Unit::Year => number.checked_mul(365 * DAY_MS)?,
            _ => written.fixed_ms()?,
        };
        (length_ms > 0 && length_ms <= PERIOD_DAYS_MAX * DAY_MS).then_some(Self::Rolling { written, length_ms })
    }

    /// A calendar window; `None` when it is empty or longer than [`PERIOD_DAYS_MAX`].
    #[must_use]
    pub fn calendar(step: Shorthand, start: DateTime, zone: TimeZone) -> Option<Self> {
        Self::rolling(step).map(|_| Self::Calendar { step, start, zone })
    }

    /// The period that now is in, or that ends now when it rolls.
    #[must_use]
    pub fn period(&self, now: Timestamp) -> Period {
        match self {
            Self::Rolling { length_ms, .. } => {
                Period { start: now.plus_nanos(-length_ms.saturating_mul(NANOS_PER_MS)), end: now }
            }
            Self::Calendar { step, start, zone } => calendar_period(*step, *start, zone, now),
        }
    }

    /// The longest that a period of this window gets, in milliseconds: how far back counts are kept.
    #[must_use]
    pub fn longest_ms(&self) -> i64 {
        const DAY_MS: i64 = 86_400_000;
        match self {
            Self::Rolling { length_ms, .. } => *length_ms,
            Self::Calendar { step, .. } => {
                let number = i64::from(step.number);
                match step.unit {
                    Unit::Month => number * 31 * DAY_MS + DAY_MS,
                    Unit::Quarter => number * 92 * DAY_MS + DAY_MS,
                    Unit::Year => number * 366 * DAY_MS + DAY_MS,
                    _ => step.fixed_ms().unwrap_or(DAY_MS) + DAY_MS,
                }
            }
        }
    }

    /// Whether the period starts anew at times, instead of rolling.
    #[must_use]
    pub const fn is_calendar(&self) -> bool {
        matches!(self, Self::Calendar { .. })
    }

    /// As OpenSLO writes its length.
    #[must_use]
    pub fn written(&self) -> String {
        match self {
            Self::Rolling { written, .. } => written.to_string(),
            Self::Calendar { step, zone, .. } => {
                format!("{step} ({})", zone.iana_name().unwrap_or("UTC"))
            }
        }
    }
}

fn calendar_period(step: Shorthand, start: DateTime, zone: &TimeZone, now: Timestamp) -> Period {
    let number = i64::from(step.number);
    let instant_of = |civil: DateTime| -> Option<i64> {
        let instant = zone.to_ambiguous_timestamp(civil).compatible().ok()?;
        i64::try_from(instant.as_nanosecond()).ok()
    };
    let nth = |n: i64| -> Option<i64> {
        let steps = n.checked_mul(number)?;
        let span = match step.unit {
            Unit::Minute | Unit::Hour => {
                // An hour is an hour, whatever the clocks say.
                let ms = step.fixed_ms()?.checked_mul(n)?.checked_mul(NANOS_PER_MS)?;
                return instant_of(start)?.checked_add(ms);
            }
            Unit::Day => Span::new().try_days(steps),
            Unit::Week => Span::new().try_weeks(steps),
            Unit::Month => Span::new().try_months(steps),
            Unit::Quarter => Span::new().try_months(steps.checked_mul(3)?),
            Unit::Year => Span::new().try_years(steps),
        };
        instant_of(start.checked_add(span.ok()?).ok()?)
    };
    let guess = Instant::from_nanosecond(i128::from(now.0)).map_or(0, |instant| {
        let civil = zone.to_datetime(instant);
        let months = (i64::from(civil.year()) - i64::from(start.year())) * 12 + i64::from(civil.month())
            - i64::from(start.month());
        let days = civil.date().since(start.date()).map_or(0, |span| i64::from(span.get_days()));
        match step.unit {
            Unit::Minute | Unit::Hour => {
                let ms = step.fixed_ms().unwrap_or(1);
                (now.0 - instant_of(start).unwrap_or(0)).div_euclid(ms.saturating_mul(NANOS_PER_MS))
            }
            Unit::Day => days.div_euclid(number),
            Unit::Week => days.div_euclid(7 * number),
            Unit::Month => months.div_euclid(number),
            Unit::Quarter => months.div_euclid(3 * number),
            Unit::Year => months.div_euclid(12 * number),
        }
    });
    // The guess is by whole days or months: it is right, or one off.
    let candidates = (guess - 2..=guess + 2).filter_map(|n| Some((nth(n)?, nth(n + 1)?)));
    candidates
        .into_iter()
        .find(|(from, to)| (*from..*to).contains(&now.0))
        .map_or(Period { start: now, end: now }, |(from, to)| Period { start: Timestamp(from), end: Timestamp(to) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(i64::try_from(text.parse::<Instant>().unwrap().as_nanosecond()).unwrap())
    }

    fn shown(at: Timestamp) -> String {
        Instant::from_nanosecond(i128::from(at.0)).unwrap().to_string()
    }

    #[test]
    fn calendar_periods_follow_the_zone_and_its_clock_changes() {
        for (step, start, zone, now, from, to) in [
            // Months in New York: winter and summer time.
            (
                "1M",
                "2020-01-01 00:00:00",
                "America/New_York",
                "2026-03-20T00:00:00Z",
                "2026-03-01T05:00:00Z",
                "2026-04-01T04:00:00Z",
            ),
            // The 31st is the last day of shorter months, and the 31st again after them.
            (
                "1M",
                "2026-01-31 12:00:00",
                "UTC",
                "2026-03-01T00:00:00Z",
                "2026-02-28T12:00:00Z",
                "2026-03-31T12:00:00Z",
            ),
            // 23 and 25 hours.
            (
                "1d",
                "2020-01-01 00:00:00",
                "Europe/Berlin",
                "2026-03-29T12:00:00Z",
                "2026-03-28T23:00:00Z",
                "2026-03-29T22:00:00Z",
            ),
            (
                "1d",
                "2020-01-01 00:00:00",
                "Europe/Berlin",
                "2026-10-25T12:00:00Z",
                "2026-10-24T22:00:00Z",
                "2026-10-25T23:00:00Z",
            ),
            // A start that the clock change leaves out is at the first instant after it.
            (
                "1d",
                "2020-01-01 02:30:00",
                "Europe/Berlin",
                "2026-03-29T12:00:00Z",
                "2026-03-29T01:30:00Z",
                "2026-03-30T00:30:00Z",
            ),
            (
                "1w",
                "2024-01-01 00:00:00",
                "Asia/Kolkata",
                "2026-11-24T00:00:00Z",
                "2026-11-22T18:30:00Z",
                "2026-11-29T18:30:00Z",
            ),
            (
                "1Q",
                "2020-01-01 00:00:00",
                "UTC",
                "2026-11-24T00:00:00Z",
                "2026-10-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "1Y",
                "2020-02-29 00:00:00",
                "UTC",
                "2026-11-24T00:00:00Z",
                "2026-02-28T00:00:00Z",
                "2027-02-28T00:00:00Z",
            ),
            (
                "12h",
                "2026-03-29 00:00:00",
                "Europe/Berlin",
                "2026-03-29T12:00:00Z",
                "2026-03-29T11:00:00Z",
                "2026-03-29T23:00:00Z",
            ),
            // Before the start, periods line up with it all the same.
            (
                "1M",
                "2030-01-01 00:00:00",
                "UTC",
                "2026-11-24T00:00:00Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
            // The first instant of a period is in it.
            (
                "1M",
                "2020-01-01 00:00:00",
                "UTC",
                "2026-11-01T00:00:00Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
        ] {
            let zone = TimeZone::get(zone).unwrap();
            let window = Window::calendar(Shorthand::parse(step).unwrap(), start.parse().unwrap(), zone).unwrap();
            let period = window.period(at(now));
            assert_eq!((shown(period.start).as_str(), shown(period.end).as_str()), (from, to), "{step} {start} {now}");
            assert!(period.length_ms() <= window.longest_ms());
        }
    }

    #[test]
    fn rolling_windows_end_now() {
        for (written, days) in [("1d", 1), ("4w", 28), ("1M", 30), ("1Q", 90), ("1Y", 365)] {
            let window = Window::rolling(Shorthand::parse(written).unwrap()).unwrap();
            let period = window.period(at("2026-11-24T00:00:00Z"));
            assert_eq!((period.length_ms(), period.end), (days * 86_400_000, at("2026-11-24T00:00:00Z")));
        }
        for refused in ["0d", "6Y", "4000000000Y"] {
            assert_eq!(Window::rolling(Shorthand::parse(refused).unwrap()), None, "{refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn periods_follow_each_other_without_gap_or_overlap(
            seconds in 0_i64..4_000_000_000,
            step in proptest::sample::select(vec!["1d", "3d", "1w", "2w", "1M", "5M", "1Q", "1Y", "7h"]),
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"]),
            start in proptest::sample::select(vec!["2020-01-31 02:30:00", "1999-12-31 23:59:59", "2031-03-30 00:00:00"]),
        ) {
            let zone = TimeZone::get(zone).unwrap();
            let window = Window::calendar(Shorthand::parse(step).unwrap(), start.parse().unwrap(), zone).unwrap();
            let now = Timestamp(seconds * 1_000_000_000);
            let period = window.period(now);
            proptest::prop_assert!(period.start <= now && now < period.end);
            proptest::prop_assert_eq!(window.period(period.end).start, period.end);
            proptest::prop_assert_eq!(window.period(period.end.plus_nanos(-1)), period);
            proptest::prop_assert!(period.length_ms() <= window.longest_ms());
        }
    }
}
