//! Blocks: written by one owner, then read by many, then back in the pool.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use foveal_device::{SharedBytes, Stream, ViewMut};

use crate::PinnedError;
use crate::lane::{CopyFence, Lane};
use crate::lifecycle::{Exclusive, Frozen};
use crate::memory::BlockMemory;
use crate::sync::Arc;
use crate::transfer::{BlockShare, transfer};

/// Page-locked bytes with one owner, who writes them. Dropping it gives it back to its pool.
///
/// It is written first, and then either sent once ([`PinnedBlock::copy_to`]) or frozen, to be sent and read any number of
/// times. A block that a copy reads can't be written: both ways take the block.
pub struct PinnedBlock {
    block: Exclusive<BlockMemory, CopyFence>,
    len_bytes: usize,
}

/// Page-locked bytes that are read alone. Cheap to clone; after the last clone, and the last copy, they go back to their
/// pool.
///
/// Bytes of it that are given to [`Stream::write`] go to the GPU as they are, without being staged.
#[derive(Clone)]
pub struct FrozenBlock {
    block: Frozen<BlockMemory, CopyFence>,
    len_bytes: usize,
}

/// The bytes of `memory` that were asked for; its block may be larger.
fn first(memory: Option<&BlockMemory>, len_bytes: usize) -> &[u8] {
    memory.and_then(|memory| memory.bytes().get(..len_bytes)).unwrap_or_default()
}

fn copy(
    share: BlockShare,
    len_bytes: usize,
    stream: &Stream,
    range: Range<usize>,
    to: ViewMut<'_>,
) -> Result<(), PinnedError> {
    if range.start > range.end || range.end > len_bytes {
        return Err(PinnedError::OutOfRange { start: range.start, end: range.end, len_bytes });
    }
    match share.memory().map(|memory| Lane::new(memory, stream)).transpose()? {
        Some(lane) => transfer(share, range, lane, to, false),
        None => Ok(()),
    }
}

impl PinnedBlock {
    pub(crate) fn new(block: Exclusive<BlockMemory, CopyFence>, len_bytes: usize) -> Self {
        Self { block, len_bytes }
    }

    pub(crate) fn into_share(self) -> BlockShare {
        self.block.into_share()
    }

    /// Ends its writing: from now on it can be shared.
    #[must_use]
    pub fn freeze(self) -> FrozenBlock {
        FrozenBlock { block: self.block.freeze(), len_bytes: self.len_bytes }
    }

    /// Copies bytes `range` to `to`, in the order of `stream`, without waiting; the block goes back to its pool when the
    /// copy has ended.
    ///
    /// Not for work that is recorded into a graph: a replay would read the block after it has gone back.
    ///
    /// # Errors
    /// [`PinnedError::OutOfRange`], [`PinnedError::WrongDevice`], and a [`foveal_device::DeviceError`] where `to` doesn't
    /// take as many bytes or the driver refuses.
    pub fn copy_to(self, stream: &Stream, range: Range<usize>, to: ViewMut<'_>) -> Result<(), PinnedError> {
        let len_bytes = self.len_bytes;
        copy(self.into_share(), len_bytes, stream, range, to)
    }
}

impl FrozenBlock {
    /// Copies bytes `range` to `to`, in the order of `stream`, without waiting; the block is kept until the copy has
    /// ended, whatever becomes of this handle.
    ///
    /// Not for work that is recorded into a graph, as [`PinnedBlock::copy_to`].
    ///
    /// # Errors
    /// As [`PinnedBlock::copy_to`].
    pub fn copy_to(&self, stream: &Stream, range: Range<usize>, to: ViewMut<'_>) -> Result<(), PinnedError> {
        copy(self.block.share(), self.len_bytes, stream, range, to)
    }

    /// The block as bytes that a tensor can share, see [`foveal_device::Tensor::from_shared`].
    #[must_use]
    pub fn into_shared(self) -> SharedBytes {
        Arc::new(self)
    }

    #[cfg(test)]
    pub(crate) fn share(&self) -> BlockShare {
        self.block.share()
    }
}

impl Deref for PinnedBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        first(self.block.memory(), self.len_bytes)
    }
}

impl DerefMut for PinnedBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.block.memory_mut();
        memory.and_then(|memory| memory.bytes_mut().get_mut(..self.len_bytes)).unwrap_or_default()
    }
}

impl Deref for FrozenBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        first(self.block.memory(), self.len_bytes)
    }
}

impl AsRef<[u8]> for FrozenBlock {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for PinnedBlock {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl AsRef<[u8]> for PinnedBlock {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PinnedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBlock({} bytes)", self.len_bytes)
    }
}

impl fmt::Debug for FrozenBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenBlock({} bytes)", self.len_bytes)
    }
}
