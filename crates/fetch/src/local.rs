//! Pictures from one folder of this machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use url::Url;

use crate::read::read_all;
use crate::target::check_characters;
use crate::{FetchError, PolicyError};

/// The folder under which files may be read.
pub(crate) struct LocalFolder {
    /// Without symbolic links.
    root: PathBuf,
}

impl LocalFolder {
    pub(crate) fn open(path: &Path) -> Result<Self, PolicyError> {
        let unopened = |source| PolicyError::LocalPath { path: path.to_owned(), source };
        let root = path.canonicalize().map_err(unopened)?;
        if !root.is_dir() {
            return Err(PolicyError::NotAFolder { path: path.to_owned() });
        }
        Ok(Self { root })
    }

    /// Reads what a `file:///` URL names, if it lies in the folder once all symbolic links are followed.
    pub(crate) fn read(
        &self,
        url: &str,
        max_bytes: usize,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, FetchError> {
        let path = path_of(url)?.canonicalize().map_err(|_| FetchError::LocalNotFound)?;
        if !path.starts_with(&self.root) {
            return Err(FetchError::LocalNotFound);
        }
        let read_error = |source| FetchError::LocalRead { source };
        // Before opening, because opening a pipe waits for its other end.
        if !fs::metadata(&path).map_err(read_error)?.is_file() {
            return Err(FetchError::LocalNotAFile);
        }
        let mut file = File::open(&path).map_err(read_error)?;
        let len_bytes = file.metadata().map_err(read_error)?.len();
        let go_on = || if is_cancelled() { Err(FetchError::Cancelled) } else { Ok(()) };
        read_all(&mut file, Some(len_bytes), max_bytes, &go_on, read_error)
    }
}

/// The path of a `file:///` URL.
fn path_of(url: &str) -> Result<PathBuf, FetchError> {
    let invalid = |reason| FetchError::InvalidUrl { reason };
    check_characters(url)?;
    if !url.split_once(':').is_some_and(|(_, rest)| rest.starts_with("///")) {
        return Err(invalid("a local file needs the form `file:///path`, without a host"));
    }
    let url = Url::parse(url).map_err(|_| invalid("it isn't a valid URL"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("a local file has no `?` or `#`; percent-encode them"));
    }
    url.to_file_path().map_err(|()| invalid("it isn't the path of a local file"))
}
