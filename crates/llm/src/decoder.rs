//! The decoder.

use foveal_checkpoint::{ModelConfig, WeightSource};
use foveal_device::{DType, Device, Stream, Tensor, View};
use foveal_kernels::KvLayout;
use foveal_kernels::embedding::{Embed, RowReplace, embed};

use crate::attention::Step;
use crate::batch::BatchBounds;
use crate::kv_cache::PagedLayer;
use crate::layer::{DecoderLayer, Delta, ResidualNorm};
use crate::projection::Projection;
use crate::rope::RopeTables;
use crate::weights::DecoderWeights;
use crate::{Batch, BatchLimits, DecoderSettings, KvCache, LlmError, Quantization, Workspace};

/// The decoder of a Qwen vision-language model, of whichever family its settings say. Holds weights and tables only:
/// the state of sequences is in a [`KvCache`], that of a step in a [`Workspace`].
///
/// Source of the mathematics: HF transformers 5.17, `Qwen2VLTextModel` (`models/qwen2_vl/modeling_qwen2_vl.py`),
/// `Qwen2_5_VLTextModel` (`models/qwen2_5_vl/modeling_qwen2_5_vl.py`), `Qwen3VLTextModel`
/// (`models/qwen3_vl/modeling_qwen3_vl.py`).
#[derive(Debug)]
pub struct Decoder {
    settings: DecoderSettings,
    device: Device,
    weights: DecoderWeights,
    rope: RopeTables,
    max_model_len: usize,
}

impl Decoder {
    /// Loads the decoder of a model folder, to run sequences of up to `max_model_len` tokens, its weights in the formats
    /// that the checkpoint has. On the CPU they stay mapped.
    ///
    /// # Errors
    /// [`LlmError::Checkpoint`] names a model that can't be run, or a tensor that is missing or misshapen;
    /// [`LlmError::Config`] and [`LlmError::Mrope`] settings that don't fit; [`LlmError::Limits`] a `max_model_len` that
    /// is 0 or beyond `max_position_embeddings`; [`LlmError::WeightFormat`] weights whose format can't run here.
    pub fn load(
        config: &ModelConfig,
        weights: &WeightSource,
        device: &Device,
        max_model_len: usize,
    ) -> Result<Self, LlmError> {
        Self::load_quantized(config, weights, device, max_model_len, Quantization::AsStored)
    }

