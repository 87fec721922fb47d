//! Requests and limits for this crate's tests.

use std::sync::Arc;

use foveal_llm::{GenerationDefaults, StopCriteria};
use foveal_types::{ContentHash, PreparedImage, PreparedRequest, SamplingParams, SeqId, SlotId, TokenId};

use super::Limits;
use super::step_plan::{Ask, InputId, SequenceRows, Work};

pub(crate) const PATCH_BYTES: usize = 3;

pub(crate) fn limits() -> Limits {
    Limits {
        page: 32,
        num_blocks: 8,
        max_model_len: 200,
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        max_patches: 64,
        encoder_rows: 32,
        merge_size: 2,
        patch_bytes: PATCH_BYTES,
        temporal_patch_size: 2,
        vocab_size: 1024,
    }
}

/// A text request with positions 0, 1, 2, ...
pub(crate) fn request(ids: &[u32]) -> PreparedRequest {
    let n = i32::try_from(ids.len()).unwrap();
    PreparedRequest {
        input_ids: ids.iter().copied().map(TokenId).collect(),
        image_token_ranges: Vec::new(),
        positions: (0..3).flat_map(|_| 0..n).collect(),
        rope_delta: 0,
        images: Vec::new(),
        sampling: SamplingParams::default(),
    }
}

/// A still picture, or a video for `t > 1`, whose hash is `hash`.
pub(crate) fn picture(grid_thw: [u32; 3], hash: u8) -> PreparedImage {
    let temporal_slices = if grid_thw[0] > 1 { 2 } else { 1 };
    let bytes = grid_thw.iter().product::<u32>() as usize * temporal_slices as usize * PATCH_BYTES;
    PreparedImage {
        grid_thw,
        pixels: Arc::new(vec![hash; bytes]),
        temporal_slices,
        hash: ContentHash([hash; 32]),
        placeholder_start: 0,
    }
}

/// `len` tokens of text (7) with pictures (placeholders 9) from the given rows on; merge size 2.
pub(crate) fn with_pictures(len: usize, pictures: &[(usize, PreparedImage)]) -> PreparedRequest {
    let mut request = request(&vec![7; len]);
    for (start, image) in pictures {
        let rows = image.grid_thw.iter().product::<u32>() as usize / 4;
        request.input_ids[*start..*start + rows].fill(TokenId(9));
        request.image_token_ranges.push(*start..*start + rows);
        request.images.push(PreparedImage { placeholder_start: *start, ..image.clone() });
    }
    request
}

/// A step of sequences 0, 1, ... of so many rows, and whether each samples. All that is of a row is its number.
pub(crate) fn work_of(sequences: &[(usize, bool)]) -> Work {
    let n = sequences.iter().map(|(rows, _)| rows).sum::<usize>();
    let stop = StopCriteria::new(&SamplingParams::default(), &GenerationDefaults::default(), 0, 9);
    let ask = Arc::new(Ask { prompt: Vec::new(), sampling: SamplingParams::default(), stop });
    let mut first = 0;
    let sequences = (0..).zip(sequences).map(|(id, &(rows, samples))| {
        first += rows;
        SequenceRows {
            id: SeqId(id),
            ask: Arc::clone(&ask),
            rows: first - rows..first,
            context_len: rows,
            block_table: Vec::new(),
            samples,
        }
    });
    Work {
        sequences: sequences.collect(),
        input_ids: (0..n).map(|row| InputId::Known(TokenId(row as u32))).collect(),
        positions: (0..3 * n as i32).collect(),
        slot_mapping: (0..n).map(|row| SlotId(row as i64)).collect(),
        image_embeds: (0..n).map(Some).collect(),
        ..Work::default()
    }
}

pub(crate) fn seq_ids(work: &Work) -> Vec<u64> {
    work.sequences.iter().map(|sequence| sequence.id.0).collect()
}
