//! Brings a block of keys and values into scratch, as float32.

use super::Place;
use super::scratch::Pair;
use crate::simd::{LANES, Simd, SimdElement};

impl Place<'_> {
    /// Where the key at `position` begins; those up to the next multiple of 32 follow at [`Place::stride`].
    pub(super) fn offset(&self, position: usize, head: usize, num_kv_heads: usize, head_dim: usize) -> usize {
        match *self {
            Self::Pages { table, page } => {
                // The operator checks that blocks are not negative.
                let block = table[position / page] as usize;
                ((block * num_kv_heads + head) * page + position % page) * head_dim
            }
            Self::Rows { first, stride } => (first + position) * stride + head * head_dim,
        }
    }

    pub(super) fn stride(&self, head_dim: usize) -> usize {
        match *self {
            Self::Pages { .. } => head_dim,
            Self::Rows { stride, .. } => stride,
        }
    }
}

/// Sixteen elements of a row from `at` on, filled up with zeros.
#[inline(always)]
fn load<S: Simd, E: SimdElement>(simd: S, row: &[E], at: usize) -> S::F {
    let rest = &row[at..];
    match rest.first_chunk() {
        Some(whole) => E::load(simd, whole),
        None => {
            let mut part = [E::default(); LANES];
            for (to, from) in part.iter_mut().zip(rest) {
                *to = *from;
            }
            E::load(simd, &part)
        }
    }
}

/// Loads the first `count` rows, which are `stride` apart, as the columns of `to`; the other columns become zero.
#[inline(always)]
pub(super) fn load_transposed<S: Simd, E: SimdElement>(
    simd: S,
    rows: &[E],
    stride: usize,
    head_dim: usize,
    count: usize,
    to: &mut [Pair],
) {
    for (chunk, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for half in 0..2 {
            let mut square = [simd.splat(0.0); LANES];
            for (i, vector) in square.iter_mut().enumerate() {
                let row = half * LANES + i;
                if row < count {
                    *vector = load(simd, &rows[row * stride..][..head_dim], chunk * LANES);
                }
            }
            simd.transpose(&mut square);
            for (pair, vector) in to.iter_mut().zip(square) {
                simd.store(vector, &mut pair.0[half]);
            }
        }
    }
}

/// Loads the first `count` rows, which are `stride` apart.
#[inline(always)]
pub(super) fn load_rows<S: Simd, E: SimdElement>(
    simd: S,
    rows: &[E],
    stride: usize,
    head_dim: usize,
    count: usize,
    to: &mut [[f32; LANES]],
) {
    let vectors = head_dim.div_ceil(LANES);
    for (row, to) in to.chunks_exact_mut(vectors).enumerate().take(count) {
        let from = &rows[row * stride..][..head_dim];
        for (i, to) in to.iter_mut().enumerate() {
            simd.store(load(simd, from, i * LANES), to);
        }
    }
}
