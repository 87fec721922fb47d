//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{Embed, OP, Sizes};
use crate::OpError;
use crate::packs::{Operand, blocks, pack_len, row_threads};

static SOURCE: KernelSource =
    KernelSource { name: "embedding", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

fn spec([table, image, out]: [DType; 3], pack: usize) -> KernelSpec {
    KernelSpec::new(&SOURCE, "embed")
        .dtype("TABLE_T", table)
        .dtype("IMAGE_T", image)
        .dtype("OUT_T", out)
        .int("VEC", pack as i64)
}

pub(super) fn embed(stream: &CudaStream, args: &Embed<'_>, sizes: Sizes) -> Result<(), OpError> {
    launch(stream, args, sizes).map_err(|source| OP.device(source))
}

fn launch(stream: &CudaStream, args: &Embed<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let Embed { table, input_ids, sampled, image, out } = args;
    let Sizes { n, d, vocab_size, num_sampled, num_image_rows } = sizes;
    if d == 0 {
        return Ok(());
    }
    // Without pictures, rows of the table's type stand for theirs.
    let (rows, index) = image.map_or((*table, None), |image| (image.rows, Some(image.index)));
    let pack = pack_len(d, &[Operand::of(table)?, Operand::of(&rows)?, Operand::of_mut(out)?]);
    let mut params = Args::new();
    params
        .ptr(table)?
        .ptr(input_ids)?
        .ptr_or_null(sampled.as_ref())?
        .ptr(&rows)?
        .ptr_or_null(index.as_ref())?
        .ptr_mut(out)?;
    params.usize_as_i32(d)?.usize_as_i32(vocab_size)?.usize_as_i32(num_sampled)?.usize_as_i32(num_image_rows)?;
    let launch = Launch::new([blocks(n, 1)?, 1, 1], [row_threads(d / pack), 1, 1]);
    let spec = spec([table.dtype(), rows.dtype(), out.dtype()], pack);
    // SAFETY: `Embed::check` has found every operand of the size that `sizes` says, the parameters are the kernel's, and
    // the kernel takes ids and indices inside of these sizes only.
    unsafe { stream.launch(&spec, launch, &mut params) }
}

/// The variants of the published models, bf16.
pub(crate) fn variants() -> Vec<KernelSpec> {
    vec![spec([DType::BF16; 3], 8)]
}
