//! Every way a query can fail, what it means over HTTP, and whether trying again can help.
//!
//! Not here: how an error is written to a client; the API does that from [`QueryError::kind`],
//! the message and the hint.

use datafusion::error::DataFusionError;

/// The class of a failure. The one place that decides status, code and retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The SQL is wrong: syntax, unknown names, types, a cast that overflows.
    BadQuery,
    /// The SQL is understood and refused: not a read, or a shape that cannot be bounded.
    Refused,
    /// The SQL text is over a size limit.
    TooLarge,
    /// The query ran longer than its limit.
    Timeout,
    /// The query needs more memory than its limit.
    Memory,
    /// The answer is larger than its limit, and what it is written to has no place to say so.
    RowLimit,
    /// Too many queries are running and waiting.
    Busy,
    /// The server is stopping.
    Unavailable,
    /// A segment is damaged and part of the answer had already been sent.
    Corrupt,
    /// A defect of ours.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::BadQuery,
        Self::Refused,
        Self::TooLarge,
        Self::Timeout,
        Self::Memory,
        Self::RowLimit,
        Self::Busy,
        Self::Unavailable,
        Self::Corrupt,
        Self::Internal,
    ];

    const fn row(self) -> (&'static str, u16, bool) {
        match self {
            Self::BadQuery => ("bad_query", 400, false),
            Self::Refused => ("not_allowed", 400, false),
            Self::TooLarge => ("query_too_large", 413, false),
            // Not 408: that says the client was slow, and clients and proxies send such a request again by
            // themselves, which is the last thing a server needs that a query has just kept busy.
            Self::Timeout => ("timeout", 504, false),
            Self::Memory => ("out_of_memory", 507, false),
            Self::RowLimit => ("row_limit", 422, false),
            Self::Busy => ("busy", 429, true),
            Self::Unavailable => ("unavailable", 503, true),
            Self::Corrupt => ("segment_corrupt", 500, true),
            Self::Internal => ("internal", 500, false),
        }
    }

    /// The stable code that programs match on.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().1
    }

    /// Whether the same query may succeed when it is sent again.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        self.row().2
    }
}

/// Why a query failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// The class of the failure.
    pub kind: ErrorKind,
    /// What happened, where, expected and found.
    pub message: String,
    /// What to do about it, when there is something to say.
    pub hint: Option<String>,
}

impl QueryError {
    /// An error of a kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// Whether the same query may succeed when it is sent again.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }

    /// The SQLSTATE for clients that speak PostgreSQL. What is wrong with a query the engine says in words only, so
    /// its words decide; a wording that is not known is a plain 42000.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self.kind {
            ErrorKind::BadQuery => {
                let says = |(wording, _): &&(&str, &str)| self.message.contains(wording);
                WORDINGS.iter().find(says).map_or("42000", |(_, state)| state)
            }
            ErrorKind::Refused if self.message.contains("only reads") || self.message.contains("writes") => "25006",
            ErrorKind::Refused => "0A000",
            ErrorKind::TooLarge | ErrorKind::RowLimit => "54000",
            ErrorKind::Timeout => "57014",
            ErrorKind::Memory => "53200",
            ErrorKind::Busy => "53000",
            ErrorKind::Unavailable => "57P03",
            ErrorKind::Corrupt => "XX001",
            ErrorKind::Internal => "XX000",
        }
    }
}

/// What the messages of a bad query contain, and the SQLSTATE that says the same.
const WORDINGS: [(&str, &str); 16] = [
    ("syntax error", "42601"),
    ("No field named", "42703"),
    ("there is no table", "42P01"),
    ("relation \"", "42P01"),
    ("' not found", "42P01"),
    ("Invalid function", "42883"),
    ("No function matches", "42883"),
    ("configuration parameter", "42704"),
    ("type \"", "42704"),
    ("Divide by zero", "22012"),
    ("Overflow", "22003"),
    ("overflow", "22003"),
    ("is not an id", "22P02"),
    ("Cast error", "22P02"),
    ("Cannot cast", "22P02"),
    ("Parser error", "22P02"),
];

