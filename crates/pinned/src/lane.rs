//! The way that a copy takes, and the mark behind it.
#![allow(unsafe_code)]

use std::ops::Range;

use foveal_device::{CudaDevice, CudaStream, DeviceError, Event, Stream, ViewMut};

use crate::PinnedError;
use crate::ledger::Fence;
use crate::memory::BlockMemory;
#[cfg(test)]
use crate::simulated::{SimulatedFence, SimulatedStream};

/// A mark behind a copy.
pub(crate) enum CopyFence {
    Event(Event),
    #[cfg(test)]
    Simulated(SimulatedFence),
}

impl Fence for CopyFence {
    type Error = DeviceError;

    fn is_done(&self) -> Result<bool, DeviceError> {
        match self {
            Self::Event(event) => event.is_done(),
            #[cfg(test)]
            Self::Simulated(fence) => Ok(fence.is_done()),
        }
    }

    fn wait(&self) -> Result<(), DeviceError> {
        match self {
            Self::Event(event) => event.wait(),
            #[cfg(test)]
            Self::Simulated(fence) => fence.wait(),
        }
    }
}

/// Where copies from a block go.
#[derive(Clone, Copy)]
pub(crate) enum Lane<'a> {
    /// The CPU: a copy has ended when its call returns.
    Host(&'a Stream),
    /// A GPU's stream.
    Cuda(&'a CudaStream),
    /// Copies that end when a test says so.
    #[cfg(test)]
    Simulated(&'a SimulatedStream),
}

impl<'a> Lane<'a> {
    /// The way from a block to a stream's memory.
    pub(crate) fn new(memory: &BlockMemory, stream: &'a Stream) -> Result<Self, PinnedError> {
        match stream.cuda() {
            None => Ok(Self::Host(stream)),
            Some(cuda) => Self::cuda(memory, cuda),
        }
    }

    /// The way from a block to a GPU: only from memory that was locked for it, since its events mark the copies.
    pub(crate) fn cuda(memory: &BlockMemory, stream: &'a CudaStream) -> Result<Self, PinnedError> {
        let device = match memory {
            BlockMemory::PageLocked { device, .. } => Some(device),
            BlockMemory::Heap(_) => None,
        };
        if device.map(CudaDevice::ordinal) == Some(stream.device().ordinal()) {
            return Ok(Self::Cuda(stream));
        }
        let pool = device.map_or_else(|| "the host".to_owned(), |device| format!("{device:?}"));
        Err(PinnedError::WrongDevice { pool, stream: format!("{stream:?}") })
    }

    /// Whether a copy may still be at work when its call has returned.
    pub(crate) fn is_async(self) -> bool {
        !matches!(self, Self::Host(_))
    }

    /// A mark for this lane; `None` where copies need none.
    pub(crate) fn new_fence(self) -> Result<Option<CopyFence>, DeviceError> {
        Ok(match self {
            Self::Host(_) => None,
            Self::Cuda(stream) => Some(CopyFence::Event(Event::new(stream.device())?)),
            #[cfg(test)]
            Self::Simulated(stream) => Some(CopyFence::Simulated(stream.new_fence())),
        })
    }

    /// Begins a copy. The caller keeps the block, unchanged, until a mark that is set afterwards is reached, or the stream
    /// was waited for.
    pub(crate) fn copy(self, from: &BlockMemory, range: Range<usize>, to: ViewMut<'_>) -> Result<(), DeviceError> {
        let bytes = || from.bytes().get(range.clone()).ok_or(DeviceError::TooLarge { value: range.end });
        match (self, from) {
            (Self::Host(stream), _) => stream.write(bytes()?, to),
            (Self::Cuda(stream), BlockMemory::PageLocked { memory, .. }) => {
                // SAFETY: `transfer`, the only caller, gives a share of the block to the ledger together with an event
                // recorded after this copy, and to nobody if it can't; a block with a share out can't be written.
                unsafe { stream.copy_from_pinned(memory, range.clone(), to) }
            }
            (Self::Cuda(stream), BlockMemory::Heap(_)) => stream.upload(bytes()?, to),
            #[cfg(test)]
            (Self::Simulated(stream), _) => stream.copy(bytes()?, to),
        }
    }

    /// Sets a mark behind all copies so far.
    pub(crate) fn record(self, fence: &mut CopyFence) -> Result<(), DeviceError> {
        match (self, fence) {
            (Self::Cuda(stream), CopyFence::Event(event)) => stream.record(event),
            #[cfg(test)]
            (Self::Simulated(stream), CopyFence::Simulated(fence)) => stream.record(fence),
            (lane, _) => lane.synchronize(),
        }
    }

    /// Waits for all copies so far.
    pub(crate) fn synchronize(self) -> Result<(), DeviceError> {
        match self {
            Self::Host(stream) => stream.synchronize(),
            Self::Cuda(stream) => stream.synchronize(),
            #[cfg(test)]
            Self::Simulated(stream) => stream.synchronize(),
        }
    }
}
