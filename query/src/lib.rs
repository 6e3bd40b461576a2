//! SQL over one snapshot of a tenant's telemetry, read-only and bounded.
//!
//! A query goes through [`guard`] (what may be asked at all), is planned over the logical
//! [`tables`] of one [`source::Snapshot`], and runs on the [`engine`]'s own threads under its
//! memory, time, row and concurrency limits. [`render`] turns the answer into JSON, NDJSON, CSV,
//! Arrow or Parquet.
//!
//! Not here: HTTP (the dashboards crate), writing anything, and the storage itself: the engine
//! sees it through the [`source::Source`] trait.
//!
//! # Layout
//! - [`engine`]: permits, sessions, execution, statistics, retry after a corrupt segment
//! - [`guard`]: limits on the text and the statement, before anything is planned
//! - [`bounds`]: limits on the plan, before anything is optimised or run
//! - `queue`: who runs next; `memory`: what a query has reserved; `portions`: small batches where rows multiply
//! - [`source`]: what the engine needs from storage; [`StoreSource`]: the store, as that
//! - [`provider`]: a physical table as a scan with pruning; `layout`: the columns of its files; `needles`: which
//!   blocks of them may hold what a predicate looks for
//! - [`tables`]: the logical tables people type; `derived`, `partials`, `collapse`: those derived from spans
//! - [`catalog`]: what there is to ask, for programs: tables, columns, attribute keys, `information_schema`
//! - [`script`]: statements and parameters in a text; what one asks for and answers is a [`Description`]
//! - [`remote`]: the same where the rows are in ClickHouse
//! - [`functions`], [`rewrite`]: typed attribute access and hex ids
//! - `time`, `rate`, `histogram`, `quantile`: the functions over time and metrics; `aggregate`: how
//!   those that aggregate run; `text`: those over text
//! - [`trace`]: one trace as a table
//! - [`offered`]: tables of what other parts of the program know
//! - [`follow`]: rows of a table as they come, through a predicate
//! - [`render`]: answers as text and Arrow
//! - [`error`]: every way a query can fail, and its HTTP status
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod aggregate;
pub mod bounds;
pub mod catalog;
mod collapse;
mod collected;
mod derived;
#[cfg(test)]
mod derived_tests;
mod describe;
pub mod engine;
pub mod error;
pub mod follow;
#[cfg(test)]
mod function_tests;
pub mod functions;
pub mod guard;
mod histogram;
#[cfg(test)]
mod hostile;
mod layout;
mod memory;
#[cfg(test)]
mod needle_tests;
mod needles;
pub mod offered;
mod partials;
mod portions;
pub mod provider;
mod quantile;
mod queue;
mod rate;
pub mod remote;
pub mod render;
pub mod rewrite;
pub mod script;
pub mod source;
mod stored;
pub mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod text;
mod time;
pub mod trace;

pub use describe::Description;
pub use engine::{Engine, EngineConfig, Limits, QueryOutput, QueryStats};
pub use error::{ErrorKind, QueryError};
pub use follow::{Following, News};
pub use queue::Client;
pub use remote::{Remote, RemoteLimits, RowsElsewhere};
pub use source::{SegmentFile, Snapshot, Source};
pub use stored::StoreSource;
pub use time::write_duration;
