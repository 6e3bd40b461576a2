//! Deriving a tenant's tables anew from its stored spans, in steps of bounded work and memory.
//!
//! First the spans are counted by when they started, one segment a step; then they are derived in
//! slices of time, one slice a step, so that the halves of a call meet in one slice or in two that
//! follow each other, whenever they came. Nothing of it is kept over a restart: the manifest knows
//! that the tables are stale, so it begins again. Not here: writing and committing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use model::tenant::TenantId;
use model::time::Timestamp;

use super::deriver::{EDGE_INDEX_BYTES_MAX, Partials};
use super::edges::EdgeIndex;
use super::manifest::Replaced;
use super::segment::DerivedSegment;
use super::stored::{Slice, StoredSpans};
use crate::error::StoreError;
use crate::segment::Segment;

/// Spans of a slice, more or less: with the slice before it they fill the index about as much as
/// spans that come in do.
const SLICE_SPANS: u64 = 512 * 1024;

/// Places of the timeline. Past it each stands for twice the time.
const TIMELINE_MAX: usize = 1 << 20;

/// How many spans started when.
#[derive(Debug)]
struct Timeline {
    width_ns: i64,
    spans: BTreeMap<i64, u64>,
}

impl Timeline {
    fn new() -> Self {
        Self { width_ns: Timestamp::NANOS_PER_SECOND, spans: BTreeMap::new() }
    }

    fn add(&mut self, starts: &[i64], places_max: usize) {
        for same in starts.chunk_by(|left, right| left.div_euclid(self.width_ns) == right.div_euclid(self.width_ns)) {
            *self.spans.entry(same[0].div_euclid(self.width_ns)).or_default() += same.len() as u64;
        }
        while self.spans.len() > places_max {
            self.width_ns = self.width_ns.saturating_mul(2);
            let finer = std::mem::take(&mut self.spans);
            for (place, spans) in finer {
                *self.spans.entry(place.div_euclid(2)).or_default() += spans;
            }
        }
    }

    /// Slices that cover all of time, each with about so many spans or one place of the timeline;
    /// none when there are no spans.
    fn slices(&self, spans_max: u64) -> VecDeque<Slice> {
        let mut slices: VecDeque<Slice> = VecDeque::new();
        let mut filled = 0;
        for (place, spans) in &self.spans {
            if slices.is_empty() || filled + spans > spans_max {
                let from = if slices.is_empty() { i64::MIN } else { place.saturating_mul(self.width_ns) };
                if let Some(last) = slices.back_mut() {
                    last.to = from - 1;
                }
                slices.push_back(Slice { from, to: i64::MAX });
                filled = 0;
            }
            filled += spans;
        }
        slices
    }
}

#[derive(Debug)]
enum Stage {
    /// Segments are counted, this one next.
    Counting(usize, Timeline),
    /// These slices are to be derived.
    Deriving(VecDeque<Slice>),
}

/// One tenant's tables being derived anew.
#[derive(Debug)]
pub(crate) struct Rebuild {
    pub(crate) tenant: TenantId,
    /// What it will replace: exactly what was derived of the sources.
    pub(crate) replaced: Replaced,
    /// When the newest of the sources was stored.
    pub(crate) created_at: Timestamp,
    pub(crate) outputs: Vec<Arc<DerivedSegment>>,
    /// The source that could not be read.
    pub(crate) unreadable: Option<Arc<Segment>>,
    sources: Vec<Arc<Segment>>,
    stage: Stage,
    index: EdgeIndex,
}

impl Rebuild {
    pub(crate) fn new(tenant: TenantId, sources: Vec<Arc<Segment>>, replaced: Replaced, seed: u64) -> Self {
        Self {
            tenant,
            replaced,
            created_at: sources.iter().map(|segment| segment.meta().created_at).max().unwrap_or_default(),
            outputs: Vec::new(),
            unreadable: None,
            sources,
            stage: Stage::Counting(0, Timeline::new()),
            index: EdgeIndex::new(seed),
        }
    }

