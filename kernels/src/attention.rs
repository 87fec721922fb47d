//! What [`crate::paged_attention`] and [`crate::varlen_attention`] share: softmax attention over blocks of keys.
//!
//! A task is some query rows of one key-value head: all query heads that share it, and as many rows as make it worth
//! bringing a block of keys and values into the cache. The softmax is online, over blocks of 32 keys that begin at
//! multiples of 32 from a sequence's first key on, so a row's sums run in an order that depends on nothing but the
//! number of keys that it sees.

mod core;
mod keys;
mod scratch;

use std::ops::Range;

use foveal_device::Stream;
use rayon::prelude::*;

use self::core::Core;
use self::scratch::Scratch;
use crate::OpError;
use crate::check::Op;
use crate::quantize::QuantizedOut;
use crate::shared_rows::SharedOut;
use crate::simd::{Isa, PAIR, SimdElement};

/// Keys of a block: two vectors of scores. A page of the cache is a multiple of it.
pub(crate) const KEY_BLOCK: usize = PAIR;
/// Query rows of a task, counted once per head: they share each block of keys and values.
const TASK_ROWS: usize = 128;
/// Query rows under which a task is not cut to have more tasks.
const MIN_TASK_ROWS: usize = 16;
/// Tasks per thread that are aimed at, so that a thread that is held up is helped.
const TASKS_PER_THREAD: usize = 4;

/// Where the keys (and, alike, the values) of a sequence lie.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In pages `[num_blocks, num_kv_heads, page, head_dim]`.
    Pages {
        /// Blocks of the sequence, in its order.
        table: &'a [i32],
        /// Tokens of a page.
        page: usize,
    },
    /// In rows, one after the other.
    Rows {
        /// The row of the sequence's first key.
        first: usize,
        /// Elements from a row to the next.
        stride: usize,
    },
}

/// A sequence (or a segment): query rows and the keys that they see.
#[derive(Clone)]
pub(crate) struct Sequence<'a> {
    /// Its rows in `q`.
    pub(crate) rows: Range<usize>,
    /// Keys up to and with its last row's own.
    pub(crate) num_keys: usize,
    pub(crate) place: Place<'a>,
}

/// Attention over operands that have been checked.
pub(crate) struct Attention<'a, Q, E> {
    /// Query rows, `q_stride` elements apart, each beginning with `[num_heads, head_dim]`.
    pub(crate) q: &'a [Q],
    pub(crate) q_stride: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    /// Whether the last row sees all keys, the one before it all but one, and so on; otherwise each row sees all.
    pub(crate) is_causal: bool,
    pub(crate) scale: f32,
    /// What mixed values are multiplied by.
    pub(crate) value_scale: f32,
    pub(crate) sequences: &'a [Sequence<'a>],
    /// `[n, num_heads * head_dim]`
    pub(crate) out: Out<'a>,
}

/// Where heads go, one by one.
#[derive(Clone, Copy)]
pub(crate) enum Out<'a> {
    Float(&'a SharedOut<'a>),
    F8(&'a QuantizedOut<'a>),
}

/// Query rows of a sequence, and the head whose keys they see.
struct Task<'a> {
    sequence: &'a Sequence<'a>,
    rows: Range<usize>,
    kv_head: usize,
}

