//! Keys: what of a value is hashed into a filter, and what a predicate may ask for.
//!
//! A *token* is a longest run of ASCII letters, ASCII digits and characters beyond ASCII. The keys
//! of a text are
//!
//! - each token of at least [`TOKEN_BYTES_MIN`] bytes, of a longer one than [`TOKEN_BYTES_MAX`] its
//!   first so many;
//! - the first [`PREFIX_BYTES`] bytes of each longer token, so that `LIKE '%/cart/471199%'` finds
//!   `/cart/4711990` too;
//! - the text as a whole, unless it has a token of at least [`PREFIX_BYTES`] bytes with a digit in
//!   it: that tells values apart as well as the whole would, and costs no second key.
//!
//! ASCII letters of tokens are folded to lower case, so that one key serves `LIKE` and `ILIKE`. What
//! keys are is part of the segment format: the tests hold some of them.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A shorter token has no key: most blocks have it.
pub const TOKEN_BYTES_MIN: usize = 3;

/// A token counts up to here.
pub const TOKEN_BYTES_MAX: usize = 64;

/// What of a longer token has a key of its own.
pub const PREFIX_BYTES: usize = 6;

/// The most keys of one needle: more make an answer no more certain, and each is a read.
pub const NEEDLE_KEYS_MAX: usize = 8;

/// Keys of whole values are others than those of tokens.
const VALUE_SEED: u64 = 1;

/// What is before or after a piece of text that a predicate asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Nothing: the value begins or ends there.
    End,
    /// Anything.
    Open,
}

/// Whether a byte of UTF-8 is one of a token.
#[must_use]
pub const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

/// The key of an id or of a whole text.
#[must_use]
pub fn of_whole(value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, VALUE_SEED)
}

/// Gives every key of a text to `keep`; some come more than once.
pub(crate) fn of_text(text: &[u8], mut keep: impl FnMut(u64)) {
    let mut tells_apart = false;
    each_token(text, |start, end| {
        let token = &text[start..end];
        if token.len() >= TOKEN_BYTES_MIN {
            keep(of_token(token));
        }
        if token.len() > PREFIX_BYTES {
            keep(of_token(&token[..PREFIX_BYTES]));
        }
        tells_apart |= token_tells_apart(token);
    });
    if !tells_apart {
        keep(of_whole(text));
    }
}

/// The keys that a text has if it is this value.
#[must_use]
pub fn of_value(value: &str) -> Vec<u64> {
    let mut keys = of_literal(value, Edge::End, Edge::End, false);
    let mut tells_apart = false;
    each_token(value.as_bytes(), |start, end| tells_apart |= token_tells_apart(&value.as_bytes()[start..end]));
    if !tells_apart {
        keys.insert(0, of_whole(value.as_bytes()));
    }
    keys
}

/// The keys that a text has if it contains this literal, between these edges. Few or none where
/// tokens go on beyond an open edge.
///
/// `any_case` is for literals that match in any case, by Unicode's rules.
#[must_use]
pub fn of_literal(literal: &str, left: Edge, right: Edge, any_case: bool) -> Vec<u64> {
    let bytes = literal.as_bytes();
    let mut found: Vec<(usize, u64)> = Vec::new();
    each_token(bytes, |start, end| {
        let token = &bytes[start..end];
        if start == 0 && left == Edge::Open || any_case && !folds_as_ascii(token) {
            return;
        }
        if end < bytes.len() || right == Edge::End {
            if token.len() >= TOKEN_BYTES_MIN {
                found.push((token.len(), of_token(token)));
            }
        } else if token.len() >= PREFIX_BYTES {
            found.push((PREFIX_BYTES, of_token(&token[..PREFIX_BYTES])));
        }
    });
    // The longest first: it is likely the rarest, and once no block is left the rest is not looked up.
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.truncate(NEEDLE_KEYS_MAX);
    found.into_iter().map(|(_, key)| key).collect()
}

