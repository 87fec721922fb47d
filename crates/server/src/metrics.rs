//! `/metrics`: vLLM's names, so that dashboards and routers that know them work, and the engine's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use foveal_engine::EngineStats;
use foveal_types::Usage;
use metrics::Histogram;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Counts and times of requests, and what renders them. Cheap to clone.
///
/// The recorder belongs to the process: servers in one process add up.
#[derive(Clone)]
pub(crate) struct Metrics {
    handle: Option<PrometheusHandle>,
    /// The engine's counters as they were when they were last exported.
    last: Arc<Mutex<EngineStats>>,
    model: Arc<OnceLock<String>>,
    num_tokens: Arc<AtomicU64>,
    /// Of those, how many have been exported.
    num_exported_tokens: Arc<AtomicU64>,
    /// The histograms of every token, looked up once.
    between_tokens: Arc<OnceLock<[Histogram; 2]>>,
}

/// What is known of a request that has ended.
pub(crate) struct Ended {
    pub(crate) reason: &'static str,
    pub(crate) usage: Usage,
    pub(crate) prepare: Option<Duration>,
    pub(crate) queued: Option<Duration>,
    pub(crate) prefill: Option<Duration>,
    pub(crate) decode: Option<Duration>,
    pub(crate) total: Duration,
}

/// Seconds, from a step to a long answer (vLLM's buckets for requests, and finer ones below).
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0,
];
/// Tokens of a prompt or an answer.
const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5];

const TTFT: &str = "vllm:time_to_first_token_seconds";
const ITL: &str = "vllm:inter_token_latency_seconds";
/// The same under its older name, which dashboards still ask for.
const OLD_ITL: &str = "vllm:time_per_output_token_seconds";
const TPOT: &str = "vllm:request_time_per_output_token_seconds";
const E2E: &str = "vllm:e2e_request_latency_seconds";
const QUEUE: &str = "vllm:request_queue_time_seconds";
const PREFILL: &str = "vllm:request_prefill_time_seconds";
const DECODE: &str = "vllm:request_decode_time_seconds";
const PREPARE: &str = "foveal_request_prepare_seconds";
const STEP: &str = "foveal_step_seconds";
const PROMPT: &str = "vllm:request_prompt_tokens";
const GENERATION: &str = "vllm:request_generation_tokens";

