mod case;
mod large;
mod marks;
mod reference;

use std::cell::Cell;

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use self::case::{Case, GREEDY};
use self::reference::{reference_draw, reference_probabilities};
use super::philox::uniform;
use super::{RowSampling, Sample, sample, workspace_bytes};
use crate::OpError;
use crate::testing::{blamed, device_tests, values, zeros};

device_tests!(
    draws_follow_the_sorted_reference,
    penalties_follow_their_definitions,
    frequencies_follow_the_probabilities,
    ties_stay_as_in_hf,
    greedy_takes_the_lowest_of_the_best,
    logprobs_are_those_of_the_untouched_logits,
    rows_without_a_choice_say_so,
    a_row_depends_on_itself_alone,
    the_largest_vocabulary,
    odd_settings_are_no_panic,
    misfits_are_named,
);

/// What float32 weights may move.
const MARGIN: f64 = 2e-6;

fn draws_follow_the_sorted_reference(device: &Device) {
    let (compared, near_a_cut) = (Cell::new(0), Cell::new(0));
    let settings = (0.05_f32..3.0, 0_u32..40, 0.02_f32..1.1, 0.0_f32..0.4);
    let shape = (1_usize..300, any::<u64>());
    TestRunner::new(ProptestConfig { cases: 300, ..ProptestConfig::default() })
        .run(&(settings, shape), |((temperature, top_k, top_p, min_p), (vocab_size, seed))| {
            let logits = values(seed, vocab_size, 6.0);
            let base = RowSampling { temperature, top_k, top_p, min_p, seed, ..GREEDY };
            let rows: Vec<RowSampling> = (0..8).map(|draw| RowSampling { draw, ..base }).collect();
            let out = Case::new(&logits.repeat(rows.len()), &rows).run(device);
            let (probabilities, cut_margin) = reference_probabilities(&logits, &base);
            for (row, &id) in rows.iter().zip(&out.ids) {
                let (expected, draw_margin) = reference_draw(&probabilities, uniform(seed, row.draw));
                if cut_margin.min(draw_margin) < MARGIN {
                    near_a_cut.set(near_a_cut.get() + 1);
                } else {
                    compared.set(compared.get() + 1);
                    prop_assert_eq!(id, expected as i32);
                }
            }
            Ok(())
        })
        .unwrap();
    let (compared, near_a_cut) = (compared.get(), near_a_cut.get());
    assert!(compared > 20 * near_a_cut, "{near_a_cut} beside {compared} were too near to a cut to tell");
}

fn penalties_follow_their_definitions(device: &Device) {
    let penalties = (0.5_f32..2.0, -2.0_f32..2.0, -2.0_f32..2.0);
    proptest!(ProptestConfig::with_cases(64), |((repetition, presence, frequency) in penalties, v in 1_usize..200, seed in any::<u64>())| {
        let logits = values(seed, v, 3.0);
        let ints = |seed, scale| values(seed, v, scale).into_iter().map(|x| x as i32).collect::<Vec<_>>();
        // A count is 0 for half of the tokens and never negative.
        let counts: Vec<i32> = ints(seed ^ 1, 4.0).into_iter().map(|n| n.max(0)).collect();
        let prompt: Vec<u8> = ints(seed ^ 2, 2.0).into_iter().map(|n| (n == 1).into()).collect();
        let banned: Vec<u32> = (0..v as u32 - 1).filter(|id| id % 5 == 1).collect();
        let row = RowSampling {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..GREEDY
        };
        let case = Case {
            counts: Some(counts.clone()),
            prompt: Some(prompt.clone()),
            banned: vec![banned.clone()],
            ..Case::new(&logits, &[row])
        };
        let out = case.run(device);
        let scores: Vec<f32> = (0..v).map(|id| {
            if banned.contains(&(id as u32)) {
                return f32::NEG_INFINITY;
            }
            let mut score = logits[id];
            if prompt[id] == 1 || counts[id] > 0 {
                score = if score < 0.0 { score * repetition } else { score / repetition };
            }
            score -= frequency * counts[id] as f32;
            if counts[id] > 0 { score - presence } else { score }
        }).collect();
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = scores.iter().position(|&score| score == best).unwrap();
        prop_assert_eq!(out.ids[0], expected as i32);
        // The same scores given as logits draw the same token: sampling starts where penalties end.
        let drawn = RowSampling { temperature: 0.9, top_k: 20, top_p: 0.9, seed, ..row };
        let penalised = Case { rows: vec![drawn], ..case }.run(device);
        let off = RowSampling { repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, ..drawn };
        prop_assert_eq!(penalised.ids[0], Case::new(&scores, &[off]).run(device).ids[0]);
    });
}

