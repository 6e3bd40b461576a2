//! Go's times and durations as templates see them: their text, their layouts, their arithmetic.
//!
//! Not here: configuration's durations and the API's times.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

/// A time with the offset and the name of its zone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct GoTime {
    instant: Timestamp,
    offset_seconds: i32,
    zone: String,
}

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct GoDuration(pub(super) i64);

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The parts of a layout, longer ones before those they begin with.
const PARTS: [&str; 27] = [
    "January", "Jan", "Monday", "Mon", "MST", "2006", "-07:00", "-0700", "-07", "Z07:00", "Z0700", "01", "02", "03",
    "04", "05", "06", "002", "15", "_2", "PM", "pm", "1", "2", "3", "4", "5",
];

impl GoTime {
    pub(super) fn from_nanos(nanos: i64) -> Self {
        let instant = Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default();
        Self { instant, offset_seconds: 0, zone: "UTC".to_owned() }
    }

    /// Go's time of nothing: the first of January of the year 1.
    pub(super) fn zero() -> Self {
        let instant = Timestamp::from_second(-62_135_596_800).unwrap_or_default();
        Self { instant, offset_seconds: 0, zone: "UTC".to_owned() }
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::zero()
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (date, clock, offset, zone) = (words.next()?, words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || date.len() != 10 || offset.len() != 5 {
            return None;
        }
        let (sign, digits) = offset.split_at_checked(1)?;
        let (hours, minutes) = digits.split_at_checked(2)?;
        let seconds = hours.parse::<i32>().ok()? * 3_600 + minutes.parse::<i32>().ok()? * 60;
        let instant: Timestamp = format!("{date}T{clock}{sign}{hours}:{minutes}").parse().ok()?;
        let offset_seconds = if sign == "-" { -seconds } else { seconds };
        Some(Self { instant, offset_seconds, zone: zone.to_owned() })
    }

    pub(super) fn in_zone(&self, name: &str) -> Option<Self> {
        let zone = TimeZone::get(name).ok()?;
        let info = zone.to_offset_info(self.instant);
        Some(Self {
            instant: self.instant,
            offset_seconds: info.offset().seconds(),
            zone: info.abbreviation().to_owned(),
        })
    }

    pub(super) fn unix_seconds(&self) -> i64 {
        self.instant.as_second()
    }

    pub(super) fn unix_millis(&self) -> i64 {
        self.instant.as_millisecond()
    }

    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.instant < other.instant
    }

    pub(super) fn since(&self, earlier: &Self) -> GoDuration {
        let nanos = self.instant.as_nanosecond() - earlier.instant.as_nanosecond();
        GoDuration(i64::try_from(nanos.clamp(i128::from(i64::MIN), i128::from(i64::MAX))).unwrap_or(i64::MAX))
    }

    /// Writes the time in a layout of Go, whose example is 15:04:05 on Monday, 2 January 2006.
    pub(super) fn format(&self, layout: &str) -> String {
        let offset = Offset::from_seconds(self.offset_seconds).unwrap_or(Offset::UTC);
        let local = offset.to_datetime(self.instant);
        let weekday = WEEKDAYS[usize::from(local.weekday().to_sunday_zero_offset().unsigned_abs())];
        let month = MONTHS[usize::from(local.month().unsigned_abs()) - 1];
        let hour12 = (local.hour() + 11) % 12 + 1;
        let zone = |colon: &str, utc: Option<&str>| match utc {
            Some(utc) if self.offset_seconds == 0 => utc.to_owned(),
            _ => {
                let sign = if self.offset_seconds < 0 { '-' } else { '+' };
                let minutes = self.offset_seconds.abs() / 60;
                format!("{sign}{:02}{colon}{:02}", minutes / 60, minutes % 60)
            }
        };
        let mut out = String::new();
        let mut rest = layout;
        while let Some(character) = rest.chars().next() {
            if let Some((fraction, length)) =
                fraction(rest, local.subsec_nanosecond(), out.ends_with(|c: char| c.is_ascii_digit()))
            {
                out.push_str(&fraction);
                rest = &rest[length..];
                continue;
            }
            let Some(part) = PARTS.iter().find(|part| rest.starts_with(**part)) else {
                out.push(character);
                rest = &rest[character.len_utf8()..];
                continue;
            };
            let written = match *part {
                "January" => month.to_owned(),
                "Jan" => month[..3].to_owned(),
                "Monday" => weekday.to_owned(),
                "Mon" => weekday[..3].to_owned(),
                "MST" => self.zone.clone(),
                "2006" => format!("{:04}", local.year()),
                "06" => format!("{:02}", local.year() % 100),
                "-07:00" => zone(":", None),
                "-0700" => zone("", None),
                "-07" => zone("", None)[..3].to_owned(),
                "Z07:00" => zone(":", Some("Z")),
                "Z0700" => zone("", Some("Z")),
                "01" => format!("{:02}", local.month()),
                "1" => local.month().to_string(),
                "02" => format!("{:02}", local.day()),
                "_2" => format!("{:2}", local.day()),
                "2" => local.day().to_string(),
                "002" => format!("{:03}", local.day_of_year()),
                "15" => format!("{:02}", local.hour()),
                "03" => format!("{hour12:02}"),
                "3" => hour12.to_string(),
                "04" => format!("{:02}", local.minute()),
                "4" => local.minute().to_string(),
                "05" => format!("{:02}", local.second()),
                "5" => local.second().to_string(),
                "PM" => if local.hour() < 12 { "AM" } else { "PM" }.to_owned(),
                _ => if local.hour() < 12 { "am" } else { "pm" }.to_owned(),
            };
            out.push_str(&written);
            rest = &rest[part.len()..];
        }
        out
    }
}

