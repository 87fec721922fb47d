//! The vision tower.

use std::sync::Arc;

use foveal_checkpoint::{VisionConfig, WeightSource, prefix};
use foveal_device::{Device, Stream, Tensor};
use foveal_kernels::position_embed::{AddPositionEmbed, add_position_embed};
use foveal_kernels::rows::{Gather, gather};
use foveal_mrope::GridThw;

use crate::block::{Block, Rows};
use crate::input::{check_batch, check_grids};
use crate::merger::{Merger, NormPlace};
use crate::patch_embed::{PatchEmbed, PixelBuffers};
use crate::weights::Reader;
use crate::{BatchShape, Normalisation, VisionError, VisionInput, VisionOutput, Workspace};

/// The vision tower of a Qwen-VL model: patches in, rows for the decoder out.
///
/// One tower serves Qwen2-VL, Qwen2.5-VL (window attention) and Qwen3-VL (position table, deepstack) by its
/// configuration. It only holds weights, in place in the checkpoint's memory; what a batch writes is in a
/// [`Workspace`], so that one tower can serve several threads.
///
/// Source: the vision models of modeling_qwen2_vl.py, modeling_qwen2_5_vl.py and modeling_qwen3_vl.py, transformers
/// 5.17.
pub struct VisionTower {
    config: VisionConfig,
    device: Device,
    patch_embed: PatchEmbed,
    /// `[num_position_embeddings, hidden_size]`
    position_table: Option<Arc<Tensor>>,
    blocks: Vec<Block>,
    merger: Merger,
    deepstack_mergers: Vec<Merger>,
}

