//! The embeddings of pictures: of those that wait for their placeholders' chunks, and of those that may be asked for again.

use std::ops::Range;
use std::sync::Arc;

use foveal_device::{CudaStream, Device, DeviceError, Stream, Tensor, View, allocated_bytes};
use foveal_llm::ImageRows;
use foveal_mrope::TileCacheStats;
use foveal_types::{ContentHash, PreparedImage};
use foveal_vision::{BatchShape, Patches, VisionError, VisionInput, VisionOutput, VisionTower, Workspace};

use crate::scheduler::EncodeBatch;

/// The tower, and the arena that its embeddings and deepstack rows stay in. What stands where is the scheduler's business.
pub(crate) struct PictureRows {
    tower: VisionTower,
    workspace: Workspace,
    /// `[encoder_rows, hidden_size]`
    embeds: Tensor,
    /// One `[encoder_rows, hidden_size]` per level.
    deepstack: Vec<Tensor>,
    /// On a GPU: where recorded work writes a batch's embeddings, and each level's, before they go to the arena.
    staging: Option<Vec<Tensor>>,
    /// Rows whose pictures could not be encoded.
    unusable: Vec<Range<usize>>,
    workspace_bytes: u64,
}

/// The arena's rows as views, with the rows of a step that take them.
pub(crate) struct StepImageRows<'a> {
    embeds: View<'a>,
    deepstack: Vec<View<'a>>,
    index: &'a [i32],
}

impl PictureRows {
    pub(crate) fn new(
        device: &Device,
        tower: VisionTower,
        max_patches: usize,
        encoder_rows: usize,
    ) -> Result<Self, VisionError> {
        let dims = [encoder_rows, tower.out_hidden_size()];
        let rows = || Tensor::zeros(device, device.activation_dtype(), &dims);
        let merge = tower.spatial_merge_size();
        let staged = [max_patches / (merge * merge).max(1), tower.out_hidden_size()];
        let staging = || {
            let buffer = |_| Tensor::zeros(device, device.activation_dtype(), &staged);
            (0..=tower.num_deepstack()).map(buffer).collect::<Result<Vec<_>, _>>()
        };
        // The device's own account: another engine that is built at this moment in this process counts in.
        let before = allocated_bytes();
        let workspace = tower.new_workspace(max_patches)?;
        Ok(Self {
            workspace_bytes: allocated_bytes().saturating_sub(before),
            workspace,
            embeds: rows()?,
            deepstack: (0..tower.num_deepstack()).map(|_| rows()).collect::<Result<_, _>>()?,
            staging: device.is_cuda().then(staging).transpose()?,
            unusable: Vec::new(),
            tower,
        })
    }

    /// Side of the square of patches that becomes one token.
    pub(crate) fn merge_size(&self) -> u32 {
        u32::try_from(self.tower.spatial_merge_size()).unwrap_or(u32::MAX)
    }

    /// Pixels along a side of what becomes one token.
    pub(crate) fn cell_pixels(&self) -> u32 {
        u32::try_from(self.tower.config().patch_size).unwrap_or(u32::MAX).saturating_mul(self.merge_size())
    }

    /// The most patches of one batch.
    pub(crate) fn max_patches(&self) -> usize {
        self.workspace.max_patches()
    }

    /// Bytes of one still patch.
    pub(crate) fn patch_bytes(&self) -> usize {
        let config = self.tower.config();
        config.patch_len() / config.temporal_patch_size.max(1)
    }

    /// Bytes of the tower's workspace.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }

    /// How often a picture's rotary and position tables were there already.
    pub(crate) fn geometry_stats(&self) -> TileCacheStats {
        self.workspace.geometry_stats()
    }

    /// Bytes of the arena and of what leads there, deepstack levels included.
    pub(crate) fn arena_bytes(&self) -> usize {
        let buffers = std::iter::once(&self.embeds).chain(&self.deepstack).chain(self.staging.iter().flatten());
        buffers.map(Tensor::len_bytes).sum()
    }

    /// A batch of grey squares, in the arena's first rows, of whole cells; `None` for sides below half a cell, and for more than
    /// the workspace takes.
    pub(crate) fn squares(&self, side_pixels: u32, count: usize) -> Option<EncodeBatch> {
        let cell = self.cell_pixels();
        // As a picture of that size is resized.
        let side = (side_pixels + cell / 2).checked_div(cell)? * self.merge_size();
        let patches = (side * side) as usize;
        if side == 0 || patches * count > self.max_patches() {
            return None;
        }
        let image = PreparedImage {
            grid_thw: [1, side, side],
            pixels: Arc::new(vec![127_u8; patches * self.patch_bytes()]),
            temporal_slices: 1,
            hash: ContentHash([0; 32]),
            placeholder_start: 0,
        };
        let rows = 0..count * patches / self.tower.config().merge_unit().max(1);
        Some(EncodeBatch { images: vec![image; count], rows })
    }

