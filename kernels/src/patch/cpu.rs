//! The CPU implementation.

use foveal_device::{Stream, ViewMut};

use super::{CHANNELS, MAX_SAMPLE, Normalise, OP, Sizes};
use crate::OpError;
use crate::parallel::for_each_row;
use crate::real::{Real, with_real};
use crate::reals::FLOATS;

pub(super) fn normalise(stream: &Stream, args: Normalise<'_>, sizes: Sizes) -> Result<(), OpError> {
    let Normalise { pixels, mean, std, out } = args;
    let row_len = sizes.row_len;
    let pixels = OP.slice::<u8>(&pixels)?;
    let dtype = out.dtype();
    with_real!(dtype, T => run::<T>(stream, pixels, row_len, (mean, std), out),
        else Err(OP.bad_dtype("out", dtype, FLOATS)))
}

/// What each of a channel's 256 samples becomes.
fn table<T: Real>(mean: f32, std: f32) -> [T; 256] {
    let (mean, std) = (mean * MAX_SAMPLE, std * MAX_SAMPLE);
    std::array::from_fn(|sample| T::from_f32((sample as f32 - mean) / std))
}

fn run<T: Real>(
    stream: &Stream,
    pixels: &[u8],
    row_len: usize,
    (mean, std): ([f32; CHANNELS], [f32; CHANNELS]),
    mut out: ViewMut<'_>,
) -> Result<(), OpError> {
    let tables: [[T; 256]; CHANNELS] = std::array::from_fn(|c| table(mean[c], std[c]));
    let channel_len = row_len / CHANNELS;
    for_each_row(stream, OP.slice_mut::<T>(&mut out)?, row_len, |i, out| {
        let row = pixels.get(i * row_len..(i + 1) * row_len).unwrap_or_default();
        let channels = out.chunks_exact_mut(channel_len).zip(row.chunks_exact(channel_len));
        for ((out, row), table) in channels.zip(&tables) {
            for (o, sample) in out.iter_mut().zip(row) {
                *o = table[usize::from(*sample)];
            }
        }
    });
    Ok(())
}
