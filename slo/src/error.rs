//! What can go wrong, as one enum.

use std::path::PathBuf;

/// An error of this crate. What is wrong with a file of documents is [`crate::report::Problems`].
#[derive(Debug, thiserror::Error)]
pub enum SloError {
    /// The state database refused an operation.
    #[error("cannot {op} in the state database")]
    Database {
        /// What was tried.
        op: &'static str,
        /// SQLite's answer.
        #[source]
        source: rusqlite::Error,
    },
    /// The state database is damaged.
    #[error("the state database {} is damaged ({reason}): move it away; counts are recounted from stored telemetry", path.display())]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The state database was written by a later release.
    #[error("the state database {} has format version {found}, and this release reads up to {supported}: run the release that wrote it, or a later one", path.display())]
    NewerFormat {
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
    /// Stored telemetry cannot be read.
    #[error("cannot read stored telemetry: {reason}")]
    Telemetry {
        /// Why.
        reason: String,
    },
}

impl SloError {
    /// For `map_err`: a failed operation on the database.
    pub(crate) const fn database(op: &'static str) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Database { op, source }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Database { .. } | Self::Telemetry { .. })
    }
}
