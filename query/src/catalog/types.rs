//! SQL types as PostgreSQL numbers and names them: what its clients expect of a column.
//!
//! Numbers are those of PostgreSQL's own catalog (`pg_type.dat`), which drivers have compiled in. Not here: how values
//! of a type travel; that is the wire's.

use arrow::datatypes::DataType;
use model::attributes::attributes_type;
use model::context::context_type;

/// A type of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgType {
    /// Its number.
    pub oid: u32,
    /// Its internal name.
    pub name: &'static str,
    /// Bytes of a value; -1 when they vary.
    pub length: i16,
    /// The number of the type of its arrays; 0 when there are none.
    pub array: u32,
    /// Its category, as `pg_type` has it.
    pub category: &'static str,
    /// Its name in SQL.
    pub sql_name: &'static str,
}

const fn row(
    oid: u32,
    name: &'static str,
    length: i16,
    array: u32,
    category: &'static str,
    sql_name: &'static str,
) -> PgType {
    PgType { oid, name, length, array, category, sql_name }
}

/// True or false.
pub const BOOL: PgType = row(16, "bool", 1, 1000, "B", "boolean");
/// Bytes.
pub const BYTEA: PgType = row(17, "bytea", -1, 1001, "U", "bytea");
/// 64 bits, signed.
pub const INT8: PgType = row(20, "int8", 8, 1016, "N", "bigint");
/// 16 bits, signed.
pub const INT2: PgType = row(21, "int2", 2, 1005, "N", "smallint");
/// 32 bits, signed.
pub const INT4: PgType = row(23, "int4", 4, 1007, "N", "integer");
/// Text.
pub const TEXT: PgType = row(25, "text", -1, 1009, "S", "text");
/// JSON, kept as text.
pub const JSON: PgType = row(114, "json", -1, 199, "U", "json");
/// A single.
pub const FLOAT4: PgType = row(700, "float4", 4, 1021, "N", "real");
/// A double.
pub const FLOAT8: PgType = row(701, "float8", 8, 1022, "N", "double precision");
/// A day.
pub const DATE: PgType = row(1082, "date", 4, 1182, "D", "date");
/// A time of day.
pub const TIME: PgType = row(1083, "time", 8, 1183, "D", "time without time zone");
/// A time that no zone was said of, microseconds.
pub const TIMESTAMP: PgType = row(1114, "timestamp", 8, 1115, "D", "timestamp without time zone");
/// An instant, microseconds.
pub const TIMESTAMPTZ: PgType = row(1184, "timestamptz", 8, 1185, "D", "timestamp with time zone");
/// Months, days and microseconds.
pub const INTERVAL: PgType = row(1186, "interval", 16, 1187, "T", "interval");
/// A decimal number of any length.
pub const NUMERIC: PgType = row(1700, "numeric", -1, 1231, "N", "numeric");

/// Every type that the catalog names: those of our columns, and those that clients send parameters in.
pub const ALL: [PgType; 23] = [
    BOOL,
    BYTEA,
    row(18, "char", 1, 1002, "Z", "\"char\""),
    row(19, "name", 64, 1003, "S", "name"),
    INT8,
    INT2,
    INT4,
    TEXT,
    row(26, "oid", 4, 1028, "N", "oid"),
    JSON,
    FLOAT4,
    FLOAT8,
    row(705, "unknown", -2, 0, "X", "unknown"),
    row(1042, "bpchar", -1, 1014, "S", "character"),
    row(1043, "varchar", -1, 1015, "S", "character varying"),
    DATE,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    INTERVAL,
    NUMERIC,
    row(2950, "uuid", 16, 2951, "U", "uuid"),
    row(3802, "jsonb", -1, 3807, "U", "jsonb"),
];

/// The type of a column: one of [`ALL`], and whether the column holds arrays of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// The type, or the items' type.
    pub item: PgType,
    /// Whether it is an array.
    pub is_array: bool,
}

impl ColumnType {
    /// The type's number.
    #[must_use]
    pub const fn oid(self) -> u32 {
        if self.is_array { self.item.array } else { self.item.oid }
    }

