//! Launching kernels.
#![allow(unsafe_code)]

use cudarc::driver::sys;

use super::context::driver_error;
use super::{Args, CudaStream};
use crate::counters::LAUNCHES;
use crate::{DeviceError, KernelSpec};

/// The most blocks of a launch that may begin early and is given [`SMALL_CARVEOUT_PERCENT`]: few enough to be there at once, or
/// nearly.
const SMALL_GRID: u64 = 1024;

/// The most shared memory of a block of such a launch.
const SMALL_SHARED_BYTES: u32 = 4 << 10;

/// The share of a multiprocessor's memory that such a launch is given as shared memory, the rest being level-1 cache: 32 KiB of a
/// Hopper's 228. Left to itself the driver gives each kernel as little as it needs, and a multiprocessor changes its share only
/// between blocks: of one that begins while the kernel ahead still runs there, fewer blocks would fit.
const SMALL_CARVEOUT_PERCENT: u32 = 14;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks of a cluster, which divide the grid; [1, 1, 1] for none. Hopper and later.
    pub cluster: [u32; 3],
    /// Whether it may begin before the kernel ahead of it in the stream has ended (programmatic dependent launch). Every thread of
    /// its kernel waits by `griddepcontrol.wait`: before it reads or writes what a kernel ahead may hold, and before it ends, even
    /// where it does nothing. Whoever waits for this kernel has then waited for all before it. Hopper and later.
    pub dependent: bool,
    /// Whether a multiprocessor is to have all the shared memory that it can, so that blocks with much of it run there side by side.
    pub side_by_side: bool,
}

impl Launch {
    /// A plain launch.
    #[must_use]
    pub const fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, shared_bytes: 0, cluster: [1, 1, 1], dependent: false, side_by_side: false }
    }

    /// With dynamic shared memory.
    #[must_use]
    pub const fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// In clusters of blocks.
    #[must_use]
    pub const fn cluster(mut self, cluster: [u32; 3]) -> Self {
        self.cluster = cluster;
        self
    }

    /// With as much shared memory as a multiprocessor can have.
    #[must_use]
    pub const fn side_by_side(mut self) -> Self {
        self.side_by_side = true;
        self
    }

    /// Allowed to begin early.
    #[must_use]
    pub const fn dependent(mut self) -> Self {
        self.dependent = true;
        self
    }

    /// The attributes that differ from a plain launch's, and how many; of a kernel with so much shared memory of its own.
    fn attributes(&self, static_shared_bytes: u32) -> ([sys::CUlaunchAttribute; 3], usize) {
        use sys::CUlaunchAttributeID as Id;
        type Value = sys::CUlaunchAttributeValue;
        let unused =
            sys::CUlaunchAttribute { id: Id::CU_LAUNCH_ATTRIBUTE_IGNORE, pad: [0; 4], value: Value { pad: [0; 64] } };
        let mut attributes = [unused; 3];
        let mut count = 0;
        let mut add = |id: Id, value: Value| {
            if let Some(place) = attributes.get_mut(count) {
                *place = sys::CUlaunchAttribute { id, value, ..unused };
                count += 1;
            }
        };
        if self.cluster != [1, 1, 1] {
            let [x, y, z] = self.cluster;
            let cluster = Value { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z } };
            add(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster);
        }
        if self.dependent {
            let allowed = Value { programmaticStreamSerializationAllowed: 1 };
            add(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, allowed);
        }
        if let Some(percent) = self.carveout_percent(static_shared_bytes) {
            add(Id::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, Value { sharedMemCarveout: percent });
        }
        (attributes, count)
    }

    /// The share of a multiprocessor's memory to be shared memory, if it isn't left to the driver.
    fn carveout_percent(&self, static_shared_bytes: u32) -> Option<u32> {
        let num_blocks = self.grid.into_iter().map(u64::from).fold(1, u64::saturating_mul);
        let shared_bytes = self.shared_bytes.saturating_add(static_shared_bytes);
        let is_small = shared_bytes <= SMALL_SHARED_BYTES && num_blocks <= SMALL_GRID;
        match self.side_by_side {
            true => Some(100),
            false => (self.dependent && is_small).then_some(SMALL_CARVEOUT_PERCENT),
        }
    }
}

