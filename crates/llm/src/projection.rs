//! A linear layer as the checkpoint has it: the boundary at which weights have a format.

use std::sync::Arc;

use foveal_device::{Stream, Tensor, View, ViewMut};
use foveal_kernels::linear::{Linear, linear, tune};

use crate::LlmError;

/// Weights of the checkpoint, used as one matrix stacked along its rows: on the CPU each where it is mapped, on a GPU one
/// tensor. Weights of float types; what a quantised weight needs beside its bytes (scales, block size) belongs here and
/// nowhere else.
#[derive(Debug)]
pub(crate) struct Projection {
    /// Each `[n_i, k]`; at most [`Projection::MAX_PARTS`].
    weights: Vec<Arc<Tensor>>,
    /// `[n]`
    bias: Option<Arc<Tensor>>,
}

impl Projection {
    /// q, k and v.
    const MAX_PARTS: usize = 3;

    pub(crate) fn new(weights: Vec<Arc<Tensor>>, bias: Option<Arc<Tensor>>) -> Self {
        debug_assert!(weights.len() <= Self::MAX_PARTS);
        Self { weights, bias }
    }

    /// `out = x · weightᵀ + bias`; x `[m, k]`, out `[m, sum of n]`.
    pub(crate) fn forward(&self, stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<(), LlmError> {
        let bias = self.bias.as_ref().map(|bias| bias.view());
        match &self.weights[..] {
            [a] => linear(stream, Linear { x, weight: &[a.view()], bias, scales: None, out })?,
            [a, b] => linear(stream, Linear { x, weight: &[a.view(), b.view()], bias, scales: None, out })?,
            [a, b, c] => {
                linear(stream, Linear { x, weight: &[a.view(), b.view(), c.view()], bias, scales: None, out })?
            }
            parts => {
                let weight: Vec<View<'_>> = parts.iter().map(|part| part.view()).collect();
                linear(stream, Linear { x, weight: &weight, bias, scales: None, out })?;
            }
        }
        Ok(())
    }

    /// Finds the quickest way to compute [`Projection::forward`] for operands like these; `others` are the same projection
    /// of other layers, taken in turn so that no weight comes from a cache.
    pub(crate) fn tune(
        &self,
        stream: &Stream,
        x: View<'_>,
        out: ViewMut<'_>,
        others: &[&Projection],
    ) -> Result<(), LlmError> {
        let own: Vec<View<'_>> = self.weights.iter().map(|weight| weight.view()).collect();
        let others: Vec<Vec<View<'_>>> =
            others.iter().map(|other| other.weights.iter().map(|weight| weight.view()).collect()).collect();
        let others: Vec<&[View<'_>]> = others.iter().map(Vec::as_slice).collect();
        let bias = self.bias.as_ref().map(|bias| bias.view());
        tune(stream, Linear { x, weight: &own, bias, scales: None, out }, &others)?;
        Ok(())
    }
}
