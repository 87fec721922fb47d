//! The one entry for all kinds of address.

use std::fmt;
use std::sync::Arc;

use crate::local::LocalFolder;
use crate::remote::{Network, Remote};
use crate::{FetchError, Policy, PolicyError, parse_data_url};

/// Gets pictures' bytes within a [`Policy`]. Clones are cheap and share the policy's limit of fetches at once.
#[derive(Clone)]
pub struct Fetcher {
    max_bytes: usize,
    local: Option<Arc<LocalFolder>>,
    remote: Arc<Remote>,
}

impl Fetcher {
    /// A fetcher that holds to `policy`. The folder of local files is looked up now.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] if that folder isn't there, or a figure is one that no fetch could hold to.
    pub fn new(policy: Policy) -> Result<Self, PolicyError> {
        Self::with_network(policy, Network::of_the_system())
    }

    pub(crate) fn with_network(policy: Policy, network: Network) -> Result<Self, PolicyError> {
        policy.validate()?;
        let local = policy.allowed_local_media_path.as_deref().map(LocalFolder::open).transpose()?;
        let max_bytes = policy.max_bytes;
        Ok(Self { max_bytes, local: local.map(Arc::new), remote: Arc::new(Remote::new(policy, network)) })
    }

    /// The bytes that `url` holds or leads to: at least one, at most the policy's `max_bytes`. What they are, a decoder
    /// tells.
    ///
    /// Blocks until they are there, for at most the policy's `timeout` over the network. `is_cancelled` is asked about
    /// every 20 ms meanwhile, on this thread; once it says `true`, the fetch ends.
    ///
    /// # Errors
    ///
    /// [`FetchError`], whose message can be shown to the client.
    pub fn fetch(&self, url: &str, is_cancelled: &dyn Fn() -> bool) -> Result<Vec<u8>, FetchError> {
        if is_cancelled() {
            return Err(FetchError::Cancelled);
        }
        let (scheme, _) = url.split_once(':').ok_or(FetchError::InvalidUrl { reason: NO_SCHEME })?;
        let is = |name| scheme.eq_ignore_ascii_case(name);
        let bytes = if is("data") {
            parse_data_url(url, self.max_bytes)?
        } else if is("http") || is("https") {
            self.remote.fetch(url, is_cancelled)?
        } else if is("file") {
            let local = self.local.as_ref().ok_or(FetchError::LocalDisabled)?;
            local.read(url, self.max_bytes, is_cancelled)?
        } else {
            return Err(FetchError::InvalidUrl { reason: NO_SCHEME });
        };
        if bytes.is_empty() {
            return Err(FetchError::NotAPicture { found: "nothing: no bytes are there".to_owned() });
        }
        Ok(bytes)
    }
}

const NO_SCHEME: &str = "it must start with `data:`, `https://`, `http://` or `file:///`";

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}
