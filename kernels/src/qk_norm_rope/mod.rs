//! Between the qkv projection and attention: QK-norm, M-RoPE and the paged cache's write, in one pass.

mod cpu;
mod cuda;
mod operands;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::quantize::Scales;
use crate::{KvLayout, KvScales, OpError};

pub(crate) use cuda::variants;

/// RMSNorm over each head of q and k (Qwen3).
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a> {
    /// `[head_dim]`
    pub q_weight: View<'a>,
    /// `[head_dim]`
    pub k_weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

/// The rotary tables and each row's place in them.
#[derive(Clone, Copy, Debug)]
pub struct Mrope<'a> {
    /// `[3, n]` i32, row-major: each row's own positions on t, h and w.
    pub positions: View<'a>,
    /// `[max_positions, rotary_dim / 2]` f32.
    pub cos: View<'a>,
    /// `[max_positions, rotary_dim / 2]` f32.
    pub sin: View<'a>,
    /// `[rotary_dim / 2]` u8: which axis (0 t, 1 h, 2 w) turns each frequency pair.
    pub axis_of_pair: View<'a>,
}

/// Operands of [`qk_norm_rope`].
#[derive(Debug)]
pub struct QkNormRope<'a> {
    /// `[n, (num_heads + 2 * num_kv_heads) * head_dim]`: q heads, then k heads, then v heads.
    pub qkv: View<'a>,
    /// What `qkv` is to be multiplied by first, where it is a product of FP8 operands.
    pub scales: Option<Scales<'a>>,
    /// `[(num_heads + 2 * num_kv_heads) * head_dim]` f32, added after the scaling (Qwen2, where the projection didn't).
    pub bias: Option<View<'a>>,
    /// `None` for Qwen2.
    pub norm: Option<QkNorm<'a>>,
    /// Positions and tables.
    pub rope: Mrope<'a>,
    /// `[n]` i64: each row's slot in the cache, -1 to store nothing.
    pub slot_mapping: View<'a>,
    /// How the cache lies.
    pub layout: KvLayout,
    /// What keys and values are divided by on their way into the cache.
    pub kv_scales: KvScales,
    /// Keys, `[num_blocks, num_kv_heads, page, head_dim]`.
    pub k_cache: ViewMut<'a>,
    /// Values, alike.
    pub v_cache: ViewMut<'a>,
    /// `[n, num_heads, head_dim]`
    pub q_out: ViewMut<'a>,
}

/// Normalises and turns q and k, writes q to `q_out` and k and v to their slots: all that lies between the qkv
/// projection and attention.
///
/// # Equation
/// `qkv` is multiplied by `scales`, then `bias` is added, where they are given. With `norm`, each head of q and k
/// becomes `x / sqrt(mean(x²) + eps) * weight`. Then pair `i` of a head, its elements `a = x[i]` and `b = x[i +
/// rotary_dim / 2]`, becomes `(a cos - b sin, b cos + a sin)`, `cos` and `sin` from column `i` of the tables at the
/// row's position on axis `axis_of_pair[i]`. Elements from `rotary_dim` on are not turned. Head `h` of k and v is
/// divided by its scale and stored at `[slot / page, h, slot % page]`.
///
/// # Shapes
/// `qkv`: `[n, (num_heads + 2 * num_kv_heads) * head_dim]`; `q_out`: `[n, num_heads, head_dim]`; `k_cache`, `v_cache`:
/// `[num_blocks, num_kv_heads, page, head_dim]`; `slot_mapping`: `[n]`; `positions`: `[3, n]`; `cos`, `sin`:
/// `[max_positions, rotary_dim / 2]` with `rotary_dim <= head_dim`; `axis_of_pair`: `[rotary_dim / 2]`.
///
/// # Dtypes and layout
/// Row-major and contiguous. `positions` is i32, `slot_mapping` i64, `axis_of_pair` u8, `cos`, `sin`, scales
/// and `bias` f32; `qkv`, `q_out`, the norm's weights and the caches (of `layout.dtype`, both) are f32, bf16 or f16,
/// each of its own choice; the caches may also be f8_e4m3, where what is beyond its range saturates.
///
/// # Numerics
/// The mean square is a float64 sum; all else is float32, and each result is rounded once, when stored (HF rounds bf16
/// activations after the norm and after each product too). Of two rows with one slot the later one stays. On CUDA the
/// mean square is a float32 sum, of two rows with one slot either stays, a position or axis outside of the tables
/// leaves its pairs unturned, and a slot outside of the cache is as -1.
///
/// # Source
/// `Qwen3VLTextAttention`, `apply_rotary_pos_emb` and `Qwen3VLTextRotaryEmbedding` in
/// `models/qwen3_vl/modeling_qwen3_vl.py`, HF transformers 5.17; the paged cache: arXiv:2309.06180.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, a position, axis or slot is out of range.
pub fn qk_norm_rope(stream: &Stream, args: QkNormRope<'_>) -> Result<(), OpError> {
    let sizes = operands::check(&args)?;
    match stream.cuda() {
        Some(cuda) => cuda::qk_norm_rope(cuda, &args, sizes),
        None => cpu::qk_norm_rope(stream, args, sizes),
    }
}
