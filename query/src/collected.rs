//! `array_agg` and `string_agg` with a size that is true at their end, too.
//!
//! DataFusion asks an aggregate how much memory it holds while rows come in. These two hold what they collected once
//! until then; to give it away they copy it, and the batch that carries it copies it again. So they count it three
//! times from the first row on, and a query is stopped before the copies are made. Not here: the account
//! ([`crate::memory`]), and the functions themselves, which are DataFusion's.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::AggregateFunctionParams;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};

/// How often what was collected is there when it is given away: as it was kept, as one array, and in its batch.
const COPIES: usize = 3;

/// The functions that keep what they are given.
const COLLECTING: [&str; 2] = ["array_agg", "string_agg"];

/// The functions, with those that collect counted as they should be.
pub(crate) fn counted(functions: Vec<Arc<AggregateUDF>>) -> Vec<Arc<AggregateUDF>> {
    let counted = |function: Arc<AggregateUDF>| {
        if !COLLECTING.contains(&function.name()) {
            return function;
        }
        Arc::new(AggregateUDF::new_from_impl(Collecting((*function).clone())))
    };
    functions.into_iter().map(counted).collect()
}

/// A function that collects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Collecting(AggregateUDF);

impl Collecting {
    fn of(&self) -> &Arc<dyn AggregateUDFImpl> {
        self.0.inner()
    }
}

impl AggregateUDFImpl for Collecting {
    fn name(&self) -> &str {
        self.of().name()
    }

    fn aliases(&self) -> &[String] {
        self.of().aliases()
    }

    fn schema_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.of().schema_name(params)
    }

    fn human_display(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.of().human_display(params)
    }

    fn display_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.of().display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.of().signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.of().return_type(types)
    }

    fn return_field(&self, fields: &[FieldRef]) -> Result<FieldRef> {
        self.of().return_field(fields)
    }

    fn is_nullable(&self) -> bool {
        self.of().is_nullable()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Counted(self.of().accumulator(args)?)))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.of().state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.of().groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(CountedGroups(self.of().create_groups_accumulator(args)?)))
    }

    fn with_beneficial_ordering(self: Arc<Self>, is_ordered: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        let ordered = Arc::clone(self.of()).with_beneficial_ordering(is_ordered)?;
        Ok(ordered.map(|function| Arc::new(Self(AggregateUDF::new_from_shared_impl(function))) as _))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.of().order_sensitivity()
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        self.of().simplify()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        match self.of().reverse_expr() {
            ReversedUDAF::Reversed(function) => {
                ReversedUDAF::Reversed(Arc::new(AggregateUDF::new_from_impl(Self((*function).clone()))))
            }
            other => other,
        }
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.of().coerce_types(types)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.of().default_value(data_type)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.of().supports_null_handling_clause()
    }
}

#[derive(Debug)]
struct Counted(Box<dyn Accumulator>);

impl Accumulator for Counted {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.evaluate()
    }

    fn size(&self) -> usize {
        self.0.size().saturating_mul(COPIES)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states)
    }
}

struct CountedGroups(Box<dyn GroupsAccumulator>);

impl GroupsAccumulator for CountedGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.0.update_batch(values, groups, filter, total)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.0.evaluate(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.0.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.0.merge_batch(values, groups, total)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.0.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        self.0.size().saturating_mul(COPIES)
    }
}
