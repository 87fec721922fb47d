//! What can be wrong with grids, spans, layouts and tables.

use thiserror::Error;

use crate::GridThw;

/// What can be wrong with grids, spans, layouts and tables.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum MropeError {
    /// `spatial_merge_size` is zero.
    #[error("spatial_merge_size is 0; the vision config must give at least 1")]
    ZeroMergeSize,
    /// A grid without patches.
    #[error("the grid {grid} holds no patch; each of t, h and w must be at least 1")]
    EmptyGrid {
        /// The grid given.
        grid: GridThw,
    },
    /// A grid that can't be cut into merge blocks.
    #[error(
        "the grid {grid} can't be merged by {spatial_merge_size}: h and w must be multiples of it; resize the picture \
         to multiples of patch_size * spatial_merge_size"
    )]
    GridNotDivisible {
        /// The grid given.
        grid: GridThw,
        /// Patches per merged token along height and width.
        spatial_merge_size: u32,
    },
    /// Several frames in one span, where every frame stands alone between timestamps.
    #[error(
        "a span has the grid {grid}, but with frames between timestamps each span holds one frame (t = 1); cut the \
         video with `frame_spans`"
    )]
    FramesNotSplit {
        /// The grid given.
        grid: GridThw,
    },
    /// A duration that can't be turned into a temporal step.
    #[error("second_per_grid is {second_per_grid}; it must be finite and at least 0")]
    InvalidSecondPerGrid {
        /// The duration given, in seconds.
        second_per_grid: f32,
    },
    /// A position that int32 can't hold.
    #[error("the sequence needs position {position}, but positions end below {}", i32::MAX)]
    PositionOverflow {
        /// The position needed; `u64::MAX` stands for everything that even 64 bits can't hold.
        position: u64,
    },
    /// More tokens than int32 positions can tell apart.
    #[error("the prompt has {num_tokens} tokens; at most {} can be positioned", i32::MAX)]
    TooManyTokens {
        /// Tokens up to and with the span that was too much, saturating.
        num_tokens: u64,
    },
    /// The system has no room for the result.
    #[error("no memory for {what}: {num_bytes} bytes were needed")]
    OutOfMemory {
        /// What was to be stored.
        what: &'static str,
        /// Bytes needed, saturating.
        num_bytes: u64,
    },
    /// A range of tokens outside of the prompt.
    #[error("tokens {start}..{end} were asked of {len}; a range must lie inside, its start not after its end")]
    RangeOutOfBounds {
        /// First token asked for.
        start: usize,
        /// One past the last token asked for.
        end: usize,
        /// How many there are.
        len: usize,
    },
    /// A buffer of the wrong length.
    #[error("{what} has {got} elements; {expected} were expected")]
    WrongLength {
        /// Which buffer.
        what: &'static str,
        /// The length needed; for a batch, the least one.
        expected: usize,
        /// The length given.
        got: usize,
    },
    /// A rotary dimension without whole frequency pairs.
    #[error(
        "the rotary dimension is {rotary_dim} of head_dim {head_dim}; it must be even, at least 2 and at most head_dim \
         (head_dim and partial_rotary_factor in the config)"
    )]
    InvalidRotaryDim {
        /// `int(head_dim * partial_rotary_factor)`.
        rotary_dim: usize,
        /// Elements of one attention head.
        head_dim: usize,
    },
    /// A share of the head that is no share.
    #[error("partial_rotary_factor is {partial_rotary_factor}; it must be above 0 and at most 1")]
    InvalidPartialRotaryFactor {
        /// The factor given.
        partial_rotary_factor: f32,
    },
    /// Sections that don't add up to the frequency pairs.
    #[error("mrope_section {mrope_section:?} sums to {sum}; the rotary dimension has {num_pairs} frequency pairs")]
    SectionSum {
        /// Pairs for t, h and w.
        mrope_section: [usize; 3],
        /// Their sum, saturating.
        sum: usize,
        /// Half the rotary dimension.
        num_pairs: usize,
    },
    /// An interleaved section with more pairs than every third one.
    #[error(
        "mrope_section {mrope_section:?} can't be interleaved: {num_pairs} frequency pairs have room for at most \
         {room_h} of h and {room_w} of w"
    )]
    SectionNotInterleavable {
        /// Pairs for t, h and w.
        mrope_section: [usize; 3],
        /// Half the rotary dimension.
        num_pairs: usize,
        /// Pairs 1, 4, 7, ... below `num_pairs`.
        room_h: usize,
        /// Pairs 2, 5, 8, ... below `num_pairs`.
        room_w: usize,
    },
    /// A base that gives no frequencies.
    #[error("rope_theta is {rope_theta}; it must be finite and above 0")]
    InvalidRopeTheta {
        /// The base given.
        rope_theta: f64,
    },
    /// A head of the vision tower that height and width can't share.
    #[error("head_dim {head_dim} of the vision tower must be a multiple of 4 and at least 4: h and w turn half each")]
    InvalidVisionHeadDim {
        /// Elements of one attention head of the tower.
        head_dim: usize,
    },
    /// A grid beyond the vision table.
    #[error("the grid {grid} is larger than the vision table of {max_hw} rows; grow the table first")]
    GridBeyondTable {
        /// The grid given.
        grid: GridThw,
        /// Rows or columns of patches that the table covers.
        max_hw: usize,
    },
    /// A video whose frames have no time.
    #[error("the video has {what} {got}; {expected}")]
    InvalidVideoMeta {
        /// Which property.
        what: &'static str,
        /// What was given.
        got: f64,
        /// What it must be.
        expected: &'static str,
    },
}

/// Makes room for exactly `additional` more elements, or says how much was missing.
pub(crate) fn reserve<T>(out: &mut Vec<T>, additional: usize, what: &'static str) -> Result<(), MropeError> {
    out.try_reserve_exact(additional).map_err(|_| out_of_memory::<T>(additional, what))
}

/// As [`reserve`], for a vector that is appended to time and again: it may take more, so that few calls allocate.
pub(crate) fn reserve_amortised<T>(out: &mut Vec<T>, additional: usize, what: &'static str) -> Result<(), MropeError> {
    out.try_reserve(additional).map_err(|_| out_of_memory::<T>(additional, what))
}

fn out_of_memory<T>(additional: usize, what: &'static str) -> MropeError {
    MropeError::OutOfMemory { what, num_bytes: (additional as u64).saturating_mul(size_of::<T>() as u64) }
}
