//! Attention of one layer.

use std::sync::Arc;

use foveal_device::{DType, Stream, Tensor};
use foveal_kernels::paged_attention::{PagedAttention, paged_attention};
use foveal_kernels::qk_norm_rope::{QkNorm, QkNormRope, qk_norm_rope};
use foveal_kernels::quantize::GROUP;
use foveal_kernels::{KvLayout, KvScales};

use crate::attention_work::AttentionWork;
use crate::batch::BatchViews;
use crate::kv_cache::PagedLayer;
use crate::projection::Projection;
use crate::projection_input::InputForm;
use crate::rope::RopeTables;
use crate::workspace::{Workspace, heads, heads_mut};
use crate::{DecoderSettings, LlmError};

/// RMSNorm weights over each head of q and k, `[head_dim]` each.
#[derive(Debug)]
pub(crate) struct QkNormWeights {
    pub(crate) q: Arc<Tensor>,
    pub(crate) k: Arc<Tensor>,
}

/// Grouped-query attention over the paged cache. The families differ in the projection's bias and in QK-norm.
#[derive(Debug)]
pub(crate) struct Attention {
    /// q, k and v stacked: `[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]`
    pub(crate) qkv_proj: Projection,
    pub(crate) qk_norm: Option<QkNormWeights>,
    /// `[hidden_size, num_heads * head_dim]`
    pub(crate) o_proj: Projection,
    /// Of an FP8 cache, from the checkpoint.
    pub(crate) kv_scales: Option<KvScales>,
}

/// What all layers of a step share.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) settings: &'a DecoderSettings,
    pub(crate) rope: &'a RopeTables,
    pub(crate) layout: KvLayout,
    pub(crate) batch: BatchViews<'a>,
}

impl Step<'_> {
    /// Rows of the batch.
    pub(crate) fn num_rows(&self) -> usize {
        self.batch.input_ids.shape().num_elements()
    }
}

impl Attention {
    /// Projects the normalised rows, turns q and k, and stores k and v: `normed -> q`, and the cache.
    pub(crate) fn store(&self, step: &Step<'_>, cache: &mut PagedLayer, ws: &mut Workspace) -> Result<(), LlmError> {
        let (n, settings) = (step.num_rows(), step.settings);
        self.qkv_proj.forward(step.stream, n, &ws.hidden.normed, &mut ws.qkv)?;
        let norm = self.qk_norm.as_ref().map(|norm| QkNorm {
            q_weight: norm.q.view(),
            k_weight: norm.k.view(),
            eps: settings.rms_norm_eps,
        });
        qk_norm_rope(
            step.stream,
            QkNormRope {
                qkv: ws.qkv.rows(0..n)?,
                scales: self.qkv_proj.output_scales(&ws.hidden.normed, n)?,
                bias: self.qkv_proj.output_bias(),
                norm,
                rope: step.rope.at(step.batch.positions),
                slot_mapping: step.batch.slot_mapping,
                layout: step.layout,
                kv_scales: self.kv_scales(step.layout),
                k_cache: cache.k.view_mut()?,
                v_cache: cache.v.view_mut()?,
                q_out: heads_mut(&mut ws.q, n, [settings.num_attention_heads, settings.head_dim])?,
            },
        )?;
        Ok(())
    }

    /// Each row's mixture of its sequence's values, in the form that the output projection reads: `q -> attn`.
    pub(crate) fn attend(&self, step: &Step<'_>, cache: &PagedLayer, ws: &mut Workspace) -> Result<(), LlmError> {
        let form = self.o_proj.input_form();
        if rounds_heads(form, step.settings.head_dim) {
            return self.attend_as(step, cache, form, ws);
        }
        self.attend_as(step, cache, InputForm::Float, ws)?;
        ws.attn.round(step.stream, step.num_rows(), form)
    }

    /// The same, as floats: of rows of which few are kept, only those are rounded.
    pub(crate) fn attend_unrounded(
        &self,
        step: &Step<'_>,
        cache: &PagedLayer,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        self.attend_as(step, cache, InputForm::Float, ws)
    }

    fn attend_as(
        &self,
        step: &Step<'_>,
        cache: &PagedLayer,
        form: InputForm,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        let (n, settings) = (step.num_rows(), step.settings);
        let (quantize, out) = ws.attn.write(n, form)?;
        paged_attention(
            step.stream,
            PagedAttention {
                q: heads(&ws.q, n, [settings.num_attention_heads, settings.head_dim])?,
                layout: step.layout,
                kv_scales: self.kv_scales(step.layout),
                k_cache: cache.k.view(),
                v_cache: cache.v.view(),
                cu_seqlens: step.batch.cu_seqlens,
                context_lens: step.batch.context_lens,
                block_tables: step.batch.block_tables,
                scale: (settings.head_dim as f32).powf(-0.5),
                work: ws.attention_work.as_mut().map(AttentionWork::lend).transpose()?,
                quantize,
                out,
            },
        )?;
        Ok(())
    }

    /// Back to hidden states, for the first `n` rows: `attn -> delta`.
    pub(crate) fn project(&self, stream: &Stream, n: usize, ws: &mut Workspace) -> Result<(), LlmError> {
        self.o_proj.forward(stream, n, &ws.attn, &mut ws.hidden.delta)
    }

    /// A float cache has none.
    fn kv_scales(&self, layout: KvLayout) -> KvScales {
        match layout.dtype {
            DType::F8E4M3 => self.kv_scales.unwrap_or(KvScales::ONE),
            _ => KvScales::ONE,
        }
    }
}

/// Whether attention itself can round its rows to a form: head by head, so not by a scale of the whole row.
fn rounds_heads(form: InputForm, head_dim: usize) -> bool {
    match form {
        InputForm::Fixed(_) => head_dim.is_multiple_of(16),
        InputForm::PerGroup => head_dim.is_multiple_of(GROUP),
        InputForm::Float | InputForm::PerRow => false,
    }
}