impl Metrics {
    /// Takes the process's recorder, or goes without if another one is installed.
    pub(crate) fn install() -> Self {
        static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| match builder().and_then(PrometheusBuilder::install_recorder) {
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::warn!(%error, "there are no metrics: another recorder is installed");
                None
            }
        });
        Self {
            handle: handle.clone(),
            last: Arc::default(),
            model: Arc::default(),
            num_tokens: Arc::default(),
            num_exported_tokens: Arc::default(),
            between_tokens: Arc::default(),
        }
    }

    /// The label that vLLM's names carry.
    pub(crate) fn set_model(&self, name: &str) {
        let _ = self.model.set(name.to_owned());
    }

    fn labels(&self) -> [(&'static str, String); 2] {
        [("model_name", self.model.get().cloned().unwrap_or_default()), ("engine", "0".to_owned())]
    }

    fn time(&self, name: &'static str, time: Duration) {
        metrics::histogram!(name, &self.labels()).record(time.as_secs_f64());
    }

    fn count(&self, name: &'static str, by: u64) {
        metrics::counter!(name, &self.labels()).increment(by);
    }

    fn gauge(&self, name: &'static str, value: f64) {
        metrics::gauge!(name, &self.labels()).set(value);
    }

    /// A token of any answer came.
    pub(crate) fn token(&self) {
        self.num_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Tokens of all answers so far.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.num_tokens.load(Ordering::Relaxed)
    }

    /// A request's first token came this long after the request.
    pub(crate) fn first_token(&self, after: Duration) {
        self.time(TTFT, after);
    }

    /// A request's next token came this long after the one before.
    pub(crate) fn next_token(&self, after: Duration) {
        let histograms = || [ITL, OLD_ITL].map(|name| metrics::histogram!(name, &self.labels()));
        let both = self.between_tokens.get_or_init(histograms);
        both.iter().for_each(|histogram| histogram.record(after.as_secs_f64()));
    }

    /// A request has ended, one way or another.
    pub(crate) fn ended(&self, ended: &Ended) {
        let Ended { reason, usage, prepare, queued, prefill, decode, total } = *ended;
        let times = [(PREPARE, prepare), (QUEUE, queued), (PREFILL, prefill), (DECODE, decode)];
        times.into_iter().filter_map(|(name, time)| Some((name, time?))).for_each(|(name, time)| self.time(name, time));
        let [model, engine] = self.labels();
        let labels = [model, engine, ("finished_reason", reason.to_owned())];
        metrics::counter!("vllm:request_success_total", &labels).increment(1);
        if usage.prompt_tokens == 0 {
            return;
        }
        self.time(E2E, total);
        let tokens = |n: usize| n as f64;
        metrics::histogram!(PROMPT, &self.labels()).record(tokens(usage.prompt_tokens));
        metrics::histogram!(GENERATION, &self.labels()).record(tokens(usage.completion_tokens));
        if let (Some(decode), 2..) = (decode, usage.completion_tokens) {
            self.time(TPOT, decode.div_f64(tokens(usage.completion_tokens - 1)));
        }
        self.count("vllm:prompt_tokens_total", usage.prompt_tokens as u64);
        self.count("vllm:prefix_cache_queries_total", usage.prompt_tokens as u64);
        self.count("vllm:prefix_cache_hits_total", usage.cached_tokens as u64);
        self.count("foveal_image_tokens_total", usage.image_tokens as u64);
    }

    /// Everything as Prometheus reads it, the engine's figures as they are now.
    pub(crate) fn render(&self, stats: Option<&EngineStats>, preparing: usize, requests: usize) -> Option<String> {
        if let Some(stats) = stats {
            self.export(stats);
        }
        let num_tokens = self.num_tokens();
        let num_exported = self.num_exported_tokens.swap(num_tokens, Ordering::Relaxed);
        self.count("vllm:generation_tokens_total", num_tokens.saturating_sub(num_exported));
        metrics::gauge!("foveal_requests").set(requests as f64);
        metrics::gauge!("foveal_preparing_requests").set(preparing as f64);
        self.handle.as_ref().map(PrometheusHandle::render)
    }

    /// vLLM's names for what the engine counts. Its own names it exports itself.
    fn export(&self, stats: &EngineStats) {
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), *stats);
        let usage = stats.kv_pages_used as f64 / stats.kv_pages_total.max(1) as f64;
        for (name, value) in [
            ("vllm:num_requests_running", stats.running as f64),
            ("vllm:num_requests_waiting", stats.waiting as f64),
            ("vllm:num_requests_swapped", 0.0),
            ("vllm:kv_cache_usage_perc", usage),
            ("vllm:gpu_cache_usage_perc", usage),
        ] {
            self.gauge(name, value);
        }
        self.count("vllm:num_preemptions_total", stats.preemptions.saturating_sub(last.preemptions));
        self.count("vllm:mm_cache_hits_total", stats.encoder_hits.saturating_sub(last.encoder_hits));
    }

    /// Folds what has gathered, so that memory stays bounded between scrapes.
    pub(crate) fn upkeep(&self) {
        if let Some(handle) = &self.handle {
            handle.run_upkeep();
        }
    }
}

fn builder() -> Result<PrometheusBuilder, metrics_exporter_prometheus::BuildError> {
    let seconds = [TTFT, ITL, OLD_ITL, TPOT, E2E, QUEUE, PREFILL, DECODE, PREPARE, STEP].map(|name| (name, SECONDS));
    let tokens = [PROMPT, GENERATION].map(|name| (name, TOKENS));
    seconds.into_iter().chain(tokens).try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
    })
}
