//! The CPU implementation.

use foveal_device::{DType, Element, Stream, View, ViewMut};
use half::{bf16, f16};

use super::{Gather, OP, Sizes};
use crate::OpError;
use crate::parallel::for_each_row;
use crate::reals::check_indices;

pub(super) fn gather(stream: &Stream, args: Gather<'_>, Sizes { r, d, .. }: Sizes) -> Result<(), OpError> {
    let Gather { x, index, out } = args;
    let index = OP.slice::<i32>(&index)?;
    check_indices(OP, "index", index, 0, r)?;
    match x.dtype() {
        DType::F32 => run::<f32>(stream, &x, index, d, out),
        DType::BF16 => run::<bf16>(stream, &x, index, d, out),
        DType::F16 => run::<f16>(stream, &x, index, d, out),
        DType::U8 => run::<u8>(stream, &x, index, d, out),
        DType::I32 => run::<i32>(stream, &x, index, d, out),
        DType::I64 => run::<i64>(stream, &x, index, d, out),
        other => Err(OP.bad_dtype("x", other, "f32, bf16, f16, u8, i32 or i64")),
    }
}

fn run<T: Element>(
    stream: &Stream,
    x: &View<'_>,
    index: &[i32],
    d: usize,
    mut out: ViewMut<'_>,
) -> Result<(), OpError> {
    let x = OP.slice::<T>(x)?;
    for_each_row(stream, OP.slice_mut::<T>(&mut out)?, d, |i, out| {
        let row = index.get(i).and_then(|&row| usize::try_from(row).ok());
        if let Some(source) = row.and_then(|row| x.get(row * d..(row + 1) * d)) {
            out.copy_from_slice(source);
        }
    });
    Ok(())
}
