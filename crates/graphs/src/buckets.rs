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

    /// The fewest sizes from `min` to `max` of which each wastes at most the share `max_waste` of its rows on the size that it
    /// fits worst, one more than the bucket below; sizes beyond 16 are multiples of 8 where that allows it. `max_waste` is held
    /// between 0 and 0.9.
    #[must_use]
    pub fn with_waste(min: usize, max: usize, max_waste: f64) -> Self {
        let max_waste = max_waste.clamp(0.0, 0.9);
        let mut sizes = Vec::new();
        let mut size = min.max(1);
        while size < max {
            sizes.push(size);
            // The worst fit of the next is `size + 1`: next - (size + 1) <= max_waste * next.
            let most = ((size + 1) as f64 / (1.0 - max_waste)).floor() as usize;
            let rounded = if most > 16 { most / 8 * 8 } else { most };
            size = if rounded > size { rounded } else { most.max(size + 1) };
        }
        sizes.push(max.max(1));
        Self::new(sizes)
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
    fn a_quarter_of_waste_takes_few_buckets() {
        let buckets = Buckets::with_waste(1, 256, 0.25);
        assert_eq!(buckets.sizes(), [1, 2, 4, 6, 9, 13, 16, 22, 24, 32, 40, 48, 64, 80, 104, 136, 176, 232, 256]);
    }

    proptest! {
        #[test]
        fn no_bucket_wastes_more_than_it_may(min in 1_usize..40, more in 0_usize..9000, waste in 0.0_f64..0.6) {
            let (max, buckets) = (min + more, Buckets::with_waste(min, min + more, waste));
            prop_assert!(buckets.max_waste() <= waste + 1e-9);
            prop_assert_eq!((buckets.sizes()[0], buckets.max()), (min, max));
            for size in [min, min + more / 2, min + more / 3, max] {
                let bucket = buckets.of(size).unwrap();
                prop_assert!(bucket >= size);
                prop_assert!(size == min || (bucket - size) as f64 <= waste * bucket as f64 + 1e-9);
            }
        }
    }
}
