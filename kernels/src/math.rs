//! Elementary functions that the CPU implementations share. They are branch-free, so that loops over them vectorise on
//! any target.

/// `log2(e)`, and `ln(2)` in two parts: the first has few enough bits that its product with an exponent is exact.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Added to a number under 2^22, it leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// The largest input whose exponential is finite, and the smallest whose exponential is a normal number.
const EXP_MAX: f32 = 88.722_83;
const EXP_MIN: f32 = -87.336_54;

/// `e^x`, within 2 ulp. Above [`EXP_MAX`] infinite, below [`EXP_MIN`] zero (no subnormals); NaN stays NaN.
///
/// Cephes' `expf`: `x = n ln(2) + r`, a polynomial of degree 6 in `r`, and `2^n` in two factors, as 2^128 is no float.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons and not `clamp`, so that a NaN comes through.
    let bounded = if x > EXP_MAX { EXP_MAX } else { x };
    let bounded = if bounded < EXP_MIN { EXP_MIN } else { bounded };
    let shifted = bounded * LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    let half = n >> 1;
    let result = p * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    let result = if x > EXP_MAX { f32::INFINITY } else { result };
    if x < EXP_MIN { 0.0 } else { result }
}

/// `2^n` for an exponent within a normal number's.
#[inline]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `x * sigmoid(y)`.
#[inline]
pub(crate) fn times_sigmoid(x: f32, y: f32) -> f32 {
    x / (1.0 + exp(-y))
}

/// `x * Φ(x)`, by the complementary error function: exact to a few ulp in the negative tail too.
#[inline]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * libm::erfcf(-x * std::f32::consts::FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    use foveal_testkit::ulp_distance;

    use super::{EXP_MAX, EXP_MIN, exp};

    #[test]
    fn exp_is_within_two_ulp_over_its_whole_range() {
        // An odd stride, so that every exponent and many mantissas are met.
        let stride = 9_973;
        let worst = (0..=EXP_MAX.to_bits())
            .step_by(stride)
            .chain(((-0.0_f32).to_bits()..=EXP_MIN.to_bits()).step_by(stride))
            .map(|bits| {
                let x = f32::from_bits(bits);
                (ulp_distance(exp(x), f64::from(x).exp() as f32), x)
            })
            .max_by_key(|(ulps, _)| *ulps);
        let (ulps, x) = worst.unwrap();
        assert!(ulps <= 2, "{ulps} ulp at {x}");
    }

    #[test]
    fn exp_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(EXP_MAX).is_finite());
        assert!(exp(EXP_MIN) >= f32::MIN_POSITIVE);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
