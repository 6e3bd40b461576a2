//! Which attribute keys a table's rows have, with their types and most frequent values, from a sample of recent rows.
//!
//! The sample is a query like any other, under the same limits: at most [`SAMPLE_ROWS`] rows of the newest segments and
//! of memory. Counts are exact for the sample, and for the table when the sample says it is complete. Not here: the
//! kinds that decide a key's SQL type, which cover every row and not just the sample.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::datatypes::{DataType, Int32Type};
use model::attributes::{AttributesView, Kind};
use model::context::Context;
use model::signal::Table;
use model::tenant::TenantId;
use model::value::Value;

use super::Catalog;
use crate::engine::{Engine, Limits};
use crate::error::{ErrorKind, QueryError};
use crate::functions::{Functions, attribute_type, is_container};
use crate::provider::ScanCounters;
use crate::source::TableSnapshot;
use crate::tables::Tables;

/// Rows of a sample. Enough to see a key that one row in a thousand has; read in a tenth of a second.
pub const SAMPLE_ROWS: u64 = 50_000;

/// Keys told apart. Past these somebody puts data into keys; the report says how many rows had others.
pub const KEYS_MAX: usize = 500;

/// Distinct values told apart per key. Past these a key is an id, and its values are not worth listing.
pub const DISTINCT_MAX: usize = 1_000;

/// Characters of a value that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// What to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributesQuestion {
    /// A table's name, as in SQL.
    pub table: String,
    /// The column that holds the attributes.
    pub container: String,
    /// How keys begin; empty for all of them.
    pub prefix: String,
    /// Keys to report at most, the most frequent first.
    pub keys: usize,
    /// Values to report per key at most, the most frequent first.
    pub values: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributesReport {
    /// Rows looked at.
    pub sampled_rows: u64,
    /// Rows the table has; `None` when it is computed from another one.
    pub total_rows: Option<u64>,
    /// From when the sample's rows are, nanoseconds since the epoch; `None` when it was not narrowed.
    pub since: Option<i64>,
    /// Keys that begin as asked, over [`KEYS_MAX`] not counted.
    pub keys_total: usize,
    /// Occurrences of keys that were not told apart any more.
    pub others: u64,
    /// The keys, the most frequent first.
    pub keys: Vec<KeyReport>,
}

impl AttributesReport {
    /// Whether the sample is the whole table, so that every count is exact.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.since.is_none()
            && self.total_rows.map_or(self.sampled_rows < SAMPLE_ROWS, |rows| rows == self.sampled_rows)
    }
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// The key.
    pub key: String,
    /// The type that `container['key']` has in SQL now.
    pub data_type: DataType,
    /// Sampled rows that have it.
    pub rows: u64,
    /// Distinct values; at least so many when `distinct_exact` is false.
    pub distinct: usize,
    /// Whether all values were told apart.
    pub distinct_exact: bool,
    /// The most frequent values, as JSON, with the rows that have them. When not all values were told apart, they are
    /// the most frequent of those that came first.
    pub values: Vec<(String, u64)>,
}

#[derive(Default)]
struct Counted {
    rows: u64,
    /// By hash, so that a long value costs no memory; what is shown of it, and its rows.
    values: HashMap<u64, (String, u64)>,
    overflowed: bool,
}

/// Counts keys and values.
struct Counter<'a> {
    prefix: &'a str,
    hasher: RandomState,
    keys: HashMap<String, Counted>,
    others: u64,
    rows: u64,
    shown: String,
}

impl<'a> Counter<'a> {
    fn new(prefix: &'a str) -> Self {
        let hasher = RandomState::new();
        Self { prefix, hasher, keys: HashMap::new(), others: 0, rows: 0, shown: String::new() }
    }

