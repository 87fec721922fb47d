//! Against plain float64 loops, and against itself: on the CPU a row's bits depend on the keys that it sees alone.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::cpu::paged_attention as run;
use super::{PagedAttention, Plan, Work, paged_attention, plan, work_size};
use crate::simd::Isa;
use crate::testing::{blamed, device_tests, gpu, load, store, tensor, values as numbers};
use crate::{KvLayout, OpError};

/// A cache with the keys and values of some sequences, and queries for all of their tokens.
struct Problem {
    layout: KvLayout,
    num_heads: usize,
    q_dtype: DType,
    out_dtype: DType,
    keys: Tensor,
    values: Tensor,
    sequences: Vec<Sequence>,
    scale: f32,
}

/// A sequence: its pages, and a query for each of its tokens.
struct Sequence {
    table: Vec<i32>,
    q: Vec<f32>,
    num_tokens: usize,
}

/// Rows of one step: of each sequence given by its index, the tokens of a range.
type Step = Vec<(usize, std::ops::Range<usize>)>;

#[derive(Clone, Copy)]
struct Kind {
    q: DType,
    cache: DType,
    out: DType,
    group: usize,
    num_kv_heads: usize,
    head_dim: usize,
    page: usize,
}

const KIND: Kind =
    Kind { q: DType::F32, cache: DType::BF16, out: DType::F32, group: 2, num_kv_heads: 2, head_dim: 24, page: 32 };

/// The element types that show the most on a device: float32 queries and results on the CPU.
fn kind(device: &Device) -> Kind {
    if device.is_cuda() { Kind { q: DType::BF16, out: DType::BF16, ..KIND } } else { KIND }
}

/// What a step lends on CUDA, full of what must not matter.
struct Lent {
    list: Tensor,
    counters: Tensor,
    partials: Tensor,
}

impl Lent {
    fn new(device: &Device, n: usize, num_seqs: usize, num_heads: usize, layout: KvLayout) -> Option<Self> {
        let num_sms = device.stream().cuda()?.num_sms() as usize;
        let size = work_size(n, num_seqs, num_heads, layout, num_sms);
        Some(Self {
            list: tensor(device, &vec![i32::MAX; size.list_len], &[size.list_len]),
            counters: tensor(device, &vec![7_i32; size.counters_len], &[size.counters_len]),
            partials: tensor(device, &vec![f32::NAN; size.partials_len], &[size.partials_len]),
        })
    }

    fn work(&mut self) -> Work<'_> {
        let (list, counters) = (self.list.view(), self.counters.view_mut().unwrap());
        Work { list, counters, partials: self.partials.view_mut().unwrap() }
    }
}

impl Problem {
    fn new(device: &Device, kind: Kind, lens: &[usize]) -> Self {
        let Kind { q: q_dtype, cache, out: out_dtype, group, num_kv_heads, head_dim, page } = kind;
        let layout = KvLayout { page, dtype: cache, num_kv_heads, head_dim };
        let num_heads = group * num_kv_heads;
        let num_blocks = lens.iter().map(|len| len.div_ceil(page)).sum::<usize>() + 1;
        let shape = layout.cache_shape(num_blocks);
        // Blocks are given out backwards; what no sequence has written is NaN, so that a read of it shows.
        let mut next = num_blocks as i32 - 1;
        let len: usize = shape.iter().product();
        let (mut keys, mut values) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        let mut sequences = Vec::new();
        for (i, &num_tokens) in lens.iter().enumerate() {
            let table: Vec<i32> = (0..num_tokens.div_ceil(page)).map(|_| (next, next -= 1).0).collect();
            let row = num_kv_heads * head_dim;
            for (cache, seed) in [(&mut keys, 100), (&mut values, 200)] {
                let own = numbers(seed + i as u64, num_tokens * row, 1.0);
                for token in 0..num_tokens {
                    for head in 0..num_kv_heads {
                        let block = table[token / page] as usize;
                        let at = ((block * num_kv_heads + head) * page + token % page) * head_dim;
                        cache[at..at + head_dim].copy_from_slice(&own[token * row + head * head_dim..][..head_dim]);
                    }
                }
            }
            let q = numbers(300 + i as u64, num_tokens * num_heads * head_dim, 1.0).iter().map(|x| x * 6.0).collect();
            sequences.push(Sequence { table, q, num_tokens });
        }
        Self {
            layout,
            num_heads,
            q_dtype,
            out_dtype,
            keys: store(device, &keys, cache, &shape),
            values: store(device, &values, cache, &shape),
            sequences,
            scale: (head_dim as f32).powf(-0.5),
        }
    }

