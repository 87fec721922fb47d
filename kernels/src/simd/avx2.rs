//! Two 256-bit registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, PAIR, Simd};

/// Exists only where AVX2, FMA and F16C do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// An intrinsic that takes and returns values alone.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: the instructions exist, since an `Avx2` is made by `Avx2::detect` alone.
        unsafe { $call }
    };
}

/// Lanes 0..8 and 8..16.
type Halves = [__m256; 2];

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the instructions exist, since an `Avx2` is made by `Avx2::detect` alone.
        unsafe { compiled(self, kernel) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_bf16(x: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn even_bf16(x: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
}

#[inline]
#[target_feature(enable = "avx2")]
fn odd_bf16(x: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
}

/// The even elements, then the odd ones, of `low` followed by `high`.
#[inline]
#[target_feature(enable = "avx2")]
fn unzip(low: __m256, high: __m256) -> (__m256, __m256) {
    let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(low, high));
    let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(low, high));
    // The shuffles work inside 128-bit lanes and leave the quarters in the order 0, 2, 1, 3.
    (_mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even)), _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn round(a: __m256) -> __m256 {
    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
}

/// `2^whole` for whole numbers in -126..=127.
#[inline]
#[target_feature(enable = "avx2")]
fn power(whole: __m256) -> __m256 {
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
}

#[inline]
#[target_feature(enable = "avx2")]
fn quarters([low, high]: Halves) -> __m128 {
    let half = _mm256_add_ps(low, high);
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sums([a, b, c, d]: [Halves; 4]) -> __m128 {
    let ab = _mm_hadd_ps(quarters(a), quarters(b));
    let cd = _mm_hadd_ps(quarters(c), quarters(d));
    _mm_hadd_ps(ab, cd)
}

impl Avx2 {
    #[inline(always)]
    fn load8(self, from: &[f32; LANES / 2]) -> __m256 {
        // SAFETY: `from` is 32 readable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store8(self, lanes: __m256, to: &mut [f32; LANES / 2]) {
        // SAFETY: `to` is 32 writable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn bits8<T>(self, from: &[T; LANES / 2]) -> __m128i {
        const { assert!(size_of::<T>() == 2) }
        // SAFETY: `from` is 16 readable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn bits16<T>(self, from: &[T; LANES]) -> __m256i {
        const { assert!(size_of::<T>() == 2) }
        // SAFETY: `from` is 32 readable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
}

/// Two equal parts.
#[inline(always)]
fn split<T, const N: usize>(from: &[T]) -> [&[T; N]; 2] {
    match from.as_chunks::<N>().0 {
        [low, high] => [low, high],
        _ => unreachable!(),
    }
}

impl Simd for Avx2 {
    type F = Halves;

    #[inline(always)]
    fn splat(self, value: f32) -> Halves {
        [intrinsic!(_mm256_set1_ps(value)); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Halves {
        let [low, high] = split(from);
        [self.load8(low), self.load8(high)]
    }

    #[inline(always)]
    fn store(self, lanes: Halves, to: &mut [f32; LANES]) {
        if let [low, high] = to.as_chunks_mut().0 {
            self.store8(lanes[0], low);
            self.store8(lanes[1], high);
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Halves {
        let [low, high] = split(from);
        let (low, high) = (self.bits8(low), self.bits8(high));
        [intrinsic!(widen_bf16(low)), intrinsic!(widen_bf16(high))]
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Halves {
        let [low, high] = split(from);
        let (low, high) = (self.bits8(low), self.bits8(high));
        [intrinsic!(_mm256_cvtph_ps(low)), intrinsic!(_mm256_cvtph_ps(high))]
    }

    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; PAIR]) -> (Halves, Halves) {
        let [low, high] = split(from);
        let (low, high) = (self.bits16(low), self.bits16(high));
        let even = [intrinsic!(even_bf16(low)), intrinsic!(even_bf16(high))];
        let odd = [intrinsic!(odd_bf16(low)), intrinsic!(odd_bf16(high))];
        (even, odd)
    }

    #[inline(always)]
    fn unzip(self, low: Halves, high: Halves) -> (Halves, Halves) {
        let (even_low, odd_low) = intrinsic!(unzip(low[0], low[1]));
        let (even_high, odd_high) = intrinsic!(unzip(high[0], high[1]));
        ([even_low, even_high], [odd_low, odd_high])
    }

    #[inline(always)]
    fn add(self, a: Halves, b: Halves) -> Halves {
        [intrinsic!(_mm256_add_ps(a[0], b[0])), intrinsic!(_mm256_add_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn sub(self, a: Halves, b: Halves) -> Halves {
        [intrinsic!(_mm256_sub_ps(a[0], b[0])), intrinsic!(_mm256_sub_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn mul(self, a: Halves, b: Halves) -> Halves {
        [intrinsic!(_mm256_mul_ps(a[0], b[0])), intrinsic!(_mm256_mul_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn fma(self, a: Halves, b: Halves, c: Halves) -> Halves {
        [intrinsic!(_mm256_fmadd_ps(a[0], b[0], c[0])), intrinsic!(_mm256_fmadd_ps(a[1], b[1], c[1]))]
    }

    #[inline(always)]
    fn max(self, a: Halves, b: Halves) -> Halves {
        [intrinsic!(_mm256_max_ps(a[0], b[0])), intrinsic!(_mm256_max_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn min(self, a: Halves, b: Halves) -> Halves {
        [intrinsic!(_mm256_min_ps(a[0], b[0])), intrinsic!(_mm256_min_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn round_exp2(self, a: Halves) -> (Halves, Halves) {
        let whole = [intrinsic!(round(a[0])), intrinsic!(round(a[1]))];
        let power = [intrinsic!(power(whole[0])), intrinsic!(power(whole[1]))];
        (whole, power)
    }

    #[inline(always)]
    fn sums(self, vectors: [Halves; 4]) -> [f32; 4] {
        let four = intrinsic!(sums(vectors));
        let mut sums = [0.0; 4];
        // SAFETY: `sums` is 16 writable bytes; for the instruction see `intrinsic`.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), four) };
        sums
    }

    #[inline(always)]
    fn max_lane(self, a: Halves) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [Halves; LANES]) {
        let mut from = [[0.0; LANES]; LANES];
        for (row, to) in rows.iter().zip(&mut from) {
            self.store(*row, to);
        }
        for (j, row) in rows.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (lane, row) in column.iter_mut().zip(&from) {
                *lane = row[j];
            }
            *row = self.load(&column);
        }
    }
}
