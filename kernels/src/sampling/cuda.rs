//! The CUDA launchers.
#![allow(unsafe_code)]

use foveal_device::{Args, CudaStream, DType, DeviceError, Header, KernelSource, KernelSpec, Launch, View, ViewMut};

use super::Sample;
use super::check::{OP, Sizes};
use super::layout::{ALIGN, GROUP, Layout, MAX_GROUPS, is_all_greedy, pack};
use super::mark::{self, Mark};
use crate::OpError;
use crate::check::Op;
use crate::cuda::following;
use crate::packs::blocks;

static HEADERS: &[Header] = &[
    crate::cuda::PRELUDE,
    Header { name: "sampling.cuh", text: include_str!("../../include/sampling.cuh") },
    Header { name: "sampling_row.cuh", text: include_str!("../../include/sampling_row.cuh") },
];
static SCAN_SOURCE: KernelSource =
    KernelSource { name: "sampling_scan", text: include_str!("scan.cu"), headers: HEADERS };
static CHOOSE_SOURCE: KernelSource =
    KernelSource { name: "sampling_choose", text: include_str!("choose.cu"), headers: HEADERS };

static SCAN: KernelSpec = KernelSpec::new(&SCAN_SOURCE, "sample_scan");
static SCAN_HISTORY: KernelSpec = KernelSpec::new(&SCAN_SOURCE, "sample_scan_history");
static GREEDY: KernelSpec = KernelSpec::new(&SCAN_SOURCE, "sample_greedy");
static CHOOSE: KernelSpec = KernelSpec::new(&CHOOSE_SOURCE, "sample_choose");
static MARK: KernelSpec = KernelSpec::new(&SCAN_SOURCE, "mark");

/// `WARPS` of scan.cu: tasks of a block.
const WARPS: usize = 4;
/// `THREADS` of choose.cu.
const CHOOSE_THREADS: u32 = 1024;
/// `MARK_THREADS` of scan.cu.
const MARK_THREADS: usize = 256;

pub(super) fn sample(stream: &CudaStream, mut args: Sample<'_>, sizes: Sizes) -> Result<(), OpError> {
    let Sizes { num_rows, vocab_size, num_top } = sizes;
    if vocab_size > GROUP * MAX_GROUPS {
        let expected = format!("at most {} tokens on a GPU", GROUP * MAX_GROUPS);
        return Err(OP.bad_shape("logits", args.logits.shape(), expected));
    }
    let is_quick = is_all_greedy(args.rows, args.banned, num_top);
    let num_banned = if is_quick { 0 } else { args.banned.iter().map(|ids| ids.len()).sum() };
    let layout = Layout::new(num_rows, vocab_size, num_banned);
    check_workspace(OP, &args.workspace.as_view(), layout.len_bytes, ALIGN)?;
    if num_rows == 0 {
        return Ok(());
    }
    if is_quick {
        return launch_greedy(stream, &args, sizes, layout).map_err(|source| OP.device(source));
    }
    let too_many = || OP.device(DeviceError::TooLarge { value: num_banned });
    let bytes = pack(args.rows, args.banned, layout).ok_or_else(too_many)?;
    send(stream, &bytes, &mut args.workspace)
        .and_then(|()| launch_chosen(stream, &args, sizes, layout))
        .map_err(|source| OP.device(source))
}

/// Brings bytes to the beginning of a workspace, which is long enough.
fn send(stream: &CudaStream, bytes: &[u8], workspace: &mut ViewMut<'_>) -> Result<(), DeviceError> {
    stream.upload(bytes, workspace.reborrow().rows(0..bytes.len())?)
}

fn launch_greedy(stream: &CudaStream, args: &Sample<'_>, sizes: Sizes, layout: Layout) -> Result<(), DeviceError> {
    let Sizes { num_rows, vocab_size, .. } = sizes;
    let partials = args.workspace.device_ptr()? + layout.partials_at as u64;
    let mut params = Args::new();
    params.ptr(&args.logits)?.u64(partials).usize_as_i32(num_rows)?.usize_as_i32(vocab_size)?;
    params.usize_as_i32(layout.num_groups)?.i32(i32::from(is_vectored(args, vocab_size)?));
    let launch = Launch::new([scan_blocks(num_rows, layout)?, 1, 1], [32 * WARPS as u32, 1, 1]);
    // SAFETY: `check` has found `num_rows` rows of `vocab_size` logits, `sample` a workspace of the layout's length, and
    // the parameters are the kernel's.
    unsafe { stream.launch(&SCAN, launch, &mut params)? };
    let mut params = Args::new();
    params.u64(partials).ptr_mut(&args.token_ids)?.ptr_mut(&args.logprobs)?;
    params.usize_as_i32(num_rows)?.usize_as_i32(layout.num_groups)?;
    let launch = following(stream, Launch::new([blocks(num_rows, WARPS)?, 1, 1], [32 * WARPS as u32, 1, 1]));
    // SAFETY: as above; both results have one element per row.
    unsafe { stream.launch(&GREEDY, launch, &mut params) }
}

