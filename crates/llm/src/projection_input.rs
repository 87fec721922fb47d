//! Rows on their way into a projection, in the form that its weights ask for.

use foveal_device::{DType, Device, DeviceError, Stream, Tensor, View, ViewMut};
use foveal_kernels::quantize::{GROUP, Quantize, QuantizeRows, group_stride, quantize};

use crate::LlmError;

/// How a projection reads its input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum InputForm {
    /// As the device computes.
    Float,
    /// FP8, each row with a scale of its own.
    PerRow,
    /// FP8, each 128 neighbours of a row with a scale of their own.
    PerGroup,
    /// FP8, divided by a scale that the checkpoint knows.
    Fixed(f32),
}

/// A buffer of rows in either form. Which it holds is known to the projection that reads it.
#[derive(Debug)]
pub(crate) struct ProjectionInput {
    /// `[max_tokens, width]`
    pub(crate) float: Tensor,
    f8: Option<F8Rows>,
    is_on_gpu: bool,
}

#[derive(Debug)]
struct F8Rows {
    /// `[max_tokens, width]`
    values: Tensor,
    /// f32, `max_tokens` or, by group, `ceil(width / 128) * group_stride(max_tokens)` of them.
    scales: Tensor,
}

impl F8Rows {
    /// `None` for rows that stay floats.
    fn write(&mut self, n: usize, form: InputForm) -> Result<Option<(Quantize<'_>, ViewMut<'_>)>, LlmError> {
        let groups = self.values.shape().row_len().div_ceil(GROUP);
        let quantize = match form {
            InputForm::Float => return Ok(None),
            InputForm::PerRow => Quantize::PerRow(self.scales.rows_mut(0..n)?),
            InputForm::PerGroup => {
                let stride = group_stride(n);
                Quantize::PerGroup(self.scales.rows_mut(0..groups * stride)?.reshape(&[groups, stride])?)
            }
            InputForm::Fixed(scale) => Quantize::Fixed(scale),
        };
        Ok(Some((quantize, self.values.rows_mut(0..n)?)))
    }
}

impl ProjectionInput {
    /// `has_f8`: some projection reads FP8 from it.
    pub(crate) fn new(device: &Device, max_tokens: usize, width: usize, has_f8: bool) -> Result<Self, DeviceError> {
        let float = Tensor::zeros(device, device.activation_dtype(), &[max_tokens, width])?;
        let f8 = || -> Result<F8Rows, DeviceError> {
            let num_scales = width.div_ceil(GROUP) * group_stride(max_tokens);
            Ok(F8Rows {
                values: Tensor::zeros(device, DType::F8E4M3, &[max_tokens, width])?,
                scales: Tensor::zeros(device, DType::F32, &[num_scales])?,
            })
        };
        Ok(Self { float, f8: has_f8.then(f8).transpose()?, is_on_gpu: device.is_cuda() })
    }

    fn width(&self) -> usize {
        self.float.shape().row_len()
    }

    /// Bytes of all of it.
    pub(crate) fn len_bytes(&self) -> usize {
        let f8 = self.f8.as_ref().map_or(0, |f8| f8.values.len_bytes() + f8.scales.len_bytes());
        self.float.len_bytes() + f8
    }

    /// Where the operator before writes the first `n` rows. Without buffers for FP8 that is as floats: a workspace that
    /// lacks them is refused before a step.
    pub(crate) fn write(&mut self, n: usize, form: InputForm) -> Result<(Option<Quantize<'_>>, ViewMut<'_>), LlmError> {
        let lent = match &mut self.f8 {
            Some(f8) => f8.write(n, form)?,
            None => None,
        };
        match lent {
            Some((quantize, out)) => Ok((Some(quantize), out)),
            None => Ok((None, self.float.rows_mut(0..n)?)),
        }
    }

    /// Brings the first `n` rows, which are floats, into the form.
    pub(crate) fn round(&mut self, stream: &Stream, n: usize, form: InputForm) -> Result<(), LlmError> {
        let Some(f8) = &mut self.f8 else { return Ok(()) };
        if let Some((to, out)) = f8.write(n, form)? {
            quantize(stream, QuantizeRows { x: self.float.rows(0..n)?, quantize: to, out })?;
        }
        Ok(())
    }

    /// Rows of a product of the first `n`: on a GPU those with scales by group are padded.
    pub(crate) fn num_rows(&self, n: usize, form: InputForm) -> usize {
        if form == InputForm::PerGroup && self.is_on_gpu { group_stride(n) } else { n }
    }

    /// The first `n` rows as the operator before left them, and those that pad them.
    pub(crate) fn read(&self, n: usize, form: InputForm) -> Result<View<'_>, LlmError> {
        let n = self.num_rows(n, form);
        match &self.f8 {
            Some(f8) if form != InputForm::Float => Ok(f8.values.rows(0..n)?),
            _ => Ok(self.float.rows(0..n)?),
        }
    }

    /// Their scales, by row `[n]` or by group `[groups, group_stride(n)]`.
    pub(crate) fn scales(&self, n: usize, form: InputForm) -> Result<Option<View<'_>>, LlmError> {
        let Some(f8) = &self.f8 else { return Ok(None) };
        let groups = self.width().div_ceil(GROUP);
        Ok(match form {
            InputForm::PerRow => Some(f8.scales.rows(0..n)?),
            InputForm::PerGroup => {
                let stride = group_stride(n);
                Some(f8.scales.rows(0..groups * stride)?.reshape(&[groups, stride])?)
            }
            InputForm::Float | InputForm::Fixed(_) => None,
        })
    }
}