impl<Q: SimdElement, E: SimdElement> Attention<'_, Q, E> {
    /// Runs in the stream's threads.
    pub(crate) fn run(&self, isa: Isa, stream: &Stream) {
        let tasks = self.tasks(stream.num_threads());
        match &tasks[..] {
            [] => {}
            tasks => stream.install(|| {
                tasks
                    .par_iter()
                    .with_max_len(1)
                    .for_each(|task| Scratch::lend(|scratch| self.task(isa, task, scratch)));
            }),
        }
    }

    /// The tasks; those of a sequence and a head follow each other, so that they find its keys in the cache.
    fn tasks(&self, num_threads: usize) -> Vec<Task<'_>> {
        let group = self.num_heads / self.num_kv_heads;
        let num_rows: usize = self.sequences.iter().map(|sequence| sequence.rows.len()).sum();
        let wanted = (TASKS_PER_THREAD * num_threads).max(1);
        let share = (num_rows * self.num_kv_heads).div_ceil(wanted);
        let least = (MIN_TASK_ROWS / group).max(1);
        let task_rows = share.clamp(least, (TASK_ROWS / group).max(least));
        let mut tasks = Vec::new();
        for sequence in self.sequences {
            for kv_head in 0..self.num_kv_heads {
                for start in sequence.rows.clone().step_by(task_rows) {
                    let rows = start..(start + task_rows).min(sequence.rows.end);
                    tasks.push(Task { sequence, rows, kv_head });
                }
            }
        }
        tasks
    }

    #[allow(unsafe_code)]
    fn task(&self, isa: Isa, task: &Task<'_>, scratch: &mut Scratch) {
        let (group, head_dim) = (self.num_heads / self.num_kv_heads, self.head_dim);
        scratch.prepare(task.rows.len() * group, head_dim);
        let first_column = task.kv_head * group * head_dim;
        // Scores are powers of two: exp(scale * s) = 2^(scale * log2(e) * s).
        let scale = self.scale * std::f32::consts::LOG2_E;
        for (row, scaled) in task.rows.clone().zip(scratch.q.chunks_mut(group * head_dim)) {
            let q = &self.q[row * self.q_stride + first_column..][..scaled.len()];
            for (to, q) in scaled.iter_mut().zip(q) {
                *to = q.to_f32() * scale;
            }
        }
        let sequence = task.sequence;
        let (first_seen, more_seen) = match self.is_causal {
            true => (sequence.num_keys - (sequence.rows.end - task.rows.start) + 1, 1),
            false => (sequence.num_keys, 0),
        };
        isa.dispatch(Core {
            keys: self.keys,
            values: self.values,
            place: sequence.place,
            num_kv_heads: self.num_kv_heads,
            kv_head: task.kv_head,
            head_dim,
            value_scale: self.value_scale,
            group,
            first_seen,
            more_seen,
            scratch: &mut *scratch,
        });
        let row_len = head_dim.div_ceil(crate::simd::LANES) * crate::simd::LANES;
        for (i, heads) in scratch.out.as_flattened().chunks(group * row_len).enumerate().take(task.rows.len()) {
            for (head, values) in heads.chunks(row_len).enumerate() {
                let column = first_column + head * head_dim;
                let row = task.rows.start + i;
                match self.out {
                    // SAFETY: a row of a query head belongs to one task, since `tasks` makes sequences' rows and
                    // key-value heads disjoint and the operators check that sequences don't overlap.
                    Out::Float(out) => unsafe { out.write(row, column, &values[..head_dim]) },
                    // SAFETY: as above; heads that share a scale are refused.
                    Out::F8(out) => unsafe { out.write(row, column, &values[..head_dim]) },
                }
            }
        }
    }
}

/// Checks lengths added up: from 0 to `n`, never falling.
pub(crate) fn check_cu_seqlens(op: Op, cu_seqlens: &[i32], n: usize) -> Result<(), OpError> {
    let bad = |index, value: i32, expected| {
        Err(OpError::Value { op: op.0, arg: "cu_seqlens", index, value: i64::from(value), expected })
    };
    let mut last = 0;
    for (index, &value) in cu_seqlens.iter().enumerate() {
        if index == 0 && value != 0 {
            return bad(index, value, "0".to_owned());
        }
        if value < last {
            return bad(index, value, format!("{last} or above, as the one before it"));
        }
        last = value;
    }
    match cu_seqlens {
        [.., end] if usize::try_from(*end).is_ok_and(|end| end == n) => Ok(()),
        [.., end] => bad(cu_seqlens.len() - 1, *end, format!("{n}, the number of rows")),
        [] => bad(0, 0, "a 0 at least, but it is empty".to_owned()),
    }
}

/// The rows between two lengths added up, which have been checked.
pub(crate) fn rows_between(cu_seqlens: &[i32], index: usize) -> Range<usize> {
    let at = |i: usize| cu_seqlens.get(i).and_then(|&end| usize::try_from(end).ok()).unwrap_or(0);
    at(index)..at(index + 1)
}
