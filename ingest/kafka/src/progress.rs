//! Which messages are read, gathered and stored, partition by partition: a state machine without any I/O.
//!
//! ```text
//! offset  0 … durable … next … end
//!         └ stored ─┘└ gathered ┘└ to be read ┘
//! ```
//!
//! A group holds everything from `durable` to `next` of every partition. It is stored or dropped as a whole; what was
//! dropped is read again, and until the client has gone back to it nothing that comes is taken. Not here: where
//! positions are kept, and how a client goes back.

use std::collections::BTreeMap;

/// A partition: the number of its topic, and its own.
pub type Place = (usize, i32);

/// How far partitions are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    partitions: BTreeMap<Place, Partition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partition {
    /// Everything before is stored.
    durable: i64,
    /// Everything before is stored or gathered.
    next: i64,
    /// The client has to go back to `next` first.
    must_seek: bool,
}

impl Progress {
    /// A partition is ours, and read from an offset on.
    pub fn assign(&mut self, place: Place, start: i64) {
        self.partitions.insert(place, Partition { durable: start, next: start, must_seek: false });
    }

    /// A partition is somebody else's. Nothing of it may be gathered.
    pub fn revoke(&mut self, place: Place) {
        self.partitions.remove(&place);
    }

    /// Whether a message that came is to be gathered. If not, it is, or will be, elsewhere.
    pub fn take(&mut self, place: Place, offset: i64) -> bool {
        match self.partitions.get_mut(&place) {
            Some(partition) if !partition.must_seek && offset >= partition.next => {
                partition.next = offset.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// Partitions of which something is gathered, and what is to be read next once that is stored.
    pub fn gathered(&self) -> impl Iterator<Item = (Place, i64)> {
        let some = self.partitions.iter().filter(|(_, partition)| partition.next > partition.durable);
        some.map(|(place, partition)| (*place, partition.next))
    }

    /// What was gathered is stored.
    pub fn stored(&mut self) {
        self.partitions.values_mut().for_each(|partition| partition.durable = partition.next);
    }

    /// What was gathered is gone, and is to be read again.
    pub fn dropped(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.must_seek |= partition.next > partition.durable;
            partition.next = partition.durable;
        }
    }

    /// A partition goes on elsewhere. Nothing of it may be gathered.
    pub fn move_to(&mut self, place: Place, offset: i64) {
        if let Some(partition) = self.partitions.get_mut(&place) {
            *partition = Partition { durable: offset, next: offset, must_seek: true };
        }
    }

    /// Partitions in which the client has to go somewhere first, and where.
    #[must_use]
    pub fn to_seek(&self) -> Vec<(Place, i64)> {
        let all = self.partitions.iter().filter(|(_, partition)| partition.must_seek);
        all.map(|(place, partition)| (*place, partition.next)).collect()
    }

    /// The client went where it had to.
    pub fn sought(&mut self, place: Place) {
        if let Some(partition) = self.partitions.get_mut(&place) {
            partition.must_seek = false;
        }
    }

    /// Up to where a partition is stored; `None` if it is not ours.
    #[must_use]
    pub fn durable(&self, place: Place) -> Option<i64> {
        self.partitions.get(&place).map(|partition| partition.durable)
    }

    /// Our partitions.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.partitions.keys().copied()
    }

    /// How many are ours.
    #[must_use]
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether none is ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }
}

/// Where a partition is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The offset; `None` for the first one that there is.
    pub offset: Option<i64>,
    /// Messages that Kafka deleted before anybody read them.
    pub lost: u64,
    /// The partition ends before what was read of it: it is another one of the same name, or has lost its end.
    pub restarted: bool,
}

