//! `pg_catalog`: the tables that tools for PostgreSQL ask what there is, as far as they ask.
//!
//! Columns and their meaning are those of PostgreSQL 15, whose version the wire announces. Relations are the tables of
//! `public` alone. Tables of things that GodsEye does not have (indexes, constraints, policies) are empty; the ones in
//! [`EMPTY`] are known to be, which lets the planner skip what it could not plan (see [`super::normalize`]).
//! Not here: the functions of `pg_catalog`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::error::Result;

use super::rows::Rows;
use super::types::{self, PgType, column_type};
use super::{Catalog, ColumnInfo, DATABASE, SCHEMA, TableInfo};

/// The number of the first table; smaller ones are PostgreSQL's own.
const FIRST_RELATION: i64 = 16_384;

const PG_CATALOG: i64 = 11;
const PUBLIC: i64 = 2200;
const INFORMATION_SCHEMA: i64 = 13_000;
/// The schemas, with their numbers.
const NAMESPACES: [(i64, &str); 3] =
    [(PG_CATALOG, "pg_catalog"), (PUBLIC, SCHEMA), (INFORMATION_SCHEMA, "information_schema")];

/// The number of the one role.
const ROLE: i64 = 10;

/// The number of `pg_class` itself, which says that a description is one of a table or a column.
const PG_CLASS: i64 = 1259;

/// Tables that never have a row.
pub(super) const EMPTY: [&str; 42] = [
    "pg_aggregate",
    "pg_amop",
    "pg_amproc",
    "pg_attrdef",
    "pg_auth_members",
    "pg_cast",
    "pg_collation",
    "pg_constraint",
    "pg_conversion",
    "pg_default_acl",
    "pg_depend",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_language",
    "pg_locks",
    "pg_matviews",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_partitioned_table",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_range",
    "pg_rewrite",
    "pg_seclabel",
    "pg_sequence",
    "pg_shdepend",
    "pg_shdescription",
    "pg_statistic_ext",
    "pg_subscription",
    "pg_trigger",
    "pg_views",
];

/// The tables of this schema that have rows.
const FILLED: [&str; 12] = [
    "pg_am",
    "pg_attribute",
    "pg_authid",
    "pg_class",
    "pg_database",
    "pg_description",
    "pg_namespace",
    "pg_roles",
    "pg_settings",
    "pg_tables",
    "pg_tablespace",
    "pg_type",
];

/// The tables of this schema.
pub(super) const NAMES: [&str; EMPTY.len() + FILLED.len() + 2] = {
    let mut names = ["pg_user"; EMPTY.len() + FILLED.len() + 2];
    let mut at = 0;
    while at < EMPTY.len() {
        names[at] = EMPTY[at];
        at += 1;
    }
    while at < EMPTY.len() + FILLED.len() {
        names[at] = FILLED[at - EMPTY.len()];
        at += 1;
    }
    names[at] = "pg_stat_activity";
    names
};

/// A table's name without schema and quotes.
pub(super) fn bare(name: &str) -> &str {
    name.strip_prefix("public.").unwrap_or(name).trim_matches('"')
}

/// The place in the list of tables that a number stands for, whether or not there is one.
pub(super) fn index_of_relation(oid: i64) -> Option<usize> {
    usize::try_from(oid.checked_sub(FIRST_RELATION)?).ok()
}

/// The number of the table at a place in the list of tables.
pub(super) fn oid_at(index: usize) -> i64 {
    FIRST_RELATION + index as i64
}

fn text_list() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))
}

fn id_list() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))
}

/// A table of this schema; `None` when there is none of this name.
pub(super) fn table(catalog: &Catalog, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
    let rows = match name {
        "pg_class" => class(catalog.tables()?),
        "pg_attribute" => attribute(catalog.tables()?),
        "pg_description" => description(catalog.tables()?),
        "pg_tables" => tables(catalog.tables()?),
        "pg_type" => types(),
        "pg_namespace" => Rows::new(NAMESPACES.len())
            .ids("oid", |row| NAMESPACES[row].0)
            .texts("nspname", |row| NAMESPACES[row].1)
            .same_ids(&["nspowner"], ROLE)
            .nulls(&["nspacl"], &text_list()),
        "pg_database" => database(),
        "pg_roles" | "pg_authid" | "pg_user" => roles(name == "pg_user"),
        "pg_am" => Rows::new(1).same_ids(&["oid"], 2).same_texts(&["amname"], "heap").same_texts(&["amtype"], "t"),
        "pg_tablespace" => Rows::new(1)
            .same_ids(&["oid"], 1663)
            .same_texts(&["spcname"], "pg_default")
            .same_ids(&["spcowner"], ROLE)
            .nulls(&["spcacl", "spcoptions"], &text_list()),
        "pg_settings" => settings(),
        "pg_stat_activity" => Rows::new(0).nulls(&["pid", "datid", "usesysid"], &DataType::Int64).nulls(
            &["datname", "usename", "application_name", "client_addr", "state", "query", "backend_type"],
            &DataType::Utf8,
        ),
        _ if EMPTY.contains(&name) => empty(name),
        _ => return Ok(None),
    };
    rows.finish().map(Some)
}

