//! Pictures inside the URL itself (RFC 2397).

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose};

use crate::{FetchError, media_type};

/// Takes what encoders write: padding may be missing, and bits behind the last byte may be set.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes of a picture's data URL, `data:image/png;base64,...`. It depends on nothing but its arguments.
///
/// - The media type is `image/*`, `application/octet-stream` or none, with any parameters; what the bytes are is for a
///   decoder to see.
/// - The bytes are in base64's standard alphabet, padded or not. Line ends and tabs, which some encoders put in, are
///   passed over, as are spaces at the start; characters may be percent-encoded. A space further on is refused: it is
///   mostly a `+` that a form has decoded, and passing over it would change the picture.
///
/// # Errors
///
/// [`FetchError::InvalidDataUrl`] and [`FetchError::NotBase64`] for what can't be read, [`FetchError::NotAPicture`] for
/// another media type, [`FetchError::TooLarge`] above `max_bytes`, which is found before memory for them is taken.
pub fn parse_data_url(url: &str, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let invalid = |reason| FetchError::InvalidDataUrl { reason };
    let (scheme, rest) = url.split_once(':').ok_or(invalid("it doesn't start with `data:`"))?;
    if !scheme.eq_ignore_ascii_case("data") {
        return Err(invalid("it doesn't start with `data:`"));
    }
    let (header, payload) = rest.split_once(',').ok_or(invalid("it has no comma before its bytes"))?;
    let media = match header.rsplit_once(';') {
        Some((media, encoding)) if encoding.trim().eq_ignore_ascii_case("base64") => media,
        _ => return Err(invalid("its bytes must be in base64: `data:image/png;base64,...`")),
    };
    media_type::check(media)?;
    let bytes = decode(payload.as_bytes(), max_bytes)?;
    match bytes.len() {
        0 => Err(invalid("it holds no bytes")),
        len_bytes if len_bytes > max_bytes => Err(FetchError::TooLarge { max_bytes }),
        _ => Ok(bytes),
    }
}

/// Decodes, at most up to two bytes more than `max_bytes`.
fn decode(payload: &[u8], max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let max_encoded_len = max_bytes.div_ceil(3).saturating_mul(4);
    // Nearly all payloads are plain base64 and need no second copy.
    if payload.len() <= max_encoded_len
        && let Ok(bytes) = general_purpose::STANDARD.decode(payload)
    {
        return Ok(bytes);
    }
    let encoded = plain_base64(payload, max_encoded_len).map_err(|stop| match stop {
        Stop::Error(error) => error,
        Stop::TooLong => FetchError::TooLarge { max_bytes },
    })?;
    LENIENT
        .decode(encoded)
        .map_err(|_| FetchError::InvalidDataUrl { reason: "its base64 is cut off or wrongly padded" })
}

/// Why a payload has no plain base64.
enum Stop {
    Error(FetchError),
    TooLong,
}

/// A payload's base64 characters alone, at most `max_len` of them.
fn plain_base64(payload: &[u8], max_len: usize) -> Result<Vec<u8>, Stop> {
    let start_len = payload.iter().take_while(|byte| **byte == b' ').count();
    let mut encoded = Vec::new();
    let mut bytes = payload.iter().copied().enumerate().skip(start_len);
    while let Some((offset, byte)) = bytes.next() {
        let not_base64 = Stop::Error(FetchError::NotBase64 { offset });
        let byte = match byte {
            b'%' => match (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(not_base64),
            },
            byte => byte,
        };
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'=' => encoded.push(byte),
            b'\r' | b'\n' | b'\t' => {}
            b' ' => {
                let reason = "there is a space within its base64 (a `+` that was decoded as in a form?)";
                return Err(Stop::Error(FetchError::InvalidDataUrl { reason }));
            }
            b'-' | b'_' => {
                let reason = "its base64 is of the alphabet for URLs (`-`, `_`); the standard one is needed (`+`, `/`)";
                return Err(Stop::Error(FetchError::InvalidDataUrl { reason }));
            }
            _ => return Err(not_base64),
        }
        if encoded.len() > max_len {
            return Err(Stop::TooLong);
        }
    }
    Ok(encoded)
}

fn hex_digit((_, byte): (usize, u8)) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
