//! When requests are due.

use std::time::Duration;

use crate::random::Random;

/// When each of `num_requests` is due, from the start on: as `vllm bench serve` has it.
///
/// Gaps are of a gamma distribution with shape `burstiness` and mean `1 / rate`: at 1 a Poisson process, below it more in bursts,
/// above it more even, at infinity all alike. The last request is due at `num_requests / rate`, whatever the seed, so that runs of
/// different seeds offer the same load. At an infinite rate all are due at once.
pub(crate) fn arrivals(num_requests: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<Duration> {
    if rate.is_infinite() {
        return vec![Duration::ZERO; num_requests];
    }
    let mut random = Random::new(seed, u64::MAX);
    let mut due = 0.0;
    let times = (0..num_requests).map(|_| {
        due += if burstiness.is_infinite() { 1.0 } else { random.gamma(burstiness) };
        due
    });
    let times: Vec<f64> = times.collect();
    let Some(&end) = times.last() else { return Vec::new() };
    let seconds_each = num_requests as f64 / rate / end.max(f64::MIN_POSITIVE);
    times.into_iter().map(|time| Duration::try_from_secs_f64(time * seconds_each).unwrap_or(Duration::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUM: usize = 20_000;

    /// The gaps' mean and their coefficient of variation.
    fn gaps(rate: f64, burstiness: f64) -> (f64, f64) {
        let times = arrivals(NUM, rate, burstiness, 3);
        assert_eq!(times.len(), NUM);
        assert!(times.is_sorted());
        let mut last = 0.0;
        let gaps: Vec<f64> = times
            .iter()
            .map(|time| {
                let gap = time.as_secs_f64() - last;
                last = time.as_secs_f64();
                gap
            })
            .collect();
        let mean = gaps.iter().sum::<f64>() / NUM as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / NUM as f64;
        (mean, variance.sqrt() / mean)
    }

    /// A gamma distribution of shape k has a coefficient of variation of 1 / sqrt(k).
    #[test]
    fn gaps_are_as_bursty_as_asked_for() {
        for (burstiness, expected) in [(0.25, 2.0), (1.0, 1.0), (16.0, 0.25)] {
            let (mean, variation) = gaps(8.0, burstiness);
            assert!((mean * 8.0 - 1.0).abs() < 1e-6, "{mean}");
            assert!((variation / expected - 1.0).abs() < 0.05, "{burstiness}: {variation}");
        }
        assert!(gaps(8.0, f64::INFINITY).1 < 1e-4);
    }

    /// In a Poisson process the numbers of arrivals in equal windows have a variance equal to their mean.
    #[test]
    fn a_burstiness_of_one_is_a_poisson_process() {
        let mut counts = vec![0_u32; NUM / 10];
        for time in arrivals(NUM, 10.0, 1.0, 11) {
            if let Some(count) = counts.get_mut(time.as_secs() as usize) {
                *count += 1;
            }
        }
        let n = counts.len() as f64;
        let mean = counts.iter().map(|&count| f64::from(count)).sum::<f64>() / n;
        let variance = counts.iter().map(|&count| (f64::from(count) - mean).powi(2)).sum::<f64>() / n;
        assert!((variance / mean - 1.0).abs() < 0.15, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_seed_is_an_order() {
        assert_eq!(arrivals(50, 2.0, 1.0, 1), arrivals(50, 2.0, 1.0, 1));
        assert_ne!(arrivals(50, 2.0, 1.0, 1), arrivals(50, 2.0, 1.0, 2));
        let end = |seed| arrivals(50, 2.0, 1.0, seed).last().unwrap().as_secs_f64();
        assert!((end(1) - 25.0).abs() < 1e-6 && (end(2) - 25.0).abs() < 1e-6);
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 0), [Duration::ZERO; 3]);
        assert!(arrivals(0, 2.0, 1.0, 0).is_empty());
    }
}
