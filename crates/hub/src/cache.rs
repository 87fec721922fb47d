//! The hub's cache on disk, one model's part of it:
//!
//! ```text
//! models--org--name/refs/main              the commit that a branch or a tag was at
//! models--org--name/blobs/ETAG             a file's content
//! models--org--name/snapshots/COMMIT/FILE  a relative link to it
//! models--org--name/trees/COMMIT.json      which files a commit has, as newer hub libraries write it
//! models--org--name/.foveal/COMMIT.json    the same, as this crate writes it
//! .locks/models--org--name/ETAG.lock       held while a blob is written
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::names::{Commit, Etag, FileName};
use crate::select::{CONFIG, Files, select};
use crate::{HubError, ModelId};

/// The index of weights that are in several files, and the file of those that aren't.
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// One model in the cache.
#[derive(Debug)]
pub(crate) struct ModelCache {
    /// The model's folder.
    folder: PathBuf,
    locks: PathBuf,
    id: String,
}

/// Which files a commit has: what tells a whole snapshot from a part of one.
#[derive(Serialize, Deserialize)]
struct OwnListing {
    files: Vec<String>,
}

#[derive(Deserialize)]
struct HubListing {
    files: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct WeightIndex {
    weight_map: BTreeMap<String, String>,
}

impl ModelCache {
    pub(crate) fn new(cache: &Path, id: &ModelId) -> Self {
        let name = id.folder_name();
        Self { locks: cache.join(".locks").join(&name), folder: cache.join(name), id: id.to_string() }
    }

    pub(crate) fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.folder.join("snapshots").join(commit.as_str())
    }

    pub(crate) fn blob(&self, etag: &Etag) -> PathBuf {
        self.folder.join("blobs").join(etag.as_str())
    }

    /// Where a blob is while it is downloaded: always a beginning of it.
    pub(crate) fn incomplete(&self, etag: &Etag) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", etag.as_str()))
    }

    pub(crate) fn lock(&self, etag: &Etag) -> PathBuf {
        self.locks.join(format!("{}.lock", etag.as_str()))
    }

    /// The commit that a revision is, or was when it was downloaded.
    pub(crate) fn commit(&self, id: &ModelId) -> Option<Commit> {
        if id.is_pinned() {
            return Commit::parse(id.revision());
        }
        Commit::parse(fs::read_to_string(self.reference(id)).ok()?.trim())
    }

    fn reference(&self, id: &ModelId) -> PathBuf {
        self.folder.join("refs").join(id.revision())
    }

    /// Notes which commit a branch or a tag is at.
    pub(crate) fn note_commit(&self, id: &ModelId, commit: &Commit) -> Result<(), HubError> {
        if id.is_pinned() || self.commit(id).as_ref() == Some(commit) {
            return Ok(());
        }
        self.replace(&self.reference(id), commit.as_str().as_bytes())
    }

    /// Notes which files a commit has.
    pub(crate) fn note_listing(&self, commit: &Commit, names: Vec<String>) -> Result<(), HubError> {
        let path = self.own_listing(commit);
        if path.is_file() {
            return Ok(());
        }
        let json = serde_json::to_vec(&OwnListing { files: names });
        let json = json.map_err(|error| HubError::file(&path, "written", &error.into()))?;
        self.replace(&path, &json)
    }

    fn own_listing(&self, commit: &Commit) -> PathBuf {
        self.folder.join(".foveal").join(format!("{}.json", commit.as_str()))
    }

    /// The files that a commit has, if anybody noted them.
    fn listing(&self, commit: &Commit) -> Option<Vec<String>> {
        let own = || {
            let json = fs::read(self.own_listing(commit)).ok()?;
            Some(serde_json::from_slice::<OwnListing>(&json).ok()?.files)
        };
        let hub = || {
            let json = fs::read(self.folder.join("trees").join(format!("{}.json", commit.as_str()))).ok()?;
            Some(serde_json::from_slice::<HubListing>(&json).ok()?.files.into_keys().collect())
        };
        own().or_else(hub)
    }

    /// The files of a snapshot that are needed and aren't there; none means that it can be used.
    ///
    /// A download may have stopped anywhere, and links appear one by one. So it is not enough that there is a folder: what
    /// should be in it is known from a listing, or, where an older library left none, from the index of the weights.
    pub(crate) fn missing(&self, commit: &Commit, files: Files) -> Vec<String> {
        let folder = self.snapshot(commit);
        let needed = match self.listing(commit) {
            Some(names) => select(&self.id, names.iter().map(String::as_str), files)
                .map_or_else(|_| vec![CONFIG.to_owned()], |names| names.iter().map(ToString::to_string).collect()),
            None => needed_by_index(&folder, files),
        };
        // A link to a blob that is gone is no file.
        needed.into_iter().filter(|name| !folder.join(name).is_file()).collect()
    }

    /// Makes a blob a snapshot's file.
    pub(crate) fn link(&self, commit: &Commit, name: &FileName, etag: &Etag) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(name.as_str());
        if path.is_file() {
            return Ok(());
        }
        make_parent(&path)?;
        // A link whose blob is gone stands in the way.
        let _ = fs::remove_file(&path);
        let up = "../".repeat(name.depth() + 2);
        match link(&format!("{up}blobs/{}", etag.as_str()), &self.blob(etag), &path) {
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|error| HubError::file(&path, "written", &error)),
        }
    }

    /// Writes a small file so that nobody ever sees half of it.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), HubError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let failed = |error: &io::Error| HubError::file(path, "written", error);
        make_parent(path)?;
        // Not beside `path`: whoever lists refs would take it for one.
        let unique = format!(".tmp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let temporary = self.folder.join(unique);
        fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed(&error)
        })
    }
}

/// What a snapshot must have where only its own files tell.
fn needed_by_index(folder: &Path, files: Files) -> Vec<String> {
    let mut needed = vec![CONFIG.to_owned(), "tokenizer.json".to_owned()];
    if files == Files::WithoutWeights {
        return needed;
    }
    let index = fs::read(folder.join(INDEX)).ok();
    match index.and_then(|json| serde_json::from_slice::<WeightIndex>(&json).ok()) {
        None => needed.push(SINGLE.to_owned()),
        Some(index) => {
            let mut shards: Vec<String> = index.weight_map.into_values().collect();
            shards.sort();
            shards.dedup();
            needed.append(&mut shards);
        }
    }
    needed
}

/// Makes the folder that a file is to lie in.
pub(crate) fn make_parent(path: &Path) -> Result<(), HubError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|error| HubError::file(folder, "made", &error))
}

#[cfg(unix)]
fn link(relative: &str, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Symbolic links take a privilege elsewhere: the hub's own libraries have copies there, too.
#[cfg(not(unix))]
fn link(_relative: &str, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(|_| ()))
}
