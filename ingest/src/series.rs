//! The limit on active metric series, per tenant.
//!
//! A series that is known keeps flowing whatever happens; a new one over the limit is refused for
//! good (`series_limit` in `partial_success`), since sending it again would not help. A series that
//! has been silent for [`IDLE_NS`] makes room. After a restart every series counts as new again, in
//! the order in which they report.
//!
//! Not here: how a series is identified; the decoder hashes name, unit, type, resource, scope and
//! attributes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
    tenants: Arc<Mutex<HashMap<TenantId, Active>>>,
    active: Family<TenantLabel, Gauge>,
}

#[derive(Debug, Default)]
struct Active {
    /// (series id, last seen): the id is a hash already.
    series: HashTable<(u64, i64)>,
    swept_at: i64,
}

impl Active {
    fn admit(&mut self, id: u64, now: Timestamp, series_max: usize) -> bool {
        if let Some(known) = self.series.find_mut(id, |(other, _)| *other == id) {
            known.1 = now.0;
            return true;
        }
        if self.series.len() >= series_max && now.0 - self.swept_at >= SWEEP_INTERVAL_NS {
            self.swept_at = now.0;
            self.series.retain(|(_, seen)| now.0 - *seen < IDLE_NS);
        }
        if self.series.len() >= series_max {
            return false;
        }
        self.series.insert_unique(id, (id, now.0), |(other, _)| *other);
        true
    }
}

impl SeriesLimiter {
    /// At most `series_max` active series per tenant.
    #[must_use]
    pub fn new(series_max: usize) -> Self {
        Self { series_max, tenants: Arc::default(), active: Family::default() }
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

impl SeriesGate for SeriesLimiter {
    fn admit(&mut self, tenant: &TenantId, series_id: u64, now: Timestamp) -> bool {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let active = match tenants.get_mut(tenant) {
            Some(active) => active,
            None => tenants.entry(tenant.clone()).or_default(),
        };
        let before = active.series.len();
        let admitted = active.admit(series_id, now, self.series_max);
        if active.series.len() != before {
            let count = i64::try_from(active.series.len()).unwrap_or(i64::MAX);
            self.active.get_or_create(&TenantLabel { tenant: tenant.to_string() }).set(count);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_series_flow_and_silent_ones_make_room() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let mut limiter = SeriesLimiter::new(2);
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
        ] {
            assert_eq!(limiter.admit(tenant, id, Timestamp(now)), admitted, "{tenant} {id} at {now}");
        }
    }
}
