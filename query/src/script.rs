//! SQL text before it is parsed: cut into statements and words, and parameters put in as literals.
//!
//! A statement with parameters runs as the text it becomes when each `$1` is replaced by a literal, so that it passes
//! the same guard, is planned with the same knowledge of attributes and ids, and can do nothing that typing it could
//! not. The words are the guard's own. Not here: what a statement means.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use crate::error::{ErrorKind, QueryError};
use crate::guard::{SQL_BYTES_MAX, TOKENS_MAX};

/// The largest number of a parameter. Every parameter is a word at least.
pub const PARAMETERS_MAX: usize = TOKENS_MAX;

/// One word, sign or literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it is.
    pub kind: WordKind,
    /// Where it begins in the text, bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// What a word is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordKind {
    /// A name or keyword that is not quoted, in upper case.
    Plain(String),
    /// A quoted name, without its quotes.
    Quoted(String),
    /// A text literal, without its quotes.
    Text(String),
    /// A number, as written.
    Number(String),
    /// `$1` and its like, counted from 1.
    Parameter(usize),
    /// Anything else: a sign, as written.
    Sign(String),
}

/// A statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Its text, without the semicolon.
    pub text: &'a str,
    /// Its words; their places are in `text`.
    pub words: Vec<Word>,
}

/// Cuts a text at its semicolons. Comments and white space are no words; statements without a word are left out.
///
/// # Errors
/// When the text is too long, or a literal, a quoted name or a comment does not end.
pub fn split(sql: &str) -> Result<Vec<Part<'_>>, QueryError> {
    let mut parts = Vec::new();
    let (mut start, mut words) = (0, Vec::new());
    for word in words_of(sql)? {
        if word.kind == WordKind::Sign(";".to_owned()) {
            let (from, until) = (start, word.start);
            start = word.end;
            parts.extend(part(sql, from, until, std::mem::take(&mut words)));
        } else {
            words.push(word);
        }
    }
    parts.extend(part(sql, start, sql.len(), words));
    Ok(parts)
}

fn part(sql: &str, start: usize, end: usize, mut words: Vec<Word>) -> Option<Part<'_>> {
    for word in &mut words {
        word.start -= start;
        word.end -= start;
    }
    (!words.is_empty()).then(|| Part { text: &sql[start..end], words })
}

fn words_of(sql: &str) -> Result<Vec<Word>, QueryError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(QueryError::new(
            ErrorKind::TooLarge,
            format!("sql is {} bytes long, over the limit of {SQL_BYTES_MAX}", sql.len()),
        ));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| QueryError::new(ErrorKind::BadQuery, format!("syntax error: {error}")))?;
    let mut places = Places::new(sql);
    let mut words = Vec::new();
    for TokenWithSpan { token, span } in tokens {
        let (start, end) = (places.byte(span.start), places.byte(span.end));
        let kind = match token {
            Token::Whitespace(_) | Token::EOF => continue,
            Token::Word(word) if word.quote_style.is_none() => WordKind::Plain(word.value.to_uppercase()),
            Token::Word(word) => WordKind::Quoted(word.value),
            Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => WordKind::Text(text),
            Token::Number(number, _) => WordKind::Number(number),
            Token::Placeholder(name) => match name.strip_prefix('$').and_then(|number| number.parse().ok()) {
                Some(number @ 1..=PARAMETERS_MAX) => WordKind::Parameter(number),
                _ => WordKind::Sign(name),
            },
            other => WordKind::Sign(other.to_string()),
        };
        words.push(Word { kind, start, end });
    }
    Ok(words)
}

/// Turns lines and columns, which only grow, into bytes.
struct Places<'a> {
    characters: std::iter::Peekable<std::str::CharIndices<'a>>,
    length: usize,
    at: Location,
}

impl<'a> Places<'a> {
    fn new(sql: &'a str) -> Self {
        let at = Location { line: 1, column: 1 };
        Self { characters: sql.char_indices().peekable(), length: sql.len(), at }
    }

