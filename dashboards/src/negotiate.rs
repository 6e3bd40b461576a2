//! What a client takes: `Accept` and `Accept-Encoding`, with their qualities (RFC 9110 §12.4.2, §12.5).
//!
//! Pure functions of a header's text and of what is offered. Not here: what the formats and encodings are.

use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue};

use crate::encoding::Encoding;

/// Entries of one header that are looked at. Browsers send seven; a header of thousands is no wish.
const ENTRIES_MAX: usize = 64;

/// A quality of 1, in thousandths: qualities have three decimals.
const FULL: u16 = 1000;

/// All values of a header as one list, as if they had been sent in one line; `None` when there is none.
pub(crate) fn list(headers: &HeaderMap, name: impl AsHeaderName) -> Option<String> {
    let values: Vec<&str> =
        headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// The entries of a list, in lower case and without parameters, each with its quality in thousandths. A quality that
/// cannot be read counts as 1: the client named the entry.
fn entries(list: &str) -> impl Iterator<Item = (String, u16)> {
    list.split(',').take(ENTRIES_MAX).filter_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
        let quality = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
            .and_then(|(_, value)| value.trim().parse::<f64>().ok())
            .filter(|quality| (0.0..=1.0).contains(quality))
            .map_or(FULL, |quality| (quality * f64::from(FULL)).round() as u16);
        Some((name, quality))
    })
}

/// Which of the offered media types a client wants most; `None` when it takes none of them.
///
/// The most specific entry that matches an offer decides its quality, as RFC 9110 says. Among equals the one that was
/// named outright wins, then the one named first, then the one offered first: `text/csv, */*` means CSV.
pub(crate) fn media(accept: &str, offered: &[&str]) -> Option<usize> {
    let entries: Vec<(String, u16)> = entries(accept).collect();
    if entries.is_empty() {
        return (!offered.is_empty()).then_some(0);
    }
    let score = |offer: &str| {
        let family = offer.split('/').next().unwrap_or_default();
        let matching = entries.iter().enumerate().filter_map(|(at, (name, quality))| {
            let specific = match name.as_str() {
                name if name == offer => 2,
                "*/*" | "*" => 0,
                name if name.strip_suffix("/*") == Some(family) => 1,
                _ => return None,
            };
            Some((specific, usize::MAX - at, *quality))
        });
        matching.max().map(|(specific, place, quality)| (quality, specific, place)).filter(|(quality, ..)| *quality > 0)
    };
    let scored = offered.iter().enumerate().filter_map(|(at, offer)| Some((score(offer)?, usize::MAX - at)));
    scored.max().map(|(_, place)| usize::MAX - place)
}

/// How to encode an answer. What a client does not name it need not understand, so it gets that only when it says so.
pub(crate) fn encoding(accept_encoding: &str) -> Encoding {
    let mut best = (Encoding::Identity, 0);
    let mut identity = 0;
    for (name, quality) in entries(accept_encoding) {
        let encoding = match name.as_str() {
            "zstd" => Encoding::Zstd,
            "gzip" | "x-gzip" => Encoding::Gzip,
            "identity" => {
                identity = quality;
                continue;
            }
            _ => continue,
        };
        // At the same quality zstd is smaller and cheaper.
        if quality > best.1 || quality == best.1 && quality > 0 && encoding == Encoding::Zstd {
            best = (encoding, quality);
        }
    }
    if best.1 > 0 && best.1 >= identity { best.0 } else { Encoding::Identity }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_media_type_wins() {
        const OFFERED: [&str; 3] = ["application/json", "application/x-ndjson", "text/csv"];
        for (accept, expected) in [
            ("", Some(0)),
            ("*/*", Some(0)),
            ("text/csv", Some(2)),
            ("TEXT/CSV; header=present", Some(2)),
            ("text/html, text/csv;q=0.9", Some(2)),
            ("text/csv;q=0.1, application/x-ndjson;q=0.2", Some(1)),
            ("text/csv, application/json", Some(2)),
            ("application/json, text/csv", Some(0)),
            ("text/csv, */*", Some(2)),
            ("*/*, text/csv", Some(2)),
            ("*/*;q=0.9, text/csv;q=0.1", Some(0)),
            ("text/*", Some(2)),
            ("application/*;q=0.5, application/json;q=0", Some(1)),
            ("*/*, application/json;q=0", Some(1)),
            ("text/html", None),
            ("text/csv;q=0", None),
            ("application/json;q=0, */*;q=0", None),
            ("text/csv;q=much", Some(2)),
            (", ,text/csv,", Some(2)),
        ] {
            assert_eq!(media(accept, &OFFERED), expected, "{accept}");
        }
    }

    #[test]
    fn the_best_encoding_wins() {
        for (accept, expected) in [
            ("", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("gzip, deflate, br, zstd", Encoding::Zstd),
            ("zstd;q=0.5, gzip;q=0.8", Encoding::Gzip),
            ("gzip;q=0, zstd;q=0", Encoding::Identity),
            ("identity, gzip;q=0.5", Encoding::Identity),
            ("identity;q=0.5, gzip", Encoding::Gzip),
            ("br, deflate", Encoding::Identity),
            ("*", Encoding::Identity),
            ("GZIP;Q=1.0", Encoding::Gzip),
        ] {
            assert_eq!(encoding(accept), expected, "{accept}");
        }
    }
}
