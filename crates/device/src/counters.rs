//! What a steady step must not do, counted, so that tests can see that it doesn't.

use std::sync::atomic::{AtomicU64, Ordering};

/// What this process has done so far; see [`counters`]. Take it before and after a step and compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tensors and page-locked blocks that were allocated.
    pub allocations: u64,
    /// Times that a GPU's memory was given back.
    pub frees: u64,
    /// Times that the host waited for a whole stream.
    pub synchronises: u64,
    /// Times that the host waited for one event.
    pub event_waits: u64,
    /// Copies to a GPU from memory that isn't page-locked: the driver stages them and the host waits.
    pub pageable_copies: u64,
    /// Copies to a GPU from page-locked memory.
    pub pinned_copies: u64,
    /// Kernels that were launched, matrix products included.
    pub launches: u64,
}

/// One counter.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one more.
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) static ALLOCATIONS: Counter = Counter::new();
/// Of GPUs' memory, which a recorded graph may read.
pub(crate) static FREES: Counter = Counter::new();
pub(crate) static SYNCHRONISES: Counter = Counter::new();
pub(crate) static EVENT_WAITS: Counter = Counter::new();
pub(crate) static PAGEABLE_COPIES: Counter = Counter::new();
pub(crate) static PINNED_COPIES: Counter = Counter::new();
pub(crate) static LAUNCHES: Counter = Counter::new();

/// What all devices of this process have done so far.
#[must_use]
pub fn counters() -> Counters {
    Counters {
        allocations: ALLOCATIONS.get(),
        frees: FREES.get(),
        synchronises: SYNCHRONISES.get(),
        event_waits: EVENT_WAITS.get(),
        pageable_copies: PAGEABLE_COPIES.get(),
        pinned_copies: PINNED_COPIES.get(),
        launches: LAUNCHES.get(),
    }
}
