//! Compiles every kernel variant for the architectures given, without a GPU, and prints what each takes of the device.
//! Fails on errors, warnings and spilled registers. `cargo xtask kernels` runs it. Words that are no architecture choose
//! kernels whose names hold one of them.
//!
//! `cargo run -p foveal-kernels --example compile_kernels -- sm_80 sm_90a paged_attention`

use std::process::ExitCode;

use foveal_device::{DeviceError, KernelResources, KernelSpec, compile};
use foveal_kernels::kernel_variants;
use rayon::prelude::*;

/// What became of a variant on an architecture.
enum Outcome {
    Compiled {
        resources: KernelResources,
        warnings: Vec<String>,
    },
    /// With the compiler's log, or why there is none.
    Failed(String),
}

/// A line of the table.
struct Row {
    kernel: String,
    arch: String,
    outcome: Outcome,
}

impl Row {
    fn of(spec: &KernelSpec, arch: &str) -> Self {
        let outcome = match compile(spec, arch) {
            Ok(compiled) => match compiled.resources(spec.entry()) {
                Some(resources) => Outcome::Compiled { resources, warnings: compiled.warnings() },
                None => Outcome::Failed(format!("the log doesn't say what it takes:\n{}", compiled.log)),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        };
        // The defines without the compiler's `-D` before each.
        let kernel = spec.to_string().replace(" -D", " ");
        Self { kernel, arch: arch.to_owned(), outcome }
    }

    fn cells(&self) -> [String; 5] {
        let numbers = match &self.outcome {
            Outcome::Compiled { resources, .. } => {
                [resources.registers, resources.shared_bytes, resources.spill_bytes].map(|number| number.to_string())
            }
            Outcome::Failed(_) => ["failed".to_owned(), String::new(), String::new()],
        };
        let [registers, shared, spills] = numbers;
        [self.kernel.clone(), self.arch.clone(), registers, shared, spills]
    }

    /// What is wrong with it, if anything.
    fn fault(&self) -> Option<String> {
        let what = match &self.outcome {
            Outcome::Failed(reason) => reason.clone(),
            Outcome::Compiled { warnings, .. } if !warnings.is_empty() => warnings.join("\n"),
            Outcome::Compiled { resources, .. } if resources.spill_bytes > 0 => {
                format!("spills {} bytes of registers", resources.spill_bytes)
            }
            Outcome::Compiled { .. } => return None,
        };
        Some(format!("{} for {}: {what}", self.kernel, self.arch))
    }
}

/// Whether the compiler knows an architecture; older ones don't know the newest.
fn takes(arch: &str, any: &KernelSpec) -> Result<bool, DeviceError> {
    match compile(any, arch) {
        Err(DeviceError::Compile { log, .. }) => Ok(!log.contains("--gpu-architecture")),
        Err(error @ DeviceError::Unavailable { .. }) => Err(error),
        _ => Ok(true),
    }
}

/// Kernels to the left, numbers to the right.
fn print(rows: &[Row]) {
    let head = ["kernel", "arch", "registers", "shared bytes", "spill bytes"].map(str::to_owned);
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let (kernel, arch, numbers) = (width(0), width(1), [2, 3, 4].map(width));
    for [name, of, registers, shared, spills] in &lines {
        let [r, s, p] = numbers;
        println!("{name:kernel$}  {of:arch$}  {registers:>r$}  {shared:>s$}  {spills:>p$}");
    }
}

fn main() -> Result<ExitCode, DeviceError> {
    let (named, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("sm_"));
    let is_wanted = |spec: &KernelSpec| words.is_empty() || words.iter().any(|word| spec.to_string().contains(word));
    let specs: Vec<KernelSpec> = kernel_variants().into_iter().filter(is_wanted).collect();
    let mut archs = Vec::new();
    for arch in named {
        match specs.first().map_or(Ok(false), |any| takes(&arch, any))? {
            true => archs.push(arch),
            false => println!("skipped: this NVRTC doesn't compile for {arch}"),
        }
    }
    let tasks: Vec<(&KernelSpec, &str)> =
        specs.iter().flat_map(|spec| archs.iter().map(move |arch| (spec, &**arch))).collect();
    let rows: Vec<Row> = tasks.par_iter().with_max_len(1).map(|(spec, arch)| Row::of(spec, arch)).collect();
    print(&rows);
    let faults: Vec<String> = rows.iter().filter_map(Row::fault).collect();
    for fault in &faults {
        eprintln!("{fault}\n");
    }
    println!("{} variants of {} kernels, {} faults", rows.len(), specs.len(), faults.len());
    Ok(if faults.is_empty() && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
