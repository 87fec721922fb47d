//! Linear layers over the same input, loaded as one projection in whatever format they have.

use std::sync::Arc;

use foveal_checkpoint::{FP8_BLOCK, Fp8Format, InputScale, LinearFormat, Part, WeightScales};
use foveal_device::{DType, F8E4M3, Tensor};
use foveal_kernels::quantize::{Quantize, QuantizeRows, quantize};
use half::bf16;

use super::Loader;
use crate::projection::{Projection, WeightFormat};
use crate::{LlmError, Quantization};

/// What a GPU's FP8 products ask of every size.
const FP8_MULTIPLE: usize = 16;

/// One of the layers: its name below the decoder, and the shape of its weight.
struct Layer {
    name: String,
    shape: [usize; 2],
}

/// Layers over the same input.
pub(super) struct LinearLayers<'a> {
    loader: &'a Loader<'a>,
    layers: Vec<Layer>,
    has_bias: bool,
}

impl<'a> LinearLayers<'a> {
    /// `parts`: the names of layer `i`'s projections, and their rows; all have `k` columns.
    pub(super) fn new(loader: &'a Loader<'a>, i: usize, parts: &[(&str, usize)], k: usize, has_bias: bool) -> Self {
        let layer = |(name, n): &(&str, usize)| Layer { name: format!("layers.{i}.{name}"), shape: [*n, k] };
        Self { loader, layers: parts.iter().map(layer).collect(), has_bias }
    }

