//! Reading the layouts of segments: `attributes['http.route']` over a file that has it as a column
//! of its own, or in its lists, or not at all; and columns that a file leaves out.
//!
//! Plans are made over the table's schema. When a file is opened its own schema is known, and every
//! expression of the scan, filters and projections alike, is rewritten for it by [`Adapter`]:
//!
//! | the table's | the file's |
//! | --- | --- |
//! | `attribute(attributes, 'k')`, `k` whole in a promoted column | that column, cast to the planned type |
//! | the same, `k` neither promoted nor in any list | null |
//! | the same, anything else | a look-up by shape in the columns of `k` and the lists |
//! | `attributes` | put together from its lists and all promoted columns |
//! | a column that is left out | its default |
//!
//! So a predicate on a promoted attribute is one on a plain column: statistics, page index and
//! late materialisation work as for any other. Not here: the layouts themselves; those are the
//! store's.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, ListArray, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int32Type, Int64Type, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, exec_err};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use model::attributes::{Kind, attributes_type, shape_entries};
use model::signal::Table;
use model::value::Value;
use store::layout::{ATTRIBUTES, Filler, Layout, Place, filler_of, list_of};

use crate::functions::AttributeBuilder;

/// Makes adapters for the files of one table.
#[derive(Debug)]
pub(crate) struct AdapterFactory(pub(crate) Table);

impl PhysicalExprAdapterFactory for AdapterFactory {
    fn create(
        &self,
        logical_file_schema: SchemaRef,
        physical_file_schema: SchemaRef,
    ) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let layout = Layout::of_schema(self.0, &physical_file_schema)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let inner = DefaultPhysicalExprAdapterFactory
            .create(Arc::clone(&logical_file_schema), Arc::clone(&physical_file_schema))?;
        Ok(Arc::new(Adapter { layout: Arc::new(layout), table_schema: logical_file_schema, inner }))
    }
}

/// Rewrites expressions over the table's schema for one file.
#[derive(Debug)]
struct Adapter {
    layout: Arc<Layout>,
    table_schema: SchemaRef,
    inner: Arc<dyn PhysicalExprAdapter>,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let expr = expr.transform_down(|expr| {
            Ok(match self.replacement(&expr)? {
                // What replaces is over the file already.
                Some(replacement) => Transformed::new(replacement, true, TreeNodeRecursion::Jump),
                None => Transformed::no(expr),
            })
        });
        // The rest is the same columns at other places.
        let layout = Arc::clone(&self.layout);
        expr.data()?
            .transform_down(|expr| {
                if is_over_file(&expr) {
                    return Ok(Transformed::new(expr, false, TreeNodeRecursion::Jump));
                }
                let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
                if layout.schema().index_of(column.name()).is_ok() {
                    let index = layout.schema().index_of(column.name())?;
                    return Ok(Transformed::new(
                        Arc::new(Column::new(column.name(), index)),
                        true,
                        TreeNodeRecursion::Jump,
                    ));
                }
                Ok(Transformed::new(self.inner.rewrite(expr)?, true, TreeNodeRecursion::Jump))
            })
            .data()
    }
}

/// Whether an expression was made by [`Adapter`], with columns of the file below.
fn is_over_file(expr: &Arc<dyn PhysicalExpr>) -> bool {
    ScalarFunctionExpr::try_downcast_func::<Lookup>(expr.as_ref()).is_some()
        || ScalarFunctionExpr::try_downcast_func::<Assemble>(expr.as_ref()).is_some()
        || ScalarFunctionExpr::try_downcast_func::<AsText>(expr.as_ref()).is_some()
}

/// The key of an attribute of the row, when an expression is one.
pub(crate) fn attribute_key(expr: &Arc<dyn PhysicalExpr>) -> Option<(&str, &DataType)> {
    let call = expr.downcast_ref::<ScalarFunctionExpr>().filter(|call| call.name() == "attribute")?;
    let [container, key] = call.args() else { return None };
    let mut container = container;
    while let Some(origin) =
        container.downcast_ref::<ScalarFunctionExpr>().filter(|call| call.name() == "attributes_of")
    {
        container = origin.args().first()?;
    }
    let is_of_row = container.downcast_ref::<Column>().is_some_and(|column| column.name() == ATTRIBUTES);
    let key = key.downcast_ref::<Literal>().and_then(|key| key.value().try_as_str().flatten());
    key.filter(|_| is_of_row).map(|key| (key, call.return_type()))
}

impl Adapter {
    fn replacement(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        if let Some((key, data_type)) = attribute_key(expr) {
            return self.attribute(key, data_type).map(Some);
        }
        let Some(column) = expr.downcast_ref::<Column>() else { return Ok(None) };
        if column.name() == ATTRIBUTES {
            let whole = self.layout.promoted().is_empty() && self.layout.lists() == [true; 4];
            return if whole { Ok(None) } else { self.assembled().map(Some) };
        }
        if self.layout.schema().index_of(column.name()).is_ok() {
            return Ok(None);
        }
        let Ok(field) = self.table_schema.field_with_name(column.name()) else { return Ok(None) };
        Ok(match filler_of(self.layout.table(), field) {
            Some(filler) => Some(literal(filler, field)?),
            None => None,
        })
    }

