//! Qwen3-VL's learned position table, interpolated to each picture's grid.

mod cpu;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

/// Operands of [`add_position_embed`].
#[derive(Debug)]
pub struct AddPositionEmbed<'a> {
    /// `[num_position_embeddings, d]`
    pub table: View<'a>,
    /// `[n, 4]` i32: the four rows of the table around each patch.
    pub index: View<'a>,
    /// `[n, 4]` f32: their weights.
    pub weight: View<'a>,
    /// `[n, d]`, read and written.
    pub x: ViewMut<'a>,
}

/// Adds the learned position table, interpolated at each patch, to the patches' embeddings.
///
/// # Equation
/// `x[i] += Σ_j weight[i, j] * table[index[i, j]]`, `j` from 0 to 3.
///
/// # Shapes
/// `table`: `[num_position_embeddings, d]`; `index`, `weight`: `[n, 4]`; `x`: `[n, d]`.
///
/// # Dtypes and layout
/// Row-major and contiguous. `index` is i32, `weight` f32; `table` and `x` are f32, bf16 or f16, each of its own choice.
///
/// # Numerics
/// The four products are added in float32 in the order of `j`, then to `x`, and rounded once, when stored. Against
/// float64: 4e-6 for f32.
///
/// # Source
/// `Qwen3VLVisionModel.forward` in `models/qwen3_vl/modeling_qwen3_vl.py` and
/// `get_vision_interpolation_indices_and_weights` in `vision_utils.py`, HF transformers 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or an index is outside of the table.
pub fn add_position_embed(stream: &Stream, args: AddPositionEmbed<'_>) -> Result<(), OpError> {
    cpu::add_position_embed(stream, args)
}
