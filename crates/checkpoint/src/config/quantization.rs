//! How a checkpoint's weights are quantised.

use super::fields::Fields;
use crate::CheckpointError;

/// `quantization_config` of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// `fp8`, `awq`, `gptq`, ...
    pub quant_method: String,
    /// The element format, as `e4m3`.
    pub fmt: Option<String>,
    /// `dynamic` or `static` scales of the activations.
    pub activation_scheme: Option<String>,
    /// Rows and columns of a weight that share one scale; none for one scale per tensor or channel.
    pub weight_block_size: Option<[usize; 2]>,
    /// Modules that stay as they are, the vision tower among them.
    pub modules_to_not_convert: Vec<String>,
}

impl QuantizationConfig {
    pub(super) fn parse(root: &Fields<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(fields) = root.section("quantization_config")? else { return Ok(None) };
        let text = |key| fields.text(key).map(|t| t.map(str::to_owned));
        let block = match fields.sizes("weight_block_size")?.as_deref() {
            None => None,
            Some(&[rows, columns]) if rows > 0 && columns > 0 => Some([rows, columns]),
            Some(_) => return Err(fields.bad("weight_block_size", "two positive integers")),
        };
        let modules = match fields.value("modules_to_not_convert") {
            None => Vec::new(),
            Some(value) => value
                .as_array()
                .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect())
                .ok_or_else(|| fields.bad("modules_to_not_convert", "a list of names"))?,
        };
        Ok(Some(Self {
            quant_method: text("quant_method")?.ok_or_else(|| fields.bad("quant_method", "a string"))?,
            fmt: text("fmt")?,
            activation_scheme: text("activation_scheme")?,
            weight_block_size: block,
            modules_to_not_convert: modules,
        }))
    }
}
