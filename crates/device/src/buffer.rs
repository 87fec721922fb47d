//! Memory behind tensors, and the counters that tests read to see that a step allocates nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{Pod, Zeroable};

use crate::DeviceError;

/// Bytes that live as long as somebody holds them: a memory map, a lent pixel block. They must not move or change
/// while they are held.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

/// How many tensors have been allocated in this process so far. A steady step leaves it unchanged.
#[must_use]
pub fn allocation_count() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes of tensors that are allocated in this process now; shared memory is not counted.
#[must_use]
pub fn allocated_bytes() -> u64 {
    ALLOCATED_BYTES.load(Ordering::Relaxed)
}

/// One cache line, and the widest vector register: what every owned buffer is aligned to.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed host memory aligned to 64 bytes.
pub(crate) struct HostBytes {
    lines: Vec<Line>,
    len_bytes: usize,
}

impl HostBytes {
    pub(crate) fn zeroed(len_bytes: usize) -> Result<Self, DeviceError> {
        let num_lines = len_bytes.div_ceil(size_of::<Line>());
        let lines = bytemuck::allocation::try_zeroed_vec(num_lines)
            .map_err(|()| DeviceError::OutOfMemory { len_bytes, device: "host" })?;
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(len_bytes as u64, Ordering::Relaxed);
        Ok(Self { lines, len_bytes })
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines).get(..self.len_bytes).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines).get_mut(..self.len_bytes).unwrap_or_default()
    }
}

impl Drop for HostBytes {
    fn drop(&mut self) {
        ALLOCATED_BYTES.fetch_sub(self.len_bytes as u64, Ordering::Relaxed);
    }
}

/// A tensor's memory.
pub(crate) enum Buffer {
    Host(HostBytes),
    Shared { owner: SharedBytes, range: Range<usize> },
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Host(host) => host.bytes(),
            Self::Shared { owner, range } => (**owner).as_ref().get(range.clone()).unwrap_or_default(),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8], DeviceError> {
        match self {
            Self::Host(host) => Ok(host.bytes_mut()),
            Self::Shared { .. } => Err(DeviceError::ReadOnly),
        }
    }
}
