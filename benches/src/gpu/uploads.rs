//! Copies from the host that can be left out.

use std::sync::atomic::{AtomicBool, Ordering};

use foveal_device::{CudaStream, DeviceError, Upload, ViewMut};
use foveal_pinned::{PinnedPool, PinnedUploader};

/// Uploads through a pool, except for those of work that is being recorded: the host reuses a pool's blocks when an event
/// has been reached, and an event that was recorded never is. What they would have brought must be there already.
pub(super) struct PausableUploads {
    uploader: PinnedUploader,
    is_paused: AtomicBool,
}

impl PausableUploads {
    /// Uploads by `uploader`.
    pub(super) fn new(uploader: PinnedUploader) -> Self {
        Self { uploader, is_paused: AtomicBool::new(false) }
    }

    /// Where they are staged.
    pub(super) fn pool(&self) -> &PinnedPool {
        self.uploader.pool()
    }

    /// Leaves all uploads out until what it gives is dropped.
    pub(super) fn pause(&self) -> Pause<'_> {
        self.is_paused.store(true, Ordering::Relaxed);
        Pause(self)
    }
}

impl Upload for PausableUploads {
    fn upload(&self, stream: &CudaStream, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError> {
        if self.is_paused.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.uploader.upload(stream, bytes, to)
    }
}

/// While it lives, nothing is uploaded.
pub(super) struct Pause<'a>(&'a PausableUploads);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.is_paused.store(false, Ordering::Relaxed);
    }
}
