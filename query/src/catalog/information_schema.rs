//! `information_schema`: tables and columns as the SQL standard lists them, with PostgreSQL's names of types, and one
//! column more, `description`.
//!
//! What GodsEye does not have (constraints, views, routines) is there and empty, so that tools which ask get an answer.
//! Not here: `pg_catalog`.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::error::Result;

use super::rows::Rows;
use super::types::column_type;
use super::{Catalog, ColumnInfo, DATABASE, SCHEMA, TableInfo};

/// The tables of this schema.
pub(super) const NAMES: [&str; 8] = [
    "tables",
    "columns",
    "schemata",
    "views",
    "table_constraints",
    "key_column_usage",
    "referential_constraints",
    "routines",
];

/// A table of this schema; `None` when there is none of this name.
pub(super) fn table(catalog: &Catalog, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
    let rows = match name {
        "tables" => tables(catalog.tables()?),
        "columns" => columns(catalog.tables()?),
        "schemata" => schemata(),
        "views" => Rows::new(0).nulls(
            &["table_catalog", "table_schema", "table_name", "view_definition", "is_updatable"],
            &DataType::Utf8,
        ),
        "table_constraints" => Rows::new(0).nulls(
            &[
                "constraint_catalog",
                "constraint_schema",
                "constraint_name",
                "table_catalog",
                "table_schema",
                "table_name",
                "constraint_type",
            ],
            &DataType::Utf8,
        ),
        "key_column_usage" => Rows::new(0)
            .nulls(
                &[
                    "constraint_catalog",
                    "constraint_schema",
                    "constraint_name",
                    "table_catalog",
                    "table_schema",
                    "table_name",
                    "column_name",
                ],
                &DataType::Utf8,
            )
            .nulls(&["ordinal_position", "position_in_unique_constraint"], &DataType::Int32),
        "referential_constraints" => Rows::new(0).nulls(
            &[
                "constraint_catalog",
                "constraint_schema",
                "constraint_name",
                "unique_constraint_schema",
                "unique_constraint_name",
                "update_rule",
                "delete_rule",
            ],
            &DataType::Utf8,
        ),
        "routines" => Rows::new(0).nulls(
            &["routine_catalog", "routine_schema", "routine_name", "routine_type", "data_type"],
            &DataType::Utf8,
        ),
        _ => return Ok(None),
    };
    rows.finish().map(Some)
}

fn tables(tables: &[TableInfo]) -> Rows {
    Rows::new(tables.len())
        .same_texts(&["table_catalog"], DATABASE)
        .same_texts(&["table_schema"], SCHEMA)
        .texts("table_name", |row| tables[row].name)
        .same_texts(&["table_type"], "BASE TABLE")
        .same_texts(&["is_insertable_into", "is_typed"], "NO")
        .texts("description", |row| tables[row].description)
}

fn columns(tables: &[TableInfo]) -> Rows {
    let columns: Vec<(&TableInfo, i32, &ColumnInfo)> = tables
        .iter()
        .flat_map(|table| (1..).zip(&table.columns).map(move |(position, column)| (table, position, column)))
        .collect();
    let named = |row: usize| {
        let found = column_type(&columns[row].2.data_type);
        if found.is_array {
            ("ARRAY".to_owned(), format!("_{}", found.item.name))
        } else {
            (found.sql_name(), found.item.name.to_owned())
        }
    };
    Rows::new(columns.len())
        .same_texts(&["table_catalog"], DATABASE)
        .same_texts(&["table_schema"], SCHEMA)
        .texts("table_name", |row| columns[row].0.name)
        .texts("column_name", |row| columns[row].2.name.clone())
        .ints("ordinal_position", |row| columns[row].1)
        .nulls(&["column_default"], &DataType::Utf8)
        .texts("is_nullable", |row| if columns[row].2.nullable { "YES" } else { "NO" })
        .texts("data_type", |row| named(row).0)
        .nulls(
            &[
                "character_maximum_length",
                "character_octet_length",
                "numeric_precision",
                "numeric_precision_radix",
                "numeric_scale",
                "datetime_precision",
            ],
            &DataType::Int32,
        )
        .nulls(&["interval_type", "character_set_name", "collation_name", "domain_name"], &DataType::Utf8)
        .same_texts(&["udt_catalog"], DATABASE)
        .same_texts(&["udt_schema"], "pg_catalog")
        .texts("udt_name", |row| named(row).1)
        .same_texts(&["is_identity", "is_updatable"], "NO")
        .same_texts(&["is_generated"], "NEVER")
        .nulls(&["identity_generation", "generation_expression"], &DataType::Utf8)
        .texts("description", |row| columns[row].2.description)
}

fn schemata() -> Rows {
    let names = [SCHEMA, "information_schema", "pg_catalog"];
    Rows::new(names.len())
        .same_texts(&["catalog_name"], DATABASE)
        .texts("schema_name", |row| names[row])
        .same_texts(&["schema_owner"], DATABASE)
        .nulls(&["default_character_set_name", "sql_path"], &DataType::Utf8)
}
