//! Integers per bucket of time, kept so that any window is a difference of two numbers.
//!
//! A [`Series`] holds how much was counted before each boundary of three rings: every 10 s for the last
//! hour, every 5 min for three days, every hour for the SLO's window. A window's count is what was
//! counted before its end minus what was before its start, whatever its length. An event that comes late
//! raises what was counted before every later boundary, and the revision is remembered.
//!
//! The far end of a window is as exact as the ring that reaches it: 10 s, 5 min, or an hour. Not here:
//! which rows count ([`crate::matcher`]), what a count means ([`crate::burn`]), disks
//! ([`crate::archive`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::openslo::{Method, Share, Slice};
use crate::sli::{Part, RATIO_SCALE};

/// The length of the smallest bucket, milliseconds. Buckets begin at multiples of it since the epoch.
pub const BUCKET_MS: i64 = 10_000;

/// The widths of the three rings, in buckets: 10 s, 5 min, 1 h.
pub const WIDTHS: [i64; 3] = [1, 30, 360];

/// How far the two finer rings reach: an hour and five minutes in buckets of 10 s, so that a window of an
/// hour is exact while the newest events are still coming; three days and an hour in 5 min.
const FINE_CAPACITY: usize = 391;
const MIDDLE_CAPACITY: usize = 877;

/// Slices in one window: a minute's over 30 days.
pub const SLICES_MAX: i64 = 50_000;

/// An event of a bucket that ended so long ago came late, and what it changes is a revision.
pub const LATE_AFTER_MS: i64 = 60_000;

/// An event further in the future than this is not counted: one wrong clock would push the present out.
pub const EARLY_AFTER_MS: i64 = 600_000;

/// Revisions that a series remembers between two writes to disk, merged by 5 min. More are merged into
/// the last one.
const REVISIONS_MAX: usize = 1_000;

/// A numerator and a total. Whether the numerator is good or bad events is the indicator's to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Good or bad events.
    pub numerator: u64,
    /// All events.
    pub total: u64,
}

impl Counts {
    /// Nothing.
    pub const ZERO: Self = Self { numerator: 0, total: 0 };

    /// Both. Differences wrap, so that a smaller minus a larger count, added again, is right.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { numerator: self.numerator.wrapping_add(other.numerator), total: self.total.wrapping_add(other.total) }
    }

    /// What is left without the other.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self { numerator: self.numerator.wrapping_sub(other.numerator), total: self.total.wrapping_sub(other.total) }
    }

    /// As good events of all events. A numerator above its total, as two metrics that do not fit give
    /// for a moment, is taken as the total.
    #[must_use]
    pub fn as_good(self, part: Part) -> Events {
        let numerator = self.numerator.min(self.total);
        let good = match part {
            Part::Good => numerator,
            Part::Bad => self.total - numerator,
        };
        Events { good, total: self.total }
    }
}

/// Good events of all events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Good ones.
    pub good: u64,
    /// All.
    pub total: u64,
}

impl Events {
    /// Bad ones.
    #[must_use]
    pub const fn bad(self) -> u64 {
        self.total - self.good
    }

    /// The share of good ones, for display; `None` when there are none at all (I10).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    pub fn ratio(self) -> Option<f64> {
        (self.total > 0).then(|| self.good as f64 / self.total as f64)
    }
}

/// The bucket that a time in nanoseconds is in.
#[must_use]
pub const fn bucket_of(nanos: i64) -> i64 {
    nanos.div_euclid(BUCKET_MS * 1_000_000)
}

/// What was counted before each of the last boundaries of one width.
#[derive(Clone, Debug)]
struct Ring {
    width: i64,
    capacity: usize,
    /// The boundary that `before` begins with, in widths.
    start: i64,
    before: VecDeque<Counts>,
}

impl Ring {
    const fn new(width: i64, capacity: usize) -> Self {
        Self { width, capacity, start: 0, before: VecDeque::new() }
    }

    /// The boundary after the last one that is held.
    fn end(&self) -> i64 {
        self.start + i64::try_from(self.before.len()).unwrap_or(0)
    }

