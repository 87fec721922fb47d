//! Against plain loops, on a GPU; what the host checks, on any machine.

use half::bf16;

use super::*;
use crate::testing::gpu;
use crate::{Device, F8E4M3, Tensor};

const BF16: [DType; 3] = [DType::BF16; 3];
const WIDE: [DType; 3] = [DType::BF16, DType::BF16, DType::F32];
const F32: [DType; 3] = [DType::F32; 3];

/// Numbers in [-1, 1) that bf16 holds exactly.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as f32 / 128.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(device: &Device, values: &[f32], dtype: DType, dims: &[usize]) -> Tensor {
    match dtype {
        DType::BF16 => Tensor::from_slice(device, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), dims),
        DType::F8E4M3 => {
            Tensor::from_slice(device, &values.iter().map(|&x| F8E4M3::from_f32(x)).collect::<Vec<_>>(), dims)
        }
        _ => Tensor::from_slice(device, values, dims),
    }
    .unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::BF16 => tensor.to_vec::<bf16>().unwrap().into_iter().map(bf16::to_f32).collect(),
        _ => tensor.to_vec::<f32>().unwrap(),
    }
}

/// A product whose operands lie somewhere inside of larger tensors.
struct Product {
    shape: MatmulShape,
    /// Rows of `x` and of `weight` before the first one, elements before the first of `bias` and of `out`.
    before: [usize; 4],
}

impl Product {
    fn new([x, weight, out]: [DType; 3], [m, n, k]: [usize; 3], has_bias: bool) -> Self {
        let f8 = F8Product::default();
        let shape = MatmulShape { m, n, k, x, weight, out, bias: has_bias.then_some(out), ldo: n, f8 };
        Self { shape, before: [0; 4] }
    }

    fn inside(self, columns: usize, before: [usize; 4]) -> Self {
        Self { shape: MatmulShape { ldo: self.shape.n + columns, ..self.shape }, before }
    }

    fn x(&self) -> Vec<f32> {
        numbers(1, (self.before[0] + self.shape.m) * self.shape.k)
    }

    fn weight(&self) -> Vec<f32> {
        numbers(2, (self.before[1] + self.shape.n) * self.shape.k)
    }

    fn bias(&self) -> Vec<f32> {
        numbers(3, self.before[2] + self.shape.n)
    }

    /// What `out` holds at first, and still holds beside the product afterwards.
    const UNTOUCHED: f32 = 77.0;

    fn expected(&self) -> Vec<f32> {
        let MatmulShape { m, n, k, bias, ldo, .. } = self.shape;
        let (x, weight, offsets) = (self.x(), self.weight(), self.bias());
        let mut out = vec![Self::UNTOUCHED; self.before[3] + m * ldo];
        for i in 0..m {
            for j in 0..n {
                let x = &x[(self.before[0] + i) * k..][..k];
                let weight = &weight[(self.before[1] + j) * k..][..k];
                let sum: f64 = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let offset = if bias.is_some() { f64::from(offsets[self.before[2] + j]) } else { 0.0 };
                out[self.before[3] + i * ldo + j] = (sum + offset) as f32;
            }
        }
        out
    }

