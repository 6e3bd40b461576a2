//! An alert, and what becomes of two reports about the same one.
//!
//! Pure: every question about time takes `now` (I5). Not here: where alerts are kept.

use std::time::Duration;

use model::time::Timestamp;

use crate::instant::nanos;
use crate::labels::{Fingerprint, LabelSet};

/// Labels or annotations of one alert. Prometheus sends some ten; a message must stay readable.
const LABELS_MAX: usize = 256;

/// Bytes of one alert's labels and annotations together.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What a client says about an alert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostedAlert {
    /// What the alert is about; its identity.
    pub labels: LabelSet,
    /// What is said about it.
    pub annotations: LabelSet,
    /// Since when; now if it is not said.
    pub starts_at: Option<Timestamp>,
    /// Until when; `resolve_timeout` from now if it is not said.
    pub ends_at: Option<Timestamp>,
    /// Where it comes from.
    pub generator_url: String,
}

/// An alert that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// What it is about; its identity. Not empty.
    pub labels: LabelSet,
    /// What is said about it.
    pub annotations: LabelSet,
    /// Since when it is active.
    pub starts_at: Timestamp,
    /// When it ends, or ended.
    pub ends_at: Timestamp,
    /// When it was last heard of.
    pub updated_at: Timestamp,
    /// Whether the end is `resolve_timeout`'s, which the next report moves, and no report's own.
    pub timeout: bool,
    /// Where it comes from.
    pub generator_url: String,
}

impl PostedAlert {
    /// The alert this report makes, as Alertmanager fills in what it leaves out.
    ///
    /// # Errors
    ///
    /// When there are no labels, too many or too long ones, or the end is before the start.
    pub fn accept(self, now: Timestamp, resolve_timeout: Duration) -> Result<Alert, String> {
        let starts_at = self.starts_at.or(self.ends_at).unwrap_or(now);
        let timeout = self.ends_at.is_none();
        let ends_at = self.ends_at.unwrap_or_else(|| now.plus_nanos(nanos(resolve_timeout)));
        let labels = self.labels.without_empty();
        if labels.is_empty() {
            return Err("an alert needs at least one label".to_owned());
        }
        if ends_at < starts_at {
            return Err(format!("alert {labels}: the start time must be before the end time"));
        }
        if labels.len() > LABELS_MAX || self.annotations.len() > LABELS_MAX {
            return Err(format!("an alert has at most {LABELS_MAX} labels and {LABELS_MAX} annotations"));
        }
        let bytes: usize = labels.iter().chain(self.annotations.iter()).map(|(n, v)| n.len() + v.len()).sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(format!(
                "an alert has {bytes} bytes of labels and annotations, at most {TEXT_BYTES_MAX} are kept"
            ));
        }
        if let Some(problem) = labels.problem().or_else(|| self.annotations.problem()) {
            return Err(problem);
        }
        Ok(Alert {
            labels,
            annotations: self.annotations,
            starts_at,
            ends_at,
            updated_at: now,
            timeout,
            generator_url: self.generator_url,
        })
    }
}

impl Alert {
    /// The alert's identity.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.labels.fingerprint()
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_resolved(&self, now: Timestamp) -> bool {
        self.ends_at <= now
    }

    /// Whether its end is one that nobody reported: it comes unless the alert is sent again. Prometheus
    /// names such an end with every report, others leave it to `resolve_timeout`.
    #[must_use]
    pub fn ends_unreported(&self) -> bool {
        self.ends_at > self.updated_at
    }

    /// What holds after a newer report: the two become one if their times overlap, else the newer
    /// replaces the older.
    #[must_use]
    pub fn updated_by(&self, newer: Self, now: Timestamp) -> Self {
        let ends_inside = newer.ends_at > self.starts_at && newer.ends_at < self.ends_at;
        let starts_inside = newer.starts_at > self.starts_at && newer.starts_at < self.ends_at;
        if ends_inside || starts_inside { self.merged_with(newer, now) } else { newer }
    }

