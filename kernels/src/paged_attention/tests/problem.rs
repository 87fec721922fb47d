//! Sequences in a paged cache, what a device computes for them, and plain loops in float64.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};

use super::super::cpu::paged_attention as run;
use super::super::{PagedAttention, Plan, Work, paged_attention, plan, work_size};
use crate::simd::Isa;
use crate::testing::{Quantized, load, store, tensor, values as numbers};
use crate::{KvLayout, KvScales};

/// A cache with the keys and values of some sequences, and queries for all of their tokens.
pub(super) struct Problem {
    pub(super) layout: KvLayout,
    pub(super) num_heads: usize,
    pub(super) q_dtype: DType,
    pub(super) out_dtype: DType,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    pub(super) sequences: Vec<Sequence>,
    pub(super) scale: f32,
    /// Of FP8 caches.
    pub(super) kv_scales: KvScales,
}

/// A sequence: its pages, and a query for each of its tokens.
pub(super) struct Sequence {
    pub(super) table: Vec<i32>,
    pub(super) q: Vec<f32>,
    pub(super) num_tokens: usize,
}

/// Rows of one step: of each sequence given by its index, the tokens of a range.
pub(super) type Step = Vec<(usize, std::ops::Range<usize>)>;

#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) q: DType,
    pub(super) cache: DType,
    pub(super) out: DType,
    pub(super) group: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) page: usize,
}

pub(super) const KIND: Kind =
    Kind { q: DType::F32, cache: DType::BF16, out: DType::F32, group: 2, num_kv_heads: 2, head_dim: 24, page: 32 };

/// The element types that show the most on a device: float32 queries and results on the CPU.
pub(super) fn kind(device: &Device) -> Kind {
    if device.is_cuda() { Kind { q: DType::BF16, out: DType::BF16, ..KIND } } else { KIND }
}

/// What a step lends on CUDA, full of what must not matter.
pub(super) struct Lent {
    pub(super) list: Tensor,
    pub(super) counters: Tensor,
    pub(super) partials: Tensor,
}

impl Lent {
    pub(super) fn new(device: &Device, n: usize, num_seqs: usize, num_heads: usize, layout: KvLayout) -> Option<Self> {
        let num_sms = device.stream().cuda()?.num_sms() as usize;
        let size = work_size(n, num_seqs, num_heads, layout, num_sms);
        Some(Self {
            list: tensor(device, &vec![i32::MAX; size.list_len], &[size.list_len]),
            counters: tensor(device, &vec![7_i32; size.counters_len], &[size.counters_len]),
            partials: tensor(device, &vec![f32::NAN; size.partials_len], &[size.partials_len]),
        })
    }

    pub(super) fn work(&mut self) -> Work<'_> {
        let (list, counters) = (self.list.view(), self.counters.view_mut().unwrap());
        Work { list, counters, partials: self.partials.view_mut().unwrap() }
    }
}