    /// The file's column, by its place.
    fn column(&self, index: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(Column::new(self.layout.schema().field(index).name(), index))
    }

    fn attributes_column(&self) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(self.column(self.layout.schema().index_of(ATTRIBUTES)?))
    }

    fn attribute(&self, key: &str, data_type: &DataType) -> Result<Arc<dyn PhysicalExpr>> {
        let of_key: Vec<usize> =
            (0..self.layout.promoted().len()).filter(|index| self.layout.promoted()[*index].key == key).collect();
        if let [only] = of_key[..]
            && self.layout.is_whole(only)
        {
            let column = self.column(self.layout.promoted_column(only));
            let stored = self.layout.promoted()[only].data_type();
            return Ok(match (&stored, data_type) {
                (stored, wanted) if stored == wanted => column,
                (DataType::Float64, DataType::Utf8) => call(AsText::new(), vec![column], DataType::Utf8)?,
                // The planned type holds every kind of the snapshot, so nothing else needs more than this.
                _ => Arc::new(CastExpr::new(column, data_type.clone(), None)),
            });
        }
        if of_key.is_empty() && self.layout.lists() == [false; 4] {
            return Ok(Arc::new(Literal::new(ScalarValue::try_from(data_type)?)));
        }
        let mut args = vec![self.attributes_column()?];
        args.extend(of_key.iter().map(|index| self.column(self.layout.promoted_column(*index))));
        call(
            Lookup {
                layout: ByAddress(Arc::clone(&self.layout)),
                key: key.to_owned(),
                columns: of_key,
                data_type: data_type.clone(),
                signature: Signature::variadic_any(Volatility::Immutable),
            },
            args,
            data_type.clone(),
        )
    }

    fn assembled(&self) -> Result<Arc<dyn PhysicalExpr>> {
        let mut args = vec![self.attributes_column()?];
        args.extend((0..self.layout.promoted().len()).map(|index| self.column(self.layout.promoted_column(index))));
        call(
            Assemble {
                layout: ByAddress(Arc::clone(&self.layout)),
                signature: Signature::variadic_any(Volatility::Immutable),
            },
            args,
            attributes_type(),
        )
    }
}

/// Moves projections that read attributes through the union of segments and memory, so that each
/// scan can take them in. DataFusion does so only when that leaves fewer columns.
#[derive(Debug)]
pub(crate) struct AttributesIntoScans;

impl PhysicalOptimizerRule for AttributesIntoScans {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|node| {
            let Some(projection) = node.downcast_ref::<ProjectionExec>() else { return Ok(Transformed::no(node)) };
            let Some(union) = projection.input().downcast_ref::<UnionExec>() else { return Ok(Transformed::no(node)) };
            let mut reads = false;
            for projected in projection.expr() {
                projected.expr.apply(|expr| {
                    reads |= attribute_key(expr).is_some();
                    Ok(if reads { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
                })?;
            }
            if !reads {
                return Ok(Transformed::no(node));
            }
            let inputs = union.inputs().iter().map(|input| {
                let projection = ProjectionExec::try_new(projection.expr().to_vec(), Arc::clone(input))?;
                Ok(Arc::new(projection) as Arc<dyn ExecutionPlan>)
            });
            Ok(Transformed::yes(UnionExec::try_new(inputs.collect::<Result<_>>()?)?))
        })
        .data()
    }

    fn name(&self) -> &str {
        "attributes_into_scans"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// One value for all rows of a column that is left out.
fn literal(filler: Filler, field: &Field) -> Result<Arc<dyn PhysicalExpr>> {
    Ok(Arc::new(Literal::new(ScalarValue::try_from_array(&filler.array(field, 1), 0)?)))
}

fn call(
    function: impl ScalarUDFImpl + 'static,
    args: Vec<Arc<dyn PhysicalExpr>>,
    data_type: DataType,
) -> Result<Arc<dyn PhysicalExpr>> {
    let function = Arc::new(ScalarUDF::new_from_impl(function));
    let field: FieldRef = Arc::new(Field::new(function.name(), data_type, true));
    let name = function.name().to_owned();
    Ok(Arc::new(ScalarFunctionExpr::new(&name, function, args, field, Arc::new(ConfigOptions::default()))))
}

/// A layout that is compared by where it is: one adapter makes one.
#[derive(Clone)]
struct ByAddress(Arc<Layout>);

impl PartialEq for ByAddress {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for ByAddress {}
impl Hash for ByAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}
impl fmt::Debug for ByAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("layout")
    }
}

