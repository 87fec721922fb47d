//! The launcher of the kernel for chunks on Hopper, whose products are those of warpgroups.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, Swizzle, TensorMap, View};

use super::cuda::{HEADERS, common_params};
use super::{PagedAttention, Sizes, Work};
use crate::KvLayout;
use crate::cuda::{HOPPER_CAPABILITY, following};

static SOURCE: KernelSource =
    KernelSource { name: "paged_attention_prefill", text: include_str!("prefill_sm90.cu"), headers: HEADERS };

/// Heads whose queries leave room for a merge's weights, 32 KiB.
const HEAD_DIM: usize = 128;
/// `PREFILL_THREADS` of the kernel: two warpgroups of consumers, one of producers and, for FP8, one that widens values.
const fn threads(layout: KvLayout) -> u32 {
    if matches!(layout.dtype, DType::F8E4M3) { 512 } else { 384 }
}
/// Keys of a block, and packed rows of a tile.
const TILE: usize = 128;
/// Rows and bytes of each that a tensor copy brings at a time.
const BOX: [usize; 2] = [32, 128];

/// Whether it can take the chunks of a step.
pub(super) fn serves(stream: &CudaStream, layout: KvLayout) -> bool {
    stream.compute_capability() == HOPPER_CAPABILITY
        && layout.head_dim == HEAD_DIM
        && matches!(layout.dtype, DType::BF16 | DType::F8E4M3)
}

fn spec(layout: KvLayout) -> KernelSpec {
    KernelSpec::new(&SOURCE, "paged_attention_prefill")
        .int("KV_F8", i64::from(layout.dtype == DType::F8E4M3))
        .int("HEAD_DIM", layout.head_dim as i64)
        .int("PAGE", layout.page as i64)
}

/// Two places each of queries, keys and values, and of FP8 values as the cache has them; and what is lost to begin at a multiple
/// of 1024.
fn shared_bytes(layout: KvLayout) -> usize {
    let block = TILE * layout.head_dim;
    let (operand, cached) = (block * size_of::<u16>(), block * layout.dtype.size_bytes());
    let raw = if layout.dtype == DType::F8E4M3 { cached } else { 0 };
    2 * (operand + cached + operand + raw) + 1024
}

/// The first queue of a step's list. The other kernel must leave it alone.
pub(super) fn launch_prefill(
    stream: &CudaStream,
    args: &PagedAttention<'_>,
    work: &Work<'_>,
    sizes: Sizes,
) -> Result<(), DeviceError> {
    let layout = args.layout;
    let tile = [BOX[0] as u32, (BOX[1] / layout.dtype.size_bytes()) as u32];
    let map = |view: &View<'_>| TensorMap::matrix(stream.device(), view, tile, Swizzle::Bytes128);
    let mut params = Args::new();
    params.tensor_map(&map(&args.k_cache)?).tensor_map(&map(&args.v_cache)?);
    // The kernel has keys by their map alone, and values by theirs but for bf16's last pages.
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
        assert!(shared_bytes(layout) + 2048 <= 227 << 10);
        assert_eq!(shared_bytes(KvLayout { dtype: DType::BF16, ..layout }), 197_632);
    }
}
