//! The decoder's weights, by their names in the checkpoint. On the CPU everything stays where it is mapped, and only
//! biases that stand beside each other are joined; on a GPU projections over the same input are one tensor.

mod linear;

use std::sync::Arc;

use foveal_checkpoint::{Part, WeightScope, WeightSource, prefix};
use foveal_device::{Device, Tensor};
use foveal_kernels::KvScales;

use crate::attention::{Attention, QkNormWeights};
use crate::layer::DecoderLayer;
use crate::mlp::Mlp;
use crate::projection::{Projection, WeightFormat};
use crate::workspace::Fp8Inputs;
use crate::{DecoderSettings, LlmError, Quantization};
use linear::LinearLayers;

/// Everything that the decoder reads from the checkpoint.
#[derive(Debug)]
pub(crate) struct DecoderWeights {
    /// `[vocab_size, hidden_size]`
    pub(crate) embed_tokens: Arc<Tensor>,
    pub(crate) layers: Vec<DecoderLayer>,
    /// `[hidden_size]`
    pub(crate) norm: Arc<Tensor>,
    /// `[vocab_size, hidden_size]`; the embedding table where the head is tied.
    pub(crate) lm_head: Projection,
}

impl DecoderWeights {
    pub(crate) fn load(
        settings: &DecoderSettings,
        source: &WeightSource,
        device: &Device,
        quantization: Quantization,
    ) -> Result<Self, LlmError> {
        let loader = Loader { settings, scope: source.at(prefix::TEXT), device, quantization };
        let table_shape = [settings.vocab_size, settings.hidden_size];
        let embed_tokens = loader.one("embed_tokens.weight", &table_shape)?;
        let lm_head = if settings.tie_word_embeddings {
            // Some checkpoints keep a copy of the table; the reference doesn't read it either.
            source.at(prefix::HEAD).skip("weight");
            Arc::clone(&embed_tokens)
        } else {
            source.at(prefix::HEAD).place_one(device, Part::new("weight", &table_shape))?
        };
        Ok(Self {
            embed_tokens,
            layers: (0..settings.num_hidden_layers).map(|i| loader.layer(i)).collect::<Result<_, _>>()?,
            norm: loader.one("norm.weight", &[settings.hidden_size])?,
            lm_head: Projection::new(vec![lm_head], WeightFormat::Float, None),
        })
    }

    /// What some layer reads as FP8.
    pub(crate) fn fp8_inputs(&self) -> Fp8Inputs {
        let any = |is_fp8: fn(&DecoderLayer) -> bool| self.layers.iter().any(is_fp8);
        Fp8Inputs {
            normed: any(|layer| layer.attention.qkv_proj.is_fp8() || layer.mlp.gate_up_proj.is_fp8()),
            attn: any(|layer| layer.attention.o_proj.is_fp8()),
            inner: any(|layer| layer.mlp.down_proj.is_fp8()),
        }
    }
}

struct Loader<'a> {
    settings: &'a DecoderSettings,
    scope: WeightScope<'a>,
    device: &'a Device,
    quantization: Quantization,
}

impl Loader<'_> {
    fn one(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, LlmError> {
        Ok(self.scope.place_one(self.device, Part::new(name, shape))?)
    }

    fn layer(&self, i: usize) -> Result<DecoderLayer, LlmError> {
        let hidden = [self.settings.hidden_size];
        let norm = |name: &str| self.one(&format!("layers.{i}.{name}.weight"), &hidden);
        Ok(DecoderLayer {
            input_layernorm: norm("input_layernorm")?,
            attention: self.attention(i)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: self.mlp(i)?,
        })
    }

    /// Linear layers over the same input as one: `{name}.weight` `[n, k]` each, and their biases.
    fn projection(&self, i: usize, parts: &[(&str, usize)], k: usize, has_bias: bool) -> Result<Projection, LlmError> {
        LinearLayers::new(self, i, parts, k, has_bias).load()
    }

    fn attention(&self, i: usize) -> Result<Attention, LlmError> {
        let s = self.settings;
        let qkv =
            [("self_attn.q_proj", s.q_size()), ("self_attn.k_proj", s.kv_size()), ("self_attn.v_proj", s.kv_size())];
        let norm = |name: &str| self.one(&format!("layers.{i}.self_attn.{name}.weight"), &[s.head_dim]);
        Ok(Attention {
            qkv_proj: self.projection(i, &qkv, s.hidden_size, s.qkv_bias)?,
            qk_norm: match s.qk_norm {
                true => Some(QkNormWeights { q: norm("q_norm")?, k: norm("k_norm")? }),
                false => None,
            },
            o_proj: self.projection(i, &[("self_attn.o_proj", s.hidden_size)], s.q_size(), false)?,
            kv_scales: self.scope.kv_scales(&format!("layers.{i}.self_attn"))?.map(|[k, v]| KvScales { k, v }),
        })
    }

    fn mlp(&self, i: usize) -> Result<Mlp, LlmError> {
        let (hidden, inner) = (self.settings.hidden_size, self.settings.intermediate_size);
        let gate_up = [("mlp.gate_proj", inner), ("mlp.up_proj", inner)];
        Ok(Mlp {
            gate_up_proj: self.projection(i, &gate_up, hidden, false)?,
            down_proj: self.projection(i, &[("mlp.down_proj", hidden)], inner, false)?,
        })
    }
}
