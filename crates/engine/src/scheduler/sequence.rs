//! One request on its way through the engine.

use std::ops::Range;
use std::sync::Arc;

use foveal_llm::StopCriteria;
use foveal_mrope::{MropeError, PositionIds};
use foveal_types::{BlockId, ContentHash, FinishReason, PreparedImage, PreparedRequest, SeqId, TokenId, Usage};

use super::encoder_cache::EncoderCache;
use super::picture_span::picture_spans;
use super::row_contents::RowContents;
use super::step_plan::{Ask, InputId};

/// A request and its answer so far.
///
/// Its rows come in this order: those computed, those in a step that hasn't ended (`num_computed..num_scheduled`), those
/// of known tokens that no step holds yet, and the row of a token that is being chosen. Where a step is planned, there is
/// at most one such token, and the step before chooses it.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) ask: Arc<Ask>,
    pub(crate) contents: RowContents,
    /// The pages of its rows, in order.
    pub(crate) block_table: Vec<BlockId>,
    /// Rows whose keys and values stand in the cache.
    pub(crate) num_computed: usize,
    /// Rows that steps have been planned for.
    pub(crate) num_scheduled: usize,
    /// Pages that have been published, or were found.
    pub(crate) num_published: usize,
    /// Tokens that steps in flight choose.
    num_pending: usize,
    /// Where the last of them stands among those that its step chooses.
    last_pending: usize,
    /// Steps with rows of it that have not ended.
    pub(crate) num_in_flight: usize,
    /// Rows of the prompt that it did not have to compute when it started.
    pub(crate) num_cached: usize,
    /// Whether it has left the waiting queue before.
    pub(crate) has_run: bool,
    pictures: Vec<Picture>,
    /// Prompt rows done as last told.
    num_told: Option<usize>,
}

/// A picture of a request.
#[derive(Debug)]
struct Picture {
    /// For whatever is encoded. The pixels are lent, by who has little to lend: see [`Sequence::let_pixels_go`].
    image: Option<PreparedImage>,
    hash: ContentHash,
    /// The row behind its last placeholder.
    end: usize,
    /// It uses the encoder cache's entry.
    is_held: bool,
    has_lent_pixels: bool,
}

impl Sequence {
    /// A request that [`super::Limits::check`] accepts.
    ///
    /// # Errors
    /// Positions that are not `[3, N]`, or that leave int32 within the longest answer.
    pub(crate) fn new(
        id: SeqId,
        request: PreparedRequest,
        stop: StopCriteria,
        merge_size: u32,
    ) -> Result<Self, MropeError> {
        let spans = picture_spans(&request, merge_size);
        let PreparedRequest { input_ids, positions, rope_delta, images, sampling, .. } = request;
        let picture = |(index, image): (usize, PreparedImage)| Picture {
            hash: image.hash,
            end: spans.iter().rev().find(|span| span.image == index).map_or(0, |span| span.rows.end),
            image: Some(image),
            is_held: false,
            has_lent_pixels: true,
        };
        let pictures = images.into_iter().enumerate().map(picture).collect();
        let positions = PositionIds::from_parts(positions, rope_delta)?;
        // The answer's last token is never computed.
        let max_len = input_ids.len().saturating_add(stop.max_tokens()).saturating_sub(1);
        Ok(Self {
            id,
            contents: RowContents::new(input_ids.clone(), positions, spans, max_len)?,
            ask: Arc::new(Ask { prompt: input_ids, sampling, stop }),
            block_table: Vec::new(),
            num_computed: 0,
            num_scheduled: 0,
            num_published: 0,
            num_pending: 0,
            last_pending: 0,
            num_in_flight: 0,
            num_cached: 0,
            has_run: false,
            pictures,
            num_told: None,
        })
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.ask.prompt.len()
    }

    /// Tokens of the answer that are known.
    pub(crate) fn completion_len(&self) -> usize {
        self.contents.len() - self.prompt_len()
    }

    /// Tokens known or being chosen.
    pub(crate) fn total_len(&self) -> usize {
        self.contents.len() + self.num_pending
    }

    /// The rows that a step may compute now, `budget` at most; `None` while it has to wait for a token, be it to choose the
    /// next one or because it may be the last.
    pub(crate) fn next_rows(&self, budget: usize) -> Option<Range<usize>> {
        let total = self.total_len();
        let is_last = total - self.prompt_len() >= self.ask.stop.max_tokens();
        let waits = self.num_pending > 0 && (is_last || self.ask.reads_answer());
        let rows = self.num_scheduled..total.min(self.num_scheduled + budget);
        (!waits && !rows.is_empty()).then_some(rows)
    }

