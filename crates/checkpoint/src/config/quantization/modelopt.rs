//! The dialect of NVIDIA's ModelOpt.

use super::{Fault, LayerQuantization, Section, kv_cache_scheme, short, unknown};
use crate::config::fields::Fields;
use crate::{Fp8Config, WeightScaleKind};

/// One algorithm for all layers; whether the inputs' scales are there shows in the tensors.
pub(super) fn parse(fields: &Fields<'_>) -> Result<Section, Fault> {
    let layers = match fields.text("quant_algo")? {
        Some("FP8") => LayerQuantization::Fp8(Fp8Config { weight: WeightScaleKind::Tensor, input: None }),
        Some(other) => return unknown(format!("the algorithm `{}`", short(other))),
        // What it writes for weights that it left alone.
        None if fields.is_null("quant_algo") => LayerQuantization::Float,
        None => return Err(fields.bad("quant_algo", "a string or null").into()),
    };
    let has_fp8_kv_cache = match fields.text("kv_cache_quant_algo")? {
        None => kv_cache_scheme(fields)?,
        Some("FP8") => true,
        Some(other) => return unknown(format!("a KV cache of `{}`", short(other))),
    };
    Ok(Section { layers, has_fp8_kv_cache })
}
