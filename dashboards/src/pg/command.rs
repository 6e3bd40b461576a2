//! Statements that are about the session, not about telemetry: transactions, settings, prepared statements.
//!
//! Drivers send these unasked, and a session that reads has an honest answer to each: a transaction that does nothing,
//! a setting that is already so. Whatever is not known here is a question for the engine, whose guard refuses what is
//! no question. Not here: what a session does with a command.

use query::catalog::{SETTINGS, types};
use query::script::{Part, Word, WordKind};

/// What a statement wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Begin a transaction.
    Begin,
    /// End it, whatever its state.
    Commit,
    /// End it.
    Rollback,
    /// Something that has no effect here, and its tag.
    Nothing(&'static str),
    /// Set a setting.
    Set(String, String),
    /// Set a setting, or all of them, back.
    Reset(Option<String>),
    /// Show a setting.
    Show(String),
    /// Forget one prepared statement, or all.
    Deallocate(Option<String>),
    /// Forget everything.
    Discard,
    /// Prepare a statement.
    Prepare {
        /// Under which name.
        name: String,
        /// Types of its parameters, as far as they are said.
        types: Vec<u32>,
        /// Where its text begins in the statement's.
        from: usize,
    },
    /// Run a prepared one.
    Execute {
        /// Its name.
        name: String,
        /// Where in the statement each of its arguments stands.
        arguments: Vec<(usize, usize)>,
    },
    /// What this door does not have, and what to do instead.
    Missing(&'static str, &'static str),
    /// A question.
    Ask,
}

/// A statement that is one of the above, but not well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear(pub(super) String);

impl Command {
    /// What a statement wants, by its words.
    pub(super) fn of(part: &Part<'_>) -> Result<Self, Unclear> {
        let words = &part.words[..];
        let plain = |at: usize| match words.get(at).map(|word| &word.kind) {
            Some(WordKind::Plain(word)) => word.as_str(),
            _ => "",
        };
        Ok(match (plain(0), plain(1)) {
            ("BEGIN", _) | ("START", "TRANSACTION") => Self::Begin,
            ("COMMIT" | "END", _) => Self::Commit,
            ("ROLLBACK", "TO") | ("ROLLBACK", "TRANSACTION" | "WORK") if plain(1) == "TO" || plain(2) == "TO" => {
                Self::Nothing("ROLLBACK")
            }
            ("ROLLBACK" | "ABORT", _) => Self::Rollback,
            ("SAVEPOINT", _) => Self::Nothing("SAVEPOINT"),
            ("RELEASE", _) => Self::Nothing("RELEASE"),
            ("LISTEN", _) => Self::Nothing("LISTEN"),
            ("UNLISTEN", _) => Self::Nothing("UNLISTEN"),
            ("CLOSE", "ALL") => Self::Nothing("CLOSE CURSOR ALL"),
            ("COPY", _) => Self::Missing(
                "COPY is not available: this door only reads, row by row",
                "to export, POST the query to /api/v1/sql?format=csv&limit=… on the HTTP door",
            ),
            ("DECLARE" | "FETCH" | "MOVE", _) => Self::Missing(
                "cursors of SQL are not available",
                "ask for the rows in the extended protocol, so many at a time, as drivers do when they stream",
            ),
            ("SET", _) => set(words)?,
            ("RESET", "ALL") => Self::Reset(None),
            ("RESET", _) => Self::Reset(Some(setting_name(&words[1..])?.0)),
            ("SHOW", "TABLES") => Self::Ask,
            ("SHOW", "TRANSACTION") => Self::Show("transaction_isolation".to_owned()),
            ("SHOW", "TIME") => Self::Show("timezone".to_owned()),
            ("SHOW", _) => Self::Show(setting_name(&words[1..])?.0),
            ("DISCARD", _) => Self::Discard,
            ("DEALLOCATE", _) => {
                let at = if plain(1) == "PREPARE" { 2 } else { 1 };
                if plain(at) == "ALL" { Self::Deallocate(None) } else { Self::Deallocate(Some(name_at(words, at)?)) }
            }
            ("PREPARE", _) => prepare(words)?,
            ("EXECUTE", _) => execute(words)?,
            _ => Self::Ask,
        })
    }
}

