//! Memory of one task, kept from task to task by each thread.

use std::cell::RefCell;

use super::KEY_BLOCK;
use crate::simd::LANES;

/// Numbers of one block of keys, as two vectors.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Pair(pub(super) [[f32; LANES]; 2]);

#[derive(Default)]
pub(super) struct Scratch {
    /// Query rows times scale, `[num_rows, head_dim]`.
    pub(super) q: Vec<f32>,
    /// A block's keys, transposed: `[head_dim, 32]`, filled up to whole vectors.
    pub(super) keys: Vec<Pair>,
    /// A block's values `[32, head_dim]`, rows filled up to whole vectors.
    pub(super) values: Vec<[f32; LANES]>,
    /// Scores of each row and the block, then their exponentials.
    pub(super) scores: Vec<Pair>,
    /// What each row's sums are multiplied by before the block is added.
    pub(super) decay: Vec<f32>,
    /// Largest score of each row so far.
    pub(super) max: Vec<f32>,
    /// Sum of each row's exponentials so far, lane by lane.
    pub(super) sum: Vec<[f32; LANES]>,
    /// Sum of each row's values so far `[num_rows, head_dim]`, rows filled up to whole vectors.
    pub(super) out: Vec<[f32; LANES]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    /// Runs `work` with this thread's scratch.
    pub(super) fn lend(work: impl FnOnce(&mut Self)) {
        let mut scratch = SCRATCH.take();
        work(&mut scratch);
        SCRATCH.set(scratch);
    }

    /// Sets the state of `num_rows` rows to that before the first key.
    pub(super) fn prepare(&mut self, num_rows: usize, head_dim: usize) {
        let vectors = head_dim.div_ceil(LANES);
        self.q.resize(num_rows * head_dim, 0.0);
        self.keys.resize(vectors * LANES, Pair([[0.0; LANES]; 2]));
        self.values.resize(KEY_BLOCK * vectors, [0.0; LANES]);
        self.scores.resize(num_rows, Pair([[0.0; LANES]; 2]));
        self.decay.resize(num_rows, 0.0);
        refill(&mut self.max, num_rows, f32::NEG_INFINITY);
        refill(&mut self.sum, num_rows, [0.0; LANES]);
        refill(&mut self.out, num_rows * vectors, [0.0; LANES]);
    }
}

fn refill<T: Copy>(values: &mut Vec<T>, len: usize, value: T) {
    values.clear();
    values.resize(len, value);
}
