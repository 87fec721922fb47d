//! Rows in parallel, and only when there is enough work.

use foveal_device::Stream;
use rayon::prelude::*;

/// Under this many elements a loop runs in the caller's thread: handing work over costs more than it saves.
pub(crate) const INLINE_ELEMENTS: usize = 1 << 14;

/// Elements that one task takes at least.
const TASK_ELEMENTS: usize = 1 << 12;

/// Whether a loop over `num_elements` is worth the stream's threads.
pub(crate) fn is_worth(stream: &Stream, num_elements: usize) -> bool {
    num_elements >= INLINE_ELEMENTS && stream.num_threads() > 1
}

/// Runs `body(row, values)` for each row of `row_len` elements.
pub(crate) fn for_each_row<T: Send>(
    stream: &Stream,
    out: &mut [T],
    row_len: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() || row_len == 0 {
        return;
    }
    if !is_worth(stream, out.len()) {
        out.chunks_mut(row_len).enumerate().for_each(|(i, row)| body(i, row));
        return;
    }
    let rows_per_task = TASK_ELEMENTS.div_ceil(row_len);
    stream.install(|| {
        out.par_chunks_mut(row_len).enumerate().with_min_len(rows_per_task).for_each(|(i, row)| body(i, row));
    });
}

/// As [`for_each_row`] for two tensors with as many rows.
pub(crate) fn for_each_row_pair<T: Send, U: Send>(
    stream: &Stream,
    (a, a_len): (&mut [T], usize),
    (b, b_len): (&mut [U], usize),
    body: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    if a.is_empty() || b.is_empty() || a_len == 0 || b_len == 0 {
        return;
    }
    if !is_worth(stream, a.len()) {
        let rows = a.chunks_mut(a_len).zip(b.chunks_mut(b_len));
        rows.enumerate().for_each(|(i, (a, b))| body(i, a, b));
        return;
    }
    let rows_per_task = TASK_ELEMENTS.div_ceil(a_len);
    stream.install(|| {
        let rows = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len));
        rows.enumerate().with_min_len(rows_per_task).for_each(|(i, (a, b))| body(i, a, b));
    });
}
