//! One GPU's context and what all its streams share.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{DriverError, result};

use super::modules::Modules;
use crate::probe::arch_of;
use crate::{DeviceError, libraries};

/// An NVIDIA GPU. Cheap to clone; its context lives as long as anything made from it.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    ordinal: usize,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    compute_capability: (u32, u32),
    num_sms: u32,
    l2_bytes: usize,
    modules: Modules,
}

// SAFETY: the driver's context and device handles may be used from any thread that makes the context current, which
// `bind` does before every call.
unsafe impl Send for Inner {}
// SAFETY: as above; what changes behind a shared reference is locked.
unsafe impl Sync for Inner {}

/// What the driver said of a call, in our words.
pub(crate) fn driver_error(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let reason =
            error.error_string().map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned());
        DeviceError::Driver { call, reason }
    }
}

/// The oldest generation whose tensor cores and asynchronous copies the kernels use.
const OLDEST: (u32, u32) = (8, 0);

impl CudaDevice {
    /// Opens a GPU by its ordinal.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no driver, no such GPU, or one that is too old.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable { device: format!("cuda:{ordinal}"), reason };
        libraries::ensure_driver().map_err(|e| unavailable(e.to_string()))?;
        result::init().map_err(driver_error("cuInit")).map_err(|e| unavailable(e.to_string()))?;
        let count = result::device::get_count().map_err(driver_error("cuDeviceGetCount"))?;
        let index = c_int::try_from(ordinal).ok().filter(|index| *index < count);
        let index = index.ok_or_else(|| unavailable(format!("the driver sees {count} GPUs")))?;
        let handle = result::device::get(index).map_err(driver_error("cuDeviceGet"))?;
        let attribute = |attribute| {
            // SAFETY: `handle` was given by `cuDeviceGet` just now.
            let value = unsafe { result::device::get_attribute(handle, attribute) };
            value.map(|v| u32::try_from(v).unwrap_or(0)).map_err(driver_error("cuDeviceGetAttribute"))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let name = result::device::get_name(handle).map_err(driver_error("cuDeviceGetName"))?;
        if (major, minor) < OLDEST {
            let reason = format!("{name} is of compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed");
            return Err(unavailable(reason));
        }
        let num_sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
        // SAFETY: `handle` is a device of this process; the context is released in `Inner::drop`.
        let context =
            unsafe { result::primary_ctx::retain(handle) }.map_err(driver_error("cuDevicePrimaryCtxRetain"))?;
        let inner = Inner {
            ordinal,
            handle,
            context,
            name,
            compute_capability: (major, minor),
            num_sms,
            l2_bytes,
            modules: Modules::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Makes the context current in this thread. Every driver call stands behind it.
    pub(crate) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context was retained in `open` and is released only when the last clone goes.
        unsafe { result::ctx::set_current(self.0.context) }.map_err(driver_error("cuCtxSetCurrent"))
    }

    /// Its place among the driver's GPUs.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// What the vendor calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its generation: (9, 0) is Hopper.
    #[must_use]
    pub fn compute_capability(&self) -> (u32, u32) {
        self.0.compute_capability
    }

    /// Streaming multiprocessors.
    #[must_use]
    pub fn num_sms(&self) -> u32 {
        self.0.num_sms
    }

    /// Bytes of the second-level cache.
    #[must_use]
    pub fn l2_bytes(&self) -> usize {
        self.0.l2_bytes
    }

    /// What kernels are compiled for: `sm_90a` has Hopper's own instructions, which `sm_90` doesn't.
    #[must_use]
    pub fn arch(&self) -> String {
        arch_of(self.0.compute_capability)
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn memory_bytes(&self) -> Result<(usize, usize), DeviceError> {
        self.bind()?;
        result::mem_get_info().map_err(driver_error("cuMemGetInfo"))
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.0.modules
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.0.compute_capability;
        write!(f, "cuda:{} ({}, compute capability {major}.{minor})", self.0.ordinal, self.0.name)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the context is still held.
        let _ = unsafe { result::ctx::set_current(self.context) };
        self.modules.unload();
        // SAFETY: retained once in `open`; nothing made from it is left, since all of that holds a clone.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}
