//! The values people write with a unit: sizes (`64MiB`), durations (`1h30m`) and addresses
//! (`127.0.0.1:4317`), read strictly and written back in the shortest exact form.
//!
//! This module knows nothing of YAML or of where a value came from: a refusal says what was
//! expected and how to write it, and the reader adds the place.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A number of bytes, written `64MiB`, `1GB` or plainly `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time in whole milliseconds, written `500ms`, `30s` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub Duration);

/// Why a text is not the value it should be: what was expected, and the likely correction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// "expected …", shown beside the caret.
    pub(super) expected: String,
    /// How to write it, if that can be guessed.
    pub(super) help: Option<String>,
}

impl Refusal {
    fn new(expected: &str, help: Option<String>) -> Self {
        Self { expected: expected.to_owned(), help }
    }
}

/// Size units, the largest binary ones first so that [`ByteSize`]'s display picks them.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Duration units with their milliseconds, the largest first, as they must be written.
const TIME_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const SIZE_EXPECTED: &str = "expected a size such as 64MiB, 1GB or 1048576";
const TIME_EXPECTED: &str = "expected a duration such as 500ms, 30s, 5m, 1h30m or 7d";
const ADDRESS_EXPECTED: &str = "expected an address with a port, such as 127.0.0.1:4317 or [::1]:4317";

/// Splits leading digits (underscores may group them) from the rest.
fn split_number(text: &str) -> (Option<u64>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let grouped = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    let number = if grouped { digits.replace('_', "").parse().ok() } else { None };
    (number, rest)
}

/// Reads a whole number that may be grouped as `1_000_000`.
pub(super) fn parse_count(text: &str) -> Option<u64> {
    match split_number(text) {
        (number, "") => number,
        _ => None,
    }
}

impl ByteSize {
    /// Reads `64MiB`, `64 MiB`, `1GB`, `1_048_576`. Units are case-sensitive, since `Mb` is a megabit
    /// to some and `M` is either power to others.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let (number, rest) = split_number(text);
        let unit = rest.strip_prefix(' ').unwrap_or(rest);
        let refuse = |help| Err(Refusal::new(SIZE_EXPECTED, help));
        let Some(number) = number else {
            return refuse(None);
        };
        if rest.is_empty() {
            return Ok(Self(number));
        }
        if let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            return match number.checked_mul(*factor) {
                Some(bytes) => Ok(Self(bytes)),
                None => refuse(Some("this is more bytes than 64 bits can count".to_owned())),
            };
        }
        let bare = unit.to_ascii_uppercase();
        if let Some((name, _)) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            return refuse(Some(format!("write `{number}{name}`")));
        }
        if matches!(bare.as_str(), "K" | "M" | "G" | "T" | "KI" | "MI" | "GI" | "TI") {
            let letter = &bare[..1];
            return refuse(Some(format!(
                "write `{number}{letter}iB` (powers of 1024) or `{number}{letter}B` (powers of 1000)"
            )));
        }
        if unit.starts_with('.') {
            return refuse(Some("fractions are not read: use a smaller unit, such as 1536MiB for 1.5GiB".to_owned()));
        }
        refuse(None)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A decimal unit is used only when no binary one is exact; below 1 KB the number is plain.
        for (name, factor) in SIZE_UNITS.iter().filter(|(name, _)| *name != "B") {
            if self.0 != 0 && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl serde::Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Interval {
    /// Whole seconds, for the constants of defaults and limits.
    pub(super) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The duration itself.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Reads `500ms`, `30s`, `1h30m`, `7d`: each unit at most once, the largest first.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |help| Err(Refusal::new(TIME_EXPECTED, help));
        let mut rest = text;
        let mut total_ms: u64 = 0;
        let mut next_unit = 0;
        if text.is_empty() {
            return refuse(None);
        }
        while !rest.is_empty() {
            let (number, after) = split_number(rest);
            let Some(number) = number else {
                return refuse(None);
            };
            let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, tail) = after.split_at(end);
            if unit.is_empty() {
                let help = (rest == text && tail.is_empty())
                    .then(|| format!("a duration needs a unit: write `{text}s` for seconds"));
                return refuse(help);
            }
            let Some(index) = TIME_UNITS.iter().position(|(name, _)| *name == unit) else {
                return refuse(Some("the units are ms, s, m (minutes), h, d (days) and w (weeks)".to_owned()));
            };
            if index < next_unit {
                return refuse(Some("write each unit once, the largest first, as in 1h30m".to_owned()));
            }
            next_unit = index + 1;
            let added = number.checked_mul(TIME_UNITS[index].1).and_then(|ms| total_ms.checked_add(ms));
            let Some(added) = added else {
                return refuse(Some("this is longer than 64 bits of milliseconds can count".to_owned()));
            };
            total_ms = added;
            rest = tail;
        }
        Ok(Self(Duration::from_millis(total_ms)))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Weeks are read but not written: people compare retention in days.
        let mut left = self.0.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (name, unit_ms) in TIME_UNITS.iter().skip(1) {
            let unit_ms = u128::from(*unit_ms);
            if left >= unit_ms {
                write!(f, "{}{name}", left / unit_ms)?;
                left %= unit_ms;
            }
        }
        Ok(())
    }
}

