//! What is wrong, in sentences, and what mends it.

use super::{Probe, Problem, arch_of};
use crate::cubin_cache::runs_on;
use crate::libraries::{LIBRARIES_VARIABLE, LibraryKind, LibraryStatus};

/// Containers see a host's GPUs only when they are lent.
const CONTAINER: &str = "in a container: start it with `--gpus all` (needs the NVIDIA Container Toolkit)";

/// Everything that keeps a GPU from being used. A machine without one lacks nothing: Foveal runs on its CPU.
pub(super) fn problems(probe: &Probe, visible_devices: Option<&str>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let LibraryStatus::Missing { refused, .. } = &probe.driver {
        problems.extend(no_driver(probe, refused));
        return problems;
    }
    if probe.gpus.is_empty() {
        problems.push(no_gpus(probe, visible_devices));
        return problems;
    }
    for gpu in probe.gpus.iter().filter(|gpu| !gpu.is_new_enough()) {
        let (major, minor) = gpu.compute_capability;
        problems.push(Problem {
            what: format!(
                "{} has compute capability {major}.{minor}, and 8.0 (Ampere) is the oldest that serves",
                gpu.name
            ),
            remedy: format!("use another GPU, or --device cpu in place of cuda:{}", gpu.ordinal),
            is_fatal: probe.usable_gpus().next().is_none(),
        });
    }
    if probe.usable_gpus().next().is_some() {
        problems.extend(no_kernels(probe));
        problems.extend(no_products(probe));
        problems.extend(no_cache(probe));
    }
    problems
}

fn no_driver(probe: &Probe, refused: &[String]) -> Option<Problem> {
    if !refused.is_empty() {
        let remedy = LibraryKind::Driver.remedy().to_owned();
        return Some(Problem { what: refused.join("; "), remedy, is_fatal: true });
    }
    if !probe.has_nvidia_hardware {
        return None;
    }
    let name = LibraryKind::Driver.file_name();
    Some(match &probe.driver_version {
        Some(version) => Problem {
            what: format!("the kernel runs NVIDIA's driver {version}, but its library {name} isn't to be found"),
            remedy: format!("{CONTAINER}; else install the user-space part of driver {version}"),
            is_fatal: true,
        },
        None => Problem {
            what: "there is an NVIDIA GPU, but no driver for it".to_owned(),
            remedy: LibraryKind::Driver.remedy().to_owned(),
            is_fatal: true,
        },
    })
}

fn no_gpus(probe: &Probe, visible_devices: Option<&str>) -> Problem {
    let reason = probe.gpu_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    Problem {
        what: format!("the driver is there, but shows no GPU{reason}"),
        remedy: match visible_devices {
            Some(value) => format!("CUDA_VISIBLE_DEVICES is `{value}`; `unset CUDA_VISIBLE_DEVICES`"),
            None => format!("see whether `nvidia-smi` shows one; {CONTAINER}"),
        },
        is_fatal: true,
    }
}

/// Kernels are compiled here, or came compiled.
fn no_kernels(probe: &Probe) -> Option<Problem> {
    let LibraryStatus::Missing { refused, .. } = &probe.nvrtc else {
        return None;
    };
    let archs = &probe.cubins.shipped_archs;
    let lacks = |cc| !runs_on(&arch_of(cc)).iter().any(|arch| archs.contains(arch));
    let gpu = probe.usable_gpus().find(|gpu| lacks(gpu.compute_capability))?;
    let shipped = match &probe.cubins.shipped {
        Some(folder) => format!("{} has none for {}", folder.display(), arch_of(gpu.compute_capability)),
        None => "none came with this program".to_owned(),
    };
    Some(missing(LibraryKind::Nvrtc, refused, &format!("kernels can't be compiled, and {shipped}")))
}

fn no_products(probe: &Probe) -> Option<Problem> {
    let LibraryStatus::Missing { refused, .. } = &probe.cublaslt else {
        return None;
    };
    Some(missing(LibraryKind::CublasLt, refused, "matrix products can't be computed on a GPU"))
}

fn no_cache(probe: &Probe) -> Option<Problem> {
    let reason = probe.cubins.not_writable.as_deref()?;
    // Who can't compile has nothing to keep.
    if !matches!(probe.nvrtc, LibraryStatus::Found { .. }) {
        return None;
    }
    let folder = probe.cubins.user.as_deref().map(|folder| format!(" in {}", folder.display())).unwrap_or_default();
    Some(Problem {
        what: format!("compiled kernels can't be kept{folder}, so that each start compiles them again: {reason}"),
        remedy: "set FOVEAL_CACHE_DIR to a folder that can be written".to_owned(),
        is_fatal: false,
    })
}

fn missing(kind: LibraryKind, refused: &[String], so: &str) -> Problem {
    let seen = if refused.is_empty() { format!("{} isn't to be found", kind.file_name()) } else { refused.join("; ") };
    let remedy = format!("{}; or set {LIBRARIES_VARIABLE} to the folder it is in", kind.remedy());
    Problem { what: format!("{so}: {seen}"), remedy, is_fatal: true }
}
