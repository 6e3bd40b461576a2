//! Named times: hours, weekdays, days of the month, months and years in a time zone.
//!
//! Whether a time is inside is a pure question (I5); zones come from the database in the binary. Not
//! here: what a route does at such times.

use jiff::Timestamp as JiffTimestamp;
use jiff::tz::TimeZone;
use model::time::Timestamp;

/// A name for a set of times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeInterval {
    /// The name routes use.
    pub name: String,
    /// It is now if one of these is now.
    pub ranges: Vec<TimeRange>,
}

/// Times that satisfy every part that is there. Ranges include both ends, except minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// Minutes of the day, from (inclusive) and to (exclusive).
    pub minutes: Option<Vec<(i32, i32)>>,
    /// Days of the week, Sunday is 0.
    pub weekdays: Option<Vec<(i32, i32)>>,
    /// Days of the month from 1; negative ones count from its end.
    pub days_of_month: Option<Vec<(i32, i32)>>,
    /// Months from 1.
    pub months: Option<Vec<(i32, i32)>>,
    /// Years.
    pub years: Option<Vec<(i32, i32)>>,
    /// The zone all of these are meant in.
    pub zone: TimeZone,
}

impl Default for TimeRange {
    fn default() -> Self {
        Self { minutes: None, weekdays: None, days_of_month: None, months: None, years: None, zone: TimeZone::UTC }
    }
}

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

impl TimeInterval {
    /// Whether a time is in it.
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        self.ranges.iter().any(|range| range.contains(at))
    }
}

impl TimeRange {
    /// Whether a time is in it.
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        let Ok(instant) = JiffTimestamp::from_nanosecond(i128::from(at.0)) else {
            return false;
        };
        let local = instant.to_zoned(self.zone.clone());
        let within = |ranges: &Option<Vec<(i32, i32)>>, value: i32| {
            ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|(from, to)| (*from..=*to).contains(&value)))
        };
        let minute = i32::from(local.hour()) * 60 + i32::from(local.minute());
        let in_minutes =
            self.minutes.as_ref().is_none_or(|ranges| ranges.iter().any(|(from, to)| (*from..*to).contains(&minute)));
        let days = i32::from(local.days_in_month());
        let from_end = |day: i32| if day < 0 { days + day + 1 } else { day };
        let in_days = self.days_of_month.as_ref().is_none_or(|ranges| {
            ranges.iter().any(|(from, to)| {
                let (from, to) = (from_end(*from), from_end(*to).min(days));
                (from..=to).contains(&i32::from(local.day()))
            })
        });
        in_minutes
            && in_days
            && within(&self.weekdays, i32::from(local.weekday().to_sunday_zero_offset()))
            && within(&self.months, i32::from(local.month()))
            && within(&self.years, i32::from(local.year()))
    }
}

/// Reads a time of the day, in minutes since midnight. 24:00 is one.
///
/// # Errors
///
/// When it is none.
pub fn parse_minute(text: &str) -> Result<i32, String> {
    let bad = || format!("{text:?} is no time of the day: expected HH:MM from 00:00 to 24:00");
    let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
    if hours.len() != 2 || minutes.len() != 2 {
        return Err(bad());
    }
    let (hours, minutes): (u8, u8) = (hours.parse().map_err(|_| bad())?, minutes.parse().map_err(|_| bad())?);
    if minutes > 59 || hours > 24 || (hours == 24 && minutes > 0) {
        return Err(bad());
    }
    Ok(i32::from(hours) * 60 + i32::from(minutes))
}

/// Reads a start and an end within one day.
///
/// # Errors
///
/// When one is no time, or the end is not after the start.
pub fn parse_minutes(start: &str, end: &str) -> Result<(i32, i32), String> {
    let (from, to) = (parse_minute(start)?, parse_minute(end)?);
    if from >= to {
        return Err(format!("{start} is not before {end}: a range that passes midnight is two ranges"));
    }
    Ok((from, to))
}

fn range(text: &str, parse: impl Fn(&str) -> Result<i32, String>) -> Result<(i32, i32), String> {
    let lower = text.trim().to_lowercase();
    match lower.split_once(':') {
        None => parse(&lower).map(|one| (one, one)),
        Some((from, to)) => {
            let (from, to) = (parse(from)?, parse(to)?);
            // Days that count from the end compare with their like only.
            if (from < 0) == (to < 0) && from > to {
                return Err(format!("{text:?} ends before it starts"));
            }
            Ok((from, to))
        }
    }
}

/// Reads `monday:friday` or `sunday`.
///
/// # Errors
///
/// When a day has no such name or the range runs backwards.
pub fn parse_weekdays(text: &str) -> Result<(i32, i32), String> {
    range(text, |day| {
        WEEKDAYS
            .iter()
            .position(|name| *name == day)
            .and_then(|at| i32::try_from(at).ok())
            .ok_or_else(|| format!("{day:?} is no day of the week: expected sunday to saturday"))
    })
}

