//! Rows of many tokens: on a GPU these are cut into groups, and read in whole only where a few groups don't tell.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::case::{Case, GREEDY, Outputs};
use super::reference::{reference_draw, reference_probabilities};
use crate::sampling::philox::uniform;
use crate::sampling::{RowSampling, Sample, sample, workspace_bytes};
use crate::testing::{blamed, device_tests, gpu, tensor, values, zeros};

device_tests!(
    flat_and_tied_rows_follow_the_sorted_reference,
    the_best_of_tied_rows_are_the_lowest_ids,
    a_few_bans_among_many_tokens,
    qwens_vocabulary_in_batches,
);

/// What float32 weights may move.
const MARGIN: f64 = 2e-6;

/// The published models' vocabulary.
const QWEN: usize = 151_936;

/// Whether the token is the reference's; `None` where a border is too near to tell.
fn follows_reference(logits: &[f32], row: &RowSampling, id: i32) -> Option<bool> {
    let (probabilities, cut_margin) = reference_probabilities(logits, row);
    let (expected, draw_margin) = reference_draw(&probabilities, uniform(row.seed, row.draw));
    (cut_margin.min(draw_margin) >= MARGIN).then_some(id == expected as i32)
}

fn flat_and_tied_rows_follow_the_sorted_reference(device: &Device) {
    let (mut compared, mut near_a_cut) = (0, 0);
    let settings =
        (0.3_f32..3.0, prop_oneof![Just(0_u32), 1_u32..6000], 0.02_f32..1.1, prop_oneof![Just(0.0_f32), 0.0_f32..0.9]);
    let shape = (500_usize..6000, any::<u64>(), prop_oneof![Just(0.1_f32), Just(2.0), Just(9.0)], any::<bool>());
    let mut runner = TestRunner::deterministic();
    let strategy = (settings, shape);
    for _ in 0..120 {
        let tree = strategy.new_tree(&mut runner).unwrap();
        let ((temperature, top_k, top_p, min_p), (vocab_size, seed, scale, is_tied)) = tree.current();
        let mut logits = values(seed, vocab_size, scale);
        if is_tied {
            // Adding 0 makes one zero of two.
            logits.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0 + 0.0);
        }
        let base = RowSampling { temperature, top_k, top_p, min_p, seed, ..GREEDY };
        let rows: Vec<RowSampling> = (0..4).map(|draw| RowSampling { draw, ..base }).collect();
        let out = Case::new(&logits.repeat(rows.len()), &rows).run(device);
        for (row, &id) in rows.iter().zip(&out.ids) {
            match follows_reference(&logits, row, id) {
                None => near_a_cut += 1,
                Some(follows) => {
                    compared += 1;
                    assert!(follows, "{id} of {vocab_size} with {row:?}, scale {scale}, tied {is_tied}");
                }
            }
        }
    }
    // Of thousands of tokens of one probability every other border is near one.
    assert!(compared > 2 * near_a_cut, "{near_a_cut} beside {compared} were too near to a cut to tell");
}

fn the_best_of_tied_rows_are_the_lowest_ids(device: &Device) {
    let best = |logits: &[f32], k: usize| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.into_iter().take(k).map(|id| id as i32).collect::<Vec<_>>()
    };
    for (v, k, scale) in [(5000, 20, 0.0), (700, 20, 1.0), (20_000, 20, 0.6), (20_000, 5, 40.0), (3000, 1, 2.0)] {
        let mut logits: Vec<f32> = values(11, v, scale).iter().map(|x| x.round() + 0.0).collect();
        logits[v - 2] = f32::NEG_INFINITY;
        let out = Case { num_top: Some(k), ..Case::new(&logits, &[GREEDY]) }.run(device);
        assert_eq!(out.top_ids, best(&logits, k), "{k} of {v}, scale {scale}");
        assert_eq!(out.ids[0], out.top_ids[0]);
        assert_bitwise_equal(&out.top_logprobs[..1], &out.logprobs);
    }
    // Tokens that can't be had come last, by id.
    let mut logits = vec![f32::NEG_INFINITY; 2000];
    (logits[1500], logits[700]) = (1.0, 2.0);
    let out = Case { num_top: Some(4), ..Case::new(&logits, &[GREEDY]) }.run(device);
    assert_eq!(out.top_ids, [700, 1500, 0, 1]);
    assert!(out.top_logprobs[2..].iter().all(|&x| x == f32::NEG_INFINITY));
}

