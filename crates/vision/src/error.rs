//! What the tower refuses.

use foveal_checkpoint::CheckpointError;
use foveal_device::{DType, DeviceError, Shape};
use foveal_kernels::OpError;
use foveal_mrope::{GridThw, MropeError};
use thiserror::Error;

/// What the vision tower refuses, at load or for one batch of pictures.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VisionError {
    /// The model's config asks for something that the tower doesn't do, or contradicts itself.
    #[error("vision_config: `{field}` is {got}, expected {expected}")]
    Config {
        /// The setting, spelled as in config.json.
        field: &'static str,
        /// What it holds.
        got: String,
        /// What it can hold.
        expected: String,
    },
    /// A batch without pictures.
    #[error("the batch holds no picture; encode at least one")]
    EmptyBatch,
    /// A grid that can't be merged into tokens, or that its patches can't have.
    #[error("picture {index}: grid {grid} can't be encoded: {reason}")]
    Grid {
        /// The picture's place in the batch.
        index: usize,
        /// Its grid.
        grid: GridThw,
        /// Why not.
        reason: String,
    },
    /// Patches of another size than the grid asks for.
    #[error("picture {index}: {got} values of patches were given, its grid takes {expected} ({layout})")]
    PatchLen {
        /// The picture's place in the batch.
        index: usize,
        /// How the values lie.
        layout: &'static str,
        /// Values that the grid takes.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// More patches than the workspace was made for.
    #[error("the batch holds {got} patches, the workspace {max}; encode fewer pictures at once or make it larger")]
    TooManyPatches {
        /// Patches of the batch.
        got: usize,
        /// Patches that the workspace holds.
        max: usize,
    },
    /// A workspace that no tower can use.
    #[error("a workspace of {max_patches} patches is not possible, expected {min} to {max}")]
    WorkspaceSize {
        /// Patches asked for.
        max_patches: usize,
        /// The fewest.
        min: usize,
        /// The most: rows are counted in 32 bits.
        max: usize,
    },
    /// A workspace that was made by a tower of other sizes.
    #[error("the workspace was made for another tower; make it with this tower's `new_workspace`")]
    ForeignWorkspace,
    /// Memory for the result of the wrong shape.
    #[error("`{output}` is {got}, expected [{num_tokens}, {out_hidden_size}]")]
    OutputShape {
        /// Which output.
        output: String,
        /// Its shape.
        got: Shape,
        /// Tokens of the batch.
        num_tokens: usize,
        /// Elements of a token.
        out_hidden_size: usize,
    },
    /// Memory for the result of the wrong element type.
    #[error("`{output}` holds {got}, expected {expected}, as the tower's device computes")]
    OutputDType {
        /// Which output.
        output: String,
        /// What it holds.
        got: DType,
        /// The device's activation type.
        expected: DType,
    },
    /// Memory for another number of deepstack levels than the tower has.
    #[error("{got} deepstack outputs were given, the tower has {expected} levels")]
    DeepstackLevels {
        /// Levels of the tower.
        expected: usize,
        /// Outputs given.
        got: usize,
    },
    /// The model folder lacks a tensor or holds one of the wrong shape.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Positions could not be computed.
    #[error(transparent)]
    Mrope(#[from] MropeError),
    /// An operator refused its operands.
    #[error(transparent)]
    Op(#[from] OpError),
    /// Memory could not be had or read.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
