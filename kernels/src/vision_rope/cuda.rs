//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{OP, Sizes, VisionRope};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len};

static SOURCE: KernelSource =
    KernelSource { name: "vision_rope", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `THREADS` of the kernel.
const THREADS: usize = 256;

/// Heads that a thread turns by the same angles: enough loads in flight, and few enough registers at packs of 8.
const HEADS: usize = 4;

fn spec(qkv: DType, head_dim: usize, pack: usize) -> KernelSpec {
    KernelSpec::new(&SOURCE, "vision_rope")
        .dtype("X_T", qkv)
        .int("HEAD_DIM", head_dim as i64)
        .int("VEC", pack as i64)
        .int("HEADS", HEADS as i64)
}

pub(super) fn vision_rope(stream: &CudaStream, args: &VisionRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &VisionRope<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let VisionRope { qkv, positions, cos, sin } = args;
    let Sizes { n, num_heads, head_dim, max_hw } = sizes;
    if head_dim == 0 {
        return Ok(());
    }
    // Packs of pairs: both halves of a head are cut alike.
    let pack = pack_len(head_dim / 2, &[Operand::of_mut(qkv)?]);
    let groups = (2 * num_heads).div_ceil(HEADS);
    let threads = n * groups * (head_dim / 2 / pack);
    let mut params = Args::new();
    params.ptr_mut(qkv)?.ptr(positions)?.ptr(cos)?.ptr(sin)?;
    params.usize_as_i32(n)?.usize_as_i32(num_heads)?.usize_as_i32(groups)?.usize_as_i32(max_hw)?;
    let launch = Launch::new([blocks(threads, THREADS)?, 1, 1], [THREADS as u32, 1, 1]);
    // SAFETY: `VisionRope::check` has found every operand of the size that `sizes` says, the parameters are the kernel's,
    // and the kernel takes positions inside of the tables only.
    unsafe { stream.launch(&spec(qkv.dtype(), head_dim, pack), launch, &mut params) }
}

/// The variants of the published models, bf16: heads of 64, 72 and 80.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let of = |head_dim| spec(DType::BF16, head_dim, pack_len(head_dim / 2, &[Operand::aligned(DType::BF16)]));
    [64, 72, 80].map(of).to_vec()
}
