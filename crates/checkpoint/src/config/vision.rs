//! The vision tower's settings.

use super::fields::Fields;
use super::text::MAX_LAYERS;
use super::{Activation, Family};
use crate::CheckpointError;

/// The widest patch or window side, in pixels.
const MAX_SIDE_PX: usize = 4096;

/// Epsilon of every norm in the towers: a constant in transformers 5.17's `modeling_qwen2_vl.py`,
/// `modeling_qwen2_5_vl.py` and `modeling_qwen3_vl.py`.
const NORM_EPS: f32 = 1e-6;

/// Base of the tower's rotary frequencies where the config has none (all published ones).
const ROPE_THETA: f64 = 10_000.0;

/// A kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Root mean square, a weight only.
    Rms,
    /// Mean and variance, a weight and a bias.
    Layer,
}

/// Window attention of the Qwen2.5-VL tower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// Side of a window, in pixels.
    pub window_size: usize,
    /// Blocks that attend over the whole picture instead.
    pub fullatt_block_indexes: Vec<usize>,
}

/// Names of the tower's tensors that differ between the families: relative to a block (`blocks.N.`) or to a merger, and
/// without `.weight` and `.bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisionTensorNames {
    /// The gate of a gated MLP.
    pub mlp_gate: Option<&'static str>,
    /// The MLP's first linear layer.
    pub mlp_up: &'static str,
    /// The MLP's last linear layer.
    pub mlp_down: &'static str,
    /// The merger's norm.
    pub merger_norm: &'static str,
    /// The merger's first linear layer.
    pub merger_up: &'static str,
    /// The merger's last linear layer.
    pub merger_down: &'static str,
}

/// The vision tower's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Width of a patch's row. (Qwen2-VL's file calls it `embed_dim`, and `hidden_size` what comes out.)
    pub hidden_size: usize,
    /// Width of an embedding that comes out: the decoder's hidden size.
    pub out_hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Frames that one patch takes.
    pub temporal_patch_size: usize,
    /// Side of the square of patches that becomes one embedding.
    pub spatial_merge_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// The mergers' activation.
    pub merger_act: Activation,
    /// The kind of norm, in blocks and mergers alike.
    pub norm: NormKind,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the MLP is gated: `down(act(gate(x)) * up(x))`.
    pub gated_mlp: bool,
    /// Whether the patch projection has a bias.
    pub patch_bias: bool,
    /// Windows, where the tower has them.
    pub window: Option<WindowConfig>,
    /// `num_position_embeddings`: rows of the learned position table, a square number, where the tower has one.
    pub position_table: Option<usize>,
    /// Blocks after which features are taken for the decoder's first layers, in their order; empty without deepstack.
    pub deepstack_visual_indexes: Vec<usize>,
    /// Temporal positions per second of video (Qwen2.5-VL).
    pub tokens_per_second: Option<u32>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What the tensors are called.
    pub names: VisionTensorNames,
}