    fn column(&mut self, column: &ArrayRef) {
        self.rows += column.len() as u64;
        if let Some(view) = AttributesView::new(column.as_ref()) {
            // Of duplicate keys the last one counts, as it does in SQL.
            let counts: Vec<Vec<bool>> =
                view.shapes().iter().map(|shape| last_of_each(shape.iter().map(|entry| entry.key.as_str()))).collect();
            for row in 0..view.len() {
                let Some(shape) = view.shape_of(row) else { continue };
                for ((key, kind, value), counts) in view.row(row).zip(&counts[shape]) {
                    if *counts && !matches!(kind, Kind::Absent) {
                        self.value(key, &value, 1);
                    }
                }
            }
            return;
        }
        // Contexts repeat: each is read once, and counted for the rows that have it.
        let Some(dictionary) = column.as_dictionary_opt::<Int32Type>() else { return };
        let Some(contexts) = dictionary.values().as_binary_opt::<i32>() else { return };
        let mut rows = vec![0_u64; contexts.len()];
        for key in dictionary.keys_iter().flatten() {
            rows[key] += 1;
        }
        for (bytes, rows) in contexts.iter().zip(rows).filter(|(_, rows)| *rows > 0) {
            let Some(context) = bytes.and_then(Context::parse) else { continue };
            let entries: Vec<_> = context.attributes().collect();
            let counts = last_of_each(entries.iter().map(|entry| entry.key));
            for (entry, _) in entries.iter().zip(counts).filter(|(_, counts)| *counts) {
                self.value(entry.key, &entry.parsed(), rows);
            }
        }
    }

    fn value(&mut self, key: &str, value: &Value<'_>, rows: u64) {
        if !key.starts_with(self.prefix) {
            return;
        }
        let known = self.keys.len();
        let counted = match self.keys.get_mut(key) {
            Some(counted) => counted,
            None if known < KEYS_MAX => self.keys.entry(key.to_owned()).or_default(),
            None => {
                self.others += rows;
                return;
            }
        };
        counted.rows += rows;
        self.shown.clear();
        value.write_json(&mut self.shown);
        let hash = self.hasher.hash_one(&self.shown);
        let distinct = counted.values.len();
        match counted.values.get_mut(&hash) {
            Some((_, count)) => *count += rows,
            None if distinct < DISTINCT_MAX => {
                counted.values.insert(hash, (shown(&self.shown), rows));
            }
            None => counted.overflowed = true,
        }
    }

    fn report(self, keys_max: usize, values_max: usize) -> Vec<KeyReport> {
        let mut keys: Vec<(String, Counted)> = self.keys.into_iter().collect();
        // By name among equals, so that the same rows give the same report.
        keys.sort_unstable_by(|(a_key, a), (b_key, b)| b.rows.cmp(&a.rows).then_with(|| a_key.cmp(b_key)));
        keys.truncate(keys_max);
        let report = |(key, counted): (String, Counted)| {
            let distinct = counted.values.len();
            let mut values: Vec<(String, u64)> = counted.values.into_values().collect();
            values.sort_unstable_by(|(a_text, a), (b_text, b)| b.cmp(a).then_with(|| a_text.cmp(b_text)));
            values.truncate(values_max);
            let data_type = DataType::Utf8;
            KeyReport { key, data_type, rows: counted.rows, distinct, distinct_exact: !counted.overflowed, values }
        };
        keys.into_iter().map(report).collect()
    }
}

/// For each key whether it comes up no more after.
fn last_of_each<'a>(keys: impl DoubleEndedIterator<Item = &'a str>) -> Vec<bool> {
    let mut later = std::collections::HashSet::new();
    let mut last: Vec<bool> = keys.rev().map(|key| later.insert(key)).collect();
    last.reverse();
    last
}

/// What is shown of a value: its JSON; for a long one, as JSON text, how that begins.
fn shown(json: &str) -> String {
    match json.char_indices().nth(SHOWN_CHARS_MAX) {
        None => json.to_owned(),
        Some((end, _)) => {
            let mut out = String::new();
            model::value::write_json_string(&format!("{}…", json[..end].trim_start_matches('"')), &mut out);
            out
        }
    }
}

/// From when on a table's rows make a sample of about so many; `None` when all of them do.
fn since(table: Table, rows: &TableSnapshot, wanted: u64) -> Option<i64> {
    let stored = super::Stored::of(table, rows);
    if stored.rows <= wanted {
        return None;
    }
    let memory = TableSnapshot { segments: Vec::new(), memory: rows.memory.clone() };
    let memory = super::Stored::of(table, &memory);
    let (mut taken, mut since) = (memory.rows, memory.times.map_or(i64::MAX, |(from, _)| from));
    let mut newest_first: Vec<_> = rows.segments.iter().collect();
    newest_first.sort_unstable_by_key(|segment| std::cmp::Reverse((segment.max_time, segment.id)));
    for segment in newest_first {
        if taken >= wanted {
            break;
        }
        taken += segment.rows;
        since = since.min(segment.min_time);
    }
    Some(since)
}

