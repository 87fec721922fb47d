//! Puts an engine together.

use std::sync::Arc;

use foveal_checkpoint::{ModelConfig, VisionConfig, WeightSource, prefix};
use foveal_device::{DType, Device};
use foveal_llm::{BatchLimits, Decoder, DecoderSettings, GenerationDefaults, Quantization, Sampler};
use foveal_types::{PixelLender, TokenId};
use foveal_vision::{Normalisation, VisionTower};

use crate::handle::EngineOptions;
use crate::memory_plan::MemoryPlan;
use crate::model_executor::{ModelExecutor, PictureRows, StepMemory};
use crate::pinned_pixels::PinnedPixels;
use crate::{Engine, EngineError, Limits};

/// Describes an engine; [`EngineBuilder::build`] loads the model and starts it.
///
/// [`EngineBuilder::model`] and [`EngineBuilder::normalisation`] are needed, everything else has a default.
#[derive(Debug)]
pub struct EngineBuilder {
    model: Option<(ModelConfig, WeightSource)>,
    normalisation: Option<Normalisation>,
    defaults: Option<GenerationDefaults>,
    device: Option<Device>,
    max_model_len: Option<usize>,
    num_blocks: Option<usize>,
    kv_cache_bytes: Option<usize>,
    gpu_memory_utilization: Option<f64>,
    enforce_eager: bool,
    graph_bytes: u64,
    kv_cache_dtype: Option<DType>,
    quantization: Quantization,
    max_num_batched_tokens: Option<usize>,
    max_num_seqs: Option<usize>,
    max_patches: usize,
    encoder_cache_bytes: usize,
    max_waiting: usize,
    pinned_bytes: usize,
    prefix_caching: bool,
    run_ahead: bool,
}

impl EngineBuilder {
    /// What `max_model_len` is unless it is set: as far as the model goes, but no further than this.
    pub const DEFAULT_MAX_MODEL_LEN: usize = 8192;
    /// What `max_num_batched_tokens` is on a GPU unless it is set: enough rows for weights to be read once for many of them,
    /// few enough for answers to go on beside a long prompt.
    pub const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 2048;
    /// What `max_num_batched_tokens` is on the CPU unless it is set: few enough for the next look at cancellations to come
    /// soon.
    pub const DEFAULT_MAX_NUM_BATCHED_TOKENS_CPU: usize = 512;
    /// Requests of `max_model_len` tokens that the KV cache holds unless its size is set, or as many as run side by side if
    /// those are fewer.
    pub const DEFAULT_CONVERSATIONS: usize = 4;
    /// What `max_num_seqs` is on a GPU unless it is set; vLLM's default.
    pub const DEFAULT_MAX_NUM_SEQS: usize = 256;
    /// What `max_num_seqs` is on the CPU unless it is set.
    pub const DEFAULT_MAX_NUM_SEQS_CPU: usize = 16;
    /// What `max_patches` is unless it is set: 2048 x 2048 pixels of 16 x 16 patches.
    pub const DEFAULT_MAX_PATCHES: usize = 16_384;
    /// What `encoder_cache_bytes` is unless it is set: some eight thousand embeddings with three deepstack levels, of 4096
    /// bf16 values each, or thirty pictures of 512x512.
    pub const DEFAULT_ENCODER_CACHE_BYTES: usize = 256 << 20;
    /// What `pinned_bytes` is unless it is set: copies in flight, and the pixels of some two hundred pictures of 512x512.
    pub const DEFAULT_PINNED_BYTES: usize = 256 << 20;
    /// What `graph_bytes` is unless it is set.
    pub const DEFAULT_GRAPH_BYTES: u64 = 1 << 30;
    /// What `max_waiting` is unless it is set.
    pub const DEFAULT_MAX_WAITING: usize = 256;

    pub(crate) fn new() -> Self {
        Self {
            model: None,
            normalisation: None,
            defaults: None,
            device: None,
            max_model_len: None,
            num_blocks: None,
            kv_cache_bytes: None,
            gpu_memory_utilization: None,
            enforce_eager: false,
            graph_bytes: Self::DEFAULT_GRAPH_BYTES,
            kv_cache_dtype: None,
            quantization: Quantization::AsStored,
            max_num_batched_tokens: None,
            max_num_seqs: None,
            max_patches: Self::DEFAULT_MAX_PATCHES,
            encoder_cache_bytes: Self::DEFAULT_ENCODER_CACHE_BYTES,
            max_waiting: Self::DEFAULT_MAX_WAITING,
            pinned_bytes: Self::DEFAULT_PINNED_BYTES,
            prefix_caching: true,
            run_ahead: false,
        }
    }

    /// The model: its configuration and where its weights come from.
    #[must_use]
    pub fn model(mut self, config: ModelConfig, weights: WeightSource) -> Self {
        self.model = Some((config, weights));
        self
    }

