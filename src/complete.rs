//! What the word at the cursor can become in the prompt of `godseye query`.
//!
//! A pure function of the line and of names that are known. It reads SQL only as far as it must to know what belongs at
//! the cursor: strings, comments, and which tables a statement names. Not here: asking the server (`prompt.rs`), and no
//! grammar: an offer that does not parse is a wrong offer, not an error.

/// What a server has that can be named in SQL.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Tables with their columns, as the server lists them.
    pub(crate) tables: Vec<(String, Vec<String>)>,
    /// Functions, without their brackets.
    pub(crate) functions: Vec<String>,
}

/// One way to go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Offer {
    /// How a list shows it.
    pub(crate) shown: String,
    /// What takes the place of the word.
    pub(crate) text: String,
}

/// Words of SQL, and what follows a `\`. No more than people type: the list is read while someone waits.
const KEYWORDS: [&str; 47] = [
    "ALL",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "CROSS",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "ANALYZE",
    "FILTER",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "ILIKE",
    "IN",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "NULLS",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OVER",
    "PARTITION",
    "SELECT",
    "THEN",
    "UNION",
    "WHEN",
    "WHERE",
    "WITH",
];

/// A piece of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// A name or keyword.
    Word(&'a str),
    /// A string of which the closing quote is there, or a quoted name.
    Quoted,
    /// Anything else that is one character.
    Symbol(char),
}

/// A line, cut, and how it ends.
struct Cut<'a> {
    pieces: Vec<Piece<'a>>,
    end: End<'a>,
}

/// What the end of a line is inside of.
enum End<'a> {
    /// Nothing.
    Free,
    /// A string that is not closed: its text so far.
    String(&'a str),
    /// A comment or a quoted name.
    Opaque,
}

/// The offers for the word that ends at `at`, and where that word begins. `keys` are the attribute keys of a table's
/// container that rows have had; it is asked only when they are wanted.
pub(crate) fn complete(
    line: &str,
    at: usize,
    names: &Names,
    keys: impl FnOnce(&str, &str) -> Vec<String>,
) -> (usize, Vec<Offer>) {
    let before = &line[..at];
    if let Some(rest) = before.strip_prefix("\\d ") {
        return (at - rest.len(), offers(rest, names.tables.iter().map(|(table, _)| table.clone())));
    }
    let cut = cut(before);
    let whole = self::cut(line).pieces;
    let tables = named(&whole, names);
    let mut pieces = cut.pieces.as_slice();
    match cut.end {
        End::Opaque => return (at, Vec::new()),
        End::String(typed) => {
            let [.., Piece::Word(container), Piece::Symbol('[')] = pieces else { return (at, Vec::new()) };
            let table = tables.iter().find(|(_, columns)| columns.iter().any(|column| column == container));
            let table = table.map_or("spans", |(table, _)| table);
            let close = if line[at..].starts_with('\'') { "" } else { "']" };
            let keys = keys(table, container).into_iter().filter(|key| key.starts_with(typed));
            let offer = |key: String| Offer { text: key.replace('\'', "''") + close, shown: key };
            return (at - typed.len(), keys.map(offer).collect());
        }
        End::Free => {}
    }
    let typed = match pieces {
        [earlier @ .., Piece::Word(word)] if before.ends_with(word) => {
            pieces = earlier;
            word
        }
        _ => "",
    };
    let from = at - typed.len();
    let columns = |tables: &[&(String, Vec<String>)]| -> Vec<String> {
        let mut columns: Vec<String> = tables.iter().flat_map(|(_, columns)| columns.iter().cloned()).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    };
    match pieces {
        [.., Piece::Word(qualifier), Piece::Symbol('.')] => {
            let table = aliased(&whole, qualifier, names);
            return (from, offers(typed, columns(&table.into_iter().collect::<Vec<_>>()).into_iter()));
        }
        [.., Piece::Word(word)] if is_any(word, &["FROM", "JOIN", "DESCRIBE"]) => {
            return (from, offers(typed, names.tables.iter().map(|(table, _)| table.clone())));
        }
        _ => {}
    }
    let mut out = offers(typed, columns(&tables).into_iter());
    if !typed.is_empty() {
        let functions = offers(typed, names.functions.iter().cloned()).into_iter();
        out.extend(functions.map(|Offer { shown, text }| Offer { shown: shown + "()", text: text + "(" }));
        let is_lower = !typed.chars().any(char::is_uppercase);
        let keywords = KEYWORDS.iter().map(|word| if is_lower { word.to_lowercase() } else { (*word).to_owned() });
        out.extend(offers(typed, keywords));
        // Of a statement that names none yet, a column can be of any table.
        if tables.is_empty() {
            out.extend(offers(typed, columns(&names.tables.iter().collect::<Vec<_>>()).into_iter()));
        }
        out.sort_unstable();
        out.dedup();
    }
    (from, out)
}

