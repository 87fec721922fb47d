//! `foveal bench`.

use foveal_runtime::{Model, Percentiles, ThroughputReport, throughput};

use super::config::{BenchConfig, Output};
use super::error::CliError;
use super::open;
use super::printer::{write_line, write_text};
use super::progress::Progress;
use super::stderr::say;

/// Columns of the report's lines.
const WIDTH: usize = 60;

pub(crate) fn bench(config: &BenchConfig) -> Result<(), CliError> {
    let folder = open(&config.model)?;
    let loading = Progress::of_bytes("Loading");
    let model = Model::load(&folder, &config.options, loading.reporter())?;
    loading.clear();
    say(model.engine().memory_plan());
    for options in &config.runs {
        let progress = Progress::of_requests("Answering");
        let report = throughput(&model, options, |done| progress.report(done, options.num_prompts))?;
        progress.clear();
        match config.output {
            Output::Json => write_line(&report)?,
            Output::Text => lines(&report).iter().try_for_each(|line| write_text(line))?,
        }
    }
    Ok(())
}

/// The layout of `vllm bench serve`.
fn lines(report: &ThroughputReport) -> Vec<String> {
    let heading = |title: &str, fill: char| {
        let side = WIDTH.saturating_sub(title.len() + 2) / 2;
        let side: String = std::iter::repeat_n(fill, side).collect();
        format!("{side} {title} {side}")
    };
    let line = |name: &str, value: String| format!("{name:<43}{value:>17}");
    let count = |name: &str, value: usize| line(name, value.to_string());
    let number = |name: &str, value: f64| line(name, format!("{value:.2}"));
    let mut lines = vec![
        heading("Throughput Benchmark Result", '='),
        count("Successful requests:", report.completed),
        count("Maximum request concurrency:", report.concurrency),
        number("Benchmark duration (s):", report.duration),
        count("Total input tokens:", report.total_input_tokens),
        count("Total image tokens:", report.total_image_tokens),
        count("Total generated tokens:", report.total_output_tokens),
        number("Request throughput (req/s):", report.request_throughput),
        number("Output token throughput (tok/s):", report.output_throughput),
        number("Total token throughput (tok/s):", report.total_token_throughput),
    ];
    let groups: [(&str, &str, &Percentiles); 5] = [
        ("Time to First Token", "TTFT", &report.ttft_ms),
        ("Time per Output Token (excl. 1st token)", "TPOT", &report.tpot_ms),
        ("Inter-token Latency", "ITL", &report.itl_ms),
        ("End-to-end Latency", "E2EL", &report.e2el_ms),
        ("Making a Request", "prepare", &report.prepare_ms),
    ];
    for (title, name, of) in groups {
        lines.push(heading(title, '-'));
        let values = [("Mean", of.mean), ("P50", of.p50), ("P90", of.p90), ("P99", of.p99)];
        lines.extend(values.map(|(rank, value)| number(&format!("{rank} {name} (ms):"), value)));
    }
    lines.push(heading("Engine", '-'));
    lines.push(count("Steps:", usize::try_from(report.steps).unwrap_or(usize::MAX)));
    lines.push(count("Preemptions:", usize::try_from(report.preemptions).unwrap_or(usize::MAX)));
    lines.push(number("Host time per step (ms):", report.host_step_ms));
    if report.gpu_step_ms > 0.0 {
        lines.push(number("GPU time per step (ms):", report.gpu_step_ms));
        lines.push(number("GPU idle between steps (%):", report.gpu_idle_share * 100.0));
        lines.push(number("Padding of rows (%):", report.padding_share * 100.0));
    }
    lines.push("=".repeat(WIDTH));
    lines
}
