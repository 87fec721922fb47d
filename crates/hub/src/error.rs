//! What can go wrong between an id and a folder.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What can go wrong between an id and a folder. Each text stands alone and says what would help.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is no id.
    #[error("`{id}` is no model id: {reason}; ids are organisation/name or organisation/name@revision")]
    InvalidId {
        /// As it was given.
        id: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A setting can't be used.
    #[error("{setting} can't be used: {reason}")]
    InvalidSetting {
        /// As the environment calls it, `HF_ENDPOINT`.
        setting: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing says where models are kept.
    #[error("there is no place to keep models: set HF_HOME to a folder with room")]
    NoCacheFolder,
    /// The hub shows no such model to whoever asks.
    #[error(
        "the hub has no model {id}, or it is private: check the spelling; for a private one set HF_TOKEN to a token that \
         may read it"
    )]
    NotFound {
        /// The model.
        id: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("{id} has no revision `{revision}`; its page on the hub lists branches and tags")]
    RevisionNotFound {
        /// The model, without the revision.
        id: String,
        /// What was asked for.
        revision: String,
    },
    /// The model's licence has to be accepted first.
    #[error("{id} is gated: accept its licence at {page}, then set HF_TOKEN to a token of the account that did")]
    Gated {
        /// The model.
        id: String,
        /// Where its licence is.
        page: String,
    },
    /// The hub wants a token, or another one.
    #[error(
        "the hub refuses access to {id}: set HF_TOKEN to a token that is valid and may read it, and accept the licence at \
         {page} if it asks for that"
    )]
    Refused {
        /// The model.
        id: String,
        /// Where its licence is.
        page: String,
    },
    /// The repository holds something else.
    #[error("{id} holds no {what}; only models as config.json and *.safetensors can be used")]
    NotAModel {
        /// The model.
        id: String,
        /// What a model has.
        what: &'static str,
    },
    /// No connection to the server.
    #[error("{host} can't be reached: {reason}")]
    Unreachable {
        /// The server.
        host: String,
        /// Why.
        reason: String,
    },
    /// The server answers, but not with what it was asked for, again and again.
    #[error("{host} answers with status {status}; try again later")]
    Status {
        /// The server.
        host: String,
        /// Of HTTP.
        status: u16,
    },
    /// The server says what no hub says.
    #[error("{host} doesn't answer as a hub: {reason}; is HF_ENDPOINT right?")]
    BadAnswer {
        /// The server.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The server names a file that would lie outside of the model's folder.
    #[error("{id} lists the file `{file}`, which would lie outside of its folder; nothing was downloaded")]
    UnsafeFileName {
        /// The model.
        id: String,
        /// As the server gave it.
        file: String,
    },
    /// The hub may not be asked and the cache doesn't have the model.
    #[error("HF_HUB_OFFLINE is set and {id} is not in {}; download it once without", .cache.display())]
    Offline {
        /// The model.
        id: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub may not be asked and the cache has some of the model's files.
    #[error("HF_HUB_OFFLINE is set and {} lacks {missing} of {id}; download it once without", .folder.display())]
    Incomplete {
        /// The model.
        id: String,
        /// The snapshot.
        folder: PathBuf,
        /// The files that aren't there.
        missing: String,
    },
    /// The content is not what the hub announced.
    #[error("{file} arrived damaged: its SHA-256 is {got} instead of {expected}; it was removed, download it again")]
    WrongChecksum {
        /// The file.
        file: String,
        /// What the hub announced.
        expected: String,
        /// What came.
        got: String,
    },
    /// The disk is full.
    #[error("there is no room for {}; free some, or set HF_HOME to a folder with room. What is there is kept", .path.display())]
    NoSpace {
        /// What was written.
        path: PathBuf,
    },
    /// A file of the cache can't be read or written.
    #[error("{} can't be {action}: {reason}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// `read`, `written`, `locked` and the like.
        action: &'static str,
        /// What the system said.
        reason: io::ErrorKind,
    },
    /// The connection was lost too often.
    #[error(
        "{file} stopped at {done_bytes} of {len_bytes} bytes: {reason}. What is there is kept; the next try goes on"
    )]
    Interrupted {
        /// The file.
        file: String,
        /// What is kept.
        done_bytes: u64,
        /// Its size.
        len_bytes: u64,
        /// The last failure.
        reason: String,
    },
    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled) said so.
    #[error("the download was cancelled. What is there is kept; the next try goes on")]
    Cancelled,
}

impl HubError {
    /// What the system said about a file.
    pub(crate) fn file(path: &Path, action: &'static str, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            reason => Self::File { path, action, reason },
        }
    }

    /// Whether the hub could not be asked, and so said nothing about the model.
    pub(crate) fn is_no_answer(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HubError, io};

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let path = std::path::Path::new("/cache/blobs/x.incomplete");
        let error = |kind: io::ErrorKind| HubError::file(path, "written", &kind.into());
        assert!(error(io::ErrorKind::StorageFull).to_string().contains("no room for /cache/blobs/x.incomplete"));
        assert!(matches!(error(io::ErrorKind::QuotaExceeded), HubError::NoSpace { .. }));
        assert!(matches!(error(io::ErrorKind::PermissionDenied), HubError::File { action: "written", .. }));
    }
}
