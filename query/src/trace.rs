//! `SELECT * FROM trace('5b8e…')`: the spans of one trace in the order of its tree.
//!
//! Every column of `spans`, and before them `position` (1 is the first row), `depth`, `tree` (the
//! name with the branches that lead to it), `offset_ns` since the trace's first start,
//! `self_duration_ns` (the duration without what children cover) and `is_orphan`.
//!
//! Telemetry is incomplete and sometimes wrong, and each row is shown all the same: a span whose
//! parent is not there is a root and an orphan; of spans that are each other's ancestors the first
//! one becomes a root and an orphan; of several spans with one id the first one has the children;
//! a trace may have several roots. Siblings, and roots, go by start, the longer one first.
//!
//! The rows are read by a plan of their own, `spans` with `trace_id = …`, so that bloom filters do
//! for it what they do for `WHERE`. Not here: the waterfall in the terminal, which is a client.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch,
    RecordBatchOptions, StringBuilder, TimestampNanosecondArray,
};
use arrow::compute::{cast, interleave};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampNanosecondType};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ScalarValue, Statistics, exec_datafusion_err, internal_err, plan_err};
use datafusion::datasource::{TableType, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::distribution_requirements::InputDistributionRequirements;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput as _};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::error::{QueryError, external};
use crate::rewrite::parse_id;
use crate::tables::Tables;

/// Spans of a trace that are arranged as a tree, which needs all of them in memory at once. The
/// largest that instrumented batch jobs make have some ten thousand.
pub const TRACE_SPANS_MAX: usize = 100_000;

/// Levels of branches before a name. Past it a chain of ten thousand spans would take a quarter of a
/// gigabyte to draw.
const DRAWN_LEVELS_MAX: usize = 32;

/// The columns before those of `spans`.
const OWN_COLUMNS: [(&str, DataType, bool); 6] = [
    ("position", DataType::Int64, false),
    ("depth", DataType::Int32, false),
    ("tree", DataType::Utf8, false),
    ("offset_ns", DataType::Int64, false),
    ("self_duration_ns", DataType::Int64, true),
    ("is_orphan", DataType::Boolean, false),
];

/// The columns of `spans` that the tree is made of.
const TREE_COLUMNS: [&str; 5] = ["span_id", "parent_span_id", "start_time", "duration_ns", "name"];

/// The table function over the tables of one query. SQL folds no case in a function's name, so it
/// has two.
pub(crate) fn table_functions(tables: &Arc<Tables>) -> Vec<Arc<TableFunction>> {
    let function = Arc::new(TraceFunction { tables: Arc::clone(tables) });
    ["trace", "TRACE"].map(|name| Arc::new(TableFunction::new(name.to_owned(), Arc::clone(&function) as _))).to_vec()
}

#[derive(Debug)]
struct TraceFunction {
    tables: Arc<Tables>,
}

impl TableFunctionImpl for TraceFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let id = match args.exprs() {
            [Expr::Literal(value, _)] => value.try_as_str().flatten(),
            _ => None,
        };
        let Some(id) = id else {
            return plan_err!("trace() expects one trace id as text: trace('5b8efff798038103d269b633813fc60c')");
        };
        let id = parse_id(id, 16)?;
        let Some(spans) = self.tables.provider("spans")? else { return internal_err!("there is no table spans") };
        let own = OWN_COLUMNS.into_iter().map(|(name, data_type, nullable)| Field::new(name, data_type, nullable));
        let fields: Vec<_> = own.map(Arc::new).chain(spans.schema().fields().iter().cloned()).collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Arc::new(TraceTable { id, spans, schema }))
    }
}

/// One trace as a table.
#[derive(Debug)]
struct TraceTable {
    id: Vec<u8>,
    spans: Arc<dyn TableProvider>,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for TraceTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn statistics(&self) -> Option<Statistics> {
        // For the limit on joins, which asks how many rows there can be.
        Some(Statistics { num_rows: Precision::Inexact(TRACE_SPANS_MAX), ..Statistics::new_unknown(&self.schema) })
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // A filter or a limit would take spans out of the tree; both stay above it.
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let mut names: Vec<&str> = TREE_COLUMNS.to_vec();
        let mut outputs = Vec::with_capacity(projection.len());
        for index in projection {
            let name = self.schema.field(*index).name().as_str();
            outputs.push(match index.checked_sub(OWN_COLUMNS.len()) {
                None => Output::Own(*index),
                Some(_) => Output::Span(match names.iter().position(|known| *known == name) {
                    Some(place) => place,
                    None => {
                        names.push(name);
                        names.len() - 1
                    }
                }),
            });
        }
        let id = lit(ScalarValue::FixedSizeBinary(16, Some(self.id.clone())));
        let plan = LogicalPlanBuilder::scan("spans", provider_as_source(Arc::clone(&self.spans)), None)?
            .filter(col("trace_id").eq(id))?
            .project(names.into_iter().map(col).collect::<Vec<_>>())?
            .build()?;
        let input = state.create_physical_plan(&plan).await?;
        let schema = Arc::new(self.schema.project(projection)?);
        Ok(Arc::new(TraceExec::new(input, hex::encode(&self.id), outputs.into(), schema)))
    }
}

