//! The vision tower's rotary embedding, in place on the qkv rows.

mod cpu;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

/// Operands of [`vision_rope`].
#[derive(Debug)]
pub struct VisionRope<'a> {
    /// `[n, 3, num_heads, head_dim]`: q and k are turned in place, v is left.
    pub qkv: ViewMut<'a>,
    /// `[n, 2]` i32: each patch's row and column.
    pub positions: View<'a>,
    /// `[max_hw, head_dim / 4]` f32.
    pub cos: View<'a>,
    /// `[max_hw, head_dim / 4]` f32.
    pub sin: View<'a>,
}

/// Turns q and k of every patch by its row and column.
///
/// # Equation
/// Pair `i` of a head is its elements `a = x[i]` and `b = x[i + head_dim / 2]`, and becomes
/// `(a cos - b sin, b cos + a sin)`. For `i < head_dim / 4` the angle is that of column `i` of the tables at the patch's
/// row, else that of column `i - head_dim / 4` at the patch's column.
///
/// # Shapes
/// `qkv`: `[n, 3, num_heads, head_dim]`, `head_dim` a multiple of 4; `positions`: `[n, 2]`; `cos`, `sin`:
/// `[max_hw, head_dim / 4]`.
///
/// # Dtypes and layout
/// Row-major and contiguous. `positions` is i32, `cos` and `sin` f32; `qkv` is f32, bf16 or f16.
///
/// # Numerics
/// Computed in float32, rounded once, when stored; the values third of `qkv` is not touched.
///
/// # Source
/// `apply_rotary_pos_emb_vision` and `Qwen3VLVisionRotaryEmbedding` in `models/qwen3_vl/modeling_qwen3_vl.py`, alike in
/// `qwen2_vl` and `qwen2_5_vl`; HF transformers 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or a position is outside of the tables.
pub fn vision_rope(stream: &Stream, args: VisionRope<'_>) -> Result<(), OpError> {
    cpu::vision_rope(stream, args)
}
