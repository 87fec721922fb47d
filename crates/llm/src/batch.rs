//! One step's rows.

mod check;

pub(crate) use check::BatchBounds;
use foveal_device::View;
use foveal_kernels::norm::RowAdd;

/// The rows of one step: the rows of several sequences, one sequence after the other, without padding. A sequence brings
/// one row when it decodes, a chunk of its prompt when it prefills; the two need no telling apart.
///
/// Everything is addressed by the row in the batch; `positions` are each request's own, whatever else the batch holds.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[n]` token ids. Rows that `image` replaces may hold any id of the vocabulary.
    pub input_ids: &'a [i32],
    /// `[3, n]`, row-major: all of t, all of h, all of w. From 0, below the decoder's `max_model_len`.
    pub positions: &'a [i32],
    /// `[n]`: where each row's key and value go, `block * page + offset`; -1 stores nothing.
    pub slot_mapping: &'a [i64],
    /// `[num_seqs + 1]`: where each sequence's rows begin; the first is 0, the last n. Every sequence has rows.
    pub cu_seqlens: &'a [i32],
    /// `[num_seqs]`: tokens of each sequence up to and with its last row here.
    pub context_lens: &'a [i32],
    /// `[num_seqs, max_blocks]`: the pages of each sequence, in order. Entries beyond its context are not read.
    pub block_tables: &'a [i32],
    /// Width of `block_tables`.
    pub max_blocks: usize,
    /// `[r]`: the rows whose logits are wanted, those of which a token will be sampled.
    pub logit_rows: &'a [i32],
    /// Picture rows; `None` for a step of text alone, which then runs nothing that has to do with pictures.
    pub image: Option<ImageRows<'a>>,
}

/// The rows that stand for pictures.
#[derive(Clone, Copy, Debug)]
pub struct ImageRows<'a> {
    /// `[r, hidden_size]`: embeddings of pictures, of any number of requests; a step may use any part of them.
    pub embeds: View<'a>,
    /// One `[r, hidden_size]` per deepstack level: level l is added to the hidden states after layer l. Empty for towers
    /// without deepstack.
    pub deepstack: &'a [View<'a>],
    /// `[n]`: the row of `embeds` (and of every level) that each row of the batch takes, -1 for text.
    pub index: &'a [i32],
}

/// A batch as the operators take it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchViews<'a> {
    pub(crate) input_ids: View<'a>,
    pub(crate) positions: View<'a>,
    pub(crate) slot_mapping: View<'a>,
    pub(crate) cu_seqlens: View<'a>,
    pub(crate) context_lens: View<'a>,
    pub(crate) block_tables: View<'a>,
    pub(crate) image: Option<ImageViews<'a>>,
    /// Tokens that ids below 0 stand for; see [`foveal_kernels::embedding::Embed`].
    pub(crate) sampled: Option<View<'a>>,
}

/// The rows whose logits are wanted, as the operators take them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptViews<'a> {
    /// `[r]`
    pub(crate) rows: View<'a>,
    /// What is added to the hidden states after layer l: the levels, and `[r]` their rows.
    pub(crate) deepstack: Option<(&'a [View<'a>], View<'a>)>,
}

impl<'a> KeptViews<'a> {
    /// As [`ImageViews::deepstack_rows`].
    pub(crate) fn deepstack_rows(&self, layer: usize) -> Option<RowAdd<'a>> {
        let (levels, index) = self.deepstack?;
        levels.get(layer).map(|&rows| RowAdd { rows, index })
    }
}

/// Picture rows as the operators take them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageViews<'a> {
    pub(crate) embeds: View<'a>,
    /// `[n]`
    pub(crate) index: View<'a>,
    pub(crate) deepstack: &'a [View<'a>],
}

impl<'a> ImageViews<'a> {
    /// What is added to the hidden states after `layer`.
    pub(crate) fn deepstack_rows(&self, layer: usize) -> Option<RowAdd<'a>> {
        self.deepstack.get(layer).map(|&rows| RowAdd { rows, index: self.index })
    }
}

impl<'a> Batch<'a> {
    /// Rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Sequences.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        self.context_lens.len()
    }
}
