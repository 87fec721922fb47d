//! The sizes of Qwen3-VL-8B.

use foveal_device::DType;
use foveal_kernels::KvLayout;

pub(super) const LAYERS: usize = 36;
pub(super) const HIDDEN: usize = 4096;
pub(super) const HEADS: usize = 32;
pub(super) const KV_HEADS: usize = 8;
pub(super) const HEAD_DIM: usize = 128;
pub(super) const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
pub(super) const INNER: usize = 12288;
pub(super) const VOCAB: usize = 151_936;
pub(super) const LAYOUT: KvLayout =
    KvLayout { page: KvLayout::DEFAULT_PAGE, dtype: DType::BF16, num_kv_heads: KV_HEADS, head_dim: HEAD_DIM };

pub(super) const VISION_HIDDEN: usize = 1152;
pub(super) const VISION_HEADS: usize = 16;
pub(super) const VISION_HEAD_DIM: usize = 72;
pub(super) const VISION_INNER: usize = 4304;
/// Bytes of a patch of one temporal copy.
pub(super) const PATCH: usize = 3 * 16 * 16;
/// Positions of the learned table.
pub(super) const POSITIONS: usize = 48 * 48;

/// Bytes of an activation, a weight or an element of the cache.
pub(crate) const BF16: usize = DType::BF16.size_bytes();
