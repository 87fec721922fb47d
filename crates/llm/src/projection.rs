//! A linear layer as the checkpoint has it: the boundary at which weights have a format.

use std::sync::Arc;

use foveal_device::{Stream, Tensor, View, ViewMut};
use foveal_kernels::linear::{Linear, linear};

use crate::LlmError;

/// Up to three weights of the checkpoint, used as one matrix stacked along its rows, in place. Weights of float types;
/// what a quantised weight needs beside its bytes (scales, block size) belongs here and nowhere else.
#[derive(Debug)]
pub(crate) enum Projection {
    /// One weight.
    Single([Arc<Tensor>; 1]),
    /// Gate and up.
    Pair([Arc<Tensor>; 2]),
    /// q, k and v, with their biases concatenated.
    Triple([Arc<Tensor>; 3], Option<Tensor>),
}

impl Projection {
    /// `out = x · weightᵀ + bias`; x `[m, k]`, out `[m, sum of n]`.
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<(), LlmError> {
        match self {
            Self::Single([a]) => linear(stream, Linear { x, weight: &[a.view()], bias: None, out })?,
            Self::Pair([a, b]) => linear(stream, Linear { x, weight: &[a.view(), b.view()], bias: None, out })?,
            Self::Triple([a, b, c], bias) => {
                let bias = bias.as_ref().map(Tensor::view);
                linear(stream, Linear { x, weight: &[a.view(), b.view(), c.view()], bias, out })?;
            }
        }
        Ok(())
    }
}
