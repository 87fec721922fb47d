//! How fast a model answers many requests at once, without HTTP: a closed loop of synthetic requests.

mod report;
mod synthetic;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use foveal_types::{Delta, Error};

use crate::{Model, RuntimeError};
pub use foveal_load::Percentiles;
pub use report::ThroughputReport;
use synthetic::Workload;

/// A closed loop: as many requests at once as `concurrency` says, each followed by the next one.
#[derive(Clone, Debug)]
pub struct ThroughputOptions {
    /// Requests in all.
    pub num_prompts: usize,
    /// Requests at once.
    pub concurrency: usize,
    /// Text tokens of a prompt.
    pub input_len: usize,
    /// Tokens of an answer, exactly; stop tokens don't end it.
    pub output_len: usize,
    /// Pictures of a prompt, each with pixels of its own.
    pub num_images: usize,
    /// Width and height of a picture in pixels.
    pub image_size: [u32; 2],
    /// Where the random tokens and pixels begin.
    pub seed: u64,
}

/// When a request's tokens came, from its start on.
#[derive(Debug)]
struct Timeline {
    /// Until the prompt was ready to be sent.
    prepared: Duration,
    /// Of each token, from then on.
    tokens: Vec<Duration>,
    prompt_tokens: usize,
    image_tokens: usize,
}

/// Sends the requests and waits for all answers; `on_done` is called with how many have ended. One more goes before, which is
/// not measured.
///
/// # Errors
/// What the first request that failed says, and lengths that the model doesn't take.
pub fn throughput(
    model: &Model,
    options: &ThroughputOptions,
    on_done: impl Fn(usize) + Sync,
) -> Result<ThroughputReport, RuntimeError> {
    let workload = Workload::new(model, options)?;
    run(model, &workload, options.num_prompts)?;
    let before = model.engine().stats();
    let next = AtomicUsize::new(0);
    let ended = Mutex::new((Vec::with_capacity(options.num_prompts), None));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..options.concurrency.clamp(1, options.num_prompts.max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= options.num_prompts {
                        return;
                    }
                    let result = run(model, &workload, index);
                    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(timeline) => ended.0.push(timeline),
                        Err(error) => {
                            // Nobody starts another.
                            next.store(options.num_prompts, Ordering::Relaxed);
                            ended.1.get_or_insert(error);
                        }
                    }
                    on_done(ended.0.len());
                }
            });
        }
    });
    let elapsed = start.elapsed();
    let (timelines, error) = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        Some(error) => Err(error),
        None => Ok(ThroughputReport::new(options, elapsed, &timelines, [before, model.engine().stats()])),
    }
}

/// One request from its making to its last token.
fn run(model: &Model, workload: &Workload, index: usize) -> Result<Timeline, RuntimeError> {
    let start = Instant::now();
    let request = workload.request(model, index)?;
    let mut timeline = Timeline {
        prepared: start.elapsed(),
        tokens: Vec::with_capacity(workload.output_len()),
        prompt_tokens: request.input_ids.len(),
        image_tokens: request.image_token_ranges.iter().map(ExactSizeIterator::len).sum(),
    };
    let sent = Instant::now();
    for delta in model.engine().generate(request).blocking() {
        if let Delta::Token(_) = delta.map_err(|error: Error| RuntimeError::Request(error))? {
            timeline.tokens.push(sent.elapsed());
        }
    }
    Ok(timeline)
}