    fn row(&self) -> usize {
        self.num_heads * self.layout.head_dim
    }

    /// Every token of every sequence.
    fn whole(&self) -> Step {
        self.sequences.iter().enumerate().map(|(i, s)| (i, 0..s.num_tokens)).collect()
    }

    fn step(&self, device: &Device, step: &Step, isa: Option<Isa>) -> Vec<f32> {
        let q: Vec<f32> = step
            .iter()
            .flat_map(|(i, tokens)| &self.sequences[*i].q[tokens.start * self.row()..tokens.end * self.row()])
            .copied()
            .collect();
        let mut cu_seqlens = vec![0];
        let mut context_lens = Vec::new();
        let max_blocks = step.iter().map(|(i, _)| self.sequences[*i].table.len()).max().unwrap_or(0) + 1;
        let mut block_tables = Vec::new();
        for (i, tokens) in step {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + tokens.len() as i32);
            context_lens.push(tokens.end as i32);
            let mut table = self.sequences[*i].table.clone();
            // What follows the sequence's own blocks is never looked at.
            table.resize(max_blocks, -1);
            block_tables.extend(table);
        }
        self.attend(device, &q, [&cu_seqlens, &context_lens, &block_tables], isa)
    }

    /// `lengths`: cu_seqlens, context_lens and block_tables.
    fn attend(&self, device: &Device, q: &[f32], lengths: [&[i32]; 3], isa: Option<Isa>) -> Vec<f32> {
        let (n, num_seqs) = (q.len() / self.row(), lengths[1].len());
        let q = store(device, q, self.q_dtype, &[n, self.num_heads, self.layout.head_dim]);
        let cu_seqlens = tensor(device, lengths[0], &[num_seqs + 1]);
        let context_lens = tensor(device, lengths[1], &[num_seqs]);
        let max_blocks = lengths[2].len().checked_div(num_seqs).unwrap_or(1);
        let block_tables = tensor(device, lengths[2], &[num_seqs, max_blocks]);
        let mut lent = Lent::new(device, n, num_seqs, self.num_heads, self.layout);
        if let Some(lent) = &mut lent {
            let args = Plan {
                cu_seqlens: cu_seqlens.view(),
                context_lens: context_lens.view(),
                num_heads: self.num_heads,
                layout: self.layout,
                list: lent.list.view_mut().unwrap(),
                counters: lent.counters.view_mut().unwrap(),
            };
            plan(device.stream(), args).unwrap();
        }
        let mut layer = || {
            let mut out = Tensor::zeros(device, self.out_dtype, &[n, self.row()]).unwrap();
            let args = PagedAttention {
                q: q.view(),
                layout: self.layout,
                k_cache: self.keys.view(),
                v_cache: self.values.view(),
                cu_seqlens: cu_seqlens.view(),
                context_lens: context_lens.view(),
                block_tables: block_tables.view(),
                scale: self.scale,
                work: lent.as_mut().map(Lent::work),
                out: out.view_mut().unwrap(),
            };
            match isa {
                Some(isa) => {
                    let sizes = args.check().unwrap();
                    run(isa, device.stream(), args, sizes).unwrap();
                }
                None => paged_attention(device.stream(), args).unwrap(),
            }
            load(&out)
        };
        let out = layer();
        if device.is_cuda() {
            // All layers of a step work by one list, and get the same bits from the same operands.
            assert_bitwise_equal(&layer(), &out);
            let counters = lent.unwrap().counters.to_vec::<i32>().unwrap();
            assert!(counters.iter().all(|&counter| counter == 0));
        }
        out
    }

    /// The rows of a step, by plain loops in float64.
    fn plain(&self, device: &Device, step: &Step) -> Vec<f32> {
        let KvLayout { page, num_kv_heads, head_dim, .. } = self.layout;
        let (keys, vals) = (load(&self.keys), load(&self.values));
        let mut out = Vec::new();
        for (i, tokens) in step {
            let sequence = &self.sequences[*i];
            let q = load(&store(device, &sequence.q, self.q_dtype, &[sequence.q.len()]));
            for row in tokens.start * self.num_heads..tokens.end * self.num_heads {
                let (token, head) = (row / self.num_heads, row % self.num_heads);
                let kv_head = head / (self.num_heads / num_kv_heads);
                let at = |j: usize| {
                    ((sequence.table[j / page] as usize * num_kv_heads + kv_head) * page + j % page) * head_dim
                };
                let q = &q[row * head_dim..][..head_dim];
                let score = |j: usize| -> f64 {
                    let products = q.iter().zip(&keys[at(j)..]).map(|(&q, &k)| f64::from(q) * f64::from(k));
                    products.sum::<f64>() * f64::from(self.scale)
                };
                let weights: Vec<f64> = (0..=token).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; head_dim];
                for (j, w) in weights.iter().enumerate() {
                    sums.iter_mut().zip(&vals[at(j)..]).for_each(|(sum, &v)| *sum += w * f64::from(v));
                }
                out.extend(sums.iter().map(|sum| (sum / total) as f32));
            }
        }
        out
    }

    fn check(&self, device: &Device) {
        self.check_step(device, &self.whole());
    }

    fn check_step(&self, device: &Device, step: &Step) {
        let (got, expected) = (self.step(device, step, None), self.plain(device, step));
        let rtol = if self.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
        // Weights that are rounded to bf16 are off by 2^-9 of themselves, so their mean of values below 1 is by no more.
        let atol = if device.is_cuda() { 1.0 / 512.0 + 2e-5 } else { 2e-5 };
        assert_close_at(&got, &expected, &[expected.len() / self.row(), self.row()], atol, rtol);
    }
}

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
    let caches: &[DType] = if is_cuda { &[bf16] } else { &[f32, bf16, f16] };
    for (lens, [group, num_kv_heads, head_dim, page]) in shapes {
        if is_cuda && head_dim % 8 != 0 {
            continue;
        }
        for &q in activations {
            for &cache in caches {
                for &out in activations {
                    let kind = Kind { q, cache, out, group, num_kv_heads, head_dim, page };
                    Problem::new(device, kind, lens).check(device);
                }
            }
        }
    }
}