/// Whether all that matches a token in any case is that token but for the case of its ASCII
/// letters. U+017F (long s) matches `s`, and U+212A (the kelvin sign) matches `k`.
fn folds_as_ascii(token: &[u8]) -> bool {
    token.iter().all(|byte| byte.is_ascii() && !matches!(byte | 0x20, b's' | b'k'))
}

fn token_tells_apart(token: &[u8]) -> bool {
    (PREFIX_BYTES..=TOKEN_BYTES_MAX).contains(&token.len()) && token.iter().any(u8::is_ascii_digit)
}

/// In each byte, the bit of lower case. It is set in digits as it is.
const FOLD: u64 = 0x2020_2020_2020_2020;

/// The key of a token.
fn of_token(token: &[u8]) -> u64 {
    let token = &token[..token.len().min(TOKEN_BYTES_MAX)];
    // Most tokens are short, and there are many: two overlapping reads have all of their bytes.
    let (first, last) = if let (Some(first), Some(last)) = (token.first_chunk::<8>(), token.last_chunk::<8>()) {
        (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
    } else if let (Some(first), Some(last)) = (token.first_chunk::<4>(), token.last_chunk::<4>()) {
        (u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)))
    } else {
        let byte = |at: usize| u64::from(token.get(at).copied().unwrap_or_default());
        (byte(0), byte(token.len() / 2) << 8 | byte(token.len().saturating_sub(1)))
    };
    if token.len() > 16 {
        let mut folded = [0; TOKEN_BYTES_MAX];
        folded.iter_mut().zip(token).for_each(|(folded, byte)| *folded = byte | 0x20);
        return xxh3_64(&folded[..token.len()]);
    }
    let mixed = mix(first | FOLD, 0x9e37_79b9_7f4a_7c15);
    mix(mixed ^ (last | FOLD), 0xd1b5_4a32_d192_ed03 ^ token.len() as u64)
}

/// Both halves of a product: every bit of it depends on all bits of its factors.
fn mix(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    #[expect(clippy::cast_possible_truncation, reason = "the halves")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

/// Gives where each token starts and ends.
fn each_token(text: &[u8], mut token: impl FnMut(usize, usize)) {
    let mut open: Option<usize> = None;
    for (index, chunk) in text.chunks(64).enumerate() {
        let base = index * 64;
        let mask = token_bytes(chunk);
        let mut at = 0;
        while at < chunk.len() {
            let rest = mask >> at;
            if let Some(start) = open {
                let length = rest.trailing_ones() as usize;
                at += length;
                if at < chunk.len() {
                    token(start, base + at);
                    open = None;
                }
            } else if rest == 0 {
                break;
            } else {
                at += rest.trailing_zeros() as usize;
                open = Some(base + at);
            }
        }
    }
    if let Some(start) = open {
        token(start, text.len());
    }
}

/// A bit for each of up to 64 bytes that is one of a token.
fn token_bytes(chunk: &[u8]) -> u64 {
    let mut mask = 0;
    for (index, bytes) in chunk.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        mask |= token_bytes_of_word(u64::from_le_bytes(word)) << (8 * index);
    }
    mask
}

