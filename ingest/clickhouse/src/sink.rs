//! The store's cuts into ClickHouse, each row once.
//!
//! A cut is sent as inserts of at most [`ClickHouseConfig::insert_rows`] rows, several at once. Each insert is one block of
//! one partition (the day the cut was made), so the server takes it whole or not at all; and it bears a token made of the
//! cut's name and its number in the cut, so the server takes it once, however often it is sent. Nobody needs to know
//! whether an insert without an answer was carried out: it is sent again.
//!
//! Not here: when rows are cut and how a cut survives a crash; that is the store's ([`store::sink`]).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use futures::StreamExt as _;
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use store::sink::{Cut, Sink, SinkError};
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::client::{Server, servers};
use crate::columns::{columns, lay_out};
use crate::config::{Ack, ClickHouseConfig};
use crate::error::ClickHouseError;
use crate::hosts::{BACKOFF_MIN, Hosts};
use crate::metrics::Metrics;
use crate::schema::{self, LEDGER, quoted};

/// How often a wait looks whether it is to end: not felt at the end of a process.
const STOP_TICK: Duration = Duration::from_millis(50);

/// Between two looks whether a server that was not there at the start is there now.
const SETTLE_TICK: Duration = Duration::from_secs(1);

/// Rows of one insert: slices of batches, each with its tenant.
type Piece<'a> = Vec<(&'a TenantId, RecordBatch)>;

/// The rows of a cut in pieces of at most `rows_max`. The same rows give the same pieces, however they are batched.
#[must_use]
pub fn pieces<'a>(rows: &[(&'a TenantId, &[Arc<RecordBatch>])], rows_max: usize) -> Vec<Piece<'a>> {
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    let mut room = 0;
    for (tenant, batches) in rows {
        for batch in *batches {
            let mut at = 0;
            while at < batch.num_rows() {
                if room == 0 {
                    pieces.push(Vec::new());
                    room = rows_max.max(1);
                }
                let count = room.min(batch.num_rows() - at);
                pieces.last_mut().expect("one was pushed").push((*tenant, batch.slice(at, count)));
                at += count;
                room -= count;
            }
        }
    }
    pieces
}

/// The name of a cut, for ever.
fn name_of(cut: &Cut<'_>) -> String {
    let mut name = String::with_capacity(64);
    for byte in cut.log_id {
        write!(name, "{byte:02x}").expect("a string takes everything");
    }
    write!(name, "-{}-{}", cut.table, cut.seq).expect("a string takes everything");
    name
}

/// A batch as `ArrowStream`, compressed inside.
fn encode(batch: &RecordBatch) -> Result<Bytes, ArrowError> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options)?;
    writer.write(batch)?;
    Ok(writer.into_inner()?.into())
}

/// The lines of the ledger as `TSV`. Names of tenants have nothing to escape.
fn encode_ledger(lines: &[(&TenantId, LedgerLine)]) -> Bytes {
    let mut text = String::new();
    for (tenant, line) in lines {
        let minute = line.minute.div_euclid(Timestamp::NANOS_PER_SECOND);
        let reason = line.reason.map_or("", model::ledger::RejectReason::name);
        writeln!(text, "{tenant}\t{minute}\t{}\t{reason}\t{}", line.signal, line.items)
            .expect("a string takes everything");
    }
    text.into()
}

/// What one table's cut has got through already.
#[derive(Debug, Default)]
struct Progress {
    name: String,
    stored: BTreeSet<usize>,
}