/// A name: lower case when it is not quoted.
fn name_at(words: &[Word], at: usize) -> Result<String, Unclear> {
    match words.get(at).map(|word| &word.kind) {
        Some(WordKind::Plain(name)) => Ok(name.to_lowercase()),
        Some(WordKind::Quoted(name)) => Ok(name.clone()),
        _ => Err(Unclear("a name is missing".to_owned())),
    }
}

fn is_sign(words: &[Word], at: usize, sign: &str) -> bool {
    matches!(words.get(at).map(|word| &word.kind), Some(WordKind::Sign(found)) if found == sign)
}

/// The name of a setting, which may have a dot, and how many words it has.
fn setting_name(words: &[Word]) -> Result<(String, usize), Unclear> {
    let mut name = name_at(words, 0)?.to_lowercase();
    let mut at = 1;
    while is_sign(words, at, ".") {
        name = format!("{name}.{}", name_at(words, at + 1)?.to_lowercase());
        at += 2;
    }
    Ok((name, at))
}

fn set(words: &[Word]) -> Result<Command, Unclear> {
    let plain = |at: usize| match words.get(at).map(|word| &word.kind) {
        Some(WordKind::Plain(word)) => word.as_str(),
        _ => "",
    };
    let mut at = 1;
    if matches!((plain(1), plain(2)), ("SESSION", "CHARACTERISTICS") | ("TRANSACTION" | "CONSTRAINTS", _)) {
        // Isolation is that of one snapshot for each statement, and writing is not possible, whatever is set.
        return Ok(Command::Nothing("SET"));
    }
    if matches!(plain(1), "SESSION" | "LOCAL") {
        at += 1;
    }
    if matches!((plain(at), plain(at + 1)), ("SESSION", "AUTHORIZATION") | ("ROLE", _)) {
        return Ok(Command::Nothing("SET"));
    }
    let (name, value_at) = match (plain(at), plain(at + 1)) {
        ("TIME", "ZONE") => ("timezone".to_owned(), at + 2),
        ("NAMES", _) => ("client_encoding".to_owned(), at + 1),
        _ => {
            let (name, length) = setting_name(&words[at..])?;
            let sign = at + length;
            if !is_sign(words, sign, "=") && plain(sign) != "TO" {
                return Err(Unclear(format!("expected = or TO behind SET {name}")));
            }
            (name, sign + 1)
        }
    };
    let values = words[value_at.min(words.len())..].iter().filter_map(|word| match &word.kind {
        WordKind::Plain(value) => Some(value.to_lowercase()),
        WordKind::Quoted(value) | WordKind::Text(value) | WordKind::Number(value) => Some(value.clone()),
        WordKind::Sign(sign) if sign == "-" => Some(sign.clone()),
        WordKind::Sign(_) | WordKind::Parameter(_) => None,
    });
    let value = values.collect::<Vec<_>>().join(" ");
    if value.is_empty() && words.len() <= value_at {
        return Err(Unclear(format!("SET {name} needs a value")));
    }
    Ok(if value == "default" { Command::Reset(Some(name)) } else { Command::Set(name, value) })
}

/// `PREPARE name [(type, …)] AS statement`
fn prepare(words: &[Word]) -> Result<Command, Unclear> {
    let name = name_at(words, 1)?;
    let (mut at, mut found) = (2, Vec::new());
    if is_sign(words, at, "(") {
        let mut words_of_type: Vec<String> = Vec::new();
        loop {
            at += 1;
            let ends = is_sign(words, at, ")");
            if ends || is_sign(words, at, ",") {
                let name = words_of_type.join(" ");
                let known = types::by_name(&name).or(match name.as_str() {
                    "int" => Some(types::INT4),
                    "float" | "double" => Some(types::FLOAT8),
                    "decimal" => Some(types::NUMERIC),
                    _ => None,
                });
                let known = known.ok_or_else(|| Unclear(format!("type \"{name}\" does not exist")))?;
                found.push(known.oid);
                words_of_type.clear();
                if ends {
                    at += 1;
                    break;
                }
            } else {
                words_of_type.push(name_at(words, at)?);
            }
        }
    }
    match words.get(at) {
        Some(Word { kind: WordKind::Plain(word), end, .. }) if word == "AS" => {
            Ok(Command::Prepare { name, types: found, from: *end })
        }
        _ => Err(Unclear("expected PREPARE name AS statement".to_owned())),
    }
}

