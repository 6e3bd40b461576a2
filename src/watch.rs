//! `godseye slo`, `godseye alert` and `godseye silence`: what is promised, what breaks, and what is known already.
//!
//! Clients like `godseye query`: they use the HTTP API and nothing else. Not here: what any of it means.

use clap::{Args, Subcommand, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::cli::HTTP_DEFAULT;
use crate::client::{self, Body, ClientError};
use crate::config::Secret;
use crate::terminal;

/// Attribute keys that `slo explain` looks at, the most frequent ones.
const KEYS_MAX: usize = 16;

/// Values of each that are shown.
const VALUES_MAX: usize = 3;

/// Whom to ask, and how to print what comes.
#[derive(Debug, Args)]
pub struct Asking {
    /// The server's HTTP address
    #[arg(long, env = "GODSEYE_SERVER", default_value_t = HTTP_DEFAULT.to_string(), value_name = "HOST:PORT")]
    server: String,
    /// A token, when the server wants one
    #[arg(long, env = "GODSEYE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<Secret>,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Table,
    /// One JSON document.
    Json,
}

/// `godseye slo`.
#[derive(Debug, Subcommand)]
pub enum SloCommand {
    /// Every SLO: is it well, what is left of its budget, how fast does that burn
    Status(Asking),
    /// Which requests burned an SLO's budget: the values that the bad ones share
    Explain {
        /// The SLO's name
        name: String,
        /// Whom to ask.
        #[command(flatten)]
        asking: Asking,
    },
    /// What was good and bad in each SLO's period
    Report(Asking),
}

/// `godseye alert`.
#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// Alerts that fire or are pending
    List(Asking),
    /// One alert with everything it says
    Show {
        /// Its fingerprint, or its name
        alert: String,
        /// Whom to ask.
        #[command(flatten)]
        asking: Asking,
    },
    /// What began and ended
    History(Asking),
}

/// `godseye silence`.
#[derive(Debug, Subcommand)]
pub enum SilenceCommand {
    /// Silence the alerts that match
    Add {
        /// Conditions on labels, such as alertname=Down or 'service=~"cart|pay"'
        #[arg(required = true)]
        matchers: Vec<String>,
        /// How long, such as 30m or 2h
        #[arg(long, short, default_value = "1h", value_name = "DURATION")]
        duration: String,
        /// Why
        #[arg(long, short)]
        comment: String,
        /// Who [default: the user's name]
        #[arg(long, env = "USER", default_value = "godseye")]
        author: String,
        /// Whom to ask.
        #[command(flatten)]
        asking: Asking,
    },
    /// Silences that hold or will
    List(Asking),
    /// End a silence
    Expire {
        /// Its id
        id: String,
        /// Whom to ask.
        #[command(flatten)]
        asking: Asking,
    },
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The server could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A condition, a duration or a name that means nothing.
    #[error("{0}")]
    Usage(String),
    /// The answer is not what this version reads.
    #[error("cannot read the answer: {0}; is the server another version of godseye?")]
    Answer(#[from] serde_json::Error),
}

/// Runs a command to its end on a runtime of its own.
pub(crate) fn run(work: impl Future<Output = Result<String, WatchError>>) -> Result<(), WatchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
    let text = runtime.block_on(work)?;
    client::print(text.as_bytes())?;
    Ok(())
}

impl Asking {
    /// The server, and the token for it.
    pub(crate) fn door(&self) -> (String, Option<String>) {
        let token = self.token.as_ref().map(|token| token.expose().to_owned());
        (client::address(&self.server).to_owned(), token)
    }

    /// A text that a program does not read.
    pub(crate) fn for_people(&self, text: &str) -> String {
        if self.output == Output::Table { text.to_owned() } else { String::new() }
    }

    async fn request(&self, method: &str, path: &str, body: Option<Body>) -> Result<Value, WatchError> {
        let server = client::address(&self.server);
        let token = self.token.as_ref().map(Secret::expose);
        let answer = client::request(server, token, method, path, body).await?;
        let body = client::whole(server, answer).await?;
        Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
    }

    async fn get(&self, path: &str) -> Result<Value, WatchError> {
        self.request("GET", path, None).await
    }

