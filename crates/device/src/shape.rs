//! Shapes without heap memory.

use std::fmt;
use std::ops::Deref;

use crate::DeviceError;

/// The most dimensions that a tensor can have.
pub const MAX_RANK: usize = 5;

/// Up to [`MAX_RANK`] dimensions, outermost first. Row-major and contiguous: the last dimension varies fastest.
///
/// Dimensions beyond the rank are kept at 1, so equality and hashing need no care.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// A shape of the given dimensions; zero-sized dimensions are allowed.
    ///
    /// # Errors
    /// [`DeviceError::BadShape`] for more than [`MAX_RANK`] dimensions or more elements than an address can count.
    pub fn new(dims: &[usize]) -> Result<Self, DeviceError> {
        let bad = |reason| Err(DeviceError::BadShape { dims: dims.to_vec(), reason });
        let mut own = [1; MAX_RANK];
        let Some(head) = own.get_mut(..dims.len()) else {
            return bad("a tensor has at most 5 dimensions");
        };
        head.copy_from_slice(dims);
        // 8 is the largest element's size: no byte count can overflow later.
        if dims.iter().try_fold(8_usize, |n, &d| n.checked_mul(d)).is_none() {
            return bad("its bytes can't be counted in 64 bits");
        }
        Ok(Self { dims: own, rank: dims.len() })
    }

    /// How many elements the shape has; 1 for rank 0.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// The elements of one index of the first dimension; 1 for rank 0 and 1.
    #[must_use]
    pub fn row_len(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// The same shape with `rows` as its first dimension.
    #[must_use]
    pub(crate) fn with_rows(mut self, rows: usize) -> Self {
        let [first, ..] = &mut self.dims;
        *first = rows;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        self.dims.get(..self.rank).unwrap_or_default()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        **self == other[..]
    }
}
