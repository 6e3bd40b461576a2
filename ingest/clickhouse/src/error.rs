//! What goes wrong with ClickHouse, and whether it heals by itself.

use arrow::error::ArrowError;

/// Errors of ClickHouse that pass: the server is busy, starting, short of something, or has lost its neighbours.
/// Numbers are from `src/Common/ErrorCodes.cpp`. Every other one needs somebody: a right, a column, a disk.
const PASSING: &[u32] = &[
    3,   // UNEXPECTED_END_OF_FILE: the body was cut short
    33,  // CANNOT_READ_ALL_DATA: likewise
    95,  // CANNOT_READ_FROM_SOCKET
    159, // TIMEOUT_EXCEEDED
    160, // TOO_SLOW
    201, // QUOTA_EXCEEDED
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    203, // NO_FREE_CONNECTION
    209, // SOCKET_TIMEOUT
    210, // NETWORK_ERROR
    225, // NO_ZOOKEEPER
    241, // MEMORY_LIMIT_EXCEEDED
    242, // TABLE_IS_READ_ONLY: a replica without its keeper
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS: merges are behind
    285, // TOO_FEW_LIVE_REPLICAS
    286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    289, // REPLICA_IS_NOT_IN_QUORUM
    319, // UNKNOWN_STATUS_OF_INSERT
    394, // QUERY_WAS_CANCELLED
    425, // SYSTEM_ERROR
    439, // CANNOT_SCHEDULE_TASK
    473, // DEADLOCK_AVOIDED
    499, // S3_ERROR
    999, // KEEPER_EXCEPTION
];

/// Why something could not be done with ClickHouse.
#[derive(Debug, thiserror::Error)]
pub enum ClickHouseError {
    /// The configuration makes no sense.
    #[error("{reason}")]
    Config {
        /// What, and what to do.
        reason: String,
    },
    /// The server answered with an error.
    #[error("ClickHouse at {host} says: {message}")]
    Server {
        /// Which one.
        host: String,
        /// The number of the error; 0 when the answer had none.
        code: u32,
        /// What it says, cut to a length that fits a log line.
        message: String,
    },
    /// The server cannot be reached, or the connection broke. Whether the statement was carried out is not known.
    #[error("cannot talk to ClickHouse at {host}: {reason}")]
    Network {
        /// Which one.
        host: String,
        /// What happened.
        reason: String,
    },
    /// No answer in time. Whether the statement was carried out is not known.
    #[error("ClickHouse at {host} did not answer within {timeout_ms} ms")]
    TimedOut {
        /// Which one.
        host: String,
        /// How long it had.
        timeout_ms: u64,
    },
    /// The tables are of a later release.
    #[error(
        "database `{database}` has schema version {found}, this release knows up to {supported}; use a later release"
    )]
    NewerSchema {
        /// The database.
        database: String,
        /// Its version.
        found: u32,
        /// The newest one this release knows.
        supported: u32,
    },
    /// The tables are not what rows are written for.
    #[error("the tables of database `{database}` are not as expected: {}", differences.join("; "))]
    SchemaDiffers {
        /// The database.
        database: String,
        /// Each with the table, what is there, and what should be.
        differences: Vec<String>,
    },
    /// Rows cannot be laid out or encoded.
    #[error("cannot lay rows out for ClickHouse: {0}")]
    Rows(#[from] ArrowError),
    /// A certificate or URL cannot be used.
    #[error("cannot use {what}: {reason}")]
    Tls {
        /// Which setting.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The process is ending.
    #[error("stopped before the rows were stored; the log has them")]
    Stopped,
}

impl ClickHouseError {
    /// The same may work soon, on this host or another, without anybody's help. Other errors are told at once; the store
    /// comes again after these as well, just not every moment.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Network { .. } | Self::TimedOut { .. } => true,
            // An answer without a number is a proxy's, or one that broke off.
            Self::Server { code, .. } => *code == 0 || PASSING.contains(code),
            _ => false,
        }
    }

    /// The name of the reason, for a metric.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Server { .. } => "server",
            Self::Network { .. } => "network",
            Self::TimedOut { .. } => "timeout",
            Self::Stopped => "stopped",
            Self::Config { .. } | Self::Tls { .. } => "configuration",
            Self::NewerSchema { .. } | Self::SchemaDiffers { .. } => "schema",
            Self::Rows(_) => "rows",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_what_needs_somebody_is_told() {
        let server = |code| ClickHouseError::Server { host: "a".to_owned(), code, message: String::new() };
        for (code, retryable) in [
            (241, true),
            (242, true),
            (252, true),
            (319, true),
            (0, true),
            (16, false),  // NO_SUCH_COLUMN_IN_TABLE
            (53, false),  // TYPE_MISMATCH
            (60, false),  // UNKNOWN_TABLE
            (164, false), // READONLY
            (497, false), // ACCESS_DENIED
            (516, false), // AUTHENTICATION_FAILED
        ] {
            assert_eq!(server(code).is_retryable(), retryable, "{code}");
        }
        assert!(ClickHouseError::TimedOut { host: "a".to_owned(), timeout_ms: 1 }.is_retryable());
        assert!(!ClickHouseError::Stopped.is_retryable());
    }
}
