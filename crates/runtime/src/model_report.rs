//! What a model folder holds and what it would take, from its config and the headers of its weight files alone.

mod modules;

pub use modules::ModuleReport;

use std::collections::BTreeMap;

use foveal_checkpoint::{
    CheckpointError, GenerationConfig, ModelConfig, ModelFolder, TensorSpec, WeightSource, prefix,
};
use foveal_device::DType;
use foveal_engine::EngineError;
use foveal_llm::{DecoderSettings, GenerationDefaults};
use serde::Serialize;

use crate::RuntimeError;
use crate::parts::max_model_len;

/// What a model folder holds and what it would take. Serialises to the JSON of `foveal inspect --json`.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// The folder's name.
    pub model: String,
    /// The family's published name.
    pub family: &'static str,
    /// The family's `model_type` in config.json.
    pub model_type: &'static str,
    /// Why this version can't run it; `None` if it can.
    pub unsupported: Option<String>,
    /// The decoder's and the tower's sizes, in the spelling of config.json.
    pub architecture: BTreeMap<&'static str, serde_json::Value>,
    /// The method of quantisation, if there is one.
    pub quantization: Option<String>,
    /// Whether it was made for keys and values in FP8, which `--kv-cache-dtype fp8` keeps so.
    pub fp8_kv_cache: bool,
    /// Tensors that hold scales of quantised weights.
    pub scales: usize,
    /// Layers that have scales of keys and values, for a cache in FP8.
    pub kv_scales: usize,
    /// What the parts take.
    pub components: Vec<ComponentReport>,
    /// The matrices by kind, with their element types and scales.
    pub modules: Vec<ModuleReport>,
    /// Every tensor, in the order of the names; empty unless it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorReport>,
    /// What the model takes when it runs.
    pub memory: MemoryPlan,
}

/// What one part of a model takes.
#[derive(Clone, Debug, Serialize)]
pub struct ComponentReport {
    /// The part.
    pub component: String,
    /// Its tensors.
    pub tensors: usize,
    /// Its elements.
    pub parameters: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes by element type.
    pub dtypes: BTreeMap<String, u64>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name in the file.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: usize,
}

/// What a model takes in memory when it runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryPlan {
    /// Weights, mapped from their files.
    pub weights_bytes: u64,
    /// Keys and values of one token, all layers together.
    pub kv_bytes_per_token: u64,
    /// Tokens of the longest conversation.
    pub max_model_len: usize,
    /// Keys and values of the longest conversation.
    pub kv_cache_bytes: u64,
    /// Weights and KV cache. The working memory of a step and of a picture is not in it: it grows as it is used, with
    /// the largest picture.
    pub total_bytes: u64,
}

/// Endings of the tensors that hold scales of quantised weights, activations or caches.
const SCALE_SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];

fn is_scale(name: &str) -> bool {
    SCALE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

impl ModelReport {
    /// Looks at a folder. `max_model_len` is the conversation that the memory plan is made for, `None` the default of
    /// `foveal run`.
    ///
    /// # Errors
    /// Those of [`crate::Model::load`] about the config, the tensors (missing, misshapen, of another type, surplus),
    /// generation_config.json and `max_model_len`. Tokenizer, template and picture settings are not looked at.
    pub fn of(folder: &ModelFolder, max_model_len: Option<usize>, list_tensors: bool) -> Result<Self, RuntimeError> {
        let config = ModelConfig::load(folder)?;
        let memory_len = self::max_model_len(folder, &config, max_model_len)?;
        let weights = WeightSource::open(folder)?.with_quantization(config.quantization.as_ref());
        let unsupported = config.ensure_supported().err().map(|error| error.to_string());
        if unsupported.is_none() {
            DecoderSettings::new(&config).map_err(EngineError::from)?;
            GenerationDefaults::new(&GenerationConfig::load(folder, &config.text)?).map_err(EngineError::from)?;
            check_tensors(&config, &weights)?;
        }
        let tensor = |info: foveal_checkpoint::TensorInfo<'_>| TensorReport {
            name: info.written_name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.to_vec(),
            bytes: info.len_bytes,
        };
        Ok(Self {
            model: folder.name().to_owned(),
            family: config.family.name(),
            model_type: config.family.model_type(),
            unsupported,
            architecture: architecture(&config),
            quantization: config.quantization.as_ref().map(|quantization| quantization.quant_method.clone()),
            fp8_kv_cache: config.quantization.as_ref().is_some_and(|quantization| quantization.has_fp8_kv_cache),
            scales: weights.tensors().filter(|info| is_scale(info.name)).count(),
            kv_scales: attentions(&config)
                .filter(|name| matches!(weights.at(prefix::ALL).kv_scales(name), Ok(Some(_))))
                .count(),
            components: components(&weights),
            modules: modules::modules(&weights),
            tensors: if list_tensors { weights.tensors().map(tensor).collect() } else { Vec::new() },
            memory: memory_plan(&config, &weights, memory_len),
        })
    }
}