/// Stores cuts in ClickHouse.
#[derive(Debug)]
pub struct ClickHouseSink {
    config: ClickHouseConfig,
    servers: Vec<Server>,
    hosts: Mutex<Hosts>,
    progress: [Mutex<Progress>; Table::COUNT],
    /// Whether the tables are known to be as they should.
    prepared: AtomicBool,
    /// Why they are not known to be.
    trouble: Mutex<Option<String>>,
    runtime: Handle,
    started: Instant,
    metrics: Metrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClickHouseSink {
    /// A sink for a configuration. Makes and checks the tables; a server that is not there now is waited for later, since
    /// the log takes rows meanwhile. Not to be called on a thread of `runtime`, which the connections live in.
    ///
    /// # Errors
    /// [`ClickHouseError`] when the configuration makes no sense, or the server says something that waiting does not heal.
    pub fn open(config: ClickHouseConfig, runtime: Handle, metrics: Metrics) -> Result<Arc<Self>, ClickHouseError> {
        config.check()?;
        let servers = servers(&config)?;
        let sink = Arc::new(Self {
            hosts: Mutex::new(Hosts::new(servers.len())),
            servers,
            progress: Default::default(),
            prepared: AtomicBool::new(false),
            trouble: Mutex::default(),
            started: Instant::now(),
            config,
            runtime,
            metrics,
        });
        match sink.runtime.block_on(sink.prepare(&AtomicBool::new(false))) {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "ClickHouse is not there yet; the log takes rows meanwhile");
            }
            outcome => outcome?,
        }
        Ok(sink)
    }

    /// What the tables are checked by.
    async fn prepare(&self, stop: &AtomicBool) -> Result<(), ClickHouseError> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let prepared =
            self.on_some_host("tables", stop, async |server| schema::prepare(server, &self.config).await).await;
        *lock(&self.trouble) = prepared.as_ref().err().map(ToString::to_string);
        prepared?;
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits until the tables are there and as they should be, or `stop` is set: for a process that starts while the
    /// server is down, so that queries find tables although no row has come yet. A plain thread's body.
    pub fn settle(&self, stop: &AtomicBool) {
        self.runtime.block_on(async {
            while let Err(error) = self.prepare(stop).await {
                if matches!(error, ClickHouseError::Stopped) {
                    return;
                }
                tracing::debug!(%error, "ClickHouse's tables are not ready");
                tokio::select! {
                    () = tokio::time::sleep(SETTLE_TICK) => {}
                    () = until(stop) => return,
                }
            }
            tracing::info!("ClickHouse's tables are ready");
        });
    }

    /// What is wrong with the tables, as far as is known, in a sentence.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Does something on one host after the other, until it is done, cannot be, or has been tried for long enough.
    async fn on_some_host<T>(
        &self,
        name: &str,
        stop: &AtomicBool,
        work: impl AsyncFn(&Server) -> Result<T, ClickHouseError>,
    ) -> Result<T, ClickHouseError> {
        let deadline = self.started.elapsed() + Duration::from_millis(self.config.retry_for_ms);
        let mut attempts: u64 = 0;
        loop {
            let before = self.started.elapsed();
            let (index, wait) = lock(&self.hosts).pick(before);
            // At least one attempt each time: who asks again is patient already.
            let wait = wait.min(deadline.saturating_sub(before));
            let attempt = async {
                tokio::time::sleep(wait).await;
                work(&self.servers[index]).await
            };
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                () = until(stop) => Err(ClickHouseError::Stopped),
            };
            let now = self.started.elapsed();
            match outcome {
                Ok(value) => {
                    lock(&self.hosts).succeeded(index);
                    self.show_hosts(now);
                    return Ok(value);
                }
                Err(error) => {
                    self.metrics.failures.get_or_create(&[("reason", error.reason())]).inc();
                    if !error.is_retryable() {
                        return Err(error);
                    }
                    attempts += 1;
                    lock(&self.hosts).failed(index, now, xxh3_64_with_seed(name.as_bytes(), attempts));
                    self.show_hosts(now);
                    if now + BACKOFF_MIN >= deadline {
                        return Err(error);
                    }
                    tracing::debug!(%error, name, attempts, "an attempt at ClickHouse failed and is repeated");
                }
            }
        }
    }

    fn show_hosts(&self, now: Duration) {
        let resting = lock(&self.hosts).resting(now);
        self.metrics.hosts_resting.set(i64::try_from(resting).unwrap_or(i64::MAX));
    }

    async fn store_cut(&self, cut: &Cut<'_>, stop: &AtomicBool) -> Result<(), ClickHouseError> {
        self.prepare(stop).await?;
        let name = name_of(cut);
        let pieces = pieces(&cut.rows, self.config.insert_rows);
        let stored = {
            let mut progress = lock(&self.progress[cut.table.index()]);
            if progress.name != name {
                *progress = Progress { name: name.clone(), stored: BTreeSet::new() };
            }
            progress.stored.clone()
        };
        let names: Vec<String> = columns(cut.table).iter().map(|(name, _)| quoted(name)).collect();
        let target = format!("{}.{}", quoted(&self.config.database), quoted(cut.table.name()));
        let statement = format!("INSERT INTO {target} ({}) FORMAT ArrowStream", names.join(", "));
        let work = pieces.into_iter().map(Some).chain((!cut.ledger.is_empty()).then_some(None)).enumerate();
        let mut outcomes = futures::stream::iter(work.filter(|(number, _)| !stored.contains(number)))
            .map(|(number, piece)| {
                let (name, statement) = (&name, &statement);
                async move {
                    match piece {
                        Some(piece) => {
                            let rows: usize = piece.iter().map(|(_, batch)| batch.num_rows()).sum();
                            let body = encode(&lay_out(cut.table, &piece, cut.at)?)?;
                            drop(piece);
                            self.insert(statement, &format!("{name}-{number}"), body, stop).await?;
                            let label = [("table", cut.table.name())];
                            self.metrics.inserts.get_or_create(&label).inc();
                            self.metrics.rows.get_or_create(&label).inc_by(rows as u64);
                        }
                        None => {
                            let target = format!("{}.{LEDGER}", quoted(&self.config.database));
                            let statement =
                                format!("INSERT INTO {target} (tenant, minute, signal, reason, items) FORMAT TSV");
                            let body = encode_ledger(&cut.ledger);
                            self.insert(&statement, &format!("{name}-ledger"), body, stop).await?;
                        }
                    }
                    Ok(number)
                }
            })
            .buffer_unordered(self.config.in_flight);
        let mut failed = None;
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(number) => {
                    lock(&self.progress[cut.table.index()]).stored.insert(number);
                }
                // The others go on: what they store is not sent again.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn insert(
        &self,
        statement: &str,
        token: &str,
        body: Bytes,
        stop: &AtomicBool,
    ) -> Result<(), ClickHouseError> {
        let mut settings = vec![
            ("insert_deduplication_token", token),
            ("insert_deduplicate", "1"),
            // Views behind the table take what they missed when the table had it before.
            ("deduplicate_blocks_in_dependent_materialized_views", "1"),
            // Tables that views fill are partitioned by the client's time, which may be any.
            ("max_partitions_per_insert_block", "0"),
            // Asynchronous inserts lose rows together with tokens.
            ("async_insert", "0"),
            // The answer comes after the insert, not at its beginning.
            ("wait_end_of_query", "1"),
        ];
        if self.config.ack == Ack::Replica {
            settings.push(("insert_quorum", "2"));
        }
        self.on_some_host(token, stop, async |server| {
            let _counted = InFlight::new(&self.metrics.in_flight);
            self.metrics.bytes.inc_by(body.len() as u64);
            let before = self.started.elapsed();
            let outcome = server.insert(statement, &settings, body.clone()).await;
            if outcome.is_ok() {
                self.metrics.insert_seconds.observe((self.started.elapsed() - before).as_secs_f64());
            }
            outcome
        })
        .await
    }
}

