//! A stream of a GPU's work.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{result, sys};

use super::context::driver_error;
use super::{CudaDevice, Event, PinnedMemory};
use crate::counters::{PAGEABLE_COPIES, PINNED_COPIES, SYNCHRONISES};
use crate::matmul::Matmuls;
use crate::{DeviceError, View, ViewMut};

/// The first generation whose tensor cores take FP8.
const MIN_F8_CAPABILITY: (u32, u32) = (8, 9);

/// Brings host bytes to a GPU's memory: what a pool of page-locked blocks does better than the driver alone.
pub trait Upload: Send + Sync {
    /// Copies `bytes` to `to`, which takes as many, in the order of `stream`. When it returns, `bytes` may be changed:
    /// it has copied them, or holds what keeps them.
    ///
    /// # Errors
    /// [`DeviceError`] when there is no memory or the copy can't be made.
    fn upload(&self, stream: &CudaStream, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError>;
}

/// Work of one GPU in the order in which it is given. Cheap to clone; clones are the same stream.
#[derive(Clone)]
pub struct CudaStream(Arc<RawStream>);

struct RawStream {
    device: CudaDevice,
    raw: sys::CUstream,
    upload: OnceLock<Arc<dyn Upload>>,
    /// A stream's own: its workspace is used in the stream's order.
    matmuls: OnceLock<Matmuls>,
}

// SAFETY: the driver's stream calls may be made from any thread with the context current, which `bind` sees to.
unsafe impl Send for RawStream {}
// SAFETY: as above; the driver keeps the order of calls from several threads.
unsafe impl Sync for RawStream {}

impl Drop for RawStream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            drop(self.matmuls.take());
            // SAFETY: created in `CudaStream::new`, destroyed once; the driver lets its work run to the end.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

impl CudaStream {
    /// A new stream, which waits for no other.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn new(device: &CudaDevice) -> Result<Self, DeviceError> {
        device.bind()?;
        let raw =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(driver_error("cuStreamCreate"))?;
        let raw = RawStream { device: device.clone(), raw, upload: OnceLock::new(), matmuls: OnceLock::new() };
        Ok(Self(Arc::new(raw)))
    }

    /// Another stream of the same GPU, which waits for nothing of this one and has the same [`Upload`].
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn beside(&self) -> Result<Self, DeviceError> {
        let stream = Self::new(self.device())?;
        if let Some(upload) = self.0.upload.get() {
            stream.set_upload(Arc::clone(upload));
        }
        Ok(stream)
    }

    /// Its GPU.
    #[must_use]
    pub fn device(&self) -> &CudaDevice {
        &self.0.device
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.0.raw
    }

    /// Has all copies from the host made by `upload` from now on. The first one that is set stays.
    pub fn set_upload(&self, upload: Arc<dyn Upload>) {
        let _ = self.0.upload.set(upload);
    }

    /// The stream's matrix products, made when they are first asked for.
    pub(crate) fn matmuls(&self) -> Result<&Matmuls, DeviceError> {
        if let Some(matmuls) = self.0.matmuls.get() {
            return Ok(matmuls);
        }
        let made = Matmuls::new(self)?;
        Ok(self.0.matmuls.get_or_init(|| made))
    }

    /// Streaming multiprocessors of its GPU.
    #[must_use]
    pub fn num_sms(&self) -> u32 {
        self.device().num_sms()
    }

    /// Its GPU's generation: (9, 0) is Hopper.
    #[must_use]
    pub fn compute_capability(&self) -> (u32, u32) {
        self.device().compute_capability()
    }

    /// Whether its GPU multiplies FP8: Ada (8, 9), Hopper and later do.
    #[must_use]
    pub fn has_f8(&self) -> bool {
        self.compute_capability() >= MIN_F8_CAPABILITY
    }

