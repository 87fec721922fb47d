//! The GPU that tests run on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use foveal_device::Device;

/// Keeps a program's other tests waiting: they share the GPU, and the counters are the whole process's.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first GPU; without one the test says so and is over. With `FOVEAL_REQUIRE_GPU` set, a GPU that can't be used fails
/// the test instead.
pub(crate) fn gpu() -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}
