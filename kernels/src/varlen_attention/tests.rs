//! Against plain float64 loops, and against itself: a row's bits depend on its segment alone.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::cpu::run as run_cpu;
use super::cuda::{Plan, run as run_cuda};
use super::{VarlenAttention, varlen_attention};
use crate::OpError;
use crate::simd::Isa;
use crate::testing::{activations, blamed, device_tests, gpu, load, store, values as numbers};

/// What runs a problem.
#[derive(Clone, Copy)]
enum By {
    /// What the shapes choose.
    Op,
    Cpu(Isa),
    Cuda(Plan),
}

/// A problem: `[n, 3, num_heads, head_dim]` and where its segments begin.
struct Problem {
    qkv: Tensor,
    cu_seqlens: Vec<i32>,
    out_dtype: DType,
    scale: f32,
}

/// An output row by float64, with what each element is the weighted sum of, in magnitude.
struct PlainRow {
    out: Vec<f64>,
    magnitude: Vec<f64>,
}

impl Problem {
    fn new(device: &Device, dtypes: [DType; 2], lens: &[usize], num_heads: usize, head_dim: usize) -> Self {
        let n: usize = lens.iter().sum();
        // Large enough that the softmax is far from uniform.
        let qkv: Vec<f32> = numbers(5, n * 3 * num_heads * head_dim, 1.0).iter().map(|x| x * 3.0).collect();
        Self::of(device, dtypes, lens, num_heads, head_dim, &qkv)
    }

    fn of(device: &Device, dtypes: [DType; 2], lens: &[usize], num_heads: usize, head_dim: usize, qkv: &[f32]) -> Self {
        let mut cu_seqlens = vec![0];
        for &len in lens {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + len as i32);
        }
        let qkv = store(device, qkv, dtypes[0], &[lens.iter().sum(), 3, num_heads, head_dim]);
        Self { qkv, cu_seqlens, out_dtype: dtypes[1], scale: (head_dim as f32).powf(-0.5) }
    }

    fn sizes(&self) -> [usize; 3] {
        let [n, _, num_heads, head_dim] = <[usize; 4]>::try_from(&self.qkv.shape()[..]).unwrap();
        [n, num_heads, head_dim]
    }

    fn by(&self, device: &Device, by: By) -> Vec<f32> {
        let [n, num_heads, head_dim] = self.sizes();
        // What a row isn't written with is seen.
        let unwritten = vec![f32::NAN; n * num_heads * head_dim];
        let mut out = store(device, &unwritten, self.out_dtype, &[n, num_heads * head_dim]);
        let cu_seqlens = Tensor::from_slice(device, &self.cu_seqlens, &[self.cu_seqlens.len()]).unwrap();
        let args = VarlenAttention {
            qkv: self.qkv.view(),
            cu_seqlens: cu_seqlens.view(),
            scale: self.scale,
            out: out.view_mut().unwrap(),
        };
        let sizes = args.check().unwrap();
        match by {
            By::Op => varlen_attention(device.stream(), args).unwrap(),
            By::Cpu(isa) => run_cpu(isa, device.stream(), args, sizes).unwrap(),
            By::Cuda(plan) => run_cuda(device.stream().cuda().unwrap(), &args, sizes, plan).unwrap(),
        }
        load(&out)
    }

    fn plain_row(&self, qkv: &[f32], row: usize) -> PlainRow {
        let [_, num_heads, head_dim] = self.sizes();
        let segment =
            self.cu_seqlens.windows(2).find(|segment| (segment[0]..segment[1]).contains(&(row as i32))).unwrap();
        let segment = segment[0] as usize..segment[1] as usize;
        let at =
            |row: usize, part: usize, head: usize| &qkv[((row * 3 + part) * num_heads + head) * head_dim..][..head_dim];
        let mut plain = PlainRow { out: Vec::new(), magnitude: Vec::new() };
        for head in 0..num_heads {
            let q = at(row, 0, head);
            let dot = |k: &[f32]| -> f64 { q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum() };
            let scores: Vec<f64> = segment.clone().map(|j| dot(at(j, 1, head)) * f64::from(self.scale)).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![[0.0_f64; 2]; head_dim];
            for (j, weight) in segment.clone().zip(&weights) {
                for (sum, &v) in sums.iter_mut().zip(at(j, 2, head)) {
                    let product = weight * f64::from(v);
                    *sum = [sum[0] + product, sum[1] + product.abs()];
                }
            }
            plain.out.extend(sums.iter().map(|sum| sum[0] / total));
            plain.magnitude.extend(sums.iter().map(|sum| sum[1] / total));
        }
        plain
    }

    fn plain(&self) -> Vec<f32> {
        let qkv = load(&self.qkv);
        (0..self.sizes()[0]).flat_map(|row| self.plain_row(&qkv, row).out).map(|x| x as f32).collect()
    }

    /// Checks some rows. Float32 sums of some hundred terms leave 2e-5, a bf16 output half an ulp of it; CUDA rounds each
    /// weight to bf16, by 2^-8 of it at most.
    fn check_rows(&self, device: &Device, by: By, rows: impl Iterator<Item = usize>) {
        let (got, qkv, [_, num_heads, head_dim]) = (self.by(device, by), load(&self.qkv), self.sizes());
        let of_out = if self.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
        let of_weights = if device.is_cuda() { 1.0 / 256.0 } else { 0.0 };
        for row in rows {
            let plain = self.plain_row(&qkv, row);
            let got = &got[row * num_heads * head_dim..][..num_heads * head_dim];
            for (i, (&got, (&out, &magnitude))) in got.iter().zip(plain.out.iter().zip(&plain.magnitude)).enumerate() {
                let allowed = 2e-5 + of_out * out.abs() + of_weights * (1.0 + of_out) * magnitude;
                let (head, element) = (i / head_dim, i % head_dim);
                let off = (f64::from(got) - out).abs();
                assert!(
                    off <= allowed,
                    "row {row}, head {head}, element {element}: {got} instead of {out}, {allowed} allowed"
                );
            }
        }
    }

    fn check(&self, device: &Device) {
        self.check_rows(device, By::Op, 0..self.sizes()[0]);
    }
}

