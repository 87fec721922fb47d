//! Bounds the waiting queue at its entrance, so that a caller hears at once that it is full.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many requests wait, and how many may.
#[derive(Debug)]
pub(crate) struct QueueGate {
    waiting: AtomicUsize,
    max_waiting: usize,
}

impl QueueGate {
    pub(crate) fn new(max_waiting: usize) -> Self {
        Self { waiting: AtomicUsize::new(0), max_waiting }
    }

    /// Takes a place in the queue; `false` if it is full.
    pub(crate) fn enter(&self) -> bool {
        let next = |waiting: usize| (waiting < self.max_waiting).then_some(waiting + 1);
        // Only the count itself is shared: the requests travel through a channel, which orders them.
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Gives a place back.
    pub(crate) fn leave(&self) {
        let next = |waiting: usize| waiting.checked_sub(1);
        let left = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        debug_assert!(left.is_ok(), "more requests left the queue than entered it");
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn max_waiting(&self) -> usize {
        self.max_waiting
    }
}
