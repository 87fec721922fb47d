//! The integers that describe a batch: positions, table rows, window order, segments.

use foveal_checkpoint::VisionConfig;
use foveal_device::{DType, Device, DeviceError, Tensor, View};
use foveal_mrope::{GridThw, TileCache};

use crate::VisionError;
use crate::geometry::FrameGeometry;

/// The rows of the position table that each patch takes.
struct TapTensors {
    /// i32 `[max_patches, 4]`
    index: Tensor,
    /// f32 `[max_patches, 4]`
    weight: Tensor,
}

/// The window order of merged cells, there and back, and where each window begins.
struct WindowTensors {
    /// i32 `[max_cells]`
    order: Tensor,
    /// i32 `[max_cells]`: the inverse permutation.
    inverse: Tensor,
    /// i32 `[max_cells + 1]`, in patches.
    cu_seqlens: Tensor,
}

/// A batch's description in tensors that are made once, for the largest batch.
pub(crate) struct BatchLayout {
    merge_unit: usize,
    /// i32 `[max_patches, 2]`
    positions: Tensor,
    /// i32 `[max_cells + 1]`, in patches: where each frame begins.
    cu_seqlens: Tensor,
    taps: Option<TapTensors>,
    windows: Option<WindowTensors>,
    num_patches: usize,
    num_frames: usize,
    num_windows: usize,
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
    /// Tensors for batches of up to `max_patches`.
    pub(crate) fn new(device: &Device, config: &VisionConfig, max_patches: usize) -> Result<Self, DeviceError> {
        // A segment holds at least one merged cell, so that cells bound the segments too.
        let max_cells = max_patches / config.merge_unit();
        let i32s = |dims: &[usize]| Tensor::zeros(device, DType::I32, dims);
        let taps = |_| {
            let weight = Tensor::zeros(device, DType::F32, &[max_patches, 4])?;
            Ok(TapTensors { index: i32s(&[max_patches, 4])?, weight })
        };
        let windows = |_| {
            let cu_seqlens = i32s(&[max_cells + 1])?;
            Ok(WindowTensors { order: i32s(&[max_cells])?, inverse: i32s(&[max_cells])?, cu_seqlens })
        };
        Ok(Self {
            merge_unit: config.merge_unit(),
            positions: i32s(&[max_patches, 2])?,
            cu_seqlens: i32s(&[max_cells + 1])?,
            taps: config.position_table.map(taps).transpose()?,
            windows: config.window.as_ref().map(windows).transpose()?,
            num_patches: 0,
            num_frames: 0,
            num_windows: 0,
        })
    }

    /// Describes a batch of `grids`, which are checked already and fit.
    pub(crate) fn describe(
        &mut self,
        grids: impl Iterator<Item = GridThw>,
        config: &VisionConfig,
        cache: &mut TileCache<FrameGeometry>,
    ) -> Result<(), VisionError> {
        (self.num_patches, self.num_frames, self.num_windows) = (0, 0, 0);
        for grid in grids {
            let frame = grid.frame();
            let geometry = cache.get_or_try_insert_with(frame, || FrameGeometry::new(frame, config))?;
            for _ in 0..grid.t {
                self.push(&geometry)?;
            }
        }
        Ok(())
    }

    /// Appends one frame.
    fn push(&mut self, frame: &FrameGeometry) -> Result<(), DeviceError> {
        let first = self.num_patches;
        let patches = first..first + frame.positions.len();
        write(&mut self.positions, 2 * first, frame.positions.as_flattened())?;
        if let (Some(tensors), Some(taps)) = (&mut self.taps, &frame.taps) {
            write(&mut tensors.index, 4 * first, &taps.index)?;
            write(&mut tensors.weight, 4 * first, &taps.weight)?;
        }
        if let (Some(tensors), Some(windows)) = (&mut self.windows, &frame.windows) {
            let first_cell = first / self.merge_unit;
            let mut order = tensors.order.rows_mut(first_cell..first_cell + windows.order.len())?;
            let mut inverse = tensors.inverse.rows_mut(first_cell..first_cell + windows.order.len())?;
            let (order, inverse) = (order.as_mut_slice::<i32>()?, inverse.as_mut_slice::<i32>()?);
            for (place, &cell) in windows.order.iter().enumerate() {
                order[place] = first_cell as i32 + cell;
                inverse[cell as usize] = (first_cell + place) as i32;
            }
            let mut end = first as i32;
            for &num_cells in &windows.num_cells {
                end += num_cells * self.merge_unit as i32;
                self.num_windows += 1;
                write(&mut tensors.cu_seqlens, self.num_windows, &[end])?;
            }
        }
        self.num_frames += 1;
        write(&mut self.cu_seqlens, self.num_frames, &[patches.end as i32])?;
        self.num_patches = patches.end;
        Ok(())
    }

    /// Patches of the batch.
    pub(crate) fn num_patches(&self) -> usize {
        self.num_patches
    }

    /// i32 `[num_patches, 2]`
    pub(crate) fn positions(&self) -> Result<View<'_>, DeviceError> {
        self.positions.rows(0..self.num_patches)
    }

    /// Index i32 and weight f32 of the position table's rows, each `[num_patches, 4]`.
    pub(crate) fn taps(&self) -> Result<Option<(View<'_>, View<'_>)>, DeviceError> {
        let rows = 0..self.num_patches;
        let Some(taps) = &self.taps else { return Ok(None) };
        Ok(Some((taps.index.rows(rows.clone())?, taps.weight.rows(rows)?)))
    }

    /// `None` where the tower has no windows.
    pub(crate) fn window_order(&self) -> Result<Option<WindowOrder<'_>>, DeviceError> {
        let cells = 0..self.num_patches / self.merge_unit;
        let Some(windows) = &self.windows else { return Ok(None) };
        Ok(Some(WindowOrder { order: windows.order.rows(cells.clone())?, inverse: windows.inverse.rows(cells)? }))
    }

    /// i32 `[num_segments + 1]`: where the segments that a block attends within begin: frames if it is `full`, else
    /// windows.
    pub(crate) fn cu_seqlens(&self, full: bool) -> Result<View<'_>, DeviceError> {
        match &self.windows {
            Some(windows) if !full => windows.cu_seqlens.rows(0..self.num_windows + 1),
            _ => self.cu_seqlens.rows(0..self.num_frames + 1),
        }
    }
}

/// Copies `values` to the elements of `tensor` from `start` on.
fn write<T: foveal_device::Element>(tensor: &mut Tensor, start: usize, values: &[T]) -> Result<(), DeviceError> {
    let mut view = tensor.view_mut()?;
    view.as_mut_slice::<T>()?[start..start + values.len()].copy_from_slice(values);
    Ok(())
}

#[cfg(test)]
mod tests;
