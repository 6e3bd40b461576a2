//! Rows of several batches, picked in any order, as one batch of another layout.
//!
//! This is how a flush sorts and lays out a memtable, how a merge joins segments of different
//! layouts, and how a row of any segment is put together as the table has it. What can be found
//! once is found once: dictionaries of all sources are joined and the way of every attribute is
//! looked up per distinct shape; a pick is then an index into a table.
//!
//! Not here: which rows, and which layout.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, BooleanBuilder, DictionaryArray, Float64Array,
    Float64Builder, Int32Array, Int64Array, Int64Builder, ListArray, RecordBatch, StringArray, StringBuilder,
    StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field, Fields, Float64Type, Int32Type, Int64Type};
use model::attributes::{attributes_type, shape_entries};
use model::columns::DictionaryColumn;
use model::schema::schema;
use model::signal::Table;

use crate::error::StoreError;
use crate::layout::{ATTRIBUTES, Layout, Place};

/// A row: which source, and which row of it.
pub(crate) type Pick = (usize, usize);

/// Batches to pick rows from.
#[derive(Debug)]
pub(crate) struct Gatherer {
    layout: Layout,
    columns: Vec<Column>,
}

impl Gatherer {
    /// Prepares to pick rows of these batches, each of its own layout, for a batch of layout `to`.
    ///
    /// # Errors
    /// [`StoreError::SchemaMismatch`] when a batch is not of its layout.
    pub(crate) fn new(sources: &[(&Layout, &RecordBatch)], to: &Layout) -> Result<Self, StoreError> {
        let table = to.table();
        let mismatch = || StoreError::SchemaMismatch { table: table.name() };
        if sources
            .iter()
            .any(|(layout, batch)| layout.table() != table || layout.schema().fields().len() != batch.num_columns())
        {
            return Err(mismatch());
        }
        let given: Option<Vec<Given<'_>>> = sources
            .iter()
            .map(|(layout, batch)| {
                let promoted = (0..layout.promoted().len()).map(|index| layout.promoted_column(index));
                Some(Given {
                    layout,
                    attributes: batch.column_by_name(ATTRIBUTES)?.as_struct_opt()?,
                    promoted: promoted.map(|column| Arc::clone(batch.column(column))).collect(),
                })
            })
            .collect();
        let attributes = given.and_then(|given| Attributes::new(given, to)).ok_or_else(mismatch)?;
        let mut columns = Vec::with_capacity(to.schema().fields().len());
        for (at, field) in schema(table).fields().iter().enumerate() {
            if to.base_column(at).is_none() {
                continue;
            }
            if field.name() == ATTRIBUTES {
                columns.push(Column::Attributes(attributes.lists(to)));
                continue;
            }
            let arrays: Option<Vec<ArrayRef>> =
                sources.iter().map(|(layout, batch)| layout.base_array(batch, at)).collect();
            columns.push(Column::of(arrays.ok_or_else(mismatch)?).ok_or_else(mismatch)?);
        }
        for index in 0..to.promoted().len() {
            columns.push(attributes.promoted(index, to.promoted()[index].data_type()));
        }
        Ok(Self { layout: to.clone(), columns })
    }

    /// The dictionary of a column of the table, joined over all sources, and each source's keys
    /// in it; `None` for any other column.
    pub(crate) fn dictionary(&self, table: Table, name: &str) -> Option<&JoinedDictionary> {
        let at = schema(table).index_of(name).ok()?;
        match &self.columns[self.layout.base_column(at)?] {
            Column::Dictionary(dictionary) => Some(dictionary),
            _ => None,
        }
    }

    /// The picked rows.
    ///
    /// # Errors
    /// When Arrow cannot make the batch, which would be a defect.
    pub(crate) fn gather(&self, picks: &[Pick]) -> Result<RecordBatch, StoreError> {
        let columns: Result<Vec<ArrayRef>, _> = self.columns.iter().map(|column| column.gather(picks)).collect();
        columns
            .and_then(|columns| RecordBatch::try_new(Arc::clone(self.layout.schema()), columns))
            .map_err(StoreError::arrow("gather rows"))
    }
}

