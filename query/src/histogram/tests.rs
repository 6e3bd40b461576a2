//! Merging, increases and quantiles against a slow reading of the same rules, over generated
//! histograms and over rows worked out by hand.

use std::collections::BTreeMap;

use model::limits::BUCKETS_MAX;
use proptest::prelude::*;

use super::*;

/// A histogram without observations' extremes, for tests of buckets.
fn histogram(count: u64, buckets: Buckets) -> Histogram {
    Histogram { count, sum: Some(count as f64), min: None, max: None, buckets }
}

fn side(offset: i64, counts: &[u64]) -> Side {
    Side { offset, counts: counts.to_vec() }.trimmed()
}

fn exponential(scale: i32, zero: (u64, f64), positive: (i64, &[u64]), negative: (i64, &[u64])) -> Histogram {
    let count = zero.0 + positive.1.iter().sum::<u64>() + negative.1.iter().sum::<u64>();
    histogram(
        count,
        Buckets::Exponential(Exponential {
            scale,
            zero_count: zero.0,
            zero_threshold: zero.1,
            positive: side(positive.0, positive.1),
            negative: side(negative.0, negative.1),
        }),
    )
}

fn explicit(bounds: &[f64], counts: &[u64]) -> Histogram {
    let buckets = Explicit { bounds: bounds.to_vec(), counts: counts.to_vec() };
    histogram(counts.iter().sum(), Buckets::Explicit(buckets))
}

fn merged<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Result<Histogram> {
    let mut histograms = histograms.into_iter();
    let mut merged = Histogram::of(&histograms.next().expect("there is one").view())?;
    histograms.try_for_each(|next| merged.add(&next.view()))?;
    Ok(merged)
}

fn settled(mut histogram: Histogram) -> Histogram {
    histogram.settle().unwrap();
    histogram
}

/// Merges in the order given, from behind, and in two halves: whatever a query does.
fn in_every_way(histograms: &[Histogram]) -> Vec<Result<Histogram>> {
    let halves = |at: usize| {
        let (left, right) = histograms.split_at(at.clamp(1, histograms.len()));
        let left = merged(left)?;
        if right.is_empty() { Ok(left) } else { merged([&left, &merged(right)?]) }
    };
    let mut ways = vec![merged(histograms), merged(histograms.iter().rev())];
    ways.extend((1..=histograms.len()).map(halves));
    ways.into_iter().map(|way| way.map(settled)).collect()
}

/// Buckets as a map, merged one count at a time.
#[derive(Debug, PartialEq)]
struct Slow {
    scale: i32,
    zero: u64,
    threshold: f64,
    /// The sign and the index of each populated bucket.
    buckets: BTreeMap<(bool, i64), u64>,
}

impl Slow {
    fn of(histogram: &Histogram) -> Self {
        let Buckets::Exponential(buckets) = &histogram.buckets else { panic!("an exponential histogram") };
        let mut slow = Self {
            scale: buckets.scale,
            zero: buckets.zero_count,
            threshold: buckets.zero_threshold,
            buckets: BTreeMap::new(),
        };
        for (sign, side) in [(true, &buckets.positive), (false, &buckets.negative)] {
            for (index, count) in (side.offset..).zip(&side.counts) {
                slow.hit(sign, index, *count);
            }
        }
        slow
    }

    fn hit(&mut self, sign: bool, index: i64, count: u64) {
        if count > 0 {
            *self.buckets.entry((sign, index)).or_default() += count;
        }
    }

    /// Two buckets become one.
    fn coarser(self) -> Self {
        let mut coarser = Self { scale: self.scale - 1, buckets: BTreeMap::new(), ..self };
        for ((sign, index), count) in self.buckets {
            coarser.hit(sign, index.div_euclid(2), count);
        }
        coarser
    }

    fn is_wide(&self) -> bool {
        [true, false].into_iter().any(|wanted| {
            let mut indexes = self.buckets.keys().filter(|(sign, _)| *sign == wanted).map(|(_, index)| *index);
            let first = indexes.next();
            first.is_some_and(|first| indexes.next_back().unwrap_or(first) - first >= BUCKETS_MAX as i64)
        })
    }

