//! The reference answers about one checkpoint, checked case by case.

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::View;
use foveal_llm::{GenerationDefaults, Sampler, SamplerState, StopCriteria};
use foveal_testkit::{Golden, GoldenCase, assert_close};
use foveal_types::{SamplingParams, TokenId};

use super::{Chunk, Model, OwnedBatch, PAGE, Prompt, Sizes};

/// How far a logit may be from the reference's.
const LOGIT_TOLERANCE: f32 = 5e-3;
/// How far a log-probability may be.
const LOGPROB_TOLERANCE: f32 = 1e-2;
/// Two best logits nearer than this may change places.
const TIE: f32 = 1e-2;

/// The checkpoint that the answers are about.
pub fn model_of(golden: &Golden, family: &str) -> Model {
    let folder = ModelFolder::open(golden.model_dir()).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    let weights = if family == "tiny" {
        WeightSource::open(&folder).unwrap()
    } else {
        let manifest = folder.file("manifest.json").unwrap().unwrap();
        WeightSource::rebuilt(&manifest, &folder.locate("manifest.json")).unwrap()
    };
    Model::new(config, weights, Sizes::default())
}

/// Picture rows of a case: embeddings and deepstack levels, for its placeholders in order.
pub struct CaseImages<'a> {
    pub placeholder: u32,
    pub embeds: View<'a>,
    pub deepstack: &'a [View<'a>],
}

/// Checks the logits of the prompt's last token and after each forced token, and the greedy answer.
pub fn check_case(model: &mut Model, golden: &Golden, case: &GoldenCase, images: Option<&CaseImages<'_>>) {
    let mut run = CaseRun { model, images, prompt: prompt_of(case, images) };
    let first = run.prefill();
    let name = &case.name;
    assert_close(&first, &golden.array(&format!("{name}.logits")).values, LOGIT_TOLERANCE, 0.0);

    let forced = golden.array(&format!("{name}.forced_logits"));
    for (&id, expected) in case.forced_ids.iter().zip(forced.values.chunks_exact(forced.shape[1])) {
        assert_close(&run.decode(id, case.mrope_delta), expected, LOGIT_TOLERANCE, 0.0);
    }
    assert_eq!(case.forced_ids.len(), 12);

    run.prompt = prompt_of(case, images);
    let first = run.prefill();
    check_greedy(&mut run, case, first);
}

/// The greedy tokens, up to a step where the reference's two best are a tie, and each step's log-probability.
fn check_greedy(run: &mut CaseRun<'_>, case: &GoldenCase, mut logits: Vec<f32>) {
    let device = run.model.device.clone();
    let params = SamplingParams { logprobs: Some(5), ..SamplingParams::default() };
    let stop = StopCriteria::new(&params, &GenerationDefaults::default(), 0, usize::MAX);
    let mut state = SamplerState::new(&params, &[], &stop).unwrap();
    let mut sampler = Sampler::new(&device, 1, logits.len()).unwrap();
    for (i, &expected) in case.greedy_ids.iter().enumerate() {
        let view = View::from_slice(&logits, &[1, logits.len()]).unwrap();
        let token = sampler.sample(device.stream(), view, &mut [&mut state]).unwrap().remove(0).unwrap();
        if token.token_id != TokenId(expected) {
            let gap = case.greedy_top2_gaps[i];
            assert!(gap < TIE, "{} step {i}: {:?} instead of {expected}, gap {gap}", case.name, token.token_id);
            return;
        }
        assert_close(&[token.logprob], &case.greedy_top5_logprobs[i][..1], LOGPROB_TOLERANCE, 0.0);
        let top: Vec<_> = token.top.iter().map(|&(_, logprob)| logprob).collect();
        assert_close(&top, &case.greedy_top5_logprobs[i], LOGPROB_TOLERANCE, 0.0);
        logits = run.decode(expected, case.mrope_delta);
    }
}

fn prompt_of(case: &GoldenCase, images: Option<&CaseImages<'_>>) -> Prompt {
    let at = |axis: usize, i: usize| case.mrope_positions[axis][i] as i32;
    let positions = (0..case.prompt_ids.len()).map(|i| [at(0, i), at(1, i), at(2, i)]).collect();
    let mut prompt = Prompt::new(case.prompt_ids.iter().map(|id| id.cast_signed()).collect(), positions);
    if let Some(images) = images {
        let placeholders =
            case.prompt_ids.iter().zip(&mut prompt.image_index).filter(|(id, _)| **id == images.placeholder);
        placeholders.zip(0..).for_each(|((_, index), row)| *index = row);
    }
    prompt
}

/// One sequence on its way through the cache.
struct CaseRun<'a> {
    model: &'a mut Model,
    images: Option<&'a CaseImages<'a>>,
    prompt: Prompt,
}

impl CaseRun<'_> {
    fn step(&mut self, start: usize) -> Vec<f32> {
        let rows = start..self.prompt.len();
        let blocks: Vec<i32> = (0..rows.end.div_ceil(PAGE) as i32).collect();
        let mut batch = OwnedBatch::new(&[Chunk { prompt: &self.prompt, rows: rows.clone(), blocks: &blocks }]);
        batch.logit_rows = vec![rows.len() as i32 - 1];
        match self.images {
            Some(images) => self.model.logits(&batch.with_images(images.embeds, images.deepstack)).unwrap(),
            None => self.model.logits(&batch.text()).unwrap(),
        }
    }

    fn prefill(&mut self) -> Vec<f32> {
        self.step(0)
    }

    /// Feeds one token after all others.
    fn decode(&mut self, id: u32, delta: i64) -> Vec<f32> {
        let start = self.prompt.len();
        self.prompt.push(id, start as i64 + delta);
        self.step(start)
    }
}
