//! uint8 pixels to normalised rows.

mod cpu;
#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::OpError;

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
/// HF's, bit by bit. `std` must not be 0 (it is divided by).
///
/// # Source
/// `_fuse_mean_std_and_rescale_factor` and `rescale_and_normalize` in `image_processing_backends.py`, HF transformers
/// 5.17.
///
/// # Errors
/// [`OpError`] when shapes or element types don't fit.
pub fn normalise(stream: &Stream, args: Normalise<'_>) -> Result<(), OpError> {
    cpu::normalise(stream, args)
}
