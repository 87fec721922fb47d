//! The CPU implementation.

use foveal_device::{DType, F8E4M3, Stream, ViewMut};

use super::{AddNorm, NormKind, OP, RowAdd, Sizes};
use crate::OpError;
use crate::parallel::for_each_row_pair;
use crate::quantize::{Quantize, RowQuantizer, ScaledRows, with_scratch};
use crate::real::{Real, with_real};
use crate::reals::{FLOATS, Reals, check_indices};

/// Partial sums of a row: enough to fill vector registers, added up in one fixed order.
const LANES: usize = 8;

pub(super) fn add_norm(stream: &Stream, args: AddNorm<'_>, sizes: Sizes) -> Result<(), OpError> {
    let AddNorm { residual, add, add_scales, extra, weight, bias, kind, eps, quantize, out } = args;
    let add = add.map(|view| ScaledRows::new(OP, "add", &view, add_scales.as_ref())).transpose()?;
    let extra = extra.map(|extra| read_extra(&extra, sizes.num_extra)).transpose()?;
    let weight = Reals::new(OP, "weight", &weight)?.to_f32s();
    let bias = bias.map(|view| Ok(Reals::new(OP, "bias", &view)?.to_f32s())).transpose()?;
    let affine = Affine { weight: &weight, bias: bias.as_deref(), kind, eps };
    let rows = Rows { stream, d: sizes.d, add, extra, affine };
    let (from, to): (DType, DType) = (residual.dtype(), out.dtype());
    if let Some(quantize) = quantize {
        return with_real!(from, T => rows.quantize::<T>(residual, quantize, out),
            else Err(OP.bad_dtype("residual", from, FLOATS)));
    }
    with_real!(from, T => with_real!(to, U => rows.normalise::<T, U>(residual, out),
        else Err(OP.bad_dtype("out", to, FLOATS))),
        else Err(OP.bad_dtype("residual", from, FLOATS)))
}

/// The rows, and which of them each row of the batch takes.
fn read_extra<'a>(extra: &RowAdd<'a>, num_extra: usize) -> Result<(Reals<'a>, &'a [i32]), OpError> {
    let index = OP.slice(&extra.index)?;
    check_indices(OP, "extra.index", index, -1, num_extra)?;
    Ok((Reals::new(OP, "extra.rows", &extra.rows)?, index))
}

/// What follows the statistics of a row.
struct Affine<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    kind: NormKind,
    eps: f32,
}

/// All that is done with each row.
struct Rows<'a> {
    stream: &'a Stream,
    d: usize,
    add: Option<ScaledRows<'a>>,
    extra: Option<(Reals<'a>, &'a [i32])>,
    affine: Affine<'a>,
}

impl Rows<'_> {
    fn normalise<T: Real, U: Real>(&self, mut residual: ViewMut<'_>, mut out: ViewMut<'_>) -> Result<(), OpError> {
        let (residual, out) = (OP.slice_mut::<T>(&mut residual)?, OP.slice_mut::<U>(&mut out)?);
        for_each_row_pair(self.stream, (residual, self.d), (out, self.d), |i, residual, out| {
            self.join(i, residual);
            self.affine.normalise(residual, out);
        });
        Ok(())
    }

    fn quantize<T: Real>(
        &self,
        mut residual: ViewMut<'_>,
        mut quantize: Quantize<'_>,
        mut out: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let rows = RowQuantizer::new(OP, &mut quantize)?;
        let (residual, out) = (OP.slice_mut::<T>(&mut residual)?, OP.slice_mut::<F8E4M3>(&mut out)?);
        for_each_row_pair(self.stream, (residual, self.d), (out, self.d), |i, residual, out| {
            self.join(i, residual);
            with_scratch(self.d, |row| {
                self.affine.normalise(residual, row);
                rows.row(i, row, out);
            });
        });
        Ok(())
    }

    /// Adds what joins row `i`.
    fn join<T: Real>(&self, i: usize, residual: &mut [T]) {
        if let Some(add) = self.add {
            add.add_row_to(i, residual);
        }
        if let Some((rows, index)) = self.extra
            && let Some(row) = index.get(i).and_then(|&row| usize::try_from(row).ok())
        {
            rows.add_row_to(row, residual);
        }
    }
}

/// `Σ f(x)` in float64, in one order for a given length.
#[inline]
fn sum<T: Real>(row: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(x.to_f32()));
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(x.to_f32()));
    }
    lanes.iter().sum()
}

impl Affine<'_> {
    fn normalise<T: Real, U: Real>(&self, row: &[T], out: &mut [U]) {
        let n = row.len() as f64;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(row, |x| x) / n,
        };
        let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
        let scale = (1.0 / (variance + f64::from(self.eps)).sqrt()) as f32;
        let mean = mean as f32;
        let scaled = out.iter_mut().zip(row).zip(self.weight);
        match self.bias {
            None => scaled.for_each(|((o, x), w)| *o = U::from_f32((x.to_f32() - mean) * scale * w)),
            Some(bias) => {
                scaled.zip(bias).for_each(|(((o, x), w), b)| *o = U::from_f32((x.to_f32() - mean) * scale * w + b))
            }
        }
    }
}
