//! Which bytes of a source must never be shown, because they are or may be a secret.
//!
//! With a tree, the answer is exact: everything under `auth` but the few keys known to be harmless,
//! and whatever stands under a key that sounds like a credential anywhere else; a plain reference
//! such as `${env:TOKEN}` is a name and stays visible. Without one (the YAML is broken), the answer errs
//! on the side of showing too little: from a word that sounds like a credential, or from `auth:`, to
//! the next line that begins a section.

use super::schema;
use super::suggest::distance;
use super::yaml::{Key, Node, Value};
use std::ops::Range;

/// Words that make a key a credential's.
const SECRET_WORDS: [&str; 10] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "apikey",
    "privatekey",
    "authorization",
    "bearer",
];

/// Keys under `auth` whose values are no secrets.
const HARMLESS: [&str; 4] = ["allow_unauthenticated", "tenant", "scopes", "token_file"];

/// The keys that may be shown under `auth`; any other key there might be a token in the wrong place.
const AUTH_KEYS: [&str; 6] = ["allow_unauthenticated", "tokens", "token", "token_file", "tenant", "scopes"];

/// Whether a key's name says that its value is a credential.
fn sounds_secret(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let is_file = plain.ends_with("file") || plain.ends_with("path");
    !is_file
        && (SECRET_WORDS.iter().any(|word| plain.contains(word))
            || SECRET_WORDS.iter().any(|word| plain.len().abs_diff(word.len()) <= 1 && distance(&plain, word) <= 1))
}

/// Whether a key under `auth` may be shown: it is one of ours, or a slip of the finger away from one.
pub(super) fn is_near_auth_key(key: &str) -> bool {
    AUTH_KEYS.iter().any(|known| distance(key, known) <= 2)
}

/// Whether the text is one whole reference without a default, quoted or not.
fn is_reference(raw: &str) -> bool {
    let raw = raw.trim();
    let raw = raw.strip_prefix(['"', '\'']).and_then(|r| r.strip_suffix(['"', '\''])).unwrap_or(raw);
    let inner = raw.strip_prefix("${env:").or_else(|| raw.strip_prefix("${file:"));
    inner
        .and_then(|inner| inner.strip_suffix('}'))
        .is_some_and(|name| !name.contains(":-") && !name.contains(['{', '}', '$']))
}

/// Secrets searched for in the rest of the text. A file with more is not searched further, since the
/// cost is their product; its secrets are still masked where they are values.
const SEARCHED_MAX: usize = 64;

/// How a node's surroundings classify it.
#[derive(Clone, Copy, PartialEq)]
enum Zone {
    Open,
    Auth,
    Secret,
}

/// The bytes to mask in a source with a tree, sorted and disjoint.
pub(super) fn of_tree(tree: &Node, text: &str) -> Vec<Range<usize>> {
    let mut walk = Walk { text, masked: Vec::new(), dark: Vec::new(), shown: Vec::new() };
    walk.node(tree, Zone::Open, 0, text.len());
    let Walk { mut masked, dark, mut shown, .. } = walk;
    // The same secret may stand elsewhere, as a value of another key for example.
    let known: Vec<String> = masked.iter().filter_map(|range| text.get(range.clone())).map(unquoted).collect();
    for secret in known.iter().filter(|secret| secret.len() >= 8).take(SEARCHED_MAX) {
        masked.extend(text.match_indices(secret.as_str()).map(|(at, found)| at..at + found.len()));
    }
    shown.sort_by_key(|range| range.start);
    for region in merge(dark) {
        mask_words(text, region, &shown, &mut masked);
    }
    merge(masked)
}

fn unquoted(raw: &str) -> String {
    raw.trim().trim_matches(['"', '\'']).to_owned()
}

/// Masks every word of a region that is not known to be harmless. A slip of the editor can turn a
/// secret into a tag, an anchor or a comment, which are in no tree.
fn mask_words(text: &str, region: Range<usize>, shown: &[Range<usize>], masked: &mut Vec<Range<usize>>) {
    let is_gap = |c: char| c.is_whitespace() || matches!(c, ',' | '{' | '}' | '[' | ']' | ':');
    let mut at = region.start;
    while at < region.end {
        let next = shown.partition_point(|range| range.end <= at);
        if let Some(range) = shown.get(next).filter(|range| range.contains(&at)) {
            at = range.end;
            continue;
        }
        let Some(rest) = text.get(at..region.end) else {
            // Not at a character's boundary: the region is not what it seems, so hide all of it.
            masked.push(region);
            return;
        };
        let start = at + rest.find(|c| !is_gap(c)).unwrap_or(rest.len());
        let limit = shown.get(next).map_or(region.end, |range| range.start.min(region.end));
        if start >= limit {
            at = start.min(limit).max(at + 1);
            continue;
        }
        let word = text.get(start..limit).unwrap_or("");
        let end = start + word.find(is_gap).unwrap_or(word.len());
        if text.get(start..end).is_some_and(|word| word.contains(char::is_alphanumeric)) {
            masked.push(start..end);
        }
        at = end.max(at + 1);
    }
}

