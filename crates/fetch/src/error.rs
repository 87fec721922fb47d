//! Why a picture's bytes couldn't be had.

use std::error::Error as StdError;

use foveal_types::{Error, Exhausted, RequestError};
use thiserror::Error;

/// Why a picture's bytes couldn't be had.
///
/// The message can be shown to the client: it holds no IP address, no library's text and no path. `source`, where there
/// is one, is for the operator's log alone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The address can't be read, or only in more than one way.
    #[error("the picture's URL can't be used: {reason}")]
    InvalidUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The data URL can't be read.
    #[error("the picture's data URL can't be used: {reason}")]
    InvalidDataUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A character of a data URL that base64 doesn't know.
    #[error(
        "the picture's data URL can't be used: byte {offset} after its comma isn't base64 (A-Z, a-z, 0-9, `+`, `/`)"
    )]
    NotBase64 {
        /// Bytes between the comma and the character.
        offset: usize,
    },
    /// What the URL leads to isn't a picture by its media type.
    #[error("a picture is expected (image/*), and the URL leads to {found}")]
    NotAPicture {
        /// The media type, or words in its place.
        found: String,
    },
    /// The operator allows no fetching over the network.
    #[error("this server fetches no pictures over the network: send the picture as a data URL")]
    RemoteDisabled,
    /// The operator doesn't allow this host.
    #[error("this server fetches no pictures from {}: send the picture as a data URL", shown(host.as_deref()))]
    DomainNotAllowed {
        /// The host's normalised name; `None` for an IP address.
        host: Option<String>,
    },
    /// A host whose address isn't public.
    #[error("this server fetches no pictures from {}: it isn't on the public internet", shown(host.as_deref()))]
    AddressNotAllowed {
        /// The host's normalised name; `None` for an IP address.
        host: Option<String>,
    },
    /// The picture has moved to where it isn't followed.
    #[error("the picture has moved, and {reason}")]
    Redirect {
        /// Why it isn't followed.
        reason: &'static str,
    },
    /// The host answered with something else than the picture.
    #[error("the picture couldn't be fetched: its host answered with status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The network or the host failed.
    #[error("the picture couldn't be fetched: {what}")]
    Network {
        /// What failed.
        what: &'static str,
        /// What was seen of it. For the operator: it may hold addresses.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The time was up before the picture was there.
    #[error("the picture couldn't be fetched within {timeout_ms} ms")]
    TimedOut {
        /// The policy's time for one fetch, in milliseconds.
        timeout_ms: u128,
    },
    /// More bytes than the policy takes.
    #[error("the picture has more than the {max_bytes} bytes that this server takes")]
    TooLarge {
        /// The most bytes taken.
        max_bytes: usize,
    },
    /// The operator allows no local files.
    #[error("this server reads no local files: send the picture as a data URL")]
    LocalDisabled,
    /// No file there, or none that may be read. The two look alike, so that nobody learns which files there are.
    #[error("there is no such file in the folder of pictures that this server reads")]
    LocalNotFound,
    /// A folder, a device or a pipe.
    #[error("the picture's path doesn't lead to a regular file")]
    LocalNotAFile,
    /// The file couldn't be read.
    #[error("the picture's file couldn't be read")]
    LocalRead {
        /// What the system said. For the operator.
        source: std::io::Error,
    },
    /// The caller no longer wants the picture.
    #[error("the fetch was cancelled")]
    Cancelled,
    /// As many fetches as the policy takes are under way.
    #[error("{max_concurrent} pictures are being fetched, and this server fetches no more at once: try again")]
    Busy {
        /// The most fetches at once.
        max_concurrent: usize,
    },
}

/// A host as messages show it.
fn shown(host: Option<&str>) -> String {
    host.map_or_else(|| "this address".to_owned(), |name| format!("`{name}`"))
}

impl FetchError {
    /// A stable word for programs, such as `invalid_image_url`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidUrl { .. } | Self::InvalidDataUrl { .. } | Self::NotBase64 { .. } => "invalid_image_url",
            Self::RemoteDisabled | Self::DomainNotAllowed { .. } => "media_domain_not_allowed",
            Self::AddressNotAllowed { .. } => "media_address_not_allowed",
            Self::LocalDisabled | Self::LocalNotFound | Self::LocalNotAFile => "local_media_not_allowed",
            Self::NotAPicture { .. } => "invalid_image",
            Self::TooLarge { .. } => "image_too_large",
            Self::TimedOut { .. } => "image_fetch_timeout",
            Self::Redirect { .. } | Self::Status { .. } | Self::Network { .. } | Self::LocalRead { .. } => {
                "image_fetch_failed"
            }
            Self::Cancelled => "cancelled",
            Self::Busy { .. } => "too_many_fetches",
        }
    }
}

impl From<FetchError> for Error {
    /// [`FetchError::Busy`] may be gone at the next try; all others are the request's.
    fn from(error: FetchError) -> Self {
        let message = error.to_string();
        match error {
            FetchError::Busy { .. } => Exhausted::new(message).into(),
            error => RequestError::new(error.code(), message).into(),
        }
    }
}
