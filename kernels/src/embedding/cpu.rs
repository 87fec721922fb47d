//! The CPU implementation.

use foveal_device::{Stream, ViewMut};

use super::{Embed, OP, RowReplace, Sizes};
use crate::OpError;
use crate::parallel::for_each_row;
use crate::real::{Real, with_real};
use crate::reals::{FLOATS, Reals, check_indices};

pub(super) fn embed(stream: &Stream, args: Embed<'_>, sizes: Sizes) -> Result<(), OpError> {
    let Embed { table, input_ids, sampled, image, out } = args;
    let Sizes { d, vocab_size, num_image_rows, .. } = sizes;
    let table = Reals::new(OP, "table", &table)?;
    let (ids, sampled) =
        (OP.slice::<i32>(&input_ids)?, sampled.map_or(Ok(&[][..]), |sampled| OP.slice::<i32>(&sampled))?);
    // `-1 - r` is `!r`.
    let id_of = |id: i32| usize::try_from(!id).ok().and_then(|r| sampled.get(r)).copied().unwrap_or(id);
    let image = image.map(|image| read_image(&image, num_image_rows)).transpose()?;
    check_ids(ids, id_of, image.map(|(_, index)| index), vocab_size)?;
    let source = |i: usize| {
        if let Some((rows, index)) = image
            && let Some(row) = index.get(i).and_then(|&row| usize::try_from(row).ok())
        {
            return (rows, row);
        }
        (table, ids.get(i).and_then(|&id| usize::try_from(id_of(id)).ok()).unwrap_or_default())
    };
    let dtype = out.dtype();
    with_real!(dtype, T => run::<T>(stream, out, d, source), else Err(OP.bad_dtype("out", dtype, FLOATS)))
}

fn read_image<'a>(image: &RowReplace<'a>, num_image_rows: usize) -> Result<(Reals<'a>, &'a [i32]), OpError> {
    let index = OP.slice(&image.index)?;
    check_indices(OP, "image.index", index, -1, num_image_rows)?;
    Ok((Reals::new(OP, "image.rows", &image.rows)?, index))
}

/// Ids must be in the table unless a picture's row takes their place.
fn check_ids(
    ids: &[i32],
    id_of: impl Fn(i32) -> i32,
    replaced: Option<&[i32]>,
    vocab_size: usize,
) -> Result<(), OpError> {
    for (index, &id) in ids.iter().enumerate() {
        let is_replaced = replaced.and_then(|rows| rows.get(index)).is_some_and(|&row| row >= 0);
        if !is_replaced && usize::try_from(id_of(id)).map_or(true, |id| id >= vocab_size) {
            let expected = format!("0 or above and below {vocab_size}");
            return Err(OpError::Value { op: OP.0, arg: "input_ids", index, value: i64::from(id_of(id)), expected });
        }
    }
    Ok(())
}

fn run<'a, T: Real>(
    stream: &Stream,
    mut out: ViewMut<'_>,
    d: usize,
    source: impl Fn(usize) -> (Reals<'a>, usize) + Sync,
) -> Result<(), OpError> {
    for_each_row(stream, OP.slice_mut::<T>(&mut out)?, d, |i, out| {
        let (rows, row) = source(i);
        rows.copy_row_to(row, out);
    });
    Ok(())
}