fn a_real_prompt_agrees_with_float64(device: &Device) {
    Problem::new(device, Kind { num_kv_heads: 8, head_dim: 128, ..kind(device) }, &[150]).check(device);
}

fn groups_and_widths_of_heads_agree_with_float64(device: &Device) {
    // A chunk of several tiles, decode rows and a short chunk; heads that fill tensor-core tiles and heads that don't.
    let step = vec![(0, 70..150), (1, 0..1), (2, 29..33), (3, 64..65), (0, 149..150)];
    for group in [1, 2, 4, 5, 7, 8, 17] {
        for head_dim in [64, 128] {
            let kind = Kind { group, head_dim, ..kind(device) };
            Problem::new(device, kind, &[150, 1, 33, 65]).check_step(device, &step);
        }
    }
    for head_dim in (8..128).step_by(8) {
        let kind = Kind { group: 4, num_kv_heads: 1, head_dim, ..kind(device) };
        Problem::new(device, kind, &[150, 1, 33, 65]).check_step(device, &step);
    }
}

fn long_contexts_agree_with_float64(device: &Device) {
    // On a GPU, their keys are split over blocks.
    for (group, head_dim, page) in [(4, 128, 32), (8, 64, 96), (7, 128, 64)] {
        let problem = Problem::new(device, Kind { group, head_dim, page, ..kind(device) }, &[3000, 2500, 1]);
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
    let rows = |i: usize, len: usize| if i % 9 == 0 { len / 2..len } else { len - usize::from(i % 7 != 0)..len };
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

fn a_scale_of_any_sign_is_taken(device: &Device) {
    for scale in [-0.3, 0.0, 1.0] {
        let mut problem = Problem::new(device, kind(device), &[70, 1, 5]);
        problem.scale = scale;
        problem.check(device);
        problem.check_step(device, &vec![(0, 69..70), (2, 3..5)]);
    }
}

fn what_lies_beyond_the_context_does_not_matter(device: &Device) {
    for head_dim in [24, 64] {
        let mut problem = Problem::new(device, Kind { head_dim, ..kind(device) }, &[70]);
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
            *cache = store(device, &spoilt, DType::BF16, cache.shape());
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
    for cache in [DType::F32, DType::BF16, DType::F16] {
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
    values_out_of_range_are_refused_with_their_place,
]; any: [
    every_type_and_shape_agrees_with_float64,
    a_real_prompt_agrees_with_float64,
    groups_and_widths_of_heads_agree_with_float64,
    long_contexts_agree_with_float64,
    a_long_prompt_agrees_with_float64,
    seventy_sequences_agree_with_float64,
    sequences_without_rows_are_passed_over,
    a_scale_of_any_sign_is_taken,
    what_lies_beyond_the_context_does_not_matter,
    misfits_are_refused_by_name,
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

/// Operands that fit, to be spoilt one by one: two sequences of 2 rows, with contexts of 40 and 2 tokens.
struct Operands {
    q: (DType, Vec<usize>),
    layout: KvLayout,
    k_cache: (DType, Vec<usize>),
    v_cache: (DType, Vec<usize>),
    cu_seqlens: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: (Vec<i32>, Vec<usize>),
    out: (DType, Vec<usize>),
    has_work: bool,
}

fn refusal(device: &Device, spoil: impl FnOnce(&mut Operands)) -> Result<(), OpError> {
    let layout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 8 };
    let mut o = Operands {
        q: (kind(device).q, vec![4, 4, 8]),
        layout,
        k_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        v_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        cu_seqlens: vec![0, 2, 4],
        context_lens: vec![40, 2],
        block_tables: (vec![2, 0, 1, -1], vec![2, 2]),
        out: (kind(device).out, vec![4, 32]),
        has_work: true,
    };
    spoil(&mut o);
    let mut lent = Lent::new(device, 4, 2, 4, layout).filter(|_| o.has_work);
    let zeros = |(dtype, dims): &(DType, Vec<usize>)| Tensor::zeros(device, *dtype, dims).unwrap();
    let ints = |values: &[i32], dims: &[usize]| Tensor::from_slice(device, values, dims).unwrap();
    let (q, k_cache, v_cache, mut out) = (zeros(&o.q), zeros(&o.k_cache), zeros(&o.v_cache), zeros(&o.out));
    let cu_seqlens = ints(&o.cu_seqlens, &[o.cu_seqlens.len()]);
    let context_lens = ints(&o.context_lens, &[o.context_lens.len()]);
    let block_tables = ints(&o.block_tables.0, &o.block_tables.1);
    let args = PagedAttention {
        q: q.view(),
        layout: o.layout,
        k_cache: k_cache.view(),
        v_cache: v_cache.view(),
        cu_seqlens: cu_seqlens.view(),
        context_lens: context_lens.view(),
        block_tables: block_tables.view(),
        scale: 1.0,
        work: lent.as_mut().map(Lent::work),
        out: out.view_mut().unwrap(),
    };
    paged_attention(device.stream(), args)
}

fn misfits_are_refused_by_name(device: &Device) {
    let refusal = |spoil: &dyn Fn(&mut Operands)| refusal(device, spoil);
    refusal(&|_| {}).unwrap();
    assert_eq!(blamed(refusal(&|o| o.q.0 = DType::F16)), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 3, 8])), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 4, 9])), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 32])), "q");
    assert_eq!(blamed(refusal(&|o| o.k_cache.0 = DType::F32)), "k_cache");
    assert_eq!(blamed(refusal(&|o| o.v_cache.1[0] = 2)), "v_cache");
    assert_eq!(blamed(refusal(&|o| o.k_cache.1[2] = 64)), "k_cache");
    assert_eq!(blamed(refusal(&|o| o.cu_seqlens.push(4))), "cu_seqlens");
    assert_eq!(blamed(refusal(&|o| o.context_lens.push(4))), "context_lens");
    assert_eq!(blamed(refusal(&|o| o.block_tables.1 = vec![4])), "block_tables");
    assert_eq!(blamed(refusal(&|o| o.out.1 = vec![4, 31])), "out");
    assert_eq!(blamed(refusal(&|o| o.out.0 = DType::F16)), "out");
    let no_heads = |o: &mut Operands| {
        o.layout.num_kv_heads = 0;
        (o.k_cache.1[1], o.v_cache.1[1]) = (0, 0);
    };
    assert_eq!(blamed(refusal(&no_heads)), "q");
    let bytes = |o: &mut Operands| {
        o.layout.dtype = DType::U8;
        (o.k_cache.0, o.v_cache.0) = (DType::U8, DType::U8);
    };
    assert_eq!(blamed(refusal(&bytes)), "k_cache");
}