    /// Makes room for a boundary, which may push old ones out. `total` is what was counted so far.
    fn reach(&mut self, boundary: i64, total: Counts) {
        let capacity = i64::try_from(self.capacity).unwrap_or(i64::MAX);
        if self.before.is_empty() || boundary >= self.end() + capacity {
            let full = !self.before.is_empty();
            self.before.clear();
            // After a pause longer than the ring, the whole ring is the pause.
            let entries = if full { self.capacity } else { 1 };
            self.start = boundary - i64::try_from(entries).unwrap_or(1) + 1;
            self.before.resize(entries, total);
        }
        while self.end() <= boundary {
            self.before.push_back(total);
            if self.before.len() > self.capacity {
                self.before.pop_front();
                self.start += 1;
            }
        }
        // Nothing was ever pushed out of a ring that is not full, so nothing was counted before it.
        while boundary < self.start && self.before.len() < self.capacity {
            let first = self.before[0];
            self.before.push_front(first);
            self.start -= 1;
        }
    }

    /// Raises what was counted before every boundary after this one.
    fn raise_after(&mut self, boundary: i64, by: Counts) {
        let from = (boundary + 1).max(self.start) - self.start;
        for counts in self.before.iter_mut().skip(usize::try_from(from).unwrap_or(0)) {
            *counts = counts.plus(by);
        }
    }

    /// What was counted before a boundary; `None` when it is out of reach.
    fn before(&self, boundary: i64, total: Counts) -> Option<Counts> {
        if boundary >= self.end() {
            return Some(total);
        }
        usize::try_from(boundary - self.start).ok().and_then(|index| self.before.get(index).copied())
    }

    /// What was counted between a boundary and the next; `None` when it is out of reach.
    fn within(&self, boundary: i64, total: Counts) -> Option<Counts> {
        Some(self.before(boundary + 1, total)?.minus(self.before(boundary, total)?))
    }
}

/// What late events changed in five minutes that were over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    /// When the five minutes began, in buckets.
    pub bucket: i64,
    /// What came late.
    pub added: Counts,
}

/// What became of counts that were offered to a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Counted in time.
    InTime,
    /// Counted, and remembered as a revision.
    Late,
    /// Not counted: older than the window.
    Expired,
    /// Not counted: too far in the future.
    Early,
}

/// A row of a series on disk: what was counted in one bucket of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The width in buckets.
    pub width: i64,
    /// The bucket, in widths since the epoch.
    pub index: i64,
    /// What was counted in it.
    pub counts: Counts,
}

/// The counts of one indicator.
#[derive(Clone, Debug)]
pub struct Series {
    rings: [Ring; 3],
    total: Counts,
    first: Option<i64>,
    last: Option<i64>,
    dirty: [BTreeSet<i64>; 3],
    revisions: BTreeMap<i64, Counts>,
}

impl Series {
    /// An empty series that reaches back so far.
    #[must_use]
    pub fn new(reach_ms: i64) -> Self {
        let hours = reach_ms / (BUCKET_MS * WIDTHS[2]) + 2;
        let hours = usize::try_from(hours).unwrap_or(2);
        let rings =
            [Ring::new(WIDTHS[0], FINE_CAPACITY), Ring::new(WIDTHS[1], MIDDLE_CAPACITY), Ring::new(WIDTHS[2], hours)];
        Self {
            rings,
            total: Counts::ZERO,
            first: None,
            last: None,
            dirty: Default::default(),
            revisions: BTreeMap::new(),
        }
    }

    /// Reaches back at least so far from now on: another SLO with a longer window shares the series.
    pub fn extend(&mut self, reach_ms: i64) {
        let hours = usize::try_from(reach_ms / (BUCKET_MS * WIDTHS[2]) + 2).unwrap_or(2);
        self.rings[2].capacity = self.rings[2].capacity.max(hours);
    }

