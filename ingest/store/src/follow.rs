//! Followers: who wants to see rows as they are published, without asking again and again.
//!
//! What a follower gets is acknowledged: batches come here after their group is synced and published, in the order
//! of the log. A follower that does not keep up loses batches, and is told how many rows that were; it never holds
//! up the log thread, which does no more here than put a handle into a queue. Not here: which rows a follower wants
//! (the query crate), and how many followers there may be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use arrow::array::RecordBatch;
use model::signal::Table;
use model::tenant::TenantId;

/// Memory of the batches that wait for one follower. Some seconds of a busy tenant's logs; the rows may have left
/// the memtable by then, so this is memory that nothing else counts.
pub const QUEUE_BYTES_MAX: u64 = 4 << 20;

/// Batches that wait for one follower. Small ones weigh little, and each still costs a look.
pub const QUEUE_BATCHES_MAX: usize = 1024;

/// Is told of every batch once it is acknowledged, of every tenant and table, in the order of the log. Called on the
/// log thread: it must not wait.
pub trait Observer: std::fmt::Debug + Send + Sync {
    /// A batch of the log record of that number was published.
    fn published(&self, seq: u64, tenant: &TenantId, table: Table, batch: &RecordBatch);
}

/// What a follower gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// Rows in the order they were published, all that waited.
    Batches(Vec<RecordBatch>),
    /// So many rows were published and not kept for this follower.
    Dropped(u64),
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<(RecordBatch, u64)>,
    bytes: u64,
    /// Rows dropped after the batches that wait: once one is dropped, nothing is taken until that is told.
    dropped: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl Queue {
    /// Takes a batch, or counts it as dropped. One that is larger than the whole bound is taken by an empty queue:
    /// it could never be seen otherwise.
    fn offer(&mut self, batch: &RecordBatch, bytes: u64) {
        let fits = self.batches.len() < QUEUE_BATCHES_MAX && self.bytes.saturating_add(bytes) <= QUEUE_BYTES_MAX;
        if self.dropped == 0 && (fits || self.batches.is_empty()) {
            self.batches.push_back((batch.clone(), bytes));
            self.bytes += bytes;
        } else {
            self.dropped += batch.num_rows() as u64;
        }
    }

    /// What waits, oldest first.
    fn take(&mut self) -> Option<Followed> {
        if !self.batches.is_empty() {
            self.bytes = 0;
            return Some(Followed::Batches(self.batches.drain(..).map(|(batch, _)| batch).collect()));
        }
        (self.dropped > 0).then(|| Followed::Dropped(std::mem::take(&mut self.dropped)))
    }
}

#[derive(Debug)]
struct Following {
    tenant: TenantId,
    table: Table,
    queue: Mutex<Queue>,
}

impl Following {
    /// Changes the queue, then wakes whoever waits for it.
    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut queue);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The followers of a store.
#[derive(Debug, Default)]
pub(crate) struct Followers(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    followers: Vec<Weak<Following>>,
    closed: bool,
}

impl Followers {
    pub(crate) fn follow(&self, tenant: &TenantId, table: Table) -> Follower {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = Mutex::new(Queue { closed: list.closed, ..Queue::default() });
        let following = Arc::new(Following { tenant: tenant.clone(), table, queue });
        list.followers.retain(|known| known.strong_count() > 0);
        list.followers.push(Arc::downgrade(&following));
        Follower(following)
    }

    /// Those there are now. Nobody follows most of the time, and then this costs a lock that nobody else wants.
    pub(crate) fn now(&self) -> Current {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Current(list.followers.iter().filter_map(Weak::upgrade).collect())
    }

    /// Ends every follower, those to come too, once it has seen what waits for it.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        for following in self.now().0 {
            following.change(|queue| queue.closed = true);
        }
    }
}

/// The followers at the moment a group is published.
pub(crate) struct Current(Vec<Arc<Following>>);

impl Current {
    /// Whether somebody follows this table of this tenant.
    pub(crate) fn want(&self, tenant: &TenantId, table: Table) -> bool {
        self.0.iter().any(|following| following.table == table && following.tenant == *tenant)
    }

    /// Hands over a published batch.
    pub(crate) fn offer(&self, tenant: &TenantId, table: Table, batch: &RecordBatch, bytes: u64) {
        for following in self.0.iter().filter(|following| following.table == table && following.tenant == *tenant) {
            following.change(|queue| queue.offer(batch, bytes));
        }
    }
}

/// One follower of one table. Dropping it ends it.
#[derive(Debug)]
pub struct Follower(Arc<Following>);

