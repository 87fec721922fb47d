//! Causal attention of a flat batch of sequences, prefill chunks and decode rows alike, over the paged KV cache.
//!
//! On CUDA its work comes from a list in device memory that [`plan`] writes once per step for all layers, so that the
//! launches, which may be captured in a graph, don't depend on the batch; [`work_size`] says what memory that takes.
//! One kernel (`kernel.cu`) serves every card. Another (`prefill_sm90.cu`, in a launch of its own where a step has more
//! rows than sequences) is for the tiles of chunks on Hopper.
//!
//! # Equation
//! Row `i` of a sequence with `l` rows and a context of `c` tokens is its token `t = c - l + i`;
//! `out[i, h] = Σ_{j <= t} softmax_j(scale * q[i, h] · K[j, g]) * V[j, g]`, K and V times their [`KvScales`],
//! with `g = h / (num_heads / num_kv_heads)`.
//!
//! # Shapes
//! `q [n, num_heads, head_dim]`, `k_cache` and `v_cache [num_blocks, num_kv_heads, page, head_dim]`,
//! `cu_seqlens [num_seqs + 1]`, `context_lens [num_seqs]`, `block_tables [num_seqs, max_blocks]`,
//! `out [n, num_heads * head_dim]`. A sequence may have no rows; then its blocks are not looked at, nor are
//! the blocks of any sequence beyond its context.
//!
//! # Dtypes and layout
//! `q` and `out` f32 or bf16, the cache f32, bf16, f16 or f8_e4m3 as its [`KvLayout`] says, the rest i32. Row-major and
//! contiguous; `page` is a multiple of 32. On CUDA `q` and `out` are bf16, the cache bf16 or f8_e4m3, all aligned to 16
//! bytes, and `head_dim` is a multiple of 8 (16 where the cache or `out` is f8_e4m3) up to 128.
//!
//! With `quantize`, `out` is f8_e4m3 and rounded from the float32 rows as [`quantize`](mod@crate::quantize) says: by a fixed
//! scale, or by groups where heads are whole groups. A scale for each row is another matter, since a row's heads come one
//! by one: [`quantize`](fn@crate::quantize::quantize) does that afterwards.
//!
//! # Numerics
//! Float32 throughout, rounded once into `out`. On the CPU the softmax is online, over blocks of 32 tokens counted from
//! the sequence's first, with `2^x` by a polynomial right to 2 units in the last place; scores and values are summed in
//! the order of elements and tokens. A row's bits depend on its query and the keys and values that it sees, not on the
//! chunks in which a prompt is prefilled, the rest of the batch, the page size, the blocks' places or the threads; a
//! key that it doesn't see may even be NaN.
//!
//! FP8 keys and values are widened exactly and multiplied by their scales where scores and sums are float32. On CUDA
//! weights become f16 for it, and queries in `kernel.cu`, where f16 holds every bf16 between 2^-14 and 65504 in size
//! exactly (larger ones saturate). `prefill_sm90.cu` multiplies FP8 keys as they are, by a head's query that is the sum of
//! two rows of FP8 numbers, times a power of two: exact, but for elements below 2^-9 of its largest one, which are off by
//! up to 2^-17 of that. The sums of such products are no float32: they keep some 13 bits of the largest of them, so that
//! a score of 50 may be off by some hundredths; that its keys were rounded to FP8 has moved it by tenths.
//!
//! On CUDA scores (but those), maxima and sums are float32, but the unnormalised weights are rounded to bf16 on their
//! way into the product with the values (their total is not): an output is off by 2^-8 of the weighted sum of its
//! values' magnitudes at most, before it is rounded. Keys are summed in an order that depends on the list, hence on the
//! batch and the card, but not on timing: the same step gives the same bits. Keys beyond a sequence's context may be
//! NaN; a key inside of it that only later rows see may not. Lengths and blocks are read on the device: what they name
//! outside of the operands is neither read nor written, and rows of no sequence keep what `out` held.
//!
//! # Source
//! `Qwen3VLTextAttention.forward` and `eager_attention_forward` (`models/qwen3_vl/modeling_qwen3_vl.py`, transformers
//! 5.17); pages: Kwon et al., arXiv:2309.06180; online softmax: Milakov and Gimelshein, arXiv:1805.02867.