/// A batch of any layout as the table has it.
///
/// # Errors
/// As [`Gatherer::new`].
pub fn as_table(layout: &Layout, batch: &RecordBatch) -> Result<RecordBatch, StoreError> {
    let gatherer = Gatherer::new(&[(layout, batch)], &Layout::of_table(layout.table()))?;
    let picks: Vec<Pick> = (0..batch.num_rows()).map(|row| (0, row)).collect();
    gatherer.gather(&picks)
}

/// `attributes` as the table has it, from the columns of a file: its own `attributes`, then its
/// promoted columns in their order.
///
/// # Errors
/// [`StoreError::SchemaMismatch`] when these are not the columns of the layout.
pub fn assemble_attributes(layout: &Layout, columns: &[ArrayRef]) -> Result<ArrayRef, StoreError> {
    let mismatch = || StoreError::SchemaMismatch { table: layout.table().name() };
    let (attributes, promoted) = columns.split_first().ok_or_else(mismatch)?;
    if promoted.len() != layout.promoted().len() {
        return Err(mismatch());
    }
    let to = Layout::of_table(layout.table());
    let given =
        Given { layout, attributes: attributes.as_struct_opt().ok_or_else(mismatch)?, promoted: promoted.to_vec() };
    let rows = attributes.len();
    let picks: Vec<Pick> = (0..rows).map(|row| (0, row)).collect();
    let attributes = Attributes::new(vec![given], &to).ok_or_else(mismatch)?;
    attributes.lists(&to).gather(&picks).map_err(StoreError::arrow("put attributes together"))
}

/// One dictionary for all sources.
#[derive(Debug)]
pub(crate) struct JoinedDictionary {
    values: ArrayRef,
    sources: Vec<(Int32Array, Vec<i32>)>,
}

impl JoinedDictionary {
    fn of(arrays: &[ArrayRef]) -> Option<Self> {
        let mut joined = DictionaryColumn::default();
        let mut sources = Vec::with_capacity(arrays.len());
        let mut is_text = false;
        for array in arrays {
            let dictionary = array.as_dictionary_opt::<Int32Type>()?;
            let values = dictionary.values();
            let keys: Vec<i32> = match values.data_type() {
                DataType::Utf8 => {
                    is_text = true;
                    values
                        .as_string::<i32>()
                        .iter()
                        .map(|text| joined.intern(text.unwrap_or_default().as_bytes()))
                        .collect()
                }
                DataType::Binary => {
                    values.as_binary::<i32>().iter().map(|bytes| joined.intern(bytes.unwrap_or_default())).collect()
                }
                _ => return None,
            };
            sources.push((dictionary.keys().clone(), keys));
        }
        let joined = if is_text { joined.finish_utf8() } else { joined.finish_binary() };
        Some(Self { values: Arc::clone(joined.as_dictionary::<Int32Type>().values()), sources })
    }

    /// The distinct values of all sources.
    pub(crate) fn values(&self) -> &ArrayRef {
        &self.values
    }

    /// Which value a row has; `None` when it is null.
    #[inline]
    pub(crate) fn key(&self, (source, row): Pick) -> Option<usize> {
        let (keys, joined) = &self.sources[source];
        keys.is_valid(row).then(|| joined[keys.value(row).unsigned_abs() as usize].unsigned_abs() as usize)
    }

    fn gather(&self, picks: &[Pick]) -> ArrayRef {
        let nullable = self.sources.iter().any(|(keys, _)| keys.null_count() > 0);
        let keys = if nullable {
            picks.iter().map(|pick| self.key(*pick).map(key_number)).collect()
        } else {
            let keys = picks.iter().map(|(source, row)| {
                let (keys, joined) = &self.sources[*source];
                joined[keys.values()[*row].unsigned_abs() as usize]
            });
            Int32Array::new(keys.collect::<Vec<i32>>().into(), None)
        };
        Arc::new(
            DictionaryArray::<Int32Type>::try_new(keys, Arc::clone(&self.values)).expect("keys point into the values"),
        )
    }
}

