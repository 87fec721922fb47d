//! The table of settings that makes one decoder serve every family.

use foveal_checkpoint::ModelConfig;
use foveal_device::DType;
use foveal_kernels::KvLayout;
use foveal_kernels::activation::Activation;
use foveal_mrope::{MropeSections, SectionLayout};

use crate::LlmError;

/// What a decoder looks like: everything in which the families differ is a value here. Names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSettings {
    /// Rows of the embedding table, and logits of a row.
    pub vocab_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the MLP's projections.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads, each shared by `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How much of a head is turned, and which axis turns which frequency pair.
    pub mrope: MropeSections,
    /// The longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// q, k and v have biases (Qwen2).
    pub qkv_bias: bool,
    /// q and k are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// The MLP gate's nonlinearity.
    pub hidden_act: Activation,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
}

impl DecoderSettings {
    /// The settings of a model folder's configuration.
    ///
    /// # Errors
    /// [`LlmError::Checkpoint`] for a model that this version can't run, [`LlmError::Mrope`] for sections that no head
    /// can have, [`LlmError::Config`] for values that don't fit each other.
    pub fn new(config: &ModelConfig) -> Result<Self, LlmError> {
        config.ensure_supported()?;
        let text = &config.text;
        let layout = SectionLayout::from_mrope_interleaved(text.mrope_interleaved);
        let mrope = MropeSections::new(text.mrope_section, layout, text.head_dim, text.partial_rotary_factor)?;
        let settings = Self {
            vocab_size: text.vocab_size,
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            num_key_value_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            rms_norm_eps: text.rms_norm_eps,
            rope_theta: text.rope_theta,
            mrope,
            max_position_embeddings: text.max_position_embeddings,
            qkv_bias: text.qkv_bias,
            qk_norm: text.qk_norm,
            hidden_act: activation(text.hidden_act),
            tie_word_embeddings: config.tie_word_embeddings,
        };
        settings.check()?;
        Ok(settings)
    }

    /// What must fit together whatever the settings came from.
    pub(crate) fn check(&self) -> Result<(), LlmError> {
        let bad =
            |field, got: String, expected: &str| Err(LlmError::Config { field, got, expected: expected.to_owned() });
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        // Token ids, rows and slots are counted in 31 bits on the way to the operators.
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size == 0 || *size > i32::MAX as usize) {
            return bad(field, size.to_string(), "a positive 31-bit integer");
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_attention_heads);
            return bad("num_key_value_heads", self.num_key_value_heads.to_string(), &expected);
        }
        if self.mrope.head_dim() != self.head_dim {
            let got = format!("for heads of {} elements", self.mrope.head_dim());
            return bad("mrope_section", got, &format!("sections for heads of {}", self.head_dim));
        }
        Ok(())
    }

    /// How one layer's pages lie in the KV cache.
    #[must_use]
    pub fn kv_layout(&self, dtype: DType) -> KvLayout {
        KvLayout {
            page: KvLayout::DEFAULT_PAGE,
            dtype,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }

    /// Bytes that one token takes in the KV cache, all layers together.
    #[must_use]
    pub fn kv_bytes_per_token(&self, dtype: DType) -> usize {
        self.num_hidden_layers * self.kv_layout(dtype).bytes_per_token()
    }

    /// Elements of a row's queries, and of its attention output.
    pub(crate) fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Elements of a row's keys, and of its values.
    pub(crate) fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

fn activation(hidden_act: foveal_checkpoint::Activation) -> Activation {
    match hidden_act {
        foveal_checkpoint::Activation::Silu => Activation::Silu,
        foveal_checkpoint::Activation::Gelu => Activation::Gelu,
        foveal_checkpoint::Activation::GeluTanh => Activation::GeluTanh,
        foveal_checkpoint::Activation::QuickGelu => Activation::QuickGelu,
    }
}
