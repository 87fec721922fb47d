//! Every operator at the shapes of Qwen3-VL-8B.

use foveal_device::{DType, Tensor};
use foveal_kernels::activation::{Activate, Activation, Gated, activate, gated};
use foveal_kernels::linear::{Linear, linear, tune};
use foveal_kernels::norm::{AddNorm, NormKind, add_norm};
use foveal_kernels::paged_attention::{PagedAttention, Plan, Work, paged_attention, plan, work_size};
use foveal_kernels::qk_norm_rope::{Mrope, QkNorm, QkNormRope, qk_norm_rope};
use foveal_kernels::sampling::{RowSampling, Sample, sample, workspace_bytes};
use foveal_kernels::varlen_attention::{VarlenAttention, varlen_attention};
use foveal_kernels::vision_rope::{VisionRope, vision_rope};
use foveal_kernels::{KvLayout, OpError};

use super::Bench;
use super::measure::Bound;

const HIDDEN: usize = 4096;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const INNER: usize = 12288;
const VOCAB: usize = 151_936;
const VISION_HIDDEN: usize = 1152;
const VISION_HEADS: usize = 16;
const VISION_HEAD_DIM: usize = 72;
const VISION_INNER: usize = 4304;
const LAYOUT: KvLayout =
    KvLayout { page: KvLayout::DEFAULT_PAGE, dtype: DType::BF16, num_kv_heads: KV_HEADS, head_dim: HEAD_DIM };
const BF16: f64 = 2.0;

/// A view that can't be made is the operator's error too.
fn op(source: foveal_device::DeviceError) -> OpError {
    OpError::Device { op: "bench", source }
}

/// All operators.
///
/// # Errors
/// Of the device, or of an operator.
pub fn operators(bench: &mut Bench) -> anyhow::Result<()> {
    linears(bench)?;
    for n in [1, 128, 8192] {
        elementwise(bench, n)?;
        rotary(bench, n)?;
    }
    for n in [1024, 8192] {
        vision_elementwise(bench, n)?;
    }
    for (num_seqs, context) in [(1, 4096), (1, 32768), (64, 2048), (128, 1766), (128, 4096)] {
        attention(bench, &format!("decode attention {num_seqs} x {context}"), &vec![(1, context); num_seqs])?;
    }
    for tokens in [1024, 4096, 16384] {
        attention(bench, &format!("prefill attention 1 x {tokens}"), &[(tokens, tokens)])?;
    }
    let mixed: Vec<(usize, usize)> = std::iter::once((1024, 1024)).chain([(1, 1766); 64]).collect();
    attention(bench, "mixed attention 1024 + 64 x 1766", &mixed)?;
    for (segments, len) in [(1, 1024), (1, 4096), (8, 1024), (8, 4096), (64, 64)] {
        vision_attention(bench, segments, len)?;
    }
    for rows in [1, 32, 128] {
        for temperature in [0.0, 0.8] {
            sampling(bench, rows, temperature)?;
        }
    }
    Ok(())
}