impl Problem {
    pub(super) fn new(device: &Device, kind: Kind, lens: &[usize]) -> Self {
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
            kv_scales: if cache == DType::F8E4M3 { KvScales { k: 0.75, v: 1.5 } } else { KvScales::ONE },
        }
    }

    pub(super) fn row(&self) -> usize {
        self.num_heads * self.layout.head_dim
    }

    /// Every token of every sequence.
    pub(super) fn whole(&self) -> Step {
        self.sequences.iter().enumerate().map(|(i, s)| (i, 0..s.num_tokens)).collect()
    }

    pub(super) fn step(&self, device: &Device, step: &Step, isa: Option<Isa>) -> Vec<f32> {
        self.step_to(device, step, isa, None)
    }

    /// With the rows rounded to FP8 into `rounded`.
    pub(super) fn step_rounded(&self, device: &Device, step: &Step, rounded: &mut Quantized) {
        self.step_to(device, step, None, Some(rounded));
    }

    fn step_to(&self, device: &Device, step: &Step, isa: Option<Isa>, rounded: Option<&mut Quantized>) -> Vec<f32> {
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
        self.attend(device, &q, [&cu_seqlens, &context_lens, &block_tables], isa, rounded)
    }

    /// `lengths`: cu_seqlens, context_lens and block_tables. Gives what was written, scales apart.
    pub(super) fn attend(
        &self,
        device: &Device,
        q: &[f32],
        lengths: [&[i32]; 3],
        isa: Option<Isa>,
        mut rounded: Option<&mut Quantized>,
    ) -> Vec<f32> {
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
            let mut floats = Tensor::zeros(device, self.out_dtype, &[n, self.row()]).unwrap();
            let (quantize, out) = match &mut rounded {
                Some(rounded) => {
                    let (quantize, out) = rounded.lend();
                    (Some(quantize), out)
                }
                None => (None, floats.view_mut().unwrap()),
            };
            let args = PagedAttention {
                q: q.view(),
                layout: self.layout,
                kv_scales: self.kv_scales,
                k_cache: self.keys.view(),
                v_cache: self.values.view(),
                cu_seqlens: cu_seqlens.view(),
                context_lens: context_lens.view(),
                block_tables: block_tables.view(),
                scale: self.scale,
                work: lent.as_mut().map(Lent::work),
                quantize,
                out,
            };
            match isa {
                Some(isa) => {
                    let sizes = args.check().unwrap();
                    run(isa, device.stream(), args, sizes).unwrap();
                }
                None => paged_attention(device.stream(), args).unwrap(),
            }
            load(rounded.as_ref().map_or(&floats, |rounded| &rounded.out))
        };
        let out = layer();
        if device.is_cuda() {
            // All layers of a step work by one list, and get the same bits from the same operands.
            assert_bitwise_equal(&layer(), &out);
            let counters = lent.unwrap().counters.to_vec::<i32>().unwrap();
            let left: Vec<_> = counters.iter().enumerate().filter(|&(_, &counter)| counter != 0).collect();
            assert!(left.is_empty(), "counters that are not back at 0: {left:?}");
        }
        out
    }

    /// The rows of a step, by plain loops in float64.
    pub(super) fn plain(&self, device: &Device, step: &Step) -> Vec<f32> {
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
                    products.sum::<f64>() * f64::from(self.scale) * f64::from(self.kv_scales.k)
                };
                let weights: Vec<f64> = (0..=token).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; head_dim];
                for (j, w) in weights.iter().enumerate() {
                    sums.iter_mut().zip(&vals[at(j)..]).for_each(|(sum, &v)| *sum += w * f64::from(v));
                }
                out.extend(sums.iter().map(|sum| (sum / total * f64::from(self.kv_scales.v)) as f32));
            }
        }
        out
    }

    pub(super) fn check(&self, device: &Device) {
        self.check_step(device, &self.whole());
    }

    pub(super) fn check_step(&self, device: &Device, step: &Step) {
        let (got, expected) = (self.step(device, step, None), self.plain(device, step));
        let rtol = if self.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
        // Weights that are rounded to bf16 are off by up to 2^-8 of themselves, so their mean of values below 1 is by no
        // more.
        let atol = if device.is_cuda() { 1.0 / 256.0 + 2e-5 } else { 2e-5 } * self.kv_scales.v.max(1.0);
        assert_close_at(&got, &expected, &[expected.len() / self.row(), self.row()], atol, rtol);
        // Roundings have no direction, and so add up to little; an error of one would not.
        let (error, size) = got.iter().zip(&expected).fold((0.0, 0.0), |(error, size), (&a, &b)| {
            (error + f64::from(a - b).powi(2), size + f64::from(b).powi(2))
        });
        let relative = (error / size.max(f64::MIN_POSITIVE)).sqrt();
        assert!(relative <= if self.out_dtype == DType::BF16 { 3e-3 } else { 1e-5 }, "off by {relative}");
    }
}
