//! What derivation reads of a batch of spans, and the rules that turn attributes into dimensions.
//!
//! Attributes and resources repeat, so what they say is found once for each distinct shape and
//! resource ([`Facts`]) and never per span. Not here: counting ([`super::metrics`],
//! [`super::edges`]).
//!
//! Sources: opentelemetry.io/docs/specs/semconv (resource/deployment-environment, database, rpc,
//! messaging, http; the older names beside the stable ones). An uninstrumented callee is found as the
//! OpenTelemetry Collector's service graph connector does it, by what the caller says of its peer.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampNanosecondType};
use hashbrown::HashTable;
use model::attributes::{Kind, shape_entries};
use model::context::Context;
use model::derived::BUCKET_NS;
use model::signal::Table;
use xxhash_rust::xxh3::xxh3_64;

use crate::layout::{Layout, Place, Promoted};

/// The columns that are read of `spans`.
pub(super) const COLUMNS: [&str; 12] = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "service_name",
    "name",
    "kind",
    "start_time",
    "duration_ns",
    "status_code",
    "attributes",
    "links",
    "resource",
];

/// Shapes or resources whose facts are remembered. Instrumentation has some hundred shapes and a
/// fleet some thousand resources; past it all are forgotten and found again, which costs time only.
const FACTS_MAX: usize = 8192;

/// Attributes by which a caller names a callee that may send no spans itself, the most telling
/// first.
const PEER_KEYS: [&str; 2] = ["peer.service", "service.peer.name"];

/// Attributes whose text is read, [`PEER_KEYS`] among them.
pub(super) const TEXT_KEYS: [&str; 9] = [
    PEER_KEYS[0],
    PEER_KEYS[1],
    "messaging.system",
    "messaging.destination.name",
    "db.system.name",
    "db.system",
    "db.namespace",
    "db.name",
    "server.address",
];

/// What carries a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Connection {
    /// Nothing says.
    Other,
    /// HTTP without an RPC framework on it.
    Http,
    /// A remote procedure call.
    Rpc,
    /// A database.
    Db,
    /// A message or event.
    Messaging,
}

impl Connection {
    pub(super) const ALL: [Self; 5] = [Self::Other, Self::Http, Self::Rpc, Self::Db, Self::Messaging];

    /// The name in `service_edges.connection_type`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Http => "http",
            Self::Rpc => "rpc",
            Self::Db => "db",
            Self::Messaging => "messaging",
        }
    }
}

/// What a span's kind means for edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `CLIENT`, `PRODUCER`: it calls.
    Caller,
    /// `SERVER`, `CONSUMER`: it is called.
    Callee,
    /// Everything else; it may be the parent of a callee all the same.
    Neither,
}

/// Where a text of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// At this slot of the row's texts.
    Slot(usize),
    /// In this promoted column.
    Promoted(usize),
}

/// What the attributes of a span say, by their shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShapeFacts {
    connection: Connection,
    /// Where the callee is named outright.
    peers: Vec<Text>,
    /// Which kind of database or message broker it is, and the database or destination in it.
    system: Option<Text>,
    part: Option<Text>,
    /// Where it was reached.
    address: Option<Text>,
}

impl ShapeFacts {
    fn of(shape: &[u8], layout: &Layout) -> Self {
        let entries = shape_entries(shape);
        let places = layout.places(&entries);
        // Of duplicate keys the last one counts.
        let place = |key: &str| entries.iter().rposition(|entry| entry.key == key);
        let has = |keys: [&str; 2]| {
            let kind = |key: &&str| place(key).map_or(Kind::Absent, |place| entries[place].kind);
            keys.iter().any(|key| !matches!(kind(key), Kind::Absent | Kind::Empty))
        };
        let text = |key: &str| {
            let place = place(key).filter(|place| entries[*place].kind == Kind::String)?;
            match places[place] {
                Place::List(_, slot) => Some(Text::Slot(slot)),
                Place::Column(column) => Some(Text::Promoted(column)),
                Place::Nothing => None,
            }
        };
        let either = |[one, other]: [&str; 2]| text(one).or_else(|| text(other));
        let (connection, system, part) = if has(["messaging.system"; 2]) {
            (Connection::Messaging, text("messaging.system"), text("messaging.destination.name"))
        } else if has(["db.system.name", "db.system"]) {
            (Connection::Db, either(["db.system.name", "db.system"]), either(["db.namespace", "db.name"]))
        } else if has(["rpc.system.name", "rpc.system"]) {
            (Connection::Rpc, None, None)
        } else if has(["http.request.method", "http.method"]) {
            (Connection::Http, None, None)
        } else {
            (Connection::Other, None, None)
        };
        let peers = PEER_KEYS.into_iter().filter_map(text).collect();
        Self { connection, peers, system, part, address: text("server.address") }
    }
}

