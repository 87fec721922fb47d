//! The decoder's cos/sin table.

use super::table::AngleTable;
use crate::MropeError;

/// Cosines and sines of the decoder by position, f32 `[max_positions, rotary_dim / 2]`, row-major.
///
/// Row `p`, column `i` is the angle `p / rope_theta^(2i / rotary_dim)`. A token takes column `i` from the row of its
/// position along the axis that [`crate::MropeSections::axis_of_pair`] names for pair `i`. Size it by the model length in
/// use: it takes `4 * rotary_dim` bytes per position, and [`TextRopeTable::grow`] adds rows later.
///
/// Computed as HF does, in f32: frequencies, then angles, then cos and sin. Source: `compute_default_rope_parameters` and
/// `forward` of the text rotary embeddings in HF transformers 5.17 (`modeling_qwen2_vl.py` and its successors).
///
/// ```
/// use foveal_mrope::TextRopeTable;
///
/// let table = TextRopeTable::new(1e6, 128, 32)?;
/// assert_eq!(table.cos().len(), 32 * 64);
/// let (cos, sin) = table.row(0).unwrap();
/// assert!(cos.iter().all(|&x| x == 1.0) && sin.iter().all(|&x| x == 0.0));
/// # Ok::<(), foveal_mrope::MropeError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TextRopeTable {
    table: AngleTable,
}

impl TextRopeTable {
    /// A table of `max_positions` rows. `rotary_dim` is [`crate::MropeSections::rotary_dim`].
    ///
    /// # Errors
    /// [`MropeError::InvalidRopeTheta`], [`MropeError::InvalidRotaryDim`] for an odd or zero dimension,
    /// [`MropeError::OutOfMemory`].
    pub fn new(rope_theta: f64, rotary_dim: usize, max_positions: usize) -> Result<Self, MropeError> {
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(MropeError::InvalidRotaryDim { rotary_dim, head_dim: rotary_dim });
        }
        Ok(Self { table: AngleTable::new(rope_theta, rotary_dim, max_positions)? })
    }

    /// Adds rows up to `max_positions`. The rows that are there keep their values; fewer rows than now change nothing.
    ///
    /// # Errors
    /// [`MropeError::OutOfMemory`]; the table is then as before.
    pub fn grow(&mut self, max_positions: usize) -> Result<(), MropeError> {
        self.table.grow(max_positions)
    }

    /// Rows: positions `0..max_positions` are covered.
    pub fn max_positions(&self) -> usize {
        self.table.num_rows()
    }

    /// Columns: `rotary_dim / 2`.
    pub fn num_pairs(&self) -> usize {
        self.table.inv_freq().len()
    }

    /// The frequencies, f32 `[rotary_dim / 2]`.
    pub fn inv_freq(&self) -> &[f32] {
        self.table.inv_freq()
    }

    /// Cosines, f32 `[max_positions, rotary_dim / 2]`.
    pub fn cos(&self) -> &[f32] {
        self.table.cos()
    }

    /// Sines, f32 `[max_positions, rotary_dim / 2]`.
    pub fn sin(&self) -> &[f32] {
        self.table.sin()
    }

    /// Cosines and sines of one position, each f32 `[rotary_dim / 2]`; `None` beyond the table.
    pub fn row(&self, position: usize) -> Option<(&[f32], &[f32])> {
        self.table.row(position)
    }
}
