//! The kernel for a few dozen rows of FP8 on Hopper: how it shares the work out, and its launch.
#![allow(unsafe_code)]

use foveal_device::{
    Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, Swizzle, TensorMap, ViewMut,
};

use super::cuda::{PartScales, Parts};
use crate::cuda::{CLUSTER, HOPPER, HOPPER_CAPABILITY, MBARRIER, PRELUDE, following};

static SOURCE: KernelSource = KernelSource {
    name: "linear_skinny",
    text: include_str!("skinny_sm90.cu"),
    headers: &[PRELUDE, MBARRIER, CLUSTER, HOPPER],
};

/// Rows of `x` that there are kernels for.
const X_ROWS: [usize; 3] = [16, 32, 64];
/// The most rows of `x` of a launch.
pub(super) const MAX_ROWS: usize = 64;
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
/// Blocks of a multiprocessor at most, for which registers are kept.
const MAX_BLOCKS_PER_SM: usize = 3;

/// So many steps of [`COLUMNS`] of one CUDA block are a long sum: it pays then that each has a multiprocessor for itself.
const LONG_SUM: usize = 24;
/// The fewest steps of a CUDA block for 16 rows of `x`; more rows are more sums to pass on.
const SHORTEST_SUM: usize = 4;

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
    /// Blocks of a cluster, which share a tile's columns.
    split: usize,
    blocks_per_sm: usize,
}

impl Skinny {
    /// For `m` rows of `x`, and so many tiles of weights and columns.
    pub(super) fn new(m: usize, tiles: usize, k: usize, num_sms: u32) -> Self {
        let (num_sms, columns) = (num_sms as usize, k.div_ceil(COLUMNS));
        let fits = |split: usize, blocks_per_sm: usize| tiles * split <= num_sms * blocks_per_sm;
        // With two to a multiprocessor one's start and end lie beside the other's work; but where sums are long, what counts is that
        // each has as much work, and clusters of two blocks come out even while those of four don't.
        if fits(2, 1) && tiles * 2 >= num_sms * 3 / 4 && columns >= 2 * LONG_SUM {
            return Self { split: 2, blocks_per_sm: 1 };
        }
        let shortest = SHORTEST_SUM * x_rows(m) / X_ROWS[0];
        let is_good = |split: &usize| fits(*split, 2) && columns >= split * shortest;
        let split = [MAX_SPLIT, 2].into_iter().find(is_good).unwrap_or(1);
        // Clusters of four don't fill every multiprocessor: an eighth more must fit.
        let blocks = if split == MAX_SPLIT { tiles * split * 9 / 8 } else { tiles * split };
        Self { split, blocks_per_sm: blocks.div_ceil(num_sms).clamp(2, MAX_BLOCKS_PER_SM) }
    }

    /// Places of the ring, for so many rows of `x`, and their bytes.
    fn ring(self, x_rows: usize) -> (usize, usize) {
        let stage = (W_ROWS + x_rows) * COLUMNS + x_rows * size_of::<f32>();
        let bytes = (SM_BYTES / self.blocks_per_sm).min(MAX_BLOCK_BYTES) - OTHER_BYTES;
        let stages = (bytes / stage).min(MAX_STAGES);
        (stages, stages * stage)
    }
}

/// Rows of `x` of the kernel for `m` of them.
fn x_rows(m: usize) -> usize {
    X_ROWS.into_iter().find(|&rows| m <= rows).unwrap_or(MAX_ROWS)
}

fn spec(x_rows: usize, is_scaled: bool) -> KernelSpec {
    let spec = KernelSpec::new(&SOURCE, "skinny").dtype("OUT_T", DType::BF16);
    let spec = spec.int("X_ROWS", x_rows as i64).int("W_ROWS", W_ROWS as i64).int("SCALED", i64::from(is_scaled));
    let spec = spec.int("MAX_SPLIT", MAX_SPLIT as i64).int("MAX_STAGES", MAX_STAGES as i64);
    spec.int("MAX_BLOCKS_PER_SM", MAX_BLOCKS_PER_SM as i64)
}

