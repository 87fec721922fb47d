//! What a run came to.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::answer::Answer;
use crate::client::Api;
use crate::date;
use crate::layout;
use crate::options::{LoadOptions, RequestShape};
use crate::result_json;
use crate::schedule::{Outcome, Outcomes};
use crate::statistics::Percentiles;

/// What a run came to. Its text ([`fmt::Display`]) is laid out as `vllm bench serve` prints it.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadReport {
    /// When the run ended, UTC: `20260131-235959`.
    pub date: String,
    /// Which API.
    pub api: Api,
    /// The model's name at the server.
    pub model: String,
    /// What was asked for.
    pub options: LoadOptions,
    /// Seconds from the first request's time to the last answer's end.
    pub duration: f64,
    /// Requests that were answered completely; every figure below is theirs.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// What the first of them failed for.
    pub first_error: Option<String>,
    /// Prompt tokens as the server counts them, those of pictures and the template included.
    pub total_input_tokens: usize,
    /// Tokens of answers as the server counts them.
    pub total_output_tokens: usize,
    /// Requests a second.
    pub request_throughput: f64,
    /// Tokens of answers a second.
    pub output_throughput: f64,
    /// All tokens a second.
    pub total_token_throughput: f64,
    /// Chunks of tokens in the fullest second.
    pub max_output_tokens_per_s: f64,
    /// The most requests that were under way at the same time.
    pub max_concurrent_requests: usize,
    /// Milliseconds from a request's sending to its first token.
    pub ttft_ms: Percentiles,
    /// Milliseconds for each token behind the first, a request's mean.
    pub tpot_ms: Percentiles,
    /// Milliseconds between neighbouring chunks of tokens; most servers send a token a chunk.
    pub itl_ms: Percentiles,
    /// Milliseconds from a request's sending to its answer's end.
    pub e2el_ms: Percentiles,
    /// Answers whose length the server didn't tell: their chunks count as their tokens, and their prompts by their text alone.
    pub num_without_usage: usize,
    /// Answers of another length than was asked for.
    pub num_of_other_length: usize,
    pub(crate) outcomes: Vec<Outcome>,
}

impl LoadReport {
    pub(crate) fn new(api: Api, model: &str, options: &LoadOptions, outcomes: Outcomes) -> Self {
        let Outcomes { duration, all: outcomes } = outcomes;
        let seconds = duration.as_secs_f64().max(f64::MIN_POSITIVE);
        let answers: Vec<(Duration, &Answer)> = answers(&outcomes).collect();
        let shape = &options.shape;
        let input = answers.iter().map(|(_, answer)| prompt_tokens(shape, answer)).sum::<usize>();
        let output = answers.iter().map(|(_, answer)| answer.output_tokens()).sum::<usize>();
        let times = |of: fn(&Answer) -> f64| Percentiles::of(answers.iter().map(|(_, answer)| of(answer)).collect());
        let itls = answers.iter().flat_map(|(_, answer)| &answer.itl);
        let count = |is: &dyn Fn(&Answer) -> bool| answers.iter().filter(|(_, answer)| is(answer)).count();
        Self {
            date: date::now(),
            api,
            model: model.to_owned(),
            options: options.clone(),
            duration: seconds,
            completed: answers.len(),
            failed: outcomes.len() - answers.len(),
            first_error: outcomes.iter().find_map(|outcome| outcome.result.as_ref().err().cloned()),
            total_input_tokens: input,
            total_output_tokens: output,
            request_throughput: answers.len() as f64 / seconds,
            output_throughput: output as f64 / seconds,
            total_token_throughput: (input + output) as f64 / seconds,
            max_output_tokens_per_s: fullest_second(&answers),
            max_concurrent_requests: most_at_once(&answers),
            ttft_ms: times(|answer| ms(answer.ttft)),
            tpot_ms: Percentiles::of(answers.iter().filter_map(|(_, answer)| tpot_ms(answer)).collect()),
            itl_ms: Percentiles::of(itls.map(|gap| ms(*gap)).collect()),
            e2el_ms: times(|answer| ms(answer.latency)),
            num_without_usage: count(&|answer| answer.usage.is_none()),
            num_of_other_length: count(&|answer| answer.output_tokens() != shape.output_len),
            outcomes,
        }
    }

    /// The object that `vllm bench serve --save-result` writes, in its keys; with what every request came to if `is_detailed`,
    /// as `--save-detailed` does.
    #[must_use]
    pub fn to_json(&self, is_detailed: bool) -> Value {
        result_json::result(self, is_detailed)
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        layout::write(self, f)
    }
}

/// The answers that came, each with the time that its request was sent.
fn answers(outcomes: &[Outcome]) -> impl Iterator<Item = (Duration, &Answer)> {
    outcomes.iter().filter_map(|outcome| Some((outcome.start, outcome.result.as_ref().ok()?)))
}

