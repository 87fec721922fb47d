//! Residual addition and normalisation in one pass: what stands between any two parts of a layer.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;
use crate::quantize::{Quantize, Scales, check_out};

pub(crate) use cuda::variants;

const OP: Op = Op("add_norm");

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * weight`
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
    Layer,
}

/// Rows to add to some rows of a batch.
#[derive(Clone, Copy, Debug)]
pub struct RowAdd<'a> {
    /// `[r, d]`
    pub rows: View<'a>,
    /// `[m]` i32: the row of `rows` to add to each row of the batch, -1 for none.
    pub index: View<'a>,
}

/// Operands of [`add_norm`].
#[derive(Debug)]
pub struct AddNorm<'a> {
    /// `[m, d]`, read and, if anything is added, written: `residual += add; residual += extra.rows[extra.index]`.
    pub residual: ViewMut<'a>,
    /// The last part's output `[m, d]`.
    pub add: Option<View<'a>>,
    /// What `add` is to be multiplied by first, where it is a product of FP8 operands.
    pub add_scales: Option<Scales<'a>>,
    /// Deepstack features of the layer before: added after `add`.
    pub extra: Option<RowAdd<'a>>,
    /// `[d]`, not made by the operator directly ahead (see the [crate]).
    pub weight: View<'a>,
    /// `[d]`; [`NormKind::Layer`] only.
    pub bias: Option<View<'a>>,
    /// How.
    pub kind: NormKind,
    /// Added to the variance (or mean square).
    pub eps: f32,
    /// How the normalised rows are rounded to FP8; `None` for a float type.
    pub quantize: Option<Quantize<'a>>,
    /// The normalised rows `[m, d]`.
    pub out: ViewMut<'a>,
}

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    d: usize,
    /// Rows of `extra.rows`; 0 without it.
    num_extra: usize,
}

impl AddNorm<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [m, d] = OP.rank("residual", self.residual.shape())?;
        OP.float("residual", self.residual.dtype())?;
        let reals = |arg, view: &View<'_>, dims: &[usize]| {
            OP.shape(arg, view.shape(), dims)?;
            OP.float(arg, view.dtype())
        };
        reals("weight", &self.weight, &[d])?;
        OP.shape("out", self.out.shape(), &[m, d])?;
        check_out(OP, self.quantize.as_ref(), self.out.dtype(), [m, d])?;
        if let Some(bias) = &self.bias {
            if self.kind == NormKind::Rms {
                return Err(OpError::Mismatch { op: OP.0, arg: "bias", reason: "is given, but an RMSNorm has none" });
            }
            reals("bias", bias, &[d])?;
        }
        if let Some(add) = &self.add {
            reals("add", add, &[m, d])?;
        }
        if let Some(scales) = &self.add_scales {
            if self.add.is_none() {
                return Err(OpError::Mismatch { op: OP.0, arg: "add_scales", reason: "are given, but nothing to add" });
            }
            scales.check(OP, [m, d])?;
        }
        let Some(extra) = &self.extra else {
            return Ok(Sizes { m, d, num_extra: 0 });
        };
        let [num_extra, _] = OP.rank("extra.rows", extra.rows.shape())?;
        reals("extra.rows", &extra.rows, &[num_extra, d])?;
        OP.shape("extra.index", extra.index.shape(), &[m])?;
        OP.dtype("extra.index", extra.index.dtype(), DType::I32, "i32")?;
        Ok(Sizes { m, d, num_extra })
    }
}

/// `residual += add + extra; out = norm(residual)`: what stands before every projection, and before the head.
///
/// # Equation
/// `residual[i] += add[i]` (times its [`Scales`], where it has any), then `residual[i] += extra.rows[extra.index[i]]`
/// where that index is not -1, then [`NormKind`]'s formula over `residual[i]`.
///
/// # Shapes
/// `residual`, `add`, `out`: `[m, d]`; `weight`, `bias`: `[d]`; `extra.rows`: `[r, d]`; `extra.index`: `[m]`. Any of
/// them may be empty. A [`NormKind::Layer`] without `bias` adds none.
///
/// # Dtypes and layout
/// Row-major and contiguous. `extra.index` is i32, scales are f32; every other operand is f32, bf16 or f16, each of its
/// own choice, but `out` is f8_e4m3 with `quantize`. On CUDA, rows that are quantised have at most 32768 columns.
///
/// # Numerics
/// Each of the two additions is made in float32 and rounded to `residual`'s type, as separate additions would be; the
/// norm reads what was stored. Sums of a row are float64, in an order that the row's length alone decides. The
/// normalised value is multiplied and shifted in float32 and rounded once, when it is stored (HF rounds to bf16 before
/// it multiplies by the weight), to FP8 as [`quantize`](crate::quantize) says. Against float64: 4e-6 relative for f32,
/// one rounding for bf16 and f16. On CUDA the sums are float32, per thread and then across threads, and an index
/// outside of `extra.rows` adds nothing.
///
/// # Source
/// `Qwen3VLTextRMSNorm` and `torch.nn.LayerNorm` in `models/qwen3_vl/modeling_qwen3_vl.py`, `_deepstack_process` for
/// `extra`; HF transformers 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit, or, on the CPU, an index is outside of `extra.rows`.
pub fn add_norm(stream: &Stream, args: AddNorm<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::add_norm(cuda, &args, sizes),
        None => cpu::add_norm(stream, args, sizes),
    }
}
