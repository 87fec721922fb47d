//! A line of the engine's figures every few seconds, while there is something to tell.

use std::time::Instant;

use foveal_engine::EngineStats;

use crate::state::AppState;

/// Logs figures and keeps the metrics small, for ever.
pub(crate) async fn log_figures(state: AppState) {
    let mut ticks = tokio::time::interval(state.config.figures_every);
    let mut last = (Instant::now(), EngineStats::default());
    let mut last_tokens = 0;
    loop {
        ticks.tick().await;
        state.metrics.upkeep();
        let Some(model) = state.model() else { continue };
        let (now, stats) = (Instant::now(), model.engine.stats());
        let seconds = now.duration_since(last.0).as_secs_f64();
        let is_quiet = stats.steps == last.1.steps && stats.running + stats.waiting == 0;
        let before = std::mem::replace(&mut last, (now, stats)).1;
        if is_quiet || seconds <= 0.0 {
            continue;
        }
        let num_tokens = state.metrics.num_tokens();
        let new_tokens = num_tokens - std::mem::replace(&mut last_tokens, num_tokens);
        tracing::info!(
            running = stats.running,
            waiting = stats.waiting,
            preparing = state.pictures.num_waiting() + state.text.num_waiting(),
            kv_cache = format_args!("{:.1}%", share(stats.kv_pages_used, stats.kv_pages_total)),
            encoder_cache = format_args!("{:.1}%", share(stats.encoder_rows_used, stats.encoder_rows_total)),
            steps_per_s = format_args!("{:.1}", stats.steps.saturating_sub(before.steps) as f64 / seconds),
            tokens_per_s = format_args!("{:.1}", new_tokens as f64 / seconds),
            prefix_hit_tokens = stats.prefix_hit_tokens,
            encoder_hits = stats.encoder_hits,
            preemptions = stats.preemptions,
            "engine"
        );
    }
}

fn share(used: usize, total: usize) -> f64 {
    used as f64 / total.max(1) as f64 * 100.0
}
