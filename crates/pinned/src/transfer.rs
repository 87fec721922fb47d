//! A copy from a block, from its start to the block's return.

use std::ops::Range;

use foveal_device::{DeviceError, ViewMut};

use crate::PinnedError;
use crate::lane::{CopyFence, Lane};
use crate::lifecycle::{Share, Shared};
use crate::memory::BlockMemory;
use crate::sync::Arc;

/// The state of a real pool.
pub(crate) type PoolState = Shared<BlockMemory, CopyFence>;
/// A share of a real pool's block.
pub(crate) type BlockShare = Share<BlockMemory, CopyFence>;

/// Copies part of a block; the share is kept until the copy has ended. The first bytes of `range` go to `to`, which takes
/// as many.
pub(crate) fn transfer(
    share: BlockShare,
    range: Range<usize>,
    lane: Lane<'_>,
    to: ViewMut<'_>,
    is_direct: bool,
) -> Result<(), PinnedError> {
    let (expected, got) = (to.len_bytes(), range.len());
    if expected != got {
        return Err(DeviceError::SizeMismatch { dtype: to.dtype(), shape: *to.shape(), expected, got }.into());
    }
    let state = share.shared().clone();
    let Some(memory) = share.memory().filter(|_| got > 0) else { return Ok(()) };
    // Before the copy, so that a copy which has begun needs nothing more that could be refused for lack of memory.
    let fence = fence(&state, lane)?;
    let begun = lane.copy(memory, range, to);
    let Some(mut fence) = fence else {
        begun?;
        state.lock().count_copy(got, is_direct);
        return Ok(());
    };
    let marked = begun.and_then(|()| match Arc::get_mut(&mut fence) {
        Some(fence) => lane.record(fence),
        None => lane.synchronize(),
    });
    if let Err(error) = marked {
        // The driver also reports by this what failed before, so the copy may have begun.
        if lane.synchronize().is_err() {
            share.abandon();
        }
        return Err(error.into());
    }
    share.fly(fence);
    state.lock().count_copy(got, is_direct);
    Ok(())
}

/// A fence that nobody else knows: one that was used before, or else a new one.
fn fence(state: &PoolState, lane: Lane<'_>) -> Result<Option<Arc<CopyFence>>, PinnedError> {
    if !lane.is_async() {
        return Ok(None);
    }
    let mut ledger = state.lock();
    // So that the copies of a frozen block that is never given back don't pile up.
    ledger.reap_oldest()?;
    let spare = ledger.take_fence();
    drop(ledger);
    match spare {
        Some(fence) => Ok(Some(fence)),
        None => Ok(lane.new_fence()?.map(Arc::new)),
    }
}