impl serde::Serialize for Interval {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads an address to listen on. Names are refused, except `localhost`: resolving one would make
/// what the server is exposed to depend on a name service.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, Refusal> {
    let refuse = |help: Option<String>| Err(Refusal::new(ADDRESS_EXPECTED, help));
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && let Ok(port) = port.parse::<u16>()
    {
        return match host {
            "localhost" => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
            "" | "*" => refuse(Some(format!(
                "write `127.0.0.1:{port}` for this machine only, or `0.0.0.0:{port}` for every interface"
            ))),
            _ if text.contains("://") => refuse(Some("write the address without a scheme".to_owned())),
            _ if host.contains(':') => refuse(Some("write an IPv6 address in brackets, as in [::1]:4317".to_owned())),
            _ => refuse(Some("names are not resolved: write the IP address to listen on".to_owned())),
        };
    }
    if text.parse::<IpAddr>().is_ok() || text == "localhost" {
        return refuse(Some("the port is missing".to_owned()));
    }
    if let Ok(port) = text.parse::<u16>() {
        return refuse(Some(format!("write `127.0.0.1:{port}`")));
    }
    refuse(None)
}

/// Whether two listeners cannot both exist: the same port on the same or on every interface.
/// Port 0 asks the system for a free one and never collides.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_exactly_or_refused_with_a_correction() {
        let rows: &[(&str, Result<u64, &str>)] = &[
            ("0", Ok(0)),
            ("1048576", Ok(1 << 20)),
            ("1_048_576", Ok(1 << 20)),
            ("64MiB", Ok(64 << 20)),
            ("64 MiB", Ok(64 << 20)),
            ("1GB", Ok(1_000_000_000)),
            ("3kB", Ok(3_000)),
            ("17B", Ok(17)),
            ("", Err("")),
            ("-1", Err("")),
            ("MiB", Err("")),
            ("64  MiB", Err("")),
            ("1__0", Err("")),
            ("_1", Err("")),
            ("64mib", Err("write `64MiB`")),
            ("64M", Err("write `64MiB` (powers of 1024) or `64MB` (powers of 1000)")),
            ("64Gi", Err("write `64GiB` (powers of 1024) or `64GB` (powers of 1000)")),
            ("1.5GiB", Err("fractions are not read: use a smaller unit, such as 1536MiB for 1.5GiB")),
            ("99999999TiB", Err("this is more bytes than 64 bits can count")),
            ("99999999999999999999", Err("")),
        ];
        for (text, want) in rows {
            let got = ByteSize::parse(text).map(|size| size.0).map_err(|r| r.help.unwrap_or_default());
            assert_eq!(got, want.map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn durations_are_read_exactly_or_refused_with_a_correction() {
        let units = "the units are ms, s, m (minutes), h, d (days) and w (weeks)";
        let order = "write each unit once, the largest first, as in 1h30m";
        let rows: &[(&str, Result<u64, &str>)] = &[
            ("500ms", Ok(500)),
            ("30s", Ok(30_000)),
            ("5m", Ok(300_000)),
            ("1h30m", Ok(5_400_000)),
            ("1s500ms", Ok(1_500)),
            ("7d", Ok(604_800_000)),
            ("1w", Ok(604_800_000)),
            ("0s", Ok(0)),
            ("", Err("")),
            ("s", Err("")),
            ("-5s", Err("")),
            ("30", Err("a duration needs a unit: write `30s` for seconds")),
            ("1h30", Err("")),
            ("1.5h", Err("")),
            ("30 s", Err("")),
            ("30sec", Err(units)),
            ("30m1h", Err(order)),
            ("1m1m", Err(order)),
            ("99999999999999999d", Err("this is longer than 64 bits of milliseconds can count")),
        ];
        for (text, want) in rows {
            let got = Interval::parse(text)
                .map(|i| u64::try_from(i.0.as_millis()).unwrap())
                .map_err(|r| r.help.unwrap_or_default());
            assert_eq!(got, want.map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn addresses_name_an_interface_and_a_port() {
        let rows: &[(&str, Result<&str, &str>)] = &[
            ("127.0.0.1:4317", Ok("127.0.0.1:4317")),
            ("localhost:4317", Ok("127.0.0.1:4317")),
            ("[::1]:4317", Ok("[::1]:4317")),
            ("0.0.0.0:0", Ok("0.0.0.0:0")),
            (":4317", Err("write `127.0.0.1:4317` for this machine only, or `0.0.0.0:4317` for every interface")),
            ("4317", Err("write `127.0.0.1:4317`")),
            ("127.0.0.1", Err("the port is missing")),
            ("::1", Err("write an IPv6 address in brackets, as in [::1]:4317")),
            ("http://127.0.0.1:4317", Err("write the address without a scheme")),
            ("example.com:4317", Err("names are not resolved: write the IP address to listen on")),
            ("127.0.0.1:99999", Err("")),
            ("", Err("")),
        ];
        for (text, want) in rows {
            let got = parse_address(text).map(|a| a.to_string()).map_err(|r| r.help.unwrap_or_default());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn listeners_collide_on_a_shared_interface_only() {
        let rows = [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ];
        for (a, b, want) in rows {
            assert_eq!(collide(a.parse().unwrap(), b.parse().unwrap()), want, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_reads_back(bytes: u64, ms in 0..u64::MAX / 2) {
            prop_assert_eq!(ByteSize::parse(&ByteSize(bytes).to_string()), Ok(ByteSize(bytes)));
            let interval = Interval(Duration::from_millis(ms));
            prop_assert_eq!(Interval::parse(&interval.to_string()), Ok(interval));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-zA-Z:.\\[\\] _-]{0,12}|\\PC{0,8}") {
            drop(ByteSize::parse(&text));
            drop(Interval::parse(&text));
            drop(parse_address(&text));
            let _: Option<u64> = parse_count(&text);
        }
    }
}
