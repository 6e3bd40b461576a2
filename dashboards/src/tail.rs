//! `GET /api/v1/tail`: the rows of a table as they are acknowledged, a line of JSON each, for as long as the client
//! stays.
//!
//! Beside rows there are lines about them, each an object with one key that no table has as a column: `following`
//! (the first line: from here on nothing is missed unseen), `heartbeat` (nobody has gone away), `dropped` (so many
//! rows are missing here), `end` (the server stops) and `error` (it is over). Not here: which rows
//! (`query::follow`), and what a row looks like (`query::render`).

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use model::signal::Table;
use query::{Following, News};
use serde_json::{Value, json};
use tokio::time::{Interval, interval};

use crate::auth::{Edition, Scope};
use crate::formats::{Format, Writer};
use crate::sql::refuse;
use crate::{Doors, error};

/// How often a follower hears that it is still one. A dead client is noticed by the write, a revoked token as well.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The tables that people follow.
const TABLES: [Table; 2] = [Table::Spans, Table::Logs];

type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

pub(crate) async fn tail(State(doors): State<Doors>, parameters: Parameters, headers: HeaderMap) -> Response {
    match follow(&doors, parameters, &headers).await {
        Ok(response) => response,
        Err(response) => *response,
    }
}

async fn follow(doors: &Doors, parameters: Parameters, headers: &HeaderMap) -> Result<Response, Box<Response>> {
    let edition = doors.0.deps.authenticator.edition();
    let tenant = doors.tenant(headers, Scope::Query)?;
    let opened = doors.opened()?;
    let (table, predicate) = asked(parameters)?;
    let following = opened.engine.follow(&tenant, table, predicate.as_deref()).await;
    let following = following.map_err(|failed| Box::new(refuse(&failed)))?;
    let writer = Writer::new(Format::Ndjson, &following.schema).map_err(|failed| Box::new(refuse(&failed)))?;
    let sending = Sending {
        doors: doors.clone(),
        edition,
        following,
        writer,
        heartbeat: interval(HEARTBEAT),
        first: Some(json!({ "following": table.name() })),
        rows: 0,
        dropped: 0,
        unwritten: false,
        ended: false,
    };
    let body = Body::from_stream(stream::unfold(sending, |mut sending| async move {
        let chunk = sending.next().await?;
        Some((Ok::<_, Infallible>(chunk), sending))
    }));
    Ok(([(header::CONTENT_TYPE, Format::Ndjson.media_type())], body).into_response())
}

/// The table and the predicate.
fn asked(parameters: Parameters) -> Result<(Table, Option<String>), Box<Response>> {
    let bad = |message: &str| Box::new(error(StatusCode::BAD_REQUEST, "bad_parameter", message, None));
    let Query(parameters) = parameters.map_err(|rejection| bad(&rejection.body_text()))?;
    let names = TABLES.map(Table::name).join(" or ");
    let (mut table, mut predicate) = (None, None);
    for (name, value) in parameters {
        let shown = |text: &str| text.chars().take(64).collect::<String>().escape_default().to_string();
        match name.as_str() {
            "table" => {
                let found = TABLES.into_iter().find(|known| known.name() == value);
                table =
                    Some(found.ok_or_else(|| {
                        bad(&format!("table `{}` cannot be followed: expected {names}", shown(&value)))
                    })?);
            }
            "where" => predicate = Some(value),
            _ => return Err(bad(&format!("there is no parameter `{}`: expected table or where", shown(&name)))),
        }
    }
    let table = table.ok_or_else(|| bad(&format!("table is missing: expected {names}, for example ?table=logs")))?;
    Ok((table, predicate))
}

/// A follower's answer on its way out.
struct Sending {
    doors: Doors,
    /// The tokens that let it in.
    edition: Edition,
    following: Following,
    writer: Writer,
    heartbeat: Interval,
    first: Option<Value>,
    rows: u64,
    dropped: u64,
    /// Whether the writer holds rows of a batch still.
    unwritten: bool,
    ended: bool,
}

impl Sending {
    /// The next lines; `None` after the last ones.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(line(&first));
        }
        if !self.doors.0.deps.authenticator.is_current(&self.edition) {
            let message = "the tokens have changed: follow again";
            return Some(self.end(&json!({ "error": { "code": "unauthenticated", "message": message } })));
        }
        if !self.unwritten {
            // Rows first: a heartbeat is for when there are none.
            tokio::select! {
                biased;
                news = self.following.next() => match news {
                    Some(Ok(News::Rows(batch))) => {
                        self.rows += batch.num_rows() as u64;
                        self.writer.add(batch);
                    }
                    Some(Ok(News::Dropped(rows))) => {
                        self.dropped += rows;
                        return Some(line(&json!({ "dropped": rows })));
                    }
                    Some(Err(failed)) => {
                        let error = json!({ "code": failed.kind.code(), "message": failed.message, "hint": failed.hint });
                        return Some(self.end(&json!({ "error": error })));
                    }
                    None => return Some(self.end(&json!({ "end": "the server is stopping" }))),
                },
                _tick = self.heartbeat.tick() => {
                    return Some(line(&json!({ "heartbeat": { "rows": self.rows, "dropped": self.dropped } })));
                }
            }
        }
        let written = self.writer.write().and_then(|unwritten| Ok((unwritten, self.writer.take()?)));
        match written {
            Ok((unwritten, chunk)) => {
                self.unwritten = unwritten;
                Some(chunk)
            }
            Err(failed) => {
                let error = json!({ "code": failed.kind.code(), "message": failed.message });
                Some(self.end(&json!({ "error": error })))
            }
        }
    }

    fn end(&mut self, last: &Value) -> Vec<u8> {
        self.ended = true;
        line(last)
    }
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}
