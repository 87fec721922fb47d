//! Floating-point element types as the CPU implementations see them: read as float32, computed in float32, rounded once
//! when stored.

use foveal_device::{Element, F8E4M3};
use half::{bf16, f16};

/// An element type that holds real numbers.
pub(crate) trait Real: Element {
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Real for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

/// Written without branches, so that loops vectorise.
impl Real for bf16 {
    #[inline]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        // Half of the last place kept, less one when that place is even: ties go to even.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // The carry could turn a NaN into an infinity; a set quiet bit can't.
        let quiet_nan = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

impl Real for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// Saturating.
impl Real for F8E4M3 {
    #[inline]
    fn to_f32(self) -> f32 {
        F8E4M3::to_f32(self)
    }

    #[inline]
    fn from_f32(value: f32) -> Self {
        F8E4M3::from_f32(value)
    }
}

/// Runs `$body` with `$T` as the Rust type of a floating-point `$dtype`; other dtypes give `$otherwise`.
macro_rules! with_real {
    ($dtype:expr, $T:ident => $body:expr, else $otherwise:expr) => {
        match $dtype {
            foveal_device::DType::F32 => {
                type $T = f32;
                $body
            }
            foveal_device::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            foveal_device::DType::F16 => {
                type $T = half::f16;
                $body
            }
            _ => $otherwise,
        }
    };
}
pub(crate) use with_real;

/// As [`with_real`], for what may also be stored as FP8.
macro_rules! with_stored {
    ($dtype:expr, $T:ident => $body:expr, else $otherwise:expr) => {
        match $dtype {
            foveal_device::DType::F8E4M3 => {
                type $T = foveal_device::F8E4M3;
                $body
            }
            other => crate::real::with_real!(other, $T => $body, else $otherwise),
        }
    };
}
pub(crate) use with_stored;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::Real;

    #[test]
    fn bf16_is_converted_as_by_half() {
        for bits in 0..=u16::MAX {
            let x = bf16::from_bits(bits);
            let (ours, theirs) = (Real::to_f32(x), x.to_f32());
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}");
            // The value itself, its neighbours, and both sides of the tie with the next one.
            for low in [0_u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(u32::from(bits) << 16 | low);
                let (ours, theirs) = (<bf16 as Real>::from_f32(value), bf16::from_f32(value));
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{value:e}");
            }
        }
    }
}
