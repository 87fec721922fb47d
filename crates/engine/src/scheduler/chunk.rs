//! Cuts a sequence into the chunks that steps compute, and says which pictures must be encoded before each.

use std::ops::Range;
use std::sync::Arc;

use foveal_types::{PreparedImage, SlotId};

use super::Limits;
use super::picture_span::{num_embeds, num_patches};
use super::sequence::Sequence;
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
    pub(crate) fn next_chunk(&mut self, sequence: &Sequence, limits: &Limits) -> Chunk {
        let start = sequence.num_computed;
        let mut end = sequence.input_ids.len().min(start + limits.max_num_batched_tokens);
        let mut encode = Vec::new();
        let mut is_in_use = false;
        for span in sequence.spans_in(&(start..end)) {
            if !self.images.contains(&span.image) {
                if is_in_use {
                    end = span.rows.start;
                    break;
                }
                encode = self.encode_from(span.image, sequence, limits);
            }
            is_in_use = true;
        }
        let rows = start..end;
        let image_embeds = self.embeds_of(&rows, sequence);
        Chunk { rows, encode, image_embeds }
    }

    /// Encodes the picture `first` and as many of those after it as fit the tower's workspace.
    fn encode_from(&mut self, first: usize, sequence: &Sequence, limits: &Limits) -> Vec<PreparedImage> {
        let (mut patches, mut embeds) = (0_usize, 0_usize);
        let mut batch = Vec::new();
        self.first_embeds.clear();
        for image in sequence.request.images.iter().skip(first) {
            patches = patches.saturating_add(num_patches(image.grid_thw));
            if patches > limits.max_patches && !batch.is_empty() {
                break;
            }
            self.first_embeds.push(embeds);
            embeds += num_embeds(image.grid_thw, limits.merge_size);
            batch.push(image.clone());
        }
        self.images = first..first + batch.len();
        batch
    }

    fn embeds_of(&self, rows: &Range<usize>, sequence: &Sequence) -> Vec<Option<usize>> {
        let mut image_embeds = vec![None; rows.len()];
        for span in sequence.spans_in(rows) {
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
    pub(crate) fn into_work(self, sequence: &Sequence, page: usize) -> Work {
        let rows = self.rows;
        let positions: Vec<[i32; 3]> = rows.clone().map(|row| sequence.position(row)).collect();
        let slot = |row: usize| {
            let block = sequence.block_table.get(row / page).map_or(-1, |block| i64::from(block.0));
            SlotId(if block < 0 { -1 } else { block * page as i64 + (row % page) as i64 })
        };
        Work {
            encode: self.encode,
            input_ids: sequence.input_ids.iter().skip(rows.start).take(rows.len()).copied().collect(),
            positions: (0..3).flat_map(|axis| positions.iter().filter_map(move |p| p.get(axis).copied())).collect(),
            slot_mapping: rows.clone().map(slot).collect(),
            image_embeds: self.image_embeds,
            sequences: vec![SequenceRows {
                id: sequence.id,
                request: Arc::clone(&sequence.request),
                stop: Arc::clone(&sequence.stop),
                rows: 0..rows.len(),
                context_len: rows.end,
                block_table: sequence.block_table.clone(),
                samples: rows.end == sequence.input_ids.len(),
            }],
        }
    }
}
