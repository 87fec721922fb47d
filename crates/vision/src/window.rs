//! Qwen2.5-VL's attention windows.

/// The order in which one frame's merged cells are visited window by window, and the windows' lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Windows {
    /// `[cells_h * cells_w]`: the cell (in raster order) that stands at each place of the window order.
    pub(crate) order: Vec<i32>,
    /// `[num_windows]`: cells of each window. The last window of a row or column can be smaller.
    pub(crate) num_cells: Vec<i32>,
}

impl Windows {
    /// Cuts a frame of `cells_h x cells_w` merged cells into windows of `side x side` cells, rows of windows from the
    /// top, each from the left; inside a window the cells keep raster order.
    ///
    /// Source: `get_vision_window_index` in vision_utils.py, transformers 5.17. It pads the frame to whole windows, and
    /// by one empty window where nothing needs padding, then drops the padding and the empty windows again: what stays
    /// is this order.
    pub(crate) fn new(cells_h: usize, cells_w: usize, side: usize) -> Self {
        let mut windows = Self { order: Vec::with_capacity(cells_h * cells_w), num_cells: Vec::new() };
        for top in (0..cells_h).step_by(side) {
            let rows = top..(top + side).min(cells_h);
            for left in (0..cells_w).step_by(side) {
                let columns = left..(left + side).min(cells_w);
                windows.num_cells.push((rows.len() * columns.len()) as i32);
                for row in rows.clone() {
                    windows.order.extend(columns.clone().map(|column| (row * cells_w + column) as i32));
                }
            }
        }
        windows
    }

    /// Moves units of `row_len` elements, one unit per cell, into window order.
    pub(crate) fn permute<T: Copy>(&self, rows: &[T], row_len: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(rows.len());
        for &cell in &self.order {
            let start = cell as usize * row_len;
            out.extend_from_slice(&rows[start..start + row_len]);
        }
        out
    }
}