fn class(tables: &[TableInfo]) -> Rows {
    Rows::new(tables.len())
        .ids("oid", oid_at)
        .texts("relname", |row| tables[row].name)
        .same_ids(&["relnamespace"], PUBLIC)
        .same_ids(&["reltype", "reloftype"], 0)
        .same_ids(&["relowner"], ROLE)
        .same_ids(&["relam", "relfilenode", "reltablespace"], 0)
        .same_ints(&["relpages", "relallvisible"], 0)
        .floats("reltuples", |row| tables[row].stored.map_or(-1.0, |stored| stored.rows as f32))
        .same_ids(&["reltoastrelid"], 0)
        .same_flags(&["relhasindex", "relisshared"], false)
        .same_texts(&["relpersistence"], "p")
        .same_texts(&["relkind"], "r")
        .ints("relnatts", |row| i32::try_from(tables[row].columns.len()).unwrap_or(i32::MAX))
        .same_ints(&["relchecks"], 0)
        .same_flags(
            &["relhasrules", "relhastriggers", "relhassubclass", "relrowsecurity", "relforcerowsecurity"],
            false,
        )
        .same_flags(&["relispopulated"], true)
        .same_texts(&["relreplident"], "d")
        .same_flags(&["relispartition"], false)
        .same_ids(&["relrewrite", "relfrozenxid", "relminmxid"], 0)
        .nulls(&["relacl", "reloptions"], &text_list())
        .nulls(&["relpartbound"], &DataType::Utf8)
}

/// Every column, with its table's place and its own, counted from 1.
fn all_columns(tables: &[TableInfo]) -> Vec<(usize, i32, &ColumnInfo)> {
    let of_table = |(index, table)| {
        let table: &TableInfo = table;
        (1..).zip(&table.columns).map(move |(number, column)| (index, number, column))
    };
    tables.iter().enumerate().flat_map(of_table).collect()
}

fn attribute(tables: &[TableInfo]) -> Rows {
    let columns = all_columns(tables);
    let found = |row: usize| column_type(&columns[row].2.data_type);
    Rows::new(columns.len())
        .ids("attrelid", |row| oid_at(columns[row].0))
        .texts("attname", |row| columns[row].2.name.clone())
        .ids("atttypid", |row| i64::from(found(row).oid()))
        .same_ints(&["attstattarget"], -1)
        .ints("attlen", |row| i32::from(found(row).length()))
        .ints("attnum", |row| columns[row].1)
        .ints("attndims", |row| i32::from(found(row).is_array))
        .same_ints(&["attcacheoff", "atttypmod"], -1)
        .flags("attbyval", |row| (1..=8).contains(&found(row).length()))
        .same_texts(&["attalign"], "i")
        .texts("attstorage", |row| if found(row).length() < 0 { "x" } else { "p" })
        .same_texts(&["attcompression"], "")
        .flags("attnotnull", |row| !columns[row].2.nullable)
        .same_flags(&["atthasdef", "atthasmissing"], false)
        .same_texts(&["attidentity", "attgenerated"], "")
        .same_flags(&["attisdropped"], false)
        .same_flags(&["attislocal"], true)
        .same_ints(&["attinhcount"], 0)
        .same_ids(&["attcollation"], 0)
        .nulls(&["attacl", "attoptions", "attfdwoptions"], &text_list())
}

fn description(tables: &[TableInfo]) -> Rows {
    let columns = all_columns(tables);
    let mut lines: Vec<(usize, i32, &str)> =
        tables.iter().enumerate().map(|(index, table)| (index, 0, table.description)).collect();
    lines.extend(columns.iter().map(|(index, number, column)| (*index, *number, column.description)));
    Rows::new(lines.len())
        .ids("objoid", |row| oid_at(lines[row].0))
        .same_ids(&["classoid"], PG_CLASS)
        .ints("objsubid", |row| lines[row].1)
        .texts("description", |row| lines[row].2)
}

