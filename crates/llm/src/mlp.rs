//! The gated MLP of one layer.

use foveal_device::Stream;
use foveal_kernels::activation::{Activation, Gated, gated};

use crate::LlmError;
use crate::projection::Projection;
use crate::workspace::Workspace;

/// `down(act(gate(x)) * up(x))`.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Gate and up stacked: `[2 * intermediate_size, hidden_size]`
    pub(crate) gate_up_proj: Projection,
    /// `[hidden_size, intermediate_size]`
    pub(crate) down_proj: Projection,
}

impl Mlp {
    /// The first `n` rows: `normed -> delta`.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        kind: Activation,
        n: usize,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        self.gate_up_proj.forward(stream, ws.hidden.normed.rows(0..n)?, ws.gate_up.rows_mut(0..n)?)?;
        gated(
            stream,
            Gated {
                gate_up: ws.gate_up.rows(0..n)?,
                scales: None,
                kind,
                quantize: None,
                out: ws.inner.rows_mut(0..n)?,
            },
        )?;
        self.down_proj.forward(stream, ws.inner.rows(0..n)?, ws.hidden.delta.rows_mut(0..n)?)
    }
}
