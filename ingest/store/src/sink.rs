//! Another place for rows than segments: a database that takes each cut of a table exactly once.
//!
//! The store stays what it is: it acknowledges after its log, holds what is not stored yet in memory, and cuts the log
//! afterwards. Only the middle of a flush is another: instead of writing segments it hands the frozen rows to a [`Sink`].
//! Not here: how that gets them to their place.
//!
//! A cut is made durable in the manifest before its first attempt, as the number of its last log record. A start after a
//! crash makes the same cut again from the log, whatever came behind it meanwhile. So every attempt at a cut, in this
//! process or a later one, has the same rows in the same order under the same name, and a sink that knows a name again
//! can tell a repetition from new rows.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::array::RecordBatch;
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::Timestamp;

/// Unflushed rows of one table that are stored as one thing.
#[derive(Clone, Debug)]
pub struct Cut<'a> {
    /// The identity of the log that the rows come from.
    pub log_id: [u8; 16],
    /// The table.
    pub table: Table,
    /// The log record that ends the cut. With the two above it is the name of the cut, for ever.
    pub seq: u64,
    /// When it was cut first.
    pub at: Timestamp,
    /// The rows of each tenant, in the order they were acknowledged.
    pub rows: Vec<(&'a TenantId, &'a [Arc<RecordBatch>])>,
    /// What is counted with them.
    pub ledger: Vec<(&'a TenantId, LedgerLine)>,
}

/// Why a cut is not stored yet. It stays in the log and in memory, and is tried again.
pub type SinkError = Box<dyn Error + Send + Sync>;

/// Where cuts go.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Stores a cut, once however often it is called with it, and returns when it is as safe as it is configured to
    /// be: its rows leave the log then. Called by one thread, which may wait; it gives up early when `stop` is set.
    ///
    /// # Errors
    /// When the cut is not, or not certainly, stored.
    fn store(&self, cut: &Cut<'_>, stop: &AtomicBool) -> Result<(), SinkError>;
}
