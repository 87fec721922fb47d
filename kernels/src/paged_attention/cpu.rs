//! The CPU implementation.

use foveal_device::{DType, Stream, View};
use half::bf16;

use super::{OP, PagedAttention, Sizes};
use crate::attention::{Attention, Out, Place, Sequence, check_cu_seqlens, rows_between};
use crate::quantize::QuantizedOut;
use crate::real::with_stored;
use crate::reals::FLOATS;
use crate::shared_rows::SharedOut;
use crate::simd::{Isa, SimdElement};
use crate::{KvLayout, OpError};

/// With a given instruction set, so that tests reach each.
pub(super) fn paged_attention(
    isa: Isa,
    stream: &Stream,
    args: PagedAttention<'_>,
    sizes: Sizes,
) -> Result<(), OpError> {
    let PagedAttention { q, layout, k_cache, v_cache, cu_seqlens, context_lens, block_tables, .. } = args;
    let (mut quantize, mut out) = (args.quantize, args.out);
    let (scale, value_scale) = (args.scale * args.kv_scales.k, args.kv_scales.v);
    let Sizes { num_heads, head_dim, .. } = sizes;
    let row_len = num_heads.saturating_mul(head_dim);
    let (float, f8);
    let out = match &mut quantize {
        Some(quantize) => {
            f8 = QuantizedOut::new(OP, quantize, &mut out, row_len)?;
            Out::F8(&f8)
        }
        None => {
            float = SharedOut::new(OP, &mut out, row_len)?;
            Out::Float(&float)
        }
    };
    let sequences = sequences(&cu_seqlens, &context_lens, &block_tables, layout.page, sizes)?;
    let common = Common { isa, stream, num_heads, layout, scale, value_scale, sequences: &sequences, out };
    match q.dtype() {
        DType::F32 => common.run::<f32>(OP.slice(&q)?, &k_cache, &v_cache),
        DType::BF16 => common.run::<bf16>(OP.slice(&q)?, &k_cache, &v_cache),
        other => Err(OP.bad_dtype("q", other, "f32 or bf16")),
    }
}

/// The sequences, when every key that their rows see lies in the cache.
fn sequences<'a>(
    cu_seqlens: &View<'_>,
    context_lens: &View<'_>,
    block_tables: &View<'a>,
    page: usize,
    sizes: Sizes,
) -> Result<Vec<Sequence<'a>>, OpError> {
    let Sizes { n, num_blocks, num_seqs, max_blocks, .. } = sizes;
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
    value_scale: f32,
    sequences: &'a [Sequence<'a>],
    out: Out<'a>,
}

impl Common<'_> {
    fn run<Q: SimdElement>(&self, q: &[Q], k_cache: &View<'_>, v_cache: &View<'_>) -> Result<(), OpError> {
        with_stored!(self.layout.dtype, E => {
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
                value_scale: self.value_scale,
                sequences: self.sequences,
                out: self.out,
            };
            attention.run(self.isa, self.stream);
            Ok(())
        }, else Err(OP.bad_dtype("k_cache", self.layout.dtype, FLOATS)))
    }
}
