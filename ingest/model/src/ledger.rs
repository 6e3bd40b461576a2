//! Conservation: received = stored + rejected by reason, counted per tenant and signal (I2).
//!
//! A [`LedgerDelta`] travels with the rows it counts (through the WAL and into the manifest), so
//! that the sums stay exact across a crash. Not here: where the sums are kept; that is the store.

use std::collections::BTreeMap;

use crate::signal::Signal;

/// Why one item was refused while its neighbours were stored. Refusals are permanent: the client
/// must not send the item again. The names are stored and shown; they are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RejectReason {
    /// A trace id that is not 16 bytes, or is all zero where one is required.
    InvalidTraceId = 1,
    /// A span id that is not 8 bytes, or is all zero where one is required.
    InvalidSpanId = 2,
    /// A time after 2262-04-11, the end of 64-bit signed nanoseconds.
    TimeOutOfRange = 3,
    /// A value nested deeper than [`crate::limits::VALUE_DEPTH_MAX`].
    ValueTooDeep = 4,
    /// More attributes than [`crate::limits::ATTRIBUTES_MAX`].
    TooManyAttributes = 5,
    /// A key longer than [`crate::limits::KEY_BYTES_MAX`].
    KeyTooLong = 6,
    /// An item larger than [`crate::limits::ITEM_BYTES_MAX`].
    ItemTooLarge = 7,
    /// More events, links or exemplars than [`crate::limits::NESTED_ITEMS_MAX`].
    TooManyNestedItems = 8,
    /// A metric without a name.
    MissingMetricName = 9,
    /// A sum or histogram without aggregation temporality.
    MissingTemporality = 10,
    /// Bucket counts that are not one more than the bounds.
    BucketCountMismatch = 11,
    /// Bounds that do not increase, or are not numbers.
    BoundsNotIncreasing = 12,
    /// Buckets that do not add up to the count.
    CountMismatch = 13,
    /// An exponential histogram's scale or offset that no bound can be computed for.
    ScaleOutOfRange = 14,
    /// More buckets than [`crate::limits::BUCKETS_MAX`].
    TooManyBuckets = 15,
    /// A new series over the tenant's limit of active series.
    SeriesLimit = 16,
    /// A profile that points outside its dictionary.
    InvalidProfileReference = 17,
    /// Past [`crate::limits::ITEMS_PER_REQUEST_MAX`] items of one request.
    TooManyItems = 18,
    /// Past [`crate::limits::PROFILE_BYTES_PER_REQUEST_MAX`] of one request.
    ProfileTooLarge = 19,
    /// An item that fits no message of the Kafka topic that it should go through.
    MessageTooLarge = 20,
}

impl RejectReason {
    /// Every reason.
    pub const ALL: [Self; 20] = [
        Self::InvalidTraceId,
        Self::InvalidSpanId,
        Self::TimeOutOfRange,
        Self::ValueTooDeep,
        Self::TooManyAttributes,
        Self::KeyTooLong,
        Self::ItemTooLarge,
        Self::TooManyNestedItems,
        Self::MissingMetricName,
        Self::MissingTemporality,
        Self::BucketCountMismatch,
        Self::BoundsNotIncreasing,
        Self::CountMismatch,
        Self::ScaleOutOfRange,
        Self::TooManyBuckets,
        Self::SeriesLimit,
        Self::InvalidProfileReference,
        Self::TooManyItems,
        Self::ProfileTooLarge,
        Self::MessageTooLarge,
    ];

