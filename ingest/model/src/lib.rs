//! The shared vocabulary of GodsEye: signals, tables and their Arrow schemas, attribute columns,
//! OTLP values on the wire, ids, tenants, time and limits.
//!
//! This crate is not a place for I/O, threads, tokio or configuration: everything in it is a pure
//! function or plain data, so that every other crate may depend on it and none is dragged along.
//!
//! # Layout
//! - [`signal`]: the four OTLP signals and the tables their items become
//! - [`schema`]: the physical Arrow schema of every table, with its format version
//! - [`derived`]: the tables derived from spans; [`durations`]: their latency histogram
//! - [`attributes`]: how attributes are laid out in columns, exactly, and read back
//! - [`context`]: resource and scope, dictionary-encoded whole
//! - [`value`]: `AnyValue` on the wire: limits, kinds, JSON
//! - [`wire`]: reading and writing protobuf's wire format
//! - [`columns`]: append-and-truncate column builders
//! - [`ledger`]: received = stored + rejected by reason
//! - [`limits`], [`tenant`], [`time`]: what their names say
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod attributes;
pub mod columns;
pub mod context;
pub mod derived;
pub mod durations;
pub mod ledger;
pub mod limits;
pub mod schema;
mod shapes;
pub mod signal;
pub mod tenant;
pub mod time;
pub mod value;
pub mod wire;
