//! Everything that can go wrong here, in our own words: no text of a library, no address of memory or file system beyond
//! the names that the caller gave.

use foveal_types::{DeviceFailure, Error, Exhausted, RequestError};
use thiserror::Error as ThisError;

/// Why a picture can't be prepared.
#[derive(Clone, Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum PictureError {
    /// The first bytes belong to none of the formats.
    #[error("the format isn't known; JPEG, PNG, WebP, GIF and BMP are read")]
    UnknownFormat,
    /// The file ends before its picture does.
    #[error("the {format} data ends before the picture is complete; send the whole file")]
    Truncated {
        /// The format's name.
        format: &'static str,
    },
    /// The file can't be decoded.
    #[error("the {format} data is damaged or uses a variant that isn't read")]
    Undecodable {
        /// The format's name.
        format: &'static str,
    },
    /// More bytes than allowed.
    #[error("{len_bytes} bytes; at most {max_bytes} are taken")]
    TooManyBytes {
        /// The encoded size.
        len_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// More pixels than allowed.
    #[error("{width}x{height} is {pixels} pixels; at most {max_pixels} are taken")]
    TooManyPixels {
        /// The stored width.
        width: u32,
        /// The stored height.
        height: u32,
        /// Their product.
        pixels: u64,
        /// The limit.
        max_pixels: u64,
    },
    /// More bytes of a lossless WebP than allowed.
    #[error("the WebP has {len_bytes} bytes of lossless data; at most {max_bytes} are taken, send it as PNG")]
    LosslessWebpTooLarge {
        /// The bitstream's size.
        len_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// More scans than a JPEG may have; each costs a pass over the whole picture.
    #[error("the JPEG has more than {max_scans} scans; save it with fewer")]
    TooManyScans {
        /// The limit.
        max_scans: usize,
    },
    /// A side of zero pixels.
    #[error("{width}x{height} holds no pixel")]
    Empty {
        /// The width.
        width: u32,
        /// The height.
        height: u32,
    },
    /// One side is more than 200 times the other.
    #[error("{width}x{height}: the longer side may be at most 200 times the shorter one")]
    AspectRatio {
        /// The width.
        width: u32,
        /// The height.
        height: u32,
    },
    /// The model's pixel limits leave no size for this picture.
    #[error("{width}x{height} becomes smaller than one patch cell of {factor} pixels under the model's pixel limits")]
    BelowOneCell {
        /// The width.
        width: u32,
        /// The height.
        height: u32,
        /// The side of a merged patch cell.
        factor: u32,
    },
    /// A decoded picture whose byte count isn't width * height * 3.
    #[error("{len_bytes} bytes of RGB for {width}x{height}; {expected_bytes} were expected")]
    RawSize {
        /// The width.
        width: u32,
        /// The height.
        height: u32,
        /// The bytes that came.
        len_bytes: usize,
        /// The bytes that belong to the size.
        expected_bytes: u64,
    },
    /// The frames of one video differ in size.
    #[error("frame {frame} is {got_width}x{got_height}; the video's first frame is {width}x{height}")]
    FrameSize {
        /// The frame's index among the given ones.
        frame: usize,
        /// Its width.
        got_width: u32,
        /// Its height.
        got_height: u32,
        /// The first frame's width.
        width: u32,
        /// The first frame's height.
        height: u32,
    },
    /// A video with fewer frames than one temporal patch, or none.
    #[error("{frames} video frames; at least {min_frames} are needed")]
    TooFewFrames {
        /// The frames that came.
        frames: usize,
        /// The fewest that the model takes.
        min_frames: usize,
    },
    /// The frame indices or the frame rate don't fit the frames.
    #[error("the video's metadata is wrong: {reason}")]
    VideoMeta {
        /// What is wrong.
        reason: &'static str,
    },
}

/// Everything that can go wrong in this crate.
#[derive(Clone, Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file that the model folder must hold isn't there.
    #[error("the model has no `{file}`; {need}")]
    MissingFile {
        /// The file.
        file: &'static str,
        /// What it is needed for.
        need: &'static str,
    },
    /// A file can't be read.
    #[error("`{file}` can't be read: {reason}")]
    UnreadableFile {
        /// The file.
        file: String,
        /// The kind of failure.
        reason: String,
    },
    /// A file of the model doesn't hold what it should.
    #[error("`{file}`: {reason}")]
    BadFile {
        /// The file.
        file: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The model asks for something that this processor doesn't do.
    #[error("`{file}` asks for {what}, which isn't supported")]
    Unsupported {
        /// The file.
        file: String,
        /// What it asks for.
        what: String,
    },
    /// The template refused the messages, in the template's own words.
    #[error("the chat template refuses the messages: {message}")]
    TemplateRefused {
        /// What the template's `raise_exception` said.
        message: String,
    },
    /// The template failed on the messages.
    #[error("the chat template can't be applied to these messages (template line {line}: {reason})")]
    TemplateFailed {
        /// The line of the template.
        line: usize,
        /// What kind of failure.
        reason: &'static str,
    },
    /// The request's text holds every private-use character, so none is left to mark it with.
    #[error("the text uses all of Unicode's supplementary private-use characters; remove one of them")]
    NoMarkerLeft,
    /// The prompt's placeholders aren't the request's pictures.
    #[error("the template wrote {placeholders} picture placeholders for {pictures} pictures and videos{detail}")]
    PlaceholderMismatch {
        /// Placeholders that the template wrote.
        placeholders: usize,
        /// Pictures and videos of the messages.
        pictures: usize,
        /// Which one differs, if the counts agree.
        detail: String,
    },
    /// More pictures than allowed.
    #[error("{pictures} pictures and videos in one request; at most {max_pictures} are taken")]
    TooManyPictures {
        /// How many came.
        pictures: usize,
        /// The limit.
        max_pictures: usize,
    },
    /// More video frames than allowed.
    #[error("{frames} video frames in one request; at most {max_frames} are taken")]
    TooManyFrames {
        /// How many came.
        frames: usize,
        /// The limit.
        max_frames: usize,
    },
    /// More text than allowed.
    #[error("{len_bytes} bytes of text; at most {max_bytes} are taken")]
    TooMuchText {
        /// How much came.
        len_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The request's pictures decode to more bytes than allowed.
    #[error("the request's pictures decode to {decoded_bytes} bytes; at most {max_bytes} are taken")]
    TooManyDecodedBytes {
        /// Their decoded size.
        decoded_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The prompt doesn't fit the model.
    #[error("the prompt has {prompt_tokens} tokens; the model takes at most {max_model_len}, the answer included")]
    TooLong {
        /// The prompt's tokens.
        prompt_tokens: usize,
        /// The model's length.
        max_model_len: usize,
    },
    /// A picture is wrong.
    #[error("picture {index}: {source}")]
    Picture {
        /// The picture's number in the request, from 0.
        index: usize,
        /// The field it came from.
        param: String,
        /// What is wrong.
        source: PictureError,
    },
    /// A pixel limit of one chat lies outside of the model's.
    #[error("`{name}` is {got}; this model takes {min} to {max} here")]
    ImagePixels {
        /// `min_pixels` or `max_pixels`.
        name: &'static str,
        /// What the chat asks for.
        got: u64,
        /// The least that it may ask for.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A prompt without a chat has a token that stands for a picture.
    #[error("token {index} of the prompt stands for a picture; pictures are sent as messages of a chat")]
    PlaceholderInText {
        /// The token's index.
        index: usize,
    },
    /// A picture for a model that was opened without picture settings.
    #[error("the model has no `preprocessor_config.json`, so it takes no pictures")]
    NoPictures,
    /// The prompt is empty.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// Text can't be turned into tokens.
    #[error("the text can't be tokenised with this model's tokenizer")]
    Tokenize,
    /// Positions can't be computed.
    #[error("the positions of the prompt can't be computed: {reason}")]
    Positions {
        /// Why.
        reason: String,
    },
    /// A field of the sampling parameters is out of its range, or another part of the request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no memory for pixels now.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The caller no longer wants the request.
    #[error("the request was cancelled while its pictures were prepared")]
    Cancelled,
}

impl ProcessorError {
    /// Builds the error of a model's file.
    pub(crate) fn bad_file(file: &str, reason: impl Into<String>) -> Self {
        Self::BadFile { file: file.into(), reason: reason.into() }
    }
}

impl From<ProcessorError> for Error {
    /// Puts the error into its class: what a model's folder causes is no request's fault, all else is.
    fn from(error: ProcessorError) -> Self {
        use ProcessorError as E;
        let message = error.to_string();
        let code = match error {
            E::Request(request) => return Self::Request(request),
            E::Exhausted(exhausted) => return Self::Exhausted(exhausted),
            E::MissingFile { .. } | E::UnreadableFile { .. } | E::BadFile { .. } | E::Unsupported { .. } => {
                return Self::Device(DeviceFailure::new(message));
            }
            E::Picture { param, source, .. } => {
                use PictureError as P;
                let is_size =
                    matches!(source, P::TooManyBytes { .. } | P::TooManyPixels { .. } | P::LosslessWebpTooLarge { .. });
                let code = if is_size { "image_too_large" } else { "invalid_image" };
                return Self::Request(RequestError::new(code, message).at(param));
            }
            E::ImagePixels { name, .. } => {
                return Self::Request(RequestError::new("invalid_value", message).at(name));
            }
            E::TooLong { .. } => "context_length_exceeded",
            E::TooManyDecodedBytes { .. } => "image_too_large",
            E::TooManyPictures { .. } | E::TooManyFrames { .. } => "too_many_images",
            E::NoPictures => "invalid_image",
            E::TooMuchText { .. } => "text_too_large",
            E::Cancelled => return Self::Request(RequestError::new("cancelled", message)),
            _ => "invalid_prompt",
        };
        Self::Request(RequestError::new(code, message).at("messages"))
    }
}
