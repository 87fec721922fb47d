//! A step allocates no tensor. A test program of its own: the counter is the process's.

mod support;

use foveal_device::{View, allocation_count};
use foveal_llm::{GenerationDefaults, Sampler, SamplerState, StopCriteria};
use foveal_types::{SamplingParams, TokenId};
use support::{Chunk, Model, OwnedBatch, Pictures, Prompt, Sizes};

#[test]
fn steps_allocate_no_tensor() {
    let mut model = Model::tiny(Sizes::default());
    let device = model.device.clone();
    let pictures = Pictures::new(4, model.config.text.hidden_size, 3);
    let prompt = Prompt::text((0..90).collect());
    let ids: Vec<_> = (0..90).map(TokenId).collect();
    let params = |repetition_penalty| SamplingParams {
        temperature: 1.0,
        repetition_penalty,
        logprobs: Some(3),
        seed: Some(1),
        ..SamplingParams::default()
    };
    let state = |penalty| {
        let stop = StopCriteria::new(&params(penalty), &GenerationDefaults::default(), 90, 2048);
        SamplerState::new(&params(penalty), &ids, &stop).unwrap()
    };
    let (mut plain, mut penalised) = (state(1.0), state(1.3));
    let mut sampler = Sampler::new(&device, 2, model.config.text.vocab_size).unwrap();

    let mut counts = Vec::new();
    for rows in [0..40, 40..70, 70..71, 71..72, 72..90] {
        let mut batch = OwnedBatch::new(&[
            Chunk { prompt: &prompt, rows: rows.clone(), blocks: &[0, 1, 2] },
            Chunk { prompt: &prompt, rows: rows.clone(), blocks: &[5, 4, 3] },
        ]);
        batch.image_index[0] = 3;
        let n = rows.len() as i32;
        batch.logit_rows = vec![n - 1, 2 * n - 1];
        let before = allocation_count();
        let logits = pictures.views(|embeds, levels| model.logits(&batch.with_images(embeds, levels)).unwrap());
        let logits = View::from_slice(&logits, &[2, logits.len() / 2]).unwrap();
        let tokens = sampler.sample(device.stream(), logits, &mut [&mut plain, &mut penalised]).unwrap();
        assert!(tokens.iter().all(|token| token.as_ref().unwrap().top.len() == 3));
        counts.push(allocation_count() - before);
    }
    // The first penalties bring their two buffers; the decoder needs nothing from its first step on.
    assert_eq!(counts, [2, 0, 0, 0, 0]);
}
