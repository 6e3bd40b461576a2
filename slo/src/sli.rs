//! What an SLI counts: which rows, and how many good (or bad) events and events in all each one is.
//!
//! An OpenSLO `metricSource` is read into a [`Source`]; the role it plays (good, bad, total, raw,
//! threshold) makes terms of it, and a numerator with a total is an [`Indicator`]. Two SLOs with equal
//! indicators share one series of counts: [`Indicator::key`] names it. Not here: counting
//! ([`crate::matcher`]) and running SQL.

use std::fmt;

use model::signal::Table;
use xxhash_rust::xxh3::xxh3_64;

use crate::document::{Fields, Node};
use crate::duration::prometheus_ms;
use crate::filter::{Column, Filter, Literal, Op, Test, named_columns, parse_column};
use crate::report::{Findings, Place, quote};

/// How many events one point of a raw ratio stands for: ratios are kept as millionths, in integers (I9).
pub const RATIO_SCALE: u64 = 1_000_000;

/// The tables that SLIs count.
const TABLES: [Table; 4] = [Table::Spans, Table::Logs, Table::MetricPoints, Table::MetricHistograms];
const TABLE_NAMES: [&str; 4] = ["spans", "logs", "metric_points", "metric_histograms"];

/// Whether a numerator counts good or bad events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Good ones.
    Good,
    /// Bad ones.
    Bad,
}

/// How many events one row is.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Measure {
    /// One.
    One,
    /// Its number, rounded down. A cumulative point of a counter is what its series grew by.
    Sum {
        /// Whether a series without a temporality only grows, too (OpenSLO's `counter`).
        counter: bool,
    },
    /// One when its number stands so to a literal, else none. Of SQL rows: of tables it is a filter.
    Compare(Op, f64),
    /// Its number, a ratio of 0 to 1, in units of [`RATIO_SCALE`].
    Ratio,
    /// [`RATIO_SCALE`].
    RatioTotal,
    /// The observations of a histogram.
    Observations,
    /// The observations of a histogram in buckets that end at a bound or below.
    ObservationsAtMost(f64),
}

/// Rows of one kind and what each counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// Rows of a table, taken from batches as they are committed.
    Rows {
        /// The table.
        table: Table,
        /// Which rows.
        filter: Filter,
        /// How many events each is.
        measure: Measure,
    },
    /// Rows of a query, which is asked again and again.
    Sql {
        /// A SELECT of `time` and `value`, with `$from` and `$to`.
        query: String,
        /// How many events each row is.
        measure: Measure,
    },
}

/// An SLI ready to be counted: a numerator over a total.
#[derive(Clone, Debug, PartialEq)]
pub struct Indicator {
    /// What the numerator counts.
    pub part: Part,
    /// Good or bad events.
    pub numerator: Term,
    /// All events.
    pub total: Term,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("rows"),
            Self::Sum { counter: true } => f.write_str("sum of counter"),
            Self::Sum { counter: false } => f.write_str("sum"),
            Self::Compare(op, value) => write!(f, "rows with value {} {value:?}", op.symbol()),
            Self::Ratio => f.write_str("ratio"),
            Self::RatioTotal => f.write_str("ratio total"),
            Self::Observations => f.write_str("observations"),
            Self::ObservationsAtMost(bound) => write!(f, "observations <= {bound:?}"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows { table, filter, measure } => write!(f, "{measure} of {table} where {filter}"),
            Self::Sql { query, measure } => write!(f, "{measure} of query {}", query.trim()),
        }
    }
}

impl fmt::Display for Indicator {
    /// What it counts, in words that mean the same in every release: [`Indicator::key`] hashes them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Good => "good",
            Part::Bad => "bad",
        };
        write!(f, "{part}: {}; total: {}", self.numerator, self.total)
    }
}

impl Indicator {
    /// The name of its series of counts: equal indicators have equal names, and a changed one a new name.
    #[must_use]
    pub fn key(&self) -> u64 {
        xxh3_64(self.to_string().as_bytes())
    }

    /// The table's rows that an SLO over a table is about: the filter of its total.
    #[must_use]
    pub const fn base(&self) -> Option<(Table, &Filter)> {
        match &self.total {
            Term::Rows { table, filter, .. } => Some((*table, filter)),
            Term::Sql { .. } => None,
        }
    }