    /// The part of `rows` whose pictures can be had in this step: it ends before the first that can't.
    pub(crate) fn with_pictures(&mut self, rows: Range<usize>, encoder: &mut EncoderCache) -> Range<usize> {
        let Self { contents, pictures, .. } = self;
        for span in contents.spans_in(&rows) {
            let Some(picture) = pictures.get_mut(span.image) else { continue };
            picture.is_held = picture.is_held || picture.image.as_ref().is_some_and(|image| encoder.acquire(image));
            if !picture.is_held {
                return rows.start..span.rows.start.max(rows.start);
            }
        }
        rows
    }

    /// The tokens of `rows`.
    pub(crate) fn input_ids(&self, rows: &Range<usize>) -> impl Iterator<Item = InputId> + use<'_> {
        let pending = (rows.end > self.contents.len()).then_some(InputId::Sampled(self.last_pending));
        self.contents.input_ids(rows).iter().copied().map(InputId::Known).chain(pending)
    }

    /// Begins with `blocks`, which hold its first rows already.
    pub(crate) fn start_behind(&mut self, blocks: Vec<BlockId>, page: usize) {
        self.num_computed = blocks.len() * page;
        self.num_scheduled = self.num_computed;
        self.num_published = blocks.len();
        if !self.has_run {
            self.num_cached = self.num_computed;
        }
        self.has_run = true;
        self.block_table = blocks;
    }

    /// Has no row in the cache any more, and needs no picture for now; its block table is to be released by the caller.
    pub(crate) fn start_again(&mut self, encoder: &mut EncoderCache) {
        debug_assert!(self.num_in_flight == 0 && self.num_pending == 0, "sequence {:?} is in flight", self.id);
        (self.num_computed, self.num_scheduled, self.num_published) = (0, 0, 0);
        self.release_pictures(encoder);
    }

    /// A step is on its way that computes the rows before `end`. If the last one chooses a token, it is the step's
    /// `samples_as`th.
    pub(crate) fn schedule(&mut self, end: usize, samples_as: Option<usize>) {
        self.num_scheduled = end;
        self.num_in_flight += 1;
        if let Some(place) = samples_as {
            self.num_pending += 1;
            self.last_pending = place;
        }
    }

    /// What to tell of the prompt's rows, if there is anything new.
    pub(crate) fn progress(&mut self) -> Option<usize> {
        let done = self.num_computed.min(self.prompt_len());
        let is_new = self.completion_len() == 0 && self.num_told.is_none_or(|told| told < done);
        is_new.then(|| *self.num_told.insert(done))
    }

    /// One more token of the answer, and whether it ends it.
    pub(crate) fn take_token(&mut self, token: TokenId) -> Option<FinishReason> {
        self.num_pending -= 1;
        self.contents.push(token);
        self.ask.stop.finish_reason(token, self.completion_len())
    }

    /// Gives up the pictures all of whose rows are computed.
    pub(crate) fn release_done_pictures(&mut self, encoder: &mut EncoderCache) {
        let done = self.num_computed;
        for picture in self.pictures.iter_mut().filter(|picture| picture.is_held && picture.end <= done) {
            encoder.release(picture.hash);
            picture.is_held = false;
        }
    }

    /// Gives up all pictures.
    pub(crate) fn release_pictures(&mut self, encoder: &mut EncoderCache) {
        self.held().for_each(|hash| encoder.release(hash));
        self.pictures.iter_mut().for_each(|picture| picture.is_held = false);
    }

    /// The pictures that it uses.
    pub(crate) fn held(&self) -> impl Iterator<Item = ContentHash> {
        self.pictures.iter().filter(|picture| picture.is_held).map(|picture| picture.hash)
    }

    /// Whether it uses its picture of this index; equal pictures count separately.
    #[cfg(test)]
    pub(crate) fn holds(&self, image: usize) -> bool {
        self.pictures.get(image).is_some_and(|picture| picture.is_held)
    }

    /// Gives back the pixels of the pictures all of whose rows are computed.
    ///
    /// If the sequence `may_restart`, its rows may have to be computed again when neither they nor their embeddings are cached
    /// any more: then it goes on with a copy in ordinary memory. Lent memory is page-locked, and so scarce that long answers
    /// would keep new pictures out.
    pub(crate) fn let_pixels_go(&mut self, may_restart: bool) {
        let done = self.num_computed;
        for picture in self.pictures.iter_mut().filter(|picture| picture.has_lent_pixels && picture.end <= done) {
            picture.has_lent_pixels = false;
            match &mut picture.image {
                Some(image) if may_restart => image.pixels = Arc::new(image.pixels.bytes().to_vec()),
                image => *image = None,
            }
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len(),
            image_tokens: self.contents.spans().iter().map(|span| span.rows.len()).sum(),
            cached_tokens: self.num_cached,
            completion_tokens: self.completion_len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{picture, request, with_pictures};
    use foveal_llm::GenerationDefaults;
    use foveal_types::SamplingParams;

    fn sequence(request: PreparedRequest) -> Sequence {
        let stop = StopCriteria::new(&request.sampling, &GenerationDefaults::default(), 0, 1000);
        Sequence::new(SeqId(0), request, stop, 2).unwrap()
    }

    fn pixels_left(sequence: &Sequence) -> Vec<bool> {
        sequence.pictures.iter().map(|picture| picture.image.is_some()).collect()
    }

    #[test]
    fn lent_pixels_go_back_with_the_picture_s_last_row() {
        let pictures = [(4, picture([1, 4, 4], 1)), (12, picture([1, 4, 6], 2)), (20, picture([1, 4, 4], 3))];
        for may_restart in [false, true] {
            for (rows, num_gone) in [(0, 0), (7, 0), (8, 1), (12, 1), (18, 2), (23, 2), (24, 3)] {
                let request = with_pictures(30, &pictures);
                let lent: Vec<_> = request.images.iter().map(|image| Arc::downgrade(&image.pixels)).collect();
                let before: Vec<usize> = lent.iter().map(std::sync::Weak::strong_count).collect();
                let mut sequence = sequence(request);
                sequence.num_computed = rows;
                sequence.let_pixels_go(may_restart);
                let gone = lent.iter().zip(before).map(|(pixels, before)| pixels.strong_count() < before);
                let expected: Vec<bool> = (0..3).map(|i| i < num_gone).collect();
                assert_eq!(gone.collect::<Vec<_>>(), expected, "{rows} rows");
                let left: Vec<bool> = expected.iter().map(|is_gone| may_restart || !is_gone).collect();
                assert_eq!(pixels_left(&sequence), left);
            }
        }
    }

    #[test]
    fn a_sequence_runs_ahead_by_one_token_and_never_beyond_its_last() {
        let sampling = SamplingParams { max_tokens: Some(2), ..SamplingParams::default() };
        let mut plain = sequence(PreparedRequest { sampling: sampling.clone(), ..request(&[1, 2, 3]) });
        assert_eq!(plain.next_rows(2), Some(0..2));
        plain.schedule(3, None);
        assert_eq!(plain.next_rows(9), None, "every known row is in a step");
        plain.schedule(3, Some(4));
        assert_eq!(plain.next_rows(9), Some(3..4));
        assert_eq!(plain.input_ids(&(2..4)).collect::<Vec<_>>(), [InputId::Known(TokenId(3)), InputId::Sampled(4)]);
        plain.schedule(4, Some(1));
        assert_eq!(plain.take_token(TokenId(7)), None);
        assert_eq!(plain.next_rows(9), None, "the token that is being chosen is the last");
        assert_eq!(plain.take_token(TokenId(7)), Some(FinishReason::Length));

        let penalised = SamplingParams { frequency_penalty: 0.5, ..sampling };
        let mut penalised = sequence(PreparedRequest { sampling: penalised, ..request(&[1, 2, 3]) });
        penalised.schedule(3, Some(0));
        assert_eq!(penalised.next_rows(9), None, "its next token depends on this one");
        penalised.take_token(TokenId(7));
        assert_eq!(penalised.next_rows(9), Some(3..4));
    }

    #[test]
    fn progress_never_runs_backwards() {
        let mut sequence = sequence(request(&[1; 40]));
        assert_eq!(sequence.progress(), Some(0));
        assert_eq!(sequence.progress(), None);
        sequence.num_computed = 32;
        assert_eq!(sequence.progress(), Some(32));
        sequence.num_computed = 0;
        assert_eq!(sequence.progress(), None, "preempted");
        sequence.num_computed = 48;
        assert_eq!(sequence.progress(), Some(40));
    }
}
