//! Comparing an installation with a reference file.

use foveal_checkpoint::{ModelFolder, prefix};
use foveal_device::{DType, Device, Readback, Tensor};
use foveal_engine::{EngineBuilder, EngineError};
use foveal_llm::{Batch, BatchLimits, Decoder, ImageRows, KvCache, KvLayout, LlmError, Workspace};
use foveal_processor::{ChatRequest, ContentPart, Message, Processor, Role};
use foveal_types::{HeapPixels, PreparedRequest, SamplingParams};
use foveal_vision::{Patches, VisionError, VisionInput, VisionOutput, VisionTower};
use serde::Serialize;

use crate::parts::Parts;
use crate::{LoadFormat, ModelOptions, Picture, Reference, ReferenceCase, RuntimeError};

/// How many times the reference's own bfloat16 error ours may be, over all prompts together.
pub const MAX_NOISE_RATIO: f64 = 1.5;
/// How many times that of all prompts together one prompt's error may be: a single row of logits varies far more than many.
pub const MAX_CASE_NOISE_RATIO: f64 = 4.0;

/// Two sets of logits: ours, and the reference's own in bfloat16, both against its float32.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LogitError {
    /// `‖ours - reference‖ / ‖reference‖`
    pub error: f64,
    /// The reference's own in bfloat16.
    pub bf16_error: f64,
    /// `‖reference‖²`, by which prompts are weighed.
    #[serde(skip)]
    size: f64,
}

impl LogitError {
    /// Of all prompts together.
    fn pooled(each: impl Iterator<Item = Self> + Clone) -> Self {
        let size: f64 = each.clone().map(|e| e.size).sum();
        let root = |sum: f64| (sum / size.max(f64::MIN_POSITIVE)).sqrt();
        Self {
            error: root(each.clone().map(|e| e.error.powi(2) * e.size).sum()),
            bf16_error: root(each.map(|e| e.bf16_error.powi(2) * e.size).sum()),
            size,
        }
    }

    /// Our error as a multiple of the reference's.
    #[must_use]
    pub fn noise_ratio(&self) -> f64 {
        self.error / self.bf16_error.max(f64::MIN_POSITIVE)
    }
}

/// How one prompt compares.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The reference's name of it.
    pub name: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Whether the prompt was tokenised and its placeholders expanded as the reference did.
    pub same_prompt: bool,
    /// The logits behind the prompt.
    pub logits: LogitError,
    /// Those of all forced steps.
    pub forced: LogitError,
    /// Steps whose likeliest token is the reference's.
    pub same_best: usize,
    /// Steps whose likeliest token differs though the reference prefers its own by more than its bfloat16 noise.
    pub wrong_best: usize,
    /// All steps: behind the prompt and behind each forced token.
    pub steps: usize,
    /// The reference's own bfloat16 error over all prompts and steps.
    pub noise: f64,
}

impl CaseReport {
    /// Whether the prompt is the same and nothing is off by more than a single prompt's noise.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let within = |error: &LogitError| error.error <= MAX_CASE_NOISE_RATIO * self.noise;
        self.same_prompt && within(&self.logits) && within(&self.forced) && self.wrong_best == 0
    }
}

/// How all prompts compare.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Each prompt.
    pub cases: Vec<CaseReport>,
    /// The logits behind all prompts.
    pub logits: LogitError,
    /// Those of all forced steps.
    pub forced: LogitError,
}

impl VerifyReport {
    fn new(cases: Vec<CaseReport>) -> Self {
        let logits = LogitError::pooled(cases.iter().map(|case| case.logits));
        let forced = LogitError::pooled(cases.iter().map(|case| case.forced));
        Self { cases, logits, forced }
    }

    /// Whether every prompt is good and the errors over all of them are no more than the reference's own noise.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let within = |error: &LogitError| error.noise_ratio() <= MAX_NOISE_RATIO;
        within(&self.logits) && within(&self.forced) && self.cases.iter().all(CaseReport::is_good)
    }
}

