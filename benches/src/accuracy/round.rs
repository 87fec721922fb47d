//! Some questions at a time: answered together, and fed together.

use std::ops::Range;

use anyhow::{Context, ensure};
use foveal_llm::{Sampler, SamplerState, StopCriteria};
use foveal_types::{HeapPixels, PreparedRequest, SamplingParams, TokenId};

use super::model::{Front, LoadedModel};
use super::questions::Question;
use super::rows::Rows;
use super::run::{Features, Run, RunLimits, max_logit_rows};

/// The most tokens of an answer.
pub(super) const MAX_ANSWER_TOKENS: usize = 120;
/// The most questions of a round: sequences that decode together.
pub(super) const MAX_SEQS: usize = 64;
/// Rows of a step of prompts; more only where a single prompt has more.
const MAX_STEP_TOKENS: usize = 4096;

/// Questions whose prompts, pictures and answers are in memory together.
pub(super) struct Round<'m> {
    requests: Vec<PreparedRequest>,
    groups: Vec<Group>,
    run: Run<'m>,
}

/// Prompts that one step takes, with room for their answers.
struct Group {
    seqs: Range<usize>,
    features: Option<Features>,
}

impl<'m> Round<'m> {
    /// Prepares questions and encodes their pictures.
    pub(super) fn open(model: &'m LoadedModel, questions: &[Question]) -> anyhow::Result<Self> {
        let mut requests = Vec::with_capacity(questions.len());
        for question in questions {
            let prepared = model.front()?.processor.prepare(&question.chat()?, greedy(), &HeapPixels);
            requests.push(prepared.with_context(|| format!("{:?}", question.text))?);
        }
        let lens: Vec<usize> = requests.iter().map(|request| request.input_ids.len() + MAX_ANSWER_TOKENS).collect();
        let max_len = lens.iter().copied().max().context("a round has questions")?;
        let most = model.decoder.max_model_len();
        ensure!(max_len <= most, "a prompt and its answer have up to {max_len} tokens, the model takes {most}");
        let max_logit_rows = max_logit_rows(model);
        let max_seqs = max_logit_rows / MAX_ANSWER_TOKENS;
        let groups: Vec<Range<usize>> = split(&lens, MAX_STEP_TOKENS, max_seqs);
        let tokens = |group: &Range<usize>| lens[group.clone()].iter().sum::<usize>();
        let longest = groups.iter().map(ExactSizeIterator::len).max().unwrap_or_default();
        let limits = RunLimits {
            num_seqs: requests.len(),
            max_len,
            max_tokens: groups.iter().map(tokens).max().unwrap_or_default(),
            max_logit_rows: (longest * MAX_ANSWER_TOKENS).max(requests.len()),
        };
        let run = Run::open(model, &limits)?;
        let encode = |seqs: Range<usize>| {
            let features = Features::encode(model, &requests[seqs.clone()])?;
            anyhow::Ok(Group { seqs, features })
        };
        let groups = groups.into_iter().map(encode).collect::<Result<_, _>>()?;
        Ok(Self { requests, groups, run })
    }

    /// The model's own answers: greedy, up to and with the token that ends them.
    pub(super) fn answer(&mut self) -> anyhow::Result<Vec<Vec<TokenId>>> {
        let Self { requests, groups, run } = self;
        let model = run.model;
        let (decoder, defaults) = (&model.decoder, &model.front()?.defaults);
        let stop = |request: &PreparedRequest| {
            StopCriteria::new(&greedy(), defaults, request.input_ids.len(), decoder.max_model_len())
        };
        let stops: Vec<StopCriteria> = requests.iter().map(stop).collect();
        let state = |(request, stop): (&PreparedRequest, _)| SamplerState::new(&greedy(), &request.input_ids, stop);
        let states = requests.iter().zip(&stops).map(state).collect::<Result<Vec<_>, _>>()?;
        let mut sampling = Sampling {
            sampler: Sampler::new(&model.device, requests.len(), model.vocab_size())?,
            answers: vec![Vec::new(); requests.len()],
            states,
        };
        for Group { seqs, features } in groups {
            let mut rows = run.rows();
            for seq in seqs.clone() {
                rows.push_prompt(seq, &requests[seq], &[], 1);
            }
            sampling.step(run, &rows, features.as_ref(), &Vec::from_iter(seqs.clone()))?;
        }
        loop {
            let goes_on = |seq: &usize| {
                let answer = &sampling.answers[*seq];
                answer.last().is_some_and(|&last| stops[*seq].finish_reason(last, answer.len()).is_none())
            };
            let seqs: Vec<usize> = (0..requests.len()).filter(goes_on).collect();
            if seqs.is_empty() {
                return Ok(sampling.answers);
            }
            let mut rows = run.rows();
            for &seq in &seqs {
                let answer = &sampling.answers[seq];
                rows.push_token(seq, &requests[seq], answer.len() - 1, answer[answer.len() - 1]);
            }
            sampling.step(run, &rows, None, &seqs)?;
        }
    }

