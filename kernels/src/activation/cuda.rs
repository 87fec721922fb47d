//! The CUDA launchers.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, KernelSource, KernelSpec, Launch};

use super::{ACTIVATE, Activate, Activation, GATED, Gated};
use crate::OpError;
use crate::cuda::{CLUSTER, CLUSTER_CAPABILITY, MBARRIER, PRELUDE, QUANTIZE, distinct, following};
use crate::packs::{Operand, WARP, blocks, pack_len};
use crate::quantize::{Form, GROUP, check_group_pack, quantize_params, scale_params};

static SOURCE: KernelSource = KernelSource {
    name: "activation",
    text: include_str!("kernel.cu"),
    headers: &[PRELUDE, QUANTIZE, MBARRIER, CLUSTER],
};

/// `THREADS` of the kernels.
const THREADS: usize = 256;

/// Elements of a gated kernel's pack at most: two operands of it are held as float32.
const MAX_PACK: usize = 8;

/// `PACKS` of `activate`: packs that a thread computes.
const PACKS: usize = 2;

/// Bytes of an asynchronous copy.
const COPY_BYTES: usize = 16;

fn spec(entry: &'static str, [from, to]: [DType; 2], pack: usize, kind: Activation) -> KernelSpec {
    let kind = match kind {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
    };
    KernelSpec::new(&SOURCE, entry).dtype("X_T", from).dtype("OUT_T", to).int("VEC", pack as i64).int("KIND", kind)
}

fn spec_activate(types: [DType; 2], pack: usize, kind: Activation) -> KernelSpec {
    spec("activate", types, pack, kind).int("THREADS", THREADS as i64).int("SCALED", 0).int("QUANTIZE", 0)
}

/// How a gated kernel's work is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// Packs of so many elements, whatever their row.
    Packs(usize),
    /// A row to a block, in shared memory or not.
    Row { pack: usize, is_held: bool },
    /// Rows to a cluster of blocks.
    Split { pack: usize, split: Split },
}

/// `THREADS` of a block that takes a row.
const ROW_THREADS: usize = 512;

/// Bytes of a row that a block holds at most: what every card has.
const MAX_HELD_BYTES: usize = 96 << 10;

/// How clusters share rows out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    /// Blocks of a cluster: each has its columns of all its rows.
    blocks: usize,
    /// Threads of a block.
    threads: usize,
    /// Rows of a cluster, whose columns' scales are read once for all.
    rows: usize,
    /// Packs of a row that a thread has.
    packs: usize,
    /// Blocks that a multiprocessor has room for: with two, the next kernel's can stand by.
    per_sm: usize,
}

/// The most rows that clusters take one by one: with more, the card is busy anyway.
const MAX_SINGLE_ROWS: usize = 32;

/// The most rows that clusters take. With more, waiting for the other blocks costs more than it brings.
const MAX_SPLIT_ROWS: usize = 256;

impl Split {
    const MAX_BLOCKS: usize = 4;
    const MAX_THREADS: usize = 1024;
    /// Of blocks whose threads hold two packs of two rows: 128 registers each are there for so many.
    const MAX_PAIR_THREADS: usize = 512;
    /// The same, twice on a multiprocessor without spills.
    const MAX_TWICE_THREADS: usize = 384;

    fn threads(row_len: usize, pack: usize, blocks: usize) -> usize {
        row_len.div_ceil(pack * blocks).next_multiple_of(WARP)
    }

    /// A row to a cluster; `None` for one that is too wide.
    fn single(row_len: usize, pack: usize) -> Option<Self> {
        let blocks = Self::MAX_BLOCKS;
        let threads = Self::threads(row_len, pack, blocks);
        (threads <= Self::MAX_THREADS).then_some(Self { blocks, threads, rows: 1, packs: 1, per_sm: 1 })
    }

    /// Two rows to a cluster, of as few blocks as can be: those of two fit into every cluster of the card's multiprocessors.
    fn pair(row_len: usize, pack: usize) -> Option<Self> {
        let packs = 2;
        let threads = |blocks| Self::threads(row_len, pack * packs, blocks);
        let blocks = [2, Self::MAX_BLOCKS].into_iter().find(|&blocks| threads(blocks) <= Self::MAX_PAIR_THREADS)?;
        let threads = threads(blocks);
        let per_sm = if threads <= Self::MAX_TWICE_THREADS { 2 } else { 1 };
        Some(Self { blocks, threads, rows: 2, packs, per_sm })
    }

    /// For `n` rows; `None` where a block takes a row.
    fn of(n: usize, row_len: usize, pack: usize) -> Option<Self> {
        if n <= MAX_SINGLE_ROWS {
            Self::single(row_len, pack)
        } else {
            Self::pair(row_len, pack).filter(|_| n <= MAX_SPLIT_ROWS)
        }
    }
}