/// The element types of `qkv` and `out` that a device takes.
fn dtypes(device: &Device) -> Vec<[DType; 2]> {
    let outs: &[DType] = if device.is_cuda() { &[DType::BF16] } else { &[DType::F32, DType::BF16] };
    activations(device).iter().flat_map(|&qkv| outs.iter().map(move |&out| [qkv, out])).collect()
}

/// The most exact of them.
fn finest(device: &Device) -> [DType; 2] {
    dtypes(device)[0]
}

fn takes(device: &Device, head_dim: usize) -> bool {
    !device.is_cuda() || head_dim.is_multiple_of(8) && head_dim <= 128
}

fn every_type_and_shape_agrees_with_float64(device: &Device) {
    // One row, empty segments, whole blocks of 32 and 64 keys, one more and one less, odd heads.
    let shapes: [(&[usize], usize, usize); 13] = [
        (&[1], 1, 1),
        (&[1, 1, 1], 2, 16),
        (&[0, 3, 0, 0, 5, 0], 3, 7),
        (&[0, 3, 0, 0, 5, 0], 3, 8),
        (&[31, 32, 33], 2, 72),
        (&[64, 7], 1, 80),
        (&[65], 2, 64),
        (&[63, 128, 129, 127], 1, 24),
        (&[40], 1, 128),
        (&[70], 1, 120),
        (&[16, 200], 2, 96),
        (&[33, 66], 2, 40),
        (&[9], 1, 130),
    ];
    for (lens, num_heads, head_dim) in shapes {
        if takes(device, head_dim) {
            for dtypes in dtypes(device) {
                Problem::new(device, dtypes, lens, num_heads, head_dim).check(device);
            }
        }
    }
}

fn a_real_picture_agrees_with_float64(device: &Device) {
    // A vision tower's heads; two frames of 16 x 16 patches.
    Problem::new(device, finest(device), &[256, 256], 4, 72).check(device);
}

