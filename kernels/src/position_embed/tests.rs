use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::{AddPositionEmbed, add_position_embed};
use crate::OpError;
use crate::testing::{ACTIVATIONS, blamed, device_tests, load, load64, random, rtol, store, tensor, to_f32, zeros};

device_tests!(
    any_shape_and_type_is_the_equation,
    a_patch_on_a_grid_point_takes_its_row,
    a_row_depends_on_itself_alone,
    misfits_are_named,
    an_index_outside_is_refused_or_adds_nothing,
);

fn run(device: &Device, table: &Tensor, index: &[i32], weight: &[f32], x: &mut Tensor) -> Result<(), OpError> {
    let index = tensor(device, index, &[index.len() / 4, 4]);
    let weight = tensor(device, weight, &[weight.len() / 4, 4]);
    let args =
        AddPositionEmbed { table: table.view(), index: index.view(), weight: weight.view(), x: x.view_mut().unwrap() };
    add_position_embed(device.stream(), args)
}

fn indices(n: usize, num_positions: usize) -> Vec<i32> {
    (0..4 * n).map(|i| ((i * 13 + 5) % num_positions) as i32).collect()
}

fn any_shape_and_type_is_the_equation(device: &Device) {
    let shapes = [(48, 2304, 1152), (1, 1, 1), (5, 9, 123), (0, 4, 8), (2, 4, 0)];
    for ((n, num_positions, d), dtype) in shapes.into_iter().flat_map(|s| ACTIVATIONS.map(|dtype| (s, dtype))) {
        let table = random(device, 1, dtype, &[num_positions, d]);
        let weight = load(&random(device, 2, DType::F32, &[n, 4]));
        let index = indices(n, num_positions);
        let mut x = random(device, 3, dtype, &[n, d]);
        let (mut expected, rows) = (load64(&x), load64(&table));
        for tap in 0..4 * n {
            for j in 0..d {
                expected[tap / 4 * d + j] += f64::from(weight[tap]) * rows[index[tap] as usize * d + j];
            }
        }
        run(device, &table, &index, &weight, &mut x).unwrap();
        assert_close_at(&load(&x), &to_f32(&expected), &[n, d], 4e-6, rtol(dtype));
    }
}

fn a_patch_on_a_grid_point_takes_its_row(device: &Device) {
    let table = random(device, 1, DType::F32, &[9, 16]);
    let mut x = zeros(device, DType::F32, &[1, 16]);
    run(device, &table, &[4, 5, 7, 8], &[1.0, 0.0, 0.0, 0.0], &mut x).unwrap();
    assert_eq!(load(&x), load(&table)[4 * 16..5 * 16]);
}

fn a_row_depends_on_itself_alone(device: &Device) {
    proptest!(ProptestConfig::with_cases(16), |(n in 1_usize..60, d in 1_usize..600, pick in 0_usize..60)| {
        let (row, table) = (pick % n, random(device, 1, DType::BF16, &[25, d]));
        let (index, weight) = (indices(n, 25), load(&random(device, 2, DType::F32, &[n, 4])));
        let mut x = random(device, 3, DType::BF16, &[n, d]);
        let mut alone = store(device, &load(&x)[row * d..(row + 1) * d], DType::BF16, &[1, d]);
        run(device, &table, &index, &weight, &mut x).unwrap();
        let taps = 4 * row..4 * row + 4;
        run(device, &table, &index[taps.clone()], &weight[taps], &mut alone).unwrap();
        assert_bitwise_equal(&load(&x)[row * d..(row + 1) * d], &load(&alone));
    });
}

/// The host of a GPU never reads the index.
fn an_index_outside_is_refused_or_adds_nothing(device: &Device) {
    let table = store(device, &[1.0, 2.0, 4.0, 8.0, 16.0], DType::F32, &[5, 1]);
    for outside in [-1, 5, i32::MIN, i32::MAX] {
        let mut x = zeros(device, DType::F32, &[2, 1]);
        let result = run(device, &table, &[0, 1, 2, 3, 4, 0, outside, 0], &[1.0; 8], &mut x);
        if device.is_cuda() {
            result.unwrap();
            assert_eq!(load(&x), [15.0, 18.0]);
            continue;
        }
        let error = result.unwrap_err();
        assert!(matches!(error, OpError::Value { arg: "index", index: 6, .. }), "{error}");
    }
}

fn misfits_are_named(device: &Device) {
    let (table, ones) = (zeros(device, DType::F32, &[5, 3]), [1.0; 8]);
    let mut x = zeros(device, DType::F32, &[2, 3]);
    assert_eq!(blamed(run(device, &table, &[0; 4], &ones, &mut x)), "index");
    assert_eq!(blamed(run(device, &table, &[0; 8], &ones[..4], &mut x)), "weight");
    assert_eq!(blamed(run(device, &zeros(device, DType::F32, &[5, 4]), &[0; 8], &ones, &mut x)), "table");
    assert_eq!(blamed(run(device, &zeros(device, DType::I64, &[5, 3]), &[0; 8], &ones, &mut x)), "table");
    assert_eq!(blamed(run(device, &table, &[0; 8], &ones, &mut zeros(device, DType::U8, &[2, 3]))), "x");
    assert_eq!(blamed(run(device, &table, &[0; 8], &ones, &mut zeros(device, DType::F32, &[6]))), "x");
}
