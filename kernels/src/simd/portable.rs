//! Arrays of sixteen, which the compiler vectorises for the build's target.

use half::{bf16, f16};

use super::{LANES, PAIR, Simd};

/// A fused multiply-add in software costs as much as fifty multiplications, so it is used where it is an instruction;
/// elsewhere a product is rounded before it is added.
pub(super) const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Arrays of sixteen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F = [f32; LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        from.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; PAIR]) -> (Self::F, Self::F) {
        let at = |i: usize| f32::from_bits(u32::from(from[i].to_bits()) << 16);
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }

    #[inline(always)]
    fn unzip(self, low: Self::F, high: Self::F) -> (Self::F, Self::F) {
        let at = |i: usize| if i < LANES { low[i] } else { high[i - LANES] };
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        if FUSED {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round_exp2(self, a: Self::F) -> (Self::F, Self::F) {
        let whole = a.map(f32::round_ties_even);
        let power = whole.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32));
        (whole, power)
    }

    #[inline(always)]
    fn sums(self, vectors: [Self::F; 4]) -> [f32; 4] {
        vectors.map(|v| {
            let half: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
            let quarter: [f32; 4] = std::array::from_fn(|i| half[i] + half[i + 4]);
            (quarter[0] + quarter[1]) + (quarter[2] + quarter[3])
        })
    }

    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; LANES]) {
        *rows = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
    }
}
