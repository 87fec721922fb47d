//! One decoder layer, and the norms between its parts.

use std::sync::Arc;

use foveal_device::{Stream, Tensor};
use foveal_kernels::norm::{AddNorm, NormKind, RowAdd, add_norm};

use crate::LlmError;
use crate::attention::Attention;
use crate::mlp::Mlp;
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

/// What joins the residual stream before it is normalised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Joins<'a> {
    /// Nothing: the embeddings are the stream.
    Nothing,
    /// What the last part left in `delta`.
    Delta,
    /// That, and deepstack features after it.
    DeltaAndRows(RowAdd<'a>),
}

impl<'a> Joins<'a> {
    /// What joins after a layer, with the deepstack level that belongs to it.
    pub(crate) fn after_layer(deepstack: Option<RowAdd<'a>>) -> Self {
        deepstack.map_or(Self::Delta, Self::DeltaAndRows)
    }
}

impl ResidualNorm<'_> {
    /// The first `n` rows: `residual += delta + extra; normed = norm(residual)`.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        n: usize,
        joins: Joins<'_>,
        hidden: &mut Hidden,
    ) -> Result<(), LlmError> {
        let delta = hidden.delta.rows(0..n)?;
        let (add, extra) = match joins {
            Joins::Nothing => (None, None),
            Joins::Delta => (Some(delta), None),
            Joins::DeltaAndRows(rows) => (Some(delta), Some(rows)),
        };
        add_norm(
            stream,
            AddNorm {
                residual: hidden.residual.rows_mut(0..n)?,
                add,
                add_scales: None,
                extra,
                weight: self.weight.view(),
                bias: None,
                kind: NormKind::Rms,
                eps: self.eps,
                quantize: None,
                out: hidden.normed.rows_mut(0..n)?,
            },
        )?;
        Ok(())
    }
}
