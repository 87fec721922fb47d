//! The CPU implementation.

use foveal_device::{F8E4M3, Stream, View, ViewMut};

use super::{ACTIVATE, Activate, Activation, GATED, Gated};
use crate::OpError;
use crate::math::{gelu, times_sigmoid};
use crate::parallel::for_each_row;
use crate::quantize::{RowQuantizer, ScaledRows, with_scratch};
use crate::real::{Real, with_real};
use crate::reals::FLOATS;

/// `sqrt(2 / pi)` and the cubic term of GELU's approximation by tanh (arXiv:1606.08415).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// The slope of GELU's approximation by a sigmoid (arXiv:1606.08415).
const QUICK_GELU_SLOPE: f32 = 1.702;

/// Elements of one task of an elementwise loop.
const BLOCK: usize = 1 << 12;

/// GELU by tanh, as `0.5 (1 + tanh(u)) = sigmoid(2 u)`.
#[inline]
fn gelu_tanh(x: f32) -> f32 {
    times_sigmoid(x, 2.0 * GELU_SCALE * (x + GELU_CUBIC * x * x * x))
}

#[inline]
fn quick_gelu(x: f32) -> f32 {
    times_sigmoid(x, QUICK_GELU_SLOPE * x)
}

#[inline]
fn silu(x: f32) -> f32 {
    times_sigmoid(x, x)
}

pub(super) fn activate(stream: &Stream, args: Activate<'_>) -> Result<(), OpError> {
    let Activate { x, kind, mut out } = args;
    let (from, to) = (x.dtype(), out.dtype());
    with_real!(from, T => with_real!(to, U => run_activate::<T, U>(stream, &x, kind, &mut out),
        else Err(ACTIVATE.bad_dtype("out", to, FLOATS))),
        else Err(ACTIVATE.bad_dtype("x", from, FLOATS)))
}

fn run_activate<T: Real, U: Real>(
    stream: &Stream,
    x: &View<'_>,
    kind: Activation,
    out: &mut ViewMut<'_>,
) -> Result<(), OpError> {
    let (x, out) = (ACTIVATE.slice::<T>(x)?, ACTIVATE.slice_mut::<U>(out)?);
    for_each_row(stream, out, BLOCK, |block, out| {
        let x = x.get(block * BLOCK..).unwrap_or_default();
        match kind {
            Activation::Silu => map(x, out, silu),
            Activation::Gelu => map(x, out, gelu),
            Activation::GeluTanh => map(x, out, gelu_tanh),
            Activation::QuickGelu => map(x, out, quick_gelu),
        }
    });
    Ok(())
}

#[inline]
fn map<T: Real, U: Real>(x: &[T], out: &mut [U], f: impl Fn(f32) -> f32) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = U::from_f32(f(x.to_f32()));
    }
}

pub(super) fn gated(stream: &Stream, args: Gated<'_>, [_, i]: [usize; 2]) -> Result<(), OpError> {
    if args.quantize.is_some() || args.scales.is_some() {
        return gated_f8(stream, args, i);
    }
    let Gated { gate_up, kind, mut out, .. } = args;
    let (from, to) = (gate_up.dtype(), out.dtype());
    with_real!(from, T => with_real!(to, U => run_gated::<T, U>(stream, &gate_up, kind, &mut out, i),
        else Err(GATED.bad_dtype("out", to, FLOATS))),
        else Err(GATED.bad_dtype("gate_up", from, FLOATS)))
}

fn run_gated<T: Real, U: Real>(
    stream: &Stream,
    gate_up: &View<'_>,
    kind: Activation,
    out: &mut ViewMut<'_>,
    len: usize,
) -> Result<(), OpError> {
    let (gate_up, out) = (GATED.slice::<T>(gate_up)?, GATED.slice_mut::<U>(out)?);
    for_each_row(stream, out, len, |row, out| {
        gate_row(kind, gate_up.get(2 * len * row..2 * len * (row + 1)).unwrap_or_default(), out);
    });
    Ok(())
}

/// Of a scaled input, or to FP8: by rows in float32.
fn gated_f8(stream: &Stream, args: Gated<'_>, len: usize) -> Result<(), OpError> {
    let Gated { gate_up, scales, kind, quantize, mut out } = args;
    let gate_up = ScaledRows::new(GATED, "gate_up", &gate_up, scales.as_ref())?;
    if let Some(mut quantize) = quantize {
        let rows = RowQuantizer::new(GATED, &mut quantize)?;
        for_each_row(stream, GATED.slice_mut::<F8E4M3>(&mut out)?, len, |i, out| {
            with_scratch(3 * len, |scratch| {
                let (from, to) = scratch.split_at_mut(2 * len);
                gate_up.copy_row_to(i, from);
                gate_row(kind, from, to);
                rows.row(i, to, out);
            });
        });
        return Ok(());
    }
    let to = out.dtype();
    with_real!(to, U => {
        for_each_row(stream, GATED.slice_mut::<U>(&mut out)?, len, |i, out| {
            with_scratch(2 * len, |from| {
                gate_up.copy_row_to(i, from);
                gate_row(kind, from, out);
            });
        });
        Ok(())
    }, else Err(GATED.bad_dtype("out", to, FLOATS)))
}

/// A row: gates, then as many factors.
fn gate_row<T: Real, U: Real>(kind: Activation, row: &[T], out: &mut [U]) {
    let (gate, up) = row.split_at(out.len().min(row.len()));
    match kind {
        Activation::Silu => zip(gate, up, out, silu),
        Activation::Gelu => zip(gate, up, out, gelu),
        Activation::GeluTanh => zip(gate, up, out, gelu_tanh),
        Activation::QuickGelu => zip(gate, up, out, quick_gelu),
    }
}

#[inline]
fn zip<T: Real, U: Real>(gate: &[T], up: &[T], out: &mut [U], f: impl Fn(f32) -> f32) {
    for ((o, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *o = U::from_f32(f(gate.to_f32()) * up.to_f32());
    }
}
