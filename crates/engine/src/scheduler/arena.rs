//! Which rows of the picture arena are taken.

use std::collections::BTreeMap;
use std::ops::Range;

/// Rows of one tensor, given out as contiguous ranges.
#[derive(Debug)]
pub(crate) struct Arena {
    num_rows: usize,
    /// The free ranges by where they begin; no two touch.
    free: BTreeMap<usize, usize>,
}

impl Arena {
    pub(crate) fn new(num_rows: usize) -> Self {
        Self { num_rows, free: (num_rows > 0).then_some((0, num_rows)).into_iter().collect() }
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.iter().map(|(start, end)| end - start).sum()
    }

    /// Takes `len` rows from the smallest free range that holds them.
    pub(crate) fn allocate(&mut self, len: usize) -> Option<Range<usize>> {
        let fitting = self.free.iter().filter(|(start, end)| *end - *start >= len);
        let (&start, &end) = fitting.min_by_key(|(start, end)| *end - *start)?;
        self.free.remove(&start);
        if start + len < end {
            self.free.insert(start + len, end);
        }
        Some(start..start + len)
    }

    /// Gives `rows` back.
    pub(crate) fn free(&mut self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let Range { mut start, mut end } = rows;
        if let Some((&before, _)) = self.free.range(..start).next_back().filter(|(_, end)| **end == start) {
            self.free.remove(&before);
            start = before;
        }
        if let Some(after) = self.free.remove(&end) {
            end = after;
        }
        self.free.insert(start, end);
    }

    /// The most contiguous rows there are when everything but `taken` is given back.
    pub(crate) fn largest_gap_between(&self, mut taken: Vec<Range<usize>>) -> usize {
        taken.sort_unstable_by_key(|rows| rows.start);
        let (mut largest, mut end) = (0, 0);
        for rows in taken {
            largest = largest.max(rows.start.saturating_sub(end));
            end = rows.end;
        }
        largest.max(self.num_rows - end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_that_are_free_are_one_range() {
        let mut arena = Arena::new(10);
        let rows: Vec<_> = [3, 3, 4].map(|len| arena.allocate(len).unwrap()).into();
        assert_eq!(rows, [0..3, 3..6, 6..10]);
        assert!(arena.allocate(1).is_none());
        arena.free(rows[0].clone());
        arena.free(rows[2].clone());
        assert_eq!(arena.num_free(), 7);
        assert!(arena.allocate(5).is_none(), "7 rows, but not in one piece");
        assert_eq!(arena.allocate(2), Some(0..2), "the smallest range that fits");
        arena.free(0..2);
        arena.free(rows[1].clone());
        assert_eq!(arena.allocate(10), Some(0..10));
    }

    #[test]
    fn gaps_are_counted_at_both_ends_and_between() {
        let arena = Arena::new(10);
        assert_eq!(arena.largest_gap_between(Vec::new()), 10);
        assert_eq!(arena.largest_gap_between(vec![6..8, 1..2]), 4);
        assert_eq!(arena.largest_gap_between(vec![0..3, 4..6]), 4);
        assert_eq!(arena.largest_gap_between(vec![0..5, 5..10]), 0);
    }

    proptest! {
        #[test]
        fn no_row_is_lost_or_given_twice(steps in proptest::collection::vec((proptest::bool::ANY, 1_usize..9), 1..60)) {
            let mut arena = Arena::new(20);
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (gives_back, number) in steps {
                if gives_back && !taken.is_empty() {
                    arena.free(taken.swap_remove(number % taken.len()));
                } else {
                    let gap = arena.largest_gap_between(taken.clone());
                    let rows = arena.allocate(number);
                    prop_assert_eq!(rows.is_some(), gap >= number);
                    taken.extend(rows);
                }
                let mut owners = [0; 20];
                taken.iter().cloned().flatten().for_each(|row| owners[row] += 1);
                prop_assert!(owners.iter().all(|&n| n <= 1));
                prop_assert_eq!(arena.num_free(), owners.iter().filter(|n| **n == 0).count());
            }
        }
    }
}
