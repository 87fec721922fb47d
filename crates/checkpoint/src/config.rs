//! `config.json` in all its published forms, as one table of settings.

mod family;
mod fields;
mod generation;
mod quantization;
mod tensors;
mod text;
mod vision;

pub use family::Family;
pub use generation::GenerationConfig;
pub use quantization::{Fp8Config, LayerQuantization, QuantizationConfig};
pub use tensors::TensorSpec;
pub use text::{LayerType, MoeConfig, TextConfig};
pub use vision::{NormKind, VisionConfig, VisionTensorNames, WindowConfig};

use foveal_device::DType;
use serde_json::Value;

use crate::folder::parse_json;
use crate::{CheckpointError, ModelFolder};
use fields::Fields;

const FILE: &str = "config.json";
/// Where ModelOpt says how it quantised, if `config.json` doesn't.
const MODELOPT_FILE: &str = "hf_quant_config.json";

/// What works where a quantised checkpoint doesn't.
const QUANTISED_INSTEAD: &str = "FP8 (e4m3) with scales per tensor, per channel or in 128x128 blocks works, and so does \
                                 the bf16 checkpoint of the same model (its name has no FP8, AWQ or GPTQ)";

/// An element-wise function between two linear layers, by the names of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `silu`: x * sigmoid(x).
    Silu,
    /// `gelu_pytorch_tanh`: GELU by its tanh approximation.
    GeluTanh,
    /// `quick_gelu`: x * sigmoid(1.702 x).
    QuickGelu,
    /// `gelu`: GELU by the error function.
    Gelu,
}

impl Activation {
    fn parse(fields: &Fields<'_>, key: &str, default: Self) -> Result<Self, CheckpointError> {
        match fields.text(key)? {
            None => Ok(default),
            Some("silu") => Ok(Self::Silu),
            Some("gelu_pytorch_tanh") => Ok(Self::GeluTanh),
            Some("quick_gelu") => Ok(Self::QuickGelu),
            Some("gelu") => Ok(Self::Gelu),
            Some(_) => Err(fields.bad(key, "one of silu, gelu_pytorch_tanh, quick_gelu, gelu")),
        }
    }
}