impl VisionTower {
    /// Takes the tower's tensors, and only those, from `weights`, which can hold a whole model or the tower alone.
    ///
    /// Nothing but the still pictures' patch convolution and joined biases is copied. Call
    /// [`WeightSource::finish`] afterwards to learn of tensors that nobody took.
    ///
    /// # Errors
    /// [`VisionError::Config`] for settings that no tower of these families has; [`VisionError::Checkpoint`] for a
    /// tensor that is missing, misshapen or not of a float type.
    pub fn load(
        config: &VisionConfig,
        normalisation: Normalisation,
        weights: &WeightSource,
        device: &Device,
    ) -> Result<Self, VisionError> {
        check_config(config)?;
        let reader = Reader { weights: weights.at(prefix::VISION), config, device };
        let table = |rows| reader.tensor("pos_embed.weight", &[rows, config.hidden_size]);
        let deepstack = |i| Merger::load(&reader, &format!("deepstack_merger_list.{i}"), NormPlace::AfterJoin);
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            patch_embed: PatchEmbed::load(&reader, normalisation)?,
            position_table: config.position_table.map(table).transpose()?,
            blocks: (0..config.depth).map(|i| Block::load(&reader, i)).collect::<Result<_, _>>()?,
            merger: Merger::load(&reader, "merger", NormPlace::BeforeJoin)?,
            deepstack_mergers: (0..config.deepstack_visual_indexes.len()).map(deepstack).collect::<Result<_, _>>()?,
        })
    }

    /// Memory for batches of up to `max_patches` patches, all pictures of a batch together. Make one per thread that
    /// encodes, at start.
    ///
    /// # Errors
    /// [`VisionError::WorkspaceSize`], or [`VisionError::Device`] where the memory can't be had.
    pub fn new_workspace(&self, max_patches: usize) -> Result<Workspace, VisionError> {
        Workspace::new(&self.device, &self.config, max_patches)
    }

    /// Encodes a batch of pictures and videos of any sizes in one pass and writes their tokens to `out`, input by
    /// input.
    ///
    /// Each frame attends to itself alone, so that an input's tokens don't depend on its neighbours or its place in the
    /// batch: on the CPU, bitwise. Allocates no tensor.
    ///
    /// # Errors
    /// Before anything is computed: [`VisionError::EmptyBatch`], [`VisionError::Grid`], [`VisionError::PatchLen`],
    /// [`VisionError::TooManyPatches`], [`VisionError::OutputShape`], [`VisionError::OutputDType`],
    /// [`VisionError::DeepstackLevels`], [`VisionError::ForeignWorkspace`].
    pub fn encode(
        &self,
        stream: &Stream,
        inputs: &[VisionInput<'_>],
        workspace: &mut Workspace,
        out: VisionOutput<'_>,
    ) -> Result<(), VisionError> {
        let num_patches = self.check(inputs, workspace)?;
        self.check_out(num_patches, &out)?;
        self.embed(stream, inputs, workspace)?;
        self.run_blocks(stream, workspace, out)
    }

    /// The first part of [`VisionTower::encode`]: brings the pixels and embeds the patches, of which `workspace` keeps as many
    /// as [`Workspace::shape`] says.
    ///
    /// # Errors
    /// As [`VisionTower::encode`], but for those of the output.
    pub fn load_inputs(
        &self,
        stream: &Stream,
        inputs: &[VisionInput<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), VisionError> {
        self.check(inputs, workspace)?;
        self.embed(stream, inputs, workspace)
    }

    /// What [`VisionTower::load_inputs`] does before it looks at a pixel: brings positions, rows of the position table and
    /// windows of pictures of these grids to the device. For measuring that alone: `workspace` holds no batch afterwards.
    ///
    /// # Errors
    /// As [`VisionTower::load_inputs`], but for those of patches.
    pub fn describe(
        &self,
        stream: &Stream,
        grids: &[GridThw],
        workspace: &mut Workspace,
    ) -> Result<BatchShape, VisionError> {
        self.check_workspace(workspace)?;
        check_grids(grids, &self.config, workspace.max_patches)?;
        workspace.describe(stream, grids.iter().copied())?;
        let shape = workspace.shape();
        workspace.batch.clear();
        Ok(shape)
    }

    /// The second part: from the embedded patches that `workspace` holds to their tokens. Reads the host's memory nowhere, so
    /// that it can be recorded: launches depend on [`Workspace::shape`] alone.
    ///
    /// # Errors
    /// [`VisionError::EmptyBatch`] where nothing was loaded, and those of [`VisionTower::encode`] that concern the output.
    pub fn launch(&self, stream: &Stream, workspace: &mut Workspace, out: VisionOutput<'_>) -> Result<(), VisionError> {
        self.check_workspace(workspace)?;
        let num_patches = workspace.batch.num_patches();
        if num_patches == 0 {
            return Err(VisionError::EmptyBatch);
        }
        self.check_out(num_patches, &out)?;
        self.run_blocks(stream, workspace, out)
    }

    /// The patches of a batch that can be encoded.
    fn check(&self, inputs: &[VisionInput<'_>], workspace: &Workspace) -> Result<usize, VisionError> {
        self.check_workspace(workspace)?;
        check_batch(inputs, &self.config, workspace.max_patches)
    }

    fn check_workspace(&self, workspace: &Workspace) -> Result<(), VisionError> {
        if workspace.config == self.config { Ok(()) } else { Err(VisionError::ForeignWorkspace) }
    }

    fn check_out(&self, num_patches: usize, out: &VisionOutput<'_>) -> Result<(), VisionError> {
        let dims = [num_patches / self.config.merge_unit(), self.config.out_hidden_size];
        out.check(self.device.activation_dtype(), dims, self.num_deepstack())
    }

    fn embed(&self, stream: &Stream, inputs: &[VisionInput<'_>], workspace: &mut Workspace) -> Result<(), VisionError> {
        workspace.describe(stream, inputs.iter().map(|input| input.grid))?;
        self.embed_patches(stream, inputs, workspace)
    }

    /// Fills `residual` with the patches' embeddings, in window order where there are windows.
    fn embed_patches(
        &self,
        stream: &Stream,
        inputs: &[VisionInput<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), VisionError> {
        let Workspace { batch, activations, pixels, .. } = workspace;
        let dims = [batch.num_patches(), self.config.hidden_size];
        let order = batch.window_order()?;
        let embeds = if order.is_some() { &mut activations.branch } else { &mut activations.residual };
        let mut x = embeds.view_mut(&dims)?; // [num_patches, hidden_size]
        let mut buffers = PixelBuffers { values: &mut activations.wide, lane: pixels.as_mut() };
        self.patch_embed.forward(stream, inputs, &mut buffers, &mut x)?;
        if let (Some(table), Some((index, weight))) = (&self.position_table, batch.taps()?) {
            add_position_embed(stream, AddPositionEmbed { table: table.view(), index, weight, x })?;
        }
        if let Some(order) = order {
            let cells = [dims[0] / self.config.merge_unit(), self.config.merged_size()];
            let (x, out) = (activations.branch.view(&cells)?, activations.residual.view_mut(&cells)?);
            gather(stream, Gather { x, index: order.order, out })?;
        }
        Ok(())
    }

    fn run_blocks(&self, stream: &Stream, workspace: &mut Workspace, out: VisionOutput<'_>) -> Result<(), VisionError> {
        let Workspace { batch, activations, rope, .. } = workspace;
        let num_patches = batch.num_patches();
        let inverse = batch.window_order()?.map(|order| order.inverse);
        let levels = self.config.deepstack_visual_indexes.iter().zip(&self.deepstack_mergers);
        let mut levels = levels.zip(out.deepstack).peekable();
        // Whether `branch` holds what the next norm has to add: a merger has added it already.
        let mut has_branch = false;
        for (index, block) in self.blocks.iter().enumerate() {
            let rows = Rows {
                num_patches,
                positions: batch.positions()?,
                cos: rope.cos.view(),
                sin: rope.sin.view(),
                cu_seqlens: batch.cu_seqlens(self.attends_whole_frame(index))?,
            };
            block.forward(stream, &rows, activations, has_branch)?;
            has_branch = true;
            if let Some(((_, merger), level)) = levels.next_if(|((after, _), _)| **after == index) {
                merger.forward(stream, num_patches, activations, true, inverse, level)?;
                has_branch = false;
            }
        }
        self.merger.forward(stream, num_patches, activations, has_branch, inverse, out.embeds)
    }

    fn attends_whole_frame(&self, block: usize) -> bool {
        self.config.window.as_ref().is_none_or(|window| window.fullatt_block_indexes.contains(&block))
    }

    /// Tokens that a picture or video of `grid` patches becomes.
    #[must_use]
    pub fn num_tokens(&self, grid: GridThw) -> usize {
        grid.num_tokens(self.config.spatial_merge_size as u32)
    }

    /// Deepstack levels: how many of the decoder's first layers take features of their own. 0 before Qwen3-VL.
    #[must_use]
    pub fn num_deepstack(&self) -> usize {
        self.deepstack_mergers.len()
    }

    /// Elements of a token: the decoder's hidden size.
    #[must_use]
    pub fn out_hidden_size(&self) -> usize {
        self.config.out_hidden_size
    }

    /// Side of the square of patches that becomes one token.
    #[must_use]
    pub fn spatial_merge_size(&self) -> usize {
        self.config.spatial_merge_size
    }

    /// The settings that the tower was loaded with.
    #[must_use]
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }
}

impl std::fmt::Debug for VisionTower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VisionTower")
            .field("config", &self.config)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Channels of a picture: what the normalisation is given for.
const NUM_CHANNELS: usize = 3;

/// What `VisionConfig` can hold and the tower can't do.
fn check_config(config: &VisionConfig) -> Result<(), VisionError> {
    let bad =
        |field, got: String, expected: &str| Err(VisionError::Config { field, got, expected: expected.to_owned() });
    if config.in_channels != NUM_CHANNELS {
        return bad("in_channels", config.in_channels.to_string(), "3");
    }
    let sizes = [
        ("depth", config.depth),
        ("hidden_size", config.hidden_size),
        ("out_hidden_size", config.out_hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_heads", config.num_heads),
        ("patch_size", config.patch_size),
        ("temporal_patch_size", config.temporal_patch_size),
        ("spatial_merge_size", config.spatial_merge_size),
        ("num_position_embeddings", config.position_table.unwrap_or(1)),
    ];
    if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return bad(field, "0".to_owned(), "at least 1");
    }
    if config.hidden_size != config.num_heads * config.head_dim() || !config.head_dim().is_multiple_of(4) {
        return bad("hidden_size", config.hidden_size.to_string(), "num_heads times a multiple of 4");
    }
    let levels = &config.deepstack_visual_indexes;
    if !levels.is_sorted_by(|a, b| a < b) || levels.last().is_some_and(|&last| last >= config.depth) {
        return bad("deepstack_visual_indexes", format!("{levels:?}"), "rising block indices below depth");
    }
    if let Some(window) = &config.window {
        let cell = config.patch_size * config.spatial_merge_size;
        if window.window_size < cell {
            return bad("window_size", window.window_size.to_string(), "at least one merged cell's pixels");
        }
    }
    Ok(())
}
