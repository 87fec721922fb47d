//! `foveal verify`.

use foveal_runtime::{CaseReport, Reference, verify as compare};
use serde::Serialize;

use super::config::{Output, VerifyConfig};
use super::error::CliError;
use super::open;
use super::printer::write_line;
use super::progress::Progress;
use super::stderr::say;

/// The one JSON object.
#[derive(Serialize)]
struct Report<'a> {
    reference: &'a str,
    good: bool,
    cases: &'a [CaseReport],
}

pub(crate) fn verify(config: &VerifyConfig) -> Result<(), CliError> {
    let reference = Reference::read(&config.reference)?;
    let folder = open(&config.model)?;
    let progress = Progress::of_bytes("Loading");
    let is_text = config.output == Output::Text;
    if is_text {
        say(format_args!("against {}", reference.source));
    }
    let reports = compare(&folder, &config.options, &reference, progress.reporter(), |case| {
        progress.clear();
        if is_text {
            say(line(case));
        }
    })?;
    let bad = reports.iter().filter(|case| !case.is_good()).count();
    if config.output == Output::Json {
        write_line(&Report { reference: &reference.source, good: bad == 0, cases: &reports })?;
    }
    match bad {
        0 => Ok(()),
        bad => Err(CliError::NotVerified { bad, all: reports.len() }),
    }
}

fn line(case: &CaseReport) -> String {
    let CaseReport { name, prompt_tokens, error, bf16_error, forced_error, bf16_forced_error, .. } = case;
    let CaseReport { same_best, wrong_best, steps, .. } = case;
    let prompt = if case.same_prompt { "tokens equal" } else { "TOKENS DIFFER" };
    let ratio = |error: &f64, noise: &f64| error / noise;
    format!(
        "{:<4} {name}: {prompt_tokens} {prompt}; logits {error:.2e} off ({:.2} of bfloat16's {bf16_error:.2e}), forced steps \
         {forced_error:.2e} ({:.2} of {bf16_forced_error:.2e}); same best token at {same_best} of {steps} steps, \
         {wrong_best} wrong",
        if case.is_good() { "ok" } else { "BAD" },
        ratio(error, bf16_error),
        ratio(forced_error, bf16_forced_error),
    )
}