    fn byte(&mut self, place: Location) -> usize {
        while self.at < place
            && let Some((_, character)) = self.characters.next()
        {
            if character == '\n' {
                self.at = Location { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        self.characters.peek().map_or(self.length, |(byte, _)| *byte)
    }
}

/// How many parameters a statement has: the largest number among them.
#[must_use]
pub fn parameters(words: &[Word]) -> usize {
    let numbers = words.iter().map(|word| match word.kind {
        WordKind::Parameter(number) => number,
        _ => 0,
    });
    numbers.max().unwrap_or(0)
}

/// Whether a parameter says how many rows: it stands behind LIMIT, OFFSET or FETCH FIRST and can only be a number.
#[must_use]
pub fn counts_rows(words: &[Word], number: usize) -> bool {
    words.windows(2).any(|pair| {
        pair[1].kind == WordKind::Parameter(number)
            && matches!(&pair[0].kind, WordKind::Plain(word) if ["LIMIT", "OFFSET", "FIRST"].contains(&word.as_str()))
    })
}

/// The text with each parameter replaced by its literal, which is any expression in SQL.
///
/// # Errors
/// When there are fewer literals than parameters.
pub fn bind(part: &Part<'_>, literals: &[String]) -> Result<String, QueryError> {
    let mut bound = String::with_capacity(part.text.len() + 16 * literals.len());
    let mut from = 0;
    for word in &part.words {
        let WordKind::Parameter(number) = word.kind else { continue };
        let literal = literals.get(number - 1).ok_or_else(|| {
            let message = format!("the statement has a parameter ${number}, and {} were given", literals.len());
            QueryError::new(ErrorKind::BadQuery, message)
        })?;
        bound.push_str(&part.text[from..word.start]);
        // What stands before and after must not become one word, one sign or a comment with it.
        bound.push(' ');
        bound.push_str(literal);
        bound.push(' ');
        from = word.end;
    }
    bound.push_str(&part.text[from..]);
    Ok(bound)
}

/// Whether a parameter stands for many values: it is all there is in ANY, SOME or ALL.
#[must_use]
pub fn holds_many(words: &[Word], number: usize) -> bool {
    words.windows(4).any(|four| {
        let [quantifier, open, parameter, close] = four else { return false };
        matches!(&quantifier.kind, WordKind::Plain(word) if ["ANY", "SOME", "ALL"].contains(&word.as_str()))
            && open.kind == WordKind::Sign("(".to_owned())
            && parameter.kind == WordKind::Parameter(number)
            && close.kind == WordKind::Sign(")".to_owned())
    })
}

/// The items of an array that is written as text, `{1,NULL,"a b"}`; `None` for null.
///
/// # Errors
/// What is wrong with it.
pub fn array_items(text: &str) -> Result<Vec<Option<String>>, &'static str> {
    let inner = text.trim().strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).ok_or("expected {item,…}")?;
    let mut items = Vec::new();
    if inner.trim().is_empty() {
        return Ok(items);
    }
    let (mut item, mut was_quoted, mut in_quotes) = (String::new(), false, false);
    let mut characters = inner.chars();
    loop {
        let next = characters.next();
        match next {
            Some('"') => {
                in_quotes = !in_quotes;
                was_quoted = true;
            }
            Some('\\') => item.push(characters.next().ok_or("it ends in a backslash")?),
            Some('{' | '}') if !in_quotes => return Err("it has more than one dimension"),
            None if in_quotes => return Err("a quoted item does not end"),
            None | Some(',') if !in_quotes => {
                let item = std::mem::take(&mut item);
                let is_null = !was_quoted && item.trim().eq_ignore_ascii_case("null");
                let plain = if was_quoted { item } else { item.trim().to_owned() };
                items.push((!is_null).then_some(plain));
                was_quoted = false;
                if next.is_none() {
                    return Ok(items);
                }
            }
            Some(other) => item.push(other),
            None => return Ok(items),
        }
    }
}

/// A text as a literal of SQL.
#[must_use]
pub fn text_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_its_statements_end() {
        for (sql, expected) in [
            ("", &[][..]),
            (" ; ;; -- nothing\n", &[]),
            ("SELECT 1", &["SELECT 1"]),
            ("BEGIN; SELECT ';' ; COMMIT;", &["BEGIN", " SELECT ';' ", " COMMIT"]),
            ("SELECT 'é;\n' /* ; */ , \"a;b\"; SELECT 2", &["SELECT 'é;\n' /* ; */ , \"a;b\"", " SELECT 2"]),
        ] {
            let found: Vec<&str> = split(sql).unwrap().into_iter().map(|part| part.text).collect();
            assert_eq!(found, expected, "{sql}");
        }
        for sql in ["SELECT 'open", "SELECT \"open", "SELECT /* open"] {
            assert_eq!(split(sql).unwrap_err().kind, ErrorKind::BadQuery, "{sql}");
        }
        assert_eq!(split(&" ".repeat(SQL_BYTES_MAX + 1)).unwrap_err().kind, ErrorKind::TooLarge);
    }

    #[test]
    fn parameters_become_literals_where_they_stand_and_nowhere_else() {
        for (sql, expected) in [
            ("SELECT $1", "SELECT  'it''s' "),
            ("SELECT $2-$2, $1", "SELECT  (-5) - (-5) ,  'it''s' "),
            ("SELECT '$1', \"$1\" -- $1\n, $1::text", "SELECT '$1', \"$1\" -- $1\n,  'it''s' ::text"),
            ("/* ü\n\nü */ SELECT 'ü', $1 AS ü", "/* ü\n\nü */ SELECT 'ü',  'it''s'  AS ü"),
            ("SELECT 1-$2", "SELECT 1- (-5) "),
            ("SELECT a[$2]", "SELECT a[ (-5) ]"),
        ] {
            let part = split(sql).unwrap().remove(0);
            let literals = [text_literal("it's"), "(-5)".to_owned()];
            assert_eq!(bind(&part, &literals).unwrap(), expected, "{sql}");
        }
        let part = split("SELECT $3").unwrap().remove(0);
        assert_eq!(parameters(&part.words), 3);
        assert!(bind(&part, &["1".to_owned()]).is_err());
        let limited = split("SELECT * FROM spans WHERE x = $1 LIMIT $2 OFFSET $3").unwrap().remove(0);
        assert_eq!([1, 2, 3].map(|number| counts_rows(&limited.words, number)), [false, true, true]);
        let many = split("SELECT 1 WHERE x = ANY($1) AND y = $2 AND z <> all ( $3 )").unwrap().remove(0);
        assert_eq!([1, 2, 3].map(|number| holds_many(&many.words, number)), [true, false, true]);
    }

    #[test]
    fn arrays_as_text_have_items() {
        let some = |text: &str| Some(text.to_owned());
        for (text, expected) in [
            ("{}", Ok(vec![])),
            (" { 1 , 2 } ", Ok(vec![some("1"), some("2")])),
            ("{a,NULL,\"null\",\"\"}", Ok(vec![some("a"), None, some("null"), some("")])),
            ("{\"a b\",\"q\\\"\",\"x,y{}\",\\{}", Ok(vec![some("a b"), some("q\""), some("x,y{}"), some("{")])),
            ("{{1},{2}}", Err("it has more than one dimension")),
            ("{\"open}", Err("a quoted item does not end")),
            ("1,2", Err("expected {item,…}")),
        ] {
            assert_eq!(array_items(text), expected, "{text}");
        }
    }
}
