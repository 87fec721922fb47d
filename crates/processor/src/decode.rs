//! Files to upright RGB pixels, as HF's `load_image` gives them (`image_utils.py`, transformers 5.17): the EXIF orientation
//! is applied (`ImageOps.exif_transpose`), then Pillow's `convert("RGB")`, which drops alpha without compositing, takes
//! the high byte of 16-bit colour and clips 16-bit grey at 255.

use std::borrow::Cow;
use std::io::Cursor;
use std::sync::Arc;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use crate::error::PictureError;
use crate::limits::Limits;

/// The most memory that a decoder takes per allowed pixel: RGBA.
const MAX_BYTES_PER_PIXEL: u64 = 4;

/// A picture as it comes in.
#[derive(Clone)]
#[non_exhaustive]
pub enum ImageInput {
    /// A whole file: JPEG, PNG, WebP, GIF (its first frame) or BMP, known by its first bytes.
    Bytes(Arc<[u8]>),
    /// Decoded, upright pixels.
    Rgb {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// `[height, width, 3]`.
        pixels: Arc<[u8]>,
    },
}

impl std::fmt::Debug for ImageInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Rgb { width, height, .. } => write!(f, "Rgb({width}x{height})"),
        }
    }
}

/// Upright pixels, borrowed where the input was already decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbPicture<'a> {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// `[height, width, 3]`.
    pub pixels: Cow<'a, [u8]>,
}

impl std::fmt::Debug for RgbPicture<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbPicture({}x{})", self.width, self.height)
    }
}

/// A format's name for messages.
fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        _ => "picture",
    }
}

/// Opens the file as far as its header.
fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(impl ImageDecoder + 'a, ImageFormat), PictureError> {
    limits.check_bytes(bytes.len())?;
    let format = image::guess_format(bytes).map_err(|_| PictureError::UnknownFormat)?;
    let known =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp].contains(&format);
    if !known {
        return Err(PictureError::UnknownFormat);
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_image_pixels.saturating_mul(MAX_BYTES_PER_PIXEL).saturating_mul(2));
    reader.limits(allowed);
    let decoder = reader.into_decoder().map_err(|error| failure(&error, format))?;
    Ok((decoder, format))
}

/// The upright width and height from the header, within the limits. For a decoded input, its own.
///
/// # Errors
/// What the header alone shows to be wrong.
pub fn probe(input: &ImageInput, limits: &Limits) -> Result<(u32, u32), PictureError> {
    match input {
        ImageInput::Bytes(bytes) => {
            let (mut decoder, format) = open(bytes, limits)?;
            let (width, height) = check_header(&decoder, limits)?;
            Ok(if turns(orientation_of(&mut decoder, format, bytes)) { (height, width) } else { (width, height) })
        }
        ImageInput::Rgb { width, height, pixels } => {
            limits.check_size(*width, *height)?;
            let expected_bytes = u64::from(*width) * u64::from(*height) * 3;
            if pixels.len() as u64 != expected_bytes {
                let (width, height, len_bytes) = (*width, *height, pixels.len());
                return Err(PictureError::RawSize { width, height, len_bytes, expected_bytes });
            }
            Ok((*width, *height))
        }
    }
}

/// The declared size, if it and the memory that it needs are allowed.
fn check_header(decoder: &impl ImageDecoder, limits: &Limits) -> Result<(u32, u32), PictureError> {
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    if decoder.total_bytes() > limits.max_image_pixels.saturating_mul(MAX_BYTES_PER_PIXEL) {
        let max_pixels =
            limits.max_image_pixels * MAX_BYTES_PER_PIXEL / u64::from(decoder.color_type().bytes_per_pixel());
        let pixels = u64::from(width) * u64::from(height);
        return Err(PictureError::TooManyPixels { width, height, pixels, max_pixels });
    }
    Ok((width, height))
}