    /// Runs `by` with the operands and compares what it leaves in `out`.
    fn check(&self, device: &Device, by: impl FnOnce(&CudaStream, &MatmulInputs<'_>, &mut ViewMut<'_>)) {
        let MatmulShape { m, n, k, bias, ldo, .. } = self.shape;
        let [x_before, weight_before, bias_before, out_before] = self.before;
        let x = tensor(device, &self.x(), self.shape.x, &[x_before + m, k]);
        let weight = tensor(device, &self.weight(), self.shape.weight, &[weight_before + n, k]);
        let offsets = tensor(device, &self.bias(), self.shape.out, &[bias_before + n]);
        let len = out_before + m * ldo;
        let mut out = tensor(device, &vec![Self::UNTOUCHED; len], self.shape.out, &[len]);
        let offsets = bias.map(|_| offsets.view().rows(bias_before..bias_before + n).unwrap());
        let inputs = MatmulInputs {
            x: x.view().rows(x_before..x_before + m).unwrap(),
            weight: weight.view().rows(weight_before..weight_before + n).unwrap(),
            bias: offsets,
            scales: None,
        };
        by(device.stream().cuda().unwrap(), &inputs, &mut out.view_mut().unwrap());
        // Products of these numbers are multiples of 2^-14; float32 sums of a thousand are exact, and longer ones lose
        // a unit of the sum's last place at each of their additions, at most.
        let atol = if k <= 1000 { 0.0 } else { k as f32 * k as f32 * f32::EPSILON / 16.0 };
        // With a bias, bf16 is rounded to twice: the sum, then what the bias (below 1) makes of it.
        let (rtol, of_bias) = match (self.shape.out, bias) {
            (DType::BF16, None) => (1.0 / 256.0, 0.0),
            (DType::BF16, Some(_)) => (1.0 / 128.0, 1.0 / 256.0),
            _ => (0.0, 0.0),
        };
        let atol = atol + of_bias;
        for (i, (got, expected)) in values(&out).iter().zip(self.expected()).enumerate() {
            let is_near = (got - expected).abs() <= atol + rtol * expected.abs();
            assert!(is_near, "{}: element {i} is {got}, expected {expected}", self.shape);
        }
    }

    fn run(&self, device: &Device) {
        self.check(device, |stream, inputs, out| {
            stream.matmul(&self.shape, inputs, out, self.before[3]).unwrap();
        });
    }
}

#[test]
fn products_of_any_size_agree_with_plain_loops() {
    let Some(device) = gpu() else { return };
    let sizes =
        [[1, 1, 1], [1, 8, 16], [3, 5, 7], [16, 16, 16], [17, 40, 24], [64, 130, 256], [37, 48, 1176], [2, 999, 64]];
    for dtypes in [BF16, WIDE, F32] {
        for sizes in sizes {
            for has_bias in [false, true] {
                Product::new(dtypes, sizes, has_bias).run(&device);
            }
        }
    }
}

#[test]
fn products_write_their_columns_and_no_others() {
    let Some(device) = gpu() else { return };
    for dtypes in [BF16, WIDE, F32] {
        for has_bias in [false, true] {
            // Aligned; then every operand at a place that no vector load may be made from.
            Product::new(dtypes, [5, 32, 64], has_bias).inside(32, [0, 0, 0, 16]).run(&device);
            Product::new(dtypes, [5, 32, 64], has_bias).inside(3, [1, 1, 1, 1]).run(&device);
            Product::new(dtypes, [9, 31, 61], has_bias).inside(5, [1, 3, 5, 3]).run(&device);
        }
    }
}

#[test]
fn real_projections_agree_with_plain_loops() {
    let Some(device) = gpu() else { return };
    for sizes in [[1, 6144, 4096], [128, 1024, 4096], [37, 1280, 1176], [20, 3420, 1280]] {
        Product::new(BF16, sizes, true).run(&device);
    }
}

/// Numbers that FP8 holds exactly: multiples of 1/8 in [-1.875, 1.875]. Their sums are exact in float32, and in what the
/// tensor cores keep of them.
fn f8_numbers(seed: u64, len: usize) -> Vec<f32> {
    numbers(seed, len).iter().map(|x| (x * 15.0).round() / 8.0).collect()
}

/// The GPU, if it multiplies FP8.
fn gpu_with_f8() -> Option<Device> {
    let device = gpu()?;
    if !device.stream().cuda()?.has_f8() {
        println!("skipped: this GPU has no FP8");
        return None;
    }
    Some(device)
}

