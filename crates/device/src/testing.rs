//! What this crate's tests share.

use crate::Device;

/// The GPU, or `None` after saying so; with `FOVEAL_REQUIRE_GPU` set it must be there. `foveal-testkit`, which stands on this crate,
/// has the same for all others.
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
