//! The dense form of what penalties need, for one step at a time.

use foveal_device::{DType, Device, DeviceError, Tensor};

use super::SamplerState;
use crate::LlmError;

/// Counts and marks of each row over the whole vocabulary; zero between steps.
#[derive(Debug)]
pub(super) struct PenaltyBuffers {
    /// `[max_rows, vocab_size]` i32
    pub(super) output_counts: Tensor,
    /// `[max_rows, vocab_size]` u8
    pub(super) prompt_mask: Tensor,
}

impl PenaltyBuffers {
    pub(super) fn new(device: &Device, max_rows: usize, vocab_size: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            output_counts: Tensor::zeros(device, DType::I32, &[max_rows, vocab_size])?,
            prompt_mask: Tensor::zeros(device, DType::U8, &[max_rows, vocab_size])?,
        })
    }

    /// Writes each sequence's tokens into its row.
    pub(super) fn write(&mut self, states: &[&mut SamplerState]) -> Result<(), LlmError> {
        self.set(states, |count| count, 1)
    }

    /// Takes them out again, which costs as many writes as there are tokens and not a vocabulary per row.
    pub(super) fn clear(&mut self, states: &[&mut SamplerState]) -> Result<(), LlmError> {
        self.set(states, |_| 0, 0)
    }

    fn set(&mut self, states: &[&mut SamplerState], count_of: impl Fn(i32) -> i32, mark: u8) -> Result<(), LlmError> {
        for (row, state) in states.iter().enumerate() {
            let Some(seen) = state.seen() else { continue };
            let mut counts = self.output_counts.rows_mut(row..row + 1)?;
            let counts = counts.as_mut_slice::<i32>()?;
            for (&token, &count) in &seen.output {
                if let Some(slot) = counts.get_mut(token as usize) {
                    *slot = count_of(count);
                }
            }
            let mut marks = self.prompt_mask.rows_mut(row..row + 1)?;
            let marks = marks.as_mut_slice::<u8>()?;
            for &token in &seen.prompt {
                if let Some(slot) = marks.get_mut(token as usize) {
                    *slot = mark;
                }
            }
        }
        Ok(())
    }
}
