//! The life of a block over a lock: idle, exclusive, frozen or in flight, and idle again.

use crate::ledger::{Attempt, Fence, Ledger, Memory, Purpose, Slot};
use crate::sync::{Arc, Mutex, MutexGuard};

/// Why there is no block.
pub(crate) enum Refusal<E> {
    /// All are in use.
    Exhausted { cap_bytes: usize, in_use_bytes: usize },
    /// The device refused.
    Failed(E),
}

/// A pool's state, shared by the pool and all its blocks.
pub(crate) struct Shared<M: Memory, F: Fence>(Arc<Guarded<M, F>>);

/// The state behind its lock; the last share of it waits for the copies.
struct Guarded<M: Memory, F: Fence>(Mutex<Ledger<M, F>>);

impl<M: Memory, F: Fence> Guarded<M, F> {
    fn lock(&self) -> MutexGuard<'_, Ledger<M, F>> {
        // No code panics under the lock, and the ledger is whole between any two of its calls.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<M: Memory, F: Fence> Drop for Guarded<M, F> {
    fn drop(&mut self) {
        self.lock().close();
    }
}

impl<M: Memory, F: Fence> Clone for Shared<M, F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Memory, F: Fence> Shared<M, F> {
    pub(crate) fn new(cap_bytes: usize) -> Self {
        Self(Arc::new(Guarded(Mutex::new(Ledger::new(cap_bytes)))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger<M, F>> {
        self.0.lock()
    }

    /// Makes, finds or waits for a block; `pin` makes memory. The lock is held neither while it does nor while a copy is
    /// waited for.
    pub(crate) fn acquire<E: From<F::Error>>(
        &self,
        class_bytes: usize,
        purpose: Purpose,
        pin: impl FnOnce() -> Result<M, E>,
    ) -> Result<Exclusive<M, F>, Refusal<E>> {
        loop {
            let attempt = self.lock().attempt(class_bytes, purpose).map_err(|e| Refusal::Failed(e.into()))?;
            match attempt {
                Attempt::Taken(slot) => return Ok(Exclusive(self.share(slot))),
                Attempt::Pin => {
                    let memory = pin();
                    let mut ledger = self.lock();
                    let admitted = match memory {
                        Ok(memory) => Ok(ledger.admit(memory, class_bytes, purpose)),
                        Err(error) => {
                            ledger.give_up(class_bytes, purpose);
                            Err(Refusal::Failed(error))
                        }
                    };
                    drop(ledger);
                    return admitted.map(|slot| Exclusive(self.share(slot)));
                }
                Attempt::Wait(fence) => {
                    let waited = fence.wait();
                    self.lock().recycle(fence);
                    waited.map_err(|e| Refusal::Failed(e.into()))?;
                }
                Attempt::Exhausted { cap_bytes, in_use_bytes } => {
                    return Err(Refusal::Exhausted { cap_bytes, in_use_bytes });
                }
            }
        }
    }

    /// The frozen block that holds these addresses, and where in it they begin.
    pub(crate) fn frozen_around(&self, address: usize, len_bytes: usize) -> Option<(Share<M, F>, usize)> {
        let found = self.lock().frozen_around(address, len_bytes);
        found.map(|(slot, offset)| (self.share(slot), offset))
    }

    fn share(&self, slot: Arc<Slot<M>>) -> Share<M, F> {
        Share { slot: Some(slot), shared: self.clone() }
    }
}

/// One owner's share of a block.
pub(crate) struct Share<M: Memory, F: Fence> {
    /// Taken when the share is given away.
    slot: Option<Arc<Slot<M>>>,
    shared: Shared<M, F>,
}

impl<M: Memory, F: Fence> Share<M, F> {
    pub(crate) fn shared(&self) -> &Shared<M, F> {
        &self.shared
    }

    pub(crate) fn memory(&self) -> Option<&M> {
        self.slot.as_deref().map(|slot| &slot.memory)
    }

    /// Gives the share to a copy, for as long as that takes.
    pub(crate) fn fly(mut self, fence: Arc<F>) {
        if let Some(slot) = self.slot.take() {
            self.shared.lock().fly(slot, fence);
        }
    }

    /// Keeps the block out of use for ever: a broken device may still read it.
    pub(crate) fn abandon(mut self) {
        if let Some(slot) = self.slot.take() {
            self.shared.lock().abandon(slot);
        }
    }
}

impl<M: Memory, F: Fence> Drop for Share<M, F> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.shared.lock().release(slot);
        }
    }
}

/// A block with one owner, who may write it.
pub(crate) struct Exclusive<M: Memory, F: Fence>(Share<M, F>);

impl<M: Memory, F: Fence> Exclusive<M, F> {
    pub(crate) fn memory(&self) -> Option<&M> {
        self.0.memory()
    }

    pub(crate) fn memory_mut(&mut self) -> Option<&mut M> {
        let alone = self.0.slot.as_mut().and_then(Arc::get_mut);
        debug_assert!(alone.is_some(), "an exclusive block had two owners");
        alone.map(|slot| &mut slot.memory)
    }

    /// Lets it be read by many, and written by nobody.
    pub(crate) fn freeze(self) -> Frozen<M, F> {
        if let Some(slot) = &self.0.slot {
            self.0.shared.lock().freeze(slot);
        }
        Frozen(self.0)
    }

    pub(crate) fn into_share(self) -> Share<M, F> {
        self.0
    }
}

/// A block with any number of owners, who may read it.
pub(crate) struct Frozen<M: Memory, F: Fence>(Share<M, F>);

impl<M: Memory, F: Fence> Frozen<M, F> {
    pub(crate) fn memory(&self) -> Option<&M> {
        self.0.memory()
    }

    /// A share for a copy.
    pub(crate) fn share(&self) -> Share<M, F> {
        Share { slot: self.0.slot.clone(), shared: self.0.shared.clone() }
    }
}

impl<M: Memory, F: Fence> Clone for Frozen<M, F> {
    fn clone(&self) -> Self {
        Self(self.share())
    }
}
