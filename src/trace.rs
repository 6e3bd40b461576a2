//! `godseye trace ID`: one trace from a running server, as a waterfall or as JSON.
//!
//! A client like `godseye query`: it asks in SQL and knows nothing else of the server. How the
//! waterfall is drawn is [`crate::waterfall`]'s business.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cli::HTTP_DEFAULT;
use crate::client::{self, ClientError};
use crate::waterfall::{self, Note, NoteKind, Span, View};

/// Log records shown of one trace. A trace with more is better read with SQL.
const LOGS_MAX: usize = 10_000;

/// Columns when nobody says how many there are.
const WIDTH_DEFAULT: usize = 120;

/// `godseye trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The trace id, 32 hexadecimal digits
    id: String,
    /// The server's HTTP address
    #[arg(long, env = "GODSEYE_SERVER", default_value_t = HTTP_DEFAULT.to_string(), value_name = "HOST:PORT")]
    server: String,
    /// A token, when the server wants one
    #[arg(long, env = "GODSEYE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Show the spans' events
    #[arg(long)]
    events: bool,
    /// Show the trace's log records
    #[arg(long)]
    logs: bool,
    /// Columns to draw in [default: those of the terminal, or 120]
    #[arg(long, value_name = "COLUMNS")]
    width: Option<usize>,
    /// How to print the trace
    #[arg(long, short, value_enum, default_value_t = Output::Waterfall)]
    output: Output,
}

/// How a trace is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A picture for people.
    Waterfall,
    /// One JSON document: spans with all their columns, and log records.
    Json,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The server could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server has no span of it.
    #[error(
        "no span of trace {id} is on {server}: it may not have arrived yet, be past its retention, or belong to another tenant"
    )]
    NotFound {
        /// The id that was asked for.
        id: String,
        /// Who was asked.
        server: String,
    },
    /// The answer is not what this version reads.
    #[error("cannot read the answer of {server}: {detail}; is it another version of godseye?")]
    Answer {
        /// Who was asked.
        server: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// Asks and prints.
///
/// # Errors
/// [`TraceError`].
pub fn run(args: &TraceArgs) -> Result<(), TraceError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
    let text = runtime.block_on(Asker { args }.text())?;
    client::print(text.as_bytes())?;
    Ok(())
}

/// The rows of an answer as objects, and what its reader has to know.
struct Answer {
    rows: Vec<Value>,
    warnings: Vec<String>,
}

struct Asker<'a> {
    args: &'a TraceArgs,
}

