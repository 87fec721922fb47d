//! Borrowed tensors: what operators take.

use std::fmt;
use std::ops::Range;

use crate::{DType, DeviceError, Element, Shape};

/// A borrowed tensor, to read. Copying it copies no elements.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
    dtype: DType,
    shape: Shape,
}

/// A borrowed tensor, to write.
pub struct ViewMut<'a> {
    bytes: &'a mut [u8],
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

impl<'a> View<'a> {
    pub(crate) fn over(bytes: &'a [u8], dtype: DType, shape: Shape) -> Self {
        Self { bytes, dtype, shape }
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
        Ok(Self { bytes: bytemuck::cast_slice(values), dtype: T::DTYPE, shape })
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

    /// Rows of the first dimension.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`].
    pub fn rows(self, rows: Range<usize>) -> Result<Self, DeviceError> {
        let (range, shape) = row_bytes(&rows, self.dtype, self.shape)?;
        let bytes = self.bytes.get(range).unwrap_or_default();
        Ok(Self { bytes, dtype: self.dtype, shape })
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
    /// [`DeviceError::WrongDType`].
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], DeviceError> {
        check::<T>(self.dtype)?;
        bytemuck::try_cast_slice(self.bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
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
    pub(crate) fn over(bytes: &'a mut [u8], dtype: DType, shape: Shape) -> Self {
        Self { bytes, dtype, shape }
    }

    /// A writable view over a slice of the host's memory.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`] or [`DeviceError::SizeMismatch`].
    pub fn from_slice<T: Element>(values: &'a mut [T], dims: &[usize]) -> Result<Self, DeviceError> {
        let shape = *View::from_slice(values, dims)?.shape();
        Ok(Self { bytes: bytemuck::cast_slice_mut(values), dtype: T::DTYPE, shape })
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

    /// The same tensor for a shorter time, so that it can be used again afterwards.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { bytes: self.bytes, dtype: self.dtype, shape: self.shape }
    }

    /// The same tensor, to read.
    #[must_use]
    pub fn as_view(&self) -> View<'_> {
        View { bytes: self.bytes, dtype: self.dtype, shape: self.shape }
    }

    /// Rows of the first dimension.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`].
    pub fn rows(self, rows: Range<usize>) -> Result<Self, DeviceError> {
        let (range, shape) = row_bytes(&rows, self.dtype, self.shape)?;
        let bytes = self.bytes.get_mut(range).unwrap_or_default();
        Ok(Self { bytes, dtype: self.dtype, shape })
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
    /// [`DeviceError::WrongDType`].
    pub fn as_slice<T: Element>(&self) -> Result<&[T], DeviceError> {
        check::<T>(self.dtype)?;
        bytemuck::try_cast_slice(self.bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
    }

    /// The elements, in the host's memory, to write.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`].
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], DeviceError> {
        check::<T>(self.dtype)?;
        bytemuck::try_cast_slice_mut(self.bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
    }

    /// As [`ViewMut::as_mut_slice`], for the view's whole life.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`].
    pub fn into_mut_slice<T: Element>(self) -> Result<&'a mut [T], DeviceError> {
        check::<T>(self.dtype)?;
        bytemuck::try_cast_slice_mut(self.bytes).map_err(|_| DeviceError::Misaligned { dtype: self.dtype })
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
