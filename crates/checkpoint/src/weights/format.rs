//! Which format a linear layer has, by its tensors, and the scales that go with it.

use safetensors::Dtype;

use super::{Entry, WeightScope};
use crate::{
    CheckpointError, FP8_BLOCK, Fp8Format, Fp8Scheme, InputScale, InputScaleKind, LinearFormat, WeightScaleKind,
    WeightScales,
};

/// Names that the scales of a layer's weight have below the layer. The first is Qwen's own; despite its name it
/// multiplies, as the others do.
const WEIGHT_SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];
const INPUT_SCALE: &str = "input_scale";

/// Names that the scales of keys and values have below an attention layer: compressed-tensors', its older ones,
/// ModelOpt's, vLLM's.
const KV_SCALES: [[&str; 2]; 4] = [
    ["k_scale", "v_scale"],
    ["k_proj.output_scale", "v_proj.output_scale"],
    ["k_proj.k_scale", "v_proj.v_scale"],
    ["attn.k_scale", "attn.v_scale"],
];

/// The tensors of an FP8 layer's scales, by their names below the scope.
struct FoundScales {
    scheme: Fp8Scheme,
    weight: String,
    input: Option<String>,
}

impl WeightScope<'_> {
    /// The format of a linear layer `name` (without `.weight`) whose weight is `[n, k]`, and its scales as float32. The
    /// tensors decide: a weight of a float type needs no scales, wherever the config says that it is quantised. The
    /// tensors of the scales count as taken.
    ///
    /// # Errors
    /// As [`super::WeightSource::get`] for the weight, which may be f8_e4m3 too; [`CheckpointError::MissingScale`],
    /// [`CheckpointError::WrongScaleShape`], [`CheckpointError::BadScale`], and [`CheckpointError::FormatMismatch`] or
    /// [`CheckpointError::MissingTensor`] where the scales aren't those of
    /// [`super::WeightSource::with_quantization`].
    pub fn linear_format(&self, name: &str, shape: [usize; 2]) -> Result<LinearFormat, CheckpointError> {
        let Some(found) = self.find_scales(name, shape)? else { return Ok(LinearFormat::Float) };
        let weight = match found.scheme.weight {
            WeightScaleKind::Tensor => WeightScales::Tensor(self.scale(&found.weight)?),
            WeightScaleKind::Channel => WeightScales::Channel(self.scales(&found.weight)?),
            WeightScaleKind::Block => WeightScales::Block(self.scales(&found.weight)?),
        };
        let input = match &found.input {
            None => InputScale::Dynamic,
            Some(input) => InputScale::Static(self.scale(input)?),
        };
        Ok(LinearFormat::Fp8(Fp8Format { weight, input }))
    }

    /// As [`WeightScope::linear_format`] by the names and shapes alone: nothing is read. `None` for a weight of a float
    /// type. The tensors of the scales count as known, as after [`super::WeightSource::skip`].
    ///
    /// # Errors
    /// As [`WeightScope::linear_format`], without [`CheckpointError::BadScale`].
    pub fn linear_scheme(&self, name: &str, shape: [usize; 2]) -> Result<Option<Fp8Scheme>, CheckpointError> {
        let Some(found) = self.find_scales(name, shape)? else { return Ok(None) };
        self.skip(&found.weight);
        if let Some(input) = &found.input {
            self.skip(input);
        }
        Ok(Some(found.scheme))
    }

    /// The scales of an attention layer's keys and values, `[k, v]`, where the checkpoint has some: what an FP8 cache's
    /// elements are multiplied by. They count as taken.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`] when only one of the two is there, [`CheckpointError::WrongShape`] when it is
    /// no scalar, [`CheckpointError::WrongDType`], [`CheckpointError::BadScale`].
    pub fn kv_scales(&self, attention: &str) -> Result<Option<[f32; 2]>, CheckpointError> {
        let names = KV_SCALES.map(|names| names.map(|name| format!("{attention}.{name}")));
        match names.iter().find(|names| names.iter().any(|name| self.contains(name))) {
            None => Ok(None),
            Some([k, v]) => Ok(Some([self.scale(k)?, self.scale(v)?])),
        }
    }

    /// The scales of an FP8 layer, or none for a layer of floats.
    fn find_scales(&self, name: &str, shape: [usize; 2]) -> Result<Option<FoundScales>, CheckpointError> {
        let weight = self.source.entry(&self.full_name(&format!("{name}.weight")), &shape)?;
        match weight.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => return Ok(None),
            Dtype::F8_E4M3 => {}
            _ => return Err(weight.wrong_dtype("f32, bf16, f16 or f8_e4m3")),
        }
        let promised = self.source.promised;
        let names = WEIGHT_SCALES.map(|scale| format!("{name}.{scale}"));
        let Some(scales) = names.iter().find(|scale| self.contains(scale)) else {
            return Err(weight.missing_scale(&names.map(|scale| self.full_name(&scale))));
        };
        let entry = self.present(scales)?;
        entry.float_dtype()?;
        // One scale can be that of a tensor, a channel and a block at once.
        let is_inverse = scales.ends_with("_inv");
        let likely = promised.map(|p| p.weight).or(is_inverse.then_some(WeightScaleKind::Block));
        let kind = entry.weight_scale_kind(shape, likely)?;
        let input = Some(format!("{name}.{INPUT_SCALE}")).filter(|input| self.contains(input));
        let input_kind = if input.is_some() { InputScaleKind::Static } else { InputScaleKind::Dynamic };
        let scheme = Fp8Scheme { weight: kind, input: input_kind };

        let promised = Fp8Scheme {
            weight: promised.map_or(kind, |p| p.weight),
            input: promised.and_then(|p| p.input).unwrap_or(match kind {
                WeightScaleKind::Block => InputScaleKind::Dynamic,
                WeightScaleKind::Tensor | WeightScaleKind::Channel => input_kind,
            }),
        };
        if promised.weight != kind {
            return Err(entry.format_mismatch(promised, scheme));
        }
        if promised.input != input_kind {
            return Err(match &input {
                Some(input) => self.present(input)?.format_mismatch(promised, scheme),
                None => self.source.missing(&self.full_name(&format!("{name}.{INPUT_SCALE}")), &[]),
            });
        }
        if let Some(input) = &input {
            self.scalar(input)?;
        }
        Ok(Some(FoundScales { scheme, weight: scales.clone(), input }))
    }

    /// A tensor whatever its shape.
    fn present(&self, name: &str) -> Result<&Entry, CheckpointError> {
        let name = self.full_name(name);
        self.source.entries.get(&name).ok_or_else(|| self.source.missing(&name, &[]))
    }

    /// A float tensor of one element, without reading it.
    fn scalar(&self, name: &str) -> Result<&Entry, CheckpointError> {
        let entry = self.present(name)?;
        entry.float_dtype()?;
        if is_scalar(&entry.shape) {
            return Ok(entry);
        }
        self.source.entry(&self.full_name(name), &[])
    }

    /// The only element of a tensor of scales.
    fn scale(&self, name: &str) -> Result<f32, CheckpointError> {
        self.scalar(name)?;
        let scales = self.scales(name)?;
        scales.first().copied().ok_or_else(|| self.source.missing(&self.full_name(name), &[]))
    }

    /// The elements of a tensor of scales.
    fn scales(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let entry = self.present(name)?;
        let scales = self.to_f32(name, &entry.shape)?;
        let is_bad = |scale: &f32| !(scale.is_finite() && *scale > 0.0);
        match scales.iter().position(is_bad) {
            None => Ok(scales),
            Some(index) => Err(CheckpointError::BadScale {
                file: entry.file.to_string(),
                tensor: entry.written_name.clone(),
                index,
                got: scales.get(index).copied().unwrap_or_default(),
            }),
        }
    }
}

