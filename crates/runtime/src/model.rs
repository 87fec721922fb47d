//! A model folder, loaded: processor and engine put together.

use std::sync::Arc;

use foveal_checkpoint::ModelFolder;
use foveal_engine::Engine;
use foveal_llm::GenerationDefaults;
use foveal_mrope::PositionRule;
use foveal_processor::{AnswerText, ChatRequest, Processor, ProcessorError};
use foveal_types::{PreparedRequest, SamplingParams, TokenId};

use crate::parts::{Parts, most_patches, processor_settings};
use crate::{Answer, ModelOptions, RuntimeError};

/// A model that answers: processor and engine put together. Share it between threads by reference or in an `Arc`.
#[derive(Debug)]
pub struct Model {
    name: String,
    processor: Arc<Processor>,
    engine: Engine,
    defaults: GenerationDefaults,
    position_rule: PositionRule,
    image_token_id: TokenId,
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
        let Parts { device, config, defaults, max_model_len, processor, normalisation, weights } =
            Parts::open(folder, options, on_progress)?;
        let kv_cache_dtype = options.kv_cache_dtype.unwrap_or(device.activation_dtype());
        let settings = processor_settings(&config, max_model_len);
        let mut builder = Engine::builder()
            .enforce_eager(options.enforce_eager)
            .run_ahead(options.run_ahead)
            .prefix_caching(!options.no_prefix_caching);
        if let Some(sequences) = options.max_num_seqs {
            builder = builder.max_num_seqs(sequences);
        }
        if let Some(tokens) = options.max_num_batched_tokens {
            builder = builder.max_num_batched_tokens(tokens);
        }
        if let Some(requests) = options.max_waiting {
            builder = builder.max_waiting(requests);
        }
        if let Some(bytes) = options.pinned_bytes {
            builder = builder.pinned_bytes(bytes);
        }
        if let Some(bytes) = options.kv_cache_bytes {
            builder = builder.kv_cache_bytes(bytes);
        }
        if let Some(share) = options.gpu_memory_utilization {
            builder = builder.gpu_memory_utilization(share);
        }
        let engine = builder
            .model(config, weights)
            .quantization(options.quantization)
            .kv_cache_dtype(kv_cache_dtype)
            .generation_defaults(defaults.clone())
            .normalisation(normalisation)
            .device(device)
            .max_model_len(max_model_len)
            // What fits the conversation fits the workspace: the engine takes no more than the conversation can hold.
            .max_patches(processor.vision_config().map_or(1, most_patches))
            .build()?;
        let name = folder.name().to_owned();
        let (position_rule, image_token_id) = (settings.position_rule, settings.image_token_id);
        Ok(Self { name, processor: Arc::new(processor), engine, defaults, position_rule, image_token_id })
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

    /// How prompts are positioned.
    pub(crate) fn position_rule(&self) -> PositionRule {
        self.position_rule
    }

    /// The token that stands for a picture's embeddings.
    pub(crate) fn image_token_id(&self) -> TokenId {
        self.image_token_id
    }

    /// What turns chats into requests.
    #[must_use]
    pub fn processor(&self) -> &Arc<Processor> {
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
        self.processor.prepare(chat, sampling, self.engine.pixels())
    }

    /// Starts the answer to a prepared request.
    #[must_use = "dropping the answer cancels it"]
    pub fn answer(&self, request: PreparedRequest) -> Answer {
        let text = AnswerText::new(&request, self.processor.detokenizer(&request.sampling.stop));
        Answer::new(self.engine.generate(request).blocking(), text)
    }
}
