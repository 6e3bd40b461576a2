//! Durations as people write them: OpenSLO's shorthand and Prometheus' format.
//!
//! Not here: how long a month is; only a calendar window in a time zone knows ([`crate::window`]).

use std::fmt;

/// Milliseconds in a second, a minute, an hour, a day and a week.
const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// The unit of an OpenSLO duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// `m`
    Minute,
    /// `h`
    Hour,
    /// `d`
    Day,
    /// `w`
    Week,
    /// `M`
    Month,
    /// `Q`
    Quarter,
    /// `Y`
    Year,
}

/// An OpenSLO duration: a positive number and a unit, such as `5m` or `1Q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shorthand {
    /// How many.
    pub number: u32,
    /// Of what.
    pub unit: Unit,
}

impl Shorthand {
    /// Parses `5m`, `1h`, `30d`, `4w`, `1M`, `1Q`, `1Y`: a positive number and one letter.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let unit = match text.chars().last()? {
            'm' => Unit::Minute,
            'h' => Unit::Hour,
            'd' => Unit::Day,
            'w' => Unit::Week,
            'M' => Unit::Month,
            'Q' => Unit::Quarter,
            'Y' => Unit::Year,
            _ => return None,
        };
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { number: digits.parse().ok()?, unit })
    }

    /// Its length when that does not depend on a calendar: up to weeks. Milliseconds.
    #[must_use]
    pub fn fixed_ms(self) -> Option<i64> {
        let unit = match self.unit {
            Unit::Minute => MINUTE,
            Unit::Hour => HOUR,
            Unit::Day => DAY,
            Unit::Week => WEEK,
            Unit::Month | Unit::Quarter | Unit::Year => return None,
        };
        i64::from(self.number).checked_mul(unit)
    }
}

impl fmt::Display for Shorthand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Minute => 'm',
            Unit::Hour => 'h',
            Unit::Day => 'd',
            Unit::Week => 'w',
            Unit::Month => 'M',
            Unit::Quarter => 'Q',
            Unit::Year => 'Y',
        };
        write!(f, "{}{unit}", self.number)
    }
}

/// Parses Prometheus' duration format: `1h30m`, units in falling order, each once; a year is 365 days,
/// `0` needs no unit. Milliseconds.
#[must_use]
pub fn prometheus_ms(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 7] =
        [("y", 365 * DAY), ("w", WEEK), ("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total, mut next) = (text, 0_i64, 0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let at = UNITS.iter().position(|(unit, _)| *unit == &after[..letters])?;
        if at < next {
            return None;
        }
        next = at + 1;
        total = total.checked_add(number.checked_mul(UNITS[at].1)?)?;
        rest = &after[letters..];
    }
    Some(total)
}

/// A duration in milliseconds as Prometheus writes it.
#[must_use]
pub fn display_ms(ms: i64) -> String {
    let mut rest = ms;
    let mut out = String::new();
    for (unit, size) in [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)] {
        let number = rest / size;
        if number > 0 {
            out.push_str(&format!("{number}{unit}"));
            rest -= number * size;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorthand_is_a_number_and_one_letter() {
        for (text, want) in [
            ("5m", Some((5, Unit::Minute))),
            ("12h", Some((12, Unit::Hour))),
            ("1M", Some((1, Unit::Month))),
            ("1Q", Some((1, Unit::Quarter))),
            ("365d", Some((365, Unit::Day))),
            ("1Y", Some((1, Unit::Year))),
            ("", None),
            ("m", None),
            ("-1m", None),
            ("1.5h", None),
            ("1 h", None),
            ("5", None),
            ("5s", None),
            ("99999999999m", None),
            ("5é", None),
        ] {
            let found = Shorthand::parse(text);
            assert_eq!(found.map(|found| (found.number, found.unit)), want, "{text}");
            if let Some(found) = found {
                assert_eq!(found.to_string(), text);
            }
        }
    }

    #[test]
    fn prometheus_durations_fall_in_unit() {
        for (text, want) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5m", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("1d2h3m4s5ms", Some(93_784_005)),
            ("1y", Some(31_536_000_000)),
            ("30m1h", None),
            ("5m5m", None),
            ("5", None),
            ("m", None),
            ("", None),
            ("1.5h", None),
            ("-5m", None),
            ("9999999999999999999y", None),
        ] {
            assert_eq!(prometheus_ms(text), want, "{text}");
        }
        for ms in [0, 1, 999, 60_000, 5_400_000, 93_784_005] {
            assert_eq!(prometheus_ms(&display_ms(ms)), Some(ms));
        }
    }
}
