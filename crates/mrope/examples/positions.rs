//! Prints the positions of a prompt with a picture and a video, by the rules of three model families.
//!
//! `cargo run -p foveal-mrope --example positions`

use foveal_mrope::{
    GridThw, MropeError, PositionRule, Span, TemporalRule, VideoMeta, decode_position, frame_spans, position_ids,
};

fn main() -> Result<(), MropeError> {
    let picture = GridThw { t: 1, h: 4, w: 6 };
    let clip = GridThw { t: 2, h: 4, w: 4 };
    // Four frames out of four seconds of film, two per temporal patch.
    let film = VideoMeta { source_fps: 24.0, total_num_frames: 96, frame_indices: vec![0, 24, 48, 72] };
    let second_per_grid = film.second_per_grid(2)?;
    let before = [Span::Text { len: 4 }, Span::Image { grid: picture }, Span::Text { len: 3 }];

    let mut whole = before.to_vec();
    whole.push(Span::Video { grid: clip, second_per_grid });
    whole.push(Span::Text { len: 2 });

    // Behind each timestamp one frame; a tokenizer would say how long the timestamps are.
    let mut framewise = before.to_vec();
    for (frame, seconds) in frame_spans(clip).zip(film.timestamps(2)?) {
        let timestamp = format!("<{seconds:.1} seconds>");
        println!("the next frame of Qwen3-VL stands behind {timestamp}");
        framewise.extend([Span::Text { len: 5 }, frame]);
    }
    framewise.push(Span::Text { len: 2 });

    print("Qwen2-VL", &whole, TemporalRule::FrameIndex)?;
    print("Qwen2.5-VL", &whole, TemporalRule::Seconds { tokens_per_second: 2 })?;
    print("Qwen3-VL and Qwen3.5", &framewise, TemporalRule::FramesBetweenTimestamps)
}

fn print(family: &str, spans: &[Span], temporal: TemporalRule) -> Result<(), MropeError> {
    let positions = position_ids(spans, &PositionRule { spatial_merge_size: 2, temporal })?;
    println!("\n{family}: {} tokens", positions.len());
    for (axis, name) in ["t", "h", "w"].into_iter().enumerate() {
        let row: String = positions.axis(axis).iter().map(|position| format!("{position:>3}")).collect();
        println!("  {name}{row}");
    }
    let first = decode_position(positions.len(), positions.delta());
    println!("  delta {}, so the first generated token has position {first}", positions.delta());
    Ok(())
}