/// An engine error that carries one of ours through DataFusion.
pub(crate) fn external(error: QueryError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let error = match error {
            // Several errors (one per partition) say the same thing; the first names the cause.
            DataFusionError::Collection(errors) if !errors.is_empty() => {
                return errors
                    .into_iter()
                    .next()
                    .map_or_else(|| Self::new(ErrorKind::Internal, "an empty error collection"), Self::from);
            }
            other => other,
        };
        let root = error.find_root();
        if let DataFusionError::External(inner) = root
            && let Some(ours) = inner.downcast_ref::<Self>()
        {
            return ours.clone();
        }
        let kind = match root {
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Configuration(_)
            | DataFusionError::Execution(_)
            | DataFusionError::Diagnostic(..) => ErrorKind::BadQuery,
            DataFusionError::ArrowError(..) | DataFusionError::ParquetError(_) if !is_storage(&error) => {
                ErrorKind::BadQuery
            }
            DataFusionError::ResourcesExhausted(_) => ErrorKind::Memory,
            // A pattern is part of the question; the regex crate's error arrives boxed.
            DataFusionError::External(inner) if inner.to_string().contains("regex") => ErrorKind::BadQuery,
            _ => ErrorKind::Internal,
        };
        // The wrappers that DataFusion puts before a message say which phase spoke; the phase is
        // our business, the message is the reader's.
        let text = error.strip_backtrace();
        let mut text = text.as_str();
        // A plea to report a bug to DataFusion; most such bugs are a wrong argument type.
        text = text.split("\nThis issue was likely caused by a bug").next().unwrap_or(text);
        for phase in [
            "Error during planning: ",
            "Internal error: ",
            "Schema error: ",
            "This feature is not implemented: ",
            "Parquet error: External: ",
            "Compute error: ",
            "Error evaluating filter predicate: ",
            "Execution error: ",
            "Arrow error: ",
            "SQL error: ",
            "type_coercion\ncaused by\n",
            "Optimizer rule 'simplify_expressions' failed\ncaused by\n",
            "Resources exhausted: ",
        ] {
            text = text.strip_prefix(phase).unwrap_or(text);
        }
        match kind {
            ErrorKind::Memory => {
                let detail = text.lines().next().unwrap_or_default();
                Self::new(kind, format!("the query needs more memory than its limit: {detail}"))
                    .hint("narrow the time range, select fewer columns, or aggregate before sorting")
            }
            ErrorKind::BadQuery if text.contains("FixedSizeBinary") => {
                Self::new(kind, text).hint("ids are bytes; write hex(trace_id) to use one as text")
            }
            _ => Self::new(kind, text),
        }
    }
}

/// Whether an error came from reading a segment rather than from the query.
pub(crate) fn is_storage(error: &DataFusionError) -> bool {
    use arrow::error::ArrowError;
    match error {
        DataFusionError::ParquetError(inner) => !is_computation(inner),
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => true,
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::ParquetError(_) | ArrowError::IoError(..) | ArrowError::IpcError(_) => true,
            ArrowError::ExternalError(inner) => {
                inner.downcast_ref::<DataFusionError>().is_some_and(is_storage)
                    || inner.is::<parquet::errors::ParquetError>()
            }
            _ => false,
        },
        DataFusionError::External(inner) => {
            inner.downcast_ref::<DataFusionError>().is_some_and(is_storage)
                || inner.is::<parquet::errors::ParquetError>()
        }
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => is_storage(inner),
        DataFusionError::Shared(inner) => is_storage(inner),
        DataFusionError::Collection(errors) => errors.iter().any(is_storage),
        _ => false,
    }
}

/// Whether a scan failed in a filter that it evaluated for the query: `WHERE 1 / 0 > x` is the
/// question's fault and no reason to suspect the segment.
fn is_computation(error: &parquet::errors::ParquetError) -> bool {
    use arrow::error::ArrowError;
    let parquet::errors::ParquetError::External(inner) = error else { return false };
    match inner.downcast_ref::<ArrowError>() {
        Some(ArrowError::ParquetError(_) | ArrowError::IoError(..) | ArrowError::IpcError(_)) => false,
        Some(_) => true,
        None => inner.downcast_ref::<DataFusionError>().is_some_and(|inner| !is_storage(inner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_statuses_are_errors() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::ALL.iter().filter(|other| other.code() == kind.code()).count(), 1);
            assert!((400..600).contains(&kind.http_status()), "{kind:?}");
        }
    }

    #[test]
    fn states_are_what_clients_of_postgres_match_on() {
        for (kind, message, state) in [
            (ErrorKind::BadQuery, "syntax error: Expected: FROM", "42601"),
            (ErrorKind::BadQuery, "No field named nothing. Did you mean 'name'?", "42703"),
            (ErrorKind::BadQuery, "table 'godseye.public.span' not found", "42P01"),
            (ErrorKind::BadQuery, "Divide by zero error", "22012"),
            (ErrorKind::BadQuery, "something new", "42000"),
            (ErrorKind::Refused, "DROP TABLE is not allowed: this door only reads", "25006"),
            (ErrorKind::Refused, "sql is nested more than 32 deep", "0A000"),
            (ErrorKind::Timeout, "the query took longer", "57014"),
        ] {
            assert_eq!(QueryError::new(kind, message).sqlstate(), state, "{message}");
        }
    }

    #[test]
    fn the_root_of_an_error_decides_its_kind() {
        let wrapped = |inner| DataFusionError::Context("while scanning".to_owned(), Box::new(inner));
        for (error, kind) in [
            (DataFusionError::Plan("x".to_owned()), ErrorKind::BadQuery),
            (wrapped(DataFusionError::Plan("x".to_owned())), ErrorKind::BadQuery),
            (DataFusionError::ResourcesExhausted("x".to_owned()), ErrorKind::Memory),
            (wrapped(external(QueryError::refused("x"))), ErrorKind::Refused),
            (DataFusionError::Internal("x".to_owned()), ErrorKind::Internal),
            (
                DataFusionError::ParquetError(Box::new(parquet::errors::ParquetError::EOF("x".to_owned()))),
                ErrorKind::Internal,
            ),
            (DataFusionError::Collection(vec![DataFusionError::ResourcesExhausted("x".to_owned())]), ErrorKind::Memory),
        ] {
            assert_eq!(QueryError::from(error).kind, kind);
        }
    }
}
