//! The functions of `pg_catalog` that tools call to find out where they are and what there is.
//!
//! Each is a constant, or a small function of one row. They are for questions about the catalog, whose tables have some
//! hundred rows; nothing here is made for telemetry. Not here: functions of telemetry ([`crate::functions`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::{Catalog, DATABASE, SCHEMA, TableInfo, postgres, types};
use crate::error::{ErrorKind, QueryError, external};

/// The version of PostgreSQL whose catalog this one follows. Tools choose their questions by it.
pub const POSTGRES_VERSION: &str = concat!("15.0 (GodsEye ", env!("CARGO_PKG_VERSION"), ")");

/// What `current_setting()` and `pg_settings` tell; the wire's `SHOW` tells the same.
pub const SETTINGS: [(&str, &str); 20] = [
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "off"),
    ("max_identifier_length", "63"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", POSTGRES_VERSION),
    ("server_version_num", "150000"),
    ("standard_conforming_strings", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "repeatable read"),
    ("transaction_read_only", "on"),
];

type Body = fn(&Catalog, &[ScalarValue]) -> Result<ScalarValue>;

/// A function over one row of arguments.
struct Function {
    name: &'static str,
    signature: Signature,
    returns: DataType,
    body: Body,
    catalog: Arc<Catalog>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}()", self.name)
    }
}

// One catalog is one query's, so a name says which function it is.
impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.catalog, &other.catalog)
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _argument_types: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalars: Option<Vec<ScalarValue>> = args
            .args
            .iter()
            .map(|argument| match argument {
                ColumnarValue::Scalar(value) => Some(value.clone()),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        if let Some(scalars) = scalars {
            return Ok(ColumnarValue::Scalar((self.body)(&self.catalog, &scalars)?));
        }
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let rows = (0..args.number_rows).map(|row| {
            let arguments = columns.iter().map(|column| ScalarValue::try_from_array(column, row));
            (self.body)(&self.catalog, &arguments.collect::<Result<Vec<_>>>()?)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        if rows.is_empty() {
            return Ok(ColumnarValue::Array(arrow::array::new_empty_array(&self.returns)));
        }
        Ok(ColumnarValue::Array(ScalarValue::iter_to_array(rows)?))
    }
}

fn text(value: impl Into<String>) -> ScalarValue {
    ScalarValue::Utf8(Some(value.into()))
}

const NO_TEXT: ScalarValue = ScalarValue::Utf8(None);

/// An argument as text; `None` when it is null, missing or something else.
fn text_of(arguments: &[ScalarValue], index: usize) -> Option<&str> {
    arguments.get(index)?.try_as_str().flatten()
}

/// An argument as a number; text that reads as one counts.
fn number_of(arguments: &[ScalarValue], index: usize) -> Option<i64> {
    let value = arguments.get(index)?;
    match value.cast_to(&DataType::Int64).ok()? {
        ScalarValue::Int64(number) => number,
        _ => None,
    }
}

/// The table whose number is the first argument.
fn relation_of<'a>(catalog: &'a Catalog, arguments: &[ScalarValue]) -> Result<Option<&'a TableInfo>> {
    let Some(index) = number_of(arguments, 0).and_then(postgres::index_of_relation) else { return Ok(None) };
    Ok(catalog.tables()?.get(index))
}

/// What is stored of a table, bytes; 0 for what is no table.
fn bytes_of(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let stored = relation_of(catalog, arguments)?.and_then(|table| table.stored);
    let bytes = stored.map_or(0, |stored| stored.segment_bytes);
    Ok(ScalarValue::Int64(Some(i64::try_from(bytes).unwrap_or(i64::MAX))))
}

/// `format_type(type, modifier)`
fn format_type(_: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let Some(oid) = number_of(arguments, 0) else { return Ok(NO_TEXT) };
    Ok(text(u32::try_from(oid).ok().and_then(types::sql_name).unwrap_or_else(|| "???".to_owned())))
}

