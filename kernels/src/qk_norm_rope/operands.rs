//! The operands, checked, and as the CPU reads them.

use std::borrow::Cow;
use std::ops::Range;

use foveal_device::{DType, Shape, View};

use super::{Mrope, QkNorm, QkNormRope};
use crate::check::Op;
use crate::reals::{Reals, check_indices};
use crate::{KvLayout, OpError};

pub(super) const OP: Op = Op("qk_norm_rope");

/// The sizes of checked operands.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) n: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    /// Frequency pairs that are turned.
    pub(super) pairs: usize,
    pub(super) max_positions: usize,
    pub(super) num_slots: usize,
}

/// Shapes and element types.
pub(super) fn check(args: &QkNormRope<'_>) -> Result<Sizes, OpError> {
    let QkNormRope { qkv, scales, bias, norm, rope, slot_mapping, layout, kv_scales, k_cache, v_cache, q_out } = args;
    let [n, num_heads, head_dim] = OP.rank("q_out", q_out.shape())?;
    OP.float("q_out", q_out.dtype())?;
    let num_kv_heads = layout.num_kv_heads;
    let width = (num_heads + 2 * num_kv_heads) * head_dim;
    OP.shape("qkv", qkv.shape(), &[n, width])?;
    OP.float("qkv", qkv.dtype())?;
    if let Some(scales) = scales {
        scales.check(OP, [n, width])?;
    }
    if let Some(bias) = bias {
        OP.shape("bias", bias.shape(), &[width])?;
        OP.dtype("bias", bias.dtype(), DType::F32, "f32")?;
    }
    kv_scales.check(OP)?;
    let num_slots = check_cache(layout, head_dim, k_cache.shape(), v_cache.shape())?;
    for (arg, dtype) in [("k_cache", k_cache.dtype()), ("v_cache", v_cache.dtype())] {
        OP.dtype(arg, dtype, layout.dtype, "the element type of `layout`")?;
        if dtype != DType::F8E4M3 {
            OP.float(arg, dtype)?;
        }
    }
    OP.shape("slot_mapping", slot_mapping.shape(), &[n])?;
    OP.dtype("slot_mapping", slot_mapping.dtype(), DType::I64, "i64")?;
    if let Some(norm) = norm {
        for (arg, weight) in [("norm.q_weight", &norm.q_weight), ("norm.k_weight", &norm.k_weight)] {
            OP.shape(arg, weight.shape(), &[head_dim])?;
            OP.float(arg, weight.dtype())?;
        }
    }
    let [max_positions, pairs] = check_rope(rope, n, head_dim)?;
    Ok(Sizes { n, num_heads, num_kv_heads, head_dim, pairs, max_positions, num_slots })
}

/// How many slots the cache has.
fn check_cache(layout: &KvLayout, head_dim: usize, k: &Shape, v: &Shape) -> Result<usize, OpError> {
    let [num_blocks, ..] = OP.rank::<4>("k_cache", k)?;
    if layout.page == 0 || head_dim == 0 || layout.head_dim != head_dim {
        let expected = format!("pages and heads of at least one row, and heads of {head_dim} as in `q_out`");
        return Err(OP.bad_shape("k_cache", k, expected));
    }
    OP.shape("k_cache", k, &layout.cache_shape(num_blocks))?;
    OP.shape("v_cache", v, &layout.cache_shape(num_blocks))?;
    Ok(num_blocks * layout.page)
}

/// The tables' positions and pairs.
fn check_rope(rope: &Mrope<'_>, n: usize, head_dim: usize) -> Result<[usize; 2], OpError> {
    let [max_positions, pairs] = OP.rank("rope.cos", rope.cos.shape())?;
    if 2 * pairs > head_dim {
        return Err(OP.bad_shape("rope.cos", rope.cos.shape(), format!("at most {} pairs", head_dim / 2)));
    }
    OP.shape("rope.sin", rope.sin.shape(), &[max_positions, pairs])?;
    OP.shape("rope.axis_of_pair", rope.axis_of_pair.shape(), &[pairs])?;
    OP.shape("rope.positions", rope.positions.shape(), &[AXES, n])?;
    OP.dtype("rope.cos", rope.cos.dtype(), DType::F32, "f32")?;
    OP.dtype("rope.sin", rope.sin.dtype(), DType::F32, "f32")?;
    OP.dtype("rope.axis_of_pair", rope.axis_of_pair.dtype(), DType::U8, "u8")?;
    OP.dtype("rope.positions", rope.positions.dtype(), DType::I32, "i32")?;
    Ok([max_positions, pairs])
}

/// The norm's weights as float32.
pub(super) struct Norm<'a> {
    q_weight: Cow<'a, [f32]>,
    k_weight: Cow<'a, [f32]>,
    eps: f32,
}

