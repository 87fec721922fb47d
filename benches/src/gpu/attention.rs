//! Attention over the paged cache, and within pictures.

use foveal_device::{DType, Tensor};
use foveal_kernels::paged_attention::{PagedAttention, Plan, Work, paged_attention, plan, work_size};
use foveal_kernels::quantize::{Quantize, group_stride};
use foveal_kernels::varlen_attention::{VarlenAttention, varlen_attention};
use foveal_kernels::{KvLayout, KvScales};

use super::Bench;
use super::ceilings::Cost;
use super::shapes::{BF16, HEAD_DIM, HEADS, KV_HEADS, LAYOUT, VISION_HEAD_DIM, VISION_HEADS, VISION_HIDDEN};

/// Sequences and their contexts, a row each.
const DECODE: [(usize, usize); 5] = [(1, 4096), (1, 32768), (64, 2048), (128, 1766), (128, 4096)];
/// Tokens of a prompt.
const PREFILL: [usize; 3] = [1024, 4096, 16384];
/// Segments and their patches: pictures, and windows.
const VISION: [(usize, usize); 6] = [(1, 1024), (1, 4096), (8, 1024), (8, 4096), (64, 64), (512, 64)];

/// A sequence of a batch.
#[derive(Clone, Copy)]
struct Sequence {
    rows: usize,
    context: usize,
}

impl Sequence {
    fn num_pages(&self) -> usize {
        self.context.div_ceil(LAYOUT.page)
    }

    /// Its keys and values, queries and results; the products that the causal mask leaves.
    fn cost(&self, kv: DType) -> Cost {
        let Self { rows, context } = *self;
        let bytes = 2 * (context * KV_HEADS * kv.size_bytes() + rows * HEADS * BF16) * HEAD_DIM;
        let pairs = (rows * context) as f64 - (rows * (rows - 1)) as f64 / 2.0;
        Cost { bytes: bytes as f64, flops: 4.0 * pairs * (HEADS * HEAD_DIM) as f64 }
    }
}

pub(super) fn all(bench: &mut Bench) -> anyhow::Result<()> {
    for kv in [DType::BF16, DType::F8E4M3] {
        of_cache(bench, kv)?;
    }
    rounded(bench)?;
    VISION.into_iter().try_for_each(|(segments, len)| varlen(bench, segments, len))
}

/// Over pages of a type.
fn of_cache(bench: &mut Bench, kv: DType) -> anyhow::Result<()> {
    let named = |op: &str| if kv == DType::BF16 { op.to_owned() } else { format!("{op}, {kv}") };
    for (num_seqs, context) in DECODE {
        let sequences = vec![Sequence { rows: 1, context }; num_seqs];
        paged(
            bench,
            (kv, Rounding::Float),
            (&named("decode attention"), &format!("{num_seqs} x {context}")),
            &sequences,
        )?;
    }
    for tokens in PREFILL {
        let prompt = Sequence { rows: tokens, context: tokens };
        paged(bench, (kv, Rounding::Float), (&named("prefill attention"), &format!("1 x {tokens}")), &[prompt])?;
    }
    let mut mixed = vec![Sequence { rows: 1, context: 1766 }; 64];
    mixed.push(Sequence { rows: 1024, context: 1024 });
    paged(bench, (kv, Rounding::Float), (&named("mixed attention"), "1024 + 64 x 1766"), &mixed)
}

/// How a batch's rows leave.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rounding {
    Float,
    Fixed,
    PerGroup,
}

/// Rows that the next product reads as FP8: rounded by attention itself.
fn rounded(bench: &mut Bench) -> anyhow::Result<()> {
    let decode = vec![Sequence { rows: 1, context: 2048 }; 64];
    let prompt = [Sequence { rows: 4096, context: 4096 }];
    for (rounding, named) in [(Rounding::Fixed, "fixed scale"), (Rounding::PerGroup, "scales by group")] {
        let op = |of: &str| format!("{of} attention to FP8, {named}");
        paged(bench, (DType::F8E4M3, rounding), (&op("decode"), "64 x 2048"), &decode)?;
        paged(bench, (DType::F8E4M3, rounding), (&op("prefill"), "1 x 4096"), &prompt)?;
    }
    Ok(())
}

/// A batch's lengths and pages, on the card.
struct Lengths {
    cu_seqlens: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
}

impl Lengths {
    fn new(bench: &Bench, sequences: &[Sequence]) -> anyhow::Result<Self> {
        let max_blocks = sequences.iter().map(Sequence::num_pages).max().unwrap_or(1);
        let (mut cu_seqlens, mut block_tables) = (vec![0], Vec::new());
        let (mut num_rows, mut num_pages) = (0, 0);
        for (i, sequence) in sequences.iter().enumerate() {
            num_rows += sequence.rows;
            cu_seqlens.push(num_rows as i32);
            let next = num_pages + sequence.num_pages();
            block_tables.extend(num_pages as i32..next as i32);
            block_tables.resize((i + 1) * max_blocks, -1);
            num_pages = next;
        }
        let num_seqs = sequences.len();
        Ok(Self {
            cu_seqlens: bench.ints(cu_seqlens, &[num_seqs + 1])?,
            context_lens: bench.ints(sequences.iter().map(|sequence| sequence.context as i32), &[num_seqs])?,
            block_tables: bench.ints(block_tables, &[num_seqs, max_blocks])?,
        })
    }
}

