//! The integers that describe a batch: positions, table rows, window order, segments.

use foveal_checkpoint::VisionConfig;
use foveal_device::{BlockSlot, Device, DeviceError, StepBlock, Stream, View};
use foveal_mrope::{GridThw, TileCache};

use crate::VisionError;
use crate::geometry::FrameGeometry;

/// The rows of the position table that each patch takes, four of them, and their weights.
#[derive(Default)]
struct Taps {
    index: Vec<i32>,
    weight: Vec<f32>,
}

/// The window order of merged cells, there and back, and where each window begins, in patches.
#[derive(Default)]
struct Windows {
    order: Vec<i32>,
    inverse: Vec<i32>,
    cu_seqlens: Vec<i32>,
}

/// Where the arrays lie in the block.
#[derive(Default)]
struct Slots {
    positions: BlockSlot,
    cu_seqlens: BlockSlot,
    taps: Option<[BlockSlot; 2]>,
    windows: Option<[BlockSlot; 3]>,
}

/// What the launches of a batch depend on, and so what tells one recording of them from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Patches, before merging.
    pub patches: usize,
    /// Stills, and temporal patches of videos.
    pub frames: usize,
    /// Windows of attention; 0 for a tower without.
    pub windows: usize,
}

/// A batch's description: made on the host in memory that is kept from batch to batch, then brought to the device as one
/// block.
pub(crate) struct BatchLayout {
    merge_unit: usize,
    /// `[num_patches, 2]`
    positions: Vec<i32>,
    /// `[num_frames + 1]`, in patches: where each frame begins.
    cu_seqlens: Vec<i32>,
    taps: Option<Taps>,
    windows: Option<Windows>,
    block: StepBlock,
    slots: Slots,
}

/// Window order of the batch: what permutes rows, and what permutes them back.
#[derive(Clone, Copy)]
pub(crate) struct WindowOrder<'a> {
    /// i32 `[num_cells]`
    pub(crate) order: View<'a>,
    /// i32 `[num_cells]`
    pub(crate) inverse: View<'a>,
}

impl BatchLayout {
    /// Memory for batches of up to `max_patches`.
    pub(crate) fn new(device: &Device, config: &VisionConfig, max_patches: usize) -> Result<Self, DeviceError> {
        // A segment holds at least one merged cell, so that cells bound the segments too.
        let max_cells = max_patches / config.merge_unit();
        let (has_taps, has_windows) = (config.position_table.is_some(), config.window.is_some());
        let ints = |len: usize| StepBlock::bytes_of::<i32>(len);
        let mut capacity = ints(2 * max_patches) + ints(max_cells + 1);
        capacity += if has_taps { ints(4 * max_patches) + StepBlock::bytes_of::<f32>(4 * max_patches) } else { 0 };
        capacity += if has_windows { 2 * ints(max_cells) + ints(max_cells + 1) } else { 0 };
        let taps = || Taps { index: Vec::with_capacity(4 * max_patches), weight: Vec::with_capacity(4 * max_patches) };
        let windows = || Windows {
            order: Vec::with_capacity(max_cells),
            inverse: Vec::with_capacity(max_cells),
            cu_seqlens: Vec::with_capacity(max_cells + 1),
        };
        Ok(Self {
            merge_unit: config.merge_unit(),
            positions: Vec::with_capacity(2 * max_patches),
            cu_seqlens: Vec::with_capacity(max_cells + 1),
            taps: has_taps.then(taps),
            windows: has_windows.then(windows),
            block: StepBlock::new(device, capacity)?,
            slots: Slots::default(),
        })
    }

    /// Describes a batch of `grids`, which are checked already and fit, and brings the description to the device.
    pub(crate) fn describe(
        &mut self,
        stream: &Stream,
        grids: impl Iterator<Item = GridThw>,
        config: &VisionConfig,
        cache: &mut TileCache<FrameGeometry>,
    ) -> Result<(), VisionError> {
        self.clear();
        for grid in grids {
            let frame = grid.frame();
            let geometry = cache.get_or_try_insert_with(frame, || FrameGeometry::new(frame, config))?;
            for _ in 0..grid.t {
                self.push(&geometry);
            }
        }
        self.slots = self.pack()?;
        self.block.send(stream)?;
        Ok(())
    }

