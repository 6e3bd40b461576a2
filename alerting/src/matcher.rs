//! Conditions on labels: `severity="critical"`, `team=~"a|b"`, in the classic syntax and in that of
//! Alertmanager 0.27 and later, which allows any UTF-8 name.
//!
//! Parsing tries both, as Alertmanager's default mode does: what only one of them understands has its
//! meaning, and what both understand differently has the classic one, since that is what it meant when
//! it was written.

use std::fmt;
use std::sync::Arc;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::labels::LabelSet;

/// Longest text of one list of matchers. The parsers are linear; this bounds what a request can hold.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Memory one compiled expression may take, so that `a{1000}{1000}` is refused and not compiled.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`, the whole value
    Regex,
    /// `!~`, the whole value
    NotRegex,
}

impl Op {
    fn text(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// One condition on one label.
#[derive(Clone)]
pub struct Matcher {
    name: String,
    op: Op,
    value: String,
    regex: Option<Arc<Regex>>,
}

/// Why a text is not a list of matchers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct MatcherError {
    /// What is wrong, in words for the person who wrote it.
    pub reason: String,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, MatcherError> {
    Err(MatcherError { reason: reason.into() })
}

impl Matcher {
    /// Makes a matcher.
    ///
    /// # Errors
    ///
    /// When the name is empty or the value of a regular expression is none.
    pub fn new(name: &str, op: Op, value: &str) -> Result<Self, MatcherError> {
        if name.is_empty() {
            return refuse("a matcher needs the name of a label");
        }
        let regex = match op {
            Op::Equal | Op::NotEqual => None,
            Op::Regex | Op::NotRegex => {
                // The value alone first: `a)(b` would become valid inside of the group.
                let compile = |text: &str| regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
                let compiled = compile(value).and_then(|_| compile(&format!("^(?:{value})$")));
                match compiled {
                    Ok(regex) => Some(Arc::new(regex)),
                    Err(error) => {
                        let reason = error.to_string().lines().last().unwrap_or_default().to_owned();
                        return refuse(format!("{value:?} is not a regular expression: {reason}"));
                    }
                }
            }
        };
        Ok(Self { name: name.to_owned(), op, value: value.to_owned(), regex })
    }

    /// The label.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is compared.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// With what.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether a value satisfies the condition.
    #[must_use]
    pub fn accepts(&self, value: &str) -> bool {
        let found = self.regex.as_ref().map_or(self.value == value, |regex| regex.is_match(value));
        found == matches!(self.op, Op::Equal | Op::Regex)
    }

    /// Whether a set satisfies it. A missing label is an empty one.
    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.accepts(labels.get(&self.name))
    }
}

/// Whether a set satisfies every matcher.
#[must_use]
pub fn all_match(matchers: &[Matcher], labels: &LabelSet) -> bool {
    matchers.iter().all(|matcher| matcher.matches(labels))
}

/// Sorts matchers as they stand in group keys: by name, value and operator.
pub fn sort(matchers: &mut [Matcher]) {
    matchers.sort_by(|a, b| (&a.name, &a.value, a.op).cmp(&(&b.name, &b.value, b.op)));
}

/// `{a="b",c=~"d"}`, as in group keys.
#[must_use]
pub fn format_all(matchers: &[Matcher]) -> String {
    let parts: Vec<String> = matchers.iter().map(ToString::to_string).collect();
    format!("{{{}}}", parts.join(","))
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.op, &self.value) == (&other.name, other.op, &other.value)
    }
}

impl Eq for Matcher {}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        if is_classic_name(&self.name) {
            f.write_str(&self.name)?;
        } else {
            write!(f, "\"{}\"", escape(&self.name))?;
        }
        write!(f, "{}\"{}\"", self.op.text(), escape(&self.value))
    }
}

/// A matcher in JSON, as the API and the silences have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatcherJson {
    /// The label.
    pub name: String,
    /// With what it is compared.
    pub value: String,
    /// Whether the value is a regular expression.
    pub is_regex: bool,
    /// Whether the value is to match or not to match.
    #[serde(default = "yes")]
    pub is_equal: bool,
}

fn yes() -> bool {
    true
}

impl From<&Matcher> for MatcherJson {
    fn from(matcher: &Matcher) -> Self {
        Self {
            name: matcher.name.clone(),
            value: matcher.value.clone(),
            is_regex: matches!(matcher.op, Op::Regex | Op::NotRegex),
            is_equal: matches!(matcher.op, Op::Equal | Op::Regex),
        }
    }
}

impl TryFrom<&MatcherJson> for Matcher {
    type Error = MatcherError;

    fn try_from(json: &MatcherJson) -> Result<Self, MatcherError> {
        let op = match (json.is_regex, json.is_equal) {
            (false, true) => Op::Equal,
            (false, false) => Op::NotEqual,
            (true, true) => Op::Regex,
            (true, false) => Op::NotRegex,
        };
        Self::new(&json.name, op, &json.value)
    }
}

