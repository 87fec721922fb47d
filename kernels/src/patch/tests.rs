use foveal_device::{DType, Device, Tensor};
use foveal_testkit::{assert_bitwise_equal, assert_close_at};

use super::{Normalise, normalise};
use crate::OpError;
use crate::testing::{ACTIVATIONS, blamed, device_tests, load, rtol, tensor, to_f32, values, zeros};

device_tests!(every_sample_of_every_channel, halves_stay_exact, misfits_are_named);

/// CLIP's, which Qwen2-VL and Qwen2.5-VL use.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

fn run(device: &Device, pixels: &Tensor, (mean, std): ([f32; 3], [f32; 3]), out: &mut Tensor) -> Result<(), OpError> {
    let args = Normalise { pixels: pixels.view(), mean, std, out: out.view_mut().unwrap() };
    normalise(device.stream(), args)
}

fn every_sample_of_every_channel(device: &Device) {
    for (n, row_len) in [(64, 3 * 2 * 16 * 16), (1, 3), (5, 3 * 41), (0, 3), (2, 0), (1, 3 * 256)] {
        let mut samples: Vec<u8> = values(1, n * row_len, 128.0).iter().map(|x| (x + 128.0) as u8).collect();
        if row_len == 3 * 256 {
            samples = (0..3).flat_map(|_| 0..=255).collect();
        }
        let pixels = tensor(device, &samples, &[n, row_len]);
        for dtype in ACTIVATIONS {
            let mut out = zeros(device, dtype, &[n, row_len]);
            run(device, &pixels, (MEAN, STD), &mut out).unwrap();
            let expected: Vec<f64> = samples
                .iter()
                .enumerate()
                .map(|(i, &sample)| {
                    let channel = i % row_len / (row_len / 3);
                    (f64::from(sample) / 255.0 - f64::from(MEAN[channel])) / f64::from(STD[channel])
                })
                .collect();
            // Near the mean the difference of two float32 numbers near 128 keeps half an ulp of them.
            assert_close_at(&load(&out), &to_f32(&expected), &[n, row_len], 3e-7, rtol(dtype));
        }
    }
}

fn halves_stay_exact(device: &Device) {
    // Qwen3-VL's mean and deviation of 0.5: 0 is -1 and 255 is 1.
    let pixels = tensor(device, &[0_u8, 255, 0, 255, 255, 0], &[2, 3]);
    let mut out = zeros(device, DType::F32, &[2, 3]);
    run(device, &pixels, ([0.5; 3], [0.5; 3]), &mut out).unwrap();
    assert_bitwise_equal(&load(&out), &[-1.0, 1.0, -1.0, 1.0, 1.0, -1.0]);
}

fn misfits_are_named(device: &Device) {
    let halves = ([0.5; 3], [0.5; 3]);
    let mut out = zeros(device, DType::F32, &[2, 6]);
    assert_eq!(blamed(run(device, &zeros(device, DType::U8, &[2, 5]), halves, &mut out)), "pixels");
    assert_eq!(blamed(run(device, &zeros(device, DType::U8, &[12]), halves, &mut out)), "pixels");
    assert_eq!(blamed(run(device, &zeros(device, DType::F32, &[2, 6]), halves, &mut out)), "pixels");
    assert_eq!(blamed(run(device, &zeros(device, DType::U8, &[2, 9]), halves, &mut out)), "out");
    let mut ints = zeros(device, DType::I32, &[2, 6]);
    assert_eq!(blamed(run(device, &zeros(device, DType::U8, &[2, 6]), halves, &mut ints)), "out");
}