/// One insert under way, also one that is given up in the middle.
struct InFlight<'a>(&'a Gauge);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Ready once `stop` is set.
async fn until(stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        tokio::time::sleep(STOP_TICK).await;
    }
}

impl Sink for ClickHouseSink {
    fn store(&self, cut: &Cut<'_>, stop: &AtomicBool) -> Result<(), SinkError> {
        let outcome = self.runtime.block_on(self.store_cut(cut, stop));
        if let Err(ClickHouseError::Server { .. }) = &outcome {
            // Perhaps the tables are not what they were: the next attempt looks, and can say what differs.
            self.prepared.store(false, Ordering::Release);
        }
        outcome.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use proptest::prelude::*;

    use super::*;

    fn numbers(from: i64, count: usize) -> Arc<RecordBatch> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let column = Int64Array::from_iter_values((from..).take(count));
        Arc::new(RecordBatch::try_new(schema, vec![Arc::new(column)]).unwrap())
    }

    proptest! {
        #[test]
        fn pieces_have_every_row_once_whatever_the_batches(sizes in prop::collection::vec(0..20_usize, 0..12), rows_max in 1..15_usize) {
            let tenant = TenantId::default_tenant();
            let total: usize = sizes.iter().sum();
            let mut batches = Vec::new();
            let mut from = 0;
            for size in &sizes {
                batches.push(numbers(from, *size));
                from += *size as i64;
            }
            let cut = |batches: &[Arc<RecordBatch>]| -> Vec<Vec<i64>> {
                pieces(&[(&tenant, batches)], rows_max)
                    .iter()
                    .map(|piece| {
                        let columns = piece.iter().map(|(_, batch)| batch.column(0).to_data());
                        columns.flat_map(|data| Int64Array::from(data).values().to_vec()).collect()
                    })
                    .collect()
            };
            let found = cut(&batches);
            prop_assert_eq!(found.concat(), (0..total as i64).collect::<Vec<_>>());
            prop_assert_eq!(found.len(), total.div_ceil(rows_max));
            prop_assert!(found.iter().all(|piece| piece.len() <= rows_max));
            prop_assert_eq!(found, cut(&[numbers(0, total)]), "a replay may batch otherwise");
        }
    }
}