/// What a resource says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResourceFacts {
    pub(super) environment: Option<Arc<str>>,
    pub(super) version: Option<Arc<str>>,
}

impl ResourceFacts {
    fn of(resource: &[u8]) -> Self {
        let Some(context) = Context::parse(resource) else { return Self::default() };
        let text = |key: &str| -> Option<Arc<str>> {
            let text = context.with_attribute(key, |value| value.to_text().map(|text| Arc::from(&*text)))??;
            Some(text).filter(|text: &Arc<str>| !text.is_empty())
        };
        Self {
            environment: text("deployment.environment.name").or_else(|| text("deployment.environment")),
            version: text("service.version"),
        }
    }
}

/// Facts by the bytes they were found in.
#[derive(Debug)]
struct Known<T>(HashTable<(u64, Box<[u8]>, Arc<T>)>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

impl<T> Known<T> {
    fn get(&mut self, bytes: &[u8], find: impl FnOnce(&[u8]) -> T) -> Arc<T> {
        let hash = xxh3_64(bytes);
        if let Some((_, _, facts)) = self.0.find(hash, |(other, known, _)| *other == hash && **known == *bytes) {
            return Arc::clone(facts);
        }
        if self.0.len() >= FACTS_MAX {
            self.0.clear();
        }
        let facts = Arc::new(find(bytes));
        self.0.insert_unique(hash, (hash, Box::from(bytes), Arc::clone(&facts)), |(hash, _, _)| *hash);
        facts
    }
}

/// What shapes and resources say in batches of one layout, remembered from batch to batch.
#[derive(Debug)]
pub(super) struct Facts {
    layout: Layout,
    /// The name of each promoted column whose text is read.
    promoted: Vec<Option<String>>,
    shapes: Known<ShapeFacts>,
    resources: Known<ResourceFacts>,
}

impl Facts {
    /// Nothing yet, of batches of a layout.
    pub(super) fn new(layout: Layout) -> Self {
        let read = |pair: &Promoted| pair.kind == Kind::String && TEXT_KEYS.contains(&pair.key.as_str());
        let promoted = layout.promoted().iter().map(|pair| read(pair).then(|| pair.column_name())).collect();
        Self { layout, promoted, shapes: Known::default(), resources: Known::default() }
    }

    /// The promoted columns whose text is read.
    pub(super) fn promoted(&self) -> impl Iterator<Item = &str> {
        self.promoted.iter().flatten().map(String::as_str)
    }

    /// Nothing yet, of batches as memtables have them.
    pub(super) fn of_memtables() -> Self {
        Self::new(Layout::of_table(Table::Spans))
    }
}

/// A dictionary-encoded text column.
#[derive(Clone, Copy)]
pub(super) struct Texts<'a> {
    keys: &'a [i32],
    values: &'a StringArray,
}

impl<'a> Texts<'a> {
    /// The place of a row's text among [`Texts::values`].
    #[inline]
    pub(super) fn place(&self, row: usize) -> usize {
        self.keys[row].unsigned_abs() as usize
    }

    /// The text of a row.
    pub(super) fn of(&self, row: usize) -> &'a str {
        self.values.value(self.place(row))
    }

    /// The distinct texts, some of which may not occur.
    pub(super) fn values(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values.iter().map(Option::unwrap_or_default)
    }
}

