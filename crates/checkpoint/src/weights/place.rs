//! Weights where a device's operators read them: in place on the CPU, in the GPU's memory there.

use std::sync::{Arc, Weak};

use bytemuck::NoUninit;
use foveal_device::{CudaStream, DType, Device, DeviceError, Element, Tensor, ViewMut};
use half::{bf16, f16};
use safetensors::Dtype;

use super::{Entry, Storage, WeightScope};
use crate::CheckpointError;

/// Elements that are converted at a time on the way to a GPU.
const CHUNK_LEN: usize = 4 << 20;

/// One of the tensors that an operator takes as one, stacked along the first dimension.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its name below the scope.
    pub name: &'a str,
    /// Its shape in the checkpoint.
    pub shape: &'a [usize],
    /// The rows and row lengths (of all dimensions but the first together) that it has in a GPU's memory, zeros where the
    /// checkpoint has none; `None` for those of `shape`. The CPU reads weights in place, without any.
    pub padded: Option<[usize; 2]>,
}

impl<'a> Part<'a> {
    /// A part as it is.
    #[must_use]
    pub fn new(name: &'a str, shape: &'a [usize]) -> Self {
        Self { name, shape, padded: None }
    }

    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Rows and their length on a GPU.
    fn placed(&self) -> [usize; 2] {
        self.padded.unwrap_or([self.rows(), self.row_len()])
    }
}

