//! The SQL functions of telemetry: typed attribute access, attributes as JSON, ids as hex; and
//! guards around the few standard functions whose output can dwarf their input.
//!
//! `attributes['http.route']` becomes `attribute(attributes, 'http.route')` (see
//! [`crate::rewrite`]). Its SQL type is decided when the query is planned, from the kinds observed
//! in the snapshot, so that a number compares as a number. Not here: the layout of attributes;
//! that is the model's.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanBuilder, Float64Builder, Int64Array, Int64Builder, ListBuilder,
    StringArray, StringBuilder, TimestampNanosecondArray,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Int64Type, TimestampNanosecondType};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExpressionPlacement, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use model::attributes::{AttributesView, Kind, Kinds, attributes_type};
use model::context::{Context, context_type};
use model::schema::time_type;
use model::signal::Table;
use model::value::Value;

use crate::error::{ErrorKind, QueryError, external};
use crate::source::{Container, ObservedKinds};

/// Bytes that the text functions of a query may produce of one batch, all together. DataFusion's memory
/// limit does not count what a function allocates; this does. A batch of 8,192 log bodies of 8 KiB fits.
pub const FUNCTION_OUTPUT_BYTES_MAX: usize = 64 << 20;

/// The field metadata that says which container of which table a column is.
const ORIGIN: &str = "origin";

/// The origin of a column whose values are all text.
const TEXTS: &str = "texts";

/// SQL types of keys the semantic conventions define, for when a snapshot has never seen the key:
/// `attributes['http.response.status_code'] >= 500` must plan on an empty table, too.
const WELL_KNOWN: [(&str, Kind); 30] = [
    ("http.response.status_code", Kind::Int),
    ("http.status_code", Kind::Int),
    ("http.request.body.size", Kind::Int),
    ("http.response.body.size", Kind::Int),
    ("http.request.resend_count", Kind::Int),
    ("server.port", Kind::Int),
    ("client.port", Kind::Int),
    ("network.peer.port", Kind::Int),
    ("network.local.port", Kind::Int),
    ("net.peer.port", Kind::Int),
    ("rpc.grpc.status_code", Kind::Int),
    ("db.response.returned_rows", Kind::Int),
    ("db.operation.batch.size", Kind::Int),
    ("messaging.batch.message_count", Kind::Int),
    ("messaging.message.body.size", Kind::Int),
    ("messaging.message.envelope.size", Kind::Int),
    ("thread.id", Kind::Int),
    ("process.pid", Kind::Int),
    ("process.parent_pid", Kind::Int),
    ("code.line.number", Kind::Int),
    ("code.lineno", Kind::Int),
    ("exception.escaped", Kind::Bool),
    ("k8s.container.restart_count", Kind::Int),
    ("faas.coldstart", Kind::Bool),
    ("gen_ai.usage.input_tokens", Kind::Int),
    ("gen_ai.usage.output_tokens", Kind::Int),
    ("gen_ai.request.temperature", Kind::Double),
    ("gen_ai.request.top_p", Kind::Double),
    ("gen_ai.request.max_tokens", Kind::Int),
    ("error.code", Kind::Int),
];

/// The observed kinds, comparable by identity as DataFusion's functions must be.
#[derive(Clone)]
struct KindsHandle(Arc<dyn ObservedKinds>);

impl PartialEq for KindsHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for KindsHandle {}
impl Hash for KindsHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}
impl fmt::Debug for KindsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kinds")
    }
}

impl KindsHandle {
    /// The SQL type of a key of a container, or of any container when its origin is not known
    /// (an expression computed it).
    fn sql_type(&self, container: &Field, key: &str) -> DataType {
        let origin = container.metadata().get(ORIGIN).map(String::as_str);
        if origin == Some(TEXTS) {
            return DataType::Utf8;
        }
        let is_context = *container.data_type() == context_type();
        let kinds = match origin.and_then(parse_origin) {
            Some((table, container)) => self.0.kinds(table, container, key),
            None => Table::ALL
                .into_iter()
                .flat_map(|table| Container::ALL.map(|container| (table, container)))
                .filter(|(_, container)| container.is_context() == is_context)
                .fold(Kinds::default(), |kinds, (table, container)| kinds.union(self.0.kinds(table, container, key))),
        };
        let nothing = Kinds::default().with(Kind::Absent).with(Kind::Empty);
        if kinds.0 & !nothing.0 != 0 {
            return kinds.sql_type();
        }
        WELL_KNOWN
            .iter()
            .find(|(known, _)| *known == key)
            .map_or(DataType::Utf8, |(_, kind)| Kinds::default().with(*kind).sql_type())
    }
}

