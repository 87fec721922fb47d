//! Sixteen float32 lanes on whatever vector unit the machine has.
//!
//! A [`Simd`] value is a token: it exists only where its instructions do, so its methods are safe. A [`Kernel`] is
//! written once over any `Simd`; [`Isa::dispatch`] compiles it for each instruction set and runs the one that was
//! detected. The lanes, the sums across them and their order are the same everywhere, so the paths with a fused
//! multiply-add (AVX-512, AVX2, AArch64) agree bitwise.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
mod portable;

#[cfg(test)]
mod tests;

pub(crate) use element::SimdElement;

use half::{bf16, f16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;
/// Elements of two vectors, which a dot product takes at a time.
pub(crate) const PAIR: usize = 2 * LANES;

/// Sixteen float32 lanes. Every method is exact or rounds once, to nearest even.
pub(crate) trait Simd: Copy + Send + Sync {
    /// The lanes.
    type F: Copy;

    /// All lanes the same.
    fn splat(self, value: f32) -> Self::F;
    /// In memory order.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// In memory order.
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]);
    /// In memory order.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F;
    /// In memory order.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F;
    /// The elements of even index, and those of odd index.
    fn load_bf16_pairs(self, from: &[bf16; PAIR]) -> (Self::F, Self::F);
    /// The elements of even index, and those of odd index, of `low` followed by `high`.
    fn unzip(self, low: Self::F, high: Self::F) -> (Self::F, Self::F);
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the machine can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `(round(a), 2^round(a))`, for lanes in -126..=127.
    fn round_exp2(self, a: Self::F) -> (Self::F, Self::F);
    /// The sum of each of four vectors: halves, quarters, then neighbours are added.
    fn sums(self, vectors: [Self::F; 4]) -> [f32; 4];
    /// The largest lane; which one where there are NaNs is not said.
    fn max_lane(self, a: Self::F) -> f32;
    /// Rows become columns.
    fn transpose(self, rows: &mut [Self::F; LANES]);
}

/// A computation that is compiled for every instruction set. `run` must be `#[inline(always)]`, and so must what it
/// calls, up to the [`Simd`] methods: only inlined code takes on the instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Isa {
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// 256-bit vectors with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// Arrays, which the compiler vectorises for the build's target.
    Portable(portable::Portable),
}

impl Isa {
    /// The best that this machine has. The standard library keeps what it detected, so this costs a few loads.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = avx512::Avx512::detect() {
                return Self::Avx512(simd);
            }
            if let Some(simd) = avx2::Avx2::detect() {
                return Self::Avx2(simd);
            }
        }
        Self::Portable(portable::Portable)
    }

    /// Every one that this machine has, best first.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx512::Avx512::detect().map(Self::Avx512));
            all.extend(avx2::Avx2::detect().map(Self::Avx2));
        }
        all.push(Self::Portable(portable::Portable));
        all
    }

    /// Whether a multiply-add is rounded once.
    #[cfg(test)]
    pub(crate) fn is_fused(self) -> bool {
        match self {
            Self::Portable(_) => portable::FUSED,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) | Self::Avx2(_) => true,
        }
    }

    /// Runs `kernel` with this instruction set.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            Self::Portable(simd) => kernel.run(simd),
        }
    }
}

/// `ln(2)^k / k!` for k = 7..=0: the Taylor series of `2^f`, whose remainder for |f| <= 1/2 is below 6e-9.
const EXP2: [f32; 8] = [
    1.525_273_4e-5,
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    2.402_265e-1,
    std::f32::consts::LN_2,
    1.0,
];

/// `2^a` for lanes up to 127, to 2 units in the last place; lanes below -126 give 2^-126, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, a: S::F) -> S::F {
    let a = simd.max(simd.splat(-126.0), a);
    let (whole, power) = simd.round_exp2(a);
    let part = simd.sub(a, whole);
    let mut sum = simd.splat(EXP2[0]);
    for &coefficient in &EXP2[1..] {
        sum = simd.fma(sum, part, simd.splat(coefficient));
    }
    simd.mul(sum, power)
}
