//! The CUDA launchers.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, Header, KernelSource, KernelSpec, Launch, Shape, View};

use super::hopper;
use super::plan::{HEADER_INTS, ITEM_INTS, NUM_WARPS, QUEUE_COUNTERS, Tiles, work_size};
use super::{OP, PLAN, PagedAttention, Plan, Sizes, Work};
use crate::cuda::{distinct, following};
use crate::packs::blocks;
use crate::quantize::{Form, quantize_params};
use crate::{KvLayout, OpError};

/// What the kernels include: the crate's own headers, and those that they alone share.
pub(super) const HEADERS: &[Header] = &[
    crate::cuda::PRELUDE,
    crate::cuda::QUANTIZE,
    crate::cuda::ATTENTION,
    crate::cuda::MBARRIER,
    crate::cuda::HOPPER,
    Header { name: "kv_fragments.cuh", text: include_str!("../../include/kv_fragments.cuh") },
    Header { name: "paged_work.cuh", text: include_str!("../../include/paged_work.cuh") },
    Header { name: "paged_attention.cuh", text: include_str!("../../include/paged_attention.cuh") },
];
static ATTENTION: KernelSource =
    KernelSource { name: "paged_attention", text: include_str!("kernel.cu"), headers: HEADERS };
static WORK_LIST: KernelSource =
    KernelSource { name: "paged_attention_work_list", text: include_str!("work_list.cu"), headers: HEADERS };

const LIST_SPEC: KernelSpec = KernelSpec::new(&WORK_LIST, "paged_attention_work_list");
/// `THREADS` of the list's kernel, and what it keeps of a sequence in shared memory.
const LIST_THREADS: u32 = 1024;
const LIST_SEQUENCE_BYTES: usize = 12;
/// So many sequences fit the shared memory that every card gives without being asked, beside 1 KiB of others.
const MAX_SEQS: usize = (47 << 10) / LIST_SEQUENCE_BYTES;
const MAX_HEAD_DIM: usize = 128;
/// The sign bits of two bf16.
const SIGNS: u32 = 0x8000_8000;

/// `takes_prefill`: chunks too, which on Hopper another kernel takes.
fn spec(tiles: Tiles, page: usize, takes_prefill: bool) -> KernelSpec {
    KernelSpec::new(&ATTENTION, "paged_attention_bf16")
        .int("KV_F8", i64::from(tiles.is_f8))
        .int("HEAD_DIM", tiles.head_dim as i64)
        .int("PAGE", page as i64)
        .int("BLOCK_N", tiles.block_n as i64)
        .int("DECODE_STAGES", tiles.decode_stages as i64)
        .int("CTAS_PER_SM", tiles.ctas_per_sm as i64)
        .int("TAKES_PREFILL", i64::from(takes_prefill))
}

/// The tiles and the grid, which any batch has.
fn grid(stream: &CudaStream, layout: KvLayout) -> (Tiles, usize) {
    let tiles = Tiles::choose(layout, stream.compute_capability());
    (tiles, stream.num_sms() as usize * tiles.ctas_per_sm)
}

pub(super) fn plan(stream: &CudaStream, args: &Plan<'_>, num_seqs: usize) -> Result<(), OpError> {
    let Plan { num_heads, layout, .. } = *args;
    if num_seqs > MAX_SEQS {
        return Err(PLAN.bad_shape("context_lens", args.context_lens.shape(), format!("{MAX_SEQS} or fewer on CUDA")));
    }
    let (list, counters) = (args.list.as_view(), args.counters.as_view());
    let (max_items, max_slots) = capacity(&list, &counters);
    if max_items == 0 || num_heads == 0 {
        return Err(PLAN.bad_shape("list", list.shape(), "as `work_size` says".to_owned()));
    }
    // Items, rows and partial results are moved 16 bytes at a time.
    PLAN.aligned("list", &list)?;
    let (_, num_ctas) = grid(stream, layout);
    let run = || -> Result<(), DeviceError> {
        let mut params = Args::new();
        params.ptr(&args.cu_seqlens)?.ptr(&args.context_lens)?.ptr_mut(&args.list)?.ptr_mut(&args.counters)?;
        params.usize_as_i32(num_seqs)?.usize_as_i32(num_heads / layout.num_kv_heads)?;
        params.usize_as_i32(layout.num_kv_heads)?.usize_as_i32(max_items)?.usize_as_i32(max_slots)?;
        // What takes chunks on Hopper has a block per multiprocessor.
        let num_prefill_ctas = if hopper::serves(stream, layout) { stream.num_sms() as usize } else { num_ctas };
        params.usize_as_i32(num_ctas)?.usize_as_i32(num_prefill_ctas)?;
        let launch = Launch::new([1, 1, 1], [LIST_THREADS, 1, 1]);
        let launch = launch.shared_bytes((num_seqs * LIST_SEQUENCE_BYTES) as u32);
        // SAFETY: `Plan::check` has found the operands of the sizes that the parameters tell; the kernel writes no more
        // items and counters than there is room for.
        unsafe { stream.launch(&LIST_SPEC, launch, &mut params) }
    };
    run().map_err(|source| PLAN.device(source))
}

