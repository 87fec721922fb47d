//! cos/sin tables against mathematics in f64 and the frequencies that torch gives; patch order against a transcription of
//! the reference.

use foveal_mrope::{GridThw, MropeError, TextRopeTable, VisionRopeTable, patch_positions};
use proptest::prelude::*;

/// Half a unit in the last place of f32, relative.
const EPS: f64 = 1.0 / (1 << 24) as f64;
/// cos and sin in f32 of a given angle: two units in the last place at 1.
const TRIG_TOLERANCE: f64 = 1.2e-7;

/// Bits of `1.0 / (1e7 ** (torch.arange(0, 64, 2, dtype=torch.float) / 64))`, torch 2.11 on a CPU (Qwen3.5 text).
const TORCH_INV_FREQ_1E7_64: [u32; 32] = [
    0x3f800000, 0x3f1ab32b, 0x3ebaf81b, 0x3e61f835, 0x3e088d77, 0x3da50956, 0x3d47763f, 0x3cf11177, 0x3c91ad39,
    0x3c301052, 0x3bd4ca15, 0x3b80967d, 0x3b1b690d, 0x3abbd3ed, 0x3a6301e2, 0x3a092e02, 0x39a5cb60, 0x394860c1,
    0x38f22ce2, 0x3892587e, 0x3830df52, 0x37d5c441, 0x37812dab, 0x371c1fc4, 0x36bcb0c1, 0x36640cc6, 0x3609cf4a,
    0x35a68e4c, 0x35494c57, 0x34f3499d, 0x3493048e, 0x3431af44,
];
/// The same of `1e4 ** (... arange(0, 36, 2) / 36)` (a vision tower with head_dim 72).
const TORCH_INV_FREQ_1E4_36: [u32; 18] = [
    0x3f800000, 0x3f1977cc, 0x3eb800d6, 0x3e5c9d35, 0x3e044133, 0x3d9e91b6, 0x3d3e1e95, 0x3ce3f280, 0x3c88a69b,
    0x3c23d70a, 0x3bc47060, 0x3b6b8631, 0x3b0d3169, 0x3aa94938, 0x3a4af7f3, 0x39f35a5c, 0x3991e2e1, 0x392ee9bf,
];

/// Holds `[num_rows, dim / 2]` cosines and sines to the exact angle `row / theta^(2i / dim)`. The exponent's rounding to
/// f32 moves the angle by up to `ln(theta) * 2i / dim` half-units, the power, its inverse and the product by one each.
fn check_table(cos: &[f32], sin: &[f32], theta: f64, dim: usize, num_rows: usize) {
    let num_pairs = dim / 2;
    assert_eq!((cos.len(), sin.len()), (num_rows * num_pairs, num_rows * num_pairs));
    for row in 0..num_rows {
        for pair in 0..num_pairs {
            let exponent = (2 * pair) as f64 / dim as f64;
            let angle = row as f64 / theta.powf(exponent);
            let tolerance = angle * (theta.ln() * exponent + 3.0) * EPS + TRIG_TOLERANCE;
            let at = row * num_pairs + pair;
            let (cos_off, sin_off) =
                ((f64::from(cos[at]) - angle.cos()).abs(), (f64::from(sin[at]) - angle.sin()).abs());
            assert!(cos_off <= tolerance && sin_off <= tolerance, "row {row}, pair {pair}: {cos_off} {sin_off}");
        }
    }
}

#[test]
fn text_tables_follow_the_mathematics() {
    for (theta, dim) in [(1e6, 128), (5e6, 128), (1e7, 64), (1e6, 64)] {
        let table = TextRopeTable::new(theta, dim, 3000).unwrap();
        assert_eq!((table.max_positions(), table.num_pairs()), (3000, dim / 2));
        check_table(table.cos(), table.sin(), theta, dim, 3000);
    }
}

#[test]
fn vision_tables_follow_the_mathematics() {
    for head_dim in [72, 80, 64] {
        let table = VisionRopeTable::new(1e4, head_dim, 300).unwrap();
        assert_eq!((table.max_hw(), table.inv_freq().len()), (300, head_dim / 4));
        check_table(table.cos(), table.sin(), 1e4, head_dim / 2, 300);
    }
}

/// At positions near the end of a long context the angle's own rounding decides the value, so it must be the reference's:
/// the frequency to the bit, the product in f32.
#[test]
fn angles_are_rounded_as_in_the_reference() {
    let text = TextRopeTable::new(1e7, 64, 40_000).unwrap();
    let vision = VisionRopeTable::new(1e4, 72, 500).unwrap();
    let check = |torch: &[u32], inv_freq: &[f32], (cos, sin): (&[f32], &[f32]), position: usize| {
        for (pair, &bits) in torch.iter().enumerate() {
            assert_eq!(inv_freq[pair].to_bits(), bits, "pair {pair}");
            let angle = f64::from(position as f32 * f32::from_bits(bits));
            assert!((f64::from(cos[pair]) - angle.cos()).abs() <= TRIG_TOLERANCE, "position {position}, pair {pair}");
            assert!((f64::from(sin[pair]) - angle.sin()).abs() <= TRIG_TOLERANCE, "position {position}, pair {pair}");
        }
        assert_eq!(inv_freq.len(), torch.len());
    };
    for position in [0, 1, 4095, 32_767, 39_999] {
        check(&TORCH_INV_FREQ_1E7_64, text.inv_freq(), text.row(position).unwrap(), position);
    }
    for patch in [0, 1, 255, 499] {
        check(&TORCH_INV_FREQ_1E4_36, vision.inv_freq(), vision.row(patch).unwrap(), patch);
    }
}

