//! Attention at the shapes of a 2-billion-parameter model: a picture of 1024 patches in the vision tower, a prompt of
//! 512 tokens and one decoded token in the decoder. GFLOP/s count the products of queries with keys and of weights
//! with values.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use foveal_device::{DType, Device, View, ViewMut};
use foveal_kernels::paged_attention::{PagedAttention, paged_attention};
use foveal_kernels::varlen_attention::{VarlenAttention, varlen_attention};
use foveal_kernels::{KvLayout, KvScales};
use half::bf16;

fn value(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0
}

/// One output row of one head against float64.
fn validate<'a>(q: &[f32], keys: impl Iterator<Item = (Vec<f32>, Vec<f32>)> + 'a, scale: f32, out: &[f32]) {
    let (mut total, mut sums) = (0.0, vec![0.0_f64; out.len()]);
    for (key, value) in keys {
        let score: f64 = q.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        let weight = (score * f64::from(scale)).exp();
        total += weight;
        sums.iter_mut().zip(&value).for_each(|(sum, &v)| *sum += weight * f64::from(v));
    }
    for (sum, &got) in sums.iter().zip(out) {
        assert!((sum / total - f64::from(got)).abs() < 1e-5, "{} instead of {}", got, sum / total);
    }
}

fn vision(criterion: &mut Criterion) {
    let device = Device::cpu(0).unwrap();
    let (n, heads, d) = (1024, 16, 72);
    let qkv: Vec<f32> = (0..n * 3 * heads * d).map(value).collect();
    let mut out = vec![0.0; n * heads * d];
    let scale = (d as f32).powf(-0.5);
    let cu_seqlens = [0, n as i32];
    let run = |out: &mut [f32]| {
        let args = VarlenAttention {
            qkv: View::from_slice(&qkv, &[n, 3, heads, d]).unwrap(),
            cu_seqlens: View::from_slice(&cu_seqlens, &[2]).unwrap(),
            scale,
            out: ViewMut::from_slice(out, &[n, heads * d]).unwrap(),
        };
        varlen_attention(device.stream(), args).unwrap();
    };
    run(&mut out);
    let at = |row: usize, part: usize| qkv[((row * 3 + part) * heads + 5) * d..][..d].to_vec();
    validate(&at(77, 0), (0..n).map(|j| (at(j, 1), at(j, 2))), scale, &out[(77 * heads + 5) * d..][..d]);
    let mut group = criterion.benchmark_group("varlen_attention_f32");
    group.throughput(Throughput::Elements((4 * heads * n * n * d) as u64));
    group.bench_function("1024x16x72", |b| b.iter(|| run(&mut out)));
}

fn decoder(criterion: &mut Criterion) {
    let device = Device::cpu(0).unwrap();
    let layout = KvLayout { page: KvLayout::DEFAULT_PAGE, dtype: DType::BF16, num_kv_heads: 8, head_dim: 128 };
    let (heads, d, page) = (16, layout.head_dim, layout.page);
    for (rows, context) in [(512, 512), (1, 512), (1, 4096)] {
        let num_blocks = context / page;
        let cache = |seed: usize| -> Vec<bf16> {
            (0..num_blocks * layout.num_kv_heads * page * d).map(|i| bf16::from_f32(value(i + seed))).collect()
        };
        let (keys, values) = (cache(1), cache(2));
        let q: Vec<f32> = (0..rows * heads * d).map(value).collect();
        let table: Vec<i32> = (0..num_blocks as i32).rev().collect();
        let mut out = vec![0.0; rows * heads * d];
        let scale = (d as f32).powf(-0.5);
        let (cu_seqlens, context_lens) = ([0, rows as i32], [context as i32]);
        let run = |out: &mut [f32]| {
            let args = PagedAttention {
                q: View::from_slice(&q, &[rows, heads, d]).unwrap(),
                layout,
                kv_scales: KvScales::ONE,
                k_cache: View::from_slice(&keys, &layout.cache_shape(num_blocks)).unwrap(),
                v_cache: View::from_slice(&values, &layout.cache_shape(num_blocks)).unwrap(),
                cu_seqlens: View::from_slice(&cu_seqlens, &[2]).unwrap(),
                context_lens: View::from_slice(&context_lens, &[1]).unwrap(),
                block_tables: View::from_slice(&table, &[1, num_blocks]).unwrap(),
                scale,
                work: None,
                quantize: None,
                out: ViewMut::from_slice(out, &[rows, heads * d]).unwrap(),
            };
            paged_attention(device.stream(), args).unwrap();
        };
        run(&mut out);
        let at = |cache: &[bf16], j: usize| -> Vec<f32> {
            let block = table[j / page] as usize;
            let start = ((block * layout.num_kv_heads + 3) * page + j % page) * d;
            cache[start..start + d].iter().map(|x| x.to_f32()).collect()
        };
        let last = ((rows - 1) * heads + 7) * d..((rows - 1) * heads + 8) * d;
        let seen = (0..context).map(|j| (at(&keys, j), at(&values, j)));
        validate(&q[last.clone()], seen, scale, &out[last]);
        let pairs: usize = (0..rows).map(|i| context - i).sum();
        let mut group = criterion.benchmark_group("paged_attention_f32_bf16");
        group.throughput(Throughput::Elements((4 * heads * d * pairs) as u64));
        group.bench_function(format!("{rows}_of_{context}"), |b| b.iter(|| run(&mut out)));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = vision, decoder
}
criterion_main!(benches);
