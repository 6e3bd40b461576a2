//! Keeps batches small where rows multiply, and makes plans give way between batches.
//!
//! Joins, unnests and windows copy a row of their input many times into one batch of output, and DataFusion counts none
//! of it: one text of a few MiB, joined to a table, was gigabytes. [`Portions`] stands between an operator and its
//! input: it hands rows over in portions that cannot grow past a bound, and refuses where a single row would. It gives
//! way to other tasks as well, so that a query that was cancelled stops at the next batch. Not here: how many rows a
//! batch has elsewhere ([`crate::bounds::Cost`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{ArrowNativeType as _, DataType};
use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::{CooperativeExec, make_cooperative};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
    SendableRecordBatchStream,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::error::{ErrorKind, QueryError, external};

/// Bytes of a batch that a join, an unnest or a window makes, where every row of it is as wide as the widest of its
/// input. Mostly none is: a batch of the usual size with one text of 8 KiB among short ones is well within.
pub(crate) const COPIED_BYTES_MAX: u64 = 64 << 20;

/// Rows that an unnest makes of one portion. One list may be longer, and is then a portion of its own.
const UNNESTED_ROWS_MAX: u64 = 8192;

/// What stands behind the portions.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Behind {
    /// A join: any row may be copied into every row of a batch.
    Join,
    /// An unnest of these columns: what is beside them is copied for every item of the longest list.
    Unnest(Vec<usize>),
    /// A window that copies texts: it makes one batch of all its input.
    Window,
    /// Whatever comes after an unnest: batches of the usual size.
    Anything,
}

/// Puts portions between the operators of a plan that need them. `widest` becomes the bytes of the widest row that was
/// refused, so that the plan can be run again with fewer rows in a batch.
pub(crate) fn portioned(plan: Arc<dyn ExecutionPlan>, widest: &Arc<AtomicU64>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        let behind = match node.name() {
            name if name.ends_with("JoinExec") => Behind::Join,
            "UnnestExec" => match node.downcast_ref::<UnnestExec>() {
                Some(unnest) => {
                    Behind::Unnest(unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect())
                }
                None => return Ok(Transformed::no(node)),
            },
            "WindowAggExec" if copies_values(&node) => Behind::Window,
            _ => return Ok(Transformed::no(node)),
        };
        let inputs =
            node.children().into_iter().map(|input| Portions::before(behind.clone(), Arc::clone(input), widest));
        let inputs = inputs.collect();
        let node = node.replace_children(inputs, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))?;
        Ok(Transformed::yes(match behind {
            Behind::Unnest(_) => Portions::before(Behind::Anything, node, widest),
            _ => Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>,
        }))
    });
    plan.map(|transformed| transformed.data)
}

/// Whether a window gives texts or lists, which are copied, rather than numbers.
fn copies_values(window: &Arc<dyn ExecutionPlan>) -> bool {
    let schema = window.schema();
    let inputs = window.children().first().map_or(0, |input| input.schema().fields().len());
    schema.fields().iter().skip(inputs).any(|field| !field.data_type().is_primitive())
}

#[derive(Debug)]
struct Portions {
    behind: Behind,
    input: Arc<dyn ExecutionPlan>,
    widest: Arc<AtomicU64>,
}

impl Portions {
    fn before(behind: Behind, input: Arc<dyn ExecutionPlan>, widest: &Arc<AtomicU64>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { behind, input, widest: Arc::clone(widest) })
    }
}

impl DisplayAs for Portions {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Portions: before={:?}", self.behind)
    }
}