/// One attribute of a file that has it in more than one place: its promoted columns and the lists.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Lookup {
    layout: ByAddress,
    key: String,
    /// The promoted columns of the key; the arguments after `attributes`.
    columns: Vec<usize>,
    data_type: DataType,
    signature: Signature,
}

impl ScalarUDFImpl for Lookup {
    fn name(&self) -> &str {
        "attribute_lookup"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _args: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), self.data_type.clone(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect::<Result<Vec<_>>>()?;
        let Some(attributes) = arrays.first().and_then(|array| array.as_struct_opt()) else {
            return exec_err!("expected attributes");
        };
        let values = FileAttributes::new(attributes)?;
        // Kinds share a list, so that the kind of what is in it is needed as well.
        let places: Vec<(Place, Kind)> = values
            .shapes
            .iter()
            .map(|shape| {
                let entries = shape_entries(shape.unwrap_or_default());
                let last = entries.iter().rposition(|entry| entry.key == self.key);
                last.map_or((Place::Nothing, Kind::Absent), |last| {
                    (self.layout.0.places(&entries)[last], entries[last].kind)
                })
            })
            .collect();
        let mut builder = AttributeBuilder::new(&self.data_type, args.number_rows);
        for row in 0..args.number_rows {
            let value = match places[values.shape(row)] {
                (Place::Nothing, _) => None,
                (Place::Column(column), _) => {
                    let place = self.columns.iter().position(|known| *known == column);
                    place.and_then(|place| value_of(&arrays[place + 1], row))
                }
                (Place::List(_, slot), kind) => values.value(row, kind, slot),
            };
            builder.push(value.as_ref());
        }
        Ok(ColumnarValue::Array(builder.finish()))
    }
}

/// The value of a promoted column.
fn value_of(column: &ArrayRef, row: usize) -> Option<Value<'_>> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => Value::String(column.as_string::<i32>().value(row)),
        DataType::Int64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => Value::Double(column.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        _ => return None,
    })
}

/// `attributes` as a file has it: the shape and some of the lists.
struct FileAttributes<'a> {
    keys: &'a [i32],
    shapes: &'a BinaryArray,
    lists: [Option<&'a ListArray>; 4],
}

impl<'a> FileAttributes<'a> {
    fn new(attributes: &'a StructArray) -> Result<Self> {
        let shape = attributes.column_by_name("shape").and_then(|shape| shape.as_dictionary_opt::<Int32Type>());
        let Some((keys, shapes)) =
            shape.and_then(|shape| Some((shape.keys().values(), shape.values().as_binary_opt()?)))
        else {
            return exec_err!("attributes without shapes");
        };
        let lists = ["strings", "ints", "doubles", "others"]
            .map(|name| attributes.column_by_name(name).and_then(|list| list.as_list_opt()));
        Ok(Self { keys, shapes, lists })
    }

    fn shape(&self, row: usize) -> usize {
        self.keys[row].unsigned_abs() as usize
    }

    fn value(&self, row: usize, kind: Kind, slot: usize) -> Option<Value<'a>> {
        let list = self.lists[list_of(kind)?]?;
        let at = list.value_offsets()[row].unsigned_abs() as usize + slot;
        let items = list.values();
        Some(match kind {
            Kind::String => Value::String(items.as_string::<i32>().value(at)),
            Kind::Int => Value::Int(items.as_primitive::<Int64Type>().value(at)),
            Kind::Bool => Value::Bool(items.as_primitive::<Int64Type>().value(at) != 0),
            Kind::Double => Value::Double(items.as_primitive::<Float64Type>().value(at)),
            Kind::Bytes => Value::Bytes(items.as_binary::<i32>().value(at)),
            Kind::Array => Value::Array(items.as_binary::<i32>().value(at)),
            Kind::KvList => Value::KvList(items.as_binary::<i32>().value(at)),
            Kind::Absent | Kind::Empty => return None,
        })
    }
}

/// `attributes` as the table has it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Assemble {
    layout: ByAddress,
    signature: Signature,
}

impl ScalarUDFImpl for Assemble {
    fn name(&self) -> &str {
        "attributes_of_file"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _args: &[DataType]) -> Result<DataType> {
        Ok(attributes_type())
    }

    fn return_field_from_args(&self, _args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), attributes_type(), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect::<Result<Vec<_>>>()?;
        let assembled = store::gather::assemble_attributes(&self.layout.0, &arrays)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(ColumnarValue::Array(assembled))
    }
}

/// A double as an attribute's text, which is not how SQL casts it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AsText {
    signature: Signature,
}

impl AsText {
    fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for AsText {
    fn name(&self) -> &str {
        "attribute_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _args: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let doubles = args.args[0].to_array(args.number_rows)?;
        let texts: StringArray = (0..doubles.len())
            .map(|row| value_of(&doubles, row).and_then(|value| value.to_text().map(std::borrow::Cow::into_owned)))
            .collect();
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}