/// `obj_description(object, catalog)`
fn table_description(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    match relation_of(catalog, arguments)? {
        Some(table) if matches!(text_of(arguments, 1), None | Some("pg_class")) => Ok(text(table.description)),
        _ => Ok(NO_TEXT),
    }
}

/// `col_description(table, number)`
fn column_description(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let relation = relation_of(catalog, arguments)?;
    let column = number_of(arguments, 1).and_then(|number| usize::try_from(number - 1).ok());
    let (Some(relation), Some(column)) = (relation, column) else { return Ok(NO_TEXT) };
    let found = relation.columns.get(column);
    Ok(found.map_or(NO_TEXT, |column| text(column.description)))
}

/// `to_regclass(name)`: the number of a table, null when there is none.
fn relation_number(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    Ok(ScalarValue::Int64(text_of(arguments, 0).and_then(|name| catalog.oid_of(name))))
}

/// `regclass_number(name)`: what `name::regclass` is.
fn relation_cast(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let Some(name) = text_of(arguments, 0) else { return Ok(ScalarValue::Int64(None)) };
    let found = catalog.oid_of(name).ok_or_else(|| {
        let unknown = QueryError::new(ErrorKind::BadQuery, format!("relation \"{name}\" does not exist"));
        external(unknown.hint("SHOW TABLES lists the tables"))
    })?;
    Ok(ScalarValue::Int64(Some(found)))
}

/// `regclass_name(number)`: what `number::regclass` shows.
fn relation_name(catalog: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let Some(oid) = number_of(arguments, 0) else { return Ok(NO_TEXT) };
    match relation_of(catalog, arguments)? {
        Some(table) => Ok(text(table.name)),
        None => Ok(text(oid.to_string())),
    }
}

/// `current_setting(name, missing_ok)`
fn current_setting(_: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let name = text_of(arguments, 0).unwrap_or_default().to_ascii_lowercase();
    let found = SETTINGS.iter().find(|(known, _)| *known == name);
    let missing_is_fine = matches!(arguments.get(1), Some(ScalarValue::Boolean(Some(true))));
    match found {
        Some((_, value)) => Ok(text(*value)),
        None if missing_is_fine => Ok(NO_TEXT),
        None => datafusion::common::plan_err!("unrecognized configuration parameter \"{name}\""),
    }
}

/// `pg_size_pretty(bytes)`
fn size_pretty(_: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let Some(mut size) = number_of(arguments, 0) else { return Ok(NO_TEXT) };
    // PostgreSQL stays with a unit up to 10 times the next one.
    for unit in ["bytes", "kB", "MB", "GB"] {
        if size.abs() < 10_240 {
            return Ok(text(format!("{size} {unit}")));
        }
        size = (size + 512) / 1024;
    }
    Ok(text(format!("{size} TB")))
}

/// `quote_ident(text)`
fn quote_ident(_: &Catalog, arguments: &[ScalarValue]) -> Result<ScalarValue> {
    let Some(name) = text_of(arguments, 0) else { return Ok(NO_TEXT) };
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    Ok(text(if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }))
}

fn list_of_text() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))
}

