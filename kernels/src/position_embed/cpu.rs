//! The CPU implementation.

use foveal_device::{Stream, View, ViewMut};

use super::{AddPositionEmbed, OP, Sizes, TAPS};
use crate::OpError;
use crate::parallel::for_each_row;
use crate::real::{Real, with_real};
use crate::reals::{FLOATS, check_indices};

pub(super) fn add_position_embed(stream: &Stream, args: AddPositionEmbed<'_>, sizes: Sizes) -> Result<(), OpError> {
    let AddPositionEmbed { table, index, weight, mut x } = args;
    let Sizes { d, num_positions, .. } = sizes;
    let (index, weight) = (OP.slice::<i32>(&index)?, OP.slice::<f32>(&weight)?);
    check_indices(OP, "index", index, 0, num_positions)?;
    let (from, to) = (table.dtype(), x.dtype());
    with_real!(from, T => with_real!(to, U => run::<T, U>(stream, &table, (index, weight), &mut x, d),
        else Err(OP.bad_dtype("x", to, FLOATS))),
        else Err(OP.bad_dtype("table", from, FLOATS)))
}

fn run<T: Real, U: Real>(
    stream: &Stream,
    table: &View<'_>,
    (index, weight): (&[i32], &[f32]),
    x: &mut ViewMut<'_>,
    d: usize,
) -> Result<(), OpError> {
    let table = OP.slice::<T>(table)?;
    let (indices, _) = index.as_chunks::<TAPS>();
    let (weights, _) = weight.as_chunks::<TAPS>();
    let row =
        |index: i32| usize::try_from(index).ok().and_then(|row| table.get(row * d..(row + 1) * d)).unwrap_or_default();
    for_each_row(stream, OP.slice_mut::<U>(x)?, d, |i, x| {
        let (Some(index), Some([w0, w1, w2, w3])) = (indices.get(i), weights.get(i)) else { return };
        let [r0, r1, r2, r3] = index.map(row);
        for ((((x, a), b), c), e) in x.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
            let sum = a.to_f32() * w0 + b.to_f32() * w1 + c.to_f32() * w2 + e.to_f32() * w3;
            *x = U::from_f32(x.to_f32() + sum);
        }
    });
    Ok(())
}
