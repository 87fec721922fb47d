//! A step's integers on their way to the device.

use foveal_device::{BlockLayout, BlockSlot, Device, DeviceError, StepBlock, Stream, View};

use crate::batch::{BatchViews, ImageViews, KeptViews};
use crate::{Batch, BatchLimits, LlmError};

/// What the launches of a step depend on, and so what tells one recording of it from another: a batch is padded up to it. Rows
/// beyond the batch's belong to no sequence and store nothing; sequences beyond it have no rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows.
    pub rows: usize,
    /// Sequences.
    pub seqs: usize,
    /// Whether rows may be those of pictures.
    pub has_images: bool,
}

/// Picture rows in memory that stays where it is from step to step.
#[derive(Clone, Copy, Debug)]
pub struct ImageTables<'a> {
    /// `[r, hidden_size]`
    pub embeds: View<'a>,
    /// One `[r, hidden_size]` per deepstack level.
    pub deepstack: &'a [View<'a>],
}

/// Brings a batch to where the operators read it: on the CPU its slices are used as they are, on a GPU they are packed
/// and sent as one block.
#[derive(Debug, Default)]
pub(crate) struct StepInputs {
    block: Option<StepBlock>,
    /// Pages of a sequence that the block has room for.
    max_blocks: usize,
    max_logit_rows: usize,
    /// The picture rows of the rows whose logits are wanted.
    kept_index: Vec<i32>,
}

/// Where the arrays lie in the block: those of the rows whose logits are wanted first, at the same place for every shape.
struct Slots {
    logit_rows: BlockSlot,
    kept_index: BlockSlot,
    input_ids: BlockSlot,
    positions: BlockSlot,
    slot_mapping: BlockSlot,
    cu_seqlens: BlockSlot,
    context_lens: BlockSlot,
    block_tables: BlockSlot,
    index: BlockSlot,
}

impl StepInputs {
    /// Room for batches within `limits` of sequences of up to `max_blocks` pages.
    pub(crate) fn new(device: &Device, limits: BatchLimits, max_blocks: usize) -> Result<Self, DeviceError> {
        let max_logit_rows = limits.max_logit_rows;
        let mut inputs = Self { block: None, max_blocks, max_logit_rows, kept_index: Vec::new() };
        inputs.kept_index.reserve(max_logit_rows);
        if device.is_cuda() {
            let most = StepShape { rows: limits.max_tokens, seqs: limits.max_seqs, has_images: true };
            inputs.block = Some(StepBlock::new(device, inputs.slots(most).1.len_bytes())?);
        }
        Ok(inputs)
    }

    fn slots(&self, shape: StepShape) -> (Slots, BlockLayout) {
        let StepShape { rows, seqs, has_images } = shape;
        let mut layout = BlockLayout::default();
        let slots = Slots {
            logit_rows: layout.array::<i32>(self.max_logit_rows),
            kept_index: layout.array::<i32>(self.max_logit_rows),
            input_ids: layout.array::<i32>(rows),
            positions: layout.array::<i32>(3 * rows),
            slot_mapping: layout.array::<i64>(rows),
            cu_seqlens: layout.array::<i32>(seqs + 1),
            context_lens: layout.array::<i32>(seqs),
            block_tables: layout.array::<i32>(seqs * self.max_blocks),
            index: if has_images { layout.array::<i32>(rows) } else { BlockSlot::default() },
        };
        (slots, layout)
    }

