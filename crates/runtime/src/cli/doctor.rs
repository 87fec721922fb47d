//! `foveal doctor`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use foveal_device::{Device, DeviceKind, GpuProbe, LibraryKind, LibraryStatus, Probe, Problem, probe};
use indicatif::BinaryBytes;
use serde::Serialize;

use super::config::Output;
use super::error::CliError;
use super::printer::write_line;

/// What `foveal doctor` found.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// What `--device auto` takes; `null` if nothing can be used.
    device: Option<String>,
    cpu: Cpu,
    driver: Driver,
    gpus: Vec<Gpu>,
    nvrtc: Library,
    cublaslt: Library,
    cubins: Cubins,
    problems: Vec<Mend>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    threads: usize,
}

#[derive(Debug, Serialize)]
struct Driver {
    version: Option<String>,
    library: Library,
}

/// A library; its version is a CUDA version for the driver's.
#[derive(Debug, Serialize)]
struct Library {
    name: &'static str,
    path: Option<String>,
    version: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    looked_in: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Gpu {
    device: String,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    num_sms: u32,
}

#[derive(Debug, Serialize)]
struct Cubins {
    shipped: Option<String>,
    shipped_archs: Vec<String>,
    cache: Option<String>,
    cache_is_writable: bool,
}

#[derive(Debug, Serialize)]
struct Mend {
    what: String,
    remedy: String,
}

/// Looks at the machine, and whether anything on it can be used.
pub(crate) fn doctor(output: Output) -> Result<(), CliError> {
    let report = Report::new(probe());
    match output {
        Output::Json => write_line(&report)?,
        Output::Text => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text(&report).as_bytes())?;
            stdout.flush()?;
        }
    }
    if report.device.is_some() { Ok(()) } else { Err(CliError::NoDevice) }
}

impl Report {
    fn new(probe: Probe) -> Self {
        let mut problems: Vec<Mend> = probe.problems.iter().map(Mend::new).collect();
        let device = best_device(&probe, &mut problems);
        let cubins = &probe.cubins;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            device,
            cpu: Cpu { threads: probe.num_cpu_threads },
            driver: Driver { version: probe.driver_version, library: Library::new(LibraryKind::Driver, probe.driver) },
            gpus: probe.gpus.iter().map(Gpu::new).collect(),
            nvrtc: Library::new(LibraryKind::Nvrtc, probe.nvrtc),
            cublaslt: Library::new(LibraryKind::CublasLt, probe.cublaslt),
            cubins: Cubins {
                shipped: cubins.shipped.as_deref().map(display),
                shipped_archs: cubins.shipped_archs.clone(),
                cache: cubins.user.as_deref().map(display),
                cache_is_writable: cubins.not_writable.is_none(),
            },
            problems,
        }
    }
}

impl Library {
    fn new(kind: LibraryKind, status: LibraryStatus) -> Self {
        let name = kind.file_name();
        let none = Self { name, path: None, version: None, refused: Vec::new(), looked_in: Vec::new() };
        match status {
            LibraryStatus::Found { path, version } => {
                Self { path: Some(display(&path)), version: Some(version.to_string()), ..none }
            }
            LibraryStatus::Missing { looked_in, refused } => {
                Self { refused, looked_in: looked_in.iter().map(|folder| display(folder)).collect(), ..none }
            }
            // A status that this program doesn't know yet: nothing that could be used.
            _ => none,
        }
    }
}

impl Gpu {
    fn new(gpu: &GpuProbe) -> Self {
        let (major, minor) = gpu.compute_capability;
        Self {
            device: DeviceKind::Cuda(gpu.ordinal).to_string(),
            name: gpu.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            memory_bytes: gpu.memory_bytes,
            num_sms: gpu.num_sms,
        }
    }
}

impl Mend {
    fn new(problem: &Problem) -> Self {
        Self { what: problem.what.clone(), remedy: problem.remedy.clone() }
    }
}

/// Opens what `--device auto` would: a GPU that can be seen can still refuse.
fn best_device(probe: &Probe, problems: &mut Vec<Mend>) -> Option<String> {
    let is_barred = probe.problems.iter().any(|problem| problem.is_fatal);
    let gpu = probe.usable_gpus().next().filter(|_| !is_barred).map(|gpu| DeviceKind::Cuda(gpu.ordinal));
    for kind in gpu.into_iter().chain([DeviceKind::Cpu]) {
        match Device::open(kind, 0) {
            Ok(_) => return Some(kind.to_string()),
            Err(error) => problems.push(Mend {
                what: error.to_string(),
                remedy: match kind {
                    DeviceKind::Cpu => "free memory, or raise the limits of `ulimit -u` and `ulimit -v`".to_owned(),
                    _ => "see with `nvidia-smi` who uses it and whether it works".to_owned(),
                },
            }),
        }
    }
    None
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// The report as a page of text.
fn text(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a string can't fail.
    let _ = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &Report) -> std::fmt::Result {
    let device = report.device.as_deref().unwrap_or("nothing that is here");
    writeln!(page, "foveal {} runs on {device}\n", report.version)?;
    let mut field = |name: &str, value: &str| writeln!(page, "  {name:<22}{value}");
    field("CPU threads", &report.cpu.threads.to_string())?;
    field("NVIDIA driver", report.driver.version.as_deref().unwrap_or("none"))?;
    field(report.driver.library.name, &describe(&report.driver.library, "for CUDA "))?;
    for gpu in &report.gpus {
        let Gpu { name, compute_capability, memory_bytes, num_sms, .. } = gpu;
        let memory = BinaryBytes(*memory_bytes);
        field(&gpu.device, &format!("{name}, {memory}, compute capability {compute_capability}, {num_sms} SMs"))?;
    }
    field(report.nvrtc.name, &describe(&report.nvrtc, ""))?;
    field(report.cublaslt.name, &describe(&report.cublaslt, ""))?;
    let Cubins { shipped, shipped_archs, cache, cache_is_writable } = &report.cubins;
    if let Some(folder) = shipped {
        field("kernels shipped in", &format!("{folder} ({})", shipped_archs.join(", ")))?;
    }
    let note = if *cache_is_writable { "" } else { " (can't be written)" };
    field("kernels kept in", &format!("{}{note}", cache.as_deref().unwrap_or("no folder")))?;
    if !report.problems.is_empty() {
        writeln!(page, "\nProblems")?;
    }
    for problem in &report.problems {
        writeln!(page, "  {}\n    To mend it: {}", problem.what, problem.remedy)?;
    }
    Ok(())
}

fn describe(library: &Library, before_version: &str) -> String {
    match (&library.version, &library.path) {
        (Some(version), Some(path)) => format!("{before_version}{version}, {path}"),
        _ if !library.refused.is_empty() => format!("none that fits: {}", library.refused.join("; ")),
        _ => "not found (--json lists the folders)".to_owned(),
    }
}
