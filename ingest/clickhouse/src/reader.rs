//! Questions to ClickHouse, and their answers as a stream of bytes: bounded, read-only, given up with whoever asked.
//!
//! Every query runs as `readonly = 2`, and ends on the server when its stream is dropped here. A host that cannot be
//! reached is passed over for the next one, as long as nothing of the answer has come. Not here: what is asked, and what
//! the bytes mean.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::client::{Server, servers};
use crate::config::ClickHouseConfig;
use crate::error::ClickHouseError;
use crate::hosts::Hosts;

/// Pieces of an answer between the connection and whoever reads it: one is read while the next is on its way.
const PIECES_IN_FLIGHT: usize = 2;

/// Limits of one query, which the server keeps.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// How long it may run.
    pub timeout: Duration,
    /// Memory it may take on the server.
    pub memory_bytes_max: u64,
    /// Rows of its answer; `None` when more may be needed than are shown.
    pub rows_max: Option<u64>,
}

/// Asks the servers of a configuration.
#[derive(Debug)]
pub struct ClickHouseReader {
    servers: Vec<Server>,
    hosts: Mutex<Hosts>,
    started: Instant,
    runtime: Handle,
}

impl ClickHouseReader {
    /// A reader whose connections live in `runtime`. Connects to nobody yet.
    ///
    /// # Errors
    /// [`ClickHouseError`] when the configuration makes no sense.
    pub fn new(config: &ClickHouseConfig, runtime: Handle) -> Result<Arc<Self>, ClickHouseError> {
        config.check()?;
        let servers = servers(config)?;
        let hosts = Mutex::new(Hosts::new(servers.len()));
        Ok(Arc::new(Self { servers, hosts, started: Instant::now(), runtime }))
    }

    /// The answer to a query as an `ArrowStream`, piece by piece; an error is its last piece. Dropping it ends the query.
    #[must_use]
    pub fn ask(self: &Arc<Self>, sql: String, limits: ReadLimits) -> mpsc::Receiver<Result<Bytes, ClickHouseError>> {
        let (pieces, receiver) = mpsc::channel(PIECES_IN_FLIGHT);
        let reader = Arc::clone(self);
        self.runtime.spawn(async move {
            let closed = pieces.clone();
            tokio::select! {
                // Nobody reads any more: what is dropped here closes the connection, which ends the query.
                () = closed.closed() => {}
                outcome = reader.send(&sql, limits, &pieces) => {
                    if let Err(error) = outcome {
                        // Nobody reads any more then.
                        drop(pieces.send(Err(error)).await);
                    }
                }
            }
        });
        receiver
    }

    async fn send(
        &self,
        sql: &str,
        limits: ReadLimits,
        pieces: &mpsc::Sender<Result<Bytes, ClickHouseError>>,
    ) -> Result<(), ClickHouseError> {
        let settings = settings(limits);
        let mut attempts = 0;
        loop {
            let now = self.started.elapsed();
            let (index, _wait) = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).pick(now);
            let mut begun = false;
            let outcome = async {
                let mut answer = self.servers[index].open(sql, &settings, "ArrowStream")?;
                while let Some(piece) = answer.next().await? {
                    begun = true;
                    if pieces.send(Ok(piece)).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
            .await;
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(()) => {
                    hosts.succeeded(index);
                    return Ok(());
                }
                Err(error) => {
                    attempts += 1;
                    // A query that took too much says nothing about the host.
                    if matches!(error, ClickHouseError::Network { .. }) {
                        hosts.failed(index, now, xxh3_64_with_seed(sql.as_bytes(), attempts));
                    }
                    let may_pass = matches!(error, ClickHouseError::Network { .. });
                    if begun || !may_pass || attempts > self.servers.len() as u64 {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// The settings of a query: its limits, and what its answer looks like.
fn settings(limits: ReadLimits) -> Vec<(&'static str, String)> {
    let text = |text: &str| text.to_owned();
    let mut settings = vec![
        ("readonly", text("2")),
        ("cancel_http_readonly_queries_on_client_close", text("1")),
        ("max_execution_time", format!("{:.3}", limits.timeout.as_secs_f64().max(0.001))),
        ("timeout_overflow_mode", text("throw")),
        ("max_memory_usage", limits.memory_bytes_max.to_string()),
        // What a missing row of a join has is NULL, as in SQL.
        ("join_use_nulls", text("1")),
        ("transform_null_in", text("0")),
        // A constant that is grouped or sorted by is no place in the list.
        ("enable_positional_arguments", text("0")),
        ("aggregate_functions_null_for_empty", text("0")),
        ("group_by_use_nulls", text("0")),
        ("session_timezone", text("UTC")),
        ("output_format_arrow_string_as_string", text("0")),
        ("output_format_arrow_low_cardinality_as_dictionary", text("0")),
        ("output_format_arrow_compression_method", text("lz4_frame")),
    ];
    if let Some(rows) = limits.rows_max {
        settings.push(("max_result_rows", rows.to_string()));
        settings.push(("result_overflow_mode", text("break")));
    }
    settings
}
