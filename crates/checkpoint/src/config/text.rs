//! The decoder's settings.

use foveal_device::DType;
use serde_json::Value;

use super::fields::Fields;
use super::{Activation, Family};
use crate::CheckpointError;

/// More layers than any model has.
pub(super) const MAX_LAYERS: usize = 1024;

/// What a decoder layer attends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// Every earlier token.
    FullAttention,
    /// A window of earlier tokens.
    SlidingAttention,
    /// A recurrent state (Qwen3.5).
    LinearAttention,
}

/// The experts of a mixture-of-experts decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts per layer.
    pub num_experts: usize,
    /// Experts that each token visits.
    pub num_experts_per_tok: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
}

/// The decoder's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table, and logits per token.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP; 0 where every layer has experts instead (Qwen3.5-MoE).
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// `default`, or the name of a scaling rule.
    pub rope_type: String,
    /// Frequency pairs that turn with t, h and w; they sum to half the rotary width.
    pub mrope_section: [usize; 3],
    /// Whether the sections alternate pair by pair (Qwen3) or lie in three blocks (Qwen2).
    pub mrope_interleaved: bool,
    /// Share of the head that is turned at all.
    pub partial_rotary_factor: f32,
    /// The longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the query, key and value projections have a bias (Qwen2 style).
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias (`attention_bias` of the Qwen3 style).
    pub attention_output_bias: bool,
    /// Whether queries and keys pass an RMSNorm over the head (Qwen3 style).
    pub qk_norm: bool,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// What each layer attends with.
    pub layer_types: Vec<LayerType>,
    /// The experts, where there are some.
    pub moe: Option<MoeConfig>,
    /// Tokens that end an answer, by the model's config; [`super::GenerationConfig`] has the last word.
    pub eos_token_id: Vec<u32>,
    /// The token that begins a text; no published template writes it.
    pub bos_token_id: Option<u32>,
}

impl TextConfig {
    /// Width of the part of a head that rotary embedding turns, in elements.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * f64::from(self.partial_rotary_factor)).round() as usize
    }

    /// Bytes that one token takes in the KV cache over all layers, in elements of `dtype`; recurrent layers keep none.
    #[must_use]
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        let num_layers = self.layer_types.iter().filter(|t| **t != LayerType::LinearAttention).count();
        2 * num_layers * self.num_key_value_heads * self.head_dim * dtype.size_bytes()
    }

    pub(super) fn parse(family: Family, fields: &Fields<'_>) -> Result<Self, CheckpointError> {
        let hidden_size = fields.required_size("hidden_size")?;
        let num_attention_heads = fields.required_size("num_attention_heads")?;
        let num_key_value_heads = fields.size_or("num_key_value_heads", num_attention_heads)?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(fields.bad("num_key_value_heads", &format!("a divisor of {num_attention_heads} heads")));
        }
        let num_hidden_layers = fields.size_within("num_hidden_layers", None, MAX_LAYERS)?;
        let head_dim = parse_head_dim(family, fields, hidden_size, num_attention_heads)?;
        let rope = Rope::parse(family, fields, head_dim)?;
        let attention_bias = fields.bool_or("attention_bias", false)?;
        let moe = parse_moe(family, fields)?;
        Ok(Self {
            vocab_size: fields.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: match (fields.size("intermediate_size")?, &moe) {
                (Some(size), _) => size,
                (None, Some(_)) => 0,
                (None, None) => return Err(fields.bad("intermediate_size", "a positive integer")),
            },
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: fields.number("rms_norm_eps", 0.0)?.unwrap_or(family.default_rms_norm_eps()) as f32,
            rope_theta: rope.theta,
            rope_type: rope.kind,
            mrope_section: rope.section,
            mrope_interleaved: rope.interleaved,
            partial_rotary_factor: rope.partial as f32,
            max_position_embeddings: fields.size_or("max_position_embeddings", family.default_max_positions())?,
            qkv_bias: family.is_qwen2() || attention_bias,
            attention_output_bias: !family.is_qwen2() && attention_bias,
            qk_norm: !family.is_qwen2(),
            hidden_act: Activation::parse(fields, "hidden_act", Activation::Silu)?,
            layer_types: parse_layer_types(family, fields, num_hidden_layers)?,
            moe,
            eos_token_id: fields.ids("eos_token_id")?,
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
        })
    }
}

/// Defaults of transformers 5.17's `configuration_*.py` for fields that published files leave out.
impl Family {
    const fn default_rms_norm_eps(self) -> f64 {
        if self.is_qwen2() { 1e-5 } else { 1e-6 }
    }

    const fn default_max_positions(self) -> usize {
        if self.is_qwen2() || self.is_qwen3_5() { 32_768 } else { 128_000 }
    }

    const fn default_rope_theta(self) -> f64 {
        match self {
            Self::Qwen2Vl | Self::Qwen2_5Vl => 1_000_000.0,
            Self::Qwen3Vl | Self::Qwen3VlMoe => 500_000.0,
            Self::Qwen3_5 | Self::Qwen3_5Moe => 10_000.0,
        }
    }

    const fn default_mrope_section(self) -> [usize; 3] {
        match self {
            Self::Qwen2Vl | Self::Qwen2_5Vl => [16, 24, 24],
            Self::Qwen3Vl | Self::Qwen3VlMoe => [24, 20, 20],
            Self::Qwen3_5 | Self::Qwen3_5Moe => [11, 11, 10],
        }
    }
}

