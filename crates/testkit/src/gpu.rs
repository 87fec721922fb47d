//! The GPU that tests run on.

use foveal_device::Device;

/// The first GPU; without one the test says so and is over. With `FOVEAL_REQUIRE_GPU` set, a GPU that can't be used fails the
/// test instead.
///
/// # Panics
/// For a GPU that is required and can't be used.
#[must_use]
pub fn gpu() -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}
