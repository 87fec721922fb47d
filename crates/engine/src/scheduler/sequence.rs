//! One request on its way through the engine.

use std::ops::Range;
use std::sync::Arc;

use foveal_llm::StopCriteria;
use foveal_types::{BlockId, PreparedRequest, SeqId, TokenId, Usage};

use super::picture_span::{PictureSpan, picture_spans};

/// The tokens of a request, those of its answer included, and what is known of each row.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) request: Arc<PreparedRequest>,
    pub(crate) stop: Arc<StopCriteria>,
    /// Prompt and answer.
    pub(crate) input_ids: Vec<TokenId>,
    pub(crate) spans: Vec<PictureSpan>,
    /// Pages that hold the computed rows, in order.
    pub(crate) block_table: Vec<BlockId>,
    /// Rows whose keys and values stand in the cache.
    pub(crate) num_computed: usize,
    /// Rows of the prompt that another request had computed.
    pub(crate) num_cached: usize,
}

impl Sequence {
    pub(crate) fn new(id: SeqId, request: Arc<PreparedRequest>, stop: StopCriteria, merge_size: u32) -> Self {
        let spans = picture_spans(&request, merge_size);
        let input_ids = request.input_ids.clone();
        Self {
            id,
            request,
            stop: Arc::new(stop),
            input_ids,
            spans,
            block_table: Vec::new(),
            num_computed: 0,
            num_cached: 0,
        }
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.request.input_ids.len()
    }

    pub(crate) fn completion_len(&self) -> usize {
        self.input_ids.len() - self.prompt_len()
    }

    /// M-RoPE positions of one row, on (t, h, w). Beyond the prompt they follow from the delta.
    pub(crate) fn position(&self, row: usize) -> [i32; 3] {
        let n = self.prompt_len();
        if row >= n {
            let index = i32::try_from(row).unwrap_or(i32::MAX);
            return [index.saturating_add(self.request.rope_delta); 3];
        }
        [0, n, 2 * n].map(|axis| self.request.positions.get(axis + row).copied().unwrap_or_default())
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len(),
            image_tokens: self.spans.iter().map(|span| span.rows.len()).sum(),
            cached_tokens: self.num_cached,
            completion_tokens: self.completion_len(),
        }
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
        let same = |row: &usize| {
            self.input_ids.get(*row) == other.input_ids.get(*row) && self.position(*row) == other.position(*row)
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
fn agreed_until(span: &PictureSpan, other: &Sequence) -> usize {
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

    fn computed(request: PreparedRequest) -> Sequence {
        let stop = StopCriteria::new(&request.sampling, &GenerationDefaults::default(), 0, usize::MAX);
        let mut sequence = Sequence::new(SeqId(0), Arc::new(request), stop, 2);
        sequence.num_computed = sequence.input_ids.len();
        sequence
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
        let sequence = computed(request);
        assert_eq!(sequence.position(1), [1, 11, 21]);
        assert_eq!(sequence.position(50), [10; 3]);
    }
}
