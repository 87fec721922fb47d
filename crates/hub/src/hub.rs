//! From an id to a folder.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cache::ModelCache;
use crate::download::{Blob, Download};
use crate::http::{Client, Endpoint, Token};
use crate::names::{Commit, FileName};
use crate::repo::{Listing, RemoteFile, Repo};
use crate::retry::{RetryPolicy, persist};
use crate::select::select;
use crate::{Files, HubError, ModelId, Progress, environment};

/// Connections at once, unless somebody wants another number: as many as the hub's own libraries.
const MAX_CONNECTIONS: usize = 8;

/// How many missing files a message names.
const MAX_NAMED: usize = 3;

/// A hub and the cache of what was downloaded from it.
///
/// ```
/// use foveal_hub::{Files, Hub};
///
/// # fn main() -> Result<(), foveal_hub::HubError> {
/// let cache = std::env::temp_dir().join("no-models-here");
/// let hub = Hub::new(cache).with_offline(true);
/// let error = hub.snapshot(&"org/name".parse()?, Files::All, &()).unwrap_err();
/// assert!(error.to_string().contains("org/name is not in"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
    endpoint: Option<Endpoint>,
    token: Option<Token>,
    is_offline: bool,
    max_connections: usize,
    policy: RetryPolicy,
}

/// A model's folder in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    folder: PathBuf,
    commit: String,
}

impl Snapshot {
    /// Where the files are: `config.json` and so on. They are links to files that other commits may share: not to be changed.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which commit they are of.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }
}

