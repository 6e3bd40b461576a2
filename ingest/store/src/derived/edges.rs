//! `service_edges`: calls between services, found by joining callees with whom they were called by.
//!
//! A callee is a `SERVER` or `CONSUMER` span. It was called by its parent, and a consumer also by
//! the spans its links point at (messaging conventions); each of these that belongs to another
//! service is one call. A `CLIENT` or `PRODUCER` span that names its peer and that no callee refers
//! to is a call to an inferred node: a database, a broker, a service that sends no spans.
//!
//! The join is incremental. [`EdgeIndex`] holds the spans seen in the last while, and each new batch
//! is joined with them and with itself, so the halves of a call may come in any order and in any
//! batches. A call to an inferred node is counted when its caller comes and taken back when a callee
//! turns up after all: so the sum of everything emitted equals the join of everything seen, at any
//! time, and the index can be made again from stored spans ([`EdgeIndex::add`], its output thrown
//! away). Halves that come further apart than the index reaches are not joined.
//!
//! When spans of different services share one id, which the protocol forbids, one of them stands
//! for it. Not here: files, clocks, and when generations turn.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use hashbrown::HashTable;
use model::derived::{DerivedTable, schema};
use model::durations::bucket;

use super::columns::{Cells, Exemplar, exemplars, histograms, key_columns, numbers};
use super::names::{NO_NAME, Names};
use super::spans::{Connection, Role, SpanKey, Spans};

/// Different calls under one span id that are told apart. More than one is a fault of the sender
/// already; without a limit a flood of them would make each look-up a walk over all.
const VARIANTS_MAX: usize = 8;

/// Spans that are looked up together: their look-ups do not wait for each other, so that the memory's answers to them
/// overlap, and what they brought is still in the core's own cache when it is used.
const STRIDE: usize = 128;

/// A place in a table of places, and the byte that the table has for it.
const PLACE_BYTES: usize = size_of::<u32>() + 1;

/// The end of a chain.
const END: u32 = u32::MAX;

/// One call, as it is counted.
#[derive(Clone, Copy, Debug)]
struct Call<'a> {
    bucket: i32,
    client: &'a str,
    server: &'a str,
    connection: Connection,
    /// The server sends no spans; its name is what the caller said of it.
    inferred: bool,
    environment: Option<&'a str>,
    error: bool,
    client_error: bool,
    duration: Option<i64>,
    client_duration: Option<i64>,
    trace: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EdgeKey {
    bucket: i32,
    client: u32,
    server: u32,
    environment: u32,
    connection: Connection,
    inferred: bool,
}

impl EdgeKey {
    fn hash(&self) -> u64 {
        let pairs = [
            (u64::from(self.bucket.cast_unsigned()) << 32) | u64::from(self.client),
            (u64::from(self.server) << 32) | u64::from(self.environment),
            (u64::from(self.inferred) << 8) | self.connection as u64,
        ];
        super::mix(0, &pairs)
    }
}

#[derive(Debug)]
struct Row {
    key: EdgeKey,
    count: i64,
    errors: i64,
    client_errors: i64,
    sum: i64,
    client_sum: i64,
    cells: Cells,
    client_cells: Cells,
    slowest: Exemplar,
    failed: Exemplar,
}

/// Partial rows of `service_edges`.
#[derive(Debug, Default)]
pub(super) struct ServiceEdges {
    names: Names,
    rows: Vec<Row>,
    lookup: HashTable<u32>,
}

impl ServiceEdges {
    /// Counts a call so many times; a negative number takes it back.
    fn add(&mut self, call: &Call<'_>, times: i64) {
        let names = self.names_of(call);
        self.add_named(call, names, times);
    }

    /// The numbers of a call's client, server and environment.
    fn names_of(&mut self, call: &Call<'_>) -> [u32; 3] {
        [self.names.number(call.client), self.names.number(call.server), self.names.number_of(call.environment)]
    }

