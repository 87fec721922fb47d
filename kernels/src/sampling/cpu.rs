//! The CPU implementation.

use foveal_device::Stream;
use rayon::prelude::*;

use super::check::{OP, Sizes};
use super::row::{self, Choice, History};
use super::{RowSampling, Sample};
use crate::OpError;
use crate::parallel::is_worth;

/// One row's operands.
struct Row<'a> {
    logits: &'a [f32],
    sampling: RowSampling,
    history: History<'a>,
    scratch: &'a mut [f32],
    token_id: &'a mut i32,
    logprob: &'a mut f32,
    top_ids: &'a mut [i32],
    top_logprobs: &'a mut [f32],
}

pub(super) fn sample(stream: &Stream, mut args: Sample<'_>, sizes: Sizes) -> Result<(), OpError> {
    let Sizes { num_rows, vocab_size, num_top } = sizes;
    let logits = OP.slice::<f32>(&args.logits)?;
    let counts = args.output_counts.as_ref().map(|view| OP.slice::<i32>(view)).transpose()?;
    let prompt = args.prompt_mask.as_ref().map(|view| OP.slice::<u8>(view)).transpose()?;
    let scratch = OP.slice_mut::<f32>(&mut args.scratch)?;
    let token_ids = OP.slice_mut::<i32>(&mut args.token_ids)?;
    let logprobs = OP.slice_mut::<f32>(&mut args.logprobs)?;
    let mut top_ids = match &mut args.top_ids {
        Some(view) => OP.slice_mut::<i32>(view)?,
        None => &mut [],
    };
    let mut top_logprobs = match &mut args.top_logprobs {
        Some(view) => OP.slice_mut::<f32>(view)?,
        None => &mut [],
    };
    if vocab_size == 0 {
        token_ids.fill(-1);
        logprobs.fill(f32::NAN);
        top_ids.fill(-1);
        top_logprobs.fill(f32::NAN);
        return Ok(());
    }
    let mut rows = Vec::with_capacity(num_rows);
    let outputs = token_ids.iter_mut().zip(logprobs).zip(scratch.chunks_exact_mut(vocab_size));
    for (i, (((token_id, logprob), scratch), sampling)) in outputs.zip(args.rows).enumerate() {
        let span = i * vocab_size..(i + 1) * vocab_size;
        let history = History {
            output_counts: counts.and_then(|counts| counts.get(span.clone())).unwrap_or_default(),
            prompt_mask: prompt.and_then(|mask| mask.get(span.clone())).unwrap_or_default(),
            banned: args.banned.get(i).copied().unwrap_or_default(),
        };
        rows.push(Row {
            logits: logits.get(span).unwrap_or_default(),
            sampling: *sampling,
            history,
            scratch,
            token_id,
            logprob,
            top_ids: take_front(&mut top_ids, num_top),
            top_logprobs: take_front(&mut top_logprobs, num_top),
        });
    }
    if rows.len() > 1 && is_worth(stream, num_rows * vocab_size) {
        stream.install(|| rows.par_iter_mut().for_each(Row::run));
    } else {
        rows.iter_mut().for_each(Row::run);
    }
    Ok(())
}

/// The first `len` elements, taken away from the slice (all, if there are fewer).
fn take_front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, rest) = std::mem::take(slice).split_at_mut_checked(len).unwrap_or_default();
    *slice = rest;
    front
}

impl Row<'_> {
    fn run(&mut self) {
        let Choice { token_id, logprob } =
            row::sample(self.logits, &self.sampling, self.history, self.scratch, (self.top_ids, self.top_logprobs));
        *self.token_id = token_id;
        *self.logprob = logprob;
    }
}
