//! Requests of exact lengths, without a tokenizer or a picture file.

use foveal_load::Random;
use foveal_mrope::{GridThw, Span, position_ids};
use foveal_processor::smart_resize;
use foveal_types::{ContentHash, PreparedImage, PreparedRequest, RequestError, SamplingParams, TokenId};

use super::ThroughputOptions;
use crate::{Model, RuntimeError};

/// Ordinary text has ids from here on: the first are bytes.
const FIRST_ID: u32 = 256;
/// The longest run of ids that are surely text; special tokens stand at the vocabulary's end.
const MAX_IDS: u32 = 90_000;

/// What all requests have in common.
pub(super) struct Workload {
    input_len: usize,
    output_len: usize,
    seed: u64,
    /// One for each picture.
    grids: Vec<[u32; 3]>,
    num_ids: u32,
}

impl Workload {
    pub(super) fn new(model: &Model, options: &ThroughputOptions) -> Result<Self, RuntimeError> {
        let ThroughputOptions { input_len, output_len, num_images, image_size: [width, height], seed, .. } = *options;
        let bad = |param, message: String| RuntimeError::Request(RequestError::new(param, message).into());
        let grid = match model.processor().vision_config().filter(|_| num_images > 0) {
            Some(vision) => {
                let (height, width) = smart_resize(height, width, vision.factor(), vision.budget)
                    .map_err(|error| bad("image_size", error.to_string()))?;
                [1, height / vision.patch_size, width / vision.patch_size]
            }
            None if num_images > 0 => return Err(bad("num_images", "this model takes no pictures".to_owned())),
            None => [0; 3],
        };
        let vocab_size = u32::try_from(model.engine().limits().vocab_size).unwrap_or(u32::MAX);
        // Half of the vocabulary is text in any of these models.
        let num_ids = (vocab_size / 2).clamp(1, MAX_IDS);
        Ok(Self { input_len, output_len, seed, grids: vec![grid; num_images], num_ids })
    }

    pub(super) fn output_len(&self) -> usize {
        self.output_len
    }

    /// Request number `index`: half of the text, the pictures, the other half. No two have a token's run or a picture in common.
    pub(super) fn request(&self, model: &Model, index: usize) -> Result<PreparedRequest, RuntimeError> {
        let merge = model.position_rule().spatial_merge_size;
        let mut random = Random::new(self.seed, index as u64);
        let mut text = |len: usize| -> Vec<TokenId> {
            let first = FIRST_ID.min(self.num_ids - 1);
            (0..len).map(|_| TokenId(first + random.next_bits() as u32 % (self.num_ids - first))).collect()
        };
        let head = self.input_len / 2;
        let mut input_ids = text(head);
        let tail = text(self.input_len - head);
        let (mut spans, mut images) = (vec![Span::Text { len: head }], Vec::new());
        let mut image_token_ranges = Vec::new();
        for &[t, h, w] in &self.grids {
            let grid = GridThw { t, h, w };
            let start = input_ids.len();
            input_ids.resize(start + grid.num_tokens(merge), model.image_token_id());
            image_token_ranges.push(start..input_ids.len());
            spans.push(Span::Image { grid });
            images.push(picture(model, [t, h, w], start, &mut random)?);
        }
        spans.push(Span::Text { len: tail.len() });
        input_ids.extend(tail);
        let invalid = |error: String| RuntimeError::Request(RequestError::new("invalid_prompt", error).into());
        let positions = position_ids(&spans, &model.position_rule()).map_err(|error| invalid(error.to_string()))?;
        let rope_delta = positions.delta();
        let sampling =
            SamplingParams { max_tokens: Some(self.output_len), ignore_eos: true, ..SamplingParams::default() };
        Ok(PreparedRequest {
            input_ids,
            image_token_ranges,
            positions: positions.into_vec(),
            rope_delta,
            images,
            sampling,
        })
    }
}

/// A still picture of noise, in the memory that the engine lends.
fn picture(
    model: &Model,
    [t, h, w]: [u32; 3],
    placeholder_start: usize,
    random: &mut Random,
) -> Result<PreparedImage, RuntimeError> {
    let len_bytes = (h * w) as usize * model.engine().limits().patch_bytes;
    let mut block = model.engine().pixels().lend(len_bytes).map_err(|error| RuntimeError::Request(error.into()))?;
    let mut hash = [0; 32];
    hash.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_bits().to_le_bytes()));
    for chunk in block.bytes_mut().chunks_mut(8) {
        let word = random.next_bits().to_le_bytes();
        chunk.copy_from_slice(word.get(..chunk.len()).unwrap_or(&word));
    }
    Ok(PreparedImage {
        grid_thw: [t, h, w],
        pixels: block.finish(),
        temporal_slices: 1,
        hash: ContentHash(hash),
        placeholder_start,
    })
}
