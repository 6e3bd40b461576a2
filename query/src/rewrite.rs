//! What people type, turned into what the engine runs: `attributes['key']`, ids as hex text, and
//! comparisons of attributes whose type is mixed.
//!
//! Ids are rewritten to binary literals before types are coerced, so that `WHERE trace_id = '5b…'`
//! reaches bloom filters and statistics as the bytes they hold. Not here: the functions themselves
//! ([`crate::functions`]).

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Between, InList, Like};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawFieldAccessExpr};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, GetFieldAccess, LogicalPlan, Operator, TryCast};
use datafusion::optimizer::AnalyzerRule;
use datafusion::sql::sqlparser::ast::BinaryOperator;

use crate::error::{ErrorKind, QueryError, external};
use crate::functions::{Functions, is_attribute_access, is_container};

/// Plans field access and comparisons as SQL text becomes expressions.
#[derive(Debug)]
pub struct TelemetryPlanner(pub Functions);

impl ExprPlanner for TelemetryPlanner {
    fn plan_field_access(
        &self,
        access: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        match &access.field_access {
            GetFieldAccess::NamedStructField { name } if is_container(&access.expr.get_type(schema)?) => {
                Ok(PlannerResult::Planned(self.0.attribute(access.expr, name.clone())))
            }
            _ => Ok(PlannerResult::Original(access)),
        }
    }

    fn plan_binary_op(&self, binary: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = binary;
        let operator = match op {
            BinaryOperator::Eq => Operator::Eq,
            BinaryOperator::NotEq => Operator::NotEq,
            BinaryOperator::Lt => Operator::Lt,
            BinaryOperator::LtEq => Operator::LtEq,
            BinaryOperator::Gt => Operator::Gt,
            BinaryOperator::GtEq => Operator::GtEq,
            BinaryOperator::StringConcat => {
                let text = |expr: Expr| match expr.get_type(schema) {
                    Ok(DataType::FixedSizeBinary(_)) => self.0.hex(expr),
                    _ => expr,
                };
                let is_list =
                    |expr: &Expr| matches!(expr.get_type(schema), Ok(DataType::List(_) | DataType::LargeList(_)));
                if is_list(&left) || is_list(&right) {
                    return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
                }
                let concat = BinaryExpr::new(Box::new(text(left)), Operator::StringConcat, Box::new(text(right)));
                return Ok(PlannerResult::Planned(self.0.bounded(Expr::BinaryExpr(concat))));
            }
            _ => return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right })),
        };
        let (left, right) = self.0.compare(left, right, schema)?;
        Ok(PlannerResult::Planned(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right)))))
    }
}

impl Functions {
    /// Makes two sides comparable where DataFusion's own coercion would not do what people mean.
    fn compare(&self, left: Expr, right: Expr, schema: &DFSchema) -> Result<(Expr, Expr)> {
        let (Ok(left_type), Ok(right_type)) = (left.get_type(schema), right.get_type(schema)) else {
            return Ok((left, right));
        };
        match (&left_type, &right_type) {
            (DataType::FixedSizeBinary(width), _) => self.compare_id(left, *width, right, &right_type),
            (_, DataType::FixedSizeBinary(width)) => {
                let (right, left) = self.compare_id(right, *width, left, &left_type)?;
                Ok((left, right))
            }
            _ if is_attribute_access(&left) => Ok(compare_attribute(left, &left_type, right, &right_type)),
            _ if is_attribute_access(&right) => {
                let (right, left) = compare_attribute(right, &right_type, left, &left_type);
                Ok((left, right))
            }
            _ => Ok((left, right)),
        }
    }

    fn compare_id(&self, id: Expr, width: i32, other: Expr, other_type: &DataType) -> Result<(Expr, Expr)> {
        if let Expr::Literal(value, _) = &other
            && let Some(text) = value.try_as_str()
        {
            let bytes = text.map(|text| parse_id(text, width)).transpose()?;
            let literal = Expr::Literal(ScalarValue::FixedSizeBinary(width, bytes), None);
            return Ok((id, literal));
        }
        Ok(match other_type {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
                (self.hex(id), datafusion::functions::string::expr_fn::lower(other))
            }
            _ => (id, other),
        })
    }
}

pub(crate) fn parse_id(text: &str, width: i32) -> Result<Vec<u8>> {
    let width = usize::try_from(width).unwrap_or_default();
    hex::decode(text).ok().filter(|bytes| bytes.len() == width).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        external(
            QueryError::new(
                ErrorKind::BadQuery,
                format!(
                    "`{shown}` is not an id: expected {} hexadecimal digits, found {} characters",
                    width * 2,
                    text.chars().count()
                ),
            )
            .hint("to search by the beginning of an id write trace_id LIKE '5b8e%'"),
        )
    })
}