/// The general case; the rows' settings are at the beginning of the workspace.
fn launch_chosen(stream: &CudaStream, args: &Sample<'_>, sizes: Sizes, layout: Layout) -> Result<(), DeviceError> {
    let Sizes { num_rows, vocab_size, num_top } = sizes;
    let settings = args.workspace.device_ptr()?;
    let partials = settings + layout.partials_at as u64;
    let is_vectored = i32::from(is_vectored(args, vocab_size)?);
    let mut params = Args::new();
    params.ptr(&args.logits)?.u64(settings).u64(settings + layout.banned_at as u64);
    params.ptr_or_null(args.output_counts.as_ref())?.ptr_or_null(args.prompt_mask.as_ref())?;
    params.ptr_mut(&args.scratch)?.u64(partials);
    params.usize_as_i32(num_rows)?.usize_as_i32(vocab_size)?.usize_as_i32(layout.num_groups)?.i32(is_vectored);
    let launch = Launch::new([scan_blocks(num_rows, layout)?, 1, 1], [32 * WARPS as u32, 1, 1]);
    // SAFETY: `check` has found `num_rows` rows of `vocab_size` elements in logits and scratch, and in counts and marks
    // where a row reads them; `sample` has found a workspace of the layout's length and sent its beginning; the parameters
    // are the kernel's.
    unsafe { stream.launch(&SCAN_HISTORY, launch, &mut params)? };
    let mut params = Args::new();
    params.ptr(&args.logits)?.ptr_mut(&args.scratch)?.u64(settings).u64(partials);
    params.ptr_mut(&args.token_ids)?.ptr_mut(&args.logprobs)?;
    params.ptr_mut_or_null(args.top_ids.as_ref())?.ptr_mut_or_null(args.top_logprobs.as_ref())?;
    params.usize_as_i32(vocab_size)?.usize_as_i32(layout.num_groups)?.usize_as_i32(num_top)?.i32(is_vectored);
    let launch = following(stream, Launch::new([blocks(num_rows, 1)?, 1, 1], [CHOOSE_THREADS, 1, 1]));
    // SAFETY: as above; the results have one element per row, the best tokens `num_top`.
    unsafe { stream.launch(&CHOOSE, launch, &mut params) }
}

/// The scan's blocks: a warp for every group of every row.
fn scan_blocks(num_rows: usize, layout: Layout) -> Result<u32, DeviceError> {
    blocks(num_rows * layout.num_groups, WARPS)
}

/// Whether every row of every operand begins where four elements can be moved at once.
fn is_vectored(args: &Sample<'_>, vocab_size: usize) -> Result<bool, DeviceError> {
    let ptr_or_zero = |view: Option<&View<'_>>| view.map_or(Ok(0), View::device_ptr);
    let words = args.logits.device_ptr()? | args.scratch.device_ptr()? | ptr_or_zero(args.output_counts.as_ref())?;
    let marks = ptr_or_zero(args.prompt_mask.as_ref())?;
    Ok(vocab_size.is_multiple_of(4) && words.is_multiple_of(16) && marks.is_multiple_of(4))
}

/// A workspace must be bytes, `needed` of them or more, and aligned.
fn check_workspace(op: Op, workspace: &View<'_>, needed: usize, align: usize) -> Result<(), OpError> {
    op.dtype("workspace", workspace.dtype(), DType::U8, "u8")?;
    let [len] = op.rank("workspace", workspace.shape())?;
    if len < needed {
        return Err(op.bad_shape("workspace", workspace.shape(), format!("[{needed}] or more")));
    }
    let ptr = workspace.device_ptr().map_err(|source| op.device(source))?;
    if !ptr.is_multiple_of(align as u64) {
        return Err(op.device(DeviceError::Misaligned { dtype: DType::U8 }));
    }
    Ok(())
}

pub(super) fn mark(stream: &CudaStream, mut args: Mark<'_>, sizes: [usize; 2], is_set: bool) -> Result<(), OpError> {
    let needed = mark::mark_workspace_bytes(args.entries.len());
    check_workspace(mark::OP, &args.workspace.as_view(), needed, align_of::<u32>())?;
    launch_mark(stream, &mut args, sizes, is_set).map_err(|source| mark::OP.device(source))
}

fn launch_mark(
    stream: &CudaStream,
    args: &mut Mark<'_>,
    [r, vocab_size]: [usize; 2],
    is_set: bool,
) -> Result<(), DeviceError> {
    if is_set {
        send(stream, &mark::pack(args.entries), &mut args.workspace)?;
    }
    let num_entries = args.entries.len();
    let mut params = Args::new();
    params.ptr_mut(&args.workspace)?.ptr_mut(&args.output_counts)?.ptr_mut(&args.prompt_mask)?;
    params.usize_as_i32(num_entries)?.usize_as_i32(r)?.usize_as_i32(vocab_size)?.i32(i32::from(is_set));
    let launch = Launch::new([blocks(num_entries, MARK_THREADS)?, 1, 1], [MARK_THREADS as u32, 1, 1]);
    // SAFETY: `run` has found `r` rows of `vocab_size` counts and marks, `mark` a workspace for all entries; the kernel
    // skips entries that point outside, and the parameters are its own.
    unsafe { stream.launch(&MARK, launch, &mut params) }
}

/// All of them: sizes are parameters.
pub(crate) fn variants() -> Vec<KernelSpec> {
    vec![SCAN, SCAN_HISTORY, GREEDY, CHOOSE, MARK]
}