/// Items of a list and slots of partial results that the lent memory has room for.
fn capacity(list: &View<'_>, counters: &View<'_>) -> (usize, usize) {
    let items = list.shape().num_elements().saturating_sub(HEADER_INTS) / ITEM_INTS;
    (items, counters.shape().num_elements().saturating_sub(QUEUE_COUNTERS))
}

pub(super) fn paged_attention(stream: &CudaStream, args: &PagedAttention<'_>, sizes: Sizes) -> Result<(), OpError> {
    let out = args.out.as_view();
    OP.dtype("q", args.q.dtype(), DType::BF16, "bf16 on CUDA")?;
    if args.quantize.is_none() {
        OP.dtype("out", out.dtype(), DType::BF16, "bf16 on CUDA")?;
    }
    let is_f8 = args.layout.dtype == DType::F8E4M3;
    if is_f8 && !stream.has_f8() {
        return Err(OP.bad_dtype("k_cache", args.layout.dtype, "bf16: FP8 begins with compute capability 8.9"));
    }
    if !is_f8 && args.layout.dtype != DType::BF16 {
        return Err(OP.bad_dtype("k_cache", args.layout.dtype, "bf16 or f8_e4m3 on CUDA"));
    }
    if sizes.n == 0 || sizes.num_heads == 0 || sizes.head_dim == 0 {
        return Ok(());
    }
    // Heads are copied 16 bytes at a time.
    let multiple = if is_f8 || args.quantize.is_some() { 16 } else { 8 };
    if !sizes.head_dim.is_multiple_of(multiple) || sizes.head_dim > MAX_HEAD_DIM {
        let expected = format!("a head_dim that is a multiple of {multiple} up to 128, on CUDA");
        return Err(OP.bad_shape("q", args.q.shape(), expected));
    }
    for (arg, view) in [("q", &args.q), ("k_cache", &args.k_cache), ("v_cache", &args.v_cache), ("out", &out)] {
        OP.aligned(arg, view)?;
    }
    let reason = "is needed on CUDA: the list that `plan` has written, and memory for partial results";
    let work = args.work.as_ref().ok_or(OpError::Mismatch { op: OP.0, arg: "work", reason })?;
    check_work(work, sizes, args.layout, stream.num_sms() as usize)?;
    launch(stream, args, work, sizes).map_err(|source| OP.device(source))
}

/// Enough memory for any batch of these shapes.
fn check_work(work: &Work<'_>, sizes: Sizes, layout: KvLayout, num_sms: usize) -> Result<(), OpError> {
    let need = work_size(sizes.n, sizes.num_seqs, sizes.num_heads, layout, num_sms);
    let (counters, partials) = (work.counters.as_view(), work.partials.as_view());
    let enough = |arg, view: &View<'_>, dtype, expected, len: usize| {
        OP.dtype(arg, view.dtype(), dtype, expected)?;
        OP.aligned(arg, view)?;
        let shape: &Shape = view.shape();
        if shape.num_elements() < len {
            Err(OP.bad_shape(arg, shape, format!("{len} elements or more")))
        } else {
            Ok(())
        }
    };
    enough("work.list", &work.list, DType::I32, "i32", need.list_len)?;
    enough("work.counters", &counters, DType::I32, "i32", need.counters_len)?;
    // The slots that the list may name are as many as there are counters.
    let (_, num_slots) = capacity(&work.list, &counters);
    let partials_len = num_slots.saturating_mul(16 * (sizes.head_dim + 2));
    enough("work.partials", &partials, DType::F32, "f32", partials_len)
}

