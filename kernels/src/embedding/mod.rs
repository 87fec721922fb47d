//! Token embeddings with picture rows in place of placeholders.

mod cpu;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

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
    /// `[n]` i32.
    pub input_ids: View<'a>,
    /// Picture embeddings; `None` for text alone.
    pub image: Option<RowReplace<'a>>,
    /// `[n, d]`
    pub out: ViewMut<'a>,
}

/// The first hidden states: rows of the embedding table, and of the pictures where their placeholders stand.
///
/// # Equation
/// `out[i] = image.rows[image.index[i]]` where that index is not -1, else `table[input_ids[i]]`.
///
/// # Shapes
/// `table`: `[vocab_size, d]`; `input_ids`, `image.index`: `[n]`; `image.rows`: `[r, d]`; `out`: `[n, d]`.
///
/// # Dtypes and layout
/// Row-major and contiguous. Ids and indices are i32; `table`, `image.rows` and `out` are f32, bf16 or f16, each of its
/// own choice.
///
/// # Numerics
/// Exact where `out` is as wide as the source, else rounded once to nearest, ties to even. The id of a token that a
/// picture's row replaces is not looked at.
///
/// # Source
/// `embed_tokens` and `masked_scatter` in `Qwen3VLModel.forward`, `models/qwen3_vl/modeling_qwen3_vl.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or an id or index is out of range.
pub fn embed(stream: &Stream, args: Embed<'_>) -> Result<(), OpError> {
    cpu::embed(stream, args)
}
