//! Plans as ClickHouse's SQL: the largest parts that can be written become one SELECT each; what cannot stays here, over
//! their rows.
//!
//! A [`Select`] grows from a scan upwards as long as each step can be written ([`super::writer`] says why not). Every scan
//! of ours has its table from [`of_tenant`], the one place where the tenant is named (I13), so no plan can reach another tenant's rows.
//! The order of rows is ClickHouse's only where nothing above could disturb it; else it sorts there, to send few rows, and
//! here again. Not here: expressions, and how an answer is read.

use std::cell::RefCell;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::display::{PlanType, StringifiedPlan};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType, NullEquality};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    Aggregate, Analyze, Expr, ExprSchemable as _, FetchType, Filter, Join, Limit, LogicalPlan, LogicalPlanBuilder,
    Projection, SkipType, Sort, TableScan, Union, Unnest,
};
use model::context::context_type;
use model::derived::DerivedTable;
use model::schema::schema;
use model::signal::Table;

use super::writer::{Columns, Part, Refusal, Value, Writer, identifier, quoted, sort_key, time};
use super::{Reach, RemoteQuery, RemoteTable, Stored};
use crate::derived::DerivedScan;
use crate::source::Container;

/// Bytes of a statement. The server reads no longer one (its `max_query_size`), and a plan that grows past this
/// is no less work there than here.
const SQL_BYTES_MAX: usize = 128 << 10;

/// Characters of a step that EXPLAIN shows beside why it runs here.
const STEP_CHARS_SHOWN: usize = 120;

/// A SELECT that is still being made.
#[derive(Clone, Debug)]
pub(crate) struct Select {
    from: String,
    columns: Vec<Value>,
    conditions: Vec<String>,
    /// The keys of GROUP BY; empty for one group of all rows.
    groups: Option<Vec<String>>,
    order: Vec<String>,
    limit: Option<usize>,
    offset: usize,
    /// A column is a row for each item of a list.
    is_unnested: bool,
}

impl Select {
    fn over(from: String, columns: Vec<Value>) -> Self {
        Self {
            from,
            columns,
            conditions: Vec::new(),
            groups: None,
            order: Vec::new(),
            limit: None,
            offset: 0,
            is_unnested: false,
        }
    }

    fn is_limited(&self) -> bool {
        self.limit.is_some() || self.offset > 0
    }

    /// The text, with what each column is called. Parts of a column follow it when they are wanted.
    fn write(&self, writer: &Writer<'_>, with_parts: bool) -> (String, Vec<Value>) {
        let mut named = Vec::with_capacity(self.columns.len());
        let mut list = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let name = writer.fresh();
            list.push(format!("{} AS {name}", column.sql));
            let mut value = Value { sql: name, parts: Vec::new(), ..column.clone() };
            if with_parts {
                for (part, sql) in &column.parts {
                    let name = writer.fresh();
                    list.push(format!("{sql} AS {name}"));
                    value.parts.push((*part, name));
                }
            }
            named.push(value);
        }
        if list.is_empty() {
            list.push(format!("1 AS {}", writer.fresh()));
        }
        let mut sql = format!("SELECT {} FROM {}", list.join(", "), self.from);
        if !self.conditions.is_empty() {
            sql.push_str(" WHERE ");
            sql.push_str(&self.conditions.join(" AND "));
        }
        if let Some(groups) = self.groups.as_ref().filter(|groups| !groups.is_empty()) {
            sql.push_str(" GROUP BY ");
            sql.push_str(&groups.join(", "));
        }
        if !self.order.is_empty() {
            sql.push_str(" ORDER BY ");
            sql.push_str(&self.order.join(", "));
        }
        if let Some(limit) = self.limit {
            sql.push_str(&format!(" LIMIT {limit}"));
        }
        if self.offset > 0 {
            sql.push_str(&format!(" OFFSET {}", self.offset));
        }
        (sql, named)
    }

    /// The same rows as a subquery, so that another step can go over them.
    fn nested(&self, writer: &Writer<'_>) -> Self {
        let (sql, columns) = self.write(writer, true);
        Self::over(format!("({sql})"), columns)
    }

    fn nested_if(self, is_needed: bool, writer: &Writer<'_>) -> Self {
        if is_needed { self.nested(writer) } else { self }
    }

    /// Whether it is within what a statement may be.
    fn checked(self) -> std::result::Result<Self, Refusal> {
        let columns: usize = self
            .columns
            .iter()
            .map(|column| column.sql.len() + column.parts.iter().map(|(_, sql)| sql.len()).sum::<usize>())
            .sum();
        let rest = [&self.conditions, &self.order, self.groups.as_ref().unwrap_or(&Vec::new())]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum::<usize>();
        if self.from.len() + columns + rest > SQL_BYTES_MAX {
            return Err(format!("the statement would be longer than {} KiB", SQL_BYTES_MAX >> 10));
        }
        Ok(self)
    }
}

