//! A video against what it is made of, on any device.

use foveal_mrope::VideoMeta;
use foveal_processor::{ContentPart, ImageInput, VideoFrames};
use foveal_testkit::max_abs_relative_to_max;
use foveal_types::PreparedRequest;

use crate::compare::floats;
use crate::pipeline::Pipeline;
use crate::support::{Reference, answer};

/// How near two ways to compute the same must come on a device.
pub(crate) struct Limits {
    /// Of features, relative to the largest.
    pub(crate) feature: f64,
    /// Of log-probabilities, and of the logits of a step's chosen token and its best.
    pub(crate) logit: f32,
}

/// A family's video: its ranges of placeholders, and how far apart its temporal patches stand.
pub(crate) struct Video {
    pub(crate) family: &'static str,
    num_ranges: usize,
    step: i32,
}

/// Between timestamps, one range for each temporal patch.
pub(crate) const BETWEEN_TIMESTAMPS: Video = Video { family: "tiny", num_ranges: 2, step: 1 };
/// In whole seconds, four positions each.
pub(crate) const IN_SECONDS: Video = Video { family: "qwen2_5_vl", num_ranges: 1, step: 4 * WHOLE_SECONDS };
/// By the frame's index.
pub(crate) const BY_FRAME_INDEX: Video = Video { family: "qwen2_vl", num_ranges: 1, step: 1 };

/// Edge of the video's frames: a multiple of every tower's merged patches, so that nothing is resized.
const FRAME_EDGE: u32 = 224;
/// Seconds between two temporal patches of the video, cut to whole ones.
const WHOLE_SECONDS: i32 = 3;

/// Two stills, and the video that shows each of them in two frames: a temporal patch is then a still's.
fn stills_and_their_video(reference: &Reference) -> [PreparedRequest; 2] {
    let frame = |factor: usize| {
        let pixels = (0..(FRAME_EDGE * FRAME_EDGE * 3) as usize).map(|i| ((i + 7) * factor % 251) as u8).collect();
        ImageInput::Rgb { width: FRAME_EDGE, height: FRAME_EDGE, pixels }
    };
    let stills = [frame(3), frame(5)];
    let frames = stills.iter().flat_map(|still| [still.clone(), still.clone()]).collect();
    // 4 of 70 frames at 10 a second: 2 frames every 3.5 seconds.
    let meta = VideoMeta { source_fps: 10.0, total_num_frames: 70, frame_indices: vec![0, 17, 35, 52] };
    let question = || ContentPart::Text("What is shown here?".to_owned());
    let video = vec![ContentPart::Video(VideoFrames { frames, meta }), question()];
    let stills = stills.into_iter().map(ContentPart::Image).chain(std::iter::once(question())).collect();
    [stills, video].map(|parts| reference.prepare_parts(parts))
}

/// Positions of a prompt with one video, token by token: text counts on, every temporal patch of a range stands
/// `step` behind the last one. What follows a range counts on from its longer side, however long the video lasts
/// (`get_rope_index` in `modeling_qwen2_5_vl.py`, transformers 5.17).
fn naive_positions(request: &PreparedRequest, step: i32) -> (Vec<i32>, i32) {
    let [_, h, w] = request.images[0].grid_thw.map(|patches| patches as usize / 2);
    let mut columns: Vec<[i32; 3]> = Vec::new();
    let mut next = 0;
    for row in 0..request.input_ids.len() {
        match request.image_token_ranges.iter().find(|range| range.contains(&row)) {
            None => columns.push([next; 3]),
            Some(range) => {
                let at = row - range.start;
                let first = columns[range.start - 1][0] + 1;
                let offset = [at / (h * w), at % (h * w) / w, at % w].map(|x| i32::try_from(x).unwrap());
                columns.push([first + offset[0] * step, first + offset[1], first + offset[2]]);
                next = first + i32::try_from(h.max(w)).unwrap() - 1;
            }
        }
        next += 1;
    }
    let end = columns.iter().flatten().max().unwrap() + 1;
    let positions = (0..3).flat_map(|axis| columns.iter().map(move |column| column[axis])).collect();
    (positions, end - i32::try_from(columns.len()).unwrap())
}

fn log_softmax(logits: &[f32], token: usize) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits[token] - most - logits.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln()
}

/// A video against what it is made of: the features of its frames as stills, positions by a naive loop, and the
/// engine's answer against the parts put together by hand.
pub(crate) fn check_video(reference: Reference, video: &Video, limits: &Limits) {
    let Video { family, num_ranges, step } = *video;
    let pipeline = Pipeline::open(reference);
    let [stills, video] = stills_and_their_video(&pipeline.reference);
    let [_, h, w] = stills.images[0].grid_thw;
    assert_eq!(video.images[0].grid_thw, [2, h, w]);
    assert_eq!((video.images.len(), video.image_token_ranges.len()), (1, num_ranges));
    assert_eq!((video.positions.clone(), video.rope_delta), naive_positions(&video, step));

    let of_stills = pipeline.encode(&stills).unwrap();
    let features = pipeline.encode(&video).unwrap();
    assert_eq!(features.deepstack.len(), of_stills.deepstack.len());
    for (got, expected) in features.levels().zip(of_stills.levels()) {
        let error = max_abs_relative_to_max(&floats(got), &floats(expected));
        println!("{family}: features of a video's frames and of stills {error:.1e} apart");
        assert!(error <= limits.feature, "{family}: {error}");
    }

    let tokens = answer(&pipeline.engine(), video.clone());
    let forced: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    let logits = pipeline.logits(&video, Some(&features), &forced[..forced.len() - 1], usize::MAX);
    assert_eq!(logits.len(), tokens.len());
    for (token, logits) in tokens.iter().zip(&logits) {
        let expected = log_softmax(logits, token.token_id.0 as usize);
        assert!((token.logprob.unwrap() - expected).abs() <= limits.logit, "{family}: {token:?} {expected}");
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(logits[token.token_id.0 as usize] >= best - limits.logit, "{family}: a greedy choice");
    }
}
