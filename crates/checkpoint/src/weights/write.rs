//! Writes a source as a safetensors file: how a rebuilt or dummy checkpoint becomes a model folder.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use foveal_device::DeviceError;
use safetensors::{Dtype, SafeTensorError, View};

use super::{Entry, Storage, WeightSource};
use crate::CheckpointError;
use crate::folder::io_reason;

impl WeightSource {
    /// Writes all tensors to one safetensors file, under the names that they had. One tensor is in memory at a time.
    ///
    /// # Errors
    /// [`CheckpointError::Unwritable`], and [`CheckpointError::Device`] when a tensor's memory can't be had.
    pub fn write_safetensors(&self, path: &Path) -> Result<(), CheckpointError> {
        // `View::data` can't fail, so memory is tried for beforehand.
        if let Some(largest) = self.entries.values().max_by_key(|entry| entry.len_bytes) {
            largest
                .reserve()
                .map_err(|source| CheckpointError::Device { tensor: largest.written_name.clone(), source })?;
        }
        let tensors = self.entries.values().map(|entry| (entry.written_name.as_str(), EntryView(entry)));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| CheckpointError::Unwritable {
            file: path.display().to_string(),
            reason: match &error {
                SafeTensorError::IoError(error) => io_reason(error),
                _ => "the tensors make no safetensors file".to_owned(),
            },
        })
    }
}

struct EntryView<'a>(&'a Entry);

impl Entry {
    fn reserve(&self) -> Result<(), DeviceError> {
        super::AlignedBytes::zeroed(self.len_bytes).map(drop)
    }
}

impl View for EntryView<'_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.0.storage {
            Storage::Shared { owner, range } => Cow::Borrowed(self.0.shared_bytes(owner, range)),
            Storage::Formula(formula) => {
                let mut bytes = vec![0; self.0.len_bytes];
                formula.fill(&self.0.written_name, &mut bytes);
                Cow::Owned(bytes)
            }
        }
    }

    fn data_len(&self) -> usize {
        self.0.len_bytes
    }
}
