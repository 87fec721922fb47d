//! Operands of any floating-point type, read as float32.

use std::borrow::Cow;

use foveal_device::{DType, F8E4M3, View};
use half::{bf16, f16};

use crate::OpError;
use crate::check::Op;
use crate::real::Real;

/// What an operand of real numbers can hold, for messages.
pub(crate) const FLOATS: &str = "f32, bf16 or f16";

/// The elements of an operand of any floating-point type. The type is looked at once per row, not per element.
#[derive(Clone, Copy)]
pub(crate) enum Reals<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    F8(&'a [F8E4M3]),
}

/// `out = f(out, value)` for each element.
fn combine<S: Real, T: Real>(values: &[S], out: &mut [T], f: impl Fn(f32, f32) -> f32) {
    for (o, v) in out.iter_mut().zip(values) {
        *o = T::from_f32(f(o.to_f32(), v.to_f32()));
    }
}

fn copy<S: Real, T: Real>(values: &[S], out: &mut [T]) {
    for (o, v) in out.iter_mut().zip(values) {
        *o = T::from_f32(v.to_f32());
    }
}

/// Row `index` of rows of `len` elements; empty outside of them.
fn row_of<T>(values: &[T], index: usize, len: usize) -> &[T] {
    index.checked_mul(len).and_then(|start| values.get(start..start + len)).unwrap_or_default()
}

impl<'a> Reals<'a> {
    pub(crate) fn new(op: Op, arg: &'static str, view: &View<'a>) -> Result<Self, OpError> {
        Ok(match view.dtype() {
            DType::F32 => Self::F32(op.slice(view)?),
            DType::BF16 => Self::Bf16(op.slice(view)?),
            DType::F16 => Self::F16(op.slice(view)?),
            other => return Err(op.bad_dtype(arg, other, FLOATS)),
        })
    }

    /// As [`Reals::new`], for what may also be stored as FP8.
    pub(crate) fn stored(op: Op, arg: &'static str, view: &View<'a>) -> Result<Self, OpError> {
        match view.dtype() {
            DType::F8E4M3 => Ok(Self::F8(op.slice(view)?)),
            _ => Self::new(op, arg, view),
        }
    }

    /// Row `index` of rows as long as `out`, added to it.
    pub(crate) fn add_row_to<T: Real>(self, index: usize, out: &mut [T]) {
        let len = out.len();
        match self {
            Self::F32(x) => combine(row_of(x, index, len), out, |a, b| a + b),
            Self::Bf16(x) => combine(row_of(x, index, len), out, |a, b| a + b),
            Self::F16(x) => combine(row_of(x, index, len), out, |a, b| a + b),
            Self::F8(x) => combine(row_of(x, index, len), out, |a, b| a + b),
        }
    }

    /// Row `index` of rows as long as `out`, copied to it.
    pub(crate) fn copy_row_to<T: Real>(self, index: usize, out: &mut [T]) {
        let len = out.len();
        match self {
            Self::F32(x) => copy(row_of(x, index, len), out),
            Self::Bf16(x) => copy(row_of(x, index, len), out),
            Self::F16(x) => copy(row_of(x, index, len), out),
            Self::F8(x) => copy(row_of(x, index, len), out),
        }
    }

    /// All elements as float32, borrowed where they are that already. For operands as small as one row.
    pub(crate) fn to_f32s(self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(x) => Cow::Borrowed(x),
            Self::Bf16(x) => x.iter().map(|v| v.to_f32()).collect(),
            Self::F16(x) => x.iter().map(|v| v.to_f32()).collect(),
            Self::F8(x) => x.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

/// An operand of indices, each in `low..limit`, as `usize` (`None` for -1 where `low` is -1).
pub(crate) fn check_indices(op: Op, arg: &'static str, values: &[i32], low: i32, limit: usize) -> Result<(), OpError> {
    let fits = |v: i32| v >= low && usize::try_from(v).map_or(v < 0, |v| v < limit);
    match values.iter().position(|&v| !fits(v)) {
        None => Ok(()),
        Some(index) => {
            let value = values.get(index).copied().map_or(0, i64::from);
            Err(OpError::Value { op: op.0, arg, index, value, expected: format!("{low} or above and below {limit}") })
        }
    }
}
