//! The batch's integers against plain transcriptions of the reference's code.

use foveal_checkpoint::{ModelConfig, ModelFolder};
use foveal_mrope::patch_positions;
use proptest::prelude::*;

use super::*;

/// Config of a reference checkpoint.
fn config(family: &str) -> VisionConfig {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/goldens/");
    let folder = ModelFolder::open(format!("{path}{family}")).unwrap();
    ModelConfig::load(&folder).unwrap().vision
}

fn grids() -> impl Strategy<Value = Vec<GridThw>> {
    let grid = (1..4_u32, 1..14_u32, 1..14_u32).prop_map(|(t, h, w)| GridThw { t, h: 2 * h, w: 2 * w });
    prop::collection::vec(grid, 1..5)
}

/// A batch's description, computed in a workspace's tensors.
fn describe(grids: &[GridThw], config: &VisionConfig) -> BatchLayout {
    let device = Device::cpu(1).unwrap();
    let max_patches = grids.iter().map(GridThw::num_patches).sum();
    let mut batch = BatchLayout::new(&device, config, max_patches).unwrap();
    let mut cache = TileCache::new(1 << 20, FrameGeometry::num_bytes);
    // Twice: nothing of an earlier batch may stay.
    batch.describe(device.stream(), grids.iter().rev().copied(), config, &mut cache).unwrap();
    batch.describe(device.stream(), grids.iter().copied(), config, &mut cache).unwrap();
    batch
}

fn i32s(view: View<'_>) -> Vec<i32> {
    view.as_slice::<i32>().unwrap().to_vec()
}

/// `get_vision_window_index` of vision_utils.py, transformers 5.17, step by step: pad to windows (a whole window where
/// nothing is missing), cut, drop the padding; segment ends with repeats dropped.
fn reference_windows(grids: &[GridThw], config: &VisionConfig) -> (Vec<i32>, Vec<i32>) {
    let merge = config.spatial_merge_size as i32;
    let side = config.window.as_ref().unwrap().window_size as i32 / merge / config.patch_size as i32;
    let (mut window_index, mut cu_window_seqlens) = (Vec::new(), vec![0]);
    let mut first_id = 0;
    for grid in grids {
        let (t, h, w) = (grid.t as i32, grid.h as i32 / merge, grid.w as i32 / merge);
        let (padded_h, padded_w) = (h + side - h % side, w + side - w % side);
        for frame in 0..t {
            for window in 0..(padded_h / side) * (padded_w / side) {
                let (window_row, window_column) = (window / (padded_w / side), window % (padded_w / side));
                let mut len = 0;
                for place in 0..side * side {
                    let row = window_row * side + place / side;
                    let column = window_column * side + place % side;
                    if row < h && column < w {
                        window_index.push(first_id + frame * h * w + row * w + column);
                        len += 1;
                    }
                }
                cu_window_seqlens.push(cu_window_seqlens.last().unwrap() + len * merge * merge);
            }
        }
        first_id += t * h * w;
    }
    cu_window_seqlens.dedup();
    (window_index, cu_window_seqlens)
}

