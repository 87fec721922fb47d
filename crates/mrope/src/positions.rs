//! Positions `[3, N]` of a prompt, parts of them, and the positions of generated tokens.

use std::ops::Range;

use crate::MropeError;

/// The position of a generated token, the same on all three axes: its index in the sequence plus the prompt's delta.
///
/// Saturates at the ends of int32; a sequence that fits a model never comes near.
///
/// ```
/// assert_eq!(foveal_mrope::decode_position(100, -40), 60);
/// ```
pub fn decode_position(sequence_index: usize, delta: i32) -> i32 {
    let position = i64::try_from(sequence_index).unwrap_or(i64::MAX).saturating_add(i64::from(delta));
    position.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// The M-RoPE positions of a prompt, int32 `[3, N]`, row-major: all of time, then all of height, then all of width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionIds {
    positions: Vec<i32>,
    delta: i32,
}

impl PositionIds {
    /// The caller has made `positions` as `[3, N]`.
    pub(crate) fn new(positions: Vec<i32>, delta: i32) -> Self {
        Self { positions, delta }
    }

    /// Takes positions back that were handed on as plain numbers.
    ///
    /// # Errors
    /// [`MropeError::WrongLength`] unless `positions` has three rows of one length.
    pub fn from_parts(positions: Vec<i32>, delta: i32) -> Result<Self, MropeError> {
        if !positions.len().is_multiple_of(3) {
            let expected = positions.len().next_multiple_of(3);
            return Err(MropeError::WrongLength { what: "[3, N] positions", expected, got: positions.len() });
        }
        Ok(Self { positions, delta })
    }

    /// N, the number of tokens.
    pub fn len(&self) -> usize {
        self.positions.len() / 3
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// What to add to a sequence index beyond the prompt to get its position (HF's `rope_deltas`); see
    /// [`decode_position`]. Mostly negative, as a picture has more tokens than rows; positive where a slow video outruns
    /// its tokens.
    pub fn delta(&self) -> i32 {
        self.delta
    }

    /// The position of the first generated token: one past the largest of the prompt. A [`crate::TextRopeTable`] with
    /// as many rows covers the prompt.
    pub fn next_position(&self) -> i32 {
        decode_position(self.len(), self.delta)
    }

    /// All positions `[3, N]`.
    pub fn as_slice(&self) -> &[i32] {
        &self.positions
    }

    /// All positions `[3, N]`, without a copy.
    pub fn into_vec(self) -> Vec<i32> {
        self.positions
    }

    /// The positions `[N]` along one axis: 0 time, 1 height, 2 width; empty for any other.
    pub fn axis(&self, axis: usize) -> &[i32] {
        let len = self.len();
        axis.checked_mul(len).and_then(|start| self.positions.get(start..start.checked_add(len)?)).unwrap_or(&[])
    }

    /// The positions `[3, range]` of a part of the prompt, for one chunk of a chunked prefill. Nothing is copied.
    ///
    /// # Errors
    /// [`MropeError::RangeOutOfBounds`] where the range leaves the prompt or runs backwards.
    pub fn chunk(&self, range: Range<usize>) -> Result<PositionChunk<'_>, MropeError> {
        let Range { start, end } = range;
        let outside = MropeError::RangeOutOfBounds { start, end, len: self.len() };
        let part = |axis| self.axis(axis).get(start..end).ok_or_else(|| outside.clone());
        Ok(PositionChunk { t: part(0)?, h: part(1)?, w: part(2)? })
    }

