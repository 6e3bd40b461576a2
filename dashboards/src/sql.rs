//! `POST /api/v1/sql`: one statement in, its answer out, streamed batch by batch. `GET /api/v1/traces/ID` asks one
//! itself, so that a message can link to a trace.
//!
//! The status is decided before the first byte: by then the statement is planned and the first chunk is written. What
//! fails later ends the body with an `error` (JSON, NDJSON) or breaks the connection (CSV, Arrow, Parquet), so that a
//! cut answer is never taken for a whole one. The same goes for an answer that a limit cut off where its client had
//! not asked for that limit; JSON, which has a place for it, says so in `stats` instead.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use query::{ErrorKind, Limits, QueryError, QueryOutput};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::auth::Scope;
use crate::encoding::{COMPRESSED_FROM_BYTES, Encoder, Encoding};
use crate::formats::{Format, Writer};
use crate::{Doors, error, negotiate};

/// Tells how many rows an answer may have, so that one which broke off explains itself.
const ROWS_MAX: HeaderName = HeaderName::from_static("godseye-rows-max");

/// Of a trace id (OpenTelemetry).
const TRACE_ID_DIGITS: usize = 32;

/// Parameters as sent.
type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// What a request asks for beside its statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    format: Format,
    /// Rows, when the client says how many it wants at most.
    limit: Option<u64>,
}

impl Asked {
    fn read(parameters: Parameters, headers: &HeaderMap, limit_max: u64) -> Result<Self, Box<Response>> {
        let bad = |code: &str, message: &str| Box::new(error(StatusCode::BAD_REQUEST, code, message, None));
        let Query(parameters) = parameters.map_err(|rejection| bad("bad_parameter", &rejection.body_text()))?;
        let (mut format, mut limit) = (None, None);
        for (name, value) in &parameters {
            let shown = || value.chars().take(64).collect::<String>().escape_default().to_string();
            match name.as_str() {
                "format" => {
                    format = Some(Format::named(value).ok_or_else(|| {
                        let names = Format::names();
                        bad("bad_format", &format!("format `{}` is not known: expected one of {names}", shown()))
                    })?);
                }
                "limit" => {
                    let rows = value.parse().ok().filter(|rows| (1..=limit_max).contains(rows));
                    limit = Some(rows.ok_or_else(|| {
                        let message = format!("limit `{}` is not possible: expected 1 to {limit_max} rows", shown());
                        bad("bad_parameter", &message)
                    })?);
                }
                _ => {
                    let name: String = name.chars().take(64).collect();
                    let message =
                        format!("there is no parameter `{}`: expected format or limit", name.escape_default());
                    return Err(bad("bad_parameter", &message));
                }
            }
        }
        let format = match (format, negotiate::list(headers, header::ACCEPT)) {
            (Some(format), _) => format,
            (None, None) => Format::Json,
            (None, Some(accept)) => Format::accepted(&accept).ok_or_else(|| {
                let message = format!("no format of this answer is acceptable: there are {}", Format::media_types());
                let hint = Some("send one of them in Accept, or say ?format=");
                Box::new(error(StatusCode::NOT_ACCEPTABLE, "not_acceptable", &message, hint))
            })?,
        };
        Ok(Self { format, limit })
    }
}

pub(crate) async fn sql(
    State(doors): State<Doors>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match answer(&doors, parameters, &headers, body).await {
        Ok(response) => response,
        Err(response) => *response,
    }
}

/// One trace in the order of its tree, as `FROM trace('ID')` gives it.
pub(crate) async fn trace(
    State(doors): State<Doors>,
    Path(id): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Response {
    // Who asks comes before what is asked.
    if let Err(response) = doors.tenant(&headers, Scope::Query) {
        return *response;
    }
    if id.len() != TRACE_ID_DIGITS || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let message = format!("this is no trace id: expected {TRACE_ID_DIGITS} hexadecimal digits");
        return error(StatusCode::BAD_REQUEST, "bad_parameter", &message, None);
    }
    let statement = format!("SELECT * FROM trace('{}') ORDER BY position", id.to_ascii_lowercase());
    match answer(&doors, parameters, &headers, Ok(Bytes::from(statement))).await {
        Ok(response) => response,
        Err(response) => *response,
    }
}

