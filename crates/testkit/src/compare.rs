//! Comparators that say where two results differ and by how much.

use std::fmt::{Debug, Write};

use bytemuck::NoUninit;

/// How many differences a failure lists.
const NUM_LISTED: usize = 10;

/// Asserts `|actual - expected| <= atol + rtol * |expected|` for every element; NaN is never close.
///
/// # Panics
/// When an element is not, with the ten worst: index, both values, difference, distance in ulps.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], atol: f32, rtol: f32) {
    assert_close_at(actual, expected, &[expected.len()], atol, rtol);
}

/// [`assert_close`] for arrays of a shape: a failure prints coordinates.
///
/// # Panics
/// As [`assert_close`], and when the lengths are not those of `shape`.
#[track_caller]
pub fn assert_close_at(actual: &[f32], expected: &[f32], shape: &[usize], atol: f32, rtol: f32) {
    if let Err(report) = compare(actual, expected, shape, atol, rtol) {
        panic!("{report}");
    }
}

fn compare(actual: &[f32], expected: &[f32], shape: &[usize], atol: f32, rtol: f32) -> Result<(), String> {
    let len: usize = shape.iter().product();
    if actual.len() != len || expected.len() != len {
        return Err(format!("shape {shape:?} has {len} elements, got {} and {}", actual.len(), expected.len()));
    }
    let mut off: Vec<(usize, f64)> = Vec::new();
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let difference = (f64::from(a) - f64::from(e)).abs();
        let is_close = a == e || difference <= f64::from(atol) + f64::from(rtol) * f64::from(e).abs();
        if !is_close {
            off.push((i, if difference.is_nan() { f64::INFINITY } else { difference }));
        }
    }
    if off.is_empty() {
        return Ok(());
    }
    off.sort_by(|x, y| y.1.total_cmp(&x.1));
    let mut report =
        format!("{} of {len} elements differ by more than {atol:e} + {rtol:e} * |expected|; the worst:", off.len());
    for &(i, difference) in off.iter().take(NUM_LISTED) {
        let (a, e) = (actual[i], expected[i]);
        let _ = write!(
            report,
            "\n  {:?}: got {a:e}, expected {e:e}, difference {difference:.3e}, {} ulp",
            coordinate(i, shape),
            ulp_distance(a, e)
        );
    }
    Err(report)
}

/// The coordinate of a flat index in a row-major array.
fn coordinate(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinate = vec![0; shape.len()];
    for (c, &dim) in coordinate.iter_mut().zip(shape).rev() {
        *c = index % dim;
        index /= dim;
    }
    coordinate
}

/// How many float32 values lie between two, plus one; 0 for equal ones, the largest number when one is NaN.
#[must_use]
pub fn ulp_distance(a: f32, b: f32) -> u64 {
    if a.is_nan() || b.is_nan() {
        return u64::MAX;
    }
    // Negative floats count backwards by their bits.
    let ordered = |x: f32| {
        let bits = i64::from(x.to_bits() & 0x7FFF_FFFF);
        if x.is_sign_negative() { -bits } else { bits }
    };
    ordered(a).abs_diff(ordered(b))
}

/// Asserts that two slices hold the same bits.
///
/// # Panics
/// At the first element that differs, with its index and both values.
#[track_caller]
pub fn assert_bitwise_equal<T: NoUninit + Debug>(actual: &[T], expected: &[T]) {
    assert_eq!(actual.len(), expected.len(), "the lengths differ");
    let differs = |(a, e): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(e);
    if let Some(i) = actual.iter().zip(expected).position(differs) {
        let count = actual.iter().zip(expected).filter(|&pair| differs(pair)).count();
        panic!(
            "{count} of {} elements differ; the first is {i}: got {:?}, expected {:?}",
            actual.len(),
            actual[i],
            expected[i]
        );
    }
}

/// `1 - 2 * sum(x * y) / sum(x^2 + y^2)` in float64: 0 for equal arrays, and small when they differ by noise only.
/// For results of long sums, where single elements may be far off relative to themselves.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn calc_diff(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "the lengths differ");
    let (mut products, mut squares) = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f64::from(x), f64::from(y));
        products += x * y;
        squares += x * x + y * y;
    }
    if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * products / squares }
}

