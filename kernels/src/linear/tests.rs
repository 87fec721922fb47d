//! Against a float64 sum, and against itself: a row's bits don't depend on what stands around it.

mod f8;

use foveal_device::{DType, Device, Stream, Tensor, View, ViewMut};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use half::bf16;
use proptest::prelude::*;

use super::cpu::run;
use super::{Linear, linear, tune};
use crate::OpError;
use crate::simd::Isa;
use crate::testing::{device_tests, load, store, values as numbers};

/// A problem: operands as they are after rounding to their types.
struct Problem {
    x: Tensor,
    parts: Vec<Tensor>,
    bias: Option<Tensor>,
    out_dtype: DType,
}

impl Problem {
    fn new(device: &Device, [x, w, out]: [DType; 3], m: usize, k: usize, parts: &[usize], has_bias: bool) -> Self {
        let n = parts.iter().sum();
        let part = |(i, &rows): (usize, &usize)| store(device, &numbers(7 + i as u64, rows * k, 1.0), w, &[rows, k]);
        let bias = if device.is_cuda() { out } else { w };
        Self {
            x: store(device, &numbers(1, m * k, 1.0), x, &[m, k]),
            parts: parts.iter().enumerate().map(part).collect(),
            bias: has_bias.then(|| store(device, &numbers(2, n, 1.0), bias, &[n])),
            out_dtype: out,
        }
    }

    fn sizes(&self) -> (usize, usize, usize) {
        let n = self.parts.iter().map(|part| part.shape()[0]).sum();
        (self.x.shape()[0], n, self.x.shape()[1])
    }

