//! The tables that are derived from spans: what a row of theirs is, and its physical Arrow schema.
//!
//! A stored row is a *partial*: several may have the same key, and their sum is the row that people
//! see. Every measure can be added up ([`Measure`]), so partials of different flushes, late ones
//! included, merge exactly and in any order. Not here: how partials are made and kept (the store),
//! and the columns that SQL shows (the query crate).
//!
//! Rows also exist for longer intervals than [`BUCKET_NS`]: a segment holds, beside its rows, their
//! sums over each of [`RESOLUTIONS_S`], so that a question about a day need not read 8640 buckets.
//!
//! A version is never migrated: a segment of another [`RULES_VERSION`] is made anew from spans.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::schema::{text_dictionary_type, time_type};

/// The version of the rules by which rows are derived, of the schemas below, and of the duration
/// histogram. Raise it with any change to one of them: stored rows are derived anew then.
pub const RULES_VERSION: u32 = 2;

/// The interval of a row, nanoseconds.
pub const BUCKET_NS: i64 = 10_000_000_000;

/// The intervals of stored rows in seconds, finest first; each divides the next. Day-long questions
/// read hours, and five-minute rows fill what is left of the first and the last hour.
pub const RESOLUTIONS_S: [i32; 3] = [10, 300, 3600];

/// A table derived from spans. The number is stored (manifest) and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DerivedTable {
    /// Spans counted by service, name, kind, status, environment and version.
    SpanMetrics = 1,
    /// Calls counted by caller and callee.
    ServiceEdges = 2,
}

/// What is done with a column of rows that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Whole numbers are added; they wrap, as SQL's `sum` does. A negative one takes back.
    Sum(&'static str),
    /// The least that is known.
    Min(&'static str),
    /// A sparse histogram: counts by bucket ([`crate::durations::bucket`]) are added.
    Histogram {
        /// Bucket numbers, ascending.
        buckets: &'static str,
        /// The count of each; never zero.
        counts: &'static str,
    },
    /// The trace of the greatest number, and that number.
    Exemplar {
        /// The number; null when there is none.
        greatest: &'static str,
        /// A trace that had it; null when it is not kept.
        trace_id: &'static str,
    },
}

impl DerivedTable {
    /// Every derived table, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::SpanMetrics, Self::ServiceEdges];

    /// How many there are; arrays indexed by [`DerivedTable::index`] have this length.
    pub const COUNT: usize = Self::ALL.len();

    /// The name people type in SQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpanMetrics => "span_metrics",
            Self::ServiceEdges => "service_edges",
        }
    }

    /// The inverse of [`DerivedTable::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The inverse of `self as u8`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    /// A dense index, 0 to [`DerivedTable::COUNT`] − 1.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The columns that tell rows apart, in the order a segment is sorted by. First is
    /// `resolution`, last `time`, the start of the interval. Second is what questions leave most rows out by: a page
    /// of rows of one kind is read or it is not.
    #[must_use]
    pub const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::SpanMetrics => &[
                "resolution",
                "kind",
                "service_name",
                "span_name",
                "status_code",
                "environment",
                "service_version",
                "time",
            ],
            Self::ServiceEdges => {
                &["resolution", "client", "server", "connection_type", "server_inferred", "environment", "time"]
            }
        }
    }

    /// What the other columns are.
    #[must_use]
    pub const fn measures(self) -> &'static [Measure] {
        const DURATION: Measure = Measure::Histogram { buckets: "duration_buckets", counts: "duration_counts" };
        const SLOWEST: Measure = Measure::Exemplar { greatest: "duration_max_ns", trace_id: "slowest_trace_id" };
        const FAILED: Measure = Measure::Exemplar { greatest: "error_max_ns", trace_id: "error_trace_id" };
        match self {
            Self::SpanMetrics => &[
                Measure::Sum("count"),
                Measure::Sum("errors"),
                Measure::Sum("duration_sum_ns"),
                Measure::Min("duration_min_ns"),
                DURATION,
                SLOWEST,
                FAILED,
            ],
            Self::ServiceEdges => &[
                Measure::Sum("count"),
                Measure::Sum("errors"),
                Measure::Sum("client_errors"),
                Measure::Sum("duration_sum_ns"),
                Measure::Sum("client_duration_sum_ns"),
                DURATION,
                Measure::Histogram { buckets: "client_duration_buckets", counts: "client_duration_counts" },
                SLOWEST,
                FAILED,
            ],
        }
    }
}

impl fmt::Display for DerivedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of a list of bucket numbers.
#[must_use]
pub fn buckets_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Int16, false)))
}

/// The type of a list of counts.
#[must_use]
pub fn counts_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Int64, false)))
}

static SCHEMAS: LazyLock<[SchemaRef; DerivedTable::COUNT]> = LazyLock::new(|| {
    DerivedTable::ALL.map(|table| {
        let required = |name: &str, data_type| Field::new(name, data_type, false);
        let optional = |name: &str, data_type| Field::new(name, data_type, true);
        let mut fields: Vec<Field> = table
            .keys()
            .iter()
            .map(|key| match *key {
                "resolution" => required(key, DataType::Int32),
                "time" => required(key, time_type()),
                "server_inferred" => required(key, DataType::Boolean),
                // Null when the resource does not say.
                "environment" | "service_version" => optional(key, text_dictionary_type()),
                _ => required(key, text_dictionary_type()),
            })
            .collect();
        for measure in table.measures() {
            match measure {
                Measure::Sum(name) => fields.push(required(name, DataType::Int64)),
                Measure::Min(name) => fields.push(optional(name, DataType::Int64)),
                Measure::Histogram { buckets, counts } => {
                    fields.push(required(buckets, buckets_type()));
                    fields.push(required(counts, counts_type()));
                }
                Measure::Exemplar { greatest, trace_id } => {
                    fields.push(optional(greatest, DataType::Int64));
                    fields.push(optional(trace_id, DataType::FixedSizeBinary(16)));
                }
            }
        }
        Arc::new(Schema::new(fields))
    })
});

/// The schema of a derived table.
#[must_use]
pub fn schema(table: DerivedTable) -> SchemaRef {
    Arc::clone(&SCHEMAS[table.index()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for (index, table) in DerivedTable::ALL.into_iter().enumerate() {
            assert_eq!(DerivedTable::from_name(table.name()), Some(table));
            assert_eq!(DerivedTable::from_u8(table as u8), Some(table));
            assert_eq!(table.index(), index);
            assert_eq!((table.keys().first(), table.keys().last()), (Some(&"resolution"), Some(&"time")));
        }
    }

    #[test]
    fn each_resolution_divides_the_next() {
        assert_eq!(i64::from(RESOLUTIONS_S[0]) * 1_000_000_000, BUCKET_NS);
        for pair in RESOLUTIONS_S.windows(2) {
            assert!(pair[1] > pair[0] && pair[1] % pair[0] == 0);
        }
    }
}