    /// Waits until everything that was given to it has run.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a fault of what ran.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.device().bind()?;
        SYNCHRONISES.add_one();
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.raw()) }.map_err(driver_error("cuStreamSynchronize"))
    }

    /// Marks the place that its work has come to.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn record(&self, event: &mut Event) -> Result<(), DeviceError> {
        self.device().bind()?;
        // SAFETY: event and stream live as long as their borrows.
        unsafe { result::event::record(event.raw(), self.raw()) }.map_err(driver_error("cuEventRecord"))
    }

    /// Has what is given from now on wait for a mark of another stream. The host doesn't wait.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        self.device().bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live as long as their borrows.
        unsafe { result::stream::wait_event(self.raw(), event.raw(), flags) }.map_err(driver_error("cuStreamWaitEvent"))
    }

    /// Brings host bytes to the GPU, in this stream's order. `bytes` may be changed when it returns.
    ///
    /// Goes through the [`Upload`] that was set; without one the driver stages the bytes itself.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`] when `to` doesn't take as many bytes, [`DeviceError::NotOnDevice`], and what the copy
    /// itself fails with.
    pub fn upload(&self, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError> {
        let ptr = self.check_copy(bytes.len(), &to.as_view())?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(upload) = self.0.upload.get() {
            return upload.upload(self, bytes, to);
        }
        PAGEABLE_COPIES.add_one();
        // SAFETY: `to` is `bytes.len()` bytes of this GPU, borrowed exclusively; the driver stages pageable memory before
        // it returns.
        unsafe { result::memcpy_htod_async(ptr, bytes, self.raw()) }.map_err(driver_error("cuMemcpyHtoDAsync"))
    }

    /// Copies a tensor of this GPU to another of the same length, in this stream's order.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`], [`DeviceError::NotOnDevice`], [`DeviceError::Driver`].
    pub fn copy(&self, from: View<'_>, to: ViewMut<'_>) -> Result<(), DeviceError> {
        let (to, len) = (self.check_copy(from.len_bytes(), &to.as_view())?, from.len_bytes());
        let from = self.check_copy(len, &from)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both are `len` bytes of this GPU, `to` is borrowed exclusively, and memory is freed only when all streams
        // have done their work.
        unsafe { result::memcpy_dtod_async(to, from, len, self.raw()) }.map_err(driver_error("cuMemcpyDtoDAsync"))
    }

    /// Copies part of a page-locked block to the GPU without waiting.
    ///
    /// # Errors
    /// As [`CudaStream::upload`], and [`DeviceError::TooLarge`] for a range outside of the block.
    ///
    /// # Safety
    /// The block stays and doesn't change until this stream has come past the copy.
    pub unsafe fn copy_from_pinned(
        &self,
        from: &PinnedMemory,
        range: Range<usize>,
        to: ViewMut<'_>,
    ) -> Result<(), DeviceError> {
        let bytes = from.bytes().get(range.clone()).ok_or(DeviceError::TooLarge { value: range.end })?;
        let ptr = self.check_copy(bytes.len(), &to.as_view())?;
        if bytes.is_empty() {
            return Ok(());
        }
        PINNED_COPIES.add_one();
        // SAFETY: `to` is as many bytes of this GPU, borrowed exclusively; the caller keeps the block as it is.
        unsafe { result::memcpy_htod_async(ptr, bytes, self.raw()) }.map_err(driver_error("cuMemcpyHtoDAsync"))
    }

    /// Copies from the GPU to a page-locked block without waiting.
    ///
    /// # Errors
    /// As [`CudaStream::copy_from_pinned`].
    ///
    /// # Safety
    /// The block stays, and nobody reads or writes it, until this stream has come past the copy.
    pub unsafe fn copy_to_pinned(
        &self,
        from: &View<'_>,
        to: &mut PinnedMemory,
        range: Range<usize>,
    ) -> Result<(), DeviceError> {
        let bytes = to.bytes_mut().get_mut(range.clone()).ok_or(DeviceError::TooLarge { value: range.end })?;
        let ptr = self.check_copy(bytes.len(), from)?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: `from` is as many bytes of this GPU; the caller keeps the block.
        unsafe { result::memcpy_dtoh_async(bytes, ptr, self.raw()) }.map_err(driver_error("cuMemcpyDtoHAsync"))
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`] or [`DeviceError::Driver`].
    pub fn fill_zero(&self, to: ViewMut<'_>) -> Result<(), DeviceError> {
        let len = to.len_bytes();
        let ptr = self.check_copy(len, &to.as_view())?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: `to` is `len` bytes of this GPU, borrowed exclusively.
        unsafe { result::memset_d8_async(ptr, 0, len, self.raw()) }.map_err(driver_error("cuMemsetD8Async"))
    }

    /// The address of a view of exactly `len` bytes, with the context current.
    fn check_copy(&self, len: usize, view: &View<'_>) -> Result<u64, DeviceError> {
        let (expected, got) = (view.len_bytes(), len);
        if expected != got {
            return Err(DeviceError::SizeMismatch { dtype: view.dtype(), shape: *view.shape(), expected, got });
        }
        self.device().bind()?;
        view.device_ptr()
    }
}

impl fmt::Debug for CudaStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a stream of {:?}", self.device())
    }
}
