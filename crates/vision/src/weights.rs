//! The tower's weights: linear layers and norms over tensors of the checkpoint.

use std::sync::Arc;

use foveal_checkpoint::{NormKind, Part, VisionConfig, WeightScope};
use foveal_device::{Device, Stream, Tensor, View, ViewMut};
use foveal_kernels::OpError;
use foveal_kernels::linear::{Linear, linear};
use foveal_kernels::norm::{self, AddNorm, add_norm};

use crate::VisionError;

/// Where weights are read from while the tower is put together.
pub(crate) struct Reader<'a> {
    pub(crate) weights: WeightScope<'a>,
    pub(crate) config: &'a VisionConfig,
    pub(crate) device: &'a Device,
}

impl Reader<'_> {
    /// A tensor of the tower.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, VisionError> {
        Ok(self.weights.place_one(self.device, Part::new(name, shape))?)
    }

    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    pub(crate) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<LinearWeights, VisionError> {
        self.linears(&[name], [outputs, inputs], [outputs, inputs])
    }

    /// Linear layers over the same input as one, each `[outputs, inputs]`; on a GPU with as many more zero rows and
    /// columns as `padded` says.
    pub(crate) fn linears(
        &self,
        names: &[&str],
        [outputs, inputs]: [usize; 2],
        padded: [usize; 2],
    ) -> Result<LinearWeights, VisionError> {
        let named = |kind: &str| -> Vec<String> { names.iter().map(|name| format!("{name}.{kind}")).collect() };
        let (weights, biases) = (named("weight"), named("bias"));
        let (weight_shape, bias_shape) = ([outputs, inputs], [outputs]);
        let weight = |name| Part { name, shape: &weight_shape, padded: Some(padded) };
        let bias = |name| Part { name, shape: &bias_shape, padded: Some([padded[0], 1]) };
        let weights: Vec<Part<'_>> = weights.iter().map(|name| weight(name)).collect();
        let biases: Vec<Part<'_>> = biases.iter().map(|name| bias(name)).collect();
        Ok(LinearWeights {
            weights: self.weights.place(self.device, &weights)?,
            bias: Some(self.weights.place_joined(self.device, &biases)?),
        })
    }

    /// The tower's kind of norm over rows of `width`.
    pub(crate) fn norm(&self, name: &str, width: usize) -> Result<NormWeights, VisionError> {
        let (kind, has_bias) = match self.config.norm {
            NormKind::Rms => (norm::NormKind::Rms, false),
            NormKind::Layer => (norm::NormKind::Layer, true),
        };
        let bias = || self.tensor(&format!("{name}.bias"), &[width]);
        Ok(NormWeights {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            bias: has_bias.then(bias).transpose()?,
            kind,
            eps: self.config.norm_eps,
        })
    }
}

/// Elements between an MLP's projections as `device` has them: a GPU's tensor cores take rows in whole 16 bytes and best
/// in whole tiles, and Qwen2.5-VL has 3420.
pub(crate) fn inner_size(device: &Device, config: &VisionConfig) -> usize {
    const WHOLE: usize = 16;
    const TILE: usize = 64;
    let size = config.intermediate_size;
    if device.is_cuda() && !size.is_multiple_of(WHOLE) { size.next_multiple_of(TILE) } else { size }
}

/// `x · weightᵀ + bias`, the outputs of several weights one after another.
pub(crate) struct LinearWeights {
    pub(crate) weights: Vec<Arc<Tensor>>,
    pub(crate) bias: Option<Arc<Tensor>>,
}

impl LinearWeights {
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<(), VisionError> {
        let bias = self.bias.as_ref().map(|bias| bias.view());
        match &self.weights[..] {
            [first] => linear(stream, Linear { x, weight: &[matrix(first)?], bias, scales: None, out })?,
            parts => {
                let weight = parts.iter().map(|part| matrix(part)).collect::<Result<Vec<_>, _>>()?;
                linear(stream, Linear { x, weight: &weight, bias, scales: None, out })?;
            }
        }
        Ok(())
    }
}

/// A weight as `[outputs, inputs]`: a convolution whose kernel is as large as its step is a product over flattened
/// patches.
fn matrix(weight: &Tensor) -> Result<View<'_>, VisionError> {
    let shape = weight.shape();
    let outputs = shape.first().copied().unwrap_or(1);
    Ok(weight.view().reshape(&[outputs, shape.row_len()])?)
}

/// A norm over the rows of the residual stream.
pub(crate) struct NormWeights {
    weight: Arc<Tensor>,
    bias: Option<Arc<Tensor>>,
    kind: norm::NormKind,
    eps: f32,
}

impl NormWeights {
    /// `residual += add; out = norm(residual)`.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        residual: ViewMut<'_>,
        add: Option<View<'_>>,
        out: ViewMut<'_>,
    ) -> Result<(), OpError> {
        let (weight, bias) = (self.weight.view(), self.bias.as_ref().map(|bias| bias.view()));
        add_norm(
            stream,
            AddNorm {
                residual,
                add,
                add_scales: None,
                extra: None,
                weight,
                bias,
                kind: self.kind,
                eps: self.eps,
                quantize: None,
                out,
            },
        )
    }
}