/// Those that begin as typed, whatever the case.
fn offers(typed: &str, all: impl Iterator<Item = String>) -> Vec<Offer> {
    all.filter(|name| name.get(..typed.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(typed)))
        .map(|name| Offer { shown: name.clone(), text: name })
        .collect()
}

fn is_any(word: &str, words: &[&str]) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// The tables a statement names after FROM or JOIN, or a comma there.
fn named<'n>(pieces: &[Piece<'_>], names: &'n Names) -> Vec<&'n (String, Vec<String>)> {
    let word = |piece: &Piece<'_>, table: &str| matches!(piece, Piece::Word(word) if word.eq_ignore_ascii_case(table));
    names.tables.iter().filter(|(table, _)| pieces.iter().any(|piece| word(piece, table))).collect()
}

/// The table that `name` stands for: itself, or as an alias right behind it, with or without AS.
fn aliased<'n>(pieces: &[Piece<'_>], name: &str, names: &'n Names) -> Option<&'n (String, Vec<String>)> {
    let table = |name: &str| names.tables.iter().find(|(table, _)| table.eq_ignore_ascii_case(name));
    let alias = pieces.windows(3).find_map(|window| match window {
        [Piece::Word(before), Piece::Word(alias), _] if *alias == name => table(before),
        [Piece::Word(before), Piece::Word(word), Piece::Word(alias)] if *alias == name && is_any(word, &["AS"]) => {
            table(before)
        }
        _ => None,
    });
    let last = || match pieces {
        [.., Piece::Word(before), Piece::Word(alias)] if *alias == name => table(before),
        _ => None,
    };
    table(name).or(alias).or_else(last)
}

/// Cuts the last statement of a line into pieces.
fn cut(line: &str) -> Cut<'_> {
    let mut pieces = Vec::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\'' => match quoted(after, '\'') {
                Some(after) => {
                    pieces.push(Piece::Quoted);
                    after
                }
                None => return Cut { pieces, end: End::String(after) },
            },
            '"' => match quoted(after, '"') {
                Some(after) => {
                    pieces.push(Piece::Quoted);
                    after
                }
                None => return Cut { pieces, end: End::Opaque },
            },
            '-' if after.starts_with('-') => match after.find('\n') {
                Some(end) => &after[end..],
                None => return Cut { pieces, end: End::Opaque },
            },
            '/' if after.starts_with('*') => match after.find("*/") {
                Some(end) => &after[end + 2..],
                None => return Cut { pieces, end: End::Opaque },
            },
            ';' => {
                pieces.clear();
                after
            }
            c if c.is_whitespace() => after,
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                pieces.push(Piece::Word(&rest[..end]));
                &rest[end..]
            }
            c => {
                pieces.push(Piece::Symbol(c));
                after
            }
        };
    }
    Cut { pieces, end: End::Free }
}

