//! The parts of the `godseye` binary that tests reach too: configuration, composition, commands.
//!
//! Not here: `main`, which only turns arguments into calls and results into exit codes. This is
//! the one crate that reads the environment, files of configuration and signals, and the one place
//! where the parts of the system meet.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod alerts;
pub mod cli;
pub mod clickhouse;
pub mod client;
mod complete;
pub mod config;
pub mod demo;
mod gateway;
pub mod loadgen;
pub mod logging;
mod prompt;
pub mod roles;
pub mod server;
pub mod tail;
pub mod terminal;
pub mod trace;
pub mod watch;
pub mod waterfall;