#[test]
fn grown_tables_equal_whole_ones() {
    let whole = TextRopeTable::new(5e6, 128, 100).unwrap();
    let mut grown = TextRopeTable::new(5e6, 128, 0).unwrap();
    assert!(grown.row(0).is_none());
    for max_positions in [1, 40, 12, 100] {
        grown.grow(max_positions).unwrap();
    }
    assert_eq!(grown, whole);
    assert!(whole.row(99).is_some() && whole.row(100).is_none() && whole.row(usize::MAX).is_none());

    let mut vision = VisionRopeTable::new(1e4, 80, 7).unwrap();
    vision.grow(33).unwrap();
    assert_eq!(vision, VisionRopeTable::new(1e4, 80, 33).unwrap());
}

#[test]
fn impossible_tables_are_refused() {
    for rope_theta in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(TextRopeTable::new(rope_theta, 64, 1), Err(MropeError::InvalidRopeTheta { rope_theta }));
        assert_eq!(VisionRopeTable::new(rope_theta, 64, 1), Err(MropeError::InvalidRopeTheta { rope_theta }));
    }
    assert!(matches!(TextRopeTable::new(f64::NAN, 64, 1), Err(MropeError::InvalidRopeTheta { .. })));
    for dim in [0, 7] {
        let expected = MropeError::InvalidRotaryDim { rotary_dim: dim, head_dim: dim };
        assert_eq!(TextRopeTable::new(1e6, dim, 1), Err(expected));
    }
    for head_dim in [0, 6, 70] {
        assert_eq!(VisionRopeTable::new(1e4, head_dim, 1), Err(MropeError::InvalidVisionHeadDim { head_dim }));
    }
    assert!(matches!(TextRopeTable::new(1e6, 128, usize::MAX), Err(MropeError::OutOfMemory { .. })));
}

/// `hpos_ids.reshape(h // m, m, w // m, m).transpose(1, 2).flatten()`, the same for w, repeated t times.
fn reference_patches(grid: GridThw, merge: usize) -> Vec<[i32; 2]> {
    let (h, w) = (grid.h as usize, grid.w as usize);
    let mut frame = vec![[-1; 2]; h * w];
    for row in 0..h {
        for column in 0..w {
            // Index in [h // m, w // m, m, m], which the transposition makes of [h // m, m, w // m, m].
            let (block_row, in_row) = (row / merge, row % merge);
            let (block_column, in_column) = (column / merge, column % merge);
            let at = ((block_row * (w / merge) + block_column) * merge + in_row) * merge + in_column;
            frame[at] = [row as i32, column as i32];
        }
    }
    frame.repeat(grid.t as usize)
}

proptest! {
    #[test]
    fn patches_come_block_by_block(t in 1_u32..4, h in 1_u32..8, w in 1_u32..8, merge in 1_u32..4) {
        let grid = GridThw { t, h: h * merge, w: w * merge };
        let mut patches = vec![[7, 7]]; // what is there stays
        patch_positions(grid, merge, &mut patches).unwrap();
        prop_assert_eq!(patches[0], [7, 7]);
        prop_assert_eq!(&patches[1..], reference_patches(grid, merge as usize));
    }

    /// Each patch has the table's row of its h, then that of its w.
    #[test]
    fn tiles_gather_rows(t in 1_u32..3, h in 1_u32..6, w in 1_u32..6, merge in 1_u32..3) {
        let grid = GridThw { t, h: h * merge, w: w * merge };
        let table = VisionRopeTable::new(1e4, 16, 12).unwrap();
        let tile = table.tile(grid, merge).unwrap();
        let gather = |rows: &[f32]| -> Vec<f32> {
            let row = |at: i32| &rows[at as usize * 4..][..4];
            reference_patches(grid, merge as usize).iter().flat_map(|&[h, w]| [row(h), row(w)].concat()).collect()
        };
        prop_assert_eq!(tile.cos(), gather(table.cos()));
        prop_assert_eq!(tile.sin(), gather(table.sin()));
        prop_assert!(tile.num_bytes() >= grid.num_patches() * 8 * 4 * 2);
    }
}

#[test]
fn bad_grids_have_no_patches() {
    let mut patches = vec![[7, 7]];
    let mut refused = |grid, merge| {
        let error = patch_positions(grid, merge, &mut patches).unwrap_err();
        assert_eq!(patches, [[7, 7]]);
        error
    };
    let odd = GridThw { t: 1, h: 4, w: 3 };
    assert_eq!(refused(odd, 2), MropeError::GridNotDivisible { grid: odd, spatial_merge_size: 2 });
    assert_eq!(refused(odd, 0), MropeError::ZeroMergeSize);
    let wide = GridThw { t: 1, h: 1, w: u32::MAX };
    assert_eq!(refused(wide, 1), MropeError::PositionOverflow { position: u64::from(u32::MAX) });
    let endless = GridThw { t: u32::MAX, h: 1 << 30, w: 1 << 30 };
    assert!(matches!(refused(endless, 2), MropeError::OutOfMemory { .. }));

    let table = VisionRopeTable::new(1e4, 64, 8).unwrap();
    let large = GridThw { t: 1, h: 4, w: 10 };
    assert_eq!(table.tile(large, 2).unwrap_err(), MropeError::GridBeyondTable { grid: large, max_hw: 8 });
    assert_eq!(table.tile(odd, 2).unwrap_err(), MropeError::GridNotDivisible { grid: odd, spatial_merge_size: 2 });
}
