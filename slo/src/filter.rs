//! The filter of an SLI: a SQL condition on one row, read into a tree that needs no SQL engine.
//!
//! The same text means the same behind `WHERE` of a query. Comparisons of a column with literals,
//! `IN`, `LIKE`, `BETWEEN`, `IS NULL`, joined by `AND`, `OR`, `NOT`, with SQL's three-valued logic: a
//! comparison with an absent value is neither true nor false, and only true counts. Not here: how rows
//! are tested fast ([`crate::matcher`]).

use std::cmp::Ordering;
use std::fmt;

use model::signal::Table;
use sqlparser::ast::{AccessExpr, BinaryOperator, Expr as Sql, Subscript, UnaryOperator, Value as SqlValue};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

/// Nesting of a condition.
const DEPTH_MAX: usize = 32;

/// Comparisons in one condition.
const ATOMS_MAX: usize = 1_000;

/// Bytes of a condition's text.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// True, false, or SQL's neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Truth {
    /// It does not hold.
    False,
    /// A value that it needs is absent.
    Unknown,
    /// It holds.
    True,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What of a row is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Column {
    /// A column of the table's schema.
    Named(&'static str),
    /// `value` of `metric_points`: the point's number, whichever of its two columns holds it.
    PointValue,
    /// `attributes['key']`.
    Attribute(String),
    /// `resource_attributes['key']`.
    Resource(String),
    /// `scope_attributes['key']`.
    Scope(String),
    /// `scope_name`.
    ScopeName,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |key: &str| key.replace('\'', "''");
        match self {
            Self::Named(name) => f.write_str(name),
            Self::PointValue => f.write_str("value"),
            Self::Attribute(key) => write!(f, "attributes['{}']", escaped(key)),
            Self::Resource(key) => write!(f, "resource_attributes['{}']", escaped(key)),
            Self::Scope(key) => write!(f, "scope_attributes['{}']", escaped(key)),
            Self::ScopeName => f.write_str("scope_name"),
        }
    }
}

/// A constant of a condition.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub enum Literal {
    /// Text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A number with a fraction.
    Double(f64),
    /// True or false.
    Bool(bool),
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
            Self::Int(number) => write!(f, "{number}"),
            Self::Double(number) => write!(f, "{number:?}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// Absent, or of a kind that cannot be compared (bytes, arrays, maps).
    Null,
    /// Text.
    Text(&'a str),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// True or false.
    Bool(bool),
}

/// How a value stands to a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// `<`, OpenSLO's `lt`
    Less,
    /// `<=`, OpenSLO's `lte`
    AtMost,
    /// `>`, OpenSLO's `gt`
    Greater,
    /// `>=`, OpenSLO's `gte`
    AtLeast,
}

impl Op {
    /// Whether a value that stands so to the literal passes.
    #[must_use]
    pub fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering == Ordering::Less,
            Self::AtMost => ordering != Ordering::Greater,
            Self::Greater => ordering == Ordering::Greater,
            Self::AtLeast => ordering != Ordering::Less,
        }
    }

    /// As SQL writes it.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// A test of one value.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub enum Test {
    /// Equal to one of the literals.
    In(Vec<Literal>),
    /// Smaller or larger than a literal.
    Compare(Op, Literal),
    /// Like a pattern: `%` any text, `_` one character, `\` takes the next one as it is.
    Like(String),
    /// Absent.
    IsNull,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub enum Filter {
    /// A test of one column.
    Atom(Column, Test),
    /// All of them; every row when there are none.
    All(Vec<Self>),
    /// One of them; no row when there are none.
    Any(Vec<Self>),
    /// Not it.
    Not(Box<Self>),
}

