//! Models by hub id, and how far their download is.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use foveal_hub::{FileProgress, Files, Hub, HubError, ModelId, Progress, TotalProgress};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::stderr::say;

/// How often it is said how far a download is, where no bars can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A model's folder in the hub's cache, downloaded where files are missing.
pub(crate) fn download(id: &ModelId, files: Files) -> Result<PathBuf, HubError> {
    let hub = Hub::from_env()?;
    let snapshot = if std::io::stderr().is_terminal() {
        hub.snapshot(id, files, &Bars::default())
    } else {
        hub.snapshot(id, files, &Lines { id, said: Mutex::new(Instant::now()) })
    };
    Ok(snapshot?.folder().to_owned())
}

/// A bar for each file on its way, and one for all. They go away when they are dropped.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    planned: OnceLock<Planned>,
}

struct Planned {
    files: Vec<(ProgressBar, AtomicBool)>,
    total: ProgressBar,
}

impl Progress for Bars {
    fn planned(&self, files: &[FileProgress<'_>]) {
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |file: &FileProgress<'_>| {
            let style = style("{msg:45!} [{bar:20}] {bytes} of {total_bytes}");
            let bar = ProgressBar::hidden().with_style(style).with_message(file.name.to_owned());
            bar.set_length(file.len_bytes);
            (bar, AtomicBool::new(false))
        };
        let total = self.screen.add(ProgressBar::new(files.iter().map(|file| file.len_bytes).sum()));
        total.set_style(style("{msg:45!} [{bar:20}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"));
        total.set_message("Downloading");
        let _ = self.planned.set(Planned { files: files.iter().map(bar).collect(), total });
    }

    fn advanced(&self, file: FileProgress<'_>, all: TotalProgress) {
        let Some(Planned { files, total }) = self.planned.get() else { return };
        let Some((bar, is_shown)) = files.get(file.index) else { return };
        // Only what is on its way: a large model has more files than a screen has lines.
        if !is_shown.swap(true, Ordering::Relaxed) {
            self.screen.insert_before(total, bar.clone());
        }
        bar.set_position(file.done_bytes);
        total.set_position(all.done_bytes);
        if file.done_bytes == file.len_bytes {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // A screen that can't be written shows nothing to clear.
        let _ = self.screen.clear();
    }
}

/// A line every few seconds.
struct Lines<'a> {
    id: &'a ModelId,
    said: Mutex<Instant>,
}

impl Progress for Lines<'_> {
    fn planned(&self, files: &[FileProgress<'_>]) {
        let bytes = HumanBytes(files.iter().map(|file| file.len_bytes).sum());
        say(format_args!("Downloading {}: {bytes} in {} file(s).", self.id, files.len()));
    }

    fn advanced(&self, _: FileProgress<'_>, total: TotalProgress) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= LINE_EVERY {
            *said = Instant::now();
            let (done, len) = (HumanBytes(total.done_bytes), HumanBytes(total.len_bytes));
            say(format_args!("Downloading {}: {done} of {len}.", self.id));
        }
    }
}