fn key_number(key: usize) -> i32 {
    i32::try_from(key).expect("a dictionary's keys are 32 bits")
}

/// One column of the output.
#[derive(Debug)]
enum Column {
    /// Arrow's own way.
    Plain(Vec<ArrayRef>),
    Dictionary(JoinedDictionary),
    List {
        item: Arc<Field>,
        lists: Vec<(OffsetBuffer<i32>, Option<NullBuffer>)>,
        items: Box<Self>,
    },
    Struct {
        fields: Fields,
        nulls: Vec<Option<NullBuffer>>,
        children: Vec<Self>,
    },
    Attributes(AttributeLists),
    Promoted(PromotedColumn),
}

impl Column {
    fn of(arrays: Vec<ArrayRef>) -> Option<Self> {
        Some(match arrays.first()?.data_type() {
            DataType::Dictionary(_, _) => Self::Dictionary(JoinedDictionary::of(&arrays)?),
            // Items are gathered one by one, so that what is in them is gathered well, too.
            DataType::List(item) if item.data_type().is_nested() => {
                let lists: Vec<&ListArray> =
                    arrays.iter().map(|array| array.as_list_opt::<i32>()).collect::<Option<_>>()?;
                Self::List {
                    item: Arc::clone(item),
                    items: Box::new(Self::of(lists.iter().map(|list| Arc::clone(list.values())).collect())?),
                    lists: lists.iter().map(|list| (list.offsets().clone(), list.nulls().cloned())).collect(),
                }
            }
            DataType::Struct(fields) => {
                let structs: Vec<&StructArray> =
                    arrays.iter().map(|array| array.as_struct_opt()).collect::<Option<_>>()?;
                let children = (0..fields.len())
                    .map(|child| Self::of(structs.iter().map(|array| Arc::clone(array.column(child))).collect()));
                Self::Struct {
                    fields: fields.clone(),
                    children: children.collect::<Option<_>>()?,
                    nulls: structs.iter().map(|array| array.nulls().cloned()).collect(),
                }
            }
            _ => Self::Plain(arrays),
        })
    }

    fn gather(&self, picks: &[Pick]) -> Result<ArrayRef, arrow::error::ArrowError> {
        Ok(match self {
            Self::Plain(arrays) => {
                let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
                interleave(&arrays, picks)?
            }
            Self::Dictionary(dictionary) => dictionary.gather(picks),
            Self::List { item, lists, items } => {
                let mut of_items = Vec::new();
                let mut ends = Vec::with_capacity(picks.len() + 1);
                ends.push(0);
                for (source, row) in picks {
                    let offsets = &lists[*source].0;
                    let range = offsets[*row].unsigned_abs() as usize..offsets[row + 1].unsigned_abs() as usize;
                    of_items.extend(range.map(|index| (*source, index)));
                    ends.push(key_number(of_items.len()));
                }
                let nulls =
                    gather_nulls(picks, |source| lists[source].1.as_ref(), lists.iter().any(|list| list.1.is_some()));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(ListArray::try_new(Arc::clone(item), offsets, items.gather(&of_items)?, nulls)?)
            }
            Self::Struct { fields, nulls, children } => {
                let of_rows = gather_nulls(picks, |source| nulls[source].as_ref(), nulls.iter().any(Option::is_some));
                let columns = children.iter().map(|child| child.gather(picks)).collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), columns, of_rows, picks.len())?)
            }
            Self::Attributes(lists) => lists.gather(picks)?,
            Self::Promoted(column) => column.gather(picks),
        })
    }
}

fn gather_nulls<'a>(picks: &[Pick], of: impl Fn(usize) -> Option<&'a NullBuffer>, any: bool) -> Option<NullBuffer> {
    any.then(|| picks.iter().map(|(source, row)| of(*source).is_none_or(|nulls| nulls.is_valid(*row))).collect())
}

/// Where the value of one attribute is in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetch {
    Nothing,
    Column(u32),
    List(u32),
}

