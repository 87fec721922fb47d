//! Marks in a stream's order that the host or another stream can wait for.
#![allow(unsafe_code)]

use cudarc::driver::{result, sys};

use super::CudaDevice;
use super::context::driver_error;
use crate::DeviceError;
use crate::counters::EVENT_WAITS;

/// A mark in a stream's order. Waiting for one that was never recorded returns at once.
pub struct Event {
    device: CudaDevice,
    raw: sys::CUevent,
}

// SAFETY: the driver's event calls may be made from any thread with the context current, which `bind` sees to.
unsafe impl Send for Event {}
// SAFETY: as above; recording takes the event exclusively.
unsafe impl Sync for Event {}

impl Event {
    /// An event that takes no time, for ordering.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn new(device: &CudaDevice) -> Result<Self, DeviceError> {
        Self::with_flags(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that notes the time, for [`Event::milliseconds_since`].
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn with_timing(device: &CudaDevice) -> Result<Self, DeviceError> {
        Self::with_flags(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with_flags(device: &CudaDevice, flags: sys::CUevent_flags) -> Result<Self, DeviceError> {
        device.bind()?;
        let raw = result::event::create(flags).map_err(driver_error("cuEventCreate"))?;
        Ok(Self { device: device.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUevent {
        self.raw
    }

    /// Whether everything before it has run.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a fault of what ran before.
    pub fn is_done(&self) -> Result<bool, DeviceError> {
        self.device.bind()?;
        // SAFETY: the event lives until `drop`.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(driver_error("cuEventQuery")(error)),
        }
    }

    /// Waits until everything before it has run.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a fault of what ran before.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.device.bind()?;
        EVENT_WAITS.add_one();
        // SAFETY: the event lives until `drop`.
        unsafe { result::event::synchronize(self.raw) }.map_err(driver_error("cuEventSynchronize"))
    }

    /// Milliseconds between two events with timing that have both been reached.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] when one hasn't, or has no timing.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32, DeviceError> {
        self.device.bind()?;
        // SAFETY: both events live until their `drop`.
        unsafe { result::event::elapsed(start.raw, self.raw) }.map_err(driver_error("cuEventElapsedTime"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created in `with_flags`, destroyed once; the driver defers it while it is recorded.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