/// What one call of a text function may produce of one batch: [`FUNCTION_OUTPUT_BYTES_MAX`], shared among
/// the calls of the query once they are counted. Their outputs can all be there at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(FUNCTION_OUTPUT_BYTES_MAX)))
    }
}

impl PartialEq for Allowance {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
impl Eq for Allowance {}
impl Hash for Allowance {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Allowance {
    /// Shares it among so many calls.
    pub(crate) fn share(&self, calls: usize) {
        self.0.store(FUNCTION_OUTPUT_BYTES_MAX / calls.max(1), Ordering::Relaxed);
    }

    fn check(&self, bytes: usize, what: &str) -> Result<()> {
        let most = self.0.load(Ordering::Relaxed);
        if bytes <= most {
            return Ok(());
        }
        Err(external(QueryError::new(
            ErrorKind::Memory,
            format!(
                "{what} would make {} KiB of text for one batch of rows, over the limit of {} KiB",
                bytes >> 10,
                most >> 10
            ),
        )))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    /// `attribute(container, key)`
    Attribute,
    /// `attributes_json(container)`
    Json,
    /// `attribute_keys(container)`
    Keys,
    /// `hex(bytes)`
    Hex,
    /// `attributes_of(container, origin)`: the container itself, marked with where it comes from.
    Origin,
    /// `context_text(container, field)`: scope name, scope version, schema URL.
    ContextText,
    /// `time_plus(time, nanoseconds)`
    TimePlus,
    /// `bounded(value)`: the value itself, refused when it has grown too large.
    Bounded,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    which: Which,
    signature: Signature,
    kinds: KindsHandle,
    allowance: Allowance,
}

/// Our functions over one snapshot.
#[derive(Clone, Debug)]
pub struct Functions {
    attribute: Arc<ScalarUDF>,
    json: Arc<ScalarUDF>,
    keys: Arc<ScalarUDF>,
    hex: Arc<ScalarUDF>,
    origin: Arc<ScalarUDF>,
    context_text: Arc<ScalarUDF>,
    time_plus: Arc<ScalarUDF>,
    bounded: Arc<ScalarUDF>,
    allowance: Allowance,
}

impl Functions {
    /// The functions, with the snapshot's observed kinds.
    #[must_use]
    pub fn new(kinds: &Arc<dyn ObservedKinds>) -> Self {
        let allowance = Allowance::default();
        let make = |which: Which, arguments: usize| {
            Arc::new(ScalarUDF::new_from_impl(Function {
                which,
                signature: Signature::any(arguments, Volatility::Immutable),
                kinds: KindsHandle(Arc::clone(kinds)),
                allowance: allowance.clone(),
            }))
        };
        Self {
            attribute: make(Which::Attribute, 2),
            json: make(Which::Json, 1),
            keys: make(Which::Keys, 1),
            hex: make(Which::Hex, 1),
            origin: make(Which::Origin, 2),
            context_text: make(Which::ContextText, 2),
            time_plus: make(Which::TimePlus, 2),
            bounded: make(Which::Bounded, 1),
            allowance,
        }
    }

    /// The functions that people may call by name.
    #[must_use]
    pub fn public(&self) -> [Arc<ScalarUDF>; 4] {
        [&self.attribute, &self.json, &self.keys, &self.hex].map(Arc::clone)
    }

    /// What text functions may produce; shared with the guarded ones.
    pub(crate) const fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    pub(crate) fn attribute(&self, container: Expr, key: ScalarValue) -> Expr {
        self.attribute.call(vec![container, Expr::Literal(key, None)])
    }

    pub(crate) fn hex(&self, bytes: Expr) -> Expr {
        self.hex.call(vec![bytes])
    }

    pub(crate) fn bounded(&self, value: Expr) -> Expr {
        self.bounded.call(vec![value])
    }

    pub(crate) fn origin(&self, container: Expr, table: Table, which: Container) -> Expr {
        let origin = ScalarValue::from(format!("{}.{}", table.name(), which.name()));
        self.origin.call(vec![container, Expr::Literal(origin, None)])
    }