impl Entry {
    /// What scales of this shape belong to; `likely` where they could be several things.
    fn weight_scale_kind(
        &self,
        weight: [usize; 2],
        likely: Option<WeightScaleKind>,
    ) -> Result<WeightScaleKind, CheckpointError> {
        let blocks = weight.map(|len| len.div_ceil(FP8_BLOCK));
        let fits = |kind: &WeightScaleKind| match kind {
            WeightScaleKind::Tensor => is_scalar(&self.shape),
            WeightScaleKind::Channel => self.shape == weight[..1] || self.shape == [weight[0], 1],
            WeightScaleKind::Block => self.shape == blocks,
        };
        let kinds = [WeightScaleKind::Tensor, WeightScaleKind::Channel, WeightScaleKind::Block];
        likely.into_iter().chain(kinds).find(fits).ok_or_else(|| CheckpointError::WrongScaleShape {
            file: self.file.to_string(),
            tensor: self.written_name.clone(),
            weight,
            blocks,
            got: self.shape.clone(),
        })
    }

    fn missing_scale(&self, names: &[String]) -> CheckpointError {
        CheckpointError::MissingScale {
            file: self.file.to_string(),
            tensor: self.written_name.clone(),
            scale: names.join(" and no "),
        }
    }

    fn format_mismatch(&self, expected: Fp8Scheme, got: Fp8Scheme) -> CheckpointError {
        CheckpointError::FormatMismatch {
            file: self.file.to_string(),
            tensor: self.written_name.clone(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}

/// `[]`, `[1]` or `[1, 1]`.
fn is_scalar(shape: &[usize]) -> bool {
    shape.len() <= 2 && shape.iter().all(|&dim| dim == 1)
}
