//! The kernel for a few dozen rows of FP8 on Hopper: how it shares the work out, and its launch.
#![allow(unsafe_code)]

use foveal_device::{
    Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, Swizzle, TensorMap, ViewMut,
};

use super::cuda::{PartScales, Parts};
use crate::cuda::{CLUSTER, HOPPER, HOPPER_CAPABILITY, MBARRIER, PRELUDE, WEIGHT_PARTS, following};

static SOURCE: KernelSource = KernelSource {
    name: "linear_skinny",
    text: include_str!("skinny_sm90.cu"),
    headers: &[PRELUDE, WEIGHT_PARTS, MBARRIER, CLUSTER, HOPPER],
};

/// Rows of `x` that there are kernels for.
const X_ROWS: [usize; 4] = [16, 32, 64, 128];
/// The most rows of `x` that are quicker here than in cuBLASLt whatever the weights.
const FEW_ROWS: usize = 64;
/// Rows of weight of a tile.
const W_ROWS: usize = 64;
/// Columns that are multiplied at a time: a row's bytes in a tile's swizzle, and a block of scales.
const COLUMNS: usize = 128;
/// `THREADS` of the kernel: a warpgroup and a warp.
const THREADS: u32 = 128 + 32;
/// The most blocks of a cluster, and places of a ring.
const MAX_SPLIT: usize = 4;
const MAX_STAGES: usize = 16;

/// Shared memory of a multiprocessor, and of one block of it at most.
const SM_BYTES: usize = 228 << 10;
const MAX_BLOCK_BYTES: usize = 227 << 10;
/// A ring begins at a multiple of so many bytes, and what is lost for that is asked for as well.
const RING_ALIGNMENT: usize = 1024;
/// What a block has beside its ring: the system's share, barriers, and what is lost before the ring.
const OTHER_BYTES: usize = 1024 + 256 + RING_ALIGNMENT;

/// So many steps of [`COLUMNS`] are a long sum, shared by so many blocks that a multiprocessor has three.
const LONG_SUM: usize = 24;
const VERY_LONG_SUM: usize = 2 * LONG_SUM;
/// The most steps for each multiprocessor that are quicker here than in cuBLASLt with more than [`FEW_ROWS`] rows of `x`.
const MOST_STEPS: usize = 64;

/// Whether it can take FP8 operands on this card.
pub(super) fn serves(stream: &CudaStream) -> bool {
    stream.compute_capability() == HOPPER_CAPABILITY
}

/// Tiles of a part of `n` rows of weight.
pub(super) fn tiles(n: usize) -> usize {
    n.div_ceil(W_ROWS)
}

/// How the kernel shares a product out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skinny {
    /// Rows of `x` that a launch takes at most.
    x_rows: usize,
    /// Blocks of a cluster, which share a tile's columns.
    split: usize,
    blocks_per_sm: usize,
}

/// A product, as far as the kernel's shares depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Rows of `x`.
    pub(super) m: usize,
    /// [`tiles`] of all parts of the weights.
    pub(super) tiles: usize,
    pub(super) k: usize,
    /// Whether there are scales for blocks.
    pub(super) is_scaled: bool,
}

impl Size {
    /// Steps of [`COLUMNS`] of a tile.
    fn steps(self) -> usize {
        self.k.div_ceil(COLUMNS)
    }

    /// Whether the sums are very long.
    pub(super) fn is_very_long(self) -> bool {
        self.steps() >= VERY_LONG_SUM
    }

    /// The most rows of `x` that are quicker here than in cuBLASLt, whose products with scales for blocks take the longer the more
    /// columns there are, however few the weights.
    pub(super) fn most_rows(self, num_sms: u32) -> usize {
        let ([.., most], num_sms) = (X_ROWS, num_sms as usize);
        let are_few = self.tiles <= num_sms && self.tiles * self.steps() <= num_sms * MOST_STEPS;
        if self.is_scaled && are_few { most } else { FEW_ROWS }
    }
}

