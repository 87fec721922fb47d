//! The dialect of NVIDIA's ModelOpt.

use super::{Fault, Section, kv_cache_scheme, short, unknown};
use crate::config::fields::Fields;
use crate::{Fp8Config, WeightScaleKind};

/// One algorithm for all layers; whether the inputs' scales are there shows in the tensors.
pub(super) fn parse(fields: &Fields<'_>) -> Result<Section, Fault> {
    match fields.text("quant_algo")?.ok_or_else(|| fields.bad("quant_algo", "a string"))? {
        "FP8" => {}
        other => return unknown(format!("the algorithm `{}`", short(other))),
    }
    let has_fp8_kv_cache = match fields.text("kv_cache_quant_algo")? {
        None => kv_cache_scheme(fields)?,
        Some("FP8") => true,
        Some(other) => return unknown(format!("a KV cache of `{}`", short(other))),
    };
    Ok(Section { layers: Fp8Config { weight: WeightScaleKind::Tensor, input: None }, has_fp8_kv_cache })
}
