//! Against plain float64 loops, and against itself: a row's bits depend on its segment alone.

use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::cpu::run;
use super::{VarlenAttention, varlen_attention};
use crate::OpError;
use crate::simd::Isa;
use crate::testing::{device_tests, load, store, values as numbers};

/// A problem: `[n, 3, num_heads, head_dim]` and where its segments begin.
struct Problem {
    qkv: Tensor,
    cu_seqlens: Vec<i32>,
    out_dtype: DType,
}

impl Problem {
    fn new(device: &Device, dtypes: [DType; 2], lens: &[usize], num_heads: usize, head_dim: usize) -> Self {
        let mut cu_seqlens = vec![0];
        for &len in lens {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + len as i32);
        }
        let n: usize = lens.iter().sum();
        // Large enough that the softmax is far from uniform.
        let qkv: Vec<f32> = numbers(5, n * 3 * num_heads * head_dim, 1.0).iter().map(|x| x * 3.0).collect();
        let qkv = store(device, &qkv, dtypes[0], &[n, 3, num_heads, head_dim]);
        Self { qkv, cu_seqlens, out_dtype: dtypes[1] }
    }

    fn by(&self, device: &Device, isa: Option<Isa>) -> Vec<f32> {
        let [n, _, num_heads, head_dim] = <[usize; 4]>::try_from(&self.qkv.shape()[..]).unwrap();
        let mut out = Tensor::zeros(device, self.out_dtype, &[n, num_heads * head_dim]).unwrap();
        let cu_seqlens = Tensor::from_slice(device, &self.cu_seqlens, &[self.cu_seqlens.len()]).unwrap();
        let args = VarlenAttention {
            qkv: self.qkv.view(),
            cu_seqlens: cu_seqlens.view(),
            scale: (head_dim as f32).powf(-0.5),
            out: out.view_mut().unwrap(),
        };
        match isa {
            Some(isa) => run(isa, device.stream(), args).unwrap(),
            None => varlen_attention(device.stream(), args).unwrap(),
        }
        load(&out)
    }

    fn plain(&self) -> Vec<f32> {
        let [n, _, num_heads, head_dim] = <[usize; 4]>::try_from(&self.qkv.shape()[..]).unwrap();
        let qkv: Vec<f64> = load(&self.qkv).into_iter().map(f64::from).collect();
        let at =
            |row: usize, part: usize, head: usize| &qkv[((row * 3 + part) * num_heads + head) * head_dim..][..head_dim];
        let mut out = vec![0.0_f32; n * num_heads * head_dim];
        for segment in self.cu_seqlens.windows(2) {
            let rows = segment[0] as usize..segment[1] as usize;
            for row in rows.clone() {
                for head in 0..num_heads {
                    let dot = |j: usize| -> f64 {
                        let products = at(row, 0, head).iter().zip(at(j, 1, head)).map(|(q, k)| q * k);
                        products.sum::<f64>() * (head_dim as f64).powf(-0.5)
                    };
                    let scores: Vec<f64> = rows.clone().map(dot).collect();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..head_dim {
                        let sum: f64 = rows.clone().zip(&weights).map(|(j, w)| w * at(j, 2, head)[i]).sum();
                        out[(row * num_heads + head) * head_dim + i] = (sum / total) as f32;
                    }
                }
            }
        }
        out
    }

    fn check(&self, device: &Device) {
        let (got, expected) = (self.by(device, None), self.plain());
        let rtol = if self.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
        assert_close_at(
            &got,
            &expected,
            &[self.qkv.shape()[0], expected.len() / self.qkv.shape()[0].max(1)],
            2e-5,
            rtol,
        );
    }
}

const F32: [DType; 2] = [DType::F32; 2];

fn every_type_and_shape_agrees_with_float64(device: &Device) {
    // One row, empty segments, whole blocks of 32 keys, one more and one less, odd heads.
    let shapes: [(&[usize], usize, usize); 8] = [
        (&[1], 1, 1),
        (&[1, 1, 1], 2, 16),
        (&[0, 3, 0, 0, 5, 0], 3, 7),
        (&[31, 32, 33], 2, 72),
        (&[64, 7], 1, 80),
        (&[65], 2, 64),
        (&[40], 1, 128),
        (&[9], 1, 130),
    ];
    for (lens, num_heads, head_dim) in shapes {
        for qkv in [DType::F32, DType::BF16, DType::F16] {
            for out in [DType::F32, DType::BF16] {
                Problem::new(device, [qkv, out], lens, num_heads, head_dim).check(device);
            }
        }
    }
}

fn a_real_picture_agrees_with_float64(device: &Device) {
    // A vision tower's heads; two frames of 16 x 16 patches.
    Problem::new(device, F32, &[256, 256], 4, 72).check(device);
}

