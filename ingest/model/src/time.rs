//! Points in time, and the one seam through which the process reads its clock.
//!
//! Decisions never read a clock: they take a [`Timestamp`] (I5). The rim of the program owns a
//! [`Clock`] and passes `now` inwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch, UTC. Range: years 1677 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Nanoseconds in a second.
    pub const NANOS_PER_SECOND: i64 = 1_000_000_000;

    /// This time plus so many nanoseconds (negative: minus), saturating at the range's ends.
    #[must_use]
    pub const fn plus_nanos(self, nanos: i64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// The start of this time's minute.
    #[must_use]
    pub const fn floor_minute(self) -> Self {
        const MINUTE: i64 = 60 * Timestamp::NANOS_PER_SECOND;
        Self(self.0.div_euclid(MINUTE).saturating_mul(MINUTE))
    }

    /// Days since the Unix epoch.
    #[must_use]
    pub const fn day(self) -> i64 {
        self.0.div_euclid(86_400 * Self::NANOS_PER_SECOND)
    }
}

/// Where `now` comes from: the system, or a test's hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's wall clock.
    #[default]
    System,
    /// A clock that moves only when told to.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A manual clock that stands at `at`.
    #[must_use]
    pub fn manual(at: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(at.0)))
    }

    /// The time now. A system clock before 1970 or after 2262 reads as the nearest end of the range.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
            ),
            Self::Manual(at) => Timestamp(at.load(Ordering::SeqCst)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_and_days_floor_towards_the_past() {
        for (nanos, minute, day) in
            [(0, 0, 0), (59_999_999_999, 0, 0), (60_000_000_000, 60_000_000_000, 0), (-1, -60_000_000_000, -1)]
        {
            assert_eq!(Timestamp(nanos).floor_minute(), Timestamp(minute));
            assert_eq!(Timestamp(nanos).day(), day);
        }
        assert_eq!(Timestamp(i64::MAX).plus_nanos(1), Timestamp(i64::MAX));
    }
}
