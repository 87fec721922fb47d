//! One request on its way through the engine.

use std::ops::Range;
use std::sync::Arc;

use foveal_llm::StopCriteria;
use foveal_mrope::{MropeError, PositionIds};
use foveal_types::{BlockId, PreparedImage, PreparedRequest, SeqId, TokenId, Usage};

use super::picture_span::{PictureSpan, picture_spans};
use super::step_plan::Ask;

/// A request and its answer so far.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) ask: Arc<Ask>,
    pub(crate) history: History,
    /// The pictures, by their index in the request, that are still to be encoded: their pixels are lent, and go back
    /// as soon as they have been looked at.
    pub(crate) images: Vec<Option<PreparedImage>>,
    /// Rows of the prompt that another request had computed.
    pub(crate) num_cached: usize,
}

/// What each row of a sequence is and where its key and value stand: all that a later request needs to take rows over.
#[derive(Debug)]
pub(crate) struct History {
    /// Prompt and answer.
    pub(crate) input_ids: Vec<TokenId>,
    /// The prompt's; those of the answer follow from the delta.
    pub(crate) positions: PositionIds,
    pub(crate) spans: Vec<PictureSpan>,
    /// Pages that hold the computed rows, in order.
    pub(crate) block_table: Vec<BlockId>,
    /// Rows whose keys and values stand in the cache.
    pub(crate) num_computed: usize,
}

impl Sequence {
    /// A request that [`super::Limits::check`] accepts.
    ///
    /// # Errors
    /// Positions that are not `[3, N]`.
    pub(crate) fn new(
        id: SeqId,
        request: PreparedRequest,
        stop: StopCriteria,
        merge_size: u32,
    ) -> Result<Self, MropeError> {
        let spans = picture_spans(&request, merge_size);
        let PreparedRequest { input_ids, positions, rope_delta, images, sampling, .. } = request;
        let history = History {
            input_ids: input_ids.clone(),
            positions: PositionIds::from_parts(positions, rope_delta)?,
            spans,
            block_table: Vec::new(),
            num_computed: 0,
        };
        let ask = Arc::new(Ask { prompt: input_ids, sampling, stop });
        Ok(Self { id, ask, history, images: images.into_iter().map(Some).collect(), num_cached: 0 })
    }

    /// Begins with `rows` rows of `history`, whose pages are all still in its block table.
    pub(crate) fn take_over(&mut self, history: History, rows: usize) {
        self.history.block_table = history.block_table;
        self.history.num_computed = rows;
        self.num_cached = rows;
        let next = self.history.spans_in(&(rows..self.prompt_len())).next().map_or(self.images.len(), |s| s.image);
        self.images.iter_mut().take(next).for_each(|image| *image = None);
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.ask.prompt.len()
    }

    pub(crate) fn completion_len(&self) -> usize {
        self.history.input_ids.len() - self.prompt_len()
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len(),
            image_tokens: self.history.spans.iter().map(|span| span.rows.len()).sum(),
            cached_tokens: self.num_cached,
            completion_tokens: self.completion_len(),
        }
    }
}

impl History {
    /// Positions `[3, rows]` of any rows of prompt and answer.
    ///
    /// # Errors
    /// Positions beyond int32.
    pub(crate) fn positions_of(&self, rows: Range<usize>) -> Result<Vec<i32>, MropeError> {
        let mut positions = vec![0; 3 * rows.len()];
        self.positions.fill_batch(rows, &mut positions, 0)?;
        Ok(positions)
    }

    /// The spans that have a row in `rows`, in order.
    pub(crate) fn spans_in(&self, rows: &Range<usize>) -> impl Iterator<Item = &PictureSpan> {
        let first = self.spans.partition_point(|span| span.rows.end <= rows.start);
        let end = rows.end;
        self.spans.iter().skip(first).take_while(move |span| span.rows.start < end)
    }

    /// How many leading rows of `self` are exactly the computed rows of `other`: the same tokens at the same
    /// positions, and under every placeholder the same row of the same picture.
    pub(crate) fn common_prefix(&self, other: &Self) -> usize {
        let limit = self.input_ids.len().min(other.num_computed);
        let (Ok(own), Ok(others)) = (self.positions_of(0..limit), other.positions_of(0..limit)) else { return 0 };
        let same = |row: &usize| {
            self.input_ids.get(*row) == other.input_ids.get(*row)
                && (0..3).all(|axis| own.get(axis * limit + row) == others.get(axis * limit + row))
        };
        let mut common = (0..limit).take_while(same).count();
        for (a, b) in [(self, other), (other, self)] {
            for span in a.spans_in(&(0..common)) {
                common = common.min(agreed_until(span, b));
            }
        }
        common
    }
}

