//! Which axis turns which frequency pair.

use crate::MropeError;

/// How the frequency pairs of a head are dealt out to time, height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionLayout {
    /// First all pairs of t, then all of h, then all of w (Qwen2-VL, Qwen2.5-VL).
    Blocked,
    /// t, h, w, t, h, w, ... until h and w have theirs; the rest is t (Qwen3-VL, Qwen3.5).
    Interleaved,
}

impl SectionLayout {
    /// The layout that `mrope_interleaved` in a config's `rope_parameters` or `rope_scaling` asks for; a config without
    /// it (Qwen2-VL, Qwen2.5-VL) means `false`.
    pub fn from_mrope_interleaved(mrope_interleaved: bool) -> Self {
        if mrope_interleaved { Self::Interleaved } else { Self::Blocked }
    }
}

/// Which of time, height and width turns each frequency pair of an attention head.
///
/// Pair `i` is elements `i` and `i + rotary_dim / 2` of a head (rotate-half); elements from `rotary_dim` on are not turned.
///
/// ```
/// use foveal_mrope::{MropeSections, SectionLayout};
///
/// // Qwen3.5: a quarter of each head is turned.
/// let sections = MropeSections::new([11, 11, 10], SectionLayout::Interleaved, 256, 0.25)?;
/// assert_eq!(sections.rotary_dim(), 64);
/// assert_eq!(sections.axis_of_pair()[..7], [0, 1, 2, 0, 1, 2, 0]);
/// # Ok::<(), foveal_mrope::MropeError>(())
/// ```
///
/// Source: `recomposition_frequencies` and `compute_default_rope_parameters` of HF transformers 5.17,
/// `modeling_qwen2_vl.py` (blocked), `modeling_qwen3_vl.py` (interleaved), `modeling_qwen3_5.py` (partial rotary).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MropeSections {
    mrope_section: [usize; 3],
    layout: SectionLayout,
    head_dim: usize,
    rotary_dim: usize,
    axis_of_pair: Vec<u8>,
}

impl MropeSections {
    /// The layout of a model's config. `partial_rotary_factor` is the share of `head_dim` that is turned, 1 where the
    /// config has none.
    ///
    /// # Errors
    /// [`MropeError::InvalidPartialRotaryFactor`], [`MropeError::InvalidRotaryDim`], [`MropeError::SectionSum`] where the
    /// sections are not all pairs, [`MropeError::SectionNotInterleavable`] where h or w has more than every third pair.
    pub fn new(
        mrope_section: [usize; 3],
        layout: SectionLayout,
        head_dim: usize,
        partial_rotary_factor: f32,
    ) -> Result<Self, MropeError> {
        let rotary_dim = rotary_dim(head_dim, partial_rotary_factor)?;
        let num_pairs = rotary_dim / 2;
        let sum = mrope_section.iter().fold(0_usize, |sum, &pairs| sum.saturating_add(pairs));
        if sum != num_pairs {
            return Err(MropeError::SectionSum { mrope_section, sum, num_pairs });
        }
        let axis_of_pair = match layout {
            SectionLayout::Blocked => blocked(mrope_section),
            SectionLayout::Interleaved => interleaved(mrope_section, num_pairs)?,
        };
        Ok(Self { mrope_section, layout, head_dim, rotary_dim, axis_of_pair })
    }

    /// Pairs for t, h and w, as in the config.
    pub fn mrope_section(&self) -> [usize; 3] {
        self.mrope_section
    }

    /// How they are dealt out.
    pub fn layout(&self) -> SectionLayout {
        self.layout
    }

    /// Elements of one attention head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// How many leading elements of a head are turned.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Frequency pairs: `rotary_dim / 2`.
    pub fn num_pairs(&self) -> usize {
        self.axis_of_pair.len()
    }

    /// The axis that turns each pair, `[num_pairs]`: 0 time, 1 height, 2 width.
    pub fn axis_of_pair(&self) -> &[u8] {
        &self.axis_of_pair
    }
}

fn rotary_dim(head_dim: usize, partial_rotary_factor: f32) -> Result<usize, MropeError> {
    if !(partial_rotary_factor > 0.0 && partial_rotary_factor <= 1.0) {
        return Err(MropeError::InvalidPartialRotaryFactor { partial_rotary_factor });
    }
    // In f32, where a factor such as 0.7 of 10 rounds to 7 as it does in Python's doubles; widened it would give 6.99...
    let rotary_dim = (head_dim as f32 * partial_rotary_factor) as usize;
    if rotary_dim < 2 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        return Err(MropeError::InvalidRotaryDim { rotary_dim, head_dim });
    }
    Ok(rotary_dim)
}

fn blocked(mrope_section: [usize; 3]) -> Vec<u8> {
    (0_u8..).zip(mrope_section).flat_map(|(axis, pairs)| std::iter::repeat_n(axis, pairs)).collect()
}

fn interleaved(mrope_section: [usize; 3], num_pairs: usize) -> Result<Vec<u8>, MropeError> {
    let [_, pairs_h, pairs_w] = mrope_section;
    // HF clips what lies beyond the last pair without a word; such sections mean some other layout.
    let (room_h, room_w) = ((num_pairs + 1) / 3, num_pairs / 3);
    if pairs_h > room_h || pairs_w > room_w {
        return Err(MropeError::SectionNotInterleavable { mrope_section, num_pairs, room_h, room_w });
    }
    let mut axis_of_pair = vec![0; num_pairs];
    for (axis, pairs) in [(1_u8, pairs_h), (2, pairs_w)] {
        axis_of_pair.iter_mut().skip(usize::from(axis)).step_by(3).take(pairs).for_each(|slot| *slot = axis);
    }
    Ok(axis_of_pair)
}