/// The norm of q's heads or of k's.
#[derive(Clone, Copy)]
pub(super) struct HeadNorm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
}

impl<'a> Norm<'a> {
    pub(super) fn read(norm: &QkNorm<'a>) -> Result<Self, OpError> {
        let q_weight = Reals::new(OP, "norm.q_weight", &norm.q_weight)?.to_f32s();
        let k_weight = Reals::new(OP, "norm.k_weight", &norm.k_weight)?.to_f32s();
        Ok(Self { q_weight, k_weight, eps: norm.eps })
    }

    pub(super) fn of_q(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.q_weight, eps: self.eps }
    }

    pub(super) fn of_k(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.k_weight, eps: self.eps }
    }
}

/// Where the cache's elements lie.
pub(super) struct Cache {
    num_slots: usize,
    layout: KvLayout,
}

impl Cache {
    pub(super) fn new(layout: KvLayout, num_slots: usize) -> Self {
        Self { num_slots, layout }
    }

    /// The slots, each -1 or inside of the cache.
    pub(super) fn slots<'a>(&self, slot_mapping: &View<'a>) -> Result<&'a [i64], OpError> {
        let slots = OP.slice::<i64>(slot_mapping)?;
        let num_slots = self.num_slots;
        let fits = |slot: i64| slot == -1 || usize::try_from(slot).is_ok_and(|slot| slot < num_slots);
        for (index, &value) in slots.iter().enumerate() {
            if !fits(value) {
                let expected = format!("-1 or above and below {num_slots}");
                return Err(OpError::Value { op: OP.0, arg: "slot_mapping", index, value, expected });
            }
        }
        Ok(slots)
    }

    /// The elements of `head` in `slot`.
    pub(super) fn place(&self, slot: usize, head: usize) -> Range<usize> {
        let KvLayout { page, num_kv_heads, head_dim, .. } = self.layout;
        let start = (((slot / page) * num_kv_heads + head) * page + slot % page) * head_dim;
        start..start + head_dim
    }
}

/// The rotary tables and every row's place in them.
pub(super) struct Rope<'a> {
    positions: &'a [i32],
    num_rows: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    axis_of_pair: &'a [u8],
}

/// cos and sin of one row's pairs.
pub(super) struct Angles<'a> {
    cos: Cow<'a, [f32]>,
    sin: Cow<'a, [f32]>,
}

impl Angles<'_> {
    pub(super) fn each(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
}

/// t, h and w.
const AXES: usize = 3;

impl<'a> Rope<'a> {
    pub(super) fn read(rope: &Mrope<'a>, Sizes { n, max_positions, .. }: Sizes) -> Result<Self, OpError> {
        let axis_of_pair = OP.slice::<u8>(&rope.axis_of_pair)?;
        for (index, &axis) in axis_of_pair.iter().enumerate() {
            if usize::from(axis) >= AXES {
                let expected = "0 (t), 1 (h) or 2 (w)".to_owned();
                let value = i64::from(axis);
                return Err(OpError::Value { op: OP.0, arg: "rope.axis_of_pair", index, value, expected });
            }
        }
        let positions = OP.slice::<i32>(&rope.positions)?;
        check_indices(OP, "rope.positions", positions, 0, max_positions)?;
        let (cos, sin) = (OP.slice(&rope.cos)?, OP.slice(&rope.sin)?);
        Ok(Self { positions, num_rows: n, cos, sin, axis_of_pair })
    }

    /// The angles of row `i`: those of the table where all axes agree (text), else gathered pair by pair.
    pub(super) fn angles(&self, i: usize) -> Angles<'a> {
        let pairs = self.axis_of_pair.len();
        let position = |axis: usize| {
            let position = self.positions.get(axis * self.num_rows + i).copied().unwrap_or_default();
            usize::try_from(position).unwrap_or_default()
        };
        let [t, h, w] = [position(0), position(1), position(2)];
        let rows = |table: &'a [f32]| [t, h, w].map(|p| table.get(p * pairs..(p + 1) * pairs).unwrap_or_default());
        let pick = |table: &'a [f32]| -> Cow<'a, [f32]> {
            let [by_t, by_h, by_w] = rows(table);
            if t == h && h == w {
                return Cow::Borrowed(by_t);
            }
            let of_axes = by_t.iter().zip(by_h).zip(by_w).zip(self.axis_of_pair);
            of_axes.map(|(((t, h), w), axis)| [*t, *h, *w].get(usize::from(*axis)).copied().unwrap_or(*t)).collect()
        };
        Angles { cos: pick(self.cos), sin: pick(self.sin) }
    }
}