/// The Qwen2 generation has no `head_dim` of its own: its attention divides the hidden size.
fn parse_head_dim(
    family: Family,
    fields: &Fields<'_>,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, CheckpointError> {
    if !family.is_qwen2() {
        let default = match family {
            Family::Qwen3_5 | Family::Qwen3_5Moe => 256,
            Family::Qwen3VlMoe => hidden_size / num_heads,
            _ => 128,
        };
        let head_dim = fields.size_or("head_dim", default)?;
        return if head_dim.is_multiple_of(2) && head_dim > 0 {
            Ok(head_dim)
        } else {
            Err(fields.bad("head_dim", "even"))
        };
    }
    if hidden_size.is_multiple_of(2 * num_heads) {
        Ok(hidden_size / num_heads)
    } else {
        Err(fields.bad("hidden_size", &format!("a multiple of {num_heads} heads of an even width")))
    }
}

struct Rope {
    kind: String,
    theta: f64,
    section: [usize; 3],
    interleaved: bool,
    partial: f64,
}

impl Rope {
    /// `rope_parameters` since transformers 5, before that `rope_scaling` with `rope_theta` beside it.
    fn parse(family: Family, fields: &Fields<'_>, head_dim: usize) -> Result<Self, CheckpointError> {
        let key = if fields.value("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
        let rope = fields.section(key)?;
        let (kind, section, interleaved, theta, partial) = match &rope {
            None => (None, None, None, None, None),
            Some(rope) => (
                rope.text("rope_type")?.or(rope.text("type")?),
                rope.sizes("mrope_section")?,
                Some(rope.bool_or("mrope_interleaved", !family.is_qwen2())?),
                rope.number("rope_theta", 1.0)?,
                rope.number("partial_rotary_factor", 0.0)?,
            ),
        };
        let theta = theta.or(fields.number("rope_theta", 1.0)?).unwrap_or(family.default_rope_theta());
        let default_partial = if family.is_qwen3_5() { 0.25 } else { 1.0 };
        let partial = partial.or(fields.number("partial_rotary_factor", 0.0)?).unwrap_or(default_partial);
        let rotary_dim = (head_dim as f64 * partial).round() as usize;
        let owner = rope.as_ref().unwrap_or(fields);
        let section = section.unwrap_or_else(|| family.default_mrope_section().to_vec());
        let section = <[usize; 3]>::try_from(section)
            .ok()
            .filter(|s| partial <= 1.0 && 2 * s.iter().sum::<usize>() == rotary_dim)
            .ok_or_else(|| {
                let expected = format!("three integers that sum to {}, half of the rotary width", rotary_dim / 2);
                let mut error = owner.bad("mrope_section", &expected);
                if let (CheckpointError::BadField { got, .. }, Some(value)) = (&mut error, owner.value("mrope_section"))
                {
                    *got = value.to_string().chars().take(60).collect();
                }
                error
            })?;
        // The old files call the plain rule by the name of the sections.
        let kind = kind.filter(|&kind| kind != "mrope").unwrap_or("default").to_owned();
        Ok(Self { kind, theta, section, interleaved: interleaved.unwrap_or(!family.is_qwen2()), partial })
    }
}

fn parse_moe(family: Family, fields: &Fields<'_>) -> Result<Option<MoeConfig>, CheckpointError> {
    if !family.has_experts() {
        return Ok(None);
    }
    // transformers 5 writes `num_local_experts` for what the published files call `num_experts`.
    let key = if fields.value("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    Ok(Some(MoeConfig {
        num_experts: fields.required_size(key)?,
        num_experts_per_tok: fields.required_size("num_experts_per_tok")?,
        moe_intermediate_size: fields.required_size("moe_intermediate_size")?,
    }))
}

fn parse_layer_types(
    family: Family,
    fields: &Fields<'_>,
    num_layers: usize,
) -> Result<Vec<LayerType>, CheckpointError> {
    let expected = format!("{num_layers} of full_attention, sliding_attention, linear_attention");
    let named = |value: &Value| match value.as_str() {
        Some("full_attention") => Some(LayerType::FullAttention),
        Some("sliding_attention") => Some(LayerType::SlidingAttention),
        Some("linear_attention") => Some(LayerType::LinearAttention),
        _ => None,
    };
    if let Some(value) = fields.value("layer_types") {
        let list: Option<Vec<_>> = value.as_array().and_then(|items| items.iter().map(named).collect());
        return list.filter(|l| l.len() == num_layers).ok_or_else(|| fields.bad("layer_types", &expected));
    }
    if family.is_qwen3_5() {
        let interval = fields.size_or("full_attention_interval", 4)?;
        let kind = |i: usize| match (i + 1).is_multiple_of(interval) {
            true => LayerType::FullAttention,
            false => LayerType::LinearAttention,
        };
        return Ok((0..num_layers).map(kind).collect());
    }
    let slides = fields.bool_or("use_sliding_window", false)? && fields.value("sliding_window").is_some();
    let first_sliding = match fields.value("max_window_layers") {
        Some(value) => value.as_u64().ok_or_else(|| fields.bad("max_window_layers", "an integer"))?,
        None => 0,
    };
    let kind = |i: usize| match slides && i as u64 >= first_sliding {
        true => LayerType::SlidingAttention,
        false => LayerType::FullAttention,
    };
    Ok((0..num_layers).map(kind).collect())
}
