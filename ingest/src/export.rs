//! The seam between receivers and the pipeline: one Export request in, its outcome out.
//!
//! Not here: wire formats (receivers) and how a request is decoded and stored (pipeline).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use model::ledger::RejectReason;
use model::signal::Signal;
use model::tenant::TenantId;

/// One Export request: the protobuf bytes of an `Export<Signal>ServiceRequest`, decompressed.
#[derive(Debug)]
pub struct ExportRequest {
    /// The signal whose service was called.
    pub signal: Signal,
    /// The caller's tenant, from its credential (I13).
    pub tenant: TenantId,
    /// The message.
    pub body: Bytes,
}

/// What was accepted, after it is durable (I1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Items stored.
    pub stored: u64,
    /// Items refused for good, by reason; they go into `partial_success`.
    pub rejected: BTreeMap<RejectReason, u64>,
}

impl Accepted {
    /// All items refused.
    #[must_use]
    pub fn rejected_total(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// The English sentence for `partial_success.error_message`; empty when nothing was refused.
    #[must_use]
    pub fn error_message(&self) -> String {
        let parts: Vec<String> = self
            .rejected
            .iter()
            .map(|(reason, items)| format!("{items} rejected as {}: {}", reason.name(), reason.explanation()))
            .collect();
        parts.join("; ")
    }
}

/// Why nothing of a request was stored.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The body is not the message it should be. Permanent: the client must not send it again.
    #[error("request is not a valid {signal} export: {detail}")]
    Malformed {
        /// The signal whose service was called.
        signal: Signal,
        /// What is wrong.
        detail: String,
    },
    /// Larger than can be handed on, and cannot be taken apart. Permanent.
    #[error("{what} does not fit the {limit} bytes that a message may have")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
        /// The bound, bytes.
        limit: usize,
    },
    /// A named bound is reached. The client should send again after `retry_after`.
    #[error("{what}; send again in {} s", .retry_after.as_secs())]
    Overloaded {
        /// Which bound.
        what: &'static str,
        /// When to come back.
        retry_after: Duration,
    },
    /// A defect of ours, or a request that no group of the log can hold. Sending the same bytes
    /// again would meet it again.
    #[error("internal error: {detail}")]
    Internal {
        /// What went wrong, without anything of the request.
        detail: &'static str,
    },
    /// The server is shutting down. The client should send again, to wherever it then reaches.
    #[error("server is shutting down")]
    ShuttingDown,
}

impl ExportError {
    /// Whether the client should send the request again.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::ShuttingDown)
    }
}