/// The values of one list, over all sources: the list itself, and the promoted columns whose
/// values belong into it.
#[derive(Clone, Debug)]
enum Values {
    Strings(StringArray),
    Texts(DictionaryArray<Int32Type>),
    Ints(Int64Array),
    Bools(BooleanArray),
    Doubles(Float64Array),
    Others(BinaryArray),
    None,
}

impl Values {
    fn of(array: &ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Strings(array.as_string().clone()),
            DataType::Dictionary(_, values) if **values == DataType::Utf8 => Self::Texts(array.as_dictionary().clone()),
            DataType::Int64 => Self::Ints(array.as_primitive::<Int64Type>().clone()),
            DataType::Boolean => Self::Bools(array.as_boolean().clone()),
            DataType::Float64 => Self::Doubles(array.as_primitive::<Float64Type>().clone()),
            DataType::Binary => Self::Others(array.as_binary().clone()),
            _ => return None,
        })
    }

    fn text(&self, index: usize) -> &str {
        match self {
            Self::Strings(texts) => texts.value(index),
            Self::Texts(texts) => {
                texts.values().as_string::<i32>().value(texts.keys().value(index).unsigned_abs() as usize)
            }
            _ => "",
        }
    }

    fn int(&self, index: usize) -> i64 {
        match self {
            Self::Ints(ints) => ints.value(index),
            Self::Bools(bools) => i64::from(bools.value(index)),
            _ => 0,
        }
    }

    fn double(&self, index: usize) -> f64 {
        match self {
            Self::Doubles(doubles) => doubles.value(index),
            _ => 0.0,
        }
    }

    fn bytes(&self, index: usize) -> &[u8] {
        match self {
            Self::Others(bytes) => bytes.value(index),
            _ => &[],
        }
    }
}

/// `attributes` of one source.
#[derive(Debug)]
struct Source {
    /// Which of the distinct layouts it has.
    layout: usize,
    lists: [(OffsetBuffer<i32>, Values); 4],
    columns: Vec<(Values, Option<NullBuffer>)>,
    arrays: Vec<ArrayRef>,
}

impl Source {
    #[inline]
    fn at(&self, row: usize, list: usize, slot: u32) -> (&Values, usize) {
        let (ends, values) = &self.lists[list];
        (values, ends[row].unsigned_abs() as usize + slot as usize)
    }
}

/// The columns of one source that its attributes are in.
struct Given<'a> {
    layout: &'a Layout,
    attributes: &'a StructArray,
    promoted: Vec<ArrayRef>,
}

/// The attributes of all sources: shapes joined, and the way to each value.
struct Attributes {
    shapes: Arc<JoinedDictionary>,
    sources: Arc<Vec<Source>>,
    /// For each distinct layout and joined shape, the place of each entry in a source.
    from: Vec<Vec<Vec<Place>>>,
    /// For each joined shape, the place of each entry in the output.
    to: Vec<Vec<Place>>,
}

impl Attributes {
    fn new(sources: Vec<Given<'_>>, to: &Layout) -> Option<Self> {
        let mut layouts: Vec<&Layout> = Vec::new();
        let mut shapes = Vec::with_capacity(sources.len());
        let mut found = Vec::with_capacity(sources.len());
        for Given { layout, attributes, promoted } in sources {
            let known = layouts.iter().position(|other| std::ptr::eq(*other, layout) || *other == layout);
            shapes.push(Arc::clone(attributes.column_by_name("shape")?));
            let lists = ["strings", "ints", "doubles", "others"].map(|name| {
                let list = attributes.column_by_name(name).and_then(|column| column.as_list_opt::<i32>());
                list.and_then(|list| Some((list.offsets().clone(), Values::of(list.values())?)))
                    .unwrap_or_else(|| (OffsetBuffer::new_zeroed(attributes.len()), Values::None))
            });
            let columns = promoted.iter().map(|array| Some((Values::of(array)?, array.nulls().cloned())));
            found.push(Source {
                layout: known.unwrap_or(layouts.len()),
                lists,
                columns: columns.collect::<Option<_>>()?,
                arrays: promoted,
            });
            if known.is_none() {
                layouts.push(layout);
            }
        }
        let shapes = JoinedDictionary::of(&shapes)?;
        let entries: Vec<_> = shapes
            .values
            .as_binary_opt::<i32>()?
            .iter()
            .map(|shape| shape_entries(shape.unwrap_or_default()))
            .collect();
        Some(Self {
            shapes: Arc::new(shapes),
            sources: Arc::new(found),
            from: layouts.iter().map(|layout| entries.iter().map(|entries| layout.places(entries)).collect()).collect(),
            to: entries.iter().map(|entries| to.places(entries)).collect(),
        })
    }

