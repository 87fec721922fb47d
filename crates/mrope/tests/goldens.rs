//! Positions and deltas that HF transformers 5.17 gave for seven models: random mixes of text, images and videos, and
//! whole prompts.

#[path = "common/naive.rs"]
mod naive;

use std::path::PathBuf;

use foveal_mrope::{GridThw, PositionRule, Span, TemporalRule, position_ids};
use serde::Deserialize;

/// `tokens_per_second` of the qwen2_5_vl reference, as in its config.json.
const TOKENS_PER_SECOND: u32 = 4;
const IMAGE_TOKEN_ID: u32 = 1010;
const FAMILIES: [(&str, TemporalRule); 7] = [
    ("tiny", TemporalRule::FramesBetweenTimestamps),
    ("qwen3_vl_tied", TemporalRule::FramesBetweenTimestamps),
    ("qwen3_vl_moe", TemporalRule::FramesBetweenTimestamps),
    ("qwen3_5", TemporalRule::FramesBetweenTimestamps),
    ("qwen3_5_moe", TemporalRule::FramesBetweenTimestamps),
    ("qwen2_5_vl", TemporalRule::Seconds { tokens_per_second: TOKENS_PER_SECOND }),
    ("qwen2_vl", TemporalRule::FrameIndex),
];

#[derive(Deserialize)]
struct RopeCase {
    /// 0 text, 1 image, 2 video.
    token_types: Vec<u8>,
    image_grid_thw: Vec<[u32; 3]>,
    video_grid_thw: Vec<[u32; 3]>,
    second_per_grid_ts: Vec<f32>,
    positions: [Vec<i32>; 3],
    delta: i32,
}

#[derive(Deserialize)]
struct PromptCase {
    name: String,
    prompt_ids: Vec<u32>,
    image_grid_thw: Vec<[u32; 3]>,
    mrope_positions: [Vec<i32>; 3],
    mrope_delta: i32,
}

/// The cases of one file, or nothing where the crate stands alone.
fn read<T: for<'de> Deserialize<'de>>(family: &str, file: &str) -> Vec<T> {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "fixtures", "goldens", family, file].iter().collect();
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is not here", path.display());
        return Vec::new();
    };
    let cases: Vec<T> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty(), "{} holds no case", path.display());
    cases
}

/// One span per run of equal token types, with the next grid of its kind, as the reference groups them.
fn spans(
    token_types: &[u8],
    images: impl IntoIterator<Item = GridThw>,
    videos: impl IntoIterator<Item = (GridThw, f32)>,
) -> Vec<Span> {
    let (mut images, mut videos) = (images.into_iter(), videos.into_iter());
    let spans = token_types
        .chunk_by(|a, b| a == b)
        .map(|run| match run[0] {
            0 => Span::Text { len: run.len() },
            1 => Span::Image { grid: images.next().unwrap() },
            _ => {
                let (grid, second_per_grid) = videos.next().unwrap();
                Span::Video { grid, second_per_grid }
            }
        })
        .collect();
    assert!(images.next().is_none() && videos.next().is_none(), "grids left over");
    spans
}

#[track_caller]
fn check(case: &str, spans: &[Span], rule: &PositionRule, expected: &[Vec<i32>; 3], expected_delta: i32) {
    let positions = position_ids(spans, rule).unwrap();
    let (naive_positions, naive_delta) = naive::position_ids(spans, rule);
    for (axis, expected) in expected.iter().enumerate() {
        assert_eq!(positions.axis(axis), expected, "{case}, axis {axis}");
        // The loop that the property tests trust is held to the same.
        assert_eq!(&naive::axis(&naive_positions, axis), expected, "{case}, axis {axis}, naive loop");
    }
    assert_eq!((positions.delta(), naive_delta), (expected_delta, expected_delta), "{case}");
}

#[test]
fn random_mixes_with_videos() {
    for (family, temporal) in FAMILIES {
        let rule = PositionRule { spatial_merge_size: 2, temporal };
        for (index, case) in read::<RopeCase>(family, "rope_cases.json").iter().enumerate() {
            let seconds = case.second_per_grid_ts.iter().copied().chain(std::iter::repeat(1.0));
            let videos = case.video_grid_thw.iter().map(|&grid| GridThw::from(grid)).zip(seconds);
            let videos: Vec<_> = if temporal == TemporalRule::FramesBetweenTimestamps {
                videos.flat_map(|(grid, seconds)| (0..grid.t).map(move |_| (grid.frame(), seconds))).collect()
            } else {
                videos.collect()
            };
            let images = case.image_grid_thw.iter().map(|&grid| GridThw::from(grid));
            let spans = spans(&case.token_types, images, videos);
            check(&format!("{family} {index}"), &spans, &rule, &case.positions, case.delta);
        }
    }
}

#[test]
fn whole_prompts() {
    for (family, temporal) in FAMILIES {
        let rule = PositionRule { spatial_merge_size: 2, temporal };
        for case in read::<PromptCase>(family, "cases.json") {
            let token_types: Vec<u8> = case.prompt_ids.iter().map(|&id| u8::from(id == IMAGE_TOKEN_ID)).collect();
            let spans = spans(&token_types, case.image_grid_thw.iter().map(|&grid| GridThw::from(grid)), []);
            check(&format!("{family} {}", case.name), &spans, &rule, &case.mrope_positions, case.mrope_delta);
        }
    }
}