    /// As [`Decoder::load`], with the weights in another format. What is rounded here takes memory of its own.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_quantized(
        config: &ModelConfig,
        weights: &WeightSource,
        device: &Device,
        max_model_len: usize,
        quantization: Quantization,
    ) -> Result<Self, LlmError> {
        let settings = DecoderSettings::new(config)?;
        let max = settings.max_position_embeddings;
        if max_model_len == 0 || max_model_len > max {
            let expected = format!("1 to {max}, the model's max_position_embeddings");
            return Err(LlmError::Limits { limit: "max_model_len", got: max_model_len, expected });
        }
        Ok(Self {
            weights: DecoderWeights::load(&settings, weights, device, quantization)?,
            rope: RopeTables::new(&settings, device, max_model_len)?,
            settings,
            device: device.clone(),
            max_model_len,
        })
    }

    pub(crate) fn layers(&self) -> &[DecoderLayer] {
        &self.weights.layers
    }

    pub(crate) fn lm_head(&self) -> &Projection {
        &self.weights.lm_head
    }

    /// Whether the checkpoint has scales for an FP8 cache; without them keys and values are rounded as they are.
    #[must_use]
    pub fn has_kv_scales(&self) -> bool {
        self.layers().iter().any(|layer| layer.attention.kv_scales.is_some())
    }

    /// Whether any of its linear layers runs in FP8.
    #[must_use]
    pub fn is_fp8(&self) -> bool {
        self.weights.fp8_inputs().any()
    }

    /// What it looks like.
    #[must_use]
    pub fn settings(&self) -> &DecoderSettings {
        &self.settings
    }

    /// The longest sequence: every position is below it.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Memory for steps within `limits`.
    ///
    /// # Errors
    /// [`LlmError::Limits`] or [`LlmError::Device`].
    pub fn new_workspace(&self, limits: BatchLimits) -> Result<Workspace, LlmError> {
        let max_blocks = self.max_model_len.div_ceil(KvLayout::DEFAULT_PAGE);
        Workspace::new(&self.settings, &self.device, self.weights.fp8_inputs(), limits, max_blocks)
    }

    /// A KV cache of `num_blocks` pages, as [`KvCache::new`].
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn new_kv_cache(&self, num_blocks: usize, dtype: DType) -> Result<KvCache, LlmError> {
        KvCache::new(&self.settings, &self.device, num_blocks, dtype)
    }

    /// Runs one step: stores the keys and values of all rows and gives the logits of `batch.logit_rows`, in their order,
    /// `[num_logit_rows, vocab_size]` f32. A row's logits and cache entries depend on its own sequence alone, bitwise on
    /// the CPU. Allocates no tensor.
    ///
    /// # Errors
    /// Before anything runs: [`LlmError::TooMany`] and [`LlmError::BatchShape`] for the batch as a whole,
    /// [`LlmError::Row`] and [`LlmError::Sequence`] for a value of one sequence ([`LlmError::sequence`]),
    /// [`LlmError::LogitRow`], [`LlmError::CacheMismatch`], [`LlmError::WorkspaceMismatch`].
    pub fn forward<'w>(
        &self,
        stream: &Stream,
        batch: &Batch<'_>,
        cache: &mut KvCache,
        workspace: &'w mut Workspace,
    ) -> Result<View<'w>, LlmError> {
        workspace.check(&self.settings, self.weights.fp8_inputs())?;
        batch.check(BatchBounds {
            settings: &self.settings,
            max_positions: self.max_model_len,
            cache,
            limits: workspace.limits(),
        })?;
        if batch.num_tokens() > 0 {
            let mut inputs = std::mem::take(&mut workspace.inputs);
            let run = inputs.bring(stream, batch).and_then(|batch| {
                let (settings, rope) = (&self.settings, &self.rope);
                let step = Step { stream, settings, rope, layout: cache.layout(), batch };
                // Inside of the stream's threads for the whole step: entering them costs more than a small operator does.
                stream.install(|| self.run_layers(&step, cache, workspace))
            });
            workspace.inputs = inputs;
            run?;
        }
        Ok(workspace.logits.rows(0..batch.logit_rows.len())?)
    }

    /// Token and picture embeddings, normalised for the first layer.
    fn embed(&self, step: &Step<'_>, ws: &mut Workspace) -> Result<(), LlmError> {
        let n = step.num_rows();
        let image = step.batch.image.map(|image| RowReplace { rows: image.embeds, index: image.index });
        let table = self.weights.embed_tokens.view();
        let out = ws.hidden.residual.rows_mut(0..n)?;
        embed(step.stream, Embed { table, input_ids: step.batch.input_ids, image, out })?;
        let Some(first) = self.weights.layers.first() else { return Ok(()) };
        let form = first.attention.qkv_proj.input_form();
        self.norm(&first.input_layernorm).forward(step.stream, n, None, form, &mut ws.hidden)
    }

    fn run_layers(&self, step: &Step<'_>, cache: &mut KvCache, ws: &mut Workspace) -> Result<(), LlmError> {
        self.embed(step, ws)?;
        if let Some(work) = &mut ws.attention_work {
            work.plan(step)?;
        }
        let layers = &self.weights.layers;
        // The norm that follows a layer is the next one's first; the last layer is another matter.
        let next_layers = layers.iter().skip(1);
        let mut caches = cache.layers_mut();
        let n = step.num_rows();
        for (i, (layer, next)) in layers.iter().zip(next_layers).enumerate() {
            let Some(cache) = caches.next() else { break };
            layer.attention.store(step, cache, ws)?;
            layer.attention.attend(step, cache, ws)?;
            self.finish_layer(step.stream, layer, n, ws)?;
            let deepstack = step.batch.image.and_then(|image| image.deepstack_rows(i));
            let delta = Delta { scales: layer.mlp.down_proj.output_scales(&ws.inner, n)?, deepstack };
            let form = next.attention.qkv_proj.input_form();
            self.norm(&next.input_layernorm).forward(step.stream, n, Some(delta), form, &mut ws.hidden)?;
        }
        match layers.last().zip(caches.next()) {
            Some((layer, cache)) => self.run_last_layer(step, (layer, cache), ws),
            None => Ok(()),
        }
    }

    /// Beyond its attention, the last layer concerns only the rows whose logits are wanted; the others have left their
    /// keys and values behind and are done.
    fn run_last_layer(
        &self,
        step: &Step<'_>,
        (layer, cache): (&DecoderLayer, &mut PagedLayer),
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        layer.attention.store(step, cache, ws)?;
        let kept = step.batch.logit_rows.shape().num_elements();
        if kept == 0 {
            return Ok(());
        }
        layer.attention.attend_unrounded(step, cache, ws)?;
        ws.keep_rows(step.stream, step.num_rows(), step.batch.logit_rows)?;
        ws.attn.round(step.stream, kept, layer.attention.o_proj.input_form())?;
        self.finish_layer(step.stream, layer, kept, ws)?;
        let last = self.weights.layers.len() - 1;
        let deepstack = step.batch.image.and_then(|image| image.kept_deepstack_rows(last));
        let delta = Delta { scales: layer.mlp.down_proj.output_scales(&ws.inner, kept)?, deepstack };
        let form = self.weights.lm_head.input_form();
        self.norm(&self.weights.norm).forward(step.stream, kept, Some(delta), form, &mut ws.hidden)?;
        self.weights.lm_head.forward(step.stream, kept, &ws.hidden.normed, &mut ws.logits)
    }

    /// From the attention's output to the MLP's, for the first `n` rows.
    fn finish_layer(
        &self,
        stream: &Stream,
        layer: &DecoderLayer,
        n: usize,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        layer.attention.project(stream, n, ws)?;
        let scales = layer.attention.o_proj.output_scales(&ws.attn, n)?;
        let (delta, form) = (Delta { scales, deepstack: None }, layer.mlp.gate_up_proj.input_form());
        self.norm(&layer.post_attention_layernorm).forward(stream, n, Some(delta), form, &mut ws.hidden)?;
        layer.mlp.forward(stream, self.settings.hidden_act, n, ws)
    }

    fn norm<'a>(&self, weight: &'a Tensor) -> ResidualNorm<'a> {
        ResidualNorm { weight, eps: self.settings.rms_norm_eps }
    }
}
