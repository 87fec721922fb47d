//! uint8 pixels to normalised rows.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::OpError;
use crate::check::Op;

pub(crate) use cuda::variants;

const OP: Op = Op("normalise");

/// A colour picture's channels.
const CHANNELS: usize = 3;

/// The largest value of a sample.
const MAX_SAMPLE: f32 = 255.0;

/// Operands of [`normalise`].
#[derive(Debug)]
pub struct Normalise<'a> {
    /// u8 `[n, 3 * slices * patch * patch]`, channel by channel as the processor writes patches.
    pub pixels: View<'a>,
    /// Each channel's mean, of pixels scaled to [0, 1]; HF's `image_mean`.
    pub mean: [f32; 3],
    /// Each channel's standard deviation; HF's `image_std`.
    pub std: [f32; 3],
    /// `[n, 3 * slices * patch * patch]`
    pub out: ViewMut<'a>,
}

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    row_len: usize,
}

impl Normalise<'_> {
    /// Shapes and element types.
    fn check(&self) -> Result<Sizes, OpError> {
        let [n, row_len] = OP.rank("pixels", self.pixels.shape())?;
        if !row_len.is_multiple_of(CHANNELS) {
            let expected = format!("rows of {CHANNELS} channels of equal length");
            return Err(OP.bad_shape("pixels", self.pixels.shape(), expected));
        }
        OP.shape("out", self.out.shape(), &[n, row_len])?;
        OP.dtype("pixels", self.pixels.dtype(), DType::U8, "u8")?;
        OP.float("out", self.out.dtype())?;
        Ok(Sizes { n, row_len })
    }
}

/// Pixels to what the patch embedding takes.
///
/// # Equation
/// `out[i, j] = (pixels[i, j] - 255 mean[c]) / (255 std[c])`, where `c` is the third of the row that `j` lies in.
///
/// # Shapes
/// `pixels`, `out`: `[n, 3 * k]`; any `k`.
///
/// # Dtypes and layout
/// Row-major and contiguous, a row one channel after the other. `pixels` is u8; `out` is f32, bf16 or f16.
///
/// # Numerics
/// Products, difference and quotient each round to float32 as HF's do, then once to `out`'s type: for f32 the result is
/// HF's, bit by bit, on every device. `std` must not be 0 (it is divided by).
///
/// # Source
/// `_fuse_mean_std_and_rescale_factor` and `rescale_and_normalize` in `image_processing_backends.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit.
pub fn normalise(stream: &Stream, args: Normalise<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::normalise(cuda, &args, sizes),
        None => cpu::normalise(stream, args, sizes),
    }
}
