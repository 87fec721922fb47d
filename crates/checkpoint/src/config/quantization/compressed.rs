//! The dialect of compressed-tensors (LLM Compressor).

use serde_json::Value;

use super::{Fault, LayerQuantization, Section, checked, kv_cache_scheme, short, unknown};
use crate::config::fields::Fields;
use crate::{FP8_BLOCK, Fp8Config, InputScaleKind, WeightScaleKind};

/// Bits of an FP8 element.
const FP8_BITS: usize = 8;

/// Groups of modules with a scheme each; this version reads those that agree.
pub(super) fn parse(fields: &Fields<'_>) -> Result<Section, Fault> {
    let groups = fields.section("config_groups")?.ok_or_else(|| fields.bad("config_groups", "an object"))?;
    let mut layers = None;
    for group in groups.sections()? {
        let own = group_scheme(&group)?;
        if layers.is_some_and(|layers| layers != own) {
            return unknown("layers of several formats");
        }
        layers = Some(own);
    }
    let has_fp8_kv_cache = kv_cache_scheme(fields)?;
    let layers = match layers {
        Some(layers) => LayerQuantization::Fp8(layers),
        None if has_fp8_kv_cache => LayerQuantization::Float,
        None => return Err(fields.bad("config_groups", "at least one group, or a kv_cache_scheme beside it").into()),
    };
    if let Some(sparsity) = fields.section("sparsity_config")? {
        match sparsity.text("format")? {
            None | Some("dense") => {}
            Some(other) => return unknown(format!("sparse weights of format `{}`", short(other))),
        }
    }
    Ok(Section { layers, has_fp8_kv_cache })
}

fn group_scheme(group: &Fields<'_>) -> Result<Fp8Config, Fault> {
    let weights = group.section("weights")?.ok_or_else(|| group.bad("weights", "an object"))?;
    require_float8(&weights, "weights")?;
    if group.value("output_activations").is_some() {
        return unknown("quantised outputs");
    }
    let weight = match weights.text("strategy")? {
        Some("tensor") => WeightScaleKind::Tensor,
        Some("channel") => WeightScaleKind::Channel,
        Some("block") => {
            require_block(&weights)?;
            WeightScaleKind::Block
        }
        other => return unknown(format!("weights scaled by `{}`", short(other.unwrap_or("no strategy")))),
    };
    if weights.bool_or("dynamic", false)? {
        return unknown("weights whose scales are not in the checkpoint");
    }
    let Some(inputs) = group.section("input_activations")? else {
        return unknown("FP8 weights and inputs that are not quantised");
    };
    require_float8(&inputs, "inputs")?;
    checked(weight, input_kind(&inputs, weight)?)
}

/// Scales of an input. Where the config asks for one dynamic scale of all rows (`tensor`), each row has its own here: a
/// finer one, and no row's result depends on another's.
fn input_kind(inputs: &Fields<'_>, weight: WeightScaleKind) -> Result<InputScaleKind, Fault> {
    let is_dynamic = match inputs.value("dynamic") {
        None => false,
        Some(Value::Bool(is_dynamic)) => *is_dynamic,
        // NVFP4 has `local`.
        Some(Value::String(other)) => return unknown(format!("inputs whose scales are `{}`", short(other))),
        Some(_) => return Err(inputs.bad("dynamic", "true or false").into()),
    };
    let strategy = inputs.text("strategy")?.unwrap_or("tensor");
    let group_size = inputs.size("group_size")?;
    let is_block = weight == WeightScaleKind::Block;
    match (strategy, is_dynamic) {
        ("group", true) if is_block && group_size == Some(FP8_BLOCK) => Ok(InputScaleKind::Dynamic),
        ("token" | "tensor", true) if !is_block => Ok(InputScaleKind::Dynamic),
        ("tensor", false) => Ok(InputScaleKind::Static),
        _ => {
            let when = if is_dynamic { "dynamic" } else { "static" };
            let group = group_size.map_or_else(String::new, |n| format!(" of {n}"));
            unknown(format!("{when} input scales by `{}`{group} and weight scales {weight}", short(strategy)))
        }
    }
}

/// `[128, 128]` or `"128x128"`.
fn require_block(weights: &Fields<'_>) -> Result<(), Fault> {
    let block = match weights.value("block_structure") {
        Some(Value::String(text)) => text.clone(),
        _ => match weights.sizes("block_structure")?.as_deref() {
            Some([rows, columns]) => format!("{rows}x{columns}"),
            _ => return Err(weights.bad("block_structure", "two positive integers").into()),
        },
    };
    match block == format!("{FP8_BLOCK}x{FP8_BLOCK}") {
        true => Ok(()),
        false => unknown(format!("blocks of {}", short(&block))),
    }
}

/// Symmetric 8-bit floats; e4m3 is the only such format of the dialect.
pub(super) fn require_float8(fields: &Fields<'_>, what: &str) -> Result<(), Fault> {
    let bits = fields.size("num_bits")?.unwrap_or(FP8_BITS);
    let kind = fields.text("type")?.unwrap_or("int");
    if kind != "float" || bits != FP8_BITS {
        return unknown(format!("{what} of {bits}-bit {}", short(kind)));
    }
    match fields.bool_or("symmetric", true)? {
        true => Ok(()),
        false => unknown(format!("{what} with zero points (symmetric false)")),
    }
}
