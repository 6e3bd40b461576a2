//! The four OTLP signals and the tables their items are stored in.
//!
//! Not here: views that are computed at query time (`span_events`, `span_links`, `ingest_ledger`).

use std::fmt;

/// An OTLP signal. The number is stored (WAL, manifest) and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Signal {
    /// Spans.
    Traces = 1,
    /// Metric data points.
    Metrics = 2,
    /// Log records.
    Logs = 3,
    /// Profile samples (OTLP `v1development`).
    Profiles = 4,
}

impl Signal {
    /// Every signal, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Traces, Self::Metrics, Self::Logs, Self::Profiles];

    /// The lower-case name used in paths, configuration, metrics and SQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::Profiles => "profiles",
        }
    }

    /// The inverse of [`Signal::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    /// The inverse of `self as u8`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| *signal as u8 == number)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A stored table of telemetry. The number is stored (WAL, manifest) and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// One row per span.
    Spans = 1,
    /// One row per log record.
    Logs = 2,
    /// One row per number data point (gauge, sum).
    MetricPoints = 3,
    /// One row per explicit histogram, exponential histogram or summary data point.
    MetricHistograms = 4,
    /// One row per profile sample.
    Profiles = 5,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Spans, Self::Logs, Self::MetricPoints, Self::MetricHistograms, Self::Profiles];

    /// How many tables there are; arrays indexed by [`Table::index`] have this length.
    pub const COUNT: usize = Self::ALL.len();

    /// The name people type in SQL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "logs",
            Self::MetricPoints => "metric_points",
            Self::MetricHistograms => "metric_histograms",
            Self::Profiles => "profiles",
        }
    }

    /// The inverse of [`Table::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The inverse of `self as u8`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    /// A dense index, 0 to [`Table::COUNT`] − 1.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The signal whose items this table holds: it decides retention and the ledger line.
    #[must_use]
    pub const fn signal(self) -> Signal {
        match self {
            Self::Spans => Signal::Traces,
            Self::Logs => Signal::Logs,
            Self::MetricPoints | Self::MetricHistograms => Signal::Metrics,
            Self::Profiles => Signal::Profiles,
        }
    }

    /// The column that says when the row's event happened: pruning and retention go by it.
    #[must_use]
    pub const fn time_column(self) -> &'static str {
        match self {
            Self::Spans => "start_time",
            Self::Logs | Self::MetricPoints | Self::MetricHistograms | Self::Profiles => "time",
        }
    }

    /// The columns a segment is sorted by, most significant first (see the store's README).
    #[must_use]
    pub const fn sort_columns(self) -> &'static [&'static str] {
        match self {
            Self::Spans => &["service_name", "start_time"],
            Self::Logs | Self::Profiles => &["service_name", "time"],
            Self::MetricPoints | Self::MetricHistograms => &["metric_name", "series_id", "time"],
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for signal in Signal::ALL {
            assert_eq!(Signal::from_name(signal.name()), Some(signal));
            assert_eq!(Signal::from_u8(signal as u8), Some(signal));
        }
        for (index, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(Table::from_name(table.name()), Some(table));
            assert_eq!(Table::from_u8(table as u8), Some(table));
            assert_eq!(table.index(), index);
        }
        assert_eq!(Table::from_u8(0), None);
        assert_eq!(Signal::from_name("spans"), None);
    }
}
