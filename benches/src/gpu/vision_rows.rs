//! What the vision tower does to each patch by itself.

use foveal_device::Tensor;
use foveal_kernels::activation::{Activate, Activation, activate};
use foveal_kernels::norm::{AddNorm, NormKind, add_norm};
use foveal_kernels::patch::{Normalise, normalise};
use foveal_kernels::position_embed::{AddPositionEmbed, add_position_embed};
use foveal_kernels::vision_rope::{VisionRope, vision_rope};

use super::Bench;
use super::ceilings::Cost;
use super::shapes::{BF16, PATCH, POSITIONS, VISION_HEAD_DIM, VISION_HEADS, VISION_HIDDEN, VISION_INNER};

/// Rows of the position table around a patch.
const TAPS: usize = 4;
/// Rows and columns that there are cosines for.
const MAX_SIDE: usize = 128;

/// Bytes to normalised rows.
pub(super) fn pixels(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("normalise patches", format!("{n} x {PATCH}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let pixels = bench.rotation_of(&[n, PATCH], |bits| bits as u8)?;
    let mut outs = bench.rotation(&[n, PATCH])?;
    bench.time(op, &shape, Cost::of_bytes(n * PATCH * (1 + BF16)), |i| {
        let (pixels, out) = (pixels.view(i)?, outs.view_mut(i)?);
        Ok(normalise(&stream, Normalise { pixels, mean: [0.5; 3], std: [0.5; 3], out })?)
    })
}

/// The learned positions: the table stays in the cache, as it does in a model.
pub(super) fn position_table(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("position_embed", format!("{n} x {VISION_HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let table = bench.random(&[POSITIONS, VISION_HIDDEN])?;
    let index = bench.rotation_of(&[n, TAPS], |bits| (bits % POSITIONS as u32) as i32)?;
    let weight = bench.rotation_of(&[n, TAPS], |bits| bits as f32 / u32::MAX as f32)?;
    let mut xs = bench.rotation(&[n, VISION_HIDDEN])?;
    let bytes = 2 * n * VISION_HIDDEN * BF16 + n * TAPS * 8 + n.min(POSITIONS) * VISION_HIDDEN * BF16;
    bench.time(op, &shape, Cost::of_bytes(bytes), |i| {
        let (index, weight, x) = (index.view(i)?, weight.view(i)?, xs.view_mut(i)?);
        Ok(add_position_embed(&stream, AddPositionEmbed { table: table.view(), index, weight, x })?)
    })
}

/// A block's sum and norm: two rows read, two written.
pub(super) fn layer_norm(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("layer norm", format!("{n} x {VISION_HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (mut residuals, adds) = (bench.rotation(&[n, VISION_HIDDEN])?, bench.rotation(&[n, VISION_HIDDEN])?);
    let (weight, bias) = (bench.random(&[VISION_HIDDEN])?, bench.random(&[VISION_HIDDEN])?);
    let mut outs = bench.rotation(&[n, VISION_HIDDEN])?;
    bench.time(op, &shape, Cost::of_bytes(4 * n * VISION_HIDDEN * BF16), |i| {
        let args = AddNorm {
            residual: residuals.view_mut(i)?,
            add: Some(adds.view(i)?),
            add_scales: None,
            extra: None,
            weight: weight.view(),
            bias: Some(bias.view()),
            kind: NormKind::Layer,
            eps: 1e-6,
            quantize: None,
            out: outs.view_mut(i)?,
        };
        Ok(add_norm(&stream, args)?)
    })
}

/// The MLP's activation.
pub(super) fn gelu(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("gelu_tanh", format!("{n} x {VISION_INNER}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (xs, mut outs) = (bench.rotation(&[n, VISION_INNER])?, bench.rotation(&[n, VISION_INNER])?);
    bench.time(op, &shape, Cost::of_bytes(2 * n * VISION_INNER * BF16), |i| {
        Ok(activate(&stream, Activate { x: xs.view(i)?, kind: Activation::GeluTanh, out: outs.view_mut(i)? })?)
    })
}

/// The rotation of q and k, in place.
pub(super) fn rotary(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("vision_rope", format!("{n} x {VISION_HEADS} x {VISION_HEAD_DIM}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let mut qkvs = bench.rotation(&[n, 3, VISION_HEADS, VISION_HEAD_DIM])?;
    let quarter = VISION_HEAD_DIM / 4;
    let table: Vec<f32> = (0..MAX_SIDE * quarter).map(|i| (i as f32).cos()).collect();
    let table = Tensor::from_slice(&bench.device, &table, &[MAX_SIDE, quarter])?;
    let positions = bench.rotation_of(&[n, 2], |bits| (bits % MAX_SIDE as u32) as i32)?;
    bench.time(op, &shape, Cost::of_bytes(4 * n * VISION_HIDDEN * BF16 + 8 * n), |i| {
        let (qkv, positions) = (qkvs.view_mut(i)?, positions.view(i)?);
        Ok(vision_rope(&stream, VisionRope { qkv, positions, cos: table.view(), sin: table.view() })?)
    })
}