fn towers_agree_with_float64(device: &Device) {
    // Pictures, windows with ragged edges, and both with nothing between them, under the heads of each tower.
    let lens: &[usize] = match device.is_cuda() {
        true => &[64, 256, 1024, 1, 17, 0, 4095, 16, 1024],
        false => &[64, 256, 1, 17, 0, 333],
    };
    for head_dim in [64, 72, 80] {
        let problem = Problem::new(device, finest(device), lens, 16, head_dim);
        // The segments' borders, and rows strewn over tiles and warps.
        let n = problem.sizes()[0];
        let borders = problem.cu_seqlens.iter().flat_map(|&i| [i as usize, (i as usize).saturating_sub(1)]);
        let rows = borders.chain((0..n).step_by(n / 16)).filter(|&row| row < n);
        problem.check_rows(device, By::Op, rows);
    }
}

fn thousands_of_windows_agree_with_float64(device: &Device) {
    // More than 32 x 32 segments, so that a block's search takes three rounds; empty ones among them.
    let lens: Vec<usize> = (0..1500).map(|i| [64, 16, 0, 8, 64, 1][i % 6]).collect();
    let problem = Problem::new(device, finest(device), &lens, 2, 16);
    let n = problem.sizes()[0];
    problem.check_rows(device, By::Op, (0..n).step_by(97).chain([n - 1]));
}

fn each_key_counts_once(device: &Device) {
    // Equal scores: an output is the mean of the values, of which only one, another for each column, is not zero.
    for (lens, head_dim) in [(&[1024, 5, 100][..], 72), (&[321, 64, 1], 80), (&[1030], 64), (&[129, 300], 8)] {
        let (n, num_heads) = (lens.iter().sum::<usize>(), 16);
        let mut qkv = numbers(7, n * 3 * num_heads * head_dim, 1.0);
        let mut expected = Vec::new();
        let mut first = 0;
        for &len in lens {
            for row in first..first + len {
                let parts = &mut qkv[row * 3 * num_heads * head_dim..][..3 * num_heads * head_dim];
                parts[..num_heads * head_dim].fill(0.0);
                for (column, value) in parts[2 * num_heads * head_dim..].iter_mut().enumerate() {
                    *value = if column % len == row - first { 1024.0 } else { 0.0 };
                }
                expected.resize(expected.len() + num_heads * head_dim, 1024.0 / len as f32);
            }
            // Columns go round the rows of a short segment, and cover each of a long one where there are as many.
            first += len;
        }
        let problem = Problem::of(device, finest(device), lens, num_heads, head_dim, &qkv);
        let rtol = if problem.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 4e-6 };
        assert_close_at(&problem.by(device, By::Op), &expected, &[n, num_heads * head_dim], 0.0, rtol);
    }
}

fn what_other_segments_hold_does_not_matter(device: &Device) {
    let (num_heads, head_dim) = (2, 72);
    // The second and the fourth become NaN, infinite in part.
    let (lens, bounds) = ([70, 3, 64, 130, 1], [0, 70, 73, 137, 267, 268]);
    let clean = Problem::new(device, finest(device), &lens, num_heads, head_dim);
    let expected = clean.by(device, By::Op);
    let mut qkv = load(&clean.qkv);
    let row_len = num_heads * head_dim;
    for segment in [1, 3] {
        for (i, value) in qkv[bounds[segment] * 3 * row_len..bounds[segment + 1] * 3 * row_len].iter_mut().enumerate() {
            *value = if i % 5 == 0 { f32::INFINITY } else { f32::NAN };
        }
    }
    let got = Problem::of(device, finest(device), &lens, num_heads, head_dim, &qkv).by(device, By::Op);
    for segment in [0, 2, 4] {
        let own = bounds[segment] * row_len..bounds[segment + 1] * row_len;
        assert_bitwise_equal(&got[own.clone()], &expected[own]);
    }
}

fn a_scale_of_any_sign_is_taken(device: &Device) {
    for scale in [0.0, -0.3, 0.9] {
        let mut problem = Problem::new(device, finest(device), &[70, 9], 2, 24);
        problem.scale = scale;
        problem.check(device);
    }
}

