//! Cuts a sequence into the chunks that steps compute, and says which pictures must be encoded before each.

use std::ops::Range;
use std::sync::Arc;

use foveal_mrope::MropeError;
use foveal_types::{PreparedImage, SlotId};

use super::Limits;
use super::picture_span::{num_embeds, num_patches};
use super::sequence::{History, Sequence};
use super::step_plan::{SequenceRows, Work};

/// Which pictures of the running sequence have their embeddings on the device. There is room for one batch: it stays
/// until the chunks that hold its placeholders have run, and the next batch takes its place.
#[derive(Debug, Default)]
pub(crate) struct EncodedPictures {
    images: Range<usize>,
    /// Where each picture's embeddings begin.
    first_embeds: Vec<usize>,
}

/// The rows that one step computes.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) rows: Range<usize>,
    encode: Vec<PreparedImage>,
    image_embeds: Vec<Option<usize>>,
}

impl EncodedPictures {
    /// The next chunk of `sequence`: as long as allowed, but it ends where a picture begins that has to wait for the
    /// room of those before it.
    pub(crate) fn next_chunk(&mut self, sequence: &mut Sequence, limits: &Limits) -> Chunk {
        let Sequence { history, images, .. } = sequence;
        let start = history.num_computed;
        let mut end = history.input_ids.len().min(start + limits.max_num_batched_tokens);
        let mut encode = Vec::new();
        let mut is_in_use = false;
        for span in history.spans_in(&(start..end)) {
            if !self.images.contains(&span.image) {
                if is_in_use {
                    end = span.rows.start;
                    break;
                }
                encode = self.encode_from(span.image, images, limits);
            }
            is_in_use = true;
        }
        let rows = start..end;
        let image_embeds = self.embeds_of(&rows, history);
        Chunk { rows, encode, image_embeds }
    }

    /// Encodes the picture `first` and as many of those after it as fit the tower's workspace. They leave `images`: rows
    /// are computed in order, so that no picture is asked for twice.
    fn encode_from(
        &mut self,
        first: usize,
        images: &mut [Option<PreparedImage>],
        limits: &Limits,
    ) -> Vec<PreparedImage> {
        let (mut patches, mut embeds) = (0_usize, 0_usize);
        let mut batch = Vec::new();
        self.first_embeds.clear();
        for place in images.iter_mut().skip(first) {
            let fits = |image: &mut PreparedImage| {
                patches = patches.saturating_add(num_patches(image.grid_thw));
                patches <= limits.max_patches || batch.is_empty()
            };
            let Some(image) = place.take_if(fits) else { break };
            self.first_embeds.push(embeds);
            embeds += num_embeds(image.grid_thw, limits.merge_size);
            batch.push(image);
        }
        debug_assert!(!batch.is_empty(), "picture {first} was encoded before");
        self.images = first..first + batch.len();
        batch
    }

    fn embeds_of(&self, rows: &Range<usize>, history: &History) -> Vec<Option<usize>> {
        let mut image_embeds = vec![None; rows.len()];
        for span in history.spans_in(rows) {
            let Some(at) = span.image.checked_sub(self.images.start) else { continue };
            let Some(first) = self.first_embeds.get(at) else { continue };
            let own = span.rows.start.max(rows.start)..span.rows.end.min(rows.end);
            let first = first + span.first_embed + (own.start - span.rows.start);
            let slots = image_embeds.iter_mut().skip(own.start - rows.start);
            slots.zip(first..first + own.len()).for_each(|(slot, embed)| *slot = Some(embed));
        }
        image_embeds
    }
}

impl Chunk {
    /// The flat batch of this chunk alone. The sequence's pages reach the chunk's end.
    ///
    /// # Errors
    /// Positions beyond int32.
    pub(crate) fn into_work(self, sequence: &Sequence, page: usize) -> Result<Work, MropeError> {
        let (rows, history) = (self.rows, &sequence.history);
        let slot = |row: usize| {
            let block = history.block_table.get(row / page).map_or(-1, |block| i64::from(block.0));
            SlotId(if block < 0 { -1 } else { block * page as i64 + (row % page) as i64 })
        };
        Ok(Work {
            encode: self.encode,
            input_ids: history.input_ids.iter().skip(rows.start).take(rows.len()).copied().collect(),
            positions: history.positions_of(rows.clone())?,
            slot_mapping: rows.clone().map(slot).collect(),
            image_embeds: self.image_embeds,
            sequences: vec![SequenceRows {
                id: sequence.id,
                ask: Arc::clone(&sequence.ask),
                rows: 0..rows.len(),
                context_len: rows.end,
                block_table: history.block_table.clone(),
                samples: rows.end == history.input_ids.len(),
            }],
        })
    }
}