impl CudaStream {
    /// Compiles and loads a kernel, so that its first launch takes no longer than the others.
    ///
    /// # Errors
    /// As [`CudaStream::launch`].
    pub fn load(&self, spec: &KernelSpec) -> Result<(), DeviceError> {
        self.device().bind()?;
        self.device().modules().get(self.device(), spec).map(|_| ())
    }

    /// Launches a kernel, compiled and loaded if need be. A grid or block of no size launches nothing.
    ///
    /// # Errors
    /// [`DeviceError::Compile`] or [`DeviceError::Unavailable`] when it can't be compiled, [`DeviceError::Driver`] when it
    /// can't be loaded or launched.
    ///
    /// # Safety
    /// `args` are the kernel's parameters in order and type, and what they point to is as large as the kernel reads and
    /// writes, and lives until it has run.
    pub unsafe fn launch(&self, spec: &KernelSpec, launch: Launch, args: &mut Args) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) || launch.block.contains(&0) {
            return Ok(());
        }
        self.device().bind()?;
        let kernel = self.device().modules().get(self.device(), spec)?;
        kernel.allow_shared(launch.shared_bytes)?;
        let (mut attributes, num_attributes) = launch.attributes(kernel.static_shared_bytes());
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: launch.shared_bytes,
            hStream: self.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: num_attributes as u32,
        };
        let mut addresses = args.addresses()?;
        LAUNCHES.add_one();
        // SAFETY: the configuration's arrays and the parameters outlive the call, which copies them; the caller vouches
        // for what the parameters mean.
        let result = unsafe {
            sys::cuLaunchKernelEx(&raw const config, kernel.function(), addresses.as_mut_ptr(), std::ptr::null_mut())
        };
        result.result().map_err(driver_error("cuLaunchKernelEx")).map_err(|error| match error {
            DeviceError::Driver { reason, .. } => {
                DeviceError::Launch { kernel: spec.entry(), launch: format!("{launch:?}"), reason }
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_that_were_asked_for() {
        use sys::CUlaunchAttributeID as Id;
        let ids = |launch: Launch| {
            let (attributes, count) = launch.attributes(1024);
            attributes.into_iter().take(count).map(|attribute| attribute.id).collect::<Vec<_>>()
        };
        const CLUSTER: Id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        const EARLY: Id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        const CARVEOUT: Id = Id::CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        let plain = Launch::new([1; 3], [32, 1, 1]);
        assert_eq!(ids(plain), []);
        assert_eq!(ids(plain.cluster([2, 1, 1])), [CLUSTER]);
        assert_eq!(ids(plain.dependent()), [EARLY, CARVEOUT]);
        assert_eq!(ids(plain.cluster([2, 1, 1]).dependent()), [CLUSTER, EARLY, CARVEOUT]);
        let large = plain.side_by_side().cluster([2, 1, 1]).shared_bytes(1 << 16);
        assert_eq!(ids(large), [CLUSTER, CARVEOUT]);
        assert_eq!(ids(large.dependent()), [CLUSTER, EARLY, CARVEOUT]);
        let percent = |launch: Launch| {
            let (attributes, count) = launch.attributes(1024);
            // SAFETY: the last attribute is a carveout, as was seen above, whose value is this one.
            unsafe { attributes[count - 1].value.sharedMemCarveout }
        };
        assert_eq!([large, large.dependent(), plain.dependent().side_by_side()].map(percent), [100; 3]);
        assert_eq!(percent(plain.dependent()), SMALL_CARVEOUT_PERCENT);
        // Such as take what they need, and one whose blocks come one after the other.
        assert_eq!(ids(plain.dependent().shared_bytes(3 << 10)), [EARLY, CARVEOUT]);
        assert_eq!([(3 << 10) + 1, u32::MAX].map(|bytes| ids(plain.dependent().shared_bytes(bytes))), [[EARLY]; 2]);
        assert_eq!(ids(Launch::new([32, 32, 1], [32, 1, 1]).dependent()), [EARLY, CARVEOUT]);
        assert_eq!(ids(Launch::new([u32::MAX; 3], [32, 1, 1]).dependent()), [EARLY]);
    }
}
