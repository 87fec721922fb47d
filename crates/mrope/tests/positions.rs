//! Positions against the naive loop over random prompts, parts of them, and what is refused.

#[path = "common/naive.rs"]
mod naive;

use foveal_mrope::{GridThw, MropeError, PositionRule, Span, TemporalRule, decode_position, frame_spans, position_ids};
use proptest::prelude::*;

const QWEN3: PositionRule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps };
const QWEN2: PositionRule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FrameIndex };

fn qwen2_5(tokens_per_second: u32) -> PositionRule {
    PositionRule { spatial_merge_size: 2, temporal: TemporalRule::Seconds { tokens_per_second } }
}

fn rules() -> impl Strategy<Value = PositionRule> {
    let temporal = prop_oneof![
        Just(TemporalRule::FrameIndex),
        (0_u32..30).prop_map(|tokens_per_second| TemporalRule::Seconds { tokens_per_second }),
        Just(TemporalRule::FramesBetweenTimestamps),
    ];
    (1_u32..4, temporal).prop_map(|(spatial_merge_size, temporal)| PositionRule { spatial_merge_size, temporal })
}

/// A rule and a prompt that it accepts: any mix, pictures side by side and empty text included.
fn prompts() -> impl Strategy<Value = (PositionRule, Vec<Span>)> {
    rules().prop_flat_map(|rule| {
        let merge = rule.spatial_merge_size;
        let max_t = if rule.temporal == TemporalRule::FramesBetweenTimestamps { 1 } else { 5 };
        let grid = move |max_t: u32| {
            (1..=max_t, 1_u32..9, 1_u32..9).prop_map(move |(t, h, w)| GridThw { t, h: h * merge, w: w * merge })
        };
        let span = prop_oneof![
            (0_usize..40).prop_map(|len| Span::Text { len }),
            grid(1).prop_map(|grid| Span::Image { grid }),
            (grid(max_t), 0.0_f32..5.0).prop_map(|(grid, second_per_grid)| Span::Video { grid, second_per_grid }),
        ];
        (Just(rule), prop::collection::vec(span, 0..12))
    })
}

