//! Choosing tokens.

mod lent;
mod penalties;
mod state;

use std::fmt;

use foveal_device::{DType, Device, Readback, Stream, Tensor, View};
use foveal_kernels::sampling::{RowSampling, Sample, sample, workspace_bytes};
use foveal_types::{SamplingParams, TokenId};

use crate::LlmError;
use lent::LentBytes;
use penalties::PenaltyBuffers;
pub use state::SamplerState;

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token_id: TokenId,
    /// Its log-probability under the model's own distribution, before penalties and temperature.
    pub logprob: f32,
    /// The best tokens and their log-probabilities under that distribution, best first, as many as the sequence asked
    /// for.
    pub top: Vec<(TokenId, f32)>,
}

/// Chooses one token for each row of logits. Holds the memory for it; what belongs to a sequence is in its
/// [`SamplerState`], so that the same sequence draws the same tokens in any batch and in any row.
///
/// The order of operations is that of [`SamplingParams`]; source: HF transformers 5.17, `generation/logits_process.py`.
pub struct Sampler {
    device: Device,
    max_rows: usize,
    vocab_size: usize,
    /// `[max_rows, vocab_size]`
    scratch: Tensor,
    workspace: LentBytes,
    /// `[max_rows]`
    token_ids: Tensor,
    /// `[max_rows]`
    logprobs: Tensor,
    /// `[max_rows * MAX_LOGPROBS]`, used as `[r, k]`.
    top_ids: Tensor,
    /// `[max_rows * MAX_LOGPROBS]`, used as `[r, k]`.
    top_logprobs: Tensor,
    /// Made when the first sequence with penalties comes, then kept.
    penalties: Option<PenaltyBuffers>,
    /// Those that no step is using.
    readbacks: Vec<Readback>,
    readback_bytes: usize,
    num_failed_rows: u64,
}

/// Tokens that the device is choosing, on their way to the host; see [`Sampler::begin`].
pub struct PendingTokens {
    readback: Readback,
    rows: Vec<PendingRow>,
    /// Best tokens of each row.
    k: usize,
}

/// What is to be told of a row.
struct PendingRow {
    step: u64,
    num_top: usize,
}

/// Bytes that a result's beginning may be moved by in the host's block.
const READBACK_PADDING: usize = 64;

/// Banned tokens of a row that there is room for from the start.
const EXPECTED_BANS: usize = 16;

impl Sampler {
    /// A sampler for up to `max_rows` rows of `vocab_size` logits.
    ///
    /// # Errors
    /// [`LlmError::Limits`] for no rows, [`LlmError::Device`] when memory is short.
    pub fn new(device: &Device, max_rows: usize, vocab_size: usize) -> Result<Self, LlmError> {
        if max_rows == 0 {
            return Err(LlmError::Limits { limit: "max_rows", got: 0, expected: "at least 1".to_owned() });
        }
        let top = [max_rows.saturating_mul(SamplingParams::MAX_LOGPROBS)];
        // One token and its log-probability per row, and as much for each of the best.
        let results = max_rows.saturating_mul(8 * (1 + SamplingParams::MAX_LOGPROBS));
        let readback_bytes = results.saturating_add(READBACK_PADDING);
        let mut workspace = LentBytes::new(device);
        workspace.lend(workspace_bytes(max_rows, vocab_size, max_rows.saturating_mul(EXPECTED_BANS)))?;
        Ok(Self {
            device: device.clone(),
            max_rows,
            vocab_size,
            scratch: Tensor::zeros(device, DType::F32, &[max_rows, vocab_size])?,
            workspace,
            token_ids: Tensor::zeros(device, DType::I32, &[max_rows])?,
            logprobs: Tensor::zeros(device, DType::F32, &[max_rows])?,
            top_ids: Tensor::zeros(device, DType::I32, &top)?,
            top_logprobs: Tensor::zeros(device, DType::F32, &top)?,
            penalties: None,
            // As many as there are steps at once where one is prepared while another runs.
            readbacks: vec![Readback::new(device, readback_bytes)?, Readback::new(device, readback_bytes)?],
            readback_bytes,
            num_failed_rows: 0,
        })
    }