/// The element types of weights that this version computes with.
const FLOAT_DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// The decoder's attention layers, by their canonical names.
fn attentions(config: &ModelConfig) -> impl Iterator<Item = String> {
    (0..config.text.num_hidden_layers).map(|i| format!("{}.layers.{i}.self_attn", prefix::TEXT))
}

/// A linear layer of the decoder, whose weight may be in FP8: its name and shape.
fn projection(spec: &TensorSpec) -> Option<(&str, [usize; 2])> {
    let layer = spec.name.strip_suffix(".weight").filter(|name| name.ends_with("_proj"))?;
    let is_decoders = layer.strip_prefix(prefix::TEXT)?.starts_with(".layers.");
    let &[n, k] = spec.shape.as_slice() else { return None };
    is_decoders.then_some((layer, [n, k]))
}

/// Every tensor of the config is there, has its shape and a type that can be computed with, FP8 weights have their
/// scales, and there is no other tensor.
fn check_tensors(config: &ModelConfig, weights: &WeightSource) -> Result<(), CheckpointError> {
    let infos: BTreeMap<&str, _> = weights.tensors().map(|info| (info.name, info)).collect();
    for spec in config.tensors()? {
        let Some(info) = infos.get(spec.name.as_str()) else {
            return Err(CheckpointError::MissingTensor {
                tensor: spec.name,
                location: weights.location().to_owned(),
                expected: spec.shape,
            });
        };
        let (file, tensor) = (info.file.to_owned(), info.written_name.to_owned());
        if *info.shape != *spec.shape {
            return Err(CheckpointError::WrongShape { file, tensor, expected: spec.shape, got: info.shape.to_vec() });
        }
        if let Some((layer, shape)) = projection(&spec) {
            weights.at(prefix::ALL).linear_scheme(layer, shape)?;
        } else if !FLOAT_DTYPES.contains(&info.dtype.as_str()) {
            let (expected, got) = ("f32, bf16 or f16", info.dtype.to_uppercase());
            return Err(CheckpointError::WrongDType { file, tensor, expected, got });
        }
        weights.skip(&spec.name);
    }
    for attention in attentions(config) {
        weights.at(prefix::ALL).kv_scales(&attention)?;
    }
    if config.tie_word_embeddings {
        // Some checkpoints keep a copy of the table beside a tied head.
        weights.at(prefix::HEAD).skip("weight");
    }
    weights.finish(&[prefix::ALL])
}

fn architecture(config: &ModelConfig) -> BTreeMap<&'static str, serde_json::Value> {
    let (text, vision) = (&config.text, &config.vision);
    BTreeMap::from([
        ("hidden_size", text.hidden_size.into()),
        ("num_hidden_layers", text.num_hidden_layers.into()),
        ("num_attention_heads", text.num_attention_heads.into()),
        ("num_key_value_heads", text.num_key_value_heads.into()),
        ("head_dim", text.head_dim.into()),
        ("intermediate_size", text.intermediate_size.into()),
        ("vocab_size", text.vocab_size.into()),
        ("max_position_embeddings", text.max_position_embeddings.into()),
        ("mrope_section", text.mrope_section.to_vec().into()),
        ("mrope_interleaved", text.mrope_interleaved.into()),
        ("tie_word_embeddings", config.tie_word_embeddings.into()),
        ("vision.depth", vision.depth.into()),
        ("vision.hidden_size", vision.hidden_size.into()),
        ("vision.num_heads", vision.num_heads.into()),
        ("vision.patch_size", vision.patch_size.into()),
        ("vision.spatial_merge_size", vision.spatial_merge_size.into()),
        ("vision.deepstack_visual_indexes", vision.deepstack_visual_indexes.clone().into()),
    ])
}

fn components(weights: &WeightSource) -> Vec<ComponentReport> {
    let parts = weights.summary().into_iter().map(|(component, summary)| ComponentReport {
        component: component.to_string(),
        tensors: summary.num_tensors,
        parameters: summary.num_parameters,
        bytes: summary.len_bytes,
        dtypes: summary.dtypes,
    });
    parts.collect()
}

fn memory_plan(config: &ModelConfig, weights: &WeightSource, max_model_len: usize) -> MemoryPlan {
    // The CPU keeps keys and values as it computes them.
    let kv_bytes_per_token = config.text.kv_bytes_per_token(DType::F32) as u64;
    let kv_cache_bytes = kv_bytes_per_token.saturating_mul(max_model_len as u64);
    let weights_bytes = weights.total_bytes();
    let total_bytes = weights_bytes.saturating_add(kv_cache_bytes);
    MemoryPlan { weights_bytes, kv_bytes_per_token, max_model_len, kv_cache_bytes, total_bytes }
}
