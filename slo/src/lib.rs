//! Service level objectives and rules: what was promised, what was kept, and how fast the rest burns.
//!
//! Documents ([`openslo`], [`rules`]) are read with every error at once. What they count is compiled
//! ([`sli`], [`matcher`]) and taken from committed Arrow batches as they arrive, as integers (I9);
//! [`counts`] keeps them so that any window is a difference of two numbers; [`burn`] decides, as a pure
//! function of counts and now (I5). [`engine`] holds the parts together and gives alerts out as data.
//!
//! Not here: queries over stored telemetry and recording of alerts, which are traits; routing and
//! notification, which are the alerting crate's.
//!
//! # Layout
//! - [`report`], [`document`], [`duration`]: problems with their places, YAML with places, durations
//! - [`openslo`]: OpenSLO v1 documents, and the objectives that they make
//! - [`window`]: rolling and calendar windows, in IANA time zones
//! - [`filter`], [`sli`], [`matcher`]: which rows count, as what, straight from a batch
//! - [`counts`], [`archive`]: integers per bucket, in memory and in SQLite
//! - [`burn`]: burn rates, budgets, forecasts, no data
//! - [`engine`]: all of it, running
//! - [`rules`]: Prometheus rule files and the life of an alert
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod archive;
pub mod burn;
pub mod counts;
pub mod document;
pub mod duration;
pub mod engine;
pub mod error;
pub mod filter;
pub mod matcher;
pub mod openslo;
pub mod report;
pub mod rules;
pub mod sli;
#[doc(hidden)]
pub mod testing;
pub mod window;
