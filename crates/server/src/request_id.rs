//! Names of requests: the client's own, echoed, or a random one.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries a request's name, both ways.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name that is taken from a client.
const MAX_LEN: usize = 128;

/// A request's name.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    /// The client's own, if it is short and printable, else a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let own = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let own = own.filter(|id| (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()));
        own.map_or_else(Self::random, |id| Self(id.to_owned()))
    }

    /// A hundred and twenty-eight bits that nobody outside can foresee, and that don't come twice.
    fn random() -> Self {
        static KEY: OnceLock<[u8; 32]> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // The hash maps' random state is what the standard library draws from the system.
        let key = KEY.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            for part in 0..4_u64 {
                hasher.update(&RandomState::new().hash_one(part).to_le_bytes());
            }
            *hasher.finalize().as_bytes()
        });
        let hash = blake3::keyed_hash(key, &NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        Self(hash.to_hex().chars().take(32).collect())
    }

    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_clients_own_name_is_kept_if_it_is_harmless() {
        let of = |id: &[u8]| RequestId::of(&HeaderMap::from_iter([(HEADER, HeaderValue::from_bytes(id).unwrap())])).0;
        assert_eq!(of(b"trace-1/2"), "trace-1/2");
        for odd in [&b""[..], b"two words", b"r\xc3\xb4le", &[b'x'; 129]] {
            assert_eq!(of(odd).len(), 32);
        }
    }

    #[test]
    fn no_name_comes_twice() {
        let names: HashSet<String> = (0..1000).map(|_| RequestId::of(&HeaderMap::new()).0).collect();
        assert_eq!(names.len(), 1000);
    }
}
