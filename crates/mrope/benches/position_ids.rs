//! Positions of whole prompts: this crate against the naive loop that takes token by token. Both are held equal first.
//!
//! `cargo bench -p foveal-mrope`

#[path = "../tests/common/naive.rs"]
mod naive;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use foveal_mrope::{GridThw, PositionRule, Span, TemporalRule, position_ids};

const RULE: PositionRule =
    PositionRule { spatial_merge_size: 2, temporal: TemporalRule::Seconds { tokens_per_second: 2 } };

fn prompts() -> [(&'static str, Vec<Span>); 4] {
    let text = Span::Text { len: 200 };
    let image = |h, w| Span::Image { grid: GridThw { t: 1, h, w } };
    let video = Span::Video { grid: GridThw { t: 32, h: 26, w: 46 }, second_per_grid: 1.0 };
    [
        ("text_8k", vec![Span::Text { len: 8192 }]),
        ("image_512px", vec![text, image(32, 32), text]),
        ("images_4_of_1024px", vec![text, image(64, 64), image(64, 64), text, image(64, 64), image(64, 64), text]),
        ("video_32_frames", vec![text, video, text]),
    ]
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("position_ids");
    for (name, spans) in prompts() {
        let positions = position_ids(&spans, &RULE).expect("a valid prompt");
        let (expected, delta) = naive::position_ids(&spans, &RULE);
        let expected: Vec<i32> = (0..3).flat_map(|axis| naive::axis(&expected, axis)).collect();
        assert_eq!((positions.as_slice(), positions.delta()), (expected.as_slice(), delta), "{name}");
        group.throughput(Throughput::Elements(positions.len() as u64));
        group.bench_with_input(BenchmarkId::new("rows", name), &spans, |bencher, spans| {
            bencher.iter(|| position_ids(black_box(spans), &RULE));
        });
        group.bench_with_input(BenchmarkId::new("naive", name), &spans, |bencher, spans| {
            bencher.iter(|| naive::position_ids(black_box(spans), &RULE));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
