//! `godseye tail`: logs or spans of a running server as they are acknowledged, a line each.
//!
//! A client of `GET /api/v1/tail`. The server says what it could not send; that is shown where it is missing, and
//! summed up at the end. A connection that breaks is made again, with a growing pause between attempts, and that is
//! said too: what came meanwhile is in the tables, not here. Not here: which rows match, which the server decides.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::HTTP_DEFAULT;
use crate::client::{self, ClientError};
use crate::config::Secret;
use crate::terminal::clean;

/// The pause before the first attempt to connect again; each further one is twice as long…
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// …up to this: a server that is restarted is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Without a line for this long the connection is dead: the server gives a sign of life every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A line that is longer is none of ours: the server takes requests of 16 MiB, whose text may grow in JSON.
const LINE_BYTES_MAX: usize = 128 << 20;

/// Characters of a body or a name in a line for people. `--output json` has all of it.
const TEXT_CHARS_MAX: usize = 400;

/// Attributes in a line for people, and characters of each value.
const ATTRIBUTES_SHOWN: usize = 4;
const VALUE_CHARS_MAX: usize = 40;

/// `godseye tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// What to follow
    #[arg(value_enum, default_value_t = Followed::Logs)]
    table: Followed,
    /// Only rows for which this holds, in SQL, as after WHERE
    #[arg(long = "where", value_name = "PREDICATE")]
    predicate: Option<String>,
    /// The server's HTTP address
    #[arg(long, env = "GODSEYE_SERVER", default_value_t = HTTP_DEFAULT.to_string(), value_name = "HOST:PORT")]
    server: String,
    /// A token, when the server wants one
    #[arg(long, env = "GODSEYE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<Secret>,
    /// How to print a row
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A table that can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Followed {
    /// Log records.
    Logs,
    /// Spans.
    Spans,
}

impl Followed {
    const fn table(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Spans => "spans",
        }
    }
}

/// How a row is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for people.
    Text,
    /// The whole row as a JSON object, and `{"dropped":N}` where N rows are missing.
    Json,
}

/// Follows until it is told to stop, or nobody reads.
///
/// # Errors
/// [`ClientError`], when the server refuses, or cannot be reached the first time.
pub fn run(args: &TailArgs) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
    let outcome = runtime.block_on(async {
        let handler = |kind| signal(kind).map_err(ClientError::Runtime);
        let (mut interrupt, mut terminate) = (handler(SignalKind::interrupt())?, handler(SignalKind::terminate())?);
        let mut tail = Tail::new(args);
        let outcome = tokio::select! {
            outcome = tail.follow() => outcome,
            _told = interrupt.recv() => Ok(()),
            _told = terminate.recv() => Ok(()),
        };
        if tail.connected {
            say(&format!("{} rows shown, {} dropped", tail.shown, tail.dropped));
        }
        outcome
    });
    // A write into a pipe that nobody reads must not hold the end.
    runtime.shutdown_background();
    outcome
}

/// Tells the person: not on standard output, which is for rows.
fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "godseye: {text}"));
}

/// Why no more lines come over a connection.
enum Ended {
    /// It may be better soon.
    Broken(String),
    /// Nobody reads what is printed.
    Unread,
    Failed(ClientError),
}

struct Tail<'a> {
    args: &'a TailArgs,
    color: bool,
    /// Whether there was a connection once.
    connected: bool,
    shown: u64,
    dropped: u64,
}

impl<'a> Tail<'a> {
    fn new(args: &'a TailArgs) -> Self {
        // https://no-color.org: set, and not empty.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = wanted && std::io::stdout().is_terminal();
        Self { args, color, connected: false, shown: 0, dropped: 0 }
    }