impl ExecutionPlan for Portions {
    fn name(&self) -> &'static str {
        "Portions"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.into_iter().next() else { return internal_err!("portions of nothing") };
        Ok(Self::before(self.behind.clone(), input, &self.widest))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let (schema, behind, widest) = (input.schema(), self.behind.clone(), Arc::clone(&self.widest));
        let rows_at_once = context.session_config().batch_size().max(1);
        let mut before = Before { behind, rows_at_once: rows_at_once as u64, rows: 0 };
        let portions = input
            .map(move |batch| {
                let batch = batch?;
                let rows = before.portion(&batch).inspect_err(|_| {
                    widest.fetch_max(widest_row(&batch, &[]), Ordering::Relaxed);
                })?;
                let starts = (0..batch.num_rows()).step_by(rows);
                let portions =
                    starts.map(move |start| trimmed(&batch.slice(start, rows.min(batch.num_rows() - start))));
                Ok::<_, DataFusionError>(stream::iter(portions))
            })
            .try_flatten();
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(schema, portions))))
    }
}

/// What one stream of portions has to know.
struct Before {
    behind: Behind,
    rows_at_once: u64,
    /// Rows so far.
    rows: u64,
}

impl Before {
    /// Rows of the portions of a batch, at least one.
    ///
    /// # Errors
    /// When a single row would be copied too often.
    fn portion(&mut self, batch: &RecordBatch) -> Result<usize> {
        let all = batch.num_rows().max(1);
        self.rows += batch.num_rows() as u64;
        let mut unnested: &[usize] = &[];
        let copies = match &self.behind {
            Behind::Anything => return Ok(all.min(usize::try_from(self.rows_at_once).unwrap_or(usize::MAX))),
            Behind::Join => self.rows_at_once,
            Behind::Window => self.rows,
            Behind::Unnest(lists) => {
                unnested = lists;
                lists.iter().map(|list| longest_list(batch.column(*list))).max().unwrap_or(1).max(1)
            }
        };
        let row = widest_row(batch, unnested);
        let of_a_row = row.max(1).saturating_mul(copies);
        if of_a_row > COPIED_BYTES_MAX {
            return Err(external(
                QueryError::new(
                    ErrorKind::Memory,
                    format!(
                        "a row of {} KiB would be copied {copies} times, over the limit of {} MiB",
                        row >> 10,
                        COPIED_BYTES_MAX >> 20
                    ),
                )
                .hint("join or unnest first, and make long texts and lists after that"),
            ));
        }
        if !matches!(self.behind, Behind::Unnest(_)) {
            return Ok(all);
        }
        let rows = (COPIED_BYTES_MAX / of_a_row).min(UNNESTED_ROWS_MAX / copies).max(1);
        Ok(all.min(usize::try_from(rows).unwrap_or(usize::MAX)))
    }
}

