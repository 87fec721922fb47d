use super::*;
use crate::{DType, Header, KernelSource};

static HEADERS: &[Header] = &[
    Header { name: "outer.cuh", text: "#pragma once\n#include \"inner.cuh\"\n" },
    Header { name: "inner.cuh", text: "#pragma once\ntypedef float f32_t;\nstruct bf16_t { unsigned short bits; };\n" },
];

static SCALE: KernelSource = KernelSource {
    name: "scale",
    text: "#include \"outer.cuh\"\n\
           extern \"C\" __global__ void scale(X_T* x) { x[threadIdx.x] = x[threadIdx.x + N]; }\n",
    headers: HEADERS,
};

static WRONG: KernelSource = KernelSource {
    name: "wrong",
    text: "extern \"C\" __global__ void wrong(float* x) {\n    x[0] = undeclared;\n}\n",
    headers: &[],
};

/// More live values than the 32 registers that two blocks of 1024 threads leave to each.
static SPILLS: KernelSource = KernelSource {
    name: "spills",
    text: "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float* x) {\n\
               float y[64];\n\
               #pragma unroll\n\
               for (int i = 0; i < 64; i++) y[i] = x[i * 1024 + threadIdx.x];\n\
               __syncthreads();\n\
               #pragma unroll\n\
               for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = y[i] * y[63 - i] + y[(i * 7) % 64];\n\
           }\n",
    headers: &[],
};

/// Compiles where there is a compiler.
fn compiled(spec: &KernelSpec, arch: &str) -> Option<Result<Compiled, DeviceError>> {
    match compile(spec, arch) {
        Err(error @ DeviceError::Unavailable { .. }) => {
            println!("skipped: {error}");
            None
        }
        outcome => Some(outcome),
    }
}

fn scale() -> KernelSpec {
    KernelSpec::new(&SCALE, "scale").dtype("X_T", DType::BF16).int("N", 128)
}

#[test]
fn a_kernel_with_headers_and_defines_becomes_machine_code() {
    for arch in ["sm_80", "sm_89", "sm_90a"] {
        let Some(outcome) = compiled(&scale(), arch) else { return };
        let compiled = outcome.unwrap();
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch}");
        let resources = compiled.resources("scale").unwrap();
        assert!(resources.registers > 0 && resources.spill_bytes == 0, "{resources:?}");
        assert_eq!(compiled.warnings(), Vec::<String>::new());
    }
}

#[test]
fn the_same_text_becomes_the_same_code() {
    let Some(first) = compiled(&scale(), "sm_90a") else { return };
    assert_eq!(first.unwrap().cubin, compile(&scale(), "sm_90a").unwrap().cubin);
}

#[test]
fn an_error_names_kernel_architecture_defines_and_line() {
    let spec = KernelSpec::new(&WRONG, "wrong").int("HIDDEN", 2048);
    let Some(outcome) = compiled(&spec, "sm_80") else { return };
    let message = outcome.unwrap_err().to_string();
    for part in ["wrong:wrong", "sm_80", "-DHIDDEN=2048", "wrong.cu(2)", "undeclared"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_missing_entry_and_an_unknown_architecture_are_errors() {
    let Some(outcome) = compiled(&KernelSpec::new(&SCALE, "scales").dtype("X_T", DType::F32).int("N", 1), "sm_80")
    else {
        return;
    };
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("no entry `scales`") && message.contains("scale"), "{message}");
    let message = compile(&scale(), "sm_12345").unwrap_err().to_string();
    assert!(message.contains("sm_12345"), "{message}");
    let message = compile(&scale(), "compute_80").unwrap_err().to_string();
    assert!(message.contains("no cubin"), "{message}");
}

#[test]
fn spills_are_seen() {
    let Some(outcome) = compiled(&KernelSpec::new(&SPILLS, "spills"), "sm_80") else { return };
    let resources = outcome.unwrap().resources("spills").unwrap();
    assert!(resources.registers <= 32 && resources.spill_bytes > 0, "{resources:?}");
}

#[test]
fn threads_compile_side_by_side() {
    let Some(first) = compiled(&scale(), "sm_80") else { return };
    let first = first.unwrap().cubin;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| compile(&scale(), "sm_80").unwrap().cubin)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), first);
        }
    });
}

#[test]
fn options_hold_the_architecture_and_the_defines() {
    let options = options(&scale(), "sm_90a");
    assert_eq!(options.first().map(String::as_str), Some("--gpu-architecture=sm_90a"));
    assert!(options.ends_with(&["-DX_T=bf16_t".to_owned(), "-DN=128".to_owned()]), "{options:?}");
}