/// The largest difference, relative to the largest expected value; NaN when a value is NaN.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn max_abs_relative_to_max(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "the lengths differ");
    let largest = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0_f64, |m, x| if x.is_nan() || m.is_nan() { f64::NAN } else { m.max(x.abs()) })
    };
    let difference = largest(&mut actual.iter().zip(expected).map(|(&a, &e)| f64::from(a) - f64::from(e)));
    let scale = largest(&mut expected.iter().map(|&e| f64::from(e)));
    if difference == 0.0 { 0.0 } else { difference / scale }
}

/// The values of a half-precision slice as float32.
#[must_use]
pub fn widen<T: Copy + Into<f32>>(values: &[T]) -> Vec<f32> {
    values.iter().map(|&value| value.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_coordinate_and_the_ulps() {
        let expected = [1.0_f32; 6];
        let mut actual = expected;
        actual[4] = f32::from_bits(1.0_f32.to_bits() + 3);
        assert_eq!(compare(&actual, &expected, &[2, 3], 1e-6, 0.0), Ok(()));
        let report = compare(&actual, &expected, &[2, 3], 1e-8, 0.0).unwrap_err();
        assert!(report.starts_with("1 of 6 elements differ"), "{report}");
        assert!(report.contains("[1, 1]: got 1.0000004e0, expected 1e0") && report.ends_with("3 ulp"), "{report}");
    }

    #[test]
    fn the_worst_ten_come_first() {
        let expected = [0.0_f32; 40];
        let actual: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let report = compare(&actual, &expected, &[40], 0.5, 0.0).unwrap_err();
        let lines: Vec<_> = report.lines().collect();
        assert_eq!(lines.len(), 11);
        assert!(lines[0].starts_with("39 of 40") && lines[1].contains("[39]") && lines[10].contains("[30]"));
    }

    #[test]
    fn nan_and_lengths_are_never_close() {
        assert!(compare(&[f32::NAN], &[f32::NAN], &[1], 1.0, 1.0).is_err());
        assert!(compare(&[1.0], &[f32::NAN], &[1], 1.0, 1.0).is_err());
        assert!(compare(&[f32::INFINITY], &[f32::INFINITY], &[1], 0.0, 0.0).is_ok());
        assert!(compare(&[f32::INFINITY], &[f32::NEG_INFINITY], &[1], 1.0, 0.0).is_err());
        assert!(compare(&[1.0, 1.0], &[1.0], &[1], 1.0, 1.0).is_err());
        assert!(max_abs_relative_to_max(&[f32::NAN, 0.0], &[1.0, 0.0]).is_nan());
    }

    #[test]
    fn the_relative_part_grows_with_the_expected_value() {
        assert!(compare(&[101.0], &[100.0], &[1], 0.0, 0.011).is_ok());
        assert!(compare(&[101.0], &[100.0], &[1], 0.0, 0.009).is_err());
        assert_eq!(max_abs_relative_to_max(&[1.0, -8.0], &[2.0, -10.0]), 0.2);
    }

    #[test]
    fn ulps_count_through_zero() {
        assert_eq!(ulp_distance(0.0, -0.0), 0);
        assert_eq!(ulp_distance(f32::from_bits(1), -f32::from_bits(2)), 3);
        assert_eq!(ulp_distance(1.0, f32::NAN), u64::MAX);
    }

    #[test]
    fn calc_diff_is_zero_for_equals_and_one_for_orthogonal() {
        assert_eq!(calc_diff(&[3.0, -1.0], &[3.0, -1.0]), 0.0);
        assert_eq!(calc_diff(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        assert_eq!(calc_diff(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn bits_tell_zeros_apart() {
        let failure = std::panic::catch_unwind(|| assert_bitwise_equal(&[1.0_f32, -0.0], &[1.0, 0.0])).unwrap_err();
        let message = failure.downcast_ref::<String>().unwrap();
        assert!(message.contains("the first is 1: got -0.0, expected 0.0"), "{message}");
    }
}