/// What follows the closing quote; a doubled one is text.
fn quoted(mut text: &str, quote: char) -> Option<&str> {
    loop {
        let after = &text[text.find(quote)? + 1..];
        match after.strip_prefix(quote) {
            Some(more) => text = more,
            None => return Some(after),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a statement is there to its end: a `;` outside of strings and comments comes last, or it is a command of the
/// prompt, which is one line.
pub(crate) fn is_complete(text: &str) -> bool {
    let text = text.trim();
    if text.is_empty() || text.starts_with('\\') {
        return true;
    }
    // The last statement is empty exactly where a `;` ended the one before, and then there is something before it.
    let Cut { pieces, end } = cut(text);
    pieces.is_empty() && !matches!(end, End::String(_)) && text.contains(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let table = |name: &str, columns: &[&str]| (name.to_owned(), columns.iter().map(|&c| c.to_owned()).collect());
        Names {
            tables: vec![
                table("spans", &["service_name", "name", "duration_ns", "attributes", "resource_attributes"]),
                table("span_events", &["name", "attributes"]),
                table("logs", &["service_name", "body", "severity_number", "attributes"]),
            ],
            functions: ["sum", "time_bucket", "quantile"].map(str::to_owned).to_vec(),
        }
    }

    /// The cursor is at `|`; offers are shown as the line would read with each of them.
    fn check(line: &str, expected: &[&str]) {
        let at = line.find('|').expect("a row says where the cursor is");
        let text = line.replacen('|', "", 1);
        let keys = |table: &str, container: &str| {
            let key = format!("{table}.{container}");
            vec!["http.route".to_owned(), "http.it's".to_owned(), key]
        };
        let (from, offers) = complete(&text, at, &names(), keys);
        let lines: Vec<String> =
            offers.iter().map(|offer| format!("{}{}{}", &text[..from], offer.text, &text[at..])).collect();
        assert_eq!(lines, expected, "{line}");
    }

    #[test]
    fn the_word_at_the_cursor_becomes_what_can_stand_there() {
        for (line, expected) in [
            ("sel|", ["select"].as_slice()),
            ("SEL|", &["SELECT"]),
            ("Sel|", &["SELECT"]),
            ("SELECT * FROM sp|", &["SELECT * FROM spans", "SELECT * FROM span_events"]),
            ("SELECT * FROM |", &["SELECT * FROM spans", "SELECT * FROM span_events", "SELECT * FROM logs"]),
            ("select * from spans join lo|", &["select * from spans join logs"]),
            ("\\d l|", &["\\d logs"]),
            ("SELECT bod| FROM logs", &["SELECT body FROM logs"]),
            ("SELECT bod|", &["SELECT body"]),
            ("SELECT bod| FROM spans", &[]),
            (
                "SELECT l.se| FROM logs l",
                &["SELECT l.service_name FROM logs l", "SELECT l.severity_number FROM logs l"],
            ),
            ("SELECT * FROM logs AS l WHERE l.b|", &["SELECT * FROM logs AS l WHERE l.body"]),
            ("SELECT spans.du| FROM spans", &["SELECT spans.duration_ns FROM spans"]),
            ("SELECT x.| FROM spans", &[]),
            ("SELECT time_b| FROM logs", &["SELECT time_bucket( FROM logs"]),
            ("SELECT 1; SELECT bo| FROM logs", &["SELECT 1; SELECT body FROM logs"]),
            ("SELECT 'fro|", &[]),
            ("SELECT 'it''s' fro|", &["SELECT 'it''s' from"]),
            ("SELECT 1 -- fro|", &[]),
            ("SELECT /* a ' */ fro|", &["SELECT /* a ' */ from"]),
            ("SELECT \"fro|", &[]),
            ("ü|", &[]),
            ("|", &[]),
        ] {
            check(line, expected);
        }
    }

    #[test]
    fn attribute_keys_are_those_of_the_table_that_is_asked() {
        let is = "SELECT attributes['http.it''s']";
        for (line, expected) in [
            ("SELECT attributes['http|", ["SELECT attributes['http.route']", is].as_slice()),
            ("SELECT attributes['http.r|']", &["SELECT attributes['http.route']"]),
            ("SELECT attributes['l|'] FROM logs", &["SELECT attributes['logs.attributes'] FROM logs"]),
            ("SELECT resource_attributes['s|", &["SELECT resource_attributes['spans.resource_attributes']"]),
            ("SELECT other('http|", &[]),
        ] {
            check(line, expected);
        }
    }

    #[test]
    fn a_statement_ends_with_a_semicolon_outside_of_strings() {
        for (text, expected) in [
            ("SELECT 1;", true),
            ("SELECT 1; ", true),
            ("SELECT 1; -- done", true),
            ("SELECT 1", false),
            ("SELECT ';", false),
            ("SELECT ';'", false),
            ("SELECT 1 -- ;", false),
            ("SELECT 1; SELECT 2", false),
            ("", true),
            ("\\d", true),
        ] {
            assert_eq!(is_complete(text), expected, "{text}");
        }
    }
}