impl Engine {
    /// Which attribute keys a table's recent rows have.
    ///
    /// # Errors
    /// [`QueryError`] when there is no such table or container, and for what any query fails for.
    pub async fn attributes(
        &self,
        tenant: &TenantId,
        question: &AttributesQuestion,
        limits: Limits,
    ) -> Result<AttributesReport, QueryError> {
        let plan = self.plan_sample(tenant, question).await?;
        let (table, container) = (&question.table, &question.container);
        let when = match (plan.since, plan.time_column) {
            (Some(since), Some(column)) => {
                let mut time = String::new();
                crate::render::write_time(since, &mut time);
                format!(" WHERE {column} >= '{time}'")
            }
            _ => String::new(),
        };
        // Both names were found among the tables and columns there are.
        let sql = format!("SELECT {container} FROM {table}{when} LIMIT {SAMPLE_ROWS}");
        let mut output = self.query(tenant, &sql, Limits { rows_max: SAMPLE_ROWS, ..limits }).await?;
        let mut counter = Counter::new(&question.prefix);
        while let Some(batch) = output.next().await {
            counter.column(batch?.column(0));
        }
        let (sampled_rows, others, keys_total) = (counter.rows, counter.others, counter.keys.len());
        let mut keys = counter.report(question.keys, question.values);
        let names = keys.iter().map(|key| key.key.clone()).collect();
        let found = self.attribute_types(tenant, question, names).await?;
        for (key, data_type) in keys.iter_mut().zip(found) {
            key.data_type = data_type;
        }
        Ok(AttributesReport { sampled_rows, total_rows: plan.total_rows, since: plan.since, keys_total, others, keys })
    }

    async fn plan_sample(&self, tenant: &TenantId, question: &AttributesQuestion) -> Result<Sample, QueryError> {
        let (tenant, question, engine) = (tenant.clone(), question.clone(), Arc::clone(&self.inner));
        self.on_query_thread(&tenant.clone(), async move {
            let snapshot = engine.snapshot(&tenant, false, Limits::default()).await?;
            // The views over spans have its rows' attributes, several a row: what is recent is the same.
            let stored = match question.table.as_str() {
                "span_events" | "span_links" => Table::Spans,
                name => Table::from_name(name).unwrap_or(Table::Spans),
            };
            let is_view = Table::from_name(&question.table).is_none();
            let (rows, is_remote) = (snapshot.table(stored).clone(), snapshot.reach.is_some());
            let functions = Functions::new(&snapshot.kinds);
            let (source, counters) = (Arc::clone(&engine.source), Arc::new(ScanCounters::default()));
            let offered = engine.offered.clone();
            let catalog = Catalog::new(Arc::new(Tables::new(tenant, snapshot, source, functions, counters, offered)));
            check(&catalog, &question)?;
            let since = since(stored, &rows, SAMPLE_ROWS);
            let time_column = if is_view { "span_start_time" } else { stored.time_column() };
            let total_rows = (!is_view && !is_remote).then(|| super::Stored::of(stored, &rows).rows);
            Ok(Sample { since, time_column: Some(time_column), total_rows })
        })
        .await
    }

    /// The types that keys have in SQL, in the order of the keys.
    async fn attribute_types(
        &self,
        tenant: &TenantId,
        question: &AttributesQuestion,
        keys: Vec<String>,
    ) -> Result<Vec<DataType>, QueryError> {
        let (tenant, question, engine) = (tenant.clone(), question.clone(), Arc::clone(&self.inner));
        self.on_query_thread(&tenant.clone(), async move {
            let snapshot = engine.snapshot(&tenant, false, Limits::default()).await?;
            let kinds = Arc::clone(&snapshot.kinds);
            let functions = Functions::new(&kinds);
            let (source, counters) = (Arc::clone(&engine.source), Arc::new(ScanCounters::default()));
            let tables = Tables::new(tenant, snapshot, source, functions, counters, engine.offered.clone());
            let schema = tables.schema_of(&question.table)?;
            let field = schema.and_then(|schema| schema.field_with_name(&question.container).ok().cloned());
            let types = keys
                .iter()
                .map(|key| field.as_ref().map_or(DataType::Utf8, |field| attribute_type(&kinds, field, key)));
            Ok(types.collect())
        })
        .await
    }
}

