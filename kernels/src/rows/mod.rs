//! Rows picked from a tensor: window order and back, and the rows that sample.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("gather");

/// Operands of [`gather`].
#[derive(Debug)]
pub struct Gather<'a> {
    /// `[r, d]`
    pub x: View<'a>,
    /// `[m]` i32.
    pub index: View<'a>,
    /// `[m, d]`, of x's element type.
    pub out: ViewMut<'a>,
}

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows of `x`.
    r: usize,
    /// Rows of `out`.
    m: usize,
    d: usize,
}

impl Gather<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [r, d] = OP.rank("x", self.x.shape())?;
        let [m] = OP.rank("index", self.index.shape())?;
        OP.shape("out", self.out.shape(), &[m, d])?;
        OP.dtype("index", self.index.dtype(), DType::I32, "i32")?;
        OP.dtype("out", self.out.dtype(), self.x.dtype(), "the element type of `x`")?;
        Ok(Sizes { r, m, d })
    }
}

/// Picks rows: into window order and back, or those rows whose logits are wanted.
///
/// # Equation
/// `out[i] = x[index[i]]`.
///
/// # Shapes
/// `x`: `[r, d]`; `index`: `[m]`; `out`: `[m, d]`. A row may be picked any number of times.
///
/// # Dtypes and layout
/// Row-major and contiguous. `index` is i32; `x` and `out` have one type, any.
///
/// # Numerics
/// A copy, bit by bit. On CUDA a row whose index is out of range becomes zeros.
///
/// # Source
/// `hidden_states[window_index]` and its `reverse_indices` in `models/qwen2_5_vl/modeling_qwen2_5_vl.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, an index is out of range.
pub fn gather(stream: &Stream, args: Gather<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::gather(cuda, &args, sizes),
        None => cpu::gather(stream, args, sizes),
    }
}
