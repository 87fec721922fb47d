//! Reading to an end that may not come.

use std::io::{ErrorKind, Read};

use crate::FetchError;

/// Bytes read between two looks at whether they are still wanted.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes reserved for what a length claims; beyond them memory grows with what has come.
const MAX_RESERVED_BYTES: usize = 1 << 20;

/// Reads all of `from`, at most `max_bytes`, and asks before each read whether to go on. `expected_bytes` is a claim.
pub(crate) fn read_all(
    from: &mut dyn Read,
    expected_bytes: Option<u64>,
    max_bytes: usize,
    go_on: &dyn Fn() -> Result<(), FetchError>,
    on_error: impl FnOnce(std::io::Error) -> FetchError,
) -> Result<Vec<u8>, FetchError> {
    let expected = expected_bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if expected > max_bytes {
        return Err(FetchError::TooLarge { max_bytes });
    }
    let mut bytes = Vec::with_capacity(expected.min(MAX_RESERVED_BYTES));
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        go_on()?;
        let num_read = match from.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(num_read) => num_read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(on_error(error)),
        };
        if num_read > max_bytes - bytes.len() {
            return Err(FetchError::TooLarge { max_bytes });
        }
        bytes.extend_from_slice(chunk.get(..num_read).unwrap_or_default());
    }
}
