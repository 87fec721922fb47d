//! What holds for every text.

use proptest::prelude::*;

use super::{fetch, policy};
use crate::remote::Network;
use crate::target::Target;
use crate::{FetchError, Fetcher, Policy};

/// Texts near to URLs: a scheme, something like an authority, anything.
fn near_urls() -> impl Strategy<Value = String> {
    let scheme = prop::sample::select(vec!["", "http:", "https:", "file:", "HTTP:", "ftp:", ":", "http"]);
    let slashes = prop::sample::select(vec!["", "/", "//", "///", "\\\\", "/\\"]);
    let host = "[a-z0-9.:@%\\[\\]x-]{0,12}|\\PC{0,8}";
    (scheme, slashes, host, "(.|\n){0,12}")
        .prop_map(|(scheme, slashes, host, rest)| format!("{scheme}{slashes}{host}{rest}"))
}

/// A network that must not be asked.
fn no_network() -> Network {
    Network { lookup: std::sync::Arc::new(|name, _| panic!("{name} was looked up")), is_public: |_| true }
}

/// Whether a fetch has ended before the network was asked; a lookup's panic would show as [`FetchError::Network`].
fn is_refused(result: &Result<Vec<u8>, FetchError>) -> bool {
    !matches!(result, Ok(_) | Err(FetchError::Network { .. }))
}

proptest! {
    #[test]
    fn where_nothing_is_allowed_everything_is_an_error(text in near_urls()) {
        let fetcher = Fetcher::with_network(Policy::default(), no_network()).unwrap();
        prop_assert!(is_refused(&fetch(&fetcher, &text)));
    }

    #[test]
    fn any_text_at_all_is_an_error_or_bytes(text in "(data:)?(.|\n)*") {
        let fetcher = Fetcher::with_network(Policy::default(), no_network()).unwrap();
        if let Ok(bytes) = fetch(&fetcher, &text) {
            prop_assert!(!bytes.is_empty() && text.starts_with("data:"));
        }
    }

    /// However a host is written, only the allowed one passes.
    #[test]
    fn no_spelling_passes_for_another_host(text in near_urls()) {
        let fetcher = Fetcher::with_network(policy(&["allowed.test"]), no_network()).unwrap();
        prop_assert!(is_refused(&fetch(&fetcher, &text)));
    }

    /// What is sent is what was checked: reading the request's URL once more gives the same host and port.
    #[test]
    fn a_target_reads_the_same_twice(text in near_urls()) {
        if let Ok(target) = Target::parse(&text) {
            let again = Target::parse(&target.uri().to_string()).unwrap();
            prop_assert_eq!(target.host(), again.host());
            prop_assert_eq!(target.port(), again.port());
            prop_assert_eq!(target.uri(), again.uri());
        }
    }
}