/// Every function, bound to a query's catalog.
pub(super) fn all(catalog: &Arc<Catalog>) -> Vec<Arc<ScalarUDF>> {
    use DataType::{Boolean, Int32, Int64, Utf8};
    let functions: [(&'static str, DataType, Body); 53] = [
        ("version", Utf8, |_, _| Ok(text(format!("PostgreSQL {POSTGRES_VERSION}")))),
        ("current_database", Utf8, |_, _| Ok(text(DATABASE))),
        ("current_catalog", Utf8, |_, _| Ok(text(DATABASE))),
        ("current_schema", Utf8, |_, _| Ok(text(SCHEMA))),
        ("current_schemas", list_of_text(), |_, _| {
            let names = [text("pg_catalog"), text(SCHEMA)];
            Ok(ScalarValue::List(ScalarValue::new_list_nullable(&names, &Utf8)))
        }),
        ("current_user", Utf8, |_, _| Ok(text(DATABASE))),
        ("session_user", Utf8, |_, _| Ok(text(DATABASE))),
        ("user", Utf8, |_, _| Ok(text(DATABASE))),
        ("current_role", Utf8, |_, _| Ok(text(DATABASE))),
        ("current_setting", Utf8, current_setting),
        // Settings of a session are the wire's; as a function of SQL it changes nothing.
        ("set_config", Utf8, |_, arguments| Ok(text(text_of(arguments, 1).unwrap_or_default()))),
        ("pg_backend_pid", Int32, |_, _| Ok(ScalarValue::Int32(Some(0)))),
        ("pg_is_in_recovery", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(false)))),
        ("pg_client_encoding", Utf8, |_, _| Ok(text("UTF8"))),
        ("pg_encoding_to_char", Utf8, |_, _| Ok(text("UTF8"))),
        ("pg_get_userbyid", Utf8, |_, _| Ok(text(DATABASE))),
        ("pg_advisory_unlock_all", Utf8, |_, _| Ok(text(""))),
        ("pg_table_is_visible", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("pg_type_is_visible", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("pg_function_is_visible", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("has_table_privilege", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("has_any_column_privilege", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("has_column_privilege", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("has_schema_privilege", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("has_database_privilege", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(true)))),
        ("pg_get_expr", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_viewdef", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_indexdef", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_constraintdef", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_partkeydef", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_serial_sequence", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_function_result", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_function_arguments", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_get_function_identity_arguments", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_tablespace_location", Utf8, |_, _| Ok(text(""))),
        ("pg_relation_is_publishable", Boolean, |_, _| Ok(ScalarValue::Boolean(Some(false)))),
        ("format_type", Utf8, format_type),
        ("obj_description", Utf8, table_description),
        ("col_description", Utf8, column_description),
        ("shobj_description", Utf8, |_, _| Ok(NO_TEXT)),
        ("pg_relation_size", Int64, bytes_of),
        ("pg_table_size", Int64, bytes_of),
        ("pg_total_relation_size", Int64, bytes_of),
        ("pg_indexes_size", Int64, |_, _| Ok(ScalarValue::Int64(Some(0)))),
        ("pg_database_size", Int64, |catalog, _| {
            let stored = catalog.tables()?.iter().filter_map(|table| table.stored);
            let bytes: u64 = stored.map(|stored| stored.segment_bytes).sum();
            Ok(ScalarValue::Int64(Some(i64::try_from(bytes).unwrap_or(i64::MAX))))
        }),
        ("pg_size_pretty", Utf8, size_pretty),
        ("quote_ident", Utf8, quote_ident),
        ("to_regclass", Int64, relation_number),
        ("regclass_name", Utf8, relation_name),
        ("regclass_number", Int64, relation_cast),
        ("to_regtype", Int64, |_, arguments| {
            let known = text_of(arguments, 0).and_then(types::by_name);
            Ok(ScalarValue::Int64(known.map(|known| i64::from(known.oid))))
        }),
        ("pg_typeof", Utf8, |_, arguments| {
            Ok(arguments.first().map_or(NO_TEXT, |value| text(types::column_type(&value.data_type()).sql_name())))
        }),
        ("txid_current", Int64, |_, _| Ok(ScalarValue::Int64(Some(0)))),
    ];
    let make = |(name, returns, body)| {
        let any = [TypeSignature::Nullary, TypeSignature::VariadicAny].to_vec();
        // What a session is stays the same while a query runs.
        let signature = Signature::one_of(any, Volatility::Stable);
        Arc::new(ScalarUDF::new_from_impl(Function { name, signature, returns, body, catalog: Arc::clone(catalog) }))
    };
    functions.into_iter().map(make).collect()
}
