//! `POST /api/v1/sql`: one statement in, its answer out, streamed batch by batch.
//!
//! The status is decided before the first byte: by then the statement is planned and its first
//! batch is there. What fails later ends the body with an `error` (JSON, NDJSON) or breaks the
//! connection (CSV, Arrow), so that a cut answer is never taken for a whole one.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use query::{QueryError, QueryOutput, render};

use crate::auth::Scope;
use crate::{Doors, error};

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Ndjson,
    Csv,
    Arrow,
}

impl Format {
    const NAMES: [(&'static str, &'static str, Self); 4] = [
        ("json", "application/json", Self::Json),
        ("ndjson", "application/x-ndjson", Self::Ndjson),
        ("csv", "text/csv; charset=utf-8; header=present", Self::Csv),
        ("arrow", "application/vnd.apache.arrow.stream", Self::Arrow),
    ];

    /// From `format=`, else from `Accept`, else JSON.
    fn choose(query: Option<&str>, headers: &HeaderMap) -> Result<Self, String> {
        let asked = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("format=")).next_back();
        if let Some(asked) = asked {
            return Self::NAMES.iter().find(|(name, ..)| *name == asked).map(|(.., format)| *format).ok_or_else(|| {
                format!("format `{}` is not known: expected json, ndjson, csv or arrow", asked.escape_default())
            });
        }
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = |media: &str| media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let wanted = accept.split(',').map(essence);
        Ok(wanted
            .filter_map(|wanted| Self::NAMES.iter().find(|(_, media, _)| essence(media) == wanted))
            .map(|(.., format)| *format)
            .next()
            .unwrap_or(Self::Json))
    }

    fn media_type(self) -> &'static str {
        Self::NAMES.iter().find(|(.., format)| *format == self).map_or("", |(_, media, _)| media)
    }
}

pub(crate) async fn sql(
    State(doors): State<Doors>,
    RawQuery(parameters): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    // Who asks comes before what is asked.
    let tenant = match doors.tenant(&headers, Scope::Query) {
        Ok(tenant) => tenant,
        Err(response) => return *response,
    };
    let opened = match doors.opened() {
        Ok(opened) => opened,
        Err(response) => return *response,
    };
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return error(rejection.status(), "bad_body", &rejection.body_text(), None),
    };
    let format = match Format::choose(parameters.as_deref(), &headers) {
        Ok(format) => format,
        Err(message) => return error(StatusCode::BAD_REQUEST, "bad_format", &message, None),
    };
    let Ok(statement) = std::str::from_utf8(&body) else {
        return error(StatusCode::BAD_REQUEST, "bad_query", "the statement is not UTF-8", None);
    };
    let started = match opened.engine.query(&tenant, statement, doors.0.deps.limits).await {
        Ok(mut output) => match output.next().await {
            Some(Err(failed)) => Err(failed),
            Some(Ok(first)) => Ok((output, Some(first))),
            None => Ok((output, None)),
        },
        Err(refused) => Err(refused),
    };
    match started {
        Ok((output, first)) => {
            let mut writer = Writer::new(format, &output.schema);
            let head = writer.head().and_then(|()| match &first {
                Some(batch) => writer.batch(batch),
                None => Ok(()),
            });
            if let Err(failed) = head {
                return refuse(&failed);
            }
            let ended = first.is_none();
            let chunks = stream::unfold(Some((output, writer, ended)), next_chunk);
            ([(header::CONTENT_TYPE, format.media_type())], Body::from_stream(chunks)).into_response()
        }
        Err(failed) => refuse(&failed),
    }
}

fn refuse(failed: &QueryError) -> Response {
    let status = StatusCode::from_u16(failed.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, failed.kind.code(), &failed.message, failed.hint.as_deref());
    if failed.is_retryable() {
        response.headers_mut().insert(header::RETRY_AFTER, crate::RETRY_AFTER_SECONDS);
    }
    response
}

type Chunk = Result<Vec<u8>, QueryError>;

