//! ClickHouse as the place where telemetry is stored: its schema, and the writer behind the write-ahead log.
//!
//! The promise is that of the embedded store: an acknowledged row is stored once, whatever dies when. The log is still
//! ours; it is cut behind what ClickHouse says it has. `README.md` has the picture and what each setting means.
//! Not here: receiving, the log, memory limits (the `store` crate), SQL over it.
//!
//! # Layout
//! - [`sink`]: [`ClickHouseSink`], which stores the store's cuts
//! - [`reader`]: [`ClickHouseReader`], which asks and streams the answers
//! - [`schema`]: tables, migrations, and the check of what is there
//! - [`columns`]: types and rows of our tables in ClickHouse's
//! - [`hosts`]: which host next, and when again, as pure decisions
//! - [`client`]: one statement on one host
//! - [`config`], [`error`], [`metrics`]: what their names say
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod client;
pub mod columns;
pub mod config;
pub mod error;
pub mod hosts;
pub mod metrics;
pub mod reader;
pub mod schema;
pub mod sink;

pub use config::{Ack, ClickHouseConfig};
pub use error::ClickHouseError;
pub use metrics::Metrics;
pub use reader::ClickHouseReader;
pub use sink::ClickHouseSink;
