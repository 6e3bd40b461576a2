//! `godseye query` without SQL on a terminal: statements are asked as they are typed, with history and completion.
//!
//! A client like any other: tables, columns and attribute keys come over the HTTP API. A line is edited by rustyline;
//! what Tab offers is decided in `complete.rs`. Ctrl-C ends the question, not the prompt: the connection is closed, and
//! the server stops working on it. Not here: statements from a pipe, which `client.rs` asks without a word.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Context, Editor, Helper};
use tokio::runtime::Runtime;

use crate::client::{self, ClientError};
use crate::complete::{self, Names};
use crate::terminal;

/// Statements that are kept from one prompt to the next.
const HISTORY_MAX: usize = 1000;

/// How long Tab waits for attribute keys: it reads recent rows, and a person waits.
const KEYS_WITHIN: Duration = Duration::from_secs(2);

/// How long attribute keys are good for.
const KEYS_FRESH_FOR: Duration = Duration::from_secs(60);

/// Attribute keys that are asked for; more than a person reads, less than a reply is long.
const KEYS_MAX: usize = 500;

/// A question that takes longer than this gets a progress line, which is written anew so often.
const PROGRESS_AFTER: Duration = Duration::from_millis(300);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// What there is to type besides SQL.
const HELP: &str = "\
A statement ends with ; and may have several lines. Tab completes tables, columns, functions and attribute keys.
  \\d          list tables            \\d TABLE   list its columns
  \\x          one line per cell, for wide rows and long text; again: a table
  \\?          this help              \\q         leave, as Ctrl-D does
Ctrl-C stops a question that runs, or forgets what was typed. Ctrl-R searches the history.
";

/// The server that is asked.
#[derive(Clone, Copy)]
pub(crate) struct Server<'a> {
    /// Its address.
    pub(crate) address: &'a str,
    /// A token, where it wants one.
    pub(crate) token: Option<&'a str>,
}

/// Asks until the end of the input.
///
/// # Errors
/// [`ClientError`]: the server is not there at the start, or the terminal goes away. What goes wrong with a statement
/// is shown, and the next one is read.
pub(crate) fn run(runtime: &Runtime, server: Server<'_>, limit: Option<u64>) -> Result<(), ClientError> {
    let names = runtime.block_on(names(server))?;
    let config = rustyline::Config::builder()
        .completion_type(CompletionType::List)
        .history_ignore_dups(true)
        .and_then(|config| config.max_history_size(HISTORY_MAX))
        .map_err(terminal_failed)?
        .history_ignore_space(true)
        .build();
    let mut editor = Editor::<Assistant<'_>, FileHistory>::with_config(config).map_err(terminal_failed)?;
    let greeting = format!("{} has {} tables: \\d lists them, \\? helps.\n", server.address, names.tables.len());
    client::print(greeting.as_bytes())?;
    editor.set_helper(Some(Assistant { runtime, server, names, keys: RefCell::default() }));
    let history = history_file();
    if let Some(file) = &history
        && file.exists()
        && let Err(error) = editor.load_history(file)
    {
        complain(&format!("the history in {} cannot be read: {error}", file.display()));
    }
    let is_expanded = Cell::new(false);
    loop {
        let line = match editor.readline("godseye> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(terminal_failed(error)),
        };
        let statement = line.trim();
        if statement.is_empty() {
            continue;
        }
        if let Err(error) =
            editor.add_history_entry(statement).map_err(|error| error.to_string()).and_then(|is_new| match &history {
                Some(file) if is_new => keep(&mut editor, file),
                _ => Ok(()),
            })
        {
            complain(&format!("the history is not kept: {error}"));
        }
        let known = editor.helper().map(|assistant| &assistant.names);
        let asked = match statement.strip_prefix('\\') {
            None => one(runtime, server, statement, limit, is_expanded.get()),
            Some("q") => return Ok(()),
            Some("?") => client::print(HELP.as_bytes()),
            Some("x") => {
                is_expanded.set(!is_expanded.get());
                let now = if is_expanded.get() { "one line per cell" } else { "tables" };
                client::print(format!("answers are shown as {now}\n").as_bytes())
            }
            Some(command) => match (command.split_whitespace().collect::<Vec<_>>().as_slice(), known) {
                (["d"], _) => one(runtime, server, TABLES, limit, is_expanded.get()),
                (["d", table], Some(known)) if known.tables.iter().any(|(name, _)| name == table) => {
                    one(runtime, server, &columns_of(table), limit, is_expanded.get())
                }
                (["d", table], _) => {
                    complain(&format!("there is no table `{table}`: \\d lists them"));
                    Ok(())
                }
                _ => {
                    complain(&format!("there is no command `\\{command}`: \\? lists them"));
                    Ok(())
                }
            },
        };
        match asked {
            Ok(()) => {}
            Err(error @ ClientError::Stdout(_)) => return Err(error),
            Err(error) => complain(&error.to_string()),
        }
    }
}