fn launch(stream: &CudaStream, args: &PagedAttention<'_>, work: &Work<'_>, sizes: Sizes) -> Result<(), DeviceError> {
    let layout = args.layout;
    let (tiles, num_ctas) = grid(stream, layout);
    // A step with no more rows than sequences has decode rows alone, or few others: they are not worth a launch.
    let by_hopper = hopper::serves(stream, layout) && sizes.n > sizes.num_seqs && sizes.num_blocks > 0;
    if by_hopper {
        hopper::launch_prefill(stream, args, work, sizes)?;
    }
    let mut params = Args::new();
    common_params(&mut params, args, work, sizes)?;
    let launch = Launch::new([blocks(num_ctas, 1)?, 1, 1], [32 * NUM_WARPS as u32, 1, 1])
        .shared_bytes(tiles.shared_bytes() as u32);
    // SAFETY: `PagedAttention::check` has found the operands of the sizes that the parameters tell, `check_work` enough
    // counters and partial results for every slot; the kernel bounds rows by n, pages by their table and blocks by the
    // cache, and passes over an item of the list that doesn't keep within these sizes. Beside the kernel for chunks, which
    // has waited for whatever wrote the operands, it writes other rows, slots and counters than that one, and ends after it.
    unsafe { stream.launch(&spec(tiles, layout.page, !by_hopper), following(stream, launch), &mut params) }
}

/// The factor of scores: a positive one of powers of 2; a sign goes to the queries, and 0 to a factor so small that all
/// weights are alike.
struct Factor {
    scale: f32,
    /// What is flipped in two elements of a query.
    flip: u32,
}

impl Factor {
    fn of(args: &PagedAttention<'_>) -> Self {
        let scale = (args.scale.abs() * args.kv_scales.k * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE);
        Self { scale, flip: if args.scale.is_sign_negative() { SIGNS } else { 0 } }
    }
}

/// The operands and sizes that both kernels are told, in order.
pub(super) fn common_params(
    params: &mut Args,
    args: &PagedAttention<'_>,
    work: &Work<'_>,
    sizes: Sizes,
) -> Result<(), DeviceError> {
    params.ptr(&args.q)?.ptr(&args.k_cache)?.ptr(&args.v_cache)?.ptr(&args.block_tables)?;
    params.ptr(&work.list)?.ptr_mut(&work.counters)?.ptr_mut(&work.partials)?.ptr_mut(&args.out)?;
    quantize_params(params, args.quantize.as_ref())?;
    params.i32(Form::of(args.quantize.as_ref()) as i32);
    let num_kv_heads = args.layout.num_kv_heads;
    let (num_items, num_slots) = capacity(&work.list, &work.counters.as_view());
    params.usize_as_i32(sizes.n)?.usize_as_i32(num_kv_heads)?.usize_as_i32(sizes.num_heads / num_kv_heads)?;
    params.usize_as_i32(sizes.num_blocks)?.usize_as_i32(sizes.num_seqs)?.usize_as_i32(sizes.max_blocks)?;
    params.usize_as_i32(num_items)?.usize_as_i32(num_slots)?;
    let Factor { scale, flip } = Factor::of(args);
    params.f32(scale).f32(args.kv_scales.v).u32(flip);
    Ok(())
}

/// The variants of the published models, whose heads are of 128 elements, on each kind of card.
pub(crate) fn variants() -> Vec<KernelSpec> {
    let caches = [DType::BF16, DType::F8E4M3];
    let cards = [((8, 0), true), ((8, 9), true), ((9, 0), true), ((9, 0), false)];
    let pairs = caches.into_iter().flat_map(|dtype| cards.map(|card| (dtype, card)));
    let both = pairs.map(|(dtype, (capability, takes_prefill))| {
        let layout = KvLayout { page: KvLayout::DEFAULT_PAGE, dtype, num_kv_heads: 8, head_dim: MAX_HEAD_DIM };
        spec(Tiles::choose(layout, capability), layout.page, takes_prefill)
    });
    distinct([LIST_SPEC].into_iter().chain(both).chain(hopper::variants()))
}

#[cfg(test)]
mod tests {
    use super::{MAX_SEQS, variants};

    #[test]
    fn variants_differ() {
        let variants = variants();
        assert!(variants.iter().enumerate().all(|(i, a)| variants[..i].iter().all(|b| a != b)));
    }

    #[test]
    fn thousands_of_sequences_fit() {
        const { assert!(MAX_SEQS >= 4000) };
    }
}
