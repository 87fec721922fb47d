//! What a PNG's chunks tell before it is decoded (PNG Specification, third edition, section 11).

use crate::error::PictureError;

/// The bytes before the first chunk.
const SIGNATURE_BYTES: usize = 8;
/// A chunk's length and name before its data, and its checksum behind them.
const FRAMING_BYTES: usize = 12;

/// The chunks: name and declared length, as far as the file goes.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], usize)> {
    let mut at = SIGNATURE_BYTES;
    std::iter::from_fn(move || {
        let [l0, l1, l2, l3, n0, n1, n2, n3] = *bytes.get(at..)?.first_chunk()?;
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        at = at.checked_add(len)?.checked_add(FRAMING_BYTES)?;
        Some(([n0, n1, n2, n3], len))
    })
}

/// Refuses a palette that ends within an entry: the decoder library panics at it.
pub(crate) fn check_palette(bytes: &[u8]) -> Result<(), PictureError> {
    let is_cut = |(name, len): ([u8; 4], usize)| name == *b"PLTE" && !len.is_multiple_of(3);
    if chunks(bytes).any(is_cut) { Err(PictureError::Undecodable { format: "PNG" }) } else { Ok(()) }
}

/// Whether the header says grey without alpha.
pub(crate) fn is_grey(bytes: &[u8]) -> bool {
    /// Behind the signature, the chunk's length and name, width, height and depth.
    const COLOUR_TYPE_AT: usize = 25;
    bytes.get(COLOUR_TYPE_AT) == Some(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(chunks: &[(&[u8; 4], usize)]) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, len) in chunks {
            file.extend((*len as u32).to_be_bytes());
            file.extend(*name);
            file.extend(std::iter::repeat_n(0, len + 4));
        }
        file
    }

    #[test]
    fn a_palette_has_whole_entries() {
        for len in 0..770 {
            let checked = check_palette(&file(&[(b"IHDR", 13), (b"tEXt", 5), (b"PLTE", len), (b"IDAT", 7)]));
            assert_eq!(checked.is_ok(), len % 3 == 0, "{len}");
        }
    }

    #[test]
    fn a_file_is_read_as_far_as_it_goes() {
        let whole = file(&[(b"IHDR", 13), (b"PLTE", 49)]);
        assert!(check_palette(&whole).is_err());
        for len in 0..=whole.len() {
            // The length and name of the palette's chunk are enough.
            assert_eq!(check_palette(&whole[..len]).is_err(), len >= 8 + 25 + 8, "{len}");
        }
        let mut endless = whole;
        endless[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(check_palette(&endless), Ok(()));
    }
}