    /// As [`ServiceEdges::add`], when the numbers are known.
    fn add_named(&mut self, call: &Call<'_>, [client, server, environment]: [u32; 3], times: i64) {
        let key = EdgeKey {
            bucket: call.bucket,
            client,
            server,
            environment,
            connection: call.connection,
            inferred: call.inferred,
        };
        let into = self.row(key);
        into.count += times;
        into.errors += times * i64::from(call.error);
        into.client_errors += times * i64::from(call.client_error);
        if let Some(nanos) = call.duration {
            into.sum = into.sum.wrapping_add(nanos.wrapping_mul(times));
            into.cells.add(bucket(nanos), times);
            if times > 0 {
                into.slowest.offer(nanos, || call.trace);
                if call.error {
                    into.failed.offer(nanos, || call.trace);
                }
            }
        }
        if let Some(nanos) = call.client_duration {
            into.client_sum = into.client_sum.wrapping_add(nanos.wrapping_mul(times));
            into.client_cells.add(bucket(nanos), times);
        }
    }

    fn row(&mut self, key: EdgeKey) -> &mut Row {
        let hash = key.hash();
        let rows = &self.rows;
        let found = self.lookup.find(hash, |place| rows[*place as usize].key == key).copied();
        let place = found.unwrap_or_else(|| {
            let place = u32::try_from(self.rows.len()).expect("a memtable has fewer rows than 2^32");
            self.rows.push(Row {
                key,
                count: 0,
                errors: 0,
                client_errors: 0,
                sum: 0,
                client_sum: 0,
                cells: Cells::default(),
                client_cells: Cells::default(),
                slowest: Exemplar::default(),
                failed: Exemplar::default(),
            });
            let rows = &self.rows;
            self.lookup.insert_unique(hash, place, |place| rows[*place as usize].key.hash());
            place
        });
        &mut self.rows[place as usize]
    }

    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows, in the schema of `service_edges`.
    pub(super) fn batch(&self) -> RecordBatch {
        let rows = &self.rows;
        let text = |of: fn(&EdgeKey) -> u32| self.names.column(rows.iter().map(|row| of(&row.key)));
        let mut connections = Names::default();
        let of_connection = Connection::ALL.map(|connection| connections.number(connection.name()));
        let (resolution, time) = key_columns(rows.iter().map(|row| row.key.bucket));
        let (buckets, counts) = histograms(rows.iter().map(|row| &row.cells));
        let (client_buckets, client_counts) = histograms(rows.iter().map(|row| &row.client_cells));
        let (max, slowest) = exemplars(rows.iter().map(|row| &row.slowest));
        let (error_max, failed) = exemplars(rows.iter().map(|row| &row.failed));
        let columns: Vec<ArrayRef> = vec![
            resolution,
            text(|key| key.client),
            text(|key| key.server),
            connections.column(rows.iter().map(|row| of_connection[row.key.connection as usize])),
            Arc::new(rows.iter().map(|row| Some(row.key.inferred)).collect::<BooleanArray>()),
            text(|key| key.environment),
            time,
            numbers(rows.iter().map(|row| row.count)),
            numbers(rows.iter().map(|row| row.errors)),
            numbers(rows.iter().map(|row| row.client_errors)),
            numbers(rows.iter().map(|row| row.sum)),
            numbers(rows.iter().map(|row| row.client_sum)),
            buckets,
            counts,
            client_buckets,
            client_counts,
            max,
            slowest,
            error_max,
            failed,
        ];
        RecordBatch::try_new(schema(DerivedTable::ServiceEdges), columns).expect("the columns are those of the schema")
    }
}

/// A span that may have called somebody.
#[derive(Clone, Copy, Debug)]
struct Caller {
    key: SpanKey,
    service: u32,
    /// What a `CLIENT` or `PRODUCER` says of the call: the first of a chain in [`Generation::calls`].
    calls: u32,
}

/// What a `CLIENT` or `PRODUCER` says of a call. Spans sent twice are one of these.
#[derive(Clone, Copy, Debug)]
struct CallerSide {
    duration: i64,
    bucket: i32,
    peer: u32,
    environment: u32,
    connection: Connection,
    error: bool,
    timed: bool,
    /// A callee refers to it.
    called: bool,
    /// How many times it was sent, and how many of them are counted as calls to an inferred node.
    copies: u32,
    counted: u32,
    /// The next one of the chain.
    next: u32,
}

impl CallerSide {
    fn is_copy_of(&self, other: &Self) -> bool {
        (self.bucket, self.timed, self.duration, self.error, self.peer, self.environment, self.connection)
            == (other.bucket, other.timed, other.duration, other.error, other.peer, other.environment, other.connection)
    }

