//! Every buffer that a step writes, allocated once.

use foveal_device::{DType, Device, DeviceError, Stream, Tensor, View, ViewMut};
use foveal_kernels::quantize::group_stride;
use foveal_kernels::rows::{Gather, gather};

use crate::attention_work::AttentionWork;
use crate::inputs::StepInputs;
use crate::projection_input::ProjectionInput;
use crate::{DecoderSettings, LlmError};

/// The largest batch that a [`Workspace`] is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Rows of a batch.
    pub max_tokens: usize,
    /// Sequences of a batch.
    pub max_seqs: usize,
    /// Rows of a batch whose logits are wanted; at most `max_tokens`.
    pub max_logit_rows: usize,
}

impl BatchLimits {
    fn check(&self) -> Result<(), LlmError> {
        let bad = |limit, got, expected: String| Err(LlmError::Limits { limit, got, expected });
        let Self { max_tokens, max_seqs, max_logit_rows } = *self;
        if max_tokens == 0 || max_tokens > i32::MAX as usize {
            return bad("max_tokens", max_tokens, "a positive 31-bit integer".to_owned());
        }
        for (limit, got) in [("max_seqs", max_seqs), ("max_logit_rows", max_logit_rows)] {
            if got == 0 || got > max_tokens {
                return bad(limit, got, format!("1 to max_tokens ({max_tokens})"));
            }
        }
        Ok(())
    }
}

/// The residual stream and what goes to and fro between it and the parts of a layer, each `[max_tokens, hidden_size]`.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// The residual stream.
    pub(crate) residual: Tensor,
    /// Its rows normalised, what the next part reads.
    pub(crate) normed: ProjectionInput,
    /// What the last part gave, not yet added to the residual stream.
    pub(crate) delta: Tensor,
}

/// Which of a layer's parts some layer reads as FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fp8Inputs {
    pub(crate) normed: bool,
    pub(crate) attn: bool,
    pub(crate) inner: bool,
}

impl Fp8Inputs {
    pub(crate) fn any(self) -> bool {
        self.normed || self.attn || self.inner
    }
}

/// The memory of one step at a time: a forward pass over any batch within its [`BatchLimits`] allocates nothing.
#[derive(Debug)]
pub struct Workspace {
    limits: BatchLimits,
    fp8: Fp8Inputs,
    pub(crate) inputs: StepInputs,
    /// On a GPU.
    pub(crate) attention_work: Option<AttentionWork>,
    pub(crate) hidden: Hidden,
    /// `[max_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`
    pub(crate) qkv: Tensor,
    /// `[max_tokens, num_heads * head_dim]`
    pub(crate) q: Tensor,
    /// `[max_tokens, num_heads * head_dim]`
    pub(crate) attn: ProjectionInput,
    /// `[max_tokens, 2 * intermediate_size]`
    pub(crate) gate_up: Tensor,
    /// `[max_tokens, intermediate_size]`
    pub(crate) inner: ProjectionInput,
    /// `[max_logit_rows, vocab_size]`
    pub(crate) logits: Tensor,
}

impl Workspace {
    /// `max_blocks`: the most pages of a sequence.
    pub(crate) fn new(
        settings: &DecoderSettings,
        device: &Device,
        fp8: Fp8Inputs,
        limits: BatchLimits,
        max_blocks: usize,
    ) -> Result<Self, LlmError> {
        limits.check()?;
        // Products with scales by block are padded with rows.
        let max_rows = group_stride(limits.max_tokens);
        let input = |width, has_f8| ProjectionInput::new(device, max_rows, width, has_f8);
        let rows = |width: usize| Tensor::zeros(device, device.activation_dtype(), &[max_rows, width]);
        Ok(Self {
            limits,
            fp8,
            inputs: StepInputs::new(device, limits, max_blocks)?,
            attention_work: AttentionWork::new(settings, device, limits)?,
            hidden: Hidden {
                residual: rows(settings.hidden_size)?,
                normed: input(settings.hidden_size, fp8.normed)?,
                delta: rows(settings.hidden_size)?,
            },
            qkv: rows(settings.q_size() + 2 * settings.kv_size())?,
            q: rows(settings.q_size())?,
            attn: input(settings.q_size(), fp8.attn)?,
            gate_up: rows(2 * settings.intermediate_size)?,
            inner: input(settings.intermediate_size, fp8.inner)?,
            logits: Tensor::zeros(device, DType::F32, &[limits.max_logit_rows, settings.vocab_size])?,
        })
    }

