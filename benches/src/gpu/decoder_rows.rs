//! What the decoder does to each row by itself.

use foveal_device::{DType, Tensor};
use foveal_kernels::activation::{Activation, Gated, gated};
use foveal_kernels::embedding::{Embed, embed};
use foveal_kernels::norm::{AddNorm, NormKind, add_norm};
use foveal_kernels::qk_norm_rope::{Mrope, QkNorm, QkNormRope, qk_norm_rope};
use foveal_kernels::quantize::{GROUP, Quantize, Scales, group_stride};
use foveal_kernels::rows::{Gather, gather};
use foveal_kernels::{KvLayout, KvScales};

use super::Bench;
use super::ceilings::Cost;
use super::shapes::{BF16, HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYOUT, QKV, VOCAB};

const EPS: f32 = 1e-6;

/// Token embeddings, of text alone.
pub(super) fn embedding(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("embed", format!("{n} x {HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let table = bench.random(&[VOCAB, HIDDEN])?;
    let ids = bench.rotation_of(&[n], |bits| (bits % VOCAB as u32) as i32)?;
    let mut outs = bench.rotation(&[n, HIDDEN])?;
    bench.time(op, &shape, Cost::of_bytes(2 * n * HIDDEN * BF16 + 4 * n), |i| {
        let (input_ids, out) = (ids.view(i)?, outs.view_mut(i)?);
        Ok(embed(&stream, Embed { table: table.view(), input_ids, sampled: None, image: None, out })?)
    })
}

/// Rows picked from as many, in another order.
pub(super) fn picked_rows(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("gather", format!("{n} x {HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (xs, mut outs) = (bench.rotation(&[n, HIDDEN])?, bench.rotation(&[n, HIDDEN])?);
    let index = bench.ints((0..n as i32).rev(), &[n])?;
    bench.time(op, &shape, Cost::of_bytes(2 * n * HIDDEN * BF16 + 4 * n), |i| {
        Ok(gather(&stream, Gather { x: xs.view(i)?, index: index.view(), out: outs.view_mut(i)? })?)
    })
}

/// The residual stream's sum and norm: two rows read, two written.
pub(super) fn rms_norm(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("add_norm", format!("{n} x {HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (mut residuals, adds) = (bench.rotation(&[n, HIDDEN])?, bench.rotation(&[n, HIDDEN])?);
    let weights = bench.layer_weights(HIDDEN)?;
    let mut outs = bench.rotation(&[n, HIDDEN])?;
    bench.time(op, &shape, Cost::of_bytes(4 * n * HIDDEN * BF16), |i| {
        let args = AddNorm {
            residual: residuals.view_mut(i)?,
            add: Some(adds.view(i)?),
            add_scales: None,
            extra: None,
            weight: weights.view(i)?,
            bias: None,
            kind: NormKind::Rms,
            eps: EPS,
            quantize: None,
            out: outs.view_mut(i)?,
        };
        Ok(add_norm(&stream, args)?)
    })
}

/// The MLP's gate.
pub(super) fn silu(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("gated", format!("{n} x {INNER}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let gate_up = bench.rotation(&[n, 2 * INNER])?;
    let mut outs = bench.rotation(&[n, INNER])?;
    bench.time(op, &shape, Cost::of_bytes(3 * n * INNER * BF16), |i| {
        let (gate_up, out) = (gate_up.view(i)?, outs.view_mut(i)?);
        Ok(gated(&stream, Gated { gate_up, scales: None, kind: Activation::Silu, quantize: None, out })?)
    })
}

/// The norm of an unscaled product's sum, rounded to FP8 by row.
pub(super) fn rms_norm_f8(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let (op, shape) = ("add_norm, f8", format!("{n} x {HIDDEN}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (mut residuals, adds) = (bench.rotation(&[n, HIDDEN])?, bench.rotation(&[n, HIDDEN])?);
    let weights = bench.layer_weights(HIDDEN)?;
    let mut outs = bench.f8_rotation(&[n, HIDDEN])?;
    let (rows, columns) = (ones(bench, n)?, bench.layer_scales(HIDDEN)?);
    let mut scales = bench.scratch(DType::F32, &[n])?;
    let bytes = n * HIDDEN * (3 * BF16 + 1) + 8 * n;
    bench.time(op, &shape, Cost::of_bytes(bytes), |i| {
        let args = AddNorm {
            residual: residuals.view_mut(i)?,
            add: Some(adds.view(i)?),
            add_scales: Some(Scales { rows: Some(rows.view()), columns: columns.view(i)? }),
            extra: None,
            weight: weights.view(i)?,
            bias: None,
            kind: NormKind::Rms,
            eps: EPS,
            quantize: Some(Quantize::PerRow(scales.view_mut()?)),
            out: outs.view_mut(i)?,
        };
        Ok(add_norm(&stream, args)?)
    })
}

/// The gate of an unscaled product, rounded to FP8 by row or by 128 neighbours.
pub(super) fn silu_f8(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let shape = format!("{n} x {INNER}");
    let ops = ["gated, f8", "gated, f8 by group"];
    if !ops.iter().any(|op| bench.wants(op, &shape)) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let gate_ups = bench.rotation(&[n, 2 * INNER])?;
    let mut outs = bench.f8_rotation(&[n, INNER])?;
    let (rows, columns) = (ones(bench, n)?, bench.layer_scales(2 * INNER)?);
    let mut scales = bench.scratch(DType::F32, &[n])?;
    let mut group_scales = bench.scratch(DType::F32, &[INNER / GROUP, group_stride(n)])?;
    let cost = Cost::of_bytes(n * INNER * (2 * BF16 + 1));
    bench.time(ops[0], &shape, cost, |i| {
        let (gate_up, out) = (gate_ups.view(i)?, outs.view_mut(i)?);
        let by_row = Scales { rows: Some(rows.view()), columns: columns.view(i)? };
        let quantize = Some(Quantize::PerRow(scales.view_mut()?));
        Ok(gated(&stream, Gated { gate_up, scales: Some(by_row), kind: Activation::Silu, quantize, out })?)
    })?;
    bench.time(ops[1], &shape, cost, |i| {
        let (gate_up, out) = (gate_ups.view(i)?, outs.view_mut(i)?);
        let quantize = Some(Quantize::PerGroup(group_scales.view_mut()?));
        Ok(gated(&stream, Gated { gate_up, scales: None, kind: Activation::Silu, quantize, out })?)
    })
}

fn ones(bench: &Bench, len: usize) -> anyhow::Result<Tensor> {
    Ok(Tensor::from_slice(&bench.device, &vec![1.0_f32; len], &[len])?)
}

/// Norms and rotation of q and k, and the way of k and v into the cache.
pub(super) fn rotary(bench: &mut Bench, n: usize, kv: DType) -> anyhow::Result<()> {
    let is_f8 = kv == DType::F8E4M3;
    let op = if is_f8 { "qk_norm_rope, f8" } else { "qk_norm_rope" };
    let shape = format!("{n} x {QKV}");
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let (qkvs, mut qs) = (bench.rotation(&[n, QKV])?, bench.rotation(&[n, HEADS, HEAD_DIM])?);
    let cache = LAYOUT.cache_shape(n.div_ceil(LAYOUT.page));
    let layout = KvLayout { dtype: kv, ..LAYOUT };
    let caches = || if is_f8 { bench.f8_rotation(&cache) } else { bench.rotation(&cache) };
    let (mut k_caches, mut v_caches) = (caches()?, caches()?);
    let (scale_rows, scale_columns) = (ones(bench, n)?, bench.layer_scales(QKV)?);
    let weights = bench.layer_weights(HEAD_DIM)?;
    let pairs = HEAD_DIM / 2;
    let table = |f: fn(f32) -> f32| {
        let values: Vec<f32> = (0..n * pairs).map(|i| f(i as f32)).collect();
        Tensor::from_slice(&bench.device, &values, &[n, pairs])
    };
    let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
    let axes: Vec<u8> = (0..pairs).map(|i| (i % 3) as u8).collect();
    let axes = Tensor::from_slice(&bench.device, &axes, &[pairs])?;
    let positions = bench.ints((0..3).flat_map(|_| 0..n as i32), &[3, n])?;
    let slots: Vec<i64> = (0..n as i64).collect();
    let slots = Tensor::from_slice(&bench.device, &slots, &[n])?;
    // A token's cos and sin, three positions and a slot come to the qkv row, which is read and written.
    let stored = HEADS * HEAD_DIM * BF16 + 2 * KV_HEADS * HEAD_DIM * kv.size_bytes();
    let bytes = n * (QKV * BF16 + stored + HEAD_DIM * 4 + 3 * 4 + 8);
    bench.time(op, &shape, Cost::of_bytes(bytes), |i| {
        let scales = Scales { rows: Some(scale_rows.view()), columns: scale_columns.view(i)? };
        let args = QkNormRope {
            qkv: qkvs.view(i)?,
            scales: is_f8.then_some(scales),
            bias: None,
            norm: Some(QkNorm { q_weight: weights.view(i)?, k_weight: weights.view(i)?, eps: EPS }),
            rope: Mrope { positions: positions.view(), cos: cos.view(), sin: sin.view(), axis_of_pair: axes.view() },
            slot_mapping: slots.view(),
            layout,
            kv_scales: KvScales::ONE,
            k_cache: k_caches.view_mut(i)?,
            v_cache: v_caches.view_mut(i)?,
            q_out: qs.view_mut(i)?,
        };
        Ok(qk_norm_rope(&stream, args)?)
    })
}
