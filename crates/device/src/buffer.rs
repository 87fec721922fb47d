//! Memory behind tensors, and the counters that tests read to see that a step allocates nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::DeviceError;
use crate::counters::{ALLOCATIONS, count_allocation};
use crate::cuda::DeviceMemory;
use crate::view::{Memory, MemoryMut};

/// Bytes that live as long as somebody holds them: a memory map, a lent pixel block. They must not move or change
/// while they are held.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

/// How many tensors have been allocated in this process so far. A steady step leaves it unchanged.
#[must_use]
pub fn allocation_count() -> u64 {
    ALLOCATIONS.get()
}

/// Bytes of tensors that are allocated in this process now, on all devices; shared memory is not counted.
#[must_use]
pub fn allocated_bytes() -> u64 {
    ALLOCATED_BYTES.load(Ordering::Relaxed)
}

/// Counts an allocation for as long as it lives.
pub(crate) struct Allocated {
    len_bytes: usize,
}

impl Allocated {
    pub(crate) fn new(len_bytes: usize) -> Self {
        count_allocation();
        ALLOCATED_BYTES.fetch_add(len_bytes as u64, Ordering::Relaxed);
        Self { len_bytes }
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        ALLOCATED_BYTES.fetch_sub(self.len_bytes as u64, Ordering::Relaxed);
    }
}

/// One cache line, and the widest vector register: what every owned buffer is aligned to.
const ALIGN: usize = 64;

/// Zeroed host memory aligned to [`ALIGN`] bytes.
///
/// The allocator is asked for words of ordinary alignment, and the buffer begins at the first aligned byte of them: an
/// allocation of larger alignment would be written with zeros and so be resident, while this one costs memory only where
/// it is used. A KV cache and workspaces are made for the longest request.
pub(crate) struct HostBytes {
    words: Vec<u64>,
    start: usize,
    len_bytes: usize,
    _allocated: Allocated,
}

impl HostBytes {
    pub(crate) fn zeroed(len_bytes: usize) -> Result<Self, DeviceError> {
        let out_of_memory = || DeviceError::OutOfMemory { len_bytes, device: "host" };
        let padded = len_bytes.checked_add(ALIGN).ok_or_else(out_of_memory)?;
        let words: Vec<u64> =
            bytemuck::allocation::try_zeroed_vec(padded.div_ceil(size_of::<u64>())).map_err(|()| out_of_memory())?;
        let start = words.as_ptr().cast::<u8>().align_offset(ALIGN);
        Ok(Self { words, start, len_bytes, _allocated: Allocated::new(len_bytes) })
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(self.start..self.start + self.len_bytes).unwrap_or_default()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len_bytes;
        bytemuck::cast_slice_mut(&mut self.words).get_mut(range).unwrap_or_default()
    }
}

/// A tensor's memory.
pub(crate) enum Buffer {
    Host(HostBytes),
    Shared { owner: SharedBytes, range: Range<usize> },
    Device { memory: DeviceMemory, _allocated: Allocated },
}

impl Buffer {
    pub(crate) fn memory(&self) -> Memory<'_> {
        match self {
            Self::Host(host) => Memory::Host(host.bytes()),
            Self::Shared { owner, range } => Memory::Host((**owner).as_ref().get(range.clone()).unwrap_or_default()),
            Self::Device { memory, .. } => Memory::Device(memory.bytes()),
        }
    }

    pub(crate) fn memory_mut(&mut self) -> Result<MemoryMut<'_>, DeviceError> {
        match self {
            Self::Host(host) => Ok(MemoryMut::Host(host.bytes_mut())),
            Self::Shared { .. } => Err(DeviceError::ReadOnly),
            Self::Device { memory, .. } => Ok(MemoryMut::Device(memory.bytes_mut())),
        }
    }
}
