//! What a closed loop came to; names as `vllm bench serve` has them.

use std::time::Duration;

use foveal_engine::EngineStats;
use foveal_load::Percentiles;
use serde::Serialize;

use super::{ThroughputOptions, Timeline};

/// What a closed loop came to.
#[derive(Clone, Debug, Serialize)]
pub struct ThroughputReport {
    /// Requests at once.
    pub concurrency: usize,
    /// Requests that were answered.
    pub completed: usize,
    /// Seconds from the first request's start to the last one's end.
    pub duration: f64,
    /// Prompt tokens, those of pictures included.
    pub total_input_tokens: usize,
    /// Of them, tokens of pictures.
    pub total_image_tokens: usize,
    /// Tokens of answers.
    pub total_output_tokens: usize,
    /// Requests a second.
    pub request_throughput: f64,
    /// Tokens of answers a second.
    pub output_throughput: f64,
    /// All tokens a second.
    pub total_token_throughput: f64,
    /// Milliseconds from a request's sending to its first token.
    pub ttft_ms: Percentiles,
    /// Milliseconds for each token behind the first, a request's mean.
    pub tpot_ms: Percentiles,
    /// Milliseconds between neighbouring tokens.
    pub itl_ms: Percentiles,
    /// Milliseconds from a request's sending to its last token.
    pub e2el_ms: Percentiles,
    /// Milliseconds that making a request took, pixels included, which is in none of the others.
    pub prepare_ms: Percentiles,
    /// Prompt tokens that were found in the KV cache, and pictures in theirs: none, unless requests come twice.
    pub cached_tokens: u64,
    /// As above.
    pub cached_pictures: u64,
    /// Times that a request made room for an older one.
    pub preemptions: u64,
    /// Steps of the engine.
    pub steps: u64,
    /// Milliseconds of a step on the GPU, by its own clock; 0 on the CPU.
    pub gpu_step_ms: f64,
    /// The share of the time between the first step and the last that the GPU waited for the next one.
    pub gpu_idle_share: f64,
    /// Milliseconds of the engine's thread for each step.
    pub host_step_ms: f64,
    /// The share of the computed rows that was padding.
    pub padding_share: f64,
    /// Parts of steps that ran launch by launch, where the GPU has graphs.
    pub eager_runs: u64,
}

impl ThroughputReport {
    pub(super) fn new(
        options: &ThroughputOptions,
        elapsed: Duration,
        timelines: &[Timeline],
        [before, after]: [EngineStats; 2],
    ) -> Self {
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let (new, old) = (after.executor, before.executor);
        let (busy_ms, idle_ms) = (new.gpu_busy_ms - old.gpu_busy_ms, new.gpu_idle_ms - old.gpu_idle_ms);
        let (rows, padded_rows) = (new.rows - old.rows, new.padded_rows - old.padded_rows);
        let steps = (after.steps - before.steps).max(1) as f64;
        let sum = |of: fn(&Timeline) -> usize| timelines.iter().map(of).sum::<usize>();
        let (input, output) = (sum(|t| t.prompt_tokens), sum(|t| t.tokens.len()));
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        let ends = || timelines.iter().filter_map(|t| Some((t.tokens.first()?, t.tokens.last()?, t.tokens.len() - 1)));
        let between = |t: &Timeline| -> Vec<f64> {
            t.tokens.iter().zip(t.tokens.iter().skip(1)).map(|(a, b)| ms(b) - ms(a)).collect()
        };
        Self {
            concurrency: options.concurrency,
            completed: timelines.len(),
            duration: seconds,
            total_input_tokens: input,
            total_image_tokens: sum(|t| t.image_tokens),
            total_output_tokens: output,
            request_throughput: timelines.len() as f64 / seconds,
            output_throughput: output as f64 / seconds,
            total_token_throughput: (input + output) as f64 / seconds,
            ttft_ms: Percentiles::of(ends().map(|(first, ..)| ms(first)).collect()),
            tpot_ms: Percentiles::of(
                ends().filter(|end| end.2 > 0).map(|(first, last, n)| (ms(last) - ms(first)) / n as f64).collect(),
            ),
            itl_ms: Percentiles::of(timelines.iter().flat_map(between).collect()),
            e2el_ms: Percentiles::of(ends().map(|(_, last, _)| ms(last)).collect()),
            prepare_ms: Percentiles::of(timelines.iter().map(|t| ms(&t.prepared)).collect()),
            cached_tokens: after.prefix_hit_tokens - before.prefix_hit_tokens,
            cached_pictures: after.encoder_hits - before.encoder_hits,
            preemptions: after.preemptions - before.preemptions,
            steps: after.steps - before.steps,
            gpu_step_ms: busy_ms / steps,
            gpu_idle_share: idle_ms / (busy_ms + idle_ms).max(f64::MIN_POSITIVE),
            host_step_ms: (after.host_ms - before.host_ms) / steps,
            padding_share: padded_rows.saturating_sub(rows) as f64 / padded_rows.max(1) as f64,
            eager_runs: new.eager_runs - old.eager_runs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart() {
        let options = ThroughputOptions {
            num_prompts: 2,
            concurrency: 2,
            input_len: 3,
            output_len: 3,
            num_images: 0,
            image_size: [0, 0],
            seed: 0,
        };
        let ms = Duration::from_millis;
        let timeline = |times: [u64; 3]| Timeline {
            prepared: ms(1),
            tokens: times.map(ms).to_vec(),
            prompt_tokens: 3,
            image_tokens: 1,
        };
        let timelines = [timeline([10, 20, 40]), timeline([20, 22, 24])];
        let report = ThroughputReport::new(&options, ms(2000), &timelines, [EngineStats::default(); 2]);
        assert_eq!((report.total_input_tokens, report.total_image_tokens, report.total_output_tokens), (6, 2, 6));
        assert!((report.output_throughput - 3.0).abs() < 1e-9 && (report.request_throughput - 1.0).abs() < 1e-9);
        assert!((report.ttft_ms.mean - 15.0).abs() < 1e-9 && (report.tpot_ms.mean - 8.5).abs() < 1e-9);
        assert!((report.itl_ms.p50 - 6.0).abs() < 1e-9 && (report.e2el_ms.p50 - 32.0).abs() < 1e-9);
    }
}
