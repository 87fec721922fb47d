//! The CPU implementation.

use foveal_device::{DType, Stream, ViewMut};

use super::{Embed, RowReplace};
use crate::OpError;
use crate::check::Op;
use crate::parallel::for_each_row;
use crate::real::{Real, with_real};
use crate::reals::{FLOATS, Reals, check_indices};

const OP: Op = Op("embed");

pub(super) fn embed(stream: &Stream, args: Embed<'_>) -> Result<(), OpError> {
    let Embed { table, input_ids, image, out } = args;
    let [vocab_size, d] = OP.rank("table", table.shape())?;
    let [n] = OP.rank("input_ids", input_ids.shape())?;
    OP.shape("out", out.shape(), &[n, d])?;
    OP.dtype("input_ids", input_ids.dtype(), DType::I32, "i32")?;
    let table = Reals::new(OP, "table", &table)?;
    let ids = OP.slice::<i32>(&input_ids)?;
    let image = image.map(|image| read_image(&image, n, d)).transpose()?;
    check_ids(ids, image.map(|(_, index)| index), vocab_size)?;
    let source = |i: usize| {
        if let Some((rows, index)) = image
            && let Some(row) = index.get(i).and_then(|&row| usize::try_from(row).ok())
        {
            return (rows, row);
        }
        (table, ids.get(i).and_then(|&id| usize::try_from(id).ok()).unwrap_or_default())
    };
    let dtype = out.dtype();
    with_real!(dtype, T => run::<T>(stream, out, d, source), else Err(OP.bad_dtype("out", dtype, FLOATS)))
}

fn read_image<'a>(image: &RowReplace<'a>, n: usize, d: usize) -> Result<(Reals<'a>, &'a [i32]), OpError> {
    let [r, _] = OP.rank("image.rows", image.rows.shape())?;
    OP.shape("image.rows", image.rows.shape(), &[r, d])?;
    OP.shape("image.index", image.index.shape(), &[n])?;
    OP.dtype("image.index", image.index.dtype(), DType::I32, "i32")?;
    let index = OP.slice(&image.index)?;
    check_indices(OP, "image.index", index, -1, r)?;
    Ok((Reals::new(OP, "image.rows", &image.rows)?, index))
}

/// Ids must be in the table unless a picture's row takes their place.
fn check_ids(ids: &[i32], replaced: Option<&[i32]>, vocab_size: usize) -> Result<(), OpError> {
    let Some(replaced) = replaced else {
        return check_indices(OP, "input_ids", ids, 0, vocab_size);
    };
    for (i, (id, row)) in ids.iter().zip(replaced).enumerate() {
        if *row < 0 && usize::try_from(*id).map_or(true, |id| id >= vocab_size) {
            let expected = format!("0 or above and below {vocab_size}");
            return Err(OpError::Value { op: OP.0, arg: "input_ids", index: i, value: i64::from(*id), expected });
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
