//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{CHANNELS, MAX_SAMPLE, Normalise, OP, Sizes};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len};

static SOURCE: KernelSource =
    KernelSource { name: "patch", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `THREADS` of the kernel.
const THREADS: usize = 256;

fn spec(out: DType, pack: usize) -> KernelSpec {
    KernelSpec::new(&SOURCE, "normalise").dtype("OUT_T", out).int("VEC", pack as i64)
}

pub(super) fn normalise(stream: &CudaStream, args: &Normalise<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &Normalise<'_>, Sizes { n, row_len }: Sizes) -> Result<(), DeviceError> {
    let Normalise { pixels, mean, std, out } = args;
    let channel_len = row_len / CHANNELS;
    // A pack lies inside of a channel.
    let pack = pack_len(channel_len, &[Operand::of(pixels)?, Operand::of_mut(out)?]);
    let num_packs = n * row_len / pack;
    let mut params = Args::new();
    params.ptr(pixels)?.ptr_mut(out)?.usize_as_i32(num_packs)?.usize_as_i32(channel_len / pack)?;
    // Rounded here as on the CPU.
    for value in mean.iter().chain(std) {
        params.f32(value * MAX_SAMPLE);
    }
    let launch = Launch::new([blocks(num_packs, THREADS)?, 1, 1], [THREADS as u32, 1, 1]);
    // SAFETY: `Normalise::check` has found `n * row_len` elements in both operands, and the parameters are the kernel's.
    unsafe { stream.launch(&spec(out.dtype(), pack), launch, &mut params) }
}

/// The variants of the published models: patches of 16 x 16 and of 14 x 14 pixels, in one or two slices, to bf16.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let pixels = Operand::aligned(DType::U8);
    let mut variants: Vec<KernelSpec> = Vec::new();
    for channel_len in [16 * 16, 2 * 16 * 16, 14 * 14, 2 * 14 * 14] {
        let variant = spec(DType::BF16, pack_len(channel_len, &[pixels, Operand::aligned(DType::BF16)]));
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    variants
}