    pub(crate) fn context_text(&self, container: Expr, field: &str) -> Expr {
        self.context_text.call(vec![container, Expr::Literal(ScalarValue::from(field), None)])
    }

    pub(crate) fn time_plus(&self, time: Expr, nanos: Expr) -> Expr {
        self.time_plus.call(vec![time, nanos])
    }
}

/// The SQL type of a key of a column that holds attributes.
pub(crate) fn attribute_type(kinds: &Arc<dyn ObservedKinds>, container: &Field, key: &str) -> DataType {
    KindsHandle(Arc::clone(kinds)).sql_type(container, key)
}

/// A column of attributes whose values are all text, whatever kinds their keys have in telemetry.
pub(crate) fn texts_field(name: &str) -> Field {
    Field::new(name, attributes_type(), true).with_metadata([(ORIGIN.to_owned(), TEXTS.to_owned())].into())
}

/// Whether an expression reads an attribute.
pub(crate) fn is_attribute_access(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => call.func.name() == "attribute",
        Expr::Alias(alias) => is_attribute_access(&alias.expr),
        _ => false,
    }
}

/// Whether a type is one of the two that hold attributes.
#[must_use]
pub fn is_container(data_type: &DataType) -> bool {
    *data_type == attributes_type() || *data_type == context_type()
}

pub(crate) fn parse_origin(text: &str) -> Option<(Table, Container)> {
    let (table, container) = text.split_once('.')?;
    let container = Container::ALL.into_iter().find(|known| known.name() == container)?;
    Some((Table::from_name(table)?, container))
}

fn literal_text<'a>(args: &'a ReturnFieldArgs<'_>, index: usize, function: &str) -> Result<&'a str> {
    match args.scalar_arguments.get(index).copied().flatten().and_then(|value| value.try_as_str()) {
        Some(Some(text)) => Ok(text),
        _ => plan_err!("the key of {function} must be a text literal"),
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.which {
            Which::Attribute => "attribute",
            Which::Json => "attributes_json",
            Which::Keys => "attribute_keys",
            Which::Hex => "hex",
            Which::Origin => "attributes_of",
            Which::ContextText => "context_text",
            Which::TimePlus => "time_plus",
            Which::Bounded => "bounded",
        }
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        // The name of the result column is what people typed.
        Ok(match (self.which, args) {
            (Which::Attribute, [container, Expr::Literal(key, _)]) => {
                format!("{}['{}']", container.schema_name(), key.try_as_str().flatten().unwrap_or_default())
            }
            (Which::Origin | Which::Bounded, [inner, ..]) => inner.schema_name().to_string(),
            _ => {
                let args: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
                format!("{}({})", self.name(), args.join(","))
            }
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        match (self.which, args) {
            // Into the scan, which may have the attribute as a column of its own (see [`crate::layout`]).
            (Which::Attribute, [_, ExpressionPlacement::Literal]) => ExpressionPlacement::MoveTowardsLeafNodes,
            _ => ExpressionPlacement::KeepInPlace,
        }
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        datafusion::common::internal_err!("the type of {} depends on its arguments", self.name())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let argument = &args.arg_fields[0];
        let data_type = argument.data_type();
        let nullable = |data_type: DataType| Ok(Arc::new(Field::new(self.name(), data_type, true)));
        let expect_container = || {
            if is_container(data_type) {
                return Ok(());
            }
            plan_err!(
                "{} expects attributes, found a column of type {}",
                self.name(),
                crate::render::type_name(data_type)
            )
        };
        match self.which {
            Which::Attribute => {
                expect_container()?;
                let key = literal_text(&args, 1, "attribute()")?;
                nullable(self.kinds.sql_type(argument, key))
            }
            Which::Json => {
                expect_container()?;
                nullable(DataType::Utf8)
            }
            Which::Keys => {
                expect_container()?;
                nullable(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))))
            }
            Which::Hex => match data_type {
                DataType::FixedSizeBinary(_)
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::Null => nullable(DataType::Utf8),
                other => plan_err!("hex() expects an id or bytes, found {}", crate::render::type_name(other)),
            },
            Which::Origin => {
                let origin = literal_text(&args, 1, "attributes_of()")?;
                let field = Field::new(self.name(), data_type.clone(), argument.is_nullable());
                Ok(Arc::new(field.with_metadata([(ORIGIN.to_owned(), origin.to_owned())].into())))
            }
            Which::ContextText => nullable(DataType::Utf8),
            Which::TimePlus => nullable(time_type()),
            Which::Bounded => nullable(data_type.clone()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let argument = |index: usize| args.args[index].to_array(rows);
        let text = |index: usize| match &args.args[index] {
            ColumnarValue::Scalar(value) => Ok(value.try_as_str().flatten().unwrap_or_default().to_owned()),
            ColumnarValue::Array(_) => exec_err!("the key of {} must be a text literal", self.name()),
        };
        let array: ArrayRef = match self.which {
            Which::Attribute => read_attribute(&argument(0)?, &text(1)?, args.return_field.data_type())?,
            Which::Json => write_json(&argument(0)?)?,
            Which::Keys => list_keys(&argument(0)?)?,
            Which::Hex => write_hex(&argument(0)?)?,
            Which::Origin => return Ok(args.args[0].clone()),
            Which::ContextText => {
                let field = text(1)?;
                per_context(&argument(0)?, &|contexts| {
                    let texts = contexts.iter().map(|context| {
                        let context = context.as_ref()?;
                        let text = match field.as_str() {
                            "scope_name" => context.scope_name(),
                            "scope_version" => context.scope_version(),
                            _ => context.schema_url,
                        };
                        (!text.is_empty()).then_some(text)
                    });
                    Ok(Arc::new(texts.collect::<StringArray>()))
                })?
            }
            Which::TimePlus => {
                let (time, nanos) = (argument(0)?, cast(&argument(1)?, &DataType::Int64)?);
                let time = time.as_primitive::<TimestampNanosecondType>();
                let nanos: &Int64Array = nanos.as_primitive::<Int64Type>();
                let sum = time.iter().zip(nanos).map(|(time, nanos)| time?.checked_add(nanos?));
                Arc::new(sum.collect::<TimestampNanosecondArray>().with_timezone("UTC"))
            }
            Which::Bounded => {
                let array = argument(0)?;
                let bytes = array.to_data().get_slice_memory_size()?;
                self.allowance.check(bytes, "an expression")?;
                array
            }
        };
        Ok(ColumnarValue::Array(array))
    }
}

/// Builds the values of one attribute in its planned SQL type.
pub(crate) enum AttributeBuilder {
    Text(StringBuilder),
    Int(Int64Builder),
    Double(Float64Builder),
    Bool(BooleanBuilder),
}

impl AttributeBuilder {
    pub(crate) fn new(data_type: &DataType, rows: usize) -> Self {
        match data_type {
            DataType::Int64 => Self::Int(Int64Builder::with_capacity(rows)),
            DataType::Float64 => Self::Double(Float64Builder::with_capacity(rows)),
            DataType::Boolean => Self::Bool(BooleanBuilder::with_capacity(rows)),
            _ => Self::Text(StringBuilder::with_capacity(rows, rows * 16)),
        }
    }

    /// Appends a value; one that the type cannot hold (the observed kinds rule that out) is null.
    #[expect(clippy::cast_precision_loss, reason = "a key with ints and doubles is a double, documented in the model")]
    pub(crate) fn push(&mut self, value: Option<&Value<'_>>) {
        match self {
            Self::Text(builder) => match value {
                Some(Value::String(text)) => builder.append_value(text),
                other => builder.append_option(other.and_then(Value::to_text)),
            },
            Self::Int(builder) => builder.append_option(match value {
                Some(Value::Int(value)) => Some(*value),
                _ => None,
            }),
            Self::Double(builder) => builder.append_option(match value {
                Some(Value::Double(value)) => Some(*value),
                Some(Value::Int(value)) => Some(*value as f64),
                _ => None,
            }),
            Self::Bool(builder) => builder.append_option(match value {
                Some(Value::Bool(value)) => Some(*value),
                _ => None,
            }),
        }
    }

    pub(crate) fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::Int(mut builder) => Arc::new(builder.finish()),
            Self::Double(mut builder) => Arc::new(builder.finish()),
            Self::Bool(mut builder) => Arc::new(builder.finish()),
        }
    }
}

fn read_attribute(container: &ArrayRef, key: &str, data_type: &DataType) -> Result<ArrayRef> {
    if *container.data_type() == context_type() {
        return per_context(container, &|contexts| {
            let mut builder = AttributeBuilder::new(data_type, contexts.len());
            for context in contexts {
                let entry =
                    context.as_ref().and_then(|context| context.attributes().filter(|entry| entry.key == key).last());
                builder.push(entry.as_ref().map(|entry| entry.parsed()).as_ref());
            }
            Ok(builder.finish())
        });
    }
    let view = view(container)?;
    let slots = view.locate(key);
    let mut builder = AttributeBuilder::new(data_type, view.len());
    for row in 0..view.len() {
        let value = view.shape_of(row).and_then(|shape| slots[shape]).map(|(kind, slot)| view.value(row, kind, slot));
        builder.push(value.as_ref());
    }
    Ok(builder.finish())
}

fn view(container: &ArrayRef) -> Result<AttributesView<'_>> {
    match AttributesView::new(container.as_ref()) {
        Some(view) => Ok(view),
        None => exec_err!("expected attributes, found {}", container.data_type()),
    }
}

