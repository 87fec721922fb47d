//! What a WebP's container tells before it is decoded: sizes, the EXIF block, and the first frame of an animation as a file of its
//! own.
//!
//! Pillow shows a first frame's colours as stored, also where they are transparent; the decoder's animation path would
//! blend them with the background. The container's layout: WebP Container Specification, "Animation".

use crate::error::PictureError;
use crate::limits::Limits;

/// A frame and where it lies on its canvas.
pub(crate) struct Frame {
    pub(crate) left: u32,
    pub(crate) top: u32,
    /// A still WebP.
    pub(crate) file: Vec<u8>,
}

/// The bytes before the first chunk.
const RIFF_HEADER_BYTES: usize = 12;
/// The bytes of an `ANMF` chunk before the frame's own chunks.
const FRAME_HEADER_BYTES: usize = 16;
/// `VP8X`'s flag for alpha.
const ALPHA_FLAG: u8 = 0x10;

/// The chunks in `bytes`: name and payload, the last as far as it is there.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, tail) = rest.split_at_checked(8)?;
        let (name, len) = header.split_at(4);
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let payload = tail.get(..len).unwrap_or(tail);
        // Chunks are padded to even lengths.
        rest = tail.get(len + len % 2..).unwrap_or(&[]);
        Some((name, payload))
    })
}

/// Three bytes, least first.
fn u24(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

fn push_chunk(out: &mut Vec<u8>, name: &[u8], payload: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
    out.extend(std::iter::repeat_n(0, payload.len() % 2));
}

/// The first frame of an animation; `None` for a still picture or a damaged container.
pub(crate) fn first_frame(bytes: &[u8]) -> Option<Frame> {
    let (_, animation) = chunks(bytes.get(RIFF_HEADER_BYTES..)?).find(|(name, _)| *name == b"ANMF")?;
    let (header, body) = animation.split_at_checked(FRAME_HEADER_BYTES)?;
    let mut inner = b"WEBP".to_vec();
    let has_alpha = chunks(body).any(|(name, _)| name == b"ALPH");
    if has_alpha {
        let mut extended = vec![ALPHA_FLAG, 0, 0, 0];
        // Width and height, each less one, stand in the frame's header as `VP8X` wants them.
        extended.extend_from_slice(&header[6..12]);
        push_chunk(&mut inner, b"VP8X", &extended);
    }
    for (name, payload) in chunks(body).filter(|(name, _)| matches!(*name, b"ALPH" | b"VP8 " | b"VP8L")) {
        push_chunk(&mut inner, name, payload);
    }
    let mut file = Vec::with_capacity(inner.len() + 8);
    push_chunk(&mut file, b"RIFF", &inner);
    // Frame offsets are stored halved.
    Some(Frame { left: u24(&header[0..3]) * 2, top: u24(&header[3..6]) * 2, file })
}

/// Checks what bitstreams make the decoder take memory for, those of an animation's frames too: the sizes that lossy ones declare,
/// before they are compared with the container's, and the prefix codes of lossless ones, which their length alone bounds.
pub(crate) fn check_sizes(bytes: &[u8], limits: &Limits) -> Result<(), PictureError> {
    let mut lossless_bytes = 0;
    let mut check = |name: &[u8], payload: &[u8]| {
        lossless_bytes += lossless_len(name, payload);
        if lossless_bytes > limits.max_lossless_webp_bytes {
            let (len_bytes, max_bytes) = (lossless_bytes, limits.max_lossless_webp_bytes);
            return Err(PictureError::LosslessWebpTooLarge { len_bytes, max_bytes });
        }
        check_lossy(name, payload, limits)
    };
    for (name, payload) in chunks(bytes.get(RIFF_HEADER_BYTES..).unwrap_or_default()) {
        if name == b"ANMF" {
            let body = payload.get(FRAME_HEADER_BYTES..).unwrap_or_default();
            chunks(body).try_for_each(|(name, payload)| check(name, payload))?;
        }
        check(name, payload)?;
    }
    Ok(())
}

/// The bytes of a chunk that the lossless decoder reads: the picture, or its alpha.
fn lossless_len(name: &[u8], payload: &[u8]) -> usize {
    /// The two bits of an `ALPH` chunk's first byte that say how it is compressed: 0 is not at all.
    const COMPRESSION: u8 = 3;
    let is_lossless = match name {
        b"VP8L" => true,
        b"ALPH" => payload.first().is_some_and(|first| first & COMPRESSION != 0),
        _ => false,
    };
    if is_lossless { payload.len() } else { 0 }
}

/// Checks the size in a bitstream's header if it is a lossy one (RFC 6386, section 9.1).
fn check_lossy(name: &[u8], payload: &[u8], limits: &Limits) -> Result<(), PictureError> {
    match payload {
        [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..] if name == b"VP8 " => {
            // The upper two bits ask for a scaling that nobody does.
            let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3FFF);
            limits.check_size(side(*w0, *w1), side(*h0, *h1))
        }
        _ => Ok(()),
    }
}

