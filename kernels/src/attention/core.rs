//! Attention of one task, block of keys by block of keys.

use super::keys::{load_rows, load_transposed};
use super::scratch::{Pair, Scratch};
use super::{KEY_BLOCK, Place};
use crate::simd::{Kernel, LANES, Simd, SimdElement, exp2};

/// Rows of a tile of scores: 8 x 2 vectors of sums.
const SCORE_ROWS: usize = 8;
/// Rows of a tile of values: 4 x 5 vectors of sums at most.
const VALUE_ROWS: usize = 4;
/// Vectors of a tile of values at most.
const VALUE_VECTORS: usize = 5;

/// One task: the query rows in `scratch.q`, ordered by query, then head.
pub(super) struct Core<'a, E> {
    pub(super) keys: &'a [E],
    pub(super) values: &'a [E],
    pub(super) place: Place<'a>,
    pub(super) num_kv_heads: usize,
    pub(super) kv_head: usize,
    pub(super) head_dim: usize,
    /// What mixed values are multiplied by.
    pub(super) value_scale: f32,
    /// Rows (heads) per query.
    pub(super) group: usize,
    /// Keys that the first query sees.
    pub(super) first_seen: usize,
    /// How many more each further query sees.
    pub(super) more_seen: usize,
    pub(super) scratch: &'a mut Scratch,
}

impl<E: SimdElement> Kernel for Core<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let num_rows = self.scratch.max.len();
        let num_keys = self.seen(num_rows - 1);
        for start in (0..num_keys).step_by(KEY_BLOCK) {
            self.load_block(simd, start, num_keys);
            // Rows are ordered by the keys that they see, so those that see this block are the last ones.
            let hidden = match self.more_seen {
                0 => 0,
                more => (start + 1).saturating_sub(self.first_seen).div_ceil(more) * self.group,
            };
            self.score_rows(simd, hidden, num_rows);
            for row in hidden..num_rows {
                let count = (self.seen(row) - start).min(KEY_BLOCK);
                self.soften(simd, row, count);
            }
            self.add_values(simd, start, hidden, num_rows);
        }
        self.divide(simd);
    }
}

impl<E: SimdElement> Core<'_, E> {
    /// Keys that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> usize {
        self.first_seen + row / self.group * self.more_seen
    }

    #[inline(always)]
    fn load_block<S: Simd>(&mut self, simd: S, start: usize, num_keys: usize) {
        let count = (num_keys - start).min(KEY_BLOCK);
        let offset = self.place.offset(start, self.kv_head, self.num_kv_heads, self.head_dim);
        let stride = self.place.stride(self.head_dim);
        let Scratch { keys, values, .. } = &mut *self.scratch;
        load_transposed(simd, &self.keys[offset..], stride, self.head_dim, count, keys);
        load_rows(simd, &self.values[offset..], stride, self.head_dim, count, values);
    }

    /// Scores of the rows and the block.
    #[inline(always)]
    fn score_rows<S: Simd>(&mut self, simd: S, start: usize, end: usize) {
        let Scratch { q, keys, scores, .. } = &mut *self.scratch;
        let (q, keys, mut row) = (&q[..], &keys[..self.head_dim], start);
        while row < end {
            row += match end - row {
                SCORE_ROWS.. => score_tile::<S, SCORE_ROWS>(simd, q, keys, &mut scores[row..], row),
                4.. => score_tile::<S, 4>(simd, q, keys, &mut scores[row..], row),
                2.. => score_tile::<S, 2>(simd, q, keys, &mut scores[row..], row),
                _ => score_tile::<S, 1>(simd, q, keys, &mut scores[row..], row),
            };
        }
    }

    /// Turns a row's scores of its first `count` keys into exponentials, those of the other keys into zeros.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, simd: S, row: usize, count: usize) {
        let Scratch { scores, decay, max, sum, .. } = &mut *self.scratch;
        let (scores, max, sum) = (&mut scores[row].0, &mut max[row], &mut sum[row]);
        let mut s = [simd.load(&scores[0]), simd.load(&scores[1])];
        if count < KEY_BLOCK {
            let limit = mask(count, f32::INFINITY, f32::NEG_INFINITY);
            s = [simd.min(s[0], simd.load(&limit[0])), simd.min(s[1], simd.load(&limit[1]))];
        }
        let block_max = simd.max_lane(simd.max(s[0], s[1]));
        let new_max = if block_max > *max { block_max } else { *max };
        let shift = simd.splat(new_max);
        let mut p = [exp2(simd, simd.sub(s[0], shift)), exp2(simd, simd.sub(s[1], shift))];
        if count < KEY_BLOCK {
            let keep = mask(count, 1.0, 0.0);
            p = [simd.mul(p[0], simd.load(&keep[0])), simd.mul(p[1], simd.load(&keep[1]))];
        }
        // 2^0 is exactly 1, so skipping the exponential where the maximum stays changes no bit.
        decay[row] = match new_max == *max {
            true => 1.0,
            false => simd.max_lane(exp2(simd, simd.splat(*max - new_max))),
        };
        *max = new_max;
        simd.store(simd.fma(simd.load(sum), simd.splat(decay[row]), simd.add(p[0], p[1])), sum);
        simd.store(p[0], &mut scores[0]);
        simd.store(p[1], &mut scores[1]);
    }

    /// Adds the block's values, weighted, to the rows' sums.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, block_start: usize, start: usize, end: usize) {
        let vectors = self.head_dim.div_ceil(LANES);
        let width = vectors.div_ceil(vectors.div_ceil(VALUE_VECTORS));
        for first in (0..vectors).step_by(width) {
            let mut row = start;
            while row < end {
                // A key that a row doesn't see is left out rather than weighted by zero: it may be infinite.
                let count = (self.seen(row) - block_start).min(KEY_BLOCK);
                let last = (row + VALUE_ROWS - 1).min(end - 1);
                let alike = last + 1 == row + VALUE_ROWS && (self.seen(last) - block_start).min(KEY_BLOCK) == count;
                let tile = Tile { vectors, first, row, count };
                row += match alike {
                    true => tile.add_width::<S, VALUE_ROWS>(simd, self.scratch, width),
                    false => tile.add_width::<S, 1>(simd, self.scratch, width),
                };
            }
        }
    }

    /// Divides the sums of values by those of exponentials.
    #[inline(always)]
    fn divide<S: Simd>(&mut self, simd: S) {
        let vectors = self.head_dim.div_ceil(LANES);
        let Scratch { sum, out, .. } = &mut *self.scratch;
        for (sum, out) in sum.iter().zip(out.chunks_exact_mut(vectors)) {
            let [total, ..] = simd.sums([simd.load(sum); 4]);
            let factor = simd.splat(self.value_scale / total);
            for out in out {
                simd.store(simd.mul(simd.load(out), factor), out);
            }
        }
    }
}

