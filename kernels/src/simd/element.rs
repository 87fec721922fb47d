//! Element types that vectors are loaded from.

use foveal_device::F8E4M3;
use half::{bf16, f16};

use super::{LANES, PAIR, Simd};
use crate::real::Real;

/// A real element type that a vector can be loaded from, exactly.
pub(crate) trait SimdElement: Real + Default {
    /// In memory order.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
    /// The elements of even index, and those of odd index: the order in which [`crate::linear`] sums.
    fn load_pairs<S: Simd>(simd: S, from: &[Self; PAIR]) -> (S::F, S::F);
}

/// The two halves of a pair.
#[inline(always)]
fn halves<T>(from: &[T; PAIR]) -> (&[T; LANES], &[T; LANES]) {
    // Both halves have LANES elements by their types.
    match from.as_chunks::<LANES>().0 {
        [low, high] => (low, high),
        _ => unreachable!(),
    }
}

impl SimdElement for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(from)
    }

    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, from: &[Self; PAIR]) -> (S::F, S::F) {
        let (low, high) = halves(from);
        simd.unzip(simd.load(low), simd.load(high))
    }
}

impl SimdElement for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, from: &[Self; PAIR]) -> (S::F, S::F) {
        simd.load_bf16_pairs(from)
    }
}

impl SimdElement for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_f16(from)
    }

    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, from: &[Self; PAIR]) -> (S::F, S::F) {
        let (low, high) = halves(from);
        simd.unzip(simd.load_f16(low), simd.load_f16(high))
    }
}

/// By arithmetic that the compiler vectorises for the instruction set in use.
impl SimdElement for F8E4M3 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(&from.map(F8E4M3::to_f32))
    }

    #[inline(always)]
    fn load_pairs<S: Simd>(simd: S, from: &[Self; PAIR]) -> (S::F, S::F) {
        let (low, high) = halves(from);
        simd.unzip(Self::load(simd, low), Self::load(simd, high))
    }
}
