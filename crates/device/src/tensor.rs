//! Tensors that own or share their memory.

use std::fmt;
use std::ops::Range;

use crate::buffer::{Allocated, Buffer, HostBytes};
use crate::cuda::DeviceMemory;
use crate::{DType, Device, DeviceError, Element, Shape, SharedBytes, View, ViewMut};

/// Memory of one device with an element type and a shape; row-major and contiguous.
pub struct Tensor {
    buffer: Buffer,
    dtype: DType,
    shape: Shape,
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`] or [`DeviceError::OutOfMemory`].
    pub fn zeros(device: &Device, dtype: DType, dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = Shape::new(dims)?;
        let len_bytes = shape.num_elements() * dtype.size_bytes();
        let buffer = match device.stream().cuda() {
            None => Buffer::Host(HostBytes::zeroed(len_bytes)?),
            Some(cuda) => {
                let memory = DeviceMemory::zeroed(cuda, len_bytes)?;
                Buffer::Device { memory, _allocated: Allocated::new(len_bytes) }
            }
        };
        Ok(Self { buffer, dtype, shape })
    }

    /// A tensor with the values of `values`, which are copied.
    ///
    /// # Errors
    /// As [`Tensor::zeros`], and [`DeviceError::SizeMismatch`] when `dims` don't take `values.len()` elements.
    pub fn from_slice<T: Element>(device: &Device, values: &[T], dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = Shape::new(dims)?;
        let got = size_of_val(values);
        let expected = shape.num_elements() * size_of::<T>();
        if got != expected {
            return Err(DeviceError::SizeMismatch { dtype: T::DTYPE, shape, expected, got });
        }
        let mut tensor = Self::zeros(device, T::DTYPE, dims)?;
        device.stream().write(bytemuck::cast_slice(values), tensor.view_mut()?)?;
        Ok(tensor)
    }

    /// A read-only tensor over `range` of shared bytes (a mapped file), without a copy.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`], or [`DeviceError::SizeMismatch`] when the range is not in the bytes or not of the
    /// shape's size, or [`DeviceError::Misaligned`] when the elements can't be read in place.
    pub fn from_shared(
        owner: SharedBytes,
        range: Range<usize>,
        dtype: DType,
        dims: &[usize],
    ) -> Result<Self, DeviceError> {
        let shape = Shape::new(dims)?;
        let expected = shape.num_elements() * dtype.size_bytes();
        let bytes = (*owner).as_ref().get(range.clone()).unwrap_or_default();
        if bytes.len() != expected || range.len() != expected {
            return Err(DeviceError::SizeMismatch { dtype, shape, expected, got: bytes.len() });
        }
        if !bytes.as_ptr().addr().is_multiple_of(dtype.size_bytes()) {
            return Err(DeviceError::Misaligned { dtype });
        }
        Ok(Self { buffer: Buffer::Shared { owner, range }, dtype, shape })
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of the elements.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.shape.num_elements() * self.dtype.size_bytes()
    }

    /// The whole tensor, to read.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View::over(self.buffer.memory(), self.dtype, self.shape)
    }

    /// The whole tensor, to write.
    ///
    /// # Errors
    /// [`DeviceError::ReadOnly`] for shared memory.
    pub fn view_mut(&mut self) -> Result<ViewMut<'_>, DeviceError> {
        Ok(ViewMut::over(self.buffer.memory_mut()?, self.dtype, self.shape))
    }

    /// The elements, copied to the host, whichever device has them; waits for all work of that device. For tests and for
    /// loading.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`] or [`DeviceError::Driver`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, DeviceError> {
        let Buffer::Device { memory, .. } = &self.buffer else {
            return Ok(self.view().as_slice::<T>()?.to_vec());
        };
        if T::DTYPE != self.dtype {
            return Err(DeviceError::WrongDType { actual: self.dtype, wanted: T::DTYPE });
        }
        let mut values = vec![T::zeroed(); self.shape.num_elements()];
        memory.download(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Rows of the first dimension, to read.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`].
    pub fn rows(&self, rows: Range<usize>) -> Result<View<'_>, DeviceError> {
        self.view().rows(rows)
    }

    /// Rows of the first dimension, to write.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] or [`DeviceError::ReadOnly`].
    pub fn rows_mut(&mut self, rows: Range<usize>) -> Result<ViewMut<'_>, DeviceError> {
        self.view_mut()?.rows(rows)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn rows_borrow_and_writes_arrive() {
        let device = Device::cpu(1).unwrap();
        let mut x = Tensor::from_slice(&device, &[0_i32, 1, 2, 3, 4, 5], &[3, 2]).unwrap();
        x.rows_mut(1..2).unwrap().as_mut_slice::<i32>().unwrap()[1] = 9;
        assert_eq!(x.rows(1..3).unwrap().as_slice::<i32>().unwrap(), [2, 9, 4, 5]);
        assert_eq!(x.rows(3..3).unwrap().shape(), &[0, 2]);
        assert!(matches!(x.rows(2..4), Err(DeviceError::OutOfRange { .. })));
        assert!(matches!(x.view().as_slice::<f32>(), Err(DeviceError::WrongDType { .. })));
        assert!(matches!(Tensor::from_slice(&device, &[1_u8], &[2]), Err(DeviceError::SizeMismatch { .. })));
    }

    #[test]
    fn owned_memory_is_aligned_and_zero() {
        let device = Device::cpu(1).unwrap();
        for len in [0, 1, 63, 64, 65] {
            let x = Tensor::zeros(&device, DType::U8, &[len]).unwrap();
            let view = x.view();
            let bytes = view.as_slice::<u8>().unwrap();
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&b| b == 0));
            assert!(len == 0 || bytes.as_ptr().addr().is_multiple_of(64));
        }
    }

    #[test]
    fn shared_memory_is_checked_and_read_only() {
        let owner: SharedBytes = Arc::new(vec![0_u8; 16]);
        let mut x = Tensor::from_shared(owner.clone(), 8..16, DType::I32, &[2]).unwrap();
        assert_eq!(x.view().as_slice::<i32>().unwrap(), [0, 0]);
        assert_eq!(x.view_mut().err(), Some(DeviceError::ReadOnly));
        assert!(matches!(
            Tensor::from_shared(owner.clone(), 8..17, DType::U8, &[9]),
            Err(DeviceError::SizeMismatch { .. })
        ));
        assert!(matches!(Tensor::from_shared(owner, 1..5, DType::I32, &[1]), Err(DeviceError::Misaligned { .. })));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let device = Device::cpu(1).unwrap();
        for dims in [&[1_usize; 6][..], &[usize::MAX, 2], &[1 << 40, 1 << 40]] {
            assert!(matches!(Tensor::zeros(&device, DType::U8, dims), Err(DeviceError::BadShape { .. })));
        }
    }
}
