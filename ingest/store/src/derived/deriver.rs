//! What is derived of spans that are not in a segment yet, and the index their calls are joined by.
//!
//! It is told which batches there are and counts each once, in the order they were acknowledged.
//! Not here: locks, and where batches, segments and the time come from; those are the store's.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use model::derived::DerivedTable;
use model::tenant::TenantId;
use model::time::Timestamp;

use super::edges::{EdgeIndex, ServiceEdges};
use super::metrics::SpanMetrics;
use super::spans::{Facts, Spans};
use super::stored::StoredSpans;
use crate::segment::Segment;

/// How long the halves of a call wait for each other at least, by their arrival: exporters send
/// every few seconds, and those that meet an outage try again for five minutes by default.
pub(crate) const EDGE_HORIZON_NS: i64 = 600 * Timestamp::NANOS_PER_SECOND;

/// Memory of what is in all tenants' indexes. About 350,000 spans fit; when more than half of them come
/// within [`EDGE_HORIZON_NS`], halves wait less long, though never less than that half takes to come. A
/// larger one would not fit a core's caches either.
pub(crate) const EDGE_INDEX_BYTES_MAX: usize = 32 << 20;

/// Partial rows of both tables.
#[derive(Debug, Default)]
pub(crate) struct Partials {
    metrics: SpanMetrics,
    edges: ServiceEdges,
}

impl Partials {
    /// Counts a batch.
    pub(super) fn add(&mut self, spans: &Spans<'_>, index: &mut EdgeIndex) {
        self.metrics.add(spans);
        index.add(spans, &mut self.edges);
    }

    /// The rows of a table; `None` when there are none.
    pub(crate) fn batch(&self, table: DerivedTable) -> Option<RecordBatch> {
        match table {
            DerivedTable::SpanMetrics => (self.metrics.len() > 0).then(|| self.metrics.batch()),
            DerivedTable::ServiceEdges => (self.edges.len() > 0).then(|| self.edges.batch()),
        }
    }
}

/// What was derived of one memtable's rows of a tenant.
#[derive(Debug, Default)]
struct Counted {
    batches: usize,
    partials: Partials,
    /// The rows of both tables, while no batch was added since they were asked for.
    shown: Option<[Option<RecordBatch>; DerivedTable::COUNT]>,
}

#[derive(Debug)]
struct Tenant {
    index: EdgeIndex,
    /// When the younger generation of the index began.
    since: Timestamp,
    /// By the number of the memtable.
    counted: BTreeMap<u64, Counted>,
}

/// The spans of one tenant in one memtable that are to be counted.
#[derive(Debug)]
pub(crate) struct Uncounted {
    pub(crate) tenant: TenantId,
    /// The number of the memtable; a later one has a greater number.
    pub(crate) memtable: u64,
    pub(crate) batches: Vec<Arc<RecordBatch>>,
}

/// Counts spans as they come.
#[derive(Debug)]
pub(crate) struct Deriver {
    seed: u64,
    index_bytes_max: usize,
    facts: Facts,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Callees that nobody was found to have called.
    unpaired: u64,
}

