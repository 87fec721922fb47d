//! The CPU implementation.

use foveal_device::Stream;
use rayon::join;

use super::QkNormRope;
use super::operands::{Cache, HeadNorm, Norm, OP, Rope, Sizes};
use crate::parallel::{for_each_row, is_worth};
use crate::quantize::{ScaledRows, with_scratch};
use crate::real::{Real, with_real, with_stored};
use crate::reals::FLOATS;
use crate::{KvScales, OpError};

pub(super) fn qk_norm_rope(stream: &Stream, args: QkNormRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    let heads = Heads { num_heads: sizes.num_heads, num_kv_heads: args.layout.num_kv_heads, head_dim: sizes.head_dim };
    let from = args.qkv.dtype();
    if args.scales.is_some() || args.bias.is_some() {
        let bias = args.bias.map(|bias| OP.slice(&bias)).transpose()?;
        let rows = Scaled { rows: ScaledRows::new(OP, "qkv", &args.qkv, args.scales.as_ref())?, bias, heads };
        return run(stream, args, sizes, &rows);
    }
    with_real!(from, T => {
        let rows = Plain { qkv: OP.slice::<T>(&args.qkv)?, heads };
        run(stream, args, sizes, &rows)
    }, else Err(OP.bad_dtype("qkv", from, FLOATS)))
}

fn run(stream: &Stream, args: QkNormRope<'_>, sizes: Sizes, qkv: &impl QkvRows) -> Result<(), OpError> {
    let QkNormRope { norm, rope, slot_mapping, layout, kv_scales, mut k_cache, mut v_cache, mut q_out, .. } = args;
    let cache = Cache::new(layout, sizes.num_slots);
    let slots = cache.slots(&slot_mapping)?;
    let norm = norm.map(|norm| Norm::read(&norm)).transpose()?;
    let rope = Rope::read(&rope, sizes)?;
    let (to, stored) = (q_out.dtype(), layout.dtype);

    let q_norm = norm.as_ref().map(Norm::of_q);
    let k_norm = norm.as_ref().map(Norm::of_k);
    let mut write_q = || {
        with_real!(to, Q => {
            turn_q(stream, qkv, OP.slice_mut::<Q>(&mut q_out)?, q_norm, &rope);
            Ok(())
        }, else Err(OP.bad_dtype("q_out", to, FLOATS)))
    };
    let mut write_kv = || {
        with_stored!(stored, C => {
            let (k, v) = (OP.slice_mut::<C>(&mut k_cache)?, OP.slice_mut::<C>(&mut v_cache)?);
            store_kv(qkv, slots, (&cache, kv_scales), k_norm, &rope, (k, v));
            Ok(())
        }, else Err(OP.bad_dtype("k_cache", stored, FLOATS)))
    };
    // Slots lie anywhere in the cache, so one thread writes it while the others turn q, which has more heads.
    if is_worth(stream, sizes.n * qkv.heads().row_len()) {
        let (q, kv) = stream.install(|| join(write_q, write_kv));
        return q.and(kv);
    }
    write_q().and_then(|()| write_kv())
}

/// The rows of `qkv` as the equation has them.
trait QkvRows: Sync {
    type T: Real;
    fn heads(&self) -> Heads;
    fn with_row(&self, i: usize, body: impl FnOnce(&[Self::T]));
}

struct Plain<'a, T> {
    qkv: &'a [T],
    heads: Heads,
}

impl<T: Real> QkvRows for Plain<'_, T> {
    type T = T;

    fn heads(&self) -> Heads {
        self.heads
    }

    fn with_row(&self, i: usize, body: impl FnOnce(&[T])) {
        let len = self.heads.row_len();
        body(self.qkv.get(i * len..(i + 1) * len).unwrap_or_default());
    }
}

/// Scaled, and with the bias.
struct Scaled<'a> {
    rows: ScaledRows<'a>,
    bias: Option<&'a [f32]>,
    heads: Heads,
}

impl QkvRows for Scaled<'_> {
    type T = f32;

    fn heads(&self) -> Heads {
        self.heads
    }

    fn with_row(&self, i: usize, body: impl FnOnce(&[f32])) {
        with_scratch(self.heads.row_len(), |row| {
            self.rows.copy_row_to(i, row);
            for (x, bias) in row.iter_mut().zip(self.bias.unwrap_or_default()) {
                *x += bias;
            }
            body(row);
        });
    }
}

