//! Counting of lost records by their sequence numbers.
//!
//! Arithmetic only: it is told which numbers were seen, which are gone and what is proven durable,
//! in log order, and knows nothing of files. A range that is gone waits until something written
//! later in the same process proves that it had been durable, or until that process ends.

use std::collections::VecDeque;

/// The account of one recovery.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Numbers up to here never count as lost: the caller has them elsewhere.
    covered: u64,
    last: u64,
    counted: u64,
    last_good: u64,
    lost: u64,
    lost_durable: u64,
    /// Lost ranges, both ends included, ascending, not yet proven durable.
    pending: VecDeque<(u64, u64)>,
}

impl Ledger {
    pub(super) fn new(covered: Option<u64>) -> Self {
        let covered = covered.unwrap_or(0);
        Self { covered, last: 0, counted: 0, last_good: 0, lost: 0, lost_durable: 0, pending: VecDeque::new() }
    }

    /// The highest number that is accounted for: seen, lost or skipped.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The highest number that was a record, good or lost: unlike `last`, without skipped ones.
    pub(super) fn counted(&self) -> u64 {
        self.counted
    }

    /// The highest number of a good record.
    pub(super) fn last_good(&self) -> u64 {
        self.last_good
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn lost_durable(&self) -> u64 {
        self.lost_durable
    }

    /// No record has a number from the last one up to `seq`.
    pub(super) fn skip_to(&mut self, seq: u64) {
        self.last = self.last.max(seq);
    }

    /// Numbers up to `seq` were records, and how they went is not to be counted.
    pub(super) fn begin_after(&mut self, seq: u64) {
        self.last = self.last.max(seq);
        self.counted = self.counted.max(seq);
    }

    /// Every number after the last one, up to `seq`, was a record and is gone. Answers how many
    /// of them count.
    pub(super) fn lose_to(&mut self, seq: u64) -> u64 {
        let first = self.last.max(self.covered) + 1;
        self.begin_after(seq);
        if first > seq {
            return 0;
        }
        self.lost += seq + 1 - first;
        self.pending.push_back((first, seq));
        seq + 1 - first
    }

    /// A good record; the numbers between the last one and it are lost.
    pub(super) fn good(&mut self, seq: u64, durable_seq: u64) {
        self.lose_to(seq - 1);
        self.begin_after(seq);
        self.last_good = seq;
        self.prove(durable_seq);
    }

    /// Everything up to `seq` was durable at some time in the process that wrote it.
    pub(super) fn prove(&mut self, seq: u64) {
        while let Some((first, last)) = self.pending.front_mut() {
            if *first > seq {
                return;
            }
            let proven = seq.min(*last);
            self.lost_durable += proven + 1 - *first;
            *first = proven + 1;
            if *first > *last {
                self.pending.pop_front();
            }
        }
    }

    /// A later process wrote what follows: it proves nothing about numbers it never synced.
    pub(super) fn end_of_process(&mut self) {
        self.pending.clear();
    }
}