/// Where a partition is read from, by what the store has of it, by what its group has committed, and by what there is:
/// the first offset, and the one after the last.
///
/// Whatever is before a committed offset is stored by some writer, and whatever is before the store's own by this one: the
/// later of both repeats least and leaves nothing out. A partition that is shorter than that was made anew, and all of
/// it is new.
#[must_use]
pub fn start(own: Option<i64>, committed: Option<i64>, range: Option<(i64, i64)>) -> Start {
    let known = own.max(committed);
    match (known, range) {
        (known, None) => Start { offset: known, ..Start::default() },
        (None, Some((low, _))) => Start { offset: Some(low), ..Start::default() },
        (Some(known), Some((low, high))) if known > high => {
            Start { offset: Some(low), restarted: true, ..Start::default() }
        }
        (Some(known), Some((low, _))) => {
            let lost = u64::try_from(low.saturating_sub(known)).unwrap_or(0);
            Start { offset: Some(known.max(low)), lost, restarted: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_later_of_what_is_stored_and_committed_is_where_reading_goes_on() {
        let at = |offset, lost, restarted| Start { offset, lost, restarted };
        for (own, committed, range, want) in [
            (None, None, None, at(None, 0, false)),
            (None, None, Some((0, 9)), at(Some(0), 0, false)),
            // Somebody who comes late finds what is left, and has lost nothing.
            (None, None, Some((5, 9)), at(Some(5), 0, false)),
            (Some(7), Some(3), Some((0, 9)), at(Some(7), 0, false)),
            (Some(3), Some(7), Some((0, 9)), at(Some(7), 0, false)),
            (Some(3), None, None, at(Some(3), 0, false)),
            (None, Some(9), Some((0, 9)), at(Some(9), 0, false)),
            (Some(2), Some(3), Some((5, 9)), at(Some(5), 2, false)),
            (Some(10), None, Some((0, 9)), at(Some(0), 0, true)),
            (Some(2), Some(10), Some((4, 9)), at(Some(4), 0, true)),
        ] {
            assert_eq!(start(own, committed, range), want, "{own:?} {committed:?} {range:?}");
        }
    }

    /// What may happen to a writer.
    #[derive(Clone, Debug)]
    enum Act {
        /// The client hands over what comes next in a partition, some of it repeated.
        Deliver { partition: i32, messages: i64, repeated: i64 },
        /// The group is stored.
        Store,
        /// The group is refused and dropped; the client goes back, or could not yet.
        Drop { seeks: bool },
        /// A partition goes to another writer, which reads on from what is committed, and comes back.
        Rebalance { partition: i32, stored_first: bool, elsewhere: i64 },
        /// The process dies and starts again with what is stored.
        Crash,
        /// Kafka is told how far it is.
        Commit,
    }

    fn act() -> impl Strategy<Value = Act> {
        let partition = 0..PARTITIONS;
        prop_oneof![
            4 => (partition.clone(), 1..5_i64, 0..3_i64)
                .prop_map(|(partition, messages, repeated)| Act::Deliver { partition, messages, repeated }),
            3 => Just(Act::Store),
            1 => any::<bool>().prop_map(|seeks| Act::Drop { seeks }),
            1 => (partition, any::<bool>(), 0..4_i64)
                .prop_map(|(partition, stored_first, elsewhere)| Act::Rebalance { partition, stored_first, elsewhere }),
            1 => Just(Act::Crash),
            1 => Just(Act::Commit),
        ]
    }

    const PARTITIONS: i32 = 3;

    /// A writer, what its store holds, and where its client is.
    #[derive(Default)]
    struct Simulated {
        progress: Progress,
        group: Vec<(Place, i64)>,
        /// How often each message is in some store.
        stored: BTreeMap<(Place, i64), u32>,
        /// The store's own positions: written with the rows.
        own: BTreeMap<Place, i64>,
        committed: BTreeMap<Place, i64>,
        /// What the client hands over next.
        cursor: BTreeMap<Place, i64>,
    }

    impl Simulated {
        fn assign(&mut self, place: Place) {
            let known = (self.own.get(&place).copied(), self.committed.get(&place).copied());
            let from = start(known.0, known.1, Some((0, i64::MAX))).offset.unwrap();
            self.progress.assign(place, from);
            self.cursor.insert(place, from);
        }

        fn deliver(&mut self, place: Place, offset: i64) {
            if self.progress.take(place, offset) {
                self.group.push((place, offset));
            }
        }

        fn store(&mut self) {
            for message in self.group.drain(..) {
                *self.stored.entry(message).or_default() += 1;
            }
            self.own.extend(self.progress.gathered());
            self.progress.stored();
        }

        fn drop_group(&mut self, seeks: bool) {
            self.group.clear();
            self.progress.dropped();
            if seeks {
                for (place, offset) in self.progress.to_seek() {
                    self.cursor.insert(place, offset);
                    self.progress.sought(place);
                }
            }
        }

        fn act(&mut self, act: &Act) {
            match *act {
                Act::Deliver { partition, messages, repeated } => {
                    let place = (0, partition);
                    let at = self.cursor[&place];
                    (at.saturating_sub(repeated).max(0)..at + messages).for_each(|offset| self.deliver(place, offset));
                    self.cursor.insert(place, at + messages);
                }
                Act::Store => self.store(),
                Act::Drop { seeks } => self.drop_group(seeks),
                Act::Rebalance { partition, stored_first, elsewhere } => {
                    let place = (0, partition);
                    if stored_first {
                        self.store()
                    } else {
                        self.drop_group(true)
                    }
                    let durable = self.progress.durable(place).unwrap();
                    self.progress.revoke(place);
                    assert!(!self.progress.take(place, durable));
                    // A revoked partition is committed, and so others go on where this one ended.
                    self.committed.insert(place, durable);
                    for offset in durable..durable + elsewhere {
                        *self.stored.entry((place, offset)).or_default() += 1;
                    }
                    self.committed.insert(place, durable + elsewhere);
                    self.assign(place);
                }
                Act::Crash => {
                    self.group.clear();
                    self.progress = Progress::default();
                    (0..PARTITIONS).for_each(|partition| self.assign((0, partition)));
                }
                Act::Commit => {
                    let places: Vec<Place> = self.progress.places().collect();
                    for place in places {
                        self.committed.insert(place, self.progress.durable(place).unwrap());
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_message_is_stored_once_whatever_happens(acts in prop::collection::vec(act(), 1..60)) {
            let mut simulated = Simulated::default();
            (0..PARTITIONS).for_each(|partition| simulated.assign((0, partition)));
            for act in &acts {
                simulated.act(act);
            }
            // In the end the client goes where it has to, and what it had is stored.
            simulated.drop_group(true);
            for partition in 0..PARTITIONS {
                simulated.act(&Act::Deliver { partition, messages: 1, repeated: 2 });
            }
            simulated.store();
            for partition in 0..PARTITIONS {
                let place = (0, partition);
                let end = simulated.progress.durable(place).unwrap();
                for offset in 0..end {
                    prop_assert_eq!(simulated.stored.get(&(place, offset)), Some(&1), "{} {}", partition, offset);
                }
                prop_assert_eq!(simulated.stored.range((place, end)..(place, i64::MAX)).count(), 0);
            }
        }
    }
}
