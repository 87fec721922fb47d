//! Which block is whose: the state of a pool, without a lock, a device or a clock.

use std::collections::VecDeque;

use crate::sync::Arc;

/// Memory of a block.
pub(crate) trait Memory {
    /// What tells it from all other memory that is there at the same time.
    fn address(&self) -> usize;
    /// How many addresses it has.
    fn len_bytes(&self) -> usize;
}

/// A mark behind a copy in its stream.
pub(crate) trait Fence {
    /// What a broken device says.
    type Error;
    /// Whether the copy has ended.
    fn is_done(&self) -> Result<bool, Self::Error>;
    /// Waits until it has.
    fn wait(&self) -> Result<(), Self::Error>;
}

/// What a block is taken for; each purpose has a budget of its own, so that neither can starve the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Lent to a caller, for as long as it likes.
    Lent,
    /// On its way through an upload, and back by itself.
    Staging,
}

/// A block's memory. Whoever has the only `Arc` of it may write it; this is all there is to exclusive blocks.
///
/// An `Arc` of a slot is dropped in [`Ledger::release`] and nowhere else, so always under the pool's lock: who finds
/// itself alone there is the last owner, and gives the block back.
pub(crate) struct Slot<M> {
    pub(crate) memory: M,
    class_bytes: usize,
    purpose: Purpose,
}

/// A copy that may not have ended. It is an owner of its block.
struct InFlight<M, F> {
    fence: Arc<F>,
    slot: Arc<Slot<M>>,
}

/// A block that is read-only now, by its address.
struct Frozen<M> {
    address: usize,
    slot: Arc<Slot<M>>,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) blocks: u64,
    pub(crate) copies: u64,
    pub(crate) bytes_copied: u64,
    pub(crate) waits: u64,
    pub(crate) reused: u64,
    pub(crate) direct_copies: u64,
}

/// What became of a wish for a block.
pub(crate) enum Attempt<M, F> {
    /// This block is the caller's alone.
    Taken(Arc<Slot<M>>),
    /// There is room, and it is reserved: make the memory, then call [`Ledger::admit`] or [`Ledger::give_up`].
    Pin,
    /// Room comes when this copy has ended: wait without the lock, call [`Ledger::recycle`], try again.
    Wait(Arc<F>),
    /// Waiting wouldn't help.
    Exhausted { cap_bytes: usize, in_use_bytes: usize },
}

/// Copies of small blocks in flight before an upload waits for one rather than lock another page.
const MAX_STAGING_OF_A_CLASS: usize = 64;

/// The state of a pool.
pub(crate) struct Ledger<M, F> {
    cap_bytes: usize,
    /// The part of it that is for [`Purpose::Staging`] alone.
    staging_bytes: usize,
    pinned_bytes: usize,
    lent_in_use: usize,
    staging_in_use: usize,
    /// The least recently used first.
    idle: Vec<(usize, Arc<Slot<M>>)>,
    /// Sorted by address.
    frozen: Vec<Frozen<M>>,
    /// The oldest first.
    in_flight: VecDeque<InFlight<M, F>>,
    spare_fences: Vec<Arc<F>>,
    pub(crate) tally: Tally,
}

