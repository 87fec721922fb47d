//! What the engine counts, and under which names it is exported.
//!
//! The names follow the `metrics` facade: a program that installs a recorder gets them, others pay next to nothing. Counters
//! only grow; gauges say how it is now. Several engines in one process add up in the counters and share the gauges.

/// Counts and sizes of an engine, as they were after the last step. See [`crate::Engine::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Sequences that run (gauge `foveal_running_sequences`).
    pub running: usize,
    /// Sequences that wait, those that made room for others included (gauge `foveal_waiting_sequences`).
    pub waiting: usize,
    /// Pages of the KV cache that belong to a sequence (gauge `foveal_kv_pages_used`).
    pub kv_pages_used: usize,
    /// Pages of the KV cache (gauge `foveal_kv_pages`).
    pub kv_pages_total: usize,
    /// Embeddings of pictures on the device, in use or kept for later (gauge `foveal_encoder_rows_used`).
    pub encoder_rows_used: usize,
    /// Embeddings that there is room for (gauge `foveal_encoder_rows`).
    pub encoder_rows_total: usize,
    /// Steps that computed something (counter `foveal_steps_total`).
    pub steps: u64,
    /// Times that a sequence made room for an older one (counter `foveal_preemptions_total`).
    pub preemptions: u64,
    /// Tokens that were found in the KV cache when a sequence started (counter `foveal_prefix_hit_tokens_total`).
    pub prefix_hit_tokens: u64,
    /// Times that a picture's embeddings were there already (counter `foveal_encoder_hits_total`).
    pub encoder_hits: u64,
    /// Milliseconds that the engine's thread spent on planning, sending steps off and telling callers; on the CPU, where a step is
    /// computed as it is sent off, that as well (counter `foveal_host_microseconds_total`).
    pub host_ms: f64,
    /// What steps came to on the device.
    pub executor: ExecutorStats,
}

/// Counts of what computes steps; of steps and graphs there are zeros on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ExecutorStats {
    /// Milliseconds that the GPU was inside of steps, by its own clock (counter `foveal_gpu_busy_microseconds_total`).
    pub gpu_busy_ms: f64,
    /// Milliseconds between a step and the next one while there was work (counter `foveal_gpu_idle_microseconds_total`).
    pub gpu_idle_ms: f64,
    /// Parts of steps that were replayed as graphs (counter `foveal_graph_replays_total`).
    pub replays: u64,
    /// Parts of steps that ran launch by launch (counter `foveal_eager_runs_total`).
    pub eager_runs: u64,
    /// Rows of steps (counter `foveal_step_rows_total`).
    pub rows: u64,
    /// Rows that were computed for them, padding included (counter `foveal_padded_step_rows_total`).
    pub padded_rows: u64,
    /// Page-locked memory; on the CPU ordinary memory for pixels (gauge `foveal_pinned_bytes`).
    pub pinned_bytes: u64,
    /// What of it has an owner (gauge `foveal_pinned_in_use_bytes`).
    pub pinned_bytes_in_use: u64,
    /// Copies from it (counter `foveal_copies_total`).
    pub copies: u64,
    /// Bytes of these (counter `foveal_copied_bytes_total`).
    pub bytes_copied: u64,
    /// Times that a copy was waited for, because no block was free (counter `foveal_copy_waits_total`).
    pub copy_waits: u64,
    /// Pictures whose rotary and position tables were kept from one of the same size (counter `foveal_rope_cache_hits_total`).
    pub geometry_hits: u64,
    /// Pictures whose tables were made (counter `foveal_rope_cache_misses_total`).
    pub geometry_misses: u64,
}

impl EngineStats {
    /// Hands what has changed since `last` to the program's metrics recorder, if it has one.
    pub(crate) fn export(&self, last: &Self) {
        let gauges = [
            ("foveal_running_sequences", self.running),
            ("foveal_waiting_sequences", self.waiting),
            ("foveal_kv_pages_used", self.kv_pages_used),
            ("foveal_kv_pages", self.kv_pages_total),
            ("foveal_encoder_rows_used", self.encoder_rows_used),
            ("foveal_encoder_rows", self.encoder_rows_total),
            ("foveal_pinned_bytes", self.executor.pinned_bytes as usize),
            ("foveal_pinned_in_use_bytes", self.executor.pinned_bytes_in_use as usize),
        ];
        for (name, value) in gauges {
            metrics::gauge!(name).set(value as f64);
        }
        let microseconds = |ms: f64| (ms * 1e3) as u64;
        let (executor, before) = (self.executor, last.executor);
        let counters = [
            ("foveal_host_microseconds_total", microseconds(self.host_ms), microseconds(last.host_ms)),
            (
                "foveal_gpu_busy_microseconds_total",
                microseconds(executor.gpu_busy_ms),
                microseconds(before.gpu_busy_ms),
            ),
            (
                "foveal_gpu_idle_microseconds_total",
                microseconds(executor.gpu_idle_ms),
                microseconds(before.gpu_idle_ms),
            ),
            ("foveal_graph_replays_total", executor.replays, before.replays),
            ("foveal_eager_runs_total", executor.eager_runs, before.eager_runs),
            ("foveal_step_rows_total", executor.rows, before.rows),
            ("foveal_padded_step_rows_total", executor.padded_rows, before.padded_rows),
            ("foveal_copies_total", executor.copies, before.copies),
            ("foveal_copied_bytes_total", executor.bytes_copied, before.bytes_copied),
            ("foveal_copy_waits_total", executor.copy_waits, before.copy_waits),
            ("foveal_rope_cache_hits_total", executor.geometry_hits, before.geometry_hits),
            ("foveal_rope_cache_misses_total", executor.geometry_misses, before.geometry_misses),
            ("foveal_steps_total", self.steps, last.steps),
            ("foveal_preemptions_total", self.preemptions, last.preemptions),
            ("foveal_prefix_hit_tokens_total", self.prefix_hit_tokens, last.prefix_hit_tokens),
            ("foveal_encoder_hits_total", self.encoder_hits, last.encoder_hits),
        ];
        for (name, value, last) in counters {
            metrics::counter!(name).increment(value.saturating_sub(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    /// Counters as they are, gauges as the bits of an f64.
    #[derive(Default)]
    struct Recorded(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    impl Recorded {
        fn value(&self, key: &Key) -> Arc<AtomicU64> {
            Arc::clone(self.0.lock().unwrap().entry(key.name().to_owned()).or_default())
        }
    }

    impl Recorder for Recorded {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.value(key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.value(key))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn counters_grow_by_what_is_new_and_gauges_are_as_they_are_now() {
        let first = EngineStats { running: 3, steps: 5, encoder_hits: 1, ..EngineStats::default() };
        let second = EngineStats { running: 2, steps: 9, ..first };
        let recorded = Recorded::default();
        metrics::with_local_recorder(&recorded, || {
            first.export(&EngineStats::default());
            second.export(&first);
        });
        let values = recorded.0.into_inner().unwrap();
        let value = |name: &str| values[name].load(Ordering::Relaxed);
        assert_eq!((value("foveal_steps_total"), value("foveal_encoder_hits_total")), (9, 1));
        assert_eq!(f64::from_bits(value("foveal_running_sequences")), 2.0);
        // Whoever reads the struct finds every name there.
        let docs = include_str!("stats.rs");
        assert!(values.keys().all(|name| docs.contains(&format!(" `{name}`)"))), "{:?}", values.keys());
    }
}
