//! `foveal inspect`.

use std::fmt::Write as _;
use std::io::Write as _;

use foveal_runtime::{ModelReport, ModuleReport};
use indicatif::HumanBytes;

use super::config::{InspectConfig, ModelPlace, Output};
use super::error::CliError;
use super::open;
use super::printer::write_line;

pub(crate) fn inspect(config: &InspectConfig) -> Result<(), CliError> {
    let folder = open(&config.model)?;
    let mut report = ModelReport::of(&folder, config.max_model_len, config.list_tensors)?;
    if let ModelPlace::Hub { id, .. } = &config.model {
        // The folder's own name is a commit.
        report.model = id.to_string();
    }
    match config.output {
        Output::Json => write_line(&report),
        Output::Text => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text(&report).as_bytes())?;
            Ok(stdout.flush()?)
        }
    }
}

/// The report as a page of text.
fn text(report: &ModelReport) -> String {
    let mut page = String::new();
    // Writing to a string can't fail.
    let _ = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &ModelReport) -> std::fmt::Result {
    writeln!(page, "{}: {} ({})", report.model, report.family, report.model_type)?;
    match &report.unsupported {
        None => writeln!(
            page,
            "  runs on this version, by its config and tensors (tokenizer, template and picture settings not checked)"
        )?,
        Some(reason) => writeln!(page, "  {reason}")?,
    }
    if let Some(method) = &report.quantization {
        writeln!(page, "  quantised by {method}, {} tensors of scales", report.scales)?;
    }
    if report.fp8_kv_cache {
        writeln!(page, "  made for an FP8 KV cache, which --kv-cache-dtype fp8 asks for")?;
    }
    if report.kv_scales > 0 {
        writeln!(page, "  scales of keys and values in {} layers", report.kv_scales)?;
    }
    writeln!(page, "\nArchitecture")?;
    for (field, value) in &report.architecture {
        writeln!(page, "  {field:<34}{value}")?;
    }
    writeln!(page, "\nTensors")?;
    writeln!(page, "  {:<14}{:>8}{:>16}{:>12}  dtypes", "component", "tensors", "parameters", "bytes")?;
    for part in &report.components {
        let dtypes: Vec<String> = part.dtypes.iter().map(|(dtype, n)| format!("{dtype} {}", HumanBytes(*n))).collect();
        let bytes = HumanBytes(part.bytes).to_string();
        let dtypes = dtypes.join(", ");
        writeln!(page, "  {:<14}{:>8}{:>16}{bytes:>12}  {dtypes}", part.component, part.tensors, part.parameters)?;
    }
    write_modules(page, &report.modules)?;
    if !report.tensors.is_empty() {
        writeln!(page)?;
    }
    for tensor in &report.tensors {
        writeln!(page, "  {:<64} {:<5} {:?}", tensor.name, tensor.dtype, tensor.shape)?;
    }
    let memory = &report.memory;
    writeln!(page, "\nMemory")?;
    writeln!(page, "  {:<34}{}", "weights (mapped)", HumanBytes(memory.weights_bytes))?;
    writeln!(page, "  {:<34}{}", "KV cache for one token (f32)", HumanBytes(memory.kv_bytes_per_token))?;
    let label = format!("KV cache for {} tokens", memory.max_model_len);
    writeln!(page, "  {label:<34}{}", HumanBytes(memory.kv_cache_bytes))?;
    writeln!(page, "  {:<34}{}", "weights and KV cache together", HumanBytes(memory.total_bytes))?;
    writeln!(page, "  not counted: working memory of a step and of a picture, taken as it is used")
}

/// A line for each kind of matrix.
fn write_modules(page: &mut String, modules: &[ModuleReport]) -> std::fmt::Result {
    let width = modules.iter().map(|kind| kind.module.len()).max().unwrap_or_default();
    writeln!(page, "\n  {:<14}{:<width$}{:>8}  {:<8} scales", "matrices", "module", "count", "dtype")?;
    for kind in modules {
        let scales = match (&kind.weight_scales, kind.input_scales) {
            (Some(weight), Some(input)) => format!(" weight {weight}, input {input}"),
            _ => String::new(),
        };
        let line =
            format!("  {:<14}{:<width$}{:>8}  {:<8}{scales}", kind.component, kind.module, kind.count, kind.dtype);
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
}
