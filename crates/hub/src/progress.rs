//! How far a download is.

use std::sync::atomic::{AtomicU64, Ordering};

/// One file of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileProgress<'a> {
    /// Its place in the list that [`Progress::planned`] got.
    pub index: usize,
    /// Its name in the model's folder.
    pub name: &'a str,
    /// Bytes that are there, those of an earlier try included. It falls back where damaged bytes are fetched again.
    pub done_bytes: u64,
    /// Its size.
    pub len_bytes: u64,
}

/// All files of a download together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalProgress {
    /// Bytes that are there.
    pub done_bytes: u64,
    /// Bytes in all.
    pub len_bytes: u64,
}

/// Watches a download, and can end it. Methods are called from several threads at once and should return soon; `()` watches
/// nothing.
pub trait Progress: Sync {
    /// Which files are missing, once their sizes are known. Not called if none is.
    fn planned(&self, files: &[FileProgress<'_>]) {
        let _ = files;
    }

    /// A file has got on.
    fn advanced(&self, file: FileProgress<'_>, total: TotalProgress) {
        let _ = (file, total);
    }

    /// Whether to stop; asked often. What was downloaded stays, and the next download goes on from there.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}

/// Counts for a [`Progress`].
pub(crate) struct Tracker<'a> {
    progress: &'a dyn Progress,
    files: Vec<Tracked>,
    len_bytes: u64,
}

struct Tracked {
    name: String,
    len_bytes: u64,
    done_bytes: AtomicU64,
}

impl<'a> Tracker<'a> {
    /// For files by their names and sizes.
    pub(crate) fn new(progress: &'a dyn Progress, files: impl Iterator<Item = (String, u64)>) -> Self {
        let tracked = |(name, len_bytes)| Tracked { name, len_bytes, done_bytes: AtomicU64::new(0) };
        let files: Vec<Tracked> = files.map(tracked).collect();
        let len_bytes = files.iter().map(|file| file.len_bytes).sum();
        let tracker = Self { progress, files, len_bytes };
        let planned: Vec<FileProgress<'_>> = (0..).zip(&tracker.files).map(|(i, file)| file.progress(i)).collect();
        progress.planned(&planned);
        tracker
    }

    /// More of a file has come.
    pub(crate) fn add(&self, index: usize, bytes: u64) {
        self.change(index, |done| {
            done.fetch_add(bytes, Ordering::Relaxed);
        });
    }

    /// This much of a file is there.
    pub(crate) fn set(&self, index: usize, bytes: u64) {
        self.change(index, |done| done.store(bytes, Ordering::Relaxed));
    }

    fn change(&self, index: usize, change: impl Fn(&AtomicU64)) {
        let Some(file) = self.files.get(index) else { return };
        change(&file.done_bytes);
        let done_bytes = self.files.iter().map(|file| file.done_bytes.load(Ordering::Relaxed)).sum();
        self.progress.advanced(file.progress(index), TotalProgress { done_bytes, len_bytes: self.len_bytes });
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

impl Tracked {
    fn progress(&self, index: usize) -> FileProgress<'_> {
        let done_bytes = self.done_bytes.load(Ordering::Relaxed);
        FileProgress { index, name: &self.name, done_bytes, len_bytes: self.len_bytes }
    }
}
