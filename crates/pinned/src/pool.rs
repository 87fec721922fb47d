//! The pool.

use std::fmt;

use foveal_device::Device;

use crate::ledger::Purpose;
use crate::lifecycle::Refusal;
use crate::memory::Backing;
use crate::size_class::size_class;
use crate::transfer::PoolState;
use crate::{PinnedBlock, PinnedError};

/// Page-locked blocks that are made once and used again and again. Cheap to clone; clones are the same pool, and its
/// blocks keep it alive.
///
/// Locking pages costs far more than copying them, so a block is never given back to the system while there is room.
/// Blocks come in few sizes: powers of two from 4 KiB, and multiples of 2 MiB above 64 MiB. All blocks together, idle ones
/// included, stay under the cap.
#[derive(Clone)]
pub struct PinnedPool {
    state: PoolState,
    backing: Backing,
    capacity_bytes: usize,
}

/// What a pool has done so far, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinnedStats {
    /// Blocks that there are.
    pub blocks: u64,
    /// Bytes of all blocks.
    pub bytes_pinned: u64,
    /// Bytes of the blocks that have an owner, a copy not known to have ended included.
    pub bytes_in_use: u64,
    /// Copies begun.
    pub copies: u64,
    /// Bytes of these.
    pub bytes_copied: u64,
    /// Times that a copy was waited for because no block was free.
    pub waits: u64,
    /// Times that a block was used again.
    pub reused: u64,
    /// Uploads whose bytes already lay in a frozen block, so that nothing was staged.
    pub direct_copies: u64,
}

impl PinnedPool {
    /// A pool of up to `capacity_bytes` for copies to this device: page-locked memory for a GPU, heap memory for the CPU.
    /// Nothing is allocated until it is asked for.
    #[must_use]
    pub fn with_capacity_bytes(device: &Device, capacity_bytes: usize) -> Self {
        let backing = match device.stream().cuda() {
            Some(cuda) => Backing::PageLocked(cuda.device().clone()),
            None => Backing::Heap,
        };
        Self { state: PoolState::new(capacity_bytes), backing, capacity_bytes }
    }

    /// The most bytes of all blocks together.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// A block of `len_bytes` bytes. They hold whatever was last written to them.
    ///
    /// Under the cap a block of the right size is used again, or one is made. At the cap, it waits for the oldest copy
    /// that gives such a block back; else it frees idle blocks of other sizes, or waits for copies that give those back.
    ///
    /// # Errors
    /// [`PinnedError::Exhausted`] where callers hold so much that no copy's end makes room, and a
    /// [`foveal_device::DeviceError`] where the system locks no more pages or the device is broken.
    pub fn acquire(&self, len_bytes: usize) -> Result<PinnedBlock, PinnedError> {
        self.acquire_for(len_bytes, Purpose::Lent)
    }

    pub(crate) fn acquire_for(&self, len_bytes: usize, purpose: Purpose) -> Result<PinnedBlock, PinnedError> {
        let exhausted =
            |cap_bytes, in_use_bytes| PinnedError::Exhausted { cap_bytes, in_use_bytes, wanted_bytes: len_bytes };
        let class_bytes = size_class(len_bytes).ok_or_else(|| exhausted(self.capacity_bytes, 0))?;
        let pin = || self.backing.allocate(class_bytes).map_err(PinnedError::from);
        match self.state.acquire(class_bytes, purpose, pin) {
            Ok(block) => Ok(PinnedBlock::new(block, len_bytes)),
            Err(Refusal::Exhausted { cap_bytes, in_use_bytes }) => Err(exhausted(cap_bytes, in_use_bytes)),
            Err(Refusal::Failed(error)) => Err(error),
        }
    }

    /// What it has done and holds.
    #[must_use]
    pub fn stats(&self) -> PinnedStats {
        let ledger = self.state.lock();
        let tally = ledger.tally;
        PinnedStats {
            blocks: tally.blocks,
            bytes_pinned: ledger.pinned_bytes() as u64,
            bytes_in_use: ledger.in_use_bytes() as u64,
            copies: tally.copies,
            bytes_copied: tally.bytes_copied,
            waits: tally.waits,
            reused: tally.reused,
            direct_copies: tally.direct_copies,
        }
    }

    pub(crate) fn state(&self) -> &PoolState {
        &self.state
    }
}

impl fmt::Debug for PinnedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPool({:?}, {} bytes, {:?})", self.backing, self.capacity_bytes, self.stats())
    }
}
