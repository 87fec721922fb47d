//! A linear layer as the checkpoint has it: the boundary at which weights have a format.

use std::sync::Arc;

use foveal_device::{Stream, Tensor, View};
use foveal_kernels::linear::{BlockScales, Linear, linear, tune};
use foveal_kernels::quantize::Scales;

use crate::LlmError;
use crate::projection_input::{InputForm, ProjectionInput};

/// Weights of the checkpoint, used as one matrix stacked along its rows: on the CPU each where it is mapped, on a GPU one
/// tensor. What a quantised weight needs beside its bytes is in its [`WeightFormat`] and nowhere else.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Each `[n_i, k]`; at most [`Projection::MAX_PARTS`].
    weights: Vec<Arc<Tensor>>,
    format: WeightFormat,
    /// `[n]`, added by the product where the weights are floats; else f32, and added by whoever reads the product.
    bias: Option<Arc<Tensor>>,
}

/// How weights are stored, and how their product is scaled.
#[derive(Debug)]
pub(crate) enum WeightFormat {
    /// A float type. Products are what they are.
    Float,
    /// FP8. Products are unscaled, and their reader multiplies.
    Fp8 {
        /// `[n]` f32: the scale of each channel, times that of the activations where it is fixed.
        columns: Tensor,
        /// The activations' fixed scale; without it each row has its own.
        input_scale: Option<f32>,
    },
    /// FP8 with a scale for each 128 x 128 weights, `[ceil(n_i / 128), ceil(k / 128)]` f32 for each part. Products are
    /// scaled.
    Fp8Blocks {
        /// As many as there are weights.
        scales: Vec<Tensor>,
    },
}

impl Projection {
    /// q, k and v.
    const MAX_PARTS: usize = 3;

    pub(crate) fn new(weights: Vec<Arc<Tensor>>, format: WeightFormat, bias: Option<Arc<Tensor>>) -> Self {
        debug_assert!(weights.len() <= Self::MAX_PARTS);
        Self { weights, format, bias }
    }

    /// How its input must be.
    pub(crate) fn input_form(&self) -> InputForm {
        match &self.format {
            WeightFormat::Float => InputForm::Float,
            WeightFormat::Fp8 { input_scale: None, .. } => InputForm::PerRow,
            WeightFormat::Fp8 { input_scale: Some(scale), .. } => InputForm::Fixed(*scale),
            WeightFormat::Fp8Blocks { .. } => InputForm::PerGroup,
        }
    }

    /// Whether it reads FP8.
    pub(crate) fn is_fp8(&self) -> bool {
        !matches!(self.format, WeightFormat::Float)
    }

    /// What its product of the first `n` rows of `input` lacks.
    pub(crate) fn output_scales<'a>(
        &'a self,
        input: &'a ProjectionInput,
        n: usize,
    ) -> Result<Option<Scales<'a>>, LlmError> {
        match &self.format {
            WeightFormat::Float | WeightFormat::Fp8Blocks { .. } => Ok(None),
            WeightFormat::Fp8 { columns, .. } => {
                Ok(Some(Scales { rows: input.scales(n, self.input_form())?, columns: columns.view() }))
            }
        }
    }

    /// The bias that its product lacks, `[n]` f32.
    pub(crate) fn output_bias(&self) -> Option<View<'_>> {
        self.bias.as_ref().filter(|_| self.is_fp8()).map(|bias| bias.view())
    }

    /// `out = x · weightᵀ + bias` for the first `n` rows of `input`, but for [`Projection::output_scales`] and
    /// [`Projection::output_bias`]; out `[max_tokens, sum of n_i]`, of which a few rows beyond `n` may be written, too.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        n: usize,
        input: &ProjectionInput,
        out: &mut Tensor,
    ) -> Result<(), LlmError> {
        self.with_operands(n, input, out, |args| Ok(linear(stream, args)?))
    }

    /// Finds the quickest way to compute [`Projection::forward`] for operands like these; `others` are the same projection
    /// of other layers, taken in turn so that no weight comes from a cache.
    pub(crate) fn tune(
        &self,
        stream: &Stream,
        n: usize,
        input: &ProjectionInput,
        out: &mut Tensor,
        others: &[&Projection],
    ) -> Result<(), LlmError> {
        let others: Vec<Vec<View<'_>>> =
            others.iter().map(|other| other.weights.iter().map(|weight| weight.view()).collect()).collect();
        let others: Vec<&[View<'_>]> = others.iter().map(Vec::as_slice).collect();
        self.with_operands(n, input, out, |args| Ok(tune(stream, args, &others)?))
    }

    /// Calls `run` with views of everything, which take no memory of the heap.
    fn with_operands(
        &self,
        n: usize,
        input: &ProjectionInput,
        out: &mut Tensor,
        run: impl FnOnce(Linear<'_>) -> Result<(), LlmError>,
    ) -> Result<(), LlmError> {
        let x = input.read(n, self.input_form())?;
        let out = out.rows_mut(0..input.num_rows(n, self.input_form()))?;
        let bias = self.bias.as_ref().filter(|_| !self.is_fp8()).map(|bias| bias.view());
        let weights = Views::of(self.weights.iter().map(|weight| weight.view()), x);
        let WeightFormat::Fp8Blocks { scales } = &self.format else {
            return run(Linear { x, weight: weights.as_slice(), bias, scales: None, out });
        };
        let of_weights = Views::of(scales.iter().map(Tensor::view), x);
        let of_input = input.scales(n, InputForm::PerGroup)?.unwrap_or(x);
        let scales = BlockScales { x: of_input, weight: of_weights.as_slice() };
        run(Linear { x, weight: weights.as_slice(), bias, scales: Some(scales), out })
    }
}

/// Views of up to [`Projection::MAX_PARTS`] tensors, without memory of the heap.
struct Views<'a> {
    views: [View<'a>; Projection::MAX_PARTS],
    len: usize,
}

impl<'a> Views<'a> {
    /// `filler` stands where there are fewer, and is not seen.
    fn of(tensors: impl Iterator<Item = View<'a>>, filler: View<'a>) -> Self {
        let mut views = [filler; Projection::MAX_PARTS];
        let mut len = 0;
        for (to, view) in views.iter_mut().zip(tensors) {
            *to = view;
            len += 1;
        }
        Self { views, len }
    }

    fn as_slice(&self) -> &[View<'a>] {
        self.views.get(..self.len).unwrap_or_default()
    }
}
