//! What each row of a sequence is.

use std::ops::Range;

use foveal_mrope::{MropeError, PositionIds};
use foveal_types::TokenId;

use super::page_hash::{PageHash, RowContent};
use super::picture_span::PictureSpan;

/// Prompt and answer of one sequence, as far as they are known.
#[derive(Debug)]
pub(crate) struct RowContents {
    input_ids: Vec<TokenId>,
    /// The prompt's; those of the answer follow from the delta.
    positions: PositionIds,
    spans: Vec<PictureSpan>,
    /// Of the full pages, as many as anybody has asked for.
    page_hashes: Vec<PageHash>,
}

impl RowContents {
    /// The rows of a prompt, whose answer may make it `max_len` tokens long.
    ///
    /// # Errors
    /// Positions that are not `[3, N]`, or that leave int32 before `max_len`.
    pub(crate) fn new(
        input_ids: Vec<TokenId>,
        positions: PositionIds,
        spans: Vec<PictureSpan>,
        max_len: usize,
    ) -> Result<Self, MropeError> {
        let last = max_len.max(input_ids.len()).saturating_sub(1);
        positions.fill_batch(last..last + 1, &mut [0; 3], 0)?;
        Ok(Self { input_ids, positions, spans, page_hashes: Vec::new() })
    }

    /// Tokens known.
    pub(crate) fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// One more token of the answer.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.input_ids.push(token);
    }

    /// The known tokens of `rows`.
    pub(crate) fn input_ids(&self, rows: &Range<usize>) -> &[TokenId] {
        let end = rows.end.min(self.input_ids.len());
        self.input_ids.get(rows.start.min(end)..end).unwrap_or_default()
    }

    /// Where the pictures lie.
    pub(crate) fn spans(&self) -> &[PictureSpan] {
        &self.spans
    }

    /// The spans that have a row in `rows`, in order.
    pub(crate) fn spans_in(&self, rows: &Range<usize>) -> impl Iterator<Item = &PictureSpan> + use<'_> {
        let first = self.spans.partition_point(|span| span.rows.end <= rows.start);
        let end = rows.end;
        self.spans.iter().skip(first).take_while(move |span| span.rows.start < end)
    }

    /// Writes the positions of `rows`, known or yet to be chosen, into a `[3, N]` batch from `column` on.
    pub(crate) fn fill_positions(&self, rows: Range<usize>, batch: &mut [i32], column: usize) {
        let filled = self.positions.fill_batch(rows, batch, column);
        debug_assert!(filled.is_ok(), "the last row was checked on arrival: {filled:?}");
    }

    /// The hashes of the first `num_pages` full pages, or of as many as there are.
    pub(crate) fn page_hashes(&mut self, num_pages: usize, page: usize) -> &[PageHash] {
        let num_pages = num_pages.min(self.len() / page.max(1));
        while self.page_hashes.len() < num_pages {
            let first = self.page_hashes.len() * page;
            let hash = PageHash::new(self.page_hashes.last().copied(), self.contents(first..first + page));
            self.page_hashes.push(hash);
        }
        self.page_hashes.get(..num_pages).unwrap_or_default()
    }

    fn contents(&self, rows: Range<usize>) -> Vec<RowContent> {
        let n = rows.len();
        let mut positions = vec![0; 3 * n];
        self.fill_positions(rows.clone(), &mut positions, 0);
        let axis = |axis: usize| positions.iter().skip(axis * n).copied();
        let positions = axis(0).zip(axis(1)).zip(axis(2));
        let tokens = self.input_ids(&rows).iter();
        let mut contents: Vec<RowContent> = tokens
            .zip(positions)
            .map(|(&token, ((t, h), w))| RowContent { token, position: [t, h, w], picture: None })
            .collect();
        for span in self.spans_in(&rows) {
            let own = span.rows.start.max(rows.start)..span.rows.end.min(rows.end);
            let embeds = span.embeds_of(&own);
            for (content, embed) in contents.iter_mut().skip(own.start - rows.start).zip(embeds) {
                content.picture = Some((span.hash, embed));
            }
        }
        contents
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::picture_span::picture_spans;
    use crate::scheduler::testing::{picture, request, with_pictures};
    use foveal_types::PreparedRequest;

    fn rows(request: PreparedRequest) -> RowContents {
        let spans = picture_spans(&request, 2);
        let positions = PositionIds::from_parts(request.positions, request.rope_delta).unwrap();
        RowContents::new(request.input_ids, positions, spans, 100).unwrap()
    }

    /// Full pages of four rows that two prompts have in common.
    fn common(a: PreparedRequest, b: PreparedRequest) -> usize {
        let (mut a, mut b) = (rows(a), rows(b));
        a.page_hashes(100, 4).iter().zip(b.page_hashes(100, 4)).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn tokens_positions_and_pictures_all_count() {
        assert_eq!(common(request(&[1; 8]), request(&[1; 11])), 2, "full pages only");
        assert_eq!(common(request(&[1; 8]), request(&[1, 1, 1, 1, 1, 1, 1, 2])), 1);
        let mut shifted = request(&[1; 8]);
        shifted.positions[8 + 6] = 9;
        assert_eq!(common(request(&[1; 8]), shifted), 1);

        let one = |hash| with_pictures(20, &[(5, picture([1, 4, 4], hash))]);
        assert_eq!(common(one(1), one(1)), 5);
        assert_eq!(common(one(1), one(2)), 1, "another picture in the same place");
        let typed = request(&one(1).input_ids.iter().map(|id| id.0).collect::<Vec<_>>());
        assert_eq!(common(one(1), typed), 1, "placeholder tokens typed as text");
        let two = |hash| with_pictures(32, &[(4, picture([1, 4, 4], 1)), (13, picture([1, 4, 6], hash))]);
        assert_eq!(common(two(3), two(4)), 3, "the first picture stays");
    }

    #[test]
    fn a_row_that_is_learnt_later_counts_as_if_it_had_been_asked() {
        let mut written = rows(request(&[1; 6]));
        written.page_hashes(100, 4);
        written.push(TokenId(1));
        written.push(TokenId(1));
        assert_eq!(written.page_hashes(100, 4), rows(request(&[1; 8])).page_hashes(100, 4));
    }

    #[test]
    fn positions_beyond_the_prompt_follow_from_the_delta() {
        let mut request = request(&[1, 2]);
        request.rope_delta = -40;
        request.positions = vec![0, 1, 10, 11, 20, 21];
        let rows = rows(request);
        let mut batch = [-1; 6];
        rows.fill_positions(1..2, &mut batch, 0);
        rows.fill_positions(50..51, &mut batch, 1);
        assert_eq!(batch, [1, 10, 11, 10, 21, 10]);
    }

    #[test]
    fn an_answer_that_would_leave_int32_is_refused_at_once() {
        let positions = PositionIds::from_parts(vec![0; 3], i32::MAX - 2).unwrap();
        assert!(RowContents::new(vec![TokenId(1)], positions.clone(), Vec::new(), 2).is_ok());
        assert!(RowContents::new(vec![TokenId(1)], positions, Vec::new(), 9).is_err());
    }
}
