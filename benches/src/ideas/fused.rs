//! Operators that round their result to FP8 themselves, and the same with a launch of its own for it.

use foveal_device::{DType, Device, Stream, Tensor};
use foveal_kernels::activation::{Activation, Gated, gated};
use foveal_kernels::norm::{AddNorm, NormKind, add_norm};
use foveal_kernels::quantize::{Quantize, QuantizeRows, quantize};

use super::context::{Context, Machine};
use super::equal::{RoundedRows, ensure_same};
use super::table::{Idea, Measured, Table};
use super::turns::{in_turns, settled};
use crate::gpu::{BF16, Cost, Rotation, bits};

pub(super) const FUSED: Idea = Idea { name: "rounding to FP8", with: "fused", without: "apart" };

/// Rows: of one sequence, of many, and of prompts.
const ROWS: [usize; 3] = [1, 128, 8192];
const SMALLEST: [usize; 3] = [1, 2, 5];
const EPS: f32 = 1e-6;

/// Both operators that do it, at the sizes of the model's decoder.
pub(super) fn fused(context: &Context<'_>, table: &mut Table) -> anyhow::Result<()> {
    let text = &context.config.text;
    let (hidden, inner) = (text.hidden_size, text.intermediate_size);
    for n in context.size(ROWS, SMALLEST) {
        // What is read and written at least: three rows of activations, and one of FP8.
        let cost = Cost::of_bytes(n * hidden * (3 * BF16 + 1));
        let case = format!("residual + RMSNorm, {n} x {hidden}");
        let result = compare(context, &case, cost, |turns| Norm::new(context, turns, [n, hidden]), table);
        table.keep(FUSED, &case, result);
    }
    for n in context.size(ROWS, SMALLEST) {
        let cost = Cost::of_bytes(n * inner * (2 * BF16 + 1));
        let case = format!("SwiGLU, {n} x {inner}");
        let result = compare(context, &case, cost, |turns| SwiGlu::new(context, turns, [n, inner]), table);
        table.keep(FUSED, &case, result);
    }
    let reason = "no operator does the norm, the rotation or the write into the cache by itself";
    table.left_out(Idea { name: "QK-norm + RoPE + cache", ..FUSED }, "any number of rows", reason);
    Ok(())
}

/// An operator with its operands.
trait Fusion {
    /// One launch, which rounds its result or leaves that; `call` is its number.
    fn run(&mut self, stream: &Stream, call: usize, is_fused: bool) -> anyhow::Result<()>;
    /// What it writes into.
    fn out(&mut self) -> &mut Outputs;
    /// What else it has written.
    fn kept(&self) -> Option<&Tensor>;

    /// All in one launch.
    fn fused(&mut self, stream: &Stream, call: usize) -> anyhow::Result<()> {
        self.run(stream, call, true)
    }

    /// The same as two.
    fn apart(&mut self, stream: &Stream, call: usize) -> anyhow::Result<()> {
        self.run(stream, call, false)?;
        self.out().round(stream, call)
    }
}

/// How many operands of a kind there are.
#[derive(Clone, Copy)]
enum Turns {
    One,
    /// On a GPU, so many that none comes from its cache.
    Many,
}

fn compare<F: Fusion>(
    context: &Context<'_>,
    case: &str,
    cost: Cost,
    make: impl Fn(Turns) -> anyhow::Result<F>,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (device, stream) = (context.device(), context.device().stream());
    let (mut one, mut other) = (make(Turns::One)?, make(Turns::One)?);
    one.fused(stream, 0)?;
    other.apart(stream, 0)?;
    if let Some((a, b)) = one.kept().zip(other.kept()) {
        ensure_same("the residual", a, b)?;
    }
    let equal = one.out().rounded().compare(&other.out().rounded(), device)?;
    drop((one, other));
    let mut operands = make(Turns::Many)?;
    let times = match &context.machine {
        Machine::Gpu(bench) => [
            bench.time_calls(cost, |call| operands.fused(stream, call))?,
            bench.time_calls(cost, |call| operands.apart(stream, call))?,
        ],
        Machine::Cpu(_) => {
            let mut others = make(Turns::Many)?;
            in_turns(context.effort, || operands.fused(stream, 0), || others.apart(stream, 0), settled)?
        }
    };
    let how = if device.is_cuda() { "recorded; one launch for two" } else { "one pass for two" };
    table.measured(FUSED, case, Measured { times, equal, note: how.to_owned() });
    Ok(())
}

/// Random activations.
fn operand(context: &Context<'_>, turns: Turns, dims: &[usize]) -> anyhow::Result<Rotation> {
    Ok(match (&context.machine, turns) {
        (Machine::Gpu(bench), Turns::Many) => bench.rotation(dims)?,
        (Machine::Gpu(bench), Turns::One) => Rotation::of(bench.random(dims)?, dims),
        (Machine::Cpu(device), _) => Rotation::of(random(device, dims)?, dims),
    })
}