    /// Forgets the batch.
    pub(crate) fn clear(&mut self) {
        self.slots = Slots::default();
        self.positions.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        if let Some(taps) = &mut self.taps {
            taps.index.clear();
            taps.weight.clear();
        }
        if let Some(windows) = &mut self.windows {
            windows.order.clear();
            windows.inverse.clear();
            windows.cu_seqlens.clear();
            windows.cu_seqlens.push(0);
        }
    }

    /// Appends one frame.
    fn push(&mut self, frame: &FrameGeometry) {
        let first = self.num_patches();
        self.positions.extend(frame.positions.as_flattened());
        if let (Some(all), Some(taps)) = (&mut self.taps, &frame.taps) {
            all.index.extend(&taps.index);
            all.weight.extend(&taps.weight);
        }
        if let (Some(all), Some(windows)) = (&mut self.windows, &frame.windows) {
            let first_cell = first / self.merge_unit;
            all.order.extend(windows.order.iter().map(|cell| first_cell as i32 + cell));
            all.inverse.resize(all.order.len(), 0);
            for (place, &cell) in windows.order.iter().enumerate() {
                all.inverse[first_cell + cell as usize] = (first_cell + place) as i32;
            }
            let mut end = first as i32;
            for &num_cells in &windows.num_cells {
                end += num_cells * self.merge_unit as i32;
                all.cu_seqlens.push(end);
            }
        }
        self.cu_seqlens.push(self.num_patches() as i32);
    }

    fn pack(&mut self) -> Result<Slots, DeviceError> {
        let Self { positions, cu_seqlens, taps, windows, block, .. } = self;
        block.clear();
        Ok(Slots {
            positions: block.push(positions)?,
            cu_seqlens: block.push(cu_seqlens)?,
            taps: match taps {
                Some(taps) => Some([block.push(&taps.index)?, block.push(&taps.weight)?]),
                None => None,
            },
            windows: match windows {
                Some(windows) => {
                    Some([block.push(&windows.order)?, block.push(&windows.inverse)?, block.push(&windows.cu_seqlens)?])
                }
                None => None,
            },
        })
    }

    /// What launches depend on.
    pub(crate) fn shape(&self) -> BatchShape {
        BatchShape {
            patches: self.num_patches(),
            frames: self.cu_seqlens.len().saturating_sub(1),
            windows: self.windows.as_ref().map_or(0, |windows| windows.cu_seqlens.len().saturating_sub(1)),
        }
    }

    /// Patches of the batch.
    pub(crate) fn num_patches(&self) -> usize {
        self.positions.len() / 2
    }

    /// i32 `[num_patches, 2]`
    pub(crate) fn positions(&self) -> Result<View<'_>, DeviceError> {
        self.block.view(self.slots.positions, &[self.num_patches(), 2])
    }

    /// Index i32 and weight f32 of the position table's rows, each `[num_patches, 4]`.
    pub(crate) fn taps(&self) -> Result<Option<(View<'_>, View<'_>)>, DeviceError> {
        let Some([index, weight]) = self.slots.taps else { return Ok(None) };
        let dims = [self.num_patches(), 4];
        Ok(Some((self.block.view(index, &dims)?, self.block.view(weight, &dims)?)))
    }

    /// `None` where the tower has no windows.
    pub(crate) fn window_order(&self) -> Result<Option<WindowOrder<'_>>, DeviceError> {
        let Some([order, inverse, _]) = self.slots.windows else { return Ok(None) };
        let cells = [self.num_patches() / self.merge_unit];
        Ok(Some(WindowOrder { order: self.block.view(order, &cells)?, inverse: self.block.view(inverse, &cells)? }))
    }

    /// i32 `[num_segments + 1]`: where the segments that a block attends within begin: frames if it is `full`, else
    /// windows.
    pub(crate) fn cu_seqlens(&self, full: bool) -> Result<View<'_>, DeviceError> {
        match (self.slots.windows, &self.windows) {
            (Some([_, _, slot]), Some(windows)) if !full => self.block.view(slot, &[windows.cu_seqlens.len()]),
            _ => self.block.view(self.slots.cu_seqlens, &[self.cu_seqlens.len()]),
        }
    }
}

#[cfg(test)]
mod tests;
