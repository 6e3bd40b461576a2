//! Durations as a base-2 exponential histogram of one fixed scale, so that any two of them add up
//! exactly, whatever they were made of.
//!
//! A bucket `i` holds the durations in (2^(i/16), 2^((i+1)/16)] nanoseconds, OpenTelemetry's rule
//! for scale 4: one bucket is 4.4 % wide, so a quantile read from it is at most 2.2 % off when it
//! is taken at the bucket's middle. From a nanosecond to 292 years there are 1009 buckets, which
//! bounds every histogram. Not here: how counts are stored (sparse, [`crate::derived`]).
//! Source: opentelemetry.io/docs/specs/otel/metrics/data-model, exponential histogram.

/// The scale of every duration histogram: 2^4 buckets for each doubling.
pub const SCALE: i32 = 4;

/// The bucket of what is no positive duration: zero, and negative ones, which clocks that were set
/// back make. It comes before all others.
pub const ZERO_BUCKET: i16 = -2;

/// Buckets for each doubling.
const STEPS: usize = 1 << SCALE;

/// The upper bounds of the buckets of one doubling: 2^(62 + j/16) for j from 1 to 16, cut to whole
/// numbers. Written out, since the last bit of a computed power differs between machines.
pub const STEP_BOUNDS: [u64; STEPS] = [
    0x42d5_61b3_e624_3d8a,
    0x45ca_e0f1_f545_eb73,
    0x48e1_e9b9_d588_e19b,
    0x4c1b_f828_c6dc_54b7,
    0x4f7a_9930_48d0_88d6,
    0x52ff_6b54_d8a8_9c75,
    0x56ac_1f75_2150_a563,
    0x5a82_7999_fcef_3242,
    0x5e84_51cf_ac06_1b5f,
    0x62b3_9508_aa83_6d6e,
    0x6712_460a_8fc2_4071,
    0x6ba2_7e65_6b4e_b57a,
    0x7066_6f76_154a_7088,
    0x7560_6373_ee92_1c97,
    0x7a92_be8a_9243_6616,
    0x8000_0000_0000_0000,
];

/// Leading bits of a number's fraction that the first guess goes by.
const GUESS_BITS: u32 = 6;

/// For each beginning of a fraction the first of [`STEP_BOUNDS`] that its number may be below.
const GUESSES: [u8; 1 << GUESS_BITS] = {
    let mut guesses = [0; 1 << GUESS_BITS];
    let mut start = 0;
    while start < guesses.len() {
        let least = ((1 << GUESS_BITS) + start as u64) << (62 - GUESS_BITS);
        let mut step = 0;
        while STEP_BOUNDS[step as usize] < least {
            step += 1;
        }
        guesses[start] = step;
        start += 1;
    }
    guesses
};

/// The bucket of a duration in nanoseconds.
#[inline]
#[must_use]
pub const fn bucket(nanos: i64) -> i16 {
    if nanos <= 0 {
        return ZERO_BUCKET;
    }
    // Scaled to 2^62 ≤ number < 2^63, whole and exact.
    let doublings = 63 - nanos.leading_zeros();
    let number = nanos.cast_unsigned() << (62 - doublings);
    let first = doublings as i16 * STEPS as i16;
    if number == 1 << 62 {
        // A power of two is the upper bound of the bucket below it.
        return first - 1;
    }
    let mut step = GUESSES[(number >> (62 - GUESS_BITS)) as usize & ((1 << GUESS_BITS) - 1)] as usize;
    while number > STEP_BOUNDS[step] {
        step += 1;
    }
    first + step as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_definition() {
        for (nanos, expected) in [
            (i64::MIN, ZERO_BUCKET),
            (-1, ZERO_BUCKET),
            (0, ZERO_BUCKET),
            (1, -1),
            (2, 15),
            (3, 25),
            (4, 31),
            (1 << 20, 319),
            ((1 << 20) + 1, 320),
            (1_000_000_000, 478),
            (i64::MAX, 1007),
        ] {
            assert_eq!(bucket(nanos), expected, "{nanos}");
        }
        // Below 2^53 the definition can be computed in floating point, bounds themselves apart.
        let mut nanos = 1_i64;
        while nanos < 1 << 52 {
            for nanos in [nanos, nanos + 1, nanos + 2, nanos * 3 / 2] {
                let exact = (nanos as f64).log2() * STEPS as f64;
                let (below, above) = ((exact - 1e-9).ceil() - 1.0, (exact + 1e-9).ceil() - 1.0);
                let found = f64::from(bucket(nanos));
                assert!(found == below || found == above, "{nanos}: {found}, expected {below} or {above}");
            }
            nanos = nanos * 21 / 20 + 1;
        }
    }

    #[test]
    fn buckets_never_go_down() {
        let mut last = bucket(1);
        for nanos in (2..2_000_000).chain((30..62).flat_map(|bits| {
            let step = (1_i64 << bits) / 64;
            (0..64).map(move |part| (1 << bits) + part * step)
        })) {
            let found = bucket(nanos);
            assert!(found >= last, "{nanos}");
            last = found;
        }
    }
}