/// The batch without what its lists hold before and after its rows. Arrow guesses the room that copies of lists need
/// from the length of what they share, and for a few rows of a large batch that is far too much.
fn trimmed(batch: &RecordBatch) -> Result<RecordBatch> {
    let trim = |array: &ArrayRef| -> Result<ArrayRef> {
        let DataType::List(item) = array.data_type() else { return Ok(Arc::clone(array)) };
        let list = array.as_list::<i32>();
        let offsets = list.value_offsets();
        let (first, last) = (offsets.first().copied().unwrap_or(0), offsets.last().copied().unwrap_or(0));
        let length = (last - first).as_usize();
        if length == list.values().len() {
            return Ok(Arc::clone(array));
        }
        let offsets = offsets.iter().map(|offset| offset - first).collect::<Vec<_>>();
        let values = list.values().slice(first.as_usize(), length);
        let offsets = OffsetBuffer::new(offsets.into());
        Ok(Arc::new(ListArray::try_new(Arc::clone(item), offsets, values, list.nulls().cloned())?))
    };
    let columns = batch.columns().iter().map(trim).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

/// Bytes of a row that has the widest value of each column but some.
fn widest_row(batch: &RecordBatch, without: &[usize]) -> u64 {
    let columns = batch.columns().iter().enumerate().filter(|(index, _)| !without.contains(index));
    columns.map(|(_, column)| widest_value(column.as_ref())).sum()
}

fn widest_value(array: &dyn Array) -> u64 {
    match array.data_type() {
        DataType::Utf8 => longest(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => longest(array.as_string::<i64>().value_offsets()),
        DataType::Binary => longest(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => longest(array.as_binary::<i64>().value_offsets()),
        DataType::FixedSizeBinary(bytes) => u64::try_from(*bytes).unwrap_or(0),
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| widest_value(column.as_ref())).sum(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let items = list.values();
            let bytes = items.to_data().get_slice_memory_size().unwrap_or_else(|_| items.get_array_memory_size());
            longest(list.value_offsets()).saturating_mul(bytes.div_ceil(items.len().max(1)) as u64)
        }
        // Numbers and times; dictionaries and views copy keys and references.
        other => other.primitive_width().unwrap_or(16) as u64,
    }
}

fn longest_list(array: &ArrayRef) -> u64 {
    match array.data_type() {
        DataType::List(_) => longest(array.as_list::<i32>().value_offsets()),
        DataType::LargeList(_) => longest(array.as_list::<i64>().value_offsets()),
        DataType::FixedSizeList(_, length) => u64::try_from(*length).unwrap_or(0),
        _ => 1,
    }
}

fn longest<O: OffsetSizeTrait>(offsets: &[O]) -> u64 {
    offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_usize() as u64).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn portions_are_as_small_as_their_rows_are_wide() {
        let long = "x".repeat(1 << 20);
        let narrow: ArrayRef = Arc::new(StringArray::from(vec!["a", "bc", "d", ""]));
        let wide: ArrayRef = Arc::new(StringArray::from(vec!["a", &long, "d", ""]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
        let lists = |longest: usize| -> ArrayRef {
            let rows = [2, longest, 0, 1].map(|length| Some((0..length as i64).map(Some).collect::<Vec<_>>()));
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows))
        };
        for (behind, columns, rows_at_once, expected) in [
            (Behind::Anything, vec![&narrow], 3, Some(3)),
            (Behind::Anything, vec![&wide], 8192, Some(4)),
            (Behind::Join, vec![&narrow, &numbers], 8192, Some(4)),
            (Behind::Join, vec![&wide, &numbers], 8192, None),
            (Behind::Join, vec![&wide, &numbers], 16, Some(4)),
            (Behind::Window, vec![&wide], 8192, Some(4)),
            (Behind::Unnest(vec![1]), vec![&narrow, &lists(3)], 8192, Some(4)),
            (Behind::Unnest(vec![1]), vec![&narrow, &lists(5_000)], 8192, Some(1)),
            (Behind::Unnest(vec![1]), vec![&wide, &lists(20)], 8192, Some(3)),
            (Behind::Unnest(vec![1]), vec![&wide, &lists(100)], 8192, None),
            (Behind::Unnest(vec![0]), vec![&lists(2), &lists(1_000)], 8192, Some(4)),
        ] {
            let shown = columns.len();
            let named = columns.iter().enumerate().map(|(index, column)| (index.to_string(), Arc::clone(column)));
            let batch = RecordBatch::try_from_iter(named).unwrap();
            let mut before = Before { behind, rows_at_once, rows: 0 };
            let found = before.portion(&batch).ok();
            assert_eq!(found, expected, "{:?} {shown} {:?}", before.behind, widest_row(&batch, &[]));
        }
    }

    #[test]
    fn portions_hold_nothing_of_the_rows_beside_them() {
        let rows = (0..100_i64).map(|row| (row % 7 != 3).then(|| (0..row).map(Some).collect::<Vec<_>>()));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows));
        let batch = RecordBatch::try_from_iter([("lists", lists)]).unwrap();
        for (start, rows) in [(0, 100), (0, 1), (40, 5), (99, 1), (50, 0)] {
            let portion = batch.slice(start, rows);
            let trimmed = trimmed(&portion).unwrap();
            assert_eq!(trimmed, portion);
            let list = trimmed.column(0).as_list::<i32>();
            let held: usize = (0..rows).map(|row| list.value(row).len()).sum();
            assert_eq!(list.values().len(), held, "{rows} rows from {start}");
        }
    }
}