/// Evaluates a function once per distinct context, then spreads the results over the rows.
fn per_context(
    container: &ArrayRef,
    evaluate: &dyn Fn(&[Option<Context<'_>>]) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let Some(dictionary) = container.as_dictionary_opt::<Int32Type>() else {
        return exec_err!("expected a resource, scope or metadata column, found {}", container.data_type());
    };
    let values: &BinaryArray = match dictionary.values().as_binary_opt() {
        Some(values) => values,
        None => return exec_err!("expected a resource, scope or metadata column, found {}", container.data_type()),
    };
    let contexts: Vec<Option<Context<'_>>> = values.iter().map(|bytes| Context::parse(bytes?)).collect();
    Ok(take(&evaluate(&contexts)?, dictionary.keys(), None)?)
}

fn write_json(container: &ArrayRef) -> Result<ArrayRef> {
    if *container.data_type() == context_type() {
        return per_context(container, &|contexts| {
            let texts = contexts.iter().map(|context| {
                let mut text = String::new();
                context.as_ref()?.write_json(&mut text);
                Some(text)
            });
            Ok(Arc::new(texts.collect::<StringArray>()))
        });
    }
    let view = view(container)?;
    let mut builder = StringBuilder::new();
    let mut text = String::new();
    for row in 0..view.len() {
        text.clear();
        let present = view.write_json(row, &mut text);
        builder.append_option(present.then_some(&text));
    }
    Ok(Arc::new(builder.finish()))
}

fn list_keys(container: &ArrayRef) -> Result<ArrayRef> {
    fn append<'a>(builder: &mut ListBuilder<StringBuilder>, keys: impl Iterator<Item = &'a str>) {
        keys.for_each(|key| builder.values().append_value(key));
        builder.append(true);
    }
    if *container.data_type() == context_type() {
        return per_context(container, &|contexts| {
            let mut builder = ListBuilder::new(StringBuilder::new());
            for context in contexts {
                match context {
                    Some(context) => append(&mut builder, context.attributes().map(|entry| entry.key)),
                    None => builder.append(false),
                }
            }
            Ok(Arc::new(builder.finish()))
        });
    }
    let view = view(container)?;
    let mut builder = ListBuilder::new(StringBuilder::new());
    for row in 0..view.len() {
        match view.shape_of(row) {
            Some(shape) => append(&mut builder, view.shapes()[shape].iter().map(|entry| entry.key.as_str())),
            None => builder.append(false),
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn write_hex(bytes: &ArrayRef) -> Result<ArrayRef> {
    if let Some(ids) = bytes.as_fixed_size_binary_opt() {
        return Ok(Arc::new(ids.iter().map(|id| id.map(hex::encode)).collect::<StringArray>()));
    }
    let bytes = cast(bytes, &DataType::Binary)?;
    let bytes: &BinaryArray = bytes.as_binary();
    Ok(Arc::new(bytes.iter().map(|bytes| bytes.map(hex::encode)).collect::<StringArray>()))
}

/// How much text a standard function can make of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
    /// At most all arguments together.
    Sum,
    /// At most the first argument with every match replaced by the third.
    Replace,
    /// All arguments together, and the first between any two of the others.
    Separated,
    /// The items of the first argument, each with the longest of the other arguments.
    PerItem,
    /// So many bytes for each byte of all arguments together.
    Factor(usize),
}

/// A list's item takes at least its offset.
const ITEM_BYTES_MIN: usize = 4;

/// `None` for a function whose output is about as large as its input.
fn growth(function: &str) -> Option<Growth> {
    Some(match function {
        "concat" | "make_array" | "array_concat" | "overlay" => Growth::Sum,
        "replace" | "regexp_replace" => Growth::Replace,
        "concat_ws" => Growth::Separated,
        "array_to_string" | "array_replace" | "array_replace_n" | "array_replace_all" => Growth::PerItem,
        // `%c` becomes a date and a time of 24 characters.
        "to_char" => Growth::Factor(20),
        // Each character may become an item.
        "string_to_array" => Growth::Factor(1 + ITEM_BYTES_MIN),
        _ => return None,
    })
}

/// Whether the output of a function can be far larger than its largest argument.
pub(crate) fn grows(function: &str) -> bool {
    function == "bounded" || growth(function).is_some()
}

/// A standard function, refused before it allocates more than it may.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Guarded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    allowance: Allowance,
}

/// The function, guarded when it [`grows`].
#[must_use]
pub(crate) fn guarded(function: &Arc<ScalarUDF>, allowance: &Allowance) -> Arc<ScalarUDF> {
    match growth(function.name()) {
        None => Arc::clone(function),
        Some(growth) => {
            let (inner, allowance) = (Arc::clone(function), allowance.clone());
            Arc::new(ScalarUDF::new_from_impl(Guarded { inner, growth, allowance }))
        }
    }
}

fn expanded_bytes(value: &ColumnarValue, rows: usize) -> Result<usize> {
    Ok(match value {
        ColumnarValue::Array(array) => array.to_data().get_slice_memory_size()?,
        ColumnarValue::Scalar(value) => value.size().saturating_mul(rows),
    })
}

/// The least and the greatest length of a text argument.
fn text_lengths(value: &ColumnarValue) -> Result<(usize, usize)> {
    Ok(match value {
        ColumnarValue::Scalar(value) => {
            let length = value.try_as_str().flatten().map_or(0, str::len);
            (length, length)
        }
        // Not a text: a number or a time is no longer than this.
        ColumnarValue::Array(array) if !array.data_type().is_string() => (1, 40),
        ColumnarValue::Array(array) => {
            let texts = cast(array, &DataType::Utf8)?;
            let texts: &StringArray = texts.as_string();
            let lengths = || texts.iter().flatten().map(str::len);
            (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0))
        }
    })
}

