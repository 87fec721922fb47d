//! A whole model of full size with dummy weights: decode steps, prompts, pictures, and loading.

use std::path::Path;
use std::time::Instant;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::{Tensor, counters};
use foveal_llm::{
    Batch, BatchLimits, Decoder, GenerationDefaults, KvCache, KvLayout, LlmError, Sampler, SamplerState, StopCriteria,
    Workspace,
};
use foveal_mrope::GridThw;
use foveal_types::SamplingParams;
use foveal_vision::{Normalisation, Patches, VisionInput, VisionOutput, VisionTower};

use super::Bench;
use super::measure::Bound;

/// Tokens that a sequence has before the steps that are timed.
const CONTEXT: usize = 1300;
/// Seed of the dummy weights.
const SEED: u64 = 1;

/// A decoder with memory for some sequences, and the integers of a step.
struct Session {
    decoder: Decoder,
    cache: KvCache,
    workspace: Workspace,
    sampler: Sampler,
    max_blocks: usize,
}

/// A step's integers; see [`Batch`].
struct Step {
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
    /// `rows` tokens of each of `num_seqs` sequences, which then have `context` tokens.
    fn new(num_seqs: usize, rows: usize, context: usize, max_blocks: usize) -> Self {
        let int = |n: usize| n as i32;
        let tokens = || (0..num_seqs).flat_map(move |s| (context - rows..context).map(move |t| (s, t)));
        let slot = |(s, t): (usize, usize)| (s * max_blocks * KvLayout::DEFAULT_PAGE + t) as i64;
        Self {
            input_ids: tokens().map(|(s, t)| int((s * 31 + t * 7) % 90_000)).collect(),
            positions: (0..3).flat_map(|_| tokens().map(|(_, t)| int(t))).collect(),
            slot_mapping: tokens().map(slot).collect(),
            cu_seqlens: (0..=num_seqs).map(|s| int(s * rows)).collect(),
            context_lens: vec![int(context); num_seqs],
            block_tables: (0..int(num_seqs * max_blocks)).collect(),
            logit_rows: (1..=num_seqs).map(|s| int(s * rows) - 1).collect(),
            max_blocks,
        }
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

impl Session {
    fn open(bench: &Bench, config: &ModelConfig, num_seqs: usize, max_tokens: usize) -> anyhow::Result<Self> {
        let device = &bench.device;
        let weights = WeightSource::dummy(config, SEED)?;
        let decoder = Decoder::load(config, &weights, device, 8192)?;
        let max_blocks = (CONTEXT + 256).div_ceil(KvLayout::DEFAULT_PAGE);
        let cache = decoder.new_kv_cache(num_seqs * max_blocks, device.activation_dtype())?;
        let limits = BatchLimits { max_tokens, max_seqs: num_seqs, max_logit_rows: num_seqs };
        let mut workspace = decoder.new_workspace(limits)?;
        decoder.tune(device.stream(), &mut workspace)?;
        let sampler = Sampler::new(device, num_seqs, config.text.vocab_size)?;
        Ok(Self { decoder, cache, workspace, sampler, max_blocks })
    }

    fn forward(&mut self, bench: &Bench, step: &Step) -> Result<(), LlmError> {
        let stream = bench.device.stream();
        self.decoder.forward(stream, &step.batch(), &mut self.cache, &mut self.workspace).map(|_| ())
    }

    /// One token for each sequence.
    fn token(&mut self, bench: &Bench, step: &Step, states: &mut [SamplerState]) -> anyhow::Result<()> {
        let stream = bench.device.stream();
        let logits = self.decoder.forward(stream, &step.batch(), &mut self.cache, &mut self.workspace)?;
        let mut states: Vec<&mut SamplerState> = states.iter_mut().collect();
        self.sampler.sample(stream, logits, &mut states)?.into_iter().try_for_each(|token| token.map(|_| ()))?;
        Ok(())
    }
}

fn config(model: &Path) -> anyhow::Result<ModelConfig> {
    Ok(ModelConfig::load(&ModelFolder::open(model)?)?)
}

/// Weights of the decoder that a step reads, the embedding table apart.
fn step_bytes(config: &ModelConfig, num_seqs: usize) -> f64 {
    let text = &config.text;
    let qkv = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim;
    let layer = text.hidden_size * (qkv + text.num_attention_heads * text.head_dim + 3 * text.intermediate_size);
    let weights = text.num_hidden_layers * layer + text.vocab_size * text.hidden_size;
    let kv = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * CONTEXT * num_seqs;
    2.0 * (weights + kv) as f64
}

/// Decode steps of a model of this configuration, dummy weights, at 1, 32 and 128 sequences.
///
/// # Errors
/// Of the device, or of the model.
pub fn decode(bench: &mut Bench, model: &Path) -> anyhow::Result<()> {
    const STEPS: usize = 64;
    let config = config(model)?;
    for num_seqs in [1, 32, 128] {
        let start = Instant::now();
        let mut session = Session::open(bench, &config, num_seqs, num_seqs.max(128))?;
        let opened = start.elapsed();
        let bound = Bound::Bytes(step_bytes(&config, num_seqs));
        let stop = StopCriteria::new(&SamplingParams::default(), &GenerationDefaults::default(), 0, 1 << 20);
        let state = |_| SamplerState::new(&SamplingParams::default(), &[], &stop).map_err(|e| anyhow::anyhow!("{e}"));
        let mut states = (0..num_seqs).map(state).collect::<anyhow::Result<Vec<_>>>()?;
        let steps: Vec<Step> = (0..STEPS).map(|i| Step::new(num_seqs, 1, CONTEXT + i, session.max_blocks)).collect();
        for step in &steps[..8] {
            session.token(bench, step, &mut states)?;
        }
        let (before, start) = (counters(), Instant::now());
        for step in &steps {
            session.token(bench, step, &mut states)?;
        }
        let us = start.elapsed().as_secs_f32() * 1e6 / STEPS as f32;
        let after = counters();
        bench.report(&format!("decode step, {num_seqs} sequences, with sampling, eager"), us, bound)?;
        println!(
            "  {} tokens: {} allocations, {} synchronises, {} pageable copies, {} event waits, {} launches a step; opened in \
             {:.1} s",
            STEPS * num_seqs,
            after.allocations - before.allocations,
            after.synchronises - before.synchronises,
            after.pageable_copies - before.pageable_copies,
            after.event_waits - before.event_waits,
            (after.launches - before.launches) / STEPS as u64,
            opened.as_secs_f32(),
        );
        // How long the host takes to give a step to the GPU, without waiting for it. Only two: the driver has the host
        // wait once a thousand launches are under way.
        let start = Instant::now();
        for step in &steps[..2] {
            session.forward(bench, step)?;
        }
        println!("  host: {:.0} us a step", start.elapsed().as_secs_f32() * 1e6 / 2.0);
        bench.device.stream().synchronize()?;
    }
    Ok(())
}

/// A prompt of 1280 tokens, and pictures of 512x512, with dummy weights.
///
/// # Errors
/// Of the device, or of the model.
pub fn prefill(bench: &mut Bench, model: &Path) -> anyhow::Result<()> {
    let config = config(model)?;
    let tokens = 1280;
    let mut session = Session::open(bench, &config, 1, 2048)?;
    let step = Step::new(1, tokens, tokens, session.max_blocks);
    let text = &config.text;
    let qkv = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim;
    let layer = text.hidden_size * (qkv + text.num_attention_heads * text.head_dim + 3 * text.intermediate_size);
    let attention = 2.0 * (tokens * tokens * text.num_attention_heads * text.head_dim) as f64;
    let flops = text.num_hidden_layers as f64 * (2.0 * (tokens * layer) as f64 + attention);
    let us = timed(bench, || Ok(session.forward(bench, &step)?))?;
    bench.report(&format!("prefill {tokens} tokens"), us, Bound::Flops(flops))?;
    drop(session);

    let weights = WeightSource::dummy(&config, SEED)?;
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    let tower = VisionTower::load(&config.vision, normalisation, &weights, &bench.device)?;
    let side = 512 / config.vision.patch_size;
    let grid = GridThw { t: 1, h: side as u32, w: side as u32 };
    let patch_bytes = config.vision.patch_len() / config.vision.temporal_patch_size;
    let pixels: Vec<u8> = (0..grid.num_patches() * patch_bytes).map(|i| (i * 37 % 251) as u8).collect();
    for count in [1, 8] {
        let inputs = vec![VisionInput { grid, patches: Patches::Still(&pixels) }; count];
        let mut workspace = tower.new_workspace(count * grid.num_patches())?;
        let dims = [count * tower.num_tokens(grid), tower.out_hidden_size()];
        let tensor = || Tensor::zeros(&bench.device, bench.device.activation_dtype(), &dims);
        let mut embeds = tensor()?;
        let mut deepstack = (0..tower.num_deepstack()).map(|_| tensor()).collect::<Result<Vec<_>, _>>()?;
        let vision = &config.vision;
        let n = count * grid.num_patches();
        let block = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size);
        let attention = 4.0 * (count * grid.num_patches().pow(2) * vision.hidden_size) as f64;
        let flops = vision.depth as f64 * (2.0 * (n * block) as f64 + attention);
        let us = timed(bench, || {
            let levels = deepstack.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
            let out = VisionOutput { embeds: embeds.view_mut()?, deepstack: levels };
            Ok(tower.encode(bench.device.stream(), &inputs, &mut workspace, out)?)
        })?;
        bench.report(&format!("vision tower, {count} pictures of 512 x 512"), us, Bound::Flops(flops))?;
    }
    Ok(())
}

/// Microseconds of one of several runs, host included, after two to warm up.
fn timed(bench: &Bench, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f32> {
    const RUNS: usize = 8;
    for _ in 0..2 {
        work()?;
    }
    bench.device.stream().synchronize()?;
    let start = Instant::now();
    for _ in 0..RUNS {
        work()?;
    }
    bench.device.stream().synchronize()?;
    Ok(start.elapsed().as_secs_f32() * 1e6 / RUNS as f32)
}

/// How quickly a checkpoint comes from its files to the GPU.
///
/// # Errors
/// Of the device, or of the checkpoint.
pub fn load(bench: &mut Bench, folder: &Path) -> anyhow::Result<()> {
    let folder = ModelFolder::open(folder)?;
    let config = ModelConfig::load(&folder)?;
    for round in ["first", "second"] {
        let weights = WeightSource::open(&folder)?;
        let start = Instant::now();
        let decoder = Decoder::load(&config, &weights, &bench.device, 1024)?;
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
        let tower = VisionTower::load(&config.vision, normalisation, &weights, &bench.device)?;
        bench.device.stream().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        let gb = weights.total_bytes() as f64 / 1e9;
        println!("load, {round} time: {gb:.1} GB in {seconds:.2} s, {:.1} GB/s", gb / seconds);
        drop((decoder, tower));
    }
    Ok(())
}
