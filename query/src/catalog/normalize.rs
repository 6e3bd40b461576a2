//! PostgreSQL's ways of writing, put into words that the planner knows.
//!
//! Tools that speak PostgreSQL write `c.relname OPERATOR(pg_catalog.~) '^(spans)$' COLLATE pg_catalog.default` and
//! `'spans'::regclass`; here that becomes `relname ~ '^(spans)$'` and a number. A part of a query that reads from a
//! table which never has a row ([`postgres::EMPTY`]) becomes what it must give, nothing, since it often uses what
//! DataFusion cannot plan (sets of rows, arrays of subqueries). Statements without any of this are left as they are.
//!
//! Runs between the parser and the guard's walk over the tree, so the guard sees what will run. Not here: the tables
//! and functions themselves.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Array, ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, JoinOperator, ObjectName, ObjectNamePart, Query,
    Select, SelectItem, SetExpr, TableFactor, TableWithJoins, Value, VisitMut as _, VisitorMut,
};

use super::{postgres, types};
use crate::error::{ErrorKind, QueryError};

/// Rewrites a statement in place.
///
/// # Errors
/// When it names a relation or a type by text and there is none of this name.
pub(crate) fn normalize(statement: &mut Statement) -> Result<(), QueryError> {
    let inner = match statement {
        Statement::Statement(inner) => inner,
        Statement::Explain(explain) => match explain.statement.as_mut() {
            Statement::Statement(inner) => inner,
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    match inner.visit(&mut Normalizer) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Normalizer;

impl VisitorMut for Normalizer {
    type Break = QueryError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<QueryError> {
        if let SetExpr::Select(select) = query.body.as_mut()
            && reads_nothing(select)
        {
            give_nothing(select);
            // It may name columns of what is read no more.
            query.order_by = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<QueryError> {
        if reads_nothing(select) {
            give_nothing(select);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<QueryError> {
        match expr {
            Expr::Subquery(query) if is_empty(query) => *expr = null(),
            Expr::Exists { subquery, negated } if is_empty(subquery) => {
                *expr = Expr::Value(Value::Boolean(*negated).into());
            }
            Expr::Function(Function { name, args: FunctionArguments::Subquery(query), .. })
                if last(name).is_some_and(|name| name.eq_ignore_ascii_case("array")) && is_empty(query) =>
            {
                *expr = null();
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<QueryError> {
        match expr {
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(name) = op
                    && let Some(known) = name.last().and_then(|name| operator(name))
                {
                    *op = known;
                }
            }
            // As lists these prune, and know ids and attributes.
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                if let Some(list) = listed(right) {
                    let expr_in = std::mem::replace(left, Box::new(null()));
                    *expr = Expr::InList { expr: expr_in, list, negated: false };
                }
            }
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => {
                if let Some(list) = listed(right) {
                    let expr_in = std::mem::replace(left, Box::new(null()));
                    *expr = Expr::InList { expr: expr_in, list, negated: true };
                }
            }
            Expr::Collate { expr: inner, collation } if is_bytewise(collation) => {
                *expr = std::mem::replace(inner, null());
            }
            Expr::Function(function) => {
                if let [schema, _] = &function.name.0[..]
                    && schema.as_ident().is_some_and(|schema| schema.value.eq_ignore_ascii_case("pg_catalog"))
                {
                    function.name.0.remove(0);
                }
            }
            Expr::Cast { expr: inner, data_type, kind, .. } if *kind != CastKind::TryCast => {
                if let Some(name) = postgres_type(data_type) {
                    match cast(std::mem::replace(inner, null()), &name) {
                        Ok(Cast::To(kept, to)) => (**inner, *data_type) = (kept, to),
                        Ok(Cast::Is(value)) => *expr = value,
                        Err(error) => return ControlFlow::Break(error),
                    }
                } else if let DataType::Array(ArrayElemTypeDef::SquareBracket(item, _)) = data_type {
                    if let Some(name) = postgres_type(item)
                        && let Some(to) = plain_type(&name)
                    {
                        **item = to;
                    }
                    if let Some(text) = literal_text(inner)
                        && let Some(items) = array_items(text)
                    {
                        **inner = Expr::Array(Array { elem: items, named: true });
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// The items of an array that is written out and has some.
fn listed(array: &mut Expr) -> Option<Vec<Expr>> {
    match array {
        Expr::Array(array) if !array.elem.is_empty() => Some(std::mem::take(&mut array.elem)),
        Expr::Nested(inner) => listed(inner),
        // The items of a cast array have the type they are compared with.
        Expr::Cast { expr: inner, data_type: DataType::Array(_), .. } => listed(inner),
        _ => None,
    }
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn last(name: &ObjectName) -> Option<&str> {
    name.0.last().and_then(ObjectNamePart::as_ident).map(|ident| ident.value.as_str())
}

/// Columns of `pg_catalog` that are always null, and that tools unpack into rows.
const ALWAYS_NULL: [&str; 9] =
    ["attacl", "attfdwoptions", "attoptions", "datacl", "nspacl", "relacl", "reloptions", "rolconfig", "spcoptions"];

/// Whether a relation never has a row: a table that is always empty, or a list unpacked that is always null.
fn never_has_rows(relation: &TableFactor) -> bool {
    let name = match relation {
        TableFactor::Table { name, args: None, .. } => name,
        TableFactor::Table { name, args: Some(arguments), .. } => {
            let unpacks =
                last(name).is_some_and(|name| ["unnest", "pg_options_to_table", "aclexplode"].contains(&name));
            return unpacks
                && matches!(&arguments.args[..], [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(column)))]
                    if column.last().is_some_and(|column| ALWAYS_NULL.contains(&column.value.as_str())));
        }
        _ => return false,
    };
    let is_postgres = match &name.0[..] {
        [_] => true,
        [schema, _] => schema.as_ident().is_some_and(|schema| schema.value.eq_ignore_ascii_case("pg_catalog")),
        _ => false,
    };
    is_postgres && last(name).is_some_and(|name| postgres::EMPTY.contains(&name.to_ascii_lowercase().as_str()))
}

/// Whether a relation with what is joined to it has no row: the relation itself has none and nothing that keeps the
/// rows of the other side is joined to it, or an inner join is with one that has none.
fn is_joined_with_nothing(joined: &TableWithJoins) -> bool {
    let mut nothing = never_has_rows(&joined.relation);
    for join in &joined.joins {
        nothing = match join.join_operator {
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {
                nothing || never_has_rows(&join.relation)
            }
            JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => nothing,
            _ => return false,
        };
    }
    nothing
}

/// Whether a SELECT gives no row because of what it reads, and names its columns itself.
fn reads_nothing(select: &Select) -> bool {
    let is_grouped = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let is_plain = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => is_grouped || !is_aggregate(expr),
        _ => false,
    };
    select.from.iter().any(is_joined_with_nothing) && select.projection.iter().all(is_plain)
}

/// Whether an expression is an aggregate, which gives a row for no rows.
fn is_aggregate(expr: &Expr) -> bool {
    const AGGREGATES: [&str; 9] =
        ["count", "sum", "min", "max", "avg", "string_agg", "array_agg", "bool_and", "bool_or"];
    match expr {
        Expr::Function(function) => last(&function.name).is_some_and(|name| {
            AGGREGATES.contains(&name.to_ascii_lowercase().as_str())
                || matches!(&function.args, FunctionArguments::List(list) if list.args.iter().any(|argument| {
                    matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::Expr(inner)) if is_aggregate(inner))
                }))
        }),
        Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } | Expr::Cast { expr: inner, .. } => is_aggregate(inner),
        Expr::BinaryOp { left, right, .. } => is_aggregate(left) || is_aggregate(right),
        _ => false,
    }
}

fn is_empty(query: &Query) -> bool {
    query.with.is_none() && matches!(query.body.as_ref(), SetExpr::Select(select) if reads_nothing(select))
}

/// Makes a SELECT read nothing and give nothing, under the same names.
fn give_nothing(select: &mut Select) {
    let named = |item: SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => SelectItem::ExprWithAlias { expr: null(), alias },
        SelectItem::UnnamedExpr(expr) => {
            let name = match &expr {
                Expr::Identifier(name) => Some(name.value.clone()),
                Expr::CompoundIdentifier(names) => names.last().map(|name| name.value.clone()),
                Expr::Function(function) => last(&function.name).map(str::to_owned),
                _ => None,
            };
            let alias = Ident::with_quote('"', name.unwrap_or_else(|| "?column?".to_owned()));
            SelectItem::ExprWithAlias { expr: null(), alias }
        }
        other => other,
    };
    // Two columns of one name are fine for PostgreSQL and not for the planner.
    let mut names = std::collections::HashSet::new();
    let projection = std::mem::take(&mut select.projection).into_iter().map(named).map(|item| match item {
        SelectItem::ExprWithAlias { expr, mut alias } => {
            while !names.insert(alias.value.clone()) {
                alias.value.push('_');
            }
            SelectItem::ExprWithAlias { expr, alias }
        }
        other => other,
    });
    select.projection = projection.collect();
    select.from.clear();
    select.distinct = None;
    select.selection = Some(Expr::Value(Value::Boolean(false).into()));
    select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
    select.having = None;
}

/// The operator of a name, as in `OPERATOR(pg_catalog.~)`.
fn operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "||" => BinaryOperator::StringConcat,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        _ => return None,
    })
}

/// Whether a collation orders by bytes, as everything is ordered here.
fn is_bytewise(collation: &ObjectName) -> bool {
    last(collation).is_some_and(|name| ["default", "c", "posix", "ucs_basic"].contains(&name.to_lowercase().as_str()))
}

/// The name of a type that is PostgreSQL's own; `None` for types the planner knows.
fn postgres_type(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Regclass => Some("regclass".to_owned()),
        DataType::JSON | DataType::JSONB => Some("json".to_owned()),
        DataType::Custom(name, modifiers) if modifiers.is_empty() => match &name.0[..] {
            [_] => last(name).map(str::to_ascii_lowercase),
            [schema, _] => schema
                .as_ident()
                .is_some_and(|schema| ["pg_catalog", "information_schema"].contains(&schema.value.as_str()))
                .then(|| last(name).map(str::to_ascii_lowercase))
                .flatten(),
            _ => None,
        },
        _ => None,
    }
}

/// The planner's type for a type of PostgreSQL that holds plain values.
fn plain_type(name: &str) -> Option<DataType> {
    Some(match name {
        "text" | "name" | "char" | "bpchar" | "varchar" | "cstring" | "unknown" | "json" | "jsonb" | "uuid"
        | "sql_identifier" | "character_data" | "yes_or_no" | "aclitem" => DataType::Text,
        "oid" | "xid" | "int8" | "bigint" | "cardinal_number" => DataType::BigInt(None),
        "int4" | "int" | "integer" => DataType::Integer(None),
        "int2" | "smallint" => DataType::SmallInt(None),
        "float4" | "real" => DataType::Real,
        "float8" => DataType::DoublePrecision,
        "bool" | "boolean" => DataType::Boolean,
        _ => return None,
    })
}

enum Cast {
    /// The cast stays, of this to that.
    To(Expr, DataType),
    /// The cast becomes this.
    Is(Expr),
}

/// What a cast to a type of PostgreSQL means.
fn cast(expr: Expr, name: &str) -> Result<Cast, QueryError> {
    let text = literal_text(&expr).map(str::to_owned);
    if let Some(to) = plain_type(name) {
        return Ok(Cast::To(expr, to));
    }
    let number = |number: i64| Ok(Cast::Is(Expr::Value(Value::Number(number.to_string(), false).into())));
    match (name, text) {
        ("regclass" | "regtype" | "regproc" | "regprocedure" | "regnamespace" | "regrole", Some(text))
            if text.parse::<i64>().is_ok() =>
        {
            number(text.parse().unwrap_or_default())
        }
        ("regclass", Some(_)) => Ok(Cast::Is(call("regclass_number", vec![expr]))),
        ("regclass", None) => Ok(Cast::Is(call("regclass_name", vec![expr]))),
        ("regtype", Some(text)) => match types::by_name(text.trim_start_matches("pg_catalog.")) {
            Some(known) => number(i64::from(known.oid)),
            None => Err(QueryError::new(ErrorKind::BadQuery, format!("type \"{text}\" does not exist"))),
        },
        ("regtype", None) => Ok(Cast::Is(call("format_type", vec![expr, null()]))),
        ("regproc" | "regprocedure", Some(text)) => {
            let name = text.rsplit('.').next().unwrap_or_default().to_owned();
            Ok(Cast::Is(Expr::Value(Value::SingleQuotedString(name).into())))
        }
        ("regproc" | "regprocedure" | "regnamespace" | "regrole", _) => Ok(Cast::To(expr, DataType::Text)),
        _ => Err(QueryError::new(ErrorKind::BadQuery, format!("type \"{name}\" does not exist"))),
    }
}

fn literal_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(text),
            _ => None,
        },
        Expr::Nested(inner) => literal_text(inner),
        _ => None,
    }
}

/// The items of an array that is written as text, `{a,b}`.
fn array_items(text: &str) -> Option<Vec<Expr>> {
    let item = |item: Option<String>| match item {
        Some(text) => Expr::Value(Value::SingleQuotedString(text).into()),
        None => null(),
    };
    Some(crate::script::array_items(text).ok()?.into_iter().map(item).collect())
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
