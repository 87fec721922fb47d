//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{Gather, OP, Sizes};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len, row_threads};

static SOURCE: KernelSource =
    KernelSource { name: "rows", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

fn spec(pack: usize) -> KernelSpec {
    KernelSpec::new(&SOURCE, "gather").int("VEC", pack as i64)
}

pub(super) fn gather(stream: &CudaStream, args: &Gather<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &Gather<'_>, Sizes { r, m, d }: Sizes) -> Result<(), DeviceError> {
    let Gather { x, index, out } = args;
    let row_bytes = d * x.dtype().size_bytes();
    if row_bytes == 0 {
        return Ok(());
    }
    let pack = pack_len(row_bytes, &[Operand::of(x)?.as_bytes(), Operand::of_mut(out)?.as_bytes()]);
    let mut params = Args::new();
    params.ptr(x)?.ptr(index)?.ptr_mut(out)?.usize_as_i32(r)?.usize_as_i32(row_bytes)?;
    let launch = Launch::new([blocks(m, 1)?, 1, 1], [row_threads(row_bytes / pack), 1, 1]);
    // SAFETY: `Gather::check` has found `r` and `m` rows of `row_bytes` bytes and `m` indices, the parameters are the
    // kernel's, and the kernel takes indices under `r` only.
    unsafe { stream.launch(&spec(pack), launch, &mut params) }
}

/// The variant of the published models: all their rows are multiples of 16 bytes.
pub(crate) fn variants() -> Vec<KernelSpec> {
    vec![spec(pack_len(2048, &[Operand::aligned(DType::U8)]))]
}
