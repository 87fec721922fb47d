//! What operands must be like, on every device: all of these are known to the host.

use foveal_device::{DType, Shape};

use super::{RowSampling, Sample};
use crate::OpError;
use crate::check::Op;

pub(super) const OP: Op = Op("sample");

/// The sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) num_rows: usize,
    pub(super) vocab_size: usize,
    /// How many best tokens are wanted.
    pub(super) num_top: usize,
}

/// Everything that `args` can have wrong.
pub(super) fn check(args: &Sample<'_>) -> Result<Sizes, OpError> {
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
    let num_top = check_top(args, r)?;
    Ok(Sizes { num_rows: r, vocab_size, num_top })
}

/// The best tokens' memory; gives how many are wanted.
fn check_top(args: &Sample<'_>, r: usize) -> Result<usize, OpError> {
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
