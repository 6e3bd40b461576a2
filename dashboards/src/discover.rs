//! What there is to ask, for programs: `GET /api/v1/tables` and `GET /api/v1/attributes`.
//!
//! Not here: how it is found out (`query::catalog`).

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, header};
use query::catalog::TableInfo;
use query::catalog::attributes::{AttributesQuestion, AttributesReport};
use query::render::{type_name, write_time};
use serde_json::{Value, json};

use crate::auth::Scope;
use crate::sql::refuse;
use crate::{Doors, error};

/// Keys of one answer when the client does not say, and at most.
const KEYS: (usize, usize) = (100, query::catalog::attributes::KEYS_MAX);

/// Values per key when the client does not say, and at most.
const VALUES: (usize, usize) = (5, 100);

type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn time(nanos: i64) -> String {
    let mut out = String::new();
    write_time(nanos, &mut out);
    out
}

fn answer(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn bad(message: &str) -> Box<Response> {
    Box::new(error(StatusCode::BAD_REQUEST, "bad_parameter", message, None))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_default().to_string()
}

/// `GET /api/v1/tables`: every table with its columns, and what is stored of it.
pub(crate) async fn tables(State(doors): State<Doors>, parameters: Parameters, headers: HeaderMap) -> Response {
    match list_tables(&doors, parameters, &headers).await {
        Ok(body) => answer(&body),
        Err(response) => *response,
    }
}

async fn list_tables(doors: &Doors, parameters: Parameters, headers: &HeaderMap) -> Result<Value, Box<Response>> {
    let tenant = doors.tenant(headers, Scope::Query)?;
    let opened = doors.opened()?;
    if let Some((name, _)) = read(parameters)?.first() {
        return Err(bad(&format!("there is no parameter `{}`: expected none", shown(name))));
    }
    let tables = opened.engine.tables(&tenant).await.map_err(|failed| Box::new(refuse(&failed)))?;
    Ok(json!({ "tables": tables.iter().map(table).collect::<Vec<_>>() }))
}

fn read(parameters: Parameters) -> Result<Vec<(String, String)>, Box<Response>> {
    parameters.map(|Query(parameters)| parameters).map_err(|rejection| bad(&rejection.body_text()))
}

fn table(table: &TableInfo) -> Value {
    let columns = table.columns.iter().map(|column| {
        json!({
            "name": column.name,
            "type": type_name(&column.data_type),
            "nullable": column.nullable,
            "description": column.description,
        })
    });
    let mut shown =
        json!({ "name": table.name, "description": table.description, "columns": columns.collect::<Vec<_>>() });
    if let Some(stored) = table.stored {
        shown["rows"] = stored.rows.into();
        shown["segment_bytes"] = stored.segment_bytes.into();
        shown["oldest"] = stored.times.map(|(oldest, _)| time(oldest)).into();
        shown["newest"] = stored.times.map(|(_, newest)| time(newest)).into();
    }
    shown
}

/// `GET /api/v1/attributes`: which keys recent rows of a table have, with types and values.
pub(crate) async fn attributes(State(doors): State<Doors>, parameters: Parameters, headers: HeaderMap) -> Response {
    match list_attributes(&doors, parameters, &headers).await {
        Ok(body) => answer(&body),
        Err(response) => *response,
    }
}

async fn list_attributes(doors: &Doors, parameters: Parameters, headers: &HeaderMap) -> Result<Value, Box<Response>> {
    let tenant = doors.tenant(headers, Scope::Query)?;
    let opened = doors.opened()?;
    let question = question(read(parameters)?)?;
    let limits = doors.0.deps.limits;
    let report = opened.engine.attributes(&tenant, &question, limits).await;
    let report = report.map_err(|failed| Box::new(refuse(&failed)))?;
    Ok(attributes_report(&question, &report))
}

fn question(parameters: Vec<(String, String)>) -> Result<AttributesQuestion, Box<Response>> {
    let (mut table, mut container, mut prefix) = (None, "attributes".to_owned(), String::new());
    let (mut keys, mut values) = (KEYS.0, VALUES.0);
    for (name, value) in parameters {
        let count = |(_, most): (usize, usize)| {
            value
                .parse()
                .ok()
                .filter(|count| (1..=most).contains(count))
                .ok_or_else(|| bad(&format!("{name} `{}` is not possible: expected 1 to {most}", shown(&value))))
        };
        match name.as_str() {
            "table" => table = Some(value),
            "container" => container = value,
            "prefix" => prefix = value,
            "keys" => keys = count(KEYS)?,
            "values" => values = count(VALUES)?,
            _ => {
                let expected = "table, container, prefix, keys or values";
                return Err(bad(&format!("there is no parameter `{}`: expected {expected}", shown(&name))));
            }
        }
    }
    let table = table.ok_or_else(|| bad("table is missing: for example ?table=spans"))?;
    Ok(AttributesQuestion { table, container, prefix, keys, values })
}

fn attributes_report(question: &AttributesQuestion, report: &AttributesReport) -> Value {
    let keys = report.keys.iter().map(|key| {
        // Each value is JSON already.
        let values = key.values.iter().map(|(value, rows)| {
            let value: Value = serde_json::from_str(value).unwrap_or(Value::Null);
            json!({ "value": value, "rows": rows })
        });
        json!({
            "key": key.key,
            "type": type_name(&key.data_type),
            "rows": key.rows,
            "distinct": key.distinct,
            "distinct_is_exact": key.distinct_exact,
            "values": values.collect::<Vec<_>>(),
        })
    });
    json!({
        "table": question.table,
        "container": question.container,
        "sample": {
            "rows": report.sampled_rows,
            "of_rows": report.total_rows,
            "since": report.since.map(time),
            "is_complete": report.is_complete(),
        },
        "keys_total": report.keys_total,
        "keys_not_told_apart": report.others,
        "keys": keys.collect::<Vec<_>>(),
    })
}