pub(crate) fn prompt_tokens(shape: &RequestShape, answer: &Answer) -> usize {
    answer.usage.map_or(shape.input_len, |(prompt, _)| prompt)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// None for an answer of one token.
fn tpot_ms(answer: &Answer) -> Option<f64> {
    let num_behind_the_first = answer.output_tokens().checked_sub(1).filter(|num| *num > 0)?;
    Some(ms(answer.latency.saturating_sub(answer.ttft)) / num_behind_the_first as f64)
}

/// Seconds are counted from the sending of the first request.
fn fullest_second(answers: &[(Duration, &Answer)]) -> f64 {
    let begin = answers.iter().map(|(start, _)| *start).min().unwrap_or_default();
    let mut counts: Vec<u32> = Vec::new();
    for (start, answer) in answers {
        let mut at = start.saturating_sub(begin) + answer.ttft;
        let gaps = answer.itl.iter().copied().chain([Duration::ZERO]);
        for gap in gaps {
            let second = at.as_secs() as usize;
            if counts.len() <= second {
                counts.resize(second + 1, 0);
            }
            if let Some(count) = counts.get_mut(second) {
                *count += 1;
            }
            at += gap;
        }
    }
    counts.into_iter().max().unwrap_or_default().into()
}

/// A request that begins when another ends doesn't run beside it.
fn most_at_once(answers: &[(Duration, &Answer)]) -> usize {
    let mut changes: Vec<(Duration, i8)> =
        answers.iter().flat_map(|(start, answer)| [(*start, 1), (*start + answer.latency, -1)]).collect();
    changes.sort_unstable();
    let (mut now, mut most) = (0_isize, 0);
    for (_, change) in changes {
        now += isize::from(change);
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::options::ImageFormat;

    pub(crate) fn options(num_prompts: usize) -> LoadOptions {
        LoadOptions {
            shape: RequestShape {
                input_len: 5,
                output_len: 3,
                num_images: 1,
                image_size: [8, 4],
                image_format: ImageFormat::Png,
            },
            num_prompts,
            num_warmups: 0,
            max_concurrency: Some(2),
            request_rate: f64::INFINITY,
            burstiness: 1.0,
            seed: 4,
        }
    }

    /// A request that was sent at `start` ms and had chunks at these ms behind it.
    pub(crate) fn outcome(start: u64, chunks: [u64; 3], usage: Option<(usize, usize)>) -> Outcome {
        let ms = Duration::from_millis;
        let [first, second, third] = chunks;
        let itl = vec![ms(second - first), ms(third - second)];
        let answer = Answer { ttft: ms(first), itl, latency: ms(third), usage };
        Outcome { start: ms(start), result: Ok(answer) }
    }

    pub(crate) fn report() -> LoadReport {
        let all = vec![
            outcome(0, [10, 20, 40], Some((7, 3))),
            outcome(5, [20, 22, 24], Some((9, 3))),
            Outcome { start: Duration::from_millis(30), result: Err("no room".to_owned()) },
            outcome(40, [1000, 1100, 1300], None),
        ];
        let duration = Duration::from_secs(2);
        let mut report = LoadReport::new(Api::Chat, "m", &options(4), Outcomes { duration, all });
        report.date = "20260131-235959".to_owned();
        report
    }

    #[test]
    fn a_run_is_summed_up() {
        let report = report();
        assert_eq!((report.completed, report.failed, report.first_error.as_deref()), (3, 1, Some("no room")));
        // The third prompt is known by its text alone.
        assert_eq!((report.total_input_tokens, report.total_output_tokens), (7 + 9 + 5, 9));
        assert_eq!((report.num_without_usage, report.num_of_other_length), (1, 0));
        let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
        near(report.request_throughput, 1.5);
        near(report.output_throughput, 4.5);
        near(report.total_token_throughput, 15.0);
        near(report.ttft_ms.mean, 1030.0 / 3.0);
        near(report.ttft_ms.p50, 20.0);
        // (40 - 10) / 2, (24 - 20) / 2, (1300 - 1000) / 2
        near(report.tpot_ms.mean, (15.0 + 2.0 + 150.0) / 3.0);
        near(report.itl_ms.mean, (10.0 + 20.0 + 2.0 + 2.0 + 100.0 + 200.0) / 6.0);
        near(report.itl_ms.p50, 15.0);
        near(report.e2el_ms.p50, 40.0);
        // Six tokens in the first second, three in the second; the third request begins when the first ends.
        near(report.max_output_tokens_per_s, 6.0);
        assert_eq!(report.max_concurrent_requests, 2);
    }

    #[test]
    fn lengths_that_were_not_asked_for_are_counted() {
        let all = vec![outcome(0, [1, 2, 3], Some((7, 2))), outcome(0, [1, 2, 3], Some((7, 1)))];
        let report = LoadReport::new(Api::Chat, "m", &options(2), Outcomes { duration: Duration::from_secs(1), all });
        assert_eq!(report.num_of_other_length, 2);
        // An answer of one token has no time between tokens.
        assert!((report.tpot_ms.mean - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_without_answers_has_zeros() {
        let all = vec![Outcome { start: Duration::ZERO, result: Err("gone".to_owned()) }];
        let report = LoadReport::new(Api::Chat, "m", &options(1), Outcomes { duration: Duration::from_secs(1), all });
        assert_eq!((report.completed, report.failed), (0, 1));
        assert_eq!((report.ttft_ms, report.max_concurrent_requests), (Percentiles::default(), 0));
    }
}