/// A table there, and the condition that its rows are the tenant's. Whatever reads it has both from here.
pub(crate) fn of_tenant(reach: &Reach, table: &str) -> [String; 2] {
    let name = format!("{}.{}", identifier(reach.remote.database()), identifier(table));
    [name, format!("tenant = {}", quoted(reach.tenant.as_str()))]
}

/// The rows of a tenant's table, as the engine's columns.
pub(crate) fn scan(reach: &Reach, stored: Stored) -> Select {
    let [from, tenant] = of_tenant(
        reach,
        match stored {
            Stored::Table(table) => table.name(),
            Stored::Ledger => "ingest_ledger",
        },
    );
    let mut select = match stored {
        Stored::Table(table) => {
            let columns = schema(table).fields().iter().map(|field| column(table, field)).collect();
            Select::over(from, columns)
        }
        Stored::Ledger => {
            let number = |sql: &str| Value::new(sql, DataType::UInt64);
            let columns = vec![
                Value::new("toDateTime64(minute, 9, 'UTC')", model::schema::time_type()),
                Value::new("signal", DataType::Utf8),
                Value::new("nullIf(reason, '')", DataType::Utf8),
                number("sum(items)"),
                number("sumIf(items, reason = '')"),
                number("sumIf(items, reason != '')"),
            ];
            let mut select = Select::over(from, columns);
            select.groups = Some(["minute", "signal", "reason"].map(str::to_owned).to_vec());
            select
        }
    };
    select.conditions.push(tenant);
    select
}

fn column(table: Table, field: &Field) -> Value {
    let mut value = Value::new(identifier(field.name()), field.data_type().clone());
    value.origin = Container::ALL.into_iter().find(|container| container.name() == field.name()).map(|c| (table, c));
    if *field.data_type() == context_type() {
        let part = |part: Part, name: &str| (part, name.to_owned());
        value.parts = match field.name().as_str() {
            "resource" => {
                vec![part(Part::Entries, "resource_attributes"), part(Part::SchemaUrl, "resource_schema_url")]
            }
            "scope" => vec![
                part(Part::Entries, "scope_attributes"),
                part(Part::ScopeName, "scope_name"),
                part(Part::ScopeVersion, "scope_version"),
                part(Part::SchemaUrl, "scope_schema_url"),
            ],
            _ => Vec::new(),
        };
    }
    value
}

