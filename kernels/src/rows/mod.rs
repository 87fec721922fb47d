//! Rows picked from a tensor: window order and back, and the rows that sample.

mod cpu;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

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
/// A copy, bit by bit.
///
/// # Source
/// `hidden_states[window_index]` and its `reverse_indices` in `models/qwen2_5_vl/modeling_qwen2_5_vl.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or an index is out of range.
pub fn gather(stream: &Stream, args: Gather<'_>) -> Result<(), OpError> {
    cpu::gather(stream, args)
}
