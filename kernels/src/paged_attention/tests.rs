//! Against plain float64 loops, and against itself: on the CPU a row's bits depend on the keys that it sees alone.

mod problem;
mod refusals;

use foveal_device::{DType, Device};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use self::problem::{KIND, Kind, Problem, Step, kind};
use crate::simd::Isa;
use crate::testing::{Quantized, Scheme, device_tests, load, store};

fn every_type_and_shape_agrees_with_float64(device: &Device) {
    // One token; pages filled to the brim, one more, one less; groups of one and many heads; odd heads; long pages.
    let shapes: [(&[usize], [usize; 4]); 7] = [
        (&[1], [1, 1, 1, 32]),
        (&[1, 1, 1], [2, 1, 16, 32]),
        (&[31, 32, 33], [3, 2, 7, 32]),
        (&[64, 3], [1, 2, 80, 64]),
        (&[70], [2, 1, 128, 32]),
        (&[100, 1], [8, 1, 64, 96]),
        (&[40], [20, 1, 33, 32]),
    ];
    let (f32, bf16, f16) = (DType::F32, DType::BF16, DType::F16);
    let is_cuda = device.is_cuda();
    let activations: &[DType] = if is_cuda { &[bf16] } else { &[f32, bf16] };
    let f8 = DType::F8E4M3;
    let caches: &[DType] = if is_cuda { &[bf16, f8] } else { &[f32, bf16, f16, f8] };
    for (lens, [group, num_kv_heads, head_dim, page]) in shapes {
        if is_cuda && head_dim % 8 != 0 {
            continue;
        }
        for &q in activations {
            for &cache in caches {
                // Of an FP8 cache a GPU takes heads of whole chunks of 16 bytes.
                if is_cuda && cache == f8 && head_dim % 16 != 0 {
                    continue;
                }
                for &out in activations {
                    let kind = Kind { q, cache, out, group, num_kv_heads, head_dim, page };
                    Problem::new(device, kind, lens).check(device);
                }
            }
        }
    }
}

fn a_real_prompt_agrees_with_float64(device: &Device) {
    for cache in [DType::BF16, DType::F8E4M3] {
        Problem::new(device, Kind { cache, num_kv_heads: 8, head_dim: 128, ..kind(device) }, &[150]).check(device);
    }
}

fn groups_and_widths_of_heads_agree_with_float64(device: &Device) {
    // A chunk of several tiles, decode rows and a short chunk; heads that fill tensor-core tiles and heads that don't.
    let step = vec![(0, 70..150), (1, 0..1), (2, 29..33), (3, 64..65), (0, 149..150)];
    for group in [1, 2, 4, 5, 7, 8, 17] {
        for (head_dim, cache) in [64, 128].into_iter().flat_map(|d| [(d, DType::BF16), (d, DType::F8E4M3)]) {
            let kind = Kind { group, head_dim, cache, ..kind(device) };
            Problem::new(device, kind, &[150, 1, 33, 65]).check_step(device, &step);
        }
    }
    for head_dim in (8..128).step_by(8) {
        let kind = Kind { group: 4, num_kv_heads: 1, head_dim, ..kind(device) };
        Problem::new(device, kind, &[150, 1, 33, 65]).check_step(device, &step);
        if head_dim % 16 == 0 {
            let kind = Kind { cache: DType::F8E4M3, ..kind };
            Problem::new(device, kind, &[150, 1, 33, 65]).check_step(device, &step);
        }
    }
}

fn long_contexts_agree_with_float64(device: &Device) {
    // On a GPU, their keys are split over blocks.
    let (bf16, f8) = (DType::BF16, DType::F8E4M3);
    for (group, head_dim, page, cache) in [(4, 128, 32, bf16), (8, 64, 96, f8), (8, 64, 96, bf16), (7, 128, 64, f8)] {
        let problem = Problem::new(device, Kind { group, head_dim, page, cache, ..kind(device) }, &[3000, 2500, 1]);
        problem.check_step(device, &vec![(0, 2999..3000)]);
        problem.check_step(device, &vec![(0, 2998..3000), (2, 0..1), (1, 2499..2500)]);
        problem.check_step(device, &vec![(1, 2400..2500), (0, 2999..3000), (0, 900..920)]);
    }
}

fn a_long_prompt_agrees_with_float64(device: &Device) {
    Problem::new(device, Kind { group: 3, num_kv_heads: 1, head_dim: 64, ..kind(device) }, &[1300]).check(device);
}