    /// Feeds each prompt with an answer, whatever the model would say; `on_logits` is given a question's number in the
    /// round and `[answer, vocab_size]` logits, those from which each of the answer's tokens would have been chosen.
    pub(super) fn force(
        &mut self,
        answers: &[Vec<TokenId>],
        mut on_logits: impl FnMut(usize, &[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let vocab_size = self.run.model.vocab_size();
        for Group { seqs, features } in &self.groups {
            let mut rows = self.run.rows();
            for seq in seqs.clone() {
                let answer = &answers[seq];
                let Some((_, before_last)) = answer.split_last() else { anyhow::bail!("an answer has no tokens") };
                rows.push_prompt(seq, &self.requests[seq], before_last, answer.len());
            }
            let mut logits = self.run.read(&rows, features.as_ref())?;
            for seq in seqs.clone() {
                let (own, others) = logits.split_at(answers[seq].len() * vocab_size);
                on_logits(seq, own)?;
                logits = others;
            }
        }
        Ok(())
    }
}

/// Answers on their way.
struct Sampling {
    sampler: Sampler,
    states: Vec<SamplerState>,
    answers: Vec<Vec<TokenId>>,
}

impl Sampling {
    /// A step, and the next token of each of `seqs`, which are ascending.
    fn step(
        &mut self,
        run: &mut Run<'_>,
        rows: &Rows,
        features: Option<&Features>,
        seqs: &[usize],
    ) -> anyhow::Result<()> {
        let stream = run.model.device.stream();
        let logits = run.forward(rows, features)?;
        let states = self.states.iter_mut().enumerate().filter(|(seq, _)| seqs.binary_search(seq).is_ok());
        let mut states: Vec<&mut SamplerState> = states.map(|(_, state)| state).collect();
        let tokens = self.sampler.sample(stream, logits, &mut states)?;
        for (&seq, token) in seqs.iter().zip(tokens) {
            self.answers[seq].push(token?.token_id);
        }
        Ok(())
    }
}

impl Front {
    /// An answer that somebody else gave, as the model would have given it: with the token that ends it.
    pub(super) fn given(&self, answer: &str) -> anyhow::Result<Vec<TokenId>> {
        let mut ids = Vec::new();
        self.processor.tokenizer().encode_plain(answer, &mut ids)?;
        ids.extend(self.defaults.stop_token_ids.first());
        ids.truncate(MAX_ANSWER_TOKENS);
        Ok(ids)
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { max_tokens: Some(MAX_ANSWER_TOKENS), ..SamplingParams::default() }
}

/// Cuts sequences of `lens` tokens into groups of at most `max_tokens` and `max_seqs`, each of at least one.
fn split(lens: &[usize], max_tokens: usize, max_seqs: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (seq, len) in lens.iter().enumerate() {
        if seq > start && (tokens + len > max_tokens || seq - start >= max_seqs) {
            groups.push(start..seq);
            (start, tokens) = (seq, 0);
        }
        tokens += len;
    }
    groups.push(start..lens.len());
    groups
}

#[cfg(test)]
mod tests {
    use std::fs;

    use foveal_device::Device;
    use foveal_runtime::LoadFormat;
    use foveal_testkit::{Golden, fixtures_dir};
    use serde_json::json;

    use super::super::model::{ModelChoice, Scope};
    use super::super::{divergence::best, read_questions};
    use super::{Round, split};

    /// What was answered token by token, prompts in one batch, then decode steps, is what whole sequences give: rows,
    /// positions and pages are the same both ways, with and without pictures. Each answer begins as the reference's.
    #[test]
    fn an_answer_that_is_fed_is_the_likeliest() {
        let golden = Golden::open("tiny");
        let line = |case: &foveal_testkit::GoldenCase| {
            let images: Vec<_> = case.images.iter().map(|name| Golden::image(name)).collect();
            json!({ "images": images, "question": case.question, "answer": case.text }).to_string() + "\n"
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("questions.jsonl");
        fs::write(&file, golden.cases().iter().map(line).collect::<String>()).unwrap();
        let questions = read_questions(&file, None).unwrap();
        let (folder, load_format) = (fixtures_dir().join("tiny"), LoadFormat::Auto);
        let choice = ModelChoice { folder, load_format, quantization: None, kv_cache_dtype: None };
        let model = choice.load(&Device::cpu(2).unwrap(), Scope::Whole).unwrap();
        let mut round = Round::open(&model, &questions).unwrap();
        let answers = round.answer().unwrap();
        for (answer, case) in answers.iter().zip(golden.cases()) {
            let ids: Vec<u32> = answer.iter().map(|id| id.0).collect();
            assert!(ids.starts_with(&case.greedy_ids), "{}: {ids:?}", case.name);
        }
        let mut fed = Vec::new();
        let on_logits = |seq: usize, logits: &[f32]| {
            let likeliest: Vec<u32> = logits.chunks(model.vocab_size()).map(|row| best(row) as u32).collect();
            fed.push((seq, likeliest));
            Ok(())
        };
        round.force(&answers, on_logits).unwrap();
        let expected = answers.iter().map(|answer| answer.iter().map(|id| id.0).collect()).enumerate();
        assert_eq!(fed, Vec::from_iter(expected));
    }

    #[test]
    fn groups_hold_what_fits() {
        assert_eq!(split(&[3, 3, 3, 9, 1, 1, 1], 8, 2), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(split(&[9, 9], 8, 0), [0..1, 1..2]);
    }
}
