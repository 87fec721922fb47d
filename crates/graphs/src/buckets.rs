//! Which sizes there are graphs for.

/// Ascending sizes; a smaller one is padded up to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    sizes: Vec<usize>,
}

impl Buckets {
    /// These sizes, in any order; zeros and doubles are left out.
    #[must_use]
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut sizes: Vec<usize> = sizes.into_iter().filter(|&size| size > 0).collect();
        sizes.sort_unstable();
        sizes.dedup();
        Self { sizes }
    }

    /// Sizes from `min` to `max` of which none wastes more than the share `max_waste` of its rows on any size above the bucket
    /// below: powers of two, and what cuts each range between two of them into as many equal parts (a power of two, too) as that
    /// takes. So 128 rows stay 128 rows, which tiles of matrix products like. `max_waste` is held between 0 and 0.9.
    #[must_use]
    pub fn with_waste(min: usize, max: usize, max_waste: f64) -> Self {
        let (min, max, max_waste) = (min.max(1), max.max(1), max_waste.clamp(0.0, 0.9));
        let mut sizes = vec![min.min(max), max];
        let mut low = 1_usize;
        while low < max && low < usize::MAX / 4 {
            // The worst fit of the first part's end is a size just above `low`.
            let waste = |parts: usize| (low / parts) as f64 - 1.0;
            let wasted = |parts: usize| waste(parts) / (low + low / parts) as f64;
            let mut parts = 1;
            while parts < low && wasted(parts) > max_waste {
                parts *= 2;
            }
            sizes.extend((1..=parts).map(|part| low + low / parts * part).filter(|size| (min..max).contains(size)));
            low = low.saturating_mul(2);
        }
        Self::new(sizes)
    }

    /// All sizes of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::new(self.sizes.into_iter().chain(other.sizes))
    }

    /// The bucket that takes `size`; `None` beyond the largest.
    #[must_use]
    pub fn of(&self, size: usize) -> Option<usize> {
        self.sizes.get(self.sizes.partition_point(|&bucket| bucket < size)).copied()
    }

    /// Ascending.
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// The largest; 0 without any.
    #[must_use]
    pub fn max(&self) -> usize {
        self.sizes.last().copied().unwrap_or(0)
    }

    /// The largest share of a bucket's rows that padding can be, for sizes from the smallest bucket on.
    #[must_use]
    pub fn max_waste(&self) -> f64 {
        let pairs = self.sizes.iter().zip(self.sizes.iter().skip(1));
        pairs.map(|(&below, &size)| (size - below - 1) as f64 / size as f64).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_goes_to_the_next_bucket() {
        let buckets = Buckets::new([8, 0, 1, 4, 8]);
        assert_eq!(buckets.sizes(), [1, 4, 8]);
        assert_eq!([1, 2, 4, 5, 8].map(|size| buckets.of(size)), [Some(1), Some(4), Some(4), Some(8), Some(8)]);
        assert_eq!((buckets.of(9), buckets.max()), (None, 8));
        assert_eq!((Buckets::new([]).of(1), Buckets::new([]).max()), (None, 0));
        // 2 in 4 wastes half of the rows, 5 in 8 three eighths.
        assert!((buckets.max_waste() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_fifth_of_waste_takes_four_buckets_for_each_power_of_two() {
        let buckets = Buckets::with_waste(1, 256, 0.2);
        let expected =
            [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256];
        assert_eq!(buckets.sizes(), expected);
        let finer = Buckets::with_waste(64, 100, 0.2).and(Buckets::new([90]));
        assert_eq!(finer.sizes(), [64, 80, 90, 96, 100]);
    }

    proptest! {
        #[test]
        fn no_bucket_wastes_more_than_it_may(min in 1_usize..40, more in 0_usize..9000, waste in 0.0_f64..0.6) {
            let (max, buckets) = (min + more, Buckets::with_waste(min, min + more, waste));
            prop_assert!(buckets.max_waste() <= waste + 1e-9);
            prop_assert_eq!((buckets.sizes()[0], buckets.max()), (min, max));
            for size in [min, min + more / 2, min + more / 3, max] {
                prop_assert!(buckets.of(size).unwrap() >= size);
            }
            // A share of waste is not bought with a bucket for every size.
            prop_assert!(waste < 0.05 || buckets.sizes().len() < 40 * (usize::BITS - more.leading_zeros()) as usize + 40);
        }
    }
}
