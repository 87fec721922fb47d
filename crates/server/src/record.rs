//! What is kept of a request while it is answered, for its line in the log and for the metrics.

use std::time::{Duration, Instant};

use foveal_types::{FinishReason, Usage};

use crate::metrics::Metrics;
use crate::request_id::RequestId;

/// What is kept of a request while it is answered. It is logged and counted when it is dropped, whatever ended it.
pub(crate) struct Record {
    id: RequestId,
    path: &'static str,
    metrics: Metrics,
    arrived: Instant,
    prepared: Option<Duration>,
    /// When the engine began, its first token came, and its last one so far.
    begun: Option<Duration>,
    first_token: Option<Duration>,
    last_token: Option<Duration>,
    num_choices: usize,
    usage: Usage,
    outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Whoever asked has gone.
    Gone,
    Finished(FinishReason),
    Failed(u16),
}

impl Record {
    pub(crate) fn new(id: RequestId, path: &'static str, metrics: Metrics) -> Self {
        Self {
            id,
            path,
            metrics,
            arrived: Instant::now(),
            prepared: None,
            begun: None,
            first_token: None,
            last_token: None,
            num_choices: 1,
            usage: Usage::default(),
            outcome: Outcome::Gone,
        }
    }

    /// The prompt is tokens, the pictures are pixels.
    pub(crate) fn prepared(&mut self, num_choices: usize) {
        self.prepared = Some(self.arrived.elapsed());
        self.num_choices = num_choices;
    }

    /// The engine has begun with one of the answers.
    pub(crate) fn begun(&mut self, usage: Usage) {
        self.begun.get_or_insert_with(|| self.arrived.elapsed());
        self.counts(usage);
    }

    /// A token has come.
    pub(crate) fn token(&mut self) {
        let now = self.arrived.elapsed();
        // Until an answer's own count comes with its end.
        self.usage.completion_tokens += 1;
        self.metrics.token();
        match self.last_token.replace(now) {
            None => {
                self.first_token = Some(now);
                self.metrics.first_token(now);
            }
            // Tokens of several answers come together: what lies between those of one isn't known here.
            Some(last) if self.num_choices == 1 => self.metrics.next_token(now.saturating_sub(last)),
            Some(_) => {}
        }
    }

    /// One of the answers is complete.
    pub(crate) fn finished(&mut self, reason: FinishReason, usage: Usage) {
        self.outcome = Outcome::Finished(reason);
        self.counts(usage);
    }

    /// The counts so far.
    pub(crate) fn counts(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// The request ended with an error.
    pub(crate) fn failed(&mut self, status: u16) {
        self.outcome = Outcome::Failed(status);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.arrived.elapsed();
        let (reason, status) = match self.outcome {
            Outcome::Gone => ("abort", 499),
            Outcome::Finished(reason) => (reason.as_str(), 200),
            Outcome::Failed(status) => ("error", status),
        };
        let between = |end: Option<Duration>, start: Option<Duration>| Some(end?.saturating_sub(start?));
        let queued = between(self.begun, self.prepared);
        let Usage { prompt_tokens, image_tokens, cached_tokens, completion_tokens, .. } = self.usage;
        let ms = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e4).round() / 10.0);
        tracing::info!(
            id = %self.id.0,
            path = self.path,
            status,
            finish_reason = reason,
            prompt_tokens,
            image_tokens,
            cached_tokens,
            completion_tokens,
            prepare_ms = ms(self.prepared),
            queue_ms = ms(queued),
            ttft_ms = ms(self.first_token),
            total_ms = ms(Some(total)),
            "request"
        );
        self.metrics.ended(&crate::metrics::Ended {
            reason,
            usage: self.usage,
            prepare: self.prepared,
            queued,
            prefill: between(self.first_token, self.begun),
            decode: between(self.last_token, self.first_token),
            total,
        });
    }
}
