//! Products of FP8 operands, unscaled and with a scale for each block.

use foveal_device::{CudaStream, DType, Device, Tensor, View};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};

use crate::OpError;
use crate::cuda::HOPPER_CAPABILITY;
use crate::linear::{BlockScales, Linear, linear};
use crate::quantize::{GROUP, group_stride};
use crate::testing::{blamed, device_tests, load, load64, random, tensor, to_f32, values, zeros};

device_tests!(
    products_are_those_of_the_bytes,
    blocks_are_scaled,
    a_few_rows_depend_on_themselves_alone,
    a_few_dozen_rows_of_any_shape,
    a_few_dozen_rows_depend_on_themselves_alone,
    misfits_are_named
);

/// Whether a device multiplies FP8; says so if not.
fn multiplies_f8(device: &Device) -> bool {
    let multiplies = device.stream().cuda().is_none_or(CudaStream::has_f8);
    if !multiplies {
        println!("skipped: this GPU has no FP8");
    }
    multiplies
}

struct Problem {
    x: Tensor,
    parts: Vec<Tensor>,
    scales: Option<(Tensor, Vec<Tensor>)>,
}

impl Problem {
    fn new(device: &Device, [m, k]: [usize; 2], parts: &[usize], is_scaled: bool) -> Self {
        let positive = |seed, dims: &[usize]| {
            let values: Vec<f32> = values(seed, dims.iter().product(), 1.0).iter().map(|x| x.abs() + 0.25).collect();
            tensor(device, &values, dims)
        };
        let groups = k.div_ceil(GROUP);
        let of = |(i, &n): (usize, &usize)| random(device, 2 + i as u64, DType::F8E4M3, &[n, k]);
        let scales_of = |(i, &n): (usize, &usize)| positive(20 + i as u64, &[n.div_ceil(GROUP), groups]);
        Self {
            x: random(device, 1, DType::F8E4M3, &[m, k]),
            parts: parts.iter().enumerate().map(of).collect(),
            scales: is_scaled
                .then(|| (positive(10, &[groups, group_stride(m)]), parts.iter().enumerate().map(scales_of).collect())),
        }
    }

    fn run(&self, device: &Device, rows: std::ops::Range<usize>, dtype: DType) -> Result<Vec<f32>, OpError> {
        let n: usize = self.parts.iter().map(|part| part.shape()[0]).sum();
        let weight: Vec<View<'_>> = self.parts.iter().map(Tensor::view).collect();
        let mut out = zeros(device, dtype, &[rows.len(), n]);
        let of_x = self.scales.as_ref().filter(|_| rows.len() < self.x.shape()[0]).map(|(x, _)| {
            let len = group_stride(rows.len());
            let own = |group: &[f32]| group[rows.clone()].iter().copied().chain([0.0; 4]).take(len).collect::<Vec<_>>();
            let groups: Vec<Vec<f32>> = load(x).chunks(x.shape()[1]).map(own).collect();
            tensor(device, &groups.concat(), &[groups.len(), len])
        });
        let scales = self
            .scales
            .as_ref()
            .map(|(x, parts)| (of_x.as_ref().unwrap_or(x).view(), parts.iter().map(Tensor::view).collect::<Vec<_>>()));
        let scales = scales.as_ref().map(|(x, weight)| BlockScales { x: *x, weight });
        let x = self.x.rows(rows).unwrap();
        linear(device.stream(), Linear { x, weight: &weight, bias: None, scales, out: out.view_mut().unwrap() })?;
        Ok(load(&out))
    }