    fn merge(histograms: &[Histogram]) -> Self {
        let all: Vec<Self> = histograms.iter().map(Self::of).collect();
        let scale = all.iter().map(|slow| slow.scale).min().unwrap();
        let mut merged = Self { scale, zero: 0, threshold: 0.0, buckets: BTreeMap::new() };
        for mut slow in all {
            while slow.scale > scale {
                slow = slow.coarser();
            }
            merged.zero += slow.zero;
            merged.threshold = merged.threshold.max(slow.threshold);
            slow.buckets.into_iter().for_each(|((sign, index), count)| merged.hit(sign, index, count));
        }
        while merged.is_wide() {
            merged = merged.coarser();
        }
        // One bucket at a time, until the threshold cuts none.
        while let Some((key, count)) = merged
            .buckets
            .iter()
            .find(|((_, index), _)| exponent(*index, merged.scale).exp2() < merged.threshold)
            .map(|(key, count)| (*key, *count))
        {
            merged.buckets.remove(&key);
            merged.zero += count;
            merged.threshold = merged.threshold.max(exponent(key.1 + 1, merged.scale).exp2());
        }
        merged
    }
}

fn counts() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![2 => Just(0_u64), 3 => 0..6_u64, 1 => 0..1_000_000_u64], 0..12)
}

fn any_exponential() -> impl Strategy<Value = Histogram> {
    let threshold = prop_oneof![3 => Just(0.0), 2 => (-8.0..4.0).prop_map(f64::exp2), 1 => (-3..3).prop_map(|n| f64::from(n).exp2())];
    let offset = || prop_oneof![6 => -30..30_i64, 1 => -3_000_000..3_000_000_i64];
    (-4..=20_i32, 0..5_u64, threshold, (offset(), counts()), (offset(), counts())).prop_map(
        |(scale, zero, threshold, positive, negative)| {
            exponential(scale, (zero, threshold), (positive.0, &positive.1), (negative.0, &negative.1))
        },
    )
}

fn any_explicit() -> impl Strategy<Value = Histogram> {
    let pool = [-1.0, 0.0, 1.0, 2.5, 5.0, 10.0];
    (prop::collection::vec(prop::bool::weighted(0.8), pool.len()), prop::collection::vec(0..50_u64, pool.len() + 1))
        .prop_map(move |(kept, counts)| {
            let bounds: Vec<f64> = pool.iter().zip(kept).filter(|(_, kept)| *kept).map(|(bound, _)| *bound).collect();
            explicit(&bounds, &counts[..=bounds.len()])
        })
}