fn values_out_of_range_are_refused_with_their_place(device: &Device) {
    let place = |spoil: &dyn Fn(&mut Operands)| match refusal(device, spoil) {
        Err(OpError::Value { op: "paged_attention", arg, index, value, .. }) => (arg, index, value),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&|o| o.layout.page = 48), ("layout.page", 0, 48));
    assert_eq!(place(&|o| o.layout.page = 0), ("layout.page", 0, 0));
    assert_eq!(place(&|o| o.cu_seqlens[0] = 1), ("cu_seqlens", 0, 1));
    assert_eq!(place(&|o| o.cu_seqlens[1] = 5), ("cu_seqlens", 2, 4));
    assert_eq!(place(&|o| o.cu_seqlens[2] = 3), ("cu_seqlens", 2, 3));
    assert_eq!(place(&|o| o.context_lens[1] = 1), ("context_lens", 1, 1));
    assert_eq!(place(&|o| o.context_lens[0] = 65), ("context_lens", 0, 65));
    assert_eq!(place(&|o| o.context_lens[0] = -1), ("context_lens", 0, -1));
    assert_eq!(place(&|o| o.block_tables.0[1] = 3), ("block_tables", 1, 3));
    assert_eq!(place(&|o| o.block_tables.0[2] = -1), ("block_tables", 2, -1));
}

