//! Counts SLIs straight from committed Arrow batches, so that a thousand SLOs cost little more than one.
//!
//! Rows are not tested against SLOs. Per column, values fall into *classes*: two values that pass the same
//! tests of all SLOs are one class, and the class of a value is remembered. A row's classes, packed into
//! one number, name its *kind*; what a kind means to every SLO is worked out the first time a row is of
//! it. So a row costs a few small look-ups, whatever the number of SLOs.
//!
//! Not here: keeping the counts ([`crate::counts`]); SQL sources, which are asked and not watched.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Int32Type, TimestampNanosecondType};
use hashbrown::HashMap;
use model::attributes::{AttributesView, Kind};
use model::context::Context;
use model::signal::Table;
use model::time::Timestamp;
use model::value::Value;

use crate::counts::{Counts, bucket_of};
use crate::filter::{Cell, Column, Filter, Literal, Test, Truth, compare};
use crate::sli::{Indicator, Measure, Part, RATIO_SCALE, Term};

/// Values of one column whose class is remembered. More, as of user ids, are forgotten all at once.
const MEMO_MAX: usize = 100_000;

/// Kinds of rows of one table. Only what SLOs tell apart makes kinds; more are forgotten all at once.
const KINDS_MAX: usize = 1_000_000;

/// Buckets of a batch whose counts are in an array, by indicator: a batch under load has one or two.
const DENSE_BUCKETS: usize = 4;

/// Cumulative series whose last value is remembered. Past this, those silent for an hour are forgotten.
const LAST_MAX: usize = 1_000_000;

/// Bytes of a trace id (OpenTelemetry).
const TRACE_ID_BYTES: usize = 16;

/// What measures read of points of metrics, where the table has it.
const POINT_COLUMNS: [&str; 13] = [
    "series_id",
    "temporality",
    "start_time",
    "value_int",
    "value_double",
    "count",
    "explicit_bounds",
    "bucket_counts",
    "scale",
    "zero_count",
    "zero_threshold",
    "positive",
    "negative",
];

/// The kind of rows that no SLO is about.
const DEAD: u32 = u32::MAX;

/// Integers beyond this are not exact as doubles, and are not looked up by their place among literals.
const EXACT_MAX: i64 = 1 << 53;

/// What batches amounted to: per indicator and bucket, its counts; and of each indicator one bad event.
#[derive(Debug, Default)]
pub struct Tally {
    dense: Vec<Dense>,
    at: usize,
    /// Of batches with more buckets, such as those of a backfill.
    sparse: HashMap<(u32, i64), Counts>,
    /// By indicator.
    examples: Vec<Option<Example>>,
}

/// A bad event that somebody can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its trace.
    pub trace_id: [u8; TRACE_ID_BYTES],
    /// When it was, nanoseconds since the epoch.
    pub time: i64,
}

impl Example {
    /// The trace's id as people write it.
    #[must_use]
    pub fn trace_id_hex(&self) -> String {
        self.trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The counts of one bucket, by indicator.
#[derive(Debug)]
struct Dense {
    bucket: i64,
    counts: Vec<Counts>,
    touched: Vec<u32>,
}

impl Tally {
    /// Takes everything out: the indicator's number, the bucket, the counts.
    pub fn drain(&mut self) -> impl Iterator<Item = (u32, i64, Counts)> + '_ {
        let dense = self.dense.drain(..).flat_map(|mut dense| {
            let touched = std::mem::take(&mut dense.touched);
            touched.into_iter().map(move |indicator| (indicator, dense.bucket, dense.counts[indicator as usize]))
        });
        dense.chain(self.sparse.drain().map(|((indicator, bucket), counts)| (indicator, bucket, counts)))
    }

    /// Takes the newest bad event of each indicator that has one: the indicator's number and the event.
    pub fn drain_examples(&mut self) -> impl Iterator<Item = (u32, Example)> + '_ {
        let examples = self.examples.drain(..).enumerate();
        examples.filter_map(|(indicator, example)| Some((small(indicator), example?)))
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dense.is_empty() && self.sparse.is_empty()
    }

    fn show(&mut self, indicator: u32, example: Example) {
        let at = indicator as usize;
        if at >= self.examples.len() {
            self.examples.resize(at + 1, None);
        }
        if self.examples[at].is_none_or(|known| known.time <= example.time) {
            self.examples[at] = Some(example);
        }
    }

    #[inline]
    fn add(&mut self, indicator: u32, bucket: i64, is_numerator: bool, events: u64) {
        if self.dense.get(self.at).is_none_or(|dense| dense.bucket != bucket) {
            match self.dense.iter().position(|dense| dense.bucket == bucket) {
                Some(at) => self.at = at,
                None if self.dense.len() < DENSE_BUCKETS => {
                    self.at = self.dense.len();
                    self.dense.push(Dense { bucket, counts: Vec::new(), touched: Vec::new() });
                }
                None => return put(self.sparse.entry((indicator, bucket)).or_default(), is_numerator, events),
            }
        }
        let dense = &mut self.dense[self.at];
        let at = indicator as usize;
        if at >= dense.counts.len() {
            dense.counts.resize(at + 1, Counts::ZERO);
        }
        if dense.counts[at] == Counts::ZERO {
            dense.touched.push(indicator);
        }
        put(&mut dense.counts[at], is_numerator, events);
    }
}

#[inline]
fn put(counts: &mut Counts, is_numerator: bool, events: u64) {
    if is_numerator {
        counts.numerator = counts.numerator.saturating_add(events);
    } else {
        counts.total = counts.total.saturating_add(events);
    }
}

/// All indicators, compiled. Not shared between threads: it remembers what it has seen.
#[derive(Debug)]
pub struct Matcher {
    plans: [Option<Plan>; Table::COUNT],
    last: HashMap<(u64, u16), Last>,
    since: Timestamp,
}

/// The last point of a cumulative series.
#[derive(Clone, Copy, Debug)]
struct Last {
    start: Option<i64>,
    time: i64,
    value: u64,
}

#[derive(Debug)]
struct Plan {
    table: Table,
    columns: Vec<Classes>,
    terms: Vec<Compiled>,
    measures: Vec<Measure>,
    /// Indicators whose rows are events themselves, with what their numerator counts: of these a bad row can be told.
    events: Vec<(u32, Part)>,
    /// Terms by a test that they cannot do without, and the terms that have none.
    by_test: HashMap<(u32, u32), Vec<u32>>,
    always: Vec<u32>,
    /// Whether every term needs a test of the first column: rows without one are passed over at once.
    by_first: bool,
    /// How many bits each column's class takes in a packed number.
    bits: Vec<u32>,
    by_packed: HashMap<u128, u32>,
    /// Where the classes of all columns are too many for one number.
    by_classes: HashMap<Box<[u32]>, u32>,
    kinds: Vec<RowKind>,
    /// Kinds with rows that were not given out yet.
    touched: Vec<u32>,
    scratch: Vec<Vec<u32>>,
}

#[derive(Debug)]
struct Compiled {
    indicator: u32,
    is_numerator: bool,
    measure: u16,
    condition: Condition,
}

/// A kind of rows: its class in each column, and what it means once that was worked out.
#[derive(Debug)]
struct RowKind {
    classes: Box<[u32]>,
    hits: Option<Box<[Hit]>>,
    /// The indicators for which a row of it is a bad event; worked out with the hits.
    bad: Box<[u32]>,
    /// Its rows that were not given out yet, by bucket: under load there is one, and two for a moment.
    rows: [(i64, u64); 2],
    /// The newest of them that is bad and has a trace.
    example: Option<Example>,
    is_touched: bool,
}

impl RowKind {
    fn new(classes: Box<[u32]>) -> Self {
        Self { classes, hits: None, bad: Box::default(), rows: [(0, 0); 2], example: None, is_touched: false }
    }
}

