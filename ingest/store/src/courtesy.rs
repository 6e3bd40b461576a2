//! Background work makes room for questions: while somebody waits for an answer, merges pause between two batches.
//!
//! Priorities of threads alone do not do it: a batch that is being merged takes as long as a small question does, and two
//! cores that share their units slow each other down. A pause is bounded, so that questions without end hold nothing up for
//! ever: what may be paused in a piece of work is its budget. Flushes do not pause: what is not flushed is looked through row
//! by row, and acknowledgements wait for its memory. Not here: who asks (whoever holds an [`Asking`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many questions are being answered.
#[derive(Debug, Default)]
pub struct Courtesy {
    waiting: Mutex<Waiting>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    questions: usize,
    /// There are no pauses any more.
    is_over: bool,
}

/// A question that is being answered, until this is dropped.
#[derive(Debug)]
pub struct Asking(Arc<Courtesy>);

impl Courtesy {
    /// Somebody begins to wait for an answer.
    #[must_use]
    pub fn ask(self: &Arc<Self>) -> Asking {
        self.lock().questions += 1;
        Asking(Arc::clone(self))
    }

    /// Ends all pauses, those of later work too: the process wants to end.
    pub(crate) fn end(&self) {
        self.lock().is_over = true;
        self.answered.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody asks any more, `at_most` so long.
    fn wait(&self, at_most: Duration) {
        let pauses = |waiting: &mut Waiting| waiting.questions > 0 && !waiting.is_over;
        let waited = self.answered.wait_timeout_while(self.lock(), at_most, pauses);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.questions = waiting.questions.saturating_sub(1);
        if waiting.questions == 0 {
            self.0.answered.notify_all();
        }
    }
}

/// One piece of background work, and how long it may still pause.
pub(crate) struct Pauses<'a> {
    courtesy: &'a Courtesy,
    left: Duration,
}

impl<'a> Pauses<'a> {
    /// A piece that may pause for so long in all.
    pub(crate) const fn new(courtesy: &'a Courtesy, budget: Duration) -> Self {
        Self { courtesy, left: budget }
    }

    /// Between two batches: pauses while somebody asks.
    pub(crate) fn between_batches(&mut self) {
        if self.left.is_zero() {
            return;
        }
        let began = Instant::now();
        self.courtesy.wait(self.left);
        self.left = self.left.saturating_sub(began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// No answer takes this long.
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn work_goes_on_when_the_last_question_is_answered() {
        let courtesy = Arc::new(Courtesy::default());
        let (one, two) = (courtesy.ask(), courtesy.ask());
        let (done, is_done) = mpsc::channel();
        let working = Arc::clone(&courtesy);
        let work = std::thread::spawn(move || {
            let mut pauses = Pauses::new(&working, LONG);
            pauses.between_batches();
            done.send(()).unwrap();
            pauses.left
        });
        drop(one);
        assert!(is_done.try_recv().is_err(), "the other question is not answered");
        drop(two);
        is_done.recv().unwrap();
        assert!(work.join().unwrap() < LONG, "the pause counts");
    }

    #[test]
    fn the_end_of_the_process_ends_a_pause() {
        let courtesy = Arc::new(Courtesy::default());
        let _asking = courtesy.ask();
        let working = Arc::clone(&courtesy);
        let work = std::thread::spawn(move || Pauses::new(&working, LONG).between_batches());
        courtesy.end();
        work.join().unwrap();
    }

    #[test]
    fn a_budget_ends_and_then_questions_hold_nothing_up() {
        let courtesy = Arc::new(Courtesy::default());
        let _asking = courtesy.ask();
        let mut pauses = Pauses::new(&courtesy, Duration::from_millis(2));
        for _ in 0..1000 {
            // Without an end to the budget this would take for ever.
            pauses.between_batches();
        }
        assert_eq!(pauses.left, Duration::ZERO);
    }
}