async fn answer(
    doors: &Doors,
    parameters: Parameters,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Box<Response>> {
    // Who asks comes before what is asked.
    let tenant = doors.tenant(headers, Scope::Query)?;
    let opened = doors.opened()?;
    let body =
        body.map_err(|rejection| Box::new(error(rejection.status(), "bad_body", &rejection.body_text(), None)))?;
    let deps = &doors.0.deps;
    let asked = Asked::read(parameters, headers, deps.export.rows_max.max(deps.limits.rows_max))?;
    let statement = std::str::from_utf8(&body).map_err(|_not_utf8| {
        Box::new(error(StatusCode::BAD_REQUEST, "bad_query", "the statement is not UTF-8", None))
    })?;

    let (limits, export) = limits(doors, asked.limit).map_err(|refused| Box::new(refuse(&refused)))?;
    let refused = |failed: QueryError| Box::new(refuse(&failed));
    let client = crate::client(doors, tenant, headers);
    let output = opened.engine.query_of(&client, statement, limits).await.map_err(refused)?;
    let writer = Writer::new(asked.format, &output.schema).map_err(refused)?;
    let mut answer = Answer { output, writer, limits, asked, begun: false, ended: false, _export: export };
    let first = answer.next().await.unwrap_or_else(|| Ok(Vec::new())).map_err(refused)?;

    let rows_max = HeaderValue::from(limits.rows_max);
    let vary = HeaderValue::from_static("accept, accept-encoding");
    let media_type = HeaderValue::from_static(asked.format.media_type());
    let head = [(header::CONTENT_TYPE, media_type), (header::VARY, vary), (ROWS_MAX, rows_max)];
    let encoding = match negotiate::list(headers, header::ACCEPT_ENCODING) {
        Some(accepted) if asked.format.is_compressible() => negotiate::encoding(&accepted),
        _ => Encoding::Identity,
    };
    if answer.ended && (first.len() < COMPRESSED_FROM_BYTES || encoding == Encoding::Identity) {
        return Ok((head, Body::from(first)).into_response());
    }
    let encoder = Encoder::new(encoding).map_err(|failed| refused(unencodable(&failed)))?;
    let (sender, receiver) = mpsc::channel(1);
    let sending = send(Some((answer, encoder, Some(first))), sender, deps.send_timeout);
    // Where queries run: writing rows and compressing them is work that receivers must not wait for.
    opened.engine.spawn(sending).map_err(refused)?;
    let body = Body::from_stream(stream::unfold(Some(receiver), received));
    let mut response = (head, body).into_response();
    if let Some(name) = encoding.name() {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    Ok(response)
}

/// The limits of a query, and the permit it needs when it is an export: an answer of more rows than everybody gets.
pub(crate) fn limits(doors: &Doors, limit: Option<u64>) -> Result<(Limits, Option<OwnedSemaphorePermit>), QueryError> {
    let deps = &doors.0.deps;
    let usual = deps.limits;
    match limit {
        None => Ok((usual, None)),
        Some(rows) if rows <= usual.rows_max => Ok((Limits { rows_max: rows, ..usual }, None)),
        Some(rows) => {
            let permit = Arc::clone(&doors.0.exports).try_acquire_owned().map_err(|_none_left| {
                let at_once = deps.export.at_once;
                QueryError::new(
                    ErrorKind::Busy,
                    format!("{at_once} answers of more than {} rows are being sent, the limit", usual.rows_max),
                )
                .hint("try again when one of them has ended")
            })?;
            // What is sent is not held: rows and time bound it, and bytes need not.
            let limits = Limits { rows_max: rows, timeout: deps.export.timeout, output_bytes_max: u64::MAX };
            Ok((limits, Some(permit)))
        }
    }
}

pub(crate) fn refuse(failed: &QueryError) -> Response {
    let status = StatusCode::from_u16(failed.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, failed.kind.code(), &failed.message, failed.hint.as_deref());
    if failed.is_retryable() {
        response.headers_mut().insert(header::RETRY_AFTER, crate::RETRY_AFTER_SECONDS);
    }
    response
}

fn unencodable(failed: &std::io::Error) -> QueryError {
    QueryError::new(ErrorKind::Internal, format!("the answer cannot be compressed: {failed}"))
}

/// An answer on its way out.
struct Answer {
    output: QueryOutput,
    writer: Writer,
    limits: Limits,
    asked: Asked,
    /// Whether a chunk is written: from then on an error is no status any more.
    begun: bool,
    ended: bool,
    _export: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// The next chunk; the last one sets `ended`.
    ///
    /// # Errors
    /// What has to be the status, or to break the connection.
    async fn next(&mut self) -> Option<Result<Vec<u8>, QueryError>> {
        if self.ended {
            return None;
        }
        let written = self.write_chunk().await;
        let begun = std::mem::replace(&mut self.begun, true);
        Some(match written {
            Ok(()) => self.writer.take(),
            Err(failed) => {
                self.ended = true;
                if begun && self.writer.broke_off(&failed) { self.writer.take() } else { Err(failed) }
            }
        })
    }

    /// Writes until a chunk is full or the answer is whole.
    async fn write_chunk(&mut self) -> Result<(), QueryError> {
        loop {
            if self.writer.write()? || self.writer.is_full() {
                return Ok(());
            }
            match self.output.next().await {
                Some(batch) => self.writer.add(batch?),
                None => break,
            }
        }
        let stats = self.output.stats();
        if stats.truncated && self.asked.format != Format::Json && self.asked.limit != Some(stats.rows) {
            return Err(QueryError::new(
                ErrorKind::RowLimit,
                format!(
                    "the answer has more than {} rows or {} MiB, the limit",
                    self.limits.rows_max,
                    self.limits.output_bytes_max >> 20
                ),
            )
            .hint("say how many rows you want, with ?limit= or LIMIT"));
        }
        self.writer.finish(&stats)?;
        self.ended = true;
        Ok(())
    }
}

type Chunk = Result<Vec<u8>, QueryError>;
type Sending = Option<(Answer, Encoder, Option<Vec<u8>>)>;

/// A chunk on its way to the client; `None` ends a whole answer.
type Sent = Option<Chunk>;

/// Sends an answer, chunk by chunk, until it is whole, its client is gone, or nothing of it was read for too long. A
/// client that stops reading must not keep the query and its permit: without the end of the answer it sees a broken
/// connection.
async fn send(mut sending: Sending, sender: mpsc::Sender<Sent>, patience: Duration) {
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return,
            next = next_chunk(sending) => next,
        };
        let (chunk, rest) = match next {
            Some((chunk, rest)) => (Some(chunk), rest),
            None => (None, None),
        };
        let ended = chunk.is_none();
        match tokio::time::timeout(patience, sender.send(chunk)).await {
            Ok(Ok(())) if !ended => sending = rest,
            Ok(Ok(()) | Err(_)) => return,
            Err(_elapsed) => {
                let patience_ms = patience.as_millis();
                tracing::warn!(patience_ms, "a client read nothing of its answer: its query is stopped");
                return;
            }
        }
    }
}