impl<M: Memory, F: Fence> Ledger<M, F> {
    pub(crate) fn new(cap_bytes: usize) -> Self {
        Self {
            cap_bytes,
            staging_bytes: 0,
            pinned_bytes: 0,
            lent_in_use: 0,
            staging_in_use: 0,
            idle: Vec::new(),
            frozen: Vec::new(),
            in_flight: VecDeque::new(),
            spare_fences: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Keeps part of the cap for uploads.
    pub(crate) fn keep_for_staging(&mut self, len_bytes: usize) {
        self.staging_bytes = len_bytes.min(self.cap_bytes);
    }

    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }

    pub(crate) fn in_use_bytes(&self) -> usize {
        self.lent_in_use + self.staging_in_use
    }

    /// What a wish for a block of this size comes to now. Waiting for a block of the right size is preferred to freeing
    /// others: locking pages costs more than most copies.
    pub(crate) fn attempt(&mut self, class_bytes: usize, purpose: Purpose) -> Result<Attempt<M, F>, F::Error> {
        if let Some(slot) = self.take_idle(class_bytes, purpose) {
            return Ok(Attempt::Taken(slot));
        }
        self.reap_oldest()?;
        if let Some(slot) = self.take_idle(class_bytes, purpose) {
            return Ok(Attempt::Taken(slot));
        }
        if self.reserve(class_bytes, purpose) {
            return Ok(Attempt::Pin);
        }
        // Copies of another stream may have ended behind the oldest one.
        self.reap_all()?;
        if let Some(slot) = self.take_idle(class_bytes, purpose) {
            return Ok(Attempt::Taken(slot));
        }
        let coming_back = |it: &&InFlight<M, F>| it.slot.class_bytes == class_bytes && it.slot.purpose == purpose;
        let same = self.ending().find(coming_back).map(|it| it.fence.clone());
        if same.is_none() {
            self.evict_for(class_bytes, purpose);
        }
        if self.reserve(class_bytes, purpose) {
            return Ok(Attempt::Pin);
        }
        let within_budget = self.is_within_budget(class_bytes, purpose);
        let helps = |it: &&InFlight<M, F>| within_budget || it.slot.purpose == purpose;
        let fence = same.or_else(|| self.ending().find(helps).map(|it| it.fence.clone()));
        let (in_use_bytes, cap_bytes) = self.budget(purpose);
        Ok(fence.map_or(Attempt::Exhausted { cap_bytes, in_use_bytes }, |fence| {
            self.tally.waits += 1;
            Attempt::Wait(fence)
        }))
    }

    /// Bytes in use for a purpose, and the most.
    fn budget(&self, purpose: Purpose) -> (usize, usize) {
        match purpose {
            Purpose::Lent => (self.lent_in_use, self.cap_bytes - self.staging_bytes),
            Purpose::Staging => (self.staging_in_use, self.staging_bytes),
        }
    }

    fn is_within_budget(&self, class_bytes: usize, purpose: Purpose) -> bool {
        let (in_use, cap) = self.budget(purpose);
        class_bytes <= cap.saturating_sub(in_use)
    }

    fn in_use_mut(&mut self, purpose: Purpose) -> &mut usize {
        match purpose {
            Purpose::Lent => &mut self.lent_in_use,
            Purpose::Staging => &mut self.staging_in_use,
        }
    }

    fn take_idle(&mut self, class_bytes: usize, purpose: Purpose) -> Option<Arc<Slot<M>>> {
        if !self.is_within_budget(class_bytes, purpose) {
            return None;
        }
        let at = self.idle.iter().rposition(|(class, _)| *class == class_bytes)?;
        let (_, mut slot) = self.idle.remove(at);
        let alone = Arc::get_mut(&mut slot);
        debug_assert!(alone.is_some(), "an idle block had an owner");
        alone?.purpose = purpose;
        *self.in_use_mut(purpose) += class_bytes;
        self.tally.reused += 1;
        Some(slot)
    }

    /// Sets room aside for a new block, if there is any.
    fn reserve(&mut self, class_bytes: usize, purpose: Purpose) -> bool {
        let staged = |it: &&InFlight<M, F>| it.slot.class_bytes == class_bytes && it.slot.purpose == Purpose::Staging;
        let fits = self.is_within_budget(class_bytes, purpose)
            && class_bytes <= self.cap_bytes.saturating_sub(self.pinned_bytes)
            && (purpose == Purpose::Lent || self.in_flight.iter().filter(staged).count() < MAX_STAGING_OF_A_CLASS);
        if fits {
            self.pinned_bytes += class_bytes;
            *self.in_use_mut(purpose) += class_bytes;
        }
        fits
    }

    /// Makes the block for which room was reserved.
    pub(crate) fn admit(&mut self, memory: M, class_bytes: usize, purpose: Purpose) -> Arc<Slot<M>> {
        self.tally.blocks += 1;
        Arc::new(Slot { memory, class_bytes, purpose })
    }

    /// Gives up the room that was reserved.
    pub(crate) fn give_up(&mut self, class_bytes: usize, purpose: Purpose) {
        self.pinned_bytes -= class_bytes;
        *self.in_use_mut(purpose) -= class_bytes;
    }

    /// Frees idle blocks, the least recently used first, if that makes room.
    fn evict_for(&mut self, class_bytes: usize, purpose: Purpose) {
        let idle_bytes = self.idle.iter().map(|(class, _)| class).sum::<usize>();
        let kept = self.pinned_bytes.saturating_sub(idle_bytes);
        if !self.is_within_budget(class_bytes, purpose) || class_bytes > self.cap_bytes.saturating_sub(kept) {
            return;
        }
        let mut num_evicted = 0;
        for (class, _) in &self.idle {
            if class_bytes <= self.cap_bytes.saturating_sub(self.pinned_bytes) {
                break;
            }
            self.pinned_bytes -= class;
            num_evicted += 1;
        }
        self.tally.blocks -= num_evicted as u64;
        self.idle.drain(..num_evicted);
    }

    /// Copies whose block nobody but copies owns, so that waiting for them makes room.
    fn ending(&self) -> impl Iterator<Item = &InFlight<M, F>> {
        self.in_flight.iter().filter(|it| {
            let copies = self.in_flight.iter().filter(|other| Arc::ptr_eq(&other.slot, &it.slot)).count();
            let index = usize::from(self.frozen_at(it.slot.memory.address()).is_ok());
            Arc::strong_count(&it.slot) == copies + index
        })
    }

    /// Takes one owner's share back; with the last one the block is idle.
    pub(crate) fn release(&mut self, slot: Arc<Slot<M>>) {
        let index = self.frozen_at(slot.memory.address());
        if Arc::strong_count(&slot) > 1 + usize::from(index.is_ok()) {
            return;
        }
        if let Ok(at) = index {
            self.frozen.remove(at);
        }
        let class_bytes = slot.class_bytes;
        *self.in_use_mut(slot.purpose) -= class_bytes;
        self.idle.push((class_bytes, slot));
    }

    /// Notes that a block is read-only until it has come back.
    pub(crate) fn freeze(&mut self, slot: &Arc<Slot<M>>) {
        let address = slot.memory.address();
        if let Err(at) = self.frozen_at(address) {
            self.frozen.insert(at, Frozen { address, slot: slot.clone() });
        }
    }

    fn frozen_at(&self, address: usize) -> Result<usize, usize> {
        self.frozen.binary_search_by_key(&address, |frozen| frozen.address)
    }

    /// Another share of the frozen block that holds these addresses, and where in it they begin.
    pub(crate) fn frozen_around(&self, address: usize, len_bytes: usize) -> Option<(Arc<Slot<M>>, usize)> {
        let after = self.frozen.partition_point(|frozen| frozen.address <= address);
        let frozen = self.frozen.get(after.checked_sub(1)?)?;
        let offset = address - frozen.address;
        let is_inside = len_bytes <= frozen.slot.memory.len_bytes().checked_sub(offset)?;
        is_inside.then(|| (frozen.slot.clone(), offset))
    }

    /// A fence that nobody else knows.
    pub(crate) fn take_fence(&mut self) -> Option<Arc<F>> {
        self.spare_fences.pop()
    }

    /// Takes one user's share of a fence back; with the last one it can be used again.
    pub(crate) fn recycle(&mut self, fence: Arc<F>) {
        if Arc::strong_count(&fence) == 1 {
            self.spare_fences.push(fence);
        }
    }

    /// Counts a copy.
    pub(crate) fn count_copy(&mut self, len_bytes: usize, is_direct: bool) {
        self.tally.copies += 1;
        self.tally.bytes_copied += len_bytes as u64;
        self.tally.direct_copies += u64::from(is_direct);
    }

    /// Keeps a block until its copy has ended.
    pub(crate) fn fly(&mut self, slot: Arc<Slot<M>>, fence: Arc<F>) {
        self.in_flight.push_back(InFlight { fence, slot });
    }

    /// Takes back what copies that have ended held, from the oldest to the first that hasn't.
    pub(crate) fn reap_oldest(&mut self) -> Result<(), F::Error> {
        while let Some(oldest) = self.in_flight.front() {
            if !oldest.fence.is_done()? {
                break;
            }
            self.land(0);
        }
        Ok(())
    }

    /// Takes back what all copies that have ended held.
    pub(crate) fn reap_all(&mut self) -> Result<(), F::Error> {
        let mut at = 0;
        while let Some(copy) = self.in_flight.get(at) {
            if copy.fence.is_done()? {
                self.land(at);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    fn land(&mut self, at: usize) {
        if let Some(InFlight { fence, slot }) = self.in_flight.remove(at) {
            self.release(slot);
            self.recycle(fence);
        }
    }

    /// Waits for every copy. What a broken device may still read is never freed.
    pub(crate) fn close(&mut self) {
        for InFlight { fence, slot } in self.in_flight.drain(..) {
            if fence.wait().is_err() {
                std::mem::forget(slot);
            }
        }
    }

    /// Gives up a block that a broken device may still read: it is never used again, nor freed.
    pub(crate) fn abandon(&mut self, slot: Arc<Slot<M>>) {
        std::mem::forget(slot);
    }
}
