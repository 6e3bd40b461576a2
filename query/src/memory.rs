//! The memory account of one query: its limit, its peak, and the permit that it runs under.
//!
//! Every operator that keeps rows reserves from it. The permit lives here because an account is shared by all that
//! belongs to a query, tasks of DataFusion's own included: it comes back when the last of them has stopped, so what
//! still runs is still counted. Not here: what operators do not reserve; that is bounded by the size of their batches
//! ([`crate::bounds::rows_at_once`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

use crate::queue::Permit;

/// The most that was reserved at once, bytes; readable while the query runs.
pub(crate) type Peak = Arc<AtomicUsize>;

#[derive(Debug)]
pub(crate) struct Account {
    inner: Arc<dyn MemoryPool>,
    peak: Peak,
    _permit: Arc<Permit>,
}

impl Account {
    pub(crate) const fn new(inner: Arc<dyn MemoryPool>, peak: Peak, permit: Arc<Permit>) -> Self {
        Self { inner, peak, _permit: permit }
    }

    fn note(&self) {
        self.peak.fetch_max(self.inner.reserved(), Ordering::Relaxed);
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

impl MemoryPool for Account {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.inner.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.inner.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.inner.grow(reservation, additional);
        self.note();
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.inner.try_grow(reservation, additional)?;
        self.note();
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.inner.memory_limit()
    }
}
