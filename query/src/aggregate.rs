//! The aggregates of telemetry: `rate`, `increase`, `histogram_merge`, `histogram_increase` and
//! `quantile`; their names, their arguments, and how each runs in DataFusion.
//!
//! What an aggregate computes is a [`Fold`] in a file of its own ([`crate::rate`],
//! [`crate::histogram`], [`crate::quantile`]). Here a fold becomes both things that DataFusion asks
//! for: one accumulator for a whole input, and one for all groups of a GROUP BY. Both report the
//! memory of their states, so that the query's limit holds.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::cast::as_float64_array;
use datafusion::common::{ScalarValue, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use model::schema::time_type;

use crate::histogram::{self, histogram_type, is_histogram};
use crate::quantile::{OfHistograms, OfNumbers};
use crate::rate::{self, PerSecond};
use crate::render::type_name;

/// An aggregate as a fold: a state that takes in rows and other states in any order.
pub(crate) trait Fold: Debug + Send + Sync + 'static {
    /// What is known of one group of rows; the default is what is known of none.
    type State: Default + Debug + Send + Sync + 'static;
    /// The arguments of a batch, ready to be read by row.
    type Rows<'a>;
    /// A batch of saved states, ready to be read by row.
    type Saved<'a>;

    /// Reads the arguments of a batch.
    fn rows<'a>(&self, arguments: &'a [ArrayRef]) -> Result<Self::Rows<'a>>;

    /// Takes a row in.
    fn add(&self, state: &mut Self::State, rows: &Self::Rows<'_>, row: usize) -> Result<()>;

    /// States as columns, to be handed to another thread or to disk.
    fn save(&self, states: &[Self::State]) -> Result<Vec<ArrayRef>>;

    /// Reads what [`Fold::save`] made.
    fn saved<'a>(&self, columns: &'a [ArrayRef]) -> Result<Self::Saved<'a>>;

    /// Takes a saved state in.
    fn merge(&self, state: &mut Self::State, saved: &Self::Saved<'_>, row: usize) -> Result<()>;

    /// The results. A window asks several times, so a state stays as it is in meaning.
    fn finish(&self, states: &mut [Self::State]) -> Result<ArrayRef>;

    /// Bytes of a state on the heap, in constant time. What [`Fold::save`] copies is part of it.
    fn heap_bytes(state: &Self::State) -> usize;
}

/// A fold over one whole input.
#[derive(Debug)]
struct Single<F: Fold> {
    fold: F,
    state: F::State,
}

impl<F: Fold> Accumulator for Single<F> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let rows = self.fold.rows(values)?;
        (0..values[0].len()).try_for_each(|row| self.fold.add(&mut self.state, &rows, row))
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let saved = self.fold.saved(states)?;
        (0..states[0].len()).try_for_each(|row| self.fold.merge(&mut self.state, &saved, row))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let columns = self.fold.save(std::slice::from_ref(&self.state))?;
        columns.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let result = self.fold.finish(std::slice::from_mut(&mut self.state))?;
        ScalarValue::try_from_array(&result, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self) + F::heap_bytes(&self.state)
    }
}

/// A fold over every group of a GROUP BY.
#[derive(Debug)]
struct Grouped<F: Fold> {
    fold: F,
    states: Vec<F::State>,
    heap_bytes: usize,
}

impl<F: Fold> Grouped<F> {
    fn each(
        &mut self,
        groups: &[usize],
        group_count: usize,
        mut take: impl FnMut(&F, &mut F::State, usize) -> Result<()>,
    ) -> Result<()> {
        self.states.resize_with(group_count, F::State::default);
        for (row, group) in groups.iter().enumerate() {
            let state = &mut self.states[*group];
            let before = F::heap_bytes(state);
            take(&self.fold, state, row)?;
            self.heap_bytes = (self.heap_bytes + F::heap_bytes(state)).saturating_sub(before);
        }
        Ok(())
    }

    fn emitted(&mut self, emit_to: EmitTo) -> Vec<F::State> {
        let states = emit_to.take_needed(&mut self.states);
        let bytes: usize = states.iter().map(F::heap_bytes).sum();
        self.heap_bytes = self.heap_bytes.saturating_sub(bytes);
        states
    }
}

fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl<F: Fold> GroupsAccumulator for Grouped<F> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        let rows = self.fold.rows(values)?;
        self.each(group_indices, total_num_groups, |fold, state, row| {
            if passes(opt_filter, row) { fold.add(state, &rows, row) } else { Ok(()) }
        })
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        let saved = self.fold.saved(values)?;
        self.each(group_indices, total_num_groups, |fold, state, row| fold.merge(state, &saved, row))
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let mut states = self.emitted(emit_to);
        self.fold.finish(&mut states)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let states = self.emitted(emit_to);
        self.fold.save(&states)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = self.fold.rows(values)?;
        let mut states = Vec::with_capacity(values[0].len());
        for row in 0..values[0].len() {
            let mut state = F::State::default();
            if passes(opt_filter, row) {
                self.fold.add(&mut state, &rows, row)?;
            }
            states.push(state);
        }
        self.fold.save(&states)
    }

    fn size(&self) -> usize {
        self.states.capacity() * size_of::<F::State>() + self.heap_bytes
    }
}

/// A fold over one whole input, as DataFusion runs it.
pub(crate) fn single<F: Fold>(fold: F) -> Box<dyn Accumulator> {
    Box::new(Single { fold, state: F::State::default() })
}

