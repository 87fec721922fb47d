//! Kernels in a GPU's memory, loaded when they are first launched.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::{result, sys};

use super::CudaDevice;
use super::context::driver_error;
use super::graph::without_captures;
use crate::{CubinCache, DeviceError, KernelSpec};

/// Dynamic shared memory that every kernel may take; more must be asked for once.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// A kernel that can be launched.
pub(super) struct LoadedKernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// Shared memory of its own variables.
    static_shared_bytes: u32,
    /// The most dynamic shared memory that has been allowed so far.
    allowed_shared_bytes: AtomicU32,
}

// SAFETY: the driver's module and function handles may be used from any thread with the context current.
unsafe impl Send for LoadedKernel {}
// SAFETY: as above; nothing behind a shared reference changes but an atomic.
unsafe impl Sync for LoadedKernel {}

/// The kernels of one GPU.
#[derive(Default)]
pub(super) struct Modules {
    loaded: RwLock<HashMap<KernelSpec, Arc<LoadedKernel>>>,
    /// One compilation at a time: two of one kernel would be wasted.
    cache: Mutex<Option<CubinCache>>,
}

impl Modules {
    /// The kernel, compiled and loaded if it is not yet.
    pub(super) fn get(&self, device: &CudaDevice, spec: &KernelSpec) -> Result<Arc<LoadedKernel>, DeviceError> {
        if let Some(kernel) = self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(spec) {
            return Ok(Arc::clone(kernel));
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(spec) {
            return Ok(Arc::clone(kernel));
        }
        let cubin = cache.get_or_insert_with(CubinCache::open_default).get_or_compile(spec, &device.arch())?;
        let kernel = Arc::new(LoadedKernel::load(&cubin, spec)?);
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(*spec, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Unloads all; the context must be current.
    pub(super) fn unload(&mut self) {
        // It may wait for the GPU.
        let _captures = without_captures();
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, kernel) in loaded.drain() {
            // SAFETY: loaded in `load`, unloaded once; the device goes, so nothing launches it any more.
            let _ = unsafe { result::module::unload(kernel.module) };
        }
    }
}

impl LoadedKernel {
    fn load(cubin: &[u8], spec: &KernelSpec) -> Result<Self, DeviceError> {
        // SAFETY: the driver reads an ELF image by its own lengths; the cache checked the bytes against their hash.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) };
        let module = module.map_err(driver_error("cuModuleLoadData"))?;
        let name = CString::new(spec.entry()).unwrap_or_default();
        // SAFETY: the module was loaded just now and the name ends with a zero.
        let function = unsafe { result::module::get_function(module, name) };
        let function = function.map_err(driver_error("cuModuleGetFunction"))?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function is the one that was found just now.
        let own = unsafe { result::function::get_function_attribute(function, attribute) };
        let own = own.map_err(driver_error("cuFuncGetAttribute"))?;
        let static_shared_bytes = u32::try_from(own).unwrap_or_default();
        // Static variables take their part of what needs no asking.
        let plain = PLAIN_SHARED_BYTES.saturating_sub(static_shared_bytes);
        Ok(Self { module, function, static_shared_bytes, allowed_shared_bytes: AtomicU32::new(plain) })
    }

    pub(super) fn function(&self) -> sys::CUfunction {
        self.function
    }

    pub(super) fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// Asks for as much dynamic shared memory as a launch takes.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<(), DeviceError> {
        if bytes <= self.allowed_shared_bytes.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = i32::try_from(bytes).map_err(|_| DeviceError::TooLarge { value: bytes as usize })?;
        // SAFETY: the function belongs to a module that stays loaded as long as the device.
        let allowed = unsafe { result::function::set_function_attribute(self.function, attribute, value) };
        allowed.map_err(driver_error("cuFuncSetAttribute"))?;
        self.allowed_shared_bytes.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}
