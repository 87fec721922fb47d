//! One decoder layer, and the norms between its parts.

use std::sync::Arc;

use foveal_device::{Stream, Tensor};
use foveal_kernels::norm::{AddNorm, NormKind, RowAdd, add_norm};
use foveal_kernels::quantize::Scales;

use crate::LlmError;
use crate::attention::Attention;
use crate::mlp::Mlp;
use crate::projection_input::InputForm;
use crate::workspace::Hidden;

/// One layer's weights. A layer of another kind differs in what stands for `attention` (and in what the cache keeps for
/// it) or for `mlp`; the residual stream around them stays.
#[derive(Debug)]
pub(crate) struct DecoderLayer {
    /// `[hidden_size]`
    pub(crate) input_layernorm: Arc<Tensor>,
    pub(crate) attention: Attention,
    /// `[hidden_size]`
    pub(crate) post_attention_layernorm: Arc<Tensor>,
    pub(crate) mlp: Mlp,
}

/// An RMSNorm of the residual stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResidualNorm<'a> {
    pub(crate) weight: &'a Tensor,
    pub(crate) eps: f32,
}

/// What the last part left in `delta`, which joins the residual stream before it is normalised. There is none before the
/// first layer: the embeddings are the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delta<'a> {
    /// What it is to be multiplied by, where it is a product of FP8 operands.
    pub(crate) scales: Option<Scales<'a>>,
    /// Deepstack features that join after it.
    pub(crate) deepstack: Option<RowAdd<'a>>,
}

impl ResidualNorm<'_> {
    /// The first `n` rows: `residual += delta + extra; normed = norm(residual)`, as the next projection reads it.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        n: usize,
        delta: Option<Delta<'_>>,
        form: InputForm,
        hidden: &mut Hidden,
    ) -> Result<(), LlmError> {
        let add = delta.map(|_| hidden.delta.rows(0..n)).transpose()?;
        let (add_scales, extra) = delta.map_or((None, None), |delta| (delta.scales, delta.deepstack));
        let (quantize, out) = hidden.normed.write(n, form)?;
        add_norm(
            stream,
            AddNorm {
                residual: hidden.residual.rows_mut(0..n)?,
                add,
                add_scales,
                extra,
                weight: self.weight.view(),
                bias: None,
                kind: NormKind::Rms,
                eps: self.eps,
                quantize,
                out,
            },
        )?;
        Ok(())
    }
}