fn seventy_sequences_agree_with_float64(device: &Device) {
    let lens: Vec<usize> = (0..70).map(|i| 1 + i * 37 % 230).collect();
    let problem = Problem::new(device, Kind { group: 4, head_dim: 64, ..kind(device) }, &lens);
    let decode: Step = lens.iter().enumerate().map(|(i, &len)| (i, len - 1..len)).collect();
    problem.check_step(device, &decode);
    // Prefill chunks, decode rows and sequences without rows.
    let rows = |i: usize, len: usize| {
        if i.is_multiple_of(9) { len / 2..len } else { len - usize::from(!i.is_multiple_of(7))..len }
    };
    problem.check_step(device, &lens.iter().enumerate().map(|(i, &len)| (i, rows(i, len))).collect());
}

fn sequences_without_rows_are_passed_over(device: &Device) {
    let problem = Problem::new(device, kind(device), &[40, 9]);
    let step = vec![(0, 40..40), (0, 39..40), (1, 0..0), (1, 8..9), (1, 9..9)];
    problem.check_step(device, &step);
    if !device.is_cuda() {
        let (whole, row) = (problem.step(device, &problem.whole(), None), problem.row());
        let expected = [&whole[39 * row..40 * row], &whole[48 * row..]].concat();
        assert_bitwise_equal(&problem.step(device, &step, None), &expected);
    }
    assert!(problem.step(device, &vec![], None).is_empty());
    assert!(problem.step(device, &vec![(0, 0..0)], None).is_empty());
}

/// Chunks, decode rows, rows whose keys are split, and groups of heads that tiles cut through.
fn rows_are_rounded_to_fp8(device: &Device) {
    let step = vec![(0, 70..150), (1, 0..1), (2, 29..33), (3, 2900..3000), (3, 2999..3000), (2, 3..3)];
    for (group, num_kv_heads, head_dim, cache) in [
        (4, 8, 128, DType::BF16),
        (5, 2, 64, DType::F8E4M3),
        (8, 4, 128, DType::F8E4M3),
        (1, 3, 64, DType::BF16),
        (3, 1, 128, DType::BF16),
        (2, 3, 48, DType::BF16),
    ] {
        let kind = Kind { group, num_kv_heads, head_dim, cache, ..kind(device) };
        let problem = Problem::new(device, kind, &[150, 1, 33, 3000]);
        for step in [step.clone(), vec![(3, 2999..3000)], vec![(1, 0..1), (2, 32..33)]] {
            let rows = problem.step(device, &step, None);
            let n = rows.len() / problem.row();
            let schemes = [Scheme::Fixed, Scheme::PerGroup];
            for scheme in schemes.into_iter().filter(|&scheme| scheme == Scheme::Fixed || head_dim == 128) {
                let mut rounded = Quantized::new(device, scheme, [n, problem.row()]);
                problem.step_rounded(device, &step, &mut rounded);
                // From the float32 rows: on a GPU they are known only as bf16.
                let rtol = if device.is_cuda() { 1.0 / 256.0 } else { 0.0 };
                rounded.assert_is(&rows, rtol);
            }
        }
    }
}

/// 2^-12 to 2^12 of what others have, each head of its own.
fn a_query_of_any_size_is_taken(device: &Device) {
    for cache in [DType::BF16, DType::F8E4M3] {
        let mut problem = Problem::new(device, Kind { head_dim: 128, cache, ..kind(device) }, &[150, 3]);
        let row = problem.row();
        for (i, q) in problem.sequences[0].q.chunks_mut(row).enumerate() {
            let sizes = (0..).map(|head| f32::from_bits(((i + 5 * head) as u32 % 25 + 115) << 23));
            q.chunks_mut(128).zip(sizes).for_each(|(q, size)| q.iter_mut().for_each(|x| *x *= size));
        }
        problem.scale /= 4096.0;
        problem.check(device);
    }
}

fn a_scale_of_any_sign_is_taken(device: &Device) {
    for scale in [-0.3, 0.0, 1.0] {
        let whole = Kind { head_dim: 128, ..kind(device) };
        for kind in [kind(device), whole, Kind { cache: DType::F8E4M3, ..whole }] {
            let mut problem = Problem::new(device, kind, &[70, 1, 5]);
            let row = problem.row();
            problem.sequences[0].q[..row].fill(0.0);
            // Longer heads' scores are not larger for it.
            problem.scale = scale * (24.0 / kind.head_dim as f32).sqrt();
            problem.check(device);
            problem.check_step(device, &vec![(0, 69..70), (2, 3..5)]);
        }
    }
}