    /// Encodes a batch into its rows. If it is the pictures that can't be encoded, their rows are unusable.
    pub(crate) fn encode(&mut self, stream: &Stream, batch: &EncodeBatch) -> Result<(), VisionError> {
        let rows = &batch.rows;
        let inputs: Vec<VisionInput<'_>> = batch.images.iter().map(vision_input).collect();
        let out = VisionOutput {
            embeds: self.embeds.rows_mut(rows.clone())?,
            deepstack: self.deepstack.iter_mut().map(|level| level.rows_mut(rows.clone())).collect::<Result<_, _>>()?,
        };
        let result = self.tower.encode(stream, &inputs, &mut self.workspace, out);
        self.keep(rows, result).map(|_| ())
    }

    /// The first part of [`PictureRows::encode`] on a GPU: what [`PictureRows::launch`] goes on with, or `None` for pictures that
    /// can't be encoded.
    pub(crate) fn load(&mut self, stream: &Stream, batch: &EncodeBatch) -> Result<Option<BatchShape>, VisionError> {
        let result = self.load_apart(stream, &batch.images).and_then(|shape| self.check_rows(shape, &batch.rows));
        Ok(self.keep(&batch.rows, result)?.then(|| self.workspace.shape()))
    }

    /// The same for pictures that have no rows in the arena.
    pub(crate) fn load_apart(&mut self, stream: &Stream, images: &[PreparedImage]) -> Result<BatchShape, VisionError> {
        let inputs: Vec<VisionInput<'_>> = images.iter().map(vision_input).collect();
        self.tower.load_inputs(stream, &inputs, &mut self.workspace)?;
        Ok(self.workspace.shape())
    }

    /// A batch fills its rows of the arena.
    fn check_rows(&self, shape: BatchShape, rows: &Range<usize>) -> Result<(), VisionError> {
        let num_tokens = shape.patches / self.tower.config().merge_unit().max(1);
        if num_tokens == rows.len() {
            return Ok(());
        }
        let (output, out_hidden_size) = ("the arena's rows".to_owned(), self.tower.out_hidden_size());
        let got = *self.embeds.rows(rows.clone())?.shape();
        Err(VisionError::OutputShape { output, got, num_tokens, out_hidden_size })
    }

    /// The second part, which can be recorded: from what was loaded last to the staging memory.
    pub(crate) fn launch(&mut self, stream: &Stream, shape: BatchShape) -> Result<(), VisionError> {
        if self.workspace.shape() != shape {
            return Err(VisionError::EmptyBatch);
        }
        let rows = 0..shape.patches / self.tower.config().merge_unit().max(1);
        let Some([embeds, levels @ ..]) = self.staging.as_deref_mut() else { return Err(VisionError::EmptyBatch) };
        let deepstack = levels.iter_mut().map(|level| level.rows_mut(rows.clone())).collect::<Result<_, _>>()?;
        let out = VisionOutput { embeds: embeds.rows_mut(rows.clone())?, deepstack };
        self.tower.launch(stream, &mut self.workspace, out)
    }

    /// The third part: from there to a batch's rows of the arena.
    pub(crate) fn place(&mut self, stream: &CudaStream, rows: &Range<usize>) -> Result<(), DeviceError> {
        let arena = std::iter::once(&mut self.embeds).chain(&mut self.deepstack);
        for (from, to) in self.staging.iter().flatten().zip(arena) {
            stream.copy(from.rows(0..rows.len())?, to.rows_mut(rows.clone())?)?;
        }
        Ok(())
    }

    /// Whether a batch's pictures can be encoded. If not, `rows` are unusable until others are encoded into them.
    fn keep(&mut self, rows: &Range<usize>, result: Result<(), VisionError>) -> Result<bool, VisionError> {
        self.unusable.retain(|old| old.end <= rows.start || rows.end <= old.start);
        match result {
            Err(
                error @ (VisionError::Grid { .. } | VisionError::PatchLen { .. } | VisionError::TooManyPatches { .. }),
            ) => {
                tracing::warn!(%error, "pictures that were admitted can't be encoded");
                self.unusable.push(rows.clone());
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Whether the picture that has `row` could not be encoded.
    pub(crate) fn is_unusable(&self, row: usize) -> bool {
        self.unusable.iter().any(|rows| rows.contains(&row))
    }

    /// The arena: `[encoder_rows, hidden_size]`.
    pub(crate) fn embeds(&self) -> View<'_> {
        self.embeds.view()
    }

    /// One view of that size per deepstack level.
    pub(crate) fn deepstack(&self) -> Vec<View<'_>> {
        self.deepstack.iter().map(Tensor::view).collect()
    }

    /// The arena; `index` says which of its rows each row of the step takes.
    pub(crate) fn rows<'a>(&'a self, index: &'a [i32]) -> StepImageRows<'a> {
        StepImageRows { embeds: self.embeds(), deepstack: self.deepstack(), index }
    }
}

fn vision_input(image: &PreparedImage) -> VisionInput<'_> {
    let pixels = image.pixels.bytes();
    let patches = if image.temporal_slices == 1 { Patches::Still(pixels) } else { Patches::Video(pixels) };
    VisionInput { grid: image.grid_thw.into(), patches }
}

impl StepImageRows<'_> {
    pub(crate) fn as_image_rows(&self) -> ImageRows<'_> {
        ImageRows { embeds: self.embeds, deepstack: &self.deepstack, index: self.index }
    }
}