    /// How uint8 pixels become the values that the tower was trained on (`image_mean` and `image_std` of the
    /// processor's settings).
    #[must_use]
    pub fn normalisation(mut self, normalisation: Normalisation) -> Self {
        self.normalisation = Some(normalisation);
        self
    }

    /// The model's own stop tokens; without it, those of its `config.json`.
    #[must_use]
    pub fn generation_defaults(mut self, defaults: GenerationDefaults) -> Self {
        self.defaults = Some(defaults);
        self
    }

    /// Where it runs; without it, the CPU with all its cores.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// The most tokens of one request, prompt and answer together.
    #[must_use]
    pub fn max_model_len(mut self, tokens: usize) -> Self {
        self.max_model_len = Some(tokens);
        self
    }

    /// Pages of the KV cache; without it, and without [`EngineBuilder::kv_cache_bytes`], as many as
    /// [`EngineBuilder::DEFAULT_CONVERSATIONS`] requests of `max_model_len` tokens need.
    #[must_use]
    pub fn num_blocks(mut self, blocks: usize) -> Self {
        self.num_blocks = Some(blocks);
        self
    }

    /// Bytes of the KV cache, rounded down to whole pages. [`EngineBuilder::num_blocks`] goes before it.
    #[must_use]
    pub fn kv_cache_bytes(mut self, bytes: usize) -> Self {
        self.kv_cache_bytes = Some(bytes);
        self
    }

    /// Gives the KV cache what is left of this share of a GPU's memory, above 0 and at most 1, when everything else has its
    /// own. [`EngineBuilder::num_blocks`] and [`EngineBuilder::kv_cache_bytes`] go before it; on the CPU it means nothing.
    #[must_use]
    pub fn gpu_memory_utilization(mut self, share: f64) -> Self {
        self.gpu_memory_utilization = Some(share);
        self
    }

    /// Whether a GPU's steps run launch by launch instead of as recorded graphs: in the same shapes, with the same bits, and
    /// slower.
    #[must_use]
    pub fn enforce_eager(mut self, is_on: bool) -> Self {
        self.enforce_eager = is_on;
        self
    }

    /// The most of a GPU's memory that recorded steps take. Shapes that find no room run launch by launch.
    #[must_use]
    pub fn graph_bytes(mut self, bytes: u64) -> Self {
        self.graph_bytes = bytes;
        self
    }

    /// How keys and values are kept. Without it as the device computes: f32 on the CPU, where bf16 or f16 takes half the
    /// memory; bf16 on a GPU. f8_e4m3 takes half of that on either, with the checkpoint's scales, or none where it has none.
    #[must_use]
    pub fn kv_cache_dtype(mut self, dtype: DType) -> Self {
        self.kv_cache_dtype = Some(dtype);
        self
    }

    /// In which format the decoder's weights run; without it as the checkpoint has them.
    #[must_use]
    pub fn quantization(mut self, quantization: Quantization) -> Self {
        self.quantization = quantization;
        self
    }

    /// The most tokens that one step computes, of all its sequences: longer prompts run in chunks.
    #[must_use]
    pub fn max_num_batched_tokens(mut self, tokens: usize) -> Self {
        self.max_num_batched_tokens = Some(tokens);
        self
    }

    /// The most sequences that run side by side; no more than [`EngineBuilder::max_num_batched_tokens`], of which each takes
    /// one. Every one costs two rows of float32 logits. Pages are another matter: where they run out, sequences that
    /// arrived last are computed again later.
    #[must_use]
    pub fn max_num_seqs(mut self, sequences: usize) -> Self {
        self.max_num_seqs = Some(sequences);
        self
    }

    /// Bytes of the pictures' embeddings that are kept on the device: of those whose placeholders still have to be computed,
    /// and of those that may be asked about again. Rounded down to whole embeddings; at least those of a picture of
    /// [`EngineBuilder::max_patches`] are kept.
    #[must_use]
    pub fn encoder_cache_bytes(mut self, bytes: usize) -> Self {
        self.encoder_cache_bytes = bytes;
        self
    }

    /// The most patches (before merging) of one encoder batch, and so of one picture.
    #[must_use]
    pub fn max_patches(mut self, patches: usize) -> Self {
        self.max_patches = patches;
        self
    }

    /// The most requests that wait; one more is refused with [`foveal_types::Error::Exhausted`].
    #[must_use]
    pub fn max_waiting(mut self, requests: usize) -> Self {
        self.max_waiting = requests;
        self
    }

    /// The most page-locked memory for copies to a GPU and for pixels that wait; on the CPU, for pixels alone, of ordinary
    /// memory.
    #[must_use]
    pub fn pinned_bytes(mut self, bytes: usize) -> Self {
        self.pinned_bytes = bytes;
        self
    }

