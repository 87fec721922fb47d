//! A prompt as spans of text and vision tokens, and the rules that position them.

use crate::{GridThw, MropeError};

/// A run of consecutive tokens of one kind. A prompt is a list of them; placeholders count, markers such as
/// `<|vision_start|>` are text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// Text tokens.
    Text {
        /// How many; 0 adds nothing.
        len: usize,
    },
    /// The placeholders of one still picture, `grid.num_tokens(spatial_merge_size)` of them.
    Image {
        /// The picture's patches.
        grid: GridThw,
    },
    /// The placeholders of one video, or of one of its frames under [`TemporalRule::FramesBetweenTimestamps`].
    Video {
        /// The video's patches.
        grid: GridThw,
        /// Seconds between two temporal patches ([`crate::VideoMeta::second_per_grid`]). Only
        /// [`TemporalRule::Seconds`] reads it.
        second_per_grid: f32,
    },
}

/// How far apart the temporal patches of a video are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TemporalRule {
    /// One position per temporal patch (Qwen2-VL).
    FrameIndex,
    /// `tokens_per_second * trunc(second_per_grid)` positions per temporal patch of a video, so that a step of less than
    /// one second is no step at all; stills as [`TemporalRule::FrameIndex`] (Qwen2.5-VL).
    Seconds {
        /// `vision_config.tokens_per_second`.
        tokens_per_second: u32,
    },
    /// Every temporal patch is a span of its own behind a timestamp in text (Qwen3-VL, Qwen3.5). [`frame_spans`] cuts
    /// a video so; a span with `t` > 1 is refused.
    FramesBetweenTimestamps,
}

/// What a model's config says about positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PositionRule {
    /// `vision_config.spatial_merge_size`: patches per token along height and along width.
    pub spatial_merge_size: u32,
    /// How far apart the temporal patches of a video are.
    pub temporal: TemporalRule,
}

/// The spans of a video's frames, one per temporal patch, for [`TemporalRule::FramesBetweenTimestamps`]. The caller puts
/// the text of each timestamp between them.
///
/// ```
/// use foveal_mrope::{GridThw, Span, frame_spans};
///
/// let mut spans = Vec::new();
/// for frame in frame_spans(GridThw { t: 3, h: 4, w: 4 }) {
///     spans.push(Span::Text { len: 6 }); // "<1.5 seconds>" and <|vision_start|>, tokenised
///     spans.push(frame);
///     spans.push(Span::Text { len: 1 }); // <|vision_end|>
/// }
/// assert_eq!(spans.len(), 9);
/// ```
pub fn frame_spans(grid: GridThw) -> impl ExactSizeIterator<Item = Span> + Clone {
    let frame = Span::Video { grid: grid.frame(), second_per_grid: 0.0 };
    std::iter::repeat_n(frame, grid.t as usize)
}

impl PositionRule {
    /// Checks a still's grid and gives it in tokens, with the step between its temporal patches.
    pub(crate) fn image(&self, grid: GridThw) -> Result<(GridThw, u64), MropeError> {
        let merged = grid.merged(self.spatial_merge_size)?;
        self.check_split(grid)?;
        Ok((merged, 1))
    }

    /// Checks a video's grid and gives it in tokens, with the step between its temporal patches.
    pub(crate) fn video(&self, grid: GridThw, second_per_grid: f32) -> Result<(GridThw, u64), MropeError> {
        let merged = grid.merged(self.spatial_merge_size)?;
        self.check_split(grid)?;
        let TemporalRule::Seconds { tokens_per_second } = self.temporal else {
            return Ok((merged, 1));
        };
        if !second_per_grid.is_finite() || second_per_grid < 0.0 {
            return Err(MropeError::InvalidSecondPerGrid { second_per_grid });
        }
        // HF truncates the seconds before it multiplies; the conversion saturates, the product below must too.
        let whole_seconds = second_per_grid as u64;
        Ok((merged, u64::from(tokens_per_second).saturating_mul(whole_seconds)))
    }

    fn check_split(&self, grid: GridThw) -> Result<(), MropeError> {
        if self.temporal == TemporalRule::FramesBetweenTimestamps && grid.t > 1 {
            return Err(MropeError::FramesNotSplit { grid });
        }
        Ok(())
    }
}