    /// In float64, and the largest sum of the terms' sizes.
    fn plain(&self) -> (Vec<f32>, f64) {
        let [m, k] = [self.x.shape()[0], self.x.shape()[1]];
        let (x, groups) = (load64(&self.x), k.div_ceil(GROUP));
        let scales = self.scales.as_ref().map(|(x, weight)| (load(x), weight.iter().map(load).collect::<Vec<_>>()));
        let weights: Vec<Vec<f64>> = self.parts.iter().map(load64).collect();
        let (mut out, mut largest) = (Vec::new(), 0.0_f64);
        for i in 0..m {
            for (p, (part, weight)) in self.parts.iter().zip(&weights).enumerate() {
                for j in 0..part.shape()[0] {
                    let scale = |c: usize| {
                        scales.as_ref().map_or(1.0, |(of_x, of_weight)| {
                            let x = of_x[c / GROUP * group_stride(m) + i];
                            f64::from(x) * f64::from(of_weight[p][j / GROUP * groups + c / GROUP])
                        })
                    };
                    let (mut sum, mut size) = (0.0, 0.0);
                    for first in (0..k).step_by(GROUP) {
                        let scale = scale(first);
                        for c in first..(first + GROUP).min(k) {
                            let term = x[i * k + c] * weight[j * k + c] * scale;
                            sum += term;
                            size += term.abs();
                        }
                    }
                    out.push(sum);
                    largest = largest.max(size);
                }
            }
        }
        (to_f32(&out), largest)
    }

    fn check(&self, device: &Device) {
        let [m, k] = [self.x.shape()[0], self.x.shape()[1]];
        let (expected, size) = self.plain();
        let dims = [m, expected.len() / m.max(1)];
        for dtype in [DType::F32, DType::BF16] {
            // Tensor cores that keep a sum to themselves cut off what is below 2^-13 of it, each time they add; those
            // losses go either way.
            let unit = if device.is_cuda() { 2_f64.powi(-13) } else { f64::from(f32::EPSILON) };
            let atol = size * unit * (k as f64 / 32.0).sqrt().max(1.0) * if device.is_cuda() { 0.5 } else { 4.0 };
            let rtol = if dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
            assert_close_at(&self.run(device, 0..m, dtype).unwrap(), &expected, &dims, atol as f32, rtol);
        }
    }
}

fn products_are_those_of_the_bytes(device: &Device) {
    if !multiplies_f8(device) {
        return;
    }
    for (dims, parts) in [([1, 16], &[16][..]), ([3, 128], &[48, 16, 16]), ([17, 512], &[64]), ([40, 1024], &[32, 96])]
    {
        Problem::new(device, dims, parts, false).check(device);
    }
    Problem::new(device, [8, 4096], &[160], false).check(device);
    // More rows of weights than run at once.
    Problem::new(device, [8, 1040], &[3008, 1504], false).check(device);
}

fn blocks_are_scaled(device: &Device) {
    if !multiplies_f8(device) {
        return;
    }
    for (dims, parts) in [([1, 512], &[128][..]), ([5, 1024], &[256, 128]), ([20, 512], &[384]), ([64, 1536], &[128])] {
        Problem::new(device, dims, parts, true).check(device);
    }
    // More rows of weights than run at once.
    Problem::new(device, [7, 512], &[2560, 2048], true).check(device);
    // Sums that the library doesn't take.
    Problem::new(device, [21, 256], &[256, 128], true).check(device);
    // Long sums, and tiles of weights that don't come out even on an H200.
    Problem::new(device, [1, 6272], &[5120], true).check(device);
    Problem::new(device, [5, 6272], &[4864, 256], false).check(device);
    // Blocks that are cut off, which our own kernels take.
    Problem::new(device, [8, 400], &[200], true).check(device);
}

fn a_few_rows_depend_on_themselves_alone(device: &Device) {
    if !multiplies_f8(device) {
        return;
    }
    let problem = Problem::new(device, [8, 1024], &[64, 32], false);
    let all = problem.run(device, 0..8, DType::BF16).unwrap();
    for i in 0..8 {
        assert_bitwise_equal(&problem.run(device, i..i + 1, DType::BF16).unwrap(), &all[i * 96..(i + 1) * 96]);
    }
}

