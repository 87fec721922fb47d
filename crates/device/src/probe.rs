//! What this machine has for Foveal, and what it lacks.
//!
//! Nothing here fails: whatever can't be found out is said to be so. No context is made, so that looking takes neither
//! memory nor time of a GPU.
#![allow(unsafe_code)]

mod problems;

use std::path::{Path, PathBuf};

use cudarc::driver::result;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};

use crate::CubinCache;
use crate::libraries::{self, LibraryKind, LibraryStatus};

/// The oldest generation whose instructions the kernels use.
const OLDEST: (u32, u32) = (8, 0);

/// What this machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Threads that the CPU runs at once.
    pub num_cpu_threads: usize,
    /// Whether NVIDIA hardware was seen, with or without a driver for it. On some systems that can't be told.
    pub has_nvidia_hardware: bool,
    /// The version of NVIDIA's kernel module, as 580.65.06.
    pub driver_version: Option<String>,
    /// The driver's library, with the newest CUDA that it serves as its version.
    pub driver: LibraryStatus,
    /// The GPUs that the driver shows, by ordinal.
    pub gpus: Vec<GpuProbe>,
    /// Why the driver shows none.
    pub gpu_error: Option<String>,
    /// The compiler of kernels.
    pub nvrtc: LibraryStatus,
    /// The library of matrix products.
    pub cublaslt: LibraryStatus,
    /// Kernels that were compiled before.
    pub cubins: CubinProbe,
    /// What keeps GPUs from being used, or from being used well.
    pub problems: Vec<Problem>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuProbe {
    /// Its number in `cuda:N`.
    pub ordinal: usize,
    /// What the vendor calls it.
    pub name: String,
    /// Its generation: (9, 0) is Hopper.
    pub compute_capability: (u32, u32),
    /// All of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub num_sms: u32,
}

impl GpuProbe {
    /// Whether its generation has what the kernels use.
    #[must_use]
    pub fn is_new_enough(&self) -> bool {
        self.compute_capability >= OLDEST
    }
}

/// The folders of compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CubinProbe {
    /// The folder that came with the program.
    pub shipped: Option<PathBuf>,
    /// The architectures that kernels in it are for.
    pub shipped_archs: Vec<String>,
    /// The folder that kernels compiled here are kept in.
    pub user: Option<PathBuf>,
    /// Why it can't be written; `None` if it can.
    pub not_writable: Option<String>,
}

/// Something to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What mends it: a command where there is one.
    pub remedy: String,
    /// Whether no GPU can be used before that.
    pub is_fatal: bool,
}

impl Probe {
    /// The GPUs that Foveal can run on, if what it needs besides is there.
    pub fn usable_gpus(&self) -> impl Iterator<Item = &GpuProbe> {
        self.gpus.iter().filter(|gpu| gpu.is_new_enough())
    }
}

/// Looks at the machine. Loads the libraries that it finds.
#[must_use]
pub fn probe() -> Probe {
    let driver_version = kernel_module(&std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default());
    let (gpus, gpu_error) = match gpus() {
        Ok(gpus) => (gpus, None),
        Err(reason) => (Vec::new(), reason),
    };
    let mut probe = Probe {
        num_cpu_threads: std::thread::available_parallelism().map_or(1, usize::from),
        has_nvidia_hardware: driver_version.is_some() || has_nvidia_hardware(Path::new("/sys/bus/pci/devices")),
        driver_version,
        driver: LibraryStatus::of(LibraryKind::Driver),
        gpus,
        gpu_error,
        nvrtc: LibraryStatus::of(LibraryKind::Nvrtc),
        cublaslt: LibraryStatus::of(LibraryKind::CublasLt),
        cubins: cubins(&CubinCache::open_default()),
        problems: Vec::new(),
    };
    let hides_gpus = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    probe.problems = problems::problems(&probe, hides_gpus.as_deref());
    probe
}

/// The GPUs that the driver shows; without one no reason, since there is nobody to ask.
fn gpus() -> Result<Vec<GpuProbe>, Option<String>> {
    libraries::ensure_driver().map_err(|_| None)?;
    let failed = |error: result::DriverError| Some(words(error));
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    (0..count).map(|ordinal| gpu(ordinal).map_err(failed)).collect()
}

fn gpu(ordinal: i32) -> Result<GpuProbe, result::DriverError> {
    let device: CUdevice = result::device::get(ordinal)?;
    let attribute = |attribute| {
        // SAFETY: `device` was given by `cuDeviceGet` above.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.map(i32::unsigned_abs)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let num_sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    // SAFETY: as above.
    let memory_bytes = unsafe { result::device::total_mem(device) }?;
    Ok(GpuProbe {
        ordinal: usize::try_from(ordinal).unwrap_or(0),
        name: result::device::get_name(device)?,
        compute_capability: (major, minor),
        memory_bytes: memory_bytes as u64,
        num_sms,
    })
}

/// The driver's error in its own words.
fn words(error: result::DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, _>| text.ok().map(|text| text.to_string_lossy().into_owned());
    match (text(error.error_string()), text(error.error_name())) {
        (Some(sentence), Some(name)) => format!("{sentence} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}

fn cubins(cache: &CubinCache) -> CubinProbe {
    let no_folder = || "none of FOVEAL_CACHE_DIR, XDG_CACHE_HOME and HOME is set".to_owned();
    CubinProbe {
        shipped: cache.shipped_folder().map(Path::to_owned),
        shipped_archs: cache.shipped_archs(),
        user: cache.user_folder().map(Path::to_owned),
        not_writable: match cache.try_writing() {
            Some(written) => written.err().map(|error| error.to_string()),
            None => Some(no_folder()),
        },
    }
}

/// The version in `/proc/driver/nvidia/version`: the first word of numbers, as 580.65.06.
fn kernel_module(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// Whether a graphics card or accelerator of NVIDIA's is on the bus.
fn has_nvidia_hardware(bus: &Path) -> bool {
    const NVIDIA: &str = "0x10de";
    const DISPLAY_CLASS: &str = "0x03";
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    std::fs::read_dir(bus).into_iter().flatten().flatten().any(|entry| {
        let device = entry.path();
        read(device.join("vendor")).trim() == NVIDIA && read(device.join("class")).starts_with(DISPLAY_CLASS)
    })
}

/// What kernels are compiled for on a GPU of this generation: from Hopper on with the generation's own instructions.
pub(crate) fn arch_of((major, minor): (u32, u32)) -> String {
    let own = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

#[cfg(test)]
mod tests;