/// How a row of `qkv` is cut.
#[derive(Clone, Copy)]
struct Heads {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    fn row_len(self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    fn q_len(self) -> usize {
        self.num_heads * self.head_dim
    }

    fn kv_len(self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

fn turn_q<U: Real>(stream: &Stream, qkv: &impl QkvRows, q_out: &mut [U], norm: Option<HeadNorm<'_>>, rope: &Rope<'_>) {
    let heads = qkv.heads();
    for_each_row(stream, q_out, heads.q_len(), |i, out| {
        let angles = rope.angles(i);
        qkv.with_row(i, |row| {
            for (head, out) in row.chunks_exact(heads.head_dim).zip(out.chunks_exact_mut(heads.head_dim)) {
                turn_head(head, out, norm, 1.0, angles.each());
            }
        });
    });
}

/// Writes k and v of every row with a slot. Rows are taken in order, so of two with one slot the later stays.
fn store_kv<C: Real>(
    qkv: &impl QkvRows,
    slots: &[i64],
    (cache, scales): (&Cache, KvScales),
    norm: Option<HeadNorm<'_>>,
    rope: &Rope<'_>,
    (k_cache, v_cache): (&mut [C], &mut [C]),
) {
    let heads = qkv.heads();
    let (k_factor, v_factor) = (1.0 / scales.k, 1.0 / scales.v);
    for (i, slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(*slot) else { continue };
        let angles = rope.angles(i);
        qkv.with_row(i, |row| {
            let kv = row.get(heads.q_len()..).unwrap_or_default();
            let (k, v) = kv.split_at(heads.kv_len().min(kv.len()));
            for (head, (k, v)) in k.chunks_exact(heads.head_dim).zip(v.chunks_exact(heads.head_dim)).enumerate() {
                let place = cache.place(slot, head);
                if let Some(out) = k_cache.get_mut(place.clone()) {
                    turn_head(k, out, norm, k_factor, angles.each());
                }
                for (o, v) in v_cache.get_mut(place).unwrap_or_default().iter_mut().zip(v) {
                    *o = C::from_f32(v.to_f32() * v_factor);
                }
            }
        });
    }
}

/// One head: the norm, then the turn, times `factor`, rounded once.
#[inline]
fn turn_head<T: Real, U: Real>(
    head: &[T],
    out: &mut [U],
    norm: Option<HeadNorm<'_>>,
    factor: f32,
    (cos, sin): (&[f32], &[f32]),
) {
    let Some(HeadNorm { weight, eps }) = norm else {
        return turn(head.iter().map(|x| x.to_f32()), out, factor, cos, sin);
    };
    let sum: f64 = head.iter().map(|x| f64::from(x.to_f32())).map(|x| x * x).sum();
    let scale = (1.0 / (sum / head.len() as f64 + f64::from(eps)).sqrt()) as f32;
    turn(head.iter().zip(weight).map(|(x, w)| x.to_f32() * scale * w), out, factor, cos, sin);
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for elements `i` and `i + cos.len()`; the rest is copied.
#[inline]
fn turn<U: Real>(
    head: impl ExactSizeIterator<Item = f32> + Clone,
    out: &mut [U],
    factor: f32,
    cos: &[f32],
    sin: &[f32],
) {
    let half = cos.len();
    let second = head.clone().skip(half);
    let rest = head.clone().skip(2 * half);
    let (turned, kept) = out.split_at_mut((2 * half).min(out.len()));
    let (out_first, out_second) = turned.split_at_mut(half.min(turned.len()));
    let pairs = out_first.iter_mut().zip(out_second).zip(head.zip(second)).zip(cos.iter().zip(sin));
    for (((a, b), (x, y)), (cos, sin)) in pairs {
        *a = U::from_f32((x * cos - y * sin) * factor);
        *b = U::from_f32((y * cos + x * sin) * factor);
    }
    for (o, x) in kept.iter_mut().zip(rest) {
        *o = U::from_f32(x * factor);
    }
}
