//! `godseye query`: one question to a running server, its answer on standard output. Without a question on a terminal,
//! the prompt (`prompt.rs`).
//!
//! A client like any other: it uses the HTTP API and nothing else.

use std::io::{IsTerminal as _, Read as _, Write as _};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::cli::{HTTP_DEFAULT, Output};
use crate::config::Secret;
use crate::{prompt, terminal};

/// `godseye query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The SQL; `-` reads it from standard input, as does a pipe. On a terminal without it, statements are typed
    sql: Option<String>,
    /// The server's HTTP address
    #[arg(long, env = "GODSEYE_SERVER", default_value_t = HTTP_DEFAULT.to_string(), value_name = "HOST:PORT")]
    server: String,
    /// A token, when the server wants one
    #[arg(long, env = "GODSEYE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<Secret>,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The most rows of the answer; more than the server's usual limit makes it an export
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The SQL could not be read from standard input.
    #[error("cannot read the query from standard input: {0}")]
    Stdin(std::io::Error),
    /// Nobody answers at that address.
    #[error("no answer from {server}: {detail}; is `godseye serve` running, and is --server right?")]
    Unreachable {
        /// The address.
        server: String,
        /// What happened.
        detail: String,
    },
    /// The server said no.
    #[error("{message}")]
    Refused {
        /// The server's words.
        message: String,
        /// Whether it may say yes in a moment.
        is_retryable: bool,
    },
    /// The answer ended before its last row; what came was printed.
    #[error("the answer is not complete: {message}")]
    BrokeOff {
        /// Why.
        message: String,
    },
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Stdout(std::io::Error),
    /// The terminal cannot be used.
    #[error("cannot read from the terminal: {0}")]
    Terminal(std::io::Error),
    /// The runtime could not be started.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl ClientError {
    /// Whether trying again in a moment can help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { is_retryable: true, .. })
    }
}

/// Asks and prints.
///
/// # Errors
/// [`ClientError`].
pub fn run(args: &QueryArgs) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
    let server = prompt::Server { address: address(&args.server), token: args.token.as_ref().map(Secret::expose) };
    let sql = match args.sql.as_deref() {
        None if std::io::stdin().is_terminal() => return prompt::run(&runtime, server, args.limit),
        None | Some("-") => {
            let mut sql = String::new();
            std::io::stdin().read_to_string(&mut sql).map_err(ClientError::Stdin)?;
            sql
        }
        Some(sql) => sql.to_owned(),
    };
    let format = match args.output {
        Output::Table | Output::Json => "json",
        Output::Ndjson => "ndjson",
        Output::Csv => "csv",
    };
    let body = runtime.block_on(async {
        let answer = self::sql(server.address, server.token, &sql, format, args.limit).await?;
        whole(server.address, answer).await
    })?;
    let text = match args.output {
        Output::Table => terminal::table(&serde_json::from_slice(&body).unwrap_or_default()).into_bytes(),
        Output::Json | Output::Ndjson | Output::Csv => body.to_vec(),
    };
    print(&text)?;
    match broke_off(&body, args.output) {
        Some(message) => Err(ClientError::BrokeOff { message }),
        None => Ok(()),
    }
}

/// Writes to standard output.
///
/// # Errors
/// [`ClientError::Stdout`].
pub fn print(text: &[u8]) -> Result<(), ClientError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        // `godseye query … | head` is not an error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(ClientError::Stdout),
    }
}

/// Why an answer ended early, as the server says at its end once rows have been sent.
pub(crate) fn broke_off(body: &[u8], output: Output) -> Option<String> {
    let end = match output {
        Output::Table | Output::Json => body,
        Output::Ndjson => body.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default(),
        // A broken CSV answer breaks the connection, which is an error already.
        Output::Csv => return None,
    };
    let end: serde_json::Value = match serde_json::from_slice(end) {
        Ok(end) => end,
        Err(error) if output != Output::Ndjson => return Some(format!("it is not JSON: {error}")),
        Err(_empty) => return None,
    };
    let failed = end.get("error").filter(|failed| failed.get("code").is_some())?;
    Some(failed["message"].as_str().unwrap_or("unknown error").to_owned())
}

/// A server's address as it was typed: people paste URLs.
pub(crate) fn address(server: &str) -> &str {
    server.trim_start_matches("http://").trim_end_matches('/')
}

/// Sends one statement to `POST /api/v1/sql` and returns the body of a successful answer.
///
/// # Errors
/// [`ClientError::Unreachable`] and [`ClientError::Refused`].
pub async fn ask(server: &str, token: Option<&str>, sql: &str, format: &str) -> Result<Bytes, ClientError> {
    let answer = self::sql(server, token, sql, format, None).await?;
    whole(server, answer).await
}

/// Sends one statement to `POST /api/v1/sql`; the answer's head, when it is a success.
///
/// # Errors
/// [`ClientError::Unreachable`] and [`ClientError::Refused`].
pub(crate) async fn sql(
    server: &str,
    token: Option<&str>,
    sql: &str,
    format: &str,
    limit: Option<u64>,
) -> Result<http::Response<Incoming>, ClientError> {
    let limit = limit.map(|rows| format!("&limit={rows}")).unwrap_or_default();
    let path = format!("/api/v1/sql?format={format}{limit}");
    let body = Body { content_type: "application/sql", bytes: Bytes::copy_from_slice(sql.as_bytes()) };
    request(server, token, "POST", &path, Some(body)).await
}

/// What a request carries.
pub(crate) struct Body {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Bytes,
}

/// Sends a request and returns the answer, of which only the head is there, when it is a success. Dropping it, or
/// this future, ends the request: the server sees its client go away.
///
/// # Errors
/// [`ClientError::Unreachable`] and [`ClientError::Refused`].
pub(crate) async fn request(
    server: &str,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<Body>,
) -> Result<http::Response<Incoming>, ClientError> {
    let unreachable = |detail: String| ClientError::Unreachable { server: server.to_owned(), detail };
    let mut request = http::Request::builder().method(method).uri(format!("http://{server}{path}"));
    if let Some(body) = &body {
        request = request.header(http::header::CONTENT_TYPE, body.content_type);
    }
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Full::new(body.map(|body| body.bytes).unwrap_or_default()))
        .map_err(|error| unreachable(error.to_string()))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let response = client.request(request).await.map_err(|error| unreachable(chain(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = whole(server, response).await?;
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut message = match answer["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the server answered {status}: {}", String::from_utf8_lossy(&body)),
    };
    if let Some(hint) = answer["error"]["hint"].as_str() {
        message.push_str(&format!("\nhint: {hint}"));
    }
    let is_retryable = [http::StatusCode::TOO_MANY_REQUESTS, http::StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    Err(ClientError::Refused { message, is_retryable })
}

/// The rest of an answer.
///
/// # Errors
/// [`ClientError::Unreachable`].
pub(crate) async fn whole(server: &str, answer: http::Response<Incoming>) -> Result<Bytes, ClientError> {
    let unreachable = |detail: String| ClientError::Unreachable { server: server.to_owned(), detail };
    Ok(answer.into_body().collect().await.map_err(|error| unreachable(chain(&error)))?.to_bytes())
}

/// An error with its causes: the innermost one says what really happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        out.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    out
}
