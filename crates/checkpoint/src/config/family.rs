//! The families of models, and the little that only their name decides.

use super::fields::Fields;
use crate::CheckpointError;

/// A family of models: which `model_type` their `config.json` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `qwen2_vl`.
    Qwen2Vl,
    /// `qwen2_5_vl`: windows in the tower.
    Qwen2_5Vl,
    /// `qwen3_vl`: QK-norm, interleaved M-RoPE, position table, deepstack.
    Qwen3Vl,
    /// `qwen3_vl_moe`: Qwen3-VL with experts.
    Qwen3VlMoe,
    /// `qwen3_5`: recurrent layers between full-attention ones.
    Qwen3_5,
    /// `qwen3_5_moe`: Qwen3.5 with experts.
    Qwen3_5Moe,
}

/// What `config.json` may leave out: the ids of the tokens around pictures.
pub(super) struct TokenIds {
    pub(super) image: u32,
    pub(super) video: u32,
    pub(super) vision_start: u32,
    pub(super) vision_end: u32,
}

impl Family {
    /// All families, oldest first.
    pub const ALL: [Self; 6] =
        [Self::Qwen2Vl, Self::Qwen2_5Vl, Self::Qwen3Vl, Self::Qwen3VlMoe, Self::Qwen3_5, Self::Qwen3_5Moe];

    /// Its `model_type` in `config.json`.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2Vl => "qwen2_vl",
            Self::Qwen2_5Vl => "qwen2_5_vl",
            Self::Qwen3Vl => "qwen3_vl",
            Self::Qwen3VlMoe => "qwen3_vl_moe",
            Self::Qwen3_5 => "qwen3_5",
            Self::Qwen3_5Moe => "qwen3_5_moe",
        }
    }

    /// Its published name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qwen2Vl => "Qwen2-VL",
            Self::Qwen2_5Vl => "Qwen2.5-VL",
            Self::Qwen3Vl => "Qwen3-VL",
            Self::Qwen3VlMoe => "Qwen3-VL-MoE",
            Self::Qwen3_5 => "Qwen3.5",
            Self::Qwen3_5Moe => "Qwen3.5-MoE",
        }
    }

    /// Whether it is of the Qwen2 generation: qkv bias, blocked M-RoPE sections, no position table.
    #[must_use]
    pub const fn is_qwen2(self) -> bool {
        matches!(self, Self::Qwen2Vl | Self::Qwen2_5Vl)
    }

    /// Whether it is of the Qwen3.5 generation: recurrent layers, partial rotary.
    #[must_use]
    pub const fn is_qwen3_5(self) -> bool {
        matches!(self, Self::Qwen3_5 | Self::Qwen3_5Moe)
    }

    /// Whether its decoder has experts.
    #[must_use]
    pub const fn has_experts(self) -> bool {
        matches!(self, Self::Qwen3VlMoe | Self::Qwen3_5Moe)
    }

    pub(super) fn parse(root: &Fields<'_>) -> Result<Self, CheckpointError> {
        let got = root.text("model_type")?;
        Self::ALL.into_iter().find(|family| Some(family.model_type()) == got).ok_or_else(|| {
            CheckpointError::UnknownArchitecture {
                file: root.location().to_owned(),
                got: got.unwrap_or("(none given)").chars().take(60).collect(),
                known: Self::ALL.map(Self::model_type).join(", "),
            }
        })
    }

    /// The defaults of transformers 5.17's `configuration_*.py`.
    pub(super) fn default_token_ids(self) -> TokenIds {
        if self.is_qwen3_5() {
            TokenIds { image: 248_056, video: 248_057, vision_start: 248_053, vision_end: 248_054 }
        } else {
            TokenIds { image: 151_655, video: 151_656, vision_start: 151_652, vision_end: 151_653 }
        }
    }
}