proptest! {
    #[test]
    fn equal_the_naive_loop((rule, spans) in prompts()) {
        let (expected, expected_delta) = naive::position_ids(&spans, &rule);
        let positions = position_ids(&spans, &rule).unwrap();
        prop_assert_eq!(positions.len(), expected.len());
        for axis in 0..3 {
            prop_assert_eq!(positions.axis(axis), naive::axis(&expected, axis));
        }
        prop_assert_eq!(positions.delta(), expected_delta);
        let next = expected.iter().flatten().max().map_or(0, |max| max + 1);
        prop_assert_eq!(positions.next_position(), next);
    }

    #[test]
    fn chunks_put_together_are_the_prompt(
        (rule, spans) in prompts(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let positions = position_ids(&spans, &rule).unwrap();
        let len = positions.len();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).chain([0, len]).collect();
        bounds.sort_unstable();
        let mut axes = [vec![], vec![], vec![]];
        for pair in bounds.windows(2) {
            let chunk = positions.chunk(pair[0]..pair[1]).unwrap();
            prop_assert_eq!(chunk.len(), pair[1] - pair[0]);
            let mut copy = vec![0; 3 * chunk.len()];
            chunk.copy_into(&mut copy).unwrap();
            prop_assert_eq!(&copy, &[chunk.t(), chunk.h(), chunk.w()].concat());
            axes[0].extend_from_slice(chunk.t());
            axes[1].extend_from_slice(chunk.h());
            axes[2].extend_from_slice(chunk.w());
        }
        prop_assert_eq!(axes.concat(), positions.as_slice());
        prop_assert_eq!(positions.clone().into_vec(), positions.as_slice());
    }

    /// Two sequences at different places in one step, each with its own positions, whatever the other has.
    #[test]
    fn a_batch_keeps_its_sequences_apart(
        first in prompts(),
        second in prompts(),
        ranges in prop::array::uniform2((any::<prop::sample::Index>(), 0_usize..30)),
        padding in 0_usize..5,
    ) {
        let sequences = [&first, &second].map(|(rule, spans)| {
            let (mut rows, delta) = naive::position_ids(spans, rule);
            // As the decode steps would go on: index plus delta.
            let prompt_len = rows.len();
            rows.extend((prompt_len..prompt_len + 60).map(|index| [index as i32 + delta; 3]));
            (position_ids(spans, rule).unwrap(), rows)
        });
        let ranges: Vec<_> = ranges.iter().zip(&sequences).map(|((start, len), (positions, _))| {
            let start = start.index(positions.len() + 30);
            start..start + len
        }).collect();
        let num_columns = ranges[0].len() + ranges[1].len() + padding;
        let mut batch = vec![-7; 3 * num_columns];
        let mut column = 0;
        let mut expected = vec![];
        for (range, (positions, rows)) in ranges.iter().zip(&sequences) {
            positions.fill_batch(range.clone(), &mut batch, column).unwrap();
            column += range.len();
            expected.extend_from_slice(&rows[range.clone()]);
        }
        expected.resize(num_columns, [-7; 3]);
        let rows: Vec<i32> = (0..3).flat_map(|axis| naive::axis(&expected, axis)).collect();
        prop_assert_eq!(batch, rows);
    }

    /// Nothing that a caller can pass ends in a panic. The text alone is too long, so that no memory is taken.
    #[test]
    fn wild_spans_never_panic(
        (t, h, w) in (any::<u32>(), any::<u32>(), any::<u32>()),
        len in any::<usize>(),
        second_per_grid in any::<f32>(),
        spatial_merge_size in any::<u32>(),
        tokens_per_second in any::<u32>(),
    ) {
        let grid = GridThw { t, h, w };
        let (_, _) = (grid.num_patches(), grid.num_tokens(spatial_merge_size));
        let rule = PositionRule { spatial_merge_size, temporal: TemporalRule::Seconds { tokens_per_second } };
        let len = len | 1 << 40;
        let text = Span::Text { len };
        prop_assert!(position_ids(&[text], &rule).is_err());
        let spans = [Span::Video { grid, second_per_grid }, Span::Image { grid }, text];
        prop_assert!(position_ids(&spans, &rule).is_err());
    }
}

fn grid(t: u32, h: u32, w: u32) -> GridThw {
    GridThw { t, h, w }
}

#[test]
fn counts_of_a_grid() {
    let video = grid(3, 8, 12);
    assert_eq!((video.num_patches(), video.num_tokens(2), video.num_tokens(1)), (288, 72, 288));
    assert_eq!(video.num_tokens(0), 0);
    assert_eq!(grid(u32::MAX, u32::MAX, u32::MAX).num_patches(), usize::MAX);
    assert_eq!(grid(u32::MAX, u32::MAX, 0).num_patches(), 0);
    assert_eq!(GridThw::from([1, 2, 3]), grid(1, 2, 3));
    assert_eq!(<[u32; 3]>::from(grid(1, 2, 3)), [1, 2, 3]);
    assert_eq!(video.merged(2), Ok(grid(3, 4, 6)));
}

/// The frames of a cut video are what HF makes of its grid: t rows, each with t = 1.
#[test]
fn a_cut_video_has_one_frame_per_span() {
    let spans: Vec<Span> = frame_spans(grid(3, 4, 6)).collect();
    assert_eq!(spans, [Span::Video { grid: grid(1, 4, 6), second_per_grid: 0.0 }; 3]);
    assert_eq!(frame_spans(grid(0, 4, 6)).len(), 0);
    let (expected, _) = naive::position_ids(&spans, &QWEN3);
    assert_eq!(position_ids(&spans, &QWEN3).unwrap().axis(0), naive::axis(&expected, 0));
}