impl Share {
    /// A row to a block.
    fn row(x: DType, row_len: usize, pack: usize) -> Self {
        let fits = row_len * size_of::<f32>() <= MAX_HELD_BYTES;
        let is_held = fits && pack * x.size_bytes() == COPY_BYTES && 2 * x.size_bytes() == size_of::<f32>();
        Self::Row { pack, is_held }
    }

    /// For scales by row.
    fn by_row(x: DType, [n, row_len]: [usize; 2], pack: usize, has_clusters: bool) -> Self {
        let split = if has_clusters { Split::of(n, row_len, pack) } else { None };
        split.map_or_else(|| Self::row(x, row_len, pack), |split| Self::Split { pack, split })
    }
}

fn spec_gated(types: [DType; 2], share: Share, kind: Activation, is_scaled: bool, form: Form) -> KernelSpec {
    let spec = match share {
        Share::Packs(pack) => spec("gated", types, pack, kind).int("THREADS", THREADS as i64),
        Share::Row { pack, is_held } => {
            spec("gated_row", types, pack, kind).int("THREADS", ROW_THREADS as i64).int("HELD", i64::from(is_held))
        }
        Share::Split { pack, split: Split { blocks, threads, rows, packs, per_sm } } => {
            let spec =
                spec("gated_split", types, pack, kind).int("THREADS", threads as i64).int("SPLIT", blocks as i64);
            spec.int("ROWS", rows as i64).int("PACKS_EACH", packs as i64).int("PER_SM", per_sm as i64)
        }
    };
    spec.int("SCALED", i64::from(is_scaled)).int("QUANTIZE", form as i64)
}

pub(super) fn activate(stream: &CudaStream, args: &Activate<'_>, num_elements: usize) -> Result<(), OpError> {
    launch_activate(stream, args, num_elements).map_err(|source| ACTIVATE.device(source))
}

fn launch_activate(stream: &CudaStream, args: &Activate<'_>, num_elements: usize) -> Result<(), DeviceError> {
    let Activate { x, kind, out } = args;
    // All rows as one.
    let pack = pack_len(num_elements, &[Operand::of(x)?, Operand::of_mut(out)?]);
    let num_packs = num_elements / pack;
    let mut params = Args::new();
    params.ptr(x)?.ptr_mut(out)?.usize_as_i32(num_packs)?;
    let launch = Launch::new([blocks(num_packs, THREADS * PACKS)?, 1, 1], [THREADS as u32, 1, 1]);
    let spec = spec_activate([x.dtype(), out.dtype()], pack, *kind);
    // SAFETY: `Activate::check` has found `num_elements` elements in both operands, and the parameters are the kernel's.
    unsafe { stream.launch(&spec, following(stream, launch), &mut params) }
}

pub(super) fn gated(stream: &CudaStream, args: &Gated<'_>, sizes: [usize; 2]) -> Result<(), OpError> {
    let [n, i] = sizes;
    if n == 0 || i == 0 {
        return Ok(());
    }
    let operands = operands(args).map_err(|source| GATED.device(source))?;
    let form = Form::of(args.quantize.as_ref());
    let pack = pack_len(i, &operands).min(MAX_PACK);
    let share = match form {
        Form::Float | Form::Fixed => Share::Packs(pack),
        Form::PerGroup => {
            check_group_pack(GATED, pack)?;
            let is_held = false;
            if i.is_multiple_of(GROUP) { Share::Packs(pack) } else { Share::Row { pack, is_held } }
        }
        Form::PerRow => {
            let has_clusters = stream.compute_capability() >= CLUSTER_CAPABILITY;
            Share::by_row(args.gate_up.dtype(), sizes, pack, has_clusters)
        }
    };
    launch_gated(stream, args, sizes, (share, form)).map_err(|source| GATED.device(source))
}

/// What is read and written by packs.
fn operands(args: &Gated<'_>) -> Result<[Operand; 3], DeviceError> {
    let gate_up = Operand::of(&args.gate_up)?;
    let columns = args.scales.as_ref().map_or(Ok(gate_up), |scales| Operand::of(&scales.columns))?;
    Ok([gate_up, Operand::of_mut(&args.out)?, columns])
}