/// Pearson's test of the draws of one stream, and of the first draws of many streams, against exact probabilities. The
/// seeds are fixed, so the result is too.
fn frequencies_follow_the_probabilities(device: &Device) {
    const DRAWS: usize = 8192;
    let logits = values(77, 24, 3.0);
    let settings = [
        RowSampling { temperature: 1.0, ..GREEDY },
        RowSampling { temperature: 0.7, top_k: 8, ..GREEDY },
        RowSampling { temperature: 1.5, top_p: 0.8, ..GREEDY },
        RowSampling { temperature: 2.0, min_p: 0.2, ..GREEDY },
        RowSampling { temperature: 1.2, top_k: 12, top_p: 0.9, min_p: 0.05, ..GREEDY },
    ];
    for (base, by_seed) in settings.into_iter().flat_map(|base| [(base, false), (base, true)]) {
        let number = |i: usize| if by_seed { (i as u64, 3) } else { (3, i as u64) };
        let rows: Vec<RowSampling> =
            (0..DRAWS).map(number).map(|(seed, draw)| RowSampling { seed, draw, ..base }).collect();
        let out = Case::new(&logits.repeat(DRAWS), &rows).run(device);
        let (probabilities, _) = reference_probabilities(&logits, &base);
        let mut counts = vec![0.0; logits.len()];
        out.ids.iter().for_each(|&id| counts[id as usize] += 1.0);
        let (mut chi_square, mut freedom, mut rare, mut rare_expected) = (0.0, -1.0, 0.0, 0.0);
        for (&count, &p) in counts.iter().zip(&probabilities) {
            let expected = p * DRAWS as f64;
            assert!(p > 0.0 || count == 0.0, "a dropped token was drawn with {base:?}");
            if expected >= 5.0 {
                chi_square += (count - expected).powi(2) / expected;
                freedom += 1.0;
            } else {
                (rare, rare_expected) = (rare + count, rare_expected + expected);
            }
        }
        if rare_expected > 0.0 {
            chi_square += (rare - rare_expected).powi(2) / f64::max(rare_expected, 1.0);
            freedom += 1.0;
        }
        // Mean and deviation of the distribution; four deviations.
        let limit = freedom + 4.0 * f64::sqrt(2.0 * freedom);
        assert!(freedom >= 2.0 && chi_square < limit, "{chi_square} of {freedom} degrees with {base:?}");
    }
}

/// Ids that come up in 256 draws.
fn drawn(device: &Device, logits: &[f32], base: RowSampling) -> Vec<i32> {
    let rows: Vec<RowSampling> = (0..256).map(|draw| RowSampling { draw, ..base }).collect();
    let mut ids = Case::new(&logits.repeat(rows.len()), &rows).run(device).ids;
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn ties_stay_as_in_hf(device: &Device) {
    let hot = RowSampling { temperature: 1.0, ..GREEDY };
    // All that equal the k-th stay.
    let logits = [1.0, 3.0, 2.0, 2.0, 2.0, 0.0, -0.0];
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 1, ..hot }), [1]);
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 2, ..hot }), [1, 2, 3, 4]);
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 4, ..hot }), [1, 2, 3, 4]);
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 6, ..hot }), [0, 1, 2, 3, 4, 5, 6]);
    // Four equal tokens: a half of the mass is two of them, the lower ids; just above a half is three.
    let even = [0.0; 4];
    assert_eq!(drawn(device, &even, RowSampling { top_p: 0.5, ..hot }), [0, 1]);
    assert_eq!(drawn(device, &even, RowSampling { top_p: 0.51, ..hot }), [0, 1, 2]);
    assert_eq!(drawn(device, &even, RowSampling { top_p: 0.01, ..hot }), [0]);
    // Top-p counts the mass that top-k left.
    let logits = [2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 2, top_p: 0.6, ..hot }), [0, 1]);
    assert_eq!(drawn(device, &logits, RowSampling { top_k: 2, top_p: 0.5, ..hot }), [0]);
    // A token exactly at min-p times the best one's probability stays.
    assert_eq!(drawn(device, &even, RowSampling { min_p: 1.0, ..hot }), [0, 1, 2, 3]);
}

