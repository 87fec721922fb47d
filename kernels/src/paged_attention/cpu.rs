//! The CPU implementation.

use foveal_device::{DType, Stream, View};
use half::bf16;

use super::PagedAttention;
use crate::attention::{Attention, KEY_BLOCK, Place, Sequence, check_cu_seqlens, rows_between};
use crate::check::Op;
use crate::real::with_real;
use crate::reals::FLOATS;
use crate::shared_rows::SharedOut;
use crate::simd::{Isa, SimdElement};
use crate::{KvLayout, OpError};

const OP: Op = Op("paged_attention");

pub(super) fn paged_attention(stream: &Stream, args: PagedAttention<'_>) -> Result<(), OpError> {
    run(Isa::best(), stream, args)
}

/// With a given instruction set, so that tests reach each.
pub(super) fn run(isa: Isa, stream: &Stream, args: PagedAttention<'_>) -> Result<(), OpError> {
    let PagedAttention { q, layout, k_cache, v_cache, cu_seqlens, context_lens, block_tables, scale, mut out } = args;
    let [n, num_heads, head_dim] = OP.rank("q", q.shape())?;
    let num_blocks = check_cache(layout, &k_cache, &v_cache)?;
    let expected = format!("[n, a multiple of {}, {}]", layout.num_kv_heads, layout.head_dim);
    if head_dim != layout.head_dim || num_heads.checked_rem(layout.num_kv_heads) != Some(0) {
        return Err(OP.bad_shape("q", q.shape(), expected));
    }
    // Without rows, the other sizes cost no memory: they may be anything.
    let row_len = num_heads.saturating_mul(head_dim);
    OP.shape("out", out.shape(), &[n, row_len])?;
    let out = SharedOut::new(OP, &mut out, row_len)?;
    let sequences = sequences(&cu_seqlens, &context_lens, &block_tables, n, layout.page, num_blocks)?;
    let common = Common { isa, stream, num_heads, layout, scale, sequences: &sequences, out: &out };
    match q.dtype() {
        DType::F32 => common.run::<f32>(OP.slice(&q)?, &k_cache, &v_cache),
        DType::BF16 => common.run::<bf16>(OP.slice(&q)?, &k_cache, &v_cache),
        other => Err(OP.bad_dtype("q", other, "f32 or bf16")),
    }
}

/// The blocks of a cache that has the layout.
fn check_cache(layout: KvLayout, k_cache: &View<'_>, v_cache: &View<'_>) -> Result<usize, OpError> {
    if layout.page == 0 || !layout.page.is_multiple_of(KEY_BLOCK) {
        let value = i64::try_from(layout.page).unwrap_or(i64::MAX);
        let expected = format!("a multiple of {KEY_BLOCK}");
        return Err(OpError::Value { op: OP.0, arg: "layout.page", index: 0, value, expected });
    }
    let [num_blocks, ..] = OP.rank::<4>("k_cache", k_cache.shape())?;
    let shape = layout.cache_shape(num_blocks);
    for (arg, cache) in [("k_cache", k_cache), ("v_cache", v_cache)] {
        OP.shape(arg, cache.shape(), &shape)?;
        OP.dtype(arg, cache.dtype(), layout.dtype, "the layout's type")?;
    }
    Ok(num_blocks)
}

/// The sequences, when every key that their rows see lies in the cache.
fn sequences<'a>(
    cu_seqlens: &View<'_>,
    context_lens: &View<'_>,
    block_tables: &View<'a>,
    n: usize,
    page: usize,
    num_blocks: usize,
) -> Result<Vec<Sequence<'a>>, OpError> {
    let [num_seqs, max_blocks] = OP.rank("block_tables", block_tables.shape())?;
    OP.shape("cu_seqlens", cu_seqlens.shape(), &[num_seqs + 1])?;
    OP.shape("context_lens", context_lens.shape(), &[num_seqs])?;
    let cu_seqlens: &[i32] = OP.slice(cu_seqlens)?;
    let context_lens: &[i32] = OP.slice(context_lens)?;
    let block_tables: &'a [i32] = OP.slice(block_tables)?;
    check_cu_seqlens(OP, cu_seqlens, n)?;
    let mut sequences = Vec::with_capacity(num_seqs);
    for (index, &len) in context_lens.iter().enumerate() {
        let rows = rows_between(cu_seqlens, index);
        let most = max_blocks.saturating_mul(page);
        let num_keys = usize::try_from(len).ok().filter(|len| (rows.len()..=most).contains(len)).ok_or_else(|| {
            let expected = format!("its {} rows or above, and at most the {most} tokens of its blocks", rows.len());
            OpError::Value { op: OP.0, arg: "context_lens", index, value: i64::from(len), expected }
        })?;
        if rows.is_empty() {
            continue;
        }
        let start = index * max_blocks;
        let table = &block_tables[start..start + num_keys.div_ceil(page)];
        if let Some(i) = table.iter().position(|&block| !usize::try_from(block).is_ok_and(|b| b < num_blocks)) {
            let (value, expected) = (i64::from(table[i]), format!("0 or above and below {num_blocks}"));
            return Err(OpError::Value { op: OP.0, arg: "block_tables", index: start + i, value, expected });
        }
        sequences.push(Sequence { rows, num_keys, place: Place::Pages { table, page } });
    }
    Ok(sequences)
}

/// Operands that have been checked.
struct Common<'a> {
    isa: Isa,
    stream: &'a Stream,
    num_heads: usize,
    layout: KvLayout,
    scale: f32,
    sequences: &'a [Sequence<'a>],
    out: &'a SharedOut<'a>,
}

impl Common<'_> {
    fn run<Q: SimdElement>(&self, q: &[Q], k_cache: &View<'_>, v_cache: &View<'_>) -> Result<(), OpError> {
        with_real!(self.layout.dtype, E => {
            let (keys, values): (&[E], &[E]) = (OP.slice(k_cache)?, OP.slice(v_cache)?);
            let KvLayout { num_kv_heads, head_dim, .. } = self.layout;
            if q.is_empty() {
                return Ok(());
            }
            let attention = Attention {
                q,
                q_stride: self.num_heads * head_dim,
                num_heads: self.num_heads,
                num_kv_heads,
                head_dim,
                keys,
                values,
                is_causal: true,
                scale: self.scale,
                sequences: self.sequences,
                out: self.out,
            };
            attention.run(self.isa, self.stream);
            Ok(())
        }, else Err(OP.bad_dtype("k_cache", self.layout.dtype, FLOATS)))
    }
}