    /// Rows of the product, by the given function.
    fn rows(&self, device: &Device, rows: std::ops::Range<usize>, by: impl Fn(&Stream, Linear<'_>)) -> Vec<f32> {
        let (_, n, _) = self.sizes();
        let mut out = Tensor::zeros(device, self.out_dtype, &[rows.len(), n]).unwrap();
        let weight: Vec<View<'_>> = self.parts.iter().map(Tensor::view).collect();
        let args = Linear {
            x: self.x.rows(rows).unwrap(),
            weight: &weight,
            bias: self.bias.as_ref().map(Tensor::view),
            scales: None,
            out: out.view_mut().unwrap(),
        };
        by(device.stream(), args);
        load(&out)
    }

    fn all_rows(&self, device: &Device) -> Vec<f32> {
        self.rows(device, 0..self.sizes().0, |stream, args| linear(stream, args).unwrap())
    }

    /// The same by plain loops in float64, and the sum of the products' sizes, which bounds the rounding.
    fn plain(&self) -> (Vec<f32>, f64) {
        let (m, n, k) = self.sizes();
        let x = load(&self.x);
        let weight: Vec<f32> = self.parts.iter().flat_map(load).collect();
        let bias = self.bias.as_ref().map_or(vec![0.0; n], load);
        let (mut out, mut largest) = (Vec::new(), 0.0_f64);
        for row in 0..m {
            for column in 0..n {
                let mut sum = f64::from(bias[column]);
                let mut size = sum.abs();
                for i in 0..k {
                    let product = f64::from(x[row * k + i]) * f64::from(weight[column * k + i]);
                    sum += product;
                    size += product.abs();
                }
                out.push(sum as f32);
                largest = largest.max(size);
            }
        }
        (out, largest)
    }
}

/// Runs the shared body on one device.
fn agrees_with_float64(device: &Device, problem: &Problem) {
    let (m, n, k) = problem.sizes();
    let (expected, size) = problem.plain();
    // Each of the lanes' additions rounds by half a unit of a partial sum at most; those of tensor cores, which add sixteen
    // products at once, cut off a whole one. (A GPU's true float32 products are added one after the other: the roundings of
    // k such additions come to the root of k units, which is less.)
    let units = if device.is_cuda() { 1.0 } else { 0.5 };
    let atol = size * f64::from(f32::EPSILON) * (k as f64 / 16.0 + 8.0) * units;
    // Rounding to bf16 loses at most 2^-9 of the value, and another 2^-9 where the two sums lie on either side of the middle
    // between two bf16s. cuBLASLt rounds the products' sum before it adds the bias and rounds again: twice that, and as much
    // of the bias, which may be what is left of a sum that it cancels.
    let rounds_twice = device.is_cuda() && problem.bias.is_some();
    let (rtol, of_bias) = match (problem.out_dtype, rounds_twice) {
        (DType::BF16, false) => (1.0 / 256.0, 0.0),
        (DType::BF16, true) => (1.0 / 128.0, 1.0 / 256.0),
        _ => (0.0, 0.0),
    };
    let bias = problem.bias.as_ref().map_or(0.0, |bias| load(bias).iter().fold(0.0_f32, |max, x| max.max(x.abs())));
    let atol = atol + f64::from(bias) * of_bias;
    assert_close_at(&problem.all_rows(device), &expected, &[m, n], atol as f32, rtol);
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const F32: [DType; 3] = [DType::F32; 3];
/// The types of the decoder on the CPU: float32 activations, bf16 weights.
const DECODER: [DType; 3] = [DType::F32, DType::BF16, DType::F32];
/// The types of every model on CUDA.
const NARROW: [DType; 3] = [DType::BF16; 3];

/// The types of the decoder.
fn decoder(device: &Device) -> [DType; 3] {
    if device.is_cuda() { NARROW } else { DECODER }
}

/// Activations, weights and outputs of all the types that a device multiplies.
fn all_types(device: &Device) -> Vec<[DType; 3]> {
    use DType::{BF16, F32};
    if device.is_cuda() {
        return vec![NARROW, [BF16, BF16, F32], [F32; 3]];
    }
    let with = |x, w| [F32, BF16].map(|out| [x, w, out]);
    [F32, BF16].into_iter().flat_map(|x| FLOATS.into_iter().flat_map(move |w| with(x, w))).collect()
}

fn every_type_and_shape_agrees_with_float64(device: &Device) {
    // Tiny, odd, ragged, whole tiles, many rows; parts that don't fill a tile.
    let shapes: [(usize, usize, &[usize]); 8] = [
        (1, 1, &[1]),
        (1, 32, &[4]),
        (3, 33, &[5]),
        (5, 123, &[123]),
        (7, 64, &[8, 3, 1]),
        (17, 95, &[2, 0, 9]),
        (64, 256, &[130]),
        (97, 40, &[70, 65]),
    ];
    for (m, k, parts) in shapes {
        for dtypes in all_types(device) {
            agrees_with_float64(device, &Problem::new(device, dtypes, m, k, parts, m % 2 == 1));
        }
    }
}

fn every_part_of_a_few_rows_agrees_with_float64(device: &Device) {
    // Columns that fill no load of a warp, one, all warps' and more; parts in one launch and in two; rows in groups of
    // eight, none of a part, and enough for two groups on every multiprocessor.
    let parts: [&[usize]; 4] = [&[1], &[8, 3, 1], &[5, 0, 16, 2], &[1100, 600, 513]];
    for m in [1, 2, 5, 7, 8] {
        for (k, parts) in [8, 136, 1032, 2056].into_iter().flat_map(|k| parts.map(|parts| (k, parts))) {
            let dtypes = if k == 136 { [DType::BF16, DType::BF16, DType::F32] } else { NARROW };
            agrees_with_float64(device, &Problem::new(device, dtypes, m, k, parts, m % 2 == 1));
        }
    }
}

fn real_projections_agree_with_float64(device: &Device) {
    // Query, key and value of decoders of 2 and 8 billion parameters, whose weights are three tensors or one; a key alone
    // for a prompt; a patch embedding and a vision MLP of Qwen2.5-VL, whose sizes are no multiples of 8 or 128.
    let shapes: [(usize, usize, &[usize]); 6] = [
        (2, 2048, &[2048, 1024, 1024]),
        (1, 4096, &[6144]),
        (128, 4096, &[1024]),
        (37, 1176, &[1280]),
        (4, 1280, &[3420, 3420]),
        (9, 3420, &[1280]),
    ];
    for (m, k, parts) in shapes {
        agrees_with_float64(device, &Problem::new(device, decoder(device), m, k, parts, m != 128));
    }
}

fn more_rows_of_weights_than_run_at_once_agree_with_float64(device: &Device) {
    // So many that a block takes several tiles of them, of one part and of the next; columns for some warps and for all.
    for (m, k, parts) in [(8, 264, &[3000, 1001, 900][..]), (3, 1032, &[2500, 1, 2200])] {
        agrees_with_float64(device, &Problem::new(device, NARROW, m, k, parts, true));
    }
}

fn tuned_projections_agree_with_float64(device: &Device) {
    // A stream that other tests don't use: tuning records it.
    let own = device.is_cuda().then(|| Device::cuda(0).unwrap());
    let device = own.as_ref().unwrap_or(device);
    for (m, k, parts) in [(24, 256, &[130, 62][..]), (3, 64, &[40])] {
        let problem = Problem::new(device, decoder(device), m, k, parts, true);
        let weight: Vec<View<'_>> = problem.parts.iter().map(Tensor::view).collect();
        problem.rows(device, 0..m, |stream, args| tune(stream, args, &[&weight, &weight]).unwrap());
        agrees_with_float64(device, &problem);
    }
}

fn rows_among_a_few_others_have_the_same_bits(device: &Device) {
    let problem = Problem::new(device, decoder(device), 8, 208, &[37, 30], true);
    let by = |stream: &Stream, args: Linear<'_>| linear(stream, args).unwrap();
    let one_by_one: Vec<f32> = (0..8).flat_map(|row| problem.rows(device, row..row + 1, by)).collect();
    for m in 1..=8 {
        assert_bitwise_equal(&problem.rows(device, 0..m, by), &one_by_one[..m * 67]);
    }
}

fn more_rows_than_a_pass_holds(device: &Device) {
    // 4 MiB of packed rows: more than one pass at this width.
    agrees_with_float64(device, &Problem::new(device, decoder(device), 75, 20_480, &[3], false));
}

fn nothing_to_do_and_nothing_to_sum(device: &Device) {
    for (m, parts) in [(0, &[4_usize][..]), (3, &[]), (3, &[0]), (0, &[])] {
        assert!(Problem::new(device, F32, m, 5, parts, true).all_rows(device).is_empty());
    }
    for m in [1, 9] {
        let narrow = Problem::new(device, NARROW, m, 0, &[3, 2, 1, 2], true);
        assert_eq!(narrow.all_rows(device), load(narrow.bias.as_ref().unwrap()).repeat(m));
        let with_bias = Problem::new(device, F32, m, 0, &[3], true);
        assert_eq!(with_bias.all_rows(device), numbers(2, 3, 1.0).repeat(m));
        assert_eq!(Problem::new(device, F32, m, 0, &[3], false).all_rows(device), vec![0.0; 3 * m]);
    }
}

fn infinities_and_nan_stay_in_their_row(device: &Device) {
    // Few rows, and many: there is another kernel for each.
    for rows_between in [0, 9] {
        let (m, last) = (3 + rows_between, 2 + rows_between);
        let mut x = numbers(1, m * 40, 1.0);
        x[45] = f32::INFINITY;
        x[last * 40 + 5] = f32::NAN;
        for [x_dtype, w, out_dtype] in all_types(device) {
            let problem = Problem {
                x: store(device, &x, x_dtype, &[m, 40]),
                parts: vec![store(device, &[1.0; 80], w, &[2, 40])],
                bias: None,
                out_dtype,
            };
            let got = problem.all_rows(device);
            assert_eq!(got[2..4], [f32::INFINITY; 2]);
            assert!(got[2 * last..].iter().all(|x| x.is_nan()));
            assert!(got[..2].iter().chain(&got[4..2 * last]).all(|x| x.is_finite()));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    for threads in [1, 2, 3] {
        let device = Device::cpu(threads).unwrap();
        for dtypes in [DECODER, F32, [DType::BF16, DType::F16, DType::BF16]] {
            let problem = Problem::new(&device, dtypes, 20, 203, &[37, 30], true);
            let by = |stream: &Stream, args: Linear<'_>| linear(stream, args).unwrap();
            let one_by_one: Vec<f32> = (0..20).flat_map(|row| problem.rows(&device, row..row + 1, by)).collect();
            for m in 1..=20 {
                assert_bitwise_equal(&problem.rows(&device, 0..m, by), &one_by_one[..m * 67]);
            }
        }
    }
}

#[test]
fn instruction_sets_agree_bitwise_where_they_fuse() {
    let device = Device::cpu(2).unwrap();
    for w in FLOATS {
        let problem = Problem::new(&device, [DType::F32, w, DType::F32], 11, 203, &[37], true);
        let (expected, _) = problem.plain();
        let of = |isa| problem.rows(&device, 0..11, |stream, args| run(isa, stream, args).unwrap());
        for isa in Isa::all() {
            assert_close_at(&of(isa), &expected, &[11, 37], 1e-4, 0.0);
            if isa.is_fused() {
                assert_bitwise_equal(&of(isa), &of(Isa::best()));
            }
        }
    }
}

#[test]
fn weights_of_different_types_sum_in_the_same_order() {
    let device = Device::cpu(1).unwrap();
    let narrow = Problem::new(&device, DECODER, 5, 77, &[6], false);
    let wide = store(&device, &load(&narrow.parts[0]), DType::F32, &[6, 77]);
    let wide =
        Problem { parts: vec![wide], x: store(&device, &numbers(1, 5 * 77, 1.0), DType::F32, &[5, 77]), ..narrow };
    let narrow = Problem::new(&device, DECODER, 5, 77, &[6], false);
    assert_bitwise_equal(&wide.all_rows(&device), &narrow.all_rows(&device));
}

device_tests!(
    every_type_and_shape_agrees_with_float64,
    every_part_of_a_few_rows_agrees_with_float64,
    real_projections_agree_with_float64,
    more_rows_of_weights_than_run_at_once_agree_with_float64,
    tuned_projections_agree_with_float64,
    rows_among_a_few_others_have_the_same_bits,
    more_rows_than_a_pass_holds,
    nothing_to_do_and_nothing_to_sum,
    infinities_and_nan_stay_in_their_row,
    misfits_are_refused_by_name,
    types_that_a_device_doesnt_multiply_are_refused_by_name,
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rows_don_t_depend_on_splits_tiles_or_threads(
        m in 1_usize..40,
        k in 1_usize..150,
        parts in prop::collection::vec(1_usize..40, 1..4),
        cuts in prop::collection::vec(0_usize..40, 0..4),
        threads in 1_usize..4,
        column in 0_usize..120,
    ) {
        let whole_device = Device::cpu(2).unwrap();
        let whole = Problem::new(&whole_device, DECODER, m, k, &parts, true);
        let expected = whole.all_rows(&whole_device);
        let device = Device::cpu(threads).unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(m)).chain([0, m]).collect();
        cuts.sort_unstable();
        let by = |stream: &Stream, args: Linear<'_>| linear(stream, args).unwrap();
        let split: Vec<f32> = cuts.windows(2).flat_map(|cut| whole.rows(&device, cut[0]..cut[1], by)).collect();
        assert_bitwise_equal(&split, &expected);
        // One weight row alone, wherever it stood.
        let n: usize = parts.iter().sum();
        let column = column % n;
        let weight: Vec<f32> = whole.parts.iter().flat_map(load).collect();
        let alone = Problem {
            x: store(&device, &load(&whole.x), DType::F32, &[m, k]),
            parts: vec![store(&device, &weight[column * k..(column + 1) * k], DType::BF16, &[1, k])],
            bias: whole.bias.as_ref().map(|b| store(&device, &load(b)[column..=column], DType::BF16, &[1])),
            out_dtype: DType::F32,
        };
        let of_column: Vec<f32> = expected.iter().skip(column).step_by(n).copied().collect();
        assert_bitwise_equal(&alone.all_rows(&device), &of_column);
    }
}

/// What `linear` says of operands of these types and shapes.
fn refusal(
    device: &Device,
    x: (DType, &[usize]),
    parts: &[(DType, &[usize])],
    bias: Option<(DType, &[usize])>,
    out: (DType, &[usize]),
) -> OpError {
    let zeros = |(dtype, dims): (DType, &[usize])| Tensor::zeros(device, dtype, dims).unwrap();
    let (x, parts, bias, mut out) =
        (zeros(x), parts.iter().map(|&p| zeros(p)).collect::<Vec<_>>(), bias.map(zeros), zeros(out));
    let weight: Vec<View<'_>> = parts.iter().map(Tensor::view).collect();
    let out: ViewMut<'_> = out.view_mut().unwrap();
    linear(
        device.stream(),
        Linear { x: x.view(), weight: &weight, bias: bias.as_ref().map(Tensor::view), scales: None, out },
    )
    .unwrap_err()
}

fn misfits_are_refused_by_name(device: &Device) {
    use DType::F32;
    let good: (&[usize], &[usize], &[usize]) = (&[2, 8], &[4, 8], &[2, 4]);
    let shape = |x: &[usize], parts: &[&[usize]], bias: Option<&[usize]>, out: &[usize]| {
        let parts: Vec<_> = parts.iter().map(|&dims| (F32, dims)).collect();
        match refusal(device, (F32, x), &parts, bias.map(|dims| (F32, dims)), (F32, out)) {
            OpError::Shape { op: "linear", arg, .. } => arg,
            other => panic!("{other}"),
        }
    };
    assert_eq!(shape(&[2, 8, 1], &[good.1], None, good.2), "x");
    assert_eq!(shape(good.0, &[&[4, 7]], None, good.2), "weight");
    assert_eq!(shape(good.0, &[good.1, &[8]], None, good.2), "weight");
    assert_eq!(shape(good.0, &[good.1], Some(&[5]), good.2), "bias");
    assert_eq!(shape(good.0, &[good.1], None, &[2, 5]), "out");
    assert_eq!(shape(good.0, &[good.1, good.1], None, good.2), "out");
}

fn types_that_a_device_doesnt_multiply_are_refused_by_name(device: &Device) {
    use DType::{BF16, F16, F32, I32, U8};
    let dtype = |[x, w, out]: [DType; 3], bias: Option<DType>| {
        let bias = bias.map(|dtype| (dtype, &[4_usize][..]));
        match refusal(device, (x, &[2, 8]), &[(w, &[4, 8])], bias, (out, &[2, 4])) {
            OpError::DType { op: "linear", arg, .. } => arg,
            other => panic!("{other}"),
        }
    };
    assert_eq!(dtype([F16, F32, F32], None), "x");
    assert_eq!(dtype([F32, U8, F32], None), "weight");
    assert_eq!(dtype([F32, F32, F32], Some(I32)), "bias");
    assert_eq!(dtype([F32, F32, F16], None), "out");
    if device.is_cuda() {
        assert_eq!(dtype([F32, BF16, F32], None), "weight");
        assert_eq!(dtype([BF16, F32, BF16], None), "weight");
        assert_eq!(dtype([BF16, F16, BF16], None), "weight");
        assert_eq!(dtype([F32, F32, BF16], None), "out");
        assert_eq!(dtype([BF16, BF16, BF16], Some(F32)), "bias");
        assert_eq!(dtype([BF16, BF16, F32], Some(BF16)), "bias");
    }
}

#[test]
fn weights_are_read_at_any_place_of_a_file() {
    let device = Device::cpu(2).unwrap();
    // A part that begins in the middle of a shared block, as a tensor of a file does.
    let (n, k) = (5, 70);
    let numbers = numbers(4, n * k + 3, 1.0);
    let file: Vec<u8> = numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let part = Tensor::from_shared(std::sync::Arc::new(file), 6..6 + 2 * n * k, DType::BF16, &[n, k]).unwrap();
    let narrow: Vec<f32> = numbers[3..].iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(load(&part), narrow);
    let x = store(&device, &narrow[..2 * k], DType::F32, &[2, k]);
    let problem = Problem { x, parts: vec![part], bias: None, out_dtype: DType::F32 };
    agrees_with_float64(&device, &problem);
}