proptest! {
    #[test]
    fn exponential_histograms_merge_exactly_in_any_order(histograms in prop::collection::vec(any_exponential(), 1..7)) {
        let expected = Slow::merge(&histograms);
        let total: u64 = histograms.iter().map(|histogram| histogram.count).sum();
        prop_assert_eq!(expected.zero + expected.buckets.values().sum::<u64>(), total);
        for way in in_every_way(&histograms) {
            let way = way.unwrap();
            prop_assert_eq!(way.count, total);
            prop_assert_eq!(&Slow::of(&way), &expected);
        }
    }

    #[test]
    fn explicit_histograms_merge_to_the_bounds_they_share(histograms in prop::collection::vec(any_explicit(), 1..6)) {
        let bounds_of = |histogram: &Histogram| match &histogram.buckets {
            Buckets::Explicit(explicit) => explicit.bounds.clone(),
            Buckets::Exponential(_) => panic!("an explicit histogram"),
        };
        let mut shared = bounds_of(&histograms[0]);
        for histogram in &histograms {
            shared.retain(|bound| bounds_of(histogram).contains(bound));
        }
        let can_merge = !shared.is_empty() || histograms.iter().all(|histogram| bounds_of(histogram).is_empty());
        let mut expected = vec![0; shared.len() + 1];
        for histogram in &histograms {
            let Buckets::Explicit(own) = &histogram.buckets else { continue };
            for (index, count) in own.counts.iter().enumerate() {
                let upper = own.bounds.get(index).copied().unwrap_or(f64::INFINITY);
                expected[shared.iter().position(|bound| *bound >= upper).unwrap_or(shared.len())] += count;
            }
        }
        for way in in_every_way(&histograms) {
            match way {
                Ok(way) => {
                    prop_assert!(can_merge);
                    prop_assert_eq!(way.buckets, Buckets::Explicit(Explicit { bounds: shared.clone(), counts: expected.clone() }));
                }
                Err(error) => {
                    prop_assert!(!can_merge);
                    prop_assert!(error.message.contains("no bucket bound in common"), "{}", error.message);
                }
            }
        }
    }

    #[test]
    fn quantiles_rise_and_stay_within_the_buckets_of_their_rank(
        histogram in prop_oneof![any_exponential(), any_explicit()],
        qs in prop::collection::vec(0.0..=1.0_f64, 1..8),
    ) {
        let histogram = settled(histogram);
        let edges = edges(&histogram);
        let mut qs = qs;
        qs.extend([0.0, 0.5, 1.0]);
        qs.sort_by(f64::total_cmp);
        let mut before = f64::NEG_INFINITY;
        for q in qs {
            let Some(found) = histogram.quantile(q) else {
                // Nothing observed, or nothing known of where.
                prop_assert!(edges.is_empty() || matches!(&histogram.buckets, Buckets::Explicit(own) if own.bounds.is_empty()));
                continue;
            };
            prop_assert!(found >= before - before.abs() * 1e-12, "{q}: {found} after {before}");
            before = found;
            // Walk the observations one at a time; a rank on a border may belong to either side.
            let total: u64 = edges.iter().map(|edge| edge.2).sum();
            let rank = q * total as f64;
            let (mut passed, mut lower, mut upper) = (0_u64, f64::INFINITY, f64::NEG_INFINITY);
            for (from, to, count) in &edges {
                let slack = total as f64 * 1e-12 + 1e-9;
                if passed as f64 <= rank + slack && (passed + count) as f64 >= rank - slack {
                    lower = lower.min(*from);
                    upper = upper.max(*to);
                }
                passed += count;
            }
            // An open lowest bucket ends at its bound, or reaches down to zero.
            let slack = found.abs() * 1e-12;
            prop_assert!(found >= lower - slack && found <= upper.max(lower) + slack, "{q}: {found} not in {lower}..{upper}");
        }
    }

    #[test]
    fn quantiles_of_observations_are_off_by_at_most_a_bucket(
        observed in prop::collection::vec((-20.0..20.0_f64, any::<bool>()), 1..200),
        scale in 0..6_i32,
        q in 0.0..=1.0_f64,
    ) {
        let mut values: Vec<f64> =
            observed.iter().map(|(power, negative)| if *negative { -power.exp2() } else { power.exp2() }).collect();
        let one = |value: f64| {
            // The bucket of a value, found by its bounds.
            let index = (-2_000..2_000).find(|index| exponent(index + 1, scale).exp2() >= value.abs()).unwrap();
            let none: (i64, &[u64]) = (0, &[]);
            if value > 0.0 { exponential(scale, (0, 0.0), (index, &[1]), none) } else { exponential(scale, (0, 0.0), none, (index, &[1])) }
        };
        let histograms: Vec<Histogram> = values.iter().map(|value| one(*value)).collect();
        let merged = merged(&histograms).unwrap();
        values.sort_by(f64::total_cmp);
        let rank = q * values.len() as f64;
        let below = values[(rank.floor() as usize).saturating_sub(1)];
        let above = values[(rank.ceil() as usize).min(values.len() - 1)];
        let base = (-f64::from(scale)).exp2().exp2() * (1.0 + 1e-12);
        let found = merged.quantile(q).unwrap();
        let (low, high) = (below.min(below * base).min(below / base), above.max(above * base).max(above / base));
        prop_assert!((low..=high).contains(&found), "{found} not in {low}..{high}");
    }

    #[test]
    fn an_increase_is_all_that_was_counted_since_the_first_sample(
        gains in prop::collection::vec((counts(), 0..4_u64, prop::bool::weighted(0.2), 0..3_i32), 2..12),
        turn in any::<usize>(),
    ) {
        // A series whose scale only goes down, restarted now and then. A restart that happens to
        // show nothing smaller than before cannot be seen by anyone, so it counts something less.
        let (mut scale, mut offset) = (6, 5);
        let mut samples: Vec<(i64, Histogram)> = Vec::new();
        let mut counted: Vec<Histogram> = Vec::new();
        for (time, (gain, zero, restarts, coarser)) in (0..).zip(&gains) {
            scale -= coarser;
            offset >>= coarser;
            let gain = exponential(scale, (*zero, 0.0), (offset, gain), (offset - 3, gain));
            let next = match samples.last() {
                Some((_, last)) if !restarts || gain.count >= last.count => merged([last, &gain]).unwrap(),
                _ => gain.clone(),
            };
            samples.push((time, next));
            if time > 0 {
                counted.push(gain);
            }
        }
        let expected = Slow::merge(&counted);
        let length = samples.len();
        samples.rotate_left(turn % length);
        samples.extend_from_within(..turn % length);
        let found = increase(&mut samples).unwrap().unwrap();
        prop_assert_eq!(found.count, counted.iter().map(|gain| gain.count).sum::<u64>());
        prop_assert_eq!(Slow::of(&found), expected);
    }
}

