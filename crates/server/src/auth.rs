//! API keys.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::state::AppState;

/// Lets a request pass that carries one of the keys, or any if there are none.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    check(&state.config.api_keys, header)?;
    Ok(next.run(request).await)
}

/// Compares hashes, whose comparison takes the same time wherever they differ, and with every key, whichever fits.
fn check(keys: &[String], header: Option<&[u8]>) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    let header =
        header.ok_or_else(|| ApiError::unauthorized("an API key is needed: send `Authorization: Bearer KEY`"))?;
    let key = header.split_at_checked(BEARER.len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER));
    let key = key.map_or(&[][..], |(_, key)| key.trim_ascii());
    let sent = blake3::hash(key);
    let fits = keys.iter().fold(false, |fits, key| fits | (blake3::hash(key.as_bytes()) == sent));
    if fits { Ok(()) } else { Err(ApiError::unauthorized("the API key isn't one of this server's")) }
}

const BEARER: &[u8] = b"Bearer ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_passes() {
        let keys = ["first".to_owned(), "second".to_owned()];
        for header in ["Bearer first", "bearer second", "Bearer  first "] {
            assert!(check(&keys, Some(header.as_bytes())).is_ok(), "{header}");
        }
        for header in ["", "first", "Bearer", "Bearer ", "Bearer firs", "Bearer firstt", "Basic first", "Bearer third"]
        {
            assert_eq!(check(&keys, Some(header.as_bytes())).unwrap_err().status.as_u16(), 401, "{header}");
        }
        assert!(check(&keys, None).is_err());
        assert!(check(&[], None).is_ok());
    }
}
