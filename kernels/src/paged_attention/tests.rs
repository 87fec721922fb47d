//! Against plain float64 loops, and against itself: a row's bits depend on the keys that it sees alone.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::cpu::run;
use super::{PagedAttention, paged_attention};
use crate::simd::Isa;
use crate::testing::{device_tests, load, store, values as numbers};
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
        }
    }

    fn row(&self) -> usize {
        self.num_heads * self.layout.head_dim
    }

    fn scale(&self) -> f32 {
        (self.layout.head_dim as f32).powf(-0.5)
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
        let n = q.len() / self.row();
        let q = store(device, &q, self.q_dtype, &[n, self.num_heads, self.layout.head_dim]);
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
        let ints = |values: &[i32], dims: &[usize]| Tensor::from_slice(device, values, dims).unwrap();
        let cu_seqlens = ints(&cu_seqlens, &[step.len() + 1]);
        let context_lens = ints(&context_lens, &[step.len()]);
        let block_tables = ints(&block_tables, &[step.len(), max_blocks]);
        let mut out = Tensor::zeros(device, self.out_dtype, &[n, self.row()]).unwrap();
        let args = PagedAttention {
            q: q.view(),
            layout: self.layout,
            k_cache: self.keys.view(),
            v_cache: self.values.view(),
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            block_tables: block_tables.view(),
            scale: self.scale(),
            out: out.view_mut().unwrap(),
        };
        match isa {
            Some(isa) => run(isa, device.stream(), args).unwrap(),
            None => paged_attention(device.stream(), args).unwrap(),
        }
        load(&out)
    }

    /// Every token of every sequence, by plain loops in float64.
    fn plain(&self, device: &Device) -> Vec<f32> {
        let KvLayout { page, num_kv_heads, head_dim, .. } = self.layout;
        let (keys, vals) = (load(&self.keys), load(&self.values));
        let mut out = Vec::new();
        for sequence in &self.sequences {
            let q = load(&store(device, &sequence.q, self.q_dtype, &[sequence.q.len()]));
            for row in 0..sequence.num_tokens * self.num_heads {
                let (token, head) = (row / self.num_heads, row % self.num_heads);
                let kv_head = head / (self.num_heads / num_kv_heads);
                let at = |j: usize| {
                    ((sequence.table[j / page] as usize * num_kv_heads + kv_head) * page + j % page) * head_dim
                };
                let q = &q[row * head_dim..][..head_dim];
                let score = |j: usize| -> f64 {
                    let products = q.iter().zip(&keys[at(j)..]).map(|(&q, &k)| f64::from(q) * f64::from(k));
                    products.sum::<f64>() * f64::from(self.scale())
                };
                let weights: Vec<f64> = (0..=token).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    let sum: f64 = weights.iter().enumerate().map(|(j, w)| w * f64::from(vals[at(j) + i])).sum();
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }

    fn check(&self, device: &Device) {
        let (got, expected) = (self.step(device, &self.whole(), None), self.plain(device));
        let rtol = if self.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
        assert_close_at(&got, &expected, &[expected.len() / self.row(), self.row()], 2e-5, rtol);
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
    for (lens, [group, num_kv_heads, head_dim, page]) in shapes {
        for q in [DType::F32, DType::BF16] {
            for cache in [DType::F32, DType::BF16, DType::F16] {
                for out in [DType::F32, DType::BF16] {
                    let kind = Kind { q, cache, out, group, num_kv_heads, head_dim, page };
                    Problem::new(device, kind, lens).check(device);
                }
            }
        }
    }
}

fn a_real_prompt_agrees_with_float64(device: &Device) {
    Problem::new(device, Kind { num_kv_heads: 8, head_dim: 128, ..KIND }, &[150]).check(device);
}

fn sequences_without_rows_are_passed_over(device: &Device) {
    let problem = Problem::new(device, KIND, &[40, 9]);
    let whole = problem.step(device, &problem.whole(), None);
    let step = vec![(0, 40..40), (0, 39..40), (1, 0..0), (1, 8..9), (1, 9..9)];
    let row = problem.row();
    let expected = [&whole[39 * row..40 * row], &whole[48 * row..]].concat();
    assert_bitwise_equal(&problem.step(device, &step, None), &expected);
    assert!(problem.step(device, &vec![], None).is_empty());
    assert!(problem.step(device, &vec![(0, 0..0)], None).is_empty());
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
        let expected = problem.plain(&device);
        for isa in Isa::all() {
            let got = problem.step(&device, &problem.whole(), Some(isa));
            assert_close_at(&got, &expected, &[128, problem.row()], 2e-5, 0.0);
            if isa.is_fused() {
                assert_bitwise_equal(&got, &problem.step(&device, &problem.whole(), Some(Isa::best())));
            }
        }
    }
}

device_tests!(
    every_type_and_shape_agrees_with_float64,
    a_real_prompt_agrees_with_float64,
    sequences_without_rows_are_passed_over,
    later_tokens_are_not_seen_even_where_they_are_infinite,
);

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
}

