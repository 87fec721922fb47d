//! Tensors that are in no file: given in memory, rebuilt from a manifest, or dummies of a config.

use std::sync::Arc;

use bytemuck::allocation::try_zeroed_vec;
use foveal_device::{DType, DeviceError, Shape, SharedBytes};
use safetensors::Dtype;
use serde::Deserialize;

use super::{Entry, Storage, WeightSource};
use crate::folder::parse_json;
use crate::{CheckpointError, Formula, ModelConfig};

/// A tensor given in memory.
#[derive(Clone)]
pub struct HostTensor {
    /// Its name, in any generation's spelling.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian and row-major.
    pub bytes: SharedBytes,
}

/// Memory that every element type can be read from in place.
pub(crate) struct AlignedBytes {
    words: Vec<u64>,
    len_bytes: usize,
}

impl AlignedBytes {
    /// Zeros.
    pub(crate) fn zeroed(len_bytes: usize) -> Result<Self, DeviceError> {
        let words = try_zeroed_vec(len_bytes.div_ceil(size_of::<u64>()))
            .map_err(|()| DeviceError::OutOfMemory { len_bytes, device: "host" })?;
        Ok(Self { words, len_bytes })
    }

    /// A copy of bytes that lie badly.
    pub(super) fn copy_of(bytes: &[u8]) -> Result<Self, DeviceError> {
        let mut copy = Self::zeroed(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Ok(copy)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words).get_mut(..self.len_bytes).unwrap_or_default()
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(..self.len_bytes).unwrap_or_default()
    }
}

/// `manifest.json`: what the reference checkpoints are rebuilt from.
#[derive(Deserialize)]
struct Manifest {
    seed: u64,
    dtype: String,
    tensors: Vec<ManifestTensor>,
}

#[derive(Deserialize)]
struct ManifestTensor {
    name: String,
    shape: Vec<usize>,
    offset: f64,
    scale: f64,
    #[serde(default)]
    first4_bf16_bits: Vec<u16>,
}

impl WeightSource {
    /// Tensors given in memory; `location` is how errors name them.
    ///
    /// # Errors
    /// [`CheckpointError::Device`] for bytes that are not those of the shape, [`CheckpointError::DuplicateTensor`].
    pub fn in_memory(location: &str, tensors: impl IntoIterator<Item = HostTensor>) -> Result<Self, CheckpointError> {
        let mut source = Self::new(location.to_owned());
        for HostTensor { name, dtype, shape, bytes } in tensors {
            let (expected, got) = (byte_count(&name, dtype, &shape)?, (*bytes).as_ref().len());
            if expected != got {
                let shape =
                    Shape::new(&shape).map_err(|e| CheckpointError::Device { tensor: name.clone(), source: e })?;
                let mismatch = DeviceError::SizeMismatch { dtype, shape, expected, got };
                return Err(CheckpointError::Device { tensor: name, source: mismatch });
            }
            source.insert(Entry {
                written_name: name,
                file: location.into(),
                dtype: file_dtype(dtype),
                shape,
                len_bytes: got,
                storage: Storage::Shared { owner: bytes, range: 0..got },
            })?;
        }
        Ok(source)
    }

    /// The bf16 tensors of a reference checkpoint, made from its `manifest.json` by the [`Formula`]. The first values of
    /// each tensor are checked against the manifest here; the rest is made when it is asked for.
    ///
    /// # Errors
    /// [`CheckpointError::NotJson`], [`CheckpointError::BadField`], [`CheckpointError::DuplicateTensor`],
    /// [`CheckpointError::Device`] for an impossible shape, [`CheckpointError::FormulaMismatch`].
    pub fn rebuilt(manifest: &[u8], location: &str) -> Result<Self, CheckpointError> {
        let bad = |field: &str, expected: &str, got: String| CheckpointError::BadField {
            file: location.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let value = parse_json(manifest, location)?;
        let manifest: Manifest = serde_json::from_value(value).map_err(|_| {
            bad("tensors", "a list of name, shape, offset, scale beside seed and dtype", "not".to_owned())
        })?;
        if manifest.dtype != "bfloat16" {
            return Err(bad("dtype", "bfloat16", format!("`{}`", manifest.dtype)));
        }
        let mut source = Self::new(location.to_owned());
        for tensor in manifest.tensors {
            let formula = Formula { seed: manifest.seed, offset: tensor.offset, scale: tensor.scale };
            let got = formula.first_bits(&tensor.name, tensor.first4_bf16_bits.len());
            if got != tensor.first4_bf16_bits {
                return Err(CheckpointError::FormulaMismatch {
                    file: location.to_owned(),
                    tensor: tensor.name,
                    expected: tensor.first4_bf16_bits,
                    got,
                });
            }
            source.insert_formula(tensor.name, tensor.shape, formula)?;
        }
        Ok(source)
    }

    /// Random bf16 weights of a config's shapes, by the [`Formula`] and the rule for offsets and scales that the
    /// reference checkpoints follow: values of a sensible size, nothing learned. For benchmarks without a download.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`], [`CheckpointError::Device`] for an impossible shape.
    pub fn dummy(config: &ModelConfig, seed: u64) -> Result<Self, CheckpointError> {
        let mut source = Self::new(format!("dummy weights of {} (seed {seed})", config.family.name()));
        for spec in config.tensors()? {
            let formula = Formula::for_tensor(seed, &spec.name, &spec.shape, config.tie_word_embeddings);
            source.insert_formula(spec.name, spec.shape, formula)?;
        }
        Ok(source)
    }

    fn insert_formula(&mut self, name: String, shape: Vec<usize>, formula: Formula) -> Result<(), CheckpointError> {
        let len_bytes = byte_count(&name, DType::BF16, &shape)?;
        let file: Arc<str> = self.location.as_str().into();
        let storage = Storage::Formula(formula);
        self.insert(Entry { written_name: name, file, dtype: Dtype::BF16, shape, len_bytes, storage })
    }
}

fn byte_count(name: &str, dtype: DType, shape: &[usize]) -> Result<usize, CheckpointError> {
    let shape = Shape::new(shape).map_err(|source| CheckpointError::Device { tensor: name.to_owned(), source })?;
    Ok(shape.num_elements() * dtype.size_bytes())
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        _ => Dtype::U8,
    }
}