impl Hub {
    /// The public hub without a token, and a cache; it is made when something is downloaded.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let policy = RetryPolicy::default();
        let (endpoint, token) = (None, None);
        Self { cache: cache.into(), endpoint, token, is_offline: false, max_connections: MAX_CONNECTIONS, policy }
    }

    /// What the environment says, in the variables of the hub's own libraries:
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `HF_HUB_CACHE` | the cache; else `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or `~/.cache/huggingface/hub` |
    /// | `HF_TOKEN` | the token; else what the file `$HF_TOKEN_PATH` or `$HF_HOME/token` holds |
    /// | `HF_HUB_OFFLINE` | `1`: ask nobody, take what is in the cache |
    /// | `HF_ENDPOINT` | a mirror of the hub |
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`], [`HubError::InvalidSetting`], and [`HubError::File`] for a file with a token that can't be
    /// read.
    pub fn from_env() -> Result<Self, HubError> {
        environment::hub(|name| std::env::var_os(name))
    }

    /// Another address than the public hub's: `https://...`, or `http://...` for a server of one's own.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`].
    pub fn with_endpoint(mut self, endpoint: &str) -> Result<Self, HubError> {
        self.endpoint = Some(Endpoint::parse(endpoint)?);
        Ok(self)
    }

    /// A token that the hub knows somebody by; an empty one is none. It goes to the hub's own host only, and is never printed.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`].
    pub fn with_token(mut self, token: &str) -> Result<Self, HubError> {
        self.token = Token::parse(token)?;
        Ok(self)
    }

    /// Whether only the cache may be used.
    #[must_use]
    pub fn with_offline(mut self, is_offline: bool) -> Self {
        self.is_offline = is_offline;
        self
    }

    /// The most connections at once, of which each has a thread; at least 1. Each takes up to 32 MiB of memory.
    #[must_use]
    pub fn with_max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections.max(1);
        self
    }

    /// When to try again.
    #[must_use]
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Where models are kept.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A model's folder, with all its files in it: downloaded where they are missing.
    ///
    /// The hub is asked which commit the revision is at, unless the revision is a commit that is there already. If the hub
    /// can't be asked, what is in the cache is used, with a warning in the log, provided that it is complete.
    ///
    /// # Errors
    /// [`HubError`]: what is wrong, and what would help. After [`HubError::Interrupted`], [`HubError::Cancelled`],
    /// [`HubError::NoSpace`] and the death of the process the next call goes on where this one stopped.
    pub fn snapshot(&self, id: &ModelId, files: Files, progress: &dyn Progress) -> Result<Snapshot, HubError> {
        let cache = ModelCache::new(&self.cache, id);
        if self.is_offline {
            return self.cached(&cache, id, files);
        }
        let in_cache = self.cached(&cache, id, files).ok();
        if id.is_pinned()
            && let Some(snapshot) = in_cache
        {
            return Ok(snapshot);
        }
        let endpoint = self.endpoint.clone().map_or_else(|| Endpoint::parse(Endpoint::DEFAULT), Ok)?;
        let client = Client::new(endpoint, self.token.clone(), self.max_connections);
        let repo = Repo { client: &client, id };
        // Whoever has something to fall back on isn't kept waiting.
        let once = RetryPolicy { max_attempts: 1, ..self.policy };
        let policy = if in_cache.is_some() { &once } else { &self.policy };
        let listing = match (persist(policy, || progress.is_cancelled(), || repo.listing()), in_cache) {
            (Ok(listing), _) => listing,
            (Err(error), Some(snapshot)) if error.is_no_answer() => {
                tracing::warn!("{error}; using what was downloaded of {id} before, commit {}", snapshot.commit);
                return Ok(snapshot);
            }
            (Err(error), _) => return Err(error),
        };
        self.fetch(repo, &cache, listing, files, progress)
    }

    /// What is in the cache, if it is complete.
    fn cached(&self, cache: &ModelCache, id: &ModelId, files: Files) -> Result<Snapshot, HubError> {
        let offline = || HubError::Offline { id: id.to_string(), cache: self.cache.clone() };
        let commit = cache.commit(id).ok_or_else(offline)?;
        let folder = cache.snapshot(&commit);
        if !folder.is_dir() {
            return Err(offline());
        }
        let missing = cache.missing(&commit, files);
        if !missing.is_empty() {
            return Err(HubError::Incomplete { id: id.to_string(), folder, missing: named(&missing) });
        }
        Ok(Snapshot { folder, commit: commit.as_str().to_owned() })
    }

    /// Downloads what is missing of a listing.
    fn fetch(
        &self,
        repo: Repo<'_>,
        cache: &ModelCache,
        listing: Listing,
        files: Files,
        progress: &dyn Progress,
    ) -> Result<Snapshot, HubError> {
        let Listing { commit, names } = listing;
        let folder = cache.snapshot(&commit);
        let mut missing = select(repo.id.repo(), names.iter().map(String::as_str), files)?;
        missing.retain(|name| !folder.join(name.as_str()).is_file());
        if !missing.is_empty() {
            cache.note_listing(&commit, names)?;
            let blobs = Blob::of(self.describe(repo, &commit, &missing, progress)?);
            let workers = self.max_connections;
            Download::new(repo, cache, &commit, &self.policy, &blobs, workers, progress).run(workers)?;
        }
        // Last: until then the revision means what was complete before.
        match cache.note_commit(repo.id, &commit) {
            // A cache that somebody else fills may be read only.
            Err(error) if missing.is_empty() => tracing::debug!(%error, "the revision's commit isn't noted"),
            other => other?,
        }
        Ok(Snapshot { folder, commit: commit.as_str().to_owned() })
    }

    /// Sizes and etags, several files at once.
    fn describe(
        &self,
        repo: Repo<'_>,
        commit: &Commit,
        names: &[FileName],
        progress: &dyn Progress,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let next = AtomicUsize::new(0);
        let described = Mutex::new(Ok(Vec::with_capacity(names.len())));
        let lock = || described.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_stopped = || progress.is_cancelled() || lock().is_err();
        let work = || {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = persist(&self.policy, is_stopped, || repo.describe(commit, name));
                match (&mut *lock(), result) {
                    (Ok(files), Ok(file)) => files.push(file),
                    (all @ Ok(_), Err(error)) => *all = Err(error),
                    (Err(_), _) => return,
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.max_connections.min(names.len()) {
                scope.spawn(work);
            }
        });
        described.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The first few, and how many more.
fn named(names: &[String]) -> String {
    let first = names.get(..MAX_NAMED.min(names.len())).unwrap_or_default().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
