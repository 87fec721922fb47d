//! What a steady step must not do, counted, so that tests can see that it doesn't.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

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

thread_local! {
    /// Allocations of this thread: a recording must not be blamed for another thread's.
    static OWN_ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts an allocation.
pub(crate) fn count_allocation() {
    ALLOCATIONS.add_one();
    OWN_ALLOCATIONS.set(OWN_ALLOCATIONS.get() + 1);
}

/// What this thread has allocated so far.
pub(crate) fn own_allocations() -> u64 {
    OWN_ALLOCATIONS.get()
}

/// While it lives, no GPU's memory is given back in this process: whoever would, waits. For somebody who must know that addresses
/// which were good a moment ago still are. Holding it while dropping a tensor of a GPU in the same thread waits forever.
#[must_use]
pub fn hold_memory() -> MemoryHold {
    MemoryHold(HELD.read().unwrap_or_else(PoisonError::into_inner))
}

/// See [`hold_memory`].
#[derive(Debug)]
pub struct MemoryHold(#[allow(dead_code)] RwLockReadGuard<'static, ()>);

static HELD: RwLock<()> = RwLock::new(());

/// Counts memory of a GPU that is given back by `free`, when nobody holds it.
pub(crate) fn count_free(free: impl FnOnce()) {
    let _nobody_holds = HELD.write().unwrap_or_else(PoisonError::into_inner);
    FREES.add_one();
    free();
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