fn refusal(spoil: impl FnOnce(&mut Operands)) -> OpError {
    let layout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 8 };
    let mut o = Operands {
        q: (DType::F32, vec![4, 4, 8]),
        layout,
        k_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        v_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        cu_seqlens: vec![0, 2, 4],
        context_lens: vec![40, 2],
        block_tables: (vec![2, 0, 1, -1], vec![2, 2]),
        out: (DType::F32, vec![4, 32]),
    };
    spoil(&mut o);
    let device = Device::cpu(1).unwrap();
    let zeros = |(dtype, dims): &(DType, Vec<usize>)| Tensor::zeros(&device, *dtype, dims).unwrap();
    let ints = |values: &[i32], dims: &[usize]| Tensor::from_slice(&device, values, dims).unwrap();
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
        out: out.view_mut().unwrap(),
    };
    match paged_attention(device.stream(), args) {
        Ok(()) => OpError::Shape { op: "", arg: "nothing", expected: String::new(), got: *out.shape() },
        Err(e) => e,
    }
}

#[test]
fn misfits_are_refused_by_name() {
    let arg = |e: OpError| match e {
        OpError::Shape { arg, .. } | OpError::DType { arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(arg(refusal(|_| {})), "nothing");
    assert_eq!(arg(refusal(|o| o.q.0 = DType::F16)), "q");
    assert_eq!(arg(refusal(|o| o.q.1 = vec![4, 3, 8])), "q");
    assert_eq!(arg(refusal(|o| o.q.1 = vec![4, 4, 9])), "q");
    assert_eq!(arg(refusal(|o| o.q.1 = vec![4, 32])), "q");
    assert_eq!(arg(refusal(|o| o.k_cache.0 = DType::F32)), "k_cache");
    assert_eq!(arg(refusal(|o| o.v_cache.1[0] = 2)), "v_cache");
    assert_eq!(arg(refusal(|o| o.k_cache.1[2] = 64)), "k_cache");
    assert_eq!(arg(refusal(|o| o.cu_seqlens.push(4))), "cu_seqlens");
    assert_eq!(arg(refusal(|o| o.context_lens.push(4))), "context_lens");
    assert_eq!(arg(refusal(|o| o.block_tables.1 = vec![4])), "block_tables");
    assert_eq!(arg(refusal(|o| o.out.1 = vec![4, 31])), "out");
    assert_eq!(arg(refusal(|o| o.out.0 = DType::F16)), "out");
    let no_heads = |o: &mut Operands| {
        o.layout.num_kv_heads = 0;
        (o.k_cache.1[1], o.v_cache.1[1]) = (0, 0);
    };
    assert_eq!(arg(refusal(no_heads)), "q");
    let bytes = |o: &mut Operands| {
        o.layout.dtype = DType::U8;
        (o.k_cache.0, o.v_cache.0) = (DType::U8, DType::U8);
    };
    assert_eq!(arg(refusal(bytes)), "k_cache");
}

#[test]
fn values_out_of_range_are_refused_with_their_place() {
    let place = |spoil: &dyn Fn(&mut Operands)| match refusal(spoil) {
        OpError::Value { op: "paged_attention", arg, index, value, .. } => (arg, index, value),
        other => panic!("{other}"),
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