#[test]
fn f8_products_agree_with_plain_loops() {
    let Some(device) = gpu_with_f8() else { return };
    for [m, n, k] in [[1, 16, 16], [17, 48, 64], [64, 256, 512], [9, 6144, 1024], [130, 128, 4096]] {
        for (out_dtype, fast_accumulation) in [(DType::BF16, true), (DType::BF16, false), (DType::F32, true)] {
            let product = Product::new([DType::F8E4M3, DType::F8E4M3, out_dtype], [m, n, k], false);
            let f8 = F8Product { fast_accumulation, has_block_scales: false };
            let shape = MatmulShape { f8, ..product.shape };
            let (x, weight) = (f8_numbers(1, m * k), f8_numbers(2, n * k));
            let out = multiply_f8(&device, &shape, (&x, &weight), None);
            for (at, got) in out.iter().enumerate() {
                let (x, weight) = (&x[at / n * k..][..k], &weight[at % n * k..][..k]);
                let sum: f64 = x.iter().zip(weight).map(|(x, w)| f64::from(x * w)).sum();
                let tolerance = sum.abs() / 256.0 + if fast_accumulation { 0.05 } else { 0.001 };
                assert!((f64::from(*got) - sum).abs() <= tolerance, "{shape}: element {at} is {got}, expected {sum}");
            }
        }
    }
}

#[test]
fn f8_products_with_block_scales_agree_with_plain_loops() {
    let Some(device) = gpu_with_f8() else { return };
    for [m, n, k] in [[4, 128, 512], [20, 256, 1024], [64, 6144, 4096], [36, 384, 512]] {
        let product = Product::new([DType::F8E4M3, DType::F8E4M3, DType::BF16], [m, n, k], false);
        let f8 = F8Product { fast_accumulation: true, has_block_scales: true };
        let shape = MatmulShape { f8, ..product.shape };
        let (x, weight) = (f8_numbers(1, m * k), f8_numbers(2, n * k));
        let (blocks, stride) = (k / BLOCK, m);
        let positive = |seed, len| -> Vec<f32> { numbers(seed, len).iter().map(|x| x.abs() + 0.25).collect() };
        let (x_scales, weight_scales) = (positive(3, blocks * stride), positive(4, n.div_ceil(BLOCK) * blocks));
        let out = multiply_f8(&device, &shape, (&x, &weight), Some((&x_scales, &weight_scales)));
        for (at, got) in out.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let term = |c: usize| {
                let scale = x_scales[c / BLOCK * stride + i] * weight_scales[j / BLOCK * blocks + c / BLOCK];
                f64::from(x[i * k + c] * weight[j * k + c]) * f64::from(scale)
            };
            let sum: f64 = (0..k).map(term).sum();
            let tolerance = sum.abs() / 256.0 + 0.05;
            assert!((f64::from(*got) - sum).abs() <= tolerance, "{shape}: element {at} is {got}, expected {sum}");
        }
    }
}

fn multiply_f8(
    device: &Device,
    shape: &MatmulShape,
    (x, weight): (&[f32], &[f32]),
    scales: Option<(&[f32], &[f32])>,
) -> Vec<f32> {
    let MatmulShape { m, n, k, .. } = *shape;
    let (x, weight) = (tensor(device, x, shape.x, &[m, k]), tensor(device, weight, shape.weight, &[n, k]));
    let blocks = k.div_ceil(BLOCK);
    let scales = scales.map(|(x, weight)| {
        let x = tensor(device, x, DType::F32, &[blocks, m]);
        (x, tensor(device, weight, DType::F32, &[n.div_ceil(BLOCK), blocks]))
    });
    let scales = scales.as_ref().map(|(x, weight)| BlockScales { x: x.view(), weight: weight.view() });
    let inputs = MatmulInputs { x: x.view(), weight: weight.view(), bias: None, scales };
    let mut out = tensor(device, &vec![f32::NAN; m * n], shape.out, &[m, n]);
    let stream = device.stream().cuda().unwrap();
    stream.matmul(shape, &inputs, &mut out.view_mut().unwrap(), 0).unwrap();
    values(&out)
}