fn no_rows_are_no_work(device: &Device) {
    assert!(Problem::new(device, F32, &[], 2, 8).by(device, None).is_empty());
    assert!(Problem::new(device, F32, &[0, 0], 2, 8).by(device, None).is_empty());
    assert!(Problem::new(device, F32, &[3], 0, 8).by(device, None).is_empty());
    // No rows cost no memory, however wide they would be.
    let wide = Tensor::zeros(device, DType::F32, &[0, 3, 1 << 40, 1 << 40]).unwrap();
    let cu_seqlens = Tensor::from_slice(device, &[0], &[1]).unwrap();
    let mut out = Tensor::zeros(device, DType::F32, &[0, usize::MAX]).unwrap();
    let args =
        VarlenAttention { qkv: wide.view(), cu_seqlens: cu_seqlens.view(), scale: 1.0, out: out.view_mut().unwrap() };
    assert_eq!(varlen_attention(device.stream(), args), Ok(()));
    assert!(Problem::new(device, F32, &[3], 2, 0).by(device, None).is_empty());
}

fn huge_scores_neither_overflow_nor_vanish(device: &Device) {
    let (n, d) = (40, 8);
    let mut problem = Problem::new(device, F32, &[n], 1, d);
    let large: Vec<f32> = load(&problem.qkv).iter().map(|x| x * 300.0).collect();
    problem.qkv = store(device, &large, DType::F32, &[n, 3, 1, d]);
    assert_close_at(&problem.by(device, None), &problem.plain(), &[n, d], 1.0, 1e-3);
}

#[test]
fn instruction_sets_agree_bitwise_where_they_fuse() {
    let device = Device::cpu(2).unwrap();
    let problem = Problem::new(&device, F32, &[50, 1, 77], 2, 40);
    let expected = problem.plain();
    for isa in Isa::all() {
        let got = problem.by(&device, Some(isa));
        assert_close_at(&got, &expected, &[128, 80], 2e-5, 0.0);
        if isa.is_fused() {
            assert_bitwise_equal(&got, &problem.by(&device, Some(Isa::best())));
        }
    }
}

device_tests!(
    every_type_and_shape_agrees_with_float64,
    a_real_picture_agrees_with_float64,
    no_rows_are_no_work,
    huge_scores_neither_overflow_nor_vanish,
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_segment_doesn_t_depend_on_its_neighbours_or_threads(
        lens in prop::collection::vec(0_usize..90, 1..5),
        head_dim in 1_usize..40,
        threads in 1_usize..4,
    ) {
        let device = Device::cpu(2).unwrap();
        let together = Problem::new(&device, F32, &lens, 2, head_dim);
        let expected = together.by(&device, None);
        let device = Device::cpu(threads).unwrap();
        let mut split = Vec::new();
        for segment in together.cu_seqlens.windows(2) {
            let rows = segment[0] as usize..segment[1] as usize;
            let own = &load(&together.qkv)[rows.start * 6 * head_dim..rows.end * 6 * head_dim];
            let qkv = store(&device, own, DType::F32, &[rows.len(), 3, 2, head_dim]);
            let alone = Problem { qkv, cu_seqlens: vec![0, rows.len() as i32], out_dtype: DType::F32 };
            split.extend(alone.by(&device, None));
        }
        assert_bitwise_equal(&split, &expected);
    }
}

/// What `varlen_attention` says of operands of these types and shapes, and these segments.
fn refusal(qkv: (DType, &[usize]), cu_seqlens: &[i32], out: (DType, &[usize])) -> OpError {
    let device = Device::cpu(1).unwrap();
    let qkv = Tensor::zeros(&device, qkv.0, qkv.1).unwrap();
    let mut out = Tensor::zeros(&device, out.0, out.1).unwrap();
    let cu_seqlens = Tensor::from_slice(&device, cu_seqlens, &[cu_seqlens.len()]).unwrap();
    let args =
        VarlenAttention { qkv: qkv.view(), cu_seqlens: cu_seqlens.view(), scale: 1.0, out: out.view_mut().unwrap() };
    varlen_attention(device.stream(), args).unwrap_err()
}

#[test]
fn misfits_are_refused_by_name() {
    let qkv: (DType, &[usize]) = (DType::F32, &[4, 3, 2, 8]);
    let out: (DType, &[usize]) = (DType::F32, &[4, 16]);
    let arg = |e: OpError| match e {
        OpError::Shape { op: "varlen_attention", arg, .. } | OpError::DType { op: "varlen_attention", arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(arg(refusal((DType::F32, &[4, 2, 2, 8]), &[0, 4], out)), "qkv");
    assert_eq!(arg(refusal((DType::F32, &[4, 3, 16]), &[0, 4], out)), "qkv");
    assert_eq!(arg(refusal((DType::I32, &[4, 3, 2, 8]), &[0, 4], out)), "qkv");
    assert_eq!(arg(refusal(qkv, &[0, 4], (DType::F32, &[4, 15]))), "out");
    assert_eq!(arg(refusal(qkv, &[0, 4], (DType::F16, &[4, 16]))), "out");
    for (cu_seqlens, bad) in [
        (&[][..], (0, 0)),
        (&[0], (0, 0)),
        (&[1, 4], (0, 1)),
        (&[0, 3], (1, 3)),
        (&[0, 5], (1, 5)),
        (&[0, 3, 2, 4], (2, 2)),
        (&[0, -1, 4], (1, -1)),
    ] {
        match refusal(qkv, cu_seqlens, out) {
            OpError::Value { arg: "cu_seqlens", index, value, .. } => assert_eq!((index, value), bad, "{cu_seqlens:?}"),
            other => panic!("{other}"),
        }
    }
}
