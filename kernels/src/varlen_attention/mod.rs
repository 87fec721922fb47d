//! Full attention inside each segment (a frame, a window) of a flat batch of patches.
//!
//! # Equation
//! With `q`, `k`, `v` the three parts of `qkv` and `s` the segment of row `i`:
//! `out[i, h] = Σ_{j in s} softmax_j(scale * q[i, h] · k[j, h]) * v[j, h]`
//!
//! # Shapes
//! `qkv [n, 3, num_heads, head_dim]`, `cu_seqlens [num_segments + 1]`, `out [n, num_heads * head_dim]`. Segments may be
//! empty; `head_dim` is any.
//!
//! # Dtypes and layout
//! `qkv` f32, bf16 or f16; `cu_seqlens` i32; `out` f32 or bf16. Row-major and contiguous, so the output of the fused
//! projection is read in place.
//!
//! # Numerics
//! Float32 throughout, rounded once into `out`. On the CPU the softmax is online, over blocks of 32 keys counted from
//! the segment's first row, with `2^x` by a polynomial right to 2 units in the last place; scores and values are summed
//! in the order of elements and keys. A row's bits depend on its segment alone.
//!
//! # Source
//! `Qwen3VLVisionAttention.forward` (`models/qwen3_vl/modeling_qwen3_vl.py`, transformers 5.17); online softmax: Milakov
//! and Gimelshein, arXiv:1805.02867.

mod cpu;

#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

/// Operands of [`varlen_attention`].
#[derive(Debug)]
pub struct VarlenAttention<'a> {
    /// `[n, 3, num_heads, head_dim]`
    pub qkv: View<'a>,
    /// `[num_segments + 1]` i32, from 0 to n, never falling.
    pub cu_seqlens: View<'a>,
    /// Multiplies the scores, `head_dim^-0.5`.
    pub scale: f32,
    /// `[n, num_heads * head_dim]`
    pub out: ViewMut<'a>,
}

/// Each row attends to every row of its own segment; see the [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit, [`OpError::Value`] when the segments
/// don't cover the rows.
pub fn varlen_attention(stream: &Stream, args: VarlenAttention<'_>) -> Result<(), OpError> {
    cpu::varlen_attention(stream, args)
}
