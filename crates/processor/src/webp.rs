//! The first frame of an animated WebP, as a file of its own.
//!
//! Pillow shows a first frame's colours as stored, also where they are transparent; the decoder's animation path would
//! blend them with the background. The container's layout: WebP Container Specification, "Animation".

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

/// The chunks in `bytes`: name and payload. Stops at the first that is cut off.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, tail) = rest.split_at_checked(8)?;
        let (name, len) = header.split_at(4);
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let payload = tail.get(..len)?;
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
