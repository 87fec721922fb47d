//! The CPU implementation.

use foveal_device::{DType, Shape, Stream};
use rayon::prelude::*;

use super::row::{self, Choice, History};
use super::{RowSampling, Sample};
use crate::OpError;
use crate::check::Op;
use crate::parallel::is_worth;

const OP: Op = Op("sample");

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

pub(super) fn sample(stream: &Stream, mut args: Sample<'_>) -> Result<(), OpError> {
    let num_top = check(&args)?;
    let [r, vocab_size] = OP.rank("logits", args.logits.shape())?;
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
    let mut rows = Vec::with_capacity(r);
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
    if rows.len() > 1 && is_worth(stream, r * vocab_size) {
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

/// Everything that `args` can have wrong; gives how many best tokens are wanted.
fn check(args: &Sample<'_>) -> Result<usize, OpError> {
    let [r, vocab_size] = OP.rank("logits", args.logits.shape())?;
    OP.dtype("logits", args.logits.dtype(), DType::F32, "f32")?;
    if i32::try_from(vocab_size).is_err() {
        return Err(OP.bad_shape("logits", args.logits.shape(), "a vocabulary whose ids are i32".to_owned()));
    }
    OP.shape("scratch", args.scratch.shape(), &[r, vocab_size])?;
    OP.dtype("scratch", args.scratch.dtype(), DType::F32, "f32")?;
    OP.shape("token_ids", args.token_ids.shape(), &[r])?;
    OP.dtype("token_ids", args.token_ids.dtype(), DType::I32, "i32")?;
    OP.shape("logprobs", args.logprobs.shape(), &[r])?;
    OP.dtype("logprobs", args.logprobs.dtype(), DType::F32, "f32")?;
    check_len("rows", args.rows.len(), r)?;
    check_history(args, r, vocab_size)?;
    let Some(top_ids) = &args.top_ids else {
        return match args.top_logprobs {
            None => Ok(0),
            Some(_) => Err(OpError::Mismatch { op: OP.0, arg: "top_ids", reason: "is missing beside `top_logprobs`" }),
        };
    };
    let Some(top_logprobs) = &args.top_logprobs else {
        return Err(OpError::Mismatch { op: OP.0, arg: "top_logprobs", reason: "is missing beside `top_ids`" });
    };
    let [_, k] = OP.rank("top_ids", top_ids.shape())?;
    OP.shape("top_ids", top_ids.shape(), &[r, k])?;
    OP.shape("top_logprobs", top_logprobs.shape(), &[r, k])?;
    OP.dtype("top_ids", top_ids.dtype(), DType::I32, "i32")?;
    OP.dtype("top_logprobs", top_logprobs.dtype(), DType::F32, "f32")?;
    Ok(k)
}

/// What penalties and bans read.
fn check_history(args: &Sample<'_>, r: usize, vocab_size: usize) -> Result<(), OpError> {
    if let Some(counts) = &args.output_counts {
        OP.shape("output_counts", counts.shape(), &[r, vocab_size])?;
        OP.dtype("output_counts", counts.dtype(), DType::I32, "i32")?;
    } else if args.rows.iter().any(RowSampling::reads_output) {
        return Err(OpError::Mismatch {
            op: OP.0,
            arg: "output_counts",
            reason: "is missing, but a row has penalties",
        });
    }
    if let Some(mask) = &args.prompt_mask {
        OP.shape("prompt_mask", mask.shape(), &[r, vocab_size])?;
        OP.dtype("prompt_mask", mask.dtype(), DType::U8, "u8")?;
    } else if args.rows.iter().any(RowSampling::reads_prompt) {
        let reason = "is missing, but a row has a repetition penalty";
        return Err(OpError::Mismatch { op: OP.0, arg: "prompt_mask", reason });
    }
    if !args.banned.is_empty() {
        check_len("banned", args.banned.len(), r)?;
    }
    for (index, &id) in args.banned.iter().flat_map(|ids| ids.iter()).enumerate() {
        if usize::try_from(id).map_or(true, |id| id >= vocab_size) {
            let expected = format!("below {vocab_size}");
            return Err(OpError::Value { op: OP.0, arg: "banned", index, value: i64::from(id), expected });
        }
    }
    Ok(())
}

/// A list must have one entry per row.
fn check_len(arg: &'static str, len: usize, r: usize) -> Result<(), OpError> {
    if len == r {
        return Ok(());
    }
    let got = Shape::new(&[len]).map_err(|source| OP.device(source))?;
    Err(OP.bad_shape(arg, &got, format!("[{r}], one per row")))
}
