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
    /// The first `n` rows: `normed -> delta`, which the down projection's scales belong to.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        kind: Activation,
        n: usize,
        ws: &mut Workspace,
    ) -> Result<(), LlmError> {
        self.gate_up_proj.forward(stream, n, &ws.hidden.normed, &mut ws.gate_up)?;
        let scales = self.gate_up_proj.output_scales(&ws.hidden.normed, n)?;
        let (quantize, out) = ws.inner.write(n, self.down_proj.input_form())?;
        gated(stream, Gated { gate_up: ws.gate_up.rows(0..n)?, scales, kind, quantize, out })?;
        self.down_proj.forward(stream, n, &ws.inner, &mut ws.hidden.delta)
    }
}
