//! Which attribute keys occur with which kinds of values: what a query needs to type
//! `attributes['http.route']` before it opens a file.
//!
//! Kept per segment (in the manifest), per memtable, and as the union of both in a snapshot. Found
//! from shapes and contexts, of which there are few distinct ones, never from rows. Not here: the
//! values; and what SQL type a set of kinds becomes, which [`model::attributes::Kinds`] knows.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{Array, AsArray, BinaryArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type};
use model::attributes::{Kind, Kinds, shape_entries};
use model::context::Context;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Keys of one segment or memtable that are told apart. Past it keys are not recorded and
/// [`AttributeKinds::is_truncated`] is true: an instrumentation that writes ids into keys must not
/// make the manifest grow with every row.
pub const KEYS_MAX: usize = 10_000;

/// Distinct shapes and contexts that are remembered as seen. Past it they are parsed again, which
/// costs time and nothing else.
const SEEN_MAX: usize = 1 << 16;

/// Where attributes hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Container {
    /// The row itself: `attributes`.
    Attributes = 0,
    /// Its `resource`.
    Resource = 1,
    /// Its `scope`.
    Scope = 2,
    /// A span's `events`.
    Events = 3,
    /// A span's `links`.
    Links = 4,
    /// A data point's `exemplars`.
    Exemplars = 5,
}

impl Container {
    /// Every container.
    pub const ALL: [Self; 6] =
        [Self::Attributes, Self::Resource, Self::Scope, Self::Events, Self::Links, Self::Exemplars];

    /// The name of the column that holds it; stored in the manifest.
    #[must_use]
    pub const fn column(self) -> &'static str {
        match self {
            Self::Attributes => "attributes",
            Self::Resource => "resource",
            Self::Scope => "scope",
            Self::Events => "events",
            Self::Links => "links",
            Self::Exemplars => "exemplars",
        }
    }
}

/// Keys and the kinds they were seen with, per container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeKinds {
    containers: [BTreeMap<String, Kinds>; Container::ALL.len()],
    truncated: bool,
}

/// How kinds are stored: `{"keys": {"attributes": {"http.route": 4}}, "truncated": false}`.
#[derive(Serialize, Deserialize)]
struct Stored {
    keys: BTreeMap<String, BTreeMap<String, u16>>,
    truncated: bool,
}

impl AttributeKinds {
    /// The kinds a key was seen with; `None` when it was not seen (or not recorded, when
    /// [truncated](Self::is_truncated)).
    #[must_use]
    pub fn get(&self, container: Container, key: &str) -> Option<Kinds> {
        self.containers[container as usize].get(key).copied()
    }

    /// The keys of a container in order.
    pub fn iter(&self, container: Container) -> impl Iterator<Item = (&str, Kinds)> {
        self.containers[container as usize].iter().map(|(key, kinds)| (key.as_str(), *kinds))
    }

    /// How many keys are known in all containers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.containers.iter().map(BTreeMap::len).sum()
    }

    /// Whether no key is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there were more than [`KEYS_MAX`] keys, so that a missing key proves nothing.
    #[must_use]
    pub const fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Whether this knows everything that `other` does.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.truncated || !other.truncated)
            && self.containers.iter().zip(&other.containers).all(|(mine, others)| {
                others.iter().all(|(key, kinds)| mine.get(key).is_some_and(|known| known.union(*kinds) == *known))
            })
    }

    /// Adds everything that `other` knows; returns whether anything was new.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut changed = other.truncated && !self.truncated;
        self.truncated |= other.truncated;
        for (into, from) in self.containers.iter_mut().zip(&other.containers) {
            for (key, kinds) in from {
                match into.get_mut(key) {
                    Some(known) => {
                        changed |= known.union(*kinds) != *known;
                        *known = known.union(*kinds);
                    }
                    None => {
                        into.insert(key.clone(), *kinds);
                        changed = true;
                    }
                }
            }
        }
        changed
    }

    /// Notes a key with a kind; returns whether that was new.
    fn add(&mut self, container: Container, key: &str, kind: Kind) -> bool {
        if let Some(known) = self.containers[container as usize].get_mut(key) {
            let new = !known.contains(kind);
            *known = known.with(kind);
            return new;
        }
        if self.len() >= KEYS_MAX {
            return !std::mem::replace(&mut self.truncated, true);
        }
        self.containers[container as usize].insert(key.to_owned(), Kinds::default().with(kind));
        true
    }

    /// The stored form.
    pub(crate) fn to_json(&self) -> String {
        let keys = Container::ALL
            .into_iter()
            .filter(|container| !self.containers[*container as usize].is_empty())
            .map(|container| {
                let keys = self.iter(container).map(|(key, kinds)| (key.to_owned(), kinds.0)).collect();
                (container.column().to_owned(), keys)
            })
            .collect();
        serde_json::to_string(&Stored { keys, truncated: self.truncated }).expect("maps with text keys are JSON")
    }

    /// Reads the stored form; a container that this release does not know is left out.
    pub(crate) fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        let mut stored: Stored = serde_json::from_str(json)?;
        let mut kinds = Self { truncated: stored.truncated, ..Self::default() };
        for container in Container::ALL {
            if let Some(keys) = stored.keys.remove(container.column()) {
                kinds.containers[container as usize] = keys.into_iter().map(|(key, bits)| (key, Kinds(bits))).collect();
            }
        }
        Ok(kinds)
    }
}

