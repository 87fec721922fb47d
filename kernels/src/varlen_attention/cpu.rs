//! The CPU implementation.

use foveal_device::Stream;

use super::{OP, Sizes, VarlenAttention};
use crate::OpError;
use crate::attention::{Attention, Out, Place, Sequence, check_cu_seqlens, rows_between};
use crate::real::with_real;
use crate::reals::FLOATS;
use crate::shared_rows::SharedOut;
use crate::simd::Isa;

pub(super) fn varlen_attention(stream: &Stream, args: VarlenAttention<'_>, sizes: Sizes) -> Result<(), OpError> {
    run(Isa::best(), stream, args, sizes)
}

/// With a given instruction set, so that tests reach each.
pub(super) fn run(isa: Isa, stream: &Stream, args: VarlenAttention<'_>, sizes: Sizes) -> Result<(), OpError> {
    let VarlenAttention { qkv, cu_seqlens, scale, mut out } = args;
    let Sizes { n, num_heads, head_dim } = sizes;
    let cu_seqlens: &[i32] = OP.slice(&cu_seqlens)?;
    check_cu_seqlens(OP, cu_seqlens, n)?;
    let row_len = num_heads.saturating_mul(head_dim);
    let out = SharedOut::new(OP, &mut out, row_len)?;
    let sequence = |i: usize| {
        let rows = rows_between(cu_seqlens, i);
        let place = Place::Rows { first: rows.start, stride: row_len.saturating_mul(3) };
        Sequence { num_keys: rows.len(), rows, place }
    };
    let sequences: Vec<_> = (0..cu_seqlens.len() - 1).map(sequence).collect();
    with_real!(qkv.dtype(), T => {
        let qkv: &[T] = OP.slice(&qkv)?;
        if qkv.is_empty() {
            return Ok(());
        }
        let attention = Attention {
            q: qkv,
            q_stride: 3 * row_len,
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            keys: &qkv[row_len..],
            values: &qkv[2 * row_len..],
            is_causal: false,
            scale,
            value_scale: 1.0,
            sequences: &sequences,
            out: Out::Float(&out),
        };
        attention.run(isa, stream);
        Ok(())
    }, else Err(OP.bad_dtype("qkv", qkv.dtype(), FLOATS)))
}