impl VisionConfig {
    /// Width of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads.max(1)
    }

    /// Elements of one patch: `in_channels * temporal_patch_size * patch_size * patch_size`.
    #[must_use]
    pub fn patch_len(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches that become one embedding.
    #[must_use]
    pub fn merge_unit(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Width of the merged row that the mergers' linear layers take: `hidden_size * spatial_merge_size^2`.
    #[must_use]
    pub fn merged_size(&self) -> usize {
        self.hidden_size * self.merge_unit()
    }

    pub(super) fn parse(family: Family, fields: &Fields<'_>, text_hidden: usize) -> Result<Self, CheckpointError> {
        let widths = Widths::parse(family, fields)?;
        let is_qwen2_5 = family == Family::Qwen2_5Vl;
        // The old files say `in_chans`; transformers reads `in_channels` only, and both are always 3.
        let in_channels = fields.size("in_channels")?.or(fields.size("in_chans")?).unwrap_or(3);
        let rope = fields.section("rope_parameters")?;
        let config = Self {
            depth: fields.size_within("depth", Some(if family.is_qwen2() { 32 } else { 27 }), MAX_LAYERS)?,
            hidden_size: widths.hidden_size,
            out_hidden_size: widths.out_hidden_size,
            intermediate_size: widths.intermediate_size,
            num_heads: fields.size_or("num_heads", 16)?,
            in_channels,
            patch_size: fields.size_within("patch_size", Some(family.default_patch_size()), MAX_SIDE_PX)?,
            temporal_patch_size: fields.size_within("temporal_patch_size", Some(2), MAX_SIDE_PX)?,
            spatial_merge_size: fields.size_within("spatial_merge_size", Some(2), MAX_SIDE_PX)?,
            hidden_act: Activation::parse(fields, "hidden_act", family.default_vision_act())?,
            merger_act: Activation::Gelu,
            norm: if is_qwen2_5 { NormKind::Rms } else { NormKind::Layer },
            norm_eps: NORM_EPS,
            gated_mlp: is_qwen2_5,
            patch_bias: !family.is_qwen2(),
            window: if is_qwen2_5 { Some(parse_window(fields)?) } else { None },
            position_table: match family.is_qwen2() {
                true => None,
                false => Some(fields.size_or("num_position_embeddings", 2304)?),
            },
            deepstack_visual_indexes: match family {
                Family::Qwen3Vl | Family::Qwen3VlMoe => {
                    fields.sizes("deepstack_visual_indexes")?.unwrap_or_else(|| vec![8, 16, 24])
                }
                _ => Vec::new(),
            },
            tokens_per_second: match is_qwen2_5 {
                true => Some(fields.size_within("tokens_per_second", Some(4), MAX_SIDE_PX)? as u32),
                false => None,
            },
            rope_theta: match &rope {
                Some(rope) => rope.number("rope_theta", 1.0)?.unwrap_or(ROPE_THETA),
                None => ROPE_THETA,
            },
            names: family.vision_tensor_names(),
        };
        config.check(family, fields, text_hidden)?;
        Ok(config)
    }

    /// What must fit together.
    fn check(&self, family: Family, fields: &Fields<'_>, text_hidden: usize) -> Result<(), CheckpointError> {
        let [width_key, out_key] = family.vision_width_keys();
        if self.out_hidden_size != text_hidden {
            return Err(fields.bad(out_key, &format!("the decoder's hidden_size ({text_hidden})")));
        }
        // A head turns in pairs, half of them by row and half by column.
        if !self.hidden_size.is_multiple_of(4 * self.num_heads) {
            let expected = format!("a multiple of 4 times num_heads ({})", self.num_heads);
            return Err(fields.bad(width_key, &expected));
        }
        if self.position_table.is_some_and(|n| n.isqrt().pow(2) != n) {
            return Err(fields.bad("num_position_embeddings", "a square number"));
        }
        let below_depth = format!("a list of blocks below depth ({})", self.depth);
        if self.deepstack_visual_indexes.iter().any(|&i| i >= self.depth) {
            return Err(fields.bad("deepstack_visual_indexes", &below_depth));
        }
        if let Some(window) = &self.window {
            if window.fullatt_block_indexes.iter().any(|&i| i >= self.depth) {
                return Err(fields.bad("fullatt_block_indexes", &below_depth));
            }
            let unit = self.patch_size * self.spatial_merge_size;
            if !window.window_size.is_multiple_of(unit) {
                return Err(fields.bad("window_size", &format!("a multiple of {unit} pixels")));
            }
        }
        Ok(())
    }
}

struct Widths {
    hidden_size: usize,
    out_hidden_size: usize,
    intermediate_size: usize,
}

impl Widths {
    fn parse(family: Family, fields: &Fields<'_>) -> Result<Self, CheckpointError> {
        let [width_key, out_key] = family.vision_width_keys();
        let (width, intermediate) = match family {
            Family::Qwen2Vl => (1280, None),
            Family::Qwen2_5Vl => (3584, Some(3420)),
            _ => (1152, Some(4304)),
        };
        let hidden_size = fields.size_or(width_key, width)?;
        Ok(Self {
            hidden_size,
            out_hidden_size: fields.size_or(out_key, 3584)?,
            intermediate_size: match intermediate {
                Some(default) => fields.size_or("intermediate_size", default)?,
                None => hidden_size * fields.size_within("mlp_ratio", Some(4), MAX_SIDE_PX)?,
            },
        })
    }
}

fn parse_window(fields: &Fields<'_>) -> Result<WindowConfig, CheckpointError> {
    Ok(WindowConfig {
        window_size: fields.size_within("window_size", Some(112), MAX_SIDE_PX)?,
        fullatt_block_indexes: fields.sizes("fullatt_block_indexes")?.unwrap_or_else(|| vec![7, 15, 23, 31]),
    })
}

/// What only the family decides about a tower (transformers 5.17: `configuration_*.py`, `modeling_*.py`).
impl Family {
    const fn vision_width_keys(self) -> [&'static str; 2] {
        match self {
            Self::Qwen2Vl => ["embed_dim", "hidden_size"],
            _ => ["hidden_size", "out_hidden_size"],
        }
    }

    const fn default_patch_size(self) -> usize {
        if self.is_qwen2() { 14 } else { 16 }
    }

    const fn default_vision_act(self) -> Activation {
        match self {
            Self::Qwen2Vl => Activation::QuickGelu,
            Self::Qwen2_5Vl => Activation::Silu,
            _ => Activation::GeluTanh,
        }
    }

    const fn vision_tensor_names(self) -> VisionTensorNames {
        let qwen3 = VisionTensorNames {
            mlp_gate: None,
            mlp_up: "mlp.linear_fc1",
            mlp_down: "mlp.linear_fc2",
            merger_norm: "norm",
            merger_up: "linear_fc1",
            merger_down: "linear_fc2",
        };
        let qwen2 = VisionTensorNames {
            mlp_gate: None,
            mlp_up: "mlp.fc1",
            mlp_down: "mlp.fc2",
            merger_norm: "ln_q",
            merger_up: "mlp.0",
            merger_down: "mlp.2",
        };
        match self {
            Self::Qwen2Vl => qwen2,
            Self::Qwen2_5Vl => VisionTensorNames {
                mlp_gate: Some("mlp.gate_proj"),
                mlp_up: "mlp.up_proj",
                mlp_down: "mlp.down_proj",
                ..qwen2
            },
            _ => qwen3,
        }
    }
}
