//! The CUDA launcher.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch, Shape};

use super::{OP, Sizes, VarlenAttention};
use crate::OpError;
use crate::packs::blocks;

static SOURCE: KernelSource =
    KernelSource { name: "varlen_attention", text: include_str!("kernel.cu"), headers: crate::cuda::HEADERS };

/// `NUM_WARPS` of the kernel.
const NUM_WARPS: usize = 4;
/// Query rows of a tile of the tensor cores.
const M: usize = 16;
/// The widest head that the kernel takes, and the widest of which a warp holds 32 rows without spilling registers.
const MAX_HEAD_DIM: usize = 128;
const MAX_TALL_HEAD_DIM: usize = 80;
/// Above it, the bytes of a tile's rows could pass 32 bits.
const MAX_HEADS: usize = 32_767;
/// Blocks of tall tiles that a multiprocessor holds at once.
const TALL_BLOCKS_PER_SM: usize = 2;

/// How rows are cut into blocks' tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    head_dim: usize,
    /// Tiles of 16 query rows to a warp: with two, keys and values are read from shared memory half as often; with one,
    /// there are twice as many blocks, and a window of 64 rows fills one.
    m_tiles: usize,
    /// Keys of a stage.
    keys: usize,
}

impl Plan {
    /// Tiles of 128 rows or of 64.
    pub(super) const fn new(head_dim: usize, is_tall: bool) -> Self {
        // Scores of 64 keys beside 80 sums of values leave too few registers.
        let keys = if is_tall && head_dim > 72 { 48 } else { 64 };
        Self { head_dim, m_tiles: if is_tall { 2 } else { 1 }, keys }
    }

    /// Query rows of a block.
    const fn tile(self) -> usize {
        NUM_WARPS * M * self.m_tiles
    }

    /// Two stages of keys and values, the second of which holds a tile's queries at first.
    const fn shared_bytes(self) -> usize {
        let row_bytes = ((self.head_dim / 8) | 1) * 16;
        let (stage, queries) = (2 * self.keys * row_bytes, self.tile() * row_bytes);
        stage + if queries > stage { queries } else { stage }
    }

    const fn spec(self) -> KernelSpec {
        KernelSpec::new(&SOURCE, "varlen_attention")
            .int("HEAD_DIM", self.head_dim as i64)
            .int("M_TILES", self.m_tiles as i64)
            .int("KEYS", self.keys as i64)
    }
}

/// Tall tiles where segments are long enough on average to fill more than half of one, and where there are enough of
/// them for all multiprocessors.
fn plan(sizes: Sizes, num_segments: usize, num_sms: usize) -> Plan {
    let Sizes { n, num_heads, head_dim } = sizes;
    let tall = Plan::new(head_dim, true);
    let is_long = n > num_segments * tall.tile() / 2;
    let fills = n.div_ceil(tall.tile()) * num_heads >= TALL_BLOCKS_PER_SM * num_sms;
    Plan::new(head_dim, head_dim <= MAX_TALL_HEAD_DIM && is_long && fills)
}

pub(super) fn varlen_attention(stream: &CudaStream, args: &VarlenAttention<'_>, sizes: Sizes) -> Result<(), OpError> {
    let num_segments = args.cu_seqlens.shape().num_elements().saturating_sub(1);
    run(stream, args, sizes, plan(sizes, num_segments, stream.num_sms() as usize))
}

/// With a given plan, so that tests reach each.
pub(super) fn run(stream: &CudaStream, args: &VarlenAttention<'_>, sizes: Sizes, plan: Plan) -> Result<(), OpError> {
    let Sizes { n, num_heads, head_dim } = sizes;
    let out = args.out.as_view();
    OP.dtype("qkv", args.qkv.dtype(), DType::BF16, "bf16 on CUDA")?;
    OP.dtype("out", out.dtype(), DType::BF16, "bf16 on CUDA")?;
    if n == 0 || num_heads == 0 || head_dim == 0 {
        return Ok(());
    }
    let unfit = |arg, got: &Shape, expected: &str| Err(OP.bad_shape(arg, got, expected.to_owned()));
    if !head_dim.is_multiple_of(8) || head_dim > MAX_HEAD_DIM {
        return unfit("qkv", args.qkv.shape(), "a head_dim that is a multiple of 8 up to 128, on CUDA");
    }
    if num_heads > MAX_HEADS {
        return unfit("qkv", args.qkv.shape(), "32767 heads at most, on CUDA");
    }
    let Some(num_segments @ 1..) = args.cu_seqlens.shape().num_elements().checked_sub(1) else {
        return unfit("cu_seqlens", args.cu_seqlens.shape(), "2 lengths or more, as there are rows");
    };
    // Rows are copied 16 bytes at a time.
    OP.aligned("qkv", &args.qkv)?;
    OP.aligned("out", &out)?;
    launch(stream, args, sizes, num_segments, plan).map_err(|source| OP.device(source))
}

