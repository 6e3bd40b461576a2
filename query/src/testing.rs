//! Small telemetry for the tests: batches in the model's schemas, in memory and as segments, and
//! a source over them. Not a generator of realistic data; that is the fixtures crate.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StructArray, new_null_array};
use arrow::array::{
    BooleanArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Int32Type, TimestampNanosecondType};
use model::attributes::{AttributesColumn, AttributesView, Kinds, attributes_type};
use model::columns::{DictionaryColumn, FixedColumn};
use model::context::{Context, ContextKind, context_type, encode};
use model::ledger::LedgerLine;
use model::schema::{event_fields, schema};
use model::signal::Table;
use model::tenant::TenantId;
use model::value::Value;
use model::wire::put_bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use crate::source::{Container, ObservedKinds, SegmentFile, Snapshot, Source};

pub(crate) const SECOND: i64 = 1_000_000_000;
/// 2026-03-01T00:00:00Z.
pub(crate) const T0: i64 = 1_772_323_200 * SECOND;

pub(crate) fn texts(values: &[&str]) -> ArrayRef {
    let mut column = DictionaryColumn::default();
    values.iter().for_each(|value| column.push(value.as_bytes()));
    column.finish_utf8()
}

pub(crate) fn times(values: &[i64]) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from(values.to_vec()).with_timezone("UTC"))
}

pub(crate) fn ids<const N: usize>(values: &[Option<[u8; N]>]) -> ArrayRef {
    let mut column = FixedColumn::<N>::default();
    values.iter().for_each(|value| column.push(value.as_ref()));
    column.finish()
}

