//! The embeddings of pictures: of those that wait for their placeholders' chunks, and of those that may be asked for again.

use std::ops::Range;

use foveal_device::{Device, Stream, Tensor, View, allocated_bytes};
use foveal_llm::ImageRows;
use foveal_types::PreparedImage;
use foveal_vision::{Patches, VisionError, VisionInput, VisionOutput, VisionTower, Workspace};

use crate::scheduler::EncodeBatch;

/// The tower, and the arena that its embeddings and deepstack rows stay in. What stands where is the scheduler's business.
pub(crate) struct PictureRows {
    tower: VisionTower,
    workspace: Workspace,
    /// `[encoder_rows, hidden_size]`
    embeds: Tensor,
    /// One `[encoder_rows, hidden_size]` per level.
    deepstack: Vec<Tensor>,
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
        // The device's own account: another engine that is built at this moment in this process counts in.
        let before = allocated_bytes();
        let workspace = tower.new_workspace(max_patches)?;
        Ok(Self {
            workspace_bytes: allocated_bytes().saturating_sub(before),
            workspace,
            embeds: rows()?,
            deepstack: (0..tower.num_deepstack()).map(|_| rows()).collect::<Result<_, _>>()?,
            unusable: Vec::new(),
            tower,
        })
    }

    /// Side of the square of patches that becomes one token.
    pub(crate) fn merge_size(&self) -> u32 {
        u32::try_from(self.tower.spatial_merge_size()).unwrap_or(u32::MAX)
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

    /// Bytes of the arena, deepstack levels included.
    pub(crate) fn arena_bytes(&self) -> usize {
        self.embeds.len_bytes() + self.deepstack.iter().map(Tensor::len_bytes).sum::<usize>()
    }

    /// Encodes a batch into its rows. If it is the pictures that can't be encoded, their rows are unusable.
    pub(crate) fn encode(&mut self, stream: &Stream, batch: &EncodeBatch) -> Result<(), VisionError> {
        let rows = &batch.rows;
        self.unusable.retain(|old| old.end <= rows.start || rows.end <= old.start);
        let inputs: Vec<VisionInput<'_>> = batch.images.iter().map(vision_input).collect();
        let out = VisionOutput {
            embeds: self.embeds.rows_mut(rows.clone())?,
            deepstack: self.deepstack.iter_mut().map(|level| level.rows_mut(rows.clone())).collect::<Result<_, _>>()?,
        };
        match self.tower.encode(stream, &inputs, &mut self.workspace, out) {
            Err(
                error @ (VisionError::Grid { .. } | VisionError::PatchLen { .. } | VisionError::TooManyPatches { .. }),
            ) => {
                tracing::warn!(%error, "pictures that were admitted can't be encoded");
                self.unusable.push(rows.clone());
                Ok(())
            }
            result => result,
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