fn rounded_operand(context: &Context<'_>, turns: Turns, dims: &[usize]) -> anyhow::Result<Rotation> {
    Ok(match (&context.machine, turns) {
        (Machine::Gpu(bench), Turns::Many) => bench.f8_rotation(dims)?,
        _ => Rotation::of(Tensor::zeros(context.device(), DType::F8E4M3, dims)?, dims),
    })
}

/// From -1 to 1.
fn random(device: &Device, dims: &[usize]) -> anyhow::Result<Tensor> {
    let value = |i: usize| bits(i) as f32 / 2_f32.powi(31) - 1.0;
    let values: Vec<f32> = (0..dims.iter().product()).map(value).collect();
    Ok(Tensor::from_slice(device, &values, dims)?)
}

/// What both operators write into.
struct Outputs {
    /// What stands between the two launches: one buffer for all calls, as a step has.
    float: Tensor,
    values: Rotation,
    scales: Tensor,
}

impl Outputs {
    fn new(context: &Context<'_>, turns: Turns, dims: [usize; 2]) -> anyhow::Result<Self> {
        let device = context.device();
        Ok(Self {
            float: Tensor::zeros(device, device.activation_dtype(), &dims)?,
            values: rounded_operand(context, turns, &dims)?,
            scales: Tensor::zeros(device, DType::F32, &dims[..1])?,
        })
    }

    /// The second launch.
    fn round(&mut self, stream: &Stream, call: usize) -> anyhow::Result<()> {
        let Self { float, values, scales } = self;
        let to = Quantize::PerRow(scales.view_mut()?);
        Ok(quantize(stream, QuantizeRows { x: float.view(), quantize: to, out: values.view_mut(call)? })?)
    }

    fn rounded(&self) -> RoundedRows<'_> {
        RoundedRows { values: self.values.tensor(), scales: &self.scales }
    }
}

/// `residual += add; out = norm(residual)`.
struct Norm {
    residual: Rotation,
    add: Rotation,
    weight: Rotation,
    out: Outputs,
}

impl Norm {
    fn new(context: &Context<'_>, turns: Turns, dims: [usize; 2]) -> anyhow::Result<Self> {
        Ok(Self {
            residual: operand(context, turns, &dims)?,
            add: operand(context, turns, &dims)?,
            weight: operand(context, Turns::One, &dims[1..])?,
            out: Outputs::new(context, turns, dims)?,
        })
    }
}

impl Fusion for Norm {
    fn run(&mut self, stream: &Stream, call: usize, is_fused: bool) -> anyhow::Result<()> {
        let Outputs { float, values, scales } = &mut self.out;
        let (quantize, out) = match is_fused {
            true => (Some(Quantize::PerRow(scales.view_mut()?)), values.view_mut(call)?),
            false => (None, float.view_mut()?),
        };
        let args = AddNorm {
            residual: self.residual.view_mut(call)?,
            add: Some(self.add.view(call)?),
            add_scales: None,
            extra: None,
            weight: self.weight.view(0)?,
            bias: None,
            kind: NormKind::Rms,
            eps: EPS,
            quantize,
            out,
        };
        Ok(add_norm(stream, args)?)
    }

    fn out(&mut self) -> &mut Outputs {
        &mut self.out
    }

    fn kept(&self) -> Option<&Tensor> {
        Some(self.residual.tensor())
    }
}

/// `silu(gate) * up`.
struct SwiGlu {
    gate_up: Rotation,
    out: Outputs,
}

impl SwiGlu {
    fn new(context: &Context<'_>, turns: Turns, [n, inner]: [usize; 2]) -> anyhow::Result<Self> {
        let gate_up = operand(context, turns, &[n, 2 * inner])?;
        Ok(Self { gate_up, out: Outputs::new(context, turns, [n, inner])? })
    }
}

impl Fusion for SwiGlu {
    fn run(&mut self, stream: &Stream, call: usize, is_fused: bool) -> anyhow::Result<()> {
        let Outputs { float, values, scales } = &mut self.out;
        let (quantize, out) = match is_fused {
            true => (Some(Quantize::PerRow(scales.view_mut()?)), values.view_mut(call)?),
            false => (None, float.view_mut()?),
        };
        let gate_up = self.gate_up.view(call)?;
        Ok(gated(stream, Gated { gate_up, scales: None, kind: Activation::Silu, quantize, out })?)
    }

    fn out(&mut self) -> &mut Outputs {
        &mut self.out
    }

    fn kept(&self) -> Option<&Tensor> {
        None
    }
}