/// A fold over all groups of a GROUP BY, as DataFusion runs it.
pub(crate) fn grouped<F: Fold>(fold: F) -> Box<dyn GroupsAccumulator> {
    Box::new(Grouped { fold, states: Vec::new(), heap_bytes: 0 })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    /// `rate(value, time)`
    Rate,
    /// `increase(value, time)`
    Increase,
    /// `histogram_merge(histogram)`
    HistogramMerge,
    /// `histogram_increase(histogram, time)`
    HistogramIncrease,
    /// `quantile(q, number)` and `quantile(q, histogram)`
    Quantile,
}

/// The aggregates.
pub(crate) fn functions() -> [Arc<AggregateUDF>; 5] {
    [Which::Rate, Which::Increase, Which::HistogramMerge, Which::HistogramIncrease, Which::Quantile].map(|which| {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(AggregateUDF::new_from_impl(Aggregate { which, signature }))
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Aggregate {
    which: Which,
    signature: Signature,
}

/// Runs the same code with each fold, whose types differ.
trait Visit {
    type Output;
    fn visit<F: Fold>(self, fold: F) -> Self::Output;
}

struct MakeSingle;

impl Visit for MakeSingle {
    type Output = Box<dyn Accumulator>;
    fn visit<F: Fold>(self, fold: F) -> Self::Output {
        single(fold)
    }
}

struct MakeGrouped;

impl Visit for MakeGrouped {
    type Output = Box<dyn GroupsAccumulator>;
    fn visit<F: Fold>(self, fold: F) -> Self::Output {
        grouped(fold)
    }
}

impl Aggregate {
    fn visit<V: Visit>(&self, args: &AccumulatorArgs<'_>, visitor: V) -> Result<V::Output> {
        if args.is_distinct {
            return plan_err!("{}() does not take DISTINCT", self.name());
        }
        Ok(match self.which {
            Which::Rate => visitor.visit(rate::Counter { per: PerSecond::Yes }),
            Which::Increase => visitor.visit(rate::Counter { per: PerSecond::No }),
            Which::HistogramMerge => visitor.visit(histogram::Merge),
            Which::HistogramIncrease => visitor.visit(histogram::Increase),
            Which::Quantile => {
                let q = constant(args, 0)?;
                match args.expr_fields.get(1) {
                    Some(field) if is_histogram(field.data_type()) => visitor.visit(OfHistograms { q }),
                    Some(_) => visitor.visit(OfNumbers { q }),
                    None => return internal_err!("quantile() without a second argument"),
                }
            }
        })
    }

    fn expected(&self) -> &'static str {
        match self.which {
            Which::Rate | Which::Increase => "(number, time)",
            Which::HistogramMerge => "(histogram)",
            Which::HistogramIncrease => "(histogram, time)",
            Which::Quantile => "(number between 0 and 1, number or histogram)",
        }
    }
}

/// The value of a numeric argument that does not depend on rows.
fn constant(args: &AccumulatorArgs<'_>, index: usize) -> Result<f64> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let empty = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    // An expression over columns fails on a batch that has none.
    match args.exprs[index].evaluate(&empty) {
        Ok(ColumnarValue::Scalar(ScalarValue::Float64(Some(value)))) => Ok(value),
        Ok(ColumnarValue::Array(array)) if array.len() == 1 && array.is_valid(0) => {
            Ok(as_float64_array(&array)?.value(0))
        }
        _ => plan_err!("the first argument of quantile() must be a constant number, such as 0.99"),
    }
}

impl AggregateUDFImpl for Aggregate {
    fn name(&self) -> &str {
        match self.which {
            Which::Rate => "rate",
            Which::Increase => "increase",
            Which::HistogramMerge => "histogram_merge",
            Which::HistogramIncrease => "histogram_increase",
            Which::Quantile => "quantile",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let number = |data_type: &DataType| data_type.is_numeric() || data_type.is_null();
        let time = |data_type: &DataType| {
            matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null)
        };
        let types = match (self.which, arg_types) {
            (Which::Rate | Which::Increase, [value, at]) if number(value) && time(at) => {
                vec![DataType::Float64, time_type()]
            }
            (Which::HistogramMerge, [histogram]) if is_histogram(histogram) => vec![histogram_type()],
            (Which::HistogramIncrease, [histogram, at]) if is_histogram(histogram) && time(at) => {
                vec![histogram_type(), time_type()]
            }
            (Which::Quantile, [q, histogram]) if number(q) && is_histogram(histogram) => {
                vec![DataType::Float64, histogram_type()]
            }
            (Which::Quantile, [q, value]) if number(q) && number(value) => vec![DataType::Float64, DataType::Float64],
            _ => {
                let found: Vec<String> = arg_types.iter().map(type_name).collect();
                return plan_err!("{}() expects {}, found ({})", self.name(), self.expected(), found.join(", "));
            }
        };
        Ok(types)
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(match self.which {
            Which::Rate | Which::Increase | Which::Quantile => DataType::Float64,
            Which::HistogramMerge | Which::HistogramIncrease => histogram_type(),
        })
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let list = |item: DataType| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let types = match self.which {
            Which::Rate | Which::Increase => {
                vec![("times", list(DataType::Int64)), ("values", list(DataType::Float64))]
            }
            Which::HistogramMerge => vec![("histogram", histogram_type())],
            Which::HistogramIncrease => {
                vec![("times", list(DataType::Int64)), ("histograms", list(histogram_type()))]
            }
            Which::Quantile if args.input_fields.get(1).is_some_and(|field| is_histogram(field.data_type())) => {
                vec![("histogram", histogram_type())]
            }
            Which::Quantile => vec![("values", list(DataType::Float64)), ("sketch", histogram_type())],
        };
        let field = |(part, data_type)| Arc::new(Field::new(format_state_name(args.name, part), data_type, true));
        Ok(types.into_iter().map(field).collect())
    }

    fn accumulator(&self, acc_args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.visit(&acc_args, MakeSingle)
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        self.visit(&args, MakeGrouped)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}
