//! The dense form of what penalties look at: counts and marks of a few tokens, written and taken out again.

use foveal_device::{DType, Stream, ViewMut};

use super::cuda;
use crate::OpError;
use crate::check::Op;

pub(super) const OP: Op = Op("mark");

/// Bytes of `Entry` of scan.cu.
pub(super) const ENTRY_BYTES: usize = 12;

/// One token of one row's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenMark {
    /// The row.
    pub row: u32,
    /// The token.
    pub token_id: u32,
    /// How often it stands in the answer so far.
    pub count: i32,
    /// Whether it stands in the prompt.
    pub is_in_prompt: bool,
}

/// Operands of [`mark`] and [`unmark`].
#[derive(Debug)]
pub struct Mark<'a> {
    /// What to write, each token of a row at most once.
    pub entries: &'a [TokenMark],
    /// `[r, vocab_size]` i32: [`super::Sample::output_counts`].
    pub output_counts: ViewMut<'a>,
    /// `[r, vocab_size]` u8: [`super::Sample::prompt_mask`].
    pub prompt_mask: ViewMut<'a>,
    /// On a GPU: working memory of at least [`mark_workspace_bytes`] u8. On the CPU it is not touched and can be empty.
    pub workspace: ViewMut<'a>,
}

/// Bytes of [`Mark::workspace`] on a GPU.
#[must_use]
pub fn mark_workspace_bytes(num_entries: usize) -> usize {
    num_entries * ENTRY_BYTES
}

/// Writes the tokens of rows' histories into tensors over the whole vocabulary, at the cost of one write per token.
///
/// # Equation
/// For every entry: `output_counts[row, token] = count`, `prompt_mask[row, token] = is_in_prompt`.
///
/// # Shapes
/// `output_counts`, `prompt_mask`: `[r, vocab_size]`.
///
/// # Dtypes and layout
/// Row-major and contiguous; counts are i32, marks and the workspace u8.
///
/// # Numerics
/// None. Of two entries for one token either may stay.
///
/// # Source
/// vLLM's penalties count tokens the same way; there over whole histories at each step.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or an entry's row or token lies outside.
pub fn mark(stream: &Stream, args: Mark<'_>) -> Result<(), OpError> {
    run(stream, args, true)
}

/// Writes zeros where [`mark`] has written, as the next step expects them.
///
/// On CUDA the entries are not sent again: the workspace must still hold what [`mark`] put there for the same entries.
///
/// # Errors
/// As [`mark`].
pub fn unmark(stream: &Stream, args: Mark<'_>) -> Result<(), OpError> {
    run(stream, args, false)
}

fn run(stream: &Stream, mut args: Mark<'_>, is_set: bool) -> Result<(), OpError> {
    let [r, vocab_size] = OP.rank("output_counts", args.output_counts.shape())?;
    OP.dtype("output_counts", args.output_counts.dtype(), DType::I32, "i32")?;
    OP.shape("prompt_mask", args.prompt_mask.shape(), &[r, vocab_size])?;
    OP.dtype("prompt_mask", args.prompt_mask.dtype(), DType::U8, "u8")?;
    for (index, entry) in args.entries.iter().enumerate() {
        let is_below = |value: u32, end: usize| usize::try_from(value).is_ok_and(|value| value < end);
        let outside =
            [(entry.row, r), (entry.token_id, vocab_size)].into_iter().find(|&(value, end)| !is_below(value, end));
        if let Some((value, end)) = outside {
            let (value, expected) = (i64::from(value), format!("below {end}"));
            return Err(OpError::Value { op: OP.0, arg: "entries", index, value, expected });
        }
    }
    if let Some(cuda) = stream.cuda() {
        return cuda::mark(cuda, args, [r, vocab_size], is_set);
    }
    let counts = OP.slice_mut::<i32>(&mut args.output_counts)?;
    let marks = OP.slice_mut::<u8>(&mut args.prompt_mask)?;
    for entry in args.entries {
        let at = entry.row as usize * vocab_size + entry.token_id as usize;
        if let (Some(count), Some(mark)) = (counts.get_mut(at), marks.get_mut(at)) {
            *count = if is_set { entry.count } else { 0 };
            *mark = u8::from(is_set && entry.is_in_prompt);
        }
    }
    Ok(())
}

/// The entries as the kernel reads them.
pub(super) fn pack(entries: &[TokenMark]) -> Vec<u8> {
    let words = |entry: &TokenMark| {
        [entry.row | u32::from(entry.is_in_prompt) << 31, entry.token_id, entry.count.cast_unsigned()]
    };
    entries.iter().flat_map(words).flat_map(u32::to_le_bytes).collect()
}
