//! Choosing tokens.

use foveal_device::{DType, Stream, Tensor, View};
use foveal_kernels::sampling::{RowSampling, Sample, sample, workspace_bytes};

use super::Bench;
use super::ceilings::Cost;
use super::operands::Rotation;
use super::shapes::VOCAB;

/// Random logits lie between 0 and this.
const LARGEST_LOGIT: f32 = 16.0;

const GREEDY: RowSampling = RowSampling {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seed: 1,
    draw: 0,
};

/// The best tokens.
pub(super) fn greedy(bench: &mut Bench, rows: usize) -> anyhow::Result<()> {
    sampling(bench, "sampling greedy", rows, GREEDY)
}

/// Drawn as a model's generation_config.json has it. Without the copy of the rows' settings, which is in place.
pub(super) fn drawn(bench: &mut Bench, rows: usize) -> anyhow::Result<()> {
    sampling(bench, "sampling drawn", rows, RowSampling { temperature: 0.7, top_k: 20, top_p: 0.8, ..GREEDY })
}

/// What [`sample`] writes.
struct Memory {
    scratch: Tensor,
    workspace: Tensor,
    token_ids: Tensor,
    logprobs: Tensor,
}

impl Memory {
    fn new(bench: &Bench, rows: usize) -> anyhow::Result<Self> {
        Ok(Self {
            scratch: bench.scratch(DType::F32, &[rows, VOCAB])?,
            workspace: bench.scratch(DType::U8, &[workspace_bytes(rows, VOCAB, 0)])?,
            token_ids: bench.scratch(DType::I32, &[rows])?,
            logprobs: bench.scratch(DType::F32, &[rows])?,
        })
    }

    fn sample(&mut self, stream: &Stream, logits: View<'_>, rows: &[RowSampling]) -> anyhow::Result<()> {
        let args = Sample {
            logits,
            rows,
            output_counts: None,
            prompt_mask: None,
            banned: &[],
            scratch: self.scratch.view_mut()?,
            workspace: self.workspace.view_mut()?,
            token_ids: self.token_ids.view_mut()?,
            logprobs: self.logprobs.view_mut()?,
            top_ids: None,
            top_logprobs: None,
        };
        Ok(sample(stream, args)?)
    }
}

fn sampling(bench: &mut Bench, op: &str, num_rows: usize, row: RowSampling) -> anyhow::Result<()> {
    let shape = format!("{num_rows} x {VOCAB}");
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let logits: Rotation =
        bench.rotation_of(&[num_rows, VOCAB], |bits| bits as f32 / u32::MAX as f32 * LARGEST_LOGIT)?;
    let mut memory = Memory::new(bench, num_rows)?;
    let rows = vec![row; num_rows];
    memory.sample(&stream, logits.view(0)?, &rows)?;
    bench.time(op, &shape, Cost::of_bytes(num_rows * VOCAB * 4), |i| memory.sample(&stream, logits.view(i)?, &rows))
}