    /// Bytes of the device's memory that are asked for when the first sequence with penalties comes.
    #[must_use]
    pub fn deferred_bytes(&self) -> usize {
        if self.penalties.is_some() { 0 } else { PenaltyBuffers::len_bytes(self.max_rows, self.vocab_size) }
    }

    /// Rows so far whose logits gave no token (NaN).
    #[must_use]
    pub fn num_failed_rows(&self) -> u64 {
        self.num_failed_rows
    }

    /// Chooses one token per row of `logits` (`[r, vocab_size]` f32, as [`crate::Decoder::forward`] gives them), row i for
    /// `states[i]`, and writes it down in that state. A row without a usable logit is an error of that row alone, and its
    /// state stays as it was.
    ///
    /// # Errors
    /// [`LlmError::TooMany`] and [`LlmError::BatchShape`] when rows, states and buffers don't fit, [`LlmError::Device`]
    /// when there is no memory for the first penalties; per row [`LlmError::NoToken`].
    pub fn sample(
        &mut self,
        stream: &Stream,
        logits: View<'_>,
        states: &mut [&mut SamplerState],
    ) -> Result<Vec<Result<SampledToken, LlmError>>, LlmError> {
        if states.is_empty() {
            return Ok(Vec::new());
        }
        let pending = self.begin(stream, logits, states)?;
        let tokens = self.finish(pending)?;
        for (token, state) in tokens.iter().zip(states) {
            match token {
                Ok(token) => state.record(token.token_id),
                Err(_) => state.take_back_draw(),
            }
        }
        Ok(tokens)
    }

    /// The first half of [`Sampler::sample`]: has the device choose, and counts each state's draw. The host waits for nothing;
    /// the next step can read the tokens from [`Sampler::token_ids`] meanwhile. A sequence with penalties looks at its last
    /// token: that must be recorded before its state comes here again.
    ///
    /// # Errors
    /// As [`Sampler::sample`], but for those of rows.
    pub fn begin(
        &mut self,
        stream: &Stream,
        logits: View<'_>,
        states: &mut [&mut SamplerState],
    ) -> Result<PendingTokens, LlmError> {
        let r = states.len();
        if r > self.max_rows {
            return Err(LlmError::TooMany { what: "rows to sample", got: r, max: self.max_rows });
        }
        if **logits.shape() != [r, self.vocab_size] {
            let expected = format!("[{r}, {}]", self.vocab_size);
            return Err(LlmError::BatchShape { field: "logits", got: logits.shape().num_elements(), expected });
        }
        let mut readback = match self.readbacks.pop() {
            Some(readback) => readback,
            None => Readback::new(&self.device, self.readback_bytes)?,
        };
        if r == 0 {
            readback.begin(stream, &[])?;
            return Ok(PendingTokens { readback, rows: Vec::new(), k: 0 });
        }
        let k = states.iter().map(|state| state.num_top()).max().unwrap_or_default().min(self.vocab_size);
        self.write_penalties(stream, states)?;
        let result = self.launch(stream, logits, states, k);
        if let Some(penalties) = &mut self.penalties {
            penalties.clear(stream)?;
        }
        result?;
        let (token_ids, logprobs) = (self.token_ids.rows(0..r)?, self.logprobs.rows(0..r)?);
        let (top_ids, top_logprobs) = (self.top_ids.rows(0..r * k)?, self.top_logprobs.rows(0..r * k)?);
        let views = [token_ids, logprobs, top_ids, top_logprobs];
        let wanted = if k == 0 { 2 } else { views.len() };
        readback.begin(stream, views.get(..wanted).unwrap_or(&views))?;
        let rows = states.iter_mut().map(|state| {
            let row = PendingRow { step: state.num_generated(), num_top: state.num_top().min(k) };
            state.count_draw();
            row
        });
        Ok(PendingTokens { rows: rows.collect(), readback, k })
    }

