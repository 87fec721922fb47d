//! Choosing tokens: what belongs to a sequence stays with it, whatever the batch.

use foveal_device::{Device, View};
use foveal_llm::{GenerationDefaults, LlmError, SampledToken, Sampler, SamplerState, StopCriteria};
use foveal_testkit::assert_close;
use foveal_types::{SamplingParams, TokenId};

const VOCAB: usize = 50;

fn defaults() -> GenerationDefaults {
    GenerationDefaults { stop_token_ids: vec![TokenId(7)], ..GenerationDefaults::default() }
}

fn state(params: &SamplingParams, prompt: &[u32]) -> SamplerState {
    let prompt: Vec<_> = prompt.iter().copied().map(TokenId).collect();
    let stop = StopCriteria::new(params, &defaults(), prompt.len(), 1000);
    SamplerState::new(params, &prompt, &stop).unwrap()
}

/// Logits that fall from token to token, but for the `best`.
fn logits(best: &[(usize, f32)]) -> Vec<f32> {
    let mut row: Vec<f32> = (0..VOCAB).map(|i| -(i as f32) / 10.0).collect();
    best.iter().for_each(|&(token, value)| row[token] = value);
    row
}

fn sample(
    sampler: &mut Sampler,
    device: &Device,
    rows: &[&[f32]],
    states: &mut [&mut SamplerState],
) -> Vec<Result<SampledToken, LlmError>> {
    let flat = rows.concat();
    sampler.sample(device.stream(), View::from_slice(&flat, &[rows.len(), VOCAB]).unwrap(), states).unwrap()
}

fn setup(max_rows: usize) -> (Device, Sampler) {
    let device = Device::cpu(2).unwrap();
    let sampler = Sampler::new(&device, max_rows, VOCAB).unwrap();
    (device, sampler)
}

fn ids(tokens: Vec<Result<SampledToken, LlmError>>) -> Vec<u32> {
    tokens.into_iter().map(|token| token.unwrap().token_id.0).collect()
}

#[test]
fn a_seed_gives_the_same_tokens_in_any_batch() {
    let (device, mut sampler) = setup(4);
    let params = |seed| SamplingParams { temperature: 1.5, seed: Some(seed), ..SamplingParams::default() };
    let row = logits(&[]);
    let mut alone = state(&params(5), &[]);
    let expected: Vec<u32> =
        (0..40).flat_map(|_| ids(sample(&mut sampler, &device, &[&row], &mut [&mut alone]))).collect();

    let other_row = logits(&[(3, 2.0)]);
    let (mut again, mut a, mut b) = (state(&params(5), &[]), state(&params(6), &[]), state(&params(7), &[]));
    let mut got = Vec::new();
    for step in 0..40 {
        // Its place and its neighbours change from step to step.
        let tokens = match step % 3 {
            0 => ids(sample(&mut sampler, &device, &[&row, &other_row], &mut [&mut again, &mut a]))[0],
            1 => ids(sample(&mut sampler, &device, &[&other_row, &row], &mut [&mut b, &mut again]))[1],
            _ => ids(sample(&mut sampler, &device, &[&row, &row, &row], &mut [&mut a, &mut b, &mut again]))[2],
        };
        got.push(tokens);
    }
    assert_eq!(got, expected);
    let mut other_seed = state(&params(6), &[]);
    let other: Vec<u32> =
        (0..40).flat_map(|_| ids(sample(&mut sampler, &device, &[&row], &mut [&mut other_seed]))).collect();
    assert_ne!(other, expected);
    let distinct: std::collections::BTreeSet<_> = expected.iter().collect();
    assert!(distinct.len() > 5, "40 draws from a flat distribution: {expected:?}");
}

#[test]
fn without_a_seed_streams_differ() {
    let (device, mut sampler) = setup(1);
    let params = SamplingParams { temperature: 5.0, ..SamplingParams::default() };
    let row = logits(&[]);
    let mut run = || {
        let mut state = state(&params, &[]);
        (0..40).flat_map(|_| ids(sample(&mut sampler, &device, &[&row], &mut [&mut state]))).collect::<Vec<_>>()
    };
    assert_ne!(run(), run());
}

#[test]
fn stop_tokens_wait_for_min_tokens() {
    let (device, mut sampler) = setup(2);
    let params = SamplingParams { min_tokens: 2, stop_token_ids: vec![TokenId(9)], ..SamplingParams::default() };
    let row = logits(&[(7, 9.0), (9, 8.0), (4, 7.0)]);
    let (mut waits, mut plain) = (state(&params, &[]), state(&SamplingParams::default(), &[]));
    let mut step = || ids(sample(&mut sampler, &device, &[&row, &row], &mut [&mut waits, &mut plain]));
    assert_eq!([step(), step(), step()], [[4, 7], [4, 7], [7, 7]]);
}

