//! Patch order: the order in which the vision tower reads pixels.
//!
//! Source: `patchify` of `models/qwen2_vl/image_processing_qwen2_vl.py` (and its twin for videos), transformers 5.17:
//! patches come grouped by merge cell, `[grid_h / m, grid_w / m, m, m]`, and each holds
//! `[channels, temporal_slices, patch, patch]`. A still picture is written with one temporal slice; the model's side
//! repeats it and normalises.

/// Colour channels.
pub(crate) const CHANNELS: usize = 3;

/// Where the pixels of one picture or video go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatchLayout {
    /// Patches along height and width.
    pub(crate) grid_h: usize,
    pub(crate) grid_w: usize,
    /// Side of a patch in pixels.
    pub(crate) patch: usize,
    /// Side of a merge cell in patches; divides the grid.
    pub(crate) merge: usize,
    /// Temporal slices that each patch holds.
    pub(crate) slices: usize,
}

impl PatchLayout {
    /// Bytes of one patch.
    fn patch_bytes(&self) -> usize {
        CHANNELS * self.slices * self.patch * self.patch
    }

    /// Bytes of all patches of one temporal grid position.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.grid_h * self.grid_w * self.patch_bytes()
    }

    /// The place of the patch in row `row` and column `col` of the grid.
    fn patch_index(&self, row: usize, col: usize) -> usize {
        let m = self.merge;
        ((row / m) * (self.grid_w / m) + col / m) * m * m + (row % m) * m + col % m
    }

    /// Writes row `y` of the resized picture, `[grid_w * patch, 3]` bytes, as temporal slice `slice` into `out`, which
    /// is the block of one temporal grid position.
    pub(crate) fn write_row(&self, out: &mut [u8], slice: usize, y: usize, row: &[u8]) {
        let (p, plane) = (self.patch, self.patch * self.patch);
        let (patch_row, line) = (y / p, (y % p) * p);
        for (col, pixels) in row.chunks_exact(p * CHANNELS).enumerate() {
            let start = self.patch_index(patch_row, col) * self.patch_bytes() + slice * plane + line;
            for (c, channel_start) in (start..).step_by(self.slices * plane).take(CHANNELS).enumerate() {
                let line = &mut out[channel_start..channel_start + p];
                for (byte, pixel) in line.iter_mut().zip(pixels.chunks_exact(CHANNELS)) {
                    *byte = pixel[c];
                }
            }
        }
    }
}
