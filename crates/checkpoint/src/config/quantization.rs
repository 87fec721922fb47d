//! How a checkpoint's weights are quantised: the dialects of FP8 as one type.

mod compressed;
mod modelopt;

use super::fields::Fields;
use crate::{CheckpointError, FP8_BLOCK, InputScaleKind, WeightScaleKind};

/// `quantization_config` of `config.json`, or `hf_quant_config.json` beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Whose dialect it is: `fp8` (Qwen's own, vLLM), `compressed-tensors`, `modelopt`, or one that this version does not
    /// read, as `awq`.
    pub quant_method: String,
    /// What the linear layers are.
    pub layers: LayerQuantization,
    /// Whether keys and values are meant to be kept in FP8.
    pub has_fp8_kv_cache: bool,
    /// Modules that are not quantised, as the checkpoint names them: names, patterns with `*`, or regular expressions
    /// after `re:`. The tensors themselves decide; this is for people.
    pub ignored_modules: Vec<String>,
}

/// What the quantised linear layers of a checkpoint are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerQuantization {
    /// FP8 (e4m3) with scales.
    Fp8(Fp8Config),
    /// Of a float type: the config is about the KV cache alone.
    Float,
    /// Something that this version can't run, in words: `int weights of 4 bits`. Empty where the whole dialect is
    /// unknown.
    Unknown(String),
}

/// The scales that the config promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Config {
    /// Those of the weights.
    pub weight: WeightScaleKind,
    /// Those of the inputs; `None` where it shows only in the tensors (ModelOpt).
    pub input: Option<InputScaleKind>,
}

/// Why a section gives no [`Fp8Config`].
enum Fault {
    /// It makes no sense.
    Bad(CheckpointError),
    /// It makes sense, to somebody else.
    Unknown(String),
}

impl From<CheckpointError> for Fault {
    fn from(error: CheckpointError) -> Self {
        Self::Bad(error)
    }
}

fn unknown<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Unknown(what.into()))
}

/// What a dialect's section says.
struct Section {
    layers: LayerQuantization,
    has_fp8_kv_cache: bool,
}

impl QuantizationConfig {
    /// `quantization_config` of a `config.json`.
    pub(super) fn parse(root: &Fields<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(fields) = root.section("quantization_config")? else { return Ok(None) };
        let method = fields.text("quant_method")?.ok_or_else(|| fields.bad("quant_method", "a string"))?;
        let section = match method {
            "fp8" => official(&fields),
            "compressed-tensors" => compressed::parse(&fields),
            "modelopt" => match fields.section("quantization")? {
                // Some exports keep the shape that `hf_quant_config.json` has.
                Some(inner) => return Self::new(method, &inner, modelopt::parse(&inner)).map(Some),
                None => modelopt::parse(&fields),
            },
            _ => unknown(""),
        };
        Self::new(method, &fields, section).map(Some)
    }

    /// A `hf_quant_config.json`, which ModelOpt writes beside `config.json`.
    pub(super) fn parse_modelopt_file(root: &Fields<'_>) -> Result<Self, CheckpointError> {
        let fields = root.section("quantization")?.ok_or_else(|| root.bad("quantization", "an object"))?;
        Self::new("modelopt", &fields, modelopt::parse(&fields))
    }

    fn new(method: &str, fields: &Fields<'_>, section: Result<Section, Fault>) -> Result<Self, CheckpointError> {
        let (layers, has_fp8_kv_cache) = match section {
            Ok(section) => (section.layers, section.has_fp8_kv_cache),
            Err(Fault::Unknown(what)) => (LayerQuantization::Unknown(what), false),
            Err(Fault::Bad(error)) => return Err(error),
        };
        let mut ignored_modules = Vec::new();
        for key in ["modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules"] {
            match fields.names(key) {
                Ok(names) => ignored_modules.extend(names),
                // A dialect that can't be read is refused by its name, whatever its fields are.
                Err(_) if matches!(layers, LayerQuantization::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { quant_method: method.to_owned(), layers, has_fp8_kv_cache, ignored_modules })
    }

    /// The scales that the FP8 layers should have; none where this version can't run them.
    #[must_use]
    pub fn fp8(&self) -> Option<Fp8Config> {
        match &self.layers {
            LayerQuantization::Fp8(layers) => Some(*layers),
            LayerQuantization::Float | LayerQuantization::Unknown(_) => None,
        }
    }

    /// What this version can't run, in words.
    pub(super) fn unsupported(&self) -> Option<String> {
        let method = &self.quant_method;
        match &self.layers {
            LayerQuantization::Fp8(_) | LayerQuantization::Float => None,
            LayerQuantization::Unknown(what) if what.is_empty() => Some(format!("quantisation by `{method}`")),
            LayerQuantization::Unknown(what) => Some(format!("quantisation by `{method}` with {what}")),
        }
    }
}

/// Qwen's own FP8 checkpoints and vLLM's: one setting for all layers.
fn official(fields: &Fields<'_>) -> Result<Section, Fault> {
    if let Some(fmt) = fields.text("fmt")?.filter(|fmt| *fmt != "e4m3") {
        return unknown(format!("FP8 weights of format `{}`", short(fmt)));
    }
    let weight = match fields.sizes("weight_block_size")?.as_deref() {
        None => WeightScaleKind::Tensor,
        Some(&[FP8_BLOCK, FP8_BLOCK]) => WeightScaleKind::Block,
        Some(&[rows, columns]) if rows > 0 && columns > 0 => return unknown(format!("blocks of {rows}x{columns}")),
        Some(_) => return Err(fields.bad("weight_block_size", "two positive integers").into()),
    };
    let input = match fields.text("activation_scheme")? {
        None | Some("dynamic") => InputScaleKind::Dynamic,
        Some("static") => InputScaleKind::Static,
        Some(other) => return unknown(format!("inputs scaled by the scheme `{}`", short(other))),
    };
    let layers = LayerQuantization::Fp8(checked(weight, input)?);
    Ok(Section { layers, has_fp8_kv_cache: false })
}

/// Blocks go with groups of the input, which have no scale beforehand.
fn checked(weight: WeightScaleKind, input: InputScaleKind) -> Result<Fp8Config, Fault> {
    if (weight, input) == (WeightScaleKind::Block, InputScaleKind::Static) {
        return unknown(format!("static input scales and weight scales {weight}"));
    }
    Ok(Fp8Config { weight, input: Some(input) })
}

/// `kv_cache_scheme`: whether keys and values are meant to be kept in FP8, with one scale for each layer.
fn kv_cache_scheme(fields: &Fields<'_>) -> Result<bool, Fault> {
    let Some(scheme) = fields.section("kv_cache_scheme")? else { return Ok(false) };
    compressed::require_float8(&scheme, "a KV cache")?;
    match scheme.text("strategy")? {
        None | Some("tensor") => Ok(true),
        Some(other) => unknown(format!("a KV cache with scales by `{}`", short(other))),
    }
}

/// A checkpoint's own word for an error's sentence.
fn short(word: &str) -> String {
    word.chars().take(60).collect()
}
