//! What the tower is given and where its result goes.

use foveal_checkpoint::VisionConfig;
use foveal_device::{DType, ViewMut};
use foveal_mrope::GridThw;

use crate::VisionError;

/// One picture or video of a batch.
#[derive(Clone, Copy, Debug)]
pub struct VisionInput<'a> {
    /// Patches along time, height and width; height and width are multiples of the merge size.
    pub grid: GridThw,
    /// Its patches, in the processor's order: frame by frame, in each frame merge cell by merge cell in raster order,
    /// in each cell row by row (HF's `pixel_values`).
    pub patches: Patches<'a>,
}

/// The patches of one picture or video. `C` channels, `T` temporal slices of a patch, `P x P` pixels.
#[derive(Clone, Copy)]
pub enum Patches<'a> {
    /// A still picture: one temporal copy as uint8, `[h * w, C * P * P]`. The usual form: half of [`Patches::Video`]'s
    /// bytes and half of its patch convolution.
    Still(&'a [u8]),
    /// All temporal slices as uint8, `[t * h * w, C * T * P * P]`: a video, or a picture that was doubled already.
    Video(&'a [u8]),
    /// Normalised float32 rows, `[t * h * w, C * T * P * P]`: HF's `pixel_values` as they are.
    Rows(&'a [f32]),
}

/// Which of the two patch convolutions takes the patches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slices {
    /// The one over one temporal copy, for stills.
    One,
    /// The one over all temporal slices.
    All,
}

impl Slices {
    /// Values of one patch.
    pub(crate) fn row_len(self, config: &VisionConfig) -> usize {
        match self {
            Self::One => config.patch_len() / config.temporal_patch_size,
            Self::All => config.patch_len(),
        }
    }
}

impl Patches<'_> {
    pub(crate) fn slices(&self) -> Slices {
        match self {
            Self::Still(_) => Slices::One,
            Self::Video(_) | Self::Rows(_) => Slices::All,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Still(bytes) | Self::Video(bytes) => bytes.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    fn layout(&self) -> &'static str {
        match self {
            Self::Still(_) => "uint8 [h * w, C * P * P], a still picture",
            Self::Video(_) => "uint8 [t * h * w, C * T * P * P]",
            Self::Rows(_) => "float32 [t * h * w, C * T * P * P]",
        }
    }
}

impl std::fmt::Debug for Patches<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values of {}", self.len(), self.layout())
    }
}

/// Where the tower writes: rows of one token each, the batch's pictures one after the other.
#[derive(Debug)]
pub struct VisionOutput<'a> {
    /// `[num_tokens, out_hidden_size]` of the device's activation type: what stands in the place of the placeholders' embeddings.
    pub embeds: ViewMut<'a>,
    /// One like it per deepstack level, the first decoder layer's first; empty for towers
    /// without.
    pub deepstack: Vec<ViewMut<'a>>,
}

impl VisionInput<'_> {
    /// Patches of the input, if it is one that the tower can take.
    fn num_patches(&self, index: usize, config: &VisionConfig) -> Result<usize, VisionError> {
        let bad = |reason: String| Err(VisionError::Grid { index, grid: self.grid, reason });
        check_grid(index, self.grid, config)?;
        if self.grid.t != 1 && self.patches.slices() == Slices::One {
            return bad("a still picture has t 1; give all slices of a video".to_owned());
        }
        let num_patches = self.grid.num_patches();
        let Some(expected) = num_patches.checked_mul(self.patches.slices().row_len(config)) else {
            return bad("its patches can't be counted".to_owned());
        };
        let got = self.patches.len();
        if got != expected {
            return Err(VisionError::PatchLen { index, layout: self.patches.layout(), expected, got });
        }
        Ok(num_patches)
    }
}

fn check_grid(index: usize, grid: GridThw, config: &VisionConfig) -> Result<(), VisionError> {
    let merged = grid.merged(config.spatial_merge_size as u32);
    merged.map(|_| ()).map_err(|error| VisionError::Grid { index, grid, reason: error.to_string() })
}

/// Checks the grids of a batch, whose patches come from elsewhere or not at all.
///
/// # Errors
/// [`VisionError::EmptyBatch`], [`VisionError::Grid`] or [`VisionError::TooManyPatches`].
pub(crate) fn check_grids(grids: &[GridThw], config: &VisionConfig, max: usize) -> Result<(), VisionError> {
    if grids.is_empty() {
        return Err(VisionError::EmptyBatch);
    }
    grids.iter().enumerate().try_for_each(|(index, &grid)| check_grid(index, grid, config))?;
    let got = grids.iter().fold(0_usize, |total, grid| total.saturating_add(grid.num_patches()));
    if got > max { Err(VisionError::TooManyPatches { got, max }) } else { Ok(()) }
}

/// Checks every input and counts the patches of the batch.
///
/// # Errors
/// [`VisionError::EmptyBatch`], [`VisionError::Grid`], [`VisionError::PatchLen`] or [`VisionError::TooManyPatches`].
pub(crate) fn check_batch(inputs: &[VisionInput], config: &VisionConfig, max: usize) -> Result<usize, VisionError> {
    if inputs.is_empty() {
        return Err(VisionError::EmptyBatch);
    }
    let mut total = 0_usize;
    for (index, input) in inputs.iter().enumerate() {
        total = total.saturating_add(input.num_patches(index, config)?);
    }
    if total > max { Err(VisionError::TooManyPatches { got: total, max }) } else { Ok(total) }
}

impl VisionOutput<'_> {
    /// Checks the memory for the result.
    pub(crate) fn check(
        &self,
        dtype: DType,
        [num_tokens, out_hidden_size]: [usize; 2],
        levels: usize,
    ) -> Result<(), VisionError> {
        if self.deepstack.len() != levels {
            return Err(VisionError::DeepstackLevels { expected: levels, got: self.deepstack.len() });
        }
        let named = self.deepstack.iter().enumerate().map(|(level, view)| (Some(level), view));
        for (level, view) in named.chain([(None, &self.embeds)]) {
            let output = || level.map_or("embeds".to_owned(), |level| format!("deepstack[{level}]"));
            if view.dtype() != dtype {
                return Err(VisionError::OutputDType { output: output(), got: view.dtype(), expected: dtype });
            }
            if *view.shape() != [num_tokens, out_hidden_size] {
                let output = output();
                return Err(VisionError::OutputShape { output, got: *view.shape(), num_tokens, out_hidden_size });
            }
        }
        Ok(())
    }
}