impl fmt::Display for Filter {
    /// SQL that means the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str, none: &str| {
            match parts {
                [] => return f.write_str(none),
                [only] => return write!(f, "{only}"),
                _ => {}
            }
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    write!(f, " {word} ")?;
                }
                write!(f, "({part})")?;
            }
            Ok(())
        };
        match self {
            Self::Atom(column, Test::In(literals)) => match &literals[..] {
                [literal] => write!(f, "{column} = {literal}"),
                _ => {
                    let list: Vec<String> = literals.iter().map(ToString::to_string).collect();
                    write!(f, "{column} IN ({})", list.join(", "))
                }
            },
            Self::Atom(column, Test::Compare(op, literal)) => write!(f, "{column} {} {literal}", op.symbol()),
            Self::Atom(column, Test::Like(pattern)) => {
                write!(f, "{column} LIKE {}", Literal::Text(pattern.clone()))
            }
            Self::Atom(column, Test::IsNull) => write!(f, "{column} IS NULL"),
            Self::All(parts) => join(f, parts, "AND", "true"),
            Self::Any(parts) => join(f, parts, "OR", "false"),
            Self::Not(part) => write!(f, "NOT ({part})"),
        }
    }
}

impl Filter {
    /// Reads a condition on a table's rows; an empty text is every row.
    ///
    /// # Errors
    /// What is wrong with it and what may be written, in one sentence.
    pub fn parse(table: Table, text: &str) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("the condition has {} bytes: at most {TEXT_BYTES_MAX} are read", text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::All(Vec::new()));
        }
        let dialect = GenericDialect {};
        let mut parser = Parser::new(&dialect)
            .with_recursion_limit(DEPTH_MAX)
            .try_with_sql(text)
            .map_err(|error| format!("this is not a SQL condition: {error}"))?;
        let sql = parser.parse_expr().map_err(|error| format!("this is not a SQL condition: {error}"))?;
        let rest = parser.peek_token();
        if rest.token != Token::EOF {
            return Err(format!("this is not one SQL condition: `{}` follows where it could end", rest.token));
        }
        let mut atoms = 0;
        read(table, &sql, &mut atoms)
    }

    /// This condition and another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All(mut parts), Self::All(more)) => {
                parts.extend(more);
                Self::All(parts)
            }
            (Self::All(mut parts), other) => {
                parts.push(other);
                Self::All(parts)
            }
            (this, Self::All(mut parts)) => {
                parts.insert(0, this);
                Self::All(parts)
            }
            (this, other) => Self::All(vec![this, other]),
        }
    }

    /// The verdict, given each atom's.
    pub fn eval(&self, atom: &mut impl FnMut(&Column, &Test) -> Truth) -> Truth {
        match self {
            Self::Atom(column, test) => atom(column, test),
            Self::All(parts) => parts.iter().map(|part| part.eval(atom)).min().unwrap_or(Truth::True),
            Self::Any(parts) => parts.iter().map(|part| part.eval(atom)).max().unwrap_or(Truth::False),
            Self::Not(part) => match part.eval(atom) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
        }
    }
}

impl Test {
    /// The test's verdict on a value.
    #[must_use]
    pub fn holds(&self, cell: Cell<'_>) -> Truth {
        if let (Self::IsNull, cell) = (self, cell) {
            return (cell == Cell::Null).into();
        }
        if cell == Cell::Null {
            return Truth::Unknown;
        }
        match self {
            Self::IsNull => Truth::False,
            Self::In(literals) => {
                let mut verdict = Truth::False;
                for literal in literals {
                    match compare(cell, literal) {
                        Some(Ordering::Equal) => return Truth::True,
                        Some(_) => {}
                        None => verdict = Truth::Unknown,
                    }
                }
                verdict
            }
            Self::Compare(op, literal) => {
                compare(cell, literal).map_or(Truth::Unknown, |ordering| op.holds(ordering).into())
            }
            Self::Like(pattern) => match cell {
                Cell::Text(text) => like(text, pattern).into(),
                _ => Truth::Unknown,
            },
        }
    }
}

