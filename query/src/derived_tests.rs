//! The derived tables through SQL: whatever is asked of them, spans give the same answer.
//!
//! The oracle is SQL over `spans`: a join of callees with callers, and sums by ten seconds. Not here:
//! crashes, restarts and rebuilds as such, which the store tests; and every rule of derivation.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use model::context::ContextKind;
use model::derived::DerivedTable;
use model::ledger::LedgerDelta;
use model::signal::Table;
use model::tenant::TenantId;
use model::time::{Clock, Timestamp};
use model::value::Value;
use store::{Entry, LogEntryMeta, Metrics, ReplayProgress, Store, StoreConfig};

use crate::engine::{Engine, EngineConfig};
use crate::stored::StoreSource;
use crate::testing::{SECOND, T0, attributes, batch, contexts, ids, texts, times};
use crate::tests::ask;

/// Calls of one batch.
const CALLS: usize = 40;

struct Bench {
    store: Arc<Store>,
    engine: Engine,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            clock: Clock::manual(Timestamp(T0)),
            wal_min_free_bytes: 0,
            ..StoreConfig::new(folder.path().join("data"))
        };
        let store = Store::open(config, &ReplayProgress::default(), Metrics::default()).unwrap();
        let config = EngineConfig { threads: 2, ..EngineConfig::default() };
        let engine = Engine::new(config, Arc::new(StoreSource::new(Arc::clone(&store)))).unwrap();
        Self { store, engine, _folder: folder }
    }

    fn append(&self, tenant: &TenantId, rows: RecordBatch) {
        let ledger = LedgerDelta { stored: rows.num_rows() as u64, ..LedgerDelta::default() };
        let meta = LogEntryMeta { tenant: tenant.clone(), table: Table::Spans, minute: T0, ledger };
        let encoded = store::record::encode(&meta, Some(&rows)).unwrap();
        self.store.append_group(vec![Entry { meta, batch: Some(rows), encoded }]).unwrap();
    }

    fn tend(&self) {
        while self.store.tend_derived().unwrap() {}
    }

    fn rows(&self, sql: &str) -> String {
        match ask(&self.engine, sql) {
            Ok(answer) => answer.rows,
            Err(error) => panic!("{sql}\n{error:?}"),
        }
    }
}

