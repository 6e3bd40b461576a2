//! Which segments have outlived their signal's retention. A pure function (I4); the store deletes.
//!
//! Not here: the ledger's retention, which is one statement in the manifest.

use model::time::Timestamp;

use crate::config::StoreConfig;
use crate::segment::SegmentMeta;

/// The numbers of the segments that are past their retention at `now`. A segment's age is that of
/// its youngest row; a row that claims to be from the future is as old as its arrival.
#[must_use]
pub fn expired<'a>(
    segments: impl IntoIterator<Item = &'a SegmentMeta>,
    now: Timestamp,
    config: &StoreConfig,
) -> Vec<u64> {
    segments
        .into_iter()
        .filter(|segment| {
            let keep = config.retention_of(segment.table.signal());
            segment.age_time().plus_nanos(keep) < now
        })
        .map(|segment| segment.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compaction::tests::meta;
    use model::signal::{Signal, Table};

    #[test]
    fn a_segment_goes_when_its_youngest_row_is_too_old() {
        const DAY: i64 = 86_400_000_000_000;
        let mut config = StoreConfig::new("/nowhere");
        config.set_retention(Signal::Traces, 7 * DAY);
        config.set_retention(Signal::Logs, DAY);
        let now = 100 * DAY;
        for (table, max_time, created_at, gone) in [
            (Table::Spans, now, now, false),
            (Table::Spans, now - 7 * DAY, now - 7 * DAY, false),
            (Table::Spans, now - 7 * DAY - 1, now - 7 * DAY, true),
            // Stored today, but about last month.
            (Table::Spans, now - 30 * DAY, now, true),
            // From the far future, stored long ago.
            (Table::Spans, i64::MAX, now - 8 * DAY, true),
            (Table::Spans, i64::MAX, now - 6 * DAY, false),
            (Table::Spans, i64::MIN, now, true),
            // Each signal has its own.
            (Table::Logs, now - 2 * DAY, now - 2 * DAY, true),
            (Table::MetricPoints, now - 2 * DAY, now - 2 * DAY, false),
            (Table::MetricHistograms, now - 8 * DAY, now - 8 * DAY, true),
        ] {
            let mut segment = meta(1, 10);
            segment.table = table;
            segment.max_time = Timestamp(max_time);
            segment.created_at = Timestamp(created_at);
            let expected: &[u64] = if gone { &[1] } else { &[] };
            assert_eq!(expired([&segment], Timestamp(now), &config), expected, "{segment:?}");
        }
    }
}
