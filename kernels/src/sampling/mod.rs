//! The next token of every row: penalties, temperature, top-k, top-p, min-p, one draw, log-probabilities.

mod check;
mod cpu;
mod cuda;
mod layout;
mod mark;
mod philox;
mod row;
mod select;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;
pub(crate) use cuda::variants;
pub use layout::workspace_bytes;
pub use mark::{Mark, TokenMark, mark, mark_workspace_bytes, unmark};

/// How one row chooses; the meaning and the order of operations are those of HF transformers' logits processors:
/// repetition penalty, presence and frequency penalties, banned tokens, temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSampling {
    /// 0 (or less, or NaN) chooses the best token, of equal ones that with the lowest id.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// The row's random stream.
    pub seed: u64,
    /// The number of the draw in that stream: the same seed and number give the same draw, whatever the batch.
    pub draw: u64,
}

impl RowSampling {
    /// Whether any penalty looks at the answer so far: [`Sample::output_counts`] must be given.
    #[must_use]
    pub fn reads_output(&self) -> bool {
        self.reads_prompt() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether the repetition penalty is on: [`Sample::prompt_mask`] must be given.
    #[must_use]
    pub fn reads_prompt(&self) -> bool {
        self.repetition_penalty != 1.0
    }
}

/// Operands of [`sample`].
#[derive(Debug)]
pub struct Sample<'a> {
    /// `[r, vocab_size]` f32; read only.
    pub logits: View<'a>,
    /// One per row.
    pub rows: &'a [RowSampling],
    /// `[r, vocab_size]` i32: how often each token stands in the row's answer so far. `None` if no row has penalties
    /// ([`RowSampling::reads_output`]).
    pub output_counts: Option<View<'a>>,
    /// `[r, vocab_size]` u8: not 0 where the token stands in the row's prompt. `None` if no row has a repetition penalty
    /// ([`RowSampling::reads_prompt`]).
    pub prompt_mask: Option<View<'a>>,
    /// Tokens that can't be chosen, per row (stop tokens before `min_tokens`). Empty: none.
    pub banned: &'a [&'a [u32]],
    /// Working memory `[r, vocab_size]` f32.
    pub scratch: ViewMut<'a>,
    /// On a GPU: working memory of at least [`workspace_bytes`] u8, for what the host sends and what lies between the
    /// kernels; whatever it holds. On the CPU it is not touched and can be empty.
    pub workspace: ViewMut<'a>,
    /// `[r]` i32: the chosen tokens; -1 where a row's logits, before or after penalties and bans, hold a NaN or an
    /// infinite value, or no finite one (minus infinity beside finite values is a token that can't be chosen).
    pub token_ids: ViewMut<'a>,
    /// `[r]` f32: their log-probabilities under the untouched logits; NaN where no token is chosen.
    pub logprobs: ViewMut<'a>,
    /// `[r, k]` i32: the k best tokens under the untouched logits, best first, ties by the lower id; -1 beyond the
    /// vocabulary and in rows that have no distribution. `None`: not wanted.
    pub top_ids: Option<ViewMut<'a>>,
    /// `[r, k]` f32: their log-probabilities, NaN beside -1. Given exactly when `top_ids` is.
    pub top_logprobs: Option<ViewMut<'a>>,
}

/// Chooses one token per row.
///
/// # Equation
/// In this order, on a copy of a row's logits `l`:
/// 1. Repetition penalty, for tokens in the prompt or the answer: `l * penalty` below 0, else `l / penalty`.
/// 2. For tokens in the answer: `l -= frequency_penalty * count`, `l -= presence_penalty`.
/// 3. Banned tokens: minus infinity.
/// 4. With a temperature of 0 the best token is chosen. Else tokens weigh `exp((l - max) / temperature)`.
/// 5. Top-k keeps the k best and all that equal the k-th.
/// 6. Top-p keeps a token when the better ones weigh less than `top_p` of what top-k left; the best stays always. Of equal
///    tokens the lower id counts as the better one (HF leaves that open).
/// 7. Min-p keeps tokens that weigh at least `min_p` times the best one.
/// 8. The draw is the first token, by id, at which the sum of the kept weights exceeds `u` times their total.
///
/// `u` is number `draw` of the stream `seed`: 53 bits of Philox4x32-10 with the seed as key and the draw as counter. So it
/// is the same whatever the batch, the row's place in it, or the device.
///
/// `logprobs` are `l - ln Σ exp(l)` of the untouched logits.
///
/// # Shapes
/// `logits`, `output_counts`, `prompt_mask`, `scratch`: `[r, vocab_size]`; `token_ids`, `logprobs`: `[r]`; `top_ids`,
/// `top_logprobs`: `[r, k]`; `rows` has `r` entries, `banned` `r` or none. `k` is meant to be small (20 at most from
/// requests): the best tokens are found by insertion.
///
/// # Dtypes and layout
/// Row-major and contiguous. `logits`, `scratch` and log-probabilities are f32, ids and counts i32, `prompt_mask` u8.
/// Counts below 1 mean that the token is not in the answer.
///
/// # Numerics
/// Logits and weights are float32, exponentials within 2 ulp; sums are float64 in an order that the vocabulary alone
/// decides. Nothing is sorted: cuts are found by narrowing down the bits of the value at them, three passes each.
///
/// On CUDA scores are the same bits, weights are cut off below 2^-44 of the best one, and their sums are exact. The same
/// seed and draw give the CPU's token but where float32 weights move a border; log-probabilities agree within 1e-6.
/// Rows that are all greedy, without penalties, bans and best tokens, take two small kernels and no copy from the host.
///
/// # Source
/// `_get_logits_processor` in `generation/utils.py` and the warpers in `generation/logits_process.py`, HF transformers
/// 5.17; presence and frequency penalties as vLLM and OpenAI define them; Philox: Salmon et al., SC 2011; min-p:
/// arXiv:2407.01082.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, a banned id is out of range, or a row has penalties and what they
/// read is not given; on CUDA also for more than 2^19 tokens.
pub fn sample(stream: &Stream, args: Sample<'_>) -> Result<(), OpError> {
    let sizes = check::check(&args)?;
    match stream.cuda() {
        Some(cuda) => cuda::sample(cuda, args, sizes),
        None => cpu::sample(stream, args, sizes),
    }
}
