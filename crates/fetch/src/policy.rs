//! What an operator allows.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::MediaDomain;

/// The longest time that a policy may give a fetch. Beyond it a limit is no limit, and far beyond it clocks overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What an operator allows. The default allows data URLs alone, of at most 20 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The hosts that may be fetched from. Empty: none.
    pub allowed_media_domains: Vec<MediaDomain>,
    /// The folder under which local files may be read. `None`: no file.
    pub allowed_local_media_path: Option<PathBuf>,
    /// Whether a host may have an address that isn't public (private, loopback, link-local, a cloud's metadata
    /// service). It still has to be one of the allowed hosts. Default: no.
    pub allow_private_addresses: bool,
    /// The most redirects that a fetch follows. Default: 0, an answer that redirects is an error.
    pub max_redirects: u32,
    /// The most bytes of one picture. Default: 20 MiB.
    pub max_bytes: usize,
    /// The most time that a fetch over the network takes, redirects and body included. Default: 10 s.
    pub timeout: Duration,
    /// The most time that a connection takes, TLS included. Default: 5 s.
    pub connect_timeout: Duration,
    /// The most fetches over the network at once; the next is told that there is no room. A name lookup that the system
    /// hasn't answered counts on after its fetch has been given up. Default: 64.
    pub max_concurrent: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allowed_media_domains: Vec::new(),
            allowed_local_media_path: None,
            allow_private_addresses: false,
            max_redirects: 0,
            max_bytes: 20 << 20,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            max_concurrent: 64,
        }
    }
}

impl Policy {
    /// Refuses figures that no fetch could hold to.
    pub(crate) fn validate(&self) -> Result<(), PolicyError> {
        for (name, timeout) in [("timeout", self.timeout), ("connect_timeout", self.connect_timeout)] {
            if timeout.is_zero() || timeout > MAX_TIMEOUT {
                return Err(PolicyError::OutOfRange { name, expected: "more than zero and at most a day" });
            }
        }
        for (name, value) in [("max_bytes", self.max_bytes), ("max_concurrent", self.max_concurrent)] {
            if value == 0 {
                return Err(PolicyError::OutOfRange { name, expected: "at least 1" });
            }
        }
        Ok(())
    }
}

/// Why a policy can't be held to. It is the operator's to read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// An entry of the list of hosts that names no host.
    #[error(
        "`{entry}` names no host: write `example.com`, `*.example.com` for its subdomains, or `*` for all, without \
         scheme, port or path"
    )]
    Domain {
        /// The entry.
        entry: String,
    },
    /// The folder of local files can't be opened.
    #[error("the folder of local media, {}, can't be opened", path.display())]
    LocalPath {
        /// The folder as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder of local files isn't a folder.
    #[error("{} isn't a folder: local media need one", path.display())]
    NotAFolder {
        /// The path as given.
        path: PathBuf,
    },
    /// A figure that no fetch could hold to.
    #[error("{name} must be {expected}")]
    OutOfRange {
        /// The policy's field.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}