proptest! {
    #[test]
    fn windows_are_the_references(grids in grids()) {
        let config = config("qwen2_5_vl");
        let batch = describe(&grids, &config);
        let (window_index, cu_window_seqlens) = reference_windows(&grids, &config);
        let order = batch.window_order().unwrap().unwrap();
        prop_assert_eq!(i32s(order.order), &window_index[..]);
        prop_assert_eq!(i32s(batch.cu_seqlens(false).unwrap()), cu_window_seqlens);

        // The inverse is the reference's argsort, and positions follow the order cell by cell.
        let mut argsort: Vec<i32> = (0..window_index.len() as i32).collect();
        argsort.sort_by_key(|&i| window_index[i as usize]);
        prop_assert_eq!(i32s(order.inverse), argsort);
        let mut positions = Vec::new();
        for &grid in &grids {
            patch_positions(grid, 2, &mut positions).unwrap();
        }
        let expected: Vec<i32> =
            window_index.iter().flat_map(|&cell| &positions[4 * cell as usize..][..4]).flatten().copied().collect();
        prop_assert_eq!(i32s(batch.positions().unwrap()), expected);
    }

    #[test]
    fn each_frame_is_a_segment(grids in grids()) {
        for family in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl_tied"] {
            let batch = describe(&grids, &config(family));
            let mut cu_seqlens = vec![0];
            for grid in &grids {
                for _ in 0..grid.t {
                    cu_seqlens.push(cu_seqlens.last().unwrap() + (grid.h * grid.w) as i32);
                }
            }
            prop_assert_eq!(i32s(batch.cu_seqlens(true).unwrap()), cu_seqlens);
        }
    }

    #[test]
    fn taps_interpolate_the_table(grids in grids()) {
        let config = config("qwen3_vl_tied");
        let side = config.position_table.unwrap().isqrt();
        let batch = describe(&grids, &config);
        let (index, weight) = batch.taps().unwrap().unwrap();
        let (index, _) = index.as_slice::<i32>().unwrap().as_chunks::<4>();
        let (weight, _) = weight.as_slice::<f32>().unwrap().as_chunks::<4>();
        let mut positions = Vec::new();
        let mut shapes = Vec::new();
        for &grid in &grids {
            patch_positions(grid, 2, &mut positions).unwrap();
            shapes.resize(positions.len(), (grid.h, grid.w));
        }
        prop_assert_eq!(positions.len(), index.len());
        // A table that no mistake in rows, columns or their order leaves alone.
        let table = |row: usize, column: usize| {
            let (row, column) = (row as f64, column as f64);
            (0.3 * row).sin() + 0.07 * column + (0.1 * row * column).cos()
        };
        for (((position, (h, w)), index), weight) in positions.iter().zip(shapes).zip(index).zip(weight) {
            prop_assert!((weight.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let taps = index.iter().map(|&i| table(i as usize / side, i as usize % side));
            let got: f64 = taps.zip(weight).map(|(value, &weight)| value * f64::from(weight)).sum();
            let expected = bilinear(&table, side, (position[0], h), (position[1], w));
            prop_assert!((got - expected).abs() < 1e-4, "{} at {:?} of {:?} for {}", got, position, (h, w), expected);
        }
    }
}

/// Bilinear interpolation with align_corners: line 0 on line 0, the last on the last.
fn bilinear(table: &impl Fn(usize, usize) -> f64, side: usize, row: (i32, u32), column: (i32, u32)) -> f64 {
    let source =
        |(i, len): (i32, u32)| if len == 1 { 0.0 } else { f64::from(i) * (side - 1) as f64 / f64::from(len - 1) };
    let (y, x) = (source(row), source(column));
    let at = |y: f64, x: f64| table((y as usize).min(side - 1), (x as usize).min(side - 1));
    let (fy, fx) = (y - y.floor(), x - x.floor());
    let top = (1.0 - fx) * at(y, x) + fx * at(y, x + 1.0);
    let bottom = (1.0 - fx) * at(y + 1.0, x) + fx * at(y + 1.0, x + 1.0);
    (1.0 - fy) * top + fy * bottom
}

#[test]
fn geometry_is_kept_per_frame_size() {
    let config = config("qwen2_5_vl");
    let device = Device::cpu(1).unwrap();
    let mut batch = BatchLayout::new(&device, &config, 1024).unwrap();
    let mut cache = TileCache::new(1 << 20, FrameGeometry::num_bytes);
    let grids = [[1, 4, 6], [3, 4, 6], [1, 6, 4], [1, 4, 6]].map(GridThw::from);
    batch.describe(device.stream(), grids.into_iter(), &config, &mut cache).unwrap();
    // A video's frames are the still's of the same size.
    assert_eq!((cache.stats().misses, cache.stats().hits, cache.stats().entries), (2, 2, 2));
}
