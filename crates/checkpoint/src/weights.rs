//! Where tensors come from: mapped files, memory, or a formula.

mod format;
mod made;
mod map;
mod names;
mod open;
mod place;
mod summary;
mod write;

pub use made::HostTensor;
pub(crate) use map::map_file;
pub use names::prefix;
pub use place::Part;
pub use summary::{Component, ComponentSummary, TensorInfo};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use foveal_device::{DType, SharedBytes, Tensor};
use safetensors::Dtype;

use crate::{CheckpointError, Formula, Fp8Config, QuantizationConfig};
pub(crate) use made::AlignedBytes;

type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// A model's tensors by their canonical names: `model.visual.*`, `model.language_model.*`, `lm_head.weight`. Nothing is
/// read or made before it is asked for.
pub struct WeightSource {
    location: String,
    entries: BTreeMap<String, Entry>,
    total_bytes: u64,
    taken: Mutex<Taken>,
    progress: Option<Progress>,
    /// The scales that the config promises for FP8 layers, where it was asked.
    promised: Option<Fp8Config>,
}

/// One tensor, not yet looked at.
struct Entry {
    written_name: String,
    file: Arc<str>,
    dtype: Dtype,
    shape: Vec<usize>,
    len_bytes: usize,
    storage: Storage,
}

enum Storage {
    Shared { owner: SharedBytes, range: Range<usize> },
    Formula(Formula),
}

/// What has been asked for so far.
#[derive(Default)]
struct Taken {
    /// Handed out; shared again while somebody holds it, so that a tied head costs nothing.
    tensors: HashMap<String, Weak<Tensor>>,
    /// Known and not needed.
    skipped: BTreeSet<String>,
    bytes: u64,
}

impl WeightSource {
    fn new(location: String) -> Self {
        Self {
            location,
            entries: BTreeMap::new(),
            total_bytes: 0,
            taken: Mutex::default(),
            progress: None,
            promised: None,
        }
    }

    fn insert(&mut self, entry: Entry) -> Result<(), CheckpointError> {
        let name = names::canonical(&entry.written_name);
        if let Some(first) = self.entries.get(&name) {
            return Err(CheckpointError::DuplicateTensor {
                tensor: name,
                first: format!("{} ({})", first.file, first.written_name),
                second: format!("{} ({})", entry.file, entry.written_name),
            });
        }
        self.total_bytes = self.total_bytes.saturating_add(entry.len_bytes as u64);
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Calls `on_progress(done_bytes, total_bytes)` each time a tensor is taken for the first time: for a progress bar
    /// while a model packs its weights. `total_bytes` counts all tensors, also those of parts that are not loaded.
    #[must_use]
    pub fn with_progress(mut self, on_progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Box::new(on_progress));
        self
    }

    /// Holds the scales of FP8 layers to what `config.json` says of them. Without it the tensors alone decide.
    #[must_use]
    pub fn with_quantization(mut self, quantization: Option<&QuantizationConfig>) -> Self {
        self.promised = quantization.and_then(QuantizationConfig::fp8);
        self
    }

