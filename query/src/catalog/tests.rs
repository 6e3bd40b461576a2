//! What tools ask the catalog, and what they must get: over an engine, as they write it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use model::attributes::AttributesColumn;
use model::signal::Table;
use model::tenant::TenantId;
use model::value::Value;

use super::attributes::AttributesQuestion;
use super::descriptions;
use crate::engine::{Engine, EngineConfig, Limits};
use crate::error::ErrorKind;
use crate::offered::{Bounds, Column, OfferedTable, Rows};
use crate::tables::TABLE_NAMES;
use crate::testing::{T0, TestSource};
use crate::tests::{ask, logs, spans};

fn engine() -> (Arc<TestSource>, Engine) {
    let source = Arc::new(TestSource::new());
    source.segment(Table::Spans, &spans());
    source.memory(Table::Spans, spans());
    source.memory(Table::Logs, logs());
    let config = EngineConfig { threads: 2, ..EngineConfig::default() };
    let engine = Engine::new(config, Arc::clone(&source) as _).unwrap();
    (source, engine)
}

/// A table of two rows, as another part of the program would offer one. `cut` and `fails` are what it says of itself.
struct Notes {
    cut: bool,
    fails: bool,
}

#[async_trait::async_trait]
impl OfferedTable for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }

    fn description(&self) -> &'static str {
        "A note"
    }

    fn columns(&self) -> Vec<Column> {
        vec![Column::new("id", DataType::Int64, "Its number"), Column::texts("labels", "Its labels")]
    }

    async fn rows(&self, tenant: &TenantId, _bounds: Bounds) -> Result<Rows, String> {
        if self.fails {
            return Err("the drawer is stuck".to_owned());
        }
        let mut labels = AttributesColumn::default();
        for text in ["red", "7"] {
            labels.push("colour", Some(Value::String(text))).unwrap();
            // Spans have numbers under this key: here it is text all the same.
            labels.push("http.response.status_code", Some(Value::String(text))).unwrap();
            labels.end_row();
        }
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let fields = self.columns().into_iter().map(|column| column.field).collect::<Vec<_>>();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![ids, labels.finish()]).unwrap();
        let rows = if *tenant == TenantId::default_tenant() { batch.num_rows() } else { 0 };
        Ok(Rows { batch: batch.slice(0, rows), cut: self.cut })
    }
}

fn offering(notes: Notes) -> Engine {
    let config = EngineConfig { threads: 2, ..EngineConfig::default() };
    Engine::offering(config, Arc::new(TestSource::new()), vec![Arc::new(notes)]).unwrap()
}