struct Walk<'a> {
    text: &'a str,
    /// Values that are secrets, wherever they stand.
    masked: Vec<Range<usize>>,
    /// Everything between a secret's key and the next key.
    dark: Vec<Range<usize>>,
    /// What is harmless in the dark.
    shown: Vec<Range<usize>>,
}

impl Walk<'_> {
    /// `end` is where the next thing outside `node` begins. Recursion is as deep as the tree, which the
    /// parser bounds.
    fn node(&mut self, node: &Node, zone: Zone, depth: usize, end: usize) {
        match &node.value {
            Value::Scalar(_) => {
                let range = node.at.start..node.at.end;
                let is_reference = self.text.get(range.clone()).is_some_and(is_reference);
                if zone == Zone::Open || is_reference {
                    let hidden = self.text.get(range.clone()).map(of_address).unwrap_or_default();
                    self.masked.extend(hidden.into_iter().map(|part| range.start + part.start..range.start + part.end));
                    self.shown.push(range);
                } else {
                    self.masked.push(range);
                }
            }
            Value::List(items) => items.iter().for_each(|item| self.node(item, zone, depth, end)),
            Value::Map(entries) => {
                for (index, (key, value)) in entries.iter().enumerate() {
                    if zone == Zone::Open || is_near_auth_key(&key.text) {
                        self.shown.push(key.at.start..key.at.end);
                    } else {
                        self.masked.push(key.at.start..key.at.end);
                    }
                    let inner = zone_of(key, zone, depth);
                    let end = entries.get(index + 1).map_or(end, |(next, _)| next.at.start);
                    if inner != Zone::Open && key.at.end < end {
                        self.dark.push(key.at.end..end);
                    }
                    self.node(value, inner, depth + 1, end);
                }
            }
        }
    }
}

fn zone_of(key: &Key, outer: Zone, depth: usize) -> Zone {
    if key.text == "tokens" && outer != Zone::Secret {
        Zone::Auth
    } else if sounds_secret(&key.text) || outer == Zone::Secret {
        Zone::Secret
    } else if HARMLESS.contains(&key.text.as_str()) {
        Zone::Open
    } else if outer == Zone::Auth || (depth == 0 && distance(&key.text, "auth") <= 1) {
        Zone::Auth
    } else {
        Zone::Open
    }
}

/// The bytes to mask in a source that is not YAML, sorted and disjoint. Nesting cannot be trusted
/// here, so only a line that begins one of our own sections ends what a secret word began.
pub(super) fn of_text(text: &str) -> Vec<Range<usize>> {
    let sections: Vec<String> = schema::paths().into_iter().filter(|path| !path.contains('.')).collect();
    let mut ranges = Vec::new();
    let mut is_open = false;
    let mut start = 0;
    for line in text.split_inclusive(['\n', '\r']) {
        let body = line.trim_end_matches(['\n', '\r']);
        let section =
            sections.iter().find(|key| body.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with(':')));
        is_open = is_open && section.is_none();
        let hidden_from = if is_open { Some(body.len() - body.trim_start().len()) } else { secret_word(body) };
        if let Some(from) = hidden_from {
            ranges.push(start + from..start + body.len());
        }
        is_open |= hidden_from.is_some() || section.is_some_and(|key| key == "auth");
        start += line.len();
    }
    merge(ranges)
}

/// Where a line's first word that sounds like a credential ends.
fn secret_word(line: &str) -> Option<usize> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut at = 0;
    while at < line.len() {
        let start = at + line[at..].find(is_word)?;
        let end = start + line[start..].find(|c| !is_word(c)).unwrap_or(line.len() - start);
        if sounds_secret(&line[start..end]) {
            return Some(end);
        }
        at = end;
    }
    None
}

/// What stands before the `@` of web addresses: a user and a password.
pub(super) fn of_address(text: &str) -> Vec<Range<usize>> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | ',' | '"' | '\'');
    text.match_indices("://")
        .filter_map(|(at, found)| {
            let start = at + found.len();
            let rest = &text[start..];
            let end = rest.find(ends).unwrap_or(rest.len());
            rest[..end].rfind('@').map(|sign| start..start + sign)
        })
        .collect()
}

/// Sorts ranges, joins those that overlap and drops the empty ones.
fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
