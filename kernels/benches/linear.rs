//! Matrix products at the shapes of a 2-billion-parameter decoder: GB/s of weights for one row (decode), GFLOP/s for
//! many (prefill). The weights of one round are larger than a last-level cache.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use foveal_device::{Device, View, ViewMut};
use foveal_kernels::linear::{Linear, linear};
use half::bf16;

/// Bytes of weights that a round reads.
const ROUND_BYTES: usize = 128 << 20;
/// `(n, k)`: gate or up, down, attention output.
const SHAPES: [(usize, usize); 3] = [(6144, 2048), (2048, 6144), (2048, 2048)];

fn value(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5
}

fn run(device: &Device, x: &[f32], m: usize, weight: &[bf16], (n, k): (usize, usize), out: &mut [f32]) {
    let weight = View::from_slice(weight, &[n, k]).unwrap();
    let args = Linear {
        x: View::from_slice(x, &[m, k]).unwrap(),
        weight: &[weight],
        bias: None,
        scales: None,
        out: ViewMut::from_slice(out, &[m, n]).unwrap(),
    };
    linear(device.stream(), args).unwrap();
}

/// Some outputs against a sum in float64.
fn validate(x: &[f32], m: usize, weight: &[bf16], (n, k): (usize, usize), out: &[f32]) {
    for i in 0..64 {
        let (row, column) = (i * 7919 % m, i * 104_729 % n);
        let pairs = x[row * k..][..k].iter().zip(&weight[column * k..][..k]);
        let sum: f64 = pairs.map(|(&x, w)| f64::from(x) * w.to_f64()).sum();
        assert!((f64::from(out[row * n + column]) - sum).abs() < 1e-4, "row {row}, column {column}");
    }
}

fn bench(criterion: &mut Criterion) {
    let device = Device::cpu(0).unwrap();
    for (n, k) in SHAPES {
        let num_weights = (ROUND_BYTES / (2 * n * k)).max(2);
        let weights: Vec<Vec<bf16>> =
            (0..num_weights).map(|j| (0..n * k).map(|i| bf16::from_f32(value(i + j))).collect()).collect();
        let mut group = criterion.benchmark_group(format!("linear_bf16/{n}x{k}"));
        for m in [1, 8, 32, 256] {
            let x: Vec<f32> = (0..m * k).map(|i| value(i * 3 + 1)).collect();
            let mut out = vec![0.0; m * n];
            run(&device, &x, m, &weights[0], (n, k), &mut out);
            validate(&x, m, &weights[0], (n, k), &out);
            let mut next = 0;
            group.throughput(match m {
                1 => Throughput::Bytes((2 * n * k) as u64),
                _ => Throughput::Elements((2 * m * n * k) as u64),
            });
            group.bench_function(BenchmarkId::from_parameter(m), |b| {
                b.iter(|| {
                    next = (next + 1) % weights.len();
                    run(&device, black_box(&x), m, &weights[next], (n, k), &mut out);
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = bench
}
criterion_main!(benches);