    /// The tokens that the device has chosen last: `[max_rows]` i32, -1 where a row's logits gave none.
    #[must_use]
    pub fn token_ids(&self) -> View<'_> {
        self.token_ids.view()
    }

    fn write_penalties(&mut self, stream: &Stream, states: &[&mut SamplerState]) -> Result<(), LlmError> {
        if !states.iter().any(|state| state.has_penalties()) {
            return Ok(());
        }
        let buffers = match self.penalties.take() {
            Some(buffers) => buffers,
            None => PenaltyBuffers::new(&self.device, self.max_rows, self.vocab_size)?,
        };
        self.penalties.insert(buffers).write(stream, states)
    }

    fn launch(
        &mut self,
        stream: &Stream,
        logits: View<'_>,
        states: &[&mut SamplerState],
        k: usize,
    ) -> Result<(), LlmError> {
        let r = states.len();
        let rows: Vec<RowSampling> = states.iter().map(|state| state.row()).collect();
        let banned: Vec<&[u32]> = match states.iter().any(|state| !state.banned().is_empty()) {
            true => states.iter().map(|state| state.banned()).collect(),
            false => Vec::new(),
        };
        let used = self.penalties.as_ref().filter(|_| states.iter().any(|state| state.has_penalties()));
        let (output_counts, prompt_mask) = match used {
            Some(penalties) => (Some(penalties.output_counts.rows(0..r)?), Some(penalties.prompt_mask.rows(0..r)?)),
            None => (None, None),
        };
        let (top_ids, top_logprobs) = match k {
            0 => (None, None),
            _ => (
                Some(self.top_ids.rows_mut(0..r * k)?.reshape(&[r, k])?),
                Some(self.top_logprobs.rows_mut(0..r * k)?.reshape(&[r, k])?),
            ),
        };
        let num_banned = banned.iter().map(|ids| ids.len()).sum();
        sample(
            stream,
            Sample {
                logits,
                rows: &rows,
                output_counts,
                prompt_mask,
                banned: &banned,
                scratch: self.scratch.rows_mut(0..r)?,
                workspace: self.workspace.lend(workspace_bytes(r, self.vocab_size, num_banned))?,
                token_ids: self.token_ids.rows_mut(0..r)?,
                logprobs: self.logprobs.rows_mut(0..r)?,
                top_ids,
                top_logprobs,
            },
        )?;
        Ok(())
    }

    /// The second half: waits for the tokens. Whoever has the states records them there.
    ///
    /// # Errors
    /// [`LlmError::Device`]; per row [`LlmError::NoToken`].
    pub fn finish(&mut self, mut pending: PendingTokens) -> Result<Vec<Result<SampledToken, LlmError>>, LlmError> {
        let k = pending.k;
        let results = pending.readback.finish()?;
        let (top_ids, top_logprobs) = (results.slice::<i32>(2)?, results.slice::<f32>(3)?);
        let chosen = results.slice::<i32>(0)?.iter().zip(results.slice::<f32>(1)?);
        let mut sampled = Vec::with_capacity(pending.rows.len());
        for (row, ((&token_id, &logprob), of)) in chosen.zip(&pending.rows).enumerate() {
            let Ok(token_id) = u32::try_from(token_id) else {
                self.num_failed_rows += 1;
                sampled.push(Err(LlmError::NoToken { row, step: of.step }));
                continue;
            };
            let own = row * k..row * k + of.num_top;
            let ids = top_ids.get(own.clone()).unwrap_or_default().iter();
            let top = ids.zip(top_logprobs.get(own).unwrap_or_default());
            let top = top.map(|(&id, &logprob)| (TokenId(id.cast_unsigned()), logprob)).collect();
            sampled.push(Ok(SampledToken { token_id: TokenId(token_id), logprob, top }));
        }
        self.readbacks.push(pending.readback);
        Ok(sampled)
    }
}

impl fmt::Debug for PendingTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingTokens({} rows)", self.rows.len())
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, max_rows, vocab_size, .. } = self;
        write!(f, "Sampler({max_rows} rows of {vocab_size} tokens on {device:?})")
    }
}