fn launch_gated(
    stream: &CudaStream,
    args: &Gated<'_>,
    [n, i]: [usize; 2],
    (share, form): (Share, Form),
) -> Result<(), DeviceError> {
    let Gated { gate_up, scales, kind, quantize, out } = args;
    let mut params = Args::new();
    params.ptr(gate_up)?;
    scale_params(&mut params, scales.as_ref())?;
    params.ptr_mut(out)?;
    quantize_params(&mut params, quantize.as_ref())?;
    let launch = match share {
        Share::Packs(pack) => {
            let num_packs = n * i / pack;
            params.usize_as_i32(num_packs)?.usize_as_i32(i / pack)?;
            Launch::new([blocks(num_packs, THREADS)?, 1, 1], [THREADS as u32, 1, 1])
        }
        Share::Row { is_held, .. } => {
            params.usize_as_i32(i)?;
            let held_bytes = if is_held { i * size_of::<f32>() } else { 0 };
            Launch::new([blocks(n, 1)?, 1, 1], [ROW_THREADS as u32, 1, 1]).shared_bytes(held_bytes as u32)
        }
        Share::Split { split, .. } => {
            params.usize_as_i32(n)?.usize_as_i32(i)?;
            let num_blocks = n.div_ceil(split.rows) * split.blocks;
            let launch = Launch::new([blocks(num_blocks, 1)?, 1, 1], [split.threads as u32, 1, 1]);
            launch.cluster([split.blocks as u32, 1, 1])
        }
    };
    let spec = spec_gated([gate_up.dtype(), out.dtype()], share, *kind, scales.is_some(), form);
    // SAFETY: `Gated::check` has found `n` rows of `2 i` and of `i` elements and scales for them, and the parameters are the
    // kernel's.
    unsafe { stream.launch(&spec, following(stream, launch), &mut params) }
}

/// The variants of the published models, bf16 and, for decoders, FP8.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let bf16 = [DType::BF16; 2];
    let silu = Activation::Silu;
    // Every size of a decoder's MLP and of a plain tower's is a multiple of 8, Qwen2.5-VL's gated tower's (3420) of 4.
    let gated = [8, 4].map(|pack| spec_gated(bf16, Share::Packs(pack), silu, false, Form::Float));
    let plain = [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu];
    let plain = plain.map(|kind| spec_activate(bf16, 8, kind));
    let decoders = [6144, 8960, 9728, 11_008, 12_288, 18_944, 25_600, 27_648, 29_568];
    let decoders = decoders.into_iter().flat_map(|i| [(i, true), (i, false)]).flat_map(|(i, is_scaled)| {
        let packs = [Form::Float, Form::Fixed, Form::PerGroup].map(|form| (form, Share::Packs(MAX_PACK)));
        let splits = [Split::single(i, MAX_PACK), Split::pair(i, MAX_PACK)].into_iter().flatten();
        let splits = splits.map(|split| Share::Split { pack: MAX_PACK, split });
        let rows = splits.chain([Share::row(DType::BF16, i, MAX_PACK)]).map(|share| (Form::PerRow, share));
        let spec =
            move |(form, share)| spec_gated([DType::BF16, Form::out(form, DType::BF16)], share, silu, is_scaled, form);
        packs.into_iter().chain(rows).map(spec)
    });
    distinct(gated.into_iter().chain(plain).chain(decoders))
}

#[cfg(test)]
mod tests {
    use super::{MAX_PACK, MAX_SPLIT_ROWS, Split};

    #[test]
    fn clusters_take_few_rows() {
        let single = Split { blocks: 4, threads: 384, rows: 1, packs: 1, per_sm: 1 };
        let pair = Split { blocks: 2, threads: 384, rows: 2, packs: 2, per_sm: 2 };
        assert_eq!([1, 32].map(|n| Split::of(n, 12_288, MAX_PACK)), [Some(single); 2]);
        assert_eq!([33, MAX_SPLIT_ROWS].map(|n| Split::of(n, 12_288, MAX_PACK)), [Some(pair); 2]);
        assert_eq!(Split::of(MAX_SPLIT_ROWS + 1, 12_288, MAX_PACK), None);
        // Wider rows take more blocks, and such as no cluster holds none.
        let wide = Split { blocks: 4, threads: 480, rows: 2, packs: 2, per_sm: 1 };
        assert_eq!(Split::of(128, 29_568, MAX_PACK), Some(wide));
        assert_eq!([1, 128].map(|n| Split::of(n, 40_000, MAX_PACK)), [None; 2]);
    }

    #[test]
    fn a_clusters_threads_hold_its_rows() {
        for (n, row_len) in [1, 40].into_iter().flat_map(|n| [1, 8, 1544, 9728, 18_944, 25_600].map(|len| (n, len))) {
            let split = Split::of(n, row_len, MAX_PACK).unwrap();
            assert!(split.blocks * split.threads * split.packs * MAX_PACK >= row_len, "{row_len}: {split:?}");
            assert!(split.threads.is_multiple_of(32) && split.threads * split.per_sm <= 1024, "{row_len}: {split:?}");
        }
    }
}
