//! From a rendered template to token ids, with every placeholder where the request's structure puts it.
//!
//! What a person types must never become a control token, yet for ordinary text the ids must be those of the whole
//! rendered string, because words span the seam between template and text ("user\nHello"). So nothing is tokenised in
//! parts by origin; only the *recognition* of added tokens depends on it:
//!
//! 1. Before rendering, every string of the request that spells an added token, or could together with its neighbours,
//!    gets a marker: one private-use character that neither the request nor the template holds, put inside the spelling
//!    (`added_tokens.rs`). All other strings, nearly all in practice, enter the template untouched, so that the template's
//!    own string operations see what they see in Python.
//! 2. The rendered text is cut at the added tokens it still spells: those are the template's own.
//! 3. Markers are removed from the text between them, which is then tokenised with recognition off.
//!
//! The picture placeholders among the template's own tokens must be as many as, and in the order of, the request's
//! pictures; each becomes as many tokens as its picture has merged patches.

use std::ops::Range;

use foveal_mrope::{GridThw, Span};
use foveal_types::TokenId;

use crate::added_tokens::AddedTokens;
use crate::error::ProcessorError;
use crate::tokenizer::Tokenizer;

/// The ids of the tokens that stand around and for pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VisionTokens {
    pub(crate) image: TokenId,
    pub(crate) video: TokenId,
    pub(crate) start: TokenId,
    pub(crate) end: TokenId,
}

/// What a placeholder becomes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expansion {
    /// A still picture's tokens.
    Image { grid: GridThw },
    /// A video's tokens in one run (Qwen2-VL, Qwen2.5-VL).
    VideoRun { grid: GridThw, second_per_grid: f32 },
    /// A video's frames, each behind the second at which it is shown (Qwen3-VL, Qwen3.5).
    VideoFrames { grid: GridThw, seconds: Vec<f64> },
}

/// A prompt's tokens and their structure.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// Rows of placeholders.
    pub(crate) ranges: Vec<Range<usize>>,
    /// The same as runs of one kind, for the positions.
    pub(crate) spans: Vec<Span>,
    /// The first placeholder row of each picture.
    pub(crate) starts: Vec<usize>,
}

/// A part of the rendered text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Token(TokenId),
}

/// Cuts the rendered text at the template's own added tokens.
fn cut<'a>(rendered: &'a str, added: &'a AddedTokens) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut end = 0;
    for (found, token) in added.find(rendered) {
        if end < found.start {
            pieces.push(Piece::Text(&rendered[end..found.start]));
        }
        pieces.push(Piece::Token(token.id));
        end = found.end;
    }
    if end < rendered.len() {
        pieces.push(Piece::Text(&rendered[end..]));
    }
    pieces
}

/// The request's pictures against the template's placeholders.
fn check_placeholders(
    pieces: &[Piece<'_>],
    expansions: &[Expansion],
    vision: VisionTokens,
) -> Result<(), ProcessorError> {
    let is_video = |e: &Expansion| !matches!(e, Expansion::Image { .. });
    let written: Vec<bool> = pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Token(id) if *id == vision.image => Some(false),
            Piece::Token(id) if *id == vision.video => Some(true),
            _ => None,
        })
        .collect();
    let mismatch = |detail: String| {
        let (placeholders, pictures) = (written.len(), expansions.len());
        Err(ProcessorError::PlaceholderMismatch { placeholders, pictures, detail })
    };
    if written.len() != expansions.len() {
        return mismatch(String::new());
    }
    if let Some(i) = (0..written.len()).find(|&i| written[i] != is_video(&expansions[i])) {
        let name = |video: bool| if video { "video" } else { "picture" };
        return mismatch(format!("; number {i} is a {} and not a {}", name(written[i]), name(!written[i])));
    }
    Ok(())
}

/// Builds a prompt piece by piece. Text gathers until a token ends it.
struct Builder<'a> {
    tokenizer: &'a Tokenizer,
    vision: VisionTokens,
    text: String,
    prompt: Prompt,
}