#[test]
fn a_row_of_nan_fails_alone() {
    let (device, mut sampler) = setup(3);
    let (row, nan) = (logits(&[(8, 3.0)]), logits(&[(20, f32::NAN)]));
    let params = SamplingParams::default();
    let (mut a, mut b, mut c) = (state(&params, &[]), state(&params, &[]), state(&params, &[]));
    let tokens = sample(&mut sampler, &device, &[&row, &nan, &row], &mut [&mut a, &mut b, &mut c]);
    assert_eq!(tokens[0].as_ref().unwrap().token_id, TokenId(8));
    assert!(matches!(tokens[1], Err(LlmError::NoToken { row: 1, step: 0 })));
    assert_eq!(tokens[2].as_ref().unwrap().token_id, TokenId(8));
    assert_eq!((sampler.num_failed_rows(), a.num_generated(), b.num_generated()), (1, 1, 0));
}

#[test]
fn logprobs_are_those_of_the_model() {
    let (device, mut sampler) = setup(2);
    let row = logits(&[(11, 4.0), (30, 3.0), (2, 2.0)]);
    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
    let logprob = |token: usize| (f64::from(row[token]) - sum.ln()) as f32;
    // Neither temperature nor penalties show in them.
    let base = SamplingParams { temperature: 0.5, frequency_penalty: 1.0, top_k: 1, ..SamplingParams::default() };
    let mut three = state(&SamplingParams { logprobs: Some(3), ..base.clone() }, &[]);
    let mut none = state(&SamplingParams { logprobs: None, ..base }, &[]);
    let tokens = sample(&mut sampler, &device, &[&row, &row], &mut [&mut three, &mut none]);
    let first = tokens[0].as_ref().unwrap();
    assert_eq!(first.token_id, TokenId(11));
    assert_close(&[first.logprob], &[logprob(11)], 1e-5, 0.0);
    assert_eq!(first.top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [11, 30, 2]);
    let top: Vec<_> = first.top.iter().map(|t| t.1).collect();
    assert_close(&top, &[logprob(11), logprob(30), logprob(2)], 1e-5, 0.0);
    assert!(tokens[1].as_ref().unwrap().top.is_empty());
}

/// The arithmetic of penalties is the operator's; here, that each row gets the counts of its own sequence.
#[test]
fn penalties_follow_their_own_sequence() {
    let (device, mut sampler) = setup(3);
    let row = logits(&[(1, 4.0), (2, 3.5), (3, 3.0)]);
    let frequency = SamplingParams { frequency_penalty: 0.4, ..SamplingParams::default() };
    let repetition = SamplingParams { repetition_penalty: 1.2, ..SamplingParams::default() };
    let mut plain = state(&SamplingParams::default(), &[1]);
    let (mut counts, mut repeats) = (state(&frequency, &[1, 1, 1]), state(&repetition, &[1, 1, 60]));
    let mut got = Vec::new();
    for step in 0..4 {
        let tokens = match step {
            // Rows change places; what one sequence left in the buffers must not reach the next.
            2 => {
                let t = ids(sample(
                    &mut sampler,
                    &device,
                    &[row.as_slice(); 3],
                    &mut [&mut repeats, &mut plain, &mut counts],
                ));
                [t[1], t[2], t[0]]
            }
            _ => {
                let t = ids(sample(
                    &mut sampler,
                    &device,
                    &[row.as_slice(); 3],
                    &mut [&mut plain, &mut counts, &mut repeats],
                ));
                [t[0], t[1], t[2]]
            }
        };
        got.push(tokens);
    }
    // Frequency counts the answer alone: 4.0; 3.6; 3.2 against 3.5; 3.2 against 3.1. Repetition divides by 1.2 what the
    // prompt and the answer hold: 1 is 3.33 from the start, 2 then 2.92, 3 stays 3.0 and the best is 1 again.
    assert_eq!(got, [[1, 1, 2], [1, 1, 1], [1, 2, 1], [1, 1, 1]]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (device, mut sampler) = setup(1);
    let row = vec![0.0; 2 * VOCAB];
    let view = |rows: usize, width: usize| View::from_slice(&row[..rows * width], &[rows, width]).unwrap();
    let (mut a, mut b) = (state(&SamplingParams::default(), &[]), state(&SamplingParams::default(), &[]));
    let stream = device.stream();
    let error = sampler.sample(stream, view(2, VOCAB), &mut [&mut a, &mut b]).unwrap_err();
    assert!(matches!(error, LlmError::TooMany { got: 2, max: 1, .. }));
    for (rows, width) in [(1, VOCAB - 1), (2, VOCAB), (0, VOCAB)] {
        let error = sampler.sample(stream, view(rows, width), &mut [&mut a]).unwrap_err();
        assert!(matches!(error, LlmError::BatchShape { field: "logits", .. }));
    }
    assert!(sampler.sample(stream, view(0, VOCAB), &mut []).unwrap().is_empty());
    let bad = SamplingParams { top_p: 0.0, ..SamplingParams::default() };
    let stop = StopCriteria::new(&bad, &defaults(), 0, 10);
    assert_eq!(SamplerState::new(&bad, &[], &stop).unwrap_err().param.as_deref(), Some("top_p"));
    assert!(matches!(Sampler::new(&device, 0, VOCAB), Err(LlmError::Limits { .. })));
}