    /// SQL for what of the base rows is bad: `slo explain` groups these rows by their attributes.
    #[must_use]
    pub fn bad_rows_sql(&self) -> Option<String> {
        let Term::Rows { table, filter: base, .. } = &self.total else { return None };
        let Term::Rows { filter, .. } = &self.numerator else { return None };
        let not = if self.part == Part::Good { "NOT coalesce" } else { "coalesce" };
        Some(format!("SELECT * FROM {table} WHERE ({base}) AND {not}(({filter}), false)"))
    }
}

/// What a `metricSource` says, before it plays a role.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Rows(RowSource),
    Sql(String),
}

#[derive(Clone, Debug)]
pub(crate) struct RowSource {
    at: Place,
    table: Table,
    filter: Filter,
    value: Option<Column>,
    /// What a threshold is multiplied with to stand in the unit of its column.
    scale: i64,
    at_most: Option<f64>,
}

impl Source {
    /// Reads the `spec` of a `metricSource` of type `godseye`.
    pub(crate) fn read(owner: &str, node: &Node, findings: &mut Findings) -> Option<Self> {
        let before = findings.len();
        let mut fields = Fields::new(owner, node, findings)?;
        if let Some((at, query)) = fields.text("query", findings) {
            if !query.contains("$from") || !query.contains("$to") {
                let help =
                    "limit it with `$from` and `$to`: SELECT time, value FROM ... WHERE time >= $from AND time < $to";
                findings.add(at, "the query reads everything every time", help);
            }
            fields.finish(findings);
            return (findings.len() == before).then(|| Self::Sql(query.to_owned()));
        }
        let table = match fields.node("table") {
            None => {
                findings.add(
                    node.at,
                    format!("{owner} has no `table`"),
                    "write `table: spans`, logs, metric_points or metric_histograms, or a SQL `query`",
                );
                None
            }
            Some(_) => fields.choice("table", &TABLE_NAMES, findings).map(|index| TABLES[index]),
        };
        // The other fields are read as those of some table, so that everything wrong is told at once.
        let table = table.unwrap_or(Table::Spans);
        let mut filter = Filter::All(Vec::new());
        let is = |column: &'static str, text: &str| {
            Filter::Atom(Column::Named(column), Test::In(vec![Literal::Text(text.to_owned())]))
        };
        if let Some((_, service)) = fields.text("service", findings) {
            filter = filter.and(is("service_name", service));
        }
        if let Some((at, metric)) = fields.text("metric", findings) {
            if named_columns(table).contains(&"metric_name") {
                filter = filter.and(is("metric_name", metric));
            } else {
                findings.add(
                    at,
                    format!("{table} has no metrics"),
                    "remove `metric`, or read metric_points or metric_histograms",
                );
            }
        }
        if let Some((at, text)) = fields.text("where", findings) {
            match Filter::parse(table, text) {
                Ok(condition) => filter = filter.and(condition),
                Err(error) => findings.add(at, error, "the condition is that of a SQL WHERE"),
            }
        }
        if let Some((at, text)) = fields.text("latency", findings) {
            match prometheus_ms(text).and_then(|ms| ms.checked_mul(1_000_000)) {
                _ if table != Table::Spans => {
                    findings.add(at, format!("{table} has no latency"), "remove `latency`, or read spans");
                }
                Some(nanos) if nanos > 0 => {
                    let test = Test::Compare(Op::AtMost, Literal::Int(nanos));
                    filter = filter.and(Filter::Atom(Column::Named("duration_ns"), test));
                }
                _ => findings.add(at, format!("`latency` is {}", quote(text)), "write a duration such as 300ms"),
            }
        }
        let value = fields.text("value", findings).and_then(|(at, text)| {
            parse_column(table, text)
                .map_err(|error| findings.add(at, error, "`value` is the column that a threshold is about"))
                .ok()
        });
        let scale = match fields.choice("unit", &["ns", "us", "ms", "s"], findings) {
            Some(0) | None => 1,
            Some(1) => 1_000,
            Some(2) => 1_000_000,
            Some(_) => 1_000_000_000,
        };
        let at_most = fields.number("atMost", findings);
        if let (Some((at, _)), true) = (at_most, table != Table::MetricHistograms) {
            findings.add(at, format!("{table} has no histogram"), "remove `atMost`, or read metric_histograms");
        }
        fields.finish(findings);
        let at_most = at_most.map(|(_, bound)| bound);
        let source = RowSource { at: node.at, table, filter, value, scale, at_most };
        (findings.len() == before).then_some(Self::Rows(source))
    }

    /// The term of a source that is `good`, `bad` or `total` of a ratio.
    pub(crate) fn counted(&self, counter: bool) -> Term {
        match self {
            Self::Sql(query) => Term::Sql { query: query.clone(), measure: Measure::Sum { counter: false } },
            Self::Rows(source) => {
                let measure = match (source.table, source.at_most) {
                    (Table::MetricPoints, _) => Measure::Sum { counter },
                    (Table::MetricHistograms, None) => Measure::Observations,
                    (Table::MetricHistograms, Some(bound)) => Measure::ObservationsAtMost(bound),
                    _ => Measure::One,
                };
                Term::Rows { table: source.table, filter: source.filter.clone(), measure }
            }
        }
    }

    /// The indicator of a ratio that was computed elsewhere.
    pub(crate) fn raw(&self, part: Part, findings: &mut Findings) -> Option<Indicator> {
        let term = |measure| match self {
            Self::Sql(query) => Some(Term::Sql { query: query.clone(), measure }),
            Self::Rows(source) if source.table == Table::MetricPoints => {
                Some(Term::Rows { table: source.table, filter: source.filter.clone(), measure })
            }
            Self::Rows(_) => None,
        };
        let (Some(numerator), Some(total)) = (term(Measure::Ratio), term(Measure::RatioTotal)) else {
            if let Self::Rows(source) = self {
                findings.add(
                    source.at,
                    format!("rows of {} hold no ratio", source.table),
                    "read `raw` from metric_points or with a SQL query",
                );
            }
            return None;
        };
        Some(Indicator { part, numerator, total })
    }

    /// The indicator of a threshold: a row, or an observation of a histogram, is good when its value
    /// stands so to the threshold.
    pub(crate) fn threshold(&self, op: Op, value: f64, findings: &mut Findings) -> Option<Indicator> {
        let source = match self {
            Self::Sql(query) => {
                let term = |measure| Term::Sql { query: query.clone(), measure };
                let numerator = term(Measure::Compare(op, value));
                return Some(Indicator { part: Part::Good, numerator, total: term(Measure::One) });
            }
            Self::Rows(source) => source,
        };
        let rows = |filter, measure| Term::Rows { table: source.table, filter, measure };
        if source.table == Table::MetricHistograms {
            let part = if matches!(op, Op::Less | Op::AtMost) { Part::Good } else { Part::Bad };
            let numerator = rows(source.filter.clone(), Measure::ObservationsAtMost(value));
            return Some(Indicator { part, numerator, total: rows(source.filter.clone(), Measure::Observations) });
        }
        let column = match (&source.value, source.table) {
            (Some(column), _) => column.clone(),
            (None, Table::Spans) => Column::Named("duration_ns"),
            (None, Table::MetricPoints) => Column::PointValue,
            (None, _) => {
                findings.add(
                    source.at,
                    "it is not said what the threshold is about",
                    "write `value: COLUMN`, for example attributes['size']",
                );
                return None;
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "a scale is at most 10^9")]
        let literal = Literal::Double(value * source.scale as f64);
        let present = Filter::Not(Box::new(Filter::Atom(column.clone(), Test::IsNull)));
        let good = Filter::Atom(column, Test::Compare(op, literal));
        Some(Indicator {
            part: Part::Good,
            numerator: rows(source.filter.clone().and(good), Measure::One),
            total: rows(source.filter.clone().and(present), Measure::One),
        })
    }
}

/// A numerator and a total. Of rows of one table that are events themselves, only those of the total
/// can be good or bad.
pub(crate) fn ratio(part: Part, numerator: Term, total: Term) -> Indicator {
    let numerator = match (numerator, &total) {
        (
            Term::Rows { table, filter, measure: Measure::One },
            Term::Rows { table: of, filter: base, measure: Measure::One },
        ) if table == *of && filter != *base => {
            Term::Rows { table, filter: base.clone().and(filter), measure: Measure::One }
        }
        (numerator, _) => numerator,
    };
    Indicator { part, numerator, total }
}
