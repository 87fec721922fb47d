//! What a JPEG's markers tell before it is decoded.

use crate::error::PictureError;

/// The most scans of a JPEG. Encoders write about ten; each one costs a pass over the whole picture, however few bytes it
/// has. The decoder library has the same limit for progressive files alone.
pub(crate) const MAX_SCANS: usize = 100;

/// Checks that the file reaches its end-of-image marker, as Pillow demands (the decoder would fill the rest with grey), with
/// no more than [`MAX_SCANS`] scans before it.
pub(crate) fn check_scans(bytes: &[u8]) -> Result<(), PictureError> {
    const SOS: u8 = 0xDA;
    const EOI: u8 = 0xD9;
    const TRUNCATED: PictureError = PictureError::Truncated { format: "JPEG" };
    let mut num_scans = 0;
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        if byte != 0xFF {
            at += 1;
            continue;
        }
        match bytes.get(at + 1) {
            None => return Err(TRUNCATED),
            Some(&EOI) => return Ok(()),
            // Fill bytes, stuffed bytes and markers without a length.
            Some(0xFF) => at += 1,
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 2,
            Some(&marker) => {
                // After a scan's header the entropy-coded data follows; the loop skips it byte by byte up to the next marker.
                num_scans += usize::from(marker == SOS);
                if num_scans > MAX_SCANS {
                    return Err(PictureError::TooManyScans { max_scans: MAX_SCANS });
                }
                let len = bytes.get(at + 2..at + 4).ok_or(TRUNCATED)?;
                at += 2 + usize::from(u16::from_be_bytes([len[0], len[1]]));
            }
        }
    }
    Err(TRUNCATED)
}
