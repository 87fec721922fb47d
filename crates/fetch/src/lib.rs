//! Gets a picture's bytes from the three kinds of address that a chat request may hold, within what a server's operator
//! allows: data URLs, `http(s)` URLs and `file:///` URLs.
//!
//! A [`Fetcher`] holds to a [`Policy`]. The default policy allows data URLs alone. A fetch blocks, so it belongs on a
//! thread that may wait; it ends soon after the caller no longer wants it, whatever it waits for.
//!
//! ```
//! use foveal_fetch::{FetchError, Fetcher, Policy};
//!
//! let fetcher = Fetcher::new(Policy::default())?;
//! let bytes = fetcher.fetch("data:image/gif;base64,R0lGODlh", &|| false)?;
//! assert_eq!(bytes, b"GIF89a");
//!
//! let refused = fetcher.fetch("http://169.254.169.254/latest/meta-data/", &|| false);
//! assert!(matches!(refused, Err(FetchError::RemoteDisabled)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Threat model
//!
//! Whoever writes a URL is a stranger. So is the host that answers, even an allowed one.
//!
//! - **Nothing is fetched unless allowed.** An empty list of domains allows no host, no folder allows no file.
//! - **One reading of a URL.** It is parsed once, in the form that every parser reads alike: what browsers mend
//!   silently (backslashes, tabs, missing slashes) is refused, and so are user names. The host is compared after the
//!   parser has normalised it: case, IDNA, percent-encoding, a last dot, and every notation of an IPv4 address.
//! - **One lookup of a name.** All of its addresses are checked, and the connection goes to one of those very
//!   addresses, so that a name can't answer differently the second time. Only public addresses pass, unless
//!   [`Policy::allow_private_addresses`] says otherwise; addresses that carry an IPv4 address are judged by that one. A
//!   translation prefix of a network's own (NAT64 other than `64:ff9b::/96`) can't be told from other addresses.
//! - **Redirects aren't followed** unless [`Policy::max_redirects`] says so; then each is parsed and checked like the
//!   first address, and none leads from https to http. A redirect's target is never told to the client.
//! - **No proxy** of the environment is used, no cookie or connection is kept from one fetch to the next.
//! - **Limits** on bytes hold before and while reading; one deadline spans lookup, connection, redirects and body, so a
//!   host that sends a byte at a time gains nothing. Compressed answers are refused, not decompressed.
//! - **Local files** are compared with the allowed folder after all symbolic links have been followed. A file that is
//!   missing and one that isn't allowed give the same error. Who may write into that folder is trusted.
//! - **Error messages** are in own words: no IP address, no library's text, no path. What a log may want besides is the
//!   error's `source`.
//!
//! What an allowed host sends is not looked at here: whether the bytes are a picture is for a decoder with limits of
//! its own.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod address;
mod data_url;
mod domain;
mod error;
mod fetcher;
mod local;
mod media_type;
mod policy;
mod read;
mod remote;
mod target;
#[cfg(test)]
mod tests;
mod worker;

pub use data_url::parse_data_url;
pub use domain::MediaDomain;
pub use error::FetchError;
pub use fetcher::Fetcher;
pub use policy::{Policy, PolicyError};