    /// Counts what happened in a bucket.
    pub fn add(&mut self, bucket: i64, counts: Counts, now_bucket: i64) -> Added {
        if bucket > now_bucket + EARLY_AFTER_MS / BUCKET_MS {
            return Added::Early;
        }
        let hours = i64::try_from(self.rings[2].capacity).unwrap_or(i64::MAX);
        if bucket.div_euclid(WIDTHS[2]) <= now_bucket.div_euclid(WIDTHS[2]) - hours {
            return Added::Expired;
        }
        for (ring, dirty) in self.rings.iter_mut().zip(&mut self.dirty) {
            let boundary = bucket.div_euclid(ring.width);
            ring.reach(boundary, self.total);
            ring.raise_after(boundary, counts);
            dirty.insert(boundary);
        }
        self.total = self.total.plus(counts);
        self.first = Some(self.first.map_or(bucket, |first| first.min(bucket)));
        if counts.total > 0 {
            self.last = Some(self.last.map_or(bucket, |last| last.max(bucket)));
        }
        if bucket + 1 + LATE_AFTER_MS / BUCKET_MS > now_bucket {
            return Added::InTime;
        }
        self.revise(bucket.div_euclid(WIDTHS[1]), counts);
        Added::Late
    }

    fn revise(&mut self, index: i64, by: Counts) {
        let index = match self.revisions.last_key_value() {
            Some((last, _)) if self.revisions.len() >= REVISIONS_MAX && !self.revisions.contains_key(&index) => *last,
            _ => index,
        };
        let revision = self.revisions.entry(index).or_default();
        *revision = revision.plus(by);
    }

    /// What was counted before a bucket, ever. In constant time.
    #[must_use]
    pub fn before(&self, bucket: i64) -> Counts {
        for ring in &self.rings {
            if let Some(counts) = ring.before(bucket.div_euclid(ring.width), self.total) {
                return counts;
            }
        }
        self.rings[2].before.front().copied().unwrap_or_default()
    }

    /// What was counted from a bucket up to, and without, another. In constant time.
    #[must_use]
    pub fn between(&self, from: i64, to: i64) -> Counts {
        if from >= to { Counts::ZERO } else { self.before(to).minus(self.before(from)) }
    }

    /// The first bucket that was ever counted in.
    #[must_use]
    pub const fn first(&self) -> Option<i64> {
        self.first
    }

    /// The last bucket that something happened in.
    #[must_use]
    pub const fn last(&self) -> Option<i64> {
        self.last
    }

    /// Replaces whole hours by what a recount of stored telemetry found in their buckets. `from` and `to`
    /// are hours since the epoch; counts of buckets outside them are left out. What changes before the
    /// bucket `known_until` was known otherwise, and is a revision.
    pub fn replace(&mut self, from: i64, to: i64, found: &BTreeMap<i64, Counts>, known_until: i64) {
        let (first, end) = (from * WIDTHS[2], to * WIDTHS[2]);
        let Some(newest) = found.range(first..end).next_back().map(|(bucket, _)| *bucket).or(self.last) else { return };
        for ring in &mut self.rings {
            ring.reach(newest.div_euclid(ring.width), self.total);
            // Room for what was counted before this series began.
            ring.reach(first.div_euclid(ring.width), self.total);
        }
        let mut revised: Vec<(i64, Counts)> = Vec::new();
        let (oldest, total) = (self.rings[2].start * WIDTHS[2], self.total);
        let mut change = Counts::ZERO;
        for (level, ring) in self.rings.iter_mut().enumerate().rev() {
            let mut sums: BTreeMap<i64, Counts> = BTreeMap::new();
            for (bucket, counts) in found.range(first.max(oldest)..end) {
                let sum = sums.entry(bucket.div_euclid(ring.width)).or_default();
                *sum = sum.plus(*counts);
            }
            let range = (first / ring.width).max(ring.start)..(end / ring.width).min(ring.end());
            let mut changes: Vec<(i64, Counts)> = Vec::new();
            let mut known = Counts::ZERO;
            for index in range {
                let old = ring.within(index, total).unwrap_or_default();
                let by = sums.get(&index).copied().unwrap_or_default().minus(old);
                if by != Counts::ZERO {
                    changes.push((index, by));
                    known = known.plus(by);
                }
            }
            if level == 2 {
                change = known;
            }
            // What changed before the ring's reach was counted before all of it.
            ring.raise_after(i64::MIN / 2, change.minus(known));
            for (index, by) in changes {
                ring.raise_after(index, by);
                self.dirty[level].insert(index);
                if level == 1 && (index + 1) * WIDTHS[1] <= known_until {
                    revised.push((index, by));
                }
            }
        }
        self.total = self.total.plus(change);
        for (index, by) in revised {
            self.revise(index, by);
        }
        for (bucket, _) in found.range(first..end).filter(|(_, counts)| counts.total > 0) {
            self.first = Some(self.first.map_or(*bucket, |first| first.min(*bucket)));
            self.last = Some(self.last.map_or(*bucket, |last| last.max(*bucket)));
        }
    }

