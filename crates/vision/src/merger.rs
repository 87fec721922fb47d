//! Mergers: `merge x merge` patches become one token of the decoder's width.

use foveal_device::{Stream, View, ViewMut};
use foveal_kernels::activation::{Activate, Activation, activate};
use foveal_kernels::rows::{Gather, gather};

use crate::VisionError;
use crate::block::op_activation;
use crate::weights::{LinearWeights, NormWeights, Reader};
use crate::workspace::Activations;

/// Where a merger's norm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Over each patch, before the patches of a cell are joined: the main merger.
    BeforeJoin,
    /// Over the joined row: the deepstack mergers.
    AfterJoin,
}

/// The weights of one merger: norm, linear, activation, linear.
pub(crate) struct Merger {
    norm: NormWeights,
    place: NormPlace,
    up: LinearWeights,
    act: Activation,
    down: LinearWeights,
    hidden_size: usize,
    merged_size: usize,
    out_hidden_size: usize,
}

impl Merger {
    /// The merger whose tensors stand under `prefix`.
    pub(crate) fn load(reader: &Reader<'_>, prefix: &str, place: NormPlace) -> Result<Self, VisionError> {
        let (config, merged_size) = (reader.config, reader.config.merged_size());
        let at = |name: &str| format!("{prefix}.{name}");
        let norm_width = match place {
            NormPlace::BeforeJoin => config.hidden_size,
            NormPlace::AfterJoin => merged_size,
        };
        Ok(Self {
            norm: reader.norm(&at(config.names.merger_norm), norm_width)?,
            place,
            up: reader.linear(&at(config.names.merger_up), merged_size, merged_size)?,
            act: op_activation(config.merger_act),
            down: reader.linear(&at(config.names.merger_down), config.out_hidden_size, merged_size)?,
            hidden_size: config.hidden_size,
            merged_size,
            out_hidden_size: config.out_hidden_size,
        })
    }

    /// Adds `branch` to `residual`, if there is something in it, and writes the tokens to `out`, `[num_patches /
    /// merge_unit, out_hidden_size]`. `inverse` (i32, one per token) brings them back from window order.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        num_patches: usize,
        activations: &mut Activations,
        has_branch: bool,
        inverse: Option<View<'_>>,
        out: ViewMut<'_>,
    ) -> Result<(), VisionError> {
        let Activations { residual, branch, normed, wide, narrow } = activations;
        let num_tokens = num_patches * self.hidden_size / self.merged_size;
        // The patches of a cell are neighbours, so that joining them is another view of the same rows.
        let joined = [num_tokens, self.merged_size];
        let dims = match self.place {
            NormPlace::BeforeJoin => [num_patches, self.hidden_size],
            NormPlace::AfterJoin => joined,
        };
        let add = has_branch.then(|| branch.view(&dims)).transpose()?;
        self.norm.forward(stream, residual.view_mut(&dims)?, add, normed.view_mut(&dims)?)?;
        self.up.forward(stream, normed.view(&joined)?, wide.view_mut(&joined)?)?;
        let inside = narrow.view_mut(&joined)?;
        activate(stream, Activate { x: wide.view(&joined)?, kind: self.act, out: inside })?;
        let Some(index) = inverse else {
            return self.down.forward(stream, narrow.view(&joined)?, out);
        };
        let tokens = [num_tokens, self.out_hidden_size];
        self.down.forward(stream, narrow.view(&joined)?, branch.view_mut(&tokens)?)?;
        Ok(gather(stream, Gather { x: branch.view(&tokens)?, index, out })?)
    }
}
