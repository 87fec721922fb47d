//! A step's integers in the form that the decoder takes, in memory that is kept from step to step.

use foveal_llm::Batch;

use crate::scheduler::{InputId, Work};

/// One step's integers. Ids, rows and blocks fit 31 bits: the scheduler's limits and the decoder's both see to it.
#[derive(Debug, Default)]
pub(crate) struct PackedStep {
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    slot_mapping: Vec<i64>,
    cu_seqlens: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: Vec<i32>,
    max_blocks: usize,
    logit_rows: Vec<i32>,
    pub(crate) image_index: Vec<i32>,
}

/// A count as the operators take it; what doesn't fit becomes -1, which the decoder's check refuses.
fn int<T: TryInto<i32>>(count: T) -> i32 {
    count.try_into().unwrap_or(-1)
}

fn refill<T>(buffer: &mut Vec<T>, values: impl Iterator<Item = T>) {
    buffer.clear();
    buffer.extend(values);
}

impl PackedStep {
    /// `sampled` gives the id that stands for the token of the step before's `n`th sequence that sampled. Where there is none,
    /// that sequence has failed; what is no id at all lets the decoder's check find its row, too.
    pub(crate) fn pack(&mut self, work: &Work, sampled: impl Fn(usize) -> Option<i32>) {
        let sequences = &work.sequences;
        let id = |id: &InputId| match *id {
            InputId::Known(token) => int(token.0),
            InputId::Sampled(n) => sampled(n).unwrap_or(i32::MIN),
        };
        refill(&mut self.input_ids, work.input_ids.iter().map(id));
        refill(&mut self.positions, work.positions.iter().copied());
        refill(&mut self.slot_mapping, work.slot_mapping.iter().map(|slot| slot.0));
        refill(&mut self.cu_seqlens, std::iter::once(0).chain(sequences.iter().map(|s| int(s.rows.end))));
        refill(&mut self.context_lens, sequences.iter().map(|s| int(s.context_len)));
        self.max_blocks = sequences.iter().map(|s| s.block_table.len()).max().unwrap_or(0);
        self.block_tables.clear();
        for (i, sequence) in sequences.iter().enumerate() {
            self.block_tables.extend(sequence.block_table.iter().map(|block| int(block.0)));
            self.block_tables.resize((i + 1) * self.max_blocks, 0);
        }
        let last_rows = sequences.iter().filter(|s| s.samples).map(|s| int(s.rows.end) - 1);
        refill(&mut self.logit_rows, last_rows);
        refill(&mut self.image_index, work.image_embeds.iter().map(|embed| embed.map_or(-1, int)));
    }

    /// The packed step without its pictures.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.input_ids,
            positions: &self.positions,
            slot_mapping: &self.slot_mapping,
            cu_seqlens: &self.cu_seqlens,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            max_blocks: self.max_blocks,
            logit_rows: &self.logit_rows,
            image: None,
        }
    }
}