#[test]
fn offered_tables_are_tables() {
    let engine = offering(Notes { cut: false, fails: false });
    for (sql, rows) in [
        ("SELECT id, labels['colour'], labels['none'] FROM notes ORDER BY id DESC", "[2,\"7\",null]\n[1,\"red\",null]"),
        ("SELECT id FROM notes WHERE labels['http.response.status_code'] = 'red'", "[1]"),
        (
            "SELECT labels FROM public.notes WHERE id = 1",
            "[{\"colour\":\"red\",\"http.response.status_code\":\"red\"}]",
        ),
        ("SELECT count(*) FROM notes a JOIN notes b ON a.labels['colour'] = b.labels['colour']", "[2]"),
        (
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'notes'",
            "[\"id\",\"bigint\"]\n[\"labels\",\"json\"]",
        ),
        (
            "SELECT obj_description('notes'::regclass), col_description('notes'::regclass, 2)",
            "[\"A note\",\"Its labels\"]",
        ),
        ("DESCRIBE notes", "[\"id\",\"bigint\",true]\n[\"labels\",\"json\",true]"),
    ] {
        assert_eq!(ask(&engine, sql).unwrap_or_else(|error| panic!("{sql}: {error:?}")).rows, rows, "{sql}");
    }
    assert!(ask(&engine, "SHOW TABLES").unwrap().rows.ends_with("[\"notes\"]"));
    let tables = block_on(engine.tables(&TenantId::default_tenant())).unwrap();
    let notes = tables.last().unwrap();
    assert_eq!((notes.name, notes.columns[1].description, notes.stored), ("notes", "Its labels", None));

    assert!(ask(&engine, "SELECT * FROM notes").unwrap().stats.warnings.is_empty());
    let warnings = ask(&offering(Notes { cut: true, fails: false }), "SELECT * FROM notes").unwrap().stats.warnings;
    assert!(warnings[0].starts_with("notes has more than 100000 rows"), "{warnings:?}");
    let error = ask(&offering(Notes { cut: false, fails: true }), "SELECT * FROM notes").map(|_| ()).unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Unavailable, "cannot read notes: the drawer is stuck")
    );
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Questions as `psql` 15, drivers and dashboards send them, and their rows.
const ANSWERS: [(&str, &str); 30] = [
    (
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_name LIKE 'span%' ORDER BY 1",
        "[\"span_events\"]\n[\"span_links\"]\n[\"span_metrics\"]\n[\"spans\"]",
    ),
    (
        "SELECT ordinal_position, column_name, is_nullable, data_type, udt_name FROM information_schema.columns
         WHERE table_name = 'spans' AND column_name IN ('trace_id', 'start_time', 'duration_ns', 'attributes', 'scope_name') ORDER BY 1",
        "[1,\"trace_id\",\"NO\",\"text\",\"text\"]\n[9,\"start_time\",\"NO\",\"timestamp with time zone\",\"timestamptz\"]\n\
         [11,\"duration_ns\",\"YES\",\"bigint\",\"int8\"]\n[14,\"attributes\",\"NO\",\"json\",\"json\"]\n[21,\"scope_name\",\"YES\",\"text\",\"text\"]",
    ),
    ("SELECT data_type, udt_name FROM information_schema.columns WHERE column_name = 'explicit_bounds'", "[\"ARRAY\",\"_float8\"]"),
    ("SELECT count(*) FROM information_schema.columns WHERE description = '' OR description IS NULL", "[0]"),
    ("SELECT schema_name FROM information_schema.schemata ORDER BY 1", "[\"information_schema\"]\n[\"pg_catalog\"]\n[\"public\"]"),
    ("SELECT count(*) FROM information_schema.table_constraints", "[0]"),
    // psql: \dt
    (
        r#"SELECT n.nspname as "Schema", c.relname as "Name",
             CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as "Type", pg_catalog.pg_get_userbyid(c.relowner) as "Owner"
           FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
           WHERE c.relkind IN ('r','p','') AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_toast'
             AND n.nspname <> 'information_schema' AND pg_catalog.pg_table_is_visible(c.oid)
             AND c.relname IN ('ingest_ledger', 'logs')
           ORDER BY 1,2"#,
        "[\"public\",\"ingest_ledger\",\"table\",\"godseye\"]\n[\"public\",\"logs\",\"table\",\"godseye\"]",
    ),
    // psql: \d spans, in its steps
    (
        r"SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relname OPERATOR(pg_catalog.~) '^(spans)$' COLLATE pg_catalog.default AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3",
        "[16384,\"public\",\"spans\"]",
    ),
    (
        "SELECT c.relchecks, c.relkind, c.relhasindex, c.relhasrules, c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity,
           false AS relhasoids, c.relispartition, '', c.reltablespace,
           CASE WHEN c.reloftype = 0 THEN '' ELSE c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, c.relreplident, am.amname
         FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid)
           LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid) WHERE c.oid = '16384'",
        "[0,\"r\",false,false,false,false,false,false,false,\"\",0,\"\",\"p\",\"d\",null]",
    ),
    (
        "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
           (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d
            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), a.attnotnull,
           (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t
            WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation,
           a.attidentity, a.attgenerated
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = '16384' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum LIMIT 2",
        "[\"trace_id\",\"text\",null,true,null,\"\",\"\"]\n[\"span_id\",\"text\",null,true,null,\"\",\"\"]",
    ),
    (
        "SELECT pol.polname, pol.polpermissive, CASE WHEN pol.polroles = '{0}' THEN NULL ELSE pg_catalog.array_to_string(array(select rolname from pg_catalog.pg_roles where oid = any (pol.polroles) order by 1),',') END
         FROM pg_catalog.pg_policy pol WHERE pol.polrelid = '16384' ORDER BY 1",
        "",
    ),
    (
        "SELECT oid, stxrelid::pg_catalog.regclass, stxnamespace::pg_catalog.regnamespace::pg_catalog.text AS nsp, 'd' = any(stxkind) AS ndist_enabled
         FROM pg_catalog.pg_statistic_ext WHERE stxrelid = '16384' ORDER BY nsp, stxname",
        "",
    ),
    (
        "SELECT pubname, NULL, NULL FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_namespace pn ON p.oid = pn.pnpubid
         UNION
         SELECT pubname, pg_get_expr(pr.prqual, c.oid), (CASE WHEN pr.prattrs IS NOT NULL THEN
            (SELECT string_agg(attname, ', ') FROM pg_catalog.generate_series(0, pg_catalog.array_upper(pr.prattrs::pg_catalog.int2[], 1)) s, pg_catalog.pg_attribute
             WHERE attrelid = pr.prrelid AND attnum = prattrs[s]) ELSE NULL END)
         FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel pr ON p.oid = pr.prpubid JOIN pg_catalog.pg_class c ON c.oid = pr.prrelid
         WHERE pr.prrelid = '16384' ORDER BY 1",
        "",
    ),
    (
        "SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i WHERE c.oid = i.inhparent AND i.inhrelid = '16384' ORDER BY inhseqno",
        "",
    ),
    (
        "SELECT pg_catalog.array_to_string(c.reloptions || array(select 'toast.' || x from pg_catalog.unnest(tc.reloptions) x), ', ')
         FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid) WHERE c.oid = '16384'",
        "[\"\"]",
    ),
    // psql: \d+, \l, \dn
    ("SELECT pg_catalog.col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = 16384 AND attname = 'duration_ns'", "[\"End minus start, nanoseconds; negative when the clock stepped back\"]"),
    ("SELECT pg_catalog.obj_description(c.oid, 'pg_class'), pg_size_pretty(pg_table_size(c.oid) * 0) FROM pg_class c WHERE relname = 'logs'", "[\"A log record\",\"0 bytes\"]"),
    (
        r#"SELECT d.datname as "Name", pg_catalog.pg_encoding_to_char(d.encoding) as "Encoding", pg_catalog.array_to_string(d.datacl, E'\n') AS "Access privileges" FROM pg_catalog.pg_database d ORDER BY 1"#,
        "[\"godseye\",\"UTF8\",null]",
    ),
    (r"SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1", "[\"public\"]"),
    // drivers
    ("SELECT 'spans'::regclass::oid, 'public.logs'::regclass, 16384::oid::regclass::text, to_regclass('nothing')", "[16384,16387,\"spans\",null]"),
    ("SELECT count(*) FROM pg_attribute WHERE attrelid = 'spans'::regclass", "[25]"),
    ("SELECT t.typname, e.typname FROM pg_type t LEFT JOIN pg_type e ON t.typelem = e.oid WHERE t.typinput = 'array_in'::regproc AND e.oid = 20", "[\"_int8\",\"int8\"]"),
    ("SELECT a.attname, d.description, def.adbin FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef def ON (a.attrelid = def.adrelid AND a.attnum = def.adnum)
      LEFT JOIN pg_catalog.pg_description d ON (d.objoid = a.attrelid AND d.objsubid = a.attnum) WHERE a.attrelid = 16384 AND a.attnum = 8", "[\"kind\",\"SERVER, CLIENT, INTERNAL, PRODUCER, CONSUMER or UNSPECIFIED\",null]"),
    ("SELECT current_database(), current_schema(), current_user, current_schemas(true), pg_typeof(1), current_setting('timezone')", "[\"godseye\",\"public\",\"godseye\",[\"pg_catalog\",\"public\"],\"bigint\",\"UTC\"]"),
    ("SELECT version() LIKE 'PostgreSQL 15.% (GodsEye %)'", "[true]"),
    ("SELECT relname FROM pg_class WHERE relname = ANY('{logs,spans}'::text[]) ORDER BY relname COLLATE \"C\"", "[\"logs\"]\n[\"spans\"]"),
    ("SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid), NOT EXISTS (SELECT 1 FROM pg_index) FROM pg_class c WHERE relname = 'logs'", "[false,true]"),
    ("SELECT count(*) FROM pg_catalog.pg_index", "[0]"),
    ("SELECT has_table_privilege('spans', 'SELECT'), quote_ident('a b'), pg_size_pretty(123456789)", "[true,\"\\\"a b\\\"\",\"118 MB\"]"),
    ("SELECT name FROM spans WHERE trace_id = ANY(ARRAY['0000000000000000000000000000000a', 'ffffffffffffffffffffffffffffffff']) LIMIT 0", ""),
];

