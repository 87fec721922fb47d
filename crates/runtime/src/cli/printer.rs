//! One answer on stdout: as text while it comes, or as one JSON object when it is complete.

use std::io::Write;
use std::time::{Duration, Instant};

use foveal_runtime::{Answer, AnswerEvent};
use foveal_types::{TokenOutput, Usage};
use serde::Serialize;

use super::config::Output;
use super::error::CliError;
use super::progress::Progress;

/// What took how long before the answer began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    pub(crate) load: Duration,
    pub(crate) prepare: Duration,
}

/// The JSON of one answer.
#[derive(Debug, Serialize)]
struct JsonAnswer<'a> {
    text: &'a str,
    token_ids: Vec<u32>,
    prompt_tokens: usize,
    image_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Vec<(u32, f32)>>>,
    timings: Timings,
}

/// Seconds, and tokens per second.
#[derive(Debug, Serialize)]
struct Timings {
    /// Loading the model; 0 for later turns of a chat.
    load_s: f64,
    /// Template, tokens, pictures.
    prepare_s: f64,
    /// From the request to the first token: pictures encoded, prompt computed.
    ttft_s: f64,
    prefill_tokens_per_s: f64,
    /// From the first token to the last.
    decode_s: f64,
    decode_tokens_per_s: f64,
    total_s: f64,
}

/// Prints an answer and gives its text.
///
/// # Errors
/// What the answer ended with, or stdout. Nothing stands on stdout if the first token never came; as JSON, nothing
/// unless the answer is complete.
pub(crate) fn print_answer(answer: Answer, output: Output, before: Before) -> Result<String, CliError> {
    let start = Instant::now();
    let progress = Progress::of_tokens("Reading the prompt");
    let mut text = String::new();
    let mut tokens = Vec::new();
    let mut first = None;
    for event in answer {
        let (piece, end) = match event? {
            AnswerEvent::Prefill { done, total } => {
                progress.report(done, total);
                continue;
            }
            AnswerEvent::Token { token, text } => {
                tokens.push(token);
                first.get_or_insert_with(|| start.elapsed());
                (text, None)
            }
            AnswerEvent::Finished { text, reason, usage } => (text, Some((reason, usage))),
            _ => continue,
        };
        progress.clear();
        text.push_str(&piece);
        if output == Output::Text {
            write_piece(&piece, end.is_some())?;
        } else if let Some((reason, usage)) = end {
            let timings = timings(before, first.unwrap_or_default(), start.elapsed(), &usage);
            write_json(&text, &tokens, reason.as_str(), usage, timings)?;
        }
    }
    Ok(text)
}

fn write_piece(piece: &str, is_last: bool) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(piece.as_bytes())?;
    if is_last {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

fn write_json(
    text: &str,
    tokens: &[TokenOutput],
    finish_reason: &'static str,
    usage: Usage,
    timings: Timings,
) -> Result<(), CliError> {
    let top = |token: &TokenOutput| {
        let top = token.logprobs.as_ref()?.top.iter();
        Some(top.map(|(id, logprob)| (id.0, *logprob)).collect::<Vec<_>>())
    };
    let answer = JsonAnswer {
        text,
        token_ids: tokens.iter().map(|token| token.token_id.0).collect(),
        prompt_tokens: usage.prompt_tokens,
        image_tokens: usage.image_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        finish_reason,
        logprobs: tokens.iter().map(top).collect::<Option<_>>().filter(|_| !tokens.is_empty()),
        timings,
    };
    write_line(&answer)
}

/// One JSON value and a newline.
pub(crate) fn write_line(value: &impl Serialize) -> Result<(), CliError> {
    let mut line = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

/// A line of text.
pub(crate) fn write_text(line: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

fn timings(before: Before, ttft: Duration, total: Duration, usage: &Usage) -> Timings {
    let rate = |tokens: usize, time: Duration| {
        if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
    };
    let decode = total.saturating_sub(ttft);
    Timings {
        load_s: before.load.as_secs_f64(),
        prepare_s: before.prepare.as_secs_f64(),
        ttft_s: ttft.as_secs_f64(),
        prefill_tokens_per_s: rate(usage.prompt_tokens.saturating_sub(usage.cached_tokens), ttft),
        decode_s: decode.as_secs_f64(),
        // The first token is the prefill's.
        decode_tokens_per_s: rate(usage.completion_tokens.saturating_sub(1), decode),
        total_s: (before.load + before.prepare + total).as_secs_f64(),
    }
}