impl ScalarUDFImpl for Guarded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = self.output_bytes(&args.args, args.number_rows)?;
        self.allowance.check(bytes, &format!("{}()", self.name()))?;
        self.inner.invoke_with_args(args)
    }
}

impl Guarded {
    /// What the function makes of its arguments at most.
    fn output_bytes(&self, args: &[ColumnarValue], rows: usize) -> Result<usize> {
        let mut sum = 0_usize;
        for value in args {
            sum = sum.saturating_add(expanded_bytes(value, rows)?);
        }
        Ok(match (self.growth, args) {
            (Growth::Replace, [text, from, to, ..]) => {
                // A pattern may match as little as nothing, between any two characters.
                let from = if self.name() == "replace" { text_lengths(from)?.0.max(1) } else { 1 };
                let to = text_lengths(to)?.1;
                let text = expanded_bytes(text, rows)?.saturating_add(rows);
                // Small replacements of large bodies are everyday work; only growth is bounded.
                if to <= from { text } else { text.saturating_add((text / from).saturating_mul(to)) }
            }
            (Growth::Separated, [separator, others @ ..]) => {
                let between = expanded_bytes(separator, rows)?.saturating_mul(others.len().saturating_sub(1));
                sum.saturating_add(between)
            }
            (Growth::PerItem, [list, others @ ..]) => {
                let list = expanded_bytes(list, rows)?;
                let mut longest = 0;
                for other in others {
                    longest = longest.max(text_lengths(other)?.1);
                }
                list.saturating_add((list / ITEM_BYTES_MIN).saturating_mul(longest))
            }
            (Growth::Factor(factor), _) => sum.saturating_mul(factor),
            _ => sum,
        })
    }
}
