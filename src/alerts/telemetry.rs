//! Stored telemetry for SLOs: what is published as it comes, and what lies in segments and memory for a recount.
//!
//! Not here: what is counted (the `slo` crate) and how segments are written (the `store`).

use std::sync::Arc;

use arrow::array::RecordBatch;
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
    /// Where the engine is waited for: the caller's thread may block.
    pub(super) runtime: Handle,
    /// Told when the server ends: reading days of telemetry must not hold that up.
    pub(super) stop: CancellationToken,
}

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
        self.runtime.block_on(async {
            tokio::select! {
                points = self.asker.points(tenant, sql) => points,
                () = self.stop.cancelled() => Err(STOPPING.to_owned()),
            }
        })
    }
}