    fn duration(&self) -> Option<i64> {
        self.timed.then_some(self.duration)
    }
}

/// The callees that wait for one span.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: SpanKey,
    /// The first of a chain in [`Generation::callees`].
    first: u32,
}

/// A callee whose caller has not come.
#[derive(Clone, Copy, Debug)]
struct Callee {
    trace: [u8; 16],
    duration: i64,
    bucket: i32,
    service: u32,
    environment: u32,
    connection: Connection,
    error: bool,
    timed: bool,
    next: u32,
}

/// What came in one stretch of time.
#[derive(Debug, Default)]
struct Generation {
    names: Names,
    /// Places in `came`. A span is looked up by nearly every span, most often in vain, which reads nothing but this
    /// table: so it holds no more than places, and what they stand for grows in the order it came in.
    callers: HashTable<u32>,
    came: Vec<Caller>,
    calls: Vec<CallerSide>,
    /// Places in `awaited`, of those that have not come.
    waiting: HashTable<u32>,
    awaited: Vec<Waiting>,
    callees: Vec<Callee>,
}

impl Generation {
    /// The memory of what is in it. What is allocated is at most about twice that once it has filled up, since tables
    /// and lists grow by doubling.
    fn bytes(&self) -> usize {
        self.came.len() * (size_of::<Caller>() + PLACE_BYTES)
            + self.awaited.len() * (size_of::<Waiting>() + PLACE_BYTES)
            + self.calls.len() * size_of::<CallerSide>()
            + self.callees.len() * size_of::<Callee>()
            + self.names.bytes()
    }

    /// The memory it holds on to, empty or not, names left aside.
    fn allocated_bytes(&self) -> usize {
        self.callers.allocation_size()
            + self.waiting.allocation_size()
            + self.came.capacity() * size_of::<Caller>()
            + self.awaited.capacity() * size_of::<Waiting>()
            + self.calls.capacity() * size_of::<CallerSide>()
            + self.callees.capacity() * size_of::<Callee>()
    }

    /// Empties it and keeps its memory.
    fn clear(&mut self) {
        let Self { names, callers, came, calls, waiting, awaited, callees } = self;
        *names = Names::default();
        callers.clear();
        came.clear();
        calls.clear();
        waiting.clear();
        awaited.clear();
        callees.clear();
    }

    fn is_empty(&self) -> bool {
        self.callers.is_empty() && self.waiting.is_empty()
    }

    /// The caller with an id.
    fn find(&self, hash: u64, key: &SpanKey) -> Option<&Caller> {
        let place = self.callers.find(hash, |place| self.came[*place as usize].key == *key)?;
        Some(&self.came[*place as usize])
    }

    /// Whether callees wait for a span.
    fn awaits(&self, hash: u64, key: &SpanKey) -> bool {
        self.waiting.find(hash, |place| self.awaited[*place as usize].key == *key).is_some()
    }

    /// No longer waits for a span; the first of those who did.
    fn stop_waiting(&mut self, hash: u64, key: &SpanKey) -> Option<u32> {
        let awaited = &self.awaited;
        let entry = self.waiting.find_entry(hash, |place| awaited[*place as usize].key == *key).ok()?;
        let (place, _) = entry.remove();
        Some(awaited[place as usize].first)
    }

    /// Those who wait for a span.
    fn waiting_for(&self, place: u32) -> impl Iterator<Item = &Callee> {
        chain(&self.callees, self.awaited[place as usize].first)
    }

    /// Marks every caller's side of a span as called and takes back what was counted of it; the
    /// first side, for its duration.
    fn call(&mut self, caller: Caller, edges: &mut ServiceEdges) -> Option<CallerSide> {
        let mut next = caller.calls;
        while next != END {
            let side = &mut self.calls[next as usize];
            next = side.next;
            side.called = true;
            let counted = std::mem::take(&mut side.counted);
            if counted > 0 {
                let side = *side;
                edges.add(&inferred(&self.names, &caller, &side), -i64::from(counted));
            }
        }
        self.calls.get(caller.calls as usize).copied()
    }
}

