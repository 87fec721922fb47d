//! `foveal verify`.

use foveal_runtime::{CaseReport, LogitError, Reference, VerifyReport, verify as compare};
use serde::Serialize;

use super::config::{Output, VerifyConfig};
use super::error::CliError;
use super::open;
use super::printer::{write_line, write_text};
use super::progress::Progress;

/// The one JSON object.
#[derive(Serialize)]
struct Printed<'a> {
    reference: &'a str,
    good: bool,
    #[serde(flatten)]
    report: &'a VerifyReport,
}

pub(crate) fn verify(config: &VerifyConfig) -> Result<(), CliError> {
    let reference = Reference::read(&config.reference)?;
    let folder = open(&config.model)?;
    let progress = Progress::of_bytes("Loading");
    let is_text = config.output == Output::Text;
    let tell = |line: String| if is_text { write_text(&line) } else { Ok(()) };
    // Nothing is printed before there is something to say.
    let mut told = None;
    let report = compare(&folder, &config.options, &reference, progress.reporter(), |case| {
        progress.clear();
        let heading = told.take().unwrap_or_else(|| tell(format!("against {}", reference.source)));
        told = Some(heading.and_then(|()| tell(line(case))));
    })?;
    told.unwrap_or(Ok(()))?;
    let good = report.is_good();
    tell(format!("{} all: {}", verdict(good), errors(&report.logits, &report.forced)))?;
    if !is_text {
        write_line(&Printed { reference: &reference.source, good, report: &report })?;
    }
    if good { Ok(()) } else { Err(CliError::NotVerified) }
}

fn verdict(good: bool) -> &'static str {
    if good { "ok  " } else { "BAD " }
}

fn errors(logits: &LogitError, forced: &LogitError) -> String {
    let one =
        |e: &LogitError| format!("{:.2e} off, {:.2} times bfloat16's {:.2e}", e.error, e.noise_ratio(), e.bf16_error);
    format!("logits {}; forced steps {}", one(logits), one(forced))
}

fn line(case: &CaseReport) -> String {
    let CaseReport { name, prompt_tokens, logits, forced, same_best, wrong_best, steps, same_prompt, .. } = case;
    let prompt = if *same_prompt { "as the reference's" } else { "NOT THE REFERENCE'S" };
    let errors = errors(logits, forced);
    let verdict = verdict(case.is_good());
    format!(
        "{verdict} {name}: {prompt_tokens} tokens, {prompt}; {errors}; likeliest token equal at {same_best} of {steps} steps, \
         {wrong_best} wrong"
    )
}
