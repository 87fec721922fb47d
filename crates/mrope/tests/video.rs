//! Timestamps and seconds per grid against the reference's formulas.

use foveal_mrope::{MropeError, VideoMeta};
use proptest::prelude::*;

/// `_calculate_timestamps`: pad the indices with the last one to whole patches, divide, average first and last.
fn reference_timestamps(indices: &[u32], fps: f64, merge_size: usize) -> Vec<f64> {
    let mut indices = indices.to_vec();
    while !indices.len().is_multiple_of(merge_size) {
        indices.push(indices[indices.len() - 1]);
    }
    let timestamps: Vec<f64> = indices.iter().map(|&index| f64::from(index) / fps).collect();
    let mut patches = Vec::new();
    let mut i = 0;
    while i < timestamps.len() {
        patches.push((timestamps[i] + timestamps[i + merge_size - 1]) / 2.0);
        i += merge_size;
    }
    patches
}

proptest! {
    #[test]
    fn follow_the_reference(
        frame_indices in prop::collection::vec(0_u32..100_000, 1..20),
        source_fps in 0.1_f64..120.0,
        total_num_frames in 1_u32..100_000,
        temporal_patch_size in 1_usize..4,
    ) {
        let video = VideoMeta { source_fps, total_num_frames, frame_indices: frame_indices.clone() };
        let expected = reference_timestamps(&frame_indices, source_fps, temporal_patch_size);
        prop_assert_eq!(video.timestamps(temporal_patch_size).unwrap(), expected);
        // The mean time between two patches: their number of frames over the frames kept per second of the file.
        let seconds = f64::from(total_num_frames) / source_fps;
        let expected = temporal_patch_size as f64 * seconds / frame_indices.len() as f64;
        let got = f64::from(video.second_per_grid(temporal_patch_size).unwrap());
        prop_assert!((got - expected).abs() <= 1e-6 * expected);
    }
}

/// Two frames per second out of 30: one second per patch, exactly, or the truncation would make it none.
#[test]
fn whole_seconds_stay_whole() {
    let frame_indices: Vec<u32> = (0..20).map(|frame| frame * 15).collect();
    for source_fps in [24.0, 25.0, 29.97, 30.0, 60.0] {
        let total_num_frames = 300;
        let video = VideoMeta { source_fps, total_num_frames, frame_indices: frame_indices.clone() };
        let seconds = 300.0 / source_fps; // of the file, of which 10 patches were taken
        assert!((f64::from(video.second_per_grid(2).unwrap()) - seconds / 10.0).abs() < 1e-6);
    }
    let video = VideoMeta { source_fps: 30.0, total_num_frames: 300, frame_indices };
    assert_eq!(video.second_per_grid(2), Ok(1.0));
}

#[test]
fn what_has_no_time_is_refused() {
    let video = VideoMeta { source_fps: 30.0, total_num_frames: 10, frame_indices: vec![0, 5] };
    let refused = |video: &VideoMeta, temporal_patch_size| match video.second_per_grid(temporal_patch_size) {
        Err(MropeError::InvalidVideoMeta { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    for source_fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let video = VideoMeta { source_fps, ..video.clone() };
        assert_eq!(refused(&video, 2), "source_fps");
        assert!(video.timestamps(2).is_err());
    }
    assert_eq!(refused(&VideoMeta { frame_indices: vec![], ..video.clone() }, 2), "num_frames");
    assert_eq!(refused(&VideoMeta { total_num_frames: 0, ..video.clone() }, 2), "total_num_frames");
    assert_eq!(refused(&video, 0), "temporal_patch_size");
}