impl Follower {
    /// What was published since the last time; ready with `None` once the store is closed and everything was seen.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Followed>> {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(followed) = queue.take() {
            return Poll::Ready(Some(followed));
        }
        if queue.closed {
            return Poll::Ready(None);
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn rows(count: usize) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1; count]))]).unwrap()
    }

    /// What comes without waiting: rows of each batch, or a negative number of dropped ones.
    fn seen(follower: &mut Follower, woken: &Arc<Woken>) -> Vec<i64> {
        let waker = Waker::from(Arc::clone(woken));
        let mut context = Context::from_waker(&waker);
        let mut seen = Vec::new();
        while let Poll::Ready(Some(followed)) = follower.poll_next(&mut context) {
            match followed {
                Followed::Batches(batches) => seen.extend(batches.iter().map(|batch| batch.num_rows() as i64)),
                Followed::Dropped(rows) => seen.push(-(rows as i64)),
            }
        }
        seen
    }

    #[test]
    fn a_follower_sees_its_own_rows_in_order_and_is_told_what_it_missed() {
        type Case = (&'static str, &'static [(usize, u64)], &'static [i64]);
        const HALF: u64 = QUEUE_BYTES_MAX / 2;
        let cases: [Case; 6] = [
            ("all fit", &[(1, HALF), (2, HALF)], &[1, 2]),
            ("the third does not", &[(1, HALF), (2, HALF), (3, 1)], &[1, 2, -3]),
            ("the gap is at one place", &[(1, HALF), (2, HALF + 1), (3, 1)], &[1, -5]),
            ("one over the bound, alone", &[(4, QUEUE_BYTES_MAX + 1)], &[4]),
            ("one over the bound, behind another", &[(1, 1), (4, QUEUE_BYTES_MAX + 1)], &[1, -4]),
            ("nothing", &[], &[]),
        ];
        for (what, offered, expected) in cases {
            let followers = Followers::default();
            let (tenant, other) = (TenantId::default_tenant(), TenantId::new("other").unwrap());
            let mut follower = followers.follow(&tenant, Table::Logs);
            let woken = Arc::new(Woken::default());
            assert_eq!(seen(&mut follower, &woken), Vec::<i64>::new(), "{what}: before");
            let current = followers.now();
            assert!(current.want(&tenant, Table::Logs) && !current.want(&tenant, Table::Spans));
            assert!(!current.want(&other, Table::Logs));
            for (count, bytes) in offered {
                current.offer(&other, Table::Logs, &rows(100), 1);
                current.offer(&tenant, Table::Spans, &rows(100), 1);
                current.offer(&tenant, Table::Logs, &rows(*count), *bytes);
            }
            assert_eq!(woken.0.load(Ordering::SeqCst), usize::from(!offered.is_empty()), "{what}: woken once");
            assert_eq!(seen(&mut follower, &woken), expected, "{what}");
            current.offer(&tenant, Table::Logs, &rows(9), QUEUE_BYTES_MAX);
            assert_eq!(seen(&mut follower, &woken), [9], "{what}: whoever has caught up misses nothing");
        }
    }

    #[test]
    fn many_small_batches_are_bounded_by_their_number() {
        let followers = Followers::default();
        let mut follower = followers.follow(&TenantId::default_tenant(), Table::Logs);
        for _ in 0..QUEUE_BATCHES_MAX + 3 {
            followers.now().offer(&TenantId::default_tenant(), Table::Logs, &rows(1), 1);
        }
        let seen = seen(&mut follower, &Arc::default());
        assert_eq!((seen.len(), seen.last()), (QUEUE_BATCHES_MAX + 1, Some(&-3)));
    }

    #[test]
    fn a_closed_store_ends_its_followers_after_their_last_row() {
        let followers = Followers::default();
        let tenant = TenantId::default_tenant();
        let (mut stays, goes) = (followers.follow(&tenant, Table::Logs), followers.follow(&tenant, Table::Logs));
        drop(goes);
        assert_eq!(followers.now().0.len(), 1, "whoever went is not kept");
        followers.now().offer(&tenant, Table::Logs, &rows(2), 1);
        followers.close();
        let waker = Waker::noop();
        let mut context = Context::from_waker(waker);
        assert_eq!(stays.poll_next(&mut context), Poll::Ready(Some(Followed::Batches(vec![rows(2)]))));
        assert_eq!(stays.poll_next(&mut context), Poll::Ready(None));
        assert_eq!(followers.follow(&tenant, Table::Logs).poll_next(&mut context), Poll::Ready(None));
    }
}