fn no_rows_are_no_work(device: &Device) {
    let dtypes = finest(device);
    assert!(Problem::new(device, dtypes, &[], 2, 8).by(device, By::Op).is_empty());
    assert!(Problem::new(device, dtypes, &[0, 0], 2, 8).by(device, By::Op).is_empty());
    assert!(Problem::new(device, dtypes, &[3], 0, 8).by(device, By::Op).is_empty());
    // No rows cost no memory, however wide they would be.
    let wide = Tensor::zeros(device, dtypes[0], &[0, 3, 1 << 40, 1 << 40]).unwrap();
    let cu_seqlens = Tensor::from_slice(device, &[0], &[1]).unwrap();
    let mut out = Tensor::zeros(device, dtypes[1], &[0, usize::MAX]).unwrap();
    let args =
        VarlenAttention { qkv: wide.view(), cu_seqlens: cu_seqlens.view(), scale: 1.0, out: out.view_mut().unwrap() };
    assert_eq!(varlen_attention(device.stream(), args), Ok(()));
    assert!(Problem::new(device, dtypes, &[3], 2, 0).by(device, By::Op).is_empty());
}

fn huge_scores_neither_overflow_nor_vanish(device: &Device) {
    let (n, d) = (40, 8);
    let mut problem = Problem::new(device, finest(device), &[n], 1, d);
    let large: Vec<f32> = load(&problem.qkv).iter().map(|x| x * 300.0).collect();
    problem.qkv = store(device, &large, finest(device)[0], &[n, 3, 1, d]);
    let rtol = if device.is_cuda() { 1.0 / 128.0 } else { 1e-3 };
    assert_close_at(&problem.by(device, By::Op), &problem.plain(), &[n, d], 1.0, rtol);
}

/// Whatever the shapes choose, both ways of cutting rows are right.
#[test]
fn every_plan_agrees_with_float64() {
    let Some(device) = gpu() else { return };
    for head_dim in [8, 24, 64, 72, 80] {
        for is_tall in [false, true] {
            let lens = [64, 1, 0, 127, 200, 129, 47, 96];
            let problem = Problem::new(&device, finest(&device), &lens, 3, head_dim);
            problem.check_rows(&device, By::Cuda(Plan::new(head_dim, is_tall)), 0..problem.sizes()[0]);
        }
    }
}

#[test]
fn instruction_sets_agree_bitwise_where_they_fuse() {
    let device = Device::cpu(2).unwrap();
    let problem = Problem::new(&device, [DType::F32; 2], &[50, 1, 77], 2, 40);
    let expected = problem.plain();
    for isa in Isa::all() {
        let got = problem.by(&device, By::Cpu(isa));
        assert_close_at(&got, &expected, &[128, 80], 2e-5, 0.0);
        if isa.is_fused() {
            assert_bitwise_equal(&got, &problem.by(&device, By::Cpu(Isa::best())));
        }
    }
}

device_tests!(cpu: [segments_that_do_not_cover_the_rows_are_refused]; any: [
    every_type_and_shape_agrees_with_float64,
    a_real_picture_agrees_with_float64,
    towers_agree_with_float64,
    thousands_of_windows_agree_with_float64,
    each_key_counts_once,
    what_other_segments_hold_does_not_matter,
    a_scale_of_any_sign_is_taken,
    no_rows_are_no_work,
    huge_scores_neither_overflow_nor_vanish,
    misfits_are_refused_by_name,
]);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_segment_doesn_t_depend_on_its_neighbours_or_threads(
        lens in prop::collection::vec(0_usize..90, 1..5),
        head_dim in 1_usize..40,
        threads in 1_usize..4,
    ) {
        let device = Device::cpu(2).unwrap();
        let together = Problem::new(&device, [DType::F32; 2], &lens, 2, head_dim);
        let expected = together.by(&device, By::Op);
        let device = Device::cpu(threads).unwrap();
        let mut split = Vec::new();
        for segment in together.cu_seqlens.windows(2) {
            let rows = segment[0] as usize..segment[1] as usize;
            let own = &load(&together.qkv)[rows.start * 6 * head_dim..rows.end * 6 * head_dim];
            let qkv = store(&device, own, DType::F32, &[rows.len(), 3, 2, head_dim]);
            let cu_seqlens = vec![0, rows.len() as i32];
            let alone = Problem { qkv, cu_seqlens, out_dtype: DType::F32, scale: together.scale };
            split.extend(alone.by(&device, By::Op));
        }
        assert_bitwise_equal(&split, &expected);
    }
}

