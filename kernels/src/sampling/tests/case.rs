//! One call of the operator.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::assert_bitwise_equal;

use crate::OpError;
use crate::sampling::{RowSampling, Sample, sample, workspace_bytes};
use crate::testing::{load, tensor, zeros};

pub(super) const GREEDY: RowSampling = RowSampling {
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

/// One call: `rows.len()` rows of `vocab_size` logits.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) vocab_size: usize,
    pub(super) logits: Vec<f32>,
    pub(super) rows: Vec<RowSampling>,
    pub(super) counts: Option<Vec<i32>>,
    pub(super) prompt: Option<Vec<u8>>,
    pub(super) banned: Vec<Vec<u32>>,
    pub(super) num_top: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) ids: Vec<i32>,
    pub(super) logprobs: Vec<f32>,
    pub(super) top_ids: Vec<i32>,
    pub(super) top_logprobs: Vec<f32>,
}

impl Case {
    pub(super) fn new(logits: &[f32], rows: &[RowSampling]) -> Self {
        let vocab_size = logits.len() / rows.len().max(1);
        let (logits, rows) = (logits.to_vec(), rows.to_vec());
        Self { vocab_size, logits, rows, counts: None, prompt: None, banned: Vec::new(), num_top: None }
    }

    pub(super) fn try_run(&self, device: &Device) -> Result<Outputs, OpError> {
        let (r, v) = (self.logits.len().checked_div(self.vocab_size).unwrap_or(self.rows.len()), self.vocab_size);
        let logits = tensor(device, &self.logits, &[r, v]);
        let counts = self.counts.as_ref().map(|counts| tensor(device, counts, &[counts.len() / v, v]));
        let prompt = self.prompt.as_ref().map(|prompt| tensor(device, prompt, &[prompt.len() / v, v]));
        let banned: Vec<&[u32]> = self.banned.iter().map(Vec::as_slice).collect();
        let mut scratch = zeros(device, DType::F32, &[r, v]);
        let num_banned = self.banned.iter().map(Vec::len).sum();
        let mut workspace = zeros(device, DType::U8, &[workspace_bytes(r, v, num_banned)]);
        let (mut ids, mut logprobs) = (zeros(device, DType::I32, &[r]), zeros(device, DType::F32, &[r]));
        let k = self.num_top.unwrap_or(0);
        let (mut top_ids, mut top_lps) = (zeros(device, DType::I32, &[r, k]), zeros(device, DType::F32, &[r, k]));
        let wanted = self.num_top.is_some();
        sample(
            device.stream(),
            Sample {
                logits: logits.view(),
                rows: &self.rows,
                output_counts: counts.as_ref().map(Tensor::view),
                prompt_mask: prompt.as_ref().map(Tensor::view),
                banned: &banned,
                scratch: scratch.view_mut().unwrap(),
                workspace: workspace.view_mut().unwrap(),
                token_ids: ids.view_mut().unwrap(),
                logprobs: logprobs.view_mut().unwrap(),
                top_ids: wanted.then(|| top_ids.view_mut().unwrap()),
                top_logprobs: wanted.then(|| top_lps.view_mut().unwrap()),
            },
        )?;
        assert_bitwise_equal(&load(&logits), &self.logits);
        let ints = |x: &Tensor| x.to_vec::<i32>().unwrap();
        Ok(Outputs {
            ids: ints(&ids),
            logprobs: load(&logprobs),
            top_ids: ints(&top_ids),
            top_logprobs: load(&top_lps),
        })
    }

    pub(super) fn run(&self, device: &Device) -> Outputs {
        self.try_run(device).unwrap()
    }
}
