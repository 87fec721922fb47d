//! The tower's weights: linear layers and norms over tensors of the checkpoint.

use std::sync::Arc;

use foveal_checkpoint::{NormKind, VisionConfig, WeightScope};
use foveal_device::{DType, Device, Stream, Tensor, View, ViewMut};
use foveal_kernels::OpError;
use foveal_kernels::linear::{Linear, linear};
use foveal_kernels::norm::{self, AddNorm, add_norm};
use half::{bf16, f16};

use crate::VisionError;

/// Where weights are read from while the tower is put together.
pub(crate) struct Reader<'a> {
    pub(crate) weights: WeightScope<'a>,
    pub(crate) config: &'a VisionConfig,
    pub(crate) device: &'a Device,
}

impl Reader<'_> {
    /// A tensor of the tower, in place.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Arc<Tensor>, VisionError> {
        Ok(self.weights.get(name, shape)?)
    }

    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    pub(crate) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<LinearWeights, VisionError> {
        Ok(LinearWeights {
            weight: self.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            second: None,
            bias: Some(self.tensor(&format!("{name}.bias"), &[outputs])?),
        })
    }

    /// Two linear layers over the same input as one: the weights stay where they are, the biases are joined.
    pub(crate) fn linear_pair(
        &self,
        names: [&str; 2],
        outputs: usize,
        inputs: usize,
    ) -> Result<LinearWeights, VisionError> {
        let [first, second] = [self.linear(names[0], outputs, inputs)?, self.linear(names[1], outputs, inputs)?];
        let mut bias = Vec::with_capacity(2 * outputs);
        for part in [&first.bias, &second.bias].into_iter().flatten() {
            bias.extend(to_f32(&part.view())?);
        }
        let bias = Tensor::from_slice(self.device, &bias, &[2 * outputs])?;
        Ok(LinearWeights { weight: first.weight, second: Some(second.weight), bias: Some(Arc::new(bias)) })
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

/// The elements of a float tensor as float32, which holds them all exactly.
pub(crate) fn to_f32(view: &View<'_>) -> Result<Vec<f32>, VisionError> {
    Ok(match view.dtype() {
        DType::BF16 => view.as_slice::<bf16>()?.iter().map(|v| v.to_f32()).collect(),
        DType::F16 => view.as_slice::<f16>()?.iter().map(|v| v.to_f32()).collect(),
        _ => view.as_slice::<f32>()?.to_vec(),
    })
}

/// `x · weightᵀ + bias`; with a second weight of the same shape, its outputs follow the first's.
pub(crate) struct LinearWeights {
    pub(crate) weight: Arc<Tensor>,
    pub(crate) second: Option<Arc<Tensor>>,
    pub(crate) bias: Option<Arc<Tensor>>,
}

impl LinearWeights {
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<(), VisionError> {
        let bias = self.bias.as_ref().map(|bias| bias.view());
        let first = matrix(&self.weight)?;
        match &self.second {
            None => linear(stream, Linear { x, weight: &[first], bias, out })?,
            Some(second) => linear(stream, Linear { x, weight: &[first, matrix(second)?], bias, out })?,
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
        add_norm(stream, AddNorm { residual, add, extra: None, weight, bias, kind: self.kind, eps: self.eps, out })
    }
}