    /// For each distinct layout and joined shape, the places in a source of what `wanted` takes of
    /// the output, in order.
    fn fetches(&self, wanted: impl Fn(Place) -> bool) -> Vec<Vec<Vec<Fetch>>> {
        let fetch = |place: &Place| match place {
            Place::Nothing => Fetch::Nothing,
            Place::Column(index) => Fetch::Column(u32::try_from(*index).expect("promoted columns are few")),
            Place::List(_, slot) => Fetch::List(u32::try_from(*slot).expect("attributes of a row are few")),
        };
        self.from
            .iter()
            .map(|of_layout| {
                of_layout
                    .iter()
                    .zip(&self.to)
                    .map(|(from, to)| {
                        from.iter().zip(to).filter(|(_, to)| wanted(**to)).map(|(from, _)| fetch(from)).collect()
                    })
                    .collect()
            })
            .collect()
    }

    fn lists(&self, to: &Layout) -> AttributeLists {
        let kept = to.lists();
        AttributeLists {
            shapes: Arc::clone(&self.shapes),
            sources: Arc::clone(&self.sources),
            lists: [0, 1, 2, 3].map(|list| {
                kept[list].then(|| self.fetches(|place| matches!(place, Place::List(of, _) if of == list)))
            }),
        }
    }

    fn promoted(&self, index: usize, data_type: DataType) -> Column {
        let fetches: Vec<Vec<Fetch>> = self
            .fetches(|place| place == Place::Column(index))
            .into_iter()
            .map(|of_layout| {
                of_layout.into_iter().map(|found| found.first().copied().unwrap_or(Fetch::Nothing)).collect()
            })
            .collect();
        // Where every source has the pair as a column of one type, it is a column like any other.
        let direct: Option<Vec<ArrayRef>> = self
            .sources
            .iter()
            .map(|source| {
                let mut columns = fetches[source.layout].iter().filter(|fetch| **fetch != Fetch::Nothing);
                let Some(Fetch::Column(column)) = columns.next().copied() else { return None };
                columns
                    .all(|other| *other == Fetch::Column(column))
                    .then(|| Arc::clone(&source.arrays[column as usize]))
            })
            .collect();
        let direct = direct.filter(|arrays| arrays.iter().all(|array| array.data_type() == arrays[0].data_type()));
        if let Some(column) = direct.and_then(Column::of) {
            return column;
        }
        Column::Promoted(PromotedColumn {
            shapes: Arc::clone(&self.shapes),
            sources: Arc::clone(&self.sources),
            fetches,
            data_type,
        })
    }
}

/// A promoted column that some source has in a list.
#[derive(Debug)]
struct PromotedColumn {
    shapes: Arc<JoinedDictionary>,
    sources: Arc<Vec<Source>>,
    /// By distinct layout and joined shape.
    fetches: Vec<Vec<Fetch>>,
    data_type: DataType,
}

