use foveal_device::{DType, Device, Element};
use foveal_testkit::assert_bitwise_equal;
use half::{bf16, f16};
use std::fmt::Debug;

use super::{Gather, gather};
use crate::OpError;
use crate::testing::{blamed, device_tests, tensor, values, zeros};

device_tests!(
    every_type_and_shape_is_gathered,
    a_permutation_and_its_inverse_cancel,
    misfits_are_named,
    a_row_outside_is_refused_or_zeros,
);

fn run<T: Element>(device: &Device, x: &[T], d: usize, index: &[i32], m: usize) -> Result<Vec<T>, OpError> {
    let x = tensor(device, x, &[x.len().checked_div(d).unwrap_or(4), d]);
    let index = tensor(device, index, &[index.len()]);
    let mut out = zeros(device, T::DTYPE, &[m, d]);
    gather(device.stream(), Gather { x: x.view(), index: index.view(), out: out.view_mut().unwrap() })?;
    Ok(out.to_vec().unwrap())
}

fn check<T: Element + Debug + bytemuck::NoUninit>(device: &Device, of: impl Fn(f32) -> T) {
    for (r, m, d) in [(64, 100, 640), (1, 1, 1), (9, 5, 123), (4, 0, 8), (4, 3, 0)] {
        let x: Vec<T> = values(1, r * d, 100.0).into_iter().map(&of).collect();
        let index: Vec<i32> = (0..m).map(|i| ((i * 5 + 2) % r) as i32).collect();
        let expected: Vec<T> =
            index.iter().flat_map(|&row| x[row as usize * d..(row as usize + 1) * d].to_vec()).collect();
        assert_bitwise_equal(&run(device, &x, d, &index, m).unwrap(), &expected);
    }
}

fn every_type_and_shape_is_gathered(device: &Device) {
    check(device, |x| x);
    check(device, bf16::from_f32);
    check(device, f16::from_f32);
    check(device, |x| x as u8);
    check(device, |x| x as i32);
    check(device, |x| x as i64);
}

fn a_permutation_and_its_inverse_cancel(device: &Device) {
    let (n, d) = (97_usize, 5);
    let x = values(3, n * d, 1.0);
    let order: Vec<i32> = (0..n).map(|i| (i * 31 % n) as i32).collect();
    let mut inverse = vec![0; n];
    order.iter().enumerate().for_each(|(i, &row)| inverse[row as usize] = i as i32);
    let moved = run(device, &x, d, &order, n).unwrap();
    assert_ne!(moved, x);
    assert_bitwise_equal(&run(device, &moved, d, &inverse, n).unwrap(), &x);
}

/// The host of a GPU never reads the index.
fn a_row_outside_is_refused_or_zeros(device: &Device) {
    let x = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    for row in [-1, 2, i32::MIN, i32::MAX] {
        let result = run(device, &x, 3, &[1, row], 2);
        if device.is_cuda() {
            assert_bitwise_equal(&result.unwrap(), &[4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
            continue;
        }
        let error = result.unwrap_err();
        assert!(matches!(error, OpError::Value { arg: "index", index: 1, value, .. } if value == i64::from(row)));
    }
}

fn misfits_are_named(device: &Device) {
    let x = [0.0_f32; 6];
    assert_eq!(blamed(run(device, &x, 3, &[0], 2).map(drop)), "out");
    let x = zeros(device, DType::F32, &[2, 3]);
    let index = zeros(device, DType::I32, &[2]);
    let blame = |x: &foveal_device::Tensor, index: &foveal_device::Tensor, dtype, dims: &[usize]| {
        let mut out = zeros(device, dtype, dims);
        blamed(gather(device.stream(), Gather { x: x.view(), index: index.view(), out: out.view_mut().unwrap() }))
    };
    assert_eq!(blame(&x, &index, DType::BF16, &[2, 3]), "out");
    assert_eq!(blame(&x, &index, DType::F32, &[2, 4]), "out");
    assert_eq!(blame(&x, &x, DType::F32, &[2, 3]), "index");
    assert_eq!(blame(&index, &index, DType::I32, &[2, 3]), "x");
    let longs = zeros(device, DType::I64, &[2]);
    assert_eq!(blame(&x, &longs, DType::F32, &[2, 3]), "index");
}