fn greedy_takes_the_lowest_of_the_best(device: &Device) {
    let logits = [0.5, 2.0, -1.0, 2.0, 2.0];
    let greedy = Case::new(&logits, &[GREEDY]);
    assert_eq!(greedy.run(device).ids, [1]);
    assert_eq!(Case { banned: vec![vec![1]], ..greedy.clone() }.run(device).ids, [3]);
    assert_eq!(Case { banned: vec![vec![1, 3, 4]], ..greedy.clone() }.run(device).ids, [0]);
    // The token's log-probability is that of the untouched logits all the same.
    let out = Case { banned: vec![vec![1, 3, 4]], ..greedy }.run(device);
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    assert_close(&out.logprobs, &[(0.5 - sum.ln()) as f32], 1e-6, 0.0);
    // As cold as can be is the best one too.
    let cold = RowSampling { temperature: f32::MIN_POSITIVE, ..GREEDY };
    assert_eq!(drawn(device, &[0.1, 0.3, 0.2], cold), [1]);
}

fn logprobs_are_those_of_the_untouched_logits(device: &Device) {
    for (v, k) in [(1, 1), (7, 3), (301, 20), (5, 9), (40, 0)] {
        let logits: Vec<f32> = values(3, 2 * v, 9.0).iter().map(|x| x.round()).collect();
        let row = RowSampling { temperature: 0.8, presence_penalty: 2.0, ..GREEDY };
        let case = Case { counts: Some(vec![1; 2 * v]), num_top: Some(k), ..Case::new(&logits, &[row, GREEDY]) };
        let out = case.run(device);
        for (row, logits) in logits.chunks_exact(v).enumerate() {
            let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let logprob = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
            assert_close(&[out.logprobs[row]], &[logprob(out.ids[row] as usize)], 1e-6, 1e-6);
            // A stable sort: ties by the lower id.
            let mut order: Vec<usize> = (0..v).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let top_ids = &out.top_ids[row * k..(row + 1) * k];
            let expected: Vec<i32> = (0..k).map(|i| order.get(i).map_or(-1, |&id| id as i32)).collect();
            assert_eq!(top_ids, expected);
            let top_logprobs = &out.top_logprobs[row * k..(row + 1) * k];
            let expected: Vec<f32> = order.iter().take(k).map(|&id| logprob(id)).collect();
            assert_close(&top_logprobs[..k.min(v)], &expected, 1e-6, 1e-6);
            assert!(top_logprobs[k.min(v)..].iter().all(|x| x.is_nan()));
        }
    }
}

fn rows_without_a_choice_say_so(device: &Device) {
    let low = f32::NEG_INFINITY;
    let broken = [[1.0, f32::NAN, 2.0], [low; 3], [f32::INFINITY, 0.0, 0.0], [f32::NAN; 3]];
    for sampling in [GREEDY, RowSampling { temperature: 1.0, top_k: 2, top_p: 0.9, min_p: 0.1, ..GREEDY }] {
        let mut logits: Vec<f32> = broken.concat();
        logits.extend([low, 4.0, low]);
        let out = Case { num_top: Some(2), ..Case::new(&logits, &[sampling; 5]) }.run(device);
        assert_eq!(out.ids, [-1, -1, -1, -1, 1]);
        assert!(out.logprobs[..4].iter().all(|x| x.is_nan()), "{out:?}");
        assert_eq!(out.top_ids[..8], [-1; 8]);
        assert!(out.top_logprobs[..8].iter().all(|x| x.is_nan()));
        assert_eq!((out.logprobs[4], out.top_ids[8], out.top_logprobs[8]), (0.0, 1, 0.0));
        let all = vec![vec![0, 1, 2]];
        assert_eq!(Case { banned: all, ..Case::new(&[1.0, 2.0, 3.0], &[sampling]) }.run(device).ids, [-1]);
    }
    // A token that can't be chosen isn't, however hot.
    let hottest = RowSampling { temperature: f32::INFINITY, ..GREEDY };
    assert_eq!(drawn(device, &[low, 1.0, low, 9.0], hottest), [1, 3]);
    assert!(Case::new(&[], &[]).run(device).ids.is_empty());
    assert_eq!(Case { vocab_size: 0, ..Case::new(&[], &[GREEDY; 2]) }.run(device).ids, [-1, -1]);
}

