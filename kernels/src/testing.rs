//! What the operators' tests share. A test body takes a device, so that every device runs the same ones.

use std::sync::OnceLock;

use foveal_device::{DType, Device, DeviceError, Element, F8E4M3, Tensor, ViewMut};
use half::{bf16, f16};

use crate::OpError;
use crate::quantize::{GROUP, Quantize, group_stride};

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
        DType::F8E4M3 => 1.0 / 16.0,
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
        DType::F8E4M3 => tensor(device, &values.iter().map(|&x| F8E4M3::from_f32(x)).collect::<Vec<_>>(), dims),
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
        DType::F8E4M3 => tensor.to_vec::<F8E4M3>().unwrap().iter().map(|x| x.to_f32()).collect(),
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

/// Buffers that an operator quantises rows into.
pub(crate) struct Quantized {
    pub(crate) out: Tensor,
    scales: Tensor,
    scheme: Scheme,
}

/// Which [`Quantize`](crate::quantize::Quantize) a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    PerRow,
    PerGroup,
    Fixed,
}

pub(crate) const SCHEMES: [Scheme; 3] = [Scheme::PerRow, Scheme::PerGroup, Scheme::Fixed];

/// The factor of [`Scheme::Fixed`].
const FIXED_SCALE: f32 = 0.0625;

impl Scheme {
    /// With these scales, where it has any.
    pub(crate) fn quantize(self, scales: &mut Tensor) -> Quantize<'_> {
        let scales = scales.view_mut().unwrap();
        match self {
            Self::PerRow => Quantize::PerRow(scales),
            Self::PerGroup => Quantize::PerGroup(scales),
            Self::Fixed => Quantize::Fixed(FIXED_SCALE),
        }
    }
}

impl Quantized {
    pub(crate) fn new(device: &Device, scheme: Scheme, [m, d]: [usize; 2]) -> Self {
        let dims = match scheme {
            Scheme::PerRow => vec![m],
            Scheme::PerGroup => vec![d.div_ceil(GROUP), group_stride(m)],
            Scheme::Fixed => vec![0],
        };
        // What is not written would be NaN.
        let unwritten = |len: usize| vec![f32::NAN; len];
        let out = vec![F8E4M3::from_bits(0x7F); m * d];
        Self {
            out: tensor(device, &out, &[m, d]),
            scales: tensor(device, &unwritten(dims.iter().product()), &dims),
            scheme,
        }
    }

    /// The operator's two operands.
    pub(crate) fn lend(&mut self) -> (Quantize<'_>, ViewMut<'_>) {
        (self.scheme.quantize(&mut self.scales), self.out.view_mut().unwrap())
    }

    /// Scales of row `i` at column `j`.
    fn scale(&self, scales: &[f32], i: usize, j: usize) -> f32 {
        match self.scheme {
            Scheme::PerRow => scales[i],
            Scheme::PerGroup => scales[j / GROUP * self.scales.shape()[1] + i],
            Scheme::Fixed => FIXED_SCALE,
        }
    }

    /// Compares with the rows that were to be rounded, known to `rtol`: scales alike, and at most one element of two
    /// hundred on the other side of a tie, one step away. A step is at least a sixteenth of a number, so what is known to
    /// `rtol` brings no more than 16 * rtol of them there.
    pub(crate) fn assert_is(&self, expected: &[f32], rtol: f32) {
        let [m, d] = [self.out.shape()[0], self.out.shape()[1]];
        let (bits, scales) = (self.out.to_vec::<F8E4M3>().unwrap(), self.scales.to_vec::<f32>().unwrap());
        let mut num_off = 0;
        for i in 0..m {
            for j in 0..d {
                let width = match self.scheme {
                    Scheme::PerRow => 0..d,
                    _ => j / GROUP * GROUP..(j / GROUP * GROUP + GROUP).min(d),
                };
                let scale = self.scale(&scales, i, j);
                if self.scheme != Scheme::Fixed {
                    let top = expected[i * d..][width].iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                    let wanted = top / 448.0;
                    assert!(
                        (scale - wanted).abs() <= (rtol + 2e-7) * wanted,
                        "scale of {i}, {j}: {scale}, not {wanted}"
                    );
                }
                let (x, got) = (expected[i * d + j], bits[i * d + j]);
                let steps = if scale == 0.0 { got.to_f32().abs() as u32 } else { steps_off(x / scale, got) };
                assert!(steps <= 1, "{i}, {j}: {got:?} for {x} / {scale}");
                num_off += usize::from(steps == 1);
            }
        }
        let share = 1.0 / 200.0 + 16.0 * rtol;
        assert!(num_off as f32 <= (share * (m * d) as f32).max(1.0), "{num_off} of {} elements are off", m * d);
    }
}

/// Steps of the format between a number and the nearest one to `x`, by looking at all of them.
fn steps_off(x: f32, got: F8E4M3) -> u32 {
    let numbers = || (0..=u8::MAX).map(F8E4M3::from_bits).map(F8E4M3::to_f32).filter(|y| y.is_finite());
    let distance = |y: f32| (f64::from(y) - f64::from(x)).abs();
    let nearest = numbers().fold(f32::INFINITY, |best, y| if distance(y) < distance(best) { y } else { best });
    let got = got.to_f32();
    if distance(got) <= distance(nearest) {
        return 0;
    }
    let (low, high) = (got.min(nearest), got.max(nearest));
    numbers().filter(|&y| y > low && y <= high && (y != 0.0 || y.is_sign_positive())).count() as u32
}
