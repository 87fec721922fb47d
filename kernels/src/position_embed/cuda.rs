//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{AddPositionEmbed, OP, Sizes};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len, row_threads};

static SOURCE: KernelSource =
    KernelSource { name: "position_embed", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

fn spec([table, x]: [DType; 2], pack: usize) -> KernelSpec {
    KernelSpec::new(&SOURCE, "add_position_embed").dtype("TABLE_T", table).dtype("X_T", x).int("VEC", pack as i64)
}

pub(super) fn add_position_embed(
    stream: &CudaStream,
    args: &AddPositionEmbed<'_>,
    sizes: Sizes,
) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &AddPositionEmbed<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let AddPositionEmbed { table, index, weight, x } = args;
    let Sizes { n, d, num_positions } = sizes;
    if d == 0 {
        return Ok(());
    }
    let pack = pack_len(d, &[Operand::of(table)?, Operand::of_mut(x)?]);
    let mut params = Args::new();
    params.ptr(table)?.ptr(index)?.ptr(weight)?.ptr_mut(x)?.usize_as_i32(d)?.usize_as_i32(num_positions)?;
    let launch = Launch::new([blocks(n, 1)?, 1, 1], [row_threads(d / pack), 1, 1]);
    // SAFETY: `AddPositionEmbed::check` has found every operand of the size that `sizes` says, the parameters are the
    // kernel's, and the kernel takes indices inside of the table only.
    unsafe { stream.launch(&spec([table.dtype(), x.dtype()], pack), launch, &mut params) }
}

/// The variants of the published models, bf16.
pub(crate) fn variants() -> Vec<KernelSpec> {
    vec![spec([DType::BF16; 2], 8)]
}