pub(crate) fn attributes(rows: &[&[(&str, Value<'_>)]]) -> ArrayRef {
    let mut column = AttributesColumn::default();
    for row in rows {
        for (key, value) in *row {
            column.push(key, Some(*value)).unwrap();
        }
        column.end_row();
    }
    column.finish()
}

fn text_attribute(key: &str, text: &str) -> Vec<u8> {
    let (mut value, mut out) = (Vec::new(), Vec::new());
    put_bytes(&mut value, 1, text.as_bytes());
    put_bytes(&mut out, 1, key.as_bytes());
    put_bytes(&mut out, 2, &value);
    out
}

pub(crate) fn contexts(kind: ContextKind, rows: &[(&str, &[(&str, &str)])], schema_url: &str) -> ArrayRef {
    let mut column = DictionaryColumn::default();
    for (name, entries) in rows {
        let mut message = Vec::new();
        let field = if kind == ContextKind::Scope { 3 } else { 1 };
        if kind == ContextKind::Scope {
            put_bytes(&mut message, 1, name.as_bytes());
            put_bytes(&mut message, 2, b"1.2");
        }
        for (key, text) in *entries {
            put_bytes(&mut message, field, &text_attribute(key, text));
        }
        column.push(&encode(kind, &message, schema_url));
    }
    column.finish_binary()
}

/// Events per row: time, name, exception message.
pub(crate) fn events(rows: &[&[(i64, &str, &str)]]) -> ArrayRef {
    let flat: Vec<_> = rows.iter().flat_map(|row| row.iter()).collect();
    let mut inner = AttributesColumn::default();
    for (_, _, message) in &flat {
        inner.push("exception.message", Some(Value::String(message))).unwrap();
        inner.push("retries", Some(Value::Int(2))).unwrap();
        inner.end_row();
    }
    let items = StructArray::new(
        event_fields(),
        vec![
            times(&flat.iter().map(|event| event.0).collect::<Vec<_>>()),
            texts(&flat.iter().map(|event| event.1).collect::<Vec<_>>()),
            inner.finish(),
            Arc::new(UInt32Array::from(vec![0; flat.len()])),
        ],
        None,
    );
    let field = match schema(Table::Spans).field_with_name("events").unwrap().data_type() {
        DataType::List(field) => Arc::clone(field),
        _ => unreachable!("events are a list"),
    };
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(rows.iter().map(|row| row.len())), Arc::new(items), None))
}

fn default_column(data_type: &DataType, nullable: bool, rows: usize) -> ArrayRef {
    if nullable {
        return new_null_array(data_type, rows);
    }
    if *data_type == attributes_type() {
        return attributes(&vec![&[][..]; rows]);
    }
    if *data_type == context_type() {
        return contexts(ContextKind::Resource, &vec![("", &[][..]); rows], "");
    }
    match data_type {
        DataType::Dictionary(..) => texts(&vec![""; rows]),
        DataType::Utf8 => Arc::new(StringArray::from(vec![""; rows])),
        DataType::UInt32 => Arc::new(UInt32Array::from(vec![0; rows])),
        DataType::UInt64 => Arc::new(UInt64Array::from(vec![0; rows])),
        DataType::Int32 => Arc::new(Int32Array::from(vec![0; rows])),
        DataType::Int64 => Arc::new(Int64Array::from(vec![0; rows])),
        DataType::Boolean => Arc::new(BooleanArray::from(vec![false; rows])),
        DataType::Float64 => Arc::new(Float64Array::from(vec![0.0; rows])),
        DataType::Timestamp(..) => times(&vec![T0; rows]),
        DataType::FixedSizeBinary(8) => ids::<8>(&vec![Some([0; 8]); rows]),
        DataType::FixedSizeBinary(_) => ids::<16>(&vec![Some([0; 16]); rows]),
        DataType::List(item) => {
            let items = default_column(item.data_type(), false, 0);
            Arc::new(ListArray::new(Arc::clone(item), OffsetBuffer::from_lengths(vec![0; rows]), items, None))
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().map(|field| default_column(field.data_type(), false, rows)).collect();
            Arc::new(StructArray::new(fields.clone(), columns, None))
        }
        other => unreachable!("no default for {other}"),
    }
}

/// A batch of a table with the given columns; every other column is empty.
pub(crate) fn batch(table: Table, rows: usize, columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let schema = schema(table);
    let arrays = schema.fields().iter().map(|field| {
        columns.iter().find(|(name, _)| name == field.name()).map_or_else(
            || default_column(field.data_type(), field.is_nullable(), rows),
            |(_, array)| Arc::clone(array),
        )
    });
    let arrays = arrays.collect();
    for (name, _) in columns {
        assert!(schema.field_with_name(name).is_ok(), "{table}.{name}");
    }
    RecordBatch::try_new(schema, arrays).unwrap()
}

type KindMap = HashMap<(Table, Container, String), Kinds>;

/// The kinds of every key in some batches.
#[derive(Default)]
pub(crate) struct BatchKinds(KindMap);

impl ObservedKinds for BatchKinds {
    fn kinds(&self, table: Table, container: Container, key: &str) -> Kinds {
        self.0.get(&(table, container, key.to_owned())).copied().unwrap_or_default()
    }
}

impl BatchKinds {
    pub(crate) fn observe(&mut self, table: Table, batch: &RecordBatch) {
        for container in Container::ALL {
            let Some(column) = batch.column_by_name(container.name()) else { continue };
            if container.is_context() {
                let dictionary = column.as_dictionary::<Int32Type>();
                for bytes in dictionary.values().as_binary::<i32>().iter().flatten() {
                    for entry in Context::parse(bytes).unwrap().attributes() {
                        self.add(table, container, entry.key, model::attributes::Kind::of(&entry.parsed()));
                    }
                }
                continue;
            }
            let column = match column.data_type() {
                DataType::List(_) => {
                    Arc::clone(column.as_list::<i32>().values().as_struct().column_by_name("attributes").unwrap())
                }
                _ => Arc::clone(column),
            };
            let view = AttributesView::new(column.as_ref()).unwrap();
            for entry in view.shapes().iter().flatten() {
                self.add(table, container, &entry.key, entry.kind);
            }
        }
    }

    fn add(&mut self, table: Table, container: Container, key: &str, kind: model::attributes::Kind) {
        let kinds = self.0.entry((table, container, key.to_owned())).or_default();
        *kinds = kinds.with(kind);
    }
}

/// A source over batches: some in memory, some written as segments.
pub(crate) struct TestSource {
    folder: tempfile::TempDir,
    state: Mutex<State>,
}

struct State {
    kinds: BatchKinds,
    memory: BTreeMap<Table, Vec<RecordBatch>>,
    segments: BTreeMap<Table, Vec<SegmentFile>>,
    written: HashMap<u64, Vec<u8>>,
    quarantined: BTreeSet<u64>,
    ledger: Vec<LedgerLine>,
    tenant: TenantId,
}

impl TestSource {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            state: Mutex::new(State {
                kinds: BatchKinds::default(),
                memory: BTreeMap::new(),
                segments: BTreeMap::new(),
                written: HashMap::new(),
                quarantined: BTreeSet::new(),
                ledger: Vec::new(),
                tenant: TenantId::default_tenant(),
            }),
        }
    }

    pub(crate) fn memory(&self, table: Table, batch: RecordBatch) {
        let mut state = self.state.lock().unwrap();
        state.kinds.observe(table, &batch);
        state.memory.entry(table).or_default().push(batch);
    }

    /// Writes a batch as a segment; its path.
    pub(crate) fn segment(&self, table: Table, batch: &RecordBatch) -> PathBuf {
        let mut state = self.state.lock().unwrap();
        state.kinds.observe(table, batch);
        let id = state.written.len() as u64 + 1;
        let path = self.folder.path().join(format!("{} {id}.parquet", table.name()));
        write_parquet(&path, batch);
        let written = std::fs::read(&path).unwrap();
        let time = batch.column_by_name(table.time_column()).unwrap();
        let time = time.as_primitive::<TimestampNanosecondType>();
        let segment = SegmentFile {
            id,
            path: path.clone(),
            rows: batch.num_rows() as u64,
            bytes: written.len() as u64,
            min_time: time.values().iter().copied().min().unwrap(),
            max_time: time.values().iter().copied().max().unwrap(),
            filters: false,
            pin: None,
        };
        state.written.insert(id, written);
        state.segments.entry(table).or_default().push(segment);
        path
    }

    pub(crate) fn ledger(&self, lines: Vec<LedgerLine>) {
        self.state.lock().unwrap().ledger = lines;
    }

    pub(crate) fn quarantined(&self) -> Vec<u64> {
        self.state.lock().unwrap().quarantined.iter().copied().collect()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let properties = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_bloom_filter_enabled("trace_id".into(), true)
        .set_max_row_group_row_count(Some(3))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

impl Source for TestSource {
    fn snapshot(&self, tenant: &TenantId) -> Snapshot {
        let state = self.state.lock().unwrap();
        let mut snapshot = Snapshot::new(Arc::new(BatchKinds(state.kinds.0.clone())));
        if *tenant != state.tenant {
            return snapshot;
        }
        for table in Table::ALL {
            let rows = snapshot.table_mut(table);
            rows.memory = state.memory.get(&table).cloned().unwrap_or_default();
            rows.segments = state.segments.get(&table).cloned().unwrap_or_default();
            rows.segments.retain(|segment| !state.quarantined.contains(&segment.id));
        }
        snapshot
    }

    fn ledger(&self, _tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        Ok(self.state.lock().unwrap().ledger.clone())
    }

    fn verify(&self, segment: &SegmentFile) -> Result<(), String> {
        let now = std::fs::read(&segment.path).map_err(|error| error.to_string())?;
        if now != self.state.lock().unwrap().written[&segment.id] {
            return Err("checksum mismatch".to_owned());
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&segment.path).unwrap());
        reader.map(drop).map_err(|error| error.to_string())
    }

    fn quarantine(&self, segment: &SegmentFile, _why: &str) -> Result<(), String> {
        self.state.lock().unwrap().quarantined.insert(segment.id);
        Ok(())
    }
}
