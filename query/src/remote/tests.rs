//! What is written, and what is not and why. Whether it gives the same answers is asked of ClickHouse itself, by the
//! workspace's `tests/clickhouse.rs`.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use model::ledger::LedgerLine;
use model::signal::Table;
use model::tenant::TenantId;

use super::{Remote, RemoteLimits};
use crate::engine::{Engine, EngineConfig, Limits};
use crate::error::{ErrorKind, QueryError};
use crate::source::{SegmentFile, Snapshot, Source};
use crate::testing::BatchKinds;

/// A ClickHouse that knows a few keys and has no rows.
#[derive(Debug)]
struct Fake;

/// The kinds of the keys, as lines of `attribute_shapes`.
fn shapes() -> Bytes {
    let entry = |kind: u8, key: &str| [&[kind, u8::try_from(key.len()).unwrap()], key.as_bytes()].concat();
    let shape = [entry(2, "text"), entry(4, "int"), entry(3, "flag"), entry(5, "double"), entry(2, "mixed")].concat();
    let other = [entry(4, "mixed"), entry(2, "twice"), entry(2, "twice"), entry(6, "bytes")].concat();
    let column = |rows: [&[u8]; 2]| Arc::new(BinaryArray::from_iter_values(rows)) as ArrayRef;
    let columns = vec![column([b"spans", b"spans"]), column([b"attributes", b"attributes"]), column([&shape, &other])];
    let fields = ["table_name", "container", "shape"].map(|name| Field::new(name, DataType::Binary, false));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap();
    let mut out = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    out.write(&batch).unwrap();
    out.into_inner().unwrap().into()
}

impl Remote for Fake {
    fn database(&self) -> &'static str {
        "o`dd"
    }

    fn ask(&self, sql: String, _limits: RemoteLimits) -> BoxStream<'static, Result<Bytes, QueryError>> {
        if sql.contains("attribute_shapes") {
            assert!(sql.contains("tenant = 'acme'"), "{sql}");
            return stream::iter([Ok(shapes())]).boxed();
        }
        stream::iter([Err(QueryError::new(ErrorKind::Unavailable, sql))]).boxed()
    }
}

impl Source for Fake {
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        Some(Arc::new(Self))
    }
    fn snapshot(&self, _tenant: &TenantId) -> Snapshot {
        Snapshot::new(Arc::new(BatchKinds::default()))
    }
    fn ledger(&self, _tenant: &TenantId) -> Result<Vec<LedgerLine>, String> {
        Ok(Vec::new())
    }
    fn verify(&self, _segment: &SegmentFile) -> Result<(), String> {
        Ok(())
    }
    fn quarantine(&self, _segment: &SegmentFile, _why: &str) -> Result<(), String> {
        Ok(())
    }
}