    async fn sql(&self, sql: &str) -> Result<Value, WatchError> {
        let token = self.token.as_ref().map(Secret::expose);
        let body = client::ask(client::address(&self.server), token, sql, "json").await?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// A document as it is, or the table made of it.
    pub(crate) fn shown(&self, document: &Value, table: impl FnOnce(&Value) -> Value) -> String {
        match self.output {
            Output::Json => format!("{document:#}\n"),
            Output::Table => terminal::table(&table(document)),
        }
    }
}

/// An answer in the shape of one to SQL, for the same table.
pub(crate) fn table(columns: &[(&str, &str)], rows: Vec<Value>) -> Value {
    let columns: Vec<Value> = columns.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect();
    json!({ "columns": columns, "rows": rows })
}

fn items<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

/// A share as a percentage, with as many digits as it needs.
fn percent(share: &Value, digits: usize) -> Value {
    share.as_f64().map_or(Value::Null, |share| format!("{:.digits$} %", share * 100.0).into())
}

pub(crate) fn time(ms: &Value) -> Value {
    let Some(ms) = ms.as_i64() else { return Value::Null };
    let mut text = String::new();
    query::render::write_time(ms.saturating_mul(1_000_000), &mut text);
    text.chars().take("2026-11-21T09:59:30".len()).chain(['Z']).collect::<String>().into()
}

/// `name=value` of each label, in order.
pub(crate) fn labels(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten().filter(|(name, _)| *name != "alertname");
    pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(" ")
}

/// The burn rate that is nearest to its alert, with its windows.
fn worst_burn(objective: &Value) -> Value {
    let of =
        |burn: &Value| Some((burn["long_rate"].as_f64()? / burn["threshold"].as_f64()?, burn["long_rate"].as_f64()?));
    let rated = items(objective, "burn").filter_map(|burn| Some((of(burn)?, burn)));
    let worst = rated.max_by(|(a, _), (b, _)| a.0.total_cmp(&b.0));
    worst.map_or(Value::Null, |((_, rate), burn)| {
        format!("{rate:.1}x in {}", burn["long_window"].as_str().unwrap_or_default()).into()
    })
}

fn status_table(document: &Value) -> Value {
    let rows = items(document, "slos").flat_map(|slo| {
        items(slo, "objectives").map(move |of| {
            json!([
                slo["slo"],
                of["name"],
                slo["health"],
                percent(&of["target"], 2),
                percent(&of["sli"], 3),
                percent(&of["budget_remaining"], 1),
                worst_burn(of),
                time(&of["exhausts_at_ms"]),
            ])
        })
    });
    let columns = [
        ("slo", "text"),
        ("objective", "text"),
        ("health", "text"),
        ("target", "double"),
        ("sli", "double"),
        ("budget left", "double"),
        ("burns", "text"),
        ("exhausted at", "text"),
    ];
    table(&columns, rows.collect())
}

fn report_table(document: &Value) -> Value {
    let rows = items(document, "slos").flat_map(|slo| {
        items(slo, "objectives").map(move |of| {
            let bad = of["total"].as_u64().unwrap_or(0).saturating_sub(of["good"].as_u64().unwrap_or(0));
            json!([
                slo["slo"],
                of["name"],
                slo["window"],
                time(&of["period_start_ms"]),
                time(&of["period_end_ms"]),
                of["total"],
                bad,
                of["budget_allowed"],
                of["budget_spent"],
                percent(&of["budget_remaining"], 1),
            ])
        })
    });
    let columns = [
        ("slo", "text"),
        ("objective", "text"),
        ("window", "text"),
        ("from", "text"),
        ("to", "text"),
        ("events", "bigint"),
        ("bad", "bigint"),
        ("allowed", "bigint"),
        ("spent", "bigint"),
        ("budget left", "double"),
    ];
    table(&columns, rows.collect())
}

/// Runs `godseye slo`.
///
/// # Errors
/// [`WatchError`].
pub fn slo(command: &SloCommand) -> Result<(), WatchError> {
    run(async {
        match command {
            SloCommand::Status(asking) => Ok(asking.shown(&asking.get("/api/v1/slos").await?, status_table)),
            SloCommand::Report(asking) => Ok(asking.shown(&asking.get("/api/v1/slos").await?, report_table)),
            SloCommand::Explain { name, asking } => explain(asking, name).await,
        }
    })
}

/// A text as an SQL literal.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Which values the bad rows share, by column and attribute, the largest shares first.
async fn explain(asking: &Asking, name: &str) -> Result<String, WatchError> {
    let slo = asking.get(&format!("/api/v1/slos/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))).await?;
    let mut found = Vec::new();
    for objective in items(&slo, "objectives") {
        let Some(bad) = objective["bad_rows_sql"].as_str() else { continue };
        let source = bad.strip_prefix("SELECT * FROM ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let time_column = if source == "spans" { "start_time" } else { "time" };
        let from_ms = objective["period_start_ms"].as_i64().unwrap_or(0);
        let bad = format!("{bad} AND {time_column} >= to_timestamp_millis({from_ms})");
        let total = asking.sql(&format!("SELECT count(*) FROM ({bad})")).await?["rows"][0][0].as_u64().unwrap_or(0);
        let known = asking.get(&format!("/api/v1/attributes?table={source}&keys={KEYS_MAX}&values=1")).await?;
        let attributes = items(&known, "keys").filter_map(|key| key["key"].as_str());
        let attributes = attributes.map(|key| (key.to_owned(), format!("attributes[{}]", literal(key))));
        let own: &[&str] = match source {
            "spans" => &["service_name", "name", "status_message"],
            "logs" => &["service_name", "severity_text", "event_name"],
            _ => &["service_name", "metric_name"],
        };
        let own = own.iter().map(|column| ((*column).to_owned(), (*column).to_owned()));
        for (what, expression) in own.chain(attributes) {
            let sql = format!(
                "SELECT CAST({expression} AS VARCHAR) AS value, count(*) AS bad FROM ({bad}) \
                 WHERE {expression} IS NOT NULL GROUP BY 1 ORDER BY bad DESC, value LIMIT {VALUES_MAX}"
            );
            for row in items(&asking.sql(&sql).await?, "rows") {
                let rows = row[1].as_u64().unwrap_or(0);
                #[expect(clippy::cast_precision_loss, reason = "for display")]
                let share = if total == 0 { 0.0 } else { rows as f64 / total as f64 };
                found.push(json!({
                    "objective": objective["name"], "attribute": what, "value": row[0], "bad": rows, "share": share,
                }));
            }
        }
    }
    if items(&slo, "objectives").all(|objective| objective["bad_rows_sql"].is_null()) {
        return Err(WatchError::Usage(format!("{name} is counted by a query: its bad events cannot be told apart")));
    }
    found.sort_by_key(|row| std::cmp::Reverse(row["bad"].as_u64()));
    let document = json!({ "slo": slo["slo"], "health": slo["health"], "shared": found });
    Ok(asking.shown(&document, |document| {
        let rows = items(document, "shared").map(|row| {
            json!([row["objective"], row["attribute"], row["value"], row["bad"], percent(&row["share"], 1)])
        });
        let columns = [
            ("objective", "text"),
            ("attribute", "text"),
            ("value", "text"),
            ("bad", "bigint"),
            ("of all bad", "double"),
        ];
        table(&columns, rows.collect())
    }))
}

fn alerts_table(document: &Value) -> Value {
    let rows = items(document, "alerts").map(|alert| {
        json!([
            alert["fingerprint"],
            alert["labels"]["alertname"],
            alert["state"],
            alert["source"],
            time(&alert["since_ms"]),
            alert["annotations"]["summary"],
            labels(&alert["labels"]),
        ])
    });
    let columns = [
        ("fingerprint", "text"),
        ("alert", "text"),
        ("state", "text"),
        ("source", "text"),
        ("since", "text"),
        ("summary", "text"),
        ("labels", "text"),
    ];
    table(&columns, rows.collect())
}

/// Runs `godseye alert`.
///
/// # Errors
/// [`WatchError`].
pub fn alert(command: &AlertCommand) -> Result<(), WatchError> {
    run(async {
        match command {
            AlertCommand::List(asking) => Ok(asking.shown(&asking.get("/api/v1/alerts").await?, alerts_table)),
            AlertCommand::Show { alert, asking } => {
                let document = asking.get("/api/v1/alerts").await?;
                let is_meant =
                    |of: &&Value| of["fingerprint"] == alert.as_str() || of["labels"]["alertname"] == alert.as_str();
                let found: Vec<Value> = items(&document, "alerts").filter(is_meant).cloned().collect();
                if found.is_empty() {
                    let message =
                        format!("no alert {alert} fires or is pending; `godseye alert list` shows those that do");
                    return Err(WatchError::Usage(message));
                }
                Ok(asking.shown(&json!({ "alerts": found }), |document| {
                    let rows = items(document, "alerts").flat_map(|alert| {
                        let plain = ["fingerprint", "state", "source", "value", "generator_url"];
                        let plain = plain.iter().map(|name| json!([name, alert[name]]));
                        let since = json!(["since", time(&alert["since_ms"])]);
                        let said = ["labels", "annotations"].into_iter().flat_map(|part| {
                            let pairs = alert[part].as_object().into_iter().flatten();
                            pairs.map(move |(name, value)| json!([format!("{part}.{name}"), value]))
                        });
                        plain.chain([since]).chain(said).collect::<Vec<_>>()
                    });
                    table(&[("what", "text"), ("value", "text")], rows.collect())
                }))
            }
            AlertCommand::History(asking) => {
                Ok(asking.shown(&asking.get("/api/v1/alerts/history").await?, |document| {
                    let rows = items(document, "events").map(|event| {
                        json!([
                            time(&event["at_ms"]),
                            event["event"],
                            event["labels"]["alertname"],
                            labels(&event["labels"])
                        ])
                    });
                    let columns = [("at", "text"), ("event", "text"), ("alert", "text"), ("labels", "text")];
                    table(&columns, rows.collect())
                }))
            }
        }
    })
}

/// Runs `godseye silence`.
///
/// # Errors
/// [`WatchError`].
pub fn silence(command: &SilenceCommand) -> Result<(), WatchError> {
    run(async {
        match command {
            SilenceCommand::Add { matchers, duration, comment, author, asking } => {
                let length = alerting::config::parse_duration(duration);
                let length = length.filter(|length| !length.is_zero());
                let Some(length) = length else {
                    return Err(WatchError::Usage(format!("{duration} is not a duration: write 30m, 2h or 1d")));
                };
                let mut conditions = Vec::new();
                for text in matchers {
                    let parsed = alerting::matcher::parse_all(text);
                    conditions.extend(parsed.map_err(|error| WatchError::Usage(format!("{text}: {error}")))?);
                }
                let now = model::time::Clock::System.now();
                let ends_at = now.plus_nanos(i64::try_from(length.as_nanos()).unwrap_or(i64::MAX));
                let written = |at: model::time::Timestamp| {
                    let mut text = String::new();
                    query::render::write_time(at.0, &mut text);
                    text
                };
                let conditions: Vec<_> = conditions.iter().map(alerting::matcher::MatcherJson::from).collect();
                let silence = json!({
                    "matchers": conditions, "startsAt": written(now), "endsAt": written(ends_at),
                    "createdBy": author, "comment": comment,
                });
                let body = Body { content_type: "application/json", bytes: silence.to_string().into() };
                let made = asking.request("POST", "/alertmanager/api/v2/silences", Some(body)).await?;
                Ok(match asking.output {
                    Output::Json => format!("{made:#}\n"),
                    Output::Table => format!("{}\n", made["silenceID"].as_str().unwrap_or_default()),
                })
            }
            SilenceCommand::List(asking) => Ok(asking.shown(&asking.get("/api/v1/silences").await?, |document| {
                let held = items(document, "silences").filter(|silence| silence["state"] != "expired");
                let rows = held.map(|silence| {
                    let matchers = items(silence, "matchers").map(|matcher| {
                        let flag = |name: &str| matcher[name].as_bool().unwrap_or(name == "isEqual");
                        let operator = match (flag("isEqual"), flag("isRegex")) {
                            (true, false) => "=",
                            (true, true) => "=~",
                            (false, false) => "!=",
                            (false, true) => "!~",
                        };
                        let text = |name: &str| matcher[name].as_str().unwrap_or_default().to_owned();
                        format!("{}{operator}{}", text("name"), text("value"))
                    });
                    json!([
                        silence["id"],
                        silence["state"],
                        matchers.collect::<Vec<_>>().join(" "),
                        time(&silence["ends_at_ms"]),
                        silence["created_by"],
                        silence["comment"],
                    ])
                });
                let columns = [
                    ("id", "text"),
                    ("state", "text"),
                    ("matchers", "text"),
                    ("until", "text"),
                    ("by", "text"),
                    ("comment", "text"),
                ];
                table(&columns, rows.collect())
            })),
            SilenceCommand::Expire { id, asking } => {
                let path = format!("/alertmanager/api/v2/silence/{}", utf8_percent_encode(id, NON_ALPHANUMERIC));
                asking.request("DELETE", &path, None).await?;
                Ok(format!("{id} is over\n"))
            }
        }
    })
}