/// What a kind is to one term.
#[derive(Clone, Copy, Debug)]
struct Hit {
    indicator: u32,
    is_numerator: bool,
    measure: u16,
}

/// A filter whose tests are numbers.
#[derive(Debug)]
enum Condition {
    Test(u32, u32),
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
}

impl Condition {
    fn eval(&self, truth: &impl Fn(u32, u32) -> Truth) -> Truth {
        match self {
            Self::Test(column, test) => truth(*column, *test),
            Self::All(parts) => parts.iter().map(|part| part.eval(truth)).min().unwrap_or(Truth::True),
            Self::Any(parts) => parts.iter().map(|part| part.eval(truth)).max().unwrap_or(Truth::False),
            Self::Not(part) => match part.eval(truth) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
        }
    }

    /// The tests without which it cannot be true.
    fn needs(&self, out: &mut Vec<(u32, u32)>) {
        match self {
            Self::Test(column, test) => out.push((*column, *test)),
            Self::All(parts) => parts.iter().for_each(|part| part.needs(out)),
            Self::Any(_) | Self::Not(_) => {}
        }
    }
}

/// The classes of one column's values.
#[derive(Debug)]
struct Classes {
    column: Column,
    tests: Vec<Test>,
    /// Tests for equality with texts, by text; the others by number.
    equal: HashMap<String, Vec<u32>>,
    other: Vec<u32>,
    /// The numbers among the literals: a number's class is decided by its place among them.
    cuts: Vec<f64>,
    by_place: Vec<Option<u32>>,
    by_text: HashMap<Box<str>, u32>,
    by_bytes: HashMap<Box<[u8]>, u32>,
    by_bool: [Option<u32>; 2],
    null: Option<u32>,
    /// The classes: the tests that are not false, with their truth, in order.
    numbers: HashMap<Box<[(u32, Truth)]>, u32>,
    truths: Vec<Box<[(u32, Truth)]>>,
}

impl Classes {
    fn new(column: Column) -> Self {
        Self {
            column,
            tests: Vec::new(),
            equal: HashMap::new(),
            other: Vec::new(),
            cuts: Vec::new(),
            by_place: Vec::new(),
            by_text: HashMap::new(),
            by_bytes: HashMap::new(),
            by_bool: [None; 2],
            null: None,
            numbers: HashMap::new(),
            truths: Vec::new(),
        }
    }

    /// The number of a test, added when it is new.
    fn test(&mut self, test: &Test) -> u32 {
        if let Some(at) = self.tests.iter().position(|known| known == test) {
            return small(at);
        }
        let number = small(self.tests.len());
        let literals = match test {
            Test::In(literals) => &literals[..],
            Test::Compare(_, literal) => std::slice::from_ref(literal),
            Test::Like(_) | Test::IsNull => &[],
        };
        for literal in literals {
            let cut = match literal {
                #[expect(clippy::cast_precision_loss, reason = "larger integers are not looked up by place")]
                Literal::Int(number) => Some(*number as f64),
                Literal::Double(number) => Some(*number),
                Literal::Text(text) => text.trim().parse().ok(),
                Literal::Bool(_) => None,
            };
            self.cuts.extend(cut.filter(|cut| cut.is_finite()));
        }
        self.cuts.sort_by(f64::total_cmp);
        self.cuts.dedup();
        match test {
            Test::In(literals) if literals.iter().all(|literal| matches!(literal, Literal::Text(_))) => {
                for literal in literals {
                    if let Literal::Text(text) = literal {
                        let tests = self.equal.entry(text.clone()).or_default();
                        if tests.last() != Some(&number) {
                            tests.push(number);
                        }
                    }
                }
            }
            _ => self.other.push(number),
        }
        self.tests.push(test.clone());
        number
    }

    fn intern(&mut self, truths: Vec<(u32, Truth)>) -> u32 {
        let truths = truths.into_boxed_slice();
        if let Some(class) = self.numbers.get(&truths) {
            return *class;
        }
        let class = small(self.truths.len());
        self.truths.push(truths.clone());
        self.numbers.insert(truths, class);
        class
    }

    /// The class of a value, worked out.
    fn work_out(&mut self, cell: Cell<'_>) -> u32 {
        let mut truths: Vec<(u32, Truth)> = Vec::new();
        if let Cell::Text(text) = cell {
            truths.extend(self.equal.get(text).into_iter().flatten().map(|test| (*test, Truth::True)));
            let tests = self.other.iter().map(|test| (*test, self.tests[*test as usize].holds(cell)));
            truths.extend(tests.filter(|(_, truth)| *truth != Truth::False));
            truths.sort_unstable();
        } else {
            let tests = self.tests.iter().enumerate().map(|(test, known)| (small(test), known.holds(cell)));
            truths.extend(tests.filter(|(_, truth)| *truth != Truth::False));
        }
        self.intern(truths)
    }

    fn null(&mut self) -> u32 {
        match self.null {
            Some(class) => class,
            None => {
                let class = self.work_out(Cell::Null);
                self.null = Some(class);
                class
            }
        }
    }

    fn text(&mut self, text: &str) -> u32 {
        if let Some(class) = self.by_text.get(text) {
            return *class;
        }
        let class = self.work_out(Cell::Text(text));
        if self.by_text.len() >= MEMO_MAX {
            self.by_text.clear();
        }
        self.by_text.insert(text.into(), class);
        class
    }

    fn bool(&mut self, value: bool) -> u32 {
        match self.by_bool[usize::from(value)] {
            Some(class) => class,
            None => {
                let class = self.work_out(Cell::Bool(value));
                self.by_bool[usize::from(value)] = Some(class);
                class
            }
        }
    }

    fn int(&mut self, value: i64) -> u32 {
        if value.unsigned_abs() > EXACT_MAX.unsigned_abs() {
            return self.work_out(Cell::Int(value));
        }
        #[expect(clippy::cast_precision_loss, reason = "it was just checked to be exact")]
        let place = self.place(value as f64);
        self.at_place(place, Cell::Int(value))
    }

    fn double(&mut self, value: f64) -> u32 {
        if value.is_nan() {
            return self.work_out(Cell::Double(value));
        }
        let place = self.place(value);
        self.at_place(place, Cell::Double(value))
    }

    /// Even between two cuts, odd on one.
    fn place(&self, value: f64) -> usize {
        let below = self.cuts.partition_point(|cut| *cut < value);
        2 * below + usize::from(self.cuts.get(below) == Some(&value))
    }

    fn at_place(&mut self, place: usize, cell: Cell<'_>) -> u32 {
        if let Some(Some(class)) = self.by_place.get(place) {
            return *class;
        }
        let class = self.work_out(cell);
        if place >= self.by_place.len() {
            self.by_place.resize(place + 1, None);
        }
        self.by_place[place] = Some(class);
        class
    }

    fn value(&mut self, value: &Value<'_>) -> u32 {
        match value {
            Value::String(text) => self.text(text),
            Value::Bool(value) => self.bool(*value),
            Value::Int(value) => self.int(*value),
            Value::Double(value) => self.double(*value),
            Value::Empty | Value::Bytes(_) | Value::Array(_) | Value::KvList(_) => self.null(),
        }
    }

    /// The class of a resource's or scope's attribute, or of a scope's name.
    fn context(&mut self, bytes: &[u8]) -> u32 {
        if let Some(class) = self.by_bytes.get(bytes) {
            return *class;
        }
        let class = match (&self.column, Context::parse(bytes)) {
            (_, None) => self.null(),
            (Column::ScopeName, Some(context)) => {
                let name = context.scope_name();
                self.text(name)
            }
            (Column::Resource(key) | Column::Scope(key), Some(context)) => {
                let key = key.clone();
                let found = context.with_attribute(&key, |value| self.value(&value));
                found.unwrap_or_else(|| self.null())
            }
            _ => self.null(),
        };
        if self.by_bytes.len() >= MEMO_MAX {
            self.by_bytes.clear();
        }
        self.by_bytes.insert(bytes.into(), class);
        class
    }