    /// Whether a request that begins as an earlier one did takes over its keys and values, in whole pages and as long as
    /// nobody needs their room (on unless it is switched off).
    #[must_use]
    pub fn prefix_caching(mut self, is_on: bool) -> Self {
        self.prefix_caching = is_on;
        self
    }

    /// Whether a step is planned and sent off before the results of the one before it are there, so that the device need not
    /// wait for the host (off unless it is switched on). Answers are the same; one that a stop token ends costs a row in vain.
    #[must_use]
    pub fn run_ahead(mut self, is_on: bool) -> Self {
        self.run_ahead = is_on;
        self
    }

    /// Loads the model and starts the engine's thread.
    ///
    /// # Errors
    /// [`EngineError`]: a part or an option is missing or impossible, the checkpoint doesn't fit (the tensor and its
    /// file are named, surplus tensors too), or memory is short.
    pub fn build(self) -> Result<Engine, EngineError> {
        let (executor, options) = self.load()?;
        Engine::start(executor, options)
    }

    /// What the engine's thread is started with.
    pub(crate) fn load(self) -> Result<(ModelExecutor, EngineOptions), EngineError> {
        self.check()?;
        let missing = |part, call| EngineError::MissingPart { part, call };
        let (config, weights) = self.model.as_ref().ok_or(missing("a model", "model"))?;
        let normalisation = self.normalisation.ok_or(missing("the pictures' normalisation", "normalisation"))?;
        config.ensure_supported()?;
        let device = self.device.clone().map_or_else(|| Device::cpu(0), Ok)?;
        let pinned = foveal_pinned::install(&device, self.pinned_bytes);
        let limit = config.text.max_position_embeddings.min(Self::DEFAULT_MAX_MODEL_LEN);
        let max_model_len = self.max_model_len.unwrap_or(limit);
        let decoder = Decoder::load_quantized(config, weights, &device, max_model_len, self.quantization)?;
        let tower = VisionTower::load(&config.vision, normalisation, weights, &device)?;
        weights.finish(&[prefix::ALL])?;

        let kv_cache_dtype = self.kv_cache_dtype.unwrap_or(device.activation_dtype());
        if kv_cache_dtype == DType::F8E4M3 && !decoder.has_kv_scales() {
            tracing::warn!(
                "the checkpoint has no scales for an FP8 KV cache: keys and values are rounded as they are, which loses those \
                 beyond 448"
            );
        }
        let mut limits = self.limits(config, decoder.settings(), &device, max_model_len, kv_cache_dtype)?;
        let Limits { max_num_seqs, max_num_batched_tokens: max_tokens, .. } = limits;
        let batch = BatchLimits { max_tokens, max_seqs: max_num_seqs, max_logit_rows: max_num_seqs };
        let mut workspace = decoder.new_workspace(batch)?;
        decoder.tune(device.stream(), &mut workspace)?;
        let pictures = PictureRows::new(&device, tower, limits.max_patches, limits.encoder_rows)?;
        let sampler = Sampler::new(&device, max_num_seqs, config.text.vocab_size)?;
        if let Some(blocks) =
            self.blocks_that_fit(&device, decoder.settings(), kv_cache_dtype, sampler.deferred_bytes())?
        {
            limits.num_blocks = blocks;
        }
        let cache = decoder.new_kv_cache(limits.num_blocks, kv_cache_dtype)?;
        let defaults = self.defaults.unwrap_or_else(|| GenerationDefaults {
            stop_token_ids: config.text.eos_token_id.iter().copied().map(TokenId).collect(),
            ..GenerationDefaults::default()
        });
        let memory = StepMemory { pictures, workspace, cache, sampler, decoder };
        let plan = MemoryPlan::of(&device, weights, &memory, self.pinned_bytes)?;
        let graph_bytes = (!self.enforce_eager).then_some(self.graph_bytes);
        let mut executor = ModelExecutor::new(device, memory, graph_bytes).with_pinned(pinned.clone());
        executor.warm_up()?;
        let recorded = executor.record()?;
        if recorded.num_captured > 0 {
            tracing::info!(%recorded, "steps recorded");
        }
        let plan = MemoryPlan { graph_bytes: recorded.bytes, num_graphs: recorded.num_captured, ..plan };
        let memory = plan.with_limits(&limits);
        tracing::debug!("{memory}");
        let Self { max_waiting, prefix_caching, run_ahead, .. } = self;
        let pixels: Arc<dyn PixelLender> = Arc::new(PinnedPixels(pinned));
        Ok((executor, EngineOptions { limits, memory, defaults, max_waiting, prefix_caching, run_ahead, pixels }))
    }

