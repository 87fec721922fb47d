//! What the operators' tests share. A test body takes a device, so that every device runs the same ones.

use std::sync::OnceLock;

use foveal_device::{DType, Device, DeviceError, Element, Tensor};
use half::{bf16, f16};

use crate::OpError;

/// A module of tests per device, with a test for each body. Bodies under `cpu` hold on the CPU alone: they ask for values
/// to be refused, which a GPU's host never reads, or for bits that only one fixed order of summation gives.
macro_rules! device_tests {
    ($($body:ident),* $(,)?) => {
        device_tests!(cpu: []; any: [$($body),*]);
    };
    (cpu: [$($own:ident),* $(,)?]; any: [$($body:ident),* $(,)?]) => {
        mod cpu {
            $(
                #[test]
                fn $own() {
                    super::$own(&foveal_device::Device::cpu(2).unwrap());
                }
            )*
            $(
                #[test]
                fn $body() {
                    super::$body(&foveal_device::Device::cpu(2).unwrap());
                }
            )*
        }

        mod cuda {
            $(
                #[test]
                fn $body() {
                    if let Some(device) = crate::testing::gpu() {
                        super::$body(&device);
                    }
                }
            )*
        }
    };
}
pub(crate) use device_tests;

/// The GPU that tests run on; without one the test says so and is over. With `FOVEAL_REQUIRE_GPU` set, a GPU that can't be
/// used fails the test instead.
pub(crate) fn gpu() -> Option<Device> {
    static GPU: OnceLock<Result<Device, DeviceError>> = OnceLock::new();
    match GPU.get_or_init(|| Device::cuda(0)) {
        Ok(device) => Some(device.clone()),
        Err(error) => {
            assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// The element types of activations that a device's tensor-core operators (attention, matrix products) take.
pub(crate) fn activations(device: &Device) -> &'static [DType] {
    if device.is_cuda() { &[DType::BF16] } else { &ACTIVATIONS }
}

/// The element types of activations.
pub(crate) const ACTIVATIONS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// How far a correctly computed value lies from the stored one, relative to it: half an ulp of the type, and for f32 what
/// a sum of a few thousand terms in any order may lose.
pub(crate) fn rtol(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1.0 / 256.0,
        DType::F16 => 1.0 / 2048.0,
        _ => 4e-6,
    }
}

/// `len` numbers in [-scale, scale), always the same for a seed (SplitMix64).
pub(crate) fn values(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * scale).collect()
}

/// A tensor of `values` rounded to a float type.
pub(crate) fn store(device: &Device, values: &[f32], dtype: DType, dims: &[usize]) -> Tensor {
    match dtype {
        DType::F32 => tensor(device, values, dims),
        DType::BF16 => tensor(device, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), dims),
        DType::F16 => tensor(device, &values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), dims),
        other => panic!("{other} is no float type"),
    }
}

/// Random values rounded to a float type.
pub(crate) fn random(device: &Device, seed: u64, dtype: DType, dims: &[usize]) -> Tensor {
    store(device, &values(seed, dims.iter().product(), 2.0), dtype, dims)
}

pub(crate) fn tensor<T: Element>(device: &Device, values: &[T], dims: &[usize]) -> Tensor {
    Tensor::from_slice(device, values, dims).unwrap()
}

pub(crate) fn zeros(device: &Device, dtype: DType, dims: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, dims).unwrap()
}

/// A float tensor's elements as float32, from whichever device has them.
pub(crate) fn load(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec::<f32>().unwrap(),
        DType::BF16 => tensor.to_vec::<bf16>().unwrap().iter().map(|x| x.to_f32()).collect(),
        DType::F16 => tensor.to_vec::<f16>().unwrap().iter().map(|x| x.to_f32()).collect(),
        other => panic!("{other} is no float type"),
    }
}

/// `values` rounded to `dtype`, as float64 for reference loops.
pub(crate) fn load64(tensor: &Tensor) -> Vec<f64> {
    load(tensor).into_iter().map(f64::from).collect()
}

/// A reference's values as a float type holds them.
pub(crate) fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// Which operand an error names.
#[track_caller]
pub(crate) fn blamed(result: Result<(), OpError>) -> &'static str {
    match result.expect_err("the misfit was accepted") {
        OpError::Shape { arg, .. }
        | OpError::DType { arg, .. }
        | OpError::Value { arg, .. }
        | OpError::Mismatch { arg, .. } => arg,
        OpError::Device { source, .. } => panic!("{source}"),
    }
}
