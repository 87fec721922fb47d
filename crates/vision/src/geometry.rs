//! What the tower derives from a grid alone.

use foveal_checkpoint::VisionConfig;
use foveal_mrope::{GridThw, MropeError, patch_positions};

use crate::interpolation::Taps;
use crate::window::Windows;

/// Everything that one frame's height and width decide. Frames of one size share it, those of a video included.
#[derive(Debug)]
pub(crate) struct FrameGeometry {
    /// `[h * w, 2]`: row and column of each patch, in the order in which the blocks see them.
    pub(crate) positions: Vec<[i32; 2]>,
    /// Where the tower has a position table; in the processor's order.
    pub(crate) taps: Option<Taps>,
    /// Where the tower has windows.
    pub(crate) windows: Option<Windows>,
}

impl FrameGeometry {
    /// Geometry of one frame of `grid`.
    ///
    /// # Errors
    /// What [`patch_positions`] says of the grid.
    pub(crate) fn new(grid: GridThw, config: &VisionConfig) -> Result<Self, MropeError> {
        let merge = config.spatial_merge_size;
        let (h, w) = (grid.h as usize, grid.w as usize);
        let mut positions = Vec::new(); // [h * w, 2]
        patch_positions(grid.frame(), merge as u32, &mut positions)?;
        let taps = config.position_table.map(|rows| Taps::new(&positions, h, w, rows.isqrt()));
        let windows = config.window.as_ref().map(|window| {
            let side = window.window_size / config.patch_size / merge;
            Windows::new(h / merge, w / merge, side)
        });
        if let Some(windows) = &windows {
            positions = windows.permute(&positions, config.merge_unit());
        }
        Ok(Self { positions, taps, windows })
    }

    /// What it takes, in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        let taps = self.taps.as_ref().map_or(0, |taps| size_of_val(&taps.index[..]) + size_of_val(&taps.weight[..]));
        let windows = self.windows.as_ref();
        let windows = windows.map_or(0, |w| size_of_val(&w.order[..]) + size_of_val(&w.num_cells[..]));
        size_of::<Self>() + size_of_val(&self.positions[..]) + taps + windows
    }
}