/// The first row from `span`'s start on where `other` holds something else than `span` does, as far as pictures go.
fn agreed_until(span: &PictureSpan, other: &History) -> usize {
    let twin = other.spans_in(&span.rows).next();
    match twin {
        Some(twin)
            if twin.rows.start == span.rows.start && twin.hash == span.hash && twin.first_embed == span.first_embed =>
        {
            // The rows beyond the shorter span differ in kind; those beyond two equal ones are other spans' matter.
            if twin.rows.end == span.rows.end { usize::MAX } else { twin.rows.end.min(span.rows.end) }
        }
        Some(twin) => span.rows.start.min(twin.rows.start),
        None => span.rows.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{picture, request, with_pictures};
    use foveal_llm::GenerationDefaults;

    fn sequence(request: PreparedRequest) -> Sequence {
        let stop = StopCriteria::new(&request.sampling, &GenerationDefaults::default(), 0, usize::MAX);
        Sequence::new(SeqId(0), request, stop, 2).unwrap()
    }

    fn computed(request: PreparedRequest) -> History {
        let mut history = sequence(request).history;
        history.num_computed = history.input_ids.len();
        history
    }

    fn common(a: PreparedRequest, b: PreparedRequest) -> usize {
        let (a, b) = (computed(a), computed(b));
        let common = a.common_prefix(&b);
        assert_eq!(common, b.common_prefix(&a), "symmetric when both are wholly computed");
        common
    }

    #[test]
    fn tokens_positions_and_pictures_all_count() {
        assert_eq!(common(request(&[1, 2, 3]), request(&[1, 2, 4, 5])), 2);
        assert_eq!(common(request(&[1, 2, 3]), request(&[1, 2, 3, 4])), 3);
        let mut shifted = request(&[1, 2, 3]);
        shifted.positions[1] = 7;
        assert_eq!(common(request(&[1, 2, 3]), shifted), 1);

        let one = |hash| with_pictures(20, &[(4, picture([1, 4, 4], hash))]);
        assert_eq!(common(one(1), one(1)), 20);
        assert_eq!(common(one(1), one(2)), 4, "another picture in the same place");
        assert_eq!(
            common(one(1), request(&one(1).input_ids.iter().map(|id| id.0).collect::<Vec<_>>())),
            4,
            "placeholder tokens typed as text"
        );
        let two = |hash| with_pictures(30, &[(4, picture([1, 4, 4], 1)), (12, picture([1, 4, 6], hash))]);
        assert_eq!(common(two(3), two(4)), 12, "the first picture stays");
    }

    #[test]
    fn only_computed_rows_count() {
        let a = computed(request(&[1, 2, 3, 4]));
        let mut b = computed(request(&[1, 2, 3, 4]));
        b.num_computed = 3;
        assert_eq!(a.common_prefix(&b), 3);
    }

    #[test]
    fn positions_beyond_the_prompt_follow_from_the_delta() {
        let mut request = request(&[1, 2]);
        request.rope_delta = -40;
        request.positions = vec![0, 1, 10, 11, 20, 21];
        let history = computed(request);
        assert_eq!(history.positions_of(1..2).unwrap(), [1, 11, 21]);
        assert_eq!(history.positions_of(50..51).unwrap(), [10; 3]);
    }

    #[test]
    fn pictures_whose_rows_are_taken_over_are_given_back() {
        let pictures = [(4, picture([1, 4, 4], 1)), (12, picture([1, 4, 6], 2)), (20, picture([1, 4, 4], 3))];
        for (rows, kept) in [(0, 0), (7, 0), (8, 1), (12, 1), (18, 2), (23, 2), (29, 3)] {
            let mut next = sequence(with_pictures(30, &pictures));
            next.take_over(computed(with_pictures(30, &pictures)), rows);
            let gone = next.images.iter().position(Option::is_some).unwrap_or(3);
            assert_eq!(gone, kept, "{rows} rows taken over");
            assert!(next.images.iter().skip(gone).all(Option::is_some));
        }
    }
}
