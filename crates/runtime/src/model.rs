//! A model folder, loaded: processor and engine put together.

use std::borrow::Cow;
use std::cell::RefCell;

use foveal_checkpoint::{CheckpointError, GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_device::Device;
use foveal_engine::{Engine, EngineBuilder, EngineError};
use foveal_llm::GenerationDefaults;
use foveal_mrope::{PositionRule, TemporalRule};
use foveal_processor::{ChatRequest, Limits, Normalization, Processor, ProcessorError, ProcessorSettings};
use foveal_types::{HeapPixels, PreparedRequest, SamplingParams, TokenId};
use foveal_vision::Normalisation;
use serde_json::Value;

use crate::{Answer, ModelOptions, RuntimeError};

/// A model that answers: processor and engine put together. Share it between threads by reference or in an `Arc`.
#[derive(Debug)]
pub struct Model {
    name: String,
    processor: Processor,
    engine: Engine,
    defaults: GenerationDefaults,
}

impl Model {
    /// Loads a model folder. `on_progress(done_bytes, total_bytes)` is called as the weights are taken in.
    ///
    /// # Errors
    /// [`RuntimeError`] with the file, the tensor or the option that is wrong.
    pub fn load(
        folder: &ModelFolder,
        options: &ModelOptions,
        on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Self, RuntimeError> {
        let device = Device::open(options.device, options.threads)?;
        let config = ModelConfig::load(folder)?;
        config.ensure_supported()?;
        let defaults =
            GenerationDefaults::new(&GenerationConfig::load(folder, &config.text)?).map_err(EngineError::from)?;
        let limit = config.text.max_position_embeddings;
        let max_model_len = options.max_model_len.unwrap_or(limit.min(EngineBuilder::DEFAULT_MAX_MODEL_LEN));
        let processor = open_processor(folder, &config, max_model_len, options)?;
        // A picture as large as the model's settings allow fits, if its tokens fit the conversation.
        let budget = processor.vision_config().map(|vision| {
            let patch_pixels = u64::from(vision.patch_size) * u64::from(vision.patch_size);
            usize::try_from(vision.budget.max_pixels / patch_pixels.max(1)).unwrap_or(usize::MAX)
        });
        let normalization = processor.normalization().map(|(stills, _)| stills);
        let weights = WeightSource::open(folder)?.with_progress(on_progress);
        let engine = Engine::builder()
            .model(config, weights)
            .generation_defaults(defaults.clone())
            .normalisation(normalisation(normalization))
            .device(device)
            .max_model_len(max_model_len)
            .max_patches(budget.unwrap_or(1))
            .build()?;
        Ok(Self { name: folder.name().to_owned(), processor, engine, defaults })
    }

    /// The folder's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a request's parameters are before it sets any: those of the model's generation_config.json.
    #[must_use]
    pub fn default_sampling(&self) -> SamplingParams {
        self.defaults.sampling.clone()
    }

    /// What turns chats into requests.
    #[must_use]
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// What answers requests.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Template, tokens, pictures and positions of a chat.
    ///
    /// # Errors
    /// What is wrong with the messages, by class.
    pub fn prepare(&self, chat: &ChatRequest, sampling: SamplingParams) -> Result<PreparedRequest, ProcessorError> {
        self.processor.prepare(chat, sampling, &HeapPixels)
    }

    /// Starts the answer to a prepared request.
    #[must_use = "dropping the answer cancels it"]
    pub fn answer(&self, request: PreparedRequest) -> Answer {
        let detokenizer = self.processor.detokenizer(&request.sampling.stop);
        let counts = Answer::counts_before(&request);
        Answer::new(self.engine.generate(request).blocking(), detokenizer, counts)
    }
}

/// What the processor needs to know of a model's `config.json`.
#[must_use]
pub fn processor_settings(config: &ModelConfig, max_model_len: usize) -> ProcessorSettings {
    let temporal = match config.vision.tokens_per_second {
        Some(tokens_per_second) => TemporalRule::Seconds { tokens_per_second },
        None if config.family.is_qwen2() => TemporalRule::FrameIndex,
        None => TemporalRule::FramesBetweenTimestamps,
    };
    let spatial_merge_size = u32::try_from(config.vision.spatial_merge_size).unwrap_or(u32::MAX);
    ProcessorSettings {
        image_token_id: TokenId(config.image_token_id),
        video_token_id: TokenId(config.video_token_id),
        vision_start_token_id: TokenId(config.vision_start_token_id),
        vision_end_token_id: TokenId(config.vision_end_token_id),
        position_rule: PositionRule { spatial_merge_size, temporal },
        max_model_len,
        limits: Limits::default(),
    }
}

fn open_processor(
    folder: &ModelFolder,
    config: &ModelConfig,
    max_model_len: usize,
    options: &ModelOptions,
) -> Result<Processor, RuntimeError> {
    // The reader can only say that there is no file; why one can't be read is kept here.
    let unreadable: RefCell<Option<CheckpointError>> = RefCell::new(None);
    let read = |name: &str| {
        let bytes = folder.file(name).unwrap_or_else(|error| {
            unreadable.borrow_mut().get_or_insert(error);
            None
        })?;
        Some(if name == "preprocessor_config.json" { with_pixel_limits(bytes, options) } else { bytes })
    };
    let opened = Processor::from_reader(read, processor_settings(config, max_model_len));
    if let Some(error) = unreadable.into_inner() {
        return Err(error.into());
    }
    let wrong = |source| RuntimeError::Processor { folder: folder.name().to_owned(), source };
    let processor = opened.map_err(wrong)?;
    let (patch_size, temporal) = (config.vision.patch_size, config.vision.temporal_patch_size);
    match processor.vision_config() {
        Some(vision) if vision.patch_size as usize != patch_size || vision.temporal_patch_size as usize != temporal => {
            let file = "preprocessor_config.json".to_owned();
            let (got, got_temporal) = (vision.patch_size, vision.temporal_patch_size);
            let reason = format!(
                "patches of {got} pixels and {got_temporal} frames; config.json says {patch_size} and {temporal}"
            );
            Err(wrong(ProcessorError::BadFile { file, reason }))
        }
        _ => Ok(processor),
    }
}

/// The picture settings with the caller's pixel limits written over the model's. A file that is no JSON object is left
/// for the processor to complain about.
fn with_pixel_limits<'a>(bytes: Cow<'a, [u8]>, options: &ModelOptions) -> Cow<'a, [u8]> {
    let limits = [("min_pixels", options.min_pixels), ("max_pixels", options.max_pixels)];
    if limits.iter().all(|(_, limit)| limit.is_none()) {
        return bytes;
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else { return bytes };
    for (name, limit) in limits {
        if let Some(limit) = limit {
            fields.insert(name.to_owned(), limit.into());
        }
    }
    serde_json::to_vec(&fields).map_or(bytes, Cow::Owned)
}

/// The processor's normalisation as the tower takes it, which divides bytes by 255 itself.
fn normalisation(normalization: Option<Normalization>) -> Normalisation {
    let Some(Normalization { rescale_factor, mean, std }) = normalization else {
        return Normalisation { mean: [0.0; 3], std: [1.0; 3] };
    };
    let scale = rescale_factor * 255.0;
    // 1/255 as a float32 times 255 need not be 1 to the last bit.
    if (scale - 1.0).abs() < 1e-6 {
        return Normalisation { mean, std };
    }
    Normalisation { mean: mean.map(|mean| mean / scale), std: std.map(|std| std / scale) }
}
