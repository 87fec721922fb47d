//! Distributions of times.

use serde::Serialize;

/// A distribution of times in milliseconds; zeros where there are none.
///
/// As numpy has them, and so `vllm bench serve`: a rank between two values is interpolated, the deviation is the population's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub std: f64,
    /// The median.
    pub p50: f64,
    /// What nine tenths lie below.
    pub p90: f64,
    /// What 99 % lie below.
    pub p99: f64,
}

impl Percentiles {
    /// Of these values, in any order.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_by(f64::total_cmp);
        let len = values.len() as f64;
        let mean = values.iter().sum::<f64>() / len;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / len;
        let at = |share| percentile(&values, share);
        Self { mean, std: variance.sqrt(), p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// The value below which this share of sorted values lies; 0 if there are none.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = share * sorted.len().saturating_sub(1) as f64;
    let below = sorted.get(rank.floor() as usize).copied().unwrap_or_default();
    let above = sorted.get(rank.ceil() as usize).copied().unwrap_or(below);
    below + (above - below) * rank.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_hundred_numbers() {
        let of = Percentiles::of((1..=100).rev().map(f64::from).collect());
        // numpy.percentile(range(1, 101), [50, 90, 99]) and numpy.std of the same.
        let expected = [50.5, 28.866_070_047_722_12, 50.5, 90.1, 99.01];
        for (got, expected) in [of.mean, of.std, of.p50, of.p90, of.p99].into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        }
        let one = Percentiles { mean: 3.0, std: 0.0, p50: 3.0, p90: 3.0, p99: 3.0 };
        assert_eq!(Percentiles::of(vec![3.0]), one);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }

    /// With n = 100 k + 1 values every percentile is a value: as many lie below it as its rank says.
    #[test]
    fn ranks_count_what_lies_below() {
        let mut random = Random::new(7, 0);
        let values: Vec<f64> = (0..501).map(|_| random.uniform()).collect();
        let of = Percentiles::of(values.clone());
        for (got, rank) in [(of.p50, 250), (of.p90, 450), (of.p99, 495)] {
            assert_eq!(values.iter().filter(|value| **value < got).count(), rank);
        }
        let (mut sum, mut squares) = (0.0, 0.0);
        for value in &values {
            sum += value;
            squares += value * value;
        }
        let mean = sum / 501.0;
        assert!((of.mean - mean).abs() < 1e-12);
        assert!((of.std - (squares / 501.0 - mean * mean).sqrt()).abs() < 1e-9);
    }
}
