//! Two aggregations in one: a question that adds up rows of a view which itself adds up partial
//! rows ([`crate::derived`]) adds up the partial rows at once.
//!
//! That is the same answer when each outer group is made of whole inner groups and each outer
//! aggregate goes on with what the inner one began: sums of sums, extremes of extremes, histograms
//! of histograms. Everything else (counting rows, averages of sums) is left as it is. Not here: SQL
//! in general; only the views over derived tables are touched.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, Alias, Case, Cast};
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, ScalarUDF, lit,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use model::derived::DerivedTable;

use crate::derived::{COUNT, leaves_out_taken_back};

/// The rule.
#[derive(Debug)]
pub(crate) struct CollapsePartials {
    /// `histogram_quantile(q, histogram)`, by which `quantile(q, histogram)` goes on.
    pub(crate) histogram_quantile: Option<Arc<ScalarUDF>>,
}

impl OptimizerRule for CollapsePartials {
    fn name(&self) -> &str {
        "collapse_partials"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(outer) = &plan else { return Ok(Transformed::no(plan)) };
        match self.collapse(outer)? {
            Some(collapsed) => Ok(Transformed::yes(collapsed)),
            None => Ok(Transformed::no(plan)),
        }
    }
}

/// The aggregation that makes a view's rows, and what stands between it and the outer one.
struct Inner<'a> {
    aggregate: &'a Aggregate,
    between: Vec<&'a LogicalPlan>,
    /// Rows of calls that were taken back are left out.
    without_taken_back: bool,
}

impl<'a> Inner<'a> {
    fn below(mut plan: &'a LogicalPlan) -> Option<Self> {
        let mut between = Vec::new();
        let mut without_taken_back = false;
        loop {
            match plan {
                LogicalPlan::Projection(projection) => {
                    between.push(plan);
                    plan = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    between.push(plan);
                    plan = &alias.input;
                }
                LogicalPlan::Filter(filter) if leaves_out_taken_back(&filter.predicate) => {
                    without_taken_back = true;
                    plan = &filter.input;
                }
                LogicalPlan::Aggregate(aggregate) if is_over_partials(&aggregate.input) => {
                    return Some(Self { aggregate, between, without_taken_back });
                }
                _ => return None,
            }
        }
    }

    /// An expression over the outer aggregation's input as one over the inner one's output.
    fn expand(&self, expr: &Expr) -> Result<Expr> {
        let mut expr = expr.clone();
        for layer in &self.between {
            let replaced = expr.transform(|expr| {
                let Expr::Column(column) = &expr else { return Ok(Transformed::no(expr)) };
                let place = layer.schema().index_of_column(column)?;
                Ok(Transformed::yes(match layer {
                    LogicalPlan::Projection(projection) => projection.expr[place].clone().unalias(),
                    LogicalPlan::SubqueryAlias(alias) => {
                        Expr::Column(Column::from(alias.input.schema().qualified_field(place)))
                    }
                    _ => expr,
                }))
            })?;
            expr = replaced.data;
        }
        Ok(expr)
    }

    /// What a column of the inner aggregation's output is computed by: a group's expression, or an
    /// aggregate.
    fn source(&self, column: &Column) -> Result<std::result::Result<&Expr, &AggregateFunction>> {
        let place = self.aggregate.schema.index_of_column(column)?;
        let groups = self.aggregate.group_expr.len();
        if place < groups {
            return Ok(Ok(&self.aggregate.group_expr[place]));
        }
        let mut expr = &self.aggregate.aggr_expr[place - groups];
        while let Expr::Alias(Alias { expr: inner, .. }) = expr {
            expr = inner;
        }
        match expr {
            Expr::AggregateFunction(function) => Ok(Err(function)),
            _ => datafusion::common::internal_err!("an aggregate that is none"),
        }
    }