/// How a value stands to a literal; `None` when they cannot be compared. Text and numbers meet as
/// numbers, where the text is one.
#[must_use]
pub fn compare(cell: Cell<'_>, literal: &Literal) -> Option<Ordering> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match (cell, literal) {
        (Cell::Null, _) => None,
        (Cell::Text(text), Literal::Text(want)) => Some(text.cmp(want.as_str())),
        (Cell::Text(text), Literal::Int(want)) => match text.trim().parse::<i64>() {
            Ok(value) => Some(value.cmp(want)),
            Err(_) => number(text)?.partial_cmp(&as_double(*want)),
        },
        (Cell::Text(text), Literal::Double(want)) => number(text)?.partial_cmp(want),
        (Cell::Text(text), Literal::Bool(want)) => Some(bool_of(text)?.cmp(want)),
        (Cell::Int(value), Literal::Int(want)) => Some(value.cmp(want)),
        (Cell::Int(value), Literal::Double(want)) => as_double(value).partial_cmp(want),
        (Cell::Int(value), Literal::Text(want)) => match want.trim().parse::<i64>() {
            Ok(want) => Some(value.cmp(&want)),
            Err(_) => as_double(value).partial_cmp(&number(want)?),
        },
        (Cell::Double(value), Literal::Double(want)) => value.partial_cmp(want),
        (Cell::Double(value), Literal::Int(want)) => value.partial_cmp(&as_double(*want)),
        (Cell::Double(value), Literal::Text(want)) => value.partial_cmp(&number(want)?),
        (Cell::Bool(value), Literal::Bool(want)) => Some(value.cmp(want)),
        (Cell::Bool(value), Literal::Text(want)) => Some(value.cmp(&bool_of(want)?)),
        (Cell::Int(_) | Cell::Double(_), Literal::Bool(_)) | (Cell::Bool(_), Literal::Int(_) | Literal::Double(_)) => {
            None
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "SQL compares an integer with a double as doubles, too")]
const fn as_double(value: i64) -> f64 {
    value as f64
}

