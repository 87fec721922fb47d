//! A decoder of full size with dummy weights, and steps for it.

use std::ops::Range;
use std::path::Path;

use anyhow::anyhow;
use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device, Stream, View};
use foveal_llm::{
    Batch, BatchLimits, Decoder, ImageRows, KvCache, KvLayout, Quantization, Sampler, SamplerState, Workspace,
    parse_kv_cache_dtype,
};

use super::ceilings::Cost;
use super::shapes::BF16;

/// Seed of the dummy weights.
pub(crate) const SEED: u64 = 1;
/// The longest sequence.
const MAX_MODEL_LEN: usize = 8192;

/// Ids that are text in a large vocabulary; special tokens stand at its end.
const MAX_IDS: usize = 90_000;

/// The configuration in a model folder.
pub(crate) fn config(model: &Path) -> anyhow::Result<ModelConfig> {
    Ok(ModelConfig::load(&ModelFolder::open(model)?)?)
}

/// A step's integers; see [`Batch`].
pub(crate) struct Step {
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    slot_mapping: Vec<i64>,
    cu_seqlens: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: Vec<i32>,
    logit_rows: Vec<i32>,
    max_blocks: usize,
}

impl Step {
    fn new(seqs: Range<usize>, tokens: Range<usize>, max_blocks: usize, num_ids: usize) -> Self {
        let int = |n: usize| n as i32;
        let (num_seqs, rows) = (seqs.len(), tokens.len());
        let all = || seqs.clone().flat_map(|s| tokens.clone().map(move |t| (s, t)));
        let slot = |(s, t): (usize, usize)| (s * max_blocks * KvLayout::DEFAULT_PAGE + t) as i64;
        Self {
            input_ids: all().map(|(s, t)| int((s * 31 + t * 7919) % num_ids)).collect(),
            positions: (0..3).flat_map(|_| all().map(|(_, t)| int(t))).collect(),
            slot_mapping: all().map(slot).collect(),
            cu_seqlens: (0..=num_seqs).map(|s| int(s * rows)).collect(),
            context_lens: vec![int(tokens.end); num_seqs],
            block_tables: (int(seqs.start * max_blocks)..int(seqs.end * max_blocks)).collect(),
            logit_rows: (1..=num_seqs).map(|s| int(s * rows) - 1).collect(),
            max_blocks,
        }
    }

    /// Has logits made of another row.
    pub(crate) fn with_logits_of(mut self, row: usize) -> Self {
        self.logit_rows = vec![row as i32];
        self
    }

    fn batch(&self) -> Batch<'_> {
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
}

/// In which form a model runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelForm {
    pub(crate) quantization: Quantization,
    pub(crate) kv_cache_dtype: Option<DType>,
}

impl ModelForm {
    /// By the words of the command line.
    ///
    /// # Errors
    /// For words that are not known.
    pub fn parse(quantization: Option<&str>, kv_cache_dtype: &str) -> anyhow::Result<Self> {
        let quantization = quantization.map_or(Ok(Quantization::AsStored), str::parse);
        Ok(Self {
            quantization: quantization.map_err(|error| anyhow!("--quantization: {error}"))?,
            kv_cache_dtype: parse_kv_cache_dtype(kv_cache_dtype)
                .map_err(|error| anyhow!("--kv-cache-dtype: {error}"))?,
        })
    }

    /// What is added to an operation's name.
    pub(super) fn suffix(self) -> String {
        let weights = if self.quantization == Quantization::Fp8 { " fp8" } else { "" };
        let cache = if self.kv_cache_dtype == Some(DType::F8E4M3) { " kv-fp8" } else { "" };
        format!("{weights}{cache}")
    }

    /// Bytes of a layer's weight and of an element of the cache.
    fn element_bytes(self) -> [usize; 2] {
        let weight = if self.quantization == Quantization::Fp8 { 1 } else { BF16 };
        [weight, self.kv_cache_dtype.map_or(BF16, DType::size_bytes)]
    }
}

/// A decoder with memory for some sequences.
pub(crate) struct Session {
    stream: Stream,
    decoder: Decoder,
    cache: KvCache,
    workspace: Workspace,
    sampler: Sampler,
    max_blocks: usize,
    num_ids: usize,
}

