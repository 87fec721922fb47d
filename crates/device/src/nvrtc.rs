//! From a kernel's text to a cubin, by NVRTC: in memory, without a toolkit's headers, for one architecture.
//!
//! A cubin is machine code: the driver loads it as it is, and what was tested is what runs.

mod api;
mod log;

use std::ffi::CString;

use crate::libraries::CudaVersion;
use crate::{DeviceError, KernelSpec};
use api::{Nvrtc, Program};
pub use log::KernelResources;

/// What every kernel is compiled with, after its architecture and before its defines.
const OPTIONS: [&str; 5] = [
    "-std=c++17",
    // Functions without a qualifier are the device's.
    "-default-device",
    // Profilers show the source's lines; the code stays the same.
    "-lineinfo",
    // Registers and spills, for the log.
    "--ptxas-options=-v",
    // NVRTC's own cache would leave that out of the log, and here is one already.
    "--no-cache",
];

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

impl Compiled {
    /// What `entry` takes of the device, by the log.
    #[must_use]
    pub fn resources(&self, entry: &str) -> Option<KernelResources> {
        KernelResources::from_log(&self.log, entry)
    }

    /// The compiler's warnings, a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        log::warnings(&self.log)
    }
}

/// Compiles a kernel for an architecture, as `sm_80` or `sm_90a`.
///
/// # Errors
/// [`DeviceError::Unavailable`] where there is no NVRTC, with what would mend it; [`DeviceError::Compile`] with the
/// compiler's log when the text is wrong, or has no such entry.
pub fn compile(spec: &KernelSpec, arch: &str) -> Result<Compiled, DeviceError> {
    let nvrtc = Nvrtc::get()?;
    let failed = |log: String| DeviceError::Compile { kernel: spec.to_string(), arch: arch.to_owned(), log };
    let options = options(spec, arch).into_iter().map(string).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let program = Program::new(nvrtc, spec).map_err(failed)?;
    let outcome = program.compile(&options);
    let log = program.log();
    if let Err(reason) = outcome {
        return Err(failed(if log.trim().is_empty() { reason } else { log }));
    }
    let entries = log::entries(&log);
    if !entries.is_empty() && !entries.contains(&spec.entry()) {
        return Err(failed(format!("there is no entry `{}` among {entries:?}; is it `extern \"C\"`?", spec.entry())));
    }
    let cubin = program.cubin().map_err(failed)?;
    Ok(Compiled { cubin, log })
}

/// The version of the NVRTC that compiles here.
///
/// # Errors
/// [`DeviceError::Unavailable`] where there is none.
pub(crate) fn version() -> Result<CudaVersion, DeviceError> {
    Nvrtc::get().map(Nvrtc::version)
}

/// Everything that the compiler is told besides the text.
pub(crate) fn options(spec: &KernelSpec, arch: &str) -> Vec<String> {
    let fixed = OPTIONS.iter().map(|option| (*option).to_owned());
    std::iter::once(format!("--gpu-architecture={arch}")).chain(fixed).chain(spec.defines()).collect()
}

/// As C takes it.
fn string(text: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a text has a zero byte in it".to_owned())
}

#[cfg(test)]
mod tests;