fn bool_of(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// SQL's `LIKE`, without recursion: the last `%` takes one character more whenever the rest fails.
fn like(text: &str, pattern: &str) -> bool {
    enum Piece {
        Any,
        One,
        Exactly(char),
    }
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        pieces.push(match character {
            '%' => Piece::Any,
            '_' => Piece::One,
            '\\' => Piece::Exactly(characters.next().unwrap_or('\\')),
            character => Piece::Exactly(character),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut piece) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() {
        match pieces.get(piece) {
            Some(Piece::Any) => {
                retry = Some((at, piece));
                piece += 1;
                continue;
            }
            Some(Piece::One) => (at, piece) = (at + 1, piece + 1),
            Some(Piece::Exactly(want)) if *want == text[at] => (at, piece) = (at + 1, piece + 1),
            _ => {
                let Some((from, star)) = retry else { return false };
                retry = Some((from + 1, star));
                (at, piece) = (from + 1, star + 1);
            }
        }
    }
    pieces[piece..].iter().all(|piece| matches!(piece, Piece::Any))
}

const EXPECTED: &str =
    "write comparisons of columns with literals, IN, LIKE, BETWEEN and IS NULL, joined by AND, OR and NOT";

fn read(table: Table, sql: &Sql, atoms: &mut usize) -> Result<Filter, String> {
    let atom = |column: Column, test: Test, atoms: &mut usize| {
        *atoms += 1;
        if *atoms > ATOMS_MAX {
            return Err(format!("the condition has too many comparisons: at most {ATOMS_MAX} are read"));
        }
        Ok(Filter::Atom(column, test))
    };
    let negated = |negated: bool, filter: Filter| if negated { Filter::Not(Box::new(filter)) } else { filter };
    match sql {
        Sql::Nested(inner) => read(table, inner, atoms),
        Sql::UnaryOp { op: UnaryOperator::Not, expr } => Ok(negated(true, read(table, expr, atoms)?)),
        Sql::BinaryOp { left, op: op @ (BinaryOperator::And | BinaryOperator::Or), right } => {
            let (left, right) = (read(table, left, atoms)?, read(table, right, atoms)?);
            Ok(match (op, left, right) {
                (BinaryOperator::And, left, right) => left.and(right),
                (_, Filter::Any(mut parts), right) => {
                    parts.push(right);
                    Filter::Any(parts)
                }
                (_, left, right) => Filter::Any(vec![left, right]),
            })
        }
        Sql::BinaryOp { left, op, right } => {
            let (column, literal, flipped) = match (literal(left), literal(right)) {
                (None, Some(literal)) => (column(table, left)?, literal, false),
                (Some(literal), None) => (column(table, right)?, literal, true),
                _ => return Err(format!("`{sql}` does not compare a column with a literal: {EXPECTED}")),
            };
            let (test, negate) = match op {
                BinaryOperator::Eq => (Test::In(vec![literal]), false),
                BinaryOperator::NotEq => (Test::In(vec![literal]), true),
                BinaryOperator::Lt => (Test::Compare(if flipped { Op::Greater } else { Op::Less }, literal), false),
                BinaryOperator::LtEq => (Test::Compare(if flipped { Op::AtLeast } else { Op::AtMost }, literal), false),
                BinaryOperator::Gt => (Test::Compare(if flipped { Op::Less } else { Op::Greater }, literal), false),
                BinaryOperator::GtEq => (Test::Compare(if flipped { Op::AtMost } else { Op::AtLeast }, literal), false),
                _ => return Err(format!("`{op}` is not read in a condition of an SLI: {EXPECTED}")),
            };
            Ok(negated(negate, atom(column, test, atoms)?))
        }
        Sql::InList { expr, list, negated: not } => {
            let literals: Option<Vec<Literal>> = list.iter().map(literal).collect();
            let literals = literals.ok_or_else(|| format!("`{sql}` has more than literals in its list: {EXPECTED}"))?;
            Ok(negated(*not, atom(column(table, expr)?, Test::In(literals), atoms)?))
        }
        Sql::Like { negated: not, any: false, expr, pattern, escape_char: None } => {
            let Some(Literal::Text(pattern)) = literal(pattern) else {
                return Err(format!("`{sql}` has a pattern that is no text: {EXPECTED}"));
            };
            Ok(negated(*not, atom(column(table, expr)?, Test::Like(pattern), atoms)?))
        }
        Sql::Between { expr, negated: not, low, high } => {
            let (Some(low), Some(high)) = (literal(low), literal(high)) else {
                return Err(format!("`{sql}` has bounds that are no literals: {EXPECTED}"));
            };
            let column = column(table, expr)?;
            let low = atom(column.clone(), Test::Compare(Op::AtLeast, low), atoms)?;
            let high = atom(column, Test::Compare(Op::AtMost, high), atoms)?;
            Ok(negated(*not, low.and(high)))
        }
        Sql::IsNull(expr) => atom(column(table, expr)?, Test::IsNull, atoms),
        Sql::IsNotNull(expr) => Ok(negated(true, atom(column(table, expr)?, Test::IsNull, atoms)?)),
        Sql::Value(value) => match &value.value {
            SqlValue::Boolean(true) => Ok(Filter::All(Vec::new())),
            SqlValue::Boolean(false) => Ok(Filter::Any(Vec::new())),
            _ => Err(format!("`{sql}` is no condition: {EXPECTED}")),
        },
        Sql::Identifier(_) | Sql::CompoundFieldAccess { .. } => {
            atom(column(table, sql)?, Test::In(vec![Literal::Bool(true)]), atoms)
        }
        _ => Err(format!("`{sql}` is not read in a condition of an SLI: {EXPECTED}")),
    }
}

fn literal(sql: &Sql) -> Option<Literal> {
    match sql {
        Sql::Nested(inner) => literal(inner),
        Sql::UnaryOp { op: UnaryOperator::Minus, expr } => match literal(expr)? {
            Literal::Int(number) => Some(Literal::Int(number.checked_neg()?)),
            Literal::Double(number) => Some(Literal::Double(-number)),
            _ => None,
        },
        Sql::Value(value) => match &value.value {
            SqlValue::Number(text, _) => match text.parse::<i64>() {
                Ok(number) => Some(Literal::Int(number)),
                Err(_) => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Literal::Double),
            },
            SqlValue::SingleQuotedString(text) => Some(Literal::Text(text.clone())),
            SqlValue::Boolean(value) => Some(Literal::Bool(*value)),
            _ => None,
        },
        _ => None,
    }
}

/// The columns of a table that can be compared, besides attributes.
#[must_use]
pub const fn named_columns(table: Table) -> &'static [&'static str] {
    match table {
        Table::Spans => {
            &["service_name", "name", "kind", "status_code", "status_message", "duration_ns", "flags", "trace_state"]
        }
        Table::Logs => &["service_name", "severity_number", "severity_text", "body", "event_name", "flags"],
        Table::MetricPoints => &[
            "service_name",
            "metric_name",
            "metric_unit",
            "metric_type",
            "temporality",
            "flags",
            "is_monotonic",
            "value_double",
            "value_int",
        ],
        Table::MetricHistograms => {
            &["service_name", "metric_name", "metric_unit", "metric_type", "temporality", "flags", "sum", "min", "max"]
        }
        Table::Profiles => &["service_name"],
    }
}

