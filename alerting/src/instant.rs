//! Points in time as JSON has them.
//!
//! Not here: the clock (`model::time`) and durations in configuration (`config`).

use std::time::Duration;

use jiff::Timestamp as Instant;
use model::time::Timestamp;

/// What Go writes for "no time": alerts that have not ended have it as their end in messages.
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// Reads RFC 3339. Times that 64 bits of nanoseconds cannot hold become the nearest that they can;
/// Go's zero time is `None`.
///
/// # Errors
///
/// When the text is no time.
pub fn parse(text: &str) -> Result<Option<Timestamp>, String> {
    let instant: Instant = text.parse().map_err(|_| format!("{text:?} is not a time such as 2026-01-31T12:00:00Z"))?;
    if instant.as_second() <= -62_135_596_800 {
        return Ok(None);
    }
    let nanos = instant.as_nanosecond().clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    Ok(Some(Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))))
}

fn instant(at: Timestamp) -> Instant {
    Instant::from_nanosecond(i128::from(at.0)).unwrap_or_default()
}

/// Writes RFC 3339 with as many digits as there are, as messages have it.
#[must_use]
pub fn format(at: Timestamp) -> String {
    instant(at).to_string()
}

/// Writes RFC 3339 in milliseconds, as the API has it.
#[must_use]
pub fn format_millis(at: Timestamp) -> String {
    format!("{:.3}", instant(at))
}

/// A duration in nanoseconds, at most 292 years.
#[must_use]
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, want, long, millis) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
            ("1970-01-01T01:00:00.5+01:00", 500_000_000, "1970-01-01T00:00:00.5Z", "1970-01-01T00:00:00.500Z"),
            ("1970-01-01T00:00:00.000000001Z", 1, "1970-01-01T00:00:00.000000001Z", "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(parse(text), Ok(Some(Timestamp(want))), "{text}");
            assert_eq!(format(Timestamp(want)), long);
            assert_eq!(format_millis(Timestamp(want)), millis);
        }
        assert_eq!(parse(ZERO), Ok(None));
        assert_eq!(parse("9000-01-01T00:00:00Z"), Ok(Some(Timestamp(i64::MAX))));
        assert!(parse("yesterday").is_err());
        assert!(parse("").is_err());
    }
}
