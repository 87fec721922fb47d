use foveal_device::{DType, Device, F8E4M3, Tensor};
use foveal_testkit::assert_bitwise_equal;

use super::{Quantize, QuantizeRows, quantize};
use crate::OpError;
use crate::testing::{ACTIVATIONS, Quantized, SCHEMES, Scheme, blamed, device_tests, load, random, store, zeros};

device_tests!(
    rows_of_any_shape_and_type_are_rounded_to_the_nearest,
    rows_of_zeros_stay_zero,
    rows_of_tiny_numbers_are_finite,
    nothing_that_is_no_number_is_lost,
    a_fixed_scale_saturates,
    a_row_depends_on_itself_alone,
    misfits_are_named,
);

fn rounded(device: &Device, x: &Tensor, scheme: Scheme) -> Result<Quantized, OpError> {
    let dims = [x.shape()[0], x.shape()[1]];
    let mut rounded = Quantized::new(device, scheme, dims);
    let (quantize_to, out) = rounded.lend();
    quantize(device.stream(), QuantizeRows { x: x.view(), quantize: quantize_to, out })?;
    Ok(rounded)
}

fn rows_of_any_shape_and_type_are_rounded_to_the_nearest(device: &Device) {
    for dims in [[64, 1024], [1, 8], [5, 120], [3, 136], [0, 64], [2, 0], [1, 12_288], [2, 29_568]] {
        for (dtype, scheme) in ACTIVATIONS.into_iter().flat_map(|dtype| SCHEMES.map(|scheme| (dtype, scheme))) {
            let x = random(device, 1, dtype, &dims);
            rounded(device, &x, scheme).unwrap().assert_is(&load(&x), 0.0);
        }
    }
    // Odd widths, which no group has on CUDA.
    for scheme in [Scheme::PerRow, Scheme::Fixed] {
        let x = random(device, 2, DType::BF16, &[7, 123]);
        rounded(device, &x, scheme).unwrap().assert_is(&load(&x), 0.0);
    }
}

fn rows_of_zeros_stay_zero(device: &Device) {
    let x = zeros(device, DType::BF16, &[3, 256]);
    for scheme in SCHEMES {
        let rounded = rounded(device, &x, scheme).unwrap();
        assert_bitwise_equal(&load(&rounded.out), &[0.0; 3 * 256]);
        rounded.assert_is(&[0.0; 3 * 256], 0.0);
    }
}

fn rows_of_tiny_numbers_are_finite(device: &Device) {
    // Down to subnormals, beside zeros.
    for exponent in [-100, -118, -119, -120, -126, -140, -149] {
        let tiny = 2.0_f32.powi(exponent);
        let values: Vec<f32> = (0..128).map(|i| [0.0, tiny, -tiny][i % 3]).collect();
        let x = store(device, &values, DType::F32, &[1, 128]);
        for scheme in SCHEMES {
            let out = load(&rounded(device, &x, scheme).unwrap().out);
            let keeps = scheme != Scheme::Fixed && exponent >= -119;
            let expected = if keeps { [0.0, 448.0, -448.0] } else { [0.0; 3] };
            assert!(out.iter().zip(expected.iter().cycle()).all(|(a, b)| a == b), "{scheme:?} 2^{exponent}: {out:?}");
        }
    }
}

fn nothing_that_is_no_number_is_lost(device: &Device) {
    let mut values = vec![1.0; 128];
    values[5] = f32::NAN;
    let x = store(device, &values, DType::F32, &[1, 128]);
    for scheme in SCHEMES {
        let out = load(&rounded(device, &x, scheme).unwrap().out);
        assert!(out[5].is_nan(), "{scheme:?}");
    }
    values[5] = f32::INFINITY;
    let x = store(device, &values, DType::F32, &[1, 128]);
    for scheme in [Scheme::PerRow, Scheme::PerGroup] {
        // Infinity times a factor of 0.
        assert!(load(&rounded(device, &x, scheme).unwrap().out)[5].is_nan(), "{scheme:?}");
    }
}

fn a_fixed_scale_saturates(device: &Device) {
    let x = store(device, &[1000.0, -1e30, 28.0, 0.0625, 1e-9, -3.0, 27.9, 0.0], DType::F32, &[1, 8]);
    let out = load(&rounded(device, &x, Scheme::Fixed).unwrap().out);
    // Divided by 0.0625.
    assert_eq!(out, [448.0, -448.0, 448.0, 1.0, 0.0, -48.0, 448.0, 0.0]);
}

fn a_row_depends_on_itself_alone(device: &Device) {
    let x = random(device, 3, DType::BF16, &[9, 640]);
    for scheme in SCHEMES {
        let together = load(&rounded(device, &x, scheme).unwrap().out);
        for i in [0, 4, 8] {
            let row = store(device, &load(&x)[i * 640..(i + 1) * 640], DType::BF16, &[1, 640]);
            assert_bitwise_equal(&load(&rounded(device, &row, scheme).unwrap().out), &together[i * 640..(i + 1) * 640]);
        }
    }
}

fn misfits_are_named(device: &Device) {
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let run = |x: &Tensor, scales: &mut Tensor, by_row: bool, out: &mut Tensor| {
        let scales = scales.view_mut().unwrap();
        let to = if by_row { Quantize::PerRow(scales) } else { Quantize::PerGroup(scales) };
        blamed(quantize(device.stream(), QuantizeRows { x: x.view(), quantize: to, out: out.view_mut().unwrap() }))
    };
    let f8s = |dims: &[usize]| zeros(device, DType::F8E4M3, dims);
    assert_eq!(run(&f32s(&[6]), &mut f32s(&[2]), true, &mut f8s(&[6])), "x");
    assert_eq!(run(&f8s(&[2, 3]), &mut f32s(&[2]), true, &mut f8s(&[2, 3])), "x");
    assert_eq!(run(&f32s(&[2, 3]), &mut f32s(&[2]), true, &mut f8s(&[3, 2])), "out");
    assert_eq!(run(&f32s(&[2, 3]), &mut f32s(&[2]), true, &mut f32s(&[2, 3])), "out");
    assert_eq!(run(&f32s(&[2, 3]), &mut f32s(&[3]), true, &mut f8s(&[2, 3])), "quantize");
    assert_eq!(run(&f32s(&[2, 256]), &mut f32s(&[2, 2]), false, &mut f8s(&[2, 256])), "quantize");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let (x, mut out) = (f32s(&[1, 1]), f8s(&[1, 1]));
        let args = QuantizeRows { x: x.view(), quantize: Quantize::Fixed(scale), out: out.view_mut().unwrap() };
        assert_eq!(blamed(quantize(device.stream(), args)), "quantize");
    }
    assert_eq!(F8E4M3::MAX, 448.0);
}