    /// Where the weights come from, as errors say it.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether there is a tensor of this canonical name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names below `prefix`, for a part that loads itself: `weights.at("model.visual.blocks.3")`.
    #[must_use]
    pub fn at(&self, prefix: &str) -> WeightScope<'_> {
        WeightScope { source: self, prefix: prefix.to_owned() }
    }

    /// The tensor of this canonical name (f32, bf16 or f16), which must have this shape. A mapped tensor is a view of
    /// the file; only one that begins at an odd byte is copied. Asking twice gives the same memory.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::WrongShape`], [`CheckpointError::WrongDType`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        let entry = self.entry(name, shape)?;
        self.take(name, entry, entry.float_dtype()?)
    }

    /// The FP8 (e4m3) tensor of this canonical name, which must have this shape: its elements without their scales,
    /// which are [`WeightScope::linear_format`]'s. In place, as with [`WeightSource::get`].
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    pub fn get_fp8(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        let entry = self.entry(name, shape)?;
        entry.require_fp8()?;
        self.take(name, entry, DType::F8E4M3)
    }

    /// The bytes of a tensor whose elements take one byte each (FP8, int8, packed 4-bit), as u8: for weight formats
    /// that the reader decodes itself.
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    pub fn get_bytes(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        let entry = self.entry(name, shape)?;
        match entry.dtype.bitsize() {
            8 => self.take(name, entry, DType::U8),
            _ => Err(entry.wrong_dtype("elements of one byte")),
        }
    }

    /// Marks a tensor as known and not needed, whether it is there or not: `lm_head.weight` beside a tied head, where
    /// some checkpoints keep a copy of the embedding table that the reference implementation ignores too.
    pub fn skip(&self, name: &str) {
        self.taken().skipped.insert(name.to_owned());
    }

    /// Names every tensor under `prefixes` that nobody asked for. Call it when the parts of those prefixes are loaded;
    /// [`prefix::ALL`] covers the whole checkpoint. Buffers that older tools saved beside the weights are ignored.
    ///
    /// # Errors
    /// [`CheckpointError::SurplusTensors`].
    pub fn finish(&self, prefixes: &[&str]) -> Result<(), CheckpointError> {
        let taken = self.taken();
        let is_surplus = |name: &str| {
            prefixes.iter().any(|prefix| names::is_under(name, prefix))
                && !names::is_buffer(name)
                && !taken.tensors.contains_key(name)
                && !taken.skipped.contains(name)
        };
        let surplus = self.entries.iter().filter(|(name, _)| is_surplus(name));
        let tensors: Vec<_> = surplus.map(|(_, entry)| format!("{} ({})", entry.written_name, entry.file)).collect();
        match tensors.is_empty() {
            true => Ok(()),
            false => Err(CheckpointError::SurplusTensors { location: self.location.clone(), tensors }),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // A thread that panicked while it held the lock left whole entries: each change is one insertion.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, CheckpointError> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name, shape))?;
        if entry.shape != shape {
            return Err(CheckpointError::WrongShape {
                file: entry.file.to_string(),
                tensor: entry.written_name.clone(),
                expected: shape.to_vec(),
                got: entry.shape.clone(),
            });
        }
        Ok(entry)
    }

    fn missing(&self, name: &str, shape: &[usize]) -> CheckpointError {
        let (tensor, location) = (name.to_owned(), self.location.clone());
        CheckpointError::MissingTensor { tensor, location, expected: shape.to_vec() }
    }

    fn take(&self, name: &str, entry: &Entry, dtype: DType) -> Result<Arc<Tensor>, CheckpointError> {
        let held = self.taken().tensors.get(name).and_then(Weak::upgrade);
        // Elements of one byte may be held as bytes, too.
        if let Some(tensor) = held.filter(|tensor| tensor.dtype() == dtype) {
            return Ok(tensor);
        }
        let tensor = Arc::new(entry.tensor(dtype)?);
        self.note_taken(name, entry, Arc::downgrade(&tensor));
        Ok(tensor)
    }

    /// Remembers who holds a tensor and tells how far loading has come.
    fn note_taken(&self, name: &str, entry: &Entry, tensor: Weak<Tensor>) {
        let done_bytes = {
            let mut taken = self.taken();
            if taken.tensors.insert(name.to_owned(), tensor).is_none() {
                taken.bytes += entry.len_bytes as u64;
            }
            taken.bytes
        };
        if let Some(on_progress) = &self.progress {
            on_progress(done_bytes, self.total_bytes);
        }
    }
}

impl fmt::Debug for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightSource({}: {} tensors, {} bytes)", self.location, self.entries.len(), self.total_bytes)
    }
}

