//! The order of patches in a vision tower.

use crate::error::reserve_amortised;
use crate::{GridThw, MropeError};

/// Appends the `(h, w)` of every patch of a picture or video to `out`, in the order in which the processor emits patches
/// and the tower takes them: merge block by merge block, rows of blocks first, each block's patches row by row; the whole
/// repeated for each temporal patch. Gives the row of each patch in a [`crate::VisionRopeTable`].
///
/// Appends `grid.num_patches()` pairs, so that the patches of several pictures come to lie one after the other.
///
/// Source: `get_vision_position_ids` in `vision_utils.py`, HF transformers 5.17.
///
/// # Errors
/// What [`GridThw::merged`] says of the grid; [`MropeError::PositionOverflow`] for rows or columns beyond int32;
/// [`MropeError::OutOfMemory`]. `out` is then as before.
pub fn patch_positions(grid: GridThw, spatial_merge_size: u32, out: &mut Vec<[i32; 2]>) -> Result<(), MropeError> {
    let blocks = grid.merged(spatial_merge_size)?;
    let largest = grid.h.max(grid.w).max(spatial_merge_size);
    if i32::try_from(largest).is_err() {
        return Err(MropeError::PositionOverflow { position: u64::from(largest) });
    }
    reserve_amortised(out, grid.num_patches(), "patch positions")?;
    let merge = spatial_merge_size as i32;
    let begin = out.len();
    for top in (0..blocks.h as i32).map(|block| block * merge) {
        for left in (0..blocks.w as i32).map(|block| block * merge) {
            for h in top..top + merge {
                out.extend((left..left + merge).map(|w| [h, w]));
            }
        }
    }
    let frame = begin..out.len();
    for _ in 1..grid.t {
        out.extend_from_within(frame.clone());
    }
    Ok(())
}
