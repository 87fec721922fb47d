//! The extent of a picture or a video in patches.

use std::fmt;

use crate::MropeError;

/// The extent of a picture or a video in patches, before merging: HF's `image_grid_thw` or `video_grid_thw` row.
///
/// A still picture has `t` = 1; a video has one `t` per `temporal_patch_size` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GridThw {
    /// Temporal patches.
    pub t: u32,
    /// Rows of patches.
    pub h: u32,
    /// Columns of patches.
    pub w: u32,
}

impl GridThw {
    /// Patches that the vision tower takes in: `t * h * w`, saturating.
    pub fn num_patches(&self) -> usize {
        product([self.t, self.h, self.w])
    }

    /// Tokens that the decoder sees: `t * (h / merge) * (w / merge)`, saturating; 0 for a merge size of 0.
    pub fn num_tokens(&self, spatial_merge_size: u32) -> usize {
        let merged = |patches: u32| patches.checked_div(spatial_merge_size).unwrap_or(0);
        product([self.t, merged(self.h), merged(self.w)])
    }

    /// The grid in tokens: `(t, h / merge, w / merge)`. Use it to check a grid where it enters the program.
    ///
    /// # Errors
    /// [`MropeError::ZeroMergeSize`], [`MropeError::EmptyGrid`], or [`MropeError::GridNotDivisible`] where `h` or `w`
    /// is not a multiple of `spatial_merge_size`.
    pub fn merged(self, spatial_merge_size: u32) -> Result<GridThw, MropeError> {
        if spatial_merge_size == 0 {
            return Err(MropeError::ZeroMergeSize);
        }
        if self.t == 0 || self.h == 0 || self.w == 0 {
            return Err(MropeError::EmptyGrid { grid: self });
        }
        if !self.h.is_multiple_of(spatial_merge_size) || !self.w.is_multiple_of(spatial_merge_size) {
            return Err(MropeError::GridNotDivisible { grid: self, spatial_merge_size });
        }
        Ok(GridThw { t: self.t, h: self.h / spatial_merge_size, w: self.w / spatial_merge_size })
    }

    /// One temporal patch of this grid: the same with `t` = 1.
    pub fn frame(self) -> GridThw {
        GridThw { t: 1, ..self }
    }
}

impl From<[u32; 3]> for GridThw {
    fn from([t, h, w]: [u32; 3]) -> Self {
        Self { t, h, w }
    }
}

impl From<GridThw> for [u32; 3] {
    fn from(grid: GridThw) -> Self {
        [grid.t, grid.h, grid.w]
    }
}

impl fmt::Display for GridThw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(t {}, h {}, w {})", self.t, self.h, self.w)
    }
}

/// A zero anywhere gives zero, even where the other factors saturate.
fn product(extents: [u32; 3]) -> usize {
    if extents.contains(&0) {
        return 0;
    }
    extents.iter().fold(1, |product: usize, &extent| product.saturating_mul(extent as usize))
}
