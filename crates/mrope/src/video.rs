//! When a video's frames are shown.

use crate::MropeError;

/// Where the sampled frames of a video lie in time: the one source of timestamps and of the temporal step.
///
/// Source: `VideoMetadata` in `video_utils.py`, `_calculate_timestamps` in `processing_qwen3_vl.py`, `second_per_grid_ts`
/// in `processing_qwen2_5_vl.py`, HF transformers 5.17.
///
/// ```
/// use foveal_mrope::VideoMeta;
///
/// // Ten seconds at 30 frames per second, of which four frames were taken.
/// let video = VideoMeta { source_fps: 30.0, total_num_frames: 300, frame_indices: vec![0, 60, 120, 180] };
/// assert_eq!(video.timestamps(2)?, [1.0, 5.0]);
/// assert_eq!(video.second_per_grid(2)?, 5.0);
/// # Ok::<(), foveal_mrope::MropeError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct VideoMeta {
    /// Frames per second of the source file, not of the sampling.
    pub source_fps: f64,
    /// Frames of the source file.
    pub total_num_frames: u32,
    /// Which of them were taken, in order.
    pub frame_indices: Vec<u32>,
}

impl VideoMeta {
    /// The second at which each temporal patch is shown, `[t]`: the middle between its first and its last frame. For the
    /// timestamps in a Qwen3-VL or Qwen3.5 prompt (`<1.5 seconds>`, one decimal). A last patch that lacks frames repeats
    /// the last one.
    ///
    /// # Errors
    /// [`MropeError::InvalidVideoMeta`] without frames, with a rate that is not positive, or a zero
    /// `temporal_patch_size`.
    pub fn timestamps(&self, temporal_patch_size: usize) -> Result<Vec<f64>, MropeError> {
        self.check(temporal_patch_size)?;
        let seconds = |index: u32| f64::from(index) / self.source_fps;
        let patches = self.frame_indices.chunks(temporal_patch_size);
        Ok(patches
            .filter_map(|patch| {
                let (first, last) = (*patch.first()?, *patch.last()?);
                Some((seconds(first) + seconds(last)) / 2.0)
            })
            .collect())
    }

    /// Seconds between two temporal patches, from the mean rate of the sampling: what [`crate::Span::Video`] takes.
    ///
    /// # Errors
    /// [`MropeError::InvalidVideoMeta`] as for [`VideoMeta::timestamps`], or where `total_num_frames` is 0.
    pub fn second_per_grid(&self, temporal_patch_size: usize) -> Result<f32, MropeError> {
        self.check(temporal_patch_size)?;
        if self.total_num_frames == 0 {
            let (what, expected) = ("total_num_frames", "it must be at least 1");
            return Err(MropeError::InvalidVideoMeta { what, got: 0.0, expected });
        }
        // This order of operations, then f32: the result is truncated to whole seconds later, so the last bit counts.
        let sampled_fps = self.frame_indices.len() as f64 / f64::from(self.total_num_frames) * self.source_fps;
        Ok((temporal_patch_size as f64 / sampled_fps) as f32)
    }

    fn check(&self, temporal_patch_size: usize) -> Result<(), MropeError> {
        let invalid = |what, got, expected| Err(MropeError::InvalidVideoMeta { what, got, expected });
        if !self.source_fps.is_finite() || self.source_fps <= 0.0 {
            return invalid("source_fps", self.source_fps, "it must be finite and above 0");
        }
        if self.frame_indices.is_empty() {
            return invalid("num_frames", 0.0, "at least one frame must be taken");
        }
        if temporal_patch_size == 0 {
            return invalid("temporal_patch_size", 0.0, "it must be at least 1");
        }
        Ok(())
    }
}
