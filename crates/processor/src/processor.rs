//! The processor: a chat with pictures in, a prepared request out.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foveal_mrope::{PositionRule, Span, TemporalRule, position_ids};
use foveal_types::{PixelLender, PreparedRequest, SamplingParams, TokenId};
use serde_json::Value;

use crate::chat_template::{ChatTemplate, Origin};
use crate::config::{Defaults, Normalization, VisionConfig};
use crate::detokenizer::Detokenizer;
use crate::error::ProcessorError;
use crate::limits::Limits;
use crate::markers::UsedMarkers;
use crate::message::{ChatRequest, Content, ContentPart};
use crate::model_files::ModelFiles;
use crate::pictures::PicturePipeline;
use crate::prompt::{Expansion, Prompt, VisionTokens, tokenize_prompt};
use crate::tokenizer::Tokenizer;

/// What the model's `config.json` says about prompts; whoever parses that file fills this in.
#[derive(Clone, Debug)]
pub struct ProcessorSettings {
    /// The placeholder of a still picture (`<|image_pad|>`).
    pub image_token_id: TokenId,
    /// The placeholder of a video (`<|video_pad|>`).
    pub video_token_id: TokenId,
    /// `<|vision_start|>`.
    pub vision_start_token_id: TokenId,
    /// `<|vision_end|>`.
    pub vision_end_token_id: TokenId,
    /// How tokens are positioned; its temporal rule also tells how videos stand in a prompt.
    pub position_rule: PositionRule,
    /// The most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// What a request may cost.
    pub limits: Limits,
}

/// Turns chats into requests for the engine. `Send` and `Sync`: share one in an `Arc`.
///
/// Preparing blocks the calling thread and uses the threads of rayon's current pool for several pictures; call it off an async
/// runtime's workers, and within `ThreadPool::install` to bound it apart from other work.
pub struct Processor {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    pictures: Option<PicturePipeline>,
    vision: VisionTokens,
    settings: ProcessorSettings,
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor")
            .field("tokenizer", &self.tokenizer)
            .field("pictures", &self.pictures)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Processor {
    /// Opens a model folder: `tokenizer.json`, the chat template, `preprocessor_config.json` and
    /// `video_preprocessor_config.json`. Without the last two the model takes text only; without the last one alone, the
    /// one before it speaks for videos, too.
    ///
    /// # Errors
    /// [`ProcessorError`] that names the file that is missing, unreadable, wrong or asks for something unsupported.
    pub fn open(dir: &Path, settings: ProcessorSettings) -> Result<Self, ProcessorError> {
        Self::from_files(&ModelFiles::folder(dir), settings)
    }

    /// Opens a model whose files come from elsewhere, such as the program itself: `read` gives a file's bytes by its name
    /// in the model folder.
    ///
    /// # Errors
    /// As [`Processor::open`].
    pub fn from_reader<'a>(
        read: impl Fn(&str) -> Option<Cow<'a, [u8]>> + 'a,
        settings: ProcessorSettings,
    ) -> Result<Self, ProcessorError> {
        Self::from_files(&ModelFiles::closure(read), settings)
    }

