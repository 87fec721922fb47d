//! The dense form of what penalties need, for one step at a time.

use foveal_device::{DType, Device, DeviceError, Stream, Tensor};
use foveal_kernels::sampling::{Mark, TokenMark, mark, mark_workspace_bytes, unmark};

use super::SamplerState;
use super::lent::LentBytes;
use super::state::SeenTokens;
use crate::LlmError;

/// Counts and marks of each row over the whole vocabulary; zero between steps.
#[derive(Debug)]
pub(super) struct PenaltyBuffers {
    /// `[max_rows, vocab_size]` i32
    pub(super) output_counts: Tensor,
    /// `[max_rows, vocab_size]` u8
    pub(super) prompt_mask: Tensor,
    vocab_size: usize,
    /// What this step has written.
    entries: Vec<TokenMark>,
    /// Holds the entries on a GPU from writing to clearing.
    workspace: LentBytes,
}

impl PenaltyBuffers {
    pub(super) fn new(device: &Device, max_rows: usize, vocab_size: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            output_counts: Tensor::zeros(device, DType::I32, &[max_rows, vocab_size])?,
            prompt_mask: Tensor::zeros(device, DType::U8, &[max_rows, vocab_size])?,
            vocab_size,
            entries: Vec::new(),
            workspace: LentBytes::new(device),
        })
    }

    /// Bytes of those for so many rows.
    pub(super) fn len_bytes(max_rows: usize, vocab_size: usize) -> usize {
        max_rows.saturating_mul(vocab_size).saturating_mul(size_of::<i32>() + size_of::<u8>())
    }

    /// Writes each sequence's tokens into its row.
    pub(super) fn write(&mut self, stream: &Stream, states: &[&mut SamplerState]) -> Result<(), LlmError> {
        self.entries.clear();
        for (row, state) in (0..).zip(states) {
            let Some(seen) = state.seen() else { continue };
            // A prompt can hold ids that the logits don't reach.
            let entries = marks(row, seen).filter(|entry| (entry.token_id as usize) < self.vocab_size);
            self.entries.extend(entries);
        }
        Ok(mark(stream, self.operands()?)?)
    }

    /// Takes them out again, which costs as many writes as there are tokens and not a vocabulary per row.
    pub(super) fn clear(&mut self, stream: &Stream) -> Result<(), LlmError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        unmark(stream, self.operands()?)?;
        self.entries.clear();
        Ok(())
    }

    fn operands(&mut self) -> Result<Mark<'_>, DeviceError> {
        Ok(Mark {
            entries: &self.entries,
            output_counts: self.output_counts.view_mut()?,
            prompt_mask: self.prompt_mask.view_mut()?,
            workspace: self.workspace.lend(mark_workspace_bytes(self.entries.len()))?,
        })
    }
}

/// A row's tokens, ascending, each once: those of the prompt and those of the answer.
fn marks(row: u32, seen: &SeenTokens) -> impl Iterator<Item = TokenMark> {
    let mut prompt = seen.prompt.iter().copied().peekable();
    let mut output = seen.output.iter().map(|(&token, &count)| (token, count)).peekable();
    std::iter::from_fn(move || {
        let answered = output.peek().map(|&(token, _)| token);
        let token_id = match (prompt.peek().copied(), answered) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        let is_in_prompt = prompt.next_if_eq(&token_id).is_some();
        let count = output.next_if(|&(token, _)| token == token_id).map_or(0, |(_, count)| count);
        Some(TokenMark { row, token_id, count, is_in_prompt })
    })
}