    /// The rows that changed since the last call, and the revisions. Rows out of reach are left out.
    pub fn drain(&mut self) -> (Vec<Row>, Vec<Revision>) {
        let mut rows = Vec::new();
        for (ring, dirty) in self.rings.iter().zip(&mut self.dirty) {
            for index in std::mem::take(dirty) {
                if let Some(counts) = ring.within(index, self.total) {
                    rows.push(Row { width: ring.width, index, counts });
                }
            }
        }
        let revisions = std::mem::take(&mut self.revisions);
        let revisions =
            revisions.into_iter().map(|(index, added)| Revision { bucket: index * WIDTHS[1], added }).collect();
        (rows, revisions)
    }

    /// Marks rows as changed again: they could not be written.
    pub fn mark(&mut self, rows: &[Row]) {
        for row in rows {
            if let Some(level) = WIDTHS.iter().position(|width| *width == row.width) {
                self.dirty[level].insert(row.index);
            }
        }
    }

    /// A series from its rows on disk, in any order.
    #[must_use]
    pub fn restore(reach_ms: i64, rows: &[Row]) -> Self {
        let mut series = Self::new(reach_ms);
        let hours = rows.iter().filter(|row| row.width == WIDTHS[2]);
        series.total = hours.fold(Counts::ZERO, |sum, row| sum.plus(row.counts));
        for (level, ring) in series.rings.iter_mut().enumerate() {
            let mut of_ring: BTreeMap<i64, Counts> = BTreeMap::new();
            for row in rows.iter().filter(|row| row.width == ring.width) {
                of_ring.insert(row.index, row.counts);
            }
            let (Some((oldest, _)), Some((newest, _))) = (of_ring.first_key_value(), of_ring.last_key_value()) else {
                continue;
            };
            // Backwards from the newest: before each boundary was what was counted in all, without what came after.
            let mut before = series.total;
            for index in (*oldest..=*newest).rev().take(ring.capacity) {
                before = before.minus(of_ring.get(&index).copied().unwrap_or_default());
                ring.before.push_front(before);
                ring.start = index;
            }
            if level == 0 {
                series.last = of_ring.iter().rev().find(|(_, counts)| counts.total > 0).map(|(index, _)| *index);
            }
            if level == 2 {
                series.first = Some(*oldest * WIDTHS[2]);
                // Rows of the 10 s ring are kept for a while only; the hour is the next best.
                let hour = of_ring.iter().rev().find(|(_, counts)| counts.total > 0).map(|(index, _)| *index);
                series.last = series.last.or(hour.map(|hour| hour * WIDTHS[2]));
            }
        }
        series
    }
}

/// The counts of one indicator by slice: of each slice what happened, and of all before each slice how
/// many were good.
#[derive(Clone, Debug)]
pub struct Slices {
    part: Part,
    slice: Slice,
    method: Method,
    ring: Ring,
    events: BTreeMap<i64, Counts>,
    total: Counts,
    dirty: BTreeSet<i64>,
}

