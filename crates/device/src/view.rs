//! Borrowed tensors: what operators take.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::{DType, DeviceError, Element, Shape};

/// Bytes of a GPU's memory, borrowed for `'a`. The address means nothing to the host.
#[derive(Clone, Copy)]
pub(crate) struct DeviceBytes<'a> {
    pub(crate) ptr: u64,
    pub(crate) len: usize,
    pub(crate) owner: PhantomData<&'a ()>,
}

/// As [`DeviceBytes`], to write.
pub(crate) struct DeviceBytesMut<'a> {
    pub(crate) ptr: u64,
    pub(crate) len: usize,
    pub(crate) owner: PhantomData<&'a mut ()>,
}

/// Whose memory a view borrows.
#[derive(Clone, Copy)]
pub(crate) enum Memory<'a> {
    Host(&'a [u8]),
    Device(DeviceBytes<'a>),
}

/// As [`Memory`], to write.
pub(crate) enum MemoryMut<'a> {
    Host(&'a mut [u8]),
    Device(DeviceBytesMut<'a>),
}

impl<'a> Memory<'a> {
    /// Bytes `range`, which lie inside.
    fn get(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(bytes) => Self::Host(bytes.get(range).unwrap_or_default()),
            Self::Device(DeviceBytes { ptr, len, owner }) => {
                let range = range.start.min(len)..range.end.min(len);
                Self::Device(DeviceBytes { ptr: ptr + range.start as u64, len: range.len(), owner })
            }
        }
    }

    fn host(self, dtype: DType) -> Result<&'a [u8], DeviceError> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(DeviceError::NotOnHost { dtype }),
        }
    }

    fn device_ptr(self, dtype: DType) -> Result<u64, DeviceError> {
        match self {
            Self::Host(_) => Err(DeviceError::NotOnDevice { dtype }),
            Self::Device(bytes) => Ok(bytes.ptr),
        }
    }
}

impl<'a> MemoryMut<'a> {
    fn get(self, range: Range<usize>) -> Self {
        match self {
            Self::Host(bytes) => Self::Host(bytes.get_mut(range).unwrap_or_default()),
            Self::Device(DeviceBytesMut { ptr, len, owner }) => {
                let range = range.start.min(len)..range.end.min(len);
                Self::Device(DeviceBytesMut { ptr: ptr + range.start as u64, len: range.len(), owner })
            }
        }
    }

    fn reborrow(&mut self) -> MemoryMut<'_> {
        match self {
            Self::Host(bytes) => MemoryMut::Host(bytes),
            Self::Device(DeviceBytesMut { ptr, len, .. }) => {
                MemoryMut::Device(DeviceBytesMut { ptr: *ptr, len: *len, owner: PhantomData })
            }
        }
    }

    fn as_memory(&self) -> Memory<'_> {
        match self {
            Self::Host(bytes) => Memory::Host(bytes),
            Self::Device(DeviceBytesMut { ptr, len, .. }) => {
                Memory::Device(DeviceBytes { ptr: *ptr, len: *len, owner: PhantomData })
            }
        }
    }

    fn host(self, dtype: DType) -> Result<&'a mut [u8], DeviceError> {
        match self {
            Self::Host(bytes) => Ok(bytes),
            Self::Device(_) => Err(DeviceError::NotOnHost { dtype }),
        }
    }
}

/// A borrowed tensor, to read. Copying it copies no elements.
#[derive(Clone, Copy)]
pub struct View<'a> {
    memory: Memory<'a>,
    dtype: DType,
    shape: Shape,
}

/// A borrowed tensor, to write.
pub struct ViewMut<'a> {
    memory: MemoryMut<'a>,
    dtype: DType,
    shape: Shape,
}

/// The bytes of `rows` in a tensor, and the shape that they have.
fn row_bytes(rows: &Range<usize>, dtype: DType, shape: Shape) -> Result<(Range<usize>, Shape), DeviceError> {
    let num_rows = shape.first().copied().unwrap_or(1);
    if rows.start > rows.end || rows.end > num_rows || shape.is_empty() {
        return Err(DeviceError::OutOfRange { start: rows.start, end: rows.end, shape });
    }
    let row = shape.row_len() * dtype.size_bytes();
    Ok((rows.start * row..rows.end * row, shape.with_rows(rows.len())))
}

fn check<T: Element>(dtype: DType) -> Result<(), DeviceError> {
    if T::DTYPE == dtype { Ok(()) } else { Err(DeviceError::WrongDType { actual: dtype, wanted: T::DTYPE }) }
}

/// How many bytes of a tensor of bytes `dims` elements of `dtype` take.
fn cast_len(dtype: DType, dims: &[usize]) -> Result<(usize, Shape), DeviceError> {
    let shape = Shape::new(dims)?;
    Ok((shape.num_elements() * dtype.size_bytes(), shape))
}

impl<'a> View<'a> {
    pub(crate) fn over(memory: Memory<'a>, dtype: DType, shape: Shape) -> Self {
        Self { memory, dtype, shape }
    }

    /// A view over a slice of the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`] or [`DeviceError::SizeMismatch`].
    pub fn from_slice<T: Element>(values: &'a [T], dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = Shape::new(dims)?;
        if shape.num_elements() != values.len() {
            let expected = shape.num_elements() * size_of::<T>();
            return Err(DeviceError::SizeMismatch { dtype: T::DTYPE, shape, expected, got: size_of_val(values) });
        }
        Ok(Self { memory: Memory::Host(bytemuck::cast_slice(values)), dtype: T::DTYPE, shape })
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

    /// Whether the elements lie in a GPU's memory.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        matches!(self.memory, Memory::Device(_))
    }

