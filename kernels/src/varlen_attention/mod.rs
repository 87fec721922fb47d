//! Full attention inside each segment (a frame, a window) of a flat batch of patches.
//!
//! # Equation
//! With `q`, `k`, `v` the three parts of `qkv` and `s` the segment of row `i`:
//! `out[i, h] = Σ_{j in s} softmax_j(scale * q[i, h] · k[j, h]) * v[j, h]`
//!
//! # Shapes
//! `qkv [n, 3, num_heads, head_dim]`, `cu_seqlens [num_segments + 1]`, `out [n, num_heads * head_dim]`. Segments may be
//! empty; `head_dim` is any on the CPU, a multiple of 8 up to 128 on CUDA.
//!
//! # Dtypes and layout
//! `qkv` f32, bf16 or f16; `cu_seqlens` i32; `out` f32 or bf16. On CUDA `qkv` and `out` are bf16. Row-major and
//! contiguous, so the output of the fused projection is read in place; on CUDA, aligned to 16 bytes.
//!
//! # Numerics
//! Float32 throughout, rounded once into `out`. On the CPU the softmax is online, over blocks of 32 keys counted from
//! the segment's first row, with `2^x` by a polynomial right to 2 units in the last place; scores and values are summed
//! in the order of elements and keys. A row's bits depend on its segment alone.
//!
//! On CUDA the unnormalised weights are rounded to bf16 on their way into the product with the values, their sum is not:
//! an output is off by 2^-8 of the weighted sum of its values' magnitudes at most, before it is rounded. A row's bits
//! depend on its segment and on the launch's plan, which the shapes choose. Keys outside of a segment have no influence,
//! whatever they are. `cu_seqlens` is read on the device: rows outside of `[0, n)` are neither read nor written, rows of
//! no segment keep what `out` held.
//!
//! # Source
//! `Qwen3VLVisionAttention.forward` (`models/qwen3_vl/modeling_qwen3_vl.py`, transformers 5.17); online softmax: Milakov
//! and Gimelshein, arXiv:1805.02867.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("varlen_attention");

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

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    num_heads: usize,
    head_dim: usize,
}

impl VarlenAttention<'_> {
    /// Shapes, and the element type of `cu_seqlens`; those of the others depend on the device.
    fn check(&self) -> Result<Sizes, OpError> {
        let [n, _, num_heads, head_dim] = OP.rank("qkv", self.qkv.shape())?;
        OP.shape("qkv", self.qkv.shape(), &[n, 3, num_heads, head_dim])?;
        let _: [usize; 1] = OP.rank("cu_seqlens", self.cu_seqlens.shape())?;
        OP.dtype("cu_seqlens", self.cu_seqlens.dtype(), DType::I32, "i32")?;
        // Without rows, the other sizes cost no memory: they may be anything.
        OP.shape("out", self.out.shape(), &[n, num_heads.saturating_mul(head_dim)])?;
        Ok(Sizes { n, num_heads, head_dim })
    }
}

/// Each row attends to every row of its own segment; see the [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit or, on CUDA, have no kernel;
/// [`OpError::Mismatch`] when an operand is not aligned there; [`OpError::Value`], on the CPU, when the segments don't cover
/// the rows.
pub fn varlen_attention(stream: &Stream, args: VarlenAttention<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::varlen_attention(cuda, &args, sizes),
        None => cpu::varlen_attention(stream, args, sizes),
    }
}
