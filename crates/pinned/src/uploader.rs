//! Host bytes on their way to a GPU.

use std::fmt;

use foveal_device::{CudaStream, Device, DeviceError, Upload, ViewMut};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::lane::Lane;
use crate::ledger::Purpose;
use crate::memory::BlockMemory;
use crate::size_class::SMALLEST;
use crate::sync::Arc;
use crate::transfer::{BlockShare, transfer};
use crate::{PinnedError, PinnedPool};

/// Bytes of a large upload that are staged together: large enough that starting a copy costs nothing beside it.
const CHUNK: usize = 8 << 20;
/// Chunks between which a large upload alternates: one is written while the others are under way.
const CHUNKS_IN_FLIGHT: usize = 4;
/// The part of the cap, one in this many, that uploads may have to themselves.
const STAGING_SHARE: usize = 2;
/// From here on several threads fill a chunk: one alone is slower than the bus. Below, waking them takes longer.
const PARALLEL_FROM: usize = 1 << 20;
/// What a thread takes at a time: little enough that all of them share a chunk.
const BYTES_PER_PIECE: usize = 256 << 10;
/// A smaller pool could stage nothing worth having.
const SMALLEST_POOL: usize = 16 * SMALLEST;

/// Has a GPU's uploads go through a pool.
///
/// Bytes of one of the pool's [frozen blocks](crate::FrozenBlock) are copied from where they lie. All others are brought to
/// blocks first, large ones in pieces and by several threads; then `upload` returns, while the copies go on. Uploads have a
/// part of the pool to themselves, so that they never fail because callers hold all blocks. Once its blocks are there, an
/// upload allocates nothing.
#[derive(Clone)]
pub struct PinnedUploader {
    pool: PinnedPool,
    chunk_bytes: usize,
}

/// Makes a pool of up to `capacity_bytes` for a device, and has all copies to it go through that pool. On the CPU the pool
/// is of heap memory, and copies stay what they are.
///
/// A device's stream keeps the first pool that it was given. With a cap under 64 KiB the driver goes on staging.
#[must_use]
pub fn install(device: &Device, capacity_bytes: usize) -> PinnedPool {
    let pool = PinnedPool::with_capacity_bytes(device, capacity_bytes);
    if let Some(cuda) = device.stream().cuda().filter(|_| capacity_bytes >= SMALLEST_POOL) {
        cuda.set_upload(Arc::new(PinnedUploader::new(pool.clone())));
    }
    pool
}

impl PinnedUploader {
    /// Uploads through `pool`, of which a part (up to 32 MiB, at most half) is kept for them from now on.
    #[must_use]
    pub fn new(pool: PinnedPool) -> Self {
        let fitting = pool.capacity_bytes() / (STAGING_SHARE * CHUNKS_IN_FLIGHT);
        let power = fitting.checked_ilog2().map_or(0, |log| 1 << log);
        let chunk_bytes = power.clamp(SMALLEST, CHUNK);
        pool.state().lock().keep_for_staging(CHUNKS_IN_FLIGHT * chunk_bytes);
        Self { pool, chunk_bytes }
    }

    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> &PinnedPool {
        &self.pool
    }

    /// Sends `bytes` where `lane` leads from a block.
    pub(crate) fn send<'a>(
        &self,
        bytes: &[u8],
        to: ViewMut<'_>,
        lane: impl Fn(&BlockMemory) -> Result<Lane<'a>, PinnedError>,
    ) -> Result<(), PinnedError> {
        let (expected, got, dtype, shape) = (to.len_bytes(), bytes.len(), to.dtype(), *to.shape());
        if expected != got {
            return Err(DeviceError::SizeMismatch { dtype, shape, expected, got }.into());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let go = |share: BlockShare, start: usize, len: usize, to: ViewMut<'_>, is_direct: bool| match share
            .memory()
            .map(&lane)
            .transpose()?
        {
            Some(lane) => transfer(share, start..start + len, lane, to, is_direct),
            None => Ok(()),
        };
        if let Some((share, offset)) = self.pool.state().frozen_around(bytes.as_ptr().addr(), bytes.len()) {
            return go(share, offset, bytes.len(), to, true);
        }
        let mut to = to.reshape(&[shape.num_elements()])?;
        let mut start = 0;
        // A chunk is a power of two from 4 KiB, so it ends where an element does.
        for chunk in bytes.chunks(self.chunk_bytes) {
            let mut block = self.pool.acquire_for(chunk.len(), Purpose::Staging)?;
            copy_bytes(chunk, &mut block);
            let end = start + chunk.len() / dtype.size_bytes();
            go(block.into_share(), 0, chunk.len(), to.reborrow().rows(start..end)?, false)?;
            start = end;
        }
        Ok(())
    }
}

/// Copies to a slice of the same length.
fn copy_bytes(from: &[u8], to: &mut [u8]) {
    if from.len() <= PARALLEL_FROM {
        return to.copy_from_slice(from);
    }
    let parts = from.par_chunks(BYTES_PER_PIECE).zip(to.par_chunks_mut(BYTES_PER_PIECE));
    parts.for_each(|(from, to)| to.copy_from_slice(from));
}

impl Upload for PinnedUploader {
    fn upload(&self, stream: &CudaStream, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError> {
        Ok(self.send(bytes, to, |memory| Lane::cuda(memory, stream))?)
    }
}

impl fmt::Debug for PinnedUploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedUploader({:?}, chunks of {} bytes)", self.pool, self.chunk_bytes)
    }
}
