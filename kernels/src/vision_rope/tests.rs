use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};
use proptest::prelude::*;

use super::{VisionRope, vision_rope};
use crate::OpError;
use crate::testing::{ACTIVATIONS, blamed, device_tests, load, load64, random, rtol, store, tensor, to_f32, zeros};

device_tests!(
    any_shape_and_type_is_the_equation,
    scores_depend_on_distances_alone,
    a_row_depends_on_itself_alone,
    misfits_are_named,
    a_position_outside_is_refused_or_turns_nothing,
);

/// Angle of frequency `i` of `quarter` at a position (HF's `inv_freq` over half a head's pairs, theta 10000).
fn angle(position: usize, i: usize, quarter: usize) -> f64 {
    position as f64 / 10_000_f64.powf(i as f64 / quarter as f64)
}

/// The cos and sin tables.
fn tables(device: &Device, max_hw: usize, quarter: usize) -> (Tensor, Tensor) {
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> =
            (0..max_hw * quarter).map(|at| f(angle(at / quarter, at % quarter, quarter)) as f32).collect();
        tensor(device, &values, &[max_hw, quarter])
    };
    (table(f64::cos), table(f64::sin))
}

fn run(device: &Device, qkv: &mut Tensor, positions: &[i32], (cos, sin): (&Tensor, &Tensor)) -> Result<(), OpError> {
    let positions = tensor(device, positions, &[positions.len() / 2, 2]);
    let args =
        VisionRope { qkv: qkv.view_mut().unwrap(), positions: positions.view(), cos: cos.view(), sin: sin.view() };
    vision_rope(device.stream(), args)
}

/// As HF writes it: `emb = cat(freq_hw, freq_hw)`, `x cos(emb) + rotate_half(x) sin(emb)`.
fn reference(head: &[f64], h: usize, w: usize) -> Vec<f64> {
    let (d, quarter) = (head.len(), head.len() / 4);
    let freq_hw: Vec<f64> =
        (0..d / 2).map(|i| if i < quarter { angle(h, i, quarter) } else { angle(w, i - quarter, quarter) }).collect();
    (0..d)
        .map(|j| {
            let rotated = if j < d / 2 { -head[j + d / 2] } else { head[j - d / 2] };
            let emb = freq_hw[j % (d / 2)];
            head[j] * emb.cos() + rotated * emb.sin()
        })
        .collect()
}

fn any_shape_and_type_is_the_equation(device: &Device) {
    // The towers' heads of 72, 64 and 80, tiny, odd, empty, without heads.
    let shapes =
        [(20, 16, 72, 40), (7, 16, 64, 40), (9, 5, 80, 16), (1, 1, 4, 1), (5, 3, 20, 7), (0, 2, 8, 3), (3, 0, 8, 3)];
    for (n, num_heads, head_dim, max_hw) in shapes {
        let (cos, sin) = tables(device, max_hw, head_dim / 4);
        let positions: Vec<i32> = (0..2 * n).map(|i| ((i * 11 + 3) % max_hw) as i32).collect();
        for dtype in ACTIVATIONS {
            let dims = [n, 3, num_heads, head_dim];
            let mut qkv = random(device, 1, dtype, &dims);
            let before = load64(&qkv);
            run(device, &mut qkv, &positions, (&cos, &sin)).unwrap();
            let mut expected = Vec::new();
            for (at, head) in before.chunks_exact(head_dim).enumerate() {
                let (row, part) = (at / (3 * num_heads), at / num_heads % 3);
                let [h, w] = [positions[2 * row] as usize, positions[2 * row + 1] as usize];
                expected.extend(if part == 2 { head.to_vec() } else { reference(head, h, w) });
            }
            assert_close_at(&load(&qkv), &to_f32(&expected), &dims, 4e-7 + 0.01 * rtol(dtype), rtol(dtype));
        }
    }
}

