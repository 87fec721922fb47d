//! Positions of a whole prompt from its spans.
//!
//! The spans are first placed (where each starts, how far it reaches), which checks every limit; then each axis is
//! written in one pass, by whole rows: a text span is a count, a picture's row is a constant or a count, and frames and
//! rows that repeat are copied.

use std::iter::repeat_n;

use crate::error::reserve;
use crate::{GridThw, MropeError, PositionIds, PositionRule, Span};

/// One past the largest position: the position that follows must be an int32 too.
const MAX_NEXT_POSITION: u64 = i32::MAX as u64;

/// A span with its place; all sums of `start` and extents are known to fit int32.
enum Placed {
    Text { start: i32, len: i32 },
    Vision { start: i32, step: i32, t: i32, h: i32, w: i32 },
}

/// The positions `[3, N]` of a prompt and its delta, int32.
///
/// Text counts on by one per token on all three axes. A picture or video starts where the text before it ended; its
/// tokens add their frame (times the step of the [`crate::TemporalRule`]), row and column. What follows starts
/// `max(h, w) / spatial_merge_size` later, however long the video lasts. The delta is the largest position plus one
/// minus the number of tokens; see [`crate::decode_position`]. A prompt without tokens has no positions and a delta of 0.
///
/// Two pictures may stand side by side without text between them.
///
/// The result takes 12 bytes per token: check untrusted grids against the model's length (with
/// [`GridThw::num_tokens`]) before.
///
/// Source: `get_rope_index` of HF transformers 5.17, `modeling_{qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5}.py`.
///
/// # Errors
/// What [`GridThw::merged`] says of a grid; [`MropeError::FramesNotSplit`] and [`MropeError::InvalidSecondPerGrid`] under
/// the rules that ask for it; [`MropeError::PositionOverflow`], [`MropeError::TooManyTokens`] and
/// [`MropeError::OutOfMemory`] for a prompt that is too long.
pub fn position_ids(spans: &[Span], rule: &PositionRule) -> Result<PositionIds, MropeError> {
    let Layout { placed, num_tokens, next_position } = place(spans, rule)?;
    let mut positions = Vec::new(); // [3, num_tokens]
    reserve(&mut positions, num_tokens.saturating_mul(3), "position ids")?;
    extend_temporal(&mut positions, &placed);
    extend_height(&mut positions, &placed);
    extend_width(&mut positions, &placed);
    debug_assert_eq!(positions.len(), 3 * num_tokens);
    // Both terms lie in 0..=i32::MAX.
    let delta = next_position - num_tokens as i32;
    Ok(PositionIds::new(positions, delta))
}

struct Layout {
    placed: Vec<Placed>,
    /// At most `i32::MAX`.
    num_tokens: usize,
    /// One past the largest position.
    next_position: i32,
}

fn place(spans: &[Span], rule: &PositionRule) -> Result<Layout, MropeError> {
    let mut placed = Vec::new();
    reserve(&mut placed, spans.len(), "spans")?;
    let mut num_tokens = 0_u64;
    let mut next_position = 0_i32;
    let mut start = 0_i32;
    for span in spans {
        let (len, end, following) = match *span {
            Span::Text { len } => {
                let end = checked_end(start, len as u64)?;
                placed.push(Placed::Text { start, len: end - start });
                (len as u64, end, end)
            }
            Span::Image { grid } => place_vision(&mut placed, start, rule.image(grid)?)?,
            Span::Video { grid, second_per_grid } => {
                place_vision(&mut placed, start, rule.video(grid, second_per_grid)?)?
            }
        };
        num_tokens = num_tokens.saturating_add(len);
        if num_tokens > MAX_NEXT_POSITION {
            return Err(MropeError::TooManyTokens { num_tokens });
        }
        next_position = next_position.max(end);
        start = following;
    }
    // An empty text span reaches no position, but then the position before it was reached.
    Ok(Layout { placed, num_tokens: num_tokens as usize, next_position })
}

/// Gives the tokens of the span, one past its largest position, and where the next span starts.
fn place_vision(
    placed: &mut Vec<Placed>,
    start: i32,
    (merged, step): (GridThw, u64),
) -> Result<(u64, i32, i32), MropeError> {
    let following = checked_end(start, u64::from(merged.h.max(merged.w)))?;
    // A clip of one frame needs no step, so a step beyond int32 is harmless there.
    let temporal_extent = u64::from(merged.t - 1).saturating_mul(step).saturating_add(1);
    let end = checked_end(start, temporal_extent)?.max(following);
    let frame = u64::from(merged.h) * u64::from(merged.w);
    let len = frame.saturating_mul(u64::from(merged.t));
    if len > MAX_NEXT_POSITION {
        return Err(MropeError::TooManyTokens { num_tokens: len });
    }
    let step = if merged.t > 1 { step as i32 } else { 0 };
    // t <= len and h, w <= following: all below i32::MAX.
    placed.push(Placed::Vision { start, step, t: merged.t as i32, h: merged.h as i32, w: merged.w as i32 });
    Ok((len, end, following))
}

/// `start + extent`, if that is still a position.
fn checked_end(start: i32, extent: u64) -> Result<i32, MropeError> {
    let end = (start as u64).saturating_add(extent);
    if end > MAX_NEXT_POSITION {
        return Err(MropeError::PositionOverflow { position: end });
    }
    Ok(end as i32)
}

fn extend_temporal(out: &mut Vec<i32>, placed: &[Placed]) {
    for span in placed {
        match *span {
            Placed::Text { start, len } => out.extend(start..start + len),
            Placed::Vision { start, step, t, h, w } => {
                let frame_len = h as usize * w as usize;
                for frame in 0..t {
                    out.extend(repeat_n(start + frame * step, frame_len));
                }
            }
        }
    }
}

fn extend_height(out: &mut Vec<i32>, placed: &[Placed]) {
    for span in placed {
        match *span {
            Placed::Text { start, len } => out.extend(start..start + len),
            Placed::Vision { start, t, h, w, .. } => {
                for row in start..start + h {
                    out.extend(repeat_n(row, w as usize));
                }
                repeat_tail(out, h as usize * w as usize, t as usize);
            }
        }
    }
}

fn extend_width(out: &mut Vec<i32>, placed: &[Placed]) {
    for span in placed {
        match *span {
            Placed::Text { start, len } => out.extend(start..start + len),
            Placed::Vision { start, t, h, w, .. } => {
                out.extend(start..start + w);
                repeat_tail(out, w as usize, t as usize * h as usize);
            }
        }
    }
}

/// Makes the last `period` elements stand there `times` times, doubling what is there: few large copies, not many small.
fn repeat_tail(out: &mut Vec<i32>, period: usize, times: usize) {
    let begin = out.len() - period;
    let total = period * times;
    let mut have = period;
    while have < total {
        let copied = have.min(total - have);
        out.extend_from_within(begin..begin + copied);
        have += copied;
    }
}
