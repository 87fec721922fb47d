//! The requests of a run, made before its clock starts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::body::Ask;
use crate::client::Api;
use crate::error::LoadError;
use crate::options::{LoadOptions, options};
use crate::picture::data_url;
use crate::prompt::PromptText;
use crate::random::Random;

/// Enough for a server to have met every step of a request.
const WARMUP_OUTPUT_LEN: usize = 32;

/// The bodies of all requests.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) warmups: Vec<Vec<u8>>,
    pub(crate) measured: Vec<Vec<u8>>,
}

/// Bodies with their numbers, as they get ready, or what went wrong first.
type Made = Result<Vec<(usize, Vec<u8>)>, LoadError>;

impl Workload {
    /// Makes them on all cores; `on_made` is told how many there are.
    pub(crate) fn new(
        ask: Ask<'_>,
        text: &PromptText,
        run: &LoadOptions,
        on_made: impl Fn(usize) + Sync,
    ) -> Result<Self, LoadError> {
        if ask.api == Api::Completions && run.shape.num_images > 0 {
            return Err(options("num_images", "completions take no pictures; use chat completions".to_owned()));
        }
        let num_all = run.num_warmups + run.num_prompts;
        let next = AtomicUsize::new(0);
        let num_made = AtomicUsize::new(0);
        let is_over = AtomicBool::new(false);
        let made: Mutex<Made> = Mutex::new(Ok(Vec::with_capacity(num_all)));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= num_all || is_over.load(Ordering::Relaxed) {
                    return;
                }
                let body = body(ask, text, run, index);
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                match (body, &mut *made) {
                    (Ok(body), Ok(bodies)) => bodies.push((index, body)),
                    (Err(error), Ok(_)) => {
                        *made = Err(error);
                        is_over.store(true, Ordering::Relaxed);
                    }
                    (_, Err(_)) => return,
                }
                drop(made);
                on_made(num_made.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(num_all);
        std::thread::scope(|scope| {
            for _ in 1..num_threads {
                scope.spawn(work);
            }
            work();
        });
        let mut bodies = made.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        bodies.sort_unstable_by_key(|(index, _)| *index);
        let mut bodies = bodies.into_iter().map(|(_, body)| body);
        Ok(Self { warmups: bodies.by_ref().take(run.num_warmups).collect(), measured: bodies.collect() })
    }
}

/// Request number `index`, warm-ups first.
fn body(ask: Ask<'_>, text: &PromptText, run: &LoadOptions, index: usize) -> Result<Vec<u8>, LoadError> {
    let mut random = Random::new(run.seed, index as u64);
    let shape = &run.shape;
    let urls: Result<Vec<_>, _> =
        (0..shape.num_images).map(|_| data_url(shape.image_size, shape.image_format, &mut random)).collect();
    let text = text.text(shape.input_len, &mut random)?;
    let is_warmup = index < run.num_warmups;
    let output_len = if is_warmup { shape.output_len.min(WARMUP_OUTPUT_LEN) } else { shape.output_len };
    Ok(Ask { output_len, ..ask }.body(&urls?, &text))
}