fn tables(tables: &[TableInfo]) -> Rows {
    Rows::new(tables.len())
        .same_texts(&["schemaname"], SCHEMA)
        .texts("tablename", |row| tables[row].name)
        .same_texts(&["tableowner"], DATABASE)
        .nulls(&["tablespace"], &DataType::Utf8)
        .same_flags(&["hasindexes", "hasrules", "hastriggers", "rowsecurity"], false)
}

/// Types whose functions have an underscore in their names, as in `date_in`.
const UNDERSCORED: [&str; 9] =
    ["date", "time", "timestamp", "timestamptz", "interval", "numeric", "json", "jsonb", "uuid"];

fn types() -> Rows {
    // Each type, and the type of its arrays.
    let arrays = types::ALL.into_iter().filter(|item| item.array != 0).map(|item| (item, true));
    let all: Vec<(PgType, bool)> = types::ALL.into_iter().map(|item| (item, false)).chain(arrays).collect();
    let name = |row: usize| {
        let (item, is_array) = all[row];
        if is_array { format!("_{}", item.name) } else { item.name.to_owned() }
    };
    let function = |row: usize, suffix: &str| {
        let (item, is_array) = all[row];
        let stem = if is_array { "array" } else { item.name };
        let gap = if is_array || UNDERSCORED.contains(&item.name) { "_" } else { "" };
        format!("{stem}{gap}{suffix}")
    };
    Rows::new(all.len())
        .ids("oid", |row| i64::from(if all[row].1 { all[row].0.array } else { all[row].0.oid }))
        .texts("typname", name)
        .same_ids(&["typnamespace"], PG_CATALOG)
        .same_ids(&["typowner"], ROLE)
        .ints("typlen", |row| if all[row].1 { -1 } else { i32::from(all[row].0.length) })
        .flags("typbyval", |row| !all[row].1 && (1..=8).contains(&all[row].0.length))
        .texts("typtype", |row| if all[row].0.category == "X" { "p" } else { "b" })
        .texts("typcategory", |row| if all[row].1 { "A" } else { all[row].0.category })
        .same_flags(&["typispreferred"], false)
        .same_flags(&["typisdefined"], true)
        .same_texts(&["typdelim"], ",")
        .same_ids(&["typrelid"], 0)
        .ids("typelem", |row| if all[row].1 { i64::from(all[row].0.oid) } else { 0 })
        .ids("typarray", |row| if all[row].1 { 0 } else { i64::from(all[row].0.array) })
        .texts("typinput", |row| function(row, "in"))
        .texts("typoutput", |row| function(row, "out"))
        .texts("typreceive", |row| function(row, "recv"))
        .texts("typsend", |row| function(row, "send"))
        .same_texts(&["typalign"], "i")
        .texts("typstorage", |row| if all[row].1 || all[row].0.length < 0 { "x" } else { "p" })
        .same_flags(&["typnotnull"], false)
        .same_ids(&["typbasetype", "typcollation"], 0)
        .same_ints(&["typtypmod"], -1)
        .same_ints(&["typndims"], 0)
        .nulls(&["typdefault"], &DataType::Utf8)
        .nulls(&["typacl"], &text_list())
}

fn database() -> Rows {
    Rows::new(1)
        .same_ids(&["oid"], 5)
        .same_texts(&["datname"], DATABASE)
        .same_ids(&["datdba"], ROLE)
        .same_ints(&["encoding"], 6)
        .same_texts(&["datlocprovider"], "c")
        .same_flags(&["datistemplate"], false)
        .same_flags(&["datallowconn"], true)
        .same_ints(&["datconnlimit"], -1)
        .same_ids(&["datfrozenxid", "datminmxid"], 0)
        .same_ids(&["dattablespace"], 1663)
        .same_texts(&["datcollate", "datctype"], "C")
        .nulls(&["daticulocale", "datcollversion"], &DataType::Utf8)
        .nulls(&["datacl"], &text_list())
}