fn a_row_depends_on_itself_alone(device: &Device) {
    proptest!(ProptestConfig::with_cases(24), |(r in 1_usize..30, v in 1_usize..1500, seed in any::<u64>(), pick in 0_usize..30)| {
        let pick = pick % r;
        let rows: Vec<RowSampling> = (0..r).map(|i| RowSampling {
            temperature: 0.3 * (i % 4) as f32,
            top_k: (i % 3 * 10) as u32,
            top_p: 1.0 - 0.1 * (i % 2) as f32,
            min_p: 0.01 * (i % 5) as f32,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            seed,
            draw: i as u64,
            ..GREEDY
        }).collect();
        let counts: Vec<i32> = values(seed ^ 1, r * v, 2.0).into_iter().map(|x| x as i32).collect();
        let prompt: Vec<u8> = counts.iter().map(|n| u8::from(*n < 0)).collect();
        let batch = Case {
            counts: Some(counts.clone()),
            prompt: Some(prompt.clone()),
            num_top: Some(4),
            ..Case::new(&values(seed, r * v, 5.0), &rows)
        };
        let span = pick * v..(pick + 1) * v;
        let alone = Case {
            counts: Some(counts[span.clone()].to_vec()),
            prompt: Some(prompt[span.clone()].to_vec()),
            num_top: Some(4),
            ..Case::new(&batch.logits[span], &rows[pick..=pick])
        };
        let (all, one) = (batch.run(device), alone.run(device));
        prop_assert_eq!(all.ids[pick], one.ids[0]);
        assert_bitwise_equal(&all.logprobs[pick..=pick], &one.logprobs);
        prop_assert_eq!(&all.top_ids[4 * pick..4 * pick + 4], &one.top_ids[..]);
        assert_bitwise_equal(&all.top_logprobs[4 * pick..4 * pick + 4], &one.top_logprobs);
    });
}

fn the_largest_vocabulary(device: &Device) {
    // Qwen's, with logits of the spread that models have.
    let logits = values(5, 151_936, 12.0);
    let base = RowSampling { temperature: 1.0, ..GREEDY };
    let settings = [
        base,
        RowSampling { top_p: 0.9, ..base },
        RowSampling { top_k: 20, top_p: 0.8, temperature: 0.7, ..base },
        RowSampling { top_k: 151_935, min_p: 0.5, ..base },
    ];
    for (row, &id) in settings.iter().zip(&Case::new(&logits.repeat(4), &settings).run(device).ids) {
        let (probabilities, _) = reference_probabilities(&logits, row);
        // Where many tokens are as probable, float32 weights move the borders between them; one step is allowed.
        let sum_to = |id: i32| probabilities[..=id as usize].iter().sum::<f64>();
        let u = uniform(row.seed, row.draw);
        assert!(probabilities[id as usize] > 0.0);
        assert!(sum_to(id) > u - 1e-5 && sum_to(id) - probabilities[id as usize] < u + 1e-5, "{row:?}");
    }
}

fn odd_settings_are_no_panic(device: &Device) {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, 1e-45, 2.0];
    let logits = values(8, 50, 3.0);
    for value in odd {
        for base in [GREEDY, RowSampling { temperature: 1.0, top_k: u32::MAX, ..GREEDY }] {
            let rows = [
                RowSampling { temperature: value, ..base },
                RowSampling { top_p: value, ..base },
                RowSampling { min_p: value, ..base },
                RowSampling { repetition_penalty: value, ..base },
                RowSampling { presence_penalty: value, ..base },
                RowSampling { frequency_penalty: value, ..base },
            ];
            let r = rows.len();
            let counts: Vec<i32> = (0..r as i32 * 50).map(|i| [0, 1, -1, i32::MAX, i32::MIN][i as usize % 5]).collect();
            let prompt = vec![1; r * 50];
            let case = Case { counts: Some(counts), prompt: Some(prompt), ..Case::new(&logits.repeat(r), &rows) };
            assert!(case.run(device).ids.iter().all(|id| (-1..50).contains(id)));
        }
    }
}

