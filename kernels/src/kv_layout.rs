//! The layout of the paged KV cache, which the writer ([`crate::qk_norm_rope`]) and the reader
//! ([`crate::paged_attention`]) share.

use foveal_device::DType;

use crate::OpError;
use crate::check::Op;

/// The layout of one layer's paged KV cache.
///
/// Keys and values each are one tensor `[num_blocks, num_kv_heads, page, head_dim]`: a page of one head is contiguous,
/// row-major, so that it is one bulk copy on a GPU. Token `i` of a sequence lies in block `block_table[i / page]` at row
/// `i % page`; its slot is `block * page + row`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens of one page; a multiple of 32.
    pub page: usize,
    /// Element type of keys and values: a float type, or f8_e4m3, whose elements are scaled by [`KvScales`].
    pub dtype: DType,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

/// What a layer's stored keys and values are to be multiplied by: 1 for both unless the cache is FP8 and the checkpoint says
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvScales {
    /// Of keys; finite and above 0.
    pub k: f32,
    /// Of values; finite and above 0.
    pub v: f32,
}

impl KvScales {
    /// Keys and values are stored as they are.
    pub const ONE: Self = Self { k: 1.0, v: 1.0 };

    pub(crate) fn check(self, op: Op) -> Result<(), OpError> {
        let is_usable = |scale: f32| scale.is_finite() && scale > 0.0;
        match is_usable(self.k) && is_usable(self.v) {
            true => Ok(()),
            false => Err(OpError::Mismatch {
                op: op.0,
                arg: "kv_scales",
                reason: "hold a scale that is not finite and above 0",
            }),
        }
    }
}

impl KvLayout {
    /// The page that the engine uses: a multiple of 32 as FP8 tensor-core tiles ask for, small enough that a
    /// sequence's last page wastes little.
    pub const DEFAULT_PAGE: usize = 32;

    /// The shape of the keys' (and the values') tensor for `num_blocks` pages.
    #[must_use]
    pub fn cache_shape(&self, num_blocks: usize) -> [usize; 4] {
        [num_blocks, self.num_kv_heads, self.page, self.head_dim]
    }

    /// Bytes that one token takes in one layer, keys and values together.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        2 * self.num_kv_heads * self.head_dim * self.dtype.size_bytes()
    }
}
