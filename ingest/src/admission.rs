//! Admission: one budget of bytes for every request between its first byte and its outcome.
//!
//! A request reserves memory before it allocates it and is refused (retryable) when the budget has
//! no room, so the receivers' memory is bounded whatever clients send. There is no queue: who finds
//! the budget full is told to come back, and who already holds bytes may finish. Not here: limits of
//! one request (receivers) and of what waits to be stored (pipeline).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::export::ExportError;

/// The default budget, bytes: room for two requests of the largest size, or some hundred usual ones.
pub const IN_FLIGHT_BYTES_MAX: u64 = 128 << 20;

/// When a client that found the budget full should come back. A request is in flight for tens of
/// milliseconds, so a second is ample, and short enough that no client gives up.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A budget of bytes in flight, shared by all receivers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ByteBudget(Arc<State>);

#[derive(Debug)]
struct State {
    capacity: u64,
    in_flight: AtomicU64,
    peak: AtomicU64,
    gauge: Gauge,
}

/// The budget has no room for what was asked. Nothing of the reservation was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in-flight bytes exhausted: {wanted} B more do not fit beside {in_flight} B of {capacity} B")]
pub struct BudgetExhausted {
    /// The bytes asked for.
    pub wanted: u64,
    /// The bytes held by all requests at that instant.
    pub in_flight: u64,
    /// The budget.
    pub capacity: u64,
}

impl From<BudgetExhausted> for ExportError {
    fn from(_full: BudgetExhausted) -> Self {
        // How full the server is, is no business of its clients.
        Self::Overloaded { what: "in-flight request bytes are at their limit", retry_after: RETRY_AFTER }
    }
}

impl ByteBudget {
    /// A budget of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(State {
            capacity,
            in_flight: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            gauge: Gauge::default(),
        }))
    }

    /// Registers the gauge `godseye_receiver_in_flight_bytes`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "godseye_receiver_in_flight_bytes",
            "Memory held by requests between their first byte and their outcome",
            self.0.gauge.clone(),
        );
    }

    /// A reservation that holds nothing yet.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), held: 0 }
    }

    /// The bytes held by all requests now.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::Acquire)
    }

    /// The most bytes ever held at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Acquire)
    }
}

/// One request's share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: ByteBudget,
    held: u64,
}

impl Reservation {
    /// The bytes held.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Holds `total` bytes from now on, if that is more than before. It fits when the budget has
    /// room, or when nobody else holds anything: a request larger than the whole budget runs alone.
    ///
    /// # Errors
    /// [`BudgetExhausted`]; what was held before is still held.
    pub fn grow_to(&mut self, total: u64) -> Result<(), BudgetExhausted> {
        let Some(wanted) = total.checked_sub(self.held).filter(|more| *more > 0) else {
            return Ok(());
        };
        let state = &*self.budget.0;
        let mut in_flight = state.in_flight.load(Ordering::Acquire);
        loop {
            let after = in_flight.saturating_add(wanted);
            if after > state.capacity && in_flight != self.held {
                return Err(BudgetExhausted { wanted, in_flight, capacity: state.capacity });
            }
            match state.in_flight.compare_exchange_weak(in_flight, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_before) => {
                    state.peak.fetch_max(after, Ordering::AcqRel);
                    state.gauge.inc_by(i64::try_from(wanted).unwrap_or(i64::MAX));
                    self.held = total;
                    return Ok(());
                }
                Err(now) => in_flight = now,
            }
        }
    }

    /// Gives back all but `total` bytes, if that is less than before.
    pub fn shrink_to(&mut self, total: u64) {
        let freed = self.held.saturating_sub(total);
        if freed > 0 {
            self.budget.0.in_flight.fetch_sub(freed, Ordering::AcqRel);
            self.budget.0.gauge.dec_by(i64::try_from(freed).unwrap_or(i64::MAX));
            self.held = total;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_all_or_nothing_and_given_back() {
        let budget = ByteBudget::new(100);
        let (mut first, mut second) = (budget.reservation(), budget.reservation());
        first.grow_to(60).unwrap();
        second.grow_to(40).unwrap();
        assert_eq!(second.grow_to(41), Err(BudgetExhausted { wanted: 1, in_flight: 100, capacity: 100 }));
        assert_eq!((second.held(), budget.in_flight()), (40, 100), "a refusal takes and loses nothing");
        first.shrink_to(10);
        first.shrink_to(50);
        assert_eq!((first.held(), budget.in_flight()), (10, 50), "shrinking never grows");
        second.grow_to(90).unwrap();
        second.grow_to(5).unwrap();
        assert_eq!((second.held(), budget.in_flight()), (90, 100), "growing never shrinks");
        drop(first);
        drop(second);
        assert_eq!((budget.in_flight(), budget.peak(), budget.0.gauge.get()), (0, 100, 0));
    }

    #[test]
    fn a_request_over_the_budget_runs_alone() {
        let budget = ByteBudget::new(10);
        let (mut large, mut small) = (budget.reservation(), budget.reservation());
        large.grow_to(5).unwrap();
        large.grow_to(50).unwrap();
        assert!(small.grow_to(1).is_err());
        large.shrink_to(9);
        small.grow_to(1).unwrap();
        assert!(large.grow_to(50).is_err(), "it is not alone any more");
        drop(small);
        large.grow_to(50).unwrap();
    }

    #[test]
    fn threads_never_exceed_the_budget_together() {
        let budget = ByteBudget::new(1000);
        std::thread::scope(|scope| {
            for step in 1..=4_u64 {
                let budget = &budget;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let mut held = budget.reservation();
                        // Never alone over the budget: 4 × 7 × 39 > 1000, but each is below it.
                        if held.grow_to(step * (round % 40)).is_ok() {
                            held.grow_to(7 * step * (round % 40)).ok();
                        }
                    }
                });
            }
        });
        assert_eq!(budget.in_flight(), 0);
        // One request alone may pass the budget by what it asks: at most 7 × 4 × 39 = 1092.
        assert!(budget.peak() <= 1092, "{}", budget.peak());
    }
}