fn misfits_are_named(device: &Device) {
    let good = || Case::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[GREEDY; 2]);
    let blame = |case: Case| blamed(case.try_run(device).map(drop));
    let short = Case { rows: vec![GREEDY], ..good() };
    assert_eq!(blame(short), "rows");
    assert_eq!(blame(Case { banned: vec![vec![]], ..good() }), "banned");
    let error = Case { banned: vec![vec![2], vec![3]], ..good() }.try_run(device).unwrap_err();
    assert!(matches!(error, OpError::Value { arg: "banned", value: 3, .. }), "{error}");
    let penalised = |row| Case { rows: vec![GREEDY, row], ..good() };
    assert_eq!(blame(penalised(RowSampling { presence_penalty: 0.1, ..GREEDY })), "output_counts");
    assert_eq!(blame(penalised(RowSampling { frequency_penalty: 0.1, ..GREEDY })), "output_counts");
    let repeated = penalised(RowSampling { repetition_penalty: 1.1, ..GREEDY });
    assert_eq!(blame(repeated.clone()), "output_counts");
    assert_eq!(blame(Case { counts: Some(vec![0; 6]), ..repeated }), "prompt_mask");
    assert_eq!(blame(Case { counts: Some(vec![0; 3]), ..good() }), "output_counts");
    assert_eq!(blame(Case { prompt: Some(vec![0; 9]), ..good() }), "prompt_mask");

    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let i32s = |dims: &[usize]| zeros(device, DType::I32, dims);
    let blame =
        |logits: Tensor, mut scratch: Tensor, mut ids: Tensor, mut logprobs: Tensor, top: [Option<Tensor>; 2]| {
            let [mut top_ids, mut top_logprobs] = top;
            let mut workspace = zeros(device, DType::U8, &[workspace_bytes(2, 3, 0)]);
            let args = Sample {
                logits: logits.view(),
                rows: &[GREEDY; 2],
                output_counts: None,
                prompt_mask: None,
                banned: &[],
                scratch: scratch.view_mut().unwrap(),
                workspace: workspace.view_mut().unwrap(),
                token_ids: ids.view_mut().unwrap(),
                logprobs: logprobs.view_mut().unwrap(),
                top_ids: top_ids.as_mut().map(|x| x.view_mut().unwrap()),
                top_logprobs: top_logprobs.as_mut().map(|x| x.view_mut().unwrap()),
            };
            blamed(sample(device.stream(), args))
        };
    let (wide, two) = (|| f32s(&[2, 3]), || f32s(&[2]));
    assert_eq!(blame(zeros(device, DType::BF16, &[2, 3]), wide(), i32s(&[2]), two(), [None, None]), "logits");
    assert_eq!(blame(f32s(&[6]), wide(), i32s(&[2]), two(), [None, None]), "logits");
    assert_eq!(blame(wide(), f32s(&[2, 4]), i32s(&[2]), two(), [None, None]), "scratch");
    assert_eq!(blame(wide(), wide(), i32s(&[3]), two(), [None, None]), "token_ids");
    assert_eq!(blame(wide(), wide(), f32s(&[2]), two(), [None, None]), "token_ids");
    assert_eq!(blame(wide(), wide(), i32s(&[2]), i32s(&[2]), [None, None]), "logprobs");
    assert_eq!(blame(wide(), wide(), i32s(&[2]), two(), [Some(i32s(&[2, 1])), None]), "top_logprobs");
    assert_eq!(blame(wide(), wide(), i32s(&[2]), two(), [None, Some(f32s(&[2, 1]))]), "top_ids");
    let unequal = [Some(i32s(&[2, 1])), Some(f32s(&[2, 2]))];
    assert_eq!(blame(wide(), wide(), i32s(&[2]), two(), unequal), "top_logprobs");
    assert_eq!(blame(wide(), wide(), i32s(&[2]), two(), [Some(i32s(&[3, 1])), Some(f32s(&[3, 1]))]), "top_ids");
}
