//! The matrices of a model by kind: which element type each has, and which scales.

use std::collections::BTreeMap;

use foveal_checkpoint::{Component, Fp8Scheme, TensorInfo, WeightSource, prefix};
use serde::Serialize;

use super::is_scale;

/// Modules that differ in nothing but the numbers in their names.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleReport {
    /// The part that they belong to.
    pub component: String,
    /// Their name below the part, with `*` for numbers: `layers.*.mlp.gate_proj`.
    pub module: String,
    /// How many there are.
    pub count: usize,
    /// The element type of their weights.
    pub dtype: String,
    /// What the weights' elements are multiplied by: `per tensor`, `per channel`, `128x128 blocks`. `None` without scales
    /// (or with some that this version doesn't know).
    pub weight_scales: Option<String>,
    /// What the inputs' elements are multiplied by: `dynamic per token`, `dynamic per 128`, `static per tensor`.
    pub input_scales: Option<&'static str>,
}

/// All matrices, by part and name. The tensors of known scales count as known to `weights`.
pub(super) fn modules(weights: &WeightSource) -> Vec<ModuleReport> {
    let mut counts = BTreeMap::<(Component, String, String, Option<(String, &'static str)>), usize>::new();
    for info in weights.tensors().filter(|info| info.shape.len() >= 2 && !is_scale(info.name)) {
        let scales = scheme(weights, &info).map(|scheme| (scheme.weight.to_string(), scheme.input_scales()));
        *counts.entry((info.component, kind(info.name), info.dtype, scales)).or_default() += 1;
    }
    let report =
        |((component, module, dtype, scales), count): ((Component, _, _, Option<(String, &'static str)>), _)| {
            let (weight_scales, input_scales) = scales.unzip();
            ModuleReport { component: component.to_string(), module, count, dtype, weight_scales, input_scales }
        };
    counts.into_iter().map(report).collect()
}

/// The scales of an FP8 layer, where they are of a kind that can be run.
fn scheme(weights: &WeightSource, info: &TensorInfo<'_>) -> Option<Fp8Scheme> {
    let module = info.name.strip_suffix(".weight")?;
    let &[n, k] = info.shape else { return None };
    weights.at(prefix::ALL).linear_scheme(module, [n, k]).ok().flatten()
}

/// A tensor's name without its part, its numbers and `.weight`.
fn kind(name: &str) -> String {
    let below = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
    let own = below(prefix::TEXT).or_else(|| below(prefix::VISION)).unwrap_or(name);
    let own = own.strip_suffix(".weight").unwrap_or(own);
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    own.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}