/// The same of eight bytes at once. A zero byte is of no token.
const fn token_bytes_of_word(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    // Whether each byte, of seven bits, is in a range, in the byte's highest bit.
    const fn within(bytes: u64, from: u8, to: u8) -> u64 {
        (bytes + (0x80 - from as u64) * EACH) & !(bytes + (0x7f - to as u64) * EACH)
    }
    let low = word & !HIGH;
    let found = (word | within(low, b'0', b'9') | within(low | FOLD, b'a', b'z')) & HIGH;
    // Gathers the eight bits: no two partial products meet.
    (found >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn all(text: &str) -> HashSet<u64> {
        let mut keys = HashSet::new();
        of_text(text.as_bytes(), |key| {
            keys.insert(key);
        });
        keys
    }

    #[test]
    fn tokens_are_found() {
        for (text, expected) in [
            ("", &[][..]),
            ("a", &["a"]),
            ("/api/v1/cart-7", &["api", "v1", "cart", "7"]),
            ("__init__", &["init"]),
            ("müller,größe 超时", &["müller", "größe", "超时"]),
            ("@[`{\0\u{7f}/:", &[]),
            ("AZaz09", &["AZaz09"]),
        ] {
            let mut found = Vec::new();
            each_token(text.as_bytes(), |start, end| found.push(&text[start..end]));
            assert_eq!(found, expected, "{text}");
        }
    }

    /// Segments that exist were written with these.
    #[test]
    fn keys_stay_what_they_are() {
        let keys = [
            of_token(b"abc"),
            of_token(b"4711"),
            of_token(b"connection"),
            of_token("größenordnungsmäßig".as_bytes()),
            of_whole(b"10.0.0.1"),
        ];
        assert_eq!(
            keys.map(|key| format!("{key:016x}")),
            ["60ba1452da2da546", "b1cb7b8f0f2dea70", "c6b1cfb18888f819", "e85a977597047684", "a17687aba5ec25b7"]
        );
        assert_eq!(of_token(b"CONNECTION"), of_token(b"connection"));
        assert_eq!(of_token(&[b'x'; 64]), of_token(&[b'x'; 4000]));
    }

    #[test]
    fn needles_have_the_keys_that_help() {
        use Edge::{End, Open};
        for (literal, left, right, any_case, tokens) in [
            ("/cart/4711", Open, Open, false, &["cart"][..]),
            ("/cart/471199", Open, Open, false, &["471199", "cart"]),
            ("/cart/47119900", Open, Open, false, &["471199", "cart"]),
            ("/cart/47119900", Open, End, false, &["47119900", "cart"]),
            ("connection refused", Open, Open, false, &["refuse"]),
            ("connection refused", End, End, false, &["connection", "refused"]),
            ("connection", Open, End, false, &[]),
            ("", Open, Open, false, &[]),
            ("a bc def", End, End, false, &["def"]),
            (" Ask Timeout Ünder ", Open, Open, true, &["timeout"]),
            (" Ask Timeout Ünder ", Open, Open, false, &["timeout", "Ünder", "ask"]),
        ] {
            let expected: Vec<u64> = tokens.iter().map(|token| of_token(token.as_bytes())).collect();
            assert_eq!(of_literal(literal, left, right, any_case), expected, "{literal}");
        }
        assert_eq!(of_value("user-000123"), [of_token(b"000123"), of_token(b"user")]);
        assert_eq!(of_value("10.0.0.1"), [of_whole(b"10.0.0.1")]);
        assert_eq!(of_value(""), [of_whole(b"")]);
        assert!(of_literal(&"token123 ".repeat(100), End, End, false).len() == NEEDLE_KEYS_MAX);
    }

    proptest! {
        /// Whatever contains a literal has its keys.
        #[test]
        fn a_text_has_the_keys_of_what_is_in_it(
            text in "([a-cSK0-2/ _%]|é|ſ|超){0,90}",
            from in 0_usize..90,
            length in 0_usize..30,
        ) {
            let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let start = starts[from.min(starts.len() - 1)];
            let end = starts[(from + length).min(starts.len() - 1)];
            let keys = all(&text);
            let needle = &text[start.min(end)..end];
            let edge = |at_end: bool| if at_end { Edge::End } else { Edge::Open };
            for (left, right) in [(Edge::Open, Edge::Open), (edge(start == 0), edge(end == text.len()))] {
                for (needle, any_case) in [(needle.to_owned(), false), (needle.to_uppercase(), true), (needle.to_lowercase(), true)] {
                    for key in of_literal(&needle, left, right, any_case) {
                        prop_assert!(keys.contains(&key), "{text:?} has {needle:?}");
                    }
                }
            }
            for key in of_value(&text) {
                prop_assert!(keys.contains(&key), "{text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn tokens_are_those_of_the_plain_rule(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut found = Vec::new();
            each_token(&text, |start, end| found.push(text[start..end].to_vec()));
            let plain: Vec<Vec<u8>> = text
                .split(|byte| !is_token_byte(*byte))
                .filter(|token| !token.is_empty())
                .map(<[u8]>::to_vec)
                .collect();
            prop_assert_eq!(found, plain);
        }
    }
}
