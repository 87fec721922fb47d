//! One output matrix that several threads write, each its own tiles.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use foveal_device::{DType, ViewMut};
use half::bf16;

use crate::OpError;
use crate::check::Op;
use crate::real::Real;

/// A matrix whose tiles are lent to threads.
pub(crate) struct SharedRows<'a, T> {
    start: *mut T,
    num_rows: usize,
    row_len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that is lent piecewise; `row` asks its caller to keep the pieces apart.
unsafe impl<T: Send> Sync for SharedRows<'_, T> {}

impl<'a, T> SharedRows<'a, T> {
    /// Takes the matrix, whose rows are `row_len` long.
    pub(crate) fn new(matrix: &'a mut [T], row_len: usize) -> Self {
        let num_rows = matrix.len().checked_div(row_len).unwrap_or(0);
        Self { start: matrix.as_mut_ptr(), num_rows, row_len, owner: PhantomData }
    }

    /// Columns of a row.
    ///
    /// # Panics
    /// When they lie outside of the matrix.
    ///
    /// # Safety
    /// No element of them is lent already.
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub(crate) unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [T] {
        assert!(row < self.num_rows && columns.start <= columns.end && columns.end <= self.row_len);
        // SAFETY: the matrix has `num_rows * row_len` elements, and the assertion puts this one inside or at the end.
        let start = unsafe { self.start.add(row * self.row_len + columns.start) };
        // SAFETY: the row's `columns` lie inside of the matrix by the assertion; `new` borrowed it for 'a, and the
        // caller keeps lent pieces apart.
        unsafe { std::slice::from_raw_parts_mut(start, columns.len()) }
    }
}

/// The output of an operator that computes in float32, `[num_rows, row_len]`.
pub(crate) struct SharedOut<'a>(Typed<'a>);

enum Typed<'a> {
    F32(SharedRows<'a, f32>),
    BF16(SharedRows<'a, bf16>),
}

impl<'a> SharedOut<'a> {
    /// Takes the output, whose rows are `row_len` long.
    pub(crate) fn new(op: Op, out: &'a mut ViewMut<'_>, row_len: usize) -> Result<Self, OpError> {
        Ok(Self(match out.dtype() {
            DType::F32 => Typed::F32(SharedRows::new(op.slice_mut(out)?, row_len)),
            DType::BF16 => Typed::BF16(SharedRows::new(op.slice_mut(out)?, row_len)),
            other => return Err(op.bad_dtype("out", other, "f32 or bf16")),
        }))
    }

    /// Writes `values` into a row, from `column` on, rounded to the output's type.
    ///
    /// # Panics
    /// When they lie outside of the output.
    ///
    /// # Safety
    /// No other thread writes these elements meanwhile.
    #[inline]
    pub(crate) unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        let columns = column..column + values.len();
        match &self.0 {
            // SAFETY: the caller keeps others away, and the elements are lent no longer than `round` runs.
            Typed::F32(rows) => round(values, unsafe { rows.row(row, columns) }),
            // SAFETY: as above.
            Typed::BF16(rows) => round(values, unsafe { rows.row(row, columns) }),
        }
    }
}

#[inline]
fn round<T: Real>(values: &[f32], to: &mut [T]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to = T::from_f32(*value);
    }
}