#[test]
fn tools_get_the_answers_they_expect() {
    let (_source, engine) = engine();
    let mut wrong = Vec::new();
    for (sql, expected) in ANSWERS {
        match ask(&engine, sql) {
            Ok(answer) if answer.rows == expected => {}
            Ok(answer) => wrong.push(format!("{sql}\n  expected {expected}\n  found    {}", answer.rows)),
            Err(error) => wrong.push(format!("{sql}\n  {error:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_catalog_refuses_what_it_cannot_name() {
    let (_source, engine) = engine();
    for (sql, part) in [
        ("SELECT 'nothing'::regclass", "relation \"nothing\" does not exist"),
        ("SELECT 'nothing'::regtype", "type \"nothing\" does not exist"),
        ("SELECT 1::nothing", "type \"nothing\" does not exist"),
        ("SELECT * FROM pg_nothing", "not found"),
        ("SELECT * FROM information_schema.nothing", "not found"),
        ("SELECT current_setting('nothing')", "unrecognized configuration parameter"),
        ("SELECT * FROM generate_series(1, 3)", "not available"),
    ] {
        let error = ask(&engine, sql).map(|answer| answer.rows).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::BadQuery | ErrorKind::Refused), "{sql}: {error:?}");
        assert!(error.message.contains(part), "{sql}: {error:?}");
    }
}

#[test]
fn every_table_and_column_is_described() {
    let (_source, engine) = engine();
    let tables = block_on(engine.tables(&TenantId::default_tenant())).unwrap();
    assert_eq!(tables.iter().map(|table| table.name).collect::<Vec<_>>(), TABLE_NAMES);
    for table in &tables {
        assert!(!table.description.is_empty(), "{} has no line in catalog/descriptions.rs", table.name);
        for column in &table.columns {
            assert!(
                descriptions::of_column(table.name, &column.name).is_some(),
                "{}.{} has no line in catalog/descriptions.rs",
                table.name,
                column.name
            );
        }
    }
    let stored = tables[0].stored.unwrap();
    let (from, to) = stored.times.unwrap();
    assert_eq!(stored.rows, 2 * spans().num_rows() as u64);
    assert!(stored.segment_bytes > 0 && from <= to && from >= T0 - 1_000_000_000_000, "{stored:?}");
    assert_eq!(tables.iter().find(|table| table.name == "profiles").unwrap().stored, Some(super::Stored::default()));
    assert_eq!(tables.iter().find(|table| table.name == "span_events").unwrap().stored, None);
    let nobody = TenantId::new("nobody").unwrap();
    let theirs = block_on(engine.tables(&nobody)).unwrap();
    assert!(theirs.iter().all(|table| table.stored.is_none_or(|stored| stored.rows == 0)), "a tenant sees its own");
}

#[test]
fn attribute_keys_are_found_with_types_and_values() {
    let (_source, engine) = engine();
    let tenant = TenantId::default_tenant();
    let question = |table: &str, container: &str, prefix: &str| AttributesQuestion {
        table: table.to_owned(),
        container: container.to_owned(),
        prefix: prefix.to_owned(),
        keys: 50,
        values: 3,
    };
    let found = |table: &str, container: &str, prefix: &str| {
        block_on(engine.attributes(&tenant, &question(table, container, prefix), Limits::default()))
    };
    let report = found("spans", "attributes", "http.").unwrap();
    assert!(report.is_complete() && report.keys_total == report.keys.len() && !report.keys.is_empty(), "{report:?}");
    for key in &report.keys {
        assert!(key.key.starts_with("http."), "{key:?}");
        // The report agrees with what SQL says.
        let sql = format!("SELECT count(attributes['{0}']), count(DISTINCT attributes['{0}']) FROM spans", key.key);
        assert_eq!(ask(&engine, &sql).unwrap().rows, format!("[{},{}]", key.rows, key.distinct), "{key:?}");
    }
    assert!(!found("spans", "resource_attributes", "").unwrap().keys.is_empty());
    assert!(!found("span_events", "attributes", "exception.").unwrap().keys.is_empty());
    for (table, container, part) in [
        ("nothing", "attributes", "there is no table"),
        ("spans; DROP TABLE spans", "attributes", "there is no table"),
        ("spans", "name", "no container"),
        ("ingest_ledger", "attributes", "no container"),
    ] {
        let error = found(table, container, "").unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadQuery, "{error:?}");
        assert!(error.message.contains(part) && error.hint.is_some(), "{error:?}");
    }
}

#[test]
fn statements_are_described_without_running() {
    let (_source, engine) = engine();
    let describe = |sql: &str| block_on(engine.describe(&TenantId::default_tenant(), sql));
    let shown = |sql: &str| {
        let found = describe(sql).unwrap();
        let name = |data_type: &DataType| super::types::column_type(data_type).sql_name();
        let parameters = found.parameters.iter().map(|known| known.as_ref().map_or("?".to_owned(), name));
        let columns = found.schema.fields().iter().map(|field| format!("{} {}", field.name(), name(field.data_type())));
        (parameters.collect::<Vec<_>>().join(", "), columns.collect::<Vec<_>>().join(", "))
    };
    for (sql, parameters, columns) in [
        (
            "SELECT name, start_time FROM spans WHERE duration_ns > $1",
            "bigint",
            "name text, start_time timestamp with time zone",
        ),
        ("SELECT count(*) AS n FROM spans WHERE trace_id = $1 AND service_name = $2", "text, text", "n bigint"),
        (
            "SELECT attributes['http.response.status_code'] AS code FROM spans WHERE start_time BETWEEN $2 AND $1",
            "timestamp with time zone, timestamp with time zone",
            "code bigint",
        ),
        ("SELECT $1::bigint + 1 AS x, $2::text AS y", "bigint, text", "x bigint, y text"),
        ("SELECT $1 AS x", "?", "x text"),
        ("SHOW TABLES", "", "table_name text"),
        ("DESCRIBE spans", "", "column_name text, data_type text, is_nullable boolean"),
    ] {
        assert_eq!(shown(sql), (parameters.to_owned(), columns.to_owned()), "{sql}");
    }
    assert_eq!(describe("SELECT nothing FROM spans WHERE name = $1").unwrap_err().sqlstate(), "42703");
    assert_eq!(describe("DELETE FROM spans WHERE name = $1").unwrap_err().sqlstate(), "25006");
}
