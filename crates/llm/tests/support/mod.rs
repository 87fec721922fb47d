//! What the decoder's tests share: a model, prompts, and batches made of their chunks.
// Each test program is a crate of its own and uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub mod golden;
pub mod reference;

use std::ops::Range;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device, View};
use foveal_kernels::KvLayout;
use foveal_llm::{Batch, BatchLimits, Decoder, ImageRows, KvCache, LlmError, Workspace};
use foveal_testkit::fixtures_dir;

pub const PAGE: usize = KvLayout::DEFAULT_PAGE;

/// A decoder with a cache and a workspace of its own.
pub struct Model {
    pub device: Device,
    pub config: ModelConfig,
    pub weights: WeightSource,
    pub decoder: Decoder,
    pub cache: KvCache,
    pub workspace: Workspace,
}

/// Sizes of a [`Model`]'s memory.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub max_model_len: usize,
    pub num_blocks: usize,
    pub limits: BatchLimits,
    pub kv_dtype: DType,
}

impl Default for Sizes {
    fn default() -> Self {
        let limits = BatchLimits { max_tokens: 1024, max_seqs: 8, max_logit_rows: 1024 };
        Self { max_model_len: 2048, num_blocks: 64, limits, kv_dtype: DType::F32 }
    }
}

impl Model {
    pub fn new(config: ModelConfig, weights: WeightSource, sizes: Sizes) -> Self {
        let device = Device::cpu(2).unwrap();
        let decoder = Decoder::load(&config, &weights, &device, sizes.max_model_len).unwrap();
        let cache = decoder.new_kv_cache(sizes.num_blocks, sizes.kv_dtype).unwrap();
        let workspace = decoder.new_workspace(sizes.limits).unwrap();
        Self { device, config, weights, decoder, cache, workspace }
    }

    /// The trained tiny model.
    pub fn tiny(sizes: Sizes) -> Self {
        let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
        let config = ModelConfig::load(&folder).unwrap();
        Self::new(config, WeightSource::open(&folder).unwrap(), sizes)
    }

    /// Logits of the rows that `batch` asks for, copied out.
    pub fn logits(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>, LlmError> {
        let Self { device, decoder, cache, workspace, .. } = self;
        let logits = decoder.forward(device.stream(), batch, cache, workspace)?;
        assert_eq!(**logits.shape(), [batch.logit_rows.len(), decoder.settings().vocab_size]);
        Ok(logits.as_slice::<f32>().unwrap().to_vec())
    }
}

/// A prompt: ids, positions and picture rows.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    pub input_ids: Vec<i32>,
    /// t, h and w of each token.
    pub positions: Vec<[i32; 3]>,
    /// -1 for text.
    pub image_index: Vec<i32>,
}

impl Prompt {
    pub fn new(input_ids: Vec<i32>, positions: Vec<[i32; 3]>) -> Self {
        let image_index = vec![-1; input_ids.len()];
        Self { input_ids, positions, image_index }
    }

    pub fn text(input_ids: Vec<i32>) -> Self {
        let positions = (0..input_ids.len() as i32).map(|i| [i; 3]).collect();
        Self::new(input_ids, positions)
    }

    pub fn push(&mut self, id: u32, position: i64) {
        self.input_ids.push(id.cast_signed());
        self.positions.push([position as i32; 3]);
        self.image_index.push(-1);
    }

    pub fn len(&self) -> usize {
        self.input_ids.len()
    }
}

/// A part of a prompt with the pages of its sequence.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    pub prompt: &'a Prompt,
    pub rows: Range<usize>,
    pub blocks: &'a [i32],
}

/// A batch that owns its parts, so that a test can spoil them one by one.
#[derive(Clone, Debug, Default)]
pub struct OwnedBatch {
    pub input_ids: Vec<i32>,
    pub positions: Vec<i32>,
    pub slot_mapping: Vec<i64>,
    pub cu_seqlens: Vec<i32>,
    pub context_lens: Vec<i32>,
    pub block_tables: Vec<i32>,
    pub max_blocks: usize,
    pub logit_rows: Vec<i32>,
    pub image_index: Vec<i32>,
}

impl OwnedBatch {
    /// The chunks one after the other; logits are wanted of every row. Tables end in pages that don't exist.
    pub fn new(chunks: &[Chunk<'_>]) -> Self {
        let max_blocks = 1 + chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(0);
        let mut batch = Self { cu_seqlens: vec![0], max_blocks, ..Self::default() };
        let mut by_axis = [const { Vec::new() }; 3];
        for Chunk { prompt, rows, blocks } in chunks {
            batch.input_ids.extend_from_slice(&prompt.input_ids[rows.clone()]);
            batch.image_index.extend_from_slice(&prompt.image_index[rows.clone()]);
            for (axis, values) in by_axis.iter_mut().enumerate() {
                values.extend(prompt.positions[rows.clone()].iter().map(|p| p[axis]));
            }
            let slot = |i: usize| i64::from(blocks[i / PAGE]) * PAGE as i64 + (i % PAGE) as i64;
            batch.slot_mapping.extend(rows.clone().map(slot));
            batch.cu_seqlens.push(batch.input_ids.len() as i32);
            batch.context_lens.push(rows.end as i32);
            batch.block_tables.extend_from_slice(blocks);
            batch.block_tables.resize(batch.context_lens.len() * max_blocks, -1);
        }
        batch.positions = by_axis.concat();
        batch.logit_rows = (0..batch.input_ids.len() as i32).collect();
        batch
    }

    pub fn text(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.input_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            cu_seqlens: &self.cu_seqlens,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            max_blocks: self.max_blocks,
            logit_rows: &self.logit_rows,
            image: None,
        }
    }

    pub fn with_images<'a>(&'a self, embeds: View<'a>, deepstack: &'a [View<'a>]) -> Batch<'a> {
        Batch { image: Some(ImageRows { embeds, deepstack, index: &self.image_index }), ..self.text() }
    }
}

/// Picture rows of random content: embeddings and deepstack levels, each `[r, hidden]`.
#[derive(Clone, Debug)]
pub struct Pictures {
    pub embeds: Vec<f32>,
    pub deepstack: Vec<Vec<f32>>,
    pub num_rows: usize,
}

impl Pictures {
    pub fn new(num_rows: usize, hidden: usize, num_levels: usize) -> Self {
        let rows = |seed: u64| noise(seed, num_rows * hidden);
        Self { embeds: rows(1), deepstack: (0..num_levels as u64).map(|l| rows(2 + l)).collect(), num_rows }
    }

    /// Runs `with` on views of the rows.
    pub fn views<R>(&self, with: impl FnOnce(View<'_>, &[View<'_>]) -> R) -> R {
        let dims = [self.num_rows, self.embeds.len() / self.num_rows];
        let view = |rows| View::from_slice::<f32>(rows, &dims).unwrap();
        let levels: Vec<_> = self.deepstack.iter().map(|rows| view(rows)).collect();
        with(view(&self.embeds), &levels)
    }
}

/// Numbers in [-1, 1) that are the same every time (Knuth's multiplicative generator).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
