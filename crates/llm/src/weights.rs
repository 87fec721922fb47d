//! The decoder's weights, by their names in the checkpoint. Everything stays where it is mapped; only biases that stand
//! beside each other are joined.

use std::sync::Arc;

use foveal_checkpoint::{WeightScope, WeightSource, prefix};
use foveal_device::{DType, Device, DeviceError, Tensor};
use half::{bf16, f16};

use crate::attention::{Attention, QkNormWeights};
use crate::layer::DecoderLayer;
use crate::mlp::Mlp;
use crate::projection::Projection;
use crate::{DecoderSettings, LlmError};

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
    pub(crate) fn load(settings: &DecoderSettings, source: &WeightSource, device: &Device) -> Result<Self, LlmError> {
        let loader = Loader { settings, scope: source.at(prefix::TEXT), device };
        let table_shape = [settings.vocab_size, settings.hidden_size];
        let embed_tokens = loader.scope.get("embed_tokens.weight", &table_shape)?;
        let lm_head = if settings.tie_word_embeddings {
            // Some checkpoints keep a copy of the table; the reference doesn't read it either.
            source.at(prefix::HEAD).skip("weight");
            Arc::clone(&embed_tokens)
        } else {
            source.at(prefix::HEAD).get("weight", &table_shape)?
        };
        Ok(Self {
            embed_tokens,
            layers: (0..settings.num_hidden_layers).map(|i| loader.layer(i)).collect::<Result<_, _>>()?,
            norm: loader.scope.get("norm.weight", &[settings.hidden_size])?,
            lm_head: Projection::Single([lm_head]),
        })
    }
}

struct Loader<'a> {
    settings: &'a DecoderSettings,
    scope: WeightScope<'a>,
    device: &'a Device,
}

impl Loader<'_> {
    fn get(&self, layer: usize, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, LlmError> {
        Ok(self.scope.get(&format!("layers.{layer}.{name}"), shape)?)
    }

    fn layer(&self, i: usize) -> Result<DecoderLayer, LlmError> {
        let hidden = [self.settings.hidden_size];
        Ok(DecoderLayer {
            input_layernorm: self.get(i, "input_layernorm.weight", &hidden)?,
            attention: self.attention(i)?,
            post_attention_layernorm: self.get(i, "post_attention_layernorm.weight", &hidden)?,
            mlp: self.mlp(i)?,
        })
    }

    fn attention(&self, i: usize) -> Result<Attention, LlmError> {
        let s = self.settings;
        let parts = [("q_proj", s.q_size()), ("k_proj", s.kv_size()), ("v_proj", s.kv_size())];
        let weight = |(name, n): (&str, usize)| self.get(i, &format!("self_attn.{name}.weight"), &[n, s.hidden_size]);
        let [q, k, v] = parts;
        let bias = if s.qkv_bias {
            let bias = |(name, n): (&str, usize)| self.get(i, &format!("self_attn.{name}.bias"), &[n]);
            Some(join(self.device, &[bias(q)?, bias(k)?, bias(v)?])?)
        } else {
            None
        };
        let norm = |name: &str| self.get(i, &format!("self_attn.{name}.weight"), &[s.head_dim]);
        Ok(Attention {
            qkv_proj: Projection::Triple([weight(q)?, weight(k)?, weight(v)?], bias),
            qk_norm: match s.qk_norm {
                true => Some(QkNormWeights { q: norm("q_norm")?, k: norm("k_norm")? }),
                false => None,
            },
            o_proj: Projection::Single([self.get(i, "self_attn.o_proj.weight", &[s.hidden_size, s.q_size()])?]),
        })
    }

    fn mlp(&self, i: usize) -> Result<Mlp, LlmError> {
        let (hidden, inner) = (self.settings.hidden_size, self.settings.intermediate_size);
        let gate = self.get(i, "mlp.gate_proj.weight", &[inner, hidden])?;
        let up = self.get(i, "mlp.up_proj.weight", &[inner, hidden])?;
        let down = self.get(i, "mlp.down_proj.weight", &[hidden, inner])?;
        Ok(Mlp { gate_up_proj: Projection::Pair([gate, up]), down_proj: Projection::Single([down]) })
    }
}

/// The parts one after the other, as float32, which holds every value of the narrower types exactly.
fn join(device: &Device, parts: &[Arc<Tensor>]) -> Result<Tensor, DeviceError> {
    let mut values: Vec<f32> = Vec::new();
    for part in parts {
        let view = part.view();
        match part.dtype() {
            DType::BF16 => values.extend(view.as_slice::<bf16>()?.iter().map(|x| x.to_f32())),
            DType::F16 => values.extend(view.as_slice::<f16>()?.iter().map(|x| x.to_f32())),
            _ => values.extend_from_slice(view.as_slice::<f32>()?),
        }
    }
    Tensor::from_slice(device, &values, &[values.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_any_float_type_are_joined_exactly() {
        let device = Device::cpu(1).unwrap();
        let a = Tensor::from_slice(&device, &[bf16::from_f32(1.5), bf16::from_f32(-3.0)], &[2]).unwrap();
        let b = Tensor::from_slice(&device, &[f16::from_f32(0.25)], &[1]).unwrap();
        let c = Tensor::from_slice(&device, &[0.1_f32], &[1]).unwrap();
        let joined = join(&device, &[Arc::new(a), Arc::new(b), Arc::new(c)]).unwrap();
        assert_eq!(joined.view().as_slice::<f32>().unwrap(), [1.5, -3.0, 0.25, 0.1]);
        let ids = Tensor::from_slice(&device, &[1_i32], &[1]).unwrap();
        assert!(matches!(join(&device, &[Arc::new(ids)]), Err(DeviceError::WrongDType { .. })));
    }
}
