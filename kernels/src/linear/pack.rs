//! Activations in the order in which they are summed.

use rayon::prelude::*;

use crate::quantize::GROUP;
use crate::simd::{Isa, Kernel, LANES, PAIR, Simd, SimdElement};

/// Thirty-two activations: those of even index, then those of odd index. A register of bf16 weights splits into the
/// same two halves with a shift and a mask.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block {
    pub(super) even: [f32; LANES],
    pub(super) odd: [f32; LANES],
}

impl Block {
    pub(super) const ZERO: Self = Self { even: [0.0; LANES], odd: [0.0; LANES] };
}

/// Rows that one thread packs at a time.
const ROWS_PER_TASK: usize = 16;

/// Blocks of a row of `k` activations; the last one is filled up with zeros. An empty row has one too, so that rows can
/// be counted.
pub(super) fn num_blocks(k: usize) -> usize {
    k.div_ceil(PAIR).max(1)
}

/// Packs rows of `k` activations.
pub(super) fn pack_rows<X: SimdElement>(isa: Isa, x: &[X], k: usize, packed: &mut [Block]) {
    if k == 0 {
        return;
    }
    let (task_x, task_blocks) = (ROWS_PER_TASK * k, ROWS_PER_TASK * num_blocks(k));
    if x.len() <= task_x {
        isa.dispatch(Pack { x, k, packed });
        return;
    }
    x.par_chunks(task_x).zip(packed.par_chunks_mut(task_blocks)).for_each(|(x, packed)| {
        isa.dispatch(Pack { x, k, packed });
    });
}

/// Multiplies each 128 activations of packed rows by `scale(row, group)`.
pub(super) fn scale_rows(packed: &mut [Block], k: usize, scale: impl Fn(usize, usize) -> f32 + Sync) {
    let row_blocks = num_blocks(k);
    packed.par_chunks_mut(row_blocks).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(row, blocks)| {
        for (group, blocks) in blocks.chunks_mut(GROUP / PAIR).enumerate() {
            let scale = scale(row, group);
            for block in blocks {
                block.even.iter_mut().chain(&mut block.odd).for_each(|x| *x *= scale);
            }
        }
    });
}

struct Pack<'a, X> {
    x: &'a [X],
    k: usize,
    packed: &'a mut [Block],
}

impl<X: SimdElement> Kernel for Pack<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, blocks) in self.x.chunks_exact(self.k).zip(self.packed.chunks_exact_mut(num_blocks(self.k))) {
            let (full, rest) = row.as_chunks::<PAIR>();
            for (from, to) in full.iter().zip(&mut *blocks) {
                pack(simd, from, to);
            }
            if let (false, Some(to)) = (rest.is_empty(), blocks.last_mut()) {
                pack(simd, &padded(rest), to);
            }
        }
    }
}

#[inline(always)]
fn pack<S: Simd, X: SimdElement>(simd: S, from: &[X; PAIR], to: &mut Block) {
    let (even, odd) = X::load_pairs(simd, from);
    simd.store(even, &mut to.even);
    simd.store(odd, &mut to.odd);
}

/// The last elements of a row, filled up with zeros.
#[inline(always)]
pub(super) fn padded<T: SimdElement>(rest: &[T]) -> [T; PAIR] {
    let mut block = [T::default(); PAIR];
    for (to, from) in block.iter_mut().zip(rest) {
        *to = *from;
    }
    block
}
