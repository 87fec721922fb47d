//! `foveal bench serve` as it is meant.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foveal_load::{Api, ImageFormat, LoadError, LoadOptions, RequestShape, Target};

use super::args::RawBenchServe;
use crate::cli::config::{Output, PROMPTS_EACH, at_least_one, image_size, output};
use crate::cli::error::UsageError;

/// Requests at once where nothing is said, as `foveal bench throughput` has it.
const DEFAULT_CONCURRENCY: usize = 32;

#[derive(Debug)]
pub(crate) struct BenchServeConfig {
    pub(super) target: Target,
    pub(super) model: Option<String>,
    pub(super) tokenizer: Option<PathBuf>,
    /// Zero: the server is there.
    pub(super) ready_timeout: Duration,
    /// One after another.
    pub(super) runs: Vec<LoadOptions>,
    pub(super) output: Output,
    pub(super) result_file: Option<PathBuf>,
    pub(super) is_detailed: bool,
    pub(super) folder: Option<PathBuf>,
    pub(super) label: String,
    pub(super) compare: Vec<Comparison>,
}

/// Whose figures stand beside ours.
#[derive(Debug, PartialEq)]
pub(super) enum Comparison {
    Published,
    File(PathBuf),
}

impl BenchServeConfig {
    pub(crate) fn new(raw: RawBenchServe) -> Result<Self, UsageError> {
        let api: Api = raw.backend.parse().map_err(usage)?;
        let runs = runs(&raw, api)?;
        if raw.save_dir.is_some() && runs.iter().any(|run| run.max_concurrency.is_none()) {
            return Err(UsageError::new("--save-dir is a table by concurrency; add --max-concurrency"));
        }
        let compare = raw.compare.into_iter().map(|path| match path == Path::new("published") {
            true => Comparison::Published,
            false => Comparison::File(path),
        });
        Ok(Self {
            target: Target { base_url: raw.base_url, endpoint: raw.endpoint, api, api_key: raw.api_key },
            model: raw.model,
            tokenizer: raw.tokenizer,
            ready_timeout: Duration::from_secs(raw.ready_check_timeout_sec),
            runs,
            output: output(raw.json),
            result_file: raw.save_result,
            is_detailed: raw.save_detailed,
            folder: raw.save_dir,
            label: raw.label,
            compare: compare.collect(),
        })
    }
}

/// Every concurrency as often as it is measured. Each run has requests of its own, which none of the server's caches knows.
fn runs(raw: &RawBenchServe, api: Api) -> Result<Vec<LoadOptions>, UsageError> {
    at_least_one(&[("--num-runs", raw.num_runs)])?;
    if api == Api::Completions && raw.num_images > 0 {
        return Err(UsageError::new("--backend openai takes no pictures; add --num-images 0 or use openai-chat"));
    }
    let concurrencies = match &raw.max_concurrency[..] {
        [] if raw.request_rate.is_some() => vec![None],
        [] => vec![Some(DEFAULT_CONCURRENCY)],
        all => all.iter().copied().map(Some).collect(),
    };
    let shape = RequestShape {
        input_len: raw.input_len,
        output_len: raw.output_len,
        num_images: raw.num_images,
        image_size: image_size(&raw.image_size)?,
        image_format: raw.image_format.parse::<ImageFormat>().map_err(usage)?,
    };
    let seed = raw.seed.unwrap_or_else(fresh_seed);
    let all = concurrencies.into_iter().flat_map(|concurrency| std::iter::repeat_n(concurrency, raw.num_runs));
    let options = all.zip(0_u64..).map(|(max_concurrency, run)| {
        let each = max_concurrency.map(|concurrency| concurrency.saturating_mul(PROMPTS_EACH));
        let num_prompts = raw.num_prompts.or(each).ok_or_else(|| {
            UsageError::new("--request-rate without --max-concurrency has no number of requests; add --num-prompts")
        })?;
        let options = LoadOptions {
            shape,
            num_prompts,
            num_warmups: raw.num_warmups.unwrap_or(max_concurrency.unwrap_or(1)),
            max_concurrency,
            request_rate: raw.request_rate.unwrap_or(f64::INFINITY),
            burstiness: raw.burstiness,
            seed: seed.wrapping_add(run),
        };
        options.validate().map_err(usage)?;
        Ok(options)
    });
    options.collect()
}

/// The library names fields; here they are options.
pub(super) fn usage(error: LoadError) -> UsageError {
    match error {
        LoadError::Options { option, reason } => UsageError::new(format!("--{}: {reason}", option.replace('_', "-"))),
        other => UsageError::new(other.to_string()),
    }
}

fn fresh_seed() -> u64 {
    // Any of the number's bits do; two programs don't start in one nanosecond.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        raw: RawBenchServe,
    }

    fn config(line: &str) -> Result<BenchServeConfig, String> {
        let words = ["serve"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        BenchServeConfig::new(line.raw).map_err(|error| error.to_string())
    }

    #[test]
    fn every_concurrency_has_its_runs_and_its_own_requests() {
        let config =
            config("--max-concurrency 1,8 --num-runs 2 --seed 5 --image-size 32x16 --image-format png").unwrap();
        let runs: Vec<_> =
            config.runs.iter().map(|run| (run.max_concurrency, run.num_prompts, run.num_warmups, run.seed)).collect();
        assert_eq!(runs, [(Some(1), 3, 1, 5), (Some(1), 3, 1, 6), (Some(8), 24, 8, 7), (Some(8), 24, 8, 8)]);
        assert!(config.runs.iter().all(|run| run.shape.image_size == [32, 16] && run.request_rate.is_infinite()));
    }

    #[test]
    fn a_rate_is_an_open_loop() {
        let config = config("--request-rate 2.5 --num-prompts 7 --burstiness 0.5").unwrap();
        let [run] = &config.runs[..] else { panic!("{config:?}") };
        assert_eq!((run.max_concurrency, run.num_prompts, run.num_warmups), (None, 7, 1));
        assert!((run.request_rate - 2.5).abs() < 1e-9 && (run.burstiness - 0.5).abs() < 1e-9);
        let all_at_once = super::tests::config("--request-rate inf --num-prompts 7").unwrap();
        assert_eq!((all_at_once.runs[0].max_concurrency, all_at_once.runs[0].request_rate), (None, f64::INFINITY));
        let closed = super::tests::config("").unwrap();
        assert_eq!((closed.runs[0].max_concurrency, closed.runs[0].num_prompts), (Some(32), 96));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_option() {
        for (line, expected) in [
            ("--request-rate 2", "--num-prompts"),
            ("--request-rate 0 --num-prompts 1", "--request-rate"),
            ("--max-concurrency 0", "--num-prompts"),
            ("--max-concurrency 0 --num-prompts 2", "--max-concurrency"),
            ("--num-runs 0", "--num-runs"),
            ("--input-len 0", "--input-len"),
            ("--backend vllm", "--backend"),
            ("--backend openai", "--num-images 0"),
            ("--image-size 5", "--image-size"),
            ("--image-format gif", "--image-format"),
            ("--save-dir d --request-rate 1 --num-prompts 4", "--max-concurrency"),
            ("--save-detailed", "--save-result"),
            ("--compare published", "--save-dir"),
        ] {
            let error = config(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
        let config = config("--save-dir d --compare published --compare other.json").unwrap();
        assert_eq!(config.compare, [Comparison::Published, Comparison::File("other.json".into())]);
    }
}