/// What is written so far goes out; then the next batch is fetched and written.
async fn next_chunk(
    state: Option<(QueryOutput, Writer, bool)>,
) -> Option<(Chunk, Option<(QueryOutput, Writer, bool)>)> {
    let (mut output, mut writer, mut ended) = state?;
    loop {
        if ended {
            return Some(match writer.tail(&output) {
                Ok(()) => (Ok(writer.take()), None),
                Err(failed) => (Err(failed), None),
            });
        }
        if writer.is_full() {
            return Some((Ok(writer.take()), Some((output, writer, ended))));
        }
        match output.next().await {
            Some(Ok(batch)) => {
                if let Err(failed) = writer.batch(&batch) {
                    return Some((Err(failed), None));
                }
            }
            Some(Err(failed)) => {
                return Some(if writer.broke_off(&failed) { (Ok(writer.take()), None) } else { (Err(failed), None) });
            }
            None => ended = true,
        }
    }
}

/// A chunk goes out at this size, bytes: large enough to be worth a write, small enough that a
/// slow reader holds little.
const CHUNK_BYTES: usize = 256 << 10;

struct Writer {
    format: Format,
    schema: SchemaRef,
    first_row: bool,
    text: String,
    arrow: Option<StreamWriter<Vec<u8>>>,
}

impl Writer {
    fn new(format: Format, schema: &SchemaRef) -> Self {
        Self { format, schema: Arc::clone(schema), first_row: true, text: String::new(), arrow: None }
    }

    fn head(&mut self) -> Result<(), QueryError> {
        match self.format {
            Format::Json => {
                self.text.push_str("{\"columns\":");
                self.text.push_str(&render::columns_json(&self.schema));
                self.text.push_str(",\"rows\":[");
            }
            Format::Ndjson => {}
            Format::Csv => render::header_csv(&self.schema, &mut self.text),
            Format::Arrow => {
                let writer = StreamWriter::try_new(Vec::new(), &render::arrow_schema(&self.schema));
                self.arrow = Some(writer.map_err(unwritable)?);
            }
        }
        Ok(())
    }

    fn batch(&mut self, batch: &arrow::array::RecordBatch) -> Result<(), QueryError> {
        match (self.format, &mut self.arrow) {
            (Format::Json, _) => render::rows_json(batch, &mut self.first_row, &mut self.text),
            (Format::Ndjson, _) => render::rows_ndjson(batch, &mut self.text),
            (Format::Csv, _) => render::rows_csv(batch, &mut self.text),
            (Format::Arrow, Some(writer)) => {
                render::arrow_batch(batch, &render::arrow_schema(&self.schema)).and_then(|batch| writer.write(&batch))
            }
            (Format::Arrow, None) => Ok(()),
        }
        .map_err(unwritable)
    }

    fn tail(&mut self, output: &QueryOutput) -> Result<(), QueryError> {
        if self.format == Format::Json {
            self.text.push_str("\n],\"stats\":");
            self.text.push_str(&serde_json::to_string(&output.stats()).unwrap_or_default());
            self.text.push_str("}\n");
        }
        if let Some(writer) = &mut self.arrow {
            writer.finish().map_err(unwritable)?;
        }
        Ok(())
    }

    /// Writes an error behind rows that were already written; `false` when the format has no place
    /// for one.
    fn broke_off(&mut self, failed: &QueryError) -> bool {
        let error = serde_json::json!({ "code": failed.kind.code(), "message": failed.message, "hint": failed.hint });
        match self.format {
            Format::Json => self.text.push_str(&format!("\n],\"error\":{error}}}\n")),
            Format::Ndjson => self.text.push_str(&format!("{{\"error\":{error}}}\n")),
            Format::Csv | Format::Arrow => return false,
        }
        true
    }

    fn is_full(&self) -> bool {
        self.text.len().max(self.arrow.as_ref().map_or(0, |writer| writer.get_ref().len())) >= CHUNK_BYTES
    }

    fn take(&mut self) -> Vec<u8> {
        match &mut self.arrow {
            Some(writer) => std::mem::take(writer.get_mut()),
            None => std::mem::take(&mut self.text).into_bytes(),
        }
    }
}

fn unwritable(error: arrow::error::ArrowError) -> QueryError {
    QueryError::new(query::ErrorKind::Internal, format!("the answer cannot be written: {error}"))
}
