//! Causal attention of a flat batch of sequences, prefill chunks and decode rows alike, over the paged KV cache.
//!
//! # Equation
//! Row `i` of a sequence with `l` rows and a context of `c` tokens is its token `t = c - l + i`;
//! `out[i, h] = Σ_{j <= t} softmax_j(scale * q[i, h] · K[j, g]) * V[j, g]` with `g = h / (num_heads / num_kv_heads)`.
//!
//! # Shapes
//! `q [n, num_heads, head_dim]`, `k_cache` and `v_cache [num_blocks, num_kv_heads, page, head_dim]`,
//! `cu_seqlens [num_seqs + 1]`, `context_lens [num_seqs]`, `block_tables [num_seqs, max_blocks]`,
//! `out [n, num_heads * head_dim]`. A sequence may have no rows; then its blocks are not looked at, nor are
//! the blocks of any sequence beyond its context.
//!
//! # Dtypes and layout
//! `q` and `out` f32 or bf16, the cache f32, bf16 or f16 as its [`KvLayout`] says, the rest i32. Row-major and
//! contiguous; `page` is a multiple of 32.
//!
//! # Numerics
//! Float32 throughout, rounded once into `out`. On the CPU the softmax is online, over blocks of 32 tokens counted from
//! the sequence's first, with `2^x` by a polynomial right to 2 units in the last place; scores and values are summed in
//! the order of elements and tokens. A row's bits depend on its query and the keys and values that it sees, not on the
//! chunks in which a prompt is prefilled, the rest of the batch, the page size, the blocks' places or the threads; a key
//! that it doesn't see may even be NaN.
//!
//! # Source
//! `Qwen3VLTextAttention.forward` and `eager_attention_forward` (`models/qwen3_vl/modeling_qwen3_vl.py`, transformers
//! 5.17); pages: Kwon et al., arXiv:2309.06180; online softmax: Milakov and Gimelshein, arXiv:1805.02867.

mod cpu;

#[cfg(test)]
mod tests;

use foveal_device::{Stream, View, ViewMut};

use crate::{KvLayout, OpError};

/// Operands of [`paged_attention`].
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// `[n, num_heads, head_dim]`: the rows of all sequences, one after the other.
    pub q: View<'a>,
    /// How the cache lies; `num_heads` is any multiple of `num_kv_heads`.
    pub layout: KvLayout,
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
    /// `[n, num_heads * head_dim]`
    pub out: ViewMut<'a>,
}

/// Row `i` of a sequence with `l` rows and a context of `c` tokens sees the keys of tokens `0..=c - l + i`; see the
/// [module](self) for the contract.
///
/// # Errors
/// [`OpError::Shape`] and [`OpError::DType`] when shapes or element types don't fit, [`OpError::Value`] when a length, a
/// block or the page is out of range.
pub fn paged_attention(stream: &Stream, args: PagedAttention<'_>) -> Result<(), OpError> {
    cpu::paged_attention(stream, args)
}