impl WeightScope<'_> {
    /// Tensors that an operator takes as one, stacked along the first dimension, on `device`: on the CPU each as it lies
    /// in the checkpoint; on a GPU one bfloat16 tensor `[sum of rows, row_len]` (a single part keeps its own shape unless
    /// it is padded). Weights of a formula are made on the GPU.
    ///
    /// # Errors
    /// As [`super::WeightSource::get`], and [`CheckpointError::Device`] when the GPU's memory is short.
    pub fn place(&self, device: &Device, parts: &[Part<'_>]) -> Result<Vec<Arc<Tensor>>, CheckpointError> {
        match device.stream().cuda() {
            None => parts.iter().map(|part| self.get(part.name, part.shape)).collect(),
            Some(stream) => Ok(vec![self.place_on(device, stream, parts, DType::BF16)?]),
        }
    }

    /// As [`WeightScope::place`] for FP8 weights, whose bytes stay as they are: on a GPU one FP8 tensor
    /// `[sum of rows, row_len]`. Their scales are [`WeightScope::linear_format`]'s.
    ///
    /// # Errors
    /// As [`super::WeightSource::get_fp8`], and [`CheckpointError::Device`] when the GPU's memory is short.
    pub fn place_fp8(&self, device: &Device, parts: &[Part<'_>]) -> Result<Vec<Arc<Tensor>>, CheckpointError> {
        match device.stream().cuda() {
            None => parts.iter().map(|part| self.get_fp8(part.name, part.shape)).collect(),
            Some(stream) => Ok(vec![self.place_on(device, stream, parts, DType::F8E4M3)?]),
        }
    }

    /// As [`WeightScope::place`] for a tensor that stands alone.
    ///
    /// # Errors
    /// As [`WeightScope::place`].
    pub fn place_one(&self, device: &Device, part: Part<'_>) -> Result<Arc<Tensor>, CheckpointError> {
        match device.stream().cuda() {
            None => self.get(part.name, part.shape),
            Some(stream) => self.place_on(device, stream, &[part], DType::BF16),
        }
    }

    /// As [`WeightScope::place`] for vectors that must be one tensor everywhere (biases): on the CPU, several are joined
    /// as float32, which holds every value of the narrower types exactly.
    ///
    /// # Errors
    /// As [`WeightScope::place`].
    pub fn place_joined(&self, device: &Device, parts: &[Part<'_>]) -> Result<Arc<Tensor>, CheckpointError> {
        if let [part] = parts {
            return self.place_one(device, *part);
        }
        if let Some(stream) = device.stream().cuda() {
            return self.place_on(device, stream, parts, DType::BF16);
        }
        let placed = self.place(device, parts)?;
        let mut values = Vec::new();
        for (tensor, part) in placed.iter().zip(parts) {
            values.extend(to_f32(tensor).map_err(|source| self.device_error(part.name, source))?);
        }
        let joined = Tensor::from_slice(device, &values, &[values.len()]);
        joined.map(Arc::new).map_err(|source| self.device_error("joined", source))
    }

    /// The elements of a float tensor as float32, on the host.
    ///
    /// # Errors
    /// As [`super::WeightSource::get`].
    pub fn to_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.get(name, shape)?;
        to_f32(&tensor).map_err(|source| self.device_error(name, source))
    }

    fn device_error(&self, name: &str, source: DeviceError) -> CheckpointError {
        CheckpointError::Device { tensor: self.full_name(name), source }
    }

    fn place_on(
        &self,
        device: &Device,
        stream: &CudaStream,
        parts: &[Part<'_>],
        dtype: DType,
    ) -> Result<Arc<Tensor>, CheckpointError> {
        let row_len = parts.first().map_or(0, |part| part.placed()[1]);
        let rows: usize = parts.iter().map(|part| part.placed()[0]).sum();
        let stacked = [rows, row_len];
        let dims = match parts {
            [part] if part.padded.is_none() => part.shape,
            [part] if part.shape.len() == 1 => &stacked[..1],
            [first, ..] if first.shape.len() == 1 => &stacked[..1],
            _ => &stacked,
        };
        let name = parts.first().map_or("", |part| part.name);
        let mut tensor = Tensor::zeros(device, dtype, dims).map_err(|source| self.device_error(name, source))?;
        let mut first = 0;
        for part in parts {
            let entry = self.source.entry(&self.full_name(part.name), part.shape)?;
            let [placed_rows, placed_len] = part.placed();
            let view = tensor.view_mut().and_then(|view| view.reshape(&stacked));
            let own = view.and_then(|view| view.rows(first..first + placed_rows));
            let mut own = own.map_err(|source| self.device_error(part.name, source))?;
            entry.copy_to(stream, part, placed_len, &mut own)?;
            first += placed_rows;
        }
        for part in parts {
            let name = self.full_name(part.name);
            let entry = self.source.entry(&name, part.shape)?;
            // Whoever asks for the tensor itself gets the checkpoint's own, not the stack.
            self.source.note_taken(&name, entry, Weak::new());
        }
        Ok(Arc::new(tensor))
    }
}

impl Entry {
    /// Writes the tensor to rows of `placed_len` elements: FP8 as it is to an FP8 tensor, floats as bfloat16.
    fn copy_to(
        &self,
        stream: &CudaStream,
        part: &Part<'_>,
        placed_len: usize,
        to: &mut ViewMut<'_>,
    ) -> Result<(), CheckpointError> {
        let device = |source| CheckpointError::Device { tensor: self.written_name.clone(), source };
        let is_fp8 = to.dtype() == DType::F8E4M3;
        if is_fp8 {
            self.require_fp8()?;
        } else {
            self.float_dtype()?;
        }
        let (rows, row_len) = (part.rows(), part.row_len());
        let (owner, range) = match &self.storage {
            Storage::Formula(formula) => {
                let made = formula.fill_on(stream, &self.written_name, [rows, row_len, placed_len], to.reborrow());
                return made.map_err(device);
            }
            Storage::Shared { owner, range } => (owner, range),
        };
        let bytes = self.shared_bytes(owner, range);
        if (is_fp8 || self.dtype == Dtype::BF16) && row_len == placed_len {
            let own = to.reborrow().rows(0..rows).map_err(device)?;
            return stream.upload(bytes, own).map_err(device);
        }
        let row_bytes = row_len * (self.dtype.bitsize() / 8);
        let rows = Rows { bytes, row_bytes, placed_len };
        match self.dtype {
            Dtype::F8_E4M3 => rows.upload(stream, to, |row, chunk| chunk.extend_from_slice(row)),
            Dtype::F32 => rows.upload(stream, to, |row, chunk| chunk.extend(read::<f32>(row).map(bf16::from_f32))),
            Dtype::F16 => {
                let narrow = |x: f16| bf16::from_f32(x.to_f32());
                rows.upload(stream, to, |row, chunk| chunk.extend(read::<f16>(row).map(narrow)))
            }
            _ => rows.upload(stream, to, |row, chunk| chunk.extend(read::<bf16>(row))),
        }
        .map_err(device)
    }
}

/// Rows that are converted or padded on the way to a GPU.
struct Rows<'a> {
    bytes: &'a [u8],
    /// Bytes of a row in the checkpoint, and elements that it has on the GPU.
    row_bytes: usize,
    placed_len: usize,
}

impl Rows<'_> {
    /// Some rows at a time, so that memory stays flat; `convert` appends the elements of one.
    fn upload<T: NoUninit + Default>(
        &self,
        stream: &CudaStream,
        to: &mut ViewMut<'_>,
        convert: impl Fn(&[u8], &mut Vec<T>),
    ) -> Result<(), DeviceError> {
        let placed_len = self.placed_len.max(1);
        let rows_at_once = (CHUNK_LEN / placed_len).max(1);
        let mut chunk: Vec<T> = Vec::new();
        for (i, source) in self.bytes.chunks((rows_at_once * self.row_bytes).max(1)).enumerate() {
            chunk.clear();
            for row in source.chunks(self.row_bytes.max(1)) {
                convert(row, &mut chunk);
                chunk.resize(chunk.len().next_multiple_of(placed_len), T::default());
            }
            let start = i * rows_at_once;
            let end = start + chunk.len() / placed_len;
            stream.upload(bytemuck::cast_slice(&chunk), to.reborrow().rows(start..end)?)?;
        }
        Ok(())
    }
}