    /// An expression over keys only, as one over partial rows; `None` when it needs a measure.
    fn keys_only(&self, expr: &Expr) -> Result<Option<Expr>> {
        let mut possible = !expr.is_volatile();
        let replaced = expr.clone().transform(|expr| {
            Ok(match &expr {
                Expr::Column(column) => match self.source(column)? {
                    Ok(key) => Transformed::yes(key.clone().unalias()),
                    Err(_) => {
                        possible = false;
                        Transformed::no(expr)
                    }
                },
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                    possible = false;
                    Transformed::no(expr)
                }
                _ => Transformed::no(expr),
            })
        })?;
        Ok(possible.then_some(replaced.data))
    }

    /// An expression whose sum over partial rows is its sum over the rows they make: one that is
    /// linear in sums, with weights that depend on keys. `None` when it is not seen to be.
    fn linear(&self, expr: &Expr) -> Result<Option<Expr>> {
        let exact =
            |data_type: &DataType| matches!(data_type, DataType::Int64 | DataType::Float64 | DataType::Decimal128(..));
        Ok(match expr {
            Expr::Column(column) => match self.source(column)? {
                Err(inner) => plain(inner, "sum").map(|args| args[0].clone()),
                Ok(_) => None,
            },
            Expr::Alias(alias) => self.linear(&alias.expr)?,
            Expr::Cast(cast) if exact(cast.field.data_type()) => {
                self.linear(&cast.expr)?.map(|inner| Expr::Cast(Cast { expr: Box::new(inner), ..cast.clone() }))
            }
            Expr::Case(Case { expr: base, when_then_expr, else_expr }) => {
                let base = match base {
                    None => None,
                    Some(base) => match self.keys_only(base)? {
                        Some(base) => Some(Box::new(base)),
                        None => return Ok(None),
                    },
                };
                let mut cases = Vec::with_capacity(when_then_expr.len());
                for (when, then) in when_then_expr {
                    match (self.keys_only(when)?, self.linear_or_nothing(then)?) {
                        (Some(when), Some(then)) => cases.push((Box::new(when), Box::new(then))),
                        _ => return Ok(None),
                    }
                }
                let otherwise = match else_expr {
                    None => None,
                    Some(otherwise) => match self.linear_or_nothing(otherwise)? {
                        Some(otherwise) => Some(Box::new(otherwise)),
                        None => return Ok(None),
                    },
                };
                Some(Expr::Case(Case { expr: base, when_then_expr: cases, else_expr: otherwise }))
            }
            // In doubles, division is as linear as multiplication.
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Multiply | Operator::Divide), right })
                if expr.get_type(&self.aggregate.schema)? == DataType::Float64
                    && matches!(&**right, Expr::Literal(value, _) if !value.is_null()) =>
            {
                self.linear(left)?
                    .map(|left| Expr::BinaryExpr(BinaryExpr { left: Box::new(left), op: *op, right: right.clone() }))
            }
            _ => None,
        })
    }

    fn linear_or_nothing(&self, expr: &Expr) -> Result<Option<Expr>> {
        match expr {
            Expr::Literal(value, _)
                if value.is_null() || ScalarValue::new_zero(&value.data_type()).is_ok_and(|zero| zero == *value) =>
            {
                Ok(Some(expr.clone()))
            }
            _ => self.linear(expr),
        }
    }
}

/// The arguments of an aggregate of this name that is nothing but itself.
fn plain<'a>(function: &'a AggregateFunction, name: &str) -> Option<&'a [Expr]> {
    let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = &function.params;
    let is_plain = !distinct && filter.is_none() && order_by.is_empty() && null_treatment.is_none();
    (is_plain && function.func.name() == name).then_some(args)
}

/// Whether a plan scans a derived table's partial rows, perhaps filtered.
fn is_over_partials(mut plan: &LogicalPlan) -> bool {
    loop {
        match plan {
            LogicalPlan::Filter(filter) => plan = &filter.input,
            LogicalPlan::Projection(projection) => plan = &projection.input,
            LogicalPlan::TableScan(scan) => return DerivedTable::from_name(scan.table_name.table()).is_some(),
            _ => return false,
        }
    }
}

/// Aggregates over partial rows, each once.
#[derive(Default)]
struct Aggregates(Vec<Expr>);

impl Aggregates {
    fn place(&mut self, aggregate: Expr) -> usize {
        self.0.iter().position(|known| *known == aggregate).unwrap_or_else(|| {
            self.0.push(aggregate);
            self.0.len() - 1
        })
    }
}

/// What an outer aggregate becomes: one over partial rows, and a function of it.
enum Continued {
    As(usize),
    QuantileOf(usize, Expr),
}