fn a_few_dozen_rows_of_any_shape(device: &Device) {
    if !multiplies_f8(device) {
        return;
    }
    // Parts that end within a tile, a block of scales and at their ends, or have no rows; sums that are shorter than a block of
    // scales, end within one, or are shared on Hopper by two to four blocks of the card, alike or not; as many rows as there are
    // columns of the product, and fewer.
    let shapes: [([usize; 2], &[usize]); 9] = [
        ([9, 16], &[16]),
        ([16, 144], &[48, 16, 112]),
        ([12, 128], &[16, 0, 32]),
        ([16, 2064], &[128, 80]),
        ([20, 1024], &[64, 208]),
        ([32, 2064], &[128, 80]),
        ([31, 4112], &[80]),
        ([33, 1536], &[144]),
        ([64, 2560], &[32]),
    ];
    for (dims, parts) in shapes {
        Problem::new(device, dims, parts, false).check(device);
    }
    // Of the parts only the last one may end within a block of scales. Rows are a multiple of 4, and of some there is more than a
    // launch of them.
    let shapes: [([usize; 2], &[usize]); 13] = [
        ([12, 512], &[16]),
        ([16, 2064], &[128, 80]),
        ([20, 1040], &[128, 80]),
        ([32, 4224], &[80]),
        ([64, 2560], &[256, 128, 16]),
        ([64, 8192], &[64]),
        ([100, 400], &[208]),
        ([67, 16], &[8512]),
        ([131, 400], &[16]),
        ([12, 6160], &[3712, 80]),
        ([68, 512], &[128, 80]),
        ([128, 1040], &[384]),
        ([124, 2048], &[128, 144]),
    ];
    for (dims, parts) in shapes {
        Problem::new(device, dims, parts, true).check(device);
    }
    // More parts than a launch has, and more tiles than run at once.
    Problem::new(device, [12, 256], &[16, 32, 16, 64, 16], false).check(device);
    Problem::new(device, [12, 256], &[128, 128, 128, 128], true).check(device);
    Problem::new(device, [12, 128], &[27_008], true).check(device);
    // A tile whose blocks go round their rings more than once.
    Problem::new(device, [40, 12_288], &[64], true).check(device);
}

fn a_few_dozen_rows_depend_on_themselves_alone(device: &Device) {
    if !multiplies_f8(device) {
        return;
    }
    if device.stream().cuda().is_some_and(|stream| stream.compute_capability() != HOPPER_CAPABILITY) {
        println!("skipped: this GPU's library may choose another algorithm for other rows");
        return;
    }
    let cases = [
        (16, false, [0..9, 3..14]),
        (16, true, [0..12, 4..16]),
        (32, false, [0..17, 8..32]),
        (64, false, [0..33, 20..60]),
        (128, true, [0..68, 44..124]),
    ];
    for (m, is_scaled, others) in cases {
        let problem = Problem::new(device, [m, 2048], &[128, 32], is_scaled);
        let all = problem.run(device, 0..m, DType::BF16).unwrap();
        for rows in others {
            let own = &all[rows.start * 160..rows.end * 160];
            assert_bitwise_equal(&problem.run(device, rows, DType::BF16).unwrap(), own);
        }
    }
}

fn misfits_are_named(device: &Device) {
    let problem = || Problem::new(device, [2, 256], &[128], true);
    let blame = |problem: Problem| blamed(problem.run(device, 0..2, DType::F32).map(drop));
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let (x, weight) = problem().scales.unwrap();
    assert_eq!(blame(Problem { scales: Some((f32s(&[2, 2]), weight)), ..problem() }), "scales.x");
    assert_eq!(blame(Problem { scales: Some((x, vec![f32s(&[1, 1])])), ..problem() }), "scales.weight");
    let (x, _) = problem().scales.unwrap();
    assert_eq!(blame(Problem { scales: Some((x, vec![])), ..problem() }), "scales.weight");
    assert_eq!(blame(Problem { parts: vec![zeros(device, DType::BF16, &[128, 256])], ..problem() }), "weight");
}