    /// The batch, which has been checked, as the operators take it, without padding.
    pub(crate) fn bring<'a>(
        &'a mut self,
        stream: &Stream,
        batch: &Batch<'a>,
    ) -> Result<(BatchViews<'a>, KeptViews<'a>), LlmError> {
        let images = batch.image.map(|image| ImageTables { embeds: image.embeds, deepstack: image.deepstack });
        if self.block.is_none() {
            self.find_kept_index(batch);
            return Ok(direct(batch, &self.kept_index)?);
        }
        let shape = StepShape { rows: batch.num_tokens(), seqs: batch.num_seqs(), has_images: batch.image.is_some() };
        self.load(stream, batch, shape)?;
        let kept = self.kept(batch.logit_rows.len(), images.map(|images| images.deepstack))?;
        Ok((self.rows(shape, images, None)?, kept))
    }

    fn find_kept_index(&mut self, batch: &Batch<'_>) {
        self.kept_index.clear();
        if let Some(image) = &batch.image {
            let row_of = |row: &i32| usize::try_from(*row).ok().and_then(|row| image.index.get(row)).copied();
            self.kept_index.extend(batch.logit_rows.iter().map(|row| row_of(row).unwrap_or(-1)));
        }
    }

    /// Sends the batch, which has been checked, padded to a shape that takes it. Nothing to do on the CPU.
    pub(crate) fn load(&mut self, stream: &Stream, batch: &Batch<'_>, shape: StepShape) -> Result<(), LlmError> {
        self.find_kept_index(batch);
        if batch.max_blocks > self.max_blocks {
            return Err(LlmError::TooMany { what: "pages of a sequence", got: batch.max_blocks, max: self.max_blocks });
        }
        let StepShape { rows, seqs, has_images } = shape;
        for (what, got, max) in [("rows", batch.num_tokens(), rows), ("sequences", batch.num_seqs(), seqs)] {
            if got > max {
                return Err(LlmError::TooMany { what, got, max });
            }
        }
        let (slots, layout) = self.slots(shape);
        let Some(block) = &mut self.block else { return Ok(()) };
        block.place(layout)?;
        let kept = self.max_logit_rows;
        fill(block.array_mut(slots.logit_rows, kept)?, batch.logit_rows, 0);
        fill(block.array_mut(slots.kept_index, kept)?, &self.kept_index, -1);
        fill(block.array_mut(slots.input_ids, rows)?, batch.input_ids, 0);
        let positions = block.array_mut::<i32>(slots.positions, 3 * rows)?;
        let n = batch.num_tokens();
        for (axis, to) in positions.chunks_mut(rows.max(1)).enumerate() {
            fill(to, batch.positions.get(axis * n..(axis + 1) * n).unwrap_or_default(), 0);
        }
        fill(block.array_mut(slots.slot_mapping, rows)?, batch.slot_mapping, -1);
        let end = batch.cu_seqlens.last().copied().unwrap_or_default();
        fill(block.array_mut(slots.cu_seqlens, seqs + 1)?, batch.cu_seqlens, end);
        fill(block.array_mut(slots.context_lens, seqs)?, batch.context_lens, 0);
        let tables = block.array_mut::<i32>(slots.block_tables, seqs * self.max_blocks)?;
        let pages = batch.block_tables.chunks(batch.max_blocks.max(1)).chain(std::iter::repeat(&[][..]));
        for (to, from) in tables.chunks_mut(self.max_blocks.max(1)).zip(pages) {
            fill(to, from, 0);
        }
        if has_images {
            fill(block.array_mut(slots.index, rows)?, batch.image.map_or(&[][..], |image| image.index), -1);
        }
        Ok(block.send(stream)?)
    }

    fn block(&self) -> Result<&StepBlock, DeviceError> {
        self.block.as_ref().ok_or(DeviceError::NotOnDevice { dtype: foveal_device::DType::I32 })
    }

    /// Where a batch of a shape lies on the GPU, loaded already or later.
    pub(crate) fn rows<'a>(
        &'a self,
        shape: StepShape,
        images: Option<ImageTables<'a>>,
        sampled: Option<View<'a>>,
    ) -> Result<BatchViews<'a>, DeviceError> {
        let ((slots, _), block) = (self.slots(shape), self.block()?);
        let StepShape { rows, seqs, has_images } = shape;
        let image = images.filter(|_| has_images).map(|ImageTables { embeds, deepstack }| {
            Ok(ImageViews { embeds, index: block.view(slots.index, &[rows])?, deepstack })
        });
        Ok(BatchViews {
            input_ids: block.view(slots.input_ids, &[rows])?,
            positions: block.view(slots.positions, &[3, rows])?,
            slot_mapping: block.view(slots.slot_mapping, &[rows])?,
            cu_seqlens: block.view(slots.cu_seqlens, &[seqs + 1])?,
            context_lens: block.view(slots.context_lens, &[seqs])?,
            block_tables: block.view(slots.block_tables, &[seqs, self.max_blocks])?,
            image: image.transpose()?,
            sampled,
        })
    }

    /// Where the first `kept` of the rows lie whose logits are wanted.
    pub(crate) fn kept<'a>(
        &'a self,
        kept: usize,
        deepstack: Option<&'a [View<'a>]>,
    ) -> Result<KeptViews<'a>, DeviceError> {
        let nothing = StepShape { rows: 0, seqs: 0, has_images: false };
        let ((slots, _), block) = (self.slots(nothing), self.block()?);
        let deepstack = deepstack.map(|levels| Ok((levels, block.view(slots.kept_index, &[kept])?)));
        Ok(KeptViews { rows: block.view(slots.logit_rows, &[kept])?, deepstack: deepstack.transpose()? })
    }
}

/// Copies what there is, and fills what is left.
fn fill<T: Copy>(to: &mut [T], from: &[T], padding: T) {
    let own = from.len().min(to.len());
    let (head, tail) = to.split_at_mut(own);
    head.copy_from_slice(from.get(..own).unwrap_or_default());
    tail.fill(padding);
}

fn direct<'a>(batch: &Batch<'a>, kept_index: &'a [i32]) -> Result<(BatchViews<'a>, KeptViews<'a>), DeviceError> {
    let (n, s, kept) = (batch.num_tokens(), batch.num_seqs(), batch.logit_rows.len());
    let image = batch.image.map(|image| {
        Ok(ImageViews { embeds: image.embeds, index: View::from_slice(image.index, &[n])?, deepstack: image.deepstack })
    });
    let deepstack = batch.image.map(|image| Ok((image.deepstack, View::from_slice(kept_index, &[kept])?)));
    let rows = BatchViews {
        input_ids: View::from_slice(batch.input_ids, &[n])?,
        positions: View::from_slice(batch.positions, &[3, n])?,
        slot_mapping: View::from_slice(batch.slot_mapping, &[n])?,
        cu_seqlens: View::from_slice(batch.cu_seqlens, &[s + 1])?,
        context_lens: View::from_slice(batch.context_lens, &[s])?,
        block_tables: View::from_slice(batch.block_tables, &[s, batch.max_blocks])?,
        image: image.transpose()?,
        sampled: None,
    };
    let kept = KeptViews { rows: View::from_slice(batch.logit_rows, &[kept])?, deepstack: deepstack.transpose()? };
    Ok((rows, kept))
}