    /// Bytes of a value; -1 when they vary.
    #[must_use]
    pub const fn length(self) -> i16 {
        if self.is_array { -1 } else { self.item.length }
    }

    /// Its name in SQL.
    #[must_use]
    pub fn sql_name(self) -> String {
        if self.is_array { format!("{}[]", self.item.sql_name) } else { self.item.sql_name.to_owned() }
    }
}

/// The type of a column that holds a type of Arrow.
///
/// Ids are text, as everywhere; whatever has parts with names is JSON. Unsigned numbers take the next larger signed
/// type, and 64 bits, of which there is no larger one, stay `bigint`: a value that does not fit is an error.
#[must_use]
pub fn column_type(data_type: &DataType) -> ColumnType {
    let plain = |item| ColumnType { item, is_array: false };
    if *data_type == attributes_type() || *data_type == context_type() {
        return plain(JSON);
    }
    match data_type {
        DataType::Boolean => plain(BOOL),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => plain(INT2),
        DataType::Int32 | DataType::UInt16 => plain(INT4),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => plain(INT8),
        DataType::Float16 | DataType::Float32 => plain(FLOAT4),
        DataType::Float64 => plain(FLOAT8),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            plain(NUMERIC)
        }
        DataType::Timestamp(_, Some(_)) => plain(TIMESTAMPTZ),
        DataType::Timestamp(_, None) => plain(TIMESTAMP),
        DataType::Date32 | DataType::Date64 => plain(DATE),
        DataType::Time32(_) | DataType::Time64(_) => plain(TIME),
        DataType::Interval(_) | DataType::Duration(_) => plain(INTERVAL),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => plain(BYTEA),
        DataType::Struct(_) | DataType::Map(..) => plain(JSON),
        DataType::Dictionary(_, value) => column_type(value),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            let item = column_type(item.data_type());
            // An array of arrays need not be rectangular, and one of objects is JSON to everybody.
            if item.is_array || item.item == JSON { plain(JSON) } else { ColumnType { is_array: true, ..item } }
        }
        _ => plain(TEXT),
    }
}

/// A type by its number, as `format_type` shows it.
#[must_use]
pub fn sql_name(oid: u32) -> Option<String> {
    ALL.iter().find_map(|known| match oid {
        0 => None,
        _ if known.oid == oid => Some(known.sql_name.to_owned()),
        _ if known.array == oid => Some(format!("{}[]", known.sql_name)),
        _ => None,
    })
}

/// A type by one of its names; the name in SQL or the internal one.
#[must_use]
pub fn by_name(name: &str) -> Option<PgType> {
    ALL.into_iter().find(|known| known.name == name || known.sql_name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::schema::{schema, time_type};
    use model::signal::Table;

    #[test]
    fn columns_have_the_types_clients_expect() {
        let list =
            |item: DataType| DataType::List(std::sync::Arc::new(arrow::datatypes::Field::new("item", item, true)));
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        for (data_type, expected) in [
            (text, "text"),
            (DataType::FixedSizeBinary(16), "text"),
            (DataType::UInt32, "bigint"),
            (DataType::UInt64, "bigint"),
            (time_type(), "timestamp with time zone"),
            (attributes_type(), "json"),
            (context_type(), "json"),
            (list(DataType::UInt64), "bigint[]"),
            (list(DataType::FixedSizeBinary(8)), "text[]"),
            (list(list(DataType::Int64)), "json"),
            (list(attributes_type()), "json"),
            (DataType::Null, "text"),
        ] {
            assert_eq!(column_type(&data_type).sql_name(), expected, "{data_type}");
        }
        for table in Table::ALL {
            for field in schema(table).fields() {
                let found = column_type(field.data_type());
                assert_eq!(sql_name(found.oid()), Some(found.sql_name()), "{table}.{}", field.name());
            }
        }
    }

    #[test]
    fn numbers_and_names_are_unique() {
        for known in ALL {
            assert_eq!(by_name(known.name), Some(known));
            assert_eq!(ALL.iter().filter(|other| other.oid == known.oid || other.array == known.oid).count(), 1);
        }
    }
}
