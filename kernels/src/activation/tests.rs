use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::{Activate, Activation, Gated, activate, gated};
use crate::OpError;
use crate::quantize::Scales;
use crate::testing::{
    ACTIVATIONS, Quantized, SCHEMES, blamed, device_tests, load, load64, random, rtol, store, tensor, to_f32, values,
    zeros,
};

device_tests!(
    any_shape_and_type_is_the_equation,
    the_ends_of_the_number_line,
    gelu_keeps_its_precision_in_the_tail,
    a_row_depends_on_itself_alone,
    misfits_are_named,
    an_unscaled_product_is_scaled_and_rounded_to_f8,
);

const KINDS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];

/// `erf` by its series (Abramowitz and Stegun 7.1.6), for moderate inputs.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// The definitions, in float64.
fn reference(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
    }
}

fn plain(device: &Device, x: &Tensor, kind: Activation, out: &mut Tensor) -> Result<(), OpError> {
    activate(device.stream(), Activate { x: x.view(), kind, out: out.view_mut().unwrap() })
}

fn glu(device: &Device, gate_up: &Tensor, kind: Activation, out: &mut Tensor) -> Result<(), OpError> {
    gated(
        device.stream(),
        Gated { gate_up: gate_up.view(), scales: None, kind, quantize: None, out: out.view_mut().unwrap() },
    )
}

fn any_shape_and_type_is_the_equation(device: &Device) {
    let shapes = [(24, 1536), (1, 1), (5, 123), (0, 8), (3, 0), (1, 40_000)];
    for ((n, i), dtype) in shapes.into_iter().flat_map(|shape| ACTIVATIONS.map(|dtype| (shape, dtype))) {
        let gate_up = store(device, &values(1, n * 2 * i, 8.0), dtype, &[n, 2 * i]);
        let inputs = load64(&gate_up);
        for kind in KINDS {
            let mut out = zeros(device, dtype, &[n, 2 * i]);
            plain(device, &gate_up, kind, &mut out).unwrap();
            let activated: Vec<f64> = inputs.iter().map(|&x| reference(kind, x)).collect();
            assert_close_at(&load(&out), &to_f32(&activated), &[n, 2 * i], 1e-6, rtol(dtype));

            let mut out = zeros(device, dtype, &[n, i]);
            glu(device, &gate_up, kind, &mut out).unwrap();
            let expected: Vec<f64> =
                (0..n * i).map(|at| at / i * 2 * i + at % i).map(|gate| activated[gate] * inputs[gate + i]).collect();
            assert_close_at(&load(&out), &to_f32(&expected), &[n, i], 1e-5, rtol(dtype));
        }
    }
}

fn the_ends_of_the_number_line(device: &Device) {
    let ends = [0.0, -0.0, 1e-30, 100.0, 3e38, f32::INFINITY, -100.0, -1e30, -3e38, f32::NAN];
    let x = store(device, &ends, DType::F32, &[1, ends.len()]);
    for kind in KINDS {
        let mut out = zeros(device, DType::F32, &[1, ends.len()]);
        plain(device, &x, kind, &mut out).unwrap();
        let out = load(&out);
        assert_eq!(out[..2], [0.0, 0.0], "{kind:?}");
        assert_eq!(out[2], 5e-31, "{kind:?}");
        assert_eq!(out[3..6], ends[3..6], "{kind:?}");
        assert!(out[6..9].iter().all(|x| x.abs() < 1e-30), "{kind:?}: {:?}", &out[6..9]);
        assert!(out[9].is_nan(), "{kind:?}");
    }
}

/// `Φ(x)` in the tail, from tables of the normal distribution to 12 digits.
fn gelu_keeps_its_precision_in_the_tail(device: &Device) {
    let tail = [(-3.0, 1.349_898_031_630e-3), (-4.0, 3.167_124_183_312e-5), (-5.0, 2.866_515_718_792e-7)];
    let x = store(device, &tail.map(|(x, _)| x), DType::F32, &[1, 3]);
    let mut out = zeros(device, DType::F32, &[1, 3]);
    plain(device, &x, Activation::Gelu, &mut out).unwrap();
    let expected = tail.map(|(x, phi): (f32, f64)| (f64::from(x) * phi) as f32);
    assert_close_at(&load(&out), &expected, &[1, 3], 0.0, 1e-5);
}