/// A model's settings. Fields keep the spelling of the published `config.json`.
///
/// What differs between the families is brought to settings here, so that one decoder and one tower serve them all.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family the model is of.
    pub family: Family,
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The placeholder that one row of an image's embeddings takes.
    pub image_token_id: u32,
    /// The placeholder that one row of a video's embeddings takes.
    pub video_token_id: u32,
    /// Stands before a picture's placeholders.
    pub vision_start_token_id: u32,
    /// Stands after a picture's placeholders.
    pub vision_end_token_id: u32,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// How the weights are quantised, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// The element type that the checkpoint says it is in; the tensors themselves decide.
    pub dtype: DType,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder, and `hf_quant_config.json` where only that says how the weights are
    /// quantised.
    ///
    /// # Errors
    /// [`CheckpointError::MissingFile`], [`CheckpointError::Unreadable`] and what [`ModelConfig::from_json`] says, of
    /// either file.
    pub fn load(folder: &ModelFolder) -> Result<Self, CheckpointError> {
        let file = folder.locate(FILE);
        let Some(bytes) = folder.file(FILE)? else {
            return Err(CheckpointError::MissingFile { file, purpose: "the model's architecture" });
        };
        let mut config = Self::from_json(&bytes, &file)?;
        if config.quantization.is_none()
            && let Some(value) = folder.json(MODELOPT_FILE)?
        {
            let file = folder.locate(MODELOPT_FILE);
            let root = Fields::root(&value, &file)?;
            config.quantization = Some(QuantizationConfig::parse_modelopt_file(&root)?);
        }
        Ok(config)
    }

    /// Reads the bytes of a `config.json`; `location` is how errors name it.
    ///
    /// # Errors
    /// [`CheckpointError::NotJson`], [`CheckpointError::UnknownArchitecture`], or [`CheckpointError::BadField`] for
    /// values that are missing, out of range or don't fit together.
    pub fn from_json(bytes: &[u8], location: &str) -> Result<Self, CheckpointError> {
        let value = parse_json(bytes, location)?;
        let root = Fields::root(&value, location)?;
        let family = Family::parse(&root)?;
        let text_section = root.section("text_config")?;
        let text_fields = text_section.as_ref().unwrap_or(&root);
        let text = TextConfig::parse(family, text_fields)?;
        let vision_section = root.section("vision_config")?.ok_or_else(|| root.bad("vision_config", "an object"))?;
        let vision = VisionConfig::parse(family, &vision_section, text.hidden_size)?;

        let ids = family.default_token_ids();
        let config = Self {
            family,
            image_token_id: root.id_or("image_token_id", ids.image)?,
            video_token_id: root.id_or("video_token_id", ids.video)?,
            vision_start_token_id: root.id_or("vision_start_token_id", ids.vision_start)?,
            vision_end_token_id: root.id_or("vision_end_token_id", ids.vision_end)?,
            // The Qwen2 generation also kept it beside the text fields (transformers 5.17,
            // configuration_qwen2_vl.py); for the others only the outer field counts.
            tie_word_embeddings: root.bool_or("tie_word_embeddings", false)?
                || (family.is_qwen2() && text_fields.bool_or("tie_word_embeddings", false)?),
            quantization: QuantizationConfig::parse(&root)?,
            dtype: parse_dtype(&root, text_fields)?,
            text,
            vision,
        };
        config.check_token_ids(&root)?;
        Ok(config)
    }

    fn check_token_ids(&self, root: &Fields<'_>) -> Result<(), CheckpointError> {
        let ids = [
            ("image_token_id", self.image_token_id),
            ("video_token_id", self.video_token_id),
            ("vision_start_token_id", self.vision_start_token_id),
            ("vision_end_token_id", self.vision_end_token_id),
        ];
        match ids.iter().find(|(_, id)| *id as usize >= self.text.vocab_size) {
            Some((key, _)) => Err(root.bad(key, &format!("below vocab_size ({})", self.text.vocab_size))),
            None => Ok(()),
        }
    }

    /// Refuses by name what this version can't run: experts, recurrent layers, weights quantised to
    /// anything but FP8 (e4m3), unusual settings.
    /// Call it before anything is loaded; `inspect` can do without.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] with the feature and the version of the model that would work.
    pub fn ensure_supported(&self) -> Result<(), CheckpointError> {
        let refuse = |feature: String, instead: &str| {
            Err(CheckpointError::Unsupported { model: self.family.name(), feature, instead: instead.to_owned() })
        };
        if let Some(moe) = &self.text.moe {
            let feature = format!("a decoder of {} experts", moe.num_experts);
            return refuse(feature, "a dense Qwen3-VL (2B, 4B, 8B, 32B) works");
        }
        if self.family.is_qwen3_5() {
            return refuse(
                "its linear-attention (recurrent) layers".to_owned(),
                "a dense Qwen3-VL (2B, 4B, 8B, 32B) works",
            );
        }
        if let Some(feature) = self.quantization.as_ref().and_then(QuantizationConfig::unsupported) {
            return refuse(feature, QUANTISED_INSTEAD);
        }
        if self.text.layer_types.contains(&LayerType::SlidingAttention) {
            return refuse("sliding-window attention".to_owned(), "a checkpoint with use_sliding_window false works");
        }
        if self.text.rope_type != "default" {
            let feature = format!("RoPE scaling of type `{}`", self.text.rope_type);
            return refuse(feature, "a checkpoint with the published rope settings works");
        }
        if self.text.hidden_act != Activation::Silu {
            return refuse(format!("{:?} in the decoder", self.text.hidden_act), "hidden_act silu works");
        }
        if self.text.attention_output_bias {
            return refuse(
                "a bias on the attention's output".to_owned(),
                "a checkpoint with attention_bias false works",
            );
        }
        Ok(())
    }
}

/// `dtype`, or `torch_dtype` before transformers 4.56; outside or beside the text fields.
fn parse_dtype(root: &Fields<'_>, text: &Fields<'_>) -> Result<DType, CheckpointError> {
    for (fields, key) in [(root, "dtype"), (root, "torch_dtype"), (text, "dtype"), (text, "torch_dtype")] {
        match fields.text(key)? {
            None => {}
            Some("bfloat16") => return Ok(DType::BF16),
            Some("float16") => return Ok(DType::F16),
            Some("float32") => return Ok(DType::F32),
            Some(_) => return Err(fields.bad(key, "one of bfloat16, float16, float32")),
        }
    }
    Ok(DType::BF16)
}

/// How errors print a JSON value: short, and never a whole section.
fn describe(value: Option<&Value>) -> String {
    match value {
        None => "missing".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(Value::Array(items)) => format!("a list of {} items", items.len()),
        Some(Value::String(s)) => format!("`{}`", s.chars().take(60).collect::<String>()),
        Some(other) => other.to_string(),
    }
}
