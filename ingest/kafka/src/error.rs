//! What goes wrong with Kafka before telemetry flows. What goes wrong with one request is an
//! [`ingest::export::ExportError`], and what goes wrong with one message is counted and told by [`crate::metrics`].

/// Why a part could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// The configuration makes no sense.
    #[error("{reason}")]
    Config {
        /// What, and what to do.
        reason: String,
    },
    /// The client library refuses its settings.
    #[error("cannot make a client of Kafka: {source}")]
    Client {
        /// Why.
        #[from]
        source: rdkafka::error::KafkaError,
    },
    /// The operating system refuses a thread.
    #[error("cannot start the thread that reads Kafka: {source}")]
    Thread {
        /// Why.
        source: std::io::Error,
    },
}
