//! Matrix products with model weights: `out = x · weightᵀ + bias`.
//!
//! # Equation
//! `out[i, j] = Σ_k x[i, k] * weight[j, k] + bias[j]`; with block scales each `x[i, k]` is first multiplied by
//! `scales.x[k / 128, i]`, each `weight[j, k]` by `scales.weight[j / 128, k / 128]`.
//!
//! # Shapes
//! `x [m, k]`, `weight` in parts `[n_i, k]`, `bias [n]` and `out [m, n]` with `n = n_0 + n_1 + ...`. Every size may be
//! 0; with `k = 0` the sum is 0.
//!
//! # Dtypes and layout
//! On the CPU, `x` f32, bf16 or f8_e4m3, `out` f32 or bf16; each part of `weight` f32, bf16, f16 or f8_e4m3, `bias`
//! f32, bf16 or f16. On CUDA, `x` bf16 with bf16 weights or f8_e4m3 with f8_e4m3 weights and `out` bf16 or f32, or all
//! f32; `bias` as `out`, and none for f8_e4m3, whose sizes and addresses there are multiples of 16. Without block
//! scales an FP8 product is unscaled: [`quantize`](crate::quantize) says who scales it. All row-major and contiguous.
//! Weights are read where they lie and are never copied, widened or repacked; only activations are, on the CPU, into
//! scratch of 4 MiB (more where eight tiles of rows are larger).
//!
//! # Numerics
//! Operands are widened to float32 exactly, products are summed in float32, the bias is added last and the result is
//! rounded once, to nearest even. On the CPU, element `k` of a row is summed in lane `k % 32 / 2` of 16 lanes, by a
//! fused multiply-add in the order of `k`; the lanes are then added by halves. So an output's bits depend on its row of
//! `x`, its row of `weight` and its bias alone, not on `m`, `n`, the parts or the threads, nor on the instruction set
//! where it has a fused multiply-add (elsewhere products are rounded before they are added). The error is at most `(k /
//! 16 + 8) * 2^-24 * Σ |x * weight|`.
//!
//! Products of FP8 numbers are exact. Where they are summed by the library, or by `skinny_sm90.cu`, they stay in the tensor
//! cores, which keep about 14 bits of a sum (with block scales of 128 columns each); in `gemv.cu` they are float32, and on
//! the CPU as everything else.
//!
//! On CUDA, sums are float32 in an order that the algorithm chosen for the shape decides, and the tensor cores cut off
//! what the CPU rounds: twice that error. A row's bits are the same for any `m` up to eight where `gemv.cu` is used,
//! for up to 16, 17 to 32, 33 to 64 and 65 to 128 where `skinny_sm90.cu` is, and may differ between other numbers of rows. f32
//! products are true float32 (no TF32). Partial sums are never rounded to bf16; with a bias and a bf16 `out`, cuBLASLt
//! rounds the whole sum before it adds the bias.
//!
//! # Source
//! `torch.nn.functional.linear`, as the models of transformers 5.17 call it (`Qwen3VLTextMLP`, `Qwen3VLTextAttention`
//! in `models/qwen3_vl/modeling_qwen3_vl.py`).
//!
//! # CPU implementation
//! A tile is 6 activation rows by 4 weight rows, 24 vectors of sums along K. The `gemm` crate was considered: it has no
//! product of bf16 weights that lie `[n, k]` and are widened on the way into registers, and its order of summation is
//! not fixed across shapes.
//!
//! # CUDA implementation
//! Up to eight rows of bf16 or FP8 with `k` a multiple of 8 (16) are multiplied by `gemv.cu`, up to 64 rows of FP8 into bf16
//! on Hopper by `skinny_sm90.cu` (up to 128 with block scales and few weights, and up to eight where the other's blocks have
//! unlike shares of long sums), which stream all parts in one launch; all others by cuBLASLt, one product for each part into
//! its columns of `out`. Block scales over sums that are no multiple of 512 it doesn't take: they stay with these two,
//! however many rows there are.

mod cpu;
mod cuda;
mod hopper;
mod pack;
mod tile;

