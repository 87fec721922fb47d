//! One block: attention inside each segment, then an MLP.

use foveal_checkpoint::Activation;
use foveal_device::{Stream, View};
use foveal_kernels::activation::{self, Activate, Gated, activate, gated};
use foveal_kernels::varlen_attention::{VarlenAttention, varlen_attention};
use foveal_kernels::vision_rope::{VisionRope, vision_rope};

use crate::VisionError;
use crate::weights::{LinearWeights, NormWeights, Reader, inner_size};
use crate::workspace::Activations;

/// The weights of one block.
pub(crate) struct Block {
    norm1: NormWeights,
    qkv: LinearWeights,
    proj: LinearWeights,
    norm2: NormWeights,
    mlp: Mlp,
    num_heads: usize,
    head_dim: usize,
}

/// `down(act(up(x)))`, or `down(act(gate(x)) * up(x))`.
struct Mlp {
    /// One layer, or gate and up as one.
    up: LinearWeights,
    is_gated: bool,
    act: activation::Activation,
    down: LinearWeights,
    intermediate_size: usize,
}

/// What the rows of a batch are to a block.
pub(crate) struct Rows<'a> {
    /// How many.
    pub(crate) num_patches: usize,
    /// i32 `[num_patches, 2]`
    pub(crate) positions: View<'a>,
    /// f32 `[max_hw, head_dim / 4]`
    pub(crate) cos: View<'a>,
    /// f32 `[max_hw, head_dim / 4]`
    pub(crate) sin: View<'a>,
    /// i32 `[num_segments + 1]`
    pub(crate) cu_seqlens: View<'a>,
}

impl Block {
    pub(crate) fn load(reader: &Reader<'_>, index: usize) -> Result<Self, VisionError> {
        let config = reader.config;
        let (hidden, inside, names) = (config.hidden_size, config.intermediate_size, config.names);
        let padded = inner_size(reader.device, config);
        let at = |name: &str| format!("blocks.{index}.{name}");
        let (up, down) = (at(names.mlp_up), at(names.mlp_down));
        let gate = names.mlp_gate.map(at);
        let ups: Vec<&str> = gate.iter().chain([&up]).map(String::as_str).collect();
        let mlp = Mlp {
            is_gated: gate.is_some(),
            up: reader.linears(&ups, [inside, hidden], [padded, hidden])?,
            act: op_activation(config.hidden_act),
            down: reader.linears(&[&down], [hidden, inside], [hidden, padded])?,
            intermediate_size: padded,
        };
        Ok(Self {
            norm1: reader.norm(&at("norm1"), hidden)?,
            qkv: reader.linear(&at("attn.qkv"), 3 * hidden, hidden)?,
            proj: reader.linear(&at("attn.proj"), hidden, hidden)?,
            norm2: reader.norm(&at("norm2"), hidden)?,
            mlp,
            num_heads: config.num_heads,
            head_dim: config.head_dim(),
        })
    }

    /// Leaves the MLP's output in `branch`: the next norm adds it to `residual`. `has_branch` says whether the block
    /// before left something there.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        rows: &Rows<'_>,
        activations: &mut Activations,
        has_branch: bool,
    ) -> Result<(), VisionError> {
        let Activations { residual, branch, normed, wide, .. } = activations;
        let (n, heads, head_dim) = (rows.num_patches, self.num_heads, self.head_dim);
        let dims = [n, heads * head_dim]; // [num_patches, hidden_size]
        let qkv = [n, 3, heads, head_dim];
        let add = has_branch.then(|| branch.view(&dims)).transpose()?;
        self.norm1.forward(stream, residual.view_mut(&dims)?, add, normed.view_mut(&dims)?)?;
        self.qkv.forward(stream, normed.view(&dims)?, wide.view_mut(&[n, 3 * heads * head_dim])?)?;
        let Rows { positions, cos, sin, cu_seqlens, .. } = *rows;
        vision_rope(stream, VisionRope { qkv: wide.view_mut(&qkv)?, positions, cos, sin })?;
        let scale = (head_dim as f32).sqrt().recip();
        let out = normed.view_mut(&dims)?;
        varlen_attention(stream, VarlenAttention { qkv: wide.view(&qkv)?, cu_seqlens, scale, out })?;
        self.proj.forward(stream, normed.view(&dims)?, branch.view_mut(&dims)?)?;
        let add = Some(branch.view(&dims)?);
        self.norm2.forward(stream, residual.view_mut(&dims)?, add, normed.view_mut(&dims)?)?;
        self.mlp.forward(stream, activations, dims)
    }
}

impl Mlp {
    /// `normed` to `branch`, both `dims`.
    fn forward(&self, stream: &Stream, activations: &mut Activations, dims: [usize; 2]) -> Result<(), VisionError> {
        let Activations { branch, normed, wide, narrow, .. } = activations;
        let inside = [dims[0], self.intermediate_size];
        let kind = self.act;
        if self.is_gated {
            let both = [dims[0], 2 * self.intermediate_size];
            self.up.forward(stream, normed.view(&dims)?, wide.view_mut(&both)?)?;
            gated(
                stream,
                Gated {
                    gate_up: wide.view(&both)?,
                    scales: None,
                    kind,
                    quantize: None,
                    out: narrow.view_mut(&inside)?,
                },
            )?;
        } else {
            self.up.forward(stream, normed.view(&dims)?, wide.view_mut(&inside)?)?;
            activate(stream, Activate { x: wide.view(&inside)?, kind, out: narrow.view_mut(&inside)? })?;
        }
        self.down.forward(stream, narrow.view(&inside)?, branch.view_mut(&dims)?)
    }
}

/// The operator's name for the config's activation.
pub(crate) fn op_activation(act: Activation) -> activation::Activation {
    match act {
        Activation::Silu => activation::Activation::Silu,
        Activation::GeluTanh => activation::Activation::GeluTanh,
        Activation::QuickGelu => activation::Activation::QuickGelu,
        Activation::Gelu => activation::Activation::Gelu,
    }
}
