//! What an engine has set memory aside for.

use std::fmt;

use foveal_checkpoint::WeightSource;
use foveal_device::Device;

use crate::model_executor::StepMemory;
use crate::{EngineError, Limits};

/// What an engine has set memory aside for, in bytes of its device. See [`crate::Engine::memory_plan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Weights; on a CPU mapped from their files.
    pub weights_bytes: u64,
    /// Keys and values.
    pub kv_cache_bytes: u64,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
    /// Activations of the largest step, and the logits of as many sequences as run side by side.
    pub decoder_workspace_bytes: u64,
    /// Activations of the largest pictures that are encoded together.
    pub vision_workspace_bytes: u64,
    /// Embeddings of pictures, deepstack rows included.
    pub encoder_cache_bytes: u64,
    /// Counts of tokens for penalties, made when the first request asks for any.
    pub sampler_bytes: u64,
    /// Recorded steps.
    pub graph_bytes: u64,
    /// Recorded steps, in number.
    pub num_graphs: usize,
    /// The most page-locked memory of the host.
    pub pinned_bytes: u64,
    /// Memory of the device, its own and other programs' use included; 0 on a CPU.
    pub device_bytes: u64,
    /// The most tokens of one request.
    pub max_model_len: usize,
    /// The most sequences side by side.
    pub max_num_seqs: usize,
    /// The most tokens of a step.
    pub max_num_batched_tokens: usize,
}

impl MemoryPlan {
    /// What has been set aside, but for recordings.
    pub(crate) fn of(
        device: &Device,
        weights: &WeightSource,
        memory: &StepMemory,
        pinned_bytes: usize,
    ) -> Result<Self, EngineError> {
        let StepMemory { pictures, workspace, cache, sampler, .. } = memory;
        Ok(Self {
            weights_bytes: weights.total_bytes(),
            kv_cache_bytes: cache.len_bytes() as u64,
            decoder_workspace_bytes: workspace.len_bytes() as u64,
            vision_workspace_bytes: pictures.workspace_bytes(),
            encoder_cache_bytes: pictures.arena_bytes() as u64,
            sampler_bytes: sampler.deferred_bytes() as u64,
            pinned_bytes: pinned_bytes as u64,
            device_bytes: match device.stream().cuda() {
                Some(cuda) => cuda.device().memory_bytes()?.1 as u64,
                None => 0,
            },
            ..Self::default()
        })
    }

    /// The sizes that bound requests.
    pub(crate) fn with_limits(self, limits: &Limits) -> Self {
        Self {
            kv_cache_tokens: limits.num_blocks.saturating_mul(limits.page),
            max_model_len: limits.max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            ..self
        }
    }

    /// All of the device's memory that is set aside.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let Self { weights_bytes, kv_cache_bytes, decoder_workspace_bytes, vision_workspace_bytes, .. } = self;
        let fixed = weights_bytes + kv_cache_bytes + decoder_workspace_bytes + vision_workspace_bytes;
        fixed + self.encoder_cache_bytes + self.sampler_bytes + self.graph_bytes
    }
}

impl fmt::Display for MemoryPlan {
    /// A table, a line for each part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { kv_cache_tokens, max_model_len, max_num_seqs, max_num_batched_tokens, num_graphs, .. } = self;
        let of_device =
            if self.device_bytes == 0 { String::new() } else { format!("of {:.0} MiB", mib(self.device_bytes)) };
        let parts = [
            ("weights", self.weights_bytes, String::new()),
            (
                "KV cache",
                self.kv_cache_bytes,
                format!("{kv_cache_tokens} tokens; a request takes up to {max_model_len}"),
            ),
            (
                "decoder's workspace",
                self.decoder_workspace_bytes,
                format!("{max_num_batched_tokens} tokens a step, {max_num_seqs} sequences"),
            ),
            ("tower's workspace", self.vision_workspace_bytes, String::new()),
            ("encoder cache", self.encoder_cache_bytes, String::new()),
            ("sampler", self.sampler_bytes, "with the first penalty".to_owned()),
            ("graphs", self.graph_bytes, format!("{num_graphs} recorded")),
            ("together", self.total_bytes(), of_device),
            ("page-locked, at most", self.pinned_bytes, "of the host".to_owned()),
        ];
        write!(f, "Memory plan, MiB")?;
        for (part, bytes, note) in parts.iter().filter(|(_, bytes, _)| *bytes > 0) {
            write!(f, "\n  {part:<22}{:>10.1}", mib(*bytes))?;
            if !note.is_empty() {
                write!(f, "  {note}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_part_that_there_is() {
        let plan = MemoryPlan { weights_bytes: 3 << 20, kv_cache_bytes: 1 << 20, ..MemoryPlan::default() };
        assert_eq!(
            plan.to_string().lines().collect::<Vec<_>>(),
            [
                "Memory plan, MiB",
                "  weights                      3.0",
                "  KV cache                     1.0  0 tokens; a request takes up to 0",
                "  together                     4.0",
            ]
        );
    }
}