/// Reads `1:5`, `-3:-1` or `15`.
///
/// # Errors
///
/// When a day is 0 or beyond 31, or the range runs backwards in every month.
pub fn parse_days_of_month(text: &str) -> Result<(i32, i32), String> {
    let (from, to) = range(text, |day| {
        let number = day.parse().ok().filter(|day: &i32| *day != 0 && (-31..=31).contains(day));
        number.ok_or_else(|| format!("{day:?} is no day of a month: expected 1 to 31, or -31 to -1 from its end"))
    })?;
    if from < 0 && to > 0 {
        return Err(format!("{text:?} starts from the month's end: its end must be negative too"));
    }
    Ok((from, to))
}

/// Reads `1:3`, `may:august` or `december`.
///
/// # Errors
///
/// When a month does not exist or the range runs backwards.
pub fn parse_months(text: &str) -> Result<(i32, i32), String> {
    range(text, |month| {
        let named = MONTHS.iter().position(|name| *name == month).and_then(|at| i32::try_from(at + 1).ok());
        let number = named.or_else(|| month.parse().ok().filter(|number| (1..=12).contains(number)));
        number.ok_or_else(|| format!("{month:?} is no month: expected january to december or 1 to 12"))
    })
}

/// Reads `2020:2022` or `2030`.
///
/// # Errors
///
/// When a year is no number or the range runs backwards.
pub fn parse_years(text: &str) -> Result<(i32, i32), String> {
    range(text, |year| {
        let number = year.parse().ok().filter(|year| (1..=9999).contains(year));
        number.ok_or_else(|| format!("{year:?} is no year"))
    })
}

/// Finds a time zone by its IANA name.
///
/// # Errors
///
/// When there is none of that name. `Local` is refused: the same file would mean different times on
/// different machines.
pub fn parse_location(name: &str) -> Result<TimeZone, String> {
    match name {
        "UTC" | "" => Ok(TimeZone::UTC),
        "Local" => Err("`Local` depends on the machine: name the zone, such as Europe/Berlin".to_owned()),
        _ => {
            TimeZone::get(name).map_err(|_| format!("there is no time zone {name:?}: expected one like Europe/Berlin"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let instant: JiffTimestamp = text.parse().unwrap();
        Timestamp(i64::try_from(instant.as_nanosecond()).unwrap())
    }

    #[test]
    fn times_are_inside_or_outside() {
        let business = TimeRange {
            minutes: Some(vec![parse_minutes("09:00", "17:00").unwrap()]),
            weekdays: Some(vec![parse_weekdays("monday:friday").unwrap()]),
            ..TimeRange::default()
        };
        let end_of_month =
            TimeRange { days_of_month: Some(vec![parse_days_of_month("-3:-1").unwrap()]), ..TimeRange::default() };
        let late =
            TimeRange { days_of_month: Some(vec![parse_days_of_month("30:31").unwrap()]), ..TimeRange::default() };
        let to_the_end =
            TimeRange { days_of_month: Some(vec![parse_days_of_month("28:-1").unwrap()]), ..TimeRange::default() };
        let summer = TimeRange {
            months: Some(vec![parse_months("June:8").unwrap()]),
            years: Some(vec![parse_years("2026").unwrap()]),
            ..TimeRange::default()
        };
        let sydney = TimeRange {
            minutes: Some(vec![parse_minutes("09:00", "24:00").unwrap()]),
            zone: parse_location("Australia/Sydney").unwrap(),
            ..TimeRange::default()
        };
        let rows = [
            (&business, "2026-11-24T09:00:00Z", true), // a Tuesday
            (&business, "2026-11-24T08:59:59.999Z", false),
            (&business, "2026-11-24T17:00:00Z", false),
            (&business, "2026-11-22T12:00:00Z", false),
            (&end_of_month, "2026-02-26T00:00:00Z", true),
            (&end_of_month, "2026-02-25T23:59:59Z", false),
            (&end_of_month, "2028-02-27T00:00:00Z", true),
            (&late, "2026-02-28T00:00:00Z", false),
            (&late, "2026-04-30T00:00:00Z", true),
            (&to_the_end, "2026-03-31T00:00:00Z", true),
            (&to_the_end, "2026-03-27T00:00:00Z", false),
            (&summer, "2026-06-01T00:00:00Z", true),
            (&summer, "2027-06-01T00:00:00Z", false),
            (&summer, "2026-09-01T00:00:00Z", false),
            (&sydney, "2026-01-01T22:00:00Z", true), // 09:00 in summer time, UTC+11
            (&sydney, "2026-07-01T22:00:00Z", false), // 08:00 in winter, UTC+10
            (&sydney, "2026-01-01T12:59:00Z", true),
        ];
        for (range, time, want) in rows {
            assert_eq!(range.contains(at(time)), want, "{range:?} {time}");
        }
        assert!(TimeRange::default().contains(Timestamp(0)), "no part is no limit");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            parse_minutes("9:00", "17:00"),
            parse_minutes("17:00", "09:00"),
            parse_minutes("00:00", "24:01"),
            parse_minutes("00:60", "24:00"),
            parse_weekdays("friday:monday"),
            parse_weekdays("mon"),
            parse_days_of_month("0"),
            parse_days_of_month("32"),
            parse_days_of_month("5:1"),
            parse_days_of_month("-1:5"),
            parse_months("13"),
            parse_months("may:april"),
            parse_years("x"),
        ] {
            assert!(bad.is_err(), "{bad:?}");
        }
        assert!(parse_location("Mars/Olympus").is_err());
        assert!(parse_location("Local").is_err());
    }
}
