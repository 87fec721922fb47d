//! Matrix products with model weights: `out = x · weightᵀ + bias`.
//!
//! # Equation
//! `out[i, j] = Σ_k x[i, k] * weight[j, k] + bias[j]`
//!
//! # Shapes
//! `x [m, k]`, `weight` in parts `[n_i, k]`, `bias [n]` and `out [m, n]` with `n = n_0 + n_1 + ...`. Every size may be 0;
//! with `k = 0` the sum is 0.
//!
//! # Dtypes and layout
//! `x` and `out` f32 or bf16; each part of `weight` and `bias` f32, bf16 or f16. All row-major and contiguous. Weights
//! are read where they lie and are never copied, widened or repacked; only activations are, into scratch of 4 MiB (more
//! where eight tiles of rows are larger).
//!
//! # Numerics
//! Operands are widened to float32 exactly, products are summed in float32, the bias is added last and the result is
//! rounded once, to nearest even. On the CPU, element `k` of a row is summed in lane `k % 32 / 2` of 16 lanes, by a fused
//! multiply-add in the order of `k`; the lanes are then added by halves. So an output's bits depend on its row of `x`,
//! its row of `weight` and its bias alone, not on `m`, `n`, the parts or the threads, nor on the instruction set where it
//! has a fused multiply-add (elsewhere products are rounded before they are added). The error is at most
//! `(k / 16 + 8) * 2^-24 * Σ |x * weight|`.
//!
//! # Source
//! `torch.nn.functional.linear`, as the models of transformers 5.17 call it (`Qwen3VLTextMLP`, `Qwen3VLTextAttention` in
//! `models/qwen3_vl/modeling_qwen3_vl.py`).
//!
//! # CPU implementation
//! A tile is 6 activation rows by 4 weight rows, 24 vectors of sums along K. The `gemm` crate was considered: it has no
//! product of bf16 weights that lie `[n, k]` and are widened on the way into registers, and its order of summation is not
//! fixed across shapes.

mod cpu;
mod pack;
mod tile;

#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

/// Operands of [`linear`].
#[derive(Debug)]
pub struct Linear<'a> {
    /// Activations `[m, k]`, f32 or bf16.
    pub x: View<'a>,
    /// Weights as they lie in the checkpoint, each `[n_i, k]` row-major, f32, bf16 or f16. Several parts are stacked
    /// along n (q, k and v; gate and up), so that a mapped file need not be copied to fuse them.
    pub weight: &'a [View<'a>],
    /// `[n_0 + n_1 + ...]`, any float type.
    pub bias: Option<View<'a>>,
    /// `[m, n_0 + n_1 + ...]`, f32 or bf16.
    pub out: ViewMut<'a>,
}

/// `out = x · weightᵀ + bias`, summed in float32; see the [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit, [`OpError::Device`] for elements
/// that don't start at a multiple of their size.
pub fn linear(stream: &Stream, args: Linear<'_>) -> Result<(), OpError> {
    cpu::linear(stream, args)
}
