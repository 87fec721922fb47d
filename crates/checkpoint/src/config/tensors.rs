//! Which tensors a model has, by its config: what dummy weights are made from and memory is planned with.

use super::{ModelConfig, NormKind, TextConfig, VisionConfig};
use crate::CheckpointError;
use crate::weights::prefix;

/// A tensor that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its canonical name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Collects specs under a prefix.
struct Specs<'a> {
    list: &'a mut Vec<TensorSpec>,
    prefix: String,
}

impl Specs<'_> {
    fn under(&mut self, part: &str) -> Specs<'_> {
        Specs { list: self.list, prefix: format!("{}.{part}", self.prefix) }
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        self.list.push(TensorSpec { name: format!("{}.{name}", self.prefix), shape: shape.to_vec() });
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.add(&format!("{name}.weight"), &[outputs, inputs]);
        if bias {
            self.add(&format!("{name}.bias"), &[outputs]);
        }
    }

    fn norm(&mut self, name: &str, width: usize, kind: NormKind) {
        self.add(&format!("{name}.weight"), &[width]);
        if kind == NormKind::Layer {
            self.add(&format!("{name}.bias"), &[width]);
        }
    }
}

impl ModelConfig {
    /// The tensors that the model needs, by their canonical names.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`] for models that this version can't run.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>, CheckpointError> {
        self.ensure_supported()?;
        let mut list = Vec::new();
        self.vision.tensors(&mut Specs { list: &mut list, prefix: prefix::VISION.to_owned() });
        self.text.tensors(&mut Specs { list: &mut list, prefix: prefix::TEXT.to_owned() });
        if !self.tie_word_embeddings {
            let mut head = Specs { list: &mut list, prefix: prefix::HEAD.to_owned() };
            head.add("weight", &[self.text.vocab_size, self.text.hidden_size]);
        }
        Ok(list)
    }
}

impl TextConfig {
    fn tensors(&self, specs: &mut Specs<'_>) {
        let hidden = self.hidden_size;
        let q_width = self.num_attention_heads * self.head_dim;
        let kv_width = self.num_key_value_heads * self.head_dim;
        specs.add("embed_tokens.weight", &[self.vocab_size, hidden]);
        for i in 0..self.num_hidden_layers {
            let mut layer = specs.under(&format!("layers.{i}"));
            layer.norm("input_layernorm", hidden, NormKind::Rms);
            layer.linear("self_attn.q_proj", q_width, hidden, self.qkv_bias);
            layer.linear("self_attn.k_proj", kv_width, hidden, self.qkv_bias);
            layer.linear("self_attn.v_proj", kv_width, hidden, self.qkv_bias);
            layer.linear("self_attn.o_proj", hidden, q_width, self.attention_output_bias);
            if self.qk_norm {
                layer.norm("self_attn.q_norm", self.head_dim, NormKind::Rms);
                layer.norm("self_attn.k_norm", self.head_dim, NormKind::Rms);
            }
            layer.norm("post_attention_layernorm", hidden, NormKind::Rms);
            layer.linear("mlp.gate_proj", self.intermediate_size, hidden, false);
            layer.linear("mlp.up_proj", self.intermediate_size, hidden, false);
            layer.linear("mlp.down_proj", hidden, self.intermediate_size, false);
        }
        specs.norm("norm", hidden, NormKind::Rms);
    }
}

impl VisionConfig {
    fn tensors(&self, specs: &mut Specs<'_>) {
        let (hidden, names) = (self.hidden_size, &self.names);
        let patch = [hidden, self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size];
        specs.add("patch_embed.proj.weight", &patch);
        if self.patch_bias {
            specs.add("patch_embed.proj.bias", &[hidden]);
        }
        if let Some(rows) = self.position_table {
            specs.add("pos_embed.weight", &[rows, hidden]);
        }
        for i in 0..self.depth {
            let mut block = specs.under(&format!("blocks.{i}"));
            block.norm("norm1", hidden, self.norm);
            block.linear("attn.qkv", 3 * hidden, hidden, true);
            block.linear("attn.proj", hidden, hidden, true);
            block.norm("norm2", hidden, self.norm);
            if let Some(gate) = names.mlp_gate {
                block.linear(gate, self.intermediate_size, hidden, true);
            }
            block.linear(names.mlp_up, self.intermediate_size, hidden, true);
            block.linear(names.mlp_down, hidden, self.intermediate_size, true);
        }
        self.merger_tensors(&mut specs.under("merger"), hidden);
        for i in 0..self.deepstack_visual_indexes.len() {
            // The deepstack mergers normalise after the patches are joined.
            self.merger_tensors(&mut specs.under(&format!("deepstack_merger_list.{i}")), self.merged_size());
        }
    }

    fn merger_tensors(&self, merger: &mut Specs<'_>, norm_width: usize) {
        let (merged, names) = (self.merged_size(), &self.names);
        merger.norm(names.merger_norm, norm_width, self.norm);
        merger.linear(names.merger_up, merged, merged, true);
        merger.linear(names.merger_down, self.out_hidden_size, merged, true);
    }
}