/// Compares a model folder's answers with a reference file, prompt by prompt; `on_case` is told of each.
///
/// # Errors
/// As [`crate::Model::load`], and [`RuntimeError::Request`] for a prompt that can't be prepared,
/// [`RuntimeError::WrongReference`] for a reference about other weights.
pub fn verify(
    folder: &ModelFolder,
    options: &ModelOptions,
    reference: &Reference,
    on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    mut on_case: impl FnMut(&CaseReport),
) -> Result<VerifyReport, RuntimeError> {
    let load_format = match (options.load_format, reference.dummy_seed) {
        (LoadFormat::Auto, None) => LoadFormat::Auto,
        // Whose dummy weights the reference is about, it says itself.
        (LoadFormat::Dummy { .. }, Some(seed)) => LoadFormat::Dummy { seed },
        (LoadFormat::Auto, Some(_)) => return Err(RuntimeError::WrongReference { about: "dummy weights" }),
        (LoadFormat::Dummy { .. }, None) => {
            return Err(RuntimeError::WrongReference { about: "a model's own weights" });
        }
    };
    let options = &ModelOptions { load_format, ..options.clone() };
    let noise = noise(reference);
    let verifier = Verifier::open(folder, options, on_progress)?;
    let mut reports = Vec::with_capacity(reference.cases.len());
    for case in &reference.cases {
        let report = verifier.case(case, noise)?;
        on_case(&report);
        reports.push(report);
    }
    Ok(VerifyReport::new(reports))
}

/// A model's parts, driven by hand: the engine gives tokens, not logits.
struct Verifier {
    device: Device,
    processor: Processor,
    tower: VisionTower,
    decoder: Decoder,
    kv_cache_dtype: DType,
}

/// What the tower gave for a prompt's pictures.
struct Features {
    embeds: Tensor,
    deepstack: Vec<Tensor>,
}

/// One sequence on its way through the decoder.
struct Run<'v> {
    verifier: &'v Verifier,
    cache: KvCache,
    workspace: Workspace,
    readback: Readback,
    block_table: Vec<i32>,
}

