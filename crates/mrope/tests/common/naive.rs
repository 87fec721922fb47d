//! The reference: positions token by token, written from the text of `get_rope_index` (HF transformers 5.17) with no
//! regard for speed. Shared by the tests and the benchmark.

use foveal_mrope::{PositionRule, Span, TemporalRule};

/// Positions `[N][t, h, w]` and the delta. The spans are valid and small.
pub(crate) fn position_ids(spans: &[Span], rule: &PositionRule) -> (Vec<[i32; 3]>, i32) {
    let merge = rule.spatial_merge_size as i32;
    let mut positions = Vec::new();
    let mut current_pos = 0;
    for span in spans {
        let (grid, time_interval) = match *span {
            Span::Text { len } => {
                for _ in 0..len {
                    positions.push([current_pos; 3]);
                    current_pos += 1;
                }
                continue;
            }
            Span::Image { grid } => (grid, 1),
            Span::Video { grid, second_per_grid } => match rule.temporal {
                TemporalRule::Seconds { tokens_per_second } => {
                    (grid, tokens_per_second as i32 * second_per_grid.trunc() as i32)
                }
                TemporalRule::FrameIndex | TemporalRule::FramesBetweenTimestamps => (grid, 1),
            },
        };
        let (llm_grid_h, llm_grid_w) = (grid.h as i32 / merge, grid.w as i32 / merge);
        for token in 0..grid.t as i32 * llm_grid_h * llm_grid_w {
            let (t, h, w) = (token / (llm_grid_h * llm_grid_w), token / llm_grid_w % llm_grid_h, token % llm_grid_w);
            positions.push([current_pos + t * time_interval, current_pos + h, current_pos + w]);
        }
        current_pos += (grid.h as i32).max(grid.w as i32) / merge;
    }
    let max = positions.iter().flatten().max().copied().unwrap_or(-1);
    let delta = max + 1 - positions.len() as i32;
    (positions, delta)
}

/// One axis of `[N][t, h, w]`.
pub(crate) fn axis(positions: &[[i32; 3]], axis: usize) -> Vec<i32> {
    positions.iter().map(|position| position[axis]).collect()
}
