//! The decoder.

use foveal_checkpoint::{ModelConfig, WeightSource};
use foveal_device::{DType, Device, Stream, Tensor, View};
use foveal_kernels::KvLayout;
use foveal_kernels::embedding::{Embed, RowReplace, embed};

use crate::attention::Step;
use crate::batch::{BatchBounds, BatchViews, KeptViews};
use crate::layer::{DecoderLayer, Delta, ResidualNorm};
use crate::projection::Projection;
use crate::rope::RopeTables;
use crate::weights::DecoderWeights;
use crate::{Batch, BatchLimits, DecoderSettings, ImageTables, KvCache, LlmError, Quantization, StepShape, Workspace};

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
        self.check(batch, cache, workspace, 0)?;
        let num_kept = batch.logit_rows.len();
        if batch.num_tokens() > 0 {
            let mut inputs = std::mem::take(&mut workspace.inputs);
            let run = inputs.bring(stream, batch).and_then(|(rows, kept)| {
                let step = self.step(stream, cache, rows);
                // Inside of the stream's threads for the whole step: entering them costs more than a small operator does.
                stream.install(|| {
                    self.run_rows(&step, num_kept > 0, cache, workspace)?;
                    if num_kept > 0 { self.run_kept(stream, &kept, workspace) } else { Ok(()) }
                })
            });
            workspace.inputs = inputs;
            run?;
        }
        Ok(workspace.logits.rows(0..num_kept)?)
    }

    /// Sends a batch to the GPU, padded to `shape`, for [`Decoder::launch_rows`] and [`Decoder::launch_logits`]. Ids below 0
    /// stand for tokens that the device has sampled, `-1 - r` for number r of `num_sampled`.
    ///
    /// # Errors
    /// As [`Decoder::forward`], and [`LlmError::TooMany`] for a batch beyond its shape.
    pub fn load_batch(
        &self,
        stream: &Stream,
        (batch, num_sampled): (&Batch<'_>, usize),
        shape: StepShape,
        cache: &KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), LlmError> {
        self.check(batch, cache, workspace, num_sampled)?;
        workspace.inputs.load(stream, batch, shape)
    }

    /// The first part of a step on a GPU, of whichever batch was loaded last for the shape: all rows up to the attention of the
    /// last layer. Reads the host's memory nowhere, so that it can be recorded; launches depend on the shape alone.
    ///
    /// `sampled`: `[s]` i32, what ids below 0 stand for.
    ///
    /// # Errors
    /// [`LlmError::WorkspaceMismatch`], [`LlmError::CacheMismatch`], [`LlmError::Device`] without a GPU, or of an operator.
    pub fn launch_rows(
        &self,
        stream: &Stream,
        shape: StepShape,
        (images, sampled): (Option<ImageTables<'_>>, Option<View<'_>>),
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), LlmError> {
        workspace.check(&self.settings, self.weights.fp8_inputs())?;
        cache.check(&self.settings)?;
        workspace.with_inputs(|inputs, workspace| {
            let step = self.step(stream, cache, inputs.rows(shape, images, sampled)?);
            self.run_rows(&step, true, cache, workspace)
        })
    }

    /// The second part: logits of the first `logit_rows` of the rows that the batch wants them of, which [`Workspace::logits`]
    /// gives. `deepstack` as for the first part, for a shape that has pictures.
    ///
    /// # Errors
    /// As [`Decoder::launch_rows`], and [`LlmError::TooMany`] for more rows than the workspace takes.
    pub fn launch_logits(
        &self,
        stream: &Stream,
        logit_rows: usize,
        deepstack: Option<&[View<'_>]>,
        workspace: &mut Workspace,
    ) -> Result<(), LlmError> {
        workspace.check(&self.settings, self.weights.fp8_inputs())?;
        let max = workspace.limits().max_logit_rows;
        if logit_rows > max {
            return Err(LlmError::TooMany { what: "rows that want logits", got: logit_rows, max });
        }
        workspace
            .with_inputs(|inputs, workspace| self.run_kept(stream, &inputs.kept(logit_rows, deepstack)?, workspace))
    }

    fn check(
        &self,
        batch: &Batch<'_>,
        cache: &KvCache,
        workspace: &Workspace,
        num_sampled: usize,
    ) -> Result<(), LlmError> {
        workspace.check(&self.settings, self.weights.fp8_inputs())?;
        let (settings, max_positions, limits) = (&self.settings, self.max_model_len, workspace.limits());
        batch.check(BatchBounds { settings, max_positions, cache, limits, num_sampled })
    }

    fn step<'a>(&'a self, stream: &'a Stream, cache: &KvCache, batch: BatchViews<'a>) -> Step<'a> {
        Step { stream, settings: &self.settings, rope: &self.rope, layout: cache.layout(), batch }
    }

    /// Token and picture embeddings, normalised for the first layer.
    fn embed(&self, step: &Step<'_>, ws: &mut Workspace) -> Result<(), LlmError> {
        let n = step.num_rows();
        let image = step.batch.image.map(|image| RowReplace { rows: image.embeds, index: image.index });
        let table = self.weights.embed_tokens.view();
        let out = ws.hidden.residual.rows_mut(0..n)?;
        let BatchViews { input_ids, sampled, .. } = step.batch;
        embed(step.stream, Embed { table, input_ids, sampled, image, out })?;
        let Some(first) = self.weights.layers.first() else { return Ok(()) };
        let form = first.attention.qkv_proj.input_form();
        self.norm(&first.input_layernorm).forward(step.stream, n, None, form, &mut ws.hidden)
    }

    /// All rows up to the attention of the last layer, or, unless some are `kept`, to its keys and values.
    fn run_rows(
        &self,
        step: &Step<'_>,
        is_kept: bool,
        cache: &mut KvCache,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
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
        let Some((layer, cache)) = layers.last().zip(caches.next()) else { return Ok(()) };
        layer.attention.store(step, cache, ws)?;
        if is_kept { layer.attention.attend_unrounded(step, cache, ws) } else { Ok(()) }
    }

    /// Beyond its attention, the last layer concerns only the rows whose logits are wanted; the others have left their
    /// keys and values behind and are done.
    fn run_kept(&self, stream: &Stream, kept: &KeptViews<'_>, ws: &mut Workspace) -> Result<(), LlmError> {
        let Some(layer) = self.weights.layers.last() else { return Ok(()) };
        let (n, last) = (kept.rows.shape().num_elements(), self.weights.layers.len() - 1);
        ws.with_kept_rows(stream, kept.rows, |ws| {
            ws.attn.round(stream, n, layer.attention.o_proj.input_form())?;
            self.finish_layer(stream, layer, n, ws)?;
            let scales = layer.mlp.down_proj.output_scales(&ws.inner, n)?;
            let delta = Delta { scales, deepstack: kept.deepstack_rows(last) };
            let form = self.weights.lm_head.input_form();
            self.norm(&self.weights.norm).forward(stream, n, Some(delta), form, &mut ws.hidden)?;
            self.weights.lm_head.forward(stream, n, &ws.hidden.normed, &mut ws.logits)
        })
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