    /// The class of every row of a batch.
    fn of_batch(&mut self, batch: &RecordBatch, attributes: Option<&AttributesView<'_>>, out: &mut Vec<u32>) {
        out.clear();
        out.reserve(batch.num_rows());
        let column = |name: &str| batch.column_by_name(name);
        match self.column.clone() {
            Column::Attribute(key) => match attributes {
                Some(view) => self.of_attribute(view, &key, out),
                None => self.of_nothing(batch.num_rows(), out),
            },
            Column::Resource(_) => self.of_contexts(column("resource"), batch.num_rows(), out),
            Column::Scope(_) | Column::ScopeName => self.of_contexts(column("scope"), batch.num_rows(), out),
            Column::PointValue => {
                let ints = column("value_int").and_then(|array| array.as_any().downcast_ref::<Int64Array>());
                let doubles = column("value_double").and_then(|array| array.as_any().downcast_ref::<Float64Array>());
                for row in 0..batch.num_rows() {
                    let class = match (ints, doubles) {
                        (Some(ints), _) if ints.is_valid(row) => self.int(ints.value(row)),
                        (_, Some(doubles)) if doubles.is_valid(row) => self.double(doubles.value(row)),
                        _ => self.null(),
                    };
                    out.push(class);
                }
            }
            Column::Named(name) => match column(name) {
                Some(array) => self.of_array(array, out),
                None => self.of_nothing(batch.num_rows(), out),
            },
        }
    }

    fn of_nothing(&mut self, rows: usize, out: &mut Vec<u32>) {
        let null = self.null();
        out.resize(rows, null);
    }

    fn of_array(&mut self, array: &ArrayRef, out: &mut Vec<u32>) {
        let array: &dyn Array = array.as_ref();
        if let DataType::Dictionary(key, _) = array.data_type()
            && **key == DataType::Int32
        {
            let dictionary = array.as_dictionary::<Int32Type>();
            let null = self.null();
            if let Some(values) = dictionary.values().as_string_opt::<i32>() {
                let classes: Vec<u32> =
                    values.iter().map(|value| value.map_or(null, |value| self.text(value))).collect();
                gather(dictionary.keys(), &classes, null, out);
            } else {
                out.resize(array.len(), null);
            }
            return;
        }
        let any = array.as_any();
        if let Some(array) = any.downcast_ref::<Int64Array>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.int(value),
                    None => self.null(),
                });
            }
        } else if let Some(array) = any.downcast_ref::<Int32Array>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.int(value.into()),
                    None => self.null(),
                });
            }
        } else if let Some(array) = any.downcast_ref::<UInt32Array>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.int(value.into()),
                    None => self.null(),
                });
            }
        } else if let Some(array) = any.downcast_ref::<Float64Array>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.double(value),
                    None => self.null(),
                });
            }
        } else if let Some(array) = any.downcast_ref::<BooleanArray>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.bool(value),
                    None => self.null(),
                });
            }
        } else if let Some(array) = any.downcast_ref::<StringArray>() {
            for value in array {
                out.push(match value {
                    Some(value) => self.text(value),
                    None => self.null(),
                });
            }
        } else {
            self.of_nothing(array.len(), out);
        }
    }

    fn of_contexts(&mut self, array: Option<&ArrayRef>, rows: usize, out: &mut Vec<u32>) {
        let dictionary = array.and_then(|array| array.as_dictionary_opt::<Int32Type>());
        let values = dictionary.and_then(|dictionary| dictionary.values().as_binary_opt::<i32>());
        let (Some(dictionary), Some(values)) = (dictionary, values) else {
            return self.of_nothing(rows, out);
        };
        let null = self.null();
        let classes: Vec<u32> = values.iter().map(|bytes| bytes.map_or(null, |bytes| self.context(bytes))).collect();
        gather(dictionary.keys(), &classes, null, out);
    }

    fn of_attribute(&mut self, view: &AttributesView<'_>, key: &str, out: &mut Vec<u32>) {
        let null = self.null();
        let places = view.locate(key);
        if places.iter().all(Option::is_none) {
            out.resize(view.len(), null);
            return;
        }
        for row in 0..view.len() {
            let place = view.shape_of(row).and_then(|shape| places[shape]);
            out.push(match place {
                None | Some((Kind::Absent | Kind::Empty | Kind::Bytes | Kind::Array | Kind::KvList, _)) => null,
                Some((kind, slot)) => self.value(&view.value(row, kind, slot)),
            });
        }
    }

    fn truth(&self, class: u32, test: u32) -> Truth {
        let truths = &self.truths[class as usize];
        truths.binary_search_by_key(&test, |(test, _)| *test).map_or(Truth::False, |at| truths[at].1)
    }
}