    /// The address of the first element in a GPU's memory.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`] for host memory.
    pub fn device_ptr(&self) -> Result<u64, DeviceError> {
        self.memory.device_ptr(self.dtype)
    }

    /// Rows of the first dimension.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`].
    pub fn rows(self, rows: Range<usize>) -> Result<Self, DeviceError> {
        let (range, shape) = row_bytes(&rows, self.dtype, self.shape)?;
        Ok(Self { memory: self.memory.get(range), dtype: self.dtype, shape })
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`] when the shapes differ in elements.
    pub fn reshape(self, dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = reshaped(self.shape, self.dtype, dims)?;
        Ok(Self { shape, ..self })
    }

    /// Part of a tensor of bytes as elements of another type: how one block carries many arrays.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`] for a tensor that isn't u8, [`DeviceError::SizeMismatch`] where it ends too early,
    /// [`DeviceError::Misaligned`] for an offset that is no multiple of the element's size.
    pub fn cast_bytes(self, offset_bytes: usize, dtype: DType, dims: &[usize]) -> Result<Self, DeviceError> {
        check::<u8>(self.dtype)?;
        let (expected, shape) = cast_len(dtype, dims)?;
        let range = offset_bytes..offset_bytes.saturating_add(expected);
        if range.end > self.len_bytes() {
            let got = self.len_bytes().saturating_sub(offset_bytes);
            return Err(DeviceError::SizeMismatch { dtype, shape, expected, got });
        }
        if !offset_bytes.is_multiple_of(dtype.size_bytes()) {
            return Err(DeviceError::Misaligned { dtype });
        }
        Ok(Self { memory: self.memory.get(range), dtype, shape })
    }

    /// The elements, in the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`], or [`DeviceError::NotOnHost`].
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], DeviceError> {
        check::<T>(self.dtype)?;
        let bytes = self.memory.host(self.dtype)?;
        bytemuck::try_cast_slice(bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
    }

    /// The bytes of the elements, in the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::NotOnHost`].
    pub fn as_bytes(&self) -> Result<&'a [u8], DeviceError> {
        self.memory.host(self.dtype)
    }
}

fn reshaped(old: Shape, dtype: DType, dims: &[usize]) -> Result<Shape, DeviceError> {
    let shape = Shape::new(dims)?;
    let (expected, got) = (shape.num_elements(), old.num_elements());
    if expected == got {
        return Ok(shape);
    }
    let size = dtype.size_bytes();
    Err(DeviceError::SizeMismatch { dtype, shape, expected: expected * size, got: got * size })
}

impl<'a> ViewMut<'a> {
    pub(crate) fn over(memory: MemoryMut<'a>, dtype: DType, shape: Shape) -> Self {
        Self { memory, dtype, shape }
    }

    /// A writable view over a slice of the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`] or [`DeviceError::SizeMismatch`].
    pub fn from_slice<T: Element>(values: &'a mut [T], dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = *View::from_slice(values, dims)?.shape();
        Ok(Self { memory: MemoryMut::Host(bytemuck::cast_slice_mut(values)), dtype: T::DTYPE, shape })
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
        self.as_view().len_bytes()
    }

    /// Whether the elements lie in a GPU's memory.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.as_view().is_on_device()
    }

    /// The address of the first element in a GPU's memory.
    ///
    /// # Errors
    /// [`DeviceError::NotOnDevice`] for host memory.
    pub fn device_ptr(&self) -> Result<u64, DeviceError> {
        self.as_view().device_ptr()
    }

    /// The same tensor for a shorter time, so that it can be used again afterwards.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { memory: self.memory.reborrow(), dtype: self.dtype, shape: self.shape }
    }

    /// The same tensor, to read.
    #[must_use]
    pub fn as_view(&self) -> View<'_> {
        View { memory: self.memory.as_memory(), dtype: self.dtype, shape: self.shape }
    }

    /// Rows of the first dimension.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`].
    pub fn rows(self, rows: Range<usize>) -> Result<Self, DeviceError> {
        let (range, shape) = row_bytes(&rows, self.dtype, self.shape)?;
        Ok(Self { memory: self.memory.get(range), dtype: self.dtype, shape })
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`] when the shapes differ in elements.
    pub fn reshape(self, dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = reshaped(self.shape, self.dtype, dims)?;
        Ok(Self { shape, ..self })
    }

    /// The elements, in the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`], or [`DeviceError::NotOnHost`].
    pub fn as_slice<T: Element>(&self) -> Result<&[T], DeviceError> {
        self.as_view().as_slice()
    }

    /// The elements, in the host's memory, to write.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`], or [`DeviceError::NotOnHost`].
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], DeviceError> {
        self.reborrow().into_mut_slice()
    }

    /// As [`ViewMut::as_mut_slice`], for the view's whole life.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`], or [`DeviceError::NotOnHost`].
    pub fn into_mut_slice<T: Element>(self) -> Result<&'a mut [T], DeviceError> {
        check::<T>(self.dtype)?;
        let bytes = self.memory.host(self.dtype)?;
        bytemuck::try_cast_slice_mut(bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
    }

    /// The bytes of the elements, in the host's memory, to write.
    ///
    /// # Errors
    /// [`DeviceError::NotOnHost`].
    pub fn into_mut_bytes(self) -> Result<&'a mut [u8], DeviceError> {
        self.memory.host(self.dtype)
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} {})", self.dtype, self.shape)
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut({} {})", self.dtype, self.shape)
    }
}
