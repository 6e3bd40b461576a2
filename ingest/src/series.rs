//! The limit on active metric series, per tenant.
//!
//! A series that is known keeps flowing whatever happens; a new one over the limit is refused for
//! good (`series_limit` in `partial_success`), since sending it again would not help. A series that
//! has been silent for [`IDLE_NS`] makes room. After a restart every series counts as new again, in
//! the order in which they report.
//!
//! A request's new series count while it is on its way, and for good once it is stored: those of a
//! request that is malformed, or that the log refuses, leave with it. A series that two requests
//! bring at the same time leaves with the first of them that fails, and counts again with its
//! next point.
//!
//! Not here: how a series is identified; the decoder hashes name, unit, type, resource, scope and
//! attributes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use model::tenant::TenantId;
use model::time::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::decode::SeriesGate;

/// A series without a point for this long no longer counts: twice the longest usual export
/// interval would be minutes; an hour spares batch jobs.
pub const IDLE_NS: i64 = 3_600 * Timestamp::NANOS_PER_SECOND;

/// Silent series are looked for at most this often, since the search visits every series.
const SWEEP_INTERVAL_NS: i64 = 60 * Timestamp::NANOS_PER_SECOND;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

/// Which series are active, for all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SeriesLimiter {
    series_max: usize,
    tenants: Arc<Mutex<HashMap<TenantId, Arc<TenantSeries>>>>,
    active: Family<TenantLabel, Gauge>,
}

#[derive(Debug)]
struct TenantSeries {
    active: Mutex<Active>,
    count: Gauge,
}

impl TenantSeries {
    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, active: &Active) {
        self.count.set(i64::try_from(active.series.len()).unwrap_or(i64::MAX));
    }
}

#[derive(Debug, Default)]
struct Active {
    /// (series id, last seen): the id is a hash already.
    series: HashTable<(u64, i64)>,
    swept_at: i64,
}

/// What became of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    Known,
    New,
    No,
}

impl Active {
    fn admit(&mut self, id: u64, now: Timestamp, series_max: usize) -> Admitted {
        if let Some(known) = self.series.find_mut(id, |(other, _)| *other == id) {
            known.1 = now.0;
            return Admitted::Known;
        }
        // A clock that was set back must not put the search off, nor keep what it has seen later.
        let since_sweep = now.0 - self.swept_at;
        if self.series.len() >= series_max && !(0..SWEEP_INTERVAL_NS).contains(&since_sweep) {
            self.swept_at = now.0;
            self.series.retain(|(_, seen)| {
                *seen = (*seen).min(now.0);
                now.0 - *seen < IDLE_NS
            });
        }
        if self.series.len() >= series_max {
            return Admitted::No;
        }
        self.series.insert_unique(id, (id, now.0), |(other, _)| *other);
        Admitted::New
    }

    fn forget(&mut self, id: u64) {
        if let Ok(series) = self.series.find_entry(id, |(other, _)| *other == id) {
            series.remove();
        }
    }
}

impl SeriesLimiter {
    /// At most `series_max` active series per tenant.
    #[must_use]
    pub fn new(series_max: usize) -> Self {
        Self { series_max, tenants: Arc::default(), active: Family::default() }
    }

    /// The gate for one request, received now.
    #[must_use]
    pub fn request(&self, tenant: &TenantId, now: Timestamp) -> RequestSeries {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let tenant = match tenants.get(tenant) {
            Some(series) => Arc::clone(series),
            None => {
                let count = self.active.get_or_create_owned(&TenantLabel { tenant: tenant.to_string() });
                let series = Arc::new(TenantSeries { active: Mutex::default(), count });
                tenants.insert(tenant.clone(), Arc::clone(&series));
                series
            }
        };
        RequestSeries { tenant, series_max: self.series_max, now, new: Vec::new() }
    }

    /// Registers the gauge `godseye_ingest_active_series`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "godseye_ingest_active_series",
            "Metric series that count towards the limit; silent ones leave when it is reached",
            self.active.clone(),
        );
    }
}

/// The series of one request. Dropped, it takes back the new ones.
#[derive(Debug)]
pub struct RequestSeries {
    tenant: Arc<TenantSeries>,
    series_max: usize,
    now: Timestamp,
    new: Vec<u64>,
}

impl RequestSeries {
    /// The request is stored: its new series count for good.
    pub fn keep(mut self) {
        if !self.new.is_empty() {
            self.new.clear();
            self.tenant.tell(&self.tenant.lock());
        }
    }
}

impl SeriesGate for RequestSeries {
    fn admit(&mut self, series_id: u64) -> bool {
        let admitted = self.tenant.lock().admit(series_id, self.now, self.series_max);
        if admitted == Admitted::New {
            self.new.push(series_id);
        }
        admitted != Admitted::No
    }
}

impl Drop for RequestSeries {
    fn drop(&mut self) {
        if !self.new.is_empty() {
            let mut active = self.tenant.lock();
            self.new.iter().for_each(|id| active.forget(*id));
            self.tenant.tell(&active);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_series_flow_and_silent_ones_make_room() {
        const DAY_NS: i64 = 24 * IDLE_NS;
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let limiter = SeriesLimiter::new(2);
        for (tenant, id, now, admitted) in [
            (&a, 1, 0, true),
            (&a, 2, 0, true),
            (&a, 3, 1, false),
            (&a, 1, IDLE_NS - 1, true),
            // Tenants do not share a limit.
            (&b, 3, IDLE_NS - 1, true),
            // Series 2 has been silent for an hour; 1 has not.
            (&a, 3, IDLE_NS, true),
            (&a, 1, IDLE_NS, true),
            (&a, 2, IDLE_NS, false),
            // The clock is set back by a day: what was seen last counts from then, and an hour later
            // the silent one makes room.
            (&a, 2, IDLE_NS - DAY_NS, false),
            (&a, 1, 2 * IDLE_NS - DAY_NS, true),
            (&a, 2, 2 * IDLE_NS - DAY_NS, true),
            (&a, 3, 2 * IDLE_NS - DAY_NS, false),
        ] {
            let mut request = limiter.request(tenant, Timestamp(now));
            assert_eq!(request.admit(id), admitted, "{tenant} {id} at {now}");
            request.keep();
        }
    }

    #[test]
    fn new_series_of_a_request_that_is_not_stored_leave_with_it() {
        let tenant = TenantId::new("a").unwrap();
        let limiter = SeriesLimiter::new(2);
        let request = || limiter.request(&tenant, Timestamp(0));
        let count = || limiter.active.get_or_create(&TenantLabel { tenant: "a".to_owned() }).get();
        let mut stored = request();
        assert!(stored.admit(1));
        stored.keep();
        let mut failed = request();
        assert_eq!([1, 2, 2, 3].map(|id| failed.admit(id)), [true, true, true, false]);
        // While it is on its way its series take room.
        assert!(!request().admit(3));
        drop(failed);
        assert_eq!(count(), 1);
        let mut next = request();
        assert_eq!([3, 1, 2].map(|id| next.admit(id)), [true, true, false]);
        next.keep();
        assert_eq!(count(), 2);
    }
}