mod cpu;
mod cuda;
mod hopper;
mod plan;
#[cfg(test)]
mod tests;

use foveal_device::{DType, Stream, View, ViewMut};

use crate::attention::KEY_BLOCK;
use crate::check::Op;
use crate::quantize::{GROUP, Quantize, check_out};
use crate::simd::Isa;
use crate::{KvLayout, KvScales, OpError};

pub(crate) use cuda::variants;
pub use plan::{WorkSize, work_size};

const OP: Op = Op("paged_attention");
const PLAN: Op = Op("paged_attention::plan");

/// Operands of [`paged_attention`].
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// `[n, num_heads, head_dim]`: the rows of all sequences, one after the other.
    pub q: View<'a>,
    /// How the cache lies; `num_heads` is any multiple of `num_kv_heads`.
    pub layout: KvLayout,
    /// What keys and values are to be multiplied by.
    pub kv_scales: KvScales,
    /// Keys, `[num_blocks, num_kv_heads, page, head_dim]`; those of this batch are written already.
    pub k_cache: View<'a>,
    /// Values, alike.
    pub v_cache: View<'a>,
    /// `[num_seqs + 1]` i32: where each sequence's rows begin in `q`.
    pub cu_seqlens: View<'a>,
    /// `[num_seqs]` i32: tokens of each sequence up to and with its last row in this batch.
    pub context_lens: View<'a>,
    /// `[num_seqs, max_blocks]` i32: the pages of each sequence.
    pub block_tables: View<'a>,
    /// Multiplies the scores, `head_dim^-0.5`.
    pub scale: f32,
    /// The step's work on CUDA, where it is needed; not looked at on the CPU.
    pub work: Option<Work<'a>>,
    /// How the output is rounded to FP8, where it is.
    pub quantize: Option<Quantize<'a>>,
    /// `[n, num_heads * head_dim]`
    pub out: ViewMut<'a>,
}

/// What [`plan`] has written, and memory for partial results: of [`work_size`] or larger, the same for every layer of a
/// step.
#[derive(Debug)]
pub struct Work<'a> {
    /// i32: the list that [`plan`] wrote for these sequences.
    pub list: View<'a>,
    /// i32: the counters that it was given. They come back as they were.
    pub counters: ViewMut<'a>,
    /// f32: sums of pieces of sequences until they are merged; may hold anything before and after.
    pub partials: ViewMut<'a>,
}

/// Operands of [`plan`].
#[derive(Debug)]
pub struct Plan<'a> {
    /// As in [`PagedAttention`].
    pub cu_seqlens: View<'a>,
    /// As in [`PagedAttention`].
    pub context_lens: View<'a>,
    /// Query heads.
    pub num_heads: usize,
    /// How the cache lies.
    pub layout: KvLayout,
    /// i32, of [`WorkSize::list_len`] or longer: the list, which is written.
    pub list: ViewMut<'a>,
    /// i32, of [`WorkSize::counters_len`]: set to 0.
    pub counters: ViewMut<'a>,
}

/// The sizes of checked operands.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    num_heads: usize,
    head_dim: usize,
    num_blocks: usize,
    num_seqs: usize,
    max_blocks: usize,
}

