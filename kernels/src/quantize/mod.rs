//! FP8 activations: rows rounded to e4m3, and the factors that go with them.
//!
//! # Scales for free
//! A product of FP8 operands is run without scales; its bf16 result has float32's exponent, so it is safe unscaled, and
//! whatever reads it next multiplies element `[i, j]` by `rows[i] * columns[j]` ([`Scales`]): the activations' scale of
//! row `i`, the weights' of channel `j`. A fixed scale of the activations (a checkpoint's `input_scale`) is folded into
//! the columns, and there are no rows then. Only scales that vary along the summed dimension (blocks of 128) can't be
//! taken out of a product: [`linear`](crate::linear) applies those itself.
//!
//! # Rounding
//! `scale = max |x| / 448` over the row (or over 128 neighbours of it), `q = e4m3(x * (448 / max |x|))`, to nearest even
//! and saturating. A row of zeros has scale 0, and one of numbers below 2^-119 becomes zeros. A NaN stays one, and a row with an
//! infinity becomes NaN when it is scaled back: nothing that is no number is lost.
//!
//! # Source
//! Micikevicius et al., arXiv:2209.05433; scales by token and channel: Xiao et al., arXiv:2211.10438; 1 x 128 groups:
//! DeepSeek-AI, arXiv:2412.19437, section 3.3.2.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cpu::{QuantizedOut, RowQuantizer, ScaledRows, with_scratch};
pub(crate) use cuda::{Form, check_group_pack, held_row, quantize_params, scale_params, variants};

const OP: Op = Op("quantize");

/// Elements of a row that share a scale where rows are scaled by groups.
pub const GROUP: usize = 128;

/// Rows of a batch of `m` as scales by group are stored: bulk copies of a column ask for multiples of four.
#[must_use]
pub fn group_stride(m: usize) -> usize {
    m.next_multiple_of(4)
}

/// The factors that a product of FP8 operands still lacks: its reader multiplies element `[i, j]` by `rows[i]`, then by
/// `columns[j]`.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// `[m]` f32: of the activations; none where they are part of `columns`.
    pub rows: Option<View<'a>>,
    /// `[n]` f32: of the weights, and as early there as they.
    pub columns: View<'a>,
}

/// How an operator rounds its output to FP8.
#[derive(Debug)]
pub enum Quantize<'a> {
    /// A scale for each row, `[m]` f32, which is written.
    PerRow(ViewMut<'a>),
    /// A scale for each [`GROUP`] neighbours of a row, `[ceil(d / GROUP), group_stride(m)]` f32, which is written: those
    /// of one group of all rows beside each other, as products read them.
    PerGroup(ViewMut<'a>),
    /// All elements are divided by this, which is finite and above 0.
    Fixed(f32),
}

impl Scales<'_> {
    /// For `[m, n]` values.
    pub(crate) fn check(&self, op: Op, [m, n]: [usize; 2]) -> Result<(), OpError> {
        if let Some(rows) = &self.rows {
            op.shape("scales.rows", rows.shape(), &[m])?;
            op.dtype("scales.rows", rows.dtype(), DType::F32, "f32")?;
        }
        op.shape("scales.columns", self.columns.shape(), &[n])?;
        op.dtype("scales.columns", self.columns.dtype(), DType::F32, "f32")
    }
}

/// What an operator's output `[m, d]` must hold: FP8 where it is to be quantised, else a float type.
pub(crate) fn check_out(
    op: Op,
    quantize: Option<&Quantize<'_>>,
    out: DType,
    [m, d]: [usize; 2],
) -> Result<(), OpError> {
    let Some(quantize) = quantize else { return op.float("out", out) };
    op.dtype("out", out, DType::F8E4M3, "f8_e4m3, as it is to be quantised")?;
    let scales = |view: &ViewMut<'_>, dims: &[usize]| {
        op.shape("quantize", view.shape(), dims)?;
        op.dtype("quantize", view.dtype(), DType::F32, "f32")
    };
    match quantize {
        Quantize::PerRow(view) => scales(view, &[m]),
        Quantize::PerGroup(view) => scales(view, &[d.div_ceil(GROUP), group_stride(m)]),
        Quantize::Fixed(scale) if scale.is_finite() && *scale > 0.0 => Ok(()),
        Quantize::Fixed(_) => {
            Err(OpError::Mismatch { op: op.0, arg: "quantize", reason: "has a scale that is not finite and above 0" })
        }
    }
}

/// Operands of [`quantize`].
#[derive(Debug)]
pub struct QuantizeRows<'a> {
    /// `[m, d]`
    pub x: View<'a>,
    /// How.
    pub quantize: Quantize<'a>,
    /// `[m, d]` FP8.
    pub out: ViewMut<'a>,
}

/// Rounds rows to FP8: weights when they are loaded, and activations where no operator before it does so. Weights are not used by
/// the operator directly behind this one (see the [crate]).
///
/// # Equation
/// See the [module](self).
///
/// # Shapes
/// `x`, `out`: `[m, d]`; scales as [`Quantize`] says. Any may be empty.
///
/// # Dtypes and layout
/// Row-major and contiguous; `x` f32, bf16 or f16, `out` f8_e4m3. On CUDA, scales by group need `d` to be a multiple of 8
/// and operands at multiples of 16 bytes.
///
/// # Numerics
/// Maximum, factor and product are float32; on every device the same bits.
///
/// # Source
/// See the [module](self).
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit.
pub fn quantize(stream: &Stream, args: QuantizeRows<'_>) -> Result<(), OpError> {
    let [m, d] = OP.rank("x", args.x.shape())?;
    OP.float("x", args.x.dtype())?;
    OP.shape("out", args.out.shape(), &[m, d])?;
    check_out(OP, Some(&args.quantize), args.out.dtype(), [m, d])?;
    match stream.cuda() {
        Some(cuda) => cuda::quantize(cuda, &args, [m, d]),
        None => cpu::quantize(stream, args, d),
    }
}
