//! How far one distribution over the vocabulary is from another.

use std::fmt;

use rayon::prelude::*;

/// The most that is kept of the reference's logits, on the host.
pub const MAX_KEPT_BYTES: usize = 4 << 30;

/// How one row of logits differs from the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowDivergence {
    /// `KL(reference || candidate)` over the whole vocabulary. Not a number if either's logits hold one that isn't.
    pub nats: f64,
    /// Whether both prefer the same token.
    pub same_best: bool,
}

/// Many rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSummary {
    /// Rows.
    pub num_rows: usize,
    /// Nats of a row on average.
    pub mean: f64,
    /// What half of the rows don't exceed.
    pub p50: f64,
    /// What 99 of 100 rows don't exceed.
    pub p99: f64,
    /// The worst row's.
    pub max: f64,
    /// Rows in which both prefer the same token.
    pub num_same_best: usize,
}

/// The reference's logits until the candidate's come, as far as there is room.
#[derive(Default)]
pub(super) struct KeptLogits {
    blocks: Vec<Vec<f32>>,
    len_bytes: usize,
    is_full: bool,
}

impl KeptLogits {
    /// Keeps a block, unless it or one before it had no room.
    pub(super) fn push(&mut self, logits: &[f32]) {
        self.len_bytes += size_of_val(logits);
        self.is_full |= self.len_bytes > MAX_KEPT_BYTES;
        if !self.is_full {
            self.blocks.push(logits.to_vec());
        }
    }

    /// The `i`th block.
    pub(super) fn get(&self, i: usize) -> Option<&[f32]> {
        self.blocks.get(i).map(Vec::as_slice)
    }
}

/// Row by row.
pub(super) fn divergences(reference: &[f32], candidate: &[f32], vocab_size: usize) -> Vec<RowDivergence> {
    reference.par_chunks(vocab_size).zip(candidate.par_chunks(vocab_size)).map(|(p, q)| divergence(p, q)).collect()
}

fn divergence(reference: &[f32], candidate: &[f32]) -> RowDivergence {
    let (p_norm, q_norm) = (log_sum_exp(reference), log_sum_exp(candidate));
    let sum: f64 = reference
        .iter()
        .zip(candidate)
        .map(|(&p, &q)| {
            let (p, q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
            let share = p.exp();
            // A token that the reference never says counts nothing, whatever the candidate gives it.
            if share == 0.0 { 0.0 } else { share * (p - q) }
        })
        .sum();
    // Equal to the last digit of float64, the sum can fall below.
    let nats = if sum < 0.0 { 0.0 } else { sum };
    RowDivergence { nats, same_best: best(reference) == best(candidate) }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// Where the first of the largest values stands.
pub(super) fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = i;
        }
    }
    best
}

impl DivergenceSummary {
    /// Of any number of rows; `None` of none.
    #[must_use]
    pub fn of(rows: impl IntoIterator<Item = RowDivergence>) -> Option<Self> {
        let (mut nats, mut num_same_best) = (Vec::new(), 0);
        for row in rows {
            nats.push(row.nats);
            num_same_best += usize::from(row.same_best);
        }
        // What is no number comes last: it shows as the worst.
        nats.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
        let num_rows = nats.len();
        let not_exceeded = |percent: usize| nats.get((num_rows * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self {
            num_rows,
            mean: nats.iter().sum::<f64>() / num_rows as f64,
            p50: not_exceeded(50)?,
            p99: not_exceeded(99)?,
            max: not_exceeded(100)?,
            num_same_best,
        })
    }
}

impl fmt::Display for DivergenceSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { num_rows, mean, p50, p99, max, num_same_best } = self;
        let share = 100.0 * *num_same_best as f64 / *num_rows as f64;
        write!(
            f,
            "KL(reference || candidate) of {num_rows} tokens, in nats: mean {mean:.3e}, p50 {p50:.3e}, p99 {p99:.3e}, \
             max {max:.3e}; likeliest token equal at {num_same_best} ({share:.2} %)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{DivergenceSummary, RowDivergence, divergence};

    #[test]
    fn equal_rows_are_exactly_0_apart() {
        let row = [0.3, -2.0, 7.5, f32::NEG_INFINITY];
        assert_eq!(divergence(&row, &row), RowDivergence { nats: 0.0, same_best: true });
    }

    /// Of (1/2, 1/2) and (1/4, 3/4): half of ln 2, and half of ln 2/3.
    #[test]
    fn a_row_by_hand() {
        let got = divergence(&[5.0, 5.0], &[1.0, 1.0 + 3_f32.ln()]);
        assert!((got.nats - 0.5 * (4.0_f64 / 3.0).ln()).abs() < 1e-7, "{got:?}");
        assert!(!got.same_best);
        assert!(divergence(&[1.0, 2.0], &[f32::NAN, 2.0]).nats.is_nan());
    }

    #[test]
    fn a_summary_by_hand() {
        let row = |i: u32| RowDivergence { nats: f64::from(i), same_best: i.is_multiple_of(2) };
        let got = DivergenceSummary::of((1..=200).rev().map(row)).unwrap();
        let expected =
            DivergenceSummary { num_rows: 200, mean: 100.5, p50: 100.0, p99: 198.0, max: 200.0, num_same_best: 100 };
        assert_eq!(got, expected);
        assert_eq!(DivergenceSummary::of([]), None);
        // What is no number is the worst, whatever its sign.
        for nan in [f64::NAN, -f64::NAN] {
            let rows = [nan, 1.0].map(|nats| RowDivergence { nats, same_best: true });
            assert!(DivergenceSummary::of(rows).is_some_and(|summary| summary.max.is_nan() && summary.p50 == 1.0));
        }
    }
}
