use std::fs;

use super::problems::problems;
use super::*;
use crate::libraries::CudaVersion;

fn found(path: &str) -> LibraryStatus {
    LibraryStatus::Found { path: path.into(), version: CudaVersion { major: 13, minor: 0 } }
}

fn missing(refused: &[&str]) -> LibraryStatus {
    LibraryStatus::Missing { looked_in: Vec::new(), refused: refused.iter().map(|&text| text.to_owned()).collect() }
}

fn gpu(compute_capability: (u32, u32)) -> GpuProbe {
    GpuProbe { ordinal: 0, name: "NVIDIA X".into(), compute_capability, memory_bytes: 1 << 34, num_sms: 132 }
}

/// A machine that lacks nothing.
fn whole() -> Probe {
    Probe {
        num_cpu_threads: 4,
        has_nvidia_hardware: true,
        driver_version: Some("580.65.06".into()),
        driver: found("/lib/libcuda.so.1"),
        gpus: vec![gpu((9, 0))],
        gpu_error: None,
        nvrtc: found("/lib/libnvrtc.so.13"),
        cublaslt: found("/lib/libcublasLt.so.13"),
        cubins: CubinProbe { shipped: None, shipped_archs: Vec::new(), user: Some("/c".into()), not_writable: None },
        problems: Vec::new(),
    }
}

#[track_caller]
fn the_problem(probe: &Probe) -> Problem {
    let mut problems = problems(probe, None);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[track_caller]
fn check(probe: &Probe, what: &str, remedy: &str) {
    let problem = the_problem(probe);
    assert!(problem.what.contains(what) && problem.remedy.contains(remedy), "{problem:?}");
}

#[test]
fn looking_never_fails_and_is_repeatable() {
    let first = probe();
    assert_eq!(first, probe());
    assert!(first.num_cpu_threads > 0);
    assert!(first.gpus.is_empty() || matches!(first.driver, LibraryStatus::Found { .. }));
}

#[test]
fn a_whole_machine_and_one_without_a_gpu_lack_nothing() {
    assert_eq!(problems(&whole(), None), []);
    let cpu_only = Probe {
        has_nvidia_hardware: false,
        driver_version: None,
        driver: missing(&[]),
        gpus: Vec::new(),
        nvrtc: missing(&[]),
        cublaslt: missing(&[]),
        ..whole()
    };
    assert_eq!(problems(&cpu_only, None), []);
}

#[test]
fn a_missing_driver_is_told_from_an_invisible_one_and_an_old_one() {
    let no_library = Probe { driver: missing(&[]), gpus: Vec::new(), ..whole() };
    check(&no_library, "runs NVIDIA's driver 580.65.06", "--gpus all");
    let no_driver = Probe { driver_version: None, ..no_library.clone() };
    check(&no_driver, "no driver", "install NVIDIA's driver 580");
    let old = Probe { driver: missing(&["/lib/libcuda.so.1 belongs to a driver for CUDA 12.4"]), ..no_library };
    check(&old, "CUDA 12.4", "580 or newer");
}

#[test]
fn a_driver_that_shows_no_gpu_is_a_problem() {
    let probe = Probe { gpus: Vec::new(), gpu_error: Some("no CUDA-capable device is detected".into()), ..whole() };
    check(&probe, "shows no GPU: no CUDA-capable device", "nvidia-smi");
    let hidden = problems(&probe, Some("")).remove(0);
    assert!(hidden.remedy.contains("unset CUDA_VISIBLE_DEVICES"), "{hidden:?}");
}

#[test]
fn an_old_gpu_is_named_and_needs_nothing_else() {
    check(&Probe { gpus: vec![gpu((7, 5))], nvrtc: missing(&[]), ..whole() }, "compute capability 7.5", "--device cpu");
    let one_of_two = Probe { gpus: vec![gpu((7, 5)), gpu((8, 0))], ..whole() };
    assert!(!the_problem(&one_of_two).is_fatal);
}

#[test]
fn missing_libraries_are_named_with_a_command() {
    check(&Probe { nvrtc: missing(&[]), ..whole() }, "kernels can't be compiled", "pip install 'nvidia-cuda-nvrtc");
    check(&Probe { cublaslt: missing(&[]), ..whole() }, "libcublasLt.so.13", "pip install 'nvidia-cublas");
    let old = Probe { nvrtc: missing(&["/usr/local/cuda/lib64/libnvrtc.so.12 is of another version"]), ..whole() };
    check(&old, "libnvrtc.so.12 is of another version", "FOVEAL_CUDA_LIBS");
}

#[test]
fn shipped_kernels_stand_in_for_a_compiler() {
    let shipped = |archs: &[&str], cc| {
        let shipped_archs = archs.iter().map(|&arch| arch.to_owned()).collect();
        let cubins = CubinProbe { shipped: Some("/bin/cubins".into()), shipped_archs, ..whole().cubins };
        Probe { nvrtc: missing(&[]), gpus: vec![gpu(cc)], cubins, ..whole() }
    };
    assert_eq!(problems(&shipped(&["sm_80", "sm_90a"], (9, 0)), None), []);
    assert_eq!(problems(&shipped(&["sm_80"], (8, 6)), None), []);
    check(&shipped(&["sm_80"], (9, 0)), "/bin/cubins has none for sm_90a", "pip install");
}

#[test]
fn a_cache_that_cannot_be_written_matters_to_a_compiler_only() {
    let cubins = CubinProbe { not_writable: Some("read-only file system".into()), ..whole().cubins };
    let probe = Probe { cubins: cubins.clone(), ..whole() };
    check(&probe, "/c, so that each start", "FOVEAL_CACHE_DIR");
    assert!(!the_problem(&probe).is_fatal);
    let shipped_archs = vec!["sm_90a".to_owned()];
    assert_eq!(
        problems(&Probe { nvrtc: missing(&[]), cubins: CubinProbe { shipped_archs, ..cubins }, ..whole() }, None),
        []
    );
}

#[test]
fn the_kernel_modules_version_is_read() {
    let closed =
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.2";
    let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)";
    assert_eq!(kernel_module(closed).as_deref(), Some("550.54.15"));
    assert_eq!(kernel_module(open).as_deref(), Some("580.95.05"));
    assert_eq!(kernel_module(""), None);
}

#[test]
fn a_card_on_the_bus_is_seen() {
    let bus = tempfile::tempdir().unwrap();
    let add = |name: &str, vendor: &str, class: &str| {
        fs::create_dir(bus.path().join(name)).unwrap();
        fs::write(bus.path().join(name).join("vendor"), vendor).unwrap();
        fs::write(bus.path().join(name).join("class"), class).unwrap();
    };
    add("0000:00:01.0", "0x8086\n", "0x030000\n");
    add("0000:00:02.0", "0x10de\n", "0x040300\n");
    assert!(!has_nvidia_hardware(bus.path()), "another vendor's card, and NVIDIA's sound");
    add("0000:00:03.0", "0x10de\n", "0x030200\n");
    assert!(has_nvidia_hardware(bus.path()));
    assert!(!has_nvidia_hardware(&bus.path().join("none")));
}

#[test]
fn architectures_have_their_own_instructions_from_hopper_on() {
    assert_eq!([(8, 0), (8, 9), (9, 0), (12, 0)].map(arch_of), ["sm_80", "sm_89", "sm_90a", "sm_120a"]);
}
