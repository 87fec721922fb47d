//! A model folder, loaded: processor and engine put together.

use foveal_checkpoint::ModelFolder;
use foveal_engine::Engine;
use foveal_llm::GenerationDefaults;
use foveal_processor::{ChatRequest, Processor, ProcessorError};
use foveal_types::{PreparedRequest, SamplingParams};

use crate::parts::{Parts, most_patches};
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
        let Parts { device, config, defaults, max_model_len, processor, normalisation, weights } =
            Parts::open(folder, options, on_progress)?;
        let kv_cache_dtype = options.kv_cache_dtype.unwrap_or(device.activation_dtype());
        let mut builder = Engine::builder();
        if let Some(sequences) = options.max_num_seqs {
            builder = builder.max_num_seqs(sequences);
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
        self.processor.prepare(chat, sampling, self.engine.pixels())
    }

    /// Starts the answer to a prepared request.
    #[must_use = "dropping the answer cancels it"]
    pub fn answer(&self, request: PreparedRequest) -> Answer {
        let detokenizer = self.processor.detokenizer(&request.sampling.stop);
        let counts = Answer::counts_before(&request);
        Answer::new(self.engine.generate(request).blocking(), detokenizer, counts)
    }
}