/// What follows a video starts after its larger side, not after its last frame; the delta sees the last frame.
#[test]
fn a_slow_video_outruns_its_tokens() {
    let spans = [Span::Video { grid: grid(4, 2, 4), second_per_grid: 2.9 }, Span::Text { len: 1 }];
    let positions = position_ids(&spans, &qwen2_5(25)).unwrap();
    assert_eq!(positions.axis(0), [0, 0, 50, 50, 100, 100, 150, 150, 2]);
    assert_eq!(positions.axis(1), [0, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(positions.axis(2), [0, 1, 0, 1, 0, 1, 0, 1, 2]);
    assert_eq!((positions.delta(), positions.next_position()), (151 - 9, 151));
    let short = [Span::Video { grid: grid(4, 2, 4), second_per_grid: 0.9 }];
    assert_eq!(position_ids(&short, &qwen2_5(25)).unwrap().axis(0), [0; 8]);
}

#[test]
fn an_empty_prompt_has_no_positions() {
    for spans in [&[][..], &[Span::Text { len: 0 }]] {
        let positions = position_ids(spans, &QWEN3).unwrap();
        assert!(positions.is_empty());
        assert_eq!((positions.len(), positions.delta(), positions.next_position()), (0, 0, 0));
        assert!(positions.chunk(0..0).unwrap().is_empty());
        positions.fill_batch(0..2, &mut [0; 6], 0).unwrap();
    }
}

#[test]
fn bad_grids_are_refused() {
    let image = |grid| [Span::Image { grid }];
    let refused = |spans: &[Span], rule| position_ids(spans, &rule).unwrap_err();
    for odd in [grid(1, 3, 4), grid(1, 4, 3)] {
        assert_eq!(refused(&image(odd), QWEN2), MropeError::GridNotDivisible { grid: odd, spatial_merge_size: 2 });
    }
    for empty in [grid(0, 4, 4), grid(1, 0, 4), grid(1, 4, 0)] {
        assert_eq!(refused(&image(empty), QWEN3), MropeError::EmptyGrid { grid: empty });
    }
    let rule = PositionRule { spatial_merge_size: 0, ..QWEN2 };
    assert_eq!(refused(&image(grid(1, 4, 4)), rule), MropeError::ZeroMergeSize);
    let clip = grid(2, 4, 4);
    let video = [Span::Video { grid: clip, second_per_grid: 1.0 }];
    assert_eq!(refused(&video, QWEN3), MropeError::FramesNotSplit { grid: clip });
    assert_eq!(refused(&image(clip), QWEN3), MropeError::FramesNotSplit { grid: clip });
    for second_per_grid in [-1.0, f32::INFINITY] {
        let spans = [Span::Video { grid: clip, second_per_grid }];
        assert_eq!(refused(&spans, qwen2_5(2)), MropeError::InvalidSecondPerGrid { second_per_grid });
    }
    let nan = [Span::Video { grid: clip, second_per_grid: f32::NAN }];
    assert!(matches!(refused(&nan, qwen2_5(2)), MropeError::InvalidSecondPerGrid { .. }));
    // Where no rule reads the seconds, they don't matter.
    assert!(position_ids(&nan, &QWEN2).is_ok());
}

#[test]
fn positions_beyond_int32_are_refused() {
    let refused = |spans: &[Span], rule| position_ids(spans, &rule).unwrap_err();
    let max = i32::MAX as usize;
    let overflow = |position| MropeError::PositionOverflow { position };
    assert_eq!(refused(&[Span::Text { len: max + 1 }], QWEN2), overflow(max as u64 + 1));
    assert_eq!(refused(&[Span::Text { len: usize::MAX }], QWEN2), overflow(usize::MAX as u64));
    let texts = [Span::Text { len: max }, Span::Text { len: 1 }];
    assert_eq!(refused(&texts, QWEN2), overflow(max as u64 + 1));
    let slow = [Span::Video { grid: grid(2, 2, 2), second_per_grid: f32::MAX }];
    assert!(matches!(refused(&slow, qwen2_5(2)), MropeError::PositionOverflow { .. }));
    assert!(position_ids(&slow, &qwen2_5(0)).is_ok());
    let still = [Span::Video { grid: grid(1, 2, 2), second_per_grid: f32::MAX }];
    assert_eq!(position_ids(&still, &qwen2_5(2)).unwrap().as_slice(), [0, 0, 0]);
    // Few positions, yet too many tokens: alone, or together.
    let wide = Span::Image { grid: grid(1, 100_000, 100_000) };
    assert_eq!(refused(&[wide], QWEN2), MropeError::TooManyTokens { num_tokens: 2_500_000_000 });
    let half = Span::Image { grid: grid(1, 66_000, 66_000) };
    assert_eq!(refused(&[half, half], QWEN2), MropeError::TooManyTokens { num_tokens: 2 * 33_000 * 33_000 });
}

#[test]
fn ranges_and_buffers_are_checked() {
    let positions = position_ids(&[Span::Text { len: 4 }], &QWEN2).unwrap();
    for (start, end) in [(0, 5), (5, 5), (3, 2), (usize::MAX, usize::MAX)] {
        let expected = MropeError::RangeOutOfBounds { start, end, len: 4 };
        assert_eq!(positions.chunk(std::ops::Range { start, end }).unwrap_err(), expected);
    }
    assert!(positions.axis(3).is_empty() && positions.axis(usize::MAX).is_empty());
    let chunk = positions.chunk(1..3).unwrap();
    let expected = MropeError::WrongLength { what: "the [3, len] output", expected: 6, got: 5 };
    assert_eq!(chunk.copy_into(&mut [0; 5]).unwrap_err(), expected);

    let mut batch = [9; 9];
    let wrong = |expected, got| MropeError::WrongLength { what: "the batch [3, B]", expected, got };
    assert_eq!(positions.fill_batch(0..2, &mut batch, 2).unwrap_err(), wrong(12, 9));
    assert_eq!(positions.fill_batch(0..2, &mut batch[..8], 0).unwrap_err(), wrong(6, 8));
    assert_eq!(positions.fill_batch(0..0, &mut batch, 4).unwrap_err(), wrong(12, 9));
    let backwards = std::ops::Range { start: 3, end: 2 };
    let expected = MropeError::RangeOutOfBounds { start: 3, end: 2, len: 4 };
    assert_eq!(positions.fill_batch(backwards, &mut batch, 0).unwrap_err(), expected);
    let far = i32::MAX as usize;
    assert_eq!(positions.fill_batch(far - 1..far, &mut batch, 0), Ok(()));
    assert_eq!(batch, [i32::MAX - 1, 9, 9, i32::MAX - 1, 9, 9, i32::MAX - 1, 9, 9]);
    let expected = MropeError::PositionOverflow { position: i32::MAX as u64 + 1 };
    assert_eq!(positions.fill_batch(far..far + 1, &mut batch, 0).unwrap_err(), expected);
}

#[test]
fn parts_make_the_whole_again() {
    use foveal_mrope::PositionIds;
    let spans = [Span::Text { len: 2 }, Span::Image { grid: grid(1, 4, 6) }];
    let positions = position_ids(&spans, &QWEN3).unwrap();
    let again = PositionIds::from_parts(positions.clone().into_vec(), positions.delta()).unwrap();
    assert_eq!(again, positions);
    let expected = MropeError::WrongLength { what: "[3, N] positions", expected: 6, got: 4 };
    assert_eq!(PositionIds::from_parts(vec![0; 4], 0).unwrap_err(), expected);
}

#[test]
fn decode_positions_saturate() {
    assert_eq!(decode_position(100, -40), 60);
    assert_eq!(decode_position(3, 7), 10);
    assert_eq!(decode_position(usize::MAX, i32::MAX), i32::MAX);
    assert_eq!(decode_position(i32::MAX as usize, 1), i32::MAX);
}
