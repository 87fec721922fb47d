//! The size that a picture is brought to before it is cut into patches.
//!
//! Source: `smart_resize` of `models/qwen2_vl/image_processing_qwen2_vl.py` and of
//! `models/qwen3_vl/video_processing_qwen3_vl.py`, transformers 5.17. Python's integers, its true division and its `round`
//! (half to even) are repeated in `u64` and `f64`.

use crate::error::PictureError;

/// The largest ratio of the longer to the shorter side.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// The range of pixels that a resized picture should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBudget {
    /// Fewer pixels than this are scaled up (`min_pixels`, `size.shortest_edge`).
    pub min_pixels: u64,
    /// More pixels than this are scaled down (`max_pixels`, `size.longest_edge`).
    pub max_pixels: u64,
}

/// The height and width, multiples of `factor` pixels, that a still picture of `height` x `width` pixels is resized to.
///
/// # Errors
/// [`PictureError::Empty`], [`PictureError::AspectRatio`] above 200, and [`PictureError::BelowOneCell`] where HF would go
/// on with a side of 0 pixels.
pub fn smart_resize(height: u32, width: u32, factor: u32, budget: PixelBudget) -> Result<(u32, u32), PictureError> {
    fit(1, 1, height, width, factor, budget)
}

/// The same for a video of `num_frames` frames whose budget counts the pixels of all frames together (Qwen3-VL).
///
/// # Errors
/// As [`smart_resize`], and [`PictureError::TooFewFrames`] for fewer frames than one temporal patch.
pub fn smart_resize_video(
    num_frames: u32,
    height: u32,
    width: u32,
    temporal_factor: u32,
    factor: u32,
    budget: PixelBudget,
) -> Result<(u32, u32), PictureError> {
    if num_frames < temporal_factor {
        return Err(PictureError::TooFewFrames { frames: num_frames as usize, min_frames: temporal_factor as usize });
    }
    check_size(height, width)?;
    let (mut height, mut width) = (height, width);
    if height < factor || width < factor {
        let scale = (f64::from(factor) / f64::from(height)).max(f64::from(factor) / f64::from(width));
        height = (f64::from(height) * scale) as u32;
        width = (f64::from(width) * scale) as u32;
    }
    fit(num_frames, temporal_factor, height, width, factor, budget)
}

/// A size without pixels, or too long a strip.
fn check_size(height: u32, width: u32) -> Result<(), PictureError> {
    if height == 0 || width == 0 {
        return Err(PictureError::Empty { width, height });
    }
    if f64::from(height.max(width)) / f64::from(height.min(width)) > MAX_ASPECT_RATIO {
        return Err(PictureError::AspectRatio { width, height });
    }
    Ok(())
}

/// The common part; a still picture is one frame with a temporal factor of 1.
fn fit(
    num_frames: u32,
    temporal_factor: u32,
    height: u32,
    width: u32,
    factor: u32,
    budget: PixelBudget,
) -> Result<(u32, u32), PictureError> {
    check_size(height, width)?;
    let too_small = PictureError::BelowOneCell { width, height, factor };
    let (h, w, cell) = (f64::from(height), f64::from(width), f64::from(factor));
    let frames =
        (f64::from(num_frames) / f64::from(temporal_factor)).round_ties_even() as u64 * u64::from(temporal_factor);
    let nearest = |side: f64| (side / cell).round_ties_even() as u64 * u64::from(factor);
    let (mut h_bar, mut w_bar) = (nearest(h), nearest(w));
    let pixels = frames.saturating_mul(h_bar).saturating_mul(w_bar);
    let source_pixels = f64::from(num_frames) * h * w;
    if pixels > budget.max_pixels {
        let beta = (source_pixels / budget.max_pixels as f64).sqrt();
        let down = |side: f64| u64::from(factor).max((side / beta / cell).floor() as u64 * u64::from(factor));
        (h_bar, w_bar) = (down(h), down(w));
    } else if pixels < budget.min_pixels {
        let beta = (budget.min_pixels as f64 / source_pixels).sqrt();
        let up = |side: f64| (side * beta / cell).ceil() as u64 * u64::from(factor);
        (h_bar, w_bar) = (up(h), up(w));
    }
    match (u32::try_from(h_bar), u32::try_from(w_bar)) {
        (Ok(h_bar), Ok(w_bar)) if h_bar > 0 && w_bar > 0 => Ok((h_bar, w_bar)),
        _ => Err(too_small),
    }
}