/// Where an output column comes from.
#[derive(Clone, Copy, Debug)]
enum Output {
    /// The column of [`OWN_COLUMNS`].
    Own(usize),
    /// The input's column.
    Span(usize),
}

/// Collects the spans of a trace and gives them out in the order of its tree.
#[derive(Debug)]
struct TraceExec {
    input: Arc<dyn ExecutionPlan>,
    id: String,
    outputs: Arc<[Output]>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TraceExec {
    fn new(input: Arc<dyn ExecutionPlan>, id: String, outputs: Arc<[Output]>, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        Self { input, id, outputs, schema, properties: Arc::new(properties), metrics }
    }
}

impl DisplayAs for TraceExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceExec: trace_id={}", self.id)
    }
}

impl ExecutionPlan for TraceExec {
    fn name(&self) -> &'static str {
        "TraceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.into_iter().next() else { return internal_err!("a trace without an input") };
        Ok(Arc::new(Self::new(input, self.id.clone(), Arc::clone(&self.outputs), Arc::clone(&self.schema))))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
        self.replace_children(children, ReplaceChildrenOptions::new(recompute))
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let reservation = MemoryConsumer::new("trace()").register(context.memory_pool());
        let batch_rows = context.session_config().batch_size();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (id, outputs, schema) = (self.id.clone(), Arc::clone(&self.outputs), Arc::clone(&self.schema));
        let batches = futures::stream::once(async move {
            let spans = Spans::collect(input, &id, reservation).await?;
            let rows = spans.rows();
            let starts = (0..rows).step_by(batch_rows.max(1));
            let batches = starts.map(move |start| {
                let end = rows.min(start + batch_rows.max(1));
                spans.batch(start..end, &outputs, &schema).record_output(&metrics)
            });
            Ok::<_, DataFusionError>(futures::stream::iter(batches))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches.try_flatten())))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// The spans of a trace, collected and arranged.
struct Spans {
    batches: Vec<RecordBatch>,
    /// The batch and the row of each span, as they came.
    places: Vec<(usize, usize)>,
    tree: Vec<Placed>,
    // Given back when the last batch is out.
    _reservation: MemoryReservation,
}

impl Spans {
    async fn collect(mut input: SendableRecordBatchStream, id: &str, reservation: MemoryReservation) -> Result<Self> {
        let mut batches = Vec::new();
        let mut places = Vec::new();
        let mut nodes = Vec::new();
        while let Some(batch) = input.next().await.transpose()? {
            if nodes.len() + batch.num_rows() > TRACE_SPANS_MAX {
                return Err(external(
                    QueryError::refused(format!(
                        "trace {id} has more than {TRACE_SPANS_MAX} spans, the limit of trace()"
                    ))
                    .hint(format!("SELECT … FROM spans WHERE trace_id = '{id}' reads it without the tree")),
                ));
            }
            let tree_bytes = batch.num_rows() * (size_of::<Node>() + size_of::<Placed>() + TREE_BYTES_PER_SPAN);
            reservation.try_grow(batch.get_array_memory_size() + tree_bytes)?;
            read_nodes(&batch, &mut nodes)?;
            places.extend((0..batch.num_rows()).map(|row| (batches.len(), row)));
            batches.push(batch);
        }
        Ok(Self { batches, places, tree: arrange(&nodes), _reservation: reservation })
    }

    fn rows(&self) -> usize {
        self.tree.len()
    }

