//! Against a float64 sum, and against itself: a row's bits don't depend on what stands around it.

use foveal_device::{DType, Device, Stream, Tensor, View, ViewMut};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use half::bf16;
use proptest::prelude::*;

use super::cpu::run;
use super::{Linear, linear};
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
        Self {
            x: store(device, &numbers(1, m * k, 1.0), x, &[m, k]),
            parts: parts.iter().enumerate().map(part).collect(),
            bias: has_bias.then(|| store(device, &numbers(2, n, 1.0), w, &[n])),
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
    // Each of the lanes' additions rounds by half a unit of a partial sum at most.
    let atol = size * f64::from(f32::EPSILON) * (k as f64 / 16.0 + 8.0) * 0.5;
    let rtol = if problem.out_dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
    assert_close_at(&problem.all_rows(device), &expected, &[m, n], atol as f32, rtol);
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const F32: [DType; 3] = [DType::F32; 3];
/// The types of the decoder: float32 activations, bf16 weights.
const DECODER: [DType; 3] = [DType::F32, DType::BF16, DType::F32];

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
        for x in [DType::F32, DType::BF16] {
            for w in FLOATS {
                for out in [DType::F32, DType::BF16] {
                    agrees_with_float64(device, &Problem::new(device, [x, w, out], m, k, parts, m % 2 == 1));
                }
            }
        }
    }
}

fn a_real_projection_agrees_with_float64(device: &Device) {
    // Query, key and value of a 2-billion-parameter decoder.
    agrees_with_float64(device, &Problem::new(device, DECODER, 2, 2048, &[2048, 1024, 1024], true));
}

fn more_rows_than_a_pass_holds(device: &Device) {
    // 4 MiB of packed rows: more than one pass at this width.
    agrees_with_float64(device, &Problem::new(device, DECODER, 75, 20_480, &[3], false));
}

fn nothing_to_do_and_nothing_to_sum(device: &Device) {
    for (m, parts) in [(0, &[4_usize][..]), (3, &[]), (3, &[0]), (0, &[])] {
        assert!(Problem::new(device, F32, m, 5, parts, true).all_rows(device).is_empty());
    }
    for m in [1, 9] {
        let with_bias = Problem::new(device, F32, m, 0, &[3], true);
        assert_eq!(with_bias.all_rows(device), numbers(2, 3, 1.0).repeat(m));
        assert_eq!(Problem::new(device, F32, m, 0, &[3], false).all_rows(device), vec![0.0; 3 * m]);
    }
}

fn infinities_and_nan_stay_in_their_row(device: &Device) {
    let mut x = numbers(1, 3 * 40, 1.0);
    x[45] = f32::INFINITY;
    x[85] = f32::NAN;
    let problem = Problem {
        x: store(device, &x, DType::F32, &[3, 40]),
        parts: vec![store(device, &[1.0; 80], DType::BF16, &[2, 40])],
        bias: None,
        out_dtype: DType::F32,
    };
    let got = problem.all_rows(device);
    assert!(got[..2].iter().all(|x| x.is_finite()));
    assert_eq!(got[2..4], [f32::INFINITY; 2]);
    assert!(got[4..].iter().all(|x| x.is_nan()));
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
    a_real_projection_agrees_with_float64,
    more_rows_than_a_pass_holds,
    nothing_to_do_and_nothing_to_sum,
    infinities_and_nan_stay_in_their_row,
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
    x: (DType, &[usize]),
    parts: &[(DType, &[usize])],
    bias: Option<(DType, &[usize])>,
    out: (DType, &[usize]),
) -> OpError {
    let device = Device::cpu(1).unwrap();
    let zeros = |(dtype, dims): (DType, &[usize])| Tensor::zeros(&device, dtype, dims).unwrap();
    let (x, parts, bias, mut out) =
        (zeros(x), parts.iter().map(|&p| zeros(p)).collect::<Vec<_>>(), bias.map(zeros), zeros(out));
    let weight: Vec<View<'_>> = parts.iter().map(Tensor::view).collect();
    let out: ViewMut<'_> = out.view_mut().unwrap();
    linear(device.stream(), Linear { x: x.view(), weight: &weight, bias: bias.as_ref().map(Tensor::view), out })
        .unwrap_err()
}

#[test]
fn misfits_are_refused_by_name() {
    use DType::{BF16, F16, F32, I32, U8};
    let good: (&[usize], &[usize], &[usize]) = (&[2, 8], &[4, 8], &[2, 4]);
    let shape = |e: OpError| match e {
        OpError::Shape { op: "linear", arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(shape(refusal((F32, &[2, 8, 1]), &[(F32, good.1)], None, (F32, good.2))), "x");
    assert_eq!(shape(refusal((F32, good.0), &[(F32, &[4, 7])], None, (F32, good.2))), "weight");
    assert_eq!(shape(refusal((F32, good.0), &[(F32, good.1), (F32, &[8])], None, (F32, good.2))), "weight");
    assert_eq!(shape(refusal((F32, good.0), &[(F32, good.1)], Some((F32, &[5])), (F32, good.2))), "bias");
    assert_eq!(shape(refusal((F32, good.0), &[(F32, good.1)], None, (F32, &[2, 5]))), "out");
    assert_eq!(shape(refusal((F32, good.0), &[(F32, good.1), (BF16, good.1)], None, (F32, good.2))), "out");
    let dtype = |e: OpError| match e {
        OpError::DType { op: "linear", arg, .. } => arg,
        other => panic!("{other}"),
    };
    assert_eq!(dtype(refusal((F16, good.0), &[(F32, good.1)], None, (F32, good.2))), "x");
    assert_eq!(dtype(refusal((F32, good.0), &[(U8, good.1)], None, (F32, good.2))), "weight");
    assert_eq!(dtype(refusal((F32, good.0), &[(F32, good.1)], Some((I32, &[4])), (F32, good.2))), "bias");
    assert_eq!(dtype(refusal((F32, good.0), &[(F32, good.1)], None, (F16, good.2))), "out");
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
