//! What one step does, as plain numbers.

use std::ops::Range;
use std::sync::Arc;

use foveal_llm::StopCriteria;
use foveal_types::{
    BlockId, Delta, Error, PreparedImage, PreparedRequest, SamplingParams, SeqId, SlotId, TokenId, TokenOutput,
};

/// What has happened since the last step.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request that [`super::Limits::check`] accepts.
    Arrived(SeqId, Box<PreparedRequest>),
    /// Its caller went away.
    Cancelled(SeqId),
    /// The planned rows of a sequence have been computed; a token if one was asked for.
    Computed(SeqId, Option<TokenOutput>),
    /// The planned rows of a sequence could not be computed.
    Failed(SeqId, Error),
}

/// What a caller is told, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// The request left the waiting queue: it runs, or was cancelled there.
    LeftQueue(SeqId),
    /// A step's news of one request. [`Delta::Finished`] ends it.
    Delta(SeqId, Delta),
    /// The request ended without its answer.
    Failed(SeqId, Error),
}

/// What one step does.
#[derive(Debug, Default)]
pub(crate) struct StepPlan {
    pub(crate) news: Vec<News>,
    /// Sequences that will not come again: what is kept for them can go.
    pub(crate) ended: Vec<SeqId>,
    /// What to compute; `None` when there is nothing to do.
    pub(crate) work: Option<Work>,
}

/// The flat batch of one step: the tokens of all its sequences one after another, without padding.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Pictures to encode first, in one batch. Their embeddings lie one after another and replace all earlier ones;
    /// empty if the embeddings that `image_embeds` names are there already.
    pub(crate) encode: Vec<PreparedImage>,
    /// `[N]`
    pub(crate) input_ids: Vec<TokenId>,
    /// `[3, N]`: all of t, then all of h, then all of w.
    pub(crate) positions: Vec<i32>,
    /// Where each token's key and value go. `[N]`
    pub(crate) slot_mapping: Vec<SlotId>,
    /// Which embedding a placeholder's row takes; `None` for text. `[N]`
    pub(crate) image_embeds: Vec<Option<usize>>,
    pub(crate) sequences: Vec<SequenceRows>,
}

/// What decides how the tokens of an answer are chosen, for as long as it is being written.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Penalties look at it.
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopCriteria,
}

/// One sequence's part of a step.
#[derive(Debug)]
pub(crate) struct SequenceRows {
    pub(crate) id: SeqId,
    pub(crate) ask: Arc<Ask>,
    /// Its rows of the flat batch.
    pub(crate) rows: Range<usize>,
    /// Tokens in its cache after this step.
    pub(crate) context_len: usize,
    pub(crate) block_table: Vec<BlockId>,
    /// The last row's logits choose the next token.
    pub(crate) samples: bool,
}
