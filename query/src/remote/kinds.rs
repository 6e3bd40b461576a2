//! Which kinds attribute keys have in ClickHouse: they decide SQL types, here and there.
//!
//! ClickHouse keeps each distinct shape, resource and scope of a tenant in a table of its own, filled by views of its
//! writer (`attribute_shapes`), so the kinds of billions of rows are some hundred lines to read. Not here: types.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray as _, RecordBatch};
use datafusion::error::Result;
use model::attributes::{Kind, Kinds, shape_entries};
use model::context::Context;
use model::signal::Table;

use crate::source::{Container, ObservedKinds};

/// How long kinds are used without asking again. As long as rows wait to be inserted; a key that comes with another
/// kind is seen as late as its row.
pub(crate) const KINDS_FRESH: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    kinds: Kinds,
    /// Some row has the key twice: the last one counts here, and the first one there.
    repeated: bool,
}

/// The kinds of one tenant's keys.
#[derive(Debug, Default)]
pub(crate) struct RemoteKinds {
    seen: HashMap<(Table, Container), HashMap<String, Seen>>,
}

impl RemoteKinds {
    /// The kinds in rows of `attribute_shapes`: table, container, bytes.
    pub(crate) fn read(batches: &[RecordBatch]) -> Result<Self> {
        let mut kinds = Self::default();
        for batch in batches {
            let [tables, containers, shapes] = [0, 1, 2].map(|index| super::restore::binary(batch.column(index)));
            let (tables, containers, shapes) = (tables?, containers?, shapes?);
            let text = |array: &arrow::array::ArrayRef, row: usize| {
                String::from_utf8_lossy(array.as_binary::<i32>().value(row)).into_owned()
            };
            for row in 0..batch.num_rows() {
                let container = text(&containers, row);
                let container = Container::ALL.into_iter().find(|known| known.name() == container);
                let (Some(table), Some(container)) = (Table::from_name(&text(&tables, row)), container) else {
                    continue;
                };
                kinds.add(table, container, shapes.as_binary::<i32>().value(row));
            }
        }
        Ok(kinds)
    }

    fn add(&mut self, table: Table, container: Container, bytes: &[u8]) {
        let entries: Vec<(String, Kind)> = if container.is_context() {
            let Some(context) = Context::parse(bytes) else { return };
            context.attributes().map(|entry| (entry.key.to_owned(), Kind::of(&entry.parsed()))).collect()
        } else {
            shape_entries(bytes).into_iter().map(|entry| (entry.key, entry.kind)).collect()
        };
        let seen = self.seen.entry((table, container)).or_default();
        for (at, (key, kind)) in entries.iter().enumerate() {
            let repeated = entries[..at].iter().any(|(other, _)| other == key);
            let known = seen.entry(key.clone()).or_default();
            known.kinds = known.kinds.with(*kind);
            known.repeated |= repeated;
        }
    }

    fn get(&self, table: Table, container: Container, key: &str) -> Seen {
        self.seen.get(&(table, container)).and_then(|keys| keys.get(key)).copied().unwrap_or_default()
    }

    /// Whether some row has the key twice.
    pub(crate) fn is_repeated(&self, table: Table, container: Container, key: &str) -> bool {
        self.get(table, container, key).repeated
    }

    /// The kinds of the key's values; a key without one has none.
    pub(crate) fn with_values(&self, table: Table, container: Container, key: &str) -> Kinds {
        let nothing = Kinds::default().with(Kind::Absent).with(Kind::Empty);
        Kinds(self.get(table, container, key).kinds.0 & !nothing.0)
    }

    /// Whether some row has the key without a value.
    pub(crate) fn has_empty(&self, table: Table, container: Container, key: &str) -> bool {
        let kinds = self.get(table, container, key).kinds;
        kinds.contains(Kind::Absent) || kinds.contains(Kind::Empty)
    }
}

/// The same, as the engine's functions want them.
pub(crate) struct Shared(pub(crate) Arc<RemoteKinds>);

impl ObservedKinds for Shared {
    fn kinds(&self, table: Table, container: Container, key: &str) -> Kinds {
        self.0.get(table, container, key).kinds
    }
}
