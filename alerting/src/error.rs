//! What can go wrong in alerting, in one enum.
//!
//! Not here: problems of a configuration ([`crate::config::Problem`]) and failures to send
//! ([`crate::outbox::SendFailure`]), which are data.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum AlertingError {
    /// The database refused.
    #[error("alerting database: cannot {action}: {source}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The database is not sound.
    #[error("alerting database {} is damaged: {reason}; move it away to start without alerts, silences and the notification log", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check found.
        reason: String,
    },
    /// The database is of a later release.
    #[error("alerting database {} has version {found}, this release reads up to {supported}", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// A request breaks a rule.
    #[error("{reason}")]
    Invalid {
        /// Which, in words for the sender.
        reason: String,
    },
    /// There is no such thing.
    #[error("{what} not found")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// There are as many alerts or silences as there may be.
    #[error("there are {max} {what} already: no further one is taken until some end")]
    Full {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A template cannot be parsed.
    #[error("template {name}: {reason}")]
    Template {
        /// The file or the place in the configuration.
        name: String,
        /// What the parser says.
        reason: String,
    },
    /// The HTTP client could not be built.
    #[error("HTTP client: {reason}")]
    HttpClient {
        /// Why.
        reason: String,
    },
    /// The process is shutting down.
    #[error("alerting is shutting down")]
    Closed,
}

impl AlertingError {
    /// Turns an error of SQLite into ours.
    pub(crate) fn database(action: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Database { .. } | Self::Full { .. } | Self::Closed)
    }
}