impl Skinny {
    /// For a product, whose rows beyond [`Size::most_rows`] are other launches.
    pub(super) fn new(size: Size, num_sms: u32) -> Self {
        let (most_rows, num_sms, steps) = (size.most_rows(num_sms), num_sms as usize, size.steps());
        let x_rows = X_ROWS.into_iter().find(|&rows| size.m <= rows).map_or(most_rows, |rows| rows.min(most_rows));
        // So many to a multiprocessor that all run at once. One's start and end lie beside the other's work, so at least two. Clusters
        // of three and four don't fill every multiprocessor: an eighth more must fit.
        let blocks_per_sm = |split: usize| {
            let blocks = if split > 2 { size.tiles * split * 9 / 8 } else { size.tiles * split };
            blocks.div_ceil(num_sms).max(2)
        };
        let is_very_long = size.is_very_long();
        let shortest = shortest_sum(x_rows);
        // Two blocks for each tile may come out even; the time that scaling takes is better hidden by more of them.
        let are_even = (num_sms * 7 / 8..=num_sms).contains(&(size.tiles * 2)) && steps >= 2 * shortest;
        if !size.is_scaled && are_even && (is_very_long || x_rows >= FEW_ROWS) {
            return Self { x_rows, split: 2, blocks_per_sm: if is_very_long { 1 } else { 2 } };
        }
        // Each of three has more of its multiprocessor than each of four.
        if is_very_long && blocks_per_sm(3) == 2 && blocks_per_sm(4) > 2 {
            return Self { x_rows, split: 3, blocks_per_sm: 2 };
        }
        let most_blocks = if steps < LONG_SUM { 2 } else { max_blocks_per_sm(x_rows) };
        let is_good = |&split: &usize| blocks_per_sm(split) <= most_blocks && steps >= split * shortest;
        let split = [MAX_SPLIT, 2].into_iter().find(is_good).unwrap_or(1);
        Self { x_rows, split, blocks_per_sm: blocks_per_sm(split).min(max_blocks_per_sm(x_rows)) }
    }

    /// Rows of `x` that a launch takes at most.
    pub(super) fn x_rows(self) -> usize {
        self.x_rows
    }

    /// Places of the ring, and their bytes.
    fn ring(self) -> (usize, usize) {
        let stage = (W_ROWS + self.x_rows) * COLUMNS + self.x_rows * size_of::<f32>();
        let bytes = (SM_BYTES / self.blocks_per_sm).min(MAX_BLOCK_BYTES) - OTHER_BYTES;
        let stages = (bytes / stage).min(MAX_STAGES);
        (stages, stages * stage)
    }
}

/// The fewest steps of a CUDA block of several.
fn shortest_sum(x_rows: usize) -> usize {
    if x_rows > 16 { 8 } else { 4 }
}

/// Blocks of a multiprocessor at most, for which registers are kept.
fn max_blocks_per_sm(x_rows: usize) -> usize {
    if x_rows > FEW_ROWS { 2 } else { 3 }
}

fn spec(x_rows: usize, is_scaled: bool) -> KernelSpec {
    let spec = KernelSpec::new(&SOURCE, "skinny").dtype("OUT_T", DType::BF16);
    let spec = spec.int("X_ROWS", x_rows as i64).int("W_ROWS", W_ROWS as i64).int("SCALED", i64::from(is_scaled));
    let spec = spec.int("MAX_SPLIT", MAX_SPLIT as i64).int("MAX_STAGES", MAX_STAGES as i64);
    spec.int("MAX_BLOCKS_PER_SM", max_blocks_per_sm(x_rows) as i64)
}

/// Every kernel that a model may need.
pub(super) fn variants() -> impl Iterator<Item = KernelSpec> {
    let all = X_ROWS.into_iter().flat_map(|x_rows| [false, true].map(|is_scaled| (x_rows, is_scaled)));
    all.filter(|&(x_rows, is_scaled)| is_scaled || x_rows <= FEW_ROWS)
        .map(|(x_rows, is_scaled)| spec(x_rows, is_scaled))
}