    /// Writes the positions of the tokens `range` of the sequence into columns `first_column..` of `batch`, int32
    /// `[3, B]`. The range may reach beyond the prompt: generated tokens get their [`decode_position`]. So one call
    /// serves a chunk of a prefill, a decode step, and a sequence that is computed anew after a preemption.
    ///
    /// ```
    /// # use foveal_mrope::{PositionRule, Span, TemporalRule, position_ids};
    /// # let rule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FrameIndex };
    /// let prompt = position_ids(&[Span::Text { len: 4 }], &rule)?;
    /// let mut batch = [-1; 3 * 5]; // a step of five rows, the first two of another sequence
    /// prompt.fill_batch(2..5, &mut batch, 2)?;
    /// assert_eq!(batch, [-1, -1, 2, 3, 4, -1, -1, 2, 3, 4, -1, -1, 2, 3, 4]);
    /// # Ok::<(), foveal_mrope::MropeError>(())
    /// ```
    ///
    /// # Errors
    /// [`MropeError::RangeOutOfBounds`] for a range that runs backwards, [`MropeError::WrongLength`] where `batch` is not
    /// three rows or has no room, [`MropeError::PositionOverflow`] for generated tokens beyond int32. `batch` is then
    /// as before.
    pub fn fill_batch(&self, range: Range<usize>, batch: &mut [i32], first_column: usize) -> Result<(), MropeError> {
        let Range { start, end } = range;
        let len = self.len();
        let count = end.checked_sub(start).ok_or(MropeError::RangeOutOfBounds { start, end, len })?;
        let num_columns = batch.len() / 3;
        let room = num_columns.checked_sub(first_column).is_some_and(|free| count <= free);
        if !room || !batch.len().is_multiple_of(3) {
            let expected = first_column.saturating_add(count).saturating_mul(3);
            return Err(MropeError::WrongLength { what: "the batch [3, B]", expected, got: batch.len() });
        }
        if count == 0 {
            return Ok(());
        }
        let prompt_part = self.chunk(start.min(len)..end.min(len))?;
        let first_generated = i64::try_from(start.max(len)).unwrap_or(i64::MAX).saturating_add(i64::from(self.delta));
        let num_generated = count - prompt_part.len();
        let last = first_generated.saturating_add(num_generated as i64);
        if num_generated > 0 && last > i64::from(i32::MAX) {
            return Err(MropeError::PositionOverflow { position: last.unsigned_abs() });
        }
        for (row, part) in batch.chunks_exact_mut(num_columns).zip([prompt_part.t, prompt_part.h, prompt_part.w]) {
            let (prompt, generated) = row[first_column..first_column + count].split_at_mut(part.len());
            prompt.copy_from_slice(part);
            for (slot, position) in generated.iter_mut().zip(first_generated as i32..) {
                *slot = position;
            }
        }
        Ok(())
    }
}

/// A part `[3, start..end]` of a prompt's positions, borrowed: the three axes of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionChunk<'a> {
    t: &'a [i32],
    h: &'a [i32],
    w: &'a [i32],
}

impl<'a> PositionChunk<'a> {
    /// Tokens of the chunk.
    pub fn len(&self) -> usize {
        self.t.len()
    }

    /// Whether the chunk has no token.
    pub fn is_empty(&self) -> bool {
        self.t.is_empty()
    }

    /// Positions along time, `[len]`.
    pub fn t(&self) -> &'a [i32] {
        self.t
    }

    /// Positions along height, `[len]`.
    pub fn h(&self) -> &'a [i32] {
        self.h
    }

    /// Positions along width, `[len]`.
    pub fn w(&self) -> &'a [i32] {
        self.w
    }

    /// Copies the chunk into `out`, int32 `[3, len]` row-major, for a batch that holds this chunk alone. For a batch of
    /// several sequences see [`PositionIds::fill_batch`].
    ///
    /// # Errors
    /// [`MropeError::WrongLength`] unless `out` has `3 * len` elements.
    pub fn copy_into(&self, out: &mut [i32]) -> Result<(), MropeError> {
        let len = self.len();
        if out.len() != 3 * len {
            return Err(MropeError::WrongLength { what: "the [3, len] output", expected: 3 * len, got: out.len() });
        }
        if len > 0 {
            for (row, part) in out.chunks_exact_mut(len).zip([self.t, self.h, self.w]) {
                row.copy_from_slice(part);
            }
        }
        Ok(())
    }
}