    /// Loads them.
    pub(super) fn load(&self) -> Result<Projection, LlmError> {
        let mut formats = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            if let LinearFormat::Fp8(format) = self.loader.scope.linear_format(&layer.name, layer.shape)? {
                formats.push(format);
            }
        }
        if !formats.is_empty() && formats.len() < self.layers.len() {
            let names: Vec<&str> = self.layers.iter().map(|layer| &layer.name[..]).collect();
            let reason = format!("{} share their input, but only some of them are FP8", names.join(", "));
            return Err(self.refused(reason));
        }
        match (self.loader.quantization, formats.is_empty()) {
            (Quantization::AsStored | Quantization::Float, true) => self.float(),
            (Quantization::Fp8, true) => self.quantized(),
            (Quantization::Float, false) => self.dequantized(&formats),
            (_, false) => self.fp8(&formats),
        }
    }

    fn refused(&self, reason: String) -> LlmError {
        let layer = self.layers.first().map(|layer| self.loader.scope.full_name(&layer.name));
        LlmError::WeightFormat { layer: layer.unwrap_or_default(), reason }
    }

    /// Calls `body` with the layers' tensors of one kind.
    fn with_parts<T>(&self, kind: &str, body: impl FnOnce(&[Part<'_>]) -> Result<T, LlmError>) -> Result<T, LlmError> {
        let names: Vec<String> = self.layers.iter().map(|layer| format!("{}.{kind}", layer.name)).collect();
        let parts = names.iter().zip(&self.layers).map(|(name, layer)| {
            let shape: &[usize] = if kind == "bias" { &layer.shape[..1] } else { &layer.shape };
            Part::new(name, shape)
        });
        body(&parts.collect::<Vec<_>>())
    }

    /// As they are.
    fn float(&self) -> Result<Projection, LlmError> {
        let (scope, device) = (&self.loader.scope, self.loader.device);
        let weights = self.with_parts("weight", |parts| Ok(scope.place(device, parts)?))?;
        Ok(Projection::new(weights, WeightFormat::Float, self.product_bias()?))
    }

    /// Float weights rounded to FP8, each channel with a scale of its own.
    fn quantized(&self) -> Result<Projection, LlmError> {
        self.check_device()?;
        let (scope, device) = (&self.loader.scope, self.loader.device);
        let placed = self.with_parts("weight", |parts| Ok(scope.place(device, parts)?))?;
        let n = self.layers.iter().map(|layer| layer.shape[0]).sum();
        let mut columns = Tensor::zeros(device, DType::F32, &[n])?;
        let (mut weights, mut first) = (Vec::with_capacity(placed.len()), 0);
        for tensor in &placed {
            let rows = tensor.shape().first().copied().unwrap_or(0);
            let mut rounded = Tensor::zeros(device, DType::F8E4M3, tensor.shape())?;
            let scales = Quantize::PerRow(columns.rows_mut(first..first + rows)?);
            quantize(device.stream(), QuantizeRows { x: tensor.view(), quantize: scales, out: rounded.view_mut()? })?;
            weights.push(Arc::new(rounded));
            first += rows;
        }
        // Products read weights while the kernel ahead of them ends.
        device.stream().synchronize()?;
        Ok(Projection::new(weights, WeightFormat::Fp8 { columns, input_scale: None }, self.output_bias()?))
    }

    /// FP8 weights as they are.
    fn fp8<'f>(&self, formats: &'f [Fp8Format]) -> Result<Projection, LlmError> {
        self.check_device()?;
        let (scope, device) = (&self.loader.scope, self.loader.device);
        let of_blocks = |format: &'f Fp8Format| match &format.weight {
            WeightScales::Block(scales) => Some(&scales[..]),
            _ => None,
        };
        let blocks: Vec<&[f32]> = formats.iter().filter_map(of_blocks).collect();
        let format = match blocks.len() {
            0 => self.channels(formats)?,
            count if count == formats.len() => self.blocks(&blocks)?,
            _ => return Err(self.refused("some of these layers have scales by block, others have not".to_owned())),
        };
        let weights = self.with_parts("weight", |parts| Ok(scope.place_fp8(device, parts)?))?;
        Ok(Projection::new(weights, format, self.output_bias()?))
    }

    /// Scales by tensor or channel, and of the activations.
    fn channels(&self, formats: &[Fp8Format]) -> Result<WeightFormat, LlmError> {
        let fixed: Vec<f32> = formats
            .iter()
            .filter_map(|format| match format.input {
                InputScale::Static(scale) => Some(scale),
                InputScale::Dynamic => None,
            })
            .collect();
        if !fixed.is_empty() && fixed.len() < formats.len() {
            return Err(self.refused("some of these layers have an input_scale, others have not".to_owned()));
        }
        // They read one input, so the widest range serves all of them.
        let input_scale = fixed.into_iter().reduce(f32::max);
        let factor = input_scale.unwrap_or(1.0);
        let mut columns = Vec::new();
        for (format, layer) in formats.iter().zip(&self.layers) {
            match &format.weight {
                WeightScales::Tensor(scale) => columns.extend(std::iter::repeat_n(scale * factor, layer.shape[0])),
                WeightScales::Channel(scales) => columns.extend(scales.iter().map(|scale| scale * factor)),
                WeightScales::Block(_) => {}
            }
        }
        let columns = Tensor::from_slice(self.loader.device, &columns, &[columns.len()])?;
        Ok(WeightFormat::Fp8 { columns, input_scale })
    }

    /// Scales by block: one tensor where the weights are one, else one for each.
    fn blocks(&self, blocks: &[&[f32]]) -> Result<WeightFormat, LlmError> {
        let device = self.loader.device;
        let k = self.layers.first().map_or(0, |layer| layer.shape[1]);
        let groups = k.div_ceil(FP8_BLOCK);
        if device.stream().cuda().is_none() {
            let part = |(scales, layer): (&&[f32], &Layer)| {
                Tensor::from_slice(device, scales, &[layer.shape[0].div_ceil(FP8_BLOCK), groups])
            };
            let scales = blocks.iter().zip(&self.layers).map(part).collect::<Result<_, _>>()?;
            return Ok(WeightFormat::Fp8Blocks { scales });
        }
        let whole = |layer: &Layer| layer.shape[0].is_multiple_of(FP8_BLOCK);
        if !self.layers.iter().all(whole) {
            return Err(self.refused(format!(
                "scales by block need rows that are a multiple of {FP8_BLOCK} on a GPU; --quantization none runs the \
                 layer in bf16"
            )));
        }
        let joined: Vec<f32> = blocks.iter().flat_map(|scales| scales.iter().copied()).collect();
        let rows = joined.len().checked_div(groups).unwrap_or(0);
        Ok(WeightFormat::Fp8Blocks { scales: vec![Tensor::from_slice(device, &joined, &[rows, groups])?] })
    }

    /// FP8 weights as bf16, stacked.
    fn dequantized(&self, formats: &[Fp8Format]) -> Result<Projection, LlmError> {
        let mut values: Vec<bf16> = Vec::new();
        for (format, layer) in formats.iter().zip(&self.layers) {
            let [n, k] = layer.shape;
            let weight = self.loader.scope.get_fp8(&format!("{}.weight", layer.name), &layer.shape)?;
            let weight: &[F8E4M3] = weight.view().as_slice()?;
            values.reserve(n * k);
            for (i, row) in weight.chunks(k.max(1)).enumerate() {
                // The checkpoint has given a scale for each.
                let scale = |j: usize| format.weight.at(k, i, j).unwrap_or(f32::NAN);
                values.extend(row.iter().enumerate().map(|(j, x)| bf16::from_f32(x.to_f32() * scale(j))));
            }
        }
        let k = self.layers.first().map_or(0, |layer| layer.shape[1]);
        let rows = self.layers.iter().map(|layer| layer.shape[0]).sum();
        let weights = vec![Arc::new(Tensor::from_slice(self.loader.device, &values, &[rows, k])?)];
        Ok(Projection::new(weights, WeightFormat::Float, self.product_bias()?))
    }

    /// The biases as the product of floats adds them.
    fn product_bias(&self) -> Result<Option<Arc<Tensor>>, LlmError> {
        if !self.has_bias {
            return Ok(None);
        }
        let (scope, device) = (&self.loader.scope, self.loader.device);
        self.with_parts("bias", |parts| Ok(Some(scope.place_joined(device, parts)?)))
    }

    /// The biases as float32, for whoever scales the product.
    fn output_bias(&self) -> Result<Option<Arc<Tensor>>, LlmError> {
        if !self.has_bias {
            return Ok(None);
        }
        let mut bias = Vec::new();
        for layer in &self.layers {
            bias.extend(self.loader.scope.to_f32(&format!("{}.bias", layer.name), &layer.shape[..1])?);
        }
        Ok(Some(Arc::new(Tensor::from_slice(self.loader.device, &bias, &[bias.len()])?)))
    }

    /// Whether the device multiplies FP8, and these sizes of it.
    fn check_device(&self) -> Result<(), LlmError> {
        let Some(cuda) = self.loader.device.stream().cuda() else { return Ok(()) };
        if !cuda.has_f8() {
            let (major, minor) = cuda.compute_capability();
            return Err(self.refused(format!(
                "FP8 needs a GPU of compute capability 8.9 or later (Ada, Hopper), and this one has {major}.{minor}; \
                 --quantization none runs an FP8 checkpoint in bf16"
            )));
        }
        let is_odd = |layer: &&Layer| layer.shape.iter().any(|size| !size.is_multiple_of(FP8_MULTIPLE));
        match self.layers.iter().find(is_odd) {
            None => Ok(()),
            Some(Layer { shape: [n, k], .. }) => Err(self.refused(format!(
                "FP8 on a GPU needs sizes that are multiples of {FP8_MULTIPLE}, and the weight is [{n}, {k}]; \
                 --quantization none runs the layer in bf16"
            ))),
        }
    }
}