    /// The largest batch that it was made for.
    #[must_use]
    pub fn limits(&self) -> BatchLimits {
        self.limits
    }

    /// Bytes of all buffers.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        let Self { limits: _, fp8: _, inputs: _, attention_work, hidden, qkv, q, attn, gate_up, inner, logits } = self;
        let Hidden { residual, normed, delta } = hidden;
        let work = attention_work.as_ref().map_or(0, AttentionWork::len_bytes);
        let inputs: usize = [normed, attn, inner].iter().map(|input| input.len_bytes()).sum();
        let activations = [residual, delta, qkv, q, gate_up, logits];
        work + inputs + activations.iter().map(|tensor| tensor.len_bytes()).sum::<usize>()
    }

    /// The first `num_rows` rows of the logits that were made last, `[num_rows, vocab_size]` f32.
    ///
    /// # Errors
    /// [`LlmError::Device`] for more rows than there are.
    pub fn logits(&self, num_rows: usize) -> Result<View<'_>, LlmError> {
        Ok(self.logits.rows(0..num_rows)?)
    }

    /// Lends the inputs beside the rest.
    pub(crate) fn with_inputs(
        &mut self,
        body: impl FnOnce(&mut StepInputs, &mut Self) -> Result<(), LlmError>,
    ) -> Result<(), LlmError> {
        let mut inputs = std::mem::take(&mut self.inputs);
        let result = body(&mut inputs, self);
        self.inputs = inputs;
        result
    }

    /// Refuses a workspace that was made for a decoder of another shape.
    pub(crate) fn check(&self, settings: &DecoderSettings, fp8: Fp8Inputs) -> Result<(), LlmError> {
        let width = |tensor: &Tensor| tensor.shape().row_len();
        let fits = width(&self.hidden.residual) == settings.hidden_size
            && width(&self.qkv) == settings.q_size() + 2 * settings.kv_size()
            && width(&self.q) == settings.q_size()
            && width(&self.inner.float) == settings.intermediate_size
            && self.fp8 == fp8
            && width(&self.logits) == settings.vocab_size;
        if fits { Ok(()) } else { Err(LlmError::WorkspaceMismatch) }
    }

    /// Runs `body` with only the rows `index` of the residual stream and of the attention's output, in that order.
    ///
    /// `q` and `normed` have done their part by then and are of the same shapes, so each takes the kept rows and changes
    /// places with its like. Afterwards each is back at its place, which recorded work relies on.
    pub(crate) fn with_kept_rows(
        &mut self,
        stream: &Stream,
        index: View<'_>,
        body: impl FnOnce(&mut Self) -> Result<(), LlmError>,
    ) -> Result<(), LlmError> {
        let kept = index.shape().num_elements();
        for (x, out) in [(&self.hidden.residual, &mut self.hidden.normed.float), (&self.attn.float, &mut self.q)] {
            gather(stream, Gather { x: x.view(), index, out: out.rows_mut(0..kept)? })?;
        }
        self.swap_kept_rows();
        let result = body(self);
        self.swap_kept_rows();
        result
    }

    fn swap_kept_rows(&mut self) {
        std::mem::swap(&mut self.hidden.residual, &mut self.hidden.normed.float);
        std::mem::swap(&mut self.attn.float, &mut self.q);
    }
}

/// The first `n` rows as `[n, heads, head_dim]`.
pub(crate) fn heads(tensor: &Tensor, n: usize, [heads, head_dim]: [usize; 2]) -> Result<View<'_>, DeviceError> {
    tensor.rows(0..n)?.reshape(&[n, heads, head_dim])
}

/// As [`heads`], to write.
pub(crate) fn heads_mut(
    tensor: &mut Tensor,
    n: usize,
    [heads, head_dim]: [usize; 2],
) -> Result<ViewMut<'_>, DeviceError> {
    tensor.rows_mut(0..n)?.reshape(&[n, heads, head_dim])
}