    async fn follow(&mut self) -> Result<(), ClientError> {
        let mut pause = PAUSE_MIN;
        loop {
            let why = match self.connect().await {
                Ok(body) => {
                    if self.connected {
                        say("connected again");
                    }
                    (self.connected, pause) = (true, PAUSE_MIN);
                    match self.read(body).await {
                        Ended::Broken(why) => why,
                        Ended::Unread => return Ok(()),
                        Ended::Failed(error) => return Err(error),
                    }
                }
                Err(error) if self.connected && error.is_retryable() => error.to_string(),
                Err(error) => return Err(error),
            };
            let seconds = pause.as_secs_f64();
            say(&format!("{why}; connecting again in {seconds} s, what comes until then is not shown"));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn connect(&self) -> Result<Incoming, ClientError> {
        let args = self.args;
        let mut path = format!("/api/v1/tail?table={}", args.table.table());
        if let Some(predicate) = &args.predicate {
            path.push_str(&format!("&where={}", utf8_percent_encode(predicate, NON_ALPHANUMERIC)));
        }
        let token = args.token.as_ref().map(Secret::expose);
        let answer = client::request(client::address(&args.server), token, "GET", &path, None).await?;
        Ok(answer.into_body())
    }

    /// Prints what comes until the connection ends.
    async fn read(&mut self, mut body: Incoming) -> Ended {
        let mut pending = Vec::new();
        loop {
            let frame = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Ended::Broken(format!("the connection broke ({error})")),
                Ok(None) => return Ended::Broken("the connection was closed".to_owned()),
                Err(_elapsed) => return Ended::Broken("the server is silent".to_owned()),
            };
            pending.extend_from_slice(&frame.into_data().unwrap_or_default());
            let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            if whole == 0 && pending.len() > LINE_BYTES_MAX {
                return Ended::Broken("the server sends something else than lines".to_owned());
            }
            let mut printed = Vec::new();
            let mut ended = None;
            for line in pending[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                ended = self.line(line, &mut printed);
                if ended.is_some() {
                    break;
                }
            }
            pending.drain(..whole);
            // On a thread of its own: Ctrl-C is heard while a pipe is full.
            let written = tokio::task::spawn_blocking(move || {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(&printed).and_then(|()| stdout.flush())
            });
            match written.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ended::Unread,
                Ok(Err(error)) => return Ended::Failed(ClientError::Stdout(error)),
                Err(_panicked) => return Ended::Unread,
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// One line of the server: a row, or something about rows.
    fn line(&mut self, line: &[u8], printed: &mut Vec<u8>) -> Option<Ended> {
        let Ok(Value::Object(row)) = serde_json::from_slice::<Value>(line) else {
            return Some(Ended::Broken("the server sends something else than JSON".to_owned()));
        };
        let only = if row.len() == 1 { row.iter().next() } else { None };
        match only.map(|(key, value)| (key.as_str(), value)) {
            Some(("following" | "heartbeat", _)) => {}
            Some(("dropped", rows)) => {
                let rows = rows.as_u64().unwrap_or_default();
                self.dropped += rows;
                match self.args.output {
                    Output::Json => printed.extend([line, b"\n"].concat()),
                    Output::Text => {
                        let text = format!("… {rows} rows are missing here: more came than could be shown");
                        printed.extend(format!("{}\n", paint(&text, Some(YELLOW), self.color)).into_bytes());
                    }
                }
            }
            Some(("end", why)) => return Some(Ended::Broken(why.as_str().unwrap_or("the server ended").to_owned())),
            Some(("error", error)) => {
                let message = error["message"].as_str().unwrap_or("unknown error").to_owned();
                // Tokens are read again, and ours may still be among them.
                return Some(match error["code"].as_str() {
                    Some("unauthenticated") => Ended::Broken(message),
                    _ => Ended::Failed(ClientError::BrokeOff { message }),
                });
            }
            _ => {
                self.shown += 1;
                match self.args.output {
                    Output::Json => printed.extend([line, b"\n"].concat()),
                    Output::Text => {
                        let text = match self.args.table {
                            Followed::Logs => log(&row, self.color),
                            Followed::Spans => span(&row, self.color),
                        };
                        printed.extend(format!("{text}\n").into_bytes());
                    }
                }
            }
        }
        None
    }
}

const RED: u8 = 31;
const YELLOW: u8 = 33;
const DIM: u8 = 2;

fn paint(text: &str, color: Option<u8>, wanted: bool) -> String {
    match color.filter(|_| wanted) {
        Some(color) => format!("\u{1b}[{color}m{text}\u{1b}[0m"),
        None => text.to_owned(),
    }
}

fn text<'a>(row: &'a Map<String, Value>, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// Text that stays on its line, and is not longer than so many characters.
fn short(text: &str, chars_max: usize) -> String {
    let mut out = clean(text);
    if out.chars().count() > chars_max {
        out = out.chars().take(chars_max - 1).collect();
        out.push('…');
    }
    out
}

/// `2026-11-24 12:00:00.123`, of RFC 3339 with nanoseconds.
fn time(row: &Map<String, Value>, column: &str) -> String {
    let time = text(row, column);
    format!("{} {}", time.get(..10).unwrap_or_default(), time.get(11..23).unwrap_or_default())
}

/// The first attributes as `key=value`, and how many more there are.
fn attributes(row: &Map<String, Value>) -> String {
    let Some(Value::Object(attributes)) = row.get("attributes") else { return String::new() };
    let mut out = String::new();
    for (key, value) in attributes.iter().take(ATTRIBUTES_SHOWN) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let gap = if out.is_empty() { "  " } else { " " };
        write!(out, "{gap}{}={}", clean(key), short(&value, VALUE_CHARS_MAX)).expect("a String takes everything");
    }
    if attributes.len() > ATTRIBUTES_SHOWN {
        write!(out, " +{}", attributes.len() - ATTRIBUTES_SHOWN).expect("a String takes everything");
    }
    out
}

/// The ranges of severity numbers that OpenTelemetry's data model names, four numbers each from 1.
const SEVERITIES: [&str; 6] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];

/// A log record: time, severity, service, what it says, attributes.
fn log(row: &Map<String, Value>, color: bool) -> String {
    let number = row.get("severity_number").and_then(Value::as_u64).unwrap_or_default();
    let range = number.checked_sub(1).and_then(|number| SEVERITIES.get(usize::try_from(number / 4).ok()?));
    let severity = match (text(row, "severity_text"), range) {
        ("", Some(range)) => (*range).to_owned(),
        ("", None) => "-".to_owned(),
        (severity, _) => short(severity, VALUE_CHARS_MAX),
    };
    let severity_color = match number {
        17.. => Some(RED),
        13..=16 => Some(YELLOW),
        1..=8 => Some(DIM),
        _ => None,
    };
    let body = row.get("body").and_then(Value::as_str).filter(|body| !body.is_empty());
    line(
        &time(row, "time"),
        &paint(&format!("{severity:<5}"), severity_color, color),
        text(row, "service_name"),
        &short(body.unwrap_or_else(|| text(row, "event_name")), TEXT_CHARS_MAX),
        &attributes(row),
        color,
    )
}

/// A span: time, status, service, name with duration, what failed, attributes.
fn span(row: &Map<String, Value>, color: bool) -> String {
    let (status, status_color) = match text(row, "status_code") {
        "ERROR" => ("ERROR", Some(RED)),
        "OK" => ("OK", None),
        _ => ("-", None),
    };
    let mut said = short(text(row, "name"), TEXT_CHARS_MAX);
    if let Some(nanos) = row.get("duration_ns").and_then(Value::as_i64) {
        said.push(' ');
        query::write_duration(nanos, &mut said);
    }
    let message = text(row, "status_message");
    if !message.is_empty() {
        said.push_str(&format!(": {}", short(message, TEXT_CHARS_MAX)));
    }
    let status = paint(&format!("{status:<5}"), status_color, color);
    line(&time(row, "start_time"), &status, text(row, "service_name"), &said, &attributes(row), color)
}

fn line(time: &str, status: &str, service: &str, said: &str, attributes: &str, color: bool) -> String {
    let service = short(if service.is_empty() { "-" } else { service }, VALUE_CHARS_MAX);
    let (time, attributes) = (paint(time, Some(DIM), color), clean(attributes));
    let attributes = if attributes.is_empty() { attributes } else { paint(&attributes, Some(DIM), color) };
    format!("{time} {status} {service}  {said}{attributes}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_is_a_line_that_shows_what_matters() {
        let long = "x".repeat(500);
        let attributes = json!({"a": 1, "b": "two", "c": true, "d": [1, 2], "e": null, "f": 6});
        for (followed, row, expected) in [
            (
                Followed::Logs,
                json!({"time": "2026-11-24T12:00:00.123456789Z", "severity_number": 17, "severity_text": "ERROR",
                       "service_name": "pay", "body": "declined:\nno \u{1b}[2Jfunds", "attributes": {"code": 51}}),
                "2026-11-24 12:00:00.123 ERROR pay  declined:·no ·[2Jfunds  code=51".to_owned(),
            ),
            (
                Followed::Logs,
                json!({"time": "2026-11-24T12:00:00.000000000Z", "severity_number": 13, "severity_text": "",
                       "service_name": "", "body": null, "event_name": "session.start", "attributes": attributes}),
                "2026-11-24 12:00:00.000 WARN  -  session.start  a=1 b=two c=true d=[1,2] +2".to_owned(),
            ),
            (
                Followed::Logs,
                json!({"time": "2026-11-24T12:00:00.000000000Z", "severity_number": 0, "body": long}),
                format!("2026-11-24 12:00:00.000 -     -  {}…", "x".repeat(399)),
            ),
            (
                Followed::Spans,
                json!({"start_time": "2026-11-24T12:00:00.123999999Z", "status_code": "ERROR", "service_name": "pay",
                       "name": "POST /pay", "duration_ns": 12_345_678, "status_message": "declined",
                       "attributes": {"http.route": "/pay"}}),
                "2026-11-24 12:00:00.123 ERROR pay  POST /pay 12.3 ms: declined  http.route=/pay".to_owned(),
            ),
            (
                Followed::Spans,
                json!({"start_time": "", "status_code": "UNSET", "service_name": "web", "name": "GET", "duration_ns": null}),
                "  -     web  GET".to_owned(),
            ),
        ] {
            let row = row.as_object().unwrap();
            let line = if followed == Followed::Logs { log(row, false) } else { span(row, false) };
            assert_eq!(line, expected);
            let painted = if followed == Followed::Logs { log(row, true) } else { span(row, true) };
            assert!(painted.contains("\u{1b}[2m") && painted.ends_with("\u{1b}[0m") | !painted.contains('='));
        }
    }
}