/// Populated buckets in ascending order: lower edge, upper edge, count.
fn edges(histogram: &Histogram) -> Vec<(f64, f64, u64)> {
    let mut edges = Vec::new();
    match &histogram.buckets {
        Buckets::Explicit(own) => {
            let mut lower = f64::NEG_INFINITY;
            for (index, count) in own.counts.iter().enumerate() {
                let upper = own.bounds.get(index).copied().unwrap_or(f64::INFINITY);
                edges.push((lower, upper, *count));
                lower = upper;
            }
        }
        Buckets::Exponential(own) => {
            // What was observed is a double, however far the bucket reaches.
            let bound = |index: i64| exponent(index, own.scale).clamp(-1_074.0, 1_024.0).exp2().min(f64::MAX);
            for (index, count) in
                (own.negative.offset..).zip(&own.negative.counts).collect::<Vec<_>>().into_iter().rev()
            {
                edges.push((-bound(index + 1), -bound(index), *count));
            }
            edges.push((-own.zero_threshold, own.zero_threshold, own.zero_count));
            for (index, count) in (own.positive.offset..).zip(&own.positive.counts) {
                edges.push((bound(index), bound(index + 1), *count));
            }
        }
    }
    edges.retain(|(_, _, count)| *count > 0);
    edges
}

#[test]
fn quantiles_worked_out_by_hand() {
    const INF: f64 = f64::INFINITY;
    let none: (i64, &[u64]) = (0, &[]);
    let latency = explicit(&[1.0, 2.0, 4.0], &[1, 1, 2, 0]);
    let overflow = explicit(&[1.0, 2.0, 4.0], &[1, 0, 0, 9]);
    let below_zero = explicit(&[-5.0, 0.0], &[4, 4, 0]);
    let open = explicit(&[f64::NEG_INFINITY, 10.0, INF], &[0, 4, 0, 0]);
    let positive = exponential(0, (0, 0.0), (-1, &[1, 2, 1]), none);
    let negative = exponential(0, (0, 0.0), none, (-1, &[1, 2, 1]));
    let gap = exponential(0, (0, 0.0), (0, &[2, 0, 0, 2]), none);
    let zeros = exponential(3, (4, 0.5), none, none);
    let zeros_and_positive = exponential(0, (4, 0.5), (3, &[4]), none);
    let zeros_and_negative = exponential(0, (4, 0.5), none, (3, &[4]));
    let around_zero = exponential(0, (2, 0.5), (3, &[1]), (3, &[1]));
    let everything = exponential(-11, (0, 0.0), (-1, &[1, 1]), none);
    for (histogram, q, expected) in [
        // Linear within explicit bounds; the lowest bucket starts at zero where it can.
        (&latency, 0.0, Some(0.0)),
        (&latency, 0.25, Some(1.0)),
        (&latency, 0.125, Some(0.5)),
        (&latency, 0.5, Some(2.0)),
        (&latency, 0.9, Some(3.6)),
        (&latency, 1.0, Some(4.0)),
        // Past the last bound there is nothing to interpolate to.
        (&overflow, 0.99, Some(4.0)),
        (&overflow, 0.05, Some(0.5)),
        (&below_zero, 0.25, Some(-5.0)),
        (&below_zero, 0.75, Some(-2.5)),
        (&open, 0.5, Some(5.0)),
        (&explicit(&[], &[7]), 0.5, None),
        (&explicit(&[1.0], &[0, 0]), 0.5, None),
        // Logarithmic within exponential buckets.
        (&positive, 0.0, Some(0.5)),
        (&positive, 0.5, Some(2.0_f64.sqrt())),
        (&positive, 1.0, Some(4.0)),
        (&negative, 0.5, Some(-2.0_f64.sqrt())),
        (&negative, 0.0, Some(-4.0)),
        (&negative, 1.0, Some(-0.5)),
        // A rank on a border belongs to the bucket that is reached from the nearer end.
        (&gap, 0.49, Some((1.96_f64 / 2.0).exp2())),
        (&gap, 0.5, Some(8.0)),
        // The zero bucket is linear, and one-sided when all else is.
        (&zeros, 0.5, Some(0.0)),
        (&zeros, 1.0, Some(0.5)),
        (&zeros_and_positive, 0.25, Some(0.25)),
        (&zeros_and_negative, 0.75, Some(-0.25)),
        (&around_zero, 0.5, Some(0.0)),
        (&exponential(5, (3, 0.0), none, none), 0.9, Some(0.0)),
        (&exponential(5, (0, 0.0), none, none), 0.9, None),
        // A bucket wider than all doubles ends where they end.
        (&everything, 1.0, Some(f64::MAX)),
        (&everything, 0.0, Some(f64::from_bits(1))),
        // Outside of 0 to 1 as in Prometheus.
        (&latency, -0.1, Some(-INF)),
        (&positive, 1.1, Some(INF)),
        (&positive, f64::NAN, None),
    ] {
        let found = histogram.quantile(q);
        let close = match (found, expected) {
            (Some(found), Some(expected)) => found == expected || (found - expected).abs() <= expected.abs() * 1e-12,
            (found, expected) => found == expected,
        };
        assert!(close, "q {q} of {histogram:?}: expected {expected:?}, found {found:?}");
    }
}

