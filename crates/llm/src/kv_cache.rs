//! The paged KV cache.

use foveal_device::{DType, Device, Tensor};
use foveal_kernels::KvLayout;

use crate::{DecoderSettings, LlmError};

/// One layer's pages: keys and values, each `[num_blocks, num_kv_heads, page, head_dim]`.
#[derive(Debug)]
pub(crate) struct PagedLayer {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// Keys and values of every token that may still be attended to, in pages that any sequence can be given. Which pages
/// belong to whom is the caller's business: the cache is memory, its block tables come with each [`crate::Batch`].
///
/// One entry per layer, so that a layer of another kind keeps its own kind of state.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    num_blocks: usize,
    layers: Vec<PagedLayer>,
}

impl KvCache {
    /// A cache of `num_blocks` pages of [`KvLayout::DEFAULT_PAGE`] tokens, with keys and values as `dtype`.
    ///
    /// # Errors
    /// [`LlmError::CacheDType`] for a dtype that holds no real numbers, [`LlmError::Limits`] for no pages or more than
    /// 31 bits count, [`LlmError::Device`] when memory is short.
    pub fn new(settings: &DecoderSettings, device: &Device, num_blocks: usize, dtype: DType) -> Result<Self, LlmError> {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16 | DType::F8E4M3) {
            return Err(LlmError::CacheDType { dtype });
        }
        if num_blocks == 0 || num_blocks > i32::MAX as usize {
            let expected = "a positive 31-bit integer".to_owned();
            return Err(LlmError::Limits { limit: "num_blocks", got: num_blocks, expected });
        }
        let layout = settings.kv_layout(dtype);
        let shape = layout.cache_shape(num_blocks);
        let layer =
            |_| Ok(PagedLayer { k: Tensor::zeros(device, dtype, &shape)?, v: Tensor::zeros(device, dtype, &shape)? });
        let layers = (0..settings.num_hidden_layers).map(layer).collect::<Result<_, LlmError>>()?;
        Ok(Self { layout, num_blocks, layers })
    }

    /// How the pages of one layer lie.
    #[must_use]
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Pages.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens that the cache holds at most.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.num_blocks * self.layout.page
    }

    /// Bytes that one token takes, all layers together.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.layers.len() * self.layout.bytes_per_token()
    }

    /// Bytes of the whole cache.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.capacity_tokens() * self.bytes_per_token()
    }

    /// Refuses a cache that was made for a decoder of another shape.
    pub(crate) fn check(&self, settings: &DecoderSettings) -> Result<(), LlmError> {
        let expected = settings.kv_layout(self.layout.dtype);
        if self.layout == expected && self.layers.len() == settings.num_hidden_layers {
            return Ok(());
        }
        Err(LlmError::CacheMismatch {
            got: format!("{} layers of {:?}", self.layers.len(), self.layout),
            expected: format!("{} layers of {expected:?}", settings.num_hidden_layers),
        })
    }

    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut PagedLayer> {
        self.layers.iter_mut()
    }
}