fn what_lies_beyond_the_context_does_not_matter(device: &Device) {
    for (head_dim, cache_dtype) in [(24, DType::BF16), (64, DType::BF16), (64, DType::F8E4M3), (128, DType::F8E4M3)] {
        let mut problem = Problem::new(device, Kind { head_dim, cache: cache_dtype, ..kind(device) }, &[70]);
        let steps: [Step; 2] = [vec![(0, 0..37)], vec![(0, 36..37)]];
        let expected = steps.each_ref().map(|step| problem.step(device, step, None));
        let (page, num_kv_heads) = (problem.layout.page, problem.layout.num_kv_heads);
        for (cache, nothing) in [(&mut problem.keys, f32::NAN), (&mut problem.values, f32::INFINITY)] {
            let mut spoilt = load(cache);
            for (token, head) in (37..70).flat_map(|token| (0..num_kv_heads).map(move |head| (token, head))) {
                let block = problem.sequences[0].table[token / page] as usize;
                let row = (block * num_kv_heads + head) * page + token % page;
                spoilt[row * head_dim..(row + 1) * head_dim].fill(nothing);
            }
            *cache = store(device, &spoilt, cache_dtype, cache.shape());
        }
        for (step, expected) in steps.iter().zip(&expected) {
            assert_bitwise_equal(&problem.step(device, step, None), expected);
        }
    }
}

fn later_tokens_are_not_seen_even_where_they_are_infinite(device: &Device) {
    let mut problem = Problem::new(device, Kind { group: 1, num_kv_heads: 1, ..KIND }, &[8]);
    let expected = problem.step(device, &vec![(0, 0..5)], None);
    for cache in [&mut problem.keys, &mut problem.values] {
        let mut spoilt = load(cache);
        let block = problem.sequences[0].table[0] as usize * 32;
        spoilt[(block + 5) * 24..(block + 8) * 24].fill(f32::NAN);
        *cache = store(device, &spoilt, DType::BF16, cache.shape());
    }
    let all = problem.step(device, &vec![(0, 0..8)], None);
    assert_bitwise_equal(&all[..5 * 24], &expected);
    assert!(all[5 * 24..].iter().all(|x| x.is_nan()));
}

#[test]
fn instruction_sets_agree_bitwise_where_they_fuse() {
    let device = Device::cpu(2).unwrap();
    for cache in [DType::F32, DType::BF16, DType::F16, DType::F8E4M3] {
        let problem = Problem::new(&device, Kind { cache, ..KIND }, &[50, 1, 77]);
        let expected = problem.plain(&device, &problem.whole());
        for isa in Isa::all() {
            let got = problem.step(&device, &problem.whole(), Some(isa));
            assert_close_at(&got, &expected, &[128, problem.row()], 2e-5, 0.0);
            if isa.is_fused() {
                assert_bitwise_equal(&got, &problem.step(&device, &problem.whole(), Some(Isa::best())));
            }
        }
    }
}

// A GPU multiplies the values of keys that other rows of a tile see by 0, and its host sees no lengths and no blocks.
device_tests!(cpu: [
    later_tokens_are_not_seen_even_where_they_are_infinite,
]; any: [
    every_type_and_shape_agrees_with_float64,
    a_real_prompt_agrees_with_float64,
    groups_and_widths_of_heads_agree_with_float64,
    long_contexts_agree_with_float64,
    a_long_prompt_agrees_with_float64,
    seventy_sequences_agree_with_float64,
    sequences_without_rows_are_passed_over,
    rows_are_rounded_to_fp8,
    a_query_of_any_size_is_taken,
    a_scale_of_any_sign_is_taken,
    what_lies_beyond_the_context_does_not_matter,
]);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_row_doesn_t_depend_on_chunks_batches_pages_or_threads(
        lens in prop::collection::vec(1_usize..150, 1..4),
        cuts in prop::collection::vec(0_usize..150, 0..4),
        group in 1_usize..6,
        head_dim in 1_usize..40,
        page in 1_usize..4,
        threads in 1_usize..4,
    ) {
        let kind = Kind { group, head_dim, ..KIND };
        let device = Device::cpu(2).unwrap();
        let whole = Problem::new(&device, kind, &lens);
        let expected = whole.step(&device, &whole.whole(), None);
        let other = Problem::new(&device, Kind { page: page * 32, ..kind }, &lens);
        let device = Device::cpu(threads).unwrap();
        let mut start = 0;
        for (i, &len) in lens.iter().enumerate() {
            let mut cuts: Vec<usize> = cuts.iter().map(|&cut| cut.min(len)).chain([0, len]).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            for cut in cuts.windows(2) {
                // The chunk stands behind a decode row of the first sequence.
                let step = vec![(0, lens[0] - 1..lens[0]), (i, cut[0]..cut[1])];
                chunks.extend_from_slice(&other.step(&device, &step, None)[whole.row()..]);
            }
            assert_bitwise_equal(&chunks, &expected[start..start + chunks.len()]);
            prop_assert_eq!(chunks.len(), len * whole.row());
            start += chunks.len();
        }
    }
}