impl Verifier {
    fn open(
        folder: &ModelFolder,
        options: &ModelOptions,
        on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Self, RuntimeError> {
        let Parts { device, config, max_model_len, processor, normalisation, weights, .. } =
            Parts::open(folder, options, on_progress)?;
        // Before the weights: they are to go through it.
        let _pool = foveal_pinned::install(&device, EngineBuilder::DEFAULT_PINNED_BYTES);
        let decoder = Decoder::load_quantized(&config, &weights, &device, max_model_len, options.quantization);
        let decoder = decoder.map_err(EngineError::from)?;
        let kv_cache_dtype = options.kv_cache_dtype.unwrap_or(device.activation_dtype());
        let tower = VisionTower::load(&config.vision, normalisation, &weights, &device).map_err(EngineError::from)?;
        weights.finish(&[prefix::ALL])?;
        Ok(Self { device, processor, tower, decoder, kv_cache_dtype })
    }

    fn case(&self, case: &ReferenceCase, noise: f64) -> Result<CaseReport, RuntimeError> {
        let request = self.prepare(case)?;
        let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
        let logits = self.logits(&request, &case.forced_ids).map_err(EngineError::from)?;
        Ok(compare(case, ids == case.prompt_ids, &logits, noise))
    }

    fn prepare(&self, case: &ReferenceCase) -> Result<PreparedRequest, RuntimeError> {
        let mut parts = Vec::with_capacity(case.images.len() + 1);
        for (i, bytes) in case.images.iter().enumerate() {
            let picture = Picture::from_bytes(bytes.clone(), &format!("{}.image.{i}", case.name))?;
            parts.push(ContentPart::Image(picture.input()));
        }
        parts.push(ContentPart::Text(case.text.clone()));
        let chat = ChatRequest::new(vec![Message::parts(Role::User, parts)]);
        let prepared = self.processor.prepare(&chat, SamplingParams::default(), &HeapPixels);
        Ok(prepared.map_err(foveal_types::Error::from)?)
    }

    /// All pictures of a prompt in one batch.
    fn encode(&self, request: &PreparedRequest) -> Result<Option<Features>, VisionError> {
        let inputs: Vec<VisionInput<'_>> = request
            .images
            .iter()
            .map(|image| {
                let patches = if image.temporal_slices == 1 { Patches::Still } else { Patches::Video };
                VisionInput { grid: image.grid_thw.into(), patches: patches(image.pixels.bytes()) }
            })
            .collect();
        if inputs.is_empty() {
            return Ok(None);
        }
        let rows: usize = inputs.iter().map(|input| self.tower.num_tokens(input.grid)).sum();
        let dims = [rows, self.tower.out_hidden_size()];
        let tensor = || Tensor::zeros(&self.device, self.device.activation_dtype(), &dims);
        let mut embeds = tensor()?;
        let mut deepstack = (0..self.tower.num_deepstack()).map(|_| tensor()).collect::<Result<Vec<_>, _>>()?;
        let mut workspace = self.tower.new_workspace(inputs.iter().map(|input| input.grid.num_patches()).sum())?;
        let levels = deepstack.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
        let out = VisionOutput { embeds: embeds.view_mut()?, deepstack: levels };
        self.tower.encode(self.device.stream(), &inputs, &mut workspace, out)?;
        Ok(Some(Features { embeds, deepstack }))
    }

    /// Logits behind the prompt and behind each forced token, fed one by one.
    fn logits(&self, request: &PreparedRequest, forced: &[u32]) -> Result<Vec<Vec<f32>>, VerifyError> {
        let features = self.encode(request)?;
        let n = request.input_ids.len();
        let num_blocks = (n + forced.len()).div_ceil(KvLayout::DEFAULT_PAGE);
        let limits = BatchLimits { max_tokens: n, max_seqs: 1, max_logit_rows: 1 };
        let vocab_bytes = self.decoder.settings().vocab_size * size_of::<f32>();
        let mut run = Run {
            verifier: self,
            cache: self.decoder.new_kv_cache(num_blocks, self.kv_cache_dtype)?,
            workspace: self.decoder.new_workspace(limits)?,
            readback: Readback::new(&self.device, vocab_bytes)?,
            block_table: (0..num_blocks).map(|block| i32::try_from(block).unwrap_or(-1)).collect(),
        };
        let ids: Vec<i32> = request.input_ids.iter().map(|id| id.0.cast_signed()).collect();
        let index = image_index(request);
        let mut logits = vec![run.step(0, &ids, &request.positions, &index, features.as_ref())?];
        for (i, &token) in forced.iter().enumerate() {
            let position = i32::try_from(n + i).unwrap_or(i32::MAX).saturating_add(request.rope_delta);
            logits.push(run.step(n + i, &[token.cast_signed()], &[position; 3], &[], None)?);
        }
        Ok(logits)
    }
}

/// Which embedding each row of a prompt takes.
fn image_index(request: &PreparedRequest) -> Vec<i32> {
    let mut index = vec![-1; request.input_ids.len()];
    for (embed, row) in request.image_token_ranges.iter().cloned().flatten().enumerate() {
        if let Some(place) = index.get_mut(row) {
            *place = i32::try_from(embed).unwrap_or(-1);
        }
    }
    index
}

impl Run<'_> {
    /// Runs rows from `start` on and gives the last one's logits.
    fn step(
        &mut self,
        start: usize,
        ids: &[i32],
        positions: &[i32],
        index: &[i32],
        features: Option<&Features>,
    ) -> Result<Vec<f32>, VerifyError> {
        let end = start + ids.len();
        // Pages lie in order, so a token's slot is its place.
        let slots: Vec<i64> = (start..end).map(|row| i64::try_from(row).unwrap_or(-1)).collect();
        let deepstack: Vec<_> = features.iter().flat_map(|f| &f.deepstack).map(Tensor::view).collect();
        let image = features.map(|f| ImageRows { embeds: f.embeds.view(), deepstack: &deepstack, index });
        let n = i32::try_from(ids.len()).unwrap_or(-1);
        let batch = Batch {
            input_ids: ids,
            positions,
            slot_mapping: &slots,
            cu_seqlens: &[0, n],
            context_lens: &[i32::try_from(end).unwrap_or(-1)],
            block_tables: &self.block_table,
            max_blocks: self.block_table.len(),
            logit_rows: &[n - 1],
            image,
        };
        let stream = self.verifier.device.stream();
        let logits = self.verifier.decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace)?;
        Ok(self.readback.read(stream, &[logits])?.slice::<f32>(0)?.to_vec())
    }
}