impl Slices {
    /// No slices, of a window so long.
    #[must_use]
    pub fn new(part: Part, slice: Slice, method: Method, reach_ms: i64) -> Self {
        let width = (slice.width_ms / BUCKET_MS).max(1);
        let capacity = usize::try_from(reach_ms / slice.width_ms + 2).unwrap_or(2);
        Self {
            part,
            slice,
            method,
            ring: Ring::new(width, capacity),
            events: BTreeMap::new(),
            total: Counts::ZERO,
            dirty: BTreeSet::new(),
        }
    }

    /// The width of a slice in buckets.
    #[must_use]
    pub const fn width(&self) -> i64 {
        self.ring.width
    }

    /// Counts what happened in a bucket; its slice is judged anew.
    pub fn add(&mut self, bucket: i64, counts: Counts, now_bucket: i64) {
        if bucket > now_bucket + EARLY_AFTER_MS / BUCKET_MS {
            return;
        }
        let index = bucket.div_euclid(self.ring.width);
        let capacity = i64::try_from(self.ring.capacity).unwrap_or(i64::MAX);
        if index <= now_bucket.div_euclid(self.ring.width) - capacity {
            return;
        }
        let old = self.events.get(&index).copied().unwrap_or_default();
        self.set(index, old.plus(counts));
    }

    fn set(&mut self, index: i64, events: Counts) {
        let old = self.events.insert(index, events).unwrap_or_default();
        let by = self.judge(events).minus(self.judge(old));
        self.ring.reach(index, self.total);
        self.ring.raise_after(index, by);
        self.total = self.total.plus(by);
        self.dirty.insert(index);
        let start = self.ring.start;
        while self.events.first_key_value().is_some_and(|(index, _)| *index < start) {
            self.events.pop_first();
        }
    }

    /// Replaces the slices from one up to, and without, another by what a recount found in their buckets.
    pub fn replace(&mut self, from_bucket: i64, to_bucket: i64, found: &BTreeMap<i64, Counts>) {
        let width = self.ring.width;
        // Only slices that were recounted whole.
        let (from, to) = ((from_bucket + width - 1).div_euclid(width), to_bucket.div_euclid(width));
        let mut sums: BTreeMap<i64, Counts> =
            self.events.range(from..to.max(from)).map(|(index, _)| (*index, Counts::ZERO)).collect();
        for (bucket, counts) in found.range(from * width..(to * width).max(from * width)) {
            let sum = sums.entry(bucket.div_euclid(width)).or_default();
            *sum = sum.plus(*counts);
        }
        for (index, events) in sums {
            if self.events.get(&index).copied().unwrap_or_default() != events {
                self.set(index, events);
            }
        }
    }

    /// A slice's verdict as counts of good of all: nothing when nothing happened (I10).
    fn judge(&self, counts: Counts) -> Counts {
        let events = counts.as_good(self.part);
        if events.total == 0 {
            return Counts::ZERO;
        }
        match self.method {
            Method::RatioTimeslices => {
                let millionths = u128::from(events.good) * u128::from(RATIO_SCALE) / u128::from(events.total);
                Counts { numerator: u64::try_from(millionths).unwrap_or(RATIO_SCALE), total: RATIO_SCALE }
            }
            Method::Timeslices | Method::Occurrences => {
                let enough = u128::from(events.good) * u128::from(Share::WHOLE)
                    >= u128::from(events.total) * u128::from(self.slice.target.0);
                Counts { numerator: u64::from(enough), total: 1 }
            }
        }
    }

    /// The good of all slices from a bucket up to another; a slice that is not over by then is left out,
    /// one that began before is left out, too. In units of [`RATIO_SCALE`] for ratio slices.
    #[must_use]
    pub fn between(&self, from: i64, to: i64) -> Events {
        let width = self.ring.width;
        let (from, to) = ((from + width - 1).div_euclid(width), to.div_euclid(width));
        if from >= to {
            return Events::default();
        }
        let floor = self.ring.before.front().copied().unwrap_or_default();
        let at = |boundary| self.ring.before(boundary, self.total).unwrap_or(floor);
        at(to).minus(at(from)).as_good(Part::Good)
    }