/// One launch, of up to [`Skinny::x_rows`] rows of `x`. `out` begins at the first part's first column, and its rows are `out_stride` apart.
pub(super) fn launch(
    stream: &CudaStream,
    skinny: Skinny,
    parts: &Parts<'_>,
    out: &ViewMut<'_>,
    out_stride: usize,
) -> Result<(), DeviceError> {
    let Parts { x, weight, scales, .. } = parts;
    let (rows, [m, k]) = (parts.rows(), parts.sizes());
    let x_rows = skinny.x_rows;
    let map = |view, rows| TensorMap::matrix(stream.device(), view, [rows as u32, COLUMNS as u32], Swizzle::Bytes128);
    let mut args = Args::new();
    let of_x = map(x, m)?;
    args.tensor_map(&of_x);
    for (i, rows) in rows.into_iter().enumerate() {
        // A part that there isn't, or that has no rows, has no tiles; and no map can be made for it.
        let part = weight.get(i).filter(|_| rows > 0);
        args.tensor_map(&part.map_or(Ok(of_x), |part| map(part, W_ROWS))?);
    }
    args.ptr_mut(out)?;
    for rows in rows {
        args.usize_as_i32(rows)?;
    }
    args.usize_as_i32(m)?.usize_as_i32(k)?.usize_as_i32(out_stride)?;
    let (first, stride) = parts.x_scales_place();
    let of_rows = scales.as_ref().map(PartScales::of_rows).transpose()?;
    args.ptr_or_null(of_rows.as_ref())?;
    for of_part in parts.part_scales() {
        args.ptr_or_null(of_part)?;
    }
    let (stages, ring_bytes) = skinny.ring();
    let scale_bytes = x_rows.min(stride.saturating_sub(first)) * size_of::<f32>();
    args.usize_as_i32(stride)?.usize_as_i32(scale_bytes)?.usize_as_i32(stages)?.usize_as_i32(skinny.split)?;
    let blocks = rows.into_iter().map(tiles).sum::<usize>() * skinny.split;
    let blocks = u32::try_from(blocks).map_err(|_| DeviceError::TooLarge { value: blocks })?;
    let launch = Launch::new([blocks, 1, 1], [THREADS, 1, 1]).cluster([skinny.split as u32, 1, 1]);
    let launch = following(stream, launch.shared_bytes((ring_bytes + RING_ALIGNMENT) as u32).side_by_side());
    // SAFETY: the parameters are those of `skinny` in skinny_sm90.cu. `check` has compared all shapes and types, and found sizes and
    // addresses such as it needs; the maps are those of x and the parts, and it writes m rows of as many columns as the parts have rows.
    unsafe { stream.launch(&spec(x_rows, scales.is_some()), launch, &mut args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200_SMS: u32 = 132;

    fn size(m: usize, n: usize, k: usize) -> Size {
        Size { m, tiles: tiles(n), k, is_scaled: true }
    }

    fn skinny(size: Size) -> (usize, usize) {
        let Skinny { split, blocks_per_sm, .. } = Skinny::new(size, H200_SMS);
        (split, blocks_per_sm)
    }

    /// What was quickest of all combinations on an H200, or within 5 % of it.
    #[test]
    fn products_of_models_are_shared_out_as_was_quickest() {
        let [scaled, unscaled] =
            [true, false].map(|is_scaled| move |m, n, k| skinny(Size { is_scaled, ..size(m, n, k) }));
        for m in [9, 16, 17, 33, 64] {
            // Of 8B: qkv, o, gate_up, down.
            assert_eq!([scaled(m, 6144, 4096), unscaled(m, 6144, 4096)], [(2, 2); 2]);
            assert_eq!(unscaled(m, 4096, 4096), if m <= 32 { (4, 3) } else { (2, 2) });
            assert_eq!(scaled(m, 4096, 4096), (4, 3));
            assert_eq!([scaled(m, 24_576, 4096), unscaled(m, 24_576, 4096)], [(1, 3); 2]);
            assert_eq!([scaled(m, 4096, 12_288), unscaled(m, 4096, 12_288)], [(3, 2), (2, 1)]);
            // Of 2B and 4B: gate_up; o and down.
            assert_eq!(unscaled(m, 12_288, 2048), (1, 2));
            assert_eq!(unscaled(m, 2560, 4096), (4, 2));
            assert_eq!(unscaled(m, 2560, 9728), (4, 2));
            // Of 32B: qkv, o, down.
            assert_eq!(unscaled(m, 10_240, 5120), (2, 3));
            assert_eq!(unscaled(m, 5120, 8192), (4, 3));
            assert_eq!(unscaled(m, 5120, 25_600), (4, 3));
        }
        for m in [65, 128] {
            assert_eq!(scaled(m, 6144, 4096), (2, 2));
            assert_eq!(scaled(m, 4096, 4096), (2, 2));
            assert_eq!(scaled(m, 4096, 12_288), (3, 2));
            assert_eq!(scaled(m, 2560, 9728), (4, 2));
        }
    }

    #[test]
    fn any_product_has_a_split_that_leaves_each_block_columns() {
        for (m, n) in
            [9, 20, 64, 100].into_iter().flat_map(|m| [16, 64, 80, 1024, 4096, 5120, 51_200, 1 << 20].map(|n| (m, n)))
        {
            for (k, is_scaled) in [16, 128, 400, 1024, 4096, 29_568].into_iter().flat_map(|k| [(k, true), (k, false)]) {
                let size = Size { is_scaled, ..size(m, n, k) };
                let Skinny { x_rows, split, blocks_per_sm } = Skinny::new(size, H200_SMS);
                assert!(split == 1 || size.steps() / split >= shortest_sum(x_rows), "{m} {n} {k}");
                assert!(variants().any(|variant| variant == spec(x_rows, is_scaled)), "{m} {n} {k}");
                assert!((1..=MAX_SPLIT).contains(&split) && (1..=max_blocks_per_sm(x_rows)).contains(&blocks_per_sm));
            }
        }
    }

    #[test]
    fn more_rows_than_a_few_are_taken_with_scales_and_few_weights_alone() {
        let most = |n, is_scaled| Size { is_scaled, ..size(1, n, 4096) }.most_rows(H200_SMS);
        assert_eq!([most(4096, true), most(4096, false), most(24_576, true)], [128, 64, 64]);
        // Down of 8B and of 32B.
        assert_eq!([(4096, 12_288), (5120, 25_600)].map(|(n, k)| size(1, n, k).most_rows(H200_SMS)), [128, 64]);
        let x_rows = |m, n| Skinny::new(size(m, n, 400), H200_SMS).x_rows();
        assert_eq!([9, 17, 33, 65, 1000].map(|m| x_rows(m, 4096)), [16, 32, 64, 128, 128]);
        assert_eq!([33, 65, 1000].map(|m| x_rows(m, 24_576)), [64; 3]);
    }

    #[test]
    fn blocks_fit_beside_each_other_and_sums_into_their_rings() {
        for x_rows in X_ROWS {
            for blocks_per_sm in 1..=max_blocks_per_sm(x_rows) {
                let (stages, bytes) = Skinny { x_rows, split: 1, blocks_per_sm }.ring();
                assert!((2..=MAX_STAGES).contains(&stages), "{blocks_per_sm} {x_rows}: {stages}");
                assert!((bytes + OTHER_BYTES) * blocks_per_sm <= SM_BYTES && bytes + 1024 + 256 <= MAX_BLOCK_BYTES);
            }
        }
    }
}