/// An attribute against something of another type. Mixed attributes are text; against a number
/// they compare as numbers where they are numbers. Typed attributes take text that reads as their
/// type, and compare as text otherwise, instead of failing the query in its middle.
fn compare_attribute(attribute: Expr, data_type: &DataType, other: Expr, other_type: &DataType) -> (Expr, Expr) {
    if *data_type == DataType::Utf8 && other_type.is_numeric() {
        return (Expr::TryCast(TryCast::new(Box::new(attribute), DataType::Float64)), other);
    }
    if let Expr::Literal(value, _) = &other
        && let Some(Some(text)) = value.try_as_str()
    {
        let typed = match data_type {
            DataType::Int64 => text.trim().parse().ok().map(|value| ScalarValue::Int64(Some(value))),
            DataType::Boolean => {
                text.trim().to_ascii_lowercase().parse().ok().map(|value| ScalarValue::Boolean(Some(value)))
            }
            _ => None,
        }
        .or_else(|| {
            let numeric = matches!(data_type, DataType::Int64 | DataType::Float64);
            numeric.then(|| text.trim().parse().ok()).flatten().map(|value| ScalarValue::Float64(Some(value)))
        });
        if let Some(typed) = typed {
            return (attribute, Expr::Literal(typed, None));
        }
        if *data_type != DataType::Utf8 {
            return (Expr::Cast(Cast::new(Box::new(attribute), DataType::Utf8)), other);
        }
    }
    (attribute, other)
}

/// Does the same for what never passes the planner's operators (IN, BETWEEN, LIKE, casts), and
/// for expressions inside views. Runs before and after DataFusion's type coercion: the second
/// time it finds the casts that coercion put in.
#[derive(Debug)]
pub struct TelemetryRewrite(pub Functions);

impl AnalyzerRule for TelemetryRewrite {
    fn name(&self) -> &'static str {
        "telemetry_rewrite"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let mut schema = merge_schema(&plan.inputs());
            if let LogicalPlan::TableScan(scan) = &plan {
                schema.merge(&scan.projected_schema);
            }
            let names = NamePreserver::new(&plan);
            let rewritten = plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let expr = expr.transform_up(|expr| self.rewrite(expr, &schema))?;
                Ok(expr.update_data(|expr| name.restore(expr)))
            })?;
            if rewritten.transformed { rewritten.map_data(LogicalPlan::recompute_schema) } else { Ok(rewritten) }
        })
        .map(|transformed| transformed.data)
    }
}

impl TelemetryRewrite {
    fn rewrite(&self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let is_id = |expr: &Expr| matches!(expr.get_type(schema), Ok(DataType::FixedSizeBinary(_)));
        Ok(match expr {
            Expr::InList(InList { expr, list, negated }) if is_id(&expr) || is_attribute_access(&expr) => {
                self.in_list(*expr, list, negated, schema)?
            }
            Expr::Between(Between { expr, negated, low, high }) if is_id(&expr) || is_attribute_access(&expr) => {
                let (low_side, low) = self.0.compare(*expr.clone(), *low, schema)?;
                let (high_side, high) = self.0.compare(*expr, *high, schema)?;
                let within = low_side.gt_eq(low).and(high_side.lt_eq(high));
                Transformed::yes(if negated { Expr::Not(Box::new(within)) } else { within })
            }
            Expr::Like(like) if is_id(&like.expr) => {
                let pattern = match *like.pattern {
                    Expr::Literal(ScalarValue::Utf8(Some(text)), metadata) => {
                        Expr::Literal(ScalarValue::Utf8(Some(text.to_ascii_lowercase())), metadata)
                    }
                    other => other,
                };
                let expr = Box::new(self.0.hex(*like.expr));
                Transformed::yes(Expr::Like(Like { expr, pattern: Box::new(pattern), ..like }))
            }
            Expr::Cast(cast)
                if matches!(cast.field.data_type(), DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
                    && is_id(&cast.expr) =>
            {
                let hex = Box::new(self.0.hex(*cast.expr));
                Transformed::yes(Expr::Cast(Cast { expr: hex, ..cast }))
            }
            other => Transformed::no(other),
        })
    }

    /// Rewrites `x IN (…)`. When each element leaves `x` as it is, the list stays a list, which is
    /// what pruning wants; else it becomes comparisons.
    fn in_list(&self, expr: Expr, list: Vec<Expr>, negated: bool, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let original = list.clone();
        let mut changed = false;
        let mut pairs = Vec::with_capacity(list.len());
        for element in list {
            let (side, value) = self.0.compare(expr.clone(), element.clone(), schema)?;
            changed |= side != expr || value != element;
            pairs.push((side, value));
        }
        if !changed {
            return Ok(Transformed::no(Expr::InList(InList { expr: Box::new(expr), list: original, negated })));
        }
        let first_side = pairs[0].0.clone();
        if pairs.iter().all(|(side, _)| *side == first_side) {
            let list = pairs.into_iter().map(|(_, value)| value).collect();
            return Ok(Transformed::yes(Expr::InList(InList { expr: Box::new(first_side), list, negated })));
        }
        if pairs.len() > crate::guard::CHAIN_OPERATORS_MAX {
            return Err(external(QueryError::new(
                ErrorKind::BadQuery,
                "a long IN list over an attribute must hold values of one type",
            )));
        }
        let any = pairs.into_iter().map(|(side, value)| side.eq(value)).reduce(Expr::or);
        let any = any.unwrap_or_else(|| Expr::Literal(ScalarValue::Boolean(Some(false)), None));
        Ok(Transformed::yes(if negated { Expr::Not(Box::new(any)) } else { any }))
    }
}