/// `EXECUTE name [(argument, …)]`
fn execute(words: &[Word]) -> Result<Command, Unclear> {
    let name = name_at(words, 1)?;
    let mut arguments = Vec::new();
    if words.len() > 2 {
        let [open, inner @ .., close] = &words[2..] else {
            return Err(Unclear("expected EXECUTE name (argument, …)".to_owned()));
        };
        if open.kind != WordKind::Sign("(".to_owned()) || close.kind != WordKind::Sign(")".to_owned()) {
            return Err(Unclear("expected EXECUTE name (argument, …)".to_owned()));
        }
        let (mut depth, mut start) = (0_usize, open.end);
        for word in inner {
            if let WordKind::Sign(sign) = &word.kind {
                match sign.as_str() {
                    "(" | "[" => depth += 1,
                    ")" | "]" => depth = depth.saturating_sub(1),
                    "," if depth == 0 => {
                        arguments.push((start, word.start));
                        start = word.end;
                    }
                    _ => {}
                }
            }
        }
        arguments.push((start, close.start));
    }
    Ok(Command::Execute { name, arguments })
}

/// What happens to a setting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// It is kept, and the client told when it is one that clients are told.
    Kept,
    /// It stays what it is, which the client may not expect.
    Stays(&'static str),
    /// There is no such setting.
    Unknown,
}

/// Settings that may be set to anything, since they change nothing that is read here: planner, locks, messages.
const HARMLESS: [&str; 30] = [
    "application_name",
    "backslash_quote",
    "bytea_output",
    "client_min_messages",
    "cursor_tuple_fraction",
    "default_text_search_config",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "escape_string_warning",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "log_statement",
    "max_parallel_workers_per_gather",
    "plan_cache_mode",
    "row_security",
    "search_path",
    "ssl_renegotiation_limit",
    "synchronous_commit",
    "tcp_keepalives_idle",
    "transaction_isolation",
    "work_mem",
    "xmloption",
];

/// What setting a setting does. `statement_timeout` and `godseye.rows_max`, which a session obeys, are not asked here.
pub(super) fn setting(name: &str, value: &str) -> Setting {
    let same = |expected: &str| value.eq_ignore_ascii_case(expected);
    match name {
        "timezone" if !["utc", "gmt", "etc/utc", "zulu", "0", "default", "local"].iter().any(|zone| same(zone)) => {
            Setting::Stays("times are shown in UTC")
        }
        "datestyle" if !value.to_ascii_lowercase().starts_with("iso") => Setting::Stays("dates are shown in ISO style"),
        "client_encoding" if !["utf8", "utf-8", "unicode", "sql_ascii", "auto"].iter().any(|name| same(name)) => {
            Setting::Stays("text is UTF-8")
        }
        "intervalstyle" if !same("postgres") => Setting::Stays("intervals are shown in PostgreSQL's style"),
        "standard_conforming_strings" if !["on", "true", "1"].iter().any(|on| same(on)) => {
            Setting::Stays("backslashes are text")
        }
        "default_transaction_read_only" | "transaction_read_only" if !["on", "true", "1"].iter().any(|on| same(on)) => {
            Setting::Stays("nothing can be written through this door")
        }
        "timezone"
        | "datestyle"
        | "client_encoding"
        | "intervalstyle"
        | "standard_conforming_strings"
        | "default_transaction_read_only"
        | "transaction_read_only" => Setting::Kept,
        _ if HARMLESS.contains(&name) || name.starts_with("enable_") => Setting::Kept,
        // A prefix of their own is how extensions and applications keep what is theirs.
        _ if name.contains('.') => Setting::Kept,
        _ => Setting::Unknown,
    }
}

