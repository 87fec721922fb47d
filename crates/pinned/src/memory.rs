//! What blocks are made of.

use bytemuck::{Pod, Zeroable};
use foveal_device::{CudaDevice, DeviceError, PinnedMemory};

use crate::ledger::Memory;

/// Where a pool's memory comes from.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// The heap: for the CPU, whose copies are ordinary ones.
    Heap,
    /// Pages that the driver keeps in place, so that this GPU can read them.
    PageLocked(CudaDevice),
}

/// What heap blocks are aligned to: a cache line, and the widest vector register.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// A block's memory.
pub(crate) enum BlockMemory {
    Heap(Vec<Line>),
    PageLocked { memory: PinnedMemory, device: CudaDevice },
}

impl Backing {
    pub(crate) fn allocate(&self, len_bytes: usize) -> Result<BlockMemory, DeviceError> {
        match self {
            Self::Heap => bytemuck::allocation::try_zeroed_vec(len_bytes.div_ceil(size_of::<Line>()))
                .map(BlockMemory::Heap)
                .map_err(|()| DeviceError::OutOfMemory { len_bytes, device: "host" }),
            Self::PageLocked(device) => {
                let memory = PinnedMemory::zeroed(device, len_bytes)?;
                Ok(BlockMemory::PageLocked { memory, device: device.clone() })
            }
        }
    }
}

impl BlockMemory {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice(lines),
            Self::PageLocked { memory, .. } => memory.bytes(),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Self::PageLocked { memory, .. } => memory.bytes_mut(),
        }
    }
}

impl Memory for BlockMemory {
    fn address(&self) -> usize {
        self.bytes().as_ptr().addr()
    }

    fn len_bytes(&self) -> usize {
        self.bytes().len()
    }
}
