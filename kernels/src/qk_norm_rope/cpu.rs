//! The CPU implementation.

use foveal_device::Stream;
use rayon::join;

use super::QkNormRope;
use super::operands::{Cache, HeadNorm, Norm, OP, Rope, Sizes};
use crate::OpError;
use crate::parallel::{for_each_row, is_worth};
use crate::real::{Real, with_real};
use crate::reals::FLOATS;

pub(super) fn qk_norm_rope(stream: &Stream, args: QkNormRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    let QkNormRope { qkv, norm, rope, slot_mapping, layout, mut k_cache, mut v_cache, mut q_out } = args;
    let Sizes { n, num_heads, head_dim, .. } = sizes;
    let heads = Heads { num_heads, num_kv_heads: layout.num_kv_heads, head_dim };
    let cache = Cache::new(layout, sizes.num_slots);
    let slots = cache.slots(&slot_mapping)?;
    let norm = norm.map(|norm| Norm::read(&norm)).transpose()?;
    let rope = Rope::read(&rope, sizes)?;
    let (from, to, stored) = (qkv.dtype(), q_out.dtype(), layout.dtype);

    let q_norm = norm.as_ref().map(Norm::of_q);
    let k_norm = norm.as_ref().map(Norm::of_k);
    let mut write_q = || {
        with_real!(from, T => with_real!(to, Q => {
            let (qkv, q_out) = (OP.slice::<T>(&qkv)?, OP.slice_mut::<Q>(&mut q_out)?);
            turn_q(stream, qkv, q_out, heads, q_norm, &rope);
            Ok(())
        }, else Err(OP.bad_dtype("q_out", to, FLOATS))), else Err(OP.bad_dtype("qkv", from, FLOATS)))
    };
    let mut write_kv = || {
        with_real!(from, T => with_real!(stored, C => {
            let (k, v) = (OP.slice_mut::<C>(&mut k_cache)?, OP.slice_mut::<C>(&mut v_cache)?);
            store_kv(OP.slice::<T>(&qkv)?, slots, heads, &cache, k_norm, &rope, (k, v));
            Ok(())
        }, else Err(OP.bad_dtype("k_cache", stored, FLOATS))), else Err(OP.bad_dtype("qkv", from, FLOATS)))
    };
    // Slots lie anywhere in the cache, so one thread writes it while the others turn q, which has more heads.
    if is_worth(stream, n * heads.row_len()) {
        let (q, kv) = stream.install(|| join(write_q, write_kv));
        return q.and(kv);
    }
    write_q().and_then(|()| write_kv())
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

fn turn_q<T: Real, U: Real>(
    stream: &Stream,
    qkv: &[T],
    q_out: &mut [U],
    heads: Heads,
    norm: Option<HeadNorm<'_>>,
    rope: &Rope<'_>,
) {
    for_each_row(stream, q_out, heads.q_len(), |i, out| {
        let angles = rope.angles(i);
        let row = qkv.get(i * heads.row_len()..).unwrap_or_default();
        for (head, out) in row.chunks_exact(heads.head_dim).zip(out.chunks_exact_mut(heads.head_dim)) {
            turn_head(head, out, norm, angles.each());
        }
    });
}

/// Writes k and v of every row with a slot. Rows are taken in order, so of two with one slot the later stays.
fn store_kv<T: Real, C: Real>(
    qkv: &[T],
    slots: &[i64],
    heads: Heads,
    cache: &Cache,
    norm: Option<HeadNorm<'_>>,
    rope: &Rope<'_>,
    (k_cache, v_cache): (&mut [C], &mut [C]),
) {
    for (i, slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(*slot) else { continue };
        let angles = rope.angles(i);
        let start = i * heads.row_len() + heads.q_len();
        let kv = qkv.get(start..start + 2 * heads.kv_len()).unwrap_or_default();
        let (k, v) = kv.split_at(heads.kv_len().min(kv.len()));
        for (head, (k, v)) in k.chunks_exact(heads.head_dim).zip(v.chunks_exact(heads.head_dim)).enumerate() {
            let place = cache.place(slot, head);
            if let Some(out) = k_cache.get_mut(place.clone()) {
                turn_head(k, out, norm, angles.each());
            }
            for (o, v) in v_cache.get_mut(place).unwrap_or_default().iter_mut().zip(v) {
                *o = C::from_f32(v.to_f32());
            }
        }
    }
}

/// One head: the norm, then the turn, rounded once.
#[inline]
fn turn_head<T: Real, U: Real>(head: &[T], out: &mut [U], norm: Option<HeadNorm<'_>>, (cos, sin): (&[f32], &[f32])) {
    let Some(HeadNorm { weight, eps }) = norm else {
        return turn(head.iter().map(|x| x.to_f32()), out, cos, sin);
    };
    let sum: f64 = head.iter().map(|x| f64::from(x.to_f32())).map(|x| x * x).sum();
    let scale = (1.0 / (sum / head.len() as f64 + f64::from(eps)).sqrt()) as f32;
    turn(head.iter().zip(weight).map(|(x, w)| x.to_f32() * scale * w), out, cos, sin);
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for elements `i` and `i + cos.len()`; the rest is copied.
#[inline]
fn turn<U: Real>(head: impl ExactSizeIterator<Item = f32> + Clone, out: &mut [U], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let second = head.clone().skip(half);
    let rest = head.clone().skip(2 * half);
    let (turned, kept) = out.split_at_mut((2 * half).min(out.len()));
    let (out_first, out_second) = turned.split_at_mut(half.min(turned.len()));
    let pairs = out_first.iter_mut().zip(out_second).zip(head.zip(second)).zip(cos.iter().zip(sin));
    for (((a, b), (x, y)), (cos, sin)) in pairs {
        *a = U::from_f32(x * cos - y * sin);
        *b = U::from_f32(y * cos + x * sin);
    }
    for (o, x) in kept.iter_mut().zip(rest) {
        *o = U::from_f32(x);
    }
}