fn a_few_bans_among_many_tokens(device: &Device) {
    let logits = values(21, 10_001, 4.0);
    let mut order: Vec<u32> = (0..10_001).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    let two = logits.repeat(2);
    let case = Case { banned: vec![order[..60].to_vec(), vec![]], ..Case::new(&two, &[GREEDY; 2]) };
    assert_eq!(case.run(device).ids, [order[60] as i32, order[0] as i32]);
    let cold = RowSampling { temperature: 1.0, top_k: 1, ..GREEDY };
    let case = Case { banned: vec![order[..7].to_vec(), order[..1].to_vec()], ..Case::new(&two, &[cold; 2]) };
    assert_eq!(case.run(device).ids, [order[7] as i32, order[1] as i32]);
}

/// Logits of the spread that models have: most tokens far below a few.
fn model_logits(seed: u64) -> Vec<f32> {
    let mut logits = values(seed, QWEN, 4.0);
    for part in 1..4 {
        logits.iter_mut().zip(values(seed + 1000 * part, QWEN, 4.0)).for_each(|(x, more)| *x += more);
    }
    logits
}

fn check_row(logits: &[f32], row: &RowSampling, id: i32, logprob: f32) {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - best).exp()).sum();
    let expected = f64::from(logits[id as usize]) - f64::from(best) - sum.ln();
    assert_close(&[logprob], &[expected as f32], 1e-6, 1e-6);
    match row.temperature > 0.0 {
        true => assert_ne!(follows_reference(logits, row, id), Some(false), "{id} with {row:?}"),
        false => assert_eq!(logits.iter().position(|&l| l == best), Some(id as usize)),
    }
}

fn qwens_vocabulary_in_batches(device: &Device) {
    let drawn = RowSampling { temperature: 0.7, top_k: 20, top_p: 0.8, seed: 3, ..GREEDY };
    let settings = [
        drawn,
        RowSampling { temperature: 1.0, top_k: 0, top_p: 1.0, ..drawn },
        RowSampling { temperature: 1.0, top_k: 0, top_p: 0.95, ..drawn },
        RowSampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.05, ..drawn },
        RowSampling { temperature: 2.5, top_k: 0, top_p: 0.9, ..drawn },
        RowSampling { temperature: 1.0, top_k: 2000, top_p: 0.9, ..drawn },
        GREEDY,
    ];
    // A few different rows are enough: what a row gives depends on itself alone.
    let logits: Vec<Vec<f32>> = (0..5).map(model_logits).collect();
    for r in [1, 3, 128] {
        let flat: Vec<f32> = logits.iter().cycle().take(r).flatten().copied().collect();
        let greedy = Case::new(&flat, &vec![GREEDY; r]).run(device);
        let rows: Vec<RowSampling> =
            (0..r).map(|i| RowSampling { draw: i as u64, ..settings[(i + r) % settings.len()] }).collect();
        let Outputs { ids, logprobs, .. } = Case::new(&flat, &rows).run(device);
        for i in (0..r).step_by(1 + r / 12) {
            let own = &logits[i % logits.len()];
            check_row(own, &GREEDY, greedy.ids[i], greedy.logprobs[i]);
            check_row(own, &rows[i], ids[i], logprobs[i]);
            let alone = Case::new(own, &rows[i..=i]).run(device);
            assert_eq!(alone.ids, ids[i..=i]);
            assert_bitwise_equal(&alone.logprobs, &logprobs[i..=i]);
        }
    }
}

/// What only a GPU needs, and what only it can't do.
#[test]
fn a_gpus_workspace_and_vocabulary_have_bounds() {
    let Some(device) = gpu() else { return };
    let blame = |v: usize, workspace_bytes: usize| {
        let logits = zeros(&device, DType::F32, &[1, v]);
        let (mut scratch, mut workspace) =
            (zeros(&device, DType::F32, &[1, v]), zeros(&device, DType::U8, &[workspace_bytes]));
        let (mut ids, mut logprobs) = (zeros(&device, DType::I32, &[1]), zeros(&device, DType::F32, &[1]));
        let args = Sample {
            logits: logits.view(),
            rows: &[GREEDY],
            output_counts: None,
            prompt_mask: None,
            banned: &[],
            scratch: scratch.view_mut().unwrap(),
            workspace: workspace.view_mut().unwrap(),
            token_ids: ids.view_mut().unwrap(),
            logprobs: logprobs.view_mut().unwrap(),
            top_ids: None,
            top_logprobs: None,
        };
        blamed(sample(device.stream(), args))
    };
    assert_eq!(blame(600, workspace_bytes(1, 600, 0) - 1), "workspace");
    let most: usize = 1 << 19;
    assert_eq!(blame(most + 1, workspace_bytes(1, most + 1, 0)), "logits");
    // The host's memory is refused where a GPU's is needed.
    let rows = tensor(&Device::cpu(1).unwrap(), &[0.0_f32; 4], &[1, 4]);
    assert!(!rows.view().is_on_device() && Tensor::zeros(&device, DType::U8, &[1]).unwrap().view().is_on_device());
}