fn engine() -> Engine {
    Engine::new(EngineConfig { threads: 2, ..EngineConfig::default() }, Arc::new(Fake)).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// The plan of a statement, a line each.
fn plan(engine: &Engine, sql: &str) -> String {
    let tenant = TenantId::new("acme").unwrap();
    let limits = Limits { timeout: Duration::from_secs(20), ..Limits::default() };
    let (_, batches, _) = block_on(async {
        engine.query(&tenant, &format!("EXPLAIN {sql}"), limits).await.unwrap().collect().await.unwrap()
    });
    let mut text = String::new();
    for batch in &batches {
        let plans = arrow::compute::cast(batch.column(1), &DataType::Utf8).unwrap();
        let plans: &arrow::array::StringArray = arrow::array::AsArray::as_string(&plans);
        plans.iter().flatten().for_each(|plan| text.push_str(&format!("{plan}\n")));
    }
    text
}

#[test]
fn what_can_be_written_is_one_select_of_the_tenant() {
    let engine = engine();
    for (sql, expected) in [
        ("SELECT count(*) FROM spans", "SELECT count() AS c1 FROM `o\\`dd`.`spans` WHERE tenant = 'acme'"),
        (
            "SELECT name FROM spans WHERE service_name = 'it''s' ORDER BY start_time DESC LIMIT 3",
            "SELECT `name` AS c1 FROM `o\\`dd`.`spans` WHERE tenant = 'acme' AND (`service_name` = 'it\\'s') \
             ORDER BY `start_time` DESC NULLS FIRST LIMIT 3",
        ),
        (
            "SELECT count(*) FROM spans WHERE start_time >= TIMESTAMP '2026-03-01T00:00:00.5Z'",
            "(`start_time` >= toDateTime64('2026-03-01 00:00:00.500000000', 9, 'UTC'))",
        ),
        (
            "SELECT count(*) FROM spans WHERE trace_id = '5b8efff798038103d269b633813fc60c'",
            "(`trace_id` = toFixedString(unhex('5b8efff798038103d269b633813fc60c'), 16))",
        ),
        // A key that is compared with what no absent one reads as needs no other look: skip indexes understand it.
        (
            "SELECT count(*) FROM spans WHERE attributes['text'] = 'v'",
            "tupleElement(`attributes`, 'strings')['text'] = 'v'",
        ),
        ("SELECT count(*) FROM spans WHERE attributes['int'] = 5", "tupleElement(`attributes`, 'ints')['int'] = 5"),
        (
            "SELECT count(*) FROM spans WHERE attributes['text'] = ''",
            "multiIf(mapContains(tupleElement(`attributes`, 'strings'), 'text'), \
             tupleElement(`attributes`, 'strings')['text'], NULL) = '')",
        ),
        (
            "SELECT attributes['mixed'] FROM spans",
            "mapContains(tupleElement(`attributes`, 'ints'), 'mixed'), toString(tupleElement(`attributes`, 'ints')['mixed'])",
        ),
        ("SELECT attributes['never'] FROM spans", "CAST(NULL, 'Nullable(String)') AS c1"),
        ("SELECT count(*) FROM spans WHERE attributes['double'] > 1.5", "> 1.5 OR reinterpretAsInt64(multiIf("),
        ("SELECT count(*) FROM logs WHERE has_token(body, 'declined')", "hasToken(ifNull(`body`, ''), 'declined')"),
        (
            "SELECT time_bucket('1m', start_time) AS t, count(*) FROM spans GROUP BY t",
            "GROUP BY fromUnixTimestamp64Nano(toInt64(toUnixTimestamp64Nano(`start_time`) - \
             positiveModulo(toUnixTimestamp64Nano(`start_time`), 60000000000)), 'UTC')",
        ),
        ("SELECT s.name FROM spans s JOIN logs l ON s.span_id = l.span_id", " INNER JOIN (SELECT `span_id` AS "),
        ("SELECT name FROM span_events", "arrayJoin(`events`) AS "),
        ("SELECT sum(received) FROM ingest_ledger", "GROUP BY minute, signal, reason"),
    ] {
        let plan = plan(&engine, sql);
        assert!(plan.contains(expected), "{sql}: no {expected} in\n{plan}");
        assert!(!plan.contains("not in ClickHouse"), "{sql}\n{plan}");
        let scans = plan.matches("FROM `o\\`dd`").count();
        assert!(scans > 0 && scans == plan.matches("tenant = 'acme'").count(), "{sql}\n{plan}");
    }
}

#[test]
fn what_cannot_be_written_says_why_and_runs_here() {
    let engine = engine();
    for (sql, reason) in [
        ("SELECT attributes['twice'] FROM spans", "'twice', which is there twice in some row"),
        ("SELECT attributes['bytes'] FROM spans", "'bytes' as text, which is also a Bytes"),
        ("SELECT count(*) FROM spans WHERE name ~ 'a+'", "the operator ~"),
        ("SELECT upper(name) FROM spans", "upper() runs here"),
        ("SELECT rate(value, time) FROM metric_points GROUP BY series_id", "rate() runs here"),
        ("SELECT stddev(duration_ns) FROM spans", "stddev() runs here"),
        ("SELECT 10 / flags FROM spans", "a division of integers by what is no positive constant"),
        ("SELECT count(*) FROM spans WHERE attributes['double'] IN (1.5, 2.5, 3.5, 4.5, 5.5)", "IN of doubles"),
        ("SELECT row_number() OVER (ORDER BY start_time) FROM spans", "steps of this kind run here"),
    ] {
        let plan = plan(&engine, sql);
        assert!(plan.contains("not in ClickHouse") && plan.contains(reason), "{sql}: no {reason} in\n{plan}");
        assert!(plan.contains("RemoteExec: clickhouse=SELECT"), "its rows come from there: {sql}\n{plan}");
    }
}

#[test]
fn an_error_there_is_the_querys() {
    let tenant = TenantId::new("acme").unwrap();
    let engine = engine();
    let error = block_on(async {
        match engine.query(&tenant, "SELECT count(*) FROM spans", Limits::default()).await {
            Err(error) => error,
            Ok(output) => output.collect().await.unwrap_err(),
        }
    });
    assert_eq!(error.kind, ErrorKind::Unavailable);
    // What was asked, since the fake answers with it.
    assert!(error.message.contains("SELECT count() AS "), "{}", error.message);
}

#[test]
fn attributes_come_back_as_they_were() {
    use arrow::array::{Array as _, StructArray};
    use model::attributes::AttributesColumn;
    use model::value::Value;

    let mut column = AttributesColumn::default();
    let rows: [&[(&str, Option<Value<'_>>)]; 3] = [
        &[
            ("a", Some(Value::Int(1))),
            ("b", Some(Value::Bool(true))),
            ("c", Some(Value::Int(2))),
            ("d", Some(Value::String("x"))),
        ],
        &[],
        &[
            ("b", Some(Value::Bool(false))),
            ("e", Some(Value::Double(f64::NAN))),
            ("f", None),
            ("g", Some(Value::Bytes(&[255]))),
        ],
    ];
    for row in rows {
        row.iter().for_each(|(key, value)| column.push(key, *value).unwrap());
        column.end_row();
    }
    let expected = column.finish();
    // As ClickHouse sends them: maps by kind, everything as bytes.
    let own = expected.as_any().downcast_ref::<StructArray>().unwrap();
    let list = |index: usize| arrow::array::AsArray::as_list::<i32>(own.column(index)).clone();
    let map = |list: &arrow::array::ListArray, values: ArrayRef, lengths: Option<Vec<usize>>| {
        let keys: ArrayRef = Arc::new(BinaryArray::from_iter_values(vec![b"k"; values.len()]));
        let fields =
            vec![Field::new("key", DataType::Binary, false), Field::new("value", values.data_type().clone(), false)];
        let entries = StructArray::new(fields.clone().into(), vec![keys, values], None);
        let offsets = lengths.map_or_else(|| list.offsets().clone(), arrow::buffer::OffsetBuffer::from_lengths);
        let field = Field::new("entries", DataType::Struct(fields.into()), false);
        Arc::new(arrow::array::MapArray::new(Arc::new(field), offsets, entries, None, false)) as ArrayRef
    };
    let as_bytes = |array: &ArrayRef| arrow::compute::cast(array, &DataType::Binary).unwrap();
    let ints: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![1, 2]));
    let bools: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true, false]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("shape", as_bytes(own.column(0))),
        ("strings", map(&list(1), as_bytes(list(1).values()), None)),
        ("ints", map(&list(2), ints, Some(vec![2, 0, 0]))),
        ("bools", map(&list(2), bools, Some(vec![1, 0, 1]))),
        ("doubles", map(&list(3), Arc::clone(list(3).values()), None)),
        ("others", map(&list(4), Arc::clone(list(4).values()), None)),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), false)).collect();
    let sent = StructArray::new(fields.clone().into(), columns.into_iter().map(|(_, array)| array).collect(), None);
    let sent_schema = Schema::new(vec![Field::new("attributes", DataType::Struct(fields.into()), false)]);
    let sent = RecordBatch::try_new(Arc::new(sent_schema), vec![Arc::new(sent)]).unwrap();
    let own_field = model::schema::schema(Table::Spans).field_with_name("attributes").unwrap().clone();
    let schema = Arc::new(Schema::new(vec![own_field]));
    let found = super::restore::batch(&sent, &schema).unwrap();
    let show = |array: &ArrayRef| {
        let view = model::attributes::AttributesView::new(array.as_ref()).unwrap();
        (0..view.len()).map(|row| format!("{:?}", view.row(row).collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    assert_eq!(show(found.column(0)), show(&expected));
}

#[test]
fn derived_tables_are_counted_there_by_what_is_wanted_of_the_tenant() {
    let engine = engine();
    let spans = "FROM `o\\`dd`.`spans` WHERE tenant = 'acme'";
    for (sql, expected, not) in [
        // No more keys than are asked for, and whole buckets within the bounds.
        (
            "SELECT service_name, sum(count) FROM span_metrics WHERE time >= TIMESTAMP '2026-03-01T00:00:03Z' GROUP BY 1",
            &["toInt64(count()) AS c1", "GROUP BY `service_name`", "start_time >= toDateTime64('2026-03-01 00:00:10"][..],
            &["argMin", "sumMap", "`span_name`,"][..],
        ),
        (
            "SELECT sum(errors) FROM span_metrics WHERE kind = 'SERVER' AND time < TIMESTAMP '2026-03-01T00:00:10Z'",
            &["WHERE (`kind` = 'SERVER')", "start_time < toDateTime64('2026-03-01 00:00:10"],
            &["start_time >="],
        ),
        // The other half of a call is looked for an hour around.
        (
            "SELECT sum(count) FROM service_edges WHERE time >= TIMESTAMP '2026-03-01T02:00:00Z'",
            &["ANY LEFT JOIN", "LEFT ANTI JOIN", "'2026-03-01 02:00:00", "'2026-03-01 01:00:00"],
            &["sumMap"],
        ),
    ] {
        let plan = plan(&engine, sql);
        assert!(plan.contains("added up here"), "{sql}\n{plan}");
        assert_eq!(plan.matches("`spans`").count(), plan.matches(spans).count(), "{sql}\n{plan}");
        for part in expected {
            assert!(plan.contains(part), "{sql}\nshould contain {part}:\n{plan}");
        }
        for part in not {
            assert!(!plan.contains(part), "{sql}\nshould not contain {part}:\n{plan}");
        }
    }
}
