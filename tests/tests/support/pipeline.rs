//! A reference checkpoint's parts, driven by hand: the engine gives tokens, not logits.

use foveal_device::{Tensor, View};
use foveal_kernels::KvLayout;
use foveal_llm::{Batch, BatchLimits, Decoder, ImageRows, KvCache, Workspace};
use foveal_types::PreparedRequest;
use foveal_vision::{Patches, VisionInput, VisionOutput, VisionTower};

use crate::support::{MAX_MODEL_LEN, Reference};

/// One model's parts, put together by hand.
pub(crate) struct Pipeline {
    pub(crate) reference: Reference,
    tower: VisionTower,
    decoder: Decoder,
}

/// What the tower gives for a request, on its device.
pub(crate) struct Features {
    /// `[num_embeds, hidden_size]`
    pub(crate) embeds: Tensor,
    pub(crate) deepstack: Vec<Tensor>,
}

impl Pipeline {
    pub(crate) fn open(reference: Reference) -> Self {
        let Reference { config, normalisation, device, .. } = &reference;
        let weights = reference.weights();
        Self {
            tower: VisionTower::load(&config.vision, *normalisation, &weights, device).unwrap(),
            decoder: Decoder::load(config, &weights, device, MAX_MODEL_LEN).unwrap(),
            reference,
        }
    }

    /// All pictures of a request in one batch.
    pub(crate) fn encode(&self, request: &PreparedRequest) -> Option<Features> {
        let inputs: Vec<VisionInput<'_>> = request
            .images
            .iter()
            .map(|image| {
                let patches = if image.temporal_slices == 1 { Patches::Still } else { Patches::Video };
                VisionInput { grid: image.grid_thw.into(), patches: patches(image.pixels.bytes()) }
            })
            .collect();
        (!inputs.is_empty()).then(|| self.encode_inputs(&inputs))
    }

    /// Some pictures or videos in one batch.
    pub(crate) fn encode_inputs(&self, inputs: &[VisionInput<'_>]) -> Features {
        let rows: usize = inputs.iter().map(|input| self.tower.num_tokens(input.grid)).sum();
        let device = &self.reference.device;
        let tensor =
            || Tensor::zeros(device, device.activation_dtype(), &[rows, self.tower.out_hidden_size()]).unwrap();
        let (mut embeds, mut deepstack) = (tensor(), Vec::from_iter((0..self.tower.num_deepstack()).map(|_| tensor())));
        let num_patches: usize = inputs.iter().map(|input| input.grid.num_patches()).sum();
        let mut workspace = self.tower.new_workspace(num_patches).unwrap();
        let out = VisionOutput {
            embeds: embeds.view_mut().unwrap(),
            deepstack: deepstack.iter_mut().map(|level| level.view_mut().unwrap()).collect(),
        };
        self.tower.encode(device.stream(), inputs, &mut workspace, out).unwrap();
        Features { embeds, deepstack }
    }

    /// Memory for one sequence, fed in steps of up to `max_tokens`.
    pub(crate) fn run(&self, sequence_len: usize, max_tokens: usize) -> Run<'_> {
        let num_blocks = sequence_len.div_ceil(KvLayout::DEFAULT_PAGE);
        Run {
            pipeline: self,
            cache: self.decoder.new_kv_cache(num_blocks, self.reference.device.activation_dtype()).unwrap(),
            workspace: self.decoder.new_workspace(BatchLimits { max_tokens, max_seqs: 1, max_logit_rows: 1 }).unwrap(),
            // Pages in reverse, so that a block table that is not looked at is found out.
            block_table: (0..i32::try_from(num_blocks).unwrap()).rev().collect(),
        }
    }
}

/// Which embedding each row of the prompt takes; none for a prompt of text alone.
fn image_index(request: &PreparedRequest) -> Option<Vec<i32>> {
    let mut index = vec![-1; request.input_ids.len()];
    for (embed, row) in request.image_token_ranges.iter().cloned().flatten().enumerate() {
        index[row] = i32::try_from(embed).unwrap();
    }
    (!request.images.is_empty()).then_some(index)
}

/// One sequence on its way through the decoder.
pub(crate) struct Run<'p> {
    pipeline: &'p Pipeline,
    cache: KvCache,
    workspace: Workspace,
    block_table: Vec<i32>,
}

impl Run<'_> {
    /// The prompt in chunks; gives the logits behind its last token.
    pub(crate) fn prefill(&mut self, request: &PreparedRequest, features: Option<&Features>, chunk: usize) -> View<'_> {
        let n = request.input_ids.len();
        let ids: Vec<i32> = request.input_ids.iter().map(|id| id.0.cast_signed()).collect();
        let index = image_index(request);
        // The last chunk apart: its logits are lent out.
        let last = (n - 1) / chunk * chunk;
        let positions = |start: usize, end: usize| -> Vec<i32> {
            request.positions.chunks_exact(n).flat_map(|axis| &axis[start..end]).copied().collect()
        };
        let index = |start: usize, end: usize| index.as_ref().map(|index| &index[start..end]);
        for start in (0..last).step_by(chunk) {
            let end = start + chunk;
            self.step(start, &ids[start..end], &positions(start, end), index(start, end), features);
        }
        self.step(last, &ids[last..], &positions(last, n), index(last, n), features)
    }

    /// The answer's token number `i`; gives the logits behind it.
    pub(crate) fn decode(&mut self, request: &PreparedRequest, i: usize, token: u32) -> View<'_> {
        let row = request.input_ids.len() + i;
        let position = i32::try_from(row).unwrap() + request.rope_delta;
        self.step(row, &[token.cast_signed()], &[position; 3], None, None)
    }

    fn step(
        &mut self,
        start: usize,
        ids: &[i32],
        positions: &[i32],
        index: Option<&[i32]>,
        features: Option<&Features>,
    ) -> View<'_> {
        let page = KvLayout::DEFAULT_PAGE;
        let end = start + ids.len();
        let slot = |row: usize| i64::from(self.block_table[row / page]) * page as i64 + (row % page) as i64;
        let slots: Vec<i64> = (start..end).map(slot).collect();
        let deepstack: Vec<_> =
            features.iter().flat_map(|features| &features.deepstack).map(|level| level.view()).collect();
        let image = features.zip(index).map(|(features, index)| ImageRows {
            embeds: features.embeds.view(),
            deepstack: &deepstack,
            index,
        });
        let n = i32::try_from(ids.len()).unwrap();
        let batch = Batch {
            input_ids: ids,
            positions,
            slot_mapping: &slots,
            cu_seqlens: &[0, n],
            context_lens: &[i32::try_from(end).unwrap()],
            block_tables: &self.block_table,
            max_blocks: self.block_table.len(),
            logit_rows: &[n - 1],
            image,
        };
        let (decoder, stream) = (&self.pipeline.decoder, self.pipeline.reference.device.stream());
        decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace).unwrap()
    }
}
