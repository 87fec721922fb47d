//! The CPU implementation.

use foveal_device::{DType, Element, Stream, View, ViewMut};
use half::{bf16, f16};

use super::Gather;
use crate::OpError;
use crate::check::Op;
use crate::parallel::for_each_row;
use crate::reals::check_indices;

const OP: Op = Op("gather");

pub(super) fn gather(stream: &Stream, args: Gather<'_>) -> Result<(), OpError> {
    let Gather { x, index, out } = args;
    let [r, d] = OP.rank("x", x.shape())?;
    let [m] = OP.rank("index", index.shape())?;
    OP.shape("out", out.shape(), &[m, d])?;
    OP.dtype("index", index.dtype(), DType::I32, "i32")?;
    OP.dtype("out", out.dtype(), x.dtype(), "the element type of `x`")?;
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