/// `inside` for the first `count` keys of a block, `outside` for the others.
#[inline(always)]
fn mask(count: usize, inside: f32, outside: f32) -> [[f32; LANES]; 2] {
    let mut mask = [[outside; LANES]; 2];
    for (i, lane) in mask.as_flattened_mut().iter_mut().enumerate() {
        if i < count {
            *lane = inside;
        }
    }
    mask
}

/// Scores of `R` rows from `row` on: each the sum over the head's elements in their order.
#[inline(always)]
fn score_tile<S: Simd, const R: usize>(simd: S, q: &[f32], keys: &[Pair], scores: &mut [Pair], row: usize) -> usize {
    let head_dim = keys.len();
    let mut rows: [&[f32]; R] = [&[]; R];
    for (i, q_row) in rows.iter_mut().enumerate() {
        *q_row = &q[(row + i) * head_dim..][..head_dim];
    }
    let mut sums = [[simd.splat(0.0); 2]; R];
    for (i, pair) in keys.iter().enumerate() {
        let k = [simd.load(&pair.0[0]), simd.load(&pair.0[1])];
        for r in 0..R {
            let q = simd.splat(rows[r][i]);
            sums[r][0] = simd.fma(q, k[0], sums[r][0]);
            sums[r][1] = simd.fma(q, k[1], sums[r][1]);
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        simd.store(sums[0], &mut scores.0[0]);
        simd.store(sums[1], &mut scores.0[1]);
    }
    R
}

/// Some vectors of some rows' sums of values.
struct Tile {
    /// Vectors of a row.
    vectors: usize,
    /// The tile's first vector.
    first: usize,
    /// The tile's first row.
    row: usize,
    /// Keys that its rows see.
    count: usize,
}

impl Tile {
    #[inline(always)]
    fn add_width<S: Simd, const R: usize>(&self, simd: S, scratch: &mut Scratch, width: usize) -> usize {
        match width.min(self.vectors - self.first) {
            1 => self.add::<S, R, 1>(simd, scratch),
            2 => self.add::<S, R, 2>(simd, scratch),
            3 => self.add::<S, R, 3>(simd, scratch),
            4 => self.add::<S, R, 4>(simd, scratch),
            _ => self.add::<S, R, VALUE_VECTORS>(simd, scratch),
        }
        R
    }

    /// Adds the block's values in the order of its keys.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const V: usize>(&self, simd: S, scratch: &mut Scratch) {
        let Scratch { values, scores, decay, out, .. } = scratch;
        let scores: &[Pair] = &scores[self.row..][..R];
        let mut sums = [[simd.splat(0.0); V]; R];
        for r in 0..R {
            let decay = simd.splat(decay[self.row + r]);
            let out = &out[(self.row + r) * self.vectors + self.first..][..V];
            for v in 0..V {
                sums[r][v] = simd.mul(simd.load(&out[v]), decay);
            }
        }
        for (key, value) in values.chunks_exact(self.vectors).take(self.count.min(KEY_BLOCK)).enumerate() {
            let value = &value[self.first..][..V];
            let mut vectors = [simd.splat(0.0); V];
            for v in 0..V {
                vectors[v] = simd.load(&value[v]);
            }
            for r in 0..R {
                let p = simd.splat(scores[r].0.as_flattened()[key]);
                for v in 0..V {
                    sums[r][v] = simd.fma(p, vectors[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let out = &mut out[(self.row + r) * self.vectors + self.first..][..V];
            for v in 0..V {
                simd.store(sums[r][v], &mut out[v]);
            }
        }
    }
}
