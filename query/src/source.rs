//! What a query needs from storage: one snapshot of one tenant, and a way to set a damaged
//! segment aside.
//!
//! Not here: how segments are read (the provider), and where they come from: the store implements
//! [`Source`], and so do the tests.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use model::attributes::Kinds;
use model::derived::DerivedTable;
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;

use crate::remote::{Reach, Remote};

/// A Parquet file of one table, immutable while any clone of this lives.
#[derive(Clone)]
pub struct SegmentFile {
    /// The store's number for it.
    pub id: u64,
    /// Absolute path.
    pub path: PathBuf,
    /// Rows in the file.
    pub rows: u64,
    /// Size of the file, bytes.
    pub bytes: u64,
    /// The least time of a row, nanoseconds since the epoch.
    pub min_time: i64,
    /// The greatest time of a row, nanoseconds since the epoch.
    pub max_time: i64,
    /// Whether it may have block filters.
    pub filters: bool,
    /// What keeps the file from being deleted, if anything has to.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for SegmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentFile({}, {})", self.id, self.path.display())
    }
}

impl SegmentFile {
    /// The file's name, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().map_or_else(|| self.id.to_string(), |name| name.to_string_lossy().into_owned())
    }
}

/// The rows of one table: files on disk, and batches in memory that are in none of them.
#[derive(Clone, Debug, Default)]
pub struct TableSnapshot {
    /// Segments, in any order.
    pub segments: Vec<SegmentFile>,
    /// Batches of the table's schema.
    pub memory: Vec<RecordBatch>,
}

/// The partial rows of the derived tables.
#[derive(Clone, Debug, Default)]
pub struct Derived {
    /// By [`DerivedTable::index`]. Rows in memory are of the finest resolution; segments have the
    /// sums over longer intervals beside them.
    pub tables: [TableSnapshot; DerivedTable::COUNT],
    /// They miss nothing: false while they are derived anew.
    pub complete: bool,
}

/// One instant of one tenant's data (I3).
#[derive(Clone)]
pub struct Snapshot {
    tables: [TableSnapshot; Table::COUNT],
    /// What is derived from these spans; `None` unless it was asked for.
    pub derived: Option<Derived>,
    /// Which kinds each attribute key has been seen with.
    pub kinds: Arc<dyn ObservedKinds>,
    /// Where the rows are when they are not here.
    pub(crate) reach: Option<Arc<Reach>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// A snapshot without rows.
    #[must_use]
    pub fn new(kinds: Arc<dyn ObservedKinds>) -> Self {
        Self { tables: std::array::from_fn(|_| TableSnapshot::default()), derived: None, kinds, reach: None }
    }

    /// The rows of a table.
    #[must_use]
    pub const fn table(&self, table: Table) -> &TableSnapshot {
        &self.tables[table.index()]
    }

    /// The rows of a table, to be filled in.
    pub const fn table_mut(&mut self, table: Table) -> &mut TableSnapshot {
        &mut self.tables[table.index()]
    }
}

/// A place in a row that holds attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// The item's own attributes.
    Attributes,
    /// The resource's.
    Resource,
    /// The scope's.
    Scope,
    /// The span events'.
    Events,
    /// The span links'.
    Links,
    /// The exemplars'.
    Exemplars,
    /// `Metric.metadata`.
    MetricMetadata,
}

impl Container {
    /// Every container.
    pub const ALL: [Self; 7] = [
        Self::Attributes,
        Self::Resource,
        Self::Scope,
        Self::Events,
        Self::Links,
        Self::Exemplars,
        Self::MetricMetadata,
    ];

    /// The name of the physical column that holds it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attributes => "attributes",
            Self::Resource => "resource",
            Self::Scope => "scope",
            Self::Events => "events",
            Self::Links => "links",
            Self::Exemplars => "exemplars",
            Self::MetricMetadata => "metric_metadata",
        }
    }

    /// Whether its Arrow type is a context (dictionary of bytes) rather than an attributes struct.
    #[must_use]
    pub const fn is_context(self) -> bool {
        matches!(self, Self::Resource | Self::Scope | Self::MetricMetadata)
    }
}

/// Which kinds an attribute key has been seen with in a snapshot. It decides the SQL type of
/// `attributes['key']`, so it must cover at least every value in the snapshot's rows.
pub trait ObservedKinds: Send + Sync {
    /// The kinds of a key; empty when it was never seen.
    fn kinds(&self, table: Table, container: Container, key: &str) -> Kinds;
}

/// What came since the last look, for whoever follows a table.
#[derive(Clone, Debug)]
pub enum Fresh {
    /// Acknowledged rows, in the order of their acknowledgement.
    Rows(Vec<RecordBatch>),
    /// So many rows came that the follower was too slow for.
    Dropped(u64),
}

/// Storage, as a query sees it. Calls may block for a short disk read.
pub trait Source: Send + Sync {
    /// The tenant's data at this instant; every acknowledged row is in it.
    fn snapshot(&self, tenant: &TenantId) -> Snapshot;

    /// As [`Source::snapshot`], with the derived tables of the same instant; that costs a little
    /// for each span that came in the last moments. Where nothing is derived they are empty.
    fn snapshot_with_derived(&self, tenant: &TenantId) -> Snapshot {
        Snapshot { derived: Some(Derived { complete: true, ..Derived::default() }), ..self.snapshot(tenant) }
    }

    /// Somebody waits for an answer from now until what this returns is dropped: what works in the background may make
    /// room for it.
    fn ask(&self) -> Option<Box<dyn Any + Send + Sync>> {
        None
    }

    /// Where rows are asked for instead, when they are elsewhere: a snapshot has none of them then.
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        None
    }

    /// The kinds of a table's attributes at this instant: those of a snapshot, without one.
    fn kinds(&self, tenant: &TenantId, _table: Table) -> Arc<dyn ObservedKinds> {
        self.snapshot(tenant).kinds
    }

    /// Why nothing can be followed here, where that is so.
    fn unfollowed(&self) -> Option<&'static str> {
        None
    }

    /// What is acknowledged for a table from now on, as far as its reader keeps up. Where nothing is written it ends
    /// at once.
    fn follow(&self, _tenant: &TenantId, _table: Table) -> BoxStream<'static, Fresh> {
        stream::empty().boxed()
    }

    /// The tenant's ingest ledger.
    ///
    /// # Errors
    /// What kept it from being read.
    fn ledger(&self, tenant: &TenantId) -> Result<Vec<LedgerLine>, String>;

    /// Whether a segment's file is what was written.
    ///
    /// # Errors
    /// What is wrong with it.
    fn verify(&self, segment: &SegmentFile) -> Result<(), String>;

    /// Sets a damaged segment aside, so that no later snapshot holds it.
    ///
    /// # Errors
    /// What kept it from being set aside.
    fn quarantine(&self, segment: &SegmentFile, why: &str) -> Result<(), String>;
}
