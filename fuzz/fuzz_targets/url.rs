//! A picture's address where no host may be fetched from. Nothing here reaches the network.
#![no_main]

use std::sync::LazyLock;

use foveal_fetch::{FetchError, Fetcher, Policy, parse_data_url};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Allows data URLs alone.
static DEFAULT: LazyLock<Fetcher> = LazyLock::new(|| fetcher(Policy::default()));

/// Has hosts to compare with, so that it reads every URL; still it may contact none of them. Literal addresses need no
/// lookup, and these two are for documentation: they aren't public.
static NEVER_PUBLIC: LazyLock<Fetcher> = LazyLock::new(|| {
    let hosts = ["192.0.2.1", "2001:db8::1"].map(|host| host.parse().expect("a host"));
    fetcher(Policy { allowed_media_domains: hosts.into(), ..Policy::default() })
});

fn fetcher(policy: Policy) -> Fetcher {
    Fetcher::new(policy).expect("a valid policy")
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(url) = std::str::from_utf8(input) else { return Corpus::Reject };
    for fetcher in [&*DEFAULT, &*NEVER_PUBLIC] {
        match fetcher.fetch(url, &|| false) {
            Ok(bytes) => assert_eq!(parse_data_url(url, Policy::default().max_bytes).ok(), Some(bytes)),
            Err(error) => check(&error),
        }
    }
    Corpus::Keep
});

/// An error comes from the text alone, and its message can stand in one line of a log.
fn check(error: &FetchError) {
    assert!(!matches!(error, FetchError::Network { .. } | FetchError::Status { .. } | FetchError::TimedOut { .. }));
    let message = error.to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
}
