//! OTLP through Apache Kafka: a gateway that acknowledges when brokers have a request, and a writer that brings it into
//! the store exactly once.
//!
//! Topics and encodings are those of the OpenTelemetry Collector's Kafka exporter and receiver, so either side can be
//! one of those. Not here: receivers (`ingest`), the store, flags and files of configuration. `README.md` says what
//! holds when something dies.
//!
//! # Layout
//! - [`config`]: how Kafka is reached and used
//! - [`gateway`]: [`gateway::Gateway`], what stands behind the receivers: request in, delivery report out
//! - [`split`]: a request taken apart by key and by size, as a pure function
//! - [`writer`]: [`writer::Writer`], the thread that reads topics into a store
//! - [`progress`]: which messages are read, gathered and stored, as a pure state machine
//! - [`dead`]: messages that are no telemetry
//! - [`client`]: what every client of a broker has: settings, logs, topics that are not there yet
//! - [`metrics`], [`error`]: what their names say
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod client;
pub mod config;
pub mod dead;
pub mod error;
pub mod gateway;
pub mod metrics;
pub mod progress;
pub mod split;
pub mod writer;

pub use config::{Compression, Encoding, KafkaConfig, Key, Sasl, Secret, Security};
pub use error::KafkaError;
pub use gateway::Gateway;
pub use writer::{PositionedLog, Writer};
