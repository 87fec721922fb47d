//! The nonlinearity of an MLP, plain or gated.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;
use crate::quantize::{Quantize, Scales, check_out};

pub(crate) use cuda::variants;

const ACTIVATE: Op = Op("activate");
const GATED: Op = Op("gated");

/// A nonlinearity; the names are HF's `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (`silu`)
    Silu,
    /// `x * Φ(x)` (`gelu`)
    Gelu,
    /// Its approximation by tanh (`gelu_pytorch_tanh`)
    GeluTanh,
    /// `x * sigmoid(1.702 x)` (`quick_gelu`)
    QuickGelu,
}

/// Operands of [`activate`].
#[derive(Debug)]
pub struct Activate<'a> {
    /// `[n, i]`
    pub x: View<'a>,
    /// Which.
    pub kind: Activation,
    /// `[n, i]`
    pub out: ViewMut<'a>,
}

/// Operands of [`gated`].
#[derive(Debug)]
pub struct Gated<'a> {
    /// `[n, 2 * i]`: the gate, then the factor, as the stacked gate and up projections give them.
    pub gate_up: View<'a>,
    /// What `gate_up` is to be multiplied by first, where it is a product of FP8 operands.
    pub scales: Option<Scales<'a>>,
    /// The gate's nonlinearity.
    pub kind: Activation,
    /// How the output is rounded to FP8; `None` for a float type.
    pub quantize: Option<Quantize<'a>>,
    /// `[n, i]`
    pub out: ViewMut<'a>,
}

impl Activate<'_> {
    /// Shapes and element types; the number of elements.
    fn check(&self) -> Result<usize, OpError> {
        let [n, i] = ACTIVATE.rank("x", self.x.shape())?;
        ACTIVATE.shape("out", self.out.shape(), &[n, i])?;
        ACTIVATE.float("x", self.x.dtype())?;
        ACTIVATE.float("out", self.out.dtype())?;
        Ok(n * i)
    }
}

impl Gated<'_> {
    /// Shapes and element types; rows of `out` and their elements.
    fn check(&self) -> Result<[usize; 2], OpError> {
        let [n, i] = GATED.rank("out", self.out.shape())?;
        GATED.shape("gate_up", self.gate_up.shape(), &[n, 2 * i])?;
        GATED.float("gate_up", self.gate_up.dtype())?;
        if let Some(scales) = &self.scales {
            scales.check(GATED, [n, 2 * i])?;
        }
        check_out(GATED, self.quantize.as_ref(), self.out.dtype(), [n, i])?;
        Ok([n, i])
    }
}

/// `out = act(x)`: the plain MLP of a vision tower, and the patch merger.
///
/// # Equation
/// `out[i] = act(x[i])`, with [`Activation`]'s formulas.
///
/// # Shapes
/// `x`, `out`: `[n, i]`.
///
/// # Dtypes and layout
/// Row-major and contiguous; f32, bf16 or f16, each of its own choice.
///
/// # Numerics
/// Computed in float32 and rounded once, when stored. GELU by tanh is evaluated as `x * sigmoid(2 u)`, which is the same
/// function; the exact GELU by the complementary error function, so that its negative tail keeps its precision. Against
/// float64: 4e-6 relative plus 1e-6 for f32. A NaN stays a NaN. On CUDA exponential and quotient are each within 2 ulp,
/// which the same tolerance covers.
///
/// # Source
/// `activations.py` (`silu`, `gelu`, `gelu_pytorch_tanh`, `quick_gelu`), HF transformers 5.17; arXiv:1606.08415.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit.
pub fn activate(stream: &Stream, args: Activate<'_>) -> Result<(), OpError> {
    let num_elements = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::activate(cuda, &args, num_elements),
        None => cpu::activate(stream, args),
    }
}

/// `out = act(gate) * up` (SwiGLU with [`Activation::Silu`]): the gated MLP of the decoder and of Qwen2.5-VL's tower.
///
/// # Equation
/// `out[r, j] = act(gate_up[r, j]) * gate_up[r, i + j]`, `gate_up` times its [`Scales`] where it has any, `out` rounded as
/// [`quantize`](crate::quantize) says where it is FP8.
///
/// # Shapes
/// `gate_up`: `[n, 2 * i]`; `out`: `[n, i]`.
///
/// # Dtypes and layout
/// Row-major and contiguous; f32, bf16 or f16, each of its own choice, scales f32, `out` f8_e4m3 with `quantize`. On CUDA,
/// rows that are quantised by row or group have at most 32768 columns.
///
/// # Numerics
/// As [`activate`]; the product is made before the one rounding.
///
/// # Source
/// `Qwen3VLTextMLP` in `models/qwen3_vl/modeling_qwen3_vl.py`, HF transformers 5.17; arXiv:2002.05202.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit.
pub fn gated(stream: &Stream, args: Gated<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::gated(cuda, &args, sizes),
        None => cpu::gated(stream, args, sizes),
    }
}