    fn batch(&self, rows: std::ops::Range<usize>, outputs: &[Output], schema: &SchemaRef) -> Result<RecordBatch> {
        let placed = &self.tree[rows.clone()];
        let places: Vec<(usize, usize)> = placed.iter().map(|placed| self.places[placed.node]).collect();
        let column = |index: usize| -> Result<ArrayRef> {
            let columns: Vec<&dyn Array> = self.batches.iter().map(|batch| batch.column(index).as_ref()).collect();
            Ok(interleave(&columns, &places)?)
        };
        let own = |index: usize| -> Result<ArrayRef> {
            Ok(match index {
                0 => Arc::new((rows.start + 1..=rows.end).map(|position| position as i64).collect::<Int64Array>()),
                1 => Arc::new(placed.iter().map(|placed| placed.depth).collect::<Int32Array>()),
                2 => {
                    let name = TREE_COLUMNS.len() - 1;
                    let names = cast(&column(name)?, &DataType::Utf8)?;
                    let names = names.as_string::<i32>();
                    let mut trees = StringBuilder::new();
                    for (placed, name) in placed.iter().zip(names) {
                        trees.append_value(format!("{}{}", placed.branches, name.unwrap_or_default()));
                    }
                    Arc::new(trees.finish())
                }
                3 => Arc::new(placed.iter().map(|placed| placed.offset_ns).collect::<Int64Array>()),
                4 => Arc::new(placed.iter().map(|placed| placed.self_duration_ns).collect::<Int64Array>()),
                _ => Arc::new(placed.iter().map(|placed| Some(placed.is_orphan)).collect::<BooleanArray>()),
            })
        };
        let columns = outputs.iter().map(|output| match output {
            Output::Own(index) => own(*index),
            Output::Span(index) => column(*index),
        });
        let options = RecordBatchOptions::new().with_row_count(Some(placed.len()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

/// What a span takes beyond its row while it is arranged: its place, its ids in the map, its links
/// and its branches, generously.
const TREE_BYTES_PER_SPAN: usize = 256;

/// What the tree needs to know of a span.
#[derive(Clone, Copy, Debug)]
struct Node {
    span_id: u64,
    parent_id: Option<u64>,
    start: i64,
    duration_ns: Option<i64>,
}

fn read_nodes(batch: &RecordBatch, nodes: &mut Vec<Node>) -> Result<()> {
    let id = |array: &FixedSizeBinaryArray, row: usize| -> Option<u64> {
        array.is_valid(row).then(|| array.value(row).try_into().ok().map(u64::from_be_bytes)).flatten()
    };
    let ids = |index: usize| {
        let name = TREE_COLUMNS[index];
        batch.column(index).as_fixed_size_binary_opt().ok_or_else(|| exec_datafusion_err!("{name} is not an id"))
    };
    let (span_ids, parent_ids) = (ids(0)?, ids(1)?);
    let starts: &TimestampNanosecondArray = batch.column(2).as_primitive::<TimestampNanosecondType>();
    let durations: &Int64Array = batch.column(3).as_primitive::<Int64Type>();
    nodes.extend((0..batch.num_rows()).map(|row| Node {
        span_id: id(span_ids, row).unwrap_or_default(),
        parent_id: id(parent_ids, row),
        start: starts.value(row),
        duration_ns: durations.is_valid(row).then(|| durations.value(row)),
    }));
    Ok(())
}

/// A span in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    /// The index of its [`Node`].
    node: usize,
    depth: i32,
    branches: String,
    offset_ns: i64,
    self_duration_ns: Option<i64>,
    is_orphan: bool,
}

/// Puts the spans of a trace in the order of its tree. Every span is in the result once.
fn arrange(nodes: &[Node]) -> Vec<Placed> {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|index| {
        let node = &nodes[*index];
        (node.start, std::cmp::Reverse(node.duration_ns), node.span_id)
    });
    let (mut parents, is_orphan) = parents(nodes, &order);
    let mut is_orphan = is_orphan;
    cut_cycles(&order, &mut parents, &mut is_orphan);

    let mut children: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut roots = Vec::new();
    for index in &order {
        match parents[*index] {
            Some(parent) => children[parent].push(*index),
            None => roots.push(*index),
        }
    }
    let first_start = order.first().map_or(0, |first| nodes[*first].start);
    let mut placed = Vec::with_capacity(nodes.len());
    // Without recursion: a trace may be one chain of a hundred thousand spans.
    let mut stack: Vec<(usize, usize, bool)> = roots.iter().rev().map(|root| (*root, 0, true)).collect();
    // Whether the ancestor of each level is the last of its siblings.
    let mut last_of_siblings: Vec<bool> = Vec::new();
    while let Some((node, depth, is_last)) = stack.pop() {
        last_of_siblings.truncate(depth);
        last_of_siblings.push(is_last);
        placed.push(Placed {
            node,
            depth: i32::try_from(depth).unwrap_or(i32::MAX),
            branches: branches(&last_of_siblings),
            offset_ns: nodes[node].start.saturating_sub(first_start),
            self_duration_ns: self_duration(nodes, node, &children[node]),
            is_orphan: is_orphan[node],
        });
        let last_child = children[node].len();
        let below = children[node].iter().enumerate();
        stack.extend(below.rev().map(|(place, child)| (*child, depth + 1, place + 1 == last_child)));
    }
    placed
}

/// The index of each span's parent, and whether it names one that is not there.
fn parents(nodes: &[Node], order: &[usize]) -> (Vec<Option<usize>>, Vec<bool>) {
    let mut first_of_id: HashMap<u64, usize> = HashMap::with_capacity(nodes.len());
    for index in order {
        first_of_id.entry(nodes[*index].span_id).or_insert(*index);
    }
    let parents: Vec<Option<usize>> =
        nodes.iter().map(|node| node.parent_id.and_then(|id| first_of_id.get(&id).copied())).collect();
    let is_orphan = nodes.iter().zip(&parents).map(|(node, parent)| node.parent_id.is_some() && parent.is_none());
    let is_orphan = is_orphan.collect();
    (parents, is_orphan)
}

/// Makes the first span of each cycle a root, and an orphan.
fn cut_cycles(order: &[usize], parents: &mut [Option<usize>], is_orphan: &mut [bool]) {
    let mut rank = vec![0; order.len()];
    for (place, index) in order.iter().enumerate() {
        rank[*index] = place;
    }
    // The walk up that came by first, by number; 0 is none yet.
    let mut seen = vec![0_usize; order.len()];
    for (walk, start) in (1..).zip(order) {
        let mut at = Some(*start);
        while let Some(index) = at.filter(|index| seen[*index] == 0) {
            seen[index] = walk;
            at = parents[index];
        }
        // A walk that ends where it has been itself has gone round.
        let Some(meeting) = at.filter(|index| seen[*index] == walk) else { continue };
        let mut first = meeting;
        let mut next = parents[meeting];
        while let Some(index) = next.filter(|index| *index != meeting) {
            if rank[index] < rank[first] {
                first = index;
            }
            next = parents[index];
        }
        parents[first] = None;
        is_orphan[first] = true;
    }
}

/// What is drawn before a name: `│  └─ `.
fn branches(last_of_siblings: &[bool]) -> String {
    let mut out = String::new();
    // A root has no branch.
    let Some((own, above)) = last_of_siblings.get(1..).and_then(<[bool]>::split_last) else { return out };
    let hidden = above.len().saturating_sub(DRAWN_LEVELS_MAX);
    if hidden > 0 {
        out.push_str("⋯  ");
    }
    for is_last in &above[hidden..] {
        out.push_str(if *is_last { "   " } else { "│  " });
    }
    out.push_str(if *own { "└─ " } else { "├─ " });
    out
}

/// The time a span spent in none of its children, which are in the order of their starts. Children
/// that outlive it count up to its end; a negative duration counts as none.
fn self_duration(nodes: &[Node], node: usize, children: &[usize]) -> Option<i64> {
    let duration = nodes[node].duration_ns?.max(0);
    let start = nodes[node].start;
    let end = start.saturating_add(duration);
    let (mut covered, mut until) = (0_i64, start);
    for child in children {
        let child = &nodes[*child];
        let child_end = child.start.saturating_add(child.duration_ns.unwrap_or(0).max(0)).min(end);
        let child_start = child.start.max(until);
        if child_end > child_start {
            covered += child_end - child_start;
            until = child_end;
        }
    }
    Some(duration - covered)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(span_id: u64, parent: u64, start: i64, duration_ns: i64) -> Node {
        Node { span_id, parent_id: (parent > 0).then_some(parent), start, duration_ns: Some(duration_ns) }
    }

    /// The tree as lines: branches and id, offset, own time, and `!` for an orphan.
    fn drawn(nodes: &[Node]) -> String {
        let lines = arrange(nodes).into_iter().map(|placed| {
            let own = placed.self_duration_ns.map_or("-".to_owned(), |own| own.to_string());
            let mark = if placed.is_orphan { " !" } else { "" };
            format!("{}{} +{} {own}{mark}", placed.branches, nodes[placed.node].span_id, placed.offset_ns)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn traces_as_trees() {
        for (what, nodes, expected) in [
            ("nothing", vec![], ""),
            ("one span", vec![node(1, 0, 5, 10)], "1 +0 10"),
            (
                "siblings by start, then the longer one; children that overlap count once",
                vec![node(4, 1, 30, 5), node(1, 0, 10, 100), node(3, 1, 20, 10), node(2, 1, 20, 30), node(5, 4, 31, 1)],
                "1 +0 70\n├─ 2 +10 30\n├─ 3 +10 10\n└─ 4 +20 4\n   └─ 5 +21 1",
            ),
            (
                "branches pass by what is not the last",
                vec![node(1, 0, 0, 9), node(2, 1, 1, 1), node(3, 2, 1, 1), node(4, 1, 5, 1)],
                "1 +0 7\n├─ 2 +1 0\n│  └─ 3 +1 1\n└─ 4 +5 1",
            ),
            (
                "a missing parent",
                vec![node(1, 0, 0, 9), node(2, 77, 3, 1), node(3, 2, 4, 1)],
                "1 +0 9\n2 +3 1 !\n└─ 3 +4 1",
            ),
            ("several roots", vec![node(2, 0, 5, 1), node(1, 0, 0, 1)], "1 +0 1\n2 +5 1"),
            ("its own parent", vec![node(1, 1, 0, 9), node(2, 1, 1, 1)], "1 +0 8 !\n└─ 2 +1 1"),
            (
                "a cycle, with a span below it",
                vec![node(4, 3, 0, 1), node(1, 3, 5, 1), node(2, 1, 3, 1), node(3, 2, 4, 1)],
                "2 +3 1 !\n└─ 3 +4 1\n   ├─ 4 +0 1\n   └─ 1 +5 1",
            ),
            (
                "two cycles",
                vec![node(1, 2, 0, 1), node(2, 1, 1, 1), node(3, 4, 2, 1), node(4, 3, 3, 1)],
                "1 +0 1 !\n└─ 2 +1 1\n3 +2 1 !\n└─ 4 +3 1",
            ),
            (
                "the first of several with one id has the children",
                vec![node(1, 0, 0, 9), node(2, 1, 2, 1), node(2, 1, 1, 5), node(3, 2, 3, 1)],
                "1 +0 4\n├─ 2 +1 4\n│  └─ 3 +3 1\n└─ 2 +2 1",
            ),
            (
                "children outside their parent, and a negative duration",
                vec![node(1, 0, 10, 10), node(2, 1, 5, 10), node(3, 1, 18, 50), node(4, 1, 14, -3)],
                "1 +5 3\n├─ 2 +0 10\n├─ 4 +9 0\n└─ 3 +13 50",
            ),
        ] {
            assert_eq!(drawn(&nodes), expected, "{what}");
        }
        let open = Node { duration_ns: None, ..node(1, 0, 0, 0) };
        assert_eq!(drawn(&[open, node(2, 1, 1, 1)]), "1 +0 -\n└─ 2 +1 1");
        assert_eq!(drawn(&[node(1, 0, i64::MIN, i64::MAX), node(2, 1, i64::MAX, i64::MAX)]).lines().count(), 2);
    }

    #[test]
    fn a_long_chain_is_arranged_and_drawn_in_bounded_space() {
        let nodes: Vec<Node> = (1..=50_000).map(|id| node(id, id - 1, id as i64, 1)).collect();
        let placed = arrange(&nodes);
        assert_eq!(placed.last().map(|last| last.depth), Some(49_999));
        assert!(placed.iter().all(|placed| placed.branches.chars().count() <= 3 * (DRAWN_LEVELS_MAX + 2)));
        assert!(placed[40].branches.starts_with('⋯') && placed[40].branches.ends_with("└─ "));
    }

    proptest! {
        /// Any links at all: each span once, a parent before its child and one level up, and no
        /// span without a parent above it but roots.
        #[test]
        fn every_span_is_there_once_and_below_its_parent(
            links in prop::collection::vec((1..20_u64, 0..24_u64, 0..50_i64, -2..40_i64), 0..60),
        ) {
            let nodes: Vec<Node> =
                links.iter().map(|(id, parent, start, duration)| node(*id, *parent, *start, *duration)).collect();
            let placed = arrange(&nodes);
            let mut found: Vec<usize> = placed.iter().map(|placed| placed.node).collect();
            found.sort_unstable();
            prop_assert_eq!(found, (0..nodes.len()).collect::<Vec<_>>());
            let mut above: Vec<&Node> = Vec::new();
            for placed in &placed {
                let own = &nodes[placed.node];
                above.truncate(placed.depth as usize);
                prop_assert_eq!(above.len(), placed.depth as usize);
                match above.last() {
                    Some(parent) => {
                        prop_assert_eq!(own.parent_id, Some(parent.span_id));
                        prop_assert!(!placed.is_orphan);
                    }
                    None => prop_assert_eq!(placed.is_orphan, own.parent_id.is_some()),
                }
                above.push(own);
                let duration = own.duration_ns.unwrap_or(0).max(0);
                prop_assert!((0..=duration).contains(&placed.self_duration_ns.unwrap_or(0)));
                prop_assert!(placed.offset_ns >= 0);
            }
        }
    }
}