fn roles(as_users: bool) -> Rows {
    if as_users {
        return Rows::new(1)
            .same_texts(&["usename"], DATABASE)
            .same_ids(&["usesysid"], ROLE)
            .same_flags(&["usecreatedb", "usesuper", "userepl", "usebypassrls"], false);
    }
    Rows::new(1)
        .same_ids(&["oid"], ROLE)
        .same_texts(&["rolname"], DATABASE)
        .same_flags(&["rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls"], false)
        .same_flags(&["rolinherit", "rolcanlogin"], true)
        .same_ints(&["rolconnlimit"], -1)
        .nulls(&["rolpassword"], &DataType::Utf8)
        .nulls(&["rolvaliduntil"], &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
        .nulls(&["rolconfig"], &text_list())
}

fn settings() -> Rows {
    let all = super::functions::SETTINGS;
    Rows::new(all.len())
        .texts("name", |row| all[row].0)
        .texts("setting", |row| all[row].1)
        .nulls(&["unit", "category", "short_desc", "boot_val", "reset_val", "source"], &DataType::Utf8)
        .same_texts(&["context"], "user")
        .same_texts(&["vartype"], "string")
}

/// The columns of an empty table that tools name: those whose names come up where the table is joined from outside.
fn empty(name: &str) -> Rows {
    let ids: &[&str];
    let texts: &[&str];
    let flags: &[&str];
    let id_lists: &[&str];
    match name {
        "pg_attrdef" => (ids, texts, flags, id_lists) = (&["oid", "adrelid", "adnum"], &["adbin"], &[], &[]),
        "pg_collation" => (ids, texts, flags, id_lists) = (&["oid", "collnamespace"], &["collname"], &[], &[]),
        "pg_constraint" => {
            ids = &["oid", "connamespace", "conrelid", "contypid", "conindid", "conparentid", "confrelid"];
            texts = &["conname", "contype", "confupdtype", "confdeltype", "confmatchtype"];
            flags = &["condeferrable", "condeferred", "convalidated"];
            id_lists = &["conkey", "confkey"];
        }
        "pg_index" => {
            ids = &["indexrelid", "indrelid", "indnatts", "indnkeyatts"];
            texts = &["indexprs", "indpred"];
            flags = &["indisunique", "indisprimary", "indisclustered", "indisvalid", "indisready", "indisreplident"];
            id_lists = &["indkey", "indoption", "indclass", "indcollation"];
        }
        "pg_enum" => (ids, texts, flags, id_lists) = (&["oid", "enumtypid", "enumsortorder"], &["enumlabel"], &[], &[]),
        "pg_range" => (ids, texts, flags, id_lists) = (&["rngtypid", "rngsubtype", "rngmultitypid"], &[], &[], &[]),
        "pg_inherits" => (ids, texts, flags, id_lists) = (&["inhrelid", "inhparent", "inhseqno"], &[], &[], &[]),
        "pg_depend" => {
            ids = &["classid", "objid", "objsubid", "refclassid", "refobjid", "refobjsubid"];
            (texts, flags, id_lists) = (&["deptype"], &[], &[]);
        }
        "pg_proc" => {
            ids = &["oid", "pronamespace", "prorettype", "prolang", "proowner"];
            (texts, flags, id_lists) = (&["proname", "prokind", "prosrc"], &["proretset"], &["proargtypes"]);
        }
        "pg_views" | "pg_matviews" | "pg_indexes" => {
            (ids, flags, id_lists) = (&[], &[], &[]);
            texts = &["schemaname", "viewname", "matviewname", "tablename", "indexname", "definition", "indexdef"];
        }
        "pg_extension" => {
            (ids, texts, flags, id_lists) = (&["oid", "extnamespace"], &["extname", "extversion"], &[], &[])
        }
        "pg_foreign_table" => (ids, texts, flags, id_lists) = (&["ftrelid", "ftserver"], &[], &[], &[]),
        "pg_sequence" => (ids, texts, flags, id_lists) = (&["seqrelid", "seqtypid"], &[], &[], &[]),
        "pg_partitioned_table" => (ids, texts, flags, id_lists) = (&["partrelid"], &["partstrat"], &[], &[]),
        "pg_auth_members" => {
            (ids, texts, flags, id_lists) = (&["roleid", "member", "grantor"], &[], &["admin_option"], &[])
        }
        "pg_shdescription" => (ids, texts, flags, id_lists) = (&["objoid", "classoid"], &["description"], &[], &[]),
        _ => (ids, texts, flags, id_lists) = (&["oid"], &[], &[], &[]),
    }
    Rows::new(0)
        .nulls(ids, &DataType::Int64)
        .nulls(texts, &DataType::Utf8)
        .nulls(flags, &DataType::Boolean)
        .nulls(id_lists, &id_list())
}