/// Reads a list of matchers, with or without braces around it.
///
/// # Errors
///
/// When neither syntax understands the text.
pub fn parse_all(text: &str) -> Result<Vec<Matcher>, MatcherError> {
    if text.len() > TEXT_BYTES_MAX {
        return refuse(format!("{} bytes of matchers, at most {TEXT_BYTES_MAX} are read", text.len()));
    }
    match (parse_classic(text), parse_utf8(text)) {
        (Ok(classic), _) => Ok(classic),
        (Err(_), Ok(modern)) => Ok(modern),
        (Err(_), Err(error)) => Err(error),
    }
}

fn is_classic_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// The syntax up to 0.26: names are Prometheus's, values may stand without quotes and be empty.
fn parse_classic(text: &str) -> Result<Vec<Matcher>, MatcherError> {
    let text = text.strip_prefix('{').unwrap_or(text);
    let text = text.strip_suffix('}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return refuse(format!("{text:?} has a double quote that is not closed"));
    }
    // A comma may follow the last matcher.
    if !text[start..].trim().is_empty() {
        parts.push(&text[start..]);
    }
    parts.into_iter().map(parse_classic_one).collect()
}

fn parse_classic_one(text: &str) -> Result<Matcher, MatcherError> {
    let bad = || MatcherError { reason: format!("{:?} is not a matcher such as name=\"value\"", text.trim()) };
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| c.is_whitespace() || matches!(c, '=' | '!')).ok_or_else(bad)?;
    let (name, rest) = trimmed.split_at(end);
    if !is_classic_name(name) {
        return Err(bad());
    }
    let rest = rest.trim_start();
    let (op, rest) = [("=~", Op::Regex), ("!=", Op::NotEqual), ("!~", Op::NotRegex), ("=", Op::Equal)]
        .into_iter()
        .find_map(|(sign, op)| rest.strip_prefix(sign).map(|rest| (op, rest)))
        .ok_or_else(bad)?;
    let raw = rest.trim_start();
    let (mut open, raw) = raw.strip_prefix('"').map_or((false, raw), |raw| (true, raw));
    let mut value = String::with_capacity(raw.len());
    let mut characters = raw.char_indices().peekable();
    while let Some((_, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                // An escape that means nothing is two characters.
                Some((_, c)) => value.extend(['\\', c]),
                None => value.push('\\'),
            },
            '"' if open && characters.peek().is_none() => open = false,
            '"' => return refuse(format!("{trimmed:?} has a double quote inside of its value: write \\\"")),
            c => value.push(c),
        }
    }
    if open {
        return refuse(format!("{trimmed:?} has a double quote that is not closed"));
    }
    Matcher::new(name, op, &value)
}