/// Reads the name of a column as SQL writes it.
///
/// # Errors
/// What is wrong and which columns there are.
pub fn parse_column(table: Table, text: &str) -> Result<Column, String> {
    let dialect = GenericDialect {};
    let sql = Parser::new(&dialect)
        .with_recursion_limit(DEPTH_MAX)
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_expr())
        .map_err(|_| format!("`{text}` is no column"))?;
    column(table, &sql)
}

fn column(table: Table, sql: &Sql) -> Result<Column, String> {
    let unknown = |name: &str| {
        let names = named_columns(table);
        let hint = crate::report::suggestion(name, names);
        format!(
            "{table} has no column `{name}` that an SLI can compare{hint}: it has {}, scope_name, attributes['KEY'], \
             resource_attributes['KEY'] and scope_attributes['KEY']",
            names.join(", ")
        )
    };
    match sql {
        Sql::Nested(inner) => column(table, inner),
        Sql::Identifier(name) => {
            let wanted = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
            match wanted.as_str() {
                "value" if table == Table::MetricPoints => Ok(Column::PointValue),
                "scope_name" => Ok(Column::ScopeName),
                wanted => named_columns(table)
                    .iter()
                    .find(|name| **name == wanted)
                    .map(|name| Column::Named(name))
                    .ok_or_else(|| unknown(wanted)),
            }
        }
        Sql::CompoundFieldAccess { root, access_chain } => {
            let (Sql::Identifier(name), [AccessExpr::Subscript(Subscript::Index { index })]) =
                (&**root, &access_chain[..])
            else {
                return Err(unknown(&sql.to_string()));
            };
            let Some(Literal::Text(key)) = literal(index) else {
                return Err(format!("`{sql}` has a key that is no text: write {}['KEY']", name.value));
            };
            match name.value.to_ascii_lowercase().as_str() {
                "attributes" => Ok(Column::Attribute(key)),
                "resource_attributes" => Ok(Column::Resource(key)),
                "scope_attributes" => Ok(Column::Scope(key)),
                other => Err(unknown(other)),
            }
        }
        _ => Err(unknown(&sql.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluates a condition on spans with a few columns.
    fn eval(text: &str, row: &[(&str, Cell<'_>)]) -> Truth {
        let filter = Filter::parse(Table::Spans, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut atom = |column: &Column, test: &Test| {
            let name = column.to_string();
            let cell = row.iter().find(|(other, _)| *other == name).map_or(Cell::Null, |(_, cell)| *cell);
            test.holds(cell)
        };
        let verdict = filter.eval(&mut atom);
        let again = Filter::parse(Table::Spans, &filter.to_string()).unwrap();
        assert_eq!(again.eval(&mut atom), verdict, "{text} is written as {filter}");
        verdict
    }

    #[test]
    fn conditions_mean_what_sql_says() {
        use Truth::{False, True, Unknown};
        let row = [
            ("service_name", Cell::Text("cart")),
            ("duration_ns", Cell::Int(300)),
            ("attributes['http.response.status_code']", Cell::Int(503)),
            ("attributes['ratio']", Cell::Double(0.5)),
            ("attributes['text.code']", Cell::Text("404")),
            ("attributes['ok']", Cell::Bool(true)),
            ("resource_attributes['it''s']", Cell::Text("x")),
        ];
        for (text, want) in [
            ("", True),
            ("true", True),
            ("false", False),
            ("service_name = 'cart'", True),
            ("'cart' = SERVICE_NAME", True),
            ("service_name <> 'cart'", False),
            ("service_name != 'pay' and duration_ns <= 300", True),
            ("300 > duration_ns", False),
            ("duration_ns between 200 and 300", True),
            ("duration_ns not between 200 and 300", False),
            ("service_name in ('pay', 'cart')", True),
            ("service_name not in ('pay', 'cart')", False),
            ("service_name like 'c%t'", True),
            ("service_name like '_art'", True),
            ("service_name like 'a%'", False),
            ("service_name not like '%a%'", False),
            ("attributes['http.response.status_code'] >= 500", True),
            ("attributes['http.response.status_code'] = '503'", True),
            ("attributes['http.response.status_code'] = 'oops'", Unknown),
            ("attributes['text.code'] = 404", True),
            ("attributes['text.code'] > 404.5", False),
            ("attributes['ratio'] < 1", True),
            ("attributes['ok']", True),
            ("not attributes['ok']", False),
            ("attributes['none'] = 'x'", Unknown),
            ("not (attributes['none'] = 'x')", Unknown),
            ("attributes['none'] is null", True),
            ("attributes['none'] is not null", False),
            ("attributes['none'] = 'x' or service_name = 'cart'", True),
            ("attributes['none'] = 'x' and service_name = 'pay'", False),
            ("attributes['none'] = 'x' and service_name = 'cart'", Unknown),
            ("resource_attributes['it''s'] = 'x'", True),
            ("duration_ns > -1", True),
            ("(duration_ns = 1 or duration_ns = 300) and not service_name = 'pay'", True),
        ] {
            assert_eq!(eval(text, &row), want, "{text}");
        }
    }

    #[test]
    fn what_is_not_read_is_refused_with_what_is() {
        for (text, want) in [
            ("servicename = 'x'", "did you mean `service_name`?"),
            ("service_name = name", "does not compare a column with a literal"),
            ("lower(service_name) = 'x'", "no column"),
            ("service_name = 'x' service_name", "follows where it could end"),
            ("service_name =", "not a SQL condition"),
            ("duration_ns + 1", "is not read"),
            ("1", "is no condition"),
            ("attributes[1] = 2", "a key that is no text"),
            ("service_name in (select 1)", "is not read"),
            ("name like 5", "a pattern that is no text"),
        ] {
            let error = Filter::parse(Table::Spans, text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        let deep = format!("{}true{}", "(".repeat(1_000), ")".repeat(1_000));
        assert!(Filter::parse(Table::Spans, &deep).is_err());
        let wide = vec!["name = 'x'"; ATOMS_MAX + 1].join(" or ");
        assert!(Filter::parse(Table::Spans, &wide).is_err());
        assert!(Filter::parse(Table::Spans, &"x".repeat(TEXT_BYTES_MAX + 1)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            drop(Filter::parse(Table::Spans, &text));
        }

        #[test]
        fn like_is_the_regular_expression_it_stands_for(text in "[ab%]{0,8}", pattern in "[ab%_]{0,6}") {
            fn slow(text: &[u8], pattern: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'%', rest)) => (0..=text.len()).any(|at| slow(&text[at..], rest)),
                    Some((b'_', rest)) => !text.is_empty() && slow(&text[1..], rest),
                    Some((want, rest)) => text.first() == Some(want) && slow(&text[1..], rest),
                }
            }
            proptest::prop_assert_eq!(like(&text, &pattern), slow(text.as_bytes(), pattern.as_bytes()));
        }
    }
}
