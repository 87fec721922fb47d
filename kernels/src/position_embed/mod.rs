//! Qwen3-VL's learned position table, interpolated to each picture's grid.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("add_position_embed");

/// Rows of the table around a patch (bilinear interpolation).
const TAPS: usize = 4;

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

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    d: usize,
    num_positions: usize,
}

impl AddPositionEmbed<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [n, d] = OP.rank("x", self.x.shape())?;
        OP.float("x", self.x.dtype())?;
        let [num_positions, _] = OP.rank("table", self.table.shape())?;
        OP.shape("table", self.table.shape(), &[num_positions, d])?;
        OP.float("table", self.table.dtype())?;
        OP.shape("index", self.index.shape(), &[n, TAPS])?;
        OP.shape("weight", self.weight.shape(), &[n, TAPS])?;
        OP.dtype("index", self.index.dtype(), DType::I32, "i32")?;
        OP.dtype("weight", self.weight.dtype(), DType::F32, "f32")?;
        Ok(Sizes { n, d, num_positions })
    }
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
/// float64: 4e-6 for f32. On CUDA products and sums are fused, and an index outside of the table adds nothing.
///
/// # Source
/// `Qwen3VLVisionModel.forward` in `models/qwen3_vl/modeling_qwen3_vl.py` and
/// `get_vision_interpolation_indices_and_weights` in `vision_utils.py`, HF transformers 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, an index is outside of the table.
pub fn add_position_embed(stream: &Stream, args: AddPositionEmbed<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::add_position_embed(cuda, &args, sizes),
        None => cpu::add_position_embed(stream, args, sizes),
    }
}
