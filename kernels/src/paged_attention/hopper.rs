//! The launcher of the kernel for chunks on Hopper, whose products are those of warpgroups.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, Swizzle, TensorMap, View};

use super::cuda::{HEADERS, common_params};
use super::{PagedAttention, Sizes, Work};
use crate::KvLayout;
use crate::cuda::following;

static SOURCE: KernelSource =
    KernelSource { name: "paged_attention_prefill", text: include_str!("prefill_sm90.cu"), headers: HEADERS };

/// The cards whose kernel it is; later ones have other instructions.
const CAPABILITY: (u32, u32) = (9, 0);
/// Heads whose queries leave room for a merge's weights, 32 KiB.
const HEAD_DIM: usize = 128;
/// `PREFILL_THREADS` of the kernel: two warpgroups of consumers and one of producers, or two for FP8.
const fn threads(layout: KvLayout) -> u32 {
    if matches!(layout.dtype, DType::F8E4M3) { 512 } else { 384 }
}
/// Keys of a block, and packed rows of a tile.
const TILE: usize = 128;
/// Rows and elements that a tensor copy brings at a time.
const BOX: [u32; 2] = [32, 64];

/// Whether it can take the chunks of a step.
pub(super) fn serves(stream: &CudaStream, layout: KvLayout) -> bool {
    stream.compute_capability() == CAPABILITY
        && layout.head_dim == HEAD_DIM
        && matches!(layout.dtype, DType::BF16 | DType::F8E4M3)
}

fn spec(layout: KvLayout) -> KernelSpec {
    KernelSpec::new(&SOURCE, "paged_attention_prefill")
        .int("KV_F8", i64::from(layout.dtype == DType::F8E4M3))
        .int("HEAD_DIM", layout.head_dim as i64)
        .int("PAGE", layout.page as i64)
}

/// Two places each of queries, keys and values, the raw bytes of FP8 keys and values, and what is lost to begin at a
/// multiple of 1024.
fn shared_bytes(layout: KvLayout) -> usize {
    let raw = if layout.dtype == DType::F8E4M3 { 2 * TILE * layout.head_dim } else { 0 };
    6 * TILE * layout.head_dim * size_of::<u16>() + raw + 1024
}

/// The first queue of a step's list. The other kernel must leave it alone.
pub(super) fn launch_prefill(
    stream: &CudaStream,
    args: &PagedAttention<'_>,
    work: &Work<'_>,
    sizes: Sizes,
) -> Result<(), DeviceError> {
    let layout = args.layout;
    let map = |view: &View<'_>| match layout.dtype {
        DType::BF16 => TensorMap::matrix(stream.device(), view, BOX, Swizzle::Bytes128),
        _ => Ok(TensorMap::EMPTY),
    };
    let mut params = Args::new();
    params.tensor_map(&map(&args.k_cache)?).tensor_map(&map(&args.v_cache)?);
    common_params(&mut params, args, work, sizes)?;
    let launch = Launch::new([stream.num_sms(), 1, 1], [threads(layout), 1, 1]);
    let launch = launch.shared_bytes(shared_bytes(layout) as u32);
    // SAFETY: `PagedAttention::check` has found the operands of the sizes that the parameters tell and `check_work` enough
    // counters and partial results; the maps are those of the caches, whose blocks the kernel bounds by their number, as
    // it does pages by their table and rows by n, and it passes over an item that doesn't keep within these sizes.
    unsafe { stream.launch(&spec(layout), following(stream, launch), &mut params) }
}

/// The variants of the published models.
pub(super) fn variants() -> Vec<KernelSpec> {
    let layout = KvLayout { page: KvLayout::DEFAULT_PAGE, dtype: DType::BF16, num_kv_heads: 8, head_dim: HEAD_DIM };
    [DType::BF16, DType::F8E4M3].map(|dtype| spec(KvLayout { dtype, ..layout })).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block may have on Hopper: 227 KiB, with those of static variables.
    #[test]
    fn a_block_fits() {
        let layout = KvLayout { page: 32, dtype: DType::F8E4M3, num_kv_heads: 1, head_dim: 128 };
        assert!(shared_bytes(layout) + 1024 <= 227 << 10);
        assert_eq!(shared_bytes(KvLayout { dtype: DType::BF16, ..layout }), 197_632);
    }
}