fn a_row_depends_on_itself_alone(device: &Device) {
    let kinds = prop::sample::select(KINDS.to_vec());
    let dtypes = prop::sample::select(ACTIVATIONS.to_vec());
    proptest!(ProptestConfig::with_cases(24), |(n in 1_usize..50, i in 1_usize..700, kind in kinds, dtype in dtypes, pick in 0_usize..50)| {
        let row = pick % n;
        let gate_up = random(device, 1, dtype, &[n, 2 * i]);
        let alone = store(device, &load(&gate_up)[row * 2 * i..(row + 1) * 2 * i], dtype, &[1, 2 * i]);
        let (mut out, mut out_alone) = (zeros(device, dtype, &[n, i]), zeros(device, dtype, &[1, i]));
        glu(device, &gate_up, kind, &mut out).unwrap();
        glu(device, &alone, kind, &mut out_alone).unwrap();
        assert_bitwise_equal(&load(&out)[row * i..(row + 1) * i], &load(&out_alone));
        let (mut out, mut out_alone) = (zeros(device, dtype, &[n, 2 * i]), zeros(device, dtype, &[1, 2 * i]));
        plain(device, &gate_up, kind, &mut out).unwrap();
        plain(device, &alone, kind, &mut out_alone).unwrap();
        assert_bitwise_equal(&load(&out)[row * 2 * i..(row + 1) * 2 * i], &load(&out_alone));
    });
}

fn an_unscaled_product_is_scaled_and_rounded_to_f8(device: &Device) {
    // Rows one by one, by twos (the last alone) in clusters of two blocks and of four, and a block to each; ends within a pack's
    // neighbours.
    for (n, i) in
        [(5, 1536), (3, 128), (2, 12_288), (1, 18_944), (40, 1544), (35, 12_288), (33, 18_944), (129, 264), (257, 520)]
    {
        let gate_up = random(device, 1, DType::BF16, &[n, 2 * i]);
        let positive = |seed, len| -> Vec<f32> { values(seed, len, 1.0).iter().map(|x| x.abs() + 0.25).collect() };
        let (rows, columns) = (positive(2, n), positive(3, 2 * i));
        let input = load64(&gate_up);
        let scaled = |at: usize| input[at] * f64::from(rows[at / (2 * i)]) * f64::from(columns[at % (2 * i)]);
        let expected: Vec<f64> = (0..n * i)
            .map(|at| at / i * 2 * i + at % i)
            .map(|at| reference(Activation::Silu, scaled(at)) * scaled(at + i))
            .collect();
        let (rows, columns) = (tensor(device, &rows, &[n]), tensor(device, &columns, &[2 * i]));
        let scales = Some(Scales { rows: Some(rows.view()), columns: columns.view() });
        let (kind, gate_up) = (Activation::Silu, gate_up.view());
        let mut out = zeros(device, DType::F32, &[n, i]);
        let args = Gated { gate_up, scales, kind, quantize: None, out: out.view_mut().unwrap() };
        gated(device.stream(), args).unwrap();
        assert_close_at(&load(&out), &to_f32(&expected), &[n, i], 1e-5, 4e-6);
        for scheme in SCHEMES {
            let mut quantized = Quantized::new(device, scheme, [n, i]);
            let (quantize, out) = quantized.lend();
            gated(device.stream(), Gated { gate_up, scales, kind, quantize: Some(quantize), out }).unwrap();
            quantized.assert_is(&to_f32(&expected), 1e-5);
        }
    }
}

fn misfits_are_named(device: &Device) {
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let ints = zeros(device, DType::I32, &[2, 6]);
    let kind = Activation::Silu;
    assert_eq!(blamed(plain(device, &f32s(&[2, 6]), kind, &mut f32s(&[2, 3]))), "out");
    assert_eq!(blamed(plain(device, &f32s(&[12]), kind, &mut f32s(&[12]))), "x");
    assert_eq!(blamed(plain(device, &ints, kind, &mut f32s(&[2, 6]))), "x");
    assert_eq!(blamed(plain(device, &f32s(&[2, 6]), kind, &mut zeros(device, DType::I32, &[2, 6]))), "out");
    assert_eq!(blamed(glu(device, &f32s(&[2, 5]), kind, &mut f32s(&[2, 3]))), "gate_up");
    assert_eq!(blamed(glu(device, &f32s(&[3, 6]), kind, &mut f32s(&[2, 3]))), "gate_up");
    assert_eq!(blamed(glu(device, &ints, kind, &mut f32s(&[2, 3]))), "gate_up");
    assert_eq!(blamed(glu(device, &f32s(&[2, 6]), kind, &mut f32s(&[6]))), "out");
}
