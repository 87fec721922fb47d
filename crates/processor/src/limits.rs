//! What a request may cost before anything is decoded.

use crate::error::{PictureError, ProcessorError};

/// What a request may cost. Every limit is checked on headers and lengths, before memory is taken. A JPEG may have 100 scans
/// (encoders write about ten): that limit is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of one encoded picture. Default: 20 MiB.
    pub max_image_bytes: usize,
    /// The most bytes of a lossless WebP's bitstream, and of all of an animation's. Default: 4 MiB. Whatever its pixels, the decoder
    /// takes up to 360 bytes for each: 1.4 GiB.
    pub max_lossless_webp_bytes: usize,
    /// The most pixels of one picture or frame, as stored. Default: 64 Mi (a 64-megapixel photo, 192 MiB decoded).
    pub max_image_pixels: u64,
    /// The most pictures and videos of one request. Default: 64.
    pub max_images_per_request: usize,
    /// The most video frames of one request. Default: 768, as in HF's video processors.
    pub max_frames_per_request: usize,
    /// The most bytes that a request's pictures and frames decode to, as RGB. Default: 512 MiB.
    pub max_total_decoded_bytes: u64,
    /// The most bytes of text of one request, tools included. Default: 16 MiB.
    pub max_text_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_image_bytes: 20 << 20,
            max_lossless_webp_bytes: 4 << 20,
            max_image_pixels: 64 << 20,
            max_images_per_request: 64,
            max_frames_per_request: 768,
            max_total_decoded_bytes: 512 << 20,
            max_text_bytes: 16 << 20,
        }
    }
}

impl Limits {
    /// Checks the length of an encoded picture.
    pub(crate) fn check_bytes(&self, len_bytes: usize) -> Result<(), PictureError> {
        if len_bytes > self.max_image_bytes {
            return Err(PictureError::TooManyBytes { len_bytes, max_bytes: self.max_image_bytes });
        }
        Ok(())
    }

    /// Checks the size that a header declares.
    pub(crate) fn check_size(&self, width: u32, height: u32) -> Result<(), PictureError> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(PictureError::Empty { width, height });
        }
        if pixels > self.max_image_pixels {
            return Err(PictureError::TooManyPixels { width, height, pixels, max_pixels: self.max_image_pixels });
        }
        Ok(())
    }

    /// Checks the length of a request's text.
    pub(crate) fn check_text(&self, len_bytes: usize) -> Result<(), ProcessorError> {
        if len_bytes > self.max_text_bytes {
            return Err(ProcessorError::TooMuchText { len_bytes, max_bytes: self.max_text_bytes });
        }
        Ok(())
    }

    /// Checks the sum over a request.
    pub(crate) fn check_decoded(&self, decoded_bytes: u64) -> Result<(), ProcessorError> {
        if decoded_bytes > self.max_total_decoded_bytes {
            return Err(ProcessorError::TooManyDecodedBytes { decoded_bytes, max_bytes: self.max_total_decoded_bytes });
        }
        Ok(())
    }
}