/// Characters that end a name or value without quotes.
fn is_reserved(character: char) -> bool {
    character.is_whitespace() || matches!(character, '{' | '}' | '!' | '=' | '~' | ',' | '\\' | '"' | '\'' | '`')
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Comma,
    Op(Op),
    Text(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, MatcherError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let simple = |token, length| (Some(token), length);
        let (token, length) = match character {
            c if c.is_whitespace() => (None, c.len_utf8()),
            '{' => simple(Token::Open, 1),
            '}' => simple(Token::Close, 1),
            ',' => simple(Token::Comma, 1),
            '=' if rest.starts_with("=~") => simple(Token::Op(Op::Regex), 2),
            '=' => simple(Token::Op(Op::Equal), 1),
            '!' if rest.starts_with("!=") => simple(Token::Op(Op::NotEqual), 2),
            '!' if rest.starts_with("!~") => simple(Token::Op(Op::NotRegex), 2),
            '"' => {
                let (value, length) = unquote(rest)?;
                (Some(Token::Text(value)), length)
            }
            c if is_reserved(c) => return refuse(format!("{c:?} in {text:?} must stand in double quotes")),
            _ => {
                let end = rest.find(is_reserved).unwrap_or(rest.len());
                (Some(Token::Text(rest[..end].to_owned())), end)
            }
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// Reads a double-quoted text with Go's escapes at the start of `text`. Returns it and its length.
fn unquote(text: &str) -> Result<(String, usize), MatcherError> {
    let mut out = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((out, at + 1)),
            '\n' => return refuse(format!("{text:?} has a line break inside of double quotes: write \\n")),
            '\\' => {
                let kind = characters.next().map(|(_, c)| c);
                let mut digits = |count: usize, radix: u32| -> Option<char> {
                    let digits: String = characters.by_ref().take(count).map(|(_, c)| c).collect();
                    u32::from_str_radix(&digits, radix).ok().filter(|_| digits.len() == count).and_then(char::from_u32)
                };
                let value = match kind {
                    Some('n') => Some('\n'),
                    Some('t') => Some('\t'),
                    Some('r') => Some('\r'),
                    Some('a') => Some('\u{7}'),
                    Some('b') => Some('\u{8}'),
                    Some('f') => Some('\u{c}'),
                    Some('v') => Some('\u{b}'),
                    Some(c @ ('"' | '\\')) => Some(c),
                    // Above 7f these would be half of a character.
                    Some('x') => digits(2, 16).filter(char::is_ascii),
                    Some('u') => digits(4, 16),
                    Some('U') => digits(8, 16),
                    _ => None,
                };
                match value {
                    Some(value) => out.push(value),
                    None => return refuse(format!("{text:?} has an escape that means nothing")),
                }
            }
            c => out.push(c),
        }
    }
    refuse(format!("{text:?} has a double quote that is not closed"))
}

/// The syntax since 0.27: any name; quotes are needed around reserved characters only.
fn parse_utf8(text: &str) -> Result<Vec<Matcher>, MatcherError> {
    let tokens = tokens(text)?;
    let mut rest = tokens.as_slice();
    match (rest.first(), rest.last()) {
        (Some(Token::Open), Some(Token::Close)) if rest.len() > 1 => rest = &rest[1..rest.len() - 1],
        (Some(Token::Open), _) => return refuse(format!("{text:?} has an opening brace that is not closed")),
        (_, Some(Token::Close)) => return refuse(format!("{text:?} has a closing brace that was not opened")),
        _ => {}
    }
    let mut matchers = Vec::new();
    while !rest.is_empty() {
        let [Token::Text(name), Token::Op(op), Token::Text(value), ..] = rest else {
            return refuse(format!("{text:?} is not a list of matchers such as name=\"value\", other=~\"a|b\""));
        };
        matchers.push(Matcher::new(name, *op, value)?);
        rest = &rest[3..];
        match rest.first() {
            None => {}
            Some(Token::Comma) => rest = &rest[1..],
            Some(_) => return refuse(format!("a comma is missing after the matcher of {name:?} in {text:?}")),
        }
    }
    Ok(matchers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_syntaxes_are_read() {
        // Text, and what it is in the canonical form; an empty row is a refusal.
        let rows = [
            ("", "{}"),
            ("{}", "{}"),
            (r#"a="b""#, r#"{a="b"}"#),
            (r#"{a="b",c=~"d|e",}"#, r#"{a="b",c=~"d|e"}"#),
            (r#" { a != "b" , c!~"x" } "#, r#"{a!="b",c!~"x"}"#),
            ("a=b", r#"{a="b"}"#),
            ("a=", r#"{a=""}"#),
            ("a==b", r#"{a="=b"}"#),
            (r#"a="x,y""#, r#"{a="x,y"}"#),
            (r#"a="x\"y\\z\n""#, r#"{a="x\"y\\z\n"}"#),
            (r"a=x\d", r#"{a="x\\d"}"#),
            ("ns:job=x", r#"{ns:job="x"}"#),
            // The newer one: any name.
            (r#""with space"="b""#, r#"{"with space"="b"}"#),
            ("föö=bär", r#"{"föö"="bär"}"#),
            (r#"{"a.b"="\u00e4",c=🙂}"#, r#"{"a.b"="ä",c="🙂"}"#),
            (r#"a.b="c""#, r#"{"a.b"="c"}"#),
            // Refused by both.
            ("a", ""),
            ("=b", ""),
            (r#"a="b"#, ""),
            (r#"a="b" c="d""#, ""),
            ("a=~\"(\"", ""),
            ("a=~\"a)(b\"", ""),
            ("a=~\"(a{1000}){1000}\"", ""),
            (r#"{"a.b"="c""#, ""),
            (r#""a.b"="\q""#, ""),
            (",a=b", ""),
        ];
        for (text, want) in rows {
            match (parse_all(text), want) {
                (Ok(matchers), want) => assert_eq!(format_all(&matchers), want, "{text}"),
                (Err(error), "") => assert!(!error.reason.is_empty()),
                (Err(error), _) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn a_missing_label_is_an_empty_one_and_expressions_match_the_whole_value() {
        let labels: LabelSet = [("a", "foobar"), ("e", "")].into_iter().collect();
        for (text, want) in [
            ("a=foobar", true),
            ("a=foo", false),
            ("a=~foo", false),
            ("a=~foo.*", true),
            ("a=~foo|foobar", true),
            ("a!~foo", true),
            ("a!=foobar", false),
            ("missing=", true),
            ("missing!=x", true),
            ("missing=~.*", true),
            ("missing=~.+", false),
            ("missing=e", false),
            ("e=", true),
        ] {
            assert_eq!(all_match(&parse_all(text).unwrap(), &labels), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(name in "[^\\x00]{1,8}", value in "\\PC{0,12}|[\"\\\\\n,={} ]{0,6}", op in 0..2) {
            let op = if op == 0 { Op::Equal } else { Op::NotEqual };
            let matcher = Matcher::new(&name, op, &value).unwrap();
            // Names with control characters other than a line break have no form in either syntax's output.
            prop_assume!(!name.chars().any(char::is_control));
            let text = format_all(std::slice::from_ref(&matcher));
            prop_assert_eq!(parse_all(&text).unwrap(), vec![matcher]);
        }

        #[test]
        fn no_text_is_a_crash(text in "[a-z\"\\\\{}=~!,\\s'`\u{e4}]{0,40}") {
            let _read = parse_all(&text);
        }
    }
}