/// The next chunk of what is sent. A sender that is gone without the answer's end breaks the connection.
async fn received(receiver: Option<mpsc::Receiver<Sent>>) -> Option<(Chunk, Option<mpsc::Receiver<Sent>>)> {
    let mut receiver = receiver?;
    match receiver.recv().await {
        Some(Some(chunk)) => Some((chunk, Some(receiver))),
        Some(None) => None,
        None => Some((Err(QueryError::new(ErrorKind::Timeout, "the answer was not read in time")), None)),
    }
}

/// The next chunk, encoded, and what is left after it.
async fn next_chunk(sending: Sending) -> Option<(Chunk, Sending)> {
    let (mut answer, mut encoder, mut first) = sending?;
    loop {
        let part = match first.take() {
            Some(part) => Some(part),
            None => match answer.next().await {
                Some(Err(failed)) => return Some((Err(failed), None)),
                Some(Ok(part)) => Some(part),
                None => None,
            },
        };
        let encoded = match part {
            Some(part) => encoder.encode(part),
            None => {
                return Some((encoder.finish().map_err(|failed| unencodable(&failed)), None));
            }
        };
        match encoded {
            Ok(chunk) if chunk.is_empty() => {}
            Ok(chunk) => return Some((Ok(chunk), Some((answer, encoder, None)))),
            Err(failed) => return Some((Err(unencodable(&failed)), None)),
        }
    }
}