/// The call of a caller that names its peer and that nobody answers for.
fn inferred<'a>(names: &'a Names, caller: &Caller, side: &CallerSide) -> Call<'a> {
    Call {
        bucket: side.bucket,
        client: names.text(caller.service).unwrap_or_default(),
        server: names.text(side.peer).unwrap_or_default(),
        connection: side.connection,
        inferred: true,
        environment: names.text(side.environment),
        error: side.error,
        client_error: side.error,
        duration: side.duration(),
        client_duration: side.duration(),
        trace: caller.key.trace,
    }
}

/// A callee, its texts at hand.
#[derive(Clone, Copy)]
struct Called<'a> {
    service: &'a str,
    environment: Option<&'a str>,
    bucket: i32,
    connection: Connection,
    error: bool,
    duration: Option<i64>,
    trace: [u8; 16],
}

impl<'a> Called<'a> {
    /// The call by a span of another service; `None` by one of its own.
    fn by(&self, client: &'a str, side: Option<&CallerSide>) -> Option<Call<'a>> {
        (client != self.service).then(|| Call {
            bucket: self.bucket,
            client,
            server: self.service,
            connection: match side {
                Some(side) if self.connection == Connection::Other => side.connection,
                _ => self.connection,
            },
            inferred: false,
            environment: self.environment,
            error: self.error,
            client_error: side.is_some_and(|side| side.error),
            duration: self.duration,
            client_duration: side.and_then(CallerSide::duration),
            trace: self.trace,
        })
    }
}

/// What is known of a span before its batch is added.
#[derive(Clone, Copy, Debug)]
struct Known {
    hash: u64,
    /// Callees wait for it, in the younger and in the older generation.
    awaited: bool,
    awaited_before: bool,
    /// The older generation knows it.
    came_before: bool,
}

/// The spans that calls may still be found with: those of this generation and of the one before.
#[derive(Debug)]
pub(super) struct EdgeIndex {
    /// Makes collisions of ids unforeseeable.
    seed: u64,
    young: Generation,
    old: Generation,
}

impl EdgeIndex {
    /// An empty index; the seed should differ from process to process.
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, young: Generation::default(), old: Generation::default() }
    }

    /// Forgets the older generation and begins a new one; returns how many callees were forgotten
    /// that still waited for their caller.
    pub(super) fn turn(&mut self) -> u64 {
        self.turn_keeping(0)
    }

    /// As [`EdgeIndex::turn`]. The new generation takes over up to so many bytes of memory: an index that is full will
    /// fill it again at once, and asking for memory page by page would cost more than the join.
    pub(super) fn turn_keeping(&mut self, bytes_max: usize) -> u64 {
        let mut forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        let unpaired = forgotten.waiting.iter().map(|place| forgotten.waiting_for(*place).count() as u64).sum();
        if forgotten.allocated_bytes() <= bytes_max {
            forgotten.clear();
            self.young = forgotten;
        }
        unpaired
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// The memory of the younger generation.
    pub(super) fn young_bytes(&self) -> usize {
        self.young.bytes()
    }

    /// The memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.young.bytes() + self.old.bytes()
    }

    /// Joins a batch with what is known and with itself, adds it to what is known, and puts what
    /// this changes about the calls into `edges`.
    pub(super) fn add(&mut self, spans: &Spans<'_>, edges: &mut ServiceEdges) {
        let services: Vec<u32> = spans.services.values().map(|text| self.young.names.number(text)).collect();
        let environments: Vec<u32> = spans
            .resources
            .iter()
            .map(|resource| self.young.names.number_of(resource.environment.as_deref()))
            .collect();
        let mut touched: Vec<(u32, u32)> = Vec::new();
        let mut buffer = String::new();
        let mut known: Vec<Known> = Vec::with_capacity(STRIDE);
        for row in 0..spans.rows {
            if row % STRIDE == 0 {
                let keys = (row..spans.rows).take(STRIDE).map(|row| spans.key(row));
                known.clear();
                known.extend(keys.map(|key| self.look_up(&key)));
            }
            let caller = Caller { key: spans.key(row), service: services[spans.services.place(row)], calls: END };
            let (role, _) = spans.role(row);
            let side = (role == Role::Caller).then(|| {
                let peer = spans.peer(row, &mut buffer);
                let duration = spans.duration(row);
                CallerSide {
                    duration: duration.unwrap_or_default(),
                    bucket: spans.bucket(row),
                    peer: self.young.names.number_of(peer),
                    environment: environments[spans.resource_place(row)],
                    connection: spans.connection(row),
                    error: spans.is_error(row),
                    timed: duration.is_some(),
                    called: false,
                    copies: 1,
                    counted: 0,
                    next: END,
                }
            });
            touched.extend(self.add_caller(caller, side, known[row % STRIDE], edges));
        }
        let mut parents: Vec<(u64, [Option<Caller>; 2])> = Vec::with_capacity(STRIDE);
        for row in 0..spans.rows {
            if row % STRIDE == 0 {
                let parent = |row| spans.parent_key(row).filter(|_| spans.role(row).0 == Role::Callee);
                let keys = (row..spans.rows).take(STRIDE).map(parent);
                parents.clear();
                parents.extend(keys.map(|key| key.map_or((0, [None; 2]), |key| self.callers_of(&key))));
            }
            let (Role::Callee, by_message) = spans.role(row) else { continue };
            let parent = spans.parent_key(row);
            let linked = by_message.then(|| spans.links(row)).into_iter().flatten();
            let linked = linked.filter(|link| Some(*link) != parent);
            let called = Called {
                service: spans.services.of(row),
                environment: spans.environment(row),
                bucket: spans.bucket(row),
                connection: spans.connection(row),
                error: spans.is_error(row),
                duration: spans.duration(row),
                trace: spans.trace(row),
            };
            if let Some(key) = parent {
                self.add_callee(key, parents[row % STRIDE], &called, edges);
            }
            for key in linked {
                let callers = self.callers_of(&key);
                self.add_callee(key, callers, &called, edges);
            }
        }
        // Now that the batch is joined with itself, whoever is still not called calls an inferred node.
        // Few different calls repeat: each is looked up by its texts once.
        let mut named: HashTable<([u32; 3], [u32; 3])> = HashTable::new();
        let hash_of = |[client, peer, environment]: &[u32; 3]| {
            super::mix(0, &[(u64::from(*client) << 32) | u64::from(*peer), u64::from(*environment)])
        };
        for (caller, touch) in touched {
            let caller = self.young.came[caller as usize];
            let side = &mut self.young.calls[touch as usize];
            let times = side.copies - side.counted;
            if side.called || times == 0 {
                continue;
            }
            side.counted = side.copies;
            let side = *side;
            let call = inferred(&self.young.names, &caller, &side);
            let key = [caller.service, side.peer, side.environment];
            let known = named.entry(hash_of(&key), |(other, _)| *other == key, |(other, _)| hash_of(other));
            let names = known.or_insert_with(|| (key, edges.names_of(&call))).get().1;
            edges.add_named(&call, names, i64::from(times));
        }
    }

    /// What is known of a span before its batch is added.
    fn look_up(&self, key: &SpanKey) -> Known {
        let hash = hash(self.seed, key);
        Known {
            hash,
            awaited: self.young.awaits(hash, key),
            awaited_before: self.old.awaits(hash, key),
            came_before: self.old.find(hash, key).is_some(),
        }
    }

    /// A span as it is known to the younger and the older generation. Callees change neither.
    fn callers_of(&self, key: &SpanKey) -> (u64, [Option<Caller>; 2]) {
        let hash = hash(self.seed, key);
        (hash, [&self.young, &self.old].map(|generation| generation.find(hash, key).copied()))
    }

    /// Adds a span as a caller; the places of the one that stands for its id and of its side, when that is to be looked
    /// at again.
    fn add_caller(
        &mut self,
        caller: Caller,
        side: Option<CallerSide>,
        known: Known,
        edges: &mut ServiceEdges,
    ) -> Option<(u32, u32)> {
        let Self { seed, young, old } = self;
        let (seed, key, hash) = (*seed, caller.key, known.hash);
        let mut called = false;
        // Callers only take away from those who wait, so who was not awaited is not now.
        if known.awaited {
            let first = young.stop_waiting(hash, &key);
            called |= answer(first, &caller, side.as_ref(), &young.names, young, edges);
        }
        if known.awaited_before {
            let first = old.stop_waiting(hash, &key);
            called |= answer(first, &caller, side.as_ref(), &young.names, old, edges);
        }
        let came_before = known.came_before;
        let Ok(place) = u32::try_from(young.came.len()) else { return None };
        let came = &mut young.came;
        let hash_of = |place: &u32| self::hash(seed, &came[*place as usize].key);
        let entry = young.callers.entry(hash, |place| came[*place as usize].key == key, hash_of);
        let stands = *entry.or_insert(place).get();
        if stands == place {
            came.push(caller);
        }
        let known = &mut came[stands as usize];
        let mut side = side?;
        let may_infer = side.peer != NO_NAME;
        // A span that was sent before may have been called before.
        side.called = called
            || young.calls.get(known.calls as usize).is_some_and(|known| known.called)
            || (came_before
                && old
                    .find(hash, &key)
                    .and_then(|caller| old.calls.get(caller.calls as usize))
                    .is_some_and(|known| known.called));
        let (mut variants, mut next) = (0, known.calls);
        while next != END {
            let other = &mut young.calls[next as usize];
            if other.is_copy_of(&side) {
                other.copies = other.copies.saturating_add(1);
                other.called |= side.called;
                return may_infer.then_some((stands, next));
            }
            variants += 1;
            next = other.next;
        }
        if variants >= VARIANTS_MAX {
            return None;
        }
        let place = u32::try_from(young.calls.len()).ok().filter(|place| *place != END)?;
        side.next = std::mem::replace(&mut known.calls, place);
        young.calls.push(side);
        may_infer.then_some((stands, place))
    }

    /// Adds one reference of a callee to its caller.
    fn add_callee(
        &mut self,
        key: SpanKey,
        (hash, callers): (u64, [Option<Caller>; 2]),
        called: &Called<'_>,
        edges: &mut ServiceEdges,
    ) {
        let mut known = false;
        for (generation, caller) in [&mut self.young, &mut self.old].into_iter().zip(callers) {
            let Some(caller) = caller else { continue };
            let side = generation.call(caller, edges);
            let client = generation.names.text(caller.service).unwrap_or_default();
            if !known && let Some(call) = called.by(client, side.as_ref()) {
                edges.add(&call, 1);
            }
            known = true;
        }
        if known {
            return;
        }
        let young = &mut self.young;
        let Ok(place) = u32::try_from(young.callees.len()) else { return };
        let seed = self.seed;
        let Ok(next) = u32::try_from(young.awaited.len()) else { return };
        let awaited = &mut young.awaited;
        let hash_of = |place: &u32| self::hash(seed, &awaited[*place as usize].key);
        let entry = young.waiting.entry(hash, |place| awaited[*place as usize].key == key, hash_of);
        let known = *entry.or_insert(next).get();
        if known == next {
            awaited.push(Waiting { key, first: END });
        }
        let waiting = &mut awaited[known as usize];
        young.callees.push(Callee {
            trace: called.trace,
            duration: called.duration.unwrap_or_default(),
            bucket: called.bucket,
            service: young.names.number(called.service),
            environment: young.names.number_of(called.environment),
            connection: called.connection,
            error: called.error,
            timed: called.duration.is_some(),
            next: std::mem::replace(&mut waiting.first, place),
        });
    }
}

/// Counts the calls of those who waited for a caller, of whom `first` is the first; whether anybody did.
fn answer(
    first: Option<u32>,
    caller: &Caller,
    side: Option<&CallerSide>,
    names: &Names,
    waited: &Generation,
    edges: &mut ServiceEdges,
) -> bool {
    let Some(first) = first else { return false };
    let client = names.text(caller.service).unwrap_or_default();
    for callee in chain(&waited.callees, first) {
        let called = Called {
            service: waited.names.text(callee.service).unwrap_or_default(),
            environment: waited.names.text(callee.environment),
            bucket: callee.bucket,
            connection: callee.connection,
            error: callee.error,
            duration: callee.timed.then_some(callee.duration),
            trace: callee.trace,
        };
        if let Some(call) = called.by(client, side) {
            edges.add(&call, 1);
        }
    }
    true
}

fn chain(callees: &[Callee], first: u32) -> impl Iterator<Item = &Callee> {
    std::iter::successors(callees.get(first as usize), |callee| callees.get(callee.next as usize))
}

#[inline]
fn hash(seed: u64, key: &SpanKey) -> u64 {
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    super::mix(seed, &[word(&key.trace), word(&key.trace[8..]), word(&key.span)])
}
