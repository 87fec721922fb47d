//! The vision tower's cos/sin table, and what one grid takes from it.

use super::table::AngleTable;
use crate::error::reserve;
use crate::{GridThw, MropeError, patch_positions};

/// Cosines and sines of the vision tower by patch row or column, f32 `[max_hw, head_dim / 4]`, row-major.
///
/// Row `p`, column `i` is the angle `p / theta^(2i / (head_dim / 2))`. Height and width share the table: of a head's
/// `head_dim / 2` pairs the first half is turned by the patch's row, the second half by its column. Compute it once per
/// tower.
///
/// Source: `compute_axial_rope_parameters` of HF transformers 5.17 (`modeling_qwen2_vl.py`, `modeling_qwen3_vl.py`).
#[derive(Clone, Debug, PartialEq)]
pub struct VisionRopeTable {
    table: AngleTable,
}

impl VisionRopeTable {
    /// A table for grids of up to `max_hw` rows and columns of patches. `head_dim` is that of the tower.
    ///
    /// # Errors
    /// [`MropeError::InvalidVisionHeadDim`] unless `head_dim` is a multiple of 4, [`MropeError::InvalidRopeTheta`],
    /// [`MropeError::OutOfMemory`].
    pub fn new(theta: f64, head_dim: usize, max_hw: usize) -> Result<Self, MropeError> {
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            return Err(MropeError::InvalidVisionHeadDim { head_dim });
        }
        Ok(Self { table: AngleTable::new(theta, head_dim / 2, max_hw)? })
    }

    /// Adds rows up to `max_hw`. The rows that are there keep their values; fewer rows than now change nothing.
    ///
    /// # Errors
    /// [`MropeError::OutOfMemory`]; the table is then as before.
    pub fn grow(&mut self, max_hw: usize) -> Result<(), MropeError> {
        self.table.grow(max_hw)
    }

    /// Rows: the largest number of patches along height or width that is covered.
    pub fn max_hw(&self) -> usize {
        self.table.num_rows()
    }

    /// The frequencies, f32 `[head_dim / 4]`.
    pub fn inv_freq(&self) -> &[f32] {
        self.table.inv_freq()
    }

    /// Cosines, f32 `[max_hw, head_dim / 4]`.
    pub fn cos(&self) -> &[f32] {
        self.table.cos()
    }

    /// Sines, f32 `[max_hw, head_dim / 4]`.
    pub fn sin(&self) -> &[f32] {
        self.table.sin()
    }

    /// Cosines and sines of one patch row or column, each f32 `[head_dim / 4]`; `None` beyond the table.
    pub fn row(&self, patch: usize) -> Option<(&[f32], &[f32])> {
        self.table.row(patch)
    }

    /// Cosines and sines of every patch of a grid, in the tower's order ([`patch_positions`]). Worth a
    /// [`crate::TileCache`]: pictures of one size share it.
    ///
    /// # Errors
    /// What [`patch_positions`] says of the grid, [`MropeError::GridBeyondTable`], [`MropeError::OutOfMemory`].
    pub fn tile(&self, grid: GridThw, spatial_merge_size: u32) -> Result<RopeTile, MropeError> {
        let beyond = MropeError::GridBeyondTable { grid, max_hw: self.max_hw() };
        if grid.h.max(grid.w) as usize > self.max_hw() {
            return Err(beyond);
        }
        let mut patches = Vec::new(); // [num_patches]
        patch_positions(grid.frame(), spatial_merge_size, &mut patches)?;
        let mut tile = RopeTile { cos: Vec::new(), sin: Vec::new() };
        let num_elements = grid.num_patches().saturating_mul(2 * self.inv_freq().len());
        reserve(&mut tile.cos, num_elements, "the cosines of a grid")?;
        reserve(&mut tile.sin, num_elements, "the sines of a grid")?;
        for patch in patches.iter().flatten() {
            let (cos, sin) = self.row(*patch as usize).ok_or_else(|| beyond.clone())?;
            tile.cos.extend_from_slice(cos);
            tile.sin.extend_from_slice(sin);
        }
        let frame = 0..tile.cos.len();
        for _ in 1..grid.t {
            tile.cos.extend_from_within(frame.clone());
            tile.sin.extend_from_within(frame.clone());
        }
        Ok(tile)
    }
}

/// Cosines and sines of every patch of a grid, each f32 `[num_patches, head_dim / 2]`: first the patch's row, then its
/// column.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTile {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTile {
    /// Cosines, f32 `[num_patches, head_dim / 2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, f32 `[num_patches, head_dim / 2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// What the tile takes, in bytes: the weigher for a [`crate::TileCache`].
    pub fn num_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(self.cos()) + size_of_val(self.sin())
    }
}