/// The value of a setting that was not set.
pub(super) fn default_setting(name: &str) -> Option<&'static str> {
    let known = SETTINGS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    known.or_else(|| match name {
        "statement_timeout" | "lock_timeout" | "idle_in_transaction_session_timeout" => Some("0"),
        _ if HARMLESS.contains(&name) => Some(""),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sql: &str) -> Result<Command, Unclear> {
        Command::of(&query::script::split(sql).unwrap().remove(0))
    }

    #[test]
    fn statements_about_the_session_are_told_from_questions() {
        let text = |text: &str| text.to_owned();
        let set = |name: &str, value: &str| Command::Set(text(name), text(value));
        for (sql, expected) in [
            ("SELECT 1", Command::Ask),
            ("with x as (select 1) select * from x", Command::Ask),
            ("DROP TABLE spans", Command::Ask),
            ("SHOW TABLES", Command::Ask),
            ("begin", Command::Begin),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", Command::Begin),
            ("START TRANSACTION", Command::Begin),
            ("COMMIT", Command::Commit),
            ("END", Command::Commit),
            ("ROLLBACK", Command::Rollback),
            ("ROLLBACK TO SAVEPOINT a", Command::Nothing("ROLLBACK")),
            ("ROLLBACK WORK TO a", Command::Nothing("ROLLBACK")),
            ("SAVEPOINT a", Command::Nothing("SAVEPOINT")),
            ("SET extra_float_digits = 3", set("extra_float_digits", "3")),
            ("SET SESSION statement_timeout TO '5s'", set("statement_timeout", "5s")),
            ("SET LOCAL DateStyle TO ISO, MDY", set("datestyle", "iso mdy")),
            ("SET godseye.rows_max = 10", set("godseye.rows_max", "10")),
            ("SET TIME ZONE 'UTC'", set("timezone", "UTC")),
            ("SET NAMES 'utf8'", set("client_encoding", "utf8")),
            ("SET work_mem TO DEFAULT", Command::Reset(Some(text("work_mem")))),
            ("SET TRANSACTION READ WRITE", Command::Nothing("SET")),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Nothing("SET")),
            ("RESET ALL", Command::Reset(None)),
            ("SHOW server_version", Command::Show(text("server_version"))),
            ("SHOW TRANSACTION ISOLATION LEVEL", Command::Show(text("transaction_isolation"))),
            ("DEALLOCATE PREPARE \"A\"", Command::Deallocate(Some(text("A")))),
            ("DEALLOCATE ALL", Command::Deallocate(None)),
            ("DISCARD ALL", Command::Discard),
            ("UNLISTEN *", Command::Nothing("UNLISTEN")),
            ("CLOSE ALL", Command::Nothing("CLOSE CURSOR ALL")),
            ("PREPARE q AS SELECT 1", Command::Prepare { name: text("q"), types: Vec::new(), from: 12 }),
            (
                "PREPARE q (int, double precision) AS SELECT $1",
                Command::Prepare { name: text("q"), types: vec![23, 701], from: 36 },
            ),
            ("EXECUTE q", Command::Execute { name: text("q"), arguments: Vec::new() }),
            (
                "EXECUTE q(1, f(2,3), 'a')",
                Command::Execute { name: text("q"), arguments: vec![(10, 11), (12, 19), (20, 24)] },
            ),
        ] {
            assert_eq!(of(sql), Ok(expected), "{sql}");
        }
        for sql in [
            "SET",
            "SET x",
            "SET x =",
            "RESET",
            "SHOW",
            "PREPARE",
            "PREPARE q SELECT 1",
            "PREPARE q (nothing) AS SELECT 1",
            "PREPARE q (",
            "EXECUTE",
            "EXECUTE q 1",
            "EXECUTE q(",
            "DEALLOCATE",
        ] {
            assert!(of(sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn settings_are_kept_where_they_are_harmless() {
        for (name, value, expected) in [
            ("application_name", "psql", Setting::Kept),
            ("enable_seqscan", "off", Setting::Kept),
            ("myapp.user", "7", Setting::Kept),
            ("timezone", "UTC", Setting::Kept),
            ("datestyle", "ISO", Setting::Kept),
            ("timezone", "Europe/Berlin", Setting::Stays("times are shown in UTC")),
            ("client_encoding", "LATIN1", Setting::Stays("text is UTF-8")),
            ("no_such_thing", "1", Setting::Unknown),
        ] {
            assert_eq!(setting(name, value), expected, "{name} = {value}");
        }
    }
}