impl Session {
    /// For steps of up to `max_tokens`, of `num_seqs` sequences of up to `max_len` tokens.
    pub(crate) fn open(
        device: &Device,
        config: &ModelConfig,
        form: ModelForm,
        (num_seqs, max_len): (usize, usize),
        max_tokens: usize,
    ) -> anyhow::Result<Self> {
        let weights = WeightSource::dummy(config, SEED)?;
        let decoder = Decoder::load_quantized(config, &weights, device, MAX_MODEL_LEN, form.quantization)?;
        let max_blocks = max_len.div_ceil(KvLayout::DEFAULT_PAGE);
        let cache =
            decoder.new_kv_cache(num_seqs * max_blocks, form.kv_cache_dtype.unwrap_or(device.activation_dtype()))?;
        let mut workspace =
            decoder.new_workspace(BatchLimits { max_tokens, max_seqs: num_seqs, max_logit_rows: num_seqs })?;
        decoder.tune(device.stream(), &mut workspace)?;
        let sampler = Sampler::new(device, num_seqs, config.text.vocab_size)?;
        let num_ids = config.text.vocab_size.min(MAX_IDS);
        Ok(Self { stream: device.stream().clone(), decoder, cache, workspace, sampler, max_blocks, num_ids })
    }

    /// The same tokens, by position, of each of `seqs`, whose last rows give logits.
    pub(crate) fn step(&self, seqs: Range<usize>, tokens: Range<usize>) -> Step {
        Step::new(seqs, tokens, self.max_blocks, self.num_ids)
    }

    /// Fills the caches of the first sequences with `len` tokens, so that no attention reads zeros.
    pub(crate) fn fill(&mut self, num_seqs: usize, len: usize) -> anyhow::Result<()> {
        let limits = BatchLimits { max_tokens: len, max_seqs: 1, max_logit_rows: 1 };
        let mut workspace = self.decoder.new_workspace(limits)?;
        for seq in 0..num_seqs {
            let step = self.step(seq..seq + 1, 0..len);
            self.decoder.forward(&self.stream, &step.batch(), &mut self.cache, &mut workspace)?;
        }
        Ok(self.stream.synchronize()?)
    }

    /// A step without sampling.
    pub(super) fn forward(&mut self, step: &Step) -> anyhow::Result<()> {
        self.logits(step, None).map(|_| ())
    }

    /// The logits of a step, of which some rows may be those of pictures: `[num_logit_rows, vocab_size]` f32.
    pub(crate) fn logits(&mut self, step: &Step, image: Option<ImageRows<'_>>) -> anyhow::Result<View<'_>> {
        let batch = Batch { image, ..step.batch() };
        Ok(self.decoder.forward(&self.stream, &batch, &mut self.cache, &mut self.workspace)?)
    }

    /// A step, and a token for each of its sequences.
    pub(super) fn sample(&mut self, step: &Step, states: &mut [&mut SamplerState]) -> anyhow::Result<()> {
        let logits = self.decoder.forward(&self.stream, &step.batch(), &mut self.cache, &mut self.workspace)?;
        for token in self.sampler.sample(&self.stream, logits, states)? {
            token?;
        }
        Ok(())
    }
}

/// What a step of `rows` tokens of each of `num_seqs` sequences must do, which then have `context` tokens: the embedding
/// table apart, weights are read once, and logits made of each sequence's last row.
pub(super) fn step_cost(config: &ModelConfig, form: ModelForm, num_seqs: usize, rows: usize, context: usize) -> Cost {
    let [weight_bytes, kv_bytes] = form.element_bytes();
    let text = &config.text;
    let (heads, kv_heads) = (text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim);
    let layer = text.hidden_size * (2 * heads + 2 * kv_heads + 3 * text.intermediate_size);
    let lm_head = text.vocab_size * text.hidden_size;
    let weights = text.num_hidden_layers * layer * weight_bytes + lm_head * BF16;
    let kv = 2 * text.num_hidden_layers * kv_heads * context * num_seqs;
    let seen = num_seqs as f64 * ((rows * context) as f64 - (rows * (rows - 1)) as f64 / 2.0);
    let products = 2.0 * (text.num_hidden_layers * num_seqs * rows) as f64 * layer as f64;
    let attention = 4.0 * text.num_hidden_layers as f64 * seen * heads as f64;
    let flops = products + attention + 2.0 * (num_seqs * lm_head) as f64;
    Cost { bytes: (weights + kv * kv_bytes) as f64, flops }
}