impl Builder<'_> {
    /// Tokenises the gathered text.
    fn flush(&mut self) -> Result<(), ProcessorError> {
        let before = self.prompt.ids.len();
        self.tokenizer.encode_plain(&self.text, &mut self.prompt.ids)?;
        self.text.clear();
        self.text_span(self.prompt.ids.len() - before);
        Ok(())
    }

    /// Counts tokens that are no placeholders.
    fn text_span(&mut self, tokens: usize) {
        match self.prompt.spans.last_mut() {
            Some(Span::Text { len }) => *len += tokens,
            _ if tokens > 0 => self.prompt.spans.push(Span::Text { len: tokens }),
            _ => {}
        }
    }

    fn token(&mut self, id: TokenId) -> Result<(), ProcessorError> {
        self.flush()?;
        self.prompt.ids.push(id);
        self.text_span(1);
        Ok(())
    }

    fn placeholders(&mut self, id: TokenId, count: usize, span: Span) -> Result<(), ProcessorError> {
        self.flush()?;
        let start = self.prompt.ids.len();
        self.prompt.ids.extend(std::iter::repeat_n(id, count));
        self.prompt.ranges.push(start..start + count);
        self.prompt.spans.push(span);
        Ok(())
    }

    /// Writes a picture's tokens. A video's frames follow HF's `replace_video_token` (`processing_qwen3_vl.py`,
    /// transformers 5.17): they stand inside of the vision tokens that the template writes around its placeholder.
    fn expand(&mut self, expansion: &Expansion, merge_size: u32) -> Result<(), ProcessorError> {
        self.flush()?;
        let first_range = self.prompt.ranges.len();
        match expansion {
            Expansion::Image { grid } => {
                self.placeholders(self.vision.image, grid.num_tokens(merge_size), Span::Image { grid: *grid })?;
            }
            Expansion::VideoRun { grid, second_per_grid } => {
                let span = Span::Video { grid: *grid, second_per_grid: *second_per_grid };
                self.placeholders(self.vision.video, grid.num_tokens(merge_size), span)?;
            }
            Expansion::VideoFrames { grid, seconds } => {
                let frame = grid.frame();
                for second in seconds {
                    self.text.push_str(&format!("<{second:.1} seconds>"));
                    self.token(self.vision.start)?;
                    let span = Span::Video { grid: frame, second_per_grid: 0.0 };
                    self.placeholders(self.vision.video, frame.num_tokens(merge_size), span)?;
                    self.token(self.vision.end)?;
                }
            }
        }
        self.prompt.starts.push(self.prompt.ranges.get(first_range).map_or(self.prompt.ids.len(), |r| r.start));
        Ok(())
    }
}

/// Tokenises a rendered prompt and expands its placeholders. `marker` is what the request's strings were marked with.
pub(crate) fn tokenize_prompt(
    rendered: &str,
    marker: char,
    tokenizer: &Tokenizer,
    vision: VisionTokens,
    expansions: &[Expansion],
    merge_size: u32,
) -> Result<Prompt, ProcessorError> {
    let pieces = cut(rendered, tokenizer.added());
    check_placeholders(&pieces, expansions, vision)?;
    let mut builder = Builder { tokenizer, vision, text: String::new(), prompt: Prompt::default() };
    builder.prompt.ids.reserve(rendered.len() / 3);
    let mut expansions = expansions.iter();
    for piece in pieces {
        match piece {
            Piece::Text(text) if text.contains(marker) => {
                builder.text.extend(text.chars().filter(|&c| c != marker));
            }
            Piece::Text(text) => builder.text.push_str(text),
            Piece::Token(id) if id == vision.image || id == vision.video => {
                if let Some(expansion) = expansions.next() {
                    builder.expand(expansion, merge_size)?;
                }
            }
            Piece::Token(id) => builder.token(id)?,
        }
    }
    builder.flush()?;
    Ok(builder.prompt)
}
