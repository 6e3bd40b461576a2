//! Stored telemetry for SLOs: what is published as it comes, and what lies in segments and memory for a recount.
//!
//! Not here: what is counted (the `slo` crate) and how segments are written (the `store`).

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::StreamExt as _;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;
use slo::engine::{Feed, Telemetry};
use store::{Observer, Segment, SegmentFile, Store};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ask::Asker;

/// Rows of a segment read at once.
const BATCH_ROWS: usize = 8_192;

/// Hands every published batch to the SLOs. Never waits, as the log thread wants it.
#[derive(Debug)]
pub(super) struct Published(pub(super) Feed);

impl Observer for Published {
    fn published(&self, seq: u64, tenant: &TenantId, table: Table, batch: &RecordBatch) {
        self.0.offer(seq, tenant, table, batch);
    }
}

/// The store and the query engine.
pub(super) struct Stored {
    pub(super) store: Arc<Store>,
    pub(super) asker: Asker,
    /// Whether ClickHouse has what the store does not have any more.
    pub(super) is_elsewhere: bool,
    /// Where the engine is waited for: the caller's thread may block.
    pub(super) runtime: Handle,
    /// Told when the server ends: reading days of telemetry must not hold that up.
    pub(super) stop: CancellationToken,
}

/// How long the beginning of an answer of ClickHouse may take: flushes wait for it.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);

/// How long the next rows of an answer may take.
const BATCH_WITHIN: Duration = Duration::from_secs(60);

/// What is answered then.
const STOPPING: &str = "the server is stopping";

impl Stored {
    fn segment(
        &self,
        table: Table,
        segment: &Segment,
        columns: &[&str],
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<(), String> {
        let file = SegmentFile::open(segment.path(), table).map_err(|error| error.to_string())?;
        for batch in file.columns(BATCH_ROWS, columns).map_err(|error| error.to_string())? {
            if self.stop.is_cancelled() {
                return Err(STOPPING.to_owned());
            }
            each(&batch.map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

impl Stored {
    /// What ClickHouse has, and what it does not have yet: reading there begins while nothing is on its way.
    fn scan_elsewhere(
        &self,
        tenant: &TenantId,
        table: Table,
        from: Timestamp,
        to: Timestamp,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<u64, String> {
        let begin = |snapshot: store::Snapshot| {
            let begun = async {
                let rows = self.asker.rows_elsewhere(tenant, table, from, to).await?;
                let mut rows = rows.ok_or("ClickHouse is not asked by this process")?;
                // Once the first ones are here, later inserts are not among the rest.
                let first = rows.next().await.transpose().map_err(|error| error.to_string())?;
                Ok::<_, String>((first, rows))
            };
            let (first, rows) = self.in_time(async {
                let begun = tokio::time::timeout(BEGIN_WITHIN, begun).await;
                begun.map_err(|_elapsed| "ClickHouse does not answer".to_owned())?
            })?;
            Ok::<_, String>((snapshot, first, rows))
        };
        let begun = self.store.beside_sink(tenant, table, begin).map_err(|error| error.to_string())?;
        let (snapshot, first, mut rows) = begun?;
        first.iter().for_each(&mut *each);
        let next = |rows: &mut query::RowsElsewhere| {
            self.in_time(async {
                let next = tokio::time::timeout(BATCH_WITHIN, rows.next()).await;
                next.map_err(|_elapsed| "ClickHouse does not go on with its answer".to_owned())
            })
        };
        while let Some(batch) = next(&mut rows)? {
            each(&batch.map_err(|error| error.to_string())?);
        }
        snapshot.table(table).memory.iter().for_each(each);
        Ok(snapshot.published_seq())
    }

    /// Waits for something, unless the server ends.
    fn in_time<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = self.stop.cancelled() => Err(STOPPING.to_owned()),
            }
        })
    }
}

impl Telemetry for Stored {
    fn scan(
        &self,
        tenant: &TenantId,
        table: Table,
        columns: &[&str],
        from: Timestamp,
        to: Timestamp,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<u64, String> {
        if self.is_elsewhere {
            return self.scan_elsewhere(tenant, table, from, to, each);
        }
        let snapshot = self.store.snapshot(tenant);
        let rows = snapshot.table(table);
        for segment in rows.segments.iter() {
            let meta = segment.meta();
            if meta.max_time < from || meta.min_time >= to {
                continue;
            }
            let Err(reason) = self.segment(table, segment, columns, each) else { continue };
            if self.stop.is_cancelled() {
                return Err(reason);
            }
            // A damaged file will not be better next time: it is set aside, as queries do, and what could be read counts.
            if self.store.verify(segment) {
                return Err(format!("segment {}: {reason}", meta.id));
            }
            self.store.quarantine(meta.id, &reason).map_err(|error| error.to_string())?;
        }
        rows.memory.iter().for_each(each);
        Ok(snapshot.published_seq())
    }

    fn query(&self, tenant: &TenantId, sql: &str) -> Result<Vec<(Timestamp, f64)>, String> {
        self.in_time(self.asker.points(tenant, sql))
    }
}