    fn merged_with(&self, newer: Self, now: Timestamp) -> Self {
        if newer.updated_at < self.updated_at {
            return newer.merged_with(self.clone(), now);
        }
        let mut merged = newer;
        merged.starts_at = merged.starts_at.min(self.starts_at);
        let keeps_end = if merged.is_resolved(now) {
            // Of two ends that are past, the later one.
            self.is_resolved(now) && self.ends_at > merged.ends_at
        } else {
            // An end somebody named wins over one that a timeout made.
            self.ends_at > merged.ends_at && !self.timeout
        };
        if keeps_end {
            merged.ends_at = self.ends_at;
            merged.timeout = self.timeout;
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = Timestamp::NANOS_PER_SECOND;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    fn posted(starts: Option<i64>, ends: Option<i64>) -> PostedAlert {
        PostedAlert {
            labels: [("alertname", "x"), ("empty", "")].into_iter().collect(),
            starts_at: starts.map(at),
            ends_at: ends.map(at),
            ..PostedAlert::default()
        }
    }

    #[test]
    fn reports_are_filled_in() {
        // Start, end, now → start, end, whether by timeout.
        let rows = [
            (None, None, 100, Some((100, 400, true))),
            (Some(50), None, 100, Some((50, 400, true))),
            (None, Some(90), 100, Some((90, 90, false))),
            (Some(50), Some(90), 100, Some((50, 90, false))),
            (Some(90), Some(50), 100, None),
            // A start in the future beyond the timeout.
            (Some(500), None, 100, None),
        ];
        for (starts, ends, now, want) in rows {
            let got = posted(starts, ends).accept(at(now), Duration::from_secs(300)).ok();
            let got = got.map(|alert| (alert.starts_at.0 / SECOND, alert.ends_at.0 / SECOND, alert.timeout));
            assert_eq!(got, want, "{starts:?} {ends:?}");
        }
        let alert = posted(None, None).accept(at(0), Duration::ZERO).unwrap();
        assert_eq!(alert.labels.len(), 1, "an empty label is none");
        assert!(PostedAlert::default().accept(at(0), Duration::ZERO).is_err());
    }

    #[test]
    fn two_reports_become_one_when_they_overlap() {
        // Old (start, end, timeout), new (start, end, timeout), now → (start, end).
        let rows = [
            // Sent again while it fires: the start stays, the timeout moves.
            ((0, 300, true), (60, 360, true), 60, (0, 360)),
            // Resolved by its client: the start stays, the end is the client's.
            ((0, 300, true), (60, 60, false), 60, (0, 60)),
            // A named end in the future is not shortened by a timeout.
            ((0, 900, false), (60, 360, true), 60, (0, 900)),
            // But a named earlier one replaces a later timeout.
            ((0, 900, true), (60, 360, false), 60, (0, 360)),
            // Two past ends: the later.
            ((0, 50, false), (0, 40, false), 60, (0, 50)),
            // Fires again after its end: a new story.
            ((0, 50, false), (60, 360, true), 60, (60, 360)),
        ];
        for ((os, oe, ot), (ns, ne, nt), now, want) in rows {
            let make = |starts, ends, timeout, updated| Alert {
                labels: LabelSet::default(),
                annotations: LabelSet::default(),
                starts_at: at(starts),
                ends_at: at(ends),
                updated_at: at(updated),
                timeout,
                generator_url: String::new(),
            };
            let merged = make(os, oe, ot, os).updated_by(make(ns, ne, nt, now), at(now));
            assert_eq!((merged.starts_at.0 / SECOND, merged.ends_at.0 / SECOND), want, "{os} {oe} {ns} {ne}");
        }
    }

    proptest! {
        /// A client that keeps sending the same alert never moves its start, whatever the pauses, as
        /// long as no pause reaches the timeout.
        #[test]
        fn sending_again_keeps_the_start(pauses in proptest::collection::vec(1_i64..299, 1..20)) {
            let timeout = Duration::from_secs(300);
            let mut now = 0;
            let mut alert = posted(None, None).accept(at(0), timeout).unwrap();
            for pause in pauses {
                now += pause;
                let again = posted(None, None).accept(at(now), timeout).unwrap();
                alert = alert.updated_by(again, at(now));
                prop_assert_eq!(alert.starts_at, at(0));
                prop_assert_eq!(alert.ends_at, at(now + 300));
            }
            let end = posted(None, Some(now)).accept(at(now), timeout).unwrap();
            prop_assert!(alert.updated_by(end, at(now)).is_resolved(at(now)));
        }
    }
}
