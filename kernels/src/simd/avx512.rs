//! One 512-bit register.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, PAIR, Simd};

/// Exists only where AVX-512 F, BW, DQ and VL do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// An intrinsic that takes and returns values alone.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: the instructions exist, since an `Avx512` is made by `Avx512::detect` alone.
        unsafe { $call }
    };
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the instructions exist, since an `Avx512` is made by `Avx512::detect` alone.
        unsafe { compiled(self, kernel) }
    }
}

/// `_mm512_permutex2var_ps` indices of the even elements of two vectors; the odd ones are those plus one.
#[inline]
#[target_feature(enable = "avx512f")]
fn even() -> __m512i {
    _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn unzip(low: __m512, high: __m512) -> (__m512, __m512) {
    let odd = _mm512_add_epi32(even(), _mm512_set1_epi32(1));
    (_mm512_permutex2var_ps(low, even(), high), _mm512_permutex2var_ps(low, odd, high))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_bf16(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_pairs(x: __m512i) -> (__m512, __m512) {
    let even = _mm512_slli_epi32::<16>(x);
    let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
    (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn round_exp2(a: __m512) -> (__m512, __m512) {
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
    let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
    (whole, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
}

/// Sums the halves, then the quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn quarters(v: __m512) -> __m128 {
    let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sums(v: [__m512; 4]) -> __m128 {
    let [a, b, c, d] = v;
    let ab = _mm_hadd_ps(quarters(a), quarters(b));
    let cd = _mm_hadd_ps(quarters(c), quarters(d));
    _mm_hadd_ps(ab, cd)
}

/// The transposition of the four 4x4 blocks that stand in the same column of 128-bit lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quads(a: __m512, b: __m512, c: __m512, d: __m512) -> [__m512; 4] {
    let ab_low = _mm512_unpacklo_ps(a, b);
    let ab_high = _mm512_unpackhi_ps(a, b);
    let cd_low = _mm512_unpacklo_ps(c, d);
    let cd_high = _mm512_unpackhi_ps(c, d);
    [
        _mm512_shuffle_ps::<0x44>(ab_low, cd_low),
        _mm512_shuffle_ps::<0xee>(ab_low, cd_low),
        _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: &mut [__m512; LANES]) {
    let rows = *r;
    let q0 = transpose_quads(rows[0], rows[1], rows[2], rows[3]);
    let q1 = transpose_quads(rows[4], rows[5], rows[6], rows[7]);
    let q2 = transpose_quads(rows[8], rows[9], rows[10], rows[11]);
    let q3 = transpose_quads(rows[12], rows[13], rows[14], rows[15]);
    for i in 0..4 {
        // Lane l of q0[i]..q3[i] holds the four parts of column 4 l + i.
        let lanes01_a = _mm512_shuffle_f32x4::<0x44>(q0[i], q1[i]);
        let lanes23_a = _mm512_shuffle_f32x4::<0xee>(q0[i], q1[i]);
        let lanes01_b = _mm512_shuffle_f32x4::<0x44>(q2[i], q3[i]);
        let lanes23_b = _mm512_shuffle_f32x4::<0xee>(q2[i], q3[i]);
        r[i] = _mm512_shuffle_f32x4::<0x88>(lanes01_a, lanes01_b);
        r[4 + i] = _mm512_shuffle_f32x4::<0xdd>(lanes01_a, lanes01_b);
        r[8 + i] = _mm512_shuffle_f32x4::<0x88>(lanes23_a, lanes23_b);
        r[12 + i] = _mm512_shuffle_f32x4::<0xdd>(lanes23_a, lanes23_b);
    }
}

impl Simd for Avx512 {
    type F = __m512;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        intrinsic!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `from` is 64 readable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, lanes: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `to` is 64 writable bytes by its type; for the instruction see `intrinsic`.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        // SAFETY: `from` is 32 readable bytes by its type; for the instruction see `intrinsic`.
        let bits = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        intrinsic!(widen_bf16(bits))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        // SAFETY: `from` is 32 readable bytes by its type; for the instruction see `intrinsic`.
        let bits = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        intrinsic!(_mm512_cvtph_ps(bits))
    }

    #[inline(always)]
    fn load_bf16_pairs(self, from: &[bf16; PAIR]) -> (__m512, __m512) {
        // SAFETY: `from` is 64 readable bytes by its type; for the instruction see `intrinsic`.
        let bits = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
        intrinsic!(widen_pairs(bits))
    }

    #[inline(always)]
    fn unzip(self, low: __m512, high: __m512) -> (__m512, __m512) {
        intrinsic!(unzip(low, high))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsic!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsic!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round_exp2(self, a: __m512) -> (__m512, __m512) {
        intrinsic!(round_exp2(a))
    }

    #[inline(always)]
    fn sums(self, vectors: [__m512; 4]) -> [f32; 4] {
        let four = intrinsic!(sums(vectors));
        let mut sums = [0.0; 4];
        // SAFETY: `sums` is 16 writable bytes; for the instruction see `intrinsic`.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), four) };
        sums
    }

    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        intrinsic!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; LANES]) {
        intrinsic!(transpose(rows));
    }
}
