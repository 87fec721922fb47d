//! The 8-bit floating-point type of quantised weights, activations and caches.

use std::fmt;

/// An FP8 number with four bits of exponent and three of mantissa, as NVIDIA's cards and PyTorch's `float8_e4m3fn` have
/// it: no infinity, one NaN of either sign, the largest number 448, the smallest 2^-9. Storage only: arithmetic is
/// float32.
///
/// Source: Micikevicius et al., arXiv:2209.05433, table 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F8E4M3(u8);

/// Exponent bias, and bits of the mantissa.
const BIAS: i32 = 7;
const MANTISSA_BITS: u32 = 3;
const NAN: u8 = 0x7F;
/// Bits of float32's mantissa, and its bias.
const F32_MANTISSA_BITS: u32 = 23;
const F32_BIAS: i32 = 127;

impl F8E4M3 {
    /// The largest number.
    pub const MAX: f32 = 448.0;

    /// From its bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[must_use]
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// Exact. Written without branches, so that loops vectorise.
    #[inline]
    #[must_use]
    pub fn to_f32(self) -> f32 {
        const SHIFT: u32 = F32_MANTISSA_BITS - MANTISSA_BITS;
        /// What the exponents' biases differ by, 2^120.
        const SCALE: f32 = f32::from_bits(((2 * F32_BIAS - BIAS) as u32) << F32_MANTISSA_BITS);
        let bits = u32::from(self.0);
        // Both formats keep their subnormals on the same footing, so one product serves all numbers.
        let magnitude = f32::from_bits((bits & u32::from(NAN)) << SHIFT) * SCALE;
        let sign = (bits & 0x80) << 24;
        let number = f32::from_bits(magnitude.to_bits() | sign);
        if self.0 & NAN == NAN { f32::NAN } else { number }
    }

    /// To nearest, ties to even; what is beyond [`F8E4M3::MAX`] becomes it (`cvt.rn.satfinite` of PTX), a NaN stays one.
    #[inline]
    #[must_use]
    pub fn from_f32(x: f32) -> Self {
        const SHIFT: u32 = F32_MANTISSA_BITS - MANTISSA_BITS;
        /// The smallest number that is not subnormal, 2^-6.
        const MIN_NORMAL: u32 = ((F32_BIAS - 6) as u32) << F32_MANTISSA_BITS;
        /// Adding it to a subnormal leaves the rounded mantissa in the lowest bits: 2^(23 - 9).
        const ALIGN: f32 = 16384.0;
        let sign = (x.to_bits() >> 24) as u8 & 0x80;
        let magnitude = x.abs();
        let bits = magnitude.to_bits();
        let rounded = if x.is_nan() {
            u32::from(NAN)
        } else if magnitude >= Self::MAX {
            u32::from(NAN) - 1
        } else if bits < MIN_NORMAL {
            (magnitude + ALIGN).to_bits() - ALIGN.to_bits()
        } else {
            let even = bits >> SHIFT & 1;
            ((bits + (1 << (SHIFT - 1)) - 1 + even) >> SHIFT) - (((F32_BIAS - BIAS) as u32) << MANTISSA_BITS)
        };
        // A number just below the largest may round up to it, never beyond.
        Self(sign | rounded as u8)
    }
}

impl fmt::Debug for F8E4M3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::F8E4M3;

    fn all() -> impl Iterator<Item = F8E4M3> {
        (0..=u8::MAX).map(F8E4M3::from_bits)
    }

    #[test]
    fn values_are_the_formats() {
        let of = |bits| F8E4M3::from_bits(bits).to_f32();
        // The paper's table: largest, smallest normal, largest and smallest subnormal.
        assert_eq!([0x7E, 0x08, 0x07, 0x01].map(of), [448.0, 2_f32.powi(-6), 0.875 * 2_f32.powi(-6), 2_f32.powi(-9)]);
        assert_eq!([0x00, 0x38, 0x39, 0xC0].map(of), [0.0, 1.0, 1.125, -2.0]);
        assert!(of(0x7F).is_nan() && of(0xFF).is_nan());
        assert!(of(0x80).is_sign_negative());
        assert_eq!(all().filter(|x| !x.to_f32().is_finite()).count(), 2);
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_even() {
        for x in all().filter(|x| x.to_f32().is_finite()) {
            assert_eq!(F8E4M3::from_f32(x.to_f32()), x);
        }
        let mut positive: Vec<F8E4M3> = (0..0x7F).map(F8E4M3::from_bits).collect();
        positive.sort_by(|a, b| a.to_f32().total_cmp(&b.to_f32()));
        for pair in positive.windows(2) {
            let [low, high] = [pair[0], pair[1]];
            let middle = (low.to_f32() + high.to_f32()) / 2.0;
            let even = if low.to_bits() % 2 == 0 { low } else { high };
            for (x, expected) in [(middle.next_down(), low), (middle, even), (middle.next_up(), high)] {
                assert_eq!(F8E4M3::from_f32(x), expected, "{x:e}");
                assert_eq!(F8E4M3::from_f32(-x).to_f32(), -expected.to_f32(), "{x:e}");
            }
        }
    }

    #[test]
    fn what_is_too_large_saturates_and_nan_stays() {
        for x in [448.0, 448.1, 464.0, 1e30, f32::INFINITY] {
            assert_eq!(F8E4M3::from_f32(x).to_f32(), 448.0);
            assert_eq!(F8E4M3::from_f32(-x).to_f32(), -448.0);
        }
        assert!(F8E4M3::from_f32(f32::NAN).to_f32().is_nan());
        assert_eq!(F8E4M3::from_f32(1e-30).to_f32(), 0.0);
    }
}