fn gather(keys: &Int32Array, classes: &[u32], null: u32, out: &mut Vec<u32>) {
    if keys.null_count() == 0 {
        out.extend(keys.values().iter().map(|key| classes[key.unsigned_abs() as usize]));
    } else {
        out.extend(keys.iter().map(|key| key.map_or(null, |key| classes[key.unsigned_abs() as usize])));
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("there are far fewer tests, terms and kinds")
}

impl Matcher {
    /// Compiles indicators; the number of each is its place. A cumulative series that starts at `since`
    /// or later is counted from its first point on, an older one from its second.
    #[must_use]
    pub fn new(indicators: &[Indicator], since: Timestamp) -> Self {
        let mut matcher = Self { plans: Default::default(), last: HashMap::new(), since };
        for (number, indicator) in indicators.iter().enumerate() {
            for (term, is_numerator) in [(&indicator.total, false), (&indicator.numerator, true)] {
                if let Term::Rows { table, filter, measure } = term {
                    let plan = matcher.plans[table.index()].get_or_insert_with(|| Plan::new(*table));
                    plan.add(small(number), is_numerator, filter, *measure);
                }
            }
            if let (
                Term::Rows { table, measure: Measure::One, .. },
                Term::Rows { table: of, measure: Measure::One, .. },
            ) = (&indicator.total, &indicator.numerator)
                && table == of
                && let Some(plan) = &mut matcher.plans[table.index()]
            {
                plan.events.push((small(number), indicator.part));
            }
        }
        for plan in matcher.plans.iter_mut().flatten() {
            plan.finish();
        }
        matcher
    }

    /// Whether any indicator counts rows of a table.
    #[must_use]
    pub fn watches(&self, table: Table) -> bool {
        self.plans[table.index()].is_some()
    }

    /// The columns of a table that counting reads, by [`model::schema::schema`]'s names: a batch may have these alone.
    #[must_use]
    pub fn columns(&self, table: Table) -> Vec<&'static str> {
        let Some(plan) = &self.plans[table.index()] else { return Vec::new() };
        let asked = plan.columns.iter().flat_map(|classes| match &classes.column {
            Column::Named(name) => vec![*name],
            Column::Attribute(_) => vec!["attributes"],
            Column::Resource(_) => vec!["resource"],
            Column::Scope(_) | Column::ScopeName => vec!["scope"],
            Column::PointValue => vec!["value_int", "value_double"],
        });
        let counted: &[&str] = match table {
            Table::MetricPoints | Table::MetricHistograms => &POINT_COLUMNS,
            _ => &["trace_id"],
        };
        let mut found: Vec<&str> = asked.chain(counted.iter().copied()).chain([table.time_column()]).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Counts a batch of a table, of the schema that [`model::schema::schema`] gives.
    pub fn count(&mut self, table: Table, batch: &RecordBatch, into: &mut Tally) {
        let Some(plan) = &mut self.plans[table.index()] else { return };
        let times = batch.column_by_name(table.time_column());
        let Some(times) = times.and_then(|array| array.as_primitive_opt::<TimestampNanosecondType>()) else { return };
        let kinds = plan.kinds_of(batch, into);
        let traces = batch.column_by_name("trace_id");
        let traces = traces.and_then(|array| array.as_any().downcast_ref::<FixedSizeBinaryArray>());
        let traces = traces.filter(|traces| usize::try_from(traces.value_length()) == Ok(TRACE_ID_BYTES));
        if matches!(table, Table::MetricPoints | Table::MetricHistograms) {
            self.count_points(table, batch, times.values(), &kinds, into);
            return;
        }
        // Neighbours are often of one kind and time.
        let (mut at, mut run, mut last) = ((DEAD, 0), 0, 0);
        let mut end = |(kind, bucket): (u32, i64), run: u64, last: usize, plan: &mut Plan| {
            if run > 0 {
                plan.note(kind, bucket, run, || example(traces, last, times.value(last)), into);
            }
        };
        for (row, (kind, time)) in kinds.iter().zip(times.values()).enumerate() {
            if *kind == DEAD {
                continue;
            }
            let key = (*kind, bucket_of(*time));
            if key == at {
                run += 1;
            } else {
                end(at, run, last, plan);
                (at, run) = (key, 1);
            }
            last = row;
        }
        end(at, run, last, plan);
    }

    /// Gives out what was counted and not given out yet. Rows of a kind are added up until then: what a kind means to
    /// many SLOs is looked at once for all of them.
    pub fn flush(&mut self, into: &mut Tally) {
        self.plans.iter_mut().flatten().for_each(|plan| plan.flush(into));
    }

    fn count_points(&mut self, table: Table, batch: &RecordBatch, times: &[i64], kinds: &[u32], into: &mut Tally) {
        let Some(plan) = &mut self.plans[table.index()] else { return };
        let points = Points::new(batch);
        let mut known: Vec<Option<u64>> = vec![None; plan.measures.len()];
        for (row, (kind, time)) in kinds.iter().zip(times).enumerate() {
            if *kind == DEAD || plan.hits(*kind).is_empty() {
                continue;
            }
            known.fill(None);
            // A copy: the hits cannot be borrowed while the measures are.
            for at in 0..plan.hits(*kind).len() {
                let hit = plan.hits(*kind)[at];
                let measure = plan.measures[usize::from(hit.measure)];
                let events = match known[usize::from(hit.measure)] {
                    Some(events) => events,
                    None => {
                        let tag = hit.measure | if table == Table::MetricHistograms { 1 << 15 } else { 0 };
                        let events = match points.read(row, measure) {
                            Read::Events(events) => events,
                            Read::Grown { value, start } => {
                                let id = points.series(row);
                                let since = self.since;
                                grown(&mut self.last, (id, tag), Last { start, time: *time, value }, since)
                            }
                        };
                        known[usize::from(hit.measure)] = Some(events);
                        events
                    }
                };
                if events > 0 {
                    into.add(hit.indicator, bucket_of(*time), hit.is_numerator, events);
                }
            }
        }
        if self.last.len() > LAST_MAX {
            let newest = self.last.values().map(|last| last.time).max().unwrap_or(0);
            let hour_ago = newest.saturating_sub(3_600_000_000_000);
            self.last.retain(|_, last| last.time >= hour_ago);
            if self.last.len() > LAST_MAX {
                self.last.clear();
            }
        }
    }
}

/// The trace of a row; all zero is none: a log record without one.
fn example(traces: Option<&FixedSizeBinaryArray>, row: usize, time: i64) -> Option<Example> {
    let traces = traces.filter(|traces| traces.is_valid(row))?;
    let trace_id = <[u8; TRACE_ID_BYTES]>::try_from(traces.value(row)).ok()?;
    (trace_id != [0; TRACE_ID_BYTES]).then_some(Example { trace_id, time })
}

/// What a cumulative series grew by since its last point. A restart begins at nothing; a point older than
/// the last one is part of it already.
fn grown(last: &mut HashMap<(u64, u16), Last>, key: (u64, u16), now: Last, since: Timestamp) -> u64 {
    let Some(before) = last.get_mut(&key) else {
        last.insert(key, now);
        // Of an older series it is not known how much of its value is new.
        return if now.start.is_some_and(|start| start >= since.0) { now.value } else { 0 };
    };
    if now.time <= before.time {
        return 0;
    }
    let restarted = now.value < before.value || now.start > before.start;
    let grown = if restarted { now.value } else { now.value - before.value };
    *before = now;
    grown
}

impl Plan {
    fn new(table: Table) -> Self {
        Self {
            table,
            columns: Vec::new(),
            terms: Vec::new(),
            measures: Vec::new(),
            events: Vec::new(),
            by_test: HashMap::new(),
            always: Vec::new(),
            by_first: false,
            bits: Vec::new(),
            by_packed: HashMap::new(),
            by_classes: HashMap::new(),
            kinds: Vec::new(),
            touched: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The column that most SLOs ask first, and by which rows are therefore passed over.
    fn first_column(&self) -> Column {
        Column::Named(match self.table {
            Table::MetricPoints | Table::MetricHistograms => "metric_name",
            _ => "service_name",
        })
    }

    fn add(&mut self, indicator: u32, is_numerator: bool, filter: &Filter, measure: Measure) {
        if self.columns.is_empty() {
            self.columns.push(Classes::new(self.first_column()));
        }
        let condition = self.compile(filter);
        let measure = match self.measures.iter().position(|known| *known == measure) {
            Some(at) => at,
            None => {
                self.measures.push(measure);
                self.measures.len() - 1
            }
        };
        let measure = u16::try_from(measure).expect("there are far fewer bounds");
        self.terms.push(Compiled { indicator, is_numerator, measure, condition });
    }

    fn compile(&mut self, filter: &Filter) -> Condition {
        let all = |plan: &mut Self, parts: &[Filter]| parts.iter().map(|part| plan.compile(part)).collect();
        match filter {
            Filter::Atom(column, test) => {
                let at = match self.columns.iter().position(|known| known.column == *column) {
                    Some(at) => at,
                    None => {
                        self.columns.push(Classes::new(column.clone()));
                        self.columns.len() - 1
                    }
                };
                Condition::Test(small(at), self.columns[at].test(test))
            }
            Filter::All(parts) => Condition::All(all(self, parts)),
            Filter::Any(parts) => Condition::Any(all(self, parts)),
            Filter::Not(part) => Condition::Not(Box::new(self.compile(part))),
        }
    }

    fn finish(&mut self) {
        self.by_first = true;
        for (number, term) in self.terms.iter().enumerate() {
            let mut needs = Vec::new();
            term.condition.needs(&mut needs);
            // The test of the first column when there is one: it is the one that is rarely true.
            match needs.iter().min() {
                Some(test) => {
                    self.by_first &= test.0 == 0;
                    self.by_test.entry(*test).or_default().push(small(number));
                }
                None => {
                    self.by_first = false;
                    self.always.push(small(number));
                }
            }
        }
    }

    /// The kind of every row.
    fn kinds_of(&mut self, batch: &RecordBatch, into: &mut Tally) -> Vec<u32> {
        let needs_attributes = self.columns.iter().any(|classes| matches!(classes.column, Column::Attribute(_)));
        let attributes = batch.column_by_name("attributes").filter(|_| needs_attributes);
        let view = attributes.and_then(|array| AttributesView::new(array));
        let mut columns = std::mem::take(&mut self.scratch);
        columns.resize_with(self.columns.len(), Vec::new);
        for (column, classes) in self.columns.iter_mut().zip(&mut columns) {
            column.of_batch(batch, view.as_ref(), classes);
        }
        // As many bits as the classes there are now need. New classes may need more, a few times ever.
        let needed = self.columns.iter().map(|column| usize::BITS - column.truths.len().leading_zeros());
        if self.kinds.len() > KINDS_MAX || !needed.clone().eq(self.bits.iter().copied()) {
            self.bits = needed.collect();
            self.flush(into);
            self.by_packed.clear();
            self.by_classes.clear();
            self.kinds.clear();
        }
        let wanted = |(test, truth): &(u32, Truth)| *truth == Truth::True && self.by_test.contains_key(&(0, *test));
        let dead = |truths: &[(u32, Truth)]| self.by_first && !truths.iter().any(wanted);
        let dead: Vec<bool> = self.columns[0].truths.iter().map(|truths| dead(truths)).collect();
        let kinds = if self.bits.iter().sum::<u32>() <= u128::BITS {
            self.pack(&columns, &dead)
        } else {
            self.gather(&columns, &dead)
        };
        self.scratch = columns;
        kinds
    }

    fn pack(&mut self, columns: &[Vec<u32>], dead: &[bool]) -> Vec<u32> {
        let mut packed = vec![0_u128; columns[0].len()];
        let mut shift = 0;
        for (classes, bits) in columns.iter().zip(&self.bits) {
            for (packed, class) in packed.iter_mut().zip(classes) {
                *packed |= u128::from(*class) << shift;
            }
            shift += bits;
        }
        let mut kinds = Vec::with_capacity(packed.len());
        let (mut at, mut kind) = (u128::MAX, DEAD);
        for (row, packed) in packed.into_iter().enumerate() {
            if dead[columns[0][row] as usize] {
                kinds.push(DEAD);
                continue;
            }
            if packed != at {
                at = packed;
                kind = *self.by_packed.entry(packed).or_insert_with(|| {
                    let classes = columns.iter().map(|classes| classes[row]).collect();
                    self.kinds.push(RowKind::new(classes));
                    small(self.kinds.len() - 1)
                });
            }
            kinds.push(kind);
        }
        kinds
    }

    /// As [`Plan::pack`], for classes that are too many for one number.
    fn gather(&mut self, columns: &[Vec<u32>], dead: &[bool]) -> Vec<u32> {
        let rows = columns[0].len();
        let kind = |row: usize| {
            if dead[columns[0][row] as usize] {
                return DEAD;
            }
            let classes: Box<[u32]> = columns.iter().map(|classes| classes[row]).collect();
            *self.by_classes.entry(classes).or_insert_with_key(|classes| {
                self.kinds.push(RowKind::new(classes.clone()));
                small(self.kinds.len() - 1)
            })
        };
        (0..rows).map(kind).collect()
    }

    /// Adds rows of a kind in a bucket; `example` is of the last of them.
    #[inline]
    fn note(&mut self, kind: u32, bucket: i64, rows: u64, example: impl FnOnce() -> Option<Example>, into: &mut Tally) {
        if self.hits(kind).is_empty() {
            return;
        }
        let known = &mut self.kinds[kind as usize];
        if !known.is_touched {
            known.is_touched = true;
            self.touched.push(kind);
        }
        if !known.bad.is_empty()
            && let Some(example) = example()
            && known.example.is_none_or(|known| known.time <= example.time)
        {
            known.example = Some(example);
        }
        match known.rows.iter_mut().find(|(known, rows)| *known == bucket || *rows == 0) {
            Some(slot) => *slot = (bucket, slot.1 + rows),
            None => {
                self.give_out(kind, into);
                self.kinds[kind as usize].rows[0] = (bucket, rows);
            }
        }
    }

    fn give_out(&mut self, kind: u32, into: &mut Tally) {
        let known = &mut self.kinds[kind as usize];
        for (bucket, rows) in std::mem::take(&mut known.rows) {
            if rows > 0 {
                for hit in known.hits.as_deref().unwrap_or_default() {
                    into.add(hit.indicator, bucket, hit.is_numerator, rows);
                }
            }
        }
    }

    fn flush(&mut self, into: &mut Tally) {
        for kind in std::mem::take(&mut self.touched) {
            self.give_out(kind, into);
            let known = &mut self.kinds[kind as usize];
            known.is_touched = false;
            if let Some(example) = known.example.take() {
                known.bad.iter().for_each(|indicator| into.show(*indicator, example));
            }
        }
    }

    /// What a kind is to each term.
    fn hits(&mut self, kind: u32) -> &[Hit] {
        let at = kind as usize;
        if self.kinds[at].hits.is_none() {
            let hits = self.work_out(&self.kinds[at].classes);
            let of = |hit: &Hit| self.events.binary_search_by_key(&hit.indicator, |(known, _)| *known).ok();
            let is_counted = |indicator: u32| hits.iter().any(|hit| hit.indicator == indicator && hit.is_numerator);
            let bad = hits.iter().filter(|hit| !hit.is_numerator).filter_map(of).map(|at| self.events[at]);
            let bad = bad.filter(|(indicator, part)| is_counted(*indicator) == (*part == Part::Bad));
            self.kinds[at].bad = bad.map(|(indicator, _)| indicator).collect();
            self.kinds[at].hits = Some(hits);
        }
        self.kinds[at].hits.as_deref().unwrap_or_default()
    }

    fn work_out(&self, classes: &[u32]) -> Box<[Hit]> {
        let truth = |column: u32, test: u32| self.columns[column as usize].truth(classes[column as usize], test);
        let mut terms: Vec<u32> = self.always.clone();
        for (number, (column, class)) in self.columns.iter().zip(classes).enumerate() {
            for (test, truth) in &column.truths[*class as usize] {
                if *truth == Truth::True {
                    terms.extend(self.by_test.get(&(small(number), *test)).into_iter().flatten());
                }
            }
        }
        let terms = terms.into_iter().map(|term| &self.terms[term as usize]);
        terms
            .filter(|term| term.condition.eval(&truth) == Truth::True)
            .map(|term| Hit { indicator: term.indicator, is_numerator: term.is_numerator, measure: term.measure })
            .collect()
    }
}

/// How many events a point is, or what its series has grown to.
enum Read {
    Events(u64),
    Grown { value: u64, start: Option<i64> },
}

/// The columns of metric points that measures read.
struct Points<'a> {
    series: Option<&'a FixedSizeBinaryArray>,
    temporality: Option<(&'a Int32Array, Vec<Temporality>)>,
    start: Option<&'a [i64]>,
    start_nulls: Option<&'a arrow::buffer::NullBuffer>,
    ints: Option<&'a Int64Array>,
    doubles: Option<&'a Float64Array>,
    counts: Option<&'a UInt64Array>,
    bounds: Option<&'a ListArray>,
    buckets: Option<&'a ListArray>,
    scale: Option<&'a Int32Array>,
    zero: Option<&'a UInt64Array>,
    zero_threshold: Option<&'a Float64Array>,
    positive: Option<&'a StructArray>,
    negative: Option<&'a StructArray>,
}

#[derive(Clone, Copy, PartialEq)]
enum Temporality {
    None,
    Delta,
    Cumulative,
}

impl<'a> Points<'a> {
    fn new(batch: &'a RecordBatch) -> Self {
        fn typed<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Option<&'a T> {
            batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<T>())
        }
        let temporality = batch.column_by_name("temporality").and_then(|array| array.as_dictionary_opt::<Int32Type>());
        let temporality = temporality.and_then(|dictionary| {
            let values = dictionary.values().as_string_opt::<i32>()?;
            let kinds = values.iter().map(|value| match value {
                Some("DELTA") => Temporality::Delta,
                Some("CUMULATIVE") => Temporality::Cumulative,
                _ => Temporality::None,
            });
            Some((dictionary.keys(), kinds.collect()))
        });
        let start = batch.column_by_name("start_time").and_then(|a| a.as_primitive_opt::<TimestampNanosecondType>());
        Self {
            series: typed(batch, "series_id"),
            temporality,
            start: start.map(|array| &array.values()[..]),
            start_nulls: start.and_then(|array| array.nulls()),
            ints: typed(batch, "value_int"),
            doubles: typed(batch, "value_double"),
            counts: typed(batch, "count"),
            bounds: typed(batch, "explicit_bounds"),
            buckets: typed(batch, "bucket_counts"),
            scale: typed(batch, "scale"),
            zero: typed(batch, "zero_count"),
            zero_threshold: typed(batch, "zero_threshold"),
            positive: typed(batch, "positive"),
            negative: typed(batch, "negative"),
        }
    }

    fn series(&self, row: usize) -> u64 {
        let bytes = self.series.map(|array| array.value(row)).and_then(|bytes| bytes.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn temporality(&self, row: usize) -> Temporality {
        match &self.temporality {
            Some((keys, kinds)) if keys.is_valid(row) => kinds[keys.value(row).unsigned_abs() as usize],
            _ => Temporality::None,
        }
    }

    fn number(&self, row: usize) -> Option<f64> {
        match (self.ints, self.doubles) {
            #[expect(clippy::cast_precision_loss, reason = "a ratio is small")]
            (Some(ints), _) if ints.is_valid(row) => Some(ints.value(row) as f64),
            (_, Some(doubles)) if doubles.is_valid(row) => Some(doubles.value(row)).filter(|value| value.is_finite()),
            _ => None,
        }
    }

    /// A point's number rounded down to an integer, nothing when it is negative or none.
    fn whole(&self, row: usize) -> u64 {
        match self.ints {
            Some(ints) if ints.is_valid(row) => u64::try_from(ints.value(row)).unwrap_or(0),
            _ => self.number(row).map_or(0, whole),
        }
    }

    fn grows(&self, row: usize, value: u64, counter: bool) -> Read {
        match self.temporality(row) {
            Temporality::Cumulative => {}
            Temporality::None if counter => {}
            Temporality::Delta | Temporality::None => return Read::Events(value),
        }
        let known = self.start_nulls.is_none_or(|nulls| nulls.is_valid(row));
        Read::Grown { value, start: self.start.filter(|_| known).map(|start| start[row]) }
    }

    fn read(&self, row: usize, measure: Measure) -> Read {
        match measure {
            Measure::One => Read::Events(1),
            Measure::Sum { counter } => self.grows(row, self.whole(row), counter),
            Measure::Compare(op, value) => {
                let holds = self.number(row).is_some_and(|number| {
                    compare(Cell::Double(number), &Literal::Double(value)).is_some_and(|ordering| op.holds(ordering))
                });
                Read::Events(u64::from(holds))
            }
            Measure::Ratio => Read::Events(self.number(row).map_or(0, scaled_ratio)),
            Measure::RatioTotal => Read::Events(self.number(row).map_or(0, |_| RATIO_SCALE)),
            Measure::Observations => self.grows(row, self.counts.map_or(0, |counts| counts.value(row)), false),
            Measure::ObservationsAtMost(bound) => self.grows(row, self.at_most(row, bound), false),
        }
    }

    /// Observations in buckets that end at a bound or below. A bucket that the bound cuts is left out: its
    /// observations may lie above it.
    fn at_most(&self, row: usize, bound: f64) -> u64 {
        let mut sum = 0_u64;
        if let (Some(bounds), Some(buckets)) = (self.bounds, self.buckets) {
            let (bounds, buckets) = (bounds.value(row), buckets.value(row));
            let bounds = bounds.as_primitive_opt::<arrow::datatypes::Float64Type>();
            let buckets = buckets.as_primitive_opt::<arrow::datatypes::UInt64Type>();
            if let (Some(bounds), Some(buckets)) = (bounds, buckets) {
                for (end, count) in bounds.values().iter().zip(buckets.values()) {
                    if *end <= bound {
                        sum = sum.saturating_add(*count);
                    }
                }
            }
        }
        let Some(scale) = self.scale.filter(|scale| scale.is_valid(row)).map(|scale| scale.value(row)) else {
            return sum;
        };
        // An exponential histogram: bucket i of base 2^(2^-scale) holds (base^i, base^(i+1)].
        let threshold = self.zero_threshold.filter(|array| array.is_valid(row)).map_or(0.0, |array| array.value(row));
        if bound >= threshold {
            sum = sum.saturating_add(self.zero.filter(|zero| zero.is_valid(row)).map_or(0, |zero| zero.value(row)));
        }
        let step = (-f64::from(scale)).exp2();
        let mut side = |array: Option<&StructArray>, within: &dyn Fn(f64) -> bool| {
            let Some((offset, counts)) = array.and_then(|array| exponential(array, row)) else { return };
            for (index, count) in counts.values().iter().enumerate() {
                let index = f64::from(offset) + f64::from(u32::try_from(index).unwrap_or(u32::MAX));
                if within(index) {
                    sum = sum.saturating_add(*count);
                }
            }
        };
        side(self.positive, &|index| ((index + 1.0) * step).exp2() <= bound * (1.0 + f64::EPSILON * 4.0));
        side(self.negative, &|index| -(index * step).exp2() <= bound);
        sum
    }
}

fn exponential(array: &StructArray, row: usize) -> Option<(i32, UInt64Array)> {
    if array.is_null(row) {
        return None;
    }
    let offset = array.column_by_name("offset")?.as_any().downcast_ref::<Int32Array>()?.value(row);
    let counts = array.column_by_name("bucket_counts")?.as_any().downcast_ref::<ListArray>()?.value(row);
    let counts = counts.as_any().downcast_ref::<UInt64Array>()?.clone();
    Some((offset, counts))
}

/// A number rounded down to an integer; nothing when it is negative.
#[must_use]
pub fn whole(number: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates, which is wanted")]
    let whole = number.floor() as u64;
    whole
}

/// A ratio of 0 to 1 in units of [`RATIO_SCALE`].
#[must_use]
pub fn scaled_ratio(ratio: f64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "the scale is exact as a double")]
    let scaled = (ratio.clamp(0.0, 1.0) * RATIO_SCALE as f64).round();
    whole(scaled)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::Op;
    use crate::sli::Part;
    use crate::testing::{Attribute, Point, Span, points, spans};

    const SECOND: i64 = 1_000_000_000;

    fn count(matcher: &mut Matcher, table: Table, batch: &RecordBatch) -> BTreeMap<(u32, i64), (u64, u64)> {
        let mut tally = Tally::default();
        matcher.count(table, batch, &mut tally);
        matcher.flush(&mut tally);
        tally
            .drain()
            .map(|(indicator, bucket, counts)| ((indicator, bucket), (counts.numerator, counts.total)))
            .collect()
    }

    fn rows(table: Table, filter: &str, measure: Measure) -> Term {
        Term::Rows { table, filter: Filter::parse(table, filter).unwrap(), measure }
    }

    fn indicator(table: Table, numerator: (&str, Measure), total: (&str, Measure)) -> Indicator {
        let (numerator, total) = (rows(table, numerator.0, numerator.1), rows(table, total.0, total.1));
        Indicator { part: Part::Good, numerator, total }
    }

    fn point(series: u64, time: i64, temporality: Option<&'static str>, value: Attribute) -> Point {
        Point { metric: "m", series, start: Some(0), time, temporality, value, buckets: (vec![], vec![]) }
    }

    /// What each point adds to a sum, one batch a point.
    fn increases(counter: bool, since: i64, given: &[Point]) -> Vec<u64> {
        let sum = Measure::Sum { counter };
        let all = indicator(Table::MetricPoints, ("metric_name = 'm'", sum), ("metric_name = 'm'", sum));
        let mut matcher = Matcher::new(&[all], Timestamp(since));
        given
            .iter()
            .map(|point| {
                let found = count(&mut matcher, Table::MetricPoints, &points(std::slice::from_ref(point)));
                found
                    .values()
                    .map(|(numerator, total)| {
                        assert_eq!(numerator, total);
                        *total
                    })
                    .sum()
            })
            .collect()
    }

    #[test]
    fn counters_are_counted_by_what_they_grew() {
        let int = |series, time, value| point(series, time, Some("CUMULATIVE"), Attribute::Int(value));
        for (what, counter, since, given, want) in [
            (
                "older series: from its second point",
                false,
                1,
                vec![int(1, 10, 100), int(1, 20, 150), int(1, 30, 150)],
                vec![0, 50, 0],
            ),
            ("series that began under watch", false, 0, vec![int(1, 10, 100), int(1, 20, 150)], vec![100, 50]),
            (
                "a restart begins at nothing",
                false,
                1,
                vec![int(1, 10, 100), int(1, 20, 30), int(1, 30, 40)],
                vec![0, 30, 10],
            ),
            (
                "a point that comes late is part of the next",
                false,
                1,
                vec![int(1, 10, 100), int(1, 30, 150), int(1, 20, 120), int(1, 40, 160)],
                vec![0, 50, 0, 10],
            ),
            ("the same point twice", false, 1, vec![int(1, 10, 100), int(1, 20, 150), int(1, 20, 150)], vec![0, 50, 0]),
            (
                "series are apart",
                false,
                1,
                vec![int(1, 10, 100), int(2, 10, 7), int(1, 20, 101), int(2, 20, 9)],
                vec![0, 0, 1, 2],
            ),
            (
                "deltas as they are",
                false,
                1,
                [5, 0, 7].map(|value| point(1, 10, Some("DELTA"), Attribute::Int(value))).to_vec(),
                vec![5, 0, 7],
            ),
            (
                "fractions round down to what has been whole",
                false,
                1,
                [1.9, 2.9, 3.0]
                    .map(|value| point(1, (value * 10.0) as i64, Some("CUMULATIVE"), Attribute::Double(value)))
                    .to_vec(),
                vec![0, 1, 1],
            ),
            (
                "numbers at a time",
                false,
                1,
                [5, 3].map(|value| point(1, value, None, Attribute::Int(value))).to_vec(),
                vec![5, 3],
            ),
            (
                "gauges that are counters",
                true,
                1,
                [(10, 5), (20, 8), (30, 2)].map(|(time, value)| point(1, time, None, Attribute::Int(value))).to_vec(),
                vec![0, 3, 2],
            ),
            (
                "negative and not a number",
                false,
                1,
                vec![
                    point(1, 1, Some("DELTA"), Attribute::Int(-5)),
                    point(1, 2, Some("DELTA"), Attribute::Double(f64::NAN)),
                ],
                vec![0, 0],
            ),
        ] {
            assert_eq!(increases(counter, since, &given), want, "{what}");
        }
        let mut new_start = int(1, 20, 500);
        new_start.start = Some(15);
        assert_eq!(
            increases(false, 1, &[int(1, 10, 100), new_start]),
            [0, 500],
            "a new start is a restart, even above"
        );
    }

    #[test]
    fn histograms_and_ratios_are_counted_as_integers() {
        let at_most = |bound| Measure::ObservationsAtMost(bound);
        let bounds = [0.1, 0.5, 1.0];
        let given: Vec<Indicator> = [0.5, 0.7, 0.05, 5.0]
            .map(|bound| indicator(Table::MetricHistograms, ("", at_most(bound)), ("", Measure::Observations)))
            .into();
        let mut matcher = Matcher::new(&given, Timestamp(1));
        let batch = |time: i64, counts: [u64; 4]| {
            let mut point = point(1, time, Some("CUMULATIVE"), Attribute::Bool(true));
            point.buckets = (bounds.to_vec(), counts.to_vec());
            points(&[point])
        };
        assert_eq!(count(&mut matcher, Table::MetricHistograms, &batch(5, [1, 1, 1, 1])), BTreeMap::new());
        let found = count(&mut matcher, Table::MetricHistograms, &batch(6, [11, 21, 31, 41]));
        // A bucket that the bound cuts is not good, nor is what lies beyond the last bound.
        let want = [(0, (30, 100)), (1, (30, 100)), (2, (0, 100)), (3, (60, 100))];
        assert_eq!(found, want.map(|(number, counts)| ((number, 0), counts)).into());

        let ratio = indicator(Table::MetricPoints, ("", Measure::Ratio), ("", Measure::RatioTotal));
        let mut matcher = Matcher::new(&[ratio], Timestamp(1));
        for (value, want) in [(0.25, 250_000), (1.5, 1_000_000), (-1.0, 0)] {
            let found =
                count(&mut matcher, Table::MetricPoints, &points(&[point(1, 0, None, Attribute::Double(value))]));
            assert_eq!(found[&(0, 0)], (want, RATIO_SCALE), "{value}");
        }
        let found = count(&mut matcher, Table::MetricPoints, &points(&[point(1, 0, None, Attribute::Bool(true))]));
        assert_eq!(found, BTreeMap::new(), "a point without a value is no ratio");
    }

    #[test]
    fn exponential_buckets_end_where_the_specification_says() {
        use std::sync::Arc;
        let side = |offset: i32, counts: Vec<u64>| -> ArrayRef {
            let counts = UInt64Array::from(counts);
            let list = ListArray::new(
                Arc::new(arrow::datatypes::Field::new("item", DataType::UInt64, false)),
                arrow::buffer::OffsetBuffer::from_lengths([counts.len()]),
                Arc::new(counts),
                None,
            );
            Arc::new(StructArray::new(
                model::schema::bucket_fields(),
                vec![Arc::new(Int32Array::from(vec![offset])), Arc::new(list)],
                None,
            ))
        };
        // Scale 0: (1,2] 10, (2,4] 20, (4,8] 40; zero 5; negative [-2,-1) 3.
        let batch = RecordBatch::try_from_iter(vec![
            ("scale", Arc::new(Int32Array::from(vec![0])) as ArrayRef),
            ("zero_count", Arc::new(UInt64Array::from(vec![5]))),
            ("zero_threshold", Arc::new(Float64Array::from(vec![0.0]))),
            ("positive", side(0, vec![10, 20, 40])),
            ("negative", side(0, vec![3])),
        ])
        .unwrap();
        let points = Points::new(&batch);
        for (bound, want) in
            [(8.0, 78), (7.9, 38), (4.0, 38), (2.0, 18), (1.0, 8), (0.0, 8), (-1.0, 3), (-1.5, 0), (-2.0, 0)]
        {
            assert_eq!(points.at_most(0, bound), want, "{bound}");
        }
    }

    #[test]
    fn tables_without_slos_and_batches_without_columns_count_nothing() {
        let one = indicator(Table::Spans, ("", Measure::One), ("attributes['a'] is null", Measure::One));
        let mut matcher = Matcher::new(&[one], Timestamp(0));
        assert!(matcher.watches(Table::Spans) && !matcher.watches(Table::Logs));
        let batch = points(&[point(1, 0, None, Attribute::Int(1))]);
        assert_eq!(count(&mut matcher, Table::Logs, &batch), BTreeMap::new());
        let without = batch.project(&[0, 1]).unwrap();
        assert_eq!(count(&mut matcher, Table::Spans, &without), BTreeMap::new(), "no start_time");
        let only_time = spans(&[span(0, "a", None, vec![])]).project(&[3]).unwrap();
        assert_eq!(count(&mut matcher, Table::Spans, &only_time)[&(0, 0)], (1, 1), "all else is null");
    }

    fn span(time: i64, service: &str, duration_ns: Option<i64>, attributes: Vec<(String, Attribute)>) -> Span {
        Span {
            time,
            service: service.to_owned(),
            name: format!("{service}/op"),
            kind: "SERVER",
            status: if duration_ns.is_some_and(|duration| duration > 500) { "ERROR" } else { "OK" },
            duration_ns,
            attributes,
        }
    }

    fn attributes() -> impl Strategy<Value = Vec<(String, Attribute)>> {
        let value = prop_oneof![
            "[abc5]{0,2}".prop_map(Attribute::Text),
            (-3_i64..8).prop_map(Attribute::Int),
            (-3_i32..8).prop_map(|value| Attribute::Double(f64::from(value) / 2.0)),
            any::<bool>().prop_map(Attribute::Bool),
        ];
        prop::collection::vec(("[xy]", value), 0..4)
    }

    fn filters() -> impl Strategy<Value = String> {
        let column = prop::sample::select(vec![
            "service_name",
            "duration_ns",
            "attributes['x']",
            "attributes['y']",
            "status_code",
            "name",
        ]);
        let literal =
            prop::sample::select(vec!["'a'", "'b'", "'5'", "3", "2.5", "true", "'OK'", "500", "9007199254740993"]);
        let op = prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
        let atom = prop_oneof![
            6 => (column.clone(), op, literal.clone()).prop_map(|(column, op, literal)| format!("{column} {op} {literal}")),
            1 => column.clone().prop_map(|column| format!("{column} IS NULL")),
            1 => (column.clone(), literal.clone(), literal).prop_map(|(column, a, b)| format!("{column} IN ({a}, {b})")),
            1 => column.prop_map(|column| format!("{column} LIKE '%a%'")),
        ];
        atom.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} AND {b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} OR {b})")),
                inner.prop_map(|a| format!("NOT ({a})")),
            ]
        })
    }

    /// One row against one filter, without any of the above.
    fn plain(row: &Span, filter: &Filter) -> bool {
        let truth = filter.eval(&mut |column: &Column, test: &Test| {
            test.holds(match column {
                Column::Named("service_name") => Cell::Text(&row.service),
                Column::Named("name") => Cell::Text(&row.name),
                Column::Named("status_code") => Cell::Text(row.status),
                Column::Named("duration_ns") => row.duration_ns.map_or(Cell::Null, Cell::Int),
                Column::Attribute(key) => match row.attributes.iter().rev().find(|(other, _)| other == key) {
                    Some((_, Attribute::Text(text))) => Cell::Text(text),
                    Some((_, Attribute::Int(value))) => Cell::Int(*value),
                    Some((_, Attribute::Double(value))) => Cell::Double(*value),
                    Some((_, Attribute::Bool(value))) => Cell::Bool(*value),
                    None => Cell::Null,
                },
                other => panic!("{other}"),
            })
        });
        truth == Truth::True
    }

    proptest! {
        #[test]
        fn classes_count_what_testing_each_row_counts(
            filters in prop::collection::vec((filters(), filters()), 1..8),
            batches in prop::collection::vec(prop::collection::vec((0_i64..100, "[abc]", prop::option::of(prop_oneof![0_i64..1_000, Just(9_007_199_254_740_993), Just(9_007_199_254_740_992)]), attributes()), 1..20), 1..4),
        ) {
            let given: Vec<Indicator> = filters.iter().map(|(numerator, total)| indicator(Table::Spans, (numerator, Measure::One), (total, Measure::One))).collect();
            let mut matcher = Matcher::new(&given, Timestamp(0));
            // One that gives out at the end what all batches were, whatever classes the later ones bring.
            let (mut patient, mut tally) = (Matcher::new(&given, Timestamp(0)), Tally::default());
            let mut all: BTreeMap<(u32, i64), (u64, u64)> = BTreeMap::new();
            for batch in batches {
                let rows: Vec<Span> = batch.into_iter().map(|(time, service, duration, attributes)| span(time * SECOND, &service, duration, attributes)).collect();
                let mut want: BTreeMap<(u32, i64), (u64, u64)> = BTreeMap::new();
                for (number, (numerator, total)) in filters.iter().enumerate() {
                    let [numerator, total] = [numerator, total].map(|text| Filter::parse(Table::Spans, text).unwrap());
                    for row in &rows {
                        let (is_numerator, is_total) = (plain(row, &numerator), plain(row, &total));
                        if is_numerator || is_total {
                            let counts = want.entry((u32::try_from(number).unwrap(), bucket_of(row.time))).or_default();
                            counts.0 += u64::from(is_numerator);
                            counts.1 += u64::from(is_total);
                        }
                    }
                }
                for (at, counts) in &want {
                    let sum = all.entry(*at).or_default();
                    *sum = (sum.0 + counts.0, sum.1 + counts.1);
                }
                let batch = spans(&rows);
                patient.count(Table::Spans, &batch, &mut tally);
                prop_assert_eq!(&count(&mut matcher, Table::Spans, &batch), &want);
                // The columns that it names are enough.
                let named = matcher.columns(Table::Spans);
                let schema = batch.schema();
                let named: Vec<usize> = (0..batch.num_columns()).filter(|at| named.contains(&schema.field(*at).name().as_str())).collect();
                prop_assert_eq!(&count(&mut matcher, Table::Spans, &batch.project(&named).unwrap()), &want);
            }
            patient.flush(&mut tally);
            let mut found: BTreeMap<(u32, i64), (u64, u64)> = BTreeMap::new();
            for (indicator, bucket, counts) in tally.drain() {
                let sum = found.entry((indicator, bucket)).or_default();
                *sum = (sum.0 + counts.numerator, sum.1 + counts.total);
            }
            prop_assert_eq!(found, all);
        }
    }

    #[test]
    fn many_columns_and_many_slos_of_one_row_count_alike() {
        // 90 columns of two bits do not fit into one number, and each row is counted by more SLOs than are
        // added up row by row.
        let mut given: Vec<Indicator> = (0..90)
            .map(|number| {
                let numerator = format!("attributes['a{number}'] = 'x'");
                indicator(Table::Spans, (&numerator, Measure::One), ("service_name = 's'", Measure::One))
            })
            .collect();
        let rows: Vec<Span> = (0..60)
            .map(|row| span(row * 7 * SECOND, "s", None, vec![(format!("a{}", row % 30), Attribute::Text("x".into()))]))
            .collect();
        for kept in [90, 20] {
            given.truncate(kept);
            let mut matcher = Matcher::new(&given, Timestamp(0));
            for _ in 0..2 {
                let found = count(&mut matcher, Table::Spans, &spans(&rows));
                for number in 0..u32::try_from(kept).unwrap() {
                    let of = found.iter().filter(|((indicator, _), _)| *indicator == number);
                    let sums = of.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1));
                    assert_eq!(sums, (if number < 30 { 2 } else { 0 }, 60), "{number} of {kept}");
                }
            }
        }
    }

    #[test]
    fn a_comparison_is_a_filter_of_tables() {
        let compare = Measure::Compare(Op::Less, 5.0);
        let given = indicator(Table::MetricPoints, ("", compare), ("value is not null", Measure::One));
        let mut matcher = Matcher::new(&[given], Timestamp(0));
        let rows: Vec<Point> = [3, 5, 4].map(|value| point(1, 0, None, Attribute::Int(value))).into();
        assert_eq!(count(&mut matcher, Table::MetricPoints, &points(&rows))[&(0, 0)], (2, 3));
    }
}
