//! `foveal bench serve`.

pub(crate) mod args;
pub(crate) mod config;

use std::path::Path;

use foveal_load::{LoadError, LoadGenerator, LoadReport, Peer, Stage, Sweep};

use super::config::Output;
use super::error::CliError;
use super::printer::{write_line, write_text};
use super::progress::Progress;
use super::stderr::say;
use config::{BenchServeConfig, Comparison};

pub(crate) fn bench_serve(config: &BenchServeConfig) -> Result<(), CliError> {
    // Before hours are spent on what stands beside them.
    let peers = peers(config)?;
    if !config.ready_timeout.is_zero() {
        let took = LoadGenerator::wait_until_ready(&config.target, config.ready_timeout)?;
        say(format_args!("The server was ready after {:.1} s.", took.as_secs_f64()));
    }
    let generator = LoadGenerator::new(config.target.clone(), config.model.clone(), config.tokenizer.as_deref())?;
    let mut results = String::new();
    let mut sweep = Sweep::new(&config.label);
    for options in &config.runs {
        let bars = ["Preparing", "Warming up", "Answering"].map(Progress::of_requests);
        let report = generator.run(options, |stage, done, total| {
            let [preparing, warming_up, answering] = &bars;
            let bar = match stage {
                Stage::Preparing => preparing,
                Stage::WarmingUp => warming_up,
                _ => answering,
            };
            bar.report(done, total);
            if done == total {
                bar.clear();
            }
        })?;
        drop(bars);
        match config.output {
            Output::Json => write_line(&report.to_json(false))?,
            Output::Text => write_text(&report.to_string())?,
        }
        remark(&report);
        if let Some(path) = &config.result_file {
            results.push_str(&report.to_json(config.is_detailed).to_string());
            results.push('\n');
            write(path, &results)?;
        }
        if report.completed == 0 {
            return Err(CliError::NoAnswer(report.first_error.unwrap_or_default()));
        }
        sweep.push(report);
        // After every run: what ends before its time leaves what it has.
        if let Some(folder) = &config.folder {
            sweep.write(folder, &peers)?;
        }
    }
    if let Some(folder) = &config.folder {
        say(format_args!("Tables and charts are in {}.", folder.display()));
    }
    Ok(())
}

/// What a reader of the figures must know.
fn remark(report: &LoadReport) {
    if let Some(error) = report.first_error.as_ref().filter(|_| report.completed > 0) {
        say(format_args!("warning: {} requests failed; the first: {error}", report.failed));
    }
    if report.num_without_usage > 0 {
        let num = report.num_without_usage;
        say(format_args!("warning: {num} answers came without usage: their chunks are counted as tokens"));
    }
    if report.num_of_other_length > 0 {
        let (num, len) = (report.num_of_other_length, report.options.shape.output_len);
        say(format_args!("warning: {num} answers don't have the {len} tokens that were asked for"));
    }
}

fn peers(config: &BenchServeConfig) -> Result<Vec<Peer>, CliError> {
    let mut peers = Vec::new();
    for comparison in &config.compare {
        match (comparison, config.runs.first()) {
            (Comparison::File(path), _) => peers.push(Peer::read(path)?),
            (Comparison::Published, Some(run)) => {
                let published = Peer::published(&run.shape)?;
                if published.is_empty() {
                    say("warning: no figures are published for requests of this shape");
                }
                peers.extend(published);
            }
            (Comparison::Published, None) => {}
        }
    }
    Ok(peers)
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let bad = |error: std::io::Error| LoadError::File { path: path.to_owned(), reason: error.kind().to_string() };
    Ok(std::fs::write(path, text).map_err(bad)?)
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Options { .. } => Self::Usage(config::usage(error)),
            other => Self::Load(other),
        }
    }
}
