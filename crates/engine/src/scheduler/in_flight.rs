//! Steps that have been planned and have not ended, and what must outlive them.

use std::collections::VecDeque;

use foveal_types::SeqId;

use super::sequence::Sequence;

/// One sequence's part of a step in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedRows {
    pub(crate) id: SeqId,
    /// Rows of the sequence that are computed when the step has ended.
    pub(crate) end: usize,
    pub(crate) samples: bool,
}

/// Steps in flight, the oldest first, and the sequences that have ended but stand in one of them.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    steps: VecDeque<(u64, Vec<PlannedRows>)>,
    ended: Vec<Sequence>,
    num_planned: u64,
}

impl InFlight {
    /// Takes in a step, and gives its number.
    pub(crate) fn plan(&mut self, rows: Vec<PlannedRows>) -> u64 {
        debug_assert!(self.steps.len() < 2, "a sequence can be ahead by one token only");
        let step = self.num_planned;
        self.num_planned += 1;
        self.steps.push_back((step, rows));
        step
    }

    /// The oldest step has ended: what it held.
    pub(crate) fn complete(&mut self, step: u64) -> Option<Vec<PlannedRows>> {
        debug_assert_eq!(self.steps.front().map(|(oldest, _)| *oldest), Some(step), "steps end in their order");
        self.steps.pop_front().map(|(_, rows)| rows)
    }

    /// Keeps a sequence that has ended until its last step has.
    pub(crate) fn keep(&mut self, sequence: Sequence) {
        self.ended.push(sequence);
    }

    /// One step less of a sequence that has ended; the sequence, if it was the last.
    pub(crate) fn last_step_of(&mut self, id: SeqId) -> Option<Sequence> {
        let at = self.ended.iter().position(|sequence| sequence.id == id)?;
        let sequence = self.ended.get_mut(at)?;
        sequence.num_in_flight -= 1;
        (sequence.num_in_flight == 0).then(|| self.ended.swap_remove(at))
    }

    /// Whether pages will come back without anybody being preempted.
    pub(crate) fn holds_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Whether no step is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Steps so far.
    pub(crate) fn num_planned(&self) -> u64 {
        self.num_planned
    }

    #[cfg(test)]
    pub(crate) fn ended(&self) -> &[Sequence] {
        &self.ended
    }
}
