//! The CPU implementation, and what other operators' use of it.
#![allow(unsafe_code)]

use std::cell::RefCell;

use foveal_device::{F8E4M3, Stream, View, ViewMut};

use super::{GROUP, OP, Quantize, QuantizeRows, Scales};
use crate::OpError;
use crate::check::Op;
use crate::parallel::for_each_row;
use crate::real::Real;
use crate::reals::Reals;
use crate::shared_rows::{SharedOut, SharedRows};

thread_local! {
    /// A row in float32 before it is rounded, kept from call to call.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with `len` float32 of scratch, which hold anything.
pub(crate) fn with_scratch(len: usize, body: impl FnOnce(&mut [f32])) {
    let mut row = ROW.take();
    if row.len() < len {
        row.resize(len, 0.0);
    }
    body(row.get_mut(..len).unwrap_or_default());
    ROW.set(row);
}

/// Rounds rows, from several threads, each its own.
pub(crate) enum RowQuantizer<'a> {
    PerRow(SharedOut<'a>),
    PerGroup(SharedOut<'a>),
    Fixed(f32),
}

impl<'a> RowQuantizer<'a> {
    pub(crate) fn new(op: Op, quantize: &'a mut Quantize<'_>) -> Result<Self, OpError> {
        Ok(match quantize {
            Quantize::PerRow(scales) => Self::PerRow(SharedOut::new(op, scales, 1)?),
            Quantize::PerGroup(scales) => {
                let stride = scales.shape().row_len();
                Self::PerGroup(SharedOut::new(op, scales, stride)?)
            }
            Quantize::Fixed(scale) => Self::Fixed(1.0 / *scale),
        })
    }

    /// Row `i`, which no other thread is at.
    pub(crate) fn row(&self, i: usize, values: &[f32], out: &mut [F8E4M3]) {
        self.columns(i, 0, values, out);
    }

    /// Columns of row `i` from `first` on: all of them with a scale for the row, whole groups with one for each group. No
    /// other thread is at these.
    pub(crate) fn columns(&self, i: usize, first: usize, values: &[f32], out: &mut [F8E4M3]) {
        match self {
            Self::PerRow(scales) => {
                let scale = round_scaled(values, out);
                // SAFETY: this thread alone has row `i`, whose scale is element `i`.
                unsafe { scales.write(i, 0, &[scale]) };
            }
            Self::PerGroup(scales) => {
                for (group, (values, out)) in values.chunks(GROUP).zip(out.chunks_mut(GROUP)).enumerate() {
                    let scale = round_scaled(values, out);
                    // SAFETY: this thread alone has these columns of row `i`, whose scales are in column `i`.
                    unsafe { scales.write(first / GROUP + group, i, &[scale]) };
                }
            }
            Self::Fixed(inverse) => round_all(values, *inverse, out),
        }
    }
}

/// An output that threads round piecewise, `[m, row_len]`.
pub(crate) struct QuantizedOut<'a> {
    rows: SharedRows<'a, F8E4M3>,
    quantizer: RowQuantizer<'a>,
}

impl<'a> QuantizedOut<'a> {
    pub(crate) fn new(
        op: Op,
        quantize: &'a mut Quantize<'_>,
        out: &'a mut ViewMut<'_>,
        row_len: usize,
    ) -> Result<Self, OpError> {
        let rows = SharedRows::new(op.slice_mut(out)?, row_len);
        Ok(Self { rows, quantizer: RowQuantizer::new(op, quantize)? })
    }

    /// Rounds `values` into a row, from `column` on; see [`RowQuantizer::columns`] for which.
    ///
    /// # Panics
    /// When they lie outside of the output.
    ///
    /// # Safety
    /// No other thread writes these elements meanwhile, nor others that share their scale.
    pub(crate) unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        // SAFETY: the caller keeps others away, and the elements are lent no longer than `columns` runs.
        let out = unsafe { self.rows.row(row, column..column + values.len()) };
        self.quantizer.columns(row, column, values, out);
    }
}

/// 2^-119: a little below, the largest FP8 number divided by it would be infinite.
const LEAST: f32 = 1.504_632_8e-36;

/// Rounds values that share a scale, and gives it.
fn round_scaled(values: &[f32], out: &mut [F8E4M3]) -> f32 {
    let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    let inverse = if top >= LEAST { F8E4M3::MAX / top } else { 0.0 };
    round_all(values, inverse, out);
    top / F8E4M3::MAX
}

fn round_all(values: &[f32], factor: f32, out: &mut [F8E4M3]) {
    for (out, x) in out.iter_mut().zip(values) {
        *out = F8E4M3::from_f32(x * factor);
    }
}

/// Unscaled rows as their reader sees them.
#[derive(Clone, Copy)]
pub(crate) struct ScaledRows<'a> {
    pub(crate) values: Reals<'a>,
    rows: Option<&'a [f32]>,
    columns: Option<&'a [f32]>,
}

impl<'a> ScaledRows<'a> {
    pub(crate) fn new(
        op: Op,
        arg: &'static str,
        values: &View<'a>,
        scales: Option<&Scales<'a>>,
    ) -> Result<Self, OpError> {
        let rows = scales.and_then(|scales| scales.rows).map(|rows| op.slice(&rows)).transpose()?;
        let columns = scales.map(|scales| op.slice(&scales.columns)).transpose()?;
        Ok(Self { values: Reals::new(op, arg, values)?, rows, columns })
    }

    /// Whether there is anything to multiply by.
    pub(crate) fn is_scaled(&self) -> bool {
        self.columns.is_some()
    }

    /// Row `i`, scaled, in place of what `out` holds.
    pub(crate) fn copy_row_to(self, i: usize, out: &mut [f32]) {
        self.values.copy_row_to(i, out);
        let Some(columns) = self.columns else { return };
        let row = self.rows.and_then(|rows| rows.get(i)).copied().unwrap_or(1.0);
        for (out, column) in out.iter_mut().zip(columns) {
            *out = *out * row * column;
        }
    }

    /// Row `i`, scaled, added to `out`.
    pub(crate) fn add_row_to<T: Real>(self, i: usize, out: &mut [T]) {
        if !self.is_scaled() {
            return self.values.add_row_to(i, out);
        }
        with_scratch(out.len(), |row| {
            self.copy_row_to(i, row);
            for (out, x) in out.iter_mut().zip(&*row) {
                *out = T::from_f32(out.to_f32() + x);
            }
        });
    }
}

pub(super) fn quantize(stream: &Stream, args: QuantizeRows<'_>, d: usize) -> Result<(), OpError> {
    let QuantizeRows { x, mut quantize, mut out } = args;
    let x = Reals::new(OP, "x", &x)?;
    let rows = RowQuantizer::new(OP, &mut quantize)?;
    for_each_row(stream, OP.slice_mut(&mut out)?, d, |i, out| {
        with_scratch(d, |row| {
            x.copy_row_to(i, row);
            rows.row(i, row, out);
        });
    });
    Ok(())
}