/// A batch of spans, its columns at hand.
pub(super) struct Spans<'a> {
    pub(super) rows: usize,
    trace_ids: &'a FixedSizeBinaryArray,
    span_ids: &'a FixedSizeBinaryArray,
    parents: &'a FixedSizeBinaryArray,
    pub(super) services: Texts<'a>,
    pub(super) names: Texts<'a>,
    pub(super) kinds: Texts<'a>,
    pub(super) statuses: Texts<'a>,
    starts: &'a [i64],
    durations: &'a Int64Array,
    resource_keys: &'a [i32],
    /// What each resource of the dictionary says.
    pub(super) resources: Vec<Arc<ResourceFacts>>,
    shape_keys: &'a [i32],
    shapes: Vec<Arc<ShapeFacts>>,
    /// Where each row's texts end, and the texts; none when all are promoted.
    strings: Option<(&'a [i32], &'a StringArray)>,
    promoted: Vec<Option<&'a StringArray>>,
    link_ends: &'a [i32],
    link_traces: &'a FixedSizeBinaryArray,
    link_spans: &'a FixedSizeBinaryArray,
    roles: Vec<(Role, bool)>,
    errors: Vec<bool>,
}

/// The trace and the span of an id, or a callee's trace and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SpanKey {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
}

impl<'a> Spans<'a> {
    /// Looks into a batch; `None` when it does not have the columns of spans.
    pub(super) fn new(batch: &'a RecordBatch, facts: &mut Facts) -> Option<Self> {
        let column = |name: &str| batch.column_by_name(name);
        let ids = |name: &str| column(name)?.as_fixed_size_binary_opt();
        let texts = |name: &str| -> Option<Texts<'a>> {
            let dictionary = column(name)?.as_dictionary_opt::<Int32Type>()?;
            Some(Texts { keys: dictionary.keys().values(), values: dictionary.values().as_string_opt()? })
        };
        let resource = column("resource")?.as_dictionary_opt::<Int32Type>()?;
        let resources: &BinaryArray = resource.values().as_binary_opt()?;
        let attributes = column("attributes")?.as_struct_opt()?;
        let shape = attributes.column_by_name("shape")?.as_dictionary_opt::<Int32Type>()?;
        let shapes: &BinaryArray = shape.values().as_binary_opt()?;
        let strings = match attributes.column_by_name("strings") {
            Some(strings) => {
                let strings = strings.as_list_opt::<i32>()?;
                Some((strings.value_offsets(), strings.values().as_string_opt()?))
            }
            None => None,
        };
        let promoted = facts.promoted.iter().map(|name| column(name.as_deref()?)?.as_string_opt()).collect();
        let layout = &facts.layout;
        let links = column("links")?.as_list_opt::<i32>()?;
        let link = links.values().as_struct_opt()?;
        let (kinds, statuses) = (texts("kind")?, texts("status_code")?);
        let role = |kind| match kind {
            "CLIENT" => (Role::Caller, false),
            "PRODUCER" => (Role::Caller, true),
            "SERVER" => (Role::Callee, false),
            "CONSUMER" => (Role::Callee, true),
            _ => (Role::Neither, false),
        };
        Some(Self {
            rows: batch.num_rows(),
            trace_ids: ids("trace_id")?,
            span_ids: ids("span_id")?,
            parents: ids("parent_span_id")?,
            services: texts("service_name")?,
            names: texts("name")?,
            roles: kinds.values().map(role).collect(),
            errors: statuses.values().map(|status| status == "ERROR").collect(),
            kinds,
            statuses,
            starts: column("start_time")?.as_primitive_opt::<TimestampNanosecondType>()?.values(),
            durations: column("duration_ns")?.as_primitive_opt::<Int64Type>()?,
            resource_keys: resource.keys().values(),
            resources: resources
                .iter()
                .map(|bytes| facts.resources.get(bytes.unwrap_or_default(), ResourceFacts::of))
                .collect(),
            shape_keys: shape.keys().values(),
            shapes: shapes
                .iter()
                .map(|bytes| facts.shapes.get(bytes.unwrap_or_default(), |shape| ShapeFacts::of(shape, layout)))
                .collect(),
            strings,
            promoted,
            link_ends: links.value_offsets(),
            link_traces: link.column_by_name("trace_id")?.as_fixed_size_binary_opt()?,
            link_spans: link.column_by_name("span_id")?.as_fixed_size_binary_opt()?,
        })
    }

    #[inline]
    pub(super) fn trace(&self, row: usize) -> [u8; 16] {
        self.trace_ids.value(row).try_into().unwrap_or_default()
    }

    #[inline]
    pub(super) fn key(&self, row: usize) -> SpanKey {
        SpanKey { trace: self.trace(row), span: self.span_ids.value(row).try_into().unwrap_or_default() }
    }

    /// The trace and the parent; `None` for a root.
    #[inline]
    pub(super) fn parent_key(&self, row: usize) -> Option<SpanKey> {
        self.parents
            .is_valid(row)
            .then(|| SpanKey { trace: self.trace(row), span: self.parents.value(row).try_into().unwrap_or_default() })
    }

    /// The number of the interval that a span started in.
    #[inline]
    pub(super) fn bucket(&self, row: usize) -> i32 {
        i32::try_from(self.starts[row].div_euclid(BUCKET_NS)).expect("2^63 ns are fewer than 2^31 intervals of 10 s")
    }

    #[inline]
    pub(super) fn duration(&self, row: usize) -> Option<i64> {
        self.durations.is_valid(row).then(|| self.durations.value(row))
    }

    #[inline]
    pub(super) fn is_error(&self, row: usize) -> bool {
        self.errors[self.statuses.place(row)]
    }

    /// What its kind makes of a span, and whether messages carry its calls.
    #[inline]
    pub(super) fn role(&self, row: usize) -> (Role, bool) {
        self.roles[self.kinds.place(row)]
    }

    /// The place of a row's resource among [`Spans::resources`].
    #[inline]
    pub(super) fn resource_place(&self, row: usize) -> usize {
        self.resource_keys[row].unsigned_abs() as usize
    }

    pub(super) fn environment(&self, row: usize) -> Option<&str> {
        self.resources[self.resource_place(row)].environment.as_deref()
    }

    #[inline]
    fn shape(&self, row: usize) -> &ShapeFacts {
        &self.shapes[self.shape_keys[row].unsigned_abs() as usize]
    }

    /// What carried the call.
    #[inline]
    pub(super) fn connection(&self, row: usize) -> Connection {
        let (_, by_message) = self.role(row);
        if by_message { Connection::Messaging } else { self.shape(row).connection }
    }

    /// The name of whom a caller called, as far as it says: `peer.service`, else a database or
    /// broker as `postgresql/orders`, else the address.
    pub(super) fn peer<'b>(&self, row: usize, buffer: &'b mut String) -> Option<&'b str> {
        let shape = self.shape(row);
        let text = |text: Text| -> Option<&'a str> {
            let text = match text {
                Text::Slot(slot) => {
                    let (ends, strings) = self.strings?;
                    strings.value(ends[row].unsigned_abs() as usize + slot)
                }
                Text::Promoted(column) => self.promoted[column]?.value(row),
            };
            Some(text).filter(|text| !text.is_empty())
        };
        buffer.clear();
        if let Some(name) = shape.peers.iter().find_map(|place| text(*place)) {
            buffer.push_str(name);
        } else if let Some(system) = shape.system.and_then(text) {
            buffer.push_str(system);
            if let Some(part) = shape.part.and_then(text) {
                buffer.push('/');
                buffer.push_str(part);
            }
        } else {
            buffer.push_str(shape.address.and_then(text)?);
        }
        Some(buffer)
    }

    /// The spans that a consumer's links point at: where its messages came from.
    pub(super) fn links(&self, row: usize) -> impl Iterator<Item = SpanKey> + use<'a> {
        let (traces, spans) = (self.link_traces, self.link_spans);
        let ends = &self.link_ends[row..=row + 1];
        (ends[0].unsigned_abs() as usize..ends[1].unsigned_abs() as usize)
            .filter(move |item| traces.is_valid(*item) && spans.is_valid(*item))
            .map(move |item| SpanKey {
                trace: traces.value(item).try_into().unwrap_or_default(),
                span: spans.value(item).try_into().unwrap_or_default(),
            })
    }
}
