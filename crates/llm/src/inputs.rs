//! A step's integers on their way to the device.

use foveal_device::{BlockSlot, Device, DeviceError, StepBlock, Stream, View};

use crate::batch::{BatchViews, ImageViews};
use crate::{Batch, BatchLimits, LlmError};

/// Brings a batch to where the operators read it: on the CPU its slices are used as they are, on a GPU they are packed
/// and sent as one block.
#[derive(Debug, Default)]
pub(crate) struct StepInputs {
    block: Option<StepBlock>,
    /// Pages of a sequence that the block has room for.
    max_blocks: usize,
    /// The picture rows of the rows whose logits are wanted.
    kept_index: Vec<i32>,
}

/// Where the arrays lie in the block.
struct Slots {
    input_ids: BlockSlot,
    positions: BlockSlot,
    slot_mapping: BlockSlot,
    cu_seqlens: BlockSlot,
    context_lens: BlockSlot,
    block_tables: BlockSlot,
    logit_rows: BlockSlot,
    index: BlockSlot,
    kept_index: BlockSlot,
}

impl StepInputs {
    /// Room for batches within `limits` of sequences of up to `max_blocks` pages.
    pub(crate) fn new(device: &Device, limits: BatchLimits, max_blocks: usize) -> Result<Self, DeviceError> {
        let BatchLimits { max_tokens, max_seqs, max_logit_rows } = limits;
        let ints = [max_tokens, 3 * max_tokens, max_seqs + 1, max_seqs, max_seqs * max_blocks].into_iter().chain([
            max_logit_rows,
            max_tokens,
            max_logit_rows,
        ]);
        let capacity = ints.map(StepBlock::bytes_of::<i32>).sum::<usize>() + StepBlock::bytes_of::<i64>(max_tokens);
        let block = device.is_cuda().then(|| StepBlock::new(device, capacity)).transpose()?;
        Ok(Self { block, max_blocks, kept_index: Vec::with_capacity(max_logit_rows) })
    }

    /// The batch, which has been checked, as the operators take it.
    pub(crate) fn bring<'a>(&'a mut self, stream: &Stream, batch: &Batch<'a>) -> Result<BatchViews<'a>, LlmError> {
        self.kept_index.clear();
        if let Some(image) = &batch.image {
            let row_of = |row: &i32| usize::try_from(*row).ok().and_then(|row| image.index.get(row)).copied();
            self.kept_index.extend(batch.logit_rows.iter().map(|row| row_of(row).unwrap_or(-1)));
        }
        match &mut self.block {
            None => Ok(direct(batch, &self.kept_index)?),
            Some(_) if batch.max_blocks > self.max_blocks => {
                Err(LlmError::TooMany { what: "pages of a sequence", got: batch.max_blocks, max: self.max_blocks })
            }
            Some(block) => {
                let slots = pack(block, batch, &self.kept_index)?;
                block.send(stream)?;
                Ok(views(block, &slots, batch)?)
            }
        }
    }
}

fn direct<'a>(batch: &Batch<'a>, kept_index: &'a [i32]) -> Result<BatchViews<'a>, DeviceError> {
    let (n, s) = (batch.num_tokens(), batch.num_seqs());
    let image = batch.image.map(|image| {
        Ok(ImageViews {
            embeds: image.embeds,
            index: View::from_slice(image.index, &[n])?,
            kept_index: View::from_slice(kept_index, &[kept_index.len()])?,
            deepstack: image.deepstack,
        })
    });
    Ok(BatchViews {
        input_ids: View::from_slice(batch.input_ids, &[n])?,
        positions: View::from_slice(batch.positions, &[3, n])?,
        slot_mapping: View::from_slice(batch.slot_mapping, &[n])?,
        cu_seqlens: View::from_slice(batch.cu_seqlens, &[s + 1])?,
        context_lens: View::from_slice(batch.context_lens, &[s])?,
        block_tables: View::from_slice(batch.block_tables, &[s, batch.max_blocks])?,
        logit_rows: View::from_slice(batch.logit_rows, &[batch.logit_rows.len()])?,
        image: image.transpose()?,
    })
}

fn pack(block: &mut StepBlock, batch: &Batch<'_>, kept_index: &[i32]) -> Result<Slots, DeviceError> {
    block.clear();
    Ok(Slots {
        input_ids: block.push(batch.input_ids)?,
        positions: block.push(batch.positions)?,
        slot_mapping: block.push(batch.slot_mapping)?,
        cu_seqlens: block.push(batch.cu_seqlens)?,
        context_lens: block.push(batch.context_lens)?,
        block_tables: block.push(batch.block_tables)?,
        logit_rows: block.push(batch.logit_rows)?,
        index: block.push(batch.image.map_or(&[][..], |image| image.index))?,
        kept_index: block.push(kept_index)?,
    })
}

fn views<'a>(block: &'a StepBlock, slots: &Slots, batch: &Batch<'a>) -> Result<BatchViews<'a>, DeviceError> {
    let (n, s, kept) = (batch.num_tokens(), batch.num_seqs(), batch.logit_rows.len());
    let image = batch.image.map(|image| {
        Ok(ImageViews {
            embeds: image.embeds,
            index: block.view(slots.index, &[n])?,
            kept_index: block.view(slots.kept_index, &[kept])?,
            deepstack: image.deepstack,
        })
    });
    Ok(BatchViews {
        input_ids: block.view(slots.input_ids, &[n])?,
        positions: block.view(slots.positions, &[3, n])?,
        slot_mapping: block.view(slots.slot_mapping, &[n])?,
        cu_seqlens: block.view(slots.cu_seqlens, &[s + 1])?,
        context_lens: block.view(slots.context_lens, &[s])?,
        block_tables: block.view(slots.block_tables, &[s, batch.max_blocks])?,
        logit_rows: block.view(slots.logit_rows, &[kept])?,
        image: image.transpose()?,
    })
}