#[test]
fn merges_worked_out_by_hand() {
    let none: (i64, &[u64]) = (0, &[]);
    for (what, histograms, expected) in [
        (
            "the coarser scale; odd and negative indexes go down",
            vec![exponential(1, (0, 0.0), (-3, &[1, 2, 3, 4, 5]), none), exponential(0, (1, 0.0), (0, &[10]), none)],
            exponential(0, (1, 0.0), (-2, &[1, 5, 19]), none),
        ),
        (
            "what lies below the larger threshold joins the zero bucket",
            vec![exponential(0, (1, 1.0), none, none), exponential(0, (0, 0.0), (-2, &[3, 4, 5]), (-1, &[6]))],
            exponential(0, (14, 1.0), (0, &[5]), none),
        ),
        (
            "a bucket across the threshold moves it up",
            vec![exponential(0, (1, 1.5), none, none), exponential(0, (0, 0.0), (-1, &[3, 4, 5]), none)],
            exponential(0, (8, 2.0), (1, &[5]), none),
        ),
        (
            "an empty one does not",
            vec![exponential(0, (1, 1.5), none, none), exponential(0, (0, 0.0), (-1, &[3, 0, 5]), none)],
            exponential(0, (4, 1.5), (1, &[5]), none),
        ),
        (
            "two narrow histograms far apart go down until they fit",
            vec![
                exponential(20, (0, 0.0), (-(10 << 20), &[1]), none),
                exponential(20, (0, 0.0), (4 << 20, &[2]), none),
            ],
            // 14 octaves of 1,024 buckets are below 16,384; of 2,048 they are not.
            exponential(10, (0, 0.0), (-(10 << 10), &[&[1], vec![0; (14 << 10) - 1].as_slice(), &[2]].concat()), none),
        ),
        (
            "indexes past 32 bits go down as well",
            vec![exponential(20, (0, 0.0), (i64::from(i32::MAX), &[1, 1]), none)],
            exponential(19, (0, 0.0), (i64::from(i32::MAX) >> 1, &[1, 1]), none),
        ),
        (
            "one set of bounds refines the other",
            vec![explicit(&[1.0, 2.0, 3.0], &[1, 2, 3, 4]), explicit(&[2.0], &[10, 20])],
            explicit(&[2.0], &[13, 27]),
        ),
        ("no bounds at all", vec![explicit(&[], &[3]), explicit(&[], &[4])], explicit(&[], &[7])),
    ] {
        for way in in_every_way(&histograms) {
            let way = way.unwrap();
            assert_eq!((way.count, &way.buckets), (expected.count, &expected.buckets), "{what}");
        }
    }
    for (what, histograms, expected) in [
        ("kinds", vec![explicit(&[1.0], &[1, 1]), exponential(0, (1, 0.0), none, none)], "cannot be merged"),
        ("bounds", vec![explicit(&[1.0], &[1, 1]), explicit(&[2.0], &[1, 1])], "in common"),
        ("bounds and none", vec![explicit(&[1.0], &[1, 1]), explicit(&[], &[1])], "in common"),
        ("counts", vec![exponential(0, (u64::MAX, 0.0), none, none), exponential(0, (1, 0.0), none, none)], "64 bits"),
    ] {
        for way in in_every_way(&histograms) {
            match way {
                Ok(merged) => assert!(histograms.len() == 1, "{what}: {merged:?}"),
                Err(error) => assert!(error.message.contains(expected), "{what}: {error:?}"),
            }
        }
        assert!(merged(&histograms).is_err(), "{what}");
    }
    let known = |sum, min, max| Histogram { sum, min, max, ..explicit(&[1.0], &[1, 1]) };
    let both = merged([&known(Some(1.5), Some(0.5), Some(9.0)), &known(Some(2.5), Some(0.25), Some(3.0))]).unwrap();
    assert_eq!((both.sum, both.min, both.max), (Some(4.0), Some(0.25), Some(9.0)));
    let one = merged([&known(Some(1.5), None, Some(9.0)), &known(None, Some(0.25), Some(3.0))]).unwrap();
    assert_eq!((one.sum, one.min, one.max), (None, None, Some(9.0)));
}

