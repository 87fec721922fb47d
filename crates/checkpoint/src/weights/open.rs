//! Opens the weight files of a model folder and checks them before anything is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foveal_device::SharedBytes;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, Value};

use super::{Entry, Storage, WeightSource};
use crate::{CheckpointError, ModelFolder};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes before a safetensors header: its length.
const HEADER_LEN_BYTES: usize = 8;

impl WeightSource {
    /// Maps `model.safetensors`, or the shards of `model.safetensors.index.json`, and reads their headers.
    ///
    /// # Errors
    /// [`CheckpointError::MissingFile`] when the folder has neither, [`CheckpointError::CorruptShard`],
    /// [`CheckpointError::WrongShardLength`], [`CheckpointError::MissingShard`], [`CheckpointError::NotInShard`],
    /// [`CheckpointError::DuplicateTensor`], and [`CheckpointError::NotJson`] or [`CheckpointError::BadField`] for the
    /// index.
    pub fn open(folder: &ModelFolder) -> Result<Self, CheckpointError> {
        if let Some(bytes) = folder.shared(SINGLE)? {
            let file = folder.locate(SINGLE);
            let mut source = Self::new(file.clone());
            source.insert_shard(&file, &bytes)?;
            return Ok(source);
        }
        let location = folder.locate(INDEX);
        let Some(index) = folder.json(INDEX)? else {
            return Err(CheckpointError::MissingFile {
                file: folder.locate(SINGLE),
                purpose: "the weights (or model.safetensors.index.json, where they are in several files)",
            });
        };
        let mut source = Self::new(location.clone());
        for (shard, tensors) in shards(&index, &location)? {
            let file = folder.locate(&shard);
            let first = tensors.first().cloned().unwrap_or_default();
            let Some(bytes) = folder.shared(&shard)? else {
                return Err(CheckpointError::MissingShard { index: location, file, tensor: first });
            };
            let held = source.insert_shard(&file, &bytes)?;
            if let Some(tensor) = tensors.into_iter().find(|name| !held.contains(name)) {
                return Err(CheckpointError::NotInShard { index: location, file, tensor });
            }
        }
        Ok(source)
    }

    /// Adds the tensors of one safetensors file; gives their names as written.
    fn insert_shard(&mut self, file: &str, bytes: &SharedBytes) -> Result<BTreeSet<String>, CheckpointError> {
        let all = (**bytes).as_ref();
        let (header_len, metadata) =
            SafeTensors::read_metadata(all).map_err(|error| header_error(file, all, &error))?;
        let start = HEADER_LEN_BYTES + header_len;
        let file: Arc<str> = file.into();
        let mut held = BTreeSet::new();
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            self.insert(Entry {
                written_name: name.clone(),
                file: file.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                len_bytes: to - from,
                storage: Storage::Shared { owner: bytes.clone(), range: start + from..start + to },
            })?;
            held.insert(name);
        }
        Ok(held)
    }
}

/// The index by shard: file name to the tensors that it should hold.
fn shards(index: &Value, location: &str) -> Result<BTreeMap<String, Vec<String>>, CheckpointError> {
    let bad = |field: String, expected: &str, got: &str| CheckpointError::BadField {
        file: location.to_owned(),
        field,
        expected: expected.to_owned(),
        got: got.to_owned(),
    };
    let Some(weight_map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(bad("weight_map".to_owned(), "an object of tensor names and file names", "missing or no object"));
    };
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in weight_map {
        let field = || format!("weight_map.{tensor}");
        let Some(file) = file.as_str() else {
            return Err(bad(field(), "a file name", "no string"));
        };
        // A downloaded index must not reach out of its folder.
        if file.is_empty() || file.contains(['/', '\\']) || file == "." || file == ".." {
            return Err(bad(field(), "the name of a file in the same folder", &format!("`{file}`")));
        }
        shards.entry(file.to_owned()).or_default().push(tensor.clone());
    }
    Ok(shards)
}

/// Says in our words what is wrong with a header.
fn header_error(file: &str, bytes: &[u8], error: &SafeTensorError) -> CheckpointError {
    let corrupt = |reason: String| CheckpointError::CorruptShard { file: file.to_owned(), reason };
    match error {
        SafeTensorError::HeaderTooSmall => corrupt(format!("it has {} bytes, less than a header takes", bytes.len())),
        SafeTensorError::InvalidHeaderLength => match header_len(bytes) {
            Some(len) => CheckpointError::WrongShardLength {
                file: file.to_owned(),
                expected: len.saturating_add(HEADER_LEN_BYTES as u64),
                got: bytes.len() as u64,
            },
            None => corrupt("its header's length can't be read".to_owned()),
        },
        SafeTensorError::HeaderTooLarge => {
            corrupt(format!("its header would be {} bytes long, more than any", header_len(bytes).unwrap_or_default()))
        }
        SafeTensorError::MetadataIncompleteBuffer => CheckpointError::WrongShardLength {
            file: file.to_owned(),
            expected: expected_len(bytes).unwrap_or_default(),
            got: bytes.len() as u64,
        },
        SafeTensorError::InvalidHeader(_) => corrupt("its header is no UTF-8 text".to_owned()),
        SafeTensorError::InvalidHeaderDeserialization(_) => {
            corrupt("its header is no JSON table of tensors with known dtypes".to_owned())
        }
        SafeTensorError::InvalidOffset(tensor) => {
            corrupt(format!("the bytes of {tensor} don't follow those of the tensor before it, or a name stands twice"))
        }
        SafeTensorError::TensorInvalidInfo => {
            corrupt("a tensor's bytes are not those of its shape and dtype".to_owned())
        }
        SafeTensorError::ValidationOverflow => corrupt("a tensor's shape is larger than any memory".to_owned()),
        _ => corrupt("its header contradicts itself".to_owned()),
    }
}

fn header_len(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk::<HEADER_LEN_BYTES>().map(|len| u64::from_le_bytes(*len))
}

/// Bytes that a file should have by its own header.
fn expected_len(bytes: &[u8]) -> Option<u64> {
    let len = header_len(bytes)?;
    let header = bytes.get(HEADER_LEN_BYTES..)?.get(..usize::try_from(len).ok()?)?;
    let table: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let ends = table.values().filter_map(|info| info.get("data_offsets")?.get(1)?.as_u64());
    Some(ends.max().unwrap_or(0).saturating_add(len).saturating_add(HEADER_LEN_BYTES as u64))
}

/// How a dtype is called in tables.
pub(super) fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}
