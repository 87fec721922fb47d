//! Memory for some sequences, and steps over them.

use foveal_device::{Readback, Tensor, View};
use foveal_llm::{BatchLimits, ImageRows, KvCache, KvLayout, Workspace};
use foveal_types::PreparedRequest;
use foveal_vision::{Patches, VisionInput, VisionOutput};

use super::model::LoadedModel;
use super::rows::Rows;

/// Logits that one step gives at most, as bytes: memory of the device, and as much page-locked memory of the host.
const MAX_STEP_LOGIT_BYTES: usize = 512 << 20;

/// What a [`Run`] has memory for.
pub(super) struct RunLimits {
    pub(super) num_seqs: usize,
    /// Tokens of a sequence.
    pub(super) max_len: usize,
    /// Rows of a step.
    pub(super) max_tokens: usize,
    /// Rows of a step whose logits are wanted.
    pub(super) max_logit_rows: usize,
}

/// Sequences on their way through a decoder.
pub(super) struct Run<'m> {
    pub(super) model: &'m LoadedModel,
    cache: KvCache,
    workspace: Workspace,
    readback: Readback,
    /// What was read last.
    read: Vec<f32>,
    max_blocks: usize,
}

/// What the tower gave for the pictures of some prompts.
pub(super) struct Features {
    /// `[num_embeds, hidden_size]`
    embeds: Tensor,
    deepstack: Vec<Tensor>,
}

impl<'m> Run<'m> {
    pub(super) fn open(model: &'m LoadedModel, limits: &RunLimits) -> anyhow::Result<Self> {
        let &RunLimits { num_seqs, max_len, max_tokens, max_logit_rows } = limits;
        let max_blocks = max_len.div_ceil(KvLayout::DEFAULT_PAGE);
        let max_tokens = max_tokens.max(num_seqs).max(max_logit_rows);
        let limits = BatchLimits { max_tokens, max_seqs: num_seqs, max_logit_rows };
        Ok(Self {
            model,
            cache: model.decoder.new_kv_cache(num_seqs * max_blocks, model.kv_dtype)?,
            workspace: model.decoder.new_workspace(limits)?,
            readback: Readback::new(&model.device, max_logit_rows * model.vocab_size() * size_of::<f32>())?,
            read: Vec::new(),
            max_blocks,
        })
    }

    /// A step without rows yet.
    pub(super) fn rows(&self) -> Rows {
        Rows::new(self.max_blocks)
    }

    /// A step; gives the logits that it wants, on the device.
    pub(super) fn forward(&mut self, rows: &Rows, features: Option<&Features>) -> anyhow::Result<View<'_>> {
        step(self.model, &mut self.cache, &mut self.workspace, rows, features)
    }

    /// A step; gives the logits that it wants, row behind row.
    pub(super) fn read(&mut self, rows: &Rows, features: Option<&Features>) -> anyhow::Result<&[f32]> {
        self.read.clear();
        let logits = step(self.model, &mut self.cache, &mut self.workspace, rows, features)?;
        self.read.extend_from_slice(self.readback.read(self.model.device.stream(), &[logits])?.slice::<f32>(0)?);
        Ok(&self.read)
    }
}

fn step<'w>(
    model: &LoadedModel,
    cache: &mut KvCache,
    workspace: &'w mut Workspace,
    rows: &Rows,
    features: Option<&Features>,
) -> anyhow::Result<View<'w>> {
    let deepstack: Vec<_> = features.iter().flat_map(|f| &f.deepstack).map(Tensor::view).collect();
    let image = features.map(|f| ImageRows { embeds: f.embeds.view(), deepstack: &deepstack, index: &[] });
    let stream = model.device.stream();
    Ok(rows.with_batch(image, |batch| model.decoder.forward(stream, batch, cache, workspace))?)
}

impl Features {
    /// All pictures of some prompts in one batch; none for prompts of text alone.
    pub(super) fn encode(model: &LoadedModel, requests: &[PreparedRequest]) -> anyhow::Result<Option<Self>> {
        let tower = &model.front()?.tower;
        let images = requests.iter().flat_map(|request| &request.images);
        let inputs: Vec<VisionInput<'_>> = images
            .map(|image| {
                let patches = if image.temporal_slices == 1 { Patches::Still } else { Patches::Video };
                VisionInput { grid: image.grid_thw.into(), patches: patches(image.pixels.bytes()) }
            })
            .collect();
        if inputs.is_empty() {
            return Ok(None);
        }
        let rows: usize = inputs.iter().map(|input| tower.num_tokens(input.grid)).sum();
        let dims = [rows, tower.out_hidden_size()];
        let tensor = || Tensor::zeros(&model.device, model.device.activation_dtype(), &dims);
        let mut embeds = tensor()?;
        let mut deepstack = (0..tower.num_deepstack()).map(|_| tensor()).collect::<Result<Vec<_>, _>>()?;
        let mut workspace = tower.new_workspace(inputs.iter().map(|input| input.grid.num_patches()).sum())?;
        let levels = deepstack.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
        let out = VisionOutput { embeds: embeds.view_mut()?, deepstack: levels };
        tower.encode(model.device.stream(), &inputs, &mut workspace, out)?;
        Ok(Some(Self { embeds, deepstack }))
    }
}

/// The most rows of a step whose logits are wanted.
pub(super) fn max_logit_rows(model: &LoadedModel) -> usize {
    (MAX_STEP_LOGIT_BYTES / (model.vocab_size() * size_of::<f32>())).max(1)
}