impl CollapsePartials {
    fn collapse(&self, outer: &Aggregate) -> Result<Option<LogicalPlan>> {
        let Some(inner) = Inner::below(&outer.input) else { return Ok(None) };
        let mut groups = Vec::with_capacity(outer.group_expr.len());
        for group in &outer.group_expr {
            if matches!(group, Expr::GroupingSet(_)) {
                return Ok(None);
            }
            match inner.keys_only(&inner.expand(&group.clone().unalias())?)? {
                Some(group) => groups.push(group),
                None => return Ok(None),
            }
        }
        let mut aggregates = Aggregates::default();
        let mut continued = Vec::with_capacity(outer.aggr_expr.len());
        for aggregate in &outer.aggr_expr {
            let Expr::AggregateFunction(function) = aggregate.clone().unalias_nested().data else { return Ok(None) };
            match self.go_on(&inner, &function, &mut aggregates)? {
                Some(place) => continued.push(place),
                None => return Ok(None),
            }
        }
        // What was taken back whole makes no group; one group of everything there is always.
        let count = if inner.without_taken_back && !groups.is_empty() {
            Some(aggregates.place(count_of(&inner)?))
        } else {
            None
        };

        let builder = LogicalPlanBuilder::from(Arc::clone(&inner.aggregate.input)).aggregate(groups, aggregates.0)?;
        let schema = Arc::clone(builder.schema());
        let column = |place: usize| Expr::Column(Column::from(schema.qualified_field(place)));
        let aggregate = |place: usize| column(outer.group_expr.len() + place);
        let builder = match count {
            Some(place) => builder.filter(aggregate(place).not_eq(lit(0_i64)))?,
            None => builder,
        };
        let values = (0..outer.group_expr.len()).map(column).chain(continued.into_iter().map(|part| match part {
            Continued::As(place) => aggregate(place),
            Continued::QuantileOf(place, q) => match &self.histogram_quantile {
                Some(quantile) => quantile.call(vec![q, aggregate(place)]),
                None => aggregate(place),
            },
        }));
        let named = values
            .zip(outer.schema.iter())
            .map(|(value, (qualifier, field))| value.alias_qualified(qualifier.cloned(), field.name()));
        let collapsed = builder.project(named.collect::<Vec<_>>())?.build()?;
        // Nothing above may notice.
        Ok(DFSchema::has_equivalent_names_and_types(collapsed.schema(), &outer.schema).is_ok().then_some(collapsed))
    }

    /// The aggregate over partial rows that an outer aggregate becomes.
    fn go_on(
        &self,
        inner: &Inner<'_>,
        function: &AggregateFunction,
        aggregates: &mut Aggregates,
    ) -> Result<Option<Continued>> {
        let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = &function.params;
        if *distinct || !order_by.is_empty() || null_treatment.is_some() {
            return Ok(None);
        }
        let filter = match filter {
            None => None,
            Some(filter) => match inner.keys_only(&inner.expand(filter)?)? {
                Some(filter) => Some(Box::new(filter)),
                None => return Ok(None),
            },
        };
        let args = args.iter().map(|arg| inner.expand(arg)).collect::<Result<Vec<_>>>()?;
        // The inner aggregate of this name that the argument is.
        let measure = |arg: &Expr, name: &str| -> Result<Option<AggregateFunction>> {
            let Expr::Column(column) = arg.clone().unalias() else { return Ok(None) };
            Ok(inner.source(&column)?.err().filter(|inner| plain(inner, name).is_some()).cloned())
        };
        let name = function.func.name();
        let (function, quantile) = match (name, args.as_slice()) {
            ("sum", [arg]) => match inner.linear(arg)? {
                Some(arg) => {
                    let params = AggregateFunctionParams { args: vec![arg], ..function.params.clone() };
                    (AggregateFunction { params, ..function.clone() }, None)
                }
                None => return Ok(None),
            },
            ("min" | "max", [arg]) => match measure(arg, name)? {
                Some(function) => (function, None),
                None => return Ok(None),
            },
            ("histogram_merge", [arg]) => match measure(arg, "merge_durations")? {
                Some(function) => (function, None),
                None => return Ok(None),
            },
            ("quantile", [q @ Expr::Literal(..), arg]) if self.histogram_quantile.is_some() => {
                match measure(arg, "merge_durations")? {
                    Some(function) => (function, Some(q.clone())),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let params = AggregateFunctionParams { filter, ..function.params };
        let place = aggregates.place(Expr::AggregateFunction(AggregateFunction { params, ..function }));
        Ok(Some(match quantile {
            Some(q) => Continued::QuantileOf(place, q),
            None => Continued::As(place),
        }))
    }
}

/// How many calls there are, as partial rows tell it; the inner aggregation reads it to leave out
/// those that were taken back.
fn count_of(inner: &Inner<'_>) -> Result<Expr> {
    let mut columns = inner.aggregate.input.schema().iter();
    match columns.find(|(_, field)| field.name() == COUNT) {
        Some(column) => Ok(sum(Expr::Column(Column::from(column)))),
        None => datafusion::common::internal_err!("a view leaves out rows by a column that it does not read"),
    }
}