    /// Whether everything is derived.
    pub(crate) fn is_done(&self) -> bool {
        matches!(&self.stage, Stage::Deriving(slices) if slices.is_empty())
    }

    /// One step; the partial rows of a slice when one was derived.
    ///
    /// # Errors
    /// When a source cannot be read, which [`Rebuild::unreadable`] names.
    pub(crate) fn step(&mut self) -> Result<Option<Partials>, StoreError> {
        match &mut self.stage {
            Stage::Counting(next, timeline) => {
                if let Some(segment) = self.sources.get(*next) {
                    let place = *next;
                    *next += 1;
                    let counted = StoredSpans::open(segment)
                        .and_then(|stored| stored.starts(|starts| timeline.add(starts, TIMELINE_MAX)));
                    self.note(counted, place)?;
                } else {
                    self.stage = Stage::Deriving(timeline.slices(SLICE_SPANS));
                }
                Ok(None)
            }
            Stage::Deriving(slices) => {
                let Some(slice) = slices.pop_front() else { return Ok(None) };
                self.derive(slice).map(Some)
            }
        }
    }

    fn derive(&mut self, slice: Slice) -> Result<Partials, StoreError> {
        let mut partials = Partials::default();
        self.index.turn();
        for place in 0..self.sources.len() {
            let meta = self.sources[place].meta();
            if meta.max_time.0 < slice.from || meta.min_time.0 > slice.to {
                continue;
            }
            let index = &mut self.index;
            let read = StoredSpans::open(&self.sources[place]).and_then(|mut stored| {
                stored.each(Some(slice), |spans| {
                    partials.add(spans, index);
                    if index.bytes() > EDGE_INDEX_BYTES_MAX {
                        // More spans started in one second than the index holds.
                        index.turn();
                    }
                })
            });
            self.note(read, place)?;
        }
        Ok(partials)
    }

    fn note<T>(&mut self, outcome: Result<T, StoreError>, source: usize) -> Result<T, StoreError> {
        if outcome.is_err() {
            self.unreadable = Some(Arc::clone(&self.sources[source]));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_all_of_time_and_hold_about_so_many_spans() {
        const SECOND: i64 = Timestamp::NANOS_PER_SECOND;
        for (what, starts, expected) in [
            ("nothing", vec![], vec![]),
            ("few", vec![5, SECOND, 1], vec![(i64::MIN, i64::MAX)]),
            (
                "one slice a second",
                vec![0, 1, 2, SECOND, SECOND + 1, 9 * SECOND],
                vec![(i64::MIN, SECOND - 1), (SECOND, i64::MAX)],
            ),
            ("more than fit in one second", vec![7; 20], vec![(i64::MIN, i64::MAX)]),
            (
                "the ends of time",
                vec![i64::MIN, i64::MIN, i64::MIN, i64::MAX, i64::MAX, i64::MAX],
                vec![
                    (i64::MIN, i64::MAX.div_euclid(SECOND) * SECOND - 1),
                    (i64::MAX.div_euclid(SECOND) * SECOND, i64::MAX),
                ],
            ),
        ] {
            let mut timeline = Timeline::new();
            starts.chunks(2).for_each(|part| timeline.add(part, 100));
            let found: Vec<_> = timeline.slices(3).iter().map(|slice| (slice.from, slice.to)).collect();
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn a_long_timeline_gets_coarser_and_loses_nothing() {
        let mut timeline = Timeline::new();
        let starts: Vec<i64> = (-500..500).map(|second| second * Timestamp::NANOS_PER_SECOND).collect();
        starts.chunks(7).for_each(|part| timeline.add(part, 10));
        assert!(timeline.spans.len() <= 10);
        assert_eq!(timeline.spans.values().sum::<u64>(), 1000);
        let slices = timeline.slices(200);
        assert!(slices.len() >= 4, "{slices:?}");
    }
}