/// Calls of `web` to `cart`, `pay` or itself, each with its callee and a query of the callee's; over
/// some two and a half hours, which are those after the part before. Numbers differ from part to part.
fn calls(part: usize) -> RecordBatch {
    let rows = CALLS * 3;
    let number = |row: usize| part * CALLS + row / 3;
    let services = ["cart", "pay", "web"];
    let service = |row: usize| match row % 3 {
        0 => "web",
        _ => services[number(row) % 3],
    };
    let of_row = |of: &dyn Fn(usize) -> &'static str| texts(&(0..rows).map(of).collect::<Vec<_>>());
    let start = |row: usize| T0 + (number(row) as i64 * 223 + row as i64 % 3) * SECOND;
    let span = |row: usize| ((number(row) * 3 + row % 3) as u64 + 1).to_be_bytes();
    let http: &[(&str, Value<'_>)] =
        &[("http.request.method", Value::String("GET")), ("server.address", Value::String("pay.svc"))];
    let query: &[(&str, Value<'_>)] =
        &[("db.system.name", Value::String("postgresql")), ("db.namespace", Value::String("orders"))];
    let names: Vec<&str> = (0..rows).map(service).collect();
    let resources: Vec<Vec<(&str, &str)>> = (0..rows)
        .map(|row| {
            let mut resource = vec![("service.name", names[row])];
            if row % 5 != 0 {
                resource.push(("service.version", if number(row) % 2 == 0 { "1.0" } else { "1.1" }));
            }
            if row % 4 != 0 {
                resource.push(("deployment.environment.name", "prod"));
            }
            resource
        })
        .collect();
    let resources: Vec<(&str, &[(&str, &str)])> = resources.iter().map(|resource| ("", resource.as_slice())).collect();
    batch(
        Table::Spans,
        rows,
        &[
            ("trace_id", ids(&(0..rows).map(|row| Some((number(row) as u128 + 1).to_be_bytes())).collect::<Vec<_>>())),
            ("span_id", ids(&(0..rows).map(|row| Some(span(row))).collect::<Vec<_>>())),
            ("parent_span_id", ids(&(0..rows).map(|row| (row % 3 > 0).then(|| span(row - 1))).collect::<Vec<_>>())),
            ("service_name", texts(&names)),
            ("name", of_row(&|row| ["GET", "GET /x", "SELECT"][row % 3])),
            ("kind", of_row(&|row| ["CLIENT", "SERVER", "CLIENT"][row % 3])),
            ("start_time", times(&(0..rows).map(start).collect::<Vec<_>>())),
            (
                "duration_ns",
                Arc::new(
                    (0..rows)
                        .map(|row| (number(row) % 11 != 3).then(|| (row as i64 % 17).pow(5) * 1009 - 7))
                        .collect::<Int64Array>(),
                ),
            ),
            ("status_code", of_row(&|row| if row % 7 == 1 { "ERROR" } else { "UNSET" })),
            (
                "attributes",
                attributes(&(0..rows).map(|row| if row % 3 == 2 { query } else { http }).collect::<Vec<_>>()),
            ),
            ("resource", contexts(ContextKind::Resource, &resources, "")),
        ],
    )
}

/// A question to a derived table, and the same to spans; a sum of nothing is null.
const QUESTIONS: &[(&str, &str)] = &[
    // Every row there is.
    (
        "SELECT time, service_name, span_name, kind, status_code, environment, service_version, count, errors,
                duration_sum_ns, duration_min_ns, duration_max_ns
         FROM span_metrics ORDER BY 1, 2, 3, 4, 5, 6, 7",
        "SELECT date_bin(INTERVAL '10 seconds', start_time) AS time, service_name, name AS span_name, kind, status_code,
                resource_attributes['deployment.environment.name'] AS environment,
                resource_attributes['service.version'] AS service_version, count(*) AS count,
                sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) AS errors,
                coalesce(sum(duration_ns), 0) AS duration_sum_ns, min(duration_ns), max(duration_ns)
         FROM spans GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7",
    ),
    // Added up.
    ("SELECT sum(count), sum(errors) FROM span_metrics", "SELECT count(*), sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) FROM spans"),
    (
        "SELECT service_name, sum(count), sum(errors), min(duration_min_ns), max(duration_max_ns), sum(duration_sum_ns)
         FROM span_metrics GROUP BY 1 ORDER BY 1",
        "SELECT service_name, count(*), sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END), min(duration_ns),
                max(duration_ns), sum(duration_ns)
         FROM spans GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT service_version, sum(CASE WHEN status_code = 'ERROR' THEN count ELSE 0 END) / CAST(sum(count) AS DOUBLE)
         FROM span_metrics WHERE kind = 'SERVER' GROUP BY 1 ORDER BY 1",
        "SELECT resource_attributes['service.version'], sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) / CAST(count(*) AS DOUBLE)
         FROM spans WHERE kind = 'SERVER' GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT upper(service_name), sum(count) FILTER (WHERE kind = 'CLIENT') FROM span_metrics GROUP BY 1 ORDER BY 1",
        "SELECT upper(service_name), nullif(count(*) FILTER (WHERE kind = 'CLIENT'), 0) FROM spans GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT date_bin(INTERVAL '1 hour', time), sum(count) FROM span_metrics GROUP BY 1 ORDER BY 1",
        "SELECT date_bin(INTERVAL '1 hour', start_time), count(*) FROM spans GROUP BY 1 ORDER BY 1",
    ),
    ("SELECT DISTINCT service_name FROM span_metrics ORDER BY 1", "SELECT DISTINCT service_name FROM spans ORDER BY 1"),
    // What must not be added up at once.
    (
        "SELECT count(*), avg(count), max(count) FROM span_metrics",
        "SELECT count(*), avg(n), max(n) FROM (SELECT count(*) AS n FROM spans GROUP BY date_bin(INTERVAL '10 seconds', start_time),
            service_name, name, kind, status_code, resource_attributes['deployment.environment.name'], resource_attributes['service.version'])",
    ),
    (
        "SELECT service_name, count(*) FROM span_metrics WHERE count = 1 GROUP BY 1 ORDER BY 1",
        "SELECT service_name, count(*) FROM (SELECT service_name, count(*) AS n FROM spans GROUP BY date_bin(INTERVAL '10 seconds', start_time),
            service_name, name, kind, status_code, resource_attributes['deployment.environment.name'], resource_attributes['service.version'])
         WHERE n = 1 GROUP BY 1 ORDER BY 1",
    ),
    // Stretches of time: whole hours, within a minute, open ends, and across what is folded and what is not.
    (
        "SELECT sum(count) FROM span_metrics WHERE time >= '2026-03-01T00:00:00Z' AND time < '2026-03-01T02:00:00Z'",
        "SELECT count(*) FROM spans WHERE start_time >= '2026-03-01T00:00:00Z' AND start_time < '2026-03-01T02:00:00Z'",
    ),
    (
        "SELECT service_name, sum(count) FROM span_metrics WHERE time BETWEEN '2026-03-01T00:07:10Z' AND '2026-03-01T02:33:40Z' GROUP BY 1 ORDER BY 1",
        "SELECT service_name, count(*) FROM spans WHERE start_time >= '2026-03-01T00:07:10Z' AND start_time < '2026-03-01T02:33:50Z' GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT kind, sum(errors) FROM span_metrics WHERE time > '2026-03-01T01:59:50Z' GROUP BY 1 ORDER BY 1",
        "SELECT kind, sum(CASE WHEN status_code = 'ERROR' THEN 1 ELSE 0 END) FROM spans WHERE start_time >= '2026-03-01T02:00:00Z' GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT sum(count) FROM span_metrics WHERE '2026-03-01T01:00:05Z' > time AND service_name = 'pay'",
        "SELECT nullif(count(*), 0) FROM spans WHERE start_time < '2026-03-01T01:00:10Z' AND service_name = 'pay'",
    ),
    (
        "SELECT sum(count) FROM span_metrics WHERE time < '2026-03-01T01:00:00Z' OR service_name = 'pay'",
        "SELECT count(*) FROM spans WHERE start_time < '2026-03-01T01:00:00Z' OR service_name = 'pay'",
    ),
    ("SELECT coalesce(sum(count), 0) FROM span_metrics WHERE time < '2020-01-01T00:00:00Z'", "SELECT 0"),
    (
        "SELECT sum(m.count) FROM span_metrics m JOIN (SELECT DISTINCT server FROM service_edges WHERE NOT server_inferred) e
            ON m.service_name = e.server WHERE m.time >= '2026-03-01T01:00:00Z'",
        "SELECT nullif(count(*), 0) FROM spans WHERE service_name IN ('cart', 'pay') AND start_time >= '2026-03-01T01:00:00Z'",
    ),
    // Calls.
    (
        "SELECT client, server, connection_type, sum(count), sum(errors), sum(client_errors), sum(duration_sum_ns), sum(client_duration_sum_ns)
         FROM service_edges WHERE NOT server_inferred GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        "SELECT p.service_name, c.service_name, 'http', count(*), sum(CASE WHEN c.status_code = 'ERROR' THEN 1 ELSE 0 END),
                sum(CASE WHEN p.status_code = 'ERROR' THEN 1 ELSE 0 END), sum(c.duration_ns), sum(p.duration_ns)
         FROM spans c JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id
         WHERE c.kind = 'SERVER' AND p.service_name <> c.service_name GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    ),
    (
        "SELECT time, client, server, environment, count FROM service_edges WHERE NOT server_inferred ORDER BY 1, 2, 3, 4",
        "SELECT date_bin(INTERVAL '10 seconds', c.start_time), p.service_name, c.service_name,
                c.resource_attributes['deployment.environment.name'], count(*)
         FROM spans c JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id
         WHERE c.kind = 'SERVER' AND p.service_name <> c.service_name GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
    ),
    (
        "SELECT client, server, connection_type, sum(count) FROM service_edges WHERE server_inferred GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        "SELECT p.service_name, CASE WHEN p.attributes['db.system.name'] IS NULL THEN 'pay.svc' ELSE 'postgresql/orders' END,
                CASE WHEN p.attributes['db.system.name'] IS NULL THEN 'http' ELSE 'db' END, count(*)
         FROM spans p LEFT JOIN spans c ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id AND c.kind = 'SERVER'
         WHERE p.kind = 'CLIENT' AND c.span_id IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    ),
    ("SELECT count(*) FROM service_edges WHERE count <= 0", "SELECT 0"),
    // Histograms hold every duration there is.
    (
        "SELECT service_name, sum(duration['count']), sum(duration['sum']), min(duration['min']), max(duration['max'])
         FROM span_metrics GROUP BY 1 ORDER BY 1",
        "SELECT service_name, count(duration_ns), CAST(sum(duration_ns) AS DOUBLE), CAST(min(duration_ns) AS DOUBLE), CAST(max(duration_ns) AS DOUBLE)
         FROM spans GROUP BY 1 ORDER BY 1",
    ),
    (
        "SELECT sum(duration['zero_count']), min(duration['scale']), max(duration['scale']) FROM span_metrics",
        "SELECT count(*), 4 AS a, 4 AS b FROM spans WHERE duration_ns <= 0",
    ),
    ("SELECT sum(client_duration['count']) FROM service_edges WHERE NOT server_inferred",
     "SELECT nullif(count(p.duration_ns), 0) FROM spans c JOIN spans p ON c.trace_id = p.trace_id AND c.parent_span_id = p.span_id
      WHERE c.kind = 'SERVER' AND p.service_name <> c.service_name"),
    // Exemplars are traces that are there.
    (
        "SELECT count(*) FROM (SELECT unnest(exemplar_trace_ids) AS id FROM span_metrics WHERE status_code = 'ERROR') e
         LEFT JOIN (SELECT DISTINCT hex(trace_id) AS id FROM spans WHERE status_code = 'ERROR') s ON e.id = s.id WHERE s.id IS NULL",
        "SELECT 0",
    ),
    (
        "SELECT count(*) FROM span_metrics WHERE duration_max_ns IS NOT NULL AND cardinality(exemplar_trace_ids) = 0",
        "SELECT 0",
    ),
];

#[test]
fn derived_tables_answer_as_spans_do() {
    let bench = Bench::new();
    let tenant = TenantId::default_tenant();
    let mut wrong = Vec::new();
    let mut check = |state: &str| {
        for (derived, scanned) in QUESTIONS {
            let (found, expected) = (bench.rows(derived), bench.rows(scanned));
            if found != expected {
                wrong.push(format!("{state}: {derived}\n  expected {expected}\n  found    {found}"));
            }
        }
    };
    // Halves of calls in different batches: all callers come first.
    let whole = calls(0);
    let rows = |place: usize| {
        let rows: Vec<u64> = (0..whole.num_rows() as u64).filter(|row| *row % 3 == place as u64).collect();
        arrow::compute::take_record_batch(&whole, &arrow::array::UInt64Array::from(rows)).unwrap()
    };
    bench.append(&tenant, rows(0));
    check("callers in memory");
    bench.store.flush_all().unwrap();
    bench.append(&tenant, rows(1));
    check("callees in memory");
    bench.append(&tenant, rows(2));
    bench.store.flush_all().unwrap();
    check("in deltas");
    for part in 1..8 {
        bench.append(&tenant, calls(part));
        bench.store.flush_all().unwrap();
    }
    bench.tend();
    check("in segments");
    bench.append(&tenant, calls(8));
    bench.store.flush_all().unwrap();
    bench.append(&tenant, calls(9));
    check("in segments, deltas and memory");
    bench.store.rebuild_derived(&tenant).unwrap();
    bench.tend();
    check("derived anew");
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn day_long_questions_read_hours_and_prune_segments() {
    let bench = Bench::new();
    let tenant = TenantId::default_tenant();
    for part in 0..8 {
        bench.append(&tenant, calls(part));
        bench.store.flush_all().unwrap();
    }
    bench.tend();
    let number = |sql: &str| bench.rows(sql).trim_matches(['[', ']']).parse::<u64>().unwrap();
    let of_hours = |keys: &str, table: &str| {
        number(&format!("SELECT count(*) FROM (SELECT DISTINCT date_trunc('hour', time), {keys} FROM {table})"))
    };
    let rows = number("SELECT count(*) FROM span_metrics");
    let spans = of_hours("service_name, span_name, kind, status_code, environment, service_version", "span_metrics");
    let edges = of_hours("client, server, connection_type, server_inferred, environment", "service_edges");
    assert!(spans < rows && edges < number("SELECT count(*) FROM service_edges"), "{spans} of {rows}, {edges}");
    for (sql, most) in [
        ("SELECT service_name, sum(count) FROM span_metrics GROUP BY 1", spans),
        ("SELECT client, server, sum(count), sum(errors) FROM service_edges GROUP BY 1, 2", edges),
        ("SELECT sum(count) FROM span_metrics WHERE time >= '2026-03-01T01:00:00Z'", spans),
        (
            "SELECT sum(count) FROM span_metrics WHERE time >= '2026-03-01T01:00:10Z' AND time < '2026-03-01T02:10:10Z'",
            rows / 4,
        ),
        ("SELECT sum(count) FROM span_metrics WHERE time < '2020-01-01T00:00:00Z'", 0),
    ] {
        let answer = ask(&bench.engine, sql).unwrap();
        let plan = bench.rows(&format!("EXPLAIN ANALYZE {sql}"));
        let read: u64 = plan
            .replace("\\n", "\n")
            .lines()
            .filter(|line| line.contains("FilterExec") || line.contains("DataSourceExec"))
            .filter_map(|line| line.split("output_rows=").nth(1)?.split([',', ']']).next()?.trim().parse::<u64>().ok())
            .max()
            .unwrap_or(0);
        assert!(read <= most, "{sql}: {read} rows, expected at most {most}\n{}", plan.replace("\\n", "\n"));
        let stats = answer.stats;
        assert_eq!(stats.segments_total, 1, "{sql}");
        assert_eq!(stats.segments_pruned, u64::from(most == 0), "{sql}");
    }
}

#[test]
fn columns_are_what_people_are_told() {
    let bench = Bench::new();
    let describe = |table: &str| {
        let rows = bench.rows(&format!("DESCRIBE {table}"));
        let columns = rows.lines().map(|line| line.split('"').collect::<Vec<_>>());
        columns.map(|parts| format!("{} {}", parts[1], parts[3])).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(
        describe("span_metrics"),
        "time timestamp, service_name text, span_name text, kind text, status_code text, environment text, \
         service_version text, count bigint, errors bigint, duration_sum_ns bigint, duration_min_ns bigint, \
         duration_max_ns bigint, duration json, exemplar_trace_ids json"
    );
    assert_eq!(
        describe("service_edges"),
        "time timestamp, client text, server text, connection_type text, server_inferred boolean, environment text, \
         count bigint, errors bigint, client_errors bigint, duration_sum_ns bigint, client_duration_sum_ns bigint, \
         duration json, client_duration json, exemplar_trace_ids json"
    );
    // Without a span they are there, and empty.
    assert_eq!(bench.rows("SELECT count(*) FROM span_metrics"), "[0]");
    assert_eq!(bench.rows("SELECT client, sum(count) FROM service_edges GROUP BY 1"), "");
    assert_eq!(bench.rows("SELECT sum(count) FROM service_edges"), "[null]");
}

#[test]
fn a_row_looks_like_this() {
    let bench = Bench::new();
    bench.append(&TenantId::default_tenant(), calls(0).slice(3, 3));
    assert_eq!(
        bench.rows("SELECT time, client, server, count, duration['positive'], exemplar_trace_ids FROM service_edges ORDER BY server"),
        "[\"2026-03-01T00:03:40.000000000Z\",\"web\",\"pay\",1,{\"offset\":319,\"bucket_counts\":[1]},[\"00000000000000000000000000000002\"]]\n\
         [\"2026-03-01T00:03:40.000000000Z\",\"pay\",\"postgresql/orders\",1,{\"offset\":345,\"bucket_counts\":[1]},[\"00000000000000000000000000000002\"]]"
    );
}

#[test]
fn tenants_rebuilds_and_damage_are_told() {
    let bench = Bench::new();
    let (tenant, other) = (TenantId::default_tenant(), TenantId::new("other").unwrap());
    bench.append(&other, calls(3));
    assert_eq!(bench.rows("SELECT count(*) FROM span_metrics"), "[0]");
    for part in 0..8 {
        bench.append(&tenant, calls(part));
        bench.store.flush_all().unwrap();
    }
    bench.tend();
    let sql = "SELECT sum(count) FROM span_metrics";
    let expected = format!("[{}]", 8 * CALLS * 3);
    assert_eq!(ask(&bench.engine, sql).unwrap().stats.warnings, Vec::<String>::new());
    bench.store.rebuild_derived(&tenant).unwrap();
    let answer = ask(&bench.engine, sql).unwrap();
    assert_eq!(answer.rows, expected);
    assert!(answer.stats.warnings.iter().any(|warning| warning.contains("derived anew")), "{:?}", answer.stats);
    assert_eq!(ask(&bench.engine, "SELECT count(*) FROM spans").unwrap().stats.warnings, Vec::<String>::new());
    bench.tend();

    let snapshot = bench.store.snapshot_with_derived(&tenant);
    let segment = Arc::clone(&snapshot.derived().unwrap().table(DerivedTable::SpanMetrics).segments[0]);
    drop(snapshot);
    let mut bytes = std::fs::read(segment.path()).unwrap();
    let end = bytes.len() - 12;
    bytes[4..end].fill(0xff);
    std::fs::write(segment.path(), bytes).unwrap();
    // The query goes on without it and says so; spans have it all, so the next tidying mends it.
    let answer = ask(&bench.engine, sql).unwrap();
    assert_eq!(answer.rows, "[null]");
    let name = segment.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(answer.stats.warnings.iter().any(|warning| warning.contains(&name)), "{:?}", answer.stats);
    bench.tend();
    let answer = ask(&bench.engine, sql).unwrap();
    assert_eq!((answer.rows, answer.stats.warnings), (expected, Vec::<String>::new()));
}