/// Little-endian elements, wherever they begin.
fn read<T: Element>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>)
}

/// The elements of a float tensor of the host.
fn to_f32(tensor: &Tensor) -> Result<Vec<f32>, DeviceError> {
    let view = tensor.view();
    Ok(match tensor.dtype() {
        DType::BF16 => view.as_slice::<bf16>()?.iter().map(|x| x.to_f32()).collect(),
        DType::F16 => view.as_slice::<f16>()?.iter().map(|x| x.to_f32()).collect(),
        _ => view.as_slice::<f32>()?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use foveal_device::SharedBytes;

    use super::*;
    use crate::{HostTensor, WeightSource};

    fn vector<T: Element>(name: &str, values: &[T]) -> HostTensor {
        let bytes: SharedBytes = Arc::new(bytemuck::cast_slice::<T, u8>(values).to_vec());
        HostTensor { name: name.to_owned(), dtype: T::DTYPE, shape: vec![values.len()], bytes }
    }

    #[test]
    fn parts_of_any_float_type_are_joined_exactly() {
        let device = Device::cpu(1).unwrap();
        let tensors = [
            vector("a", &[bf16::from_f32(1.5), bf16::from_f32(-3.0)]),
            vector("b", &[f16::from_f32(0.25)]),
            vector("c", &[0.1_f32]),
            vector("ids", &[1_i32]),
        ];
        let source = WeightSource::in_memory("memory", tensors).unwrap();
        let scope = source.at("");
        let joined =
            scope.place_joined(&device, &[Part::new("a", &[2]), Part::new("b", &[1]), Part::new("c", &[1])]).unwrap();
        assert_eq!(joined.view().as_slice::<f32>().unwrap(), [1.5, -3.0, 0.25, 0.1]);
        let error = scope.place_joined(&device, &[Part::new("a", &[2]), Part::new("ids", &[1])]).unwrap_err();
        assert!(matches!(error, CheckpointError::WrongDType { .. }));
        // One part stays where it is.
        let alone = scope.place_joined(&device, &[Part::new("a", &[2])]).unwrap();
        assert_eq!(alone.dtype(), DType::BF16);
    }
}