const TABLES: &str = "SELECT table_name, count(*) AS columns FROM information_schema.columns \
                      WHERE table_schema = 'public' GROUP BY 1 ORDER BY 1";

/// The statement that lists the columns of a table that is known: its name holds no quote.
fn columns_of(table: &str) -> String {
    format!(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name = '{table}' ORDER BY ordinal_position"
    )
}

/// Asks one statement and shows its answer.
fn one(
    runtime: &Runtime,
    server: Server<'_>,
    statement: &str,
    limit: Option<u64>,
    is_expanded: bool,
) -> Result<(), ClientError> {
    let statement = statement.trim_end().trim_end_matches(';');
    let Some(body) = runtime.block_on(asked(server, statement, limit))? else {
        complain("stopped");
        return Ok(());
    };
    let answer = serde_json::from_slice(&body).unwrap_or_default();
    let shown = if is_expanded { terminal::expanded(&answer) } else { terminal::table(&answer) };
    client::print(shown.as_bytes())?;
    match client::broke_off(&body, crate::cli::Output::Json) {
        Some(message) => Err(ClientError::BrokeOff { message }),
        None => Ok(()),
    }
}

/// The answer; `None` when Ctrl-C came first. Dropping the request closes its connection, which the server notices.
async fn asked(server: Server<'_>, statement: &str, limit: Option<u64>) -> Result<Option<Bytes>, ClientError> {
    let received = Cell::new(0);
    let answer = async {
        let answer = client::sql(server.address, server.token, statement, "json", limit).await?;
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::Unreachable {
                server: server.address.to_owned(),
                detail: error.to_string(),
            })?;
            bytes.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
            received.set(bytes.len() as u64);
        }
        Ok(Some(Bytes::from(bytes)))
    };
    tokio::select! {
        answer = answer => answer,
        never = progress(&received) => match never {},
        _ = tokio::signal::ctrl_c() => Ok(None),
    }
}