fn paged(
    bench: &mut Bench,
    (kv, rounding): (DType, Rounding),
    (op, shape): (&str, &str),
    sequences: &[Sequence],
) -> anyhow::Result<()> {
    let layout = KvLayout { dtype: kv, ..LAYOUT };
    let plan_op = format!("plan of {op}");
    if !bench.wants(op, shape) && !bench.wants(&plan_op, shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let n: usize = sequences.iter().map(|sequence| sequence.rows).sum();
    let cache = layout.cache_shape(sequences.iter().map(Sequence::num_pages).sum());
    let (k_caches, v_caches) = match kv {
        DType::BF16 => (bench.rotation(&cache)?, bench.rotation(&cache)?),
        _ => (bench.f8_rotation(&cache)?, bench.f8_rotation(&cache)?),
    };
    let q = bench.random(&[n, HEADS, HEAD_DIM])?;
    let out_dtype = if rounding == Rounding::Float { DType::BF16 } else { DType::F8E4M3 };
    let mut out = bench.scratch(out_dtype, &[n, HEADS * HEAD_DIM])?;
    // A head is a group.
    let mut scales = bench.scratch(DType::F32, &[HEADS, group_stride(n)])?;
    let Lengths { cu_seqlens, context_lens, block_tables } = Lengths::new(bench, sequences)?;
    let size = work_size(n, sequences.len(), HEADS, layout, bench.cuda()?.num_sms() as usize);
    let mut list = bench.scratch(DType::I32, &[size.list_len])?;
    let mut counters = bench.scratch(DType::I32, &[size.counters_len])?;
    let mut partials = bench.scratch(DType::F32, &[size.partials_len])?;
    let make_plan = |list: &mut Tensor, counters: &mut Tensor| {
        let (cu_seqlens, context_lens) = (cu_seqlens.view(), context_lens.view());
        let (list, counters) = (list.view_mut()?, counters.view_mut()?);
        anyhow::Ok(plan(&stream, Plan { cu_seqlens, context_lens, num_heads: HEADS, layout, list, counters })?)
    };
    make_plan(&mut list, &mut counters)?;
    let cost = sequences.iter().map(|sequence| sequence.cost(kv)).fold(Cost::of_bytes(0), Cost::plus);
    bench.time(op, shape, cost, |i| {
        let args = PagedAttention {
            q: q.view(),
            layout,
            kv_scales: KvScales::ONE,
            k_cache: k_caches.view(i)?,
            v_cache: v_caches.view(i)?,
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            block_tables: block_tables.view(),
            scale: (HEAD_DIM as f32).powf(-0.5),
            work: Some(Work { list: list.view(), counters: counters.view_mut()?, partials: partials.view_mut()? }),
            quantize: match rounding {
                Rounding::Float => None,
                Rounding::Fixed => Some(Quantize::Fixed(0.01)),
                Rounding::PerGroup => Some(Quantize::PerGroup(scales.view_mut()?)),
            },
            out: out.view_mut()?,
        };
        Ok(paged_attention(&stream, args)?)
    })?;
    let lengths = Cost::of_bytes(8 * sequences.len());
    bench.time(&plan_op, shape, lengths, |_| make_plan(&mut list, &mut counters))
}

fn varlen(bench: &mut Bench, segments: usize, len: usize) -> anyhow::Result<()> {
    let (op, shape) = ("vision attention", format!("{segments} x {len}"));
    if !bench.wants(op, &shape) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let n = segments * len;
    let qkvs = bench.rotation(&[n, 3, VISION_HEADS, VISION_HEAD_DIM])?;
    let mut outs = bench.rotation(&[n, VISION_HIDDEN])?;
    let cu_seqlens = bench.ints((0..=segments).map(|i| (i * len) as i32), &[segments + 1])?;
    let bytes = (4 * n * VISION_HIDDEN * BF16) as f64;
    let cost = Cost { bytes, flops: 4.0 * (n * len) as f64 * VISION_HIDDEN as f64 };
    bench.time(op, &shape, cost, |i| {
        let args = VarlenAttention {
            qkv: qkvs.view(i)?,
            cu_seqlens: cu_seqlens.view(),
            scale: (VISION_HEAD_DIM as f32).powf(-0.5),
            out: outs.view_mut(i)?,
        };
        Ok(varlen_attention(&stream, args)?)
    })
}