    /// The good of as many of the last slices that are over by a bucket as a window has, rounded up.
    #[must_use]
    pub fn recent(&self, buckets: i64, to: i64) -> Events {
        let width = self.ring.width;
        let end = to.div_euclid(width) * width;
        self.between(end - (buckets + width - 1).div_euclid(width) * width, end)
    }

    /// The slices that changed since the last call.
    pub fn drain(&mut self) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty);
        let row = |index| {
            let counts = *self.events.get(&index)?;
            Some(Row { width: self.ring.width, index, counts })
        };
        dirty.into_iter().filter_map(row).collect()
    }

    /// Marks slices as changed again: they could not be written.
    pub fn mark(&mut self, rows: &[Row]) {
        self.dirty.extend(rows.iter().map(|row| row.index));
    }

    /// Takes the rows of a series on disk.
    pub fn restore(&mut self, rows: &[Row]) {
        let mut rows: Vec<&Row> = rows.iter().filter(|row| row.width == self.ring.width).collect();
        rows.sort_by_key(|row| row.index);
        for row in rows {
            self.set(row.index, row.counts);
        }
        self.dirty.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 8_640;

    fn one(numerator: u64, total: u64) -> Counts {
        Counts { numerator, total }
    }

    #[test]
    fn a_window_is_what_was_counted_in_it() {
        let mut series = Series::new(30 * DAY * BUCKET_MS);
        let now = 5_000_000;
        for bucket in now - 400..now {
            assert_eq!(series.add(bucket, one(1, 2), bucket), Added::InTime);
        }
        for (from, to, want) in [
            (now - 30, now, 30),
            (now - 360, now, 360),
            (now - 10, now - 5, 5),
            (now - 1_000_000, now, 400),
            (now, now + 10, 0),
            (now, now - 10, 0),
        ] {
            assert_eq!(series.between(from, to), one(want, 2 * want), "{from} {to}");
        }
        assert_eq!((series.first(), series.last()), (Some(now - 400), Some(now - 1)));
    }

    #[test]
    fn late_early_and_expired_events_are_told_apart() {
        let mut series = Series::new(30 * DAY * BUCKET_MS);
        let now = 5_000_000;
        for (bucket, want) in [
            (now, Added::InTime),
            (now - 6, Added::InTime),
            (now - 7, Added::Late),
            (now - 29 * DAY, Added::Late),
            (now - 31 * DAY, Added::Expired),
            (now + 60, Added::InTime),
            (now + 61, Added::Early),
        ] {
            assert_eq!(series.add(bucket, one(0, 1), now), want, "{}", bucket - now);
        }
        assert_eq!(series.between(now - 30 * DAY, now + 100), one(0, 5));
        let (_, revisions) = series.drain();
        assert_eq!(revisions.iter().map(|revision| revision.added.total).sum::<u64>(), 2);
        assert_eq!(series.drain(), (vec![], vec![]), "drained");
    }

    #[test]
    fn slices_are_good_when_enough_of_their_events_are() {
        let slice = Slice { width_ms: 60_000, target: Share(900_000_000) };
        let reach = 30 * DAY * BUCKET_MS;
        for (method, want, revised) in [
            (Method::Timeslices, Events { good: 1, total: 3 }, Events { good: 2, total: 3 }),
            (
                Method::RatioTimeslices,
                Events { good: 900_000 + 800_000 + 500_000, total: 3_000_000 },
                Events { good: 900_000 + 900_000 + 500_000, total: 3_000_000 },
            ),
        ] {
            let mut slices = Slices::new(Part::Good, slice, method, reach);
            // Minute 0: 9 of 10. Minute 1: 8 of 10. Minute 2: nothing. Minute 3: 1 of 2.
            for (bucket, counts) in [(0, one(4, 5)), (5, one(5, 5)), (6, one(8, 10)), (18, one(1, 2))] {
                slices.add(bucket, counts, 20);
            }
            assert_eq!(slices.between(0, 24), want);
            assert_eq!(slices.between(0, 23).total, want.total / 3 * 2, "the last minute is not over");
            // Ten more good ones come late.
            slices.add(7, one(10, 10), 24);
            assert_eq!(slices.between(0, 24), revised);
            let rows = slices.drain();
            let mut again = Slices::new(Part::Good, slice, method, reach);
            again.restore(&rows);
            assert_eq!(again.between(0, 24), revised);
        }
    }

    #[test]
    fn a_recount_replaces_whole_hours() {
        let mut series = Series::new(30 * DAY * BUCKET_MS);
        let hour = 20_000;
        let now = hour * 360 + 100;
        for bucket in now - 720..now {
            series.add(bucket, one(0, 1), bucket);
        }
        // The hour before and this one were counted by half only; one before the series began, not at all.
        let found: BTreeMap<i64, Counts> = ((hour - 3) * 360..now).map(|bucket| (bucket, one(1, 2))).collect();
        series.replace(hour - 3, hour + 1, &found, (hour - 1) * 360);
        assert_eq!(series.between(now - 30, now), one(30, 60));
        assert_eq!(series.between((hour - 3) * 360, now), one(3 * 360 + 100, 2 * (3 * 360 + 100)));
        let (rows, revisions) = series.drain();
        // Of the hours that were known: one was empty, and one was counted by half but for its first 100 buckets.
        assert_eq!(revisions.iter().map(|revision| revision.added.total).sum::<u64>(), 2 * 360 + 2 * 100 + 260);
        let again = Series::restore(30 * DAY * BUCKET_MS, &rows);
        assert_eq!(again.between(now - 30, now), one(30, 60));
        assert_eq!(again.between((hour - 3) * 360, now), series.between((hour - 3) * 360, now));
    }

    /// Times of events: mostly new, some late, with pauses.
    fn arrivals() -> impl Strategy<Value = Vec<(i64, i64, u64, u64)>> {
        let step = prop_oneof![8 => 0_i64..3, 2 => 0_i64..400, 1 => 0_i64..20_000];
        let late = prop_oneof![8 => 0_i64..3, 2 => 0_i64..500, 1 => 0_i64..30_000];
        prop::collection::vec((step, late, 0_u64..5, 0_u64..5), 1..200)
    }

    proptest! {
        #[test]
        fn rings_agree_with_a_plain_sum_and_survive_the_disk(arrivals in arrivals(), windows in prop::collection::vec((0_i64..50_000, 0_i64..400), 8)) {
            let reach = 2 * DAY * BUCKET_MS;
            let mut series = Series::new(reach);
            let mut plain: BTreeMap<i64, Counts> = BTreeMap::new();
            let mut disk: BTreeMap<(i64, i64), Counts> = BTreeMap::new();
            let mut now = 3_000_000;
            for (step, late, numerator, extra) in arrivals {
                now += step;
                let counts = one(numerator, numerator + extra);
                if !matches!(series.add(now - late, counts, now), Added::Expired) {
                    let sum = plain.entry(now - late).or_default();
                    *sum = sum.plus(counts);
                }
                for row in series.drain().0 {
                    disk.insert((row.width, row.index), row.counts);
                }
            }
            let rows: Vec<Row> = disk.iter().map(|((width, index), counts)| Row { width: *width, index: *index, counts: *counts }).collect();
            let again = Series::restore(reach, &rows);
            let newest = *plain.last_key_value().map_or(&now, |(bucket, _)| bucket);
            for (back, length) in windows {
                // As exact as the ring that reaches the window's ends.
                let grain = if back <= 380 { 1 } else if back <= 25_000 { 30 } else { 360 };
                let from = (newest - back).div_euclid(grain) * grain;
                if from <= now - 2 * DAY { continue; }
                let to = ((from + length).div_euclid(grain) * grain).max(from);
                let want = plain.range(from..to).fold(Counts::ZERO, |sum, (_, counts)| sum.plus(*counts));
                prop_assert_eq!(series.between(from, to), want, "{} {}", back, length);
                prop_assert_eq!(again.between(from, to), want, "restored: {} {}", back, length);
            }
        }
    }
}