fn linears(bench: &mut Bench) -> anyhow::Result<()> {
    let shapes = [
        ("qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        ("o", HIDDEN, HEADS * HEAD_DIM),
        ("gate_up", 2 * INNER, HIDDEN),
        ("down", HIDDEN, INNER),
        ("lm_head", VOCAB, HIDDEN),
    ];
    for (name, n, k) in shapes {
        if !bench.wants(&format!("linear {name}")) && !bench.wants("linear") {
            continue;
        }
        let weights = bench.rotation(&[n, k])?;
        let out_dtype = if name == "lm_head" { DType::F32 } else { DType::BF16 };
        for m in [1, 4, 8, 16, 32, 64, 128, 256, 1280, 8192] {
            if name == "lm_head" && m > 256 {
                continue;
            }
            let x = bench.random(&[m, k])?;
            let mut out = Tensor::zeros(&bench.device, out_dtype, &[m, n])?;
            let stream = bench.device.stream().clone();
            let others: Vec<_> = weights.iter().skip(1).map(|weight| [weight.view()]).collect();
            let others: Vec<&[_]> = others.iter().map(|other| &other[..]).collect();
            let args = Linear { x: x.view(), weight: &[weights[0].view()], bias: None, out: out.view_mut()? };
            tune(&stream, args, &others)?;
            let weight_bytes = (n * k) as f64 * BF16;
            let bound = match m <= 128 {
                true => Bound::Bytes(weight_bytes + (m * (k + n)) as f64 * BF16),
                false => Bound::Flops(2.0 * (m * n) as f64 * k as f64),
            };
            bench.time(&format!("linear {name} {m} x {k} -> {n}"), bound, |i| {
                let weight = &[weights[i % weights.len()].view()];
                linear(&stream, Linear { x: x.view(), weight, bias: None, out: out.view_mut().map_err(op)? })
            })?;
        }
    }
    Ok(())
}

fn elementwise(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let stream = bench.device.stream().clone();
    let (mut residuals, adds) = (bench.rotation(&[n, HIDDEN])?, bench.rotation(&[n, HIDDEN])?);
    let weight = bench.random(&[HIDDEN])?;
    let mut outs = bench.rotation(&[n, HIDDEN])?;
    let count = residuals.len();
    let row = (n * HIDDEN) as f64 * BF16;
    bench.time(&format!("add_norm {n} x {HIDDEN}"), Bound::Bytes(4.0 * row), |i| {
        add_norm(
            &stream,
            AddNorm {
                residual: residuals[i % count].view_mut().map_err(op)?,
                add: Some(adds[i % count].view()),
                extra: None,
                weight: weight.view(),
                bias: None,
                kind: NormKind::Rms,
                eps: 1e-6,
                out: outs[i % count].view_mut().map_err(op)?,
            },
        )
    })?;
    let gate_up = bench.rotation(&[n, 2 * INNER])?;
    let mut inner = bench.rotation(&[n, INNER])?;
    let count = gate_up.len().min(inner.len());
    bench.time(&format!("gated {n} x {INNER}"), Bound::Bytes(3.0 * (n * INNER) as f64 * BF16), |i| {
        let out = inner[i % count].view_mut().map_err(op)?;
        gated(&stream, Gated { gate_up: gate_up[i % count].view(), kind: Activation::Silu, out })
    })
}

fn rotary(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let stream = bench.device.stream().clone();
    let width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let qkvs = bench.rotation(&[n, width])?;
    let mut qs = bench.rotation(&[n, HEADS, HEAD_DIM])?;
    let cache = LAYOUT.cache_shape(n.div_ceil(LAYOUT.page) + 1);
    let (mut k_cache, mut v_cache) = (bench.random(&cache)?, bench.random(&cache)?);
    let weight = bench.random(&[HEAD_DIM])?;
    let pairs = HEAD_DIM / 2;
    let table = |f: fn(f32) -> f32| (0..n * pairs).map(|i| f(i as f32)).collect::<Vec<f32>>();
    let cos = Tensor::from_slice(&bench.device, &table(f32::cos), &[n, pairs])?;
    let sin = Tensor::from_slice(&bench.device, &table(f32::sin), &[n, pairs])?;
    let axes: Vec<u8> = (0..pairs).map(|i| (i % 3) as u8).collect();
    let axes = Tensor::from_slice(&bench.device, &axes, &[pairs])?;
    let positions: Vec<i32> = (0..3).flat_map(|_| 0..n as i32).collect();
    let positions = Tensor::from_slice(&bench.device, &positions, &[3, n])?;
    let slots: Vec<i64> = (0..n as i64).collect();
    let slots = Tensor::from_slice(&bench.device, &slots, &[n])?;
    let count = qkvs.len().min(qs.len());
    let bytes = 2.0 * (n * width) as f64 * BF16 + (n * HEAD_DIM * 4) as f64;
    bench.time(&format!("qk_norm_rope {n} x {width}"), Bound::Bytes(bytes), |i| {
        qk_norm_rope(
            &stream,
            QkNormRope {
                qkv: qkvs[i % count].view(),
                norm: Some(QkNorm { q_weight: weight.view(), k_weight: weight.view(), eps: 1e-6 }),
                rope: Mrope {
                    positions: positions.view(),
                    cos: cos.view(),
                    sin: sin.view(),
                    axis_of_pair: axes.view(),
                },
                slot_mapping: slots.view(),
                layout: LAYOUT,
                k_cache: k_cache.view_mut().map_err(op)?,
                v_cache: v_cache.view_mut().map_err(op)?,
                q_out: qs[i % count].view_mut().map_err(op)?,
            },
        )
    })
}

fn vision_elementwise(bench: &mut Bench, n: usize) -> anyhow::Result<()> {
    let stream = bench.device.stream().clone();
    let (mut residuals, adds) = (bench.rotation(&[n, VISION_HIDDEN])?, bench.rotation(&[n, VISION_HIDDEN])?);
    let (weight, bias) = (bench.random(&[VISION_HIDDEN])?, bench.random(&[VISION_HIDDEN])?);
    let mut outs = bench.rotation(&[n, VISION_HIDDEN])?;
    let count = outs.len();
    let row = (n * VISION_HIDDEN) as f64 * BF16;
    bench.time(&format!("layer norm {n} x {VISION_HIDDEN}"), Bound::Bytes(4.0 * row), |i| {
        add_norm(
            &stream,
            AddNorm {
                residual: residuals[i % count].view_mut().map_err(op)?,
                add: Some(adds[i % count].view()),
                extra: None,
                weight: weight.view(),
                bias: Some(bias.view()),
                kind: NormKind::Layer,
                eps: 1e-6,
                out: outs[i % count].view_mut().map_err(op)?,
            },
        )
    })?;
    let xs = bench.rotation(&[n, VISION_INNER])?;
    let mut outs = bench.rotation(&[n, VISION_INNER])?;
    let count = xs.len();
    bench.time(
        &format!("gelu_tanh {n} x {VISION_INNER}"),
        Bound::Bytes(2.0 * (n * VISION_INNER) as f64 * BF16),
        |i| {
            let out = outs[i % count].view_mut().map_err(op)?;
            activate(&stream, Activate { x: xs[i % count].view(), kind: Activation::GeluTanh, out })
        },
    )?;
    let mut qkvs = bench.rotation(&[n, 3, VISION_HEADS, VISION_HEAD_DIM])?;
    let quarter = VISION_HEAD_DIM / 4;
    let side = 128;
    let table: Vec<f32> = (0..side * quarter).map(|i| (i as f32).cos()).collect();
    let table = Tensor::from_slice(&bench.device, &table, &[side, quarter])?;
    let positions: Vec<i32> = (0..n as i32).flat_map(|i| [i / 64 % 128, i % 64]).collect();
    let positions = Tensor::from_slice(&bench.device, &positions, &[n, 2])?;
    let count = qkvs.len();
    bench.time(&format!("vision_rope {n} x {VISION_HEADS} x {VISION_HEAD_DIM}"), Bound::Bytes(4.0 * row), |i| {
        vision_rope(
            &stream,
            VisionRope {
                qkv: qkvs[i % count].view_mut().map_err(op)?,
                positions: positions.view(),
                cos: table.view(),
                sin: table.view(),
            },
        )
    })
}

/// Sequences as (rows, context). Rows of one token are bound by the bytes of their keys and values, others by arithmetic.
fn attention(bench: &mut Bench, what: &str, sequences: &[(usize, usize)]) -> anyhow::Result<()> {
    if !bench.wants(what) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let n: usize = sequences.iter().map(|(rows, _)| rows).sum();
    let pages = |context: usize| context.div_ceil(LAYOUT.page);
    let (max_blocks, num_blocks) =
        (sequences.iter().map(|s| pages(s.1)).max().unwrap_or(1), sequences.iter().map(|s| pages(s.1)).sum::<usize>());
    let cache = LAYOUT.cache_shape(num_blocks);
    let num_caches = if n == sequences.len() {
        (super::measure::ROTATION_BYTES / cache.iter().product::<usize>()).clamp(1, 8)
    } else {
        1
    };
    let caches = (0..num_caches)
        .map(|_| Ok((bench.random(&cache)?, bench.random(&cache)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let q = bench.random(&[n, HEADS, HEAD_DIM])?;
    let mut out = bench.random(&[n, HEADS * HEAD_DIM])?;
    let (mut cu_seqlens, mut context_lens, mut block_tables, mut next) = (vec![0], Vec::new(), Vec::new(), 0);
    for (i, (rows, context)) in sequences.iter().enumerate() {
        cu_seqlens.push(cu_seqlens[i] + *rows as i32);
        context_lens.push(*context as i32);
        block_tables.extend((0..pages(*context)).map(|page| next + page as i32));
        next += pages(*context) as i32;
        block_tables.resize((i + 1) * max_blocks, -1);
    }
    let cu_seqlens = Tensor::from_slice(&bench.device, &cu_seqlens, &[sequences.len() + 1])?;
    let context_lens = Tensor::from_slice(&bench.device, &context_lens, &[sequences.len()])?;
    let block_tables = Tensor::from_slice(&bench.device, &block_tables, &[sequences.len(), max_blocks])?;
    let size = work_size(n, sequences.len(), HEADS, LAYOUT, bench.cuda()?.num_sms() as usize);
    let mut list = Tensor::zeros(&bench.device, DType::I32, &[size.list_len])?;
    let mut counters = Tensor::zeros(&bench.device, DType::I32, &[size.counters_len])?;
    let mut partials = Tensor::zeros(&bench.device, DType::F32, &[size.partials_len])?;
    let make_plan = |list: &mut Tensor, counters: &mut Tensor| {
        let (cu_seqlens, context_lens) = (cu_seqlens.view(), context_lens.view());
        let (list, counters) = (list.view_mut().map_err(op)?, counters.view_mut().map_err(op)?);
        plan(&stream, Plan { cu_seqlens, context_lens, num_heads: HEADS, layout: LAYOUT, list, counters })
    };
    make_plan(&mut list, &mut counters)?;
    let kv_bytes: f64 = sequences.iter().map(|(_, context)| 2.0 * (context * KV_HEADS * HEAD_DIM) as f64 * BF16).sum();
    let seen = |(rows, context): &(usize, usize)| (rows * context) as f64 - (rows * (rows - 1)) as f64 / 2.0;
    let flops: f64 = sequences.iter().map(|s| 4.0 * seen(s) * (HEADS * HEAD_DIM) as f64).sum();
    let bound = if n == sequences.len() { Bound::Bytes(kv_bytes) } else { Bound::Flops(flops) };
    bench.time(what, bound, |i| {
        let (k, v) = &caches[i % caches.len()];
        let work = Work {
            list: list.view(),
            counters: counters.view_mut().map_err(op)?,
            partials: partials.view_mut().map_err(op)?,
        };
        paged_attention(
            &stream,
            PagedAttention {
                q: q.view(),
                layout: LAYOUT,
                k_cache: k.view(),
                v_cache: v.view(),
                cu_seqlens: cu_seqlens.view(),
                context_lens: context_lens.view(),
                block_tables: block_tables.view(),
                scale: (HEAD_DIM as f32).powf(-0.5),
                work: Some(work),
                out: out.view_mut().map_err(op)?,
            },
        )
    })?;
    let bytes = (4 * size.list_len) as f64;
    bench.time(&format!("plan of {what}"), Bound::Bytes(bytes), |_| make_plan(&mut list, &mut counters))
}

fn vision_attention(bench: &mut Bench, segments: usize, len: usize) -> anyhow::Result<()> {
    let stream = bench.device.stream().clone();
    let n = segments * len;
    let qkv = bench.random(&[n, 3, VISION_HEADS, VISION_HEAD_DIM])?;
    let mut out = bench.random(&[n, VISION_HIDDEN])?;
    let cu_seqlens: Vec<i32> = (0..=segments).map(|i| (i * len) as i32).collect();
    let cu_seqlens = Tensor::from_slice(&bench.device, &cu_seqlens, &[segments + 1])?;
    let flops = 4.0 * (segments * len * len * VISION_HIDDEN) as f64;
    bench.time(&format!("vision attention {segments} x {len}"), Bound::Flops(flops), |_| {
        varlen_attention(
            &stream,
            VarlenAttention {
                qkv: qkv.view(),
                cu_seqlens: cu_seqlens.view(),
                scale: (VISION_HEAD_DIM as f32).powf(-0.5),
                out: out.view_mut().map_err(op)?,
            },
        )
    })
}

fn sampling(bench: &mut Bench, rows: usize, temperature: f32) -> anyhow::Result<()> {
    let what = format!("sampling {rows} rows, temperature {temperature}");
    if !bench.wants(&what) {
        return Ok(());
    }
    let stream = bench.device.stream().clone();
    let values: Vec<f32> =
        (0..rows * VOCAB).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 2e6).collect();
    let logits = Tensor::from_slice(&bench.device, &values, &[rows, VOCAB])?;
    let tensor = |dtype, dims: &[usize]| Tensor::zeros(&bench.device, dtype, dims);
    let (mut scratch, mut token_ids, mut logprobs) =
        (tensor(DType::F32, &[rows, VOCAB])?, tensor(DType::I32, &[rows])?, tensor(DType::F32, &[rows])?);
    let mut workspace = tensor(DType::U8, &[workspace_bytes(rows, VOCAB, 0)])?;
    let row = RowSampling {
        temperature,
        top_k: 20,
        top_p: 0.9,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 1,
        draw: 0,
    };
    let params = vec![row; rows];
    let mut work = |_| {
        sample(
            &stream,
            Sample {
                logits: logits.view(),
                rows: &params,
                output_counts: None,
                prompt_mask: None,
                banned: &[],
                scratch: scratch.view_mut().map_err(op)?,
                workspace: workspace.view_mut().map_err(op)?,
                token_ids: token_ids.view_mut().map_err(op)?,
                logprobs: logprobs.view_mut().map_err(op)?,
                top_ids: None,
                top_logprobs: None,
            },
        )
    };
    let bytes = (rows * VOCAB * 4) as f64;
    if temperature == 0.0 {
        return bench.time(&what, Bound::Bytes(bytes), work);
    }
    // What is drawn goes up with each call, by a copy from the host, which can't be recorded.
    let (mut start, mut end) = (event(bench)?, event(bench)?);
    for i in 0..8 {
        if i == 3 {
            bench.cuda()?.record(&mut start)?;
        }
        work(i)?;
    }
    bench.cuda()?.record(&mut end)?;
    end.wait()?;
    bench.report(&format!("{what} (not recorded)"), end.milliseconds_since(&start)? * 1e3 / 5.0, Bound::Bytes(bytes))
}

fn event(bench: &Bench) -> anyhow::Result<foveal_device::Event> {
    Ok(foveal_device::Event::with_timing(bench.cuda()?.device())?)
}
