//! Files into the cache, several at once.

use std::fs::{self, File, TryLockError};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ureq::http::Uri;

use crate::HubError;
use crate::cache::{ModelCache, make_parent};
use crate::names::{Commit, Etag, FileName};
use crate::progress::{Progress, Tracker};
use crate::queue::{Queue, Task};
use crate::repo::{RemoteFile, Repo};
use crate::retry::RetryPolicy;
use crate::sink::Sink;

/// A content to fetch, and the files that have it.
#[derive(Debug)]
pub(crate) struct Blob {
    /// The name that messages give it, and that it is asked for by.
    pub(crate) name: FileName,
    /// Other files of the same content.
    others: Vec<FileName>,
    etag: Etag,
    pub(crate) len_bytes: u64,
    location: Mutex<Option<Uri>>,
    open: Mutex<Option<OpenBlob>>,
}

/// A blob that this process writes.
#[derive(Debug)]
struct OpenBlob {
    sink: Sink,
    /// Held until the blob is in its place.
    lock: Option<File>,
}

/// A download of some files of one commit.
pub(crate) struct Download<'a> {
    pub(crate) repo: Repo<'a>,
    pub(crate) cache: &'a ModelCache,
    pub(crate) commit: &'a Commit,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) blobs: &'a [Blob],
    pub(crate) queue: Queue,
    pub(crate) tracker: Tracker<'a>,
}

impl Blob {
    /// One for each content, the small ones first: what is wrong with a model shows early.
    pub(crate) fn of(files: Vec<RemoteFile>) -> Vec<Self> {
        let mut blobs: Vec<Self> = Vec::new();
        for RemoteFile { name, etag, len_bytes, location } in files {
            match blobs.iter_mut().find(|blob| blob.etag == etag && blob.len_bytes == len_bytes) {
                Some(blob) => blob.others.push(name),
                None => blobs.push(Self {
                    name,
                    others: Vec::new(),
                    etag,
                    len_bytes,
                    location: Mutex::new(location),
                    open: Mutex::new(None),
                }),
            }
        }
        blobs.sort_by(|a, b| (a.len_bytes, &a.name).cmp(&(b.len_bytes, &b.name)));
        blobs
    }

    /// Where its bytes are, if that isn't the hub.
    pub(crate) fn location(&self) -> Option<Uri> {
        lock(&self.location).clone()
    }

    /// The address has led to a failure: the hub will give another.
    pub(crate) fn forget_location(&self) {
        *lock(&self.location) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        repo: Repo<'a>,
        cache: &'a ModelCache,
        commit: &'a Commit,
        policy: &'a RetryPolicy,
        blobs: &'a [Blob],
        workers: usize,
        progress: &'a dyn Progress,
    ) -> Self {
        let queue = Queue::new(blobs.iter().map(|blob| blob.len_bytes).collect(), workers);
        let tracker = Tracker::new(progress, blobs.iter().map(|blob| (blob.name.to_string(), blob.len_bytes)));
        Self { repo, cache, commit, policy, blobs, queue, tracker }
    }

