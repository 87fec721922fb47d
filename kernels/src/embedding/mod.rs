//! Token embeddings with picture rows in place of placeholders.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("embed");

/// Rows that replace the table's rows.
#[derive(Clone, Copy, Debug)]
pub struct RowReplace<'a> {
    /// Picture embeddings `[r, d]`.
    pub rows: View<'a>,
    /// `[n]` i32: the row of `rows` that a token takes, -1 for a token of the table.
    pub index: View<'a>,
}

/// Operands of [`embed`].
#[derive(Debug)]
pub struct Embed<'a> {
    /// `[vocab_size, d]`
    pub table: View<'a>,
    /// `[n]` i32; below 0, id -1 - r stands for `sampled[r]`.
    pub input_ids: View<'a>,
    /// `[s]` i32: tokens that the device has chosen and the host need not know yet.
    pub sampled: Option<View<'a>>,
    /// Picture embeddings; `None` for text alone.
    pub image: Option<RowReplace<'a>>,
    /// `[n, d]`
    pub out: ViewMut<'a>,
}

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    d: usize,
    vocab_size: usize,
    num_sampled: usize,
    /// Rows of `image.rows`; 0 without it.
    num_image_rows: usize,
}

impl Embed<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [vocab_size, d] = OP.rank("table", self.table.shape())?;
        OP.float("table", self.table.dtype())?;
        let [n] = OP.rank("input_ids", self.input_ids.shape())?;
        OP.dtype("input_ids", self.input_ids.dtype(), DType::I32, "i32")?;
        OP.shape("out", self.out.shape(), &[n, d])?;
        OP.float("out", self.out.dtype())?;
        let num_sampled = match &self.sampled {
            Some(sampled) => {
                OP.dtype("sampled", sampled.dtype(), DType::I32, "i32")?;
                OP.rank::<1>("sampled", sampled.shape())?[0]
            }
            None => 0,
        };
        let Some(image) = &self.image else {
            return Ok(Sizes { n, d, vocab_size, num_sampled, num_image_rows: 0 });
        };
        let [num_image_rows, _] = OP.rank("image.rows", image.rows.shape())?;
        OP.shape("image.rows", image.rows.shape(), &[num_image_rows, d])?;
        OP.float("image.rows", image.rows.dtype())?;
        OP.shape("image.index", image.index.shape(), &[n])?;
        OP.dtype("image.index", image.index.dtype(), DType::I32, "i32")?;
        Ok(Sizes { n, d, vocab_size, num_sampled, num_image_rows })
    }
}

/// The first hidden states: rows of the embedding table, and of the pictures where their placeholders stand.
///
/// # Equation
/// `out[i] = image.rows[image.index[i]]` where that index is not -1, else `table[id]`, where `id` is `input_ids[i]` or, if that
/// is below 0, `sampled[-1 - input_ids[i]]`.
///
/// # Shapes
/// `table`: `[vocab_size, d]`; `input_ids`, `image.index`: `[n]`; `sampled`: `[s]`; `image.rows`: `[r, d]`; `out`: `[n, d]`.
///
/// # Dtypes and layout
/// Row-major and contiguous. Ids and indices are i32; `table`, `image.rows` and `out` are f32, bf16 or f16, each of its
/// own choice.
///
/// # Numerics
/// Exact where `out` is as wide as the source, else rounded once to nearest, ties to even. The id of a token that a
/// picture's row replaces is not looked at. On CUDA an index outside of `image.rows` is as -1, and a row without a source,
/// its id outside of the table, becomes zeros.
///
/// # Source
/// `embed_tokens` and `masked_scatter` in `Qwen3VLModel.forward`, `models/qwen3_vl/modeling_qwen3_vl.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, an id or index is out of range.
pub fn embed(stream: &Stream, args: Embed<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::embed(cuda, &args, sizes),
        None => cpu::embed(stream, args, sizes),
    }
}
