//! `span_metrics`: spans counted by interval, service, name, kind, status, environment and version.
//!
//! A pure fold over batches. Not here: where batches come from, and what becomes of the rows.

use arrow::array::{ArrayRef, RecordBatch};
use hashbrown::HashTable;
use model::derived::{DerivedTable, schema};
use model::durations::bucket;

use super::columns::{Cells, Exemplar, exemplars, histograms, key_columns, numbers, optional_numbers};
use super::names::Names;
use super::spans::{Spans, Texts};

/// What tells rows apart. The texts are numbers of [`SpanMetrics::names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    bucket: i32,
    service: u32,
    name: u32,
    kind: u32,
    status: u32,
    environment: u32,
    version: u32,
}

impl Key {
    #[inline]
    fn hash(&self) -> u64 {
        let pairs = [
            (u64::from(self.bucket.cast_unsigned()) << 32) | u64::from(self.service),
            (u64::from(self.name) << 32) | u64::from(self.kind),
            (u64::from(self.status) << 32) | u64::from(self.environment),
            u64::from(self.version),
        ];
        super::mix(0, &pairs)
    }
}

/// What is known of the spans of one key.
#[derive(Debug)]
struct Row {
    key: Key,
    count: i64,
    errors: i64,
    sum: i64,
    min: Option<i64>,
    cells: Cells,
    slowest: Exemplar,
    failed: Exemplar,
}

/// Partial rows of `span_metrics`.
#[derive(Debug, Default)]
pub(super) struct SpanMetrics {
    names: Names,
    rows: Vec<Row>,
    lookup: HashTable<u32>,
}

impl SpanMetrics {
    /// Counts a batch.
    pub(super) fn add(&mut self, spans: &Spans<'_>) {
        let mut numbers =
            |texts: &Texts<'_>| -> Vec<u32> { texts.values().map(|text| self.names.number(text)).collect() };
        let services = numbers(&spans.services);
        let names = numbers(&spans.names);
        let kinds = numbers(&spans.kinds);
        let statuses = numbers(&spans.statuses);
        let resources: Vec<(u32, u32)> = spans
            .resources
            .iter()
            .map(|resource| {
                let environment = self.names.number_of(resource.environment.as_deref());
                (environment, self.names.number_of(resource.version.as_deref()))
            })
            .collect();
        for row in 0..spans.rows {
            let (environment, version) = resources[spans.resource_place(row)];
            let key = Key {
                bucket: spans.bucket(row),
                service: services[spans.services.place(row)],
                name: names[spans.names.place(row)],
                kind: kinds[spans.kinds.place(row)],
                status: statuses[spans.statuses.place(row)],
                environment,
                version,
            };
            let error = spans.is_error(row);
            let into = self.row(key);
            into.count += 1;
            into.errors += i64::from(error);
            let Some(nanos) = spans.duration(row) else { continue };
            into.sum = into.sum.wrapping_add(nanos);
            into.min = Some(into.min.map_or(nanos, |min| min.min(nanos)));
            into.cells.add(bucket(nanos), 1);
            into.slowest.offer(nanos, || spans.trace(row));
            if error {
                into.failed.offer(nanos, || spans.trace(row));
            }
        }
    }

    #[inline]
    fn row(&mut self, key: Key) -> &mut Row {
        let hash = key.hash();
        let rows = &self.rows;
        let found = self.lookup.find(hash, |place| rows[*place as usize].key == key).copied();
        let place = found.unwrap_or_else(|| {
            let place = u32::try_from(self.rows.len()).expect("a memtable has fewer rows than 2^32");
            self.rows.push(Row {
                key,
                count: 0,
                errors: 0,
                sum: 0,
                min: None,
                cells: Cells::default(),
                slowest: Exemplar::default(),
                failed: Exemplar::default(),
            });
            let rows = &self.rows;
            self.lookup.insert_unique(hash, place, |place| rows[*place as usize].key.hash());
            place
        });
        &mut self.rows[place as usize]
    }

    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows, in the schema of `span_metrics`.
    pub(super) fn batch(&self) -> RecordBatch {
        let rows = &self.rows;
        let text = |of: fn(&Key) -> u32| self.names.column(rows.iter().map(|row| of(&row.key)));
        let (resolution, time) = key_columns(rows.iter().map(|row| row.key.bucket));
        let (buckets, counts) = histograms(rows.iter().map(|row| &row.cells));
        let (max, slowest) = exemplars(rows.iter().map(|row| &row.slowest));
        let (error_max, failed) = exemplars(rows.iter().map(|row| &row.failed));
        let columns: Vec<ArrayRef> = vec![
            resolution,
            text(|key| key.kind),
            text(|key| key.service),
            text(|key| key.name),
            text(|key| key.status),
            text(|key| key.environment),
            text(|key| key.version),
            time,
            numbers(rows.iter().map(|row| row.count)),
            numbers(rows.iter().map(|row| row.errors)),
            numbers(rows.iter().map(|row| row.sum)),
            optional_numbers(rows.iter().map(|row| row.min)),
            buckets,
            counts,
            max,
            slowest,
            error_max,
            failed,
        ];
        RecordBatch::try_new(schema(DerivedTable::SpanMetrics), columns).expect("the columns are those of the schema")
    }
}