/// Every kernel that a model may need.
pub(super) fn variants() -> impl Iterator<Item = KernelSpec> {
    X_ROWS.into_iter().flat_map(|x_rows| [false, true].map(|is_scaled| spec(x_rows, is_scaled)))
}

/// One launch, of up to [`MAX_ROWS`] rows of `x`. `out` begins at the first part's first column, and its rows are `out_stride` apart.
pub(super) fn launch(
    stream: &CudaStream,
    skinny: Skinny,
    parts: &Parts<'_>,
    out: &ViewMut<'_>,
    out_stride: usize,
) -> Result<(), DeviceError> {
    let Parts { x, weight, scales, .. } = parts;
    let (rows, [m, k]) = (parts.rows(), parts.sizes());
    let x_rows = x_rows(m);
    let map = |view, rows| TensorMap::matrix(stream.device(), view, [rows as u32, COLUMNS as u32], Swizzle::Bytes128);
    let mut args = Args::new();
    let of_x = map(x, x_rows)?;
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
    let (first, stride) = scales.as_ref().map_or((0, 0), |scales| (scales.first, scales.x.shape().row_len()));
    let of_rows = scales.as_ref().map(PartScales::of_rows).transpose()?;
    args.ptr_or_null(of_rows.as_ref())?;
    for of_part in parts.part_scales() {
        args.ptr_or_null(of_part)?;
    }
    let (stages, ring_bytes) = skinny.ring(x_rows);
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

    fn skinny(m: usize, n: usize, k: usize) -> (usize, usize) {
        let Skinny { split, blocks_per_sm } = Skinny::new(m, tiles(n), k, H200_SMS);
        (split, blocks_per_sm)
    }

    /// What was quickest of all combinations on an H200.
    #[test]
    fn products_of_an_8b_model_are_shared_out_as_was_quickest() {
        for m in [9, 16, 17, 33, 64] {
            assert_eq!(skinny(m, 6144, 4096), (2, 2));
            assert_eq!(skinny(m, 4096, 4096), if m <= 32 { (4, 3) } else { (2, 2) });
            assert_eq!(skinny(m, 24_576, 4096), (1, 3));
            assert_eq!(skinny(m, 4096, 12_288), (2, 1));
        }
    }

    #[test]
    fn long_sums_of_few_tiles_are_shared_by_more_blocks() {
        assert_eq!(skinny(16, 2048, 6144), (4, 2));
        assert_eq!(skinny(16, 2560, 9728), (4, 2));
        assert_eq!(skinny(16, 1024, 12_288), (4, 2));
    }

    #[test]
    fn any_product_has_a_split_that_leaves_each_block_columns() {
        for (m, n) in
            [9, 20, 64, 100].into_iter().flat_map(|m| [16, 64, 80, 1024, 5120, 51_200, 1 << 20].map(|n| (m, n)))
        {
            for k in [16, 128, 400, 1024, 4096, 29_568] {
                let (split, blocks_per_sm) = skinny(m, n, k);
                assert!(split == 1 || k.div_ceil(COLUMNS) / split >= SHORTEST_SUM, "{m} {n} {k}");
                assert!((1..=MAX_SPLIT).contains(&split) && (1..=MAX_BLOCKS_PER_SM).contains(&blocks_per_sm));
            }
        }
    }

    #[test]
    fn blocks_fit_beside_each_other_and_sums_into_their_rings() {
        for blocks_per_sm in 1..=MAX_BLOCKS_PER_SM {
            for x_rows in X_ROWS {
                let (stages, bytes) = Skinny { split: 1, blocks_per_sm }.ring(x_rows);
                assert!((2..=MAX_STAGES).contains(&stages), "{blocks_per_sm} {x_rows}: {stages}");
                assert!((bytes + OTHER_BYTES) * blocks_per_sm <= SM_BYTES && bytes + 1024 + 256 <= MAX_BLOCK_BYTES);
            }
        }
    }
}