fn launch(
    stream: &CudaStream,
    args: &VarlenAttention<'_>,
    sizes: Sizes,
    num_segments: usize,
    plan: Plan,
) -> Result<(), DeviceError> {
    let Sizes { n, num_heads, .. } = sizes;
    let mut params = Args::new();
    params.ptr(&args.qkv)?.ptr(&args.cu_seqlens)?.ptr_mut(&args.out)?;
    params.usize_as_i32(n)?.usize_as_i32(num_segments)?.usize_as_i32(num_heads)?.f32(args.scale);
    // A segment begins on a slot of its own: see the kernel.
    let slots = blocks(n / plan.tile() + num_segments, 1)?;
    let launch = Launch::new([slots, num_heads as u32, 1], [32 * NUM_WARPS as u32, 1, 1]);
    let launch = launch.shared_bytes(plan.shared_bytes() as u32);
    // SAFETY: `VarlenAttention::check` has found the operands of the sizes that the parameters tell, `run` that rows are of
    // whole, aligned 16 bytes; the kernel bounds the rows that `cu_seqlens` tells by n.
    unsafe { stream.launch(&plan.spec(), launch, &mut params) }
}

/// The variants of the published models: heads of Qwen3-VL's towers (64 and 72) and of Qwen2.5-VL's (80).
pub(crate) fn variants() -> Vec<KernelSpec> {
    let plans = [64, 72, 80].into_iter().flat_map(|head_dim| [false, true].map(|is_tall| Plan::new(head_dim, is_tall)));
    plans.map(Plan::spec).collect()
}

#[cfg(test)]
mod tests {
    use super::{MAX_HEAD_DIM, Plan, plan, variants};
    use crate::varlen_attention::Sizes;

    const SMS: usize = 132;

    fn tile(n: usize, num_segments: usize, num_heads: usize, head_dim: usize) -> usize {
        plan(Sizes { n, num_heads, head_dim }, num_segments, SMS).tile()
    }

    #[test]
    fn long_segments_take_tall_tiles_and_windows_short_ones() {
        assert_eq!(tile(8 * 1024, 8, 16, 72), 128);
        assert_eq!(tile(4096, 1, 16, 72), 128);
        assert_eq!(tile(4096, 1, 16, 80), 128);
        // Windows of 64, whole and ragged.
        assert_eq!(tile(8192, 128, 16, 80), 64);
        assert_eq!(tile(8192, 200, 16, 80), 64);
        // Segments a little above that fill most of a tall tile.
        assert_eq!(tile(8192, 80, 16, 80), 128);
        // One small picture: 64 blocks of 128 rows leave half of the multiprocessors idle.
        assert_eq!(tile(512, 1, 16, 72), 64);
        assert_eq!(tile(1024, 1, 16, 72), 64);
        // A wide head of 32 rows would spill.
        assert_eq!(tile(8 * 1024, 8, 16, 128), 64);
    }

    #[test]
    fn shared_memory_is_what_every_card_gives() {
        // The least of sm_80, 86, 89, 90, 100 and 120.
        const MAX_SHARED_BYTES: usize = 99 << 10;
        let plan = |head_dim, is_tall| Plan::new(head_dim, is_tall).shared_bytes();
        assert_eq!(plan(72, true), 4 * 64 * 144);
        assert_eq!(plan(72, false), 4 * 64 * 144);
        assert_eq!(plan(64, true), 4 * 64 * 144);
        assert_eq!(plan(80, false), 4 * 64 * 176);
        assert_eq!(plan(80, true), 2 * 48 * 176 + 128 * 176);
        assert!((8..=MAX_HEAD_DIM).step_by(8).all(|head_dim| plan(head_dim, false) <= MAX_SHARED_BYTES));
    }

    #[test]
    fn variants_differ() {
        let variants = variants();
        assert_eq!(variants.len(), 6);
        assert!(variants.iter().enumerate().all(|(i, a)| variants[..i].iter().all(|b| a != b)));
    }
}
