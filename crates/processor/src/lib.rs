//! Text and pictures to model input for the Qwen vision-language family, without a device.
//!
//! A [`Processor`] opens a model folder and turns a [`ChatRequest`] into a [`foveal_types::PreparedRequest`]: the chat
//! template rendered as Python renders it, the ids that HF's tokenizers give, pictures decoded, resized and cut into
//! patches with torchvision's bytes, placeholders expanded, M-RoPE positions and content hashes. A [`Detokenizer`] goes
//! the other way, a token at a time.
//!
//! - Special tokens that a person types stay plain text; placeholders come from the request's structure.
//! - Pixels are written once, as bytes in patch order, into memory that the caller lends; [`Normalization`] tells what the
//!   model's side does to them.
//! - Limits are checked on headers and lengths before anything is decoded.
//! - Errors are in our own words and of a class: [`ProcessorError`] converts to [`foveal_types::Error`].
//!
//! ```
//! use std::path::Path;
//!
//! use foveal_mrope::{PositionRule, TemporalRule};
//! use foveal_processor::{ChatRequest, Limits, Message, Processor, ProcessorSettings, Role};
//! use foveal_types::{HeapPixels, SamplingParams, TokenId};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny");
//! # if !Path::new(folder).join("tokenizer.json").exists() { return Ok(()) }
//! // These numbers come from the model's config.json.
//! let settings = ProcessorSettings {
//!     image_token_id: TokenId(1010),
//!     video_token_id: TokenId(1011),
//!     vision_start_token_id: TokenId(1007),
//!     vision_end_token_id: TokenId(1008),
//!     position_rule: PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps },
//!     max_model_len: 8192,
//!     limits: Limits::default(),
//! };
//! let processor = Processor::open(Path::new(folder), settings)?;
//! let chat = ChatRequest::new(vec![Message::text(Role::User, "Hello")]);
//! let request = processor.prepare(&chat, SamplingParams::default(), &HeapPixels)?;
//! assert_eq!(request.input_ids.first(), processor.tokenizer().added_token_id("<|im_start|>").as_ref());
//! # Ok::<(), foveal_processor::ProcessorError>(())
//! ```
#![forbid(unsafe_code)]

mod added_tokens;
mod answer_text;
mod byte_level;
mod chat_template;
mod config;
mod decode;
mod detokenizer;
mod error;
mod gif;
mod hash;
mod jpeg;
mod limits;
mod markers;
mod message;
mod model_files;
mod patchify;
mod pictures;
mod png;
mod processor;
mod prompt;
#[cfg(doctest)]
mod readme;
mod resize;
mod smart_resize;
mod stop_strings;
mod template_functions;
mod tokenizer;
mod webp;
mod word_split;

pub use answer_text::{AnswerEvent, AnswerText};
pub use config::{Normalization, VisionConfig};
pub use decode::{ImageInput, RgbPicture, decode, probe};
pub use detokenizer::{Detokenizer, TextChunk};
pub use error::{PictureError, ProcessorError};
pub use foveal_mrope::VideoMeta;
pub use limits::Limits;
pub use message::{ChatRequest, Content, ContentPart, ImagePixels, Message, Role, VideoFrames};
pub use processor::{Processor, ProcessorSettings};
pub use resize::resize_rgb;
pub use smart_resize::{PixelBudget, smart_resize, smart_resize_video};
pub use tokenizer::Tokenizer;
