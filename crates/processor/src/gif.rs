//! A GIF's first frame as Pillow shows it: what the frame leaves uncovered has the transparent colour's index, or 0, and
//! is shown in that index's colour, for `convert("RGB")` drops transparency.

use image::RgbImage;

use crate::error::PictureError;

const DAMAGED: PictureError = PictureError::Undecodable { format: "GIF" };

/// The first frame on its canvas. The caller has checked the canvas' size against the limits; `max_frame_bytes` bounds
/// the frame, whose size is declared apart.
pub(crate) fn first_frame(bytes: &[u8], max_frame_bytes: u64) -> Result<RgbImage, PictureError> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    if let Some(limit) = std::num::NonZeroU64::new(max_frame_bytes) {
        options.set_memory_limit(gif::MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(bytes).map_err(|_| DAMAGED)?;
    let (width, height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder.read_next_frame().map_err(|_| DAMAGED)?.ok_or(PictureError::Truncated { format: "GIF" })?;
    let palette = frame.palette.clone().or(global).unwrap_or_default();
    let colour = |index: u8| {
        let start = usize::from(index) * 3;
        palette.get(start..start + 3).map_or([0; 3], |c| [c[0], c[1], c[2]])
    };
    let background = colour(frame.transparent.unwrap_or(0));
    let mut canvas = RgbImage::from_pixel(width, height, image::Rgb(background));
    let (left, top) = (u32::from(frame.left), u32::from(frame.top));
    for (y, row) in frame.buffer.chunks_exact(usize::from(frame.width).max(1)).enumerate() {
        for (x, &index) in row.iter().enumerate() {
            if let Some(pixel) = canvas.get_pixel_mut_checked(left + x as u32, top + y as u32) {
                *pixel = image::Rgb(colour(index));
            }
        }
    }
    Ok(canvas)
}
