//! The memtable: acknowledged rows of one table that are not in a segment yet.
//!
//! It keeps batches as they came, per tenant, with the counts that belong to them. It is filled
//! under the store's lock, then frozen and flushed as a whole. Not here: sorting, files, locks.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use model::ledger::{LedgerDelta, LedgerLine};
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;

use crate::catalog::{AttributeKinds, KindsCollector};
use crate::record::LogEntryMeta;

/// What a batch costs beside its buffers: some seventy arrays, each a few allocations. Without it
/// many tiny batches would take more memory than they are counted for.
const BATCH_OVERHEAD_BYTES: u64 = 16 << 10;

/// What the counts of an entry cost.
const LEDGER_BYTES: u64 = 256;

/// The memory a batch takes: the part of each buffer that its rows use, so that batches which
/// share one buffer (as replayed ones do) are not counted many times.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> u64 {
    let buffers: usize = batch
        .columns()
        .iter()
        .map(|column| {
            let data = column.to_data();
            data.get_slice_memory_size().unwrap_or_else(|_| column.get_buffer_memory_size())
        })
        .sum();
    buffers as u64 + BATCH_OVERHEAD_BYTES
}

/// Rows of one tenant.
#[derive(Debug, Default)]
pub(crate) struct TenantRows {
    batches: Vec<Arc<RecordBatch>>,
    collector: KindsCollector,
    kinds: Arc<AttributeKinds>,
}

impl TenantRows {
    /// The batches in the order they came.
    pub(crate) fn batches(&self) -> &[Arc<RecordBatch>] {
        &self.batches
    }

    /// The attribute keys of the rows.
    pub(crate) const fn kinds(&self) -> &Arc<AttributeKinds> {
        &self.kinds
    }
}

/// Unflushed rows of one table.
#[derive(Debug)]
pub(crate) struct Memtable {
    table: Table,
    tenants: BTreeMap<TenantId, TenantRows>,
    ledger: BTreeMap<(TenantId, i64), LedgerDelta>,
    rows: u64,
    bytes: u64,
    seqs: Option<(u64, u64)>,
    since: Option<Timestamp>,
}

impl Memtable {
    pub(crate) const fn new(table: Table) -> Self {
        Self { table, tenants: BTreeMap::new(), ledger: BTreeMap::new(), rows: 0, bytes: 0, seqs: None, since: None }
    }

    /// Adds an entry of log record `seq`, with its memory as [`batch_bytes`] found it.
    pub(crate) fn add(&mut self, seq: u64, meta: LogEntryMeta, batch: Option<(RecordBatch, u64)>, now: Timestamp) {
        self.seqs = Some((self.seqs.map_or(seq, |seqs| seqs.0), seq));
        self.since.get_or_insert(now);
        if let Some((batch, bytes)) = batch.filter(|(batch, _)| batch.num_rows() > 0) {
            self.rows += batch.num_rows() as u64;
            self.bytes += bytes;
            let tenant = self.tenants.entry(meta.tenant.clone()).or_default();
            if tenant.collector.add(&batch) {
                tenant.kinds = Arc::new(tenant.collector.kinds().clone());
            }
            tenant.batches.push(Arc::new(batch));
        }
        if !meta.ledger.is_empty() {
            let sum = self.ledger.entry((meta.tenant, meta.minute)).or_insert_with(|| {
                self.bytes += LEDGER_BYTES;
                LedgerDelta::default()
            });
            sum.merge(&meta.ledger);
        }
    }

    pub(crate) const fn table(&self) -> Table {
        self.table
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.seqs.is_none()
    }

    pub(crate) const fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first and the last log record that it holds something of.
    pub(crate) const fn seqs(&self) -> Option<(u64, u64)> {
        self.seqs
    }

    /// When its first entry was added.
    pub(crate) const fn since(&self) -> Option<Timestamp> {
        self.since
    }

    pub(crate) const fn tenants(&self) -> &BTreeMap<TenantId, TenantRows> {
        &self.tenants
    }

    /// The ledger's lines, each with its tenant.
    pub(crate) fn ledger(&self) -> impl Iterator<Item = (&TenantId, LedgerLine)> {
        let signal = self.table.signal();
        self.ledger.iter().flat_map(move |((tenant, minute), delta)| {
            let stored = (delta.stored > 0).then_some((None, delta.stored));
            let rejected = delta.rejected.iter().map(|(reason, items)| (Some(*reason), *items));
            stored
                .into_iter()
                .chain(rejected)
                .map(move |(reason, items)| (tenant, LedgerLine { minute: *minute, signal, reason, items }))
        })
    }
}