/// What `varlen_attention` says of operands of these types and shapes, and these segments.
fn refusal(device: &Device, qkv: (DType, &[usize]), cu_seqlens: &[i32], out: (DType, &[usize])) -> OpError {
    let qkv = Tensor::zeros(device, qkv.0, qkv.1).unwrap();
    let mut out = Tensor::zeros(device, out.0, out.1).unwrap();
    let cu_seqlens = Tensor::from_slice(device, cu_seqlens, &[cu_seqlens.len()]).unwrap();
    let args =
        VarlenAttention { qkv: qkv.view(), cu_seqlens: cu_seqlens.view(), scale: 1.0, out: out.view_mut().unwrap() };
    varlen_attention(device.stream(), args).unwrap_err()
}

fn misfits_are_refused_by_name(device: &Device) {
    let (x, y) = (finest(device)[0], finest(device)[1]);
    let out: (DType, &[usize]) = (y, &[4, 16]);
    let arg = |qkv, out| blamed(Err(refusal(device, qkv, &[0, 4], out)));
    assert_eq!(arg((x, &[4, 2, 2, 8]), out), "qkv");
    assert_eq!(arg((x, &[4, 3, 16]), out), "qkv");
    assert_eq!(arg((DType::I32, &[4, 3, 2, 8]), out), "qkv");
    assert_eq!(arg((x, &[4, 3, 2, 8]), (y, &[4, 15])), "out");
    assert_eq!(arg((x, &[4, 3, 2, 8]), (DType::F16, &[4, 16])), "out");
}

fn segments_that_do_not_cover_the_rows_are_refused(device: &Device) {
    let dtypes = finest(device);
    for (cu_seqlens, bad) in [
        (&[][..], (0, 0)),
        (&[0], (0, 0)),
        (&[1, 4], (0, 1)),
        (&[0, 3], (1, 3)),
        (&[0, 5], (1, 5)),
        (&[0, 3, 2, 4], (2, 2)),
        (&[0, -1, 4], (1, -1)),
    ] {
        match refusal(device, (dtypes[0], &[4, 3, 2, 8]), cu_seqlens, (dtypes[1], &[4, 16])) {
            OpError::Value { arg: "cu_seqlens", index, value, .. } => assert_eq!((index, value), bad, "{cu_seqlens:?}"),
            other => panic!("{other}"),
        }
    }
}

/// What a GPU has no kernel for.
#[test]
fn cuda_refuses_by_name_what_it_does_not_take() {
    let Some(device) = gpu() else { return };
    let refused = |dtypes: [DType; 2], head_dim: usize, cu_seqlens: &[i32]| {
        let (qkv, out) = ([4, 3, 2, head_dim], [4, 2 * head_dim]);
        let error = refusal(&device, (dtypes[0], &qkv), cu_seqlens, (dtypes[1], &out));
        let is_dtype = matches!(error, OpError::DType { op: "varlen_attention", .. });
        (is_dtype, blamed(Err(error)))
    };
    let bf16 = DType::BF16;
    assert_eq!(refused([DType::F32, bf16], 8, &[0, 4]), (true, "qkv"));
    assert_eq!(refused([DType::F16, bf16], 8, &[0, 4]), (true, "qkv"));
    assert_eq!(refused([bf16, DType::F32], 8, &[0, 4]), (true, "out"));
    assert_eq!(refused([bf16; 2], 12, &[0, 4]), (false, "qkv"));
    assert_eq!(refused([bf16; 2], 136, &[0, 4]), (false, "qkv"));
    assert_eq!(refused([bf16; 2], 8, &[0]), (false, "cu_seqlens"));
    assert_eq!(refused([bf16; 2], 8, &[]), (false, "cu_seqlens"));
}

/// Lengths that are wrong, which a GPU's host can't see, neither write nor read outside of the operands.
#[test]
fn cuda_keeps_within_bounds_whatever_the_lengths() {
    let Some(device) = gpu() else { return };
    for cu_seqlens in
        [&[0, -5, 1 << 30][..], &[i32::MAX, i32::MIN], &[50, 20, 90, 70], &[-1, -1], &[10, 1000, 20, i32::MAX, 5]]
    {
        for is_tall in [false, true] {
            let mut problem = Problem::new(&device, finest(&device), &[100], 2, 72);
            problem.cu_seqlens = cu_seqlens.to_vec();
            problem.by(&device, By::Cuda(Plan::new(72, is_tall)));
        }
    }
    // The device is still well.
    Problem::new(&device, finest(&device), &[100], 2, 72).check(&device);
}
