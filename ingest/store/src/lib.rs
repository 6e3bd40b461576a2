//! Where telemetry lives: a write-ahead log, memtables, Parquet segments and a manifest, in one
//! data directory that one process owns.
//!
//! The promise is that acknowledged rows are durable and visible, each exactly once, whatever dies
//! when (I1 to I4). Not here: receiving and decoding (the `ingest` crate), SQL (the `query` crate),
//! threads that the caller did not ask for, tokio. `README.md` has the picture.
//!
//! # Layout
//! - [`store`]: [`store::Store`]: append, snapshot, flush, compact, expire
//! - [`wal`]: the write-ahead log; [`record`]: the bytes of an entry in it
//! - [`segment`]: one Parquet file; [`layout`]: its columns; [`gather`]: rows from one layout to another;
//!   [`catalog`]: the attribute keys in it
//! - [`filter`]: which blocks of a merged segment's rows may hold a value
//! - [`follow`]: rows handed to whoever follows them, as they are published
//! - [`sink`]: a database instead of segments
//! - `derived`: `span_metrics` and `service_edges`, counted as spans come in
//! - [`compaction`] and [`retention`]: what to merge and what to delete, as pure plans
//! - [`courtesy`]: merges pause while questions are answered
//! - [`config`], [`error`], [`metrics`]: what their names say
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod catalog;
pub mod compaction;
pub mod config;
pub mod courtesy;
mod derived;
pub mod error;
pub mod filter;
pub mod follow;
pub mod gather;
pub mod layout;
mod lock;
mod manifest;
mod memtable;
pub mod metrics;
pub mod record;
pub mod retention;
pub mod segment;
pub mod sink;
mod sort;
pub mod store;
#[cfg(test)]
mod testing;
pub mod wal;

pub use catalog::{AttributeKinds, Container};
pub use config::{CompactionConfig, StoreConfig};
pub use derived::segment::{DerivedMeta, DerivedSegment};
pub use error::StoreError;
pub use follow::{Followed, Follower, Observer};
pub use layout::{Layout, Promoted};
pub use metrics::Metrics;
pub use record::{LogEntryMeta, Position};
pub use segment::{Segment, SegmentFile, SegmentMeta};
pub use sink::{Cut, Sink, SinkError};
pub use store::{DerivedSnapshot, DerivedTables, Entry, ReplayProgress, Snapshot, Stats, Store, TableSnapshot};