    fn from_files(files: &ModelFiles<'_>, settings: ProcessorSettings) -> Result<Self, ProcessorError> {
        let need = "text can't be tokenised without it";
        let bytes =
            files.bytes("tokenizer.json")?.ok_or(ProcessorError::MissingFile { file: "tokenizer.json", need })?;
        let tokenizer = Tokenizer::from_bytes(&bytes)?;
        let template = ChatTemplate::load(files)?;
        let pictures = picture_pipeline(files, &settings)?;
        let vision = VisionTokens {
            image: settings.image_token_id,
            video: settings.video_token_id,
            start: settings.vision_start_token_id,
            end: settings.vision_end_token_id,
        };
        if pictures.is_some() {
            let ids = [vision.image, vision.video, vision.start, vision.end];
            if let Some(missing) = ids.into_iter().find(|&id| tokenizer.added().get(id).is_none()) {
                let reason = format!("the config's vision token {} isn't among the added tokens", missing.0);
                return Err(ProcessorError::bad_file("tokenizer.json", reason));
            }
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), template, pictures, vision, settings })
    }

    /// Renders, tokenises and positions a chat, decodes its pictures into memory that `lender` lends, and checks all of it.
    ///
    /// # Errors
    /// [`ProcessorError`]: what is wrong with the request and where, or that there is no pixel memory now.
    pub fn prepare(
        &self,
        chat: &ChatRequest,
        sampling: SamplingParams,
        lender: &dyn PixelLender,
    ) -> Result<PreparedRequest, ProcessorError> {
        self.prepare_cancellable(chat, sampling, lender, &|| false)
    }

    /// [`Processor::prepare`] for somebody who may leave: `is_cancelled` is asked before each picture or frame is decoded and before
    /// a picture is resized, by several threads. A decoder that has begun comes to its end.
    ///
    /// # Errors
    /// [`ProcessorError::Cancelled`] once `is_cancelled` has said yes, and as [`Processor::prepare`].
    pub fn prepare_cancellable(
        &self,
        chat: &ChatRequest,
        sampling: SamplingParams,
        lender: &dyn PixelLender,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<PreparedRequest, ProcessorError> {
        sampling.validate()?;
        let pictures = chat.pictures();
        if pictures.is_empty() {
            // The way of text alone: nothing of `pictures.rs`, `decode.rs` or `resize.rs` is called from here.
            let prompt = self.prompt(chat, &[])?;
            return self.request(prompt, Vec::new(), sampling);
        }
        let pipeline = self.pictures.as_ref().ok_or(ProcessorError::NoPictures)?;
        let plans = pipeline.plan(pictures, chat.image_pixels)?;
        let expansions: Vec<Expansion> = plans.iter().map(|plan| plan.expansion.clone()).collect();
        let prompt = self.prompt(chat, &expansions)?;
        let images = pipeline.prepare(&plans, &prompt.starts, lender, is_cancelled)?;
        self.request(prompt, images, sampling)
    }

    /// The tokens of a whole prompt without a chat, in which control tokens are meant as such: [`Tokenizer::encode`] within the
    /// limit on text.
    ///
    /// # Errors
    /// [`ProcessorError::TooMuchText`], and as [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, ProcessorError> {
        self.settings.limits.check_text(text.len())?;
        self.tokenizer.encode(text)
    }

    /// Positions a prompt without a chat: the tokens as they are, as [`Processor::encode_prompt`] gives them.
    ///
    /// # Errors
    /// An empty prompt, one that doesn't fit the model, and one with a token that stands for a picture.
    pub fn prepare_tokens(
        &self,
        input_ids: Vec<TokenId>,
        sampling: SamplingParams,
    ) -> Result<PreparedRequest, ProcessorError> {
        sampling.validate()?;
        let placeholders = [self.vision.image, self.vision.video];
        if let Some(index) = input_ids.iter().position(|id| placeholders.contains(id)) {
            return Err(ProcessorError::PlaceholderInText { index });
        }
        self.check_len(input_ids.len())?;
        let spans = Vec::from_iter(Some(Span::Text { len: input_ids.len() }));
        self.request(Prompt { ids: input_ids, ranges: Vec::new(), spans, starts: Vec::new() }, Vec::new(), sampling)
    }

    /// What a request may cost.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    /// The chat as text, exactly as the template writes it in Python: for people to read, not for tokenising, because
    /// control tokens that a person typed look like the template's own in it.
    ///
    /// # Errors
    /// What the template refuses or can't do.
    pub fn render(&self, chat: &ChatRequest) -> Result<String, ProcessorError> {
        self.template.render(chat, &|_, _| None)
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Starts turning an answer's tokens into text that ends before any of `stop`.
    #[must_use]
    pub fn detokenizer(&self, stop: &[String]) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.tokenizer), stop)
    }

    /// What the model's side does to the pixels, stills first, then videos; `None` for a model of text alone.
    #[must_use]
    pub fn normalization(&self) -> Option<(Normalization, Normalization)> {
        self.pictures.as_ref().map(|p| (p.image.normalization(), p.video.normalization()))
    }

    /// How the model wants its still pictures; `None` for a model of text alone.
    #[must_use]
    pub fn vision_config(&self) -> Option<&VisionConfig> {
        self.pictures.as_ref().map(|p| &p.image)
    }

    /// Pictures and frames decoded so far, for a metric.
    #[must_use]
    pub fn num_decoded_pictures(&self) -> u64 {
        self.pictures.as_ref().map_or(0, |p| p.num_decoded.load(Ordering::Relaxed))
    }

    /// The tokens of the whole chat, checked against the model's length.
    fn prompt(&self, chat: &ChatRequest, expansions: &[Expansion]) -> Result<Prompt, ProcessorError> {
        let strings = strings_of(chat);
        self.settings.limits.check_text(strings.iter().map(|s| s.len()).sum())?;
        let mut used = UsedMarkers::new();
        self.template.for_each_source(|source| used.note(source));
        strings.iter().for_each(|s| used.note(s));
        let marker = used.first_free()?;
        let added = self.tokenizer.added();
        let enter = |text: &str, origin: Origin| added.mark(text, origin, marker);
        let rendered = self.template.render(chat, &enter).map_err(|error| match error {
            ProcessorError::TemplateRefused { message } => {
                ProcessorError::TemplateRefused { message: message.replace(marker, "") }
            }
            other => other,
        })?;
        let merge_size = self.settings.position_rule.spatial_merge_size;
        let prompt = tokenize_prompt(&rendered, marker, &self.tokenizer, self.vision, expansions, merge_size)?;
        self.check_len(prompt.ids.len())?;
        Ok(prompt)
    }

    fn check_len(&self, prompt_tokens: usize) -> Result<(), ProcessorError> {
        let max_model_len = self.settings.max_model_len;
        match prompt_tokens {
            0 => Err(ProcessorError::EmptyPrompt),
            // The answer needs a place, too.
            _ if prompt_tokens >= max_model_len => Err(ProcessorError::TooLong { prompt_tokens, max_model_len }),
            _ => Ok(()),
        }
    }

    /// Positions the tokens and puts everything together.
    fn request(
        &self,
        prompt: Prompt,
        images: Vec<foveal_types::PreparedImage>,
        sampling: SamplingParams,
    ) -> Result<PreparedRequest, ProcessorError> {
        let positions = position_ids(&prompt.spans, &self.settings.position_rule)
            .map_err(|error| ProcessorError::Positions { reason: error.to_string() })?;
        let request = PreparedRequest {
            input_ids: prompt.ids,
            image_token_ranges: prompt.ranges,
            rope_delta: positions.delta(),
            positions: positions.into_vec(),
            images,
            sampling,
        };
        request.validate(self.settings.position_rule.spatial_merge_size)?;
        Ok(request)
    }
}