/// An expression whose columns are named without their table.
fn unqualified(expr: &Expr) -> Result<Expr> {
    let bare = expr.clone().transform(|part| {
        Ok(match part {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    })?;
    Ok(bare.data)
}

/// A filter over a table as a condition.
pub(crate) fn condition(
    reach: &Reach,
    table: &RemoteTable,
    select: &Select,
    filter: &Expr,
) -> Result<std::result::Result<String, Refusal>> {
    let schema = DFSchema::try_from(table.schema())?;
    let columns = Columns { schema: &schema, values: &select.columns };
    Ok(Writer::new(&reach.kinds).condition(&unqualified(filter)?, &columns))
}

/// The conditions on a derived table's keys that filters come to, of those filters that can be written.
pub(crate) fn key_conditions(reach: &Reach, table: DerivedTable, filters: &[Expr]) -> Result<Vec<String>> {
    let keys = &table.keys()[1..table.keys().len() - 1];
    let fields = model::derived::schema(table);
    let values: Vec<Value> =
        fields.fields().iter().map(|field| Value::new(identifier(field.name()), field.data_type().clone())).collect();
    let schema = DFSchema::try_from(Arc::clone(&fields))?;
    let (columns, writer) = (Columns { schema: &schema, values: &values }, Writer::new(&reach.kinds));
    let mut conditions = Vec::new();
    for filter in filters {
        if filter.column_refs().iter().all(|column| keys.contains(&column.name.as_str())) {
            conditions.extend(writer.condition(&unqualified(filter)?, &columns));
        }
    }
    Ok(conditions)
}

/// A table's rows that pass filters, of some columns, up to a limit.
pub(crate) fn select(
    reach: &Reach,
    table: &RemoteTable,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
    limit: Option<usize>,
) -> Result<std::result::Result<Select, Refusal>> {
    let writer = Writer::new(&reach.kinds);
    let mut select = scan(reach, table.stored());
    // Filters over the ledger are over its sums.
    select = select.clone().nested_if(select.groups.is_some() && (!filters.is_empty() || limit.is_some()), &writer);
    for filter in filters {
        match condition(reach, table, &select, filter)? {
            Ok(condition) => select.conditions.push(condition),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    if let Some(projection) = projection {
        select.columns = projection.iter().filter_map(|index| select.columns.get(*index).cloned()).collect();
    }
    select.limit = limit;
    Ok(select.checked())
}

/// A table's rows within a time, nanoseconds since the epoch.
pub(crate) fn within(reach: &Reach, table: Table, from: i64, to: i64) -> Select {
    let mut select = scan(reach, Stored::Table(table));
    let column = identifier(table.time_column());
    select.conditions.push(format!("{column} >= {} AND {column} < {}", time(from), time(to)));
    select
}

/// The text of a select that is complete.
pub(crate) fn text(reach: &Reach, select: &Select) -> String {
    select.write(&Writer::new(&reach.kinds), false).0
}

/// Replaces the largest parts of an optimized plan that ClickHouse can run by scans of its answers.
///
/// # Errors
/// When a plan does not fit together any more, which is a defect.
pub(crate) fn push_down(plan: LogicalPlan, reach: &Arc<Reach>) -> Result<LogicalPlan> {
    let pusher = Pusher { reach, writer: Writer::new(&reach.kinds), notes: RefCell::default() };
    Ok(match plan {
        LogicalPlan::Explain(mut explain) => {
            explain.plan = Arc::new(pusher.run(Arc::unwrap_or_clone(explain.plan), true)?);
            for note in pusher.notes.take() {
                explain.stringified_plans.push(StringifiedPlan::new(PlanType::FinalLogicalPlan, note));
            }
            LogicalPlan::Explain(explain)
        }
        LogicalPlan::Analyze(analyze) => {
            let input = Arc::new(pusher.run(Arc::unwrap_or_clone(analyze.input), true)?);
            LogicalPlan::Analyze(Analyze { input, ..analyze })
        }
        other => pusher.run(other, true)?,
    })
}

/// Where a part of a plan runs.
enum Place {
    There(Box<Select>),
    Here(LogicalPlan),
}

type Written = std::result::Result<Select, Refusal>;

struct Pusher<'a> {
    reach: &'a Arc<Reach>,
    writer: Writer<'a>,
    /// What runs here, and why.
    notes: RefCell<Vec<String>>,
}

impl Pusher<'_> {
    fn run(&self, plan: LogicalPlan, is_root: bool) -> Result<LogicalPlan> {
        let schema = Arc::clone(plan.schema());
        match self.walk(plan, is_root)? {
            Place::There(select) => self.answer(&select, &schema, is_root),
            Place::Here(plan) => Ok(plan),
        }
    }

    /// `is_root`: nothing above changes the order of rows.
    fn walk(&self, plan: LogicalPlan, is_root: bool) -> Result<Place> {
        match plan {
            LogicalPlan::TableScan(scan) => self.table_scan(scan),
            // Only names change, which the text does not have.
            LogicalPlan::SubqueryAlias(alias) => match self.walk(alias.input.as_ref().clone(), is_root)? {
                Place::There(select) => Ok(Place::There(select)),
                Place::Here(input) => self.over(LogicalPlan::SubqueryAlias(alias), vec![input]),
            },
            LogicalPlan::Projection(projection) => self.projection(projection, is_root),
            LogicalPlan::Filter(filter) => self.filter(filter),
            LogicalPlan::Sort(sort) => self.sort(sort, is_root),
            LogicalPlan::Limit(limit) => {
                let written = match self.walk(limit.input.as_ref().clone(), is_root)? {
                    Place::There(select) => self.limit(&limit, *select),
                    Place::Here(input) => return self.over(LogicalPlan::Limit(limit), vec![input]),
                };
                self.or_here(LogicalPlan::Limit(limit), written)
            }
            LogicalPlan::Aggregate(aggregate) => {
                let written = match self.walk(aggregate.input.as_ref().clone(), false)? {
                    Place::There(select) => self.aggregate(&aggregate, *select),
                    Place::Here(input) => return self.over(LogicalPlan::Aggregate(aggregate), vec![input]),
                };
                self.or_here(LogicalPlan::Aggregate(aggregate), written)
            }
            LogicalPlan::Unnest(unnest) => {
                let written = match self.walk(unnest.input.as_ref().clone(), false)? {
                    Place::There(select) => self.unnest(&unnest, *select),
                    Place::Here(input) => return self.over(LogicalPlan::Unnest(unnest), vec![input]),
                };
                self.or_here(LogicalPlan::Unnest(unnest), written)
            }
            LogicalPlan::Join(join) => {
                let left = self.walk(join.left.as_ref().clone(), false)?;
                let right = self.walk(join.right.as_ref().clone(), false)?;
                match (left, right) {
                    (Place::There(left), Place::There(right)) => {
                        let written = self.join(&join, &left, &right);
                        self.or_here(LogicalPlan::Join(join), written)
                    }
                    _ => self.children(LogicalPlan::Join(join)),
                }
            }
            LogicalPlan::Union(union) => {
                let mut selects = Vec::with_capacity(union.inputs.len());
                for input in &union.inputs {
                    match self.walk(input.as_ref().clone(), false)? {
                        Place::There(select) => selects.push(*select),
                        Place::Here(_) => return self.children(LogicalPlan::Union(union)),
                    }
                }
                let written = self.union(&union, &selects);
                self.or_here(LogicalPlan::Union(union), written)
            }
            other => {
                if !other.inputs().is_empty() {
                    self.note(&other, "steps of this kind run here");
                }
                self.children(other)
            }
        }
    }

    fn or_here(&self, plan: LogicalPlan, written: Written) -> Result<Place> {
        match written.and_then(Select::checked) {
            Ok(select) => Ok(Place::There(Box::new(select))),
            Err(refusal) => {
                self.note(&plan, &refusal);
                self.children(plan)
            }
        }
    }

    fn note(&self, plan: &LogicalPlan, refusal: &str) {
        let shown: String = plan.display().to_string().chars().take(STEP_CHARS_SHOWN).collect();
        let note = format!("not in ClickHouse, since {refusal}: {shown}");
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// The step runs here, over what its inputs become.
    fn children(&self, plan: LogicalPlan) -> Result<Place> {
        let plan = plan.map_children(|child| Ok(Transformed::yes(self.run(child, false)?)))?;
        Ok(Place::Here(plan.data))
    }

    /// The step runs here, over inputs that run here already.
    fn over(&self, plan: LogicalPlan, inputs: Vec<LogicalPlan>) -> Result<Place> {
        let mut inputs = inputs.into_iter();
        let plan = plan.map_children(|child| Ok(Transformed::yes(inputs.next().unwrap_or(child))))?;
        Ok(Place::Here(plan.data))
    }

    /// The answer to a select as a step of a plan with a schema.
    fn answer(&self, select: &Select, schema: &DFSchemaRef, is_root: bool) -> Result<LogicalPlan> {
        /// What the answer is called within the plan.
        const NAME: &str = "clickhouse";
        let (sql, _) = select.write(&self.writer, false);
        let name = |index: usize| format!("c{index}");
        let fields = schema.fields().iter().enumerate();
        let fields: Vec<Field> = fields.map(|(index, field)| field.as_ref().clone().with_name(name(index))).collect();
        let answer = RemoteQuery::new(Arc::clone(self.reach), sql, Arc::new(Schema::new(fields)), is_root);
        let scan = LogicalPlanBuilder::scan(NAME, provider_as_source(Arc::new(answer)), None)?.build()?;
        let columns = schema.iter().enumerate().map(|(index, (table, field))| {
            Expr::Column(Column::new(Some(NAME), name(index))).alias_qualified(table.cloned(), field.name())
        });
        let projection = Projection::try_new_with_schema(columns.collect(), Arc::new(scan), Arc::clone(schema))?;
        Ok(LogicalPlan::Projection(projection))
    }

    fn table_scan(&self, scan: TableScan) -> Result<Place> {
        let provider = source_as_provider(&scan.source)?;
        let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<RemoteTable>() else {
            let is_derived = (provider.as_ref() as &dyn std::any::Any).is::<DerivedScan>();
            let plan = LogicalPlan::TableScan(scan);
            if is_derived {
                self.note(&plan, "its rows are counted there and added up here");
            }
            return Ok(Place::Here(plan));
        };
        match select(self.reach, table, scan.projection.as_ref(), &scan.filters, scan.fetch)? {
            Ok(select) => Ok(Place::There(Box::new(select))),
            Err(_) => Ok(Place::Here(LogicalPlan::TableScan(scan))),
        }
    }

    fn projection(&self, projection: Projection, is_root: bool) -> Result<Place> {
        let select = match self.walk(projection.input.as_ref().clone(), is_root)? {
            Place::There(select) => *select,
            Place::Here(input) => return self.over(LogicalPlan::Projection(projection), vec![input]),
        };
        let input_schema = Arc::clone(projection.input.schema());
        let was_ordered = !select.order.is_empty();
        // One group of all rows is one only as long as something is aggregated.
        let is_one_group = select.groups.as_ref().is_some_and(Vec::is_empty);
        let select = select.clone().nested_if(select.is_unnested || is_one_group, &self.writer);
        let columns = Columns { schema: &input_schema, values: &select.columns };
        let written: std::result::Result<Vec<Value>, Refusal> =
            projection.expr.iter().map(|expr| self.writer.expr(expr, &columns)).collect();
        let refusal = match written.and_then(|columns| Select { columns, ..select.clone() }.checked()) {
            Ok(select) => return Ok(Place::There(Box::new(select))),
            Err(refusal) => refusal,
        };
        let node = LogicalPlan::Projection(projection.clone());
        self.note(&node, &refusal);
        if was_ordered {
            // Something runs above, so the order is made here.
            return self.children(node);
        }
        // What of each expression can be written is; the rest is computed of it here.
        let mut there: Vec<(Expr, Value)> = Vec::new();
        let mut here = Vec::with_capacity(projection.expr.len());
        for expr in &projection.expr {
            let rest = expr.clone().transform_down(|part| {
                if matches!(part, Expr::Literal(..) | Expr::Alias(_)) {
                    return Ok(Transformed::no(part));
                }
                let Ok(value) = self.writer.expr(&part, &columns) else { return Ok(Transformed::no(part)) };
                let index = there.iter().position(|(known, _)| *known == part).unwrap_or_else(|| {
                    there.push((part.clone(), value));
                    there.len() - 1
                });
                let column = Expr::Column(Column::new_unqualified(format!("p{index}")));
                Ok(Transformed::new(column, true, TreeNodeRecursion::Jump))
            })?;
            here.push(rest.data);
        }
        let mut fields = Vec::with_capacity(there.len());
        for (index, (part, _)) in there.iter().enumerate() {
            let (_, field) = part.to_field(input_schema.as_ref())?;
            fields.push((None, Arc::new(field.as_ref().clone().with_name(format!("p{index}")))));
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, std::collections::HashMap::new())?);
        let columns = there.into_iter().map(|(_, value)| value).collect();
        let select = match (Select { columns, ..select }).checked() {
            Ok(select) => select,
            Err(_) => return self.children(node),
        };
        let input = self.answer(&select, &schema, false)?;
        let named = here
            .into_iter()
            .zip(projection.schema.iter())
            .map(|(expr, (table, field))| expr.unalias().alias_qualified(table.cloned(), field.name()));
        let projection = Projection::try_new_with_schema(named.collect(), Arc::new(input), projection.schema)?;
        Ok(Place::Here(LogicalPlan::Projection(projection)))
    }

    fn filter(&self, filter: Filter) -> Result<Place> {
        let select = match self.walk(filter.input.as_ref().clone(), false)? {
            Place::There(select) => *select,
            Place::Here(input) => return self.over(LogicalPlan::Filter(filter), vec![input]),
        };
        let is_closed = select.groups.is_some() || select.is_limited() || select.is_unnested;
        let mut select = select.nested_if(is_closed, &self.writer);
        let schema = Arc::clone(filter.input.schema());
        let mut here = Vec::new();
        for part in split_conjunction(&filter.predicate) {
            let columns = Columns { schema: &schema, values: &select.columns };
            match self.writer.condition(part, &columns) {
                Ok(condition) => select.conditions.push(condition),
                Err(refusal) => {
                    self.note(&LogicalPlan::Filter(filter.clone()), &refusal);
                    here.push(part.clone());
                }
            }
        }
        let Ok(select) = select.checked() else { return self.children(LogicalPlan::Filter(filter)) };
        match conjunction(here) {
            None => Ok(Place::There(Box::new(select))),
            Some(predicate) => {
                let input = Arc::new(self.answer(&select, &schema, false)?);
                Ok(Place::Here(LogicalPlan::Filter(Filter::try_new(predicate, input)?)))
            }
        }
    }

    fn sort(&self, sort: Sort, is_root: bool) -> Result<Place> {
        let select = match self.walk(sort.input.as_ref().clone(), false)? {
            Place::There(select) => *select,
            Place::Here(input) => return self.over(LogicalPlan::Sort(sort), vec![input]),
        };
        let mut select = select.clone().nested_if(select.is_limited() || select.is_unnested, &self.writer);
        let schema = Arc::clone(sort.input.schema());
        let mut order = Vec::with_capacity(sort.expr.len());
        for key in &sort.expr {
            let columns = Columns { schema: &schema, values: &select.columns };
            let written = self.writer.expr(&key.expr, &columns).and_then(|value| sort_key(&value));
            match written {
                Ok(sql) => order.push(format!(
                    "{sql} {} NULLS {}",
                    if key.asc { "ASC" } else { "DESC" },
                    if key.nulls_first { "FIRST" } else { "LAST" }
                )),
                Err(refusal) => {
                    let node = LogicalPlan::Sort(sort);
                    self.note(&node, &refusal);
                    return self.children(node);
                }
            }
        }
        if is_root || sort.fetch.is_some() {
            select.order = order;
            select.limit = sort.fetch;
        }
        let Ok(select) = select.checked() else { return self.children(LogicalPlan::Sort(sort)) };
        if is_root {
            return Ok(Place::There(Box::new(select)));
        }
        let input = Arc::new(self.answer(&select, &schema, false)?);
        Ok(Place::Here(LogicalPlan::Sort(Sort { input, ..sort })))
    }

    fn limit(&self, limit: &Limit, select: Select) -> Written {
        let wrong = |_| "a limit that is no constant".to_owned();
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
            (limit.get_skip_type().map_err(wrong)?, limit.get_fetch_type().map_err(wrong)?)
        else {
            return Err("a limit that is no constant".to_owned());
        };
        // An OFFSET over the LIMIT of a sort, as the optimizer leaves it.
        let within =
            select.offset == 0 && select.limit.is_some_and(|known| fetch.is_none_or(|fetch| skip + fetch <= known));
        if within {
            let limit = select.limit.map(|known| fetch.unwrap_or(known.saturating_sub(skip)));
            return Ok(Select { limit, offset: skip, ..select });
        }
        if select.is_limited() && !select.order.is_empty() {
            return Err("a limit over another one in an order".to_owned());
        }
        let select = select.clone().nested_if(select.is_limited(), &self.writer);
        Ok(Select { limit: fetch, offset: skip, ..select })
    }

    fn aggregate(&self, aggregate: &Aggregate, select: Select) -> Written {
        let is_closed = select.groups.is_some() || select.is_limited() || select.is_unnested;
        let select = select.nested_if(is_closed, &self.writer);
        let columns = Columns { schema: aggregate.input.schema(), values: &select.columns };
        let mut values = Vec::with_capacity(aggregate.schema.fields().len());
        let mut groups = Vec::with_capacity(aggregate.group_expr.len());
        for key in &aggregate.group_expr {
            if matches!(key, Expr::GroupingSet(_)) {
                return Err("grouping sets".to_owned());
            }
            let value = self.writer.expr(key, &columns)?;
            if !value.is_plain()
                || value.data_type == DataType::Float64
                || matches!(key.clone().unalias(), Expr::Literal(..))
            {
                return Err(format!("groups by {key}"));
            }
            groups.push(value.sql.clone());
            values.push(value);
        }
        for expr in &aggregate.aggr_expr {
            values.push(self.writer.aggregate(expr, &columns)?);
        }
        if values.is_empty() {
            return Err("groups of nothing".to_owned());
        }
        Ok(Select { columns: values, groups: Some(groups), order: Vec::new(), ..select })
    }

    fn unnest(&self, unnest: &Unnest, select: Select) -> Written {
        let [(list, how)] = unnest.list_type_columns.as_slice() else { return Err("several lists at once".to_owned()) };
        if how.depth != 1 || !unnest.struct_type_columns.is_empty() || unnest.options.preserve_nulls() {
            return Err("lists of lists, structs, or lists that are null".to_owned());
        }
        let is_closed = select.groups.is_some() || select.is_limited() || select.is_unnested;
        let select = select.nested_if(is_closed, &self.writer);
        let mut columns = Vec::with_capacity(unnest.dependency_indices.len());
        for index in &unnest.dependency_indices {
            let value = select.columns.get(*index).ok_or("a column that is not there")?;
            if index != list {
                columns.push(value.clone());
                continue;
            }
            let DataType::List(item) = &value.data_type else { return Err("what is no list".to_owned()) };
            columns.push(Value::new(format!("arrayJoin({})", value.sql), item.data_type().clone()));
        }
        Ok(Select { columns, is_unnested: true, ..select })
    }

    fn join(&self, join: &Join, left: &Select, right: &Select) -> Written {
        let (kind, with_right) = match join.join_type {
            JoinType::Inner => ("INNER JOIN", true),
            JoinType::Left => ("LEFT JOIN", true),
            JoinType::Right => ("RIGHT JOIN", true),
            JoinType::LeftSemi => ("LEFT SEMI JOIN", false),
            JoinType::LeftAnti => ("LEFT ANTI JOIN", false),
            other => return Err(format!("{other} joins")),
        };
        let is_inner = join.join_type == JoinType::Inner;
        if join.on.is_empty() || join.null_aware || join.null_equality != NullEquality::NullEqualsNothing {
            return Err("joins without an equality, or with NULL equal to NULL".to_owned());
        }
        if join.filter.is_some() && !is_inner {
            return Err("outer joins on more than equalities".to_owned());
        }
        let (left, right) = (left.nested(&self.writer), right.nested(&self.writer));
        for (values, may_be_absent) in
            [(&left.columns, join.join_type == JoinType::Right), (&right.columns, join.join_type == JoinType::Left)]
        {
            if may_be_absent && values.iter().any(|value| !value.is_plain()) {
                return Err("outer joins with attributes or lists of the other side".to_owned());
            }
        }
        let mut on = Vec::with_capacity(join.on.len());
        for (a, b) in &join.on {
            let a = self.writer.expr(a, &Columns { schema: join.left.schema(), values: &left.columns })?;
            let b = self.writer.expr(b, &Columns { schema: join.right.schema(), values: &right.columns })?;
            if !a.is_plain() || !b.is_plain() || a.data_type == DataType::Float64 || b.data_type == DataType::Float64 {
                return Err(format!("joins on {} and {}", a.data_type, b.data_type));
            }
            on.push(format!("{} = {}", a.sql, b.sql));
        }
        let (l, r) = (self.writer.fresh(), self.writer.fresh());
        let from = format!("{} AS {l} {kind} {} AS {r} ON {}", left.from, right.from, on.join(" AND "));
        let mut columns = left.columns;
        if with_right {
            columns.extend(right.columns);
        }
        let mut select = Select::over(from, columns);
        if let Some(filter) = &join.filter {
            let columns = Columns { schema: &join.schema, values: &select.columns };
            let condition = self.writer.condition(filter, &columns)?;
            select.conditions.push(condition);
        }
        Ok(select)
    }

    fn union(&self, union: &Union, selects: &[Select]) -> Written {
        let mut texts = Vec::with_capacity(selects.len());
        let mut columns: Vec<Value> = Vec::new();
        for select in selects {
            if select.columns.iter().any(|value| !value.is_plain()) {
                return Err("unions of attributes or lists".to_owned());
            }
            let (sql, named) = select.write(&self.writer, false);
            if columns.is_empty() {
                columns = named;
            }
            texts.push(format!("({sql})"));
        }
        let types = union.schema.fields().iter().map(|field| field.data_type().clone());
        let columns = columns.into_iter().zip(types).map(|(value, data_type)| Value { data_type, ..value }).collect();
        Ok(Select::over(format!("({})", texts.join(" UNION ALL ")), columns))
    }
}
