//! Memory of a GPU, and page-locked memory of the host.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

use cudarc::driver::{result, sys};

use super::context::driver_error;
use super::graph::without_captures;
use super::{CudaDevice, CudaStream};
use crate::DeviceError;
use crate::counters::{SYNCHRONISES, count_allocation, count_free};
use crate::view::{DeviceBytes, DeviceBytesMut};

/// Zeroed memory of a GPU, aligned to 256 bytes.
pub(crate) struct DeviceMemory {
    device: CudaDevice,
    /// 0 for no bytes.
    ptr: sys::CUdeviceptr,
    len_bytes: usize,
}

impl DeviceMemory {
    /// Allocates, and has `stream` write zeros; waits for it, so that every stream sees them.
    pub(crate) fn zeroed(stream: &CudaStream, len_bytes: usize) -> Result<Self, DeviceError> {
        let device = stream.device();
        device.bind()?;
        if len_bytes == 0 {
            return Ok(Self { device: device.clone(), ptr: 0, len_bytes });
        }
        // SAFETY: the context is current; the memory is freed in `drop`.
        let allocated = unsafe { result::malloc_sync(len_bytes) };
        let ptr = allocated.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { len_bytes, device: "GPU" },
            _ => driver_error("cuMemAlloc")(error),
        })?;
        let memory = Self { device: device.clone(), ptr, len_bytes };
        // SAFETY: the memory was allocated just now with this length, and nobody else knows it.
        unsafe { result::memset_d8_async(ptr, 0, len_bytes, stream.raw()) }.map_err(driver_error("cuMemsetD8Async"))?;
        stream.synchronize()?;
        Ok(memory)
    }

    /// Copies all of it to the host, after the work of every stream.
    pub(crate) fn download(&self, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.device.bind()?;
        SYNCHRONISES.add_one();
        let _captures = without_captures();
        result::ctx::synchronize().map_err(driver_error("cuCtxSynchronize"))?;
        let len = bytes.len().min(self.len_bytes);
        let Some(bytes) = bytes.get_mut(..len).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        // SAFETY: `ptr` has `len_bytes` bytes, of which no more are read; nothing writes them now.
        unsafe { result::memcpy_dtoh_sync(bytes, self.ptr) }.map_err(driver_error("cuMemcpyDtoH"))
    }

    pub(crate) fn bytes(&self) -> DeviceBytes<'_> {
        DeviceBytes { ptr: self.ptr, len: self.len_bytes, owner: PhantomData }
    }

    pub(crate) fn bytes_mut(&mut self) -> DeviceBytesMut<'_> {
        DeviceBytesMut { ptr: self.ptr, len: self.len_bytes, owner: PhantomData }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.ptr != 0 && self.device.bind().is_ok() {
            count_free(|| {
                // SAFETY: allocated in `zeroed`, freed once. The driver waits for the work of all streams before it frees.
                let _ = unsafe { result::free_sync(self.ptr) };
            });
        }
    }
}

/// Page-locked memory of the host: the GPU's copy engines read and write it without the processor's help.
///
/// Who copies from or to it while the GPU may still be at it must wait first; `foveal-pinned` has a pool that does.
pub struct PinnedMemory {
    device: CudaDevice,
    ptr: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: it is plain memory that only its owner reaches.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references only read it.
unsafe impl Sync for PinnedMemory {}

/// Every context may use the memory; reads by the host are cached (write-combined memory would be slow to read).
const PORTABLE: u32 = sys::CU_MEMHOSTALLOC_PORTABLE;

impl PinnedMemory {
    /// Allocates zeroed page-locked memory.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::Driver`].
    pub fn zeroed(device: &CudaDevice, len_bytes: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        // The driver refuses to lock no bytes.
        // SAFETY: the context is current; the memory is freed in `drop`.
        let allocated = unsafe { result::malloc_host(len_bytes.max(1), PORTABLE) };
        let out_of_memory = || DeviceError::OutOfMemory { len_bytes, device: "page-locked host" };
        let ptr = allocated.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(),
            _ => driver_error("cuMemHostAlloc")(error),
        })?;
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or_else(out_of_memory)?;
        // SAFETY: the driver gave at least `len_bytes` bytes at `ptr`, and nobody else knows them.
        unsafe { ptr.as_ptr().write_bytes(0, len_bytes.max(1)) };
        count_allocation();
        Ok(Self { device: device.clone(), ptr, len_bytes })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `zeroed` allocated and wrote `len_bytes` bytes; they are freed in `drop` alone.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.len_bytes) }
    }

    /// Its bytes, to write.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`; the exclusive borrow keeps others away.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len_bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated in `zeroed`, freed once; who had the GPU copy it has waited (the type's contract).
            let _ = unsafe { result::free_host(self.ptr.as_ptr().cast()) };
        }
    }
}