/// The picture settings, if the model has any.
fn picture_pipeline(
    files: &ModelFiles<'_>,
    settings: &ProcessorSettings,
) -> Result<Option<PicturePipeline>, ProcessorError> {
    const IMAGE: &str = "preprocessor_config.json";
    const VIDEO: &str = "video_preprocessor_config.json";
    let Some(bytes) = files.bytes(IMAGE)? else {
        if files.bytes(VIDEO)?.is_some() {
            let need = "there is a `video_preprocessor_config.json`, and still pictures need their settings, too";
            return Err(ProcessorError::MissingFile { file: IMAGE, need });
        }
        return Ok(None);
    };
    let temporal = settings.position_rule.temporal;
    let defaults = match temporal {
        TemporalRule::FramesBetweenTimestamps => Defaults::VIDEO_QWEN3,
        _ => Defaults::VIDEO_QWEN2,
    };
    let image = VisionConfig::parse(&bytes, IMAGE, Defaults::IMAGE)?;
    let video = match files.bytes(VIDEO)? {
        Some(bytes) => VisionConfig::parse(&bytes, VIDEO, defaults)?,
        // Models older than the second file say it all in the first, as HF's loader has it.
        None => VisionConfig::parse(&bytes, IMAGE, defaults)?,
    };
    for (config, file) in [(&image, IMAGE), (&video, VIDEO)] {
        let expected = settings.position_rule.spatial_merge_size;
        if config.merge_size != expected {
            let got = config.merge_size;
            let reason = format!("`merge_size` is {got}; the model's `spatial_merge_size` is {expected}");
            return Err(ProcessorError::bad_file(file, reason));
        }
    }
    let (limits, num_decoded) = (settings.limits.clone(), AtomicU64::new(0));
    Ok(Some(PicturePipeline { image, video, temporal, limits, num_decoded }))
}

/// Every string of the request that a template can see, keys included.
fn strings_of(chat: &ChatRequest) -> Vec<&str> {
    fn json<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::String(s) => out.push(s),
            Value::Array(items) => items.iter().for_each(|v| json(v, out)),
            Value::Object(map) => map.iter().for_each(|(key, v)| {
                out.push(key);
                json(v, out);
            }),
            _ => {}
        }
    }
    let mut out = Vec::new();
    for message in &chat.messages {
        match &message.content {
            Content::Text(text) => out.push(text.as_str()),
            Content::Parts(parts) => out.extend(parts.iter().filter_map(|part| match part {
                ContentPart::Text(text) => Some(text.as_str()),
                _ => None,
            })),
        }
        message.fields.values().for_each(|v| json(v, &mut out));
    }
    chat.tools.iter().chain(chat.template_kwargs.values()).for_each(|v| json(v, &mut out));
    out
}