impl Entry {
    fn tensor(&self, dtype: DType) -> Result<Tensor, CheckpointError> {
        let device = |source| CheckpointError::Device { tensor: self.written_name.clone(), source };
        match &self.storage {
            Storage::Formula(formula) => {
                let bytes = formula.bytes(&self.written_name, self.len_bytes / size_of::<u16>()).map_err(device)?;
                Tensor::from_shared(Arc::new(bytes), 0..self.len_bytes, dtype, &self.shape).map_err(device)
            }
            Storage::Shared { owner, range } => {
                let bytes = self.shared_bytes(owner, range);
                bring_in(bytes);
                if bytes.as_ptr().addr().is_multiple_of(dtype.size_bytes()) {
                    return Tensor::from_shared(owner.clone(), range.clone(), dtype, &self.shape).map_err(device);
                }
                let copy = AlignedBytes::copy_of(bytes).map_err(device)?;
                Tensor::from_shared(Arc::new(copy), 0..self.len_bytes, dtype, &self.shape).map_err(device)
            }
        }
    }

    fn shared_bytes<'a>(&self, owner: &'a SharedBytes, range: &Range<usize>) -> &'a [u8] {
        // Checked against the length of the file when it was opened.
        (**owner).as_ref().get(range.clone()).unwrap_or_default()
    }

    /// The type of the elements, if it is one to compute with.
    fn float_dtype(&self) -> Result<DType, CheckpointError> {
        match self.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::BF16 => Ok(DType::BF16),
            Dtype::F16 => Ok(DType::F16),
            _ => Err(self.wrong_dtype("f32, bf16 or f16")),
        }
    }

    fn require_fp8(&self) -> Result<(), CheckpointError> {
        if self.dtype == Dtype::F8_E4M3 { Ok(()) } else { Err(self.wrong_dtype("f8_e4m3")) }
    }

    fn wrong_dtype(&self, expected: &'static str) -> CheckpointError {
        CheckpointError::WrongDType {
            file: self.file.to_string(),
            tensor: self.written_name.clone(),
            expected,
            got: format!("{:?}", self.dtype),
        }
    }
}

/// Reads one byte of every page, so that a mapped tensor is in memory when it is loaded: the progress bar then tells the
/// truth, and the first prompt doesn't pay for the disk and the page faults.
fn bring_in(bytes: &[u8]) {
    const PAGE_BYTES: usize = 4096;
    let sum = bytes.iter().step_by(PAGE_BYTES).fold(0_u8, |sum, &byte| sum ^ byte);
    std::hint::black_box(sum);
}

/// The tensors below a prefix. Made by [`WeightSource::at`].
#[derive(Clone, Debug)]
pub struct WeightScope<'a> {
    source: &'a WeightSource,
    prefix: String,
}

impl<'a> WeightScope<'a> {
    /// The names below `part` of this prefix.
    #[must_use]
    pub fn at(&self, part: &str) -> WeightScope<'a> {
        WeightScope { source: self.source, prefix: self.full_name(part) }
    }

    /// The canonical name of a tensor below this prefix.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// [`WeightSource::contains`] below this prefix.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.full_name(name))
    }

    /// [`WeightSource::get`] below this prefix.
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        self.source.get(&self.full_name(name), shape)
    }

    /// [`WeightSource::get_fp8`] below this prefix.
    ///
    /// # Errors
    /// As [`WeightSource::get_fp8`].
    pub fn get_fp8(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        self.source.get_fp8(&self.full_name(name), shape)
    }

    /// [`WeightSource::get_bytes`] below this prefix.
    ///
    /// # Errors
    /// As [`WeightSource::get_bytes`].
    pub fn get_bytes(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, CheckpointError> {
        self.source.get_bytes(&self.full_name(name), shape)
    }

    /// [`WeightSource::skip`] below this prefix.
    pub fn skip(&self, name: &str) {
        self.source.skip(&self.full_name(name));
    }
}