/// Decodes a picture to upright RGB.
///
/// # Errors
/// [`PictureError`]: too large by bytes or pixels (before anything is allocated), unknown, truncated or damaged.
pub fn decode<'a>(input: &'a ImageInput, limits: &Limits) -> Result<RgbPicture<'a>, PictureError> {
    let bytes = match input {
        ImageInput::Rgb { width, height, pixels } => {
            probe(input, limits)?;
            return Ok(RgbPicture { width: *width, height: *height, pixels: Cow::Borrowed(pixels) });
        }
        ImageInput::Bytes(bytes) => bytes,
    };
    let (mut decoder, format) = open(bytes, limits)?;
    check_header(&decoder, limits)?;
    match format {
        ImageFormat::Jpeg => crate::jpeg::check_scans(bytes)?,
        ImageFormat::Png => crate::png::check_palette(bytes)?,
        ImageFormat::WebP => crate::webp::check_sizes(bytes, limits)?,
        _ => {}
    }
    if format == ImageFormat::Gif {
        let max_frame_bytes = limits.max_image_pixels.saturating_mul(MAX_BYTES_PER_PIXEL);
        let canvas = crate::gif::first_frame(bytes, max_frame_bytes)?;
        return Ok(RgbPicture {
            width: canvas.width(),
            height: canvas.height(),
            pixels: Cow::Owned(canvas.into_raw()),
        });
    }
    let orientation = orientation_of(&mut decoder, format, bytes);
    let frame = if format == ImageFormat::WebP { crate::webp::first_frame(bytes) } else { None };
    let mut picture = match frame {
        Some(frame) => DynamicImage::ImageRgb8(on_canvas(&frame, decoder.dimensions(), limits)?),
        None => DynamicImage::from_decoder(decoder).map_err(|error| failure(&error, format))?,
    };
    if format == ImageFormat::Png && crate::png::is_grey(bytes) {
        picture = without_made_up_alpha(picture);
    }
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width(), picture.height());
    Ok(RgbPicture { width, height, pixels: Cow::Owned(to_rgb(picture)) })
}

/// An animation's first frame on its canvas, which is black where the frame leaves it free.
fn on_canvas(frame: &crate::webp::Frame, canvas: (u32, u32), limits: &Limits) -> Result<RgbImage, PictureError> {
    const DAMAGED: PictureError = PictureError::Undecodable { format: "WebP" };
    let (decoder, format) = open(&frame.file, limits)?;
    let (width, height) = check_header(&decoder, limits)?;
    let pixels = to_rgb(DynamicImage::from_decoder(decoder).map_err(|error| failure(&error, format))?);
    let picture = RgbImage::from_raw(width, height, pixels).ok_or(DAMAGED)?;
    if (frame.left, frame.top, (width, height)) == (0, 0, canvas) {
        return Ok(picture);
    }
    let mut out = RgbImage::new(canvas.0, canvas.1);
    image::imageops::replace(&mut out, &picture, frame.left.into(), frame.top.into());
    Ok(out)
}

/// How the picture is to be turned. An unreadable EXIF block is no reason to refuse it; Pillow ignores that too.
fn orientation_of(decoder: &mut impl ImageDecoder, format: ImageFormat, bytes: &[u8]) -> Orientation {
    let found = match format {
        // The decoder takes as much memory for a WebP's EXIF block as the file declares, however short it is.
        ImageFormat::WebP => crate::webp::exif(bytes).and_then(Orientation::from_exif_chunk),
        _ => decoder.orientation().ok(),
    };
    found.unwrap_or(Orientation::NoTransforms)
}

/// Whether width and height change places.
fn turns(orientation: Orientation) -> bool {
    use Orientation as O;
    matches!(orientation, O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH)
}

/// A library's failure as ours; its text stays behind.
fn failure(error: &image::ImageError, format: ImageFormat) -> PictureError {
    let format = name_of(format);
    match error {
        image::ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            PictureError::Truncated { format }
        }
        _ => PictureError::Undecodable { format },
    }
}

/// Undoes the decoder's turning of one transparent 16-bit grey (`tRNS`) into alpha: Pillow keeps such a picture grey, and
/// clips it where it takes the high byte of stored grey with alpha.
fn without_made_up_alpha(picture: DynamicImage) -> DynamicImage {
    match picture {
        DynamicImage::ImageLumaA16(_) => DynamicImage::ImageLuma16(picture.into_luma16()),
        other => other,
    }
}

/// Pillow's `convert("RGB")` of what Pillow would have opened.
fn to_rgb(picture: DynamicImage) -> Vec<u8> {
    /// The first three of every four samples.
    fn drop_alpha(samples: &[u8]) -> Vec<u8> {
        samples.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
    }
    /// Pillow reads 16-bit colour by its high byte.
    fn high(sample: u16) -> u8 {
        (sample >> 8) as u8
    }
    match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageRgba8(p) => drop_alpha(p.as_raw()),
        DynamicImage::ImageLuma8(p) => p.as_raw().iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.as_raw().chunks_exact(2).flat_map(|v| [v[0]; 3]).collect(),
        // Pillow opens 16-bit grey as integers and clips them.
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().flat_map(|&v| [v.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(p) => p.as_raw().chunks_exact(2).flat_map(|v| [high(v[0]); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(p) => p.as_raw().chunks_exact(4).flat_map(|v| [v[0], v[1], v[2]].map(high)).collect(),
        other => other.into_rgb8().into_raw(),
    }
}