#[test]
fn contradictions_are_refused() {
    let view = |buckets| View { count: 3, sum: None, min: None, max: None, buckets };
    let side = SideView::default();
    let scale =
        |scale| BucketsView::Exponential { scale, zero_count: 3, zero_threshold: 0.0, positive: side, negative: side };
    for (buckets, expected) in [
        (BucketsView::Explicit { bounds: &[1.0, 2.0], counts: &[1, 2] }, "expected one more than bounds"),
        (BucketsView::Explicit { bounds: &[1.0], counts: &[] }, "expected one more than bounds"),
        (scale(i32::MIN), "scale"),
        (scale(i32::MAX), "scale"),
    ] {
        let error = Histogram::of(&view(buckets)).unwrap_err();
        assert!(error.message.contains(expected), "{buckets:?}: {error:?}");
        let mut good = match buckets {
            BucketsView::Explicit { .. } => explicit(&[1.0], &[1, 1]),
            BucketsView::Exponential { .. } => exponential(0, (1, 0.0), (0, &[]), (0, &[])),
        };
        assert!(good.add(&view(buckets)).is_err(), "{buckets:?}");
    }
    let no_buckets = Histogram::of(&view(BucketsView::Explicit { bounds: &[], counts: &[] })).unwrap();
    assert_eq!(no_buckets.buckets, Buckets::Explicit(Explicit { bounds: vec![], counts: vec![3] }));
}

#[test]
fn increases_worked_out_by_hand() {
    let none: (i64, &[u64]) = (0, &[]);
    let at = |time: i64, histogram: &Histogram| (time, histogram.clone());
    let (a, b) = (explicit(&[1.0, 2.0], &[1, 2, 3]), explicit(&[1.0, 2.0], &[4, 2, 5]));
    let restarted = explicit(&[1.0, 2.0], &[9, 0, 0]);
    let fine = exponential(1, (1, 0.0), (0, &[1, 1]), none);
    let coarse = exponential(0, (1, 1.0), (0, &[5]), none);
    for (what, mut samples, expected) in [
        ("none", vec![], None),
        ("one", vec![at(0, &a)], None),
        ("one time", vec![at(0, &a), at(0, &b)], None),
        ("two", vec![at(0, &a), at(1, &b)], Some(explicit(&[1.0, 2.0], &[3, 0, 2]))),
        ("out of order", vec![at(1, &b), at(0, &a)], Some(explicit(&[1.0, 2.0], &[3, 0, 2]))),
        ("nothing", vec![at(0, &a), at(1, &a)], Some(explicit(&[1.0, 2.0], &[0, 0, 0]))),
        ("a restart", vec![at(0, &a), at(1, &b), at(2, &restarted)], Some(explicit(&[1.0, 2.0], &[12, 0, 2]))),
        (
            "a restart with other bounds",
            vec![at(0, &a), at(1, &b), at(2, &explicit(&[2.0], &[1, 1]))],
            Some(explicit(&[2.0], &[4, 3])),
        ),
        (
            "a coarser scale and a higher threshold",
            vec![at(0, &fine), at(1, &coarse)],
            Some(exponential(0, (0, 1.0), (0, &[3]), none)),
        ),
        (
            "a finer scale is a restart",
            vec![at(0, &coarse), at(1, &fine)],
            Some(exponential(1, (1, 0.0), (0, &[1, 1]), none)),
        ),
    ] {
        let found = increase(&mut samples).unwrap();
        let parts = |histogram: Histogram| (histogram.count, histogram.sum, histogram.buckets);
        assert_eq!(found.map(parts), expected.map(parts), "{what}");
    }
    let mut other_kind = [at(0, &a), at(1, &b), at(2, &fine)];
    assert!(increase(&mut other_kind).is_err());
}