impl PromotedColumn {
    fn gather(&self, picks: &[Pick]) -> ArrayRef {
        let list = match self.data_type {
            DataType::Int64 | DataType::Boolean => 1,
            DataType::Float64 => 2,
            _ => 0,
        };
        let values = picks.iter().map(|pick| {
            let source = &self.sources[pick.0];
            let shape = self.shapes.key(*pick)?;
            match self.fetches[source.layout][shape] {
                Fetch::Nothing => None,
                Fetch::Column(column) => {
                    let (values, nulls) = &source.columns[column as usize];
                    nulls.as_ref().is_none_or(|nulls| nulls.is_valid(pick.1)).then_some((values, pick.1))
                }
                Fetch::List(slot) => Some(source.at(pick.1, list, slot)),
            }
        });
        match self.data_type {
            DataType::Int64 => {
                let mut builder = Int64Builder::with_capacity(picks.len());
                values.for_each(|value| builder.append_option(value.map(|(values, index)| values.int(index))));
                Arc::new(builder.finish())
            }
            DataType::Boolean => {
                let mut builder = BooleanBuilder::with_capacity(picks.len());
                values.for_each(|value| builder.append_option(value.map(|(values, index)| values.int(index) != 0)));
                Arc::new(builder.finish())
            }
            DataType::Float64 => {
                let mut builder = Float64Builder::with_capacity(picks.len());
                values.for_each(|value| builder.append_option(value.map(|(values, index)| values.double(index))));
                Arc::new(builder.finish())
            }
            _ => {
                let mut builder = StringBuilder::with_capacity(picks.len(), picks.len() * 16);
                values.for_each(|value| builder.append_option(value.map(|(values, index)| values.text(index))));
                Arc::new(builder.finish())
            }
        }
    }
}

/// The lists of `attributes`, for what is not promoted.
#[derive(Debug)]
struct AttributeLists {
    shapes: Arc<JoinedDictionary>,
    sources: Arc<Vec<Source>>,
    /// By list, distinct layout and joined shape; `None` for a list that the output leaves out.
    lists: [Option<Vec<Vec<Vec<Fetch>>>>; 4],
}

impl AttributeLists {
    fn gather(&self, picks: &[Pick]) -> Result<ArrayRef, arrow::error::ArrowError> {
        let DataType::Struct(all) = attributes_type() else { unreachable!("it is a struct") };
        let mut fields = vec![Arc::clone(&all[0])];
        let mut columns = vec![self.shapes.gather(picks)];
        for (list, fetches) in self.lists.iter().enumerate() {
            let Some(fetches) = fetches else { continue };
            let field = &all[list + 1];
            let DataType::List(item) = field.data_type() else { unreachable!("fields 1 to 4 are lists") };
            let mut found: Vec<(&Values, usize)> = Vec::new();
            let mut ends = Vec::with_capacity(picks.len() + 1);
            ends.push(0);
            for pick in picks {
                let source = &self.sources[pick.0];
                if let Some(shape) = self.shapes.key(*pick) {
                    found.extend(fetches[source.layout][shape].iter().filter_map(|fetch| match fetch {
                        Fetch::Nothing => None,
                        Fetch::Column(column) => Some((&source.columns[*column as usize].0, pick.1)),
                        Fetch::List(slot) => Some(source.at(pick.1, list, *slot)),
                    }));
                }
                ends.push(key_number(found.len()));
            }
            let items: ArrayRef = match list {
                0 => {
                    let mut builder = StringBuilder::with_capacity(found.len(), found.len() * 16);
                    found.iter().for_each(|(values, index)| builder.append_value(values.text(*index)));
                    Arc::new(builder.finish())
                }
                1 => Arc::new(found.iter().map(|(values, index)| values.int(*index)).collect::<Int64Array>()),
                2 => Arc::new(found.iter().map(|(values, index)| values.double(*index)).collect::<Float64Array>()),
                _ => {
                    let mut builder = BinaryBuilder::with_capacity(found.len(), found.len() * 16);
                    found.iter().for_each(|(values, index)| builder.append_value(values.bytes(*index)));
                    Arc::new(builder.finish())
                }
            };
            fields.push(Arc::clone(field));
            columns.push(Arc::new(ListArray::try_new(Arc::clone(item), OffsetBuffer::new(ends.into()), items, None)?));
        }
        Ok(Arc::new(StructArray::try_new_with_length(fields.into(), columns, None, picks.len())?))
    }
}