    /// Fetches everything, with that many threads.
    pub(crate) fn run(self, workers: usize) -> Result<(), HubError> {
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| self.work());
            }
        });
        self.queue.result()
    }

    fn work(&self) {
        while let Some(task) = self.queue.next(|| self.tracker.is_cancelled()) {
            if let Err(error) = self.perform(task) {
                self.queue.fail(error);
            }
        }
    }

    fn perform(&self, task: Task) -> Result<(), HubError> {
        let (Task::Open(index) | Task::Piece(index, _)) = task;
        let Some(blob) = self.blobs.get(index) else { return Ok(()) };
        match task {
            Task::Open(_) => self.open(index, blob),
            Task::Piece(_, range) => self.fetch(index, blob, range),
        }
    }

    fn fetch(&self, index: usize, blob: &Blob, range: Range<u64>) -> Result<(), HubError> {
        let result = crate::piece::fetch(self, index, blob, range);
        self.queue.fetched(index);
        result?;
        self.finish_if_complete(index, blob)
    }

    /// Whether this download is to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.tracker.is_cancelled() || self.queue.has_failed()
    }

    /// Locks a blob and sees what is there.
    fn open(&self, index: usize, blob: &Blob) -> Result<(), HubError> {
        if self.link_if_there(index, blob)? {
            return Ok(());
        }
        let Some(lock_file) = self.lock_blob(blob)? else {
            self.queue.locked(index);
            return Ok(());
        };
        // Whoever had the lock may have finished it.
        if self.link_if_there(index, blob)? {
            return Ok(());
        }
        let path = self.cache.incomplete(&blob.etag);
        make_parent(&path)?;
        let sink = Sink::open(&path, &blob.etag, blob.len_bytes, || self.is_stopped())?;
        self.begin(index, blob, OpenBlob { sink, lock: Some(lock_file) });
        self.finish_if_complete(index, blob)
    }

    fn begin(&self, index: usize, blob: &Blob, open: OpenBlob) {
        let written = open.sink.written();
        *lock(&blob.open) = Some(open);
        self.tracker.set(index, written);
        self.queue.opened(index, written);
    }

    /// The lock that all of the hub's libraries take; none if another process, or thread, has it.
    fn lock_blob(&self, blob: &Blob) -> Result<Option<File>, HubError> {
        let path = self.cache.lock(&blob.etag);
        make_parent(&path)?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| HubError::file(&path, "written", &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                tracing::info!("{} is being downloaded by somebody else; waiting for it", blob.name);
                Ok(None)
            }
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                // Two who write the same bytes at the same places do no harm; the checksum tells if they did.
                tracing::warn!("{} can't be locked: its file system has no locks", path.display());
                Ok(Some(file))
            }
            Err(TryLockError::Error(error)) => Err(HubError::file(&path, "locked", &error)),
        }
    }

    fn link_if_there(&self, index: usize, blob: &Blob) -> Result<bool, HubError> {
        let is_there = fs::metadata(self.cache.blob(&blob.etag)).is_ok_and(|file| file.len() == blob.len_bytes);
        if is_there {
            self.link(index, blob)?;
        }
        Ok(is_there)
    }

    fn link(&self, index: usize, blob: &Blob) -> Result<(), HubError> {
        let mut names = std::iter::once(&blob.name).chain(&blob.others);
        names.try_for_each(|name| self.cache.link(self.commit, name, &blob.etag))?;
        self.tracker.set(index, blob.len_bytes);
        self.queue.done(index);
        Ok(())
    }

    /// Does something with a blob's file, unless the blob is finished.
    pub(crate) fn with_sink<T>(
        &self,
        index: usize,
        blob: &Blob,
        act: impl FnOnce(&mut Sink) -> Result<T, HubError>,
    ) -> Result<Option<T>, HubError> {
        let mut open = lock(&blob.open);
        let Some(OpenBlob { sink, .. }) = open.as_mut() else { return Ok(None) };
        let before = sink.written();
        let result = act(sink)?;
        let written = sink.written();
        drop(open);
        if written > before {
            self.queue.wrote(index, written);
        }
        Ok(Some(result))
    }

    /// Checks a blob whose bytes are all there and puts it in its place.
    fn finish_if_complete(&self, index: usize, blob: &Blob) -> Result<(), HubError> {
        let mut slot = lock(&blob.open);
        if !slot.as_mut().is_some_and(|open| open.sink.take_completion()) {
            return Ok(());
        }
        let Some(OpenBlob { sink, lock: held }) = slot.take() else { return Ok(()) };
        drop(slot);
        match sink.finish(blob.name.as_str(), &self.cache.blob(&blob.etag))? {
            None => {
                self.link(index, blob)?;
                drop(held);
            }
            Some(sink) => self.begin(index, blob, OpenBlob { sink, lock: held }),
        }
        Ok(())
    }
}