impl Asker<'_> {
    async fn text(&self) -> Result<String, TraceError> {
        let args = self.args;
        let id = args.id.to_ascii_lowercase().replace('\'', "''");
        let columns = match args.output {
            Output::Json => "*",
            Output::Waterfall => {
                "depth, tree, offset_ns, duration_ns, self_duration_ns, is_orphan, span_id, service_name, \
                 CAST(start_time AS BIGINT) AS start_ns, status_code, status_message"
            }
        };
        let mut spans = self.ask(&format!("SELECT {columns} FROM trace('{id}') ORDER BY position")).await?;
        if spans.rows.is_empty() {
            return Err(TraceError::NotFound { id: args.id.clone(), server: args.server.clone() });
        }
        let mut warnings = std::mem::take(&mut spans.warnings);
        let logs = if args.logs { Some(self.logs(&id, &mut warnings).await?) } else { None };
        if args.output == Output::Json {
            let mut document = json!({ "trace_id": args.id.to_ascii_lowercase(), "spans": spans.rows });
            if let Some(logs) = logs {
                document["logs"] = Value::Array(logs);
            }
            document["warnings"] = Value::from(warnings);
            return Ok(format!("{document:#}\n"));
        }
        let mut notes = Vec::new();
        if args.events {
            let sql = format!(
                "SELECT span_id, CAST(time AS BIGINT) AS time_ns, name, attributes FROM span_events \
                 WHERE trace_id = '{id}' ORDER BY time"
            );
            let events = self.ask(&sql).await?;
            warnings.extend(events.warnings);
            notes.extend(self.read::<Event>(events.rows)?.into_iter().map(Event::note));
        }
        notes.extend(self.read::<Log>(logs.unwrap_or_default())?.into_iter().map(Log::note));
        let spans: Vec<Span> = self.read(spans.rows)?;
        let mut text = waterfall::draw(&args.id.to_ascii_lowercase(), &spans, &notes, self.view());
        warnings.iter().for_each(|warning| text.push_str(&format!("warning: {}\n", crate::terminal::clean(warning))));
        Ok(text)
    }

    /// The trace's log records, and a warning when there are too many.
    async fn logs(&self, id: &str, warnings: &mut Vec<String>) -> Result<Vec<Value>, TraceError> {
        let sql = format!(
            "SELECT time, CAST(time AS BIGINT) AS time_ns, service_name, severity_text, severity_number, body, \
             event_name, span_id, attributes FROM logs WHERE trace_id = '{id}' ORDER BY time LIMIT {}",
            LOGS_MAX + 1
        );
        let mut answer = self.ask(&sql).await?;
        warnings.append(&mut answer.warnings);
        if answer.rows.len() > LOGS_MAX {
            answer.rows.truncate(LOGS_MAX);
            warnings.push(format!("only the first {LOGS_MAX} log records are shown"));
        }
        Ok(answer.rows)
    }

    fn view(&self) -> View {
        let is_terminal = std::io::stdout().is_terminal();
        let columns = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let width = self.args.width.or_else(|| is_terminal.then(columns).flatten()).unwrap_or(WIDTH_DEFAULT);
        // https://no-color.org: set, and not empty.
        let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        View { width, color }
    }

    async fn ask(&self, sql: &str) -> Result<Answer, TraceError> {
        let args = self.args;
        let body = client::ask(client::address(&args.server), args.token.as_deref(), sql, "json").await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| self.unreadable(&error))?;
        if let Some(message) = answer["error"]["message"].as_str() {
            return Err(ClientError::BrokeOff { message: message.to_owned() }.into());
        }
        let names: Vec<&str> =
            answer["columns"].as_array().into_iter().flatten().filter_map(|column| column["name"].as_str()).collect();
        let row = |row: &Value| -> Value {
            let values = row.as_array().into_iter().flatten().cloned();
            Value::Object(names.iter().map(|name| (*name).to_owned()).zip(values).collect::<Map<_, _>>())
        };
        let rows = answer["rows"].as_array().into_iter().flatten().map(row).collect();
        let warnings = answer["stats"]["warnings"].as_array().into_iter().flatten();
        Ok(Answer { rows, warnings: warnings.filter_map(|text| text.as_str().map(str::to_owned)).collect() })
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, rows: Vec<Value>) -> Result<Vec<T>, TraceError> {
        rows.into_iter().map(|row| serde_json::from_value(row).map_err(|error| self.unreadable(&error))).collect()
    }

    fn unreadable(&self, error: &serde_json::Error) -> TraceError {
        TraceError::Answer { server: self.args.server.clone(), detail: error.to_string() }
    }
}

/// A row of `span_events`.
#[derive(Debug, Deserialize)]
struct Event {
    span_id: String,
    time_ns: i64,
    name: String,
    attributes: Map<String, Value>,
}

impl Event {
    fn note(self) -> Note {
        let text = format!("{}{}", self.name, pairs(&self.attributes));
        Note { span_id: Some(self.span_id), time_ns: self.time_ns, kind: NoteKind::Event, text }
    }
}

/// A row of `logs`.
#[derive(Debug, Deserialize)]
struct Log {
    span_id: Option<String>,
    time_ns: i64,
    service_name: String,
    severity_text: String,
    body: Option<String>,
    event_name: String,
    attributes: Map<String, Value>,
}

impl Log {
    fn note(self) -> Note {
        // An event that is a log record may have no body.
        let said = self.body.filter(|body| !body.is_empty()).unwrap_or(self.event_name);
        let head: Vec<String> =
            [self.severity_text, self.service_name, said].into_iter().filter(|part| !part.is_empty()).collect();
        let text = format!("{}{}", head.join(" "), pairs(&self.attributes));
        Note { span_id: self.span_id, time_ns: self.time_ns, kind: NoteKind::Log, text }
    }
}

/// Attributes as `  key=value key=value`.
fn pairs(attributes: &Map<String, Value>) -> String {
    let pairs = attributes.iter().map(|(key, value)| match value {
        Value::String(text) => format!("{key}={text}"),
        other => format!("{key}={other}"),
    });
    let pairs = pairs.collect::<Vec<_>>().join(" ");
    if pairs.is_empty() { pairs } else { format!("  {pairs}") }
}
