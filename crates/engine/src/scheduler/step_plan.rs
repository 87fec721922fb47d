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
    /// A request that [`super::Limits::check`] accepts. Ids ascend.
    Arrived(SeqId, Box<PreparedRequest>),
    /// Its caller went away.
    Cancelled(SeqId),
    /// The oldest step that was planned and not yet reported has ended.
    Completed(StepResults),
}

/// What a step gave.
#[derive(Debug)]
pub(crate) struct StepResults {
    /// [`Work::step`].
    pub(crate) step: u64,
    /// For each of the work's sequences, in order: the token if one was asked for, or why this sequence alone can't go on.
    pub(crate) sequences: Vec<Result<Option<TokenOutput>, Error>>,
}

/// What a caller is told, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// The request left the waiting queue for the first time: it runs, or was cancelled there.
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
    /// Sequences that will not come again, and that no step in flight holds: what is kept for them can go.
    pub(crate) ended: Vec<SeqId>,
    /// What to compute; `None` when there is nothing to do before something happens.
    pub(crate) work: Option<Work>,
}

/// The flat batch of one step: the tokens of all its sequences one after another, without padding.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Counts the steps that compute something, from 0.
    pub(crate) step: u64,
    /// Pictures to encode first. The embeddings that `image_embeds` names and that are not among them are there already.
    pub(crate) encode: Option<EncodeBatch>,
    /// `[N]`
    pub(crate) input_ids: Vec<InputId>,
    /// `[3, N]`: all of t, then all of h, then all of w.
    pub(crate) positions: Vec<i32>,
    /// Where each token's key and value go. `[N]`
    pub(crate) slot_mapping: Vec<SlotId>,
    /// Which row of the arena a placeholder's row takes; `None` for text. `[N]`
    pub(crate) image_embeds: Vec<Option<usize>>,
    pub(crate) sequences: Vec<SequenceRows>,
}

/// The token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputId {
    Known(TokenId),
    /// The token that the step before this one chooses for its `n`th sequence that samples, counted from 0. The host may
    /// not know it yet.
    Sampled(usize),
}

/// Pictures that are encoded together.
#[derive(Debug)]
pub(crate) struct EncodeBatch {
    pub(crate) images: Vec<PreparedImage>,
    /// The rows of the arena that take their embeddings, one picture's after another's.
    pub(crate) rows: Range<usize>,
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
    /// The pages of those tokens.
    pub(crate) block_table: Vec<BlockId>,
    /// The last row's logits choose the next token.
    pub(crate) samples: bool,
}

impl Work {
    /// Takes a sequence and its rows out.
    pub(crate) fn remove_sequence(&mut self, at: usize) {
        if at >= self.sequences.len() {
            return;
        }
        let rows = self.sequences.remove(at).rows;
        let n = self.input_ids.len();
        // From the last axis on, so that those before it stay where they are.
        for axis in (0..3).rev() {
            self.positions.drain(axis * n + rows.start..axis * n + rows.end);
        }
        self.input_ids.drain(rows.clone());
        self.slot_mapping.drain(rows.clone());
        self.image_embeds.drain(rows.clone());
        for later in self.sequences.iter_mut().skip(at) {
            later.rows = later.rows.start - rows.len()..later.rows.end - rows.len();
        }
    }
}

impl Ask {
    /// Whether choosing a token takes the one before it on the host: penalties count them there.
    pub(crate) fn reads_answer(&self) -> bool {
        self.sampling.has_penalties()
    }
}