/// What a GPU has no kernel for, and what it can't do without.
#[test]
fn cuda_refuses_by_name_what_it_does_not_take() {
    let Some(device) = gpu() else { return };
    let heads_of = |o: &mut Operands, head_dim: usize| {
        o.layout.head_dim = head_dim;
        o.q.1[2] = head_dim;
        (o.k_cache.1[3], o.v_cache.1[3], o.out.1[1]) = (head_dim, head_dim, 4 * head_dim);
    };
    let is_dtype = |result: Result<(), OpError>| (matches!(result, Err(OpError::DType { .. })), blamed(result));
    assert_eq!(is_dtype(refusal(&device, |o| o.q.0 = DType::F32)), (true, "q"));
    assert_eq!(is_dtype(refusal(&device, |o| o.q.0 = DType::F16)), (true, "q"));
    assert_eq!(is_dtype(refusal(&device, |o| o.out.0 = DType::F32)), (true, "out"));
    for dtype in [DType::F32, DType::F16] {
        let cache = |o: &mut Operands| (o.layout.dtype, o.k_cache.0, o.v_cache.0) = (dtype, dtype, dtype);
        assert_eq!(is_dtype(refusal(&device, cache)), (true, "k_cache"));
    }
    for head_dim in [12, 136] {
        assert!(matches!(refusal(&device, |o| heads_of(o, head_dim)), Err(OpError::Shape { arg: "q", .. })));
    }
    assert!(matches!(refusal(&device, |o| o.has_work = false), Err(OpError::Mismatch { arg: "work", .. })));
    // Memory for fewer rows.
    let more = |o: &mut Operands| {
        (o.q.1[0], o.out.1[0]) = (4000, 4000);
        o.cu_seqlens[2] = 4000;
    };
    assert_eq!(blamed(refusal(&device, more)), "work.list");
}

