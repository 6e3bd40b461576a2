//! "Did you mean": the known word closest to an unknown one.
//!
//! Closeness is edit distance with swaps; nothing here knows what the words mean.

/// Longer words are not compared: no key is that long, and the cost is the product of both lengths.
const WORD_CHARS_MAX: usize = 40;

/// How many insertions, deletions, replacements and swaps of neighbours turn `a` into `b`.
/// `usize::MAX` if either is too long to be a key.
pub(super) fn distance(a: &str, b: &str) -> usize {
    if a.len() > WORD_CHARS_MAX || b.len() > WORD_CHARS_MAX {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The candidate closest to `word`, if it is close enough to be meant: a third of its letters wrong
/// at most. Case and `-` for `_` cost nothing.
pub(super) fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let folded = word.to_ascii_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| (distance(&folded, candidate), *candidate))
        .filter(|(cost, candidate)| *cost <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_offered_only_when_it_is_close() {
        let keys = ["endpoint", "max_request_bytes", "read_timeout", "tls", "timeout"];
        let rows = [
            ("enpoint", Some("endpoint")),
            ("endpiont", Some("endpoint")),
            ("Endpoint", Some("endpoint")),
            ("max-request-bytes", Some("max_request_bytes")),
            ("max_request_byte", Some("max_request_bytes")),
            ("timeuot", Some("timeout")),
            ("tsl", Some("tls")),
            ("exporters", None),
            ("x", None),
            ("", None),
            (&"x".repeat(5_000), None),
        ];
        for (word, want) in rows {
            assert_eq!(closest(word, &keys), want, "{word:?}");
        }
    }

    #[test]
    fn a_swap_is_one_mistake() {
        for (a, b, want) in
            [("", "", 0), ("abc", "", 3), ("abc", "abd", 1), ("abc", "acb", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), want, "{a} {b}");
            assert_eq!(distance(b, a), want, "{b} {a}");
        }
    }
}