/// Fractions of a second at the start of a layout: `.000` keeps its digits, `.999` drops zeros.
fn fraction(layout: &str, nanos: i32, after_digit: bool) -> Option<(String, usize)> {
    let sign = layout.chars().next().filter(|c| after_digit && matches!(c, '.' | ','))?;
    let digit = layout[1..].chars().next().filter(|c| matches!(c, '0' | '9'))?;
    let count = layout[1..].chars().take_while(|c| *c == digit).count();
    if count > 9 || layout[1 + count..].starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = &format!("{nanos:09}")[..count];
    let digits = if digit == '9' { digits.trim_end_matches('0') } else { digits };
    let written = if digits.is_empty() { String::new() } else { format!("{sign}{digits}") };
    Some((written, 1 + count))
}

impl fmt::Display for GoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.format("2006-01-02 15:04:05.999999999 -0700 MST"))
    }
}

impl GoDuration {
    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if rest == "0s" {
            return Some(Self(0));
        }
        let mut total = 0.0;
        let mut any = false;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let (unit, scale) = [("h", 3.6e12), ("ms", 1e6), ("m", 6e10), ("µs", 1e3), ("ns", 1.0), ("s", 1e9)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))?;
            total += number * scale;
            rest = &rest[unit.len()..];
            any = true;
        }
        // Durations here are differences of times: far below the range of exact whole numbers of f64 matters not.
        any.then_some(Self(if negative { -total } else { total } as i64))
    }

    pub(super) fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let trimmed = |value: f64| {
            let text = format!("{value:.9}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", trimmed(nanos as f64 / 1e3)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", trimmed(nanos as f64 / 1e6)),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                write!(f, "{}s", trimmed((seconds % 60) as f64 + (nanos % 1_000_000_000) as f64 / 1e9))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_layouts_of_go() {
        // 2026-03-05 07:08:09.012345678 UTC, a Thursday.
        let time = GoTime::from_nanos(1_772_694_489_012_345_678);
        let berlin = time.in_zone("Europe/Berlin").unwrap();
        for (layout, want) in [
            ("2006-01-02T15:04:05Z07:00", "2026-03-05T07:08:09Z"),
            ("2006-01-02T15:04:05.000Z07:00", "2026-03-05T07:08:09.012Z"),
            ("Mon, 02 Jan 2006 15:04:05 MST", "Thu, 05 Mar 2026 07:08:09 UTC"),
            ("Monday, January 2 2006", "Thursday, March 5 2026"),
            ("3:04PM _2 06", "7:08AM  5 26"),
            ("1/2 03:04:05 pm 002", "3/5 07:08:09 am 064"),
            ("15h -0700", "07h +0000"),
            ("ü", "ü"),
        ] {
            assert_eq!(time.format(layout), want, "{layout}");
        }
        assert_eq!(berlin.to_string(), "2026-03-05 08:08:09.012345678 +0100 CET");
        assert_eq!(GoTime::parse(&berlin.to_string()), Some(berlin.clone()));
        assert_eq!(berlin.since(&time), GoDuration(0));
        assert_eq!(GoTime::zero().to_string(), "0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(GoTime::parse("a text of four"), None);
        assert!(time.in_zone("Nowhere").is_none());
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (-90_000_000_000, "-1m30s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), want);
            assert_eq!(GoDuration::parse(want), Some(GoDuration(nanos)));
        }
        assert_eq!(GoDuration::parse("x"), None);
        assert_eq!(GoDuration::parse(""), None);
    }
}