/// Lengths and blocks that are wrong, which a GPU's host can't see, neither write nor read outside of the operands.
#[test]
fn cuda_keeps_within_bounds_whatever_the_lengths() {
    let Some(device) = gpu() else { return };
    let problem = Problem::new(&device, Kind { head_dim: 64, ..kind(&device) }, &[100]);
    let q = &problem.sequences[0].q;
    for cu_seqlens in [[0, -5, 1 << 30], [0, i32::MAX, i32::MIN], [70, 20, 90], [0, 50, 1000]] {
        for context_lens in [[100, 100], [0, -1], [i32::MAX, i32::MIN], [5000, 3]] {
            for tables in [[0, 1, 2, 3, 3, 2, 1, 0], [-1, 4, 5, i32::MAX, i32::MIN, 1 << 20, -7, 9]] {
                problem.attend(&device, q, [&cu_seqlens, &context_lens, &tables], None);
            }
        }
    }
    // The device is still well.
    problem.check(&device);
}

/// The list's memory may hold anything when a caller forgets to plan.
#[test]
fn cuda_keeps_within_bounds_whatever_the_list() {
    let Some(device) = gpu() else { return };
    for seed in 0..20 {
        let layout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 64 };
        let mut lent = Lent::new(&device, 40, 3, 8, layout).unwrap();
        let len = lent.list.shape().num_elements();
        let scale = [8.0, 200.0, 1e9][seed as usize % 3];
        let items: Vec<i32> =
            numbers(seed, len, scale).iter().map(|&x| if seed < 4 { x } else { x.abs() } as i32).collect();
        lent.list = tensor(&device, &items, &[len]);
        let zeros = |dtype, dims: &[usize]| Tensor::zeros(&device, dtype, dims).unwrap();
        let (q, cache) = (zeros(DType::BF16, &[40, 8, 64]), zeros(DType::BF16, &layout.cache_shape(3)));
        let (cu_seqlens, context_lens) = (zeros(DType::I32, &[4]), zeros(DType::I32, &[3]));
        let block_tables = zeros(DType::I32, &[3, 2]);
        let mut out = zeros(DType::BF16, &[40, 512]);
        let args = PagedAttention {
            q: q.view(),
            layout,
            k_cache: cache.view(),
            v_cache: cache.view(),
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            block_tables: block_tables.view(),
            scale: 1.0,
            work: Some(lent.work()),
            out: out.view_mut().unwrap(),
        };
        paged_attention(device.stream(), args).unwrap();
        load(&out);
    }
}

#[test]
fn a_plan_is_checked_on_every_device() {
    let device = Device::cpu(1).unwrap();
    let run = |lens: [usize; 2], num_heads: usize, dtype: DType| {
        let ints = |len: usize| tensor(&device, &vec![0_i32; len], &[len]);
        let (cu_seqlens, context_lens, mut counters) = (ints(lens[0]), ints(lens[1]), ints(9));
        let mut list = Tensor::zeros(&device, dtype, &[64]).unwrap();
        let args = Plan {
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            num_heads,
            layout: KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 64 },
            list: list.view_mut().unwrap(),
            counters: counters.view_mut().unwrap(),
        };
        plan(device.stream(), args)
    };
    run([3, 2], 8, DType::I32).unwrap();
    assert_eq!(blamed(run([2, 2], 8, DType::I32)), "cu_seqlens");
    assert_eq!(blamed(run([3, 2], 7, DType::I32)), "num_heads");
    assert_eq!(blamed(run([3, 2], 8, DType::F32)), "list");
}