/// Says on standard error how long it has taken and what came, until it is dropped.
async fn progress(received: &Cell<u64>) -> Infallible {
    /// Takes the line away.
    struct Line;
    impl Drop for Line {
        fn drop(&mut self) {
            drop(write!(std::io::stderr(), "\r\u{1b}[K"));
        }
    }
    let begun = Instant::now();
    tokio::time::sleep(PROGRESS_AFTER).await;
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let _line = Line;
    loop {
        let seconds = begun.elapsed().as_secs_f64();
        let came = match received.get() {
            0 => "the server is working".to_owned(),
            bytes => format!("{} came", terminal::size(bytes)),
        };
        drop(write!(std::io::stderr(), "\r\u{1b}[K{seconds:.1} s, {came}; Ctrl-C stops it"));
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}

/// What the server has, asked once.
async fn names(server: Server<'_>) -> Result<Names, ClientError> {
    let answer = client::request(server.address, server.token, "GET", "/api/v1/tables", None).await?;
    let answer = client::whole(server.address, answer).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    let text = |value: &serde_json::Value| value["name"].as_str().unwrap_or_default().to_owned();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default().into_iter();
    let columns = |table: &serde_json::Value| list(&table["columns"]).map(|column| text(&column)).collect();
    let tables = list(&answer["tables"]).map(|table| (text(&table), columns(&table))).collect();
    let functions = "SELECT DISTINCT routine_name FROM information_schema.routines ORDER BY 1";
    // A server without that list still answers questions: Tab offers less.
    let functions = client::ask(server.address, server.token, functions, "json").await.unwrap_or_default();
    let functions: serde_json::Value = serde_json::from_slice(&functions).unwrap_or_default();
    let function = |row: serde_json::Value| row[0].as_str().map(str::to_owned);
    Ok(Names { tables, functions: list(&functions["rows"]).filter_map(function).collect() })
}

/// When keys were asked for, and what they are.
type AskedKeys = (Instant, Vec<String>);

/// What rustyline asks while a line is typed.
struct Assistant<'a> {
    runtime: &'a Runtime,
    server: Server<'a>,
    names: Names,
    /// Attribute keys by (table, container).
    keys: RefCell<HashMap<(String, String), AskedKeys>>,
}

impl Assistant<'_> {
    /// The attribute keys recent rows have; none where the server does not say in time.
    fn keys(&self, table: &str, container: &str) -> Vec<String> {
        let place = (table.to_owned(), container.to_owned());
        if let Some((asked, keys)) = self.keys.borrow().get(&place)
            && asked.elapsed() < KEYS_FRESH_FOR
        {
            return keys.clone();
        }
        let path = format!("/api/v1/attributes?table={table}&container={container}&keys={KEYS_MAX}&values=1");
        let ask = async {
            let answer = client::request(self.server.address, self.server.token, "GET", &path, None).await?;
            client::whole(self.server.address, answer).await
        };
        let Ok(Ok(answer)) = self.runtime.block_on(async { tokio::time::timeout(KEYS_WITHIN, ask).await }) else {
            return Vec::new();
        };
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        let keys = answer["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut keys: Vec<String> = keys.iter().filter_map(|key| key["key"].as_str()).map(str::to_owned).collect();
        keys.sort_unstable();
        keys.dedup();
        self.keys.borrow_mut().insert(place, (Instant::now(), keys.clone()));
        keys
    }
}

impl Completer for Assistant<'_> {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (from, offers) = complete::complete(line, pos, &self.names, |table, container| self.keys(table, container));
        // A key is somebody else's text, and the list is drawn as it is.
        let pair = |offer: complete::Offer| Pair { display: terminal::clean(&offer.shown), replacement: offer.text };
        Ok((from, offers.into_iter().map(pair).collect()))
    }
}

impl Validator for Assistant<'_> {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let is_complete = complete::is_complete(context.input());
        Ok(if is_complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Hinter for Assistant<'_> {
    type Hint = String;
}

impl Highlighter for Assistant<'_> {}

impl Helper for Assistant<'_> {}

/// Where statements are kept: `GODSEYE_HISTORY`, or a file in the folder for such state. `None` keeps none.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("GODSEYE_HISTORY").or_else(|| {
        let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
        Some(state.join("godseye/query-history"))
    })
}

/// Adds the newest statement to the file, which is its owner's alone.
fn keep(editor: &mut Editor<Assistant<'_>, FileHistory>, file: &std::path::Path) -> Result<(), String> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    editor.append_history(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn terminal_failed(error: ReadlineError) -> ClientError {
    ClientError::Terminal(match error {
        ReadlineError::Io(error) => error,
        other => std::io::Error::other(other.to_string()),
    })
}

/// Writes to standard error; a closed one is nobody's problem.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