#[test]
fn tuning_finds_an_algorithm_and_remembers_it() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let product = Product::new(BF16, [24, 256, 512], true);
    let tune = |matmuls: &Matmuls| {
        let mut took = 0.0;
        product.check(&device, |stream, inputs, out| {
            let operands = product.shape.operands(inputs, (&*out, 0)).unwrap();
            took = matmuls.tune(stream, &product.shape, &[operands, operands]).unwrap();
            let key = PlanKey::new(&product.shape, &operands);
            let known = *matmuls.lock().tuned.exact(&key).unwrap();
            assert_eq!(known.microseconds, took);
            matmuls.run(stream, &product.shape, &operands).unwrap();
            assert_eq!(matmuls.lock().plans[&key].algorithm, known.algorithm);
            // A few rows less take the same one if it can compute them.
            let shape = MatmulShape { m: 20, ..product.shape };
            matmuls.run(stream, &shape, &operands).unwrap();
        });
        took
    };
    let matmuls = || Matmuls::with_folder(device.stream().cuda().unwrap(), Some(folder.path().to_owned())).unwrap();
    let first = tune(&matmuls());
    assert!(first > 0.0 && first < 1e4, "{first}");
    // Another process: it isn't timed again, so the time is the same to the last digit.
    assert_eq!(tune(&matmuls()), first);
}

#[test]
fn tuning_by_the_stream_leaves_a_product() {
    let Some(device) = gpu() else { return };
    let product = Product::new(WIDE, [3, 64, 128], false);
    product.check(&device, |stream, inputs, out| {
        let others = [inputs.weight, inputs.weight];
        assert!(stream.tune_matmul(&product.shape, inputs, &others, out, 0).unwrap() > 0.0);
    });
}

#[test]
fn nothing_to_do_is_done_and_nothing_to_sum_is_refused() {
    let Some(device) = gpu() else { return };
    Product::new(BF16, [0, 5, 8], true).run(&device);
    Product::new(BF16, [5, 0, 8], true).run(&device);
    Product::new(BF16, [2, 3, 0], false).check(&device, |stream, inputs, out| {
        let shape = Product::new(BF16, [2, 3, 0], false).shape;
        let error = stream.matmul(&shape, inputs, out, 0).unwrap_err();
        assert!(error.to_string().contains("nothing to sum"), "{error}");
        stream.fill_zero(out.reborrow()).unwrap();
    });
}

#[test]
fn operands_that_dont_have_the_shape_are_refused() {
    let device = Device::cpu(1).unwrap();
    let shape = Product::new(BF16, [2, 3, 4], true).inside(1, [0; 4]).shape;
    let zeros = |dtype, dims: &[usize]| Tensor::zeros(&device, dtype, dims).unwrap();
    let refusal = |x: Tensor, weight: Tensor, bias: Option<Tensor>, mut out: Tensor, offset: usize| {
        let bias = bias.as_ref().map(Tensor::view);
        let out = out.view_mut().unwrap();
        let inputs = MatmulInputs { x: x.view(), weight: weight.view(), bias, scales: None };
        shape.operands(&inputs, (&out, offset)).unwrap_err()
    };
    let (x, w) = (|| zeros(DType::BF16, &[2, 4]), || zeros(DType::BF16, &[3, 4]));
    let (b, out) = (|| Some(zeros(DType::BF16, &[3])), || zeros(DType::BF16, &[2, 4]));
    // Everything fits, but nothing lies on a GPU.
    assert_eq!(refusal(x(), w(), b(), out(), 0), DeviceError::NotOnDevice { dtype: DType::BF16 });
    let said = |error: DeviceError| match error {
        DeviceError::Matmul { shape, reason } => {
            assert_eq!(shape, "bf16 [2, 4] x bf16 [3, 4]^T + bf16 [3] -> bf16 [2, 3] in rows of 4");
            reason
        }
        other => panic!("{other}"),
    };
    assert_eq!(said(refusal(zeros(DType::F32, &[2, 4]), w(), b(), out(), 0)), "x holds f32");
    assert_eq!(said(refusal(zeros(DType::BF16, &[2, 5]), w(), b(), out(), 0)), "x is [2, 5]");
}

#[test]
fn repetitions_fill_a_round() {
    assert_eq!([0.0, 1.0, 10.0, 100.0, 1e3, 1e6].map(repetitions), [64, 64, 50, 5, 1, 1]);
}
