//! Checks of a batch before anything runs, so that a value that points nowhere fails by name and, where it belongs to
//! one sequence, by that sequence.

use std::ops::Range;

use super::{Batch, ImageRows};
use crate::{BatchLimits, DecoderSettings, KvCache, LlmError};

/// What a batch must stay within.
#[derive(Clone, Copy)]
pub(crate) struct BatchBounds<'a> {
    pub(crate) settings: &'a DecoderSettings,
    pub(crate) max_positions: usize,
    pub(crate) cache: &'a KvCache,
    pub(crate) limits: BatchLimits,
    /// Tokens that ids below 0 may stand for.
    pub(crate) num_sampled: usize,
}

/// `got` elements where `expected` are needed.
fn len(field: &'static str, got: usize, expected: usize) -> Result<(), LlmError> {
    if got == expected { Ok(()) } else { Err(LlmError::BatchShape { field, got, expected: expected.to_string() }) }
}

fn at_most(what: &'static str, got: usize, max: usize) -> Result<(), LlmError> {
    if got <= max { Ok(()) } else { Err(LlmError::TooMany { what, got, max }) }
}

/// The rows of a sequence whose values are looked at.
struct Rows {
    sequence: usize,
    rows: Range<usize>,
}

impl Rows {
    /// Every value of the rows must be in `range`. `offset` is where the first row of the batch lies in `values`.
    fn within<T: Copy + Into<i64>>(
        &self,
        field: &'static str,
        values: &[T],
        offset: usize,
        range: Range<i64>,
    ) -> Result<(), LlmError> {
        let own = values.get(offset + self.rows.start..offset + self.rows.end).unwrap_or_default();
        let Some(i) = own.iter().position(|&value| !range.contains(&value.into())) else { return Ok(()) };
        Err(LlmError::Row {
            field,
            sequence: self.sequence,
            row: self.rows.start + i,
            value: own.get(i).map_or(0, |&value| value.into()),
            expected: format!("{} to {}", range.start, range.end - 1),
        })
    }
}

impl Batch<'_> {
    /// Checks everything that the operators rely on.
    pub(crate) fn check(&self, bounds: BatchBounds<'_>) -> Result<(), LlmError> {
        self.check_lengths(bounds)?;
        bounds.cache.check(bounds.settings)?;
        if let Some(image) = &self.image {
            image.check(self.num_tokens(), bounds.settings)?;
        }
        let mut end = 0;
        let starts = self.cu_seqlens.iter();
        for (sequence, (&start, &next)) in starts.clone().zip(starts.skip(1)).enumerate() {
            let rows = usize::try_from(start).ok().zip(usize::try_from(next).ok()).map(|(start, next)| start..next);
            let Some(rows) = rows.filter(|rows| rows.start == end && !rows.is_empty() && rows.end <= self.num_tokens())
            else {
                let expected = format!("more than {end} and at most the batch's {} rows", self.num_tokens());
                return Err(LlmError::Sequence { field: "cu_seqlens", sequence, value: next.into(), expected });
            };
            end = rows.end;
            self.check_sequence(bounds, &Rows { sequence, rows })?;
        }
        len("input_ids", self.num_tokens(), end)?;
        let n = self.num_tokens();
        let bad_row = |row: &i32| usize::try_from(*row).map_or(true, |row| row >= n);
        if let Some(index) = self.logit_rows.iter().position(bad_row) {
            let value = self.logit_rows.get(index).copied().unwrap_or_default();
            return Err(LlmError::LogitRow { index, value, num_rows: n });
        }
        Ok(())
    }

    fn check_lengths(&self, BatchBounds { limits, .. }: BatchBounds<'_>) -> Result<(), LlmError> {
        let (n, s) = (self.num_tokens(), self.num_seqs());
        at_most("rows", n, limits.max_tokens)?;
        at_most("sequences", s, limits.max_seqs)?;
        at_most("rows that want logits", self.logit_rows.len(), limits.max_logit_rows)?;
        len("positions", self.positions.len(), 3 * n)?;
        len("slot_mapping", self.slot_mapping.len(), n)?;
        len("cu_seqlens", self.cu_seqlens.len(), s + 1)?;
        len("block_tables", self.block_tables.len(), s.saturating_mul(self.max_blocks))
    }

    fn check_sequence(&self, bounds: BatchBounds<'_>, rows: &Rows) -> Result<(), LlmError> {
        let n = self.num_tokens();
        let max_positions = bounds.max_positions as i64;
        let ids = -(bounds.num_sampled as i64)..bounds.settings.vocab_size as i64;
        rows.within("input_ids", self.input_ids, 0, ids)?;
        for (axis, field) in ["positions (t)", "positions (h)", "positions (w)"].into_iter().enumerate() {
            rows.within(field, self.positions, axis * n, 0..max_positions)?;
        }
        rows.within("slot_mapping", self.slot_mapping, 0, -1..bounds.cache.capacity_tokens() as i64)?;
        if let Some(image) = &self.image {
            let num_embeds = image.embeds.shape().first().copied().unwrap_or_default() as i64;
            rows.within("image.index", image.index, 0, -1..num_embeds)?;
        }
        self.check_context(bounds, rows)
    }

    /// A sequence's context holds its rows, fits its pages, and its pages exist.
    fn check_context(&self, bounds: BatchBounds<'_>, &Rows { sequence, ref rows }: &Rows) -> Result<(), LlmError> {
        let page = bounds.cache.layout().page;
        let context = self.context_lens.get(sequence).copied().unwrap_or_default();
        let range = rows.len()..=self.max_blocks.saturating_mul(page);
        let Some(context) = usize::try_from(context).ok().filter(|context| range.contains(context)) else {
            let expected = format!("{} (its rows) to {} (its pages)", range.start(), range.end());
            return Err(LlmError::Sequence { field: "context_lens", sequence, value: context.into(), expected });
        };
        let first = sequence * self.max_blocks;
        let blocks = self.block_tables.get(first..first + context.div_ceil(page)).unwrap_or_default();
        let num_blocks = bounds.cache.num_blocks();
        match blocks.iter().find(|&&block| usize::try_from(block).map_or(true, |block| block >= num_blocks)) {
            None => Ok(()),
            Some(&block) => Err(LlmError::Sequence {
                field: "block_tables",
                sequence,
                value: block.into(),
                expected: format!("0 to {}", num_blocks - 1),
            }),
        }
    }
}

impl ImageRows<'_> {
    fn check(&self, num_tokens: usize, settings: &DecoderSettings) -> Result<(), LlmError> {
        len("image.index", self.index.len(), num_tokens)?;
        let num_embeds = self.embeds.shape().first().copied().unwrap_or_default();
        let expected = [num_embeds, settings.hidden_size];
        let fits = |view: &foveal_device::View<'_>| **view.shape() == expected;
        if let Some(bad) = std::iter::once(&self.embeds).chain(self.deepstack).find(|view| !fits(view)) {
            let got = bad.shape().num_elements();
            let expected =
                format!("{} in each of embeds and deepstack, shaped {expected:?}", expected[0] * expected[1]);
            return Err(LlmError::BatchShape { field: "image", got, expected });
        }
        at_most("deepstack levels", self.deepstack.len(), settings.num_hidden_layers)
    }
}