/// Collects kinds from batches, looking into each distinct shape and context once.
#[derive(Debug, Default)]
pub(crate) struct KindsCollector {
    kinds: AttributeKinds,
    seen: HashSet<u64>,
}

impl KindsCollector {
    /// What was found so far.
    pub(crate) const fn kinds(&self) -> &AttributeKinds {
        &self.kinds
    }

    /// What was found.
    #[cfg(test)]
    pub(crate) fn into_kinds(self) -> AttributeKinds {
        self.kinds
    }

    /// Looks at the rows of a batch; returns whether anything was new.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> bool {
        let mut changed = false;
        for container in Container::ALL {
            let Some(column) = batch.column_by_name(container.column()) else { continue };
            changed |= match column.data_type() {
                DataType::Dictionary(_, _) => self.add_values(container, column, false),
                DataType::Struct(_) => self.add_shapes(container, column),
                DataType::List(_) => {
                    let items = column.as_list::<i32>().values();
                    let attributes = items.as_struct_opt().and_then(|item| item.column_by_name("attributes"));
                    attributes.is_some_and(|attributes| self.add_shapes(container, attributes))
                }
                _ => false,
            };
        }
        changed
    }

    fn add_shapes(&mut self, container: Container, attributes: &dyn Array) -> bool {
        attributes.as_struct_opt().is_some_and(|fields| self.add_values(container, fields.column(0), true))
    }

    fn add_values(&mut self, container: Container, column: &dyn Array, shapes: bool) -> bool {
        let Some(dictionary) = column.as_dictionary_opt::<Int32Type>() else { return false };
        let Some(values) = dictionary.values().as_any().downcast_ref::<BinaryArray>() else { return false };
        let mut changed = false;
        for value in values.iter().flatten() {
            if self.seen.len() >= SEEN_MAX {
                self.seen.clear();
            }
            if !self.seen.insert(xxh3_64_with_seed(value, container as u64)) {
                continue;
            }
            if shapes {
                for entry in shape_entries(value) {
                    changed |= self.kinds.add(container, &entry.key, entry.kind);
                }
            } else if let Some(context) = Context::parse(value) {
                for entry in context.attributes() {
                    let kind = if entry.value.is_some() { Kind::of(&entry.parsed()) } else { Kind::Absent };
                    changed |= self.kinds.add(container, entry.key, kind);
                }
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random_batch;
    use model::signal::Table;

    #[test]
    fn kinds_of_every_container_are_found_and_stored() {
        let mut collector = KindsCollector::default();
        assert!(collector.add(&random_batch(Table::Spans, 400, 1)));
        assert!(!collector.add(&random_batch(Table::Spans, 400, 1)));
        collector.add(&random_batch(Table::MetricPoints, 400, 1));
        let kinds = collector.into_kinds();
        let every = [Kind::Absent, Kind::Empty, Kind::Bool, Kind::Int, Kind::Double, Kind::Bytes, Kind::String];
        for container in [Container::Attributes, Container::Events, Container::Links, Container::Exemplars] {
            let found = kinds.get(container, "key.0").unwrap();
            assert!(every.iter().all(|kind| found.contains(*kind)), "{container:?} {found:?}");
        }
        let service = kinds.get(Container::Resource, "service.name").unwrap();
        assert_eq!(service, Kinds::default().with(Kind::String));
        assert_eq!(kinds.get(Container::Attributes, "nothing"), None);
        assert_eq!(AttributeKinds::from_json(&kinds.to_json()).unwrap(), kinds);

        let mut union = AttributeKinds::default();
        assert!(union.merge(&kinds));
        assert!(!union.merge(&kinds));
        assert_eq!(union, kinds);
    }

    #[test]
    fn too_many_keys_are_cut_and_said_to_be() {
        let mut kinds = AttributeKinds::default();
        for key in 0..=KEYS_MAX {
            assert!(kinds.add(Container::Attributes, &key.to_string(), Kind::Int));
            assert_eq!(kinds.is_truncated(), key == KEYS_MAX);
        }
        assert!(!kinds.add(Container::Attributes, "one more", Kind::Int));
        assert!(kinds.add(Container::Attributes, "0", Kind::String));
        assert_eq!(kinds.len(), KEYS_MAX);
        assert!(AttributeKinds::from_json(&kinds.to_json()).unwrap().is_truncated());
    }
}
