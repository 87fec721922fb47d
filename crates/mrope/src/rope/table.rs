//! Cosines and sines by position and frequency, as both kinds of table need them.

use crate::MropeError;
use crate::error::reserve;

/// `cos` and `sin` of `row * inv_freq[column]`, f32 `[num_rows, inv_freq.len()]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AngleTable {
    inv_freq: Vec<f32>,
    num_rows: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AngleTable {
    /// Frequencies `1 / theta^(2i / dim)` for `i` in `0..dim / 2`; `dim` is even and not 0.
    pub(super) fn new(theta: f64, dim: usize, num_rows: usize) -> Result<Self, MropeError> {
        if !theta.is_finite() || theta <= 0.0 {
            return Err(MropeError::InvalidRopeTheta { rope_theta: theta });
        }
        let mut table = Self { inv_freq: inv_freq(theta, dim)?, num_rows: 0, cos: Vec::new(), sin: Vec::new() };
        table.grow(num_rows)?;
        Ok(table)
    }

    /// Adds the rows up to `num_rows`; rows that are there stay.
    pub(super) fn grow(&mut self, num_rows: usize) -> Result<(), MropeError> {
        if num_rows <= self.num_rows {
            return Ok(());
        }
        let added = (num_rows - self.num_rows).saturating_mul(self.inv_freq.len());
        reserve(&mut self.cos, added, "a cos table")?;
        reserve(&mut self.sin, added, "a sin table")?;
        for row in self.num_rows..num_rows {
            // All in f32, as the reference: the rounding of the angle is part of what a checkpoint was trained with.
            let position = row as f32;
            for &inv_freq in &self.inv_freq {
                let (sin, cos) = (position * inv_freq).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
        self.num_rows = num_rows;
        Ok(())
    }

    pub(super) fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub(super) fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    pub(super) fn cos(&self) -> &[f32] {
        &self.cos
    }

    pub(super) fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// One row of cosines and of sines.
    pub(super) fn row(&self, row: usize) -> Option<(&[f32], &[f32])> {
        let width = self.inv_freq.len();
        let start = row.checked_mul(width)?;
        let range = start..start.checked_add(width)?;
        Some((self.cos.get(range.clone())?, self.sin.get(range)?))
    }
}

/// f32 `[dim / 2]`. The exponent is rounded to f32 as in the reference; the power is taken in f64 and rounded once, which
/// gives the same bits on every machine and, but for rare ties, those of torch's f32 power.
fn inv_freq(theta: f64, dim: usize) -> Result<Vec<f32>, MropeError> {
    let mut frequencies = Vec::new();
    reserve(&mut frequencies, dim / 2, "rotary frequencies")?;
    frequencies.extend((0..dim / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / dim as f32;
        1.0 / (theta.powf(f64::from(exponent)) as f32)
    }));
    Ok(frequencies)
}
