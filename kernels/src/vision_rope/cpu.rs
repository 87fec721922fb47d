//! The CPU implementation.

use foveal_device::{Stream, ViewMut};

use super::{OP, Sizes, VisionRope};
use crate::OpError;
use crate::parallel::for_each_row;
use crate::real::{Real, with_real};
use crate::reals::{FLOATS, check_indices};

pub(super) fn vision_rope(stream: &Stream, args: VisionRope<'_>, sizes: Sizes) -> Result<(), OpError> {
    let VisionRope { mut qkv, positions, cos, sin } = args;
    let Sizes { num_heads, head_dim, max_hw, .. } = sizes;
    let positions = OP.slice::<i32>(&positions)?;
    check_indices(OP, "positions", positions, 0, max_hw)?;
    let tables = Tables { cos: OP.slice(&cos)?, sin: OP.slice(&sin)?, quarter: head_dim / 4 };
    let dtype = qkv.dtype();
    with_real!(dtype, T => run::<T>(stream, &mut qkv, positions, num_heads * head_dim, &tables),
        else Err(OP.bad_dtype("qkv", dtype, FLOATS)))
}

/// cos and sin by position, a quarter of a head wide.
struct Tables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    quarter: usize,
}

impl<'a> Tables<'a> {
    fn at(&self, position: i32) -> (&'a [f32], &'a [f32]) {
        let start = usize::try_from(position).unwrap_or_default() * self.quarter;
        let row = |table: &'a [f32]| table.get(start..start + self.quarter).unwrap_or_default();
        (row(self.cos), row(self.sin))
    }
}

fn run<T: Real>(
    stream: &Stream,
    qkv: &mut ViewMut<'_>,
    positions: &[i32],
    hidden: usize,
    tables: &Tables<'_>,
) -> Result<(), OpError> {
    let (positions, _) = positions.as_chunks::<2>();
    let quarter = tables.quarter;
    for_each_row(stream, OP.slice_mut::<T>(qkv)?, 3 * hidden, |i, row| {
        let Some([h, w]) = positions.get(i) else { return };
        let (by_row, by_column) = (tables.at(*h), tables.at(*w));
        // q and k; v, the last third, stays.
        let Some(turned) = row.get_mut(..2 * hidden) else { return };
        for head in turned.chunks_exact_mut(4 * quarter) {
            let (first, second) = head.split_at_mut(2 * quarter);
            let (first_h, first_w) = first.split_at_mut(quarter);
            let (second_h, second_w) = second.split_at_mut(quarter);
            turn(first_h, second_h, by_row);
            turn(first_w, second_w, by_column);
        }
    });
    Ok(())
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair.
#[inline]
fn turn<T: Real>(first: &mut [T], second: &mut [T], (cos, sin): (&[f32], &[f32])) {
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (a.to_f32(), b.to_f32());
        *a = T::from_f32(x * cos - y * sin);
        *b = T::from_f32(y * cos + x * sin);
    }
}
