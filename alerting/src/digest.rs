//! Digests: when what a channel collected is sent, and which of it is told.
//!
//! A channel with a digest is told nothing at once: what it would be told is collected, each alert as it was
//! last, and sent as one message a day. Pure: times and alerts in, decisions out. Not here: the collection's
//! storage (`repository.rs`) and the message's form (`notify/email.rs`).

use std::collections::BTreeSet;

use jiff::Timestamp as JiffTimestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use model::time::Timestamp;

use crate::labels::Fingerprint;
use crate::notification::{Status, ToldAlert};

/// Alerts that one channel collects. With more, its digest goes out early: nothing is left out in silence, and a
/// storm does not fill the disk.
pub const COLLECTED_MAX: usize = 10_000;

/// Alerts that one digest shows; the others are counted. Nobody reads on, and templates print only so much.
pub const TOLD_MAX: usize = 200;

/// A time of every day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DailyTime {
    /// Minutes since midnight, below 1,440.
    pub minute: i32,
    /// Whose midnight.
    pub zone: TimeZone,
}

impl DailyTime {
    /// The first such time after another one. Where clocks skip it, the time that takes its place.
    #[must_use]
    pub fn next_after(&self, since: Timestamp) -> Timestamp {
        let next = || -> Option<Timestamp> {
            let minute = self.minute.rem_euclid(1_440);
            let time = Time::new(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0).ok()?;
            let instant = JiffTimestamp::from_nanosecond(i128::from(since.0)).ok()?;
            let mut date = instant.to_zoned(self.zone.clone()).date();
            // Today's may be over, and where a zone skips a day, tomorrow's may not exist.
            for _ in 0..3 {
                let at = date.to_datetime(time).to_zoned(self.zone.clone()).ok()?.timestamp();
                let at = Timestamp(i64::try_from(at.as_nanosecond()).ok()?);
                if at > since {
                    return Some(at);
                }
                date = date.tomorrow().ok()?;
            }
            None
        };
        // Beyond the years that dates have, there is no day to wait for.
        next().unwrap_or(since)
    }
}

/// What a channel has collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// When the first of it came.
    pub since: Timestamp,
    /// The alerts it is about.
    pub alerts: BTreeSet<Fingerprint>,
}

/// When a collection is to be sent. A channel that has no digest any more has nothing to wait for.
#[must_use]
pub fn due(collected: &Collected, daily: Option<&DailyTime>) -> Timestamp {
    match daily {
        Some(daily) if collected.alerts.len() < COLLECTED_MAX => daily.next_after(collected.since),
        _ => collected.since,
    }
}

/// The alerts a digest shows, in their order, and how many it only counts: what fires comes before what is over.
#[must_use]
pub fn told(mut alerts: Vec<ToldAlert>) -> (Vec<ToldAlert>, u64) {
    alerts.sort_by(|a, b| {
        (a.status == Status::Resolved)
            .cmp(&(b.status == Status::Resolved))
            .then_with(|| a.labels.alert_order(&b.labels))
    });
    let left_out = alerts.len().saturating_sub(TOLD_MAX);
    alerts.truncate(TOLD_MAX);
    (alerts, left_out as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant;
    use crate::labels::LabelSet;

    fn at(text: &str) -> Timestamp {
        instant::parse(text).unwrap().unwrap()
    }

    #[test]
    fn the_next_time_of_day_is_found_in_every_zone() {
        // Minute of the day, zone, since, next.
        for (minute, zone, since, next) in [
            (480, "UTC", "2026-11-24T07:59:59Z", "2026-11-24T08:00:00Z"),
            (480, "UTC", "2026-11-24T08:00:00Z", "2026-11-25T08:00:00Z"),
            (480, "UTC", "2026-12-31T09:00:00Z", "2027-01-01T08:00:00Z"),
            (480, "Europe/Berlin", "2026-11-24T00:00:00Z", "2026-11-24T07:00:00Z"),
            // The day is tomorrow there already.
            (480, "Pacific/Auckland", "2026-11-24T20:00:00Z", "2026-11-25T19:00:00Z"),
            // 02:30 is skipped on the 29th of March and twice there on the 25th of October.
            (150, "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z"),
            (150, "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            (150, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
            // Samoa skipped the 30th of December 2011.
            (480, "Pacific/Apia", "2011-12-29T18:00:00Z", "2011-12-30T18:00:00Z"),
        ] {
            let daily = DailyTime { minute, zone: TimeZone::get(zone).unwrap() };
            assert_eq!(
                instant::format(daily.next_after(at(since))),
                instant::format(at(next)),
                "{minute} {zone} {since}"
            );
        }
        let daily = DailyTime { minute: 0, zone: TimeZone::UTC };
        assert!(daily.next_after(Timestamp(i64::MAX)) >= Timestamp(i64::MAX - 86_400_000_000_000));
    }

    #[test]
    fn a_full_collection_goes_out_early() {
        let daily = DailyTime { minute: 480, zone: TimeZone::UTC };
        let since = at("2026-11-24T12:00:00Z");
        let of = |count: usize| Collected { since, alerts: (0..count as u64).map(Fingerprint).collect() };
        assert_eq!(due(&of(COLLECTED_MAX - 1), Some(&daily)), at("2026-11-25T08:00:00Z"));
        assert_eq!(due(&of(COLLECTED_MAX), Some(&daily)), since);
        assert_eq!(due(&of(1), None), since, "the channel has no digest any more");
    }

    #[test]
    fn what_fires_is_told_first_and_the_rest_is_counted() {
        let alert = |number: usize| ToldAlert {
            status: if number.is_multiple_of(2) { Status::Resolved } else { Status::Firing },
            labels: [("alertname", format!("A{number:03}"))].into_iter().collect(),
            annotations: LabelSet::default(),
            starts_at: 0,
            ends_at: None,
            generator_url: String::new(),
        };
        let (alerts, left_out) = told((0..250).rev().map(alert).collect());
        assert_eq!((alerts.len(), left_out), (TOLD_MAX, 50));
        let names: Vec<&str> = alerts.iter().map(|alert| alert.labels.get("alertname")).collect();
        assert_eq!((names[0], names[124], names[125], names[199]), ("A001", "A249", "A000", "A148"));
        assert_eq!(told(vec![alert(1)]).1, 0);
    }
}