    /// The stable name: a ledger row's `reason`, a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidTraceId => "invalid_trace_id",
            Self::InvalidSpanId => "invalid_span_id",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::ValueTooDeep => "value_too_deep",
            Self::TooManyAttributes => "too_many_attributes",
            Self::KeyTooLong => "key_too_long",
            Self::ItemTooLarge => "item_too_large",
            Self::TooManyNestedItems => "too_many_nested_items",
            Self::MissingMetricName => "missing_metric_name",
            Self::MissingTemporality => "missing_temporality",
            Self::BucketCountMismatch => "bucket_count_mismatch",
            Self::BoundsNotIncreasing => "bounds_not_increasing",
            Self::CountMismatch => "count_mismatch",
            Self::ScaleOutOfRange => "scale_out_of_range",
            Self::TooManyBuckets => "too_many_buckets",
            Self::SeriesLimit => "series_limit",
            Self::InvalidProfileReference => "invalid_profile_reference",
            Self::TooManyItems => "too_many_items",
            Self::ProfileTooLarge => "profile_too_large",
            Self::MessageTooLarge => "message_too_large",
        }
    }

    /// The sentence a client reads in `partial_success.error_message`.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::InvalidTraceId => "trace_id must be 16 bytes and not all zero",
            Self::InvalidSpanId => "span_id must be 8 bytes and not all zero",
            Self::TimeOutOfRange => "time is after 2262-04-11T23:47:16Z",
            Self::ValueTooDeep => "an attribute value or body is nested more than 32 levels deep",
            Self::TooManyAttributes => "more than 1024 attributes",
            Self::KeyTooLong => "an attribute key is longer than 1024 bytes",
            Self::ItemTooLarge => "the item is larger than 8 MiB",
            Self::TooManyNestedItems => {
                "more than 4096 events, links, exemplars or stack frames of one item, or 1048576 of one request"
            }
            Self::MissingMetricName => "the metric has no name",
            Self::MissingTemporality => "aggregation_temporality must be DELTA or CUMULATIVE",
            Self::BucketCountMismatch => "bucket_counts must have one element more than explicit_bounds",
            Self::BoundsNotIncreasing => "explicit_bounds must be strictly increasing numbers",
            Self::CountMismatch => "count must be the sum of the bucket counts",
            Self::ScaleOutOfRange => "the exponential histogram's scale or bucket offset is out of range",
            Self::TooManyBuckets => "more than 16384 buckets or quantiles",
            Self::SeriesLimit => {
                "the tenant's limit of active metric series is reached; existing series are still stored"
            }
            Self::InvalidProfileReference => "the profile refers to an entry that its dictionary does not hold",
            Self::TooManyItems => "more than 1048576 items, or profile samples, in one request; send smaller batches",
            Self::ProfileTooLarge => {
                "with stacks and dictionary written out, the request's profiles take more than 64 MiB; send fewer in one"
            }
            Self::MessageTooLarge => "the item alone is larger than a message to Kafka may be (kafka.message_bytes)",
        }
    }

    /// The inverse of `self as u8`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// Item counts of one signal that belong together with some stored rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerDelta {
    /// Items stored.
    pub stored: u64,
    /// Items rejected, by reason.
    pub rejected: BTreeMap<RejectReason, u64>,
}

impl LedgerDelta {
    /// Counts one refused item.
    pub fn reject(&mut self, reason: RejectReason) {
        *self.rejected.entry(reason).or_default() += 1;
    }

    /// All items refused.
    #[must_use]
    pub fn rejected_total(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Items received: stored plus rejected, by construction.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.stored + self.rejected_total()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.received() == 0
    }

    /// Adds another delta to this one.
    pub fn merge(&mut self, other: &Self) {
        self.stored += other.stored;
        for (reason, items) in &other.rejected {
            *self.rejected.entry(*reason).or_default() += items;
        }
    }
}

/// One line of the ledger: a minute, a signal and, for refusals, a reason. In every line
/// `received = stored + rejected`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedgerLine {
    /// Start of the minute in which the items were received, nanoseconds since the epoch.
    pub minute: i64,
    /// The signal.
    pub signal: Signal,
    /// `None` counts stored items, `Some` refused ones.
    pub reason: Option<RejectReason>,
    /// How many items.
    pub items: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_number_and_name() {
        for reason in RejectReason::ALL {
            assert_eq!(RejectReason::from_u8(reason as u8), Some(reason));
            assert_eq!(RejectReason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
    }

    #[test]
    fn deltas_add_up() {
        let mut delta = LedgerDelta { stored: 3, ..LedgerDelta::default() };
        delta.reject(RejectReason::KeyTooLong);
        let mut sum = delta.clone();
        sum.merge(&delta);
        assert_eq!((sum.received(), sum.stored, sum.rejected_total()), (8, 6, 2));
    }
}