struct Sample {
    since: Option<i64>,
    time_column: Option<&'static str>,
    total_rows: Option<u64>,
}

/// Whether the table and its column are there.
fn check(catalog: &Catalog, question: &AttributesQuestion) -> Result<(), QueryError> {
    let bad = |message: String, hint: String| Err(QueryError::new(ErrorKind::BadQuery, message).hint(hint));
    let tables = catalog.tables()?;
    let Some(table) = tables.iter().find(|table| table.name == question.table) else {
        let name: String = question.table.chars().take(64).collect();
        return bad(
            format!("there is no table `{}`", name.escape_default()),
            format!("tables are {}", catalog.tables.names().join(", ")),
        );
    };
    // Nobody counts what keys the texts of an offered table have.
    let is_offered = catalog.tables.offered().get(table.name).is_some();
    let containers: Vec<&str> = table
        .columns
        .iter()
        .filter(|column| !is_offered && is_container(&column.data_type))
        .map(|column| column.name.as_str())
        .collect();
    if containers.contains(&question.container.as_str()) {
        return Ok(());
    }
    let name: String = question.container.chars().take(64).collect();
    let hint = match &containers[..] {
        [] => "this table has none".to_owned(),
        names => format!("containers of {} are {}", table.name, names.join(", ")),
    };
    bad(format!("`{}` is no container of attributes of {}", name.escape_default(), table.name), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{attributes, contexts};
    use model::context::ContextKind;

    fn counted(columns: &[ArrayRef], prefix: &str) -> Vec<KeyReport> {
        let mut counter = Counter::new(prefix);
        columns.iter().for_each(|column| counter.column(column));
        counter.report(10, 3)
    }

    #[test]
    fn keys_and_values_are_counted() {
        let column = attributes(&[
            &[("http.route", Value::String("/a")), ("http.status", Value::Int(200))],
            &[("http.route", Value::String("/b")), ("db.system", Value::String("pg"))],
            &[("http.route", Value::String("/a")), ("http.ratio", Value::Double(0.5))],
        ]);
        let found = counted(&[Arc::clone(&column), column], "http.");
        let shown: Vec<_> =
            found.iter().map(|key| (key.key.as_str(), key.rows, key.distinct, &key.values[..])).collect();
        let value = |text: &str, rows: u64| (text.to_owned(), rows);
        assert_eq!(
            shown,
            [
                ("http.route", 6, 2, &[value("\"/a\"", 4), value("\"/b\"", 2)][..]),
                ("http.ratio", 2, 1, &[value("0.5", 2)][..]),
                ("http.status", 2, 1, &[value("200", 2)][..]),
            ]
        );
        let resources = contexts(ContextKind::Resource, &[("", &[("host", "x")]), ("", &[("host", "x")])], "");
        assert_eq!(counted(&[resources], "")[0].rows, 2);
    }

    #[test]
    fn what_is_too_much_is_bounded_and_said() {
        let ids: Vec<String> = (0..DISTINCT_MAX as u64 + 5).map(|id| format!("id-{id}")).collect();
        let rows: Vec<Vec<(&str, Value<'_>)>> = ids.iter().map(|id| vec![("id", Value::String(id))]).collect();
        let rows: Vec<&[(&str, Value<'_>)]> = rows.iter().map(|row| &row[..]).collect();
        let found = counted(&[attributes(&rows)], "");
        assert_eq!((found[0].rows, found[0].distinct, found[0].distinct_exact), (1_005, DISTINCT_MAX, false));

        let mut counter = Counter::new("");
        let keys: Vec<String> = (0..KEYS_MAX as u64 + 7).map(|key| format!("key-{key}")).collect();
        for key in &keys {
            counter.value(key, &Value::Bool(true), 2);
        }
        assert_eq!((counter.keys.len(), counter.others), (KEYS_MAX, 14));

        let long = shown(&format!("\"{}\"", "é".repeat(1_000)));
        assert!(long.chars().count() <= SHOWN_CHARS_MAX + 3 && long.ends_with("…\""), "{long}");
        assert!(serde_json_parses(&long));
    }

    fn serde_json_parses(text: &str) -> bool {
        text.starts_with('"') && text.ends_with('"') && !text[1..text.len() - 1].contains('"')
    }
}