#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;
use crate::quantize::{GROUP, group_stride};

pub(crate) use cuda::variants;

const OP: Op = Op("linear");

/// Operands of [`linear`].
#[derive(Debug)]
pub struct Linear<'a> {
    /// Activations `[m, k]`, f32 or bf16.
    pub x: View<'a>,
    /// Weights as they lie in the checkpoint, each `[n_i, k]` row-major, f32, bf16 or f16. Several parts are stacked
    /// along n (q, k and v; gate and up), so that a mapped file need not be copied to fuse them. Not made by the operator
    /// directly ahead (see the [crate]).
    pub weight: &'a [View<'a>],
    /// `[n_0 + n_1 + ...]`, any float type.
    pub bias: Option<View<'a>>,
    /// Of FP8 operands that are scaled by blocks.
    pub scales: Option<BlockScales<'a>>,
    /// `[m, n_0 + n_1 + ...]`, f32 or bf16.
    pub out: ViewMut<'a>,
}

/// Scales that vary along `k`, so that the product itself must apply them: float32.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales<'a> {
    /// `[ceil(k / 128), group_stride(m)]` (on CUDA, more than eight rows must be a multiple of 4, padded with
    /// anything), as [`Quantize::PerGroup`](crate::quantize::Quantize::PerGroup) gives them.
    pub x: View<'a>,
    /// For each part of the weights `[ceil(n_i / 128), ceil(k / 128)]`; only the last part's rows may be no multiple of
    /// 128.
    pub weight: &'a [View<'a>],
}

/// `out = x · weightᵀ + bias`, summed in float32; see the [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit, [`OpError::Device`] for elements
/// that don't start at a multiple of their size.
pub fn linear(stream: &Stream, args: Linear<'_>) -> Result<(), OpError> {
    match stream.cuda() {
        Some(cuda) => cuda::linear(cuda, args),
        None => cpu::linear(stream, args),
    }
}

impl Linear<'_> {
    /// Shapes and types of the scales, for rows `m` of `x` and parts of these sizes.
    fn check_scales(&self, m: usize, k: usize) -> Result<(), OpError> {
        let Some(scales) = &self.scales else { return Ok(()) };
        let groups = k.div_ceil(GROUP);
        OP.dtype("x", self.x.dtype(), DType::F8E4M3, "f8_e4m3, as it has scales")?;
        OP.shape("scales.x", scales.x.shape(), &[groups, group_stride(m)])?;
        OP.dtype("scales.x", scales.x.dtype(), DType::F32, "f32")?;
        if scales.weight.len() != self.weight.len() {
            return Err(OpError::Mismatch {
                op: OP.0,
                arg: "scales.weight",
                reason: "has not as many parts as weight",
            });
        }
        for (weight, scales) in self.weight.iter().zip(scales.weight) {
            let num_rows = weight.shape().first().copied().unwrap_or(0);
            OP.dtype("weight", weight.dtype(), DType::F8E4M3, "f8_e4m3, as it has scales")?;
            OP.shape("scales.weight", scales.shape(), &[num_rows.div_ceil(GROUP), groups])?;
            OP.dtype("scales.weight", scales.dtype(), DType::F32, "f32")?;
        }
        Ok(())
    }
}

/// Finds the quickest way to compute [`linear`] for operands like these, and has it use that from now on, for the same
/// shapes and up to half as many rows. What is found is kept on disk. On the CPU there is nothing to find.
///
/// `other_weights` are parts of the same shapes, of the model's other layers: they are taken in turn, so that none
/// comes from a cache. `out` holds nothing of use afterwards. Waits for the GPU and takes up to seconds: for the start
/// of a program, before anything is captured. Nothing else may be given to the stream meanwhile.
///
/// # Errors
/// As [`linear`].
pub fn tune(stream: &Stream, args: Linear<'_>, other_weights: &[&[View<'_>]]) -> Result<(), OpError> {
    match stream.cuda() {
        Some(cuda) => cuda::tune(cuda, args, other_weights),
        None => Ok(()),
    }
}