impl PagedAttention<'_> {
    /// Shapes, and the element types that don't depend on the device.
    fn check(&self) -> Result<Sizes, OpError> {
        let layout = self.layout;
        self.kv_scales.check(OP)?;
        let [n, num_heads, head_dim] = OP.rank("q", self.q.shape())?;
        let num_blocks = self.check_cache()?;
        let expected = format!("[n, a multiple of {}, {}]", layout.num_kv_heads, layout.head_dim);
        if head_dim != layout.head_dim || num_heads.checked_rem(layout.num_kv_heads) != Some(0) {
            return Err(OP.bad_shape("q", self.q.shape(), expected));
        }
        // Without rows, the other sizes cost no memory: they may be anything.
        OP.shape("out", self.out.shape(), &[n, num_heads.saturating_mul(head_dim)])?;
        self.check_quantize(n)?;
        let [num_seqs, max_blocks] = OP.rank("block_tables", self.block_tables.shape())?;
        OP.dtype("block_tables", self.block_tables.dtype(), DType::I32, "i32")?;
        check_lengths(OP, &self.cu_seqlens, &self.context_lens, num_seqs)?;
        Ok(Sizes { n, num_heads, head_dim, num_blocks, num_seqs, max_blocks })
    }

    /// That heads can be rounded one by one.
    fn check_quantize(&self, n: usize) -> Result<(), OpError> {
        check_out(OP, self.quantize.as_ref(), self.out.dtype(), [n, self.out.shape().row_len()])?;
        let reason = match &self.quantize {
            Some(Quantize::PerRow(_)) => {
                "asks for a scale for each row, whose heads come one by one: `quantize` does it"
            }
            Some(Quantize::PerGroup(_)) if !self.layout.head_dim.is_multiple_of(GROUP) => {
                "asks for scales by groups of 128, of which a head is a part: `quantize` does it"
            }
            _ => return Ok(()),
        };
        Err(OpError::Mismatch { op: OP.0, arg: "quantize", reason })
    }

    /// The blocks of a cache that has the layout.
    fn check_cache(&self) -> Result<usize, OpError> {
        let layout = self.layout;
        if layout.page == 0 || !layout.page.is_multiple_of(KEY_BLOCK) {
            let value = i64::try_from(layout.page).unwrap_or(i64::MAX);
            let expected = format!("a multiple of {KEY_BLOCK}");
            return Err(OpError::Value { op: OP.0, arg: "layout.page", index: 0, value, expected });
        }
        let [num_blocks, ..] = OP.rank::<4>("k_cache", self.k_cache.shape())?;
        let shape = layout.cache_shape(num_blocks);
        for (arg, cache) in [("k_cache", &self.k_cache), ("v_cache", &self.v_cache)] {
            OP.shape(arg, cache.shape(), &shape)?;
            OP.dtype(arg, cache.dtype(), layout.dtype, "the layout's type")?;
        }
        Ok(num_blocks)
    }
}

impl Plan<'_> {
    /// The number of sequences.
    fn check(&self) -> Result<usize, OpError> {
        let [num_seqs] = PLAN.rank("context_lens", self.context_lens.shape())?;
        check_lengths(PLAN, &self.cu_seqlens, &self.context_lens, num_seqs)?;
        if self.num_heads.checked_rem(self.layout.num_kv_heads) != Some(0) {
            let reason = "is no multiple of the layout's num_kv_heads";
            return Err(OpError::Mismatch { op: PLAN.0, arg: "num_heads", reason });
        }
        PLAN.dtype("list", self.list.dtype(), DType::I32, "i32")?;
        PLAN.dtype("counters", self.counters.dtype(), DType::I32, "i32")?;
        Ok(num_seqs)
    }
}

fn check_lengths(op: Op, cu_seqlens: &View<'_>, context_lens: &View<'_>, num_seqs: usize) -> Result<(), OpError> {
    op.shape("cu_seqlens", cu_seqlens.shape(), &[num_seqs + 1])?;
    op.shape("context_lens", context_lens.shape(), &[num_seqs])?;
    op.dtype("cu_seqlens", cu_seqlens.dtype(), DType::I32, "i32")?;
    op.dtype("context_lens", context_lens.dtype(), DType::I32, "i32")
}

/// Row `i` of a sequence with `l` rows and a context of `c` tokens sees the keys of tokens `0..=c - l + i`; see the
/// [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit or, on CUDA, have no kernel;
/// [`OpError::Mismatch`] when `work` is missing or an operand is not aligned there, and for `quantize` by rows, or by
/// groups where a head isn't whole groups; [`OpError::Value`] when the page
/// or, on the CPU, a length or a block is out of range.
pub fn paged_attention(stream: &Stream, args: PagedAttention<'_>) -> Result<(), OpError> {
    let sizes = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::paged_attention(cuda, &args, sizes),
        None => cpu::paged_attention(Isa::best(), stream, args, sizes),
    }
}

/// Writes the list of a step's work for [`paged_attention`] on CUDA, from lengths in device memory: once, before the
/// first layer. On the CPU there is nothing to write.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit, [`OpError::Mismatch`] when the
/// heads don't.
pub fn plan(stream: &Stream, args: Plan<'_>) -> Result<(), OpError> {
    let num_seqs = args.check()?;
    match stream.cuda() {
        Some(cuda) => cuda::plan(cuda, &args, num_seqs),
        None => Ok(()),
    }
}