/// What rotary embeddings are for: q·k stays when both patches move by the same rows and columns.
fn scores_depend_on_distances_alone(device: &Device) {
    let head_dim = 64;
    let (cos, sin) = tables(device, 50, head_dim / 4);
    let score = |positions: [i32; 4]| {
        let mut qkv = random(device, 1, DType::F32, &[2, 3, 1, head_dim]);
        run(device, &mut qkv, &positions, (&cos, &sin)).unwrap();
        let qkv = load64(&qkv);
        let (q, k) = (&qkv[..head_dim], &qkv[4 * head_dim..5 * head_dim]);
        q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
    };
    let near = score([1, 2, 4, 9]);
    assert!((score([31, 12, 34, 19]) - near).abs() < 1e-4);
    assert!((score([2, 1, 9, 4]) - near).abs() > 1e-2);
}

fn a_row_depends_on_itself_alone(device: &Device) {
    let (cos, sin) = tables(device, 16, 5);
    proptest!(ProptestConfig::with_cases(16), |(n in 1_usize..90, num_heads in 1_usize..9, pick in 0_usize..90)| {
        let (row, len) = (pick % n, 3 * num_heads * 20);
        let positions: Vec<i32> = (0..2 * n).map(|i| ((i * 11 + 3) % 16) as i32).collect();
        let mut qkv = random(device, 1, DType::BF16, &[n, 3, num_heads, 20]);
        let own = &load(&qkv)[row * len..(row + 1) * len];
        let mut alone = store(device, own, DType::BF16, &[1, 3, num_heads, 20]);
        run(device, &mut qkv, &positions, (&cos, &sin)).unwrap();
        run(device, &mut alone, &positions[2 * row..2 * row + 2], (&cos, &sin)).unwrap();
        assert_bitwise_equal(&load(&qkv)[row * len..(row + 1) * len], &load(&alone));
    });
}

/// The host of a GPU never reads the positions.
fn a_position_outside_is_refused_or_turns_nothing(device: &Device) {
    let (cos, sin) = tables(device, 4, 2);
    for outside in [-1, 4, i32::MIN, i32::MAX] {
        let mut qkv = random(device, 1, DType::F32, &[2, 3, 1, 8]);
        let before = load64(&qkv);
        let result = run(device, &mut qkv, &[0, 3, 2, outside], (&cos, &sin));
        if !device.is_cuda() {
            let error = result.unwrap_err();
            assert!(matches!(error, OpError::Value { arg: "positions", index: 3, .. }), "{error}");
            continue;
        }
        result.unwrap();
        // Column 0 turns nothing either.
        let mut expected = before.clone();
        for (part, start) in (0..2).map(|part| (part, part * 8)) {
            expected[start..start + 8].copy_from_slice(&reference(&before[start..start + 8], 0, 3));
            let second = (3 + part) * 8;
            expected[second..second + 8].copy_from_slice(&reference(&before[second..second + 8], 2, 0));
        }
        assert_close_at(&load(&qkv), &to_f32(&expected), &[2, 3, 1, 8], 4e-7, rtol(DType::F32));
    }
}

fn misfits_are_named(device: &Device) {
    let (cos, sin) = tables(device, 4, 2);
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let mut qkv = f32s(&[2, 3, 1, 8]);
    assert_eq!(blamed(run(device, &mut qkv, &[0, 0], (&cos, &sin))), "positions");
    assert_eq!(blamed(run(device, &mut qkv, &[0; 4], (&f32s(&[4, 4]), &sin))), "cos");
    assert_eq!(blamed(run(device, &mut qkv, &[0; 4], (&cos, &f32s(&[3, 2])))), "sin");
    assert_eq!(blamed(run(device, &mut qkv, &[0; 4], (&zeros(device, DType::BF16, &[4, 2]), &sin))), "cos");
    assert_eq!(blamed(run(device, &mut f32s(&[2, 2, 1, 8]), &[0; 4], (&cos, &sin))), "qkv");
    assert_eq!(blamed(run(device, &mut f32s(&[2, 3, 1, 6]), &[0; 4], (&cos, &sin))), "qkv");
    assert_eq!(blamed(run(device, &mut zeros(device, DType::I32, &[2, 3, 1, 8]), &[0; 4], (&cos, &sin))), "qkv");
}
