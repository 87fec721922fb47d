//! An `http(s)` URL, read once.

use ureq::http::Uri;
use url::{Host, Url};

use crate::FetchError;
use crate::domain::{is_name, without_last_dot};

/// The longest URL that is read, in bytes. Longer ones are refused by most hosts as well.
const MAX_URL_LEN: usize = 8 << 10;

/// Where a request goes: what is checked, and what is sent, from one reading of the URL.
#[derive(Debug)]
pub(crate) struct Target {
    url: Url,
    uri: Uri,
}

impl Target {
    /// Reads an `http(s)` URL, in the form alone that all parsers read alike.
    pub(crate) fn parse(text: &str) -> Result<Self, FetchError> {
        check_characters(text)?;
        let invalid = |reason| FetchError::InvalidUrl { reason };
        if text.len() > MAX_URL_LEN {
            return Err(invalid("it is longer than 8192 bytes"));
        }
        let authority = text
            .split_once("://")
            .map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default())
            .filter(|authority| !authority.is_empty())
            .ok_or(invalid("it needs the form `https://host/path`"))?;
        if authority.contains('@') {
            return Err(invalid("it holds a user name, or an `@` before its path"));
        }
        let mut url = Url::parse(text).map_err(|_| invalid("it isn't a valid URL"))?;
        url.set_fragment(None);
        Self::normalised(url).ok_or(invalid("it has no valid host"))
    }

    /// What a redirect of this target leads to. Its errors say nothing about where that is.
    pub(crate) fn redirected(&self, location: &str) -> Result<Self, FetchError> {
        let refused = |reason| FetchError::Redirect { reason };
        let unusable = || refused("its new address can't be used");
        check_characters(location).map_err(|_| unusable())?;
        let url = self.url.join(location).map_err(|_| unusable())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("its new address is neither http nor https"));
        }
        if self.is_https() && url.scheme() == "http" {
            return Err(refused("its new address leads from https to http"));
        }
        Self::parse(url.as_str()).map_err(|_| unusable())
    }

    /// Drops the host's last dot and has the HTTP library's parser agree on host and port.
    fn normalised(mut url: Url) -> Option<Self> {
        if let Host::Domain(name) = url.host()? {
            let name = without_last_dot(name).to_owned();
            if !is_name(&name) {
                return None;
            }
            url.set_host(Some(&name)).ok()?;
        }
        let uri: Uri = url.as_str().parse().ok()?;
        let agrees =
            uri.host() == url.host_str() && uri.port_u16() == url.port() && uri.scheme_str() == Some(url.scheme());
        agrees.then_some(Self { url, uri })
    }

    /// The normalised host. Never `None` for a target, whose URL has been read.
    pub(crate) fn host(&self) -> Option<Host<&str>> {
        self.url.host()
    }

    /// The host's normalised name, if it is given by name.
    pub(crate) fn host_name(&self) -> Option<&str> {
        self.url.domain()
    }

    /// The port, given or the scheme's.
    pub(crate) fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// Whether TLS protects it.
    pub(crate) fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// What the HTTP library is given.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// Refuses the characters that some parsers drop or replace, so that they would see another URL.
pub(crate) fn check_characters(text: &str) -> Result<(), FetchError> {
    if text.chars().any(|char| char.is_control() || char.is_whitespace() || char == '\\') {
        let reason = "it holds a space, a control character or a backslash; percent-encode them";
        return Err(FetchError::InvalidUrl { reason });
    }
    Ok(())
}
