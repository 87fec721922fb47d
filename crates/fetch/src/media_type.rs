//! The media types that a picture may come under.

use crate::FetchError;

/// What a media type looks like at most in a message; a longer one isn't repeated.
const MAX_SHOWN_LEN: usize = 64;

/// Takes `image/*`, and what says nothing: an empty type and `application/octet-stream`.
pub(crate) fn check(content_type: &str) -> Result<(), FetchError> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let is_image = essence.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("image/")) && is_media_type(essence);
    if essence.is_empty() || is_image || essence.eq_ignore_ascii_case("application/octet-stream") {
        return Ok(());
    }
    let is_shown = essence.len() <= MAX_SHOWN_LEN && is_media_type(essence);
    let found = if is_shown { essence.to_ascii_lowercase() } else { "a media type that can't be read".to_owned() };
    Err(FetchError::NotAPicture { found })
}

/// Whether a text is `type/subtype`, each of RFC 9110's token characters.
fn is_media_type(text: &str) -> bool {
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}