impl Deriver {
    /// The seed should differ from process to process.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_index_bytes_max(seed, EDGE_INDEX_BYTES_MAX)
    }

    /// As [`Deriver::new`] with another bound than [`EDGE_INDEX_BYTES_MAX`].
    pub(super) fn with_index_bytes_max(seed: u64, index_bytes_max: usize) -> Self {
        Self { seed, index_bytes_max, facts: Facts::of_memtables(), tenants: BTreeMap::new(), unpaired: 0 }
    }

    /// How many batches of a memtable are counted.
    pub(crate) fn counted(&self, tenant: &TenantId, memtable: u64) -> usize {
        let counted = self.tenants.get(tenant).and_then(|tenant| tenant.counted.get(&memtable));
        counted.map_or(0, |counted| counted.batches)
    }

    /// Whether a tenant's index is there; if not, [`Deriver::remember`] has to come before any of
    /// its batches is counted.
    pub(crate) fn knows(&self, tenant: &TenantId) -> bool {
        self.tenants.contains_key(tenant)
    }

    /// Makes a tenant's index from spans that are in segments. What calls they are part of was
    /// counted when they were flushed.
    pub(crate) fn remember(&mut self, tenant: &TenantId, now: Timestamp, stored: &[Arc<Segment>]) {
        let mut index = EdgeIndex::new(self.seed);
        let mut known = ServiceEdges::default();
        for segment in stored {
            let read = StoredSpans::open(segment).and_then(|mut stored| {
                stored.each(None, |spans| {
                    index.add(spans, &mut known);
                    if index.young_bytes() > self.index_bytes_max / 2 {
                        self.unpaired += index.turn();
                    }
                })
            });
            if let Err(error) = read {
                // Whoever asks for its rows sets it aside; here it only means that some halves do
                // not find each other.
                tracing::warn!(path = %segment.path().display(), %error, "cannot read spans to find calls");
            }
        }
        self.tenants.insert(tenant.clone(), Tenant { index, since: now, counted: BTreeMap::new() });
    }

    /// Counts batches; those of a memtable in their order, and those of the older one first.
    pub(crate) fn count(&mut self, uncounted: Uncounted, now: Timestamp) {
        let Some(tenant) = self.tenants.get_mut(&uncounted.tenant) else { return };
        let counted = tenant.counted.entry(uncounted.memtable).or_default();
        counted.shown = None;
        for batch in uncounted.batches {
            counted.batches += 1;
            // The store refuses batches of another schema before they are acknowledged.
            let Some(spans) = Spans::new(&batch, &mut self.facts) else { continue };
            counted.partials.add(&spans, &mut tenant.index);
            // At half of the bound, so that the generation before stays: an index that forgets all at once joins
            // nothing across the turn, and is made again from segments.
            if tenant.index.young_bytes() > self.index_bytes_max / 2 {
                self.unpaired += tenant.index.turn_keeping(self.index_bytes_max);
                tenant.since = now;
            }
        }
        if tenant.since > now || tenant.since.plus_nanos(EDGE_HORIZON_NS) <= now {
            self.unpaired += tenant.index.turn();
            tenant.since = now;
        }
        let keep = self.index_bytes_max / self.tenants.len().max(1);
        while self.tenants.values().map(|tenant| tenant.index.bytes()).sum::<usize>() > self.index_bytes_max {
            let largest = self.tenants.values_mut().max_by_key(|tenant| tenant.index.bytes());
            let Some(largest) = largest.filter(|tenant| !tenant.index.is_empty()) else { break };
            self.unpaired += largest.index.turn_keeping(keep);
            largest.since = now;
        }
    }

    /// The partial rows of one memtable of a tenant.
    pub(crate) fn partials(&self, tenant: &TenantId, memtable: u64) -> Option<&Partials> {
        self.tenants.get(tenant)?.counted.get(&memtable).map(|counted| &counted.partials)
    }

    /// The rows of a table that are in no delta yet.
    pub(crate) fn rows(&mut self, tenant: &TenantId, table: DerivedTable) -> Vec<RecordBatch> {
        let Some(tenant) = self.tenants.get_mut(tenant) else { return Vec::new() };
        let shown = tenant.counted.values_mut().filter_map(|counted| {
            let partials = &counted.partials;
            let shown = counted.shown.get_or_insert_with(|| DerivedTable::ALL.map(|table| partials.batch(table)));
            shown[table.index()].clone()
        });
        shown.collect()
    }

    /// Lets go of a memtable that is flushed, of generations that are too old, and of tenants of
    /// whom nothing is left.
    pub(crate) fn forget(&mut self, memtable: u64, now: Timestamp) {
        self.tenants.retain(|_, tenant| {
            tenant.counted.remove(&memtable);
            if tenant.since.plus_nanos(EDGE_HORIZON_NS) <= now {
                self.unpaired += tenant.index.turn();
                tenant.since = now;
            }
            !(tenant.counted.is_empty() && tenant.index.is_empty())
        });
    }

    /// Memory of all indexes.
    pub(crate) fn index_bytes(&self) -> usize {
        self.tenants.values().map(|tenant| tenant.index.bytes()).sum()
    }

    /// How many callees were given up since this was last asked.
    pub(crate) fn take_unpaired(&mut self) -> u64 {
        std::mem::take(&mut self.unpaired)
    }
}
