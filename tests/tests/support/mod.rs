//! The reference checkpoints' parts, each opened from the same folder.

use foveal_checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_device::Device;
use foveal_engine::{Engine, EngineBuilder};
use foveal_llm::GenerationDefaults;
use foveal_processor::{ChatRequest, ContentPart, ImageInput, Message, Processor, Role};
use foveal_runtime::processor_settings;
use foveal_testkit::{Golden, GoldenCase, fixtures_dir};
use foveal_types::{Delta, HeapPixels, PreparedRequest, SamplingParams, TokenOutput};
use foveal_vision::Normalisation;

/// Longer than every reference prompt with its answer.
pub(crate) const MAX_MODEL_LEN: usize = 1024;

/// One reference checkpoint, and what is derived from its small files.
pub(crate) struct Reference {
    pub(crate) golden: Golden,
    pub(crate) folder: ModelFolder,
    pub(crate) config: ModelConfig,
    pub(crate) processor: Processor,
    pub(crate) normalisation: Normalisation,
    pub(crate) device: Device,
}

impl Reference {
    pub(crate) fn open(family: &str, device: Device) -> Self {
        let golden = Golden::open(family);
        let folder = ModelFolder::open(golden.model_dir()).unwrap();
        let config = ModelConfig::load(&folder).unwrap();
        // The small random checkpoints share the tiny model's tokenizer and template.
        let (own, tiny) = (folder.clone(), ModelFolder::open(fixtures_dir().join("tiny")).unwrap());
        let read = move |name: &str| own.file(name).unwrap().or_else(|| tiny.file(name).unwrap());
        let processor = Processor::from_reader(read, processor_settings(&config, MAX_MODEL_LEN)).unwrap();
        let (stills, _) = processor.normalization().unwrap();
        let normalisation = Normalisation { mean: stills.mean, std: stills.std };
        Self { golden, folder, config, processor, normalisation, device }
    }

    /// The weights: of the file, or by the formula.
    pub(crate) fn weights(&self) -> WeightSource {
        match self.folder.file("manifest.json").unwrap() {
            Some(manifest) => WeightSource::rebuilt(&manifest, self.folder.name()).unwrap(),
            None => WeightSource::open(&self.folder).unwrap(),
        }
    }

    pub(crate) fn engine(&self) -> EngineBuilder {
        let generation = GenerationConfig::load(&self.folder, &self.config.text).unwrap();
        Engine::builder()
            .model(self.config.clone(), self.weights())
            .normalisation(self.normalisation)
            .generation_defaults(GenerationDefaults::new(&generation).unwrap())
            .device(self.device.clone())
            .max_model_len(MAX_MODEL_LEN)
    }

    /// A reference case as the engine takes it: 32 new tokens at most, greedy, the five best of each step.
    pub(crate) fn prepare(&self, case: &GoldenCase) -> PreparedRequest {
        let read = |name: &String| {
            let bytes = std::fs::read(Golden::image(name)).unwrap();
            ContentPart::Image(ImageInput::Bytes(bytes.into()))
        };
        let mut parts: Vec<ContentPart> = case.images.iter().map(read).collect();
        parts.push(ContentPart::Text(case.question.clone()));
        self.prepare_parts(parts)
    }

    /// What a user says, asked in the same way.
    pub(crate) fn prepare_parts(&self, parts: Vec<ContentPart>) -> PreparedRequest {
        let chat = ChatRequest::new(vec![Message::parts(Role::User, parts)]);
        let sampling = SamplingParams { max_tokens: Some(32), logprobs: Some(5), ..SamplingParams::default() };
        self.processor.prepare(&chat, sampling, &HeapPixels).unwrap()
    }
}

/// All tokens of an answer.
pub(crate) fn answer(engine: &Engine, request: PreparedRequest) -> Vec<TokenOutput> {
    let mut tokens = Vec::new();
    for delta in engine.generate(request).blocking() {
        if let Delta::Token(token) = delta.unwrap() {
            tokens.push(token);
        }
    }
    tokens
}