/// The EXIF block of a file in the extended format, as far as it is there.
pub(crate) fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut chunks = chunks(bytes.get(RIFF_HEADER_BYTES..)?);
    let (first, _) = chunks.next()?;
    let (_, exif) = chunks.find(|(name, _)| *name == b"EXIF")?;
    (first == b"VP8X").then_some(exif)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these chunks.
    fn file(chunks: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut inner = b"WEBP".to_vec();
        for (name, payload) in chunks {
            push_chunk(&mut inner, name, payload);
        }
        let mut file = Vec::new();
        push_chunk(&mut file, b"RIFF", &inner);
        file
    }

    #[test]
    fn the_exif_block_is_found_in_the_extended_format_alone() {
        let extended = file(&[(b"VP8X", &[8; 10]), (b"VP8 ", &[1; 3]), (b"EXIF", b"II*"), (b"EXIF", b"MM")]);
        assert_eq!(exif(&extended), Some(&b"II*"[..]));
        assert_eq!(exif(&file(&[(b"VP8X", &[0; 10]), (b"VP8 ", &[1; 3])])), None);
        assert_eq!(exif(&file(&[(b"VP8 ", &[1; 3]), (b"EXIF", b"II*")])), None);
    }

    /// A decoder that takes memory for the declared length takes 4 GiB for a file of some bytes.
    #[test]
    fn an_exif_block_has_no_more_bytes_than_its_file() {
        let mut cut = file(&[(b"VP8X", &[8; 10]), (b"EXIF", b"II*\0")]);
        let len_at = cut.len() - 8;
        cut[len_at..len_at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(exif(&cut), Some(&b"II*\0"[..]));
    }

    /// The start of a lossy bitstream.
    fn lossy(width: u16, height: u16) -> Vec<u8> {
        let [w, h] = [width, height].map(u16::to_le_bytes);
        [&[0x10, 0, 0, 0x9d, 0x01, 0x2a], &w[..], &h[..]].concat()
    }

    #[test]
    fn a_bitstream_larger_than_its_canvas_is_held_to_the_limits() {
        let limits = Limits { max_image_pixels: 64, ..Limits::default() };
        let (small, large) = (lossy(8, 8), lossy(8, 9));
        let frame = |bitstream: &[u8]| {
            let mut frame = vec![0; FRAME_HEADER_BYTES];
            push_chunk(&mut frame, b"ALPH", &[0; 3]);
            push_chunk(&mut frame, b"VP8 ", bitstream);
            frame
        };
        for [first, second] in [[&small, &large], [&large, &small]] {
            for chunks in [
                file(&[(b"VP8 ", first), (b"VP8 ", second)]),
                file(&[(b"VP8X", &[0; 10]), (b"ALPH", &[0; 3]), (b"VP8 ", first), (b"VP8 ", second)]),
                file(&[(b"VP8X", &[0; 10]), (b"ANMF", &frame(first)), (b"ANMF", &frame(second))]),
            ] {
                let error = check_sizes(&chunks, &limits).unwrap_err();
                assert_eq!(error, PictureError::TooManyPixels { width: 8, height: 9, pixels: 72, max_pixels: 64 });
            }
        }
        let all_small = file(&[(b"VP8X", &[0; 10]), (b"VP8 ", &small), (b"ANMF", &frame(&small))]);
        assert_eq!(check_sizes(&all_small, &limits), Ok(()));
    }

    #[test]
    fn lossless_bitstreams_are_held_to_their_limit_together() {
        let limits = Limits { max_lossless_webp_bytes: 100, ..Limits::default() };
        let (plain_alpha, packed_alpha) = ([0x04; 90], [0x05; 90]);
        let frame = |name: &[u8], bitstream: &[u8]| {
            let mut frame = vec![0; FRAME_HEADER_BYTES];
            push_chunk(&mut frame, name, bitstream);
            frame
        };
        let of = |chunks: &[(&[u8], &[u8])]| check_sizes(&file(chunks), &limits);
        let refused = |len_bytes| Err(PictureError::LosslessWebpTooLarge { len_bytes, max_bytes: 100 });
        assert_eq!(of(&[(b"VP8L", &[0; 100])]), Ok(()));
        assert_eq!(of(&[(b"VP8L", &[0; 101])]), refused(101));
        assert_eq!(of(&[(b"ANMF", &frame(b"VP8L", &[0; 60])), (b"ANMF", &frame(b"VP8L", &[0; 60]))]), refused(120));
        assert_eq!(of(&[(b"ALPH", &packed_alpha), (b"VP8L", &[0; 20])]), refused(110));
        assert_eq!(of(&[(b"ALPH", &plain_alpha), (b"VP8L", &[0; 20]), (b"EXIF", &[0; 500])]), Ok(()));
    }

    #[test]
    fn a_bitstream_that_is_cut_off_is_held_to_the_limits() {
        let mut cut = file(&[(b"VP8 ", &lossy(16383, 16383))]);
        cut[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(check_sizes(&cut, &Limits { max_image_pixels: 64, ..Limits::default() }).is_err());
    }
}
