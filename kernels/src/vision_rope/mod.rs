//! The vision tower's rotary embedding, in place on the qkv rows.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("vision_rope");

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

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    num_heads: usize,
    head_dim: usize,
    max_hw: usize,
}

impl VisionRope<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [n, _, num_heads, head_dim] = OP.rank("qkv", self.qkv.shape())?;
        OP.shape("qkv", self.qkv.shape(), &[n, 3, num_heads, head_dim])?;
        if !head_dim.is_multiple_of(4) {
            return Err(OP.bad_shape("qkv", self.qkv.shape(), "a head_dim that 4 divides".to_owned()));
        }
        OP.float("qkv", self.qkv.dtype())?;
        let [max_hw, _] = OP.rank("cos", self.cos.shape())?;
        OP.shape("cos", self.cos.shape(), &[max_hw, head_dim / 4])?;
        OP.shape("sin", self.sin.shape(), &[max_hw, head_dim / 4])?;
        OP.dtype("cos", self.cos.dtype(), DType::F32, "f32")?;
        OP.dtype("sin", self.sin.dtype(), DType::F32, "f32")?;
        OP.shape("positions", self.positions.shape(), &[n, 2])?;
        OP.dtype("positions", self.positions.dtype(), DType::I32, "i32")?;
        Ok(Sizes { n, num_heads, head_dim, max_hw })
    }
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
/// Computed in float32, rounded once, when stored; the values third of `qkv` is not touched. On CUDA a row or column
/// outside of the tables leaves its pairs as they are.
///
/// # Source
/// `apply_rotary_pos_emb_vision` and `Qwen3VLVisionRotaryEmbedding` in `models/qwen3_vl/modeling_qwen3_vl.py`, alike in
/// `qwen2_vl` and `qwen2_5_vl`; HF transformers 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, a position is outside of the tables.
pub fn vision_rope(stream: &Stream, args: VisionRope<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::vision_rope(cuda, &args, sizes),
        None => cpu::vision_rope(stream, args, sizes),
    }
}
