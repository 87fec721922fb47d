//! A first request that nobody asked for: it has kernels compiled and loaded before somebody waits for them.

use foveal_device::Stream;
use foveal_llm::{Batch, GenerationDefaults, LlmError, SamplerState, StopCriteria};
use foveal_types::SamplingParams;

use super::{ModelExecutor, StepMemory};
use crate::EngineError;

/// Rows of the prompt: more than the kernel for few rows takes.
const PROMPT_ROWS: usize = 20;
/// Merge cells along each side of the picture: more than one window.
const CELLS: u32 = 10;

impl ModelExecutor {
    /// Runs a picture, a prompt, a decode row and both ways to choose a token. What they leave in the cache is overwritten
    /// before it is read. Nothing to do on the CPU.
    pub(crate) fn warm_up(&mut self) -> Result<(), EngineError> {
        if !self.device.is_cuda() {
            return Ok(());
        }
        self.steps.with_work(|memory, stream| {
            memory.warm_up_pictures(stream)?;
            for rows in [PROMPT_ROWS.min(memory.workspace.limits().max_tokens), 1] {
                memory.warm_up_rows(stream, rows)?;
            }
            Ok(stream.synchronize()?)
        })
    }
}

impl StepMemory {
    fn warm_up_pictures(&mut self, stream: &Stream) -> Result<(), EngineError> {
        let cell = self.pictures.cell_pixels();
        let square = (1..=CELLS).rev().find_map(|cells| self.pictures.squares(cells * cell, 1));
        square.map_or(Ok(()), |batch| Ok(self.pictures.encode(stream, &batch)?))
    }

    fn warm_up_rows(&mut self, stream: &Stream, rows: usize) -> Result<(), EngineError> {
        let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let page = self.cache.layout().page;
        let ids = vec![0; rows];
        let positions: Vec<i32> = (0..3).flat_map(|_| 0..int(rows)).collect();
        let slots: Vec<i64> = (0..rows as i64).collect();
        let block_tables: Vec<i32> = (0..int(rows.div_ceil(page))).collect();
        let batch = Batch {
            input_ids: &ids,
            positions: &positions,
            slot_mapping: &slots,
            cu_seqlens: &[0, int(rows)],
            context_lens: &[int(rows)],
            block_tables: &block_tables,
            max_blocks: block_tables.len(),
            logit_rows: &[int(rows) - 1],
            image: None,
        };
        let drawn =
            SamplingParams { temperature: 1.0, top_k: 8, top_p: 0.9, seed: Some(0), ..SamplingParams::default() };
        for params in [SamplingParams::default(), drawn] {
            let logits = self.decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace)?;
            let stop = StopCriteria::new(&params, &GenerationDefaults::default(), 0, 1);
            let mut state = SamplerState::new(&params, &[], &stop).map_err(LlmError::GenerationConfig)?;
            self.sampler.sample(stream, logits, &mut [&mut state])?;
        }
        Ok(())
    }
}
