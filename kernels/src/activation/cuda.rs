//! The CUDA launchers.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{ACTIVATE, Activate, Activation, GATED, Gated};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len};

static SOURCE: KernelSource =
    KernelSource { name: "activation", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `THREADS` of the kernels.
const THREADS: usize = 256;

/// `PACKS` of `activate`: packs that a thread computes.
const PACKS: usize = 2;

fn spec(entry: &'static str, [from, to]: [DType; 2], pack: usize, kind: Activation) -> KernelSpec {
    let kind = match kind {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
    };
    KernelSpec::new(&SOURCE, entry).dtype("X_T", from).dtype("OUT_T", to).int("VEC", pack as i64).int("KIND", kind)
}

pub(super) fn activate(stream: &CudaStream, args: &Activate<'_>, num_elements: usize) -> Result<(), OpError> {
    launch_activate(stream, args, num_elements).map_err(|source| ACTIVATE.device(source))
}

fn launch_activate(stream: &CudaStream, args: &Activate<'_>, num_elements: usize) -> Result<(), DeviceError> {
    let Activate { x, kind, out } = args;
    // All rows as one.
    let pack = pack_len(num_elements, &[Operand::of(x)?, Operand::of_mut(out)?]);
    let num_packs = num_elements / pack;
    let mut params = Args::new();
    params.ptr(x)?.ptr_mut(out)?.usize_as_i32(num_packs)?;
    let launch = Launch::new([blocks(num_packs, THREADS * PACKS)?, 1, 1], [THREADS as u32, 1, 1]);
    let spec = spec("activate", [x.dtype(), out.dtype()], pack, *kind);
    // SAFETY: `Activate::check` has found `num_elements` elements in both operands, and the parameters are the kernel's.
    unsafe { stream.launch(&spec, launch, &mut params) }
}

pub(super) fn gated(stream: &CudaStream, args: &Gated<'_>, sizes: [usize; 2]) -> Result<(), OpError> {
    launch_gated(stream, args, sizes).map_err(|source| GATED.device(source))
}

fn launch_gated(stream: &CudaStream, args: &Gated<'_>, [n, i]: [usize; 2]) -> Result<(), DeviceError> {
    let Gated { gate_up, kind, out } = args;
    let pack = pack_len(i, &[Operand::of(gate_up)?, Operand::of_mut(out)?]);
    let num_packs = n * i / pack;
    let mut params = Args::new();
    params.ptr(gate_up)?.ptr_mut(out)?.usize_as_i32(num_packs)?.usize_as_i32(i / pack)?;
    let launch = Launch::new([blocks(num_packs, THREADS)?, 1, 1], [THREADS as u32, 1, 1]);
    let spec = spec("gated", [gate_up.dtype(), out.dtype()], pack, *kind);
    // SAFETY: `Gated::check` has found `n` rows of `2 i` and of `i` elements, and the parameters are the kernel's.
    unsafe { stream.launch(&spec, launch, &mut params) }
}

/// The variants of the published models, bf16.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let bf16 = [DType::BF16; 2];
    // Every size of a decoder's MLP and of a plain tower's is a multiple of 8, Qwen2.5-VL's gated tower's (3420) of 4.
    let gated = [8, 4].map(|pack| spec("gated", bf16, pack, Activation::Silu));
    let plain = [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];
    let plain = plain.map(|kind| spec("activate", bf16, 8, kind));
    gated.into_iter().chain(plain).collect()
}
