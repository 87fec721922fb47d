//! The embeddings of the pictures that wait for their placeholders' chunks.

use foveal_device::{Device, DeviceError, Stream, Tensor, View, allocated_bytes};
use foveal_llm::ImageRows;
use foveal_types::PreparedImage;
use foveal_vision::{Patches, VisionError, VisionInput, VisionOutput, VisionTower, Workspace};

/// The tower, and room for the embeddings and deepstack rows of one batch of pictures.
pub(crate) struct PictureRows {
    tower: VisionTower,
    workspace: Workspace,
    /// `[max_embeds, hidden_size]`
    embeds: Tensor,
    /// One `[max_embeds, hidden_size]` per level.
    deepstack: Vec<Tensor>,
    num_embeds: usize,
    workspace_bytes: u64,
}

/// The rows of the last batch as views, with the rows of a step that take them.
pub(crate) struct StepImageRows<'a> {
    embeds: View<'a>,
    deepstack: Vec<View<'a>>,
    index: &'a [i32],
}

impl PictureRows {
    pub(crate) fn new(device: &Device, tower: VisionTower, max_patches: usize) -> Result<Self, VisionError> {
        let merge = tower.spatial_merge_size();
        let dims = [max_patches / (merge * merge).max(1), tower.out_hidden_size()];
        let rows = || Tensor::zeros(device, device.activation_dtype(), &dims);
        // The device's own account: another engine that is built at this moment in this process counts in.
        let before = allocated_bytes();
        let workspace = tower.new_workspace(max_patches)?;
        Ok(Self {
            workspace_bytes: allocated_bytes().saturating_sub(before),
            workspace,
            embeds: rows()?,
            deepstack: (0..tower.num_deepstack()).map(|_| rows()).collect::<Result<_, _>>()?,
            num_embeds: 0,
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

    /// Bytes of the rows that wait, deepstack levels included.
    pub(crate) fn rows_bytes(&self) -> usize {
        self.embeds.len_bytes() + self.deepstack.iter().map(Tensor::len_bytes).sum::<usize>()
    }

    /// Encodes a batch in the place of the last one.
    pub(crate) fn encode(&mut self, stream: &Stream, images: &[PreparedImage]) -> Result<(), VisionError> {
        let inputs: Vec<VisionInput<'_>> = images.iter().map(vision_input).collect();
        self.num_embeds = inputs.iter().map(|input| self.tower.num_tokens(input.grid)).sum();
        let rows = 0..self.num_embeds;
        let out = VisionOutput {
            embeds: self.embeds.rows_mut(rows.clone())?,
            deepstack: self.deepstack.iter_mut().map(|level| level.rows_mut(rows.clone())).collect::<Result<_, _>>()?,
        };
        self.tower.encode(stream, &inputs, &mut self.workspace, out)
    }

    /// The last batch's rows; `index` says which of them each row of the step takes.
    pub(crate) fn rows<'a>(&'a self, index: &'a [i32]) -> Result<StepImageRows<'a>, DeviceError> {
        let rows = 0..self.num_embeds;
        let deepstack = self.deepstack.iter().map(|level| level.rows(rows.clone())).collect::<Result<_, _>>()?;
        Ok(StepImageRows { embeds: self.embeds.rows(rows)?, deepstack, index })
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