    /// Refuses options that make no sense for any model.
    fn check(&self) -> Result<(), EngineError> {
        let options = [
            ("max_num_batched_tokens", self.max_num_batched_tokens.unwrap_or(1)),
            ("max_num_seqs", self.max_num_seqs.unwrap_or(1)),
            ("max_waiting", self.max_waiting),
            ("num_blocks", self.num_blocks.unwrap_or(1)),
        ];
        if let Some((option, got)) = options.into_iter().find(|(_, got)| *got == 0) {
            return Err(EngineError::Option { option, got, expected: "at least 1".to_owned() });
        }
        match self.gpu_memory_utilization {
            Some(share) if !(share > 0.0 && share <= 1.0) => {
                Err(EngineError::Share { option: "gpu_memory_utilization", got: share.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Pages that fit what is left of the GPU's memory, `deferred_bytes` set aside; `None` where that isn't what decides.
    fn blocks_that_fit(
        &self,
        device: &Device,
        settings: &DecoderSettings,
        kv_cache_dtype: DType,
        deferred_bytes: usize,
    ) -> Result<Option<usize>, EngineError> {
        let Some((share, cuda)) = self.gpu_memory_utilization.zip(device.stream().cuda()) else { return Ok(None) };
        if self.num_blocks.is_some() || self.kv_cache_bytes.is_some() {
            return Ok(None);
        }
        let page_bytes = settings.kv_layout(kv_cache_dtype).page * settings.kv_bytes_per_token(kv_cache_dtype);
        let (free, total) = cuda.device().memory_bytes()?;
        let graphs = if self.enforce_eager { 0 } else { usize::try_from(self.graph_bytes).unwrap_or(usize::MAX) };
        let taken = (total - free).saturating_add(graphs).saturating_add(deferred_bytes);
        let left = ((total as f64 * share) as usize).saturating_sub(taken);
        match left / page_bytes {
            0 => Err(EngineError::NoRoomForCache { share, taken_bytes: taken, total_bytes: total }),
            blocks => Ok(Some(blocks)),
        }
    }

    /// The sizes that bound every request of this model.
    fn limits(
        &self,
        config: &ModelConfig,
        settings: &DecoderSettings,
        device: &Device,
        max_model_len: usize,
        kv_cache_dtype: DType,
    ) -> Result<Limits, EngineError> {
        let page = settings.kv_layout(kv_cache_dtype).page;
        let page_bytes = page * settings.kv_bytes_per_token(kv_cache_dtype);
        let (tokens, sequences) = if device.is_cuda() {
            (Self::DEFAULT_MAX_NUM_BATCHED_TOKENS, Self::DEFAULT_MAX_NUM_SEQS)
        } else {
            (Self::DEFAULT_MAX_NUM_BATCHED_TOKENS_CPU, Self::DEFAULT_MAX_NUM_SEQS_CPU)
        };
        let max_num_batched_tokens = self.max_num_batched_tokens.unwrap_or(tokens);
        let max_num_seqs = self.max_num_seqs.unwrap_or(sequences).min(max_num_batched_tokens);
        let num_blocks = match (self.num_blocks, self.kv_cache_bytes) {
            (Some(blocks), _) => blocks,
            (None, Some(bytes)) if bytes < page_bytes => {
                let expected = format!("at least {page_bytes}, one page");
                return Err(EngineError::Option { option: "kv_cache_bytes", got: bytes, expected });
            }
            (None, Some(bytes)) => bytes / page_bytes,
            (None, None) => max_model_len.div_ceil(page).saturating_mul(max_num_seqs.min(Self::DEFAULT_CONVERSATIONS)),
        };
        let vision = &config.vision;
        // No picture can have more embeddings than a request has tokens.
        let most_patches = max_model_len.saturating_mul(vision.merge_unit());
        let max_patches = self.max_patches.min(most_patches).max(vision.merge_unit());
        Ok(Limits {
            page,
            num_blocks,
            max_model_len,
            max_num_batched_tokens,
            max_num_seqs,
            max_patches,
            encoder_rows: encoder_rows(&config.vision, device, self.encoder_cache_bytes, max_patches),
            merge_size: u32::try_from(vision.spatial_merge_size).unwrap_or(u32::MAX),
            patch_bytes: vision.patch_len() / vision.temporal_patch_size.max(1),
            temporal_patch_size: u32::try_from(vision.temporal_patch_size).unwrap_or(u32::MAX),
            vocab_size: config.text.vocab_size,
        })
    }
}

/// Embeddings that fit `bytes` with their deepstack levels; at least those of one encoder batch.
fn encoder_rows(vision: &VisionConfig, device: &Device, bytes: usize, max_patches: usize) -> usize {
    let row_bytes =
        vision.out_hidden_size * (1 + vision.deepstack_visual_indexes.len()) * device.activation_dtype().size_bytes();
    (bytes / row_bytes.max(1)).max(max_patches / vision.merge_unit().max(1)).min(i32::MAX as usize)
}
