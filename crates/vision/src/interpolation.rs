//! Qwen3-VL's square position table, resampled to a picture's grid.

/// Rows of the position table around each patch, and their weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Taps {
    /// `[num_patches, 4]`: top left, top right, bottom left, bottom right.
    pub(crate) index: Vec<i32>,
    /// `[num_patches, 4]`: they sum to 1.
    pub(crate) weight: Vec<f32>,
}

/// The two table lines that a grid line lies between.
#[derive(Clone, Copy)]
struct AxisTaps {
    line: [i32; 2],
    weight: [f32; 2],
}

/// Where line `i` of `len` falls in a table of `side` lines, first on first and last on last (align_corners).
fn axis_taps(i: i32, len: usize, side: usize) -> AxisTaps {
    let last = side as i32 - 1;
    // In float32 and in this order, as the reference does it: another order moves a tap where the quotient is whole.
    let source = i as f32 * last as f32 / (len.max(2) - 1) as f32;
    let floor = source.floor();
    let fraction = source - floor;
    let line = floor as i32;
    AxisTaps { line: [line.min(last), (line + 1).min(last)], weight: [1.0 - fraction, fraction] }
}

impl Taps {
    /// Bilinear taps of a frame of `h x w` patches into a table of `side * side` rows, in the order of `positions` (row
    /// and column of each patch).
    ///
    /// Source: `get_vision_interpolation_indices_and_weights` in vision_utils.py, transformers 5.17, with
    /// `mode="bilinear", align_corners=True`.
    pub(crate) fn new(positions: &[[i32; 2]], h: usize, w: usize, side: usize) -> Self {
        let rows: Vec<AxisTaps> = (0..h as i32).map(|i| axis_taps(i, h, side)).collect();
        let columns: Vec<AxisTaps> = (0..w as i32).map(|i| axis_taps(i, w, side)).collect();
        let mut taps =
            Self { index: Vec::with_capacity(4 * positions.len()), weight: Vec::with_capacity(4 * positions.len()) };
        for &[row, column] in positions {
            let (row, column) = (rows[row as usize], columns[column as usize]);
            for (line, row_weight) in row.line.into_iter().zip(row.weight) {
                taps.index.extend(column.line.map(|c| line * side as i32 + c));
                taps.weight.extend(column.weight.map(|c| row_weight * c));
            }
        }
        taps
    }
}