/// What can go wrong while a prompt runs.
enum VerifyError {
    Llm(LlmError),
    Vision(VisionError),
}

impl From<LlmError> for VerifyError {
    fn from(error: LlmError) -> Self {
        Self::Llm(error)
    }
}

impl From<VisionError> for VerifyError {
    fn from(error: VisionError) -> Self {
        Self::Vision(error)
    }
}

impl From<foveal_device::DeviceError> for VerifyError {
    fn from(error: foveal_device::DeviceError) -> Self {
        Self::Llm(error.into())
    }
}

impl From<VerifyError> for EngineError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Llm(error) => error.into(),
            VerifyError::Vision(error) => error.into(),
        }
    }
}

/// The error of rows of logits against the reference's.
fn logit_error<'a>(rows: impl Iterator<Item = (&'a [f32], &'a [f32])>, bf16_error: f64) -> LogitError {
    let (mut difference, mut size) = (0.0_f64, 0.0_f64);
    for (got, expected) in rows {
        for (got, expected) in got.iter().zip(expected) {
            let (got, expected) = (f64::from(*got), f64::from(*expected));
            difference += (got - expected).powi(2);
            size += expected.powi(2);
        }
        // Logits of another vocabulary are no small error.
        if got.len() != expected.len() {
            difference = f64::INFINITY;
        }
    }
    LogitError { error: (difference / size.max(f64::MIN_POSITIVE)).sqrt(), bf16_error, size }
}

/// Where the largest value stands.
fn best(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if row.get(best).is_none_or(|largest| value > largest) {
            best = i;
        }
    }
    best
}

/// The reference's own bfloat16 error over all of its prompts and steps.
fn noise(reference: &Reference) -> f64 {
    let each = reference.cases.iter().flat_map(|case| {
        let rows = || case.logits.iter().map(|row| (&row[..], &row[..]));
        [logit_error(rows().take(1), case.bf16_error), logit_error(rows().skip(1), case.bf16_forced_error)]
    });
    LogitError::pooled(each).bf16_error
}

fn compare(case: &ReferenceCase, same_prompt: bool, logits: &[Vec<f32>], noise: f64) -> CaseReport {
    let pairs = || logits.iter().map(Vec::as_slice).zip(case.logits.iter().map(Vec::as_slice));
    let (mut same_best, mut wrong_best) = (0, 0);
    for (got, expected) in pairs() {
        let (ours, theirs) = (best(got), best(expected));
        if ours == theirs {
            same_best += 1;
            continue;
        }
        let at = |i: usize| expected.get(i).copied().unwrap_or(f32::NAN);
        // Two logits that are off by no more than the reference's own noise change places only if they are this close.
        let gap = f64::from(at(theirs) - at(ours));
        wrong_best += usize::from(gap.is_nan() || gap > 2.0 * case.bf16_max_error);
    }
    CaseReport {
        name: case.name.clone(),
        prompt_tokens: case.prompt_ids.len(),
        same_prompt,
        logits: logit_error(pairs().take(1), case.bf16_error),
        forced: logit_error(pairs().skip(1), case.bf16_forced_error),
        same_best,
        wrong_best,
        steps: logits.len(),
        noise,
    }
}
